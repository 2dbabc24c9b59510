"""The training loop: one update, one evaluation, and the epochs around them."""

import contextlib
import copy
import math
import signal
import threading
import time
from collections import deque
from collections.abc import Iterable

import numpy as np

from . import kernels, metrics
from .batches import Batch, Batches
from .callbacks import Callback, Checkpoint
from .configuration import Configured, integer_in, positive_integer, real_in
from .ensembles import with_mirrored
from .errors import TrainingDiverged
from .history import History
from .losses import CrossEntropy, Loss
from .models import LanguageModel
from .nn import BatchNorm
from .nn.module import AUGMENTATION, Module
from .optim import Optimizer
from .reporter import Reporter
from .threads import END

TIME_BUDGET = "time budget"  # the stop reason


class Trainer(Configured):
    """Trains a model with an optimizer on a loss.

    Parameters
    ----------
    model : nn.Module
    optimizer : optim.Optimizer
    loss : losses.Loss, optional
        Default: CrossEntropy().
    clip_value : float, optional
        Clip every gradient element to [-clip_value, clip_value].
    clip_norm : float, optional
        Scale the gradient to this Euclidean norm where its norm is larger.
    schedule : callable, optional
        From the number of the update (from 0) to the learning rate; default: the optimizer's own `lr` throughout.
    seed : int
        Of shuffling, dropout and augmentation, each a pure function of it and of the epoch or update.

    Attributes
    ----------
    update : int
        Updates made so far.
    epoch : int
        Epochs completed so far.
    history : History
    """

    def __init__(self, model, optimizer, loss=None, clip_value=None, clip_norm=None, schedule=None, seed=0):
        if not isinstance(model, Module):
            raise TypeError(f"model: expected an nn.Module, got {type(model).__name__}")
        if not isinstance(optimizer, Optimizer):
            raise TypeError(f"optimizer: expected an optim.Optimizer, got {type(optimizer).__name__}")
        loss = CrossEntropy() if loss is None else loss
        if not isinstance(loss, Loss):
            raise TypeError(f"loss: expected a losses.Loss, got {type(loss).__name__}")
        if schedule is not None and not callable(schedule):
            raise TypeError(f"schedule: expected a function of the update's number, got {type(schedule).__name__}")
        self.model, self.optimizer, self.loss, self.schedule = model, optimizer, loss, schedule
        self.clip_value = (
            None if clip_value is None else real_in("clip_value", clip_value, 0, math.inf, include_low=False)
        )
        self.clip_norm = None if clip_norm is None else real_in("clip_norm", clip_norm, 0, math.inf, include_low=False)
        self.seed = 0 if seed is None else integer_in("seed", seed, 0, 2**64 - 1)
        self.update = 0
        self.epoch = 0
        self.history = History()
        self.stop_reason = None
        self._progress = None  # of an epoch begun and not ended: (batches done, sum of losses, correct, weight)
        self._first_epoch = None  # of a fit begun and not ended; the epochs of `fit` count from here
        self._last_epoch = 0
        self._callbacks = ()
        self._callback_states = {}  # of an interrupted fit, until the next one takes them up
        self._outputs = self._targets = self._weights = None  # of the last update, as rows
        self._recent = deque(maxlen=16)  # of the last updates: (loss, norm of the gradient if it was computed)
        self._replays = True  # whether a diverged update is explained

    # ---- one update ------------------------------------------------------------------------------------------------

    def step(self, x, y, lengths=None, sample_weight=None):
        """Make one update on one batch.

        Parameters
        ----------
        x : array of shape (batch, features) or (batch, height, width, channels), or token ids (batch, time)
        y : integer labels of the leading shape, rows of probabilities (batch, classes), or floats for regression
        lengths : integers of shape (batch,), optional
            Steps of each sequence, for a model of sequences; what lies behind them counts for nothing.
        sample_weight : array of shape (batch,), optional

        Returns
        -------
        float
            The mean data loss before the update, without the decay term.

        Raises
        ------
        TrainingDiverged
            The loss or the gradient is not finite; parameters and running statistics are left as they were. The update
            is replayed once with NumPy's kernels, to say where; see the exception's `report`.
        ValueError, TypeError
            x or y does not fit the model; nothing was changed.
        """
        batch = Batch(x, y, lengths, sample_weight)
        model, work = self.model, self.model._training_work()
        if not model._busy.acquire(blocking=False):
            raise RuntimeError("step: this model is being trained by another thread")
        before, carried = None, work.carried
        try:
            work.training, work.seed, work.update, work.carries = True, self.seed, self.update, True
            before = model.buffers.copy() if model.buffers.size else None
            outputs, y, weight = batch.through(model, work)
            gradient = work.array(self, "doutputs", outputs.shape, outputs.dtype)
            loss, gradient = self._loss_of(batch, outputs, y, weight, gradient)
            if not math.isfinite(loss):
                self._diverged(f"the loss is {loss}", batch, loss, before, carried)
            self._outputs, self._targets, self._weights = outputs, y, weight
            model._backward(gradient, work, False)
            self._recent.append((loss, self._apply(batch, loss, before, carried)))
        except Exception:
            if before is not None:  # the forward pass has moved the running statistics
                model.buffers[...] = before
            work.carried = carried
            raise
        finally:
            work.carries = False
            model._busy.release()
        return loss

    def _loss_of(self, batch, outputs, y, weight, gradient):
        """The loss of a batch's rows, and its gradient."""
        try:
            return self.loss.run(outputs, y, weight, gradient)
        except ValueError:
            if self.model.takes_lengths and self.loss.classifies:
                batch.check_labels(outputs.shape[1], getattr(self.loss, "ignore_index", None))
            raise

    def _apply(self, batch, loss, buffers, carried):
        """Clip the gradients and let the optimizer update the parameters; returns the gradients' norm, if it was
        computed. What the update began with is for the report, should it diverge."""
        gradients, norm = self.model.gradients, None
        finite = True
        if self.clip_value is not None:
            finite = kernels.clip_by_value(gradients, self.clip_value)
        elif self.clip_norm is None:
            finite = kernels.all_finite(gradients)
        if finite and self.clip_norm is not None:
            norm = kernels.clip_by_norm(gradients, self.clip_norm)
            finite = math.isfinite(norm)
        if not finite:
            self._diverged("the gradient is not finite", batch, loss, buffers, carried)
        if self.model.buffers.size and not kernels.all_finite(self.model.buffers):
            self._diverged("a running statistic is not finite", batch, loss, buffers, carried)
        self.optimizer.update(self.model, self._rate(self.update))
        self.update += 1
        return norm

    def _rate(self, update):
        """The learning rate of an update."""
        if self.schedule is None:
            return self.optimizer.lr
        return real_in(f"schedule({update})", self.schedule(update), 0, math.inf, include_high=False)

    def _diverged(self, what, batch, loss, buffers, carried):
        """Raise, with what the update's replay finds, naming the input where that is to blame."""
        hint, report, first = "x is finite: lower the learning rate, or clip the gradient (clip_norm)", None, ""
        for name, a in (("y", np.asarray(batch.y)), ("x", self.model._input(batch.x))):
            bad = np.argwhere(~np.isfinite(a)) if a.dtype.kind == "f" else ()
            if len(bad):
                hint = f"{name} holds {a[tuple(bad[0])]} at {tuple(int(i) for i in bad[0])}"
        if self._replays:
            from .divergence import explain

            report = explain(self, batch, loss, buffers, carried)
            if report.twin_is_finite and not report.at_the_edge:
                hint = "The same update is finite with NumPy's kernels: a fast kernel is wrong, report it"
            if report.operand not in ("x", "y", "loss"):
                first = f". Not finite first: {report.where}"
        raise TrainingDiverged(f"update {self.update}: {what}; it was not applied{first}. {hint}", self.update, report)

    # ---- evaluation ------------------------------------------------------------------------------------------------

    def evaluate(self, data, batch_size=1000, *, part="validation", flip=False):
        """Mean loss, and for a classifier the accuracy, over data, in evaluation mode.

        Parameters
        ----------
        data : (x, y), (x, y, lengths), a TextCorpus, or an iterable of such batches or of Batch
        batch_size : int
            Of arrays.
        part : {"train", "validation", "test"}
            Of a TextCorpus.
        flip : bool
            Of images: let an image's probabilities be the mean of its own and its mirror image's.

        Returns
        -------
        dict
            "loss", and for classification "accuracy" (a fraction), where the targets name classes. Of a language model
            also "perplexity", and on a TextCorpus "bits_per_character", where the loss is plain cross-entropy and the
            tokens tell how many characters they stand for.
        """
        batch_size = positive_integer("batch_size", batch_size)
        if flip and not self.loss.classifies:
            raise ValueError(f"flip: expected False with {self.loss!r}, which classifies nothing")
        work = self.model._inference_work()
        work.carries = True
        try:
            batches = Batches(data, batch_size, None, takes_lengths=self.model.takes_lengths, part=part)
            return self._evaluated(batches, work, flip)
        finally:
            work.carried, work.carries = None, False

    def _evaluated(self, batches, work, flip):
        total = weight = correct = rows = 0.0
        language = isinstance(self.model, LanguageModel) and self.loss.is_likelihood
        tokenizer, read = batches.corpus and batches.corpus.tokenizer, []
        for batch in batches.of_epoch(0, 0):
            scores = self._scores(batch, work, flip, batches.batch_size)
            if scores is None:
                continue
            loss, share, right, counted, y = scores
            total, weight = total + loss * share, weight + share
            correct, rows = correct + right, rows + counted
            if language and tokenizer is not None:
                read.append(y[y != self.loss.ignore_index])
        if not weight:
            raise ValueError("data: expected at least one row, and one label in y that counts, got none")
        found = {"loss": total / weight}
        if rows:
            found["accuracy"] = correct / rows
        if language:
            found["perplexity"] = metrics.perplexity(found["loss"])
            characters = tokenizer.characters(np.concatenate(read)) if read else None
            if characters:
                found["bits_per_character"] = metrics.bits_per_character(found["loss"], int(rows), characters)
        return found

    def _scores(self, batch, work, flip, batch_size):
        """A batch's mean loss, its weight, how many rows are classified rightly and how many count, and the rows'
        targets; None where no row counts."""
        if batch.begins:
            work.carried = None
        if self._all_ignored(batch):
            return None
        outputs, y, weights = batch.through(self.model, work)
        if flip:
            p = self.loss.probabilities(outputs)
            p = with_mirrored(p, self.model, self.model._input(batch.x), batch_size, self.loss)
            outputs = self.loss.logits(p)
        loss, _ = self._loss_of(batch, outputs, y, weights, np.empty_like(outputs))
        right, counted = self.loss.correct(outputs, y) if self.loss.classifies else (0, 0)
        return loss, self.loss.weight_of(y, weights), right, counted, y

    def _all_ignored(self, batch):
        """Whether no row of a batch counts: it has no mean loss, and nothing to learn from."""
        ignored = getattr(self.loss, "ignore_index", None)
        if ignored is None:
            return False
        y = batch.counted()
        return not (y.size and y.item(0) != ignored) and bool(np.all(y == ignored))  # most often the first one tells

    # ---- epochs ----------------------------------------------------------------------------------------------------

    def fit(
        self,
        train,
        validation=None,
        *,
        epochs=1,
        batch_size=100,
        callbacks=(),
        progress=True,
        shuffle=True,
        augment=None,
        time_budget=None,
    ):
        """Train for a number of epochs.

        An interrupted fit (Ctrl-C, a killed process whose checkpoint was loaded) goes on where it stopped: call fit
        with the same arguments; `epochs` then counts from where that fit began.

        Parameters
        ----------
        train : (x, y), (x, y, lengths), a TextCorpus, or an iterable that can be walked once an epoch
            The iterable gives batches (x, y), (x, y, lengths) or Batch. A language model's state is carried through a
            text, and through an iterable, where it begins anew at its first batch and at each Batch that says so; not
            from row to row of arrays.
        validation : like `train`, optional
            Default: the validation part of a TextCorpus, where it has one.
        epochs : int
        batch_size : int
            Of a TextCorpus: parallel streams. The last batch of an epoch may be smaller. A single row left over goes
            into the batch before where a batch normalisation is trained, since one row has no variance.
        callbacks : sequence of callbacks.Callback
        progress : bool
            A bar on a terminal, a line an epoch elsewhere; to standard error.
        shuffle : bool
            Draw a new order every epoch, a pure function of (seed, epoch).
        augment : callable, optional
            `augment(x, key)` returns the batch to train on, such as `data.Augment`; key is a pure function of (seed,
            update). Where it has a method `targets(y, key, classes)`, that returns the batch's targets.
        time_budget : float, optional
            Seconds that this call may take. Training ends before the update that would not fit, with the evaluation
            that follows, by the time that those before it took; one update is always made. An epoch that was cut gets
            its row in the history too, of its part until then: its "epoch" is a fraction (the epoch's number over an
            iterable without a length). The callbacks see that as an epoch's end. Call fit again to go on, as after an
            interruption; where a callback has put other weights into the model (BestModel, EarlyStopping,
            WeightAverage), load the checkpoint first, or training goes on from those weights.

        Returns
        -------
        History
            `stop_reason` of the trainer tells why training ended: None where all epochs were made.
        """
        epochs, batch_size = positive_integer("epochs", epochs), positive_integer("batch_size", batch_size)
        budget = None
        if time_budget is not None:
            from .forecast import TimeBudget

            budget = TimeBudget(real_in("time_budget", time_budget, 0, math.inf, include_low=False))
        if not isinstance(callbacks, Iterable):
            raise TypeError(f"callbacks: expected a sequence of them, got {type(callbacks).__name__}")
        callbacks = list(callbacks)
        for i, callback in enumerate(callbacks):
            if not isinstance(callback, Callback):
                raise TypeError(f"callbacks[{i}]: expected a Callback, got {type(callback).__name__}")
        batches, validation = self._batches(train, validation, batch_size, augment, callbacks, shuffle)
        callbacks = sorted(callbacks, key=lambda callback: callback.order)
        if self._first_epoch is None:
            self._first_epoch = self.epoch
        self._last_epoch = self._first_epoch + epochs
        self._restore_callbacks(callbacks)
        if self._progress is not None:
            self.history.drop_after(self.epoch)  # the row of the part of an epoch that is now completed
        self.stop_reason = self._outputs = None
        with _interrupts(self), Reporter(self, progress, batches) as report:
            try:
                for callback in callbacks:
                    callback.fit_begins(self)
                self._heed_end()
                if budget is not None and self.stop_reason is None:
                    budget.begin(self, validation)
                while self.epoch < self._last_epoch and self.stop_reason is None:
                    self._one_epoch(batches, validation, callbacks, augment, report, budget)
                if self.stop_reason == "interrupted":
                    self._callback_states = self._callback_states or self.callback_states()
                elif self.stop_reason != TIME_BUDGET:
                    self._first_epoch = self._progress = None
            finally:
                for callback in callbacks:
                    callback.fit_ends(self)
        return self.history

    def _batches(self, train, validation, batch_size, augment, callbacks=(), shuffle=True):
        """The batches to train on, and what is evaluated; both are checked."""
        if augment is not None and not callable(augment):
            raise TypeError(f"augment: expected a function of (x, key), got {type(augment).__name__}")
        sequences = self.model.takes_lengths
        batches = Batches(
            train, batch_size, self.seed if shuffle else None, True, self._fewest_rows(callbacks), "train", sequences
        )
        if validation is None and batches.corpus is not None and len(batches.corpus.validation) > 1:
            validation = batches.corpus
        if validation is not None:
            Batches(validation, batch_size, None, True, name="validation", takes_lengths=sequences)
        return batches, validation

    def _fewest_rows(self, callbacks=()):
        """Of a batch: a batch normalisation that is trained, or will be, has no variance of one row."""
        thaw = any(callback.unfreezes for callback in callbacks)
        norms = (module for _, module in self.model.modules() if isinstance(module, BatchNorm))
        return 2 if any(thaw or not norm.frozen for norm in norms) else 1

    def _one_epoch(self, batches, validation, callbacks, augment, report, budget):
        started = time.perf_counter()
        done, total, correct, weight, rows = self._progress or (0, 0.0, 0, 0.0, 0)
        report.epoch_begins(done)
        for batch in batches.of_epoch(self.epoch, done):
            if budget is not None and not budget.allows_update():
                self._cut_epoch(started, len(batches), validation, callbacks, report)
                return
            if batch.begins:
                self.model._training_work().carried = None
            if augment is not None:
                self._augment(batch, augment)
            if self._all_ignored(batch):
                done += 1
                continue
            loss, y = self.step(batch.x, batch.y, batch.lengths, batch.sample_weight), self._targets
            share = self.loss.weight_of(y, self._weights)
            right, counted = self.loss.correct(self._outputs, y) if self.loss.classifies else (0, 0)
            done, total, weight = done + 1, total + loss * share, weight + share
            correct, rows = correct + right, rows + counted
            self._progress = done, total, correct, weight, rows
            report.update(loss)
            for callback in callbacks:
                callback.update_ends(self, loss)
            self._heed_end()
            if self.stop_reason is not None:
                return
        if self._progress is None:
            raise ValueError("train: expected at least one row, and one label in y that counts, got none")
        with contextlib.nullcontext() if budget is None else budget.closing():
            row = self._end_epoch(started, None, validation, callbacks, report)
            for callback in callbacks:
                if isinstance(callback, Checkpoint):
                    callback.epoch_ends(self, row)

    def _heed_end(self):
        """End where the trainings side by side with this one are to end."""
        end = END.get()
        if end is not None and end.is_set():
            self.stop_reason = "interrupted"

    def _end_epoch(self, started, made, validation, callbacks, report):
        """Evaluate, and add a row to the history: of a whole epoch, or where `made` tells how many epochs were made, of
        the part of one."""
        _, total, correct, weight, rows = self._progress
        row = {"epoch": self.epoch + 1 if made is None else made, "loss": total / weight if weight else math.nan}
        if self.loss.classifies and rows:
            row["accuracy"] = correct / rows
        with contextlib.ExitStack() as evaluation:
            for callback in callbacks:
                callback.evaluation_begins(self)
                evaluation.callback(callback.evaluation_ends, self)
            if validation is not None:
                row.update({f"val_{name}": value for name, value in self.evaluate(validation).items()})
            row["lr"] = self._rate(self.update - 1)
            row["seconds"] = time.perf_counter() - started
            if made is None:
                self._progress = None
                self.epoch += 1
            self.history.add(row)
            report.epoch_ends(row)
            for callback in callbacks:
                if not isinstance(callback, Checkpoint):
                    callback.epoch_ends(self, row)
        return row

    def _cut_epoch(self, started, length, validation, callbacks, report):
        """End training within an epoch of `length` batches (0: not known), or before it, so that it can go on later."""
        self.stop_reason = TIME_BUDGET
        for callback in callbacks:
            if isinstance(callback, Checkpoint):
                callback.stopped(self)
        # What the callbacks make of the part of an epoch is not theirs to keep: they will see the whole one.
        self._callback_states = copy.deepcopy(self.callback_states())
        if self._progress is not None:
            made = self.epoch + (self._progress[0] / length if length else 1)
            self._end_epoch(started, made, validation, callbacks, report)
            if self.stop_reason != "interrupted":
                self.stop_reason = TIME_BUDGET

    def _updates_left(self, epochs, length):
        """(epochs, updates) that `fit` would make, by epochs of `length` batches."""
        first = self.epoch if self._first_epoch is None else self._first_epoch
        left = max(first + epochs - self.epoch, 0)
        return left, left * length - (self._progress[0] if left and self._progress else 0)

    def _augment(self, batch, augment):
        key = kernels.stream_key(self.seed, AUGMENTATION << 32, self.update)
        batch.x = augment(batch.x, key)
        if hasattr(augment, "targets"):
            outputs = self.model.predict(batch.x[:1]) if self._outputs is None else self._outputs
            batch.y = augment.targets(batch.y, key, outputs.shape[-1])

    def find_lr(self, train, low=1e-6, high=1.0, updates=100, batch_size=100, *, augment=None):
        """Try ever larger learning rates, a range test; everything is then as it was before.

        One update is made at each of `updates` rates from low to high, in equal ratios; it ends early where the loss
        is not finite or, smoothed, four times its lowest.

        Parameters
        ----------
        train, augment : as for `fit`
        low, high : float
        updates : int
            At least 5.
        batch_size : int

        Returns
        -------
        RangeTest
            Its `suggestion` is a rate to train with, its `plot(path)` a picture.

        References
        ----------
        Smith 2017, arXiv:1506.01186, section 3.3.
        """
        from .learning_rates import range_test

        return range_test(self, train, low, high, updates, batch_size, augment)

    def estimate(self, train, validation=None, *, epochs=1, batch_size=100, updates=20, threads=None, augment=None):
        """Measure how long a fit will take, in how much memory, and which thread count is best; everything is then as
        it was before.

        `updates` updates are made at each thread count, in turns, and the evaluation of a few batches. After an
        interrupted fit the forecast is of what is left of it.

        Parameters
        ----------
        train, validation, augment : as for `fit`
            An iterable must have a length.
        epochs, batch_size : int
            As for `fit`.
        updates : int
            At least 5.
        threads : int, optional
            Highest thread count to try; default: the CPUs that this process may use.

        Returns
        -------
        Forecast
            `seconds` from `low` to `high`, `bytes`, `threads`; it prints as a table. Callbacks are not in it.

        Raises
        ------
        TrainingDiverged
            An update that was tried had no finite loss or gradient.
        """
        from .forecast import estimate

        return estimate(self, train, validation, epochs, batch_size, updates, threads, augment)

    # ---- checkpoints -----------------------------------------------------------------------------------------------

    def save_checkpoint(self, path):
        """Write all that training needs to go on bit for bit: model, buffers, optimizer, counters, history, callbacks.

        The file is written beside its place, synced and renamed: a crash or a full disk leaves the previous one whole.

        Raises
        ------
        TrainingDiverged
            A parameter is not finite; nothing was written.
        OSError
            The file could not be written; the previous one is whole.
        """
        from .checkpoints import save_checkpoint

        save_checkpoint(self, path)

    def load_checkpoint(self, path):
        """Continue from a checkpoint of a trainer with the same model, optimizer and loss.

        Raises
        ------
        ValueError
            The file is no checkpoint, is damaged, or is of another model or optimizer; nothing was changed.
        """
        from .checkpoints import load_checkpoint

        load_checkpoint(self, path)

    def __getstate__(self):
        """Copies carry the recurrent state on too, which a model on its own leaves behind with its workspace."""
        return {**self.__dict__, "_carried": self.model._training_work().carried}

    def __setstate__(self, state):
        carried = state.pop("_carried")
        self.__dict__.update(state)
        self.model._training_work().carried = carried

    def _restore_callbacks(self, callbacks):
        for key, callback in zip(_keys(callbacks), callbacks, strict=True):
            state = self._callback_states.get(key)
            if state is not None:
                callback.load_state(state)
        self._callbacks = tuple(callbacks)
        self._callback_states = {}

    def callback_states(self):
        """The running fit's callbacks' states, by class and place among those of one class."""
        return {key: callback.state() for key, callback in zip(_keys(self._callbacks), self._callbacks, strict=True)}


def _keys(callbacks):
    kinds = [type(callback).__name__ for callback in callbacks]
    return [f"{kinds[:i].count(kind)}.{kind}" for i, kind in enumerate(kinds)]


@contextlib.contextmanager
def _interrupts(trainer):
    """Let Ctrl-C end the training between two updates, so that nothing is half done; a second one acts at once."""
    if (
        threading.current_thread() is not threading.main_thread()
        or signal.getsignal(signal.SIGINT) is not signal.default_int_handler
    ):
        yield
        return

    def stop(number, frame):
        signal.signal(signal.SIGINT, signal.default_int_handler)
        trainer.stop_reason = "interrupted"

    signal.signal(signal.SIGINT, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
