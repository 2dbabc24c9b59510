"""Gradient checks: what passes, what does not, and that a mistake is called by its name."""

import doctest
import re

import numpy as np
import pytest
from student_network import LAYERS, Network

import dd2424fast as dd
from dd2424fast import gradients
from dd2424fast.differences import WRONG, Differences, FunctionSubject

WEIGHTS, ALL = "W1, W2 and W3", "W1, b1, W2, b2, W3 and b3"
LATER = r" What is before it \({}\) is wrong too, and may follow from that\."
FLAT = r"far (?:below|above) zero, where the activation is flat, .* the activation's derivative is missing"
DATA = rf" Of {WEIGHTS}: the part from the data; the L2 term \(lambda = 0\.05\) is right\."

# The mistake, what the network is like, and all that is to be said of it.
MUTANTS = [
    ("Y is not subtracted", {}, r"b3 sum to 1, .* Y is not subtracted from P\. .*" + LATER.format("W1, .* b2")),
    ("P is missing", {}, r"gradient of b3 are minus the classes' shares: it is made of -Y alone, P is missing"),
    ("softmax's derivative again", {}, r"gradient of b3 sum to [-.\de]+ over the 4 outputs, .* is not P - Y"),
    ("other labels", {}, r"gradient of b3 is off by whole multiples of 1 / 7: .* other labels"),
    ("sign", {}, rf"gradients of {ALL} have the wrong sign\.{DATA}$"),
    ("factor 2", {}, rf"gradients of {ALL} are 2 times too large: the factor 2 of a square's derivative .*\.{DATA}$"),
    ("divided by the classes", {}, rf"{ALL} are 4 times too small: divided by the number of outputs \(4\)"),
    ("summed over the batch", {}, rf"gradients of {ALL} are 7 times too large: summed over the batch of 7 .*{DATA}$"),
    ("divided twice", {}, rf"gradients of {ALL} are 7 times too small: divided by the batch size \(7\) twice\.{DATA}$"),
    ("biases summed", {}, r"gradients of b1, b2 and b3 are 7 times too large: summed over the batch of 7"),
    (
        "twice on the way down",
        {},
        r"gradients of W1 and b1 are 2 times too large: .* It begins there: what is behind \(W2 and b2\) is right",
    ),
    ("dropout's scale", {"dropout": 0.3}, r"b1 are 1\.42857 times too small: dropout's 1 / \(1 - p\) is missing"),
    ("W2 not transposed", {}, r"W2 and b2 are right, .* W1 and b1 are wrong: .* look at the product with the weights"),
    ("no derivative in layer 1", {}, rf"W2 and b2 are right, .* b1 are wrong: the mistake lies between\. .*{FLAT}"),
    (
        "no derivative in layer 2",
        {},
        rf"W3 and b3 are right, .* W2 and b2 are wrong: .*{FLAT}.*{LATER.format('W1 and b1')}$",
    ),
    ("mask of layer 2", {}, rf"W1 and b1 are wrong: .*{FLAT}, .* or is not taken at this layer's own input"),
    ("1 - h", {"activation": "tanh"}, rf"gradients of W2 and b2 are wrong: .*{FLAT}, is that of another function"),
    ("s", {"activation": "sigmoid"}, rf"gradients of W2 and b2 are wrong: .*{FLAT}, is that of another function"),
    ("not the activations", {}, r"gradient of W2 is wrong, .* of b2 right: .* Is it the layer's own input"),
    ("no L2", {}, rf"gradients of {WEIGHTS} are without the L2 term: add 2 \* lambda \* W = 0\.1 \* W\.$"),
    ("no L2 in W2", {}, r"gradient of W2 is without the L2 term"),
    ("lambda W", {}, rf"gradients of {WEIGHTS} are right but for the L2 term: .* 2 \* lambda \* W, not lambda \* W"),
    ("L2 twice", {}, rf"gradients of {WEIGHTS} have the L2 term twice"),
    ("L2 over n", {}, rf"gradients of {WEIGHTS} have the L2 term divided by the batch size \(7\)"),
    ("L2 on biases", {}, r"gradients of b1, b2 and b3 have an L2 term that the loss has not: .* not the biases"),
    ("W2 transposed", {}, r"gradient of W2 is transposed"),
    ("W1 reshaped", {}, r"gradient of W1 is laid out for the transposed shape, then reshaped"),
    ("W1 of the transposed shape", {}, r"W1 has shape \(6, 5\), expected \(5, 6\): it is transposed, and right"),
    ("b1 flat", {}, r"gradient of b1 has shape \(5,\), expected \(5, 1\): its numbers are right; keep the axis"),
    ("b2 zero", {}, r"gradient of b2 is zero everywhere"),
    ("rows reversed", {}, r"gradient of W1 has the right rows, but in reverse order"),
    ("columns rolled", {}, r"gradient of W1 has the right columns, but in another order: columns 5, 0, 1, 2, 3 and 4"),
    ("biases exchanged", {}, r"gradients of b1 and b2 are exchanged"),
    ("one row", {}, r"Only the gradient of W2 is wrong .* \(of W2 only row 3\); the gradient of b2 is right"),
    ("nan", {}, r"gradient of W3 has nan at \[1, 2\]"),
    (
        "statistics are constants",
        {"batch_norm": True},
        r"gamma1 and beta1 are right, .* W1 is not, .* takes the batch's mean \(and variance\) for constants",
    ),
    (
        "the variance is a constant",
        {"batch_norm": True},
        r"gamma1 and beta1 are right, the gradient of W1 is not: .* takes the batch's variance for a constant",
    ),
    ("no gamma", {"batch_norm": True}, r"gradient of W1 is not multiplied by the batch normalisation's gamma"),
    ("no variance", {"batch_norm": True}, r"W1 has a factor of its own for each unit .* 1 / sqrt\(variance"),
    ("gamma and beta exchanged", {"batch_norm": True}, r"gradients of beta1 and gamma1 are exchanged"),
    (
        "no derivative in layer 1",
        {"batch_norm": True},
        rf"W2 and b2 are right, the gradients of gamma1 and beta1 are wrong: .* With beta1 .*{FLAT}",
    ),
]  # fmt: skip


