"""What `fit` shows while it runs."""

import sys

from .data.tokenizers import Char
from .metrics import SmoothedLoss


class Reporter:
    """The progress bar, or a line an epoch where there is no terminal.

    The bar counts updates, of a text its characters or tokens: so many a second, and the time that is left. Beside it
    stands the smoothed loss of the updates.
    """

    def __init__(self, trainer, progress, batches):
        self.trainer, self.batches = trainer, batches
        self.shown = bool(progress)
        self.bar = None
        self.smoothed = SmoothedLoss(0.99)  # of about the last hundred updates
        self.last = ""  # the last epoch's validation
        self.unit = "update"
        if batches.corpus is not None:
            self.unit = "character" if isinstance(batches.corpus.tokenizer, Char) else "token"

    def __enter__(self):
        return self

    def __exit__(self, *error):
        if self.bar is not None:
            self.bar.close()

    def epoch_begins(self, done):
        if self.shown and sys.stderr.isatty():
            if self.bar is None:
                from tqdm import tqdm

                self.bar = tqdm(
                    total=self._total(done), unit=f" {self.unit}s", unit_scale=self.unit != "update",
                    dynamic_ncols=True, leave=True, mininterval=0.2,
                )  # fmt: skip
            self.bar.set_description(f"epoch {self.trainer.epoch + 1}/{self.trainer._last_epoch}", refresh=False)

    def _total(self, done):
        """What is left to do, in the bar's unit; None where the data do not tell."""
        trainer, batches = self.trainer, self.batches
        known = [c.last_update - trainer.update for c in trainer._callbacks if c.last_update is not None]
        if len(batches):
            known.append((trainer._last_epoch - trainer.epoch) * len(batches) - done)
        updates = max(min(known, default=0), 0)
        if self.unit == "update":
            return updates or None
        now = trainer.epoch * len(batches) + done
        return self._tokens(now + updates) - self._tokens(now) or None

    def _tokens(self, updates):
        """How many tokens so many updates read."""
        streams, time = self.batches.batch_size, self.batches.corpus.time
        _, length = self.batches.corpus._plan("train", streams)
        done, windows = divmod(updates, -(-length // time))  # groups of streams, of all epochs
        return streams * (done * length + windows * time)

    def update(self, loss):
        if self.bar is None:
            return
        self.bar.set_postfix_str(f"loss {self.smoothed.update(loss):.4f}{self.last}", refresh=False)
        self.bar.update(1 if self.unit == "update" else len(self.trainer._targets))

    def epoch_ends(self, row):
        names = [name for name in ("loss", "accuracy", "val_loss", "val_accuracy") if name in row]
        if self.bar is not None:
            self.last = "".join(f", {name} {row[name]:.4f}" for name in names if name.startswith("val_"))
        elif self.shown:
            from .forecast import duration

            text = ", ".join(f"{name} {row[name]:.4f}" for name in names)
            epochs, took = self.trainer._last_epoch, duration(row["seconds"])
            print(f"epoch {row['epoch']:g}/{epochs}: {text} ({took})", file=sys.stderr)
