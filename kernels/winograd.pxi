# Convolution by 3 x 3 filters with fewer multiplications (Winograd 1980; Lavin and Gray 2016, arXiv:1509.09308, algorithm F(4 x 4, 3 x 3)).
#
# A square of 4 x 4 outputs is three steps: the 6 x 6 pixels that it sees, channel by channel, become 36 numbers each by B^T d B; for each
# of the 36 a matrix product over the channels with the filters, which became 36 numbers by G w G^T; and A^T m A brings 36 products back to
# 16 outputs. That is 36 multiplications instead of 144.
#
# The transforms evaluate polynomials at the points 0, +-a, +-b and infinity. With a = 5/8, b = 3/2 all their constants are exact in
# binary, and
# the error is a third of that of the usual points 1 and 2 (the method: Barabasz, Anderson, Soodhalter and Gregg 2020, doi:10.1145/3412380).
#
# Needs product.pxi and planes.pxi before it.

cdef enum:
    SQUARES = 32       # squares of outputs at a time: two tiles of the matrix unit
    SQUARE_ROW = 48    # numbers in a row of their products: three vectors at most
    POINT_STEP = SQUARES * SQUARE_ROW + 16     # from one point's products to the next

cdef struct Winograd:
    const real* x
    Py_ssize_t N
    Py_ssize_t H           # of x
    Py_ssize_t W
    Py_ssize_t C
    Py_ssize_t py
    Py_ssize_t px
    Py_ssize_t rows        # of the result
    Py_ssize_t columns
    Py_ssize_t F
    real* result
    const real* bias
    int activation
    bint on_unit
    Py_ssize_t down        # squares of an image
    Py_ssize_t across
    real* filters          # [36][panel][C][width], or in parts [36][16 filters][32 channels]
    bfloat* filter_parts
    const real* zeros      # C of them
    # From one point to the next, in numbers or parts: an odd number of cache lines.
    Py_ssize_t filter_step
    Py_ssize_t square_step
    char* memory
    Py_ssize_t thread_bytes


# ---- the transforms ------------------------------------------------------------------------------------------------------

cdef inline forced_inline_void to_points(vec* d, Py_ssize_t step) noexcept nogil:
    """B^T d, in place: six numbers `step` apart. a^2 = 25/64, b^2 = 9/4."""
    cdef vec even_a = d[4 * step] - d[2 * step] * <real> 2.25, odd_a = d[3 * step] - d[step] * <real> 2.25
    cdef vec even_b = d[4 * step] - d[2 * step] * <real> 0.390625, odd_b = d[3 * step] - d[step] * <real> 0.390625
    d[0] = d[0] * <real> 0.87890625 + (d[4 * step] - d[2 * step] * <real> 2.640625)
    d[5 * step] = d[step] * <real> 0.87890625 + (d[5 * step] - d[3 * step] * <real> 2.640625)
    d[step] = even_a + odd_a * <real> 0.625
    d[2 * step] = even_a - odd_a * <real> 0.625
    d[3 * step] = even_b + odd_b * <real> 1.5
    d[4 * step] = even_b - odd_b * <real> 1.5


cdef inline forced_inline_void filter_to_points(vec w0, vec w1, vec w2, vec* to, Py_ssize_t step) noexcept nogil:
    """G w: (w0 + p w1 + p^2 w2) divided by the product of p minus the other points."""
    cdef vec even_a = (w0 + w2 * <real> 0.390625) * <real> (-1 / (2 * 0.390625 * 1.859375))
    cdef vec odd_a = w1 * <real> (0.625 * -1 / (2 * 0.390625 * 1.859375))
    cdef vec even_b = (w0 + w2 * <real> 2.25) * <real> (1 / (2 * 2.25 * 1.859375)), odd_b = w1 * <real> (1.5 / (2 * 2.25 * 1.859375))
    to[0] = w0 * <real> (1 / 0.87890625)
    to[step] = even_a + odd_a
    to[2 * step] = even_a - odd_a
    to[3 * step] = even_b + odd_b
    to[4 * step] = even_b - odd_b
    to[5 * step] = w2


