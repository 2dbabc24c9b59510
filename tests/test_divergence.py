"""What is said of a training that diverged."""

import copy
import pickle

import numpy as np
import pytest

import dd2424fast as dd
from dd2424fast import divergence

RNG = np.random.default_rng(0)
X = RNG.standard_normal((40, 20)).astype("float32")
Y = RNG.integers(0, 10, 40)
HUGE = np.sign(X) * np.float32(3e38)


def mlp(**arguments):
    return dd.models.MLP(20, (30, 30), 10, seed=0, **arguments)


def diverged(model, lr=0.1, x=X, y=Y, updates=50, optimizer=dd.optim.SGD, **arguments):
    """Train until it diverges; returns the trainer and the error."""
    trainer = dd.Trainer(model, optimizer(lr), **arguments)
    with pytest.raises(dd.TrainingDiverged) as caught:
        _train(trainer, x, y, updates)
    return trainer, caught.value


def _train(trainer, x=X, y=Y, updates=100):
    for _ in range(updates):
        trainer.step(x, y)


@pytest.mark.parametrize("backend", ["fast", "numpy"])
def test_the_input_is_to_blame(backend):
    x = X.copy()
    x[17, 3] = np.nan
    with dd.backend(backend):
        _, error = diverged(mlp(), x=x)
    report = error.report
    assert (report.layer, report.operand, report.index) == (None, "x", (17, 3))
    assert np.isnan(report.value)
    assert report.advice == [
        "x holds nan at (17, 3): look for missing values, or for a division by a standard deviation that is zero."
    ]
    assert report.first_ratios == {}
    assert not report.twin_is_finite
    assert "not finite first: x, nan at (17, 3)" in str(report)


def test_the_target_is_to_blame():
    y = RNG.standard_normal((40, 10)).astype("float32")
    y[3, 1] = np.inf
    _, error = diverged(mlp(), y=y, loss=dd.losses.MeanSquaredError())
    assert (error.report.operand, error.report.index) == ("y", (3, 1))


def test_a_weight_is_to_blame():
    model = mlp()
    model[2].weight[4, 7] = np.inf
    _, error = diverged(model)
    report = error.report
    assert (report.layer, report.kind, report.operand, report.index) == ("2", "Linear", "weight", (4, 7))
    assert list(report.largest) == ["0"]
    assert "Not finite first: the weight of layer 2 (Linear), inf at (4, 7)" in str(error)


def test_an_activation_overflows():
    model = mlp()
    model[0].weight *= 1e20
    model[2].weight *= 1e20
    _, error = diverged(model)
    report = error.report
    assert (report.layer, report.operand, report.value) == ("2", "activation", np.inf)
    assert report.largest["0"] == pytest.approx(np.maximum(X @ model[0].weight, 0).max(), rel=0.2)
    assert report.update == 0
    assert report.losses == ()
    assert report.advice[0].startswith("Draw smaller initial weights (init='he'): the standard deviation of 0.weight (")


@pytest.mark.parametrize("batch_norm", [False, True])
def test_the_rate_that_is_suggested_trains(batch_norm):
    trainer, error = diverged(mlp(batch_norm=batch_norm), lr=1e10)
    report = error.report
    assert report.lr == 1e10
    first = report.advice[0]
    assert first.startswith("Lower the learning rate, 1e+10: from freshly drawn weights, one update on this batch")
    suggested = float(first.partition("; at ")[2].partition(", by a hundredth")[0])
    assert 0.01 < suggested < 1
    fresh = dd.Trainer(mlp(batch_norm=batch_norm), dd.optim.SGD(suggested))
    losses = [fresh.step(X, Y) for _ in range(100)]
    assert losses[-1] < 0.7 * losses[0]
    assert report.advice[1] == "Clip the gradient: Trainer(..., clip_norm=1.0)."
    assert np.isfinite(trainer.model.parameters).all()


def test_the_first_ratios_are_those_of_a_first_update():
    """Told after an explosion, they equal what a fresh network's first update does."""
    _, error = diverged(mlp(), lr=1e20, optimizer=dd.optim.Adam)
    fresh = mlp()
    fresh._initialise(0)
    before = fresh.parameters.copy()
    dd.Trainer(fresh, dd.optim.Adam(1e20)).step(X, Y)
    for path, ratio in error.report.first_ratios.items():
        after = dict(fresh.modules())[path].weight.astype("float64")
        assert ratio == pytest.approx(np.linalg.norm(after) / np.linalg.norm(_at(before, fresh, path)), rel=1e-3)
    assert list(error.report.first_ratios) == ["0", "2", "4"]


def _at(vector, model, path):
    start = 0
    for name, parameter in model.named_parameters():
        if name == f"{path}.weight":
            return vector[start : start + parameter.value.size]
        start += parameter.value.size
    raise KeyError(path)


