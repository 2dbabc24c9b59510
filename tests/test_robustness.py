"""What users do that once went wrong, silently or in the middle of an epoch."""

import copy

import numpy as np
import pytest

import dd2424fast as dd


class Wrapped(dd.nn.Module):
    """A layer of one's own around another."""

    def __init__(self, inner, *, dtype="float32", seed=None):
        super().__init__(dtype=dtype, seed=seed)
        self.inner = inner

    def forward(self, x):
        self.seen = self.inner.forward(x)
        return self.seen

    def backward(self, dy):
        return self.inner.backward(dy)


def mlp(**arguments):
    return dd.models.MLP(7, (6,), 4, seed=0, **arguments)


def trainer_of(model, **arguments):
    return dd.Trainer(model, dd.optim.SGD(0.1), **arguments)


def test_a_last_batch_of_one_row_joins_the_batch_before_under_batch_norm(problem):
    x, y = problem
    sizes = []
    trainer = trainer_of(mlp(batch_norm=True))
    trainer.fit((x[:101], y[:101]), batch_size=20, progress=False, augment=lambda x, key: sizes.append(len(x)) or x)
    assert sizes == [20, 20, 20, 20, 21]
    sizes.clear()
    trainer_of(mlp()).fit(
        (x[:21], y[:21]), batch_size=20, progress=False, augment=lambda x, key: sizes.append(len(x)) or x
    )
    assert sizes == [20, 1]
    with pytest.raises(ValueError, match="batch_size: expected at least 2 rows a batch for batch norm"):
        trainer.fit((x, y), batch_size=1, progress=False)
    trainer.model.freeze("1")
    trainer.fit((x[:3], y[:3]), batch_size=1, progress=False)


def test_a_refused_batch_leaves_the_running_statistics(problem):
    x, y = problem
    model = mlp(batch_norm=True)
    before = model.buffers.copy()
    with pytest.raises(ValueError, match="labels"):
        trainer_of(model).step(x, y + 10)
    np.testing.assert_array_equal(model.buffers, before)


def test_layers_within_a_layer_of_ones_own_follow_the_pass(problem):
    x, y = problem
    model = dd.nn.Sequential(Wrapped(dd.nn.BatchNorm(7)), dd.nn.Linear(7, 4, seed=0))
    before = model.buffers.copy()
    model.predict(x)
    np.testing.assert_array_equal(model.buffers, before)
    model = dd.nn.Sequential(Wrapped(dd.nn.Dropout(0.5)), dd.nn.Linear(7, 4, seed=0))
    trainer, masks = trainer_of(model), []
    for _ in range(2):
        trainer.step(x, y)
        masks.append(model[0].seen == 0)
    assert 0.4 < masks[0].mean() < 0.6
    assert not np.array_equal(*masks)
    model.predict(x)
    assert not (model[0].seen == 0).any()
    assert model.training


def test_nested_dropout_layers_draw_different_masks():
    Sequential, Dropout = dd.nn.Sequential, dd.nn.Dropout
    kept = Sequential(Sequential(Dropout(0.5)), Sequential(Dropout(0.5))).forward(np.ones((50, 50))) > 0
    assert 0.2 < kept.mean() < 0.3


def test_a_layer_that_training_would_not_reach_is_an_error(problem):
    shared = dd.nn.Linear(7, 4)
    with pytest.raises(ValueError, match="the same layer appears twice"):
        dd.nn.Sequential(dd.nn.Sequential(dd.nn.Linear(7, 7), shared), shared)
    first = dd.nn.Sequential(shared)
    trainer = trainer_of(first)
    trainer.step(*problem)
    dd.nn.Sequential(shared)
    with pytest.raises(ValueError, match=r"model: 0.weight is not in the model's flat vector"):
        trainer.step(*problem)
    own = dd.nn.Sequential(Wrapped(dd.nn.Linear(7, 4, seed=0)))
    trainer = trainer_of(own)
    trainer.step(*problem)
    own[0].inner = dd.nn.Linear(7, 4, seed=1)
    with pytest.raises(ValueError, match=r"call join\(\)"):
        trainer.step(*problem)
    own.join()
    before = own[0].inner.weight.copy()
    trainer.step(*problem)
    assert not np.array_equal(own[0].inner.weight, before)


