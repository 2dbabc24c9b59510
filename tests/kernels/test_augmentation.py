import sys

import numpy as np
import pytest

from dd2424fast.kernels import augment_images

module = sys.modules[augment_images.__module__]
ALL = {"flip": 0.5, "shift": 2, "noise": 3.0, "brightness": 20.0, "fill": 7}


def batch(shape, dtype, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape).astype(dtype)


def by_the_docstring(images, key, flip=0.0, shift=0, noise=0.0, brightness=0.0, fill=0):
    """Pixel by pixel, in float64."""
    N, H, W, _ = images.shape
    flipped, dy, dx, b = module._draw(images, key, flip, shift, brightness)
    number = np.float64 if images.dtype == np.float64 else np.float32
    e = np.random.Generator(np.random.Philox(key=key, counter=[0, 0, 0, 1])).standard_normal(images.shape, number)
    out = np.empty(images.shape)
    for n, h, w in np.ndindex(N, H, W):
        row, column = h + dy[n], w + dx[n]
        if not (0 <= row < H and 0 <= column < W):
            out[n, h, w] = fill
        else:
            out[n, h, w] = images[n, row, W - 1 - column if flipped[n] else column]
    return out + b[:, :, None, None] + noise * e


@pytest.mark.parametrize("dtype", ["uint8", "float32", "float64"])
@pytest.mark.parametrize("shape", [(1, 2, 2, 1), (5, 6, 7, 3), (4, 9, 5, 2)])
def test_the_definition_is_what_its_docstring_says(shape, dtype):
    images = batch(shape, dtype)
    got, expected = augment_images.numpy(images, 3, **ALL), by_the_docstring(images, 3, **ALL)
    if dtype == "uint8":
        apart = np.abs(expected.clip(0, 255) - got)
        assert apart.max() < 0.5001
        return
    np.testing.assert_allclose(got, expected, rtol=0, atol=600 * np.finfo(dtype).eps)


@pytest.mark.parametrize("dtype", ["uint8", "float32", "float64"])
@pytest.mark.parametrize(
    "shape", [(0, 4, 4, 3), (1, 1, 1, 1), (9, 5, 7, 3), (3, 8, 6, 1), (5, 16, 17, 4), (3, 4, 4, 0)]
)
@pytest.mark.parametrize(
    "asked",
    [
        {},
        {"flip": 0.5},
        {"shift": 1},
        {"noise": 2.0},
        {"brightness": 90.0},
        {"flip": 0.5, "shift": 1, "brightness": 30},
        {**ALL, "shift": 1},
    ],
    ids=lambda asked: "-".join(asked) or "nothing",
)
def test_fast_and_definition_differ_in_no_bit(asked, shape, dtype):
    shift = min(asked.get("shift", 0), *shape[1:3])
    asked = {**asked, "shift": shift}
    images = batch(shape, dtype)
    kept = images.copy()
    fast, definition = augment_images.fast(images, 11, **asked), augment_images.numpy(images, 11, **asked)
    assert fast.dtype == definition.dtype == images.dtype
    np.testing.assert_array_equal(fast, definition)
    np.testing.assert_array_equal(images, kept)


@pytest.mark.parametrize("run", [augment_images.fast, augment_images.numpy])
def test_shift_as_wide_as_the_image(run):
    images = np.ones((60, 3, 4, 2), np.float32)
    filled = (run(images, 1, shift=3, fill=-1) == -1).mean(axis=(1, 2, 3))
    assert filled.max() == 1
    assert filled.min() == 0
    np.testing.assert_array_equal(run(images, 1, shift=3, fill=-1), augment_images.numpy(images, 1, shift=3, fill=-1))


@pytest.mark.parametrize("run", [augment_images.fast, augment_images.numpy])
def test_known_results(run):
    images = batch((3, 4, 5, 3), "uint8")
    np.testing.assert_array_equal(run(images, 0), images)
    np.testing.assert_array_equal(run(images, 0, flip=1), images[:, :, ::-1])
    # One pixel lit: it lands where the drawn shift says.
    lit = np.zeros((50, 9, 9, 1), np.float32)
    lit[:, 4, 4] = 1
    moved = run(lit, 2, shift=4)
    _, dy, dx, _ = module._draw(lit, 2, 0, 4, 0)
    _, rows, columns, _ = np.nonzero(moved)
    np.testing.assert_array_equal(rows, 4 - dy)
    np.testing.assert_array_equal(columns, 4 - dx)


def test_uint8_rounds_half_to_even_and_saturates(monkeypatch):
    for offset, expected in [
        (0.5, [0, 2, 2, 4, 254, 255]),
        (-1.5, [0, 0, 0, 2, 252, 254]),
        (300, [255] * 6),
        (-1e30, [0] * 6),
        (1e30, [255] * 6),
    ]:
        images = np.array([0, 1, 2, 3, 254, 255], np.uint8).reshape(1, 1, 6, 1)
        drawn = module._draw(images, 0, 0, 0, 0)

        def draw(*_, drawn=drawn, offset=offset):
            return *drawn[:3], np.full((1, 1), offset, np.float32)

        monkeypatch.setattr(module, "_draw", draw)
        for run in (augment_images.fast, augment_images.numpy):
            np.testing.assert_array_equal(run(images, 0, brightness=1).ravel(), expected)
        monkeypatch.undo()


