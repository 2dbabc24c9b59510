"""The course's matrices, a column for each sample, where rows are expected: the error says what makes rows of them."""

import numpy as np
import pytest

import dd2424fast as dd
from dd2424fast.configuration import columns_hint

HINT = r"; if each column is a sample: dd\.data\.from_columns\(X, Y\) makes rows of them$"
RNG = np.random.default_rng(0)
X, Y_LABELS = RNG.standard_normal((6, 40)).astype("float32"), np.arange(40) % 3
Y = np.eye(3, dtype="float32")[Y_LABELS].T
ROWS = np.ascontiguousarray(X.T)


def trainer():
    return dd.Trainer(dd.models.MLP(6, (4,), 3, seed=0), dd.optim.Adam())


@pytest.mark.parametrize("data", [(X, Y_LABELS), (X, Y), (X, Y_LABELS[None]), (ROWS, Y)])
def test_a_training(data):
    for call in (trainer().fit, trainer().evaluate, trainer().find_lr):
        with pytest.raises(ValueError, match=HINT):
            call(data)
    with pytest.raises(ValueError, match=HINT):
        trainer().fit((ROWS, Y_LABELS), data)


def test_a_batch_and_a_prediction():
    for call in (
        lambda: trainer().step(X, Y_LABELS),
        lambda: trainer().evaluate([(X, Y_LABELS)]),
        lambda: trainer().model.predict(X),
        lambda: dd.predict_proba(trainer().model, X),
    ):
        with pytest.raises(ValueError, match=r"x: expected shape \(batch, 6\), got \(6, 40\)" + HINT):
            call()


@pytest.mark.parametrize("kind", [dd.MLPClassifier, dd.MLPRegressor])
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_estimators(kind):
    network = kind(hidden_layer_sizes=(4,), max_iter=1)
    for data in ((X, Y_LABELS), (X, Y), (ROWS, Y)):
        with pytest.raises(ValueError, match="inconsistent numbers of samples.*" + HINT):
            network.fit(*data)
    with pytest.raises(ValueError, match="inconsistent numbers of samples.*" + HINT):
        dd.fit_many(network, [{}], X, Y_LABELS)
    with pytest.raises(ValueError, match=r"X_val: expected shape \(n, 6\), got \(6, 40\)" + HINT):
        network.fit(ROWS, Y_LABELS, X_val=X, y_val=Y_LABELS)
    network.fit(ROWS, Y_LABELS)
    for call in (network.predict, lambda X: network.score(X, Y_LABELS), lambda X: network.partial_fit(X, Y_LABELS)):
        with pytest.raises(ValueError, match=HINT):
            call(X)


@pytest.mark.parametrize(
    ("x", "y", "features"),
    [
        ((40, 6), (39,), None),  # a row too few
        ((40, 1), (39, 1), None),
        ((40, 8, 8, 3), (8,), None),
        ((40, 6), (), None),
        ((40, 5), None, 6),
        ((6,), None, 6),
        ((6, 6), None, 6),
        ((6, 4, 4), None, 6),
    ],
)
def test_other_errors_are_left_alone(x, y, features):
    assert columns_hint(x, y, features) == ""


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_what_tells_no_shape_is_left_alone():
    with pytest.raises(ValueError, match=r"\[2, 3\]$"):
        dd.MLPClassifier().fit([[0.0], [1.0]], [0, 1, 0])
    with pytest.raises(ValueError, match=r"expecting 6 features as input\.$"):
        dd.MLPClassifier((4,), max_iter=1).fit(ROWS, Y_LABELS).predict(ROWS[:, :5])
