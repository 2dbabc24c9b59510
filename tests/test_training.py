"""The training loop."""

import copy
import os
import pickle
import signal
import threading
import tracemalloc

import numpy as np
import pytest

import dd2424fast as dd
from dd2424fast.callbacks import BestModel, Callback, Checkpoint, CSVLogger, EarlyStopping


class StopAfter(Callback):
    """Interrupt after so many updates, as Ctrl-C does."""

    def __init__(self, updates):
        self.updates = updates

    def update_ends(self, trainer, loss):
        if trainer.update == self.updates:
            os.kill(os.getpid(), signal.SIGINT)


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 2e-5), ("float64", 1e-10)])
@pytest.mark.parametrize("optimizer", ["SGD", "Adam", "RMSprop"])
def test_the_fast_curve_is_the_twins(problem, make_trainer, dtype, tolerance, optimizer):
    x, y = problem
    curves = {}
    for backend in ("fast", "numpy"):
        with dd.backend(backend):
            trainer = make_trainer(getattr(dd.optim, optimizer)(0.01), dtype)
            curves[backend] = [trainer.step(x[i : i + 30], y[i : i + 30]) for i in (0, 30, 60, 90) * 5]
    np.testing.assert_allclose(curves["fast"], curves["numpy"], rtol=tolerance)
    assert curves["fast"][-1] < curves["fast"][0]


def test_threads_do_not_change_a_bit(problem, make_trainer):
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((100, 3072)).astype("float32"), rng.integers(0, 10, 100)
    before, ends = dd.get_num_threads(), []
    for threads in (1, 2, 3):
        dd.set_num_threads(threads)
        model = dd.models.MLP(3072, (50, 50), 10, batch_norm=True, dropout=0.1, seed=0)
        trainer = dd.Trainer(model, dd.optim.SGD(0.01, momentum=0.9, weight_decay=1e-3), clip_norm=1.0)
        for _ in range(4):
            trainer.step(x, y)
        ends.append(np.concatenate([model.parameters, model.buffers]))
    dd.set_num_threads(before)
    np.testing.assert_array_equal(ends[0], ends[1])
    np.testing.assert_array_equal(ends[0], ends[2])


def test_ten_updates_equal_pytorchs(problem):
    torch = pytest.importorskip("torch")
    x, y = problem
    ours = dd.models.MLP(7, (6, 5), 4, batch_norm=True, dtype="float64", seed=0)
    T = torch.nn
    theirs = T.Sequential(
        T.Linear(7, 6), T.BatchNorm1d(6), T.ReLU(), T.Linear(6, 5), T.BatchNorm1d(5), T.ReLU(), T.Linear(5, 4)
    ).double()  # fmt: skip
    theirs.load_state_dict({n: torch.tensor(a) for n, a in ours.state_dict().items()}, strict=False)
    weights = [p for p in theirs.parameters() if p.ndim > 1]
    others = [p for p in theirs.parameters() if p.ndim == 1]
    optimizer = torch.optim.SGD(
        [{"params": weights, "weight_decay": 0.01}, {"params": others}], lr=0.1, momentum=0.9, nesterov=True
    )
    trainer = dd.Trainer(
        ours,
        dd.optim.SGD(0.1, 0.9, nesterov=True, weight_decay=0.01),
        dd.losses.CrossEntropy(label_smoothing=0.1),
        clip_norm=0.5,
    )
    for _ in range(10):
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(theirs(torch.tensor(x).double()), torch.tensor(y), label_smoothing=0.1)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(theirs.parameters(), 0.5)
        optimizer.step()
        assert trainer.step(x, y) == pytest.approx(loss.item(), rel=1e-10)


