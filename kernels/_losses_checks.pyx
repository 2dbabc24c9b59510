# cython: language_level=3
"""The checks of the losses, compiled: every training update calls one."""
cimport numpy as cnp
from cython cimport floating
from libc.stdint cimport int64_t, uint64_t

import numpy as np

from dd2424fast.kernels._checks cimport apart, real_matrix, real_vector, result_matrix
from dd2424fast.kernels._checks import array

cnp.import_array()


def check_softmax_cross_entropy(
    logits, labels, label_smoothing=0.0, smoothing="uniform", class_weight=None, sample_weight=None, ignore_index=-100, dlogits=None
):
    cdef cnp.ndarray z = _scores("logits", logits)
    cdef cnp.ndarray y, gradient
    cdef Py_ssize_t N = cnp.PyArray_DIM(z, 0), K = cnp.PyArray_DIM(z, 1)
    cdef int t = cnp.PyArray_TYPE(z)
    cdef int64_t ignored = -100 if ignore_index == -100 else _whole("ignore_index", ignore_index)
    if isinstance(labels, cnp.ndarray) and labels.ndim == 2 and labels.dtype.kind == "f":
        y = _distributions("labels", labels, N, K, t)
    else:
        y = _labels("labels", labels, N, K, ignored)
    if type(label_smoothing) is not float:
        label_smoothing = _number("label_smoothing", label_smoothing)
    if not 0 <= <double> label_smoothing <= 1:
        raise ValueError(f"label_smoothing: expected a number in [0, 1], got {label_smoothing!r}")
    if smoothing != "uniform":
        if smoothing != "others":
            raise ValueError(f"smoothing: expected 'uniform' or 'others', got {smoothing!r}")
        if K == 1 and label_smoothing > 0:
            raise ValueError("smoothing: expected 'uniform' for a single class, got 'others', which has no other class to smooth to")
    if class_weight is not None:
        class_weight = _weights("class_weight", class_weight, K, t)
    if sample_weight is not None:
        sample_weight = _weights("sample_weight", sample_weight, N, t)
    if cnp.PyArray_NDIM(y) == 2:
        if sample_weight is not None and not sample_weight.any():
            raise ValueError("sample_weight: expected a positive weight, got zeros only: their mean does not exist")
    elif class_weight is not None or sample_weight is not None:
        _some_weight(y, ignored, class_weight, sample_weight)
    gradient = _gradient("dlogits", dlogits, "logits", logits, z)
    if dlogits is not None:
        apart("dlogits", gradient, "labels", y)
        apart("dlogits", gradient, "class_weight", class_weight)
        apart("dlogits", gradient, "sample_weight", sample_weight)
    return z, y, label_smoothing, smoothing, class_weight, sample_weight, ignored, gradient


def check_softmax(logits, out=None):
    cdef cnp.ndarray z = real_matrix("logits", logits, -1, -1, -1)
    if cnp.PyArray_DIM(z, 1) == 0:
        raise ValueError(f"logits: expected at least one class, got shape {logits.shape}")
    return z, _gradient("out", out, "logits", logits, z)


def check_binary_cross_entropy(logits, targets, sample_weight=None, dlogits=None):
    cdef cnp.ndarray z = _scores("logits", logits)
    cdef cnp.ndarray t, gradient
    cdef Py_ssize_t N = cnp.PyArray_DIM(z, 0), K = cnp.PyArray_DIM(z, 1)
    if isinstance(targets, cnp.ndarray) and targets.dtype.kind in "iu":
        t = _labels("targets", targets, N, K, -1)
    else:
        t = real_matrix("targets", targets, N, K, cnp.PyArray_TYPE(z))
        if not (_within[float](t, 0, 1) if cnp.PyArray_TYPE(t) == cnp.NPY_FLOAT32 else _within[double](t, 0, 1)):
            raise ValueError("targets: expected numbers in [0, 1], got others")
    return z, t, *_weight_and_gradient(logits, z, t, sample_weight, "dlogits", dlogits, "logits", "targets")


