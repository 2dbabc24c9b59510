"""Pooling of images: the largest or the mean of each window, and the mean of each channel.

Axes: N images, H x W pixels, C channels (NHWC). The maths and the measured speed are in docs/kernels/pooling.md.
"""

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from ._dispatch import Kernel
from ._pooling_checks import (
    check_avg_pool2d_backward,
    check_avg_pool2d_forward,
    check_global_avg_pool2d_backward,
    check_global_avg_pool2d_forward,
    check_max_pool2d_backward,
    check_max_pool2d_forward,
)

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
    x : ndarray of shape (N, H, W, C), H and W at least 1, float32 or float64
    size : int or (int, int)
        Rows and columns of the window, at most 255 pixels.
    stride : int or (int, int), optional
        Default: the window's size.
    padding : int or (int, int)
        At most half the window's size, so that no window lies outside. What is outside is never the largest.
    out : ndarray of shape (N, H', W', C), of x's dtype, optional
    place : ndarray of shape (N, H', W', C), uint8, optional
        Hold the results; must not overlap x or each other.

    Returns
    -------
    y : ndarray of shape (N, H', W', C)
    place : ndarray of shape (N, H', W', C), uint8
        i times the window's width plus j of the first largest number, or of the first NaN: the backward pass reads it.
        Always a pixel of the image.

    Raises
    ------
    TypeError, ValueError
        An argument has the wrong type, dtype or shape; the message names it.

    Notes
    -----
    A NaN in a window is its largest number, as in PyTorch.
    """
    windows = _windows(x, size, stride, padding, -np.inf)
    flat = windows.reshape(*windows.shape[:4], size[0] * size[1])
    # The first NaN where there is one; the first pixel of the image, not of the padding, where all are minus infinity.
    place[...] = np.maximum(np.argmax(flat, axis=-1), _first_inside(out.shape, size, stride, padding))
    out[...] = np.take_along_axis(flat, place[..., None].astype(np.intp), axis=-1)[..., 0]
    return out, place


def _windows(x, size, stride, padding, outside):
    """View of shape (N, H', W', C, height, width) of the padded images."""
    rows, columns = padding
    padded = np.pad(x, ((0, 0), (rows, rows), (columns, columns), (0, 0)), constant_values=outside)
    return sliding_window_view(padded, size, axis=(1, 2))[:, :: stride[0], :: stride[1]]


def _first_inside(shape, size, stride, padding):
    """The place of each window's first pixel inside the image, to be broadcast to this shape."""
    rows, columns = (np.maximum(padding[a] - stride[a] * np.arange(shape[a + 1]), 0) for a in (0, 1))
    return (rows[:, None] * size[1] + columns)[:, :, None]


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
    x : ndarray of shape (N, H, W, C), H and W at least 1, float32 or float64
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


max_pool2d_forward = Kernel(max_pool2d_forward, "pooling", check_max_pool2d_forward)
max_pool2d_backward = Kernel(max_pool2d_backward, "pooling", check_max_pool2d_backward)
avg_pool2d_forward = Kernel(avg_pool2d_forward, "pooling", check_avg_pool2d_forward)
avg_pool2d_backward = Kernel(avg_pool2d_backward, "pooling", check_avg_pool2d_backward)
global_avg_pool2d_forward = Kernel(global_avg_pool2d_forward, "pooling", check_global_avg_pool2d_forward)
global_avg_pool2d_backward = Kernel(global_avg_pool2d_backward, "pooling", check_global_avg_pool2d_backward)
