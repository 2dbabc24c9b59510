"""Tokenizers, corpora, and training on them."""

import itertools
import json

import numpy as np
import pytest

import dd2424fast as dd
from dd2424fast.data import BPE, Char, TextCorpus, Tokenizer, Word

TEXT = "First came one word, then another word; first and last: the word.\n" * 40


@pytest.mark.parametrize("kind", [Char, Word, BPE])
def test_a_text_comes_back(kind):
    if kind is BPE:
        pytest.importorskip("tokenizers")
        tokenizer = BPE(TEXT, special=("<eos>",), most=300)
    else:
        tokenizer = kind(TEXT, special=("<eos>",))
    text = TEXT[:66] + "<eos>" + TEXT[5:50]
    ids = tokenizer.encode(text)
    assert ids.dtype == np.int64
    assert ids.ndim == 1
    assert 0 <= ids.min() <= ids.max() < tokenizer.vocab_size
    assert tokenizer.decode(ids) == text
    assert (ids == tokenizer.id_of("<eos>")).sum() == 1
    again = Tokenizer.from_dict(json.loads(json.dumps(tokenizer.to_dict())))
    np.testing.assert_array_equal(again.encode(text), ids)
    assert again.decode(ids) == text


def test_char_ids_are_in_order():
    tokenizer = Char("banana")
    assert tokenizer.tokens == ("a", "b", "n")
    np.testing.assert_array_equal(tokenizer.encode("nab"), [2, 0, 1])
    assert tokenizer.encode("").shape == (0,)


@pytest.mark.parametrize("source", ["bok.txt", "data/shakespear_complete.txt", "my plays.md"])
def test_a_mistyped_path_is_no_text(source):
    with pytest.raises(FileNotFoundError, match="source: there is no file"):
        TextCorpus(source, time=2)
    with pytest.raises(FileNotFoundError, match="source: there is no file"):
        dd.data.speakers(source)


def test_the_unknown_is_named_with_its_place():
    with pytest.raises(ValueError, match="prompt: character 'x' at position 4 is not in the vocabulary"):
        Char("abc", special=("<s>",)).encode("<s>axb", "prompt")
    tokenizer = Char("abc", unknown="?")
    assert tokenizer.decode(tokenizer.encode("axb")) == "a?b"
    with pytest.raises(ValueError, match="text: word 'dog' at position 4"):
        Word("the cat", unknown=None).encode("the dog")
    with pytest.raises(TypeError, match="text: expected a str, got int"):
        tokenizer.encode(3)
    with pytest.raises(ValueError, match="ids: expected integers from 0 to 3"):
        tokenizer.decode([4])
    with pytest.raises(ValueError, match="token: 'z'"):
        tokenizer.id_of("z")


def test_the_most_frequent_words():
    tokenizer = Word("b b b a a c", most=4)
    assert tokenizer.tokens == ("<unk>", " ", "b", "a")
    assert tokenizer.decode(tokenizer.encode("c b")) == "<unk> b"


def test_long_words_and_odd_characters():
    """Memory for the words there are, and every character kept."""
    tokenizer = Word("ab " * 1000 + "x" * 100_000 + " a\0b")
    assert tokenizer.decode(tokenizer.encode("a\0b ab")) == "a\0b ab"
    assert Char("abc", special=(s for s in ["<a>"])).special == ("<a>",)


def test_byte_pairs_and_special_tokens():
    pytest.importorskip("tokenizers")
    tokenizer = BPE(TEXT + "åäö", special=("<é>", "<eos>"), most=280)
    assert tokenizer.vocab_size <= 280
    for text in ("x<é>y", "<é>", "<eos>ö<é><é>ñ "):
        assert tokenizer.decode(tokenizer.encode(text)) == text
    with pytest.raises(ValueError, match="most"):
        BPE(TEXT, special=("<a>", "<b>"), most=257)
    with pytest.raises(ValueError, match="prompt: expected a text that UTF-8 can hold"):
        tokenizer.encode("\ud800", "prompt")


