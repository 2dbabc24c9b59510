"""Batches of a training or validation set, in an order that is a pure function of (seed, epoch)."""

import itertools
import math
from collections.abc import Iterable, Mapping

import numpy as np

from . import kernels
from .configuration import array_of, columns_hint
from .data.text import TextCorpus
from .nn.module import SHUFFLE, generator


class Batch:
    """What one update or evaluation reads.

    Parameters
    ----------
    x, y, lengths, sample_weight : see `Trainer.step`
    begins : bool
        Whether a model that carries its state from batch to batch begins anew here, at the zero state.
    """

    __slots__ = ("begins", "lengths", "sample_weight", "x", "y")

    def __init__(self, x, y, lengths=None, sample_weight=None, begins=False):
        self.x, self.y, self.lengths, self.sample_weight, self.begins = x, y, lengths, sample_weight, begins

    @classmethod
    def of(cls, item, begins, takes_lengths):
        """A batch as an iterable gave it: (x, y), for a model of sequences (x, y, lengths), or a Batch."""
        if isinstance(item, Batch):
            return cls(item.x, array_of("y", item.y), item.lengths, item.sample_weight, begins or item.begins)
        if not isinstance(item, tuple | list) or len(item) not in ((2, 3) if takes_lengths else (2,)):
            got = type(item).__name__ + (f" of {len(item)}" if isinstance(item, tuple | list) else "")
            raise TypeError(f"data: expected batches {_pairs(takes_lengths)} or Batch, got {got}")
        return cls(item[0], array_of("y", item[1]), *item[2:], begins=begins)

    def through(self, model, work):
        """Run a model on it: (outputs, targets, sample weights or None), all as rows for the loss."""
        if self.lengths is not None and not model.takes_lengths:
            raise ValueError("lengths: this model takes no sequences")
        x = model._input(self.x)
        if not len(x):
            raise ValueError(f"x: expected at least one row, got shape {x.shape}")
        y, weight = self.y, self.sample_weight
        if type(y) is not np.ndarray:
            y = array_of("y", y)
        work.lengths = self.lengths
        try:
            outputs = model._forward(x, work)
        finally:
            work.lengths = None
        work.output_shape = outputs.shape
        if weight is not None:
            weight = model._to_rows("sample_weight", array_of("sample_weight", weight), work)
        return outputs, model._to_rows("y", y, work), weight

    def counted(self):
        """The targets, those behind a sequence's end left out."""
        y, lengths = np.asarray(self.y), self.lengths
        if lengths is None or y.ndim < 2 or np.shape(lengths) != (len(y),):
            return y
        return y[np.arange(y.shape[1]) < np.asarray(lengths)[:, None]]

    def check_labels(self, classes, ignored):
        """Raise ValueError where a label of a sequence is none, by its place (sequence, step): the loss knows rows."""
        y = np.asarray(self.y)
        if y.ndim != 2 or y.dtype.kind not in "iu":
            return
        bad = (y != ignored) & ((y < 0) | (y >= classes))
        if self.lengths is not None:
            bad &= np.arange(y.shape[1]) < np.asarray(self.lengths)[:, None]
        if bad.any():
            first = tuple(int(i) for i in np.argwhere(bad)[0])
            raise ValueError(f"y: expected labels from 0 to {classes - 1}, got {y[first]} at {first}")


