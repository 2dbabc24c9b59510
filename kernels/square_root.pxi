# The square root of a vector. Needs vec.pxi before it.

cdef extern from *:
    """
    ALWAYS_INLINE vec vec_sqrt(vec x) {
    #if VECTOR_BYTES == 64 && DD_REAL_BITS == 64
        return (vec)_mm512_sqrt_pd((__m512d)x);
    #elif VECTOR_BYTES == 64
        return (vec)_mm512_sqrt_ps((__m512)x);
    #else
        vec y;
        for (int i = 0; i < LANES; i++) y[i] = DD_REAL_BITS == 64 ? sqrt(x[i]) : sqrtf(x[i]);
        return y;
    #endif
    }
    """
    vec vec_sqrt(vec) nogil
