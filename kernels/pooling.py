"""Pooling of images: the largest or the mean of each window, and the mean of each channel.

Axes: N images, H x W pixels, C channels (NHWC). The maths and the measured speed are in docs/kernels/pooling.md.
"""

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from ._checks import array, disjoint, result
from ._dispatch import Kernel
from .windows import pair, window_counts

__all__ = [
    "avg_pool2d_backward",
    "avg_pool2d_forward",
    "global_avg_pool2d_backward",
    "global_avg_pool2d_forward",
    "max_pool2d_backward",
    "max_pool2d_forward",
]


def max_pool2d_forward(x, size, stride=None, padding=0, out=None, place=None):
    """The largest number of each window, channel by channel, and where in the window it stood.

        y[n, p, q, c] = max_ij x[n, p s - P + i, q s - P + j, c]

    Parameters
    ----------
    x : ndarray of shape (N, H, W, C), float32 or float64
    size : int or (int, int)
        Rows and columns of the window, at most 255 pixels.
    stride : int or (int, int), optional
        Default: the window's size.
    padding : int or (int, int)
        At most half the window's size, so that no window lies outside. What is outside counts as minus infinity.
    out : ndarray of shape (N, H', W', C), of x's dtype, optional
    place : ndarray of shape (N, H', W', C), uint8, optional
        Hold the results; must not overlap x or each other.

    Returns
    -------
    y : ndarray of shape (N, H', W', C)
    place : ndarray of shape (N, H', W', C), uint8
        i times the window's width plus j of the first largest number, or of the first NaN: the backward pass reads it.

    Raises
    ------
    TypeError, ValueError
        An argument has the wrong type, dtype or shape; the message names it.

    Notes
    -----
    A NaN in a window is its largest number, as in PyTorch.
    """
    windows = _windows(x, size, stride, padding, -np.inf)
    flat = windows.reshape(*windows.shape[:4], -1)
    place[...] = np.argmax(flat, axis=-1)  # the first NaN where there is one
    out[...] = np.take_along_axis(flat, place[..., None].astype(np.intp), axis=-1)[..., 0]
    return out, place


def _windows(x, size, stride, padding, outside):
    """View of shape (N, H', W', C, height, width) of the padded images."""
    rows, columns = padding
    padded = np.pad(x, ((0, 0), (rows, rows), (columns, columns), (0, 0)), constant_values=outside)
    return sliding_window_view(padded, size, axis=(1, 2))[:, :: stride[0], :: stride[1]]


def max_pool2d_backward(dy, place, image, size, stride=None, padding=0, dx=None):
    """Backward pass of `max_pool2d_forward`: each gradient goes to the pixel that was the largest of its window.

    Parameters
    ----------
    dy : ndarray of shape (N, H', W', C), float32 or float64
    place : ndarray of dy's shape, uint8
        From the forward pass.
    image : (int, int)
        H and W of x.
    size, stride, padding : as in the forward pass
    dx : ndarray of shape (N, H, W, C), of dy's dtype, optional
        Holds the result; must not overlap dy.

    Returns
    -------
    ndarray of shape (N, H, W, C)

    Raises
    ------
    TypeError, ValueError
        An argument has the wrong type, dtype or shape; the message names it. A place lies outside its window, or in the
        padding.
    """
    N, height, width, C = dy.shape
    n, p, q, c = np.ogrid[:N, :height, :width, :C]
    h = p * stride[0] - padding[0] + place // size[1]
    w = q * stride[1] - padding[1] + place % size[1]
    dx[...] = 0
    np.add.at(dx, (n, h, w, c), dy)
    return dx


def avg_pool2d_forward(x, size, stride=None, padding=0, out=None):
    """The mean of each window, channel by channel; padding counts as zeros, as in PyTorch.

        y[n, p, q, c] = sum_ij x[n, p s - P + i, q s - P + j, c] / (height width)

    Parameters
    ----------
    x : ndarray of shape (N, H, W, C), float32 or float64
    size : int or (int, int)
    stride : int or (int, int), optional
        Default: the window's size.
    padding : int or (int, int)
        At most half the window's size.
    out : ndarray of shape (N, H', W', C), of x's dtype, optional
        Holds the result; must not overlap x.

    Returns
    -------
    ndarray of shape (N, H', W', C)

    Raises
    ------
    TypeError, ValueError
        An argument has the wrong type, dtype or shape; the message names it.
    """
    np.mean(_windows(x, size, stride, padding, 0), axis=(4, 5), out=out)
    return out


def avg_pool2d_backward(dy, image, size, stride=None, padding=0, dx=None):
    """Backward pass of `avg_pool2d_forward`: each gradient is shared equally by the pixels of its window.

    Parameters
    ----------
    dy : ndarray of shape (N, H', W', C), float32 or float64
    image : (int, int)
        H and W of x.
    size, stride, padding : as in the forward pass
    dx : ndarray of shape (N, H, W, C), of dy's dtype, optional
        Holds the result; must not overlap dy.

    Returns
    -------
    ndarray of shape (N, H, W, C)

    Raises
    ------
    TypeError, ValueError
        An argument has the wrong type, dtype or shape; the message names it.
    """
    share = dy / dy.dtype.type(size[0] * size[1])
    N, height, width, C = dy.shape
    rows, columns = padding
    padded = np.zeros((N, image[0] + 2 * rows, image[1] + 2 * columns, C), dy.dtype)
    for i in range(size[0]):
        for j in range(size[1]):
            padded[:, i:, j:][:, :: stride[0], :: stride[1]][:, :height, :width] += share
    dx[...] = padded[:, rows : rows + image[0], columns : columns + image[1]]
    return dx


