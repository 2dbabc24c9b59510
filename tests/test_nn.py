"""Layers and the flat vector they live in."""

import copy
import pickle

import numpy as np
import pytest

import dd2424fast as dd

LAYERS = {
    "Linear": lambda **k: dd.nn.Linear(5, 3, **k),
    "Linear without bias": lambda **k: dd.nn.Linear(5, 3, bias=False, **k),
    "BatchNorm": lambda **k: dd.nn.BatchNorm(5, **k),
    "LayerNorm": lambda **k: dd.nn.LayerNorm(5, **k),
    "Dropout": lambda **k: dd.nn.Dropout(0.4, **k),
    "ReLU": lambda **k: dd.nn.ReLU(**k),
    "LeakyReLU": lambda **k: dd.nn.LeakyReLU(**k),
    "Tanh": lambda **k: dd.nn.Tanh(**k),
    "Sigmoid": lambda **k: dd.nn.Sigmoid(**k),
    "GELU": lambda **k: dd.nn.GELU(**k),
    "Flatten": lambda **k: dd.nn.Flatten(**k),
    "Activation": lambda **k: dd.nn.Activation(softplus, logistic, **k),
}


def softplus(z):
    return np.log1p(np.exp(z))


def logistic(z):
    return 1 / (1 + np.exp(-z))


class Scale(dd.nn.Module):
    """A layer as a user writes it: the extension protocol."""

    def __init__(self, features, *, dtype="float32", seed=None):
        super().__init__(dtype=dtype, seed=seed)
        self.add("factor", (features,), np.ones)

    def forward(self, x):
        self.x = x
        return x * self.factor

    def backward(self, dy):
        self.dfactor[...] = (dy * self.x).sum(axis=0)
        return dy * self.factor


@pytest.mark.parametrize("backend", ["fast", "numpy"])
@pytest.mark.parametrize("name", LAYERS)
def test_every_layer_by_central_differences(name, backend):
    """Each layer between two Linear layers, with random weights everywhere,
    so that its dx and its parameters are checked."""
    layer = LAYERS[name](dtype="float64")
    width = 3 if name.startswith("Linear") else 5
    model = dd.nn.Sequential(
        dd.nn.Linear(4, 5, dtype="float64"), layer, dd.nn.Linear(width, 6, dtype="float64"), seed=2
    )
    rng = np.random.default_rng(1)
    model.parameters[...] = rng.standard_normal(model.parameters.size)
    with dd.backend(backend):
        report = dd.gradcheck(
            model, rng.standard_normal((7, 4)), rng.integers(0, 6, 7), check_input=True, tolerance=1e-6
        )
    assert report, str(report)
    assert {"0.weight", "2.weight", "x"} <= set(report.errors)


@pytest.mark.parametrize("activation", [dd.nn.ReLU, dd.nn.LeakyReLU, dd.nn.Tanh, dd.nn.Sigmoid])
def test_an_activation_applied_with_its_layer_equals_one_by_itself(activation):
    rng = np.random.default_rng(0)
    x, dy = rng.standard_normal((9, 5)), rng.standard_normal((9, 5))
    for layer in (dd.nn.Linear(5, 5, dtype="float64", seed=1), dd.nn.BatchNorm(5, dtype="float64")):
        alone = copy.deepcopy(layer)
        together = dd.nn.Sequential(layer, activation())
        assert len(together._stages) == 1
        f = activation(dtype="float64")
        np.testing.assert_allclose(together.forward(x), f.forward(alone.forward(x)), rtol=1e-12)
        np.testing.assert_allclose(together.backward(dy), alone.backward(f.backward(dy)), rtol=1e-10, atol=1e-13)
        np.testing.assert_allclose(together.gradients, alone.gradients, rtol=1e-10, atol=1e-13)


def test_a_layer_of_ones_own():
    rng = np.random.default_rng(0)
    model = dd.nn.Sequential(
        dd.nn.Linear(4, 5, dtype="float64"), Scale(5, dtype="float64"), dd.nn.Linear(5, 3, dtype="float64"), seed=0
    )
    assert dd.gradcheck(model, rng.standard_normal((6, 4)), rng.integers(0, 3, 6), check_input=True)
    assert "1.factor" in model.state_dict()
    trainer = dd.Trainer(model, dd.optim.SGD(0.1))
    trainer.step(rng.standard_normal((6, 4)), rng.integers(0, 3, 6))
    assert not np.array_equal(model.layers[1].factor, np.ones(5))
    with pytest.raises(NotImplementedError, match="define forward"):
        dd.nn.Module().forward(np.ones((1, 2), "float32"))


