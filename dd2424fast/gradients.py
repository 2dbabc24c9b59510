"""Gradient check: backpropagation against central differences, and in words what is wrong with it."""

from dataclasses import dataclass, field

import numpy as np

from .configuration import integer_in, positive_integer, real_in
from .differences import KINK, Differences, FunctionSubject, ModelSubject
from .losses import CrossEntropy


@dataclass
class GradientReport:
    """What `gradcheck` or `gradcheck_function` found.

    Attributes
    ----------
    passed : bool
    worst_name : str
        The parameter (or "x") with the largest error, with the index of the entry, or the number of the direction.
    worst_error : float
        |analytic - numeric| / (|analytic| + |numeric|) there, after the rounding noise of the loss, 16 ulp of it over
        eps, was taken off the difference: an entry that is exactly zero passes. It prints as "rounding" where nothing
        is left.
    errors : dict
        From parameter name to its largest relative error.
    entries : int
        How many entries, or directions, were compared.
    tolerance : float
    set_aside : int
        How many of them did not agree since the loss has a kink there (a ReLU at zero, a maximum of two equal numbers):
        with a smaller step, or at points nearby, they do. A wrong gradient is wrong there too, and is not among them.
    explanation : list of str
        What is wrong, in words; empty where the check passed. A cause is named only where it explains the numbers to
        rounding.
    """

    passed: bool
    worst_name: str
    worst_error: float
    analytic: float
    numeric: float
    errors: dict = field(repr=False)
    entries: int
    tolerance: float
    set_aside: int = 0
    explanation: list = field(default_factory=list, repr=False)

    def __str__(self):
        width = max(24, *map(len, self.errors))
        lines = [f"{name:<{width}} {_shown(error)}" for name, error in self.errors.items()]
        verdict = "passed" if self.passed else "FAILED"
        found = f"relative error {self.worst_error:.2e}" if self.worst_error else "no more than rounding"
        lines.append(
            f"{verdict}: worst {self.worst_name}, {found} (tolerance {self.tolerance:.0e}), "
            f"analytic {self.analytic:.6e}, numeric {self.numeric:.6e}; {self.entries} entries"
        )
        if self.set_aside:
            lines.append(f"{self.set_aside} of them lie at a kink of the loss and were set aside")
        lines += [f"- {sentence}" for sentence in self.explanation]
        return "\n".join(lines)

    def __bool__(self):
        return self.passed


def _shown(error):
    return f"{error:.2e}" if error else "rounding"


