# An activation, its backward pass or a sum's, over all elements of an array. Needs vec.pxi and activation.pxi before it.

from cython.parallel cimport prange
from dd2424fast.kernels._team cimport team_size

cdef enum:          # the ways
    FORWARD
    BACKWARD
    SUM

cdef enum:
    PASS_CHUNK = 16384    # elements; chunks are cut alike for every number of threads
    PASS_AHEAD = 1024     # elements that are fetched before they are needed: the processor's own prefetcher stops at every page
    PASS_LARGE = 1 << 25  # bytes of a result that no cache is expected to hold


cdef void activation_pass(int code, int way, const real* x, const real* other, real* to, Py_ssize_t n) noexcept nogil:
    """to = f(x), x f' or f(x + other), after the way; f' from what was saved, the other. `to` may be x, and in a sum the other."""
    cdef Py_ssize_t chunk, start, chunks = (n + PASS_CHUNK - 1) // PASS_CHUNK
    cdef int threads = team_size(n, PASS_CHUNK)
    cdef bint stream = to != x and to != other and n * <Py_ssize_t> sizeof(real) >= PASS_LARGE
    if threads == 1:    # a parallel region of one thread still costs half a microsecond
        pass_over(code, way, stream, x, other, to, n)
    else:
        for chunk in prange(chunks, num_threads=threads, schedule="static"):
            start = chunk * PASS_CHUNK
            pass_over(code, way, stream, x + start, NULL if other == NULL else other + start, to + start,
                      min(<Py_ssize_t> PASS_CHUNK, n - start))


cdef void pass_over(int code, int way, bint stream, const real* x, const real* other, real* to, Py_ssize_t n) noexcept nogil:
    if way == FORWARD:
        pass_as(FORWARD, code, stream, x, other, to, n)
    elif way == BACKWARD:
        pass_as(BACKWARD, code, stream, x, other, to, n)
    else:
        pass_as(SUM, code, stream, x, other, to, n)


cdef inline forced_inline_void pass_as(
    const int way, int code, bint stream, const real* x, const real* other, real* to, Py_ssize_t n) noexcept nogil:
    if code == RELU:
        pass_of(RELU, way, stream, x, other, to, n)
    elif code == LEAKY_RELU:
        pass_of(LEAKY_RELU, way, stream, x, other, to, n)
    elif code == TANH:
        pass_of(TANH, way, stream, x, other, to, n)
    elif code == SIGMOID:
        pass_of(SIGMOID, way, stream, x, other, to, n)
    elif code == GELU and way != SUM:
        pass_of(GELU, way, stream, x, other, to, n)
    else:
        pass_of(IDENTITY, way, stream, x, other, to, n)


cdef inline forced_inline_void pass_of(
    const int code, const int way, bint stream, const real* x, const real* other, real* to, Py_ssize_t n) noexcept nogil:
    cdef Py_ssize_t i = 0, aligned
    if stream:
        aligned = min(n, vec_misaligned(to))
        pass_over_part(code, way, x, other, to, 0, aligned)
        i = aligned
        while i + LANES <= n:
            vec_prefetch(x + i + PASS_AHEAD)
            if way != FORWARD:
                vec_prefetch(other + i + PASS_AHEAD)
            vec_stream(to + i, passed(code, way, vec_load(x + i), vec_zero() if way == FORWARD else vec_load(other + i)))
            i += LANES
        vec_stream_end()
    else:
        while i + LANES <= n:
            vec_store(to + i, passed(code, way, vec_load(x + i), vec_zero() if way == FORWARD else vec_load(other + i)))
            i += LANES
    pass_over_part(code, way, x, other, to, i, n - i)


cdef inline vec passed(const int code, const int way, vec x, vec other) noexcept nogil:
    if way == FORWARD:
        return activated(code, x)
    return times_slope(code, x, other) if way == BACKWARD else activated(code, x + other)


cdef inline forced_inline_void pass_over_part(
    const int code, const int way, const real* x, const real* other, real* to, Py_ssize_t i, Py_ssize_t n) noexcept nogil:
    """n < LANES elements from i."""
    if n > 0:
        vec_store_part(to + i, passed(code, way, vec_load_part(x + i, n),
                                      vec_zero() if way == FORWARD else vec_load_part(other + i, n)), n)
