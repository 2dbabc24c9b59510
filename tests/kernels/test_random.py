"""The counter-based generator: its published values, its quality, the fast kernels against the definitions, dropout."""

import numpy as np
import pytest

from dd2424fast import kernels as k
from dd2424fast.kernels import _team
from dd2424fast.kernels.random import _philox

SIZES = [1, 3, 15, 16, 17, 63, 64, 65, 127, 129, 1000, 16384, 40001]
KEYS = [0, 1, 2**32, 2**64 - 1, 0x299F31D0A4093822]


@pytest.fixture(autouse=True)
def _threads():
    before = _team.get_num_threads()
    yield
    _team.set_num_threads(before)


def both_threads(run):
    """The result on one thread, after checking that two give the same bits."""
    results = []
    for threads in (1, 2):
        _team.set_num_threads(threads)
        results.append(run())
    assert results[0].tobytes() == results[1].tobytes()
    return results[0]


@pytest.mark.parametrize(
    ("counter", "key", "words"),
    [  # the vectors that Salmon and others publish with Random123
        ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
)
def test_philox_gives_the_published_words(counter, key, words):
    got = _philox([np.array([c], np.uint64) for c in counter], key)
    assert tuple(int(w[0]) & 0xFFFFFFFF for w in got) == words
    if counter == (0, 0, 0, 0):
        assert tuple(k.random_bits.fast(0, 4)) == words


def test_stream_key_is_splitmix():
    assert k.stream_key.numpy(0, 0, 0) == k.stream_key.fast(0, 0, 0)
    first = [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4]  # splitmix64's first outputs from state 0
    from dd2424fast.kernels.random import _mix

    assert [_mix(0), _mix(0x9E3779B97F4A7C15)] == first
    rng = np.random.default_rng(3)
    for seed, stream, update in rng.integers(0, 2**63, (50, 3)).tolist():
        assert k.stream_key.fast(seed, stream, update) == k.stream_key.numpy(seed, stream, update)
    keys = {k.stream_key(s, t, u) for s in range(10) for t in range(10) for u in range(10)}
    assert len(keys) == 1000
    assert k.stream_key(np.int64(3), 2**64 - 1, 0) == k.stream_key.numpy(3, 2**64 - 1, 0)


@pytest.mark.parametrize("size", SIZES)
def test_same_bits_as_the_definition(size):
    for key in KEYS:
        ref = k.random_bits.numpy(key, size)
        assert ref.dtype == np.uint32
        np.testing.assert_array_equal(both_threads(lambda key=key: k.random_bits.fast(key, size)), ref)
        for dtype in ("float32", "float64"):
            got = both_threads(lambda key=key, dtype=dtype: k.random_uniform.fast(key, size, dtype))
            np.testing.assert_array_equal(got, k.random_uniform.numpy(key, size, dtype), strict=True)
            assert 0 <= got.min() <= got.max() < 1
            np.testing.assert_allclose(got, ref / 2**32, rtol=0, atol=2.0**-24)


@pytest.mark.parametrize("size", SIZES)
def test_flags(size):
    """Bit k from a stream of its own, as often as asked for."""
    rates = (0.5, 0.0, 0.1, 2.0**-33, 1 - 2.0**-32)
    for key in KEYS:
        ref = k.random_flags.numpy(key, rates, size)
        assert ref.dtype == np.uint8
        np.testing.assert_array_equal(both_threads(lambda key=key: k.random_flags.fast(key, rates, size)), ref)
        for bit, p in enumerate(rates):
            words = k.random_bits(k.stream_key(key, bit, 0), size)
            np.testing.assert_array_equal(ref >> bit & 1, words < p * 2**32)
        assert not (ref >> 5).any()
        if size >= 1000:
            share = (ref[:, None] >> np.arange(5) & 1).mean(axis=0)
            assert np.abs(share - rates).max() < 5 * 0.5 / np.sqrt(size)


@pytest.mark.parametrize(
    ("probabilities", "error", "message"),
    [
        (0.5, TypeError, "probabilities: expected a sequence of at most 8 numbers, got 0.5"),
        ((0.1,) * 9, TypeError, "probabilities: expected a sequence of at most 8"),
        ((0.1, 1.0), ValueError, r"probabilities\[1\]: expected a probability in \[0, 1\), got 1.0"),
        (("half",), TypeError, r"probabilities\[0\]"),
    ],
)
def test_bad_probabilities(probabilities, error, message):
    with pytest.raises(error, match=message):
        k.random_flags(0, probabilities, 3)


@pytest.mark.parametrize("size", SIZES)
def test_normal_equals_its_definition(size):
    for key in KEYS:
        ref = k.random_normal.numpy(key, size, "float64")
        got = both_threads(lambda key=key: k.random_normal.fast(key, size, "float64"))
        np.testing.assert_allclose(got, ref, rtol=1e-10, atol=1e-14, strict=True)
        got = both_threads(lambda key=key: k.random_normal.fast(key, size))
        assert got.dtype == np.float32
        np.testing.assert_allclose(got, ref, rtol=5e-7, atol=2e-6)
        np.testing.assert_array_equal(k.random_normal.numpy(key, size), ref.astype(np.float32))


def test_element_is_a_function_of_its_index():
    whole = k.random_bits(7, 100_000)
    np.testing.assert_array_equal(k.random_bits(7, (41, 3)).ravel(), whole[:123])
    np.testing.assert_array_equal(
        k.random_uniform(7, 4000, "float64"), k.random_uniform(7, (80, 1250), "float64").ravel()[:4000]
    )


def z_of(value, mean, variance):
    return (value - mean) / np.sqrt(variance)


def test_quality():
    """Every statistic within 5 standard deviations of what independent fair bits give."""
    n = 1 << 18
    keys = [k.stream_key(11, 0, 0), k.stream_key(11, 0, 1), k.stream_key(11, 1, 0), k.stream_key(12, 0, 0), 0, 1, 2**32]
    streams = [k.random_bits(key, n) for key in keys]
    u = [w / 2.0**32 - 0.5 for w in streams]
    for w, v in zip(streams, u, strict=True):
        assert abs(z_of(v.mean(), 0, 1 / 12 / n)) < 5
        bits = np.unpackbits(w.view(np.uint8)).reshape(n, 32)
        assert np.abs(z_of(bits.sum(axis=0), n / 2, n / 4)).max() < 5
        for lag in (1, 2, 3, 4, 5, 8, 16, 32, 64, 256, 1024):
            assert abs(z_of((v[lag:] * v[:-lag]).sum(), 0, (n - lag) / 144)) < 5
        for shift in (24, 16, 8, 0):  # chi-square of each byte
            counts = np.bincount((w >> np.uint32(shift)) & np.uint32(255), minlength=256)
            assert abs(z_of(((counts - n / 256) ** 2).sum() / (n / 256), 255, 510)) < 5
        pairs = np.bincount((w[::2] >> np.uint32(26)) * np.uint32(64) + (w[1::2] >> np.uint32(26)), minlength=4096)
        assert abs(z_of(((pairs - n / 8192) ** 2).sum() / (n / 8192), 4095, 8190)) < 5
    for i in range(len(u)):
        for j in range(i):
            assert abs(z_of((u[i] * u[j]).sum(), 0, n / 144)) < 5
            flips = np.unpackbits((streams[i] ^ streams[j]).view(np.uint8)).sum()
            assert abs(z_of(float(flips), 16 * n, 8 * n)) < 5


def test_normal_moments():
    z = k.random_normal(k.stream_key(5, 0, 0), 1 << 18, "float64")
    n = z.size
    for power, mean, variance in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)):
        assert abs(z_of((z**power).mean(), mean, variance / n)) < 5
    for lag in (1, 2, 16, 32, 64):
        assert abs(z_of((z[lag:] * z[:-lag]).sum(), 0, n - lag)) < 5
        assert abs(z_of((z[lag:] ** 2 - 1) @ (z[:-lag] ** 2 - 1), 0, 4 * (n - lag))) < 5
    inside = (np.abs(z) < 1).mean()
    assert abs(z_of(inside, 0.6826894921, 0.6826894921 * 0.3173105079 / n)) < 5


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("p", [0.0, 1e-9, 0.1, 0.5, 0.9, 1 - 1e-12])
def test_dropout_equals_its_definition(p, dtype):
    rng = np.random.default_rng(2)
    for size in SIZES:
        x = rng.normal(size=size).astype(dtype)
        key = KEYS[size % len(KEYS)]
        got = both_threads(lambda x=x, key=key: k.dropout.fast(x, p, key))
        np.testing.assert_array_equal(got, k.dropout.numpy(x, p, key), strict=True)
        np.testing.assert_array_equal(np.signbit(got), np.signbit(x))
        keep = k.random_bits(key, size) / 2**32 >= min(round(p * 2**32), 2**32 - 1) / 2**32
        np.testing.assert_array_equal(got != 0, keep)
        np.testing.assert_allclose(got[keep], x[keep] / (1 - p), rtol=3e-7 if dtype == "float32" else 1e-15)


