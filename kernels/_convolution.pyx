"""Convolution of images; compiled for float32 and float64. Arguments come checked (kernels/convolution.py)."""
import threading

import numpy as np

from cython.parallel cimport prange
from dd2424fast.kernels._team cimport matrix_unit, team_size, winograd

from dd2424fast.kernels._checks import ACTIVATIONS

include "vec.pxi"
include "tile.pxi"
include "activation.pxi"
include "product.pxi"
include "column_sums.pxi"
include "planes.pxi"
include "windows.pxi"
include "unit_planes.pxi"
include "winograd.pxi"
include "winograd_learning.pxi"

cdef enum:
    PLANE_BYTES = 768 * 1024       # of a band's planes: they stay in the second cache
    LEARN_BYTES = 1024 * 1024      # of x and dy, in the weights' gradient
    STACK_CELLS = 512              # of images whose products are summed before they go to memory
    CHUNKS = 8                     # of a batch, at most, whose weights' gradients are summed apart

_scratch = threading.local()


cdef char* scratch(Py_ssize_t size) except NULL:
    """Memory of this thread that begins at a cache line; the next call may move it."""
    memory = getattr(_scratch, "memory", None)
    if memory is None or memory.nbytes < size + 64:
        memory = _scratch.memory = np.empty(size + 64, np.uint8)
    cdef char* start = <char*> cnp.PyArray_DATA(<cnp.ndarray> memory)
    return start + (64 - <Py_ssize_t> (<size_t> start % 64))


cdef Geometry geometry_of(cnp.ndarray x, cnp.ndarray W, tuple stride, tuple padding, tuple dilation, Py_ssize_t groups) noexcept:
    cdef Geometry g
    g.N, g.H, g.W, g.C = cnp.PyArray_DIM(x, 0), cnp.PyArray_DIM(x, 1), cnp.PyArray_DIM(x, 2), cnp.PyArray_DIM(x, 3)
    g.height, g.width, g.F, g.groups = cnp.PyArray_DIM(W, 0), cnp.PyArray_DIM(W, 1), cnp.PyArray_DIM(W, 3), groups
    g.sy, g.sx = stride
    g.py, g.px = padding
    g.dy, g.dx = dilation
    g.rows = (g.H + 2 * g.py - g.dy * (g.height - 1) - 1) // g.sy + 1
    g.columns = (g.W + 2 * g.px - g.dx * (g.width - 1) - 1) // g.sx + 1
    return g


cdef inline bint is_depthwise(const Geometry* g) noexcept nogil:
    return g.groups > 1 and g.groups == g.C and g.F == g.C


cdef inline bint unit_fits(const Geometry* g) noexcept nogil:
    """Whether tiles of the matrix unit are well filled, by this convolution and by its gradients."""
    return (MATRIX_UNIT and matrix_unit() and g.C // g.groups % 16 == 0 and g.F // g.groups % 16 == 0
            and g.rows * g.columns >= 16)


cdef Source source_of(const real* x, Py_ssize_t rows, Py_ssize_t columns, Py_ssize_t channels) noexcept nogil:
    cdef Source s
    s.x, s.rows, s.columns, s.channels = x, rows, columns, channels
    return s


