"""The forecast of a training, and the time budget."""

import copy
import math
import time
import tracemalloc

import numpy as np
import pytest

import dd2424fast as dd
from dd2424fast.callbacks import BestModel, Callback, Checkpoint, CSVLogger, EarlyStopping, LossCurve, WeightAverage
from dd2424fast.files import read
from dd2424fast.forecast import Forecast, duration, memory

pytestmark = pytest.mark.usefixtures("one_thread")

TEXT = "the quick brown fox jumps over the lazy dog. " * 60


class Clock:
    """A clock that moves only when told: an update takes `update` seconds with one thread and `update` / `gain` with
    more, a batch of an evaluation `evaluation` seconds."""

    def __init__(self, monkeypatch):
        self.now, self.update, self.gain, self.evaluation, self.first = 100.0, 1.0, 1.0, 0.5, 0.0
        self.updates = self.evaluations = 0
        step, scores = dd.Trainer.step, dd.Trainer._scores

        def timed_step(*args, **kwargs):
            self.updates += 1
            seconds = self.update(self.updates) if callable(self.update) else self.update
            self.now += seconds / (self.gain if dd.get_num_threads() > 1 else 1) + self.first * (self.updates == 1)
            return step(*args, **kwargs)

        def timed_scores(*args, **kwargs):
            self.evaluations += 1
            self.now += self.evaluation
            return scores(*args, **kwargs)

        monkeypatch.setattr(time, "perf_counter", lambda: self.now)
        monkeypatch.setattr(dd.Trainer, "step", timed_step)
        monkeypatch.setattr(dd.Trainer, "_scores", timed_scores)


@pytest.fixture
def clock(monkeypatch):
    return Clock(monkeypatch)


def everything(trainer, path):
    """All that a checkpoint holds, the gradients, and what else the next update depends on, by name."""
    trainer.save_checkpoint(path)
    tensors, header = read(path, "checkpoint")
    model = trainer.model
    return {
        **tensors,
        "gradients": model.gradients.copy(),
        "threads": dd.get_num_threads(),
        "schedule": trainer.schedule,
        "work": (model._training_work().seed, model._training_work().update, model._training_work().training),
        "modes": [module.training for _, module in model.modules()],
        "outputs": None if trainer._outputs is None else trainer._outputs.copy(),
        **header,
    }


def assert_same(before, after):
    assert before.keys() == after.keys()
    for name, a in before.items():
        np.testing.assert_array_equal(a, after[name], err_msg=name)


# ---- the forecast ----------------------------------------------------------------------------------------------------


def test_the_time_is_that_of_the_updates_and_evaluations(problem, make_trainer, clock):
    clock.first = 7.0
    found = make_trainer().estimate(problem, problem, epochs=3, batch_size=50, threads=1)
    assert (found.epochs, found.updates) == (3, 9)  # 120 rows are 3 batches
    assert found.warm_up == 7
    assert found.seconds == pytest.approx(7 + 9 * 1.0 + 3 * 0.5)
    assert found.low == pytest.approx(9 + 1.5)
    assert found.high == found.seconds
    assert list(found.timings) == [1]
    np.testing.assert_array_equal(found.timings[1], np.ones(20))
    without = make_trainer().estimate(problem, epochs=3, batch_size=50, threads=1)
    assert without.seconds == pytest.approx(9)
    assert without.evaluation == (0, 0, 0)


def test_the_band_is_of_the_updates_spread(problem, make_trainer, clock):
    clock.update = lambda n: 0.1 * (n % 10 + 1)
    found = make_trainer().estimate(problem, epochs=2, batch_size=40, updates=40, threads=1)
    seconds = found.timings[1]
    assert len(seconds) == 40
    low, median, high = np.quantile(seconds, (0.1, 0.5, 0.9))
    assert low < median < high
    assert found.low == pytest.approx(6 * low)
    assert found.seconds == pytest.approx(found.warm_up + 6 * median)
    assert found.high == pytest.approx(found.warm_up + 6 * high)


