"""One library in a process of its own, which does what it is told, line by line, and is silent in between.

`python -m dd2424fast.bench.worker LIBRARY THREADS` reads one JSON object a line from stdin and answers each with one
on stdout:

    {"do": "open", "suite": "workloads", "name": "mlp"}    make it and warm it up: {"results": [...], "versions": {...}}
    {"do": "open", "suite": "kernels", "name": a case}     the same: {"work": [GFLOP, GB], "versions": {...}}
    {"do": "time", "seconds": 0.5}                         run it for so long: {"seconds": [of each run]}

A failure is an answer too: {"missing": "torch"} where the library is not installed, {"error": "..."} otherwise. At the
end of stdin the process ends. While it waits for a line it blocks, so that it takes nothing from the process whose
turn it is.
"""

import gc
import importlib
import importlib.metadata
import json
import math
import os
import sys
import time
from pathlib import Path

RESULTS = 5  # compared between libraries before anything is timed
WARM_UP = 0.3  # seconds of running before the first timed run
RESTART = 3  # runs before each turn's timed ones: the caches and the threads have been idle


def physical_cpus():
    """The CPUs this process may use, one of each core first."""
    try:
        allowed = sorted(os.sched_getaffinity(0))
    except AttributeError:  # macOS has no affinity
        return []

    def place(cpu):
        path = Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list")
        siblings = path.read_text().replace("-", ",").split(",") if path.exists() else [cpu]
        return cpu != int(siblings[0]), cpu

    return sorted(allowed, key=place)


def restrict_to(threads):
    """Keep this process on as many CPUs as it may use threads: JAX has no other switch for it."""
    cpus = physical_cpus()[:threads]
    if cpus:
        os.sched_setaffinity(0, cpus)


class Worker:
    """What the commands do."""

    def __init__(self, library, threads):
        self.library, self.threads = library, threads
        self.run = None

    def answer(self, command):
        """Do what a command says; a failure is an answer too."""
        try:
            do = {"open": self.open, "time": self.time}[command["do"]]
            return do(**{name: value for name, value in command.items() if name != "do"})
        except ModuleNotFoundError as error:
            return {"missing": error.name}
        except Exception as error:  # whatever it is, the table shall say it
            return {"error": f"{type(error).__name__}: {error}"}

    def open(self, suite, name):
        if suite == "workloads":
            from .workloads import workloads

            workload = workloads()[name]
            self.run = workload.start(self.library, self.threads)
            answer = {"results": workload.first_results(self.run, RESULTS)}
        else:
            from .cases import cases

            case = cases()[name]
            arguments = case.arguments()
            self.run = case.start(self.library, self.threads, arguments)
            answer = {"work": case.work(arguments)}
        return {**answer, "seconds": self._warm_up(), "versions": versions()}

    def _warm_up(self):
        """Run for a while; the time that one run took at the end."""
        stop = time.perf_counter() + WARM_UP
        while True:
            start = time.perf_counter()
            self.run()
            end = time.perf_counter()
            if end > stop:
                return end - start

    def time(self, seconds):
        run, clock, taken = self.run, time.perf_counter, []
        gc.collect()
        gc.disable()
        try:
            for _ in range(RESTART):
                start = clock()
                run()
                if clock() - start > seconds:
                    break
            stop = clock() + seconds
            end = 0.0
            while end < stop:
                start = clock()
                result = run()
                end = clock()
                taken.append(end - start)
        finally:
            gc.enable()
        if isinstance(result, float) and not math.isfinite(result):
            raise FloatingPointError(f"the loss became {result}")
        return {"seconds": taken}


def versions():
    """Versions of what is loaded here, and what the kernels were compiled with."""
    found = {
        name: importlib.metadata.version({"sklearn": "scikit-learn"}.get(name, name))
        for name in ("numpy", "scipy", "numba", "torch", "jax", "sklearn")
        if name in sys.modules
    }
    if "dd2424fast.kernels" in sys.modules:
        build = importlib.import_module("dd2424fast.kernels._build")
        found |= {"compiler": build.compiler, "instruction set": build.march}
    return found


def main(library, threads):
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a library prints must not end up among the answers
    restrict_to(threads)
    worker = Worker(library, threads)
    for line in sys.stdin:
        print(json.dumps(worker.answer(json.loads(line))), file=answers, flush=True)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
