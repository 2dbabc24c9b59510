# Images laid out to be convolved: with their border of zeros, so that every window lies in memory as a list of contiguous runs.
#
# A plane holds the pixels in rows of `pitch` cells. With strides there are sy x sx planes, of every sy-th row and sx-th column each: in
# a plane every convolution has stride 1. Outputs are counted as the cells are, q * pitch + p for pixel p of row q, so that the window of
# the next output begins one cell later, whatever the stride; the right border of a row serves as the left one of the next.
#
# The same plane serves the gradient of x: that is a convolution of dy, for each of sy x sx sorts of pixels ("phases") with other taps.
#
# Needs vec.pxi, activation.pxi and product.pxi before it.

from libc.string cimport memset

cdef struct Source:
    # Images: x or dy.
    const real* x
    Py_ssize_t rows
    Py_ssize_t columns
    Py_ssize_t channels

cdef struct Plane:
    # Cell (a, b, u, v) holds the source's pixel (u sy + a - oy, v sx + b - ox), or zeros outside.
    Py_ssize_t sy
    Py_ssize_t sx
    Py_ssize_t oy
    Py_ssize_t ox
    Py_ssize_t pitch
    Py_ssize_t below       # rows that windows reach below the outputs' rows
    Py_ssize_t beside      # cells that they reach beyond a row's pitch
    Py_ssize_t channels
    Py_ssize_t phase       # numbers from one plane to the next

cdef struct Run:
    # Taps whose numbers lie one after the other.
    Py_ssize_t first       # of the plan's taps
    Py_ssize_t taps
    Py_ssize_t offset      # of the first number, from the output's cell
    Py_ssize_t length      # numbers

cdef struct Phase:
    # Outputs that see the same taps: rows x columns of them.
    Py_ssize_t run
    Py_ssize_t runs
    Py_ssize_t taps
    Py_ssize_t rows
    Py_ssize_t columns
    Py_ssize_t row         # of the result, where its first output lies, and from one to the next
    Py_ssize_t column
    Py_ssize_t row_step
    Py_ssize_t column_step

cdef struct Plan:
    Plane plane
    Phase* phase
    Run* run
    Py_ssize_t* tap        # their numbers, height-major, in the order of the runs
    Py_ssize_t taps
    Py_ssize_t phases
    Py_ssize_t groups
    Py_ssize_t depth       # numbers of a tap: channels of a group of the source
    Py_ssize_t width       # channels of a group of the result
    Py_ssize_t rows        # most rows of a phase
    Py_ssize_t columns
    Py_ssize_t result_rows
    Py_ssize_t result_columns
    # Weights: for tap t, number k of it and channel j of the result w[t w_tap + k w_row + j w_step], a group's beginning w_group further.
    const real* w
    Py_ssize_t w_tap
    Py_ssize_t w_row
    Py_ssize_t w_step
    Py_ssize_t w_group


cdef struct Geometry:
    # A convolution: x (N, H, W, C), filters (height, width, C / groups, F), result (N, rows, columns, F).
    Py_ssize_t N, H, W, C, F, groups
    Py_ssize_t height, width
    Py_ssize_t sy, sx, py, px, dy, dx
    Py_ssize_t rows, columns


cdef inline Py_ssize_t up(Py_ssize_t a, Py_ssize_t b) noexcept nogil:
    """a / b, rounded up; a may be negative."""
    return (a + b - 1) // b if a > 0 else -(-a // b)


cdef inline Py_ssize_t* tap_room(Plan* p, void* memory, Py_ssize_t taps, Py_ssize_t phases) noexcept nogil:
    """Give the plan its tables; `memory` holds plan_bytes(taps, phases)."""
    p.phase = <Phase*> memory
    p.run = <Run*> (p.phase + phases)
    p.tap = <Py_ssize_t*> (p.run + taps)
    p.taps = p.phases = 0
    return p.tap


cdef inline Py_ssize_t plan_bytes(Py_ssize_t taps, Py_ssize_t phases) noexcept nogil:
    return phases * sizeof(Phase) + taps * (sizeof(Run) + sizeof(Py_ssize_t))


cdef Phase* add_phase(Plan* p, Py_ssize_t rows, Py_ssize_t columns) noexcept nogil:
    cdef Phase* phase = p.phase + p.phases
    phase.run = 0 if p.phases == 0 else phase[-1].run + phase[-1].runs
    phase.runs = phase.taps = 0
    phase.rows, phase.columns = rows, columns
    p.phases += 1
    return phase


