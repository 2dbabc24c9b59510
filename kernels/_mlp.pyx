"""Networks of fully connected layers: whole training updates; compiled for float32 and float64. Arguments come checked
(kernels/mlp.py).

Every layer's results of one batch stay where they are written until the way back has read them; two matrices take turns
for the gradients on the way. Nothing is allocated between updates, and only a custom activation takes the GIL.
"""
from cython.parallel cimport prange
from libc.math cimport isfinite, pow, sqrt
from libc.stdint cimport int32_t, int64_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy, memset

from dd2424fast.kernels._random_checks cimport mixed
from dd2424fast.kernels._team cimport team_size

import numpy as np

from dd2424fast.kernels._checks import ACTIVATIONS

include "vec.pxi"
include "tile.pxi"
include "activation.pxi"
include "activation_pass.pxi"
include "product.pxi"
include "column_sums.pxi"
include "losses.pxi"
include "batch_norm.pxi"
include "dropout.pxi"
include "square_root.pxi"

cdef enum:
    SOFTMAX = 0         # what becomes of the last layer's results, and which loss goes with it
    LOGISTIC = 1
    LINEAR = 2
    EXPONENTIAL = 3

    SPAN = 8192         # parameters that one thread updates at a time
    PIECE = 16384       # elements of a batch that one thread gathers at least
    BLOCK_ROWS = 512    # rows that pass through the network at a time in use

cdef double NORM_MOMENTUM = 0.1, NORM_EPS = 1e-5
# What is smaller makes no finite number infinite that it is added to: less than half a unit of the largest's last place.
cdef double TOO_SMALL_TO_MATTER = 1e30 if sizeof(real) == 4 else 1e290

ctypedef struct Layer:
    Py_ssize_t D, H
    bint hidden, normed
    real* W
    real* b
    real* gamma
    real* beta
    real* running_mean
    real* running_var
    real* dW
    real* db
    real* dgamma
    real* dbeta
    real* before        # x W + b, where it is normalised
    real* mean
    real* rstd
    real* entered       # what a custom activation is applied to
    real* y             # the layer's result
    real* dropped       # and what is left of it; y itself without dropout

ctypedef struct Rows:
    Py_ssize_t N
    const real* x               # dense, or NULL
    Py_ssize_t x_row            # from one row to the next
    const int64_t* starts       # sparse: where each row of the whole matrix starts
    const int32_t* columns
    const real* values
    const int64_t* which        # sparse: the rows of the batch, or NULL where they follow each other
    Py_ssize_t first            # then: the first of them
    const int64_t* labels       # or NULL
    const real* targets         # or NULL
    const real* weight          # or NULL

ctypedef struct Stretch:        # of parameters, all weights or none
    Py_ssize_t start, stop
    bint decays

ctypedef struct Step:
    bint adam, nesterov
    double lr, momentum, beta_1, beta_2, epsilon
    real* first
    real* second


