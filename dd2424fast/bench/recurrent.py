"""Recurrent language models, in each library."""

import dataclasses
import functools
import itertools
from dataclasses import dataclass

import numpy as np

from .script import BETA1, BETA2, EPS, LEARNING_RATE, in_dtype
from .workloads import Task, register

# Tokens before a batch comes again: of 100, the small networks know every one by heart after 30,000 updates, their
# gradients fall below 1e-38, and an update takes four times as long with numbers that small.
TOKENS = 65_536
GATES = {"rnn": 1, "gru": 3, "lstm": 4}


@dataclass(frozen=True)
class Language(Task):
    """One update by Adam of a language model.

    Attributes
    ----------
    cell : str
    hidden, layers, vocab : int
    embedding : int or None
        None: one-hot input.
    batch, time : int
    clip : float or None
        Of every gradient element.
    carries : bool
        Whether an update begins with the state that the last one ended with; else with zeros.
    shortest : int or None
        Sequences have lengths from it to `time`, uniformly; None: all have `time` tokens.
    """

    cell: str
    hidden: int
    batch: int
    time: int
    embedding: int | None = 128
    layers: int = 1
    vocab: int = 80
    clip: float | None = None
    carries: bool = True
    shortest: int | None = None

    @property
    def sizes(self):
        return {"T": self.time, "B": self.batch, "m": self.hidden}

    @property
    def lengths(self):
        """(batch,), in no order."""
        if self.shortest is None:
            return np.full(self.batch, self.time)
        return np.random.default_rng(2).integers(self.shortest, self.time + 1, self.batch)

    @property
    def tokens(self):
        return int(self.lengths.sum())

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

    @property
    def distinct(self):
        """Batches before the first one comes again."""
        return -(-TOKENS // (self.batch * self.time))

    def batches(self):
        """Endless (x, y), or (x, y, lengths) where sequences are shorter than others; ids (batch, time)."""
        rng = np.random.default_rng(1)
        ids = rng.integers(0, self.vocab, (self.distinct, self.batch, self.time + 1))
        pairs = [(np.ascontiguousarray(a[:, :-1]), np.ascontiguousarray(a[:, 1:])) for a in ids]
        if self.shortest is not None:  # every batch has the same number of tokens
            pairs = [(x, y, rng.permutation(self.lengths)) for x, y in pairs]
        return itertools.cycle(pairs)

    def gflop(self):
        """Executed with the embedding folded: time loop and dU, input products of upper layers, output layer."""
        rows, width = self.tokens, GATES[self.cell] * self.hidden
        loops = 3 * 2 * rows * self.hidden * width * self.layers
        inputs = 3 * 2 * rows * self.hidden * width * (self.layers - 1)
        folded = 3 * 2 * self.vocab * self.embedding * width if self.embedding else 0
        return (loops + inputs + folded + 3 * 2 * rows * self.hidden * self.vocab) / 1e9

    def parameters(self):
        """How many numbers are trained."""
        return sum(a.size for a in self.state_dict().values())

    def gbytes(self):
        """Gates, states and logits are written and read, parameters, gradients and Adam's moments updated."""
        rows, width = self.tokens, GATES[self.cell] * self.hidden
        activations = rows * (self.layers * (width + 3 * self.hidden) + 2 * self.vocab)
        return 4 * (2 * activations + 9 * self.parameters()) / 1e9

    def model(self):
        """The model in this library."""
        import dd2424fast as dd

        model = dd.models.LanguageModel(self.vocab, self.cell, self.hidden, self.embedding, self.layers, seed=0)
        model.load_state_dict(self.state_dict())
        return model

    def trainer(self):
        """What makes the update in this library."""
        import dd2424fast as dd

        return dd.Trainer(self.model(), dd.optim.Adam(LEARNING_RATE), clip_value=self.clip)

    def ours(self):
        trainer, batches = self.trainer(), self.batches()

        def step():
            if not self.carries:
                trainer.model.reset_state()
            return trainer.step(*next(batches))

        return step


# ---- PyTorch ---------------------------------------------------------------------------------------------------------


def torch(task, threads, packs=True):
    """Time first. Sequences of unequal length are packed; or they run to the end, and what is behind theirs has no
    loss."""
    import torch
    from torch import nn
    from torch.nn.utils.rnn import pack_padded_sequence

    torch.set_num_threads(threads)

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            if task.embedding:
                self.embedding = nn.Embedding(task.vocab, task.embedding)
            kind = getattr(nn, task.cell.upper())
            self.rnn = kind(task.embedding or task.vocab, task.hidden, task.layers)
            self.output = nn.Linear(task.hidden, task.vocab)

        def vectors(self, ids):
            return self.embedding(ids) if task.embedding else nn.functional.one_hot(ids, task.vocab).float()

        def forward(self, ids, state):
            y, state = self.rnn(self.vectors(ids), state)
            return self.output(y).flatten(0, 1), state

        def forward_packed(self, ids):
            y, _ = self.rnn(ids._replace(data=self.vectors(ids.data)))
            return self.output(y.data)

    model = Model()
    model.load_state_dict({name: torch.tensor(a) for name, a in task.state_dict().items()})
    optimizer = torch.optim.Adam(model.parameters(), LEARNING_RATE, fused=True)
    packs = packs and task.shortest is not None

    def prepared(x, y, lengths=None):
        x, y = torch.tensor(x.T.copy()), torch.tensor(y.T.copy())
        if packs:
            return x, y, torch.tensor(lengths)
        if lengths is not None:
            y[torch.arange(len(y))[:, None] >= torch.tensor(lengths)] = -100  # which the loss ignores
        return x, y.flatten()

    batches = itertools.cycle([prepared(*batch) for batch in itertools.islice(task.batches(), task.distinct)])
    state = None

    def outputs(x, y, lengths=None):
        nonlocal state
        if packs:
            x, y = (pack_padded_sequence(a, lengths, enforce_sorted=False) for a in (x, y))
            return model.forward_packed(x), y.data
        logits, after = model(x, state)
        if task.carries:
            state = tuple(s.detach() for s in after) if task.cell == "lstm" else after.detach()
        return logits, y

    def step():
        optimizer.zero_grad(set_to_none=True)
        loss = nn.functional.cross_entropy(*outputs(*next(batches)))
        loss.backward()
        if task.clip:
            nn.utils.clip_grad_value_(model.parameters(), task.clip)
        optimizer.step()
        return loss.item()

    return step


torch_padded = functools.partial(torch, packs=False)


# ---- JAX -------------------------------------------------------------------------------------------------------------


def jax(task, threads):
    """One compiled function for the whole update, the time loop a scan; parameters are donated. All sequences run on to
    the end; what is behind theirs has label -1, and no loss."""
    import jax
    import jax.numpy as jnp

    H, L = task.hidden, task.layers
    zeros = functools.partial(jax.tree.map, jnp.zeros_like)

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
        if task.shortest is None:
            picked = jnp.take_along_axis(logits, y[:, None], axis=1)[:, 0]
            return (jax.nn.logsumexp(logits, axis=1) - picked).mean(), last
        picked = jnp.take_along_axis(logits, jnp.maximum(y, 0)[:, None], axis=1)[:, 0]
        return jnp.where(y >= 0, jax.nn.logsumexp(logits, axis=1) - picked, 0).sum() / task.tokens, last

    @functools.partial(jax.jit, donate_argnums=(0, 1, 2, 3))
    def update(p, m, v, states, n, x, y):
        (loss, last), g = jax.value_and_grad(loss_of, has_aux=True)(p, states, x, y)
        states = last if task.carries else zeros(states)
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
    count = 2 if task.cell == "lstm" else 1
    states = [tuple(jnp.zeros((task.batch, H)) for _ in range(count)) for _ in range(L)]
    carried = (weights, zeros(weights), zeros(weights), states)

    def prepared(x, y, lengths=None):
        if lengths is not None:
            y = np.where(np.arange(task.time) < lengths[:, None], y, -1)
        return jnp.array(x.T), jnp.array(y.T.ravel(), dtype=jnp.int32)

    batches = itertools.cycle([prepared(*batch) for batch in itertools.islice(task.batches(), task.distinct)])
    updates = 0

    def step():
        nonlocal carried, updates
        x, y = next(batches)
        updates += 1
        *carried, loss = jax.block_until_ready(update(*carried, np.float32(updates), x, y))
        return float(loss)

    return step


# ---- the workloads ---------------------------------------------------------------------------------------------------

PEERS = {"numpy32": in_dtype(np.float32), "torch": torch, "jax": jax, "course": in_dtype(np.float64)}

for _name, _model, _task in (
    ("rnn_b1", "one-hot 80, RNN 100, T=25, Adam, clip 5", Language("rnn", 100, 1, 25, embedding=None, clip=5.0)),
    ("rnn_b256", "embedding 128, RNN 256, T=100, Adam", Language("rnn", 256, 256, 100)),
    ("lstm_b1", "one-hot 80, LSTM 100, T=25, Adam, clip 5", Language("lstm", 100, 1, 25, embedding=None, clip=5.0)),
    ("lstm_b64", "embedding 128, LSTM 256, T=50, Adam", Language("lstm", 256, 64, 50)),
    ("lstm2_b256", "embedding 128, 2 x LSTM 256, T=100, Adam", Language("lstm", 256, 256, 100, layers=2)),
    ("lstm512_b32", "embedding 128, LSTM 512, T=64, Adam", Language("lstm", 512, 32, 64)),
    ("gru_b64", "embedding 128, GRU 256, T=50, Adam", Language("gru", 256, 64, 50)),
):
    register(_name, _model, _task, PEERS)

# A batch of unequal sequences, and a full one with nearly as many tokens.
_ragged = Language("lstm", 256, 64, 100, shortest=5, carries=False)
_full = Language("lstm", 256, 64, round(_ragged.tokens / 64), carries=False)
register(
    "ragged", "embedding 128, LSTM 256, 64 sequences of 5 to 100 tokens, Adam", _ragged,
    {**PEERS, "torch_lean": torch_padded}, "ragged", beside="ragged_full",
)  # fmt: skip
register("ragged_full", f"embedding 128, LSTM 256, batch 64, T={_full.time}, Adam", _full, PEERS, "ragged")

# Time against each size, the others as in lstm_b64. No scripts: what takes part is compared with ours.
_base = Language("lstm", 256, 64, 50)
_scaled = [
    *(dataclasses.replace(_base, time=size) for size in (25, 50, 100, 200)),
    *(dataclasses.replace(_base, batch=size) for size in (16, 32, 64, 128, 256)),
    *(dataclasses.replace(_base, hidden=size) for size in (64, 128, 256, 512)),
]
for _task in dict.fromkeys(_scaled):
    _name = f"lstm_t{_task.time}_b{_task.batch}_m{_task.hidden}"
    register(_name, "embedding 128, LSTM, Adam", _task, {"torch": torch, "jax": jax}, "scaling")
