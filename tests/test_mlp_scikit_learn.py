"""MLPClassifier and MLPRegressor are scikit-learn's: its tests and checks pass, and training takes the same course."""

import importlib.util
import inspect

import numpy as np
import pytest
import sklearn.neural_network
from sklearn.utils.estimator_checks import parametrize_with_checks
from threadpoolctl import threadpool_limits

import dd2424fast as dd

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning"),
    pytest.mark.filterwarnings("ignore:batch_size:UserWarning"),
]


@pytest.fixture(autouse=True, scope="module")
def one_thread_of_blas():
    """NumPy's and SciPy's products are so small that threads would wait for each other."""
    with threadpool_limits(1, user_api="blas"):
        yield


# ---- scikit-learn's own tests of its two estimators ----------------------------------------------------------------

# Tests that may fail, each with its reason; docs/estimators.md lists them too.
EXCEPTIONS = {}


def their_tests():
    """Their module of tests, loaded with ours in the place of their two estimators."""
    package = sklearn.neural_network
    spec = importlib.util.find_spec(f"{package.__name__}.tests.test_mlp")
    if spec is None:
        return {}
    module = importlib.util.module_from_spec(spec)
    theirs = package.MLPClassifier, package.MLPRegressor
    package.MLPClassifier, package.MLPRegressor = dd.MLPClassifier, dd.MLPRegressor
    try:
        spec.loader.exec_module(module)
    finally:
        package.MLPClassifier, package.MLPRegressor = theirs
    return {
        f"test_theirs_{name.removeprefix('test_')}": test
        for name, test in vars(module).items()
        if name.startswith("test_") and callable(test) and name not in EXCEPTIONS
    }


globals().update(their_tests())


@pytest.fixture
def global_random_seed():
    return 42


def test_their_tests_are_run():
    if importlib.util.find_spec("sklearn.neural_network.tests.test_mlp") is None:
        pytest.skip("scikit-learn is installed without its tests")
    theirs = [name for name in globals() if name.startswith("test_theirs_")]
    assert len(theirs) >= 40
    assert globals()["test_theirs_alpha"].__globals__["MLPClassifier"] is dd.MLPClassifier


@parametrize_with_checks(
    [
        dd.MLPClassifier(),
        dd.MLPRegressor(),
        dd.MLPClassifier((10,), solver="lbfgs", max_iter=50, activation="tanh"),
        dd.MLPRegressor(hidden_layer_sizes=(10,), solver="lbfgs", max_iter=50),
        dd.MLPClassifier((10,), solver="sgd", learning_rate_init=0.1, max_iter=100),
    ]
)
@pytest.mark.filterwarnings("ignore")
def test_checks(estimator, check):
    check(estimator)


# ---- the same course -----------------------------------------------------------------------------------------------

PAIRS = {
    "classifier": (sklearn.neural_network.MLPClassifier, dd.MLPClassifier),
    "regressor": (sklearn.neural_network.MLPRegressor, dd.MLPRegressor),
}


@pytest.mark.parametrize("kind", PAIRS)
def test_every_parameter_is_there_with_its_default(kind):
    theirs, ours = PAIRS[kind]
    mine = inspect.signature(ours).parameters
    for i, (name, parameter) in enumerate(inspect.signature(theirs).parameters.items()):
        assert list(mine)[i] == name
        assert (mine[name].default, mine[name].kind) == (parameter.default, parameter.kind), name
    later = list(mine)[len(inspect.signature(theirs).parameters) :]
    assert all(mine[name].kind is inspect.Parameter.KEYWORD_ONLY for name in later)


def problem(outputs):
    """(kind, X, y) of 61 rows of 5 features."""
    rng = np.random.default_rng(7)
    X = rng.standard_normal((61, 5))
    t = X @ rng.standard_normal((5, 3)) + 0.1 * rng.standard_normal((61, 3))
    return {
        "classes": ("classifier", X, np.array(["a", "b", "c"])[t.argmax(axis=1)]),
        "two classes": ("classifier", X, t[:, 0] > 0),
        "labels": ("classifier", X, (t > 0).astype(int)),
        "one class": ("classifier", X, np.full(61, 3)),
        "number": ("regressor", X, t[:, 0]),
        "numbers": ("regressor", X, t),
        "counts": ("regressor", X, np.round(np.abs(t))),
    }[outputs]


