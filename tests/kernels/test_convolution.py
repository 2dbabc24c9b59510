"""Convolution: the definition against plain loops and central differences, the fast kernels against the definition."""

import contextlib
import itertools
from typing import NamedTuple

import numpy as np
import pytest
from scipy.ndimage import maximum_filter

import dd2424fast as dd
from dd2424fast import kernels
from dd2424fast.kernels import _team

EPS = {"float32": 2.0**-23, "float64": 2.0**-52}
ACTIVATIONS = ("identity", "relu", "leaky_relu", "tanh", "sigmoid")


class Shape(NamedTuple):
    """One convolution; `geometry` names the entry of GEOMETRIES that the rest comes from."""

    N: int
    C: int
    F: int
    groups: int
    geometry: str

    @property
    def options(self):
        _, _, _, stride, padding, dilation = GEOMETRIES[self.geometry]
        return {"stride": stride, "padding": padding, "dilation": dilation, "groups": self.groups}

    @property
    def algorithms(self):
        """With Winograd's algorithm wherever it pays, and without where it might."""
        _, _, window, stride, _, dilation = GEOMETRIES[self.geometry]
        return ("direct", "winograd") if (window, stride, dilation) == ((3, 3), 1, 1) else ("direct",)

    def operands(self, dtype, seed=0):
        """x, W, b, scale and a dy: between walls of NaN, so that what is read beyond their ends shows."""
        H, W, (height, width), *_ = GEOMETRIES[self.geometry]
        rng = np.random.default_rng(seed)
        x, filters = (self.N, H, W, self.C), (height, width, self.C // self.groups, self.F)
        dy = (self.N, *self.counts, self.F)
        return [walled(rng.standard_normal(s).astype(dtype)) for s in (x, filters, (self.F,), (self.F,), dy)]

    @property
    def counts(self):
        H, W, *windows = GEOMETRIES[self.geometry]
        sizes = zip((H, W), *map(both, windows), strict=True)
        return tuple((n + 2 * p - d * (k - 1) - 1) // s + 1 for n, k, s, p, d in sizes)

    def __str__(self):
        groups = f"-{self.groups}groups" if self.groups > 1 else ""
        return f"{self.N}x{self.C}to{self.F}{groups}-{self.geometry}"


# Height and width of the images and of the window, stride, padding, dilation.
GEOMETRIES = {
    "1x1": (5, 7, (1, 1), 1, 0, 1),
    "1x1 apart": (7, 6, (1, 1), (2, 3), (1, 0), 1),
    "2x2": (4, 5, (2, 2), 1, 0, 1),
    "patches": (8, 6, (2, 2), 2, 0, 1),
    "patches, rest": (9, 7, (4, 4), 4, 0, 1),
    "oblong patches": (7, 8, (3, 2), (3, 2), 0, 1),
    "patches padded above": (6, 6, (2, 2), 2, (1, 0), 1),
    "patches padded beside": (6, 6, (2, 2), 2, (0, 1), 1),
    "patches with holes": (9, 6, (2, 2), 2, 0, (2, 1)),
    "patches with gaps": (6, 9, (2, 2), 2, 0, (1, 2)),
    "patches over each other": (6, 7, (2, 3), (2, 1), 0, 1),
    "patches under each other": (7, 6, (3, 2), (1, 2), 0, 1),
    "3x3 same": (7, 9, (3, 3), 1, 1, 1),
    "3x3 even": (8, 8, (3, 3), 1, 1, 1),
    "3x3 inside": (6, 5, (3, 3), 1, 0, 1),
    "3x3 of 32 cells": (3, 10, (3, 3), 1, 1, 1),  # a tile of the matrix unit, borders included
    "3x3 by 2": (9, 8, (3, 3), 2, 1, 1),
    "3x3 by 2 inside": (8, 9, (3, 3), 2, 0, 1),
    "4x4 by 2": (6, 5, (4, 4), 2, 2, 1),
    "3x3 of a pixel": (1, 1, (3, 3), 1, 1, 1),
    "3x3 far out": (2, 3, (3, 3), 1, 5, 1),
    "5x5": (6, 5, (5, 5), 1, 2, 1),
    "7x7 by 2": (11, 10, (7, 7), 2, 3, 1),
    "4x1": (6, 3, (4, 1), 1, (2, 0), 1),
    "1x5": (2, 9, (1, 5), 1, (0, 1), 1),
    "far apart": (10, 11, (2, 1), (3, 4), 0, 1),
    "holes": (9, 10, (3, 3), 1, (2, 3), (2, 3)),
    "holes by 3": (8, 14, (1, 3), (1, 3), (0, 3), (1, 2)),
    "two taps by 3": (8, 13, (1, 2), (1, 3), (0, 2), (1, 2)),
    "holes by (2, 3)": (13, 12, (3, 3), (2, 3), (2, 1), (3, 2)),
    "all different": (11, 13, (3, 2), (2, 3), (1, 2), (2, 1)),
    "one window": (4, 5, (4, 5), (2, 7), 0, 1),
}
CHANNELS = (1, 2, 3, 5, 16, 17, 31, 32, 33, 48, 64, 65, 130)
GROUPED = [  # channels, filters, groups; the last six depthwise
    *[(4, 6, 2), (6, 4, 2), (9, 33, 3), (32, 64, 2), (48, 96, 3), (130, 34, 2)],
    *[(1, 3, 1), (3, 3, 3), (16, 32, 16), (17, 17, 17), (64, 64, 64), (130, 130, 130)],
]


def matrix():
    """Every pair of channel counts with some geometry, every geometry with the usual pairs and with groups."""
    names = list(GEOMETRIES)
    for i, (C, F) in enumerate(itertools.product(CHANNELS, CHANNELS)):
        yield Shape((3, 1, 2)[i % 3], C, F, 1, names[i % len(names)])
    for i, name in enumerate(names):
        yield Shape(3, 3, 32, 1, name)
        yield Shape(2, 64, 64, 1, name)
        for C, F, groups in GROUPED[i % 3 :: 3]:
            yield Shape(1 + i % 3, C, F, groups, name)


SHAPES = list(dict.fromkeys(matrix()))


def both(value):
    return value if isinstance(value, tuple) else (value, value)


def walled(a, wall=np.nan):
    memory = np.full(a.size + 128, wall, a.dtype)
    memory[64:-64] = a.ravel()
    return memory[64:-64].reshape(a.shape)


def assert_nothing_beside(*results):
    """That the walls of 7 around these stand; in one of NaN, what was formed from an input's wall would not show."""
    for a in results:
        assert (a.base[:64] == 7).all(), "written before a result"
        assert (a.base[-64:] == 7).all(), "written behind a result"


@pytest.fixture
def threads():
    before = dd.get_num_threads()
    yield dd.set_num_threads
    dd.set_num_threads(before)


@contextlib.contextmanager
def by(algorithm):
    before = _team.get_winograd()
    _team.set_winograd(algorithm == "winograd")
    try:
        yield
    finally:
        _team.set_winograd(before)


@pytest.fixture(params=["direct", "winograd"])
def algorithm(request):
    with by(request.param):
        yield request.param


@pytest.fixture(params=["vectors", "unit"])
def product_unit(request):
    """The matrix unit off, then on where there is one."""
    before = dd.get_matrix_unit()
    if request.param == "unit" and not _team.has_matrix_unit():
        pytest.skip("this CPU, system or build has no matrix unit")
    dd.set_matrix_unit(request.param == "unit")
    yield request.param
    dd.set_matrix_unit(before)


def on_both_threads(run, threads):
    """The results on one thread, which must be those on two, bit for bit."""
    results = []
    for n in (1, 2):
        threads(n)
        got = run()
        results.append(got if isinstance(got, tuple) else (got,))
    for a, b in zip(*results, strict=True):
        np.testing.assert_array_equal(a, b)  # None equals None
    return results[0] if len(results[0]) > 1 else results[0][0]


def wide(*arrays):
    return [a.astype("float64") for a in arrays]


def assert_close(got, exact, magnitude, terms, dtype, extra=0.0):
    """Within a rounding budget that scales with the sum of |a||b|, not with the cancelled sum. In float64 the exact
    value is as inexact as what is judged by it."""
    assert got.dtype == dtype
    assert got.shape == exact.shape
    budget = (2 if dtype == "float32" else 4) * EPS[dtype] * ((np.sqrt(terms) + 2) * magnitude + extra)
    error = np.abs(got - exact)
    assert (error <= budget).all(), f"off by {np.max(error - budget):.2e} beyond the budget"


def forward_exact(x, W, **options):
    """The result in float64, and what it would be if nothing cancelled."""
    x, W = wide(x, W)
    return kernels.conv2d_forward.numpy(x, W, **options), kernels.conv2d_forward.numpy(np.abs(x), np.abs(W), **options)


def backward_exact(dy, x, W, **options):
    run = kernels.conv2d_backward.numpy
    dy, x, W = wide(dy, x, W)
    return run(dy, x, W, **options), run(np.abs(dy), np.abs(x), np.abs(W), **options)


def around(magnitude, algorithm):
    """Of images. Winograd's squares of 4 x 4 results share their roundings: the largest near by counts for all."""
    return maximum_filter(magnitude, (1, 7, 7, 1)) if algorithm == "winograd" and magnitude.size else magnitude


def over_taps(magnitude, algorithm):
    """Of filters, whose 3 x 3 weights share them."""
    return magnitude.max(axis=(0, 1), keepdims=True) if algorithm == "winograd" else magnitude


# ---- the definition --------------------------------------------------------------------------------------------------


def by_loops(x, W, stride, padding, dilation, groups):
    """The sum as it is written in the docstring."""
    (N, height, width, _), (rows, columns, C, F) = x.shape, W.shape
    stride, padding, dilation = both(stride), both(padding), both(dilation)
    y = np.zeros((N, 99, 99, F))
    P = Q = 0
    for n, p, q, f in np.ndindex(N, 99, 99, F):
        top, left = p * stride[0] - padding[0], q * stride[1] - padding[1]
        bottom, right = top + (rows - 1) * dilation[0], left + (columns - 1) * dilation[1]
        if bottom >= height + padding[0] or right >= width + padding[1]:
            continue
        P, Q = max(P, p + 1), max(Q, q + 1)
        for i, j, c in np.ndindex(rows, columns, C):
            h, w = top + i * dilation[0], left + j * dilation[1]
            if 0 <= h < height and 0 <= w < width:
                y[n, p, q, f] += x[n, h, w, f // (F // groups) * C + c] * W[i, j, c, f]
    return y[:, :P, :Q]


SMALL = [
    *[Shape(1, 2, 3, 1, name) for name in GEOMETRIES],
    *[Shape(2, 4, 6, 2, "all different"), Shape(1, 3, 6, 3, "all different")],
]


@pytest.mark.parametrize("shape", SMALL, ids=str)
def test_definition_equals_loops(shape):
    x, W, *_ = shape.operands("float64")
    got = kernels.conv2d_forward.numpy(x, W, **shape.options)
    np.testing.assert_allclose(got, by_loops(x, W, **shape.options), rtol=1e-12, atol=1e-13)
    assert got.shape[1:3] == shape.counts


@pytest.mark.parametrize("shape", SMALL, ids=str)
def test_gradient_of_the_definition_by_central_differences(shape):
    x, W, b, _, u = shape.operands("float64", 1)
    gradients = kernels.conv2d_backward.numpy(u, x, W, **shape.options)
    step = 1e-3  # the loss is linear in each array: nothing but rounding
    for array, gradient in zip((x, W, b), gradients, strict=True):
        assert gradient.shape == array.shape
        for i in np.ndindex(array.shape):
            kept, sides = array[i], []
            for change in (step, -step):
                array[i] = kept + change
                sides.append((kernels.conv2d_forward.numpy(x, W, b, **shape.options) * u).sum())
            array[i] = kept
            assert gradient[i] == pytest.approx((sides[0] - sides[1]) / (2 * step), rel=1e-8, abs=1e-9)


@pytest.mark.parametrize("backend", ["fast", "numpy"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_values_by_hand(backend, dtype):
    x = np.arange(1, 7, dtype=dtype).reshape(1, 2, 3, 1)  # 1 2 3 / 4 5 6
    W = np.array([[1, 10], [100, 1000]], dtype).reshape(2, 2, 1, 1)
    with dd.backend(backend):
        y = kernels.conv2d_forward(x, W, np.array([0.5], dtype), padding=(0, 1))
        np.testing.assert_array_equal(y[0, :, :, 0], [[4010.5, 5421.5, 6532.5, 603.5]])
        y = kernels.conv2d_forward(x, W, np.array([-11000], dtype), scale=np.array([2], dtype), activation="relu")
        np.testing.assert_array_equal(y[0, :, :, 0], [[0, 2064]])
        dx, dW, db = kernels.conv2d_backward(np.array([1, 2], dtype).reshape(1, 1, 2, 1), x, W)
        np.testing.assert_array_equal(dx[0, :, :, 0], [[1, 12, 20], [100, 1200, 2000]])
        np.testing.assert_array_equal(dW[:, :, 0, 0], [[5, 8], [14, 17]])
        np.testing.assert_array_equal(db, [3])


def test_the_budget_finds_a_wrong_element():
    x, W, *_ = Shape(2, 5, 4, 1, "3x3 same").operands("float32")
    exact, magnitude = forward_exact(x, W, padding=1)
    wrong = exact.astype("float32")
    assert_close(wrong, exact, magnitude, 45, "float32")
    wrong[1, 2, 3, 1] += 1e-4
    with pytest.raises(AssertionError, match="beyond the budget"):
        assert_close(wrong, exact, magnitude, 45, "float32")


# ---- the fast kernels ------------------------------------------------------------------------------------------------


def check_forward(shape, dtype, threads, activation, seed=0):
    x, W, b, scale, dy = shape.operands(dtype, seed)
    exact, magnitude = forward_exact(x, W, **shape.options)
    before = np.float64(scale) * exact + b
    after = kernels.activation_forward.numpy(before, activation)
    extra = 2 * np.abs(b) + 4 * np.abs(after) + 4  # every activation's slope is at most 1
    terms, ends = W[..., 0].size, {"b": b, "activation": activation, "scale": scale}

    def run(**options):
        out = walled(np.full_like(dy, np.nan), 7)
        got = on_both_threads(
            lambda: kernels.conv2d_forward.fast(x, W, **shape.options, **options, out=out).copy(), threads
        )
        assert_nothing_beside(out)
        return got

    for algorithm, batched in itertools.product(shape.algorithms, (False, True)):
        allowed = around(magnitude, algorithm)
        with by(algorithm):
            assert_close(run(batched=batched), exact, allowed, terms, dtype)
            assert_close(run(batched=batched, **ends), after, np.abs(scale) * allowed, terms, dtype, extra)


def check_backward(shape, dtype, threads, seed=0):
    x, W, _, _, dy = shape.operands(dtype, seed)
    exact, magnitude = backward_exact(dy, x, W, **shape.options)
    terms = W.size // (W.shape[2] * shape.groups), dy[..., 0].size, dy[..., 0].size

    def run(*arrays, **options):
        return on_both_threads(lambda: once([None if a is None else walled(a, 7) for a in arrays], options), threads)

    def once(arrays, options):
        """With results of its own in each call: what is accumulated must be so once."""
        got = kernels.conv2d_backward.fast(dy, x, W, **shape.options, **results(arrays), **options)
        assert_nothing_beside(*(a for a in arrays if a is not None))
        return got

    for algorithm in shape.algorithms:
        allowed = around(magnitude[0], algorithm), over_taps(magnitude[1], algorithm), magnitude[2]
        with by(algorithm):
            dx, dW, db = run(*(np.full_like(a, np.nan) for a in (x, W, W[0, 0, 0])))
            for a, b, size, count in zip((dx, dW, db), exact, allowed, terms, strict=True):
                assert_close(a, b, size, count, dtype)
            _, *more = run(None, dW, db, need_dx=False, accumulate=True)
            for a, b, before, size, count in zip(more, exact[1:], (dW, db), allowed[1:], terms[1:], strict=True):
                assert_close(a, b + before, size, count, dtype, np.abs(before))


def results(arrays):
    return dict(zip(("dx", "dW", "db"), arrays, strict=True))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_fast_equals_definition(shape, dtype, threads):
    check_forward(shape, dtype, threads, ACTIVATIONS[(shape.C + shape.F) % 5])
    check_backward(shape, dtype, threads)


# Worth two threads and the matrix unit; images, channels and pixels that no block of either divides.
LARGE = {
    "3x3": (18, 21, (3, 3), 1, 1, 1),
    "3x3 at 33": (33, 32, (3, 3), 1, 1, 1),
    "3x3 by 2 at 21": (21, 22, (3, 3), 2, 1, 1),
    "3x3 by (2, 1)": (19, 17, (3, 3), (2, 1), (0, 1), 1),
    "3x3 with holes": (20, 15, (3, 3), 1, 2, (2, 1)),
    "5x4": (15, 16, (5, 4), 1, (2, 1), 1),
    "7x7 by 2 at 40": (40, 38, (7, 7), 2, 3, 1),
    "patches of 4": (36, 32, (4, 4), 4, 0, 1),
    "1x1 at 17": (17, 16, (1, 1), 1, 0, 1),
    "1x1 by 2": (17, 18, (1, 1), 2, 0, 1),
}
GEOMETRIES |= LARGE
LARGE_SHAPES = [
    *[Shape(7, 32, 33, 1, "3x3"), Shape(3, 64, 64, 1, "3x3"), Shape(1, 128, 130, 1, "3x3"), Shape(5, 3, 32, 1, "3x3")],
    *[Shape(2, 64, 64, 1, "3x3 at 33"), Shape(5, 16, 96, 1, "3x3"), Shape(3, 32, 64, 1, "3x3 by 2 at 21")],
    *[Shape(3, 33, 64, 1, "3x3 by (2, 1)"), Shape(3, 32, 48, 1, "3x3 with holes")],
    *[Shape(3, 17, 65, 1, "5x4"), Shape(3, 3, 64, 1, "7x7 by 2 at 40"), Shape(9, 16, 64, 1, "patches of 4")],
    *[Shape(9, 64, 80, 1, "1x1 at 17"), Shape(5, 48, 64, 1, "1x1 by 2"), Shape(3, 64, 96, 2, "3x3")],
    *[Shape(5, 66, 66, 66, "3x3"), Shape(3, 32, 64, 32, "3x3 by (2, 1)")],
]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("shape", LARGE_SHAPES, ids=str)
def test_fast_equals_definition_where_threads_share(shape, dtype, threads, product_unit):
    check_forward(shape, dtype, threads, "relu")
    check_backward(shape, dtype, threads)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("given", ["nothing", "b", "scale", "both"])
def test_the_end_of_a_tile(activation, given, dtype, threads):
    shape = Shape(2, 6, 37, 1, "3x3 same")
    x, W, b, scale, _ = shape.operands(dtype)
    exact, magnitude = forward_exact(x, W, **shape.options)
    ends = {"b": b if given in ("b", "both") else None, "scale": scale if given in ("scale", "both") else None}
    got = kernels.conv2d_forward.fast(x, W, **shape.options, activation=activation, **ends)
    factor, shift = (np.float64(1 if a is None else a) for a in (ends["scale"], ends["b"]))
    shift = 0 if ends["b"] is None else shift
    after = kernels.activation_forward.numpy(exact * factor + shift, activation)
    extra = 2 * np.abs(shift) + 4 * np.abs(after) + (activation in ("tanh", "sigmoid")) * 4
    assert_close(got, after, np.abs(factor) * magnitude, 54, dtype, extra)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(
    "shape",
    [Shape(0, C, F, g, name) for C, F, g in ((3, 5, 1), (4, 4, 4)) for name in ("3x3 same", "1x1", "patches")],
    ids=str,
)
def test_no_images(shape, dtype):
    x, W, b, scale, dy = shape.operands(dtype)
    y = kernels.conv2d_forward.fast(x, W, b, **shape.options, scale=scale)
    assert (y.shape, y.dtype) == (dy.shape, dtype)
    dx, dW, db = kernels.conv2d_backward.fast(dy, x, W, **shape.options, dW=np.full_like(W, np.nan))
    assert dx.shape == x.shape
    assert not dW.any()
    assert not db.any()
    dW, db = W.copy(), b.copy()
    kernels.conv2d_backward.fast(dy, x, W, **shape.options, dW=dW, db=db, accumulate=True)
    np.testing.assert_array_equal(dW, W)
    np.testing.assert_array_equal(db, b)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(
    ("x", "F"),
    [
        *[((2, 5, 6, 0), 4), ((2, 5, 6, 3), 0), ((1, 3, 0, 0), 0)],
        *[((2, 0, 6, 3), 4), ((2, 5, 0, 3), 4), ((1, 0, 0, 3), 4), ((16, 0, 30, 32), 32)],
    ],
)
def test_nothing_to_add_up(x, F, dtype):
    """No channels, no filters, or images that are padding alone."""
    x, W = np.ones(x, dtype), np.ones((3, 3, x[3], F), dtype)
    b = np.arange(F, dtype=dtype)
    y = kernels.conv2d_forward.fast(x, W, b, padding=2)
    expected = kernels.conv2d_forward.numpy(x, W, b, padding=2)
    np.testing.assert_array_equal(y, expected)
    for got, ref in zip(
        kernels.conv2d_backward.fast(expected, x, W, padding=2),
        kernels.conv2d_backward.numpy(expected, x, W, padding=2),
        strict=True,
    ):
        np.testing.assert_array_equal(got, ref)


MEMORY = [Shape(2, C, F, g, n) for C, F, g in ((3, 33, 1), (48, 64, 1), (32, 64, 2), (17, 17, 17)) for n in GEOMETRIES]
MEMORY = [s for s in MEMORY if s.geometry not in LARGE] + [Shape(7, 32, 33, 1, "3x3"), Shape(5, 64, 48, 1, "3x3")]


def fill_memory_with_nan(dtype):
    """The memory that a thread's convolutions work in: pixels of patches are copied there as they are."""
    x = np.empty((1, 1024, 1024, 1), dtype)
    x.view("uint8").fill(255)  # NaN as numbers of every width
    kernels.conv2d_forward.fast(x, np.ones((2, 2, 1, 1), dtype), stride=2)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("shape", MEMORY, ids=str)
def test_what_earlier_calls_left_in_memory_does_not_show(shape, dtype, product_unit):
    x, W, b, _, dy = shape.operands(dtype)
    for algorithm in shape.algorithms:
        with by(algorithm):
            fill_memory_with_nan(dtype)
            y = kernels.conv2d_forward.fast(x, W, b, **shape.options, batched=True)
            fill_memory_with_nan(dtype)
            for a in (y, *kernels.conv2d_backward.fast(dy, x, W, **shape.options)):
                assert np.isfinite(a).all()


ALONE = [Shape(5, C, F, g, name) for C, F, g in ((3, 17, 1), (64, 64, 1), (8, 8, 8)) for name in ("3x3 same", "1x1")]
ALONE += [Shape(5, 3, 64, 1, "patches"), Shape(7, 33, 48, 1, "3x3 by 2"), Shape(6, 64, 64, 1, "3x3")]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("shape", ALONE, ids=str)
def test_an_image_alone_has_the_same_bits(shape, dtype, product_unit):
    """By default, in a batch of any size: what is predicted for one image is what is predicted among many."""
    x, W, b, *_ = shape.operands(dtype)
    whole = kernels.conv2d_forward.fast(x, W, b, **shape.options)
    for part in (slice(0, 1), slice(2, 3), slice(1, 5)):
        np.testing.assert_array_equal(kernels.conv2d_forward.fast(x[part], W, b, **shape.options), whole[part])


@pytest.mark.parametrize("use_bias", [True, False])
@pytest.mark.parametrize("need_dW", [True, False])
@pytest.mark.parametrize("need_dx", [True, False])
@pytest.mark.parametrize("shape", [Shape(2, 5, 7, 1, "3x3 same"), Shape(2, 4, 4, 4, "3x3 by 2")], ids=str)
def test_only_what_is_needed(shape, need_dx, need_dW, use_bias):
    x, W, _, _, dy = shape.operands("float32")
    all_of_it = kernels.conv2d_backward.fast(dy, x, W, **shape.options)
    flags = {"need_dx": need_dx, "need_dW": need_dW, "use_bias": use_bias}
    for run in (kernels.conv2d_backward.fast, kernels.conv2d_backward.numpy):
        got = run(dy, x, W, **shape.options, **flags)
        assert [a is not None for a in got] == [need_dx, need_dW, need_dW and use_bias]
    for a, b in zip(kernels.conv2d_backward.fast(dy, x, W, **shape.options, **flags), all_of_it, strict=True):
        if a is not None:
            np.testing.assert_array_equal(a, b)


def test_results_are_put_where_they_are_wanted():
    shape = Shape(2, 5, 7, 1, "3x3 by 2")
    x, W, b, scale, dy = arrays = shape.operands("float32")
    before = [a.copy() for a in arrays]
    out, dx, dW, db = np.empty_like(dy), np.empty_like(x), np.empty_like(W), np.empty_like(b)
    assert kernels.conv2d_forward.fast(x, W, b, **shape.options, scale=scale, out=out) is out
    got = kernels.conv2d_backward.fast(dy, x, W, **shape.options, dx=dx, dW=dW, db=db)
    assert all(a is b for a, b in zip(got, (dx, dW, db), strict=True))
    for a, kept in zip(arrays, before, strict=True):
        np.testing.assert_array_equal(a, kept)


@pytest.mark.parametrize("shape", [Shape(2, 5, 7, 1, "3x3 same"), Shape(2, 6, 6, 6, "3x3 by 2")], ids=str)
def test_other_layouts_simply_work(shape):
    x, W, b, _, dy = shape.operands("float32")
    y = kernels.conv2d_forward.fast(x, W, b, **shape.options)
    gradients = kernels.conv2d_backward.fast(dy, x, W, **shape.options)
    channels_first = np.ascontiguousarray(x.transpose(0, 3, 1, 2)).transpose(0, 2, 3, 1)
    turned = np.ascontiguousarray(W.transpose(3, 2, 0, 1)).transpose(2, 3, 1, 0)
    wide = np.repeat(dy, 2, axis=3)[..., ::2]
    for a in (channels_first, turned, wide):
        a.flags.writeable = False
    np.testing.assert_array_equal(kernels.conv2d_forward.fast(channels_first, turned, b, **shape.options), y)
    got = kernels.conv2d_backward.fast(wide, channels_first, turned, **shape.options)
    for a, b in zip(got, gradients, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("backend", ["fast", "numpy"])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("shape", [Shape(3, 3, 20, 1, "3x3 same"), Shape(3, 5, 5, 5, "all different")], ids=str)
def test_nan_and_infinity_stay_visible(shape, bad, backend):
    """In the windows that hold them, and nowhere else."""
    x, W, _, _, dy = shape.operands("float32")
    x[1, 3, 2, 1] = bad
    marked = np.zeros_like(x)
    marked[1, 3, 2, 1] = 1
    seen = kernels.conv2d_forward.numpy(marked, np.ones_like(W), **shape.options) > 0
    assert seen.any()
    with dd.backend(backend), np.errstate(invalid="ignore"):
        y = kernels.conv2d_forward(x, W, **shape.options)
        assert (np.isnan(y) if np.isnan(bad) else np.isinf(y))[seen].all()
        assert np.isfinite(y[~seen]).all()
        relu = kernels.conv2d_forward(x, W, **shape.options, activation="relu")
        np.testing.assert_array_equal(np.isfinite(relu), np.isfinite(np.maximum(y, 0)))
        _, dW, _ = kernels.conv2d_backward(dy, x, W, **shape.options)
        seen = kernels.conv2d_backward.numpy(np.ones_like(dy), marked, W, **shape.options)[1] > 0
        np.testing.assert_array_equal(~np.isfinite(dW), seen)
        dy[1, 0, 1, 2] = bad
        x[1, 3, 2, 1] = 1
        marked = np.zeros_like(dy)
        marked[1, 0, 1, 2] = 1
        seen = kernels.conv2d_backward.numpy(marked, np.ones_like(x), np.ones_like(W), **shape.options)
        got = kernels.conv2d_backward(dy, x, W, **shape.options)
    for a, where in zip(got, seen, strict=True):
        assert not np.isfinite(a[where > 0]).any()
    for a, where in ((got[0], seen[0]), (got[2], seen[2])):
        assert np.isfinite(a[where == 0]).all()


@pytest.mark.parametrize("C", [32, 64])
def test_a_wide_image_keeps_its_nan(C, algorithm, product_unit):
    """Whatever way its products are formed: in the windows that hold it, and in no other image."""
    shape = Shape(3, C, 64, 1, "3x3")
    x, W, _, _, dy = shape.operands("float32")
    x[1, 9, 4, 7] = np.nan
    y = kernels.conv2d_forward.fast(x, W, **shape.options, batched=True)
    assert np.isnan(y[1, 8:11, 3:6]).all()
    assert np.isfinite(y[[0, 2]]).all()
    dx, dW, db = kernels.conv2d_backward.fast(dy, x, W, **shape.options)
    assert np.isnan(dW[:, :, 7]).all()
    assert np.isfinite(dx).all()
    assert np.isfinite(db).all()
    dy[2, 3, 3, 5] = np.nan
    dx, dW, db = kernels.conv2d_backward.fast(dy, x, W, **shape.options)
    assert np.isnan(dx[2, 2:5, 2:5]).all()
    assert np.isfinite(dx[:2]).all()
    assert np.isnan(dW[..., 5]).all()
    np.testing.assert_array_equal(np.isnan(db), np.arange(64) == 5)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", [name for name in GEOMETRIES if name not in LARGE])
def test_pytorch_agrees(name, dtype, threads):
    torch = pytest.importorskip("torch")
    threads(1)
    for C, F, groups in ((5, 17, 1), (6, 4, 2), (7, 14, 7)):
        shape = Shape(2, C, F, groups, name)
        x, W, b, _, dy = shape.operands(dtype)
        theirs = [torch.tensor(a.transpose(o)) for a, o in ((x, (0, 3, 1, 2)), (W, (3, 2, 0, 1)))] + [torch.tensor(b)]
        for a in theirs:
            a.requires_grad_()
        y = torch.nn.functional.conv2d(*theirs, **shape.options)
        y.backward(torch.tensor(dy.transpose(0, 3, 1, 2)))
        _, size = forward_exact(x, W, **shape.options)
        ours = kernels.conv2d_forward.fast(x, W, b, **shape.options)
        got = y.detach().numpy().transpose(0, 2, 3, 1)
        assert_close(ours, got, 2 * size, W[..., 0].size, dtype, 2 * np.abs(b))
        ours = kernels.conv2d_backward.fast(dy, x, W, **shape.options)
        _, sizes = backward_exact(dy, x, W, **shape.options)
        turns = (0, 2, 3, 1), (2, 3, 1, 0), (0,)
        counts = W.size // C * groups, dy[..., 0].size, dy[..., 0].size
        for a, their, turn, size, count in zip(ours, theirs, turns, sizes, counts, strict=True):
            assert_close(a, their.grad.numpy().transpose(turn), 2 * size, count, dtype)


# ---- bad input -------------------------------------------------------------------------------------------------------

X, FILTERS, OUT = (2, 5, 4, 6), (3, 3, 6, 4), (2, 5, 4, 4)


def zeros(*shape, dtype="float32"):
    return np.zeros(shape, dtype)


@pytest.mark.parametrize("backend", ["fast", "numpy"])
@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"x": zeros(5, 4, 6)}, ValueError, r"x: expected shape \(any, any, any, any\), got \(5, 4, 6\)"),
        ({"x": zeros(2, 6, 5, 4)}, ValueError, r"W: expected shape \(any, any, 4, any\), got \(3, 3, 6, 4\)"),
        ({"x": zeros(2, 5, 4, 5)}, ValueError, "W: expected shape"),
        ({"x": zeros(*X, dtype="int32")}, TypeError, "x: expected dtype float32 or float64, got int32"),
        ({"x": [[1.0]]}, TypeError, "x: expected an ndarray"),
        ({"x": zeros(*X, dtype="float64")}, TypeError, "W: expected dtype float64, got float32"),
        ({"W": zeros(*FILTERS, dtype=">f4")}, TypeError, "W: expected dtype float32"),
        ({"W": zeros(4, 6, 3, 3)}, ValueError, r"W: expected shape \(any, any, 6, any\)"),
        ({"W": zeros(3, 6, 4)}, ValueError, "W: expected shape"),
        ({"W": zeros(3, 0, 6, 4)}, ValueError, "W: expected filters of at least 1 x 1"),
        ({"W": zeros(3, 7, 6, 4)}, ValueError, "W: expected windows that fit into the padded image of 7 x 6 pixels"),
        ({"dilation": (1, 3)}, ValueError, "W: expected windows that fit .* got windows that span 3 x 7"),
        ({"padding": 0, "dilation": 2}, ValueError, "W: expected windows that fit"),
        ({"b": zeros(6)}, ValueError, r"b: expected shape \(4,\), got \(6,\)"),
        ({"b": zeros(4, dtype="float64")}, TypeError, "b: expected dtype float32, got float64"),
        ({"scale": zeros(4, 1)}, ValueError, r"scale: expected shape \(4,\)"),
        ({"stride": 0}, ValueError, "stride: expected at least 1, got 0"),
        ({"stride": (1, 2, 3)}, TypeError, "stride: expected an int or a pair of them"),
        ({"stride": 1.5}, TypeError, "stride: expected an int or a pair of them, got 1.5"),
        ({"stride": True}, TypeError, "stride: expected an int or a pair of them, got True"),
        ({"padding": (1, -1)}, ValueError, "padding: expected at least 0"),
        ({"padding": "same"}, TypeError, "padding: expected an int or a pair of them, got 'same'"),
        ({"dilation": (1, 0)}, ValueError, "dilation: expected at least 1"),
        ({"groups": 4}, ValueError, "groups: expected a divisor of the 6 channels of x, got 4"),
        ({"groups": 3, "W": zeros(3, 3, 2, 4)}, ValueError, "groups: expected a divisor of the 4 filters of W, got 3"),
        ({"groups": 2}, ValueError, r"W: expected shape \(any, any, 3, any\)"),
        ({"groups": 0}, ValueError, "groups: expected a number of groups of at least 1, got 0"),
        ({"groups": 1.0}, ValueError, "groups: expected a number of groups of at least 1, got 1.0"),
        ({"activation": "gelu"}, ValueError, "activation: expected one of identity, relu, .*, got 'gelu'"),
        ({"out": zeros(2, 5, 4, 6)}, ValueError, r"out: expected shape \(2, 5, 4, 4\), got \(2, 5, 4, 6\)"),
        ({"out": zeros(*OUT, dtype="float64")}, TypeError, "out: expected dtype float32, got float64"),
        ({"out": zeros(2, 4, 5, 4).transpose(0, 2, 1, 3)}, ValueError, "out: expected a C-contiguous array"),
    ],
    ids=lambda value: str(value)[:40] if isinstance(value, str) else "",
)  # fmt: skip
def test_bad_input_is_named(backend, change, error, message):
    good = {"x": zeros(*X), "W": zeros(*FILTERS), "b": zeros(4), "padding": 1}
    with dd.backend(backend):
        kernels.conv2d_forward(**good)
        with pytest.raises(error, match=message):
            kernels.conv2d_forward(**{**good, **change})


@pytest.mark.parametrize("backend", ["fast", "numpy"])
@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"dy": zeros(2, 4, 5, 4)}, ValueError, r"dy: expected shape \(2, 5, 4, 4\), got \(2, 4, 5, 4\)"),
        ({"dy": zeros(*OUT, dtype="float64")}, TypeError, "dy: expected dtype float32, got float64"),
        ({"x": zeros(3, 5, 4, 6)}, ValueError, r"dy: expected shape \(3, 5, 4, 4\)"),
        ({"W": zeros(3, 3, 5, 4)}, ValueError, "W: expected shape"),
        ({"groups": 5}, ValueError, "groups: expected a divisor"),
        ({"stride": 2}, ValueError, r"dy: expected shape \(2, 3, 2, 4\)"),
        ({"dx": zeros(2, 5, 4, 4)}, ValueError, r"dx: expected shape \(2, 5, 4, 6\)"),
        ({"dW": zeros(4, 6, 3, 3)}, ValueError, r"dW: expected shape \(3, 3, 6, 4\)"),
        ({"db": zeros(6)}, ValueError, r"db: expected shape \(4,\)"),
        ({"dx": zeros(*X), "need_dx": False}, ValueError, "dx: expected None"),
        ({"dW": zeros(*FILTERS), "need_dW": False}, ValueError, "dW: expected None"),
        ({"db": zeros(4), "need_dW": False}, ValueError, "db: expected None"),
        ({"db": zeros(4), "use_bias": False}, ValueError, "db: expected None"),
        ({"accumulate": True}, ValueError, "accumulate: expected dW"),
        ({"accumulate": True, "dW": zeros(*FILTERS)}, ValueError, "accumulate: expected db to add to, got None"),
    ],
    ids=lambda value: str(value)[:40] if isinstance(value, str) else "",
)  # fmt: skip
def test_bad_input_of_backward_is_named(backend, change, error, message):
    good = {"dy": zeros(*OUT), "x": zeros(*X), "W": zeros(*FILTERS), "padding": 1}
    with dd.backend(backend):
        kernels.conv2d_backward(**good)
        with pytest.raises(error, match=message):
            kernels.conv2d_backward(**{**good, **change})


