# C (+)= A B on the matrix unit: both operands are cut into parts, a block at a time, in cache. Needs product.pxi's Product before it.
#
# An element's sum is formed in the order of k, within the unit's groups of 32, whoever computes it: the bits do not depend on how
# rows and columns are shared out. While the unit works on one block of rows, the vectors cut the next one.

cdef extern from "matrix_unit.h" nogil:
    enum: MATRIX_UNIT
    enum: UNIT_K, PART, PARTS
    ctypedef unsigned short bfloat
    void unit_layout(int)
    void unit_close()
    void unit_prefetch_write(const real*)
    void unit_split(vec, vec, bfloat*)
    void unit_split_into(vec, vec, bfloat*, Py_ssize_t)
    void unit_shift(const bfloat*, Py_ssize_t, bfloat*)
    void unit_cut(const real*, Py_ssize_t, bfloat*, Py_ssize_t)
    void unit_begin(const int, const int, const real*, Py_ssize_t, bint)
    void unit_step(const int, const int, const int, const bfloat*, Py_ssize_t, const bfloat*, Py_ssize_t)
    void unit_step_in_planes(
        const int, const int, const int, const bfloat*, Py_ssize_t, Py_ssize_t, Py_ssize_t, const bfloat*, Py_ssize_t, Py_ssize_t)
    void unit_end(const int, const int, real*, Py_ssize_t)

cdef extern from *:
    """
    /* A block of B in parts stays in the second cache; two blocks of 32 rows of A, one in use, one being cut. `sums` are those of
       recurrent layers (unit_gates.pxi), for up to 6 columns of tiles. */
    enum { UNIT_DEPTH = 256, UNIT_WIDTH = 512, UNIT_TILES = UNIT_DEPTH / UNIT_K };
    enum { UNIT_LONGEST = UNIT_WIDTH * UNIT_DEPTH / 32 };     /* of 32 rows of A that fit into b */
    #if MATRIX_UNIT
    static _Thread_local struct {
        bfloat a[2][2 * UNIT_TILES * PARTS], b[UNIT_WIDTH / 16 * UNIT_TILES * PARTS];
        real edge[32 * 32], turned[32 * 16], sums[2][32 * 96];
        int rows;   /* that the tiles are laid out for */
    } unit_memory __attribute__((aligned(64)));
    #else
    static struct { bfloat a[2][1], b[1]; real edge[1], turned[1], sums[2][1]; int rows; } unit_memory;
    #endif
    """
    const int UNIT_DEPTH
    const int UNIT_WIDTH
    const int UNIT_LONGEST
    ctypedef struct UnitMemory:
        bfloat** a
        bfloat* b
        real* edge
        real* turned
        real** sums
        int rows
    UnitMemory unit_memory


cdef inline bint unit_pays(const Product* p) noexcept nogil:
    """Whether cutting both operands into parts costs less than the unit saves (crossing measured at 64 x 64 x 64)."""
    return (MATRIX_UNIT and p.batched and matrix_unit() and p.packed == NULL and p.M >= 16 and p.N >= 16 and p.K >= 16
            and 16 * (p.M + p.N) <= p.M * p.N and p.M * p.N * p.K >= 64 * 64 * 64)


cdef inline void unit_open() noexcept nogil:
    unit_memory.rows = 32
    unit_layout(32)


cdef inline void unit_fit(Py_ssize_t rows) noexcept nogil:
    """Lay the tiles out for blocks of so many rows of A, 1 to 32."""
    if rows != unit_memory.rows:
        unit_memory.rows = <int> rows
        unit_layout(<int> rows)


# ---- cutting ---------------------------------------------------------------------------------------------------------

cdef void unit_rows(const real* a, Py_ssize_t a_row, Py_ssize_t a_step, Py_ssize_t rows, Py_ssize_t K, bfloat* to) noexcept nogil:
    """A tile of A at an edge: up to 16 rows of up to 32 k, zero beyond these (unit_fit leaves out rows that are not there). Lane i of a row pairs k = i and i + 16."""
    cdef Py_ssize_t i, k
    cdef real* turned = unit_memory.turned
    if a_step != 1:
        for i in range(rows):
            for k in range(K):
                turned[i * UNIT_K + k] = a[i + k * a_step]
        a, a_row = turned, UNIT_K
    for i in range(rows):
        if K == UNIT_K:
            unit_split(vec_load(a), vec_load(a + 16), to)
        else:
            unit_split(vec_load_part(a, min(K, <Py_ssize_t> 16)), vec_load_part(a + 16, max(K - 16, <Py_ssize_t> 0)), to)
        a += a_row
        to += UNIT_K