cdef inline forced_inline_void from_points(const vec* m, Py_ssize_t step, vec* to, Py_ssize_t to_step) noexcept nogil:
    """A^T m: six numbers to four."""
    cdef vec even_a = m[step] + m[2 * step], odd_a = m[step] - m[2 * step]
    cdef vec even_b = m[3 * step] + m[4 * step], odd_b = m[3 * step] - m[4 * step]
    to[0] = m[0] + (even_a + even_b)
    to[to_step] = odd_a * <real> 0.625 + odd_b * <real> 1.5
    to[2 * to_step] = even_a * <real> 0.390625 + even_b * <real> 2.25
    to[3 * to_step] = odd_a * <real> 0.244140625 + (odd_b * <real> 3.375 + m[5 * step])


# ---- filters -------------------------------------------------------------------------------------------------------------

cdef void filters_at_points(const real* w, Py_ssize_t tap, Py_ssize_t lanes, vec* to) noexcept nogil:
    """One vector of filters of one channel: nine weights, `tap` apart, become 36 vectors."""
    cdef vec column[3 * 6]
    cdef int i
    for i in range(3):
        filter_to_points(vec_load_part(w + i * tap, lanes), vec_load_part(w + (3 + i) * tap, lanes), vec_load_part(w + (6 + i) * tap,
                                                                                                                   lanes),
                         column + i, 3)
    for i in range(6):
        filter_to_points(column[3 * i], column[3 * i + 1], column[3 * i + 2], to + 6 * i, 1)


