"""Activations element by element; compiled for float32 and float64. Arguments come checked (kernels/activations.py)."""
from cython.parallel cimport prange

from dd2424fast.kernels._checks import ACTIVATIONS
from dd2424fast.kernels._team cimport team_size

include "vec.pxi"
include "activation.pxi"

cdef enum:
    CHUNK = 16384   # elements; chunks are cut alike for every number of threads
    AHEAD = 1024    # elements that are fetched before they are needed: the processor's own prefetcher stops at every page
    LARGE = 1 << 25  # bytes of a result that no cache is expected to hold


def activation_forward(cnp.ndarray z, activation, cnp.ndarray out):
    run(ACTIVATIONS[activation], data(z), NULL, data(out), cnp.PyArray_SIZE(z))
    return out


def activation_backward(cnp.ndarray dy, cnp.ndarray saved, activation, cnp.ndarray out):
    run(ACTIVATIONS[activation], data(dy), data(saved), data(out), cnp.PyArray_SIZE(dy))
    return out


cdef void run(int code, const real* x, const real* saved, real* to, Py_ssize_t n):
    """to = f(x), or x f' where `saved` is given; `to` may be x."""
    cdef Py_ssize_t chunk, start, chunks = (n + CHUNK - 1) // CHUNK
    cdef int threads = team_size(n, CHUNK)
    cdef bint stream = to != x and n * <Py_ssize_t> sizeof(real) >= LARGE
    with nogil:
        if threads == 1:    # a parallel region of one thread still costs half a microsecond
            apply(code, stream, x, saved, to, n)
        else:
            for chunk in prange(chunks, num_threads=threads, schedule="static"):
                start = chunk * CHUNK
                apply(code, stream, x + start, NULL if saved == NULL else saved + start, to + start,
                      min(<Py_ssize_t> CHUNK, n - start))


cdef void apply(int code, bint stream, const real* x, const real* saved, real* to, Py_ssize_t n) noexcept nogil:
    if code == RELU:
        apply_as(RELU, stream, x, saved, to, n)
    elif code == LEAKY_RELU:
        apply_as(LEAKY_RELU, stream, x, saved, to, n)
    elif code == TANH:
        apply_as(TANH, stream, x, saved, to, n)
    elif code == SIGMOID:
        apply_as(SIGMOID, stream, x, saved, to, n)
    elif code == GELU:
        apply_as(GELU, stream, x, saved, to, n)
    else:
        apply_as(IDENTITY, stream, x, saved, to, n)


cdef inline forced_inline_void apply_as(
    const int code, bint stream, const real* x, const real* saved, real* to, Py_ssize_t n) noexcept nogil:
    cdef Py_ssize_t i = 0, aligned
    if stream:
        aligned = min(n, vec_misaligned(to))
        part(code, x, saved, to, 0, aligned)
        i = aligned
        while i + LANES <= n:
            vec_prefetch(x + i + AHEAD)
            if saved != NULL:
                vec_prefetch(saved + i + AHEAD)
            vec_stream(to + i, one(code, x, saved, i))
            i += LANES
        vec_stream_end()
    else:
        while i + LANES <= n:
            vec_store(to + i, one(code, x, saved, i))
            i += LANES
    part(code, x, saved, to, i, n - i)


cdef inline vec one(const int code, const real* x, const real* saved, Py_ssize_t i) noexcept nogil:
    if saved == NULL:
        return activated(code, vec_load(x + i))
    return times_slope(code, vec_load(x + i), vec_load(saved + i))


cdef inline forced_inline_void part(
    const int code, const real* x, const real* saved, real* to, Py_ssize_t i, Py_ssize_t n) noexcept nogil:
    """n < LANES elements from i."""
    cdef vec y
    if n > 0:
        y = vec_load_part(x + i, n)
        y = activated(code, y) if saved == NULL else times_slope(code, y, vec_load_part(saved + i, n))
        vec_store_part(to + i, y, n)
