# cython: language_level=3
"""Checks of the optimizers' arguments: every training update passes here, so they cost nanoseconds."""
import math

import numpy as np
cimport numpy as cnp
from libc.float cimport DBL_MAX

from dd2424fast.kernels._checks cimport apart, real_vector, result_vector
from dd2424fast.kernels._segments cimport Segments

cnp.import_array()

cdef double BELOW_ONE = np.nextafter(1.0, 0.0)


cdef cnp.ndarray parameter_vector(str name, object x, Py_ssize_t size, int typenum):
    """A vector to be updated in place."""
    if x is None:
        raise TypeError(f"{name}: expected an ndarray, got None")
    if size < 0:    # its size and dtype are what the others must have
        real_vector(name, x, -1, -1)
        size, typenum = cnp.PyArray_DIM(<cnp.ndarray> x, 0), cnp.PyArray_TYPE(<cnp.ndarray> x)
    return result_vector(name, x, size, typenum)


cdef cnp.ndarray state_vector(str name, object x, cnp.ndarray w, cnp.ndarray g):
    """A vector beside the parameters, to be updated in place."""
    cdef cnp.ndarray state = parameter_vector(name, x, cnp.PyArray_DIM(w, 0), cnp.PyArray_TYPE(w))
    apart(name, state, "parameters", w)
    apart(name, state, "gradients", g)
    return state


cdef cnp.ndarray gradient_vector(object x, cnp.ndarray w):
    cdef cnp.ndarray g = real_vector("gradients", x, cnp.PyArray_DIM(w, 0), cnp.PyArray_TYPE(w))
    apart("parameters", w, "gradients", g)
    return g


cdef object check_segments(object segments, Py_ssize_t size):
    if segments is None:
        return None
    if not isinstance(segments, Segments):
        raise TypeError(f"segments: expected Segments or None, got {type(segments).__name__}")
    if (<Segments> segments).size != size:
        raise ValueError(f"segments: expected a table for {size} parameters, got one for {(<Segments> segments).size}")
    return segments


cdef object number(str name, object x, double highest=DBL_MAX):
    """Return x as a float, 0 <= x <= highest."""
    if type(x) is not float:
        if isinstance(x, (bool, np.bool_)) or not isinstance(x, (int, float, np.integer, np.floating)):
            raise TypeError(f"{name}: expected a number, got {type(x).__name__}")
        try:
            x = float(x)
        except OverflowError:  # an int that no double holds
            x = math.inf
    if not 0 <= <double> x <= highest:
        expected = "a finite number of at least 0" if highest == DBL_MAX else "a number from 0 to below 1"
        raise ValueError(f"{name}: expected {expected}, got {x!r}")
    return x


cdef object update_number(object t):
    if type(t) is not int and (isinstance(t, bool) or not isinstance(t, (int, np.integer))):
        raise TypeError(f"t: expected an integer, got {type(t).__name__}")
    if not 1 <= t < 2**63:
        raise ValueError(f"t: expected the update's number, from 1 to 2**63 - 1, got {t}")
    return t


def check_sgd_update(parameters, gradients, velocity=None, segments=None, lr=1e-3, momentum=0.0, nesterov=False,
                     weight_decay=0.0):
    cdef cnp.ndarray w = parameter_vector("parameters", parameters, -1, -1)
    cdef cnp.ndarray g = gradient_vector(gradients, w)
    momentum = number("momentum", momentum)
    if <double> momentum != 0:
        velocity = state_vector("velocity", velocity, w, g)
    elif velocity is not None:
        raise ValueError(f"velocity: expected None where momentum is 0, got {type(velocity).__name__}")
    elif nesterov:
        raise ValueError("nesterov: expected a momentum above 0 with it, got 0")
    return (w, g, velocity, check_segments(segments, cnp.PyArray_DIM(w, 0)), number("lr", lr), momentum, nesterov,
            number("weight_decay", weight_decay))


