"""Recurrent layers and embeddings."""

import functools
from functools import partial

import numpy as np

from .. import kernels
from ..configuration import array_of, positive_integer, real_in
from ..kernels.recurrent import work_size
from .layers import Linear, normal, uniform
from .module import CELL_NOISE, DROPOUT, Module, _pass

_UINT8 = np.dtype(np.uint8)


class Rows:
    """Where the rows of a batch of sequences lie for the recurrent kernels: time first, the longest sequence first.

    Attributes
    ----------
    batch, time : int
    counts : ndarray of shape (steps,), int64
        Sequences that run at each step.
    order : ndarray of shape (batch,), or None
        Which sequence of the batch comes where; None where they stay as they are.
    index : ndarray of shape (rows,), or None
        Place of each row among the batch * time rows of the batch; None where nothing moves.
    """

    def __init__(self, batch, time, lengths=None):
        self.batch, self.time = batch, time
        self.order = None
        if lengths is None:
            self.counts = np.full(time, batch, np.int64)
            moves = batch > 1 and time > 1
            self.index = np.arange(batch * time).reshape(batch, time).T.ravel() if moves else None
        else:
            order = np.argsort(-lengths, kind="stable")
            sorted_lengths = lengths[order]
            steps = np.arange(sorted_lengths[0])
            running = steps[:, None] < sorted_lengths  # (steps, batch)
            self.counts = running.sum(axis=1)
            self.index = (order * time + steps[:, None])[running]
            if (order[1:] < order[:-1]).any():
                self.order = order

    @functools.cached_property
    def back_order(self):
        """The inverse of `order`."""
        return np.argsort(self.order)

    @functools.cached_property
    def reverse(self):
        """Place among the rows of each row's mirror image in its own sequence."""
        starts = np.concatenate([[0], np.cumsum(self.counts)[:-1]])
        sequence = np.concatenate([np.arange(n) for n in self.counts])
        step = np.repeat(np.arange(len(self.counts)), self.counts)
        lengths = (self.counts[:, None] > np.arange(self.counts[0])).sum(axis=0)
        return starts[lengths[sequence] - 1 - step] + sequence

    def pack(self, a, out=None):
        """The rows of an array of shape (batch, time, ...)."""
        flat = a.reshape(self.batch * self.time, *a.shape[2:])
        if self.index is None:
            return flat
        if flat.ndim == 2 and out is not None:
            return kernels.take_rows(flat, self.index, out)
        return flat[self.index]

    def unpack(self, rows, out):
        """The inverse of `pack`, into `out` of shape (batch, time, ...); zero behind a sequence's end."""
        flat = out.reshape(self.batch * self.time, *out.shape[2:])
        if self.index is None:
            flat[...] = rows
        else:
            if len(rows) < len(flat):
                flat[...] = 0
            flat[self.index] = rows
        return out


@functools.lru_cache(16)
def full_rows(batch, time):
    """Rows of sequences of equal length."""
    return Rows(batch, time)


def rows_of(x, lengths):
    """The Rows of a batch x of shape (batch, time, ...), its lengths checked."""
    batch, time = x.shape[:2]
    if batch < 1 or time < 1:
        raise ValueError(f"x: expected at least one sequence of at least one step, got shape {x.shape}")
    if lengths is None:
        return full_rows(batch, time)
    a = array_of("lengths", lengths)
    if a.dtype.kind not in "iu":
        raise TypeError(f"lengths: expected integers, got {lengths!r}")
    if a.shape != (batch,):
        raise ValueError(f"lengths: expected shape ({batch},), got {a.shape}")
    if a.min() < 1 or a.max() > time:
        wrong = a.min() if a.min() < 1 else a.max()
        raise ValueError(f"lengths: expected numbers from 1 to {time}, the number of steps in x, got {wrong}")
    return Rows(batch, time, a.astype(np.int64))


def as_ids(name, x):
    """Token ids as an int64 array."""
    if type(x) is np.ndarray and x.dtype == np.int64:
        return x
    if isinstance(x, np.ma.MaskedArray) and np.ma.is_masked(x):
        raise TypeError(f"{name}: expected an array without masked entries; fill them first")
    a = array_of(name, x)
    if a.dtype.kind not in "iu":
        raise TypeError(f"{name}: expected token ids (integers), got {type(x).__name__} of dtype {a.dtype}")
    return a.astype(np.int64)


