"""Gradient norms, clipping and moving averages; compiled for float32 and float64. Arguments come checked
(kernels/clipping.py).

A sum is formed over spans of at most CHUNK elements whose sums are added in order: no bit depends on the threads.
"""
from cython.parallel cimport prange
from libc.math cimport sqrt

from dd2424fast.kernels._segments cimport CHUNK, Segments, Span, span_at, span_count, spans_of
from dd2424fast.kernels._team cimport team_size

include "vec.pxi"

cdef extern from *:
    """
    enum { AHEAD = 1024 };  /* elements fetched before they are needed: the processor's own prefetcher stops at every page */
    typedef double wide __attribute__((vector_size(8 * LANES), aligned(8)));

    /* Sum of squares in float64: the square of a float32 is exact there and cannot leave the range. */
    static double sum_of_squares(const real *p, ptrdiff_t n) {
        wide sum[4] = {{0}};
        ptrdiff_t i = 0;
        for (; i + 4 * LANES <= n; i += 4 * LANES)
            for (int k = 0; k < 4; k++) {
                vec_prefetch(p + i + k * LANES + AHEAD);
                wide x = __builtin_convertvector(vec_load(p + i + k * LANES), wide);
                sum[k] += x * x;
            }
        for (; i < n; i += LANES) {
            wide x = __builtin_convertvector(vec_load_part(p + i, n - i < LANES ? n - i : LANES), wide);
            sum[0] += x * x;
        }
        sum[0] = (sum[0] + sum[1]) + (sum[2] + sum[3]);
        double total = 0;
        for (int k = 0; k < LANES; k++) total += sum[0][k];
        return total;
    }
    """
    enum: AHEAD
    double sum_of_squares(const real*, Py_ssize_t) nogil

cdef enum:
    GROUP = 512     # spans whose sums are kept at a time
    GRAIN = 6       # spans that are worth a thread


def global_norm(cnp.ndarray gradients, Segments segments):
    return norm(data(gradients), cnp.PyArray_DIM(gradients, 0), segments)


cdef double norm(const real* g, Py_ssize_t size, Segments segments):
    cdef const Span* spans = spans_of(segments)
    cdef Py_ssize_t count = span_count(segments, size), first = 0, n, i
    cdef double sums[GROUP]
    cdef double total = 0
    cdef int threads = team_size(count, GRAIN)
    with nogil:
        while first < count:
            n = min(<Py_ssize_t> GROUP, count - first)
            if threads == 1:
                for i in range(n):
                    sums[i] = span_squares(g, span_at(spans, first + i, size))
            else:
                for i in prange(n, num_threads=threads, schedule="static"):
                    sums[i] = span_squares(g, span_at(spans, first + i, size))
            for i in range(n):
                total += sums[i]
            first += n
    return sqrt(total)


cdef inline double span_squares(const real* g, Span span) noexcept nogil:
    return sum_of_squares(g + span.start, span.stop - span.start)


def clip_by_norm(cnp.ndarray gradients, double max_norm, Segments segments):
    cdef double before = norm(data(gradients), cnp.PyArray_DIM(gradients, 0), segments)
    if before > max_norm:
        walk(scale, data(gradients), NULL, cnp.PyArray_DIM(gradients, 0), segments, <real> (max_norm / (before + 1e-6)))
    return before


def clip_by_value(cnp.ndarray gradients, double limit):
    cdef real* g = data(gradients)
    cdef Py_ssize_t size = cnp.PyArray_DIM(gradients, 0), count = span_count(None, size), i
    cdef int threads = team_size(count, GRAIN), bad = 0
    with nogil:
        if threads == 1:
            for i in range(count):
                bad |= clamp(g, span_at(NULL, i, size), <real> limit)
        else:
            for i in prange(count, num_threads=threads, schedule="static"):
                bad |= clamp(g, span_at(NULL, i, size), <real> limit)
    return not bad


def moving_average(cnp.ndarray average, cnp.ndarray values, double decay):
    walk(approach, data(average), data(values), cnp.PyArray_DIM(average, 0), None, <real> (1 - decay))


ctypedef void (*Change)(real* x, const real* y, Py_ssize_t n, real c) noexcept nogil


