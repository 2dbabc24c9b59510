"""Random numbers that are a pure function of (seed, stream, update, element), and dropout.

The generator is Philox4x32-10 (philox.h): word i of a key's stream can be computed by itself, so a mask is recomputed,
never stored, and nothing depends on what was drawn before, on threads or on dtype. The quality tests and the measured
speed are in docs/kernels/random.md.
"""

import operator

import numpy as np

from . import _random_float32, _random_float64
from ._checks import array
from ._dispatch import Kernel
from ._random_checks import check_dropout, check_key, check_probability, check_stream_key
from ._random_checks import stream_key as _stream_key_fast

__all__ = ["dropout", "random_bits", "random_flags", "random_normal", "random_uniform", "stream_key"]

_FAST = {"f": _random_float32, "d": _random_float64}
_LOW = np.uint64(0xFFFFFFFF)
_HALF = np.uint64(32)
_BATCH = 64  # words: the group that Box-Muller pairs up


def stream_key(seed, stream, update):
    """Mix a seed, the number of a stream and the number of an update into a key for the generators.

        key = mix(mix(mix(seed) + stream) + update)

    Parameters
    ----------
    seed : int
        The user's seed.
    stream : int
        What the numbers are for: each dropout layer, the augmentation, ... has a stream of its own.
    update : int
        The training update (or epoch); resuming a training needs this counter alone.

    Returns
    -------
    int
        A key of 64 bits. Two updates of one stream never share a key; other pairs do with probability 2**-64.

    Raises
    ------
    TypeError, ValueError
        An argument is no integer, or not from 0 to 2**64 - 1.

    Notes
    -----
    mix is one step of splitmix64, a bijection of 64 bits.

    References
    ----------
    Steele, Lea and Flood (2014), Fast splittable pseudorandom number generators, doi:10.1145/2660193.2660195, figure
    17's mix64variant13.
    """
    return _mix(_mix(_mix(seed) + stream) + update)


def _mix(z):
    z = (z + 0x9E3779B97F4A7C15) & 0xFFFFFFFFFFFFFFFF
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & 0xFFFFFFFFFFFFFFFF
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & 0xFFFFFFFFFFFFFFFF
    return z ^ (z >> 31)


stream_key = Kernel(stream_key, _stream_key_fast, check_stream_key)


def _philox(counter, key):
    """Philox4x32-10: four words from each counter.

    `counter` is a list of four uint64 arrays whose low 32 bits are the counter's words; `key` holds the two words of
    the key. Returns the list of the four words; the upper halves of its entries are not meaningful.
    """
    x0, x1, x2, x3 = counter
    k0, k1 = key
    for _ in range(10):
        p = (x0 & _LOW) * np.uint64(0xD2511F53)
        q = (x2 & _LOW) * np.uint64(0xCD9E8D57)
        x0, x1, x2, x3 = (q >> _HALF) ^ x1 ^ np.uint64(k0), q, (p >> _HALF) ^ x3 ^ np.uint64(k1), p
        k0, k1 = (k0 + 0x9E3779B9) & 0xFFFFFFFF, (k1 + 0xBB67AE85) & 0xFFFFFFFF
    return [x0, x1, x2, x3]


