"""Models and checkpoints on disk, and what may go wrong with them."""

import errno
import json
import os
import pickle

import numpy as np
import pytest

import dd2424fast as dd
from dd2424fast import files
from dd2424fast.data import BPE, Char, Word


class Twice(dd.nn.Module):
    def forward(self, x):
        return 2 * x

    def backward(self, dy):
        return 2 * dy


def test_a_model_comes_back(problem, make_trainer, tmp_path):
    x, y = problem
    trainer = make_trainer()
    trainer.step(x, y)
    path = tmp_path / "model.safetensors"
    trainer.model.save(path)
    again = dd.models.MLP.load(path)
    assert repr(again) == repr(trainer.model)
    np.testing.assert_array_equal(again.predict(x), trainer.model.predict(x))
    assert not again.training
    edited = dd.models.MLP(7, (6,), 4, seed=0)
    edited[2] = dd.nn.Linear(6, 9)
    edited.save(path)
    np.testing.assert_array_equal(dd.nn.Sequential.load(path).predict(x), edited.predict(x))


def test_a_model_with_a_layer_of_ones_own(tmp_path):
    model = dd.nn.Sequential(dd.nn.Linear(3, 2), Twice())
    model.save(tmp_path / "m")
    with pytest.raises(ValueError, match=r"the file needs the class 'Twice'; give it as modules=\(Twice,\)"):
        dd.nn.Sequential.load(tmp_path / "m")
    x = np.ones((2, 3), "float32")
    np.testing.assert_array_equal(dd.nn.Sequential.load(tmp_path / "m", modules=[Twice]).predict(x), model.predict(x))


def test_the_tensors_are_plain_safetensors(tmp_path):
    from safetensors.numpy import load_file

    model = dd.models.MLP(3, (4,), 2, seed=0)
    model.save(tmp_path / "m")
    tensors = load_file(tmp_path / "m")
    assert {name: a.shape for name, a in tensors.items()} == {name: a.shape for name, a in model.state_dict().items()}


def test_the_same_model_is_the_same_file(tmp_path):
    """Byte for byte: safetensors alone would order the metadata by chance."""
    written = set()
    for _ in range(8):
        dd.models.MLP(3, (4,), 2, seed=0).save(tmp_path / "m")
        written.add((tmp_path / "m").read_bytes())
    assert len(written) == 1
    start = 8 + int.from_bytes((content := written.pop())[:8], "little")
    assert start % 8 == 0
    assert list(json.loads(content[8:start])["__metadata__"]) == ["dd2424fast", "header", "kind", "sha256"]


def test_wrong_files_are_named(make_trainer, tmp_path):
    trainer = make_trainer()
    good, path = tmp_path / "good", tmp_path / "bad"
    trainer.save_checkpoint(good)
    content = good.read_bytes()
    before = trainer.model.parameters.copy()
    for damaged in (b"", b"\x80\x04", content[:100], content[:-50], bytes(reversed(content))):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match="not a safetensors file, or damaged"):
            trainer.load_checkpoint(path)
    trainer.model.save(path)
    with pytest.raises(ValueError, match="holds a model, expected a checkpoint"):
        trainer.load_checkpoint(path)
    with pytest.raises(ValueError, match="holds a checkpoint, expected a model"):
        dd.models.MLP.load(good)
    with pytest.raises(ValueError, match="holds a MLP, expected a Linear"):
        dd.nn.Linear.load(path)
    with pytest.raises(FileNotFoundError, match="there is no file"):
        trainer.load_checkpoint(tmp_path / "absent")
    from safetensors.numpy import save_file

    save_file({"a": np.zeros(3)}, path)
    with pytest.raises(ValueError, match="dd2424fast did not write this file"):
        trainer.load_checkpoint(path)
    np.testing.assert_array_equal(trainer.model.parameters, before)


def test_a_checkpoint_of_another_training_is_refused(problem, make_trainer, tmp_path):
    path = tmp_path / "c"
    make_trainer().save_checkpoint(path)
    other = dd.Trainer(dd.models.MLP(7, (12, 5), 4, batch_norm=True), dd.optim.Adam())
    before = other.model.parameters.copy()
    with pytest.raises(ValueError, match=r"a checkpoint of another model: 0.weight \(7, 11\) \(here \(7, 12\)\)"):
        other.load_checkpoint(path)
    with pytest.raises(ValueError, match="a checkpoint of optimizer Adam, expected SGD"):
        make_trainer(dd.optim.SGD(0.1)).load_checkpoint(path)
    with pytest.raises(ValueError, match="a checkpoint of dtype float32, expected float64"):
        make_trainer(dtype="float64").load_checkpoint(path)
    np.testing.assert_array_equal(other.model.parameters, before)


