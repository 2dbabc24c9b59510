"""Recurrent language models, in each library."""

import functools
import itertools
from dataclasses import dataclass

import numpy as np

from .workloads import Workload, register

BATCHES = 4
LEARNING_RATE = 1e-3
BETA1, BETA2, EPS = 0.9, 0.999, 1e-8
GATES = {"rnn": 1, "gru": 3, "lstm": 4}


@dataclass(frozen=True)
class Task:
    """One update by Adam of a language model that carries its state on.

    Attributes
    ----------
    cell : str
    hidden, layers, vocab : int
    embedding : int or None
        None: one-hot input.
    batch, time : int
    clip : float or None
        Of every gradient element.
    """

    cell: str
    hidden: int
    batch: int
    time: int
    embedding: int | None = 128
    layers: int = 1
    vocab: int = 80
    clip: float | None = None

    def state_dict(self):
        """Initial weights under the names and in the shapes of a PyTorch module with `embedding`, `rnn`, `output`."""
        rng, state = np.random.default_rng(0), {}
        width = GATES[self.cell] * self.hidden

        def uniform(*shape):
            return rng.uniform(-(self.hidden**-0.5), self.hidden**-0.5, shape).astype(np.float32)

        if self.embedding:
            state["embedding.weight"] = rng.standard_normal((self.vocab, self.embedding)).astype(np.float32)
        for i in range(self.layers):
            inputs = self.hidden if i else self.embedding or self.vocab
            state[f"rnn.weight_ih_l{i}"], state[f"rnn.weight_hh_l{i}"] = (
                uniform(width, inputs),
                uniform(width, self.hidden),
            )
            state[f"rnn.bias_ih_l{i}"], state[f"rnn.bias_hh_l{i}"] = uniform(width), uniform(width)
        state["output.weight"], state["output.bias"] = uniform(self.vocab, self.hidden), uniform(self.vocab)
        return state

    def batches(self):
        """Endless (x, y) of token ids (batch, time)."""
        rng = np.random.default_rng(1)
        ids = rng.integers(0, self.vocab, (BATCHES, self.batch, self.time + 1))
        return itertools.cycle([(np.ascontiguousarray(a[:, :-1]), np.ascontiguousarray(a[:, 1:])) for a in ids])

    def gflop(self):
        """Executed with the embedding folded: time loop and dU, input products of upper layers, output layer."""
        rows, width = self.batch * self.time, GATES[self.cell] * self.hidden
        loops = 3 * 2 * rows * self.hidden * width * self.layers
        inputs = 3 * 2 * rows * self.hidden * width * (self.layers - 1)
        folded = 3 * 2 * self.vocab * self.embedding * width if self.embedding else 0
        return (loops + inputs + folded + 3 * 2 * rows * self.hidden * self.vocab) / 1e9

    def gbytes(self):
        """Gates, states and logits are written and read, parameters, gradients and Adam's moments updated."""
        rows, width = self.batch * self.time, GATES[self.cell] * self.hidden
        parameters = sum(a.size for a in self.state_dict().values())
        return 4 * (2 * rows * (self.layers * (width + 3 * self.hidden) + 2 * self.vocab) + 9 * parameters) / 1e9


# ---- dd2424fast ------------------------------------------------------------------------------------------------------


def fast(task, threads):
    import dd2424fast as dd

    dd.set_num_threads(threads)
    model = dd.models.LanguageModel(task.vocab, task.cell, task.hidden, task.embedding, task.layers, seed=0)
    model.load_state_dict(task.state_dict())
    trainer = dd.Trainer(model, dd.optim.Adam(LEARNING_RATE), clip_value=task.clip)
    batches = task.batches()

    def step():
        x, y = next(batches)
        return trainer.step(x, y)

    return step


def twin(task, threads):
    import dd2424fast as dd

    dd.set_backend("numpy")
    return fast(task, threads)


# ---- NumPy, as a careful student writes it ---------------------------------------------------------------------------


def _sigmoid(z):
    return 1 / (1 + np.exp(-z))


