"""Convolution of images; compiled for float32 and float64. Arguments come checked (kernels/convolution.py)."""
import threading

import numpy as np

from cython.parallel cimport prange
from dd2424fast.kernels._team cimport matrix_unit, team_size

from dd2424fast.kernels._checks import ACTIVATIONS

include "vec.pxi"
include "tile.pxi"
include "activation.pxi"
include "product.pxi"
include "planes.pxi"
include "windows.pxi"
include "unit_planes.pxi"

cdef enum:
    PLANE_BYTES = 768 * 1024       # of a band's planes: they stay in the second cache
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
    s.x, s.y, s.rows, s.columns, s.channels, s.activation = x, NULL, rows, columns, channels, IDENTITY
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
    cdef Py_ssize_t tables, weights, row_bytes, i, total, group, taps = g.height * g.width
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
    s.thread_bytes = (lines_of(s.source.columns * s.source.channels * sizeof(real))
                      + lines_of(p.plane.sy * p.plane.sx * p.plane.phase * (3 * sizeof(bfloat) if s.on_unit else sizeof(real))))
    parts = <int> min(<Py_ssize_t> team_size(2.0 * g.N * g.rows * g.columns * taps * p.depth * g.F, 2e6), max(s.images * s.bands, <Py_ssize_t> 1))
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
    if need_dW:
        learn(&g, source_of(data(x), g.H, g.W, g.C), gradient, data(dW), NULL if db is None else data(db), accumulate)
    if need_dx:
        s.source = gradient
        s.result = data(dx)
        s.bias, s.activation = NULL, IDENTITY
        s.plan.w, s.plan.w_tap, s.plan.w_row, s.plan.w_step = data(W), g.C // g.groups * g.F, 1, g.F
        s.plan.w_group = g.F // g.groups
        if is_depthwise(&g):
            s.plan.w_step = 1
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
    # A cell of x and of dy, as numbers and, for the matrix unit, as parts.
    row_bytes = p.plane.pitch * (p.plane.sy * p.plane.sx * g.C + g.F) * (sizeof(real) + (3 * sizeof(bfloat) if s.on_unit else 0))
    s.band = min(g.rows, max(<Py_ssize_t> 4, PLANE_BYTES // max(row_bytes, <Py_ssize_t> 1)))
    s.bands = up(g.rows, s.band)
    s.band = up(g.rows, s.bands)
    set_rows(&p.plane, s.band)
    s.sums_size = whole_vectors(size + g.F)
    moved = g.N * (g.H * g.W * g.C + g.rows * g.columns * g.F)
    s.chunks = max(<Py_ssize_t> 1, min(min(<Py_ssize_t> CHUNKS, g.N), moved // (4 * max(size, <Py_ssize_t> 1))))
    panels = (g.F + 31) // 32 // g.groups
    s.slices = max(<Py_ssize_t> 1, min(panels, CHUNKS // s.chunks))
    tables = lines_of(plan_bytes(taps, 1))
    s.thread_bytes = lines_of(max(x.columns * x.channels, dy.columns * dy.channels) * sizeof(real))
    s.thread_bytes += lines_of((whole_vectors(p.plane.sy * p.plane.sx * p.plane.phase)
                                + whole_vectors((s.band * p.plane.pitch + 32) * g.F)) * sizeof(real))
    if s.on_unit:
        s.thread_bytes += lines_of((3 * p.plane.sy * p.plane.sx * g.C * turned_length(&p.plane)
                                    + (s.band * p.plane.pitch + 31) // 32 * PARTS * up(g.F, 16)) * sizeof(bfloat))
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
        add_chunks(s.sums, s.sums_size, s.chunks, size, dW, accumulate)
        if db != NULL:
            add_chunks(s.sums + size, s.sums_size, s.chunks, g.F, db, accumulate)


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
