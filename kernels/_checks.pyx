# cython: language_level=3
"""What stands between a caller's arguments and compiled code.

Each function either returns an array that a kernel may read or write without looking (an ndarray of float32 or float64,
C-contiguous, of the right shape) or raises an error that names the argument, what came and what was expected. A readable
array in another layout is copied into the right one; another dtype is an error, since a silent conversion would cost more than
the kernel saves.
"""
import numpy as np
cimport numpy as cnp

cnp.import_array()

_BOTH = "float32 or float64"


def _shown(shape):
    """(None, 10) -> "(any, 10)"."""
    inside = ", ".join("any" if d is None else str(d) for d in shape)
    return f"({inside},)" if len(shape) == 1 else f"({inside})"


def array(str name, x, tuple shape, dtype=None, bint writable=False):
    """Return `x` as a C-contiguous ndarray of this shape, copying only where its layout demands it.

    Parameters
    ----------
    name : str
        The argument's name, for the message.
    x : ndarray
    shape : tuple of int, or None where any size will do
    dtype : dtype, or None for float32 or float64
    writable : bool
        The array is a result: it must be writable and C-contiguous itself, since a copy would be lost.

    Raises
    ------
    TypeError
        Not an ndarray, or of another dtype.
    ValueError
        Another shape; not writable or not contiguous where it must be.
    """
    cdef cnp.ndarray a
    cdef Py_ssize_t i
    if not isinstance(x, np.ndarray):
        raise TypeError(f"{name}: expected an ndarray of {dtype or _BOTH}, got {type(x).__name__}")
    a = x
    if dtype is None:
        if cnp.PyArray_TYPE(a) != cnp.NPY_FLOAT32 and cnp.PyArray_TYPE(a) != cnp.NPY_FLOAT64 or not cnp.PyArray_ISNOTSWAPPED(a):
            raise TypeError(f"{name}: expected dtype {_BOTH}, got {x.dtype}")
    elif x.dtype != dtype:
        raise TypeError(f"{name}: expected dtype {np.dtype(dtype)}, got {x.dtype}")
    if cnp.PyArray_NDIM(a) != len(shape):
        raise ValueError(f"{name}: expected shape {_shown(shape)}, got {x.shape}")
    for i in range(len(shape)):
        if shape[i] is not None and cnp.PyArray_DIM(a, i) != shape[i]:
            raise ValueError(f"{name}: expected shape {_shown(shape)}, got {x.shape}")
    if writable:
        if not cnp.PyArray_ISWRITEABLE(a):
            raise ValueError(f"{name}: expected a writable array to put the result in, got a read-only one")
        if not cnp.PyArray_IS_C_CONTIGUOUS(a) or not cnp.PyArray_ISALIGNED(a):
            raise ValueError(f"{name}: expected a C-contiguous array to put the result in")
        return x
    if not cnp.PyArray_IS_C_CONTIGUOUS(a) or not cnp.PyArray_ISALIGNED(a):
        return np.require(x, requirements=("C", "A"))
    return x


def result(str name, out, tuple shape, dtype):
    """Return `out` if it can hold a result of this shape and dtype, or a new array where it is None."""
    if out is None:
        return np.empty(shape, dtype)
    return array(name, out, shape, dtype, True)


def disjoint(str name, out, str other_name, other):
    """Raise ValueError where the result `out` overlaps the input `other` in memory."""
    apart(name, out, other_name, other)


cdef inline bint plain(cnp.ndarray a, int typenum) noexcept:
    """Aligned, native, C-contiguous, of the type asked for (any of the two where it is -1)."""
    cdef int t = cnp.PyArray_TYPE(a)
    return ((t == typenum or (typenum < 0 and (t == cnp.NPY_FLOAT32 or t == cnp.NPY_FLOAT64)))
            and cnp.PyArray_ISCARRAY_RO(a))


cdef object dtype_of(int typenum):
    return None if typenum < 0 else np.dtype(np.float32 if typenum == cnp.NPY_FLOAT32 else np.float64)


cdef cnp.ndarray real_matrix(str name, object x, Py_ssize_t rows, Py_ssize_t columns, int typenum):
    """A readable matrix; -1 stands for any number of rows or columns, and for either dtype."""
    cdef cnp.ndarray a
    if isinstance(x, np.ndarray):
        a = x
        if (cnp.PyArray_NDIM(a) == 2 and (rows < 0 or cnp.PyArray_DIM(a, 0) == rows)
                and (columns < 0 or cnp.PyArray_DIM(a, 1) == columns) and plain(a, typenum)):
            return a
    return array(name, x, (None if rows < 0 else rows, None if columns < 0 else columns), dtype_of(typenum))


cdef cnp.ndarray real_vector(str name, object x, Py_ssize_t size, int typenum):
    cdef cnp.ndarray a
    if isinstance(x, np.ndarray):
        a = x
        if cnp.PyArray_NDIM(a) == 1 and (size < 0 or cnp.PyArray_DIM(a, 0) == size) and plain(a, typenum):
            return a
    return array(name, x, (None if size < 0 else size,), dtype_of(typenum))


cdef cnp.ndarray result_matrix(str name, object out, Py_ssize_t rows, Py_ssize_t columns, int typenum):
    """`out`, checked, or a new matrix where it is None."""
    cdef cnp.ndarray a
    if out is None:
        return np.empty((rows, columns), dtype_of(typenum))
    if isinstance(out, np.ndarray):
        a = out
        if (cnp.PyArray_NDIM(a) == 2 and cnp.PyArray_DIM(a, 0) == rows and cnp.PyArray_DIM(a, 1) == columns
                and plain(a, typenum) and cnp.PyArray_ISWRITEABLE(a)):
            return a
    return array(name, out, (rows, columns), dtype_of(typenum), True)