cdef void add_tap(Plan* p, Phase* phase, Py_ssize_t tap, Py_ssize_t plane, Py_ssize_t row, Py_ssize_t column) noexcept nogil:
    """A tap that sees the cell `row` rows and `column` cells behind the output's own; where it lies right behind the last run, it
    prolongs it."""
    cdef Py_ssize_t offset = plane * p.plane.phase + (row * p.plane.pitch + column) * p.plane.channels
    cdef Run* run = p.run + phase.run + phase.runs
    p.tap[p.taps] = tap
    if phase.runs and p.groups == 1 and run[-1].offset + run[-1].length == offset:
        run[-1].taps += 1
        run[-1].length += p.depth
    else:
        run.first, run.taps, run.offset, run.length = p.taps, 1, offset, p.depth
        phase.runs += 1
    p.taps += 1
    phase.taps += 1


cdef void set_pitch(Plane* plane, Py_ssize_t outputs, Py_ssize_t reach, Py_ssize_t left, Py_ssize_t first_right) noexcept nogil:
    """Of rows of `outputs` + `reach` cells, `left` zeros first and zeros from cell `first_right` on: a row's right border is the next
    one's left."""
    cdef Py_ssize_t shared = max(<Py_ssize_t> 0, min(min(left, outputs + reach - first_right), reach))
    plane.pitch, plane.beside = outputs + reach - shared, shared


cdef inline void set_rows(Plane* plane, Py_ssize_t rows) noexcept nogil:
    """Make planes for so many rows of outputs at a time. Behind the last cell there is room for a tile of 32 cells and a tile of k."""
    plane.phase = ((rows + plane.below) * plane.pitch + plane.beside + 32) * plane.channels + 32