cdef void walk(Change change, real* x, const real* y, Py_ssize_t size, Segments segments, real c):
    """Apply `change` to every span of x, beside the same span of y."""
    cdef const Span* spans = spans_of(segments)
    cdef Py_ssize_t count = span_count(segments, size), i
    cdef int threads = team_size(count, GRAIN)
    with nogil:
        if threads == 1:
            for i in range(count):
                walk_span(change, x, y, span_at(spans, i, size), c)
        else:
            for i in prange(count, num_threads=threads, schedule="static"):
                walk_span(change, x, y, span_at(spans, i, size), c)


cdef inline void walk_span(Change change, real* x, const real* y, Span span, real c) noexcept nogil:
    change(x + span.start, NULL if y is NULL else y + span.start, span.stop - span.start, c)


cdef void scale(real* x, const real* y, Py_ssize_t n, real factor) noexcept nogil:
    cdef Py_ssize_t i = 0
    while i + LANES <= n:
        vec_store(x + i, vec_load(x + i) * factor)
        i += LANES
    vec_store_part(x + i, vec_load_part(x + i, n - i) * factor, n - i)


cdef inline bint clamp(real* g, Span span, real limit) noexcept nogil:
    """Clip a span; returns whether it held what is not finite (see not_finite)."""
    cdef vec highest = vec_set(limit), lowest = vec_set(-limit), a = vec_zero(), b = vec_zero(), x, y
    cdef Py_ssize_t i = span.start
    cdef real sum
    while i + 2 * LANES <= span.stop:
        x, y = vec_load(g + i), vec_load(g + i + LANES)
        a, b = a + (x - x), b + (y - y)
        vec_store(g + i, vec_min(vec_max(x, lowest), highest))
        vec_store(g + i + LANES, vec_min(vec_max(y, lowest), highest))
        i += 2 * LANES
    while i < span.stop:
        x = vec_load_part(g + i, min(span.stop - i, <Py_ssize_t> LANES))
        a = a + (x - x)
        vec_store_part(g + i, vec_min(vec_max(x, lowest), highest), min(span.stop - i, <Py_ssize_t> LANES))
        i += LANES
    sum = vec_sum(a + b)
    return sum != sum


cdef void approach(real* x, const real* y, Py_ssize_t n, real weight) noexcept nogil:
    cdef Py_ssize_t i = 0
    while i + LANES <= n:
        vec_store(x + i, lerp(vec_load(x + i), vec_load(y + i), weight))
        i += LANES
    vec_store_part(x + i, lerp(vec_load_part(x + i, n - i), vec_load_part(y + i, n - i), weight), n - i)


cdef inline vec lerp(vec start, vec end, real weight) noexcept nogil:
    """start + weight (end - start), counted from the nearer end: exact at both, and equal stays equal."""
    if weight < <real> 0.5:
        return start + weight * (end - start)
    return end - (<real> 1 - weight) * (end - start)


def all_finite(cnp.ndarray x):
    cdef const real* p = data(x)
    cdef Py_ssize_t size = cnp.PyArray_SIZE(x), count = span_count(None, size), i
    cdef int threads = team_size(count, GRAIN), bad = 0
    with nogil:
        if threads == 1:
            for i in range(count):
                bad |= not_finite(p, span_at(NULL, i, size))
                if bad:
                    break
        else:
            for i in prange(count, num_threads=threads, schedule="static"):
                bad |= not_finite(p, span_at(NULL, i, size))
    return not bad


cdef inline bint not_finite(const real* p, Span span) noexcept nogil:
    """x - x is 0 where x is finite and NaN elsewhere, and NaN stays in a sum."""
    cdef vec a = vec_zero(), b = vec_zero(), x, y
    cdef Py_ssize_t i = span.start
    cdef real sum
    while i + 2 * LANES <= span.stop:
        vec_prefetch(p + i + AHEAD)
        vec_prefetch(p + i + LANES + AHEAD)
        x, y = vec_load(p + i), vec_load(p + i + LANES)
        a, b = a + (x - x), b + (y - y)
        i += 2 * LANES
    while i < span.stop:
        x = vec_load_part(p + i, min(span.stop - i, <Py_ssize_t> LANES))
        a = a + (x - x)
        i += LANES
    sum = vec_sum(a + b)
    return sum != sum
