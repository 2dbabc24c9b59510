"""Why a training diverged: the update that was not applied, replayed with NumPy's kernels, layer by layer."""

import copy
import math
from dataclasses import dataclass, field

import numpy as np

from .config import backend, get_backend
from .layer_numbers import norm, update_ratios
from .nn.module import Workspace
from .nn.recurrent import _Recurrent
from .tracing import Watcher, traced

USUAL_RATIO = 1e-2  # of a first update to the weights
LARGE_RATIO = 0.3
EARLY = 20  # updates
LARGE_INPUT = 50.0  # standardised numbers stay far below
WIDE = 10.0  # times the deviation that He et al. 2015 give the initial weights


@dataclass
class DivergenceReport:
    """What the replay of an update that diverged found.

    Attributes
    ----------
    update : int
    loss : float
        Of that update.
    layer : str or None
        The first layer, in the order of the computation, where a number is not finite; None where that is none of a
        layer's (x, y, the loss), or where none was found.
    kind : str or None
        That layer's class.
    operand : str or None
        What is not finite there: "x", "y", "carried state", a parameter such as "weight", a running statistic,
        "activation" (the layer's result, behind the activation that is applied with it), "outputs", "loss", "gradient
        of the outputs", "gradient of weight" and so on, "gradient of the input", "norm of the gradient".
    index : tuple of int, or None
        Its first entry that is not finite: of x the row and column.
    value : float or None
    twin_is_finite : bool
        Whether the replay with NumPy's kernels was finite throughout. `layer` and `operand` are then those of a replay
        with the fast kernels.
    at_the_edge : bool
        Whether a result or a gradient's norm in the replay comes near the square root of the largest number of the
        model's dtype: training has exploded, and whether a square or a product overflows already is a matter of how it
        is computed.
    losses : tuple of float
        Of the last updates that were applied, at most 16. A trainer keeps no more; they are not in checkpoints.
    gradient_norms : tuple of float
        Of the same updates, before clipping, where the trainer has a `clip_norm`, which computes them; else empty.
    largest : dict from str to float
        The largest size of each layer's result in the replay, up to the first that is not finite.
    layer_gradient_norms : dict from str to float
        The norm of each layer's gradient in the replay, from the output as far down as it is finite.
    first_ratios : dict from str to float
        |update| / |weights| by layer that the optimizer, made anew, would make on this batch from freshly drawn weights
        at this learning rate: by now the weights are of the size that the updates gave them. About 1e-2 or less is
        usual for a first update. Empty where that pass is not finite.
    lr : float
    stopped : str or None
        The error, where the replay ended with one.
    advice : list of str
        What to change, most likely first.
    """

    update: int
    loss: float
    layer: str | None = None
    kind: str | None = None
    operand: str | None = None
    index: tuple | None = None
    value: float | None = None
    twin_is_finite: bool = False
    at_the_edge: bool = False
    losses: tuple = ()
    gradient_norms: tuple = ()
    largest: dict = field(default_factory=dict)
    layer_gradient_norms: dict = field(default_factory=dict)
    first_ratios: dict = field(default_factory=dict)
    lr: float = math.nan
    stopped: str | None = None
    advice: list = field(default_factory=list)

    @property
    def where(self):
        """In words: what is not finite first."""
        if self.operand is None:
            return "no number that is not finite was found when the update was replayed"
        place = "" if self.layer is None else f" of layer {self.layer or 'model'} ({self.kind})"
        the = "" if self.operand in ("x", "y") else "the "
        at = "" if self.index is None else f", {self.value} at {self.index}"
        return f"{the}{self.operand}{place}{at}"

    def __str__(self):
        lines = [f"update {self.update}: not finite first: {self.where}"]
        if self.twin_is_finite:
            lines.append(f"  {_FINITE}: {_EXPLODED if self.at_the_edge else _SUSPECT}")
        if self.stopped:
            lines.append(f"  the replay ended with {self.stopped}")
        if self.losses:
            lines.append(f"  losses before: {' '.join(f'{loss:.4g}' for loss in self.losses)}, then {self.loss:.4g}")
        if self.gradient_norms:
            lines.append(f"  norms of their gradients: {' '.join(f'{value:.3g}' for value in self.gradient_norms)}")
        names = [*dict.fromkeys([*self.largest, *self.layer_gradient_norms, *self.first_ratios])]
        if names:
            width = max(5, *map(len, names))
            lines.append(f"  {'layer':<{width}}  {'largest result':>14}  {'gradient norm':>13}  {'first update/W':>14}")
            for name in names:
                numbers = [table.get(name) for table in (self.largest, self.layer_gradient_norms, self.first_ratios)]
                cells = ["-" if value is None else f"{value:.3g}" for value in numbers]
                lines.append(f"  {name:<{width}}  {cells[0]:>14}  {cells[1]:>13}  {cells[2]:>14}")
        lines += [f"- {sentence}" for sentence in self.advice]
        return "\n".join(lines)