def test_unscaled_targets():
    y = (1000 * RNG.standard_normal((40, 1))).astype("float32")
    model = dd.nn.Sequential(dd.nn.Linear(20, 50), dd.nn.Linear(50, 1), seed=0)
    _, error = diverged(model, y=y, loss=dd.losses.MeanSquaredError())
    assert error.report.advice[0].startswith("Standardise y, to mean 0 and deviation 1")
    assert error.report.advice[1].startswith("If it still diverges then, lower the learning rate, 0.1")


def test_an_unscaled_input():
    _, error = diverged(mlp(), lr=10.0, x=100 * X)
    assert error.report.advice[0].startswith("Standardise x, to mean 0 and deviation 1 (data.Standardizer): it reaches")


def test_losses_and_norms_of_the_last_updates():
    trainer = dd.Trainer(mlp(), dd.optim.SGD(0.01), clip_norm=1e6)
    losses, norms = [], []
    for _ in range(20):
        losses.append(trainer.step(X, Y))
        norms.append(np.linalg.norm(trainer.model.gradients))
    with pytest.raises(dd.TrainingDiverged) as caught:
        trainer.step(HUGE, Y)
    report = caught.value.report
    assert report.losses == tuple(losses[-16:])
    np.testing.assert_allclose(report.gradient_norms, norms[-16:], rtol=1e-5)
    assert not any(sentence.startswith("Clip") for sentence in report.advice)
    _, error = diverged(mlp(), lr=1e10)
    assert error.report.gradient_norms == ()


class Steep(dd.nn.Module):
    """The identity, whose gradient is infinite in one place."""

    def _forward(self, x, work):
        return x

    def _backward(self, dy, work, need_dx):
        dx = dy.copy()
        dx[1, 2] = np.inf
        return dx


@pytest.mark.parametrize("clip", [{}, {"clip_norm": 1.0}, {"clip_value": 1.0}])
def test_a_gradient_is_to_blame(clip):
    model = dd.nn.Sequential(dd.nn.Linear(20, 8), Steep(), dd.nn.Linear(8, 10), seed=0)
    _, error = diverged(model, **clip)
    report = error.report
    assert "the gradient is not finite" in str(error)
    assert (report.layer, report.kind, report.operand, report.index) == ("1", "Steep", "gradient of the input", (1, 2))
    assert list(report.layer_gradient_norms) == ["2"]
    assert report.loss == pytest.approx(np.log(10), rel=0.2)


def test_a_running_statistic_is_to_blame():
    model = dd.nn.Sequential(dd.nn.BatchNorm(20), dd.nn.Linear(20, 10), seed=0)
    x = X.copy()
    x[:, 5] *= 1e19
    _, error = diverged(model, x=x)
    assert (error.report.layer, error.report.operand) == ("0", "running_var")
    assert error.report.index == (5,)


def test_a_language_model():
    ids = RNG.integers(0, 12, (4, 15))
    model = dd.models.LanguageModel(12, "rnn", 8, seed=0)
    trainer, error = diverged(model, lr=1e38, x=ids, y=ids)
    report = error.report
    assert (report.layer, report.kind, report.operand) == ("output", "Linear", "activation")
    assert report.largest == {"rnn": pytest.approx(1.0)}
    assert report.advice[1] == "Clip the gradient, which a recurrent network needs: Trainer(..., clip_norm=1.0)."
    trainer.model.output.weight[...] = 0.0
    trainer.model.rnn.weight_hh_l0[0, 1] = np.nan
    with pytest.raises(dd.TrainingDiverged) as caught:
        trainer.step(ids, ids)
    assert (caught.value.report.layer, caught.value.report.operand) == ("rnn", "weight_hh_l0")


def test_the_replay_has_the_same_dropout():
    """One unit is nan, and dropped in some updates: only where it is not does the update diverge."""

    class Spiked(dd.nn.Module):
        def _forward(self, x, work):
            y = x.copy()
            y[0, 0] = np.where(y[0, 0] == 0, 0, np.inf)
            return y

        def _backward(self, dy, work, need_dx):
            return dy

    model = dd.nn.Sequential(dd.nn.Linear(20, 6), dd.nn.Dropout(0.8), Spiked(), dd.nn.Linear(6, 10), seed=0)
    trainer = dd.Trainer(model, dd.optim.SGD(0.01), seed=5)
    with pytest.raises(dd.TrainingDiverged) as caught:
        _train(trainer)
    report = caught.value.report
    assert report.update > 0
    assert (report.layer, report.kind, report.operand, report.index) == ("2", "Spiked", "activation", (0, 0))


