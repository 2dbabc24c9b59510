"""Derivatives of a loss by central differences, which know a kink from a mistake."""

import contextlib
from dataclasses import dataclass

import numpy as np

from .batches import Batch
from .nn.module import Workspace

RIGHT, KINK, WRONG = range(3)


@dataclass
class Measured:
    """One array's derivatives, the code's and by differences.

    Attributes
    ----------
    name : str
    value : ndarray
        The array itself.
    analytic : ndarray
        Its gradient as the code gives it, whatever its shape.
    ways : sequence of int, or of ndarray
        Along what was measured: entries, by their place in the flattened array, or directions of norm 1.
    computed, numeric : ndarray of shape (ways,)
        The derivatives along them.
    error : ndarray of shape (ways,)
        Relative, the rounding noise taken off; 0 where a kink explains it.
    verdict : ndarray of shape (ways,)
        RIGHT, KINK or WRONG.
    clean : ndarray of shape (ways,), bool
        Whether the difference may be trusted: no kink lies in it.
    noise : ndarray of shape (ways,)
        Of the difference, from the rounding of the loss.
    """

    name: str
    value: np.ndarray
    analytic: np.ndarray
    ways: object
    computed: np.ndarray
    numeric: np.ndarray
    error: np.ndarray
    verdict: np.ndarray
    clean: np.ndarray
    noise: np.ndarray

    @property
    def wrong(self):
        return bool((self.verdict == WRONG).any())

    def label(self, i):
        """The i-th way as text: the entry's index, or the direction's number."""
        if isinstance(self.ways[i], np.ndarray):
            return f"{self.name} along direction {i}"
        index = np.unravel_index(self.ways[i], self.value.shape)
        return f"{self.name}{[int(k) for k in index]}"


