"""Activations element by element; compiled for float32 and float64. Arguments come checked (kernels/activations.py)."""
from cython.parallel cimport prange

from dd2424fast.kernels._checks import ACTIVATIONS
from dd2424fast.kernels._team cimport team_size

include "vec.pxi"
include "activation.pxi"

cdef enum:          # the ways
    FORWARD
    BACKWARD
    SUM

cdef enum:
    CHUNK = 16384   # elements; chunks are cut alike for every number of threads
    AHEAD = 1024    # elements that are fetched before they are needed: the processor's own prefetcher stops at every page
    LARGE = 1 << 25  # bytes of a result that no cache is expected to hold


def activation_forward(cnp.ndarray z, activation, cnp.ndarray out):
    run(ACTIVATIONS[activation], FORWARD, data(z), NULL, data(out), cnp.PyArray_SIZE(z))
    return out


def activation_backward(cnp.ndarray dy, cnp.ndarray saved, activation, cnp.ndarray out):
    run(ACTIVATIONS[activation], BACKWARD, data(dy), data(saved), data(out), cnp.PyArray_SIZE(dy))
    return out


def residual_add_forward(cnp.ndarray x, cnp.ndarray skip, activation, cnp.ndarray out):
    run(ACTIVATIONS[activation], SUM, data(x), data(skip), data(out), cnp.PyArray_SIZE(x))
    return out


cdef void run(int code, int way, const real* x, const real* other, real* to, Py_ssize_t n):
    """to = f(x), x f' or f(x + other), after the way; f' from what was saved, the other. `to` may be x, and in a sum the other."""
    cdef Py_ssize_t chunk, start, chunks = (n + CHUNK - 1) // CHUNK
    cdef int threads = team_size(n, CHUNK)
    cdef bint stream = to != x and to != other and n * <Py_ssize_t> sizeof(real) >= LARGE
    with nogil:
        if threads == 1:    # a parallel region of one thread still costs half a microsecond
            apply(code, way, stream, x, other, to, n)
        else:
            for chunk in prange(chunks, num_threads=threads, schedule="static"):
                start = chunk * CHUNK
                apply(code, way, stream, x + start, NULL if other == NULL else other + start, to + start,
                      min(<Py_ssize_t> CHUNK, n - start))


cdef void apply(int code, int way, bint stream, const real* x, const real* other, real* to, Py_ssize_t n) noexcept nogil:
    if way == FORWARD:
        apply_way(FORWARD, code, stream, x, other, to, n)
    elif way == BACKWARD:
        apply_way(BACKWARD, code, stream, x, other, to, n)
    else:
        apply_way(SUM, code, stream, x, other, to, n)


cdef inline forced_inline_void apply_way(
    const int way, int code, bint stream, const real* x, const real* other, real* to, Py_ssize_t n) noexcept nogil:
    if code == RELU:
        apply_as(RELU, way, stream, x, other, to, n)
    elif code == LEAKY_RELU:
        apply_as(LEAKY_RELU, way, stream, x, other, to, n)
    elif code == TANH:
        apply_as(TANH, way, stream, x, other, to, n)
    elif code == SIGMOID:
        apply_as(SIGMOID, way, stream, x, other, to, n)
    elif code == GELU and way != SUM:
        apply_as(GELU, way, stream, x, other, to, n)
    else:
        apply_as(IDENTITY, way, stream, x, other, to, n)


cdef inline forced_inline_void apply_as(
    const int code, const int way, bint stream, const real* x, const real* other, real* to, Py_ssize_t n) noexcept nogil:
    cdef Py_ssize_t i = 0, aligned
    if stream:
        aligned = min(n, vec_misaligned(to))
        part(code, way, x, other, to, 0, aligned)
        i = aligned
        while i + LANES <= n:
            vec_prefetch(x + i + AHEAD)
            if way != FORWARD:
                vec_prefetch(other + i + AHEAD)
            vec_stream(to + i, one(code, way, vec_load(x + i), vec_zero() if way == FORWARD else vec_load(other + i)))
            i += LANES
        vec_stream_end()
    else:
        while i + LANES <= n:
            vec_store(to + i, one(code, way, vec_load(x + i), vec_zero() if way == FORWARD else vec_load(other + i)))
            i += LANES
    part(code, way, x, other, to, i, n - i)


cdef inline vec one(const int code, const int way, vec x, vec other) noexcept nogil:
    if way == FORWARD:
        return activated(code, x)
    return times_slope(code, x, other) if way == BACKWARD else activated(code, x + other)


cdef inline forced_inline_void part(
    const int code, const int way, const real* x, const real* other, real* to, Py_ssize_t i, Py_ssize_t n) noexcept nogil:
    """n < LANES elements from i."""
    if n > 0:
        vec_store_part(to + i, one(code, way, vec_load_part(x + i, n),
                                   vec_zero() if way == FORWARD else vec_load_part(other + i, n)), n)
