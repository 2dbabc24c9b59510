"""The token loop of a recurrent language model; compiled for float32 and float64. Arguments come checked
(kernels/generation.py).

One sequence meets every weight once a token, so the weights are read where they lie; threads share out the sequences.
The most probable tokens come from a heap: a choice among k of V tokens costs V + k log V, not a sort.
"""
from cython.parallel cimport prange
from libc.math cimport INFINITY
from libc.stdlib cimport free, malloc

from dd2424fast.kernels._team cimport team_size

include "vec.pxi"
include "gates.pxi"

cdef enum:
    MOST_LAYERS = 64
    GRAIN = 2000000     # floating-point operations that are worth a thread

ctypedef struct Model:
    int gates, count        # gates of a cell, layers
    Py_ssize_t H, V, N, T
    const real* W[MOST_LAYERS]
    const real* U[MOST_LAYERS]
    real* bias[MOST_LAYERS]
    Norm norm[MOST_LAYERS]
    const real* gain_W[MOST_LAYERS]
    double zoneout[2]
    const real* W_out
    const real* b_out       # or NULL
    real* h                 # (count, N, H)
    real* c                 # or NULL
    const int64_t* tokens
    const double* draws
    double temperature, top_p, penalty
    Py_ssize_t top_k
    unsigned char* seen     # or NULL
    const unsigned char* banned     # or NULL
    int64_t stop
    int64_t* out


# ---- the choice of a token -------------------------------------------------------------------------------------------

cdef inline bint before(const double* p, Py_ssize_t i, Py_ssize_t j) noexcept nogil:
    """Whether token i stands before token j: more probable, or equally and of a lower number."""
    return p[i] > p[j] or (p[i] == p[j] and i < j)


cdef void sift(Py_ssize_t* heap, Py_ssize_t n, Py_ssize_t i, const double* p) noexcept nogil:
    """Let heap[i] sink to its place."""
    cdef Py_ssize_t child, moved = heap[i]
    while 2 * i + 1 < n:
        child = 2 * i + 1
        if child + 1 < n and before(p, heap[child + 1], heap[child]):
            child += 1
        if not before(p, heap[child], moved):
            break
        heap[i] = heap[child]
        i = child
    heap[i] = moved