class Embedding(Module):
    """A table of vectors, one for each token: (...) ids to (..., dim).

    Parameters
    ----------
    n : int
        Tokens.
    dim : int
        Length of a vector. Drawn from the standard normal distribution, as in PyTorch.
    dtype, seed : see Module
    """

    def __init__(self, n, dim, *, dtype="float32", seed=None):
        super().__init__(dtype=dtype, seed=seed)
        self.n, self.dim = positive_integer("n", n), positive_integer("dim", dim)
        self.add("weight", (n, dim), partial(normal, 1.0))
        self._weight = self._own["weight"]

    def _converted(self, x):
        return as_ids("x", x)

    def _input(self, x):
        x = self._converted(x)
        self._check_shape(x.shape)
        return x

    def output_shape(self, shape):
        return None if shape is None else (*shape, self.dim)

    def _forward(self, x, work):
        ids = x.reshape(-1)
        y = kernels.take_rows(self._weight.value, ids, work.array(self, "y", (ids.size, self.dim), self.dtype))
        if work.training:
            work.saved[self] = ids
        return y.reshape(*x.shape, self.dim)

    def _backward(self, dy, work, need_dx):
        if self._weight.trainable:
            kernels.scatter_rows(dy.reshape(-1, self.dim), work.saved[self], self._weight.gradient)


class TiedLinear(Linear):
    """y = x E^T + b, where the rows of E are the vectors of an embedding: one parameter under two names (Press and Wolf
    2017, arXiv:1608.05859).

    Parameters
    ----------
    embedding : Embedding
    bias : bool
    dtype, seed : see Module
    """

    def __init__(self, embedding, bias=True, *, dtype="float32", seed=None):
        Module.__init__(self, dtype=dtype, seed=seed)
        self.in_features, self.out_features = embedding.dim, embedding.n
        self._tied = {"weight": embedding._own["weight"]}
        self._bias = None
        if bias:
            self.add("bias", (embedding.n,), partial(uniform, embedding.dim**-0.5))
            self._bias = self._own["bias"]

    @property
    def weight(self):
        """E^T, a view of the embedding's vectors."""
        return self._tied["weight"].value.T

    @weight.setter
    def weight(self, value):
        self._tied["weight"].value.T[...] = value

    def matrix(self, work):
        """E^T in memory of its own, as products read it."""
        W = work.array(self, "W", (self.in_features, self.out_features), self.dtype)
        W[...] = self.weight
        return W

    def _forward(self, x, work):
        y, W = work.array(self, "y", (x.shape[0], self.out_features), self.dtype), self.matrix(work)
        kernels.linear_forward(x, W, None if self._bias is None else self._bias.value, "identity", y, work.training)
        if work.training:
            work.saved[self] = x, W
        return y

    def _backward(self, dy, work, need_dx):
        """The weight's gradient waits for `add_gradient`: the embedding overwrites its own."""
        x, W = work.saved[self]
        dx = work.array(self, "dx", x.shape, self.dtype) if need_dx else None
        dW = work.array(self, "dW", W.shape, self.dtype)
        db = None if self._bias is None else self._bias.gradient
        kernels.linear_backward(dy, x, W, dx, dW, db, need_dx, db is not None)
        return dx

    def add_gradient(self, work):
        """Add the latest backward pass's part to the gradient of the embedding's vectors."""
        self._tied["weight"].gradient += work.array(self, "dW", self.weight.shape, self.dtype).T


