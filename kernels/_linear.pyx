"""Matrix products and the linear layer; compiled for float32 and float64. Arguments come checked (kernels/linear.py)."""
from dd2424fast.kernels._checks import ACTIVATIONS

include "vec.pxi"
include "tile.pxi"
include "activation.pxi"
include "product.pxi"


cdef inline Product product_of(cnp.ndarray a, cnp.ndarray b, cnp.ndarray c) noexcept:
    """C = A B of three C-contiguous matrices."""
    cdef Product p
    p.M, p.N, p.K = cnp.PyArray_DIM(a, 0), cnp.PyArray_DIM(c, 1), cnp.PyArray_DIM(a, 1)
    p.a, p.a_row, p.a_step = data(a), p.K, 1
    p.b, p.b_row, p.b_step = NULL if b is None else data(b), p.N, 1
    p.packed = NULL
    p.c, p.c_row = data(c), p.N
    p.accumulate = False
    p.bias = NULL
    p.activation = IDENTITY
    p.batched = True
    return p


def matmul(cnp.ndarray a, cnp.ndarray b, cnp.ndarray out):
    cdef Product p = product_of(a, b, out)
    with nogil:
        product(&p)
    return out


def pack(cnp.ndarray b, cnp.ndarray out):
    cdef Py_ssize_t K = cnp.PyArray_DIM(b, 0), N = cnp.PyArray_DIM(b, 1)
    cdef real* to = data(out)
    cdef real* source = data(b)
    with nogil:
        pack_all(source, N, 1, K, N, to)
    return out


def lanes():
    """Elements in one vector of this machine."""
    return LANES


def matmul_packed(cnp.ndarray a, cnp.ndarray packed, cnp.ndarray out):
    cdef Product p = product_of(a, None, out)
    p.packed = data(packed)
    with nogil:
        product(&p)
    return out


def linear_forward(cnp.ndarray x, cnp.ndarray W, b, activation, cnp.ndarray out, bint batched):
    cdef Product p = product_of(x, W, out)
    p.batched = batched
    if b is not None:
        p.bias = data(b)
    p.activation = ACTIVATIONS[activation]
    with nogil:
        product(&p)
    return out


cdef void add_columns(const real* y, Py_ssize_t M, Py_ssize_t N, Py_ssize_t j, Py_ssize_t end, real* total, bint accumulate) noexcept nogil:
    """total[j to end] (+)= sum of the rows of y, four vectors of columns at a time."""
    cdef Py_ssize_t i, size
    cdef vec s0, s1, s2, s3
    cdef const real* row
    while j + 4 * LANES <= end:
        s0 = vec_zero()
        s1 = vec_zero()
        s2 = vec_zero()
        s3 = vec_zero()
        row = y + j
        for i in range(M):
            s0 = s0 + vec_load(row)
            s1 = s1 + vec_load(row + LANES)
            s2 = s2 + vec_load(row + 2 * LANES)
            s3 = s3 + vec_load(row + 3 * LANES)
            row += N
        if accumulate:
            s0 = s0 + vec_load(total + j)
            s1 = s1 + vec_load(total + j + LANES)
            s2 = s2 + vec_load(total + j + 2 * LANES)
            s3 = s3 + vec_load(total + j + 3 * LANES)
        vec_store(total + j, s0)
        vec_store(total + j + LANES, s1)
        vec_store(total + j + 2 * LANES, s2)
        vec_store(total + j + 3 * LANES, s3)
        j += 4 * LANES
    while j < end:
        size = min(<Py_ssize_t> LANES, end - j)
        s0 = vec_zero()
        row = y + j
        for i in range(M):
            s0 = s0 + vec_load_part(row, size)
            row += N
        if accumulate:
            s0 = s0 + vec_load_part(total + j, size)
        vec_store_part(total + j, s0, size)
        j += size


cdef void add_rows(const real* y, Py_ssize_t M, Py_ssize_t N, real* total, bint accumulate) noexcept nogil:
    """total[N] (+)= sum of the rows of y; a sum is formed by one thread, in the order of the rows."""
    cdef Py_ssize_t lines = (N + LANES - 1) // LANES
    cdef int part, parts = <int> min(<Py_ssize_t> team_size(M * N, 65536), lines)
    if parts == 1:
        add_columns(y, M, N, 0, N, total, accumulate)
    else:
        for part in prange(parts, num_threads=parts, schedule="static", chunksize=1):
            add_columns(y, M, N, lines * part // parts * LANES, min(N, lines * (part + 1) // parts * LANES), total, accumulate)


def linear_backward(cnp.ndarray dy, cnp.ndarray x, cnp.ndarray W, dx, dW, db, bint need_dx, use_bias, bint accumulate, bint need_dW):
    cdef Py_ssize_t N = cnp.PyArray_DIM(x, 0), D = cnp.PyArray_DIM(x, 1), H = cnp.PyArray_DIM(W, 1)
    cdef Product weights, inputs
    cdef real* gradient = data(dy)
    cdef real* bias = NULL if db is None else data(db)
    if need_dW:                          # dW = x^T dy
        weights = product_of(x, dy, dW)
        weights.M, weights.K = D, N
        weights.a_row, weights.a_step = 1, D
        weights.accumulate = accumulate
    if need_dx:                          # dx = dy W^T
        inputs = product_of(dy, W, dx)
        inputs.K = H
        inputs.b_row, inputs.b_step = 1, H
    with nogil:
        if need_dW:
            product(&weights)
        if bias != NULL:
            add_rows(gradient, N, H, bias, accumulate)
        if need_dx:
            product(&inputs)
    return dx, dW, db
