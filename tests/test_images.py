"""Layers and models of images: by central differences, against PyTorch, and what they refuse."""

import copy
import pickle

import numpy as np
import pytest

import dd2424fast as dd
from dd2424fast import nn

pytestmark = pytest.mark.usefixtures("one_thread")

IMAGE = (6, 5, 4)  # every size another


def projected(stride, **k):
    shortcut = nn.Sequential(nn.Conv2d(4, 6, 1, stride, bias=False), nn.BatchNorm(6))
    return nn.Residual(
        nn.Conv2d(4, 6, 3, stride, 1), nn.BatchNorm(6), nn.Tanh(), nn.Conv2d(6, 6, 3, 1, 1), nn.BatchNorm(6),
        shortcut=shortcut, activation="tanh", **k,
    )  # fmt: skip


CONVOLUTIONS = {
    "plain": (4, 6, 3),
    "rectangle": (4, 6, (2, 3)),
    "patches": (4, 6, 2, 2),
    "stride": (4, 6, 3, (2, 1), (1, 2)),
    "dilation": (4, 6, 2, 1, 1, (2, 3)),
    "groups": (4, 6, 3, 1, 1, 1, 2),
    "depthwise": (4, 8, 3, 1, 1, 1, 4),
    "pixels": (4, 6, 1),
    "no bias": (4, 6, 3, 1, 1, 1, 1, False),
}
POOLS = {
    "max": (nn.MaxPool2d, (2,)),
    "overlapping max": (nn.MaxPool2d, (3, 2, 1)),
    "mean": (nn.AvgPool2d, ((3, 2),)),
    "overlapping mean": (nn.AvgPool2d, (3, 2, 1)),
}
LAYERS = {
    **{f"Conv2d {name}": lambda a=a, **k: nn.Conv2d(*a, **k) for name, a in CONVOLUTIONS.items()},
    "Conv2d same": lambda **k: nn.Conv2d(4, 6, (3, 5), padding="same", dilation=(2, 1), **k),
    **{f"pool {name}": lambda kind=kind, a=a, **k: kind(*a, **k) for name, (kind, a) in POOLS.items()},
    "GlobalAvgPool2d": lambda **k: nn.GlobalAvgPool2d(**k),
    "BatchNorm": lambda **k: nn.BatchNorm(4, **k),
    "Residual": lambda **k: nn.Residual(
        nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm(4), nn.Tanh(), nn.Conv2d(4, 4, 3, padding=1), activation=None, **k
    ),
    "Residual that ends with an activation": lambda **k: nn.Residual(
        nn.Conv2d(4, 4, 3, padding=1), nn.Tanh(), activation="sigmoid", **k
    ),
    "Residual of one dropout": lambda **k: nn.Residual(nn.Dropout(0.3), activation="tanh", **k),
    "Residual with a shortcut": lambda **k: projected(2, **k),
    "Residual within": lambda **k: nn.Residual(projected(1), nn.Conv2d(6, 4, 1), activation="leaky_relu", **k),
}


def behind(layer, classes=3):
    """A classifier of IMAGEs that begins with a convolution and the layer."""
    first = nn.Conv2d(4, 4, 1, dtype="float64")
    features = np.prod(nn.Sequential(first, layer).output_shape(IMAGE))
    return nn.Sequential(first, layer, nn.Flatten(), nn.Linear(int(features), classes), dtype="float64", seed=1)


@pytest.mark.parametrize("backend", ["fast", "numpy"])
@pytest.mark.parametrize("name", LAYERS)
def test_every_layer_by_central_differences(name, backend):
    model = behind(LAYERS[name](dtype="float64"))
    rng = np.random.default_rng(2)
    model.parameters[...] = rng.standard_normal(model.parameters.size) / 2
    with dd.backend(backend):
        x, y = rng.standard_normal((3, *IMAGE)), rng.integers(0, 3, 3)
        report = dd.gradcheck(model, x, y, check_input=True, tolerance=1e-6, entries=40)
    assert report, str(report)
    assert {"0.weight", "0.bias", "3.weight", "x"} <= set(report.errors)


@pytest.mark.parametrize("name", LAYERS)
def test_the_backends_agree(name):
    rng = np.random.default_rng(2)
    x = rng.standard_normal((5, *IMAGE))
    found = []
    for backend in ("fast", "numpy"):
        model = behind(LAYERS[name](dtype="float64"))
        with dd.backend(backend):
            y = model.forward(x)
            dx = model.backward(np.cos(y))
            found.append((y, dx, model.gradients, model.predict(x)))
    for ours, theirs in zip(*found, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-9, atol=1e-10)


# ---- against PyTorch -------------------------------------------------------------------------------------------------


def channels_first(x):
    return np.ascontiguousarray(np.moveaxis(x, -1, 1)) if x.ndim == 4 else x


