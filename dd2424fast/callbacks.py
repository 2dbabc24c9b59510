"""What may happen during `Trainer.fit` beside training.

A callback's `state()` goes into checkpoints, so that a resumed training ends as an uninterrupted one would.
"""

import copy
import math
import os
import sys

import numpy as np

from . import kernels, plots
from .configuration import Configured, integer_in, positive_integer, real_in
from .data.tokenizers import Tokenizer
from .ensembles import Ensemble
from .generation import check_tokenizer, generate
from .layer_numbers import NUMBERS, layer_statistics
from .metrics import SmoothedLoss
from .monitors import gradient_flow
from .nn.module import GENERATION


class Callback(Configured):
    """Base: override what you need. Set `trainer.stop_reason` to a text to end training after the current update or
    epoch.

    Attributes
    ----------
    last_update : int or None
        After how many updates in all it will end training, where it knows; for the time left that is shown.
    order : int
        Callbacks of a lower order are called first, whatever their place among the others.
    unfreezes : bool
        Whether it lets parameters be trained that may be frozen when the fit begins.
    """

    last_update = None
    order = 0
    unfreezes = False  # whether it lets parameters be trained that are frozen when the fit begins

    def fit_begins(self, trainer):
        """Called once, before the first update."""

    def update_ends(self, trainer, loss):
        """Called after every update with its loss."""

    def evaluation_begins(self, trainer):
        """Called after every epoch's last update, before the validation data are evaluated."""

    def evaluation_ends(self, trainer):
        """Called when the callbacks have seen the epoch's row, before a checkpoint is written."""

    def epoch_ends(self, trainer, row):
        """Called after every epoch with the row that was added to the history. Also where a time budget has cut one
        (`trainer.stop_reason` is "time budget"); the state is then put back before training goes on."""

    def fit_ends(self, trainer):
        """Called once at the end, also after an error or Ctrl-C."""

    def state(self):
        """What to keep in a checkpoint: dict of numbers, strings, lists of such, and ndarrays."""
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
                self.weights = weights_of(trainer.model)
            return
        self.waited += 1
        self._stop_if_due(trainer)

    def _stop_if_due(self, trainer):
        if self.waited >= self.patience:
            trainer.stop_reason = f"{self.monitor} has not improved for {self.waited} epochs"

    def fit_ends(self, trainer):
        if trainer.stop_reason != "interrupted":  # an interrupted fit goes on later, from where it was
            put_back(trainer.model, self.weights)
            if self.waited >= self.patience:
                self.waited = 0  # or the next fit with this object would end before it began

    def state(self):
        return {"best": self.best, "best_epoch": self.best_epoch, "waited": self.waited, "weights": self.weights}


def weights_of(model):
    """A copy of a model's parameters, and of its running statistics behind them."""
    return np.concatenate([model.parameters, model.buffers])


def put_back(model, weights):
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
            self.weights = weights_of(trainer.model)
            if self.path is not None:
                trainer.model.save(self.path)

    def fit_ends(self, trainer):
        if self.restore and trainer.stop_reason != "interrupted":
            put_back(trainer.model, self.weights)

    def state(self):
        return {"best": self.best, "best_epoch": self.best_epoch, "weights": self.weights}


class WeightAverage(Callback):
    """Keep an exponential moving average of the parameters and running statistics, and evaluate with it.

        average = d average + (1 - d) weights,    d = min(decay, (1 + t) / (10 + t)) after t updates

    so that the first weights are soon forgotten (TensorFlow's ExponentialMovingAverage has the same rule). The
    validation data are evaluated with the average in the model's place, and the other callbacks see it at the end of an
    epoch: `BestModel` keeps an average. Training itself and checkpoints are not touched by it.

    Parameters
    ----------
    decay : float in [0, 1]
    replace : bool
        Put the average into the model when training ends.

    Attributes
    ----------
    average : ndarray, or None before training
        Of the parameters, and of the buffers behind them.
    updates : int
        Weights averaged.

    References
    ----------
    Polyak and Juditsky 1992, doi:10.1137/0330046 (for the plain mean).
    """

    order = -1  # what the average is put into, others look at

    def __init__(self, decay=0.999, replace=True):
        self.decay = real_in("decay", decay, 0, 1)
        self.replace = replace
        self.average = None
        self.updates = 0
        self._held = None

    def fit_begins(self, trainer):
        if self.average is None:
            self.average = weights_of(trainer.model)
        size = trainer.model.parameters.size + trainer.model.buffers.size
        if self.average.size != size:
            ours, self.average = self.average.size, None
            raise ValueError(f"WeightAverage: its average was of a model with {ours} numbers, this one has {size}")

    def update_ends(self, trainer, loss):
        model, size = trainer.model, trainer.model.parameters.size
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        kernels.moving_average(self.average[:size], model.parameters, decay)
        if model.buffers.size:
            kernels.moving_average(self.average[size:], model.buffers, decay)
        self.updates += 1

    def evaluation_begins(self, trainer):
        self._held = weights_of(trainer.model)
        put_back(trainer.model, self.average)

    def evaluation_ends(self, trainer):
        put_back(trainer.model, self._held)
        self._held = None

    def fit_ends(self, trainer):
        if self.replace and trainer.stop_reason != "interrupted":
            put_back(trainer.model, self.average)

    def state(self):
        return {"average": self.average, "updates": self.updates}


