"""MLPClassifier and MLPRegressor: what they have beyond scikit-learn's, and how they train, keep and tell it."""

import copy
import itertools
import os
import pickle

import joblib
import numpy as np
import pytest
import scipy.sparse
import sklearn.utils.validation
from sklearn.base import clone
from sklearn.exceptions import ConvergenceWarning, NotFittedError
from sklearn.metrics import accuracy_score, r2_score
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import LabelBinarizer, StandardScaler

import dd2424fast as dd
from dd2424fast.estimators import mlp_base, mlp_training

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning"),
]

NAMES = np.array(["left", "right", "top"])


@pytest.fixture(scope="module")
def rows():
    """90 rows of 6 features; three named classes, and two numbers, that follow from them."""
    rng = np.random.default_rng(0)
    X = rng.standard_normal((90, 6))
    return X, NAMES[(X @ rng.standard_normal((6, 3))).argmax(axis=1)], X @ rng.standard_normal((6, 2))


def classifier(hidden=(8, 5), **parameters):
    return dd.MLPClassifier(
        hidden, **{"random_state": 0, "max_iter": 5, "batch_size": 16, "learning_rate_init": 0.01, **parameters}
    )


def regressor(**parameters):
    return dd.MLPRegressor(
        **{"hidden_layer_sizes": (8, 5), "random_state": 0, "max_iter": 5, "batch_size": 16, **parameters}
    )


def assert_same(a, b):
    """Bit for bit the same, now and in all training to come."""
    for name in ("parameters", "buffers"):
        np.testing.assert_array_equal(getattr(a._network, name), getattr(b._network, name))
    for name in ("loss_curve_", "validation_scores_", "best_loss_", "best_validation_score_", "t_"):
        assert getattr(a, name) == getattr(b, name), name
    assert a._no_improvement_count == b._no_improvement_count
    for name, value in vars(a._optimizer).items():
        np.testing.assert_array_equal(value, getattr(b._optimizer, name), err_msg=name)
    for mine, other in zip(a._random_state.get_state(), b._random_state.get_state(), strict=True):
        np.testing.assert_array_equal(mine, other)


# ---- going on ------------------------------------------------------------------------------------------------------

WAYS = {
    "plain": {},
    "dropout and batch norm": {"dropout": 0.3, "batch_norm": True},
    "early stopping": {"early_stopping": True, "validation_fraction": 0.2},
    "all": {"early_stopping": True, "dropout": 0.2, "batch_norm": True, "n_iter_no_change": 3, "tol": 0.01},
    "in order": {"shuffle": False, "batch_size": 7},
    "adaptive": {"learning_rate": "adaptive", "n_iter_no_change": 1, "tol": 0.3},
    "invscaling": {"learning_rate": "invscaling", "momentum": 0.5},
}


@pytest.mark.parametrize("solver", ["sgd", "adam"])
@pytest.mark.parametrize("way", WAYS)
def test_a_warm_start_is_an_uninterrupted_run(way, solver, rows):
    X, y, _ = rows
    parameters = {**WAYS[way], "solver": solver, "warm_start": True}
    whole = classifier(max_iter=10, **parameters).fit(X, y)
    parts = classifier(max_iter=5, **parameters).fit(X, y).fit(X, y)
    ended = {"all": {"sgd": 7, "adam": 6}, "adaptive": {"adam": 3}}.get(way, {}).get(solver, 10)  # converged
    assert whole.n_iter_ == ended
    assert parts.n_iter_ == max(ended - 5, 0)
    assert_same(whole, parts)
    one_by_one = classifier(max_iter=1, **parameters)
    for _ in range(9):
        one_by_one = pickle.loads(pickle.dumps(one_by_one.fit(X, y)))
    assert_same(whole, one_by_one.fit(X, y))
    afresh = classifier(max_iter=5, **{**parameters, "warm_start": False})
    np.testing.assert_array_equal(*(afresh.fit(X, y).coefs_[0].copy() for _ in range(2)))


@pytest.mark.parametrize("stops", [True, False])
def test_a_warm_start_with_weights_and_a_validation_set(stops, rows):
    X, _, t = rows
    data = {"sample_weight": np.arange(60.0), "X_val": X[60:], "y_val": t[60:]}
    parameters = {"warm_start": True, "early_stopping": stops, "restore_best_weights": True, "learning_rate_init": 0.1}
    whole = regressor(max_iter=4, **parameters).fit(X[:60], t[:60], **data)
    parts = regressor(max_iter=2, **parameters).fit(X[:60], t[:60], **data).fit(X[:60], t[:60], **data)
    assert_same(whole, parts)
    assert np.argmax(whole.validation_scores_) < 3  # the best is not the last
    assert whole.score(X[60:], t[60:]) == pytest.approx(whole.best_validation_score_)


def test_new_parameters_and_data_in_a_warm_start(rows):
    X, y, _ = rows
    warm = classifier(warm_start=True, solver="sgd").fit(X, y)
    assert warm.set_params(learning_rate_init=0.5, momentum=0.1).fit(X, y)._optimizer.learning_rate == 0.5
    assert warm._optimizer.momentum == 0.1
    warm.set_params(solver="adam").fit(X[:50], y[:50])
    assert type(warm._optimizer).__name__ == "AdamSolver"
    assert warm.t_ == 2 * 5 * 90 + 5 * 50
    parts = [classifier(warm_start=warm).fit(X, y).partial_fit(X, y).coefs_[0] for warm in (True, False)]
    np.testing.assert_array_equal(*parts)
    warm.set_params(activation="tanh", early_stopping=True).fit(X, y)
    assert len(warm._split[2]) == 9
    assert len(warm.set_params(validation_fraction=0.5).fit(X, y)._split[2]) == 45
    warm.set_params(early_stopping=False, validation_fraction=0.1)
    assert warm._network.plan.activation == "tanh"
    before = warm.coefs_[0].copy()
    with pytest.raises(ValueError, match=r"hidden_layer_sizes: expected \(8, 5\), those of the network that goes on"):
        warm.set_params(hidden_layer_sizes=(9,)).fit(X, y)
    with pytest.raises(ValueError, match="batch_norm: expected False, that of the network that goes on, got True"):
        warm.set_params(hidden_layer_sizes=(8, 5), batch_norm=True).fit(X, y)
    np.testing.assert_array_equal(warm.coefs_[0], before)


