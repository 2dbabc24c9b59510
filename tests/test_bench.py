"""The benchmark's own arithmetic and its processes."""

import dataclasses
import importlib.util
import itertools
import json
import math
import subprocess
import sys

import pytest
from click.testing import CliRunner

import dd2424fast as dd
from dd2424fast import bench
from dd2424fast.bench import cases, feedforward, generation, images, memory, processes, recurrent, runner, workloads
from dd2424fast.bench.report import Report
from dd2424fast.bench.worker import Worker
from dd2424fast.cli import main


def timed(median):
    return {"median_ms": median, "q1_ms": 0.9 * median, "q3_ms": 1.1 * median, "runs": 9, "rounds_ms": [median]}


@pytest.fixture
def report():
    report = Report(
        {"cpu": "A CPU (R)", "cores": 2, "date": "2030-01-02T03:04:05", "versions": {"numpy": "2"}, "load": "0"}
    )
    report.settings = {"threads": 2, "rounds": 1, "seconds": 1}
    report.peaks = {"2": {"float32": 200.0, "float64": 100.0, "copy": 20.0}}
    libraries = {
        "fast": timed(2.0),
        "numpy": timed(6.0),
        "numpy32": timed(5.0),
        "torch": timed(1.0),
        "jax": {"missing": "jax"},
    }
    libraries["course"] = timed(8.0)
    row = {
        "name": "mlp",
        "model": "",
        "batch": 100,
        "gflop": 0.1,
        "gbytes": 0.002,
        "threads": 2,
        "libraries": libraries,
    }
    report.training.append(row)
    return report


def test_ratios(report):
    r = report.ratios(report.training[0])
    assert (r["peer"], r["against_peer"], r["against_twin"], r["against_reference"]) == ("torch", 0.5, 3.0, 4.0)
    assert r["slower_than"] == ["torch"]
    assert r["gflops"] == pytest.approx(50)  # 0.1 GFLOP in 2 ms
    assert r["gbytes"] == pytest.approx(1)
    assert r["of_bound"] == pytest.approx(0.25)  # 0.1 GFLOP at 200 GFLOP/s are 0.5 ms, the bytes 0.1 ms
    double = report.ratios({**report.training[0], "dtype": "float64"})
    assert (double["of_peak"], double["of_bound"]) == pytest.approx((0.5, 0.5))  # of 100


def test_bound_is_the_longer_one(report):
    row = report.training[0]
    assert report.bound_ms({**row, "gbytes": 0.1}) == pytest.approx(5)
    assert report.bound_ms({**row, "dtype": "float64"}) == pytest.approx(1)
    assert report.bound_ms({**row, "threads": 1}) is None


def test_ratios_without_ours(report):
    report.training[0]["libraries"]["fast"] = {"error": "ImportError: no"}
    r = report.ratios(report.training[0])
    assert r["peer"] == "torch"
    assert all(r[name] is None for name in ("ours_ms", "against_peer", "against_reference", "gflops", "of_bound"))
    assert "ERROR: mlp, dd2424fast: ImportError: no" in report.table()


def test_table_tells_what_is_slower_missing_and_disturbed(report):
    report.training[0]["disturbance"] = {"idle_cpu": 0.5, "others_cpu": 0.0}
    table = report.table()
    assert "0.50x PyTorch SLOWER" in table
    assert "SLOWER: mlp (2 ms) than PyTorch (1 ms)" in table
    assert "not installed" in table
    assert "2 +-10%" in table
    assert "DISTURBED: mlp: a library that should have waited took 50% of a CPU" in table
    assert "try --threads 1" not in table
    report.training[0]["disturbance"] = {"idle_cpu": 0.0, "others_cpu": 0.3}
    assert "DISTURBED: mlp: in a turn other processes took 30% of the CPUs; try --threads 1" in report.table()
    report.training[0]["threads"] = 1
    assert "other processes took 30%" in report.table()
    assert "try --threads 1" not in report.table()
    markdown = report.to_markdown()
    assert "| update | dd2424fast | NumPy twin |" in markdown
    rows = [line for line in markdown.splitlines() if line.startswith("|")]
    assert len({line.count("|") for line in rows}) == 1


