"""How gradients flow back through time: whether they vanish or explode."""

import math
from dataclasses import dataclass

import numpy as np

from .configuration import array_of, integer_in
from .gradients import default_loss
from .losses import Loss
from .nn.module import Module, Workspace
from .nn.recurrent import _Recurrent


@dataclass
class FlowReport:
    """What `gradient_flow` found, by strand: a recurrent layer in one direction.

    Attributes
    ----------
    sequences : dict from str to ndarray of shape (batch, time)
        From a strand's name, such as "rnn.l0" or "l1_reverse", to the Euclidean norm over its units of dL/dh_t for
        every sequence; zero behind a sequence's end.
    """

    sequences: dict

    @property
    def norms(self):
        """From a strand's name to an ndarray of shape (time,): the norm of dL/dh_t over all sequences and units."""
        return {name: np.sqrt(np.square(norms).sum(axis=0)) for name, norms in self.sequences.items()}

    def table(self):
        """One line a strand, as text: the norm at the first and the last step, the smallest and the largest, and the
        factor by which it changes for every step that it flows back."""
        names = self.norms
        width = max(8, *map(len, names))
        lines = [
            f"{'layer':<{width}}  {'first step':>10} {'last step':>10} {'smallest':>10} {'largest':>10} {'factor':>7}"
        ]
        for name, norms in names.items():
            reached, begun = map(float, norms[[-1, 0]] if name.endswith("_reverse") else norms[[0, -1]])
            steps = len(norms) - 1
            factor = (reached / begun) ** (1 / steps) if steps and begun else math.nan
            values = (norms[0], norms[-1], norms.min(), norms.max())
            lines.append(f"{name:<{width}}  {' '.join(f'{value:>10.3e}' for value in values)} {factor:>7.3f}")
        return "\n".join(lines)

    def plot(self, path=None):
        """Draw the norms against t; returns the Figure. path : path-like, optional, where to write the picture."""
        from .plots import gradient_flow

        return gradient_flow(self, path)

    def __str__(self):
        return self.table()


def gradient_flow(model, x, y, *, loss=None, lengths=None, seed=0, update=0):
    """Measure dL/dh_t, the gradient of the loss with respect to the state after each step, in every recurrent layer.

    It is the total derivative: what comes from the layer above at step t, and what flows back through time from all
    later steps. Where each step has a loss of its own, their gradients add up; to follow one loss back through time,
    let only one step count, with labels -100 elsewhere (CrossEntropy's `ignore_index`). A norm that falls as t goes
    back from there means gradients that vanish, one that grows gradients that explode (Pascanu et al. 2013,
    arXiv:1211.5063).

    Parameters
    ----------
    model : models.LanguageModel, nn.RNN, nn.LSTM, nn.GRU, or another Module that contains one
    x, y : arrays
        One batch, as for `Trainer.step`. The targets of a recurrent layer on its own have its output's shape (or are
        labels, one a step).
    loss : losses.Loss, optional
        Default: CrossEntropy(), or MeanSquaredError() where y are floats.
    lengths : integers of shape (batch,), optional
        Steps of each sequence.
    seed, update : int
        Of dropout.

    Returns
    -------
    FlowReport
        The pass begins at the zero state. The model is left as it was: gradients, running statistics, carried state.

    Raises
    ------
    TypeError, ValueError
        An argument is wrong; the message names it.
    """
    if not isinstance(model, Module):
        raise TypeError(f"model: expected an nn.Module, got {type(model).__name__}")
    if loss is not None and not isinstance(loss, Loss):
        raise TypeError(f"loss: expected a losses.Loss, got {type(loss).__name__}")
    recurrent = [(path, module) for path, module in model.modules() if isinstance(module, _Recurrent)]
    if not recurrent:
        raise ValueError(f"model: expected one with a recurrent layer, got {type(model).__name__}")
    alone = isinstance(model, _Recurrent)
    if lengths is not None and not (alone or model.takes_lengths):
        raise ValueError("lengths: this model takes no sequences")
    y = array_of("y", y)
    loss = default_loss(y) if loss is None else loss
    work = Workspace(training=True)
    work.seed, work.update, work.lengths = integer_in("seed", seed, 0), integer_in("update", update, 0), lengths
    # A layer that a user's own forward calls keeps what it needs in a workspace of its own.
    works = [work, *(module._training_work() for _, module in recurrent)]
    kept = model.gradients.copy(), model.buffers.copy()
    if not model._busy.acquire(blocking=False):
        raise RuntimeError("gradient_flow: this model is being trained by another thread")
    flow = {}
    try:
        for each in works:
            each.flow = flow
        outputs = model._forward(model._input(x), work)
        work.output_shape = outputs.shape
        model._backward(loss_gradient(model, outputs, y, loss, work)[1], work, False)
        sequences = {}
        for path, module in recurrent:
            if module._strands[0][0] in flow:  # it was used
                sequences.update(_norms(path, module, work.saved.get(module) or module._work.saved[module], flow))
    finally:
        for each in works:
            each.flow = None
        model.gradients[...], model.buffers[...] = kept
        model._busy.release()
    return FlowReport(sequences)


def loss_gradient(model, outputs, y, loss, work):
    """(The loss, dL/d(outputs)). Outputs of shape (batch, time, features) have one target a step, and steps behind a
    sequence's end count for nothing."""
    if outputs.ndim < 3:
        return loss(outputs, model._to_rows("y", y, work))
    if y.shape[:2] != outputs.shape[:2]:
        raise ValueError(f"y: expected shape {outputs.shape} or {outputs.shape[:2]}, like the output, got {y.shape}")
    rows, weight = outputs.reshape(-1, outputs.shape[-1]), None
    if work.lengths is not None:
        counts = np.arange(outputs.shape[1]) < np.asarray(work.lengths)[:, None]
        weight = counts.ravel().astype(outputs.dtype)
    value, gradient = loss(rows, y.reshape(len(rows), *y.shape[2:]), weight)
    return value, gradient.reshape(outputs.shape)


def _norms(path, module, rows, flow):
    """Yield (name, norms of shape (batch, time)) of a recurrent layer's strands."""
    prefix = f"{path}." if path else ""
    for layer, strands in enumerate(module._strands):
        for suffix, strand in zip(module._suffixes, strands, strict=True):
            norms = np.sqrt(np.square(flow[strand], dtype=np.float64).sum(axis=1))
            if suffix:  # it read each sequence from its end
                norms = norms[rows.reverse]
            yield f"{prefix}l{layer}{suffix}", rows.unpack(norms, np.empty((rows.batch, rows.time)))
