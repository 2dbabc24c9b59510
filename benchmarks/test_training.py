"""One training update of each workload, in each library; one whose first losses differ from the reference's fails."""

import functools

import pytest

from dd2424fast.bench.runner import TOLERANCE
from dd2424fast.bench.worker import LOSSES
from dd2424fast.bench.workloads import LIBRARIES, REFERENCE, workloads

LARGE = 50  # GFLOP: the scripts take seconds for one update, and are left to `dd2424fast bench`
SCRIPTS = ("numpy32", REFERENCE)
PAIRS = [
    (workload, library)
    for workload in workloads().values()
    for library in LIBRARIES
    if library in workload.builders and not (workload.gflop > LARGE and library in SCRIPTS)
]


@functools.cache
def _reference(workload):
    step = workloads()[workload].builders[REFERENCE](1)
    return [step() for _ in range(LOSSES)]


@pytest.mark.parametrize(
    ("workload", "library"), PAIRS, ids=[f"{library}-{workload.name}" for workload, library in PAIRS]
)
@pytest.mark.benchmark(min_rounds=3, max_time=0.5, warmup=False)
def test_training_update(workload, library, benchmark, threads, use):
    use(library)
    step = workload.builders[library](threads)
    assert [step() for _ in range(LOSSES)] == pytest.approx(_reference(workload.name), rel=TOLERANCE)
    benchmark.group = workload.name
    benchmark.extra_info["threads"] = threads
    benchmark(step)
    if benchmark.stats:
        benchmark.extra_info["GFLOP/s"] = round(workload.gflop / benchmark.stats["median"], 2)
