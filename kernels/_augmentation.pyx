"""Image augmentation; compiled for float32 and float64, the type that is computed in. Arguments come checked (kernels/augmentation.py).

An image's rows are moved as bytes, whatever they hold; where the numbers change too, a row passes through a buffer. Images n and
N - 1 - n follow each other on one thread, which mixes them while they lie in its cache. An image is one thread's alone: no bit depends
on their number.
"""
from cython.parallel cimport prange
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy

from dd2424fast.kernels._random_checks cimport mixed
from dd2424fast.kernels._team cimport team_size

import numpy as np

include "vec.pxi"

cdef extern from *:
    """
    /* Products and sums are rounded one by one, as NumPy's are: the two implementations shall differ in no bit. */
    #if defined(__clang__)
    #pragma STDC FP_CONTRACT OFF
    #else
    #pragma GCC optimize("fp-contract=off")
    #endif

    #if DD_REAL_BITS == 64
    #define NEAREST __builtin_rint
    #else
    #define NEAREST __builtin_rintf
    #endif
    /* The nearest whole number, half to even, from 0 to 255. */
    ALWAYS_INLINE uint8_t to_byte(real x) {
        x = NEAREST(x);
        x = x > 0 ? x : 0;
        return (uint8_t)(x < 255 ? x : 255);
    }
    """
    uint8_t to_byte(real) nogil

cdef extern from "philox.h" nogil:
    void philox_keys(uint64_t key, uint64_t* keys)
    void philox_batch(const uint64_t* keys, uint64_t start, uint32_t* words)
    void box_muller(const uint32_t* words, real* z)

cdef enum:
    BATCH = 64      # philox.h's: words made at a time
    DRAWS = 8       # words an image
    GRAIN = 32768   # numbers worth a thread


ctypedef struct Task:
    Py_ssize_t N, H, W, C, row      # numbers in a row of pixels
    Py_ssize_t pixel                # bytes of one before
    Py_ssize_t bytes_in, bytes_out  # of an image
    const char* images
    char* out
    const char* fill                # a row of it
    const double* mean              # C of them, and of std; or NULL
    const double* std
    uint64_t key
    uint64_t[20] keys               # of the images' draws
    uint64_t flip                   # a word below it flips
    Py_ssize_t shift, cutout
    double contrast, brightness, noise
    bint from_bytes, to_bytes       # whether images and results are uint8
    bint changes                    # whether the numbers change, or their places alone
    real mix, rest                  # weights of an image and of its partner


cdef struct Buffers:                # of one thread
    double* sums                    # a row
    real* scale                     # rows: out = scale moved + offset + deviation e
    real* offset
    real* deviation
    real* e                         # an image, up to a whole BATCH
    char* row


cdef struct Drawn:                  # what becomes of one image
    bint flipped
    Py_ssize_t dy, dx, top, left
    double contrast, brightness     # c and b


