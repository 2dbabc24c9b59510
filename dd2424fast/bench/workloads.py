"""What is timed: training updates, each written once for every library.

A builder makes the model for one library and returns `step()`: one training update on the next batch (forward, loss,
backward, optimizer) that returns the mean data loss before the update as a float. All builders of a workload start
from the same weights and batches and do the same arithmetic; the runner compares their first losses before it times
anything.

A family of workloads is a module that calls `register` (feedforward.py, recurrent.py); name it in FAMILIES.
"""

import importlib
from collections.abc import Callable
from dataclasses import dataclass

FAMILIES = ("feedforward", "recurrent")

# What every library is compared with: a float64 script as the course's students write it.
REFERENCE = "course"

# In the order of the table's columns.
LIBRARIES = {
    "fast": "dd2424fast",
    "numpy": "NumPy twin",
    "numpy32": "NumPy float32",
    "torch": "PyTorch",
    "jax": "JAX",
    REFERENCE: "course float64",
}

# The strongest of these is what a row of ours has to beat.
PEERS = ("numpy32", "torch", "jax")


@dataclass(frozen=True)
class Workload:
    """One training update of one model.

    Attributes
    ----------
    name : str
    model : str
        The model in words, for the table.
    batch : int
    gflop : float
        Floating-point operations of an update in 1e9, a multiply and an add as two.
    gbytes : float
        What an update must move through memory at the least, in 1e9 bytes of float32.
    builders : dict
        From library to `builder(threads) -> step`.
    """

    name: str
    model: str
    batch: int
    gflop: float
    gbytes: float
    builders: dict[str, Callable]


_registered = {}


def register(workload):
    """Add a workload; its name must be new."""
    if workload.name in _registered:
        raise ValueError(f"workload: {workload.name!r} is registered already")
    _registered[workload.name] = workload
    return workload


def workloads():
    """All registered workloads by name."""
    for family in FAMILIES:
        importlib.import_module(f".{family}", __package__)
    return _registered
