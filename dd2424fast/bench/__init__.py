"""Speed against NumPy, PyTorch and JAX, each library in a process of its own and all in turn, on the machine at hand.

    from dd2424fast import bench
    report = bench.run(["mlp"], threads=2)
    print(report.table())

Workloads are registered in `workloads`; the kernel cases stand in `cases`.
"""

from .report import Report
from .runner import run

__all__ = ["Report", "run"]
