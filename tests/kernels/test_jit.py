import os
import subprocess
import sys

import numba
import numpy as np
import pytest

from dd2424fast.kernels import jit

compiled = pytest.mark.skipif(bool(numba.config.DISABLE_JIT), reason="NUMBA_DISABLE_JIT is set")

SCRIPT = """
import sys
import numpy as np
from dd2424fast.kernels.jit import kernel_jit

@kernel_jit
def double(x):
    return x + x

def total(x):
    s = x[0] - x[0]
    for i in range(x.size):
        s += double(x[i])
    return s

total = kernel_jit(total, identity=lambda: "test")
assert "numba" not in sys.modules
for dtype in sys.argv[1:]:
    assert total(np.arange(5, dtype=dtype)) == 20
stats = getattr(total.dispatcher, "stats", None)
found, compiled = (sum(c.values()) for c in (stats.cache_hits, stats.cache_misses)) if stats else (0, 0)
print(f"{found} found, {compiled} compiled")
"""


def start(folder, *dtypes, **environment):
    environment = {**os.environ, "NUMBA_DISABLE_JIT": "0", "NUMBA_CACHE_DIR": str(folder), **environment}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen([sys.executable, "-c", SCRIPT, *dtypes], env=environment, **pipes)


def answer(process):
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    return out.strip(), err


def test_importing_the_kernels_leaves_numba_alone():
    code = "import sys, dd2424fast.kernels; sys.exit('numba' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_processes_that_compile_at_once_leave_what_a_third_finds(tmp_path):
    both = [start(tmp_path, "float32"), start(tmp_path, "float64")]
    assert [answer(process)[0] for process in both] == ["0 found, 1 compiled"] * 2
    assert answer(start(tmp_path, "float32", "float64"))[0] == "2 found, 0 compiled"


def test_without_a_folder_to_write_to_it_compiles_and_says_so_once(tmp_path):
    (tmp_path / "file").touch()
    out, err = answer(start(tmp_path / "file", "float32", "float64"))
    assert out == "0 found, 2 compiled"
    assert err.count("RuntimeWarning: compiled kernels cannot be kept") == 1


def test_without_jit_it_runs_as_python(tmp_path):
    assert answer(start(tmp_path, "float32", NUMBA_DISABLE_JIT="1"))[0] == "0 found, 0 compiled"
    assert not list(tmp_path.iterdir())


@compiled
def test_the_policy():
    options = jit.kernel_jit(lambda x: x).dispatcher.targetoptions
    assert options["fastmath"] == {"contract", "reassoc", "nsz", "arcp", "afn"}
    assert options["error_model"] == "numpy"
    assert options["nogil"]
    assert not options.get("parallel")


@compiled
def test_nan_and_infinity_are_kept():
    @jit.kernel_jit
    def classes(x, out):
        for i in range(x.size):
            out[i] = 1.0 / x[i] if x[i] == x[i] else -1.0

    x, out = np.array([np.nan, np.inf, 0.0, 2.0]), np.empty(4)
    classes(x, out)
    np.testing.assert_array_equal(out, [-1, 0, np.inf, 0.5])


@compiled
def test_damaged_files_are_compiled_anew(tmp_path, monkeypatch):
    monkeypatch.setattr(jit, "cache_folder", lambda: tmp_path)

    def fresh():
        return jit.kernel_jit(lambda x: x + 1, identity=lambda: "test")

    assert fresh()(1.0) == 2.0
    (file,) = tmp_path.iterdir()
    whole = file.read_bytes()
    for damaged in (b"", whole[:100], b"nonsense"):
        file.write_bytes(damaged)
        kernel = fresh()
        assert kernel(1.0) == 2.0
        assert sum(kernel.dispatcher.stats.cache_misses.values()) == 1
        assert len(list(tmp_path.iterdir())) == 1


@compiled
def test_nothing_is_kept_that_could_go_out_of_date(tmp_path, monkeypatch):
    monkeypatch.setattr(jit, "cache_folder", lambda: tmp_path)
    assert jit.kernel_jit(lambda x: x + 1)(1.0) == 2.0
    assert jit.kernel_jit(lambda x: x + 2, identity=lambda: None)(1.0) == 3.0
    local = lambda x: x + 3  # noqa: E731
    local.__module__ = jit.__name__
    assert jit.kernel_jit(local)(1.0) == 4.0
    assert not list(tmp_path.iterdir())


def test_an_edit_of_any_kernel_source_makes_another_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(jit, "__file__", str(tmp_path / "jit.py"))
    seen = set()
    for name, text, version in [("a", "x", "1"), ("b", "", "1"), ("b", "y", "1"), ("a", "xb", "1"), ("a", "xb", "2")]:
        (tmp_path / f"{name}.py").write_text(text)
        seen.add(jit._sources_digest.__wrapped__(version))
    assert len(seen) == 5


@compiled
def test_other_functions_keep_numbas_own_cache():
    before = numba.config.CACHE_DIR
    jit.kernel_jit(lambda x: x)(1.0)
    assert numba.config.CACHE_DIR == before
    assert not isinstance(numba.njit(lambda x: x)._cache, jit._Cache)


@compiled
def test_code_from_a_module_that_is_gone_is_compiled_anew(tmp_path, monkeypatch):
    """Two modules with one function between them share an entry, and it names the module that compiled it."""
    monkeypatch.setattr(jit, "cache_folder", lambda: tmp_path)

    def fresh():
        return jit.kernel_jit(lambda x: x + 1, identity=lambda: "test")

    def gone(content):
        raise ModuleNotFoundError("No module named 'strategies'")

    assert fresh()(1.0) == 2.0
    monkeypatch.setattr(jit.pickle, "loads", gone)
    assert fresh()(1.0) == 2.0
