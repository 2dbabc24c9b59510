"""Optimizers on a flat parameter vector; compiled for float32 and float64. Arguments come checked
(kernels/optimizers.py).

Every optimizer is one loop over whole vectors of neighbouring parameters, a `Step`. `walk` takes it over the spans of
the table, with what a row says about rate and decay; what is left of a row passes through buffers of one vector. Each
parameter is on its own and always meets the same vector instructions, so the bits depend neither on the threads nor on
how the table is cut.
"""
from cython.parallel cimport prange
from libc.math cimport pow, sqrt

from dd2424fast.kernels._segments cimport CHUNK, Segments, Span, span_at, span_count, spans_of
from dd2424fast.kernels._team cimport team_size

include "vec.pxi"
include "square_root.pxi"

cdef struct Rule:               # what is the same for all parameters; each optimizer sets what it needs
    double lr, weight_decay
    double beta1, beta2         # decay of the averages
    double eps
    double correction1, correction2
    double gradient_share, moment_share     # NAdam
    bint nesterov

ctypedef void (*Step)(real* restrict parameters, const real* restrict gradients, real* restrict first,
                      real* restrict second, Py_ssize_t n, double rate, double decay, const Rule* rule) noexcept nogil


cdef void walk(Step step, cnp.ndarray parameters, cnp.ndarray gradients, first, second, Segments segments,
               const Rule* rule, int grain=8):
    """Apply `step` to every span of the table, `grain` of them or more on each thread."""
    cdef real* w = data(parameters)
    cdef real* g = data(gradients)
    cdef real* s = w if first is None else data(first)      # a step does not look at state that it has not
    cdef real* u = w if second is None else data(second)
    cdef const Span* spans = spans_of(segments)
    cdef Py_ssize_t size = cnp.PyArray_DIM(parameters, 0), count = span_count(segments, size), i
    cdef int threads = team_size(count, grain)
    with nogil:
        if threads == 1:    # even a team of one costs 0.5 us to call together, more than all the rest of a small update
            for i in range(count):
                walk_span(step, w, g, s, u, span_at(spans, i, size), rule)
        else:
            for i in prange(count, num_threads=threads, schedule="static"):
                walk_span(step, w, g, s, u, span_at(spans, i, size), rule)


cdef void walk_span(Step step, real* w, const real* g, real* s, real* u, Span span, const Rule* rule) noexcept nogil:
    cdef Py_ssize_t start = span.start, rest = (span.stop - span.start) % LANES, end = span.stop - rest
    cdef double rate = rule.lr * span.rate, decay = rule.weight_decay * span.decay
    cdef real w_rest[LANES]
    cdef real g_rest[LANES]
    cdef real s_rest[LANES]
    cdef real u_rest[LANES]
    step(w + start, g + start, s + start, u + start, end - start, rate, decay, rule)
    if rest > 0:
        vec_store(w_rest, vec_load_part(w + end, rest))
        vec_store(g_rest, vec_load_part(g + end, rest))
        vec_store(s_rest, vec_load_part(s + end, rest))
        vec_store(u_rest, vec_load_part(u + end, rest))
        step(w_rest, g_rest, s_rest, u_rest, LANES, rate, decay, rule)
        vec_store_part(s + end, vec_load(s_rest), rest)
        vec_store_part(u + end, vec_load(u_rest), rest)
        vec_store_part(w + end, vec_load(w_rest), rest)     # last: state that is not there stands for w


cdef inline vec lerp(vec start, vec end, real weight) noexcept nogil:
    """start + weight (end - start), counted from the nearer end as PyTorch does it."""
    if weight < <real> 0.5:
        return start + weight * (end - start)
    return end - (<real> 1 - weight) * (end - start)


cdef void sgd_step(real* restrict parameters, const real* restrict gradients, real* restrict first,
                   real* restrict second, Py_ssize_t n, double rate, double decay, const Rule* rule) noexcept nogil:
    cdef real lr = <real> rate, wd = <real> decay
    cdef vec w
    cdef Py_ssize_t i = 0
    while i < n:
        w = vec_load(parameters + i)
        vec_store(parameters + i, w - lr * (vec_load(gradients + i) + wd * w))
        i += LANES


cdef void momentum_step(real* restrict parameters, const real* restrict gradients, real* restrict first,
                        real* restrict second, Py_ssize_t n, double rate, double decay,
                        const Rule* rule) noexcept nogil:
    cdef real lr = <real> rate, wd = <real> decay, mu = <real> rule.beta1
    cdef vec w, g, v
    cdef Py_ssize_t i = 0
    while i < n:
        w = vec_load(parameters + i)
        g = vec_load(gradients + i) + wd * w
        v = mu * vec_load(first + i) + g
        vec_store(first + i, v)
        vec_store(parameters + i, w - lr * (g + mu * v if rule.nesterov else v))
        i += LANES


