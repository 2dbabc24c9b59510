"""Starts a process for each library and lets them take turns."""

import contextlib
import datetime
import os
import platform
import statistics
import time
from pathlib import Path

from . import processes
from .processes import TIME_LIMIT, Usage, WorkerProcess, ask_all, idle_share, worker_environment
from .report import DISTURBING, Report
from .workloads import KINDS, LIBRARIES, REFERENCE, TOGETHER, named
from .workloads import workloads as registered_workloads

TOLERANCE = 2e-5  # relative, of the first results: float32 rounding is 1e-7, a forgotten weight decay 6e-5
PATIENCE = 3  # times as many turns as asked for, at the most, until enough of them were undisturbed
KERNEL_SHARE = 0.2  # of a turn's seconds, for each of the many kernel cases
PEAK_SECONDS = 0.2

OTHERS = ("kernels", "memory", "overheads")  # what is measured besides workloads


def run(workloads=None, libraries=None, threads=2, rounds=5, seconds=0.5, output=None, progress=None):
    """Measure training updates, texts, kernels, memory or overheads.

    Parameters
    ----------
    workloads : sequence of str, optional
        Names of workloads, or of all of a kind: "training", "ragged" (a batch of unequal sequences, and a full one with
        as many tokens), "generation", "inference" (images a second in use), "fits" (of estimators), "scaling" (an
        update's time against time steps, batch and units); "kernels" for the kernel cases, "memory" for what an update
        holds, "overheads" for what Python, import and first use cost.
        Default: all workloads but scaling.
    libraries : sequence of str, optional
        Of "fast", "numpy", "numpy32", "torch", "torch_lean", "jax", "sklearn" and "course"; default: all, for scaling
        "fast". The table says where one is not installed.
    threads : int
        For every library.
    rounds : int
        Turns of each library that count; disturbed ones are repeated, up to three times as many (not for kernels).
    seconds : float
        Length of a turn; a fifth of it for a kernel case.
    output : path, optional
        Where to save the report: .json, .md, or a folder for both.
    progress : callable, optional
        Called as progress(done, total, what) before each workload, and at the end.

    Returns
    -------
    Report

    Raises
    ------
    ValueError
        A name is unknown, or a number is not positive.
    """
    known = registered_workloads()
    names = [kind for kind in KINDS if kind != "scaling"] if workloads is None else list(workloads)
    _check_names("workloads", names, [*known, *KINDS, *OTHERS])
    _check_names("libraries", libraries or (), list(LIBRARIES))
    for name, value in (("threads", threads), ("rounds", rounds), ("seconds", seconds)):
        if not value > 0:
            raise ValueError(f"{name}: expected a number above 0, got {value!r}")
    report = Report(_machine(), {"threads": threads, "rounds": rounds, "seconds": seconds})
    kernel_cases = _kernel_cases() if "kernels" in names else []
    groups = _groups(named(names))
    stages = bool(groups or kernel_cases) + len(groups) + len(kernel_cases) + sum(n in names for n in OTHERS[1:])
    tell = _Progress(progress, stages)
    turns = {"threads": threads, "rounds": rounds, "seconds": seconds}

    if groups or kernel_cases:
        tell("peaks")
        for count in sorted({threads, 1} if kernel_cases else {threads}):
            peaks = measure_peaks(count, report)
            if peaks:
                report.peaks[str(count)] = peaks
    for group in groups:
        tell(" and ".join(workload.name for workload in group) if len(group) < 3 else group[0].kind)
        report.rows(group[0].kind).extend(_workload_rows(group, libraries, turns, report))
    for row in _kernel_rows(kernel_cases, list(libraries or LIBRARIES), turns, report, tell):
        report.kernels.append(row)
    if "memory" in names:
        tell("memory")
        from .memory import measure_memory

        report.memory = measure_memory(worker_environment(threads))
    if "overheads" in names:
        tell("overheads")
        from .overheads import measure_overheads

        report.overheads = measure_overheads(worker_environment(1))
    tell.end()
    if output is not None:
        report.save(output)
    return report


def _groups(chosen):
    """Workloads that take turns, in lists: most are alone."""
    groups = {}
    for workload in chosen:
        groups.setdefault(workload.kind if workload.kind in TOGETHER else workload.name, []).append(workload)
    return list(groups.values())


