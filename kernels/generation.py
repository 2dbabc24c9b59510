"""Generating tokens with a recurrent language model: state update, output product and choice of a token in one loop.

Axes: N sequences side by side, L layers, H hidden units, V tokens, T tokens to generate. How a token is chosen is
described in docs/kernels/generation.md.
"""

import numpy as np

from . import _generation_float32, _generation_float64
from ._dispatch import Kernel
from ._generation_checks import check_generate_tokens
from .normalization import layer_norm_forward
from .recurrent import CellNoise, gru_forward, lstm_forward, lstm_norm_forward, rnn_forward

__all__ = ["generate_tokens"]


_NOT_FINITE = "generate_tokens: the logits are not finite: nor are the model's weights or states"


def _most_probable_first(p):
    """Indices by falling probability; among equals the lower index first."""
    return np.argsort(-p, kind="stable")


def _choose(logits, draw, temperature, top_k, top_p):
    """One token: the definition of sampling."""
    if np.isnan(logits).any() or not np.isfinite(logits.max()):
        raise FloatingPointError(_NOT_FINITE)
    if temperature == 0:
        return int(np.argmax(logits))
    with np.errstate(over="ignore"):  # tiny temperatures
        p = np.exp((logits - logits.max()).astype(np.float64) / temperature)
    order = np.arange(len(p))
    if top_k or top_p < 1:
        order = _most_probable_first(p)[: top_k or None]
        if top_p < 1:
            reached = np.cumsum(p[order])
            order = order[: 1 + np.searchsorted(reached, top_p * p.sum() if not top_k else top_p * reached[-1])]
    order = order[p[order] > 0]
    reached = np.cumsum(p[order])
    return int(order[min(np.searchsorted(reached, draw * reached[-1], side="right"), len(order) - 1)])


def generate_tokens(
    cell,
    layers,
    W_out,
    b_out,
    states,
    tokens,
    draws,
    temperature=1.0,
    top_k=0,
    top_p=1.0,
    repetition_penalty=1.0,
    seen=None,
    banned=None,
    stop=-1,
    out=None,
    zoneout=(0.0, 0.0),
    eps=1e-5,
):
    """Generate tokens, each from the model's state after the one before.

    Parameters
    ----------
    cell : {"rnn", "lstm", "gru"}
    layers : sequence of (W, U, b, bU)
        As in `rnn_forward`, ...; the first W is a table of shape (V, gates * H): one-hot weights, or embedding times
        weights. b and bU may be None. In an LSTM with layer normalisation, (W, U, b, bU, norm) with norm = (gain_W,
        gain, gain_c, shift_c): gain_W of the norm of what comes from the layer below, the others as in
        `lstm_norm_forward`. The rows of the first W are normalised already; its gain_W has served there.
    W_out : ndarray of shape (H, V), float32 or float64
    b_out : ndarray of shape (V,), or None
    states : tuple of ndarray of shape (L, N, H)
        h, and c of an LSTM; updated in place.
    tokens : ndarray of shape (N,), int64
        The token that each sequence reads first.
    draws : ndarray of shape (N, T), float64
        Numbers in [0, 1), one for each choice.
    temperature : float
        Divides the logits; 0 takes the most probable token.
    top_k : int
        Choose among so many most probable tokens; 0: among all.
    top_p : float in (0, 1]
        Choose among the fewest most probable tokens that together reach this probability (Holtzman et al. 2020,
        arXiv:1904.09751): the token that crosses it is among them.
    repetition_penalty : float
        Divides positive logits and multiplies negative ones of tokens seen before (Keskar et al. 2019,
        arXiv:1909.05858); 1 changes nothing.
    seen : ndarray of shape (N, V), bool, optional
        Which tokens a sequence has seen; updated in place. Needed for a penalty.
    banned : ndarray of shape (V,), bool, optional
        Tokens that are never chosen.
    stop : int
        A sequence ends with this token and is filled up with it; -1: none ends.
    out : ndarray of shape (N, T), int64, optional
    zoneout : pair of floats in [0, 1)
        The share of their old values that h and c keep at each step, as a `CellNoise` without flags.
    eps : float
        Of layer normalisation.

    Returns
    -------
    ndarray of shape (N, T), int64

    Raises
    ------
    TypeError, ValueError
        An argument has the wrong type, dtype, shape or range; the message names it, what came and what was expected.
    FloatingPointError
        A logit is not a number, or the largest is infinite.

    Notes
    -----
    2 L G H^2 + 2 H V floating-point operations a token (G gates), and 2 G H^2 more for every layer above the first.
    """
    N, T = draws.shape
    forward = {"rnn": rnn_forward, "lstm": lstm_forward, "gru": gru_forward}[cell].numpy
    one, noise, H = np.ones(1, np.int64), CellNoise(*zoneout), len(W_out)
    for n in range(N):
        token, ended = int(tokens[n]), False
        for t in range(T):
            if ended:
                out[n, t] = stop
                continue
            for i, (W, U, b, bU, *norm) in enumerate(layers):
                begin = [state[i, n : n + 1].copy() for state in states]
                a = W[token : token + 1] if i == 0 else h @ W  # noqa: F821, from the layer below
                if norm:
                    gain_W, *others = norm[0]
                    if i:
                        a = layer_norm_forward.numpy(a, gain_W, np.zeros(4 * H, a.dtype), eps)[0]
                    results = lstm_norm_forward.numpy(a, b, U, bU, *others, *begin, one, noise=noise, eps=eps)
                else:
                    results = forward(a, b, U, bU, *begin, one, noise=noise)
                h = results[0]
                for state, last in zip(states, results[-len(states) :], strict=True):
                    state[i, n] = last[0]
            logits = h[0] @ W_out if b_out is None else h[0] @ W_out + b_out
            if repetition_penalty != 1:
                penalty = logits.dtype.type(repetition_penalty)
                logits = np.where(seen[n], np.where(logits > 0, logits / penalty, logits * penalty), logits)
            if banned is not None:
                logits[banned] = -np.inf
            token = _choose(logits, draws[n, t], temperature, top_k, top_p)
            if seen is not None:
                seen[n, token] = True
            out[n, t] = token
            ended = token == stop
    return out


generate_tokens = Kernel(
    generate_tokens,
    lambda cell, layers, W_out, *rest: (
        _generation_float32 if W_out.dtype == np.float32 else _generation_float64
    ).generate_tokens(cell, layers, W_out, *rest),
    check_generate_tokens,
    flops=lambda cell, layers, W_out, b_out, states, tokens, draws, *_: (
        2
        * draws.size
        * (W_out.size + sum(layer[1].size for layer in layers) + sum(layer[0].size for layer in layers[1:]))
    ),
)
