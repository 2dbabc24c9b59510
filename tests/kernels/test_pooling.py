"""Pooling: the definitions against plain loops and central differences, the fast kernels against the definitions."""

import itertools

import numpy as np
import pytest

import dd2424fast as dd
from dd2424fast import kernels as k

EPS = {"float32": 2.0**-23, "float64": 2.0**-52}
DTYPES = ["float32", "float64"]
BACKENDS = ["fast", "numpy"]

# Height and width of the images, then size, stride and padding of the windows.
GEOMETRIES = {
    "2x2": (6, 8, 2, None, 0),
    "2x2, rest": (7, 5, 2, None, 0),
    "2x2 of 2x2": (2, 2, 2, None, 0),
    "2x2 dense": (5, 4, 2, 1, 0),
    "2x2 padded": (5, 6, 2, 2, 1),
    "2x2 padded above": (5, 6, 2, 2, (1, 0)),
    "2x2 padded beside": (6, 5, 2, 2, (0, 1)),
    "2x2 apart below": (7, 6, 2, (3, 2), 0),
    "2x2 apart beside": (6, 8, 2, (2, 3), 0),
    "3x3 by 2": (9, 8, 3, 2, 1),
    "3x3 by 3": (8, 10, 3, None, 0),
    "3x3 same": (4, 6, 3, 1, 1),
    "1x1": (3, 4, 1, None, 0),
    "1x1 apart": (7, 5, 1, (3, 2), 0),
    "apart": (9, 11, 2, (3, 5), 0),
    "oblong": (8, 9, (4, 2), None, 0),
    "oblong across": (5, 9, (2, 3), None, 0),
    "all different": (10, 13, (5, 3), (2, 4), (1, 0)),
    "overlapping": (6, 9, (2, 5), (2, 1), (1, 2)),
    "one pixel": (1, 1, 3, 2, 1),
    "one row": (1, 9, (1, 4), (1, 3), (0, 2)),
    "whole image": (4, 5, (4, 5), (7, 9), 0),
    "as large as can be": (16, 19, (15, 17), (1, 2), (0, 8)),
}
NAMES = list(GEOMETRIES)
CHANNELS = (1, 2, 3, 5, 7, 8, 15, 16, 17, 31, 32, 33, 48, 65)
SHAPES = [
    *itertools.product((2,), NAMES, (3, 16)),
    *((1 + i % 3, name, C) for i, C in enumerate(CHANNELS) for name in ("2x2, rest", "3x3 by 2", "3x3 by 3")),
]


def pixels_of(name):
    return GEOMETRIES[name][:2]


def windows_of(name):
    return dict(zip(("size", "stride", "padding"), GEOMETRIES[name][2:], strict=True))


def walled(a, wall=np.nan):
    """A copy between walls of a number that is not in it."""
    memory = np.full(a.size + 256, wall, a.dtype)
    memory[128:-128] = a.ravel()
    return memory[128:-128].reshape(a.shape)


def assert_nothing_beside(*results):
    """That the walls of 7 around these stand; in one of NaN, what was formed from an input's wall would not show."""
    for a in results:
        assert (a.base[:128] == 7).all(), "written before a result"
        assert (a.base[-128:] == 7).all(), "written behind a result"


def images(N, name, C, dtype, seed=0):
    return walled(np.random.default_rng(seed).standard_normal((N, *pixels_of(name), C)).astype(dtype))


def like(y, seed=1):
    return walled(np.random.default_rng(seed).standard_normal(y.shape).astype(y.dtype))


@pytest.fixture
def threads():
    before = dd.get_num_threads()
    yield dd.set_num_threads
    dd.set_num_threads(before)


def on_both_threads(run, threads):
    """The results on one thread, which must be those on two, bit for bit."""
    results = []
    for n in (1, 2):
        threads(n)
        got = run()
        results.append(got if isinstance(got, tuple) else (got,))
    for a, b in zip(*results, strict=True):
        np.testing.assert_array_equal(a, b)
    return results[0] if len(results[0]) > 1 else results[0][0]


def assert_close(got, exact, magnitude, dtype, roundings):
    assert got.dtype == dtype
    assert got.shape == exact.shape
    error = np.abs(got - exact) - roundings * EPS[dtype] * magnitude
    assert (error <= 0).all(), f"off by {error.max():.2e} beyond the budget"


# ---- the definitions -------------------------------------------------------------------------------------------------


