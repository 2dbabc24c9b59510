"""The moving average of the weights."""

import numpy as np
import pytest

import dd2424fast as dd
from dd2424fast.callbacks import BestModel, Callback, Checkpoint, WeightAverage
from dd2424fast.schedules import Cosine

pytestmark = pytest.mark.usefixtures("one_thread")


def weights_of(model):
    return np.concatenate([model.parameters, model.buffers])


class Recorder(Callback):
    """The weights after each update, and those that are there when an epoch ends."""

    def __init__(self):
        self.updates, self.epochs = [], []

    def update_ends(self, trainer, loss):
        self.updates.append(weights_of(trainer.model))

    def epoch_ends(self, trainer, row):
        self.epochs.append(weights_of(trainer.model))


def fit(trainer, problem, callbacks, epochs=4, **arguments):
    return trainer.fit(problem, problem, epochs=epochs, batch_size=30, callbacks=callbacks, progress=False, **arguments)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("decay", [0.9, 0.5, 0.0, 1.0])
def test_it_is_the_average_of_what_was_trained(problem, make_trainer, decay, dtype):
    trainer, recorder, average = make_trainer(dtype=dtype), Recorder(), WeightAverage(decay)
    expected = weights_of(trainer.model).astype(float)
    untouched, plain = make_trainer(dtype=dtype), Recorder()
    fit(untouched, problem, [plain])
    history = fit(trainer, problem, [recorder, average])
    np.testing.assert_array_equal(recorder.updates, plain.updates)  # training goes on as without it
    averages = []
    for t, weights in enumerate(recorder.updates):
        d = min(decay, (1 + t) / (10 + t))
        expected = d * expected + (1 - d) * weights
        averages.append(expected)
    tolerance = 1e-12 if dtype == "float64" else 1e-5
    np.testing.assert_allclose(average.average, expected, rtol=tolerance, atol=tolerance)
    np.testing.assert_allclose(recorder.epochs, averages[3::4], rtol=tolerance, atol=tolerance)
    assert average.updates == 16
    # It is what was evaluated, and what is left in the model.
    np.testing.assert_array_equal(weights_of(trainer.model), average.average)
    assert trainer.evaluate(problem)["loss"] == history["val_loss"][-1]
    assert history["loss"] == untouched.history["loss"]
    if decay:
        assert history["val_loss"] != untouched.history["val_loss"]


def test_it_may_be_kept_beside_the_model(problem, make_trainer):
    trainer, recorder, average = make_trainer(), Recorder(), WeightAverage(0.9, replace=False)
    fit(trainer, problem, [average, recorder])
    np.testing.assert_array_equal(weights_of(trainer.model), recorder.updates[-1])
    assert not np.array_equal(average.average, recorder.updates[-1])


def test_a_resumed_fit_ends_with_the_same_average(problem, make_trainer, tmp_path):
    whole, average = make_trainer(schedule=Cosine(0.02, 16)), WeightAverage(0.9)
    fit(whole, problem, [average])
    first, second, again = (*(make_trainer(schedule=Cosine(0.02, 16)) for _ in range(2)), WeightAverage(0.9))
    recorder = Recorder()
    fit(first, problem, [Checkpoint(tmp_path / "c"), WeightAverage(0.9), recorder], epochs=2)
    second.load_checkpoint(tmp_path / "c")
    np.testing.assert_array_equal(weights_of(second.model), recorder.updates[-1])  # not the average
    fit(second, problem, [Checkpoint(tmp_path / "c"), again, Recorder()])
    np.testing.assert_array_equal(again.average, average.average)
    np.testing.assert_array_equal(weights_of(second.model), weights_of(whole.model))
    assert second.history["val_loss"] == whole.history["val_loss"]


def test_the_best_model_is_an_average(problem, make_trainer):
    trainer, recorder, best = make_trainer(dd.optim.SGD(0.5)), Recorder(), BestModel()
    history = fit(trainer, problem, [best, recorder, WeightAverage(0.8)], epochs=6)
    epoch = int(np.argmin(history["val_loss"]))
    np.testing.assert_array_equal(weights_of(trainer.model), recorder.epochs[epoch])
    assert trainer.evaluate(problem)["loss"] == min(history["val_loss"])


def test_the_weights_come_back_after_an_error(problem, make_trainer):
    class Fails(Callback):
        def epoch_ends(self, trainer, row):
            raise OSError("the disk is full")

    trainer, recorder, average = make_trainer(), Recorder(), WeightAverage(0.9, replace=False)
    with pytest.raises(OSError, match="the disk is full"):
        fit(trainer, problem, [average, recorder, Fails()])
    np.testing.assert_array_equal(weights_of(trainer.model), recorder.updates[-1])


def test_wrong_use_is_refused(problem, make_trainer):
    with pytest.raises(ValueError, match=r"decay: expected a number in \[0, 1\]"):
        WeightAverage(1.5)
    average = WeightAverage()
    fit(make_trainer(), problem, [average])
    other = dd.Trainer(dd.models.MLP(7, (), 4, seed=1), dd.optim.SGD(0.1))
    with pytest.raises(
        ValueError, match=r"WeightAverage: its average was of a model with \d+ numbers, this one has 32"
    ):
        fit(other, problem, [average])