def as_tensors(torch, state):
    return {name: torch.from_numpy(a) for name, a in state.items()}


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", [*CONVOLUTIONS, *POOLS, "global mean"])
def test_layers_equal_those_of_pytorch(name, dtype):
    torch = pytest.importorskip("torch")
    T, kind = torch.nn, getattr(torch, dtype)
    if name in CONVOLUTIONS:
        ours, theirs = nn.Conv2d(*CONVOLUTIONS[name], dtype=dtype), T.Conv2d(*CONVOLUTIONS[name], dtype=kind)
    elif name in POOLS:
        made, arguments = POOLS[name]
        ours, theirs = made(*arguments, dtype=dtype), getattr(T, made.__name__)(*arguments)
    else:
        ours, theirs = nn.GlobalAvgPool2d(dtype=dtype), T.Sequential(T.AdaptiveAvgPool2d(1), T.Flatten())
    state = theirs.state_dict()
    ours.load_state_dict(state)
    assert {n: a.shape for n, a in ours.state_dict().items()} == {n: tuple(a.shape) for n, a in state.items()}
    rng = np.random.default_rng(0)
    x = rng.standard_normal((3, 7, 6, 4)).astype(dtype)
    theirs_x = torch.from_numpy(channels_first(x)).requires_grad_()
    theirs_y = theirs(theirs_x)
    y = ours.forward(x)
    dy = rng.standard_normal(y.shape).astype(dtype)
    theirs_y.backward(torch.from_numpy(channels_first(dy)))
    close = dict(rtol=1e-4, atol=1e-5) if dtype == "float32" else dict(rtol=1e-11, atol=1e-12)
    np.testing.assert_allclose(channels_first(y), theirs_y.detach(), **close)
    np.testing.assert_allclose(channels_first(ours.backward(dy)), theirs_x.grad, **close)
    for name, gradient in ours.gradient_dict().items():
        np.testing.assert_allclose(gradient, dict(theirs.named_parameters())[name].grad, **close, err_msg=name)


def torch_resnet(torch, first, blocks, widths):
    """A residual network written for PyTorch by hand, with torchvision's names."""
    T = torch.nn

    class Block(T.Module):
        def __init__(self, inputs, outputs, stride):
            super().__init__()
            self.conv1 = T.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
            self.bn1 = T.BatchNorm2d(outputs)
            self.conv2 = T.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
            self.bn2 = T.BatchNorm2d(outputs)
            self.downsample = None
            if stride != 1 or inputs != outputs:
                self.downsample = T.Sequential(T.Conv2d(inputs, outputs, 1, stride, bias=False), T.BatchNorm2d(outputs))

        def forward(self, x):
            y = self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x)))))
            return torch.relu(y + (x if self.downsample is None else self.downsample(x)))

    class Net(T.Module):
        def __init__(self):
            super().__init__()
            inputs = widths[0]
            self.conv1 = T.Conv2d(3, inputs, *first, bias=False)
            self.bn1 = T.BatchNorm2d(inputs)
            self.stages = len(widths)
            for i, (count, width) in enumerate(zip(blocks, widths, strict=True)):
                stage = T.Sequential(
                    *(Block(width if j else inputs, width, 2 if i and not j else 1) for j in range(count))
                )
                setattr(self, f"layer{i + 1}", stage)
                inputs = width
            self.fc = T.Linear(inputs, 10)

        def forward(self, x):
            x = torch.relu(self.bn1(self.conv1(x)))
            if first[0] == 7:
                x = T.functional.max_pool2d(x, 3, 2, 1)
            for i in range(self.stages):
                x = getattr(self, f"layer{i + 1}")(x)
            return self.fc(x.mean((2, 3)))

    return Net()


def torch_convnet(T, channels, hidden, batch_norm, image, convs=1):
    layers, (height, width, inputs) = [], image
    for outputs in channels:
        for _ in range(convs):
            layers.append(T.Conv2d(inputs, outputs, 3, padding=1, bias=not batch_norm))
            layers += [T.BatchNorm2d(outputs), T.ReLU()] if batch_norm else [T.ReLU()]
            inputs = outputs
        layers.append(T.MaxPool2d(2))
        height, width = height // 2, width // 2
    if hidden is None:
        layers += [T.AdaptiveAvgPool2d(1)]
        # Flatten has no weights: our GlobalAvgPool2d stands where these two do, so the Linear is one place further
        return T.Sequential(*layers[:-1], T.Sequential(layers[-1], T.Flatten()), T.Linear(inputs, 10))
    return T.Sequential(*layers, T.Flatten(), T.Linear(height * width * inputs, hidden), T.ReLU(), T.Linear(hidden, 10))


def patchify_pair(torch):
    T = torch.nn
    theirs = T.Sequential(
        T.Conv2d(3, 5, 2, 2), T.ReLU(), T.Flatten(), T.Linear(4 * 3 * 5, 7), T.ReLU(), T.Linear(7, 10)
    )
    return dd.models.PatchifyNet, dict(patch=2, filters=5, hidden=7, image=(8, 6, 3)), theirs


def flat_norm_pair(torch):
    """A network of the user's own, batch normalisation between Flatten and Linear."""
    T = torch.nn
    theirs = T.Sequential(
        T.Conv2d(3, 5, 3, 2), T.LeakyReLU(), T.MaxPool2d(2, 1), T.Flatten(), T.BatchNorm1d(2 * 1 * 5), T.Linear(10, 10)
    )

    def make(**k):
        layers = nn.Conv2d(3, 5, 3, 2), nn.LeakyReLU(), nn.MaxPool2d(2, 1), nn.Flatten(), nn.BatchNorm(10)
        return nn.Sequential(*layers, nn.Linear(10, 10), **k)

    return make, dict(image=(8, 6, 3)), theirs


def convnet_pair(*a, **k):
    def pair(torch):
        arguments = dict(
            channels=a[0], hidden=a[1], batch_norm=a[2], image=(8, 9, 3), convs_per_block=k.get("convs", 1)
        )
        return dd.models.ConvNet, arguments, torch_convnet(torch.nn, *a, (8, 9, 3), **k)

    return pair


