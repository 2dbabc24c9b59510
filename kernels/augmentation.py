"""Image augmentation: flip, shift, brightness and noise in one pass over a batch.

All that is drawn is drawn by NumPy's Philox generator, in code that both implementations share: they differ in no bit.
"""

import numbers
import operator

import numpy as np

from ._checks import array, disjoint, result
from ._dispatch import Kernel
from .jit import kernel_jit

__all__ = ["augment_images"]

_NOISE_BLOCK = 1 << 16  # numbers drawn at a time: they stay in the second-level cache
_LARGEST = float(np.finfo(np.float32).max)


def augment_images(images, key, flip=0.0, shift=0, noise=0.0, brightness=0.0, fill=0, out=None):
    """Return images as a camera might have taken them: mirrored, moved, lighter or darker, noisy.

    With everything drawn per image n, and noise per number,

        mirrored[h, w] = images[n, h, W-1-w] with probability `flip`, else images[n, h, w]
        moved[h, w]    = mirrored[h + dy, w + dx], or `fill` outside; dy and dx whole numbers from -shift to shift
        out[n, h, w]   = moved[h, w] + b + noise * e; b uniform between -brightness and brightness, e standard normal

    Parameters
    ----------
    images : ndarray of shape (N, H, W, C), uint8, float32 or float64
    key : int
        From 0 to 2^128 - 1; the same key gives the same images.
    flip : float
        Probability of a horizontal flip, from 0 to 1.
    shift : int
        Largest shift in pixels, from 0 to the shorter side; each shift up to it is equally likely.
    noise : float
        Standard deviation, in the units of `images`.
    brightness : float
        Largest offset, in the units of `images`.
    fill : float
        Stands where a shift uncovers the outside; for uint8, an int from 0 to 255.
    out : ndarray of images' shape and dtype, optional
        Must not overlap `images`.

    Returns
    -------
    ndarray of images' shape and dtype
        uint8 is rounded to the nearest number (half to even) after the last step, and limited to 0 to 255. Floats are
        not limited.

    Raises
    ------
    TypeError, ValueError
        The message names the argument, what came and what was expected.

    Notes
    -----
    What image n becomes depends on (key, n) and the image alone, not on N: the flip, the shifts and the brightness of
    all images are drawn whether they are asked for or not, four numbers an image. The noise is a second stream of the
    same key, in the order of the numbers, in float32 (float64 for float64 images). Drawing it costs more than all
    else: 14 ns a number and more, where all else takes 0.5.
    """
    if images.size == 0:
        return out
    N, H, W, C = images.shape
    flipped, dy, dx, offsets = _draw(images, key, flip, shift, brightness)
    columns = np.where(flipped[:, None], np.arange(W)[::-1], np.arange(W))  # (N, W)
    if shift:
        padded = np.full((N, H + 2 * shift, W + 2 * shift, C), fill, images.dtype)
        padded[:, shift : shift + H, shift : shift + W] = images
        h = np.arange(H) + shift + dy[:, None]  # (N, H)
        w = np.arange(W) + dx[:, None]  # (N, W), may lie outside
        inside = (w >= 0) & (w < W)
        w = np.where(inside, np.take_along_axis(columns, w.clip(0, W - 1), axis=1) + shift, 0)  # column 0 is padding
    else:
        padded, h, w = images, np.broadcast_to(np.arange(H), (N, H)), columns
    out[...] = padded[np.arange(N)[:, None, None], h[:, :, None], w[:, None, :]]
    if noise or brightness:
        disturbance = np.concatenate([block.copy() for block in _disturbances(images, key, noise, offsets)])
        changed = out + disturbance.reshape(out.shape if noise else (N, 1, 1, 1))
        out[...] = np.rint(changed).clip(0, 255) if out.dtype == np.uint8 else changed
    return out


def _generator(key, stream):
    # A stream starts 2^192 blocks from the next: they never meet.
    return np.random.Generator(np.random.Philox(key=key, counter=[0, 0, 0, stream]))


def _draw(images, key, flip, shift, brightness):
    """Draw for each image: whether it is flipped, its shifts, and its brightness offset (N, 1)."""
    uniform = _generator(key, 0).random((len(images), 4))
    moves = (uniform[:, 1:3] * (2 * shift + 1)).astype(np.intp) - shift
    offsets = (brightness * (2 * uniform[:, 3:] - 1)).astype(_number(images))
    return uniform[:, 0] < flip, moves[:, 0], moves[:, 1], offsets


def _number(images):
    """The dtype of what is added to images."""
    return np.float32 if images.dtype == np.uint8 else images.dtype


