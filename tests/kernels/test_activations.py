import numpy as np
import pytest
from scipy import special

from dd2424fast.kernels import _team, activation_backward, activation_forward, residual_add_forward

ACTIVATIONS = ["identity", "relu", "leaky_relu", "tanh", "sigmoid", "gelu"]
SIZES = [0, 1, 3, 4, 7, 8, 9, 15, 16, 17, 31, 33, 1009, 16384, 3 * 16384 + 5]
FUSED = ACTIVATIONS[:-1]  # what a product can end with, and a sum
DTYPES = ["float32", "float64"]


def saved_of(z, activation):
    return z if activation == "gelu" else activation_forward.numpy(z, activation)


def ulps(got, exact):
    """Largest distance in units in the last place of got's dtype, where the exact value is normal."""
    normal = np.abs(exact) > np.finfo(got.dtype).tiny
    spacing = np.spacing(np.abs(exact[normal]).astype(got.dtype)).astype(exact.dtype)
    return float(np.max(np.abs(got[normal].astype(exact.dtype) - exact[normal]) / spacing))


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_derivative_of_the_definition(activation):
    z = np.random.default_rng(0).normal(size=(5, 7)) * 2
    step = 1e-6
    up, down = (activation_forward.numpy(z + s, activation) for s in (step, -step))
    got = activation_backward.numpy(np.ones_like(z), saved_of(z, activation), activation)
    np.testing.assert_allclose(got, (up - down) / (2 * step), rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_fast_equals_definition(activation, dtype):
    rng = np.random.default_rng(1)
    for n in SIZES:
        z, dy = (rng.normal(size=n) * 3).astype(dtype), rng.normal(size=n).astype(dtype)
        saved = saved_of(z, activation)
        wide = z.astype("float64"), dy.astype("float64"), saved.astype("float64")
        eps = np.finfo(dtype).eps
        rtol, atol = (1e-10, 1e-15) if dtype == "float64" else (20 * eps, 4 * eps)
        y, dz = activation_forward.fast(z, activation), activation_backward.fast(dy, saved, activation)
        assert y.dtype == dz.dtype == dtype
        np.testing.assert_allclose(y, activation_forward.numpy(wide[0], activation), rtol=rtol, atol=0.1 * atol)
        np.testing.assert_allclose(dz, activation_backward.numpy(wide[1], wide[2], activation), rtol=rtol, atol=atol)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_in_place_any_shape_and_threads(activation, dtype):
    rng = np.random.default_rng(2)
    z, dy = rng.normal(size=(2, 3, 5, 3001)).astype(dtype)
    z.setflags(write=False)
    before = _team.get_num_threads()
    results = []
    for threads in (1, 2):
        _team.set_num_threads(threads)
        y, dz = z.copy(), dy.copy()
        assert activation_forward(y, activation, out=y) is y
        assert activation_backward(dz, z, activation, out=dz) is dz
        results.append((y, dz))
    _team.set_num_threads(before)
    for a, b in zip(*results, strict=True):
        np.testing.assert_array_equal(a, b)
    np.testing.assert_array_equal(results[0][0], activation_forward(z, activation))
    np.testing.assert_array_equal(results[0][1], activation_backward(dy, z, activation))
    np.testing.assert_array_equal(activation_forward(z.T, activation), results[0][0].T)
    assert activation_forward(np.array(0.5, dtype), activation).shape == ()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("offset", [0, 1])
def test_results_too_large_for_a_cache(offset, dtype):
    n = 2**25 // np.dtype(dtype).itemsize + 11
    z = np.resize(np.random.default_rng(10).normal(size=1009).astype(dtype), n)
    out = np.empty(n + 1, dtype)[offset : offset + n]
    np.testing.assert_array_equal(activation_forward(z, "relu", out=out), np.maximum(z, 0))
    np.testing.assert_array_equal(activation_backward(z, z, "relu", out=out), np.where(z > 0, z, 0))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("activation", "most"), [("tanh", 3), ("sigmoid", 3)])
def test_accuracy_in_ulp(activation, most, dtype):
    if dtype == "float64" and np.finfo(np.longdouble).nmant < 63:
        pytest.skip("no wider type to compare with")
    z = np.random.default_rng(3).uniform(-1, 1, 60000).astype(dtype) * np.repeat(
        [1e-4, 0.1, 1, 5, 20, 80], 10000
    ).astype(dtype)
    wide = z.astype("float64" if dtype == "float32" else np.longdouble)
    exact = np.tanh(wide) if activation == "tanh" else 1 / (1 + np.exp(-wide))
    assert ulps(activation_forward.fast(z, activation), exact) <= most


def test_gelu_against_erf():
    z = np.concatenate([np.linspace(-8, 8, 20001), np.geomspace(1e-300, 1, 1000), -np.geomspace(1e-300, 37, 1000)])
    exact = z * special.erfc(-z / np.sqrt(2)) / 2
    got = activation_forward.fast(z, "gelu")
    np.testing.assert_allclose(got, exact, rtol=1e-12, atol=1e-300)
    near = np.abs(z) < 0.1
    assert np.abs(got - z * (1 + special.erf(z / np.sqrt(2))) / 2)[near].max() <= 1e-16
    narrow = z[np.abs(z) < 5].astype("float32")
    exact = narrow.astype("float64") * special.ndtr(narrow.astype("float64"))
    np.testing.assert_allclose(activation_forward.fast(narrow, "gelu"), exact, rtol=32 * 2.0**-24, atol=1e-44)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("backend", ["fast", "numpy"])
