"""Batches of a training or validation set, in an order that is a pure function of (seed, epoch)."""

import itertools
from collections.abc import Iterable, Mapping

import numpy as np

from . import kernels
from .configuration import array_of
from .data.text import TextCorpus
from .nn.module import SHUFFLE, generator


class Batches:
    """Batches of (x, y): arrays cut up in an order that is a pure function of (seed, epoch), the windows of a text,
    or an iterable taken as it comes. Of a text, `name` "train" means its training part, any other its validation
    part."""

    def __init__(self, data, batch_size, seed, check=False, fewest=1, name="data"):
        self.batch_size, self.seed, self.fewest = batch_size, seed, fewest
        self.arrays = self.corpus = None
        if isinstance(data, TextCorpus):
            self.corpus, self.part = data, "train" if name == "train" else "validation"
            if self.part == "validation" and len(data.validation) < 2:
                raise ValueError(f"{name}: expected a corpus with a validation part, got {data!r}")
        elif isinstance(data, tuple | list) and len(data) == 2 and not isinstance(data[0], tuple):
            x, y = array_of("x", data[0]), array_of("y", data[1])
            if not x.ndim or not y.ndim:
                raise ValueError(f"{name}: expected arrays (x, y) of rows, got shapes {x.shape} and {y.shape}")
            if len(x) != len(y):
                raise ValueError(f"y: expected {len(x)} rows like x, got {len(y)}")
            if not len(x):
                raise ValueError(f"x: expected at least one row, got shape {x.shape}")
            if x.ndim == 2 and min(len(x), batch_size) < fewest:
                what, got = ("x", f"shape {x.shape}") if len(x) < fewest else ("batch_size", batch_size)
                raise ValueError(f"{what}: expected at least 2 rows a batch for batch normalisation, got {got}")
            if check and x.dtype.kind == "f" and not _all_finite(x):
                first = tuple(int(i) for i in np.argwhere(~np.isfinite(x))[0])
                raise ValueError(f"x: expected finite numbers, got {x[first]} at {first}")
            self.arrays = x, y
        elif isinstance(data, np.ndarray | str | bytes | Mapping) or not isinstance(data, Iterable):
            raise TypeError(f"{name}: expected (x, y) or an iterable of such batches, got {type(data).__name__}")
        elif isinstance(data, tuple) and data and isinstance(data[0], np.ndarray):
            raise ValueError(
                f"{name}: expected (x, y) or an iterable of such batches, got a tuple of {len(data)} arrays"
            )
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
            return self.corpus.count(self.part, self.batch_size)
        return len(self.iterable) if hasattr(self.iterable, "__len__") else 0

    def _starts(self, skip):
        """Where the batches from the `skip`-th on begin, and where the last one ends."""
        n = len(self.arrays[0])
        starts = list(range(0, n, self.batch_size))
        if len(starts) > 1 and n - starts[-1] < self.fewest:
            starts.pop()
        return [*starts[skip:], n]

    def of_epoch(self, epoch, skip):
        """Yield (x, y, begins) from the epoch's `skip`-th batch on; `begins`: a model's carried state ends here."""
        if self.corpus is not None:
            if self.part == "train":
                yield from self.corpus.batches(self.part, self.batch_size, epoch, self.seed, skip)
            else:
                yield from self.corpus.evaluation(self.part)
        elif self.arrays is None:
            for i, batch in enumerate(self.iterable):
                if not isinstance(batch, tuple | list) or len(batch) != 2:
                    raise TypeError(f"data: expected batches (x, y), got {type(batch).__name__}")
                if i >= skip:
                    yield batch[0], array_of("y", batch[1]), i == 0
        else:
            x, y = self.arrays
            order = None if self.seed is None else generator(self.seed, SHUFFLE, epoch).permutation(len(x))
            for start, stop in itertools.pairwise(self._starts(skip)):
                rows = slice(start, stop) if order is None else order[start:stop]
                yield x[rows], y[rows], True


def _all_finite(x):
    native = x.dtype in (np.dtype("float32"), np.dtype("float64"))
    return kernels.all_finite(x) if native else bool(np.isfinite(x).all())
