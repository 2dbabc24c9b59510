# C (+)= A B for any shapes, from the tiles of tile.pxi; B packed a panel at a time in cache, packed before, or read in place.
#
# A panel is 2 vectors of columns wide (the last one 3 where their number is odd). A right edge of up to a quarter vector is
# cheaper as dot products (`narrow`) than as a padded vector: N = 50 costs 50 columns, not 64.
# Who computes an element never changes how: shares are cut at rows and panels, and each element's order of sums is fixed
# by the whole problem's shape.

from cython.parallel cimport prange
from libc.string cimport memcpy
from dd2424fast.kernels._team cimport matrix_unit, team_size

cdef enum:
    K_BLOCK = 256      # a panel of 2 vectors and K_BLOCK rows is 32 KiB: it stays in the first cache
    K_LONG = 1024      # of one panel that is read in place
    K_DOTS = 768       # block of K in the dot products of `narrow`
    NARROW = 12        # columns that `narrow` takes at most
    M_BLOCK = 1024     # rows of A that stay in the second cache while all panels pass
    A_VECTORS = 16     # of rows of a transposed A, that are packed and stay there likewise
    A_STEP = 4096      # bytes between its elements from which on that pays,
    A_BYTES = 524288   # and bytes of all of it
    CHUNK_LEAST = 1536 # sums of fewer products are not cut into chunks
    CHUNK_OUTPUTS = 16384   # room for the sums of all chunks but the first

ctypedef struct Product:
    Py_ssize_t M
    Py_ssize_t N
    Py_ssize_t K
    const real* a          # A[i, k] = a[i * a_row + k * a_step]; one of the two strides is 1
    Py_ssize_t a_row
    Py_ssize_t a_step
    const real* b          # B[k, j] = b[k * b_row + j * b_step]; one of the two strides is 1
    Py_ssize_t b_row
    Py_ssize_t b_step
    const real* packed     # B as `pack_all` lays it, or NULL
    real* c                # C[i, j] = c[i * c_row + j]
    Py_ssize_t c_row
    bint accumulate
    const real* bias       # or NULL
    int activation
    Py_ssize_t vectors     # of columns, the padded last one included
    Py_ssize_t edge        # columns left to `narrow`
    bint in_place          # full panels are read from b without packing
    bint batched           # the bits of a row may depend on the number of rows
    bint on_unit           # the matrix unit does it (unit.pxi)


cdef inline Py_ssize_t panels_of(Py_ssize_t vectors) noexcept nogil:
    return vectors // 2 if vectors > 1 else vectors


cdef inline int panel_width(Py_ssize_t panel, Py_ssize_t vectors) noexcept nogil:
    """Vectors in a panel: 2, and in the last one what is left (1, 2 or 3)."""
    return <int> (vectors - 2 * panel) if panel == panels_of(vectors) - 1 else 2


cdef void pack_panel(const real* b, Py_ssize_t b_row, Py_ssize_t b_step, Py_ssize_t K, Py_ssize_t width,
                     Py_ssize_t columns, real* to) noexcept nogil:
    """to[k, 0:width] = B[k, 0:columns], zero beyond."""
    cdef Py_ssize_t k, j, K_full = 0, columns_full = 0
    if b_step == 1:
        for k in range(K):
            j = 0
            while j + LANES <= columns:
                vec_store(to + j, vec_load(b + j))
                j += LANES
            while j < width:
                vec_store(to + j, vec_load_part(b + j, columns - j) if j < columns else vec_zero())
                j += LANES
            b += b_row
            to += width
        return
    if b_row == 1:
        K_full = K - K % LANES
        columns_full = columns - columns % LANES
        j = 0
        while j < columns_full:
            k = 0
            while k < K_full:
                vec_transpose(b + k + j * b_step, b_step, to + k * width + j, width)
                k += LANES
            j += LANES
    for k in range(K):
        for j in range(0 if k >= K_full else columns_full, width):
            to[k * width + j] = b[k * b_row + j * b_step] if j < columns else 0


