"""The course's own layout: a column for each sample, W of shape (K, d), b of shape (K, 1), images as planes of colour.

Here samples are rows, images are (height, width, channels), and all parameters of a model are one vector. These
functions go from one to the other, so that a student's matrices can be used as they are, and compared.
"""

import math

import numpy as np

from ..configuration import array_of, positive_integer
from ..nn import BatchNorm, Linear
from ..nn.sequential import image_shape
from .preparation import Standardizer


def from_columns(X, Y=None, y=None, *, mean=None, std=None, image=None):
    """Return the course's matrices as rows.

    Parameters
    ----------
    X : array of shape (d, n), integers or floats
        A column for each sample.
    Y : array of shape (K, n), optional
        A column of class probabilities for each sample, most often one-hot.
    y : array of shape (n,), (1, n) or (n, 1), integers, optional
        Labels from 0 on. Where Y is given too, they must say the same.
    mean, std : arrays of shape (d, 1) or (d,), optional
        Of the training data: samples are returned as (X - mean) / std.
    image : (int, int, int), optional
        (height, width, channels): columns hold images as CIFAR-10's files do, one plane of colour after the other,
        d = channels * height * width, and are returned as images.

    Returns
    -------
    x : ndarray of shape (n, d), or (n, height, width, channels), C-contiguous
        X's dtype; with `mean` and `std` float64 where X is, else float32. It may share X's memory.
    y : ndarray of shape (n,), int64
        Of labels and of one-hot columns. Of other columns rows of probabilities (n, K), of Y's dtype. Without Y and y
        only x is returned.

    Raises
    ------
    ValueError
        The shapes do not fit together, columns of Y are no probabilities, labels are negative or differ from Y, or
        only one of `mean` and `std` is given. Where samples seem to be rows, the message says so.
    TypeError
        An argument does not hold numbers, or y no integers.

    Examples
    --------
    >>> X, Y = [[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]], [[1, 0, 0], [0, 1, 1]]
    >>> x, y = from_columns(X, Y)
    >>> x.tolist(), y.tolist()
    ([[1.0, 4.0], [2.0, 5.0], [3.0, 6.0]], [0, 1, 1])
    """
    X = _numbers("X", X)
    if X.ndim != 2:
        raise ValueError(f"X: expected shape (d, n), a column for each sample, got {X.shape}")
    targets = _targets(X, Y, y)
    x = _standardized(X, mean, std)
    x = np.ascontiguousarray(x) if image is None else _images(x, image_shape(image))
    return x if targets is None else (x, targets)


def to_columns(x, y=None, *, classes=None):
    """Return rows as the course's matrices; what `from_columns` undoes.

    Parameters
    ----------
    x : array of shape (n, d), or images (n, height, width, channels)
        Images become columns of one plane of colour after the other, as CIFAR-10's files have them.
    y : array of shape (n,), integers, optional
        Labels from 0 on.
    classes : int, optional
        K; default: as many as the largest label tells.

    Returns
    -------
    X : ndarray of shape (d, n), x's dtype, C-contiguous
    Y : ndarray of shape (K, n), float64
        One-hot; only where y is given.
    y : ndarray of shape (n,), int64
        The same.

    Raises
    ------
    ValueError
        The shapes do not fit together, or a label is no class.
    TypeError
        x does not hold numbers, or y no integers.

    Examples
    --------
    >>> X, Y, y = to_columns([[1.0, 4.0], [2.0, 5.0]], [1, 0])
    >>> X.tolist(), Y.tolist()
    ([[1.0, 2.0], [4.0, 5.0]], [[0.0, 1.0], [1.0, 0.0]])
    """
    x = _numbers("x", x)
    if x.ndim not in (2, 4):
        raise ValueError(f"x: expected shape (n, d), or images (n, height, width, channels), got {x.shape}")
    planes = x if x.ndim == 2 else x.transpose(0, 3, 1, 2).reshape(len(x), -1)
    X = np.ascontiguousarray(planes.T)
    if y is None:
        return X
    y = _labels(y, len(x), len(X), ": x seems to have a column for each sample already")
    most = int(y.max(initial=-1)) + 1
    classes = max(most, 1) if classes is None else positive_integer("classes", classes)
    if most > classes:
        raise ValueError(f"y: expected labels from 0 to {classes - 1}, got {most - 1}")
    Y = np.zeros((classes, len(y)))
    Y[y, np.arange(len(y))] = 1
    return X, Y, y


