"""Perplexity, bits per character, smoothed loss, distinct-n and BLEU."""

import math
import sys

import numpy as np
import pytest

import dd2424fast as dd
from dd2424fast import metrics
from dd2424fast.data import BPE, Char, TextCorpus, Word

TEXT = "First came one word, then another word; first and last: the wörd € 語.\n" * 40


def test_perplexity_and_bits():
    assert metrics.perplexity(math.log(80)) == pytest.approx(80)
    assert metrics.perplexity(1000.0) == math.inf
    assert math.isnan(metrics.perplexity(math.nan))
    assert metrics.bits_per_character(math.log(2), 10, 40) == pytest.approx(0.25)
    assert metrics.bits_per_character(math.log(8), 7, 7) == pytest.approx(3)


def test_smoothed_loss_starts_at_the_first():
    smoothed = metrics.SmoothedLoss()
    assert smoothed.value is None
    assert smoothed.update(4.0) == 4.0
    assert smoothed.update(2.0) == pytest.approx(0.999 * 4 + 0.001 * 2, rel=1e-15)
    again = metrics.SmoothedLoss()
    again.load_state(smoothed.state())
    assert again.update(1.0) == smoothed.update(1.0)


def test_distinct():
    assert metrics.distinct("a b a b", 1) == 2 / 4
    assert metrics.distinct("a b a b", 2) == 2 / 3
    assert metrics.distinct(["a b", "b a"], 2) == 1  # "b b" reaches over the end of a text
    assert metrics.distinct([[1, 2], np.array([2, 1, 2])], 2) == 2 / 3
    assert metrics.distinct(np.array([5, 5, 5]), 3) == 1
    assert math.isnan(metrics.distinct(["a", ""], 2))


def test_bleu_is_sacrebleus():
    pytest.importorskip("sacrebleu")
    hypotheses = ["the cat sat on the mat today", "there is a dog in the house"]
    assert metrics.bleu(hypotheses, hypotheses) == pytest.approx(100)
    # By hand: 2-grams to 4-grams of one sentence, no smoothing needed, equal lengths.
    # "a b c d e f" against "a b c d x f": 5/6, 3/5, 2/4, 1/3.
    expected = 100 * math.exp(sum(map(math.log, (5 / 6, 3 / 5, 2 / 4, 1 / 3))) / 4)
    assert metrics.bleu(["a b c d e f"], ["a b c d x f"]) == pytest.approx(expected)
    several = [["nothing alike", hypotheses[0]], [hypotheses[1], "nothing alike"]]
    assert metrics.bleu(hypotheses, several) == pytest.approx(100)
    assert metrics.bleu(["A B C D"], ["a b c d"], lowercase=True) == pytest.approx(100)


def test_bleu_without_sacrebleu(monkeypatch):
    monkeypatch.setitem(sys.modules, "sacrebleu", None)
    with pytest.raises(ModuleNotFoundError, match="BLEU needs the package sacrebleu: pip install sacrebleu"):
        metrics.bleu(["a"], ["a"])


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: metrics.perplexity("x"), TypeError, "loss: expected a number, got 'x'"),
        (lambda: metrics.bits_per_character(1.0, 0, 5), ValueError, "tokens: expected an integer of at least 1"),
        (lambda: metrics.bits_per_character(1.0, 5, 0), ValueError, "characters"),
        (lambda: metrics.SmoothedLoss(1.0), ValueError, r"decay: expected a number in \[0, 1\), got 1.0"),
        (lambda: metrics.distinct("a b", 0), ValueError, "n: expected an integer of at least 1, got 0"),
        (lambda: metrics.distinct([0.5, 1.5], 1), TypeError, "texts: expected texts or vectors of token ids"),
        (lambda: metrics.distinct(["a", 3], 1), TypeError, "texts: expected texts or vectors of token ids"),
        (lambda: metrics.bleu("a b", ["a b"]), TypeError, "hypotheses: expected a sequence of str, got 'a b'"),
        (lambda: metrics.bleu(["a b"], "a b"), TypeError, "references: expected a sequence of str"),
        (lambda: metrics.bleu([], []), ValueError, "hypotheses: expected at least one"),
        (lambda: metrics.bleu(["a", "b"], ["a"]), ValueError, "references: expected one for each of 2"),
        (lambda: metrics.bleu(["a", "b"], [["a", "c"], ["b"]]), ValueError, "references: expected equally many"),
    ],
)  # fmt: skip
def test_bad_values(call, error, message):
    with pytest.raises(error, match=message):
        call()


