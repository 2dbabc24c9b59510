# The activations on one vector, and on a block of rows just computed. Needs vec.pxi before it.
#
# Derivatives are given in terms of the output y where that is exact (relu, leaky_relu, tanh, sigmoid); gelu needs its input.

# The numbers that _checks.ACTIVATIONS gives the names.
cdef enum:
    IDENTITY = 0
    RELU = 1
    LEAKY_RELU = 2
    TANH = 3
    SIGMOID = 4
    GELU = 5


cdef inline vec activated(const int code, vec z) noexcept nogil:
    cdef vec density
    if code == RELU:
        return vec_relu(z)
    if code == LEAKY_RELU:
        return vec_leaky_relu(z)
    if code == TANH:
        return vec_tanh(z)
    if code == SIGMOID:
        return vec_sigmoid(z)
    if code == GELU:
        return z * vec_normal(z, &density)
    return z


cdef inline vec times_slope(const int code, vec dy, vec saved) noexcept nogil:
    """dy f'(z); `saved` is the output f(z), or for gelu the input z."""
    cdef vec density, cumulative
    if code == RELU:
        return dy * vec_relu_slope(saved)
    if code == LEAKY_RELU:
        return dy * vec_leaky_relu_slope(saved)
    if code == TANH:
        return dy * (vec_set(1) - saved * saved)
    if code == SIGMOID:
        return dy * (saved * (vec_set(1) - saved))
    if code == GELU:
        cumulative = vec_normal(saved, &density)
        return dy * (cumulative + saved * density)
    return dy


cdef inline forced_inline_void finish_block(
    const int code, real* c, Py_ssize_t c_row, Py_ssize_t M, Py_ssize_t N, const real* bias) noexcept nogil:
    cdef Py_ssize_t i, j, full = N - N % LANES
    cdef vec z
    for i in range(M):
        j = 0
        while j < full:
            z = vec_load(c + j)
            if bias != NULL:
                z = z + vec_load(bias + j)
            vec_store(c + j, activated(code, z))
            j += LANES
        if full < N:
            z = vec_load_part(c + j, N - full)
            if bias != NULL:
                z = z + vec_load_part(bias + j, N - full)
            vec_store_part(c + j, activated(code, z), N - full)
        c += c_row


cdef void finish(int code, real* c, Py_ssize_t c_row, Py_ssize_t M, Py_ssize_t N, const real* bias) noexcept nogil:
    """C[M, N] = f(C + bias), while C still lies in the cache; bias may be NULL."""
    if code == RELU:
        finish_block(RELU, c, c_row, M, N, bias)
    elif code == LEAKY_RELU:
        finish_block(LEAKY_RELU, c, c_row, M, N, bias)
    elif code == TANH:
        finish_block(TANH, c, c_row, M, N, bias)
    elif code == SIGMOID:
        finish_block(SIGMOID, c, c_row, M, N, bias)
    elif bias != NULL:
        finish_block(IDENTITY, c, c_row, M, N, bias)
