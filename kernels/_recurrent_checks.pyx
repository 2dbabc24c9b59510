# cython: language_level=3
"""Checks of the recurrent kernels, compiled because every training update calls them."""
import numpy as np

cimport numpy as cnp
from libc.stdint cimport int64_t

from dd2424fast.kernels._checks cimport all_apart, real_matrix, real_vector, result_matrix, result_vector

from dd2424fast.kernels._checks import array

cnp.import_array()

_INT64 = np.dtype(np.int64)


def work_size(int gates, Py_ssize_t H):
    """Elements of scratch memory that a recurrent kernel with so many gates (RNN 1, GRU 3, LSTM 4) needs: U, laid out
    for the time loop, and the biases."""
    return gates * H * ((H + 15) // 16 * 16 + 2 * 16) + (gates + 1) * (H + 16)


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


cdef object scratch(object work, int gates, Py_ssize_t H, int typenum):
    cdef Py_ssize_t size = work_size(gates, H)
    if work is None:
        return result_vector("work", None, size, typenum)
    work = result_vector("work", work, -1 if not isinstance(work, np.ndarray) or work.ndim != 1 else work.shape[0], typenum)
    if work.shape[0] < size:
        raise ValueError(f"work: expected at least {size} elements, got {work.shape[0]}")
    return work


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


def check_rnn_forward(a, b, U, bU, h0, counts, ids=None, h=None, previous=None, h_last=None, work=None):
    a, b, U, bU, h0, counts, ids = forward_inputs(1, a, b, U, bU, h0, counts, ids)
    cdef cnp.ndarray weights = U
    cdef int t = cnp.PyArray_TYPE(weights)
    cdef Py_ssize_t H = cnp.PyArray_DIM(weights, 0), B = first_count(counts), R = len(a) if ids is None else len(ids)
    h = result_matrix("h", h, R, H, t)
    previous = result_matrix("previous", previous, R, H, t)
    h_last = result_matrix("h_last", h_last, B, H, t)
    work = scratch(work, 1, H, t)
    all_apart(("h", "previous", "h_last", "work", "a", "b", "U", "bU", "h0", "counts", "ids"),
              (h, previous, h_last, work, None if h is a and ids is None else a, b, U, bU, h0, counts, ids), 4)
    return a, b, U, bU, h0, counts, ids, h, previous, h_last, work


def check_lstm_forward(a, b, U, bU, h0, c0, counts, ids=None, h=None, previous=None, gates=None, c=None, h_last=None,
                       c_last=None, work=None):
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
    all_apart(("h", "previous", "gates", "c", "h_last", "c_last", "work", "a", "b", "U", "bU", "h0", "c0", "counts", "ids"),
              (h, previous, gates, c, h_last, c_last, work, None if gates is a and ids is None else a, b, U, bU, h0, c0,
               counts, ids), 7)
    return a, b, U, bU, h0, c0, counts, ids, h, previous, gates, c, h_last, c_last, work


def check_gru_forward(a, b, U, bU, h0, counts, ids=None, h=None, previous=None, gates=None, candidate=None, h_last=None,
                      work=None):
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
    all_apart(("h", "previous", "gates", "candidate", "h_last", "work", "a", "b", "U", "bU", "h0", "counts", "ids"),
              (h, previous, gates, candidate, h_last, work, None if gates is a and ids is None else a, b, U, bU, h0, counts,
               ids), 6)
    return a, b, U, bU, h0, counts, ids, h, previous, gates, candidate, h_last, work


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


def check_rnn_backward(dh, dh_last, U, h, counts, da=None, dh0=None, work=None):
    dh, dh_last, U, counts = backward_inputs(1, dh, dh_last, U, counts)
    cdef cnp.ndarray weights = U
    cdef int t = cnp.PyArray_TYPE(weights)
    cdef Py_ssize_t H = cnp.PyArray_DIM(weights, 0), B = first_count(counts), R = len(dh)
    h = real_matrix("h", h, R, H, t)
    da = result_matrix("da", da, R, H, t)
    dh0 = result_matrix("dh0", dh0, B, H, t)
    work = scratch(work, 1, H, t)
    all_apart(("da", "dh0", "work", "dh", "dh_last", "U", "h", "counts"),
              (da, dh0, work, None if da is dh else dh, None if dh0 is dh_last else dh_last, U,
               None if da is h else h, counts), 3)
    return dh, dh_last, U, h, counts, da, dh0, work


def check_lstm_backward(dh, dh_last, dc_last, U, gates, c, c0, counts, da=None, dh0=None, dc0=None, work=None):
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
    all_apart(("da", "dh0", "dc0", "work", "dh", "dh_last", "dc_last", "U", "gates", "c", "c0", "counts"),
              (da, dh0, dc0, work, dh, None if dh0 is dh_last else dh_last, None if dc0 is dc_last else dc_last, U,
               None if da is gates else gates, c, c0, counts), 4)
    return dh, dh_last, dc_last, U, gates, c, c0, counts, da, dh0, dc0, work


def check_gru_backward(dh, dh_last, U, previous, gates, candidate, counts, da=None, du=None, dh0=None, work=None):
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
    all_apart(("da", "du", "dh0", "work", "dh", "dh_last", "U", "previous", "gates", "candidate", "counts"),
              (da, du, dh0, work, dh, None if dh0 is dh_last else dh_last, U, previous, None if da is gates else gates,
               candidate, counts), 4)
    return dh, dh_last, U, previous, gates, candidate, counts, da, du, dh0, work


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
