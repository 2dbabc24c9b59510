"""All benchmarks run in this one process, on as many threads as DD2424FAST_BENCH_THREADS says (1).

That keeps them short and comparable from commit to commit. Libraries that share a process disturb each other: for a
claim about speed use `dd2424fast bench`, which gives each library a process of its own.
"""

import importlib.util
import os
import sys

import pytest
import threadpoolctl

THREADS = int(os.environ.get("DD2424FAST_BENCH_THREADS", "1"))

# Read by each library as it is loaded, so they stand before the first import of NumPy.
os.environ.update(dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NPROC"), str(THREADS)))
os.environ.pop("OPENBLAS_CORETYPE", None)  # slows NumPy's BLAS where it names another CPU
os.environ["JAX_PLATFORMS"] = "cpu"

from dd2424fast.bench.worker import restrict_to  # noqa: E402


@pytest.fixture(autouse=True, scope="session")
def _cpus():
    """As many CPUs as threads: JAX has no other switch."""
    before = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else None
    restrict_to(THREADS)
    with threadpoolctl.threadpool_limits(
        THREADS
    ):  # a plugin of pytest may have loaded NumPy before the variables were set
        yield
    if before:
        os.sched_setaffinity(0, before)


@pytest.fixture
def threads():
    return THREADS


@pytest.fixture
def use():
    """`use(library)` skips where the library is not installed, and leaves the backend as it was."""
    import dd2424fast as dd

    def check(library):
        module = library.partition("_")[0]  # torch_lean is another form of torch
        if module in ("torch", "jax") and importlib.util.find_spec(module) is None:
            pytest.skip(f"{module} is not installed")
        if module == "torch":
            import torch

            torch.set_num_threads(THREADS)

    yield check
    dd.set_backend("fast")
    if "torch" in sys.modules:
        sys.modules["torch"].set_grad_enabled(True)  # kernel cases switch it off