class _Script:
    """Back-propagation through time with one product a step for all gates, weights (in, out), time first."""

    def __init__(self, task, dtype):
        self.task, self.dtype = task, dtype
        self.p = {name: np.array(a.T if a.ndim == 2 else a, dtype) for name, a in task.state_dict().items()}
        if task.embedding:
            self.p["embedding.weight"] = self.p["embedding.weight"].T.copy()
        self.p = {name: np.ascontiguousarray(a) for name, a in self.p.items()}
        self.m = {name: np.zeros_like(a) for name, a in self.p.items()}
        self.v = {name: np.zeros_like(a) for name, a in self.p.items()}
        shape = (task.layers, task.batch, task.hidden)
        self.h, self.c = np.zeros(shape, dtype), np.zeros(shape, dtype)
        self.updates = 0

    def layer_forward(self, i, a):
        """a: (T, B, gates) input part. Returns the states (T, B, H) and what the backward pass needs."""
        task, H = self.task, self.task.hidden
        U, bU = self.p[f"rnn.weight_hh_l{i}"], self.p[f"rnn.bias_hh_l{i}"]
        h, c = self.h[i].copy(), self.c[i].copy()
        hs, kept = [h], []
        for x in a:
            if task.cell == "rnn":
                h = np.tanh(x + h @ U + bU)
                kept.append(None)
            elif task.cell == "lstm":
                z = x + h @ U + bU
                s = _sigmoid(z)
                gate_i, f, g, o = s[:, :H], s[:, H : 2 * H], np.tanh(z[:, 2 * H : 3 * H]), s[:, 3 * H :]
                before, c = c, f * c + gate_i * g
                squashed = np.tanh(c)
                h = o * squashed
                kept.append((gate_i, f, g, o, before, squashed))
            else:
                y = h @ U + bU
                s = _sigmoid(x[:, : 2 * H] + y[:, : 2 * H])
                r, z = s[:, :H], s[:, H:]
                q = y[:, 2 * H :]
                n = np.tanh(x[:, 2 * H :] + r * q)
                h = n + z * (h - n)
                kept.append((r, z, n, q))
            hs.append(h)
        self.h[i], self.c[i] = h, c
        return np.stack(hs), kept

    def layer_backward(self, i, dh_out, hs, kept):
        """Gradients of the input part and of the recurrent part of the pre-activations, (T, B, gates) each."""
        task, U = self.task, self.p[f"rnn.weight_hh_l{i}"]
        dh, dc = np.zeros_like(hs[0]), np.zeros_like(hs[0])
        das, dus = [], []
        for t in range(len(kept) - 1, -1, -1):
            d = dh_out[t] + dh
            if task.cell == "rnn":
                da = du = d * (1 - hs[t + 1] ** 2)
                dh = du @ U.T
            elif task.cell == "lstm":
                gate_i, f, g, o, before, squashed = kept[t]
                dc = dc + d * o * (1 - squashed**2)
                parts = dc * g * gate_i * (1 - gate_i), dc * before * f * (1 - f), dc * gate_i * (1 - g**2)
                da = du = np.concatenate([*parts, d * squashed * o * (1 - o)], axis=1)
                dc = dc * f
                dh = du @ U.T
            else:
                r, z, n, q = kept[t]
                dn = d * (1 - z) * (1 - n**2)
                dr, dz = dn * q * r * (1 - r), d * (hs[t] - n) * z * (1 - z)
                da, du = np.concatenate([dr, dz, dn], axis=1), np.concatenate([dr, dz, dn * r], axis=1)
                dh = d * z + du @ U.T
            das.append(da)
            dus.append(du)
        return np.stack(das[::-1]), np.stack(dus[::-1])

    def update(self, x, y):
        task, p, g = self.task, self.p, {}
        ids, labels = x.T, y.T.ravel()
        inputs, states, kept = [], [], []
        for i in range(task.layers):
            W, b = p[f"rnn.weight_ih_l{i}"], p[f"rnn.bias_ih_l{i}"]
            if i == 0 and not task.embedding:
                inputs.append(None)
                a = W[ids] + b
            else:
                inputs.append(states[-1][1:] if i else p["embedding.weight"][ids])
                a = inputs[-1] @ W + b
            hs, k = self.layer_forward(i, a)
            states.append(hs)
            kept.append(k)
        top = states[-1][1:].reshape(-1, task.hidden)
        logits = top @ p["output.weight"] + p["output.bias"]
        logits -= logits.max(axis=1, keepdims=True)
        e = np.exp(logits)
        total, rows = e.sum(axis=1, keepdims=True), np.arange(len(e))
        loss = float((np.log(total[:, 0]) - logits[rows, labels]).mean())
        d = e / total
        d[rows, labels] -= 1
        d /= len(d)
        g["output.weight"], g["output.bias"] = top.T @ d, d.sum(axis=0)
        dh = (d @ p["output.weight"].T).reshape(task.time, task.batch, task.hidden)
        for i in range(task.layers - 1, -1, -1):
            da, du = self.layer_backward(i, dh, states[i], kept[i])
            width = da.shape[2]
            g[f"rnn.weight_hh_l{i}"] = states[i][:-1].reshape(-1, task.hidden).T @ du.reshape(-1, width)
            g[f"rnn.bias_hh_l{i}"], g[f"rnn.bias_ih_l{i}"] = du.sum(axis=(0, 1)), da.sum(axis=(0, 1))
            if inputs[i] is None:
                dW = g["rnn.weight_ih_l0"] = np.zeros_like(p["rnn.weight_ih_l0"])
                np.add.at(dW, ids.ravel(), da.reshape(-1, width))
                break
            below = inputs[i].reshape(-1, inputs[i].shape[2])
            g[f"rnn.weight_ih_l{i}"] = below.T @ da.reshape(-1, width)
            dh = da @ p[f"rnn.weight_ih_l{i}"].T
        if task.embedding:
            dE = g["embedding.weight"] = np.zeros_like(p["embedding.weight"])
            np.add.at(dE, ids.ravel(), dh.reshape(-1, task.embedding))
        self.adam(g)
        return loss

    def adam(self, gradients):
        self.updates += 1
        kind = self.dtype
        rate = kind(LEARNING_RATE * np.sqrt(1 - BETA2**self.updates) / (1 - BETA1**self.updates))
        eps = kind(EPS * np.sqrt(1 - BETA2**self.updates))
        for name, g in gradients.items():
            if self.task.clip:
                np.clip(g, -self.task.clip, self.task.clip, out=g)
            m, v = self.m[name], self.v[name]
            m += kind(1 - BETA1) * (g - m)
            v += kind(1 - BETA2) * (g * g - v)
            self.p[name] -= rate * m / (np.sqrt(v) + eps)