cdef inline forced_inline_void dots(
    const int R, const int C, Py_ssize_t K, const real* a, Py_ssize_t a_row, const real* b, Py_ssize_t b_step,
    real* c, Py_ssize_t c_row, bint accumulate) noexcept nogil:
    """c[R, C] (+)= rows of A times columns of B, both contiguous in k."""
    cdef vec total[6][NARROW]
    cdef vec x[6]
    cdef vec y
    cdef int r, j
    cdef Py_ssize_t k = 0
    cdef real s
    for r in range(R):
        for j in range(C):
            total[r][j] = vec_zero()
    while k + LANES <= K:
        for r in range(R):
            x[r] = vec_load(a + r * a_row + k)
        for j in range(C):
            y = vec_load(b + j * b_step + k)
            for r in range(R):
                total[r][j] = total[r][j] + x[r] * y
        k += LANES
    if k < K:
        for r in range(R):
            x[r] = vec_load_part(a + r * a_row + k, K - k)
        for j in range(C):
            y = vec_load_part(b + j * b_step + k, K - k)
            for r in range(R):
                total[r][j] = total[r][j] + x[r] * y
    for r in range(R):
        for j in range(C):
            s = vec_sum(total[r][j])
            c[r * c_row + j] = c[r * c_row + j] + s if accumulate else s


cdef inline forced_inline_void dots_rows(
    const int R, const int C, Py_ssize_t M, Py_ssize_t K, const real* a, Py_ssize_t a_row, const real* b, Py_ssize_t b_step,
    real* c, Py_ssize_t c_row, bint accumulate) noexcept nogil:
    cdef Py_ssize_t i = 0
    while i + R <= M:
        dots(R, C, K, a + i * a_row, a_row, b, b_step, c + i * c_row, c_row, accumulate)
        i += R
    while i < M:
        dots(1, C, K, a + i * a_row, a_row, b, b_step, c + i * c_row, c_row, accumulate)
        i += 1


cdef void dots_of(int C, Py_ssize_t M, Py_ssize_t K, const real* a, Py_ssize_t a_row, const real* b, Py_ssize_t b_step,
                  real* c, Py_ssize_t c_row, bint accumulate) noexcept nogil:
    """C columns, 1 to NARROW: as many rows at a time as keep about 20 sums in registers."""
    if C == 1: dots_rows(6, 1, M, K, a, a_row, b, b_step, c, c_row, accumulate)
    elif C == 2: dots_rows(6, 2, M, K, a, a_row, b, b_step, c, c_row, accumulate)
    elif C == 3: dots_rows(6, 3, M, K, a, a_row, b, b_step, c, c_row, accumulate)
    elif C == 4: dots_rows(4, 4, M, K, a, a_row, b, b_step, c, c_row, accumulate)
    elif C == 5: dots_rows(4, 5, M, K, a, a_row, b, b_step, c, c_row, accumulate)
    elif C == 6: dots_rows(2, 6, M, K, a, a_row, b, b_step, c, c_row, accumulate)
    elif C == 7: dots_rows(2, 7, M, K, a, a_row, b, b_step, c, c_row, accumulate)
    elif C == 8: dots_rows(2, 8, M, K, a, a_row, b, b_step, c, c_row, accumulate)
    elif C == 9: dots_rows(2, 9, M, K, a, a_row, b, b_step, c, c_row, accumulate)
    elif C == 10: dots_rows(2, 10, M, K, a, a_row, b, b_step, c, c_row, accumulate)
    elif C == 11: dots_rows(2, 11, M, K, a, a_row, b, b_step, c, c_row, accumulate)
    else: dots_rows(2, 12, M, K, a, a_row, b, b_step, c, c_row, accumulate)