class Snapshots(Callback):
    """Keep the weights at the end of every cycle of the learning rate, where it is lowest: an ensemble for the price of
    one training (Huang et al. 2017, arXiv:1704.00109).

    Parameters
    ----------
    keep : int, optional
        Keep the last so many; default: all.

    Attributes
    ----------
    updates : list of int
        After how many updates each snapshot was taken.
    weights : list of ndarray
        The parameters of each, and the buffers behind them.
    """

    def __init__(self, keep=None):
        self.keep = None if keep is None else positive_integer("keep", keep)
        self.updates, self.weights = [], []
        self._model = None

    def fit_begins(self, trainer):
        if not getattr(trainer.schedule, "has_cycles", False):
            raise TypeError(
                "Snapshots: expected a trainer whose schedule has cycles (Cyclic, CosineWarmRestarts), got "
                f"{trainer.schedule!r}"
            )
        self._model = trainer.model

    def update_ends(self, trainer, loss):
        if trainer.schedule.ends_cycle(trainer.update - 1):
            self.updates.append(trainer.update)
            self.weights.append(weights_of(trainer.model))
            if self.keep is not None:
                del self.updates[: -self.keep], self.weights[: -self.keep]

    def ensemble(self):
        """Return an Ensemble of copies of the model, one a snapshot."""
        if not self.weights:
            raise ValueError("Snapshots: no cycle of the learning rate has ended, so there is nothing to make one of")
        models = [copy.deepcopy(self._model).eval() for _ in self.weights]
        for model, weights in zip(models, self.weights, strict=True):
            put_back(model, weights)
        return Ensemble(models)

    def state(self):
        return {"updates": self.updates, "weights": np.array(self.weights)}

    def load_state(self, state):
        self.updates, self.weights = list(state["updates"]), list(state["weights"])


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

    order = 1  # a checkpoint holds the other callbacks' states too: they must have seen the epoch

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

    def stopped(self, trainer):
        """Called where training ends before an update: where the time is up."""
        self._save(trainer)

    def _save(self, trainer):
        # trainer.save_checkpoint runs inside the epoch: the counters tell where to go on.
        trainer.save_checkpoint(self.path)


class GradualUnfreezing(Callback):
    """Train a network's last layers first, then those before them too, group by group (Howard and Ruder 2018,
    arXiv:1801.06146, section 3.3).

    All groups but the first are frozen when the fit begins. Parameters of no group stay as they are.

    Parameters
    ----------
    groups : sequence of str or of tuples of str
        Names of layers, or several that belong together, as `Module.freeze` takes them; the first is trained at once,
        so that one begins with the head.
    every : int
        Epochs until the next group joins in.
    """

    unfreezes = True

    def __init__(self, groups, every=1):
        if isinstance(groups, str) or not np.iterable(groups) or not len(groups):
            raise TypeError(f"groups: expected names of layers such as ('fc', 'layer4'), got {groups!r}")
        self.groups = tuple((group,) if isinstance(group, str) else tuple(group) for group in groups)
        self.every = positive_integer("every", every)
        self.begun = None  # the fit's first epoch

    def fit_begins(self, trainer):
        if self.begun is None:
            self.begun = trainer.epoch
        self._apply(trainer)

    def epoch_ends(self, trainer, row):
        self._apply(trainer)

    def fit_ends(self, trainer):
        if trainer.stop_reason != "interrupted":  # the next fit begins anew
            self.begun = None

    def _apply(self, trainer):
        # The later groups first: one of them may hold a layer of an earlier one, as "" does.
        trained = 1 + (trainer.epoch - self.begun) // self.every
        for i in reversed(range(len(self.groups))):
            for prefix in self.groups[i]:
                (trainer.model.unfreeze if i < trained else trainer.model.freeze)(prefix)

    def state(self):
        return {"begun": self.begun}