def test_special_values(backend, dtype):
    z = np.array([np.nan, np.inf, -np.inf, 0.0, -0.0, 200, -200], dtype)
    expected = {
        "identity": z,
        "relu": [np.nan, np.inf, 0, 0, 0, 200, 0],
        "leaky_relu": [np.nan, np.inf, -np.inf, 0, 0, 200, -2],
        "tanh": [np.nan, 1, -1, 0, 0, 1, -1],
        "sigmoid": [np.nan, 1, 0, 0.5, 0.5, 1, 0],
        "gelu": [np.nan, np.inf, np.nan, 0, 0, 200, 0],
    }
    for activation, y in expected.items():
        with np.errstate(all="ignore"):
            got = getattr(activation_forward, backend)(z, activation)
            np.testing.assert_allclose(got, y, rtol=1e-6, atol=1e-80)
            slope = getattr(activation_backward, backend)(np.full(7, np.nan, dtype), z, activation)
        assert np.isnan(slope).all()
    one = np.ones(3, dtype)
    kink = np.array([0, 1, -1], dtype)
    np.testing.assert_array_equal(activation_backward(one, kink, "relu"), [0, 1, 0])
    np.testing.assert_allclose(activation_backward(one, kink, "leaky_relu"), [0.01, 1, 0.01], rtol=1e-6)


@pytest.mark.parametrize("dtype", DTYPES)
def test_pytorch_agrees(dtype):
    torch = pytest.importorskip("torch")
    functions = {
        "relu": torch.relu, "leaky_relu": torch.nn.functional.leaky_relu, "tanh": torch.tanh,
        "sigmoid": torch.sigmoid, "gelu": torch.nn.functional.gelu,
    }  # fmt: skip
    z, dy = np.random.default_rng(4).normal(size=(2, 9, 31)).astype(dtype)
    for activation, function in functions.items():
        theirs = torch.from_numpy(z).requires_grad_()
        y = function(theirs)
        y.backward(torch.from_numpy(dy))
        ours = activation_forward(z, activation)
        tolerance = {"rtol": 1e-5, "atol": 1e-6} if dtype == "float32" else {"rtol": 1e-10, "atol": 1e-14}
        np.testing.assert_allclose(ours, y.detach(), **tolerance)
        dz = activation_backward(dy, z if activation == "gelu" else ours, activation)
        np.testing.assert_allclose(dz, theirs.grad, **tolerance)


def test_bad_input():
    z = np.zeros((4, 3))
    with pytest.raises(ValueError, match=r"activation: expected one of identity.*got 'softplus'"):
        activation_forward(z, "softplus")
    with pytest.raises(TypeError, match="z: expected an ndarray"):
        activation_forward([1.0], "relu")
    with pytest.raises(TypeError, match="z: expected dtype float32 or float64, got int64"):
        activation_forward(np.arange(3), "relu")
    with pytest.raises(ValueError, match=r"out: expected shape \(4, 3\), got \(3, 4\)"):
        activation_forward(z, "relu", out=np.zeros((3, 4)))
    with pytest.raises(TypeError, match="out: expected dtype float64"):
        activation_forward(z, "relu", out=np.zeros((4, 3), "float32"))
    with pytest.raises(ValueError, match="out: expected memory of its own"):
        activation_forward(z[:3], "relu", out=z[1:])
    with pytest.raises(ValueError, match="out: expected a C-contiguous"):
        activation_forward(z.T, "relu", out=z.T)
    read_only = np.zeros(3)
    read_only.setflags(write=False)
    with pytest.raises(ValueError, match="out: expected a writable"):
        activation_forward(read_only, "relu", out=read_only)
    with pytest.raises(ValueError, match=r"saved: expected shape \(4, 3\), got \(4, 2\)"):
        activation_backward(z, z[:, :2], "relu")
    with pytest.raises(TypeError, match="saved: expected dtype float64, got float32"):
        activation_backward(z, z.astype("float32"), "relu")
    saved = np.zeros((4, 3))
    with pytest.raises(ValueError, match=r"out: expected memory of its own.*overlaps saved"):
        activation_backward(z, saved, "relu", out=saved)


# ---- the end of a residual block -------------------------------------------------------------------------------------


