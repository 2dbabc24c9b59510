# The register tile: C[R rows, V vectors] (+)= A[R, K] B[K, V vectors], its sums held in registers while it walks K.
#
# Every element's sum is formed in the order of k, one fused multiply-add each, whatever R and V are and wherever a
# K-block ends. So rows and vectors may be shared out among tiles and threads at will: the bits do not change.
#
# Needs vec.pxi before it. Registers under AVX-512 (32): 8 x 3 = 24 sums and 3 of B; the broadcast of A folds into the multiply-add.

cdef extern from *:
    """
    /* Rows of a tile of 1, 2 and 3 vectors: as many sums as the registers hold. */
    #if defined(__AVX512F__) || defined(__aarch64__)
    enum { ROWS_1 = 12, ROWS_2 = 8, ROWS_3 = 8 };
    #else
    enum { ROWS_1 = 8, ROWS_2 = 6, ROWS_3 = 4 };
    #endif
    """
    const int ROWS_1
    const int ROWS_2
    const int ROWS_3

# B is fetched 16 steps ahead where it lies densely (packed, or one panel wide): 8 rows of a 256 x 1024 product ran at 85 % of the
# cached rate without it, at 94 % with it (float32, AVX-512). Far-apart rows would cost a page walk each.


cdef inline forced_inline_void tile(
    const int R, const int V, Py_ssize_t K, const real* a, Py_ssize_t a_row, Py_ssize_t a_step,
    const real* b, Py_ssize_t b_step, real* c, Py_ssize_t c_row, Py_ssize_t last, bint accumulate,
) noexcept nogil:
    """`last`: lanes of the last vector that are stored in C (LANES, or less at the right edge)."""
    cdef vec total[12][3]
    cdef vec row[3]
    cdef vec x
    cdef int r, v
    cdef Py_ssize_t k, ahead = 16 * b_step if b_step <= 4 * LANES else 0
    for r in range(R):
        for v in range(V):
            total[r][v] = vec_zero()
    if accumulate:
        for r in range(R):
            for v in range(V - 1):
                total[r][v] = vec_load(c + r * c_row + v * LANES)
            total[r][V - 1] = vec_load_part(c + r * c_row + (V - 1) * LANES, last)
    for k in range(K):
        for v in range(V):
            row[v] = vec_load(b + v * LANES)
            vec_prefetch(b + v * LANES + ahead)
        for r in range(R):
            x = vec_set(a[r * a_row])
            for v in range(V):
                total[r][v] = total[r][v] + x * row[v]
        a += a_step
        b += b_step
    for r in range(R):
        for v in range(V - 1):
            vec_store(c + r * c_row + v * LANES, total[r][v])
        if last == LANES:
            vec_store(c + r * c_row + (V - 1) * LANES, total[r][V - 1])
        else:
            vec_store_part(c + r * c_row + (V - 1) * LANES, total[r][V - 1], last)


cdef void tile_1(
    int R, Py_ssize_t K, const real* a, Py_ssize_t a_row, Py_ssize_t a_step, const real* b, Py_ssize_t b_step,
    real* c, Py_ssize_t c_row, Py_ssize_t last, bint accumulate,
) noexcept nogil:
    if R == 12: tile(12, 1, K, a, a_row, a_step, b, b_step, c, c_row, last, accumulate)
    elif R == 11: tile(11, 1, K, a, a_row, a_step, b, b_step, c, c_row, last, accumulate)
    elif R == 10: tile(10, 1, K, a, a_row, a_step, b, b_step, c, c_row, last, accumulate)
    elif R == 9: tile(9, 1, K, a, a_row, a_step, b, b_step, c, c_row, last, accumulate)
    elif R == 8: tile(8, 1, K, a, a_row, a_step, b, b_step, c, c_row, last, accumulate)
    elif R == 7: tile(7, 1, K, a, a_row, a_step, b, b_step, c, c_row, last, accumulate)
    elif R == 6: tile(6, 1, K, a, a_row, a_step, b, b_step, c, c_row, last, accumulate)
    elif R == 5: tile(5, 1, K, a, a_row, a_step, b, b_step, c, c_row, last, accumulate)
    elif R == 4: tile(4, 1, K, a, a_row, a_step, b, b_step, c, c_row, last, accumulate)
    elif R == 3: tile(3, 1, K, a, a_row, a_step, b, b_step, c, c_row, last, accumulate)
    elif R == 2: tile(2, 1, K, a, a_row, a_step, b, b_step, c, c_row, last, accumulate)
    else: tile(1, 1, K, a, a_row, a_step, b, b_step, c, c_row, last, accumulate)


