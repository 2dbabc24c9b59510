import copy
import math
import os
import pickle

import numba
import numpy as np
import pytest

from dd2424fast import kernels
from dd2424fast.kernels import custom_activation as make
from dd2424fast.kernels import custom_activation_backward, custom_activation_forward

module = __import__("sys").modules[make.__module__]
compiled = pytest.mark.skipif(bool(numba.config.DISABLE_JIT), reason="NUMBA_DISABLE_JIT is set")

SLOPE = 0.1


def swish(z):
    return z / (1 + np.exp(-z))


def swish_derivative(z):
    s = 1 / (1 + np.exp(-z))
    return s + z * s * (1 - s)


def leaky(z):
    return z if z > 0 else SLOPE * z


def leaky_derivative(z):
    return 1.0 if z > 0 else SLOPE


def scaled(a):
    return make(lambda z: a * math.tanh(z), lambda z: a * (1 - math.tanh(z) ** 2))


ACTIVATIONS = {
    "swish": make(swish, swish_derivative),
    "leaky": make(leaky, leaky_derivative),
    "relu": make(lambda z: max(z, 0.0), lambda z: z > 0),
    "cube": make(lambda z, k=0.5: k * z**3, lambda z, k=1.5: k * z * z),
    "closure": scaled(1.7),
    "ufunc": make(np.tanh, lambda z: 1 - np.tanh(z) ** 2),
}


@pytest.fixture(params=ACTIVATIONS)
def activation(request):
    return ACTIVATIONS[request.param]


def test_the_definition_is_the_functions_element_by_element():
    z = np.array([-2.0, -0.5, 0.0, 3.0])
    np.testing.assert_allclose(custom_activation_forward.numpy(z, ACTIVATIONS["leaky"]), [-0.2, -0.05, 0, 3])
    np.testing.assert_allclose(custom_activation_backward.numpy(z, z, ACTIVATIONS["leaky"]), [-0.2, -0.05, 0, 3])
    np.testing.assert_allclose(custom_activation_backward.numpy(2 * z, z, ACTIVATIONS["cube"]), 3 * z**3)


