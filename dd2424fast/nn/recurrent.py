"""Recurrent layers and embeddings."""

import functools
from functools import partial

import numpy as np

from .. import kernels
from ..configuration import array_of, positive_integer, real_in
from ..kernels.recurrent import work_size
from .layers import normal, uniform
from .module import DROPOUT, Module, _pass


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
        self._check_shape(x)
        return x

    def _forward(self, x, work):
        ids = x.reshape(-1)
        y = kernels.take_rows(self._weight.value, ids, work.array(self, "y", (ids.size, self.dim), self.dtype))
        if work.training:
            work.saved[self] = ids
        return y.reshape(*x.shape, self.dim)

    def _backward(self, dy, work, need_dx):
        kernels.scatter_rows(dy.reshape(-1, self.dim), work.saved[self], self._weight.gradient)


class _Strand:
    """One layer in one direction: its four parameters, and the order of kernels."""

    def __init__(self, owner, suffix):
        self.gates, self.hidden = owner.gates, owner.hidden_size
        self.cell = owner.cell
        names = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
        self.W, self.U, self.b, self.bU = (owner._own.get(name + suffix) for name in names)

    @property
    def dtype(self):
        return self.U.value.dtype

    def _memory(self, rows, table, work):
        """(a or gates, h, previous, c, du, scratch) for so many rows; what a cell does not need is None. Where the
        input's part is no table, the gates (of a vanilla RNN, the states) take its place."""
        found = work.saved.get((self, "memory"))
        if found is not None and found[0] == (rows, table):
            return found[1]
        H, G, cell = self.hidden, self.gates, self.cell
        gates = None if cell == "rnn" and table else work.array(self, "gates", (rows, G * H), self.dtype)
        memory = (
            gates,
            gates if cell == "rnn" and not table else work.array(self, "h", (rows, H), self.dtype),
            work.array(self, "previous", (rows, H), self.dtype),
            None if cell == "rnn" else work.array(self, "c", (rows, H), self.dtype),
            work.array(self, "du", (rows, G * H), self.dtype) if cell == "gru" and work.training else None,
            work.array(self, "scratch", (work_size(G, H),), self.dtype),
        )
        work.saved[self, "memory"] = (rows, table), memory
        return memory

    def forward(self, x, ids, counts, initial, last, work):
        """Run; returns h of every row.

        x : rows, or the table that ids index (already the input's part of the gates)
        initial, last : for each state (B, H): where to begin (or None: zeros), and where to put the last ones
        """
        rows = len(x) if ids is None else len(ids)
        gates, h, previous, c, _, scratch = memory = self._memory(rows, ids is not None, work)
        a = x if ids is not None else kernels.linear_forward(x, self.W.value, None, "identity", gates)
        b, bU = (None, None) if self.b is None else (self.b.value, self.bU.value)
        U = self.U.value
        if self.cell == "rnn":
            kernels.rnn_forward(a, b, U, bU, initial[0], counts, ids, h, previous, last[0], scratch)
        elif self.cell == "lstm":
            kernels.lstm_forward(
                a, b, U, bU, initial[0], initial[1], counts, ids, h, previous, gates, c, last[0], last[1], scratch
            )
        else:
            kernels.gru_forward(a, b, U, bU, initial[0], counts, ids, h, previous, gates, c, last[0], scratch)
        if work.training:
            work.saved[self] = x, ids, counts, initial, memory
        return h

    def backward(self, dh, dlast, dinitial, work, need_dx, dtable=None):
        """Back through time; returns dx of every row, or None. dh may be overwritten.

        dlast, dinitial : for each state (B, H): its gradient at the end (or None: zeros), and where to put that at the
            start
        dtable : where the gradient of the table goes; default: the input weights', which then are the table
        """
        if self not in work.saved:
            raise RuntimeError("backward: it has overwritten what forward kept; call forward again")
        x, ids, counts, initial, (gates, h, previous, c, du, scratch) = work.saved.pop(self)
        U, H, bias = self.U.value, self.hidden, self.bU is not None
        watched = None
        if work.flow is not None:  # the kernels overwrite them
            watched = dh.copy(), gates[:, H : 2 * H].copy() if self.cell == "gru" else None
        if self.cell == "rnn":
            da = du = dh
            kernels.rnn_backward(dh, dlast[0], U, h, counts, da, dinitial[0], scratch)
        elif self.cell == "lstm":
            da = du = gates
            kernels.lstm_backward(
                dh, dlast[0], dlast[1], U, gates, c, initial[1], counts, da, dinitial[0], dinitial[1], scratch
            )
        else:
            da = gates
            kernels.gru_backward(dh, dlast[0], U, previous, gates, c, counts, da, du, dinitial[0], scratch)
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

    def _total_gradient(self, dh, z, dlast, du, counts):
        """dL/dh of every row, with what flows back through time; dh, what comes from above, becomes it.

        dh_t += du_{t+1} U^T  (+ dh_{t+1} z_{t+1} in a GRU)
        """
        back = kernels.linear_forward(du, np.ascontiguousarray(self.U.value.T), None, "identity")
        starts = np.cumsum([0, *counts])
        goes_on = [*counts[1:], 0]  # sequences that run at the next step too
        for t in reversed(range(len(counts))):
            here, next_one = (slice(start, start + goes_on[t]) for start in starts[t : t + 2])
            dh[here] += back[next_one]
            if z is not None:
                dh[here] += dh[next_one] * z[next_one]
            if dlast is not None:
                dh[starts[t] + goes_on[t] : starts[t + 1]] += dlast[goes_on[t] : counts[t]]
        return dh


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
    dtype, seed : see Module
    """

    cell = "rnn"
    gates = 1
    states = ("h",)

    def __init__(
        self, input_size, hidden_size, num_layers=1, dropout=0.0, bidirectional=False, bias=True, *,
        dtype="float32", seed=None,
    ):  # fmt: skip
        super().__init__(dtype=dtype, seed=seed)
        self.input_size = positive_integer("input_size", input_size)
        self.hidden_size = positive_integer("hidden_size", hidden_size)
        self.num_layers = positive_integer("num_layers", num_layers)
        self.dropout = real_in("dropout", dropout, 0, 1, include_high=False)
        self.directions = 2 if bidirectional else 1
        width, draw = self.gates * hidden_size, partial(uniform, hidden_size**-0.5)
        suffixes = ("", "_reverse")[: self.directions]
        for layer in range(num_layers):
            inputs = hidden_size * self.directions if layer else input_size
            for suffix in suffixes:
                self.add(f"weight_ih_l{layer}{suffix}", (inputs, width), draw, transposed=True)
                self.add(f"weight_hh_l{layer}{suffix}", (hidden_size, width), draw, transposed=True)
                if bias:
                    self.add(f"bias_ih_l{layer}{suffix}", (width,), draw)
                    self.add(f"bias_hh_l{layer}{suffix}", (width,), draw)
        self._suffixes = suffixes
        self._lay_strands()

    def _lay_strands(self):
        self._strands = [
            [_Strand(self, f"_l{layer}{suffix}") for suffix in self._suffixes] for layer in range(self.num_layers)
        ]

    def __setstate__(self, state):
        super().__setstate__(state)
        self._lay_strands()

    @property
    def output_size(self):
        return self.hidden_size * self.directions

    # ---- the passes over rows ----------------------------------------------------------------------------------------

    def state_arrays(self, owner, name, batch, work):
        """For each state, memory of shape (num_layers * directions, batch, hidden_size)."""
        shape = (self.num_layers * self.directions, batch, self.hidden_size)
        return tuple([work.array(owner, (name, state), shape, self.dtype) for state in self.states])

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
                if d == 0:
                    outputs.append(strand.forward(x, ids, counts, begin, end, work))
                    continue
                back = self._mirrored(x, rows, (layer, "x"), work) if ids is None else x
                h = strand.forward(back, None if ids is None else ids[rows.reverse], counts, begin, end, work)
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

    def _drop(self, x, layer, work):
        """Dropout between two layers; its backward pass is the same. The recurrent kernels keep x itself."""
        if not work.training or not self.dropout:
            return x
        key = kernels.stream_key(work.seed, (DROPOUT << 32) + (layer << 16) + self._place, work.update)
        return kernels.dropout(x, self.dropout, key, work.array(self, (layer, "dropped"), x.shape, self.dtype))

    def _mirrored(self, x, rows, name, work):
        return kernels.take_rows(x, rows.reverse, work.array(self, (*name, "mirrored"), x.shape, self.dtype))

    # ---- the layer on its own ----------------------------------------------------------------------------------------

    def _check_shape(self, x):
        if x.ndim != 3 or x.shape[2] != self.input_size:
            raise ValueError(f"x: expected shape (batch, time, {self.input_size}), got {x.shape}")

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
