"""Estimators: scikit-learn's contract, for images."""

import pickle
from itertools import pairwise

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer

import dd2424fast as dd

pytestmark = pytest.mark.usefixtures("one_thread")

NAMES = np.array(["left", "right", "top"])


@pytest.fixture(scope="module")
def images():
    """Noisy images of 8 x 6 pixels, two channels, uint8: which part is bright tells the class."""
    rng = np.random.default_rng(0)
    y = rng.integers(0, 3, 150)
    X = rng.integers(0, 120, (150, 8, 6, 2))
    for image, label in zip(X, y, strict=True):
        image[[(slice(None), slice(0, 3)), (slice(None), slice(3, 6)), (slice(0, 4),)][label]] += 60
    return X.astype(np.uint8), NAMES[y]


def small(**parameters):
    return dd.ConvNetClassifier(
        **{"channels": (4,), "hidden": 8, "learning_rate_init": 0.01, "batch_size": 32, "random_state": 0, **parameters}
    )


def test_it_learns_and_tells(images):
    X, y = images
    classifier = small(max_iter=15)
    assert classifier.fit(X[:100], y[:100]) is classifier
    assert classifier.score(X[100:], y[100:]) > 0.9
    np.testing.assert_array_equal(classifier.classes_, NAMES)
    assert classifier.n_features_in_ == 96
    assert classifier.image_ == (8, 6, 2)
    assert classifier.n_iter_ == len(classifier.loss_curve_) == len(classifier.history_) == 15
    assert classifier.loss_ == classifier.loss_curve_[-1] < classifier.loss_curve_[0] / 2
    assert classifier.validation_scores_ is None
    probabilities = classifier.predict_proba(X)
    assert probabilities.shape == (150, 3)
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, rtol=1e-5)
    np.testing.assert_array_equal(classifier.predict(X), NAMES[probabilities.argmax(axis=1)])
    np.testing.assert_array_equal(classifier.decision_function(X).argmax(axis=1), probabilities.argmax(axis=1))


def test_rows_are_images_where_it_is_told_their_shape(images):
    X, y = images
    rows = X.reshape(len(X), -1)
    of_images = small(max_iter=2).fit(X, y)
    of_rows = small(max_iter=2, image=(8, 6, 2)).fit(rows, y)
    np.testing.assert_array_equal(of_rows.predict_proba(rows), of_images.predict_proba(X))
    np.testing.assert_array_equal(of_images.predict_proba(rows), of_images.predict_proba(X))


def test_the_scale_of_a_channel_does_not_matter(images):
    """Each is standardised by its own mean and deviation; a constant one is nothing."""
    X, y = images
    plain = small(max_iter=2).fit(X, y)
    moved = X * np.array([1e-3, 40.0]) + np.array([5.0, -1e3])
    np.testing.assert_allclose(
        small(max_iter=2).fit(moved, y).predict_proba(moved), plain.predict_proba(X), rtol=1e-2, atol=1e-3
    )
    standardized = plain.model_[:1].predict(X)
    np.testing.assert_allclose(standardized.mean(axis=(0, 1, 2)), 0, atol=1e-5)
    np.testing.assert_allclose(standardized.std(axis=(0, 1, 2)), 1, rtol=1e-5)
    constant = X.copy()
    constant[..., 1] = 7
    assert np.isfinite(small(max_iter=1).fit(constant, y).predict_proba(constant)).all()


def test_one_seed_one_model(images):
    X, y = images
    a, b, c, d = (
        small(max_iter=2, dropout=0.2, random_state=s).fit(X, y).predict_proba(X)
        for s in (1, 1, 2, np.random.RandomState(1))
    )
    np.testing.assert_array_equal(a, b)
    np.testing.assert_array_equal(a, d)
    assert not np.array_equal(a, c)
    state = np.random.get_state()[1].copy()  # noqa: NPY002 (the global state must not be touched)
    small(max_iter=1, random_state=None).fit(X, y)
    np.testing.assert_array_equal(state, np.random.get_state()[1])  # noqa: NPY002


def test_early_stopping_ends_with_the_best_epoch(images):
    X, y = images
    classifier = small(max_iter=60, early_stopping=True, n_iter_no_change=4, validation_fraction=0.3, tol=0.0).fit(X, y)
    scores = classifier.validation_scores_
    assert classifier.n_iter_ == len(scores) < 60
    assert classifier.best_validation_score_ == max(scores)
    assert scores.index(max(scores)) == len(scores) - 1 - 4
    wrong = NAMES[(np.searchsorted(NAMES, y[100:]) + 1) % 3]  # the more it learns, the less it scores
    given = small(max_iter=25, early_stopping=True).fit(X[:100], y[:100], X_val=X[100:], y_val=wrong)
    assert given.validation_scores_[-1] < given.best_validation_score_
    assert given.best_validation_score_ == pytest.approx(given.score(X[100:], wrong))
    watched = small(max_iter=3).fit(X[:100], y[:100], X_val=X[100:], y_val=y[100:])
    assert watched.validation_scores_[-1] == pytest.approx(watched.score(X[100:], y[100:]))
    stalled = small(max_iter=60, n_iter_no_change=3, tol=10.0).fit(X, y)
    assert stalled.n_iter_ == 4