def language_row(name, T, ms, beside="", tokens=100, **others):
    libraries = {"fast": timed(ms), **{library: timed(median) for library, median in others.items()}}
    return {
        "name": name, "model": "", "batch": 4, "tokens": tokens, "sizes": {"T": T, "B": 4, "m": 8}, "beside": beside,
        "gflop": 0.02, "gbytes": 0.0, "threads": 2, "libraries": libraries,
    }  # fmt: skip


def test_tokens_and_what_a_row_is_compared_with(report):
    report.ragged = [language_row("ragged", 9, 2.0, "full", 50, torch=16.0), language_row("full", 5, 3.0, jax=1.0)]
    ragged, full = report.ragged
    assert report.per_token(ragged) == {"fast": pytest.approx(4 / 3)}  # PyTorch has no time for the other
    assert report.per_token(full) == {}
    r = report.ratios(ragged)
    assert (r["tokens"], r["seconds_per_token"]) == pytest.approx((25_000, 40e-6))
    assert r["of_peak"] == pytest.approx(0.05)  # 10 of 200 GFLOP/s
    assert "ragged: the time of a token over that in full: dd2424fast 1.33x\n" in report.table() + "\n"
    assert Report.from_json(report.to_json()).ragged == report.ragged
    report.ragged = [ragged]
    assert report.per_token(ragged) == {}


def test_exponents(report):
    assert report.exponents() == {}
    report.scaling = [language_row(f"t{T}", T, 0.3 * T**1.5) for T in (5, 10, 40)]
    for B in (8, 16):
        row = language_row(f"b{B}", 10, 0.3 * 10**1.5 * (B / 4) ** 0.5)
        row["sizes"]["B"] = B
        report.scaling.append(row)
    assert report.exponents() == {"T": pytest.approx(1.5), "B": pytest.approx(0.5)}  # a single m has no slope
    assert report.exponents("torch") == {}
    table = report.table()
    assert "dd2424fast: an update's time grows as T^1.50, B^0.50" in table
    assert "us a token" in table
    assert json.loads(report.to_json())["exponents"]["T"] == pytest.approx(1.5)


def test_memory_section(report):
    held = {"name": "lstm", "model": "", "held_bytes": 15_000_000, "kept_bytes": 12_000_000}
    report.memory = [held, {"name": "gru", "model": "", "error": "ImportError: no"}]
    table = report.table()
    assert ["lstm", "15.00", "12.00", "1.25"] in [line.split() for line in table.splitlines()]
    assert "ERROR: memory of gru: ImportError: no" in table
    assert Report.from_json(report.to_json()).memory == report.memory


def test_json_and_files(report, tmp_path):
    content = json.loads(report.to_json())
    assert content["training"][0]["ratios"]["against_peer"] == 0.5
    assert Report.from_json(report.to_json()).to_json() == report.to_json()
    paths = report.save(tmp_path / "results")
    assert [path.name for path in paths] == [f"2030-01-02-a-cpu-2-threads{suffix}" for suffix in (".json", ".md")]
    with pytest.raises(ValueError, match="format"):
        Report.from_json(json.dumps({**content, "format": 99}))


def test_summary():
    s = runner.summary([[1e-3, 2e-3, 3e-3], [4e-3, 5e-3]])
    assert (s["median_ms"], s["q1_ms"], s["q3_ms"], s["runs"]) == pytest.approx((3, 2, 4, 5))
    assert s["rounds_ms"] == pytest.approx([2, 4.5])
    assert runner.summary([[1e-3]])["median_ms"] == pytest.approx(1)


