cdef int team_size(double work, double grain) noexcept nogil
cdef bint matrix_unit() noexcept nogil
cdef bint winograd() noexcept nogil
