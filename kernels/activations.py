"""Activations: forward, and backward from the output or, for gelu, from the input; and the end of a residual block.

The derivatives and the measured speed are in docs/kernels/activations.md.
"""

import numpy as np

from ._activations_checks import check_activation_backward, check_activation_forward, check_residual_add_forward
from ._dispatch import Kernel

__all__ = ["activation_backward", "activation_forward", "residual_add_forward"]


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
    activation : {"identity", "relu", "leaky_relu", "tanh", "sigmoid", "gelu"}
    out : ndarray of z's shape and dtype, optional
        May be z itself.

    Returns
    -------
    ndarray of z's shape and dtype
        `out` where it was given.

    Raises
    ------
    TypeError, ValueError
        An argument has the wrong type, dtype or shape, or the activation is unknown; the message names it.

    Notes
    -----
    NaN stays NaN. gelu is the exact form (Hendrycks and Gimpel 2016, section 2), not its tanh approximation. Results
    of sigmoid and gelu that are subnormal may come as 0.
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
        return np.multiply(z, _normal_cdf(z), out=out)
    if out is not z:
        out[...] = z
    return out


def _sigmoid(z, out=None):
    e = np.exp(-np.abs(z))  # never overflows
    return np.divide(np.where(z < 0, e, 1), 1 + e, out=out)


def _normal_cdf(z):
    from scipy.special import ndtr  # scipy.special costs 0.1 s to import

    return ndtr(z)


activation_forward = Kernel(
    activation_forward,
    "activations",
    check_activation_forward,
)


def activation_backward(dy, saved, activation, out=None):
    """Backward pass of an activation: dz = dy f'(z).

        identity    dy
        relu        dy where y > 0, else 0
        leaky_relu  dy where y > 0, else 0.01 dy
        tanh        dy (1 - y^2)
        sigmoid     dy y (1 - y)
        gelu        dy (Phi(z) + z phi(z)),  Phi and phi the standard normal distribution and density

    Parameters
    ----------
    dy : ndarray of any shape, float32 or float64
    saved : ndarray of dy's shape and dtype
        The output y = f(z); for gelu, which is no monotone function, the input z.
    activation : {"identity", "relu", "leaky_relu", "tanh", "sigmoid", "gelu"}
    out : ndarray of dy's shape and dtype, optional
        May be dy itself; must not overlap `saved`.

    Returns
    -------
    ndarray of dy's shape and dtype
        `out` where it was given.

    Raises
    ------
    TypeError, ValueError
        An argument has the wrong type, dtype or shape, or the activation is unknown; the message names it.

    Notes
    -----
    At 0 the derivatives of relu and leaky_relu are those from the left, 0 and 0.01, as PyTorch has it. NaN in dy stays
    NaN; NaN in `saved` does for the smooth activations.
    """
    if activation == "relu":
        return np.multiply(dy, saved > 0, out=out)
    if activation == "leaky_relu":
        return np.multiply(dy, np.where(saved > 0, dy.dtype.type(1), dy.dtype.type(0.01)), out=out)
    if activation == "tanh":
        return np.multiply(dy, 1 - saved * saved, out=out)
    if activation == "sigmoid":
        return np.multiply(dy, saved * (1 - saved), out=out)
    if activation == "gelu":
        density = np.exp(saved * saved * dy.dtype.type(-0.5)) * dy.dtype.type(1 / np.sqrt(2 * np.pi))
        return np.multiply(dy, _normal_cdf(saved) + saved * density, out=out)
    if out is not dy:
        out[...] = dy
    return out


activation_backward = Kernel(
    activation_backward,
    "activations",
    check_activation_backward,
)


def residual_add_forward(x, skip, activation="identity", out=None):
    """Add what went past a residual block to what came through it, and apply an activation: y = f(x + skip).

    Its backward pass is `activation_backward(dy, y, activation)`: the result is the gradient of x and of skip alike.

    Parameters
    ----------
    x : ndarray of any shape, float32 or float64
    skip : ndarray of x's shape and dtype
    activation : {"identity", "relu", "leaky_relu", "tanh", "sigmoid"}
        leaky_relu's slope is 0.01.
    out : ndarray of x's shape and dtype, optional
        May be x or skip itself.

    Returns
    -------
    ndarray of x's shape and dtype
        `out` where it was given.

    Raises
    ------
    TypeError, ValueError
        An argument has the wrong type, dtype or shape, or the activation is unknown; the message names it.

    Notes
    -----
    NaN stays NaN.

    References
    ----------
    He, Zhang, Ren and Sun (2015), arXiv:1512.03385, equation 1.
    """
    return activation_forward.numpy(np.add(x, skip, out=out), activation, out=out)


residual_add_forward = Kernel(
    residual_add_forward,
    "activations",
    check_residual_add_forward,
)