cdef void transform_filters(const Winograd* s, const real* w, Py_ssize_t part, Py_ssize_t parts) noexcept nogil:
    """w: [9][C][F]; the part-th share of the channels, in blocks of 32."""
    cdef Py_ssize_t C = s.C, F = s.F, blocks = (C + 31) // 32, block, c, f, q, width, column, panel, vectors = (F + LANES - 1) // LANES
    cdef vec low[36]
    cdef vec high[36]
    for block in range(blocks * part // parts, blocks * (part + 1) // parts):
        if s.on_unit:
            for c in range(32 * block, 32 * block + 16):
                for f in range(0, F, 16):
                    filters_at_points(w + c * F + f, C * F, 16, low)
                    filters_at_points(w + (c + 16) * F + f, C * F, 16, high)
                    for q in range(36):
                        unit_split(low[q], high[q],
                                   s.filter_parts + q * s.filter_step + (f // 16 * blocks + block) * PARTS + c % 32 * UNIT_K)
            continue
        for c in range(32 * block, min(C, 32 * block + 32)):
            for panel in range(panels_of(vectors)):
                column = panel * 2 * LANES
                width = panel_width(panel, vectors) * LANES
                f = 0
                while f < width:
                    filters_at_points(w + c * F + column + f, C * F, max(<Py_ssize_t> 0, min(<Py_ssize_t> LANES, F - column - f)), low)
                    for q in range(36):
                        vec_store(s.filters + q * s.filter_step + column * C + c * width + f, low[q])
                    f += LANES


cdef void turn_filters(const real* W, Py_ssize_t C, Py_ssize_t F, real* to) noexcept nogil:
    """to[9][F][C]: the filters that take dy to dx, turned by half a turn."""
    cdef Py_ssize_t tap, c, f
    cdef const real* source
    for tap in range(9):
        source = W + (8 - tap) * C * F
        c = 0
        while c < C:
            f = 0
            while f < F:
                if c + LANES <= C and f + LANES <= F:
                    vec_transpose(source + c * F + f, F, to + f * C + c, C)
                else:
                    turn_edge(source + c * F + f, F, min(<Py_ssize_t> LANES, C - c), min(<Py_ssize_t> LANES, F - f), to + f * C + c, C)
                f += LANES
            c += LANES
        to += C * F


cdef void turn_edge(const real* source, Py_ssize_t source_row, Py_ssize_t rows, Py_ssize_t columns, real* to,
                    Py_ssize_t to_row) noexcept nogil:
    cdef Py_ssize_t i, j
    for i in range(rows):
        for j in range(columns):
            to[j * to_row + i] = source[i * source_row + j]


# ---- squares -------------------------------------------------------------------------------------------------------------

cdef void pixels_of(const Winograd* s, Py_ssize_t square, const real** pixels) noexcept nogil:
    """Where each of the 6 x 6 pixels of a square lies."""
    cdef Py_ssize_t image = square // (s.down * s.across), i, j, h, w
    cdef Py_ssize_t top = square // s.across % s.down * 4 - s.py, left = square % s.across * 4 - s.px
    for i in range(6):
        h = top + i
        for j in range(6):
            w = left + j
            pixels[6 * i + j] = s.zeros if h < 0 or h >= s.H or w < 0 or w >= s.W else s.x + ((image * s.H + h) * s.W + w) * s.C


cdef inline forced_inline_void square_to_points(const real** pixels, Py_ssize_t c, Py_ssize_t lanes,
                                                vec* d) noexcept nogil:
    cdef int i
    for i in range(36):
        d[i] = vec_load_part(pixels[i] + c, lanes)
    for i in range(6):
        to_points(d + i, 6)
    for i in range(6):
        to_points(d + 6 * i, 1)


cdef void squares_to_points(const Winograd* s, Py_ssize_t first, Py_ssize_t squares, real* numbers, bfloat* parts) noexcept nogil:
    """numbers: [36][square][C]; parts: [36][16 squares][32 channels], three parts each."""
    cdef const real* pixels[36]
    cdef vec low[36]
    cdef vec high[36]
    cdef Py_ssize_t i, c, q, lanes, blocks = s.C // 32
    for i in range(squares):
        pixels_of(s, first + i, pixels)
        c = 0
        while c < s.C:
            if s.on_unit:
                square_to_points(pixels, c, 16, low)
                square_to_points(pixels, c + 16, 16, high)
                for q in range(36):
                    unit_split(low[q], high[q], parts + q * s.square_step + (i // 16 * blocks + c // 32) * PARTS + i % 16 * UNIT_K)
                c += 32
            else:
                lanes = min(<Py_ssize_t> LANES, s.C - c)
                square_to_points(pixels, c, lanes, low)
                for q in range(36):
                    vec_store_part(numbers + q * s.square_step + i * s.C + c, low[q], lanes)
                c += LANES


cdef void squares_from_points(const Winograd* s, Py_ssize_t first, Py_ssize_t squares, Py_ssize_t f, Py_ssize_t columns,
                              const real* products) noexcept nogil:
    """products: [36][square][columns of the result from f on, rows of SQUARE_ROW]"""
    cdef Py_ssize_t square, i, j, k, lanes, top, left, c_row = s.columns * s.F
    cdef const real* m
    cdef real* to
    cdef vec points[36]
    cdef vec half[4 * 6]
    cdef vec out[4 * 4]
    cdef vec bias
    for square in range(first, first + squares):
        top, left = square // s.across % s.down * 4, square % s.across * 4
        to = s.result + ((square // (s.down * s.across) * s.rows + top) * s.columns + left) * s.F + f
        k = 0
        while k < columns:
            lanes = min(<Py_ssize_t> LANES, columns - k)
            m = products + (square - first) * SQUARE_ROW + k
            for i in range(36):
                points[i] = vec_load(m + i * POINT_STEP)
            for j in range(6):
                from_points(points + j, 6, half + j, 6)
            for i in range(4):
                from_points(half + 6 * i, 1, out + 4 * i, 1)
            bias = vec_zero() if s.bias == NULL else vec_load_part(s.bias + f + k, lanes)
            for i in range(min(<Py_ssize_t> 4, s.rows - top)):
                for j in range(min(<Py_ssize_t> 4, s.columns - left)):
                    if s.activation == RELU:
                        vec_store_part(to + i * c_row + j * s.F + k, activated(RELU, out[4 * i + j] + bias), lanes)
                    else:
                        vec_store_part(to + i * c_row + j * s.F + k, out[4 * i + j] + bias, lanes)
            k += LANES
        if s.activation != RELU:
            for i in range(min(<Py_ssize_t> 4, s.rows - top)):
                finish(s.activation, to + i * c_row, s.F, min(<Py_ssize_t> 4, s.columns - left), columns, NULL)


cdef inline forced_inline_void unit_products(const int R, const int V, Py_ssize_t blocks, const bfloat* a, const bfloat* b,
                                             real* c) noexcept nogil:
    cdef Py_ssize_t k
    unit_begin(R, V, c, SQUARE_ROW, False)
    for k in range(blocks):
        unit_step(0, R, V, a, blocks * PARTS, b, blocks * PARTS)
        unit_step(1, R, V, a, blocks * PARTS, b, blocks * PARTS)
        unit_step(2, R, V, a, blocks * PARTS, b, blocks * PARTS)
        unit_step(3, R, V, a, blocks * PARTS, b, blocks * PARTS)
        unit_step(4, R, V, a, blocks * PARTS, b, blocks * PARTS)
        unit_step(5, R, V, a, blocks * PARTS, b, blocks * PARTS)
        a += PARTS
        b += PARTS
    unit_end(R, V, c, SQUARE_ROW)


cdef void winograd_block(const Winograd* s, Py_ssize_t first, Py_ssize_t squares, char* memory) noexcept nogil:
    """The outputs of up to SQUARES squares."""
    cdef real* products = <real*> memory
    cdef real* numbers = products + 36 * POINT_STEP
    cdef bfloat* parts = <bfloat*> numbers
    cdef const bfloat* a
    cdef const bfloat* b
    cdef real* c
    cdef Py_ssize_t q, f = 0, columns, panel, vectors = (s.F + LANES - 1) // LANES, blocks = s.C // 32
    cdef int V
    squares_to_points(s, first, squares, numbers, parts)
    if s.on_unit:
        unit_fit(squares)
        while f < s.F:
            columns = min(<Py_ssize_t> 32, s.F - f)
            for q in range(36):
                a = parts + q * s.square_step
                b = s.filter_parts + q * s.filter_step + f // 16 * blocks * PARTS
                c = products + q * POINT_STEP
                if squares > 16:
                    if columns > 16: unit_products(2, 2, blocks, a, b, c)
                    else: unit_products(2, 1, blocks, a, b, c)
                elif columns > 16: unit_products(1, 2, blocks, a, b, c)
                else: unit_products(1, 1, blocks, a, b, c)
            squares_from_points(s, first, squares, f, columns, products)
            f += 32
        return
    for panel in range(panels_of(vectors)):
        V = panel_width(panel, vectors)
        f = panel * 2 * LANES
        for q in range(36):
            stripe(V, squares, s.C, numbers + q * s.square_step, s.C, 1, s.filters + q * s.filter_step + f * s.C, V * LANES,
                   products + q * POINT_STEP, SQUARE_ROW, LANES, False)
        squares_from_points(s, first, squares, f, min(<Py_ssize_t> V * LANES, s.F - f), products)


cdef void winograd_share(const Winograd* s, int part, int parts) noexcept nogil:
    cdef Py_ssize_t squares = s.N * s.down * s.across, blocks = (squares + SQUARES - 1) // SQUARES, block
    if s.on_unit:
        unit_open()
    for block in range(blocks * part // parts, blocks * (part + 1) // parts):
        winograd_block(s, block * SQUARES, min(<Py_ssize_t> SQUARES, squares - block * SQUARES), s.memory + part * s.thread_bytes)
    if s.on_unit:
        unit_close()
