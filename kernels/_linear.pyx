"""Matrix products and the linear layer; compiled for float32 and float64. Arguments come checked (kernels/linear.py)."""
from dd2424fast.kernels._checks import ACTIVATIONS

include "vec.pxi"
include "tile.pxi"
include "activation.pxi"
include "product.pxi"
include "column_sums.pxi"


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