cdef tuple adam_arguments(parameters, gradients, first_moment, second_moment, t, segments, lr, beta1, beta2, eps,
                          weight_decay):
    cdef cnp.ndarray w = parameter_vector("parameters", parameters, -1, -1)
    cdef cnp.ndarray g = gradient_vector(gradients, w)
    cdef cnp.ndarray m = state_vector("first_moment", first_moment, w, g)
    cdef cnp.ndarray v = state_vector("second_moment", second_moment, w, g)
    apart("second_moment", v, "first_moment", m)
    return (w, g, m, v, update_number(t), check_segments(segments, cnp.PyArray_DIM(w, 0)), number("lr", lr),
            number("beta1", beta1, BELOW_ONE), number("beta2", beta2, BELOW_ONE), number("eps", eps),
            number("weight_decay", weight_decay))


def check_adam_update(parameters, gradients, first_moment, second_moment, t, segments=None, lr=1e-3, beta1=0.9,
                      beta2=0.999, eps=1e-8, weight_decay=0.0):
    return adam_arguments(parameters, gradients, first_moment, second_moment, t, segments, lr, beta1, beta2, eps,
                          weight_decay)


def check_adamw_update(parameters, gradients, first_moment, second_moment, t, segments=None, lr=1e-3, beta1=0.9,
                       beta2=0.999, eps=1e-8, weight_decay=0.01):
    return adam_arguments(parameters, gradients, first_moment, second_moment, t, segments, lr, beta1, beta2, eps,
                          weight_decay)


def check_nadam_update(parameters, gradients, first_moment, second_moment, mu_product, t, segments=None, lr=2e-3,
                       beta1=0.9, beta2=0.999, eps=1e-8, momentum_decay=4e-3, weight_decay=0.0):
    cdef tuple c = adam_arguments(parameters, gradients, first_moment, second_moment, t, segments, lr, beta1, beta2,
                                  eps, weight_decay)
    cdef cnp.ndarray product = parameter_vector("mu_product", mu_product, 1, cnp.NPY_FLOAT64)
    apart("mu_product", product, "parameters", c[0])
    apart("mu_product", product, "gradients", c[1])
    apart("mu_product", product, "first_moment", c[2])
    apart("mu_product", product, "second_moment", c[3])
    return (*c[:4], product, *c[4:10], number("momentum_decay", momentum_decay), c[10])


def check_rmsprop_update(parameters, gradients, square_average, segments=None, lr=1e-2, alpha=0.99, eps=1e-8,
                         weight_decay=0.0):
    cdef cnp.ndarray w = parameter_vector("parameters", parameters, -1, -1)
    cdef cnp.ndarray g = gradient_vector(gradients, w)
    square_average = state_vector("square_average", square_average, w, g)
    return (w, g, square_average, check_segments(segments, cnp.PyArray_DIM(w, 0)), number("lr", lr),
            number("alpha", alpha, BELOW_ONE), number("eps", eps), number("weight_decay", weight_decay))


def check_adagrad_update(parameters, gradients, square_sum, t, segments=None, lr=1e-2, lr_decay=0.0, eps=1e-10,
                         weight_decay=0.0):
    cdef cnp.ndarray w = parameter_vector("parameters", parameters, -1, -1)
    cdef cnp.ndarray g = gradient_vector(gradients, w)
    square_sum = state_vector("square_sum", square_sum, w, g)
    return (w, g, square_sum, update_number(t), check_segments(segments, cnp.PyArray_DIM(w, 0)), number("lr", lr),
            number("lr_decay", lr_decay), number("eps", eps), number("weight_decay", weight_decay))


def check_adadelta_update(parameters, gradients, square_average, delta_average, segments=None, lr=1.0, rho=0.9,
                          eps=1e-6, weight_decay=0.0):
    cdef cnp.ndarray w = parameter_vector("parameters", parameters, -1, -1)
    cdef cnp.ndarray g = gradient_vector(gradients, w)
    cdef cnp.ndarray squares = state_vector("square_average", square_average, w, g)
    cdef cnp.ndarray deltas = state_vector("delta_average", delta_average, w, g)
    apart("delta_average", deltas, "square_average", squares)
    return (w, g, squares, deltas, check_segments(segments, cnp.PyArray_DIM(w, 0)), number("lr", lr),
            number("rho", rho, BELOW_ONE), number("eps", eps), number("weight_decay", weight_decay))
