"""Layers one after the other."""

import numpy as np

from .layers import _Elementwise
from .module import Module


class Sequential(Module):
    """Apply layers in turn. Parameters are named by the layer's place: `0.weight`, `2.bias`, as in PyTorch.

    An activation behind a Linear or BatchNorm layer is applied as that layer's result is finished, without a pass of
    its own.

    Parameters
    ----------
    *layers : Module
    dtype : optional
        Convert all layers; by default the first parameterised layer's dtype, which all must share.
    seed : int, optional
        Draw all initial weights anew from this seed; by default the layers keep theirs.
    """

    def __init__(self, *layers, dtype=None, seed=None):
        for i, layer in enumerate(layers):
            if not isinstance(layer, Module):
                raise TypeError(f"layers[{i}]: expected a Module, got {type(layer).__name__}")
            if layer.takes_lengths:
                raise TypeError(f"layers[{i}]: a {type(layer).__name__} is a whole model, no layer of another")
            if any(layer is other for other in layers[:i]):
                raise ValueError(f"layers[{i}]: the same layer appears twice; make a second one")
        if dtype is None:
            owners = [layer for layer in layers if any(True for _ in layer.named_parameters())]
            dtype = (owners or layers)[0].dtype if layers else "float32"
        super().__init__(dtype=dtype, seed=seed)
        self.layers = tuple(layers)  # replace one by `model[i] = layer`, which lays the flat vectors anew
        for _, module in self.modules():
            _convert(module, self.dtype)
        if seed is not None:
            self._initialise(seed)
        self.join()

    def children(self):
        return {str(i): layer for i, layer in enumerate(self.layers)}

    def __len__(self):
        return len(self.layers)

    def __iter__(self):
        return iter(self.layers)

    def __getitem__(self, i):
        return self.layers[i]

    def __setitem__(self, i, layer):
        """Replace a layer; the flat vectors are laid anew, so an optimizer that trained the old ones must be made
        anew too."""
        if not isinstance(layer, Module):
            raise TypeError(f"layer: expected a Module, got {type(layer).__name__}")
        for _, module in layer.modules():
            _convert(module, self.dtype)
        if any(layer is module for _, module in self.modules()):
            raise ValueError("layer: it is in this model already; make a second one")
        layers = list(self.layers)
        layers[i] = layer
        self.layers = tuple(layers)
        self.edited = True  # its constructor's arguments no longer describe it: a file lists the layers instead
        self._forget()
        self.join()

    def _joined(self):
        self._stages = []
        for i, layer in enumerate(self.layers):
            before = self.layers[i - 1] if i else None
            if isinstance(layer, _Elementwise) and layer.activation in getattr(before, "can_end_with", ()):
                self._stages[-1] = (before, layer.activation)
            else:
                self._stages.append((layer, None))

    def _check_shape(self, x):
        (self.layers[0] if self.layers else super())._check_shape(x)

    def _converted(self, x):
        return self.layers[0]._converted(x) if self.layers else super()._converted(x)

    def _forward(self, x, work):
        for layer, activation in self._stages:
            x = layer._forward(x, work) if activation is None else layer._forward(x, work, activation)
        return x

    def _backward(self, dy, work, need_dx):
        first = self._stages[0][0] if self._stages else None
        for layer, _ in reversed(self._stages):
            dy = layer._backward(dy, work, need_dx or layer is not first)
        return dy


def _convert(module, dtype):
    """Give a module, not yet joined, another dtype."""
    module.dtype = np.dtype(dtype)
    module._forget()
    for parameter in module._own.values():
        parameter.value = parameter.value.astype(dtype)
        parameter.gradient = parameter.gradient.astype(dtype)
    module._own_buffers = {name: buffer.astype(dtype) for name, buffer in module._own_buffers.items()}
