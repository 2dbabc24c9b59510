"""Kernels touch no memory beside their arrays, which lie here against pages that the system lets no one read.

What a vector loads beside an array and never uses shows in no result, but ends the program where no memory follows. So
the calls are made in a process of their own, which such a load ends.
"""

import ctypes
import mmap
import os
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import dd2424fast as dd
from dd2424fast import kernels
from dd2424fast.kernels import _team

PAGE = mmap.PAGESIZE


def fenced(a, at_end):
    """A copy of `a` that ends where a forbidden page begins, or begins where one ends."""
    size = max(1, -(-a.nbytes // PAGE)) * PAGE
    memory = mmap.mmap(-1, size + 2 * PAGE)
    start = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    for page in (start, start + PAGE + size):
        assert ctypes.CDLL(None).mprotect(ctypes.c_void_p(page), ctypes.c_size_t(PAGE), 0) == 0
    copy = np.frombuffer(memory, a.dtype, a.size, PAGE + (size - a.nbytes if at_end else 0)).reshape(a.shape)
    copy[...] = a
    return copy


def again(kernel, arguments, _):
    """A recorder of calls: make each twice more, with all its arrays, results among them, between fences."""
    for at_end in (False, True):
        shapes = [a.shape for a in arguments if isinstance(a, np.ndarray)]
        print(kernel.__name__, *shapes, "at the end" if at_end else "at the beginning", flush=True)
        kernel.fast(*(fenced(a, at_end) if isinstance(a, np.ndarray) else a for a in arguments))


def draw(*shape, dtype):
    return np.random.default_rng(shape).standard_normal(shape).astype(dtype)


# Images, height, width, channels, filters, groups, window, stride, padding, dilation.
CONVOLUTIONS = [
    *[(2, 7, 9, C, F, 1, 3, 1, 1, 1) for C, F in ((3, 17), (5, 37), (16, 16), (33, 31), (32, 48))],
    *[(2, 9, 8, 6, 4, 2, 3, 2, 1, 1), (2, 8, 9, 17, 17, 17, 3, 1, 1, 1), (3, 9, 6, 32, 64, 2, 3, 2, 1, 1)],
    *[(2, 9, 7, 3, 33, 1, 4, 4, 0, 1), (3, 5, 7, 19, 33, 1, 1, 1, 0, 1), (2, 9, 10, 18, 35, 1, 3, 1, 2, (2, 3))],
    # By Winograd's algorithm.
    *[(20, 8, 9, 33, 35, 1, 3, 1, 1, 1), (17, 9, 11, 96, 34, 1, 3, 1, 1, 1), (9, 17, 16, 32, 48, 1, 3, 1, 1, 1)],
]


def convolution(dtype):
    for N, H, W, C, F, groups, window, stride, padding, dilation in CONVOLUTIONS:
        options = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
        x, w = draw(N, H, W, C, dtype=dtype), draw(window, window, C // groups, F, dtype=dtype)
        b = draw(F, dtype=dtype)
        for scale in (None, b):  # scaled filters are a copy of w
            y = kernels.conv2d_forward(x, w, b, **options, scale=scale, activation="tanh", batched=True)
        kernels.conv2d_backward(y, x, w, **options, dW=np.zeros_like(w), db=np.zeros_like(b), accumulate=True)


def pooling(dtype):
    for C in (1, 3, 16, 37, 67):
        x = draw(2, 7, 8, C, dtype=dtype)
        for size, stride, padding in ((2, None, 0), (3, None, 0), (3, 2, 1), ((2, 3), (3, 1), (0, 1))):
            y, place = kernels.max_pool2d_forward(x, size, stride, padding)
            kernels.max_pool2d_backward(y, place, (7, 8), size, stride, padding)
            y = kernels.avg_pool2d_forward(x, size, stride, padding)
            kernels.avg_pool2d_backward(y, (7, 8), size, stride, padding)
        kernels.global_avg_pool2d_backward(kernels.global_avg_pool2d_forward(x), (7, 8))


def networks(dtype):
    """Updates of sizes that no vector divides: what else the layers, the losses and the optimizers call."""
    labels = np.arange(9) % 5
    mlp = dd.models.MLP(37, (19, 33), 5, batch_norm=True, dropout=0.2, dtype=dtype, seed=0)
    for optimizer in ("SGD", "Adam", "AdamW", "NAdam", "RMSprop", "Adagrad", "Adadelta"):
        trainer = dd.Trainer(mlp, getattr(dd.optim, optimizer)(0.01), clip_norm=1.0)
        trainer.step(draw(9, 37, dtype=dtype), labels)
    mlp.predict(draw(9, 37, dtype=dtype))
    tokens = np.arange(6 * 7).reshape(6, 7) % 13
    for cell in ("rnn", "lstm", "gru"):
        norm = [{"hidden": 17, "layer_norm": True}] if cell == "lstm" else []
        for options in ({"hidden": 19}, {"hidden": 33, "embedding": 7, "layers": 2, "dropout": 0.1}, *norm):
            model = dd.models.LanguageModel(13, cell, **options, dtype=dtype, seed=0)
            dd.Trainer(model, dd.optim.Adam(0.01)).step(tokens[:, :-1], tokens[:, 1:])


def single(dtype):
    """Kernels that `networks` leaves out."""
    x, row = draw(7, 37, dtype=dtype), draw(37, dtype=dtype)
    for activation in ("relu", "leaky_relu", "tanh", "sigmoid", "gelu"):
        y = kernels.activation_forward(x, activation)
        kernels.activation_backward(x, x if activation == "gelu" else y, activation)
    kernels.residual_add_forward(x, y, "relu")
    _, mean, rstd = kernels.layer_norm_forward(x, row, row)
    kernels.layer_norm_backward(x, x, row, mean, rstd)
    kernels.softmax(x)
    kernels.binary_cross_entropy(x, np.ones_like(x))
    kernels.mean_squared_error(x, y)
    kernels.moving_average(row.copy(), row, 0.9)
    kernels.clip_by_value(row.copy(), 0.5)
    kernels.matmul(x, draw(37, 35, dtype=dtype))
    for kind in ("softmax", "sigmoid"):
        plan = kernels.MLPPlan((37, 19, 5), activation="tanh", output=kind, batch_norm=True)
        targets = np.arange(7) % 5 if kind == "softmax" else np.ones((7, 5), dtype)
        parameters, buffers = draw(plan.parameters, dtype=dtype), np.ones(plan.buffers, dtype)
        kernels.mlp_outputs(plan, parameters, buffers, x)
        kernels.mlp_gradient(plan, parameters, buffers, x, targets, alpha=0.1)
        solver = kernels.SGDSolver(np.zeros_like(parameters))
        kernels.mlp_updates(plan, parameters, buffers, solver, x, targets)


def fence(dtype):
    """What must not be done."""
    a = fenced(np.ones(5, dtype), True)
    print("now", flush=True)
    np.lib.stride_tricks.as_strided(a, (6,)).sum()


def child(topic):
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    kernels._dispatch.set_recorder(again)
    dd.set_num_threads(1)
    for dtype in ("float32", "float64"):
        for unit in (False, True) if _team.has_matrix_unit() else (False,):
            dd.set_matrix_unit(unit)
            globals()[topic](dtype)


def run(topic):
    """The finished process; it imports the kernels that are tested here."""
    environment = dict(os.environ, PYTHONPATH=str(Path(dd.__file__).parents[1]))
    command = [sys.executable, "-X", "faulthandler", __file__, topic]
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=False)


@pytest.mark.parametrize("topic", ["convolution", "pooling", "networks", "single"])
def test_nothing_is_touched_beside_the_arrays(topic):
    done = run(topic)
    calls = done.stdout.splitlines()
    assert done.returncode == 0, f"ended in {calls[-1:]}: {done.stderr}"
    assert len(calls) > 50


def test_the_fences_end_who_reads_on():
    done = run("fence")
    assert (done.returncode != 0, done.stdout) == (True, "now\n")


if __name__ == "__main__":
    child(sys.argv[1])