def load_course_parameters(model, W, b, gamma=None, beta=None, mean=None, variance=None):
    """Put the course's parameters into a model of Linear layers, with or without batch normalisation.

    Parameters
    ----------
    model : nn.Module
        Such as `models.MLP`. Nothing is changed unless all fits.
    W : list of arrays of shape (K, d), one for each Linear layer in turn; or one array, where there is one layer
    b : list of arrays of shape (K, 1) or (K,), or one array
    gamma, beta : lists of arrays of shape (K, 1) or (K,), one for each BatchNorm layer, optional
        Factor and shift; default: those of the model.
    mean, variance : the same, optional
        Running statistics, used in evaluation.

    Raises
    ------
    ValueError
        There are more or fewer arrays than layers, or one has another shape. Where a weight seems to be (d, K), the
        message says so.
    TypeError
        The model has parameters of other layers, or an array does not hold numbers.

    Notes
    -----
    ``load_course_parameters(model, **course_parameters(other))`` copies one network into another. Behind a Flatten
    layer of a model that knows its image's shape, W's columns are in the order of planes of colour, as the course has
    them; of a model of rows they are in the rows' order.
    """
    given = {"W": W, "b": b, "gamma": gamma, "beta": beta, "mean": mean, "variance": variance}
    state = model.state_dict()
    places = _places(model)
    for name, arrays in given.items():
        if arrays is not None:
            for place, a in zip(places[name], _one_a_layer(name, arrays, len(places[name])), strict=True):
                state[place] = _fitting(name, places[name].index(place), a, state[place].shape)
    model.load_state_dict(state)


def course_parameters(model):
    """Return copies of a model's parameters as the course has them.

    Parameters
    ----------
    model : nn.Module
        Of Linear and BatchNorm layers, and such without parameters.

    Returns
    -------
    dict from str to list of ndarray
        "W", arrays of shape (K, d), and "b", of shape (K, 1), one for each Linear layer. With batch normalisation also
        "gamma", "beta", "mean" and "variance", of shape (K, 1): the running variance is the unbiased one.

    Raises
    ------
    TypeError
        The model has parameters of other layers, or a Linear layer without a bias.

    Examples
    --------
    >>> import dd2424fast as dd
    >>> net = dd.data.course_parameters(dd.models.MLP(3072, (50,), 10))
    >>> [W.shape for W in net["W"]], [b.shape for b in net["b"]]
    ([(50, 3072), (10, 50)], [(50, 1), (10, 1)])
    """
    state = model.state_dict()
    return {
        name: [state[place] if name == "W" else state[place][:, np.newaxis] for place in places]
        for name, places in _places(model).items()
        if places
    }


# ---- samples ---------------------------------------------------------------------------------------------------------


def _numbers(name, value):
    a = array_of(name, value)
    if a.dtype.kind not in "buif":
        raise TypeError(f"{name}: expected integers or floats, got dtype {a.dtype}")
    return a


def _targets(X, Y, y):
    """Labels, or rows of probabilities, of the columns of X; None where neither Y nor y is given."""
    d, n = X.shape
    labels = None if y is None else _labels(y, n, d, ": X seems to have a row for each sample, give X.T")
    if Y is None:
        return labels
    Y = _numbers("Y", Y)
    if Y.ndim != 2 or Y.shape[1] != n:
        raise ValueError(f"Y: expected shape (K, {n}), a column for each of X's, got {Y.shape}{_turned(X, Y)}")
    if Y.shape[0] == 1 and Y.dtype.kind in "ui" and n > 1 and Y.max() > 1:
        raise ValueError(
            f"Y: expected columns of probabilities, or one-hot ones, got {Y.shape}: labels are given as y="
        )
    if not (np.all(Y >= 0) and np.allclose(Y.sum(axis=0), 1, rtol=0, atol=1e-5)):
        raise ValueError("Y: expected columns of probabilities, or one-hot ones, that sum to 1")
    likeliest = Y.argmax(axis=0).astype(np.int64) if len(Y) else np.empty(0, np.int64)
    if labels is not None:
        _check_same(labels, likeliest)
    one_hot = np.count_nonzero(Y) == n
    return likeliest if one_hot else np.ascontiguousarray(Y.T)


def _turned(X, Y):
    """What seems to be the other way round, where Y has not as many columns as X."""
    d, n = X.shape
    if Y.ndim == 1 and Y.size == n:
        return ": labels are given as y="
    if Y.ndim != 2:
        return ""
    if Y.shape[1] == d:
        return ": X seems to have a row for each sample, give X.T"
    if len(Y) == n:
        return ": it seems to have a row for each sample, give Y.T"
    return ": both seem to have a row for each sample, give X.T and Y.T" if len(Y) == d else ""


