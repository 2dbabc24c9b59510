"""One run of each workload, in each library; one whose first results differ from the reference's fails.

What takes long is made smaller than in `dd2424fast bench`, batches of much arithmetic above all; of the workloads that
show how time grows with size there are the two smallest; and what an update holds, on a small batch.
"""

import dataclasses
import functools
import math

import pytest

from dd2424fast.bench.memory import measure
from dd2424fast.bench.runner import TOLERANCE
from dd2424fast.bench.worker import RESULTS
from dd2424fast.bench.workloads import LIBRARIES, REFERENCE, named, workloads

LARGE = 2  # GFLOP of a run: batches that take more are cut,
FEWEST = 50  # but not to fewer rows: the less a batch norm averages, the more float32 and float64 disagree
SCALED = sorted(named(["scaling"]), key=lambda workload: workload.task.gflop())[:2]
SMALLER = {
    "ragged": {"batch": 16},
    "generation": {"length": 100},
    "fits": {"epochs": 1},
}  # by kind, what is changed in the task


def shortened(workload):
    task = dataclasses.replace(workload.task, **SMALLER.get(workload.kind, {}))
    parts = math.ceil(task.gflop() / LARGE)
    batch = max(min(task.batch, FEWEST), task.batch // parts)
    if workload.kind == "fits":
        task = dataclasses.replace(task, rows=max(1000, task.rows // parts))
    elif parts > 1 and workload.kind == "inference":
        task = dataclasses.replace(task, net=dataclasses.replace(task.net, batch=batch))
    elif parts > 1:
        task = dataclasses.replace(task, batch=batch)
    return dataclasses.replace(workload, task=task)


WORKLOADS = {
    workload.name: shortened(workload)
    for workload in [*named(["training", "ragged", "generation", "inference", "fits"]), *SCALED]
}
PAIRS = [
    (workload, library)
    for workload in WORKLOADS.values()
    for library in LIBRARIES
    if library in workload.builders and not (workload.kind == "scaling" and library != "fast")
]


@functools.cache
def _reference(name):
    workload = WORKLOADS[name]
    library = next(library for library in (REFERENCE, "numpy", "fast") if library in workload.builders)
    return workload.first_results(workload.start(library, 1), RESULTS)


@pytest.mark.parametrize(
    ("workload", "library"), PAIRS, ids=[f"{library}-{workload.name}" for workload, library in PAIRS]
)
@pytest.mark.benchmark(min_rounds=3, max_time=0.2, warmup=False)
def test_workload(workload, library, benchmark, threads, use):
    use(library)
    expected = _reference(workload.name)
    step = workload.start(library, threads)
    assert workload.first_results(step, RESULTS) == pytest.approx(expected, rel=TOLERANCE)
    benchmark.group = workload.name
    benchmark.extra_info["threads"] = threads
    benchmark(step)
    if benchmark.stats:
        median, task = benchmark.stats["median"], workload.task
        benchmark.extra_info["GFLOP/s"] = round(task.gflop() / median, 2)
        if task.tokens:
            benchmark.extra_info["tokens/s"] = round(task.tokens / median)


def test_memory(benchmark):
    task = dataclasses.replace(workloads()["lstm_b64"].task, batch=8, time=20)
    found = benchmark.pedantic(measure, (task,), rounds=1)
    assert found["held_bytes"] > found["kept_bytes"]
    benchmark.extra_info |= found