def test_cutting_an_epoch_changes_no_bit(rows, monkeypatch):
    X, y, _ = rows
    for parameters in ({}, {"shuffle": False}, {"batch_norm": True, "batch_size": 89}, {"dropout": 0.5}):
        whole = classifier(**parameters).fit(X, y)
        one_update_a_stretch(monkeypatch)
        calls = count_calls(monkeypatch)
        cut = classifier(**parameters).fit(X, y)
        assert len(calls) == 5 * (1 if parameters.get("batch_size") == 89 else 6)
        monkeypatch.undo()
        np.testing.assert_array_equal(cut._network.parameters, whole._network.parameters)
        assert cut.loss_curve_ == whole.loss_curve_
        assert cut._optimizer.t == whole._optimizer.t


def count_calls(monkeypatch, at=None, action=None):
    """Let every call of mlp_updates be noted; the one numbered `at` calls `action` instead."""
    calls, updates = [], dd.kernels.mlp_updates

    def noted(*args):
        calls.append(args)
        return action() if len(calls) == at else updates(*args)

    monkeypatch.setattr(dd.kernels, "mlp_updates", noted)
    return calls


def one_update_a_stretch(monkeypatch):
    monkeypatch.setattr(mlp_training, "FIRST_WORK", 1.0)
    monkeypatch.setattr(mlp_training, "STRETCH", 0.0)


class Tick:
    """A clock that a second passes on at every look."""

    def __init__(self, monkeypatch):
        self.now = 0.0
        monkeypatch.setattr(mlp_training.time, "monotonic", self.look)

    def look(self):
        self.now += 1.0
        return self.now


STOPPING = {"dropout": 0.2, "batch_norm": True, "early_stopping": True, "validation_fraction": 1 / 3}