def test_large_validation_data_are_not_run_whole(problem, make_trainer, clock):
    x, y = np.tile(problem[0], (51, 1))[:6001], np.tile(problem[1], 51)[:6001]  # six batches of 1000, and one row
    found = make_trainer().estimate(problem, (x, y), epochs=4, threads=1)
    assert found.evaluation == pytest.approx((0.5 * 6.001,) * 3)
    assert clock.evaluations == 1 + 5 + 2  # one to take memory, those that count, and for the memory
    batches = [(x[i : i + 500], y[i : i + 500]) for i in range(0, 5000, 500)]
    assert make_trainer().estimate(problem, batches, threads=1).evaluation == pytest.approx((5.0,) * 3)

    class Unsized:
        def __iter__(self):
            return iter(batches)

    assert make_trainer().estimate(problem, Unsized(), threads=1).evaluation == pytest.approx((5.0,) * 3)
    with pytest.raises(ValueError, match="train: expected arrays, a TextCorpus or an iterable with a length"):
        make_trainer().estimate(Unsized())


def test_a_last_batch_of_few_rows_does_not_count(problem, make_trainer, clock):
    x, y = np.tile(problem[0], (9, 1))[:1001], np.tile(problem[1], 9)[:1001]
    found = make_trainer().estimate(problem, (x, y), threads=1)
    assert found.evaluation == pytest.approx((0.5 * 1.001,) * 3)


@pytest.mark.parametrize(("gain", "best"), [(2.0, 2), (1.0, 1), (0.5, 1)])
def test_the_best_thread_count(problem, make_trainer, clock, gain, best):
    clock.gain = gain
    found = make_trainer().estimate(problem, epochs=2, batch_size=40, threads=2)
    if not dd.show_config()["openmp"] == "yes":
        assert list(found.timings) == [1]
        return
    assert list(found.timings) == [1, 2]
    assert found.threads == best
    assert found.now == 1
    assert found.seconds == pytest.approx(6)  # of the setting, whatever is best
    assert dd.get_num_threads() == 1


def test_the_first_update_of_another_team_does_not_count(problem, make_trainer, clock):
    teams = [1]

    def seconds(_):
        teams.append(dd.get_num_threads())
        return 1.0 if teams[-1] == teams[-2] else 5.0

    clock.update = seconds
    found = make_trainer().estimate(problem, updates=10, threads=2)
    for measured in found.timings.values():
        np.testing.assert_array_equal(measured, np.ones(10))


def test_threads_that_are_as_fast_within_the_spread_are_fewer():
    def best(**timings):
        timings = {int(name[1:]): np.array(seconds) for name, seconds in timings.items()}
        return Forecast(1, 1, 1, timings, (0, 0, 0), 0, {}).threads

    assert best(n1=[1.0, 1.1, 1.2], n2=[0.9, 1.05, 1.3]) == 1
    assert best(n1=[2.0, 2.1, 2.2], n2=[0.9, 1.05, 1.3], n3=[0.9, 1.0, 1.1]) == 2
    assert best(n1=[2.0, 2.1, 2.2], n2=[1.3, 1.3, 1.3], n4=[0.9, 1.0, 1.1]) == 4


def test_a_diverging_trial_leaves_all_as_it_was(problem, make_trainer, tmp_path):
    trainer = make_trainer(dd.optim.SGD(0.1), schedule=lambda update: 1e30 if update == 4 else 0.1)
    before = everything(trainer, tmp_path / "before")
    with np.errstate(all="ignore"), pytest.raises(dd.TrainingDiverged):
        trainer.estimate(problem, threads=2)
    assert_same(before, everything(trainer, tmp_path / "after"))


