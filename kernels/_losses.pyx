"""Losses; compiled for float32 and float64. Arguments come checked (kernels/losses.py)."""
include "vec.pxi"
include "losses.pxi"


cdef inline real* optional(x) noexcept:
    return NULL if x is None else data(x)


def softmax_cross_entropy(
    cnp.ndarray logits, cnp.ndarray labels, double label_smoothing, smoothing, class_weight, sample_weight,
    int64_t ignore_index, cnp.ndarray dlogits,
):
    cdef CrossEntropy p
    cdef Py_ssize_t N = cnp.PyArray_DIM(logits, 0), K = cnp.PyArray_DIM(logits, 1)
    cdef double loss
    p.K, p.logits, p.dlogits = K, data(logits), data(dlogits)
    p.labels = p.targets = NULL
    p.ignored = ignore_index
    if cnp.PyArray_NDIM(labels) == 2:
        p.targets = data(labels)
    else:
        p.labels = <const int64_t*> cnp.PyArray_DATA(labels)
    p.class_weight, p.sample_weight = optional(class_weight), optional(sample_weight)
    p.on_each = 0 if label_smoothing == 0 else label_smoothing / (K - 1 if smoothing == "others" else K)
    p.on_true = 1 - label_smoothing - (p.on_each if smoothing == "others" else 0)
    with nogil:
        loss = cross_entropy(&p, N)
    return loss, dlogits


def softmax(cnp.ndarray logits, cnp.ndarray out):
    cdef Py_ssize_t N = cnp.PyArray_DIM(logits, 0), K = cnp.PyArray_DIM(logits, 1)
    cdef real* z = data(logits)
    cdef real* p = data(out)
    with nogil:
        softmax_rows(z, p, N, K)
    return out


def binary_cross_entropy(cnp.ndarray logits, cnp.ndarray targets, sample_weight, cnp.ndarray dlogits):
    return mean_of(BINARY, logits, targets, sample_weight, dlogits), dlogits


def mean_squared_error(cnp.ndarray predictions, cnp.ndarray targets, sample_weight, cnp.ndarray dpredictions):
    return mean_of(SQUARED, predictions, targets, sample_weight, dpredictions), dpredictions


cdef double mean_of(int kind, cnp.ndarray x, cnp.ndarray targets, sample_weight, cnp.ndarray dx):
    """Mean over the rows, by their weights, of the mean over K of an element-wise loss; its gradient in dx."""
    cdef Elementwise p
    cdef Py_ssize_t N = cnp.PyArray_DIM(x, 0), K = cnp.PyArray_DIM(x, 1) if cnp.PyArray_NDIM(x) == 2 else 1, i
    cdef double loss, weight = N
    cdef bint labelled = cnp.PyArray_TYPE(targets) == cnp.NPY_INT64
    p.K, p.x, p.dx = K, data(x), data(dx)
    p.labels = <const int64_t*> cnp.PyArray_DATA(targets) if labelled else NULL
    p.targets = NULL if labelled else data(targets)
    p.sample_weight = optional(sample_weight)
    if p.sample_weight != NULL:
        weight = 0
        for i in range(N):
            weight += p.sample_weight[i]
    p.total = weight * K
    with nogil:
        loss = elementwise(kind, &p, N)
    return loss
