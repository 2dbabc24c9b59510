"""Estimators: scikit-learn's contract, for images."""

import contextvars
import copy
import os
import pickle
import signal
import threading
import time
from itertools import pairwise

import joblib
import numpy as np
import pytest
from sklearn.base import clone
from sklearn.exceptions import ConvergenceWarning, NotFittedError
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer
from sklearn.utils import estimator_checks

import dd2424fast as dd
from dd2424fast.callbacks import weights_of
from dd2424fast.estimators import images as images_module
from dd2424fast.estimators.images_training import Images, network
from dd2424fast.threads import END

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
    few = [small(max_iter=2, batch_norm=True).fit(X[:97], y[:97], weight) for weight in (None, 1.0)]
    assert [one._training[1]["trainer"]["update"] for one in few] == [6, 6]  # a single image left over joins a batch
    kept = np.arange(150) % 3 > 0  # weight 0 is as if it were not there
    zeros = small(max_iter=3, batch_size=20).fit(X, y, sample_weight=kept.astype(float))
    ones = small(max_iter=3, batch_size=20).fit(X[kept], y[kept], sample_weight=np.ones(kept.sum()))
    np.testing.assert_array_equal(zeros.predict_proba(X), ones.predict_proba(X))

    heavy = small(max_iter=3).fit(X, y, sample_weight=np.where(left, 50.0, 1.0))
    by_class = small(max_iter=3, class_weight={"left": 50.0}).fit(X, y)
    plain = small(max_iter=3).fit(X, y)
    for classifier in (heavy, by_class):
        assert classifier.predict_proba(X)[:, 0].mean() > plain.predict_proba(X)[:, 0].mean() + 0.1
    without = small(max_iter=2, class_weight={"left": 0}, batch_size=2).fit(X, y)  # some batches have no other class
    alone = small(max_iter=2, batch_size=2).fit(X, y, sample_weight=y != "left")
    np.testing.assert_array_equal(without.model_.parameters, alone.model_.parameters)
    with pytest.raises(ValueError, match="class_weight: expected a weight above 0 for a class of y, got zeros"):
        small(class_weight={"left": 0}).partial_fit(X[y == "left"], y[y == "left"], classes=np.unique(y))
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


@pytest.mark.parametrize(
    "check",
    [
        "parameters_default_constructible",
        "no_attributes_set_in_init",
        "get_params_invariance",
        "set_params",
        "estimator_repr",
        "estimator_cloneable",
        "valid_tag_types",
    ],
)
def test_scikit_learns_checks_that_need_no_data(check):
    getattr(estimator_checks, f"check_{check}")("ConvNetClassifier", dd.ConvNetClassifier())


@pytest.mark.parametrize("method", ["fit", "partial_fit"])
def test_training_and_use_leave_what_is_not_theirs(method, images):
    X, y = (a.copy() for a in images)
    X.flags.writeable = y.flags.writeable = False
    classifier = small(max_iter=1, warm_start=True, channels=[4])
    parameters = copy.deepcopy(classifier.get_params())
    rest = {"classes": NAMES} if method == "partial_fit" else {}
    assert getattr(classifier, method)(X, y, **rest) is classifier
    assert classifier.get_params() == parameters
    assert (classifier.n_features_in_, classifier.image_, classifier.n_iter_) == (96, (8, 6, 2), 1)
    before = copy.deepcopy(vars(classifier))
    for use in (classifier.predict, classifier.predict_proba, classifier.predict_log_proba):
        np.testing.assert_array_equal(use(X.tolist()), use(X))
    assert vars(classifier).keys() == before.keys()
    np.testing.assert_equal(state(classifier)[0]["shown"], weights_of(before["model_"]))
    assert {name for name in vars(classifier) if not name.endswith("_")} - {"_training"} == parameters.keys() | {
        "_last",
        "_stopped",
    }


