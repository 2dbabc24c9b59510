"""RNN, LSTM and GRU through time; compiled for float32 and float64. Arguments come checked (kernels/recurrent.py).

U is packed once per call. Forward, a panel holds all gates of one vector of units, so that the tile which finishes their
sums applies the gates before they leave the registers; backward, the transpose lies in the product's own panels. Threads
share out the sequences: each runs the whole time loop for its own, without waiting for the others. Of large layers they
share out the units instead, and wait for each other at every step (by_units).

One sequence alone meets U once a step: there packing costs more than it brings, and U is read where it lies, as many
columns (forward) or rows (backward) at a time as keep the multiply-adds from waiting for each other.
"""
from cython.parallel cimport parallel, prange, threadid
from dd2424fast.kernels._recurrent_checks cimport unit_size
from dd2424fast.kernels._team cimport team_size

include "vec.pxi"
include "tile.pxi"
include "activation.pxi"
include "product.pxi"
include "gates.pxi"
include "unit_gates.pxi"

cdef enum:
    GRAIN = 2000000     # floating-point operations that are worth a thread
    PANELS_NEAR = 1800000   # bytes of panels that stay in the second cache from step to step

cdef extern from * nogil:
    """
    #ifdef _OPENMP
    #include <omp.h>
    static int threads_here(void) { return omp_get_num_threads(); }
    static void meet(void) {
        #pragma omp barrier
    }
    #else
    static int threads_here(void) { return 1; }
    static void meet(void) {}
    #endif
    """
    int threads_here()      # inside a parallel block
    void meet()             # wait until all of them are here

cdef inline real* pointer(object a) noexcept:
    return NULL if a is None else data(<cnp.ndarray> a)