def test_disagreement_is_an_error():
    good = {"results": [2.0, 1.0]}
    answers = {"course": good, "fast": {"results": [2.0, 1.0 + 1e-6]}, "torch": {"results": [2.0, 1.001]}}
    answers |= {"jax": {"missing": "jax"}, "numpy": {"results": [2.0, math.nan]}, "numpy32": {"error": "it broke"}}
    results = runner.disagreements(answers)
    assert results["course"] == results["fast"] == {}
    assert "result 1 is 1.001, expected 1" in results["torch"]["error"]
    assert "result 1 is nan" in results["numpy"]["error"]
    assert results["jax"] == {"missing": "jax"}
    assert results["numpy32"] == {"error": "it broke"}
    without = runner.disagreements({**answers, "course": {"error": "it broke"}})
    assert "not compared" in without["fast"]["error"]


def test_counts():
    """Those of the tables in benchmarks/README.md and the README."""
    known = workloads.workloads()
    assert [round(known[name].task.gflop(), 3) for name in ("linear", "mlp", "mlp_bn")] == [0.012, 0.062, 0.063]
    assert [round(known[name].task.gflop(), 1) for name in ("rnn_b256", "lstm2_b256")] == [13.2, 124.0]
    ragged, full = known["ragged"].task, known["ragged_full"].task
    assert ragged.tokens == pytest.approx(full.tokens, rel=0.01)
    assert ragged.gflop() == pytest.approx(full.gflop(), rel=0.01)
    assert {int(lengths.sum()) for _, _, lengths in itertools.islice(ragged.batches(), 8)} == {ragged.tokens}
    scaled = workloads.named(["scaling"])
    assert len(scaled) == 11
    assert {workload.kind for workload in scaled} == {"scaling"}


LANGUAGE = [
    recurrent.Language("rnn", 9, 1, 5, None, vocab=11, clip=0.01),
    *(recurrent.Language(cell, 9, 3, 5, 4, layers=2, vocab=11) for cell in ("rnn", "lstm", "gru")),
    *(recurrent.Language(cell, 9, 5, 7, 4, vocab=11, shortest=2, carries=False) for cell in ("rnn", "lstm", "gru")),
    recurrent.Language("lstm", 9, 3, 5, 4, vocab=11, carries=False),
]
NETS = [
    images.Net(((4,),), 6, smoothing=0.1, patch=4, side=8, batch=5),
    images.Net(((4,), (5,)), 6, side=8, batch=5),
    images.Net(((4, 4), (5, 5)), 6, batch_norm=True, side=8, batch=5),
]
SMALL = [
    *((net, images.PEERS) for net in NETS),
    *((images.InUse(net), images.IN_USE) for net in NETS),
    *((feedforward.Problem((7, *hidden, 4), norm), feedforward.PEERS) for hidden in ((), (5, 6)) for norm in (0, 1)),
    *((task, {**recurrent.PEERS, "torch_lean": recurrent.torch_padded}) for task in LANGUAGE),
    (generation.Text(20, recurrent.Language("lstm", 9, 1, 1, 4, vocab=11)), generation.PEERS),
]


small = pytest.mark.parametrize(("task", "peers"), SMALL, ids=[str(i) for i in range(len(SMALL))])


def first_results(build, task):
    step = build(task, 1)
    return [step(**task.compared) for _ in range(5)]


@small
@pytest.mark.parametrize("library", ["fast", "numpy", "numpy32", "torch", "torch_lean"])
def test_libraries_compute_the_same(task, peers, library):
    """The first results of every builder on small tasks."""
    builders = workloads.builders(peers)
    if library not in builders:
        pytest.skip("not of this family")
    if library.startswith("torch"):
        pytest.importorskip("torch")
    expected = first_results(builders["course"], task)
    try:
        assert first_results(builders[library], task) == pytest.approx(expected, rel=runner.TOLERANCE)
    finally:
        dd.set_backend("fast")
    assert len(set(expected)) > 1


IN_JAX = """
import json, sys
from dd2424fast.bench import feedforward, generation, images, recurrent
from dd2424fast.bench.feedforward import Problem
from dd2424fast.bench.generation import Text
from dd2424fast.bench.images import InUse, Net
from dd2424fast.bench.recurrent import Language

builders = {
    Problem: feedforward.jax, Language: recurrent.jax, Text: generation.jax, Net: images.jax, InUse: images.jax_in_use
}
for line in sys.stdin:
    task = eval(line)
    step = builders[type(task)](task, 1)
    print(json.dumps([step(**task.compared) for _ in range(5)]))
"""