@pytest.mark.parametrize("optimizer", [dd.optim.SGD, dd.optim.Adam, dd.optim.NAdam])
@pytest.mark.parametrize("trained", [False, True])
def test_everything_is_as_it_was(problem, make_trainer, tmp_path, optimizer, trained):
    trainer, twin = make_trainer(optimizer(0.01)), make_trainer(optimizer(0.01))
    for one in (trainer, twin):
        if trained:
            one.fit(problem, epochs=2, batch_size=50, progress=False)
    before = everything(trainer, tmp_path / "before")
    trainer.estimate(problem, problem, batch_size=25, threads=2, augment=lambda x, key: x + 1)
    assert_same(before, everything(trainer, tmp_path / "after"))
    for one in (trainer, twin):
        one.fit(problem, epochs=2, batch_size=50, progress=False)
    np.testing.assert_array_equal(trainer.model.parameters, twin.model.parameters)
    np.testing.assert_array_equal(trainer.model.buffers, twin.model.buffers)
    assert trainer.history["loss"] == twin.history["loss"]


def test_between_a_forward_and_a_backward_pass(problem, make_trainer):
    """What the backward pass needs, and dropout's mask, are not those of the trial."""
    found = []
    for tries in (False, True):
        trainer = make_trainer()
        y = trainer.model.train().forward(problem[0])
        if tries:
            trainer.estimate(problem, problem, threads=1)
            trainer.find_lr(problem, updates=5)
        found.append((y, trainer.model.backward(np.ones_like(y)), trainer.model.gradients.copy()))
    for a, b in zip(*found, strict=True):
        np.testing.assert_array_equal(a, b)


def corpus_trainer(cell="lstm"):
    corpus = dd.data.TextCorpus(TEXT, time=10)
    model = dd.models.LanguageModel(corpus.vocab_size, cell, 8, layers=2, dropout=0.3, seed=1)
    return corpus, dd.Trainer(model, dd.optim.Adam(0.01), seed=2)


def test_a_language_model(clock, tmp_path):
    corpus, trainer = corpus_trainer()
    _, twin = corpus_trainer()
    x, y = np.array([[1, 2, 3, 4]] * 3), np.array([[2, 3, 4, 5]] * 3)
    for each in (trainer, twin):
        each.step(x, y)
    before = everything(trainer, tmp_path / "before")
    assert any(name.startswith("carried.") for name in before)
    found = trainer.estimate(corpus, epochs=2, batch_size=4, threads=1)
    assert_same(before, everything(trainer, tmp_path / "after"))
    assert trainer.step(x, y) == twin.step(x, y)
    assert found.updates == 2 * corpus.count("train", 4)
    streams, length = corpus.evaluation_plan("validation")  # 270 tokens in one stream: windows of 100, 100 and 69
    assert (streams, length) == (1, 269)
    assert found.evaluation[1] == pytest.approx(0.5 * np.median([1, 1, 100 / 69]) * 2.69)
    assert sum(1 for _ in corpus.evaluation("validation")) == 3


def test_what_an_interrupted_fit_has_left(problem, make_trainer, clock):
    class Stop(Callback):
        def update_ends(self, trainer, loss):
            if trainer.update == 4:
                trainer.stop_reason = "interrupted"

    trainer = make_trainer()
    trainer.fit(problem, epochs=3, batch_size=40, progress=False, callbacks=[Stop()])
    found = trainer.estimate(problem, epochs=3, batch_size=40, threads=1)
    assert (found.epochs, found.updates) == (2, 5)


def test_the_memory_is_what_training_takes():
    """Against the peak of a real fit, from before the trainer was made."""
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((3000, 50)).astype("float32"), rng.integers(0, 9, 3000)

    def trainer():
        return dd.Trainer(dd.models.MLP(50, (300, 200), 9, batch_norm=True, seed=1), dd.optim.Adam(0.01), seed=2)

    trainer().estimate((x, y), (x, y), batch_size=500, updates=5, threads=1)  # what is imported and made once
    tracemalloc.start()
    try:
        reference = trainer()
        reference.fit((x, y), (x, y), epochs=1, batch_size=500, progress=False)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    forecast = trainer()
    found = forecast.estimate((x, y), (x, y), batch_size=500, updates=5, threads=1)
    assert not tracemalloc.is_tracing()
    assert found.bytes == pytest.approx(peak, rel=0.03)
    n = 4 * forecast.model.parameters.size
    assert (found.parts["parameters"], found.parts["gradients"]) == (n + 4 * forecast.model.buffers.size, n)
    assert found.parts["optimizer"] == 2 * n
    small = trainer().estimate((x, y), batch_size=50, updates=5, threads=1)
    assert found.parts["activations and work"] > 5 * small.parts["activations and work"]