def _check_names(argument, names, known):
    for name in names:
        if name not in known:
            raise ValueError(f"{argument}: expected some of {', '.join(known)}, got {name!r}")


class _Progress:
    def __init__(self, callback, total):
        self.callback, self.total, self.done = callback, total, 0

    def __call__(self, what):
        if self.callback:
            self.callback(self.done, self.total, what)
        self.done += 1

    def end(self):
        if self.callback:
            self.callback(self.total, self.total, "done")


# ---- rows ------------------------------------------------------------------------------------------------------------


def _workload_rows(group, libraries, turns, report):
    """A row for each workload of a group, all of its libraries and workloads in turn, each in a process of its own."""
    if libraries is None:
        libraries = ["fast"] if group[0].kind == "scaling" else list(LIBRARIES)
    with contextlib.ExitStack() as stack:
        results, workers, answered = {}, {}, []
        for workload in group:
            chosen = [library for library in libraries if library in workload.builders]
            reference = REFERENCE if REFERENCE in workload.builders else "fast"
            mine = {
                library: stack.enter_context(WorkerProcess(library, turns["threads"]))
                for library in dict.fromkeys([*chosen, reference])
            }
            answers = ask_all(mine, {"do": "open", "suite": "workloads", "name": workload.name})
            found = disagreements(answers, reference)
            answered += answers.values()
            for library in chosen:
                workers[workload.name, library] = mine[library]
                results[workload.name, library] = found[library]
        disturbance = _take_turns(workers, results, turns)
        _collect_versions(answered, report)
    for workload in group:
        task = workload.task
        timed = {library: result for (name, library), result in results.items() if name == workload.name}
        yield {
            "name": workload.name, "model": workload.model, "batch": task.batch, "tokens": task.tokens,
            "dtype": task.dtype, "sizes": task.sizes, "beside": workload.beside, "gflop": task.gflop(),
            "gbytes": task.gbytes(), "threads": turns["threads"], "disturbance": disturbance, "libraries": timed,
        }  # fmt: skip


def disagreements(answers, reference=REFERENCE):
    """From each library's answer to "open": {} where its results are the reference's within TOLERANCE, else what is
    wrong."""
    expected_results = answers[reference].get("results")
    results = {}
    for library, answer in answers.items():
        results[library] = _failure(answer)
        if results[library]:
            continue
        if expected_results is None:
            results[library] = {"error": "not compared: the reference failed"}
            continue
        for i, (got, expected) in enumerate(zip(answer["results"], expected_results, strict=True)):
            if not abs(got - expected) <= TOLERANCE * abs(expected):
                what = f"disagrees with the reference: result {i} is {got:.8g}, expected {expected:.8g}"
                results[library] = {"error": what}
                break
    return results


def _failure(answer):
    return {key: answer[key] for key in ("missing", "error") if key in answer}


def _kernel_cases():
    from .cases import cases

    return [case for case in cases().values() if case.reported]


def _kernel_rows(cases, libraries, turns, report, tell):
    """One process a library and number of threads for all cases; the cases one after the other."""
    for threads in sorted({case.threads or turns["threads"] for case in cases}):
        mine = [case for case in cases if (case.threads or turns["threads"]) == threads]
        short = {**turns, "seconds": KERNEL_SHARE * turns["seconds"], "patience": 1}  # there are many of them
        candidates = {library for case in mine for library in case.libraries if library in (*libraries, "blas")}
        with contextlib.ExitStack() as stack:
            workers = {library: stack.enter_context(WorkerProcess(library, threads)) for library in sorted(candidates)}
            for case in mine:
                tell(case.name)
                used = {library: worker for library, worker in workers.items() if library in case.libraries}
                answers = ask_all(used, {"do": "open", "suite": "kernels", "name": case.name}, in_turn=True)
                results = {library: _failure(answer) for library, answer in answers.items()}
                disturbance = _take_turns(used, results, short)
                _collect_versions(answers.values(), report)
                gflop, gbytes = next((a["work"] for a in answers.values() if "work" in a), (0.0, 0.0))
                yield {
                    "name": case.name, "gflop": gflop, "gbytes": gbytes, "threads": threads, "dtype": case.dtype,
                    "disturbance": disturbance, "libraries": results,
                }  # fmt: skip


