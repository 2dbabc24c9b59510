"""The matrix unit: float32 products in bfloat16 parts, against exact arithmetic and the vectors, on any threads."""

import os
import subprocess
import sys

import numpy as np
import pytest

import dd2424fast as dd
from dd2424fast import kernels
from dd2424fast.kernels import _team

pytestmark = pytest.mark.skipif(not _team.has_matrix_unit(), reason="this CPU, system or build has no matrix unit")

EPS = 2.0**-24  # rounding unit of float32
# (rows, inner, columns): around tiles (16 rows and columns, 32 deep), pairs of them, blocks (256 deep, 512 wide).
SHAPES = [
    *[(64, 64, 64), (65, 80, 81), (33, 257, 47), (100, 300, 50), (79, 31, 190), (500, 17, 33), (22, 512, 100)],
    *[(40, 520, 530), (31, 1024, 37), (17, 3072, 300), (65, 3301, 50)],
]


@pytest.fixture(autouse=True)
def settings():
    threads, unit = dd.get_num_threads(), dd.get_matrix_unit()
    dd.set_matrix_unit(True)
    yield
    dd.set_matrix_unit(unit)
    dd.set_num_threads(threads)


def walled(a):
    """A copy between walls of NaN: what is read beyond its ends shows in the result."""
    memory = np.full(a.size + 128, np.nan, a.dtype)
    memory[64:-64] = a.ravel()
    return memory[64:-64].reshape(a.shape)


def numbers(shape, seed=0, spread=0):
    """Normal ones; spread: times 2 to powers from -spread to spread."""
    rng = np.random.default_rng([seed, *shape])
    return walled((rng.standard_normal(shape) * 2.0 ** rng.integers(-spread, spread + 1, shape)).astype(np.float32))


def budget(a, b):
    """Of |error|: what float32 sums on the vectors are allowed, which the unit must keep too."""
    return 4 * EPS * (np.sqrt(a.shape[1]) + 2) * (np.abs(a).astype(float) @ np.abs(b).astype(float))


def assert_product(got, a, b, before=0.0):
    exact = a.astype(np.longdouble) @ b.astype(np.longdouble) + before
    assert got.dtype == np.float32
    assert (np.abs(got - exact) <= budget(a, b) + 4 * EPS * np.abs(before)).all()


def on_threads(run):
    """The result on one thread, which must be that on two and on three, bit for bit."""
    results = []
    for n in (1, 2, 3):
        dd.set_num_threads(n)
        results.append(run())
    for other in results[1:]:
        for a, b in zip(results[0], other, strict=True):
            np.testing.assert_array_equal(a, b)
    return results[0]


@pytest.mark.parametrize("spread", [0, 20])
@pytest.mark.parametrize("shape", SHAPES)
def test_products(shape, spread):
    M, K, N = shape
    a, b = numbers((M, K), 1, spread), numbers((K, N), 2, spread)
    memory = np.full(M * N + 128, np.float32(7))
    out = memory[64:-64].reshape(M, N)
    (got,) = on_threads(lambda: [kernels.matmul(a, b, out).copy()])
    assert_product(got, a, b)
    assert (memory[:64] == 7).all(), "written before the result"
    assert (memory[-64:] == 7).all(), "written behind the result"
    dd.set_matrix_unit(False)
    assert not np.array_equal(kernels.matmul(a, b), got), "the unit was not used"


@pytest.mark.parametrize("shape", SHAPES)
def test_the_linear_layer(shape):
    M, K, N = shape
    x, W, b, dy = numbers((M, K), 1), numbers((K, N), 2), numbers((N,), 3), numbers((M, N), 4)
    (y,) = on_threads(lambda: [kernels.linear_forward(x, W, b, "relu", batched=True)])
    exact = x.astype(float) @ W + b
    assert (np.abs(y - np.maximum(exact, 0)) <= budget(x, W) + 4 * EPS * np.abs(b)).all()

    def backward():
        dW, db = numbers((K, N), 5), numbers((N,), 6)
        dx, *_ = kernels.linear_backward(dy, x, W, None, dW, db, accumulate=True)
        return dx, dW, db

    dx, dW, _ = on_threads(backward)
    assert_product(dx, dy, np.ascontiguousarray(W.T))
    assert_product(dW, np.ascontiguousarray(x.T), dy, before=numbers((K, N), 5).astype(float))


