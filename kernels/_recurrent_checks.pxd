cdef Py_ssize_t unit_size(int gates, Py_ssize_t H) noexcept nogil
