# cython: language_level=3
"""A kernel: one name for a NumPy definition and its fast twin, called through one door."""
import functools
import inspect
import time
from importlib import import_module

cimport numpy as cnp
from cpython.contextvars cimport PyContextVar_New
from cpython.ref cimport Py_DECREF, PyObject

cdef extern from "Python.h":
    int PyContextVar_Get(object var, PyObject* default, PyObject** value) except -1

cnp.import_array()

# Every thread and task starts from the process's default; a `with backend(...)` block changes its own context alone.
cdef object _chosen = PyContextVar_New("dd2424fast_backend", NULL)
cdef object _default = "fast"
cdef object _recorder = None

BACKENDS = ("fast", "numpy")


def get_backend():
    """The name of the backend in use here: "fast" or "numpy"."""
    return _backend()


def choose_backend(name):
    """Choose for this thread or task; returns the token with which `forget_backend` undoes it."""
    return _chosen.set(_known(name))


def forget_backend(token):
    _chosen.reset(token)


def set_default_backend(name):
    """Choose for the whole process, wherever no `with backend(...)` block is open."""
    global _default
    _default = _known(name)


def set_recorder(recorder):
    """Let `recorder(kernel, args, seconds)` see every call from now on; None ends it. Returns the previous one."""
    global _recorder
    previous, _recorder = _recorder, recorder
    return previous


def _known(name):
    if name not in BACKENDS:
        raise ValueError(f"backend: expected 'fast' or 'numpy', got {name!r}")
    return name


cdef inline object _backend():
    cdef PyObject* value = NULL
    PyContextVar_Get(_chosen, NULL, &value)
    if value is NULL:
        return _default
    name = <object> value
    Py_DECREF(name)
    return name


def bytes_of(*arguments):
    """Bytes of all arrays among the arguments."""
    return sum([a.nbytes for a in arguments if isinstance(a, cnp.ndarray)])


cdef class Kernel:
    """A kernel under its two implementations.

    Calling it checks the arguments once and runs the backend in use. `.numpy` and `.fast` are the two implementations by themselves,
    behind the same check.

    Parameters
    ----------
    definition : function
        The NumPy twin. Its name, signature and docstring are the kernel's.
    fast : str, function, or dict from dtype character ("f", "d") to function
        Takes the checked arguments by position. A topic's name stands for the compiled functions of the twin's name in _<topic>_float32 and
        _<topic>_float64; of two, the first argument's dtype decides.
    check : function
        Has the twin's signature; returns the checked arguments as a tuple, results allocated.
    flops, traffic : function, optional
        Floating-point operations, and bytes that must move to and from memory, from the checked arguments. Traffic is by default the size of
        all arrays among them.
    """
    cdef object definition, check_arguments, fast_float32, fast_float64
    cdef readonly object flops, traffic
    cdef dict __dict__

    def __init__(self, definition, fast, check, flops=None, traffic=bytes_of):
        self.definition = definition
        self.check_arguments = check
        if isinstance(fast, str):
            fast = {char: getattr(import_module(f"._{fast}_float{bits}", __package__), definition.__name__)
                    for char, bits in (("f", 32), ("d", 64))}
        self.fast_float32, self.fast_float64 = (fast["f"], fast["d"]) if isinstance(fast, dict) else (fast, fast)
        self.flops = flops
        self.traffic = traffic
        functools.update_wrapper(self, definition)
        self.__signature__ = inspect.signature(definition)

    def __call__(self, *args, **kwargs):
        cdef tuple checked = self.check_arguments(*args, **kwargs)
        if _recorder is not None:
            return self._recorded(checked)
        if _backend() == "fast":
            return self._fast(checked)
        return self.definition(*checked)

    cdef object _fast(self, tuple checked):
        first = checked[0]
        if isinstance(first, cnp.ndarray) and cnp.PyArray_TYPE(<cnp.ndarray> first) == cnp.NPY_FLOAT64:
            return self.fast_float64(*checked)
        return self.fast_float32(*checked)

    def _recorded(self, tuple checked):
        start = time.perf_counter()
        result = self._fast(checked) if _backend() == "fast" else self.definition(*checked)
        _recorder(self, checked, time.perf_counter() - start)
        return result

    def numpy(self, *args, **kwargs):
        """The NumPy definition, whatever the backend in use."""
        return self.definition(*self.check_arguments(*args, **kwargs))

    def fast(self, *args, **kwargs):
        """The fast implementation, whatever the backend in use."""
        return self._fast(self.check_arguments(*args, **kwargs))

    def __repr__(self):
        return f"<kernel {self.__name__}{self.__signature__}>"

    def __reduce__(self):
        return self.__name__  # pickled by name, as a function is