cdef void choose_bands(Py_ssize_t N, Py_ssize_t rows, Py_ssize_t row_bytes, Py_ssize_t* band, Py_ssize_t* bands) noexcept nogil:
    """As many rows of outputs at a time as stay in the cache; fewer where there are few images to share out."""
    band[0] = min(rows, max(<Py_ssize_t> 4, PLANE_BYTES // max(row_bytes, <Py_ssize_t> 1)))
    if N < CHUNKS:
        band[0] = min(band[0], max(<Py_ssize_t> 4, up(rows * max(N, <Py_ssize_t> 1), CHUNKS)))
    bands[0] = up(rows, max(band[0], <Py_ssize_t> 1))
    band[0] = up(rows, max(bands[0], <Py_ssize_t> 1))


cdef convolve(Job* s, const Geometry* g, bint back):
    """Run a job: result, source, bias and activation are filled in, and of the plan the weights."""
    cdef Plan* p = &s.plan
    cdef Py_ssize_t tables, weights, row_bytes, taps = g.height * g.width
    cdef int part, parts
    cdef char* memory
    cdef bint depthwise = is_depthwise(g)
    s.on_unit = unit_fits(g)
    if back:
        plan_back_extents(p, g)
    else:
        plan_extents(p, g)
    s.images, s.channels = g.N, p.groups * p.width
    row_bytes = p.plane.sy * p.plane.sx * p.plane.pitch * p.plane.channels * (3 * sizeof(bfloat) if s.on_unit else sizeof(real))
    choose_bands(g.N, p.rows, row_bytes, &s.band, &s.bands)
    set_rows(&p.plane, s.band)
    tables = lines_of(plan_bytes(taps, g.sy * g.sx))
    # Every tap is a run of its own at worst.
    weights = 0 if depthwise else lines_of(
        p.groups * taps * (up(p.depth, UNIT_K) * up(p.width, 16) * PARTS * sizeof(bfloat) if s.on_unit
                           else p.depth * whole_vectors(p.width) * sizeof(real)))
    s.thread_bytes = lines_of(p.plane.sy * p.plane.sx * p.plane.phase * (3 * sizeof(bfloat) if s.on_unit else sizeof(real)))
    parts = <int> min(<Py_ssize_t> team_size(2.0 * g.N * g.rows * g.columns * taps * p.depth * g.F, 2e6),
                      max(s.images * s.bands, <Py_ssize_t> 1))
    memory = scratch(tables + weights + parts * s.thread_bytes)
    tap_room(p, memory, taps, g.sy * g.sx)
    if back:
        plan_back_taps(p, g)
    else:
        plan_taps(p, g)
    s.packed = NULL if depthwise else <real*> (memory + tables)
    s.cut = <bfloat*> (memory + tables)
    s.memory = memory + tables + weights
    with nogil:
        if not depthwise:
            pack_weights(s, parts)
        if parts == 1:
            convolve_share(s, 0, 1)
        else:
            for part in prange(parts, num_threads=parts, schedule="static", chunksize=1):
                convolve_share(s, part, parts)


cdef void pack_weights(Job* s, int parts) noexcept nogil:
    cdef Py_ssize_t group, i, at = 0
    for group in range(s.plan.groups):
        for i in range(s.plan.phases):
            if s.on_unit:
                unit_pack_phase(&s.plan, s.plan.phase + i, group, <bfloat*> s.cut + at)
            elif s.plan.phase[i].taps:
                pack_phase(&s.plan, s.plan.phase + i, group, <real*> s.packed + at)
            at += packed_size(s, s.plan.phase + i)


# ---- windows that share no pixel -----------------------------------------------------------------------------------------

cdef inline bint is_product(const Geometry* g) noexcept nogil:
    """Whether windows lie edge to edge: then y is one product of x, its pixels put in the windows' order, and W."""
    return (g.groups == 1 and g.py == 0 and g.px == 0 and g.sy == g.height and g.sx == g.width
            and (g.dy == 1 or g.height == 1) and (g.dx == 1 or g.width == 1))


cdef inline bint in_order(const Geometry* g) noexcept nogil:
    """Whether x's pixels are in the windows' order already."""
    return g.width == 1 and g.height == 1


cdef void gather(const Geometry* g, real* x, real* windows, bint back) noexcept nogil:
    """windows[n, p, q] = the pixels of x that it sees, row by row; or x from the windows, zeros where none sees it."""
    cdef Py_ssize_t total = g.N * g.rows
    cdef int part, parts = team_size(g.N * g.H * g.W * g.C, 65536)
    parts = <int> max(<Py_ssize_t> 1, min(<Py_ssize_t> parts, total))
    for part in prange(parts, num_threads=parts, schedule="static", chunksize=1):
        gather_rows(g, x, windows, back, total * part // parts, total * (part + 1) // parts)


cdef void gather_rows(const Geometry* g, real* x, real* windows, bint back, Py_ssize_t first, Py_ssize_t end) noexcept nogil:
    """Rows of windows, counted over all images."""
    cdef Py_ssize_t item, i, q, run = g.width * g.C, size = g.height * run, n, p, seen = g.columns * run
    cdef real* row
    cdef real* window
    for item in range(first, end):
        n, p = item // g.rows, item % g.rows
        for i in range(g.height):
            row = x + ((n * g.H + p * g.height + i) * g.W) * g.C
            window = windows + item * g.columns * size + i * run
            for q in range(g.columns):
                if back:
                    memcpy(row + q * run, window + q * size, run * sizeof(real))
                else:
                    memcpy(window + q * size, row + q * run, run * sizeof(real))
            if back:
                memset(row + seen, 0, (g.W * g.C - seen) * sizeof(real))
        if back and p == g.rows - 1:
            memset(x + (n * g.H + g.rows * g.height) * g.W * g.C, 0, (g.H - g.rows * g.height) * g.W * g.C * sizeof(real))


cdef Product windows_product(const Geometry* g, const real* windows, const real* W) noexcept nogil:
    """y = windows W."""
    cdef Product p
    p.M, p.N, p.K = g.N * g.rows * g.columns, g.F, g.height * g.width * g.C
    p.a, p.a_row, p.a_step = windows, p.K, 1
    p.b, p.b_row, p.b_step = W, g.F, 1
    p.packed, p.c, p.c_row = NULL, NULL, g.F
    p.accumulate, p.bias, p.activation, p.batched = False, NULL, IDENTITY, True
    return p


cdef inline bint is_empty(const Geometry* g) noexcept nogil:
    """Whether every sum over pixels and channels is empty, or there is none."""
    return g.N == 0 or g.C == 0 or g.F == 0


cdef empty_backward(const Geometry* g, real* dy, real* dx, real* dW, real* db, bint accumulate):
    cdef Py_ssize_t size = g.height * g.width * (g.C // g.groups) * g.F
    with nogil:
        if dx != NULL:
            memset(dx, 0, g.N * g.H * g.W * g.C * sizeof(real))
        if dW != NULL and not accumulate:
            memset(dW, 0, size * sizeof(real))
        if db != NULL:
            add_rows(dy, g.N * g.rows * g.columns, g.F, db, accumulate)


cdef multiply(const Geometry* g, real* x, real* W, real* bias, int activation, real* out, bint batched):
    cdef real* windows = x if in_order(g) else <real*> scratch(g.N * g.rows * g.columns * g.height * g.width * g.C * sizeof(real))
    cdef Product p = windows_product(g, windows, W)
    p.c, p.bias, p.activation, p.batched = out, bias, activation, batched
    with nogil:
        if not in_order(g):
            gather(g, x, windows, False)
        product(&p)


cdef multiply_back(const Geometry* g, real* dy, real* x, real* W, real* dx, real* dW, real* db, bint accumulate):
    cdef real* windows = x if in_order(g) else <real*> scratch(g.N * g.rows * g.columns * g.height * g.width * g.C * sizeof(real))
    cdef Product weights = windows_product(g, windows, W)
    cdef Product inputs = weights
    cdef Py_ssize_t rows = weights.M, K = weights.K
    weights.M, weights.K = K, rows                         # dW = windows^T dy
    weights.a_row, weights.a_step = 1, K
    weights.b, weights.c, weights.accumulate = dy, dW, accumulate
    inputs.N, inputs.K = K, g.F                            # windows' gradient = dy W^T
    inputs.a, inputs.a_row = dy, g.F
    inputs.b_row, inputs.b_step = 1, g.F
    inputs.c, inputs.c_row = dx if in_order(g) else windows, K
    with nogil:
        if dW != NULL:
            if not in_order(g):
                gather(g, x, windows, False)
            product(&weights)
            if db != NULL:
                add_rows(dy, rows, g.F, db, accumulate)
        if dx != NULL:
            product(&inputs)
            if not in_order(g):
                gather(g, dx, windows, True)


# ---- 3 x 3 with fewer multiplications ------------------------------------------------------------------------------------

cdef inline bint winograd_pays(const Geometry* g, bint batched) noexcept nogil:
    """Whether Winograd's algorithm is faster, by the benchmark in docs/kernels/convolution.md: with few channels the transforms cost more
    than they save, as do squares that hang over the image, and few squares do not repay the filters' transform."""
    cdef Py_ssize_t squares = up(g.rows, 4) * up(g.columns, 4)
    return (winograd() and g.height == 3 and g.width == 3 and g.sy == 1 and g.sx == 1 and g.dy == 1 and g.dx == 1 and g.groups == 1
            and g.C >= 32 and g.F >= 32 and 2 * g.rows * g.columns >= 16 * squares and (g.N * squares >= 128 if batched else squares >= 48))


cdef by_winograd(Winograd* s, const real* W, bint back):
    """x to padding, result, bias and activation are filled in. W: [9][C][F] of the forward pass."""
    cdef Py_ssize_t filters, turned, zeros, size = s.C * s.F
    cdef int part, parts
    cdef char* memory
    s.on_unit = MATRIX_UNIT and matrix_unit() and s.C % 32 == 0 and s.F % 16 == 0
    s.down, s.across = up(s.rows, 4), up(s.columns, 4)
    if s.on_unit:
        s.filter_step = odd_lines(size * 3 * sizeof(bfloat)) // sizeof(bfloat)
        s.square_step = odd_lines(SQUARES * s.C * 3 * sizeof(bfloat)) // sizeof(bfloat)
    else:
        s.filter_step = odd_lines(s.C * whole_vectors(s.F) * sizeof(real)) // sizeof(real)
        s.square_step = odd_lines(SQUARES * s.C * sizeof(real)) // sizeof(real)
    filters = 36 * s.filter_step * (sizeof(bfloat) if s.on_unit else sizeof(real))
    turned = lines_of(9 * size * sizeof(real)) if back else 0
    zeros = lines_of(whole_vectors(s.C) * sizeof(real))
    s.thread_bytes = lines_of(36 * (POINT_STEP * sizeof(real) + s.square_step * (sizeof(bfloat) if s.on_unit else sizeof(real))))
    parts = <int> min(<Py_ssize_t> team_size(8.0 * s.N * s.rows * s.columns * size, 2e6), up(s.N * s.down * s.across, SQUARES))
    memory = scratch(filters + turned + zeros + parts * s.thread_bytes)
    s.filters, s.filter_parts = <real*> memory, <bfloat*> memory
    s.zeros = <real*> (memory + filters + turned)
    s.memory = memory + filters + turned + zeros
    with nogil:
        memset(memory + filters + turned, 0, zeros)
        if back:
            turn_filters(W, s.F, s.C, <real*> (memory + filters))
            W = <real*> (memory + filters)
        if parts == 1:
            transform_filters(s, W, 0, 1)
            winograd_share(s, 0, 1)
        else:
            for part in prange(parts, num_threads=parts, schedule="static", chunksize=1):
                transform_filters(s, W, part, parts)
            for part in prange(parts, num_threads=parts, schedule="static", chunksize=1):
                winograd_share(s, part, parts)


cdef winograd_forward(const Geometry* g, real* x, real* W, real* bias, int activation, real* out):
    cdef Winograd s
    s.x = x
    s.N, s.H, s.W, s.C, s.py, s.px = g.N, g.H, g.W, g.C, g.py, g.px
    s.rows, s.columns, s.F, s.result, s.bias, s.activation = g.rows, g.columns, g.F, out, bias, activation
    by_winograd(&s, W, False)


cdef winograd_backward(const Geometry* g, real* dy, real* W, real* dx):
    cdef Winograd s
    s.x = dy
    s.N, s.H, s.W, s.C, s.py, s.px = g.N, g.rows, g.columns, g.F, 2 - g.py, 2 - g.px
    s.rows, s.columns, s.F, s.result, s.bias, s.activation = g.H, g.W, g.C, dx, NULL, IDENTITY
    by_winograd(&s, W, True)


cdef winograd_learn(const Geometry* g, real* x, real* dy, real* dW, real* db, bint accumulate):
    cdef WinogradLearning s
    cdef Py_ssize_t size = 9 * g.C * g.F, zeros = lines_of(whole_vectors(g.C) * sizeof(real))
    cdef int part, parts
    cdef char* memory
    s.x.x = x
    s.x.N, s.x.H, s.x.W, s.x.C, s.x.py, s.x.px, s.x.rows, s.x.columns = g.N, g.H, g.W, g.C, g.py, g.px, g.rows, g.columns
    s.x.on_unit = MATRIX_UNIT and matrix_unit() and g.C % 16 == 0 and g.F % 16 == 0
    s.x.down, s.x.across = up(g.rows, 4), up(g.columns, 4)
    s.dy, s.F, s.use_bias = dy, g.F, db != NULL
    # The slice's sums and the squares of x stay in the second cache together; more filters spare transforms of x.
    s.width = whole_vectors(min(g.F, <Py_ssize_t> (32 if s.x.on_unit and g.C > 64 else 64)))
    s.slices = up(g.F, s.width)
    if s.x.on_unit:
        s.x.square_step = odd_lines(SQUARES * g.C * 3 * sizeof(bfloat)) // sizeof(bfloat)
        s.dy_step = odd_lines(SQUARES * s.width * 3 * sizeof(bfloat)) // sizeof(bfloat)
        s.turning_step = odd_lines(SQUARES * 16 * sizeof(real)) // sizeof(real)
    else:
        s.x.square_step = odd_lines(SQUARES * g.C * sizeof(real)) // sizeof(real)
        s.dy_step = odd_lines(SQUARES * s.width * sizeof(real)) // sizeof(real)
    s.chunks = max(<Py_ssize_t> 1, min(g.N, up(CHUNKS, s.slices)))
    s.sums_size = whole_lines(size + g.F)
    s.x.thread_bytes = lines_of(point_sums_of(&s, NULL).end - <char*> NULL)
    parts = <int> min(<Py_ssize_t> team_size(8.0 * g.N * g.rows * g.columns * g.C * g.F, 2e6), s.chunks * s.slices)
    memory = scratch(zeros + s.chunks * s.sums_size * sizeof(real) + parts * s.x.thread_bytes)
    s.x.zeros = <real*> memory
    s.sums = <real*> (memory + zeros)
    s.x.memory = memory + zeros + s.chunks * s.sums_size * sizeof(real)
    with nogil:
        memset(memory, 0, zeros)
        for part in range(s.chunks):
            memset(s.sums + part * s.sums_size + size, 0, g.F * sizeof(real))
        if parts == 1:
            winograd_learn_share(&s, 0, 1)
        else:
            for part in prange(parts, num_threads=parts, schedule="static", chunksize=1):
                winograd_learn_share(&s, part, parts)
        add_turned_chunks(s.sums, s.sums_size, s.chunks, 9, g.C, g.F, dW, accumulate)
        if db != NULL:
            add_chunks(s.sums + size, s.sums_size, s.chunks, g.F, db, accumulate)


def conv2d_forward(
    cnp.ndarray x, cnp.ndarray W, b, tuple stride, tuple padding, tuple dilation, Py_ssize_t groups, activation, scale, cnp.ndarray out,
    bint batched):
    cdef Geometry g = geometry_of(x, W, stride, padding, dilation, groups)
    cdef Job s
    if scale is not None:
        W = W * scale
    s.source = source_of(data(x), g.H, g.W, g.C)
    s.result = data(out)
    s.bias = NULL if b is None else data(b)
    s.activation = ACTIVATIONS[activation]
    if is_empty(&g):
        out[...] = 0
        with nogil:
            finish(s.activation, s.result, g.F, g.N * g.rows * g.columns, g.F, s.bias)
        return out
    if is_product(&g):
        multiply(&g, data(x), data(W), NULL if b is None else data(b), ACTIVATIONS[activation], data(out), batched)
        return out
    if winograd_pays(&g, batched):
        winograd_forward(&g, data(x), data(W), NULL if b is None else data(b), ACTIVATIONS[activation], data(out))
        return out
    s.plan.w, s.plan.w_tap, s.plan.w_row, s.plan.w_step = data(W), g.C // g.groups * g.F, g.F, 1
    s.plan.w_group = g.F // g.groups
    convolve(&s, &g, False)
    return out


def conv2d_backward(
    cnp.ndarray dy, cnp.ndarray x, cnp.ndarray W, tuple stride, tuple padding, tuple dilation, Py_ssize_t groups, dx, dW, db,
    bint need_dx, bint use_bias, bint accumulate, bint need_dW):
    cdef Geometry g = geometry_of(x, W, stride, padding, dilation, groups)
    cdef Source gradient = source_of(data(dy), g.rows, g.columns, g.F)
    cdef Job s
    if is_empty(&g):
        empty_backward(&g, data(dy), NULL if dx is None else data(dx), NULL if dW is None else data(dW), NULL if db is None else data(db),
                       accumulate)
        return dx, dW, db
    if is_product(&g):
        multiply_back(&g, data(dy), data(x), data(W), NULL if dx is None else data(dx), NULL if dW is None else data(dW),
                      NULL if db is None else data(db), accumulate)
        return dx, dW, db
    if need_dW and winograd_pays(&g, True):
        winograd_learn(&g, data(x), data(dy), data(dW), NULL if db is None else data(db), accumulate)
    elif need_dW:
        learn(&g, source_of(data(x), g.H, g.W, g.C), gradient, data(dW), NULL if db is None else data(db), accumulate)
    if need_dx and winograd_pays(&g, True):
        winograd_backward(&g, data(dy), data(W), data(dx))
    elif need_dx:
        s.source = gradient
        s.result = data(dx)
        s.bias, s.activation = NULL, IDENTITY
        s.plan.w, s.plan.w_tap, s.plan.w_row, s.plan.w_step = data(W), g.C // g.groups * g.F, 1, g.F
        s.plan.w_group = g.F // g.groups
        convolve(&s, &g, True)
    return dx, dW, db


cdef learn(const Geometry* g, Source x, Source dy, real* dW, real* db, bint accumulate):
    """dW, and db unless NULL, by items that each thread takes its share of; how many there are follows from the shapes alone."""
    cdef Learning s
    cdef Plan* p = &s.plan
    cdef Py_ssize_t taps = g.height * g.width, size = taps * (g.C // g.groups) * g.F, tables, row_bytes, panels, moved
    cdef int part, parts
    cdef char* memory
    s.source, s.gradient, s.images, s.taps = x, dy, g.N, taps
    s.depthwise = is_depthwise(g)
    s.on_unit = unit_fits(g)
    s.use_bias = db != NULL
    plan_extents(p, g)
    p.w = NULL
    # A cell of x and of dy, as numbers and, for the matrix unit, as parts: those of dy twice.
    row_bytes = p.plane.pitch * (p.plane.sy * p.plane.sx * g.C * (sizeof(real) + (3 * sizeof(bfloat) if s.on_unit else 0))
                                 + g.F * (sizeof(real) + (6 * sizeof(bfloat) if s.on_unit else 0)))
    s.band = min(g.rows, max(<Py_ssize_t> 4, LEARN_BYTES // max(row_bytes, <Py_ssize_t> 1)))
    s.bands = up(g.rows, s.band)
    s.band = up(g.rows, s.bands)
    s.stack = max(<Py_ssize_t> 1, min(STACK_CELLS // (s.band * p.plane.pitch), LEARN_BYTES // (s.band * row_bytes))) if s.bands == 1 else 1
    set_rows(&p.plane, s.band)
    s.sums_size = whole_lines(size + g.F)
    moved = g.N * (g.H * g.W * g.C + g.rows * g.columns * g.F)
    s.chunks = max(<Py_ssize_t> 1, min(min(<Py_ssize_t> CHUNKS, g.N), moved // (4 * max(size, <Py_ssize_t> 1))))
    panels = (g.F + 31) // 32 // g.groups
    s.slices = max(<Py_ssize_t> 1, min(panels, CHUNKS // s.chunks))
    tables = lines_of(plan_bytes(taps, 1))
    s.thread_bytes = bench_of(&s, NULL).rest - <char*> NULL
    if s.on_unit:
        s.thread_bytes += lines_of(<char*> turned_of(&s, NULL).x - <char*> NULL)
    parts = <int> min(<Py_ssize_t> team_size(2.0 * g.N * g.rows * g.columns * size, 2e6), s.chunks * s.slices)
    memory = scratch(tables + s.chunks * s.sums_size * sizeof(real) + parts * s.thread_bytes)
    tap_room(p, memory, taps, 1)
    plan_taps(p, g)
    s.sums = <real*> (memory + tables)
    s.memory = memory + tables + s.chunks * s.sums_size * sizeof(real)
    with nogil:
        memset(s.sums, 0, s.chunks * s.sums_size * sizeof(real))
        if parts == 1:
            learn_share(&s, 0, 1)
        else:
            for part in prange(parts, num_threads=parts, schedule="static", chunksize=1):
                learn_share(&s, part, parts)
        if s.on_unit:
            add_turned_chunks(s.sums, s.sums_size, s.chunks, taps, p.depth, g.F, dW, accumulate)
        else:
            add_chunks(s.sums, s.sums_size, s.chunks, size, dW, accumulate)
        if db != NULL:
            add_chunks(s.sums + size, s.sums_size, s.chunks, g.F, db, accumulate)