def both(value):
    return value if isinstance(value, tuple) else (value, value)


def each_window(x, size, stride, padding):
    """Number and upper left corner of every window, and the pixels in it that belong to the image, in order."""
    size, padding = both(size), both(padding)
    stride = size if stride is None else both(stride)
    (_, H, W, _) = x.shape
    for p, top in enumerate(range(-padding[0], H + padding[0] - size[0] + 1, stride[0])):
        for q, left in enumerate(range(-padding[1], W + padding[1] - size[1] + 1, stride[1])):
            inside = [
                (i * size[1] + j, top + i, left + j)
                for i, j in np.ndindex(size)
                if 0 <= top + i < H and 0 <= left + j < W
            ]
            yield p, q, inside


@pytest.mark.parametrize("name", NAMES)
def test_definitions_equal_loops(name):
    x = images(2, name, 3, "float64")
    y, place = k.max_pool2d_forward.numpy(x, **windows_of(name))
    mean = k.avg_pool2d_forward.numpy(x, **windows_of(name))
    area = np.prod(both(windows_of(name)["size"]))
    seen = set()
    for p, q, inside in each_window(x, **windows_of(name)):
        for n, c in np.ndindex(2, 3):
            largest = max(inside, key=lambda at: x[n, at[1], at[2], c])
            assert place[n, p, q, c] == largest[0]
            assert y[n, p, q, c] == x[n, largest[1], largest[2], c]
            assert mean[n, p, q, c] == pytest.approx(sum(x[n, h, w, c] for _, h, w in inside) / area)
            seen.add((n, p, q, c))
    assert len(seen) == y.size == place.size == mean.size


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", ["max", "avg", "global"])
def test_gradients_of_the_definitions_by_central_differences(kind, name):
    """The numbers are 1e-3 apart or more, so that a small step changes no window's largest."""
    shape = (2, *pixels_of(name), 2)
    order = np.random.default_rng(2).permutation(np.prod(shape)) - 37.0
    x, windows = order.reshape(shape) * 1e-3, windows_of(name)

    def pooled(x):
        if kind == "max":
            return k.max_pool2d_forward.numpy(x, **windows)[0]
        return k.avg_pool2d_forward.numpy(x, **windows) if kind == "avg" else k.global_avg_pool2d_forward.numpy(x)

    u = like(pooled(x))
    if kind == "max":
        place = k.max_pool2d_forward.numpy(x, **windows)[1]
        dx = k.max_pool2d_backward.numpy(u, place, shape[1:3], **windows)
    elif kind == "avg":
        dx = k.avg_pool2d_backward.numpy(u, shape[1:3], **windows)
    else:
        dx = k.global_avg_pool2d_backward.numpy(u, shape[1:3])
    assert dx.shape == x.shape
    for i in np.ndindex(shape):
        kept, sides = x[i], []
        for step in (1e-4, -1e-4):
            x[i] = kept + step
            sides.append((pooled(x) * u).sum())
        x[i] = kept
        assert dx[i] == pytest.approx((sides[0] - sides[1]) / 2e-4, rel=1e-7, abs=1e-8)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_values_by_hand(backend, dtype):
    x = np.array([[1, 5, 2, 7, 0], [3, 5, 9, 8, 0], [-1, -2, -3, -4, 0]], dtype).reshape(1, 3, 5, 1)
    with dd.backend(backend):
        y, place = k.max_pool2d_forward(x, 2)
        np.testing.assert_array_equal(y[0, :, :, 0], [[5, 9]])
        np.testing.assert_array_equal(place[0, :, :, 0], [[1, 2]])  # the first of two fives
        dy = np.array([10, 20], dtype).reshape(1, 1, 2, 1)
        dx = k.max_pool2d_backward(dy, place, (3, 5), 2)
        np.testing.assert_array_equal(dx[0, :, :, 0], [[0, 10, 0, 0, 0], [0, 0, 20, 0, 0], [0] * 5])
        np.testing.assert_array_equal(k.avg_pool2d_forward(x, (3, 1), (1, 4))[0, :, :, 0], [[1, 0]])
        dx = k.avg_pool2d_backward(dy, (3, 5), (1, 2), (3, 3))
        np.testing.assert_array_equal(dx[0, :, :, 0], [[5, 5, 0, 10, 10], [0] * 5, [0] * 5])
        np.testing.assert_allclose(k.global_avg_pool2d_forward(x), [[2]], rtol=1e-6)
        dx = k.global_avg_pool2d_backward(np.array([[30]], dtype), (3, 5))
        np.testing.assert_allclose(dx[0, :, :, 0], np.full((3, 5), 2), rtol=1e-6)


