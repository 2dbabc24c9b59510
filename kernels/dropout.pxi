# Dropout: a mask from a counter-based generator. Needs vec.pxi before it.

from cython.parallel cimport prange
from libc.stdint cimport uint32_t, uint64_t
from dd2424fast.kernels._team cimport team_size

cdef extern from "philox.h" nogil:
    void philox_keys(uint64_t key, uint64_t* keys)
    void philox_batch(const uint64_t* keys, uint64_t start, uint32_t* words)
    vec kept(const uint32_t* words, uint32_t threshold, real scale)

cdef enum:
    BATCH = 64      # philox.h's: words made at a time
    DROP_CHUNK = 16384  # elements that one thread takes at a time, a multiple of BATCH


cdef inline uint32_t drop_threshold(double p) noexcept nogil:
    """The words below it drop their element."""
    return <uint32_t> min(p * 4294967296.0 + 0.5, 4294967295.0)


cdef void drop(
    const real* x, real* y, Py_ssize_t start, Py_ssize_t stop, uint32_t threshold, real scale, uint64_t key,
) noexcept nogil:
    """y = x * kept on elements start (a multiple of BATCH) to stop."""
    cdef uint64_t[20] keys
    cdef uint32_t[BATCH] words
    cdef Py_ssize_t i = start, j, size
    philox_keys(key, keys)
    while i < stop:
        philox_batch(keys, i, words)
        size = min(<Py_ssize_t> BATCH, stop - i)
        j = 0
        while j + LANES <= size:
            vec_store(y + i + j, vec_load(x + i + j) * kept(words + j, threshold, scale))
            j += LANES
        if j < size:
            vec_store_part(y + i + j, vec_load_part(x + i + j, size - j) * kept(words + j, threshold, scale), size - j)
        i += BATCH


cdef void drop_all(const real* x, real* y, Py_ssize_t n, double p, uint64_t key) noexcept nogil:
    """y = x * kept, each element dropped with probability p; y may be x."""
    cdef Py_ssize_t chunk, start, chunks = (n + DROP_CHUNK - 1) // DROP_CHUNK
    cdef uint32_t threshold = drop_threshold(p)
    cdef real scale = <real> (1.0 / (1.0 - p))
    cdef int threads = team_size(n, DROP_CHUNK)
    if threads == 1:    # even a team of one costs OpenMP 0.2 us to call together
        drop(x, y, 0, n, threshold, scale, key)
    else:
        for chunk in prange(chunks, num_threads=threads, schedule="static"):
            start = chunk * DROP_CHUNK
            drop(x, y, start, min(start + DROP_CHUNK, n), threshold, scale, key)
