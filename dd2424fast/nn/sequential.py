"""Layers one after the other."""

import contextlib

from .. import kernels
from ..configuration import positive_integer
from .images import Conv2d
from .layers import BatchNorm, _Elementwise
from .module import Module, shown


class Sequential(Module):
    """Apply layers in turn. Parameters are named by the layer's place: `0.weight`, `2.bias`, as in PyTorch.

    An activation behind a Linear, Conv2d or BatchNorm layer is applied as that layer's result is finished, without a
    pass of its own; so is, in evaluation, a BatchNorm behind a Conv2d. A ReLU between a Conv2d and a MaxPool2d is
    applied behind the pool, to fewer numbers. Where layers are frozen, the backward pass ends at the first one that is
    trained.

    Parameters
    ----------
    *layers : Module
    image : (int, int, int), optional
        Height, width and channels of the images that go in: layers that do not fit are then named at once, images of
        another shape are refused, and `summary` shows the shapes of all that is between.
    names : sequence of str, optional
        The layers' names, instead of their places.
    dtype : optional
        Convert all layers; by default the first parameterised layer's dtype, which all must share.
    seed : int, optional
        Draw all initial weights anew from this seed; by default the layers keep theirs.
    """

    def __init__(self, *layers, image=None, names=None, dtype=None, seed=None):
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
        self.image = None if image is None else image_shape(image)
        self.names = None if names is None else self._checked_names(tuple(names))
        for _, module in self.modules():
            module._convert(self.dtype)
        if seed is not None:
            self._initialise(seed)
        self.join()
        for _ in self._walk(self.image):  # raises where layers do not fit
            pass

    def _checked_names(self, names):
        if len(names) != len(self.layers) or len(set(names)) < len(names):
            raise ValueError(f"names: expected {len(self.layers)} different names, one for each layer, got {names}")
        for name in names:
            if not isinstance(name, str) or not name or "." in name:
                raise ValueError(f"names: expected names without a dot, got {name!r}")
        return names

    def children(self):
        return dict(zip(self.names or map(str, range(len(self.layers))), self.layers, strict=True))

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
        image, names = None if start else self.image, self.names and self.names[start:stop]
        part = Sequential.__new__(Sequential, *self.layers[start:stop], image=image, names=names)
        Module.__init__(part, dtype=self.dtype)
        part.layers, part.image, part.names = self.layers[start:stop], image, names
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

    def _described(self):
        """The class and the arguments that make a model such as this, for a file: where layers were replaced, it is no
        more than their sequence."""
        if not self.edited:
            return type(self).__name__, self.config
        config = {"layers": self.layers, "image": self.image, "names": self.names, "dtype": self.dtype}
        return "Sequential", config

    def _joined(self):
        self._stages = []  # a layer, and what its `_forward` is told: the activation that it ends with
        for layer in self.layers:
            before, told = self._stages[-1] if self._stages else (None, ())
            if isinstance(layer, _Elementwise) and not told and layer.activation in getattr(before, "can_end_with", ()):
                self._stages[-1] = before, (layer.activation,)
            elif type(before) is Conv2d and told and told[0] in getattr(layer, "can_precede", ()):
                self._stages[-1:] = (before, ()), (layer, told)
            else:
                self._stages.append((layer, ()))
        self._stages_in_use = []  # in evaluation: the batch normalisation, too, that a convolution ends with
        for layer, told in self._stages:
            before, earlier = self._stages_in_use[-1] if self._stages_in_use else (None, ())
            if type(layer) is BatchNorm and not earlier and getattr(before, "can_end_with_norm", False):
                self._stages_in_use[-1] = before, (*(told or ("identity",)), layer)
            else:
                self._stages_in_use.append((layer, told))
        for _, module, shape, _ in self._walk_while_it_fits():
            module._note_input(shape)

    def _walk_while_it_fits(self):
        """`_walk`, up to a layer that does not fit: while layers are replaced, one after the other, it may be so;
        `forward` names it."""
        with contextlib.suppress(ValueError):
            yield from self._walk(self.image)

    def _check_shape(self, shape):
        if self.image is None:
            (self.layers[0] if self.layers else super())._check_shape(shape)
        elif tuple(shape[1:]) != self.image:
            raise ValueError(
                f"x: expected shape {shown(('batch', *self.image))}, got {shown(shape)}{self._hint(shape)}"
            )

    def _hint(self, shape):
        height, width, channels = self.image
        return ": channels come last here" if tuple(shape[1:]) == (channels, height, width) else ""

    def output_shape(self, shape):
        *_, (_, _, _, after) = self._walk(shape)
        return after

    def _walk(self, shape, path=""):
        after = shape
        for name, layer in self._layers_in_turn():
            for found in layer._walk(after, f"{path}.{name}" if path else name):
                yield found
            after = found[-1]
        yield path, self, shape, after

    def _layers_in_turn(self):
        return zip(self.names or map(str, range(len(self.layers))), self.layers, strict=True)

    def _output_shapes(self):
        return {path: after for path, _, _, after in self._walk_while_it_fits()}

    def _converted(self, x):
        return self.layers[0]._converted(x) if self.layers else super()._converted(x)

    def _forward(self, x, work):
        try:
            return self._run(x, work)
        except ValueError:
            _name_misfit(self, x)
            raise

    def _run(self, x, work):
        for layer, told in self._stages if work.training else self._stages_in_use:
            x = layer._forward(x, work, *told)
        return x

    def _make_plan(self):
        """The stages from the last on: each layer, whether one before it is trained, and whether it or one before it
        is."""
        plan, below = [], False
        for layer, _ in self._stages:
            reached = below or any(parameter.trainable for _, parameter in layer.named_parameters())
            plan.append((layer, below, reached))
            below = reached
        return plan[::-1]

    def _backward(self, dy, work, need_dx):
        return self._back_through(self._plan(), dy, work, need_dx)

    def _back_through(self, stages, dy, work, need_dx):
        for layer, below, reached in stages:
            if not (need_dx or reached):
                return None
            dy = layer._backward(dy, work, need_dx or below)
        return dy