cdef void transpose_edge(const Product* p, Py_ssize_t start, Py_ssize_t size, real* columns) noexcept nogil:
    """columns[e * K_DOTS + k] = B[start + k, N - edge + e] for k < size, by whole vectors while those stay inside B."""
    cdef Py_ssize_t k = 0, first = p.N - p.edge, e
    cdef const real* b = p.b + start * p.b_row + first
    while k + LANES <= size and (p.K - start - k - LANES + 1) * p.b_row - first >= LANES:
        vec_transpose(b + k * p.b_row, p.b_row, columns + k, K_DOTS)
        k += LANES
    while k < size:
        for e in range(p.edge):
            columns[e * K_DOTS + k] = b[k * p.b_row + e]
        k += 1


cdef inline forced_inline_void columns_down(
    const int V, const int C, Py_ssize_t K, const real* a, Py_ssize_t a_step, Py_ssize_t rows, const real* b, Py_ssize_t b_row,
    Py_ssize_t b_step, real* c, Py_ssize_t c_row, bint accumulate) noexcept nogil:
    """c[V vectors of rows, C] (+)= A B for A contiguous in its rows: the vectors run down the columns of C."""
    cdef vec total[4][12]
    cdef vec x[4]
    cdef vec y
    cdef real lane[16 * 4]
    cdef int v, j
    cdef Py_ssize_t k, i
    for v in range(V):
        for j in range(C):
            total[v][j] = vec_zero()
    for k in range(K):
        for v in range(V):
            x[v] = vec_load(a + v * LANES) if rows == V * LANES else vec_load_part(a, rows)
        for j in range(C):
            y = vec_set(b[j * b_step])
            for v in range(V):
                total[v][j] = total[v][j] + x[v] * y
        a += a_step
        b += b_row
    for j in range(C):
        for v in range(V):
            vec_store(lane + v * LANES, total[v][j])
        for i in range(rows):
            c[i * c_row + j] = c[i * c_row + j] + lane[i] if accumulate else lane[i]


cdef inline forced_inline_void columns_rows(
    const int V, const int C, Py_ssize_t M, Py_ssize_t K, const real* a, Py_ssize_t a_step, const real* b, Py_ssize_t b_row,
    Py_ssize_t b_step, real* c, Py_ssize_t c_row, bint accumulate) noexcept nogil:
    cdef Py_ssize_t i = 0, rows
    while i < M:
        if i + V * LANES <= M:
            rows = V * LANES
            columns_down(V, C, K, a + i, a_step, rows, b, b_row, b_step, c + i * c_row, c_row, accumulate)
        else:
            rows = min(<Py_ssize_t> LANES, M - i)
            columns_down(1, C, K, a + i, a_step, rows, b, b_row, b_step, c + i * c_row, c_row, accumulate)
        i += rows


cdef void columns_of(
    int C, Py_ssize_t M, Py_ssize_t K, const real* a, Py_ssize_t a_step, const real* b, Py_ssize_t b_row, Py_ssize_t b_step,
    real* c, Py_ssize_t c_row, bint accumulate) noexcept nogil:
    """C columns, 1 to NARROW: as many vectors of rows at a time as keep about 20 sums in registers."""
    if C == 1: columns_rows(4, 1, M, K, a, a_step, b, b_row, b_step, c, c_row, accumulate)
    elif C == 2: columns_rows(4, 2, M, K, a, a_step, b, b_row, b_step, c, c_row, accumulate)
    elif C == 3: columns_rows(4, 3, M, K, a, a_step, b, b_row, b_step, c, c_row, accumulate)
    elif C == 4: columns_rows(4, 4, M, K, a, a_step, b, b_row, b_step, c, c_row, accumulate)
    elif C == 5: columns_rows(4, 5, M, K, a, a_step, b, b_row, b_step, c, c_row, accumulate)
    elif C == 6: columns_rows(2, 6, M, K, a, a_step, b, b_row, b_step, c, c_row, accumulate)
    elif C == 7: columns_rows(2, 7, M, K, a, a_step, b, b_row, b_step, c, c_row, accumulate)
    elif C == 8: columns_rows(2, 8, M, K, a, a_step, b, b_row, b_step, c, c_row, accumulate)
    elif C == 9: columns_rows(2, 9, M, K, a, a_step, b, b_row, b_step, c, c_row, accumulate)
    elif C == 10: columns_rows(2, 10, M, K, a, a_step, b, b_row, b_step, c, c_row, accumulate)
    elif C == 11: columns_rows(2, 11, M, K, a, a_step, b, b_row, b_step, c, c_row, accumulate)
    else: columns_rows(2, 12, M, K, a, a_step, b, b_row, b_step, c, c_row, accumulate)