class SampleText(Callback):
    """Let a language model say something while it is trained. Training goes on as if it had not.

    Parameters
    ----------
    tokenizer : data.Tokenizer
    prompt : str
    length : int
        Tokens.
    every : int, optional
        A sample after so many updates each time.
    epochs : int, optional
        A sample after so many epochs each time; default: after every epoch where `every` is not given either.
    temperature, top_p, top_k, repetition_penalty, stop, banned : see `dd.generate`
    file : text stream, or function of (update, text), optional
        Where to print samples, or what to do with them; default: print to standard error.

    Attributes
    ----------
    samples : list of (int, str)
        After how many updates, and what followed the prompt: a pure function of the model, the trainer's seed and the
        update.
    """

    def __init__(
        self,
        tokenizer,
        prompt,
        length=200,
        every=None,
        epochs=None,
        temperature=1.0,
        top_p=1.0,
        top_k=0,
        repetition_penalty=1.0,
        *,
        stop=None,
        banned=(),
        file=None,
    ):
        if not isinstance(tokenizer, Tokenizer):
            raise TypeError(f"tokenizer: expected a data.Tokenizer, got {type(tokenizer).__name__}")
        if not isinstance(prompt, str):
            raise TypeError(f"prompt: expected a str, got {type(prompt).__name__}")
        if not tokenizer.encode(prompt, "prompt").size:
            raise ValueError("prompt: expected at least one token, got none")
        if not (file is None or callable(file) or hasattr(file, "write")):
            raise TypeError(f"file: expected a text stream or a function of (update, text), got {type(file).__name__}")
        self.tokenizer, self.prompt, self.file = tokenizer, prompt, file
        self.length = positive_integer("length", length)
        self.every = None if every is None else positive_integer("every", every)
        epochs = 1 if epochs is None and every is None else epochs
        self.epochs = None if epochs is None else positive_integer("epochs", epochs)
        self.options = {
            "temperature": real_in("temperature", temperature, 0, math.inf, include_high=False),
            "top_p": real_in("top_p", top_p, 0, 1, include_low=False),
            "top_k": integer_in("top_k", top_k, 0),
            "repetition_penalty": real_in("repetition_penalty", repetition_penalty, 0, math.inf, False, False),
            "stop": stop,
            "banned": banned,
        }
        for token in banned:
            tokenizer.id_of(token, "banned")
        if stop is not None:
            tokenizer.id_of(stop, "stop")
        self.samples = []

    def fit_begins(self, trainer):
        check_tokenizer(self.tokenizer, trainer.model)

    def update_ends(self, trainer, loss):
        if self.every is not None and trainer.update % self.every == 0:
            self._sample(trainer)

    def epoch_ends(self, trainer, row):
        already = self.samples and self.samples[-1][0] == trainer.update
        if self.epochs is not None and trainer.epoch % self.epochs == 0 and not already:
            self._sample(trainer)

    def _sample(self, trainer):
        seed = kernels.stream_key(trainer.seed, GENERATION << 32, trainer.update)
        text = generate(trainer.model, self.tokenizer, self.prompt, self.length, seed=seed, **self.options)
        self.samples.append((trainer.update, text))
        if callable(self.file):
            self.file(trainer.update, text)
            return
        from tqdm import tqdm  # its write goes around a progress bar

        tqdm.write(f"update {trainer.update}: {self.prompt}{text}", file=self.file or sys.stderr)

    def state(self):
        return {"samples": self.samples}

    def load_state(self, state):
        self.samples = [(update, text) for update, text in state["samples"]]


