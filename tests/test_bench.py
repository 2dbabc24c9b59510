"""The benchmark's own arithmetic and its processes."""

import json
import math

import pytest

from dd2424fast import bench
from dd2424fast.bench import cases, runner, workloads
from dd2424fast.bench.report import Report
from dd2424fast.bench.worker import Worker


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
    markdown = report.to_markdown()
    assert "| update | dd2424fast | NumPy twin |" in markdown
    rows = [line for line in markdown.splitlines() if line.startswith("|")]
    assert len({line.count("|") for line in rows}) == 1


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
    good = {"losses": [2.0, 1.0]}
    answers = {"course": good, "fast": {"losses": [2.0, 1.0 + 1e-6]}, "torch": {"losses": [2.0, 1.001]}}
    answers |= {"jax": {"missing": "jax"}, "numpy": {"losses": [2.0, math.nan]}, "numpy32": {"error": "it broke"}}
    results = runner.disagreements(answers)
    assert results["course"] == results["fast"] == {}
    assert "loss 1 is 1.001, expected 1" in results["torch"]["error"]
    assert "loss 1 is nan" in results["numpy"]["error"]
    assert results["jax"] == {"missing": "jax"}
    assert results["numpy32"] == {"error": "it broke"}
    without = runner.disagreements({**answers, "course": {"error": "it broke"}})
    assert "not compared" in without["fast"]["error"]


def test_workload_builders_agree_and_count():
    """Losses of the libraries that need nothing but NumPy; the counts of the table in benchmarks/README.md."""
    known = workloads.workloads()
    assert [round(known[name].gflop, 3) for name in ("linear", "mlp", "mlp_bn")] == [0.012, 0.062, 0.063]
    for workload in known.values():
        losses = {}
        for library in ("course", "numpy32"):
            step = workload.builders[library](1)
            losses[library] = [step() for _ in range(5)]
        assert losses["numpy32"] == pytest.approx(losses["course"], rel=runner.TOLERANCE)


def test_duplicate_workload():
    with pytest.raises(ValueError, match="'mlp' is registered already"):
        workloads.register(workloads.workloads()["mlp"])


def test_worker_protocol():
    with runner.WorkerProcess("numpy32", 1) as worker:
        answer = worker.ask({"do": "open", "suite": "training", "name": "linear"}, 60)
        assert len(answer["losses"]) == 5
        assert answer["seconds"] > 0
        assert "numpy" in answer["versions"]
        assert all(t > 0 for t in worker.ask({"do": "time", "seconds": 0.01}, 60)["seconds"])
        assert "KeyError" in worker.ask({"do": "open", "suite": "training", "name": "nothing"}, 60)["error"]
        before = worker.cpu_seconds()
        worker.process.kill()
        assert "code -9" in worker.ask({"do": "time", "seconds": 0.01}, 60)["error"]
    assert before > 0


def test_missing_library():
    """A library that cannot be imported is missing, not an error."""

    def builder(threads):
        raise ModuleNotFoundError("No module named 'torch'", name="torch")

    name = "needs a library that is not there"
    workloads.register(workloads.Workload(name, "", 1, 0.0, 0.0, {"torch": builder}))
    try:
        assert Worker("torch", 1).answer({"do": "open", "suite": "training", "name": name}) == {"missing": "torch"}
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


def test_run(tmp_path, monkeypatch):
    """One workload, in two libraries, from the call to the file."""
    for name, value in (("PATIENCE", 1), ("PAUSE", 0.01), ("PEAK_SECONDS", 0.02)):
        monkeypatch.setattr(runner, name, value)
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
    assert told[0] == (0, 2, "peaks")
    assert told[-1] == (2, 2, "done")
    assert Report.from_json(output.read_text()).table() == report.table()


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
