# Sums of a matrix's columns. Needs product.pxi before it.

cdef void add_columns(const real* y, Py_ssize_t M, Py_ssize_t N, Py_ssize_t j, Py_ssize_t end, real* total, bint accumulate) noexcept nogil:
    """total[j to end] (+)= sum of the rows of y, four vectors of columns at a time."""
    cdef Py_ssize_t i, size
    cdef vec s0, s1, s2, s3
    cdef const real* row
    while j + 4 * LANES <= end:
        s0 = vec_zero()
        s1 = vec_zero()
        s2 = vec_zero()
        s3 = vec_zero()
        row = y + j
        for i in range(M):
            s0 = s0 + vec_load(row)
            s1 = s1 + vec_load(row + LANES)
            s2 = s2 + vec_load(row + 2 * LANES)
            s3 = s3 + vec_load(row + 3 * LANES)
            row += N
        if accumulate:
            s0 = s0 + vec_load(total + j)
            s1 = s1 + vec_load(total + j + LANES)
            s2 = s2 + vec_load(total + j + 2 * LANES)
            s3 = s3 + vec_load(total + j + 3 * LANES)
        vec_store(total + j, s0)
        vec_store(total + j + LANES, s1)
        vec_store(total + j + 2 * LANES, s2)
        vec_store(total + j + 3 * LANES, s3)
        j += 4 * LANES
    while j < end:
        size = min(<Py_ssize_t> LANES, end - j)
        s0 = vec_zero()
        row = y + j
        for i in range(M):
            s0 = s0 + vec_load_part(row, size)
            row += N
        if accumulate:
            s0 = s0 + vec_load_part(total + j, size)
        vec_store_part(total + j, s0, size)
        j += size


cdef void add_rows(const real* y, Py_ssize_t M, Py_ssize_t N, real* total, bint accumulate) noexcept nogil:
    """total[N] (+)= sum of the rows of y; a sum is formed by one thread, in the order of the rows."""
    cdef Py_ssize_t lines = (N + LANES - 1) // LANES
    cdef int part, parts = <int> min(<Py_ssize_t> team_size(M * N, 65536), lines)
    if parts == 1:
        add_columns(y, M, N, 0, N, total, accumulate)
    else:
        for part in prange(parts, num_threads=parts, schedule="static", chunksize=1):
            add_columns(y, M, N, lines * part // parts * LANES, min(N, lines * (part + 1) // parts * LANES), total, accumulate)
