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
        ["convnet", "--channels", "6", "--convs-per-block", 2, "--dropout", 0.1, "--shift", 1, "--optimizer", "adam"],
        ["patchify", *NETWORKS["patchify"], "--schedule", "cyclic", "--step-size", 6, "--growth", 2, "--low-lr", 1e-5],
    ],
)
def test_options_train(options):
    result = run("train", *options, *QUICK, "--epochs", 4, "--json")
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
    assert f"suggestion: {report['suggestion']:g}" in text.stdout
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
