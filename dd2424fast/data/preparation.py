"""What comes between loading and training: holding out validation rows, and standardizing features."""

import math
import operator
from numbers import Real

import numpy as np

# Rows are converted to float64 this many elements (1 MiB) at a time, which stay in a core's cache.
_CHUNK = 2**17


def train_validation_split(x, y, *, validation=0.1, seed=0, stratify=True):
    """Hold out some rows for validation.

    Parameters
    ----------
    x : array-like of shape (n, ...)
        Inputs; read only.
    y : array-like of shape (n, ...)
        Labels or targets; read only.
    validation : float or int
        Fraction of the rows (rounded up), or number of rows, to hold out.
    seed : int
        The same seed gives the same split.
    stratify : bool
        Let every class keep its share in both parts. Use False for regression and for sequences of labels.

    Returns
    -------
    (x, y), (x_val, y_val) : tuples of ndarray
        Shuffled copies of the rows, dtypes as in the input.

    Raises
    ------
    ValueError
        x and y differ in length, `validation` leaves a part without rows (stratified: with fewer rows than classes), a
        class has a single row to stratify, or `seed` is out of range.
    TypeError
        `validation` or `seed` is not a number.

    Notes
    -----
    The rows are chosen by scikit-learn's ``train_test_split``.

    Examples
    --------
    >>> (x, y), (x_val, y_val) = train_validation_split([[1], [2], [3], [4]], [0, 1, 0, 1], validation=2)
    >>> sorted(y.tolist()), sorted(y_val.tolist())
    ([0, 1], [0, 1])
    """
    return _split(x, y, validation, name="validation", seed=seed, stratify=stratify)


def _split(x, y, size, *, name, seed, stratify):
    """Split the rows of x and y in two; `name` is what the caller calls `size`, for the error messages."""
    from sklearn.model_selection import train_test_split

    x, y = np.asarray(x), np.asarray(y)
    if x.ndim == 0 or y.ndim == 0 or len(x) != len(y):
        raise ValueError(f"y: expected one entry per row of x, got shapes {x.shape} of x and {y.shape} of y")
    held_out = _held_out(size, len(x), name)
    if stratify:
        _check_classes(y, held_out, name)
    try:
        seed = operator.index(seed)
    except TypeError:
        raise TypeError(f"seed: expected an integer, got {type(seed).__name__}") from None
    if not 0 <= seed < 2**32:
        raise ValueError(f"seed: expected an integer from 0 to 2**32 - 1, got {seed}")
    first, second = train_test_split(
        np.arange(len(x)), test_size=held_out, random_state=seed, stratify=y if stratify else None
    )
    return (x[first], y[first]), (x[second], y[second])


def _held_out(size, n, name):
    """Return the number of rows that a fraction or a count stands for."""
    if isinstance(size, bool) or not isinstance(size, Real):
        raise TypeError(f"{name}: expected a fraction or a number of rows, got {type(size).__name__}")
    count = size if hasattr(size, "__index__") else math.ceil(size * n) if 0 < size < 1 else 0
    if not 0 < count < n:
        raise ValueError(f"{name}: expected a fraction between 0 and 1, or 1 to {n - 1} of the {n} rows, got {size}")
    return operator.index(count)


def _check_classes(y, held_out, name):
    if y.ndim != 1:
        raise ValueError(f"y: expected shape (n,) to stratify, got {y.shape}; stratify=False ignores y")
    classes, counts = np.unique(y, return_counts=True)
    if counts.min() < 2:
        single = classes[counts.argmin()]
        raise ValueError(
            f"y: expected at least 2 rows of each class to stratify, got 1 of {single}; stratify=False ignores y"
        )
    if min(held_out, len(y) - held_out) < len(classes):
        raise ValueError(
            f"{name}: expected at least {len(classes)} rows on either side, one per class, "
            f"got {held_out} and {len(y) - held_out}; stratify=False ignores y"
        )