@pytest.mark.parametrize("kind", [Char, Word, BPE])
def test_tokens_tell_their_characters(kind):
    if kind is BPE:
        pytest.importorskip("tokenizers")
        tokenizer = BPE(TEXT, special=("<eos>",), most=290)
    else:
        tokenizer = kind(TEXT, special=("<eos>",), unknown=None)
    for text in (TEXT, "", "<eos>wörd<eos>", "€ 語"):
        assert tokenizer.characters(tokenizer.encode(text)) == len(text)


def test_the_unknown_tells_nothing():
    tokenizer = Word("one word", unknown="<unk>")
    assert tokenizer.characters(tokenizer.encode("one word")) == 8
    assert tokenizer.characters(tokenizer.encode("one dog")) is None


# ---- evaluation ------------------------------------------------------------------------------------------------------


def trainer_of(corpus, loss=None):
    return dd.Trainer(dd.models.LanguageModel(corpus.vocab_size, "gru", 12, seed=1), dd.optim.Adam(0.01), loss)


def test_evaluation_of_a_language_model():
    corpus = TextCorpus(TEXT, time=10)
    trainer = trainer_of(corpus)
    history = trainer.fit(corpus, epochs=2, batch_size=4, progress=False)
    found = trainer.evaluate(corpus)
    assert found["perplexity"] == pytest.approx(math.exp(found["loss"]))
    assert found["bits_per_character"] == pytest.approx(found["loss"] / math.log(2))
    assert history["val_bits_per_character"][-1] == found["bits_per_character"]
    windows = [(x, y) for x, y, _ in corpus.evaluation("validation")]
    assert trainer.evaluate(windows).keys() == {"loss", "accuracy", "perplexity"}


def test_a_part_of_a_corpus_is_evaluated_as_a_text_of_its_own():
    corpus = TextCorpus(TEXT, time=10, validation=0.1, test=0.2)
    trainer = trainer_of(corpus)
    assert trainer.evaluate(corpus) == trainer.evaluate(corpus, part="validation")
    for part in ("train", "validation", "test"):
        windows = [dd.Batch(x, y, begins=begins) for x, y, begins in corpus.evaluation(part)]
        found = trainer.evaluate(corpus, part=part)
        assert {name: found[name] for name in ("loss", "accuracy", "perplexity")} == trainer.evaluate(windows)
        assert found["bits_per_character"] == pytest.approx(found["loss"] / math.log(2))
    with pytest.raises(ValueError, match="part: expected one of train, validation, test, got 'tests'"):
        trainer.evaluate(corpus, part="tests")
    with pytest.raises(ValueError, match="data: expected a corpus with a test part"):
        trainer.evaluate(TextCorpus(TEXT, time=10), part="test")


def test_bits_count_the_characters_of_words():
    corpus = TextCorpus("one two three. " * 60, tokenizer="word", time=5)
    found = trainer_of(corpus).evaluate(corpus)
    tokens = np.concatenate([y.ravel() for _, y, _ in corpus.evaluation("validation")])
    characters = len(corpus.tokenizer.decode(tokens))
    assert characters > 2 * len(tokens)
    assert found["bits_per_character"] == pytest.approx(found["loss"] / math.log(2) * len(tokens) / characters)


@pytest.mark.parametrize(
    "loss", [dd.losses.CrossEntropy(label_smoothing=0.1), dd.losses.CrossEntropy(class_weight=[1.0] * 30)]
)
def test_another_loss_is_no_likelihood(loss):
    corpus = TextCorpus("abcdefghijklmnopqrstuvwxyz123\n" * 20, time=10)
    assert trainer_of(corpus, loss).evaluate(corpus).keys() == {"loss", "accuracy"}
    model = dd.models.MLP(3, (), 2, seed=0)
    assert dd.Trainer(model, dd.optim.SGD(0.1)).evaluate((np.ones((2, 3)), [0, 1])).keys() == {"loss", "accuracy"}


def test_unknown_words_give_no_bits():
    corpus = TextCorpus("one two three. " * 60 + "four " * 45, tokenizer="word", time=5, validation=0.2)
    assert trainer_of(corpus).evaluate(corpus).keys() == {"loss", "accuracy", "perplexity"}
