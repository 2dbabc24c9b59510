"""Counter-based random numbers and dropout; compiled for float32 and float64. Arguments come checked
(kernels/random.py)."""
from cython.parallel cimport prange
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset

from dd2424fast.kernels._team cimport team_size

include "vec.pxi"
include "dropout.pxi"

cdef extern from "philox.h" nogil:
    vec uniform(const uint32_t* words)
    void box_muller(const uint32_t* words, real* z)

cdef enum:
    CHUNK = 16384   # elements that one thread takes at a time, a multiple of BATCH
    BITS = 0
    UNIFORM = 1
    NORMAL = 2


def dropout(cnp.ndarray x, double p, uint64_t key, cnp.ndarray out):
    cdef real* source = data(x)
    cdef real* to = data(out)
    cdef Py_ssize_t n = cnp.PyArray_SIZE(x)
    with nogil:
        drop_all(source, to, n, p, key)
    return out


def random_bits(uint64_t key, cnp.ndarray out):
    generate(BITS, key, <char*> cnp.PyArray_DATA(out), cnp.PyArray_SIZE(out))
    return out


def random_uniform(uint64_t key, cnp.ndarray out):
    generate(UNIFORM, key, <char*> cnp.PyArray_DATA(out), cnp.PyArray_SIZE(out))
    return out


def random_normal(uint64_t key, cnp.ndarray out):
    generate(NORMAL, key, <char*> cnp.PyArray_DATA(out), cnp.PyArray_SIZE(out))
    return out


def random_flags(keys, probabilities, cnp.ndarray out):
    """Flag k of every element from keys[k]."""
    cdef Py_ssize_t n = cnp.PyArray_SIZE(out), chunk, start, chunks = (n + CHUNK - 1) // CHUNK
    cdef uint64_t[8] of_flag
    cdef uint32_t[8] thresholds
    cdef uint8_t* to = <uint8_t*> cnp.PyArray_DATA(out)
    cdef int k, flags = len(keys), threads
    for k in range(flags):
        of_flag[k] = keys[k]
        thresholds[k] = drop_threshold(probabilities[k])
    with nogil:
        threads = team_size(n, CHUNK)
        for chunk in prange(chunks, num_threads=threads, schedule="static", use_threads_if=threads > 1):
            start = chunk * CHUNK
            memset(to + start, 0, min(<Py_ssize_t> CHUNK, n - start))
            for k in range(flags):
                if thresholds[k]:
                    flag(of_flag[k], thresholds[k], <uint8_t> (1 << k), to, start, min(start + CHUNK, n))
    return out


cdef void flag(uint64_t key, uint32_t threshold, uint8_t bit, uint8_t* to, Py_ssize_t start, Py_ssize_t stop) noexcept nogil:
    """Set one bit of elements start (a multiple of BATCH) to stop where the word is below the threshold."""
    cdef uint64_t[20] keys
    cdef uint32_t[BATCH] words
    cdef Py_ssize_t i = start, j
    philox_keys(key, keys)
    while i + BATCH <= stop:
        philox_batch(keys, i, words)
        for j in range(BATCH):
            to[i + j] |= <uint8_t> (bit if words[j] < threshold else 0)
        i += BATCH
    if i < stop:
        philox_batch(keys, i, words)
        for j in range(stop - i):
            to[i + j] |= <uint8_t> (bit if words[j] < threshold else 0)


cdef void generate(int kind, uint64_t key, char* to, Py_ssize_t n) noexcept:
    cdef Py_ssize_t chunk, start, chunks = (n + CHUNK - 1) // CHUNK
    cdef int threads
    with nogil:
        threads = team_size(n, CHUNK)
        for chunk in prange(chunks, num_threads=threads, schedule="static", use_threads_if=threads > 1):
            start = chunk * CHUNK
            if kind == BITS:
                generate_as(BITS, sizeof(uint32_t), key, to, start, min(start + CHUNK, n))
            elif kind == UNIFORM:
                generate_as(UNIFORM, sizeof(real), key, to, start, min(start + CHUNK, n))
            else:
                generate_as(NORMAL, sizeof(real), key, to, start, min(start + CHUNK, n))


cdef inline forced_inline_void generate_as(
    const int kind, const size_t size, uint64_t key, char* to, Py_ssize_t start, Py_ssize_t stop) noexcept nogil:
    """Elements start (a multiple of BATCH) to stop, each of `size` bytes."""
    cdef uint64_t[20] keys
    cdef uint32_t[BATCH] words
    cdef real[BATCH] numbers
    cdef char* made
    cdef Py_ssize_t i = start, j
    philox_keys(key, keys)
    while i < stop:
        philox_batch(keys, i, words)
        if kind == UNIFORM:
            j = 0
            while j < BATCH:
                vec_store(numbers + j, uniform(words + j))
                j += LANES
        elif kind == NORMAL:
            box_muller(words, numbers)
        made = <char*> words if kind == BITS else <char*> numbers
        memcpy(to + i * size, made, size * min(<Py_ssize_t> BATCH, stop - i))
        i += BATCH
