cimport numpy as cnp

cdef cnp.ndarray real_matrix(str name, object x, Py_ssize_t rows, Py_ssize_t columns, int typenum)
cdef cnp.ndarray real_vector(str name, object x, Py_ssize_t size, int typenum)
cdef cnp.ndarray result_matrix(str name, object out, Py_ssize_t rows, Py_ssize_t columns, int typenum)
cdef cnp.ndarray result_vector(str name, object out, Py_ssize_t size, int typenum)
cdef void apart(str name, cnp.ndarray out, str other_name, object other) except *
cdef void all_apart(tuple names, tuple arrays, int results) except *