def test_as_accurate_as_the_vectors():
    """The mean error, in units of eps sum |a||b|, is no larger than that of fused multiply-adds."""
    a, b = numbers((128, 777), 1), numbers((777, 96), 2)
    exact, scale = a.astype(np.longdouble) @ b, np.abs(a).astype(float) @ np.abs(b)
    errors = {}
    for on in (True, False):
        dd.set_matrix_unit(on)
        errors[on] = float(np.mean(np.abs(kernels.matmul(a, b) - exact) / scale))
    assert errors[True] <= errors[False]


def test_whole_numbers_are_exact():
    """The parts lose nothing: products and sums that float32 holds come out exactly."""
    rng = np.random.default_rng(0)
    a = rng.integers(-(2**11), 2**11, (80, 70)).astype(np.float32)
    b = np.zeros((70, 64), np.float32)
    b[rng.integers(0, 70, 64), np.arange(64)] = rng.integers(1, 2**12, 64)
    np.testing.assert_array_equal(kernels.matmul(a, b), a.astype(float) @ b.astype(float))
    a[:] = 2.0**23 - 1 - 2 * rng.integers(0, 2**19, a.shape)  # 23 bits, in all three parts
    b[b > 0] = 1
    np.testing.assert_array_equal(kernels.matmul(a, b), a.astype(float) @ b.astype(float))


@pytest.mark.parametrize("inner", [90, 95])
@pytest.mark.parametrize("bad", [np.nan, -np.nan, np.inf, -np.inf, np.uint32(0x7FFFFFFF).view(np.float32)])
def test_what_is_not_finite_stays_so(bad, inner):
    """And stays where it is: a row's padding is not the next row's beginning."""
    a, b = numbers((70, inner), 1), numbers((inner, 80), 2)
    a[5, [0, 33]] = bad
    b[17, 11] = bad
    got = kernels.matmul(a, b)
    assert not np.isfinite(got[5]).any()
    assert not np.isfinite(got[:, 11]).any()
    assert np.isfinite(np.delete(np.delete(got, 5, 0), 11, 1)).all()


def test_only_batches_go_to_the_unit():
    """By default a linear layer's row has the same bits in a batch of any size."""
    x, W, b = numbers((200, 300), 1), numbers((300, 50), 2), numbers((50,), 3)
    whole = kernels.linear_forward(x, W, b)
    np.testing.assert_array_equal(kernels.linear_forward(x[7:8], W, b)[0], whole[7])
    assert not np.array_equal(kernels.linear_forward(x, W, b, batched=True), whole)
    model = dd.models.MLP(300, (64,), 10, seed=0)
    np.testing.assert_array_equal(model.predict(x[7:8])[0], model.predict(x)[7])


def recurrent(cell, H, counts, seed=0, noise=None):
    """Forward and backward results of a layer with random states."""
    G, R, B = {"rnn": 1, "gru": 3, "lstm": 4}[cell], int(sum(counts)), counts[0]
    counts = np.array(counts)
    a, U = numbers((R, G * H), seed), numbers((H, G * H), seed + 1) / np.float32(H**0.5)
    b, bU, h0, dh = numbers((G * H,), 3), numbers((G * H,), 4), numbers((B, H), 5), numbers((R, H), 6)
    states = (h0, numbers((B, H), 7)) if cell == "lstm" else (h0,)
    forward, backward = (getattr(kernels, f"{cell}_{way}") for way in ("forward", "backward"))
    out = forward(a, b, U, bU, *states, counts, noise=noise)
    if cell == "rnn":
        back = backward(dh, h0, U, out[0], counts, noise=noise)
    elif cell == "lstm":
        back = backward(dh, *states, U, out[2], out[3], states[1], counts, noise=noise)
    else:
        back = backward(dh, h0, U, *out[1:4], counts, noise=noise)
    return [*out, *back]


FULL, RAGGED = [37] * 4, [70, 70, 41, 33, 16, 15, 2]
LARGE = {"rnn": 561, "gru": 323, "lstm": 289}  # U leaves the second cache: threads share the units


