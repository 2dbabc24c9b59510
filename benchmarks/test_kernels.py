"""Every kernel of the table in dd2424fast/bench/cases.py: fast, its NumPy twin, and the peers that have the same
computation.

There is one test a kernel, so that an id reads `test_linear_forward[fast-float32-100x3072x50]`; all libraries on the
same arguments form a group. A library whose first result differs from the twin's fails before it is timed. What lies
beyond the cache is left to `dd2424fast bench kernels`.
"""

import math

import pytest

from dd2424fast.bench.cases import cases

CASES = [case for case in cases().values() if math.prod(case.size) < 1 << 20 or case.kernel.startswith("matmul")]


def _benchmark_of(kernel):
    pairs = [(case, library) for case in CASES if case.kernel == kernel for library in case.libraries]
    ids = [f"{library}-{case.name.removeprefix(f'{kernel}-')}" for case, library in pairs]

    @pytest.mark.parametrize(("case", "library"), pairs, ids=ids)
    @pytest.mark.benchmark(min_rounds=3, max_time=0.1, warmup=False)  # `start` has run it once
    def test(case, library, benchmark, threads, use):
        use(library)
        run = case.start(library, threads)
        benchmark.group, benchmark.name = case.name, benchmark.name.removeprefix("test_")
        benchmark.extra_info["threads"] = threads
        benchmark(run)
        if benchmark.stats:  # None under --benchmark-disable
            gflop, gbytes = case.work()
            median = benchmark.stats["median"]
            benchmark.extra_info |= {"GFLOP/s": round(gflop / median, 2), "GB/s": round(gbytes / median, 2)}

    return test


for _kernel in {case.kernel: None for case in CASES}:
    globals()[f"test_{_kernel}"] = _benchmark_of(_kernel)
