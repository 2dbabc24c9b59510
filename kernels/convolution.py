"""Two-dimensional convolution of images, forward and backward.

Axes: N images, H x W pixels, C channels (innermost: NHWC), F filters; the weights are (height, width, C / groups, F),
what a filter multiplies an image's window with. The maths and the measured speed are in docs/kernels/convolution.md.
"""

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from ._checks import array, check_activation, disjoint, result
from ._dispatch import Kernel
from .activations import activation_forward
from .windows import pair, window_counts

__all__ = ["conv2d_backward", "conv2d_forward"]


def conv2d_forward(
    x, W, b=None, stride=1, padding=0, dilation=1, groups=1, activation="identity", scale=None, out=None, batched=False
):
    """Convolve images with filters (a cross-correlation, as in every network): y = f(scale (x * W) + b).

        y[n, p, q, f] = f(scale_f sum_ijc x[n, p s - P + i d, q s - P + j d, c] W[i, j, c, f] + b_f)

    with stride s, padding P (x is zero outside) and dilation d, each its own in both directions. With `groups` g, a
    filter sees only the C / g channels of its group: filters and channels are dealt to the groups in equal runs.

    Parameters
    ----------
    x : ndarray of shape (N, H, W, C), float32 or float64
    W : ndarray of shape (height, width, C / groups, F), of x's dtype
    b : ndarray of shape (F,), optional
    stride, padding, dilation : int or (int, int)
        For rows and columns; a stride and a dilation are at least 1.
    groups : int
        Divides C and F; C groups make a depthwise convolution.
    activation : {"identity", "relu", "leaky_relu", "tanh", "sigmoid"}
        Applied as a tile of the result is finished. leaky_relu's slope is 0.01.
    scale : ndarray of shape (F,), optional
        A batch normalisation in use: scale is gamma / sqrt(running_var + eps).
    out : ndarray of shape (N, H', W', F), optional
        Holds the result, H' = (H + 2 P - d (height - 1) - 1) // s + 1 rows of W' pixels; must not overlap an input.
    batched : bool
        Whether an image's last bits may depend on the number of images with it: faster, and meant for training.

    Returns
    -------
    ndarray of shape (N, H', W', F)

    Raises
    ------
    TypeError, ValueError
        An argument has the wrong type, dtype or shape, or no window fits into the padded image; the message says which.

    Notes
    -----
    2 N H' W' height width C / groups F floating-point operations; no buffer grows with the window's size. The bits do
    not depend on the number of threads.
    """
    windows = _windows(x, W, stride, padding, dilation)
    C, F = W.shape[2], W.shape[3] // groups
    for g in range(groups):
        inputs, filters = slice(g * C, (g + 1) * C), slice(g * F, (g + 1) * F)
        out[..., filters] = np.einsum("npqcij,ijcf->npqf", windows[:, :, :, inputs], W[..., filters], optimize=True)
    if scale is not None:
        out *= scale
    if b is not None:
        out += b
    return activation_forward.numpy(out, activation, out=out)


def _padded(x, padding):
    rows, columns = padding
    return np.pad(x, ((0, 0), (rows, rows), (columns, columns), (0, 0)))


def _windows(x, W, stride, padding, dilation):
    """What each output pixel sees: a view of shape (N, H', W', C, height, width) of the padded images."""
    spans = tuple(d * (k - 1) + 1 for d, k in zip(dilation, W.shape, strict=False))
    windows = sliding_window_view(_padded(x, padding), spans, axis=(1, 2))
    return windows[:, :: stride[0], :: stride[1], :, :: dilation[0], :: dilation[1]]


def conv2d_backward(
    dy,
    x,
    W,
    stride=1,
    padding=0,
    dilation=1,
    groups=1,
    dx=None,
    dW=None,
    db=None,
    need_dx=True,
    use_bias=True,
    accumulate=False,
    need_dW=True,
):
    """Backward pass of `conv2d_forward` without scale; dy is the gradient before the activation.

        dW[i, j, c, f] = sum_npq x[n, p s - P + i d, q s - P + j d, c] dy[n, p, q, f]
        dx[n, p s - P + i d, q s - P + j d, c] += W[i, j, c, f] dy[n, p, q, f]    over all i, j, f
        db = sum_npq dy

    Parameters
    ----------
    dy : ndarray of shape (N, H', W', F), float32 or float64
    x : ndarray of shape (N, H, W, C), of dy's dtype
    W : ndarray of shape (height, width, C / groups, F), of dy's dtype
    stride, padding, dilation, groups : as in the forward pass
    dx : ndarray of shape (N, H, W, C), optional
    dW : ndarray of W's shape, optional
    db : ndarray of shape (F,), optional
        Hold the results; none may overlap an input or another result.
    need_dx, need_dW, use_bias : bool
        Without, dx, dW or db is not computed, and None. db is not computed without need_dW.
    accumulate : bool
        Add to dW and db instead of overwriting them; dx is always overwritten.

    Returns
    -------
    dx, dW, db : ndarrays or None

    Raises
    ------
    TypeError, ValueError
        An argument has the wrong type, dtype or shape; the message names it.

    Notes
    -----
    As many floating-point operations as forward for dx, and as many for dW. The bits do not depend on the number of
    threads.
    """
    C, F = W.shape[2], W.shape[3] // groups
    if need_dW:
        windows = _windows(x, W, stride, padding, dilation)
        gradient = np.empty_like(W)
        for g in range(groups):
            inputs, filters = slice(g * C, (g + 1) * C), slice(g * F, (g + 1) * F)
            np.einsum(
                "npqcij,npqf->ijcf",
                windows[:, :, :, inputs],
                dy[..., filters],
                out=gradient[..., filters],
                optimize=True,
            )
        _give(dW, gradient, accumulate)
        if use_bias:
            _give(db, dy.sum(axis=(0, 1, 2)), accumulate)
    if need_dx:
        _input_gradient(dy, W, stride, padding, dilation, groups, dx)
    return dx, dW, db


