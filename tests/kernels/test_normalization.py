"""Normalisation: the definitions against central differences and PyTorch, the fast kernels against the definitions."""

import numpy as np
import pytest

from dd2424fast import kernels as k
from dd2424fast.kernels import _team

SIZES = [(2, 3), (3, 1), (5, 16), (127, 17), (129, 31), (255, 33), (256, 50), (383, 65), (515, 130)]
FUSED = ["identity", "relu", "leaky_relu", "tanh", "sigmoid"]


@pytest.fixture
def rng():
    return np.random.default_rng(7)


@pytest.fixture(autouse=True)
def _threads():
    before = _team.get_num_threads()
    yield
    _team.set_num_threads(before)


def state(rng, N, C, dtype="float64", offset=3.0):
    """x, gamma, beta, running_mean, running_var, dy: nothing zero, nothing symmetric."""
    x = rng.normal(offset, 1.7, (N, C)) * np.linspace(0.3, 2, C)
    arrays = (
        x,
        rng.normal(1.2, 0.4, C),
        rng.normal(0.3, 1, C),
        rng.normal(0.5, 1, C),
        rng.uniform(0.4, 2, C),
        rng.normal(0.2, 1, (N, C)),
    )
    return [a.astype(dtype) for a in arrays]


def close(got, ref, scale=1.0, factor=40):
    """float64: relative to the scale of the sum; float32: a budget of `factor` roundings of it."""
    assert got.shape == ref.shape
    eps = 1e-11 if got.dtype == np.float64 else factor * np.finfo(np.float32).eps
    np.testing.assert_array_less(np.abs(got - ref), eps * (np.abs(ref) + scale) + 1e-300)


def difference(f, a, u, step=1e-5):
    """The derivative of f along u at a, four points."""
    return (8 * (f(a + step * u) - f(a - step * u)) - (f(a + 2 * step * u) - f(a - 2 * step * u))) / (12 * step)


@pytest.mark.parametrize("layer", ["batch", "frozen", "layer"])
@pytest.mark.parametrize(("N", "C"), [(4, 3), (3, 5)])
def test_gradients_of_the_definition(rng, layer, N, C):
    x, gamma, beta, mean, var, dy = state(rng, N, C)

    def loss(x, gamma, beta):
        if layer == "batch":
            y = k.batch_norm_forward.numpy(x, gamma, beta, mean.copy(), var.copy())[0]
        elif layer == "frozen":
            y = k.batch_norm_inference.numpy(x, gamma, beta, mean, var)
        else:
            y = k.layer_norm_forward.numpy(x, gamma, beta)[0]
        return (y * dy).sum()

    if layer == "batch":
        got = k.batch_norm_backward.numpy(
            dy, x, gamma, *k.batch_norm_forward.numpy(x, gamma, beta, mean.copy(), var.copy())[1:]
        )
    elif layer == "frozen":
        got = k.batch_norm_backward.numpy(dy, x, gamma, mean, 1 / np.sqrt(var + 1e-5), frozen=True)
    else:
        got = k.layer_norm_backward.numpy(dy, x, gamma, *k.layer_norm_forward.numpy(x, gamma, beta)[1:])
    arguments = [x, gamma, beta]
    for position, gradient in enumerate(got):
        for index in np.ndindex(gradient.shape):
            u = np.zeros_like(arguments[position])
            u[index] = 1
            ref = difference(
                lambda a, p=position: loss(*(a if q == p else b for q, b in enumerate(arguments))),
                arguments[position],
                u,
            )
            assert gradient[index] == pytest.approx(ref, rel=1e-7, abs=1e-8)


