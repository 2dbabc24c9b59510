"""Statistics of every layer."""

import math

import numpy as np
import pytest

import dd2424fast as dd
from dd2424fast.callbacks import Callback, Checkpoint, LayerStatistics
from dd2424fast.layer_numbers import NUMBERS

nn = dd.nn
RNG = np.random.default_rng(0)
X = RNG.standard_normal((40, 20)).astype("float32")
Y = RNG.integers(0, 10, 40)


def test_the_numbers_of_an_mlp():
    """Against plain NumPy, in float64."""
    model = dd.models.MLP(20, (30,), 10, dtype="float64", seed=0)
    model[0].bias[:3] = -100.0  # three dead units
    x = X.astype("float64")
    report = dd.layer_statistics(model, x, Y, lr=0.1)
    W1, b1, W2, b2 = model[0].weight, model[0].bias, model[2].weight, model[2].bias
    h = np.maximum(x @ W1 + b1, 0)
    scores = h @ W2 + b2
    P = np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)
    G2 = (P - np.eye(10)[Y]) / 40
    G1 = G2 @ W2.T
    first, last = report.layers["0"], report.layers["2"]
    assert list(report.layers) == ["0", "2"]
    assert (first.kind, last.kind) == ("Linear, relu", "Linear")
    assert report.loss == pytest.approx(-np.log(P[np.arange(40), Y]).mean())
    found = [first.mean, first.std, last.mean, last.std]
    np.testing.assert_allclose(found, [h.mean(), h.std(), scores.mean(), scores.std()])
    assert first.dead == pytest.approx((h == 0).all(axis=0).mean())
    assert first.dead >= 0.1
    assert math.isnan(last.dead)
    assert math.isnan(first.saturated)
    G = G1 * (h > 0)
    expected = [np.linalg.norm(a) for a in (x.T @ G, G.sum(axis=0), G1)]
    np.testing.assert_allclose([first.weight_gradient, first.bias_gradient, first.activation_gradient], expected)
    assert last.activation_gradient_rms == pytest.approx(np.sqrt(np.mean(G2**2)))
    assert first.update_ratio == pytest.approx(0.1 * expected[0] / np.linalg.norm(W1))
    assert report.unhealthy == {}


def stack(activation, layers=6):
    return nn.Sequential(
        *[part for _ in range(layers) for part in (nn.Linear(20, 20), activation())], nn.Linear(20, 10), seed=0
    )


def test_vanishing_gradients():
    unhealthy = dd.layer_statistics(stack(nn.Sigmoid), X, Y).unhealthy
    assert unhealthy["0"] == "vanishing gradients"
    assert "10" not in unhealthy
    assert "12" not in unhealthy
    assert dd.layer_statistics(stack(nn.Tanh), X, Y).unhealthy == {}


def test_exploding_gradients_and_activations():
    model = stack(nn.ReLU)
    for layer in model.layers[::2]:
        layer.weight *= 20
    unhealthy = dd.layer_statistics(model, X, Y).unhealthy
    assert unhealthy["0"] == "exploding gradients"
    assert unhealthy["12"] == "exploding activations"


def test_dead_and_saturated():
    model = stack(nn.ReLU, 2)
    model[0].bias[...] = -50.0
    report = dd.layer_statistics(model, X, Y)
    assert report.layers["0"].verdict == "vanishing activations, dead"
    assert report.layers["0"].dead == 1.0
    assert "100%" in report.table().splitlines()[1]
    for activation, bias in ((nn.Tanh, -9.0), (nn.Sigmoid, 30.0), (nn.Sigmoid, -30.0)):
        model = stack(activation, 2)
        model[0].bias[...] = bias
        layer = dd.layer_statistics(model, X, Y).layers["0"]
        assert layer.saturated == 1.0
        assert "saturated" in layer.verdict
    model = stack(nn.Tanh, 2)
    model[0].bias[:5] = 9.0
    assert 0.25 <= dd.layer_statistics(model, X, Y).layers["0"].saturated < 0.3