def test_a_step_allocates_little_and_takes_what_comes(problem, make_trainer):
    x, y = problem
    trainer = make_trainer(clip_norm=1.0)
    for _ in range(3):
        trainer.step(x, y)
    trainer.step(x[:50], y[:50])
    tracemalloc.start()
    try:
        trainer.step(x, y)
        tracemalloc.reset_peak()
        start = tracemalloc.get_traced_memory()[0]
        for _ in range(5):
            trainer.step(x, y)
        assert tracemalloc.get_traced_memory()[1] - start < 4096
    finally:
        tracemalloc.stop()
    frozen = x.copy()
    frozen.flags.writeable = False
    losses = []
    for data in (frozen, np.asfortranarray(x), x.astype("float64"), x.tolist()):
        again = make_trainer()
        losses.append(again.step(data, list(y)))
    assert len(set(losses)) == 1


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"x": np.zeros((120, 6), "float32")}, ValueError, r"x: expected shape \(batch, 7\), got \(120, 6\)"),
        (
            {"x": np.zeros((0, 7), "float32"), "y": np.zeros(0, int)},
            ValueError,
            r"x: expected at least one row, got shape \(0, 7\)",
        ),
        ({"y": np.zeros(5, int)}, ValueError, "labels"),
        ({"y": np.full(120, 4)}, ValueError, "label"),
        ({"y": np.zeros(120)}, TypeError, "labels"),
        ({"lengths": np.ones(120)}, ValueError, "lengths: this model takes no sequences"),
        ({"sample_weight": np.ones(3, "float32")}, ValueError, "sample_weight"),
    ],
)
def test_bad_batches_are_named_and_change_nothing(problem, make_trainer, change, error, message):
    x, y = problem
    trainer = make_trainer()
    trainer.step(x, y)
    before = trainer.model.parameters.copy()
    with pytest.raises(error, match=message):
        trainer.step(**{"x": x, "y": y, **change})
    np.testing.assert_array_equal(trainer.model.parameters, before)
    assert trainer.update == 1
    trainer.step(x, y)


@pytest.mark.parametrize("backend", ["fast", "numpy"])
@pytest.mark.parametrize("bad", [np.nan, np.inf, 3e38])
def test_a_diverged_update_is_not_applied(problem, make_trainer, bad, backend):
    x, y = problem
    trainer = make_trainer()
    trainer.step(x, y)
    before, statistics = trainer.model.parameters.copy(), trainer.model.buffers.copy()
    spoiled = x.copy()
    spoiled[17, 3] = bad
    with (
        dd.backend(backend),
        np.errstate(all="ignore"),
        pytest.raises(dd.TrainingDiverged, match="update 1: ") as caught,
    ):
        trainer.step(spoiled, y)
    assert caught.value.update == 1
    assert isinstance(caught.value, FloatingPointError)
    if not np.isfinite(bad):
        assert f"x holds {bad} at (17, 3)" in str(caught.value)
    np.testing.assert_array_equal(trainer.model.parameters, before)
    np.testing.assert_array_equal(trainer.model.buffers, statistics)
    assert np.isfinite(trainer.step(x, y))


def test_an_exploding_training_keeps_finite_parameters(problem, make_trainer):
    x, y = problem
    trainer = dd.Trainer(dd.models.MLP(7, (6,), 4, seed=0), dd.optim.SGD(1e30))
    with pytest.raises(dd.TrainingDiverged, match="lower the learning rate"):
        trainer.fit((x, y), epochs=100, progress=False)
    assert np.isfinite(trainer.model.parameters).all()


def test_clipping(problem, make_trainer):
    x, y = problem
    by_norm = dd.Trainer(dd.models.MLP(7, (6,), 4, seed=0), dd.optim.SGD(0.1), clip_norm=0.01)
    by_norm.step(x * 100, y)
    assert np.linalg.norm(by_norm.model.gradients) == pytest.approx(0.01, rel=1e-4)
    by_value = dd.Trainer(dd.models.MLP(7, (6,), 4, seed=0), dd.optim.SGD(0.1), clip_value=0.001)
    by_value.step(x * 100, y)
    assert np.abs(by_value.model.gradients).max() == pytest.approx(0.001)
    with pytest.raises(ValueError, match=r"clip_norm: expected a number in \(0, inf\]"):
        dd.Trainer(by_norm.model, by_norm.optimizer, clip_norm=0)


def test_two_threads_may_not_train_one_model(problem, make_trainer):
    x, y = problem
    trainer = make_trainer()
    with trainer.model._busy, pytest.raises(RuntimeError, match="being trained by another thread"):
        trainer.step(x, y)