ACTIVATIONS = ["relu", "leaky_relu", "tanh", "sigmoid"]


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_gradients_of_the_definition_with_an_activation(rng, activation, frozen):
    x, gamma, beta, mean, var, dy = state(rng, 4, 3)

    def forward(x, gamma, beta):
        if frozen:
            return k.batch_norm_inference.numpy(x, gamma, beta, mean, var, activation=activation)
        return k.batch_norm_forward.numpy(x, gamma, beta, mean.copy(), var.copy(), activation=activation)[0]

    batch = k.batch_norm_forward.numpy(x, gamma, beta, mean.copy(), var.copy())[1:]
    statistics = (mean, 1 / np.sqrt(var + 1e-5)) if frozen else batch
    got = k.batch_norm_backward.numpy(dy, x, gamma, *statistics, frozen=frozen, beta=beta, activation=activation)
    for position, gradient in enumerate(got):
        arguments = [x, gamma, beta]
        direction = rng.standard_normal(gradient.shape)

        def loss(a, p=position, arguments=tuple(arguments)):
            return (forward(*arguments[:p], a, *arguments[p + 1 :]) * dy).sum()

        ref = difference(loss, arguments[position], direction)
        assert (gradient * direction).sum() == pytest.approx(ref, rel=1e-7, abs=1e-8)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize(("N", "C"), [(1, 7), (2, 64), (5, 3), (300, 33)])
def test_backward_of_norm_and_activation_is_that_of_each(rng, N, C, activation, dtype):
    """The activation's input, computed again, has the sign that it had in the forward pass, bit for bit."""
    x, gamma, beta, mean, var, dy = state(rng, N, C, dtype)
    frozen = N == 1
    results = []
    for threads in (1, 2):
        _team.set_num_threads(threads)
        if frozen:
            m, r = mean, 1 / np.sqrt(var + var.dtype.type(1e-5))
            y = k.activation_forward(((x - m) * (gamma * r) + beta), activation)
        else:
            y, m, r = k.batch_norm_forward.fast(x, gamma, beta, mean.copy(), var.copy(), activation=activation)
        inner = k.activation_backward.fast(dy, y, activation)
        want = k.batch_norm_backward.fast(inner, x, gamma, m, r, frozen=frozen)
        got = k.batch_norm_backward.fast(dy, x, gamma, m, r, frozen=frozen, beta=beta, activation=activation)
        for a, b in zip(got, want, strict=True):
            close(a, b, np.abs(b).max() + np.abs(dy).sum(axis=0).max(), factor=12)
        results.append([a.tobytes() for a in got])
    assert results[0] == results[1]


def test_an_activation_needs_beta(rng):
    x, gamma, _, mean, var, dy = state(rng, 4, 3)
    with pytest.raises(ValueError, match="beta: expected that of the forward pass"):
        k.batch_norm_backward(dy, x, gamma, mean, var, activation="relu")
    with pytest.raises(ValueError, match=r"beta: expected shape \(3,\), got \(4,\)"):
        k.batch_norm_backward(dy, x, gamma, mean, var, beta=np.zeros(4), activation="relu")