def both(outputs, *fits, dtype="float64", **parameters):
    """Fit theirs and ours, with further arguments of fit or partial_fit in `fits`; the two."""
    kind, X, y = problem(outputs)
    if outputs == "counts":
        parameters["loss"] = "poisson"
    fitted = []
    for estimator in PAIRS[kind]:
        model = estimator(hidden_layer_sizes=(7, 4), random_state=3, **{"max_iter": 5, **parameters})
        for method, arguments in fits or (("fit", {}),):
            getattr(model, method)(X.astype(dtype), y, **arguments)
        fitted.append(model)
    return fitted


def assert_same_course(theirs, ours, tolerance=1e-8):
    for name in ("coefs_", "intercepts_"):
        assert len(getattr(ours, name)) == len(getattr(theirs, name))
        for mine, expected in zip(getattr(ours, name), getattr(theirs, name), strict=True):
            np.testing.assert_allclose(mine, expected, rtol=tolerance, atol=tolerance)
    attributes = "loss_", "best_loss_", "loss_curve_", "validation_scores_", "best_validation_score_"
    for name in attributes:
        expected = getattr(theirs, name, None)
        if expected is None:
            assert getattr(ours, name, None) is None or theirs.solver == "lbfgs", name
        else:
            np.testing.assert_allclose(getattr(ours, name), expected, rtol=tolerance, atol=tolerance, err_msg=name)
    for name in ("n_iter_", "t_", "n_layers_", "n_outputs_", "out_activation_", "n_features_in_"):
        assert getattr(ours, name) == getattr(theirs, name), name
    np.testing.assert_array_equal(getattr(ours, "classes_", None), getattr(theirs, "classes_", None))
    assert {name for name in vars(theirs) if name.endswith("_")} <= {name for name in vars(ours) if name.endswith("_")}
    if theirs.solver == "sgd":
        assert ours._optimizer.learning_rate == theirs._optimizer.learning_rate


@pytest.mark.parametrize("activation", ["identity", "logistic", "tanh", "relu"])
@pytest.mark.parametrize("outputs", ["classes", "two classes", "labels", "one class", "number", "numbers", "counts"])
def test_activations_and_outputs(outputs, activation):
    for solver in ("sgd", "adam"):
        theirs, ours = both(outputs, solver=solver, activation=activation, learning_rate_init=0.01, batch_size=20)
        assert_same_course(theirs, ours)
        _, X, _ = problem(outputs)
        np.testing.assert_array_equal(ours.predict(X).shape, theirs.predict(X).shape)
        if theirs.predict(X).dtype.kind == "f":
            np.testing.assert_allclose(ours.predict(X), theirs.predict(X), rtol=1e-8)
        else:
            np.testing.assert_array_equal(ours.predict(X), theirs.predict(X))
            assert ours.predict(X).dtype == theirs.predict(X).dtype
            np.testing.assert_allclose(ours.predict_proba(X), theirs.predict_proba(X), rtol=1e-8)
            np.testing.assert_allclose(ours.predict_log_proba(X), theirs.predict_log_proba(X), rtol=1e-8)


OPTIONS = {
    "momentum": {"solver": "sgd", "nesterovs_momentum": False, "momentum": 0.7},
    "no momentum": {"solver": "sgd", "momentum": 0},
    "invscaling": {"solver": "sgd", "learning_rate": "invscaling", "power_t": 0.3},
    "adaptive": {"solver": "sgd", "learning_rate": "adaptive", "n_iter_no_change": 1, "tol": 0.3, "max_iter": 30},
    "betas": {"beta_1": 0.8, "beta_2": 0.95, "epsilon": 1e-3},
    "in order": {"shuffle": False},
    "one batch": {"batch_size": "auto", "alpha": 1.0},
    "single rows": {"batch_size": 1},
    "early stopping": {"early_stopping": True, "validation_fraction": 0.3, "n_iter_no_change": 2, "max_iter": 30},
    "stopped": {"tol": 0.1, "n_iter_no_change": 2, "max_iter": 60},
    "clipped batch": {"batch_size": 500},
}


