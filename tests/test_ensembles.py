"""Models that answer together: ensembles, snapshots at the rate's minima, an image beside its mirror image."""

import itertools

import numpy as np
import pytest

import dd2424fast as dd
from dd2424fast.callbacks import Checkpoint, Snapshots
from dd2424fast.losses import CrossEntropy
from dd2424fast.schedules import Cosine, CosineWarmRestarts, Cyclic, Warmup

pytestmark = pytest.mark.usefixtures("one_thread")


def softmax(z):
    e = np.exp(z - z.max(axis=1, keepdims=True))
    return e / e.sum(axis=1, keepdims=True)


def mlps(count, dtype="float32"):
    return [dd.models.MLP(7, (9,), 4, batch_norm=True, dtype=dtype, seed=i) for i in range(count)]


def network(seed=1, dtype="float64"):
    return dd.nn.Sequential(dd.nn.Flatten(), dd.nn.Linear(24, 3), seed=seed, dtype=dtype)


@pytest.fixture
def images():
    rng = np.random.default_rng(3)
    return rng.normal(size=(11, 2, 4, 3)), rng.integers(0, 3, 11)


def test_the_mean_of_the_probabilities(problem):
    x, y = problem
    models = mlps(3, "float64")
    ensemble = dd.Ensemble(models)
    expected = np.mean([softmax(model.predict(x)) for model in models], axis=0)
    for batch_size in (1024, 50):
        np.testing.assert_allclose(ensemble.predict(x, batch_size), expected, rtol=1e-12)
    np.testing.assert_allclose(dd.predict_proba(models[0], x), softmax(models[0].predict(x)), rtol=1e-12)
    found = ensemble.evaluate((x, y), batch_size=50)
    assert found["loss"] == pytest.approx(-np.log(expected[np.arange(len(y)), y]).mean(), rel=1e-12)
    assert found["accuracy"] == pytest.approx((expected.argmax(axis=1) == y).mean())
    assert ensemble.predict(x.astype("float32")).dtype == "float64"
    assert dd.Ensemble(mlps(2)).predict(x).dtype == "float32"
    assert len(ensemble) == 3
    assert list(ensemble) == models
    ignored = y.copy()
    ignored[:50] = -100
    rest = ensemble.evaluate((x[50:], y[50:]))
    assert ensemble.evaluate((x, ignored), batch_size=50) == pytest.approx(rest)
    with pytest.raises(ValueError, match="data: expected at least one row"):
        ensemble.evaluate((x, np.full(len(y), -100)))


def test_a_certain_but_wrong_answer_has_a_finite_loss():
    sure = network(dtype="float32")
    sure[1].bias[...] = [1000, 0, 0]
    assert np.isfinite(dd.Ensemble([sure]).evaluate((np.zeros((2, 2, 4, 3)), np.array([1, 2])))["loss"])


def test_it_is_saved_whole(problem, tmp_path):
    x, y = problem
    models = mlps(2)
    dd.Trainer(models[0], dd.optim.Adam(0.01)).fit((x, y), epochs=1, progress=False)  # running statistics of its own
    ensemble = dd.Ensemble([*models, dd.models.MLP(7, (), 4, dtype="float64", seed=1)])
    ensemble.save(tmp_path / "ensemble.safetensors")
    loaded = dd.Ensemble.load(tmp_path / "ensemble.safetensors")
    assert [repr(model) for model in loaded] == [repr(model) for model in ensemble]
    np.testing.assert_array_equal(loaded.predict(x), ensemble.predict(x))
    with pytest.raises(ValueError, match="holds a ensemble, expected a model"):
        dd.models.MLP.load(tmp_path / "ensemble.safetensors")
    models[0].save(tmp_path / "one")
    with pytest.raises(ValueError, match="holds a model, expected a ensemble"):
        dd.Ensemble.load(tmp_path / "one")