def _words(key, size):
    """Words 0 to size - 1 of the key's stream, as uint32."""
    block = np.arange(-(-size // 4), dtype=np.uint64)
    zero = np.zeros_like(block)
    words = np.empty((block.size, 4), np.uint32)
    for i, word in enumerate(_philox([block, block >> _HALF, zero, zero], (key & 0xFFFFFFFF, key >> 32))):
        words[:, i] = word & _LOW
    return words.reshape(-1)[:size]


def _threshold(p):
    """A word is below it with probability p."""
    return min(int(p * 4294967296.0 + 0.5), 4294967295)


def dropout(x, p, key, out=None):
    """Drop each element with probability p and scale the others: y = x m / (1 - p), m in {0, 1} drawn from the key.

    The mask is recomputed from the key, never stored, so the backward pass is the same call: dx = dropout(dy, p, key).

    Parameters
    ----------
    x : ndarray of any shape, float32 or float64
    p : float
        The probability of dropping, in [0, 1), to the nearest 2**-32. p = 0 gives x.
    key : int
        From `stream_key`.
    out : ndarray of x's shape, optional
        May be x itself.

    Returns
    -------
    ndarray of x's shape and dtype

    Raises
    ------
    TypeError, ValueError
        An argument has the wrong type, or p is outside [0, 1).

    Notes
    -----
    Element i (in C order) is dropped where word i of the key's stream is below p 2**32, whatever the dtype, the shape
    and the number of threads. A dropped element is multiplied by 0, as PyTorch does it: NaN and infinity become NaN, a
    negative number -0.

    References
    ----------
    Srivastava, Hinton, Krizhevsky, Sutskever and Salakhutdinov (2014), section 4 and (for the scaling) section 10.
    """
    mask = (_words(key, x.size) >= _threshold(p)).reshape(x.shape)
    return np.multiply(x, mask * x.dtype.type(1 / (1 - p)), out=out)


dropout = Kernel(
    dropout,
    "random",
    check_dropout,
    traffic=lambda x, p, key, out: x.nbytes + out.nbytes,
)


def random_bits(key, shape, out=None):
    """Draw 32 random bits for each element: the words of the key's stream in order.

    Parameters
    ----------
    key : int
        From `stream_key`.
    shape : int or tuple of int
    out : ndarray of uint32 of this shape, optional

    Returns
    -------
    ndarray of uint32

    References
    ----------
    Salmon, Moraes, Dror and Shaw (2011), Parallel random numbers: as easy as 1, 2, 3, doi:10.1145/2063384.2063405,
    section 3.3.
    """
    out[...] = _words(key, out.size).reshape(shape)
    return out


def _shape(shape):
    sizes = shape if isinstance(shape, tuple | list) else (shape,)
    try:
        sizes = tuple(operator.index(size) for size in sizes)
    except TypeError:
        raise TypeError(f"shape: expected an integer or a tuple of integers, got {shape!r}") from None
    if any(size < 0 for size in sizes):
        raise ValueError(f"shape: expected sizes of at least 0, got {shape!r}")
    return sizes


def _check_bits(key, shape, out=None):
    key, shape = check_key(key), _shape(shape)
    if out is None:
        return key, shape, np.empty(shape, np.uint32)
    if not isinstance(out, np.ndarray) or out.dtype != np.uint32:
        raise TypeError(f"out: expected an ndarray of uint32, got {getattr(out, 'dtype', type(out).__name__)}")
    if out.shape != shape or not out.flags.carray:
        raise ValueError(f"out: expected a writable C-contiguous array of shape {shape}, got shape {out.shape}")
    return key, shape, out


random_bits = Kernel(random_bits, lambda key, shape, out: _random_float32.random_bits(key, out), _check_bits)


def random_flags(key, probabilities, shape, out=None):
    """Draw independent flags for each element, one in each bit of a byte: bit k is 1 with probabilities[k].

    Parameters
    ----------
    key : int
        From `stream_key`.
    probabilities : sequence of at most 8 floats
        Each in [0, 1), to the nearest 2**-32. Bits without one are 0.
    shape : int or tuple of int
    out : ndarray of uint8 of this shape, optional

    Returns
    -------
    ndarray of uint8

    Notes
    -----
    Bit k of element i is 1 where word i of the stream of `stream_key(key, k, 0)` is below probabilities[k] 2**32. A
    probability of 0 draws nothing.
    """
    out[...] = 0
    for k, p in enumerate(probabilities):
        if p:
            out |= (
                ((_words(stream_key.numpy(key, k, 0), out.size) < _threshold(p)) << k).astype(np.uint8).reshape(shape)
            )
    return out


def _check_flags(key, probabilities, shape, out=None):
    key, shape = check_key(key), _shape(shape)
    if not isinstance(probabilities, tuple | list) or len(probabilities) > 8:
        raise TypeError(f"probabilities: expected a sequence of at most 8 numbers, got {probabilities!r}")
    probabilities = tuple([check_probability(f"probabilities[{k}]", p) for k, p in enumerate(probabilities)])
    out = np.empty(shape, np.uint8) if out is None else array("out", out, shape, np.dtype(np.uint8), True)
    return key, probabilities, shape, out


random_flags = Kernel(
    random_flags,
    lambda key, probabilities, shape, out: _random_float32.random_flags(
        [_stream_key_fast(key, k, 0) for k in range(len(probabilities))], probabilities, out
    ),
    _check_flags,
    traffic=lambda key, probabilities, shape, out: out.nbytes,
)


def random_uniform(key, shape, dtype=np.float32, out=None):
    """Draw numbers uniform in [0, 1), each from one word of the key's stream.

    Parameters
    ----------
    key : int
        From `stream_key`.
    shape : int or tuple of int
    dtype : float32 or float64
    out : ndarray of this shape and dtype, optional

    Returns
    -------
    ndarray of this shape and dtype

    Notes
    -----
    Element i is word i over 2**32, cut to 24 bits in float32 (rounding could reach 1). So the two dtypes draw the same
    numbers, float32's rounded down, and the resolution in float64 is 2**-32. The fast kernel gives the same bits as the
    definition.
    """
    words = _words(key, out.size).reshape(shape)
    if out.dtype == np.float32:
        words = words & np.uint32(0xFFFFFF00)
    return np.multiply(words, 2.0**-32, out=out, casting="same_kind")


def _check_numbers(key, shape, dtype=np.float32, out=None):
    key, shape = check_key(key), _shape(shape)
    try:
        dtype = np.dtype(dtype)
    except TypeError:
        raise TypeError(f"dtype: expected float32 or float64, got {dtype!r}") from None
    if dtype.char not in _FAST or not dtype.isnative:
        raise TypeError(f"dtype: expected float32 or float64, got {dtype}")
    out = np.empty(shape, dtype) if out is None else array("out", out, shape, dtype, True)
    return key, shape, dtype, out


random_uniform = Kernel(
    random_uniform,
    lambda key, shape, dtype, out: _FAST[out.dtype.char].random_uniform(key, out),
    _check_numbers,
    traffic=lambda key, shape, dtype, out: out.nbytes,
)


def random_normal(key, shape, dtype=np.float32, out=None):
    """Draw numbers from the normal distribution of mean 0 and variance 1.

        r cos a  and  r sin a,    r = sqrt(-2 log((v + 1) / 2**32)),    a = 2 pi w / 2**32

    Parameters
    ----------
    key : int
        From `stream_key`.
    shape : int or tuple of int
    dtype : float32 or float64
    out : ndarray of this shape and dtype, optional

    Returns
    -------
    ndarray of this shape and dtype

    Notes
    -----
    In each group of 64 elements, numbers i and i + 32 (i < 32) come from words v = i and w = i + 32 of the group. Both
    dtypes draw the same numbers, up to rounding. The largest magnitude is sqrt(64 log 2) = 6.66.

    References
    ----------
    Box and Muller (1958), A note on the generation of random normal deviates, doi:10.1214/aoms/1177706645.
    """
    words = _words(key, -(-out.size // _BATCH) * _BATCH).reshape(-1, 2, _BATCH // 2)
    radius = np.sqrt(-2 * np.log((words[:, 0] + 1.0) * 2.0**-32))
    angle = words[:, 1] * (2 * np.pi * 2.0**-32)
    numbers = np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1)
    out[...] = numbers.reshape(-1)[: out.size].reshape(shape)
    return out


random_normal = Kernel(
    random_normal,
    lambda key, shape, dtype, out: _FAST[out.dtype.char].random_normal(key, out),
    _check_numbers,
    traffic=lambda key, shape, dtype, out: out.nbytes,
)