def test_many_threads_may_predict(problem, make_trainer):
    x, _ = problem
    model = make_trainer().model
    expected, results = model.predict(x), [None] * 8

    def run(i):
        for _ in range(20):
            results[i] = model.predict(x[: 100 + i])

    workers = [threading.Thread(target=run, args=(i,)) for i in range(8)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    for i, result in enumerate(results):
        np.testing.assert_array_equal(result, expected[: 100 + i])


def test_fit_records_what_happened(problem, make_trainer, tmp_path, capsys):
    x, y = problem
    trainer = make_trainer(schedule=dd.schedules.Step(0.01, 8, 0.5))
    history = trainer.fit(
        (x[:90], y[:90]),
        (x[90:], y[90:]),
        epochs=4,
        batch_size=25,
        progress=False,
        callbacks=[CSVLogger(tmp_path / "h.csv")],
    )
    assert capsys.readouterr() == ("", "")
    assert history["epoch"] == [1, 2, 3, 4]
    assert trainer.update == 16
    assert history["lr"] == [0.01, 0.01, 0.005, 0.005]  # of the epoch's last update
    assert history["loss"][-1] < history["loss"][0]
    assert history["val_accuracy"][-1] == trainer.evaluate((x[90:], y[90:]))["accuracy"]
    assert (tmp_path / "h.csv").read_text().splitlines()[0] == "epoch,loss,accuracy,val_loss,val_accuracy,lr,seconds"
    history.to_json(tmp_path / "h.json")
    history.plot(tmp_path / "h.png")
    assert (tmp_path / "h.png").stat().st_size > 1000
    with pytest.raises(KeyError, match="history has no 'auc'"):
        history["auc"]


def test_evaluate_is_the_mean_over_rows(problem, make_trainer):
    x, y = problem
    trainer = make_trainer()
    whole = trainer.evaluate((x, y))
    assert trainer.evaluate((x, y), batch_size=7) == pytest.approx(whole, rel=1e-6)
    assert trainer.evaluate([(x[:50], y[:50]), (x[50:], y[50:])]) == pytest.approx(whole, rel=1e-6)
    logits = trainer.model.predict(x).astype(float)
    expected = (np.log(np.exp(logits).sum(axis=1)) - logits[np.arange(120), y]).mean()
    assert whole["loss"] == pytest.approx(expected, rel=1e-5)
    assert whole["accuracy"] == (logits.argmax(axis=1) == y).mean()


def test_progress_goes_to_stderr_line_by_line(problem, make_trainer, capsys):
    make_trainer().fit(problem, epochs=2)
    out, err = capsys.readouterr()
    assert out == ""
    assert [line[:10] for line in err.splitlines()] == ["epoch 1/2:", "epoch 2/2:"]


@pytest.mark.parametrize("stop", [1, 7, 10, 13, 29])
def test_a_resumed_training_is_the_uninterrupted_one(problem, make_trainer, tmp_path, stop):
    """Interrupted in an epoch's middle, at its end and at its start; then read from the file by a fresh trainer."""
    x, y = problem
    data, arguments = (
        (x[:90], y[:90]),
        {"validation": (x[90:], y[90:]), "epochs": 3, "batch_size": 9, "progress": False},
    )

    def watched(path):
        return [EarlyStopping(patience=2, min_delta=0.5, restore_best_weights=True), Checkpoint(path)]

    def new():
        return make_trainer(dd.optim.NAdam(0.01), schedule=dd.schedules.Cyclic(0.001, 0.02, 4, growth=2))

    whole = new()
    whole.fit(data, **arguments, callbacks=watched(tmp_path / "a"))
    first = new()
    first.fit(data, **arguments, callbacks=[*watched(tmp_path / "b"), StopAfter(stop)])
    assert first.stop_reason == "interrupted"
    second = new()
    second.load_checkpoint(tmp_path / "b")
    assert second.update == stop
    second.fit(data, **arguments, callbacks=watched(tmp_path / "b"))
    np.testing.assert_array_equal(second.model.parameters, whole.model.parameters)
    np.testing.assert_array_equal(second.model.buffers, whole.model.buffers)
    assert second.update == whole.update
    for name in ("loss", "accuracy", "val_loss", "lr"):
        assert second.history[name] == whole.history[name], name
    # The same object, too, goes on where it was interrupted.
    first.fit(data, **arguments, callbacks=watched(tmp_path / "c"))
    np.testing.assert_array_equal(first.model.parameters, whole.model.parameters)


def test_early_stopping_and_best_model(problem, make_trainer, tmp_path):
    x, y = problem
    data, validation = (x[:90], y[:90]), (x[90:], y[90:])
    trainer = make_trainer(dd.optim.Adam(0.1))
    best = BestModel(tmp_path / "best.safetensors")
    stop = EarlyStopping(patience=3, restore_best_weights=True)
    history = trainer.fit(data, validation, epochs=200, progress=False, callbacks=[stop, best])
    assert len(history) < 200
    assert trainer.stop_reason == "val_loss has not improved for 3 epochs"
    lowest = min(history["val_loss"])
    assert stop.best_epoch == history["val_loss"].index(lowest) + 1
    assert trainer.evaluate(validation)["loss"] == pytest.approx(lowest, rel=1e-6)
    saved = dd.models.MLP.load(tmp_path / "best.safetensors")
    np.testing.assert_array_equal(saved.parameters, trainer.model.parameters)
    with pytest.raises(ValueError, match=r"monitor: the history has no 'val_loss'.*needs validation data"):
        make_trainer().fit(data, epochs=2, progress=False, callbacks=[EarlyStopping()])
    wait = EarlyStopping(monitor="accuracy", patience=1)
    assert [wait.better({"accuracy": a, "epoch": i}) for i, a in enumerate([0.5, 0.6, 0.6])] == [True, True, False]


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"epochs": 0}, ValueError, "epochs: expected an integer of at least 1, got 0"),
        ({"batch_size": 2.5}, TypeError, "batch_size: expected an integer"),
        ({"callbacks": [print]}, TypeError, r"callbacks\[0\]: expected a Callback"),
        ({"train": (np.zeros((3, 7)), np.zeros(4, int))}, ValueError, "y: expected 3 rows like x, got 4"),
        ({"train": (np.zeros((0, 7)), np.zeros(0, int))}, ValueError, "x: expected at least one row"),
        (
            {"train": (np.full((3, 7), np.nan), np.zeros(3, int))},
            ValueError,
            r"x: expected finite numbers, got nan at \(0, 0\)",
        ),
        ({"train": iter([])}, TypeError, "walked again every epoch"),
        ({"validation": (np.zeros((0, 7)), np.zeros(0, int))}, ValueError, "x: expected at least one row"),
    ],
)
def test_fit_refuses_bad_arguments(problem, make_trainer, change, error, message):
    with pytest.raises(error, match=message):
        make_trainer().fit(**{"train": problem, "progress": False, **change})