def sgd_update(cnp.ndarray parameters, cnp.ndarray gradients, velocity, Segments segments, double lr, double momentum,
               bint nesterov, double weight_decay):
    cdef Rule rule
    rule.lr, rule.weight_decay, rule.beta1, rule.nesterov = lr, weight_decay, momentum, nesterov
    walk(sgd_step if velocity is None else momentum_step, parameters, gradients, velocity, None, segments, &rule, 6)


cdef void adam_step(real* restrict parameters, const real* restrict gradients, real* restrict first,
                    real* restrict second, Py_ssize_t n, double rate, double decay, const Rule* rule) noexcept nogil:
    cdef real lr = <real> (rate / rule.correction1), wd = <real> decay, eps = <real> rule.eps
    cdef real weight1 = <real> (1 - rule.beta1), beta2 = <real> rule.beta2, weight2 = <real> (1 - rule.beta2)
    cdef real scale = <real> (1 / sqrt(rule.correction2))
    cdef vec w, g, m, v
    cdef Py_ssize_t i = 0
    while i < n:
        w = vec_load(parameters + i)
        g = vec_load(gradients + i) + wd * w
        m = lerp(vec_load(first + i), g, weight1)
        v = beta2 * vec_load(second + i) + weight2 * g * g
        vec_store(first + i, m)
        vec_store(second + i, v)
        vec_store(parameters + i, w - vec_divide(lr * m, vec_sqrt(v) * scale + eps))
        i += LANES


cdef void adamw_step(real* restrict parameters, const real* restrict gradients, real* restrict first,
                     real* restrict second, Py_ssize_t n, double rate, double decay, const Rule* rule) noexcept nogil:
    cdef real lr = <real> (rate / rule.correction1), shrink = <real> (1 - rate * decay), eps = <real> rule.eps
    cdef real weight1 = <real> (1 - rule.beta1), beta2 = <real> rule.beta2, weight2 = <real> (1 - rule.beta2)
    cdef real scale = <real> (1 / sqrt(rule.correction2))
    cdef vec w, g, m, v
    cdef Py_ssize_t i = 0
    while i < n:
        w = vec_load(parameters + i) * shrink
        g = vec_load(gradients + i)
        m = lerp(vec_load(first + i), g, weight1)
        v = beta2 * vec_load(second + i) + weight2 * g * g
        vec_store(first + i, m)
        vec_store(second + i, v)
        vec_store(parameters + i, w - vec_divide(lr * m, vec_sqrt(v) * scale + eps))
        i += LANES


cdef Rule adam_rule(double t, double lr, double beta1, double beta2, double eps, double weight_decay) noexcept:
    cdef Rule rule
    rule.lr, rule.weight_decay, rule.beta1, rule.beta2, rule.eps = lr, weight_decay, beta1, beta2, eps
    rule.correction1, rule.correction2 = 1 - pow(beta1, t), 1 - pow(beta2, t)
    rule.gradient_share, rule.moment_share, rule.nesterov = 0, 0, False
    return rule


def adam_update(cnp.ndarray parameters, cnp.ndarray gradients, first_moment, second_moment, double t,
                Segments segments, double lr, double beta1, double beta2, double eps, double weight_decay):
    cdef Rule rule = adam_rule(t, lr, beta1, beta2, eps, weight_decay)
    walk(adam_step, parameters, gradients, first_moment, second_moment, segments, &rule)


def adamw_update(cnp.ndarray parameters, cnp.ndarray gradients, first_moment, second_moment, double t,
                 Segments segments, double lr, double beta1, double beta2, double eps, double weight_decay):
    cdef Rule rule = adam_rule(t, lr, beta1, beta2, eps, weight_decay)
    walk(adamw_step, parameters, gradients, first_moment, second_moment, segments, &rule)


cdef void nadam_step(real* restrict parameters, const real* restrict gradients, real* restrict first,
                     real* restrict second, Py_ssize_t n, double rate, double decay, const Rule* rule) noexcept nogil:
    cdef real of_gradient = <real> (rate * rule.gradient_share), of_moment = <real> (rate * rule.moment_share)
    cdef real wd = <real> decay, eps = <real> rule.eps, scale = <real> (1 / rule.correction2)
    cdef real weight1 = <real> (1 - rule.beta1), beta2 = <real> rule.beta2, weight2 = <real> (1 - rule.beta2)
    cdef vec w, g, m, v
    cdef Py_ssize_t i = 0
    while i < n:
        w = vec_load(parameters + i)
        g = vec_load(gradients + i) + wd * w
        m = lerp(vec_load(first + i), g, weight1)
        v = beta2 * vec_load(second + i) + weight2 * g * g
        vec_store(first + i, m)
        vec_store(second + i, v)
        vec_store(parameters + i, w - vec_divide(of_gradient * g + of_moment * m, vec_sqrt(v * scale) + eps))
        i += LANES