cdef class Network:
    """A plan with memory for batches of `capacity` rows."""
    cdef Layer* layers
    cdef Stretch* stretches
    cdef double* squares            # of each stretch's weights
    cdef Py_ssize_t count, stretch_count, capacity, widest
    cdef int activation, output
    cdef bint own_activation
    cdef object custom, held, work
    cdef double dropout
    cdef real* here                 # gradients on the way back, two matrices in turn
    cdef real* there
    cdef real* parameters
    cdef real* gradients
    cdef real* buffers
    cdef Py_ssize_t kept            # running statistics
    cdef real* buffers_before

    def __cinit__(self, plan, cnp.ndarray parameters, gradients, cnp.ndarray buffers, Py_ssize_t capacity, bint training):
        cdef tuple sizes = plan.sizes
        cdef Py_ssize_t layers = len(sizes) - 1
        self.count, self.capacity = layers, capacity
        self.output = ("softmax", "sigmoid", "identity", "exp").index(plan.output)
        self.custom = None if type(plan.activation) is str else plan.activation
        self.own_activation = self.custom is not None
        self.activation = IDENTITY if self.own_activation else ACTIVATIONS[plan.activation]
        self.dropout = plan.dropout
        self.widest = max(sizes[1:])
        self.held = (parameters, gradients, buffers)
        self.parameters = data(parameters)
        self.gradients = NULL if gradients is None else data(gradients)
        self.buffers, self.kept = data(buffers), plan.buffers
        self.layers = <Layer*> calloc(layers, sizeof(Layer))
        if self.layers == NULL:
            raise MemoryError
        self._lay(sizes, plan.batch_norm)
        self._give_memory(np.dtype(np.float64 if sizeof(real) == 8 else np.float32), training)

    def __dealloc__(self):
        free(self.layers)
        free(self.stretches)
        free(self.squares)

    cdef void _lay(self, tuple sizes, bint batch_norm):
        """Each layer's place in the flat vectors."""
        cdef real* p = self.parameters
        cdef real* statistics = self.buffers
        cdef Layer* s
        cdef Py_ssize_t i, back = 0 if self.gradients == NULL else self.gradients - self.parameters
        for i in range(self.count):
            s = self.layers + i
            s.D, s.H, s.hidden = sizes[i], sizes[i + 1], i < self.count - 1
            s.normed = batch_norm and s.hidden
            s.W = p
            s.b = s.W + s.D * s.H
            p = s.b + s.H
            s.dW, s.db = s.W + back, s.b + back
            if s.normed:
                s.gamma, s.beta = p, p + s.H
                s.dgamma, s.dbeta = s.gamma + back, s.beta + back
                p += 2 * s.H
                s.running_mean, s.running_var = statistics, statistics + s.H
                statistics += 2 * s.H

    cdef object _give_memory(self, dtype, bint training):
        """One piece of memory for all that a batch needs."""
        cdef Py_ssize_t i, each = 0, rows = self.capacity, once = 0
        cdef Layer* s
        cdef real* p
        for i in range(self.count):
            s = self.layers + i
            each += s.H * (1 + s.normed + (self.own_activation and s.hidden) + (self.dropout > 0 and s.hidden and training))
            once += 2 * s.H if s.normed else 0
        if training:
            each += 2 * self.widest
            once += self.kept
        self.work = np.empty(each * rows + once, dtype)
        p = data(self.work)
        for i in range(self.count):
            s = self.layers + i
            if s.normed:
                s.before = p
                p += rows * s.H
                s.mean, s.rstd = p, p + s.H
                p += 2 * s.H
            if self.own_activation and s.hidden:
                s.entered = p
                p += rows * s.H
            s.y = p
            p += rows * s.H
            s.dropped = s.y
            if self.dropout > 0 and s.hidden and training:
                s.dropped = p
                p += rows * s.H
        if training:
            self.here = p
            self.there = p + rows * self.widest
            self.buffers_before = self.there + rows * self.widest

    def cut(self):
        """Cut the parameters into stretches for the optimizer."""
        cdef Py_ssize_t i, start, stop, n = 0
        cdef Layer* s
        cdef bint decays
        for i in range(self.count):
            s = self.layers + i
            n += (s.D * s.H + SPAN - 1) // SPAN + (3 * s.H + SPAN - 1) // SPAN
        self.stretches = <Stretch*> calloc(n, sizeof(Stretch))
        self.squares = <double*> calloc(n, sizeof(double))
        if self.stretches == NULL or self.squares == NULL:
            raise MemoryError
        n = 0
        for i in range(self.count):
            s = self.layers + i
            for decays in (True, False):
                start = (s.W if decays else s.b) - self.parameters
                stop = start + (s.D * s.H if decays else (3 if s.normed else 1) * s.H)
                while start < stop:
                    self.stretches[n] = Stretch(start, min(start + SPAN, stop), decays)
                    start += SPAN
                    n += 1
        self.stretch_count = n

    # ---- forward ---------------------------------------------------------------------------------------------------

    cdef int forward(self, const Rows* rows, bint training, uint64_t seed, uint64_t update) except -1 nogil:
        cdef Py_ssize_t i, x_row = rows.x_row
        cdef const real* x = rows.x
        for i in range(self.count):
            self.apply(self.layers + i, rows if i == 0 else NULL, x, x_row, rows.N, training)
            if self.own_activation and self.layers[i].hidden:
                self.apply_custom(self.layers + i, rows.N)
            x, x_row = self.layers[i].y, self.layers[i].H
            if training and self.layers[i].dropped != x:
                drop_all(x, self.layers[i].dropped, rows.N * self.layers[i].H, self.dropout, stream(seed, i, update))
                x = self.layers[i].dropped
        return 0

    cdef void apply(self, Layer* s, const Rows* rows, const real* x, Py_ssize_t x_row, Py_ssize_t N, bint training) noexcept nogil:
        """f(norm(x W + b)), as far as f is compiled in; `rows` are those of the first layer."""
        cdef bint custom = self.own_activation and s.hidden
        cdef int activation = self.activation if s.hidden else IDENTITY
        cdef real* to = s.entered if custom else s.y
        cdef Norm norm
        cdef Product p
        p.M, p.N, p.K = N, s.H, s.D
        p.a, p.a_row, p.a_step = x, x_row, 1
        p.b, p.b_row, p.b_step = s.W, s.H, 1
        p.packed = NULL
        p.c, p.c_row = s.before if s.normed else to, s.H
        p.accumulate, p.batched = False, training
        p.bias, p.activation = s.b, IDENTITY if s.normed else activation
        if x == NULL:
            sparse_product(rows, s.W, s.H, p.c)
            finish(p.activation, p.c, s.H, N, s.H, s.b)
        else:
            product(&p)
        if s.normed:
            norm.N, norm.C, norm.x, norm.gamma, norm.beta, norm.result = N, s.H, s.before, s.gamma, s.beta, to
            norm.mean, norm.rstd, norm.eps, norm.activation = s.mean, s.rstd, NORM_EPS, activation
            if training:
                batch_norm_rows(&norm, NORM_MOMENTUM, s.running_mean, s.running_var)
            else:
                norm.mean = s.running_mean
                batch_norm_rows_in_use(&norm, s.running_var)

    cdef int apply_custom(self, Layer* s, Py_ssize_t N) except -1 nogil:
        with gil:
            self.custom.forward(self.matrix(s.entered, N, s.H), self.matrix(s.y, N, s.H))
        return 0

    # ---- loss ------------------------------------------------------------------------------------------------------

    cdef double loss(self, const Rows* rows, real* gradient, double* total) noexcept nogil:
        """Mean loss of the rows by their weights, whose sum is left in `total`; its gradient."""
        cdef const real* z = self.layers[self.count - 1].y
        cdef Py_ssize_t i, K = self.layers[self.count - 1].H
        cdef CrossEntropy entropy
        cdef Elementwise each
        total[0] = rows.N
        if rows.weight != NULL:
            total[0] = 0
            for i in range(rows.N):
                total[0] += rows.weight[i]
        if self.output == SOFTMAX:
            entropy.K, entropy.logits, entropy.dlogits, entropy.labels = K, z, gradient, rows.labels
            entropy.targets = entropy.class_weight = NULL
            entropy.sample_weight, entropy.ignored = rows.weight, -1
            entropy.on_true, entropy.on_each = 1, 0
            return cross_entropy(&entropy, rows.N)
        each.K, each.x, each.targets, each.labels, each.dx = K, z, rows.targets, NULL, gradient
        each.sample_weight, each.total = rows.weight, total[0]
        if self.output == LOGISTIC:
            return elementwise(BINARY, &each, rows.N)
        if self.output == EXPONENTIAL:
            return elementwise(POISSON, &each, rows.N)
        each.total = 2 * total[0]
        return elementwise(SQUARED, &each, rows.N)

    # ---- backward --------------------------------------------------------------------------------------------------

    cdef int backward(self, const Rows* rows, uint64_t seed, uint64_t update) except -1 nogil:
        """The gradients, from dL/dz of the last layer in `here`."""
        cdef Py_ssize_t i
        cdef Layer* s
        for i in range(self.count - 1, -1, -1):
            s = self.layers + i
            if s.dropped != s.y:
                drop_all(self.here, self.here, rows.N * s.H, self.dropout, stream(seed, i, update))
            if s.hidden and self.own_activation:
                self.undo_custom(s, rows.N)
            if i > 0:
                self.undo(s, rows, self.layers[i - 1].dropped, s.D, True)
            else:
                self.undo(s, rows, rows.x, rows.x_row, False)
        return 0

    cdef int undo_custom(self, Layer* s, Py_ssize_t N) except -1 nogil:
        with gil:
            dy = self.matrix(self.here, N, s.H)
            self.custom.backward(dy, self.matrix(s.entered, N, s.H), dy)
        return 0

    cdef cnp.ndarray matrix(self, real* p, Py_ssize_t N, Py_ssize_t H):
        """A part of the batch's memory, which it keeps alive: a traceback may hold it."""
        cdef cnp.npy_intp shape[2]
        cdef cnp.ndarray part
        shape[0], shape[1] = N, H
        part = cnp.PyArray_SimpleNewFromData(2, shape, cnp.NPY_FLOAT64 if sizeof(real) == 8 else cnp.NPY_FLOAT32, p)
        cnp.set_array_base(part, self.work)
        return part

    cdef void undo(self, Layer* s, const Rows* rows, const real* x, Py_ssize_t x_row, bint need_dx) noexcept nogil:
        cdef Norm norm
        cdef Product p
        if s.normed:
            norm.N, norm.C, norm.x, norm.dy, norm.gamma, norm.beta = rows.N, s.H, s.before, self.here, s.gamma, s.beta
            norm.mean, norm.rstd, norm.result, norm.dgamma, norm.dbeta = s.mean, s.rstd, self.there, s.dgamma, s.dbeta
            norm.activation = self.activation
            batch_norm_gradients(&norm, False, False)
            self.here, self.there = self.there, self.here
        elif s.hidden and self.activation != IDENTITY:
            activation_pass(self.activation, BACKWARD, self.here, s.y, self.here, rows.N * s.H)
        p.a_step = p.b_step = 1
        p.packed = NULL
        p.accumulate, p.batched, p.bias, p.activation = False, True, NULL, IDENTITY
        if x == NULL:
            sparse_gradient(rows, self.here, s.D, s.H, s.dW)
        else:
            p.M, p.N, p.K = s.D, s.H, rows.N        # dW = x^T dz
            p.a, p.a_row, p.a_step = x, 1, x_row
            p.b, p.b_row = self.here, s.H
            p.c, p.c_row = s.dW, s.H
            product(&p)
        add_rows(self.here, rows.N, s.H, s.db, False)
        if need_dx:
            p.M, p.N, p.K = rows.N, s.D, s.H        # dx = dz W^T
            p.a, p.a_row, p.a_step = self.here, s.H, 1
            p.b, p.b_row, p.b_step = s.W, 1, s.H
            p.c, p.c_row = self.there, s.D
            product(&p)
            self.here, self.there = self.there, self.here

    # ---- updates ---------------------------------------------------------------------------------------------------

    cdef int gradient_of(self, const Rows* rows, uint64_t seed, uint64_t update, double* loss, double* total) except -1 nogil:
        """Loss of one batch and its gradient, without the penalty's."""
        self.forward(rows, True, seed, update)
        loss[0] = self.loss(rows, self.here, total)
        if isfinite(loss[0]):
            self.backward(rows, seed, update)
        return 0

    cdef bint finite(self, double decay, double squares) noexcept nogil:
        """Whether all gradients, with the penalty's, and running statistics are; `squares` is the sum over the weights."""
        cdef Py_ssize_t i
        cdef int bad = 0, threads = team_size(self.stretch_count, 8)
        if decay * (1 + sqrt(squares)) < TOO_SMALL_TO_MATTER:
            decay = 0
        for i in prange(self.stretch_count, num_threads=threads, schedule="static", use_threads_if=threads > 1):
            bad += not_finite(self.parameters, self.gradients, self.stretches + i, decay)
        return bad == 0 and is_finite(self.buffers, self.kept)

    cdef double sum_of_squares(self) noexcept nogil:
        """Of the weights."""
        cdef Py_ssize_t i
        cdef double squares = 0
        cdef int threads = team_size(self.stretch_count, 8)
        for i in prange(self.stretch_count, num_threads=threads, schedule="static", use_threads_if=threads > 1):
            self.squares[i] = squares_of_stretch(self.parameters, self.stretches + i)
        for i in range(self.stretch_count):
            squares += self.squares[i]
        return squares

    cdef double step(self, const Step* step, double decay) noexcept nogil:
        """Move the parameters; returns the sum of the squared weights after it, where they decay."""
        cdef Py_ssize_t i
        cdef double squares = 0
        cdef int threads = team_size(self.stretch_count, 4)
        for i in prange(self.stretch_count, num_threads=threads, schedule="static", use_threads_if=threads > 1):
            self.squares[i] = move(step, self.parameters, self.gradients, self.stretches + i, decay)
        for i in range(0 if decay == 0 else self.stretch_count):
            squares += self.squares[i]
        return squares


