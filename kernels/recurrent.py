"""Recurrent layers through time: vanilla RNN, LSTM and GRU, one layer in one direction.

Layout. Sequences run side by side, time first: the rows of step t, one for each sequence that still runs, follow those
of step t - 1. `counts[t]` says how many run, and never grows: sequences stand in the order of falling length, and a
batch of unequal lengths costs what its tokens cost. Full sequences of T steps have counts = [B, ..., B].

Axes: T steps, B sequences, R = sum(counts) rows, D inputs, H hidden units, V rows of a table.

`a` is the input's part of the pre-activations, x W for every row of x. With `ids`, row r takes a[ids[r]] instead: W
itself for one-hot input, or embedding times W. Biases of both parts are added here. Gates stand side by side in
PyTorch's order: i, f, g, o in an LSTM, r, z, n in a GRU.

The derivations and the measured speed are in docs/kernels/recurrent.md.
"""

import numpy as np

from ._dispatch import Kernel
from ._recurrent_checks import (
    check_gru_backward,
    check_gru_forward,
    check_lstm_backward,
    check_lstm_forward,
    check_rnn_backward,
    check_rnn_forward,
    check_scatter_rows,
    check_take_rows,
    work_size,
)
from .activations import activation_forward

__all__ = [
    "gru_backward",
    "gru_forward",
    "lstm_backward",
    "lstm_forward",
    "rnn_backward",
    "rnn_forward",
    "scatter_rows",
    "take_rows",
    "work_size",
]


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


def rnn_forward(a, b, U, bU, h0, counts, ids=None, h=None, previous=None, h_last=None, work=None):
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
    h_last : ndarray of shape (B, H), optional
    work : ndarray of at least `work_size` elements, optional
        Scratch memory.

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
        np.tanh(_inputs(a, ids, start, stop, b, bU) + state @ U, out=h[start:stop])
        state[...] = h[start:stop]
    return h, previous, h_last


def rnn_backward(dh, dh_last, U, h, counts, da=None, dh0=None, work=None):
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
        state = h[start:stop]
        da[start:stop] = (dh[start:stop] + dh0[: stop - start]) * (1 - state * state)
        np.matmul(da[start:stop], U.T, out=dh0[: stop - start])
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
    gates : ndarray of shape (R, 4H), optional
    h_last, c_last : ndarrays of shape (B, H), optional
    work : ndarray of at least `work_size` elements, optional
        Scratch memory.

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
        cell[...] = f * cell + i * g
        state[...] = o * np.tanh(cell)
        c[start:stop], h[start:stop] = cell, state
    return h, previous, gates, c, h_last, c_last


def lstm_backward(dh, dh_last, dc_last, U, gates, c, c0, counts, da=None, dh0=None, dc0=None, work=None):
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
        squashed = np.tanh(c[start:stop])
        d = dh[start:stop] + dh0[:n]
        dc = dc0[:n] + d * o * (1 - squashed * squashed)
        dc0[:n] = dc * f
        parts = dc * g * i * (1 - i), dc * before * f * (1 - f), dc * i * (1 - g * g), d * squashed * o * (1 - o)
        np.concatenate(parts, axis=1, out=da[start:stop])
        np.matmul(da[start:stop], U.T, out=dh0[:n])
    return da, dh0, dc0


# ---- GRU -------------------------------------------------------------------------------------------------------------


def gru_forward(
    a, b, U, bU, h0, counts, ids=None, h=None, previous=None, gates=None, candidate=None, h_last=None, work=None
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
    gates : ndarray of shape (R, 3H), optional
    h_last : ndarray of shape (B, H), optional
    work : ndarray of at least `work_size` elements, optional
        Scratch memory.

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
        state[...] = n + z * (state - n)
        h[start:stop] = state
    return h, previous, gates, candidate, h_last


def gru_backward(dh, dh_last, U, previous, gates, candidate, counts, da=None, du=None, dh0=None, work=None):
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
        d = dh[start:stop] + carried
        direct = d * z
        dn = d * (1 - z) * (1 - n * n)
        dz = d * (previous[start:stop] - n) * z * (1 - z)
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