def test_values_by_hand():
    x = np.array([[1.0, 2.0], [3.0, 6.0]])
    mean, var = np.zeros(2), np.ones(2)
    for run in (k.batch_norm_forward.numpy, k.batch_norm_forward.fast):
        rm, rv = mean.copy(), var.copy()
        y, m, r = run(x, np.array([2.0, 1.0]), np.array([0.0, 5.0]), rm, rv, momentum=0.5, eps=0.0)
        np.testing.assert_allclose(y, [[-2, 4], [2, 6]])
        np.testing.assert_allclose([m, r, rm, rv], [[2, 4], [1, 0.5], [1, 2], [1.5, 4.5]])  # unbiased variances 2 and 8
    for run in (k.layer_norm_forward.numpy, k.layer_norm_forward.fast):
        y, m, r = run(x, np.array([2.0, 1.0]), np.array([0.0, 5.0]), eps=0.0)
        np.testing.assert_allclose(y, [[-2, 6], [-2, 6]])
        np.testing.assert_allclose([m, r], [[1.5, 4.5], [2, 1 / 1.5]])


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(("N", "C"), SIZES)
def test_batch_norm_equals_its_definition(rng, N, C, dtype):
    x, gamma, beta, mean, var, dy = arguments = state(rng, N, C, dtype)
    exact = [a.astype(np.float64) for a in arguments]
    ref_mean, ref_var = exact[3].copy(), exact[4].copy()
    ref = k.batch_norm_forward.numpy(*exact[:3], ref_mean, ref_var, 0.3)
    inference = k.batch_norm_inference.numpy(*exact[:5])
    results, scale = [], np.abs(ref[0]).max() + np.abs(exact[0] * ref[2]).max()  # an error of the mean is relative to x
    for threads in (1, 2):
        _team.set_num_threads(threads)
        running = mean.copy(), var.copy()
        y, m, r = k.batch_norm_forward.fast(x, gamma, beta, *running, 0.3)
        close(y, ref[0], scale)
        for got, want in zip((m, r, *running), (*ref[1:], ref_mean, ref_var), strict=True):
            close(got, want, factor=8)
        z = k.batch_norm_inference.fast(x, gamma, beta, mean, var)
        close(z, inference, scale)
        results.append([a.tobytes() for a in (y, m, r, *running, z)])
        for frozen in (False, True):
            exact_m, exact_r = m.astype(np.float64), r.astype(np.float64)
            want = k.batch_norm_backward.numpy(exact[5], exact[0], exact[1], exact_m, exact_r, frozen=frozen)
            sums = (np.abs(exact[5] * (exact[0] - exact_m) * exact_r)).sum(axis=0), np.abs(exact[5]).sum(axis=0)
            got = k.batch_norm_backward.fast(dy, x, gamma, m, r, frozen=frozen)
            close(got[0], want[0], np.abs(exact[1] * exact_r).max() * 5)
            close(got[1], want[1], sums[0], factor=12)
            close(got[2], want[2], sums[1], factor=12)
            added = k.batch_norm_backward.fast(
                dy, x, gamma, m, r, got[0].copy(), gamma.copy(), beta.copy(), accumulate=True, frozen=frozen
            )
            assert added[0].tobytes() == got[0].tobytes()
            close(added[1], want[1] + gamma, sums[0], factor=12)
            close(added[2], want[2] + beta, sums[1], factor=12)
            results[-1] += [a.tobytes() for a in (*got, *added)]
    assert results[0] == results[1]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(("N", "C"), [(1, 7), *SIZES])
def test_layer_norm_equals_its_definition(rng, N, C, dtype):
    x, gamma, beta, _, _, dy = arguments = state(rng, N, C, dtype)
    exact = [a.astype(np.float64) for a in arguments]
    ref = k.layer_norm_forward.numpy(*exact[:3], 0.01)
    results = []
    for threads in (1, 2):
        _team.set_num_threads(threads)
        y, m, r = k.layer_norm_forward.fast(x, gamma, beta, 0.01)
        close(y, ref[0], np.abs(ref[0]).max() + np.abs(exact[0] * ref[2][:, None]).max())
        close(m, ref[1], np.abs(exact[0]).mean(axis=1), factor=8)
        close(r, ref[2], factor=8)
        exact_m, exact_r = m.astype(np.float64), r.astype(np.float64)
        want = k.layer_norm_backward.numpy(exact[5], exact[0], exact[1], exact_m, exact_r)
        sums = (
            (np.abs(exact[5] * (exact[0] - exact_m[:, None]) * exact_r[:, None])).sum(axis=0),
            np.abs(exact[5]).sum(axis=0),
        )
        got = k.layer_norm_backward.fast(dy, x, gamma, m, r)
        close(got[0], want[0], exact_r.max() * 10)
        close(got[1], want[1], sums[0], factor=12)
        close(got[2], want[2], sums[1], factor=12)
        added = k.layer_norm_backward.fast(
            dy, x, gamma, m, r, got[0].copy(), gamma.copy(), beta.copy(), accumulate=True
        )
        assert added[0].tobytes() == got[0].tobytes()
        close(added[1], want[1] + gamma, sums[0], factor=12)
        close(added[2], want[2] + beta, sums[1], factor=12)
        results.append([a.tobytes() for a in (y, m, r, *got, *added)])
    assert results[0] == results[1]


