# Batch normalisation. Needs vec.pxi and activation.pxi before it.
#
# Sums over the batch are cut into chunks of NORM_ROWS rows. A chunk's sums are formed in the order of its rows, by
# whichever thread; one thread then adds the chunks in order, in double. Until then they lie in the first two rows of the
# chunk's part of the result, which are written last: no scratch memory is needed. The last chunk takes the rows that are
# left over, so it has at least two whenever N has.
#
# Tried: input_gradients on two rows at a time, batch_norm_backward at (6400, 256) on two threads 1.5 ms; on one row 1.0.

from cython.parallel cimport prange
from libc.math cimport sqrt
from dd2424fast.kernels._team cimport team_size

cdef enum:
    NORM_ROWS = 128     # rows
    NORM_COLUMNS = 64    # columns whose sums over the chunks are added at a time
    NORM_GRAIN = 16384   # elements that are worth a thread


ctypedef struct Norm:
    Py_ssize_t N, C
    const real* x
    const real* dy
    const real* gamma
    const real* beta
    real* mean
    real* rstd
    real* result    # y or dx
    real* dgamma
    real* dbeta
    double eps
    int activation

ctypedef void (*NormPart)(const Norm* job, Py_ssize_t chunk, Py_ssize_t start, Py_ssize_t stop) noexcept nogil