@pytest.mark.filterwarnings("ignore:Got `batch_size`")
@pytest.mark.parametrize("outputs", ["classes", "two classes", "numbers"])
@pytest.mark.parametrize("option", OPTIONS)
def test_options(option, outputs):
    parameters = {"learning_rate_init": 0.01, "batch_size": 20, **OPTIONS[option]}
    assert_same_course(*both(outputs, **parameters))
    weight = np.random.default_rng(1).random(61) + 0.1
    assert_same_course(*both(outputs, ("fit", {"sample_weight": weight}), **parameters))


@pytest.mark.parametrize("outputs", ["classes", "labels", "number", "counts"])
def test_a_random_state_of_the_users_own(outputs):
    kind, X, y = problem(outputs)
    got = []
    for estimator in PAIRS[kind]:
        state = np.random.RandomState(5)
        estimator(max_iter=3, random_state=state).fit(X, y)
        got.append(state.random_sample())
    assert got[0] == got[1]


@pytest.mark.parametrize("solver", ["sgd", "adam"])
@pytest.mark.parametrize("outputs", ["classes", "labels", "numbers"])
def test_partial_fit(outputs, solver):
    first = {"classes": {"classes": ["a", "b", "c"]}, "labels": {"classes": [0, 1, 2]}}.get(outputs, {})
    rest = [("partial_fit", {})] * 3
    assert_same_course(*both(outputs, ("partial_fit", first), *rest, solver=solver, batch_size=20))
    assert_same_course(*both(outputs, ("fit", {}), *rest, solver=solver, batch_size=20))


@pytest.mark.parametrize("outputs", ["classes", "two classes", "labels", "number", "counts"])
def test_lbfgs(outputs):
    for weight in (None, np.random.default_rng(1).random(61) + 0.1):
        theirs, ours = both(outputs, ("fit", {"sample_weight": weight}), solver="lbfgs", max_iter=15)
        assert_same_course(theirs, ours, 1e-6)
    theirs, ours = both(outputs, ("fit", {}), ("fit", {}), solver="lbfgs", max_iter=5, warm_start=True)
    assert_same_course(theirs, ours, 1e-6)
    theirs, ours = both(outputs, solver="lbfgs", max_iter=400, alpha=1.0, tol=1e-6)
    assert ours.loss_ == pytest.approx(theirs.loss_, rel=1e-2)


def test_lbfgs_of_several_numbers_minimises_what_it_tells():
    """Theirs tells the line search a mean over the outputs and the gradient of their sum."""
    _, X, y = problem("numbers")
    theirs, ours = both("numbers", solver="lbfgs", max_iter=100)
    assert ours.loss_ <= theirs.loss_ * 1.02
    mean = 0.5 * ((ours.predict(X) - y) ** 2).mean()
    squares = sum((W**2).sum() for W in ours.coefs_)
    assert ours.loss_ == pytest.approx(mean + 0.5 * ours.alpha * squares / 61)


@pytest.mark.parametrize("outputs", ["classes", "labels", "number"])
def test_float32_stays_float32(outputs):
    theirs, ours = both(outputs, dtype="float32", batch_size=20)
    assert {W.dtype for W in ours.coefs_ + ours.intercepts_} == {np.dtype("float32")}
    for mine, expected in zip(ours.coefs_, theirs.coefs_, strict=True):
        np.testing.assert_allclose(mine, expected, rtol=1e-3, atol=1e-5)
    _, quasi = both(outputs, dtype="float32", solver="lbfgs")
    assert {W.dtype for W in quasi.coefs_ + quasi.intercepts_} == {np.dtype("float32")}
