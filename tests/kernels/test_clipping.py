"""Norms, clipping, the search for NaN and moving averages."""

import numpy as np
import pytest
from dd2424fast.kernels._team import get_num_threads, set_num_threads

from dd2424fast.kernels import Segments, all_finite, clip_by_norm, clip_by_value, global_norm, moving_average

BACKENDS = ["numpy", "fast"]
DTYPES = ["float32", "float64"]
SIZES = (0, 1, 3, 7, 8, 9, 15, 16, 17, 31, 63, 64, 65, 101, 8191, 8193, 16403)


@pytest.fixture
def threads():
    before = get_num_threads()
    yield set_num_threads
    set_num_threads(before)


def normal(size, dtype="float64", seed=3):
    return np.random.default_rng(seed).standard_normal(size).astype(dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("backend", BACKENDS)
def test_norm_is_the_euclidean_one(backend, dtype):
    assert getattr(global_norm, backend)(np.array([3, 0, -4], dtype)) == 5
    for size in SIZES:
        g = normal(size, dtype)
        got = getattr(global_norm, backend)(g)
        assert type(got) is float
        np.testing.assert_allclose(got, np.linalg.norm(g.astype("float64")), rtol=1e-13)


@pytest.mark.parametrize("backend", BACKENDS)
def test_norm_of_segments(backend):
    g = normal(30011, "float32")
    segments = Segments(g.size, [(2, 7), (100, 20000)])
    ref = np.linalg.norm(np.concatenate([g[2:7], g[100:20000]]).astype("float64"))
    np.testing.assert_allclose(getattr(global_norm, backend)(g, segments), ref, rtol=1e-13)
    assert global_norm(g, Segments(g.size)) == global_norm(g)
    assert getattr(global_norm, backend)(g, Segments(g.size, [])) == 0


@pytest.mark.parametrize("size", [1, 37, 50_000])
@pytest.mark.parametrize("magnitude", [1e30, 1e-30])
def test_norm_neither_overflows_nor_vanishes(magnitude, size):
    g = np.full(size, magnitude, "float32")
    np.testing.assert_allclose(global_norm(g), float(g[0]) * np.sqrt(size), rtol=1e-12)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("where", [0, 17, 99_999])
def test_norm_shows_what_is_not_finite(backend, where):
    g = normal(100_000, "float32")
    for bad in (np.inf, -np.inf, np.nan):
        g[where] = bad
        np.testing.assert_equal(getattr(global_norm, backend)(g), abs(bad))


@pytest.mark.parametrize("dtype", DTYPES)
def test_same_bits_for_any_threads(dtype, threads):
    results = []
    for number in (1, 2):
        threads(number)
        g = normal(4_300_001, dtype)  # more than one group of spans
        ref = np.linalg.norm(g.astype("float64"))
        norm = clip_by_norm(g, 5.0)
        assert norm == pytest.approx(ref, rel=1e-12)
        clip_by_value(g, 1e-3)
        average = normal(g.size, dtype, seed=4)
        moving_average(average, g, 0.9)
        results.append((norm, g.tobytes(), average.tobytes()))
    assert results[0] == results[1]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("backend", BACKENDS)
def test_clip_by_norm(backend, dtype):
    clip = getattr(clip_by_norm, backend)
    for size in SIZES[1:]:
        g = normal(size, dtype)
        ref = g.astype("float64")
        norm = np.linalg.norm(ref)
        got = g.copy()
        assert clip(got, 2 * norm) == pytest.approx(norm, rel=1e-12)
        np.testing.assert_array_equal(got, g)  # a norm that does not exceed the bound leaves every bit
        assert clip(got, 0.5 * norm) == pytest.approx(norm, rel=1e-12)
        np.testing.assert_allclose(got, ref * 0.5 * norm / (norm + 1e-6), rtol=3 * np.finfo(dtype).eps)


@pytest.mark.parametrize("backend", BACKENDS)
def test_clip_by_norm_equals_pytorch(backend):
    torch = pytest.importorskip("torch")
    g = normal(1003)
    parameter = torch.nn.Parameter(torch.zeros(1003, dtype=torch.float64))
    parameter.grad = torch.from_numpy(g.copy())
    ref = torch.nn.utils.clip_grad_norm_([parameter], 1e-3)
    assert getattr(clip_by_norm, backend)(g, 1e-3) == pytest.approx(ref.item(), rel=1e-13)
    np.testing.assert_allclose(g, parameter.grad.numpy(), rtol=1e-13)


@pytest.mark.parametrize("backend", BACKENDS)
def test_clip_by_norm_leaves_frozen_gradients_out(backend):
    g = np.array([100.0, 3, 4, 100])
    assert getattr(clip_by_norm, backend)(g, 1.0, Segments(4, [(1, 3)])) == 5
    np.testing.assert_allclose(g, [100, 0.6, 0.8, 100], rtol=1e-6)


@pytest.mark.parametrize("backend", BACKENDS)
def test_clip_by_norm_of_what_is_not_finite(backend):
    g = np.array([1.0, np.nan, 2.0])
    assert np.isnan(getattr(clip_by_norm, backend)(g, 1.0))
    np.testing.assert_array_equal(g, [1, np.nan, 2])
    g = np.array([1.0, np.inf, 2.0])
    with np.errstate(invalid="ignore"):
        assert getattr(clip_by_norm, backend)(g, 1.0) == np.inf
    np.testing.assert_array_equal(g, [0, np.nan, 0])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("number", [1, 2])
def test_clip_by_value(backend, dtype, number, threads):
    threads(number)
    clip = getattr(clip_by_value, backend)
    for size in (*SIZES[1:], 120_001):
        for where in {0, size // 2, size - 1}:
            for bad in (np.nan, np.inf, -np.inf):
                g = normal(size, dtype)
                assert clip(g.copy(), 0.5) is True
                g[where] = bad
                assert clip(g, 0.5) is False
    for size in SIZES:
        g = normal(size, dtype)
        g[::5] = np.nan
        g[1::7] = np.inf
        g[2::7] = -np.inf
        ref = np.array([x if np.isnan(x) else min(max(x, -0.5), 0.5) for x in g.tolist()], dtype)
        assert clip(g, 0.5) is (size == 0)
        np.testing.assert_array_equal(g, ref)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("number", [1, 2])
def test_all_finite(backend, dtype, number, threads):
    threads(number)
    finite = getattr(all_finite, backend)
    largest = np.finfo(dtype).max
    for size in (*SIZES[1:], 120_001):
        x = normal(size, dtype)
        x[::2] = largest  # a sum of the elements would overflow
        assert finite(x) is True
        for where in {0, size // 2, size - 1}:
            for bad in (np.nan, np.inf, -np.inf):
                old, x[where] = x[where], bad
                assert finite(x) is False
                x[where] = old


@pytest.mark.parametrize("backend", BACKENDS)
def test_all_finite_takes_any_shape(backend):
    x = np.ones((5, 6, 7), "float32")
    x[:, 1::2] = np.nan
    finite = getattr(all_finite, backend)
    assert not finite(x)
    assert finite(x[:, ::2])
    assert finite(np.array(1.0))
    assert not finite(np.array(np.inf))
    assert finite(np.empty((0, 3)))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("decay", [0.0, 0.3, 0.5, 0.9, 0.9999, 1.0])
def test_moving_average(backend, dtype, decay):
    for size in SIZES:
        average, values = normal(size, dtype), normal(size, dtype, seed=4)
        a, v = average.astype("float64"), values.astype("float64")
        assert getattr(moving_average, backend)(average, values, decay) is None
        budget = 4 * np.finfo(dtype).eps * (np.abs(a) + np.abs(v))
        assert (np.abs(average - (decay * a + (1 - decay) * v)) <= budget).all()
        if decay in (0, 1):
            np.testing.assert_array_equal(average, (v, a)[int(decay)].astype(dtype))
        equal = values.copy()
        getattr(moving_average, backend)(equal, values, decay)
        np.testing.assert_array_equal(equal, values)


@pytest.mark.parametrize(
    ("error", "message", "call"),
    [
        (TypeError, "gradients: expected an ndarray", lambda: global_norm([1.0])),
        (TypeError, "gradients: expected dtype", lambda: global_norm(np.ones(3, int))),
        (ValueError, r"gradients: expected shape \(any,\)", lambda: global_norm(np.ones((3, 3)))),
        (TypeError, "segments: expected Segments", lambda: global_norm(np.ones(3), (0, 3))),
        (ValueError, "segments: expected a table for 3", lambda: clip_by_norm(np.ones(3), 1.0, Segments(4))),
        (ValueError, "gradients: expected a C-contiguous", lambda: clip_by_norm(np.ones(6)[::2], 1.0)),
        (ValueError, "max_norm: expected a number above 0", lambda: clip_by_norm(np.ones(3), 0)),
        (ValueError, "max_norm: expected a number above 0", lambda: clip_by_norm(np.ones(3), np.nan)),
        (TypeError, "max_norm: expected a number", lambda: clip_by_norm(np.ones(3), None)),
        (ValueError, "limit: expected a number above 0", lambda: clip_by_value(np.ones(3), -1)),
        (TypeError, "x: expected an ndarray", lambda: all_finite(1.0)),
        (TypeError, "x: expected dtype", lambda: all_finite(np.ones(3, complex))),
        (ValueError, "decay: expected a number from 0 to 1", lambda: moving_average(np.ones(3), np.ones(3), 1.1)),
        (ValueError, r"values: expected shape \(3,\)", lambda: moving_average(np.ones(3), np.ones(4), 0.5)),
        (TypeError, "values: expected dtype", lambda: moving_average(np.ones(3), np.ones(3, "float32"), 0.5)),
    ],
)
def test_bad_arguments(error, message, call):
    with pytest.raises(error, match=message):
        call()


def test_overlapping_and_read_only_vectors_are_refused():
    memory = np.ones(9)
    with pytest.raises(ValueError, match=r"average: .* overlaps values"):
        moving_average(memory[:5], memory[4:], 0.5)
    memory.flags.writeable = False
    with pytest.raises(ValueError, match="gradients: expected a writable"):
        clip_by_value(memory, 1.0)
    assert global_norm(memory[::2]) == np.sqrt(5)
