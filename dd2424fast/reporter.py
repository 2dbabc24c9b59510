"""What `fit` shows while it runs."""

import sys


class Reporter:
    """The progress bar, or a line an epoch where there is no terminal."""

    def __init__(self, trainer, progress, batches):
        self.trainer, self.batches = trainer, batches
        self.shown = bool(progress)
        self.bar = None

    def __enter__(self):
        return self

    def __exit__(self, *error):
        if self.bar is not None:
            self.bar.close()

    def epoch_begins(self, done):
        if self.shown and sys.stderr.isatty():
            from tqdm import tqdm

            if self.bar is None:
                rest = (self.trainer._last_epoch - self.trainer.epoch) * len(self.batches) - done
                self.bar = tqdm(total=rest or None, unit="update", dynamic_ncols=True, leave=True, mininterval=0.2)
            self.bar.set_description(f"epoch {self.trainer.epoch + 1}/{self.trainer._last_epoch}", refresh=False)

    def update(self, loss):
        if self.bar is not None:
            self.bar.update()

    def epoch_ends(self, row):
        text = ", ".join(
            f"{name} {row[name]:.4f}" for name in ("loss", "accuracy", "val_loss", "val_accuracy") if name in row
        )
        if self.bar is not None:
            self.bar.set_postfix_str(text, refresh=False)
        elif self.shown:
            print(f"epoch {row['epoch']}/{self.trainer._last_epoch}: {text} ({row['seconds']:.2f} s)", file=sys.stderr)