# ---- the fast kernels ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("N", "name", "C"), SHAPES)
class TestEquality:
    def test_max_pool(self, N, name, C, dtype, threads):
        x, windows = images(N, name, C, dtype), windows_of(name)
        x.flat[:: 2 * C + 1] = np.round(x.flat[:: 2 * C + 1])  # some alike: the first counts
        y, place = k.max_pool2d_forward.numpy(x, **windows)
        out, marks, dx = (walled(np.full_like(a, value), 7) for a, value in ((y, np.nan), (place, 200), (x, np.nan)))
        on_both_threads(lambda: k.max_pool2d_forward.fast(x, **windows, out=out, place=marks), threads)
        np.testing.assert_array_equal(out, y)
        np.testing.assert_array_equal(marks, place)
        dy, pixels = like(y), x.shape[1:3]
        got = on_both_threads(lambda: k.max_pool2d_backward.fast(dy, place, pixels, **windows, dx=dx).copy(), threads)
        wide = dy.astype("float64")
        exact = k.max_pool2d_backward.numpy(wide, place, pixels, **windows)
        magnitude = k.max_pool2d_backward.numpy(np.abs(wide), place, pixels, **windows)
        assert_close(got, exact, magnitude, dtype, 4)
        np.testing.assert_array_equal(got[magnitude == 0], 0)
        assert_nothing_beside(out, marks, dx)

    def test_avg_pool(self, N, name, C, dtype, threads):
        x, windows = images(N, name, C, dtype), windows_of(name)
        wide = x.astype("float64")
        exact = k.avg_pool2d_forward.numpy(wide, **windows)
        out, dx = walled(np.full(exact.shape, np.nan, dtype), 7), walled(np.full_like(x, np.nan), 7)
        got = on_both_threads(lambda: k.avg_pool2d_forward.fast(x, **windows, out=out).copy(), threads)
        area = np.prod(both(windows["size"]))
        assert_close(got, exact, k.avg_pool2d_forward.numpy(np.abs(wide), **windows), dtype, 4 + 2 * np.sqrt(area))
        dy, pixels = like(out), x.shape[1:3]
        got = on_both_threads(lambda: k.avg_pool2d_backward.fast(dy, pixels, **windows, dx=dx).copy(), threads)
        exact, magnitude = (
            k.avg_pool2d_backward.numpy(d, pixels, **windows) for d in (dy.astype("float64"), abs(dy.astype("float64")))
        )
        assert_close(got, exact, magnitude, dtype, 4 + 2 * np.sqrt(area))
        assert_nothing_beside(out, dx)

    def test_global_avg_pool(self, N, name, C, dtype, threads):
        x = images(N, name, C, dtype)
        wide, pixels = x.astype("float64"), x.shape[1:3]
        out, dx = walled(np.full((N, C), np.nan, dtype), 7), walled(np.full_like(x, np.nan), 7)
        got = on_both_threads(lambda: k.global_avg_pool2d_forward.fast(x, out=out).copy(), threads)
        magnitude = k.global_avg_pool2d_forward.numpy(np.abs(wide))
        assert_close(got, k.global_avg_pool2d_forward.numpy(wide), magnitude, dtype, 4 + 2 * np.sqrt(np.prod(pixels)))
        dy = like(out)
        got = on_both_threads(lambda: k.global_avg_pool2d_backward.fast(dy, pixels, dx=dx).copy(), threads)
        exact = k.global_avg_pool2d_backward.numpy(dy.astype("float64"), pixels)
        assert_close(got, exact, np.abs(exact), dtype, 2)
        assert_nothing_beside(out, dx)


# Worth two threads.
LARGE = {"2x2 at 32": (33, 32, 2, None, 0), "3x3 by 2 at 32": (32, 31, 3, 2, 1), "4x3 at 32": (32, 31, (4, 3), None, 0)}
GEOMETRIES |= LARGE


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("C", [16, 37])
@pytest.mark.parametrize("name", LARGE)
def test_equality_where_threads_share(name, C, dtype, threads):
    for test in ("max_pool", "avg_pool", "global_avg_pool"):
        getattr(TestEquality(), f"test_{test}")(5, name, C, dtype, threads)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", NAMES)
