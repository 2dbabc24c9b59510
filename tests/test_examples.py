"""The examples run, and say what they lack."""

import csv
import re
import runpy
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

import dd2424fast as dd

pytestmark = pytest.mark.usefixtures("one_thread")

EXAMPLES = Path(__file__).parents[1] / "examples"
TEXT = "".join(
    f"{i}: the {'quick lazy old new odd'.split()[i * i % 5]} fox and dog no. {i * 7 % 11}\n" for i in range(300)
)


@pytest.fixture(autouse=True)
def beside_each_other(monkeypatch):
    """What a script shares with others is imported from the folder that it is in."""
    monkeypatch.syspath_prepend(EXAMPLES)


# ---- images ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def example(monkeypatch, tmp_path):
    """A function that runs an example with these arguments, in a folder of its own."""

    def run(name, *arguments):
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
        runpy.run_path(str(EXAMPLES / name), run_name="__main__")

    return run


def table_of(printed, width):
    """The last lines but one: names, and what stands beside them."""
    rows = [line for line in printed.splitlines() if line[:width].strip()]
    return {row[:width].strip(): row[width:].replace(",", "").split() for row in rows[:-1] if "%" in row[width + 20 :]}


def csv_of(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def test_softmax_assignment(cifar, example, capsys, tmp_path):
    with pytest.warns(UserWarning, match="loaded without the missing data_batch_3"):
        example("assignment1_softmax.py", "--data", cifar, "--quick", "--output", "out")
    printed = capsys.readouterr().out
    assert printed.splitlines()[-1] == "plots and curves: out"
    rows = table_of(printed, 50)
    assert list(rows)[:4] == [
        "lambda 0, eta 0.1",
        "lambda 0, eta 0.001",
        "lambda 0.1, eta 0.001",
        "lambda 1, eta 0.001",
    ]
    assert len(rows) == 11
    for name, numbers in rows.items():
        for loss, cost in (numbers[:2], numbers[3:5], numbers[6:8]):
            assert loss == cost if name.startswith("lambda 0,") else loss < cost
    assert float(rows["both"][8].rstrip("%")) > 80  # it learns the stripes
    curves = csv_of(tmp_path / "out" / "curves.csv")
    assert {row["name"] for row in curves} == set(rows)
    assert [row["epoch"] for row in curves] == ["0", "1", "2"] * 11
    for row in curves[2::3]:
        assert f"{float(row['train_loss']):.3f}" == rows[row["name"]][0]
        assert f"{float(row['val_accuracy']):.2%}" == rows[row["name"]][5]
    grid = csv_of(tmp_path / "out" / "grid.csv")
    assert [row["val_accuracy"] for row in grid] == sorted((row["val_accuracy"] for row in grid), reverse=True)
    assert f"batch {grid[0]['batch_size']}, eta {grid[0]['eta']}, lambda 0.01 / 10 every 1" in rows
    pictures = [
        f"{name}.png" for name in ("course", "sigmoid", "better", "grid", "grid-best", "probabilities", "templates-4")
    ]
    assert all((tmp_path / "out" / name).stat().st_size > 0 for name in pictures)


def test_the_softmax_assignment_is_the_courses(cifar):
    module = runpy.run_path(str(EXAMPLES / "assignment1_softmax.py"))
    with pytest.warns(UserWarning, match="loaded without the missing data_batch_3"):
        images = module["course"].Images.load(cifar)
    data = images.one_batch()
    x, y = data.train
    np.testing.assert_allclose(x.mean(axis=0), 0, atol=1e-6)
    np.testing.assert_allclose(x.std(axis=0), 1, rtol=1e-5)
    assert len(images.all_batches(held_out=1000).validation[0]) == 24  # a tenth of 240
    plan = module["Plan"]("one step", lam=0.3, eta=0.1, batch_size=len(x), epochs=1)
    rng = np.random.default_rng(4)
    W, b = rng.normal(0, 0.01, (10, 3072)), rng.normal(0, 0.01, (10, 1))
    X, Y, _ = dd.data.to_columns(x, y, classes=10)

    def loss(W, b):
        P = np.exp(W @ X + b)
        P /= P.sum(axis=0)
        return P, -np.log((P * Y).sum(axis=0)).mean()

    result = module["train"](plan, data, seed=4)
    P, before = loss(W, b)
    assert result.curve[0]["train_loss"] == pytest.approx(before, rel=1e-5)
    assert result.curve[0]["train_cost"] == pytest.approx(before + 0.3 * (W**2).sum(), rel=1e-5)
    G = (P - Y) / len(x)
    W, b = W - 0.1 * (G @ X.T + 0.6 * W), b - 0.1 * G.sum(axis=1, keepdims=True)
    assert result.measures["train_cost"] == pytest.approx(loss(W, b)[1] + 0.3 * (W**2).sum(), rel=1e-4)


def test_sigmoids_answer_with_the_likeliest_class(cifar):
    module = runpy.run_path(str(EXAMPLES / "assignment1_softmax.py"))
    with pytest.warns(UserWarning, match="loaded without the missing data_batch_3"):
        data = module["course"].Images.load(cifar).one_batch()
    _, plan = module["sigmoid_plans"](epochs=3)
    result = module["train"](plan, data, seed=0)
    x, y = data.test
    p = 1 / (1 + np.exp(-result.model.predict(x).astype(float)))
    assert 0 < (p.argmax(axis=1) == y).mean() == pytest.approx(result.accuracy("test"))
    losses = -np.where(np.eye(10)[y], np.log(p), np.log(1 - p)).mean()
    assert result.measures["test_loss"] == pytest.approx(losses, rel=1e-5)


def test_mlp_assignment(cifar, example, capsys, tmp_path):
    with pytest.warns(UserWarning, match="loaded without the missing data_batch_3"):
        example("assignment2_mlp.py", "--data", cifar, "--quick", "--output", "out")
    printed = capsys.readouterr().out
    assert printed.splitlines()[-1] == "plots and curves: out"
    rows = table_of(printed, 44)
    assert len(rows) == 23
    updates = {name: int(numbers[1]) for name, numbers in rows.items()}
    assert updates["50, n_s 5, 1 cycle, lambda 0.01"] == 10
    assert updates["50, n_s 8, 3 cycles, lambda 0.01"] == 48
    sizes = {name: int(numbers[0]) for name, numbers in rows.items()}
    assert sizes["50, SGD, 0.01"] == 3072 * 50 + 50 + 50 * 10 + 10
    assert sizes["50 50, batch norm"] - sizes["50 50"] == 4 * 50
    curves = csv_of(tmp_path / "out" / "curves.csv")
    assert {row["name"] for row in curves} == set(rows)
    first = [row for row in curves if row["name"] == "50, n_s 5, 1 cycle, lambda 0.01"]
    assert [row["update"] for row in first] == [str(i) for i in range(11)]
    assert all(float(row["train_cost"]) > float(row["train_loss"]) for row in first)
    assert max(first, key=lambda row: float(row["lr"]))["update"] == "6"  # the sixth was made at the highest rate
    found = csv_of(tmp_path / "out" / "search.csv")
    assert [row["search"] for row in found] == ["coarse"] * 3 + ["fine"] * 3
    chosen = max(found[3:], key=lambda row: float(row["val_accuracy"]))
    assert f"50, n_s 4, 3 cycles, lambda {float(chosen['lambda']):.3g}" in rows
    parts = ("cycles", "search", "depth", "init", "optimizers", "dropout", "large", "lambdas", "confusion")
    assert all((tmp_path / "out" / f"{part}.png").stat().st_size > 0 for part in parts)


def test_the_mlp_assignment_is_the_courses(monkeypatch):
    """Settings of the course: n_s of two epochs, of five; lambdas from 1e-5 to 1e-1, then around the best three."""
    module = runpy.run_path(str(EXAMPLES / "assignment2_mlp.py"))
    once, thrice = module["cycles_plans"](quick=False)
    assert (once.updates, thrice.updates) == (1000, 4800)
    assert [thrice.schedule(u) for u in (0, 800, 1600)] == pytest.approx([1e-5, 1e-1, 1e-5])
    rows = np.zeros((45_000, 1)), np.zeros(45_000, int)
    data = module["course"].Data(rows, rows, rows)
    assert data.updates == 450
    assert [plan.updates for plan in module["depth_plans"](5 * data.updates)] == [9000] * 4
    tried = []

    def train(plan, data, seed, with_curve):
        """As if accuracy fell with the distance of lambda from 1e-3."""
        return module["course"].Result(plan, None, [], {"val_accuracy": -abs(np.log10(plan.lam) + 3)}, 0.0)

    def side_by_side(function, plans):
        tried.append(list(plans))
        return [function(plan) for plan in tried[-1]]

    module["coarse_to_fine"].__globals__["train"] = train
    monkeypatch.setattr(dd, "side_by_side", side_by_side)
    coarse, _ = module["coarse_to_fine"](data, 30, 2, seed=0)
    assert abs(np.log10(coarse[0].plan.lam) + 3) == min(abs(np.log10(plan.lam) + 3) for plan in tried[0])
    assert [{plan.updates for plan in plans} for plans in tried] == [{2 * 1800}, {3 * 1800}]
    exponents = [np.log10([plan.lam for plan in plans]) for plans in tried]
    assert -5 <= exponents[0].min() < -4.5 < -1.5 < exponents[0].max() <= -1
    best = [np.log10(r.plan.lam) for r in coarse[:3]]
    assert min(best) - 0.1 <= exponents[1].min()
    assert exponents[1].max() <= max(best) + 0.1


def test_first_weights_of_a_deviation():
    module = runpy.run_path(str(EXAMPLES / "assignment2_mlp.py"))
    for sigma in (1e-1, 1e-4):
        plan = module["Plan"]("", 1, None, hidden=(50, 50), batch_norm=True, sigma=sigma)
        net = dd.data.course_parameters(module["network"](plan, seed=0))
        assert [W.std() for W in net["W"]] == pytest.approx([sigma] * 3, rel=0.1)
        assert not any(b.any() for b in net["b"])


def test_convnet_assignment(cifar, example, capsys, tmp_path):
    with pytest.warns(UserWarning, match="loaded without the missing data_batch_3"):
        example("assignment2_convnet.py", "--data", cifar, "--quick", "--output", "out")
    head, *rows, quick, last = capsys.readouterr().out.splitlines()
    assert last == "plot and networks: out"
    assert quick.endswith("the accuracies mean nothing")
    assert head.split() == "parameters updates validation test mirrored ensemble time an update".split()
    names = [f"patches of {patch}" for patch in (2, 4, 8, 16, 4)] + ["3 x 3: 2 4", "3 x 3: 4 8 16"]
    assert [row.split(",")[0] for row in rows] == names
    assert [row[38:].split()[1] for row in rows] == ["10"] * 4 + ["30"] + ["10"] * 2
    assert [row[38:].split()[5] == "-" for row in rows] == [False] * 5 + [True] * 2  # those without cycles
    assert (tmp_path / "out" / "curves.png").stat().st_size > 0
    sizes = [dd.nn.Module.load(tmp_path / "out" / f"{i}.safetensors").parameters.size for i in range(1, 8)]
    assert [f"{size:,}" for size in sizes] == [row[38:].split()[0] for row in rows]


def test_the_large_network_is_trained_for_five_doubling_cycles():
    plans = runpy.run_path(str(EXAMPLES / "assignment2_convnet.py"))["plans"]
    (plan,) = plans(["large"], quick=False)
    assert plan.updates == 49_600
    assert [u for u in range(plan.updates) if plan.schedule.ends_cycle(u)] == [1599, 4799, 11199, 23999, 49599]


def test_transfer_assignment(cifar, example, capsys, tmp_path):
    printed = []
    for more in (["--output", "out"], ["--source", "out/source.safetensors"]):
        with pytest.warns(UserWarning, match="loaded without the missing data_batch_3"):
            example("assignment4_transfer.py", "--data", cifar, "--quick", *more)
        printed.append(capsys.readouterr().out)
    first, again = printed
    assert "seven classes, 168 images, 1 epochs: test accuracy " in first
    assert "seven classes" not in again
    for text in printed:
        lines = text.splitlines()
        assert lines[-3].endswith("the accuracies mean nothing")
        start = lines.index("dog, horse, truck from 4 images each, 2 draws") + 3
        assert [line[:18].strip() for line in lines[start : start + 3]] == [
            "from scratch",
            "frozen features",
            "fine-tuned",
        ]
    accuracies = [re.findall(r"[\d.]+% \+- [\d.]+%", text) for text in printed]
    assert len(accuracies[0]) == 3
    assert accuracies[0] == accuracies[1]  # what was saved is what was trained
    for name in ("curves.png", "source.safetensors", "features-0.safetensors", "features-test.safetensors"):
        assert (tmp_path / "out" / name).stat().st_size > 0


@pytest.mark.parametrize(("name", "part"), [("assignment1_softmax", "course"), ("assignment2_mlp", "cycles")])
def test_a_quick_run_says_that_its_accuracies_mean_nothing(name, part, cifar, example, capsys, tmp_path):
    """In the folder of the script's name, where none is given."""
    with pytest.warns(UserWarning, match="loaded without the missing data_batch_3"):
        example(f"{name}.py", "--data", cifar, "--quick", "--parts", part)
    *_, quick, last = capsys.readouterr().out.splitlines()
    assert quick.startswith("--quick: ")
    assert quick.endswith("the accuracies mean nothing")
    assert last == f"plots and curves: {name}"
    assert (tmp_path / name / f"{part}.png").stat().st_size > 0


@pytest.mark.parametrize(
    "name", ["assignment1_softmax", "assignment2_mlp", "assignment2_convnet", "assignment4_transfer"]
)
def test_what_is_missing_is_said_for_the_shell(name, cifar, example, tmp_path):
    with pytest.raises(SystemExit) as stop:
        example(f"{name}.py", "--data", tmp_path)
    assert stop.value.code.splitlines() == [
        f"{name}: no CIFAR-10 files at {tmp_path}",
        "To fetch them (170 MB): curl -O https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz",
        "Give --data PATH, or set DD2424FAST_DATA.",
    ]
    shutil.copy(cifar / "data_batch_1", tmp_path)
    with pytest.raises(SystemExit) as stop:
        example(f"{name}.py", "--data", tmp_path)
    first, *_ = stop.value.code.splitlines()
    assert first == f"{name}: {tmp_path}: no test_batch, the one file of test images; put it beside data_batch_1"


def test_draws_and_intervals():
    module = runpy.run_path(str(EXAMPLES / "assignment4_transfer.py"))
    data = np.arange(60, dtype=np.uint8).reshape(30, 2, 1, 1), np.arange(30) % 10
    x, y = module["of_classes"](data, ("dog", "truck"))
    np.testing.assert_array_equal(y, [0, 1] * 3)
    np.testing.assert_array_equal(x[:, 0, 0, 0], [10, 18, 30, 38, 50, 58])
    few, labels = module["drawn"]((x, y), 2, seed=0)
    np.testing.assert_array_equal(labels, [0, 0, 1, 1])
    assert len(np.unique(few[:, 0])) == 4
    mean, half = module["interval"]([0.5, 0.6, 0.7])
    assert (mean, half) == (pytest.approx(0.6), pytest.approx(4.302653 * 0.1 / 3**0.5))  # t(0.975, 2) = 4.302653


@pytest.mark.parametrize("name", ["assignment2_convnet", "assignment3_text", "assignment4_transfer"])
def test_the_folder_is_called_as_the_script(name, example, capsys):
    with pytest.raises(SystemExit):
        example(f"{name}.py", "--help")
    assert f"({name})" in capsys.readouterr().out


# ---- text ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def text_assignment(monkeypatch, tmp_path):
    """A function that runs the example on a small text, or on the arguments that are given."""

    def run(*arguments):
        (tmp_path / "text.txt").write_text(TEXT)
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", ["assignment3_text.py", *arguments])
        runpy.run_path(str(EXAMPLES / "assignment3_text.py"), run_name="__main__")

    return run


def rows_of(printed):
    """The table's lines: name and numbers."""
    lines = printed[printed.index("==== all ====") :].splitlines()[2:-4]
    return {line[:28].strip(): [float(n.replace(",", "")) for n in line[28:].split()] for line in lines}


def test_text_assignment(text_assignment, capsys, tmp_path):
    pytest.importorskip("tokenizers")
    text_assignment("--data", "text.txt", "--quick", "--best", "--units", "char", "bpe", "word", "--output", "plots")
    printed = capsys.readouterr().out
    assert printed.splitlines()[-3].endswith("the losses and the texts mean nothing")
    rows = rows_of(printed)
    cells = ("LSTM 16", "GRU 16", "LSTM 16 + 16", "GRU 16 + 16")
    batched = [f"{cell}, {unit}" for unit in ("characters", "byte pairs", "words") for cell in cells]
    assert list(rows) == ["RNN 16, Adam", "RNN 16, AdaGrad", *batched, "LSTM 24, characters"]
    for name, (parameters, updates, _, rate, loss, perplexity, bits, _) in rows.items():
        assert parameters > 0
        assert updates == 200 or "16," not in name or "RNN" not in name
        assert rate > 0
        assert perplexity == pytest.approx(2.718281828**loss, rel=0.02)
        if "words" not in name and "byte" not in name:
            assert bits == pytest.approx(loss / 0.693147, abs=0.002)
    assert rows["RNN 16, Adam"][4] < 2.6  # it learns
    samples = re.findall(r"---- (.+) ----\n", printed)
    assert samples[:4] == [
        f"RNN 16, Adam, {when}" for when in ("before training", "update 100", "update 200", "its best model")
    ]
    assert [s for s in samples if "temperature" in s] == [
        f"temperature {t}" for t in (0.2, 0.4, 0.6, 0.8, 1.0, 1.2, 1.4)
    ]
    assert len([s for s in samples if "top_p" in s]) == 5
    for name in ("losses", "gradient_flow", "temperatures"):
        assert (tmp_path / "plots" / f"{name}.png").stat().st_size > 0


def test_text_assignment_without_tokenizers(text_assignment, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    text_assignment("--data", "text.txt", "--quick", "--chunk", "70")
    captured = capsys.readouterr()
    message = "assignment3_text: byte pairs are left out. BPE needs the package tokenizers: pip install tokenizers"
    assert message in captured.err.splitlines()
    assert not any("byte pairs" in name for name in rows_of(captured.out))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["--data", "absent.txt"], "--data: "), (["--epochs", "0"], None), (["--units", "letters"], None)],
)
def test_text_assignment_says_what_is_wrong(arguments, message, text_assignment):
    with pytest.raises(SystemExit) as stop:
        text_assignment(*arguments)
    assert stop.value.code == 2 if message is None else message in stop.value.code
