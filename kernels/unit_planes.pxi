# Convolution on the matrix unit. Needs unit.pxi, planes.pxi and windows.pxi's Job and Learning.
#
# A plane in parts holds a pixel's channels one after the other, so a tile of A is 16 cells of it, read where they lie: its rows are a
# pixel apart, each the next 32 numbers of a run. A number is cut into parts once, however many windows see it.

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
    """Numbers k to k + 32 of a run, channels j to j + 16 of the result; zeros beyond the run, whose length is a multiple of 16. Row i of the
    tile pairs 2 i and 2 i + 1."""
    cdef Py_ssize_t i, half
    cdef real* turned = unit_memory.turned
    for half in range(0, UNIT_K, 16):
        if k + half == run.length:
            memset(turned + 16 * half, 0, 16 * 16 * sizeof(real))
        elif p.w_step == 1:
            for i in range(half, half + 16):
                vec_store(turned + 16 * i, vec_load(weights_of(p, run, k + i) + j))
        else:
            vec_transpose(weights_of(p, run, k + half) + j * p.w_step, p.w_step, turned + 16 * half, 16)
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
            unit_step_in_planes(0, R, V, a, a_row, part, a_next, b, PART, b_next)
            unit_step_in_planes(1, R, V, a, a_row, part, a_next, b, PART, b_next)
            unit_step_in_planes(2, R, V, a, a_row, part, a_next, b, PART, b_next)
            unit_step_in_planes(3, R, V, a, a_row, part, a_next, b, PART, b_next)
            unit_step_in_planes(4, R, V, a, a_row, part, a_next, b, PART, b_next)
            unit_step_in_planes(5, R, V, a, a_row, part, a_next, b, PART, b_next)
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


cdef void unit_emit(const Job* s, const Phase* phase, Py_ssize_t group, Py_ssize_t image, Py_ssize_t first, Py_ssize_t cell,
                    Py_ssize_t cells, Py_ssize_t j, Py_ssize_t columns, const real* sums) noexcept nogil:
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
#
# dW^T = dy^T x over cells: a row of a tile of A is 32 cells of one filter, a tile of B 32 cells of 16 channels, in pairs of cells. A tap
# is a shift of x by so many cells. Pairs can be shifted by an even number; for odd taps there is a second copy of dy^T, a cell later.
# (Shifting rows of x^T instead needs no copy, but their loads straddle cache lines: 210 GFLOP/s where aligned ones gave 280.)

cdef struct Turned:
    # Where a stack of images lies in parts, and what is between two images, parts, filters or blocks of channels.
    bfloat* dy
    bfloat* x
    Py_ssize_t dy_image
    Py_ssize_t dy_part
    Py_ssize_t dy_late     # to the copy that is a cell later
    Py_ssize_t dy_row
    Py_ssize_t x_image
    Py_ssize_t x_part
    Py_ssize_t x_block
    Py_ssize_t tiles       # of 32 cells
    Py_ssize_t images


