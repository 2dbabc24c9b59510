"""Losses, each with its gradient in the same pass; and softmax.

Axes: N rows (the batch), K classes. The maths and the measured speed are in docs/kernels/losses.md.
"""

import numpy as np

from ._dispatch import Kernel
from ._losses_checks import (
    check_binary_cross_entropy,
    check_mean_squared_error,
    check_softmax,
    check_softmax_cross_entropy,
)

__all__ = ["binary_cross_entropy", "mean_squared_error", "softmax", "softmax_cross_entropy"]


def softmax_cross_entropy(
    logits,
    labels,
    label_smoothing=0.0,
    smoothing="uniform",
    class_weight=None,
    sample_weight=None,
    ignore_index=-100,
    dlogits=None,
):
    """Mean cross-entropy of softmax(logits) against labels or distributions, and its gradient.

        p = softmax(z),    l_i = -sum_c t_ic v_c log p_ic,    loss = sum_i w_i l_i / D,    D = sum_i w_i v_(y_i)
        dlogits_ic = w_i / D (p_ic sum_k t_ik v_k - t_ic v_c)

    with v the class weights and w the sample weights (1 where not given); the sums over i leave out the rows to ignore.
    The target t_ic is, for smoothing e, "uniform": e / K, and 1 - e more for the true class; "others": 1 - e for the
    true class, e / (K - 1) for each other. Of a distribution q_i over the classes it is the mean, weighed by q_i, of
    what it is for each class; then D = sum_i w_i, whatever the class weights (PyTorch has it so too).

    Parameters
    ----------
    logits : ndarray of shape (N, K), float32 or float64
    labels : ndarray of shape (N,), int64 (another integer dtype is converted at each call); or (N, K), of logits' dtype
        Classes 0 to K - 1, or `ignore_index`; or distributions: numbers in [0, 1] whose rows sum to 1 (within 1e-3).
    label_smoothing : float in [0, 1]
    smoothing : {"uniform", "others"}
    class_weight : ndarray of shape (K,), of logits' dtype, finite and not negative, optional
        Weighs the terms of each class, smoothed ones too, in both modes; the mean divides by the weights of the true
        classes.
    sample_weight : ndarray of shape (N,), of logits' dtype, finite and not negative, optional
        A whole weight n is the same as the row n times.
    ignore_index : int
        Rows with this label count for nothing, their gradient is 0; their logits are not looked at.
    dlogits : ndarray of shape (N, K), optional
        Holds the gradient; may be `logits` itself.

    Returns
    -------
    loss : float
        In nats.
    dlogits : ndarray of shape (N, K)

    Raises
    ------
    TypeError, ValueError
        An argument has the wrong type, dtype, shape or range, a label is no class (the message names its row), or no
        row of positive weight is left (where PyTorch gives NaN). Nothing has been written then.

    Notes
    -----
    With "uniform" this is PyTorch's cross_entropy(weight=, label_smoothing=, ignore_index=) with its mean; smoothing is
    Szegedy et al. (2016), section 7. The largest logit is subtracted first, so nothing overflows; NaN or +infinity in a
    row that counts makes the loss NaN. The loss is summed in float64. The bits do not depend on the number of threads.
    8 N K bytes move in float32.
    """
    if smoothing == "others":
        on_each = label_smoothing / (logits.shape[1] - 1) if label_smoothing else 0.0
        on_true = 1 - label_smoothing - on_each
    else:
        on_each, on_true = label_smoothing / logits.shape[1], 1 - label_smoothing
    v = np.ones(logits.shape[1], logits.dtype) if class_weight is None else class_weight
    if labels.ndim == 2:
        return _of_distributions(logits, (on_true * labels.astype(np.float64) + on_each) * v, sample_weight, dlogits)
    rows = np.arange(len(labels))
    counts = labels != ignore_index
    y = np.where(counts, labels, 0)
    w = counts.astype(np.float64) if sample_weight is None else np.where(counts, sample_weight, 0.0)
    D = np.sum(w * v[y])
    t_true = on_true * v[y].astype(np.float64)  # (N,)
    t_sum = t_true + on_each * v.sum(dtype=np.float64)

    z = np.subtract(logits, logits.max(axis=1, keepdims=True), out=dlogits)
    linear = t_true * z[rows, y] + (on_each * (z @ v) if on_each else 0)
    e = np.exp(z, out=z)
    s = e.sum(axis=1)
    loss = np.sum(w * np.where(counts, t_sum * np.log(s) - linear, 0)) / D
    e *= (w * t_sum / (D * s)).astype(e.dtype)[:, None]
    if on_each:
        e -= (w * on_each / D).astype(e.dtype)[:, None] * v
    e[rows, y] -= w * t_true / D
    e[~counts] = 0
    return float(loss), dlogits