def check_mean_squared_error(predictions, targets, sample_weight=None, dpredictions=None):
    cdef cnp.ndarray p, t
    if isinstance(predictions, cnp.ndarray) and predictions.ndim == 1:
        p = real_vector("predictions", predictions, -1, -1)
        t = real_vector("targets", targets, cnp.PyArray_DIM(p, 0), cnp.PyArray_TYPE(p))
    else:
        p = real_matrix("predictions", predictions, -1, -1, -1)
        t = real_matrix("targets", targets, cnp.PyArray_DIM(p, 0), cnp.PyArray_DIM(p, 1), cnp.PyArray_TYPE(p))
    if cnp.PyArray_SIZE(p) == 0:
        raise ValueError(f"predictions: expected at least one, got shape {predictions.shape}")
    return p, t, *_weight_and_gradient(
        predictions, p, t, sample_weight, "dpredictions", dpredictions, "predictions", "targets")


cdef tuple _weight_and_gradient(given, cnp.ndarray x, cnp.ndarray t, sample_weight, str name, out, str x_name, str t_name):
    cdef cnp.ndarray gradient
    if sample_weight is not None:
        sample_weight = _weights("sample_weight", sample_weight, cnp.PyArray_DIM(x, 0), cnp.PyArray_TYPE(x))
        if not sample_weight.any():
            raise ValueError("sample_weight: expected a positive weight, got zeros only: their mean does not exist")
    gradient = _gradient(name, out, x_name, given, x)
    if out is not None:
        apart(name, gradient, t_name, t)
        apart(name, gradient, "sample_weight", sample_weight)
    return sample_weight, gradient


cdef cnp.ndarray _scores(str name, x):
    cdef cnp.ndarray z = real_matrix(name, x, -1, -1, -1)
    if cnp.PyArray_SIZE(z) == 0:
        raise ValueError(f"{name}: expected at least one row and one class, got shape {x.shape}")
    return z


cdef cnp.ndarray _gradient(str name, out, str x_name, given, cnp.ndarray x):
    """`out` or a new array like x; it may be the array `given` for x, but not overlap it otherwise."""
    cdef cnp.ndarray a
    if out is None:
        return cnp.PyArray_EMPTY(cnp.PyArray_NDIM(x), cnp.PyArray_DIMS(x), cnp.PyArray_TYPE(x), 0)
    if cnp.PyArray_NDIM(x) == 2:
        a = result_matrix(name, out, cnp.PyArray_DIM(x, 0), cnp.PyArray_DIM(x, 1), cnp.PyArray_TYPE(x))
    else:
        a = array(name, out, (cnp.PyArray_DIM(x, 0),), x.dtype, True)
    if out is not given:
        apart(name, a, x_name, x)
    return a


cdef int64_t _whole(str name, x) except? -1:
    if isinstance(x, bool) or not isinstance(x, (int, np.integer)):
        raise TypeError(f"{name}: expected an integer, got {type(x).__name__}")
    if not -2**63 <= x < 2**63:
        raise ValueError(f"{name}: expected an integer of 64 bits, got {x}")
    return x


cdef object _number(str name, x):
    if isinstance(x, bool) or not isinstance(x, (int, float, np.integer, np.floating)):
        raise TypeError(f"{name}: expected a number, got {type(x).__name__}")
    return float(x) if 0 <= x <= 1 else x  # float() refuses an int that no double holds


cdef cnp.ndarray _labels(str name, x, Py_ssize_t N, Py_ssize_t K, int64_t ignored):
    """Labels as int64, every one of them a class or `ignored` (-1 if out of [0, K) is always wrong)."""
    cdef cnp.ndarray y
    cdef const int64_t* label
    cdef Py_ssize_t i, wrong = 0, counted = 0
    if not isinstance(x, cnp.ndarray):
        raise TypeError(f"{name}: expected an ndarray of integers, got {type(x).__name__}")
    y = x
    if cnp.PyArray_NDIM(y) == 2 and x.dtype.kind in "iub" and x.shape == (N, K):
        raise ValueError(f"{name}: expected shape ({N},), got {x.shape} of {x.dtype}: one-hot rows are probabilities, which are floats; or "
                         "give their argmax(axis=1)")
    if not (cnp.PyArray_TYPE(y) == cnp.NPY_INT64 and cnp.PyArray_ISCARRAY_RO(y)):
        if x.dtype.kind not in "iu":
            raise TypeError(f"{name}: expected dtype int64 or another integer, got {x.dtype}")
        if x.dtype == np.uint64:
            x = np.minimum(x, np.uint64(2**63 - 1))  # a number beyond int64 must not wrap round to a class
        y = np.ascontiguousarray(x, dtype=np.int64)
    if cnp.PyArray_NDIM(y) != 1 or cnp.PyArray_DIM(y, 0) != N:
        raise ValueError(f"{name}: expected shape ({N},), got {(<object> x).shape}")
    label = <const int64_t*> cnp.PyArray_DATA(y)
    for i in range(N):
        counted += label[i] != ignored
        wrong += (<uint64_t> label[i] >= <uint64_t> K) & (label[i] != ignored)
    if ignored == -1 and name == "targets":
        wrong += N - counted
    if wrong:
        for i in range(N):
            if not 0 <= label[i] < K and (label[i] != ignored or name == "targets"):
                raise ValueError(f"{name}: expected classes 0 to {K - 1} (K = {K}), got {label[i]} in row {i}")
    if counted == 0:
        raise ValueError(f"{name}: expected a row that counts, got ignore_index = {ignored} in all {N}: their mean does not exist")
    return y