cdef cnp.ndarray result_vector(str name, object out, Py_ssize_t size, int typenum):
    cdef cnp.ndarray a
    if out is None:
        return np.empty(size, dtype_of(typenum))
    if isinstance(out, np.ndarray):
        a = out
        if cnp.PyArray_NDIM(a) == 1 and cnp.PyArray_DIM(a, 0) == size and plain(a, typenum) and cnp.PyArray_ISWRITEABLE(a):
            return a
    return array(name, out, (size,), dtype_of(typenum), True)


cdef void apart(str name, cnp.ndarray out, str other_name, object other) except *:
    """Both are contiguous: two ranges of addresses."""
    cdef cnp.ndarray b
    cdef char* start
    cdef char* other_start
    if other is None:
        return
    b = other
    start = <char*> cnp.PyArray_DATA(out)
    other_start = <char*> cnp.PyArray_DATA(b)
    if start < other_start + cnp.PyArray_NBYTES(b) and other_start < start + cnp.PyArray_NBYTES(out):
        raise ValueError(f"{name}: expected memory of its own for the result, got an array that overlaps {other_name}")


cdef void all_apart(tuple names, tuple arrays, int results) except *:
    """The first `results` arrays overlap neither each other nor the rest; all are contiguous: ranges of addresses. None is
    passed over."""
    cdef char* start[24]
    cdef char* stop[24]
    cdef int i, j, n = len(arrays)
    for i in range(n):
        start[i] = stop[i] = NULL
        if arrays[i] is not None:
            start[i] = <char*> cnp.PyArray_DATA(<cnp.ndarray> arrays[i])
            stop[i] = start[i] + cnp.PyArray_NBYTES(<cnp.ndarray> arrays[i])
    for i in range(results):
        for j in range(n):
            if (j < i or j >= results) and start[i] < stop[j] and start[j] < stop[i]:
                raise ValueError(
                    f"{names[i]}: expected memory of its own for the result, got an array that overlaps {names[j]}")


# The checks of kernels that every training update calls, compiled so that they cost nanoseconds.

# The number by which compiled code knows each activation; tile epilogues apply those up to sigmoid.
ACTIVATIONS = {"identity": 0, "relu": 1, "leaky_relu": 2, "tanh": 3, "sigmoid": 4, "gelu": 5}


def check_activation(activation, fused=False):
    """Return the activation's name, or raise ValueError; `fused` admits only those that a product can end with."""
    known = [name for name in ACTIVATIONS if name != "gelu" or not fused]
    if not isinstance(activation, str) or activation not in known:
        raise ValueError(f"activation: expected one of {', '.join(known)}, got {activation!r}")
    if type(activation) is not str:
        raise TypeError(f"activation: expected a str, got {type(activation).__name__}")
    return activation


def check_linear_forward(x, W, b=None, activation="identity", out=None, batched=False):
    cdef cnp.ndarray weights, inputs, y
    cdef int t
    weights = real_matrix("W", W, -1, -1, -1)
    t = cnp.PyArray_TYPE(weights)
    inputs = real_matrix("x", x, -1, cnp.PyArray_DIM(weights, 0), t)
    if b is not None:
        b = real_vector("b", b, cnp.PyArray_DIM(weights, 1), t)
    if type(activation) is not str or activation not in ACTIVATIONS or activation == "gelu":
        check_activation(activation, True)
    if out is None:
        y = np.empty((cnp.PyArray_DIM(inputs, 0), cnp.PyArray_DIM(weights, 1)), weights.dtype)
    else:
        y = result_matrix("out", out, cnp.PyArray_DIM(inputs, 0), cnp.PyArray_DIM(weights, 1), t)
        apart("out", y, "x", inputs)
        apart("out", y, "W", weights)
        apart("out", y, "b", b)
    return inputs, weights, b, activation, y, bool(batched)


def check_linear_backward(dy, x, W, dx=None, dW=None, db=None, need_dx=True, use_bias=True, accumulate=False, need_dW=True):
    cdef cnp.ndarray weights, inputs, gradient
    cdef Py_ssize_t N, D, H
    cdef int t
    use_bias = use_bias and need_dW
    if accumulate and need_dW and (dW is None or (use_bias and db is None)):
        raise ValueError("accumulate: expected dW and db to add to, got None")
    weights = real_matrix("W", W, -1, -1, -1)
    t = cnp.PyArray_TYPE(weights)
    D, H = cnp.PyArray_DIM(weights, 0), cnp.PyArray_DIM(weights, 1)
    inputs = real_matrix("x", x, -1, D, t)
    N = cnp.PyArray_DIM(inputs, 0)
    gradient = real_matrix("dy", dy, N, H, t)
    if need_dx:
        dx = _own_result("dx", result_matrix("dx", dx, N, D, t), gradient, inputs, weights)
    elif dx is not None:
        raise ValueError("dx: expected None where need_dx is False, got an array")
    if need_dW:
        dW = _own_result("dW", result_matrix("dW", dW, D, H, t), gradient, inputs, weights)
    elif dW is not None:
        raise ValueError("dW: expected None where need_dW is False, got an array")
    if use_bias:
        db = _own_result("db", result_vector("db", db, H, t), gradient, inputs, weights)
    elif db is not None:
        raise ValueError(f"db: expected None where {'use_bias' if need_dW else 'need_dW'} is False, got an array")
    return gradient, inputs, weights, dx, dW, db, need_dx, use_bias, accumulate, need_dW


cdef cnp.ndarray _own_result(str name, cnp.ndarray out, dy, x, W):
    apart(name, out, "dy", dy)
    apart(name, out, "x", x)
    apart(name, out, "W", W)
    return out