def test_parameters_are_views_of_one_vector():
    model = dd.models.MLP(3, (4,), 2, batch_norm=True, seed=0)
    assert model.parameters.size == 3 * 4 + 4 + 4 + 4 + 4 * 2 + 2
    assert model.buffers.size == 8
    first = model.layers[0]
    assert np.shares_memory(first.weight, model.parameters)
    assert np.shares_memory(first.dweight, model.gradients)
    assert np.shares_memory(first.parameters, model.parameters)
    model.parameters[...] = np.arange(model.parameters.size)
    np.testing.assert_array_equal(first.weight, np.arange(12).reshape(3, 4))
    first.weight = np.full((3, 4), 7.0)  # copies into the view
    assert (model.parameters[:12] == 7).all()
    assert np.shares_memory(first.weight, model.parameters)
    with pytest.raises(ValueError, match=r"weight: expected shape \(3, 4\), got \(4, 3\)"):
        first.weight = np.ones((4, 3))


def clones(model):
    yield copy.deepcopy(model)
    yield pickle.loads(pickle.dumps(model))


def test_a_copy_is_whole_and_trains_by_itself(problem):
    x, y = problem
    model = dd.models.MLP(7, (6,), 4, batch_norm=True, seed=0)
    trainer = dd.Trainer(model, dd.optim.SGD(0.1, momentum=0.9))
    trainer.step(x, y)
    for clone in clones(model):
        before = model.parameters.copy()
        np.testing.assert_array_equal(clone.parameters, before)
        np.testing.assert_array_equal(clone.buffers, model.buffers)
        assert np.shares_memory(clone.layers[0].weight, clone.parameters)
        ours, theirs = (dd.Trainer(m, dd.optim.SGD(0.1)).step(x, y) for m in (copy.deepcopy(model), clone))
        assert ours == theirs
        assert not np.array_equal(clone.parameters, before)
        np.testing.assert_array_equal(model.parameters, before)


def test_replacing_a_layer_lays_the_vector_anew(problem):
    x, y = problem
    model = dd.models.MLP(7, (6,), 4, seed=0)
    kept = model.layers[0].weight.copy()
    old = dd.optim.SGD(0.1, momentum=0.9)
    dd.Trainer(model, old).step(x, y)
    model.layers[0].weight = kept
    model[2] = dd.nn.Linear(6, 9, seed=1)
    np.testing.assert_array_equal(model.parameters[:42].reshape(7, 6), kept)
    assert np.shares_memory(model[2].weight, model.parameters)
    assert model.predict(x).shape == (120, 9)
    with pytest.raises(ValueError, match="make a new optimizer"):
        dd.Trainer(model, old).step(x, y)


def test_seeds():
    a, b, c = (dd.models.MLP(5, (4,), 3, seed=s) for s in (1, 1, 2))
    np.testing.assert_array_equal(a.parameters, b.parameters)
    assert not np.array_equal(a.parameters, c.parameters)
    double = dd.models.MLP(5, (4,), 3, seed=1, dtype="float64")
    np.testing.assert_array_equal(double.parameters.astype("float32"), a.parameters)
    two = dd.nn.Sequential(dd.nn.Linear(3, 3), dd.nn.Linear(3, 3))
    assert not np.array_equal(two[0].weight, two[1].weight)
    np.random.seed(3)  # noqa: NPY002 (the global state must not be touched)
    expected = np.random.RandomState(3).random_sample()
    dd.models.MLP(5, (4,), 3)
    assert np.random.random_sample() == expected  # noqa: NPY002


@pytest.mark.parametrize(
    ("init", "deviation"), [("default", (1 / 3) ** 0.5 / 20), ("he", (2 / 400) ** 0.5), ("glorot", (2 / 1000) ** 0.5)]
)
def test_initial_weights_have_the_named_spread(init, deviation):
    layer = dd.nn.Linear(400, 600, init=init, seed=0)
    assert layer.weight.std() == pytest.approx(deviation, rel=0.01)
    assert abs(layer.weight.mean()) < 0.01 * deviation * 10


