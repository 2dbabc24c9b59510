"""Recurrent layers through time: vanilla RNN, LSTM and GRU, one layer in one direction.

Layout. Sequences run side by side, time first: the rows of step t, one for each sequence that still runs, follow those
of step t - 1. `counts[t]` says how many run, and never grows: sequences stand in the order of falling length, and a
batch of unequal lengths costs what its tokens cost. Full sequences of T steps have counts = [B, ..., B].

Axes: T steps, B sequences, R = sum(counts) rows, D inputs, H hidden units, V rows of a table.

`a` is the input's part of the pre-activations, x W for every row of x. With `ids`, row r takes a[ids[r]] instead: W
itself for one-hot input, or embedding times W. Biases of both parts are added here. Gates stand side by side in
PyTorch's order: i, f, g, o in an LSTM, r, z, n in a GRU.

Zoneout and recurrent dropout come as a `CellNoise`; an LSTM with layer normalisation is a pair of kernels of its own.

The derivations and the measured speed are in docs/kernels/recurrent.md.
"""

from typing import NamedTuple

import numpy as np

from ._dispatch import Kernel
from ._recurrent_checks import (
    check_gru_backward,
    check_gru_forward,
    check_lstm_backward,
    check_lstm_forward,
    check_lstm_norm_backward,
    check_lstm_norm_forward,
    check_rnn_backward,
    check_rnn_forward,
    check_scatter_rows,
    check_take_rows,
    work_size,
)
from .activations import activation_forward

__all__ = [
    "CellNoise",
    "gru_backward",
    "gru_forward",
    "lstm_backward",
    "lstm_forward",
    "lstm_norm_backward",
    "lstm_norm_forward",
    "rnn_backward",
    "rnn_forward",
    "scatter_rows",
    "take_rows",
    "work_size",
]


class CellNoise(NamedTuple):
    """Zoneout and recurrent dropout: what a pass through time does with the new states and candidates.

        h <- keep h_{t-1} + (1 - keep) h      keep = 1 with probability `zoneout`, for each unit of each row
        c <- keep c_{t-1} + (1 - keep) c      likewise with `zoneout_cell`; h is made of the c before this
        g <- g m / (1 - dropout)              m = 0 with probability `dropout`; of a GRU its n

    Without `flags`, as in use, keep is its expectation, the probability itself, and dropout does nothing.

    Parameters
    ----------
    zoneout, zoneout_cell : float in [0, 1)
        Krueger et al. 2017, arXiv:1606.01305. The second is an LSTM's.
    dropout : float in [0, 1)
        Semeniuta, Severyn and Barth 2016, arXiv:1603.05118. Not for a vanilla RNN, whose state is no sum.
    flags : ndarray of shape (R, H), uint8, or None
        Bit 0: h keeps its old value; bit 1: c does; bit 2: the candidate is dropped. `random_flags` draws them from the
        first three fields. A backward pass needs those of its forward pass.
    """

    zoneout: float = 0.0
    zoneout_cell: float = 0.0
    dropout: float = 0.0
    flags: np.ndarray | None = None


def _noise_of(noise, start, stop, dtype):
    """(keep of h, keep of c, factor of the candidate) for these rows; numbers where the rows do not matter."""
    if noise is None:
        return 0, 0, 1
    zoneout, zoneout_cell, dropout, flags = noise
    if flags is None:
        return zoneout, zoneout_cell, 1
    keep_h, keep_c, dropped = (((flags[start:stop] >> bit) & 1).astype(dtype) for bit in range(3))
    return keep_h, keep_c, (1 - dropped) * dtype.type(1 / (1 - dropout))


def _mixed(keep, old, new):
    """What zoneout makes of a state."""
    return new if np.ndim(keep) == 0 and keep == 0 else keep * old + (1 - keep) * new


def _sigmoid(z):
    return activation_forward.numpy(z, "sigmoid")