def image_shape(image):
    if not isinstance(image, tuple | list) or len(image) != 3:
        raise ValueError(f"image: expected (height, width, channels), got {image!r}")
    return tuple(positive_integer(f"image[{i}]", size) for i, size in enumerate(image))


def _name_misfit(model, x):
    """Raise a ValueError that names the layer, where one cannot take what an x of this shape becomes."""
    try:
        for _ in model._walk(x.shape[1:]):
            pass
    except ValueError as error:
        raise error from None


class Residual(Sequential):
    """Layers, and a way past them: y = f(layers(x) + shortcut(x)) (He et al. 2015, arXiv:1512.03385, equation 2).

    Parameters
    ----------
    *layers : Module
    shortcut : Module, optional
        By default x itself is added; where the layers change its shape, say a 1 x 1 convolution of their stride.
    activation : {"relu", "leaky_relu", "tanh", "sigmoid"} or None
        f.
    image, dtype, seed : see Sequential
    names : sequence of str, optional
        Of the layers and, last, of the shortcut; by default their places and "shortcut".
    """

    def __init__(self, *layers, shortcut=None, activation="relu", image=None, names=None, dtype=None, seed=None):
        if not layers:
            raise ValueError("layers: expected at least one, got none")
        if shortcut is not None and not isinstance(shortcut, Module):
            raise TypeError(f"shortcut: expected a Module, got {type(shortcut).__name__}")
        if any(shortcut is layer for layer in layers):
            raise ValueError("shortcut: it is among the layers already; make a second one")
        if activation is not None and activation not in BatchNorm.can_end_with:
            known = ", ".join(BatchNorm.can_end_with)
            raise ValueError(f"activation: expected one of {known}, or None, got {activation!r}")
        self.shortcut, self.shortcut_name, self.activation = shortcut, "shortcut", activation or "identity"
        if names is not None:
            names = tuple(names)
            if len(names) != len(layers) + 1:
                raise ValueError(f"names: expected {len(layers)} for the layers and one for the shortcut, got {names}")
            *names, self.shortcut_name = names
        super().__init__(*layers, image=image, names=names, dtype=dtype, seed=seed)

    def children(self):
        past = {} if self.shortcut is None else {self.shortcut_name: self.shortcut}
        return {**super().children(), **past}

    def _put(self, name, layer):
        if self.shortcut is not None and name == self.shortcut_name:
            self.shortcut = layer
        else:
            super()._put(name, layer)

    def _described(self):
        if not self.edited:
            return super()._described()
        _, config = super()._described()
        names = None if self.names is None else (*self.names, self.shortcut_name)
        activation = None if self.activation == "identity" else self.activation
        return "Residual", {**config, "names": names, "shortcut": self.shortcut, "activation": activation}

    def _walk(self, shape, path=""):
        *inside, (_, _, _, after) = super()._walk(shape, path)
        yield from inside
        past = shape
        if self.shortcut is not None:
            name = self.shortcut_name
            for found in self.shortcut._walk(shape, f"{path}.{name}" if path else name):
                yield found
            past = found[-1]
        if None not in (after, past) and not _may_equal(after, past):
            where = f"layer {path}, {type(self).__name__}: " if path else ""
            what = "its input" if self.shortcut is None else "its output"
            raise ValueError(
                f"{where}shortcut: expected {what} to have the shape of the layers' output, "
                f"{shown(('batch', *after))}, got {shown(('batch', *past))}"
            )
        yield path, self, shape, past if after is None else after

    def _joined(self):
        super()._joined()
        last, told = self._stages[-1]
        self._spared = not told and last.spares_buffers

    def _run(self, x, work):
        y = super()._run(x, work)
        past = x if self.shortcut is None else self.shortcut._forward(x, work)
        out = y if self._spared else work.array(self, "y", y.shape, self.dtype)
        kernels.residual_add_forward(y, past, self.activation, out)
        if work.training:
            work.saved[self] = out
        return out

    def _make_plan(self):
        past = () if self.shortcut is None else self.shortcut.named_parameters()
        return super()._make_plan(), any(parameter.trainable for _, parameter in past)

    def _backward(self, dy, work, need_dx):
        if self.activation != "identity":
            dy = kernels.activation_backward(dy, work.saved[self], self.activation, dy)
        inside, trained = self._plan()
        through = dy
        if not self._spared:  # the layers may write to it
            through = work.array(self, "dy", dy.shape, self.dtype)
            through[...] = dy
        dx = self._back_through(inside, through, work, need_dx)
        if self.shortcut is not None and (need_dx or trained):
            dy = self.shortcut._backward(dy, work, need_dx)
        return kernels.residual_add_forward(dx, dy, "identity", dx) if need_dx else None


def _may_equal(a, b):
    """Whether two shapes are the same as far as they are known."""
    return len(a) == len(b) and all(None in (i, j) or i == j for i, j in zip(a, b, strict=True))
