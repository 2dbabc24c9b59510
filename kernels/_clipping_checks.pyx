# cython: language_level=3
"""Checks of what reads or clips gradients."""
import numpy as np
cimport numpy as cnp

from dd2424fast.kernels._checks cimport apart, real_vector, result_vector
from dd2424fast.kernels._checks import array
from dd2424fast.kernels._segments cimport Segments

cnp.import_array()


cdef cnp.ndarray own_vector(str name, object x):
    """A vector to be changed in place."""
    cdef cnp.ndarray a = real_vector(name, x, -1, -1)
    return result_vector(name, x, cnp.PyArray_DIM(a, 0), cnp.PyArray_TYPE(a))


cdef object table(object segments, cnp.ndarray gradients):
    if segments is None:
        return None
    if not isinstance(segments, Segments):
        raise TypeError(f"segments: expected Segments or None, got {type(segments).__name__}")
    if (<Segments> segments).size != cnp.PyArray_DIM(gradients, 0):
        raise ValueError(f"segments: expected a table for {cnp.PyArray_DIM(gradients, 0)} parameters, "
                         f"got one for {(<Segments> segments).size}")
    return segments


cdef object positive(str name, object x):
    """Return x as a float above 0; infinity leaves everything as it is."""
    if isinstance(x, (bool, np.bool_)) or not isinstance(x, (int, float, np.integer, np.floating)):
        raise TypeError(f"{name}: expected a number, got {type(x).__name__}")
    if not x > 0:
        raise ValueError(f"{name}: expected a number above 0, got {x!r}")
    try:
        return float(x)
    except OverflowError:  # an int that no double holds
        raise ValueError(f"{name}: expected a number that float64 holds, got {x}") from None


def check_global_norm(gradients, segments=None):
    cdef cnp.ndarray g = real_vector("gradients", gradients, -1, -1)
    return g, table(segments, g)


def check_clip_by_norm(gradients, max_norm, segments=None):
    cdef cnp.ndarray g = own_vector("gradients", gradients)
    return g, positive("max_norm", max_norm), table(segments, g)


def check_clip_by_value(gradients, limit):
    return own_vector("gradients", gradients), positive("limit", limit)


def check_all_finite(x):
    return (array("x", x, np.shape(x)),)


def check_moving_average(average, values, decay):
    cdef cnp.ndarray a = own_vector("average", average)
    cdef cnp.ndarray v = real_vector("values", values, cnp.PyArray_DIM(a, 0), cnp.PyArray_TYPE(a))
    apart("average", a, "values", v)
    if isinstance(decay, (bool, np.bool_)) or not isinstance(decay, (int, float, np.integer, np.floating)):
        raise TypeError(f"decay: expected a number, got {type(decay).__name__}")
    if not 0 <= decay <= 1:
        raise ValueError(f"decay: expected a number from 0 to 1, got {decay!r}")
    return a, v, float(decay)
