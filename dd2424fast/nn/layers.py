"""Layers of feed-forward networks."""

import math
from functools import partial

import numpy as np

from .. import kernels
from ..configuration import columns_hint, positive_integer, real_in
from .module import DROPOUT, FlatImage, Layout, Module, shown


def uniform(bound, shape, rng):
    """Uniform in [-bound, bound]."""
    return rng.uniform(-bound, bound, shape)


def normal(deviation, shape, rng):
    """Normal with mean 0."""
    return rng.normal(0.0, deviation, shape)


def weight_init(name, fan_in, fan_out):
    """The initial distribution of a weight matrix, by name: a function of (shape, rng).

    default  uniform within 1 / sqrt(fan_in), as PyTorch's Linear has it
    he       normal with variance 2 / fan_in, for layers before a ReLU (He et al. 2015, arXiv:1502.01852, eq. 10)
    glorot   uniform with variance 2 / (fan_in + fan_out) (Glorot and Bengio 2010, eq. 16)
    """
    choices = {
        "default": partial(uniform, fan_in**-0.5),
        "he": partial(normal, (2.0 / fan_in) ** 0.5),
        "glorot": partial(uniform, (6.0 / (fan_in + fan_out)) ** 0.5),
    }
    if not isinstance(name, str) or name not in choices:
        raise ValueError(f"init: expected one of {', '.join(choices)}, got {name!r}")
    return choices[name]


class Linear(Module):
    """y = x W + b.

    Parameters
    ----------
    in_features, out_features : int
    bias : bool
    init : {"default", "he", "glorot"}
        The weights' initial distribution: PyTorch's default (uniform within 1 / sqrt(in_features)), He's normal or
        Glorot's uniform; the last two start with a zero bias.
    dtype, seed : see Module
    """

    can_end_with = ("relu", "leaky_relu", "tanh", "sigmoid")
    spares_buffers = True

    def __init__(self, in_features, out_features, bias=True, init="default", *, dtype="float32", seed=None):
        super().__init__(dtype=dtype, seed=seed)
        self.in_features = positive_integer("in_features", in_features)
        self.out_features = positive_integer("out_features", out_features)
        self.add("weight", (in_features, out_features), weight_init(init, in_features, out_features), axes=(1, 0))
        self._weight = self._own["weight"]
        self._bias = None
        if bias:
            self.add("bias", (out_features,), partial(uniform, in_features**-0.5) if init == "default" else np.zeros)
            self._bias = self._own["bias"]

    def _check_shape(self, shape):
        if len(shape) != 2 or shape[1] not in (self.in_features, None):
            hint = columns_hint(shape, features=self.in_features)
            raise ValueError(f"x: expected shape (batch, {self.in_features}), got {shown(shape)}{hint}")

    def output_shape(self, shape):
        if shape is not None:
            self._check_shape(("batch", *shape))
            _check_pixels(self.in_features, shape)
        return (self.out_features,)

    def _note_input(self, shape):
        if isinstance(shape, FlatImage):
            self._weight.layout = Layout(self._weight.value.shape, (1, 0), shape.channels)

    def _forward(self, x, work, activation="identity"):
        y = work.array(self, "y", (x.shape[0], self.out_features), self.dtype)
        bias = self._bias
        kernels.linear_forward(
            x, self._weight.value, None if bias is None else bias.value, activation, y, work.training
        )
        if work.training:
            work.saved[self] = x, y, activation
        return y

    def _backward(self, dy, work, need_dx):
        x, y, activation = work.saved[self]
        if activation != "identity":
            dy = kernels.activation_backward(dy, y, activation, dy)
        weight, bias = self._weight, self._bias
        dx = work.array(self, "dx", x.shape, self.dtype) if need_dx else None
        trained, frozen = self._plan()
        dW = weight.gradient if trained else None
        db = bias.gradient if trained and bias is not None else None
        kernels.linear_backward(dy, x, weight.value, dx, dW, db, need_dx, bias is not None, False, trained)
        if trained and frozen:
            self._zero_frozen()
        return dx


def _check_pixels(features, shape):
    """Raise ValueError where so many features are no whole number of pixels."""
    if isinstance(shape, FlatImage) and features % shape.channels:
        raise ValueError(f"x: expected {features} features, got flattened images of {shape.channels} channels")


class _Elementwise(Module):
    """An activation: f applied to every element. Behind a layer that can end with it, it costs no pass of its own."""

    activation = "identity"

    def output_shape(self, shape):
        return shape

    def _forward(self, x, work):
        y = work.array(self, "y", x.shape, self.dtype)
        kernels.activation_forward(x, self.activation, y)
        if work.training:
            work.saved[self] = x if self.activation == "gelu" else y
        return y

    def _backward(self, dy, work, need_dx):
        return kernels.activation_backward(dy, work.saved[self], self.activation, dy)


