"""What goes through every layer of a model: activations, gradients, updates, and what is unhealthy about them."""

import contextlib
import math
from dataclasses import dataclass, fields

import numpy as np

from .configuration import array_of, integer_in, real_in
from .gradients import default_loss
from .losses import Loss
from .monitors import loss_gradient
from .nn import RNN, Dropout, Flatten, Residual
from .nn.module import Module, Workspace
from .nn.recurrent import _Recurrent
from .optim import Optimizer
from .tracing import Watcher, traced

# Thresholds of the verdicts; see `LayerNumbers`.
VANISHING, EXPLODING = 1e-3, 1e3
DEAD = SATURATED = 0.5
LARGE_UPDATE, SMALL_UPDATE = 0.1, 1e-7


@dataclass
class LayerNumbers:
    """One layer's numbers.

    Attributes
    ----------
    kind : str
        The layer's class, and the activation that is applied with it.
    mean, std : float
        Of its result, over the batch and all units.
    dead : float
        Share of its ReLUs that are zero for the whole batch (of a convolution: channels, everywhere); NaN where it ends
        with none.
    saturated : float
        Share of its results where tanh is beyond 0.99 in size, or a sigmoid below 0.01 or above 0.99; NaN likewise.
    weight_gradient, bias_gradient : float
        Euclidean norms of the gradients of its weights (parameters of two or more dimensions), and of the others; NaN
        where it has none.
    activation_gradient : float
        Euclidean norm of dL/d(result), over the whole batch.
    activation_gradient_rms : float
        Root mean square of its entries, which layers of different sizes can be compared by.
    update_ratio : float
        |update| / |weights| that the optimizer would make of these gradients, weights as above; NaN where no optimizer
        or learning rate was given. About 1e-3 is usual.
    verdict : str
        "" where nothing is wrong, else, separated by commas:

        - "not finite": a result or gradient is NaN or infinite;
        - "vanishing activations", "exploding activations": the standard deviation is below 1e-3, or above 1e3, times
          that of what goes into the model (of token ids: of the first layer's result);
        - "dead": half of the ReLUs or more;
        - "saturated": half of the results or more;
        - "vanishing gradients", "exploding gradients": `activation_gradient_rms` is below 1e-3, or above 1e3, times
          that of the model's last layer;
        - "large updates", "small updates": the ratio is above 0.1, or below 1e-7 though the gradient is not zero.
    """

    kind: str
    mean: float = math.nan
    std: float = math.nan
    dead: float = math.nan
    saturated: float = math.nan
    weight_gradient: float = math.nan
    bias_gradient: float = math.nan
    activation_gradient: float = math.nan
    activation_gradient_rms: float = math.nan
    update_ratio: float = math.nan
    verdict: str = ""


NUMBERS = tuple(field.name for field in fields(LayerNumbers) if field.type is float)


@dataclass
class LayersReport:
    """What `layer_statistics` found.

    Attributes
    ----------
    layers : dict from str to LayerNumbers
        By the layer's name in the model, from the input to the output.
    loss : float
    """

    layers: dict
    loss: float

    @property
    def unhealthy(self):
        """From the name of each layer with a verdict to it."""
        return {name: layer.verdict for name, layer in self.layers.items() if layer.verdict}

    def table(self):
        """One line a layer, as text; see `LayerNumbers`."""
        name_width = max(5, *map(len, self.layers))
        kind_width = max(5, *(len(layer.kind) for layer in self.layers.values()))
        columns = "     mean      std   dead   sat.     |dW|     |db|     |da| update/W  verdict"
        lines = [f"{'layer':<{name_width}}  {'kind':<{kind_width}} {columns}"]
        for name, layer in self.layers.items():
            numbers = [_short(layer.mean), _short(layer.std), _percent(layer.dead), _percent(layer.saturated)]
            numbers += [_short(layer.weight_gradient), _short(layer.bias_gradient)]
            numbers += [_short(layer.activation_gradient), _short(layer.update_ratio)]
            lines.append(
                f"{name:<{name_width}}  {layer.kind:<{kind_width}} {' '.join(numbers)}  {layer.verdict}".rstrip()
            )
        return "\n".join(lines)

    def plot(self, path=None):
        """Draw them, layer by layer; returns the Figure. path : path-like, optional, where to write the picture."""
        from .plots import layer_statistics

        return layer_statistics(self, path)

    def __str__(self):
        return self.table()


