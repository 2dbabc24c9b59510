"""The course's columns, and its W and b, as rows and models; and back."""

import itertools
import pickle

import numpy as np
import pytest

import dd2424fast as dd
from dd2424fast.data import course_parameters, from_columns, load_course_parameters, to_columns

pytestmark = pytest.mark.usefixtures("one_thread")

RNG = np.random.default_rng(0)
X = RNG.normal(size=(7, 5))
LABELS = np.array([2, 0, 1, 2, 0])
Y = np.eye(3)[:, LABELS]

# ---- samples ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["uint8", "float32", "float64"])
def test_columns_become_rows(dtype):
    columns = (100 + 50 * X).astype(dtype)
    kept = columns.copy()
    x = from_columns(columns)
    assert (x.shape, x.dtype, x.flags.c_contiguous) == ((5, 7), dtype, True)
    for i in range(5):
        np.testing.assert_array_equal(x[i], columns[:, i])
    np.testing.assert_array_equal(columns, kept)


@pytest.mark.parametrize("labels", [LABELS, LABELS[np.newaxis], LABELS[:, np.newaxis].astype("uint8")])
def test_targets_become_labels(labels):
    for given in ({"Y": Y}, {"y": labels}, {"Y": Y, "y": labels}):
        x, y = from_columns(X, **given)
        assert (y.dtype, y.shape) == (np.int64, (5,))
        np.testing.assert_array_equal(y, LABELS)
        np.testing.assert_array_equal(x, X.T)


def test_probabilities_stay_probabilities():
    smoothed = 0.9 * Y + 0.1 / 3
    _, y = from_columns(X, smoothed.astype("float32"))
    assert (y.dtype, y.flags.c_contiguous) == (np.float32, True)
    np.testing.assert_array_equal(y, smoothed.T.astype("float32"))


@pytest.mark.parametrize(("dtype", "tolerance"), [("uint8", 1e-6), ("float32", 1e-6), ("float64", 1e-14)])
def test_standardizing_with_columns(dtype, tolerance):
    columns = (100 + 50 * X).astype(dtype)
    mean, std = columns[:, :3].mean(axis=1, keepdims=True), columns[:, :3].std(axis=1, keepdims=True)
    x, y = from_columns(columns, Y, mean=mean, std=std)
    assert (x.dtype, x.flags.c_contiguous) == ("float64" if dtype == "float64" else "float32", True)
    np.testing.assert_allclose(x, ((columns - mean) / std).T, rtol=1e-6 if dtype != "float64" else 0, atol=tolerance)
    np.testing.assert_array_equal(y, LABELS)
    np.testing.assert_array_equal(x, from_columns(columns, mean=mean[:, 0], std=std[:, 0]))


def test_images_are_planes_of_colour():
    planes = np.arange(2 * 3 * 4 * 5).reshape(2, 3, 4, 5)  # (n, channels, height, width)
    columns = planes.reshape(2, -1).T
    images = from_columns(columns, image=(4, 5, 3))
    assert (images.shape, images.flags.c_contiguous) == ((2, 4, 5, 3), True)
    for n, c, i, j in np.ndindex(planes.shape):
        assert images[n, i, j, c] == planes[n, c, i, j]
    np.testing.assert_array_equal(to_columns(images), columns)


def test_images_of_a_cifar_file_are_those_that_are_loaded(cifar):
    with open(cifar / "data_batch_1", "rb") as file:
        batch = pickle.load(file, encoding="bytes")
    images, y = from_columns(batch[b"data"].T, y=np.array(batch[b"labels"]), image=(32, 32, 3))
    (x, labels), _ = dd.data.load_cifar10(cifar, batches=(1,))
    np.testing.assert_array_equal(images, x)
    np.testing.assert_array_equal(y, labels)


def test_rows_become_columns_and_back():
    columns, one_hot, y = to_columns(X.T, LABELS)
    np.testing.assert_array_equal(columns, X)
    np.testing.assert_array_equal(one_hot, Y)
    np.testing.assert_array_equal(y, LABELS)
    assert columns.flags.c_contiguous
    assert to_columns(X.T, LABELS, classes=10)[1].shape == (10, 5)
    x, y = from_columns(columns, one_hot)
    np.testing.assert_array_equal(x, X.T)
    np.testing.assert_array_equal(y, LABELS)