def test_results_may_not_overlap():
    """Neither an input nor each other."""
    memory = zeros(1000)
    x, W = memory[:100].reshape(1, 5, 5, 4), memory[100:244].reshape(3, 3, 4, 4)
    b, dy = memory[300:304], memory[400:500].reshape(1, 5, 5, 4)
    expected = "expected memory of its own for the result, got an array that overlaps"
    for name, start in (("x", 90), ("W", 240), ("b", 250), ("scale", 501)):
        out = memory[start : start + 100].reshape(1, 5, 5, 4)
        with pytest.raises(ValueError, match=f"out: {expected} {name}"):
            kernels.conv2d_forward(x, W, b, padding=1, scale=memory[600:604], out=out)
    cases = [
        ("dx", "dy", {"dx": memory[401:501].reshape(1, 5, 5, 4)}),
        ("dx", "x", {"dx": x}),
        ("dW", "W", {"dW": W}),
        ("dW", "x", {"dW": memory[50:194].reshape(3, 3, 4, 4)}),
        ("db", "dy", {"db": memory[402:406]}),
        ("dW", "dx", {"dx": memory[600:700].reshape(1, 5, 5, 4), "dW": memory[699:843].reshape(3, 3, 4, 4)}),
        ("db", "dW", {"dW": memory[600:744].reshape(3, 3, 4, 4), "db": memory[740:744]}),
        ("db", "dx", {"dx": memory[600:700].reshape(1, 5, 5, 4), "db": memory[600:604]}),
    ]
    for result, other, arrays in cases:
        with pytest.raises(ValueError, match=rf"({result}: {expected} {other}|{other}: {expected} {result})$"):
            kernels.conv2d_backward(dy, x, W, padding=1, **arrays)
    read_only = zeros(1, 5, 5, 4)
    read_only.flags.writeable = False
    with pytest.raises(ValueError, match="out: expected a writable array"):
        kernels.conv2d_forward(x, W, padding=1, out=read_only)