def _short(value):
    return f"{'-':>8}" if math.isnan(value) else f"{value:>8.1e}"


def _percent(share):
    return f"{'-':>6}" if math.isnan(share) else f"{share:>6.0%}"


def layer_statistics(model, x, y, *, loss=None, lengths=None, optimizer=None, lr=None, seed=0, update=0):
    """Measure what goes through every layer on one batch, forward and back, and say what is unhealthy.

    Parameters
    ----------
    model : nn.Module
    x, y : arrays
        One batch, as for `Trainer.step`.
    loss : losses.Loss, optional
        Default: CrossEntropy(), or MeanSquaredError() where y are floats.
    lengths : integers of shape (batch,), optional
        Steps of each sequence.
    optimizer : optim.Optimizer, optional
        Such as `trainer.optimizer`: tells how large its next update would be (without clipping); none is made.
    lr : float, optional
        Learning rate instead of the optimizer's; without an optimizer, of plain gradient descent.
    seed, update : int
        Of dropout.

    Returns
    -------
    LayersReport
        Its `table()` prints, its `plot(path)` draws; `layers` has the numbers by layer. Dropout and Flatten have no
        line. An activation is measured with the layer that it ends; of a layer that is used twice, the last use counts.
        The pass begins at the zero state; the model and the optimizer are left as they were.

    Raises
    ------
    TypeError, ValueError
        An argument is wrong; the message names it.

    References
    ----------
    Glorot and Bengio 2010, section 3, for activations and gradients layer by layer; He et al. 2015, arXiv:1502.01852.
    """
    if not isinstance(model, Module):
        raise TypeError(f"model: expected an nn.Module, got {type(model).__name__}")
    if loss is not None and not isinstance(loss, Loss):
        raise TypeError(f"loss: expected a losses.Loss, got {type(loss).__name__}")
    if optimizer is not None and not isinstance(optimizer, Optimizer):
        raise TypeError(f"optimizer: expected an optim.Optimizer, got {type(optimizer).__name__}")
    if lengths is not None and not (isinstance(model, _Recurrent) or model.takes_lengths):
        raise ValueError("lengths: this model takes no sequences")
    lr = None if lr is None else real_in("lr", lr, 0, math.inf, include_high=False)
    y = array_of("y", y)
    loss = default_loss(y) if loss is None else loss
    work = Workspace(training=True)
    work.seed, work.update, work.lengths = integer_in("seed", seed, 0), integer_in("update", update, 0), lengths
    if not model._busy.acquire(blocking=False):
        raise RuntimeError("layer_statistics: this model is being trained by another thread")
    kept = model.gradients.copy(), model.buffers.copy()
    numbers = _Numbers(model)
    try:
        x = model._input(x)
        with traced(model, numbers), np.errstate(all="ignore"):
            outputs = model._forward(x, work)
            work.output_shape = outputs.shape
            value, gradient = loss_gradient(model, outputs, y, loss, work)
            model._backward(gradient, work, False)
        for path, ratio in update_ratios(model, optimizer, lr).items():
            if path in numbers.layers:
                numbers.layers[path].update_ratio = ratio
    finally:
        model.gradients[...], model.buffers[...] = kept
        model._busy.release()
    layers = numbers.layers
    _judge(layers, float(np.std(x, dtype=np.float64)) if x.dtype.kind == "f" else None)
    return LayersReport(layers, float(value))


class _Numbers(Watcher):
    """Takes the numbers of a pass, by layer."""

    def __init__(self, model):
        self.layers = {}
        self._order = {path: i for i, (path, _) in enumerate(model.modules())}

    def forward_ends(self, path, module, y, activation):
        whole = module.children() and not isinstance(module, Residual) and not module._own
        if whole or isinstance(module, Dropout | Flatten):
            return
        applied = _activation_of(module, activation)
        kind = type(module).__name__
        kind += "" if applied in ("identity", kind.lower()) or not _told(module, activation) else f", {applied}"
        y = np.asarray(y, dtype=np.float64)
        self.layers[path or "model"] = LayerNumbers(
            kind, float(y.mean()), float(y.std()), _dead(y, applied), _saturated(y, applied)
        )

    def backward_begins(self, path, module, dy):
        layer = self.layers.get(path or "model")
        if layer is not None:
            layer.activation_gradient = norm(dy)
            layer.activation_gradient_rms = layer.activation_gradient / math.sqrt(max(dy.size, 1))

    def backward_ends(self, path, module, dx):
        layer = self.layers.get(path or "model")
        if layer is not None and module._own:
            parameters = [p for p in module._own.values() if p.trainable]
            weights = [p.gradient for p in parameters if p.value.ndim >= 2]
            others = [p.gradient for p in parameters if p.value.ndim < 2]
            layer.weight_gradient = norm(*weights) if weights else math.nan
            layer.bias_gradient = norm(*others) if others else math.nan


