cdef int team_size(double work, double grain) noexcept nogil