class _Strand:
    """One layer in one direction: its parameters, and the order of kernels."""

    def __init__(self, owner, suffix):
        self.gates, self.hidden = owner.gates, owner.hidden_size
        self.cell = owner.cell
        names = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
        self.W, self.U, self.b, self.bU = (owner._own.get(name + suffix) for name in names)

    @property
    def dtype(self):
        return self.U.value.dtype

    def _states(self, rows, counts, work):
        """(h, previous): where all sequences run to the end, the states before a step are those after the one before,
        and are kept once."""
        first = int(counts[0])
        if first * len(counts) == rows:
            states = work.array(self, "states", (first + rows, self.hidden), self.dtype)
            return states[first:], states[:rows]
        return tuple([work.array(self, name, (rows, self.hidden), self.dtype) for name in ("h", "previous")])

    def _memory(self, rows, counts, table, work):
        """(a or gates, h, previous, c, du, scratch) for so many rows; what a cell does not need is None. Where the
        input's part is no table, the gates (of a vanilla RNN, the states) take its place."""
        key = rows, len(counts), int(counts[0]), table
        found = work.saved.get((self, "memory"))
        if found is not None and found[0] == key:
            return found[1]
        H, G, cell = self.hidden, self.gates, self.cell
        h, previous = self._states(rows, counts, work)
        memory = (
            (None if table else h) if cell == "rnn" else work.array(self, "gates", (rows, G * H), self.dtype),
            h,
            previous,
            None if cell == "rnn" else work.array(self, "c", (rows, H), self.dtype),
            work.array(self, "du", (rows, G * H), self.dtype) if cell == "gru" and work.training else None,
            work.array(self, "scratch", (work_size(G, H),), self.dtype),
        )
        work.saved[self, "memory"] = key, memory
        return memory

    def forward(self, x, ids, counts, initial, last, work, noise):
        """Run; returns h of every row.

        x : rows, or the table that ids index (already the input's part of the gates)
        initial, last : for each state (B, H): where to begin (or None: zeros), and where to put the last ones
        noise : CellNoise or None
        """
        rows = len(x) if ids is None else len(ids)
        gates, h, previous, c, _, scratch = memory = self._memory(rows, counts, ids is not None, work)
        a = x if ids is not None else kernels.linear_forward(x, self.W.value, None, "identity", gates, work.training)
        b, bU = (None, None) if self.b is None else (self.b.value, self.bU.value)
        U = self.U.value
        if self.cell == "rnn":
            kernels.rnn_forward(a, b, U, bU, initial[0], counts, ids, h, previous, last[0], scratch, noise)
        elif self.cell == "lstm":
            kernels.lstm_forward(a, b, U, bU, *initial, counts, ids, h, previous, gates, c, *last, scratch, noise)
        else:
            kernels.gru_forward(a, b, U, bU, initial[0], counts, ids, h, previous, gates, c, last[0], scratch, noise)
        if work.training:
            work.saved[self] = x, ids, counts, initial, noise, memory
        return h

    def backward(self, dh, dlast, dinitial, work, need_dx, dtable=None):
        """Back through time; returns dx of every row, or None. dh may be overwritten.

        dlast, dinitial : for each state (B, H): its gradient at the end (or None: zeros), and where to put that at the
            start
        dtable : where the gradient of the table goes; default: the input weights', which then are the table
        """
        x, ids, counts, initial, noise, (gates, h, previous, c, du, scratch) = self._kept(work)
        U, bias = self.U.value, self.bU is not None
        watched = None if work.flow is None else self._watched(dh, noise, gates)
        if self.cell == "rnn":
            da = du = dh
            kernels.rnn_backward(dh, dlast[0], U, h, counts, da, dinitial[0], scratch, noise)
        elif self.cell == "lstm":
            da = du = gates
            kernels.lstm_backward(dh, *dlast, U, gates, c, initial[1], counts, da, *dinitial, scratch, noise)
        else:
            da = gates
            kernels.gru_backward(dh, dlast[0], U, previous, gates, c, counts, da, du, dinitial[0], scratch, noise)
        if watched is not None:
            work.flow[self] = self._total_gradient(*watched, dlast[0], du, counts)
        dbU = self.bU.gradient if bias else None
        kernels.linear_backward(du, previous, U, None, self.U.gradient, dbU, False, bias)
        one_bias = bias and da is du  # both biases are added to the same sums
        if ids is None:
            dx = work.array(self, "dx", x.shape, self.dtype) if need_dx else None
            own = bias and not one_bias
            db = self.b.gradient if own else None
            kernels.linear_backward(da, x, self.W.value, dx, self.W.gradient, db, need_dx, own)
        else:
            dx, dtable = None, self.W.gradient if dtable is None else dtable
            kernels.scatter_rows(da, ids, dtable)
            if bias and not one_bias:
                np.sum(dtable, axis=0, out=self.b.gradient)
        if one_bias:
            self.b.gradient[...] = dbU
        return dx

    def _watched(self, dh, noise, gates):
        """What the kernels overwrite and the flow of gradients needs: dh, and the share of the old state that each new
        one holds by itself."""
        keep = 0 if noise is None else (noise.flags & 1).astype(self.dtype)
        z = gates[:, self.hidden : 2 * self.hidden] if self.cell == "gru" else 0
        return dh.copy(), np.broadcast_to(keep + (1 - keep) * z, dh.shape)

    def _total_gradient(self, dh, held, dlast, du, counts):
        """dL/dh of every row, with what flows back through time; dh, what comes from above, becomes it.

        dh_t += held_{t+1} dh_{t+1} + du_{t+1} U^T
        """
        back = kernels.linear_forward(du, np.ascontiguousarray(self.U.value.T), None, "identity")
        starts = np.cumsum([0, *counts])
        goes_on = [*counts[1:], 0]  # sequences that run at the next step too
        for t in reversed(range(len(counts))):
            here, next_one = (slice(start, start + goes_on[t]) for start in starts[t : t + 2])
            dh[here] += held[next_one] * dh[next_one] + back[next_one]
            if dlast is not None:
                dh[starts[t] + goes_on[t] : starts[t + 1]] += dlast[goes_on[t] : counts[t]]
        return dh

    def _kept(self, work):
        """What `forward` kept, once."""
        if self not in work.saved:
            raise RuntimeError("backward: it has overwritten what forward kept; call forward again")
        return work.saved.pop(self)

    def for_generation(self, table=None):
        """The parameters as `kernels.generate_tokens` takes them; `table` stands for the input weights."""
        W = self.W.value if table is None else table
        return W, self.U.value, *((None, None) if self.b is None else (self.b.value, self.bU.value))