def test_weights_of_images_and_classes(images):
    X, y = images
    left = y == "left"
    some = small(max_iter=3, shuffle=False).fit(X[~left], y[~left])
    weighted = small(max_iter=3, shuffle=False).fit(X[~left], y[~left], sample_weight=np.full((~left).sum(), 2.0))
    np.testing.assert_allclose(weighted.predict_proba(X), some.predict_proba(X), rtol=1e-4, atol=1e-6)
    even = small(max_iter=3).fit(X, y, sample_weight=np.ones(150))  # in the same order of every epoch
    np.testing.assert_allclose(even.predict_proba(X), small(max_iter=3).fit(X, y).predict_proba(X), rtol=1e-4)
    kept = np.arange(150) % 3 > 0  # weight 0 is as if it were not there
    zeros = small(max_iter=3, batch_size=20).fit(X, y, sample_weight=kept.astype(float))
    ones = small(max_iter=3, batch_size=20).fit(X[kept], y[kept], sample_weight=np.ones(kept.sum()))
    np.testing.assert_array_equal(zeros.predict_proba(X), ones.predict_proba(X))

    heavy = small(max_iter=3).fit(X, y, sample_weight=np.where(left, 50.0, 1.0))
    by_class = small(max_iter=3, class_weight={"left": 50.0}).fit(X, y)
    plain = small(max_iter=3).fit(X, y)
    for classifier in (heavy, by_class):
        assert classifier.predict_proba(X)[:, 0].mean() > plain.predict_proba(X)[:, 0].mean() + 0.1
    balanced = small(max_iter=3, class_weight="balanced").fit(X, y)
    counts = {name: 150 / 3 / (y == name).sum() for name in NAMES}
    same = small(max_iter=3, class_weight=counts).fit(X, y)
    np.testing.assert_allclose(balanced.predict_proba(X), same.predict_proba(X), rtol=1e-4)


@pytest.mark.parametrize(
    "parameters",
    [
        {"solver": "sgd", "learning_rate_init": 0.05},
        {"solver": "sgd", "learning_rate_init": 0.05, "momentum": 0.0},
        {"batch_norm": True, "convs_per_block": 2, "hidden": None},
        {"label_smoothing": 0.1, "dropout": 0.1, "channels": [4, 6]},
        {"augment": dd.data.Augment(shift=1)},
    ],
    ids=str,
)
def test_every_parameter_trains(parameters, images):
    X, y = images
    classifier = small(max_iter=4, **parameters).fit(X, y)
    assert classifier.loss_curve_[-1] < classifier.loss_curve_[0]
    assert repr(clone(classifier)) == repr(classifier)


def test_alpha_shrinks_the_weights(images):
    X, y = images
    sizes = [np.linalg.norm(small(alpha=alpha, max_iter=5).fit(X, y).model_[1].parameters) for alpha in (0, 1, 30)]
    assert all(more < less for less, more in pairwise(sizes))


def test_scikit_learns_tools_take_it(images):
    X, y = images
    search = GridSearchCV(small(), {"max_iter": [1, 12]}, cv=2).fit(X, y)
    assert search.best_params_ == {"max_iter": 12}
    assert cross_val_score(small(max_iter=12), X, y, cv=3).mean() > 0.8
    rows = X.reshape(len(X), -1)
    pipeline = make_pipeline(FunctionTransformer(np.float32), small(image=(8, 6, 2), max_iter=12)).fit(rows, y)
    assert pipeline.score(rows, y) > 0.9
    assert "ConvNetClassifier(batch_size=32, channels=(4,)" in repr(small())
    assert small().set_params(hidden=5).hidden == 5
    with pytest.raises(ValueError, match="Invalid parameter"):
        small().set_params(hiden=5)