def test_parameters_that_would_hide_something_are_refused():
    class Bad(dd.nn.Module):
        def __init__(self, *names):
            super().__init__()
            for name in names:
                self.add(name, (2,), np.zeros)

    for names in (["type"], ["w", "dw"], ["dw", "w"], ["forward"], ["training"]):
        with pytest.raises(ValueError, match=r"^name: "):
            Bad(*names)


def test_a_checkpoint_from_before_the_first_update(problem, make_trainer, tmp_path):
    trainer = make_trainer()
    trainer.save_checkpoint(tmp_path / "c")
    first = trainer.step(*problem)
    second = trainer.step(*problem)
    trainer.load_checkpoint(tmp_path / "c")
    assert (trainer.step(*problem), trainer.step(*problem)) == (first, second)


def test_a_refused_checkpoint_changes_nothing(problem, tmp_path):
    moving = dd.Trainer(mlp(), dd.optim.SGD(0.1, momentum=0.9))
    moving.step(*problem)
    moving.save_checkpoint(tmp_path / "c")
    trainer = trainer_of(mlp())
    before = trainer.model.parameters.copy()
    with pytest.raises(ValueError, match=r"state: expected \[\], got \['velocity'\]"):
        trainer.load_checkpoint(tmp_path / "c")
    np.testing.assert_array_equal(trainer.model.parameters, before)


def test_callbacks_find_their_state_beside_others(problem, tmp_path):
    trainer = trainer_of(mlp())
    stop = dd.callbacks.EarlyStopping("loss", patience=9, min_delta=100)
    trainer.fit(problem, epochs=3, callbacks=[stop, dd.callbacks.Checkpoint(tmp_path / "c")], progress=False)
    again, trainer = dd.callbacks.EarlyStopping("loss", patience=9, min_delta=100), trainer_of(mlp())
    trainer.load_checkpoint(tmp_path / "c")
    others = [dd.callbacks.CSVLogger(tmp_path / "h"), again]
    trainer.fit(problem, epochs=4, callbacks=others, progress=False)
    assert again.best == stop.best


def test_early_stopping_serves_twice_and_survives_nan(problem):
    stop, trainer = dd.callbacks.EarlyStopping("loss", patience=1, min_delta=100), trainer_of(mlp())
    trainer.fit(problem, epochs=5, callbacks=[stop], progress=False)
    assert trainer.epoch == 2
    trainer.fit(problem, epochs=5, callbacks=[stop], progress=False)
    assert trainer.epoch == 3
    stop = dd.callbacks.EarlyStopping("loss")
    assert [stop.better({"loss": loss, "epoch": 1}) for loss in (np.nan, 2.0, np.nan, 1.0)] == [
        False,
        True,
        False,
        True,
    ]


def test_ignored_rows_count_for_nothing(problem):
    x, y = problem
    trainer = trainer_of(mlp())
    hidden = np.where(np.arange(120) < 50, -100, y)
    history = trainer.fit((x, hidden), epochs=2, batch_size=25, shuffle=False, progress=False)
    assert len(history) == 2
    assert trainer.update == 6  # of ten batches, four hold no row that counts
    assert trainer.evaluate((x, hidden), batch_size=25) == pytest.approx(trainer.evaluate((x[50:], y[50:])))


def test_targets_and_weights_are_converted_at_the_edge(problem):
    x, y = problem
    model = dd.models.MLP(7, (6,), 1, seed=0)

    def losses(x, targets, weight):
        return [
            dd.Trainer(copy.deepcopy(mlp()), dd.optim.SGD(0.1), dd.losses.CrossEntropy()).step(
                x, y, sample_weight=weight
            ),
            dd.Trainer(copy.deepcopy(model), dd.optim.SGD(0.1), dd.losses.MeanSquaredError()).step(
                x, targets, sample_weight=weight
            ),
        ]

    weight, targets = np.linspace(0.5, 1, 120), x[:, :1]
    expected = losses(x, targets, weight.astype("float32"))
    assert losses(x.astype("float64"), targets.astype("float64"), weight.tolist()) == expected
    one_hot, loss = np.eye(4, dtype=int)[y], dd.losses.BinaryCrossEntropy()
    assert loss(model_output := mlp().predict(x), one_hot)[0] == pytest.approx(loss(model_output, y)[0])
    for dtype in ("float16", ">f4"):
        trainer_of(mlp()).fit((x.astype(dtype), y), progress=False)


