"""How a ConvNetClassifier trains: each fit by a Trainer, which takes up what the last one left as it would take up a
checkpoint."""

import time
import warnings
import zlib
from dataclasses import dataclass

import numpy as np
from sklearn.exceptions import ConvergenceWarning

from ..batches import Batch, Batches
from ..callbacks import EarlyStopping, put_back, weights_of
from ..checkpoints import state_of, take_up
from ..configuration import positive_integer, real_in
from ..data import Standardizer
from ..errors import TrainingDiverged
from ..losses import CrossEntropy
from ..models import ConvNet
from ..nn import BatchNorm, Sequential
from ..optim import SGD, Adam
from ..threads import END
from ..training import TIME_BUDGET, Trainer
from .shared import signature_of

NETWORK = ("channels", "hidden", "batch_norm", "convs_per_block", "dropout")  # parameters that are ConvNet's


@dataclass
class Images:
    """Images and the numbers of their classes; `weight` None where all count the same."""

    X: np.ndarray
    labels: np.ndarray
    weight: np.ndarray | None = None

    def __len__(self):
        return len(self.X)

    def part(self, rows):
        return Images(self.X[rows], self.labels[rows], None if self.weight is None else self.weight[rows])


class Weighted:
    """Batches of weighted images, cut up and ordered as a Trainer does it with arrays, from an epoch on."""

    def __init__(self, images, size, seed, fewest, epoch):
        self.images, self.epoch = images, epoch
        self.rows = Batches((np.arange(len(images)), images.labels), size, seed, fewest=fewest)

    def __len__(self):
        return len(self.rows)

    def __iter__(self):
        epoch, self.epoch = self.epoch, self.epoch + 1
        for batch in self.rows.of_epoch(epoch, 0):
            yield Batch(self.images.X[batch.x], batch.y, None, self.images.weight[batch.x])


class Stopping(EarlyStopping):
    """EarlyStopping that leaves the model to the estimator, and counts on in the next fit."""

    def fit_begins(self, trainer):
        """The first epoch of a fit tells whether the data or the parameters are better than those before."""

    def fit_ends(self, trainer):
        """What was waited for counts in the next fit."""

    def state(self):
        return {**super().state(), "monitor": self.monitor}

    def load_state(self, state):
        if state["monitor"] == self.monitor:  # or early_stopping was set anew
            super().load_state(state)


def network(image, classes, seed, **shape):
    """The standardisation of each channel, never trained, and the ConvNet."""
    standardize = BatchNorm(image[2], eps=0.0)
    standardize.freeze()
    net = ConvNet(classes=classes, image=image, seed=seed, **shape)
    return Sequential(standardize, net, image=image, names=("standardize", "net"))


def standardize(norm, X):
    """Let a batch normalisation in use take each channel to mean 0 and deviation 1; a constant one becomes 0."""
    measured = Standardizer(axis=(0, 1, 2)).fit(X)
    norm._own_buffers["running_mean"][...] = measured.mean
    norm._own_buffers["running_var"][...] = measured.std**2


