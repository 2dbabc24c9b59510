"""What a training went through, epoch by epoch."""

import csv
import json
import math


class History:
    """Columns of numbers, one entry an epoch: `history["loss"]` is a list.

    Attributes
    ----------
    columns : dict
        From name ("epoch", "loss", "accuracy", "val_loss", "val_accuracy", "lr", "seconds"; "val_" stands before all
        that `Trainer.evaluate` tells, of a text also "val_perplexity" and "val_bits_per_character") to list. Loss in
        the loss function's unit, accuracies as fractions, seconds of wall time. An epoch is a fraction where a time
        budget has cut it.
    """

    def __init__(self, columns=None):
        self.columns = {name: list(values) for name, values in (columns or {}).items()}

    def add(self, row):
        """Append one epoch; a column that is new, or missing here, is filled with None."""
        length = len(self)
        for name in row:
            self.columns.setdefault(name, [None] * length)
        for name, values in self.columns.items():
            values.append(row.get(name))

    def drop_after(self, epoch):
        """Remove the rows behind that many epochs: of an epoch that was cut, and has begun again."""
        epochs = self.columns.get("epoch", ())
        while epochs and not epochs[-1] <= epoch:
            for values in self.columns.values():
                values.pop()

    def __len__(self):
        return max(map(len, self.columns.values()), default=0)

    def __getitem__(self, name):
        if name not in self.columns:
            raise KeyError(f"history has no {name!r}; it has {', '.join(sorted(self.columns)) or 'no epochs yet'}")
        return self.columns[name]

    def __contains__(self, name):
        return name in self.columns

    def to_json(self, path):
        """Write the columns as a JSON object of lists; null for what is no finite number."""
        with open(path, "w", encoding="utf-8") as file:
            json.dump(plain(self.columns), file, indent=1, allow_nan=False)

    def to_csv(self, path):
        """Write one line an epoch, with a header."""
        with open(path, "w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(self.columns)
            writer.writerows(zip(*self.columns.values(), strict=True))

    def plot(self, path=None):
        """Draw loss and accuracy against epochs; see `plots.learning_curves`, which takes several histories.

        Parameters
        ----------
        path : path-like, optional
            Where to write the picture; its ending says in which format.

        Returns
        -------
        matplotlib.figure.Figure
        """
        from .plots import learning_curves

        return learning_curves(self, path)

    def __repr__(self):
        last = {name: values[-1] for name, values in self.columns.items() if values}
        return f"<History of {len(self)} epochs, last {last}>"


def plain(value):
    """Numbers, and lists and dicts of them, as JSON knows them: None where one is not finite."""
    if isinstance(value, dict):
        return {name: plain(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [plain(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