@pytest.mark.parametrize("parameters", [{}, STOPPING], ids=str)
def test_a_time_budget_ends_within_an_epoch_and_the_next_fit_takes_it_up(parameters, rows, monkeypatch):
    X, y, _ = rows
    one_update_a_stretch(monkeypatch)  # which takes two looks at the clock
    parameters = {"batch_size": 15, **parameters}
    whole = classifier(max_iter=5, warm_start=True, **parameters).fit(X, y)
    per_epoch = whole._optimizer.t // 5
    Tick(monkeypatch)
    for seconds in (1, 7, 18, 19.5, 30):
        part = classifier(max_iter=5, warm_start=True, time_budget=seconds, **parameters).fit(X, y)
        updates = part._optimizer.t
        assert updates == max(1, seconds // 2)
        assert part.n_iter_ == updates // per_epoch == len(part.loss_curve_)
        assert np.isfinite(part.loss_)
        part.set_params(time_budget=None, max_iter=5 - part.n_iter_).fit(X, y)
        assert_same(whole, part)


def test_a_time_budget_ends_lbfgs(rows, monkeypatch):
    X, _, t = rows
    Tick(monkeypatch)
    assert regressor(solver="lbfgs", max_iter=50, time_budget=10).fit(X, t).n_iter_ == 5
    monkeypatch.undo()
    assert regressor(solver="lbfgs", max_iter=50, time_budget=1e-9).fit(X, t).n_iter_ == 1


def test_an_interrupt_keeps_what_is_learned(rows, monkeypatch):
    X, y, _ = rows

    def interrupt():
        raise KeyboardInterrupt

    count_calls(monkeypatch, 4, interrupt)
    with pytest.warns(UserWarning, match="interrupted in epoch 4; what was learned is kept"):
        got = classifier(warm_start=True).fit(X, y)
    assert got.n_iter_ == 3
    np.testing.assert_array_equal(got.coefs_[0], classifier(max_iter=3).fit(X, y).coefs_[0])
    got.fit(X, y)
    assert got.n_iter_ == 5

    got = regressor(solver="lbfgs", max_iter=30)
    gradient, calls = dd.kernels.mlp_gradient, itertools.count()
    monkeypatch.setattr(dd.kernels, "mlp_gradient", lambda *a: interrupt() if next(calls) == 9 else gradient(*a))
    with pytest.warns(UserWarning, match="interrupted"):
        got.fit(X, y == "left")
    assert 1 <= got.n_iter_ < 10
    assert np.isfinite(got.predict(X)).all()


# ---- weights of rows and classes -----------------------------------------------------------------------------------


@pytest.mark.parametrize("solver", ["sgd", "adam", "lbfgs"])
def test_a_weight_is_that_many_rows(solver, rows):
    X, y, t = rows
    weight = np.random.default_rng(1).integers(0, 4, 90)
    again = np.repeat(np.arange(90), weight)
    for make, target in ((classifier, y), (regressor, t)):
        one = {"solver": solver, "batch_size": "auto", "max_iter": 20}
        a = make(**one).fit(X, target, sample_weight=weight)
        b = make(**one).fit(X[again], target[again])
        np.testing.assert_allclose(a.coefs_[0], b.coefs_[0], rtol=1e-6, atol=1e-9)
        assert a.loss_ == pytest.approx(b.loss_, rel=1e-9)
        present = weight > 0
        c = make(**one).fit(X[present], target[present], sample_weight=weight[present].astype("float32"))
        np.testing.assert_array_equal(a.coefs_[0], c.coefs_[0])
        twice = (make(**one).fit(X, target, weight).coefs_[0] for weight in (2.0, np.full(90, 2)))
        np.testing.assert_array_equal(*twice)


def test_weights_of_classes(rows):
    X, y, _ = rows
    by_row = np.where(y == "left", 3.0, 1.0)
    np.testing.assert_array_equal(
        classifier(class_weight={"left": 3}).fit(X, y).coefs_[0], classifier().fit(X, y, by_row).coefs_[0]
    )
    np.testing.assert_array_equal(
        classifier(class_weight={"left": 3}).fit(X, y, by_row).coefs_[0], classifier().fit(X, y, by_row**2).coefs_[0]
    )
    counts = {name: 90 / 3 / (y == name).sum() for name in NAMES}
    balanced = classifier(class_weight="balanced").fit(X, y)
    np.testing.assert_allclose(balanced.coefs_[0], classifier(class_weight=counts).fit(X, y).coefs_[0], rtol=1e-9)
    sums = {name: by_row.sum() / 3 / by_row[y == name].sum() for name in NAMES}
    balanced = classifier(class_weight="balanced").fit(X, y, by_row)
    np.testing.assert_allclose(balanced.coefs_[0], classifier(class_weight=sums).fit(X, y, by_row).coefs_[0], rtol=1e-9)
    without = classifier(class_weight={"left": 0}).fit(X, y)
    kept = y != "left"
    assert without.t_ == 5 * kept.sum()
    parts = classifier(class_weight={"left": 3}).partial_fit(X, y, classes=NAMES)
    np.testing.assert_array_equal(parts.coefs_[0], classifier().partial_fit(X, y, by_row, classes=NAMES).coefs_[0])


# ---- validation ----------------------------------------------------------------------------------------------------


def test_a_validation_set_is_watched(rows):
    X, y, t = rows
    for make, target in ((classifier, y), (regressor, t), (regressor, t[:, 0]), (classifier, (t > 0).astype(int))):
        plain = make().fit(X[:60], target[:60])
        watched = make().fit(X[:60], target[:60], X_val=X[60:], y_val=target[60:])
        np.testing.assert_array_equal(watched.coefs_[0], plain.coefs_[0])
        assert watched.validation_scores_[-1] == pytest.approx(watched.score(X[60:], target[60:]), rel=1e-12)
        assert watched.best_validation_score_ == max(watched.validation_scores_)
        assert watched.best_loss_ == plain.best_loss_
        assert plain.validation_scores_ is None
        assert plain.best_validation_score_ is None
    lbfgs = classifier(solver="lbfgs", max_iter=9).fit(X[:60], y[:60], X_val=X[60:], y_val=y[60:])
    assert len(lbfgs.validation_scores_) == 9
    assert lbfgs.validation_scores_[-1] == lbfgs.score(X[60:], y[60:])


def test_early_stopping_by_a_validation_set(rows):
    X, y, _ = rows
    wrong = NAMES[(np.searchsorted(NAMES, y[60:]) + 1) % 3]  # the more it learns, the less it scores
    stopping = {"early_stopping": True, "n_iter_no_change": 3, "max_iter": 60, "tol": 0.0}
    for solver in ("adam", "lbfgs"):
        got = classifier(solver=solver, **stopping).fit(X[:60], y[:60], X_val=X[60:], y_val=wrong)
        assert got.n_iter_ < 60
        assert got.score(X[60:], wrong) == got.best_validation_score_ > got.validation_scores_[-1]
        kept = classifier(solver=solver, restore_best_weights=False, **stopping)
        kept.fit(X[:60], y[:60], X_val=X[60:], y_val=wrong)
        assert kept.score(X[60:], wrong) == kept.validation_scores_[-1]
        assert kept.best_validation_score_ == got.best_validation_score_
    assert got.best_loss_ is None
    watched = classifier(restore_best_weights=True, max_iter=20).fit(X[:60], y[:60], X_val=X[60:], y_val=wrong)
    assert watched.n_iter_ == 20
    assert watched.score(X[60:], wrong) == watched.best_validation_score_ > watched.validation_scores_[-1]


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.DataConversionWarning")
@pytest.mark.parametrize("kind", ["int64", "bool", "float64", "str", "list", "one column"])
def test_accuracy_is_scikit_learns(kind, rows):
    X, names, _ = rows
    y = np.searchsorted(NAMES, names)
    y = {"list": y.tolist(), "one column": y[:, None], "bool": y > 0, "str": names}.get(kind, y)
    y = y.astype(kind) if kind in ("int64", "float64") else y
    estimator = classifier().fit(X, y)
    expected, weights = accuracy_score(y, estimator.predict(X)), np.arange(90.0)
    assert 0.4 < expected < 1
    assert estimator.score(X, y) == expected
    assert estimator.score(X, y, weights) == accuracy_score(y, estimator.predict(X), sample_weight=weights)
    with pytest.raises(ValueError, match="inconsistent"):
        estimator.score(X, y[:-1])


def test_scores_are_scikit_learns():
    rng = np.random.default_rng(0)
    y, p, w = rng.standard_normal((20, 3)), rng.standard_normal((20, 3)), rng.random(20)
    y[:, 2] = 1.0
    for targets, weight in itertools.product((p, np.where(np.arange(3) == 2, y, p)), (None, w)):
        got = regressor()._score_outputs(targets, y, weight)
        assert got == pytest.approx(r2_score(y, targets, sample_weight=weight), rel=1e-12)
    several = classifier().partial_fit(y, y > 0, classes=[0, 1, 2])
    expected = accuracy_score(y > 0, p > 0.5, sample_weight=w)
    assert several._score_outputs(p, (y > 0).astype(float), w) == pytest.approx(expected)


def test_training_that_diverges(rows):
    X, _, t = rows
    wild = regressor(solver="sgd", learning_rate_init=1e4, activation="identity", max_iter=100)
    message = r"update \d+: the loss is .*not applied\. Solver produced non-finite parameter weights\."
    with pytest.raises(dd.TrainingDiverged, match=message) as caught:
        wild.fit(X, t)
    assert type(caught.value) is dd.TrainingDiverged
    assert isinstance(caught.value, ValueError)  # as of scikit-learn
    assert caught.value.update == wild._optimizer.t > 0
    assert np.isfinite(wild._network.parameters).all()
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)
    wild.set_params(early_stopping=True, batch_size="auto", learning_rate_init=30)
    with pytest.warns(ConvergenceWarning, match="The weights are the best epoch's"):
        wild.fit(X, t)
    assert np.isnan(wild.validation_scores_[-1])
    assert len(wild.loss_curve_) == wild.n_iter_ == len(wild.validation_scores_) < 100
    assert wild.best_validation_score_ == max(wild.validation_scores_[:-1])
    with pytest.raises(dd.TrainingDiverged, match="iteration 0: the loss is"):
        regressor(solver="lbfgs").fit(X * 1e200, t)


