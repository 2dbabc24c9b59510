"""Models of text."""

from functools import partial

import numpy as np

from .. import kernels
from ..configuration import integer_in, positive_integer
from ..data.tokenizers import Tokenizer
from ..nn import GRU, LSTM, RNN, Embedding, Linear, Module
from ..nn.layers import uniform
from ..nn.module import GENERATION
from ..nn.recurrent import TiedLinear, as_ids, rows_of


class LanguageModel(Module):
    """A recurrent network that reads token ids and gives the logits of the next token after each.

    It is trained by truncated back-propagation through time: the trainer's updates carry the state on from window to
    window, as long as the batch keeps its size; `reset_state` begins anew. `forward` and `predict` begin at zero.

    Parameters
    ----------
    vocab_size : int
    cell : {"rnn", "lstm", "gru"}
    hidden : int
        Units of each recurrent layer.
    embedding : int, optional
        Length of the tokens' vectors; None means one-hot input, which is never materialised.
    layers : int
    dropout : float in [0, 1)
        On what passes from layer to layer, and to the output.
    tied : bool
        Use the tokens' vectors as the output's weights too (Press and Wolf 2017, arXiv:1608.05859), which needs
        `embedding` equal to `hidden`. They are drawn as the output's weights: vectors from the standard normal
        distribution would begin with logits of deviation sqrt(hidden).
    zoneout, zoneout_cell, recurrent_dropout, layer_norm : see nn.LSTM
    dtype : {"float32", "float64"}
    seed : int, optional

    Attributes
    ----------
    tokenizer : data.Tokenizer or None
        What its token ids mean; assign it, and `save` writes it into the file, from which `load` brings it back.
    """

    takes_lengths = True

    def __init__(
        self,
        vocab_size,
        cell="rnn",
        hidden=100,
        embedding=None,
        layers=1,
        dropout=0.0,
        *,
        tied=False,
        zoneout=0.0,
        zoneout_cell=0.0,
        recurrent_dropout=0.0,
        layer_norm=False,
        dtype="float32",
        seed=None,
    ):
        super().__init__(dtype=dtype, seed=seed)
        cells = {"rnn": RNN, "lstm": LSTM, "gru": GRU}
        if not isinstance(cell, str) or cell not in cells:
            raise ValueError(f"cell: expected one of {', '.join(cells)}, got {cell!r}")
        self.vocab_size = positive_integer("vocab_size", vocab_size)
        self.tokenizer = None
        for name, value in (
            ("hidden", hidden),
            ("layers", layers),
            ("embedding", 1 if embedding is None else embedding),
        ):
            positive_integer(name, value)
        if tied and embedding != hidden:
            raise ValueError(
                f"tied: expected an embedding of length {hidden}, the size of the hidden layers, got {embedding}"
            )
        self.tied = bool(tied)
        self.embedding = None if embedding is None else Embedding(vocab_size, embedding, dtype=dtype)
        self.rnn = cells[cell](
            embedding or vocab_size,
            hidden,
            layers,
            dropout,
            zoneout=zoneout,
            zoneout_cell=zoneout_cell,
            recurrent_dropout=recurrent_dropout,
            layer_norm=layer_norm,
            dtype=dtype,
        )
        if tied:
            self.embedding._weight.init = partial(uniform, hidden**-0.5)
            self.output = TiedLinear(self.embedding, dtype=dtype)
        else:
            self.output = Linear(hidden, vocab_size, dtype=dtype)
        if seed is not None or tied:
            self._initialise(seed)
        self.join()

    @property
    def tokenizer(self):
        return self._tokenizer

    @tokenizer.setter
    def tokenizer(self, tokenizer):
        if tokenizer is not None and not isinstance(tokenizer, Tokenizer):
            raise TypeError(f"tokenizer: expected a data.Tokenizer or None, got {type(tokenizer).__name__}")
        if tokenizer is not None and tokenizer.vocab_size != self.vocab_size:
            raise ValueError(f"tokenizer: expected one of {self.vocab_size} tokens, got {tokenizer.vocab_size}")
        self._tokenizer = tokenizer

    def _attachments(self):
        return {} if self.tokenizer is None else {"tokenizer": self.tokenizer.to_dict()}

    def _attach(self, attachments):
        if "tokenizer" in attachments:
            self.tokenizer = Tokenizer.from_dict(attachments["tokenizer"])

    def reset_state(self):
        """Let the next update begin at the zero state."""
        for work in (self._work, self._inference_work()):
            if work is not None:
                work.carried = None

    def _input(self, x):
        x = as_ids("x", x)
        self._check_shape(x.shape)
        return x

    def _check_shape(self, shape):
        if len(shape) != 2:
            raise ValueError(f"x: expected token ids of shape (batch, time), got shape {shape}")

    def _forward(self, x, work):
        rows = rows_of(x, work.lengths)
        ids = rows.pack(x)
        work.saved[self] = rows, ids
        initial, last = self._states(rows, work)
        rnn = self.rnn
        try:
            y = self._run(ids, rows, initial, last, work)
        except ValueError:
            self._check_ids(x, rows)
            raise
        if work.carries:
            ordered = rnn._ordered(last, None if rows.order is None else rows.back_order)
            for kept, state in zip(last, ordered, strict=True):
                if kept is not state:
                    kept[...] = state
            work.carried = last
        return self.output._forward(rnn._drop(y, rnn.num_layers, work), work)

    def _run(self, ids, rows, initial, last, work):
        """The recurrent layers on token ids, as `_Recurrent.run`."""
        if self.embedding is None or self._folds(ids):
            return self.rnn.run(self._table(work), ids, rows, initial, last, work)
        return self.rnn.run(self.embedding._forward(ids, work), None, rows, initial, last, work)

    def _table(self, work):
        """The input's part of the first layer's gates for every token."""
        W = self.rnn._strands[0][0].W.value
        if self.embedding is None:
            return W
        table = work.array(self, "table", (self.vocab_size, W.shape[1]), self.dtype)
        return kernels.linear_forward(self.embedding._weight.value, W, None, "identity", table, work.training)

    def _states(self, rows, work):
        """Where this pass begins, and where it puts its last state: in two sets of buffers in turn, since the backward
        pass still reads where it began."""
        carried = work.carried
        last = self.rnn.state_arrays(self, "state", rows.batch, work)
        if carried is not None and np.may_share_memory(last[0], carried[0]):
            last = self.rnn.state_arrays(self, "other state", rows.batch, work)
        if not work.carries or carried is None or carried[0].shape[1] != rows.batch:
            return None, last
        return self.rnn._ordered(carried, rows.order), last

    def _folds(self, ids):
        """Embedding times input weights, formed once for the whole vocabulary, is cheaper than for every token."""
        return self.vocab_size < ids.size

    def _check_ids(self, x, rows):
        """Raise ValueError where a token that counts is not in the vocabulary."""
        counts = np.ones(x.size, bool)
        if rows.index is not None:
            counts[:] = False
            counts[rows.index] = True
        bad = ((x < 0) | (x >= self.vocab_size)) & counts.reshape(x.shape)
        if bad.any():
            first = tuple(int(i) for i in np.argwhere(bad)[0])
            raise ValueError(f"x: expected token ids from 0 to {self.vocab_size - 1}, got {x[first]} at {first}")

    def _backward(self, dy, work, need_dx):
        _, ids = work.saved[self]
        dh = self.rnn._drop(self.output._backward(dy, work, True), self.rnn.num_layers, work)
        if self.embedding is None:
            self.rnn.run_back(dh, None, work, False)
        elif self._folds(ids):
            strand, vectors = self.rnn._strands[0][0], self.embedding._weight
            dtable = work.array(self, "dtable", (self.vocab_size, strand.W.value.shape[1]), self.dtype)
            self.rnn.run_back(dh, None, work, False, dtable)
            kernels.linear_backward(
                dtable, vectors.value, strand.W.value, vectors.gradient, strand.W.gradient, None, True, False
            )
        else:
            dx, _ = self.rnn.run_back(dh, None, work, True)
            self.embedding._backward(dx, work, False)
        if self.tied:
            self.output.add_gradient(work)
        self._zero_frozen()

    def _from_rows(self, y, work):
        rows, _ = work.saved[self]
        return rows.unpack(y, np.empty((rows.batch, rows.time, self.vocab_size), self.dtype))

    def _to_rows(self, name, a, work):
        rows, _ = work.saved[self]
        if name == "sample_weight" and a.shape == (rows.batch,):
            a = np.broadcast_to(a[:, None], (rows.batch, rows.time))
        if a.shape[:2] != (rows.batch, rows.time):
            raise ValueError(f"{name}: expected shape {(rows.batch, rows.time)}, like x, got {a.shape}")
        return rows.pack(a)

    def forward(self, x, lengths=None):
        """Logits for a batch of token ids, from the zero state.

        Parameters
        ----------
        x : integers of shape (batch, time), from 0 to vocab_size - 1
        lengths : integers of shape (batch,), optional
            Tokens of each sequence; the logits behind them are zero.

        Returns
        -------
        ndarray of shape (batch, time, vocab_size)
        """
        work = self._training_work() if self.training else self._inference_work()
        work.lengths = lengths
        try:
            return super().forward(x)
        finally:
            work.lengths = None

    def generate_ids(
        self,
        prompts,
        length,
        temperature=1.0,
        top_p=1.0,
        top_k=0,
        repetition_penalty=1.0,
        seed=None,
        *,
        stop=None,
        banned=(),
    ):
        """Continue sequences of token ids; see `dd.generate`, which does it with text. Leaves the carried state alone.

        Parameters
        ----------
        prompts : sequence of integer arrays
            Of any lengths of at least 1.
        length : int
        temperature, top_p, top_k, repetition_penalty, seed : see `dd.generate`
        stop : int, optional
            A token that ends a sequence; what follows it in the result is it again.
        banned : sequence of int

        Returns
        -------
        ndarray of shape (len(prompts), length), int64
        """
        prompts = [as_ids(f"prompts[{i}]", ids).reshape(-1) for i, ids in enumerate(prompts)]
        if not prompts:
            raise ValueError("prompts: expected at least one, got none")
        for i, ids in enumerate(prompts):
            if not ids.size:
                raise ValueError(f"prompts[{i}]: expected at least one token, got none")
            if ids.min() < 0 or ids.max() >= self.vocab_size:
                raise ValueError(f"prompts[{i}]: expected token ids from 0 to {self.vocab_size - 1}, got {ids}")
        length = positive_integer("length", length)
        N, V, work = len(prompts), self.vocab_size, self._inference_work()
        seed = int(np.random.SeedSequence().generate_state(1, np.uint64)[0]) if seed is None else seed
        draws = kernels.random_uniform(kernels.stream_key(seed, GENERATION << 32, 0), (N, length), np.float64)
        seen = np.zeros((N, V), bool)
        for i, ids in enumerate(prompts):
            seen[i, ids] = True
        forbidden = np.zeros(V, bool)
        forbidden[[integer_in("banned", token, 0, V - 1) for token in banned]] = True
        layers = [
            layer[0].for_generation(None if i else self._table(work)) for i, layer in enumerate(self.rnn._strands)
        ]
        return kernels.generate_tokens(
            self.rnn.cell,
            layers,
            self.output.matrix(work) if self.tied else self.output._weight.value,
            self.output._bias.value,
            self._read(prompts, work),
            np.array([ids[-1] for ids in prompts]),
            draws,
            temperature,
            top_k,
            top_p,
            repetition_penalty,
            seen,
            forbidden if forbidden.any() else None,
            -1 if stop is None else integer_in("stop", stop, 0, V - 1),
            zoneout=self.rnn.zoneout,
        )

    def _read(self, prompts, work):
        """The state after all tokens but the last of each prompt."""
        N, H = len(prompts), self.rnn.hidden_size
        states = tuple(np.zeros((self.rnn.num_layers, N, H), self.dtype) for _ in self.rnn.states)
        lengths = np.array([len(ids) - 1 for ids in prompts])
        some = np.flatnonzero(lengths)
        if len(some):
            x = np.zeros((len(some), lengths.max()), np.int64)
            for row, i in zip(x, some, strict=True):
                row[: lengths[i]] = prompts[i][:-1]
            rows = rows_of(x, lengths[some])
            last = self.rnn.state_arrays(self, "read", rows.batch, work)
            self._run(np.ascontiguousarray(rows.pack(x)), rows, None, last, work)
            ordered = self.rnn._ordered(last, None if rows.order is None else rows.back_order)
            for state, part in zip(states, ordered, strict=True):
                state[:, some] = part
        return states