@pytest.mark.parametrize("activation", FUSED)
def test_activation_at_the_end(rng, activation):
    x, gamma, beta, mean, var, _ = state(rng, 131, 21)
    beta -= 0.5
    y = k.batch_norm_forward.numpy(x, gamma, beta, mean.copy(), var.copy())[0]
    ref = k.activation_forward.numpy(y, activation)
    for run in (k.batch_norm_forward.numpy, k.batch_norm_forward.fast):
        close(run(x, gamma, beta, mean.copy(), var.copy(), activation=activation)[0], ref)
    ref = k.activation_forward.numpy(k.batch_norm_inference.numpy(x, gamma, beta, mean, var), activation)
    for run in (k.batch_norm_inference.numpy, k.batch_norm_inference.fast):
        close(run(x, gamma, beta, mean, var, activation=activation), ref)


def test_sums_stay_precise_in_float32(rng):
    """100,000 rows far from zero: a plain float32 sum loses the mean, and x^2 - mean^2 the variance."""
    x = rng.normal(1000, 1, (100_000, 3)).astype(np.float32)
    one, zero = np.ones(3, np.float32), np.zeros(3, np.float32)
    y, mean, rstd = k.batch_norm_forward.fast(x, one, zero, zero.copy(), one.copy())
    exact = x.astype(np.float64)
    np.testing.assert_allclose(mean, exact.mean(axis=0), rtol=1.2e-7)
    np.testing.assert_allclose(rstd, 1 / np.sqrt(exact.var(axis=0) + 1e-5), rtol=5e-7)
    dgamma = k.batch_norm_backward.fast(y, x, one, mean, rstd)[1]
    xhat = (exact - mean) * rstd.astype(np.float64)
    np.testing.assert_allclose(dgamma, (y * xhat).sum(axis=0), rtol=3e-6)


def test_identities(rng):
    x, gamma, beta, mean, var, dy = state(rng, 300, 9)
    y, m, r = k.batch_norm_forward.fast(x, gamma, beta, mean, var, eps=0.0)
    np.testing.assert_allclose(y.mean(axis=0), beta, atol=1e-12)
    np.testing.assert_allclose(y.std(axis=0), np.abs(gamma), rtol=1e-12)
    dx = k.batch_norm_backward.fast(dy, x, gamma, m, r)[0]
    np.testing.assert_allclose([dx.sum(axis=0), (dx * x).sum(axis=0)], 0, atol=1e-9)  # y ignores shift and scale of x
    _, m, r = k.layer_norm_forward.fast(x, gamma, beta, eps=0.0)
    dx = k.layer_norm_backward.fast(dy, x, gamma, m, r)[0]
    np.testing.assert_allclose([dx.sum(axis=1), (dx * x).sum(axis=1)], 0, atol=1e-9)