def check(network, **arguments):
    hints = {"batch_size": network.n, "l2": network.l2, "dropout": network.dropout or None}
    return dd.gradcheck_function(network, network.parameters, **{**hints, **arguments})


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("mistake", "network", "expected"), MUTANTS)
def test_a_mistake_is_called_by_its_name(mistake, network, expected, seed):
    report = check(Network(mistake, seed=seed, **network))
    assert not report
    assert len(report.explanation) == 1, report
    assert re.search(expected, report.explanation[0]), report


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    "network",
    [{}, {"activation": "tanh"}, {"activation": "sigmoid"}, {"batch_norm": True}, {"dropout": 0.3}, {"l2": 0.0}],
)
@pytest.mark.parametrize("directions", [0, 4])
def test_correct_code_passes_and_is_not_talked_about(network, seed, directions):
    network = Network(seed=seed, **network)
    for arguments in ({}, {"batch_size": None, "l2": None}):
        report = check(network, directions=directions, **arguments)
        assert report, report
        assert report.explanation == []
        assert report.worst_error < 1e-6


def at_kinks(seed):
    """A network some of whose units are at ReLU's kink, exactly or within the difference's step."""
    network = Network(seed=seed)
    p = network.parameters
    network.X[:, 2] = 0.0
    p["W1"][0], p["b1"][0], p["b1"][1] = 0.0, 0.0, 0.0
    p["b1"][2] = 3e-6 - (p["W1"] @ network.X)[2, 1]
    return network


@pytest.mark.parametrize("directions", [0, 4])
@pytest.mark.parametrize("seed", range(4))
def test_correct_code_passes_at_kinks(seed, directions):
    report = check(at_kinks(seed), directions=directions)
    assert report, report
    assert report.set_aside > 0
    assert report.explanation == []
    assert f"{report.set_aside} of them lie at a kink of the loss and were set aside" in str(report)
    assert not check(Network(seed=seed)).set_aside


def test_correct_code_passes_where_every_unit_is_at_a_kink():
    network = Network(seed=1)
    network.parameters["W1"][:] = network.parameters["b1"][:] = 0.0
    report = check(network)
    assert report, report
    assert report.set_aside == 35


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    "mistake", ["summed over the batch", "no derivative in layer 1", "W2 transposed", "no L2", "sign"]
)
def test_kinks_hide_no_mistake(mistake, seed):
    network = at_kinks(seed)
    network.mistake = mistake
    report = check(network)
    assert not report
    expected = next(expected for name, _, expected in MUTANTS if name == mistake)
    assert re.search(expected, report.explanation[0]), report


