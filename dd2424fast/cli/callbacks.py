"""What `dd2424fast train` watches during a fit."""

import contextlib
import signal
import time

from ..callbacks import Callback
from ..files import read


class StopOnSignal(Callback):
    """Let Ctrl-C or SIGTERM end training between two updates, so that nothing is half done; the checkpoint is saved
    then. A second one acts at once.

    Attributes
    ----------
    received : int or None
        The signal's number.
    """

    def __init__(self):
        self.received = None

    @contextlib.contextmanager
    def listening(self):
        """Take the signals inside the block, but for those that this process was started to ignore."""
        numbers = [n for n in (signal.SIGINT, signal.SIGTERM) if signal.getsignal(n) is not signal.SIG_IGN]
        self._previous = {number: signal.signal(number, self._receive) for number in numbers}
        try:
            yield
        finally:
            for number, handler in self._previous.items():
                signal.signal(number, handler)

    def _receive(self, number, frame):
        self.received = number
        signal.signal(number, self._previous[number])

    def _stop(self, trainer):
        if self.received is not None:
            trainer.stop_reason = "interrupted"

    def update_ends(self, trainer, loss):
        self._stop(trainer)

    def epoch_ends(self, trainer, row):
        self._stop(trainer)


class SameOptions(Callback):
    """Keep the options in the checkpoint, and refuse to go on with others.

    Parameters
    ----------
    options : dict
        Of what JSON can hold.
    """

    def __init__(self, options):
        self.options = options

    def state(self):
        return {"options": self.options}

    def load_state(self, state):
        self._compare(state["options"])

    def check(self, path):
        """Raise ValueError where the checkpoint at `path` was made with other options; says more than a comparison of
        the models, which comes later."""
        _, header = read(path, "checkpoint")
        found = [state for key, state in header["callbacks"].items() if key.endswith(f".{type(self).__name__}")]
        if not found:
            raise ValueError(f"--resume: {path} was not made by `dd2424fast train`")
        self._compare(found[0]["options"])

    def _compare(self, before):
        names = sorted({*before, *self.options})
        if before.get("kind") != self.options.get("kind"):
            names = ["kind"]  # the rest differs because of it
        changed = [name for name in names if before.get(name) != self.options.get(name)]
        if changed and before.get("schedule") == "cosine" == self.options.get("schedule") and LENGTH >= {*changed}:
            was, now = (_length(options) for options in (before, self.options))
            raise ValueError(
                f"--resume: expected {was}, as the checkpoint was made with, got {now}: a cosine falls to its end "
                f"over all updates, so every one would have had another rate. Give {was} to go on, or train "
                "anew with another --checkpoint"
            )
        if changed:
            told = (f"{_option(name)} {before.get(name)} (now {self.options.get(name)})" for name in changed)
            raise ValueError(f"--resume: the checkpoint was made with {', '.join(told)}")


LENGTH = {"epochs", "updates"}  # how long a training is, by one or the other


def _length(options):
    return " ".join(f"--{name} {options[name]}" for name in sorted(LENGTH) if options.get(name))


def _option(name):
    return name.replace("_", "-")


class StopAfter(Callback):
    """End training within an epoch, after so many updates in all.

    Parameters
    ----------
    updates : int

    Attributes
    ----------
    progress : tuple or None
        Where the epoch was cut: (batches done, sum of losses, correct, weight, rows).
    """

    def __init__(self, updates):
        self.last_update = updates
        self.progress = None

    def fit_begins(self, trainer):
        self._stop_if_due(trainer)  # resumed where it already was due

    def update_ends(self, trainer, loss):
        self._stop_if_due(trainer)

    def _stop_if_due(self, trainer):
        if trainer.update >= self.last_update and trainer.stop_reason is None:
            trainer.stop_reason = f"made {trainer.update:,} updates"
            self.progress = trainer._progress


class Speed(Callback):
    """Counts what training takes, without validation and what else happens between two epochs.

    Attributes
    ----------
    tokens : int
    seconds : float
    """

    def __init__(self):
        self.tokens, self.seconds = 0, 0.0

    def fit_begins(self, trainer):
        self._began = self._last = time.perf_counter()

    def update_ends(self, trainer, loss):
        self.tokens += len(trainer._targets)
        self._last = time.perf_counter()

    def epoch_ends(self, trainer, row):
        self.seconds += self._last - self._began
        self._began = self._last = time.perf_counter()

    def fit_ends(self, trainer):
        self.seconds += self._last - self._began