def test_gradient_of_the_definition(activation):
    rng = np.random.default_rng(1)
    z, dy, eps = rng.standard_normal((3, 5)), rng.standard_normal((3, 5)), 1e-6
    numeric = (
        custom_activation_forward.numpy(z + eps, activation) - custom_activation_forward.numpy(z - eps, activation)
    ) / (2 * eps)
    np.testing.assert_allclose(custom_activation_backward.numpy(dy, z, activation), dy * numeric, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("shape", [(), (0,), (1,), (17,), (3, 5, 7), (16, 16)])
def test_fast_equals_the_definition(activation, dtype, shape):
    rng = np.random.default_rng(2)
    z, dy = np.asarray(3 * rng.standard_normal(shape), dtype), np.asarray(rng.standard_normal(shape), dtype)
    kept = z.copy(), dy.copy()
    y, dz = activation.forward(z), activation.backward(dy, z)
    assert y.dtype == dz.dtype == z.dtype
    assert y.shape == dz.shape == z.shape
    wide, dwide = z.astype(float), dy.astype(float)
    tolerance = 16 * np.finfo(dtype).eps
    np.testing.assert_allclose(y, custom_activation_forward.numpy(wide, activation), rtol=tolerance, atol=tolerance)
    np.testing.assert_allclose(
        dz, custom_activation_backward.numpy(dwide, wide, activation), rtol=4 * tolerance, atol=4 * tolerance
    )
    np.testing.assert_array_equal(z, kept[0])
    np.testing.assert_array_equal(dy, kept[1])


def test_both_backends_through_the_one_door():
    z = np.linspace(-2, 2, 7)
    fast = ACTIVATIONS["swish"].forward(z)
    token = kernels._dispatch.choose_backend("numpy")
    try:
        np.testing.assert_allclose(ACTIVATIONS["swish"].forward(z), fast, rtol=1e-14)
    finally:
        kernels._dispatch.forget_backend(token)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("run", [lambda kernel, *a: kernel.fast(*a), lambda kernel, *a: kernel.numpy(*a)])
def test_nan_stays_even_where_the_function_hides_it(run, dtype):
    z = np.array([np.nan, 1, -1] * 12, dtype)
    dy = np.array([1, np.nan, 1] * 12, dtype)
    relu = ACTIVATIONS["leaky"]
    np.testing.assert_array_equal(np.isnan(run(custom_activation_forward, z, relu)), np.isnan(z))
    np.testing.assert_array_equal(np.isnan(run(custom_activation_backward, dy, z, relu)), np.isnan(z + dy))


@compiled
def test_division_by_zero_and_overflow_give_what_ieee_gives():
    inverse = make(lambda z: 1 / z, lambda z: -1 / z**2)
    np.testing.assert_array_equal(inverse.forward(np.array([0.0, np.inf, 2.0])), [np.inf, 0, 0.5])
    np.testing.assert_array_equal(
        custom_activation_forward.numpy(np.array([0.0, np.inf, 2.0]), inverse), [np.inf, 0, 0.5]
    )
    logistic = make(lambda z: 1 / (1 + math.exp(-z)), lambda z: math.exp(-z) / (1 + math.exp(-z)) ** 2)
    assert logistic.forward(np.array([-1e4]))[0] == 0


def test_layouts_and_results():
    a = ACTIVATIONS["swish"]
    z = np.linspace(-3, 3, 24).reshape(4, 6)
    expected, gradient = a.forward(z), a.backward(z, z)
    locked = z.copy()
    locked.flags.writeable = False
    np.testing.assert_array_equal(a.forward(locked), expected)
    np.testing.assert_array_equal(a.forward(np.asfortranarray(z)), expected)
    np.testing.assert_array_equal(a.forward(np.repeat(z, 2, axis=1)[:, ::2]), expected)
    out = np.empty_like(z)
    assert a.forward(z, out) is out
    np.testing.assert_array_equal(out, expected)
    for place in (0, 1):
        both = [z.copy(), z.copy()]
        assert a.backward(*both, out=both[place]) is both[place]
        np.testing.assert_array_equal(both[place], gradient)
    assert a.forward(z, z) is z
    np.testing.assert_array_equal(z, expected)
    with pytest.raises(ValueError, match="out: expected a writable array"):
        a.forward(locked, locked)
    buffer = np.zeros(8)
    with pytest.raises(ValueError, match="overlaps z"):
        a.forward(buffer[:6], buffer[2:])


def test_wrong_arrays_are_refused():
    a, z = ACTIVATIONS["swish"], np.zeros((2, 3))
    for error, message, call in [
        (TypeError, "z: expected an ndarray", lambda: a.forward([1.0])),
        (TypeError, "z: expected dtype float32 or float64, got int64", lambda: a.forward(np.zeros(3, np.int64))),
        (TypeError, "dy: expected dtype float64, got float32", lambda: a.backward(z.astype(np.float32), z)),
        (ValueError, r"dy: expected shape \(2, 3\), got \(3, 2\)", lambda: a.backward(z.T, z)),
        (ValueError, "out: expected shape", lambda: a.forward(z, np.zeros(6))),
        (TypeError, "activation: expected one made by custom_activation", lambda: custom_activation_forward(z, "relu")),
    ]:
        with pytest.raises(error, match=message):
            call()


def test_functions_that_are_none_are_refused():
    good = ACTIVATIONS["swish"].f
    for f, derivative, message in [
        (None, good, "f: expected a function of one number, got NoneType"),
        (good, 1.0, "derivative: expected a function of one number, got float"),
        (lambda: 1.0, good, "f: expected a function of one number, but .*lambda.* fails at"),
        (lambda z: None, good, "f: expected .*lambda.* to return a number, got NoneType"),
        (good, lambda z: "1", "derivative: expected .*lambda.* to return a number, got str"),
        (lambda z: z + 1j, good, "to return a number, got complex"),
    ]:
        with pytest.raises(TypeError, match=message):
            make(f, derivative)


@compiled
def test_what_numba_cannot_compile_is_named():
    def odd(z):
        return z * os.getpid() / os.getpid()

    a = make(odd, lambda z: 1.0)
    message = r"odd \(line \d+ of .*test_custom_activation.py\): cannot be compiled by Numba: \w.*getpid"
    with pytest.raises(TypeError, match=message) as caught:
        a.forward(np.zeros(3))
    assert "\n" not in str(caught.value)
    assert "\x1b" not in str(caught.value)
    np.testing.assert_array_equal(a.backward(np.ones(3), np.zeros(3)), 1)


@compiled
def test_errors_of_the_function_itself_come_through():
    def strict(z):
        if z > 100:
            raise OverflowError("too large")
        return z

    with pytest.raises(OverflowError, match="too large"):
        make(strict, lambda z: 1.0).forward(np.array([101.0]))


@pytest.mark.parametrize(
    "derivative",
    [lambda z: 1.01, lambda z: -1.0, lambda z: math.nan, lambda z: 1.0 if z < 5 else 0.0, lambda z: math.inf],
)
def test_a_wrong_derivative_is_refused_and_the_point_named(derivative):
    with pytest.raises(ValueError, match=r"derivative: expected 1 at z = -?\d\.\d+, the central difference of .*, got"):
        make(lambda z: z + 0.5, derivative)
    assert make(lambda z: z + 0.5, derivative, check_derivative=False)


@pytest.mark.parametrize(
    ("f", "derivative"),
    [
        (lambda z: abs(z - 0.43), lambda z: 1.0 if z > 0.43 else -1.0),
        (lambda z: math.log(z), lambda z: 1 / z),
        (lambda z: math.exp(z**4), lambda z: 4 * z**3 * math.exp(z**4)),
        (lambda z: 1 / (1 + math.exp(-50 * z)), lambda z: 50 * math.exp(-50 * z) / (1 + math.exp(-50 * z)) ** 2),
    ],
)
def test_kinks_and_points_without_a_value_are_tolerated(f, derivative):
    assert make(f, derivative)


def test_copies():
    a = ACTIVATIONS["swish"]
    assert copy.deepcopy({"a": a})["a"] is a
    assert copy.copy(a) is a
    z = np.linspace(-1, 1, 5)
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(a)).forward(z), a.forward(z))