cdef void narrow(const Product* p, Py_ssize_t start, Py_ssize_t stop, const real* a, Py_ssize_t a_step, Py_ssize_t k,
                 Py_ssize_t k_stop) noexcept nogil:
    """The last `edge` columns of C, rows start to stop, of products k to k_stop; `a` is A[start, k]."""
    cdef Py_ssize_t first = p.N - p.edge, size
    cdef real* c = p.c + start * p.c_row + first
    cdef const real* b = p.b + first * p.b_step
    cdef real columns[16 * K_DOTS]
    cdef int edge = <int> p.edge
    while k < k_stop:
        size = min(<Py_ssize_t> (K_DOTS if a_step == 1 else K_BLOCK), k_stop - k)
        if a_step != 1:
            columns_of(edge, stop - start, size, a, a_step, b + k * p.b_row, p.b_row, p.b_step, c, p.c_row, p.accumulate or k > 0)
        elif p.b_row == 1:
            dots_of(edge, stop - start, size, a, p.a_row, b + k, p.b_step, c, p.c_row, p.accumulate or k > 0)
        else:
            transpose_edge(p, k, size, columns)
            dots_of(edge, stop - start, size, a, p.a_row, columns, K_DOTS, c, p.c_row, p.accumulate or k > 0)
        a += size * a_step
        k += size
    if k == p.K:
        finish(p.activation, c, p.c_row, stop - start, p.edge, NULL if p.bias == NULL else p.bias + first)


cdef inline Py_ssize_t k_block(const Product* p) noexcept nogil:
    """Rows of B at a time. One panel read in place streams from the second cache as well: long rows of A are fetched ahead better."""
    if p.vectors > 3:
        return K_BLOCK
    if p.in_place and p.packed == NULL and p.N - p.edge == p.vectors * LANES:
        return K_LONG
    return 3 * K_BLOCK // p.vectors


cdef void pack_rows(const real* a, Py_ssize_t a_step, Py_ssize_t M, Py_ssize_t K, real* to) noexcept nogil:
    """to[k, 0:M] = A[0:M, k] of a transposed A, in rows of A_VECTORS + 1 vectors: an odd number spreads them over the whole first
    cache, where rows of x, a power of two apart, would drive each other out."""
    cdef Py_ssize_t k, i
    for k in range(K):
        i = 0
        while i + LANES <= M:
            vec_store(to + i, vec_load(a + i))
            i += LANES
        if i < M:
            vec_store_part(to + i, vec_load_part(a + i, M - i), M - i)
        a += a_step
        to += (A_VECTORS + 1) * LANES