# ---- activations, dropout, batch normalisation ---------------------------------------------------------------------


def relu(z):
    return z if z > 0 else 0.0


def step(z):
    return 1.0 if z > 0 else 0.0


def test_an_activation_of_ones_own(rows):
    X, y, _ = rows
    expected = classifier().fit(X, y).predict_proba(X)
    for activation in ((relu, step), dd.nn.Activation(relu, step), dd.kernels.custom_activation(relu, step)):
        got = classifier(activation=activation).fit(X, y)
        np.testing.assert_allclose(got.predict_proba(X), expected, rtol=1e-9)
    again = clone(classifier(activation=(relu, step))).fit(X, y)
    assert again.loss_ == got.loss_
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(again)).predict_proba(X), got.predict_proba(X))


def raises_above(z):
    if z > 50:
        raise RuntimeError("too much")
    return z


@pytest.mark.parametrize(
    ("activation", "error", "message"),
    [
        (
            "swish",
            ValueError,
            "activation: expected one of 'identity', 'logistic', 'tanh', 'relu', a pair of functions",
        ),
        ((relu,), ValueError, "activation: expected one of"),
        ((relu, relu), ValueError, "activation: ValueError: derivative: expected"),
        ((lambda z: "a", step), TypeError, "activation: TypeError: f: expected .* to return a number, got str"),
        ((lambda z: open(str(z)), step), ValueError, "activation: FileNotFoundError: "),
        (
            (lambda z: z * (os.getpid() > 0), lambda z: 1.0),
            TypeError,
            "activation: TypeError: .*cannot be compiled by Numba",
        ),
    ],
)
def test_activations_that_are_none(activation, error, message, rows):
    with pytest.raises(error, match=message):
        classifier(activation=activation).fit(*rows[:2])


def test_an_activation_that_raises_while_it_trains(rows):
    X, y, _ = rows
    custom = dd.kernels.custom_activation(raises_above, lambda z: 1.0, check_derivative=False)
    for solver in ("adam", "lbfgs"):
        with pytest.raises(ValueError, match=r"activation: custom_activation\(raises_above .* RuntimeError: too much"):
            classifier(activation=custom, solver=solver).fit(X * 100, y)
    assert classifier(activation=custom).fit(X / 100, y).score(X / 100, y) > 0


def test_dropout_and_batch_normalisation(rows):
    X, y, _ = rows
    plain = classifier().fit(X, y)
    for parameters in ({"dropout": 0.4}, {"batch_norm": True}):
        a, b = (classifier(**parameters).fit(X, y) for _ in range(2))
        np.testing.assert_array_equal(a.coefs_[0], b.coefs_[0])
        assert not np.allclose(a.coefs_[0], plain.coefs_[0])
        np.testing.assert_array_equal(a.predict_proba(X), a.predict_proba(X))
        assert classifier(max_iter=40, **parameters).fit(X, y).score(X, y) > 0.7
    others = classifier(dropout=0.4, random_state=1).fit(X, y)
    assert not np.allclose(others.coefs_[1], a.coefs_[1])
    assert classifier(batch_norm=True).fit(X * 1e3 + 5e3, y).score(X * 1e3 + 5e3, y) > 0.5
    quasi = classifier(batch_norm=True, solver="lbfgs", max_iter=20).fit(X, y)
    trained = dd.kernels.mlp_gradient(  # with the statistics of the batch, all rows
        quasi._network.plan, quasi._network.parameters, quasi._network.buffers.copy(), X, np.searchsorted(NAMES, y)
    )[0]
    used = -np.log(quasi.predict_proba(X)[np.arange(90), np.searchsorted(NAMES, y)]).mean()
    assert used == pytest.approx(trained, rel=0.05)  # the running variance is unbiased


# ---- coefs_, copies, files -----------------------------------------------------------------------------------------


def test_weights_that_are_assigned_are_used(rows):
    X, y, _ = rows
    one, other = (classifier(random_state=seed).fit(X, y) for seed in (0, 1))
    expected, ours = other.predict_proba(X), one.predict_proba(X)
    whole = copy.deepcopy(one)
    whole.coefs_, whole.intercepts_ = [W.tolist() for W in other.coefs_], tuple(other.intercepts_)
    np.testing.assert_array_equal(whole.predict_proba(X), expected)
    by_one = copy.deepcopy(one)
    for i in range(3):
        by_one.coefs_[i], by_one.intercepts_[i] = other.coefs_[i].copy(), other.intercepts_[i]
    np.testing.assert_array_equal(by_one.predict(X), other.predict(X))
    by_one.coefs_[0][...] = 0  # its own by now
    np.testing.assert_array_equal(other.predict_proba(X), expected)
    written = copy.copy(one)
    np.testing.assert_array_equal(written.predict_proba(X), ours)
    for mine, theirs in zip(written.coefs_ + written.intercepts_, other.coefs_ + other.intercepts_, strict=True):
        mine[...] = theirs
    np.testing.assert_array_equal(written.predict_proba(X), expected)
    trained = copy.deepcopy(other)
    trained.coefs_ = [W.copy() for W in other.coefs_]
    np.testing.assert_array_equal(trained.partial_fit(X, y).coefs_[1], other.partial_fit(X, y).coefs_[1])
    wider = classifier(hidden=12).fit(X, y)
    whole.coefs_, whole.intercepts_ = wider.coefs_, wider.intercepts_
    np.testing.assert_array_equal(whole.predict_proba(X), wider.predict_proba(X))
    before, shallow = one.predict_proba(X), copy.copy(one)
    shallow.coefs_ = [W * 2 for W in one.coefs_]
    assert not np.allclose(shallow.predict_proba(X), before)
    np.testing.assert_array_equal(one.predict_proba(X), before)
    whole.coefs_ = wider.coefs_[:1]
    with pytest.raises(ValueError, match="coefs_, intercepts_: expected one of each for every layer, got 1 and 2"):
        whole.predict(X)
    whole.coefs_ = [wider.coefs_[0], wider.coefs_[1].T]
    with pytest.raises(ValueError, match=r"coefs_\[1\]: expected shape \(12, units\), got \(3, 12\)"):
        whole.predict(X)
    whole.coefs_ = [wider.coefs_[0][1:], wider.coefs_[1]]
    with pytest.raises(ValueError, match=r"coefs_: expected those of a network with layers of \(6, .*got \(5, 12, 3\)"):
        whole.predict(X)