def test_special_tokens_are_never_cut():
    tokenizer = Char("abc", special=("<eos>",))
    for n in range(1, 30):
        corpus = TextCorpus("abc<eos>" * 10 + "a" * n, tokenizer, time=3)
        whole = np.concatenate([corpus.train, corpus.validation, corpus.test])
        assert tokenizer.decode(whole) == "abc<eos>" * 10 + "a" * n
    with pytest.raises(ValueError, match="position 300"):
        TextCorpus("abc" * 100 + "x", Char("abc"), time=3)


def test_chunks_in_reading_order():
    corpus = TextCorpus(TEXT, time=10, validation=0, chunk=20)
    x = np.concatenate([x for x, _, _ in corpus.batches("train", 1, 3, seed=None)], axis=1)
    np.testing.assert_array_equal(x[0], corpus.train[: x.size])
    curves = []
    for seed in (2, 5):
        trainer = trainer_of(corpus)
        trainer.seed = seed
        curves.append(trainer.fit(corpus, epochs=1, shuffle=False, progress=False)["loss"])
    assert curves[0] == curves[1]


def test_a_corpus_without_a_validation_part():
    corpus = TextCorpus(TEXT, validation=0)
    with pytest.raises(ValueError, match="validation: expected a corpus with a validation part"):
        trainer_of(corpus).fit(corpus, corpus, progress=False)


def test_corpus_parts_follow_each_other():
    corpus = TextCorpus(TEXT, validation=0.2, test=0.1)
    parts = [corpus.tokenizer.decode(ids) for ids in (corpus.train, corpus.validation, corpus.test)]
    assert "".join(parts) == TEXT
    assert [len(part) / len(TEXT) for part in parts] == pytest.approx([0.7, 0.2, 0.1], abs=1e-3)


@pytest.mark.parametrize("streams", [1, 3])
def test_windows_follow_each_other(streams):
    corpus = TextCorpus(TEXT, time=7, validation=0.1)
    rows, targets, begins = [], [], []
    for x, y, begin in corpus.batches("train", streams):
        assert x.shape == y.shape
        assert x.shape[0] == streams
        rows.append(x)
        targets.append(y)
        begins.append(begin)
    assert len(rows) == corpus.count("train", streams)
    assert begins == [True] + [False] * (len(begins) - 1)
    x, y = np.concatenate(rows, axis=1), np.concatenate(targets, axis=1)
    length = (len(corpus.train) - 1) // streams
    np.testing.assert_array_equal(x.ravel(), corpus.train[: streams * length])
    np.testing.assert_array_equal(y.ravel(), corpus.train[1 : streams * length + 1])


def test_chunks_are_shuffled_anew_every_epoch():
    corpus = TextCorpus(TEXT, time=5, validation=0, chunk=20)
    epochs = []
    for epoch in (0, 0, 1):
        windows = list(corpus.batches("train", 2, epoch, seed=4))
        assert len(windows) == corpus.count("train", 2)
        assert [begin for _, _, begin in windows] == [i % 4 == 0 for i in range(len(windows))]
        first = windows[0][0][0]
        assert any(np.array_equal(first, corpus.train[i : i + 5]) for i in range(0, len(corpus.train) - 5, 20))
        epochs.append(np.stack([x for x, _, _ in windows]))
    np.testing.assert_array_equal(epochs[0], epochs[1])
    assert (epochs[0] != epochs[2]).any()
    rest = list(corpus.batches("train", 2, 0, seed=4, skip=7))
    np.testing.assert_array_equal(np.stack([x for x, _, _ in rest]), epochs[0][7:])


def test_a_file(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text(TEXT, encoding="utf-8")
    for source in (path, str(path)):
        np.testing.assert_array_equal(TextCorpus(source).train, TextCorpus(TEXT).train)
    path.write_bytes(TEXT.replace("\n", "\r\n").encode())
    assert "\r" in TextCorpus(path).tokenizer.tokens
    path.write_bytes(b"caf\xe9 " * 100)
    with pytest.raises(ValueError, match="UTF-8"):
        TextCorpus(path)
    with pytest.raises(FileNotFoundError):
        TextCorpus(tmp_path / "absent.txt")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"source": ""}, "source: expected a text, got an empty one"),
        ({"source": "short", "validation": 0}, r"source: expected at least time \+ 1 = 26 tokens to train on, got 5"),
        ({"time": 0}, "time"),
        ({"validation": 1.0}, "validation"),
        ({"validation": 0.6, "test": 0.4}, r"test: expected validation \+ test below 1"),
        ({"chunk": 3}, "chunk: expected at least time = 25 tokens, got 3"),
        ({"chunk": 10**6}, r"source: expected at least chunk \+ 1 = 1000001 tokens to train on"),
        ({"tokenizer": "letters"}, "tokenizer: expected one of char, word, bpe"),
    ],
)
def test_bad_corpora(arguments, message):
    with pytest.raises(ValueError, match=message):
        TextCorpus(**{"source": TEXT, **arguments})