def _steps(counts):
    """(first row, row behind the last) of every step."""
    stops = np.cumsum(counts).tolist()
    return list(zip([0, *stops[:-1]], stops, strict=True))


def _begin(state, initial):
    """The running state, in the array that will hold the last one."""
    state[...] = 0 if initial is None else initial


def _inputs(a, ids, start, stop, *biases):
    z = a[start:stop] if ids is None else a[ids[start:stop]]
    for b in biases:
        if b is not None:
            z = z + b
    return z


# ---- vanilla RNN -----------------------------------------------------------------------------------------------------


def rnn_forward(a, b, U, bU, h0, counts, ids=None, h=None, previous=None, h_last=None, work=None, noise=None):
    """Run a vanilla RNN (Elman 1990) over sequences.

        h_t = tanh(a_t + b + h_{t-1} U + bU)

    Parameters
    ----------
    a : ndarray of shape (R, H), or with ids (V, H), float32 or float64
    b, bU : ndarrays of shape (H,), or None
    U : ndarray of shape (H, H)
    h0 : ndarray of shape (B, H), or None for zeros
    counts : ndarray of shape (T,), int64
        Sequences that run at each step: at least 1, never growing, counts[0] = B.
    ids : ndarray of shape (R,), int64, optional
        Row r reads a[ids[r]].
    h, previous : ndarrays of shape (R, H), optional
        Where all sequences run to the end, previous may be h one step later (previous[B:] the memory of h[:-B]).
    h_last : ndarray of shape (B, H), optional
    work : ndarray of at least `work_size` elements, optional
        Scratch memory.
    noise : CellNoise, optional

    Returns
    -------
    h : ndarray of shape (R, H)
        The state after each step.
    previous : ndarray of shape (R, H)
        The state before each step; the backward pass needs it for the gradient of U.
    h_last : ndarray of shape (B, H)
        The state after each sequence's own last step.

    Raises
    ------
    TypeError, ValueError
        An argument has the wrong type, dtype, shape or range; the message names it, what came and what was expected.

    Notes
    -----
    2 R H^2 floating-point operations.
    """
    _begin(h_last, h0)
    for start, stop in _steps(counts):
        state = h_last[: stop - start]
        previous[start:stop] = state
        new = np.tanh(_inputs(a, ids, start, stop, b, bU) + state @ U)
        state[...] = new if noise is None else _mixed(_noise_of(noise, start, stop, h.dtype)[0], state, new)
        h[start:stop] = state
    return h, previous, h_last


def rnn_backward(dh, dh_last, U, h, counts, da=None, dh0=None, work=None, noise=None):
    """Backward pass of `rnn_forward` through time.

        da_t = (dh_t + da_{t+1} U^T) (1 - h_t^2)

    From it follow dU = previous^T da, db = dbU = sum over the rows of da, and dx = da W^T, dW = x^T da.

    Parameters
    ----------
    dh : ndarray of shape (R, H), float32 or float64
        Gradient with respect to h.
    dh_last : ndarray of shape (B, H), or None for zeros
        Gradient with respect to h_last.
    U : ndarray of shape (H, H)
    h : ndarray of shape (R, H)
        As `rnn_forward` returned it.
    counts : ndarray of shape (T,), int64
    da : ndarray of shape (R, H), optional
        Holds the result; may be dh or h.
    dh0 : ndarray of shape (B, H), optional
        Holds the result; may be dh_last.
    work : ndarray of at least `work_size` elements, optional
    noise : CellNoise, optional
        As the forward pass had it.

    Returns
    -------
    da : ndarray of shape (R, H)
    dh0 : ndarray of shape (B, H)
        Gradient with respect to h0.

    Notes
    -----
    2 R H^2 floating-point operations. Werbos 1990, Backpropagation through time.
    """
    _begin(dh0, dh_last)
    for start, stop in reversed(_steps(counts)):
        state, carried = h[start:stop], dh0[: stop - start]
        keep = _noise_of(noise, start, stop, h.dtype)[0]
        d = dh[start:stop] + carried
        # Where zoneout kept the old state, h is not the tanh, but then nothing passes through it.
        da[start:stop] = (d - keep * d) * (1 - state * state)
        carried[...] = keep * d + da[start:stop] @ U.T
    return da, dh0


