"""What is timed: training updates and texts, each written once for every library.

A task says what is computed; a builder makes it in one library and returns `step()`: one training update on the next
batch (forward, loss, backward, optimizer) that returns the mean data loss before the update as a float, or one text,
which returns a number that stands for it. All builders of a workload start from the same weights and batches and do the
same arithmetic; the runner compares their first results before it times anything.

A family of workloads is a module that calls `register` (feedforward.py, recurrent.py, generation.py); name it in
FAMILIES.
"""

import importlib
from collections.abc import Callable
from dataclasses import dataclass

FAMILIES = ("feedforward", "images", "recurrent", "generation", "estimators")

# From a kind of workload, which has a table of its own, to what one run of it is.
KINDS = {
    "training": "update",
    "ragged": "update",
    "generation": "text",
    "inference": "batch",
    "fits": "fit",
    "scaling": "update",
}

# Kinds whose workloads are compared with each other, and take turns as the libraries do.
TOGETHER = ("ragged", "fits", "scaling")

# What every library is compared with: a float64 script as the course's students write it.
REFERENCE = "course"

# In the order of the table's columns. Two have a second form: what their users write, and the fastest that we found.
LIBRARIES = {
    "fast": "dd2424fast",
    "numpy": "NumPy twin",
    "numpy32": "NumPy float32",
    "torch": "PyTorch",
    "torch_lean": "PyTorch lean",
    "jax": "JAX",
    "sklearn": "scikit-learn",
    REFERENCE: "course float64",
}

# The strongest of these is what a row of ours has to beat.
PEERS = ("numpy32", "torch", "torch_lean", "jax", "sklearn")


class Task:
    """What a workload computes, in no library yet.

    Attributes
    ----------
    batch : int
    tokens : int
        Read or written by one run, or images of one of kind "inference"; 0 where there are none.
    dtype : {"float32", "float64"}
        Of the fast kernels, whose times are compared with the machine's rate in it.
    sizes : dict
        What the workloads of a series differ in.
    compared : dict
        Arguments of the first runs, whose results must be the same in all libraries: what is drawn by chance never is.
    """

    tokens = 0
    dtype = "float32"
    sizes = {}  # noqa: RUF012, never changed
    compared = {}  # noqa: RUF012

    def gflop(self):
        """Floating-point operations executed by a run in 1e9, a multiply and an add as two."""
        raise NotImplementedError

    def gbytes(self):
        """What a run must move through memory at the least, in 1e9 bytes."""
        raise NotImplementedError

    def ours(self):
        """`step` in this library, with the backend and the threads that are set when it is called."""
        raise NotImplementedError


def _ours(backend):
    def build(task, threads):
        import dd2424fast as dd

        dd.set_backend(backend)
        dd.set_num_threads(threads)
        return task.ours()

    return build


@dataclass(frozen=True)
class Workload:
    """A task and its builders.

    Attributes
    ----------
    name : str
    model : str
        The model in words, for the table.
    task : Task
    builders : dict
        From library to `builder(task, threads) -> step`.
    kind : str
        One of KINDS.
    beside : str
        Name of a workload of the same kind whose time per token the row is compared with.
    """

    name: str
    model: str
    task: Task
    builders: dict[str, Callable]
    kind: str = "training"
    beside: str = ""

    def start(self, library, threads):
        """The function that a library's runs call; see above."""
        return self.builders[library](self.task, threads)

    def first_results(self, step, count):
        """Results of the first runs, to be compared between libraries."""
        return [step(**self.task.compared) for _ in range(count)]


_registered = {}


def builders(peers):
    """Those of this library and its twin, and the peers'."""
    return {"fast": _ours("fast"), "numpy": _ours("numpy"), **peers}


def register(name, model, task, peers, kind="training", beside="", twin=True):
    """Add a workload, whose name must be new; `peers` are the builders of other libraries. Without `twin` the NumPy
    twin, which would take too long, is not among them."""
    if name in _registered:
        raise ValueError(f"workload: {name!r} is registered already")
    known = {library: build for library, build in builders(peers).items() if twin or library != "numpy"}
    _registered[name] = Workload(name, model, task, known, kind, beside)
    return _registered[name]


def workloads():
    """All registered workloads by name."""
    for family in FAMILIES:
        importlib.import_module(f".{family}", __package__)
    return _registered


def named(names):
    """The workloads of these names and kinds, in the order in which they are registered."""
    return [workload for workload in workloads().values() if workload.name in names or workload.kind in names]