cdef void unit_columns(const real* b, Py_ssize_t b_row, Py_ssize_t b_step, Py_ssize_t K, Py_ssize_t columns, bfloat* to) noexcept nogil:
    """A tile of B: up to 32 k of up to 16 columns, zero beyond. Row i of the tile pairs k = i and i + 16."""
    cdef Py_ssize_t i, j
    cdef real* turned = unit_memory.turned
    if b_step != 1:
        if columns == 16 and K == UNIT_K:
            vec_transpose(b, b_step, turned, 16)
            vec_transpose(b + 16, b_step, turned + 16 * 16, 16)
        else:
            for i in range(K):
                for j in range(columns):
                    turned[i * 16 + j] = b[i * b_row + j * b_step]
        b, b_row = turned, 16
    for i in range(16):
        if columns == 16 and K == UNIT_K:
            unit_split(vec_load(b), vec_load(b + 16 * b_row), to)
        else:
            unit_split(vec_load_part(b, columns) if i < K else vec_zero(),
                       vec_load_part(b + 16 * b_row, columns) if i + 16 < K else vec_zero(), to)
        b += b_row
        to += UNIT_K


cdef void unit_pack(const real* b, Py_ssize_t b_row, Py_ssize_t b_step, Py_ssize_t K, Py_ssize_t N, bfloat* to) noexcept nogil:
    """B[K, N] in parts: its columns of tiles one after the other, each of all K."""
    cdef Py_ssize_t j = 0, k
    while j < N:
        k = 0
        while k < K:
            unit_columns(b + k * b_row + j * b_step, b_row, b_step, min(<Py_ssize_t> UNIT_K, K - k), min(<Py_ssize_t> 16, N - j), to)
            to += PARTS
            k += UNIT_K
        j += 16


cdef struct Cut:
    # Up to 32 rows of A, up to UNIT_DEPTH of k, that are being cut into tiles: `done` of `all` tiles, and `row` rows of the next one.
    const real* a
    Py_ssize_t a_row
    Py_ssize_t a_step
    Py_ssize_t rows
    Py_ssize_t depth
    Py_ssize_t tiles
    Py_ssize_t done
    Py_ssize_t all
    bfloat* to
    Py_ssize_t row
    const real* source
    Py_ssize_t source_row