def test_copies_go_on_alone(rows, tmp_path):
    X, y, _ = rows
    got = classifier(warm_start=True, dropout=0.1, batch_norm=True, early_stopping=True).fit(X, y)
    joblib.dump(got, tmp_path / "classifier")
    copies = [
        copy.deepcopy(got),
        pickle.loads(pickle.dumps(got)),
        joblib.load(tmp_path / "classifier"),
        joblib.load(tmp_path / "classifier", mmap_mode="r"),  # as joblib's workers get them
    ]
    before = got.coefs_[0].copy()
    expected = got.predict_proba(X)
    for other in copies:
        assert all(np.shares_memory(W, other._network.parameters) for W in other.coefs_ + other.intercepts_)
        np.testing.assert_array_equal(other.predict_proba(X), expected)
        assert_same(other, got)
        other.fit(X, y)
        np.testing.assert_array_equal(got.coefs_[0], before)
    got.fit(X, y)
    for other in copies:
        assert_same(other, got)
    fitted = classifier().fit(X, y)
    assert fitted._epoch is fitted._split is fitted._best is fitted._last is None  # nothing that grows with the rows


@pytest.mark.parametrize("kind", ["classes", "two", "labels", "numbers"])
def test_files(kind, rows, tmp_path):
    X, y, t = rows
    target = {"classes": y, "two": t[:, 0] > 0, "labels": (t > 0).astype(int), "numbers": t}[kind]
    make = regressor if kind == "numbers" else classifier
    for parameters in (
        {"warm_start": True, "early_stopping": True, "dropout": 0.2, "batch_norm": True},
        {"solver": "lbfgs", "hidden_layer_sizes": [4]} if kind == "numbers" else {"solver": "lbfgs"},
        {"solver": "sgd", "learning_rate": "adaptive", "n_iter_no_change": np.inf},
        {"warm_start": True, "tol": 9.0, "n_iter_no_change": 1},
    ):
        got = make(**parameters).fit(X, target)
        got.save(tmp_path / "file")
        other = type(got).load(tmp_path / "file")
        np.testing.assert_array_equal(other.predict(X), got.predict(X))
        assert other.predict(X).dtype == got.predict(X).dtype
        assert set(vars(other)) | {"_label_binarizer"} >= {name for name in vars(got) if name.endswith("_")}
        assert other.loss_ == got.loss_
        if got.solver != "lbfgs":
            assert_same(other, got)
            for model in (other, got):
                model.fit(X, target) if model.warm_start else model.partial_fit(X, target)
            assert_same(other, got)
            assert other.n_iter_ == got.n_iter_


def test_files_that_are_none(rows, tmp_path):
    X, y, _ = rows
    with pytest.raises(TypeError, match=r"activation: .* cannot be written to a file"):
        classifier(activation=(relu, step)).fit(X, y).save(tmp_path / "file")
    with pytest.raises(NotFittedError):
        classifier().save(tmp_path / "file")
    assert not (tmp_path / "file").exists()
    classifier().fit(X, y).save(tmp_path / "file")
    with pytest.raises(ValueError, match="holds a MLPClassifier, expected a MLPRegressor"):
        dd.MLPRegressor.load(tmp_path / "file")


# ---- use -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_short_way_of_predict_is_the_long_one(dtype, rows, monkeypatch):
    X, y, t = (rows[0].astype(dtype), *rows[1:])
    models = [classifier().fit(X, target) for target in (y, y == "left", (t > 0).astype(int), np.full(90, 7))]
    models += [regressor().fit(X, target) for target in (t, t[:, 0])]
    names = "predict", "predict_proba", "predict_log_proba"
    methods = [(model, name) for model in models for name in names if hasattr(model, name)]
    short = [getattr(model, name)(X) for model, name in methods]
    by_row = [np.concatenate([getattr(model, name)(X[i : i + 1]) for i in range(90)]) for model, name in methods]
    checks, validate = [], mlp_base.validate_data
    monkeypatch.setattr(mlp_base, "validate_data", lambda *a, **k: checks.append(1) or validate(*a, **k))
    assert getattr(*methods[0])(X) is not None
    assert not checks
    for other in (np.asfortranarray(X), X.tolist(), scipy.sparse.csr_array(X), scipy.sparse.csc_matrix(X)):
        for (model, name), expected, rowwise in zip(methods, short, by_row, strict=True):
            got = getattr(model, name)(other)
            assert got.dtype == expected.dtype
            assert got.dtype.kind not in "f" or got.dtype == dtype
            if scipy.sparse.issparse(other) and got.dtype.kind == "f":
                np.testing.assert_allclose(got, expected, rtol=1e-4 if dtype == "float32" else 1e-10)
            else:
                np.testing.assert_array_equal(got, expected)
            np.testing.assert_array_equal(rowwise, expected)
    assert checks
    for bad, message in (
        (np.full((1, 6), np.nan, dtype), "contains NaN"),
        (np.ones((1, 5), dtype), "X has 5 features, but MLPClassifier is expecting 6"),
        (np.ones(6, dtype), "Expected 2D array"),
        (np.ones((0, 6), dtype), "0 sample"),
        (np.full((1, 6), 1e300), "infinity or a value too large" if dtype == "float32" else None),
    ):
        if message:
            with pytest.raises(ValueError, match=message), np.errstate(over="ignore"):
                models[0].predict(bad)
    with pytest.raises(NotFittedError):
        classifier().predict(X)