def test_dropout_mask():
    n = 200_000
    ones = np.ones((n // 100, 100))
    for p in (0.1, 0.5, 0.8):
        y = k.dropout(ones, p, 99)
        assert abs(z_of((y == 0).mean(), p, p * (1 - p) / n)) < 5
        assert y.max() == 1 / (1 - p)
        np.testing.assert_array_equal(k.dropout(ones.astype(np.float32), p, 99) == 0, y == 0)
        np.testing.assert_array_equal(k.dropout(ones.reshape(-1), p, 99), y.reshape(-1))
    keys = [k.stream_key(1, s, u) for s in (0, 1) for u in (0, 1)]
    masks = [k.dropout(ones, 0.5, key).ravel() - 1 for key in keys]
    for i in range(4):
        for j in range(i):
            assert abs(masks[i] @ masks[j]) < 5 * np.sqrt(n)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_dropout_threshold_is_exact(dtype):
    word = int(k.random_bits(5, 100)[7])
    for run in (k.dropout.numpy, k.dropout.fast):
        assert run(np.ones(100, dtype), word / 2**32, 5)[7] > 0
        assert run(np.ones(100, dtype), (word + 1) / 2**32, 5)[7] == 0


def test_dropout_backward_is_the_same_call():
    """dropout is linear in x: <dropout(x), dy> = <x, dropout(dy)>, and a central difference agrees."""
    rng = np.random.default_rng(4)
    x, dy = rng.normal(size=(2, 30, 7))
    for run in (k.dropout.numpy, k.dropout.fast):
        dx = run(dy, 0.3, 8)
        for index in [(0, 0), (11, 3), (29, 6)]:
            step = np.zeros_like(x)
            step[index] = 1e-3
            difference = ((run(x + step, 0.3, 8) - run(x - step, 0.3, 8)) * dy).sum() / 2e-3
            assert dx[index] == pytest.approx(difference, rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("run", ["numpy", "fast"])
@pytest.mark.filterwarnings("ignore:invalid value")
def test_dropout_shows_nan_everywhere(run):
    """As in PyTorch, a dropped place multiplies by 0: NaN and infinity become NaN."""
    dropout = getattr(k.dropout, run)
    for dtype in ("float32", "float64"):
        assert np.isnan(dropout(np.full(100, np.nan, dtype), 0.5, 3)).all()
        y, kept = dropout(np.full(100, np.inf, dtype), 0.5, 3), dropout(np.ones(100, dtype), 0.5, 3) > 0
        np.testing.assert_array_equal(np.isnan(y), ~kept)
        assert np.isposinf(y[kept]).all()
        x = np.array([np.nan, -0.0, 1e30], dtype)
        np.testing.assert_array_equal(dropout(x, 0.0, 3), x)


def test_dropout_nan_as_torch():
    torch = pytest.importorskip("torch")
    y = torch.nn.functional.dropout(torch.full((100,), np.nan), 0.5, training=True)
    assert torch.isnan(y).all()


@pytest.mark.parametrize("run", ["numpy", "fast"])
def test_dropout_layouts(run):
    dropout = getattr(k.dropout, run)
    x = np.random.default_rng(5).normal(size=(20, 30))
    ref = dropout(x, 0.4, 1)
    fortran = np.asfortranarray(x)
    fortran.flags.writeable = False
    np.testing.assert_array_equal(dropout(fortran, 0.4, 1), ref)
    np.testing.assert_array_equal(dropout(np.repeat(x, 2, axis=0)[::2], 0.4, 1), ref)
    same = x.copy()
    assert dropout(same, 0.4, 1, same) is same
    np.testing.assert_array_equal(same, ref)
    out = np.empty_like(x)
    assert dropout(x, 0.4, 1, out=out) is out
    np.testing.assert_array_equal(out, ref)
    assert dropout(np.empty((0, 3)), 0.4, 1).shape == (0, 3)
    assert dropout(np.array(2.0), 0.0, 1) == 2.0
    for empty in (k.random_bits, k.random_uniform, k.random_normal):
        assert getattr(empty, run)(1, (0, 2)).shape == (0, 2)
        assert getattr(empty, run)(1, ()).shape == ()


def test_bad_input_is_named():
    x = np.ones((2, 3))
    bad = [
        (TypeError, "x: expected an ndarray", lambda: k.dropout([1.0], 0.5, 1)),
        (TypeError, "x: expected dtype", lambda: k.dropout(np.ones(3, int), 0.5, 1)),
        (ValueError, "p: expected a probability", lambda: k.dropout(x, 1.0, 1)),
        (ValueError, "p: expected a probability", lambda: k.dropout(x, -0.1, 1)),
        (ValueError, "p: expected a probability", lambda: k.dropout(x, np.nan, 1)),
        (TypeError, "p: expected a number", lambda: k.dropout(x, "half", 1)),
        (TypeError, "key: expected an integer", lambda: k.dropout(x, 0.5, 1.0)),
        (TypeError, "key: expected an integer", lambda: k.dropout(x, 0.5, True)),
        (ValueError, "key: expected an integer from 0", lambda: k.dropout(x, 0.5, -1)),
        (ValueError, "key: expected an integer from 0", lambda: k.random_bits(2**64, 3)),
        (ValueError, r"out: expected shape \(2, 3\)", lambda: k.dropout(x, 0.5, 1, np.ones((3, 2)))),
        (TypeError, "out: expected dtype float64", lambda: k.dropout(x, 0.5, 1, np.ones((2, 3), "f"))),
        (ValueError, "out: expected memory", lambda: k.dropout(x.ravel()[:4], 0.5, 1, x.ravel()[1:5])),
        (ValueError, "out: expected a writable", lambda: k.dropout(x, 0.5, 1, np.broadcast_to(1.0, (2, 3)))),
        (TypeError, "shape", lambda: k.random_uniform(1, 2.5)),
        (ValueError, "shape", lambda: k.random_normal(1, (2, -1))),
        (TypeError, "dtype: expected float32 or float64", lambda: k.random_normal(1, 3, int)),
        (TypeError, "dtype: expected float32 or float64", lambda: k.random_normal(1, 3, "nothing")),
        (TypeError, "out: expected an ndarray of uint32", lambda: k.random_bits(1, 3, np.empty(3))),
        (ValueError, "out", lambda: k.random_bits(1, 3, np.empty(4, np.uint32))),
        (ValueError, "update: expected an integer from 0", lambda: k.stream_key(1, 2, -3)),
        (TypeError, "seed: expected an integer", lambda: k.stream_key(None, 2, 3)),
    ]
    for error, message, call in bad:
        with pytest.raises(error, match=message):
            call()