cdef void plan_extents(Plan* p, const Geometry* g) noexcept nogil:
    """Of y = x * W."""
    cdef Plane* plane = &p.plane
    plane.sy, plane.sx, plane.oy, plane.ox, plane.channels = g.sy, g.sx, g.py, g.px, g.C
    plane.below = (g.height - 1) * g.dy // g.sy
    set_pitch(plane, g.columns, (g.width - 1) * g.dx // g.sx, g.px // g.sx, up(g.W + g.px, g.sx))
    p.groups, p.depth, p.width = g.groups, g.C // g.groups, g.F // g.groups
    p.rows, p.columns = p.result_rows, p.result_columns = g.rows, g.columns


cdef void plan_taps(Plan* p, const Geometry* g) noexcept nogil:
    """Of y = x * W, once the planes' size is known."""
    cdef Py_ssize_t i, j, b, row, column
    cdef Phase* phase = add_phase(p, g.rows, g.columns)
    phase.row = phase.column = 0
    phase.row_step = phase.column_step = 1
    for i in range(g.height):
        row = i * g.dy
        for b in range(g.sx):
            for j in range(g.width):
                column = j * g.dx
                if column % g.sx == b:
                    add_tap(p, phase, i * g.width + j, row % g.sy * g.sx + b, row // g.sy, column // g.sx)


cdef struct Reach:
    # Along one axis, of the pixels h = first + s u of dx that see the same taps: which cells of dy they see.
    Py_ssize_t first       # such pixel
    Py_ssize_t count
    Py_ssize_t u           # (first + padding) / s, rounded down
    Py_ssize_t most        # steps back to dy's cell, of the taps; -1 where there are none


cdef Reach reach_of(Py_ssize_t part, Py_ssize_t size, Py_ssize_t k, Py_ssize_t s, Py_ssize_t padding, Py_ssize_t d) noexcept nogil:
    """Pixel h of x meets tap i in the output (h + padding - i d) / s, where that is whole."""
    cdef Reach r
    cdef Py_ssize_t i
    r.u = up(padding - part, s)
    if r.u < 0:
        r.u = 0
    r.first = s * r.u + part - padding
    r.count = max(<Py_ssize_t> 0, up(size - r.first, s))
    r.most = -1
    for i in range(k):
        if i * d % s == part:
            r.most = i * d // s
    return r


cdef void plan_back_extents(Plan* p, const Geometry* g) noexcept nogil:
    """Of dx: y there is x here, and W turned round."""
    cdef Plane* plane = &p.plane
    cdef Py_ssize_t part
    cdef Reach r
    plane.sy = plane.sx = 1
    plane.channels = g.F
    plane.oy = plane.ox = -(g.H + g.W + g.py + g.px)      # below any of the reaches
    p.rows = p.columns = 0
    for part in range(g.sy):
        r = reach_of(part, g.H, g.height, g.sy, g.py, g.dy)
        p.rows = max(p.rows, r.count)
        if r.most >= 0:
            plane.oy = max(plane.oy, r.most - r.u)
    for part in range(g.sx):
        r = reach_of(part, g.W, g.width, g.sx, g.px, g.dx)
        p.columns = max(p.columns, r.count)
        if r.most >= 0:
            plane.ox = max(plane.ox, r.most - r.u)
    # No pixels see further than those of tap 0, whose u is the largest.
    plane.below, plane.beside = up(g.py, g.sy) + plane.oy, up(g.px, g.sx) + plane.ox
    set_pitch(plane, p.columns, plane.beside, plane.ox, g.columns + plane.ox)
    p.groups, p.depth, p.width = g.groups, g.F // g.groups, g.C // g.groups
    p.result_rows, p.result_columns = g.H, g.W


cdef void plan_back_taps(Plan* p, const Geometry* g) noexcept nogil:
    """Of dx, once the plane's size is known."""
    cdef Py_ssize_t a, b, i, j
    cdef Reach row, column
    cdef Phase* phase
    for a in range(g.sy):
        row = reach_of(a, g.H, g.height, g.sy, g.py, g.dy)
        for b in range(g.sx):
            column = reach_of(b, g.W, g.width, g.sx, g.px, g.dx)
            phase = add_phase(p, row.count, column.count)
            phase.row, phase.column, phase.row_step, phase.column_step = row.first, column.first, g.sy, g.sx
            for i in range(g.height - 1, -1, -1):
                if i * g.dy % g.sy != a:
                    continue
                for j in range(g.width - 1, -1, -1):
                    if j * g.dx % g.sx == b:
                        add_tap(p, phase, i * g.width + j, 0, row.u - i * g.dy // g.sy + p.plane.oy,
                                column.u - j * g.dx // g.sx + p.plane.ox)


# ---- filling ---------------------------------------------------------------------------------------------------------

cdef struct Canvas:
    # Where planes are written: as numbers, or for the matrix unit as three planes of parts, `part` apart.
    real* numbers
    bfloat* parts
    Py_ssize_t part


cdef inline void put_zeros(const Canvas* c, Py_ssize_t at, Py_ssize_t n) noexcept nogil:
    cdef int i
    if c.parts == NULL:
        memset(c.numbers + at, 0, n * sizeof(real))
    else:
        for i in range(3):
            memset(c.parts + i * c.part + at, 0, n * sizeof(bfloat))


cdef inline void put(const Canvas* c, Py_ssize_t at, const real* source, Py_ssize_t n) noexcept nogil:
    if c.parts == NULL:
        memcpy(c.numbers + at, source, n * sizeof(real))
    else:
        unit_cut(source, n, c.parts + at, c.part)


cdef inline const real* source_row(const Source* s, Py_ssize_t image, Py_ssize_t row) noexcept nogil:
    return s.x + (image * s.rows + row) * s.columns * s.channels


cdef void fill_plane(const Source* s, Py_ssize_t image, const Plane* p, Py_ssize_t first, Py_ssize_t rows, const Canvas* to) noexcept nogil:
    """The cells that `rows` rows of outputs see, from row `first` on, and zeros behind them."""
    cdef Py_ssize_t a, b, u, v, row, at, low, high, C = p.channels
    cdef const real* source
    for a in range(p.sy):
        for u in range(rows + p.below):
            row = (first + u) * p.sy + a - p.oy
            source = NULL if row < 0 or row >= s.rows else source_row(s, image, row)
            for b in range(p.sx):
                at = (a * p.sx + b) * p.phase + u * p.pitch * C
                low = min(p.pitch, max(<Py_ssize_t> 0, up(p.ox - b, p.sx)))
                high = max(low, min(p.pitch, up(s.columns + p.ox - b, p.sx)))
                if source == NULL or low == high:
                    put_zeros(to, at, p.pitch * C)
                    continue
                put_zeros(to, at, low * C)
                if p.sx == 1:
                    put(to, at + low * C, source + (low - p.ox) * C, (high - low) * C)
                else:
                    for v in range(low, high):
                        put(to, at + v * C, source + (v * p.sx + b - p.ox) * C, C)
                put_zeros(to, at + high * C, (p.pitch - high) * C)
        for b in range(p.sx):
            at = (a * p.sx + b) * p.phase
            put_zeros(to, at + (rows + p.below) * p.pitch * C, (p.beside + 32) * C + 32)
