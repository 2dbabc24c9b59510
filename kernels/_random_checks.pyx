# cython: language_level=3
"""Checks of the random kernels, and a seed's mixing into a key: compiled, since every training update calls them."""
from cpython.long cimport PyLong_AsUnsignedLongLong, PyLong_CheckExact
from libc.stdint cimport uint64_t

cimport numpy as cnp

from dd2424fast.kernels._checks cimport apart

from dd2424fast.kernels._checks import array

cnp.import_array()


cdef uint64_t natural(str name, object value) except? 0:
    """An integer that fits in 64 bits without a sign."""
    if not PyLong_CheckExact(value):
        if isinstance(value, bool) or not hasattr(value, "__index__"):
            raise TypeError(f"{name}: expected an integer, got {type(value).__name__}")
        value = value.__index__()
    try:
        return PyLong_AsUnsignedLongLong(value)
    except OverflowError:
        raise ValueError(f"{name}: expected an integer from 0 to 2**64 - 1, got {value}") from None


def check_key(key):
    return natural("key", key)


def check_stream_key(seed, stream, update):
    return natural("seed", seed), natural("stream", stream), natural("update", update)


cdef uint64_t mixed(uint64_t z) noexcept nogil:
    z += 0x9E3779B97F4A7C15ULL
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9ULL
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBULL
    return z ^ (z >> 31)


def stream_key(uint64_t seed, uint64_t stream, uint64_t update):
    return mixed(mixed(mixed(seed) + stream) + update)


cdef object alike(str name, object a, object like, bint writable):
    """`a` as an array of `like`'s shape, and of its dtype where it is a result; at once where it is one."""
    cdef cnp.ndarray b
    cdef int t
    if isinstance(a, cnp.ndarray):
        b, t = a, cnp.PyArray_TYPE(a)
        if ((t == cnp.NPY_FLOAT32 or t == cnp.NPY_FLOAT64) and t == cnp.PyArray_TYPE(like)
                and cnp.PyArray_SAMESHAPE(b, like) and cnp.PyArray_ISCARRAY_RO(b)
                and (not writable or cnp.PyArray_ISWRITEABLE(b))):
            return a
    shape = like.shape if isinstance(like, cnp.ndarray) else ()
    return array(name, a, shape, like.dtype if writable else None, writable)


cpdef double check_probability(str name, p) except -1:
    cdef double probability
    try:
        probability = p
    except TypeError:
        raise TypeError(f"{name}: expected a number, got {type(p).__name__}") from None
    except OverflowError:  # an int that no double holds
        probability = 2
    if not 0 <= probability < 1:
        raise ValueError(f"{name}: expected a probability in [0, 1), got {p}")
    return probability


def check_dropout(x, p, key, out=None):
    cdef cnp.ndarray a = alike("x", x, x, False)
    cdef double probability = check_probability("p", p)
    natural("key", key)
    if out is None:
        out = cnp.PyArray_EMPTY(cnp.PyArray_NDIM(a), cnp.PyArray_DIMS(a), cnp.PyArray_TYPE(a), 0)
    else:
        out = alike("out", out, a, True)
        if out is not x:
            apart("out", out, "x", a)
    return a, probability, key, out
