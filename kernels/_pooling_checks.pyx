# cython: language_level=3
"""Checks of the pooling kernels, compiled because every training update calls them."""
from cython.parallel cimport prange

cimport numpy as cnp

from dd2424fast.kernels._checks cimport apart, real_matrix, result_matrix
from dd2424fast.kernels._team cimport team_size

from dd2424fast.kernels._checks import array
from dd2424fast.kernels.windows import pair, window_counts

cnp.import_array()

cdef enum:
    MOST_PIXELS = 255       # of a window: a place is a byte
    GRAIN = 262144          # places that are worth a thread to look at

cdef dict DTYPES = {cnp.NPY_FLOAT32: "float32", cnp.NPY_FLOAT64: "float64", cnp.NPY_UINT8: "uint8"}


cdef struct Pool:
    Py_ssize_t H, W             # of the images
    Py_ssize_t rows, columns    # of a window
    Py_ssize_t down, right      # the stride
    Py_ssize_t above, left      # the padding
    Py_ssize_t P, Q             # windows below and beside each other


cdef tuple two(str name, object value, Py_ssize_t least):
    """Two ints for rows and columns."""
    if type(value) is tuple and len(<tuple> value) == 2:
        if not (type(value[0]) is int and type(value[1]) is int and least <= value[0] < 1 << 31 and least <= value[1] < 1 << 31):
            return pair(name, value, least)
        return value
    if type(value) is int and least <= value < 1 << 31:
        return value, value
    return pair(name, value, least)


cdef tuple pool_of(Pool* pool, object size, object stride, object padding):
    """Fill in all but the images' size, which is there; returns size, stride and padding as pairs."""
    size = two("size", size, 1)
    stride = size if stride is None else two("stride", stride, 1)
    padding = two("padding", padding, 0)
    pool.rows, pool.columns = size
    pool.down, pool.right = stride
    pool.above, pool.left = padding
    if pool.rows * pool.columns > MOST_PIXELS:
        raise ValueError(f"size: expected a window of at most {MOST_PIXELS} pixels, got {pool.rows} x {pool.columns}")
    if 2 * pool.above > pool.rows or 2 * pool.left > pool.columns:
        raise ValueError(f"padding: expected at most half the window's size {size}, got {padding}")
    if pool.H + 2 * pool.above < pool.rows or pool.W + 2 * pool.left < pool.columns:
        window_counts("size", (pool.H, pool.W), size, stride, padding)  # says what is wrong
    pool.P = (pool.H + 2 * pool.above - pool.rows) // pool.down + 1
    pool.Q = (pool.W + 2 * pool.left - pool.columns) // pool.right + 1
    return size, stride, padding


cdef inline bint has_shape(cnp.ndarray a, Py_ssize_t N, Py_ssize_t H, Py_ssize_t W, Py_ssize_t C) noexcept:
    return (cnp.PyArray_NDIM(a) == 4 and cnp.PyArray_DIM(a, 0) == N and cnp.PyArray_DIM(a, 1) == H
            and cnp.PyArray_DIM(a, 2) == W and cnp.PyArray_DIM(a, 3) == C)


cdef inline cnp.ndarray images(str name, object x):
    """Readable, of float32 or float64."""
    cdef int t
    if isinstance(x, cnp.ndarray):
        t = cnp.PyArray_TYPE(<cnp.ndarray> x)
        if ((t == cnp.NPY_FLOAT32 or t == cnp.NPY_FLOAT64) and cnp.PyArray_NDIM(<cnp.ndarray> x) == 4
                and cnp.PyArray_ISCARRAY_RO(<cnp.ndarray> x)):
            return x
    return array(name, x, (None, None, None, None))


cdef cnp.ndarray images_of_pixels(object x):
    cdef cnp.ndarray a = images("x", x)
    if cnp.PyArray_DIM(a, 1) == 0 or cnp.PyArray_DIM(a, 2) == 0:
        raise ValueError(f"x: expected images of at least 1 x 1 pixels, got shape {(<object> a).shape}")
    return a


cdef cnp.ndarray own_images(
    str name, object out, Py_ssize_t N, Py_ssize_t H, Py_ssize_t W, Py_ssize_t C, int typenum, str read_name, cnp.ndarray read,
):
    """A result of this shape that does not overlap what is read."""
    cdef cnp.npy_intp[4] shape
    cdef cnp.ndarray a
    if out is None:
        shape[0], shape[1], shape[2], shape[3] = N, H, W, C
        return cnp.PyArray_EMPTY(4, shape, typenum, 0)
    if not (isinstance(out, cnp.ndarray) and cnp.PyArray_TYPE(<cnp.ndarray> out) == typenum
            and has_shape(out, N, H, W, C) and cnp.PyArray_ISCARRAY(<cnp.ndarray> out)):
        array(name, out, (N, H, W, C), DTYPES[typenum], True)
    a = out
    apart(name, a, read_name, read)
    return a


# Forward.

def check_max_pool2d_forward(x, size, stride=None, padding=0, out=None, place=None):
    cdef cnp.ndarray inputs = images_of_pixels(x)
    cdef cnp.ndarray result, places
    cdef Py_ssize_t N = cnp.PyArray_DIM(inputs, 0), C = cnp.PyArray_DIM(inputs, 3)
    cdef Pool pool
    pool.H, pool.W = cnp.PyArray_DIM(inputs, 1), cnp.PyArray_DIM(inputs, 2)
    size, stride, padding = pool_of(&pool, size, stride, padding)
    result = own_images("out", out, N, pool.P, pool.Q, C, cnp.PyArray_TYPE(inputs), "x", inputs)
    places = own_images("place", place, N, pool.P, pool.Q, C, cnp.NPY_UINT8, "x", inputs)
    apart("place", places, "out", result)
    return inputs, size, stride, padding, result, places


