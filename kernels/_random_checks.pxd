from libc.stdint cimport uint64_t

cdef uint64_t mixed(uint64_t z) noexcept nogil
