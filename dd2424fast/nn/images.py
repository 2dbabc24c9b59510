"""Layers of images: (batch, height, width, channels) in and, but for the last, out."""

from functools import partial

import numpy as np

from .. import kernels
from ..configuration import positive_integer
from ..kernels.windows import pair, window_counts
from .layers import uniform, weight_init
from .module import Module, shown

_UINT8 = np.dtype("uint8")


class _OnImages(Module):
    """What layers of images share."""

    spares_buffers = True
    in_channels = None  # any number

    def _check_shape(self, shape):
        channels = "channels" if self.in_channels is None else self.in_channels
        if len(shape) != 4 or not (None in (self.in_channels, shape[3]) or shape[3] == self.in_channels):
            first = len(shape) == 4 and shape[1] == self.in_channels
            hint = ": channels come last here" if first else ""
            raise ValueError(f"x: expected shape (batch, height, width, {channels}), got {shown(shape)}{hint}")

    def output_shape(self, shape):
        if shape is None:
            shape = None, None, self.in_channels
        self._check_shape(("batch", *shape))
        return self._result_shape(*shape)

    def _result_shape(self, height, width, channels):
        raise NotImplementedError


class _Windowed(_OnImages):
    """What layers share whose windows slide over images."""

    window_name = "size"
    dilation = (1, 1)

    def _windows(self, window, stride, padding):
        self._window, self.stride, self.padding = window, pair("stride", stride, 1), pair("padding", padding, 0)
        self._counted = (None, None)

    def _counts(self, image):
        """How many windows fit into images of (height, width); None where that is not known."""
        known, counts = self._counted
        if image != known:
            counts = (None, None)
            if None not in image:
                counts = window_counts(self.window_name, image, self._window, self.stride, self.padding, self.dilation)
            self._counted = image, counts
        return counts

    def _result_shape(self, height, width, channels):
        return *self._counts((height, width)), channels


