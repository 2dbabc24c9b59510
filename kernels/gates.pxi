# The gates of recurrent layers on one vector of units, and one step of a sequence alone. Needs vec.pxi before it.

from libc.math cimport sqrt
from libc.stdint cimport int64_t
from libc.string cimport memcpy, memset

cdef enum:
    # Bits of a unit's flags.
    KEEPS_H = 1         # zoneout
    KEEPS_C = 2         # zoneout of an LSTM's cell
    DROPS = 4           # recurrent dropout

ctypedef struct Norm:
    const real* gain    # 4H; NULL: no layer normalisation
    const real* gain_c
    const real* shift_c
    double eps
    real* sums          # R rows of 4H: h_{t-1} U
    real* statistics    # R rows of 4: mean and 1 / deviation of the sums, then of the cell
    real* gradients     # of gain, gain_c and shift_c, 6H for each sequence

ctypedef struct Layer:
    Py_ssize_t T, B, H
    int gates               # 1: RNN, 3: GRU, 4: LSTM
    const int64_t* counts
    const real* a
    const int64_t* ids      # or NULL: row r reads row r of a
    const real* U
    const real* h0          # or NULL
    const real* c0          # or NULL
    real* h                 # results of the forward pass
    real* previous
    real* gate
    real* c                 # LSTM: the cell; GRU: the candidate q
    real* h_last
    real* c_last
    const real* dh          # of the backward pass
    real* da
    real* du                # GRU
    real* dh0
    real* dc0
    bint noisy              # zoneout or recurrent dropout
    const unsigned char* flags      # R rows of H; or NULL: expectations
    real zoneout, zoneout_cell      # of expectations
    real scale              # of candidates that are not dropped
    Norm norm
    real* panels            # U packed
    real* bias              # gates * H, and for a GRU H more: b's and bU's last columns stay apart


cdef void add_biases(Layer* s, const real* b, const real* bU) noexcept nogil:
    """s.bias = b + bU, but for a GRU's last H columns: those of b, then those of bU."""
    cdef Py_ssize_t j, joined = s.gates * s.H if s.gates != 3 else 2 * s.H
    for j in range(joined):
        s.bias[j] = (0 if b == NULL else b[j]) + (0 if bU == NULL else bU[j])
    if s.gates == 3:
        for j in range(s.H):
            s.bias[joined + j] = 0 if b == NULL else b[joined + j]
            s.bias[joined + s.H + j] = 0 if bU == NULL else bU[joined + j]


cdef inline vec load_some(const real* p, Py_ssize_t size) noexcept nogil:
    """`size` elements, at most a vector; zero beyond."""
    if size == LANES:
        return vec_load(p)
    return vec_load_part(p, size)


cdef inline void store_some(real* p, vec v, Py_ssize_t size) noexcept nogil:
    if size == LANES:
        vec_store(p, v)
    else:
        vec_store_part(p, v, size)


# One step of a row.
#
# `sums` holds h_{t-1} U of one vector of units (all gates), u is its first unit, `size` its units. `next` is where the state
# goes besides h: the row of the next step's `previous`, or of h_last where the sequence ends.

# Where s.noisy, `row` is its row of flags and `before` its h_{t-1}.

cdef inline vec zoned(const Layer* s, Py_ssize_t row, Py_ssize_t u, Py_ssize_t size, int bit, real rate) noexcept nogil:
    """1 where a unit keeps its old value, 0 where it does not; or how much of it, in expectation."""
    return vec_set(rate) if s.flags == NULL else vec_flag(vec_load_flags(s.flags + row * s.H + u, size), bit)


cdef inline vec undropped(const Layer* s, Py_ssize_t row, Py_ssize_t u, Py_ssize_t size) noexcept nogil:
    """The factor of recurrent dropout: 0 or 1 / (1 - p)."""
    if s.flags == NULL:
        return vec_set(1)
    return vec_set(s.scale) - vec_flag(vec_load_flags(s.flags + row * s.H + u, size), DROPS) * vec_set(s.scale)


cdef inline vec mixed(vec keeps, vec old, vec new) noexcept nogil:
    """Exactly one of the two where `keeps` is 0 or 1."""
    return keeps * old + (vec_set(1) - keeps) * new