class Batches:
    """Batches: arrays (x, y) or (x, y, lengths) cut up in an order that is a pure function of (seed, epoch), the
    windows of a text, or an iterable taken as it comes. Of a text, `name` "train" means its training part in windows to
    train on; any other the part `part`, once through."""

    def __init__(
        self, data, batch_size, seed, check=False, fewest=1, name="data", takes_lengths=False, part="validation"
    ):
        self.batch_size, self.seed, self.fewest = batch_size, seed, fewest
        self.takes_lengths = takes_lengths
        self.arrays = self.corpus = None
        if isinstance(data, TextCorpus):
            self.corpus, self.part, self.learns = data, part, name == "train"
            if not self.learns and len(data._ids(part)) < 2:
                raise ValueError(f"{name}: expected a corpus with a {part} part, got {data!r}")
        elif _are_arrays(data, takes_lengths):
            x, y = array_of("x", data[0]), array_of("y", data[1])
            lengths = array_of("lengths", data[2]) if len(data) == 3 else None
            if not x.ndim or not y.ndim:
                raise ValueError(f"{name}: expected arrays (x, y) of rows, got shapes {x.shape} and {y.shape}")
            if len(x) != len(y):
                raise ValueError(f"y: expected {len(x)} rows like x, got {len(y)}{columns_hint(x.shape, y.shape)}")
            if lengths is not None and lengths.shape != (len(x),):
                raise ValueError(f"lengths: expected shape ({len(x)},), one for each row of x, got {lengths.shape}")
            if not len(x):
                raise ValueError(f"x: expected at least one row, got shape {x.shape}")
            if x.ndim == 2 and min(len(x), batch_size) < fewest:
                what, got = ("x", f"shape {x.shape}") if len(x) < fewest else ("batch_size", batch_size)
                raise ValueError(f"{what}: expected at least 2 rows a batch for batch normalisation, got {got}")
            if check and x.dtype.kind == "f" and not _all_finite(x):
                first = tuple(int(i) for i in np.argwhere(~np.isfinite(x))[0])
                raise ValueError(f"x: expected finite numbers, got {x[first]} at {first}")
            self.arrays = x, y, lengths
        elif isinstance(data, np.ndarray | str | bytes | Mapping) or not isinstance(data, Iterable):
            raise TypeError(f"{name}: expected (x, y) or an iterable of such batches, got {type(data).__name__}")
        elif isinstance(data, tuple) and data and isinstance(data[0], np.ndarray):
            expected = f"{_pairs(takes_lengths)} or an iterable of such batches"
            raise ValueError(f"{name}: expected {expected}, got {len(data)} arrays")
        elif iter(data) is data:
            raise TypeError(
                "data: expected (x, y) or an iterable that can be walked again every epoch, got a one-way iterator"
            )
        else:
            self.iterable = data

    def __len__(self):
        if self.arrays is not None:
            return len(self._starts(0)) - 1
        if self.corpus is not None:
            return self.corpus.count("train", self.batch_size) if self.learns else 0
        return len(self.iterable) if hasattr(self.iterable, "__len__") else 0

    def evaluated(self):
        """How many numbers of y an evaluation reads; None where an iterable does not tell."""
        if self.corpus is not None:
            return math.prod(self.corpus.evaluation_plan(self.part))
        if self.arrays is not None:
            return self.arrays[1].size
        return None

    def _starts(self, skip):
        """Where the batches from the `skip`-th on begin, and where the last one ends."""
        n = len(self.arrays[0])
        starts = list(range(0, n, self.batch_size))
        if len(starts) > 1 and n - starts[-1] < self.fewest:
            starts.pop()
        return [*starts[skip:], n]

    def of_epoch(self, epoch, skip):
        """Yield every Batch from the epoch's `skip`-th on."""
        if self.corpus is not None:
            if self.learns:
                windows = self.corpus.batches("train", self.batch_size, epoch, self.seed, skip)
            else:
                windows = self.corpus.evaluation(self.part)
            for x, y, begins in windows:
                yield Batch(x, y, begins=begins)
        elif self.arrays is None:
            for i, item in enumerate(self.iterable):
                batch = Batch.of(item, i == 0, self.takes_lengths)
                if i >= skip:
                    yield batch
        else:
            x, y, lengths = self.arrays
            order = None if self.seed is None else generator(self.seed, SHUFFLE, epoch).permutation(len(x))
            for start, stop in itertools.pairwise(self._starts(skip)):
                rows = slice(start, stop) if order is None else order[start:stop]
                yield Batch(x[rows], y[rows], None if lengths is None else lengths[rows], begins=True)


def _pairs(takes_lengths):
    return "(x, y), (x, y, lengths)" if takes_lengths else "(x, y)"


def _are_arrays(data, takes_lengths):
    """Whether data are (x, y) or a tuple (x, y, lengths), not an iterable of batches."""
    if takes_lengths and isinstance(data, tuple) and len(data) == 3:
        return isinstance(data[0], np.ndarray)
    return isinstance(data, tuple | list) and len(data) == 2 and not isinstance(data[0], tuple | Batch)


def _all_finite(x):
    native = x.dtype in (np.dtype("float32"), np.dtype("float64"))
    return kernels.all_finite(x) if native else bool(np.isfinite(x).all())