def test_trainer_refuses_bad_arguments(make_trainer):
    model, optimizer = dd.models.MLP(3), dd.optim.SGD(0.1)
    for arguments, message in (
        (("mlp", optimizer), "model: expected an nn.Module, got str"),
        ((model, "adam"), "optimizer: expected an optim.Optimizer, got str"),
        ((model, optimizer, "mse"), "loss: expected a losses.Loss, got str"),
        ((model, optimizer, None, None, None, 0.1), "schedule: expected a function"),
    ):
        with pytest.raises(TypeError, match=message):
            dd.Trainer(*arguments)
    with pytest.raises(TypeError, match=r"unknown keyword 'clipnorm' .did you mean 'clip_norm'"):
        dd.Trainer(model, optimizer, clipnorm=1)
    for loss in (dd.losses.BinaryCrossEntropy, dd.losses.MeanSquaredError):  # which have no constructor of their own
        with pytest.raises(TypeError, match=r"unknown keyword 'class_weight'; it takes none"):
            loss(class_weight=[1, 2])
        with pytest.raises(TypeError, match="too many positional arguments"):
            loss(0.1)
        for made in (loss(), copy.deepcopy(loss()), pickle.loads(pickle.dumps(loss()))):
            assert repr(made) == f"{loss.__name__}()"


def test_augmentation_sees_the_update(problem, make_trainer):
    seen = []

    def augment(x, key):
        seen.append(key)
        return x

    make_trainer().fit(problem, epochs=2, batch_size=60, progress=False, augment=augment)
    assert len(set(seen)) == 4


