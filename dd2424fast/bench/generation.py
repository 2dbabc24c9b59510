"""Texts drawn from a language model token by token, in each library."""

import itertools
import zlib
from dataclasses import dataclass

import numpy as np

from .recurrent import GATES, Language
from .script import sigmoid
from .workloads import Task, register

# Of the output weights, against fresh ones: the most probable token then leads the next by so much that rounding does
# not change it, and texts are no uniform noise.
CONTRAST = 30


@dataclass(frozen=True)
class Text(Task):
    """A text by an LSTM from the zero state and one token, each next token drawn from the softmax at temperature 1.

    Draws differ between libraries. What is compared are texts at a temperature so low that only the most probable token
    is ever drawn, by the same code.

    Attributes
    ----------
    length : int
        Tokens that are drawn.
    language : Language
        The model.
    """

    length: int
    language: Language

    batch = 1
    compared = {"temperature": 1e-5}  # noqa: RUF012

    @property
    def tokens(self):
        return self.length

    def state_dict(self):
        state = self.language.state_dict()
        state["output.weight"] *= CONTRAST
        return state

    def beginnings(self):
        """Endless first tokens."""
        return itertools.cycle(range(self.language.vocab))

    def gflop(self):
        """Two products a token; embedding times input weights once a text."""
        task = self.language
        width = GATES[task.cell] * task.hidden
        loop = self.length * task.hidden * (width + task.vocab)
        return 2 * (loop + task.vocab * task.embedding * width) / 1e9

    def gbytes(self):
        """The weights are read once; from then on they lie in the cache."""
        return 4 * self.language.parameters() / 1e9

    def ours(self):
        model = self.language.model()
        model.load_state_dict(self.state_dict())
        beginnings, seeds = self.beginnings(), itertools.count()

        def step(temperature=1.0):
            return number_of(model.generate_ids([[next(beginnings)]], self.length, temperature, seed=next(seeds)))

        return step


def number_of(ids):
    """A number that stands for a text: another text has another one."""
    return float(zlib.crc32(np.asarray(ids, np.int64).tobytes()))


# ---- NumPy -----------------------------------------------------------------------------------------------------------


def _weights(text, dtype):
    """W, U, b, bU of the cell and of the output, all (in, out), and the embedding, in this dtype."""
    state = {name: np.array(a, dtype) for name, a in text.state_dict().items()}
    cell = (state["rnn.weight_ih_l0"].T, state["rnn.weight_hh_l0"].T, state["rnn.bias_ih_l0"], state["rnn.bias_hh_l0"])
    return *cell, state["output.weight"].T, state["output.bias"], state["embedding.weight"]


def _lstm(z, c, H):
    s = sigmoid(z)
    c = s[H : 2 * H] * c + s[:H] * np.tanh(z[2 * H : 3 * H])
    return s[3 * H :] * np.tanh(c), c


def course(text, threads):
    """Float64, the equations as they stand, `choice` for the draw."""
    W, U, b, bU, V, d, E = _weights(text, np.float64)
    H, rng, beginnings = text.language.hidden, np.random.default_rng(0), text.beginnings()

    def step(temperature=1.0):
        h, c, token, ids = np.zeros(H), np.zeros(H), next(beginnings), []
        for _ in range(text.length):
            h, c = _lstm(E[token] @ W + b + h @ U + bU, c, H)
            s = (h @ V + d) / temperature
            e = np.exp(s - s.max())
            token = rng.choice(len(d), p=e / e.sum())
            ids.append(token)
        return number_of(ids)

    return step


def numpy32(text, threads):
    """Float32, the embedding folded into the input weights, all draws made at once (the largest of logits plus Gumbel
    noise is a draw from their softmax)."""
    W, U, b, bU, V, d, E = _weights(text, np.float32)
    U, V, table = np.ascontiguousarray(U), np.ascontiguousarray(V), E @ W + (b + bU)
    H, rng, beginnings = text.language.hidden, np.random.default_rng(0), text.beginnings()

    def step(temperature=1.0):
        h, c, token, ids = np.zeros(H, np.float32), np.zeros(H, np.float32), next(beginnings), []
        noise = rng.gumbel(size=(text.length, len(d))).astype(np.float32) * np.float32(temperature)
        for g in noise:
            h, c = _lstm(table[token] + h @ U, c, H)
            token = int((h @ V + d + g).argmax())
            ids.append(token)
        return number_of(ids)

    return step