PAIRS = {
    "PatchifyNet": patchify_pair,
    "ConvNet": convnet_pair((4, 6), 7, False),
    "ConvNet with batch norm": convnet_pair((4, 6), 7, True, convs=2),
    "ConvNet with the mean": convnet_pair((4, 6), None, True),
    "Flatten, BatchNorm": flat_norm_pair,
    "ResNet for CIFAR": lambda torch: (
        dd.models.ResNet,
        dict(depth=14, image=(8, 8, 3)),
        torch_resnet(torch, (3, 1, 1), (2, 2, 2), (16, 32, 64)),
    ),
    "ResNet for ImageNet": lambda torch: (
        dd.models.ResNet,
        dict(depth=18, image=(25, 33, 3)),
        torch_resnet(torch, (7, 2, 3), (2, 2, 2, 2), (64, 128, 256, 512)),
    ),
}


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-5), ("float64", 1e-9)])
@pytest.mark.parametrize("name", PAIRS)
def test_models_equal_those_of_pytorch(name, dtype, tolerance):
    """The same weights in both directions, outputs, every named gradient, the losses of ten updates, and what they end
    with."""
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    make, arguments, theirs = PAIRS[name](torch)
    theirs = theirs.to(getattr(torch, dtype))
    model = make(**arguments, dtype=dtype)
    expected = [entry for entry in theirs.state_dict() if not entry.endswith("num_batches_tracked")]
    assert list(model.state_dict()) == expected
    model.load_state_dict(theirs.state_dict())
    theirs.load_state_dict(as_tensors(torch, model.state_dict()), strict=False)
    rng = np.random.default_rng(1)
    x, y = rng.standard_normal((6, *model.image)).astype(dtype), rng.integers(0, 10, 6)
    images, labels = torch.from_numpy(channels_first(x)), torch.from_numpy(y)
    close = dict(rtol=1e-3, atol=2e-5) if dtype == "float32" else dict(rtol=1e-8, atol=1e-10)

    out = theirs(images)
    torch.nn.functional.cross_entropy(out, labels).backward()
    buffers = model.buffers.copy()
    mine = model.forward(x)
    np.testing.assert_allclose(mine, out.detach(), **close)
    model.backward(dd.losses.CrossEntropy()(mine, y)[1])
    gradients = dict(theirs.named_parameters())
    assert list(model.gradient_dict()) == list(gradients)
    for entry, gradient in model.gradient_dict().items():
        expected = gradients[entry].grad.numpy()
        # In float32 a sum near the kink of a ReLU may fall on either side, which moves all that is below it.
        slack = (1e-2 if dtype == "float32" else 1e-8) * np.linalg.norm(expected)
        assert np.linalg.norm(gradient - expected) <= slack, entry

    model.buffers[...] = buffers
    theirs.load_state_dict(as_tensors(torch, model.state_dict()), strict=False)
    trainer = dd.Trainer(model, dd.optim.SGD(0.01, momentum=0.9))
    optimizer = torch.optim.SGD(theirs.parameters(), 0.01, momentum=0.9)
    for _ in range(3 if model.parameters.size > 1e6 else 10):
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(theirs(images), labels)
        loss.backward()
        optimizer.step()
        assert trainer.step(x, y) == pytest.approx(loss.item(), rel=tolerance, abs=tolerance)
    for entry, value in model.state_dict().items():
        np.testing.assert_allclose(value, theirs.state_dict()[entry], **close, err_msg=entry)
    np.testing.assert_allclose(model.predict(x), theirs.eval()(images).detach(), **close)


def resnet18_entries(classes=1000):
    """The 122 names and shapes of torchvision's resnet18, by their rule."""

    def norm(name, width):
        vectors = {f"{name}.{part}": (width,) for part in ("weight", "bias", "running_mean", "running_var")}
        return {**vectors, f"{name}.num_batches_tracked": ()}

    entries, inputs = {"conv1.weight": (64, 3, 7, 7), **norm("bn1", 64)}, 64
    for stage, width in enumerate((64, 128, 256, 512), start=1):
        for block in range(2):
            name = f"layer{stage}.{block}"
            entries |= {f"{name}.conv1.weight": (width, inputs, 3, 3), **norm(f"{name}.bn1", width)}
            entries |= {f"{name}.conv2.weight": (width, width, 3, 3), **norm(f"{name}.bn2", width)}
            if inputs != width:
                entries |= {f"{name}.downsample.0.weight": (width, inputs, 1, 1), **norm(f"{name}.downsample.1", width)}
            inputs = width
    return {**entries, "fc.weight": (classes, 512), "fc.bias": (classes,)}


def test_resnet18_has_torchvisions_names_and_shapes():
    entries = resnet18_entries()
    assert len(entries) == 122
    model = dd.models.ResNet(18, classes=1000)
    assert model.image == (224, 224, 3)
    shown = {name: a.shape for name, a in model.state_dict().items()}
    assert list(shown.items()) == [(n, s) for n, s in entries.items() if not n.endswith("num_batches_tracked")]
    assert model.parameters.size == 11_689_512  # as published
    model.load_state_dict({name: np.zeros(shape) for name, shape in entries.items()})
    assert not model.parameters.any()
    assert dd.models.ResNet(34, classes=1000).parameters.size == 21_797_672


def test_resnet20_has_the_papers_size():
    """0.27 million in table 6; with 1 x 1 convolutions in the two shortcuts that need them, and their normalisation,
    2,752 more."""
    model = dd.models.ResNet(20)
    shortcuts = {name: a.size for name, a in model.gradient_dict().items() if "downsample" in name}
    assert sum(shortcuts.values()) == 16 * 32 + 32 * 64 + 2 * 32 + 2 * 64
    assert model.parameters.size - sum(shortcuts.values()) == 269_722
    assert model.output_shape(model.image) == (10,)


