"""A process for each library, the environment it runs in, and how much of the machine others take."""

import contextlib
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

PAUSE = 0.1  # seconds between turns: idle thread pools spin for a while before they sleep (OpenBLAS about 30 ms)
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


class WorkerProcess:
    """A worker, from `with` on; `ask` returns its answer as a dict, whatever happens to it."""

    def __init__(self, library, threads):
        self.library, self.threads = library, threads

    def __enter__(self):
        self.log = tempfile.TemporaryFile("w+")
        self.process = subprocess.Popen(
            [sys.executable, "-m", f"{__package__}.worker", self.library, str(self.threads)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.log, text=True,
            env=worker_environment(self.threads), start_new_session=True,
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
        """CPU time used so far, by all threads, and by the processes that it has started and that are still there; 0
        where the system does not tell."""
        ticks = 0
        for path in Path("/proc").glob("[0-9]*/stat"):
            try:
                fields = path.read_text().rpartition(")")[2].split()
            except OSError:  # it has ended
                continue
            if int(fields[3]) == self.process.pid:  # the session
                ticks += int(fields[11]) + int(fields[12])
        return ticks / os.sysconf("SC_CLK_TCK")

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


def printed_by(command, environment):
    """Standard output of a process; RuntimeError with its last line where it fails."""
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError((done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1])
    return done.stdout


def ask_all(workers, command, in_turn=False):
    """Every worker's answer to the same command; at the same time, unless in_turn."""
    if in_turn:
        return {library: worker.ask(command, TIME_LIMIT) for library, worker in workers.items()}
    for worker in workers.values():
        worker.send(command)
    return {library: worker.receive(TIME_LIMIT) for library, worker in workers.items()}


def idle_share(workers, seconds=0.3):
    time.sleep(PAUSE)
    before = [worker.cpu_seconds() for worker in workers]
    time.sleep(seconds)
    return max((worker.cpu_seconds() - start) / seconds for worker, start in zip(workers, before, strict=True))


class Usage:
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