def measure_peaks(threads, report):
    """Largest rates seen, or None where one is wanting.

    Of a 512 x 512 x 512 product by the packed tile and by NumPy's BLAS, and of a copy by a kernel and by NumPy.
    """
    from .cases import COPY, peak_name

    measured = [
        *((dtype, peak_name(dtype), library, 0) for dtype in ("float32", "float64") for library in ("fast", "blas")),
        *(("copy", COPY, library, 1) for library in ("fast", "numpy")),
    ]
    peaks = {}
    with contextlib.ExitStack() as stack:
        sources = ("fast", "blas", "numpy")
        workers = {library: stack.enter_context(WorkerProcess(library, threads)) for library in sources}
        for peak, case, library, unit in measured:
            answer = workers[library].ask({"do": "open", "suite": "kernels", "name": case}, TIME_LIMIT)
            _collect_versions([answer], report)
            if "work" in answer:
                for _ in range(PATIENCE):
                    time.sleep(processes.PAUSE)
                    taken = workers[library].ask({"do": "time", "seconds": PEAK_SECONDS}, TIME_LIMIT)
                    rate = answer["work"][unit] / min(taken.get("seconds", [float("inf")]))
                    peaks[peak] = max(peaks.get(peak, 0.0), rate)
    return peaks if len(peaks) == 3 and all(peaks.values()) else None


def _take_turns(workers, results, turns):
    """Time all workers whose result is still empty, and fill it in.

    A turn during which other processes took much of the CPUs is repeated, some times; the least disturbed turns count.

    Returns
    -------
    dict
        How far they were disturbed all the same: idle_cpu, the largest share of a CPU that a waiting worker took;
        others_cpu, the largest mean share of the CPUs that processes other than the workers took in a turn.
    """
    workers = {library: worker for library, worker in workers.items() if not results[library]}
    if not workers:
        return {}
    idle = idle_share(workers.values())
    turns_of = {library: [] for library in workers}  # (others' share of the CPUs, seconds of each run)
    order = list(workers)
    for _ in range(turns.get("patience", PATIENCE) * turns["rounds"]):
        for library in order:
            if results[library] or _undisturbed(turns_of[library]) >= turns["rounds"]:
                continue
            time.sleep(processes.PAUSE)
            usage = Usage(workers.values())
            answer = workers[library].ask({"do": "time", "seconds": turns["seconds"]}, TIME_LIMIT + turns["seconds"])
            if "seconds" in answer:
                turns_of[library].append((usage.of_others(), answer["seconds"]))
            else:
                results[library].update(answer)
        order = [*order[1:], order[0]]
    others = 0.0
    for library, taken in turns_of.items():
        if not results[library]:
            kept = sorted(taken, key=lambda turn: turn[0])[: turns["rounds"]]
            others = max(others, *(share for share, _ in kept))
            results[library].update(summary([times for _, times in kept]))
    return {"idle_cpu": round(idle, 3), "others_cpu": round(others, 3)}


def _undisturbed(turns):
    return sum(share <= DISTURBING["others_cpu"] for share, _ in turns)


def summary(rounds):
    """Median, quartiles, first decile and number of all runs, and the median of each round, from lists of seconds."""
    everything = sorted(1e3 * t for times in rounds for t in times)
    several = len(everything) > 1
    q1, median, q3 = statistics.quantiles(everything, n=4, method="inclusive") if several else everything * 3
    return {
        "median_ms": median, "q1_ms": q1, "q3_ms": q3, "p10_ms": everything[len(everything) // 10],
        "runs": len(everything), "rounds_ms": [1e3 * statistics.median(times) for times in rounds],
    }  # fmt: skip


# ---- the machine -----------------------------------------------------------------------------------------------------


def _machine():
    try:
        load = ", ".join(f"{value:.2f}" for value in os.getloadavg())
    except OSError:
        load = "unknown"
    return {
        "cpu": _cpu_name(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "system": f"{platform.system()} {platform.release()}",
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "load": load,
        "versions": {"python": platform.python_version()},
    }


def _cpu_name():
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _collect_versions(answers, report):
    for answer in answers:
        report.machine["versions"].update(answer.get("versions", {}))