# ---- PyTorch ---------------------------------------------------------------------------------------------------------


def _torch_modules(text, threads):
    import torch
    from torch import nn

    torch.set_num_threads(threads)
    task = text.language
    modules = nn.ModuleDict(
        {
            "embedding": nn.Embedding(task.vocab, task.embedding),
            "rnn": nn.LSTM(task.embedding, task.hidden, batch_first=True),
            "output": nn.Linear(task.hidden, task.vocab),
        }
    )
    modules.load_state_dict({name: torch.tensor(a) for name, a in text.state_dict().items()})
    return modules


def torch(text, threads):
    """nn.LSTM on one token after the other, and torch.multinomial."""
    import torch

    embedding, rnn, output = _torch_modules(text, threads).values()
    beginnings = text.beginnings()

    @torch.inference_mode()
    def step(temperature=1.0):
        token, state, ids = torch.tensor([[next(beginnings)]]), None, []
        for _ in range(text.length):
            y, state = rnn(embedding(token), state)
            token = torch.multinomial(torch.softmax(output(y[:, 0]) / temperature, 1), 1)
            ids.append(token)
        return number_of(torch.cat(ids))

    return step


def torch_lean(text, threads):
    """The fastest loop that we found: the cell's fused operation instead of a module, all draws made at once as Gumbel
    noise. (nn.LSTMCell with multinomial took 1.5 times as long, products and gates one by one 1.2 times.)"""
    import torch

    embedding, rnn, output = _torch_modules(text, threads).values()
    H, beginnings = text.language.hidden, text.beginnings()
    E, V, d = embedding.weight, output.weight, output.bias
    weights = rnn.weight_ih_l0, rnn.weight_hh_l0, rnn.bias_ih_l0, rnn.bias_hh_l0
    linear = torch.nn.functional.linear

    @torch.inference_mode()
    def step(temperature=1.0):
        token, state, ids = torch.tensor([next(beginnings)]), (torch.zeros(1, H), torch.zeros(1, H)), []
        noise = torch.empty(text.length, len(d)).exponential_().log_() * -temperature
        for g in noise.unbind():
            state = torch.lstm_cell(E.index_select(0, token), state, *weights)
            token = (linear(state[0], V, d) + g).argmax(1)
            ids.append(token)
        return number_of(torch.cat(ids))

    return step


# ---- JAX -------------------------------------------------------------------------------------------------------------


def jax(text, threads):
    """One compiled function for the whole text, the token loop a scan; all draws made at once as Gumbel noise."""
    import jax
    import jax.numpy as jnp

    weights = [jnp.array(a) for a in _weights(text, np.float32)]
    H, beginnings, keys = text.language.hidden, text.beginnings(), itertools.count()

    @jax.jit
    def write(weights, first, key, temperature):
        W, U, b, bU, V, d, E = weights
        table = E @ W + (b + bU)

        def next_token(carried, noise):
            h, c, token = carried
            z = table[token] + h @ U
            c = jax.nn.sigmoid(z[H : 2 * H]) * c + jax.nn.sigmoid(z[:H]) * jnp.tanh(z[2 * H : 3 * H])
            h = jax.nn.sigmoid(z[3 * H :]) * jnp.tanh(c)
            token = jnp.argmax(h @ V + d + noise)
            return (h, c, token), token

        noise = jax.random.gumbel(jax.random.key(key), (text.length, len(d))) * temperature
        return jax.lax.scan(next_token, (jnp.zeros(H), jnp.zeros(H), first), noise)[1]

    def step(temperature=1.0):
        return number_of(write(weights, jnp.array(next(beginnings)), next(keys), np.float32(temperature)))

    return step


PEERS = {"numpy32": numpy32, "torch": torch, "torch_lean": torch_lean, "jax": jax, "course": course}

register(
    "generation", "500 tokens by an LSTM 256, embedding 128, vocabulary 80, batch 1, temperature 1",
    Text(500, Language("lstm", 256, 1, 1)), PEERS, "generation",
)  # fmt: skip