def test_a_trace_of_the_caller_goes_on(problem, make_trainer):
    tracemalloc.start()
    try:
        make_trainer().estimate(problem, updates=5, threads=1)
        assert tracemalloc.is_tracing()
    finally:
        tracemalloc.stop()


def test_what_it_says(problem, make_trainer):
    timings = {1: np.array([0.1, 0.2, 0.3]), 2: np.array([0.2, 0.2, 0.2])}
    found = Forecast(100, 4, 1, timings, (0.5, 1.0, 2.0), 3.0, {"parameters": 2_000_000, "work": 500_000})
    assert (found.low, found.seconds, found.high) == pytest.approx((0.12 * 100 + 2, 3 + 20 + 4, 3 + 28 + 8))
    assert found.bytes == 2_500_000
    lines = str(found).splitlines()
    assert lines[0] == "training  4 epochs, 100 updates"
    assert lines[1] == "time      27.0 s (from 14.0 s to 39.0 s), of it evaluation 4 s, warm-up 3 s"
    assert lines[2] == "memory    2.5 MB: parameters 2.0 MB, work 500.0 kB"
    assert lines[3] == "threads   1 (now 1)"
    assert lines[5].split() == ["1", "200.000", "120.000", "280.000"]
    assert lines[6].split() == ["2", "200.000", "200.000", "200.000"]
    assert found.table() == str(found)
    assert found.updates_within(3 + 0.24 * 50) == 50  # an update with its share of the evaluations takes 0.24 s
    assert found.updates_within(1) == 0
    with pytest.raises(ValueError, match="seconds: expected"):
        found.updates_within(math.nan)
    assert found.to_dict()["seconds_an_update"] == {"1": 0.2, "2": 0.2}
    assert [memory(n) for n in (999, 15_040, 3_210_000_000)] == ["999 B", "15.0 kB", "3.2 GB"]
    assert [duration(s) for s in (0.0123, 9.5, 12.34, 59.94, 59.96, 250, 3599.9, 7500)] == [
        "12.3 ms", "9.5 s", "12.3 s", "59.9 s", "1 min 00 s", "4 min 10 s", "1 h 00 min", "2 h 05 min",
    ]  # fmt: skip


def test_wrong_arguments_are_refused(problem, make_trainer):
    trainer = make_trainer()
    for arguments, message in [
        ({"epochs": 0}, "epochs: expected"),
        ({"batch_size": 0}, "batch_size: expected"),
        ({"updates": 4}, "updates: expected an integer of at least 5"),
        ({"threads": 0}, "threads: expected"),
        ({"validation": (problem[0], problem[1][:5])}, "y: expected 120 rows"),
        ({"validation": [], "updates": 5}, "validation: expected at least one batch"),
    ]:
        with pytest.raises(ValueError, match=message):
            trainer.estimate(problem, **arguments)
    with pytest.raises(TypeError, match="augment: expected a function"):
        trainer.estimate(problem, augment=3)


# ---- the time budget -------------------------------------------------------------------------------------------------


def fit(trainer, problem, budget, epochs=4, validation=True, **arguments):
    arguments = {"batch_size": 40, "progress": False, **arguments}
    return trainer.fit(problem, problem if validation else None, epochs=epochs, time_budget=budget, **arguments)


