"""Compares what the kernels were compiled for with the CPU they are about to run on."""

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
