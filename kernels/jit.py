"""The one policy under which Numba compiles kernels: serial, without the GIL, cached, and honest about NaN.

Numba takes 0.3 s to import and a kernel as long to compile, so both wait for a kernel's first call, and what was
compiled is kept on disk for later processes.

The cache is this library's own. Numba's looks at one source file alone, so it would go on using code compiled from an
older helper in another file; and its index, written by two processes at once, can name the wrong code. Here a folder
stands for the exact sources of all kernels, and a file in it for one kernel and one signature, written whole or not at
all. No setting of Numba's is touched, so other libraries in the process compile as they always did.
"""

import functools
import hashlib
import os
import pickle
import sys
import tempfile
import warnings
from pathlib import Path

__all__ = ["kernel_jit"]

# nnan and ninf are missing on purpose: they let the compiler drop tests for NaN and infinity.
FASTMATH = ("contract", "reassoc", "nsz", "arcp", "afn")

_warned = False


class kernel_jit:
    """Compile a function with Numba when it is first called.

    Other kernels may call it too, compiled ones included. Under NUMBA_DISABLE_JIT=1 it runs as Python.

    Parameters
    ----------
    function : function
        Takes arrays and numbers by position; must not start threads.
    identity : function returning str or None, optional
        Asked at each compilation for a text that stands for what the function does beyond the sources of this package,
        such as a user's function that it calls; None where nothing can stand for it: the compiled code is then not
        kept. Nor is that of a lambda, a local function, or a function from outside this package, that comes without an
        identity.

    Notes
    -----
    Division by zero gives inf or NaN, as in NumPy. Sums may be reordered; NaN and infinity are kept. A call
    costs about 0.15 us more than one of Numba's own. Safe to call from several threads.
    """

    def __init__(self, function, identity=None):
        functools.update_wrapper(self, function)
        self.py_func = function
        if identity is None and function.__module__.startswith(__package__ + ".") and "<" not in function.__qualname__:
            identity = str  # the name alone
        self._identity = identity
        self._run = self._compile_and_run

    def __call__(self, *args):
        return self._run(*args)

    def _compile_and_run(self, *args):
        self._run = self.dispatcher
        return self._run(*args)

    @functools.cached_property
    def dispatcher(self):
        """Numba's dispatcher, or the function itself where Numba is told not to compile."""
        import numba

        # error_model: the check for division by zero would keep loops from vectorising.
        dispatcher = numba.njit(fastmath=set(FASTMATH), error_model="numpy", nogil=True)(self.py_func)
        if self._identity is not None and dispatcher is not self.py_func:
            dispatcher._cache = _Cache(self.py_func, self._identity)
        return dispatcher

    @property
    def _numba_type_(self):  # by this attribute Numba knows a function that compiled code can call
        return self.dispatcher._numba_type_


class _Cache:
    """Compiled code on disk, in the place of Numba's own cache of a dispatcher."""

    def __init__(self, function, identity):
        self.cache_path = str(cache_folder())
        self._function = f"{function.__module__}.{function.__qualname__}"
        self._identity = identity

    def _path(self, signature, codegen):
        import numba

        identity = self._identity()
        if identity is None:
            return None
        # codegen.magic_tuple() names the CPU and its features: home folders are shared between machines.
        machine = codegen.magic_tuple(), sys.version_info[:2], numba.config.BOUNDSCHECK
        key = (self._function, identity, signature, machine)
        name = self._function.rpartition(".")[2]
        return Path(self.cache_path, f"{name}-{hashlib.sha256(repr(key).encode()).hexdigest()[:24]}.pickle")

    def load_overload(self, signature, target_context):
        from numba.core.compiler import CompileResult

        path = self._path(signature, target_context.codegen())
        if path is None:
            return None
        target_context.refresh()
        try:
            payload = pickle.loads(path.read_bytes())
        except (OSError, EOFError, pickle.UnpicklingError, ImportError, AttributeError):
            return None  # not there yet, cut short by a crash, or from a module that is no longer there: compile
        return CompileResult._rebuild(target_context, *payload)

    def save_overload(self, signature, compiled):
        from numba.core.serialize import dumps

        path = self._path(signature, compiled.library.codegen)
        if path is None or compiled.library.has_dynamic_globals:  # these hold addresses of this process
            return
        payload = dumps(compiled._reduce())
        try:
            _write(path, payload)
        except OSError as error:
            _warn_once(f"compiled kernels cannot be kept ({error}); set NUMBA_CACHE_DIR to a writable folder")

    def enable(self):
        pass

    def disable(self):
        pass

    def flush(self):
        pass


def _write(path, payload):
    """Write a file whole or not at all, whatever other processes write at the same moment."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(payload)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


def _warn_once(message):
    global _warned
    if not _warned:
        _warned = True
        warnings.warn(message, RuntimeWarning, stacklevel=2)


def cache_folder():
    """Where compiled kernels are kept: below NUMBA_CACHE_DIR or the user's cache folder, apart for these very sources.

    An edit of any kernel makes a new folder. Old ones are left; they may be deleted at any time.
    """
    import numba
    from numba.misc.appdirs import AppDirs

    chosen = numba.config.CACHE_DIR
    parent = Path(chosen, "dd2424fast") if chosen else Path(AppDirs("dd2424fast", False).user_cache_dir)
    return parent / _sources_digest(numba.__version__)


@functools.cache
def _sources_digest(version):
    digest = hashlib.sha256(version.encode())
    for source in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(source.name.encode() + b"\0" + source.read_bytes() + b"\0")
    return digest.hexdigest()[:16]
