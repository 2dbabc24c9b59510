import numpy as np
import pytest

import dd2424fast as dd
from dd2424fast.kernels import augment_images, random_bits, random_normal, stream_key

DRAWN = {"flip": 0.5, "shift": 1, "cutout": 2, "contrast": 0.4, "brightness": 20.0, "fill": 7}
BOTH = [augment_images.fast, augment_images.numpy]


def batch(shape, dtype, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape).astype(dtype)


def draws(key, N):
    """The words of each image, as fractions from 0 to 1."""
    return random_bits.numpy(key, (N, 8)) / 2.0**32


def by_the_docstring(
    images, key, flip=0.0, shift=0, cutout=0, contrast=0.0, brightness=0.0, noise=0.0, fill=0, mean=0.0, std=1.0, mix=1
):
    """Pixel by pixel, in float64, with no rounding of uint8."""
    N, H, W, C = images.shape
    number = np.float64 if images.dtype == np.float64 else np.float32
    changed = np.empty(images.shape)
    for n, u in enumerate(draws(key, N)):
        flipped, (dy, dx) = u[0] < flip, (int(part * (2 * shift + 1)) - shift for part in u[1:3])
        top, left = (int(part * size) - cutout // 2 for part, size in ((u[3], H), (u[4], W)))
        c, b = 1 + contrast * (2 * u[5] - 1), brightness * (2 * u[6] - 1)
        e = random_normal.numpy(stream_key(key, 1, n), (H, W, C), number)
        for h, w in np.ndindex(H, W):
            row, column = h + dy, w + dx
            hidden = top <= h < top + cutout and left <= w < left + cutout
            if hidden or not (0 <= row < H and 0 <= column < W):
                pixel = np.broadcast_to(fill, C).astype(float)
            else:
                pixel = images[n, row, W - 1 - column if flipped else column].astype(float)
            changed[n, h, w] = (c * pixel + (1 - c) * images[n].mean(dtype=float) + b + noise * e[h, w] - mean) / std
    return mix * changed + (1 - mix) * changed[::-1]


CASES = [
    {"flip": 0.5},
    {"shift": 2, "fill": 3},
    {"cutout": 2, "fill": 9},
    {"cutout": 1},
    {"contrast": 1.0},
    {"brightness": 9.0},
    {"noise": 3.0},
    {"mix": 0.3},
    {**DRAWN, "noise": 1.0, "mix": 0.8},
]


@pytest.mark.parametrize("dtype", ["uint8", "float32", "float64"])
@pytest.mark.parametrize("shape", [(1, 2, 2, 1), (5, 6, 7, 3), (4, 9, 5, 2)])
@pytest.mark.parametrize("asked", CASES, ids=lambda asked: "-".join(asked))
def test_the_definition_is_what_its_docstring_says(asked, shape, dtype):
    images = batch(shape, dtype)
    got, expected = augment_images.numpy(images, 3, **asked), by_the_docstring(images, 3, **asked)
    if dtype == "uint8":
        within = by_the_docstring(images, 3, **{**asked, "mix": 1}).clip(0, 255)  # limited before mixing too
        expected = asked.get("mix", 1) * within + (1 - asked.get("mix", 1)) * within[::-1]
        assert np.abs(expected - got).max() < (1.001 if asked.get("mix", 1) != 1 else 0.5001)
    else:
        np.testing.assert_allclose(got, expected, rtol=0, atol=2000 * np.finfo(dtype).eps)


@pytest.mark.parametrize("dtype", ["uint8", "float32", "float64"])
@pytest.mark.parametrize("mean", [2.5, [1, 120, 3.25]])
def test_standardising(dtype, mean):
    images, std = batch((5, 6, 7, 3), dtype), [64, 2.0, 0.5]
    asked = {**DRAWN, "fill": [1, 2, 3], "noise": 2.0, "mean": mean, "std": std}
    got, expected = augment_images.numpy(images, 3, **asked), by_the_docstring(images, 3, **asked)
    assert got.dtype == ("float64" if dtype == "float64" else "float32")
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e4 * np.finfo(got.dtype).eps)
    if dtype == "uint8":
        wide = augment_images(images, 3, **{**asked, "noise": 0}, out=np.empty(images.shape))
        np.testing.assert_allclose(wide, by_the_docstring(images, 3, **{**asked, "noise": 0}), rtol=0, atol=1e-12)
    np.testing.assert_allclose(augment_images(images, 0, mean=9), images - 9.0, rtol=0, atol=1e-4)
    np.testing.assert_allclose(augment_images(images, 0, std=9), images / 9.0, rtol=0, atol=1e-4)


