# cython: language_level=3
"""Checks of the recurrent kernels, compiled because every training update calls them."""
import numpy as np

cimport numpy as cnp
from libc.stdint cimport int64_t

from dd2424fast.kernels._checks cimport all_apart, real_matrix, real_vector, result_matrix, result_vector

from dd2424fast.kernels._checks import array
from dd2424fast.kernels._random_checks import check_probability

cnp.import_array()

_INT64, _UINT8 = np.dtype(np.int64), np.dtype(np.uint8)


cdef Py_ssize_t unit_size(int gates, Py_ssize_t H) noexcept nogil:
    """Elements that U takes in the matrix unit's parts."""
    return gates * ((H + 15) // 16) * ((H + 31) // 32) * 768


def work_size(int gates, Py_ssize_t H, Py_ssize_t normed=0):
    """Elements of scratch memory that a recurrent kernel with so many gates (RNN 1, GRU 3, LSTM 4) needs: U, laid out
    for the time loop, and the biases; `normed`: the sequences of an LSTM with layer normalisation, which needs 8 H for each."""
    return max(gates * H * ((H + 15) // 16 * 16), unit_size(gates, H)) + 32 * gates * H + (gates + 1) * (H + 16) + 8 * H * normed


cdef cnp.ndarray checked_ids(object ids, Py_ssize_t rows, Py_ssize_t V):
    """Rows of a table of V rows."""
    cdef cnp.ndarray a = array("ids", ids, (None if rows < 0 else rows,), _INT64)
    cdef const int64_t* id = <const int64_t*> cnp.PyArray_DATA(a)
    cdef Py_ssize_t i
    cdef bint bad = False
    for i in range(cnp.PyArray_DIM(a, 0)):
        bad |= id[i] < 0 or id[i] >= V
    if bad:
        i = int(np.flatnonzero((a < 0) | (a >= V))[0])
        raise ValueError(f"ids: expected numbers from 0 to {V - 1}, got {a[i]} at {i}")
    return a


cdef cnp.ndarray checked_counts(object counts, Py_ssize_t rows):
    """At least 1, never growing, with sum `rows` (any where that is -1)."""
    cdef cnp.ndarray a = array("counts", counts, (None,), _INT64)
    cdef const int64_t* n = <const int64_t*> cnp.PyArray_DATA(a)
    cdef Py_ssize_t t, T = cnp.PyArray_DIM(a, 0), total = 0
    if T < 1:
        raise ValueError("counts: expected at least 1 step, got shape (0,)")
    for t in range(T):
        if n[t] < 1 or (t > 0 and n[t] > n[t - 1]) or n[t] > (<int64_t> 1 << 40):
            raise ValueError(f"counts: expected numbers of at least 1 that never grow, got {n[t]} at {t}")
        total += n[t]
        if total > rows:    # before it could overflow
            break
    if 0 <= rows != total:
        raise ValueError(f"counts: expected a sum of {rows}, the number of rows, got {total}")
    return a


cdef inline Py_ssize_t first_count(cnp.ndarray counts) noexcept:
    return (<const int64_t*> cnp.PyArray_DATA(counts))[0]


cdef inline object vector_or_none(str name, object v, Py_ssize_t size, int typenum):
    return None if v is None else real_vector(name, v, size, typenum)


cdef inline object matrix_or_none(str name, object m, Py_ssize_t rows, Py_ssize_t columns, int typenum):
    return None if m is None else real_matrix(name, m, rows, columns, typenum)


cdef object scratch(object work, int gates, Py_ssize_t H, int typenum, Py_ssize_t normed=0):
    cdef Py_ssize_t size = work_size(gates, H, normed)
    if work is None:
        return result_vector("work", None, size, typenum)
    work = result_vector("work", work, -1 if not isinstance(work, np.ndarray) or work.ndim != 1 else work.shape[0], typenum)
    if work.shape[0] < size:
        raise ValueError(f"work: expected at least {size} elements, got {work.shape[0]}")
    return work


cdef object checked_noise(object noise, int gates, Py_ssize_t R, Py_ssize_t H, bint backward):
    """(zoneout, zoneout_cell, dropout, flags), or None."""
    if noise is None:
        return None
    if not isinstance(noise, tuple) or len(noise) != 4:
        raise TypeError(f"noise: expected a CellNoise, got {type(noise).__name__}")
    zoneout, zoneout_cell, dropout, flags = noise
    zoneout = check_probability("noise.zoneout", zoneout)
    zoneout_cell = check_probability("noise.zoneout_cell", zoneout_cell)
    dropout = check_probability("noise.dropout", dropout)
    if gates != 4 and zoneout_cell:
        raise ValueError(f"noise.zoneout_cell: expected 0 (only an LSTM has a cell), got {zoneout_cell}")
    if gates == 1 and dropout:
        raise ValueError(f"noise.dropout: expected 0 (a vanilla RNN adds no candidate to its state), got {dropout}")
    if flags is not None:
        flags = array("noise.flags", flags, (R, H), _UINT8)
    elif backward:
        raise TypeError("noise.flags: expected those of the forward pass, got None")
    return zoneout, zoneout_cell, dropout, flags


cdef inline object flags_of(object noise):
    return None if noise is None else noise[3]


cdef tuple forward_inputs(int gates, a, b, U, bU, h0, counts, ids):
    """(a, b, U, bU, h0, counts, ids), checked."""
    cdef cnp.ndarray weights = real_matrix("U", U, -1, -1, -1)
    cdef int t = cnp.PyArray_TYPE(weights)
    cdef Py_ssize_t H = cnp.PyArray_DIM(weights, 0), width = gates * H
    if H < 1 or cnp.PyArray_DIM(weights, 1) != width:
        shown = "H" if gates == 1 else f"{gates} H"
        raise ValueError(f"U: expected shape (H, {shown}) with H of at least 1, got {U.shape}")
    a = real_matrix("a", a, -1, width, t)
    if ids is None:
        counts = checked_counts(counts, a.shape[0])
    else:
        ids = checked_ids(ids, -1, a.shape[0])
        counts = checked_counts(counts, ids.shape[0])
    return (a, vector_or_none("b", b, width, t), weights, vector_or_none("bU", bU, width, t),
            matrix_or_none("h0", h0, first_count(counts), H, t), counts, ids)


cdef object not_shared(cnp.ndarray h, cnp.ndarray previous, cnp.ndarray counts):
    """What of `previous` must not overlap other arrays: its first rows alone where it is h one step later, which it may be as long as
    all sequences run: each row of h then is the next step's row of `previous`."""
    cdef Py_ssize_t B = first_count(counts)
    cdef const int64_t* n = <const int64_t*> cnp.PyArray_DATA(counts)
    if n[cnp.PyArray_DIM(counts, 0) - 1] != B:
        return previous
    if <char*> cnp.PyArray_DATA(previous) + B * cnp.PyArray_STRIDE(h, 0) != <char*> cnp.PyArray_DATA(h):
        return previous
    return previous[:B]


def check_rnn_forward(a, b, U, bU, h0, counts, ids=None, h=None, previous=None, h_last=None, work=None,
                      noise=None):
    a, b, U, bU, h0, counts, ids = forward_inputs(1, a, b, U, bU, h0, counts, ids)
    cdef cnp.ndarray weights = U
    cdef int t = cnp.PyArray_TYPE(weights)
    cdef Py_ssize_t H = cnp.PyArray_DIM(weights, 0), B = first_count(counts), R = len(a) if ids is None else len(ids)
    h = result_matrix("h", h, R, H, t)
    previous = result_matrix("previous", previous, R, H, t)
    h_last = result_matrix("h_last", h_last, B, H, t)
    work = scratch(work, 1, H, t)
    noise = checked_noise(noise, 1, R, H, False)
    all_apart(("h", "previous", "h_last", "work", "a", "b", "U", "bU", "h0", "counts", "ids", "noise.flags"),
              (h, not_shared(h, previous, counts), h_last, work, None if h is a and ids is None else a, b, U, bU, h0, counts, ids,
               flags_of(noise)), 4)
    return a, b, U, bU, h0, counts, ids, h, previous, h_last, work, noise


def check_lstm_forward(a, b, U, bU, h0, c0, counts, ids=None, h=None, previous=None, gates=None, c=None, h_last=None,
                       c_last=None, work=None, noise=None):
    a, b, U, bU, h0, counts, ids = forward_inputs(4, a, b, U, bU, h0, counts, ids)
    cdef cnp.ndarray weights = U
    cdef int t = cnp.PyArray_TYPE(weights)
    cdef Py_ssize_t H = cnp.PyArray_DIM(weights, 0), B = first_count(counts), R = len(a) if ids is None else len(ids)
    c0 = matrix_or_none("c0", c0, B, H, t)
    h = result_matrix("h", h, R, H, t)
    previous = result_matrix("previous", previous, R, H, t)
    gates = result_matrix("gates", gates, R, 4 * H, t)
    c = result_matrix("c", c, R, H, t)
    h_last = result_matrix("h_last", h_last, B, H, t)
    c_last = result_matrix("c_last", c_last, B, H, t)
    work = scratch(work, 4, H, t)
    noise = checked_noise(noise, 4, R, H, False)
    all_apart(("h", "previous", "gates", "c", "h_last", "c_last", "work", "a", "b", "U", "bU", "h0", "c0", "counts", "ids",
               "noise.flags"),
              (h, not_shared(h, previous, counts), gates, c, h_last, c_last, work, None if gates is a and ids is None else a,
               b, U, bU, h0, c0, counts, ids, flags_of(noise)), 7)
    return a, b, U, bU, h0, c0, counts, ids, h, previous, gates, c, h_last, c_last, work, noise


cdef double checked_eps(object eps) except -1:
    cdef double value
    if isinstance(eps, bool) or not isinstance(eps, (int, float, np.integer, np.floating)):
        raise TypeError(f"eps: expected a number, got {eps!r}")
    try:
        value = eps
    except OverflowError:  # an int that no double holds
        value = np.inf
    if not 0 <= value < np.inf:
        raise ValueError(f"eps: expected a finite number of at least 0, got {eps!r}")
    return value


def check_lstm_norm_forward(a, b, U, bU, gain, gain_c, shift_c, h0, c0, counts, ids=None, h=None, previous=None, gates=None,
                            c=None, sums=None, statistics=None, h_last=None, c_last=None, work=None, noise=None, eps=1e-5):
    a, b, U, bU, h0, counts, ids = forward_inputs(4, a, b, U, bU, h0, counts, ids)
    cdef cnp.ndarray weights = U
    cdef int t = cnp.PyArray_TYPE(weights)
    cdef Py_ssize_t H = cnp.PyArray_DIM(weights, 0), B = first_count(counts), R = len(a) if ids is None else len(ids)
    gain = real_vector("gain", gain, 4 * H, t)
    gain_c = real_vector("gain_c", gain_c, H, t)
    shift_c = real_vector("shift_c", shift_c, H, t)
    c0 = matrix_or_none("c0", c0, B, H, t)
    h = result_matrix("h", h, R, H, t)
    previous = result_matrix("previous", previous, R, H, t)
    gates = result_matrix("gates", gates, R, 4 * H, t)
    c = result_matrix("c", c, R, H, t)
    sums = result_matrix("sums", sums, R, 4 * H, t)
    statistics = result_matrix("statistics", statistics, R, 4, t)
    h_last = result_matrix("h_last", h_last, B, H, t)
    c_last = result_matrix("c_last", c_last, B, H, t)
    work = scratch(work, 4, H, t, B)
    noise = checked_noise(noise, 4, R, H, False)
    all_apart(("h", "previous", "gates", "c", "sums", "statistics", "h_last", "c_last", "work", "a", "b", "U", "bU", "gain",
               "gain_c", "shift_c", "h0", "c0", "counts", "ids", "noise.flags"),
              (h, not_shared(h, previous, counts), gates, c, sums, statistics, h_last, c_last, work,
               None if gates is a and ids is None else a, b, U, bU, gain, gain_c, shift_c, h0, c0, counts, ids, flags_of(noise)), 9)
    return (a, b, U, bU, gain, gain_c, shift_c, h0, c0, counts, ids, h, previous, gates, c, sums, statistics, h_last, c_last,
            work, noise, checked_eps(eps))


def check_gru_forward(a, b, U, bU, h0, counts, ids=None, h=None, previous=None, gates=None, candidate=None, h_last=None,
                      work=None, noise=None):
    a, b, U, bU, h0, counts, ids = forward_inputs(3, a, b, U, bU, h0, counts, ids)
    cdef cnp.ndarray weights = U
    cdef int t = cnp.PyArray_TYPE(weights)
    cdef Py_ssize_t H = cnp.PyArray_DIM(weights, 0), B = first_count(counts), R = len(a) if ids is None else len(ids)
    h = result_matrix("h", h, R, H, t)
    previous = result_matrix("previous", previous, R, H, t)
    gates = result_matrix("gates", gates, R, 3 * H, t)
    candidate = result_matrix("candidate", candidate, R, H, t)
    h_last = result_matrix("h_last", h_last, B, H, t)
    work = scratch(work, 3, H, t)
    noise = checked_noise(noise, 3, R, H, False)
    all_apart(("h", "previous", "gates", "candidate", "h_last", "work", "a", "b", "U", "bU", "h0", "counts", "ids", "noise.flags"),
              (h, not_shared(h, previous, counts), gates, candidate, h_last, work, None if gates is a and ids is None else a,
               b, U, bU, h0, counts, ids, flags_of(noise)), 6)
    return a, b, U, bU, h0, counts, ids, h, previous, gates, candidate, h_last, work, noise


cdef tuple backward_inputs(int gates, dh, dh_last, U, counts):
    """(dh, dh_last, U, counts), checked."""
    cdef cnp.ndarray weights = real_matrix("U", U, -1, -1, -1)
    cdef int t = cnp.PyArray_TYPE(weights)
    cdef Py_ssize_t H = cnp.PyArray_DIM(weights, 0)
    if H < 1 or cnp.PyArray_DIM(weights, 1) != gates * H:
        shown = "H" if gates == 1 else f"{gates} H"
        raise ValueError(f"U: expected shape (H, {shown}) with H of at least 1, got {U.shape}")
    dh = real_matrix("dh", dh, -1, H, t)
    counts = checked_counts(counts, dh.shape[0])
    return dh, matrix_or_none("dh_last", dh_last, first_count(counts), H, t), weights, counts


def check_rnn_backward(dh, dh_last, U, h, counts, da=None, dh0=None, work=None, noise=None):
    dh, dh_last, U, counts = backward_inputs(1, dh, dh_last, U, counts)
    cdef cnp.ndarray weights = U
    cdef int t = cnp.PyArray_TYPE(weights)
    cdef Py_ssize_t H = cnp.PyArray_DIM(weights, 0), B = first_count(counts), R = len(dh)
    h = real_matrix("h", h, R, H, t)
    da = result_matrix("da", da, R, H, t)
    dh0 = result_matrix("dh0", dh0, B, H, t)
    work = scratch(work, 1, H, t)
    noise = checked_noise(noise, 1, R, H, True)
    all_apart(("da", "dh0", "work", "dh", "dh_last", "U", "h", "counts", "noise.flags"),
              (da, dh0, work, None if da is dh else dh, None if dh0 is dh_last else dh_last, U,
               None if da is h else h, counts, flags_of(noise)), 3)
    return dh, dh_last, U, h, counts, da, dh0, work, noise


def check_lstm_backward(dh, dh_last, dc_last, U, gates, c, c0, counts, da=None, dh0=None, dc0=None, work=None,
                        noise=None):
    dh, dh_last, U, counts = backward_inputs(4, dh, dh_last, U, counts)
    cdef cnp.ndarray weights = U
    cdef int t = cnp.PyArray_TYPE(weights)
    cdef Py_ssize_t H = cnp.PyArray_DIM(weights, 0), B = first_count(counts), R = len(dh)
    dc_last = matrix_or_none("dc_last", dc_last, B, H, t)
    c0 = matrix_or_none("c0", c0, B, H, t)
    gates = real_matrix("gates", gates, R, 4 * H, t)
    c = real_matrix("c", c, R, H, t)
    da = result_matrix("da", da, R, 4 * H, t)
    dh0 = result_matrix("dh0", dh0, B, H, t)
    dc0 = result_matrix("dc0", dc0, B, H, t)
    work = scratch(work, 4, H, t)
    noise = checked_noise(noise, 4, R, H, True)
    all_apart(("da", "dh0", "dc0", "work", "dh", "dh_last", "dc_last", "U", "gates", "c", "c0", "counts", "noise.flags"),
              (da, dh0, dc0, work, dh, None if dh0 is dh_last else dh_last, None if dc0 is dc_last else dc_last, U,
               None if da is gates else gates, c, c0, counts, flags_of(noise)), 4)
    return dh, dh_last, dc_last, U, gates, c, c0, counts, da, dh0, dc0, work, noise


def check_lstm_norm_backward(dh, dh_last, dc_last, U, gain, gain_c, shift_c, gates, c, c0, sums, statistics, counts, da=None,
                             du=None, dgain=None, dgain_c=None, dshift_c=None, dh0=None, dc0=None, work=None, noise=None):
    dh, dh_last, U, counts = backward_inputs(4, dh, dh_last, U, counts)
    cdef cnp.ndarray weights = U
    cdef int t = cnp.PyArray_TYPE(weights)
    cdef Py_ssize_t H = cnp.PyArray_DIM(weights, 0), B = first_count(counts), R = len(dh)
    dc_last = matrix_or_none("dc_last", dc_last, B, H, t)
    gain = real_vector("gain", gain, 4 * H, t)
    gain_c = real_vector("gain_c", gain_c, H, t)
    shift_c = real_vector("shift_c", shift_c, H, t)
    gates = real_matrix("gates", gates, R, 4 * H, t)
    c = real_matrix("c", c, R, H, t)
    c0 = matrix_or_none("c0", c0, B, H, t)
    sums = real_matrix("sums", sums, R, 4 * H, t)
    statistics = real_matrix("statistics", statistics, R, 4, t)
    da = result_matrix("da", da, R, 4 * H, t)
    du = result_matrix("du", du, R, 4 * H, t)
    dgain = result_vector("dgain", dgain, 4 * H, t)
    dgain_c = result_vector("dgain_c", dgain_c, H, t)
    dshift_c = result_vector("dshift_c", dshift_c, H, t)
    dh0 = result_matrix("dh0", dh0, B, H, t)
    dc0 = result_matrix("dc0", dc0, B, H, t)
    work = scratch(work, 4, H, t, B)
    noise = checked_noise(noise, 4, R, H, True)
    all_apart(("da", "du", "dgain", "dgain_c", "dshift_c", "dh0", "dc0", "work", "dh", "dh_last", "dc_last", "U", "gain", "gain_c",
               "shift_c", "gates", "c", "c0", "sums", "statistics", "counts", "noise.flags"),
              (da, du, dgain, dgain_c, dshift_c, dh0, dc0, work, dh, None if dh0 is dh_last else dh_last,
               None if dc0 is dc_last else dc_last, U, gain, gain_c, shift_c, None if da is gates else gates, c, c0,
               None if du is sums else sums, statistics, counts, flags_of(noise)), 8)
    return (dh, dh_last, dc_last, U, gain, gain_c, shift_c, gates, c, c0, sums, statistics, counts, da, du, dgain, dgain_c,
            dshift_c, dh0, dc0, work, noise)


def check_gru_backward(dh, dh_last, U, previous, gates, candidate, counts, da=None, du=None, dh0=None, work=None,
                       noise=None):
    dh, dh_last, U, counts = backward_inputs(3, dh, dh_last, U, counts)
    cdef cnp.ndarray weights = U
    cdef int t = cnp.PyArray_TYPE(weights)
    cdef Py_ssize_t H = cnp.PyArray_DIM(weights, 0), B = first_count(counts), R = len(dh)
    previous = real_matrix("previous", previous, R, H, t)
    gates = real_matrix("gates", gates, R, 3 * H, t)
    candidate = real_matrix("candidate", candidate, R, H, t)
    da = result_matrix("da", da, R, 3 * H, t)
    du = result_matrix("du", du, R, 3 * H, t)
    dh0 = result_matrix("dh0", dh0, B, H, t)
    work = scratch(work, 3, H, t)
    noise = checked_noise(noise, 3, R, H, True)
    all_apart(("da", "du", "dh0", "work", "dh", "dh_last", "U", "previous", "gates", "candidate", "counts", "noise.flags"),
              (da, du, dh0, work, dh, None if dh0 is dh_last else dh_last, U, previous, None if da is gates else gates,
               candidate, counts, flags_of(noise)), 4)
    return dh, dh_last, U, previous, gates, candidate, counts, da, du, dh0, work, noise


def check_take_rows(table, ids, out=None):
    cdef cnp.ndarray source = real_matrix("table", table, -1, -1, -1)
    cdef int t = cnp.PyArray_TYPE(source)
    ids = checked_ids(ids, -1, cnp.PyArray_DIM(source, 0))
    out = result_matrix("out", out, len(ids), cnp.PyArray_DIM(source, 1), t)
    all_apart(("out", "table", "ids"), (out, source, ids), 1)
    return source, ids, out


def check_scatter_rows(dy, ids, dtable, accumulate=False):
    cdef cnp.ndarray rows = real_matrix("dy", dy, -1, -1, -1)
    cdef int t = cnp.PyArray_TYPE(rows)
    if not isinstance(dtable, np.ndarray) or dtable.ndim != 2:
        raise TypeError(f"dtable: expected a matrix to put the result in, got {type(dtable).__name__}")
    dtable = result_matrix("dtable", dtable, dtable.shape[0], cnp.PyArray_DIM(rows, 1), t)
    ids = checked_ids(ids, cnp.PyArray_DIM(rows, 0), dtable.shape[0])
    all_apart(("dtable", "dy", "ids"), (dtable, rows, ids), 1)
    return rows, ids, dtable, bool(accumulate)
