"""Imports, configuration, and the gradient checker's own eyesight."""

import multiprocessing
import subprocess
import sys

import numpy as np
import pytest

import dd2424fast as dd
from dd2424fast.kernels.build_check import check_build


def run_python(code):
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=True
    ).stdout.strip()


def test_import_is_light():
    heavy = "numba", "scipy", "sklearn", "matplotlib", "tqdm", "safetensors", "pooch", "dd2424fast.kernels"
    loaded = run_python(f"import sys, dd2424fast; print([m for m in {heavy!r} if m in sys.modules])")
    assert loaded == "[]"


def test_a_training_step_needs_no_jit():
    code = (
        "import sys, numpy as np, dd2424fast as dd;"
        "t = dd.Trainer(dd.models.MLP(4, (3,), 2, batch_norm=True, dropout=.1), dd.optim.Adam(), clip_norm=1.);"
        "t.step(np.ones((2, 4), 'float32') * [[1], [2]], np.array([0, 1]));"
        "print([m for m in ('numba', 'scipy', 'sklearn', 'matplotlib') if m in sys.modules])"
    )
    assert run_python(code) == "[]"


def test_all_public_names_resolve():
    for name in dd.__all__:
        assert getattr(dd, name) is not None
    assert set(dd.__all__) <= set(dir(dd))
    with pytest.raises(AttributeError, match="no attribute 'Traner'"):
        dd.Traner  # noqa: B018


def test_backend_is_chosen_per_context():
    import threading

    assert dd.get_backend() == "fast"
    seen = []
    with dd.backend("numpy"):
        assert dd.get_backend() == "numpy"
        worker = threading.Thread(target=lambda: seen.append(dd.get_backend()))
        worker.start()
        worker.join()
        with dd.backend("fast"):
            assert dd.get_backend() == "fast"
        assert dd.get_backend() == "numpy"
    assert seen == ["fast"]
    with pytest.raises(ValueError, match="backend: expected 'fast' or 'numpy', got 'jax'"), dd.backend("jax"):
        pass
    dd.set_backend("numpy")
    try:
        assert dd.get_backend() == "numpy"
    finally:
        dd.set_backend("fast")


def test_set_num_threads():
    before = dd.get_num_threads()
    dd.set_num_threads(2)
    assert dd.get_num_threads() == (2 if dd.show_config()["openmp"] == "yes" else 1)
    for bad in (0, -1, 1.5, True, "2"):
        with pytest.raises(ValueError, match="n: expected a number of threads of at least 1"):
            dd.set_num_threads(bad)
    dd.set_num_threads(before)


def _train_in_child(queue):
    x = np.random.default_rng(0).standard_normal((100, 3072)).astype("float32")
    trainer = dd.Trainer(dd.models.MLP(3072, (50,), 10, seed=0), dd.optim.SGD(0.01))
    queue.put((trainer.step(x, np.arange(100) % 10), dd.get_num_threads()))


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="no fork here")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_forked_child_trains_on_one_thread():
    """The OpenMP threads do not survive a fork; a child that waited for them would hang."""
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    _train_in_child(queue)
    ours = queue.get(timeout=30)
    child = context.Process(target=_train_in_child, args=(queue,))
    child.start()
    loss, threads = queue.get(timeout=30)
    child.join(30)
    assert child.exitcode == 0
    assert (loss, threads) == (ours[0], 1)


def test_the_build_is_checked_against_the_cpu():
    check_build(["AVX2", "unheard of"], {"AVX2": True})
    with pytest.raises(ImportError, match="compiled for a CPU with AVX512F, which this one lacks"):
        check_build(["AVX2", "AVX512F"], {"AVX2": True, "AVX512F": False})


def test_show_config():
    config = dd.show_config()
    assert {"version", "compiler", "instruction_set", "openmp", "threads"} <= set(config)
    assert "compiler" in repr(config)
    assert config["vector_bits"] in (128, 256, 512)


class WrongLinear(dd.nn.Linear):
    """Its weight gradient is off in one entry."""

    def _backward(self, dy, work, need_dx):
        dx = super()._backward(dy, work, need_dx)
        self.dweight[2, 1] *= 1.01
        return dx


def test_gradcheck_finds_one_wrong_entry_by_name():
    rng = np.random.default_rng(0)
    model = dd.nn.Sequential(dd.nn.Linear(3, 4), dd.nn.Tanh(), WrongLinear(4, 3), dtype="float64", seed=0)
    report = dd.gradcheck(model, rng.standard_normal((5, 3)), rng.integers(0, 3, 5))
    assert not report
    assert report.worst_name == "2.weight[2, 1]"
    assert report.worst_error == pytest.approx(0.005, rel=0.05)
    assert "FAILED" in str(report)
    with pytest.raises(ValueError, match="expected dtype float64"):
        dd.gradcheck(dd.models.MLP(3), np.ones((1, 3)), [0])


def test_gradcheck_leaves_the_model_as_it_was():
    rng = np.random.default_rng(0)
    model = dd.models.MLP(3, (4,), 2, batch_norm=True, dtype="float64", seed=0)
    before = np.concatenate([model.parameters, model.buffers])
    assert dd.gradcheck(model, rng.standard_normal((6, 3)), rng.integers(0, 2, 6))
    np.testing.assert_array_equal(np.concatenate([model.parameters, model.buffers]), before)
