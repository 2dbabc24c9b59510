"""Matrix products and the linear layer.

Axes: N rows (the batch), D inputs, H outputs. A product by the tile holds its sums in registers while it walks the
inner dimension (tile.pxi, product.pxi); the maths and the measured speed are in docs/kernels/linear.md.
"""

import numpy as np

from . import _linear_float32, _linear_float64
from ._checks import array, check_linear_backward, check_linear_forward, disjoint, result
from ._dispatch import Kernel
from .activations import activation_forward

__all__ = ["PackedMatrix", "linear_backward", "linear_forward", "matmul", "matmul_packed", "pack"]

_FAST = {"f": _linear_float32, "d": _linear_float64}


def _product_flops(a, b, out, *_):
    return 2 * a.shape[0] * a.shape[1] * out.shape[1]


def matmul(a, b, out=None):
    """Multiply two matrices: out = a b.

    Parameters
    ----------
    a : ndarray of shape (M, K), float32 or float64
    b : ndarray of shape (K, N), of a's dtype
    out : ndarray of shape (M, N), optional
        Holds the result; must not overlap a or b.

    Returns
    -------
    ndarray of shape (M, N)
        `out` where it was given.

    Raises
    ------
    TypeError, ValueError
        An argument is no ndarray of the right dtype and shape; the message names it.

    Notes
    -----
    2 M K N floating-point operations. In which order an element's sum is formed, and by which unit of the CPU, follows
    from the shapes (docs/kernels/linear.md); the bits do not depend on the number of threads.
    """
    return np.matmul(a, b, out=out)


def _check_matmul(a, b, out=None):
    a = array("a", a, (None, None))
    b = array("b", b, (a.shape[1], None), a.dtype)
    out = result("out", out, (a.shape[0], b.shape[1]), a.dtype)
    disjoint("out", out, "a", a)
    disjoint("out", out, "b", b)
    return a, b, out


matmul = Kernel(matmul, "linear", _check_matmul, flops=_product_flops)


