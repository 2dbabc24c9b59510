# One step of a recurrent layer on the matrix unit, 32 sequences at a time. Needs gates.pxi and unit.pxi before it.
#
# Forward, the columns of tiles stand as the panels do: all gates of 16 units side by side. The unit puts the sums of a group of units
# into memory; while it forms those of the next group, the vectors apply the gates to them.

cdef void unit_pack_gates(Layer* s) noexcept nogil:
    cdef Py_ssize_t H = s.H, tiles = (H + UNIT_K - 1) // UNIT_K, u = 0
    cdef bfloat* to = <bfloat*> s.panels
    cdef int g
    while u < H:
        for g in range(s.gates):
            unit_pack(s.U + g * H + u, s.gates * H, 1, H, min(<Py_ssize_t> 16, H - u), to)
            to += tiles * PARTS
        u += 16


cdef struct Group:
    # Sums of `vectors` vectors of units, from u on, of `rows` sequences, from j on, whose gates are being applied, a vector of one
    # sequence after the other, each in as many `steps`: `done` steps of `all` are done.
    const real* sums
    Py_ssize_t j, rows, u, vectors, row, vector, step
    Py_ssize_t done, all, turns, credit     # the work is spread over so many turns
    # Of the vector in work, with its first unit's place added:
    const real* z
    const real* x
    const real* b
    const real* before
    real* gate
    real* c
    real* h
    real* next

ctypedef void (*Gates)(const Layer* s, const Step* at, Group* x) noexcept nogil

# The processor looks some 500 instructions ahead: longer pieces of work than a few gates would leave the unit waiting.

cdef inline bint in_steps(const Layer* s, const Group* x) noexcept nogil:
    """Whether a vector's gates are applied a few at a time; else all at once, by end_row."""
    return s.norm.gain == NULL and x.u + 16 * (x.vector + 1) <= s.H


cdef enum:
    FETCHED = 4     # sequences ahead

cdef inline void fetch_ahead(const int G, const Layer* s, const Step* at, Py_ssize_t j, Py_ssize_t u) noexcept nogil:
    """What the gates of a sequence read and write: lines that lie too far apart for the processor to foresee."""
    cdef Py_ssize_t row = at.row + j, H = s.H
    cdef const real* x = s.a + (row if s.ids == NULL else s.ids[row]) * G * H + u
    cdef int g
    for g in range(G):
        vec_prefetch(x + g * H)
    if G > 1:
        for g in range(G):
            unit_prefetch_write(s.gate + (row * G + g) * H + u)
        unit_prefetch_write(s.c + row * H + u)
    if G == 4 and at.c_before != NULL:
        vec_prefetch(at.c_before + j * H + u)
    unit_prefetch_write(s.h + row * H + u)
    unit_prefetch_write((s.previous + (at.next + j) * H if j < at.going else s.h_last + j * H) + u)


cdef inline void begin_vector(const int G, const Layer* s, const Step* at, Group* x) noexcept nogil:
    cdef Py_ssize_t j = x.j + x.row, row = at.row + j, u = x.u + 16 * x.vector, H = s.H
    x.z = x.sums + 96 * x.row + 16 * G * x.vector
    x.x = s.a + (row if s.ids == NULL else s.ids[row]) * G * H + u
    x.b = s.bias + u
    x.before = s.previous + row * H + u
    if G > 1:
        x.gate = s.gate + row * G * H + u
        x.c = s.c + row * H + u
    x.h = s.h + row * H + u
    x.next = (s.previous + (at.next + j) * H if j < at.going else s.h_last + j * H) + u
    if x.row + FETCHED < x.rows:
        fetch_ahead(G, s, at, j + FETCHED, u)


cdef inline void end_vector(const int steps, Group* x) noexcept nogil:
    x.done += steps - x.step
    x.step = 0
    x.vector += 1
    if x.vector == x.vectors:
        x.vector = 0
        x.row += 1


cdef inline void whole_vector(const int G, const Layer* s, const Step* at, Group* x) noexcept nogil:
    cdef vec sums[4]
    cdef int g
    for g in range(G):
        sums[g] = vec_load(x.sums + 96 * x.row + 16 * (G * x.vector + g))
    end_row(G, s, at, x.j + x.row, sums, x.u + 16 * x.vector, min(<Py_ssize_t> 16, s.H - x.u - 16 * x.vector))


cdef inline vec before_nonlinearity(const Layer* s, const Group* x, int g) noexcept nogil:
    return vec_load(x.z + 16 * g) + vec_load(x.x + g * s.H) + vec_load(x.b + g * s.H)


cdef inline vec kept_or(const Layer* s, const Step* at, const Group* x, int bit, real rate, vec old, vec new) noexcept nogil:
    """Zoneout on the vector in work."""
    return mixed(zoned(s, at.row + x.j + x.row, x.u + 16 * x.vector, 16, bit, rate), old, new)