def test_no_images_and_no_channels(name, backend):
    windows = windows_of(name)
    for N, C in ((0, 5), (3, 0)):
        x = images(N, name, C, "float32")
        with dd.backend(backend):
            y, place = k.max_pool2d_forward(x, **windows)
            mean = k.avg_pool2d_forward(x, **windows)
            assert y.shape == place.shape == mean.shape
            assert (y.shape[0], y.shape[3]) == (N, C)
            assert k.max_pool2d_backward(y, place, x.shape[1:3], **windows).shape == x.shape
            assert k.avg_pool2d_backward(y, x.shape[1:3], **windows).shape == x.shape
            assert k.global_avg_pool2d_forward(x).shape == (N, C)
            assert k.global_avg_pool2d_backward(x[:, 0, 0], x.shape[1:3]).shape == x.shape


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("C", [1, 16, 19])
def test_the_first_nan_is_the_largest(C, dtype, backend):
    x = np.full((1, 2, 6, C), np.inf, dtype)
    x[0, 0, 1] = x[0, 1, 0] = np.nan  # the second pixel of four, and the third
    x[0, 1, 3] = np.nan
    x[0, :, 4:] = -np.inf
    x[0, 1, 5] = -1
    with dd.backend(backend):
        y, place = k.max_pool2d_forward(x, 2)
        np.testing.assert_array_equal(y[0, 0], np.repeat([[np.nan], [np.nan], [-1]], C, axis=1))
        np.testing.assert_array_equal(place[0, 0], np.repeat([[1], [3], [3]], C, axis=1))
        for channel in range(C):  # one lane alone
            x = np.arange(8 * C, dtype=dtype).reshape(1, 2, 4, C)
            x[0, 0, 0, channel] = np.nan
            y, place = k.max_pool2d_forward(x, 2)
            expected = np.full((2, C), 3)
            expected[0, channel] = 0
            np.testing.assert_array_equal(place[0, 0], expected)
            np.testing.assert_array_equal(np.isnan(y[0, 0]), expected == 0)
        for mean in (k.avg_pool2d_forward(x, 2)[0, 0], k.global_avg_pool2d_forward(x)):
            np.testing.assert_array_equal(np.isnan(mean[0]), np.arange(C) == channel)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ["2x2 padded", "3x3 by 2", "3x3 same", "all different", "overlapping", "one pixel"])
def test_the_largest_never_lies_in_the_padding(name, dtype, backend):
    """Not even where everything is minus infinity."""
    x, windows = np.full((1, *pixels_of(name), 17), -np.inf, dtype), windows_of(name)
    with dd.backend(backend):
        y, place = k.max_pool2d_forward(x, **windows)
        for p, q, inside in each_window(x, **windows):
            np.testing.assert_array_equal(place[0, p, q], inside[0][0])
        np.testing.assert_array_equal(y, -np.inf)
        dx = k.max_pool2d_backward(np.ones_like(y), place, x.shape[1:3], **windows)
        assert dx.sum() == y.size


def test_nan_and_infinity_of_a_gradient_stay_visible():
    for bad in (np.nan, np.inf):
        x = np.random.default_rng(0).standard_normal((2, 9, 8, 17)).astype("float32")
        for windows in ({"size": 2}, {"size": 3, "stride": 2, "padding": 1}):
            y, place = k.max_pool2d_forward(x, **windows)
            dy = np.ones_like(y)
            dy[1, 2, 3, 4] = bad
            for run in (k.max_pool2d_backward.fast, k.max_pool2d_backward.numpy):
                dx = run(dy, place, (9, 8), **windows)
                assert np.argwhere(~np.isfinite(dx)).tolist() in [[[1, h, w, 4]] for h in (3, 4, 5) for w in (5, 6, 7)]
            dx = k.avg_pool2d_backward.fast(dy, (9, 8), **windows)
            np.testing.assert_array_equal(
                np.isfinite(dx), np.isfinite(k.avg_pool2d_backward.numpy(dy, (9, 8), **windows))
            )
            assert not np.isfinite(dx).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", NAMES)
