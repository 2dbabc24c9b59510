"""What a user pays apart from arithmetic: Python's part of an update, memory per update, import, the first update of a
process.

Each is measured in processes of its own; `python -m dd2424fast.bench.overheads` measures the part that belongs in one
process and prints it as JSON.
"""

import json
import statistics
import sys
import tempfile
import time
import tracemalloc

from .processes import printed_by

REPEATS = 7  # processes; the median counts

_NUMPY = "import time; start = time.perf_counter(); import numpy; print(time.perf_counter() - start)"
_PACKAGE = "import numpy, time; start = time.perf_counter(); import dd2424fast; print(time.perf_counter() - start)"
_FIRST_STEP = """
import numpy as np, time
x, y = np.zeros((100, 3072), np.float32), np.zeros(100, np.int64)
start = time.perf_counter()
import dd2424fast as dd
trainer = dd.Trainer(dd.models.MLP(3072, (50, 50), 10, batch_norm=True, dropout=0.5, seed=0), dd.optim.SGD(0.01))
made = time.perf_counter()
trainer.step(x, y)
print(made - start, time.perf_counter() - made)
"""
_MANY_FITS = """
import numpy as np, resource
import dd2424fast as dd
rng = np.random.default_rng(0)
x, y = rng.standard_normal((1000, 64)), np.arange(1000) % 10
def memory():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize()
def fit(alphas):
    dd.fit_many(dd.MLPClassifier(max_iter=2), {"alpha": alphas}, x, y, seeds=1)
alphas = np.logspace(-6, 0, 1000).tolist()
fit(alphas[:100])
before = memory()
fit(alphas[100:])
print(memory() / before)
"""


def measure_overheads(environment):
    """Run the measurements.

    Returns
    -------
    dict
        From what was measured, unit included, to a number; or to the error's last line.
    """
    found = {}
    with tempfile.TemporaryDirectory() as empty:
        cold = {**environment, "NUMBA_CACHE_DIR": empty}
        measurements = {
            ("import numpy, ms",): lambda: _in_fresh_processes(_NUMPY, environment),
            ("import dd2424fast behind numpy, ms",): lambda: _in_fresh_processes(_PACKAGE, environment),
            ("import and model, warm caches, ms", "first step, warm caches, ms"): lambda: _in_fresh_processes(
                _FIRST_STEP, environment
            ),
            ("memory after 1,000 fits over that after 100",): lambda: _in_fresh_processes(
                _MANY_FITS, environment, repeats=1, unit=1
            ),
            ("import and model, empty NUMBA_CACHE_DIR, ms", "first step, empty NUMBA_CACHE_DIR, ms"): lambda: (
                _in_fresh_processes(_FIRST_STEP, cold, repeats=1)
            ),
        }
        for names, measure in measurements.items():
            try:
                found.update(zip(names, measure(), strict=True))
            except RuntimeError as error:
                found[names[-1]] = f"ERROR: {error}"
    try:
        found.update(json.loads(printed_by([sys.executable, "-m", f"{__package__}.overheads"], environment)))
    except RuntimeError as error:
        found["one step, us"] = f"ERROR: {error}"
    return found


def _in_fresh_processes(program, environment, repeats=REPEATS, unit=1e-3):
    """What the program prints, in this unit, each the median over fresh processes: of seconds, milliseconds."""
    printed = [printed_by([sys.executable, "-c", program], environment).split() for _ in range(repeats)]
    return [round(statistics.median(map(float, values)) / unit, 3) for values in zip(*printed, strict=True)]


def one_process():
    """Microseconds and bytes of an update whose arithmetic is next to nothing, and bytes of a real one."""
    import numpy as np

    import dd2424fast as dd

    def trainer(*sizes):
        inputs, *hidden, classes = sizes
        return dd.Trainer(dd.models.MLP(inputs, hidden, classes, seed=0), dd.optim.SGD(0.01))

    tiny, x, y = trainer(4, 4, 4), np.ones((1, 4), np.float32), np.zeros(1, np.int64)
    real, images, labels = trainer(3072, 50, 10), np.ones((100, 3072), np.float32), np.zeros(100, np.int64)
    return {
        "one step of a 4-4-4 MLP at batch 1, us": round(1e6 * _median_seconds(lambda: tiny.step(x, y)), 2),
        "bytes allocated by a step of 4-4-4": _allocated(lambda: tiny.step(x, y)),
        "bytes allocated by a step of 3072-50-10": _allocated(lambda: real.step(images, labels)),
    }


def _median_seconds(run, count=20_000):
    for _ in range(count // 10):
        run()
    taken = []
    for _ in range(count):
        start = time.perf_counter()
        run()
        taken.append(time.perf_counter() - start)
    return statistics.median(taken)


def _allocated(run):
    """Peak of memory that one warm run takes on top of what is held before it."""
    for _ in range(5):
        run()
    tracemalloc.start()
    run()  # whatever tracing itself makes happen once
    before = tracemalloc.get_traced_memory()[0]
    tracemalloc.reset_peak()
    run()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak - before


if __name__ == "__main__":
    print(json.dumps(one_process()))