cdef inline vec candidate_of(const Layer* s, const Step* at, const Group* x, vec candidate) noexcept nogil:
    """Recurrent dropout on the vector in work."""
    return candidate * undropped(s, at.row + x.j + x.row, x.u + 16 * x.vector, 16) if s.noisy else candidate


cdef void lstm_gates(const Layer* s, const Step* at, Group* x) noexcept nogil:
    cdef Py_ssize_t H = s.H, j
    cdef vec cell, state, before
    if x.step == 0:
        if not in_steps(s, x):
            whole_vector(4, s, at, x)
            end_vector(3, x)
            return
        begin_vector(4, s, at, x)
        vec_store(x.gate, vec_sigmoid(before_nonlinearity(s, x, 0)))
        vec_store(x.gate + H, vec_sigmoid(before_nonlinearity(s, x, 1)))
    elif x.step == 1:
        vec_store(x.gate + 2 * H, vec_tanh(before_nonlinearity(s, x, 2)))
        vec_store(x.gate + 3 * H, vec_sigmoid(before_nonlinearity(s, x, 3)))
    else:
        j = x.j + x.row
        before = vec_zero() if at.c_before == NULL else vec_load(at.c_before + j * H + x.u + 16 * x.vector)
        cell = vec_load(x.gate) * candidate_of(s, at, x, vec_load(x.gate + 2 * H))
        if at.c_before != NULL:
            cell = cell + vec_load(x.gate + H) * before
        state = vec_load(x.gate + 3 * H) * vec_tanh(cell)
        if s.noisy:
            cell = kept_or(s, at, x, KEEPS_C, s.zoneout_cell, before, cell)
            state = kept_or(s, at, x, KEEPS_H, s.zoneout, vec_load(x.before), state)
        vec_store(x.c, cell)
        vec_store(x.h, state)
        vec_store(x.next, state)
        if j >= at.going:
            vec_store(s.c_last + j * H + x.u + 16 * x.vector, cell)
        end_vector(3, x)
        return
    x.step += 1
    x.done += 1


cdef void gru_gates(const Layer* s, const Step* at, Group* x) noexcept nogil:
    cdef Py_ssize_t H = s.H
    cdef vec q, n, state
    if x.step == 0:
        if not in_steps(s, x):
            whole_vector(3, s, at, x)
            end_vector(2, x)
            return
        begin_vector(3, s, at, x)
        vec_store(x.gate, vec_sigmoid(before_nonlinearity(s, x, 0)))
        vec_store(x.gate + H, vec_sigmoid(before_nonlinearity(s, x, 1)))
        x.step = 1
        x.done += 1
        return
    q = vec_load(x.z + 32) + vec_load(x.b + 3 * H)
    n = vec_tanh(vec_load(x.x + 2 * H) + vec_load(x.b + 2 * H) + vec_load(x.gate) * q)
    vec_store(x.gate + 2 * H, n)
    n = candidate_of(s, at, x, n)
    state = n + vec_load(x.gate + H) * (vec_load(x.before) - n)
    if s.noisy:
        state = kept_or(s, at, x, KEEPS_H, s.zoneout, vec_load(x.before), state)
    vec_store(x.c, q)
    vec_store(x.h, state)
    vec_store(x.next, state)
    end_vector(2, x)


cdef void rnn_gates(const Layer* s, const Step* at, Group* x) noexcept nogil:
    cdef vec state
    if in_steps(s, x):
        begin_vector(1, s, at, x)
        state = vec_tanh(before_nonlinearity(s, x, 0))
        if s.noisy:
            state = kept_or(s, at, x, KEEPS_H, s.zoneout, vec_load(x.before), state)
        vec_store(x.h, state)
        vec_store(x.next, state)
    else:
        whole_vector(1, s, at, x)
    end_vector(1, x)


cdef inline forced_inline_void turn(const Layer* s, const Step* at, Gates gates, Group* x) noexcept nogil:
    """The vectors' turn: a fair share of the group's work."""
    x.credit += x.all
    while x.credit >= x.turns and x.done < x.all:   # a vector whose gates are applied at once takes several steps in one
        x.credit -= x.turns
        gates(s, at, x)


cdef inline forced_inline_void gates_block(
    const int R, const int V, Py_ssize_t tiles, const bfloat* a, const bfloat* b, real* sums, const Layer* s, const Step* at,
    Gates gates, Group* x) noexcept nogil:
    """Sums of R x 16 sequences and V columns of tiles, while the gates are applied to the group before."""
    cdef Py_ssize_t k, next = tiles * PARTS
    unit_begin(R, V, sums, 96, False)
    for k in range(tiles):
        unit_step(0, R, V, a, next, b, next)
        turn(s, at, gates, x)
        unit_step(1, R, V, a, next, b, next)
        turn(s, at, gates, x)
        unit_step(2, R, V, a, next, b, next)
        turn(s, at, gates, x)
        unit_step(3, R, V, a, next, b, next)
        turn(s, at, gates, x)
        unit_step(4, R, V, a, next, b, next)
        turn(s, at, gates, x)
        unit_step(5, R, V, a, next, b, next)
        turn(s, at, gates, x)
        a += PARTS
        b += PARTS
    unit_end(R, V, sums, 96)