cdef inline Cut cut_of(const real* a, Py_ssize_t a_row, Py_ssize_t a_step, Py_ssize_t rows, Py_ssize_t depth, bfloat* to) noexcept nogil:
    cdef Cut x
    x.a, x.a_row, x.a_step, x.rows, x.depth, x.to = a, a_row, a_step, rows, depth, to
    x.tiles, x.done, x.row = (depth + UNIT_K - 1) // UNIT_K, 0, 0
    x.all = x.tiles * ((rows + 15) // 16)
    return x


cdef void next_tile(Cut* x) noexcept nogil:
    """Find, or turn, the next tile's numbers; one at an edge is cut at once."""
    cdef Py_ssize_t height = 16 if x.done >= x.tiles else 0, k = UNIT_K * (x.done - (x.tiles if height else 0))
    cdef Py_ssize_t rows = min(<Py_ssize_t> 16, x.rows - height), depth = min(<Py_ssize_t> UNIT_K, x.depth - k)
    x.source, x.source_row = x.a + height * x.a_row + k * x.a_step, x.a_row
    if rows < 16 or depth < UNIT_K:
        unit_rows(x.source, x.a_row, x.a_step, rows, depth, x.to)
        x.row = 16
    elif x.a_step != 1:
        vec_transpose(x.source, x.a_step, unit_memory.turned, UNIT_K)
        vec_transpose(x.source + 16 * x.a_step, x.a_step, unit_memory.turned + 16, UNIT_K)
        x.source, x.source_row = unit_memory.turned, UNIT_K


cdef inline forced_inline_void cut_on(Cut* x) noexcept nogil:
    """Cut two rows more, where any are left."""
    if x.done == x.all:
        return
    if x.row == 0:
        next_tile(x)
    if x.row < 16:
        unit_split(vec_load(x.source), vec_load(x.source + 16), x.to + x.row * UNIT_K)
        unit_split(vec_load(x.source + x.source_row), vec_load(x.source + x.source_row + 16), x.to + (x.row + 1) * UNIT_K)
        x.source += 2 * x.source_row
        x.row += 2
    if x.row == 16:
        x.row = 0
        x.to += PARTS
        x.done += 1


# ---- blocks of C -----------------------------------------------------------------------------------------------------

cdef inline forced_inline_void unit_block(
    const int R, const int V, Py_ssize_t tiles, const bfloat* a, const bfloat* b, Py_ssize_t b_next, real* c, Py_ssize_t c_row,
    bint accumulate, Cut* ahead) noexcept nogil:
    cdef Py_ssize_t q, i, a_next = tiles * PARTS, fetched = (16 * R + tiles - 1) // tiles
    cdef const real* next = c + 16 * V
    unit_begin(R, V, c, c_row, accumulate)
    for q in range(tiles):
        unit_step(0, R, V, a, a_next, b, b_next)
        cut_on(ahead)
        unit_step(1, R, V, a, a_next, b, b_next)
        cut_on(ahead)
        unit_step(2, R, V, a, a_next, b, b_next)
        cut_on(ahead)
        unit_step(3, R, V, a, a_next, b, b_next)
        cut_on(ahead)
        unit_step(4, R, V, a, a_next, b, b_next)
        cut_on(ahead)
        unit_step(5, R, V, a, a_next, b, b_next)
        cut_on(ahead)
        for i in range(fetched):
            unit_prefetch_write(next)
            unit_prefetch_write(next + 16)
            next += c_row
        a += PARTS
        b += PARTS
    unit_end(R, V, c, c_row)


cdef void unit_stripe(Cut* a, const bfloat* b, Py_ssize_t b_next, real* c, Py_ssize_t c_row, Py_ssize_t columns, bint accumulate,
                      Cut* ahead) noexcept nogil:
    """c[rows, columns] (+)= A B for the rows that `a` cuts, if it has not yet, and cut those of `ahead` meanwhile; b_next: from one
    column of B's tiles to the next."""
    cdef Py_ssize_t j = 0, i, width
    cdef bint whole
    cdef real* to
    cdef Py_ssize_t to_row
    cdef const bfloat* tiles
    while a.done < a.all:
        cut_on(a)
    tiles = a.to - a.all * PARTS
    unit_fit(a.rows)
    while j < columns:
        width = min(<Py_ssize_t> 32, columns - j)
        whole = width % 16 == 0
        to = c + j if whole else unit_memory.edge
        to_row = c_row if whole else 32
        if not whole and accumulate:
            for i in range(a.rows):
                memcpy(to + 32 * i, c + i * c_row + j, width * sizeof(real))
        if a.rows > 16:
            if width > 16: unit_block(2, 2, a.tiles, tiles, b, b_next, to, to_row, accumulate, ahead)
            else: unit_block(2, 1, a.tiles, tiles, b, b_next, to, to_row, accumulate, ahead)
        elif width > 16: unit_block(1, 2, a.tiles, tiles, b, b_next, to, to_row, accumulate, ahead)
        else: unit_block(1, 1, a.tiles, tiles, b, b_next, to, to_row, accumulate, ahead)
        if not whole:
            for i in range(a.rows):
                memcpy(c + i * c_row + j, to + 32 * i, width * sizeof(real))
        b += 2 * b_next
        j += 32


cdef void unit_rectangle(const Product* p, Py_ssize_t start, Py_ssize_t stop, Py_ssize_t first, Py_ssize_t end) noexcept nogil:
    """Rows start to stop, columns first to end of C."""
    cdef Py_ssize_t column = first, width, k, depth, row, rows
    cdef Cut now, ahead
    cdef int turn = 0
    unit_open()
    while column < end:
        width = min(<Py_ssize_t> UNIT_WIDTH, end - column)
        k = 0
        while k < p.K:
            depth = min(<Py_ssize_t> UNIT_DEPTH, p.K - k)
            unit_pack(p.b + k * p.b_row + column * p.b_step, p.b_row, p.b_step, depth, width, unit_memory.b)
            row = start
            ahead = cut_of(p.a + row * p.a_row + k * p.a_step, p.a_row, p.a_step, min(<Py_ssize_t> 32, stop - row), depth,
                           unit_memory.a[turn])
            while row < stop:
                now = ahead
                rows = now.rows
                turn = 1 - turn
                ahead = cut_of(p.a + (row + rows) * p.a_row + k * p.a_step, p.a_row, p.a_step,
                               min(<Py_ssize_t> 32, stop - row - rows), depth, unit_memory.a[turn])
                unit_stripe(&now, unit_memory.b, now.tiles * PARTS, p.c + row * p.c_row + column, p.c_row, width,
                            p.accumulate or k > 0, &ahead)
                if k + depth == p.K:
                    finish(p.activation, p.c + row * p.c_row + column, p.c_row, rows, width,
                           NULL if p.bias == NULL else p.bias + column)
                row += rows
            k += depth
        column += width
    unit_close()


cdef void unit_share(const Product* p, int part, int parts) noexcept nogil:
    """The part-th share: of the longer side of C, so that less is cut into parts twice."""
    cdef Py_ssize_t blocks
    if p.M >= p.N:
        blocks = (p.M + 31) // 32
        unit_rectangle(p, blocks * part // parts * 32, min(p.M, blocks * (part + 1) // parts * 32), 0, p.N)
    else:
        blocks = (p.N + 31) // 32
        unit_rectangle(p, 0, p.M, blocks * part // parts * 32, min(p.N, blocks * (part + 1) // parts * 32))