def test_no_samples():
    x, y = from_columns(np.empty((7, 0)), np.empty((3, 0)))
    assert (x.shape, y.shape) == ((0, 7), (0,))
    assert to_columns(x, y, classes=3)[1].shape == (3, 0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"X": X[0]}, r"X: expected shape \(d, n\), a column for each sample, got \(5,\)"),
        ({"X": X.T, "y": LABELS}, r"y: expected shape \(7,\), .*, got \(5,\): X seems to have a row .*, give X.T"),
        ({"X": X, "y": LABELS[:4]}, r"y: expected shape \(5,\), a label for each sample, got \(4,\)$"),
        ({"X": X, "Y": Y.T}, r"Y: expected shape \(K, 5\), .*, got \(5, 3\): it seems to have a row .*, give Y.T"),
        ({"X": X.T, "Y": Y}, r"Y: expected shape \(K, 7\), .*, got \(3, 5\): X seems to have a row .*, give X.T$"),
        ({"X": X.T, "Y": Y.T}, r"Y: expected shape \(K, 7\), .*: both seem to have a row .*, give X.T and Y.T$"),
        ({"X": X, "Y": LABELS}, r"Y: expected shape \(K, 5\), .*, got \(5,\): labels are given as y=$"),
        ({"X": X, "Y": LABELS[None]}, r"Y: expected columns of .*, got \(1, 5\): labels are given as y=$"),
        ({"X": X, "Y": Y[:, :4]}, r"Y: expected shape \(K, 5\), a column for each of X's, got \(3, 4\)$"),
        ({"X": X, "Y": 2 * Y}, "Y: expected columns of probabilities"),
        ({"X": X, "Y": np.where(Y, 2, -0.5)}, "Y: expected columns of probabilities"),
        ({"X": X, "Y": Y, "y": LABELS + 1}, "y: expected Y's class 2 in column 0, got 3: .* from 0 here, give y - 1"),
        ({"X": X, "Y": Y, "y": [2, 0, 1, 1, 0]}, "y: expected Y's class 2 in column 3, got 1$"),
        ({"X": X, "y": LABELS - 1}, "y: expected labels from 0 on, got -1"),
        ({"X": X, "mean": np.zeros(7)}, "std: expected both mean and std"),
        ({"X": X, "std": np.ones(7)}, "mean: expected both mean and std"),
        ({"X": X, "mean": np.zeros((1, 7)), "std": np.ones(7)}, r"mean: expected shape \(7, 1\), got \(1, 7\)"),
        ({"X": X, "mean": np.zeros(7), "std": [1, 1, 0, 1, 1, 1, 1]}, "std: expected .* above 0 .*, got 0 in row 2"),
        ({"X": X, "mean": np.full(7, np.nan), "std": np.ones(7)}, "mean: expected finite numbers, got nan in row 0"),
        ({"X": X, "image": (2, 2, 3)}, r"X: expected 12 rows for image=\(2, 2, 3\), got 7"),
        ({"X": X, "image": 7}, r"image: expected \(height, width, channels\), got 7"),
    ],
)
def test_columns_that_do_not_fit(arguments, message):
    with pytest.raises(ValueError, match=message):
        from_columns(**arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"x": X[0]}, r"x: expected shape \(n, d\), or images"),
        ({"x": X, "y": LABELS}, r"y: expected shape \(7,\), .* x seems to have a column for each sample already"),
        ({"x": X.T, "y": LABELS, "classes": 2}, "y: expected labels from 0 to 1, got 2"),
    ],
)
def test_rows_that_do_not_fit(arguments, message):
    with pytest.raises(ValueError, match=message):
        to_columns(**arguments)


def test_what_is_no_number():
    with pytest.raises(TypeError, match="y: expected integer labels, got dtype float64"):
        from_columns(X, y=LABELS.astype(float))
    with pytest.raises(TypeError, match="X: expected integers or floats"):
        from_columns([["a"]])


# ---- parameters ------------------------------------------------------------------------------------------------------


def net(*sizes, norms=False):
    """The course's parameters, all different."""
    pairs = list(itertools.pairwise(sizes))
    found = {
        "W": [RNG.normal(size=(out, into)) for into, out in pairs],
        "b": [RNG.normal(size=(out, 1)) for _, out in pairs],
    }
    if norms:
        for name in ("gamma", "beta", "mean", "variance"):
            found[name] = [RNG.uniform(0.5, 2, (out, 1)) for _, out in pairs[:-1]]
    return found


def course_scores(net, X):
    """The course's own forward pass, column by column."""
    for i, (W, b) in enumerate(zip(net["W"], net["b"], strict=True)):
        S = W @ X + b
        if i == len(net["W"]) - 1:
            return S
        if "gamma" in net:
            S = net["gamma"][i] * (S - net["mean"][i]) / np.sqrt(net["variance"][i] + 1e-5) + net["beta"][i]
        X = np.maximum(0, S)