class ImageTraining:
    """Training of an image classifier, as a mixin: a Trainer's fit, and what is kept between two."""

    _training = None  # (tensors, header) of a checkpoint without the weights, which the model has
    _last = None  # (checksum of the model's weights, those to train on) where the model has the best epoch's
    _stopped = None  # the signature of a training that came to its end

    def _train(self, trainer, classes, images, validation, size, fresh, incremental, began):
        """Train for some epochs; the estimator takes the model, and all that the next fit needs."""
        epochs = 1 if incremental else positive_integer("max_iter", self.max_iter)
        budget = self.time_budget
        if budget is not None:
            budget = real_in("time_budget", budget, 0, np.inf, include_low=False)
        stopping = self._stopping()
        goes_on = self.warm_start and not incremental
        if goes_on:
            has_ended = signature_of(self, (images.X, images.labels, images.weight, *(validation or ())))
            if not fresh and self._stopped == has_ended:
                self.n_iter_ = 0
                return
        layout = [len(images), size, bool(self.shuffle)]
        shown = weights_of(trainer.model)
        if not fresh:
            self._take_up(trainer, None if incremental else layout)
        first = trainer.epoch
        if budget is not None:
            budget = max(budget - (time.perf_counter() - began), 1e-9)
        failure = self._run(trainer, images, validation, epochs, size, stopping, budget, shown)
        self._keep(trainer, stopping, layout, goes_on)
        stalled = trainer.stop_reason not in (None, "interrupted", TIME_BUDGET)
        self._stopped = has_ended if goes_on and stalled else None
        self._tell(trainer.model, classes, trainer.history, trainer.epoch - first)
        self._say(trainer, stopping, failure)

    def _batch_images(self, n):
        size = min(200, n) if isinstance(self.batch_size, str) and self.batch_size == "auto" else self.batch_size
        return min(positive_integer("batch_size", size), n)

    def _trainer(self, model, size, class_weight, seed):
        decay = real_in("alpha", self.alpha, 0, np.inf, include_high=False) / size
        lr = real_in("learning_rate_init", self.learning_rate_init, 0, np.inf, include_low=False, include_high=False)
        optimizers = {
            "adam": lambda: Adam(lr, (self.beta_1, self.beta_2), self.epsilon, decay),
            "sgd": lambda: SGD(lr, self.momentum, bool(self.nesterovs_momentum and self.momentum), decay),
        }
        if self.solver not in optimizers:
            raise ValueError(f"solver: expected 'adam' or 'sgd', got {self.solver!r}")
        loss = CrossEntropy(self.label_smoothing, class_weight=class_weight)
        return Trainer(model, optimizers[self.solver](), loss, seed=seed)

    def _stopping(self):
        return Stopping(
            "val_accuracy" if self.early_stopping else "loss",
            self.n_iter_no_change,
            self.tol,
            restore_best_weights=bool(self.early_stopping),
        )

    def _run(self, trainer, images, validation, epochs, size, stopping, budget, shown):
        """The Trainer's fit. Returns what ended it, where what was learned is to be kept; after any other error the
        model is what it was."""
        train = images.X, images.labels
        if images.weight is not None:
            seed = trainer.seed if self.shuffle else None
            train = Weighted(images, size, seed, trainer._fewest_rows(), trainer.epoch)
        try:
            trainer.fit(
                train,
                validation,
                epochs=epochs,
                batch_size=size,
                callbacks=[stopping],
                progress=bool(self.verbose),
                shuffle=bool(self.shuffle),
                augment=self.augment,
                time_budget=budget,
            )
        except (TrainingDiverged, KeyboardInterrupt) as failure:
            return failure
        except BaseException:
            put_back(trainer.model, shown)
            raise
        return None

    # ---- between two fits ------------------------------------------------------------------------------------------

    def _take_up(self, trainer, layout):
        """Let a trainer go on where the last one ended: within an epoch, if that is of the same layout."""
        model, (tensors, header) = trainer.model, self._training
        optimizer = trainer.optimizer
        state = {f"optimizer.{name}" for name in optimizer.state_names}
        kind = header["signature"]["optimizer"] == type(optimizer).__name__
        if not kind or {name for name in tensors if name.startswith("optimizer.")} != state:  # another one begins anew
            tensors = {name: a for name, a in tensors.items() if not name.startswith("optimizer.")}
            header = {**header, "optimizer_updates": 0}
        take_up(trainer, {**tensors, "parameters": model.parameters, "buffers": model.buffers}, header)
        if self._last is not None and self._last[0] == zlib.crc32(weights_of(model)):  # or they are the user's
            put_back(model, self._last[1])
        if header["layout"] != layout:
            trainer._progress = None
        trainer._first_epoch = None
        trainer.history.drop_after(trainer.epoch)

    def _keep(self, trainer, stopping, layout, goes_on):
        """Let the model have the best epoch's weights, and keep what the next fit needs; it is little unless that one
        goes on where this one ended."""
        model, best = trainer.model, stopping.weights
        self._last = None
        if best is not None:
            last = weights_of(model)
            put_back(model, best)
            self._last = (zlib.crc32(best), last) if goes_on else None
        if not goes_on:
            trainer._callbacks, trainer._callback_states, trainer._progress = (), {}, None
        tensors, header = state_of(trainer)
        del tensors["parameters"], tensors["buffers"]
        self._training = tensors, {**header, "layout": layout}

    def _say(self, trainer, stopping, failure):
        """Tell why training ended before its time; what it diverged by is an error unless there is a best epoch."""
        if isinstance(failure, TrainingDiverged) and stopping.weights is not None:
            warnings.warn(f"{failure} The weights are the best epoch's.", ConvergenceWarning, stacklevel=5)
        elif failure is not None:
            raise failure
        elif trainer.stop_reason == "interrupted" and (END.get() is None or not END.get().is_set()):
            warnings.warn(
                f"training was interrupted in epoch {trainer.epoch + 1}; what was learned is kept",
                UserWarning,
                stacklevel=5,
            )