@pytest.fixture(scope="module")
def jax_results():
    """From the text of each small task to its results, found in a process of their own: after a test that has started
    JAX's threads no other may fork."""
    if importlib.util.find_spec("jax") is None:
        pytest.skip("jax is not installed")
    texts = [repr(task) for task, _ in SMALL]
    done = subprocess.run(
        [sys.executable, "-c", IN_JAX],
        input="\n".join(texts), env=processes.worker_environment(1), capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return dict(zip(texts, map(json.loads, done.stdout.splitlines()), strict=True))


@small
def test_jax_computes_the_same(task, peers, jax_results):
    assert jax_results[repr(task)] == pytest.approx(first_results(peers["course"], task), rel=runner.TOLERANCE)


def test_texts_are_drawn():
    """From the same token another text is written at temperature 1."""
    task = generation.Text(20, recurrent.Language("lstm", 9, 1, 1, 4, vocab=11))
    builders = workloads.builders(generation.PEERS)
    for library in ("fast", "course", "numpy32"):
        step = builders[library](task, 1)
        texts = [step() for _ in range(12)]  # beginning with the 11 tokens, and the first one again
        assert texts[11] != texts[0]


def test_worker_protocol():
    with runner.WorkerProcess("numpy32", 1) as worker:
        answer = worker.ask({"do": "open", "suite": "workloads", "name": "linear"}, 60)
        assert len(answer["results"]) == 5
        assert answer["seconds"] > 0
        assert "numpy" in answer["versions"]
        assert all(t > 0 for t in worker.ask({"do": "time", "seconds": 0.01}, 60)["seconds"])
        assert "KeyError" in worker.ask({"do": "open", "suite": "workloads", "name": "nothing"}, 60)["error"]
        before = worker.cpu_seconds()
        worker.process.kill()
        assert "code -9" in worker.ask({"do": "time", "seconds": 0.01}, 60)["error"]
    assert before > 0


def test_missing_library():
    """A library that cannot be imported is missing, not an error."""

    def builder(task, threads):
        raise ModuleNotFoundError("No module named 'torch'", name="torch")

    name = "needs a library that is not there"
    workloads.register(name, "", workloads.Task(), {"torch": builder})
    try:
        assert Worker("torch", 1).answer({"do": "open", "suite": "workloads", "name": name}) == {"missing": "torch"}
    finally:
        del workloads.workloads()[name]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"workloads": ["nothing"]}, "workloads: .*'nothing'"),
        ({"libraries": ["tensorflow"]}, "libraries: .*'tensorflow'"),
        ({"threads": 0}, "threads"),
        ({"rounds": 0}, "rounds"),
        ({"seconds": 0.0}, "seconds"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        bench.run(**arguments)


def quicken(monkeypatch):
    monkeypatch.setattr(processes, "PAUSE", 0.01)
    for name, value in (("PATIENCE", 1), ("PEAK_SECONDS", 0.02)):
        monkeypatch.setattr(runner, name, value)


def test_run(tmp_path, monkeypatch):
    """One workload, in two libraries, from the call to the file."""
    quicken(monkeypatch)
    told = []
    output = tmp_path / "report.json"
    report = bench.run(
        ["linear"],
        ["fast", "numpy32"],
        threads=1,
        rounds=2,
        seconds=0.02,
        output=output,
        progress=lambda *what: told.append(what),
    )
    libraries = report.training[0]["libraries"]
    assert set(libraries) == {"fast", "numpy32"}
    assert all(result.get("runs", 0) > 0 for result in libraries.values()), libraries
    assert report.peaks["1"]["float32"] > 0
    assert report.ratios(report.training[0])["of_bound"] > 0
    assert report.training[0]["dtype"] == "float32"
    assert {workloads.workloads()[f"fit_images_{dtype}"].task.dtype for dtype in ("float32", "float64")} == {
        "float32",
        "float64",
    }
    assert told[0] == (0, 2, "peaks")
    assert told[-1] == (2, 2, "done")
    assert Report.from_json(output.read_text()).table() == report.table()


def test_run_kinds(monkeypatch):
    """Workloads of a kind that take turns, and memory, in their processes, on small models."""
    quicken(monkeypatch)
    known = workloads.workloads()
    monkeypatch.setattr(runner, "measure_peaks", lambda threads, report: None)
    monkeypatch.setattr(runner, "named", lambda names: [known["lstm_t50_b16_m256"], known["lstm_t50_b64_m64"]])
    monkeypatch.setattr(memory, "NAMES", ("lstm_b64",))
    report = bench.run(["scaling", "memory"], threads=1, rounds=1, seconds=0.01)
    assert [row["name"] for row in report.scaling] == ["lstm_t50_b16_m256", "lstm_t50_b64_m64"]
    for row in report.scaling:
        assert set(row["libraries"]) == {"fast"}
        assert row["libraries"]["fast"]["median_ms"] > 0, row
    (row,) = report.memory
    task = known["lstm_b64"].task
    assert row["kept_bytes"] == 4 * 64 * 50 * (7 * 256 + 80) == memory.kept_bytes(task)
    assert row["held_bytes"] > row["kept_bytes"]


def test_named_and_groups():
    assert [workload.name for workload in workloads.named(["ragged"])] == ["ragged", "ragged_full"]
    assert [workload.name for workload in workloads.named(["gru_b64", "generation"])] == ["gru_b64", "generation"]
    groups = runner._groups(workloads.named(["mlp", "ragged", "lstm_b1"]))
    assert [[workload.name for workload in group] for group in groups] == [
        ["mlp"],
        ["lstm_b1"],
        ["ragged", "ragged_full"],
    ]


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        ([], None),
        (["mlp", "ragged"], ["mlp", "ragged"]),
        (["scaling", "--workloads", "mlp, gru_b64"], ["scaling", "mlp", "gru_b64"]),
        (["all"], [*workloads.KINDS, *runner.OTHERS]),
    ],
)
def test_command_line_names(arguments, names, report, monkeypatch, tmp_path):
    asked = []
    monkeypatch.setattr(bench, "run", lambda names, libraries, **others: asked.append(names) or report)
    result = CliRunner().invoke(main, ["bench", *arguments, "--output", str(tmp_path)])
    assert result.exit_code == 0, result.output
    assert asked[0] is names or sorted(asked[0]) == sorted(names)
    assert "against the fastest peer" in result.stdout


