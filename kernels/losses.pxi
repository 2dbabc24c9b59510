# Losses with their gradients in one pass over the rows. Needs vec.pxi before it.
#
# Rows are shared out in chunks whose number and size depend on the shape alone; each chunk's loss is summed in float64, and the
# chunks' sums in order: the same bits for any number of threads.

from cython.parallel cimport prange
from libc.math cimport INFINITY, log
from libc.stdint cimport int64_t
from dd2424fast.kernels._team cimport team_size

cdef extern from *:
    """
    /* 0 where the target is, also of the minus infinity that rules a class out. */
    ALWAYS_INLINE vec share_of(vec target, vec x) { return vec_where((ivec)(target == 0), target, target * x); }
    /* t log t, which is 0 at 0. */
    ALWAYS_INLINE vec count_log(vec t) { return vec_where((ivec)(t == 0), t, t * vec_log(t)); }
    """
    vec share_of(vec target, vec x) nogil
    vec count_log(vec t) nogil

cdef enum:
    LOSS_CHUNKS = 256    # at most
    LOSS_CHUNK = 2048    # elements in a chunk, at least
    LOSS_GRAIN = 8192    # elements worth a thread
    LOSS_BLOCK = 512     # elements whose losses are summed in `real`

    # softmax cross-entropy: what the classes other than the true one weigh
    NOTHING = 0
    ALIKE = 1
    BY_CLASS = 2

    # element-wise losses
    BINARY = 0
    SQUARED = 1
    POISSON = 2