def test_state_dict_speaks_pytorch():
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    model = dd.models.MLP(7, (6, 5), 4, batch_norm=True, seed=0)
    T = torch.nn
    theirs = T.Sequential(
        T.Linear(7, 6), T.BatchNorm1d(6), T.ReLU(), T.Linear(6, 5), T.BatchNorm1d(5), T.ReLU(), T.Linear(5, 4)
    )  # fmt: skip
    assert [n for n in theirs.state_dict() if "num_batches" not in n] == list(model.state_dict())
    model.load_state_dict(theirs.state_dict())
    theirs.load_state_dict({n: torch.tensor(a) for n, a in model.state_dict().items()}, strict=False)
    x = np.random.default_rng(0).standard_normal((9, 7)).astype("float32")
    y = np.arange(9) % 4
    out = theirs(torch.tensor(x))
    torch.nn.functional.cross_entropy(out, torch.tensor(y)).backward()
    _, dy = dd.losses.CrossEntropy()(model.forward(x), y)
    model.backward(dy)
    for name, gradient in model.gradient_dict().items():
        np.testing.assert_allclose(
            gradient, dict(theirs.named_parameters())[name].grad, rtol=1e-4, atol=1e-7, err_msg=name
        )
    np.testing.assert_allclose(model.state_dict()["1.running_var"], theirs[1].running_var, rtol=1e-5)


def test_load_state_dict_refuses_what_does_not_fit_and_changes_nothing():
    model = dd.models.MLP(3, (4,), 2, seed=0)
    before = model.parameters.copy()
    state = model.state_dict()
    state["0.weight"] = np.zeros((3, 4))
    del state["2.bias"]
    state["9.bias"] = np.zeros(2)
    with pytest.raises(
        ValueError, match=r"0.weight has shape \(3, 4\), expected \(4, 3\); missing 2.bias; unexpected 9.bias"
    ):
        model.load_state_dict(state)
    np.testing.assert_array_equal(model.parameters, before)
    model.load_state_dict({"2.bias": [5.0, 6.0], "other": 1}, strict=False)
    np.testing.assert_array_equal(model[2].bias, [5, 6])


def test_results_belong_to_the_caller(problem):
    x, _ = problem
    model = dd.models.MLP(7, (6,), 4, seed=0)
    first = model.forward(x)
    kept = first.copy()
    model.forward(x + 1)
    np.testing.assert_array_equal(first, kept)
    flat = dd.nn.Flatten().forward(x)
    assert not np.shares_memory(flat, x)
    whole = model.predict(x)
    np.testing.assert_array_equal(whole, model.predict(x, batch_size=7))
    assert model.predict(x[:0]).shape == (0, 4)


def test_accumulate_adds_gradients(problem):
    x, y = problem
    model = dd.models.MLP(7, (6,), 4, seed=0, dtype="float64")
    loss = dd.losses.CrossEntropy()

    def backward(rows, **how):
        model.backward(loss(model.forward(x[rows]), y[rows])[1], **how)
        return model.gradients.copy()

    one, two = backward(slice(0, 60)), backward(slice(60, 120))
    backward(slice(0, 60))
    np.testing.assert_allclose(backward(slice(60, 120), accumulate=True), one + two, rtol=1e-12)


def test_modes():
    model = dd.models.MLP(7, (6,), 4, batch_norm=True, dropout=0.5, seed=0)
    x = np.random.default_rng(0).standard_normal((8, 7)).astype("float32")
    running = model.buffers.copy()
    quiet = model.eval().forward(x)
    np.testing.assert_array_equal(quiet, model.predict(x))
    np.testing.assert_array_equal(model.buffers, running)
    noisy = model.train().forward(x)
    assert not np.array_equal(noisy, quiet)
    assert not np.array_equal(model.buffers, running)


def test_dropout_layers_of_one_model_draw_different_masks():
    model = dd.nn.Sequential(dd.nn.Dropout(0.5), dd.nn.Dropout(0.5))
    ones = np.ones((50, 50), "float32")
    kept = model.forward(ones) > 0
    assert 0.2 < kept.mean() < 0.3  # a quarter passes both; one mask twice would pass half