def test_every_wrong_entry_stays_wrong_at_kinks():
    """Not one entry that is seven times too large is set aside, whether its own difference meets a kink or not."""
    for seed in range(4):
        for name in ("W1", "b1"):
            network = at_kinks(seed)
            assert (_verdicts(network, name) < WRONG).all()
            network.mistake = "summed over the batch"
            data = network(network.parameters)[1][name] - (2 * network.l2 * network.parameters[name]) * (name == "W1")
            assert (_verdicts(network, name) == WRONG)[np.abs(data).ravel() > 1e-6].all()
            assert np.abs(data).max() > 1e-3


def _verdicts(network, name):
    return Differences(FunctionSubject(network, network.parameters), 1e-5, 1e-5, 0).entries(name, 1000).verdict


def test_a_dead_unit_is_no_witness():
    """One unit at its kink: where it is dead nearby, a wrong gradient of zero equals the difference."""

    def unit(p, factor):
        return float(np.maximum(p["b"], 0).sum()), {"b": factor * (p["b"] > 0)}

    for seed in range(20):
        assert dd.gradcheck_function(lambda p: unit(p, 1.0), {"b": np.zeros(1)}, seed=seed)
        assert not dd.gradcheck_function(lambda p: unit(p, 7.0), {"b": np.zeros(1)}, seed=seed)


def test_without_hints_the_numbers_are_said():
    network = Network("summed over the batch", seed=3)
    report = dd.gradcheck_function(network, network.parameters)
    assert "is 7 the size of the batch? Then divide by it" in report.explanation[0]
    assert "the L2 term (lambda = 0.05) is right" in report.explanation[0]
    network.mistake = "no L2"
    report = dd.gradcheck_function(network, network.parameters)
    assert "the loss grows with 0.05 * sum(W^2) beyond it, so add 0.1 * W" in report.explanation[0]


def test_a_few_entries_of_a_large_array_tell_too():
    for mistake in ("summed over the batch", "no L2", "W1 reshaped", "W2 transposed", "no derivative in layer 1"):
        report = check(Network(mistake), entries=8)
        expected = next(expected for name, _, expected in MUTANTS if name == mistake)
        assert re.search(expected, report.explanation[0]), report


def test_two_mistakes_are_both_named():
    class Both(Network):
        def _spoil(self, g):
            g["b3"] *= self.n
            g["W1"] = g["W1"] - 2 * self.l2 * self.parameters["W1"]

    first, second = check(Both()).explanation
    assert first.startswith("The gradient of b3 is 7 times too large")
    assert second.startswith("The gradient of W1 is without the L2 term")


def test_an_unknown_mistake_is_said_to_be_one():
    class Odd(Network):
        def _spoil(self, g):
            g["W2"], g["b2"] = np.sin(9 * g["W2"]), np.cos(9 * g["b2"])

    (sentence,) = check(Odd()).explanation
    assert sentence.startswith("The gradients of W3 and b3 are right, the gradients of W2 and b2 are wrong")
    assert "times" not in sentence


def test_lists_as_the_course_has_them():
    """{"W": [W1, W2, W3], "b": [b1, b2, b3]}, and [W1, b1, W2, b2, W3, b3]."""
    network = Network("no derivative in layer 1")
    p = network.parameters

    def of_lists(q):
        loss, g = network({f"{k}{i}": q[k][i - 1] for k in "Wb" for i in LAYERS})
        return loss, {k: [g[f"{k}{i}"] for i in LAYERS] for k in "Wb"}

    report = dd.gradcheck_function(of_lists, {k: [p[f"{k}{i}"] for i in LAYERS] for k in "Wb"})
    assert report.errors.keys() == {f"{k}[{i}]" for k in "Wb" for i in range(3)}
    assert "gradients of W[1] and b[1] are right, the gradients of W[0] and b[0] are wrong" in report.explanation[0]

    def of_a_list(q):
        loss, g = network(dict(zip(p, q, strict=True)))
        return loss, [g[name] for name in p]

    report = dd.gradcheck_function(of_a_list, list(p.values()))
    assert "parameters[2] and parameters[3] are right" in report.explanation[0]


