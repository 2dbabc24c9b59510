# cython: language_level=3
"""Checks of the normalisation kernels, compiled because every training update calls them."""
from libc.math cimport INFINITY, isfinite

cimport numpy as cnp

from dd2424fast.kernels._checks cimport all_apart, real_matrix, real_vector, result_matrix, result_vector

from dd2424fast.kernels._checks import ACTIVATIONS, check_activation

cnp.import_array()


cdef cnp.ndarray matrix_result(str name, object out, Py_ssize_t rows, Py_ssize_t columns, int typenum):
    cdef cnp.npy_intp[2] shape
    if out is None:
        shape[0], shape[1] = rows, columns
        return cnp.PyArray_EMPTY(2, shape, typenum, 0)
    return result_matrix(name, out, rows, columns, typenum)


cdef cnp.ndarray vector_result(str name, object out, Py_ssize_t size, int typenum):
    cdef cnp.npy_intp[1] shape
    if out is None:
        shape[0] = size
        return cnp.PyArray_EMPTY(1, shape, typenum, 0)
    return result_vector(name, out, size, typenum)


cdef cnp.ndarray updated_vector(str name, object v, Py_ssize_t size, int typenum):
    """A vector that the kernel reads and writes: it must be given."""
    return real_vector(name, v, size, typenum) if v is None else result_vector(name, v, size, typenum)


cdef double small_number(str name, object value, double highest) except? -1:
    """A finite number from 0 to `highest`."""
    cdef double v
    try:
        v = value
    except TypeError:
        raise TypeError(f"{name}: expected a number, got {type(value).__name__}") from None
    except OverflowError:  # an int that no double holds
        v = INFINITY
    if not (isfinite(v) and 0 <= v <= highest):
        raise ValueError(f"{name}: expected a finite number from 0{' to 1' if highest == 1 else ''}, got {value}")
    return v


def check_batch_norm_forward(
    x, gamma, beta, running_mean, running_var, momentum=0.1, eps=1e-5, activation="identity",
    out=None, mean=None, rstd=None):
    cdef cnp.ndarray inputs = real_matrix("x", x, -1, -1, -1)
    cdef int t = cnp.PyArray_TYPE(inputs)
    cdef Py_ssize_t N = cnp.PyArray_DIM(inputs, 0), C = cnp.PyArray_DIM(inputs, 1)
    if N < 2:
        raise ValueError(f"x: expected at least 2 rows to estimate a variance from, got shape ({N}, {C})")
    gamma = real_vector("gamma", gamma, C, t)
    beta = real_vector("beta", beta, C, t)
    running_mean = updated_vector("running_mean", running_mean, C, t)
    running_var = updated_vector("running_var", running_var, C, t)
    cdef double m = small_number("momentum", momentum, 1), e = small_number("eps", eps, 1e300)
    if type(activation) is not str or activation not in ACTIVATIONS or activation == "gelu":
        check_activation(activation, True)
    out = matrix_result("out", out, N, C, t)
    mean = vector_result("mean", mean, C, t)
    rstd = vector_result("rstd", rstd, C, t)
    all_apart(("running_mean", "running_var", "out", "mean", "rstd", "x", "gamma", "beta"),
              (running_mean, running_var, out, mean, rstd, inputs, gamma, beta), 5)
    return inputs, gamma, beta, running_mean, running_var, m, e, activation, out, mean, rstd


def check_batch_norm_inference(x, gamma, beta, running_mean, running_var, eps=1e-5, activation="identity", out=None):
    cdef cnp.ndarray inputs = real_matrix("x", x, -1, -1, -1)
    cdef int t = cnp.PyArray_TYPE(inputs)
    cdef Py_ssize_t N = cnp.PyArray_DIM(inputs, 0), C = cnp.PyArray_DIM(inputs, 1)
    gamma = real_vector("gamma", gamma, C, t)
    beta = real_vector("beta", beta, C, t)
    running_mean = real_vector("running_mean", running_mean, C, t)
    running_var = real_vector("running_var", running_var, C, t)
    cdef double e = small_number("eps", eps, 1e300)
    if type(activation) is not str or activation not in ACTIVATIONS or activation == "gelu":
        check_activation(activation, True)
    out = matrix_result("out", out, N, C, t)
    all_apart(("out", "x", "gamma", "beta", "running_mean", "running_var"),
              (out, inputs, gamma, beta, running_mean, running_var), 1)
    return inputs, gamma, beta, running_mean, running_var, e, activation, out


