# cython: language_level=3
"""Which parameters of a flat vector an optimizer moves, and how fast."""
import operator

import numpy as np
cimport numpy as cnp
from cpython.mem cimport PyMem_RawFree, PyMem_RawMalloc

cnp.import_array()


cdef class Segments:
    """Rows of a flat parameter vector, each with a factor for the learning rate and one for the weight decay.

    Parameters outside every row are frozen: optimizers touch neither them nor their state. The table is checked and cut
    into spans of work here, once, so that a kernel only compares its `size`. It never changes.

    Parameters
    ----------
    size : int
        Length of the parameter vector.
    bounds : array_like of int, shape (S, 2), optional
        Start and stop of each row, in any order; rows must not overlap. The whole vector where it is left out.
    factors : array_like of float, shape (S, 2), optional
        Rate factor and decay factor of each row, finite and at least 0; 1 where it is left out. With a rate factor of 0
        the parameters stay and their state moves on.

    Attributes
    ----------
    size : int
    bounds : ndarray of shape (R, 2), int64, read-only
        Sorted and disjoint; empty rows are dropped and neighbours of equal factors merged, so R <= S.
    factors : ndarray of shape (R, 2), float64, read-only
    trainable : int
        Parameters in any row.

    Raises
    ------
    TypeError, ValueError
        A bound is no integer or outside the vector, rows overlap, a factor is negative or not finite.

    Examples
    --------
    >>> segments = Segments(10, [(0, 4), (4, 6), (8, 10)], [(1, 1), (1, 0), (1, 0)])
    >>> segments.trainable
    8
    >>> list(segments)
    [(slice(0, 4, None), 1.0, 1.0), (slice(4, 6, None), 1.0, 0.0), (slice(8, 10, None), 1.0, 0.0)]
    """

    def __init__(self, size, bounds=None, factors=None):
        if self.spans is not NULL:
            raise TypeError("Segments: a table cannot be filled a second time")
        if isinstance(size, bool) or not hasattr(size, "__index__"):
            raise TypeError(f"size: expected an integer, got {type(size).__name__}")
        if operator.index(size) < 0:
            raise ValueError(f"size: expected at least 0, got {size}")
        bounds = _checked_bounds([(0, size)] if bounds is None else bounds, size)
        factors = _checked_factors(np.ones((len(bounds), 2)) if factors is None else factors, len(bounds))
        self.size = size
        self.bounds, self.factors = _merged(bounds, factors)
        self.bounds.flags.writeable = self.factors.flags.writeable = False
        self.trainable = int((self.bounds[:, 1] - self.bounds[:, 0]).sum())
        self._cut()

    def _cut(self):
        cdef Py_ssize_t start, stop, i = 0
        self.count = sum([(stop - start + CHUNK - 1) // CHUNK for start, stop in self.bounds.tolist()])
        self.spans = <Span*> PyMem_RawMalloc(max(self.count, 1) * sizeof(Span))
        if self.spans is NULL:
            raise MemoryError
        for (start, stop), (rate, decay) in zip(self.bounds.tolist(), self.factors.tolist()):
            while start < stop:
                self.spans[i] = Span(start, min(start + CHUNK, stop), rate, decay)
                start += CHUNK
                i += 1

    def __dealloc__(self):
        PyMem_RawFree(self.spans)

    def __len__(self):
        return len(self.bounds)

    def __iter__(self):
        """(slice, rate factor, decay factor) of each row."""
        for (start, stop), (rate, decay) in zip(self.bounds.tolist(), self.factors.tolist()):
            yield slice(start, stop), rate, decay

    def __eq__(self, other):
        if not isinstance(other, Segments):
            return NotImplemented
        return (self.size == other.size and np.array_equal(self.bounds, other.bounds)
                and np.array_equal(self.factors, other.factors))

    def __repr__(self):
        return f"<Segments: {len(self)} rows, {self.trainable} of {self.size} parameters>"

    def __reduce__(self):
        return Segments, (self.size, self.bounds, self.factors)


def _checked_bounds(bounds, size):
    """Return the bounds as a fresh int64 array."""
    table = np.asarray(bounds)
    if table.size == 0:
        table = np.empty((0, 2), np.int64)
    if table.dtype.kind not in "iu":
        raise TypeError(f"bounds: expected integers, got dtype {table.dtype}")
    if table.ndim != 2 or table.shape[1] != 2:
        raise ValueError(f"bounds: expected shape (rows, 2), got {table.shape}")
    for start, stop in table[(table[:, 0] < 0) | (table[:, 1] < table[:, 0]) | (table[:, 1] > size)].tolist():
        raise ValueError(f"bounds: expected 0 <= start <= stop <= {size}, got ({start}, {stop})")
    return table.astype(np.int64)


def _checked_factors(factors, rows):
    """Return the factors as a fresh float64 array."""
    table = np.array(factors, np.float64)
    if table.size == 0 and rows == 0:
        table = np.empty((0, 2))
    if table.shape != (rows, 2):
        raise ValueError(f"factors: expected shape ({rows}, 2), got {table.shape}")
    for factor in table[~(np.isfinite(table) & (table >= 0))].tolist():
        raise ValueError(f"factors: expected finite numbers of at least 0, got {factor}")
    return table


def _merged(bounds, factors):
    """Sort the rows, drop the empty ones, refuse overlaps, and join neighbours of equal factors."""
    order = np.argsort(bounds[:, 0], kind="stable")
    order = order[bounds[order, 0] < bounds[order, 1]]
    bounds, factors = bounds[order], factors[order]
    for i in np.flatnonzero(bounds[1:, 0] < bounds[:-1, 1]).tolist():
        (a, b), (c, d) = bounds[i : i + 2].tolist()
        raise ValueError(f"bounds: expected disjoint rows, got ({a}, {b}) and ({c}, {d})")
    joined = (bounds[1:, 0] == bounds[:-1, 1]) & (np.diff(factors, axis=0) == 0).all(axis=1)
    first = np.flatnonzero(np.concatenate([[True], ~joined])) if len(bounds) else np.empty(0, np.int64)
    last = np.append(first[1:], len(bounds))[: len(first)] - 1
    return np.stack([bounds[first, 0], bounds[last, 1]], axis=1), factors[first]