def test_directions_read_every_entry():
    """One wrong entry of 20 000 is found, then looked for."""
    rng = np.random.default_rng(0)
    X, t = rng.standard_normal((200, 5)), rng.standard_normal((100, 5))

    def squares(p, wrong=True):
        error = p["W"] @ X - t
        g = error @ X.T / 5
        if wrong:
            g[70, 150] += 0.5
        return 0.5 * np.square(error).sum() / 5, {"W": g}

    W = 0.1 * rng.standard_normal((100, 200))
    assert dd.gradcheck_function(lambda p: squares(p, False), {"W": W}, directions=3)
    assert dd.gradcheck_function(squares, {"W": W}, entries=50)  # fifty entries do not meet it
    report = dd.gradcheck_function(squares, {"W": W}, directions=3, entries=50)
    assert not report
    assert report.worst_name.startswith("W along direction ")
    assert report.entries == 3
    assert "raise `entries`" in report.explanation[0]
    report = dd.gradcheck_function(squares, {"W": W}, directions=3, entries=20_000)
    assert "of W only [70, 150]" in report.explanation[0]


def of(W, gradient=None):
    """The loss sum(W^2), with this gradient."""
    return float(np.square(W["W"]).sum()), {"W": 2 * W["W"] if gradient is None else gradient}


def _in_place(p):
    p["W"] *= 0.5
    return of(p)


@pytest.mark.parametrize(
    ("function", "error", "message"),
    [
        (3, TypeError, "function: expected a function of the parameters, got int"),
        (lambda p: 1.0, TypeError, r"function: expected it to return \(loss, gradients\), got float"),
        (lambda p: (p["W"], {}), TypeError, "function: expected the loss as one number"),
        (lambda p: (np.float32(of(p)[0]), {}), ValueError, "function: the loss is float32, .* convert the data too"),
        (lambda p: (of(p)[0], {"w": 1}), ValueError, r"gradients\['W'\]: expected the gradient of W, got none"),
        (lambda p: (of(p)[0], {"W": "2W"}), TypeError, r"gradients\['W'\]: expected an array of numbers, got str"),
        (lambda p: (np.random.default_rng().normal(), {}), ValueError, "function: two calls .* different losses"),
        (_in_place, ValueError, "function: it changed W in place"),
    ],
)
def test_bad_functions(function, error, message):
    with pytest.raises(error, match=message):
        dd.gradcheck_function(function, {"W": np.ones((2, 3))})


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"parameters": {}}, ValueError, "parameters: expected at least one array"),
        ({"parameters": {"W": "x"}}, TypeError, "W: expected an array of numbers, got str"),
        ({"parameters": {"W": [[np.nan]]}}, ValueError, "W: expected finite numbers"),
        ({"batch_size": 0}, ValueError, "batch_size"),
        ({"l2": -1.0}, ValueError, "l2"),
        ({"dropout": 1.0}, ValueError, "dropout"),
        ({"eps": 0}, ValueError, "eps"),
        ({"tolerance": "1"}, TypeError, "tolerance"),
        ({"entries": 0}, ValueError, "entries"),
        ({"directions": -1}, ValueError, "directions"),
    ],
)
def test_bad_arguments(arguments, error, message):
    with pytest.raises(error, match=message):
        dd.gradcheck_function(**{"function": of, "parameters": {"W": np.ones((2, 3))}, **arguments})


def test_the_users_arrays_are_left_alone():
    network = Network()
    before = {name: a.copy() for name, a in network.parameters.items()}
    check(network)
    for name, a in before.items():
        np.testing.assert_array_equal(network.parameters[name], a)


def test_a_loss_that_is_not_finite():
    (sentence,) = dd.gradcheck_function(lambda p: (np.inf, {"W": p["W"]}), {"W": np.ones(2)}).explanation
    assert "The loss itself is inf" in sentence


def test_rounding_is_called_so():
    report = dd.gradcheck_function(lambda p: (1.0, {"W": 0 * p["W"]}), {"W": np.ones(2)})
    assert "W                        rounding" in str(report)
    assert "passed: worst W[0], no more than rounding (tolerance 1e-05), analytic" in str(report)
    assert "0.00e+00" not in str(report)