def test_a_full_disk_leaves_the_old_file(make_trainer, tmp_path, monkeypatch):
    trainer, path = make_trainer(), tmp_path / "c"
    trainer.save_checkpoint(path)
    kept = path.read_bytes()

    def full(handle):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    trainer.update = 99
    with pytest.raises(OSError, match="No space left"):
        trainer.save_checkpoint(path)
    assert path.read_bytes() == kept
    assert os.listdir(tmp_path) == ["c"]


def test_a_folder_that_is_missing_is_named(make_trainer, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"the folder .*absent does not exist"):
        make_trainer().save_checkpoint(tmp_path / "absent" / "c")


def test_the_file_has_ordinary_permissions(tmp_path):
    files.write_atomically(tmp_path / "a", b"x")
    (tmp_path / "b").write_bytes(b"x")
    assert (tmp_path / "a").stat().st_mode == (tmp_path / "b").stat().st_mode


def test_an_optimizer_continues_bit_for_bit(problem, make_trainer, tmp_path):
    x, y = problem
    for name in ("SGD", "Adam", "AdamW", "RMSprop", "Adagrad", "Adadelta", "NAdam"):
        kind, arguments = getattr(dd.optim, name), {"momentum": 0.9} if name == "SGD" else {}
        whole, first, second = (make_trainer(kind(lr=0.01, **arguments)) for _ in range(3))
        for trainer in (whole, first):
            for _ in range(3):
                trainer.step(x, y)
        first.save_checkpoint(tmp_path / "c")
        second.load_checkpoint(tmp_path / "c")
        for trainer in (whole, second):
            trainer.step(x, y)
        np.testing.assert_array_equal(whole.model.parameters, second.model.parameters, err_msg=name)


@pytest.mark.parametrize("kind", [Char, Word, BPE])
def test_a_language_model_brings_its_tokenizer_back(kind, tmp_path):
    if kind is BPE:
        pytest.importorskip("tokenizers")
    tokenizer = kind("one two, one three\n" * 9, special=("<A>",))
    model = dd.models.LanguageModel(tokenizer.vocab_size, hidden=3, seed=0)
    model.save(tmp_path / "m")
    assert dd.models.LanguageModel.load(tmp_path / "m").tokenizer is None
    model.tokenizer = tokenizer
    model.save(tmp_path / "m")
    for loaded in (dd.models.LanguageModel.load(tmp_path / "m"), dd.nn.Module.load(tmp_path / "m")):
        assert type(loaded.tokenizer) is kind
        assert loaded.tokenizer.to_dict() == tokenizer.to_dict()
        np.testing.assert_array_equal(loaded.parameters, model.parameters)
    assert pickle.loads(pickle.dumps(model)).tokenizer.tokens == tokenizer.tokens


def test_a_tokenizer_must_fit_its_model():
    model = dd.models.LanguageModel(3, hidden=2)
    with pytest.raises(ValueError, match="tokenizer: expected one of 3 tokens, got 2"):
        model.tokenizer = Char("ab")
    with pytest.raises(TypeError, match=r"tokenizer: expected a data\.Tokenizer or None, got str"):
        model.tokenizer = "char"
    assert model.tokenizer is None


def test_parameters_that_are_not_finite_are_not_saved(make_trainer, tmp_path):
    trainer, path = make_trainer(), tmp_path / "c"
    trainer.save_checkpoint(path)
    kept = path.read_bytes()
    trainer.update = 8
    for value in (np.nan, np.inf):
        trainer.model.parameters[5] = value
        with pytest.raises(dd.TrainingDiverged, match="update 7: it left a parameter that is not finite") as caught:
            trainer.save_checkpoint(path)
        assert caught.value.update == 7
        assert path.read_bytes() == kept


def test_a_fit_that_a_callback_stops_within_an_epoch_is_saved(problem, make_trainer, tmp_path):
    class Stop(dd.callbacks.Callback):
        def update_ends(self, trainer, loss):
            if trainer.update == 7:
                trainer.stop_reason = "enough"

    whole, first, second = make_trainer(), make_trainer(), make_trainer()
    whole.fit(problem, epochs=2, batch_size=10, progress=False)
    save = dd.callbacks.Checkpoint(tmp_path / "c")
    first.fit(problem, epochs=2, batch_size=10, progress=False, callbacks=[Stop(), save])
    second.load_checkpoint(tmp_path / "c")
    assert second.update == 7
    second.fit(problem, epochs=2, batch_size=10, progress=False)
    np.testing.assert_array_equal(second.model.parameters, whole.model.parameters)
    assert second.history["loss"] == whole.history["loss"]
