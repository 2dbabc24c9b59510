"""Gradient check: backpropagation against central differences."""

from dataclasses import dataclass, field

import numpy as np

from .batches import Batch
from .losses import CrossEntropy


@dataclass
class GradientReport:
    """What `gradcheck` found.

    Attributes
    ----------
    passed : bool
    worst_name : str
        The parameter (or "x") with the largest error, with the index of the entry.
    worst_error : float
        |analytic - numeric| / (|analytic| + |numeric|) there, after the rounding noise of the loss, 16 ulp of it over
        eps, was taken off the difference: an entry that is exactly zero passes.
    errors : dict
        From parameter name to its largest relative error.
    entries : int
        How many entries were compared.
    tolerance : float
    """

    passed: bool
    worst_name: str
    worst_error: float
    analytic: float
    numeric: float
    errors: dict = field(repr=False)
    entries: int
    tolerance: float

    def __str__(self):
        lines = [f"{name:<24} {error:.2e}" for name, error in self.errors.items()]
        verdict = "passed" if self.passed else "FAILED"
        lines.append(
            f"{verdict}: worst {self.worst_name}, relative error {self.worst_error:.2e} "
            f"(tolerance {self.tolerance:.0e}), "
            f"analytic {self.analytic:.6e}, numeric {self.numeric:.6e}; {self.entries} entries"
        )
        return "\n".join(lines)

    def __bool__(self):
        return self.passed


def gradcheck(
    model, x, y, *, lengths=None, loss=None, eps=1e-5, tolerance=1e-5, entries=200, seed=0, check_input=False
):
    """Compare a model's gradients with central differences, (L(p + eps) - L(p - eps)) / (2 eps), entry by entry.

    Parameters
    ----------
    model : nn.Module
        Of dtype float64: float32 differences carry no more than three digits.
    x, y : arrays
        One batch; keep it small.
    lengths : integers of shape (batch,), optional
        Steps of each sequence.
    loss : losses.Loss, optional
        Default: CrossEntropy(), or MeanSquaredError() where y are floats.
    eps : float
        Step of the difference. An activation with a kink within eps of an input shows as an error there.
    tolerance : float
        Largest relative error that passes.
    entries : int
        At most so many entries of each parameter are checked, drawn by `seed`.
    check_input : bool
        Check dL/dx too.

    Returns
    -------
    GradientReport
        True in a condition where the check passed. The model is left as it was, running statistics included.
    """
    if model.dtype != np.float64:
        raise ValueError(f"model: expected dtype float64 (differences in {model.dtype} carry too few digits)")
    loss = loss or default_loss(y)
    x = np.array(model._input(x))
    work = model._training_work()
    work.training, work.seed, work.update = True, seed, 0
    batch = Batch(x, y, lengths)
    buffers = model.buffers.copy()

    def value():
        model.buffers[...] = buffers
        return loss(*batch.through(model, work))[0]

    model.buffers[...] = buffers
    at_start, gradient = loss(*batch.through(model, work))
    noise = 16 * np.finfo(np.float64).eps * abs(at_start) / eps
    dx = model._backward(gradient, work, check_input)
    analytic = {name: (p.value, p.gradient.copy()) for name, p in model.named_parameters() if p.trainable}
    if check_input:
        analytic["x"] = (x, np.array(dx))
    rng = np.random.default_rng(seed)
    rows = [_compare(name, array, gradient, value, eps, entries, rng) for name, (array, gradient) in analytic.items()]
    model.buffers[...] = buffers
    return _report(rows, tolerance, noise)


def default_loss(y):
    """What is meant where no loss is given."""
    from .losses import MeanSquaredError

    return MeanSquaredError() if np.asarray(y).dtype.kind == "f" else CrossEntropy()


def _compare(name, array, gradient, value, eps, entries, rng):
    """Central differences at chosen entries of one array: (name, indices, analytic, numeric)."""
    flat = array.reshape(-1)
    chosen = np.sort(rng.choice(flat.size, min(entries, flat.size), replace=False))
    numeric = np.empty(len(chosen))
    for i, position in enumerate(chosen):
        kept = flat[position]
        flat[position] = kept + eps
        above = value()
        flat[position] = kept - eps
        below = value()
        flat[position] = kept
        numeric[i] = (above - below) / (2 * eps)
    indices = [tuple(int(k) for k in np.unravel_index(position, array.shape)) for position in chosen]
    return name, indices, gradient.reshape(-1)[chosen], numeric


def _report(rows, tolerance, noise):
    errors, worst = {}, (-1.0, "", 0.0, 0.0)
    for name, indices, a, n in rows:
        error = np.maximum(np.abs(a - n) - noise, 0.0) / np.maximum(np.abs(a) + np.abs(n), 1e-300)
        error[~np.isfinite(error)] = np.inf
        i = int(error.argmax())
        errors[name] = float(error[i])
        if error[i] > worst[0]:
            worst = (float(error[i]), f"{name}{list(indices[i])}", float(a[i]), float(n[i]))
    return GradientReport(
        passed=worst[0] <= tolerance,
        worst_name=worst[1],
        worst_error=worst[0],
        analytic=worst[2],
        numeric=worst[3],
        errors=errors,
        entries=sum(len(i) for _, i, _, _ in rows),
        tolerance=tolerance,
    )