def test_files_and_pickles(images, tmp_path):
    X, y = images
    classifier = small(max_iter=2, batch_norm=True, class_weight={"left": 2.0}, alpha=np.float64(0.1)).fit(X, y)
    classifier.save(tmp_path / "classifier")
    for other in (dd.ConvNetClassifier.load(tmp_path / "classifier"), pickle.loads(pickle.dumps(classifier))):
        np.testing.assert_array_equal(other.predict_proba(X), classifier.predict_proba(X))
        np.testing.assert_array_equal(other.classes_, classifier.classes_)
        assert other.get_params() == classifier.get_params()
        assert other.loss_curve_ == classifier.loss_curve_
        assert other.fit(X, y).predict_proba(X).tolist() == classifier.predict_proba(X).tolist()
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


# ---- going on ------------------------------------------------------------------------------------------------------

WAYS = {
    "plain": {},
    "sgd": {"solver": "sgd", "learning_rate_init": 0.03},
    "dropout and augment": {"dropout": 0.2, "augment": dd.data.Augment(shift=1)},
    "sgd, dropout and augment": {"solver": "sgd", "dropout": 0.2, "augment": dd.data.Augment(shift=1, mixup=0.2)},
    "batch norm, in order": {"batch_norm": True, "shuffle": False},
    "early stopping": {"early_stopping": True, "validation_fraction": 0.2, "learning_rate_init": 0.05},
    "sgd, early stopping": {"early_stopping": True, "solver": "sgd", "batch_norm": True, "n_iter_no_change": 6},
    "stalls": {"n_iter_no_change": 3, "tol": 10.0},
}
ENDED = {"stalls": 4, "sgd, early stopping": 7}  # epochs, of at most 10


def state(classifier):
    """All that a fit leaves for the next one, but for seconds: arrays, and numbers."""
    tensors, header = classifier._training
    history = {name: column for name, column in header["history"].items() if name != "seconds"}
    last = classifier._last or (None, np.zeros(0))
    arrays = {**tensors, "shown": weights_of(classifier.model_), "last": last[1]}
    return arrays, {**header, "history": history, "last": last[0], "stopped": classifier._stopped}


def assert_same(a, b):
    (arrays, numbers), (others, other_numbers) = state(a), state(b)
    assert arrays.keys() == others.keys()
    for name, array in arrays.items():
        np.testing.assert_array_equal(array, others[name], err_msg=name)
    assert numbers == other_numbers
    assert a.loss_curve_ == b.loss_curve_
    assert a.validation_scores_ == b.validation_scores_


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("way", WAYS)
def test_a_warm_start_is_an_uninterrupted_run(way, weighted, images):
    X, y = images[0][:97], images[1][:97]  # the last batch is a single image
    weight = np.random.default_rng(1).random(97) + 0.1 if weighted else None
    parameters = {**WAYS[way], "warm_start": True}
    whole = small(max_iter=10, **parameters).fit(X, y, weight)
    parts = small(max_iter=5, **parameters).fit(X, y, weight)
    assert len(parts.loss_curve_) == min(ENDED.get(way, 10), 5)
    parts.fit(X, y, weight)
    assert whole.n_iter_ == len(whole.loss_curve_) == ENDED.get(way, 10)
    assert parts.n_iter_ == max(ENDED.get(way, 10) - 5, 0)
    assert_same(whole, parts)
    one_by_one = small(max_iter=1, **parameters)
    for _ in range(10):
        one_by_one = pickle.loads(pickle.dumps(one_by_one.fit(X, y, weight)))
    assert_same(whole, one_by_one)
    afresh = small(max_iter=2, **{**parameters, "warm_start": False})
    np.testing.assert_array_equal(*(afresh.fit(X, y, weight).predict_proba(X) for _ in range(2)))


def test_it_goes_on_from_the_last_epoch_and_shows_the_best(images):
    X, y = images
    wrong = NAMES[(np.searchsorted(NAMES, y[100:]) + 1) % 3]  # the more it learns, the less it scores
    data = {"X": X[:100], "y": y[:100], "X_val": X[100:], "y_val": wrong}
    parameters = {"warm_start": True, "early_stopping": True, "n_iter_no_change": 99}
    whole, parts = small(max_iter=12, **parameters).fit(**data), small(max_iter=6, **parameters).fit(**data)
    assert parts.best_validation_score_ == max(parts.validation_scores_) > parts.validation_scores_[-1]
    assert parts.score(X[100:], wrong) == pytest.approx(parts.best_validation_score_)
    changed = copy.deepcopy(parts)
    changed.model_[1].parameters[...] *= 0.5
    mine = weights_of(changed.model_)
    assert_same(parts.fit(**data), whole)
    changed.set_params(learning_rate_init=1e-12).fit(**data)  # from the user's weights, not from the last epoch's
    np.testing.assert_allclose(changed._last[1], mine, atol=1e-7)
    never = small(max_iter=2, early_stopping=True).fit(**data)
    assert never._last is never._stopped is None
    assert never._training[1]["callbacks"] == {}  # no copies of the weights without warm_start