def test_what_an_image_becomes_depends_on_key_and_place_alone():
    images = batch((40, 6, 6, 3), "float32")
    whole = augment_images(images, 5, **ALL)
    np.testing.assert_array_equal(augment_images(images[:7], 5, **ALL), whole[:7])
    np.testing.assert_array_equal(augment_images(images, 5, **ALL), whole)
    for key in (6, 5 + 2**64, 5 + 2**127):
        assert (augment_images(images, key, **ALL) != whole).mean() > 0.9
    # Asking for brightness leaves flips and shifts as they were.
    alone, with_brightness = (augment_images(images, 5, flip=0.5, shift=2, brightness=b) for b in (0, 1e-9))
    np.testing.assert_allclose(alone, with_brightness, rtol=0, atol=1e-8)


def test_size_of_the_noise_blocks_changes_nothing(monkeypatch):
    for dtype in ("uint8", "float32", "float64"):
        images = batch((11, 3, 5, 1), dtype)
        whole = augment_images(images, 5, **ALL)
        for size in (1, 31, 100):
            monkeypatch.setattr(module, "_NOISE_BLOCK", size)
            np.testing.assert_array_equal(augment_images.fast(images, 5, **ALL), whole)
            np.testing.assert_array_equal(augment_images.numpy(images, 5, **ALL), whole)
        monkeypatch.undo()


def test_distributions():
    images = np.zeros((4000, 2, 2, 1))
    flipped, dy, dx, offsets = module._draw(images, 9, 0.3, 2, 5.0)
    assert abs(flipped.mean() - 0.3) < 0.03
    for moves in (dy, dx):
        np.testing.assert_allclose(np.bincount(moves + 2, minlength=5) / 4000, 0.2, atol=0.03)
    assert np.abs(offsets).max() <= 5
    assert abs(offsets.mean()) < 0.2
    assert abs(offsets.std() - 5 / 3**0.5) < 0.1
    assert abs(np.corrcoef([flipped, dy, dx, offsets[:, 0]]) - np.eye(4)).max() < 0.06
    noise = augment_images(images, 9, noise=2.0)
    assert abs(noise.mean()) < 0.06
    assert abs(noise.std() - 2) < 0.05


def test_nan_stays():
    images = np.zeros((2, 3, 3, 1), np.float32)
    images[0, 1, 1] = np.nan
    for run in (augment_images.fast, augment_images.numpy):
        assert np.isnan(run(images, 0, flip=0.5, brightness=1, noise=1)).sum() == 1


def test_layouts_and_out():
    images = batch((3, 4, 6, 3), "float32")
    expected = augment_images(images, 1, **ALL)
    locked = images.copy()
    locked.flags.writeable = False
    for same in (locked, np.asfortranarray(images), np.repeat(images, 2, axis=2)[:, :, ::2]):
        np.testing.assert_array_equal(augment_images(same, 1, **ALL), expected)
    out = np.empty_like(images)
    assert augment_images(images, 1, **ALL, out=out) is out
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
        (TypeError, "key: expected an int, got float", {"key": 1.0}),
        (ValueError, "key: expected an int from 0", {"key": -1}),
        (ValueError, "key: expected an int from 0", {"key": 2**128}),
        (ValueError, "flip: expected a finite number from 0 to 1", {"flip": 1.1}),
        (ValueError, "flip: expected", {"flip": float("nan")}),
        (TypeError, "flip: expected a number, got str", {"flip": "half"}),
        (ValueError, "shift: expected an int from 0 to 2, got 3", {"shift": 3}),
        (ValueError, "shift: expected", {"shift": -1}),
        (TypeError, "shift: expected an int", {"shift": 0.5}),
        (ValueError, "noise: expected a finite number from 0 to 3", {"noise": -1}),
        (ValueError, "noise: expected", {"noise": float("inf")}),
        (ValueError, "brightness: expected", {"brightness": -1}),
        (ValueError, "brightness: expected", {"brightness": 1e39}),
        (ValueError, "fill: expected an int from 0 to 255, got 256", {"fill": 256}),
        (TypeError, "fill: expected an int", {"fill": 0.5}),
        (ValueError, "out: expected shape", {"out": np.zeros((1, 2, 3, 3), np.uint8)}),
        (TypeError, "out: expected dtype uint8", {"out": np.zeros((1, 2, 3, 4), np.float32)}),
    ],
)
def test_wrong_arguments_are_refused(error, message, arguments):
    with pytest.raises(error, match=message):
        augment_images(**{"images": np.zeros((1, 2, 3, 4), np.uint8), "key": 0, **arguments})


def test_out_must_not_overlap():
    images = np.zeros((2, 3, 3, 1))
    with pytest.raises(ValueError, match=r"out: .*overlaps images"):
        augment_images(images, 0, out=images)