def test_pytorch_agrees(name, dtype):
    torch = pytest.importorskip("torch")
    F = torch.nn.functional
    x, windows = images(2, name, 5, dtype), windows_of(name)
    tolerance = {"rtol": 1e-5, "atol": 1e-6} if dtype == "float32" else {"rtol": 1e-11, "atol": 1e-13}
    (H, W), (_, columns), (above, left) = x.shape[1:3], both(windows["size"]), both(windows["padding"])
    down, right = both(windows["stride"] or windows["size"])
    y, place = k.max_pool2d_forward(x, **windows)
    options = (windows["size"], windows["stride"], windows["padding"])
    theirs = torch.tensor(x.transpose(0, 3, 1, 2)).requires_grad_()
    their_y, where = F.max_pool2d(theirs, *options, return_indices=True)
    np.testing.assert_array_equal(y, their_y.detach().numpy().transpose(0, 2, 3, 1))
    p, q = np.ogrid[: y.shape[1], : y.shape[2]]
    h = (p * down - above)[:, :, None] + place // columns
    w = (q * right - left)[:, :, None] + place % columns
    np.testing.assert_array_equal(h * W + w, where.numpy().transpose(0, 2, 3, 1))
    dy = like(y)
    for ours, their in (
        (k.max_pool2d_backward(dy, place, (H, W), **windows), their_y),
        (k.avg_pool2d_backward(dy, (H, W), **windows), F.avg_pool2d(theirs, *options)),
    ):
        (gradient,) = torch.autograd.grad(their, theirs, torch.tensor(dy.transpose(0, 3, 1, 2)))
        np.testing.assert_allclose(ours, gradient.numpy().transpose(0, 2, 3, 1), **tolerance)
    mean = F.avg_pool2d(theirs, *options).detach().numpy().transpose(0, 2, 3, 1)
    np.testing.assert_allclose(k.avg_pool2d_forward(x, **windows), mean, **tolerance)
    mean = F.adaptive_avg_pool2d(theirs, 1)[:, :, 0, 0]
    np.testing.assert_allclose(k.global_avg_pool2d_forward(x), mean.detach(), **tolerance)
    (gradient,) = torch.autograd.grad(mean, theirs, torch.tensor(dy[:, 0, 0]))
    ours = k.global_avg_pool2d_backward(np.ascontiguousarray(dy[:, 0, 0]), (H, W))
    np.testing.assert_allclose(ours, gradient.numpy().transpose(0, 2, 3, 1), **tolerance)


# ---- arguments -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", BACKENDS)
def test_results_are_put_where_they_are_wanted_and_any_layout_is_read(backend):
    x = images(2, "3x3 by 2", 5, "float32")
    windows, pixels = windows_of("3x3 by 2"), x.shape[1:3]
    with dd.backend(backend):
        y, place = k.max_pool2d_forward(x, **windows)
        mean, whole = k.avg_pool2d_forward(x, **windows), k.global_avg_pool2d_forward(x)
        other = np.ascontiguousarray(x.transpose(0, 3, 1, 2)).transpose(0, 2, 3, 1)
        other.flags.writeable = False
        outs = np.empty_like(y), np.empty_like(place)
        got = k.max_pool2d_forward(other, **windows, out=outs[0], place=outs[1])
        assert all(a is b for a, b in zip(got, outs, strict=True))
        np.testing.assert_array_equal(outs[0], y)
        np.testing.assert_array_equal(outs[1], place)
        assert k.avg_pool2d_forward(other, **windows, out=outs[0]) is outs[0]
        np.testing.assert_array_equal(outs[0], mean)
        assert k.global_avg_pool2d_forward(other, out=whole) is whole
        dy, marks = np.asfortranarray(y), np.asfortranarray(place)
        dx = np.empty_like(x)
        assert k.max_pool2d_backward(dy, marks, pixels, **windows, dx=dx) is dx
        np.testing.assert_array_equal(dx, k.max_pool2d_backward(y, place, pixels, **windows))
        assert k.avg_pool2d_backward(dy, pixels, **windows, dx=dx) is dx
        np.testing.assert_array_equal(dx, k.avg_pool2d_backward(y, pixels, **windows))
        assert k.global_avg_pool2d_backward(np.asfortranarray(whole), pixels, dx=dx) is dx
        np.testing.assert_array_equal(dx, k.global_avg_pool2d_backward(whole, pixels))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("windows", "at", "wrong"),
    [
        ({"size": 2}, (1, 2, 3, 18), 4),
        ({"size": 2}, (0, 0, 0, 0), 255),
        ({"size": (1, 3), "stride": 1}, (2, 7, 5, 7), 3),
        ({"size": 3, "stride": 2, "padding": 1}, (1, 0, 2, 3), 2),  # above the image
        ({"size": 3, "stride": 2, "padding": 1}, (2, 3, 0, 18), 3),  # left of it
        ({"size": 3, "stride": 2, "padding": 1}, (0, 1, 3, 17), 9),  # in no window
        ({"size": (2, 4), "stride": (2, 1), "padding": (1, 2)}, (0, 4, 4, 0), 4),  # below: only row 0 is inside
        ({"size": (2, 4), "stride": (2, 1), "padding": (1, 2)}, (0, 1, 8, 1), 2),  # right of it
    ],
)
def test_a_place_that_is_none_is_refused_before_anything_is_written(windows, at, wrong, backend, threads):
    for n in (1, 2):
        threads(n)
        x = np.random.default_rng(0).standard_normal((3, 8, 8, 19)).astype("float32")
        y, place = k.max_pool2d_forward(x, **windows)
        before = k.max_pool2d_backward(y, place, (8, 8), **windows)
        dx = before.copy()
        place[at] = wrong
        message = (
            rf"place: expected a pixel of the image in a window of .*, got {wrong} at \({', '.join(map(str, at))}\)"
        )
        with dd.backend(backend), pytest.raises(ValueError, match=message):
            k.max_pool2d_backward(y + 1, place, (8, 8), **windows, dx=dx)
        np.testing.assert_array_equal(dx, before)