def test_new_parameters_and_data_in_a_warm_start(images):
    X, y = images
    warm = small(max_iter=2, warm_start=True, random_state=np.random.RandomState(3)).fit(X, y)
    mean = warm.model_[0].state_dict()["running_mean"].copy()
    warm.set_params(learning_rate_init=0.5, alpha=0.3, batch_size=20).fit(X[:60] * 3, y[:60])
    np.testing.assert_array_equal(warm.model_[0].state_dict()["running_mean"], mean)  # of the first images
    assert warm._training[1]["optimizer_updates"] == warm._training[1]["trainer"]["update"] == 2 * 5 + 2 * 3
    assert warm.n_iter_ == 2
    assert len(warm.history_) == 4
    assert warm.history_["lr"] == [0.01, 0.01, 0.5, 0.5]
    warm.set_params(solver="sgd", learning_rate_init=0.01).fit(X, y)  # its state begins anew
    assert set(warm._training[0]) == {"optimizer.velocity"}
    assert warm._training[1]["optimizer_updates"] == 2 * 8
    assert set(warm.set_params(momentum=0.0).fit(X, y)._training[0]) == set()
    before = state(warm)
    warm.set_params(early_stopping=True, n_iter_no_change=1).fit(X, y)  # another thing to look at, seen from now on
    assert len(warm.validation_scores_) == 2 or warm.n_iter_ == 1
    assert warm._training[1]["callbacks"]["0.Stopping"]["monitor"] == "val_accuracy"
    assert before[1]["callbacks"]["0.Stopping"]["monitor"] == "loss"


def test_a_random_state_is_drawn_from_once(images):
    X, y = images
    parameters = {"early_stopping": True, "warm_start": True, "dropout": 0.1}
    parts = small(max_iter=2, random_state=np.random.RandomState(3), **parameters).fit(X, y).fit(X, y.astype(object))
    assert_same(parts, small(max_iter=4, random_state=np.random.RandomState(3), **parameters).fit(X, y))
    assert parts.classes_.dtype == y.dtype


def test_what_stalled_goes_on_with_other_data_only(images):
    X, y = images
    stalled = small(max_iter=9, n_iter_no_change=2, tol=10.0, warm_start=True).fit(X, y)
    assert stalled.n_iter_ == 3
    assert stalled.set_params(max_iter=20, verbose=False).fit(X, y).n_iter_ == 0
    before = weights_of(stalled.model_)
    assert copy.deepcopy(stalled).fit(X[::-1], y[::-1]).n_iter_ == 1  # the epochs waited for count
    assert copy.deepcopy(stalled).fit(X, y, np.full(150, 2.0)).n_iter_ == 1
    assert copy.deepcopy(stalled).partial_fit(X, y).n_iter_ == 1
    other = copy.deepcopy(stalled).set_params(tol=0.0, max_iter=2).fit(X, y)
    assert other.n_iter_ == 2
    assert other.set_params(tol=10.0).fit(X, y).n_iter_ > 0  # it was trained since
    np.testing.assert_array_equal(weights_of(stalled.model_), before)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"channels": (5,)}, r"channels: expected \(4,\), that of the network that goes on, got \(5,\)"),
        ({"hidden": None}, "hidden: expected 8, that of the network that goes on, got None"),
        ({"batch_norm": True}, "batch_norm: expected False"),
        ({"convs_per_block": 2}, "convs_per_block: expected 1"),
        ({"dropout": 0.1}, r"dropout: expected 0\.0, that of the network that goes on, got 0\.1"),
    ],
)
def test_another_network_does_not_go_on(parameters, message, images):
    X, y = images
    warm = small(max_iter=1, warm_start=True).fit(X, y)
    before = state(warm)
    for method in ("fit", "partial_fit"):
        with pytest.raises(ValueError, match=message):
            getattr(warm.set_params(**parameters), method)(X, y)
    np.testing.assert_equal(state(warm), before)
    warm.set_params(channels=[4], hidden=8, batch_norm=False, convs_per_block=1, dropout=0).fit(X, y)
    assert len(warm.loss_curve_) == 2
    for change in ({"y": y[y != "top"], "X": X[y != "top"]}, {"y": np.where(y == "top", "under", y)}):
        with pytest.raises(ValueError, match=r"y: expected the classes of the network that goes on, \['left'"):
            warm.fit(**{"X": X, **change})
    with pytest.raises(ValueError, match=r"X: expected images of shape \(n, 8, 6, 2\)"):
        warm.fit(X[:, :, :5], y)
    assert len(warm.loss_curve_) == 2