def test_memory_counts_what_is_held():
    """More rows, more memory, by at least what they must keep; model and optimizer do not count."""
    one = recurrent.Language("gru", 64, 16, 10, 8, vocab=11)  # large enough that Python's own objects hardly count
    two = dataclasses.replace(one, time=40)
    a, b = memory.measure(one), memory.measure(two)
    assert b["kept_bytes"] == 4 * a["kept_bytes"] == 4 * 16 * 40 * (9 * 64 + 11)
    assert b["held_bytes"] - a["held_bytes"] >= b["kept_bytes"] - a["kept_bytes"]
    assert a["held_bytes"] < 2 * a["kept_bytes"] + 4 * one.parameters()


def test_every_kernel_has_a_case():
    import dd2424fast as dd

    registered = {name for name, value in vars(dd.kernels).items() if isinstance(value, dd.kernels.Kernel)}
    assert registered == {case.kernel for case in cases.cases().values()}


@pytest.mark.parametrize("case", [c for c in cases.cases().values() if math.prod(c.size) < 1e6], ids=lambda c: c.name)
def test_case_runs(case):
    assert callable(case.start("fast", 1))
    gflop, gbytes = case.work()
    assert gflop >= 0
    assert gbytes >= 0


def test_disagreeing_case_is_an_error(monkeypatch):
    case = cases.cases()["matmul-float64-100x3072x50"]
    monkeypatch.setitem(cases.peers.BLAS, "matmul", lambda a, b, out: lambda: a @ b + 1e-3)
    with pytest.raises(ArithmeticError, match="differs from the twin"):
        case.start("blas", 1)