def test_dead_channels_of_a_convnet():
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Residual(nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm(4)),
        nn.Dropout(0.5), nn.Flatten(), nn.Linear(64, 10), image=(8, 8, 3), seed=0,
    )  # fmt: skip
    model[0].bias[1] = -100.0
    report = dd.layer_statistics(model, RNG.standard_normal((5, 8, 8, 3)), RNG.integers(0, 10, 5), lr=0.1)
    assert {name: layer.kind for name, layer in report.layers.items()} == {
        "0": "Conv2d",
        "2": "MaxPool2d, relu",
        "3.0": "Conv2d",
        "3.1": "BatchNorm",
        "3": "Residual, relu",
        "6": "Linear",
    }
    assert report.layers["2"].dead == 0.25
    assert report.layers["3.1"].std == pytest.approx(1.0, rel=1e-3)
    assert all(math.isfinite(report.layers[name].update_ratio) for name in ("0", "3.0", "6"))


@pytest.mark.parametrize("backend", ["fast", "numpy"])
def test_both_backends_agree(backend):
    model = dd.models.MLP(20, (30, 30), 10, batch_norm=True, dropout=0.3, seed=0)
    expected = dd.layer_statistics(model, X, Y, seed=3, update=4)
    with dd.backend(backend):
        found = dd.layer_statistics(model, X, Y, seed=3, update=4)
    for name, layer in expected.layers.items():
        for number in NUMBERS:
            wanted = getattr(layer, number)
            assert getattr(found.layers[name], number) == pytest.approx(wanted, rel=1e-3, abs=1e-6, nan_ok=True)


@pytest.mark.parametrize("cell", ["rnn", "lstm", "gru"])
def test_a_language_model(cell):
    model = dd.models.LanguageModel(12, cell, 8, layers=2, seed=0)
    ids, lengths = RNG.integers(0, 12, (4, 15)), [15, 3, 7, 7]
    report = dd.layer_statistics(model, ids, ids, lengths=lengths, optimizer=dd.optim.Adam(1e-3))
    assert list(report.layers) == ["rnn", "output"]
    assert math.isnan(report.layers["rnn"].saturated) == (cell != "rnn")
    states = [report.layers["rnn"].weight_gradient, report.layers["rnn"].activation_gradient]
    assert all(value > 0 for value in states)


def test_the_ratio_is_that_of_the_next_update():
    model = dd.models.MLP(20, (30,), 10, seed=0)
    trainer = dd.Trainer(model, dd.optim.Adam(0.01))
    for _ in range(3):
        trainer.step(X, Y)
    report = dd.layer_statistics(model, X, Y, optimizer=trainer.optimizer)
    before = model[0].weight.copy()
    trainer.step(X, Y)
    ratio = np.linalg.norm(model[0].weight - before) / np.linalg.norm(before)
    assert report.layers["0"].update_ratio == pytest.approx(ratio, rel=1e-3)
    large = dd.layer_statistics(model, X, Y, optimizer=trainer.optimizer, lr=3.0)
    assert "large updates" in large.layers["0"].verdict
    assert dd.layer_statistics(model, X, Y, lr=1e-9).layers["0"].verdict == "small updates"


def test_everything_is_left_as_it_was():
    ends = []
    for watched in (False, True):
        model = dd.models.MLP(20, (30,), 10, batch_norm=True, dropout=0.2, seed=0)
        trainer = dd.Trainer(model, dd.optim.Adam(0.01), seed=1)
        for _ in range(4):
            if watched:
                dd.layer_statistics(model, X[:7], Y[:7], optimizer=trainer.optimizer)
            trainer.step(X, Y)
        state = list(trainer.optimizer.state.values())
        ends.append(np.concatenate([model.parameters, model.gradients, model.buffers, *state]))
        assert not any({"_forward", "_backward"} & set(vars(module)) for _, module in model.modules())
    np.testing.assert_array_equal(*ends)