@pytest.mark.parametrize("solver", ["adam", "sgd"])
def test_parts_of_the_data(solver, images, tmp_path):
    """An epoch a call; of the same images, they are the epochs of a fit."""
    X, y = images
    parameters = {"solver": solver, "dropout": 0.1, "class_weight": {"left": 2.0}, "n_iter_no_change": 99}
    weight = np.linspace(0.5, 1, 150)
    whole = small(max_iter=4, **parameters).fit(X, y, weight)
    parts = small(**parameters).partial_fit(X, y, weight, NAMES[::-1])
    np.testing.assert_array_equal(parts.classes_, NAMES)
    assert parts.n_iter_ == len(parts.loss_curve_) == 1
    for _ in range(3):
        parts.save(tmp_path / "parts")
        parts = dd.ConvNetClassifier.load(tmp_path / "parts").partial_fit(X, y, sample_weight=weight)
    np.testing.assert_array_equal(weights_of(parts.model_), weights_of(whole.model_))
    assert parts.loss_curve_ == whole.loss_curve_
    mean = parts.model_[0].state_dict()["running_mean"].copy()
    parts.partial_fit(X[y == "left"][:7] * 2, y[y == "left"][:7], classes=NAMES)  # one class, fewer than a batch
    np.testing.assert_array_equal(parts.model_[0].state_dict()["running_mean"], mean)
    assert len(parts.loss_curve_) == 5
    after = [small(max_iter=1, warm_start=warm).fit(X, y).partial_fit(X, y).predict_proba(X) for warm in (True, False)]
    np.testing.assert_array_equal(*after)
    np.testing.assert_array_equal(after[0], small(max_iter=2).fit(X, y).predict_proba(X))


def test_bad_parts(images):
    X, y = images
    fresh = small()
    with pytest.raises(ValueError, match="classes: expected all that there will be, at the first call"):
        fresh.partial_fit(X, y)
    with pytest.raises(ValueError, match="classes: expected at least two classes, got 1"):
        fresh.partial_fit(X[y == "left"], y[y == "left"], classes=["left"])
    with pytest.raises(ValueError, match=r"y: expected classes of y, \['left', 'right'\], got 'top'"):
        fresh.partial_fit(X, y, classes=NAMES[:2])
    with pytest.raises(NotFittedError):
        fresh.predict(X)
    parts = fresh.partial_fit(X, y, classes=NAMES)
    with pytest.raises(ValueError, match="classes: expected those of the first call"):
        parts.partial_fit(X, y, classes=["a", "b"])
    with pytest.raises(ValueError, match="class_weight: expected a dict or None for partial_fit"):
        parts.set_params(class_weight="balanced").partial_fit(X, y)
    with pytest.raises(ValueError, match="early_stopping: partial_fit does not support"):
        parts.set_params(class_weight=None, early_stopping=True).partial_fit(X, y)
    assert len(parts.loss_curve_) == 1