# ---- LSTM ------------------------------------------------------------------------------------------------------------


def lstm_forward(
    a,
    b,
    U,
    bU,
    h0,
    c0,
    counts,
    ids=None,
    h=None,
    previous=None,
    gates=None,
    c=None,
    h_last=None,
    c_last=None,
    work=None,
    noise=None,
):
    """Run an LSTM over sequences.

        [i, f, g, o] = s(a_t + b + h_{t-1} U + bU)    s: the logistic function, tanh for g
        c_t = f c_{t-1} + i g
        h_t = o tanh(c_t)

    Parameters
    ----------
    a : ndarray of shape (R, 4H), or with ids (V, 4H), float32 or float64
    b, bU : ndarrays of shape (4H,), or None
    U : ndarray of shape (H, 4H)
    h0, c0 : ndarrays of shape (B, H), or None for zeros
    counts : ndarray of shape (T,), int64
        Sequences that run at each step: at least 1, never growing, counts[0] = B.
    ids : ndarray of shape (R,), int64, optional
        Row r reads a[ids[r]].
    h, previous, c : ndarrays of shape (R, H), optional
        previous may share h's memory as in `rnn_forward`.
    gates : ndarray of shape (R, 4H), optional
    h_last, c_last : ndarrays of shape (B, H), optional
    work : ndarray of at least `work_size` elements, optional
        Scratch memory.
    noise : CellNoise, optional

    Returns
    -------
    h, previous : ndarrays of shape (R, H)
        The hidden state after and before each step.
    gates : ndarray of shape (R, 4H)
        i, f, g, o, for the backward pass.
    c : ndarray of shape (R, H)
        The cell state after each step.
    h_last, c_last : ndarrays of shape (B, H)
        The states after each sequence's own last step.

    Raises
    ------
    TypeError, ValueError
        An argument has the wrong type, dtype, shape or range; the message names it, what came and what was expected.

    Notes
    -----
    8 R H^2 floating-point operations. Hochreiter and Schmidhuber 1997, with the forget gate of Gers et al. 2000.
    """
    H = U.shape[0]
    _begin(h_last, h0)
    _begin(c_last, c0)
    for start, stop in _steps(counts):
        state, cell = h_last[: stop - start], c_last[: stop - start]
        previous[start:stop] = state
        z = _inputs(a, ids, start, stop, b, bU) + state @ U
        now = gates[start:stop]
        now[:, : 2 * H] = _sigmoid(z[:, : 2 * H])
        np.tanh(z[:, 2 * H : 3 * H], out=now[:, 2 * H : 3 * H])
        now[:, 3 * H :] = _sigmoid(z[:, 3 * H :])
        i, f, g, o = (now[:, k * H : (k + 1) * H] for k in range(4))
        keep_h, keep_c, factor = _noise_of(noise, start, stop, h.dtype)
        new = f * cell + i * (factor * g)
        state[...] = _mixed(keep_h, state, o * np.tanh(new))
        cell[...] = _mixed(keep_c, cell, new)
        c[start:stop], h[start:stop] = cell, state
    return h, previous, gates, c, h_last, c_last


