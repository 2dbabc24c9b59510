"""Augmentation on the fly: what `Trainer.fit(augment=...)` is given."""

import pickle

import numpy as np
import pytest

import dd2424fast as dd
from dd2424fast.data import Augment
from dd2424fast.kernels import augment_images, stream_key

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def images():
    """(x, y): 40 images of uint8 in 4 classes."""
    rng = np.random.default_rng(2)
    return rng.integers(0, 256, (40, 5, 6, 3), dtype=np.uint8), rng.integers(0, 4, 40)


def network(seed=1, dtype="float32"):
    return dd.nn.Sequential(
        dd.nn.Flatten(), dd.nn.Linear(90, 12), dd.nn.ReLU(), dd.nn.Linear(12, 4), seed=seed, dtype=dtype
    )


def test_it_is_the_kernel(images):
    x, _ = images
    augment = Augment(flip=True, shift=2, cutout=3, contrast=0.2, brightness=9, noise=2.0, fill=5)
    expected = augment_images(x, 77, flip=0.5, shift=2, cutout=3, contrast=0.2, brightness=9, noise=2.0, fill=5)
    np.testing.assert_array_equal(augment(x, 77), expected)
    np.testing.assert_array_equal(Augment()(x, 77), x)
    assert Augment(flip=False).flip == 0
    assert Augment(flip=0.25).flip == 0.25


def test_standardised_images_hide_with_the_mean(images):
    x, _ = images
    standardizer = dd.data.Standardizer(axis=(0, 1, 2)).fit(x)
    augment = Augment(cutout=4, mean=standardizer.mean, std=standardizer.std)
    got, plain = augment(x, 5), augment.standardize(x)
    assert got.dtype == np.float32
    np.testing.assert_allclose(plain, standardizer.transform(x), rtol=0, atol=1e-6)
    hidden = (got != plain).any(axis=3)
    assert 4 * 40 < hidden.sum() <= 16 * 40
    assert np.abs(got[hidden]).max() < 0.5 / standardizer.std.min()  # the mean to the nearest whole number
    floats = Augment(cutout=4, mean=standardizer.mean, std=standardizer.std)(x.astype("float64"), 5)
    np.testing.assert_allclose(floats[hidden], 0, atol=1e-12)
    assert (Augment(cutout=4, mean=9, std=1, fill=200)(x, 5)[hidden] == 191).all()


def test_rows_of_features(images):
    x, _ = images
    flat, augment = x.reshape(40, -1), Augment(flip=True, shift=1, image=(5, 6, 3))
    np.testing.assert_array_equal(augment(flat, 3), augment(x, 3).reshape(40, -1))
    with pytest.raises(ValueError, match=r"x: expected shape \(batch, 90\) for image=\(5, 6, 3\), got \(40, 89\)"):
        augment(flat[:, :89], 3)


def test_mixup_mixes_images_and_targets_alike(images):
    x, y = images
    augment, weights = Augment(mixup=0.4, mean=0), []
    for key in range(300):
        mixed, targets = augment(x[:6], key), augment.targets(y[:6], key, 4)
        weight = (mixed[0, 0, 0, 0] - float(x[5, 0, 0, 0])) / (float(x[0, 0, 0, 0]) - float(x[5, 0, 0, 0]))
        np.testing.assert_allclose(mixed, weight * x[:6] + (1 - weight) * x[5::-1], atol=1e-3)
        np.testing.assert_allclose(targets, weight * np.eye(4)[y[:6]] + (1 - weight) * np.eye(4)[y[5::-1]], atol=1e-4)
        np.testing.assert_allclose(targets.sum(axis=1), 1, rtol=1e-15)
        weights.append(weight)
    # Beta(a, a): mean 1/2, variance 1 / (4 (2a + 1))
    assert abs(np.mean(weights) - 0.5) < 0.06
    assert abs(np.var(weights) - 1 / 7.2) < 0.02
    real = np.random.default_rng(0).normal(size=(6, 2))
    np.testing.assert_allclose(augment.targets(real, 3, 2) + augment.targets(real, 3, 2)[::-1], real + real[::-1])
    assert Augment().targets(y, 0, 4) is y
    with pytest.raises(ValueError, match="y: expected labels from 0 to 3 to be mixed"):
        augment.targets(np.array([0, 4]), 0, 4)