def test_a_result_that_is_not_finite():
    model = dd.models.MLP(20, (30,), 10, seed=0)
    model[0].weight[0, 0] = np.inf
    assert dd.layer_statistics(model, X, Y).layers["0"].verdict.startswith("not finite")


class Own(nn.Module):
    """A module of a user's own that contains layers."""

    def __init__(self, *, dtype="float32", seed=None):
        super().__init__(dtype=dtype, seed=seed)
        self.a, self.b = nn.Linear(20, 6, dtype=dtype), nn.Linear(6, 10, dtype=dtype)
        self.join()

    def forward(self, x):
        self.h = np.tanh(self.a.forward(x))
        return self.b.forward(self.h)

    def backward(self, dy):
        return self.a.backward(self.b.backward(dy) * (1 - self.h**2))


def test_a_module_of_ones_own():
    report = dd.layer_statistics(Own(seed=0), X, Y, lr=0.1)
    assert list(report.layers) == ["a", "b"]
    assert all(layer.activation_gradient > 0 for layer in report.layers.values())


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"model": "mlp"}, TypeError, "model: expected an nn.Module, got str"),
        ({"loss": "mse"}, TypeError, "loss: expected a losses.Loss, got str"),
        ({"optimizer": "sgd"}, TypeError, "optimizer: expected an optim.Optimizer, got str"),
        ({"lr": -1.0}, ValueError, "lr: expected a number"),
        ({"seed": -1}, ValueError, "seed"),
        ({"x": np.ones((40, 3))}, ValueError, r"x: expected shape \(batch, 20\)"),
        ({"lengths": [1] * 40}, ValueError, "lengths: this model takes no sequences"),
    ],
)
def test_bad_arguments(arguments, error, message):
    model = dd.models.MLP(20, (30,), 10, seed=0)
    with pytest.raises(error, match=message):
        dd.layer_statistics(**{"model": model, "x": X, "y": Y, **arguments})
    assert not model._busy.locked()


class StopAt(Callback):
    def __init__(self, update):
        self.update = update

    def update_ends(self, trainer, loss):
        if trainer.update == self.update:
            trainer.stop_reason = "interrupted"


def test_the_callback(tmp_path):
    def run(stop=None, load=None, every=5):
        watch = LayerStatistics(X[:10], Y[:10], every=every)
        trainer = dd.Trainer(dd.models.MLP(20, (30,), 10, seed=0), dd.optim.Adam(0.01), seed=2)
        if load:
            trainer.load_checkpoint(load)
        stopping = [StopAt(stop), Checkpoint(tmp_path / "c")] if stop else []
        callbacks = [watch, *stopping] if every else stopping
        trainer.fit((X, Y), epochs=5, batch_size=8, progress=False, callbacks=callbacks)
        return watch, trainer.model.parameters

    watch, end = run()
    assert watch.updates == [5, 10, 15, 20, 25]
    assert [len(values) for values in watch.numbers["0"].values()] == [5] * len(NUMBERS)
    assert watch.numbers["2"]["std"][-1] == watch.report.layers["2"].std
    run(stop=13)
    resumed, same = run(load=tmp_path / "c")
    np.testing.assert_array_equal(end, same)
    assert resumed.updates == watch.updates
    np.testing.assert_array_equal(resumed.numbers["0"]["update_ratio"], watch.numbers["0"]["update_ratio"])
    figure = watch.plot(tmp_path / "history.png")
    assert (tmp_path / "history.png").stat().st_size > 1000
    assert figure.axes[0].get_title() == "results: std"
    assert len(figure.axes[0].lines) == 2


def test_the_picture(tmp_path):
    report = dd.layer_statistics(stack(nn.ReLU, 2), X, Y, lr=0.1)
    figure = report.plot(tmp_path / "layers.png")
    assert (tmp_path / "layers.png").stat().st_size > 1000
    assert len(figure.axes) == 4
    assert [text.get_text() for text in figure.axes[0].get_xticklabels()] == ["0", "2", "4"]
