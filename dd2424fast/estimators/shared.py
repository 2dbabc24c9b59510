"""What the estimators have in common: weights of rows and classes, labels, and parameters in files."""

import zlib

import numpy as np
from sklearn.utils.multiclass import unique_labels

from ..configuration import array_of


def row_weights(weight, n, row="row"):
    """`sample_weight` as a vector of n floats; one number stands for all of them."""
    weight = array_of("sample_weight", weight)
    if weight.ndim == 0:
        weight = np.full(n, weight)
    if weight.shape != (n,):
        raise ValueError(f"sample_weight: expected shape ({n},), one for each {row}, got {weight.shape}")
    try:
        weight = weight.astype(float)
    except (TypeError, ValueError):
        raise ValueError(f"sample_weight: expected numbers, got dtype {weight.dtype}") from None
    wrong = ~(np.isfinite(weight) & (weight >= 0))
    if wrong.any() or not weight.any():
        got = f"{weight[wrong][0]:g} at {np.flatnonzero(wrong)[0]}" if wrong.any() else "only zeros"
        raise ValueError(f"sample_weight: expected finite weights of at least 0, and one above it, got {got}")
    return weight


def weights_of_classes(class_weight, classes, numbers, sample_weight=None):
    """The weight of each class, or None where all count the same.

    Parameters
    ----------
    class_weight : dict, "balanced" or None
    classes : ndarray
    numbers : ndarray of int
        Of the classes of the rows.
    sample_weight : ndarray, optional
        "balanced" balances their sums.
    """
    if class_weight is None:
        return None
    if isinstance(class_weight, dict):
        known = classes.tolist()
        for label, weight in class_weight.items():
            if label not in known:
                raise ValueError(f"class_weight: expected classes of y, {known}, got {label!r}")
            if not np.isscalar(weight) or isinstance(weight, str) or not 0 <= weight < np.inf:
                raise ValueError(f"class_weight: expected finite weights of at least 0, got {weight!r} for {label!r}")
        return np.array([float(class_weight.get(label, 1.0)) for label in known])
    if not isinstance(class_weight, str) or class_weight != "balanced":
        raise ValueError(f"class_weight: expected a dict, 'balanced' or None, got {class_weight!r}")
    sums = np.bincount(numbers, sample_weight, len(classes)).astype(float)
    return np.divide(sums.sum(), (sums > 0).sum() * sums, out=np.ones(len(classes)), where=sums > 0)


def class_numbers(name, y, classes):
    """The number of each label among the sorted classes."""
    if y.dtype.kind in "iub" and classes.dtype == y.dtype:
        numbers = np.searchsorted(classes[:-1], y)
        if (classes[numbers] == y).all():
            return numbers
    strange = y[~np.isin(y, classes)]
    if len(strange):
        raise ValueError(f"{name}: expected classes of y, {classes.tolist()}, got {strange[:1].tolist()[0]!r}")
    return np.searchsorted(classes, y)


def classes_in_parts(classes, known):
    """The sorted classes of partial_fit: those that the first call gives, later the `known` ones."""
    if known is None:
        if classes is None:
            raise ValueError("classes: expected all that there will be, at the first call of partial_fit, got None")
        return unique_labels(classes)
    if classes is not None and not np.array_equal(known, unique_labels(classes)):
        raise ValueError(f"classes: expected those of the first call, {known.tolist()}, got {list(np.ravel(classes))}")
    return known


def signature_of(estimator, arrays):
    """Tells whether a training that came to its end would go on with the same data and parameters: then it has nothing
    to do. `arrays` may be sparse, or None."""
    checksum = 0
    for a in arrays:
        for part in (a,) if not hasattr(a, "indptr") else (a.indptr, a.indices, a.data):
            checksum = checksum if part is None else zlib.crc32(np.ascontiguousarray(part), checksum)
    aside = ("max_iter", "verbose", "time_budget", "random_state")
    return checksum, repr([(k, v) for k, v in estimator.get_params(deep=False).items() if k not in aside])


def validation_given(X, y):
    """Whether a validation set was given, which takes both."""
    if (X is None) != (y is None):
        raise ValueError("X_val, y_val: expected both or none of them")
    return X is not None


def to_plain(name, value):
    """A parameter as JSON can hold it."""
    if isinstance(value, dict):
        return {"pairs": [[to_plain(name, key), to_plain(name, item)] for key, item in value.items()]}
    if isinstance(value, tuple | list):
        return [to_plain(name, item) for item in value]
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(f"{name}: {value!r} cannot be written to a file; set it to None before saving")


def from_plain(value):
    """What `to_plain` was given; lists come back as tuples."""
    if isinstance(value, dict):
        return {from_plain(key): from_plain(item) for key, item in value["pairs"]}
    return tuple(map(from_plain, value)) if isinstance(value, list) else value