cdef inline void lstm_end(const Layer* s, vec i, vec f, vec g, vec o, const real* x, const real* c_before, const real* before, real* gate,
                          real* c, real* h, real* next, real* c_last, Py_ssize_t row, Py_ssize_t u, Py_ssize_t size) noexcept nogil:
    cdef Py_ssize_t H = s.H
    cdef const real* b = s.bias
    cdef vec cell, state
    i = vec_sigmoid(i + load_some(x + u, size) + load_some(b + u, size))
    f = vec_sigmoid(f + load_some(x + H + u, size) + load_some(b + H + u, size))
    g = vec_tanh(g + load_some(x + 2 * H + u, size) + load_some(b + 2 * H + u, size))
    o = vec_sigmoid(o + load_some(x + 3 * H + u, size) + load_some(b + 3 * H + u, size))
    store_some(gate + u, i, size)
    store_some(gate + H + u, f, size)
    store_some(gate + 2 * H + u, g, size)
    store_some(gate + 3 * H + u, o, size)
    if s.noisy:
        g = g * undropped(s, row, u, size)
    cell = i * g
    if c_before != NULL:
        cell = cell + f * load_some(c_before + u, size)
    state = o * vec_tanh(cell)
    if s.noisy:
        cell = mixed(zoned(s, row, u, size, KEEPS_C, s.zoneout_cell),
                     vec_zero() if c_before == NULL else load_some(c_before + u, size), cell)
        state = mixed(zoned(s, row, u, size, KEEPS_H, s.zoneout), load_some(before + u, size), state)
    store_some(c + u, cell, size)
    store_some(h + u, state, size)
    store_some(next + u, state, size)
    if c_last != NULL:
        store_some(c_last + u, cell, size)


cdef inline void gru_end(const Layer* s, vec r, vec z, vec q, const real* x, const real* before, real* gate, real* candidate,
                         real* h, real* next, Py_ssize_t row, Py_ssize_t u, Py_ssize_t size) noexcept nogil:
    cdef Py_ssize_t H = s.H
    cdef const real* b = s.bias
    cdef vec n, old, state
    r = vec_sigmoid(r + load_some(x + u, size) + load_some(b + u, size))
    z = vec_sigmoid(z + load_some(x + H + u, size) + load_some(b + H + u, size))
    q = q + load_some(b + 3 * H + u, size)
    n = vec_tanh(load_some(x + 2 * H + u, size) + load_some(b + 2 * H + u, size) + r * q)
    store_some(gate + u, r, size)
    store_some(gate + H + u, z, size)
    store_some(gate + 2 * H + u, n, size)
    store_some(candidate + u, q, size)
    if s.noisy:
        n = n * undropped(s, row, u, size)
    old = load_some(before + u, size)
    state = n + z * (old - n)
    if s.noisy:
        state = mixed(zoned(s, row, u, size, KEEPS_H, s.zoneout), old, state)
    store_some(h + u, state, size)
    store_some(next + u, state, size)


cdef inline void rnn_end(const Layer* s, vec z, const real* x, const real* before, real* h, real* next, Py_ssize_t row,
                         Py_ssize_t u, Py_ssize_t size) noexcept nogil:
    z = vec_tanh(z + load_some(x + u, size) + load_some(s.bias + u, size))
    if s.noisy:
        z = mixed(zoned(s, row, u, size, KEEPS_H, s.zoneout), load_some(before + u, size), z)
    store_some(h + u, z, size)
    store_some(next + u, z, size)


cdef struct Step:
    Py_ssize_t row          # of this step's first sequence, in the arrays of R rows
    Py_ssize_t next         # of the next step's
    Py_ssize_t going        # sequences that run at the next step
    const real* c_before    # c of the step before, sequence 0; or NULL: zeros
    Py_ssize_t K            # H, or 0 where the state before is all zeros


cdef inline forced_inline_void end_row(const int G, const Layer* s, const Step* at, Py_ssize_t j, const vec* sums, Py_ssize_t u,
                         Py_ssize_t size) noexcept nogil:
    """Apply the gates to one vector of units of sequence j."""
    cdef Py_ssize_t H = s.H, row = at.row + j
    cdef const real* x = s.a + (row if s.ids == NULL else s.ids[row]) * G * H
    cdef const real* before = s.previous + row * H
    cdef real* next = s.previous + (at.next + j) * H if j < at.going else s.h_last + j * H
    cdef int g
    if G == 4:
        if s.norm.gain != NULL:     # wait for the whole row
            for g in range(4):
                store_some(s.norm.sums + (row * 4 + g) * H + u, sums[g], size)
        else:
            lstm_end(s, sums[0], sums[1], sums[2], sums[3], x, NULL if at.c_before == NULL else at.c_before + j * H, before,
                     s.gate + row * G * H, s.c + row * H, s.h + row * H, next, NULL if j < at.going else s.c_last + j * H,
                     row, u, size)
    elif G == 3:
        gru_end(s, sums[0], sums[1], sums[2], x, before, s.gate + row * G * H, s.c + row * H, s.h + row * H, next, row, u, size)
    else:
        rnn_end(s, sums[0], x, before, s.h + row * H, next, row, u, size)