class Clock:
    """A clock that an update moves on by a second, and nothing else."""

    def __init__(self, monkeypatch):
        self.now, step = 100.0, dd.Trainer.step

        def timed(*args, **kwargs):
            self.now += 1.0
            return step(*args, **kwargs)

        monkeypatch.setattr(time, "perf_counter", lambda: self.now)
        monkeypatch.setattr(dd.Trainer, "step", timed)

    def wait(self, seconds):
        self.now += seconds


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("parameters", [{"dropout": 0.2}, {"early_stopping": True, "validation_fraction": 0.25}])
def test_a_time_budget_ends_within_an_epoch_and_the_next_fit_takes_it_up(
    parameters, weighted, images, monkeypatch, tmp_path
):
    X, y = images
    weight = np.linspace(0.5, 1, 150) if weighted else None
    parameters = {"warm_start": True, "n_iter_no_change": 99, **parameters}
    whole = small(max_iter=4, **parameters).fit(X, y, weight)
    per_epoch = 4 if "early_stopping" in parameters else 5
    Clock(monkeypatch)
    for seconds, updates in ((0.5, 1), (3.0, 3), (per_epoch + 2.5, per_epoch + 2), (2.0 * per_epoch, 2 * per_epoch)):
        part = small(max_iter=4, time_budget=seconds, **parameters).fit(X, y, weight)
        assert part._training[1]["trainer"]["update"] == updates
        assert part.n_iter_ == updates // per_epoch
        assert part.history_["epoch"][-1] == pytest.approx(updates / per_epoch)
        assert np.isfinite(part.loss_)
        if part.validation_scores_:
            assert part.best_validation_score_ == max(part.validation_scores_)
        part.save(tmp_path / "part")
        for one in (part, dd.ConvNetClassifier.load(tmp_path / "part")):
            one.set_params(time_budget=None, max_iter=4 - one.n_iter_).fit(X, y, weight)
            assert one.history_["epoch"] == [1, 2, 3, 4]
            assert_same(one, whole)


def test_an_epoch_that_was_cut_is_given_up_where_it_cannot_go_on(images, monkeypatch):
    X, y = images
    Clock(monkeypatch)
    cut = small(max_iter=4, time_budget=7.0, warm_start=True).fit(X, y)
    assert cut.history_["epoch"] == [1, pytest.approx(1.4)]
    other, parts = copy.deepcopy(cut), copy.deepcopy(cut)
    other.set_params(time_budget=None, max_iter=1).fit(X[:64], y[:64])
    assert other._training[1]["trainer"]["update"] == 7 + 2
    parts.set_params(time_budget=None).partial_fit(X, y)
    assert parts._training[1]["trainer"]["update"] == 7 + 5
    assert other.history_["epoch"] == parts.history_["epoch"] == [1, 2]
    clock = Clock(monkeypatch)
    monkeypatch.setattr(images_module, "network", lambda *args, **shape: [clock.wait(4.0), network(*args, **shape)][1])
    late = small(max_iter=4, time_budget=7.0).fit(X, y)  # seconds before the first update count
    assert late.history_["epoch"] == [pytest.approx(0.6)]
    with pytest.raises(ValueError, match=r"time_budget: expected a number in \(0, inf\], got 0"):
        cut.set_params(time_budget=0).fit(X, y)
    assert cut.history_["epoch"] == [1, pytest.approx(1.4)]


class Interrupt:
    """Leaves images as they are, and presses Ctrl-C at its n-th call."""

    def __init__(self, at):
        self.left = at

    def __repr__(self):
        return "Interrupt"

    def __call__(self, x, key):
        self.left -= 1
        if not self.left:
            os.kill(os.getpid(), signal.SIGINT)
        return x


@pytest.mark.parametrize("early_stopping", [False, True])
def test_an_interrupt_keeps_what_is_learned(early_stopping, images):
    X, y = images
    parameters = {"warm_start": True, "early_stopping": early_stopping, "validation_fraction": 0.2, "dropout": 0.1}
    whole = small(max_iter=5, augment=Interrupt(-1), **parameters).fit(X, y)
    per_epoch = 4 if early_stopping else 5
    with pytest.warns(UserWarning, match="interrupted in epoch 3; what was learned is kept") as caught:
        got = small(max_iter=5, augment=Interrupt(2 * per_epoch + 1), **parameters).fit(X, y)
    assert caught[0].filename == __file__
    assert got._training[1]["trainer"]["update"] == 2 * per_epoch + 1
    assert got.n_iter_ == len(got.loss_curve_) == 2
    if early_stopping:
        held = got._set_aside(images_of(got, X, y), got._training[1]["trainer"]["seed"])[1]
        best = (got.decision_function(held[0]).argmax(axis=1) == held[1]).mean()
        assert best == pytest.approx(got.best_validation_score_)
    assert_same(got.set_params(max_iter=3).fit(X, y), whole)
    with pytest.warns(UserWarning, match="interrupted in epoch 1"):
        got = small(max_iter=5, augment=Interrupt(1)).fit(X, y)
    assert np.isnan(got.loss_)
    assert got.loss_curve_ == []
    assert got.predict(X).shape == y.shape