def test_where_flatten_learns_the_channels():
    """A Linear behind it shows its columns in PyTorch's order, channel by channel, where they are known."""
    W = np.arange(12.0, dtype="float32").reshape(12, 1)  # 2 x 2 pixels of 3 channels
    by_channel = W.reshape(4, 3).T.reshape(1, 12)

    class Twice(nn.Module):
        """A layer of a user's own, which says nothing of shapes."""

        def forward(self, x):
            return 2 * x

        def backward(self, dy):
            return 2 * dy

    class TwiceAsWide(Twice):
        def output_shape(self, shape):
            return shape

    conv = lambda: nn.Conv2d(5, 3, 1)  # noqa: E731
    for layers, known in (
        ([conv(), nn.Flatten()], True),
        ([conv(), nn.ReLU(), nn.MaxPool2d(2), nn.Dropout(0.5), nn.Flatten(), nn.GELU()], True),
        ([nn.Sequential(nn.Residual(conv(), shortcut=conv())), nn.Sequential(nn.Flatten())], True),
        ([conv(), TwiceAsWide(), nn.Flatten()], True),
        ([conv(), Twice(), nn.Flatten(3)], True),
        ([conv(), Twice(), nn.Flatten()], False),
        ([nn.Flatten(channels=3)], True),
        ([nn.Flatten()], False),
        ([], False),
    ):
        model = nn.Sequential(*layers, nn.Linear(12, 1))
        model[-1].weight = W
        model[-1].dweight[...] = W
        shown = by_channel if known else W.T
        weight = f"{len(layers)}.weight"
        np.testing.assert_array_equal(model.state_dict()[weight], shown)
        np.testing.assert_array_equal(model.gradient_dict()[weight], shown)
        model.load_state_dict({weight: shown + 1}, strict=False)
        np.testing.assert_array_equal(model[-1].weight, W + 1)
        for clone in (copy.deepcopy(model), pickle.loads(pickle.dumps(model[-1:]))):
            np.testing.assert_array_equal(list(clone.state_dict().values())[-2], shown + 1)
    told = nn.Sequential(nn.Flatten(), nn.Linear(12, 1), image=(2, 2, 3))
    told[1].weight = W
    np.testing.assert_array_equal(told.state_dict()["1.weight"], by_channel)


# ---- fusing ----------------------------------------------------------------------------------------------------------


def calls(report):
    return {name: row[0] for name, row in report._calls.items()}


def floating_point_operations(report):
    return {name: row[2] for name, row in report._calls.items()}