class Standardizer:
    """Shift and scale features to mean 0 and standard deviation 1, as measured on the training data alone.

    .. math:: z = (x - mean) / std

    A constant feature has std 1, so that it becomes 0.

    Parameters
    ----------
    axis : int or tuple of int
        The axes that the statistics are taken over; 0, the rows, is among them. ``axis=0`` standardizes each feature
        (each pixel of an image), ``axis=(0, 1, 2)`` each channel of images (n, height, width, channels).
    dtype : {"float32", "float64"}
        Of what `transform` and `inverse_transform` return.

    Attributes
    ----------
    mean, std : ndarray of float64 or None
        Of x's shape without `axis`; std is the population's (divided by n), 1 for constant features. None before `fit`.

    Raises
    ------
    ValueError
        `axis` or `dtype` is none of these.

    Notes
    -----
    All is computed in float64, a block of rows at a time: beyond the result it takes about 1 MiB of memory, however
    large the data. `fit` takes the mean first and, in a second pass, the squared deviations from it.

    Examples
    --------
    >>> standardizer = Standardizer().fit([[1.0, 5.0], [3.0, 5.0]])
    >>> standardizer.mean, standardizer.std
    (array([2., 5.]), array([1., 1.]))
    >>> standardizer.transform([[4.0, 5.0]])
    array([[2., 0.]], dtype=float32)
    """

    def __init__(self, axis=0, dtype="float32"):
        axes = axis if isinstance(axis, tuple) else (axis,)
        if not all(isinstance(a, int) and a >= 0 for a in axes) or 0 not in axes or len(set(axes)) < len(axes):
            raise ValueError(f"axis: expected different axes counted from the front, 0 among them, got {axis!r}")
        if not isinstance(dtype, str | type | np.dtype) or dtype not in ("float32", "float64", np.float32, np.float64):
            raise ValueError(f"dtype: expected 'float32' or 'float64', got {dtype!r}")
        self.axis = tuple(sorted(axes))
        self.dtype = np.dtype(dtype)
        self.mean = self.std = None

    def fit(self, x):
        """Measure the mean and the standard deviation of each feature.

        Parameters
        ----------
        x : array-like of shape (n, ...), integers or floats
            Training data; read only.

        Returns
        -------
        self : Standardizer

        Raises
        ------
        TypeError
            x does not hold real numbers.
        ValueError
            x is empty, lacks one of the axes, or has an entry that is not finite: the message names the first such row
            and feature.
        """
        x = _numbers(x)
        if x.ndim <= self.axis[-1] or x.size == 0:
            raise ValueError(f"x: expected data, with {self.axis[-1] + 1} axes or more, got shape {x.shape}")
        # A constant feature's deviations from its first value are exactly 0, which makes its mean exact and its std 0.
        origin = x[tuple(0 if a in self.axis else slice(None) for a in range(x.ndim))].astype(np.float64)
        with np.errstate(over="ignore", invalid="ignore"):
            mean = origin + self._average(x, origin, power=1)
            std = np.sqrt(self._average(x, mean, power=2))
        if not np.isfinite(std).all():
            raise _not_finite(x)
        self.mean, self.std = np.asarray(mean), np.where(std > 0, std, 1.0)
        return self

    def transform(self, x):
        """Return (x - mean) / std.

        Parameters
        ----------
        x : array-like of shape (n, ...), integers or floats
            Its shape is that of `fit` except along `axis`; read only. NaN and infinity pass through.

        Returns
        -------
        z : ndarray of x's shape, float32 or float64, C-contiguous
            A new array.

        Raises
        ------
        RuntimeError
            `fit` has not been called.
        TypeError, ValueError
            x does not hold real numbers, or has another shape.
        """
        x = self._checked(x)
        mean, std = self._per_feature(self.mean, x), self._per_feature(self.std, x)
        out = np.empty(x.shape, self.dtype)
        for rows, block in _float64_blocks(x):
            block -= mean
            block /= std
            out[rows] = block.reshape(out[rows].shape)
        return out

    def fit_transform(self, x):
        """Return ``fit(x).transform(x)``; both describe the argument, the result and the errors."""
        return self.fit(x).transform(x)

    def inverse_transform(self, z):
        """Return z * std + mean: what `transform` would map to z. Argument, result and errors are as there."""
        z = self._checked(z)
        mean, std = self._per_feature(self.mean, z), self._per_feature(self.std, z)
        out = np.empty(z.shape, self.dtype)
        for rows, block in _float64_blocks(z):
            block *= std
            block += mean
            out[rows] = block.reshape(out[rows].shape)
        return out

    def state_dict(self):
        """Return copies of what `fit` measured, for a checkpoint: arrays "mean" and "std" (float64), "axis" (int64).

        Raises
        ------
        RuntimeError
            `fit` has not been called.
        """
        self._require_fit()
        return {"mean": self.mean.copy(), "std": self.std.copy(), "axis": np.array(self.axis, np.int64)}

    def load_state_dict(self, state):
        """Take over a copy of what `state_dict` returned.

        Raises
        ------
        ValueError
            A key is missing or unknown, the axes are not this standardizer's, or mean and std do not fit together.
        """
        if set(state) != {"mean", "std", "axis"}:
            raise ValueError(f"state: expected the keys 'mean', 'std' and 'axis', got {sorted(state)}")
        axis = tuple(np.asarray(state["axis"]).ravel().tolist())
        if axis != self.axis:
            raise ValueError(f"state: expected axis {self.axis}, got {axis}")
        mean, std = (np.array(state[key], np.float64) for key in ("mean", "std"))
        if mean.shape != std.shape or not np.isfinite(mean).all() or not (np.isfinite(std) & (std > 0)).all():
            raise ValueError("state: expected mean and std of one shape, finite, std above 0")
        self.mean, self.std = mean, std

    def save(self, path):
        """Write what `fit` measured to a file, whole or not at all (safetensors).

        Raises
        ------
        RuntimeError
            `fit` has not been called.
        OSError
            The file could not be written; a previous one is whole.
        """
        from ..files import FORMAT, in_order, write_atomically

        write_atomically(path, in_order(self.state_dict(), {"dd2424fast": FORMAT, "kind": "standardizer"}))

    @classmethod
    def load(cls, path, dtype="float32"):
        """Return the standardizer that `save`, or `dd2424fast train --output`, wrote; its axes are in the file.

        Raises
        ------
        FileNotFoundError, ValueError
            There is no such file, or it holds no standardizer; `dtype` is none of the constructor's.
        """
        from ..files import opened

        path, state, _ = opened(path)
        if "axis" not in state:
            raise ValueError(f"{path}: holds no standardizer")
        dtype = cls(dtype=dtype).dtype  # an error about it is not about the file
        try:
            standardizer = cls(tuple(state["axis"].ravel().tolist()), dtype)
            standardizer.load_state_dict(state)
        except ValueError as error:
            raise ValueError(f"{path}: holds no standardizer ({error})") from None
        return standardizer

    def _average(self, x, center, power):
        """Return the mean of (x - center)**power over the axes."""
        center = self._per_feature(center, x)
        total = np.zeros_like(center)
        for _, block in _float64_blocks(x):
            block -= center
            if power == 2:
                np.square(block, out=block)
            total += block.sum(axis=0)
        total = total.reshape(x.shape[1:]).sum(axis=tuple(a - 1 for a in self.axis[1:]))
        return total / (x.size // total.size)

    def _per_feature(self, statistic, x):
        """Return one value per feature, flat: NumPy is slow to broadcast along a last axis of three channels."""
        columns = np.expand_dims(statistic, tuple(a - 1 for a in self.axis[1:]))
        return np.broadcast_to(columns, x.shape[1:]).reshape(-1)

    def _require_fit(self):
        if self.mean is None:
            raise RuntimeError("Standardizer: call fit(x) on the training data first")

    def _checked(self, x):
        self._require_fit()
        x = _numbers(x)
        if x.ndim != self.mean.ndim + len(self.axis) or np.delete(x.shape, self.axis).tolist() != [*self.mean.shape]:
            expected = ["n", *map(str, self.mean.shape)]
            for a in self.axis[1:]:
                expected.insert(a, "any")
            raise ValueError(f"x: expected shape ({', '.join(expected)}), got {x.shape}")
        return x


def _numbers(x):
    x = np.asarray(x)
    if x.dtype.kind not in "buif":
        raise TypeError(f"x: expected integers or floats, got dtype {x.dtype}")
    return x


def _float64_blocks(x):
    """Yield slices of rows, and copies of these rows as float64 of shape (rows, features)."""
    features = math.prod(x.shape[1:])
    step = max(1, _CHUNK // max(1, features))
    for start in range(0, len(x), step):
        rows = slice(start, min(start + step, len(x)))
        yield rows, x[rows].astype(np.float64, order="C").reshape(rows.stop - start, features)


def _not_finite(x):
    """Return the error that names the first entry of x that is NaN or infinite."""
    for rows, block in _float64_blocks(x):
        bad = np.argwhere(~np.isfinite(block))
        if len(bad):
            row, column = bad[0].tolist()
            feature = tuple(int(i) for i in np.unravel_index(column, x.shape[1:]))
            where = f"row {rows.start + row}, feature {feature[0] if len(feature) == 1 else feature}"
            return ValueError(f"x: expected finite numbers, got {block[row, column]} in {where}")
    return ValueError("x: expected numbers whose squares float64 can hold, got some above 1e150")