class Differences:
    """Measures a subject: something with arrays, a loss and gradients.

    Parameters
    ----------
    subject : with `arrays`, a dict from name to a contiguous float64 array, which may be moved in place; `loss()`, the
        loss where they are now; `gradients()`, the code's gradients there, a dict of arrays of its own
    eps, tolerance, seed : see `gradcheck`
    """

    confirmed = 8  # so many wrong entries of an array are looked at again elsewhere; the others are then wrong too
    moved = 12  # nearby points at most; the first that say the same decide

    def __init__(self, subject, eps, tolerance, seed):
        self.subject, self.eps, self.tolerance = subject, eps, tolerance
        self.rng = np.random.default_rng(seed)
        self.at_start = subject.loss()
        self.analytic = subject.gradients()
        self.noise = 16 * np.finfo(np.float64).eps * abs(self.at_start) / eps
        self._elsewhere = []

    def entries(self, name, most):
        """Measure at most so many entries of an array."""
        size = self.subject.arrays[name].size
        return self._measured(name, np.sort(self.rng.choice(size, min(most, size), replace=False)))

    def directions(self, name, count):
        """Measure an array along random directions."""
        size = self.subject.arrays[name].size
        ways = [self.rng.standard_normal(size) for _ in range(count)]
        return self._measured(name, [way / np.linalg.norm(way) for way in ways])

    def _measured(self, name, ways):
        value, analytic = self.subject.arrays[name], self.analytic[name]
        if analytic.shape == value.shape:
            computed = np.array([_along(analytic, way) for way in ways])
        else:
            computed = np.full(len(ways), np.nan)
        numeric = np.array([self.slope(name, way, self.eps)[0] for way in ways])
        noise = np.full(len(ways), self.noise)
        m = Measured(name, value, analytic, ways, computed, numeric, None, None, np.isfinite(numeric), noise)
        m.error = self.errors(m)
        m.verdict = np.where(m.error <= self.tolerance, RIGHT, WRONG)
        self._judge(m)
        return m

    def errors(self, m):
        """|computed - numeric| / (|computed| + |numeric|), the noise taken off; in a direction, over at least the size
        that such a derivative most often has."""
        size = np.abs(m.computed) + np.abs(m.numeric)
        if m.ways is not None and len(m.ways) and isinstance(m.ways[0], np.ndarray):
            size = np.maximum(size, np.sqrt(np.mean(np.square(m.analytic))))
        with np.errstate(invalid="ignore"):
            error = np.maximum(np.abs(m.computed - m.numeric) - self.noise, 0.0) / np.maximum(size, 1e-300)
        error[~np.isfinite(error)] = np.inf
        return error

    def slope(self, name, way, step):
        """(The central difference, by how much the slopes of its two halves differ): L(p + step v) - L(p - step v) over
        2 step, and L(p + step v) - 2 L(p) + L(p - step v) over step, the middle one that at the start."""
        flat = self.subject.arrays[name].reshape(-1)
        if isinstance(way, np.ndarray):
            kept = flat.copy()
            flat[:] = kept + step * way
            above = self.subject.loss()
            flat[:] = kept - step * way
            below = self.subject.loss()
            flat[:] = kept
        else:
            kept = flat[way]
            flat[way] = kept + step
            above = self.subject.loss()
            flat[way] = kept - step
            below = self.subject.loss()
            flat[way] = kept
        return (above - below) / (2 * step), (above - 2 * self.at_start + below) / step

    def _judge(self, m):
        """Set aside what a kink explains, and mark the differences that one spoils."""
        real = 0
        for i in np.flatnonzero((m.verdict == WRONG) & np.isfinite(m.computed)):
            refined, m.clean[i] = self._refined(m.name, m.ways[i])
            if refined is not None and self._agree(m.computed[i], refined, 10 * self.noise):
                m.verdict[i], m.error[i] = KINK, 0.0
            elif real < self.confirmed:
                if self._agrees_elsewhere(m.name, m.ways[i], m.clean[i]):
                    m.verdict[i], m.error[i] = KINK, 0.0
                else:
                    real += 1
            if m.verdict[i] == WRONG and refined is not None:
                m.numeric[i], m.noise[i] = refined, 10 * self.noise

    def _refined(self, name, way):
        """(The slope by a tenth of the step, where it differs from that by the whole step: then a kink lies between;
        else None. Whether a slope is to be trusted)."""
        coarse, gap = self.slope(name, way, self.eps)
        fine, fine_gap = self.slope(name, way, self.eps / 10)
        if self._agree(coarse, fine, 20 * self.noise):
            return None, not self._has_corner(gap, fine_gap, 80 * self.noise)
        finer, finer_gap = self.slope(name, way, self.eps / 100)
        steady = self._agree(fine, finer, 200 * self.noise)
        return fine, steady and not self._has_corner(fine_gap, finer_gap, 800 * self.noise)

    @staticmethod
    def _has_corner(gap, smaller, noise):
        """A curve's two halves come closer as the step gets smaller; those of a kink do not."""
        return abs(smaller) > max(abs(gap) / 2, noise)

    def _agree(self, a, b, noise):
        return bool(abs(a - b) - noise <= self.tolerance * (abs(a) + abs(b)))

    def _agrees_elsewhere(self, name, way, smooth):
        """Whether code and difference agree at points nearby: a kink is passed there, a mistake is not. Where no kink
        was seen (two may look like none) they must agree at more points, and at all. A point where both are zero, since
        a unit is dead there, tells nothing."""
        votes = []
        for k in range(self.moved):
            if k == len(self._elsewhere):
                self._elsewhere.append(self._point())
            shifts, analytic = self._elsewhere[k]
            if analytic[name].shape != self.subject.arrays[name].shape:
                return False
            computed = _along(analytic[name], way)
            with shifted(self.subject.arrays, shifts):
                steps = [(self.slope(name, way, self.eps / k)[0], k * self.noise) for k in (1, 10)]
            if max(abs(computed), *(abs(slope) for slope, _ in steps)) > 100 * self.noise:
                votes.append(any(self._agree(computed, slope, noise) for slope, noise in steps))
            if smooth and False in votes:
                return False
            if votes.count(False) == 2 or votes.count(True) == (6 if smooth else 2):
                break
        return votes.count(True) > votes.count(False)

    def _point(self):
        """A random point nearby: (shifts of all arrays, the code's gradients there)."""
        shifts = {}
        for name, a in self.subject.arrays.items():
            size = 1e-3 * (np.sqrt(np.mean(np.square(a))) or 1.0)
            shifts[name] = size * self.rng.standard_normal(a.shape)
        with shifted(self.subject.arrays, shifts):
            return shifts, self.subject.gradients()