class LossCurve(Callback):
    """Keep the loss of the updates, and the smoothed one, in bounded memory.

    Parameters
    ----------
    decay : float in [0, 1)
        See metrics.SmoothedLoss.
    points : int
        Keep at most so many: when there are more, every second is dropped, and from then on only every second of
        those that come is kept.

    Attributes
    ----------
    updates : ndarray of int64
        After how many updates; `losses` and `smoothed` are of the same length.
    losses, smoothed : ndarray of float64
        The last update's loss, and the smoothed loss of all updates until then.
    """

    def __init__(self, decay=0.999, points=5000):
        self.points = integer_in("points", points, 2)
        self._smooth = SmoothedLoss(decay)
        self._kept = np.empty((3, self.points))
        self._count = self._seen = 0
        self._stride = 1

    @property
    def updates(self):
        return self._kept[0, : self._count].astype(np.int64)

    @property
    def losses(self):
        return self._kept[1, : self._count].copy()

    @property
    def smoothed(self):
        return self._kept[2, : self._count].copy()

    def update_ends(self, trainer, loss):
        smoothed = self._smooth.update(loss)
        if self._seen % self._stride == 0 and self._count == self.points:
            self._count = -(-self.points // 2)
            self._kept[:, : self._count] = self._kept[:, ::2].copy()
            self._stride *= 2
        if self._seen % self._stride == 0:
            self._kept[:, self._count] = trainer.update, loss, smoothed
            self._count += 1
        self._seen += 1

    def plot(self, path=None):
        """Draw both against updates; see `plots.loss_curve`."""
        return plots.loss_curve(self, path)

    def state(self):
        return {
            "kept": self._kept[:, : self._count].copy(),
            "seen": self._seen,
            "stride": self._stride,
            "smoothed": self._smooth.value,
        }

    def load_state(self, state):
        kept = state["kept"]
        if kept.shape[1] > self.points:
            raise ValueError(f"points: the checkpoint's curve has {kept.shape[1]}, got {self.points}")
        self._count, self._seen, self._stride = kept.shape[1], state["seen"], state["stride"]
        self._kept[:, : self._count] = kept
        self._smooth.value = state["smoothed"]


class GradientFlow(Callback):
    """Measure how gradients flow back through time, on one batch, every so many updates; see `dd.gradient_flow`.
    Training goes on as if it had not.

    Parameters
    ----------
    x, y : arrays
        The batch, as for `Trainer.step`.
    every : int
        Updates.
    lengths : integers of shape (batch,), optional

    Attributes
    ----------
    updates : list of int
        After how many updates it was measured.
    norms : dict from str to list of ndarray of shape (time,)
        From a recurrent layer's name to the norms of dL/dh_t, one array a measurement.
    """

    def __init__(self, x, y, every=1000, lengths=None):
        self.batch = x, y, lengths
        self.every = positive_integer("every", every)
        self.updates, self.norms = [], {}

    def update_ends(self, trainer, loss):
        if trainer.update % self.every == 0:
            x, y, lengths = self.batch
            report = gradient_flow(
                trainer.model, x, y, loss=trainer.loss, lengths=lengths, seed=trainer.seed, update=trainer.update
            )
            self.updates.append(trainer.update)
            for name, norms in report.norms.items():
                self.norms.setdefault(name, []).append(norms)

    def plot(self, path=None):
        """Draw, for every layer, the norms against t, one line a measurement; see `plots.gradient_flow_history`."""
        return plots.gradient_flow_history(self, path)

    def state(self):
        return {"updates": self.updates, **{f"norms.{name}": np.array(rows) for name, rows in self.norms.items()}}

    def load_state(self, state):
        self.updates = list(state["updates"])
        self.norms = {
            name.removeprefix("norms."): list(rows) for name, rows in state.items() if name.startswith("norms.")
        }


class LayerStatistics(Callback):
    """Measure what goes through every layer, on one batch, every so many updates; see `dd.layer_statistics`. Training
    goes on as if it had not.

    Parameters
    ----------
    x, y : arrays
        The batch, as for `Trainer.step`.
    every : int
        Updates.
    lengths : integers of shape (batch,), optional

    Attributes
    ----------
    updates : list of int
        After how many updates it was measured.
    numbers : dict from str to dict from str to list of float
        From a layer's name and the name of a number, such as "std" or "update_ratio", to its values, one a measurement;
        see `layer_numbers.LayerNumbers`.
    report : LayersReport or None
        The last one.
    """

    def __init__(self, x, y, every=1000, lengths=None):
        self.batch = x, y, lengths
        self.every = positive_integer("every", every)
        self.updates, self.numbers, self.report = [], {}, None

    def update_ends(self, trainer, loss):
        if trainer.update % self.every == 0:
            x, y, lengths = self.batch
            self.report = layer_statistics(
                trainer.model,
                x,
                y,
                loss=trainer.loss,
                lengths=lengths,
                optimizer=trainer.optimizer,
                lr=trainer._rate(trainer.update - 1),
                seed=trainer.seed,
                update=trainer.update,
            )
            self.updates.append(trainer.update)
            for name, layer in self.report.layers.items():
                kept = self.numbers.setdefault(name, {number: [] for number in NUMBERS})
                for number in NUMBERS:
                    kept[number].append(getattr(layer, number))

    def plot(self, path=None):
        """Draw the numbers of every layer against the updates; see `plots.layer_statistics_history`."""
        return plots.layer_statistics_history(self, path)

    def state(self):
        rows = {name: np.array([kept[number] for number in NUMBERS]) for name, kept in self.numbers.items()}
        return {"updates": self.updates, **{f"numbers.{name}": a for name, a in rows.items()}}

    def load_state(self, state):
        self.updates = list(state["updates"])
        self.numbers = {
            name.removeprefix("numbers."): dict(zip(NUMBERS, a.tolist(), strict=True))
            for name, a in state.items()
            if name.startswith("numbers.")
        }


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
