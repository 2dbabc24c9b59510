"""How long a training will take, in how much memory and on how many threads, measured by a few updates; and the watch
over a time that must not be passed."""

import collections
import contextlib
import itertools
import math
import time
import tracemalloc
from dataclasses import dataclass

import numpy as np

from .batches import Batches
from .config import get_num_threads, set_num_threads
from .configuration import integer_in, positive_integer, real_in
from .kernels._team import _usable_cpus, has_openmp
from .rehearsal import as_it_was, endless, new_workspaces

_LOW, _HIGH = 0.1, 0.9  # quantiles of the measured updates: the band
_ROUNDS = 4  # through all thread counts, so that what else the machine does falls on each of them
_EVALUATIONS = 5  # batches of the validation data at least, where they are fewer by walking through them again


@dataclass
class Forecast:
    """What a fit will take.

    Attributes
    ----------
    updates, epochs : int
        That are left to be made, each epoch with its evaluation.
    now : int
        The thread count that `fit` would use, to which `seconds`, `low` and `high` belong.
    timings : dict from int to ndarray of float64
        From thread count to the seconds of the updates measured with it.
    evaluation : (float, float, float)
        Seconds of an epoch's evaluation: the lower quantile, the median and the upper quantile; zeros without
        validation data.
    warm_up : float
        Seconds by which the first update takes longer: memory is taken, and Numba compiles.
    parts : dict from str to int
        Bytes of what is held while training, beside the data.
    """

    updates: int
    epochs: int
    now: int
    timings: dict
    evaluation: tuple
    warm_up: float
    parts: dict

    @property
    def seconds(self):
        """Expected time of the fit: of its updates, as the measured ones' median, the evaluations and the warm-up."""
        return self.warm_up + self._total(0.5, self.evaluation[1])

    @property
    def low(self):
        """The time where every update takes what a quick one does (the 10 % quantile), and nothing is left to warm
        up."""
        return self._total(_LOW, self.evaluation[0])

    @property
    def high(self):
        """The time where every update takes what a slow one does (the 90 % quantile)."""
        return self.warm_up + self._total(_HIGH, self.evaluation[2])

    def _total(self, quantile, evaluation, threads=None):
        update = float(np.quantile(self.timings[self.now if threads is None else threads], quantile))
        return self.updates * update + self.epochs * evaluation

    @property
    def bytes(self):
        """Peak of the memory that is held while training, beside the data: the sum of `parts`."""
        return sum(self.parts.values())

    @property
    def threads(self):
        """The best thread count: the fewest threads whose median update is no slower than the fastest count's upper
        quartile."""
        medians = {n: np.median(seconds) for n, seconds in self.timings.items()}
        fastest = min(medians, key=lambda n: (medians[n], n))
        limit = np.quantile(self.timings[fastest], 0.75)
        return min(n for n, median in medians.items() if median <= limit)

    def updates_within(self, seconds):
        """How many updates are expected to fit into a time, with the evaluations of their epochs: the length to give a
        schedule.

        Parameters
        ----------
        seconds : float

        Returns
        -------
        int
        """
        seconds = real_in("seconds", seconds, 0, math.inf, include_high=False)
        if not self.updates:
            return 0
        each = (self.seconds - self.warm_up) / self.updates
        return max(int((seconds - self.warm_up) / each), 0)

    def table(self):
        """The forecast as text: time, memory, and one line for each thread count that was tried."""
        evaluation = self.epochs * self.evaluation[1]
        parts = ", ".join(f"{name} {memory(size)}" for name, size in self.parts.items())
        lines = [
            f"training  {self.epochs:,} epochs, {self.updates:,} updates",
            f"time      {duration(self.seconds)} (from {duration(self.low)} to {duration(self.high)}), of it "
            f"evaluation {duration(evaluation)}, warm-up {duration(self.warm_up)}",
            f"memory    {memory(self.bytes)}: {parts}",
            f"threads   {self.threads} (now {self.now})",
            f"{'threads':>9} {'ms an update':>13} {'10 %':>9} {'90 %':>9}",
        ]
        for n, seconds in self.timings.items():
            median, low, high = 1e3 * np.quantile(seconds, (0.5, _LOW, _HIGH))
            lines.append(f"{n:>9} {median:>13.3f} {low:>9.3f} {high:>9.3f}")
        return "\n".join(lines)

    def to_dict(self):
        """The forecast as JSON knows it."""
        medians = {str(n): float(np.median(seconds)) for n, seconds in self.timings.items()}
        names = ("updates", "epochs", "seconds", "low", "high", "bytes", "parts", "threads", "now", "warm_up")
        return {name: getattr(self, name) for name in names} | {"seconds_an_update": medians}

    def __str__(self):
        return self.table()