cdef inline uint64_t stream(uint64_t seed, Py_ssize_t layer, uint64_t update) noexcept nogil:
    """stream_key of random.py."""
    return mixed(mixed(mixed(seed) + <uint64_t> layer) + update)


cdef bint is_finite(const real* p, Py_ssize_t n) noexcept nogil:
    cdef Py_ssize_t i = 0
    cdef vec none = vec_zero()
    while i < n:
        none = none + of_finite(load(p + i, n - i))
        i += LANES
    return vec_sum(none) == 0


cdef inline vec of_finite(vec v) noexcept nogil:
    """0 where v is finite, else NaN."""
    return v - v


cdef bint not_finite(const real* parameters, const real* gradients, const Stretch* s, double decay) noexcept nogil:
    """Whether a gradient of the stretch, with the penalty's, is not."""
    cdef Py_ssize_t i = s.start, size
    cdef vec none = vec_zero(), wd = vec_set(<real> decay)
    if not s.decays or decay == 0:
        return not is_finite(gradients + s.start, s.stop - s.start)
    while i < s.stop:
        size = s.stop - i
        none = none + of_finite(load(gradients + i, size) + wd * load(parameters + i, size))
        i += LANES
    return vec_sum(none) != 0


cdef double squares_of_stretch(const real* parameters, const Stretch* s) noexcept nogil:
    cdef Py_ssize_t i = s.start
    cdef vec w, squares = vec_zero()
    while i < s.stop and s.decays:
        w = load(parameters + i, s.stop - i)
        squares = squares + w * w
        i += LANES
    return added_up(squares, parameters, s)


