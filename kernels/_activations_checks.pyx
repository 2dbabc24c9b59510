# cython: language_level=3
"""The checks of the activation kernels, compiled so that they cost nanoseconds."""
cimport numpy as cnp

from dd2424fast.kernels._checks cimport apart
from dd2424fast.kernels._checks import ACTIVATIONS, array, check_activation

cnp.import_array()

cdef dict KNOWN = ACTIVATIONS


def check_activation_forward(z, activation, out=None):
    cdef cnp.ndarray inputs = _real("z", z, None)
    if type(activation) is not str or activation not in KNOWN:
        check_activation(activation)
    return inputs, activation, _result(out, inputs, "z", z, None, None)


def check_activation_backward(dy, saved, activation, out=None):
    cdef cnp.ndarray gradient = _real("dy", dy, None)
    cdef cnp.ndarray kept = _real("saved", saved, gradient)
    if type(activation) is not str or activation not in KNOWN:
        check_activation(activation)
    return gradient, kept, activation, _result(out, gradient, "dy", dy, "saved", kept)


def check_residual_add_forward(x, skip, activation="identity", out=None):
    cdef cnp.ndarray a = _real("x", x, None)
    cdef cnp.ndarray b = _real("skip", skip, a)
    if type(activation) is not str or activation not in KNOWN or activation == "gelu":
        check_activation(activation, True)
    if out is not None and out is skip:
        return a, b, activation, _result(out, b, "skip", skip, "x", a)
    return a, b, activation, _result(out, a, "x", x, "skip", b)


cdef inline bint _alike(cnp.ndarray a, cnp.ndarray b) noexcept:
    """Of one dtype and shape."""
    cdef int i
    if cnp.PyArray_TYPE(a) != cnp.PyArray_TYPE(b) or cnp.PyArray_NDIM(a) != cnp.PyArray_NDIM(b):
        return False
    for i in range(cnp.PyArray_NDIM(a)):
        if cnp.PyArray_DIM(a, i) != cnp.PyArray_DIM(b, i):
            return False
    return True


cdef cnp.ndarray _real(str name, x, cnp.ndarray like):
    """`x` ready to be read; of the shape and dtype of `like` where that is given."""
    cdef cnp.ndarray a
    cdef int t
    if isinstance(x, cnp.ndarray):
        a = x
        t = cnp.PyArray_TYPE(a)
        if (t == cnp.NPY_FLOAT32 or t == cnp.NPY_FLOAT64) and cnp.PyArray_ISCARRAY_RO(a) and (like is None or _alike(a, like)):
            return a
    if like is not None:
        return array(name, x, (<object> like).shape, like.dtype)
    return array(name, x, x.shape if isinstance(x, cnp.ndarray) else ())


cdef cnp.ndarray _result(out, cnp.ndarray x, str name, given, str other_name, other):
    """`out`, or a new array like x. It may be the very array `given` for x, but overlap neither x nor `other` otherwise."""
    cdef cnp.ndarray a
    if out is None:
        return cnp.PyArray_EMPTY(cnp.PyArray_NDIM(x), cnp.PyArray_DIMS(x), cnp.PyArray_TYPE(x), 0)
    if not (isinstance(out, cnp.ndarray) and _alike(out, x) and cnp.PyArray_ISCARRAY(<cnp.ndarray> out)):
        array("out", out, (<object> x).shape, x.dtype, True)
    a = out
    if out is not given:
        apart("out", a, name, x)
    if other is not None and other is not x:
        apart("out", a, other_name, other)
    return a