@pytest.mark.parametrize(
    ("budget", "updates", "epochs"),
    [
        (0.01, 1, [1 / 3]),  # one update is always made
        (3.9, 1, [1 / 3]),  # three evaluations are measured first, 1.5 s; 1 for the update, 0.5 for the evaluation
        (4.0, 2, [2 / 3]),
        (5.0, 3, [1]),
        (6.4, 3, [1]),
        (6.5, 4, [1, 4 / 3]),
        (1000, 12, [1, 2, 3, 4]),
    ],
)
def test_training_ends_before_the_update_that_does_not_fit(problem, make_trainer, clock, budget, updates, epochs):
    trainer, began = make_trainer(), clock.now
    history = fit(trainer, problem, budget)
    assert trainer.update == updates
    assert history["epoch"] == pytest.approx(epochs)
    assert trainer.stop_reason == (None if updates == 12 else "time budget")
    assert trainer.epoch == math.floor(epochs[-1])
    if updates > 1:
        assert clock.now - began <= budget
    if updates < 12:  # another update, and its evaluation, would have been too much
        row_is_cut = epochs[-1] % 1 > 0
        assert clock.now - began + 1 + (0 if row_is_cut else 0.5) > budget
    assert history["val_loss"][-1] == trainer.evaluate(problem)["loss"]
    assert all(len(values) == len(epochs) for values in history.columns.values())


def test_the_slowest_of_the_last_updates_counts(problem, make_trainer, clock):
    clock.update = lambda n: 3.0 if n == 2 else 1.0
    trainer = make_trainer()
    fit(trainer, problem, 20.0, epochs=50, validation=False, batch_size=120)  # epochs of one update
    # Update 2 leaves the last ten after update 12, at 14 s; with it among them, training would have ended at 17 s.
    assert trainer.update == 18
    assert trainer.history["epoch"] == [*range(1, 19)]


def test_a_longer_end_of_an_epoch_is_seen(problem, make_trainer, clock):
    class Slow(Callback):
        def epoch_ends(self, trainer, row):
            clock.now += 5.0

    trainer, began = make_trainer(), clock.now
    fit(trainer, problem, 15.5, validation=False, callbacks=[Slow()])  # epochs of 3 + 5 s
    assert trainer.update == 5  # in 10 s; with another one and the end it would be 16 s
    assert clock.now - began == 15


def test_what_evaluations_took_stands_above_what_was_expected(problem, make_trainer, clock):
    class Quick(Callback):
        def fit_begins(self, trainer):
            clock.evaluation = 4.0

        def update_ends(self, trainer, loss):
            clock.evaluation = 0.0

    trainer, began = make_trainer(), clock.now
    fit(trainer, problem, 20.0, callbacks=[Quick()])  # 12 s are for measuring the evaluation
    assert trainer.update == 8
    assert clock.now - began == 20


def test_the_last_row_is_of_the_part_of_the_epoch(problem, make_trainer, clock):
    trainer, curve = make_trainer(), LossCurve()
    history = fit(trainer, problem, 4.0, callbacks=[curve])
    np.testing.assert_array_equal(curve.updates, [1, 2])
    assert history["loss"] == [pytest.approx(curve.losses.mean())]
    assert history["lr"] == [0.01]
    assert history["seconds"] == [2.5]


@pytest.mark.parametrize("budget", [4.0, 5.0, 6.5, 8.0])
def test_it_goes_on_as_if_it_had_not_ended(problem, make_trainer, clock, budget):
    whole, cut = make_trainer(), make_trainer()
    curves = [LossCurve(), LossCurve()]
    patient = [EarlyStopping(patience=9, min_delta=100.0) for _ in curves]  # no epoch is better than the first
    fit(whole, problem, None, callbacks=[curves[0], patient[0]])
    fits = 0
    while cut.update < 12:
        fit(cut, problem, budget, callbacks=[curves[1], patient[1]])
        fits += 1
    assert fits > 1
    assert cut.stop_reason is None
    assert [each.waited for each in patient] == [3, 3]
    np.testing.assert_array_equal(cut.model.parameters, whole.model.parameters)
    np.testing.assert_array_equal(cut.model.buffers, whole.model.buffers)
    np.testing.assert_array_equal(curves[0].losses, curves[1].losses)
    for name, values in whole.history.columns.items():
        if name != "seconds":
            assert cut.history[name] == pytest.approx(values, rel=1e-15), name


