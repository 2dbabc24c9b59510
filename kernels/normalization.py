"""Batch normalisation and layer normalisation.

Axes: N rows (the batch; of images, every pixel of every image), C columns (features, channels). Batch normalisation
takes mean and variance of a column, layer normalisation of a row. The derivations, the precision of the sums and the
measured speed are in docs/kernels/normalization.md.
"""

import numpy as np

from ._dispatch import Kernel
from ._normalization_checks import (
    check_batch_norm_backward,
    check_batch_norm_forward,
    check_batch_norm_inference,
    check_layer_norm_backward,
    check_layer_norm_forward,
)
from .activations import activation_backward, activation_forward

__all__ = [
    "batch_norm_backward",
    "batch_norm_forward",
    "batch_norm_inference",
    "layer_norm_backward",
    "layer_norm_forward",
]


def batch_norm_forward(
    x,
    gamma,
    beta,
    running_mean,
    running_var,
    momentum=0.1,
    eps=1e-5,
    activation="identity",
    out=None,
    mean=None,
    rstd=None,
):
    """Normalise each column over the batch, scale, shift and activate it, and update the running statistics (training).

        mean = sum_i x_i / N,    var = sum_i (x_i - mean)^2 / N,    rstd = 1 / sqrt(var + eps)
        y = f((x - mean) rstd gamma + beta)
        running_mean <- (1 - momentum) running_mean + momentum mean
        running_var  <- (1 - momentum) running_var  + momentum var N / (N - 1)

    Parameters
    ----------
    x : ndarray of shape (N, C), N >= 2, float32 or float64
    gamma, beta : ndarrays of shape (C,), of x's dtype
    running_mean, running_var : ndarrays of shape (C,), of x's dtype
        Updated in place. The running variance is the unbiased one, as in PyTorch.
    momentum : float
        Weight of this batch in the running statistics, from 0 to 1.
    eps : float
        Keeps a constant column from dividing by zero.
    activation : {"identity", "relu", "leaky_relu", "tanh", "sigmoid"}
        Applied in the same pass. leaky_relu's slope is 0.01.
    out : ndarray of shape (N, C), optional
    mean, rstd : ndarrays of shape (C,), optional
        Hold the results. No result may overlap an input, a running statistic or another result.

    Returns
    -------
    y : ndarray of shape (N, C)
    mean, rstd : ndarrays of shape (C,)
        What the backward pass needs besides x.

    Raises
    ------
    TypeError, ValueError
        An argument has the wrong type, dtype or shape (the message names it), or N < 2: one row has no variance.

    Notes
    -----
    Reads x twice and writes y once. A NaN makes its column NaN, in the running statistics too.

    References
    ----------
    Ioffe and Szegedy (2015), algorithm 1. Two-pass variance with the mean's correction: Chan, Golub and LeVeque (1983),
    equation 1.7, merged over chunks of rows by their equation 2.1.
    """
    N = x.shape[0]
    np.mean(x, axis=0, out=mean)
    centred = x - mean
    var = np.mean(centred * centred, axis=0)
    np.divide(1, np.sqrt(var + x.dtype.type(eps)), out=rstd)
    running_mean += (mean - running_mean) * x.dtype.type(momentum)
    running_var += (var * x.dtype.type(N / (N - 1)) - running_var) * x.dtype.type(momentum)
    np.multiply(centred, rstd * gamma, out=out)
    out += beta
    return activation_forward.numpy(out, activation, out=out), mean, rstd


batch_norm_forward = Kernel(
    batch_norm_forward,
    "normalization",
    check_batch_norm_forward,
    flops=lambda x, *_: 10 * x.size,
)


def batch_norm_inference(x, gamma, beta, running_mean, running_var, eps=1e-5, activation="identity", out=None):
    """Normalise by the running statistics: y = f((x - running_mean) gamma / sqrt(running_var + eps) + beta).

    Parameters
    ----------
    x : ndarray of shape (N, C), float32 or float64
    gamma, beta, running_mean, running_var : ndarrays of shape (C,), of x's dtype
    eps : float
    activation : {"identity", "relu", "leaky_relu", "tanh", "sigmoid"}
    out : ndarray of shape (N, C), optional
        Holds the result; must not overlap an input.

    Returns
    -------
    ndarray of shape (N, C)

    Raises
    ------
    TypeError, ValueError
        An argument has the wrong type, dtype or shape; the message names it.

    References
    ----------
    Ioffe and Szegedy (2015), algorithm 2.
    """
    np.subtract(x, running_mean, out=out)
    out *= gamma / np.sqrt(running_var + x.dtype.type(eps))
    out += beta
    return activation_forward.numpy(out, activation, out=out)


batch_norm_inference = Kernel(
    batch_norm_inference,
    "normalization",
    check_batch_norm_inference,
    flops=lambda x, *_: 3 * x.size,
)