def _of_distributions(logits, targets, w, dlogits):
    """The same for targets t_ic v_c."""
    w = np.ones(len(logits)) if w is None else w.astype(np.float64)
    total = targets.sum(axis=1)
    z = np.subtract(logits, logits.max(axis=1, keepdims=True), out=dlogits)
    linear = np.multiply(targets, z, where=targets != 0, out=np.zeros(z.shape)).sum(axis=1)  # -inf rules a class out
    e = np.exp(z, out=z)
    s = e.sum(axis=1)
    loss = (w @ (total * np.log(s) - linear)) / w.sum()
    e *= (w * total / (w.sum() * s)).astype(e.dtype)[:, None]
    e -= (w / w.sum())[:, None] * targets
    return float(loss), dlogits


softmax_cross_entropy = Kernel(softmax_cross_entropy, "losses", check_softmax_cross_entropy)


def softmax(logits, out=None):
    """Probabilities of the classes, row by row: out = exp(z) / sum exp(z).

    Parameters
    ----------
    logits : ndarray of shape (N, K), float32 or float64
    out : ndarray of shape (N, K), optional
        May be `logits` itself.

    Returns
    -------
    ndarray of shape (N, K)

    Raises
    ------
    TypeError, ValueError
        An argument has the wrong type, dtype or shape, or K is 0.

    Notes
    -----
    The largest logit is subtracted first. NaN or +infinity makes its row NaN.
    """
    out = np.subtract(logits, logits.max(axis=1, keepdims=True), out=out)
    np.exp(out, out=out)
    out /= out.sum(axis=1, keepdims=True)
    return out


softmax = Kernel(softmax, "losses", check_softmax)


def binary_cross_entropy(logits, targets, sample_weight=None, dlogits=None):
    """Mean of K binary cross-entropies a row, of sigmoid(logits) against targets, and its gradient.

        l_i = 1/K sum_c max(z_ic, 0) - z_ic t_ic + log(1 + exp(-|z_ic|)),    loss = sum_i w_i l_i / sum_i w_i
        dlogits_ic = w_i / (K sum_k w_k) (sigmoid(z_ic) - t_ic)

    Parameters
    ----------
    logits : ndarray of shape (N, K), float32 or float64
    targets : ndarray of shape (N, K), of logits' dtype, in [0, 1]; or of shape (N,), integer labels
        A label stands for its one-hot row, which is not formed.
    sample_weight : ndarray of shape (N,), of logits' dtype, finite and not negative, optional
    dlogits : ndarray of shape (N, K), optional
        Holds the gradient; may be `logits` itself.

    Returns
    -------
    loss : float
        In nats.
    dlogits : ndarray of shape (N, K)

    Raises
    ------
    TypeError, ValueError
        An argument has the wrong type, dtype, shape or range, a label is no class, or all weights are 0. Nothing has
        been written then.

    Notes
    -----
    The form above never overflows. NaN or an infinite logit makes the loss NaN or infinite. The loss is summed in
    float64.
    """
    rows = np.arange(len(logits))
    z, K = logits, logits.shape[1]
    w = np.ones(len(z)) if sample_weight is None else sample_weight.astype(np.float64)
    labelled = targets.ndim == 1
    e = np.exp(-np.abs(z))
    l_sum = (np.maximum(z, 0) + np.log1p(e)).sum(axis=1, dtype=np.float64)
    l_sum -= z[rows, targets] if labelled else (z * targets).sum(axis=1, dtype=np.float64)
    np.divide(np.where(z < 0, e, 1), 1 + e, out=dlogits)
    if labelled:
        dlogits[rows, targets] -= 1
    else:
        dlogits -= targets
    scale = w / (K * w.sum())
    dlogits *= scale.astype(z.dtype)[:, None]
    return float(l_sum @ scale), dlogits


binary_cross_entropy = Kernel(binary_cross_entropy, "losses", check_binary_cross_entropy)


def mean_squared_error(predictions, targets, sample_weight=None, dpredictions=None):
    """Mean squared error over all elements, and its gradient.

        loss = sum_i w_i 1/K sum_k (p_ik - t_ik)^2 / sum_i w_i,    dpredictions_ik = 2 w_i (p_ik - t_ik) / (K sum_j w_j)

    Parameters
    ----------
    predictions : ndarray of shape (N,) or (N, K), float32 or float64
    targets : ndarray of predictions' shape and dtype
    sample_weight : ndarray of shape (N,), of predictions' dtype, finite and not negative, optional
    dpredictions : ndarray of predictions' shape, optional
        Holds the gradient; may be `predictions` itself.

    Returns
    -------
    loss : float
    dpredictions : ndarray of predictions' shape

    Raises
    ------
    TypeError, ValueError
        An argument has the wrong type, dtype, shape or range, or all weights are 0. Nothing has been written then.

    Notes
    -----
    The loss is summed in float64; the factor is 2, not 1, as in PyTorch.
    """
    w = np.ones(len(predictions)) if sample_weight is None else sample_weight.astype(np.float64)
    scale = w * (len(w) / (predictions.size * w.sum()))  # w_i / (K sum w)
    d = np.subtract(predictions, targets, out=dpredictions)
    by_row = d.reshape(len(w), -1)
    loss = np.einsum("nk,nk->n", by_row, by_row, dtype=np.float64) @ scale
    by_row *= (2 * scale).astype(d.dtype)[:, None]
    return float(loss), d


mean_squared_error = Kernel(mean_squared_error, "losses", check_mean_squared_error)