def _script(dtype):
    def build(task, threads):
        script, batches = _Script(task, dtype), task.batches()
        return lambda: script.update(*next(batches))

    return build


# ---- PyTorch ---------------------------------------------------------------------------------------------------------


def torch(task, threads):
    import torch
    from torch import nn

    torch.set_num_threads(threads)

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            if task.embedding:
                self.embedding = nn.Embedding(task.vocab, task.embedding)
            kind = getattr(nn, task.cell.upper())
            self.rnn = kind(task.embedding or task.vocab, task.hidden, task.layers)
            self.output = nn.Linear(task.hidden, task.vocab)

        def forward(self, ids, state):
            x = self.embedding(ids) if task.embedding else nn.functional.one_hot(ids, task.vocab).float()
            y, state = self.rnn(x, state)
            return self.output(y), state

    model = Model()
    model.load_state_dict({name: torch.tensor(a) for name, a in task.state_dict().items()})
    optimizer = torch.optim.Adam(model.parameters(), LEARNING_RATE, fused=True)
    pairs = itertools.islice(task.batches(), BATCHES)
    batches = itertools.cycle([(torch.tensor(x.T.copy()), torch.tensor(y.T.ravel().copy())) for x, y in pairs])
    state = None

    def step():
        nonlocal state
        x, y = next(batches)
        optimizer.zero_grad(set_to_none=True)
        logits, after = model(x, state)
        state = tuple(s.detach() for s in after) if task.cell == "lstm" else after.detach()
        loss = nn.functional.cross_entropy(logits.flatten(0, 1), y)
        loss.backward()
        if task.clip:
            nn.utils.clip_grad_value_(model.parameters(), task.clip)
        optimizer.step()
        return loss.item()

    return step


# ---- JAX -------------------------------------------------------------------------------------------------------------