def lstm_backward(dh, dh_last, dc_last, U, gates, c, c0, counts, da=None, dh0=None, dc0=None, work=None, noise=None):
    """Backward pass of `lstm_forward` through time.

        dh_t += da_{t+1} U^T
        dc_t  = dc_{t+1} f_{t+1} + dh_t o (1 - tanh^2 c_t)
        da_t  = [dc_t g i (1 - i), dc_t c_{t-1} f (1 - f), dc_t i (1 - g^2), dh_t tanh(c_t) o (1 - o)]

    From it follow dU = previous^T da, db = dbU = sum over the rows of da, and dx = da W^T, dW = x^T da.

    Parameters
    ----------
    dh : ndarray of shape (R, H), float32 or float64
        Gradient with respect to h.
    dh_last, dc_last : ndarrays of shape (B, H), or None for zeros
        Gradients with respect to h_last and c_last.
    U : ndarray of shape (H, 4H)
    gates : ndarray of shape (R, 4H)
    c : ndarray of shape (R, H)
        As `lstm_forward` returned them.
    c0 : ndarray of shape (B, H), or None for zeros
    counts : ndarray of shape (T,), int64
    da : ndarray of shape (R, 4H), optional
        Holds the result; may be gates.
    dh0, dc0 : ndarrays of shape (B, H), optional
        Hold the results; may be dh_last and dc_last.
    work : ndarray of at least `work_size` elements, optional
    noise : CellNoise, optional
        As the forward pass had it.

    Returns
    -------
    da : ndarray of shape (R, 4H)
    dh0, dc0 : ndarrays of shape (B, H)

    Notes
    -----
    8 R H^2 floating-point operations.
    """
    H = U.shape[0]
    _begin(dh0, dh_last)
    _begin(dc0, dc_last)
    steps = _steps(counts)
    for t in reversed(range(len(steps))):
        start, stop = steps[t]
        n = stop - start
        i, f, g, o = (gates[start:stop, k * H : (k + 1) * H] for k in range(4))
        before = c[steps[t - 1][0] :][:n] if t else np.zeros_like(dc0[:n]) if c0 is None else c0[:n]
        keep_h, keep_c, factor = _noise_of(noise, start, stop, dh.dtype)
        squashed = np.tanh(c[start:stop] if noise is None else f * before + i * (factor * g))
        d, dc = dh[start:stop] + dh0[:n], dc0[:n].copy()
        kept, kept_c = keep_h * d, keep_c * dc
        d, dc = d - kept, dc - kept_c
        dc += d * o * (1 - squashed * squashed)
        dc0[:n] = kept_c + dc * f
        di, df, dg = dc * (factor * g) * i * (1 - i), dc * before * f * (1 - f), dc * factor * i * (1 - g * g)
        np.concatenate([di, df, dg, d * squashed * o * (1 - o)], axis=1, out=da[start:stop])
        dh0[:n] = kept + da[start:stop] @ U.T
    return da, dh0, dc0


def _normalised(x, eps):
    """x over its last axis with mean 0 and variance 1; mean and 1 / sqrt(variance + eps)."""
    mean = x.mean(axis=1, keepdims=True)
    x = x - mean
    rstd = 1 / np.sqrt((x * x).mean(axis=1, keepdims=True) + x.dtype.type(eps))
    return x * rstd, mean, rstd


def _before_normalisation(dy, y, rstd):
    """Backward pass of `_normalised`."""
    return rstd * (dy - dy.mean(axis=1, keepdims=True) - y * (dy * y).mean(axis=1, keepdims=True))