cdef cnp.ndarray _distributions(str name, x, Py_ssize_t N, Py_ssize_t K, int typenum):
    """Rows that are probabilities of the classes."""
    cdef cnp.ndarray t = real_matrix(name, x, N, K, typenum)
    cdef Py_ssize_t wrong = _unlike_one[float](t, N, K) if typenum == cnp.NPY_FLOAT32 else _unlike_one[double](t, N, K)
    if wrong >= 0:
        raise ValueError(
            f"{name}: expected integers, or rows of probabilities that sum to 1, got a sum of {x[wrong].sum()} and numbers from "
            f"{x[wrong].min()} to {x[wrong].max()} in row {wrong}")
    return t


cdef Py_ssize_t _unlike_one(cnp.ndarray x, Py_ssize_t N, Py_ssize_t K, floating kind=0) noexcept:
    """The first row that is no distribution, or -1."""
    # Every eighth number is summed by itself: one sum alone would wait for itself at each. What is not negative and sums to 1 is at
    # most 1; NaN stays in the sum.
    cdef const floating* p = <const floating*> cnp.PyArray_DATA(x)
    cdef Py_ssize_t i, j, k
    cdef floating[8] sums, lowest
    cdef double total
    cdef floating low
    for i in range(N):
        for k in range(8):
            sums[k] = lowest[k] = 0
        for j in range(0, K - K % 8, 8):
            for k in range(8):
                sums[k] += p[j + k]
                lowest[k] = p[j + k] if p[j + k] < lowest[k] else lowest[k]
        total, low = 0, 0
        for j in range(K - K % 8, K):
            total += p[j]
            low = min(low, p[j])
        for k in range(8):
            total += sums[k]
            low = min(low, lowest[k])
        if low < 0 or not 0.999 <= total <= 1.001:
            return i
        p += K
    return -1


cdef cnp.ndarray _weights(str name, x, Py_ssize_t size, int typenum):
    """A vector of finite weights, none negative."""
    cdef cnp.ndarray w = real_vector(name, x, size, typenum)
    if not (_within[float](w, 0, 3.4028234663852886e38) if typenum == cnp.NPY_FLOAT32
            else _within[double](w, 0, 1.7976931348623157e308)):
        i = np.flatnonzero(~((np.asarray(w) >= 0) & np.isfinite(w)))[0]
        raise ValueError(f"{name}: expected finite weights, none negative, got {w[i]} at {i}")
    return w


cdef bint _within(cnp.ndarray x, floating low, floating high) noexcept:
    """Whether low <= x <= high everywhere; NaN is not."""
    cdef const floating* p = <const floating*> cnp.PyArray_DATA(x)
    cdef Py_ssize_t i, outside = 0
    for i in range(cnp.PyArray_SIZE(x)):
        outside += not (p[i] >= low and p[i] <= high)
    return outside == 0


cdef int _some_weight(cnp.ndarray y, int64_t ignored, class_weight, sample_weight) except -1:
    """Raise ValueError where every row that counts has weight zero."""
    counts = y != ignored
    if sample_weight is not None:
        counts = counts & (sample_weight > 0)
    if class_weight is not None:
        counts = counts & (class_weight[np.where(counts, y, 0)] > 0)
    if not counts.any():
        raise ValueError("class_weight, sample_weight: expected a row of positive weight, got none: the mean does not exist")
    return 0