def duration(seconds):
    """A time in words: 12.3 ms, 12.3 s, 4 min 10 s, 2 h 05 min."""
    if seconds < 0.1:
        return f"{1e3 * seconds:.3g} ms"
    if seconds < 59.95:
        return f"{seconds:.3g} s" if seconds < 10 else f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes:02d} min"


def memory(size):
    """Bytes in words: 15.0 kB, 2.1 MB."""
    for unit, one in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size >= one:
            return f"{size / one:.1f} {unit}"
    return f"{size} B"


def estimate(trainer, train, validation, epochs, batch_size, updates, threads, augment):
    """See `Trainer.estimate`."""
    epochs, batch_size = positive_integer("epochs", epochs), positive_integer("batch_size", batch_size)
    updates = integer_in("updates", updates, 5)
    batches, validation = trainer._batches(train, validation, batch_size, augment)
    if not len(batches):
        raise ValueError("train: expected arrays, a TextCorpus or an iterable with a length, got one without")
    left = trainer._updates_left(epochs, len(batches))
    now = get_num_threads()
    with as_it_was(trainer):
        trainer._outputs = None
        stream = endless(batches, trainer, augment)
        first = _seconds_of_update(trainer, stream)
        timings = _timings(trainer, stream, updates, _thread_counts(threads, now))
        evaluation = (0.0, 0.0, 0.0)
        if validation is not None:
            evaluation = evaluation_seconds(trainer, validation, (_LOW, 0.5, _HIGH))
        parts = _memory(trainer, batches, validation, augment)
    warm_up = max(first - float(np.median(timings[now])), 0.0)
    return Forecast(left[1], left[0], now, timings, evaluation, warm_up, parts)


def _thread_counts(most, now):
    """1, 2, 3, 4, then doubling up to `most`, and how many are used now."""
    most = max(_usable_cpus(), now) if most is None else positive_integer("threads", most)
    if not has_openmp():
        return [now]
    return sorted({n for n in (1, 2, 3, 4, *(2**i for i in range(3, 11)), most) if n <= most} | {now})


def _timings(trainer, stream, updates, counts):
    """Seconds of the updates at each thread count."""
    seconds, now = {n: [] for n in counts}, get_num_threads()
    bounds = np.linspace(0, updates, _ROUNDS + 1).astype(int)
    try:
        for start, stop in itertools.pairwise(bounds):
            for n in counts:
                set_num_threads(n)
                _seconds_of_update(trainer, stream)  # of another team, with other caches: not kept
                seconds[n] += [_seconds_of_update(trainer, stream) for _ in range(start, stop)]
    finally:
        set_num_threads(now)
    return {n: np.array(each) for n, each in seconds.items()}


def _seconds_of_update(trainer, stream):
    """Make an update as `fit` does, its batch and its accuracy included."""
    began = time.perf_counter()
    batch = next(stream)
    trainer.step(batch.x, batch.y, batch.lengths, batch.sample_weight)
    if trainer.loss.classifies:
        trainer.loss.correct(trainer._outputs, trainer._targets)
    return time.perf_counter() - began