cdef void tile_2(
    int R, Py_ssize_t K, const real* a, Py_ssize_t a_row, Py_ssize_t a_step, const real* b, Py_ssize_t b_step,
    real* c, Py_ssize_t c_row, Py_ssize_t last, bint accumulate,
) noexcept nogil:
    if R == 8: tile(8, 2, K, a, a_row, a_step, b, b_step, c, c_row, last, accumulate)
    elif R == 7: tile(7, 2, K, a, a_row, a_step, b, b_step, c, c_row, last, accumulate)
    elif R == 6: tile(6, 2, K, a, a_row, a_step, b, b_step, c, c_row, last, accumulate)
    elif R == 5: tile(5, 2, K, a, a_row, a_step, b, b_step, c, c_row, last, accumulate)
    elif R == 4: tile(4, 2, K, a, a_row, a_step, b, b_step, c, c_row, last, accumulate)
    elif R == 3: tile(3, 2, K, a, a_row, a_step, b, b_step, c, c_row, last, accumulate)
    elif R == 2: tile(2, 2, K, a, a_row, a_step, b, b_step, c, c_row, last, accumulate)
    else: tile(1, 2, K, a, a_row, a_step, b, b_step, c, c_row, last, accumulate)


cdef void tile_3(
    int R, Py_ssize_t K, const real* a, Py_ssize_t a_row, Py_ssize_t a_step, const real* b, Py_ssize_t b_step,
    real* c, Py_ssize_t c_row, Py_ssize_t last, bint accumulate,
) noexcept nogil:
    if R == 8: tile(8, 3, K, a, a_row, a_step, b, b_step, c, c_row, last, accumulate)
    elif R == 7: tile(7, 3, K, a, a_row, a_step, b, b_step, c, c_row, last, accumulate)
    elif R == 6: tile(6, 3, K, a, a_row, a_step, b, b_step, c, c_row, last, accumulate)
    elif R == 5: tile(5, 3, K, a, a_row, a_step, b, b_step, c, c_row, last, accumulate)
    elif R == 4: tile(4, 3, K, a, a_row, a_step, b, b_step, c, c_row, last, accumulate)
    elif R == 3: tile(3, 3, K, a, a_row, a_step, b, b_step, c, c_row, last, accumulate)
    elif R == 2: tile(2, 3, K, a, a_row, a_step, b, b_step, c, c_row, last, accumulate)
    else: tile(1, 3, K, a, a_row, a_step, b, b_step, c, c_row, last, accumulate)


cdef void stripe(
    int V, Py_ssize_t M, Py_ssize_t K, const real* a, Py_ssize_t a_row, Py_ssize_t a_step,
    const real* b, Py_ssize_t b_step, real* c, Py_ssize_t c_row, Py_ssize_t last, bint accumulate,
) noexcept nogil:
    """C[M rows, V vectors] (+)= A B by tiles of nearly equal height: 50 rows are 7 tiles of 7 or 8, not 6 of 8 and one of 2."""
    cdef Py_ssize_t most = ROWS_3 if V == 3 else ROWS_2 if V == 2 else ROWS_1
    cdef Py_ssize_t tiles = (M + most - 1) // most, t, start = 0, stop
    for t in range(tiles):
        stop = M * (t + 1) // tiles
        if V == 3:
            tile_3(<int> (stop - start), K, a + start * a_row, a_row, a_step, b, b_step, c + start * c_row, c_row, last, accumulate)
        elif V == 2:
            tile_2(<int> (stop - start), K, a + start * a_row, a_row, a_step, b, b_step, c + start * c_row, c_row, last, accumulate)
        else:
            tile_1(<int> (stop - start), K, a + start * a_row, a_row, a_step, b, b_step, c + start * c_row, c_row, last, accumulate)
        start = stop
