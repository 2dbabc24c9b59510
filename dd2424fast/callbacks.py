"""What may happen during `Trainer.fit` beside training.

A callback's `state()` goes into checkpoints, so that a resumed training ends as an uninterrupted one would.
"""

import math
import os

import numpy as np

from .configuration import Configured, positive_integer, real_in


class Callback(Configured):
    """Base: override what you need. Set `trainer.stop_reason` to a text to end training after the current update or
    epoch.

    Attributes
    ----------
    last_update : int or None
        After how many updates in all it will end training, where it knows; for the time left that is shown.
    """

    last_update = None

    def fit_begins(self, trainer):
        """Called once, before the first update."""

    def update_ends(self, trainer, loss):
        """Called after every update with its loss."""

    def epoch_ends(self, trainer, row):
        """Called after every epoch with the row that was added to the history."""

    def fit_ends(self, trainer):
        """Called once at the end, also after an error or Ctrl-C."""

    def state(self):
        """What to keep in a checkpoint: dict of numbers, strings and ndarrays."""
        return {}

    def load_state(self, state):
        """Take up what `state` returned."""
        for name, value in state.items():
            setattr(self, name, value)


class _Monitor(Callback):
    """Watches one column of the history for its best value: the lowest, or for an accuracy the highest."""

    def __init__(self, monitor, min_delta):
        self.monitor = monitor
        self.min_delta = real_in("min_delta", min_delta, 0, math.inf)
        self.best = None
        self.best_epoch = None

    def better(self, row):
        """Whether this epoch is the best so far by more than min_delta; remembers it."""
        if self.monitor not in row:
            raise ValueError(
                f"monitor: the history has no {self.monitor!r}; it has {', '.join(row)} (val_* needs validation data)"
            )
        value = row[self.monitor]
        if math.isnan(value):
            return False
        sign = -1.0 if self.monitor.endswith("accuracy") else 1.0
        if self.best is not None and not sign * value < sign * self.best - self.min_delta:
            return False
        self.best, self.best_epoch = value, row["epoch"]
        return True


class EarlyStopping(_Monitor):
    """End training once the monitored value has not improved for `patience` epochs.

    Parameters
    ----------
    monitor : str
        A column of the history.
    patience : int
        Epochs without an improvement by more than min_delta.
    min_delta : float
    restore_best_weights : bool
        Put the best epoch's parameters and running statistics back at the end.
    """

    def __init__(self, monitor="val_loss", patience=5, min_delta=0.0, restore_best_weights=False):
        super().__init__(monitor, min_delta)
        self.patience = positive_integer("patience", patience)
        self.restore_best_weights = restore_best_weights
        self.waited = 0
        self.weights = None

    def fit_begins(self, trainer):
        self._stop_if_due(trainer)  # resumed from a checkpoint taken when it was already due

    def epoch_ends(self, trainer, row):
        if self.better(row):
            self.waited = 0
            if self.restore_best_weights:
                self.weights = np.concatenate([trainer.model.parameters, trainer.model.buffers])
            return
        self.waited += 1
        self._stop_if_due(trainer)

    def _stop_if_due(self, trainer):
        if self.waited >= self.patience:
            trainer.stop_reason = f"{self.monitor} has not improved for {self.waited} epochs"

    def fit_ends(self, trainer):
        if trainer.stop_reason != "interrupted":  # an interrupted fit goes on later, from where it was
            _put_back(trainer.model, self.weights)
            if self.waited >= self.patience:
                self.waited = 0  # or the next fit with this object would end before it began

    def state(self):
        return {"best": self.best, "best_epoch": self.best_epoch, "waited": self.waited, "weights": self.weights}


def _put_back(model, weights):
    if weights is not None:
        size = model.parameters.size
        model.parameters[...] = weights[:size]
        model.buffers[...] = weights[size:]


class BestModel(_Monitor):
    """Keep the best epoch's model; put it back when training ends, and save it where a path is given.

    Parameters
    ----------
    path : path-like, optional
        A safetensors file, rewritten at every improvement.
    monitor, min_delta : as in EarlyStopping
    restore : bool
    """

    def __init__(self, path=None, monitor="val_loss", min_delta=0.0, restore=True):
        super().__init__(monitor, min_delta)
        self.path = path
        self.restore = restore
        self.weights = None

    def epoch_ends(self, trainer, row):
        if self.better(row):
            self.weights = np.concatenate([trainer.model.parameters, trainer.model.buffers])
            if self.path is not None:
                trainer.model.save(self.path)

    def fit_ends(self, trainer):
        if self.restore and trainer.stop_reason != "interrupted":
            _put_back(trainer.model, self.weights)

    def state(self):
        return {"best": self.best, "best_epoch": self.best_epoch, "weights": self.weights}


class Checkpoint(Callback):
    """Save a checkpoint every so many epochs or updates, and when training is interrupted or stopped.

    Parameters
    ----------
    path : path-like
        Replaced whole or not at all.
    epochs : int
        Save after every `epochs` epochs.
    updates : int, optional
        Save after every `updates` updates too.
    """

    def __init__(self, path, epochs=1, updates=None):
        self.path = os.fspath(path)
        self.epochs = positive_integer("epochs", epochs)
        self.updates = None if updates is None else positive_integer("updates", updates)

    def update_ends(self, trainer, loss):
        due = self.updates is not None and trainer.update % self.updates == 0
        if due or trainer.stop_reason is not None:
            self._save(trainer)

    def epoch_ends(self, trainer, row):
        if trainer.epoch % self.epochs == 0 or trainer.stop_reason is not None:
            self._save(trainer)

    def _save(self, trainer):
        # trainer.save_checkpoint runs inside the epoch: the counters tell where to go on.
        trainer.save_checkpoint(self.path)


class CSVLogger(Callback):
    """Write the history to a CSV file after every epoch."""

    def __init__(self, path):
        self.path = os.fspath(path)

    def epoch_ends(self, trainer, row):
        trainer.history.to_csv(self.path)


class TensorBoard(Callback):
    """Write every epoch's numbers for TensorBoard; needs the package tensorboardX.

    Parameters
    ----------
    folder : path-like
    """

    def __init__(self, folder):
        self.folder = os.fspath(folder)
        self._writer = None

    def fit_begins(self, trainer):
        try:
            from tensorboardX import SummaryWriter
        except ImportError:
            raise ImportError("TensorBoard needs the package tensorboardX: pip install tensorboardX") from None
        self._writer = SummaryWriter(self.folder)

    def epoch_ends(self, trainer, row):
        for name, value in row.items():
            if name != "epoch" and value is not None:
                self._writer.add_scalar(name, value, row["epoch"])
        self._writer.flush()

    def fit_ends(self, trainer):
        if self._writer is not None:
            self._writer.close()