cdef inline Py_ssize_t rows_of_chunk(Py_ssize_t N, Py_ssize_t K) noexcept nogil:
    return max((N + LOSS_CHUNKS - 1) // LOSS_CHUNKS, (LOSS_CHUNK + K - 1) // K)


ctypedef struct CrossEntropy:
    Py_ssize_t K
    const real* logits
    real* dlogits
    const int64_t* labels        # or NULL
    const real* targets          # or NULL: distributions
    int64_t ignored
    const real* class_weight     # or NULL
    const real* sample_weight    # or NULL
    double on_true               # target of the true class, beyond that of every class
    double on_each               # target of every class
    double class_sum             # sum of the class weights
    double total                 # sum of the weights of all rows


cdef double cross_entropy(CrossEntropy* p, Py_ssize_t N) noexcept nogil:
    """Mean loss of N rows, and its gradient; `total` is set here."""
    cdef Py_ssize_t chunk, rows = rows_of_chunk(N, p.K), chunks = (N + rows - 1) // rows
    cdef int threads
    cdef double losses[LOSS_CHUNKS]
    cdef double loss = 0
    total_weights(p, N)
    if chunks == 1:
        return cross_entropy_rows(p, 0, N) / p.total
    threads = team_size(<double> N * p.K, LOSS_GRAIN)
    for chunk in prange(chunks, num_threads=threads, schedule="static", use_threads_if=threads > 1):
        losses[chunk] = cross_entropy_rows(p, chunk * rows, min(N, (chunk + 1) * rows))
    for chunk in range(chunks):
        loss += losses[chunk]
    return loss / p.total


cdef void total_weights(CrossEntropy* p, Py_ssize_t N) noexcept nogil:
    cdef Py_ssize_t i, counted = 0
    p.class_sum = p.K
    if p.class_weight != NULL:
        p.class_sum = 0
        for i in range(p.K):
            p.class_sum += p.class_weight[i]
    if p.targets != NULL:
        p.total = 0 if p.sample_weight != NULL else N
        for i in range(0 if p.sample_weight == NULL else N):
            p.total += p.sample_weight[i]
        return
    if p.class_weight == NULL and p.sample_weight == NULL:
        for i in range(N):
            counted += p.labels[i] != p.ignored
        p.total = counted
        return
    p.total = 0
    for i in range(N):
        if p.labels[i] != p.ignored:
            p.total += ((1.0 if p.sample_weight == NULL else p.sample_weight[i])
                        * (1.0 if p.class_weight == NULL else p.class_weight[p.labels[i]]))


cdef double cross_entropy_rows(const CrossEntropy* p, Py_ssize_t start, Py_ssize_t stop) noexcept nogil:
    """Gradient of rows start to stop; returns their loss, not yet divided by the total weight."""
    if p.targets != NULL:
        return distribution_rows(True, p, start, stop) if p.class_weight != NULL else distribution_rows(False, p, start, stop)
    if p.on_each == 0:
        return cross_entropy_rows_as(NOTHING, p, start, stop)
    if p.class_weight == NULL:
        return cross_entropy_rows_as(ALIKE, p, start, stop)
    return cross_entropy_rows_as(BY_CLASS, p, start, stop)


cdef inline double cross_entropy_rows_as(const int others, const CrossEntropy* p, Py_ssize_t start, Py_ssize_t stop) noexcept nogil:
    # The loss of a row is c log(sum) - (what is linear in the logits); the logarithms are taken a vector of rows at a time.
    cdef Py_ssize_t i = start, r, rows
    cdef double loss = 0, on_true, scale
    cdef double c[LANES]
    cdef real sums[LANES]
    while i < stop:
        rows = min(<Py_ssize_t> LANES, stop - i)
        vec_store(sums, vec_set(1))
        for r in range(rows):
            c[r] = 0
            if p.labels[i + r] == p.ignored:
                fill_zero(p.dlogits + (i + r) * p.K, p.K)
                continue
            on_true = p.on_true * (1.0 if p.class_weight == NULL else p.class_weight[p.labels[i + r]])
            scale = 1.0 if p.sample_weight == NULL else p.sample_weight[i + r]
            c[r] = scale * (on_true + p.on_each * p.class_sum)
            loss -= scale * cross_entropy_row(others, p, i + r, on_true, c[r] / p.total, scale / p.total, sums + r)
        vec_store(sums, vec_log(vec_load(sums)))
        for r in range(rows):
            loss += c[r] * sums[r]
        i += rows
    return loss


cdef inline void fill_zero(real* d, Py_ssize_t K) noexcept nogil:
    cdef Py_ssize_t j
    for j in range(K):
        d[j] = 0


cdef inline double cross_entropy_row(
    const int others, const CrossEntropy* p, Py_ssize_t i, double on_true, double c, double scale, real* total) noexcept nogil:
    """dlogits = c softmax - scale (target); total = sum of exp(z - max z); returns sum of target (z - max z)."""
    cdef const real* z = p.logits + i * p.K
    cdef real* d = p.dlogits + i * p.K
    cdef Py_ssize_t y = p.labels[i], j = 0, full = p.K - p.K % LANES, rest = p.K - full
    cdef vec largest = vec_set(-INFINITY), last, sums = vec_zero(), linear = vec_zero(), x, factor, each = vec_zero()
    cdef double result
    while j < full:
        largest = vec_max(largest, vec_load(z + j))
        j += LANES
    if rest:
        last = vec_load_filled(z + full, rest, vec_set(-INFINITY))    # exp(-infinity) = 0 adds nothing
        largest = vec_max(largest, last)
    largest = vec_max_all(largest)
    result = on_true * (<double> z[y] - <double> vec_first(largest))
    if others != NOTHING and rest:
        x = vec_load_filled(z + full, rest, largest) - largest
        linear = x * vec_load_part(p.class_weight + full, rest) if others == BY_CLASS else x
    j = 0
    while j < full:
        x = vec_load(z + j) - largest
        if others == ALIKE:
            linear = linear + x
        if others == BY_CLASS:
            linear = linear + x * vec_load(p.class_weight + j)
        x = vec_exp(x)
        sums = sums + x
        vec_store(d + j, x)
        j += LANES
    if rest:
        last = vec_exp(last - largest)
        sums = sums + last
    total[0] = vec_first(vec_sum_all(sums))
    if others != NOTHING:
        result += p.on_each * vec_sum(linear)
        each = vec_set(<real> (scale * p.on_each))
    factor = vec_set(<real> (c / total[0]))
    j = 0
    while j < full:
        x = vec_load(d + j) * factor
        if others == ALIKE:
            x = x - each
        if others == BY_CLASS:
            x = x - each * vec_load(p.class_weight + j)
        vec_store(d + j, x)
        j += LANES
    if rest:
        x = last * factor
        if others == ALIKE:
            x = x - each
        if others == BY_CLASS:
            x = x - each * vec_load_part(p.class_weight + full, rest)
        vec_store_part(d + full, x, rest)
    d[y] = <real> (d[y] - scale * on_true)
    return result


cdef inline double distribution_rows(const bint weighted, const CrossEntropy* p, Py_ssize_t start, Py_ssize_t stop) noexcept nogil:
    cdef Py_ssize_t i
    cdef double loss = 0, scale
    for i in range(start, stop):
        scale = 1.0 if p.sample_weight == NULL else p.sample_weight[i]
        loss += scale * distribution_row(weighted, p, p.logits + i * p.K, p.targets + i * p.K, p.dlogits + i * p.K, scale / p.total)
    return loss


cdef inline double distribution_row(
    const bint weighted, const CrossEntropy* p, const real* z, const real* t, real* d, double scale) noexcept nogil:
    """Loss of a row, and its gradient times scale. The target is (on_true t + on_each) v."""
    cdef Py_ssize_t j = 0
    cdef vec largest = vec_set(-INFINITY), sums = vec_zero(), of_t = vec_zero(), linear = vec_zero()
    cdef vec x, v = vec_set(1), q, factor, on_true = vec_set(<real> p.on_true), on_each = vec_set(<real> p.on_each)
    cdef double total, sum
    while j < p.K:
        largest = vec_max(largest, at(z, j, p.K, vec_set(-INFINITY)))
        j += LANES
    largest = vec_max_all(largest)
    j = 0
    while j < p.K:
        # Behind the row's end x and t are 0, and the exponential of minus infinity is.
        x = at(z, j, p.K, largest) - largest
        if weighted:
            v = at(p.class_weight, j, p.K, vec_zero())
        q = at(t, j, p.K, vec_zero()) * v
        of_t = of_t + q
        linear = linear + share_of(on_true * q + on_each * v, x)
        x = vec_exp(at(z, j, p.K, vec_set(-INFINITY)) - largest)
        sums = sums + x
        put(d, j, p.K, x)
        j += LANES
    sum = vec_first(vec_sum_all(sums))
    total = p.on_true * vec_sum(of_t) + p.on_each * p.class_sum
    factor = vec_set(<real> (scale * total / sum))
    on_true, on_each = on_true * vec_set(<real> scale), on_each * vec_set(<real> scale)
    j = 0
    while j < p.K:
        q = on_true * at(t, j, p.K, vec_zero()) + on_each
        if weighted:
            q = q * at(p.class_weight, j, p.K, vec_zero())
        put(d, j, p.K, at(d, j, p.K, vec_zero()) * factor - q)
        j += LANES
    return total * log(sum) - vec_sum(linear)


cdef inline vec at(const real* x, Py_ssize_t j, Py_ssize_t K, vec behind) noexcept nogil:
    """Numbers j to j + LANES of a row of K; `behind` stands for those behind its end."""
    return vec_load(x + j) if j + LANES <= K else vec_load_filled(x + j, K - j, behind)


cdef inline void put(real* x, Py_ssize_t j, Py_ssize_t K, vec v) noexcept nogil:
    if j + LANES <= K:
        vec_store(x + j, v)
    else:
        vec_store_part(x + j, v, K - j)


cdef void softmax_rows(const real* z, real* p, Py_ssize_t N, Py_ssize_t K) noexcept nogil:
    cdef Py_ssize_t i
    cdef int threads = team_size(<double> N * K, LOSS_GRAIN)
    for i in prange(N, num_threads=threads, schedule="static", use_threads_if=threads > 1):
        softmax_row(z + i * K, p + i * K, K)


cdef void softmax_row(const real* z, real* p, Py_ssize_t K) noexcept nogil:
    cdef Py_ssize_t j = 0, full = K - K % LANES, rest = K - full
    cdef vec largest = vec_set(-INFINITY), last = vec_zero(), sums = vec_zero(), x
    while j < full:
        largest = vec_max(largest, vec_load(z + j))
        j += LANES
    if rest:
        last = vec_load_filled(z + full, rest, vec_set(-INFINITY))
        largest = vec_max(largest, last)
    largest = vec_max_all(largest)
    j = 0
    while j < full:
        x = vec_exp(vec_load(z + j) - largest)
        sums = sums + x
        vec_store(p + j, x)
        j += LANES
    if rest:
        last = vec_exp(last - largest)
        sums = sums + last
    sums = vec_set(1) / vec_sum_all(sums)
    j = 0
    while j < full:
        vec_store(p + j, vec_load(p + j) * sums)
        j += LANES
    if rest:
        vec_store_part(p + full, last * sums, rest)


ctypedef struct Elementwise:
    Py_ssize_t K
    const real* x                # logits or predictions
    const real* targets          # or NULL: one-hot by `labels`
    const int64_t* labels        # or NULL
    real* dx
    const real* sample_weight    # or NULL
    double total                 # what the sum of the losses is divided by


cdef double elementwise(int kind, const Elementwise* p, Py_ssize_t N) noexcept nogil:
    """Sum over N rows of the losses of a row's elements, over `total`; its gradient in dx."""
    cdef Py_ssize_t rows = rows_of_chunk(N, p.K), chunk, chunks = (N + rows - 1) // rows
    cdef int threads = team_size(<double> N * p.K, LOSS_GRAIN)
    cdef double losses[LOSS_CHUNKS]
    cdef double loss = 0
    for chunk in prange(chunks, num_threads=threads, schedule="static", use_threads_if=threads > 1):
        if kind == BINARY:
            losses[chunk] = elementwise_rows(BINARY, p, chunk * rows, min(N, (chunk + 1) * rows))
        elif kind == SQUARED:
            losses[chunk] = elementwise_rows(SQUARED, p, chunk * rows, min(N, (chunk + 1) * rows))
        else:
            losses[chunk] = elementwise_rows(POISSON, p, chunk * rows, min(N, (chunk + 1) * rows))
    for chunk in range(chunks):
        loss += losses[chunk]
    return loss / p.total


cdef inline double elementwise_rows(const int kind, const Elementwise* p, Py_ssize_t start, Py_ssize_t stop) noexcept nogil:
    cdef Py_ssize_t K = p.K, i
    cdef double loss = 0, weight
    if p.sample_weight == NULL and p.labels == NULL:
        return elements(kind, p.x + start * K, p.targets + start * K, 0, p.dx + start * K, (stop - start) * K, <real> (1 / p.total))
    for i in range(start, stop):
        weight = 1 if p.sample_weight == NULL else p.sample_weight[i]
        loss += weight * elements(
            kind, p.x + i * K, NULL if p.targets == NULL else p.targets + i * K, 0 if p.labels == NULL else p.labels[i],
            p.dx + i * K, K, <real> (weight / p.total))
    return loss


cdef inline double elements(
    const int kind, const real* x, const real* t, Py_ssize_t y, real* dx, Py_ssize_t n, real scale) noexcept nogil:
    """Sum of the losses of n elements, dx = scale times their derivatives; without t the target is 1 at y, 0 elsewhere."""
    cdef Py_ssize_t i = 0, stop
    cdef double loss = 0
    cdef vec total, factor = vec_set(2 * scale if kind == SQUARED else scale)
    while i < n:
        stop = min(n, i + LOSS_BLOCK)
        total = vec_zero()
        while i + LANES <= stop:
            total = total + element(kind, vec_load(x + i), vec_one_hot(y - i) if t == NULL else vec_load(t + i), factor, dx + i, LANES)
            i += LANES
        if i < stop:
            total = total + element(
                kind, vec_load_filled(x + i, stop - i, vec_set(0 if kind == SQUARED else -1e30)),    # whose loss is 0
                vec_one_hot(y - i) if t == NULL else vec_load_part(t + i, stop - i), factor, dx + i, stop - i)
            i = stop
        loss += vec_sum(total)
    return loss


cdef inline vec element(const int kind, vec x, vec t, vec factor, real* dx, Py_ssize_t lanes) noexcept nogil:
    cdef vec e, slope, loss
    if kind == SQUARED:
        slope = x - t
        loss = slope * slope
    elif kind == POISSON:           # half the deviance, of the logarithm of what is expected
        e = vec_exp(x)
        slope = e - t
        loss = slope - t * x + count_log(t)
    else:
        e = vec_exp(-vec_abs(x))    # never overflows
        slope = vec_where(x < vec_zero(), e, vec_set(1)) / (vec_set(1) + e) - t
        loss = vec_max(x, vec_zero()) - x * t + vec_log1p(e)
    slope = slope * factor
    if lanes == LANES:
        vec_store(dx, slope)
    else:
        vec_store_part(dx, slope, lanes)
    return loss