def images_of(classifier, X, y):
    return Images(X, np.searchsorted(classifier.classes_, y))


def test_a_second_interrupt_acts_at_once(images, monkeypatch):
    X, y = images
    evaluate, left = dd.Trainer.evaluate, [3]

    def interrupted(*args, **kwargs):
        left[0] -= 1
        if not left[0]:
            raise KeyboardInterrupt
        return evaluate(*args, **kwargs)

    monkeypatch.setattr(dd.Trainer, "evaluate", interrupted)
    got = small(max_iter=9, warm_start=True)
    with pytest.raises(KeyboardInterrupt):
        got.fit(X, y, X_val=X, y_val=y)
    assert got.n_iter_ == len(got.validation_scores_) == 2
    assert got.set_params(max_iter=2).fit(X, y, X_val=X, y_val=y).history_["epoch"] == [1, 2, 3, 4]


class Huge:
    """Leaves images as they are for so many calls; then they have no finite loss, or it raises."""

    def __init__(self, after, error=None):
        self.after, self.error = after, error

    def __repr__(self):
        return "Huge"

    def __call__(self, x, key):
        self.after -= 1
        if self.after >= 0:
            return x
        if self.error:
            raise self.error
        return np.full(x.shape, np.inf, np.float32)


def test_training_that_diverges(images):
    X, y = images
    finite = small(max_iter=2).fit(X, y)
    wild = small(max_iter=9, augment=Huge(12), warm_start=True)
    with pytest.raises(dd.TrainingDiverged, match=r"update 12: the loss is .*it was not applied") as caught:
        wild.fit(X, y)
    assert caught.value.update == wild._training[1]["trainer"]["update"] == 12
    assert wild.n_iter_ == 2
    assert wild.loss_curve_ == finite.loss_curve_
    assert np.isfinite(wild.predict_proba(X)).all()
    wild.set_params(augment=Huge(99), max_iter=3).fit(X, y)  # with the update that was not applied
    np.testing.assert_array_equal(wild.predict_proba(X), small(max_iter=5).fit(X, y).predict_proba(X))
    with pytest.raises(dd.TrainingDiverged, match="update 0"):
        wild.set_params(warm_start=False, augment=Huge(0)).fit(X, y)
    assert wild.loss_curve_ == []
    stops = small(max_iter=9, early_stopping=True, augment=Huge(12), validation_fraction=0.2)
    with pytest.warns(ConvergenceWarning, match=r"update 12: .* The weights are the best epoch's") as warned:
        stops.fit(X, y)
    assert warned[0].filename == __file__
    assert stops.n_iter_ == len(stops.validation_scores_) == 3
    stops.set_params(augment=Huge(2))
    with pytest.raises(dd.TrainingDiverged, match="update 2"):  # there was no epoch to be the best
        stops.fit(X, y)


@pytest.mark.parametrize("warm_start", [False, True])
def test_what_fails_leaves_what_was_fitted(warm_start, images):
    X, y = images
    fitted = small(max_iter=2, warm_start=warm_start, early_stopping=True, learning_rate_init=0.1).fit(X, y)
    before = state(fitted)
    for change in ({"max_iter": 0}, {"augment": 3}, {"time_budget": -1}, {"beta_1": 2.0}, {"label_smoothing": 7}):
        good = {name: fitted.get_params()[name] for name in change}
        with pytest.raises((ValueError, TypeError), match=next(iter(change)).replace("beta_1", "betas")):
            fitted.set_params(**change).fit(X, y)
        np.testing.assert_equal(state(fitted), before)
        fitted.set_params(**good)
    for fails in (Huge(0, OSError("no more")), Huge(7, OSError("no more"))):  # its own, after some updates too
        with pytest.raises(OSError, match="no more"):
            fitted.set_params(augment=fails).fit(X, y)
        np.testing.assert_equal(state(fitted), before)