def test_descriptions_hold_arrays_and_edited_layers(tmp_path):
    assert "class_weight=array" in repr(dd.losses.CrossEntropy(class_weight=np.ones(3)))
    model = mlp(dtype="float64")
    model[0] = dd.nn.Linear(7, 6)
    model.save(tmp_path / "m")
    assert dd.nn.Sequential.load(tmp_path / "m").dtype == "float64"
    model = dd.models.MLP(3, np.array([4, 5]), 2)
    model.save(tmp_path / "m")
    assert repr(dd.models.MLP.load(tmp_path / "m")) == repr(model)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda x, y: trainer_of(mlp(), seed=-1), ValueError, "seed: expected"),
        (lambda x, y: trainer_of(mlp(), seed=1.5), TypeError, "seed: expected"),
        (lambda x, y: dd.optim.SGD("0.1"), TypeError, "lr: expected a number"),
        (lambda x, y: dd.nn.Linear(3, 2, dtype=None), ValueError, "dtype: expected"),
        (lambda x, y: dd.nn.Linear(3, 2, dtype="foo"), ValueError, "dtype: expected"),
        (lambda x, y: dd.models.MLP(3, None), TypeError, "hidden: expected a sequence"),
        (lambda x, y: mlp().predict(x, batch_size=0), ValueError, "batch_size: expected"),
        (lambda x, y: mlp().predict([[1], [2, 3]]), ValueError, "x: expected an array of numbers"),
        (lambda x, y: mlp().predict(np.ma.masked_greater(x, 0)), TypeError, "x: expected an array without masked"),
        (lambda x, y: mlp().load_state_dict(3), TypeError, "state: expected a mapping"),
        (lambda x, y: mlp().load_state_dict({"2.bias": 1j * np.ones(4)}, strict=False), ValueError, "complex128"),
        (lambda x, y: trainer_of(mlp()).fit(None), TypeError, "train: expected"),
        (lambda x, y: trainer_of(mlp()).fit(x), TypeError, "train: expected"),
        (lambda x, y: trainer_of(mlp()).fit((x, y, y)), ValueError, "train: expected"),
        (lambda x, y: trainer_of(mlp()).fit((1, 2)), ValueError, "train: expected"),
        (lambda x, y: trainer_of(mlp()).fit((x, y), validation={}), TypeError, "validation: expected"),
    ],
)
def test_wrong_arguments_are_named(problem, call, error, message):
    with pytest.raises(error, match=message):
        call(*problem)


def test_numpy_integers_are_seeds(tmp_path):
    trainer = trainer_of(mlp(), seed=np.int64(3))
    trainer.save_checkpoint(tmp_path / "c")


def test_the_schedule_and_the_seed_reach_the_update(problem):
    x, y = problem
    asked = []
    trainer = trainer_of(mlp(dropout=0.5), schedule=lambda update: asked.append(update) or 0.0)
    losses = [trainer.step(x, y) for _ in range(2)]
    assert asked == [0, 1]
    assert losses[0] != losses[1]  # the weights stayed: the masks differ
    assert trainer_of(mlp(dropout=0.5), seed=1).step(x, y) != losses[0]


def test_every_epoch_has_an_order_of_its_own(problem):
    x, y = problem
    orders = []
    trainer_of(mlp()).fit(
        (x, y), epochs=2, batch_size=120, progress=False, augment=lambda x, key: orders.append(x.copy()) or x
    )
    assert not np.array_equal(*orders)


def test_an_optimizer_hands_on_all_its_arguments(problem):
    """Each argument changes the second update."""
    x, y = problem

    def after(optimizer, rate=1.0):
        model = mlp()
        next(model.named_parameters())[1].rate = rate
        trainer = dd.Trainer(model, optimizer)
        for _ in range(2):
            trainer.step(x, y)
        return model.parameters.copy()

    o = dd.optim
    for one, other in (
        (o.Adagrad(0.1), o.Adagrad(0.1, lr_decay=0.5)),
        (o.Adagrad(0.1), o.Adagrad(0.1, initial_accumulator=2.0)),
        (o.SGD(0.1, weight_decay=0.5), o.SGD(0.1, weight_decay=0.5, decay_all=True)),
    ):
        assert not np.allclose(after(one), after(other))
    assert not np.allclose(after(o.SGD(0.1)), after(o.SGD(0.1), rate=0.1))