def lstm_norm_forward(
    a,
    b,
    U,
    bU,
    gain,
    gain_c,
    shift_c,
    h0,
    c0,
    counts,
    ids=None,
    h=None,
    previous=None,
    gates=None,
    c=None,
    sums=None,
    statistics=None,
    h_last=None,
    c_last=None,
    work=None,
    noise=None,
    eps=1e-5,
):
    """Run an LSTM with layer normalisation over sequences.

        N(v)         = (v - mean(v)) / sqrt(var(v) + eps)                over all elements of v
        [i, f, g, o] = s(a_t + b + N(h_{t-1} U) gain + bU)    s: the logistic function, tanh for g
        c_t = f c_{t-1} + i g
        h_t = o tanh(N(c_t) gain_c + shift_c)

    The input's part is normalised before: a = N(x W) times its gain, `layer_norm_forward`'s business. So a table of
    tokens is normalised once for its V rows, however many read them.

    Parameters
    ----------
    a, b, U, bU, h0, c0, counts, ids : see `lstm_forward`
        b and bU are the shifts that belong to the norms of x W and of h U.
    gain : ndarray of shape (4H,)
    gain_c, shift_c : ndarrays of shape (H,)
    h, previous, c : ndarrays of shape (R, H), optional
        previous may share h's memory as in `rnn_forward`.
    gates, sums : ndarrays of shape (R, 4H), optional
    statistics : ndarray of shape (R, 4), optional
    h_last, c_last : ndarrays of shape (B, H), optional
    work : ndarray of at least `work_size(4, H, B)` elements, optional
        Scratch memory.
    noise : CellNoise, optional
    eps : float

    Returns
    -------
    h, previous, gates, c, sums, statistics, h_last, c_last : ndarrays
        As `lstm_forward`; sums is h_{t-1} U, statistics its mean and 1 / sqrt(var + eps), then those of c_t (before
        zoneout), for the backward pass.

    Raises
    ------
    TypeError, ValueError
        An argument has the wrong type, dtype, shape or range; the message names it, what came and what was expected.

    Notes
    -----
    8 R H^2 floating-point operations. Ba, Kiros and Hinton 2016, arXiv:1607.06450, equations 20 to 22 of the
    supplement; its b adds nothing to the shifts of the two norms.
    """
    H = U.shape[0]
    _begin(h_last, h0)
    _begin(c_last, c0)
    for start, stop in _steps(counts):
        state, cell = h_last[: stop - start], c_last[: stop - start]
        previous[start:stop] = state
        sums[start:stop] = state @ U
        normal, statistics[start:stop, 0:1], statistics[start:stop, 1:2] = _normalised(sums[start:stop], eps)
        z = _inputs(a, ids, start, stop, b, bU) + normal * gain
        now = gates[start:stop]
        now[:, : 2 * H] = _sigmoid(z[:, : 2 * H])
        np.tanh(z[:, 2 * H : 3 * H], out=now[:, 2 * H : 3 * H])
        now[:, 3 * H :] = _sigmoid(z[:, 3 * H :])
        i, f, g, o = (now[:, k * H : (k + 1) * H] for k in range(4))
        keep_h, keep_c, factor = _noise_of(noise, start, stop, h.dtype)
        new = f * cell + i * (factor * g)
        normal, statistics[start:stop, 2:3], statistics[start:stop, 3:4] = _normalised(new, eps)
        state[...] = _mixed(keep_h, state, o * np.tanh(normal * gain_c + shift_c))
        cell[...] = _mixed(keep_c, cell, new)
        c[start:stop], h[start:stop] = cell, state
    return h, previous, gates, c, sums, statistics, h_last, c_last