class _NormStrand(_Strand):
    """Of an LSTM with layer normalisation: the input's part is normalised before the walk through time, for a table
    of tokens once for its rows."""

    eps = 1e-5

    def __init__(self, owner, suffix):
        super().__init__(owner, suffix)
        names = ("gain_ih", "gain_hh", "gain_c", "bias_c")
        self.gain, self.gain_U, self.gain_c, self.shift_c = (owner._own.get(name + suffix) for name in names)
        self._zeros = np.zeros(4 * self.hidden, self.dtype)  # the shifts where there is no bias

    def _memory(self, rows, counts, part, work):
        """(a before and after its norm; its rows' mean and 1 / deviation; gates, h, previous, c, sums, statistics,
        scratch). `part`: rows of the table, or None."""
        key = rows, len(counts), int(counts[0]), part
        found = work.saved.get((self, "memory"))
        if found is not None and found[0] == key:
            return found[1]
        H, dense = self.hidden, part is None
        wide, n = (rows, 4 * H), rows if dense else part
        gates = work.array(self, "gates", wide, self.dtype)
        memory = (
            work.array(self, "raw", wide, self.dtype) if dense else None,
            gates if dense else work.array(self, "a", (n, 4 * H), self.dtype),
            work.array(self, "mean", (n,), self.dtype),
            work.array(self, "rstd", (n,), self.dtype),
            gates,
            *self._states(rows, counts, work),
            work.array(self, "c", (rows, H), self.dtype),
            work.array(self, "sums", wide, self.dtype),
            work.array(self, "statistics", (rows, 4), self.dtype),
            work.array(self, "scratch", (work_size(4, H, key[2]),), self.dtype),
        )
        work.saved[self, "memory"] = key, memory
        return memory

    def _shifts(self):
        """The shifts of the norms of the input's part and of the cell, and the bias of the state's part."""
        if self.b is None:
            return self._zeros, self._zeros[: self.hidden], None
        return self.b.value, self.shift_c.value, self.bU.value

    def forward(self, x, ids, counts, initial, last, work, noise):
        rows, part = (len(x), None) if ids is None else (len(ids), len(x))
        memory = self._memory(rows, counts, part, work)
        raw, a, mean, rstd, gates, h, previous, c, sums, statistics, scratch = memory
        raw = x if ids is not None else kernels.linear_forward(x, self.W.value, None, "identity", raw, work.training)
        shift, shift_c, bU = self._shifts()
        kernels.layer_norm_forward(raw, self.gain.value, shift, self.eps, a, mean, rstd)
        kernels.lstm_norm_forward(
            a, None, self.U.value, bU, self.gain_U.value, self.gain_c.value, shift_c, *initial, counts, ids,
            h, previous, gates, c, sums, statistics, *last, scratch, noise, self.eps,
        )  # fmt: skip
        if work.training:
            work.saved[self] = x, raw, ids, counts, initial, noise, memory
        return h

    def backward(self, dh, dlast, dinitial, work, need_dx, dtable=None):
        x, raw, ids, counts, initial, noise, memory = self._kept(work)
        _, _, mean, rstd, da, _, previous, c, du, statistics, scratch = memory
        unused = work.array(self, "unused", (5 * self.hidden,), self.dtype)
        db, dshift_c = (
            (unused[: 4 * self.hidden], unused[4 * self.hidden :])
            if self.b is None
            else (self.b.gradient, self.shift_c.gradient)
        )
        gain, U, shift_c = self.gain.value, self.U.value, self._shifts()[1]
        watched = None if work.flow is None else self._watched(dh, noise, None)
        kernels.lstm_norm_backward(
            dh, *dlast, U, self.gain_U.value, self.gain_c.value, shift_c, da, c, initial[1], du, statistics, counts,
            da, du, self.gain_U.gradient, self.gain_c.gradient, dshift_c, *dinitial, scratch, noise,
        )  # fmt: skip
        if watched is not None:
            work.flow[self] = self._total_gradient(*watched, dlast[0], du, counts)
        kernels.linear_backward(du, previous, U, None, self.U.gradient, None, False, False)
        dx = None
        if ids is None:  # du has served
            kernels.layer_norm_backward(da, raw, gain, mean, rstd, du, self.gain.gradient, db)
            dx = work.array(self, "dx", x.shape, self.dtype) if need_dx else None
            kernels.linear_backward(du, x, self.W.value, dx, self.W.gradient, None, need_dx, False)
        else:
            scattered = kernels.scatter_rows(da, ids, work.array(self, "scattered", raw.shape, self.dtype))
            dtable = self.W.gradient if dtable is None else dtable
            kernels.layer_norm_backward(scattered, raw, gain, mean, rstd, dtable, self.gain.gradient, db)
        if self.b is not None:
            self.bU.gradient[...] = db
        return dx

    def for_generation(self, table=None):
        shift, shift_c, bU = self._shifts()
        gain = self.gain.value
        W = self.W.value if table is None else kernels.layer_norm_forward(table, gain, self._zeros, self.eps)[0]
        return W, self.U.value, shift, bU, (gain, self.gain_U.value, self.gain_c.value, shift_c)


