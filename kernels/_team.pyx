# cython: language_level=3
"""What of the CPU the kernels may use: the one OpenMP team and the matrix unit."""
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

    static _Thread_local int limit = 0;  /* of the calling thread; 0 is none */
    static int get_limit(void) { return limit; }
    static void set_limit(int n) { limit = n; }

    /* Linux gives a process the matrix unit's registers on request (ARCH_REQ_XCOMP_PERM, XTILEDATA); threads and forks inherit them. */
    #if defined(__linux__) && defined(__AMX_BF16__) && defined(__AMX_TILE__) && defined(__AVX512F__)
    #include <sys/syscall.h>
    #include <unistd.h>
    static int request_matrix_unit(void) { return syscall(SYS_arch_prctl, 0x1023, 18) == 0; }
    #else
    static int request_matrix_unit(void) { return 0; }
    #endif
    """
    int HAS_OPENMP
    int omp_get_max_threads()
    bint request_matrix_unit()
    int get_limit() nogil
    void set_limit(int) nogil

cdef int allowed = 1
cdef bint unit_present = request_matrix_unit()
cdef bint unit_chosen = unit_present
cdef bint winograd_chosen = True


cdef int team_size(double work, double grain) noexcept nogil:
    """Threads for `work` units of which one thread should get at least `grain`; never more than allowed."""
    cdef double wanted = work / grain
    cdef int most = get_limit()
    if most == 0 or most > allowed:
        most = allowed
    if wanted >= most:
        return most
    return 1 if wanted < 2 else <int> wanted


cdef bint matrix_unit() noexcept nogil:
    """Whether float32 products may go to the matrix unit."""
    return unit_chosen


cdef bint winograd() noexcept nogil:
    """Whether convolutions may be formed by Winograd's algorithm."""
    return winograd_chosen


def set_winograd(on):
    """Let 3 x 3 convolutions be formed by Winograd's algorithm where that is faster, or multiply every pixel with every weight.

    The algorithm needs a quarter of the multiplications; its rounding error is at most 10 times as large (docs/kernels/convolution.md).
    It is on from the start, unless the environment's DD2424FAST_WINOGRAD is 0, no, off or false.

    Raises TypeError where `on` is no bool.
    """
    global winograd_chosen
    if not isinstance(on, bool):
        raise TypeError(f"on: expected True or False, got {on!r}")
    winograd_chosen = on


def get_winograd():
    """Whether convolutions may be formed by Winograd's algorithm."""
    return winograd_chosen


def has_matrix_unit():
    """Whether the kernels were compiled for a matrix unit (Intel AMX) that this process may use."""
    return unit_present


def set_matrix_unit(on):
    """Let float32 products go to the CPU's matrix unit where that is faster, or keep them on the vectors.

    The unit (Intel AMX) multiplies numbers in three bfloat16 parts, about twice as fast as the vectors and no less accurate
    (docs/kernels/linear.md); results differ in their last bits. It is on from the start where the build, the CPU and the system have one,
    unless the environment's DD2424FAST_MATRIX_UNIT is 0, no, off or false.

    Raises ValueError where there is none to switch on, TypeError where `on` is no bool.
    """
    global unit_chosen
    if not isinstance(on, bool):
        raise TypeError(f"on: expected True or False, got {on!r}")
    if on and not unit_present:
        raise ValueError("on: expected False, got True: this build, CPU or system has no matrix unit for float32")
    unit_chosen = on


def get_matrix_unit():
    """Whether float32 products may go to the matrix unit."""
    return unit_chosen


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


def limit_threads(n):
    """Let kernels that the calling thread runs use up to `n` threads, and no more than any may; 0 lifts the limit. Returns the limit before.

    Threads that each train a model of their own share the CPU without waiting for each other.
    """
    before = get_limit()
    set_limit(n)
    return before


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
_OFF = ("0", "no", "off", "false")
unit_chosen = unit_present and os.environ.get("DD2424FAST_MATRIX_UNIT", "").lower() not in _OFF
winograd_chosen = os.environ.get("DD2424FAST_WINOGRAD", "").lower() not in _OFF
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