cdef inline Py_ssize_t row_chunks(Py_ssize_t N) noexcept nogil:
    return max(<Py_ssize_t> 1, N // NORM_ROWS)


cdef inline Py_ssize_t end_of(Py_ssize_t chunk, Py_ssize_t N) noexcept nogil:
    """The row after the chunk's last."""
    return N if chunk == row_chunks(N) - 1 else (chunk + 1) * NORM_ROWS


cdef void each_chunk(NormPart part, const Norm* job) noexcept nogil:
    """Let the team run `part` on the rows of every chunk."""
    cdef Py_ssize_t chunk, chunks = row_chunks(job.N)
    cdef int threads = team_size(job.N * job.C, NORM_GRAIN)
    if threads == 1:    # even a team of one costs OpenMP 0.2 us to call together
        for chunk in range(chunks):
            part(job, chunk, chunk * NORM_ROWS, end_of(chunk, job.N))
    else:
        for chunk in prange(chunks, num_threads=threads, schedule="static"):
            part(job, chunk, chunk * NORM_ROWS, end_of(chunk, job.N))


cdef inline vec load(const real* p, Py_ssize_t size) noexcept nogil:
    """A vector of which `size` elements or more are there; zero where they end."""
    if size >= LANES:
        return vec_load(p)
    return vec_load_part(p, size)


cdef inline void store(real* p, vec v, Py_ssize_t size) noexcept nogil:
    if size >= LANES:
        vec_store(p, v)
    else:
        vec_store_part(p, v, size)


# Sums over the rows of a chunk.

cdef inline forced_inline_void moments_of(
    const int V, const real* x, Py_ssize_t n, Py_ssize_t C, Py_ssize_t size, real* mean, real* squares) noexcept nogil:
    """Mean and sum of squared deviations of V vectors of columns over n rows; `size` columns are there."""
    cdef vec[4] total, centre, square
    cdef vec deviation
    cdef const real* row = x
    cdef Py_ssize_t i
    cdef int v
    cdef real share = <real> (1.0 / n)
    for v in range(V):
        total[v] = vec_zero()
    for i in range(n):
        for v in range(V - 1):
            total[v] = total[v] + vec_load(row + v * LANES)
        total[V - 1] = total[V - 1] + load(row + (V - 1) * LANES, size - (V - 1) * LANES)
        row += C
    for v in range(V):
        centre[v] = total[v] * vec_set(share)
        total[v] = vec_zero()
        square[v] = vec_zero()
    row = x
    for i in range(n):
        for v in range(V - 1):
            deviation = vec_load(row + v * LANES) - centre[v]
            total[v] = total[v] + deviation
            square[v] = square[v] + deviation * deviation
        deviation = load(row + (V - 1) * LANES, size - (V - 1) * LANES) - centre[V - 1]
        total[V - 1] = total[V - 1] + deviation
        square[V - 1] = square[V - 1] + deviation * deviation
        row += C
    # The deviations of an exact mean add up to 0: what they do add up to corrects both sums.
    for v in range(V):
        deviation = total[v] * vec_set(share)
        store(mean + v * LANES, centre[v] + deviation, size - v * LANES)
        store(squares + v * LANES, square[v] - total[v] * deviation, size - v * LANES)


cdef void moments(const real* x, Py_ssize_t n, Py_ssize_t C, real* mean, real* squares) noexcept nogil:
    cdef Py_ssize_t j = 0, V
    while j + 4 * LANES <= C:
        moments_of(4, x + j, n, C, 4 * LANES, mean + j, squares + j)
        j += 4 * LANES
    V = (C - j + LANES - 1) // LANES
    if V == 4:
        moments_of(4, x + j, n, C, C - j, mean + j, squares + j)
    elif V == 3:
        moments_of(3, x + j, n, C, C - j, mean + j, squares + j)
    elif V == 2:
        moments_of(2, x + j, n, C, C - j, mean + j, squares + j)
    elif V == 1:
        moments_of(1, x + j, n, C, C - j, mean + j, squares + j)


cdef inline vec before_activation(const int code, vec dy, vec deviation, vec scale, vec beta) noexcept nogil:
    """dy times the slope of f at deviation scale + beta, which is what f was applied to in the forward pass."""
    if code == IDENTITY:
        return dy
    return times_slope(code, dy, activated(code, deviation * scale + beta))


cdef inline forced_inline_void gradient_sums_of(
    const int V, const int code, const Norm* s, const real* dy, const real* x, Py_ssize_t j, Py_ssize_t n, Py_ssize_t size, real* sums,
) noexcept nogil:
    """Sums of dy (x - mean) and, C further, of dy for V vectors of columns, the first of which is j, over n rows."""
    cdef vec[4] centre, scale, beta, product, total
    cdef vec d, deviation
    cdef Py_ssize_t i, C = s.C
    cdef int v
    for v in range(V):
        centre[v] = load(s.mean + j + v * LANES, size - v * LANES)
        if code != IDENTITY:
            scale[v] = load(s.gamma + j + v * LANES, size - v * LANES) * load(s.rstd + j + v * LANES, size - v * LANES)
            beta[v] = load(s.beta + j + v * LANES, size - v * LANES)
        product[v] = vec_zero()
        total[v] = vec_zero()
    for i in range(n):
        for v in range(V - 1):
            deviation = vec_load(x + v * LANES) - centre[v]
            d = before_activation(code, vec_load(dy + v * LANES), deviation, scale[v], beta[v])
            total[v] = total[v] + d
            product[v] = product[v] + d * deviation
        deviation = load(x + (V - 1) * LANES, size - (V - 1) * LANES) - centre[V - 1]
        d = before_activation(code, load(dy + (V - 1) * LANES, size - (V - 1) * LANES), deviation, scale[V - 1], beta[V - 1])
        total[V - 1] = total[V - 1] + d
        product[V - 1] = product[V - 1] + d * deviation
        dy += C
        x += C
    for v in range(V):
        store(sums + v * LANES, product[v], size - v * LANES)
        store(sums + C + v * LANES, total[v], size - v * LANES)


cdef inline forced_inline_void gradient_sums_as(const int code, const Norm* s, Py_ssize_t start, Py_ssize_t n, real* sums) noexcept nogil:
    cdef Py_ssize_t j = 0, V, C = s.C
    cdef const real* dy = s.dy + start * C
    cdef const real* x = s.x + start * C
    while j + 4 * LANES <= C:
        gradient_sums_of(4, code, s, dy + j, x + j, j, n, 4 * LANES, sums + j)
        j += 4 * LANES
    V = (C - j + LANES - 1) // LANES
    if V == 4:
        gradient_sums_of(4, code, s, dy + j, x + j, j, n, C - j, sums + j)
    elif V == 3:
        gradient_sums_of(3, code, s, dy + j, x + j, j, n, C - j, sums + j)
    elif V == 2:
        gradient_sums_of(2, code, s, dy + j, x + j, j, n, C - j, sums + j)
    elif V == 1:
        gradient_sums_of(1, code, s, dy + j, x + j, j, n, C - j, sums + j)


cdef void gradient_sums(const Norm* s, Py_ssize_t start, Py_ssize_t n, real* sums) noexcept nogil:
    """Sums of dy (x - mean), then of dy, over n rows from `start` on; dy as it was before the activation."""
    if s.activation == RELU:
        gradient_sums_as(RELU, s, start, n, sums)
    elif s.activation == LEAKY_RELU:
        gradient_sums_as(LEAKY_RELU, s, start, n, sums)
    elif s.activation == TANH:
        gradient_sums_as(TANH, s, start, n, sums)
    elif s.activation == SIGMOID:
        gradient_sums_as(SIGMOID, s, start, n, sums)
    else:
        gradient_sums_as(IDENTITY, s, start, n, sums)


# The chunks' sums added in order.

cdef void merge_moments(const Norm* s, double momentum, real* running_mean, real* running_var) noexcept nogil:
    """The moments of all rows from those of each chunk (Chan, Golub, LeVeque 1983, equation 2.1), and what follows."""
    cdef Py_ssize_t N = s.N, C = s.C
    cdef double[NORM_COLUMNS] mean, squares
    cdef double delta, share, weight, var
    cdef Py_ssize_t chunk, block, j, k, size
    cdef const real* row
    for block in range((C + NORM_COLUMNS - 1) // NORM_COLUMNS):
        j = block * NORM_COLUMNS
        size = min(<Py_ssize_t> NORM_COLUMNS, C - j)
        for k in range(size):
            mean[k] = 0
            squares[k] = 0
        for chunk in range(row_chunks(N)):
            row = s.result + chunk * NORM_ROWS * C + j
            share = (end_of(chunk, N) - chunk * NORM_ROWS) / <double> end_of(chunk, N)
            weight = share * (chunk * NORM_ROWS)
            for k in range(size):
                delta = row[k] - mean[k]
                mean[k] += delta * share
                squares[k] += row[C + k] + delta * delta * weight
        for k in range(size):
            var = squares[k] / N
            s.mean[j + k] = <real> mean[k]
            s.rstd[j + k] = <real> (1 / sqrt(var + s.eps))
            running_mean[j + k] = <real> (running_mean[j + k] + momentum * (mean[k] - running_mean[j + k]))
            running_var[j + k] = <real> (running_var[j + k] + momentum * (squares[k] / (N - 1) - running_var[j + k]))


cdef void merge_gradient_sums(const Norm* s, const real* rstd, bint accumulate) noexcept nogil:
    """dgamma, dbeta (+)= the chunks' sums, dgamma's times rstd unless NULL; the first chunk's become the totals."""
    cdef double[NORM_COLUMNS] products, sums
    cdef Py_ssize_t chunk, block, j, k, size, C = s.C
    cdef real* row
    for block in range((C + NORM_COLUMNS - 1) // NORM_COLUMNS):
        j = block * NORM_COLUMNS
        size = min(<Py_ssize_t> NORM_COLUMNS, C - j)
        for k in range(size):
            products[k] = 0
            sums[k] = 0
        for chunk in range(row_chunks(s.N)):
            row = s.result + chunk * NORM_ROWS * C + j
            for k in range(size):
                products[k] += row[k]
                sums[k] += row[C + k]
        row = s.result + j
        for k in range(size):
            if rstd != NULL:
                products[k] *= rstd[j + k]
            row[k] = <real> products[k]
            row[C + k] = <real> sums[k]
            s.dgamma[j + k] = <real> (products[k] + (s.dgamma[j + k] if accumulate else 0))
            s.dbeta[j + k] = <real> (sums[k] + (s.dbeta[j + k] if accumulate else 0))


# Batch normalisation.

cdef inline forced_inline_void normalise_as(
    const int code, const real* x, real* y, Py_ssize_t n, Py_ssize_t C,
    const real* mean, const real* scale, const real* beta,
) noexcept nogil:
    """y = f((x - mean) scale + beta) on n rows; scale may lie in y where n = 1."""
    cdef Py_ssize_t i, j
    cdef vec z
    for i in range(n):
        j = 0
        while j < C:
            z = (load(x + j, C - j) - load(mean + j, C - j)) * load(scale + j, C - j) + load(beta + j, C - j)
            store(y + j, activated(code, z), C - j)
            j += LANES
        x += C
        y += C


cdef void normalise(
    int code, const real* x, real* y, Py_ssize_t n, Py_ssize_t C, const real* mean, const real* scale, const real* beta,
) noexcept nogil:
    if code == RELU:
        normalise_as(RELU, x, y, n, C, mean, scale, beta)
    elif code == LEAKY_RELU:
        normalise_as(LEAKY_RELU, x, y, n, C, mean, scale, beta)
    elif code == TANH:
        normalise_as(TANH, x, y, n, C, mean, scale, beta)
    elif code == SIGMOID:
        normalise_as(SIGMOID, x, y, n, C, mean, scale, beta)
    else:
        normalise_as(IDENTITY, x, y, n, C, mean, scale, beta)


cdef void moments_part(const Norm* s, Py_ssize_t chunk, Py_ssize_t start, Py_ssize_t stop) noexcept nogil:
    cdef real* sums = s.result + start * s.C
    moments(s.x + start * s.C, stop - start, s.C, sums, sums + s.C)


cdef void normalise_part(const Norm* s, Py_ssize_t chunk, Py_ssize_t start, Py_ssize_t stop) noexcept nogil:
    """All rows but the first, which holds the scale."""
    start = max(<Py_ssize_t> 1, start)
    normalise(s.activation, s.x + start * s.C, s.result + start * s.C, stop - start, s.C, s.mean, s.result, s.beta)


cdef inline forced_inline_void input_gradient(
    const int code, const Norm* s, const real* dy, const real* x, Py_ssize_t j, vec slope, vec offset, real* dx, Py_ssize_t size,
) noexcept nogil:
    """dx = gamma rstd (dy - offset - (x - mean) slope) on one vector, column j on."""
    cdef vec scale = load(s.gamma + j, size) * load(s.rstd + j, size), deviation = load(x + j, size) - load(s.mean + j, size)
    cdef vec d = before_activation(code, load(dy + j, size), deviation, scale, load(s.beta + j, size) if code != IDENTITY else scale)
    store(dx + j, scale * (d - offset - deviation * slope), size)


cdef inline forced_inline_void input_gradients_as(
    const int code, const Norm* s, Py_ssize_t start, Py_ssize_t n, const real* slope, const real* offset) noexcept nogil:
    cdef Py_ssize_t i, j, C = s.C
    cdef const real* dy = s.dy + start * C
    cdef const real* x = s.x + start * C
    cdef real* dx = s.result + start * C
    for i in range(n):
        j = 0
        while j + LANES <= C:
            input_gradient(code, s, dy, x, j, vec_load(slope + j), vec_load(offset + j), dx, LANES)
            j += LANES
        if j < C:
            input_gradient(code, s, dy, x, j, load(slope + j, C - j), load(offset + j, C - j), dx, C - j)
        dy += C
        x += C
        dx += C


cdef void input_gradients(const Norm* s, Py_ssize_t start, Py_ssize_t n, const real* slope, const real* offset) noexcept nogil:
    """n rows of dx from `start` on, none of which holds slope or offset."""
    if s.activation == RELU:
        input_gradients_as(RELU, s, start, n, slope, offset)
    elif s.activation == LEAKY_RELU:
        input_gradients_as(LEAKY_RELU, s, start, n, slope, offset)
    elif s.activation == TANH:
        input_gradients_as(TANH, s, start, n, slope, offset)
    elif s.activation == SIGMOID:
        input_gradients_as(SIGMOID, s, start, n, slope, offset)
    else:
        input_gradients_as(IDENTITY, s, start, n, slope, offset)


cdef void first_input_gradients(const Norm* s) noexcept nogil:
    """The two rows of dx that hold slope and offset, a vector of columns at a time: both are read before either is written."""
    cdef Py_ssize_t j = 0, C = s.C, size
    cdef vec slope, offset
    while j < C:
        size = min(<Py_ssize_t> LANES, C - j)
        slope, offset = load(s.result + j, size), load(s.result + C + j, size)
        first_input_gradient(s, 0, j, slope, offset, size)
        first_input_gradient(s, C, j, slope, offset, size)
        j += LANES


cdef void first_input_gradient(const Norm* s, Py_ssize_t row, Py_ssize_t j, vec slope, vec offset, Py_ssize_t size) noexcept nogil:
    if s.activation == RELU:
        input_gradient(RELU, s, s.dy + row, s.x + row, j, slope, offset, s.result + row, size)
    elif s.activation == LEAKY_RELU:
        input_gradient(LEAKY_RELU, s, s.dy + row, s.x + row, j, slope, offset, s.result + row, size)
    elif s.activation == TANH:
        input_gradient(TANH, s, s.dy + row, s.x + row, j, slope, offset, s.result + row, size)
    elif s.activation == SIGMOID:
        input_gradient(SIGMOID, s, s.dy + row, s.x + row, j, slope, offset, s.result + row, size)
    else:
        input_gradient(IDENTITY, s, s.dy + row, s.x + row, j, slope, offset, s.result + row, size)


cdef void gradient_sums_part(const Norm* s, Py_ssize_t chunk, Py_ssize_t start, Py_ssize_t stop) noexcept nogil:
    gradient_sums(s, start, stop - start, s.result + start * s.C)


cdef void input_gradients_part(const Norm* s, Py_ssize_t chunk, Py_ssize_t start, Py_ssize_t stop) noexcept nogil:
    """All rows but the first two, which hold slope and offset."""
    start = max(<Py_ssize_t> 2, start)
    input_gradients(s, start, stop - start, s.result, s.result + s.C)


cdef vec slope_times(int code, vec dy, vec deviation, vec scale, vec beta) noexcept nogil:
    if code == RELU:
        return before_activation(RELU, dy, deviation, scale, beta)
    if code == LEAKY_RELU:
        return before_activation(LEAKY_RELU, dy, deviation, scale, beta)
    if code == TANH:
        return before_activation(TANH, dy, deviation, scale, beta)
    if code == SIGMOID:
        return before_activation(SIGMOID, dy, deviation, scale, beta)
    return dy


cdef void single_row(const Norm* s, bint accumulate) noexcept nogil:
    """A batch of one row, whose statistics were frozen: there is no second row to keep sums in."""
    cdef Py_ssize_t j = 0, size
    cdef vec scale, deviation, d, product
    while j < s.C:
        size = min(<Py_ssize_t> LANES, s.C - j)
        scale, deviation = load(s.gamma + j, size) * load(s.rstd + j, size), load(s.x + j, size) - load(s.mean + j, size)
        d = slope_times(s.activation, load(s.dy + j, size), deviation, scale, load(s.beta + j, size) if s.beta != NULL else scale)
        product = d * deviation * load(s.rstd + j, size)
        store(s.result + j, scale * d, size)
        store(s.dgamma + j, product + load(s.dgamma + j, size) if accumulate else product, size)
        store(s.dbeta + j, d + load(s.dbeta + j, size) if accumulate else d, size)
        j += LANES


cdef void batch_norm_rows(Norm* s, double momentum, real* running_mean, real* running_var) noexcept nogil:
    """y, from the batch's own statistics, which move the running ones."""
    cdef Py_ssize_t j
    each_chunk(moments_part, s)
    merge_moments(s, momentum, running_mean, running_var)
    for j in range(s.C):
        s.result[j] = s.gamma[j] * s.rstd[j]
    each_chunk(normalise_part, s)
    normalise(s.activation, s.x, s.result, 1, s.C, s.mean, s.result, s.beta)


cdef void batch_norm_rows_in_use(Norm* s, const real* var) noexcept nogil:
    """y, from the running statistics; `mean` is theirs."""
    cdef Py_ssize_t j
    if s.N > 0:
        for j in range(s.C):
            s.result[j] = <real> (s.gamma[j] / sqrt(var[j] + s.eps))
        each_chunk(normalise_part, s)
        normalise(s.activation, s.x, s.result, 1, s.C, s.mean, s.result, s.beta)


cdef void batch_norm_gradients(Norm* s, bint accumulate, bint frozen) noexcept nogil:
    """dx, dgamma, dbeta."""
    cdef Py_ssize_t j
    if s.N == 0:
        for j in range(0 if accumulate else s.C):
            s.dgamma[j] = s.dbeta[j] = 0
    elif s.N == 1:
        single_row(s, accumulate)
    else:
        each_chunk(gradient_sums_part, s)
        merge_gradient_sums(s, s.rstd, accumulate)
        for j in range(s.C):
            s.result[j] = 0 if frozen else s.result[j] * s.rstd[j] / s.N
            s.result[s.C + j] = 0 if frozen else s.result[s.C + j] / s.N
        each_chunk(input_gradients_part, s)
        first_input_gradients(s)