@pytest.mark.parametrize("activation", [nn.ReLU, nn.LeakyReLU, nn.Tanh, nn.Sigmoid, nn.GELU])
def test_an_activation_applied_with_the_convolution_equals_one_by_itself(activation):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((3, *IMAGE))
    conv = nn.Conv2d(4, 5, 3, padding=1, dtype="float64", seed=1)
    alone, f = copy.deepcopy(conv), activation(dtype="float64")
    together = nn.Sequential(conv, activation())
    with dd.profile() as report:
        y = together.forward(x)
    assert ("activation_forward" in calls(report)) == (activation is nn.GELU)  # the one that no product ends with
    np.testing.assert_allclose(y, f.forward(alone.forward(x)), rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(
        together.backward(np.cos(y)), alone.backward(f.backward(np.cos(y))), rtol=1e-10, atol=1e-13
    )
    np.testing.assert_allclose(together.gradients, alone.gradients, rtol=1e-10, atol=1e-12)


def one_by_one(model, x):
    """Evaluate every layer by itself, as the model's structure says."""
    if isinstance(model, nn.Sequential):
        y = x
        for layer in model:
            y = one_by_one(layer, y)
        if isinstance(model, nn.Residual):
            past = x if model.shortcut is None else one_by_one(model.shortcut, x)
            y = dd.kernels.activation_forward(y + past, model.activation)
        return y
    return model.eval().forward(x)


@pytest.mark.parametrize("backend", ["fast", "numpy"])
@pytest.mark.parametrize("bias", [True, False])
def test_batch_norm_is_folded_into_the_convolution_in_evaluation(bias, backend):
    make = lambda outputs: nn.Conv2d(4, outputs, 3, padding=1, bias=bias)  # noqa: E731
    block = nn.Residual(make(4), nn.BatchNorm(4), nn.ReLU(), make(4), nn.BatchNorm(4))
    model = nn.Sequential(make(4), nn.BatchNorm(4), nn.Tanh(), block, make(7), nn.BatchNorm(7), dtype="float64", seed=0)
    rng = np.random.default_rng(0)
    model.parameters[...] = rng.standard_normal(model.parameters.size) / 3
    model.buffers[...] = rng.uniform(0.5, 2, model.buffers.size)
    before = model.parameters.copy()
    x = rng.standard_normal((3, *IMAGE))
    with dd.backend(backend):
        with dd.profile() as report:
            y = model.predict(x)
        assert calls(report) == {"conv2d_forward": 4, "residual_add_forward": 1}
        np.testing.assert_allclose(y, one_by_one(model, x), rtol=1e-11, atol=1e-12)
        np.testing.assert_array_equal(model.predict(x), model.eval().forward(x))
    np.testing.assert_array_equal(model.parameters, before)
    model.train()
    with dd.profile() as report:
        model.forward(x)
    assert calls(report)["batch_norm_forward"] == 4
    assert "activation_forward" not in calls(report)


def test_a_residual_block_leaves_its_input_alone():
    x = np.random.default_rng(0).standard_normal((2, *IMAGE)).astype("float32")
    for layers in ([nn.Dropout(0.5)], [nn.Dropout(0)], [nn.Conv2d(4, 4, 1)], [nn.Conv2d(4, 4, 1), nn.ReLU()]):
        block = nn.Residual(*layers)
        kept = x.copy()
        block.predict(x)
        y = block.forward(x)
        dy = np.ones_like(y)
        block.backward(dy)
        np.testing.assert_array_equal(x, kept)
        np.testing.assert_array_equal(dy, np.ones_like(y))


def test_an_image_alone_has_the_bits_that_it_has_among_others():
    model = dd.models.ResNet(8, seed=0, image=(9, 8, 3))
    x = np.random.default_rng(0).standard_normal((5, 9, 8, 3)).astype("float32")
    y = model.predict(x)
    np.testing.assert_array_equal(model.predict(x[2:3]), y[2:3])
    np.testing.assert_array_equal(model.predict(x, batch_size=2), y)
    assert model.predict(x[:0]).shape == (0, 10)


def test_one_image_is_a_batch_for_batch_norm():
    model = dd.models.ConvNet((4,), None, batch_norm=True, image=(6, 6, 3), seed=0)
    trainer = dd.Trainer(model, dd.optim.SGD(0.1))
    x = np.random.default_rng(0).standard_normal((3, 6, 6, 3)).astype("float32")
    assert np.isfinite(trainer.step(x[:1], [1]))
    trainer.fit((x, np.arange(3)), batch_size=1, epochs=1, progress=False)


# ---- freezing --------------------------------------------------------------------------------------------------------


def frozen_net(*frozen):
    """conv 0, norm 1, ReLU, block 3 (conv 0, conv 1, shortcut), pool, Flatten, Linear 6, ReLU, Linear 8."""
    block = nn.Residual(nn.Conv2d(5, 6, 3, padding=1), nn.Conv2d(6, 6, 1), shortcut=nn.Conv2d(5, 6, 1))
    model = nn.Sequential(
        nn.Conv2d(4, 5, 3, padding=1), nn.BatchNorm(5), nn.ReLU(), block, nn.MaxPool2d(2), nn.Flatten(),
        nn.Linear(36, 8), nn.ReLU(), nn.Linear(8, 3), dtype="float64", seed=0,
    )  # fmt: skip
    for prefix in frozen:
        model.freeze(prefix)
    return model


@pytest.fixture
def images():
    rng = np.random.default_rng(0)
    return rng.standard_normal((4, *IMAGE)), rng.integers(0, 3, 4)


BACKWARD = ("conv2d_backward", "linear_backward", "batch_norm_backward", "max_pool2d_backward")


@pytest.mark.parametrize(
    ("frozen", "expected"),
    [
        ((), (4, 2, 1, 1)),
        (("0", "1", "3", "6"), (0, 1, 0, 0)),  # the head alone
        (("0", "1", "3"), (0, 2, 0, 0)),
        (("0", "1", "3.0", "3.shortcut"), (1, 2, 0, 1)),  # the block's second convolution and what follows
        (("0", "1", "3.0", "3.1"), (1, 2, 0, 1)),  # the shortcut's
        (("1", "3", "6", "8"), (4, 2, 1, 1)),  # everything stands in the first one's way
        (("",), (0, 0, 0, 0)),
    ],
)
def test_the_backward_pass_of_an_update_ends_at_the_first_layer_trained(frozen, expected, images):
    model, whole = frozen_net(*frozen), frozen_net()
    with dd.profile() as report:
        dd.Trainer(model, dd.optim.SGD(0.1)).step(*images)
    assert tuple(calls(report).get(name, 0) for name in BACKWARD) == expected
    dd.Trainer(whole, dd.optim.SGD(0.1)).step(*images)
    if "1" not in frozen:  # a frozen batch norm computes something else
        for (name, p), (_, q) in zip(model.named_parameters(), whole.named_parameters(), strict=True):
            gradient = q.gradient if p.trainable else np.zeros_like(q.gradient)
            np.testing.assert_allclose(p.gradient, gradient, rtol=1e-12, err_msg=name)


def test_a_frozen_layer_computes_no_weight_gradient(images):
    def operations(*frozen):
        with dd.profile() as report:
            dd.Trainer(frozen_net(*frozen), dd.optim.SGD(0.1)).step(*images)
        return floating_point_operations(report)

    whole, part = operations(), operations("3.1", "6")
    assert whole["conv2d_backward"] - part["conv2d_backward"] == 2 * 4 * 6 * 5 * 6 * 6
    assert whole["linear_backward"] - part["linear_backward"] == 2 * 4 * 36 * 8


@pytest.mark.parametrize("frozen", [("0", "3", "6", "8"), ("",), ("0", "3.1", "6.weight")])
def test_the_inputs_gradient_is_there_for_who_asks(frozen, images):
    x, y = images
    model, whole = frozen_net(*frozen), frozen_net()
    dy = np.random.default_rng(1).standard_normal((4, 3))
    for net in (model, whole):
        net.freeze("1")
        net.buffers[...] = np.random.default_rng(2).uniform(0.5, 1, net.buffers.size)
    model.forward(x)
    whole.forward(x)
    np.testing.assert_allclose(model.backward(dy), whole.backward(dy), rtol=1e-12)
    assert dd.gradcheck(model, x, y, check_input=True, tolerance=1e-6)


class Shifted(nn.Module):
    """A layer of a user's own, which writes its gradient whether it is trained or not."""

    def __init__(self, features, *, dtype="float32", seed=None):
        super().__init__(dtype=dtype, seed=seed)
        self.add("shift", (features,), np.zeros)

    def forward(self, x):
        return x + self.shift

    def backward(self, dy):
        self.dshift[...] = dy.sum(axis=0)
        return dy


def a_frozen_part_of_each_kind():
    yield "0", nn.Sequential(nn.Conv2d(4, 4, 1), nn.GlobalAvgPool2d(), nn.Linear(4, 3)), IMAGE
    for layer in (nn.BatchNorm(4), nn.LayerNorm(4), nn.Linear(4, 4), Shifted(4)):
        for prefix in ("1", "1.bias", "1.shift"):
            if prefix != ("1.bias" if isinstance(layer, Shifted) else "1.shift"):
                yield prefix, nn.Sequential(nn.Linear(4, 4), copy.deepcopy(layer), nn.Linear(4, 3)), (4,)
    yield "1.bias", nn.Sequential(nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 3), nn.GlobalAvgPool2d(), nn.Linear(4, 3)), IMAGE
    yield (
        "1.weight",
        nn.Sequential(nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 3), nn.GlobalAvgPool2d(), nn.Linear(4, 3)),
        IMAGE,
    )
    yield "1", nn.Sequential(nn.Linear(4, 4), nn.Sequential(nn.Linear(4, 4), Shifted(4)), nn.Linear(4, 3)), (4,)


