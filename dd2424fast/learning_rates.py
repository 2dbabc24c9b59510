"""The search for a learning rate: a range test (Smith 2017, arXiv:1506.01186, section 3.3)."""

import contextlib
import itertools
import math
from collections import deque
from dataclasses import dataclass

import numpy as np

from . import plots
from .batches import Batches
from .configuration import integer_in, positive_integer, real_in
from .training import TrainingDiverged

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
    with _as_it_was(trainer):
        first = trainer.update
        trainer.schedule = lambda update: float(rates[update - first])
        trainer._outputs, trainer._recent, trainer._replays = None, deque(maxlen=1), False
        for i, batch in enumerate(_endless(batches, trainer, augment)):
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


def _endless(batches, trainer, augment):
    """The batches of the trainer's epoch and of those after it, without those that have nothing to learn from."""
    for epoch in itertools.count(trainer.epoch):
        some = False
        for batch in batches.of_epoch(epoch, 0):
            if batch.begins:
                trainer.model._training_work().carried = None
            if augment is not None:
                trainer._augment(batch, augment)
            if not trainer._all_ignored(batch):
                some = True
                yield batch
        if not some:
            raise ValueError("train: expected at least one row, and one label in y that counts, got none")


@contextlib.contextmanager
def _as_it_was(trainer):
    """Undo all that updates do to a trainer, its model and its optimizer."""
    model, optimizer, work = trainer.model, trainer.optimizer, trainer.model._training_work()
    vectors = [(a, a.copy()) for a in (model.parameters, model.gradients, model.buffers, *optimizer.state.values())]
    carried = work.carried and tuple(np.array(state) for state in work.carried)
    trainer_state, names, updates = dict(trainer.__dict__), set(optimizer.state), optimizer.updates
    try:
        yield
    finally:
        for a, before in vectors:
            a[...] = before
        work.carried = carried
        if not names:
            optimizer.state, optimizer._parameters = {}, None  # they are made at the first update
        optimizer.updates = updates
        trainer.__dict__.update(trainer_state)