def evaluation_seconds(trainer, validation, quantiles, at_least=_EVALUATIONS):
    """Seconds that `trainer.evaluate(validation)` takes, by its first batches: at these quantiles of the time that a
    number of y takes.

    An iterable that tells neither its length nor its rows is walked through once.
    """
    batches = Batches(validation, 1000, None, takes_lengths=trainer.model.takes_lengths)
    work = trainer.model._inference_work()
    work.carries = True
    try:
        first = _evaluate(trainer, batches, work, 1 if batches.evaluated() or len(batches) else None)
        found = []
        while len(found) < at_least:  # the first one took memory: it is not among them
            found += _evaluate(trainer, batches, work, at_least - len(found))
    finally:
        work.carried, work.carries = None, False
    seconds, sizes = np.array(found).T
    total = batches.evaluated() or (len(batches) or len(first)) * sizes.mean()
    whole = sizes >= sizes.max() / 2  # of a batch of few rows each takes longer
    return tuple(float(rate) * total for rate in np.quantile(seconds[whole] / sizes[whole], quantiles))


def _evaluate(trainer, batches, work, most):
    """(seconds, numbers of y) of the first batches of an evaluation; of all where `most` is None."""
    found, began = [], time.perf_counter()
    for batch in itertools.islice(batches.of_epoch(0, 0), most):
        trainer._scores(batch, work, False, batches.batch_size)
        now = time.perf_counter()
        found.append((now - began, np.size(batch.y)))
        began = now
    if not found:
        raise ValueError("validation: expected at least one batch, got none")
    return found


def _memory(trainer, batches, validation, augment):
    """Bytes that are held while training: what is known by its name, and the peak of what passes take beside it."""
    model, optimizer = trainer.model, trainer.optimizer
    parts = {
        "parameters": model.parameters.nbytes + model.buffers.nbytes,
        "gradients": model.gradients.nbytes,
        "optimizer": sum(a.nbytes for a in optimizer.state.values()),
    }
    with new_workspaces(model), _peak() as peak:
        stream = endless(batches, trainer, augment)
        for _ in range(2):  # a carried state alternates between two sets of buffers
            _seconds_of_update(trainer, stream)
        if validation is not None:
            held_out = Batches(validation, 1000, None, takes_lengths=model.takes_lengths)
            _evaluate(trainer, held_out, model._inference_work(), 2)
    return parts | {"activations and work": peak[0]}


@contextlib.contextmanager
def _peak():
    """Measure the peak of the memory that Python and NumPy take inside the block."""
    found, ours = [0], not tracemalloc.is_tracing()
    if ours:
        tracemalloc.start()
    tracemalloc.reset_peak()
    before = tracemalloc.get_traced_memory()[0]
    try:
        yield found
    finally:
        found[0] = max(tracemalloc.get_traced_memory()[1] - before, 0)
        if ours:
            tracemalloc.stop()


class TimeBudget:
    """Tells whether a fit may make another update: it, and the evaluation that follows, must end in time.

    An update is expected to take what the slowest of the last ten took; the end of an epoch what the longest took, and
    before there was one what an evaluation of the validation data takes, of which some is run at the beginning. The
    first update is always made.

    Parameters
    ----------
    seconds : float
    """

    def __init__(self, seconds):
        self._deadline = time.perf_counter() + seconds
        self._recent = collections.deque(maxlen=10)
        self._closing = None  # the longest end of an epoch
        self._evaluation = 0.0
        self._last = None  # when the update before this one began, in the same epoch
        self._begun = False

    def begin(self, trainer, validation):
        """Measure the evaluation."""
        if validation is not None:
            (self._evaluation,) = evaluation_seconds(trainer, validation, (1.0,), at_least=2)

    def allows_update(self):
        """To be asked before every update: it is timed from here to the next question."""
        now = self._last = self._update_ended()
        if not self._begun:
            self._begun = True
            return True
        closing = self._evaluation if self._closing is None else self._closing
        return now + max(self._recent, default=0.0) + closing <= self._deadline

    @contextlib.contextmanager
    def closing(self):
        """Time the end of an epoch."""
        began, self._last = self._update_ended(), None
        yield
        self._closing = max(self._closing or 0.0, time.perf_counter() - began)

    def _update_ended(self):
        """Note how long the update took that has ended now, where there was one."""
        now = time.perf_counter()
        if self._last is not None:
            self._recent.append(now - self._last)
        return now
