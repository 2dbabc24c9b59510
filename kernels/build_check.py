"""What must be in order before the first compiled module is loaded."""

import contextlib
import os

from numpy._core._multiarray_umath import __cpu_features__


def check_build(required, present=__cpu_features__):
    """Raise ImportError where the CPU lacks an instruction set that the kernels were compiled for.

    Running them all the same would end the process with an illegal instruction.

    Parameters
    ----------
    required : sequence of str
        In NumPy's spelling; a name that this NumPy does not know counts as present.
    present : dict from str to bool
    """
    missing = [name for name in required if not present.get(name, True)]
    if missing:
        raise ImportError(
            f"dd2424fast was compiled for a CPU with {', '.join(missing)}, which this one lacks. "
            "Build it on this machine (pip install --force-reinstall --no-binary dd2424fast dd2424fast), "
            "or for a portable instruction set (DD2424FAST_MARCH=x86-64-v3)."
        )


@contextlib.contextmanager
def short_spins():
    """Let GNU's OpenMP, if it is loaded inside the block, spin for about 1 ms at a barrier before it sleeps, not for
    about 15.

    Where another process has the other core, every parallel kernel would wait for the whole of that: an update of 0.4
    ms took 33 on average beside two busy processes, 2 to 5 with short spins. Much shorter ones end in the gaps between
    the kernels of one update, and waking a sleeping thread doubles its time. What the user has set is left alone, and
    so is the environment of child processes.
    """
    chosen = "GOMP_SPINCOUNT" in os.environ or "OMP_WAIT_POLICY" in os.environ
    if not chosen:
        os.environ["GOMP_SPINCOUNT"] = "20000"
    try:
        yield
    finally:
        if not chosen:
            del os.environ["GOMP_SPINCOUNT"]
