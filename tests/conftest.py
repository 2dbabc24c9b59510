"""What several test files need."""

import pickle
import subprocess
import sys

import numpy as np
import pytest

import dd2424fast as dd

KILLED = """
import os, signal, sys
from dd2424fast import Trainer
from dd2424fast.cli import main
from dd2424fast.optim import Optimizer

name, _, left = sys.argv.pop(1).partition(":")
left = int(left)
owner = next(owner for owner in (Optimizer, Trainer, os) if hasattr(owner, name))
function = getattr(owner, name)

def die_at_last(*args, **kwargs):
    global left
    left -= 1
    if not left:
        os.kill(os.getpid(), signal.SIGKILL)
    return function(*args, **kwargs)

setattr(owner, name, die_at_last)
main()
"""


@pytest.fixture
def one_thread(monkeypatch):
    """Tests that run beside other programs wait long for two; the results are the same."""
    before = dd.get_num_threads()
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    dd.set_num_threads(1)
    yield
    dd.set_num_threads(before)


@pytest.fixture
def start(tmp_path):
    """Start the command in a process of its own. `kill_at` "update:3": it kills itself when it comes to the third call
    of `Optimizer.update`, of `Trainer.evaluate` or of `os.fsync` ..., and does not make it."""
    processes = []

    def start(*args, kill_at=None):
        program = ["-m", "dd2424fast.cli"] if kill_at is None else ["-c", KILLED, kill_at]
        command = [sys.executable, *program, *map(str, args)]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        processes.append(subprocess.Popen(command, cwd=tmp_path, text=True, **pipes))
        return processes[-1]

    yield start
    for process in processes:
        process.kill()
        process.communicate()


@pytest.fixture
def problem():
    """A small classification problem: 120 rows of 7 features in 4 classes that a network can tell apart."""
    rng = np.random.default_rng(5)
    y = rng.integers(0, 4, 120)
    x = rng.standard_normal((4, 7))[y] * 2 + rng.standard_normal((120, 7))
    return x.astype("float32"), y


@pytest.fixture
def make_trainer():
    """A function that makes a trainer of a small network with every kind of layer; equal arguments, equal trainers."""

    def make(optimizer=None, dtype="float32", model_seed=3, **arguments):
        model = dd.models.MLP(7, (11, 5), 4, batch_norm=True, dropout=0.2, dtype=dtype, seed=model_seed)
        return dd.Trainer(model, optimizer or dd.optim.Adam(0.01, weight_decay=1e-3), seed=9, **arguments)

    return make


@pytest.fixture(scope="session")
def cifar(tmp_path_factory):
    """A folder of CIFAR-10 files with 60 noisy images each, a bright stripe for each class; batch 3 is missing."""
    folder, rng = tmp_path_factory.mktemp("cifar"), np.random.default_rng(0)
    for name in ("data_batch_1", "data_batch_2", "data_batch_4", "data_batch_5", "test_batch"):
        labels = np.arange(60) % 10
        data = rng.integers(0, 256, (60, 3072), dtype=np.uint8)
        data[np.arange(3072) // 308 == labels[:, np.newaxis]] = 255
        (folder / name).write_bytes(pickle.dumps({b"data": data, b"labels": labels.tolist()}, protocol=2))
    return folder