cdef Py_ssize_t most_probable(Py_ssize_t* heap, Py_ssize_t V, const double* p, Py_ssize_t k, double share) noexcept nogil:
    """Put the tokens to choose from at the end of `heap`, the most probable one last; returns how many they are."""
    cdef Py_ssize_t i, n, kept = 0, most = k if k > 0 else V
    cdef double total = 0, reached = 0
    for i in range(V):
        heap[i] = i
        total += p[i]
    for i in range(V // 2 - 1, -1, -1):
        sift(heap, V, i, p)
    n = V
    while kept < most and (k > 0 or reached < share * total or kept == 0):
        i = heap[0]
        n -= 1
        heap[0] = heap[n]
        heap[n] = i
        sift(heap, n, 0, p)
        reached += p[i]
        kept += 1
    if k > 0 and share < 1:     # of the k tokens' probability
        total, reached, most, kept = reached, 0, kept, 0
        while kept < most and (reached < share * total or kept == 0):
            kept += 1
            reached += p[heap[V - kept]]
    return kept


cdef Py_ssize_t choose(const Model* m, real* z, double* p, Py_ssize_t* heap, double draw) noexcept nogil:
    """A token from logits z, which are overwritten; -1 where one is not a number, or the largest is infinite."""
    cdef Py_ssize_t i, V = m.V, best = 0, kept, last = 0
    cdef real highest
    cdef double total = 0, reached = 0
    for i in range(V):
        if z[i] != z[i]:
            return -1
        if z[i] > z[best]:
            best = i
    highest = z[best]
    if not -INFINITY < highest < INFINITY:
        return -1
    if m.temperature == 0:
        return best
    for i in range(V):      # in double: a tiny temperature overflows nothing but what has no probability
        z[i] = <real> (<double> (z[i] - highest) / m.temperature)
    i = 0
    while i < V:
        vec_store_part(z + i, vec_exp(vec_load_part(z + i, min(V - i, <Py_ssize_t> LANES))), min(V - i, <Py_ssize_t> LANES))
        i += LANES
    for i in range(V):
        p[i] = z[i]
    if m.top_k > 0 or m.top_p < 1:
        kept = most_probable(heap, V, p, m.top_k, m.top_p)
        for i in range(kept):
            total += p[heap[V - 1 - i]]
        for i in range(kept):
            best = heap[V - 1 - i]
            if p[best] > 0:
                reached += p[best]
                last = best
                if reached > draw * total:
                    return best
        return last
    for i in range(V):
        total += p[i]
    for i in range(V):
        if p[i] > 0:
            reached += p[i]
            last = i
            if reached > draw * total:
                return i
    return last


cdef void weigh(const Model* m, real* z, Py_ssize_t n) noexcept nogil:
    """Bias, repetition penalty and ban, on the logits of sequence n."""
    cdef Py_ssize_t v, V = m.V
    cdef real penalty = <real> m.penalty
    if m.b_out != NULL:
        for v in range(V):
            z[v] = z[v] + m.b_out[v]
    if m.penalty != 1:
        for v in range(V):
            if m.seen[n * V + v]:
                z[v] = z[v] / penalty if z[v] > 0 else z[v] * penalty
    if m.banned != NULL:
        for v in range(V):
            if m.banned[v]:
                z[v] = -INFINITY


# ---- the loop --------------------------------------------------------------------------------------------------------

cdef void normalise(real* x, const real* gain, Py_ssize_t n, double eps) noexcept nogil:
    """x = (x - mean) / sqrt(variance + eps) * gain"""
    cdef real[2] statistics
    cdef Py_ssize_t i = 0, size
    row_statistics(x, n, eps, statistics)
    while i < n:
        size = min(<Py_ssize_t> LANES, n - i)
        store_some(x + i, (load_some(x + i, size) - vec_set(statistics[0])) * vec_set(statistics[1]) * load_some(gain + i, size), size)
        i += LANES


cdef bint sequence(const Model* m, Py_ssize_t n, char* memory) noexcept nogil:
    """All tokens of sequence n; false where a logit is not a number. `memory`: see `memory_size`."""
    cdef Py_ssize_t H = m.H, G = m.gates, V = m.V, t, token = m.tokens[n]
    cdef int64_t one = 1, row = token
    cdef int i
    cdef Layer s
    cdef Step at
    cdef real* z = <real*> memory
    cdef real* below = z + V
    cdef real* a = below + H
    cdef real* gate = a + G * H
    cdef real* sums
    cdef real[4] statistics
    cdef double* p = <double*> (memory + real_bytes(m))
    cdef Py_ssize_t* heap = <Py_ssize_t*> (p + V)
    memset(&s, 0, sizeof(Layer))
    s.T, s.B, s.H, s.gates, s.counts = 1, 1, H, <int> G, &one
    s.h, s.gate = below, gate
    s.previous = gate + G * H
    s.c = s.previous + H
    s.panels = s.c + H
    sums = s.panels + G * H
    s.zoneout, s.zoneout_cell = <real> m.zoneout[0], <real> m.zoneout[1]
    s.noisy = m.zoneout[0] > 0 or m.zoneout[1] > 0
    at.row, at.next, at.going, at.K = 0, 1, 0, H
    for t in range(m.T):
        for i in range(m.count):
            s.ids = &row if i == 0 else NULL
            s.a = m.W[i] if i == 0 else a
            if i > 0:
                row_times(H, G * H, below, m.W[i], a)
                if m.norm[i].gain != NULL:
                    normalise(a, m.gain_W[i], 4 * H, m.norm[i].eps)
            s.norm = m.norm[i]
            s.norm.sums, s.norm.statistics = sums, statistics
            s.U, s.bias = m.U[i], m.bias[i]
            s.h_last = m.h + (i * m.N + n) * H
            memcpy(s.previous, s.h_last, H * sizeof(real))
            at.c_before = NULL
            if G == 4:
                s.c_last = m.c + (i * m.N + n) * H
                at.c_before = s.c_last
            single_forward(&s, &at)
            if s.norm.gain != NULL:
                norm_end(&s, &at, 0)
        row_times(H, V, below, m.W_out, z)
        weigh(m, z, n)
        token = choose(m, z, p, heap, m.draws[n * m.T + t])
        if token < 0:
            return False
        row = token
        m.out[n * m.T + t] = token
        if m.seen != NULL:
            m.seen[n * V + token] = 1
        if token == m.stop:
            for i in range(<int> (m.T - t - 1)):
                m.out[n * m.T + t + 1 + i] = m.stop
            return True
    return True


cdef inline Py_ssize_t real_bytes(const Model* m) noexcept nogil:
    """Of logits, the state below, input part, gates, previous, c and twice the sums; a multiple of 64."""
    return (<Py_ssize_t> sizeof(real) * (m.V + 3 * m.H + 4 * m.gates * m.H) + 63) // 64 * 64


cdef inline Py_ssize_t memory_size(const Model* m) noexcept nogil:
    """Bytes that one thread needs: besides, probabilities and heap."""
    return real_bytes(m) + (m.V * <Py_ssize_t> (sizeof(double) + sizeof(Py_ssize_t)) + 63) // 64 * 64


cdef double operations(const Model* m) noexcept nogil:
    return 2.0 * m.N * m.T * m.H * (m.V + (2 * m.count - 1) * m.gates * m.H)


def generate_tokens(cell, layers, cnp.ndarray W_out, b_out, states, cnp.ndarray tokens, cnp.ndarray draws, temperature, top_k,
                    top_p, repetition_penalty, seen, banned, stop, cnp.ndarray out, zoneout, double eps):
    cdef Model m
    cdef Layer s
    cdef Py_ssize_t i, size
    cdef int part, parts, bad = 0
    cdef char* memory
    cdef real* biases
    if len(layers) > MOST_LAYERS:
        raise ValueError(f"layers: expected at most {MOST_LAYERS}, got {len(layers)}")
    m.gates, m.count = {"rnn": 1, "gru": 3, "lstm": 4}[cell], len(layers)
    m.H, m.V = cnp.PyArray_DIM(W_out, 0), cnp.PyArray_DIM(W_out, 1)
    m.N, m.T = cnp.PyArray_DIM(draws, 0), cnp.PyArray_DIM(draws, 1)
    m.W_out, m.b_out = data(W_out), NULL if b_out is None else data(b_out)
    m.h, m.c = data(states[0]), data(states[1]) if len(states) > 1 else NULL
    m.tokens, m.draws = <const int64_t*> cnp.PyArray_DATA(tokens), <const double*> cnp.PyArray_DATA(draws)
    m.temperature, m.top_k, m.top_p, m.penalty, m.stop = temperature, top_k, top_p, repetition_penalty, stop
    m.seen = NULL if seen is None else <unsigned char*> cnp.PyArray_DATA(<cnp.ndarray> seen)
    m.banned = NULL if banned is None else <const unsigned char*> cnp.PyArray_DATA(<cnp.ndarray> banned)
    m.out = <int64_t*> cnp.PyArray_DATA(out)
    m.zoneout[0], m.zoneout[1] = zoneout
    parts = <int> min(<Py_ssize_t> team_size(operations(&m), GRAIN), max(m.N, <Py_ssize_t> 1))
    size = memory_size(&m)
    memory = <char*> malloc(parts * size + m.count * (m.gates + 1) * m.H * sizeof(real))
    if memory == NULL:
        raise MemoryError
    biases = <real*> (memory + parts * size)
    for i in range(m.count):
        W, U, b, bU = layers[i][:4]
        memset(&m.norm[i], 0, sizeof(Norm))
        if len(layers[i]) > 4:
            gain_W, gain, gain_c, shift_c = layers[i][4]
            m.gain_W[i], m.norm[i].eps = data(gain_W), eps
            m.norm[i].gain, m.norm[i].gain_c, m.norm[i].shift_c = data(gain), data(gain_c), data(shift_c)
        m.W[i], m.U[i], m.bias[i] = data(W), data(U), biases + i * (m.gates + 1) * m.H
        s.gates, s.H, s.bias = m.gates, m.H, m.bias[i]
        add_biases(&s, NULL if b is None else data(b), NULL if bU is None else data(bU))
    with nogil:
        if parts == 1:
            bad = share(&m, 0, 1, memory)
        else:
            for part in prange(parts, num_threads=parts, schedule="static", chunksize=1):
                bad |= share(&m, part, parts, memory + part * size)
    free(memory)
    if bad:
        raise FloatingPointError("generate_tokens: the logits are not finite: nor are the model's weights or states")
    return out


cdef int share(const Model* m, int part, int parts, char* memory) noexcept nogil:
    """1 where a sequence of this share met a logit that is not a number."""
    cdef Py_ssize_t n
    cdef int bad = 0
    for n in range(m.N * part // parts, m.N * (part + 1) // parts):
        bad |= not sequence(m, n, memory)
    return bad