def batch_norm_backward(
    dy,
    x,
    gamma,
    mean,
    rstd,
    dx=None,
    dgamma=None,
    dbeta=None,
    accumulate=False,
    frozen=False,
    beta=None,
    activation="identity",
):
    """Backward pass of batch normalisation, and of the activation behind it.

        h = (x - mean) rstd,    g = dy f'(h gamma + beta),    dbeta = sum_i g_i,    dgamma = sum_i g_i h_i
        dx = gamma rstd (g - dbeta / N - h dgamma / N)         in training
        dx = gamma rstd g                                      where the statistics were frozen

    Parameters
    ----------
    dy : ndarray of shape (N, C), float32 or float64
    x : ndarray of shape (N, C), of dy's dtype
    gamma, mean, rstd : ndarrays of shape (C,), of dy's dtype
        mean and rstd as `batch_norm_forward` returned them; frozen: running_mean and 1 / sqrt(running_var + eps).
    dx : ndarray of shape (N, C), optional
    dgamma, dbeta : ndarrays of shape (C,), optional
        Hold the results. No result may overlap an input or another result.
    accumulate : bool
        Add to dgamma and dbeta instead of overwriting them; dx is always overwritten.
    frozen : bool
        mean and rstd are constants (the forward pass was `batch_norm_inference`), not functions of x.
    beta : ndarray of shape (C,), of dy's dtype, optional
        That of the forward pass; needed with an activation, whose input is computed again rather than kept.
    activation : {"identity", "relu", "leaky_relu", "tanh", "sigmoid"}
        Of the forward pass, where dy is the gradient behind it.

    Returns
    -------
    dx, dgamma, dbeta : ndarrays

    Raises
    ------
    TypeError, ValueError
        An argument has the wrong type, dtype or shape; the message names it. N < 2 unless frozen.

    References
    ----------
    Ioffe and Szegedy (2015), section 3.
    """
    N = x.shape[0]
    if activation != "identity":
        z = (x - mean) * (gamma * rstd) + beta
        dy = activation_backward.numpy(dy, activation_forward.numpy(z, activation), activation)
    h = (x - mean) * rstd
    sum_dy, sum_dy_h = dy.sum(axis=0), (dy * h).sum(axis=0)
    if frozen:
        np.multiply(dy, gamma * rstd, out=dx)
    else:
        h *= sum_dy_h / N
        np.subtract(dy, h, out=dx)
        dx -= sum_dy / N
        dx *= gamma * rstd
    return dx, *_give(dgamma, sum_dy_h, dbeta, sum_dy, accumulate)


def _give(dgamma, gamma_sum, dbeta, beta_sum, accumulate):
    """Overwrite both gradients, or add to them."""
    if accumulate:
        dgamma += gamma_sum
        dbeta += beta_sum
    else:
        dgamma[...] = gamma_sum
        dbeta[...] = beta_sum
    return dgamma, dbeta


batch_norm_backward = Kernel(
    batch_norm_backward,
    "normalization",
    check_batch_norm_backward,
    flops=lambda dy, *_: 11 * dy.size,
)


def layer_norm_forward(x, gamma, beta, eps=1e-5, out=None, mean=None, rstd=None):
    """Normalise each row over its columns, scale and shift it.

        mean = sum_j x_j / C,    rstd = 1 / sqrt(sum_j (x_j - mean)^2 / C + eps),    y = (x - mean) rstd gamma + beta

    Parameters
    ----------
    x : ndarray of shape (N, C), C >= 1, float32 or float64
    gamma, beta : ndarrays of shape (C,), of x's dtype
    eps : float
    out : ndarray of shape (N, C), optional
    mean, rstd : ndarrays of shape (N,), optional
        Hold the results. No result may overlap an input or another result.

    Returns
    -------
    y : ndarray of shape (N, C)
    mean, rstd : ndarrays of shape (N,)
        What the backward pass needs besides x.

    Raises
    ------
    TypeError, ValueError
        An argument has the wrong type, dtype or shape; the message names it.

    References
    ----------
    Ba, Kiros and Hinton (2016), equations 3 and 4.
    """
    np.mean(x, axis=1, out=mean)
    centred = x - mean[:, None]
    var = np.mean(centred * centred, axis=1)
    np.divide(1, np.sqrt(var + x.dtype.type(eps)), out=rstd)
    np.multiply(centred, rstd[:, None], out=out)
    out *= gamma
    out += beta
    return out, mean, rstd


layer_norm_forward = Kernel(
    layer_norm_forward,
    "normalization",
    check_layer_norm_forward,
    flops=lambda x, *_: 8 * x.size,
)


def layer_norm_backward(dy, x, gamma, mean, rstd, dx=None, dgamma=None, dbeta=None, accumulate=False):
    """Backward pass of layer normalisation.

        h = (x - mean) rstd,    g = dy gamma
        dx = rstd (g - sum_j g_j / C - h sum_j g_j h_j / C)
        dbeta = sum_i dy_i,    dgamma = sum_i dy_i h_i

    Parameters
    ----------
    dy : ndarray of shape (N, C), float32 or float64
    x : ndarray of shape (N, C), of dy's dtype
    gamma : ndarray of shape (C,), of dy's dtype
    mean, rstd : ndarrays of shape (N,), of dy's dtype
        From `layer_norm_forward`.
    dx : ndarray of shape (N, C), optional
    dgamma, dbeta : ndarrays of shape (C,), optional
        Hold the results. No result may overlap an input or another result.
    accumulate : bool
        Add to dgamma and dbeta instead of overwriting them; dx is always overwritten.

    Returns
    -------
    dx, dgamma, dbeta : ndarrays

    Raises
    ------
    TypeError, ValueError
        An argument has the wrong type, dtype or shape; the message names it.
    """
    C = x.shape[1]
    h = (x - mean[:, None]) * rstd[:, None]
    g = dy * gamma
    sum_g, sum_g_h = g.sum(axis=1, keepdims=True), (g * h).sum(axis=1, keepdims=True)
    sum_dy, sum_dy_h = dy.sum(axis=0), (dy * h).sum(axis=0)
    h *= sum_g_h / C
    np.subtract(g, h, out=dx)
    dx -= sum_g / C
    dx *= rstd[:, None]
    return dx, *_give(dgamma, sum_dy_h, dbeta, sum_dy, accumulate)


layer_norm_backward = Kernel(
    layer_norm_backward,
    "normalization",
    check_layer_norm_backward,
    flops=lambda dy, *_: 14 * dy.size,
)
