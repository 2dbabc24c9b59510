"""Image augmentation: flip, shift, cutout, contrast, brightness, noise, standardisation and mixing, in one pass.

All that is drawn comes from Philox words (random.py): a pure function of (key, number of the image).
"""

import numbers
import operator

import numpy as np

from . import _augmentation_float32, _augmentation_float64
from ._checks import array, disjoint, result
from ._dispatch import Kernel
from ._random_checks import check_key
from .random import _words, random_normal, stream_key

__all__ = ["augment_images"]

_LARGEST = float(np.finfo(np.float32).max)
_DRAWS = 8  # words an image: flip, dy, dx, the square's row and column, contrast, brightness; one is left


def augment_images(
    images,
    key,
    flip=0.0,
    shift=0,
    cutout=0,
    contrast=0.0,
    brightness=0.0,
    noise=0.0,
    fill=0,
    mean=None,
    std=None,
    mix=1.0,
    out=None,
):
    """Return images as a camera might have taken them: mirrored, moved, partly hidden, lighter, darker, noisy.

    With everything drawn per image n, and noise per number,

        mirrored[h, w] = images[n, h, W-1-w] with probability `flip`, else images[n, h, w]
        moved[h, w]    = mirrored[h + dy, w + dx], or `fill` outside; dy and dx whole numbers from -shift to shift
        cut[h, w]      = `fill` within a square of `cutout` pixels a side whose middle is any pixel, else moved[h, w]
        changed        = (c cut + (1 - c) m + b + noise e - mean) / std
        out[n]         = mix changed[n] + (1 - mix) changed[N-1-n]

    with c uniform between 1 - contrast and 1 + contrast, m the mean of images[n], b uniform between -brightness and
    brightness, e standard normal.

    Parameters
    ----------
    images : ndarray of shape (N, H, W, C), uint8, float32 or float64
    key : int
        From `stream_key`; the same key gives the same images.
    flip : float
        Probability of a horizontal flip, from 0 to 1.
    shift : int
        Largest shift in pixels, from 0 to the shorter side; each shift up to it is equally likely.
    cutout : int
        Side of the square, from 0 to the shorter side; it may hang over the border.
    contrast : float
        From 0 to 1.
    brightness : float
        Largest offset, in the units of `images`.
    noise : float
        Standard deviation, in the units of `images`.
    fill : float, or C of them
        Stands where a shift uncovers the outside, and in the square; for uint8, whole numbers from 0 to 255.
    mean, std : float, or C of them, optional
        Standardise: float images then come of uint8 ones. Each is 0 and 1 where only the other is given.
    mix : float
        From 0 to 1; 1 mixes nothing.
    out : ndarray of images' shape and dtype, optional
        Of uint8 images that are standardised, float32 or float64 (float32 where it is not given). Must not overlap
        `images`.

    Returns
    -------
    ndarray of images' shape
        uint8 is rounded to the nearest number (half to even) and limited to 0 to 255, before and after mixing. Floats
        are not limited.

    Raises
    ------
    TypeError, ValueError
        The message names the argument, what came and what was expected.

    Notes
    -----
    What image n becomes (before mixing) depends on (key, n) and the image alone, not on N, on the threads or on what
    else is asked for. Everything is computed in float32 (float64 for float64 results) from coefficients in float64; the
    two implementations differ in no bit, but for the noise's rounding.

    References
    ----------
    DeVries and Taylor (2017), arXiv:1708.04552, section 3.2 (cutout); Zhang, Cisse, Dauphin and Lopez-Paz (2018),
    arXiv:1710.09412, equation 1 (mixing).
    """
    if images.size == 0:
        return out
    N, H, W, C = images.shape
    words = _words(key, _DRAWS * N).reshape(N, _DRAWS).astype(np.uint64)
    signed = words * 2.0**-31 - 1  # uniform in [-1, 1)
    flipped = words[:, 0] < int(flip * 2.0**32 + 0.5)
    dy, dx = (_below(2 * shift + 1, words[:, i]) - shift for i in (1, 2))
    top, left = (_below(size, words[:, i]) - cutout // 2 for size, i in ((H, 3), (W, 4)))

    cut = _moved(images, flipped, dy, dx, shift, fill)
    h, w = np.arange(H) - top[:, None], np.arange(W) - left[:, None]
    cut[((0 <= h) & (h < cutout))[:, :, None] & ((0 <= w) & (w < cutout))[:, None]] = fill
    if not (contrast or brightness or noise) and mean is None:
        out[...] = cut
    else:
        mean, std = (0.0, np.ones(C)) if mean is None else (mean, std)
        c, m = 1 + contrast * signed[:, 5:6], _means(images) if contrast else 0.0
        number = np.float32 if out.dtype == np.uint8 else out.dtype.type
        scale, offset = c / std, (((1 - c) * m + brightness * signed[:, 6:7]) - mean) / std  # (N, C)
        changed = cut.astype(number) * scale.astype(number)[:, None, None] + offset.astype(number)[:, None, None]
        if noise:
            e = [random_normal.numpy(stream_key.numpy(key, 1, n), (H, W, C), number) for n in range(N)]
            changed += (noise / std).astype(number) * np.stack(e)
        out[...] = _whole(changed) if out.dtype == np.uint8 else changed
    if mix != 1:
        number = np.float32 if out.dtype == np.uint8 else out.dtype.type
        mixed = number(mix) * out.astype(number) + number(1 - mix) * out[::-1].astype(number)
        out[...] = _whole(mixed) if out.dtype == np.uint8 else mixed
    return out


def _below(size, words):
    """Whole numbers from 0 to size - 1, equally likely."""
    return (words * np.uint64(size) >> np.uint64(32)).astype(np.intp)


def _moved(images, flipped, dy, dx, shift, fill):
    N, H, W, C = images.shape
    padded = np.empty((N, H + 2 * shift, W + 2 * shift, C), images.dtype)
    padded[...] = fill
    padded[:, shift : shift + H, shift : shift + W] = np.where(flipped[:, None, None, None], images[:, :, ::-1], images)
    h, w = (np.arange(size) + shift + moves[:, None] for size, moves in ((H, dy), (W, dx)))
    return padded[np.arange(N)[:, None, None], h[:, :, None], w[:, None, :]]


def _means(images):
    """The mean of each image (N, 1): down the columns first, one number after the other."""
    columns = np.cumsum(images.reshape(len(images), images.shape[1], -1), axis=1, dtype=np.float64)[:, -1]
    return np.cumsum(columns, axis=1)[:, -1:] / images[0].size


def _whole(x):
    return np.rint(x).clip(0, 255)


def _fast(*arguments):
    variant = _augmentation_float64 if arguments[-1].dtype == np.float64 else _augmentation_float32
    return variant.augment_images(*arguments)


def _check(
    images,
    key,
    flip=0.0,
    shift=0,
    cutout=0,
    contrast=0.0,
    brightness=0.0,
    noise=0.0,
    fill=0,
    mean=None,
    std=None,
    mix=1.0,
    out=None,
):
    if not isinstance(images, np.ndarray) or images.dtype not in (np.uint8, np.float32, np.float64):
        came = images.dtype if isinstance(images, np.ndarray) else type(images).__name__
        raise TypeError(f"images: expected an ndarray of uint8, float32 or float64, got {came}")
    whole = images.dtype == np.uint8
    images = array("images", images, (None,) * 4, np.uint8 if whole else None)
    channels, shorter = images.shape[3], min(images.shape[1:3])
    key = check_key(key)
    flip = _real("flip", flip, 1)
    shift, cutout = _integer("shift", shift, shorter), _integer("cutout", cutout, shorter)
    contrast, brightness, noise = _real("contrast", contrast, 1), _real("brightness", brightness), _real("noise", noise)
    fill = _channels("fill", fill, channels)
    if whole and not (np.all(fill == np.rint(fill)) and np.all((fill >= 0) & (fill <= 255))):
        raise ValueError(f"fill: expected whole numbers from 0 to 255 for uint8 images, got {fill}")
    fill = fill.astype(images.dtype)
    standardises = mean is not None or std is not None
    if standardises:
        mean = _channels("mean", 0 if mean is None else mean, channels)
        std = _channels("std", 1 if std is None else std, channels)
        if not (np.all(np.isfinite(mean)) and np.all(np.isfinite(std)) and np.all(std > 0)):
            raise ValueError(f"mean, std: expected finite numbers, std above 0, got {mean} and {std}")
    mix = _real("mix", mix, 1)
    if whole and standardises:
        if out is not None and getattr(out, "dtype", None) not in (np.float32, np.float64):
            raise TypeError(f"out: expected dtype float32 or float64, got {getattr(out, 'dtype', type(out).__name__)}")
        dtype = np.dtype(np.float32) if out is None else out.dtype
    else:
        dtype = images.dtype
    out = result("out", out, images.shape, dtype)
    disjoint("out", out, "images", images)
    return images, key, flip, shift, cutout, contrast, brightness, noise, fill, mean, std, mix, out


def _integer(name, value, most):
    try:
        value = operator.index(value)
    except TypeError:
        raise TypeError(f"{name}: expected an int, got {type(value).__name__}") from None
    if not 0 <= value <= most:
        raise ValueError(f"{name}: expected an int from 0 to {most}, got {value}")
    return value


def _real(name, value, most=_LARGEST):
    if not isinstance(value, numbers.Real):
        raise TypeError(f"{name}: expected a number, got {type(value).__name__}")
    if not 0 <= value <= most:
        raise ValueError(f"{name}: expected a finite number from 0 to {most:g}, got {value}")
    return float(value)


def _channels(name, value, channels):
    """One number a channel, float64, of a number or of C of them."""
    expected = f"a number, or one for each of {channels} channels"
    try:
        given = np.asarray(value)
        numbers = np.array(given, np.float64) if given.dtype.kind in "fiu" else None
    except (TypeError, ValueError):
        numbers = None
    if numbers is None:
        raise TypeError(f"{name}: expected {expected}, got {value!r}")
    if numbers.shape not in ((), (channels,)):
        raise ValueError(f"{name}: expected {expected}, got shape {numbers.shape}")
    return np.ascontiguousarray(np.broadcast_to(numbers, (channels,)))


augment_images = Kernel(augment_images, _fast, _check, traffic=lambda images, *rest: images.nbytes + rest[-1].nbytes)