cdef void unit_sums(int R, int V, Py_ssize_t tiles, const bfloat* a, const bfloat* b, real* sums, const Layer* s, const Step* at,
                    Gates gates, Group* before) noexcept nogil:
    if R == 2:
        if V == 2: gates_block(2, 2, tiles, a, b, sums, s, at, gates, before)
        else: gates_block(2, 1, tiles, a, b, sums, s, at, gates, before)
    elif V == 2: gates_block(1, 2, tiles, a, b, sums, s, at, gates, before)
    else: gates_block(1, 1, tiles, a, b, sums, s, at, gates, before)


cdef void unit_forward(const Layer* s, const Step* at, Py_ssize_t first, Py_ssize_t stop, Py_ssize_t unit, Py_ssize_t end) noexcept nogil:
    """Units `unit` to `end` of sequences first to stop. A group's columns serve all blocks of 32 sequences before the next are read."""
    # Vectors of units in a group: an even number of columns of tiles, at most 6.
    cdef Py_ssize_t most = 1 if s.gates == 4 else 2 if s.gates == 3 else 4
    cdef Py_ssize_t steps = 3 if s.gates == 4 else 2 if s.gates == 3 else 1     # of one vector
    cdef Py_ssize_t H = s.H, tiles = (H + UNIT_K - 1) // UNIT_K, u, column, columns, rows, j
    cdef Py_ssize_t last = min(stop, first + UNIT_LONGEST // (tiles * UNIT_K) * 32)     # whose parts there is room for
    cdef Gates gates = lstm_gates if s.gates == 4 else gru_gates if s.gates == 3 else rnn_gates
    cdef const bfloat* b = <const bfloat*> s.panels + unit // 16 * s.gates * tiles * PARTS
    cdef bfloat* a = unit_memory.b
    cdef Cut cut
    cdef Group before
    cdef int which = 0
    for j in range(first, last, 32):
        cut = cut_of(s.previous + (at.row + j) * H, H, 1, min(<Py_ssize_t> 32, last - j), H, a + (j - first) // 32 * 2 * tiles * PARTS)
        while cut.done < cut.all:
            cut_on(&cut)
    before.all = before.done = before.credit = 0
    u = unit
    while u < end:
        columns = s.gates * min(most, (end - u + 15) // 16)
        for j in range(first, last, 32):
            rows = min(<Py_ssize_t> 32, last - j)
            unit_fit(rows)
            before.turns = (columns + 1) // 2 * tiles * 6
            for column in range(0, columns, 2):
                unit_sums(2 if rows > 16 else 1, 2 if columns - column > 1 else 1, tiles, a + (j - first) // 32 * 2 * tiles * PARTS,
                          b + column * tiles * PARTS, unit_memory.sums[which] + 16 * column, s, at, gates, &before)
            while before.done < before.all:
                gates(s, at, &before)
            before.sums, before.j, before.rows, before.u, before.vectors = unit_memory.sums[which], j, rows, u, columns // s.gates
            before.row = before.vector = before.step = before.done = before.credit = 0
            before.all = steps * rows * before.vectors
            which = 1 - which
        b += columns * tiles * PARTS
        u += 16 * (columns // s.gates)
    while before.done < before.all:
        gates(s, at, &before)
    if last < stop:
        unit_forward(s, at, last, stop, unit, end)


cdef void unit_back(const Layer* s, const real* da, Py_ssize_t rows, real* dh, Py_ssize_t unit, Py_ssize_t end,
                    bint accumulate) noexcept nogil:
    """dh[rows, unit to end] (+)= da U^T, a stretch of k for all rows before the next; while the unit works on 32 rows, the vectors cut
    the next."""
    cdef Py_ssize_t K = s.gates * s.H, tiles = (K + UNIT_K - 1) // UNIT_K, row, k = 0, depth, next_row, next_k
    cdef const bfloat* b = <const bfloat*> s.panels + unit // 16 * tiles * PARTS
    cdef Cut now, ahead
    cdef int which = 0
    ahead = cut_of(da, K, 1, min(<Py_ssize_t> 32, rows), min(<Py_ssize_t> UNIT_DEPTH, K), unit_memory.a[0])
    while k < K:
        depth = ahead.depth
        row = 0
        while row < rows:
            now = ahead
            which = 1 - which
            next_row, next_k = row + now.rows, k
            if next_row == rows:
                next_row, next_k = 0, k + depth
            ahead = cut_of(da + next_row * K + next_k, K, 1, min(<Py_ssize_t> 32, rows - next_row),
                           min(<Py_ssize_t> UNIT_DEPTH, K - next_k), unit_memory.a[which])
            unit_stripe(&now, b + k // UNIT_K * PARTS, tiles * PARTS, dh + row * s.H + unit, s.H, end - unit, accumulate or k > 0,
                        &ahead)
            row += now.rows
        k += depth
