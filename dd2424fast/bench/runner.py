"""Starts a process for each library and lets them take turns."""

import contextlib
import datetime
import importlib.util
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

from .report import DISTURBING, Report
from .workloads import LIBRARIES, REFERENCE
from .workloads import workloads as registered_workloads

TOLERANCE = 2e-5  # relative, of the first losses: float32 rounding is 1e-7, a forgotten weight decay 1e-4
PAUSE = 0.1  # seconds between turns: idle thread pools spin for a while before they sleep (OpenBLAS about 30 ms)
PATIENCE = 3  # times as many turns as asked for, at the most, until enough of them were undisturbed
KERNEL_SHARE = 0.2  # of a turn's seconds, for each of the many kernel cases
PEAK_SECONDS = 0.2
TIME_LIMIT = 120  # seconds that a worker may take for an answer beyond the time it was told to spend

# What a user's shell may have set that would slow a library down (the first two: NumPy's BLAS) or keep idle threads
# spinning.
_UNSET = (
    "OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE", "OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME", "OMP_PROC_BIND",
    "OMP_PLACES", "GOMP_CPU_AFFINITY", "KMP_AFFINITY", "OMP_DYNAMIC", "OMP_SCHEDULE",
    "XLA_FLAGS", "JAX_ENABLE_X64", "JAX_PLATFORMS",
)  # fmt: skip
_THREADS = (
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "BLIS_NUM_THREADS",
    "NUMBA_NUM_THREADS",
    "NPROC",
)


