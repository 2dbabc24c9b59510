"""3 x 3 convolutions by Winograd's algorithm: their error against the direct one's, and when they are chosen."""

import numpy as np
import pytest

import dd2424fast as dd
from dd2424fast import kernels
from dd2424fast.kernels import _team

# Images, height, width, channels, filters, padding: sizes that are no multiple of a square of 4, of a vector or of a
# tile; crops and wide borders; a rest of 17 squares, one more than a tile's. All have 128 squares or more.
SHAPES = [
    (40, 8, 8, 32, 32, 1),
    (33, 7, 9, 64, 48, 1),
    (40, 6, 7, 33, 35, 1),
    (15, 13, 10, 40, 65, (0, 2)),
    (9, 16, 15, 96, 34, 2),
    (20, 8, 9, 32, 130, 3),
    (37, 8, 8, 128, 64, 0),
    (41, 9, 10, 48, 32, 1),
]


@pytest.fixture(params=["vectors", "unit"])
def unit(request):
    before = dd.get_matrix_unit()
    if request.param == "unit" and not _team.has_matrix_unit():
        pytest.skip("this CPU, system or build has no matrix unit")
    dd.set_matrix_unit(request.param == "unit")
    yield
    dd.set_matrix_unit(before)


@pytest.fixture(autouse=True)
def as_it_was():
    before = dd.get_winograd(), dd.get_num_threads()
    yield
    dd.set_winograd(before[0])
    dd.set_num_threads(before[1])


def operands(shape, dtype):
    N, H, W, C, F, padding = shape
    rng = np.random.default_rng(N * C + F)
    x, w, b = (rng.standard_normal(s).astype(dtype) for s in ((N, H, W, C), (3, 3, C, F), (F,)))
    rows, columns = padding if isinstance(padding, tuple) else (padding, padding)
    dy = rng.standard_normal((N, H + 2 * rows - 2, W + 2 * columns - 2, F)).astype(dtype)
    return x, w, b, dy


def all_four(run, x, w, b, dy, padding):
    y = getattr(kernels.conv2d_forward, run)(x, w, b, 1, padding, batched=True)
    return y, *getattr(kernels.conv2d_backward, run)(dy, x, w, 1, padding)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_error_is_at_most_ten_times_that_of_the_direct_sums(shape, dtype, unit):
    x, w, b, dy = operands(shape, dtype)
    exact = all_four("numpy", *(a.astype(float) for a in (x, w, b, dy)), shape[-1])
    dd.set_winograd(False)
    direct = all_four("fast", x, w, b, dy, shape[-1])
    dd.set_winograd(True)
    got = all_four("fast", x, w, b, dy, shape[-1])
    for name, a, d, e in zip(("y", "dx", "dW", "db"), got, direct, exact, strict=True):
        assert a.dtype == dtype
        assert a.shape == e.shape
        # In float64 what they are compared with is no more exact than they are.
        floor = 0 if dtype == "float32" else 50 * 2.0**-52 * np.abs(e).max()
        assert np.abs(a - e).max() <= 10 * np.abs(d - e).max() + floor, name
        assert np.sqrt(np.mean((a - e) ** 2)) <= 10 * np.sqrt(np.mean((d - e) ** 2)) + floor, name
        if name != "db":
            assert not np.array_equal(a, d), f"{name} was summed directly: this test is of the algorithm"


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_bits_do_not_depend_on_the_threads(shape, dtype, unit):
    arrays = operands(shape, dtype)
    results = []
    for n in (1, 2):
        dd.set_num_threads(n)
        results.append(all_four("fast", *arrays, shape[-1]))
    for one, two in zip(*results, strict=True):
        np.testing.assert_array_equal(one, two)


@pytest.mark.parametrize("activation", ["identity", "relu", "leaky_relu", "tanh", "sigmoid"])
def test_scale_bias_and_activation(activation, unit):
    x, w, b, _ = operands(SHAPES[1], "float32")
    scale = np.linspace(-1, 2, w.shape[-1], dtype="float32")
    got = kernels.conv2d_forward.fast(x, w, b, 1, 1, 1, 1, activation, scale, None, True)
    wide = [a.astype(float) for a in (x, w, b)]
    sums = kernels.conv2d_forward.numpy(*wide, 1, 1, 1, 1, "identity", scale.astype(float))
    exact = kernels.activation_forward.numpy(sums, activation)
    np.testing.assert_allclose(got, exact, rtol=0, atol=5e-6 * np.abs(sums).max())