@pytest.fixture(params=[1, 2])
def threads(request):
    before = dd.get_num_threads()
    dd.set_num_threads(request.param)
    yield request.param
    dd.set_num_threads(before)


@pytest.mark.parametrize("dtype", ["uint8", "float32", "float64"])
@pytest.mark.parametrize(
    "shape",
    [
        (0, 4, 4, 3),
        (1, 1, 1, 1),
        (9, 5, 7, 3),
        (3, 8, 6, 1),
        (5, 16, 17, 4),
        (3, 4, 4, 0),
        (6, 3, 3, 2),
        (24, 64, 63, 1),
    ],
)
@pytest.mark.parametrize(
    "asked",
    [
        {},
        {"flip": 0.5},
        {"shift": 1},
        {"cutout": 1, "fill": 4},
        {"contrast": 0.9},
        {"brightness": 90.0},
        {"mix": 0.7},
        {"mean": 100, "std": 61.5},
        {"flip": 0.5, "shift": 1, "brightness": 30},
        {**DRAWN, "cutout": 1, "mix": 0.1},
        {**DRAWN, "cutout": 1, "mix": 0.1, "mean": 100.5, "std": 61.5},
    ],
    ids=lambda asked: "-".join(asked) or "nothing",
)
def test_fast_and_definition_differ_in_no_bit(asked, shape, dtype, threads):
    images = batch(shape, dtype)
    kept = images.copy()
    fast, definition = augment_images.fast(images, 11, **asked), augment_images.numpy(images, 11, **asked)
    assert fast.dtype == definition.dtype
    np.testing.assert_array_equal(fast, definition)
    np.testing.assert_array_equal(images, kept)


@pytest.mark.parametrize("dtype", ["uint8", "float32", "float64"])
def test_noise_differs_by_its_rounding_alone(dtype):
    images = batch((7, 9, 5, 3), dtype)
    for asked in ({"noise": 3.0}, {**DRAWN, "noise": 30.0}, {"noise": 3.0, "mean": [1, 2, 3], "std": 9}):
        fast, definition = augment_images.fast(images, 11, **asked), augment_images.numpy(images, 11, **asked)
        apart = np.abs(fast.astype(float) - definition)
        if fast.dtype == np.uint8:
            assert apart.max() <= 1
            assert apart.mean() < 1e-3
        else:
            assert apart.max() < 600 * np.finfo(fast.dtype).eps


@pytest.mark.parametrize("run", BOTH)
def test_shift_as_wide_as_the_image(run):
    images = np.ones((60, 3, 4, 2), np.float32)
    filled = (run(images, 1, shift=3, fill=-1) == -1).mean(axis=(1, 2, 3))
    assert filled.max() == 1
    assert filled.min() == 0
    np.testing.assert_array_equal(run(images, 1, shift=3, fill=-1), augment_images.numpy(images, 1, shift=3, fill=-1))


@pytest.mark.parametrize("run", BOTH)
def test_known_results(run):
    images = batch((3, 4, 5, 3), "uint8")
    np.testing.assert_array_equal(run(images, 0), images)
    np.testing.assert_array_equal(run(images, 0, flip=1), images[:, :, ::-1])
    np.testing.assert_array_equal(run(images, 0, mix=0), images[::-1])
    # One pixel lit: it lands where the drawn shift says.
    lit = np.zeros((50, 9, 9, 1), np.float32)
    lit[:, 4, 4] = 1
    _, rows, columns, _ = np.nonzero(run(lit, 2, shift=4))
    np.testing.assert_array_equal(rows, 4 - ((draws(2, 50)[:, 1] * 9).astype(int) - 4))
    np.testing.assert_array_equal(columns, 4 - ((draws(2, 50)[:, 2] * 9).astype(int) - 4))


