"""Batch and layer normalisation; compiled for float32 and float64. Arguments come checked (kernels/normalization.py)."""
from dd2424fast.kernels._checks import ACTIVATIONS

include "vec.pxi"
include "activation.pxi"
include "batch_norm.pxi"


def batch_norm_forward(
    cnp.ndarray x, cnp.ndarray gamma, cnp.ndarray beta, cnp.ndarray running_mean, cnp.ndarray running_var,
    double momentum, double eps, activation, cnp.ndarray out, cnp.ndarray mean, cnp.ndarray rstd):
    cdef Norm s = Norm(
        cnp.PyArray_DIM(x, 0), cnp.PyArray_DIM(x, 1), data(x), NULL, data(gamma), data(beta), data(mean), data(rstd),
        data(out), NULL, NULL, eps, ACTIVATIONS[activation])
    cdef real* to_mean = data(running_mean)
    cdef real* to_var = data(running_var)
    with nogil:
        batch_norm_rows(&s, momentum, to_mean, to_var)
    return out, mean, rstd


def batch_norm_inference(
    cnp.ndarray x, cnp.ndarray gamma, cnp.ndarray beta, cnp.ndarray running_mean, cnp.ndarray running_var,
    double eps, activation, cnp.ndarray out):
    cdef Norm s = Norm(
        cnp.PyArray_DIM(x, 0), cnp.PyArray_DIM(x, 1), data(x), NULL, data(gamma), data(beta), data(running_mean), NULL,
        data(out), NULL, NULL, eps, ACTIVATIONS[activation])
    cdef real* var = data(running_var)
    with nogil:
        batch_norm_rows_in_use(&s, var)
    return out


def batch_norm_backward(
    cnp.ndarray dy, cnp.ndarray x, cnp.ndarray gamma, cnp.ndarray mean, cnp.ndarray rstd, cnp.ndarray dx,
    cnp.ndarray dgamma, cnp.ndarray dbeta, bint accumulate, bint frozen, beta, activation):
    cdef Norm s = Norm(
        cnp.PyArray_DIM(x, 0), cnp.PyArray_DIM(x, 1), data(x), data(dy), data(gamma), NULL, data(mean), data(rstd),
        data(dx), data(dgamma), data(dbeta), 0, ACTIVATIONS[activation])
    if beta is not None:
        s.beta = data(beta)
    with nogil:
        batch_norm_gradients(&s, accumulate, frozen)
    return dx, dgamma, dbeta


# Layer normalisation.

cdef inline real row_sum(const real* x, Py_ssize_t C) noexcept nogil:
    cdef vec[4] total
    cdef Py_ssize_t j = 0
    cdef int v
    for v in range(4):
        total[v] = vec_zero()
    while j + 4 * LANES <= C:
        for v in range(4):
            total[v] = total[v] + vec_load(x + j + v * LANES)
        j += 4 * LANES
    while j < C:
        total[0] = total[0] + load(x + j, C - j)
        j += LANES
    return vec_sum((total[0] + total[1]) + (total[2] + total[3]))


cdef inline real row_squares(const real* x, real mean, Py_ssize_t C) noexcept nogil:
    """Sum of (x - mean)^2."""
    cdef vec[4] total
    cdef vec deviation, centre = vec_set(mean)
    cdef Py_ssize_t j = 0
    cdef int v
    for v in range(4):
        total[v] = vec_zero()
    while j + 4 * LANES <= C:
        for v in range(4):
            deviation = vec_load(x + j + v * LANES) - centre
            total[v] = total[v] + deviation * deviation
        j += 4 * LANES
    while j < C:
        # Past the end both are zero.
        deviation = load(x + j, C - j) - load(ones(), C - j) * centre
        total[0] = total[0] + deviation * deviation
        j += LANES
    return vec_sum((total[0] + total[1]) + (total[2] + total[3]))


cdef extern from *:
    """
    static real *dd_ones(void) {
        static real one[16] = {1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1};
        return one;
    }
    """
    real* ones "dd_ones"() nogil


cdef void layer_part(const Norm* s, Py_ssize_t chunk, Py_ssize_t start, Py_ssize_t stop) noexcept nogil:
    cdef Py_ssize_t i, j, C = s.C
    cdef const real* x
    cdef real* y
    cdef vec centre, scale, h
    for i in range(start, stop):
        x = s.x + i * C
        y = s.result + i * C
        s.mean[i] = row_sum(x, C) / C
        s.rstd[i] = <real> (1 / sqrt(row_squares(x, s.mean[i], C) / C + s.eps))
        centre, scale = vec_set(s.mean[i]), vec_set(s.rstd[i])
        j = 0
        while j < C:
            h = (load(x + j, C - j) - centre) * scale
            store(y + j, h * load(s.gamma + j, C - j) + load(s.beta + j, C - j), C - j)
            j += LANES