def _labels(y, samples, features, hint):
    """Labels (samples,) of int64; `hint` is for as many as there are features."""
    y = array_of("y", y)
    if y.dtype.kind not in "ui":
        raise TypeError(f"y: expected integer labels, got dtype {y.dtype}")
    if y.shape not in ((samples,), (1, samples), (samples, 1)):
        hint = hint if y.size == features else ""
        raise ValueError(f"y: expected shape ({samples},), a label for each sample, got {y.shape}{hint}")
    y = y.reshape(-1).astype(np.int64)
    if y.size and y.min() < 0:
        raise ValueError(f"y: expected labels from 0 on, got {y.min()}")
    return y


def _check_same(labels, likeliest):
    different = np.flatnonzero(labels != likeliest)
    if len(different):
        i = different[0]
        hint = ": labels count from 0 here, give y - 1" if np.array_equal(labels - 1, likeliest) else ""
        raise ValueError(f"y: expected Y's class {likeliest[i]} in column {i}, got {labels[i]}{hint}")


def _standardized(X, mean, std):
    """The samples as rows, not always contiguous."""
    if mean is None and std is None:
        return X.T
    if mean is None or std is None:
        raise ValueError(f"{'mean' if mean is None else 'std'}: expected both mean and std, or neither")
    standardizer = Standardizer(dtype="float64" if X.dtype == np.float64 else "float32")
    state = {"mean": _vector("mean", mean, len(X)), "std": _vector("std", std, len(X)), "axis": [0]}
    for name, good in (("mean", np.isfinite(state["mean"])), ("std", np.isfinite(state["std"]) & (state["std"] > 0))):
        if not good.all():
            i = int(good.argmin())
            expected = "finite numbers" if name == "mean" else "finite numbers above 0 (1 for a constant feature)"
            raise ValueError(f"{name}: expected {expected}, got {state[name][i]} in row {i}")
    standardizer.load_state_dict(state)
    return standardizer.transform(X.T)


def _vector(name, value, size):
    a = _numbers(name, value)
    if a.shape not in ((size, 1), (size,)):
        raise ValueError(f"{name}: expected shape ({size}, 1), got {a.shape}")
    return a.reshape(-1)


def _images(x, image):
    height, width, channels = image
    if x.shape[1] != math.prod(image):
        raise ValueError(f"X: expected {math.prod(image)} rows for image={image}, got {x.shape[1]}")
    return np.ascontiguousarray(x.reshape(-1, channels, height, width).transpose(0, 2, 3, 1))


# ---- parameters ------------------------------------------------------------------------------------------------------


def _places(model):
    """The names in the state_dict that hold what the course calls W, b, ..., layer by layer."""
    places = {name: [] for name in ("W", "b", "gamma", "beta", "mean", "variance")}
    for path, module in model.modules():
        owned = ("weight", "bias", "running_mean", "running_var")
        full = [f"{path}.{name}" if path else name for name in owned]
        if type(module) is Linear and module._bias is not None:
            names = ("W", "b")
        elif type(module) is BatchNorm:
            names = ("gamma", "beta", "mean", "variance")
        elif module._own or module._own_buffers:
            what = f"layer {path}, {module!r}" if path else repr(module)
            raise TypeError(f"model: expected Linear layers with a bias and BatchNorm alone, got {what}")
        else:
            continue
        for name, place in zip(names, full, strict=False):
            places[name].append(place)
    return places


def _one_a_layer(name, arrays, layers):
    """A list with an array for each layer; one array alone stands for a list of it."""
    alone = hasattr(arrays, "ndim") and arrays.ndim <= 2 and arrays.dtype != object
    arrays = [arrays] if alone and layers == 1 else arrays
    if (alone and layers != 1) or not np.iterable(arrays) or len(arrays) != layers:
        got = f"one of shape {arrays.shape}" if alone else len(arrays) if np.iterable(arrays) else repr(arrays)
        raise ValueError(f"{name}: expected {layers} arrays, one for each layer of its kind, got {got}")
    return arrays


def _fitting(name, i, value, shape):
    """An array of the shape that the state_dict wants."""
    where = f"{name}[{i}]"
    a = _numbers(where, value)
    if name == "W":
        if a.shape != shape:
            turned = f": it seems to be turned, give {where}.T" if a.shape == shape[::-1] else ""
            raise ValueError(f"{where}: expected shape (K, d) = {shape}, got {a.shape}{turned}")
        return a
    return _vector(where, a, *shape)
