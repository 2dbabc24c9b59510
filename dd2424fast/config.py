"""Which implementation runs, on how many threads, and what was built."""

import contextlib
import platform

from .kernels._dispatch import choose_backend, forget_backend, get_backend, set_default_backend
from .kernels._team import (
    get_matrix_unit,
    get_num_threads,
    get_winograd,
    has_matrix_unit,
    has_openmp,
    set_matrix_unit,
    set_num_threads,
    set_winograd,
)

__all__ = [
    "backend",
    "get_backend",
    "get_matrix_unit",
    "get_num_threads",
    "get_winograd",
    "set_backend",
    "set_matrix_unit",
    "set_num_threads",
    "set_winograd",
    "show_config",
]


@contextlib.contextmanager
def backend(name):
    """Run every kernel called inside the block, in this thread, on "fast" or on "numpy", the definition.

    Raises ValueError for another name.
    """
    token = choose_backend(name)
    try:
        yield
    finally:
        forget_backend(token)


def set_backend(name):
    """Choose "fast" or "numpy" for the whole process, wherever no `with backend(...)` is in force."""
    set_default_backend(name)


def show_config():
    """Return what was built, for which CPU, and what is in use: a dict that prints as a table.

    Keys: version, python, numpy, compiler, instruction_set (as asked for), vector_bits, matrix_unit, winograd, openmp, threads,
    backend, flags, machine.
    """
    from importlib.metadata import version

    import numpy

    from .kernels import _build, _linear_float32

    return Configuration(
        version=version("dd2424fast"),
        python=platform.python_version(),
        numpy=numpy.__version__,
        machine=f"{platform.machine()}, {platform.system()}",
        compiler=_build.compiler,
        flags=_build.flags,
        instruction_set=_build.march,
        vector_bits=32 * _linear_float32.lanes(),
        matrix_unit=_matrix_unit(),
        winograd="on" if get_winograd() else "off",
        openmp="yes" if has_openmp() else "no: the kernels run on one thread",
        threads=get_num_threads(),
        backend=get_backend(),
    )


def _matrix_unit():
    if not has_matrix_unit():
        return "none: the vectors multiply"
    return "multiplies float32 (in bfloat16 parts)" if get_matrix_unit() else "switched off: the vectors multiply"


class Configuration(dict):
    """A dict that prints as a table."""

    def __repr__(self):
        return "\n".join(f"{name:<16} {value}" for name, value in self.items())