cdef double added_up(vec squares, const real* parameters, const Stretch* s) noexcept nogil:
    """The sum of a stretch's squares, formed anew in double where `real` does not hold it."""
    cdef Py_ssize_t i
    cdef double total = vec_sum(squares)
    if not isfinite(total):
        total = 0
        for i in range(s.start, s.stop):
            total += <double> parameters[i] * parameters[i]
    return total


cdef inline vec moved(const Step* step, vec w, vec g, real* first, real* second, Py_ssize_t size) noexcept nogil:
    """The parameter after an update; first and second, the optimizer's state, move on. `size` lanes are there."""
    cdef real lr = <real> step.lr, mu = <real> step.momentum
    cdef vec m, v
    if not step.adam:
        v = mu * load(first, size) - lr * g
        store(first, v, size)
        return w + (mu * v - lr * g if step.nesterov else v)
    m = <real> step.beta_1 * load(first, size) + <real> (1 - step.beta_1) * g
    v = <real> step.beta_2 * load(second, size) + <real> (1 - step.beta_2) * (g * g)
    store(first, m, size)
    store(second, v, size)
    return w - vec_divide(lr * m, vec_sqrt(v) + <real> step.epsilon)


cdef double move(const Step* step, real* parameters, const real* gradients, const Stretch* s, double decay) noexcept nogil:
    """An update of one stretch; returns the sum of its squares after it, of weights."""
    cdef Py_ssize_t i = s.start, size
    cdef vec w, squares = vec_zero(), wd = vec_set(<real> (decay if s.decays else 0))
    cdef Step own = step[0]     # which no store can change: its numbers stay in registers
    while i < s.stop:
        size = s.stop - i
        w = load(parameters + i, size)
        w = moved(&own, w, load(gradients + i, size) + wd * w, own.first + i, own.second + i, size)
        squares = squares + w * w
        store(parameters + i, w, size)
        i += LANES
    return added_up(squares, parameters, s) if s.decays else 0


