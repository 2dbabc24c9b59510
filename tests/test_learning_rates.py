"""The learning-rate range test."""

import copy
import math

import numpy as np
import pytest

import dd2424fast as dd
from dd2424fast.data import Augment
from dd2424fast.files import read
from dd2424fast.learning_rates import RangeTest

pytestmark = pytest.mark.usefixtures("one_thread")


def everything(trainer, path):
    """All that a checkpoint holds and the gradients, by name."""
    trainer.save_checkpoint(path)
    tensors, header = read(path, "checkpoint")
    return {**tensors, "gradients": trainer.model.gradients.copy(), "schedule": trainer.schedule, **header}


def assert_same(before, after):
    assert before.keys() == after.keys()
    for name, a in before.items():
        np.testing.assert_array_equal(a, after[name], err_msg=name)


def test_the_losses_are_those_of_growing_rates(problem, make_trainer):
    x, y = problem
    found = make_trainer().find_lr((x, y), 1e-4, 1e-1, updates=9, batch_size=40)
    by_hand = make_trainer(schedule=lambda update: found.rates[update])
    by_hand.fit((x, y), epochs=3, batch_size=40, progress=False, callbacks=[curve := dd.callbacks.LossCurve()])
    np.testing.assert_allclose(found.rates, np.geomspace(1e-4, 1e-1, 9), rtol=1e-12)
    np.testing.assert_array_equal(found.losses, curve.losses)
    weights = 0.9 ** np.arange(9)[::-1]
    for i in range(9):
        expected = (weights[8 - i :] * found.losses[: i + 1]).sum() / weights[8 - i :].sum()
        assert found.smoothed[i] == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("optimizer", [dd.optim.SGD, dd.optim.Adam, dd.optim.NAdam])
@pytest.mark.parametrize("trained", [False, True])
def test_everything_is_as_it_was(problem, make_trainer, tmp_path, optimizer, trained):
    trainer, twin = make_trainer(optimizer(0.01)), make_trainer(optimizer(0.01))
    for one in (trainer, twin):
        if trained:
            one.fit(problem, epochs=2, batch_size=50, progress=False)
    before = everything(trainer, tmp_path / "before")
    trainer.find_lr(problem, updates=30, batch_size=25, high=10)
    assert_same(before, everything(trainer, tmp_path / "after"))
    for one in (trainer, twin):
        one.fit(problem, epochs=2, batch_size=50, progress=False)
    np.testing.assert_array_equal(trainer.model.parameters, twin.model.parameters)
    np.testing.assert_array_equal(trainer.model.buffers, twin.model.buffers)
    assert trainer.history["loss"] == twin.history["loss"]


def test_a_language_models_state_is_as_it_was():
    corpus = dd.data.TextCorpus("the quick brown fox jumps over the lazy dog. " * 40, time=10)

    def trainer():
        model = dd.models.LanguageModel(corpus.tokenizer.vocab_size, "lstm", 8, seed=1)
        return dd.Trainer(model, dd.optim.Adam(0.01), seed=2)

    one, twin = trainer(), trainer()
    x, y = np.array([[1, 2, 3, 4]] * 3), np.array([[2, 3, 4, 5]] * 3)
    for each in (one, twin):
        each.step(x, y)
    carried = [state.copy() for state in one.model._training_work().carried]
    one.find_lr(corpus, updates=20, batch_size=4)
    for a, b in zip(one.model._training_work().carried, carried, strict=True):
        np.testing.assert_array_equal(a, b)
    assert one.step(x, y) == twin.step(x, y)


def test_a_rate_that_is_too_high_ends_it(problem, make_trainer, tmp_path):
    x, y = problem
    trainer = make_trainer(dd.optim.SGD(0.1))
    before = everything(trainer, tmp_path / "before")
    found = trainer.find_lr((x, y), 1e-3, 1e12, updates=60, batch_size=30)
    assert 5 < len(found.rates) < 60
    assert np.isfinite(found.losses).all()
    assert_same(before, everything(trainer, tmp_path / "after"))
    assert found.rates[0] < found.suggestion < found.rates[-1] / 10
    x = x.copy()
    with np.errstate(over="ignore", invalid="ignore"):
        x[:] = 3e38
        with pytest.raises(dd.TrainingDiverged, match="find_lr: the loss is not finite at the first update"):
            trainer.find_lr((x, y), updates=5)


def test_the_suggestion_is_a_tenth_of_the_best_rate(problem, make_trainer, tmp_path):
    rates = np.geomspace(1e-4, 1, 9)
    smoothed = np.array([2, 2, 1.9, 1.5, 0.8, 0.6, 0.5, 0.9, 3])
    found = RangeTest(rates, smoothed, smoothed)
    assert found.suggestion == pytest.approx(rates[6] / 10)
    assert str(found).endswith("suggestion: 0.01")
    rising = RangeTest(rates, np.sort(smoothed), np.sort(smoothed))
    assert rising.suggestion is None
    assert "the loss never fell" in str(rising)
    for report in (found, rising):
        figure = report.plot(tmp_path / "range.png")
        assert (tmp_path / "range.png").stat().st_size > 1000
        (axes,) = figure.axes
        assert axes.get_xscale() == "log"
        np.testing.assert_array_equal(axes.lines[1].get_ydata(), report.smoothed)
        assert len(axes.lines) == (2 if report is rising else 3)
    # A rate that it finds trains: much further than a hundredth of it.
    found = make_trainer(dd.optim.SGD(0.1)).find_lr(problem, 1e-5, 10, updates=100, batch_size=30)
    losses = []
    for rate in (found.suggestion, found.suggestion / 100):
        trainer = make_trainer(dd.optim.SGD(rate))
        losses.append(trainer.fit(problem, epochs=5, batch_size=30, progress=False)["loss"][-1])
    assert losses[0] < losses[1] / 1.5


def test_augmented_images():
    rng = np.random.default_rng(1)
    x, y = rng.integers(0, 256, (20, 3, 4, 1), dtype=np.uint8), rng.integers(0, 3, 20)
    model = dd.nn.Sequential(dd.nn.Flatten(), dd.nn.Linear(12, 3), seed=1)
    trainer = dd.Trainer(model, dd.optim.SGD(0.1))
    augment = Augment(flip=True, mixup=0.3, mean=128, std=64)
    found = trainer.find_lr((x, y), updates=6, batch_size=10, augment=augment)
    again = copy.deepcopy(trainer).find_lr((x, y), updates=6, batch_size=10, augment=augment)
    np.testing.assert_array_equal(found.losses, again.losses)
    assert (
        np.abs(found.losses - trainer.find_lr((augment.standardize(x), y), updates=6, batch_size=10).losses).max()
        > 0.01
    )


def test_wrong_arguments_are_refused(problem, make_trainer):
    trainer = make_trainer()
    for arguments, message in [
        ({"low": 0}, r"low: expected a number in \(0"),
        ({"low": 1, "high": 0.5}, r"high: expected a number in \(1"),
        ({"high": math.inf}, "high: expected"),
        ({"updates": 4}, "updates: expected an integer of at least 5"),
        ({"batch_size": 0}, "batch_size: expected"),
    ]:
        with pytest.raises(ValueError, match=message):
            trainer.find_lr(problem, **arguments)
    with pytest.raises(TypeError, match="augment: expected a function"):
        trainer.find_lr(problem, augment=3)
    x, y = problem
    with pytest.raises(ValueError, match="train: expected at least one row"):
        trainer.find_lr((x, np.full(len(y), -100)))