X = np.zeros((2, 6, 8, 3), "float32")
Y = np.zeros((2, 3, 4, 3), "float32")
PLACE = np.zeros((2, 3, 4, 3), "uint8")
READ_ONLY = Y.copy()
READ_ONLY.flags.writeable = False


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("error", "message", "call"),
    [
        (TypeError, "x: expected an ndarray", lambda: k.max_pool2d_forward([[1.0]], 2)),
        (TypeError, "x: expected dtype float32 or float64, got uint8", lambda: k.max_pool2d_forward(PLACE, 2)),
        (TypeError, "x: expected dtype float32 or float64, got >f4", lambda: k.avg_pool2d_forward(X.astype(">f4"), 2)),
        (ValueError, r"x: expected shape \(any, any, any, any\), got", lambda: k.max_pool2d_forward(X[0], 2)),
        (ValueError, "x: expected images of at least 1 x 1 pixels", lambda: k.max_pool2d_forward(X[:, :0], 2)),
        (ValueError, "x: expected images of at least 1 x 1", lambda: k.avg_pool2d_forward(X[:, :, :0], 2, padding=1)),
        (ValueError, "x: expected images of at least 1 x 1", lambda: k.global_avg_pool2d_forward(X[:, :0])),
        (TypeError, "size: expected an int or a pair", lambda: k.max_pool2d_forward(X, 2.0)),
        (TypeError, "size: expected an int or a pair", lambda: k.max_pool2d_forward(X, None)),
        (TypeError, "size: expected an int or a pair", lambda: k.max_pool2d_forward(X, (2, 2, 2))),
        (TypeError, "size: expected an int or a pair", lambda: k.max_pool2d_forward(X, True)),
        (TypeError, "stride: expected an int or a pair", lambda: k.max_pool2d_forward(X, 2, (1, True))),
        (ValueError, "size: expected at least 1, got 0", lambda: k.max_pool2d_forward(X, 0)),
        (ValueError, r"size: expected at least 1, got \(2, 0\)", lambda: k.avg_pool2d_forward(X, (2, 0))),
        (ValueError, "size: expected at most", lambda: k.avg_pool2d_forward(X, (1, 2**70))),
        (ValueError, "size: .* at most 255 pixels, got 16 x 16", lambda: k.max_pool2d_forward(X, 16)),
        (ValueError, "size: expected windows that fit into .* 6 x 8 pixels", lambda: k.max_pool2d_forward(X, 7)),
        (ValueError, "size: .* 6 x 8 pixels.* span 2 x 9", lambda: k.avg_pool2d_backward(Y, (6, 8), (2, 9))),
        (ValueError, "stride: expected at least 1, got 0", lambda: k.avg_pool2d_forward(X, 2, 0)),
        (ValueError, "stride: expected at most", lambda: k.avg_pool2d_forward(X, 2, 2**31)),
        (ValueError, "padding: expected at least 0", lambda: k.max_pool2d_forward(X, 2, padding=-1)),
        (ValueError, "padding: expected at most half .*, got", lambda: k.max_pool2d_forward(X, 3, padding=(1, 2))),
        (ValueError, r"out: expected shape \(2, 3, 4, 3\)", lambda: k.max_pool2d_forward(X, 2, out=X)),
        (TypeError, "out: expected dtype", lambda: k.max_pool2d_forward(X, 2, out=Y.astype("float64"))),
        (ValueError, "out: expected a writable", lambda: k.avg_pool2d_forward(X, 2, out=READ_ONLY)),
        (ValueError, "out: expected a C-contiguous", lambda: k.avg_pool2d_forward(X, 2, out=np.asfortranarray(Y))),
        (TypeError, "place: expected dtype uint8", lambda: k.max_pool2d_forward(X, 2, place=PLACE.astype("int8"))),
        (ValueError, r"place: expected shape \(2, 3, 4, 3\)", lambda: k.max_pool2d_forward(X, 2, place=PLACE[:1])),
        (ValueError, r"out: expected shape \(2, 3\)", lambda: k.global_avg_pool2d_forward(X, np.zeros((3, 2), "f"))),
        (ValueError, "dy: expected shape", lambda: k.max_pool2d_backward(Y, PLACE, (6, 9), (2, 1))),
        (ValueError, r"dy: .*\(any, 2, 4, any\)", lambda: k.avg_pool2d_backward(Y, (5, 8), 2)),
        (TypeError, "dy: expected dtype", lambda: k.avg_pool2d_backward(PLACE, (6, 8), 2)),
        (ValueError, "dy: expected shape", lambda: k.global_avg_pool2d_backward(Y, (6, 8))),
        (TypeError, "place: expected dtype uint8", lambda: k.max_pool2d_backward(Y, Y, (6, 8), 2)),
        (ValueError, "place: expected shape", lambda: k.max_pool2d_backward(Y, PLACE[:1], (6, 8), 2)),
        (TypeError, "image: expected an int or a pair", lambda: k.max_pool2d_backward(Y, PLACE, "68", 2)),
        (ValueError, "image: expected at least 1", lambda: k.global_avg_pool2d_backward(Y[:, 0, 0], (6, 0))),
        (ValueError, "dx: expected shape", lambda: k.max_pool2d_backward(Y, PLACE, (6, 8), 2, dx=Y)),
        (TypeError, "dx: expected dtype", lambda: k.avg_pool2d_backward(Y, (6, 8), 2, dx=X.astype("float64"))),
        (ValueError, "dx: expected shape", lambda: k.global_avg_pool2d_backward(Y[:, 0, 0], (8, 6), dx=X)),
    ],
)
def test_bad_input_is_named(error, message, call, backend):
    with dd.backend(backend), pytest.raises(error, match=message):
        call()