# ---- sparse input --------------------------------------------------------------------------------------------------

cdef inline Py_ssize_t row_of(const Rows* rows, Py_ssize_t i) noexcept nogil:
    return rows.first + i if rows.which == NULL else rows.which[i]


cdef double entries_of(const Rows* rows) noexcept nogil:
    cdef Py_ssize_t i, row
    cdef double entries = 0
    for i in range(rows.N):
        row = row_of(rows, i)
        entries += rows.starts[row + 1] - rows.starts[row]
    return entries


cdef void sparse_row(const Rows* rows, Py_ssize_t i, const real* W, Py_ssize_t H, real* y) noexcept nogil:
    cdef Py_ssize_t k, row = row_of(rows, i)
    memset(y, 0, H * sizeof(real))
    for k in range(rows.starts[row], rows.starts[row + 1]):
        add_scaled(y, W + <Py_ssize_t> rows.columns[k] * H, rows.values[k], 0, H)


cdef inline void add_scaled(real* y, const real* x, real factor, Py_ssize_t start, Py_ssize_t stop) noexcept nogil:
    cdef Py_ssize_t j = start
    while j < stop:
        store(y + j, load(y + j, stop - j) + factor * load(x + j, stop - j), stop - j)
        j += LANES


cdef void sparse_product(const Rows* rows, const real* W, Py_ssize_t H, real* y) noexcept nogil:
    """y = x W."""
    cdef Py_ssize_t i
    cdef int threads = team_size(2 * entries_of(rows) * H, 2e6)
    for i in prange(rows.N, num_threads=threads, schedule="static", use_threads_if=threads > 1):
        sparse_row(rows, i, W, H, y + i * H)