@pytest.mark.parametrize("prefix", ["", "embedding", "rnn", "output"])
@pytest.mark.parametrize("options", [{}, {"embedding": 5}, {"embedding": 5, "tied": True}], ids=str)
def test_gradients_of_frozen_parts_of_a_language_model_are_zero(options, prefix):
    if prefix == "embedding" and not options:
        return
    model = dd.models.LanguageModel(7, "lstm", 5, seed=0, **options)
    x = np.random.default_rng(0).integers(0, 7, (2, 6))
    trainer = dd.Trainer(model, dd.optim.SGD(0.1))
    trainer.step(x, x)
    model.freeze(prefix)
    trainer.step(x, x)
    for name, p in model.named_parameters():
        assert bool(p.gradient.any()) == p.trainable, name


@pytest.mark.parametrize(("prefix", "model", "shape"), list(a_frozen_part_of_each_kind()))
def test_gradients_of_frozen_parameters_are_zero_so_no_norm_counts_them(prefix, model, shape):
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((6, *shape)).astype("float32"), rng.integers(0, 3, 6)
    trainer = dd.Trainer(model, dd.optim.SGD(0.1), clip_norm=1e-3)
    trainer.step(x, y)
    assert model.gradients.any()
    model.freeze(prefix)
    frozen = {name: p.value.copy() for name, p in model.named_parameters() if not p.trainable}
    assert frozen
    assert not any(dict(model.named_parameters())[name].gradient.any() for name in frozen)
    trainer.step(x, y)
    norm = 0
    for name, p in model.named_parameters():
        if name in frozen:
            np.testing.assert_array_equal(p.value, frozen[name])
            assert not p.gradient.any(), name
        norm += (p.gradient.astype(float) ** 2).sum()
    assert norm**0.5 == pytest.approx(1e-3, rel=1e-4)  # what is trained gets all of it
    model.unfreeze(prefix)
    trainer.step(x, y)
    assert all(p.gradient.any() for _, p in model.named_parameters() if p.gradient.size > 1)


# ---- files and copies ------------------------------------------------------------------------------------------------

MODELS = {
    "PatchifyNet": lambda **k: dd.models.PatchifyNet(4, 3, 5, image=(8, 8, 3), **k),
    "ConvNet": lambda **k: dd.models.ConvNet((4, 5), 6, batch_norm=True, dropout=0.2, image=(8, 8, 3), **k),
    "ResNet": lambda **k: dd.models.ResNet(8, image=(8, 8, 3), **k),
    "Residual": lambda **k: nn.Sequential(
        nn.Residual(nn.Conv2d(3, 3, 3, padding="same"), nn.BatchNorm(3), names=("a", "b", "c")),
        nn.Residual(nn.AvgPool2d(2), shortcut=nn.MaxPool2d(2), activation=None),
        nn.Flatten(),
        nn.Linear(48, 10),
        image=(8, 8, 3),
        **k,
    ),
}


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", MODELS)
def test_copies_and_files_are_whole(name, dtype, tmp_path):
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((4, 8, 8, 3)), np.arange(4)
    model = MODELS[name](dtype=dtype, seed=3)
    trainer = dd.Trainer(model, dd.optim.Adam(0.01))
    trainer.step(x, y)
    model.save(tmp_path / "model")
    clones = [copy.deepcopy(model), pickle.loads(pickle.dumps(model)), type(model).load(tmp_path / "model")]
    expected = model.predict(x)
    for clone in clones:
        assert repr(clone) == repr(model)
        np.testing.assert_array_equal(clone.predict(x), expected)
        np.testing.assert_array_equal(clone.parameters, model.parameters)
        assert clone.image == (8, 8, 3)
    losses = {dd.Trainer(m, dd.optim.SGD(0.1)).step(x, y) for m in (model, *clones)}
    assert len(losses) == 1


def test_a_model_whose_layers_were_replaced_is_saved_with_its_names(tmp_path):
    model = dd.models.ResNet(8, image=(8, 8, 3), seed=0)
    model.replace("fc", nn.Linear(64, 4, seed=1))
    model.replace("layer2.0.downsample.0", nn.Conv2d(16, 32, 2, 2, seed=2))
    model.replace("layer1.0.relu", nn.Tanh())
    model.replace("layer3.0.downsample", nn.Conv2d(32, 64, 1, 2, seed=3))
    x = np.random.default_rng(0).standard_normal((3, 8, 8, 3))
    assert model.predict(x).shape == (3, 4)
    model.save(tmp_path / "model")
    loaded = nn.Sequential.load(tmp_path / "model")
    assert list(loaded.state_dict()) == list(model.state_dict())
    assert "layer2.0.downsample.0.bias" in loaded.state_dict()
    np.testing.assert_array_equal(loaded.predict(x), model.predict(x))
    trunk = model[:-1]
    assert next(iter(trunk.children())) == "conv1"
    assert trunk.image == (8, 8, 3)