cdef Layer layer_of(int gates, cnp.ndarray U, cnp.ndarray counts, cnp.ndarray work) noexcept:
    cdef Layer s
    memset(&s, 0, sizeof(Layer))
    s.gates = gates
    s.H = cnp.PyArray_DIM(U, 0)
    s.U = data(U)
    s.counts = <const int64_t*> cnp.PyArray_DATA(counts)
    s.T = cnp.PyArray_DIM(counts, 0)
    s.B = s.counts[0]
    # A panel begins at a cache line where the memory allows it.
    s.panels = data(work) + vec_misaligned(data(work))
    # U in parts that do not stay in the second cache must serve more sequences than it takes to fill a tile.
    s.on_unit = (MATRIX_UNIT and matrix_unit() and s.H <= UNIT_LONGEST
                 and s.B >= (16 if 6 * gates * s.H * s.H <= PANELS_NEAR else 32))
    s.bias = s.panels + max(gates * s.H * ((s.H + LANES - 1) // LANES * LANES), unit_size(gates, s.H))
    s.norm.gradients = s.bias + (gates + 1) * s.H       # there only with layer normalisation
    return s


cdef void set_noise(Layer* s, object noise) except *:
    if noise is None:
        return
    zoneout, zoneout_cell, dropout, flags = noise
    s.noisy = True
    # Cython takes `real` for a float: left to itself, it would round a Python number to one, in float64 too.
    s.zoneout, s.zoneout_cell, s.scale = <double> zoneout, <double> zoneout_cell, 1 / (1 - <double> dropout)
    s.flags = NULL if flags is None else <const unsigned char*> cnp.PyArray_DATA(<cnp.ndarray> flags)


cdef void pack_gates(Layer* s) noexcept nogil:
    """Panels of (H, gates * LANES): all gates of one vector of units, side by side."""
    cdef Py_ssize_t H = s.H, u = 0, k, size
    cdef real* to = s.panels
    cdef const real* row
    cdef int g
    while u < H:
        size = min(<Py_ssize_t> LANES, H - u)
        row = s.U + u
        for k in range(H):
            for g in range(s.gates):
                vec_store(to, load_some(row + g * H, size))
                to += LANES
            row += s.gates * H
        u += LANES


# ---- sharing out -----------------------------------------------------------------------------------------------------

cdef Py_ssize_t share_begins(const Layer* s, int part, int parts) noexcept nogil:
    """The first sequence of a share, so that all shares have about as many rows."""
    cdef Py_ssize_t t, j, rows = 0, before = 0, length = s.T
    if part == 0:
        return 0
    if part == parts:
        return s.B
    for t in range(s.T):
        rows += s.counts[t]
    for j in range(s.B):
        while s.counts[length - 1] <= j:
            length -= 1
        if 2 * before + length >= 2 * (rows * part // parts):
            return j
        before += length
    return s.B


cdef Py_ssize_t units_begin(const Layer* s, int part, int parts) noexcept nogil:
    """The first unit of a share of whole panels."""
    return s.H if part == parts else panels_of((s.H + LANES - 1) // LANES) * part // parts * 2 * LANES


cdef bint by_units(const Layer* s, int threads) noexcept nogil:
    """Whether each thread takes some units of all sequences: every thread reads all panels at every step where it has some sequences,
    which few of them do not repay once the panels leave the second cache."""
    cdef Py_ssize_t size = s.gates * s.H * s.H * (6 if s.on_unit else <Py_ssize_t> sizeof(real))
    return (threads > 1 and 1 < s.B < 64 * threads and s.norm.gain == NULL and size > PANELS_NEAR
            and 2.0 * s.gates * s.H * s.H * s.B >= <double> GRAIN * threads     # a step repays that the threads meet
            and panels_of((s.H + LANES - 1) // LANES) >= 2 * threads)


ctypedef struct Share:
    Py_ssize_t first, stop      # sequences
    Py_ssize_t unit, end        # units
    bint together               # other threads have other units of these sequences: meet them at every step

ctypedef void (*Pass)(const Layer* s, const Share* mine) noexcept nogil


cdef void walk_with(Pass walk, const Layer* s, Py_ssize_t first, Py_ssize_t stop, Py_ssize_t unit, Py_ssize_t end,
                    bint together) noexcept nogil:
    cdef Share mine
    mine.first, mine.stop, mine.unit, mine.end, mine.together = first, stop, unit, end, together
    walk(s, &mine)


cdef void run(Pass walk, const Layer* s) noexcept nogil:
    """Let the team walk through time, each thread with its own sequences or its own units."""
    cdef Py_ssize_t t, rows = 0
    cdef int part, parts
    for t in range(s.T):
        rows += s.counts[t]
    parts = team_size(2.0 * s.gates * rows * s.H * s.H, GRAIN)
    if by_units(s, parts):
        with parallel(num_threads=parts):
            part = threadid()
            walk_with(walk, s, 0, s.B, units_begin(s, part, threads_here()), units_begin(s, part + 1, threads_here()), True)
        return
    parts = <int> min(<Py_ssize_t> parts, s.B)
    if parts == 1:
        walk_with(walk, s, 0, s.B, 0, s.H, False)
    else:
        for part in prange(parts, num_threads=parts, schedule="static", chunksize=1):
            walk_with(walk, s, share_begins(s, part, parts), share_begins(s, part + 1, parts), 0, s.H, False)


# ---- forward ---------------------------------------------------------------------------------------------------------

cdef inline forced_inline_void gate_tile(const int R, const int G, const int V, const Layer* s, const Step* at, Py_ssize_t j,
                                         const real* panel, Py_ssize_t panel_size, Py_ssize_t u) noexcept nogil:
    """R sequences from j on, V vectors of units (all G gates) from u on: V G sums a row."""
    cdef vec total[12][4]
    cdef vec w[4]
    cdef vec x
    cdef const real* a = s.previous + (at.row + j) * s.H
    cdef Py_ssize_t k, size, H = s.H
    cdef int r, g, v
    for r in range(R):
        for g in range(V * G):
            total[r][g] = vec_zero()
    for k in range(at.K):
        for v in range(V):
            for g in range(G):
                w[v * G + g] = vec_load(panel + v * panel_size + g * LANES)
                vec_prefetch(panel + v * panel_size + g * LANES + 16 * G * LANES)
        for r in range(R):
            x = vec_set(a[r * H + k])
            for g in range(V * G):
                total[r][g] = total[r][g] + x * w[g]
        panel += G * LANES
    for v in range(V):
        size = min(<Py_ssize_t> LANES, H - u - v * LANES)
        for r in range(R):
            end_row(G, s, at, j + r, &total[r][v * G], u + v * LANES, size)


cdef void lstm_tile(int R, const Layer* s, const Step* at, Py_ssize_t j, const real* panel, Py_ssize_t u) noexcept nogil:
    if R == 6: gate_tile(6, 4, 1, s, at, j, panel, 0, u)
    elif R == 5: gate_tile(5, 4, 1, s, at, j, panel, 0, u)
    elif R == 4: gate_tile(4, 4, 1, s, at, j, panel, 0, u)
    elif R == 3: gate_tile(3, 4, 1, s, at, j, panel, 0, u)
    elif R == 2: gate_tile(2, 4, 1, s, at, j, panel, 0, u)
    else: gate_tile(1, 4, 1, s, at, j, panel, 0, u)


cdef void gru_tile(int R, const Layer* s, const Step* at, Py_ssize_t j, const real* panel, Py_ssize_t u) noexcept nogil:
    if R == 8: gate_tile(8, 3, 1, s, at, j, panel, 0, u)
    elif R == 7: gate_tile(7, 3, 1, s, at, j, panel, 0, u)
    elif R == 6: gate_tile(6, 3, 1, s, at, j, panel, 0, u)
    elif R == 5: gate_tile(5, 3, 1, s, at, j, panel, 0, u)
    elif R == 4: gate_tile(4, 3, 1, s, at, j, panel, 0, u)
    elif R == 3: gate_tile(3, 3, 1, s, at, j, panel, 0, u)
    elif R == 2: gate_tile(2, 3, 1, s, at, j, panel, 0, u)
    else: gate_tile(1, 3, 1, s, at, j, panel, 0, u)


cdef void rnn_tile(int R, int V, const Layer* s, const Step* at, Py_ssize_t j, const real* panel, Py_ssize_t panel_size,
                   Py_ssize_t u) noexcept nogil:
    if V == 3:
        if R == 8: gate_tile(8, 1, 3, s, at, j, panel, panel_size, u)
        elif R == 7: gate_tile(7, 1, 3, s, at, j, panel, panel_size, u)
        elif R == 6: gate_tile(6, 1, 3, s, at, j, panel, panel_size, u)
        elif R == 5: gate_tile(5, 1, 3, s, at, j, panel, panel_size, u)
        elif R == 4: gate_tile(4, 1, 3, s, at, j, panel, panel_size, u)
        elif R == 3: gate_tile(3, 1, 3, s, at, j, panel, panel_size, u)
        elif R == 2: gate_tile(2, 1, 3, s, at, j, panel, panel_size, u)
        else: gate_tile(1, 1, 3, s, at, j, panel, panel_size, u)
    elif V == 2:
        if R == 8: gate_tile(8, 1, 2, s, at, j, panel, panel_size, u)
        elif R == 7: gate_tile(7, 1, 2, s, at, j, panel, panel_size, u)
        elif R == 6: gate_tile(6, 1, 2, s, at, j, panel, panel_size, u)
        elif R == 5: gate_tile(5, 1, 2, s, at, j, panel, panel_size, u)
        elif R == 4: gate_tile(4, 1, 2, s, at, j, panel, panel_size, u)
        elif R == 3: gate_tile(3, 1, 2, s, at, j, panel, panel_size, u)
        elif R == 2: gate_tile(2, 1, 2, s, at, j, panel, panel_size, u)
        else: gate_tile(1, 1, 2, s, at, j, panel, panel_size, u)
    elif R == 8: gate_tile(8, 1, 1, s, at, j, panel, panel_size, u)
    elif R == 7: gate_tile(7, 1, 1, s, at, j, panel, panel_size, u)
    elif R == 6: gate_tile(6, 1, 1, s, at, j, panel, panel_size, u)
    elif R == 5: gate_tile(5, 1, 1, s, at, j, panel, panel_size, u)
    elif R == 4: gate_tile(4, 1, 1, s, at, j, panel, panel_size, u)
    elif R == 3: gate_tile(3, 1, 1, s, at, j, panel, panel_size, u)
    elif R == 2: gate_tile(2, 1, 1, s, at, j, panel, panel_size, u)
    else: gate_tile(1, 1, 1, s, at, j, panel, panel_size, u)


cdef void step_forward(const Layer* s, const Step* at, Py_ssize_t first, Py_ssize_t stop, Py_ssize_t u, Py_ssize_t end) noexcept nogil:
    """Units u to end of sequences first to stop, by tiles of nearly equal height; a panel serves all of them before the next is read."""
    cdef Py_ssize_t most = (6 if s.gates == 4 else 8) if ROWS_2 == 8 else (2 if s.gates == 4 else 3 if s.gates == 3 else 4)
    cdef Py_ssize_t n = stop - first, tiles = (n + most - 1) // most, i, j, panel_size = s.gates * s.H * LANES
    cdef Py_ssize_t vectors
    cdef int R, V
    cdef const real* panel = s.panels + u // LANES * panel_size
    while u < end:
        vectors = (end - u + LANES - 1) // LANES
        V = 1 if s.gates > 1 else <int> (vectors if vectors <= 3 else 2 if vectors == 4 else 3)
        for i in range(tiles):
            j = first + n * i // tiles
            R = <int> (first + n * (i + 1) // tiles - j)
            if s.gates == 4:
                lstm_tile(R, s, at, j, panel, u)
            elif s.gates == 3:
                gru_tile(R, s, at, j, panel, u)
            else:
                rnn_tile(R, V, s, at, j, panel, panel_size, u)
        panel += V * panel_size
        u += V * LANES


cdef void forward(const Layer* s, const Share* mine) noexcept nogil:
    """A share of the sequences or units, through time."""
    cdef Py_ssize_t t, j, end, H = s.H, u = mine.unit, size = (mine.end - mine.unit) * sizeof(real)
    cdef Step at
    for j in range(mine.first, mine.stop):
        if s.h0 == NULL:
            memset(s.previous + j * H + u, 0, size)
        else:
            memcpy(s.previous + j * H + u, s.h0 + j * H + u, size)
    if mine.together:
        meet()
    if s.on_unit:
        unit_open()
    at.row = 0
    at.c_before = s.c0
    for t in range(s.T):
        end = min(mine.stop, <Py_ssize_t> s.counts[t])
        if end <= mine.first:
            break
        at.next = at.row + s.counts[t]
        at.going = s.counts[t + 1] if t + 1 < s.T else 0
        at.K = 0 if t == 0 and s.h0 == NULL else H
        if s.B == 1:
            single_forward(s, &at)
        elif s.on_unit:
            unit_forward(s, &at, mine.first, end, u, mine.end)
        else:
            step_forward(s, &at, mine.first, end, u, mine.end)
        if s.norm.gain != NULL:
            for j in range(mine.first, end):
                norm_end(s, &at, j)
        if mine.together:
            meet()
        at.c_before = s.c + at.row * H
        at.row = at.next
    if s.on_unit:
        unit_close()


cdef void run_forward(Layer* s, const real* b, const real* bU) noexcept nogil:
    add_biases(s, b, bU)
    if s.on_unit:
        unit_pack_gates(s)
    elif s.B > 1:
        pack_gates(s)
    run(forward, s)


def rnn_forward(cnp.ndarray a, b, cnp.ndarray U, bU, h0, cnp.ndarray counts, ids, cnp.ndarray h, cnp.ndarray previous,
                cnp.ndarray h_last, cnp.ndarray work, noise):
    cdef Layer s = layer_of(1, U, counts, work)
    cdef real* biases[2]
    biases[0], biases[1] = pointer(b), pointer(bU)
    set_noise(&s, noise)
    s.a, s.h0 = data(a), pointer(h0)
    s.ids = NULL if ids is None else <const int64_t*> cnp.PyArray_DATA(<cnp.ndarray> ids)
    s.h, s.previous, s.h_last = data(h), data(previous), data(h_last)
    with nogil:
        run_forward(&s, biases[0], biases[1])
    return h, previous, h_last


def lstm_forward(cnp.ndarray a, b, cnp.ndarray U, bU, h0, c0, cnp.ndarray counts, ids, cnp.ndarray h, cnp.ndarray previous,
                 cnp.ndarray gates, cnp.ndarray c, cnp.ndarray h_last, cnp.ndarray c_last, cnp.ndarray work, noise):
    cdef Layer s = layer_of(4, U, counts, work)
    cdef real* biases[2]
    biases[0], biases[1] = pointer(b), pointer(bU)
    set_noise(&s, noise)
    s.a, s.h0, s.c0 = data(a), pointer(h0), pointer(c0)
    s.ids = NULL if ids is None else <const int64_t*> cnp.PyArray_DATA(<cnp.ndarray> ids)
    s.h, s.previous, s.gate, s.c = data(h), data(previous), data(gates), data(c)
    s.h_last, s.c_last = data(h_last), data(c_last)
    with nogil:
        run_forward(&s, biases[0], biases[1])
    return h, previous, gates, c, h_last, c_last


cdef void set_norm(Layer* s, cnp.ndarray gain, cnp.ndarray gain_c, cnp.ndarray shift_c, cnp.ndarray sums,
                   cnp.ndarray statistics) noexcept:
    s.norm.gain, s.norm.gain_c, s.norm.shift_c = data(gain), data(gain_c), data(shift_c)
    s.norm.sums, s.norm.statistics = data(sums), data(statistics)


def lstm_norm_forward(cnp.ndarray a, b, cnp.ndarray U, bU, cnp.ndarray gain, cnp.ndarray gain_c, cnp.ndarray shift_c, h0, c0,
                      cnp.ndarray counts, ids, cnp.ndarray h, cnp.ndarray previous, cnp.ndarray gates, cnp.ndarray c,
                      cnp.ndarray sums, cnp.ndarray statistics, cnp.ndarray h_last, cnp.ndarray c_last, cnp.ndarray work,
                      noise, double eps):
    cdef Layer s = layer_of(4, U, counts, work)
    cdef real* biases[2]
    biases[0], biases[1] = pointer(b), pointer(bU)
    set_noise(&s, noise)
    set_norm(&s, gain, gain_c, shift_c, sums, statistics)
    s.norm.eps = eps
    s.a, s.h0, s.c0 = data(a), pointer(h0), pointer(c0)
    s.ids = NULL if ids is None else <const int64_t*> cnp.PyArray_DATA(<cnp.ndarray> ids)
    s.h, s.previous, s.gate, s.c = data(h), data(previous), data(gates), data(c)
    s.h_last, s.c_last = data(h_last), data(c_last)
    with nogil:
        run_forward(&s, biases[0], biases[1])
    return h, previous, gates, c, sums, statistics, h_last, c_last


def gru_forward(cnp.ndarray a, b, cnp.ndarray U, bU, h0, cnp.ndarray counts, ids, cnp.ndarray h, cnp.ndarray previous,
                cnp.ndarray gates, cnp.ndarray candidate, cnp.ndarray h_last, cnp.ndarray work, noise):
    cdef Layer s = layer_of(3, U, counts, work)
    cdef real* biases[2]
    biases[0], biases[1] = pointer(b), pointer(bU)
    set_noise(&s, noise)
    s.a, s.h0 = data(a), pointer(h0)
    s.ids = NULL if ids is None else <const int64_t*> cnp.PyArray_DATA(<cnp.ndarray> ids)
    s.h, s.previous, s.gate, s.c, s.h_last = data(h), data(previous), data(gates), data(candidate), data(h_last)
    with nogil:
        run_forward(&s, biases[0], biases[1])
    return h, previous, gates, candidate, h_last


# ---- backward --------------------------------------------------------------------------------------------------------
# dh0 and dc0 carry the gradients from step to step. They begin as the gradients of the last states: a sequence that is
# shorter than others finds its own there when the walk reaches its last step.

cdef inline vec past_zoneout(const Layer* s, Py_ssize_t row, Py_ssize_t j, Py_ssize_t u, Py_ssize_t size, vec d) noexcept nogil:
    """The part of d that meets the new state; the other is left in dh0, and the product adds to it."""
    cdef vec keeps = zoned(s, row, u, size, KEEPS_H, s.zoneout)
    store_some(s.dh0 + j * s.H + u, keeps * d, size)
    return d - keeps * d


cdef inline void rnn_row_back(const Layer* s, Py_ssize_t row, Py_ssize_t j, Py_ssize_t u, Py_ssize_t end) noexcept nogil:
    cdef Py_ssize_t H = s.H, size
    cdef vec h, d
    while u < end:
        size = min(<Py_ssize_t> LANES, end - u)
        h = load_some(s.h + row * H + u, size)      # the new state wherever zoneout lets a gradient through
        d = load_some(s.dh + row * H + u, size) + load_some(s.dh0 + j * H + u, size)
        if s.noisy:
            d = past_zoneout(s, row, j, u, size, d)
        store_some(s.da + row * H + u, d * (vec_set(1) - h * h), size)
        u += LANES


cdef inline void lstm_row_back(const Layer* s, Py_ssize_t row, Py_ssize_t j, const real* c_before, Py_ssize_t u,
                               Py_ssize_t end) noexcept nogil:
    cdef Py_ssize_t H = s.H, size
    cdef vec one = vec_set(1), i, f, g, o, d, dc, cell, squashed, before, keeps, factor
    cdef const real* gate = s.gate + row * 4 * H
    cdef real* da = s.da + row * 4 * H
    while u < end:
        size = min(<Py_ssize_t> LANES, end - u)
        i, f = load_some(gate + u, size), load_some(gate + H + u, size)
        g, o = load_some(gate + 2 * H + u, size), load_some(gate + 3 * H + u, size)
        before = vec_zero() if c_before == NULL else load_some(c_before + u, size)
        d = load_some(s.dh + row * H + u, size) + load_some(s.dh0 + j * H + u, size)
        dc = load_some(s.dc0 + j * H + u, size)
        if s.noisy:
            factor = undropped(s, row, u, size)
            cell = i * (g * factor)
            if c_before != NULL:
                cell = cell + f * before
            squashed = vec_tanh(cell)
            d = past_zoneout(s, row, j, u, size, d)
            keeps = dc * zoned(s, row, u, size, KEEPS_C, s.zoneout_cell)
            dc = dc - keeps + d * o * (one - squashed * squashed)
            store_some(s.dc0 + j * H + u, keeps + dc * f, size)
            store_some(da + u, dc * g * factor * i * (one - i), size)
            store_some(da + 2 * H + u, dc * factor * i * (one - g * g), size)
        else:
            squashed = vec_tanh(load_some(s.c + row * H + u, size))
            dc = dc + d * o * (one - squashed * squashed)
            store_some(s.dc0 + j * H + u, dc * f, size)
            store_some(da + u, dc * g * i * (one - i), size)
            store_some(da + 2 * H + u, dc * i * (one - g * g), size)
        store_some(da + H + u, dc * before * f * (one - f), size)
        store_some(da + 3 * H + u, d * squashed * o * (one - o), size)
        u += LANES


cdef inline void gru_row_back(const Layer* s, Py_ssize_t row, Py_ssize_t j, Py_ssize_t u, Py_ssize_t end) noexcept nogil:
    """Leaves the direct part d z in dh0: the product adds to it."""
    cdef Py_ssize_t H = s.H, size
    cdef vec one = vec_set(1), r, z, n, q, d, dn, dr, dz, factor, direct
    cdef const real* gate = s.gate + row * 3 * H
    cdef real* da = s.da + row * 3 * H
    cdef real* du = s.du + row * 3 * H
    while u < end:
        size = min(<Py_ssize_t> LANES, end - u)
        r, z, n = load_some(gate + u, size), load_some(gate + H + u, size), load_some(gate + 2 * H + u, size)
        q = load_some(s.c + row * H + u, size)
        d = load_some(s.dh + row * H + u, size) + load_some(s.dh0 + j * H + u, size)
        if s.noisy:
            factor = undropped(s, row, u, size)
            direct = d * zoned(s, row, u, size, KEEPS_H, s.zoneout)
            d = d - direct
            dn = d * (one - z) * factor * (one - n * n)
            dz = d * (load_some(s.previous + row * H + u, size) - n * factor) * z * (one - z)
            store_some(s.dh0 + j * H + u, direct + d * z, size)
        else:
            dn = d * (one - z) * (one - n * n)
            dz = d * (load_some(s.previous + row * H + u, size) - n) * z * (one - z)
            store_some(s.dh0 + j * H + u, d * z, size)
        dr = dn * q * r * (one - r)
        store_some(da + u, dr, size)
        store_some(da + H + u, dz, size)
        store_some(da + 2 * H + u, dn, size)
        store_some(du + u, dr, size)
        store_some(du + H + u, dz, size)
        store_some(du + 2 * H + u, dn * r, size)
        u += LANES


cdef inline void add_some(real* to, vec v, Py_ssize_t size) noexcept nogil:
    store_some(to, load_some(to, size) + v, size)


cdef void norm_row_back(const Layer* s, Py_ssize_t row, Py_ssize_t j, const real* c_before) noexcept nogil:
    """Of an LSTM with layer normalisation: first through the cell's, then the gates, then through the sums'."""
    cdef Py_ssize_t H = s.H, u, size, at
    cdef vec one = vec_set(1), i, f, g, o, d, dc, y, squashed, before, keeps, factor, dz, total, total_y
    cdef vec mean = vec_set(s.norm.statistics[4 * row]), scale = vec_set(s.norm.statistics[4 * row + 1])
    cdef vec mean_c = vec_set(s.norm.statistics[4 * row + 2]), scale_c = vec_set(s.norm.statistics[4 * row + 3])
    cdef const real* gate = s.gate + row * 4 * H
    cdef const real* sums = s.norm.sums + row * 4 * H
    cdef real* da = s.da + row * 4 * H
    cdef real* du = s.du + row * 4 * H
    cdef real* dgain = s.norm.gradients + j * 8 * H
    cdef real* dgain_c = dgain + 4 * H
    cdef real* dshift_c = dgain + 5 * H
    cdef real* normal = dgain + 6 * H       # the cell, normalised
    cdef real* dnormal = dgain + 7 * H
    cdef int k
    total, total_y = vec_zero(), vec_zero()
    u = 0
    while u < H:
        size = min(<Py_ssize_t> LANES, H - u)
        g, o = load_some(gate + 2 * H + u, size), load_some(gate + 3 * H + u, size)
        if s.noisy:
            g = g * undropped(s, row, u, size)
        y = load_some(gate + u, size) * g
        if c_before != NULL:
            y = y + load_some(gate + H + u, size) * load_some(c_before + u, size)
        y = (y - mean_c) * scale_c
        squashed = vec_tanh(y * load_some(s.norm.gain_c + u, size) + load_some(s.norm.shift_c + u, size))
        d = load_some(s.dh + row * H + u, size) + load_some(s.dh0 + j * H + u, size)
        if s.noisy:
            d = past_zoneout(s, row, j, u, size, d)
        store_some(da + 3 * H + u, d * squashed * o * (one - o), size)
        d = d * o * (one - squashed * squashed)
        add_some(dgain_c + u, d * y, size)
        add_some(dshift_c + u, d, size)
        d = d * load_some(s.norm.gain_c + u, size)
        total = total + d
        total_y = total_y + d * y
        store_some(normal + u, y, size)
        store_some(dnormal + u, d, size)
        u += LANES
    y, d = vec_set(vec_sum(total_y) / H), vec_set(vec_sum(total) / H)
    total, total_y = vec_zero(), vec_zero()
    u = 0
    while u < H:
        size = min(<Py_ssize_t> LANES, H - u)
        i, f, g = load_some(gate + u, size), load_some(gate + H + u, size), load_some(gate + 2 * H + u, size)
        before = vec_zero() if c_before == NULL else load_some(c_before + u, size)
        dc, keeps, factor = load_some(s.dc0 + j * H + u, size), vec_zero(), one
        if s.noisy:
            factor = undropped(s, row, u, size)
            keeps = dc * zoned(s, row, u, size, KEEPS_C, s.zoneout_cell)
        dc = dc - keeps + scale_c * (load_some(dnormal + u, size) - d - load_some(normal + u, size) * y)
        store_some(s.dc0 + j * H + u, keeps + dc * f, size)
        store_some(da + u, dc * g * factor * i * (one - i), size)
        store_some(da + H + u, dc * before * f * (one - f), size)
        store_some(da + 2 * H + u, dc * factor * i * (one - g * g), size)
        for k in range(4):
            at = k * H + u
            dz = load_some(da + at, size)
            squashed = (load_some(sums + at, size) - mean) * scale
            add_some(dgain + at, dz * squashed, size)
            dz = dz * load_some(s.norm.gain + at, size)
            total = total + dz
            total_y = total_y + dz * squashed
        u += LANES
    y, d = vec_set(vec_sum(total_y) / (4 * H)), vec_set(vec_sum(total) / (4 * H))
    u = 0
    while u < 4 * H:
        size = min(<Py_ssize_t> LANES, 4 * H - u)
        dz = load_some(da + u, size) * load_some(s.norm.gain + u, size)
        squashed = (load_some(sums + u, size) - mean) * scale
        store_some(du + u, scale * (dz - d - squashed * y), size)
        u += LANES


cdef void carry_back(const Layer* s, Py_ssize_t row, const Share* mine, Py_ssize_t stop) noexcept nogil:
    """dh0 (+)= da U^T for the share's units of its sequences up to `stop`, whose step's rows begin at `row`."""
    cdef Product p
    cdef Py_ssize_t K = s.gates * s.H, first = mine.first, vectors = (s.H + LANES - 1) // LANES
    cdef const real* da = (s.da if s.du == NULL else s.du) + row * K
    cdef bint accumulate = s.gates == 3 or s.noisy      # a direct part waits in dh0
    if s.B == 1:
        times_transpose(K, s.H, da, s.U, s.dh0, accumulate)
        return
    if s.on_unit:
        unit_back(s, da + first * K, stop - first, s.dh0 + first * s.H, mine.unit, mine.end, accumulate)
        return
    p.M, p.N, p.K = stop - first, s.H, K
    p.a, p.a_row, p.a_step = da + first * K, K, 1
    p.b, p.b_row, p.b_step = NULL, 0, 0
    p.packed = s.panels
    p.c, p.c_row = s.dh0 + first * s.H, s.H
    p.accumulate = accumulate
    p.bias, p.activation, p.edge, p.in_place = NULL, IDENTITY, 0, False
    p.vectors = vectors
    panels(&p, 0, p.M, mine.unit // (2 * LANES), panels_of(vectors) if mine.end == s.H else mine.end // (2 * LANES), False)


cdef void times_transpose(Py_ssize_t K, Py_ssize_t N, const real* x, const real* b, real* c, bint accumulate) noexcept nogil:
    """c[N] (+)= x[K] B^T for B[N, K] where it lies: eight rows of B at a time."""
    cdef Py_ssize_t j = 0
    while j + 8 <= N:
        dots(1, 8, K, x, 0, b + j * K, K, c + j, 0, accumulate)
        j += 8
    while j < N:
        dots(1, 1, K, x, 0, b + j * K, K, c + j, 0, accumulate)
        j += 1


cdef void backward(const Layer* s, const Share* mine) noexcept nogil:
    """A share of the sequences or units, back through time."""
    cdef Py_ssize_t t, j, end, H = s.H, row = 0, u = mine.unit
    cdef const real* c_before
    if mine.first == mine.stop:
        return
    if s.on_unit:
        unit_open()
    for t in range(s.T):
        row += s.counts[t]
    for t in range(s.T - 1, -1, -1):
        row -= s.counts[t]
        end = min(mine.stop, <Py_ssize_t> s.counts[t])
        if end <= mine.first:
            continue
        c_before = s.c0 if t == 0 else s.c + (row - s.counts[t - 1]) * H
        for j in range(mine.first, end):
            if s.norm.gain != NULL:
                norm_row_back(s, row + j, j, NULL if c_before == NULL else c_before + j * H)
            elif s.gates == 4:
                lstm_row_back(s, row + j, j, NULL if c_before == NULL else c_before + j * H, u, mine.end)
            elif s.gates == 3:
                gru_row_back(s, row + j, j, u, mine.end)
            else:
                rnn_row_back(s, row + j, j, u, mine.end)
        if mine.together:
            meet()
        carry_back(s, row, mine, end)
    if s.on_unit:
        unit_close()


cdef void begin(real* carried, const real* last, Py_ssize_t size) noexcept nogil:
    if last == NULL:
        memset(carried, 0, size * sizeof(real))
    elif last != carried:
        memcpy(carried, last, size * sizeof(real))


cdef void run_backward(Layer* s, const real* dh_last, const real* dc_last) noexcept nogil:
    begin(s.dh0, dh_last, s.B * s.H)
    if s.gates == 4:
        begin(s.dc0, dc_last, s.B * s.H)
    if s.on_unit:
        unit_pack(s.U, 1, s.gates * s.H, s.gates * s.H, s.H, <bfloat*> s.panels)
    elif s.B > 1:
        pack_all(s.U, 1, s.gates * s.H, s.gates * s.H, s.H, s.panels)
    run(backward, s)


def rnn_backward(cnp.ndarray dh, dh_last, cnp.ndarray U, cnp.ndarray h, cnp.ndarray counts, cnp.ndarray da, cnp.ndarray dh0,
                 cnp.ndarray work, noise):
    cdef Layer s = layer_of(1, U, counts, work)
    cdef real* last = pointer(dh_last)
    set_noise(&s, noise)
    s.dh, s.h, s.da, s.dh0 = data(dh), data(h), data(da), data(dh0)
    with nogil:
        run_backward(&s, last, NULL)
    return da, dh0


def lstm_backward(cnp.ndarray dh, dh_last, dc_last, cnp.ndarray U, cnp.ndarray gates, cnp.ndarray c, c0, cnp.ndarray counts,
                  cnp.ndarray da, cnp.ndarray dh0, cnp.ndarray dc0, cnp.ndarray work, noise):
    cdef Layer s = layer_of(4, U, counts, work)
    cdef real* last[2]
    set_noise(&s, noise)
    last[0], last[1] = pointer(dh_last), pointer(dc_last)
    s.dh, s.gate, s.c, s.c0 = data(dh), data(gates), data(c), pointer(c0)
    s.da, s.dh0, s.dc0 = data(da), data(dh0), data(dc0)
    with nogil:
        run_backward(&s, last[0], last[1])
    return da, dh0, dc0


def lstm_norm_backward(cnp.ndarray dh, dh_last, dc_last, cnp.ndarray U, cnp.ndarray gain, cnp.ndarray gain_c,
                       cnp.ndarray shift_c, cnp.ndarray gates, cnp.ndarray c, c0, cnp.ndarray sums, cnp.ndarray statistics,
                       cnp.ndarray counts, cnp.ndarray da, cnp.ndarray du, cnp.ndarray dgain, cnp.ndarray dgain_c,
                       cnp.ndarray dshift_c, cnp.ndarray dh0, cnp.ndarray dc0, cnp.ndarray work, noise):
    cdef Layer s = layer_of(4, U, counts, work)
    cdef real* last[2]
    cdef real* to[3]
    cdef Py_ssize_t j, H = s.H
    last[0], last[1] = pointer(dh_last), pointer(dc_last)
    to[0], to[1], to[2] = data(dgain), data(dgain_c), data(dshift_c)
    set_noise(&s, noise)
    set_norm(&s, gain, gain_c, shift_c, sums, statistics)
    s.dh, s.gate, s.c, s.c0 = data(dh), data(gates), data(c), pointer(c0)
    s.da, s.du, s.dh0, s.dc0 = data(da), data(du), data(dh0), data(dc0)
    with nogil:
        memset(s.norm.gradients, 0, s.B * 8 * H * sizeof(real))
        run_backward(&s, last[0], last[1])
        memset(to[0], 0, 4 * H * sizeof(real))
        memset(to[1], 0, H * sizeof(real))
        memset(to[2], 0, H * sizeof(real))
        for j in range(s.B):        # one sequence is one thread's: the order of a sum is fixed
            add_to(to[0], s.norm.gradients + j * 8 * H, 4 * H)
            add_to(to[1], s.norm.gradients + (j * 8 + 4) * H, H)
            add_to(to[2], s.norm.gradients + (j * 8 + 5) * H, H)
    return da, du, dgain, dgain_c, dshift_c, dh0, dc0


def gru_backward(cnp.ndarray dh, dh_last, cnp.ndarray U, cnp.ndarray previous, cnp.ndarray gates, cnp.ndarray candidate,
                 cnp.ndarray counts, cnp.ndarray da, cnp.ndarray du, cnp.ndarray dh0, cnp.ndarray work, noise):
    cdef Layer s = layer_of(3, U, counts, work)
    cdef real* last = pointer(dh_last)
    set_noise(&s, noise)
    s.dh, s.previous, s.gate, s.c = data(dh), data(previous), data(gates), data(candidate)
    s.da, s.du, s.dh0 = data(da), data(du), data(dh0)
    with nogil:
        run_backward(&s, last, NULL)
    return da, du, dh0


# ---- rows of a table -------------------------------------------------------------------------------------------------

cdef void add_to(real* to, const real* x, Py_ssize_t n) noexcept nogil:
    cdef Py_ssize_t i = 0
    while i + LANES <= n:
        vec_store(to + i, vec_load(to + i) + vec_load(x + i))
        i += LANES
    vec_store_part(to + i, vec_load_part(to + i, n - i) + vec_load_part(x + i, n - i), n - i)


def take_rows(cnp.ndarray table, cnp.ndarray ids, cnp.ndarray out):
    cdef const int64_t* id = <const int64_t*> cnp.PyArray_DATA(ids)
    cdef Py_ssize_t R = cnp.PyArray_DIM(ids, 0), D = cnp.PyArray_DIM(table, 1), r
    cdef const real* source = data(table)
    cdef real* to = data(out)
    cdef int threads = team_size(R * D, 32768)
    with nogil:
        if threads == 1:
            for r in range(R):
                memcpy(to + r * D, source + id[r] * D, D * sizeof(real))
        else:
            for r in prange(R, num_threads=threads, schedule="static"):
                memcpy(to + r * D, source + id[r] * D, D * sizeof(real))
    return out


cdef void scatter(const real* dy, const int64_t* id, Py_ssize_t R, Py_ssize_t V, Py_ssize_t D, Py_ssize_t first, Py_ssize_t stop,
                  real* to, bint accumulate) noexcept nogil:
    """Columns first to stop of all rows: a sum is formed by one thread, in the order of the rows."""
    cdef Py_ssize_t r, v
    if not accumulate:
        for v in range(V):
            memset(to + v * D + first, 0, (stop - first) * sizeof(real))
    for r in range(R):
        add_to(to + id[r] * D + first, dy + r * D + first, stop - first)


def scatter_rows(cnp.ndarray dy, cnp.ndarray ids, cnp.ndarray dtable, bint accumulate):
    cdef const int64_t* id = <const int64_t*> cnp.PyArray_DATA(ids)
    cdef Py_ssize_t R = cnp.PyArray_DIM(ids, 0), V = cnp.PyArray_DIM(dtable, 0), D = cnp.PyArray_DIM(dtable, 1)
    cdef const real* rows = data(dy)
    cdef real* to = data(dtable)
    cdef int part, parts = <int> min(<Py_ssize_t> team_size(R * D, 32768), max(<Py_ssize_t> 1, D // LANES))
    with nogil:
        if parts == 1:
            scatter(rows, id, R, V, D, 0, D, to, accumulate)
        else:
            for part in prange(parts, num_threads=parts, schedule="static", chunksize=1):
                scatter(rows, id, R, V, D, D * part // parts // LANES * LANES,
                        D if part == parts - 1 else D * (part + 1) // parts // LANES * LANES, to, accumulate)
    return dtable