def test_copies_go_on_alone(images, tmp_path):
    X, y = images
    parameters = {"warm_start": True, "early_stopping": True, "dropout": 0.1, "batch_norm": True, "max_iter": 3}
    got = small(**parameters, n_iter_no_change=99).fit(X, y)
    joblib.dump(got, tmp_path / "joblib")
    got.save(tmp_path / "file")
    copies = [
        copy.deepcopy(got),
        pickle.loads(pickle.dumps(got)),
        joblib.load(tmp_path / "joblib", mmap_mode="r"),  # as joblib's workers get them
        dd.ConvNetClassifier.load(tmp_path / "file"),
    ]
    before = copy.deepcopy(state(got))
    for other in copies:
        np.testing.assert_equal(state(other), state(got))
        other.fit(X, y)
    np.testing.assert_equal(state(got), before)
    got.fit(X, y)
    for other in copies:
        assert_same(other, got)
    assert not hasattr(clone(got), "model_")
    assert_same(clone(got).fit(X, y), small(**parameters, n_iter_no_change=99).fit(X, y))
    stalled = small(max_iter=9, n_iter_no_change=2, tol=10.0, warm_start=True).fit(X, y)
    stalled.save(tmp_path / "file")
    assert dd.ConvNetClassifier.load(tmp_path / "file").fit(X, y).n_iter_ == 0
    got.set_params(channels=(9,), hidden=3).save(tmp_path / "file")  # what was fitted, not what is asked for next
    np.testing.assert_array_equal(dd.ConvNetClassifier.load(tmp_path / "file").predict(X), got.predict(X))


def test_a_fleet_takes_it_and_ends_it(images):
    X, y = images
    fleet = dd.fit_many(small(max_iter=3), {"learning_rate_init": [1e-4, 0.01]}, X, y, seeds=2, validation=0.2)
    assert fleet.best_setting == {"learning_rate_init": 0.01}
    rates = {"learning_rate_init": [1e-4, 0.01, 1e-3]}
    halved = dd.successive_halving(small(), rates, X, y, max_iter=6, first_iter=2, validation=(X, y))
    assert halved.best_setting == {"learning_rate_init": 0.01}
    (best,) = halved.best_estimators
    np.testing.assert_array_equal(best.predict_proba(X), small(max_iter=6).fit(X, y).predict_proba(X))
    end, context = threading.Event(), contextvars.copy_context()
    context.run(END.set, end)
    ended = small(max_iter=9, augment=lambda x, key: [end.set(), x][1], warm_start=True)
    context.run(ended.fit, X, y)
    assert ended._training[1]["trainer"]["update"] == 1
    assert context.run(ended.fit, X, y)._training[1]["trainer"]["update"] == 1


def test_logarithms_of_probabilities(images):
    X, y = images
    classifier = small(max_iter=2).fit(X, y)
    np.testing.assert_allclose(np.exp(classifier.predict_log_proba(X)), classifier.predict_proba(X), rtol=1e-5)
    classifier.model_[1].parameters[...] *= 100
    assert (classifier.predict_proba(X) == 0).any()
    assert np.isfinite(classifier.predict_log_proba(X)).all()


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"X": np.zeros((4, 96))}, ValueError, r"X: expected images of shape .*, got \(4, 96\); say by image= what"),
        ({"X": np.zeros((4, 8, 6))}, ValueError, r"got \(4, 8, 6\); images of one channel are X\[..., None\]"),
        ({"X": np.zeros((4, 3, 8, 6))}, ValueError, r"got \(4, 3, 8, 6\): channels come last here"),
        ({"X": np.zeros((4, 95)), "image": (8, 6, 2)}, ValueError, r"or rows of 96 numbers, got \(4, 95\)"),
        ({"X": np.zeros((96, 4)), "image": (8, 6, 2)}, ValueError, r"got \(96, 4\); if each column is a sample"),
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