@pytest.mark.parametrize("run", BOTH)
def test_cutout_hides_a_square_that_may_hang_over_the_border(run):
    hidden = run(np.ones((3000, 6, 8, 1), np.float32), 4, cutout=4)[..., 0] == 0
    rows, columns = hidden.any(axis=2).sum(axis=1), hidden.any(axis=1).sum(axis=1)
    np.testing.assert_array_equal(hidden.sum(axis=(1, 2)), rows * columns)  # a rectangle
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (2, 4, 2, 4)
    # A row is hidden where the middle is one of the two after it, the one before, or itself.
    expected = np.outer([3, 4, 4, 4, 3, 2], [3, 4, 4, 4, 4, 4, 3, 2]) / 48
    assert np.abs(hidden.mean(axis=0) - expected).max() < 0.03


@pytest.mark.parametrize("run", BOTH)
def test_contrast_is_about_each_images_own_mean(run):
    images = batch((40, 5, 6, 3), "float64")
    got = run(images, 1, contrast=0.5)
    means = images.mean(axis=(1, 2, 3), keepdims=True)
    c = 1 + 0.5 * (2 * draws(1, 40)[:, 5] - 1)
    np.testing.assert_allclose((got - means) / (images - means), np.broadcast_to(c[:, None, None, None], got.shape))
    assert c.min() < 0.6
    assert c.max() > 1.4


@pytest.mark.parametrize("run", BOTH)
def test_uint8_rounds_half_to_even_and_saturates(run):
    images = np.array([0, 1, 2, 3, 254, 255], np.uint8).reshape(1, 1, 6, 1)
    part = float(2 * draws(8, 1)[0, 6] - 1)  # of `brightness`
    key = 8 if part > 0 else 9
    part = float(2 * draws(key, 1)[0, 6] - 1)
    assert part > 0
    for offset, expected in [(0.5, [0, 2, 2, 4, 254, 255]), (300, [255] * 6), (1e30, [255] * 6)]:
        brightness = np.float32(offset) / part
        assert np.float32(brightness * part) == np.float32(offset)
        np.testing.assert_array_equal(run(images, key, brightness=brightness).ravel(), expected)
    # Mixed half and half with its partner.
    two = np.array([0, 1, 2, 255, 3, 3, 5, 0], np.uint8).reshape(2, 1, 4, 1)
    np.testing.assert_array_equal(run(two, 0, mix=0.5).ravel(), [2, 2, 4, 128, 2, 2, 4, 128])


def test_what_an_image_becomes_depends_on_key_and_place_alone():
    images, asked = batch((40, 6, 6, 3), "float32"), {**DRAWN, "noise": 3.0}
    whole = augment_images(images, 5, **asked)
    np.testing.assert_array_equal(augment_images(images[:7], 5, **asked), whole[:7])
    np.testing.assert_array_equal(augment_images(images, 5, **asked), whole)
    for key in (6, 5 + 2**32, 5 + 2**63):
        assert (augment_images(images, key, **asked) != whole).mean() > 0.8
    # Asking for brightness leaves flips and shifts as they were.
    alone, with_brightness = (augment_images(images, 5, flip=0.5, shift=2, brightness=b) for b in (0, 1e-9))
    np.testing.assert_allclose(alone, with_brightness, rtol=0, atol=1e-8)


