"""Pooling of images; compiled for float32 and float64. Arguments come checked (kernels/pooling.py).

A thread takes whole rows of the result. Where windows lie side by side (stride = size, no padding), a backward pass writes every element
of dx once. Where they overlap it adds them up one by one on a row of dx, which lies in the cache.

Tried there: adding up for each pixel the windows that it lies in, in registers. Their number changes from pixel to pixel, and a
vector took 60 cycles: 3x3 windows, stride 2, on (100, 32, 32, 32) 4.2 ms on one thread, where this takes 1.7.
"""
from cython.parallel cimport prange

from dd2424fast.kernels._team cimport team_size

include "vec.pxi"

cdef enum:
    GRAIN = 16384   # elements read and written that are worth a thread
    CHUNK = 64      # pixels that a mean adds up before it adds them to the others: a sum of 1024 errs by 80 roundings at most


ctypedef struct Windows:
    Py_ssize_t N, H, W, C           # images, their pixels, channels
    Py_ssize_t P, Q                 # windows below and beside each other
    Py_ssize_t rows, columns        # of a window
    Py_ssize_t down, right          # from one window to the next
    Py_ssize_t above, left          # rows and columns of padding

ctypedef struct Job:
    Windows at
    const real* read                # x or dy
    real* written                   # y or dx
    unsigned char* place            # NULL for means
    real share

# One row of the result: of windows forward, of an image's pixels backward.
ctypedef void (*Row)(const Job* job, Py_ssize_t row) noexcept nogil


cdef Job job_of(image, cnp.ndarray windows, size, stride, padding, cnp.ndarray read, cnp.ndarray written, place):
    cdef Job job
    cdef Windows* at = &job.at
    at.N, at.P, at.Q, at.C = (<object> windows).shape
    at.H, at.W = image
    at.rows, at.columns = size
    at.down, at.right = stride
    at.above, at.left = padding
    job.read, job.written = data(read), data(written)
    job.place = NULL if place is None else <unsigned char*> cnp.PyArray_DATA(<cnp.ndarray> place)
    job.share = <real> (1.0 / (at.rows * at.columns))
    return job


cdef void each_row(Row run, const Job* job, Py_ssize_t rows) noexcept nogil:
    cdef const Windows* at = &job.at
    cdef Py_ssize_t row
    cdef int threads = team_size(<double> at.N * at.C * (at.H * at.W + at.P * at.Q), GRAIN)
    if threads == 1:
        for row in range(rows):
            run(job, row)
    else:
        for row in prange(rows, num_threads=threads, schedule="static"):
            run(job, row)


cdef inline vec load(const real* p, Py_ssize_t size) noexcept nogil:
    """A vector of which `size` elements or more are there."""
    return vec_load(p) if size >= LANES else vec_load_part(p, size)


cdef inline void store(real* p, vec v, Py_ssize_t size) noexcept nogil:
    if size >= LANES:
        vec_store(p, v)
    else:
        vec_store_part(p, v, size)


# Forward.

def max_pool2d_forward(cnp.ndarray x, size, stride, padding, cnp.ndarray out, cnp.ndarray place):
    forward(x, size, stride, padding, out, place)
    return out, place


def avg_pool2d_forward(cnp.ndarray x, size, stride, padding, cnp.ndarray out):
    forward(x, size, stride, padding, out, None)
    return out


cdef forward(cnp.ndarray x, size, stride, padding, cnp.ndarray out, place):
    cdef Job job = job_of((<object> x).shape[1:3], out, size, stride, padding, x, out, place)
    cdef Row run = pooled_2x2 if job.at.rows == 2 and job.at.columns == 2 and padding == (0, 0) else pooled
    with nogil:
        each_row(run, &job, job.at.N * job.at.P)