_FINITE = "the same update is still finite with NumPy's kernels"
_EXPLODED = (
    "the numbers have exploded, and where their squares and products first overflow depends on how they are computed"
)
_SUSPECT = (
    "since no number comes near the largest there is, a fast kernel is wrong. Report it, and go on with "
    "dd.set_backend('numpy')"
)
EDGE = 1e-3  # times the square root of the largest number


def explain(trainer, batch, loss, buffers, carried):
    """Replay the update that a trainer was making.

    Parameters
    ----------
    trainer : Trainer
        Its update raised, parameters are those before.
    batch : Batch
    loss : float
    buffers, carried : ndarray or None; tuple of ndarray or None
        Running statistics and recurrent state before the update.

    Returns
    -------
    DivergenceReport
        The model, its gradients and the running statistics are left as they are.
    """
    model = trainer.model
    kept = model.gradients.copy(), model.buffers.copy()
    report = DivergenceReport(trainer.update, loss, lr=trainer._rate(trainer.update))
    report.losses = tuple(value for value, _ in trainer._recent)
    report.gradient_norms = tuple(value for _, value in trainer._recent if value is not None)
    found = _Search()
    try:
        _replay(trainer, batch, buffers, carried, "numpy", found)
        report.twin_is_finite = found.first is None
        if report.twin_is_finite and get_backend() != "numpy":
            found = _Search()
            _replay(trainer, batch, buffers, carried, get_backend(), found)
        if found.first is not None and found.first[2] not in ("x", "y"):
            report.first_ratios = _first_ratios(trainer, batch, report.lr)
    except Exception as error:  # the training has failed already, and that is what the user must hear of
        report.stopped = f"{type(error).__name__}: {error}"
    finally:
        model.gradients[...], model.buffers[...] = kept
    if found.first is not None:
        report.layer, report.kind, report.operand, report.index, report.value = found.first
    report.largest, report.layer_gradient_norms = found.largest, found.gradients
    sizes = (*found.largest.values(), *found.gradients.values())
    report.at_the_edge = max(sizes, default=0.0) > EDGE * math.sqrt(np.finfo(model.dtype).max)
    report.advice = _advice(trainer, batch, report)
    return report


def _replay(trainer, batch, buffers, carried, name, search):
    """Make the same pass, with the same dropout masks, watched."""
    model = trainer.model
    if buffers is not None:
        model.buffers[...] = buffers
    work = Workspace(training=True)
    work.seed, work.update, work.carries = trainer.seed, trainer.update, True
    work.carried = None if carried is None else tuple(np.array(state) for state in carried)
    for operand, a in (("x", model._input(batch.x)), ("y", np.asarray(batch.y)), *_states(carried)):
        search.look(None, None, operand, a)
    with backend(name), np.errstate(all="ignore"), traced(model, search):
        outputs, y, weight = batch.through(model, work)
        search.look(None, None, "outputs", outputs)
        loss, gradient = trainer.loss.run(outputs, y, weight, np.empty_like(outputs))
        search.look(None, None, "loss", np.asarray(loss))
        search.look(None, None, "gradient of the outputs", gradient)
        model._backward(gradient, work, False)
        for path, parameter in model.named_parameters():  # what a model computes beside its layers
            search.look(path.rpartition(".")[0], model, f"gradient of {parameter.name}", parameter.gradient)
        if trainer.clip_norm is not None:
            search.look(None, None, "norm of the gradient", np.asarray(norm(model.gradients)))


def _first_ratios(trainer, batch, lr):
    """|update| / |weights| by layer of a first update; everything is put back but the gradients."""
    model, optimizer = trainer.model, copy.copy(trainer.optimizer)
    optimizer.state, optimizer.updates, optimizer._parameters = {}, 0, None
    before, work = model.parameters.copy(), Workspace(training=True)
    work.seed = trainer.seed
    try:
        model._initialise(0)
        with np.errstate(all="ignore"):
            outputs, y, weight = batch.through(model, work)
            _, gradient = trainer.loss.run(outputs, y, weight, np.empty_like(outputs))
            model._backward(gradient, work, False)
        ratios = update_ratios(model, optimizer, lr)
    finally:
        model.parameters[...] = before
    return ratios if all(map(math.isfinite, ratios.values())) else {}


def _states(carried):
    return [("carried state", state) for state in carried or ()]