@pytest.mark.parametrize("run", ["numpy", "fast"])
def test_nan_stays_in_its_column_or_row(rng, run):
    x, gamma, beta, mean, var, dy = state(rng, 300, 20)
    x[200, 18] = np.nan
    y, m, r = getattr(k.batch_norm_forward, run)(x, gamma, beta, mean, var, activation="relu")
    bad = np.arange(20) == 18
    for got in (m, r, mean, var, *y):
        np.testing.assert_array_equal(np.isnan(got), bad)
    for got in getattr(k.batch_norm_backward, run)(dy, x, gamma, m, r)[:2]:
        np.testing.assert_array_equal(np.isnan(np.atleast_2d(got)), np.broadcast_to(bad, np.atleast_2d(got).shape))
    y, m, r = getattr(k.layer_norm_forward, run)(x, gamma, beta)
    dx = getattr(k.layer_norm_backward, run)(dy, x, gamma, m, r)[0]
    for got in (m[:, None], r[:, None], y, dx):
        np.testing.assert_array_equal(np.isnan(got), np.broadcast_to(np.arange(300)[:, None] == 200, got.shape))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_equals_torch(rng, dtype):
    torch = pytest.importorskip("torch")
    x, gamma, beta, mean, var, dy = state(rng, 37, 11, dtype)
    tolerance = {"rtol": 2e-4, "atol": 2e-5} if dtype == "float32" else {"rtol": 1e-9, "atol": 1e-11}
    tx, tg, tb = (torch.tensor(a, requires_grad=True) for a in (x, gamma, beta))
    tm, tv = torch.tensor(mean), torch.tensor(var)
    for training in (True, False):
        ty = torch.nn.functional.batch_norm(tx, tm, tv, tg, tb, training, 0.2)
        ref = torch.autograd.grad(ty, (tx, tg, tb), torch.tensor(dy))
        if training:
            y, m, r = k.batch_norm_forward(x, gamma, beta, mean, var, 0.2)
            np.testing.assert_allclose(mean, tm, **tolerance)
            np.testing.assert_allclose(var, tv, **tolerance)
        else:
            y, m, r = k.batch_norm_inference(x, gamma, beta, mean, var), mean, (1 / np.sqrt(var + 1e-5)).astype(dtype)
        np.testing.assert_allclose(y, ty.detach(), **tolerance)
        for got, want in zip(k.batch_norm_backward(dy, x, gamma, m, r, frozen=not training), ref, strict=True):
            np.testing.assert_allclose(got, want, **tolerance)
    ty = torch.nn.functional.layer_norm(tx, (11,), tg, tb)
    ref = torch.autograd.grad(ty, (tx, tg, tb), torch.tensor(dy))
    y, m, r = k.layer_norm_forward(x, gamma, beta)
    np.testing.assert_allclose(y, ty.detach(), **tolerance)
    for got, want in zip(k.layer_norm_backward(dy, x, gamma, m, r), ref, strict=True):
        np.testing.assert_allclose(got, want, **tolerance)


def test_empty_and_single_rows(rng):
    x, gamma, beta, mean, var, dy = state(rng, 1, 5)
    for rows in (0, 1):
        assert k.batch_norm_inference(x[:rows], gamma, beta, mean, var).shape == (rows, 5)
        for run in (k.batch_norm_backward.numpy, k.batch_norm_backward.fast):
            dx, dgamma, dbeta = run(
                dy[:rows], x[:rows], gamma, mean, var, None, gamma.copy(), beta.copy(), True, frozen=True
            )
            np.testing.assert_allclose(dx, (dy * gamma * var)[:rows])
            np.testing.assert_allclose(dgamma, gamma + (dy * (x - mean) * var)[:rows].sum(axis=0))
            np.testing.assert_allclose(dbeta, beta + dy[:rows].sum(axis=0))
    y, m, r = k.layer_norm_forward(x[:0], gamma, beta)
    assert y.shape == (0, 5)
    assert m.shape == (0,)
    for run in (k.layer_norm_backward.numpy, k.layer_norm_backward.fast):
        np.testing.assert_array_equal(run(dy[:0], x[:0], gamma, m, r)[1], np.zeros(5))
    assert k.batch_norm_forward(np.empty((4, 0)), *[np.empty(0)] * 2, np.empty(0), np.empty(0))[0].shape == (4, 0)


