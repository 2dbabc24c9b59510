cimport numpy as cnp

cdef enum:
    CHUNK = 8192    # parameters per unit of work; fixed, so that sums over them do not depend on the number of threads


cdef struct Span:   # at most CHUNK neighbouring parameters and what their row says
    Py_ssize_t start
    Py_ssize_t stop
    double rate
    double decay


cdef class Segments:
    cdef readonly Py_ssize_t size, trainable
    cdef readonly cnp.ndarray bounds, factors
    cdef Py_ssize_t count
    cdef Span* spans


cdef inline Py_ssize_t span_count(Segments segments, Py_ssize_t size) noexcept:
    """Spans to walk; without a table, those of the whole vector."""
    return (size + CHUNK - 1) // CHUNK if segments is None else segments.count


cdef inline const Span* spans_of(Segments segments) noexcept:
    return NULL if segments is None else segments.spans


cdef inline Span span_at(const Span* spans, Py_ssize_t i, Py_ssize_t size) noexcept nogil:
    cdef Span span
    if spans is not NULL:
        return spans[i]
    span.start, span.stop = i * CHUNK, min((i + 1) * CHUNK, size)
    span.rate = span.decay = 1
    return span