def test_regression(problem):
    x, _ = problem
    target = (x[:, :2] * 2 - 1).astype("float32")
    trainer = dd.Trainer(dd.models.MLP(7, (), 2, seed=0), dd.optim.Adam(0.05), dd.losses.MeanSquaredError())
    history = trainer.fit((x, target), epochs=60, progress=False)
    assert "accuracy" not in history
    assert trainer.evaluate((x, target))["loss"] < 0.05


def test_profile_counts(problem, make_trainer):
    x, y = problem
    trainer = make_trainer()
    with dd.profile() as report:
        for _ in range(3):
            trainer.step(x, y)
    rows = {row["kernel"]: row for row in report.rows()}
    assert rows["linear_forward"]["calls"] == 9
    assert rows["adam_update"]["calls"] == 3
    assert sum(row["share"] for row in rows.values()) <= 1
    assert "linear_backward" in report.table()


# ---- batches of sequences --------------------------------------------------------------------------------------------

LENGTHS = np.array([3, 6, 1, 4])


def sequences(dtype="float64", cell="lstm"):
    """A trainer of a language model of 7 tokens, and ids and labels of 4 sequences of 6."""
    ids = np.random.default_rng(0).integers(0, 7, (4, 7))
    model = dd.models.LanguageModel(7, cell, 5, 4, dtype=dtype, seed=3)
    return dd.Trainer(model, dd.optim.Adam(0.01), seed=9), ids[:, :-1], ids[:, 1:]


def losses_of(run, updates=6):
    """The losses of a fit, update by update."""
    curve = dd.callbacks.LossCurve()
    run(curve)
    assert len(curve.losses) == updates
    return curve.losses.tolist()


def test_fit_takes_batches_with_lengths():
    """As tuples, as Batch, and as arrays; where the state begins anew."""
    reference, x, y = sequences()
    expected = [reference.step(x, y, LENGTHS) for _ in range(2)]
    reference.model.reset_state()
    expected += [reference.step(x, y, LENGTHS) for _ in range(2)]
    trainer, x, y = sequences()
    got = losses_of(lambda c: trainer.fit([(x, y, LENGTHS)] * 2, epochs=2, progress=False, callbacks=[c]), 4)
    assert got == expected

    for begins in (False, True):
        reference, x, y = sequences()
        expected = []
        for i in range(3):
            if i == 0 or begins:
                reference.model.reset_state()
            expected.append(reference.step(x, y, LENGTHS))
        trainer, x, y = sequences()
        batches = [dd.Batch(x, y, LENGTHS, begins=begins)] * 3
        assert losses_of(lambda c, t=trainer, b=batches: t.fit(b, progress=False, callbacks=[c]), 3) == expected

    reference, x, y = sequences()
    trainer, _, _ = sequences()
    expected = []
    for rows in (slice(0, 3), slice(3, 4)):
        reference.model.reset_state()
        expected.append(reference.step(x[rows], y[rows], LENGTHS[rows]))
    data = (x, y, LENGTHS)
    options = {"batch_size": 3, "shuffle": False, "progress": False}
    assert losses_of(lambda c: trainer.fit(data, callbacks=[c], **options), 2) == expected
    shuffled, _, _ = sequences()
    history = shuffled.fit(data, data, epochs=20, batch_size=2, progress=False)
    assert history["val_loss"][-1] < history["val_loss"][0]


def test_evaluation_of_ragged_batches():
    """The mean over the tokens that count, however they are cut into batches; what is behind an end may be anything."""
    trainer, x, y = sequences()
    behind = np.arange(6) >= LENGTHS[:, None]
    x, y = np.where(behind, 99, x), np.where(behind, 99, y)
    total = correct = 0.0
    for b, n in enumerate(LENGTHS):
        alone = trainer.evaluate([(x[b : b + 1, :n], y[b : b + 1, :n])])
        total, correct = total + n * alone["loss"], correct + n * alone["accuracy"]
    halves = [(x[:2], y[:2], LENGTHS[:2]), dd.Batch(x[2:], y[2:], LENGTHS[2:], begins=True)]
    for data, size in (((x, y, LENGTHS), 4), ((x, y, LENGTHS), 3), (halves, 1)):
        found = trainer.evaluate(data, batch_size=size)
        assert found["loss"] == pytest.approx(total / LENGTHS.sum(), rel=1e-12)
        assert found["accuracy"] == pytest.approx(correct / LENGTHS.sum(), rel=1e-12)