def test_sparse_rows_train_like_dense_ones(rows):
    X, y, t = rows
    X = np.where(np.abs(X) > 0.5, X, 0)
    for container in (scipy.sparse.csr_array, scipy.sparse.csr_matrix, scipy.sparse.csc_array, scipy.sparse.coo_matrix):
        for parameters in ({}, {"early_stopping": True}, {"solver": "lbfgs"}, {"shuffle": False}):
            for make, target in ((classifier, y), (regressor, t)):
                a, b = (make(**parameters).fit(rows, target) for rows in (X, container(X)))
                np.testing.assert_allclose(a.coefs_[0], b.coefs_[0], rtol=1e-6, atol=1e-9)
    labels = scipy.sparse.csr_array((t > 0).astype(int))
    np.testing.assert_array_equal(
        classifier().fit(X, labels).coefs_[0], classifier().fit(X, labels.toarray()).coefs_[0]
    )
    sparse = scipy.sparse.csr_array(X)
    watched = classifier().fit(sparse, y, sample_weight=np.arange(90), X_val=sparse, y_val=y)
    assert watched.validation_scores_[-1] == watched.score(sparse, y)


def test_the_names_of_parameters_are_each_class_s_own():
    class Fewer(dd.MLPClassifier):
        @classmethod
        def _get_param_names(cls):
            names = super()._get_param_names()
            names.remove("max_fun")
            return names

    class Own(dd.MLPRegressor):
        def __init__(self, width=3, *, random_state=None):
            super().__init__(hidden_layer_sizes=(width,), random_state=random_state)
            self.width = width

    everything = set(classifier().get_params())
    for _ in range(2):  # inspected, then remembered
        assert set(Fewer().get_params()) == everything - {"max_fun"}
        assert set(classifier().get_params()) == everything
        assert clone(Own(4)).get_params() == {"width": 4, "random_state": None}


def test_scikit_learns_tools_take_them(rows):
    from sklearn.experimental import enable_halving_search_cv  # noqa: F401
    from sklearn.model_selection import HalvingGridSearchCV

    X, y, t = rows
    search = GridSearchCV(classifier(), {"max_iter": [1, 30], "dropout": [0.0]}, cv=2).fit(X, y)
    assert search.best_params_["max_iter"] == 30
    halving = HalvingGridSearchCV(
        regressor(), {"alpha": [1e-4, 1e3]}, resource="max_iter", max_resources=40, min_resources=20, cv=2
    ).fit(X, t)
    assert halving.best_params_["alpha"] == 1e-4
    pipeline = make_pipeline(StandardScaler(), classifier(max_iter=30)).fit(
        X, y, mlpclassifier__sample_weight=np.ones(90)
    )
    assert pipeline.score(X, y) > 0.8
    assert "MLPClassifier(batch_size=16, hidden_layer_sizes=(8, 5)" in repr(classifier())
    assert clone(classifier(class_weight={"left": 2.0})).class_weight == {"left": 2.0}
    with pytest.raises(ValueError, match="Invalid parameter"):
        classifier().set_params(hiden=5)
    with pytest.raises(TypeError, match="unexpected keyword argument 'hiden'"):
        classifier(hiden=3)


def test_no_global_random_state(rows):
    X, y, _ = rows
    state = np.random.get_state()[1].copy()  # noqa: NPY002
    a, b = (classifier(random_state=None, early_stopping=True, dropout=0.1).fit(X, y) for _ in range(2))
    np.testing.assert_array_equal(state, np.random.get_state()[1])  # noqa: NPY002
    assert not np.array_equal(a.coefs_[0], b.coefs_[0])


def test_it_prints_what_scikit_learns_prints(rows, capsys):
    from sklearn.neural_network import MLPClassifier

    X, y, _ = rows
    for parameters in (
        {"early_stopping": True, "n_iter_no_change": 1},
        {"solver": "sgd", "learning_rate": "adaptive", "tol": 9.0, "n_iter_no_change": 2, "max_iter": 70},
        {"tol": 9.0, "n_iter_no_change": 2},
    ):
        parameters = {"verbose": True, "random_state": 0, "max_iter": 9, "batch_size": 30, **parameters}
        MLPClassifier((8,), **parameters).fit(X, y)
        theirs = capsys.readouterr().out
        dd.MLPClassifier((8,), **parameters).fit(X, y)
        assert capsys.readouterr().out == theirs


# ---- callbacks -----------------------------------------------------------------------------------------------------


class Recorder:
    """Notes what it is told; asks for the end at an epoch."""

    def __init__(self, end=None):
        self.end, self.heard = end, []

    def setup(self, estimator, context):
        self.heard.append("setup")

    def teardown(self, estimator, context):
        self.heard.append("teardown")

    def on_fit_task_begin(self, estimator, context):
        self.heard.append(f"{context.task_name} begins")

    def on_fit_task_end(self, estimator, context, *, X, y, metadata, fitted_estimator):
        self.heard.append(f"{context.task_name} ends")
        if context.task_name == "epoch":
            self.X, self.y, self.metadata, self.fitted = X, y, metadata, fitted_estimator
        return self.end is not None and self.heard.count("epoch ends") >= self.end


def test_callbacks(rows):
    pytest.importorskip("sklearn.callback")
    from sklearn.callback import ScoringMonitor

    X, y, _ = rows
    for solver in ("adam", "lbfgs"):
        recorder = Recorder(end=3)
        got = classifier(solver=solver, batch_norm=True).set_callbacks(recorder).fit(X, y, sample_weight=np.ones(90))
        assert got.n_iter_ == 3
        epochs = ["epoch begins", "epoch ends"] * 3
        assert recorder.heard == ["setup", "fit begins", *epochs, "fit ends", "teardown"]
        np.testing.assert_array_equal(recorder.y, y)
        np.testing.assert_array_equal(recorder.metadata["sample_weight"], np.ones(90))
        then = recorder.fitted.predict_proba(X)
        np.testing.assert_array_equal(then, got.predict_proba(X))
        got.set_callbacks().partial_fit(X, y) if solver == "adam" else got.set_callbacks().fit(X, y)
        np.testing.assert_array_equal(recorder.fitted.predict_proba(X), then)  # a copy of that epoch

    monitor = ScoringMonitor(scoring="accuracy")
    got = classifier(early_stopping=True, max_iter=4).set_callbacks(monitor).fit(X, y)
    log = monitor.get_logs().data
    assert len([row for row in log if row["task_name"] == "epoch"]) == 4
    with pytest.raises(ZeroDivisionError):
        classifier().set_callbacks(Failing()).fit(X, y)