def _along(gradient, way):
    flat = gradient.reshape(-1)
    return float(flat @ way if isinstance(way, np.ndarray) else flat[way])


@contextlib.contextmanager
def shifted(arrays, shifts):
    """Move arrays in place, and put them back bit for bit."""
    kept = {name: arrays[name].copy() for name in shifts}
    try:
        for name, shift in shifts.items():
            arrays[name] += shift
        yield
    finally:
        for name, a in kept.items():
            arrays[name][...] = a


# ---- what can be checked ---------------------------------------------------------------------------------------------


class ModelSubject:
    """A model's loss on one batch, as a function of its trained parameters and, where asked for, of x."""

    def __init__(self, model, x, y, lengths, loss, seed, check_input):
        self.model, self._loss, self._check_input = model, loss, check_input
        x = np.array(model._input(x))
        self.batch = Batch(x, y, lengths)
        self._work = model._training_work()
        self._work.training, self._work.seed, self._work.update = True, seed, 0
        self._buffers = model.buffers.copy()
        self._trained = [name for name, p in model.named_parameters() if p.trainable]
        self._parameters = dict(model.named_parameters())
        self.arrays = {name: self._parameters[name].value for name in self._trained}
        if check_input:
            self.arrays["x"] = x

    def loss(self):
        self.model.buffers[...] = self._buffers
        return self._loss(*self.batch.through(self.model, self._work))[0]

    def gradients(self):
        self.model.buffers[...] = self._buffers
        _, gradient = self._loss(*self.batch.through(self.model, self._work))
        dx = self.model._backward(gradient, self._work, self._check_input)
        found = {name: self._parameters[name].gradient.copy() for name in self._trained}
        return {**found, "x": np.array(dx)} if self._check_input else found

    def restore(self):
        """Put the running statistics back."""
        self.model.buffers[...] = self._buffers


class LayerSubject:
    """One layer by itself, on the input that it has in its model: <v, layer(x)> with a random v for a loss."""

    def __init__(self, layer, x, v, seed):
        self._layer, self._v, self._x = layer, v, x.copy()
        self._work = Workspace(training=True)
        self._work.seed = seed
        self._parameters = {name: p for name, p in layer.named_parameters() if p.trainable}
        self.arrays = {name: p.value for name, p in self._parameters.items()}
        if x.dtype.kind == "f":
            self.arrays["x"] = self._x

    def _forward(self):
        # A layer may keep its input, and a result may be memory of the workspace.
        return np.array(self._layer._forward(self._x.copy(), self._work))

    def loss(self):
        return float((self._forward() * self._v).sum())

    def gradients(self):
        self._forward()
        dx = self._layer._backward(self._v.copy(), self._work, True)
        found = {name: p.gradient.copy() for name, p in self._parameters.items()}
        return {**found, "x": np.array(dx)} if "x" in self.arrays else found


class LossSubject:
    """A loss as a function of the network's outputs."""

    def __init__(self, loss, outputs, y, weight):
        self._loss, self._rest = loss, (y, weight)
        self.arrays = {"outputs": outputs.copy()}

    def loss(self):
        return self._loss(self.arrays["outputs"], *self._rest)[0]

    def gradients(self):
        return {"outputs": np.array(self._loss(self.arrays["outputs"], *self._rest)[1])}