def test_batches_with_weights(problem, make_trainer):
    """In fit as in step; an evaluation's mean is a weighted one."""
    x, y = problem
    weight = np.linspace(0, 2, 120).astype("float32")
    reference, trainer = make_trainer(), make_trainer()
    expected = [reference.step(x[i : i + 60], y[i : i + 60], sample_weight=weight[i : i + 60]) for i in (0, 60)]
    batches = [dd.Batch(x[i : i + 60], y[i : i + 60], sample_weight=weight[i : i + 60]) for i in (0, 60)]
    got = losses_of(lambda c: trainer.fit(batches, progress=False, callbacks=[c]), 2)
    assert got == expected
    shares = weight[:60].sum(), weight[60:].sum()
    assert trainer.history["loss"][0] == pytest.approx(np.average(expected, weights=shares), rel=1e-6)
    whole, _ = dd.losses.CrossEntropy()(trainer.model.predict(x), y, weight)
    assert trainer.evaluate(batches)["loss"] == pytest.approx(whole, rel=1e-6)


def test_gradients_of_ragged_batches():
    for cell in ("rnn", "lstm", "gru"):
        trainer, x, y = sequences(cell=cell)
        report = dd.gradcheck(trainer.model, x, y, lengths=LENGTHS)
        assert report, report


def test_a_batch_of_which_nothing_counts_is_left_out():
    trainer, x, y = sequences()
    ignored = np.where(np.arange(6) < LENGTHS[:, None], -100, y)  # labels only where no token counts
    with pytest.raises(ValueError, match="one label in y that counts, got none"):
        trainer.evaluate([(x, ignored, LENGTHS)])
    assert trainer.evaluate([(x, ignored, LENGTHS), (x, y, LENGTHS)]) == trainer.evaluate((x, y, LENGTHS))


def test_a_wrong_label_is_named_by_its_place():
    trainer, x, y = sequences()
    wrong = y.copy()
    wrong[1, 5] = wrong[3, 0] = 7
    for call in (
        lambda: trainer.step(x, wrong),
        lambda: trainer.step(x, wrong, LENGTHS),
        lambda: trainer.evaluate((x, wrong)),
        lambda: trainer.fit([(x, wrong, LENGTHS)], progress=False),
    ):
        with pytest.raises(ValueError, match=r"y: expected labels from 0 to 6, got 7 at \(1, 5\)"):
            call()
    with pytest.raises(ValueError, match=r"y: expected labels from 0 to 6, got 7 at \(3, 0\)"):
        trainer.step(x, wrong, [3, 5, 1, 4])  # the other one is behind its sequence's end
    wrong[3, 0] = -100
    assert np.isfinite(trainer.step(x, wrong, [3, 5, 1, 4]))


def test_a_trainers_copy_carries_the_state_on():
    trainer, x, y = sequences()
    trainer.step(x, y)
    twin, stored = copy.deepcopy(trainer), pickle.loads(pickle.dumps(trainer))
    expected = [trainer.step(x, y) for _ in range(3)]
    assert [twin.step(x, y) for _ in range(3)] == expected
    assert [stored.step(x, y) for _ in range(3)] == expected
    trainer.model.reset_state()
    assert copy.deepcopy(trainer).step(x, y) == trainer.step(x, y)


@pytest.mark.parametrize(
    ("data", "error", "message"),
    [
        (lambda x, y: [(x, y, LENGTHS, 1)], TypeError, r"data: expected batches \(x, y\), \(x, y, lengths\) or Batch"),
        (lambda x, y: [x], TypeError, r"data: expected batches .*, got ndarray"),
        (lambda x, y: (x, y, LENGTHS[:3]), ValueError, r"lengths: expected shape \(4,\), one for each row of x"),
        (lambda x, y: (x, y, LENGTHS + 3), ValueError, "lengths: expected numbers from 1 to 6"),
        (lambda x, y: [(x, y, LENGTHS * 1.0)], TypeError, "lengths: expected integers"),
        (lambda x, y: (x, y, LENGTHS, y), ValueError, r"train: expected \(x, y\), \(x, y, lengths\) or an iterable"),
    ],
)
def test_bad_batches_of_sequences(data, error, message):
    trainer, x, y = sequences()
    with pytest.raises(error, match=message):
        trainer.fit(data(x, y), progress=False)
    assert trainer.update == 0