def test_gradients_are_added_to(unit):
    x, w, _, dy = operands(SHAPES[1], "float32")
    _, dW, db = kernels.conv2d_backward.fast(dy, x, w, 1, 1)
    before = np.full_like(dW, 3), np.full_like(db, -2)
    _, more, sums = kernels.conv2d_backward.fast(
        dy, x, w, 1, 1, dW=before[0], db=before[1], accumulate=True, need_dx=False
    )
    np.testing.assert_allclose(more, dW + 3, rtol=1e-5, atol=1e-4)
    np.testing.assert_allclose(sums, db - 2, rtol=1e-5, atol=1e-4)


def direct_and_by_winograd(run):
    results = []
    for on in (False, True):
        dd.set_winograd(on)
        results.append(run())
    return results


@pytest.mark.parametrize(
    ("x", "w", "options"),
    [
        ((40, 8, 8, 31), (3, 3, 31, 32), {}),  # few channels
        ((40, 8, 8, 32), (3, 3, 32, 31), {}),  # few filters
        ((1, 8, 8, 32), (3, 3, 32, 32), {}),  # few squares
        ((200, 5, 5, 32), (3, 3, 32, 32), {}),  # squares that hang over
        *[((130, 8, 8, 32), (3, 3, 32, 32), {"stride": stride}) for stride in (2, (2, 1), (1, 2))],
        *[((40, 8, 8, 32), (3, 3, 32, 32), {"dilation": dilation}) for dilation in (2, (2, 1), (1, 2))],
        ((40, 8, 8, 64), (3, 3, 32, 64), {"groups": 2}),
        ((40, 8, 8, 32), (3, 2, 32, 32), {}),
        ((40, 8, 8, 32), (5, 5, 32, 32), {}),
    ],
)
def test_what_is_always_summed_directly(x, w, options):
    rng = np.random.default_rng(0)
    x, w = rng.standard_normal(x).astype("float32"), rng.standard_normal(w).astype("float32")
    one, two = direct_and_by_winograd(lambda: kernels.conv2d_forward.fast(x, w, padding=1, batched=True, **options))
    np.testing.assert_array_equal(one, two)


@pytest.mark.parametrize("side", [8, 28])
def test_an_image_alone_has_the_bits_that_it_has_in_a_batch(side, unit):
    """Unless `batched`: the algorithm is then chosen by the image alone."""
    rng = np.random.default_rng(0)
    x, w = (rng.standard_normal(s).astype("float32") for s in ((20, side, side, 32), (3, 3, 32, 32)))
    whole = kernels.conv2d_forward.fast(x, w, padding=1)
    for part in (slice(0, 1), slice(7, 9)):
        np.testing.assert_array_equal(kernels.conv2d_forward.fast(x[part], w, padding=1), whole[part])


def test_nan_and_infinity_show_where_they_are_seen(unit):
    """They may spread to the rest of their square of 4 x 4 outputs, and no further."""
    x, w, b, _ = operands((40, 8, 8, 32, 32, 1), "float32")
    clean = kernels.conv2d_forward.fast(x, w, b, 1, 1, batched=True)
    for bad in (np.nan, np.inf):
        dirty = x.copy()
        dirty[3, 2, 1, 5] = bad
        y = kernels.conv2d_forward.fast(dirty, w, b, 1, 1, batched=True)
        assert not np.isfinite(y[3, 1:4, 0:3]).any()
        np.testing.assert_array_equal(y[3, 4:], clean[3, 4:])
        np.testing.assert_array_equal(y[3, :, 4:], clean[3, :, 4:])
        np.testing.assert_array_equal(np.delete(y, 3, axis=0), np.delete(clean, 3, axis=0))


def test_the_switch():
    assert dd.get_winograd()
    with pytest.raises(TypeError, match="on: expected True or False, got 1"):
        dd.set_winograd(1)
    dd.set_winograd(False)
    assert not dd.get_winograd()
    assert dd.show_config()["winograd"] == "off"