cdef void panels(const Product* p, Py_ssize_t start, Py_ssize_t stop, Py_ssize_t first, Py_ssize_t end, bint with_edge) noexcept nogil:
    """Rows start to stop of C in panels first to end, and in the narrow edge, while the rows of A that they share are in cache.

    The last rows first: as dW = x^T dy, they are the columns of x that the forward pass read last, and are in cache still."""
    cdef bint packs_a = packs_rows(p)
    cdef Py_ssize_t most = min(k_block(p), <Py_ssize_t> K_BLOCK) if packs_a else k_block(p)
    cdef Py_ssize_t row, rows, k, size, panel, column, width, columns, b_step, last
    cdef Py_ssize_t a_step = (A_VECTORS + 1) * LANES if packs_a else p.a_step, edge_k
    cdef real packed[K_BLOCK * 3 * LANES]
    cdef real packed_a[K_BLOCK * (A_VECTORS + 1) * LANES]
    cdef const real* a
    cdef const real* b
    cdef real* c
    cdef int V
    row = stop
    while row > start:
        rows = min(<Py_ssize_t> (A_VECTORS * LANES if packs_a else M_BLOCK), row - start)
        row -= rows
        k = edge_k = 0
        while k < p.K:
            size = min(most, p.K - k)
            a = p.a + row * p.a_row + k * p.a_step
            if packs_a:
                pack_rows(a, p.a_step, rows, size, packed_a)
                a = packed_a
            for panel in range(first, end):
                V = panel_width(panel, p.vectors)
                width = V * LANES
                column = panel * 2 * LANES
                columns = min(width, p.N - column)
                last = columns - (V - 1) * LANES
                if p.packed != NULL:
                    b = p.packed + column * p.K + k * width
                    b_step = width
                elif p.in_place and columns == width:
                    b = p.b + k * p.b_row + column
                    b_step = p.b_row
                else:
                    pack_panel(p.b + k * p.b_row + column * p.b_step, p.b_row, p.b_step, size, width, columns, packed)
                    b = packed
                    b_step = width
                c = p.c + row * p.c_row + column
                stripe(V, rows, size, a, p.a_row, a_step, b, b_step, c, p.c_row, last, p.accumulate or k > 0)
                if k + size == p.K:
                    finish(p.activation, c, p.c_row, rows, columns, NULL if p.bias == NULL else p.bias + column)
            k += size
            if with_edge and (packs_a or k == p.K or k % K_DOTS == 0):
                narrow(p, row, row + rows, a - (k - size - edge_k) * a_step, a_step, edge_k, k)
                edge_k = k


include "unit.pxi"


cdef inline bint packs_rows(const Product* p) noexcept nogil:
    """Whether a transposed A is packed, some rows at a time: where more than one panel passes them, and A neither stays in the second
    cache nor lies closely. In float64 on one thread, x of 200 x 1024 went from 46 to 60 GFLOP/s, 512 x 1024 from 39 to 59; 200 x 256
    would go from 71 to 64."""
    return (p.a_step != 1 and panels_of(p.vectors) > 1 and p.a_step * sizeof(real) >= A_STEP
            and p.M * p.K * sizeof(real) >= A_BYTES)