def layer_norm_forward(
    cnp.ndarray x, cnp.ndarray gamma, cnp.ndarray beta, double eps, cnp.ndarray out, cnp.ndarray mean,
    cnp.ndarray rstd):
    cdef Norm s = Norm(
        cnp.PyArray_DIM(x, 0), cnp.PyArray_DIM(x, 1), data(x), NULL, data(gamma), data(beta), data(mean), data(rstd),
        data(out), NULL, NULL, eps, IDENTITY)
    with nogil:
        each_chunk(layer_part, &s)
    return out, mean, rstd


cdef inline forced_inline_void layer_gradients(
    const bint to_parameters, const bint to_input, const real* dy, const real* x, const real* gamma, real mean,
    real rstd, Py_ssize_t C, real* dx, real* products, real* sums) noexcept nogil:
    """One row: products += dy h and sums += dy; and dx."""
    cdef vec centre = vec_set(mean), scale = vec_set(rstd), g, h, d, total = vec_zero(), total_h = vec_zero()
    cdef Py_ssize_t j = 0
    while j < C:
        d = load(dy + j, C - j)
        h = (load(x + j, C - j) - centre) * scale
        if to_parameters:
            store(products + j, load(products + j, C - j) + d * h, C - j)
            store(sums + j, load(sums + j, C - j) + d, C - j)
        if to_input:
            g = d * load(gamma + j, C - j)
            total = total + g
            total_h = total_h + g * h
        j += LANES
    if to_input:
        total, total_h = vec_set(vec_sum(total) / C), vec_set(vec_sum(total_h) / C)
        j = 0
        while j < C:
            h = (load(x + j, C - j) - centre) * scale
            g = load(dy + j, C - j) * load(gamma + j, C - j)
            store(dx + j, scale * (g - total - h * total_h), C - j)
            j += LANES


cdef void layer_gradients_part(const Norm* s, Py_ssize_t chunk, Py_ssize_t start, Py_ssize_t stop) noexcept nogil:
    """The chunk's sums go to dgamma and dbeta where it is alone, else into its first two rows, whose dx must wait."""
    cdef bint alone = row_chunks(s.N) == 1
    cdef Py_ssize_t i, j, C = s.C, waiting = start if alone else start + 2
    cdef real* products = s.dgamma if alone else s.result + start * C
    cdef real* sums = s.dbeta if alone else products + C
    if not alone:
        for j in range(C):
            products[j] = sums[j] = 0
    for i in range(start, waiting):
        layer_gradients(True, False, s.dy + i * C, s.x + i * C, s.gamma, s.mean[i], s.rstd[i], C, NULL, products, sums)
    for i in range(waiting, stop):
        layer_gradients(
            True, True, s.dy + i * C, s.x + i * C, s.gamma, s.mean[i], s.rstd[i], C, s.result + i * C, products, sums)


def layer_norm_backward(
    cnp.ndarray dy, cnp.ndarray x, cnp.ndarray gamma, cnp.ndarray mean, cnp.ndarray rstd, cnp.ndarray dx,
    cnp.ndarray dgamma, cnp.ndarray dbeta, bint accumulate):
    cdef Norm s = Norm(
        cnp.PyArray_DIM(x, 0), cnp.PyArray_DIM(x, 1), data(x), data(dy), data(gamma), NULL, data(mean), data(rstd),
        data(dx), data(dgamma), data(dbeta), 0, IDENTITY)
    cdef Py_ssize_t chunk, i, j, C = s.C, chunks = row_chunks(s.N)
    with nogil:
        if chunks == 1 and not accumulate:
            for j in range(C):
                s.dgamma[j] = s.dbeta[j] = 0
        each_chunk(layer_gradients_part, &s)
        if chunks > 1:
            merge_gradient_sums(&s, NULL, accumulate)
            for chunk in range(chunks):
                for i in range(chunk * NORM_ROWS, chunk * NORM_ROWS + 2):
                    layer_gradients(
                        False, True, s.dy + i * C, s.x + i * C, s.gamma, s.mean[i], s.rstd[i], C, s.result + i * C,
                        NULL, NULL)
    return dx, dgamma, dbeta