class Everywhere(Recorder):
    max_propagation_depth = None


def test_callbacks_of_a_search_hear_of_every_fit(rows, monkeypatch):
    pytest.importorskip("sklearn.callback")
    X, y, _ = rows
    recorder = Everywhere()
    GridSearchCV(classifier(), {"alpha": [0.1, 1.0]}, cv=2).set_callbacks(recorder).fit(X, y)
    assert recorder.heard.count("epoch begins") == recorder.heard.count("epoch ends") == 5 * (2 * 2 + 1)
    assert recorder.heard.count("setup") == recorder.heard.count("teardown") == 1
    assert recorder.fitted.n_features_in_ == 6
    one_update_a_stretch(monkeypatch)
    timed = Everywhere()  # an epoch that time cuts off ends for them, too
    classifier(time_budget=1e-9, batch_size=5).set_callbacks(timed).fit(X, y)
    assert timed.heard.count("epoch begins") == timed.heard.count("epoch ends") == 1


class Failing(Recorder):
    def on_fit_task_begin(self, estimator, context):
        1 / 0  # noqa: B018


def test_a_progress_bar():
    pytest.importorskip("sklearn.callback")
    pytest.importorskip("rich")
    from sklearn.callback import ProgressBar

    X = np.random.default_rng(0).standard_normal((30, 3))
    bar = ProgressBar()
    search = GridSearchCV(classifier(), {"alpha": [0.1, 1]}, cv=2)
    assert search.set_callbacks(bar).fit(X, X[:, 0] > 0).best_estimator_.n_iter_ == 5


# ---- errors --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"hidden_layer_sizes": (4, 0)}, ValueError, r"hidden_layer_sizes\[1\]: expected an integer of at least 1"),
        ({"hidden_layer_sizes": 0}, ValueError, "hidden_layer_sizes: expected an integer of at least 1, got 0"),
        ({"hidden_layer_sizes": 2.5}, TypeError, r"hidden_layer_sizes: expected sizes such as \(100,\), or an integer"),
        ({"hidden_layer_sizes": "50"}, TypeError, r"hidden_layer_sizes: expected sizes such as .*, got '50'"),
        ({"random_state": "a"}, ValueError, "random_state: expected an int, a numpy.random.RandomState or None, got"),
        ({"solver": "newton"}, ValueError, "solver: expected one of 'lbfgs', 'sgd', 'adam', got 'newton'"),
        ({"learning_rate": "fast"}, ValueError, "learning_rate: expected one of 'constant', 'invscaling', 'adaptive'"),
        ({"alpha": -1}, ValueError, r"alpha: expected a number in \[0, inf\), got -1"),
        ({"learning_rate_init": 0}, ValueError, r"learning_rate_init: expected a number in \(0, inf\), got 0"),
        ({"momentum": 1.5}, ValueError, r"momentum: expected a number in \[0, 1\], got 1.5"),
        ({"beta_1": 1.0}, ValueError, r"beta_1: expected a number in \[0, 1\), got 1.0"),
        ({"batch_size": 0}, ValueError, "batch_size: expected an integer of at least 1, got 0"),
        ({"batch_size": 1, "batch_norm": True}, ValueError, "batch_size: expected an integer of at least 2, got 1"),
        ({"max_iter": 0}, ValueError, "max_iter: expected an integer of at least 1, got 0"),
        ({"n_iter_no_change": 0}, ValueError, "n_iter_no_change: expected an integer of at least 1, got 0"),
        ({"shuffle": "yes"}, TypeError, "shuffle: expected True or False, got 'yes'"),
        ({"dropout": 1.0}, ValueError, r"dropout: expected a number in \[0, 1\), got 1.0"),
        ({"dropout": 0.1, "solver": "lbfgs"}, ValueError, "dropout: expected 0 for solver='lbfgs'"),
        ({"time_budget": 0}, ValueError, r"time_budget: expected a number in \(0, inf\], got 0"),
        ({"time_budget": -1.0}, ValueError, "time_budget: expected a number"),
        ({"time_budget": "1h"}, TypeError, "time_budget: expected a number, got '1h'"),
        ({"class_weight": {5: 1.0}}, ValueError, r"class_weight: expected classes of y, \[0, 1\], got 5"),
        ({"class_weight": {1: -1.0}}, ValueError, "class_weight: expected finite weights .* got -1.0 for 1"),
        ({"class_weight": {0: 0, 1: 0}}, ValueError, "class_weight: expected a weight above 0 for a class of y"),
        ({"class_weight": "even"}, ValueError, "class_weight: expected a dict, 'balanced' or None, got 'even'"),
        ({"class_weight": "balanced", "y": np.eye(6)[:, :2]}, ValueError, "class_weight: expected None where rows"),
        ({"restore_best_weights": True}, ValueError, "restore_best_weights: expected early_stopping=True, or X_val"),
        ({"restore_best_weights": "no"}, TypeError, "restore_best_weights: expected True or False, got 'no'"),
        ({"sample_weight": [1, 2]}, ValueError, r"sample_weight: expected shape \(6,\), one for each row, got \(2,\)"),
        ({"sample_weight": [1, 1, -1, 1, 1, 1]}, ValueError, "sample_weight: expected finite weights .* got -1 at 2"),
        ({"sample_weight": [0] * 6}, ValueError, "sample_weight: expected finite weights .* got only zeros"),
        ({"sample_weight": ["a"] * 6}, ValueError, "sample_weight: expected numbers, got dtype <U1"),
        ({"X_val": np.zeros((2, 3))}, ValueError, "X_val, y_val: expected both or none"),
        ({"X_val": np.zeros((2, 4)), "y_val": [0, 1]}, ValueError, r"X_val: expected shape \(n, 3\), got \(2, 4\)"),
        ({"X_val": np.zeros(3), "y_val": [0, 1]}, ValueError, r"X_val: expected shape \(n, 3\), got \(3,\)"),
        ({"X_val": np.full((2, 3), np.nan), "y_val": [0, 1]}, ValueError, "Input X_val contains NaN"),
        ({"X_val": np.zeros((2, 3)), "y_val": [0]}, ValueError, "y_val: expected 2 rows as in X_val, got 1"),
        ({"X_val": np.zeros((2, 3)), "y_val": [0, 9]}, ValueError, r"y_val: expected classes of y, \[0, 1\], got 9"),
        (
            {"X_val": np.zeros((2, 3)), "y_val": [0, 1], "validation_fraction": 0.3},
            ValueError,
            "validation_fraction: expected 0.1, its default, beside X_val and y_val",
        ),
        ({"X": np.zeros((1, 3)), "y": [1], "batch_norm": True}, ValueError, "X: expected at least two rows"),
        ({"y": [0.5, 1.5, 2.5, 0.1, 0.2, 0.3]}, ValueError, "Unknown label type"),
    ],
)  # fmt: skip
def test_bad_input(change, error, message):
    data = {"X": np.arange(18.0).reshape(6, 3), "y": [0, 1, 0, 1, 0, 1]}
    data |= {name: value for name, value in change.items() if name in ("X", "y", "X_val", "y_val", "sample_weight")}
    parameters = {name: value for name, value in change.items() if name not in data}
    got = dd.MLPClassifier((4,), max_iter=2, random_state=0).fit(np.eye(5), [3, 4, 3, 4, 4])
    before = {name: value for name, value in vars(got).items() if name not in got.get_params()}
    with pytest.raises(error, match=message):
        got.set_params(**parameters).fit(**data)
    assert {name: value for name, value in vars(got).items() if name not in got.get_params()} == before
    assert got.predict(np.eye(5)).shape == (5,)


