# The gradient of 3 x 3 filters with fewer multiplications. Needs winograd.pxi before it.
#
# Of each square of 4 x 4 outputs, the filter's gradient is 3 x 3 sums of 4 x 4 products: F(3 x 3, 4 x 4), over the same points, with dy
# where
# the filter was. The 36 products are summed over all squares, and brought back to 3 x 3 once.

cdef struct WinogradLearning:
    Winograd x             # what is seen of x; its rows and columns are dy's
    const real* dy
    Py_ssize_t F
    Py_ssize_t width       # filters of a slice, a multiple of the vector
    Py_ssize_t slices
    Py_ssize_t chunks
    real* sums             # a chunk's: [9][F][C], then db
    Py_ssize_t sums_size
    Py_ssize_t dy_step     # from one point to the next, as in `x`
    Py_ssize_t turning_step
    bint use_bias

cdef struct PointSums:
    # A thread's memory: sums[36][filters][C]; the squares of x and of dy at the points, as numbers [36][square][C] or in parts.
    real* sums
    real* x
    real* dy
    bfloat* x_parts
    bfloat* dy_parts
    real* turning          # [36][32 squares][16 filters] of dy on their way to parts
    char* end


cdef PointSums point_sums_of(const WinogradLearning* s, char* memory) noexcept nogil:
    cdef PointSums m
    cdef Py_ssize_t C = s.x.C, bytes = sizeof(bfloat) if s.x.on_unit else sizeof(real)
    m.sums = <real*> memory
    m.x = m.sums + whole_lines(36 * s.width * C)
    m.dy = <real*> (<char*> m.x + 36 * s.x.square_step * bytes)
    m.turning = <real*> (<char*> m.dy + 36 * s.dy_step * bytes)
    m.end = <char*> (m.turning + (36 * s.turning_step if s.x.on_unit else 0))
    m.x_parts, m.dy_parts = <bfloat*> m.x, <bfloat*> m.dy
    return m


cdef inline forced_inline_void gradient_to_points(vec d0, vec d1, vec d2, vec d3, vec* to, Py_ssize_t step) noexcept nogil:
    """G d for four numbers: as filter_to_points."""
    cdef vec even_a = (d0 + d2 * <real> 0.390625) * <real> (-1 / (2 * 0.390625 * 1.859375))
    cdef vec odd_a = (d1 + d3 * <real> 0.390625) * <real> (0.625 * -1 / (2 * 0.390625 * 1.859375))
    cdef vec even_b = (d0 + d2 * <real> 2.25) * <real> (1 / (2 * 2.25 * 1.859375))
    cdef vec odd_b = (d1 + d3 * <real> 2.25) * <real> (1.5 / (2 * 2.25 * 1.859375))
    to[0] = d0 * <real> (1 / 0.87890625)
    to[step] = even_a + odd_a
    to[2 * step] = even_a - odd_a
    to[3 * step] = even_b + odd_b
    to[4 * step] = even_b - odd_b
    to[5 * step] = d3


cdef inline forced_inline_void filter_from_points(const vec* m, Py_ssize_t step, vec* to, Py_ssize_t to_step) noexcept nogil:
    """A^T m: six numbers to three."""
    cdef vec even_a = m[step] + m[2 * step], odd_a = m[step] - m[2 * step]
    cdef vec even_b = m[3 * step] + m[4 * step], odd_b = m[3 * step] - m[4 * step]
    to[0] = m[0] + (even_a + even_b)
    to[to_step] = odd_a * <real> 0.625 + odd_b * <real> 1.5
    to[2 * to_step] = even_a * <real> 0.390625 + (even_b * <real> 2.25 + m[5 * step])


