"""Loss functions: each gives the loss and its gradient in one pass."""

import numpy as np

from . import kernels
from .configuration import Configured, array_of, integer_in, real_in


class Loss(Configured):
    """Base of the losses: `loss(outputs, targets, sample_weight=None)` returns (mean loss in nats or squared units,
    gradient)."""

    classifies = False
    is_likelihood = False  # whether the mean is that of the labels' negative log-likelihood, in nats

    def __call__(self, outputs, targets, sample_weight=None):
        return self.run(outputs, targets, sample_weight, np.empty_like(outputs))

    def run(self, outputs, targets, sample_weight, gradient):
        """The same, with memory for the gradient."""
        raise NotImplementedError

    def correct(self, outputs, targets):
        """Of a classifier: (rows that were classified rightly, rows that count); (0, 0) where no class is named."""
        return int(np.count_nonzero(outputs.argmax(axis=1) == targets)), len(targets)

    def probabilities(self, outputs):
        """Of a classifier: what its outputs (N, K) say how probable each class is. Here the softmax."""
        return kernels.softmax(outputs)

    def logits(self, p):
        """Of a classifier: outputs that give the probabilities p (N, K); one too small for its dtype counts as the
        smallest that is not."""
        return np.log(np.maximum(p, np.finfo(p.dtype).tiny))

    def weight_of(self, targets, sample_weight):
        """What a batch's mean loss weighs in the mean over several batches."""
        return float(len(targets) if sample_weight is None else np.sum(sample_weight))


class CrossEntropy(Loss):
    """Softmax cross-entropy of logits (N, K) and integer labels (N,), or floats (N, K): rows of probabilities, as
    mixing gives them, which are smoothed as labels are.

    Parameters
    ----------
    label_smoothing : float in [0, 1]
    smoothing : {"uniform", "others"}
        "uniform" spreads eps over all K classes (eps / K each, PyTorch); "others" over the K - 1 wrong ones (the
        course).
    class_weight : array of shape (K,), optional
    ignore_index : int
        Rows with this label count for nothing.
    """

    classifies = True

    def __init__(self, label_smoothing=0.0, smoothing="uniform", class_weight=None, ignore_index=-100):
        self.label_smoothing = real_in("label_smoothing", label_smoothing, 0, 1)
        if not isinstance(smoothing, str) or smoothing not in ("uniform", "others"):
            raise ValueError(f"smoothing: expected 'uniform' or 'others', got {smoothing!r}")
        self.smoothing = smoothing
        self.class_weight = None if class_weight is None else _class_weight(class_weight)
        self.ignore_index = integer_in("ignore_index", ignore_index, -(2**63))

    @property
    def is_likelihood(self):
        return not self.label_smoothing and self.class_weight is None

    def run(self, outputs, targets, sample_weight, gradient):
        return kernels.softmax_cross_entropy(
            outputs,
            _like("targets", targets, outputs) if _distributions(targets) else targets,
            self.label_smoothing,
            self.smoothing,
            _like("class_weight", self.class_weight, outputs),
            _like("sample_weight", sample_weight, outputs),
            self.ignore_index,
            gradient,
        )

    def correct(self, outputs, targets):
        if _distributions(targets):
            return super().correct(outputs, targets.argmax(axis=1))
        counted = targets != self.ignore_index
        right = (outputs.argmax(axis=1) == targets) & counted
        return int(np.count_nonzero(right)), int(np.count_nonzero(counted))

    def weight_of(self, targets, sample_weight):
        if _distributions(targets):
            return super().weight_of(targets, sample_weight)
        counted = targets != self.ignore_index
        if sample_weight is None and self.class_weight is None:
            return float(np.count_nonzero(counted))
        weight = np.ones(len(targets)) if sample_weight is None else np.asarray(sample_weight, dtype=np.float64)
        if self.class_weight is not None:
            weight = weight * self.class_weight[np.where(counted, targets, 0)]
        return float(weight[counted].sum())


def _distributions(targets):
    """Whether targets are rows of probabilities, not labels."""
    return targets.ndim == 2 and targets.dtype.kind == "f"


def _class_weight(weight):
    a = array_of("class_weight", weight)
    if a.dtype.kind not in "fiu":
        raise TypeError(f"class_weight: expected numbers, got {weight!r}")
    if a.ndim != 1 or not (np.isfinite(a) & (a >= 0)).all():
        raise ValueError(f"class_weight: expected finite numbers of at least 0, one a class, got {weight!r}")
    return a.astype(np.float64)


class BinaryCrossEntropy(Loss):
    """Sigmoid cross-entropy of logits (N, K): the mean over the batch of 1/K times the sum over the classes.

    Targets are integer labels (N,), one class a row against all others: the likeliest class is the answer, and there is
    an accuracy. Or numbers (N, K) in [0, 1], any number of classes a row: then there is none.
    """

    classifies = True

    def run(self, outputs, targets, sample_weight, gradient):
        if targets.ndim == 2 and targets.dtype.kind in "iub":
            targets = targets.astype(outputs.dtype)  # one-hot rows; a vector of integers is labels
        targets, weight = _like("targets", targets, outputs), _like("sample_weight", sample_weight, outputs)
        return kernels.binary_cross_entropy(outputs, targets, weight, gradient)

    def correct(self, outputs, targets):
        return super().correct(outputs, targets) if targets.ndim == 1 else (0, 0)

    def probabilities(self, outputs):
        """A sigmoid for each class; they need not sum to 1."""
        return kernels.activation_forward(outputs, "sigmoid")

    def logits(self, p):
        """Outputs that give the probabilities p (N, K); what its dtype cannot tell from 0 or 1 counts as the nearest
        that it can."""
        limits = np.finfo(p.dtype)
        return np.log(np.maximum(p, limits.tiny)) - np.log(np.maximum(1 - p, limits.epsneg))


class MeanSquaredError(Loss):
    """Mean over all elements of (prediction - target)^2."""

    def run(self, outputs, targets, sample_weight, gradient):
        targets, weight = _like("targets", targets, outputs), _like("sample_weight", sample_weight, outputs)
        return kernels.mean_squared_error(outputs, targets, weight, gradient)


def _like(name, numbers, outputs):
    """Floats (and integer weights) as an ndarray of the outputs' dtype: converted once, as the model's input is."""
    if numbers is None or (type(numbers) is np.ndarray and numbers.dtype is outputs.dtype):
        return numbers
    a = array_of(name, numbers)
    if a.dtype.kind not in "fiub":
        raise TypeError(f"{name}: expected numbers, got {type(numbers).__name__} of dtype {a.dtype}")
    return a if a.dtype.kind in "iu" and name == "targets" else a.astype(outputs.dtype)