cdef void share(const Product* p, bint by_panels, int part, int parts) noexcept nogil:
    """The part-th of `parts` equal shares of a product."""
    cdef Py_ssize_t start = p.M * part // parts, stop = p.M * (part + 1) // parts, count = panels_of(p.vectors)
    if p.on_unit:
        unit_share(p, part, parts)
        return
    if by_panels:
        panels(p, 0, p.M, count * part // parts, count * (part + 1) // parts, False)
    elif count:
        panels(p, start, stop, 0, count, p.edge > 0)
    if p.edge and (by_panels or not count):
        narrow(p, start, stop, p.a + start * p.a_row, p.a_step, 0, p.K)


cdef inline int chunks_of(const Product* p) noexcept nogil:
    """Into how many parts K is cut: 1, or 2 or 4 where few outputs are long sums (the first layer of an image classifier)."""
    if not p.batched or p.packed != NULL or p.K < CHUNK_LEAST or p.K < 8 * (p.M + p.N) or p.M * p.N > CHUNK_OUTPUTS:
        return 1
    return 4 if p.K >= 2 * CHUNK_LEAST and 3 * p.M * p.N <= CHUNK_OUTPUTS else 2


cdef void share_of_chunks(const Product* p, real* partial, int chunks, int part, int parts) noexcept nogil:
    """The first chunk's sums go to C, those of the others to `partial`."""
    cdef int chunk
    cdef Py_ssize_t k
    cdef Product q = p[0]
    q.bias = NULL
    q.activation = IDENTITY
    for chunk in range(chunks * part // parts, chunks * (part + 1) // parts):
        k = p.K * chunk // chunks
        q.K = p.K * (chunk + 1) // chunks - k
        q.a = p.a + k * p.a_step
        q.b = p.b + k * p.b_row
        if chunk > 0:
            q.c, q.c_row, q.accumulate = partial + (chunk - 1) * p.M * p.N, p.N, False
        share(&q, False, 0, 1)


cdef void product_in_chunks(const Product* p, int chunks, int parts) noexcept nogil:
    """Cut along K: the columns of A and rows of B that a thread reads here are those it reads again in the backward pass,
    so each core's cache keeps its own half of both."""
    cdef real partial[CHUNK_OUTPUTS]
    cdef real* c
    cdef int part, chunk
    cdef Py_ssize_t i, j, size
    parts = min(parts, chunks)
    if parts == 1:
        share_of_chunks(p, partial, chunks, 0, 1)
    else:
        for part in prange(parts, num_threads=parts, schedule="static", chunksize=1):
            share_of_chunks(p, partial, chunks, part, parts)
    for i in range(p.M):
        c = p.c + i * p.c_row
        for chunk in range(chunks - 1):
            j = 0
            while j < p.N:
                size = min(<Py_ssize_t> LANES, p.N - j)
                vec_store_part(c + j, vec_load_part(c + j, size)
                               + vec_load_part(partial + (chunk * p.M + i) * p.N + j, size), size)
                j += LANES
    finish(p.activation, p.c, p.c_row, p.M, p.N, p.bias)


cdef void product(Product* p) noexcept nogil:
    """C (+)= A B, then f(C + bias). Fill M to activation; the rest is decided here, from the whole problem's shape."""
    cdef Py_ssize_t edge = p.N % LANES
    cdef int part, parts, chunks
    cdef bint by_panels
    p.edge = edge if p.packed == NULL and (edge <= LANES // 4 or 4 * p.N <= 3 * LANES) else 0
    p.vectors = (p.N - p.edge + LANES - 1) // LANES
    # Packing pays where a panel serves several tiles of rows; a single panel of a row-major B is as good where it lies.
    p.in_place = p.b_step == 1 and (p.vectors <= 3 or p.M <= 2 * ROWS_2)
    p.on_unit = unit_pays(p)
    if p.K == 0:
        nothing(p)
        return
    parts = team_size(2.0 * p.M * p.N * p.K, 2e6)
    chunks = chunks_of(p)
    if chunks > 1:
        product_in_chunks(p, chunks, parts)
        return
    # By panels, each thread packs its own share of B and all of A; by rows the other way round.
    by_panels = panels_of(p.vectors) >= 2 * parts and (p.M < 8 * parts or not (p.in_place or (packs_rows(p) and p.M > p.N)))
    if parts == 1:
        share(p, False, 0, 1)
    else:
        for part in prange(parts, num_threads=parts, schedule="static", chunksize=1):
            share(p, by_panels, part, parts)


cdef void nothing(Product* p) noexcept nogil:
    """An empty sum is zero: C = f(bias)."""
    cdef Py_ssize_t i, j
    if not p.accumulate:
        for i in range(p.M):
            for j in range(p.N):
                p.c[i * p.c_row + j] = 0
    finish(p.activation, p.c, p.c_row, p.M, p.N, p.bias)


cdef void pack_all(const real* b, Py_ssize_t b_row, Py_ssize_t b_step, Py_ssize_t K, Py_ssize_t N, real* to) noexcept nogil:
    """All panels one after the other, each (K, width); `to` holds K * N rounded up to whole vectors."""
    cdef Py_ssize_t vectors = (N + LANES - 1) // LANES, panel, column, width
    for panel in range(panels_of(vectors)):
        column = panel * 2 * LANES
        width = panel_width(panel, vectors) * LANES
        pack_panel(b + column * b_step, b_row, b_step, K, width, min(width, N - column), to + column * K)