class Conv2d(_Windowed):
    """Convolve images with filters: y = x * W + b, a cross-correlation as in every network.

    Weights are stored as (height, width, in_channels / groups, out_channels); `state_dict` shows PyTorch's
    (out_channels, in_channels / groups, height, width).

    Parameters
    ----------
    in_channels, out_channels : int
    kernel_size : int or (int, int)
        Height and width of the filters.
    stride, padding, dilation : int or (int, int)
        For rows and columns. Padding is with zeros; "same" keeps the image's size, at stride 1.
    groups : int
        A filter sees the channels of its group only; `groups=in_channels` is a depthwise convolution.
    bias : bool
    init : {"default", "he", "glorot"}
        As for Linear: a filter has height * width * in_channels / groups inputs; Glorot's outputs are height * width *
        out_channels, as PyTorch counts them.
    dtype, seed : see Module
    """

    can_end_with = ("relu", "leaky_relu", "tanh", "sigmoid")
    can_end_with_norm = True
    window_name = "kernel_size"

    def __init__(
        self,
        in_channels,
        out_channels,
        kernel_size,
        stride=1,
        padding=0,
        dilation=1,
        groups=1,
        bias=True,
        init="default",
        *,
        dtype="float32",
        seed=None,
    ):
        super().__init__(dtype=dtype, seed=seed)
        self.in_channels = positive_integer("in_channels", in_channels)
        self.out_channels = positive_integer("out_channels", out_channels)
        self.kernel_size = pair("kernel_size", kernel_size, 1)
        self.dilation = pair("dilation", dilation, 1)
        self.groups = positive_integer("groups", groups)
        for name, channels in (("in_channels", in_channels), ("out_channels", out_channels)):
            if channels % groups:
                raise ValueError(f"groups: expected a divisor of {name} = {channels}, got {groups}")
        if isinstance(padding, str):
            padding = self._same_padding(padding, pair("stride", stride, 1))
        self._windows(self.kernel_size, stride, padding)
        height, width = self.kernel_size
        inputs = height * width * in_channels // groups
        draw = weight_init(init, inputs, height * width * out_channels)
        self.add("weight", (height, width, in_channels // groups, out_channels), draw, axes=(3, 2, 0, 1))
        self._weight = self._own["weight"]
        self._bias = None
        if bias:
            self.add("bias", (out_channels,), partial(uniform, inputs**-0.5) if init == "default" else np.zeros)
            self._bias = self._own["bias"]

    def _same_padding(self, padding, stride):
        spans = [d * (k - 1) for d, k in zip(self.dilation, self.kernel_size, strict=True)]  # less one
        if padding != "same":
            raise ValueError(f"padding: expected an int, a pair of them or 'same', got {padding!r}")
        if stride != (1, 1):
            raise ValueError(f"padding: 'same' keeps the image's size only at stride 1, got stride {stride}")
        if any(span % 2 for span in spans):
            raise ValueError(f"padding: 'same' is for filters of an odd size, got {self.kernel_size}")
        return tuple(span // 2 for span in spans)

    def _result_shape(self, height, width, channels):
        return *self._counts((height, width)), self.out_channels

    def _forward(self, x, work, activation="identity", norm=None):
        y = work.array(self, "y", (x.shape[0], *self._counts(x.shape[1:3]), self.out_channels), self.dtype)
        scale, b = None, None if self._bias is None else self._bias.value
        if norm is not None:
            scale, b = norm.folded(b)
        kernels.conv2d_forward(
            x,
            self._weight.value,
            b,
            self.stride,
            self.padding,
            self.dilation,
            self.groups,
            activation,
            scale,
            y,
            work.training,
        )
        if work.training:
            work.saved[self] = x, y, activation
        return y

    def _backward(self, dy, work, need_dx):
        x, y, activation = work.saved[self]
        if activation != "identity":
            dy = kernels.activation_backward(dy, y, activation, dy)
        trained = self._plan()[0]
        dx = work.array(self, "dx", x.shape, self.dtype) if need_dx else None
        kernels.conv2d_backward(
            dy,
            x,
            self._weight.value,
            self.stride,
            self.padding,
            self.dilation,
            self.groups,
            dx,
            self._weight.gradient if trained else None,
            self._bias.gradient if trained and self._bias is not None else None,
            need_dx,
            self._bias is not None,
            False,
            trained,
        )
        if trained:
            self._zero_frozen()
        return dx


class _Pool(_Windowed):
    """What pooling layers share."""

    def __init__(self, size, stride=None, padding=0, *, dtype="float32", seed=None):
        super().__init__(dtype=dtype, seed=seed)
        self.size = pair("size", size, 1)
        self._windows(self.size, self.size if stride is None else stride, padding)
        if any(2 * p > s for p, s in zip(self.padding, self.size, strict=True)):
            raise ValueError(f"padding: expected at most half the window's size {self.size}, got {self.padding}")

    def _output(self, x, work):
        return work.array(self, "y", (x.shape[0], *self._counts(x.shape[1:3]), x.shape[3]), self.dtype)


class MaxPool2d(_Pool):
    """The largest number of each window, channel by channel.

    Parameters
    ----------
    size : int or (int, int)
        Rows and columns of the window, at most 255 pixels.
    stride : int or (int, int), optional
        Default: the window's size.
    padding : int or (int, int)
        At most half the window's size; what is outside is never the largest.
    dtype, seed : see Module
    """

    def __init__(self, size, stride=None, padding=0, *, dtype="float32", seed=None):
        super().__init__(size, stride, padding, dtype=dtype, seed=seed)
        if self.size[0] * self.size[1] > 255:
            raise ValueError(f"size: expected a window of at most 255 pixels, got {self.size[0]} x {self.size[1]}")

    # Activations that never fall may as well be applied to the largest number as before it is chosen: to fewer numbers.
    can_precede = ("relu", "leaky_relu")

    def _forward(self, x, work, activation="identity"):
        y = self._output(x, work)
        place = work.array(self, "place", y.shape, _UINT8)
        kernels.max_pool2d_forward(x, self.size, self.stride, self.padding, y, place)
        if activation != "identity":
            kernels.activation_forward(y, activation, y)
        if work.training:
            work.saved[self] = x.shape, place, y, activation
        return y

    def _backward(self, dy, work, need_dx):
        shape, place, y, activation = work.saved[self]
        if activation != "identity":
            dy = kernels.activation_backward(dy, y, activation, dy)
        dx = work.array(self, "dx", shape, self.dtype)
        return kernels.max_pool2d_backward(dy, place, shape[1:3], self.size, self.stride, self.padding, dx)


class AvgPool2d(_Pool):
    """The mean of each window, channel by channel; padding counts as zeros, as in PyTorch.

    Parameters
    ----------
    size : int or (int, int)
        Rows and columns of the window.
    stride : int or (int, int), optional
        Default: the window's size.
    padding : int or (int, int)
        At most half the window's size.
    dtype, seed : see Module
    """

    def _forward(self, x, work):
        if work.training:
            work.saved[self] = x.shape
        return kernels.avg_pool2d_forward(x, self.size, self.stride, self.padding, self._output(x, work))

    def _backward(self, dy, work, need_dx):
        shape = work.saved[self]
        dx = work.array(self, "dx", shape, self.dtype)
        return kernels.avg_pool2d_backward(dy, shape[1:3], self.size, self.stride, self.padding, dx)


class GlobalAvgPool2d(_OnImages):
    """The mean of each channel over the whole image: (batch, height, width, channels) to (batch, channels)."""

    def _result_shape(self, height, width, channels):
        return (channels,)

    def _forward(self, x, work):
        if work.training:
            work.saved[self] = x.shape
        return kernels.global_avg_pool2d_forward(x, work.array(self, "y", (x.shape[0], x.shape[3]), self.dtype))

    def _backward(self, dy, work, need_dx):
        shape = work.saved[self]
        return kernels.global_avg_pool2d_backward(dy, shape[1:3], work.array(self, "dx", shape, self.dtype))