def _input_gradient(dy, W, stride, padding, dilation, groups, dx):
    height, width, C, F = W.shape
    F //= groups
    padded = _padded(np.zeros_like(dx), padding)
    for i in range(height):
        for j in range(width):
            top, left = i * dilation[0], j * dilation[1]
            seen = padded[:, top:, left:][:, :: stride[0], :: stride[1]][:, : dy.shape[1], : dy.shape[2]]
            for g in range(groups):
                inputs, filters = slice(g * C, (g + 1) * C), slice(g * F, (g + 1) * F)
                seen[..., inputs] += dy[..., filters] @ W[i, j, :, filters].T
    rows, columns = padding
    dx[...] = padded[:, rows : rows + dx.shape[1], columns : columns + dx.shape[2]]


def _give(out, value, accumulate):
    if accumulate:
        out += value
    else:
        out[...] = value


def _check_forward(
    x, W, b=None, stride=1, padding=0, dilation=1, groups=1, activation="identity", scale=None, out=None, batched=False
):
    x = array("x", x, (None,) * 4)
    W, stride, padding, dilation, groups = _check_filters(x, W, stride, padding, dilation, groups)
    shape = _result_shape(x, W, stride, padding, dilation)
    b = None if b is None else array("b", b, (shape[3],), x.dtype)
    activation = check_activation(activation, fused=True)
    scale = None if scale is None else array("scale", scale, (shape[3],), x.dtype)
    out = result("out", out, shape, x.dtype)
    for name, other in (("x", x), ("W", W), ("b", b), ("scale", scale)):
        if other is not None:
            disjoint("out", out, name, other)
    return x, W, b, stride, padding, dilation, groups, activation, scale, out, bool(batched)


def _check_filters(x, W, stride, padding, dilation, groups):
    if isinstance(groups, bool) or not hasattr(groups, "__index__") or groups < 1:
        raise ValueError(f"groups: expected a number of groups of at least 1, got {groups!r}")
    channels = x.shape[3]
    if channels % groups:
        raise ValueError(f"groups: expected a divisor of the {channels} channels of x, got {groups}")
    W = array("W", W, (None, None, channels // groups, None), x.dtype)
    if W.shape[3] % groups:
        raise ValueError(f"groups: expected a divisor of the {W.shape[3]} filters of W, got {groups}")
    if 0 in W.shape[:2]:
        raise ValueError(f"W: expected filters of at least 1 x 1, got shape {W.shape}")
    return W, pair("stride", stride, 1), pair("padding", padding, 0), pair("dilation", dilation, 1), int(groups)


def _result_shape(x, W, stride, padding, dilation):
    counts = window_counts("W", x.shape[1:3], W.shape[:2], stride, padding, dilation)
    return x.shape[0], *counts, W.shape[3]


def _check_backward(
    dy,
    x,
    W,
    stride=1,
    padding=0,
    dilation=1,
    groups=1,
    dx=None,
    dW=None,
    db=None,
    need_dx=True,
    use_bias=True,
    accumulate=False,
    need_dW=True,
):
    x = array("x", x, (None,) * 4)
    W, stride, padding, dilation, groups = _check_filters(x, W, stride, padding, dilation, groups)
    dy = array("dy", dy, _result_shape(x, W, stride, padding, dilation), x.dtype)
    use_bias = bool(use_bias and need_dW)
    wanted = {"dx": (dx, x.shape, need_dx), "dW": (dW, W.shape, need_dW), "db": (db, W.shape[3:], use_bias)}
    results = {}
    for name, (out, shape, needed) in wanted.items():
        if not needed and out is not None:
            raise ValueError(f"{name}: expected None where it is not computed, got an array")
        if needed and name != "dx" and accumulate and out is None:
            raise ValueError(f"accumulate: expected {name} to add to, got None")
        results[name] = result(name, out, shape, x.dtype) if needed else None
        for other_name, other in {"dy": dy, "x": x, "W": W, **results}.items():
            if needed and other_name != name and other is not None:
                disjoint(name, results[name], other_name, other)
    flags = bool(need_dx), use_bias, bool(accumulate), bool(need_dW)
    return dy, x, W, stride, padding, dilation, groups, *results.values(), *flags


def _flops(pixels, W):
    return 2 * pixels.shape[0] * pixels.shape[1] * pixels.shape[2] * W.size


conv2d_forward = Kernel(conv2d_forward, "convolution", _check_forward, flops=lambda x, W, *rest: _flops(rest[-2], W))
conv2d_backward = Kernel(
    conv2d_backward,
    "convolution",
    _check_backward,
    flops=lambda dy, x, W, *rest: _flops(dy, W) * (int(rest[-4]) + int(rest[-1])),
)