cdef tuple backward(dy, x, gamma, mean, rstd, dx, dgamma, dbeta, bint accumulate, bint frozen, bint per_row):
    """Of both backward passes; mean and rstd are of a row each where `per_row`, else of a column."""
    cdef cnp.ndarray inputs = real_matrix("x", x, -1, -1, -1)
    cdef int t = cnp.PyArray_TYPE(inputs)
    cdef Py_ssize_t N = cnp.PyArray_DIM(inputs, 0), C = cnp.PyArray_DIM(inputs, 1)
    if accumulate and (dgamma is None or dbeta is None):
        raise ValueError("accumulate: expected dgamma and dbeta to add to, got None")
    if N < 2 and not frozen and not per_row:
        raise ValueError(f"x: expected at least 2 rows, as in the forward pass, got shape ({N}, {C})")
    if per_row and C < 1:
        raise ValueError(f"x: expected at least 1 column to normalise over, got shape ({N}, {C})")
    dy = real_matrix("dy", dy, N, C, t)
    gamma = real_vector("gamma", gamma, C, t)
    mean = real_vector("mean", mean, N if per_row else C, t)
    rstd = real_vector("rstd", rstd, N if per_row else C, t)
    dx = matrix_result("dx", dx, N, C, t)
    dgamma = vector_result("dgamma", dgamma, C, t)
    dbeta = vector_result("dbeta", dbeta, C, t)
    all_apart(("dx", "dgamma", "dbeta", "dy", "x", "gamma", "mean", "rstd"),
              (dx, dgamma, dbeta, dy, inputs, gamma, mean, rstd), 3)
    return dy, inputs, gamma, mean, rstd, dx, dgamma, dbeta, accumulate, frozen


def check_batch_norm_backward(
    dy, x, gamma, mean, rstd, dx=None, dgamma=None, dbeta=None, accumulate=False, frozen=False, beta=None, activation="identity"):
    cdef tuple checked = backward(dy, x, gamma, mean, rstd, dx, dgamma, dbeta, accumulate, frozen, False)
    cdef cnp.ndarray inputs = checked[1]
    if type(activation) is not str or activation not in ACTIVATIONS or activation == "gelu":
        check_activation(activation, True)
    if beta is not None:
        beta = real_vector("beta", beta, cnp.PyArray_DIM(inputs, 1), cnp.PyArray_TYPE(inputs))
        all_apart(("dx", "dgamma", "dbeta", "beta"), (checked[5], checked[6], checked[7], beta), 3)
    elif activation != "identity":
        raise ValueError(f"beta: expected that of the forward pass, to find the slope of {activation} again, got None")
    return *checked, beta, activation


def check_layer_norm_forward(x, gamma, beta, eps=1e-5, out=None, mean=None, rstd=None):
    cdef cnp.ndarray inputs = real_matrix("x", x, -1, -1, -1)
    cdef int t = cnp.PyArray_TYPE(inputs)
    cdef Py_ssize_t N = cnp.PyArray_DIM(inputs, 0), C = cnp.PyArray_DIM(inputs, 1)
    if C < 1:
        raise ValueError(f"x: expected at least 1 column to normalise over, got shape ({N}, {C})")
    gamma = real_vector("gamma", gamma, C, t)
    beta = real_vector("beta", beta, C, t)
    cdef double e = small_number("eps", eps, 1e300)
    out = matrix_result("out", out, N, C, t)
    mean = vector_result("mean", mean, N, t)
    rstd = vector_result("rstd", rstd, N, t)
    all_apart(("out", "mean", "rstd", "x", "gamma", "beta"), (out, mean, rstd, inputs, gamma, beta), 3)
    return inputs, gamma, beta, e, out, mean, rstd


def check_layer_norm_backward(dy, x, gamma, mean, rstd, dx=None, dgamma=None, dbeta=None, accumulate=False):
    return backward(dy, x, gamma, mean, rstd, dx, dgamma, dbeta, accumulate, False, True)[:9]