@pytest.mark.parametrize("counts", [FULL, RAGGED], ids=["full", "ragged"])
@pytest.mark.parametrize("H", [1, 15, 16, 33, 100, "large"])
@pytest.mark.parametrize("cell", ["rnn", "gru", "lstm"])
def test_recurrent_layers(cell, H, counts):
    H = LARGE[cell] if H == "large" else H
    got = on_threads(lambda: recurrent(cell, H, counts))
    with dd.backend("numpy"):
        expected = recurrent(cell, H, counts)
    for a, b in zip(got, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=2e-5)
    dd.set_matrix_unit(False)
    if H > 1:
        assert not all(map(np.array_equal, got, recurrent(cell, H, counts))), "the unit was not used"


def test_more_sequences_than_there_is_room_for():
    """The parts of 224 sequences of so many units fill a thread's memory."""
    got = on_threads(lambda: recurrent("rnn", 561, [250, 227]))
    with dd.backend("numpy"):
        expected = recurrent("rnn", 561, [250, 227])
    for a, b in zip(got, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=2e-5)


def test_layers_too_wide_for_the_unit():
    """Not even the parts of 32 sequences have room in a thread's memory."""
    H, B = 4097, 32
    a, h0, U = numbers((B, H), 1), numbers((B, H), 2), np.zeros((H, H), np.float32)
    np.fill_diagonal(U, 0.5)
    h, _, _ = kernels.rnn_forward(a, None, U, None, h0, np.array([B]))
    np.testing.assert_allclose(h, np.tanh(a.astype(float) + 0.5 * h0), rtol=1e-5, atol=1e-7)
    da, dh0 = kernels.rnn_backward(a, None, U, h, np.array([B]))
    np.testing.assert_array_equal(dh0, 0.5 * da)


@pytest.mark.parametrize("H", [33, "large"])
@pytest.mark.parametrize("cell", ["rnn", "gru", "lstm"])
def test_recurrent_layers_with_noise(cell, H):
    """Zoneout and recurrent dropout take the way of whole vectors at the tile's end."""
    H = LARGE[cell] if H == "large" else H
    flags = np.random.default_rng(0).integers(0, 8, (sum(RAGGED), H)).astype(np.uint8)
    noise = kernels.CellNoise(
        zoneout=0.2, zoneout_cell=0.1 if cell == "lstm" else 0.0, dropout=0.0 if cell == "rnn" else 0.3, flags=flags
    )
    got = on_threads(lambda: recurrent(cell, H, RAGGED, noise=noise))
    with dd.backend("numpy"):
        expected = recurrent(cell, H, RAGGED, noise=noise)
    for a, b in zip(got, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=2e-5)


def test_training_follows_the_definition():
    """A language model large enough for the unit: the loss falls along the same curve on it and on the twins."""
    losses = {}
    rng = np.random.default_rng(0)
    ids = rng.integers(0, 80, (10, 32, 12))
    for name in ("fast", "numpy"):
        with dd.backend(name):
            model = dd.models.LanguageModel(80, "lstm", 64, 48, 2, seed=0)
            trainer = dd.Trainer(model, dd.optim.Adam(1e-2), clip_norm=1.0)
            losses[name] = [trainer.step(x[:, :-1], x[:, 1:]) for x in ids]
    np.testing.assert_allclose(losses["fast"], losses["numpy"], rtol=2e-5)
    assert losses["fast"][-1] < losses["fast"][0]


def test_switches():
    assert dd.get_matrix_unit()
    assert "bfloat16" in dd.show_config()["matrix_unit"]
    dd.set_matrix_unit(False)
    assert not dd.get_matrix_unit()
    assert "off" in dd.show_config()["matrix_unit"]
    with pytest.raises(TypeError, match="on: expected True or False, got 'no'"):
        dd.set_matrix_unit("no")
    program = "import dd2424fast as dd; print(dd.get_matrix_unit())"
    for value, expected in (("0", "False"), ("off", "False"), ("1", "True")):
        environment = {**os.environ, "DD2424FAST_MATRIX_UNIT": value}
        command = [sys.executable, "-c", program]
        done = subprocess.run(command, capture_output=True, text=True, env=environment, check=True)
        assert done.stdout.strip() == expected
