# Convolution on the matrix unit. Needs unit.pxi, planes.pxi and windows.pxi's Job and Learning.
#
# A plane in parts holds a pixel's channels one after the other, so a tile of A is 16 cells of it, read where they lie: its rows are a
# pixel apart, each the next 32 numbers of a run. A number is cut into parts once, however many windows see it. For the weights' gradient
# the planes are turned, so that a row of a tile is 32 cells of one channel; a tap is a shift by so many cells.

cdef enum:
    UNIT_CELLS = 4     # tiles of cells, in the weights' gradient, whose parts stay in the first cache while all taps pass


cdef Py_ssize_t unit_tiles(const Plan* p, const Phase* phase) noexcept nogil:
    """Tiles of k of a phase: a run's last one may be filled in part."""
    cdef Py_ssize_t tiles = 0, r
    for r in range(phase.runs):
        tiles += (p.run[phase.run + r].length + UNIT_K - 1) // UNIT_K
    return tiles


cdef inline const real* weights_of(const Plan* p, const Run* run, Py_ssize_t k) noexcept nogil:
    """What the k-th number of a run is multiplied with."""
    return p.w + p.tap[run.first + k // p.depth] * p.w_tap + k % p.depth * p.w_row


cdef void weights_tile(const Plan* p, const Run* run, Py_ssize_t k, Py_ssize_t j, bfloat* to) noexcept nogil:
    """Numbers k to k + 32 of a run, channels j to j + 16 of the result; zeros beyond. Row i of the tile pairs 2 i and 2 i + 1."""
    cdef Py_ssize_t i, column, columns = min(<Py_ssize_t> 16, p.width - (j % p.width)), depth = min(<Py_ssize_t> UNIT_K, run.length - k)
    cdef real* turned = unit_memory.turned
    cdef const real* w
    if p.w_step == 1:
        for i in range(UNIT_K):
            vec_store(turned + 16 * i, vec_load_part(weights_of(p, run, k + i) + j, columns) if i < depth else vec_zero())
    elif columns == 16 and depth == UNIT_K and p.depth % 16 == 0:
        vec_transpose(weights_of(p, run, k) + j * p.w_step, p.w_step, turned, 16)
        vec_transpose(weights_of(p, run, k + 16) + j * p.w_step, p.w_step, turned + 16 * 16, 16)
    else:
        memset(turned, 0, 16 * UNIT_K * sizeof(real))
        for i in range(depth):
            w = weights_of(p, run, k + i) + j * p.w_step
            for column in range(columns):
                turned[16 * i + column] = w[column * p.w_step]
    for i in range(16):
        unit_split(vec_load(turned + 32 * i), vec_load(turned + 32 * i + 16), to + UNIT_K * i)


cdef void unit_pack_phase(const Plan* p, const Phase* phase, Py_ssize_t group, bfloat* to) noexcept nogil:
    """A phase's weights in parts: its columns of tiles one after the other."""
    cdef Plan q = p[0]
    cdef Py_ssize_t j, r, k
    q.w = p.w + group * p.w_group
    for j in range(0, p.width, 16):
        for r in range(phase.runs):
            k = 0
            while k < p.run[phase.run + r].length:
                weights_tile(&q, p.run + phase.run + r, k, j, to)
                to += PARTS
                k += UNIT_K


cdef inline forced_inline_void unit_windows(
    const int R, const int V, const Plan* p, const Phase* phase, const bfloat* planes, Py_ssize_t part, Py_ssize_t a_next, const bfloat* b,
    Py_ssize_t b_next, real* sums) noexcept nogil:
    """sums[R x 16 cells, V x 16 channels of the result]"""
    cdef Py_ssize_t r, k, a_row = p.plane.channels * sizeof(bfloat)
    cdef const bfloat* a
    cdef const Run* run = p.run + phase.run
    unit_begin(R, V, sums, 32, False)
    for r in range(phase.runs):
        a = planes + run[r].offset
        for k in range((run[r].length + UNIT_K - 1) // UNIT_K):
            unit_step_in_planes(0, R, V, a, a_row, part, a_next, b, b_next)
            unit_step_in_planes(1, R, V, a, a_row, part, a_next, b, b_next)
            unit_step_in_planes(2, R, V, a, a_row, part, a_next, b, b_next)
            unit_step_in_planes(3, R, V, a, a_row, part, a_next, b, b_next)
            unit_step_in_planes(4, R, V, a, a_row, part, a_next, b, b_next)
            unit_step_in_planes(5, R, V, a, a_row, part, a_next, b, b_next)
            a += UNIT_K
            b += PARTS
    unit_end(R, V, sums, 32)


cdef inline forced_inline_void emit_rows(const int code, const real* sums, real* c, Py_ssize_t c_row, Py_ssize_t rows, Py_ssize_t columns,
                                         const real* bias) noexcept nogil:
    cdef Py_ssize_t i, second = max(columns - LANES, <Py_ssize_t> 0), lanes = min(columns, <Py_ssize_t> LANES)
    cdef vec b0 = vec_zero() if bias == NULL else vec_load_part(bias, lanes)
    cdef vec b1 = vec_zero() if bias == NULL else vec_load_part(bias + LANES, second)
    for i in range(rows):
        vec_store_part(c, activated(code, vec_load(sums) + b0), lanes)
        if second:
            vec_store_part(c + LANES, activated(code, vec_load(sums + LANES) + b1), second)
        sums += 32
        c += c_row


cdef void unit_emit(const Job* s, const Phase* phase, Py_ssize_t group, Py_ssize_t image, Py_ssize_t first, Py_ssize_t cell, Py_ssize_t cells,
                    Py_ssize_t j, Py_ssize_t columns, const real* sums) noexcept nogil:
    """Bring sums of cells that follow each other to the result; those of cells beside the image are dropped."""
    cdef Py_ssize_t pitch = s.plan.plane.pitch, q = cell // pitch, x = cell - q * pitch, n, c_row = phase.column_step * s.channels
    cdef real* c
    cdef const real* bias = NULL if s.bias == NULL else s.bias + group * s.plan.width + j
    while cells > 0:
        n = min(cells, phase.columns - x)
        if n > 0:
            c = result_of(s, phase, image, first + q, group) + x * c_row + j
            if s.activation == RELU:
                emit_rows(RELU, sums, c, c_row, n, columns, bias)
            else:
                emit_rows(IDENTITY, sums, c, c_row, n, columns, bias)
                finish(s.activation, c, c_row, n, columns, NULL)
        n = min(cells, pitch - x)
        sums += 32 * n
        cells -= n
        q += 1
        x = 0


cdef void unit_convolve(const Job* s, const Phase* phase, Py_ssize_t group, const bfloat* cut, const bfloat* planes, Py_ssize_t part,
                        Py_ssize_t image, Py_ssize_t first, Py_ssize_t rows) noexcept nogil:
    """A phase's outputs of a band, for the channels of one group: 32 cells times 32 channels at a time."""
    cdef const Plan* p = &s.plan
    cdef Py_ssize_t tiles = unit_tiles(p, phase), b_next = tiles * PARTS, C = p.plane.channels, pitch = p.plane.pitch
    cdef Py_ssize_t across = phase.columns // 16 if phase.columns % 16 == 0 else 0    # whole tiles in a row
    cdef Py_ssize_t count = rows * across * 16 if across else (rows - 1) * pitch + phase.columns
    cdef Py_ssize_t j, block, cell, next_cell, cells, columns
    cdef real* sums = unit_memory.sums[0]
    cdef const bfloat* a
    cdef const bfloat* b
    for j in range(0, p.width, 32):
        columns = min(<Py_ssize_t> 32, p.width - j)
        b = cut + j // 16 * b_next
        for block in range(0, count, 32):
            cells = min(<Py_ssize_t> 32, count - block)
            cell, next_cell = block, block + 16
            if across:
                cell = block // 16 // across * pitch + block // 16 % across * 16
                next_cell = (block // 16 + 1) // across * pitch + (block // 16 + 1) % across * 16
            a = planes + cell * C + group * p.depth
            unit_fit(cells)
            if cells > 16:
                if columns > 16: unit_windows(2, 2, p, phase, a, part, (next_cell - cell) * C, b, b_next, sums)
                else: unit_windows(2, 1, p, phase, a, part, (next_cell - cell) * C, b, b_next, sums)
            elif columns > 16: unit_windows(1, 2, p, phase, a, part, 0, b, b_next, sums)
            else: unit_windows(1, 1, p, phase, a, part, 0, b, b_next, sums)
            unit_emit(s, phase, group, image, first, cell, min(<Py_ssize_t> 16, cells), j, columns, sums)
            if cells > 16:
                unit_emit(s, phase, group, image, first, next_cell, cells - 16, j, columns, sums + 16 * 32)


# ---- the weights' gradient ---------------------------------------------------------------------------------------------

cdef inline Py_ssize_t turned_length(const Plane* p) noexcept nogil:
    """Cells of a channel of a turned plane: an odd number of cache lines, so that channels do not meet in the same ones."""
    cdef Py_ssize_t lines = (p.phase // p.channels + 32 + 31) // 32
    return 32 * (lines if lines % 2 else lines + 1)


cdef void turn_plane(const real* plane, Py_ssize_t cells, Py_ssize_t C, Py_ssize_t length, bfloat* to, Py_ssize_t part) noexcept nogil:
    """to[part][channel][cell] = plane[cell][channel] in parts, zeros from `cells` to `length`."""
    cdef Py_ssize_t cell, c, i, j, channels, there
    cdef real* turned = unit_memory.turned
    for cell in range(0, length, 32):
        there = min(<Py_ssize_t> 32, cells - cell)
        for c in range(0, C, 16):
            channels = min(<Py_ssize_t> 16, C - c)
            if there == 32 and channels == 16:
                vec_transpose(plane + cell * C + c, C, turned, 32)
                vec_transpose(plane + (cell + 16) * C + c, C, turned + 16, 32)
            else:
                for j in range(channels):
                    for i in range(32):
                        turned[32 * j + i] = plane[(cell + i) * C + c + j] if i < there else 0
            for j in range(channels):
                unit_cut(turned + 32 * j, 32, to + (c + j) * length + cell, part)


cdef void cut_gradient(const real* dy, Py_ssize_t tiles, Py_ssize_t F, bfloat* to) noexcept nogil:
    """Tiles of 32 cells of 16 filters: row i pairs cells 2 i and 2 i + 1. The filters' columns of tiles one after the other."""
    cdef Py_ssize_t f, i
    cdef const real* row
    for f in range(0, F, 16):
        row = dy + f
        for i in range(16 * tiles):
            unit_split(vec_load(row), vec_load(row + F), to + i // 16 * PARTS + i % 16 * UNIT_K)
            row += 2 * F
        to += tiles * PARTS


cdef inline forced_inline_void unit_learn_block(
    const int R, const int V, Py_ssize_t tiles, const bfloat* a, Py_ssize_t length, Py_ssize_t part, const bfloat* b, Py_ssize_t b_next, real* c,
    Py_ssize_t F) noexcept nogil:
    cdef Py_ssize_t k, a_row = length * sizeof(bfloat)
    unit_begin(R, V, c, F, True)
    for k in range(tiles):
        unit_step_in_planes(0, R, V, a, a_row, part, 16 * length, b, b_next)
        unit_step_in_planes(1, R, V, a, a_row, part, 16 * length, b, b_next)
        unit_step_in_planes(2, R, V, a, a_row, part, 16 * length, b, b_next)
        unit_step_in_planes(3, R, V, a, a_row, part, 16 * length, b, b_next)
        unit_step_in_planes(4, R, V, a, a_row, part, 16 * length, b, b_next)
        unit_step_in_planes(5, R, V, a, a_row, part, 16 * length, b, b_next)
        a += UNIT_K
        b += PARTS
    unit_end(R, V, c, F)


cdef void unit_learn_band(const Learning* s, Py_ssize_t image, Py_ssize_t first, Py_ssize_t slice, real* sums, char* memory) noexcept nogil:
    """As learn_band."""
    cdef const Plan* p = &s.plan
    cdef Py_ssize_t rows = min(s.band, p.rows - first), F = s.gradient.channels, C = p.plane.channels, i
    cdef Py_ssize_t length = turned_length(&p.plane), planes = p.plane.sy * p.plane.sx, part = planes * C * length
    cdef Py_ssize_t cells = (rows - 1) * p.plane.pitch + p.columns, tiles = (cells + 31) // 32
    cdef Canvas to
    cdef real* dy
    cdef bfloat* a
    cdef bfloat* b
    to.row = <real*> memory
    to.numbers = <real*> (memory + lines_of(max(s.source.columns * s.source.channels, s.gradient.columns * F) * sizeof(real)))
    to.parts, to.part = NULL, 0
    dy = to.numbers + whole_vectors(planes * p.plane.phase)
    a = <bfloat*> (dy + whole_vectors((s.band * p.plane.pitch + 32) * F))
    b = a + 3 * part
    fill_plane(&s.source, image, &p.plane, first, rows, &to)
    fill_gradient(&s.gradient, image, first, rows, p.plane.pitch, to.row, dy)
    memset(dy + rows * p.plane.pitch * F, 0, 32 * F * sizeof(real))
    for i in range(planes):
        turn_plane(to.numbers + i * p.plane.phase, p.plane.phase // C, C, length, a + i * C * length, part)
    cut_gradient(dy, tiles, F, b)
    for i in range(p.groups):
        unit_learn_group(s, i, slice, a, length, part, b, tiles, sums)
    if s.use_bias and slice == 0:
        sum_columns(dy, cells, F, 0, F, sums + s.taps * p.depth * F)


cdef void unit_learn_group(const Learning* s, Py_ssize_t group, Py_ssize_t slice, const bfloat* planes, Py_ssize_t length, Py_ssize_t part,
                           const bfloat* gradient, Py_ssize_t tiles, real* sums) noexcept nogil:
    cdef const Plan* p = &s.plan
    cdef Py_ssize_t F = s.gradient.channels, C = p.plane.channels, b_next = tiles * PARTS, pairs = (p.width + 31) // 32
    cdef Py_ssize_t start = 0, count, pair, f, c, r, t, offset
    cdef const Run* run
    cdef const bfloat* a
    cdef const bfloat* b
    cdef real* to
    while start < tiles:
        count = min(<Py_ssize_t> UNIT_CELLS, tiles - start)
        for pair in range(pairs * slice // s.slices, pairs * (slice + 1) // s.slices):
            f = group * p.width + 32 * pair
            b = gradient + f // 16 * b_next + start * PARTS
            for c in range(0, p.depth, 32):
                for r in range(p.phase.runs):
                    run = p.run + r
                    offset = run.offset // p.plane.phase * C * length + run.offset % p.plane.phase // C
                    for t in range(run.taps):
                        a = planes + (group * p.depth + c) * length + offset + t + start * UNIT_K
                        to = sums + (p.tap[run.first + t] * p.depth + c) * F + f
                        if p.depth - c > 16:
                            if p.width - 32 * pair > 16: unit_learn_block(2, 2, count, a, length, part, b, b_next, to, F)
                            else: unit_learn_block(2, 1, count, a, length, part, b, b_next, to, F)
                        elif p.width - 32 * pair > 16: unit_learn_block(1, 2, count, a, length, part, b, b_next, to, F)
                        else: unit_learn_block(1, 1, count, a, length, part, b, b_next, to, F)
        start += UNIT_CELLS