def run(workloads=None, libraries=None, threads=2, rounds=5, seconds=0.5, output=None, progress=None):
    """Measure training updates, kernels or overheads.

    Parameters
    ----------
    workloads : sequence of str, optional
        Names of training updates, "kernels" for the kernel cases, "overheads" for what Python, import and first use
        cost; default: all training updates.
    libraries : sequence of str, optional
        Of "fast", "numpy", "numpy32", "torch", "jax" and "course"; default: all. The table says where one is not
        installed.
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
    names = list(known) if workloads is None else list(workloads)
    libraries = list(LIBRARIES) if libraries is None else list(libraries)
    _check_names("workloads", names, [*known, "kernels", "overheads"])
    _check_names("libraries", libraries, list(LIBRARIES))
    for name, value in (("threads", threads), ("rounds", rounds), ("seconds", seconds)):
        if not value > 0:
            raise ValueError(f"{name}: expected a number above 0, got {value!r}")
    report = Report(_machine(), {"threads": threads, "rounds": rounds, "seconds": seconds})
    kernel_cases = _kernel_cases() if "kernels" in names else []
    training = [name for name in names if name in known]
    stages = bool(training or kernel_cases) + len(training) + len(kernel_cases) + ("overheads" in names)
    tell = _Progress(progress, stages)
    turns = {"threads": threads, "rounds": rounds, "seconds": seconds}

    if training or kernel_cases:
        tell("peaks")
        for count in sorted({threads, 1} if kernel_cases else {threads}):
            peaks = measure_peaks(count, report)
            if peaks:
                report.peaks[str(count)] = peaks
    for name in training:
        tell(name)
        report.training.append(_training_row(known[name], libraries, turns, report))
    for row in _kernel_rows(kernel_cases, libraries, turns, report, tell):
        report.kernels.append(row)
    if "overheads" in names:
        tell("overheads")
        from .overheads import measure_overheads

        report.overheads = measure_overheads(worker_environment(1))
    tell.end()
    if output is not None:
        report.save(output)
    return report


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


def _training_row(workload, libraries, turns, report):
    chosen = [library for library in libraries if library in workload.builders]
    checked = [*chosen, *([REFERENCE] if REFERENCE not in chosen else [])]
    with contextlib.ExitStack() as stack:
        workers = {library: stack.enter_context(WorkerProcess(library, turns["threads"])) for library in checked}
        answers = ask_all(workers, {"do": "open", "suite": "training", "name": workload.name})
        results = disagreements(answers)
        if REFERENCE not in chosen:
            del workers[REFERENCE], results[REFERENCE]
        disturbance = _take_turns(workers, results, turns)
        _collect_versions(answers.values(), report)
    return {
        "name": workload.name, "model": workload.model, "batch": workload.batch, "gflop": workload.gflop,
        "gbytes": workload.gbytes, "threads": turns["threads"], "disturbance": disturbance, "libraries": results,
    }  # fmt: skip


def disagreements(answers):
    """From each library's answer to "open": {} where its losses equal the reference's, else what is wrong."""
    reference = answers[REFERENCE].get("losses")
    results = {}
    for library, answer in answers.items():
        results[library] = _failure(answer)
        if results[library]:
            continue
        if reference is None:
            results[library] = {"error": "not compared: the reference failed"}
            continue
        for i, (got, expected) in enumerate(zip(answer["losses"], reference, strict=True)):
            if not abs(got - expected) <= TOLERANCE * abs(expected):
                what = f"disagrees with the reference: loss {i} is {got:.8g}, expected {expected:.8g}"
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
                    time.sleep(PAUSE)
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
    idle = _idle_share(workers.values())
    turns_of = {library: [] for library in workers}  # (others' share of the CPUs, seconds of each run)
    order = list(workers)
    for _ in range(turns.get("patience", PATIENCE) * turns["rounds"]):
        for library in order:
            if results[library] or _undisturbed(turns_of[library]) >= turns["rounds"]:
                continue
            time.sleep(PAUSE)
            usage = _Usage(workers.values())
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


# ---- processes -------------------------------------------------------------------------------------------------------


class WorkerProcess:
    """A worker, from `with` on; `ask` returns its answer as a dict, whatever happens to it."""

    def __init__(self, library, threads):
        self.library, self.threads = library, threads

    def __enter__(self):
        self.log = tempfile.TemporaryFile("w+")
        self.process = subprocess.Popen(
            [sys.executable, "-m", f"{__package__}.worker", self.library, str(self.threads)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.log, text=True,
            env=worker_environment(self.threads),
        )  # fmt: skip
        return self

    def send(self, command):
        with contextlib.suppress(BrokenPipeError):  # `receive` says why it died
            self.process.stdin.write(json.dumps(command) + "\n")
            self.process.stdin.flush()

    def receive(self, limit):
        killer = threading.Timer(limit, self.process.kill)
        killer.start()
        line = self.process.stdout.readline()
        killer.cancel()
        if line:
            return json.loads(line)
        code = self.process.wait()
        self.log.seek(0)
        last = (self.log.read().strip().splitlines() or ["it wrote nothing"])[-1]
        return {"error": f"its process ended with code {code} (killed after {limit:.0f} s where that is -9): {last}"}

    def ask(self, command, limit):
        self.send(command)
        return self.receive(limit)

    def cpu_seconds(self):
        """CPU time used so far, all threads; 0 where the system does not tell."""
        try:
            fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            return 0.0
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def __exit__(self, *error):
        if error[0] is not None:
            self.process.kill()
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.process.stdout.close()
        self.log.close()


def worker_environment(threads):
    """The environment of a worker: this package first, this many threads, nothing that slows a library down."""
    environment = {name: value for name, value in os.environ.items() if name not in _UNSET}
    root = str(Path(importlib.util.find_spec("dd2424fast").origin).parent.parent)
    path = [root, *filter(None, [environment.get("PYTHONPATH")])]
    environment |= {**dict.fromkeys(_THREADS, str(threads)), "JAX_PLATFORMS": "cpu"}
    return {**environment, "PYTHONPATH": os.pathsep.join(path)}


def ask_all(workers, command, in_turn=False):
    """Every worker's answer to the same command; at the same time, unless in_turn."""
    if in_turn:
        return {library: worker.ask(command, TIME_LIMIT) for library, worker in workers.items()}
    for worker in workers.values():
        worker.send(command)
    return {library: worker.receive(TIME_LIMIT) for library, worker in workers.items()}


def _idle_share(workers, seconds=0.3):
    time.sleep(PAUSE)
    before = [worker.cpu_seconds() for worker in workers]
    time.sleep(seconds)
    return max((worker.cpu_seconds() - start) / seconds for worker, start in zip(workers, before, strict=True))


class _Usage:
    """CPU time of the whole machine since now, less that of some workers."""

    def __init__(self, workers):
        self.workers = list(workers)
        self.start = self._read()

    def _read(self):
        return time.perf_counter(), _busy_seconds(), sum(worker.cpu_seconds() for worker in self.workers)

    def of_others(self):
        """Mean share of each of the machine's CPUs; 0 where the system does not tell."""
        wall, busy, workers = (now - then for now, then in zip(self._read(), self.start, strict=True))
        return max(busy - workers, 0.0) / wall / (os.cpu_count() or 1)


def _busy_seconds():
    """CPU time spent by all processes since the machine started, time stolen by other virtual machines included."""
    try:
        first = Path("/proc/stat").read_text().split("\n", 1)[0]
        user, nice, system, _, _, irq, softirq, steal, *_ = map(int, first.split()[1:])
    except (OSError, ValueError):
        return 0.0
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")


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