cdef Turned turned_of(const Learning* s, char* memory) noexcept nogil:
    """Lay a stack of images out; with no memory, x tells how many bytes it takes."""
    cdef const Plane* plane = &s.plan.plane
    cdef Turned t
    cdef Py_ssize_t F = s.gradient.channels, C = plane.channels, planes = plane.sy * plane.sx
    t.tiles = ((s.band - 1) * plane.pitch + s.plan.columns + 1 + 31) // 32
    # An odd number of cache lines, so that rows do not meet in the same sets of a cache.
    t.dy_row = UNIT_K * (t.tiles + 1 - t.tiles % 2)
    t.dy_part = F * t.dy_row
    t.dy_late = 3 * t.dy_part
    t.dy_image = 6 * t.dy_part
    t.x_block = up(plane.phase // C + UNIT_K, 2) * UNIT_K
    t.x_part = planes * up(C, 16) * t.x_block
    t.x_image = 3 * t.x_part
    t.dy = <bfloat*> memory
    t.images = s.stack
    t.x = t.dy + t.images * t.dy_image
    if memory == NULL:
        t.x = <bfloat*> NULL + t.images * (t.dy_image + t.x_image)
    return t


cdef void turn_gradient(const real* dy, Py_ssize_t cells, Py_ssize_t F, const Turned* t, bfloat* to) noexcept nogil:
    """to[late][part][filter][cell] = dy[cell][filter], a cell later in the second copy; zeros behind the last. F is a multiple of 16."""
    cdef Py_ssize_t cell, f, i, j, there, part
    cdef real* turned = unit_memory.turned
    for cell in range(0, t.dy_row, 32):
        there = max(<Py_ssize_t> 0, min(<Py_ssize_t> 32, cells - cell))
        for f in range(0, F, 16):
            if there == 32:
                vec_transpose(dy + cell * F + f, F, turned, 32)
                vec_transpose(dy + (cell + 16) * F + f, F, turned + 16, 32)
            else:
                for j in range(16):
                    for i in range(32):
                        turned[32 * j + i] = dy[(cell + i) * F + f + j] if i < there else 0
            for j in range(16):
                unit_cut(turned + 32 * j, 32, to + (f + j) * t.dy_row + cell, t.dy_part)
    for part in range(3):
        for f in range(F):
            unit_shift(to + part * t.dy_part + f * t.dy_row, t.dy_row, to + t.dy_late + part * t.dy_part + f * t.dy_row)


cdef void pair_cells(const real* plane, Py_ssize_t cells, Py_ssize_t C, const Turned* t, bfloat* to) noexcept nogil:
    """to[part][block][pair][channel][cell of the pair] = plane[cell][channel], zeros behind the last cell. C is a multiple of 16."""
    cdef Py_ssize_t c, i, pairs = t.x_block // UNIT_K
    cdef const real* row
    for c in range(0, C, 16):
        row = plane + c
        for i in range(cells // 2):
            unit_split_into(vec_load(row), vec_load(row + C), to + i * UNIT_K, t.x_part)
            row += 2 * C
        for i in range(cells // 2, pairs):
            unit_split_into(vec_load(row) if 2 * i < cells else vec_zero(), vec_zero(), to + i * UNIT_K, t.x_part)
            row += 2 * C
        to += t.x_block


cdef inline forced_inline_void unit_learn_block(
    const int R, const int V, const Turned* t, const bfloat* dy, const bfloat* x, real* c, Py_ssize_t c_row) noexcept nogil:
    """c[R x 16 filters, V x 16 channels] += dy^T x over the cells of a stack of images"""
    cdef Py_ssize_t image, k, a_row = t.dy_row * sizeof(bfloat), a_next = 16 * t.dy_row
    cdef const bfloat* a
    cdef const bfloat* b
    unit_begin(R, V, c, c_row, True)
    for image in range(t.images):
        a = dy + image * t.dy_image
        b = x + image * t.x_image
        for k in range(t.tiles):
            unit_step_in_planes(0, R, V, a, a_row, t.dy_part, a_next, b, t.x_part, t.x_block)
            unit_step_in_planes(1, R, V, a, a_row, t.dy_part, a_next, b, t.x_part, t.x_block)
            unit_step_in_planes(2, R, V, a, a_row, t.dy_part, a_next, b, t.x_part, t.x_block)
            unit_step_in_planes(3, R, V, a, a_row, t.dy_part, a_next, b, t.x_part, t.x_block)
            unit_step_in_planes(4, R, V, a, a_row, t.dy_part, a_next, b, t.x_part, t.x_block)
            unit_step_in_planes(5, R, V, a, a_row, t.dy_part, a_next, b, t.x_part, t.x_block)
            a += UNIT_K
            b += 16 * UNIT_K
    unit_end(R, V, c, c_row)


cdef void unit_learn_group(const Learning* s, const Turned* t, Py_ssize_t group, Py_ssize_t slice, real* sums) noexcept nogil:
    """sums[tap][filter][channel of the group]"""
    cdef const Plan* p = &s.plan
    cdef Py_ssize_t F = s.gradient.channels, C = p.plane.channels, pairs = (p.width + 31) // 32
    cdef Py_ssize_t pair, f, c, r, i, cell
    cdef const Run* run
    cdef const bfloat* dy
    cdef const bfloat* x
    cdef real* to
    for pair in range(pairs * slice // s.slices, pairs * (slice + 1) // s.slices):
        f = group * p.width + 32 * pair
        for c in range(0, p.depth, 32):
            for r in range(p.phase.runs):
                run = p.run + r
                for i in range(run.taps):
                    cell = run.offset % p.plane.phase // C + i
                    dy = t.dy + f * t.dy_row + (t.dy_late if cell % 2 else 0)
                    x = (t.x + (run.offset // p.plane.phase * C + group * p.depth + c) // 16 * t.x_block
                         + (cell - cell % 2) // 2 * UNIT_K)
                    to = sums + (p.tap[run.first + i] * F + f) * p.depth + c
                    if p.width - 32 * pair > 16:
                        if p.depth - c > 16: unit_learn_block(2, 2, t, dy, x, to, p.depth)
                        else: unit_learn_block(2, 1, t, dy, x, to, p.depth)
                    elif p.depth - c > 16: unit_learn_block(1, 2, t, dy, x, to, p.depth)
                    else: unit_learn_block(1, 1, t, dy, x, to, p.depth)


cdef void unit_learn_stack(const Learning* s, Py_ssize_t image, Py_ssize_t images, Py_ssize_t first, Py_ssize_t slice, real* sums,
                           char* memory) noexcept nogil:
    """As learn_band, for several images at a time."""
    cdef const Plan* p = &s.plan
    cdef Py_ssize_t rows = min(s.band, p.rows - first), F = s.gradient.channels, C = p.plane.channels, i, j
    cdef Py_ssize_t cells = (rows - 1) * p.plane.pitch + p.columns
    cdef Bench at = bench_of(s, memory)
    cdef Turned t = turned_of(s, at.rest)
    for i in range(images):
        fill_plane(&s.source, image + i, &p.plane, first, rows, &at.plane)
        fill_gradient(&s.gradient, image + i, first, rows, p.plane.pitch, at.dy)
        for j in range(p.plane.sy * p.plane.sx):
            pair_cells(at.plane.numbers + j * p.plane.phase, (rows + p.plane.below) * p.plane.pitch + p.plane.beside, C, &t,
                       t.x + i * t.x_image + j * C // 16 * t.x_block)
        turn_gradient(at.dy, cells, F, &t, t.dy + i * t.dy_image)
        if s.use_bias and slice == 0:
            sum_columns(at.dy, cells, F, 0, F, sums + s.taps * p.depth * F)
    t.images = images
    for i in range(p.groups):
        unit_learn_group(s, &t, i, slice, sums)