def gradcheck(
    model,
    x,
    y,
    *,
    lengths=None,
    loss=None,
    eps=1e-5,
    tolerance=1e-5,
    entries=200,
    directions=0,
    seed=0,
    check_input=False,
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
        Step of the difference. An entry that does not agree is tried with smaller steps and at points nearby too, so
        that an activation's kink within eps does not count; see `GradientReport.set_aside`.
    tolerance : float
        Largest relative error that passes.
    entries : int
        At most so many entries of each parameter are checked, drawn by `seed`.
    directions : int
        Where above 0: instead of entries, the derivatives along so many random directions v of each parameter, <g, v>
        against (L(p + eps v) - L(p - eps v)) / (2 eps). That reads every entry of a large parameter for two passes a
        direction. Entries are looked at only to explain what failed.
    check_input : bool
        Check dL/dx too.

    Returns
    -------
    GradientReport
        True in a condition where the check passed; where not, its `explanation` says what is known of the mistake. The
        model is left as it was, running statistics included.

    Notes
    -----
    Where a Sequential fails, each of its layers and the loss are checked by themselves, to name the one to blame.
    """
    from .gradient_mistakes import explain, facts_of_model, model_layers

    if model.dtype != np.float64:
        raise ValueError(f"model: expected dtype float64 (differences in {model.dtype} carry too few digits)")
    loss = loss or default_loss(y)
    settings = _settings(eps, tolerance, entries, directions, seed)
    subject = ModelSubject(model, x, y, lengths, loss, seed, check_input)
    try:
        return _checked(
            subject, settings, explain, lambda: (model_layers(subject), facts_of_model(subject, loss), subject)
        )
    finally:
        subject.restore()


def gradcheck_function(
    function,
    parameters,
    *,
    batch_size=None,
    classes=None,
    time_steps=None,
    l2=None,
    dropout=None,
    eps=1e-5,
    tolerance=1e-5,
    entries=200,
    directions=0,
    seed=0,
):
    """Check gradients that you computed yourself, in NumPy say, and explain what is wrong with them.

    Parameters
    ----------
    function : callable
        `function(parameters)` returns (loss, gradients). It is called with float64 arrays, nested as `parameters` are,
        and returns their gradients nested likewise; it must give the same loss when it is called again.
    parameters : dict or list of arrays, or of lists or dicts of them
        Such as {"W1": ..., "b1": ..., "W2": ..., "b2": ...} or {"W": [...], "b": [...]}. Copied. Numbers in the names
        are taken for those of the layers, from the input to the output; names with "gamma" or "beta" for a batch
        normalisation behind the layer's product.
    batch_size, classes, time_steps : int, optional
        What the loss may be a mean over: a factor of one of them is then named as such. `classes` is by default the
        size of the last bias.
    l2 : float, optional
        lambda, where the loss is data loss + lambda * sum(W^2).
    dropout : float, optional
        Probability of zeroing.
    eps, tolerance, entries, directions, seed : see `gradcheck`

    Returns
    -------
    GradientReport
        True in a condition where the check passed.

    Raises
    ------
    TypeError, ValueError
        The function changes its parameters, computes in float32, is not deterministic, or gives no gradient of one of
        them; the message says which.

    Examples
    --------
    >>> import numpy as np
    >>> from dd2424fast import gradcheck_function
    >>> X, Y = np.array([[1.0, 2.0, 4.0], [0.5, -1.0, 0.0]]), np.array([[1.0, 0.0, 2.0]])
    >>> def loss_and_gradients(p):
    ...     error = p["W"] @ X + p["b"] - Y
    ...     return np.mean(error**2), {"W": 2 * error @ X.T, "b": 2 * error.mean(axis=1, keepdims=True)}
    >>> report = gradcheck_function(loss_and_gradients, {"W": [[0.1, 0.2]], "b": [[0.0]]}, batch_size=3)
    >>> print(report.explanation[0])
    The gradient of W is 3 times too large: summed over the batch of 3 where the loss is the mean.
    """
    from .gradient_mistakes import Facts, explain, function_layers

    if not callable(function):
        raise TypeError(f"function: expected a function of the parameters, got {type(function).__name__}")
    sizes = {"batch_size": batch_size, "classes": classes, "time_steps": time_steps}
    sizes = {name: None if size is None else positive_integer(name, size) for name, size in sizes.items()}
    l2 = None if l2 is None else real_in("l2", l2, 0, np.inf, include_high=False)
    dropout = None if dropout is None else real_in("dropout", dropout, 0, 1, include_high=False)
    settings = _settings(eps, tolerance, entries, directions, seed)
    subject = FunctionSubject(function, parameters)
    facts = Facts(**sizes, l2=l2, dropout=() if not dropout else (dropout,))
    return _checked(subject, settings, explain, lambda: (function_layers(subject.arrays), facts, None))


def _settings(eps, tolerance, entries, directions, seed):
    return (
        real_in("eps", eps, 0, 1, include_low=False),
        real_in("tolerance", tolerance, 0, np.inf),
        positive_integer("entries", entries),
        integer_in("directions", directions, 0),
        integer_in("seed", seed, 0),
    )


def default_loss(y):
    """What is meant where no loss is given."""
    from .losses import MeanSquaredError

    return MeanSquaredError() if np.asarray(y).dtype.kind == "f" else CrossEntropy()


def _checked(subject, settings, explain, known):
    """Measure a subject and report; `known()` gives what else `explain` needs to know."""
    eps, tolerance, entries, directions, seed = settings
    differences = Differences(subject, eps, tolerance, seed)
    if directions:
        measured = [differences.directions(name, directions) for name in subject.arrays]
    else:
        measured = [differences.entries(name, entries) for name in subject.arrays]
    report = _report(measured, tolerance)
    if not report.passed:
        if directions:
            measured = [differences.entries(name, entries) for name in subject.arrays]
        report.explanation = explain(differences, {m.name: m for m in measured}, *known())
    return report


def _report(measured, tolerance):
    errors, worst = {}, (-1.0, "", 0.0, 0.0)
    for m in measured:
        if not len(m.ways):
            continue
        i = int(m.error.argmax())
        errors[m.name] = float(m.error[i])
        if m.error[i] > worst[0]:
            worst = (float(m.error[i]), m.label(i), float(m.computed[i]), float(m.numeric[i]))
    return GradientReport(
        passed=worst[0] <= tolerance,
        worst_name=worst[1],
        worst_error=worst[0],
        analytic=worst[2],
        numeric=worst[3],
        errors=errors,
        entries=sum(len(m.ways) for m in measured),
        tolerance=tolerance,
        set_aside=sum(int((m.verdict == KINK).sum()) for m in measured),
    )
