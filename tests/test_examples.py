"""The examples run, and say what they lack."""

import re
import runpy
import subprocess
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


def test_assignment1(cifar, tmp_path):
    command = [sys.executable, EXAMPLES / "assignment1.py", "--data", cifar, "--epochs", "2", "--output", "a.png"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert [line.split(",")[0] for line in lines[1:-1]] == ["softmax"] * 3 + ["3072-50-10"]
    assert (tmp_path / "a.png").stat().st_size > 0


def test_assignment1_says_that_it_needs_data(tmp_path):
    command = [sys.executable, EXAMPLES / "assignment1.py", "--data", tmp_path]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == "Give --data PATH, or set DD2424FAST_DATA."


# ---- images ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def example(monkeypatch, tmp_path):
    """A function that runs an example with these arguments, in a folder of its own."""

    def run(name, *arguments):
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
        runpy.run_path(str(EXAMPLES / name), run_name="__main__")

    return run


def test_convnet_assignment(cifar, example, capsys, tmp_path):
    with pytest.warns(UserWarning, match="loaded without the missing data_batch_3"):
        example("assignment2_convnet.py", "--data", cifar, "--quick", "--output", "out")
    head, *rows, last = capsys.readouterr().out.splitlines()
    assert last == "plot and networks: out"
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


@pytest.mark.parametrize("name", ["assignment2_convnet", "assignment4_transfer"])
def test_image_assignments_say_that_they_need_data(name, example, tmp_path):
    with pytest.raises(SystemExit) as stop:
        example(f"{name}.py", "--data", tmp_path)
    assert stop.value.code.splitlines()[-1] == "Give --data PATH, or set DD2424FAST_DATA."


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
    lines = printed[printed.index("==== all ====") :].splitlines()[2:-2]
    return {line[:28].strip(): [float(n.replace(",", "")) for n in line[28:].split()] for line in lines}


def test_text_assignment(text_assignment, capsys, tmp_path):
    pytest.importorskip("tokenizers")
    text_assignment("--data", "text.txt", "--quick", "--best", "--units", "char", "bpe", "word", "--output", "plots")
    printed = capsys.readouterr().out
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