@pytest.mark.parametrize("loss", [dd.losses.CrossEntropy(0.1), dd.losses.BinaryCrossEntropy()])
def test_fit_trains_on_what_it_makes(images, loss):
    x, y = images
    augment = Augment(flip=True, shift=1, mixup=0.3, mean=120, std=60)
    trainer = dd.Trainer(network(), dd.optim.Adam(0.01), loss, seed=4)
    history = trainer.fit((x, y), epochs=2, batch_size=20, shuffle=False, augment=augment, progress=False)
    by_hand = dd.Trainer(network(), dd.optim.Adam(0.01), loss, seed=4)
    losses = []
    for update in range(4):
        rows, key = slice(20 * (update % 2), 20 * (update % 2) + 20), stream_key(4, 3 << 32, update)
        losses.append(by_hand.step(augment(x[rows], key), augment.targets(y[rows], key, 4)))
    np.testing.assert_array_equal(trainer.model.parameters, by_hand.model.parameters)
    np.testing.assert_allclose(history["loss"], [np.mean(losses[:2]), np.mean(losses[2:])], rtol=1e-12)


@pytest.mark.parametrize("backend", ["fast", "numpy"])
def test_a_resumed_fit_sees_the_same_images(images, tmp_path, backend):
    x, y = images

    def trainer():
        return dd.Trainer(network(), dd.optim.Adam(0.01), seed=4)

    arguments = dict(batch_size=12, progress=False, augment=Augment(flip=True, noise=3, mixup=1.0, mean=120, std=60))
    with dd.backend(backend):
        whole, first, second = trainer(), trainer(), trainer()
        whole.fit((x, y), epochs=3, **arguments)
        first.fit((x, y), epochs=1, **arguments)
        first.save_checkpoint(tmp_path / "checkpoint")
        second.load_checkpoint(tmp_path / "checkpoint")
        second.fit((x, y), epochs=2, **arguments)
    np.testing.assert_array_equal(whole.model.parameters, second.model.parameters)
    assert whole.history["loss"] == second.history["loss"]


def test_hidden_classes_can_be_told_from_what_is_left(images):
    """A class that only colours tell is still learnt from mixed images, and the accuracy counts the larger share."""
    _, y = images
    x = (np.eye(4)[y][:, None, None, :3] * 200 + np.zeros((1, 5, 6, 1))).astype("float32")
    trainer = dd.Trainer(network(), dd.optim.Adam(0.02), seed=1)
    augment = Augment(flip=True, shift=2, cutout=2, mixup=0.2, mean=60, std=90)
    history = trainer.fit((x, y), epochs=30, batch_size=20, augment=augment, progress=False)
    assert trainer.evaluate((augment.standardize(x), y))["accuracy"] == 1
    assert history["accuracy"][-1] > 0.9


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_rows_of_probabilities_are_labels_where_they_are_certain(images, dtype):
    x, y = images
    model = dd.nn.Sequential(dd.nn.Flatten(), dd.nn.Linear(90, 4), dtype=dtype, seed=1)
    trainer = dd.Trainer(model, dd.optim.SGD(1e-4), dd.losses.CrossEntropy(0.1))
    sure = np.eye(4, dtype="float32")[y]
    assert trainer.evaluate((x, sure), batch_size=12) == pytest.approx(
        trainer.evaluate((x, y), batch_size=12), rel=1e-6
    )
    weight = np.random.default_rng(1).uniform(0, 2, 40)
    twin = dd.Trainer(dd.nn.Sequential(dd.nn.Flatten(), dd.nn.Linear(90, 4), dtype=dtype, seed=1), dd.optim.SGD(1e-4))
    trainer.loss = twin.loss
    for _ in range(3):
        expected = twin.step(x, y, sample_weight=weight)
        assert trainer.step(x, sure, sample_weight=weight) == pytest.approx(expected, rel=1e-5)
    weights = trainer.loss.weight_of(sure, weight), trainer.loss.weight_of(sure, None)
    assert weights == (pytest.approx(weight.sum()), 40.0)
    with pytest.raises(ValueError, match="labels: expected integers, or rows of probabilities"):
        trainer.step(x, sure * 2)


def test_it_is_configured():
    augment = Augment(flip=True, mean=[1, 2, 3], std=4)
    assert repr(augment) == "Augment(flip=True, mean=[1, 2, 3], std=4)"
    x = np.random.default_rng(0).uniform(0, 9, (3, 4, 5, 3))
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(augment))(x, 1), augment(x, 1))
    for arguments, message in [
        ({"flip": 2}, r"flip: expected a number in \[0, 1\]"),
        ({"shift": -1}, "shift: expected an integer of at least 0"),
        ({"contrast": 2}, "contrast: expected"),
        ({"mixup": -0.5}, "mixup: expected"),
        ({"mean": [[1]]}, "mean: expected a finite number, or one for each channel"),
        ({"std": [1, 0]}, r"std: expected numbers above 0, got \[1, 0\]"),
        ({"std": "wide"}, "std: expected a finite number"),
        ({"image": (3, 4)}, r"image: expected \(height, width, channels\)"),
    ]:
        with pytest.raises(ValueError, match=message):
            Augment(**arguments)
    with pytest.raises(TypeError, match=r"unknown keyword 'mix' .did you mean 'mixup'"):
        Augment(mix=0.5)