cdef void gradient_square(const WinogradLearning* s, Py_ssize_t square, Py_ssize_t f, Py_ssize_t lanes, vec* to) noexcept nogil:
    """One vector of filters of a square of dy, at the points."""
    cdef const Winograd* x = &s.x
    cdef vec d[16]
    cdef vec half[4 * 6]
    cdef Py_ssize_t i, j, top = square // x.across % x.down * 4, left = square % x.across * 4
    cdef const real* dy = s.dy + ((square // (x.down * x.across) * x.rows + top) * x.columns + left) * s.F + f
    for i in range(4):
        for j in range(4):
            if top + i < x.rows and left + j < x.columns:
                d[4 * i + j] = vec_load_part(dy + (i * x.columns + j) * s.F, lanes)
            else:
                d[4 * i + j] = vec_zero()
    for i in range(4):
        gradient_to_points(d[4 * i], d[4 * i + 1], d[4 * i + 2], d[4 * i + 3], half + 6 * i, 1)
    for j in range(6):
        gradient_to_points(half[j], half[6 + j], half[12 + j], half[18 + j], to + j, 6)


cdef void gradient_parts(const WinogradLearning* s, Py_ssize_t first, Py_ssize_t squares, Py_ssize_t f, const PointSums* m) noexcept nogil:
    """Sixteen filters of up to 32 squares of dy: rows of filters, each the squares' numbers in parts."""
    cdef Py_ssize_t i, q, at
    cdef vec points[36]
    cdef real* turned = unit_memory.turned
    for i in range(SQUARES):
        if i < squares:
            gradient_square(s, first + i, f, 16, points)
        for q in range(36):
            vec_store(m.turning + q * s.turning_step + i * 16, points[q] if i < squares else vec_zero())
    f %= s.width
    for q in range(36):
        vec_transpose(m.turning + q * s.turning_step, 16, turned, 32)
        vec_transpose(m.turning + q * s.turning_step + 16 * 16, 16, turned + 16, 32)
        at = q * s.dy_step + f // 16 * PARTS
        for i in range(16):
            unit_split(vec_load(turned + 32 * i), vec_load(turned + 32 * i + 16), m.dy_parts + at + UNIT_K * i)


cdef void pixel_parts(const WinogradLearning* s, Py_ssize_t first, Py_ssize_t squares, const PointSums* m) noexcept nogil:
    """Up to 32 squares of x in pairs of squares, 16 channels in a tile."""
    cdef Py_ssize_t i, c, q, C = s.x.C
    cdef const real* pixels[36]
    cdef const real* later[36]
    cdef vec low[36]
    cdef vec high[36]
    for i in range(16):
        for q in range(36):
            pixels[q] = later[q] = s.x.zeros
        if i < squares:
            pixels_of(&s.x, first + i, pixels)
        if i + 16 < squares:
            pixels_of(&s.x, first + i + 16, later)
        for c in range(0, C, 16):
            square_to_points(pixels, c, 16, low)
            square_to_points(later, c, 16, high)
            for q in range(36):
                unit_split(low[q], high[q], m.x_parts + q * s.x.square_step + c // 16 * PARTS + UNIT_K * i)


cdef inline forced_inline_void unit_add_product(const int R, const int V, const bfloat* a, const bfloat* b, real* c,
                                                Py_ssize_t c_row) noexcept nogil:
    unit_begin(R, V, c, c_row, True)
    unit_step(0, R, V, a, PARTS, b, PARTS)
    unit_step(1, R, V, a, PARTS, b, PARTS)
    unit_step(2, R, V, a, PARTS, b, PARTS)
    unit_step(3, R, V, a, PARTS, b, PARTS)
    unit_step(4, R, V, a, PARTS, b, PARTS)
    unit_step(5, R, V, a, PARTS, b, PARTS)
    unit_end(R, V, c, c_row)


cdef void unit_learn_squares(const WinogradLearning* s, Py_ssize_t first, Py_ssize_t squares, Py_ssize_t f, Py_ssize_t width,
                             const PointSums* m) noexcept nogil:
    """sums += dy^T x at the 36 points, over up to 32 squares, for filters f to f + width."""
    cdef Py_ssize_t q, i, c, C = s.x.C
    cdef const bfloat* a
    cdef const bfloat* b
    cdef real* to
    pixel_parts(s, first, squares, m)
    for i in range(0, width, 16):
        gradient_parts(s, first, squares, f + i, m)
    for q in range(36):
        for i in range(0, width, 32):
            a = m.dy_parts + q * s.dy_step + i // 16 * PARTS
            for c in range(0, C, 32):
                b = m.x_parts + q * s.x.square_step + c // 16 * PARTS
                to = m.sums + (q * s.width + i) * C + c
                if width - i > 16:
                    if C - c > 16: unit_add_product(2, 2, a, b, to, C)
                    else: unit_add_product(2, 1, a, b, to, C)
                elif C - c > 16: unit_add_product(1, 2, a, b, to, C)
                else: unit_add_product(1, 1, a, b, to, C)


cdef void learn_squares(const WinogradLearning* s, Py_ssize_t first, Py_ssize_t squares, Py_ssize_t f, Py_ssize_t width,
                        const PointSums* m) noexcept nogil:
    """As unit_learn_squares, on the vectors."""
    cdef Py_ssize_t i, j, q, panel, column, columns, C = s.x.C, vectors = (C + LANES - 1) // LANES
    cdef vec points[36]
    cdef int V
    squares_to_points(&s.x, first, squares, m.x, NULL)
    for i in range(squares):
        j = 0
        while j < width:
            gradient_square(s, first + i, f + j, min(<Py_ssize_t> LANES, width - j), points)
            for q in range(36):
                vec_store(m.dy + q * s.dy_step + i * s.width + j, points[q])
            j += LANES
    for q in range(36):
        for panel in range(panels_of(vectors)):
            V = panel_width(panel, vectors)
            column = panel * 2 * LANES
            columns = min(<Py_ssize_t> V * LANES, C - column)
            stripe(V, width, squares, m.dy + q * s.dy_step, 1, s.width, m.x + q * s.x.square_step + column, C,
                   m.sums + q * s.width * C + column, C, columns - (V - 1) * LANES, True)


cdef void bring_back(const WinogradLearning* s, Py_ssize_t f, Py_ssize_t width, const real* points, real* sums) noexcept nogil:
    """sums[9][F][C], filters f to f + width, from sums at the points."""
    cdef Py_ssize_t i, j, q, c, lanes, C = s.x.C
    cdef vec at[36]
    cdef vec half[3 * 6]
    cdef vec w[9]
    for i in range(width):
        c = 0
        while c < C:
            lanes = min(<Py_ssize_t> LANES, C - c)
            for q in range(36):
                at[q] = vec_load_part(points + (q * s.width + i) * C + c, lanes)
            for j in range(6):
                filter_from_points(at + j, 6, half + j, 6)
            for j in range(3):
                filter_from_points(half + 6 * j, 1, w + 3 * j, 1)
            for q in range(9):
                vec_store_part(sums + (q * s.F + f + i) * C + c, w[q], lanes)
            c += LANES


cdef void winograd_learn_item(const WinogradLearning* s, Py_ssize_t chunk, Py_ssize_t slice, char* memory) noexcept nogil:
    cdef PointSums m = point_sums_of(s, memory)
    cdef Py_ssize_t f = slice * s.width, width = min(s.width, s.F - f), pixels = s.x.rows * s.x.columns, each = s.x.down * s.x.across, n
    cdef Py_ssize_t first = s.x.N * chunk // s.chunks, last = s.x.N * (chunk + 1) // s.chunks, square = first * each
    cdef real* sums = s.sums + chunk * s.sums_size
    memset(m.sums, 0, 36 * s.width * s.x.C * sizeof(real))
    while square < last * each:
        n = min(<Py_ssize_t> SQUARES, last * each - square)
        if s.x.on_unit:
            unit_learn_squares(s, square, n, f, width, &m)
        else:
            learn_squares(s, square, n, f, width, &m)
        square += n
    bring_back(s, f, width, m.sums, sums)
    if s.use_bias:
        for n in range(first, last):
            sum_columns(s.dy + n * pixels * s.F, pixels, s.F, f, f + width, sums + 9 * s.F * s.x.C)


cdef void winograd_learn_share(const WinogradLearning* s, int part, int parts) noexcept nogil:
    cdef Py_ssize_t items = s.chunks * s.slices, item
    if s.x.on_unit:
        unit_open()
    for item in range(items * part // parts, items * (part + 1) // parts):
        winograd_learn_item(s, item // s.slices, item % s.slices, s.x.memory + part * s.x.thread_bytes)
    if s.x.on_unit:
        unit_close()