def test_frozen_batch_norm_keeps_and_uses_its_running_statistics(problem):
    x, y = problem
    model = dd.models.MLP(7, (6,), 4, batch_norm=True, seed=0, dtype="float64")
    model.buffers[...] = np.random.default_rng(0).uniform(0.5, 1.5, 12)
    running = model.buffers.copy()
    assert model.freeze("1") == 12
    frozen = model[1].parameters.copy()
    assert dd.gradcheck(model, x[:9], y[:9], check_input=True, tolerance=1e-6)
    dd.Trainer(model, dd.optim.Adam(0.1)).step(x, y)
    np.testing.assert_array_equal(model.buffers, running)
    np.testing.assert_array_equal(model[1].parameters, frozen)
    model.unfreeze("1")
    dd.Trainer(model, dd.optim.Adam(0.1)).step(x, y)
    assert not np.array_equal(model[1].parameters, frozen)
    with pytest.raises(ValueError, match="no parameter's path starts with 'head'"):
        model.freeze("head")


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: dd.nn.Linear(0, 3), ValueError, "in_features: expected an integer of at least 1, got 0"),
        (lambda: dd.nn.Linear(3, 2.5), TypeError, "out_features: expected an integer"),
        (lambda: dd.nn.Linear(3, 2, init="hee"), ValueError, "init: expected one of default, he, glorot, got 'hee'"),
        (lambda: dd.nn.Linear(3, 2, dtype="float16"), ValueError, "dtype: expected 'float32' or 'float64'"),
        (lambda: dd.nn.Linear(3, 2, seed=-1), ValueError, "seed: expected"),
        (lambda: dd.nn.Dropout(1.0), ValueError, r"p: expected a number in \[0, 1\), got 1.0"),
        (lambda: dd.nn.Linear(3, out_featurs=2), TypeError, "'out_featurs'.*did you mean 'out_features'"),
        (lambda: dd.models.MLP(3, hidden=5), TypeError, r"hidden: expected a sequence of layer sizes such as \(5,\)"),
        (lambda: dd.models.MLP(3, hidden=(5, 0)), ValueError, r"hidden\[1\]: expected an integer of at least 1"),
        (lambda: dd.models.MLP(3, batchnorm=True), TypeError, "did you mean 'batch_norm'"),
        (lambda: dd.nn.Sequential(dd.nn.ReLU(), "relu"), TypeError, r"layers\[1\]: expected a Module, got str"),
        (lambda: dd.nn.Sequential(*[dd.nn.ReLU()] * 2), ValueError, r"layers\[1\]: the same layer appears twice"),
    ],
)  # fmt: skip
def test_bad_constructor_arguments(make, error, message):
    with pytest.raises(error, match=message):
        make()


@pytest.mark.parametrize(
    ("x", "error", "message"),
    [
        (np.zeros((4, 6), "float32"), ValueError, r"x: expected shape \(batch, 7\), got \(4, 6\)"),
        (np.zeros(7, "float32"), ValueError, r"x: expected shape \(batch, 7\), got \(7,\)"),
        ([["a"] * 7], TypeError, "x: expected numbers, got list"),
        (np.zeros((2, 7), complex), TypeError, "x: expected numbers, got ndarray of dtype complex128"),
    ],
)
def test_bad_input(x, error, message):
    with pytest.raises(error, match=message):
        dd.models.MLP(7, (3,), 2).predict(x)


@pytest.mark.parametrize("dtype", ["uint8", "int64", "float64", "float16", "bool"])
def test_other_numbers_are_converted_at_the_edge(dtype):
    model = dd.models.MLP(7, (3,), 2, seed=0)
    x = np.arange(14).reshape(2, 7) % 2
    expected = model.predict(x.astype("float32"))
    np.testing.assert_array_equal(model.predict(x.astype(dtype)), expected)
    np.testing.assert_array_equal(model.predict(x.tolist()), expected)


def test_summary_and_repr():
    model = dd.models.MLP(7, (3,), 2, seed=0)
    model.freeze("0")
    assert "24 (frozen)" in model.summary()
    assert "32 parameters, 8 trained, float32" in model.summary()
    assert repr(model) == "MLP(in_features=7, hidden=(3,), out_features=2, seed=0)"
    assert (
        repr(dd.nn.Sequential(dd.nn.Linear(2, 3), dd.nn.Tanh()))
        == "Sequential(Linear(in_features=2, out_features=3), Tanh())"
    )


def test_calling_a_module_is_forward():
    layer, rnn = dd.nn.Linear(3, 2, seed=0), dd.nn.GRU(3, 4, seed=0)
    x = np.ones((5, 3), np.float32)
    np.testing.assert_array_equal(layer(x), layer.forward(x))
    np.testing.assert_array_equal(rnn(x[None], lengths=[4])[0], rnn.forward(x[None], lengths=[4])[0])
