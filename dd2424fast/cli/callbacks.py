"""What `dd2424fast train` watches during a fit."""

import contextlib
import signal

from ..callbacks import Callback


class StopOnSignal(Callback):
    """Let SIGTERM end training between two updates, as Ctrl-C does by itself; the checkpoint is saved then.

    Attributes
    ----------
    received : bool
    """

    def __init__(self):
        self.received = False

    @contextlib.contextmanager
    def listening(self):
        """Take SIGTERM inside the block."""
        previous = signal.signal(signal.SIGTERM, self._receive)
        try:
            yield
        finally:
            signal.signal(signal.SIGTERM, previous)

    def _receive(self, number, frame):
        self.received = True

    def update_ends(self, trainer, loss):
        if self.received:
            trainer.stop_reason = "interrupted"


class SameOptions(Callback):
    """Keep the options in the checkpoint, and refuse to go on with others."""

    def __init__(self, options):
        self.options = options

    def state(self):
        return {"options": self.options}

    def load_state(self, state):
        before = state["options"]
        changed = [
            f"{name.replace('_', '-')} {before.get(name)} (now {self.options.get(name)})"
            for name in sorted({*before, *self.options})
            if before.get(name) != self.options.get(name)
        ]
        if changed:
            raise ValueError(f"--resume: the checkpoint was made with {', '.join(changed)}")