class _Search(Watcher):
    """Finds the first array that is not finite.

    Attributes
    ----------
    first : (layer, kind, operand, index, value), or None
    largest, gradients : dict from str to float
        Of what came before it: the largest size of results, the norm of gradients.
    """

    def __init__(self):
        self.first, self.largest, self.gradients = None, {}, {}

    def look(self, path, module, operand, a):
        """Note it if it is the first; returns whether all is finite so far."""
        if self.first is None and a is not None and a.dtype.kind == "f":
            bad = np.argwhere(~np.isfinite(a))
            if len(bad):
                index = tuple(int(i) for i in bad[0])
                kind = None if module is None else type(module).__name__
                self.first = path, kind, operand, index or None, float(a[index])
        return self.first is None

    def forward_begins(self, path, module):
        for name, parameter in (*module._tied.items(), *module._own.items()):
            self.look(path, module, name, parameter.value)

    def forward_ends(self, path, module, y, activation):
        if self.look(path, module, "activation", y) and path and not module.children():
            self.largest[path] = float(np.abs(y).max(initial=0))
        for name, a in module._own_buffers.items():
            self.look(path, module, name, a)

    def backward_ends(self, path, module, dx):
        for name, parameter in module._own.items():
            self.look(path, module, f"gradient of {name}", parameter.gradient)
        if self.look(path, module, "gradient of the input", dx) and path and module._own:
            self.gradients[path] = norm(*(parameter.gradient for parameter in module._own.values()))


# ---- what to change --------------------------------------------------------------------------------------------------


def _advice(trainer, batch, report):
    if report.operand in ("x", "y"):
        return [
            f"{report.operand} holds {report.value} at {report.index}: look for missing values, or for a division by a "
            "standard deviation that is zero."
        ]
    if report.twin_is_finite and not report.at_the_edge:
        return [f"{_FINITE[:1].upper()}{_FINITE[1:]}: {_SUSPECT}."]
    data = list(_of_the_data(trainer, batch))
    return [*data, *_of_the_weights(trainer, report), *_of_the_rate(trainer, report, data)]


def _of_the_data(trainer, batch):
    x, y = trainer.model._input(batch.x), np.asarray(batch.y)
    for name, a in (("x", x), ("y", y)):
        if a.dtype.kind == "f" and a.size and (size := float(np.abs(a).max())) > LARGE_INPUT:
            where = tuple(int(i) for i in np.unravel_index(int(np.abs(a).argmax()), a.shape))
            what = "data.Standardizer" if name == "x" else "and bring predictions back the same way"
            yield (
                f"Standardise {name}, to mean 0 and deviation 1 ({what}): it reaches {a[where]:.4g} at {where}."
                if size < 1e6
                else f"Look at {name}: it reaches {a[where]:.4g} at {where}; is that a number of your data?"
            )


def _of_the_weights(trainer, report):
    """Weights far wider than an initialisation makes them, early on, which the learning rate cannot have made."""
    if trainer.update > EARLY or not report.first_ratios or max(report.first_ratios.values()) > LARGE_RATIO:
        return
    wide = []
    for path, parameter in trainer.model.named_parameters():
        if parameter.value.ndim >= 2:
            usual = math.sqrt(2 * parameter.value.shape[-1] / parameter.value.size)
            deviation = norm(parameter.value) / math.sqrt(parameter.value.size)
            if WIDE * usual < deviation < math.inf:
                wide.append(f"{path} ({deviation:.2g} against {usual:.2g})")
    if wide:
        since = f" by now, after {trainer.update} updates" if trainer.update else ""
        yield (
            f"Draw smaller initial weights (init='he'): the standard deviation of {', '.join(wide)}{since} is far "
            "above He's sqrt(2 / inputs), and the learning rate is not too high for such."
        )


def _of_the_rate(trainer, report, data):
    losses, ratios = report.losses, report.first_ratios
    worst = max(ratios, key=ratios.get, default=None)
    text = f"Lower the learning rate, {report.lr:g}"
    if data:  # it makes the gradients what they are
        text = f"If it still diverges then, lower the learning rate, {report.lr:g}"
    elif worst is not None and ratios[worst] > LARGE_RATIO:
        lower = _rounded(report.lr * USUAL_RATIO / ratios[worst])
        text += (
            f": from freshly drawn weights, one update on this batch would change those of layer {worst} by "
            f"{ratios[worst]:.2g} times their size; at {lower}, by a hundredth"
        )
    elif len(losses) > 1 and losses[-1] > 1.5 * min(losses):
        text += f": the loss went from {min(losses):.4g} to {losses[-1]:.4g} in the last {len(losses)} updates"
    yield text + ". trainer.find_lr(train) looks for a rate."
    if trainer.clip_norm is None:
        recurrent = any(isinstance(module, _Recurrent) for _, module in trainer.model.modules())
        why = ", which a recurrent network needs" if recurrent else ""
        yield f"Clip the gradient{why}: Trainer(..., clip_norm=1.0)."


def _rounded(value):
    """One digit."""
    return f"{value:.0e}" if not 1e-3 <= value < 1 else f"{float(f'{value:.0e}'):g}"