def lstm_norm_backward(
    dh,
    dh_last,
    dc_last,
    U,
    gain,
    gain_c,
    shift_c,
    gates,
    c,
    c0,
    sums,
    statistics,
    counts,
    da=None,
    du=None,
    dgain=None,
    dgain_c=None,
    dshift_c=None,
    dh0=None,
    dc0=None,
    work=None,
    noise=None,
):
    """Backward pass of `lstm_norm_forward` through time.

    da belongs to a + b and to bU, du to h_{t-1} U: dU = previous^T du, db = dbU = sum over the rows of da. The
    derivation is in docs/kernels/recurrent.md.

    Parameters
    ----------
    dh : ndarray of shape (R, H), float32 or float64
        Gradient with respect to h.
    dh_last, dc_last : ndarrays of shape (B, H), or None for zeros
        Gradients with respect to h_last and c_last.
    U, gain, gain_c, shift_c, c0, counts : as `lstm_norm_forward` had them
    gates, c, sums, statistics : as it returned them
    da, du : ndarrays of shape (R, 4H), optional
        Hold the results; da may be gates, du may be sums.
    dgain : ndarray of shape (4H,), optional
    dgain_c, dshift_c : ndarrays of shape (H,), optional
        Hold the results.
    dh0, dc0 : ndarrays of shape (B, H), optional
        Hold the results; may be dh_last and dc_last.
    work : ndarray of at least `work_size(4, H, B)` elements, optional
    noise : CellNoise, optional
        As the forward pass had it.

    Returns
    -------
    da, du : ndarrays of shape (R, 4H)
    dgain, dgain_c, dshift_c : ndarrays
    dh0, dc0 : ndarrays of shape (B, H)

    Notes
    -----
    8 R H^2 floating-point operations.
    """
    H = U.shape[0]
    _begin(dh0, dh_last)
    _begin(dc0, dc_last)
    for total in (dgain, dgain_c, dshift_c):
        total[...] = 0
    steps = _steps(counts)
    for t in reversed(range(len(steps))):
        start, stop = steps[t]
        n = stop - start
        i, f, g, o = (gates[start:stop, k * H : (k + 1) * H] for k in range(4))
        before = c[steps[t - 1][0] :][:n] if t else np.zeros_like(dc0[:n]) if c0 is None else c0[:n]
        mean, rstd, mean_c, rstd_c = (statistics[start:stop, k : k + 1] for k in range(4))
        keep_h, keep_c, factor = _noise_of(noise, start, stop, dh.dtype)
        normal = (f * before + i * (factor * g) - mean_c) * rstd_c
        squashed = np.tanh(normal * gain_c + shift_c)
        d, dc = dh[start:stop] + dh0[:n], dc0[:n].copy()
        kept, kept_c = keep_h * d, keep_c * dc
        d, dc = d - kept, dc - kept_c
        dshifted = d * o * (1 - squashed * squashed)
        dgain_c += (dshifted * normal).sum(axis=0)
        dshift_c += dshifted.sum(axis=0)
        dc += _before_normalisation(dshifted * gain_c, normal, rstd_c)
        dc0[:n] = kept_c + dc * f
        di, df, dg = dc * (factor * g) * i * (1 - i), dc * before * f * (1 - f), dc * factor * i * (1 - g * g)
        now = da[start:stop]
        np.concatenate([di, df, dg, d * squashed * o * (1 - o)], axis=1, out=now)
        normal = (sums[start:stop] - mean) * rstd
        dgain += (now * normal).sum(axis=0)
        du[start:stop] = _before_normalisation(now * gain, normal, rstd)
        dh0[:n] = kept + du[start:stop] @ U.T
    return da, du, dgain, dgain_c, dshift_c, dh0, dc0


# ---- GRU -------------------------------------------------------------------------------------------------------------