# An LSTM with layer normalisation needs a whole row before it can apply the gates.

cdef inline vec load_or(const real* p, Py_ssize_t size, vec fill) noexcept nogil:
    """As load_some, with `fill` beyond."""
    if size == LANES:
        return vec_load(p)
    return vec_load_filled(p, size, fill)


cdef void row_statistics(const real* x, Py_ssize_t n, double eps, real* statistics) noexcept nogil:
    """Mean and 1 / sqrt(variance + eps) of n numbers, the variance in a second pass."""
    cdef vec total[4]
    cdef vec d, mean
    cdef Py_ssize_t i = 0
    cdef int v
    for v in range(4):
        total[v] = vec_zero()
    while i + 4 * LANES <= n:
        for v in range(4):
            total[v] = total[v] + vec_load(x + i + v * LANES)
        i += 4 * LANES
    while i < n:
        total[0] = total[0] + load_some(x + i, min(<Py_ssize_t> LANES, n - i))
        i += LANES
    statistics[0] = vec_sum((total[0] + total[1]) + (total[2] + total[3])) / n
    mean = vec_set(statistics[0])
    for v in range(4):
        total[v] = vec_zero()
    i = 0
    while i + 4 * LANES <= n:
        for v in range(4):
            d = vec_load(x + i + v * LANES) - mean
            total[v] = total[v] + d * d
        i += 4 * LANES
    while i < n:
        d = load_or(x + i, min(<Py_ssize_t> LANES, n - i), mean) - mean
        total[0] = total[0] + d * d
        i += LANES
    statistics[1] = <real> (1 / sqrt(vec_sum((total[0] + total[1]) + (total[2] + total[3])) / n + eps))


cdef inline vec before_gate(const Layer* s, const real* sums, const real* x, const real* statistics, Py_ssize_t at,
                            Py_ssize_t size) noexcept nogil:
    cdef vec z = (load_some(sums + at, size) - vec_set(statistics[0])) * vec_set(statistics[1])
    return z * load_some(s.norm.gain + at, size) + load_some(x + at, size) + load_some(s.bias + at, size)


cdef void norm_end(const Layer* s, const Step* at, Py_ssize_t j) noexcept nogil:
    """Finish the row of sequence j, whose sums wait in s.norm.sums."""
    cdef Py_ssize_t H = s.H, row = at.row + j, u = 0, size
    cdef const real* x = s.a + (row if s.ids == NULL else s.ids[row]) * 4 * H
    cdef const real* c_before = NULL if at.c_before == NULL else at.c_before + j * H
    cdef real* next = s.previous + (at.next + j) * H if j < at.going else s.h_last + j * H
    cdef real* sums = s.norm.sums + row * 4 * H
    cdef real* statistics = s.norm.statistics + row * 4
    cdef real* gate = s.gate + row * 4 * H
    cdef real* c = s.c + row * H
    cdef vec i, f, g, o, cell, old, state
    row_statistics(sums, 4 * H, s.norm.eps, statistics)
    while u < H:
        size = min(<Py_ssize_t> LANES, H - u)
        i = vec_sigmoid(before_gate(s, sums, x, statistics, u, size))
        f = vec_sigmoid(before_gate(s, sums, x, statistics, H + u, size))
        g = vec_tanh(before_gate(s, sums, x, statistics, 2 * H + u, size))
        o = vec_sigmoid(before_gate(s, sums, x, statistics, 3 * H + u, size))
        store_some(gate + u, i, size)
        store_some(gate + H + u, f, size)
        store_some(gate + 2 * H + u, g, size)
        store_some(gate + 3 * H + u, o, size)
        if s.noisy:
            g = g * undropped(s, row, u, size)
        cell = i * g
        if c_before != NULL:
            cell = cell + f * load_some(c_before + u, size)
        store_some(c + u, cell, size)
        u += LANES
    row_statistics(c, H, s.norm.eps, statistics + 2)
    u = 0
    while u < H:
        size = min(<Py_ssize_t> LANES, H - u)
        cell = load_some(c + u, size)
        state = (cell - vec_set(statistics[2])) * vec_set(statistics[3])
        state = vec_tanh(state * load_some(s.norm.gain_c + u, size) + load_some(s.norm.shift_c + u, size))
        state = load_some(gate + 3 * H + u, size) * state
        if s.noisy:
            old = vec_zero() if c_before == NULL else load_some(c_before + u, size)
            cell = mixed(zoned(s, row, u, size, KEEPS_C, s.zoneout_cell), old, cell)
            state = mixed(zoned(s, row, u, size, KEEPS_H, s.zoneout), load_some(s.previous + row * H + u, size), state)
        store_some(c + u, cell, size)
        store_some(s.h + row * H + u, state, size)
        store_some(next + u, state, size)
        if j >= at.going:
            store_some(s.c_last + j * H + u, cell, size)
        u += LANES


