# cython: language_level=3
"""The one OpenMP team: how many threads the kernels may use, and how many a piece of work deserves."""
import os

cdef extern from *:
    """
    #ifdef _OPENMP
    #include <omp.h>
    #define HAS_OPENMP 1
    #else
    #define HAS_OPENMP 0
    static int omp_get_max_threads(void) { return 1; }
    #endif
    """
    int HAS_OPENMP
    int omp_get_max_threads()

cdef int allowed = 1


cdef int team_size(double work, double grain) noexcept nogil:
    """Threads for `work` units of which one thread should get at least `grain`; never more than allowed."""
    cdef double wanted = work / grain
    if wanted >= allowed:
        return allowed
    return 1 if wanted < 2 else <int> wanted


def has_openmp():
    """Whether the kernels were compiled with OpenMP; without it they run on one thread."""
    return bool(HAS_OPENMP)


def set_num_threads(n):
    """Let every kernel use up to `n` threads (>= 1). Results do not depend on it, bit for bit.

    Raises ValueError where n is not a positive integer. Without OpenMP the number stays 1.
    """
    global allowed
    if isinstance(n, bool) or not hasattr(n, "__index__") or n < 1:
        raise ValueError(f"n: expected a number of threads of at least 1, got {n!r}")
    allowed = min(n, 1024) if HAS_OPENMP else 1


def get_num_threads():
    """The number of threads that a kernel may use at most."""
    return allowed


def _usable_cpus():
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # macOS has no affinity
        return os.cpu_count() or 1


def _after_fork():
    # The OpenMP threads do not survive a fork, and GNU's runtime waits for them for ever.
    global allowed
    allowed = 1


# OMP_NUM_THREADS is honoured by omp_get_max_threads, a container's affinity by the other.
allowed = min(omp_get_max_threads(), _usable_cpus()) if HAS_OPENMP else 1
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