def _told(module, activation):
    """Whether the activation came from the layer behind."""
    return activation != "identity" or isinstance(module, Residual)


def _activation_of(module, activation):
    """What a layer's result went through: that of the layer behind, or its own."""
    if activation != "identity":
        return activation
    return "tanh" if isinstance(module, RNN) else getattr(module, "activation", "identity")


def norm(*arrays):
    """The Euclidean norm of all together, in float64."""
    return math.sqrt(sum(float(np.square(a, dtype=np.float64).sum()) for a in arrays))


def _dead(y, activation):
    if activation != "relu" or y.ndim < 2:
        return math.nan
    return float((y.reshape(-1, y.shape[-1]) == 0).all(axis=0).mean())


def _saturated(y, activation):
    if activation == "tanh":
        return float((np.abs(y) > 0.99).mean())
    return float(((y < 0.01) | (y > 0.99)).mean()) if activation == "sigmoid" else math.nan


def update_ratios(model, optimizer, lr=None):
    """|update| / |weights| by layer that an optimizer would make of the model's gradients now; all is put back.

    Returns
    -------
    dict from path to float
        Of layers with trained weights, parameters of two or more dimensions. Empty without optimizer and lr.
    """
    if optimizer is None and lr is None:
        return {}
    before = model.parameters.copy()
    with np.errstate(all="ignore"), _tried(model, optimizer):
        if optimizer is None:
            model.parameters[...] -= model.dtype.type(lr) * model.gradients
        else:
            optimizer.update(model, lr)
        change, start, ratios = model.parameters - before, 0, {}
        for path, module in model.modules():
            sizes = []
            for parameter in module._own.values():
                stop = start + parameter.value.size
                if parameter.value.ndim >= 2 and parameter.trainable:
                    sizes.append((norm(change[start:stop]), norm(before[start:stop])))
                start = stop
            if sizes:
                moved, weights = (math.hypot(*column) for column in zip(*sizes, strict=True))
                ratios[path or "model"] = moved / weights if weights else math.inf if moved else 0.0
    return ratios


@contextlib.contextmanager
def _tried(model, optimizer):
    """Undo what an update does to a model's parameters and to the optimizer."""
    vectors = [(model.parameters, model.parameters.copy())]
    if optimizer is not None:
        vectors += [(a, a.copy()) for a in optimizer.state.values()]
        fresh, updates = not optimizer.state, optimizer.updates
    try:
        yield
    finally:
        for a, before in vectors:
            a[...] = before
        if optimizer is not None:
            optimizer.updates = updates
            if fresh:
                optimizer.state, optimizer._parameters = {}, None  # they are made at the first update


def _judge(layers, input_std):
    """Give every layer its verdict."""
    if not layers:
        return
    *_, last = layers.values()
    scale = next(iter(layers.values())).std if input_std is None else input_std
    for layer in layers.values():
        rms, found = layer.activation_gradient_rms, []
        seen = (layer.mean, layer.activation_gradient, layer.weight_gradient, layer.bias_gradient)
        if any(math.isinf(value) for value in seen) or math.isnan(layer.mean):
            found.append("not finite")
        found += _beyond(layer.std, scale, "activations")
        if layer.dead >= DEAD:
            found.append("dead")
        if layer.saturated >= SATURATED:
            found.append("saturated")
        found += _beyond(rms, last.activation_gradient_rms, "gradients")
        if layer.update_ratio > LARGE_UPDATE:
            found.append("large updates")
        elif layer.update_ratio < SMALL_UPDATE and layer.weight_gradient > 0:
            found.append("small updates")
        layer.verdict = ", ".join(found)


def _beyond(value, reference, what):
    if not reference or math.isnan(value):
        return []
    if value < VANISHING * reference:
        return [f"vanishing {what}"]
    return [f"exploding {what}"] if value > EXPLODING * reference else []
