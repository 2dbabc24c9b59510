# cython: language_level=3
"""Checks of the generation kernel."""
import math

import numpy as np

cimport numpy as cnp

from dd2424fast.kernels._checks cimport all_apart, real_matrix, real_vector

from dd2424fast.kernels._checks import array
from dd2424fast.kernels._random_checks import check_probability

cnp.import_array()

_GATES = {"rnn": 1, "gru": 3, "lstm": 4}
_INT64, _FLOAT64, _BOOL = np.dtype(np.int64), np.dtype(np.float64), np.dtype(np.bool_)


def _number(str name, value, double low, double high, bint open_low, str expected):
    if isinstance(value, bool) or not isinstance(value, (int, float, np.integer, np.floating)):
        raise TypeError(f"{name}: expected {expected}, got {value!r}")
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not (low <= number <= high) or (open_low and number == low) or math.isinf(number):
        raise ValueError(f"{name}: expected {expected}, got {value!r}")
    return number


def _whole(str name, value, low, high, str expected):
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise TypeError(f"{name}: expected {expected}, got {value!r}")
    if not low <= value <= high:
        raise ValueError(f"{name}: expected {expected}, got {value}")
    return int(value)


def check_generate_tokens(cell, layers, W_out, b_out, states, tokens, draws, temperature=1.0, top_k=0, top_p=1.0,
                          repetition_penalty=1.0, seen=None, banned=None, stop=-1, out=None, zoneout=(0.0, 0.0), eps=1e-5):
    if not isinstance(cell, str) or cell not in _GATES:
        raise ValueError(f"cell: expected one of {', '.join(_GATES)}, got {cell!r}")
    gates = _GATES[cell]
    cdef cnp.ndarray last = real_matrix("W_out", W_out, -1, -1, -1)
    cdef int t = cnp.PyArray_TYPE(last)
    H, V = last.shape[0], last.shape[1]
    if H < 1 or V < 1:
        raise ValueError(f"W_out: expected shape (H, V) of at least 1 each, got {W_out.shape}")
    if b_out is not None:
        b_out = real_vector("b_out", b_out, V, t)
    if not isinstance(layers, (tuple, list)) or not layers:
        raise TypeError(f"layers: expected a sequence of (W, U, b, bU), got {type(layers).__name__}")
    checked = []
    for i, layer in enumerate(layers):
        if not isinstance(layer, (tuple, list)) or len(layer) not in (4, 5):
            raise TypeError(f"layers[{i}]: expected (W, U, b, bU) or (W, U, b, bU, norm), got {type(layer).__name__}")
        W, U, b, bU, *norm = layer
        if norm and (cell != "lstm" or not isinstance(norm[0], (tuple, list)) or len(norm[0]) != 4):
            raise TypeError(f"layers[{i}] norm: expected (gain_W, gain, gain_c, shift_c) of an lstm, got {norm[0]!r} of a {cell}")
        checked.append((
            real_matrix(f"layers[{i}] W", W, H if i else V, gates * H, t),
            real_matrix(f"layers[{i}] U", U, H, gates * H, t),
            None if b is None else real_vector(f"layers[{i}] b", b, gates * H, t),
            None if bU is None else real_vector(f"layers[{i}] bU", bU, gates * H, t),
            *[tuple([real_vector(f"layers[{i}] norm[{k}]", v, 4 * H if k < 2 else H, t) for k, v in enumerate(part)])
              for part in norm],
        ))
    draws = array("draws", draws, (None, None), _FLOAT64)
    N, T = draws.shape
    if not ((draws >= 0) & (draws < 1)).all():
        raise ValueError("draws: expected numbers in [0, 1)")
    count = 2 if cell == "lstm" else 1
    if not isinstance(states, (tuple, list)) or len(states) != count:
        raise TypeError(f"states: expected a tuple of {count}, got {type(states).__name__}")
    states = tuple([array(f"states[{i}]", state, (len(layers), N, H), last.dtype, True) for i, state in enumerate(states)])
    tokens = array("tokens", tokens, (N,), _INT64)
    if N and (tokens.min() < 0 or tokens.max() >= V):
        raise ValueError(f"tokens: expected numbers from 0 to {V - 1}, got {tokens.min()} to {tokens.max()}")
    temperature = _number("temperature", temperature, 0, math.inf, False, "a finite number of at least 0")
    top_k = _whole("top_k", top_k, 0, 2**62, "an integer of at least 0")
    top_p = _number("top_p", top_p, 0, 1, True, "a number in (0, 1]")
    repetition_penalty = _number("repetition_penalty", repetition_penalty, 0, math.inf, True, "a finite number above 0")
    if seen is not None:
        seen = array("seen", seen, (N, V), _BOOL, True)
    elif repetition_penalty != 1:
        raise ValueError("seen: expected an array where there is a repetition_penalty, got None")
    if banned is not None:
        banned = array("banned", banned, (V,), _BOOL)
        if banned.all():
            raise ValueError("banned: expected at least one token that may be chosen, got all banned")
    stop = _whole("stop", stop, -1, V - 1, f"an integer from -1 to {V - 1}")
    out = np.empty((N, T), np.int64) if out is None else array("out", out, (N, T), _INT64, True)
    if not isinstance(zoneout, (tuple, list)) or len(zoneout) != 2:
        raise TypeError(f"zoneout: expected a pair of numbers, got {zoneout!r}")
    zoneout = tuple([check_probability(f"zoneout[{i}]", rate) for i, rate in enumerate(zoneout)])
    if zoneout[1] and cell != "lstm":
        raise ValueError(f"zoneout[1]: expected 0 (only an LSTM has a cell), got {zoneout[1]}")
    eps = _number("eps", eps, 0, math.inf, False, "a finite number of at least 0")
    second = states[1] if count > 1 else None
    all_apart(("out", "states[0]", "states[1]", "seen", "W_out", "b_out", "tokens", "draws", "banned"),
              (out, states[0], second, seen, last, b_out, tokens, draws, banned), 4)
    for layer in checked:
        vectors = (*layer[:4], *(layer[4] if len(layer) > 4 else ()))
        all_apart(("out", "states[0]", "states[1]", "seen", *len(vectors) * ("layers",)), (out, states[0], second, seen, *vectors),
                  4)
    return (cell, tuple(checked), last, b_out, states, tokens, draws, temperature, min(top_k, V), top_p, repetition_penalty,
            seen, banned, stop, out, zoneout, eps)