def augment_images(
    cnp.ndarray images, uint64_t key, double flip, Py_ssize_t shift, Py_ssize_t cutout, double contrast, double brightness,
    double noise, cnp.ndarray fill, mean, std, double mix, cnp.ndarray out,
):
    cdef Task p
    cdef Py_ssize_t size = cnp.PyArray_SIZE(images), share, buffer
    cdef int threads = team_size(size, GRAIN), thread
    cdef cnp.ndarray memory, filling
    cdef double* place
    if size == 0:
        return out
    p.N, p.H, p.W, p.C = cnp.PyArray_DIM(images, 0), cnp.PyArray_DIM(images, 1), cnp.PyArray_DIM(images, 2), cnp.PyArray_DIM(images, 3)
    p.row = p.W * p.C
    p.pixel = p.C * cnp.PyArray_ITEMSIZE(images)
    p.bytes_in, p.bytes_out = cnp.PyArray_NBYTES(images) // p.N, cnp.PyArray_NBYTES(out) // p.N
    p.images, p.out = <const char*> cnp.PyArray_DATA(images), <char*> cnp.PyArray_DATA(out)
    filling = np.tile(fill, p.W)
    p.fill = <const char*> cnp.PyArray_DATA(filling)
    p.mean = p.std = NULL
    if mean is not None:
        p.mean, p.std = <const double*> cnp.PyArray_DATA(<cnp.ndarray> mean), <const double*> cnp.PyArray_DATA(<cnp.ndarray> std)
    p.key = key
    philox_keys(key, p.keys)
    p.flip = <uint64_t> (flip * 4294967296.0 + 0.5)
    p.shift, p.cutout = shift, cutout
    p.contrast, p.brightness, p.noise = contrast, brightness, noise
    p.from_bytes, p.to_bytes = cnp.PyArray_TYPE(images) == cnp.NPY_UINT8, cnp.PyArray_TYPE(out) == cnp.NPY_UINT8
    p.changes = contrast != 0 or brightness != 0 or noise != 0 or p.mean != NULL
    p.mix, p.rest = <real> mix, <real> (1 - mix)
    # In doubles, the largest that anything is: sums, scale, offset, deviation and row; and the noise.
    buffer = 5 * p.row + (p.H * p.row + BATCH if noise != 0 else 0)
    memory = np.empty((threads, buffer))
    place = <double*> cnp.PyArray_DATA(memory)
    with nogil:
        share = (p.N + 1) // 2
        if threads == 1:
            augment_pairs(&p, 0, share, place)
        else:
            for thread in prange(threads, num_threads=threads, schedule="static"):
                augment_pairs(&p, share * thread // threads, share * (thread + 1) // threads, place + thread * buffer)
    return out


cdef void augment_pairs(const Task* p, Py_ssize_t start, Py_ssize_t stop, double* memory) noexcept nogil:
    """Images start to stop, each followed by its partner."""
    cdef Buffers b
    cdef Py_ssize_t n, partner
    b.sums = memory
    b.scale, b.offset, b.deviation = <real*> (memory + p.row), <real*> (memory + 2 * p.row), <real*> (memory + 3 * p.row)
    b.row = <char*> (memory + 4 * p.row)
    b.e = <real*> (memory + 5 * p.row)
    for n in range(start, stop):
        partner = p.N - 1 - n
        augment(p, n, &b)
        if partner != n:
            augment(p, partner, &b)
        if p.mix != 1:
            blend(p, p.out + n * p.bytes_out, p.out + partner * p.bytes_out)


cdef void augment(const Task* p, Py_ssize_t n, Buffers* b) noexcept nogil:
    cdef const char* image = p.images + n * p.bytes_in
    cdef char* to = p.out + n * p.bytes_out
    cdef Py_ssize_t h, step = p.bytes_out // p.H
    cdef Drawn d = draw(p, n)
    if not p.changes:
        for h in range(p.H):
            move_row(p, &d, image, h, to + h * step)
        return
    prepare(p, &d, image, n, b)
    for h in range(p.H):
        move_row(p, &d, image, h, b.row)
        if p.to_bytes:
            change_row(True, True, p, b, h, b.row, to + h * step)
        elif p.from_bytes:
            change_row(True, False, p, b, h, b.row, to + h * step)
        else:
            change_row(False, False, p, b, h, b.row, to + h * step)


cdef Drawn draw(const Task* p, Py_ssize_t n) noexcept nogil:
    cdef uint32_t[BATCH] words
    cdef const uint32_t* word = words + n * DRAWS % BATCH
    cdef Drawn d
    philox_batch(p.keys, n * DRAWS // BATCH * BATCH, words)
    d.flipped = word[0] < p.flip
    d.dy, d.dx = below(2 * p.shift + 1, word[1]) - p.shift, below(2 * p.shift + 1, word[2]) - p.shift
    d.top, d.left = below(p.H, word[3]) - p.cutout // 2, below(p.W, word[4]) - p.cutout // 2
    d.contrast = 1 + p.contrast * (word[5] / 2147483648.0 - 1)
    d.brightness = p.brightness * (word[6] / 2147483648.0 - 1)
    return d


cdef inline Py_ssize_t below(Py_ssize_t size, uint32_t word) noexcept nogil:
    return <Py_ssize_t> (<uint64_t> size * word >> 32)


cdef void move_row(const Task* p, const Drawn* d, const char* image, Py_ssize_t h, char* to) noexcept nogil:
    """Row h of an image, mirrored, moved and cut."""
    cdef Py_ssize_t source = h + d.dy, first = max(0, -d.dx), last = min(p.W, p.W - d.dx), row = p.W * p.pixel
    if source < 0 or source >= p.H:
        memcpy(to, p.fill, row)
        return
    image += source * row
    memcpy(to, p.fill, first * p.pixel)
    if d.flipped:
        mirror(to + first * p.pixel, image + (p.W - 1 - first - d.dx) * p.pixel, last - first, p.pixel)
    else:
        memcpy(to + first * p.pixel, image + (first + d.dx) * p.pixel, (last - first) * p.pixel)
    memcpy(to + last * p.pixel, p.fill, row - last * p.pixel)
    if d.top <= h < d.top + p.cutout:
        first, last = max(0, d.left), min(p.W, d.left + p.cutout)
        memcpy(to + first * p.pixel, p.fill, (last - first) * p.pixel)


cdef void mirror(char* to, const char* last, Py_ssize_t count, Py_ssize_t pixel) noexcept nogil:
    """Copy pixels backwards, from `last` on; of the commonest sizes without a call for each."""
    if pixel == 1:
        mirror_as(1, to, last, count)
    elif pixel == 3:
        mirror_as(3, to, last, count)
    elif pixel == 4:
        mirror_as(4, to, last, count)
    elif pixel == 12:
        mirror_as(12, to, last, count)
    elif pixel == 24:
        mirror_as(24, to, last, count)
    else:
        mirror_as(pixel, to, last, count)


cdef inline forced_inline_void mirror_as(const Py_ssize_t pixel, char* to, const char* last, Py_ssize_t count) noexcept nogil:
    cdef Py_ssize_t i
    for i in range(count):
        memcpy(to + i * pixel, last - i * pixel, pixel)


cdef void prepare(const Task* p, const Drawn* d, const char* image, Py_ssize_t n, Buffers* b) noexcept nogil:
    """What an image's numbers are multiplied with, what is added, and its noise."""
    cdef Py_ssize_t i, j
    cdef double m = 0, offset = 0, std = 1
    cdef uint64_t[20] keys
    cdef uint32_t[BATCH] words
    if p.contrast != 0:
        m = mean_of(p, image, b.sums)
    offset = (1 - d.contrast) * m + d.brightness
    for j in range(p.C):
        std = 1 if p.mean is NULL else p.std[j]
        b.scale[j] = <real> (d.contrast / std)
        b.offset[j] = <real> ((offset - (0 if p.mean is NULL else p.mean[j])) / std)
        b.deviation[j] = <real> (p.noise / std)
    for i in range(p.C, p.row):
        b.scale[i], b.offset[i], b.deviation[i] = b.scale[i - p.C], b.offset[i - p.C], b.deviation[i - p.C]
    if p.noise != 0:
        philox_keys(mixed(mixed(mixed(p.key) + 1) + n), keys)
        i = 0
        while i < p.H * p.row:
            philox_batch(keys, i, words)
            box_muller(words, b.e + i)
            i += BATCH


cdef double mean_of(const Task* p, const char* image, double* sums) noexcept nogil:
    """Down the columns first, one number after the other."""
    cdef Py_ssize_t h, i
    cdef double total = 0
    for i in range(p.row):
        sums[i] = 0
    for h in range(p.H):
        if p.from_bytes:
            for i in range(p.row):
                sums[i] += (<const uint8_t*> image)[h * p.row + i]
        else:
            for i in range(p.row):
                sums[i] += (<const real*> image)[h * p.row + i]
    for i in range(p.row):
        total += sums[i]
    return total / (p.H * p.row)


cdef inline forced_inline_void change_row(
    const bint from_bytes, const bint to_bytes, const Task* p, const Buffers* b, Py_ssize_t h, const char* x, char* y) noexcept nogil:
    if p.noise != 0:
        change(from_bytes, to_bytes, True, p.row, b.scale, b.offset, b.deviation, b.e + h * p.row, x, y)
    else:
        change(from_bytes, to_bytes, False, p.row, b.scale, b.offset, b.deviation, b.e, x, y)


cdef inline forced_inline_void change(
    const bint from_bytes, const bint to_bytes, const bint noisy, Py_ssize_t n, const real* restrict scale,
    const real* restrict offset, const real* restrict deviation, const real* restrict e, const char* restrict x,
    char* restrict y) noexcept nogil:
    cdef Py_ssize_t i
    cdef real v
    for i in range(n):
        v = <real> (<const uint8_t*> x)[i] if from_bytes else (<const real*> x)[i]
        v = v * scale[i] + offset[i]
        if noisy:
            v = v + deviation[i] * e[i]
        if to_bytes:
            (<uint8_t*> y)[i] = to_byte(v)
        else:
            (<real*> y)[i] = v


cdef void blend(const Task* p, char* first, char* second) noexcept nogil:
    """Mix two images, each with the other."""
    cdef Py_ssize_t i, size = p.H * p.row
    cdef real x, y, mix = p.mix, rest = p.rest      # read once: for all the compiler knows, writing bytes changes them
    if p.to_bytes:
        for i in range(size):
            x, y = <real> (<uint8_t*> first)[i], <real> (<uint8_t*> second)[i]
            (<uint8_t*> first)[i], (<uint8_t*> second)[i] = to_byte(mix * x + rest * y), to_byte(mix * y + rest * x)
    else:
        for i in range(size):
            x, y = (<real*> first)[i], (<real*> second)[i]
            (<real*> first)[i], (<real*> second)[i] = mix * x + rest * y, mix * y + rest * x