def nadam_update(cnp.ndarray parameters, cnp.ndarray gradients, first_moment, second_moment, cnp.ndarray mu_product,
                 double t, Segments segments, double lr, double beta1, double beta2, double eps, double momentum_decay,
                 double weight_decay):
    cdef Rule rule = adam_rule(t, lr, beta1, beta2, eps, weight_decay)
    cdef double mu = beta1 * (1 - 0.5 * pow(0.96, t * momentum_decay))
    cdef double mu_next = beta1 * (1 - 0.5 * pow(0.96, (t + 1) * momentum_decay))
    cdef double* product = <double*> cnp.PyArray_DATA(mu_product)
    product[0] *= mu
    rule.gradient_share = (1 - mu) / (1 - product[0])
    rule.moment_share = mu_next / (1 - product[0] * mu_next)
    walk(nadam_step, parameters, gradients, first_moment, second_moment, segments, &rule)


cdef void rmsprop_step(real* restrict parameters, const real* restrict gradients, real* restrict first,
                       real* restrict second, Py_ssize_t n, double rate, double decay, const Rule* rule) noexcept nogil:
    cdef real lr = <real> rate, wd = <real> decay, eps = <real> rule.eps
    cdef real alpha = <real> rule.beta2, weight = <real> (1 - rule.beta2)
    cdef vec w, g, v
    cdef Py_ssize_t i = 0
    while i < n:
        w = vec_load(parameters + i)
        g = vec_load(gradients + i) + wd * w
        v = alpha * vec_load(first + i) + weight * g * g
        vec_store(first + i, v)
        vec_store(parameters + i, w - vec_divide(lr * g, vec_sqrt(v) + eps))
        i += LANES


def rmsprop_update(cnp.ndarray parameters, cnp.ndarray gradients, square_average, Segments segments, double lr,
                   double alpha, double eps, double weight_decay):
    cdef Rule rule
    rule.lr, rule.weight_decay, rule.beta2, rule.eps = lr, weight_decay, alpha, eps
    walk(rmsprop_step, parameters, gradients, square_average, None, segments, &rule)


cdef void adagrad_step(real* restrict parameters, const real* restrict gradients, real* restrict first,
                       real* restrict second, Py_ssize_t n, double rate, double decay, const Rule* rule) noexcept nogil:
    cdef real lr = <real> rate, wd = <real> decay, eps = <real> rule.eps
    cdef vec w, g, v
    cdef Py_ssize_t i = 0
    while i < n:
        w = vec_load(parameters + i)
        g = vec_load(gradients + i) + wd * w
        v = vec_load(first + i) + g * g
        vec_store(first + i, v)
        vec_store(parameters + i, w - vec_divide(lr * g, vec_sqrt(v) + eps))
        i += LANES


def adagrad_update(cnp.ndarray parameters, cnp.ndarray gradients, square_sum, double t, Segments segments, double lr,
                   double lr_decay, double eps, double weight_decay):
    cdef Rule rule
    rule.lr, rule.weight_decay, rule.eps = lr / (1 + (t - 1) * lr_decay), weight_decay, eps
    walk(adagrad_step, parameters, gradients, square_sum, None, segments, &rule)


cdef void adadelta_step(real* restrict parameters, const real* restrict gradients, real* restrict first,
                        real* restrict second, Py_ssize_t n, double rate, double decay,
                        const Rule* rule) noexcept nogil:
    cdef real lr = <real> rate, wd = <real> decay, eps = <real> rule.eps
    cdef real rho = <real> rule.beta2, weight = <real> (1 - rule.beta2)
    cdef vec w, g, v, u, d
    cdef Py_ssize_t i = 0
    while i < n:
        w = vec_load(parameters + i)
        u = vec_load(second + i)
        g = vec_load(gradients + i) + wd * w
        v = rho * vec_load(first + i) + weight * g * g
        d = vec_sqrt(vec_divide(u + eps, v + eps)) * g      # one root where the formula has two
        vec_store(first + i, v)
        vec_store(second + i, rho * u + weight * d * d)
        vec_store(parameters + i, w - lr * d)
        i += LANES


def adadelta_update(cnp.ndarray parameters, cnp.ndarray gradients, square_average, delta_average, Segments segments,
                    double lr, double rho, double eps, double weight_decay):
    cdef Rule rule
    rule.lr, rule.weight_decay, rule.beta2, rule.eps = lr, weight_decay, rho, eps
    walk(adadelta_step, parameters, gradients, square_average, delta_average, segments, &rule)
