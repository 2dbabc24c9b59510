"""Layers one after the other."""

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
            module._convert(self.dtype)
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
        """The layer at a place; of a slice, a Sequential of these layers whose flat vectors are slices of this one's:
        training it trains them here."""
        return self._part(*i.indices(len(self))) if isinstance(i, slice) else self.layers[i]

    def _part(self, start, stop, step):
        if step != 1:
            raise ValueError(f"i: expected layers that follow each other, got a step of {step}")
        before = [module for layer in self.layers[:start] for _, module in layer.modules()]
        part = Sequential.__new__(Sequential, *self.layers[start:stop])
        Module.__init__(part, dtype=self.dtype)
        part.layers = self.layers[start:stop]
        vectors = self.parameters, self.gradients, self.buffers
        first = sum(parameter.value.size for module in before for parameter in module._own.values())
        part._assign(*vectors, first, sum(buffer.size for module in before for buffer in module._own_buffers.values()))
        return part

    def __setitem__(self, i, layer):
        """Replace a layer; the flat vectors are laid anew, so an optimizer that trained the old ones must be made
        anew too."""
        self.replace(list(self.children())[i], layer)

    def _put(self, name, layer):
        i = list(self.children()).index(name)
        self.layers = (*self.layers[:i], layer, *self.layers[i + 1 :])

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
