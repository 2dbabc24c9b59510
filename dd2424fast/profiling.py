"""Where a training's time goes, kernel by kernel."""

import time
from collections import defaultdict

import numpy as np

from . import kernels
from .kernels._dispatch import set_recorder


class profile:  # in lower case: it is used like a function
    """Count and time every kernel called inside the block::

        with dd.profile() as report:
            trainer.fit((x, y), epochs=1)
        print(report.table())

    Attributes
    ----------
    seconds : float
        Wall time of the block; what the kernels do not account for is Python's.
    """

    def __init__(self):
        self._calls = defaultdict(lambda: [0, 0.0, 0, 0])
        self.seconds = 0.0
        self._peaks = None

    def __enter__(self):
        self._previous = set_recorder(self._record)
        self._started = time.perf_counter()
        return self

    def __exit__(self, *error):
        self.seconds += time.perf_counter() - self._started
        set_recorder(self._previous)

    def _record(self, kernel, args, seconds):
        row = self._calls[kernel.__name__]
        row[0] += 1
        row[1] += seconds
        row[2] += kernel.flops(*args) if kernel.flops else 0
        row[3] += kernel.traffic(*args) if kernel.traffic else 0

    def rows(self):
        """One dict a kernel, slowest first: kernel, calls, seconds, share (of the block), gflops (per second), gbytes
        (per second), of_peak.

        `of_peak` is the share of what this machine can do, as measured now: the larger of the arithmetic and the copy
        rate's.
        """
        if self._peaks is None:
            self._peaks = measure_peaks()
        result = []
        for name, (calls, seconds, flops, traffic) in sorted(self._calls.items(), key=lambda item: -item[1][1]):
            gflops, gbytes = (amount / seconds / 1e9 if seconds else 0.0 for amount in (flops, traffic))
            of_peak = max(gflops / self._peaks["gflops"], gbytes / self._peaks["gbytes"])
            result.append(
                {
                    "kernel": name,
                    "calls": calls,
                    "seconds": seconds,
                    "share": seconds / self.seconds if self.seconds else 0.0,
                    "gflops": gflops,
                    "gbytes": gbytes,
                    "of_peak": of_peak,
                }
            )
        return result

    def table(self):
        """The rows as text, with the time outside all kernels in the last line."""
        rows = self.rows()
        lines = [f"{'kernel':<28} {'calls':>8} {'seconds':>9} {'share':>6} {'GFLOP/s':>8} {'GB/s':>7} {'of peak':>8}"]
        lines += [
            f"{r['kernel']:<28} {r['calls']:>8} {r['seconds']:>9.4f} {r['share']:>6.1%} "
            f"{r['gflops']:>8.1f} {r['gbytes']:>7.1f} {r['of_peak']:>8.1%}"
            for r in rows
        ]
        outside = self.seconds - sum(r["seconds"] for r in rows)
        lines.append(
            f"{'(outside the kernels)':<28} {'':>8} {outside:>9.4f} {outside / max(self.seconds, 1e-12):>6.1%}"
        )
        gflops, gbytes = self._peaks["gflops"], self._peaks["gbytes"]
        lines.append(f"peak, measured: {gflops:.0f} GFLOP/s (float32 product), {gbytes:.1f} GB/s (copy)")
        return "\n".join(lines)


def measure_peaks(seconds=0.3):
    """Measure what this machine can do now with the threads in use.

    Returns
    -------
    dict
        "gflops": the largest rate of a float32 product by the packed tile and by NumPy's BLAS; "gbytes": bytes read
        and written per second by an activation kernel's identity over arrays far larger than the cache.
    """
    rng = np.random.default_rng(0)
    a = rng.standard_normal((512, 256), dtype=np.float32)
    b = rng.standard_normal((256, 512), dtype=np.float32)
    packed, out = kernels.pack(b), np.empty((512, 512), np.float32)
    flops = 2.0 * 512 * 256 * 512
    tile = _best_time(lambda: kernels.matmul_packed.fast(a, packed, out), seconds)
    blas = _best_time(lambda: np.matmul(a, b, out=out), seconds)
    source = np.zeros(1 << 24, np.float32)
    target = np.ones_like(source)
    copy = _best_time(lambda: kernels.activation_forward.fast(source, "identity", target), seconds)
    return {"gflops": flops / min(tile, blas) / 1e9, "gbytes": 2 * source.nbytes / copy / 1e9}


def _best_time(run, seconds):
    """The shortest of many runs within about so many seconds."""
    run()
    best, stop = float("inf"), time.perf_counter() + seconds
    while time.perf_counter() < stop:
        started = time.perf_counter()
        run()
        best = min(best, time.perf_counter() - started)
    return best
