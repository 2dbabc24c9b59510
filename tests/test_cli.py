"""The command line: what it prints, writes, and exits with."""

import json
import os
import signal
import subprocess
import sys

import numpy as np
import pytest
from command_line import run, wait_for

import dd2424fast as dd
from dd2424fast.cli import main

COMMANDS = ("demo", "train", "generate", "evaluate", "gradcheck", "bench", "profile", "info")


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder with a model trained on the digits, and what the command printed."""
    folder = tmp_path_factory.mktemp("trained")
    files = ["--output", folder / "m.safetensors", "--csv", folder / "m.csv", "--plot", folder / "m.png"]
    result = run("train", "mlp", "--epochs", 5, "--batch-norm", "--validation", 0.1, "--seed", 5, "--json", *files)
    assert result.exit_code == 0, result.output
    return folder, result


# ---- help, usage, errors -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*COMMANDS, "train mlp", "train linear", "train lm"])
def test_help_shows_examples_that_parse(name):
    result = run(*name.split(), "--help")
    assert result.exit_code == 0
    examples = [
        line.split("  (")[0].split() for line in result.stdout.splitlines() if line.startswith("    dd2424fast ")
    ]
    assert any(" ".join(example[1:]).startswith(name) for example in examples)
    for example in examples:
        command = main.commands[example[1]]
        if hasattr(command, "commands"):
            command = command.commands[example[2]]
        known = {option for parameter in command.params for option in parameter.opts}
        assert {word for word in example if word.startswith("--")} <= known


def test_help_lists_all_commands_without_numpy():
    code = "import sys; import dd2424fast.cli; sys.exit('numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
    lines = run("--help").stdout.splitlines()
    listed = [line.split()[0] for line in lines[lines.index("Commands:") + 1 :] if line.startswith("  ")]
    assert listed[: len(COMMANDS)] == list(COMMANDS)


def test_version():
    assert run("--version").stdout == f"dd2424fast {dd.__version__}\n"


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["nonsense"], "No such command"),
        (["train"], "Usage: "),
        (["train", "cnn"], "No such command 'cnn'"),
        (["train", "mlp", "--epochs", "0"], "--epochs"),
        (["train", "mlp", "--hidden", "5,x"], "separated by commas"),
        (["train", "mlp", "--batches", "6"], "from 1 to 5"),
        (["train", "linear", "--hidden", "5"], "No such option '--hidden'"),
        (["train", "mlp", "--optimizer", "adam", "--momentum", "0.5"], "--momentum has no effect with adam"),
        (["train", "mlp", "--low-lr", "0.1"], "--low-lr has no effect with constant"),
        (["train", "mlp", "--schedule", "cyclic"], "needs --step-size"),
        (["train", "mlp", "--patience", "3"], "needs --validation"),
        (["train", "mlp", "--resume"], "needs --checkpoint"),
        (["train", "mlp", "--output", "missing/m.safetensors"], "the folder missing does not exist"),
        (["train", "mlp", "--plot", "m.nonsense"], "should end with one of"),
        (["evaluate", "missing.safetensors"], "does not exist"),
        (["info", "--threads", "0"], "--threads"),
    ],
)
def test_wrong_usage_exits_2_before_any_work(args, message):
    result = run(*args)
    assert result.exit_code == 2
    assert message in result.stderr
    assert result.stdout == ""


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (
            ["train", "mlp", "--data", "no/such/folder"],
            "--data: no CIFAR-10 files at no/such/folder; to fetch them (170",
        ),
        (
            ["train", "mlp", "--data", "."],
            "curl -O https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz, then --dat",
        ),
        (["train", "mlp", "--batches", "1"], "only CIFAR-10 comes in batches"),
        (["train", "linear", "--lr", "1e38"], "it was not applied"),
        (["train", "mlp", "--checkpoint", "missing.safetensors", "--resume"], "there is no file missing.safetensors"),
        (["bench", "--workloads", "nonsense"], "nonsense"),
    ],
)
def test_failure_is_one_line_and_exit_1(args, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = run(*args)
    assert result.exit_code == 1
    assert message in result.stderr.splitlines()[-1]
    assert "Traceback" not in result.stderr
    assert result.stdout == ""


def test_a_diverged_training_is_explained_unless_quiet(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    loud, quiet = run("train", "linear", "--lr", "1e38"), run("train", "linear", "--lr", "1e38", "--quiet")
    assert "\n- Lower the learning rate, 1e+38" in loud.stderr
    assert len(quiet.stderr.splitlines()) == 1
    assert "it was not applied" in quiet.stderr


def test_debug_shows_the_traceback():
    result = run("train", "mlp", "--data", "no/such/folder", "--debug")
    assert isinstance(result.exception, FileNotFoundError)


# ---- train and evaluate --------------------------------------------------------------------------------------------


def test_train_prints_json_alone_and_writes_its_files(trained):
    folder, result = trained
    report = json.loads(result.stdout)
    assert report["epochs"] == 5
    assert report["updates"] == 5 * 13  # 1293 images remain for training
    assert report["test"]["accuracy"] > 0.85
    assert {"loss", "accuracy", "val_loss", "val_accuracy"} <= report["last_epoch"].keys()
    assert len((folder / "m.csv").read_text().splitlines()) == 6
    assert (folder / "m.png").stat().st_size > 0
    assert "epoch 5/5" in result.stderr


def test_evaluate_repeats_what_train_found(trained):
    folder, result = trained
    evaluated = run("evaluate", folder / "m.safetensors", "--json")
    assert evaluated.exit_code == 0, evaluated.output
    report, expected = json.loads(evaluated.stdout), json.loads(result.stdout)["test"]
    assert report["accuracy"] == expected["accuracy"]
    assert report["loss"] == pytest.approx(expected["loss"], rel=1e-6)
    confusion = np.array(report["confusion"])
    np.testing.assert_array_equal(confusion.sum(axis=1), np.bincount(dd.data.load_digits()[1][1]))
    assert confusion.trace() / 360 == report["accuracy"]
    assert report["accuracy_per_class"]["3"] == confusion[3, 3] / confusion[3].sum()


def test_the_normalisation_is_of_the_training_images_alone(trained):
    from safetensors.numpy import load_file

    folder, _ = trained
    (x, y), _ = dd.data.load_digits(seed=0)
    (kept, _), _ = dd.data.train_validation_split(x.reshape(len(x), -1), y, validation=0.1, seed=5)
    np.testing.assert_allclose(load_file(folder / "m.standardizer.safetensors")["mean"], kept.mean(axis=0), rtol=1e-12)


def test_all_files_are_named_and_read_in_python(trained, tmp_path):
    folder, result = trained
    files = json.loads(result.stdout)["files"]
    assert set(files.values()) == {str(path) for path in folder.iterdir()}
    model, scale = dd.nn.Module.load(files["output"]), dd.data.Standardizer.load(files["standardizer"])
    _, (x, y) = dd.data.load_digits()
    accuracy = (model.predict(scale.transform(x.reshape(len(x), -1))).argmax(axis=1) == y).mean()
    assert accuracy == json.loads(result.stdout)["test"]["accuracy"]
    output = tmp_path / "m.safetensors"
    last = run("train", "linear", "--epochs", 1, "--quiet", "--output", output).stdout.splitlines()[-2:]
    assert [line.split() for line in last] == [
        ["output", str(output)], ["standardizer", str(tmp_path / "m.standardizer.safetensors")],
    ]  # fmt: skip


def test_evaluate_needs_the_normalisation_and_data_that_fit(trained, tmp_path):
    folder, _ = trained
    (tmp_path / "m.safetensors").write_bytes((folder / "m.safetensors").read_bytes())
    result = run("evaluate", tmp_path / "m.safetensors")
    assert result.exit_code == 1
    assert "m.standardizer.safetensors: there is no such file" in result.stderr
    (tmp_path / "m.standardizer.safetensors").write_bytes(b"nonsense")
    result = run("evaluate", tmp_path / "m.safetensors")
    assert result.exit_code == 1
    assert "not a safetensors file" in result.stderr


def test_evaluate_prints_a_confusion_matrix(trained):
    folder, _ = trained
    lines = run("evaluate", folder / "m.safetensors").stdout.splitlines()
    assert lines[0].startswith("digits, 360 test images: loss ")
    assert len(lines) == 13
    assert all(line.endswith("%") for line in lines[3:])


def test_cifar_and_its_batches(cifar, trained, tmp_path):
    model = tmp_path / "m.safetensors"
    result = run("train", "linear", "--data", cifar, "--batches", "1,2", "--output", model, "--json", "--epochs", 10)
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["updates"] == 20
    assert json.loads(result.stdout)["test"]["accuracy"] == 1.0
    lines = run("evaluate", model, "--data", cifar).stdout.splitlines()
    assert lines[0].startswith("CIFAR-10, 60 test images: loss ")
    assert lines[0].endswith("accuracy 100.00%")
    assert lines[3].split() == ["airplane", "6", *["."] * 9, "100.0%"]
    digits = run("evaluate", trained[0] / "m.safetensors", "--data", cifar)
    assert digits.exit_code == 1
    assert "--data: CIFAR-10 has 3072 numbers an image" in digits.stderr


def test_a_missing_batch_is_said(cifar):
    result = run("train", "linear", "--data", cifar, "--epochs", 1, "--json")
    assert result.exit_code == 0, result.output
    assert "dd2424fast: " in result.stderr
    assert "loaded without the missing data_batch_3" in result.stderr
    assert json.loads(result.stdout)["updates"] == 3


@pytest.mark.parametrize(
    "options",
    [
        ["linear", "--optimizer", "adam", "--schedule", "cosine"],
        [
            "mlp",
            "--hidden",
            "9,8",
            "--dropout",
            "0.2",
            "--optimizer",
            "rmsprop",
            "--label-smoothing",
            "0.1",
            "--clip-norm",
            "1",
        ],
        ["mlp", "--schedule", "cyclic", "--step-size", "15", "--low-lr", "1e-5", "--lr", "0.1", "--momentum", "0"],
        ["mlp", "--schedule", "step", "--step-size", "15", "--factor", "0.5", "--nesterov", "--weight-decay", "0.01"],
        ["mlp", "--validation", "0.2", "--patience", "1", "--lr", "0.5"],
    ],
)
def test_options_train(options):
    result = run("train", *options, "--epochs", 4, "--quiet", "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["test"]["accuracy"] > 0.3


def test_the_schedule_is_what_was_asked_for():
    rates = {"cosine": [], "cyclic": ["--step-size", 30], "step": ["--step-size", 16]}
    for schedule, more in rates.items():
        result = run("train", "linear", "--lr", 0.1, "--epochs", 2, "--schedule", schedule, *more, "--quiet", "--json")
        rates[schedule] = json.loads(result.stdout)["last_epoch"]["lr"]  # of update 29, the last of 30
    assert rates["cosine"] == pytest.approx(dd.schedules.Cosine(0.1, 30)(29))
    assert rates["cyclic"] == pytest.approx(0.1 * 29 / 30)
    assert rates["step"] == pytest.approx(0.01)


def test_seed_decides_the_weights(tmp_path):
    parameters = []
    for i, seed in enumerate((0, 0, 1)):
        path = tmp_path / f"{i}.safetensors"
        assert run("train", "mlp", "--epochs", 1, "--seed", seed, "--output", path, "--quiet").exit_code == 0
        parameters.append(dd.models.MLP.load(path).parameters)
    np.testing.assert_array_equal(parameters[0], parameters[1])
    assert not np.array_equal(parameters[0], parameters[2])


# ---- interrupted, killed, resumed ----------------------------------------------------------------------------------

LONG = "train mlp --dropout 0.2 --optimizer adam --batch-size 10 --validation 0.1 --patience 1000 --threads 1".split()


def test_a_killed_training_resumes_bit_for_bit(start, tmp_path):
    options = [*LONG, "--epochs", 3, "--checkpoint", tmp_path / "c.safetensors", "--checkpoint-every", 30, "--output"]
    process = start(*options, "killed.safetensors", kill_at="update:201")
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert not (tmp_path / "killed.safetensors").exists()
    process = start(*options, "resumed.safetensors", "--resume")
    out, err = process.communicate()
    assert process.returncode == 0, err
    assert "going on from update 180\n" in err

    whole = run(*LONG, "--epochs", 3, "--quiet", "--output", tmp_path / "whole.safetensors")
    resumed, uninterrupted = (
        dd.models.MLP.load(tmp_path / name) for name in ("resumed.safetensors", "whole.safetensors")
    )
    np.testing.assert_array_equal(resumed.parameters, uninterrupted.parameters)
    assert out.splitlines()[1:4] == whole.stdout.splitlines()[1:4]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signals_save_and_exit(number, code, start, tmp_path):
    checkpoint = tmp_path / "c.safetensors"
    options = [*LONG, "--epochs", 100_000, "--seed", 3, "--checkpoint", checkpoint]
    process = start(*options, "--output", "m.safetensors")
    wait_for(checkpoint, process)
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert process.returncode == code, err
    assert out == ""
    assert "Traceback" not in err
    assert "interrupted in epoch" in err
    assert run("evaluate", tmp_path / "m.safetensors").exit_code == 0
    update = int(err.rpartition("after update ")[2].partition(";")[0])
    trainer = dd.Trainer(dd.models.MLP(64, dropout=0.2), dd.optim.Adam())
    trainer.load_checkpoint(checkpoint)
    assert (trainer.update, trainer.seed) == (update, 3)
    np.testing.assert_array_equal(trainer.model.parameters, dd.models.MLP.load(tmp_path / "m.safetensors").parameters)


def test_a_checkpoint_is_not_overwritten_nor_taken_up_by_other_options(tmp_path):
    options = ["train", "linear", "--checkpoint", tmp_path / "c.safetensors", "--quiet"]
    assert run(*options, "--epochs", 2).exit_code == 0
    again = run(*options, "--epochs", 2)
    assert again.exit_code == 2
    assert "add --resume" in again.stderr
    other = run(*options, "--epochs", 2, "--lr", 0.5, "--resume")
    assert other.exit_code == 1
    assert "the checkpoint was made with lr None (now 0.5)" in other.stderr
    longer = run(*options, "--epochs", 3, "--resume", "--json")
    assert longer.exit_code == 0, longer.output
    assert json.loads(longer.stdout)["epochs"] == 3
    assert (
        json.loads(longer.stdout)["test"]
        == json.loads(run("train", "linear", "--epochs", 3, "--quiet", "--json").stdout)["test"]
    )


def test_a_cosine_goes_on_with_as_many_epochs(tmp_path):
    options = ["train", "linear", "--schedule", "cosine", "--checkpoint", tmp_path / "c.safetensors", "--quiet"]
    assert run(*options, "--epochs", 2).exit_code == 0
    longer = run(*options, "--epochs", 3, "--resume")
    assert longer.exit_code == 1
    assert "--resume: expected --epochs 2, as the checkpoint was made with, got --epochs 3: a cosine" in longer.stderr
    assert "Give --epochs 2 to go on, or train anew with another --checkpoint" in longer.stderr
    other = run(*options, "--epochs", 3, "--lr", 0.5, "--resume")
    assert "the checkpoint was made with epochs 2 (now 3), lr None (now 0.5)" in other.stderr
    assert run(*options, "--epochs", 2, "--resume").exit_code == 0


def test_no_progress_bar_in_a_file(start):
    process = start("train", "linear", "--epochs", 2)
    out, err = process.communicate()
    assert process.returncode == 0
    assert "\r" not in out + err
    assert len(err.splitlines()) == 3  # what is trained, and a line an epoch
    assert out.startswith("digits, network 64-10, 650 parameters: 2 epochs, 30 updates, ")


def test_a_closed_pipe_is_no_traceback(tmp_path):
    reader, writer = os.pipe()
    os.close(reader)
    process = subprocess.run(
        [sys.executable, "-m", "dd2424fast.cli", "info"], stdout=writer, stderr=subprocess.PIPE, text=True, check=False
    )
    os.close(writer)
    assert process.returncode == 1
    assert "Traceback" not in process.stderr


# ---- the other commands --------------------------------------------------------------------------------------------


def test_demo(tmp_path, monkeypatch):
    demo = sys.modules["dd2424fast.cli.demo"]
    monkeypatch.setattr(demo, "CIFAR_SECONDS", 0)
    monkeypatch.setattr(demo, "TEXT_UPDATES", 120)
    result = run("demo", "--output", tmp_path / "new" / "folder", "--json")
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert report["largest_difference"]["float64"] < 1e-12
    assert 0 < report["largest_difference"]["float32"] < 1e-3  # 0: the same backend twice
    assert report["test_accuracy"]["fast"] > 0.9
    assert report["loss"]["fast"][-1] < 0.1 * report["loss"]["fast"][0]
    assert os.path.getsize(report["plot"]) > 0
    text = report["text"]
    assert (text["updates"], len(text["loss"])) == (120, 120)
    assert 0 < text["largest_difference"] < 1e-3
    assert text["validation"]["loss"] < 0.8 * text["loss"][0]
    assert text["sample"].startswith(demo.PROMPT)
    assert all(report["seconds"][row][backend] > 0 for row in ("digits", "cifar", "text") for backend in demo.BACKENDS)
    shown = demo._text(report).splitlines()
    assert f"  | {text['sample'].splitlines()[1]}" in shown
    assert [line.split()[0] for line in shown if line.endswith("x")] == ["digits", "CIFAR-10", "text"]


@pytest.mark.parametrize("backend", ["fast", "numpy"])
def test_gradcheck_passes(backend):
    result = run("gradcheck", "--hidden", "5,4", "--batch-norm", "--dropout", 0.3, "--backend", backend, "--json")
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert report["passed"] is True
    assert report["worst_error"] < 1e-5
    assert {"0.weight", "1.weight", "x"} <= report["errors"].keys()


def test_gradcheck_fails_with_exit_1(monkeypatch):
    backward = dd.nn.Linear._backward

    def wrong(self, dy, work, need_dx):
        dx = backward(self, dy, work, need_dx)
        self.dbias *= 1.01
        return dx

    monkeypatch.setattr(dd.nn.Linear, "_backward", wrong)
    result = run("gradcheck", "--hidden", "none")
    assert result.exit_code == 1
    assert "FAILED: worst 0.bias" in result.stdout
    assert "- Layer 0, Linear(in_features=6, out_features=3), checked by itself: the gradient of bias" in result.stdout
    result = run("gradcheck", "--hidden", "none", "--json")
    assert result.exit_code == 1
    assert "the gradient of bias" in json.loads(result.stdout)["explanation"][0]


def test_gradcheck_along_directions():
    result = run("gradcheck", "--features", 300, "--hidden", 200, "--directions", 2, "--json")
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert report["entries"] == 2 * len(report["errors"]) == 10
    assert report["explanation"] == []


@pytest.mark.parametrize("name", ["linear", "mlp", "mlp_bn"])
def test_profile_lists_the_kernels(name):
    result = run("profile", "--model", name, "--updates", 3, "--batch-size", 10, "--json")
    assert result.exit_code == 0, result.output
    calls = {row["kernel"]: row["calls"] for row in json.loads(result.stdout)["kernels"]}
    assert calls["linear_forward"] == 3 * {"linear": 1, "mlp": 2, "mlp_bn": 3}[name]
    assert ("batch_norm_forward" in calls) == (name == "mlp_bn")


def test_info_as_text_and_json():
    facts = json.loads(run("info", "--json").stdout)
    assert facts["build"]["version"] == dd.__version__
    assert facts["packages"]["numpy"] == np.__version__
    text = run("info").stdout
    assert "numba_cache" in text
    assert facts["build"]["compiler"] in text


def test_threads_are_set_for_the_command_alone():
    before = dd.get_num_threads()
    assert json.loads(run("info", "--threads", 7, "--json").stdout)["threads"]["kernels"] == 7
    assert dd.get_num_threads() == before