class ReLU(_Elementwise):
    """max(x, 0)."""

    activation = "relu"


class LeakyReLU(_Elementwise):
    """x where x >= 0, else 0.01 x."""

    activation = "leaky_relu"


class Tanh(_Elementwise):
    """Hyperbolic tangent."""

    activation = "tanh"


class Sigmoid(_Elementwise):
    """1 / (1 + exp(-x))."""

    activation = "sigmoid"


class GELU(_Elementwise):
    """x times the normal distribution function of x, the exact form (Hendrycks and Gimpel 2016, arXiv:1606.08415)."""

    activation = "gelu"


class Activation(Module):
    """An activation of your own, from two scalar functions; compiled into fused loops by Numba at its first use.

    Parameters
    ----------
    f, derivative : callable
        Functions of one number: the activation and its derivative.
    """

    def __init__(self, f, derivative, *, dtype="float32", seed=None):
        super().__init__(dtype=dtype, seed=seed)
        self._kernel = kernels.custom_activation(f, derivative)

    def output_shape(self, shape):
        return shape

    def _forward(self, x, work):
        if work.training:
            work.saved[self] = x
        return self._kernel.forward(x, work.array(self, "y", x.shape, self.dtype))

    def _backward(self, dy, work, need_dx):
        return self._kernel.backward(dy, work.saved[self], work.array(self, "dx", dy.shape, self.dtype))


class Flatten(Module):
    """(batch, ...) to (batch, features), in memory order.

    Of images, the channels of a pixel stand side by side; in PyTorch, the pixels of a channel do. A Linear, and a
    normalisation, behind it show PyTorch's order in `state_dict`, where the number of channels is known: from the
    layers before it (any Conv2d), from the model's `image`, or from here.

    Parameters
    ----------
    channels : int, optional
        Of the images, where nothing before it tells.
    """

    def __init__(self, channels=None, *, dtype="float32", seed=None):
        super().__init__(dtype=dtype, seed=seed)
        self.channels = None if channels is None else positive_integer("channels", channels)

    def _check_shape(self, shape):
        super()._check_shape(shape)
        if self.channels is not None and (len(shape) != 4 or shape[3] not in (self.channels, None)):
            raise ValueError(f"x: expected shape (batch, height, width, {self.channels}), got {shown(shape)}")

    def output_shape(self, shape):
        if shape is None:
            return None if self.channels is None else FlatImage(None, self.channels)
        self._check_shape(("batch", *shape))
        features = None if None in shape else math.prod(shape)
        channels = shape[2] if len(shape) == 3 else None
        return (features,) if channels is None else FlatImage(features, channels)

    def _forward(self, x, work):
        if work.training:
            work.saved[self] = x.shape
        return x.reshape(x.shape[0], math.prod(x.shape[1:]))

    def _backward(self, dy, work, need_dx):
        return dy.reshape(work.saved[self])


class Dropout(Module):
    """Zero each element with probability p and scale the others by 1 / (1 - p), in training only (Srivastava et al.
    2014).

    The mask is a pure function of (the trainer's seed, the layer, the update): it is recomputed in the backward pass,
    never stored.
    """

    def __init__(self, p=0.5, *, dtype="float32", seed=None):
        super().__init__(dtype=dtype, seed=seed)
        self.p = real_in("p", p, 0, 1, include_high=False)

    def output_shape(self, shape):
        return shape

    def _forward(self, x, work):
        if not work.training or self.p == 0:
            return x
        key = kernels.stream_key(work.seed, (DROPOUT << 32) + self._place, work.update)
        work.saved[self] = key
        return kernels.dropout(x, self.p, key, work.array(self, "y", x.shape, self.dtype))

    def _backward(self, dy, work, need_dx):
        if self.p == 0:
            return dy
        return kernels.dropout(dy, self.p, work.saved[self], work.array(self, "dx", dy.shape, self.dtype))


class _Norm(Module):
    """What the normalisations share: a gain and a shift for each feature of the last axis."""

    def __init__(self, features, eps, *, dtype, seed):
        super().__init__(dtype=dtype, seed=seed)
        self.features = positive_integer("features", features)
        self.eps = real_in("eps", eps, 0, np.inf)
        self.add("weight", (features,), np.ones)
        self.add("bias", (features,), np.zeros)
        self._weight, self._bias = self._own["weight"], self._own["bias"]

    def _check_shape(self, shape):
        if len(shape) < 2 or shape[-1] not in (self.features, None):
            raise ValueError(f"x: expected shape (batch, ..., {self.features}), got {shown(shape)}")

    def output_shape(self, shape):
        if shape is not None:
            self._check_shape(("batch", *shape))
            _check_pixels(self.features, shape)
        return shape

    def _note_input(self, shape):
        if isinstance(shape, FlatImage):
            layout = Layout((self.features,), channels=shape.channels)
            self._weight.layout = self._bias.layout = self._buffer_layout = layout