def test_wrong_ensembles_are_refused(problem):
    x, _ = problem
    model = mlps(1)[0]
    for models, error, message in [
        ([], ValueError, "models: expected at least one"),
        (model, TypeError, "models: expected a sequence of nn.Module, got MLP"),
        ([model, 3], TypeError, r"models\[1\]: expected an nn.Module, got int"),
    ]:
        with pytest.raises(error, match=message):
            dd.Ensemble(models)
    with pytest.raises(ValueError, match=r"models\[1\]: expected 4 classes, as models\[0\] has, got 5"):
        dd.Ensemble([model, dd.models.MLP(7, (), 5)]).predict(x)
    with pytest.raises(TypeError, match="model: expected an nn"):
        dd.predict_proba(3, x)
    with pytest.raises(ValueError, match=r"flip: expected images .* got x of \(120, 7\)"):
        dd.predict_proba(model, x, flip=True)
    with pytest.raises(ValueError, match="model: expected one that gives outputs"):
        dd.predict_proba(dd.models.LanguageModel(5), np.zeros((2, 3), int))


def test_an_image_and_its_mirror_image(images):
    x, y = images
    model = network()
    expected = (softmax(model.predict(x)) + softmax(model.predict(x[:, :, ::-1]))) / 2
    assert np.abs(expected - softmax(model.predict(x))).max() > 0.01
    for batch_size in (1024, 4):
        np.testing.assert_allclose(dd.predict_proba(model, x, batch_size, flip=True), expected, rtol=1e-12)
    np.testing.assert_allclose(dd.predict_proba(model, x[:, :, ::-1], flip=True), expected, rtol=1e-12)
    trainer = dd.Trainer(model, dd.optim.SGD(0.1))
    for found in (
        trainer.evaluate((x, y), batch_size=4, flip=True),
        dd.Ensemble([model]).evaluate((x, y), batch_size=4, flip=True),
    ):
        assert found["loss"] == pytest.approx(-np.log(expected[np.arange(11), y]).mean(), rel=1e-12)
        assert found["accuracy"] == pytest.approx((expected.argmax(axis=1) == y).mean())
    smooth = dd.Trainer(model, dd.optim.SGD(0.1), CrossEntropy(0.3))
    assert smooth.evaluate((x, y), flip=True)["loss"] == pytest.approx(CrossEntropy(0.3)(np.log(expected), y)[0])
    with pytest.raises(ValueError, match="flip: expected False with MeanSquaredError"):
        dd.Trainer(model, dd.optim.SGD(0.1), dd.losses.MeanSquaredError()).evaluate((x, x[:, 0, 0]), flip=True)


def test_sigmoids_answer_together(images):
    """Each class on its own: the probabilities need not sum to 1."""
    x, y = images
    models, loss = [network(seed) for seed in (1, 2)], dd.losses.BinaryCrossEntropy()

    def of(model, x):
        return 1 / (1 + np.exp(-model.predict(x)))

    def entropies(p):
        return -np.log(np.where(np.eye(3)[y], p, 1 - p)).mean()

    np.testing.assert_allclose(dd.predict_proba(models[0], x, loss=loss), of(models[0], x), rtol=1e-12)
    mirrored = (of(models[0], x) + of(models[0], x[:, :, ::-1])) / 2
    np.testing.assert_allclose(dd.predict_proba(models[0], x, 4, flip=True, loss=loss), mirrored, rtol=1e-12)
    found = dd.Trainer(models[0], dd.optim.SGD(0.1), loss).evaluate((x, y), batch_size=4, flip=True)
    assert found == pytest.approx({"loss": entropies(mirrored), "accuracy": (mirrored.argmax(axis=1) == y).mean()})
    both = np.mean([of(model, x) for model in models], axis=0)
    ensemble = dd.Ensemble(models)
    np.testing.assert_allclose(ensemble.predict(x, loss=loss), both, rtol=1e-12)
    found = ensemble.evaluate((x, y), batch_size=4, loss=loss)
    assert found == pytest.approx({"loss": entropies(both), "accuracy": (both.argmax(axis=1) == y).mean()})
    assert ensemble.evaluate((x, np.eye(3)[y]), loss=loss) == {"loss": pytest.approx(entropies(both))}


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_logits_give_the_probabilities_back(dtype):
    z = np.array([[-30.0, -2.0, 0.0], [0.5, 3.0, 8.0]], dtype)
    loss, limits = dd.losses.BinaryCrossEntropy(), np.finfo(dtype)
    np.testing.assert_allclose(loss.logits(loss.probabilities(z)), z, rtol=1e3 * limits.eps, atol=limits.eps)
    certain = loss.logits(np.array([[0.0, 1.0]], dtype))
    assert certain.dtype == dtype
    assert (certain[0, 0], certain[0, 1]) == pytest.approx((np.log(limits.tiny), -np.log(limits.epsneg)))


