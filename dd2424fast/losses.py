"""Loss functions: each gives the loss and its gradient in one pass."""

import numpy as np

from . import kernels
from .configuration import Configured, real_in


class Loss(Configured):
    """Base of the losses: `loss(outputs, targets, sample_weight=None)` returns (mean loss in nats or squared units,
    gradient)."""

    classifies = False

    def __call__(self, outputs, targets, sample_weight=None):
        return self.run(outputs, targets, sample_weight, np.empty_like(outputs))

    def run(self, outputs, targets, sample_weight, gradient):
        """The same, with memory for the gradient."""
        raise NotImplementedError

    def weight_of(self, targets, sample_weight):
        """What a batch's mean loss weighs in the mean over several batches."""
        return float(len(targets) if sample_weight is None else np.sum(sample_weight))


class CrossEntropy(Loss):
    """Softmax cross-entropy of logits (N, K) and integer labels (N,).

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
        if smoothing not in ("uniform", "others"):
            raise ValueError(f"smoothing: expected 'uniform' or 'others', got {smoothing!r}")
        self.smoothing = smoothing
        self.class_weight = None if class_weight is None else np.asarray(class_weight, dtype=np.float64)
        self.ignore_index = int(ignore_index)

    def run(self, outputs, targets, sample_weight, gradient):
        return kernels.softmax_cross_entropy(
            outputs,
            targets,
            self.label_smoothing,
            self.smoothing,
            self._weights(outputs),
            sample_weight,
            self.ignore_index,
            gradient,
        )

    def _weights(self, outputs):
        weight = self.class_weight
        if weight is not None and weight.dtype != outputs.dtype:
            weight = weight.astype(outputs.dtype)
        return weight

    def weight_of(self, targets, sample_weight):
        counted = targets != self.ignore_index
        if sample_weight is None and self.class_weight is None:
            return float(np.count_nonzero(counted))
        weight = np.ones(len(targets)) if sample_weight is None else np.asarray(sample_weight, dtype=np.float64)
        if self.class_weight is not None:
            weight = weight * self.class_weight[np.where(counted, targets, 0)]
        return float(weight[counted].sum())


class BinaryCrossEntropy(Loss):
    """Sigmoid cross-entropy of logits (N, K) and targets (N, K) in [0, 1]:
    the mean over the batch of 1/K times the sum over the classes."""

    def run(self, outputs, targets, sample_weight, gradient):
        return kernels.binary_cross_entropy(outputs, targets, sample_weight, gradient)


class MeanSquaredError(Loss):
    """Mean over all elements of (prediction - target)^2."""

    def run(self, outputs, targets, sample_weight, gradient):
        return kernels.mean_squared_error(outputs, targets, sample_weight, gradient)