class BatchNorm(_Norm):
    """Normalise each feature by its mean and variance over the batch; in use, by their running averages.

    Ioffe and Szegedy 2015, arXiv:1502.03167; momentum and eps as PyTorch has them, the running variance unbiased.

    Parameters
    ----------
    features : int
        The size of the last axis; all other axes belong to the batch.
    momentum : float
        Weight of the newest batch in the running averages.
    eps : float
        Added to the variance.
    """

    can_end_with = ("relu", "leaky_relu", "tanh", "sigmoid")
    spares_buffers = True

    def __init__(self, features, momentum=0.1, eps=1e-5, *, dtype="float32", seed=None):
        super().__init__(features, eps, dtype=dtype, seed=seed)
        self.momentum = real_in("momentum", momentum, 0, 1)
        self.add_buffer("running_mean", np.zeros(features))
        self.add_buffer("running_var", np.ones(features))

    @property
    def frozen(self):
        """A frozen layer uses and keeps its running statistics, in training too."""
        return not self._weight.trainable

    def folded(self, bias):
        """The layer in use, behind one that adds `bias` (or None), as a factor on that layer's product and a new bias:
        two vectors."""
        mean, variance = self._own_buffers["running_mean"], self._own_buffers["running_var"]
        scale = self._weight.value / np.sqrt(variance + self.dtype.type(self.eps))
        return scale, self._bias.value + scale * ((0 if bias is None else bias) - mean)

    def _forward(self, x, work, activation="identity"):
        gamma, beta = self._weight.value, self._bias.value
        mean, variance = self._own_buffers["running_mean"], self._own_buffers["running_var"]
        rows = x if x.ndim == 2 else x.reshape(-1, self.features)
        y = work.array(self, "y", rows.shape, self.dtype)
        if work.training and not self.frozen:
            batch_mean = work.array(self, "mean", mean.shape, self.dtype)
            rstd = work.array(self, "rstd", mean.shape, self.dtype)
            kernels.batch_norm_forward(
                rows, gamma, beta, mean, variance, self.momentum, self.eps, activation, y, batch_mean, rstd
            )
            work.saved[self] = rows, activation, batch_mean, rstd
        else:
            kernels.batch_norm_inference(rows, gamma, beta, mean, variance, self.eps, activation, y)
            if work.training:
                work.saved[self] = rows, activation, mean, 1 / np.sqrt(variance + self.dtype.type(self.eps))
        return y if x.ndim == 2 else y.reshape(x.shape)

    def _backward(self, dy, work, need_dx):
        rows, activation, mean, rstd = work.saved[self]
        shape, dy = dy.shape, dy.reshape(rows.shape)
        dx = work.array(self, "dx", rows.shape, self.dtype)
        gamma, dgamma, dbeta = self._weight.value, self._weight.gradient, self._bias.gradient
        kernels.batch_norm_backward(
            dy, rows, gamma, mean, rstd, dx, dgamma, dbeta, False, self.frozen, self._bias.value, activation
        )
        self._zero_frozen()
        return dx.reshape(shape)


class LayerNorm(_Norm):
    """Normalise each row over its last axis (Ba, Kiros and Hinton 2016, arXiv:1607.06450)."""

    def __init__(self, features, eps=1e-5, *, dtype="float32", seed=None):
        super().__init__(features, eps, dtype=dtype, seed=seed)

    def _forward(self, x, work):
        rows = x.reshape(-1, self.features)
        y = work.array(self, "y", rows.shape, self.dtype)
        mean = work.array(self, "mean", (rows.shape[0],), self.dtype)
        rstd = work.array(self, "rstd", (rows.shape[0],), self.dtype)
        kernels.layer_norm_forward(rows, self._weight.value, self._bias.value, self.eps, y, mean, rstd)
        if work.training:
            work.saved[self] = rows, mean, rstd
        return y.reshape(x.shape)

    def _backward(self, dy, work, need_dx):
        rows, mean, rstd = work.saved[self]
        dx = work.array(self, "dx", rows.shape, self.dtype)
        weight, bias = self._weight, self._bias
        kernels.layer_norm_backward(
            dy.reshape(rows.shape), rows, weight.value, mean, rstd, dx, weight.gradient, bias.gradient
        )
        self._zero_frozen()
        return dx.reshape(dy.shape)