class FunctionSubject:
    """A user's function of nested arrays that returns the loss and the gradients.

    Parameters
    ----------
    function : callable
    parameters : dict or list of arrays, or of such
        Copied, as float64.
    """

    def __init__(self, function, parameters):
        self._function = function
        self.arrays = {}
        self._parameters = self._copied(parameters, "")
        if not self.arrays:
            raise ValueError("parameters: expected at least one array, got none")
        before = {name: a.copy() for name, a in self.arrays.items()}
        first = self.loss()
        for name, a in before.items():
            if not np.array_equal(a, self.arrays[name]):
                raise ValueError(
                    f"function: it changed {name} in place; the gradient belongs to the parameters as they came"
                )
        if self.loss() != first:
            raise ValueError(
                "function: two calls with the same parameters gave different losses; draw its random numbers (dropout, "
                "batches) from a generator that is seeded inside it"
            )

    def _copied(self, tree, path):
        """A copy of nested dicts and lists whose leaves are float64 arrays, each noted by name."""
        if isinstance(tree, dict):
            return {key: self._copied(value, f"{path}.{key}" if path else str(key)) for key, value in tree.items()}
        if _holds_arrays(tree):
            return [self._copied(value, f"{path or 'parameters'}[{i}]") for i, value in enumerate(tree)]
        try:
            a = np.array(tree, dtype=np.float64, order="C")
        except (TypeError, ValueError):
            raise TypeError(
                f"{path or 'parameters'}: expected an array of numbers, got {type(tree).__name__}"
            ) from None
        if not np.isfinite(a).all():
            raise ValueError(f"{path or 'parameters'}: expected finite numbers")
        self.arrays[path or "parameters"] = a
        return a

    def loss(self):
        return self._called()[0]

    def _called(self):
        result = self._function(self._parameters)
        if not isinstance(result, tuple) or len(result) != 2:
            raise TypeError(f"function: expected it to return (loss, gradients), got {type(result).__name__}")
        loss, gradients = result
        if np.size(loss) != 1 or np.asarray(loss).dtype.kind not in "fiu":
            raise TypeError(f"function: expected the loss as one number, got {loss!r}")
        if np.asarray(loss).dtype.itemsize < 8:
            raise ValueError(
                f"function: the loss is {np.asarray(loss).dtype}, whose differences carry three digits at most; the "
                "parameters come as float64: convert the data too"
            )
        return float(np.asarray(loss).reshape(())), gradients

    def gradients(self):
        gradients = self._called()[1]
        return self._matched(self._parameters, gradients, "", "gradients")

    def _matched(self, tree, gradients, path, shown):
        """The gradients by the parameters' names."""
        if isinstance(tree, np.ndarray):
            try:
                a = np.array(gradients, dtype=np.float64)
            except (TypeError, ValueError):
                raise TypeError(f"{shown}: expected an array of numbers, got {type(gradients).__name__}") from None
            return {path or "parameters": a}
        found = {}
        for key, value in tree.items() if isinstance(tree, dict) else enumerate(tree):
            if isinstance(tree, dict):
                name, inner = (f"{path}.{key}" if path else str(key)), f"{shown}[{key!r}]"
            else:
                name, inner = f"{path or 'parameters'}[{key}]", f"{shown}[{key}]"
            try:
                given = gradients[key]
            except (KeyError, IndexError, TypeError):
                raise ValueError(f"{inner}: expected the gradient of {name}, got none") from None
            found.update(self._matched(value, given, name, inner))
        return found


def _holds_arrays(tree):
    """Whether it is a list of arrays (or of lists or dicts of them), not a list of numbers."""
    return isinstance(tree, list | tuple) and any(
        isinstance(value, np.ndarray | dict) or _holds_arrays(value) for value in tree
    )