def test_too_many_streams():
    corpus = TextCorpus(TEXT, validation=0)
    with pytest.raises(ValueError, match="batch_size: expected so few streams"):
        next(corpus.batches("train", 10**6))


# ---- control tokens --------------------------------------------------------------------------------------------------


def dialogue(lines=150):
    """Two speakers in a random order, each with words of its own."""
    words = {"ANN:": "la la la\n", "BOB SMITH:": "no no no\n"}
    rng = np.random.default_rng(0)
    return "".join(f"{name}\n{words[name]}" for name in rng.choice(list(words), lines))


def test_speakers_are_found():
    text = "ANN:\nYes: yes.\nBOB SMITH:\nNo.\nANN:\nYes!\nO ANN: no.\nBOB SMITH: So.\nHe said: go.\nBOB SMITH:\n"
    text += "12: x.\n12: y\n"
    assert dd.data.speakers(text) == ("BOB SMITH:", "ANN:")
    assert dd.data.speakers(text, most=1) == ("BOB SMITH:",)
    assert dd.data.speakers(text, least=1) == ("BOB SMITH:", "ANN:", "He said:", "O ANN:", "Yes:")
    assert dd.data.speakers(text, pattern=r"^\d+:") == ("12:",)
    assert dd.data.speakers("no one speaks here") == ()
    with pytest.raises(ValueError, match=r"pattern: expected a regular expression, got '\('"):
        dd.data.speakers(text, pattern="(")
    with pytest.raises(ValueError, match="most: expected an integer of at least 1, got 0"):
        dd.data.speakers(text, most=0)
    with pytest.raises(ValueError, match="source: expected a text, got an empty one"):
        dd.data.speakers("")


@pytest.mark.parametrize("kind", ["char", "word", "bpe"])
def test_a_corpus_with_control_tokens(kind):
    if kind == "bpe":
        pytest.importorskip("tokenizers")
    text = dialogue()
    names = dd.data.speakers(text)
    corpus = TextCorpus(text, kind, time=5, special=names)
    assert corpus.tokenizer.special[:2] == names
    assert corpus.tokenizer.decode(np.concatenate([corpus.train, corpus.validation])) == text
    ids = [corpus.tokenizer.id_of(name) for name in names]
    assert np.isin(corpus.train, ids).sum() + np.isin(corpus.validation, ids).sum() == 150
    masked = TextCorpus(text, kind, time=5, special=names, learn_special=False)
    for part in (lambda c: c.batches("train", 2), lambda c: c.evaluation()):
        for (x, y, _), (again, targets, _) in zip(part(corpus), part(masked), strict=True):
            np.testing.assert_array_equal(x, again)
            np.testing.assert_array_equal(targets, np.where(np.isin(y, ids), -100, y))
    with pytest.raises(ValueError, match="special: a tokenizer that exists has its own special tokens"):
        TextCorpus(text, corpus.tokenizer, special=names)


@pytest.mark.parametrize("learn_special", [True, False])
def test_a_role_is_taken_and_kept(learn_special):
    text = dialogue()
    corpus = TextCorpus(text, time=24, special=dd.data.speakers(text), learn_special=learn_special)
    trainer = trainer_of(corpus)
    trainer.fit(corpus, epochs=25, batch_size=4, progress=False)
    unknowable = np.log(2) / 11 if learn_special else 0.0  # who speaks next: a coin's throw every eleven tokens
    assert trainer.evaluate(corpus)["loss"] < unknowable + 0.03
    prompts = [f"{name}\n" for name in ("ANN:", "BOB SMITH:")]
    ann, bob = dd.generate(trainer.model, corpus.tokenizer, prompts, 8, temperature=0, banned=corpus.tokenizer.special)
    assert (ann, bob) == ("la la la", "no no no")
    kept = dd.generate(trainer.model, corpus.tokenizer, prompts * 5, 60, seed=1, banned=corpus.tokenizer.special)
    assert not any(name in said for said in kept for name in corpus.tokenizer.special)
    if learn_special:
        left = dd.generate(trainer.model, corpus.tokenizer, prompts * 5, 60, seed=1)
        assert all(any(name in said for name in corpus.tokenizer.special) for said in left)