def test_the_docstrings_example():
    assert doctest.testmod(gradients).attempted >= 4
    assert doctest.testmod(gradients).failed == 0


# ---- models: the layer to blame --------------------------------------------------------------------------------------


class Square(dd.nn.Module):
    """x^2, whose derivative lacks the 2."""

    def forward(self, x):
        self.x = x
        return x * x

    def backward(self, dy):
        return dy * self.x


class SummedBias(dd.nn.Linear):
    def _backward(self, dy, work, need_dx):
        dx = super()._backward(dy, work, need_dx)
        self.dbias *= 0
        return dx


class ScaledDropout(dd.nn.Dropout):
    def _backward(self, dy, work, need_dx):
        return super()._backward(dy, work, need_dx) * (1 - self.p)


class Unaveraged(dd.losses.CrossEntropy):
    def run(self, outputs, targets, sample_weight, gradient):
        loss, gradient = super().run(outputs, targets, sample_weight, gradient)
        return loss, gradient * len(outputs)


@pytest.mark.parametrize("backend", ["fast", "numpy"])
@pytest.mark.parametrize(
    ("layers", "loss", "expected"),
    [
        ([Square()], None, r"^Layer 1, Square\(\), checked by itself: the gradient of x is 2 times too small"),
        (
            [SummedBias(5, 5)],
            None,
            r"^Layer 1, SummedBias.*: the gradient of bias is zero .* of weight and x are right",
        ),
        (
            [ScaledDropout(0.3)],
            None,
            r"^Layer 1, ScaledDropout.*: the gradient of x is 1.42857 times too small: dropout's",
        ),
        (
            [dd.nn.Sequential(dd.nn.Tanh(), Square())],
            None,
            r"^Layer 1\.1, Square\(\), checked by itself: the gradient of x is 2 times too small",
        ),
        (
            [dd.nn.BatchNorm(5)],
            Unaveraged(),
            r"^The loss, Unaveraged\(\), .*: the gradient of outputs is 7 times too large",
        ),
    ],
)
def test_the_layer_to_blame(layers, loss, expected, backend):
    rng = np.random.default_rng(0)
    model = dd.nn.Sequential(dd.nn.Linear(6, 5), *layers, dd.nn.ReLU(), dd.nn.Linear(5, 3), dtype="float64", seed=0)
    before = np.concatenate([model.parameters, model.buffers])
    with dd.backend(backend):
        report = dd.gradcheck(model, rng.standard_normal((7, 6)), rng.integers(0, 3, 7), loss=loss)
    assert not report
    assert len(report.explanation) == 1
    assert re.search(expected, report.explanation[0]), report
    np.testing.assert_array_equal(np.concatenate([model.parameters, model.buffers]), before)


class TwoLayers(dd.nn.Module):
    """A model of a user's own that forgets ReLU on the way back."""

    def __init__(self, *, dtype="float64", seed=None):
        super().__init__(dtype=dtype, seed=seed)
        self.a, self.b = dd.nn.Linear(6, 5, dtype=dtype), dd.nn.Linear(5, 3, dtype=dtype)
        self._initialise(seed)
        self.join()

    def forward(self, x):
        return self.b.forward(np.maximum(self.a.forward(x), 0))

    def backward(self, dy):
        return self.a.backward(self.b.backward(dy))


def test_a_module_of_ones_own():
    rng = np.random.default_rng(0)
    report = dd.gradcheck(TwoLayers(seed=0), rng.standard_normal((7, 6)), rng.integers(0, 3, 7))
    assert re.search(rf"b\.weight and b\.bias are right, .* a\.weight and a\.bias are wrong: .*{FLAT}", str(report))


def test_a_convnet_along_directions():
    model = dd.models.ConvNet((4, 4), 8, 3, batch_norm=True, image=(8, 8, 3), dtype="float64", seed=0)
    x = np.random.default_rng(0).standard_normal((4, 8, 8, 3))
    report = dd.gradcheck(model, x, [0, 1, 2, 1], directions=3, check_input=True)
    assert report, report
    assert report.entries == 3 * len(report.errors)