def test_losses_hand_on_all_their_arguments(problem):
    x, y = problem
    z = mlp().predict(x)
    first = (np.arange(120) < 60).astype("float32")
    for loss in (dd.losses.BinaryCrossEntropy(), dd.losses.CrossEntropy()):
        assert loss(z, y, first)[0] == pytest.approx(loss(z[:60], y[:60])[0])
    assert dd.losses.CrossEntropy(ignore_index=2)(z, y)[0] == pytest.approx(
        dd.losses.CrossEntropy()(z[y != 2], y[y != 2])[0]
    )
    weights = [1.0, 5.0, 0.5, 2.0]
    trainer = trainer_of(mlp(), loss=dd.losses.CrossEntropy(class_weight=weights))
    assert trainer.evaluate((x, y), batch_size=7) == pytest.approx(trainer.evaluate((x, y)), rel=1e-5)


def test_norm_layers_use_their_own_eps_and_momentum(problem):
    x = problem[0].astype("float64")
    var = x.var(axis=0)
    layer = dd.nn.BatchNorm(7, momentum=0.5, eps=2.0, dtype="float64")
    np.testing.assert_allclose(layer.forward(x), (x - x.mean(axis=0)) / np.sqrt(var + 2), rtol=1e-10)
    np.testing.assert_allclose(layer.buffers[:7], 0.5 * x.mean(axis=0))
    layer.freeze()
    np.testing.assert_allclose(
        (layer.forward(x), layer.backward(np.ones_like(x)))[1][0], 1 / np.sqrt(layer.buffers[7:] + 2), rtol=1e-10
    )
    layer = dd.nn.LayerNorm(7, eps=2.0, dtype="float64")
    by_row = (x - x.mean(axis=1, keepdims=True)) / np.sqrt(x.var(axis=1, keepdims=True) + 2)
    np.testing.assert_allclose(layer.forward(x), by_row, rtol=1e-10)


def test_freeze_takes_whole_names():
    model = dd.nn.Sequential(*[dd.nn.Linear(2, 2) for _ in range(11)])
    assert model.freeze("1") == 6


def test_min_delta_is_subtracted():
    stop = dd.callbacks.EarlyStopping("loss", min_delta=0.5)
    assert [stop.better({"loss": loss, "epoch": 1}) for loss in (2.0, 1.6, 1.4)] == [True, False, True]


def test_an_optional_column_of_the_history_is_filled():
    history = dd.History()
    history.add({"loss": 1.0})
    history.add({"loss": 0.5, "val_loss": 2.0})
    assert history["val_loss"] == [None, 2.0]


def test_a_checkpoint_carries_the_seed_and_the_epochs_to_go(problem, tmp_path):
    trainer = trainer_of(mlp(), seed=4)
    trainer.fit(problem, epochs=3, callbacks=[dd.callbacks.Checkpoint(tmp_path / "c", epochs=2)], progress=False)
    other = trainer_of(mlp())
    other.load_checkpoint(tmp_path / "c")
    assert (other.seed, other.epoch) == (4, 2)
    other.fit(problem, epochs=3, progress=False)
    assert other.epoch == 3
    np.testing.assert_array_equal(other.model.parameters, trainer.model.parameters)


def test_early_stopping_goes_on_counting_after_a_resumption(problem, tmp_path):
    def fit(epochs):
        trainer, path = trainer_of(mlp()), tmp_path / "c"
        if path.exists():
            trainer.load_checkpoint(path)
        stop = dd.callbacks.EarlyStopping("loss", patience=4, min_delta=100)
        trainer.fit(problem, epochs=epochs, callbacks=[stop, dd.callbacks.Checkpoint(path)], progress=False)
        return trainer.epoch

    assert fit(3) == 3
    assert fit(9) == 5  # the first epoch set the best, four more did not improve on it