cdef void sparse_columns(const Rows* rows, const real* dy, Py_ssize_t H, Py_ssize_t start, Py_ssize_t stop, real* dW) noexcept nogil:
    cdef Py_ssize_t i, k, row
    for i in range(rows.N):
        row = row_of(rows, i)
        for k in range(rows.starts[row], rows.starts[row + 1]):
            add_scaled(dW + <Py_ssize_t> rows.columns[k] * H, dy + i * H, rows.values[k], start, stop)


cdef void sparse_gradient(const Rows* rows, const real* dy, Py_ssize_t D, Py_ssize_t H, real* dW) noexcept nogil:
    """dW = x^T dy; each thread takes columns of its own."""
    cdef Py_ssize_t lines = (H + LANES - 1) // LANES
    cdef int p, parts = <int> min(<Py_ssize_t> team_size(2 * entries_of(rows) * H, 2e6), lines)
    memset(dW, 0, D * H * sizeof(real))
    if parts == 1:
        sparse_columns(rows, dy, H, 0, H, dW)
    else:
        for p in prange(parts, num_threads=parts, schedule="static", chunksize=1):
            sparse_columns(rows, dy, H, lines * p // parts * LANES, min(H, lines * (p + 1) // parts * LANES), dW)


# ---- what Python calls ---------------------------------------------------------------------------------------------

cdef Rows rows_of(x, y, sample_weight, Py_ssize_t N) except *:
    """All rows of the data; x is a matrix or (starts, columns, values)."""
    cdef Rows rows
    rows.N, rows.first, rows.x_row = N, 0, 0
    rows.x = rows.values = rows.targets = rows.weight = NULL
    rows.starts = rows.which = rows.labels = NULL
    rows.columns = NULL
    if isinstance(x, tuple):
        rows.starts = <const int64_t*> cnp.PyArray_DATA(x[0])
        rows.columns = <const int32_t*> cnp.PyArray_DATA(x[1])
        rows.values = data(x[2])
    else:
        rows.x, rows.x_row = data(x), cnp.PyArray_DIM(x, 1)
    if y is not None and cnp.PyArray_NDIM(y) == 1:
        rows.labels = <const int64_t*> cnp.PyArray_DATA(y)
    elif y is not None:
        rows.targets = data(y)
    if sample_weight is not None:
        rows.weight = data(sample_weight)
    return rows


def mlp_outputs(plan, cnp.ndarray parameters, cnp.ndarray buffers, x, cnp.ndarray out):
    cdef Py_ssize_t N = cnp.PyArray_DIM(out, 0), K = cnp.PyArray_DIM(out, 1), start = 0
    cdef Network net = Network(plan, parameters, None, buffers, min(N, <Py_ssize_t> BLOCK_ROWS), False)
    cdef Rows rows = rows_of(x, None, None, N)
    cdef real* to = data(out)
    with nogil:
        while start < N:
            rows.N, rows.first = min(<Py_ssize_t> BLOCK_ROWS, N - start), start
            net.forward(&rows, False, 0, 0)
            finish_outputs(net.output, net.layers[net.count - 1].y, to + start * K, rows.N, K)
            if rows.x != NULL:
                rows.x += rows.N * net.layers[0].D
            start += rows.N
    return out


cdef void finish_outputs(int output, real* z, real* y, Py_ssize_t N, Py_ssize_t K) noexcept nogil:
    cdef Py_ssize_t i = 0, n = N * K
    cdef vec v
    if output == SOFTMAX:
        softmax_rows(z, y, N, K)
        return
    while i < n:
        v = load(z + i, n - i)
        store(y + i, vec_sigmoid(v) if output == LOGISTIC else vec_exp(v) if output == EXPONENTIAL else v, n - i)
        i += LANES


def mlp_loss(plan, cnp.ndarray parameters, cnp.ndarray buffers, x, cnp.ndarray y, sample_weight):
    cdef Py_ssize_t N = cnp.PyArray_DIM(y, 0), start = 0
    cdef Rows all = rows_of(x, y, sample_weight, N), rows = all
    cdef Network net = Network(plan, parameters, None, buffers, min(N, <Py_ssize_t> BLOCK_ROWS), True)
    cdef double loss = 0, total = 0, of_block = 0
    with nogil:
        while start < N:
            rows.N, rows.first = min(<Py_ssize_t> BLOCK_ROWS, N - start), start
            rows.x = NULL if all.x == NULL else all.x + start * net.layers[0].D
            rows.labels = NULL if all.labels == NULL else all.labels + start
            rows.targets = NULL if all.targets == NULL else all.targets + start * net.layers[net.count - 1].H
            rows.weight = NULL if all.weight == NULL else all.weight + start
            start += rows.N
            if weightless(&rows):
                continue
            net.forward(&rows, False, 0, 0)
            loss += net.loss(&rows, net.here, &of_block) * of_block
            total += of_block
    return loss / total


cdef bint weightless(const Rows* rows) noexcept nogil:
    cdef Py_ssize_t i
    if rows.weight == NULL:
        return False
    for i in range(rows.N):
        if rows.weight[i] != 0:
            return False
    return True


def mlp_gradient(plan, cnp.ndarray parameters, cnp.ndarray buffers, x, cnp.ndarray y, sample_weight, double alpha,
                 uint64_t seed, uint64_t update, cnp.ndarray gradients):
    cdef Py_ssize_t N = cnp.PyArray_DIM(y, 0), i
    cdef Network net = Network(plan, parameters, gradients, buffers, N, True)
    cdef Rows rows = rows_of(x, y, sample_weight, N)
    cdef double loss = 0, total = 0, squares = 0
    net.cut()
    with nogil:
        net.gradient_of(&rows, seed, update, &loss, &total)
        for i in range(net.stretch_count if alpha != 0 else 0):
            squares += add_decay(net.parameters, net.gradients, net.stretches + i, alpha / total)
    if not isfinite(loss):
        gradients.fill(np.nan)
    return loss, alpha / 2 * squares / total, gradients


cdef double add_decay(const real* parameters, real* gradients, const Stretch* s, double decay) noexcept nogil:
    cdef Py_ssize_t i = s.start, size
    cdef vec w, squares = vec_zero()
    while i < s.stop and s.decays:
        size = s.stop - i
        w = load(parameters + i, size)
        squares = squares + w * w
        store(gradients + i, load(gradients + i, size) + <real> decay * w, size)
        i += LANES
    return added_up(squares, parameters, s)


cdef Py_ssize_t spread(Py_ssize_t columns) noexcept nogil:
    """Numbers from one row to the next: whole vectors, an odd number of them, so that a column's elements lie all over a cache."""
    return ((columns + LANES - 1) // LANES | 1) * LANES


cdef inline void copy_row(const real* x, real* to, Py_ssize_t n, const real* next) noexcept nogil:
    """Row x; the next one is fetched into cache meanwhile."""
    cdef Py_ssize_t i = 0
    while i < n:
        vec_prefetch(next + i)
        store(to + i, load(x + i, n - i), n - i)
        i += LANES


cdef class Batch:
    """Memory for the rows of one update, which lie scattered among all."""
    cdef tuple memory
    cdef real* x
    cdef real* targets
    cdef real* weight
    cdef int64_t* labels
    cdef Rows all
    cdef Py_ssize_t D, K, x_row

    def __cinit__(self, dtype, Py_ssize_t D, Py_ssize_t K, Py_ssize_t rows, x, cnp.ndarray y, sample_weight):
        self.all = rows_of(x, y, sample_weight, cnp.PyArray_DIM(y, 0))
        self.D, self.K, self.x_row = D, K, spread(D)
        self.memory = (
            np.empty((0 if isinstance(x, tuple) else rows, self.x_row), dtype), np.empty((rows, K), dtype), np.empty(rows, dtype),
            np.empty(rows, np.int64))
        self.x, self.targets, self.weight = data(self.memory[0]), data(self.memory[1]), data(self.memory[2])
        self.labels = <int64_t*> cnp.PyArray_DATA(self.memory[3])

    cdef void gather(self, const int64_t* which, Py_ssize_t n, Rows* rows) noexcept nogil:
        """Rows `which` of all, one after the other."""
        cdef Py_ssize_t i
        cdef int part, parts = team_size(n * self.D, PIECE)
        rows[0] = self.all
        rows.N, rows.which = n, which
        if self.all.x != NULL:
            rows.x, rows.x_row = self.x, self.x_row
        if self.all.labels != NULL:
            rows.labels = self.labels
        if self.all.targets != NULL:
            rows.targets = self.targets
        if self.all.weight != NULL:
            rows.weight = self.weight
        for part in prange(parts if self.all.x != NULL else 0, num_threads=parts, schedule="static", use_threads_if=parts > 1):
            self.gather_columns(which, n, self.D * part // parts, self.D * (part + 1) // parts)
        for i in range(n):
            if self.all.labels != NULL:
                self.labels[i] = self.all.labels[which[i]]
            if self.all.targets != NULL:
                memcpy(self.targets + i * self.K, self.all.targets + which[i] * self.K, self.K * sizeof(real))
            if self.all.weight != NULL:
                self.weight[i] = self.all.weight[which[i]]

    cdef void gather_columns(self, const int64_t* which, Py_ssize_t n, Py_ssize_t start, Py_ssize_t stop) noexcept nogil:
        """The thread that copies columns of x multiplies them, too (product_in_chunks), from its own cache."""
        cdef Py_ssize_t i
        for i in range(n):
            copy_row(self.all.x + which[i] * self.D + start, self.x + i * self.x_row + start, stop - start,
                     self.all.x + which[min(i + 1, n - 1)] * self.D + start)

    cdef void take(self, Py_ssize_t start, Py_ssize_t n, Rows* rows) noexcept nogil:
        """Rows `start` on, where they lie."""
        rows[0] = self.all
        rows.N, rows.first = n, start
        if self.all.x != NULL:
            rows.x = self.all.x + start * self.D
        if self.all.labels != NULL:
            rows.labels = self.all.labels + start
        if self.all.targets != NULL:
            rows.targets = self.all.targets + start * self.K
        if self.all.weight != NULL:
            rows.weight = self.all.weight + start


def mlp_updates(plan, cnp.ndarray parameters, cnp.ndarray buffers, solver, x, cnp.ndarray y, sample_weight, order,
                Py_ssize_t batch_size, double alpha, uint64_t seed, so_far, Py_ssize_t of):
    cdef Py_ssize_t n = cnp.PyArray_DIM(y, 0) if order is None else cnp.PyArray_DIM(order, 0), start = 0, stop
    cdef bint normed = plan.batch_norm
    cdef Py_ssize_t most = min(n, batch_size + normed)
    cdef Network net = Network(plan, parameters, np.empty_like(parameters), buffers, most, True)
    cdef Batch batch = Batch(parameters.dtype, plan.sizes[0], plan.sizes[net.count], 0 if order is None else most, x, y, sample_weight)
    cdef const int64_t* which = NULL if order is None else <const int64_t*> cnp.PyArray_DATA(order)
    cdef Rows rows
    cdef Step step
    cdef double loss = so_far[0], penalty = so_far[1], of_batch = 0, total = 0, rate, squares = 0
    cdef uint64_t t = solver.t
    cdef bint sound = True
    step.adam = hasattr(solver, "first_moment")
    rate = step.lr = solver.learning_rate
    if step.adam:
        step.first, step.second = data(solver.first_moment), data(solver.second_moment)
        step.beta_1, step.beta_2, step.epsilon = solver.beta_1, solver.beta_2, solver.epsilon
    else:
        step.first = step.second = data(solver.velocity)
        step.momentum, step.nesterov = solver.momentum, solver.nesterov
    net.cut()
    try:
        with nogil:
            if alpha != 0:
                squares = net.sum_of_squares()
            while start < n and sound:
                stop = min(start + batch_size, n)
                if normed and n - stop == 1:
                    stop = n
                if which == NULL:
                    batch.take(start, stop - start, &rows)
                else:
                    batch.gather(which + start, stop - start, &rows)
                if not weightless(&rows):
                    memcpy(net.buffers_before, net.buffers, net.kept * sizeof(real))
                    net.gradient_of(&rows, seed, t, &of_batch, &total)
                    loss += of_batch * rows.N / of
                    penalty += alpha / 2 * squares / total * rows.N / of
                    sound = isfinite(loss + penalty) and net.finite(alpha / total, squares)
                    if sound:
                        t += 1
                        if step.adam:
                            step.lr = rate * sqrt(1 - pow(step.beta_2, <double> t)) / (1 - pow(step.beta_1, <double> t))
                        squares = net.step(&step, alpha / total)
                    else:
                        memcpy(net.buffers, net.buffers_before, net.kept * sizeof(real))
                start = stop
    finally:
        solver.t = t
    if not sound and isfinite(loss):
        loss = np.nan
    return loss, penalty