def _disturbances(images, key, noise, offsets):
    """Yield what is added, a block of images at a time: (images, H W C) with noise, (images, 1) without."""
    if not noise:
        yield offsets
        return
    generator = _generator(key, 1)
    size = images[0].size
    step = max(1, _NOISE_BLOCK // size)
    drawn = np.empty((min(step, len(images)), size), offsets.dtype)
    for start in range(0, len(images), step):
        block = drawn[: len(images) - start]
        generator.standard_normal(dtype=block.dtype, out=block)
        block *= offsets.dtype.type(noise)
        block += offsets[start : start + step]
        yield block


def _fast(images, key, flip, shift, noise, brightness, fill, out):
    if images.size == 0:
        return out
    N, H, W, C = images.shape
    flipped, dy, dx, offsets = _draw(images, key, flip, shift, brightness)
    mirror = np.arange(W * C, dtype=np.uint32).reshape(W, C)[::-1].ravel()
    fill = images.dtype.type(fill)
    x, y = images.reshape(N, -1), out.reshape(N, -1)
    start = 0
    for disturbance in _disturbances(images, key, noise, offsets) if noise or brightness else [offsets[:, :0]]:
        block = slice(start, start + len(disturbance))
        _augment_block(x[block], H, flipped[block], dy[block], dx[block] * C, mirror, fill, disturbance, y[block])
        start = block.stop
    return out


@kernel_jit
def _augment_block(images, H, flipped, dy, dx, mirror, fill, disturbance, out):
    """Augment images (N, H W C).

    dx counts numbers, not pixels; disturbance is (N, H W C), (N, 1) or (N, 0): for each number, each image, or none.
    """
    for n in range(images.shape[0]):
        _move(images[n], H, flipped[n], dy[n], dx[n], mirror, fill, out[n])
        if disturbance.shape[1]:
            _disturb(out[n], disturbance[n])  # the image just written lies in the cache


@kernel_jit
def _move(image, H, flipped, dy, dx, mirror, fill, out):
    # Unsigned indices, since Numba's test for negative ones keeps loops from vectorising. A slice of each row would
    # take longer than copying it.
    size = mirror.size
    first, last = np.uintp(max(0, -dx)), np.uintp(min(size, size - dx))  # what lies inside the image
    count, moved = last - first, np.uintp(first + dx)
    for h in range(H):
        row = np.uintp(h * size)
        end = row + np.uintp(size)
        if not 0 <= h + dy < H:
            for i in range(row, end):
                out[i] = fill
            continue
        for i in range(row, row + first):
            out[i] = fill
        for i in range(row + last, end):
            out[i] = fill
        source, target = np.uintp((h + dy) * size), row + first
        if flipped:
            for i in range(count):
                out[target + i] = image[source + np.uintp(mirror[moved + i])]
        else:
            source += moved
            for i in range(count):
                out[target + i] = image[source + i]


@kernel_jit
def _disturb(x, disturbance):
    offset = disturbance[0]  # read once: for all the compiler knows, writing x changes it
    alike = disturbance.size == 1
    if x.itemsize == 1:
        if alike:
            for i in range(x.size):
                x[i] = _saturated(np.float32(x[i]) + offset)
        else:
            for i in range(x.size):
                x[i] = _saturated(np.float32(x[i]) + disturbance[i])
    elif alike:
        for i in range(x.size):
            x[i] += offset
    else:
        for i in range(x.size):
            x[i] += disturbance[i]


@kernel_jit
def _saturated(x):
    return np.uint8(min(max(np.rint(x), np.float32(0)), np.float32(255)))


def _check(images, key, flip=0.0, shift=0, noise=0.0, brightness=0.0, fill=0, out=None):
    if not isinstance(images, np.ndarray) or images.dtype not in (np.uint8, np.float32, np.float64):
        came = images.dtype if isinstance(images, np.ndarray) else type(images).__name__
        raise TypeError(f"images: expected an ndarray of uint8, float32 or float64, got {came}")
    whole = images.dtype == np.uint8
    images = array("images", images, (None,) * 4, np.uint8 if whole else None)
    key = _integer("key", key, 2**128 - 1)
    flip = _real("flip", flip, 1)
    shift = _integer("shift", shift, min(images.shape[1:3]))
    noise = _real("noise", noise)
    brightness = _real("brightness", brightness)
    if whole:
        fill = _integer("fill", fill, 255)
    elif not isinstance(fill, numbers.Real):
        raise TypeError(f"fill: expected a number, got {type(fill).__name__}")
    out = result("out", out, images.shape, images.dtype)
    disjoint("out", out, "images", images)
    return images, key, flip, shift, noise, brightness, fill, out


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


augment_images = Kernel(augment_images, _fast, _check, traffic=lambda images, *_: 2 * images.nbytes)