def test_seeds_and_dtypes():
    for make in MODELS.values():
        a, b, c, wide = make(seed=1), make(seed=1), make(seed=2), make(seed=1, dtype="float64")
        np.testing.assert_array_equal(a.parameters, b.parameters)
        assert not np.array_equal(a.parameters, c.parameters)
        np.testing.assert_array_equal(wide.parameters.astype("float32"), a.parameters)


@pytest.mark.parametrize(
    ("init", "deviation"),
    [("default", 3**-0.5 / 90**0.5), ("he", (2 / 90) ** 0.5), ("glorot", (2 / (90 + 9 * 200)) ** 0.5)],
)
def test_initial_filters_have_the_named_spread(init, deviation):
    layer = nn.Conv2d(20, 200, 3, groups=2, init=init, seed=0)
    assert layer.weight.shape == (3, 3, 10, 200)
    assert layer.weight.std() == pytest.approx(deviation, rel=0.01)
    assert abs(layer.bias).max() <= (90**-0.5 if init == "default" else 0)


def test_summary_shows_shapes():
    text = dd.models.ConvNet((4,), 6, image=(8, 9, 3), seed=0).summary()
    assert "(batch, 8, 9, 4)" in text
    assert "(batch, 64)" in text
    assert "572 parameters, 572 trained, float32" in text
    unknown = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.GlobalAvgPool2d(), nn.Linear(4, 2)).summary()
    assert "(batch, any, any, 4)" in unknown


# ---- bad input -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: nn.Conv2d(0, 3, 3), ValueError, "in_channels: expected an integer of at least 1"),
        (lambda: nn.Conv2d(4, 3, 3, groups=2), ValueError, "groups: expected a divisor of out_channels = 3, got 2"),
        (lambda: nn.Conv2d(3, 4, 3, groups=2), ValueError, "groups: expected a divisor of in_channels = 3, got 2"),
        (lambda: nn.Conv2d(3, 4, 0), ValueError, "kernel_size: expected at least 1, got 0"),
        (lambda: nn.Conv2d(3, 4, (3, 3, 3)), TypeError, "kernel_size: expected an int or a pair of them"),
        (lambda: nn.Conv2d(3, 4, 3, 0), ValueError, "stride: expected at least 1, got 0"),
        (lambda: nn.Conv2d(3, 4, 3, padding=-1), ValueError, "padding: expected at least 0, got -1"),
        (lambda: nn.Conv2d(3, 4, 3, padding="valid"), ValueError, "padding: expected an int, a pair of them or 'same'"),
        (lambda: nn.Conv2d(3, 4, 3, 2, "same"), ValueError, r"padding: 'same' .* only at stride 1, got stride"),
        (lambda: nn.Conv2d(3, 4, 2, padding="same"), ValueError, r"padding: 'same' is for filters of an odd size"),
        (lambda: nn.Conv2d(3, 4, 3, init="hee"), ValueError, "init: expected one of"),
        (lambda: nn.MaxPool2d(0), ValueError, "size: expected at least 1, got 0"),
        (lambda: nn.MaxPool2d(16), ValueError, "size: expected a window of at most 255 pixels, got 16 x 16"),
        (lambda: nn.AvgPool2d(2, padding=2), ValueError, r"padding: expected at most half the window's size"),
        (lambda: nn.Residual(), ValueError, "layers: expected at least one"),
        (lambda: nn.Residual(nn.ReLU(), activation="gelu"), ValueError, "activation: expected one of relu.*got 'gelu'"),
        (lambda: nn.Residual(nn.ReLU(), shortcut="x"), TypeError, "shortcut: expected a Module, got str"),
        (lambda: nn.Residual(*[nn.ReLU()] * 1, names=("a",)), ValueError, "names: expected 1 for the layers"),
        (lambda: nn.Sequential(nn.ReLU(), names=("a.b",)), ValueError, "names: expected names without a dot"),
        (lambda: nn.Sequential(nn.ReLU(), names=("a", "b")), ValueError, "names: expected 1 different names"),
        (lambda: nn.Sequential(nn.ReLU(), image=(32, 32)), ValueError, r"image: expected \(height, width, channels\)"),
        (lambda: dd.models.ConvNet(image=(32, 32, 0)), ValueError, r"image\[2\]: expected an integer of at least 1"),
        (lambda: dd.models.ConvNet(32), TypeError, r"channels: expected a sequence .* such as \(32,\)"),
        (lambda: dd.models.ConvNet(()), ValueError, "channels: expected at least one block"),
        (lambda: dd.models.ConvNet((4,) * 4, image=(8, 9, 3)), ValueError, "channels: expected at most 3 blocks"),
        (lambda: dd.models.PatchifyNet(5), ValueError, r"patch: expected a divisor of .* \(32, 32\), got 5"),
        (lambda: dd.models.ResNet(50 - 1), ValueError, r"depth: expected 18, 34, or 6 n \+ 2 .* got 49"),
        (lambda: dd.models.ResNet(2), ValueError, "depth: expected 18"),
        (lambda: dd.models.ConvNet(batchnorm=True), TypeError, "did you mean 'batch_norm'"),
    ],
)  # fmt: skip
def test_bad_constructor_arguments(make, error, message):
    with pytest.raises(error, match=message):
        make()