def gru_forward(
    a,
    b,
    U,
    bU,
    h0,
    counts,
    ids=None,
    h=None,
    previous=None,
    gates=None,
    candidate=None,
    h_last=None,
    work=None,
    noise=None,
):
    """Run a GRU over sequences; the reset gate acts behind the product, as in PyTorch.

        [r, z] = s(a_t + b + h_{t-1} U + bU)      the first 2H columns; s: the logistic function
        q_t    = h_{t-1} U + bU                   the last H columns
        n      = tanh(a_t + b + r q_t)            the last H columns of a and b
        h_t    = n + z (h_{t-1} - n)

    Parameters
    ----------
    a : ndarray of shape (R, 3H), or with ids (V, 3H), float32 or float64
    b, bU : ndarrays of shape (3H,), or None
    U : ndarray of shape (H, 3H)
    h0 : ndarray of shape (B, H), or None for zeros
    counts : ndarray of shape (T,), int64
        Sequences that run at each step: at least 1, never growing, counts[0] = B.
    ids : ndarray of shape (R,), int64, optional
        Row r reads a[ids[r]].
    h, previous, candidate : ndarrays of shape (R, H), optional
        previous may share h's memory as in `rnn_forward`.
    gates : ndarray of shape (R, 3H), optional
    h_last : ndarray of shape (B, H), optional
    work : ndarray of at least `work_size` elements, optional
        Scratch memory.
    noise : CellNoise, optional

    Returns
    -------
    h, previous : ndarrays of shape (R, H)
        The state after and before each step.
    gates : ndarray of shape (R, 3H)
        r, z, n, for the backward pass.
    candidate : ndarray of shape (R, H)
        q, for the backward pass.
    h_last : ndarray of shape (B, H)
        The state after each sequence's own last step.

    Raises
    ------
    TypeError, ValueError
        An argument has the wrong type, dtype, shape or range; the message names it, what came and what was expected.

    Notes
    -----
    6 R H^2 floating-point operations. Cho et al. 2014, arXiv:1406.1078, in the variant of arXiv:1412.3555v1.
    """
    H = U.shape[0]
    _begin(h_last, h0)
    for start, stop in _steps(counts):
        state, now = h_last[: stop - start], gates[start:stop]
        previous[start:stop] = state
        x = _inputs(a, ids, start, stop, b)
        y = state @ U if bU is None else state @ U + bU
        candidate[start:stop] = y[:, 2 * H :]
        now[:, : 2 * H] = _sigmoid(x[:, : 2 * H] + y[:, : 2 * H])
        r, z, n = (now[:, k * H : (k + 1) * H] for k in range(3))
        np.tanh(x[:, 2 * H :] + r * y[:, 2 * H :], out=n)
        keep, _, factor = _noise_of(noise, start, stop, h.dtype)
        n = factor * n
        state[...] = _mixed(keep, state, n + z * (state - n))
        h[start:stop] = state
    return h, previous, gates, candidate, h_last


def gru_backward(dh, dh_last, U, previous, gates, candidate, counts, da=None, du=None, dh0=None, work=None, noise=None):
    """Backward pass of `gru_forward` through time.

        dh_t += dh_{t+1} z_{t+1} + du_{t+1} U^T
        da_t  = [dn q r (1 - r), dh_t (h_{t-1} - n) z (1 - z), dn]      dn = dh_t (1 - z) (1 - n^2)
        du_t  = [the same, the same, dn r]

    da belongs to a + b, du to h_{t-1} U + bU: dU = previous^T du, dbU = sum over the rows of du, db that of da, and
    dx = da W^T, dW = x^T da.

    Parameters
    ----------
    dh : ndarray of shape (R, H), float32 or float64
        Gradient with respect to h.
    dh_last : ndarray of shape (B, H), or None for zeros
        Gradient with respect to h_last.
    U : ndarray of shape (H, 3H)
    previous, candidate : ndarrays of shape (R, H)
    gates : ndarray of shape (R, 3H)
        As `gru_forward` returned them.
    counts : ndarray of shape (T,), int64
    da, du : ndarrays of shape (R, 3H), optional
        Hold the results; da may be gates.
    dh0 : ndarray of shape (B, H), optional
        Holds the result; may be dh_last.
    work : ndarray of at least `work_size` elements, optional
    noise : CellNoise, optional
        As the forward pass had it.

    Returns
    -------
    da, du : ndarrays of shape (R, 3H)
    dh0 : ndarray of shape (B, H)

    Notes
    -----
    6 R H^2 floating-point operations.
    """
    H = U.shape[0]
    _begin(dh0, dh_last)
    for start, stop in reversed(_steps(counts)):
        carried = dh0[: stop - start]
        r, z, n = (gates[start:stop, k * H : (k + 1) * H] for k in range(3))
        keep, _, factor = _noise_of(noise, start, stop, dh.dtype)
        d = dh[start:stop] + carried
        kept = keep * d
        d = d - kept
        direct = kept + d * z
        dn = d * (1 - z) * factor * (1 - n * n)
        dz = d * (previous[start:stop] - factor * n) * z * (1 - z)
        dr, dq = dn * candidate[start:stop] * r * (1 - r), dn * r
        np.concatenate([dr, dz, dn], axis=1, out=da[start:stop])
        np.concatenate([dr, dz, dq], axis=1, out=du[start:stop])
        np.matmul(du[start:stop], U.T, out=carried)
        carried += direct
    return da, du, dh0


