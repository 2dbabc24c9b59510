# vec.h as Cython sees it. A kernel file that includes this is compiled twice: `real` is float32 in one module, float64 in the other.
# Cython needs no more than that `real` and `vec` are numbers; the C compiler knows what they are.

cimport numpy as cnp

cnp.import_array()

cdef extern from "vec.h" nogil:
    ctypedef float real
    ctypedef float vec
    ctypedef float ivec
    ctypedef void forced_inline_void    # return type of a cdef inline function that must be inlined with its constants
    enum: LANES
    vec vec_zero()
    void vec_prefetch(const real*)
    vec vec_set(real)
    vec vec_load(const real*)
    void vec_store(real*, vec)
    void vec_stream(real*, vec)
    void vec_stream_end()
    Py_ssize_t vec_misaligned(const real*)
    vec vec_load_part(const real*, Py_ssize_t)
    void vec_store_part(real*, vec, Py_ssize_t)
    vec vec_load_filled(const real*, Py_ssize_t, vec)
    vec vec_one_hot(Py_ssize_t)
    real vec_first(vec)
    real vec_sum(vec)
    vec vec_sum_all(vec)
    vec vec_max_all(vec)
    vec vec_abs(vec)
    vec vec_where(ivec, vec, vec)
    ivec vec_load_flags(const unsigned char*, Py_ssize_t)
    vec vec_flag(ivec, int)
    void vec_store_bytes(unsigned char*, ivec, Py_ssize_t)
    ivec vec_whole(int)
    vec vec_marked(ivec, int, vec)
    void vec_take_larger(vec*, ivec*, vec, int)
    vec vec_max(vec, vec)
    vec vec_min(vec, vec)
    vec vec_divide(vec, vec)
    vec vec_exp(vec)
    vec vec_log(vec)
    vec vec_log1p(vec)
    vec vec_tanh(vec)
    vec vec_sigmoid(vec)
    vec vec_normal(vec, vec*)
    vec vec_relu(vec)
    vec vec_leaky_relu(vec)
    vec vec_relu_slope(vec)
    vec vec_leaky_relu_slope(vec)
    void vec_transpose(const real*, Py_ssize_t, real*, Py_ssize_t)


cdef inline real* data(cnp.ndarray a) noexcept:
    """The first element of a checked array."""
    return <real*> cnp.PyArray_DATA(a)