@pytest.mark.parametrize("budget", [5.0, 6.5])
def test_it_goes_on_from_a_checkpoint(problem, make_trainer, clock, tmp_path, budget):
    """Callbacks that count epochs, and that put other weights into the model, see those of a whole training."""

    def callbacks(path):
        return [WeightAverage(0.9), EarlyStopping(patience=9, restore_best_weights=True), Checkpoint(path, epochs=9)]

    whole, cut = make_trainer(), make_trainer()
    theirs, ours = callbacks(tmp_path / "whole"), callbacks(tmp_path / "cut")
    fit(whole, problem, None, callbacks=theirs)
    fit(cut, problem, budget, callbacks=ours)
    assert cut.stop_reason == "time budget"
    rows = len(cut.history)
    cut, ours = make_trainer(), callbacks(tmp_path / "cut")
    cut.load_checkpoint(tmp_path / "cut")
    assert (cut.update, len(cut.history)) == ({5.0: 3, 6.5: 4}[budget], 1)
    assert rows == {5.0: 1, 6.5: 2}[budget]
    fit(cut, problem, None, callbacks=ours)
    np.testing.assert_array_equal(cut.model.parameters, whole.model.parameters)
    np.testing.assert_array_equal(ours[0].average, theirs[0].average)
    assert (ours[1].best_epoch, ours[1].waited) == (theirs[1].best_epoch, theirs[1].waited)
    assert cut.history["val_loss"] == whole.history["val_loss"]


def test_callbacks_see_the_cut_epoch(problem, make_trainer, clock, tmp_path):
    trainer = make_trainer()
    best = BestModel(tmp_path / "best.safetensors")
    fit(trainer, problem, 4.0, callbacks=[best, CSVLogger(tmp_path / "h.csv")])
    assert best.best_epoch == pytest.approx(2 / 3)
    assert (tmp_path / "h.csv").read_text().splitlines()[1].startswith("0.6666")
    np.testing.assert_array_equal(
        dd.models.MLP.load(tmp_path / "best.safetensors").parameters, trainer.model.parameters
    )
    trainer = make_trainer()  # one that would stop training has no say over why it ended
    patient = EarlyStopping("loss", patience=1, min_delta=100.0)
    fit(trainer, problem, 6.5, callbacks=[patient])
    assert len(trainer.history) == 2
    assert trainer.stop_reason == "time budget"


def test_a_text(clock, tmp_path):
    corpus, trainer = corpus_trainer()
    _, whole = corpus_trainer()
    arguments = {"epochs": 2, "batch_size": 3, "progress": False}
    whole.fit(corpus, **arguments)
    windows = corpus.count("train", 3)
    trainer.fit(corpus, time_budget=100.0, **arguments)
    assert trainer.stop_reason == "time budget"
    assert windows < trainer.update < 2 * windows
    assert trainer.history["epoch"] == [1, pytest.approx(trainer.update / windows)]
    assert "val_perplexity" in trainer.history
    twin = copy.deepcopy(trainer)
    for one in (trainer, twin):
        one.fit(corpus, **arguments)
        np.testing.assert_array_equal(one.model.parameters, whole.model.parameters)
        assert one.history["val_loss"] == whole.history["val_loss"]


def test_an_iterable_without_a_length(problem, make_trainer, clock):
    x, y = problem

    class Unsized:
        def __iter__(self):
            return iter([(x[i : i + 40], y[i : i + 40]) for i in range(0, 120, 40)])

    trainer = make_trainer()
    for epochs in ([1], [1, 2]):
        trainer.fit(Unsized(), epochs=4, progress=False, time_budget=2.0)
        assert trainer.stop_reason == "time budget"
        assert trainer.history["epoch"] == epochs
    assert trainer.update == 4


@pytest.mark.parametrize("budget", [0, -1.0, math.nan, -math.inf])
def test_wrong_budgets(problem, make_trainer, budget):
    trainer = make_trainer()
    with pytest.raises(ValueError, match=r"time_budget: expected a number in \(0, inf\]"):
        trainer.fit(problem, time_budget=budget)
    with pytest.raises(TypeError, match="time_budget: expected a number, got '10'"):
        trainer.fit(problem, time_budget="10")
    assert trainer.update == 0