def test_distributions():
    N = 4000
    images = np.arange(9.0).reshape(3, 3, 1) + np.zeros((N, 1, 1, 1))  # each pixel tells where it was
    moved = augment_images(images, 9, flip=0.3, shift=1, fill=-1)
    assert abs((augment_images(images, 9, flip=0.3)[:, 0, 0, 0] == 2).mean() - 0.3) < 0.03
    shifts = draws(9, N)[:, 1:3] * 3 // 1 - 1
    middle = moved[:, 1, 1, 0]
    np.testing.assert_array_equal(middle // 3 - 1, shifts[:, 0])
    for moves in shifts.T:
        np.testing.assert_allclose(np.bincount(moves.astype(int) + 1, minlength=3) / N, 1 / 3, atol=0.03)
    b = (augment_images(images, 9, brightness=5.0) - images)[:, 0, 0, 0]
    assert np.abs(b).max() <= 5
    assert abs(b.mean()) < 0.2
    assert abs(b.std() - 5 / 3**0.5) < 0.1
    assert abs(np.corrcoef(draws(9, N).T) - np.eye(8)).max() < 0.06
    noise = augment_images(images, 9, noise=2.0) - images
    assert abs(noise.mean()) < 0.06
    assert abs(noise.std() - 2) < 0.05
    assert abs(np.corrcoef(noise.reshape(N, -1).T) - np.eye(9)).max() < 0.06


@pytest.mark.parametrize("run", BOTH)
def test_nan_stays(run):
    images = np.zeros((4, 3, 3, 1), np.float32)
    images[0, 1, 1] = np.nan
    assert np.isnan(run(images, 0, flip=0.5, brightness=1, noise=1)).sum() == 1
    assert np.isnan(run(images, 0, contrast=0.5)).sum(axis=(1, 2, 3)).tolist() == [9, 0, 0, 0]  # it has no mean
    assert np.isnan(run(images, 0, mix=0.5)).sum(axis=(1, 2, 3)).tolist() == [1, 0, 0, 1]


def test_layouts_and_out():
    images = batch((3, 4, 6, 3), "float32")
    expected = augment_images(images, 1, **DRAWN)
    locked = images.copy()
    locked.flags.writeable = False
    for same in (locked, np.asfortranarray(images), np.repeat(images, 2, axis=2)[:, :, ::2]):
        np.testing.assert_array_equal(augment_images(same, 1, **DRAWN), expected)
    out = np.empty_like(images)
    assert augment_images(images, 1, **DRAWN, out=out) is out
    np.testing.assert_array_equal(out, expected)


@pytest.mark.parametrize(
    ("error", "message", "arguments"),
    [
        (
            TypeError,
            "images: expected an ndarray of uint8, float32 or float64, got int64",
            {"images": np.zeros((1, 2, 2, 3), np.int64)},
        ),
        (TypeError, r"images: expected an ndarray .* got list", {"images": [1]}),
        (ValueError, r"images: expected shape \(any, any, any, any\), got \(2, 3\)", {"images": np.zeros((2, 3))}),
        (TypeError, "key: expected an integer, got float", {"key": 1.0}),
        (ValueError, "key: expected an integer from 0", {"key": -1}),
        (ValueError, "key: expected an integer from 0", {"key": 2**64}),
        (ValueError, "flip: expected a finite number from 0 to 1", {"flip": 1.1}),
        (ValueError, "flip: expected", {"flip": float("nan")}),
        (TypeError, "flip: expected a number, got str", {"flip": "half"}),
        (ValueError, "shift: expected an int from 0 to 2, got 3", {"shift": 3}),
        (ValueError, "shift: expected", {"shift": -1}),
        (TypeError, "shift: expected an int", {"shift": 0.5}),
        (ValueError, "cutout: expected an int from 0 to 2, got 3", {"cutout": 3}),
        (ValueError, "contrast: expected a finite number from 0 to 1", {"contrast": 1.5}),
        (ValueError, "noise: expected a finite number from 0 to 3", {"noise": -1}),
        (ValueError, "noise: expected", {"noise": float("inf")}),
        (ValueError, "brightness: expected", {"brightness": -1}),
        (ValueError, "brightness: expected", {"brightness": 1e39}),
        (ValueError, "fill: expected whole numbers from 0 to 255", {"fill": 256}),
        (ValueError, "fill: expected whole numbers from 0 to 255", {"fill": 0.5}),
        (ValueError, "fill: .* one for each of 4 channels, got shape", {"fill": [1, 2]}),
        (TypeError, "fill: expected a number", {"fill": "black"}),
        (TypeError, "mean: expected a number", {"mean": [[1], [1, 2]]}),
        (ValueError, "mean, std: expected finite numbers, std above 0", {"std": 0}),
        (ValueError, "mean, std: expected finite numbers", {"mean": float("nan")}),
        (ValueError, "mix: expected a finite number from 0 to 1", {"mix": 2}),
        (ValueError, "out: expected shape", {"out": np.zeros((1, 2, 3, 3), np.uint8)}),
        (TypeError, "out: expected dtype uint8", {"out": np.zeros((1, 2, 3, 4), np.float32)}),
        (TypeError, "out: expected dtype float32 or float64", {"mean": 1, "out": np.zeros((1, 2, 3, 4), np.uint8)}),
    ],
)
def test_wrong_arguments_are_refused(error, message, arguments):
    with pytest.raises(error, match=message):
        augment_images(**{"images": np.zeros((1, 2, 3, 4), np.uint8), "key": 0, **arguments})


def test_out_must_not_overlap():
    images = np.zeros((2, 3, 3, 1))
    with pytest.raises(ValueError, match=r"out: .*overlaps images"):
        augment_images(images, 0, out=images)
