"""The search for a learning rate: a range test (Smith 2017, arXiv:1506.01186, section 3.3)."""

import math
from dataclasses import dataclass

import numpy as np

from . import plots
from .batches import Batches
from .configuration import integer_in, positive_integer, real_in
from .errors import TrainingDiverged
from .rehearsal import as_it_was, endless

_DECAY = 0.9  # of the smoothed loss
_BEYOND = 4.0  # times the lowest smoothed loss: training has been lost


@dataclass
class RangeTest:
    """What the loss does as the learning rate grows.

    Attributes
    ----------
    rates : ndarray of float64
        Of the updates that were made.
    losses : ndarray of float64
        Of each update's batch, before it.
    smoothed : ndarray of float64
        Their running mean, weighed by 0.9 for every update passed.
    """

    rates: np.ndarray
    losses: np.ndarray
    smoothed: np.ndarray

    @property
    def suggestion(self):
        """A tenth of the rate at which the smoothed loss is lowest, where it still falls well, as fastai has it; None
        where the loss never falls."""
        lowest = int(np.argmin(self.smoothed))
        return float(self.rates[lowest] / 10) if lowest else None

    def plot(self, path=None):
        """Draw the losses against the rate; see `plots.range_test`."""
        return plots.range_test(self, path)

    def __str__(self):
        found = "none, the loss never fell" if self.suggestion is None else f"{self.suggestion:.3g}"
        return f"learning rates from {self.rates[0]:g} to {self.rates[-1]:g}; suggestion: {found}"


def range_test(trainer, train, low, high, updates, batch_size, augment):
    """See `Trainer.find_lr`."""
    low = real_in("low", low, 0, math.inf, include_low=False, include_high=False)
    high = real_in("high", high, low, math.inf, include_low=False, include_high=False)
    updates, batch_size = integer_in("updates", updates, 5), positive_integer("batch_size", batch_size)
    if augment is not None and not callable(augment):
        raise TypeError(f"augment: expected a function of (x, key), got {type(augment).__name__}")
    rates = np.geomspace(low, high, updates)
    batches = Batches(
        train, batch_size, trainer.seed, True, trainer._fewest_rows(()), "train", trainer.model.takes_lengths
    )
    losses, smoothed, mean = [], [], 0.0
    with as_it_was(trainer):
        first = trainer.update
        trainer.schedule = lambda update: float(rates[update - first])
        trainer._outputs, trainer._replays = None, False
        for i, batch in enumerate(endless(batches, trainer, augment)):
            try:
                loss = trainer.step(batch.x, batch.y, batch.lengths, batch.sample_weight)
            except TrainingDiverged:
                break
            mean = _DECAY * mean + (1 - _DECAY) * loss
            losses.append(loss)
            smoothed.append(mean / (1 - _DECAY ** (i + 1)))
            if smoothed[-1] > _BEYOND * min(smoothed) or i + 1 == updates:
                break
    if not losses:
        raise TrainingDiverged("find_lr: the loss is not finite at the first update already", trainer.update)
    return RangeTest(rates[: len(losses)].copy(), np.array(losses), np.array(smoothed))