@pytest.mark.parametrize("run", ["numpy", "fast"])
def test_any_layout_is_read_and_left_alone(rng, run):
    x, gamma, beta, mean, var, dy = state(rng, 140, 6)
    strided, other = np.asfortranarray(x), np.repeat(dy, 2, axis=1)[:, ::2]
    strided.flags.writeable = other.flags.writeable = gamma.flags.writeable = False
    before = x.copy(), dy.copy()
    ref = getattr(k.batch_norm_forward, run)(x, gamma, beta, mean.copy(), var.copy())
    got = getattr(k.batch_norm_forward, run)(strided, gamma, beta, mean.copy(), var.copy())
    np.testing.assert_array_equal(got[0], ref[0])
    out = [np.empty((140, 6)), np.empty(6), np.empty(6)]
    got = getattr(k.batch_norm_backward, run)(other, strided, gamma, *ref[1:], *out)
    for a, b, c in zip(got, out, getattr(k.batch_norm_backward, run)(dy, x, gamma, *ref[1:]), strict=True):
        assert a is b
        np.testing.assert_array_equal(a, c)
    np.testing.assert_array_equal(strided, before[0])
    np.testing.assert_array_equal(other, before[1])


def test_bad_input_is_named(rng):
    x, gamma, beta, mean, var, dy = state(rng, 4, 3)
    f, b, layer = k.batch_norm_forward, k.batch_norm_backward, k.layer_norm_forward
    read_only = mean.copy()
    read_only.flags.writeable = False
    bad = [
        (ValueError, "x: expected at least 2 rows", lambda: f(x[:1], gamma, beta, mean, var)),
        (ValueError, "x: expected at least 2 rows", lambda: b(dy[:1], x[:1], gamma, mean, var)),
        (TypeError, "x: expected an ndarray", lambda: f([[1.0]], gamma, beta, mean, var)),
        (TypeError, "x: expected dtype", lambda: layer(x.astype(int), gamma, beta)),
        (TypeError, "gamma: expected dtype float64", lambda: f(x, gamma.astype("f"), beta, mean, var)),
        (ValueError, r"beta: expected shape \(3,\)", lambda: f(x, gamma, beta[:2], mean, var)),
        (TypeError, "running_mean: expected an ndarray", lambda: f(x, gamma, beta, None, var)),
        (ValueError, "running_mean: expected a writable", lambda: f(x, gamma, beta, read_only, var)),
        (ValueError, "running_var: expected memory", lambda: f(x, gamma, beta, mean, mean)),
        (ValueError, "momentum", lambda: f(x, gamma, beta, mean, var, momentum=1.5)),
        (TypeError, "momentum", lambda: f(x, gamma, beta, mean, var, momentum=None)),
        (ValueError, "eps", lambda: f(x, gamma, beta, mean, var, eps=-1.0)),
        (ValueError, "eps", lambda: layer(x, gamma, beta, eps=np.nan)),
        (ValueError, "activation", lambda: f(x, gamma, beta, mean, var, activation="gelu")),
        (ValueError, "activation", lambda: k.batch_norm_inference(x, gamma, beta, mean, var, activation="softsign")),
        (ValueError, "out: expected memory", lambda: f(x, gamma, beta, mean, var, out=x)),
        (ValueError, "out: expected memory", lambda: k.batch_norm_inference(x, gamma, beta, mean, var, out=x)),
        (ValueError, "rstd: expected memory", lambda: f(x, gamma, beta, mean, var, mean=gamma.copy(), rstd=var)),
        (ValueError, "dx: expected memory", lambda: b(dy, x, gamma, mean, var, dx=dy)),
        (ValueError, "dbeta: expected memory", lambda: b(dy, x, gamma, mean, var, dgamma=beta, dbeta=beta)),
        (ValueError, r"dy: expected shape \(4, 3\)", lambda: b(dy[:3], x, gamma, mean, var)),
        (ValueError, "accumulate", lambda: b(dy, x, gamma, mean, var, accumulate=True)),
        (ValueError, r"mean: expected shape \(4,\)", lambda: k.layer_norm_backward(dy, x, gamma, mean, var)),
        (ValueError, "x: expected at least 1 column", lambda: layer(x[:, :0], gamma[:0], beta[:0])),
    ]
    for error, message, call in bad:
        with pytest.raises(error, match=message):
            call()