def _spoil(monkeypatch, name="linear_forward"):
    """Let a kernel give inf in one place unless NumPy's is asked for."""
    kernel = getattr(dd.kernels, name)

    def spoiled(*arguments):
        result = kernel(*arguments)
        if dd.get_backend() != "numpy" and result.shape[1] == 10:
            result[2, 5] = np.inf
        return result

    monkeypatch.setattr(dd.kernels, name, spoiled)


def test_a_wrong_kernel_is_not_blamed_on_the_user(monkeypatch):
    _spoil(monkeypatch)
    trainer, error = diverged(mlp())
    report = error.report
    assert report.twin_is_finite
    assert (report.layer, report.operand, report.index) == ("4", "activation", (2, 5))
    assert len(report.advice) == 1
    assert report.advice[0].startswith(
        "The same update is still finite with NumPy's kernels: since no number comes near"
    )
    assert "a fast kernel is wrong. Report it, and go on with dd.set_backend('numpy')" in str(report)
    assert str(error).endswith("The same update is finite with NumPy's kernels: a fast kernel is wrong, report it")
    with dd.backend("numpy"):
        assert np.isfinite(trainer.step(X, Y))


def test_no_kernel_is_blamed_for_an_explosion():
    """The fast loss squares in float32, NumPy's in float64: it overflows first."""
    model = dd.nn.Sequential(dd.nn.Linear(20, 1), seed=0)
    model[0].weight[...] = 1e21
    y = np.zeros((40, 1), "float32")
    _, error = diverged(model, y=y, loss=dd.losses.MeanSquaredError())
    report = error.report
    assert report.twin_is_finite
    assert report.at_the_edge
    assert report.operand == "loss"
    assert "still finite with NumPy's kernels: the numbers have exploded" in str(report)
    assert report.advice[0].startswith("Draw smaller initial weights")
    assert "report it" not in str(error)


def test_the_replay_changes_nothing():
    """What a trainer that diverged goes on to is what one that never met the bad batch does."""
    ends = []
    for meets in (False, True):
        model = mlp(batch_norm=True, dropout=0.2)
        trainer = dd.Trainer(model, dd.optim.Adam(0.01), seed=3)
        for i in range(6):
            gradients = model.gradients.copy()
            if meets and i in (0, 3):
                with pytest.raises(dd.TrainingDiverged):
                    trainer.step(HUGE, Y)
            np.testing.assert_array_equal(model.gradients, gradients)
            trainer.step(X, Y)
        ends.append(np.concatenate([model.parameters, model.buffers]))
        assert not any("_forward" in vars(module) for _, module in model.modules())
    np.testing.assert_array_equal(*ends)


def test_a_carried_state_is_left_alone():
    ids, ends = RNG.integers(0, 12, (4, 15)), []
    for meets in (False, True):
        model = dd.models.LanguageModel(12, "gru", 8, seed=0)
        trainer = dd.Trainer(model, dd.optim.Adam(0.01))
        trainer.step(ids, ids)
        if meets:
            kept = model.output.bias.copy()
            model.output.bias[3] = np.inf
            with pytest.raises(dd.TrainingDiverged) as caught:
                trainer.step(ids, ids)
            assert (caught.value.report.layer, caught.value.report.operand) == ("output", "bias")
            model.output.bias[...] = kept
        trainer.step(ids, ids)
        ends.append(model.parameters.copy())
    np.testing.assert_array_equal(*ends)


def test_a_replay_that_fails_hides_nothing(monkeypatch):
    def broken(*_):
        raise MemoryError("no more")

    monkeypatch.setattr(divergence, "_replay", broken)
    _, error = diverged(mlp(), lr=1e10)
    assert "the loss is nan" in str(error)
    assert error.report.stopped == "MemoryError: no more"
    assert "the replay ended with MemoryError: no more" in str(error.report)


def test_the_error_survives_pickling():
    _, error = diverged(mlp(), lr=1e10)
    for other in (pickle.loads(pickle.dumps(error)), copy.deepcopy(error)):
        assert str(other) == str(error)
        assert other.update == error.update
        assert str(other.report) == str(error.report)
    assert pickle.loads(pickle.dumps(dd.TrainingDiverged("nan", 3))).report is None


def test_the_search_for_a_rate_explains_nothing(monkeypatch):
    def unexpected(*_):
        raise AssertionError("replayed")

    trainer = dd.Trainer(mlp(), dd.optim.SGD(0.1))
    trainer.step(X, Y)
    recent = list(trainer._recent)
    monkeypatch.setattr(divergence, "explain", unexpected)
    trainer.find_lr((X, Y), low=1e-3, high=1e38, updates=20)
    assert list(trainer._recent) == recent
    monkeypatch.undo()
    with pytest.raises(dd.TrainingDiverged) as caught:
        trainer.step(HUGE, Y)
    assert caught.value.report is not None