def test_lengths_for_a_model_without_sequences(problem, make_trainer):
    x, y = problem
    with pytest.raises(ValueError, match="lengths: this model takes no sequences"):
        make_trainer().fit([dd.Batch(x, y, np.ones(120, int))], progress=False)


class _Steep(dd.nn.Module):
    """The identity, whose gradient is infinite in one place."""

    def _forward(self, x, work):
        return x

    def _backward(self, dy, work, need_dx):
        dx = dy.copy()
        dx[0, 0] = np.inf
        return dx


@pytest.mark.parametrize("clip", [{}, {"clip_value": 1.0}, {"clip_norm": 1.0}, {"clip_value": 1.0, "clip_norm": 1.0}])
def test_an_infinite_gradient_is_not_clipped_but_reported(clip):
    model = dd.nn.Sequential(dd.nn.Linear(3, 4), _Steep(), seed=0)
    trainer = dd.Trainer(model, dd.optim.SGD(0.1), **clip)
    before = model.parameters.copy()
    with pytest.raises(dd.TrainingDiverged, match="update 0: the gradient is not finite"):
        trainer.step(np.ones((2, 3), np.float32), np.array([0, 1]))
    np.testing.assert_array_equal(model.parameters, before)


# ---- sigmoids --------------------------------------------------------------------------------------------------------


def sigmoid(z):
    return 1 / (1 + np.exp(-z))


def sigmoids(**arguments):
    return dd.Trainer(
        dd.models.MLP(7, (6,), 4, seed=1, dtype="float64"),
        dd.optim.Adam(0.01),
        dd.losses.BinaryCrossEntropy(),
        **arguments,
    )


def test_one_class_against_all_others_has_an_accuracy(problem):
    """The likeliest class is the answer; the same weights as from one-hot rows, which have none."""
    x, y = problem
    one, rows = sigmoids(), sigmoids()
    history = one.fit((x, y), (x[:50], y[:50]), epochs=3, batch_size=32, progress=False)
    of_rows = rows.fit((x, np.eye(4)[y]), (x[:50], y[:50]), epochs=3, batch_size=32, progress=False)
    np.testing.assert_allclose(rows.model.parameters, one.model.parameters, rtol=1e-12)
    right = one.model.predict(x).argmax(axis=1) == y
    assert 0.3 < one.evaluate((x, y), batch_size=50)["accuracy"] == pytest.approx(right.mean())
    assert history["val_accuracy"][-1] == of_rows["val_accuracy"][-1] == pytest.approx(right[:50].mean())
    assert 0 < history["accuracy"][0] < 1
    assert "accuracy" not in of_rows
    assert history["loss"] == pytest.approx(of_rows["loss"])


def test_several_classes_a_row_have_none(problem):
    x, y = problem
    many = (np.eye(4)[y] + np.eye(4)[(y + 1) % 4]).astype(int)
    trainer = sigmoids()
    history = trainer.fit((x, many), (x, many), epochs=2, progress=False)
    assert not {"accuracy", "val_accuracy"} & history.columns.keys()
    (found,) = trainer.evaluate((x, many)).items()
    z = trainer.model.predict(x)
    assert found == ("loss", pytest.approx(-np.log(np.where(many, sigmoid(z), sigmoid(-z))).mean()))


def test_sigmoids_of_sequences_name_a_label_by_its_place():
    model = dd.models.LanguageModel(5, hidden=4, seed=0)
    trainer = dd.Trainer(model, dd.optim.SGD(0.1), dd.losses.BinaryCrossEntropy())
    x = np.array([[0, 1, 2], [3, 4, 0]])
    with pytest.raises(ValueError, match=r"y: expected labels from 0 to 4, got 7 at \(1, 2\)"):
        trainer.step(x, np.array([[1, 2, 3], [4, 0, 7]]))
    right = model.predict(x).argmax(axis=-1) == x
    assert trainer.evaluate((x, x))["accuracy"] == pytest.approx(right.mean())