cdef void pooled_2x2(const Job* job, Py_ssize_t row) noexcept nogil:
    """The usual pool, its loops unrolled."""
    cdef const Windows* at = &job.at
    cdef Py_ssize_t q, top = row // at.P * at.H + row % at.P * at.down
    for q in range(at.Q):
        window(job, row * at.Q + q, top * at.W + q * at.right, 0, 2, 0, 2, 2)


cdef void pooled(const Job* job, Py_ssize_t row) noexcept nogil:
    cdef const Windows* at = &job.at
    cdef Py_ssize_t q, left, top = row % at.P * at.down - at.above
    cdef Py_ssize_t first_row = max(<Py_ssize_t> 0, -top), last_row = min(at.rows, at.H - top)
    for q in range(at.Q):
        left = q * at.right - at.left
        window(job, row * at.Q + q, (row // at.P * at.H + top) * at.W + left,
               first_row, last_row, max(<Py_ssize_t> 0, -left), min(at.columns, at.W - left), at.columns)


cdef inline forced_inline_void window(
    const Job* job, Py_ssize_t to, Py_ssize_t pixel, const Py_ssize_t first_row, const Py_ssize_t last_row,
    const Py_ssize_t first_column, const Py_ssize_t last_column, const Py_ssize_t columns,
) noexcept nogil:
    """All channels of one window whose upper left corner is this pixel; what lies between first and last is inside the image."""
    cdef Py_ssize_t c = 0, C = job.at.C
    while c + LANES <= C:
        vector_of_window(job, to * C + c, pixel * C + c, first_row, last_row, first_column, last_column, columns, LANES)
        c += LANES
    if c < C:
        vector_of_window(job, to * C + c, pixel * C + c, first_row, last_row, first_column, last_column, columns, C - c)


cdef inline forced_inline_void vector_of_window(
    const Job* job, Py_ssize_t to, Py_ssize_t corner, const Py_ssize_t first_row, const Py_ssize_t last_row,
    const Py_ssize_t first_column, const Py_ssize_t last_column, const Py_ssize_t columns, const Py_ssize_t size,
) noexcept nogil:
    cdef Py_ssize_t i, j, C = job.at.C, step = job.at.W * C
    cdef const real* x = job.read + corner
    cdef vec result
    cdef ivec marks
    if job.place == NULL:
        result = vec_zero()
        for i in range(first_row, last_row):
            for j in range(first_column, last_column):
                result = result + load(x + i * step + j * C, size)
        store(job.written + to, result * vec_set(job.share), size)
    else:
        result = load(x + first_row * step + first_column * C, size)
        marks = vec_whole(<int> (first_row * columns + first_column))
        for i in range(first_row, last_row):
            for j in range(first_column, last_column):
                vec_take_larger(&result, &marks, load(x + i * step + j * C, size), <int> (i * columns + j))
        store(job.written + to, result, size)
        vec_store_bytes(job.place + to, marks, size)


# Backward.

def max_pool2d_backward(cnp.ndarray dy, cnp.ndarray place, image, size, stride, padding, cnp.ndarray dx):
    return backward(dy, image, size, stride, padding, dx, place)


def avg_pool2d_backward(cnp.ndarray dy, image, size, stride, padding, cnp.ndarray dx):
    return backward(dy, image, size, stride, padding, dx, None)


cdef backward(cnp.ndarray dy, image, size, stride, padding, cnp.ndarray dx, place):
    cdef Job job = job_of(image, dy, size, stride, padding, dy, dx, place)
    with nogil:
        if job.at.down != job.at.rows or job.at.right != job.at.columns or job.at.above or job.at.left:
            each_row(overlapping, &job, job.at.N * job.at.H)
        elif job.at.rows == 2 and job.at.columns == 2:
            each_row(side_by_side_2x2, &job, job.at.N * job.at.P)
        else:
            each_row(side_by_side, &job, job.at.N * job.at.P)
    return dx


cdef void side_by_side_2x2(const Job* job, Py_ssize_t row) noexcept nogil:
    spread(job, row, 2, 2)


cdef void side_by_side(const Job* job, Py_ssize_t row) noexcept nogil:
    spread(job, row, job.at.rows, job.at.columns)


cdef inline forced_inline_void spread(const Job* job, Py_ssize_t row, const Py_ssize_t rows, const Py_ssize_t columns) noexcept nogil:
    """The pixels of one row of windows, and the zeros beside and below them."""
    cdef const Windows* at = &job.at
    cdef Py_ssize_t i, q, c, C = at.C, p = row % at.P
    cdef Py_ssize_t line = at.W * C, rest = (at.W - at.Q * columns) * C
    cdef real* dx = job.written + (row // at.P * at.H + p * rows) * line
    cdef Py_ssize_t windows = row * at.Q * C
    for q in range(at.Q):
        c = 0
        while c + LANES <= C:
            spread_vector(job, windows + q * C + c, dx + q * columns * C + c, rows, columns, LANES)
            c += LANES
        if c < C:
            spread_vector(job, windows + q * C + c, dx + q * columns * C + c, rows, columns, C - c)
    for i in range(rows):
        clear(dx + (i + 1) * line - rest, rest)
    if p == at.P - 1:
        clear(dx + rows * line, (at.H - at.P * rows) * line)


cdef inline forced_inline_void spread_vector(
    const Job* job, Py_ssize_t source, real* dx, const Py_ssize_t rows, const Py_ssize_t columns, const Py_ssize_t size,
) noexcept nogil:
    cdef Py_ssize_t i, j, C = job.at.C, line = job.at.W * C
    cdef vec dy = load(job.read + source, size)
    cdef ivec marks
    if job.place == NULL:
        dy = dy * vec_set(job.share)
        for i in range(rows):
            for j in range(columns):
                store(dx + i * line + j * C, dy, size)
    else:
        marks = vec_load_flags(job.place + source, size)
        for i in range(rows):
            for j in range(columns):
                store(dx + i * line + j * C, vec_marked(marks, <int> (i * columns + j), dy), size)


cdef inline void clear(real* p, Py_ssize_t n) noexcept nogil:
    cdef Py_ssize_t i
    for i in range(n):
        p[i] = 0


cdef void overlapping(const Job* job, Py_ssize_t row) noexcept nogil:
    """One row of dx, zero at first, from all rows of windows that it lies in."""
    cdef const Windows* at = &job.at
    cdef Py_ssize_t n = row // at.H, h = row % at.H + at.above, p, q, c, left, first, last, source, C = at.C
    cdef real* dx = job.written + row * at.W * C
    clear(dx, at.W * C)
    for p in range(0 if h < at.rows else (h - at.rows) // at.down + 1, min(at.P, h // at.down + 1)):
        for q in range(at.Q):
            left = q * at.right - at.left
            first, last = max(<Py_ssize_t> 0, -left), min(at.columns, at.W - left)
            source = ((n * at.P + p) * at.Q + q) * C
            c = 0
            while c + LANES <= C:
                add_vector(job, source + c, dx + left * C + c, first, last, (h - p * at.down) * at.columns, LANES)
                c += LANES
            if c < C:
                add_vector(job, source + c, dx + left * C + c, first, last, (h - p * at.down) * at.columns, C - c)


cdef inline forced_inline_void add_vector(
    const Job* job, Py_ssize_t source, real* dx, Py_ssize_t first, Py_ssize_t last, Py_ssize_t mark, const Py_ssize_t size,
) noexcept nogil:
    """To the pixels of one row of a window, which are marked with numbers from `mark` on."""
    cdef Py_ssize_t j, C = job.at.C
    cdef vec dy = load(job.read + source, size)
    cdef ivec marks
    if job.place == NULL:
        dy = dy * vec_set(job.share)
        for j in range(first, last):
            store(dx + j * C, load(dx + j * C, size) + dy, size)
    else:
        marks = vec_load_flags(job.place + source, size)
        for j in range(first, last):
            store(dx + j * C, load(dx + j * C, size) + vec_marked(marks, <int> (mark + j), dy), size)


# The mean of an image's pixels.

ctypedef struct Whole:
    Py_ssize_t N, pixels, C
    real* image                     # x or dx
    real* mean                      # y or dy
    real share


cdef Whole whole_of(cnp.ndarray image, cnp.ndarray mean):
    cdef Whole s
    s.N, s.C = cnp.PyArray_DIM(image, 0), cnp.PyArray_DIM(image, 3)
    s.pixels = cnp.PyArray_DIM(image, 1) * cnp.PyArray_DIM(image, 2)
    s.image, s.mean = data(image), data(mean)
    s.share = <real> (1.0 / s.pixels)
    return s


def global_avg_pool2d_forward(cnp.ndarray x, cnp.ndarray out):
    cdef Whole s = whole_of(x, out)
    cdef Py_ssize_t i, blocks = (s.C + 4 * LANES - 1) // (4 * LANES)
    cdef int threads = team_size(<double> s.N * s.pixels * s.C, GRAIN)
    with nogil:
        if threads == 1:
            for i in range(s.N * blocks):
                mean_of(&s, i // blocks, i % blocks * 4 * LANES)
        else:
            for i in prange(s.N * blocks, num_threads=threads, schedule="static"):
                mean_of(&s, i // blocks, i % blocks * 4 * LANES)
    return out


cdef void mean_of(const Whole* s, Py_ssize_t n, Py_ssize_t c) noexcept nogil:
    """Of four vectors of an image's channels, or of those that are left."""
    cdef const real* x = s.image + n * s.pixels * s.C + c
    cdef real* y = s.mean + n * s.C + c
    cdef Py_ssize_t size
    if s.C - c >= 4 * LANES:
        mean_of_vectors(4, s, x, y, LANES)
        return
    while c < s.C:
        size = min(<Py_ssize_t> LANES, s.C - c)
        mean_of_vectors(1, s, x, y, size)
        x += LANES
        y += LANES
        c += LANES


cdef inline forced_inline_void mean_of_vectors(
    const int V, const Whole* s, const real* x, real* y, Py_ssize_t size,
) noexcept nogil:
    cdef vec[4] total, part
    cdef Py_ssize_t first = 0, i
    cdef int v
    for v in range(V):
        total[v] = vec_zero()
    while first < s.pixels:
        for v in range(V):
            part[v] = vec_zero()
        for i in range(min(<Py_ssize_t> CHUNK, s.pixels - first)):
            for v in range(V):
                part[v] = part[v] + load(x + v * LANES, size)
            x += s.C
        for v in range(V):
            total[v] = total[v] + part[v]
        first += CHUNK
    for v in range(V):
        store(y + v * LANES, total[v] * vec_set(s.share), size)


def global_avg_pool2d_backward(cnp.ndarray dy, image, cnp.ndarray dx):
    cdef Whole s = whole_of(dx, dy)
    cdef Py_ssize_t n
    cdef int threads = team_size(<double> s.N * s.pixels * s.C, GRAIN)
    with nogil:
        if threads == 1:
            for n in range(s.N):
                share_out(&s, n)
        else:
            for n in prange(s.N, num_threads=threads, schedule="static"):
                share_out(&s, n)
    return dx


cdef void share_out(const Whole* s, Py_ssize_t n) noexcept nogil:
    """An image's mean to each of its pixels."""
    cdef const real* dy = s.mean + n * s.C
    cdef real* dx = s.image + n * s.pixels * s.C
    cdef Py_ssize_t i, c
    for i in range(s.pixels):
        c = 0
        while c < s.C:
            store(dx + c, load(dy + c, s.C - c) * vec_set(s.share), s.C - c)
            c += LANES
        dx += s.C