def test_bad_input_of_a_regressor(rows):
    X, _, t = rows
    with pytest.raises(ValueError, match=r"got \(50,\); layer sizes come by name: hidden_layer_sizes=\(50,\)"):
        dd.MLPRegressor((50,)).fit(np.eye(5), np.arange(5.0))  # as a classifier takes them
    with pytest.raises(ValueError, match="loss: expected 'squared_error' or 'poisson', got 'absolute'"):
        regressor(loss="absolute").fit(X, t)
    with pytest.raises(ValueError, match="y: expected numbers of at least 0 for loss='poisson', got -"):
        regressor(loss="poisson").fit(X, t)
    with pytest.raises(TypeError, match="y: expected an array, got csr_array"):
        regressor().fit(X, scipy.sparse.csr_array(t))
    got = regressor(warm_start=True).fit(X, t)
    with pytest.raises(ValueError, match="y: expected 2 outputs, as before, got 1"):
        got.fit(X, t[:, 0])
    with pytest.raises(ValueError, match="y_val: expected 2 outputs, got 1"):
        got.fit(X, t, X_val=X, y_val=t[:, 0])


def test_bad_input_of_partial_fit(rows):
    X, y, _ = rows
    with pytest.raises(ValueError, match="classes: expected all that there will be, at the first call"):
        classifier().partial_fit(X, y)
    got = classifier()
    with pytest.raises(ValueError, match="inconsistent numbers of samples"):
        got.partial_fit(X, y[1:], classes=["a", "b"])
    assert not hasattr(got, "classes_")
    got.partial_fit(X, y, classes=NAMES)
    with pytest.raises(ValueError, match=r"classes: expected those of the first call, .* got "):
        got.partial_fit(X, y, classes=["a", "b"])
    with pytest.raises(ValueError, match=r"y: expected classes of .* got 'under'"):
        got.partial_fit(X, np.where(y == "top", "under", y))
    with pytest.raises(ValueError, match="class_weight: expected a dict or None for partial_fit"):
        got.set_params(class_weight="balanced").partial_fit(X, y)
    assert not hasattr(classifier(solver="lbfgs"), "partial_fit")
    assert not hasattr(regressor(solver="lbfgs"), "partial_fit")


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_short_way_of_fit_is_the_long_one(dtype, rows, monkeypatch):
    X, targets = rows[0].astype(dtype), rows[2].astype(dtype)
    labels = [np.unique(rows[1], return_inverse=True)[1], (targets[:, 0] > 0).astype(np.uint8), targets[:, 0] > 0]
    checks, check = [], sklearn.utils.validation.check_array
    for one, y in [(classifier(), y) for y in (*labels, np.full(90, 7))] + [(regressor(), targets[:, 0].copy())]:
        monkeypatch.setattr(sklearn.utils.validation, "check_array", lambda *a, **k: checks.append(1) or check(*a, **k))
        short = clone(one).fit(X, y)
        assert not checks
        monkeypatch.undo()
        long = clone(one).fit(np.asfortranarray(X), y.tolist() if y.dtype.kind != "f" else y)
        assert_same(short, long)
        assert short.n_features_in_ == 6
        np.testing.assert_array_equal(short.predict(X), long.predict(X))
        if hasattr(long, "classes_"):
            np.testing.assert_array_equal(short.classes_, long.classes_)
            assert vars(short._label_binarizer) == vars(LabelBinarizer().fit(y)) | {"classes_": short.classes_}
        with pytest.raises(ValueError, match="features"):
            short.set_params(warm_start=True).fit(X[:, :5].copy(), y)
    swapped = classifier().fit(X, labels[0].astype(labels[0].dtype.newbyteorder()))
    assert swapped.classes_.dtype.isnative  # as scikit-learn makes them
    X[3, 4] = np.nan
    with pytest.raises(ValueError, match="Input X contains NaN"):
        classifier().fit(X, labels[0])
    with pytest.raises(ValueError, match="Input y contains NaN"):
        regressor().fit(rows[0], np.where(np.arange(90) == 5, np.nan, 1.0))
    with pytest.warns(UserWarning, match="unique classes"):
        classifier().fit(rows[0], np.arange(90))
    with pytest.raises(ValueError, match="y: expected classes"):
        classifier().partial_fit(rows[0], labels[0], classes=[0, 1, 2]).partial_fit(rows[0], labels[0] + 1)
