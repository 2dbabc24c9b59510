"""The commands that train and test convolutional networks."""

import json
import signal

import numpy as np
import pytest
from command_line import run
from safetensors.numpy import load_file

import dd2424fast as dd

pytestmark = pytest.mark.usefixtures("one_thread")

NETWORKS = {
    "convnet": ["--channels", "8,12", "--hidden", 16, "--batch-norm"],
    "patchify": ["--patch", 2, "--filters", 10, "--hidden", 24],
    "resnet": ["--depth", 8],
}
QUICK = ["--lr", 0.05, "--epochs", 2, "--quiet"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder with a network of each kind, trained on the digits, and what the commands printed."""
    folder, reports = tmp_path_factory.mktemp("trained"), {}
    for kind, options in NETWORKS.items():
        files = ["--output", folder / f"{kind}.safetensors", "--csv", folder / "c.csv", "--plot", folder / "c.png"]
        result = run("train", kind, *options, *QUICK, "--flip-test", "--validation", 0.1, "--seed", 5, "--json", *files)
        assert result.exit_code == 0, result.output
        reports[kind] = json.loads(result.stdout)
    return folder, reports


@pytest.mark.parametrize("kind", NETWORKS)
def test_a_network_is_trained_and_evaluated(kind, trained):
    folder, reports = trained
    report, path = reports[kind], folder / f"{kind}.safetensors"
    assert report["model"] == kind
    assert report["updates"] == 2 * 13
    assert report["test"]["accuracy"] > 0.4
    assert report["files"]["output"] == str(path)
    model = dd.nn.Module.load(path)
    assert model.parameters.size == report["parameters"]
    evaluated = run("evaluate", path, "--flip-test", "--json")
    assert evaluated.exit_code == 0, evaluated.output
    found = json.loads(evaluated.stdout)
    assert found["accuracy"] == report["test"]["accuracy"]
    assert found["loss"] == pytest.approx(report["test"]["loss"], rel=1e-5)
    plain = json.loads(run("evaluate", path, "--json").stdout)
    assert plain["loss"] != found["loss"]


def test_channels_are_normalised_as_measured_on_the_training_images(trained):
    (x, y), _ = dd.data.load_digits(seed=0)
    (kept, _), _ = dd.data.train_validation_split(x, y, validation=0.1, seed=5)
    state = load_file(trained[0] / "convnet.standardizer.safetensors")
    np.testing.assert_allclose(state["mean"], [kept.mean()], rtol=1e-12)
    np.testing.assert_allclose(state["std"], [kept.std()], rtol=1e-12)


def test_cifar(cifar, tmp_path):
    path = tmp_path / "m.safetensors"
    options = ["--data", cifar, "--filters", 8, "--hidden", 16, "--patch", 8, "--batch-size", 20]
    result = run("train", "patchify", *options, "--epochs", 8, "--lr", 0.02, "--output", path, "--quiet", "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["updates"] == 8 * 12
    assert json.loads(result.stdout)["test"]["accuracy"] > 0.5
    assert run("evaluate", path, "--data", cifar).stdout.startswith("CIFAR-10, 60 test images: loss ")


@pytest.mark.parametrize("kind", NETWORKS)
def test_images_of_another_size_or_depth_are_refused(kind, trained, cifar):
    path = trained[0] / f"{kind}.safetensors"
    result = run("evaluate", path, "--data", cifar)
    assert result.exit_code == 1
    assert f"--data: CIFAR-10 does not fit {path}: x: expected shape" in result.stderr


def test_rows_have_no_mirror_image(tmp_path):
    path = tmp_path / "m.safetensors"
    assert run("train", "mlp", "--epochs", 1, "--quiet", "--output", path).exit_code == 0
    result = run("evaluate", path, "--flip-test")
    assert result.exit_code == 1
    assert f"--flip-test: {path} reads images as rows" in result.stderr


# ---- options ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        ["mlp", "--flip", "--shift", 1, "--cutout", 2, "--contrast", 0.2, "--brightness", 0.1, "--noise", 0.1],
        ["patchify", *NETWORKS["patchify"], "--mixup", 0.4, "--label-smoothing", 0.1, "--ema", 0.9],
        ["convnet", "--channels", "6", "--convs-per-block", 2, "--dropout", 0.1, "--lr", 0.01, "--optimizer", "adam"],
        ["patchify", *NETWORKS["patchify"], "--schedule", "cyclic", "--step-size", 6, "--growth", 2, "--low-lr", 1e-5],
    ],
)
def test_options_train(options):
    result = run("train", options[0], *QUICK, "--epochs", 4, "--json", *options[1:])
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["test"]["accuracy"] > 0.3


@pytest.mark.parametrize(
    "option", [["--flip"], ["--shift", 1], ["--cutout", 2], ["--contrast", 0.3], ["--mixup", 1.0], ["--ema", 0.5]]
)
def test_an_option_makes_a_difference(option, tmp_path):
    losses = []
    for more in ([], option):
        result = run("train", "linear", *QUICK, "--epochs", 1, "--json", *more)
        losses.append(json.loads(result.stdout)["test"]["loss"])
    assert losses[0] != losses[1]


def test_cycles_grow():
    options = ["--schedule", "cyclic", "--lr", 0.1, "--step-size", 6, "--growth", 2, "--epochs", 2, "--quiet", "--json"]
    report = json.loads(run("train", "linear", *options).stdout)  # update 29 is 17 into the second cycle, of 24
    assert report["last_epoch"]["lr"] == pytest.approx(dd.schedules.Cyclic(0, 0.1, 6, growth=2)(29))
    assert report["last_epoch"]["lr"] == pytest.approx(0.1 * (24 - 17) / 12)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["convnet", "--growth", 2], "--growth has no effect with constant"),
        (["convnet", "--find-lr", "--output", "m.safetensors"], "--output has no effect with --find-lr"),
        (["mlp", "--find-lr", "--patience", 3], "--patience has no effect with --find-lr"),
        (["mlp", "--flip-test"], "No such option '--flip-test'"),
        (["patchify", "--patch", 0], "--patch"),
        (["convnet", "--channels", "8,0"], "separated by commas"),
        (["convnet", "--mixup", 0], "--mixup"),
        (["resnet", "--depth", 7], "--depth"),
    ],
)
def test_wrong_usage(options, message):
    result = run("train", *options)
    assert result.exit_code == 2
    assert message in result.stderr
    assert result.stdout == ""


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["patchify", "--patch", 3], "patch: expected"),
        (["resnet", "--depth", 9], "depth: expected"),
        (["convnet", "--channels", "4,4,4,4"], "channels: expected"),
        (["patchify", "--patch", 2, "--shift", 9], "shift"),
    ],
)
def test_failure_is_one_line(options, message):
    result = run("train", *options, "--quiet")
    assert result.exit_code == 1
    assert message in result.stderr
    assert len(result.stderr.splitlines()) == 1


# ---- the learning rate's range ---------------------------------------------------------------------------------------


def test_find_lr_suggests_and_draws(tmp_path):
    options = ["train", "patchify", *NETWORKS["patchify"], "--find-lr", "--flip", "--mixup", 0.2]
    result = run(*options, "--plot", tmp_path / "rates.png", "--json")
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert report["rates"][0] == pytest.approx(1e-6)
    assert report["rates"][0] < report["suggestion"] < report["rates"][-1]
    assert len(report["losses"]) == len(report["rates"])
    assert (tmp_path / "rates.png").stat().st_size > 0
    text = run(*options, "--quiet")
    assert f"suggestion: {report['suggestion']:.3g}" in text.stdout
    assert text.stderr == ""


# ---- killed, resumed -------------------------------------------------------------------------------------------------


def test_a_killed_training_resumes_bit_for_bit(start, tmp_path):
    options = ["train", "convnet", *map(str, NETWORKS["convnet"]), "--batch-size", "50", "--mixup", "0.3", "--shift"]
    options += ["1", "--ema", "0.9", "--validation", "0.1", "--epochs", "2", "--threads", "1", "--quiet", "--output"]
    checkpoint = ["--checkpoint", tmp_path / "c.safetensors", "--checkpoint-every", 10]
    process = start(*options, "killed.safetensors", *checkpoint, kill_at="update:37")
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    resumed = run(*options, tmp_path / "resumed.safetensors", *checkpoint, "--resume")
    assert resumed.exit_code == 0, resumed.output
    whole = run(*options, tmp_path / "whole.safetensors")
    a, b = (dd.models.ConvNet.load(tmp_path / f"{name}.safetensors") for name in ("resumed", "whole"))
    np.testing.assert_array_equal(a.parameters, b.parameters)
    np.testing.assert_array_equal(a.buffers, b.buffers)
    assert resumed.stdout.splitlines()[1:4] == whole.stdout.splitlines()[1:4]


def test_a_training_does_not_go_on_with_another_augmentation(tmp_path):
    options = ["train", "linear", "--checkpoint", tmp_path / "c.safetensors", "--quiet", "--epochs", 1]
    assert run(*options, "--flip").exit_code == 0
    other = run(*options, "--flip", "--shift", 1, "--resume")
    assert other.exit_code == 1
    assert "the checkpoint was made with shift None (now 1)" in other.stderr


# ---- the forecast and the time budget --------------------------------------------------------------------------------


def test_estimate_trains_nothing(tmp_path):
    options = ["train", "convnet", "--channels", "4", "--hidden", 8, "--epochs", 3, "--validation", 0.1, "--estimate"]
    result = run(*options, "--flip", "--json", "--quiet")
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert (report["epochs"], report["updates"]) == (3, 3 * 13)
    assert 0 < report["low"] <= report["seconds"] <= report["high"]
    assert report["bytes"] == sum(report["parts"].values()) > 0
    assert report["threads"] == 1
    assert list(report["seconds_an_update"]) == ["1"]  # --threads, and the process's setting, are the most to try
    text = run(*options)
    assert text.stdout.startswith("training  3 epochs, 39 updates\ntime ")
    assert "digits: 1,437 training" in text.stderr


def test_estimate_of_what_is_left(tmp_path):
    options = ["train", "linear", "--checkpoint", tmp_path / "c.safetensors", "--quiet"]
    assert run(*options, "--epochs", 2).exit_code == 0
    before = (tmp_path / "c.safetensors").read_bytes()
    left = run(*options, "--epochs", 5, "--resume", "--estimate", "--json")
    assert left.exit_code == 0, left.output
    assert json.loads(left.stdout)["epochs"] == 3
    assert (tmp_path / "c.safetensors").read_bytes() == before
    other = run(*options, "--epochs", 5, "--resume", "--estimate", "--batch-size", 10)
    assert "the checkpoint was made with batch-size 100 (now 10)" in other.stderr


def test_a_time_budget_ends_training_and_it_goes_on(tmp_path):
    """A budget that nothing fits into still makes one update."""
    options = ["train", "mlp", "--epochs", 2, "--validation", 0.1, "--quiet", "--json"]
    files = ["--checkpoint", tmp_path / "c.safetensors", "--output", tmp_path / "m.safetensors"]
    cut = run(*options, *files, "--time-budget", 1e-9, "--csv", tmp_path / "c.csv")
    assert cut.exit_code == 0, cut.output
    report = json.loads(cut.stdout)
    assert (report["updates"], report["stopped"]) == (1, "time budget")
    assert report["epochs"] == pytest.approx(1 / 13)
    assert len((tmp_path / "c.csv").read_text().splitlines()) == 2
    assert dd.models.MLP.load(tmp_path / "m.safetensors").parameters.size == report["parameters"]
    resumed = json.loads(run(*options, *files, "--resume").stdout)
    whole = json.loads(run(*options).stdout)
    assert resumed["updates"] == whole["updates"] == 2 * 13
    assert resumed["test"] == whole["test"]
    assert resumed["stopped"] is None


def test_the_confusion_of_the_test_is_drawn(tmp_path, monkeypatch):
    drawn, draw = [], dd.plots.confusion_matrix
    monkeypatch.setattr(
        dd.plots, "confusion_matrix", lambda y, p, *a, **k: drawn.append((y, p, k)) or draw(y, p, *a, **k)
    )
    result = run("train", "linear", "--epochs", 2, "--quiet", "--json", "--confusion", tmp_path / "c.png")
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    ((y, p, names),) = drawn
    assert (p.argmax(axis=1) == y).mean() == report["test"]["accuracy"]
    assert names == {"names": tuple("0123456789")}
    assert (tmp_path / "c.png").read_bytes()[:4] == b"\x89PNG"
    assert report["files"] == {"confusion": str(tmp_path / "c.png")}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["mlp", "--time-budget", 0], "--time-budget"),
        (["mlp", "--time-budget", -3], "--time-budget"),
        (["mlp", "--estimate", "--find-lr"], "--estimate has no effect with --find-lr"),
        (["mlp", "--estimate", "--output", "m.safetensors"], "--output has no effect with --estimate"),
        (["mlp", "--estimate", "--time-budget", 3], "--time-budget has no effect with --estimate"),
        (["mlp", "--find-lr", "--time-budget", 3], "--time-budget has no effect with --find-lr"),
        (["mlp", "--find-lr", "--confusion", "c.png"], "--confusion has no effect with --find-lr"),
    ],
)
def test_wrong_usage_of_the_time(options, message):
    result = run("train", *options)
    assert result.exit_code == 2
    assert message in result.stderr


def test_a_budget_that_is_no_number():
    result = run("train", "mlp", "--time-budget", "nan", "--quiet")
    assert result.exit_code == 1
    assert "time_budget: expected a number in (0, inf], got nan" in result.stderr