def test_closures_of_one_source_stay_apart(monkeypatch):
    z = np.ones(1)
    np.testing.assert_allclose([scaled(a).forward(z)[0] for a in (1.0, 2.0, 1.0)], np.tanh(1) * np.array([1, 2, 1]))
    texts = [module._identity(scaled(a).f) for a in (1.0, 2.0, 1.0)]
    assert texts[0] == texts[2] != texts[1]
    before = module._identity(leaky)
    monkeypatch.setitem(globals(), "SLOPE", 0.2)
    assert module._identity(leaky) != before


def test_identity_follows_what_is_called_and_gives_up_where_it_cannot():
    def inner(z):
        return z + 1

    def outer(z):
        return inner(z)

    before = module._identity(outer)
    inner.__code__ = (lambda z: z + 2).__code__
    assert None is not before != module._identity(outer)
    table = np.ones(3)
    assert module._identity(lambda z: z + table[0]) is None
    assert module._identity(lambda z: os.getpid()) is None

    def recursive(z):
        return recursive(z - 1) if z > 0 else z

    def there(z):
        return back(z)

    def back(z):
        return there(z)

    assert module._identity(recursive) is module._identity(there) is None
    assert module._identity(lambda z, k=1: z) != module._identity(lambda z, k=2: z)
    assert module._identity(lambda z: z if z > 0 else z * 2) != module._identity(lambda z: z if z > 0 else z * 3)