class _Recurrent(Module):
    """What RNN, LSTM and GRU share.

    Parameters
    ----------
    input_size, hidden_size : int
    num_layers : int
        Each layer reads the states of the one below.
    dropout : float in [0, 1)
        On what passes from layer to layer.
    bidirectional : bool
        A second strand reads each sequence from its end; the output holds both, side by side.
    bias : bool
    zoneout : float in [0, 1)
        In training, the probability with which a unit of h keeps its old value at a step; in use, the share of the old
        value in the new one (Krueger et al. 2017, arXiv:1606.01305).
    zoneout_cell : float in [0, 1)
        The same for c of an LSTM.
    recurrent_dropout : float in [0, 1)
        Of the candidate that a step adds to the state, g of an LSTM or n of a GRU, drawn for every step and scaled by
        1 / (1 - p) (Semeniuta, Severyn and Barth 2016, arXiv:1603.05118).
    layer_norm : bool
        An LSTM with layer normalisation (Ba, Kiros and Hinton 2016, arXiv:1607.06450, supplement, equations 20 to 22):
        of x W, with the gain `gain_ih` and the shift `bias_ih`, of h U with `gain_hh` and `bias_hh`, and of c before
        its tanh with `gain_c` and `bias_c`. state_dict has these names, with the layer's suffix, behind PyTorch's.
    dtype, seed : see Module
    """

    cell = "rnn"
    gates = 1
    states = ("h",)

    def __init__(
        self, input_size, hidden_size, num_layers=1, dropout=0.0, bidirectional=False, bias=True, *,
        zoneout=0.0, zoneout_cell=0.0, recurrent_dropout=0.0, layer_norm=False, dtype="float32", seed=None,
    ):  # fmt: skip
        super().__init__(dtype=dtype, seed=seed)
        self.input_size = positive_integer("input_size", input_size)
        self.hidden_size = positive_integer("hidden_size", hidden_size)
        self.num_layers = positive_integer("num_layers", num_layers)
        self.dropout = real_in("dropout", dropout, 0, 1, include_high=False)
        self.directions = 2 if bidirectional else 1
        rates = {"zoneout": zoneout, "zoneout_cell": zoneout_cell, "recurrent_dropout": recurrent_dropout}
        self._rates = tuple(real_in(name, rate, 0, 1, include_high=False) for name, rate in rates.items())
        self.layer_norm = bool(layer_norm)
        self._refuse_what_the_cell_lacks()
        width, draw = self.gates * hidden_size, partial(uniform, hidden_size**-0.5)
        suffixes = ("", "_reverse")[: self.directions]
        for layer in range(num_layers):
            inputs = hidden_size * self.directions if layer else input_size
            for suffix in suffixes:
                self.add(f"weight_ih_l{layer}{suffix}", (inputs, width), draw, axes=(1, 0))
                self.add(f"weight_hh_l{layer}{suffix}", (hidden_size, width), draw, axes=(1, 0))
                if bias:
                    self.add(f"bias_ih_l{layer}{suffix}", (width,), np.zeros if layer_norm else draw)
                    self.add(f"bias_hh_l{layer}{suffix}", (width,), np.zeros if layer_norm else draw)
                if layer_norm:
                    self.add(f"gain_ih_l{layer}{suffix}", (width,), np.ones)
                    self.add(f"gain_hh_l{layer}{suffix}", (width,), np.ones)
                    self.add(f"gain_c_l{layer}{suffix}", (hidden_size,), np.ones)
                    if bias:
                        self.add(f"bias_c_l{layer}{suffix}", (hidden_size,), np.zeros)
        self._suffixes = suffixes
        self._lay_strands()

    def _refuse_what_the_cell_lacks(self):
        _, zoneout_cell, recurrent_dropout = self._rates
        name = type(self).__name__
        if zoneout_cell and "c" not in self.states:
            raise ValueError(f"zoneout_cell: expected 0 (only LSTM has a cell, {name} has none), got {zoneout_cell}")
        if recurrent_dropout and self.cell == "rnn":
            raise ValueError(
                f"recurrent_dropout: expected 0 (the state of an {name} is no sum from which a candidate could be "
                f"dropped; use zoneout), got {recurrent_dropout}"
            )
        if self.layer_norm and self.cell != "lstm":
            raise ValueError(f"layer_norm: expected False (only LSTM has it, {name} has not), got True")

    def _lay_strands(self):
        kind = _NormStrand if self.layer_norm else _Strand
        self._strands = [
            [kind(self, f"_l{layer}{suffix}") for suffix in self._suffixes] for layer in range(self.num_layers)
        ]

    def __setstate__(self, state):
        super().__setstate__(state)
        self._lay_strands()

    @property
    def zoneout(self):
        """Probabilities with which units of h and of c keep their old values."""
        return self._rates[:2]

    @property
    def output_size(self):
        return self.hidden_size * self.directions

    # ---- the passes over rows ----------------------------------------------------------------------------------------

    def state_arrays(self, owner, name, batch, work):
        """For each state, memory of shape (num_layers * directions, batch, hidden_size)."""
        found = work.saved.get((owner, name))
        if found is None or found[0].shape[1] != batch or found[0].dtype is not self.dtype:
            shape = (self.num_layers * self.directions, batch, self.hidden_size)
            found = tuple([work.array(owner, (name, state), shape, self.dtype) for state in self.states])
            work.saved[owner, name] = found
        return found

    def run(self, x, ids, rows, initial, last, work):
        """Run all layers over rows; returns their outputs (R, output_size).

        Parameters
        ----------
        x : (R, input_size), or with ids a table (V, gates * hidden_size): the input's part of the gates
        ids : (R,) or None
        rows : Rows
        initial, last : tuple of (num_layers * directions, batch, hidden_size), in the order of the rows
            Where to begin (or None: zeros), and where to put the last states.
        work : Workspace
        """
        counts, y = rows.counts, x
        for layer, strands in enumerate(self._strands):
            if layer:
                x, ids = self._drop(y, layer, work), None
            outputs = []
            for d, strand in enumerate(strands):
                place = layer * self.directions + d
                begin = self._nothing if initial is None else [state[place] for state in initial]
                end = [state[place] for state in last]
                noise = self._noise(place, rows, work) if any(self._rates) else None
                if d == 0:
                    outputs.append(strand.forward(x, ids, counts, begin, end, work, noise))
                    continue
                back = self._mirrored(x, rows, (layer, "x"), work) if ids is None else x
                h = strand.forward(back, None if ids is None else ids[rows.reverse], counts, begin, end, work, noise)
                outputs.append(self._mirrored(h, rows, (layer, "h"), work))
            y = outputs[0]
            if len(outputs) == 2:
                H = self.hidden_size
                y = work.array(self, (layer, "y"), (len(y), 2 * H), self.dtype)
                y[:, :H], y[:, H:] = outputs
        if work.training:
            work.saved[self] = rows
        return y

    def run_back(self, dy, dlast, work, need_dx, dtable=None):
        """Back through all layers; returns dx (or None) and the gradients of the initial states. dy may be overwritten.
        dtable: where the gradient of the table goes, (V, gates * hidden_size)."""
        rows, H = work.saved[self], self.hidden_size
        dinitial = self.state_arrays(self, "dinitial", int(rows.counts[0]), work)
        for layer in reversed(range(self.num_layers)):
            dx = None
            for d, strand in enumerate(self._strands[layer]):
                place = layer * self.directions + d
                dh = dy
                if self.directions == 2:
                    dh = np.ascontiguousarray(dy[:, d * H : (d + 1) * H])
                    if d:
                        dh = self._mirrored(dh, rows, (layer, "dh"), work)
                end = self._nothing if dlast is None else [state[place] for state in dlast]
                begin = [state[place] for state in dinitial]
                part = strand.backward(dh, end, begin, work, need_dx or layer > 0, dtable)
                if d and part is not None:
                    dx += self._mirrored(part, rows, (layer, "dx"), work)
                elif part is not None:
                    dx = part
            dy = self._drop(dx, layer, work) if layer else dx
        return dy, dinitial

    @property
    def _nothing(self):
        return (None,) * len(self.states)

    def _noise(self, place, rows, work):
        """Zoneout and recurrent dropout of one strand: drawn anew in every update; in use their expectation."""
        if not work.training:
            return kernels.CellNoise(*self._rates)
        key = kernels.stream_key(work.seed, (CELL_NOISE << 32) + (place << 16) + self._place, work.update)
        shape = int(rows.counts.sum()), self.hidden_size
        flags = work.array(self, ("flags", place), shape, _UINT8)
        return kernels.CellNoise(*self._rates, kernels.random_flags(key, self._rates, shape, flags))

    def _drop(self, x, layer, work):
        """Dropout between two layers; its backward pass is the same. The recurrent kernels keep x itself."""
        if not work.training or not self.dropout:
            return x
        key = kernels.stream_key(work.seed, (DROPOUT << 32) + (layer << 16) + self._place, work.update)
        return kernels.dropout(x, self.dropout, key, work.array(self, (layer, "dropped"), x.shape, self.dtype))

    def _mirrored(self, x, rows, name, work):
        return kernels.take_rows(x, rows.reverse, work.array(self, (*name, "mirrored"), x.shape, self.dtype))

    # ---- the layer on its own ----------------------------------------------------------------------------------------

    def _check_shape(self, shape):
        if len(shape) != 3 or shape[2] != self.input_size:
            raise ValueError(f"x: expected shape (batch, time, {self.input_size}), got {shape}")

    def _rows_forward(self, x, rows, initial, work):
        packed = rows.pack(
            np.ascontiguousarray(x), work.array(self, "x", (int(rows.counts.sum()), x.shape[2]), self.dtype)
        )
        last = self.state_arrays(self, "last", rows.batch, work)
        y = self.run(packed, None, rows, initial, last, work)
        return rows.unpack(y, work.array(self, "output", (*x.shape[:2], self.output_size), self.dtype)), last

    def _forward(self, x, work):
        return self._rows_forward(x, rows_of(x, work.lengths), None, work)[0]

    def _backward(self, dy, work, need_dx):
        return self._rows_backward(dy, None, work, need_dx)[0]

    def _rows_backward(self, dy, dlast, work, need_dx):
        rows = work.saved[self]
        packed = rows.pack(dy, work.array(self, "dy", (int(rows.counts.sum()), dy.shape[2]), self.dtype))
        dx, dinitial = self.run_back(packed, dlast, work, need_dx)
        self._zero_frozen()
        if dx is None:
            return None, dinitial
        shape = (rows.batch, rows.time, self.input_size)
        return rows.unpack(dx, work.array(self, "dinput", shape, self.dtype)), dinitial

    def forward(self, x, state=None, lengths=None):
        """Run the layer over sequences.

        Parameters
        ----------
        x : array of shape (batch, time, input_size)
        state : array of shape (num_layers * directions, batch, hidden_size), optional
            The initial state, of an LSTM a pair (h, c); default zeros. Directions of a layer stand side by side.
        lengths : integers of shape (batch,), optional
            Steps of each sequence; the output is zero behind them, and they cost nothing.

        Returns
        -------
        output : ndarray of shape (batch, time, directions * hidden_size)
        state : as the argument: after each sequence's own last step
        """
        work = self._training_work() if self.training else self._inference_work()
        if _pass.work is not None:
            work.seed, work.update = _pass.work.seed, _pass.work.update
        x = self._input(x)
        rows = rows_of(x, lengths)
        initial = None if state is None else self._ordered(self._checked_state("state", state, rows), rows.order)
        y, last = self._rows_forward(x, rows, initial, work)
        work.output_shape = y.shape
        last = tuple(np.array(s) for s in self._ordered(last, None if rows.order is None else rows.back_order))
        return np.array(y), last if len(last) > 1 else last[0]

    def backward(self, dy, dstate=None, accumulate=False, return_dstate=False):
        """Backpropagate through time.

        Parameters
        ----------
        dy : array of the output's shape
            Gradient of the loss with respect to the output.
        dstate : array(s) of the state's shape, optional
            Gradient with respect to the state that `forward` returned.
        accumulate : bool
            Add to `gradients` instead of overwriting them.
        return_dstate : bool

        Returns
        -------
        dx, or (dx, dstate) where return_dstate is true: the gradient with respect to the initial state
        """
        work = self._work
        if work is None or work.output_shape is None:
            raise RuntimeError("backward: call forward in training mode first")
        a = array_of("dy", dy)
        if a.shape != work.output_shape:
            raise ValueError(f"dy: expected shape {work.output_shape}, got {a.shape}")
        rows = work.saved[self]
        dlast = None if dstate is None else self._ordered(self._checked_state("dstate", dstate, rows), rows.order)
        before = self.gradients.copy() if accumulate else None
        dx, dinitial = self._rows_backward(np.array(a, dtype=self.dtype, order="C"), dlast, work, True)
        if accumulate:
            self._flat[1].__iadd__(before)
        dx = np.array(dx)
        if not return_dstate:
            return dx
        first = tuple(np.array(s) for s in self._ordered(dinitial, None if rows.order is None else rows.back_order))
        return dx, first if len(first) > 1 else first[0]

    def _ordered(self, states, order):
        if states is None or order is None:
            return states
        return tuple(np.ascontiguousarray(state[:, order]) for state in states)

    def _checked_state(self, name, state, rows):
        given = state if len(self.states) > 1 else (state,)
        if not isinstance(given, tuple | list) or len(given) != len(self.states):
            raise TypeError(f"{name}: expected a pair (h, c), got {type(state).__name__}")
        shape = (self.num_layers * self.directions, rows.batch, self.hidden_size)
        arrays = []
        for part, value in zip(self.states, given, strict=True):
            a = array_of(name, value)
            which = name if len(given) == 1 else f"{name} ({part})"
            if a.dtype.kind not in "fiub":
                raise TypeError(f"{which}: expected numbers, got dtype {a.dtype}")
            if a.shape != shape:
                raise ValueError(f"{which}: expected shape {shape}, got {a.shape}")
            arrays.append(np.ascontiguousarray(a, dtype=self.dtype))
        return tuple(arrays)


class RNN(_Recurrent):
    __doc__ = f"""Vanilla RNN: h_t = tanh(x_t W + b + h_{{t-1}} U + bU) (Elman 1990).
{_Recurrent.__doc__.partition(chr(10))[2]}"""


class LSTM(_Recurrent):
    __doc__ = f"""Long short-term memory (Hochreiter and Schmidhuber 1997, Gers et al. 2000); gate order i, f, g, o.
{_Recurrent.__doc__.partition(chr(10))[2]}"""

    cell = "lstm"
    gates = 4
    states = ("h", "c")


class GRU(_Recurrent):
    __doc__ = f"""Gated recurrent unit (Cho et al. 2014), the reset gate behind the product; gate order r, z, n.
{_Recurrent.__doc__.partition(chr(10))[2]}"""

    cell = "gru"
    gates = 3
