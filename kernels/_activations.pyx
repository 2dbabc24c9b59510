"""Activations element by element; compiled for float32 and float64. Arguments come checked (kernels/activations.py)."""
from cython.parallel cimport prange

from dd2424fast.kernels._checks import ACTIVATIONS
from dd2424fast.kernels._team cimport team_size

include "vec.pxi"
include "activation.pxi"

cdef enum:
    CHUNK = 16384   # elements; chunks are cut alike for every number of threads


def activation_forward(cnp.ndarray z, activation, cnp.ndarray out):
    cdef int code = ACTIVATIONS[activation], threads
    cdef Py_ssize_t n = cnp.PyArray_SIZE(z), chunk, start, chunks = (n + CHUNK - 1) // CHUNK
    cdef real* source = data(z)
    cdef real* to = data(out)
    with nogil:
        threads = team_size(n, CHUNK)
        for chunk in prange(chunks, num_threads=threads, schedule="static", use_threads_if=threads > 1):
            start = chunk * CHUNK
            activate(code, source + start, to + start, min(<Py_ssize_t> CHUNK, n - start))
    return out


cdef void activate(int code, const real* z, real* y, Py_ssize_t n) noexcept nogil:
    if code == RELU:
        activate_as(RELU, z, y, n)
    elif code == LEAKY_RELU:
        activate_as(LEAKY_RELU, z, y, n)
    elif code == TANH:
        activate_as(TANH, z, y, n)
    elif code == SIGMOID:
        activate_as(SIGMOID, z, y, n)
    else:
        activate_as(IDENTITY, z, y, n)


cdef inline forced_inline_void activate_as(const int code, const real* z, real* y, Py_ssize_t n) noexcept nogil:
    cdef Py_ssize_t i = 0
    while i + LANES <= n:
        vec_store(y + i, activated(code, vec_load(z + i)))
        i += LANES
    if i < n:
        vec_store_part(y + i, activated(code, vec_load_part(z + i, n - i)), n - i)