# ---- training --------------------------------------------------------------------------------------------------------


def trainer_of(corpus, **arguments):
    model = dd.models.LanguageModel(corpus.vocab_size, "gru", 12, seed=1)
    return dd.Trainer(model, dd.optim.Adam(0.01), clip_value=5.0, seed=2, **arguments)


def test_fit_learns_and_validates():
    corpus = TextCorpus(TEXT, time=10)
    trainer = trainer_of(corpus)
    history = trainer.fit(corpus, epochs=3, batch_size=4, progress=False)
    assert trainer.update == 3 * corpus.count("train", 4)
    assert history["val_loss"][-1] < history["val_loss"][0] < np.log(corpus.vocab_size)
    assert trainer.evaluate(corpus)["loss"] == history["val_loss"][-1]


@pytest.mark.parametrize("chunk", [None, 60])
def test_an_interrupted_fit_goes_on_bit_for_bit(chunk, tmp_path):
    """In the middle of an epoch: the text's place, the carried state, and the order of the chunks."""
    corpus = TextCorpus(TEXT, time=10, chunk=chunk)

    class Stop(dd.callbacks.Callback):
        def update_ends(self, trainer, loss):
            if trainer.update == 29:
                trainer.save_checkpoint(tmp_path / "c")
                trainer.stop_reason = "enough"

    whole, first, second = trainer_of(corpus), trainer_of(corpus), trainer_of(corpus)
    whole.fit(corpus, epochs=2, batch_size=3, progress=False)
    first.fit(corpus, epochs=2, batch_size=3, progress=False, callbacks=[Stop()])
    assert first.update == 29
    second.load_checkpoint(tmp_path / "c")
    second.fit(corpus, epochs=2, batch_size=3, progress=False)
    assert second.update == whole.update
    np.testing.assert_array_equal(second.model.parameters, whole.model.parameters)
    assert second.history["loss"] == whole.history["loss"]


@pytest.mark.parametrize(("dtype", "limit"), [("float32", 1e-3), ("float64", 1e-9)])
def test_curves_of_twin_and_fast_agree(dtype, limit):
    corpus = TextCorpus(TEXT, time=10)
    curves = []
    for backend in ("numpy", "fast"):
        with dd.backend(backend):
            model = dd.models.LanguageModel(corpus.vocab_size, "rnn", 20, dtype=dtype, seed=1)
            trainer = dd.Trainer(model, dd.optim.Adam(1e-3), clip_value=5.0)
            windows = list(corpus.batches("train", 2))[:100]
            curves.append([trainer.step(x, y) for x, y, _ in windows])
    np.testing.assert_allclose(*curves, rtol=0, atol=limit)


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-3), ("float64", 1e-9)])
def test_the_definition_learns_along_the_same_curve(dtype, tolerance):
    """The course's vanilla RNN, 500 updates on Python's reference: the losses of both backends stay together."""
    corpus = dd.data.TextCorpus(dd.data.python_topics()[:50_000], time=25)
    curves = {}
    for name in ("fast", "numpy"):
        with dd.backend(name):
            model = dd.models.LanguageModel(corpus.vocab_size, "rnn", 100, dtype=dtype, seed=0)
            trainer = dd.Trainer(model, dd.optim.Adam(1e-3), clip_value=5.0)
            windows = itertools.islice(corpus.batches(), 500)
            curves[name] = np.array([trainer.step(x, y) for x, y, _ in windows])
    assert np.abs(curves["fast"] - curves["numpy"]).max() <= tolerance
    assert curves["fast"][-50:].mean() < curves["fast"][0] - 1