def test_losses_that_tell_no_probabilities_are_refused(images):
    x, y = images
    for loss, error, message in [
        (dd.losses.MeanSquaredError(), ValueError, "loss: expected one that classifies, got MeanSquaredError"),
        ("sigmoid", TypeError, "loss: expected a losses.Loss, got str"),
    ]:
        with pytest.raises(error, match=message):
            dd.predict_proba(network(), x, loss=loss)
        with pytest.raises(error, match=message):
            dd.Ensemble([network()]).evaluate((x, y), loss=loss)


def test_schedules_know_where_their_cycles_end():
    def ends(schedule, updates=100):
        return [update + 1 for update in range(updates) if schedule.ends_cycle(update)]

    for growth in (1, 2):
        for schedule in (CosineWarmRestarts(0.1, 10, growth), Cyclic(0.01, 0.1, 5, growth=growth)):
            assert schedule.has_cycles
            found = ends(schedule)
            assert found == ([*range(10, 101, 10)] if growth == 1 else [10, 30, 70])
            for update in found:
                assert schedule(update - 1) < schedule(update - 2)  # falling until there
                assert schedule(update) != schedule(update - 1)
    assert ends(Warmup(CosineWarmRestarts(0.1, 10), 7)) == [*range(17, 101, 10)]
    assert Warmup(CosineWarmRestarts(0.1, 10), 7).has_cycles
    for schedule in (Cosine(0.1, 10), Warmup(0.1, 7)):
        assert not schedule.has_cycles
        assert not ends(schedule)


def test_snapshots(problem, make_trainer, tmp_path):
    x, y = problem

    def fit(trainer, epochs, snapshots):
        trainer.fit(
            (x, y),
            (x, y),
            epochs=epochs,
            batch_size=30,
            callbacks=[Checkpoint(tmp_path / "checkpoint"), snapshots],
            progress=False,
        )

    def trainer():
        return make_trainer(schedule=CosineWarmRestarts(0.05, 6))

    whole, last_two, snapshots = trainer(), trainer(), Snapshots()
    fit(whole, 6, snapshots)
    assert snapshots.updates == [6, 12, 18, 24]
    np.testing.assert_array_equal(snapshots.weights[-1][: whole.model.parameters.size], whole.model.parameters)
    ensemble = snapshots.ensemble()
    assert len(ensemble) == 4
    probabilities = [dd.predict_proba(model, x) for model in ensemble]
    assert min(np.abs(a - b).max() for a, b in itertools.pairwise(probabilities)) > 1e-3
    np.testing.assert_array_equal(probabilities[-1], dd.predict_proba(whole.model, x))
    assert ensemble.evaluate((x, y))["accuracy"] > 0.6
    two = Snapshots(keep=2)
    fit(last_two, 6, two)
    assert two.updates == [18, 24]
    np.testing.assert_array_equal(two.weights, snapshots.weights[2:])
    # Interrupted in the middle, it ends with the same ones.
    fit(trainer(), 3, Snapshots())
    resumed, again = trainer(), Snapshots()
    resumed.load_checkpoint(tmp_path / "checkpoint")
    fit(resumed, 6, again)
    assert again.updates == snapshots.updates
    np.testing.assert_array_equal(again.weights, snapshots.weights)


def test_snapshots_need_cycles(problem, make_trainer):
    for schedule in (None, Cosine(0.1, 9), lambda update: 0.1):
        with pytest.raises(TypeError, match="Snapshots: expected a trainer whose schedule has cycles"):
            make_trainer(schedule=schedule).fit(problem, callbacks=[Snapshots()], progress=False)
    snapshots = Snapshots()
    make_trainer(schedule=Cyclic(0.01, 0.1, 50)).fit(problem, callbacks=[snapshots], progress=False)
    with pytest.raises(ValueError, match="no cycle of the learning rate has ended"):
        snapshots.ensemble()
