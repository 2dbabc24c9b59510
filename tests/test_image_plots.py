"""Pictures of what a network for images looks at, and of its filters."""

import numpy as np
import pytest

import dd2424fast as dd
from dd2424fast import plots

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def image():
    return np.random.default_rng(0).normal(size=(6, 8, 3))


def averaging():
    """A network that ends with a mean over the pixels and a linear layer, with all that differs in training."""
    nn, rng = dd.nn, np.random.default_rng(2)
    layers = nn.Conv2d(3, 4, 3, padding=1, dtype="float64"), nn.BatchNorm(4), nn.ReLU(), nn.Conv2d(4, 5, 3, padding=1)
    model = nn.Sequential(*layers, nn.Tanh(), nn.Dropout(0.5), nn.GlobalAvgPool2d(), nn.Linear(5, 3), seed=1)
    model.buffers[...] = rng.uniform(0.5, 2, model.buffers.size)
    return model


def flattening():
    nn = dd.nn
    layers = nn.Conv2d(3, 4, 3, padding=1, dtype="float64"), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(48, 9)
    return nn.Sequential(*layers, nn.Tanh(), nn.Linear(9, 3), seed=1)


def heat_of(figure):
    return np.asarray(figure.axes[1].images[1].get_array())


def test_behind_a_mean_it_is_the_class_activation_map(image):
    model = averaging()
    features = model[:5].eval().predict(image[None])[0]
    for label in range(3):
        expected = np.maximum(features @ model[7].weight[:, label] / 48, 0)  # 6 x 8 places
        np.testing.assert_allclose(
            heat_of(plots.class_activation(model, image, label)), expected, rtol=1e-10, atol=1e-14
        )
    found = plots.class_activation(model, image)
    label = int(model.predict(image[None]).argmax())
    np.testing.assert_array_equal(heat_of(found), heat_of(plots.class_activation(model, image, label)))
    assert f"class {label}" in found.axes[1].get_title()


def test_elsewhere_it_is_weighed_by_gradients(image):
    model, step = flattening(), 1e-6
    features = model[:2].predict(image[None])
    rest = model[2:]
    for label in range(3):
        gradient = np.empty(4)
        for c in range(4):  # the mean of the gradient: all places of a channel moved together
            moved = np.zeros(4)
            moved[c] = step
            up, down = rest.predict(features + moved), rest.predict(features - moved)
            gradient[c] = (up - down)[0, label] / (2 * step) / 48
        expected = np.maximum(features[0] @ gradient, 0)
        assert expected.max() > 0
        np.testing.assert_allclose(heat_of(plots.class_activation(model, image, label)), expected, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize(
    ("model", "shape"),
    [
        (dd.models.ConvNet((4, 8), 16, batch_norm=True, convs_per_block=2, image=(8, 12, 3), seed=1), (4, 6)),
        (dd.models.ConvNet((4, 8), None, image=(8, 12, 3), dropout=0.2, seed=1), (4, 6)),
        (dd.models.PatchifyNet(4, 5, 7, image=(8, 12, 3), seed=1), (2, 3)),
    ],
    ids=["ConvNet", "ConvNet-mean", "PatchifyNet"],
)
def test_the_library_s_models(model, shape):
    image = np.random.default_rng(0).normal(size=(8, 12, 3)).astype("float32")
    heat = [heat_of(plots.class_activation(model, image, label)) for label in range(10)]
    assert np.shape(heat) == (10, *shape)
    assert len({h.tobytes() for h in heat}) > 5
    assert np.max(heat) > 0
    assert len([place for place in plots.filters(model).axes if place.images]) in (4, 5)


@pytest.mark.parametrize("make", [averaging, flattening])
def test_the_model_is_left_alone(image, make, tmp_path):
    model = make()
    y = model.forward(image[None])
    model.backward(np.ones_like(y))
    before = [v.copy() for v in (model.parameters, model.gradients, model.buffers)]
    plots.class_activation(model, image, path=tmp_path / "map.png")
    plots.filters(model, tmp_path / "filters.png")
    for a, b in zip(before, (model.parameters, model.gradients, model.buffers), strict=True):
        np.testing.assert_array_equal(a, b)
    assert model.training
    assert all(module.p == 0.5 for _, module in model.modules() if isinstance(module, dd.nn.Dropout))
    assert all(parameter.trainable for _, parameter in model.named_parameters())
    for name in ("map.png", "filters.png"):
        assert (tmp_path / name).read_bytes()[:4] == b"\x89PNG"


def test_filters():
    figure = plots.filters(averaging())
    shown = [place for place in figure.axes if place.images]
    assert len(shown) == 4
    weights = averaging()[0].weight
    for place, weight in zip(shown, np.moveaxis(weights, 3, 0), strict=True):
        picture = np.asarray(place.images[0].get_array())
        assert (picture.min(), picture.max()) == (0, 1)
        np.testing.assert_allclose(picture * np.ptp(weight) + weight.min(), weight, rtol=1e-12, atol=1e-12)
    classes = dd.models.MLP(60, (), 10, seed=1)
    shown = [place for place in plots.filters(classes, image=(4, 5, 3)).axes if place.images]
    assert len(shown) == 10
    row = np.asarray(shown[3].images[0].get_array()).ravel()
    assert np.corrcoef(row, classes[0].weight[:, 3])[0, 1] > 1 - 1e-6
    classes[0].weight[...] = 0  # one that is the same everywhere is black
    assert not np.asarray(plots.filters(classes, image=(4, 5, 3)).axes[0].images[0].get_array()).any()


def test_wrong_arguments_are_refused(image):
    model = averaging()
    for arguments, error, message in [
        ((dd.models.LanguageModel(5), image), TypeError, "model: expected an nn.Sequential, got LanguageModel"),
        ((model, image[0]), ValueError, r"image: expected shape \(height, width, channels\), got \(8, 3\)"),
        ((model, image, 3), ValueError, "label: expected an integer from 0 to 2, got 3"),
        (
            (dd.nn.Sequential(dd.nn.Flatten(), dd.nn.Linear(144, 2)), image),
            ValueError,
            "model: expected layers that give",
        ),
        ((model[:5], image), ValueError, r"model: expected one that gives outputs \(batch, classes\)"),
    ]:
        with pytest.raises(error, match=message):
            plots.class_activation(*arguments)
    for arguments in ({}, {"image": (5, 5, 3)}):
        with pytest.raises(ValueError, match=r"model, image: expected a first layer with filters .* shape \(60, 10\)"):
            plots.filters(dd.models.MLP(60, (), 10), **arguments)
    with pytest.raises(ValueError, match="model, image: expected a first layer with filters"):
        plots.filters(model[3:])