class PackedMatrix:
    """A matrix laid out for the tile: column panels of two vectors (three in the last where their number is odd), zero
    beyond the edge.

    Made by `pack` once, used by `matmul_packed` as often as wanted. A small batch times a packed matrix runs at the
    machine's peak, because a BLAS repacks the matrix at every call.

    Attributes
    ----------
    panels : ndarray of shape (K * N rounded up to whole vectors,)
    shape : tuple of int
        (K, N) of the matrix itself.
    """

    def __init__(self, panels, shape):
        self.panels = panels
        self.shape = shape

    @property
    def dtype(self):
        return self.panels.dtype

    def _panel_widths(self):
        lanes = _FAST[self.dtype.char].lanes()
        vectors = -(-self.shape[1] // lanes)
        widths = [2 * lanes] * (vectors // 2)
        if vectors % 2:
            widths = [*widths[:-1], 3 * lanes] if widths else [lanes]
        return widths

    def unpack(self):
        """Return the matrix as an ordinary ndarray of shape (K, N)."""
        K, N = self.shape
        panels, start = [], 0
        for width in self._panel_widths():
            panels.append(self.panels[start : start + K * width].reshape(K, width))
            start += K * width
        return np.concatenate(panels, axis=1)[:, :N] if panels else np.empty((K, 0), self.dtype)


def pack(b, out=None):
    """Lay a matrix out for repeated products with `matmul_packed`.

    Parameters
    ----------
    b : ndarray of shape (K, N), float32 or float64
    out : PackedMatrix, optional
        An earlier result for a matrix of the same shape and dtype, filled anew.

    Returns
    -------
    PackedMatrix
    """
    K, N = b.shape
    start = 0
    for width in out._panel_widths():
        panel = out.panels[start * K : (start + width) * K].reshape(K, width)
        columns = min(width, N - start)
        panel[:, :columns] = b[:, start : start + columns]
        panel[:, columns:] = 0
        start += width
    return out


def _check_pack(b, out=None):
    b = array("b", b, (None, None))
    lanes = _FAST[b.dtype.char].lanes()
    size = b.shape[0] * -(-b.shape[1] // lanes) * lanes
    if out is None:
        out = PackedMatrix(np.empty(size, b.dtype), b.shape)
    elif not isinstance(out, PackedMatrix) or out.shape != b.shape or out.dtype != b.dtype:
        raise ValueError(f"out: expected a PackedMatrix of shape {b.shape} and dtype {b.dtype}, got {out!r}")
    _check_panels("out", out, True)
    return b, out


def _check_panels(name, packed, writable=False):
    """A PackedMatrix can be made by hand: compiled code must not run past its panels."""
    lanes = _FAST[packed.dtype.char].lanes() if packed.dtype.char in _FAST else 1
    K, N = packed.shape
    array(f"{name}.panels", packed.panels, (K * -(-N // lanes) * lanes,), None, writable)
    if not packed.panels.flags.c_contiguous or not packed.panels.flags.aligned:
        raise ValueError(f"{name}.panels: expected an aligned C-contiguous array")


def _pack_fast(b, out):
    _FAST[b.dtype.char].pack(b, out.panels)
    return out


pack = Kernel(pack, _pack_fast, _check_pack, traffic=lambda b, out: b.nbytes + out.panels.nbytes)


def matmul_packed(a, packed, out=None):
    """Multiply a matrix by one that `pack` has laid out: out = a b.

    Parameters
    ----------
    a : ndarray of shape (M, K), of the packed matrix's dtype
    packed : PackedMatrix of shape (K, N)
    out : ndarray of shape (M, N), optional

    Returns
    -------
    ndarray of shape (M, N)
    """
    return np.matmul(a, packed.unpack(), out=out)


def _check_matmul_packed(a, packed, out=None):
    if not isinstance(packed, PackedMatrix):
        raise TypeError(f"packed: expected a PackedMatrix made by pack(), got {type(packed).__name__}")
    _check_panels("packed", packed)
    a = array("a", a, (None, packed.shape[0]), packed.dtype)
    out = result("out", out, (a.shape[0], packed.shape[1]), a.dtype)
    disjoint("out", out, "a", a)
    return a, packed, out


matmul_packed = Kernel(
    matmul_packed,
    lambda a, packed, out: _FAST[a.dtype.char].matmul_packed(a, packed.panels, out),
    _check_matmul_packed,
    flops=_product_flops,
    traffic=lambda a, packed, out: a.nbytes + packed.panels.nbytes + out.nbytes,
)


def linear_forward(x, W, b=None, activation="identity", out=None, batched=False):
    """Apply a linear layer and its activation in one pass: y = f(x W + b).

    Parameters
    ----------
    x : ndarray of shape (N, D), float32 or float64
    W : ndarray of shape (D, H), of x's dtype
    b : ndarray of shape (H,), of x's dtype, optional
    activation : {"identity", "relu", "leaky_relu", "tanh", "sigmoid"}
        Applied while the block just computed lies in the cache. leaky_relu's slope is 0.01.
    out : ndarray of shape (N, H), optional
        Holds the result; must not overlap x, W or b.
    batched : bool
        Let the number of rows decide how a row is computed, as training does: with many rows the matrix unit, where
        there is one, is about twice as fast. By default a row's bits do not depend on how many others come with it.

    Returns
    -------
    ndarray of shape (N, H)

    Raises
    ------
    TypeError, ValueError
        An argument has the wrong type, dtype or shape; the message names it, what came and what was expected.

    Notes
    -----
    2 N D H floating-point operations.
    """
    y = np.matmul(x, W, out=out)
    if b is not None:
        y += b
    return activation_forward.numpy(y, activation, out=y)


linear_forward = Kernel(
    linear_forward,
    "linear",
    check_linear_forward,
    flops=lambda x, W, b, activation, out, batched: 2 * x.shape[0] * W.size,
)


def linear_backward(dy, x, W, dx=None, dW=None, db=None, need_dx=True, use_bias=True, accumulate=False, need_dW=True):
    """Backward pass of y = x W + b.

        dx = dy W^T,    dW = x^T dy,    db = sum over the batch of dy

    Parameters
    ----------
    dy : ndarray of shape (N, H), float32 or float64
    x : ndarray of shape (N, D), of dy's dtype
    W : ndarray of shape (D, H), of dy's dtype
    dx, dW, db : ndarrays of shapes (N, D), (D, H), (H,), optional
        Hold the results.
    need_dx : bool
        False leaves dx out: the first layer of a network needs none.
    use_bias : bool
        False leaves db out.
    accumulate : bool
        Add to dW and db instead of overwriting them; dx is always overwritten.
    need_dW : bool
        False leaves dW and db out: a layer that is not trained needs none.

    Returns
    -------
    dx, dW, db : ndarrays; None for what was left out

    Notes
    -----
    2 N D H floating-point operations for each of dx and dW. dW and db are shared out among threads by their elements,
    never summed over threads.
    """
    if need_dW and accumulate:
        dW += x.T @ dy
        if db is not None:
            db += dy.sum(axis=0)
    elif need_dW:
        np.matmul(x.T, dy, out=dW)
        if db is not None:
            np.sum(dy, axis=0, out=db)
    if dx is not None:
        np.matmul(dy, W.T, out=dx)
    return dx, dW, db


linear_backward = Kernel(
    linear_backward,
    "linear",
    check_linear_backward,
    flops=lambda dy, x, W, dx, dW, *_: 2 * dy.shape[0] * W.size * ((dx is not None) + (dW is not None)),
)
