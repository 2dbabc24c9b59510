"""Activations: forward, and backward from the output (relu, leaky_relu, tanh, sigmoid) or from the input (gelu)."""

import numpy as np

from . import _activations_float32, _activations_float64
from ._checks import ACTIVATIONS, array, check_activation, disjoint, result
from ._dispatch import Kernel

__all__ = ["activation_forward"]

_FAST = {"f": _activations_float32, "d": _activations_float64}


def activation_forward(z, activation, out=None):
    """Apply an activation element by element: y = f(z).

        identity    z
        relu        max(z, 0)
        leaky_relu  z where z >= 0, else 0.01 z
        tanh        (e^z - e^-z) / (e^z + e^-z)
        sigmoid     1 / (1 + e^-z)
        gelu        z (1 + erf(z / sqrt 2)) / 2

    Parameters
    ----------
    z : ndarray of any shape, float32 or float64
    activation : str
    out : ndarray of z's shape, optional
        May be z itself.

    Returns
    -------
    ndarray of z's shape and dtype

    Notes
    -----
    NaN stays NaN. gelu is the exact form (Hendrycks and Gimpel 2016), not its tanh approximation.
    """
    if activation == "relu":
        return np.maximum(z, 0, out=out)
    if activation == "leaky_relu":
        return np.multiply(z, np.where(z < 0, z.dtype.type(0.01), z.dtype.type(1)), out=out)
    if activation == "tanh":
        return np.tanh(z, out=out)
    if activation == "sigmoid":
        return _sigmoid(z, out)
    if activation == "gelu":
        out[...] = z * _normal_cdf(z)
        return out
    if out is not z:
        out[...] = z
    return out


def _sigmoid(z, out=None):
    e = np.exp(-np.abs(z))  # never overflows
    return np.divide(np.where(z < 0, e, 1), 1 + e, out=out)


def _normal_cdf(z):
    from scipy.special import ndtr  # scipy.special costs 0.1 s to import

    return ndtr(z)


def _check_forward(z, activation, out=None):
    z = array("z", z, np.shape(z))
    check_activation(activation)
    if out is not z:
        out = result("out", out, z.shape, z.dtype)
        disjoint("out", out, "z", z)
    return z, activation, out


activation_forward = Kernel(
    activation_forward,
    {char: module.activation_forward for char, module in _FAST.items()},
    _check_forward,
    traffic=lambda z, activation, out: z.nbytes + out.nbytes,
)