@pytest.mark.parametrize("norms", [False, True])
@pytest.mark.parametrize("hidden", [(), (4,), (4, 6)])
def test_a_students_network_says_the_same_here(hidden, norms):
    norms = norms and bool(hidden)
    given = net(7, *hidden, 3, norms=norms)
    model = dd.models.MLP(7, hidden, 3, batch_norm=norms, dtype="float64", seed=0)
    load_course_parameters(model, **given)
    np.testing.assert_allclose(model.eval().predict(from_columns(X)).T, course_scores(given, X), rtol=1e-12, atol=1e-12)
    back = course_parameters(model)
    assert list(back) == list(given)
    for name, arrays in given.items():
        for a, b in zip(arrays, back[name], strict=True):
            np.testing.assert_array_equal(a, b)


def test_one_step_is_the_courses():
    """W - eta (1/n G X^T + 2 lambda W), with J = loss + lambda sum W^2."""
    (W,), (b,) = (net(7, 3)[name] for name in "Wb")
    eta, lam = 0.1, 0.3
    model = dd.models.MLP(7, (), 3, dtype="float64", seed=0)
    load_course_parameters(model, W, b)  # one layer: the arrays themselves
    dd.Trainer(model, dd.optim.SGD(eta, weight_decay=2 * lam)).step(*from_columns(X, Y))
    P = np.exp(W @ X + b)
    G = P / P.sum(axis=0) - Y
    got = course_parameters(model)
    np.testing.assert_allclose(got["W"][0], W - eta * (G @ X.T / 5 + 2 * lam * W), rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(got["b"][0], b - eta * G.mean(axis=1, keepdims=True), rtol=1e-12, atol=1e-14)


def test_images_in_the_courses_order():
    given = net(4 * 5 * 3, 3)
    model = dd.nn.Sequential(dd.nn.Flatten(), dd.nn.Linear(60, 3), image=(4, 5, 3), dtype="float64", seed=0)
    load_course_parameters(model, **given)
    columns = RNG.normal(size=(60, 2))
    got = model.predict(from_columns(columns, image=(4, 5, 3)))
    np.testing.assert_allclose(got.T, course_scores(given, columns), rtol=1e-12, atol=1e-12)
    np.testing.assert_array_equal(course_parameters(model)["W"][0], given["W"][0])


def test_flat_biases_and_what_is_left_alone():
    model = dd.models.MLP(7, (4,), 3, batch_norm=True, seed=0)
    before = course_parameters(model)
    given = net(7, 4, 3)
    load_course_parameters(model, given["W"], [b[:, 0] for b in given["b"]], gamma=[np.full(4, 2.0)])
    after = course_parameters(model)
    np.testing.assert_array_equal(after["b"][1], given["b"][1].astype("float32"))
    np.testing.assert_array_equal(after["gamma"][0], np.full((4, 1), 2))
    for name in ("beta", "mean", "variance"):
        np.testing.assert_array_equal(after[name][0], before[name][0])


def test_copies_are_handed_out():
    model = dd.models.MLP(7, (4,), 3, seed=0)
    before = model.parameters.copy()
    for arrays in course_parameters(model).values():
        for a in arrays:
            a[...] = 0
    np.testing.assert_array_equal(model.parameters, before)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"W": [np.zeros((7, 4)), np.zeros((3, 4))]}, r"W\[0\]: expected .* \(4, 7\), got \(7, 4\): .*, give W\[0\].T"),
        ({"W": [np.zeros((4, 7)), np.zeros((3, 5))]}, r"W\[1\]: expected shape \(K, d\) = \(3, 4\), got \(3, 5\)$"),
        ({"W": [np.zeros((4, 7))]}, "W: expected 2 arrays, one for each layer of its kind, got 1"),
        ({"W": np.zeros((4, 7))}, r"W: expected 2 arrays, .*, got one of shape \(4, 7\)"),
        ({"b": [np.zeros((1, 4)), np.zeros((3, 1))]}, r"b\[0\]: expected shape \(4, 1\), got \(1, 4\)"),
        ({"gamma": [np.ones(4)]}, "gamma: expected 0 arrays, .*, got 1"),
    ],
)
def test_parameters_that_do_not_fit(change, message):
    model = dd.models.MLP(7, (4,), 3, seed=0)
    before = model.parameters.copy()
    with pytest.raises(ValueError, match=message):
        load_course_parameters(model, **{**net(7, 4, 3), **change})
    np.testing.assert_array_equal(model.parameters, before)


def test_models_of_other_layers():
    message = r"model: expected Linear layers with a bias and BatchNorm alone, got layer 0, "
    for layer in (dd.nn.Conv2d(3, 4, 3), dd.nn.Linear(3, 4, bias=False)):
        with pytest.raises(TypeError, match=message):
            course_parameters(dd.nn.Sequential(layer))