def test_results_may_not_overlap():
    memory = np.zeros(600, "float32")
    x, out = memory[:288].reshape(X.shape), memory[287:359].reshape(Y.shape)
    own = "expected memory of its own for the result, got an array that overlaps"
    with pytest.raises(ValueError, match=f"out: {own} x"):
        k.max_pool2d_forward(x, 2, out=out)
    with pytest.raises(ValueError, match=f"out: {own} x"):
        k.avg_pool2d_forward(x, 2, out=out)
    with pytest.raises(ValueError, match=f"out: {own} x"):
        k.global_avg_pool2d_forward(x, memory[:6].reshape(2, 3))
    place = memory.view("uint8")[:72].reshape(Y.shape)
    with pytest.raises(ValueError, match=f"place: {own} x"):
        k.max_pool2d_forward(x, 2, place=place)
    with pytest.raises(ValueError, match=f"place: {own} out"):
        k.max_pool2d_forward(X, 2, out=memory[:72].reshape(Y.shape), place=place)
    with pytest.raises(ValueError, match=f"dx: {own} dy"):
        k.max_pool2d_backward(out, PLACE, (6, 8), 2, dx=x)
    with pytest.raises(ValueError, match=f"dx: {own} place"):
        k.max_pool2d_backward(Y, place, (6, 8), 2, dx=x)
    with pytest.raises(ValueError, match=f"dx: {own} dy"):
        k.avg_pool2d_backward(out, (6, 8), 2, dx=x)
    with pytest.raises(ValueError, match=f"dx: {own} dy"):
        k.global_avg_pool2d_backward(memory[:6].reshape(2, 3), (6, 8), dx=x)