def jax(task, threads):
    """One compiled function for the whole update, the time loop a scan; parameters are donated."""
    import jax
    import jax.numpy as jnp

    H, L = task.hidden, task.layers

    def cell(p, i):
        U, bU = p[f"rnn.weight_hh_l{i}"], p[f"rnn.bias_hh_l{i}"]

        def rnn(state, x):
            h = jnp.tanh(x + state[0] @ U + bU)
            return (h,), h

        def lstm(state, x):
            h, c = state
            z = x + h @ U + bU
            c = jax.nn.sigmoid(z[:, H : 2 * H]) * c + jax.nn.sigmoid(z[:, :H]) * jnp.tanh(z[:, 2 * H : 3 * H])
            h = jax.nn.sigmoid(z[:, 3 * H :]) * jnp.tanh(c)
            return (h, c), h

        def gru(state, x):
            (h,) = state
            y = h @ U + bU
            s = jax.nn.sigmoid(x[:, : 2 * H] + y[:, : 2 * H])
            n = jnp.tanh(x[:, 2 * H :] + s[:, :H] * y[:, 2 * H :])
            h = n + s[:, H:] * (h - n)
            return (h,), h

        return {"rnn": rnn, "lstm": lstm, "gru": gru}[task.cell]

    def loss_of(p, states, x, y):
        last = []
        for i in range(L):
            W, b = p[f"rnn.weight_ih_l{i}"], p[f"rnn.bias_ih_l{i}"]
            if i:
                a = h @ W + b  # noqa: F821, from the layer below
            elif task.embedding:
                a = (p["embedding.weight"] @ W + b)[x]  # folded, as ours
            else:
                a = W[x] + b
            state, h = jax.lax.scan(cell(p, i), states[i], a)
            last.append(state)
        logits = h.reshape(-1, H) @ p["output.weight"] + p["output.bias"]
        picked = jnp.take_along_axis(logits, y[:, None], axis=1)[:, 0]
        return (jax.nn.logsumexp(logits, axis=1) - picked).mean(), last

    @functools.partial(jax.jit, donate_argnums=(0, 1, 2, 3))
    def update(p, m, v, states, n, x, y):
        (loss, states), g = jax.value_and_grad(loss_of, has_aux=True)(p, states, x, y)
        if task.clip:
            g = jax.tree.map(lambda d: jnp.clip(d, -task.clip, task.clip), g)
        m = jax.tree.map(lambda a, d: a + (1 - BETA1) * (d - a), m, g)
        v = jax.tree.map(lambda a, d: a + (1 - BETA2) * (d * d - a), v, g)
        root = jnp.sqrt(1 - BETA2**n)
        rate = LEARNING_RATE * root / (1 - BETA1**n)
        p = jax.tree.map(lambda w, a, b: w - rate * a / (jnp.sqrt(b) + EPS * root), p, m, v)
        return p, m, v, states, loss

    weights = {
        name: jnp.array(a.T if a.ndim == 2 and not name.startswith("embedding") else a)
        for name, a in task.state_dict().items()
    }
    zeros = functools.partial(jax.tree.map, jnp.zeros_like)
    count = 2 if task.cell == "lstm" else 1
    states = [tuple(jnp.zeros((task.batch, H)) for _ in range(count)) for _ in range(L)]
    carried = (weights, zeros(weights), zeros(weights), states)
    pairs = itertools.islice(task.batches(), BATCHES)
    batches = itertools.cycle([(jnp.array(x.T), jnp.array(y.T.ravel(), dtype=jnp.int32)) for x, y in pairs])
    updates = 0

    def step():
        nonlocal carried, updates
        x, y = next(batches)
        updates += 1
        *carried, loss = jax.block_until_ready(update(*carried, np.float32(updates), x, y))
        return float(loss)

    return step


# ---- the workloads ---------------------------------------------------------------------------------------------------

_BUILDERS = {
    "fast": fast,
    "numpy": twin,
    "numpy32": _script(np.float32),
    "torch": torch,
    "jax": jax,
    "course": _script(np.float64),
}


def _register(name, model, task):
    def starting(build):
        return lambda threads: build(task, threads)

    builders = {library: starting(build) for library, build in _BUILDERS.items()}
    register(Workload(name, model, task.batch, task.gflop(), task.gbytes(), builders))


_register("rnn_b1", "one-hot 80, RNN 100, T=25, Adam, clip 5", Task("rnn", 100, 1, 25, embedding=None, clip=5.0))
_register("rnn_b256", "embedding 128, RNN 256, T=100, Adam", Task("rnn", 256, 256, 100))
_register("lstm_b1", "one-hot 80, LSTM 100, T=25, Adam, clip 5", Task("lstm", 100, 1, 25, embedding=None, clip=5.0))
_register("lstm_b64", "embedding 128, LSTM 256, T=50, Adam", Task("lstm", 256, 64, 50))
_register("lstm2_b256", "embedding 128, 2 x LSTM 256, T=100, Adam", Task("lstm", 256, 256, 100, layers=2))
_register("lstm512_b32", "embedding 128, LSTM 512, T=64, Adam", Task("lstm", 512, 32, 64))
_register("gru_b64", "embedding 128, GRU 256, T=50, Adam", Task("gru", 256, 64, 50))