# One sequence alone.

cdef inline forced_inline_void row_sums(const int V, Py_ssize_t K, const real* x, const real* b, Py_ssize_t b_row, real* c,
                                        Py_ssize_t size) noexcept nogil:
    """c[size] = x[K] B for V vectors of columns; two chains of sums where V alone would leave the units waiting."""
    cdef vec even[8]
    cdef vec odd[8]
    cdef vec y, z
    cdef int v
    cdef Py_ssize_t k = 0
    for v in range(V):
        even[v] = vec_zero()
        odd[v] = vec_zero()
    while k + 2 <= K:
        y, z = vec_set(x[k]), vec_set(x[k + 1])
        for v in range(V - 1):
            even[v] = even[v] + y * vec_load(b + v * LANES)
            odd[v] = odd[v] + z * vec_load(b + b_row + v * LANES)
        even[V - 1] = even[V - 1] + y * load_some(b + (V - 1) * LANES, size - (V - 1) * LANES)
        odd[V - 1] = odd[V - 1] + z * load_some(b + b_row + (V - 1) * LANES, size - (V - 1) * LANES)
        b += 2 * b_row
        k += 2
    if k < K:
        y = vec_set(x[k])
        for v in range(V - 1):
            even[v] = even[v] + y * vec_load(b + v * LANES)
        even[V - 1] = even[V - 1] + y * load_some(b + (V - 1) * LANES, size - (V - 1) * LANES)
    for v in range(V - 1):
        vec_store(c + v * LANES, even[v] + odd[v])
    store_some(c + (V - 1) * LANES, even[V - 1] + odd[V - 1], size - (V - 1) * LANES)


cdef void row_times(Py_ssize_t K, Py_ssize_t N, const real* x, const real* b, real* c) noexcept nogil:
    """c[N] = x[K] B[K, N], B where it lies."""
    cdef Py_ssize_t j = 0, left
    while j < N:
        left = N - j
        if left >= 8 * LANES:
            row_sums(8, K, x, b + j, N, c + j, 8 * LANES)
            j += 8 * LANES
        elif left > 4 * LANES:
            if left > 6 * LANES: row_sums(7, K, x, b + j, N, c + j, min(left, 7 * <Py_ssize_t> LANES))
            elif left > 5 * LANES: row_sums(6, K, x, b + j, N, c + j, left)
            else: row_sums(5, K, x, b + j, N, c + j, left)
            j += 7 * LANES
        else:
            if left > 3 * LANES: row_sums(4, K, x, b + j, N, c + j, left)
            elif left > 2 * LANES: row_sums(3, K, x, b + j, N, c + j, left)
            elif left > LANES: row_sums(2, K, x, b + j, N, c + j, left)
            else: row_sums(1, K, x, b + j, N, c + j, left)
            j += 4 * LANES


cdef void single_forward(const Layer* s, const Step* at) noexcept nogil:
    """One step of a batch of one: its sums wait in the packing's memory, which is free."""
    cdef Py_ssize_t H = s.H, u = 0, size
    cdef int g
    cdef vec sums[4]
    cdef real* z = s.panels
    if at.K == 0:
        memset(z, 0, s.gates * H * sizeof(real))
    else:
        row_times(H, s.gates * H, s.previous + at.row * H, s.U, z)
    while u < H:
        size = min(<Py_ssize_t> LANES, H - u)
        for g in range(s.gates):
            sums[g] = load_some(z + g * H + u, size)
        if s.gates == 4:
            end_row(4, s, at, 0, sums, u, size)
        elif s.gates == 3:
            end_row(3, s, at, 0, sums, u, size)
        else:
            end_row(1, s, at, 0, sums, u, size)
        u += LANES