@pytest.mark.parametrize(
    ("layers", "image", "message"),
    [
        (
            lambda: [nn.Conv2d(3, 4, 3), nn.Sequential(nn.MaxPool2d(2), nn.MaxPool2d(4))],
            (8, 8, 3),
            r"layer 1.1, MaxPool2d\(size=4\): size: expected windows that fit into the padded image of 3 x 3 pixels, "
            "got windows that span 4 x 4",
        ),
        (lambda: [nn.ReLU(), nn.Conv2d(3, 4, 9)], (8, 8, 3), r"layer 1, Conv2d.*: kernel_size: expected windows"),
        (
            lambda: [nn.Conv2d(3, 4, 3), nn.BatchNorm(3)],
            None,
            r"layer 1, BatchNorm\(features=3\): x: expected shape \(batch, ..., 3\), got \(batch, any, any, 4\)",
        ),
        (
            lambda: [nn.Conv2d(3, 4, 3), nn.Conv2d(3, 4, 3)],
            (8, 8, 3),
            r"layer 1, Conv2d.*: x: expected shape \(batch, height, width, 3\), got \(batch, 6, 6, 4\)",
        ),
        (
            lambda: [nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(100, 3)],
            (8, 8, 3),
            r"layer 2, Linear.*: x: expected shape \(batch, 100\), got \(batch, 144\)",
        ),
        (
            lambda: [nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(101, 3)],
            None,
            "layer 2, Linear.*: x: expected 101 features, got flattened images of 4 channels",
        ),
        (lambda: [nn.Conv2d(3, 4, 3), nn.Linear(4, 3)], None, r"layer 1, Linear.*: x: expected shape \(batch, 4\)"),
        (
            lambda: [nn.Residual(nn.Conv2d(3, 4, 3, padding=1))],
            (8, 8, 3),
            r"layer 0, Residual: shortcut: expected its input to have the shape of the layers' output, "
            r"\(batch, 8, 8, 4\), got \(batch, 8, 8, 3\)",
        ),
        (
            lambda: [nn.Residual(nn.Conv2d(3, 3, 3), shortcut=nn.Conv2d(3, 3, 1, 2))],
            (8, 8, 3),
            r"shortcut: expected its output to have the shape .*\(batch, 6, 6, 3\), got \(batch, 4, 4, 3\)",
        ),
    ],
)
def test_layers_that_do_not_fit_are_named_when_the_model_is_made(layers, image, message):
    with pytest.raises(ValueError, match=message):
        nn.Sequential(*layers(), image=image)


@pytest.mark.parametrize(
    ("model", "shape", "message"),
    [
        (nn.Conv2d(3, 4, 3), (8, 3, 32, 32),
         r"x: expected shape \(batch, height, width, 3\), got \(8, 3, 32, 32\): channels come last here$"),
        (nn.Conv2d(3, 4, 3), (8, 32, 32, 1), r"expected shape \(batch, height, width, 3\), got \(8, 32, 32, 1\)$"),
        (nn.MaxPool2d(2), (8, 4), r"x: expected shape \(batch, height, width, channels\), got \(8, 4\)"),
        (nn.Flatten(3), (8, 4, 4, 2), r"x: expected shape \(batch, height, width, 3\), got \(8, 4, 4, 2\)"),
        (nn.Conv2d(3, 4, 3), (8, 2, 2, 3), "expected windows that fit into the padded image of 2 x 2 pixels"),
        (dd.models.ConvNet(), (8, 3, 32, 32), r"x: expected shape \(batch, 32, 32, 3\), got \(8, 3, 32, 32\): chan"),
        (dd.models.ConvNet(), (8, 28, 28, 3), r"x: expected shape \(batch, 32, 32, 3\), got \(8, 28, 28, 3\)$"),
        (dd.models.ConvNet(), (8, 3072), r"x: expected shape \(batch, 32, 32, 3\), got \(8, 3072\)"),
        (dd.models.ResNet(8), (8, 64, 64, 3), r"x: expected shape \(batch, 32, 32, 3\), got \(8, 64, 64, 3\)"),
        (nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(144, 2)), (8, 9, 8, 3),
         r"layer 2, Linear\(.*\): x: expected shape \(batch, 144\), got \(batch, 168\)"),
        (nn.Sequential(nn.Conv2d(3, 4, 3), nn.Sequential(nn.ReLU(), nn.MaxPool2d(5))), (2, 6, 6, 3),
         r"layer 1.1, MaxPool2d\(size=5\): size: expected windows that fit"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("method", ["forward", "predict", "step"])
def test_images_that_do_not_fit(model, shape, message, method):
    x = np.zeros(shape, "float32")
    run = dd.Trainer(model, dd.optim.SGD(0.1)).step if method == "step" else getattr(model, method)
    with pytest.raises(ValueError, match=message):
        run(x, np.zeros(len(x), int)) if method == "step" else run(x)


def test_state_that_does_not_fit_names_everything_and_changes_nothing():
    model = dd.models.ConvNet((4,), 6, batch_norm=True, image=(8, 8, 3), seed=0)
    before = model.parameters.copy()
    state = model.state_dict()
    state["0.weight"] = np.moveaxis(state["0.weight"], 0, -1)
    state["5.weight"] = np.zeros((6, 32))
    del state["1.running_var"]
    state["9.weight"] = np.zeros(2)
    with pytest.raises(
        ValueError,
        match=r"0.weight has shape \(3, 3, 3, 4\), expected \(4, 3, 3, 3\); 5.weight has shape \(6, 32\), "
        r"expected \(6, 64\); missing 1.running_var; unexpected 9.weight",
    ):
        model.load_state_dict(state)
    np.testing.assert_array_equal(model.parameters, before)


def test_layers_may_be_replaced_one_after_the_other():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(16, 2), image=(4, 4, 3), seed=0)
    model[0] = nn.Conv2d(3, 5, 3)
    with pytest.raises(ValueError, match=r"layer 2, Linear.*expected shape \(batch, 16\), got \(batch, 20\)"):
        model.predict(np.zeros((2, 4, 4, 3)))
    model[2] = nn.Linear(20, 2)
    assert model.predict(np.zeros((2, 4, 4, 3))).shape == (2, 2)
    assert model.state_dict()["2.weight"][0, 1] == model[2].weight[5, 0]  # the second pixel of the first channel