def check_avg_pool2d_forward(x, size, stride=None, padding=0, out=None):
    cdef cnp.ndarray inputs = images_of_pixels(x)
    cdef Py_ssize_t N = cnp.PyArray_DIM(inputs, 0), C = cnp.PyArray_DIM(inputs, 3)
    cdef Pool pool
    pool.H, pool.W = cnp.PyArray_DIM(inputs, 1), cnp.PyArray_DIM(inputs, 2)
    size, stride, padding = pool_of(&pool, size, stride, padding)
    out = own_images("out", out, N, pool.P, pool.Q, C, cnp.PyArray_TYPE(inputs), "x", inputs)
    return inputs, size, stride, padding, out


def check_global_avg_pool2d_forward(x, out=None):
    cdef cnp.ndarray inputs = images_of_pixels(x)
    cdef cnp.ndarray mean = result_matrix(
        "out", out, cnp.PyArray_DIM(inputs, 0), cnp.PyArray_DIM(inputs, 3), cnp.PyArray_TYPE(inputs))
    apart("out", mean, "x", inputs)
    return inputs, mean


# Backward.

cdef cnp.ndarray gradient_of(const Pool* pool, dy):
    """dy, which has a number for each of these windows."""
    cdef cnp.ndarray gradient = images("dy", dy)
    if cnp.PyArray_DIM(gradient, 1) != pool.P or cnp.PyArray_DIM(gradient, 2) != pool.Q:
        array("dy", gradient, (None, pool.P, pool.Q, None))
    return gradient


def check_max_pool2d_backward(dy, place, image, size, stride=None, padding=0, dx=None):
    cdef cnp.ndarray gradient, places
    cdef Py_ssize_t N, C
    cdef Pool pool
    image = two("image", image, 1)
    pool.H, pool.W = image
    size, stride, padding = pool_of(&pool, size, stride, padding)
    gradient = gradient_of(&pool, dy)
    N, C = cnp.PyArray_DIM(gradient, 0), cnp.PyArray_DIM(gradient, 3)
    places = array("place", place, (N, pool.P, pool.Q, C), "uint8")
    dx = own_images("dx", dx, N, pool.H, pool.W, C, cnp.PyArray_TYPE(gradient), "dy", gradient)
    apart("dx", dx, "place", places)
    check_places(&pool, places)
    return gradient, places, image, size, stride, padding, dx


def check_avg_pool2d_backward(dy, image, size, stride=None, padding=0, dx=None):
    cdef cnp.ndarray gradient
    cdef Pool pool
    image = two("image", image, 1)
    pool.H, pool.W = image
    size, stride, padding = pool_of(&pool, size, stride, padding)
    gradient = gradient_of(&pool, dy)
    dx = own_images("dx", dx, cnp.PyArray_DIM(gradient, 0), pool.H, pool.W, cnp.PyArray_DIM(gradient, 3),
                    cnp.PyArray_TYPE(gradient), "dy", gradient)
    return gradient, image, size, stride, padding, dx


def check_global_avg_pool2d_backward(dy, image, dx=None):
    cdef cnp.ndarray gradient = real_matrix("dy", dy, -1, -1, -1)
    image = two("image", image, 1)
    dx = own_images("dx", dx, cnp.PyArray_DIM(gradient, 0), image[0], image[1], cnp.PyArray_DIM(gradient, 1),
                    cnp.PyArray_TYPE(gradient), "dy", gradient)
    return gradient, image, dx


# Places: one that lies elsewhere would be written outside dx.

cdef check_places(const Pool* pool, cnp.ndarray place):
    cdef const unsigned char* p = <const unsigned char*> cnp.PyArray_DATA(place)
    cdef Py_ssize_t n, N = cnp.PyArray_DIM(place, 0), C = cnp.PyArray_DIM(place, 3), size = pool.P * pool.Q * C, wrong = 0
    cdef int threads = team_size(<double> N * size, GRAIN)
    with nogil:
        if threads == 1:
            for n in range(N):
                wrong += misplaced(pool, p + n * size, C) >= 0
        else:
            for n in prange(N, num_threads=threads, schedule="static"):
                wrong += misplaced(pool, p + n * size, C) >= 0
    if wrong:
        n = 0
        while misplaced(pool, p + n * size, C) < 0:
            n += 1
        wrong = misplaced(pool, p + n * size, C)
        raise ValueError(
            f"place: expected a pixel of the image in a window of {pool.rows} x {pool.columns}, got {p[n * size + wrong]} at "
            f"{(n, wrong // C // pool.Q, wrong // C % pool.Q, wrong % C)}")


cdef Py_ssize_t misplaced(const Pool* pool, const unsigned char* place, Py_ssize_t C) noexcept nogil:
    """The first of an image's places that lies outside its window or in the padding, or -1."""
    cdef Py_ssize_t p, q, c, i, j, top, left
    cdef unsigned char largest = 0
    cdef bint within
    for c in range(pool.P * pool.Q * C):
        largest = max(largest, place[c])
    within = largest < pool.rows * pool.columns
    if within and not pool.above and not pool.left:
        return -1
    for p in range(pool.P):
        top = p * pool.down - pool.above
        for q in range(pool.Q):
            left = q * pool.right - pool.left
            if within and top >= 0 and left >= 0 and top + pool.rows <= pool.H and left + pool.columns <= pool.W:
                continue
            for c in range((p * pool.Q + q) * C, (p * pool.Q + q + 1) * C):
                i = place[c] // pool.columns
                j = place[c] % pool.columns
                if not (i < pool.rows and 0 <= top + i < pool.H and 0 <= left + j < pool.W):
                    return c
    return -1
