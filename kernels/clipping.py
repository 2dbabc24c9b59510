"""What a training loop does to flat vectors besides optimizing: norms, clipping, a search for NaN, moving averages."""

import numpy as np

from ._clipping_checks import (
    check_all_finite,
    check_clip_by_norm,
    check_clip_by_value,
    check_global_norm,
    check_moving_average,
)
from ._dispatch import Kernel

__all__ = ["all_finite", "clip_by_norm", "clip_by_value", "global_norm", "moving_average"]


def global_norm(gradients, segments=None):
    """Return the Euclidean norm of a flat vector: sqrt(sum of g^2).

    Parameters
    ----------
    gradients : ndarray of shape (P,), float32 or float64
    segments : Segments, optional
        Only what lies in its rows counts; its factors do not matter.

    Returns
    -------
    float
        0 for an empty vector; NaN and infinity where the vector holds them.

    Raises
    ------
    TypeError, ValueError
        An argument has the wrong type, dtype or shape; the message names it.

    Notes
    -----
    Accumulates in float64: no float32 overflows or vanishes in it, float64 overflows above 1e154. Sums of fixed spans
    are added in order, so the bits do not depend on the number of threads.
    """
    rows = [slice(None)] if segments is None else [row for row, _, _ in segments]
    return float(np.sqrt(sum(np.square(gradients[row], dtype=np.float64).sum() for row in rows)))


global_norm = Kernel(global_norm, "clipping", check_global_norm, traffic=lambda gradients, segments: gradients.nbytes)


def clip_by_norm(gradients, max_norm, segments=None):
    """Scale gradients in place, by max_norm / (norm + 1e-6), where their norm exceeds max_norm.

    Parameters
    ----------
    gradients : ndarray of shape (P,), float32 or float64, C-contiguous
        Changed in place.
    max_norm : float
        Above 0.
    segments : Segments, optional
        Only what lies in its rows counts and is scaled.

    Returns
    -------
    float
        The norm before.

    Raises
    ------
    TypeError, ValueError
        An argument has the wrong type, dtype, shape or range; the message names it.

    Notes
    -----
    A norm of NaN changes nothing; infinity turns finite gradients to 0 and infinite ones to NaN, as in PyTorch's
    clip_grad_norm_.

    References
    ----------
    Pascanu, Mikolov and Bengio 2013, algorithm 1.
    """
    norm = global_norm.numpy(gradients, segments)
    if norm > max_norm:
        for row in [slice(None)] if segments is None else [row for row, _, _ in segments]:
            gradients[row] *= max_norm / (norm + 1e-6)
    return norm


clip_by_norm = Kernel(
    clip_by_norm, "clipping", check_clip_by_norm, traffic=lambda gradients, max_norm, segments: 3 * gradients.nbytes
)


def clip_by_value(gradients, limit):
    """Clip every gradient to [-limit, limit], in place, and tell whether all were finite; NaN stays NaN.

    Parameters
    ----------
    gradients : ndarray of shape (P,), float32 or float64, C-contiguous
        Changed in place.
    limit : float
        Above 0.

    Returns
    -------
    bool
        False where there was a NaN, or an infinity, which clipping hides.

    Raises
    ------
    TypeError, ValueError
        An argument has the wrong type, dtype, shape or range; the message names it.
    """
    finite = bool(np.isfinite(gradients).all())
    np.clip(gradients, -limit, limit, out=gradients)
    return finite


clip_by_value = Kernel(
    clip_by_value, "clipping", check_clip_by_value, traffic=lambda gradients, limit: 2 * gradients.nbytes
)


def all_finite(x):
    """Return whether an array holds neither NaN nor infinity.

    Parameters
    ----------
    x : ndarray of any shape, float32 or float64

    Returns
    -------
    bool
        True for an empty array.
    """
    return bool(np.isfinite(x).all())


all_finite = Kernel(all_finite, "clipping", check_all_finite, traffic=lambda x: x.nbytes)


def moving_average(average, values, decay):
    """Move an exponential moving average in place: average = decay average + (1 - decay) values.

    Parameters
    ----------
    average : ndarray of shape (P,), float32 or float64, C-contiguous
        Changed in place.
    values : ndarray of shape (P,), of average's dtype
    decay : float
        From 0 (take the values) to 1 (keep the average).

    Raises
    ------
    TypeError, ValueError
        An argument has the wrong type, dtype, shape or range, or the two overlap; the message names it.

    Notes
    -----
    Computed as average + (1 - decay) (values - average), counted from the nearer end: in float32, decay and 1 - decay
    do not add up to 1, and with decay 0.9999 the plain form settles 2e-4 below the values.
    """
    if 1 - decay < 0.5:
        average += (1 - decay) * (values - average)
    else:
        average[...] = values - decay * (values - average)


moving_average = Kernel(
    moving_average, "clipping", check_moving_average, traffic=lambda average, values, decay: 3 * average.nbytes
)