# ---- rows of a table -------------------------------------------------------------------------------------------------


def take_rows(table, ids, out=None):
    """Gather rows: out[r] = table[ids[r]].

    Parameters
    ----------
    table : ndarray of shape (V, D), float32 or float64
    ids : ndarray of shape (R,), int64, from 0 to V - 1
    out : ndarray of shape (R, D), optional

    Returns
    -------
    ndarray of shape (R, D)
    """
    return np.take(table, ids, axis=0, out=out, mode="clip")  # checked; the default mode would buffer


def scatter_rows(dy, ids, dtable, accumulate=False):
    """Backward pass of `take_rows`: dtable[v] = sum of dy[r] over all r with ids[r] = v, in the order of r.

    Parameters
    ----------
    dy : ndarray of shape (R, D), float32 or float64
    ids : ndarray of shape (R,), int64, from 0 to V - 1
    dtable : ndarray of shape (V, D)
        Holds the result.
    accumulate : bool
        Add to dtable instead of overwriting it.

    Returns
    -------
    ndarray of shape (V, D)
    """
    if not accumulate:
        dtable[...] = 0
    np.add.at(dtable, ids, dy)
    return dtable


# ---- registration ----------------------------------------------------------------------------------------------------


rnn_forward = Kernel(
    rnn_forward, "recurrent", check_rnn_forward, flops=lambda a, b, U, bU, h0, counts, ids, h, *_: 2 * h.size * len(U)
)
rnn_backward = Kernel(
    rnn_backward, "recurrent", check_rnn_backward, flops=lambda dh, dh_last, U, *_: 2 * dh.size * len(U)
)
lstm_forward = Kernel(
    lstm_forward,
    "recurrent",
    check_lstm_forward,
    flops=lambda a, b, U, bU, h0, c0, counts, ids, h, *_: 8 * h.size * len(U),
)
lstm_backward = Kernel(
    lstm_backward, "recurrent", check_lstm_backward, flops=lambda dh, dh_last, dc_last, U, *_: 8 * dh.size * len(U)
)
lstm_norm_forward = Kernel(
    lstm_norm_forward,
    "recurrent",
    check_lstm_norm_forward,
    flops=lambda a, b, U, bU, gain, gain_c, shift_c, h0, c0, counts, ids, h, *_: 8 * h.size * len(U),
)
lstm_norm_backward = Kernel(
    lstm_norm_backward,
    "recurrent",
    check_lstm_norm_backward,
    flops=lambda dh, dh_last, dc_last, U, *_: 8 * dh.size * len(U),
)
gru_forward = Kernel(
    gru_forward, "recurrent", check_gru_forward, flops=lambda a, b, U, bU, h0, counts, ids, h, *_: 6 * h.size * len(U)
)
gru_backward = Kernel(
    gru_backward, "recurrent", check_gru_backward, flops=lambda dh, dh_last, U, *_: 6 * dh.size * len(U)
)
take_rows = Kernel(take_rows, "recurrent", check_take_rows, traffic=lambda table, ids, out: ids.nbytes + 2 * out.nbytes)
scatter_rows = Kernel(
    scatter_rows, "recurrent", check_scatter_rows, traffic=lambda dy, ids, dtable, _: ids.nbytes + dy.nbytes
)