@pytest.mark.parametrize("activation", FUSED)
def test_gradient_of_a_residual_sum_by_central_differences(activation):
    rng = np.random.default_rng(5)
    x, skip, u = rng.normal(size=(3, 4, 5)) * 2
    step = 1e-6
    got = activation_backward.numpy(u, residual_add_forward.numpy(x, skip, activation), activation)
    for a, b in (((x + s, skip) for s in (step, -step)), ((x, skip + s) for s in (step, -step))):
        slope = (residual_add_forward.numpy(*a, activation) - residual_add_forward.numpy(*b, activation)) / (2 * step)
        np.testing.assert_allclose(got, slope * u, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("activation", FUSED)
def test_fast_residual_sum_equals_definition(activation, dtype):
    rng = np.random.default_rng(6)
    for n in SIZES:
        x, skip = (rng.normal(size=(2, n)) * 3).astype(dtype)
        exact = residual_add_forward.numpy(x.astype("float64"), skip.astype("float64"), activation)
        eps = np.finfo(dtype).eps
        got = residual_add_forward.fast(x, skip, activation)
        assert (got.dtype, got.shape) == (dtype, (n,))
        # x + skip is rounded before the activation, whose slope is at most 1.
        allowed = 10 * eps * np.abs(exact) + eps * (np.abs(x) + np.abs(skip))
        assert (np.abs(got - exact) <= allowed).all()
        np.testing.assert_array_equal(residual_add_forward.fast(x, skip, "relu"), np.maximum(x + skip, 0))
    np.testing.assert_array_equal(residual_add_forward.fast(x, skip), x + skip)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("activation", FUSED)
def test_residual_sum_in_place_any_shape_and_threads(activation, dtype):
    x, skip = np.random.default_rng(7).normal(size=(2, 2, 5, 3, 3001)).astype(dtype)
    expected = residual_add_forward.numpy(x, skip, activation)
    before = _team.get_num_threads()
    results = []
    for threads in (1, 2):
        _team.set_num_threads(threads)
        over_x, over_skip, own = x.copy(), skip.copy(), np.full_like(x, np.nan)
        assert residual_add_forward.fast(over_x, skip, activation, out=over_x) is over_x
        assert residual_add_forward.fast(x, over_skip, activation, out=over_skip) is over_skip
        assert residual_add_forward.fast(x, skip, activation, out=own) is own
        results += [over_x, over_skip, own]
    _team.set_num_threads(before)
    for got in results[1:]:
        np.testing.assert_array_equal(got, results[0])
    np.testing.assert_allclose(results[0], expected, rtol=20 * np.finfo(dtype).eps, atol=1e-30)
    np.testing.assert_array_equal(residual_add_forward.fast(x.T, skip.T, activation), results[0].T)
    twice = x.copy()
    residual_add_forward.fast(twice, twice, "identity", out=twice)
    np.testing.assert_array_equal(twice, 2 * x)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("offset", [0, 1])
def test_residual_sums_too_large_for_a_cache(offset, dtype):
    n = 2**25 // np.dtype(dtype).itemsize + 11
    x = np.resize(np.random.default_rng(8).normal(size=1009).astype(dtype), n)
    skip, memory = x[::-1].copy(), np.empty(n + 1, dtype)
    out = memory[offset : offset + n]
    np.testing.assert_array_equal(residual_add_forward(x, skip, "relu", out=out), np.maximum(x + skip, 0))
    np.testing.assert_array_equal(residual_add_forward(x, skip, out=skip), x + x[::-1])


@pytest.mark.parametrize("backend", ["fast", "numpy"])
def test_a_residual_sum_keeps_nan_and_infinity(backend):
    x = np.array([np.nan, 1, np.inf, np.inf, -np.inf, 0], "float32")
    skip = np.array([1, np.nan, 1, -np.inf, 3, -0.0], "float32")
    run = getattr(residual_add_forward, backend)
    with np.errstate(invalid="ignore"):
        np.testing.assert_array_equal(run(x, skip, "relu"), [np.nan, np.nan, np.inf, np.nan, 0, 0])
        np.testing.assert_array_equal(np.isnan(run(x, skip, "tanh")), np.isnan(x + skip))


def test_bad_input_of_a_residual_sum():
    x, skip = np.zeros((4, 3)), np.ones((4, 3))
    above, below = x[:3], x[1:]
    for error, message, arguments in (
        (ValueError, "activation: expected one of identity, .*sigmoid, got 'gelu'", (x, skip, "gelu")),
        (ValueError, "activation: expected one of", (x, skip, None)),
        (TypeError, "x: expected an ndarray", (1.0, skip)),
        (TypeError, "x: expected dtype float32 or float64, got float16", (x.astype("float16"), skip)),
        (ValueError, r"skip: expected shape \(4, 3\), got \(3,\)", (x, skip[0])),
        (TypeError, "skip: expected dtype float64, got float32", (x, skip.astype("float32"))),
        (ValueError, r"out: expected shape \(4, 3\)", (x, skip, "relu", x.T)),
        (TypeError, "out: expected dtype float64", (x, skip, "relu", np.zeros((4, 3), "float32"))),
        (ValueError, "out: expected memory of its own.*overlaps x", (x[:3], skip[:3], "relu", x[1:])),
        (ValueError, "out: expected memory of its own.*overlaps skip", (x[:3], skip[:3], "relu", skip[1:])),
        (ValueError, "out: expected memory of its own.*overlaps skip", (above, below, "relu", above)),
        (ValueError, "out: expected memory of its own.*overlaps x", (above, below, "relu", below)),
    ):
        with pytest.raises(error, match=message):
            residual_add_forward(*arguments)