def global_avg_pool2d_forward(x, out=None):
    """The mean of each channel over an image's pixels: y[n, c] = sum_hw x[n, h, w, c] / (H W).

    Parameters
    ----------
    x : ndarray of shape (N, H, W, C), H and W at least 1, float32 or float64
    out : ndarray of shape (N, C), of x's dtype, optional
        Holds the result; must not overlap x.

    Returns
    -------
    ndarray of shape (N, C)

    Raises
    ------
    TypeError, ValueError
        An argument has the wrong type, dtype or shape; the message names it.

    References
    ----------
    Lin, Chen and Yan (2013), arXiv:1312.4400, section 3.2.
    """
    return np.mean(x, axis=(1, 2), out=out)


def global_avg_pool2d_backward(dy, image, dx=None):
    """Backward pass of `global_avg_pool2d_forward`: dx[n, h, w, c] = dy[n, c] / (H W).

    Parameters
    ----------
    dy : ndarray of shape (N, C), float32 or float64
    image : (int, int)
        H and W of x.
    dx : ndarray of shape (N, H, W, C), of dy's dtype, optional
        Holds the result; must not overlap dy.

    Returns
    -------
    ndarray of shape (N, H, W, C)

    Raises
    ------
    TypeError, ValueError
        An argument has the wrong type, dtype or shape; the message names it.
    """
    dx[...] = (dy / dy.dtype.type(image[0] * image[1]))[:, None, None, :]
    return dx


_MOST_PIXELS = 255  # of a window: a place is a byte


def _check_windows(image, size, stride, padding):
    size = pair("size", size, 1)
    stride = size if stride is None else pair("stride", stride, 1)
    padding = pair("padding", padding, 0)
    if size[0] * size[1] > _MOST_PIXELS:
        raise ValueError(f"size: expected a window of at most {_MOST_PIXELS} pixels, got {size[0]} x {size[1]}")
    if 2 * padding[0] > size[0] or 2 * padding[1] > size[1]:
        raise ValueError(f"padding: expected at most half the window's size {size}, got {padding}")
    return size, stride, padding, window_counts("size", image, size, stride, padding)


def _check_max_forward(x, size, stride=None, padding=0, out=None, place=None):
    x = array("x", x, (None,) * 4)
    size, stride, padding, counts = _check_windows(x.shape[1:3], size, stride, padding)
    shape = (x.shape[0], *counts, x.shape[3])
    out, place = result("out", out, shape, x.dtype), result("place", place, shape, "uint8")
    for name, a in (("out", out), ("place", place)):
        disjoint(name, a, "x", x)
    disjoint("place", place, "out", out)
    return x, size, stride, padding, out, place


def _check_gradient(dy, image, size, stride, padding):
    dy, image = array("dy", dy, (None,) * 4), pair("image", image, 1)
    size, stride, padding, counts = _check_windows(image, size, stride, padding)
    dy = array("dy", dy, (None, *counts, None), dy.dtype)
    return dy, image, size, stride, padding


def _own_dx(dx, dy, image):
    dx = result("dx", dx, (dy.shape[0], *image, dy.shape[-1]), dy.dtype)
    disjoint("dx", dx, "dy", dy)
    return dx


def _check_max_backward(dy, place, image, size, stride=None, padding=0, dx=None):
    dy, image, size, stride, padding = _check_gradient(dy, image, size, stride, padding)
    place = array("place", place, dy.shape, "uint8")
    dx = _own_dx(dx, dy, image)
    disjoint("dx", dx, "place", place)
    return dy, place, image, size, stride, padding, dx


def _check_avg_forward(x, size, stride=None, padding=0, out=None):
    x = array("x", x, (None,) * 4)
    size, stride, padding, counts = _check_windows(x.shape[1:3], size, stride, padding)
    out = result("out", out, (x.shape[0], *counts, x.shape[3]), x.dtype)
    disjoint("out", out, "x", x)
    return x, size, stride, padding, out


def _check_avg_backward(dy, image, size, stride=None, padding=0, dx=None):
    dy, image, size, stride, padding = _check_gradient(dy, image, size, stride, padding)
    return dy, image, size, stride, padding, _own_dx(dx, dy, image)


def _check_global_forward(x, out=None):
    x = array("x", x, (None,) * 4)
    if 0 in x.shape[1:3]:
        raise ValueError(f"x: expected images of at least 1 x 1 pixels, got shape {x.shape}")
    out = result("out", out, (x.shape[0], x.shape[3]), x.dtype)
    disjoint("out", out, "x", x)
    return x, out


def _check_global_backward(dy, image, dx=None):
    dy, image = array("dy", dy, (None, None)), pair("image", image, 1)
    return dy, image, _own_dx(dx, dy, image)


max_pool2d_forward = Kernel(max_pool2d_forward, max_pool2d_forward, _check_max_forward)
max_pool2d_backward = Kernel(max_pool2d_backward, max_pool2d_backward, _check_max_backward)
avg_pool2d_forward = Kernel(avg_pool2d_forward, avg_pool2d_forward, _check_avg_forward)
avg_pool2d_backward = Kernel(avg_pool2d_backward, avg_pool2d_backward, _check_avg_backward)
global_avg_pool2d_forward = Kernel(global_avg_pool2d_forward, global_avg_pool2d_forward, _check_global_forward)
global_avg_pool2d_backward = Kernel(global_avg_pool2d_backward, global_avg_pool2d_backward, _check_global_backward)