def test_files_and_pickles(images, tmp_path):
    X, y = images
    classifier = small(max_iter=2, batch_norm=True, class_weight={"left": 2.0}, alpha=np.float64(0.1)).fit(X, y)
    classifier.save(tmp_path / "classifier")
    for copy in (dd.ConvNetClassifier.load(tmp_path / "classifier"), pickle.loads(pickle.dumps(classifier))):
        np.testing.assert_array_equal(copy.predict_proba(X), classifier.predict_proba(X))
        np.testing.assert_array_equal(copy.classes_, classifier.classes_)
        assert copy.get_params() == classifier.get_params()
        assert copy.loss_curve_ == classifier.loss_curve_
        assert copy.fit(X, y).predict_proba(X).tolist() == classifier.predict_proba(X).tolist()
    numbers = small(max_iter=1).fit(X, np.searchsorted(NAMES, y) * 2)
    numbers.save(tmp_path / "classifier")
    assert dd.ConvNetClassifier.load(tmp_path / "classifier").classes_.tolist() == [0, 2, 4]
    with pytest.raises(TypeError, match=r"augment: .* cannot be written to a file"):
        small(max_iter=1, augment=lambda x, key: x).fit(X, y).save(tmp_path / "other")
    with pytest.raises(NotFittedError):
        small().save(tmp_path / "other")
    assert not (tmp_path / "other").exists()
    numbers.model_.save(tmp_path / "model")
    with pytest.raises(ValueError, match="model"):
        dd.ConvNetClassifier.load(tmp_path / "model")
    whole = dd.nn.Sequential.load(tmp_path / "model")
    np.testing.assert_array_equal(whole.predict(X), numbers.decision_function(X))


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"X": np.zeros((4, 96))}, ValueError, r"X: expected images of shape .*, got \(4, 96\); say by image= what"),
        ({"X": np.zeros((4, 8, 6))}, ValueError, r"got \(4, 8, 6\); images of one channel are X\[..., None\]"),
        ({"X": np.zeros((4, 3, 8, 6))}, ValueError, r"got \(4, 3, 8, 6\): channels come last here"),
        ({"X": np.zeros((4, 95)), "image": (8, 6, 2)}, ValueError, r"or rows of 96 numbers, got \(4, 95\)"),
        ({"X": np.zeros((4, 2, 8, 6)), "image": (8, 6, 2)}, ValueError, r"got \(4, 2, 8, 6\): channels come last here"),
        ({"X": np.full((4, 8, 6, 2), np.nan)}, ValueError, r"X: expected finite numbers, got nan at \(0, 0, 0, 0\)"),
        ({"X": np.full((4, 8, 6, 2), "a")}, TypeError, "X: expected numbers"),
        ({"X": np.zeros((0, 8, 6, 2)), "y": []}, ValueError, "X: expected at least one image"),
        ({"y": [0, 1, 0]}, ValueError, "y: expected 4 labels, one for each image, got 3"),
        ({"y": [1, 1, 1, 1]}, ValueError, "y: expected at least two classes, got 1"),
        ({"y": [0.5, 1.5, 0.1, 0.2]}, ValueError, "Unknown label type"),
        ({"y": [0, 1, np.nan, 1]}, ValueError, "y: expected labels, got nan"),
        ({"image": (8, 6)}, ValueError, r"image: expected \(height, width, channels\)"),
        ({"channels": (4,) * 3}, ValueError, "channels: expected at most 2 blocks"),
        ({"hidden": 0}, ValueError, "hidden: expected an integer of at least 1"),
        ({"solver": "lbfgs"}, ValueError, "solver: expected 'adam' or 'sgd', got 'lbfgs'"),
        ({"batch_size": 0}, ValueError, "batch_size: expected an integer of at least 1"),
        ({"batch_size": "all"}, TypeError, "batch_size: expected an integer"),
        ({"max_iter": 0}, ValueError, "max_iter: expected an integer of at least 1"),
        ({"alpha": -1}, ValueError, "alpha: expected a number"),
        ({"learning_rate_init": 0.0}, ValueError, "learning_rate_init: expected a number"),
        ({"class_weight": {5: 1.0}}, ValueError, r"class_weight: expected classes of y, \[0, 1\], got 5"),
        ({"class_weight": "even"}, ValueError, "class_weight: expected a dict, 'balanced' or None, got 'even'"),
        ({"sample_weight": [1, 2]}, ValueError, r"sample_weight: expected shape \(4,\)"),
        ({"sample_weight": [1, -1, 0, 1]}, ValueError, "sample_weight: expected finite weights of at least 0"),
        ({"X_val": np.zeros((2, 8, 6, 2))}, ValueError, "X_val, y_val: expected both or none"),
        ({"X_val": np.zeros((2, 8, 7, 2)), "y_val": [0, 1]}, ValueError, r"X_val: expected images of shape \(n, 8, 6"),
        ({"X_val": np.zeros((2, 8, 6, 2)), "y_val": [0, 9]}, ValueError, r"y_val: expected classes of y, \[0, 1\]"),
        ({"early_stopping": True, "validation_fraction": 1.5}, ValueError, "validation_fraction: expected a number"),
    ],
)  # fmt: skip
def test_bad_input(change, error, message):
    data = {"X": np.zeros((4, 8, 6, 2)), "y": [0, 1, 0, 1]}
    data |= {name: value for name, value in change.items() if name in ("X", "y", "X_val", "y_val", "sample_weight")}
    parameters = {name: value for name, value in change.items() if name not in data}
    with pytest.raises(error, match=message):
        small(**parameters).fit(**data)


def test_bad_use(images):
    X, y = images
    with pytest.raises(NotFittedError):
        small().predict(X)
    classifier = small(max_iter=1).fit(X, y)
    with pytest.raises(ValueError, match=r"X: expected images of .* or rows of 96 numbers, got \(3, 9, 6, 2\)"):
        classifier.predict(np.zeros((3, 9, 6, 2)))
    before = classifier.predict_proba(X)
    with pytest.raises(ValueError, match="solver"):  # a fit that fails leaves what was fitted
        classifier.set_params(solver="newton").fit(X[:, :7], y)
    np.testing.assert_array_equal(classifier.predict_proba(X), before)
    with pytest.raises(TypeError, match="unexpected keyword argument 'hiden'"):
        small(hiden=3)
