# Convolution on the vectors: tiles of pixels whose windows are runs of a plane. Needs planes.pxi before it.

cdef struct Job:
    # One convolution of a batch by a plan; of its items (a band of rows of one image each) every thread takes its share.
    Plan plan
    Source source
    Py_ssize_t images
    Py_ssize_t band        # rows of outputs of an item
    Py_ssize_t bands       # items of an image
    real* result
    Py_ssize_t channels    # of the result
    const real* bias
    int activation
    bint on_unit
    const real* packed     # weights, a group and a phase after the other
    const bfloat* cut      # the same in parts, for the matrix unit
    char* memory           # of the first thread
    Py_ssize_t thread_bytes


cdef inline Py_ssize_t lines_of(Py_ssize_t bytes) noexcept nogil:
    """Rounded up to whole cache lines."""
    return (bytes + 63) // 64 * 64


cdef inline Py_ssize_t odd_lines(Py_ssize_t bytes) noexcept nogil:
    """Rounded up to an odd number of cache lines: what lies so far apart does not meet in the same sets of a cache."""
    return lines_of(bytes) + (0 if lines_of(bytes) // 64 % 2 else 64)


cdef inline Py_ssize_t whole_lines(Py_ssize_t n) noexcept nogil:
    """So many numbers, rounded up to whole cache lines."""
    return lines_of(n * sizeof(real)) // sizeof(real)


cdef inline Py_ssize_t whole_vectors(Py_ssize_t n) noexcept nogil:
    return (n + LANES - 1) // LANES * LANES


cdef inline real* result_of(const Job* s, const Phase* phase, Py_ssize_t image, Py_ssize_t row, Py_ssize_t group) noexcept nogil:
    """Where a phase's row begins."""
    cdef Py_ssize_t y = phase.row + row * phase.row_step
    return (s.result + ((image * s.plan.result_rows + y) * s.plan.result_columns + phase.column) * s.channels
            + group * s.plan.width)


cdef void pack_phase(const Plan* p, const Phase* phase, Py_ssize_t group, real* to) noexcept nogil:
    """A phase's weights in panels, as pack_all lays them, in the order of its runs."""
    cdef Py_ssize_t vectors = (p.width + LANES - 1) // LANES, panel, column, width, t
    cdef const Py_ssize_t* tap = p.tap + p.run[phase.run].first
    cdef const real* w
    for panel in range(panels_of(vectors)):
        column = panel * 2 * LANES
        width = panel_width(panel, vectors) * LANES
        for t in range(phase.taps):
            w = p.w + tap[t] * p.w_tap + group * p.w_group + column * p.w_step
            pack_panel(w, p.w_row, p.w_step, p.depth, width, min(width, p.width - column), to)
            to += p.depth * width


cdef void convolve_rows(const Job* s, const Phase* phase, Py_ssize_t group, const real* packed, const real* plane, Py_ssize_t image,
                        Py_ssize_t first, Py_ssize_t rows) noexcept nogil:
    """A phase's outputs of a band, for the channels of one group."""
    cdef const Plan* p = &s.plan
    cdef Py_ssize_t vectors = (p.width + LANES - 1) // LANES, panel, column, columns, q, r, k, C = p.plane.channels
    cdef Py_ssize_t K = phase.taps * p.depth
    cdef const Run* run
    cdef const real* a
    cdef real* c
    cdef int V
    for panel in range(panels_of(vectors)):
        V = panel_width(panel, vectors)
        column = panel * 2 * LANES
        columns = min(<Py_ssize_t> V * LANES, p.width - column)
        for q in range(rows):
            c = result_of(s, phase, image, first + q, group) + column
            a = plane + q * p.plane.pitch * C + group * p.depth
            k = 0
            for r in range(phase.runs):
                run = p.run + phase.run + r
                stripe(V, phase.columns, run.length, a + run.offset, C, 1, packed + column * K + k * V * LANES, V * LANES,
                       c, phase.column_step * s.channels, columns - (V - 1) * LANES, r > 0)
                k += run.length
            finish(s.activation, c, phase.column_step * s.channels, phase.columns, columns,
                   NULL if s.bias == NULL else s.bias + group * p.width + column)


cdef void unseen(const Job* s, const Phase* phase, Py_ssize_t image, Py_ssize_t first, Py_ssize_t rows) noexcept nogil:
    """Pixels of x that no window sees: their gradient is 0."""
    cdef Py_ssize_t q, x
    cdef real* c
    for q in range(rows):
        c = result_of(s, phase, image, first + q, 0)
        for x in range(phase.columns):
            memset(c + x * phase.column_step * s.channels, 0, s.channels * sizeof(real))


cdef void convolve_band(const Job* s, Py_ssize_t image, Py_ssize_t first, char* memory) noexcept nogil:
    """Rows of outputs from `first` on: of every phase as many as the band and the phase have."""
    cdef const Plan* p = &s.plan
    cdef Py_ssize_t planes = p.plane.sy * p.plane.sx * p.plane.phase, i, group, rows, packed = 0
    cdef const Phase* phase
    cdef Canvas to
    to.numbers = <real*> memory
    to.parts, to.part = <bfloat*> to.numbers if s.on_unit else NULL, planes
    fill_plane(&s.source, image, &p.plane, first, min(s.band, p.rows - first), &to)
    for group in range(1 if s.packed == NULL else p.groups):     # depthwise: all channels at once
        for i in range(p.phases):
            phase = p.phase + i
            rows = min(s.band, phase.rows - first)
            if rows > 0 and phase.columns > 0:
                if phase.taps == 0:
                    unseen(s, phase, image, first, rows)
                elif s.on_unit:
                    unit_convolve(s, phase, group, s.cut + packed, to.parts, planes, image, first, rows)
                elif s.packed == NULL:
                    depthwise_rows(s, phase, to.numbers, image, first, rows)
                else:
                    convolve_rows(s, phase, group, s.packed + packed, to.numbers, image, first, rows)
            packed += packed_size(s, phase)


cdef Py_ssize_t packed_size(const Job* s, const Phase* phase) noexcept nogil:
    """Numbers, or parts, of a phase's packed weights."""
    if s.on_unit:
        return unit_tiles(&s.plan, phase) * ((s.plan.width + 15) // 16) * PARTS
    return phase.taps * s.plan.depth * whole_vectors(s.plan.width)


cdef void convolve_share(const Job* s, int part, int parts) noexcept nogil:
    cdef Py_ssize_t items = s.images * s.bands, item
    if s.on_unit:
        unit_open()
    for item in range(items * part // parts, items * (part + 1) // parts):
        convolve_band(s, item // s.bands, item % s.bands * s.band, s.memory + part * s.thread_bytes)
    if s.on_unit:
        unit_close()


# ---- depthwise: every channel is convolved with one filter of its own --------------------------------------------------

cdef inline forced_inline_void depthwise_tile(
    const int R, const Plan* p, const Phase* phase, const real* a, Py_ssize_t a_row, const real* w, real* c, Py_ssize_t c_row,
    const real* bias, int activation, Py_ssize_t lanes) noexcept nogil:
    """R pixels next to each other, one vector of channels."""
    cdef vec total[8]
    cdef vec x
    cdef int i
    cdef Py_ssize_t t
    cdef const Run* run = p.run + phase.run
    for i in range(R):
        total[i] = vec_zero() if bias == NULL else vec_load_part(bias, lanes)
    for t in range(phase.taps):
        x = vec_load_part(w + p.tap[run[t].first] * p.w_tap, lanes)
        for i in range(R):
            total[i] = total[i] + x * vec_load_part(a + run[t].offset + i * a_row, lanes)
    for i in range(R):
        vec_store_part(c + i * c_row, total[i], lanes)
    finish(activation, c, c_row, R, lanes, NULL)


cdef void depthwise_rows(const Job* s, const Phase* phase, const real* plane, Py_ssize_t image, Py_ssize_t first,
                         Py_ssize_t rows) noexcept nogil:
    cdef const Plan* p = &s.plan
    cdef Py_ssize_t C = s.channels, q, x, j = 0, lanes
    cdef const real* a
    cdef const real* bias
    cdef real* c
    while j < C:
        lanes = min(<Py_ssize_t> LANES, C - j)
        bias = NULL if s.bias == NULL else s.bias + j
        for q in range(rows):
            a = plane + q * p.plane.pitch * C + j
            c = result_of(s, phase, image, first + q, 0) + j
            x = 0
            while x + 8 <= phase.columns:
                depthwise_tile(8, p, phase, a + x * C, C, p.w + j, c + x * phase.column_step * C, phase.column_step * C, bias,
                               s.activation, lanes)
                x += 8
            while x < phase.columns:
                depthwise_tile(1, p, phase, a + x * C, C, p.w + j, c + x * phase.column_step * C, phase.column_step * C, bias,
                               s.activation, lanes)
                x += 1
        j += LANES


# ---- the weights' gradient ---------------------------------------------------------------------------------------------

cdef struct Learning:
    # dW and db of a batch. Images are dealt to `chunks`, output channels to `slices`; each item has sums of its own, added in order.
    Plan plan              # of the forward pass
    Source source          # x
    Source gradient        # dy
    Py_ssize_t images
    Py_ssize_t band
    Py_ssize_t bands
    Py_ssize_t stack       # images at a time, for the matrix unit
    Py_ssize_t chunks
    Py_ssize_t slices
    Py_ssize_t taps
    real* sums             # a chunk's: dW, then db
    Py_ssize_t sums_size
    bint use_bias
    bint on_unit
    bint depthwise
    char* memory
    Py_ssize_t thread_bytes


cdef void fill_gradient(const Source* s, Py_ssize_t image, Py_ssize_t first, Py_ssize_t rows, Py_ssize_t pitch,
                        real* to) noexcept nogil:
    """Rows of dy in the cells of the planes; zeros in those that are no output."""
    cdef Py_ssize_t q, size = s.columns * s.channels
    for q in range(rows):
        memcpy(to, source_row(s, image, first + q), size * sizeof(real))
        memset(to + size, 0, (pitch - s.columns) * s.channels * sizeof(real))
        to += pitch * s.channels


cdef void sum_columns(const real* dy, Py_ssize_t rows, Py_ssize_t F, Py_ssize_t first, Py_ssize_t end, real* db) noexcept nogil:
    """db[first to end] += sums of the columns of dy."""
    cdef Py_ssize_t j = first, i, lanes
    cdef vec total
    while j < end:
        lanes = min(<Py_ssize_t> LANES, end - j)
        total = vec_zero()
        for i in range(rows):
            total = total + vec_load_part(dy + i * F + j, lanes)
        vec_store_part(db + j, vec_load_part(db + j, lanes) + total, lanes)
        j += LANES


cdef void learn_rows(const Learning* s, Py_ssize_t group, const real* plane, const real* dy, Py_ssize_t cells, Py_ssize_t first,
                     Py_ssize_t end, real* dW) noexcept nogil:
    """dW (+)= x^T dy over a band's cells, panels first to end of a group's filters."""
    cdef const Plan* p = &s.plan
    cdef Py_ssize_t vectors = (p.width + LANES - 1) // LANES, C = p.plane.channels, F = s.gradient.channels
    cdef Py_ssize_t k = 0, size, panel, column, columns, r, t
    cdef const Run* run
    cdef const real* a
    cdef const real* b
    cdef real* c
    cdef int V
    while k < cells:
        size = min(<Py_ssize_t> K_BLOCK, cells - k)
        for panel in range(first, end):
            V = panel_width(panel, vectors)
            column = group * p.width + panel * 2 * LANES
            columns = min(<Py_ssize_t> V * LANES, p.width - panel * 2 * LANES)
            b = dy + k * F + column
            for r in range(p.phase.runs):
                run = p.run + r
                a = plane + k * C + group * p.depth + run.offset
                if p.plane.sx == 1:     # the taps of a run follow each other in W too
                    stripe(V, run.length, size, a, 1, C, b, F, dW + p.tap[run.first] * p.depth * F + column, F,
                           columns - (V - 1) * LANES, True)
                    continue
                for t in range(run.taps):
                    stripe(V, p.depth, size, a + t * p.depth, 1, C, b, F, dW + p.tap[run.first + t] * p.depth * F + column, F,
                           columns - (V - 1) * LANES, True)
        k += size


cdef void learn_depthwise(const Learning* s, const real* plane, const real* dy, Py_ssize_t cells, real* dW) noexcept nogil:
    """As learn_rows."""
    cdef const Plan* p = &s.plan
    cdef Py_ssize_t C = p.plane.channels, j = 0, lanes, t, i, k, size
    cdef vec total[8]
    cdef vec d
    cdef const real* x
    cdef real* to
    while j < C:
        lanes = min(<Py_ssize_t> LANES, C - j)
        t = 0
        while t < p.phase.taps:
            size = min(<Py_ssize_t> 8, p.phase.taps - t)
            for i in range(8):
                total[i] = vec_zero()
            if size == 8:
                for k in range(cells):
                    d = vec_load_part(dy + k * C + j, lanes)
                    x = plane + k * C + j
                    for i in range(8):
                        total[i] = total[i] + d * vec_load_part(x + p.run[t + i].offset, lanes)
            else:
                for k in range(cells):
                    d = vec_load_part(dy + k * C + j, lanes)
                    x = plane + k * C + j
                    for i in range(size):
                        total[i] = total[i] + d * vec_load_part(x + p.run[t + i].offset, lanes)
            for i in range(size):
                to = dW + p.tap[p.run[t + i].first] * C + j
                vec_store_part(to, vec_load_part(to, lanes) + total[i], lanes)
            t += 8
        j += LANES


cdef struct Bench:
    # A thread's memory: planes of x, rows of dy in their cells, and what is behind them.
    Canvas plane
    real* dy
    char* rest


cdef Bench bench_of(const Learning* s, char* memory) noexcept nogil:
    cdef Bench b
    cdef const Plane* p = &s.plan.plane
    b.plane.numbers = <real*> memory
    b.plane.parts, b.plane.part = NULL, 0
    b.dy = b.plane.numbers + whole_lines(p.sy * p.sx * p.phase)
    b.rest = <char*> (b.dy + whole_lines((s.band * p.pitch + 32) * s.gradient.channels))
    return b


cdef void learn_band(const Learning* s, Py_ssize_t image, Py_ssize_t first, Py_ssize_t slice, real* sums, char* memory) noexcept nogil:
    cdef const Plan* p = &s.plan
    cdef Py_ssize_t rows = min(s.band, p.rows - first), F = s.gradient.channels, group, count, cells
    cdef Bench at = bench_of(s, memory)
    fill_plane(&s.source, image, &p.plane, first, rows, &at.plane)
    fill_gradient(&s.gradient, image, first, rows, p.plane.pitch, at.dy)
    cells = (rows - 1) * p.plane.pitch + p.columns
    if s.depthwise:
        learn_depthwise(s, at.plane.numbers, at.dy, cells, sums)    # there is one slice: a group is less than a panel
    else:
        count = panels_of((p.width + LANES - 1) // LANES)
        for group in range(p.groups):
            learn_rows(s, group, at.plane.numbers, at.dy, cells, count * slice // s.slices, count * (slice + 1) // s.slices, sums)
    if s.use_bias and slice == 0:
        sum_columns(at.dy, cells, F, 0, F, sums + s.taps * p.depth * F)


cdef void learn_share(const Learning* s, int part, int parts) noexcept nogil:
    """Items are chunks of the images times slices of the filters."""
    cdef Py_ssize_t items = s.chunks * s.slices, item, chunk, image, stop, band, stack = s.stack if s.on_unit else 1
    cdef char* memory = s.memory + part * s.thread_bytes
    cdef real* sums
    if s.on_unit:
        unit_open()
    for item in range(items * part // parts, items * (part + 1) // parts):
        chunk = item // s.slices
        sums = s.sums + chunk * s.sums_size
        image, stop = s.images * chunk // s.chunks, s.images * (chunk + 1) // s.chunks
        while image < stop:
            for band in range(s.bands):
                if s.on_unit:
                    unit_learn_stack(s, image, min(stack, stop - image), band * s.band, item % s.slices, sums, memory)
                else:
                    learn_band(s, image, band * s.band, item % s.slices, sums, memory)
            image += stack
    if s.on_unit:
        unit_close()


cdef void add_chunks(const real* sums, Py_ssize_t sums_size, Py_ssize_t chunks, Py_ssize_t size, real* to, bint accumulate) noexcept nogil:
    """to (+)= the chunks' sums, in their order."""
    cdef Py_ssize_t i = 0, chunk, n
    cdef vec total
    while i < size:
        n = min(<Py_ssize_t> LANES, size - i)
        total = vec_load_part(sums + i, n)
        for chunk in range(1, chunks):
            total = total + vec_load_part(sums + chunk * sums_size + i, n)
        if accumulate:
            total = total + vec_load_part(to + i, n)
        vec_store_part(to + i, total, n)
        i += LANES


cdef void add_turned_chunks(real* sums, Py_ssize_t sums_size, Py_ssize_t chunks, Py_ssize_t taps, Py_ssize_t C, Py_ssize_t F, real* dW,
                            bint accumulate) noexcept nogil:
    """dW[tap][c][f] (+)= the chunks' sums[tap][f][c], in their order."""
    cdef Py_ssize_t tap, f, c, i, j
    cdef real block[16 * 16]
    cdef real* to
    if chunks > 1:
        add_chunks(sums, sums_size, chunks, taps * C * F, sums, False)
    for tap in range(taps):
        c = 0
        while c < C:
            f = 0
            while f < F:
                to = dW + (tap * C + c) * F + f
                if c + LANES <= C and f + LANES <= F:
                    vec_transpose(sums + (tap * F + f) * C + c, C, block, LANES)
                    for i in range(LANES):
                        vec_store(to + i * F, vec_load(block + LANES * i) + (vec_load(to + i * F) if accumulate else vec_zero()))
                else:
                    for i in range(min(<Py_ssize_t> LANES, C - c)):
                        for j in range(min(<Py_ssize_t> LANES, F - f)):
                            to[i * F + j] = sums[(tap * F + f + j) * C + c + i] + (to[i * F + j] if accumulate else 0)
                f += LANES
            c += LANES
