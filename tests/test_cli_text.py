"""The command line for texts: train lm, generate, evaluate."""

import csv
import errno
import io
import json
import math
import os
import re
import signal
import sys

import numpy as np
import pytest
from command_line import run, wait_for
from safetensors.numpy import load_file

import dd2424fast as dd
from dd2424fast import files
from dd2424fast.data import Char, TextCorpus, python_topics

pytestmark = pytest.mark.usefixtures("one_thread")

TEXT = "".join(
    f"{i}: the {'quick lazy old new odd'.split()[i * i % 5]} fox and dog no. {i * 7 % 11}\n" for i in range(90)
)
SMALL = ["--cell", "lstm", "--hidden", 8, "--batch-size", 3, "--time", 10, "--threads", 1]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with a text, a model of its characters, and what the command that trained it printed."""
    folder = tmp_path_factory.mktemp("lm")
    (folder / "text.txt").write_text(TEXT, encoding="utf-8")
    files = ["--output", folder / "m.safetensors", "--csv", folder / "m.csv", "--plot", folder / "m.png"]
    result = run("train", "lm", "--text", folder / "text.txt", *SMALL, "--epochs", 4, "--test", 0.2, *files, "--json")
    assert result.exit_code == 0, result.output
    (folder / "printed.json").write_text(result.stdout)
    return folder


def report(*args):
    """What a command prints as JSON."""
    result = run(*args, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def assert_same_model(path, other):
    expected = load_file(other)
    for name, value in load_file(path).items():
        np.testing.assert_array_equal(value, expected[name], err_msg=name)


def rows_of(path):
    return list(csv.DictReader(path.read_text().splitlines()))


def updates_of(checkpoint):
    return files.read(checkpoint, "checkpoint")[1]["trainer"]["update"]


# ---- train, generate, evaluate -------------------------------------------------------------------------------------


def test_train_reports_what_it_did(folder):
    found = json.loads((folder / "printed.json").read_text())
    corpus = TextCorpus(TEXT, time=10, test=0.2)
    assert found["updates"] == 4 * corpus.count("train", 3)
    assert found["tokens"] == {part: len(getattr(corpus, part)) for part in ("train", "validation", "test")}
    assert found["parameters"] == dd.models.LanguageModel(corpus.vocab_size, "lstm", 8).parameters.size
    assert found["tokens_per_second"] > 0
    for part in ("training", "validation", "test"):
        scores = found[part]
        assert 0 < scores["loss"] < math.log(corpus.vocab_size)
        assert scores["perplexity"] == pytest.approx(math.exp(scores["loss"]))
        assert scores["bits_per_character"] == pytest.approx(scores["loss"] / math.log(2))
    rows = rows_of(folder / "m.csv")
    assert [row["epoch"] for row in rows] == ["1", "2", "3", "4"]
    assert float(rows[-1]["val_loss"]) == found["validation"]["loss"]
    assert (folder / "m.png").stat().st_size > 0


def test_the_test_part_is_the_end_of_the_text(folder, tmp_path):
    """By hand: the mean of -log p over the last fifth of the text."""
    model = dd.models.LanguageModel.load(folder / "m.safetensors")
    part = TEXT[round(0.8 * len(TEXT)) :]
    ids = model.tokenizer.encode(part)
    logits = model.predict(ids[None, :-1])[0].astype("float64")
    losses = np.log(np.exp(logits).sum(axis=1)) - logits[np.arange(len(ids) - 1), ids[1:]]
    found = json.loads((folder / "printed.json").read_text())
    assert found["test"]["loss"] == pytest.approx(losses.mean(), rel=1e-5)
    (tmp_path / "end.txt").write_text(part, encoding="utf-8")
    evaluated = report("evaluate", folder / "m.safetensors", "--text", tmp_path / "end.txt")
    assert {name: evaluated[name] for name in found["test"]} == found["test"]
    printed = run("evaluate", folder / "m.safetensors", "--text", tmp_path / "end.txt").stdout
    assert printed.startswith(f"end.txt, {len(part):,} tokens: loss {losses.mean():.4f}  perplexity ")


def test_bits_per_character_count_characters(folder, tmp_path):
    model = tmp_path / "words.safetensors"
    options = ["--text", folder / "text.txt", *SMALL, "--tokenizer", "word", "--epochs", 1, "--output", model]
    found = report("train", "lm", *options, "--validation", 0)
    assert "validation" not in found
    evaluated = report("evaluate", model, "--text", folder / "text.txt")
    tokens = len(dd.models.LanguageModel.load(model).tokenizer.encode(TEXT))
    assert found["tokens"] == {"train": tokens, "validation": 0, "test": 0}
    expected = evaluated["loss"] / math.log(2) * tokens / len(TEXT)  # the first token is not predicted
    assert evaluated["bits_per_character"] == pytest.approx(expected, rel=2 / tokens)
    assert evaluated["bits_per_character"] < 0.6 * evaluated["loss"] / math.log(2)
    fewer = report("train", "lm", *options[:-2], "--vocabulary", 20, "--embedding", 4)
    assert fewer["vocabulary"] == 20
    assert "bits_per_character" not in fewer["training"]  # an unknown word does not tell its characters


def test_byte_pairs(folder, tmp_path):
    pytest.importorskip("tokenizers")
    path = tmp_path / "m.safetensors"
    options = ["--tokenizer", "bpe", "--vocabulary", 270, "--epochs", 1, "--output", path]
    assert report("train", "lm", "--text", folder / "text.txt", *SMALL, *options)["vocabulary"] == 270
    model = dd.models.LanguageModel.load(path)
    expected = dd.generate(model, model.tokenizer, "åäö the", 300, seed=0, stop="x", banned=["\u0120the", "a"])
    found = report(
        "generate", path, "--prompt", "åäö the", "--length", 300, "--stop", "x", "--ban", " the", "--ban", "a"
    )
    assert found["samples"] == [expected]


def test_the_default_text_is_pythons_language_reference():
    text = python_topics()
    assert text == python_topics()
    assert len(text) > 300_000
    assert text.index('The "assert" statement') < text.index('The "while" statement')
    found = report("train", "lm", "--hidden", 4, "--batch-size", 2000, "--updates", 1, "--quiet")
    assert sum(found["tokens"].values()) == len(text)
    assert found["vocabulary"] == len(set(text))


def test_generate_continues_the_prompt(folder):
    model_path = folder / "m.safetensors"
    model = dd.models.LanguageModel.load(model_path)
    options = ["--prompt", "7: the", "--length", 40, "--temperature", 0.7, "--top-k", 9, "--top-p", 0.9, "--seed", 3]
    expected = dd.generate(model, model.tokenizer, "7: the", 40, 0.7, 0.9, 9, 1.3, seed=3)
    found = run("generate", model_path, *options, "--repetition-penalty", 1.3)
    assert found.stdout == f"7: the{expected}\n"
    several = report("generate", model_path, *options, "--repetition-penalty", 1.3, "--samples", 3)
    assert several["prompt"] == "7: the"
    assert several["samples"][0] == expected
    assert len(set(several["samples"])) == 3
    lines = run("generate", model_path, *options, "--samples", 2).stdout
    assert lines.startswith("--- 1 of 2 ---\n7: the")
    assert "\n--- 2 of 2 ---\n7: the" in lines


def test_generate_from_a_file_and_from_nothing(folder, tmp_path):
    model_path = folder / "m.safetensors"
    (tmp_path / "prompt.txt").write_bytes(b"1: the\n2: the\n")
    options = ["--length", 30, "--temperature", 0]
    from_file = report("generate", model_path, "--prompt-file", tmp_path / "prompt.txt", *options)
    assert from_file == report("generate", model_path, "--prompt", "1: the\n2: the\n", *options)
    line = report("generate", model_path, "--prompt", "\n", *options)
    assert report("generate", model_path, *options) == {"prompt": None, "samples": line["samples"]}
    assert run("generate", model_path, *options).stdout == line["samples"][0] + "\n"


def test_stop_and_ban(folder):
    found = report("generate", folder / "m.safetensors", "--length", 3000, "--ban", "e", "--ban", " ", "--samples", 2)
    for text in found["samples"]:
        assert len(text) == 3000
        assert not {"e", " "} & set(text)
    found = report("generate", folder / "m.safetensors", "--length", 3000, "--stop", "x", "--samples", 2)
    for text in found["samples"]:
        assert len(text) < 3000
        assert "x" not in text


def test_updates_may_end_within_an_epoch(folder, tmp_path):
    """And go on from there, as if they had not ended."""
    text = ["--text", folder / "text.txt", *SMALL, "--quiet"]
    windows = TextCorpus(TEXT, time=10).count("train", 3)
    files = ["--checkpoint", tmp_path / "c", "--csv", tmp_path / "h.csv"]
    found = report("train", "lm", *text, "--updates", windows + 10, *files)
    assert (found["updates"], found["stopped"]) == (windows + 10, None)
    assert found["epochs"] == pytest.approx(1 + 10 / windows)
    assert float(rows_of(tmp_path / "h.csv")[1]["loss"]) == found["training"]["loss"]
    again = report("train", "lm", *text, "--updates", windows + 10, *files, "--resume")
    assert again["training"] == found["training"]
    assert again["validation"] == found["validation"]
    assert again["tokens_per_second"] is None
    run("train", "lm", *text, "--updates", 2 * windows, *files, "--resume", "--output", tmp_path / "resumed")
    run("train", "lm", *text, "--epochs", 2, "--output", tmp_path / "whole")
    assert_same_model(tmp_path / "resumed", tmp_path / "whole")


def test_estimate_trains_nothing(folder):
    options = ["train", "lm", "--text", folder / "text.txt", *SMALL, "--estimate", "--quiet"]
    windows = report(*options, "--epochs", 1)["updates"]
    found = report(*options, "--updates", windows + 3)  # it ends within the second epoch
    assert (found["updates"], found["epochs"]) == (windows + 3, 2)
    assert 0 < found["low"] <= found["seconds"] <= found["high"]
    refused = run(*options, "--sample-every", 5)
    assert refused.exit_code == 2
    assert "--sample-every has no effect with --estimate" in refused.stderr


def test_a_time_budget_ends_training_and_it_goes_on(folder, tmp_path):
    """A budget that nothing fits into still makes one update."""
    options = ["train", "lm", "--text", folder / "text.txt", *SMALL, "--epochs", 2, "--quiet"]
    files = ["--checkpoint", tmp_path / "c.safetensors", "--csv", tmp_path / "c.csv", "--plot", tmp_path / "c.png"]
    cut = report(*options, *files, "--time-budget", 1e-9)
    assert (cut["updates"], cut["stopped"]) == (1, "time budget")
    assert [float(row["epoch"]) for row in rows_of(tmp_path / "c.csv")] == [cut["epochs"]]
    assert 0 < cut["epochs"] < 1
    resumed, whole = report(*options, *files, "--resume"), report(*options)
    assert resumed["updates"] == whole["updates"]
    assert resumed["validation"] == whole["validation"]
    assert [float(row["epoch"]) for row in rows_of(tmp_path / "c.csv")] == [1, 2]


def test_the_plot_shows_every_update_and_the_validation(folder, tmp_path, monkeypatch):
    """Also of a training that is shorter than an epoch, which has no validation."""
    drawn = []
    loss_curve = dd.plots.loss_curve

    def note(*arguments):
        drawn.append(loss_curve(*arguments))
        return drawn[-1]

    monkeypatch.setattr(dd.plots, "loss_curve", note)
    windows = TextCorpus(TEXT, time=10).count("train", 3)
    text = ["--text", folder / "text.txt", *SMALL, "--quiet"]
    options = ["--plot", tmp_path / "p.png", "--checkpoint", tmp_path / "c"]
    for updates, epochs, more in ((9, [], []), (2 * windows, [1, 2], ["--resume"])):
        report("train", "lm", *text, "--updates", updates, *options, *more)
        losses, smoothed, *validation = drawn.pop().axes[0].lines
        np.testing.assert_array_equal(losses.get_xdata(), np.arange(1, updates + 1))
        assert smoothed.get_ydata()[0] == losses.get_ydata()[0]
        assert [list(line.get_xdata()) for line in validation] == [[epoch * windows for epoch in epochs]][: len(epochs)]
        assert (tmp_path / "p.png").stat().st_size > 0


def test_json_knows_no_infinity(folder, tmp_path):
    """A loss whose perplexity no float holds."""
    model = dd.models.LanguageModel.load(folder / "m.safetensors")
    model.parameters[...] = 0
    model.output.bias[model.tokenizer.id_of("0")] = 1e4
    model.save(tmp_path / "m")
    result = run("evaluate", tmp_path / "m", "--text", folder / "text.txt", "--json")
    found = json.loads(result.stdout, parse_constant=lambda constant: pytest.fail(f"{constant} is no JSON"))
    assert found["loss"] > 1000
    assert found["perplexity"] is None
    assert "perplexity inf" in run("evaluate", tmp_path / "m", "--text", folder / "text.txt").stdout
    history = dd.History({"val_loss": [1.0, math.nan], "val_perplexity": [math.inf, 2.0]})
    history.to_json(tmp_path / "h.json")
    assert json.loads((tmp_path / "h.json").read_text()) == {"val_loss": [1.0, None], "val_perplexity": [None, 2.0]}


def test_patience_keeps_the_best_weights(folder):
    options = ["--epochs", 50, "--patience", 1, "--lr", 0.3, "--quiet"]
    found = report("train", "lm", "--text", folder / "text.txt", *SMALL, *options)
    assert found["epochs"] < 50
    assert found["stopped"] == "val_loss has not improved for 1 epochs"


@pytest.mark.parametrize(
    "options",
    [
        ["--cell", "rnn", "--optimizer", "adagrad", "--lr", 0.1, "--clip-value", 1, "--weight-decay", 1e-4],
        ["--cell", "gru", "--layers", 2, "--dropout", 0.1, "--schedule", "cosine", "--lr", 0.01],
        ["--cell", "lstm", "--chunk", 40, "--optimizer", "sgd", "--lr", 0.5, "--clip-norm", 2],
    ],
)
def test_options_train(options, folder):
    found = report("train", "lm", "--text", folder / "text.txt", *SMALL, *options, "--updates", 60, "--quiet")
    assert found["training"]["loss"] < math.log(found["vocabulary"])


def test_defaults_depend_on_the_cell(folder, monkeypatch):
    made = []
    fit = dd.Trainer.fit

    def note(self, *args, **kwargs):
        made.append((self, kwargs["batch_size"], args[0].time))
        return fit(self, *args, **kwargs)

    monkeypatch.setattr(dd.Trainer, "fit", note)
    for options in (["--cell", "rnn"], ["--cell", "gru"], ["--cell", "gru", "--clip-value", 2]):
        report("train", "lm", "--text", folder / "text.txt", *options, "--updates", 1, "--quiet")
    found = [(t.clip_value, t.clip_norm, t.optimizer.lr, t.model.rnn.hidden_size, *rest) for t, *rest in made]
    assert found == [(5, None, 1e-3, 100, 1, 25), (None, 1, 1e-3, 256, 32, 100), (2, None, 1e-3, 256, 32, 100)]


def test_the_bar_counts_characters(folder, monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr(sys, "stderr", Terminal())
    corpus = TextCorpus(TEXT[:1000], time=7)

    class Stop(dd.callbacks.Callback):
        last_update = corpus.count("train", 2) + 9

        def update_ends(self, trainer, loss):
            losses.append(loss)
            if trainer.update == self.last_update:
                trainer.stop_reason = "enough"

    losses = []
    trainer = dd.Trainer(dd.models.LanguageModel(corpus.vocab_size, "rnn", 5, seed=0), dd.optim.Adam())
    history = trainer.fit(corpus, epochs=3, batch_size=2, callbacks=[Stop()])
    last = sys.stderr.getvalue().split("\r")[-1]
    smoothed = losses[0]
    for loss in losses[1:]:
        smoothed = 0.99 * smoothed + 0.01 * loss
    total = 2 * ((len(corpus.train) - 1) // 2 + 9 * 7)
    assert re.search(rf"epoch 2/3: 100%.* {total / 1000:.2f}k/{total / 1000:.2f}k .* characters/s, ", last)
    assert f"loss {smoothed:.4f}, val_loss {history['val_loss'][0]:.4f}, " in last


# ---- interrupted, killed, full, exploded ---------------------------------------------------------------------------

LONG = [*SMALL, "--dropout", 0.2, "--layers", 2, "--patience", 1000, "--optimizer", "nadam"]


def test_a_training_killed_at_any_moment_resumes_bit_for_bit(start, folder, tmp_path):
    """Within an update; with a checkpoint not yet synced, not yet renamed, just renamed; in the validation."""
    windows = TextCorpus(TEXT, time=10).count("train", 3)
    checkpoint = tmp_path / "c.safetensors"
    options = ["train", "lm", "--text", folder / "text.txt", *LONG, "--updates", windows + 20]
    files = ["--checkpoint", checkpoint, "--checkpoint-every", 7]
    made = 0
    # A checkpoint is written and synced, renamed, and its folder synced.
    moments = [("update:17", 14), ("fsync:3", 21), ("replace:1", 21), ("fsync:2", 28), ("evaluate:1", windows // 7 * 7)]
    for kill_at, expected in moments:
        process = start(*options, *files, *(["--resume"] if made else []), kill_at=kill_at)
        out, err = process.communicate()
        assert process.returncode == -signal.SIGKILL, err
        assert out == ""
        assert made == 0 or f"going on from update {made}\n" in err
        made = updates_of(checkpoint)
        assert made == expected
    result = run(*options, *files, "--resume", "--output", tmp_path / "resumed", "--csv", tmp_path / "resumed.csv")
    assert result.exit_code == 0, result.output
    whole = run(*options, "--output", tmp_path / "whole", "--csv", tmp_path / "whole.csv", "--quiet")
    assert_same_model(tmp_path / "resumed", tmp_path / "whole")
    assert result.stdout.splitlines()[1:3] == whole.stdout.splitlines()[1:3]
    losses = [[row["loss"] for row in rows_of(tmp_path / f"{name}.csv")] for name in ("resumed", "whole")]
    assert len(losses[0]) == 2
    assert losses[0] == losses[1]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signals_save_and_exit(number, code, start, folder, tmp_path):
    checkpoint = tmp_path / "c.safetensors"
    text = ["--text", folder / "text.txt", *LONG]
    options = ["--updates", 10**9, "--checkpoint", checkpoint, "--checkpoint-every", 5, "--output", "m.safetensors"]
    process = start("train", "lm", *text, *options)
    wait_for(checkpoint, process)
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert process.returncode == code, err
    assert out == ""
    assert "Traceback" not in err
    made = updates_of(checkpoint)
    assert f"after update {made}; saved: {checkpoint}, m.safetensors" in err
    updates = made + 12
    rest = run(
        "train", "lm", *text, "--updates", updates, "--checkpoint", checkpoint, "--resume", "--output", tmp_path / "r"
    )
    assert rest.exit_code == 0, rest.output
    run("train", "lm", *text, "--updates", updates, "--output", tmp_path / "whole", "--quiet")
    assert_same_model(tmp_path / "r", tmp_path / "whole")


def test_a_full_disk_leaves_the_old_checkpoint(folder, tmp_path, monkeypatch):
    checkpoint = tmp_path / "c.safetensors"
    options = ["--text", folder / "text.txt", *LONG, "--updates", 40, "--quiet"]
    files = ["--checkpoint", checkpoint, "--checkpoint-every", 7]
    written, fdopen = [], os.fdopen

    class Full:
        """A file on a disk that has room for two checkpoints."""

        def __init__(self, handle, mode):
            self.file = fdopen(handle, mode)

        def __enter__(self):
            return self

        def __exit__(self, *error):
            self.file.close()

        def write(self, content):
            written.append(content)
            self.file.write(content if len(written) < 3 else content[:100])
            if len(written) == 3:
                raise OSError(errno.ENOSPC, "No space left on device")

        def flush(self):
            self.file.flush()

        def fileno(self):
            return self.file.fileno()

    with monkeypatch.context() as patch:
        patch.setattr(os, "fdopen", Full)
        result = run("train", "lm", *options, *files)
    assert result.exit_code == 1
    assert "No space left on device" in result.stderr.splitlines()[-1]
    assert checkpoint.read_bytes() == written[1]
    assert os.listdir(tmp_path) == ["c.safetensors"]
    assert updates_of(checkpoint) == 14
    assert run("train", "lm", *options, *files, "--resume", "--output", tmp_path / "resumed").exit_code == 0
    run("train", "lm", *options, "--output", tmp_path / "whole")
    assert_same_model(tmp_path / "resumed", tmp_path / "whole")


def test_an_explosion_names_the_update_and_the_last_good_checkpoint(folder, tmp_path, monkeypatch):
    update = dd.optim.Optimizer.update

    def explode(self, model, rate):
        update(self, model, rate)
        if self.updates == 17:
            model.parameters[...] = 3e38

    monkeypatch.setattr(dd.optim.Optimizer, "update", explode)
    checkpoint = tmp_path / "c.safetensors"
    options = ["--text", folder / "text.txt", *LONG, "--updates", 40, "--quiet", "--output", tmp_path / "m"]
    for before, message in (
        ([], "there is no checkpoint"),
        (["--checkpoint", checkpoint], "before the first checkpoint"),
    ):
        result = run("train", "lm", *options, *before)
        assert result.exit_code == 1
        assert "update 17: the " in result.stderr
        assert message in result.stderr
        assert not (tmp_path / "m").exists()
    result = run("train", "lm", *options, "--checkpoint", checkpoint, "--checkpoint-every", 5)
    assert result.exit_code == 1
    assert len(result.stderr.splitlines()) == 1
    assert "update 17: the " in result.stderr
    assert f"the last good checkpoint is {checkpoint}, of 15 updates" in result.stderr
    monkeypatch.setattr(dd.optim.Optimizer, "update", update)
    result = run("train", "lm", *options, "--checkpoint", checkpoint, "--resume")
    assert result.exit_code == 0, result.output


def test_parameters_that_overflow_are_not_saved(folder, tmp_path):
    """The last update of all, or before a checkpoint: its loss was finite, what it left is not."""
    options = ["--text", folder / "text.txt", *SMALL, "--optimizer", "sgd", "--lr", 1e39, "--momentum", 0]
    files = ["--checkpoint", tmp_path / "c", "--checkpoint-every", 1]
    result = run("train", "lm", *options, "--updates", 3, *files)
    assert result.exit_code == 1
    assert "update 0: it left a parameter that is not finite" in result.stderr
    assert not (tmp_path / "c").exists()


# ---- wrong use -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["--text", "other.txt"], "made with text of 2,770 characters, sha256 "),
        (["--tokenizer", "word"], "tokenizer char (now word)"),
        (["--lr", "0.5"], "made with lr None (now 0.5)"),
        (["--hidden", "9"], "made with hidden 8 (now 9)"),
        (["--cell", "gru", "--seed", "1"], "cell lstm (now gru), seed 0 (now 1)"),
        (["--text", "same.txt", "--epochs", "2"], None),
    ],
)
def test_resume_refuses_another_training(change, message, folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "other.txt").write_text(TEXT[::-1], encoding="utf-8")
    (tmp_path / "same.txt").write_text(TEXT, encoding="utf-8")
    options = ["--text", folder / "text.txt", *SMALL, "--clip-norm", 1, "--checkpoint", "c", "--quiet"]
    assert run("train", "lm", *options, "--epochs", 1).exit_code == 0
    content = (tmp_path / "c").read_bytes()
    result = run("train", "lm", *options, "--epochs", 1, "--resume", *change)
    if message is None:
        assert result.exit_code == 0, result.output
        return
    assert result.exit_code == 1
    assert message in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert (tmp_path / "c").read_bytes() == content


def test_resume_refuses_what_is_no_checkpoint_of_train(folder, tmp_path):
    path = tmp_path / "c"
    options = ["train", "lm", "--text", folder / "text.txt", *SMALL, "--checkpoint", path, "--resume", "--quiet"]
    assert "there is no file" in run(*options).stderr
    dd.Trainer(dd.models.LanguageModel(5), dd.optim.Adam()).save_checkpoint(path)
    assert "was not made by `dd2424fast train`" in run(*options).stderr
    path.unlink()
    assert run("train", "mlp", "--epochs", 1, "--checkpoint", path, "--quiet").exit_code == 0
    assert run(*options).stderr == "dd2424fast: --resume: the checkpoint was made with kind mlp (now lm)\n"
    path.write_bytes((folder / "m.safetensors").read_bytes())
    assert "holds a model, expected a checkpoint" in run(*options).stderr


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["train", "lm", "--text", "absent.txt"], "'absent.txt' does not exist"),
        (["train", "lm", "--vocabulary", "50"], "--vocabulary has no effect with char"),
        (["train", "lm", "--epochs", "2", "--updates", "7"], "--updates has no effect with --epochs"),
        (["train", "lm", "--momentum", "0.5"], "--momentum has no effect with adam"),
        (["train", "lm", "--patience", "3", "--validation", "0"], "--patience needs --validation"),
        (["train", "lm", "--validation", "1"], "--validation"),
        (["train", "lm", "--cell", "transformer"], "--cell"),
        (["train", "lm", "--resume"], "--resume needs --checkpoint"),
        (["generate", "absent.safetensors"], "does not exist"),
        (["generate", "M", "--prompt-file", "absent.txt"], "does not exist"),
        (["generate", "M", "--prompt", "a", "--prompt-file", "T"], "--prompt has no effect with --prompt-file"),
        (["generate", "M", "--temperature", "-0.1"], "-0.1 is not in the range x>=0"),
        (["generate", "M", "--top-p", "0"], "0.0 is not in the range 0<x<=1"),
        (["generate", "M", "--top-p", "1.1"], "1.1 is not in the range 0<x<=1"),
        (["generate", "M", "--length", "0"], "--length"),
        (["evaluate", "M"], "--text is missing"),
        (["evaluate", "M", "--data", "digits"], "--data has no effect"),
        (["evaluate", "I", "--text", "T"], "--text has no effect"),
    ],
)
def test_wrong_usage_exits_2(args, message, folder, tmp_path):
    dd.models.MLP(64, seed=0).save(tmp_path / "i")
    places = {"M": folder / "m.safetensors", "T": folder / "text.txt", "I": tmp_path / "i"}
    result = run(*(places.get(word, word) for word in args))
    assert result.exit_code == 2
    assert message in result.stderr
    assert result.stdout == ""


@pytest.mark.parametrize(
    ("content", "options", "message"),
    [
        (b"", [], "is empty"),
        (b"short", [], "--text: expected at least time + 1 = 11 tokens to train on, got 4"),
        (b"caf\xe9 " * 99, [], "is no text in UTF-8 ('utf-8' codec can't decode byte 0xe9 in position 3"),
        (b"abc" * 99, ["--batch-size", 500], "--batch-size: expected so few streams"),
        (b"abc" * 99, ["--chunk", 5], "--chunk: expected at least time = 10 tokens, got 5"),
        (b"abc" * 99, ["--validation", 0.5, "--test", 0.5], "--test: expected validation + test below 1"),
        (
            b"abc" * 99,
            ["--tokenizer", "bpe", "--vocabulary", 9],
            "--vocabulary: expected an integer of at least 256, got 9",
        ),
    ],
)
def test_texts_that_cannot_be_trained_on(content, options, message, tmp_path):
    if "bpe" in options:
        pytest.importorskip("tokenizers")
    (tmp_path / "text.txt").write_bytes(content)
    result = run("train", "lm", "--text", tmp_path / "text.txt", *SMALL, *options)
    assert result.exit_code == 1
    assert message in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert result.stdout == ""


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--prompt", "12: thÅ"], "prompt: character 'Å' at position 6 is not in the vocabulary"),
        (["--prompt", ""], "--prompt: expected at least one token, got an empty text"),
        (["--prompt-file", "latin.txt"], "--prompt-file: latin.txt is no text in UTF-8"),
        (["--prompt-file", "empty.txt"], "--prompt-file: empty.txt is empty"),
        (["--stop", "the"], "--stop: 'the' is not one token of the model's vocabulary"),
        (["--ban", "Å"], "--ban: 'Å' is not one token of the model's vocabulary"),
        (["--temperature", "nan"], "temperature: expected"),
    ],
)
def test_generate_says_what_is_wrong(options, message, folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9")
    (tmp_path / "empty.txt").write_bytes(b"")
    result = run("generate", folder / "m.safetensors", *options)
    assert result.exit_code == 1
    assert message in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert result.stdout == ""


def test_generate_needs_a_language_model_with_its_tokenizer(folder, tmp_path):
    dd.models.MLP(4, seed=0).save(tmp_path / "mlp")
    dd.models.LanguageModel(5, seed=0).save(tmp_path / "bare")
    model = dd.models.LanguageModel(2, hidden=3, seed=0)
    model.tokenizer = Char("ab")
    model.save(tmp_path / "ab")
    (tmp_path / "text").write_text("abc")
    for args, message in (
        (["generate", tmp_path / "mlp"], "holds a MLP, expected a LanguageModel"),
        (["generate", tmp_path / "bare"], "holds no tokenizer"),
        (["generate", tmp_path / "ab"], "--prompt: the model knows no line break to begin with"),
        (["generate", folder / "text.txt"], "not a safetensors file"),
        (["evaluate", tmp_path / "bare", "--text", folder / "text.txt"], "holds no tokenizer"),
        (["evaluate", tmp_path / "ab", "--text", tmp_path / "text"], "--text: character 'c' at position 2"),
    ):
        result = run(*args)
        assert result.exit_code == 1
        assert message in result.stderr
        assert len(result.stderr.splitlines()) == 1
    assert run("generate", tmp_path / "ab", "--prompt", "a", "--length", 5).exit_code == 0
