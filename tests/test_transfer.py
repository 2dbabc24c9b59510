"""Transfer learning: weights by name, a new head, rates and freezing by layer, features computed once."""

import sys

import numpy as np
import pytest
from safetensors.numpy import save_file

import dd2424fast as dd
from dd2424fast import transfer
from dd2424fast.callbacks import Checkpoint, GradualUnfreezing

pytestmark = pytest.mark.usefixtures("one_thread")


def mlp(classes=4, seed=0, dtype="float32", **options):
    return dd.models.MLP(7, (6, 5), classes, seed=seed, dtype=dtype, **options)


class TwoHeaded(dd.nn.Module):
    """A model of a user's own, whose layers are attributes."""

    def __init__(self, classes, *, dtype="float32", seed=None):
        super().__init__(dtype=dtype, seed=seed)
        self.body = dd.nn.Sequential(dd.nn.Linear(7, 6, seed=1), dd.nn.ReLU(), dtype=dtype)
        self.fc = dd.nn.Linear(6, classes, dtype=dtype, seed=2)

    def forward(self, x):
        return self.fc.forward(self.body.forward(x))

    def backward(self, dy):
        return self.body.backward(self.fc.backward(dy))


# ---- weights ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def trained(problem):
    """A model with batch normalisation that has seen data."""
    model = mlp(batch_norm=True)
    dd.Trainer(model, dd.optim.Adam(0.01)).fit(problem, epochs=3, progress=False)
    return model


def file_of(model, path, kind):
    """The model's weights as a file of this kind, or as they are."""
    state = model.state_dict()
    if kind == "ours":
        model.save(path)
    elif kind == "safetensors":
        save_file(state, path)
    elif kind.startswith("torch"):
        torch = pytest.importorskip("torch")
        tensors = {name: torch.from_numpy(a) for name, a in state.items()}
        torch.save({"epoch": 3, "state_dict": tensors} if kind == "torch checkpoint" else tensors, path)
    else:
        return {"state": state, "model": model}[kind]
    return path


@pytest.mark.parametrize("kind", ["ours", "safetensors", "torch", "torch checkpoint", "state", "model"])
def test_weights_of_any_origin(kind, trained, problem, tmp_path):
    model = mlp(batch_norm=True, seed=1)
    report = transfer.load_weights(model, file_of(trained, tmp_path / "w", kind), strict=True)
    assert report.matched == list(trained.state_dict())
    np.testing.assert_array_equal(model.predict(problem[0]), trained.predict(problem[0]))


def test_tensors_of_pytorch_and_their_half_types(tmp_path):
    torch = pytest.importorskip("torch")
    from safetensors.torch import save_file as save_tensors

    theirs = torch.nn.Sequential(torch.nn.Linear(7, 6), torch.nn.BatchNorm1d(6)).eval()
    model = dd.nn.Sequential(dd.nn.Linear(7, 6), dd.nn.BatchNorm(6))
    transfer.load_weights(model, theirs.state_dict(), strict=True)  # num_batches_tracked is no difference
    x = np.random.default_rng(0).standard_normal((5, 7)).astype("float32")
    np.testing.assert_allclose(model.predict(x), theirs(torch.from_numpy(x)).detach(), rtol=1e-4, atol=1e-6)

    half = {name: value.bfloat16() for name, value in theirs.state_dict().items() if value.is_floating_point()}
    save_tensors(half, tmp_path / "half.safetensors")
    torch.save(half, tmp_path / "half.pt")
    for source in (half, tmp_path / "half.safetensors", tmp_path / "half.pt"):
        other = dd.nn.Sequential(dd.nn.Linear(7, 6), dd.nn.BatchNorm(6))
        transfer.load_weights(other, source, strict=True)
        np.testing.assert_array_equal(other[0].weight.T, half["0.weight"].float())
        np.testing.assert_allclose(other.parameters, model.parameters, rtol=2**-8)


def test_the_report_tells_what_matched_and_what_did_not(trained):
    state = trained.state_dict()
    del state["0.bias"]
    state["9.weight"] = np.zeros((2, 3), "float32")
    model = mlp(classes=9, batch_norm=True, seed=1)
    before = model.state_dict()
    report = transfer.load_weights(model, state, skip="3")
    assert report.missing == ["0.bias"]
    assert report.misshapen == ["6.weight", "6.bias"]
    assert report.unexpected == ["9.weight"]
    assert report.skipped == ["3.weight", "3.bias"]
    assert set(report.matched) == set(before) - {"0.bias", "6.weight", "6.bias", "3.weight", "3.bias"}
    for name, value in model.state_dict().items():
        np.testing.assert_array_equal(value, (state if name in report.matched else before)[name])
    lines = str(report).splitlines()
    assert lines[1].split() == ["0.weight", "matched", "(6,", "7)", "(6,", "7)"]
    assert [line.split() for line in lines if line.startswith("6.weight")] == [
        ["6.weight", "misshapen", "(4,", "5)", "(9,", "5)"]
    ]
    assert lines[-1] == "9 matched, 1 missing, 2 skipped, 2 misshapen, 1 unexpected"


@pytest.mark.parametrize(
    ("theirs", "translation"),
    [
        (lambda name: f"net.{name}", {"prefix": "net."}),
        (lambda name: f"module.{name.replace('6.', 'head.')}", {"prefix": "module.", "rename": {"head": "6"}}),
        (
            lambda name: f"all.{name.replace('0.', 'first.')}",
            {"rename": {"all.first": "0", **{f"all.{i}": str(i) for i in range(7)}}},
        ),
        (lambda name: name[::-1], {"rename": lambda name: name[::-1]}),
    ],
)
def test_names_are_translated(theirs, translation, trained):
    model = mlp(batch_norm=True, seed=1)
    state = {theirs(name): value for name, value in trained.state_dict().items()}
    transfer.load_weights(model, state, strict=True, **translation)
    np.testing.assert_array_equal(model.parameters, trained.parameters)


def test_names_that_are_not_wanted_are_left_out(trained):
    model = mlp(batch_norm=True, seed=1)
    report = transfer.load_weights(model, trained, rename={"6": None})
    assert report.missing == ["6.weight", "6.bias"]
    assert not report.unexpected


def test_nothing_is_changed_where_not_all_may_be(trained):
    model = mlp(classes=9, batch_norm=True, seed=1)
    before = model.parameters.copy()
    with pytest.raises(ValueError, match=r"(?s)source: does not fit.*6.weight +misshapen +\(4, 5\) +\(9, 5\)"):
        transfer.load_weights(model, trained, strict=True)
    with pytest.raises(ValueError, match=r"nothing in it fits .* it has a.0.weight, .* the model 0.weight, "):
        transfer.load_weights(model, {f"a.{name}": value for name, value in trained.state_dict().items()})
    np.testing.assert_array_equal(model.parameters, before)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"source": "absent.safetensors"}, FileNotFoundError, "source: there is no file absent.safetensors"),
        ({"source": "nonsense"}, ValueError, "not a safetensors file, or damaged"),
        ({"source": "checkpoint"}, ValueError, "holds a checkpoint, expected a model"),
        ({"source": 3}, TypeError, "source: expected a path, a state_dict or an nn.Module, got int"),
        ({"source": {"0.weight": "text"}}, TypeError, "source: expected names and arrays, got '0.weight': str"),
        ({"source": {}, "prefix": "a"}, ValueError, "prefix: no name in the source begins with 'a'"),
        ({"source": {}, "rename": 3}, TypeError, "rename: expected a mapping or a function of a name, got int"),
        ({"source": {"a": np.ones(1), "b": np.ones(1)}, "rename": lambda name: "0.bias"}, ValueError, "two entries"),
        ({"source": {}, "skip": "00"}, ValueError, r"skip: the model has no '00'"),
        ({"source": {"0.bias": np.array(["a"] * 6)}}, ValueError, "0.bias has dtype <U1, expected numbers"),
    ],
)
def test_bad_sources(arguments, error, message, trained, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "nonsense").write_bytes(b"nonsense")
    dd.Trainer(trained, dd.optim.SGD(0.1)).save_checkpoint("checkpoint")
    with pytest.raises(error, match=message):
        transfer.load_weights(mlp(batch_norm=True), **arguments)


def test_files_of_pytorch_need_it_and_hold_tensors_alone(trained, tmp_path, monkeypatch):
    torch = pytest.importorskip("torch")
    file_of(trained, tmp_path / "w.pt", "torch")
    torch.save(torch.nn.Linear(2, 2), tmp_path / "module.pt")
    torch.save([torch.ones(2)], tmp_path / "list.pt")
    with pytest.raises(ValueError, match=r"module.pt holds no state_dict of torch.save alone"):
        transfer.load_weights(trained, tmp_path / "module.pt")
    with pytest.raises(ValueError, match=r"list.pt holds a list, expected a state_dict"):
        transfer.load_weights(trained, tmp_path / "list.pt")
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(ImportError, match=r"w.pt is a file of torch.save, which needs torch to be read"):
        transfer.load_weights(trained, tmp_path / "w.pt")


# ---- freezing, rates, heads ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "call", [lambda m: m.freeze("fd"), lambda m: m.unfreeze("fd"), lambda m: m.set_rates({"fd": 1.0})]
)
def test_a_wrong_layer_is_answered_with_the_choices(call):
    with pytest.raises(ValueError, match=r"'fd' \(did you mean 'fc'\?\); there are body, fc"):
        call(TwoHeaded(3))


def test_rates_scale_the_updates_of_their_layers(problem):
    model, plain = mlp(dtype="float64"), mlp(dtype="float64")
    model.set_rates({"": 0.5, "2": 0.0, "4": 2.0})
    before = model.parameters.copy()
    for each in (model, plain):
        dd.Trainer(each, dd.optim.SGD(0.1)).step(*problem)
    factors = np.concatenate(
        [np.full(p.value.size, f) for (_, p), f in zip(model.named_parameters(), (0.5, 0.5, 0, 0, 2, 2), strict=True)]
    )
    np.testing.assert_allclose(model.parameters - before, factors * (plain.parameters - before), atol=1e-14)


@pytest.mark.parametrize(
    ("rates", "error", "message"),
    [
        ({"0": -1.0}, ValueError, r"rates\['0'\]: expected a number in \[0, inf\), got -1.0"),
        ({"0": 0.1, "7": 1.0}, ValueError, "rates: no parameter's path starts with '7'"),
        ({0: 0.1}, TypeError, "rates: expected the name of a layer such as '0' or 'layer1', got 0"),
        ([0.1], TypeError, "rates: expected a mapping from prefix to factor, got list"),
    ],
)
def test_bad_rates_change_nothing(rates, error, message):
    model = mlp()
    with pytest.raises(error, match=message):
        model.set_rates(rates)
    assert all(parameter.rate == 1.0 for _, parameter in model.named_parameters())


def test_a_new_head_is_part_of_the_flat_vectors(problem, tmp_path):
    model, other = mlp(classes=9), TwoHeaded(9)
    for each, path in ((model, "4"), (other, "fc")):
        kept = {name: value for name, value in each.state_dict().items() if not name.startswith(path)}
        assert transfer.replace_head(each, 4, seed=3) == path
        for name, value in kept.items():
            np.testing.assert_array_equal(each.state_dict()[name], value)
        each.freeze()
        assert each.unfreeze(path) == dict(each.modules())[path].parameters.size
        trainer = dd.Trainer(each, dd.optim.Adam(0.1))
        before = trainer.evaluate(problem)["loss"]
        trainer.fit(problem, epochs=5, progress=False)
        assert trainer.evaluate(problem)["loss"] < before - 0.1
        for name, value in kept.items():
            np.testing.assert_array_equal(each.state_dict()[name], value)
        each.save(tmp_path / "m")
        loaded = type(each).load(tmp_path / "m", modules=(TwoHeaded,))
        np.testing.assert_array_equal(loaded.predict(problem[0]), each.predict(problem[0]))


def test_what_cannot_have_a_new_head():
    tied = dd.models.LanguageModel(9, "rnn", 4, 4, tied=True)
    with pytest.raises(TypeError, match="got a TiedLinear at output"):
        transfer.replace_head(tied, 3)
    for model in (dd.nn.Sequential(dd.nn.ReLU()), dd.nn.Linear(2, 3)):
        with pytest.raises(ValueError, match="expected one with a Linear layer to be its head"):
            transfer.replace_head(model, 3)
    with pytest.raises(ValueError, match="out_features: expected an integer of at least 1"):
        transfer.replace_head(mlp(), 0)


def test_any_layer_can_be_replaced(problem, tmp_path):
    other = TwoHeaded(4)
    other.replace("body.0", dd.nn.Linear(7, 6, seed=9, dtype="float64"))
    assert other.body[0].dtype == np.float32
    assert np.shares_memory(other.parameters, other.body[0].weight)
    dd.Trainer(other, dd.optim.SGD(0.1)).step(*problem)
    with pytest.raises(TypeError, match="a layer of this TwoHeaded was replaced; save its state_dict"):
        other.save(tmp_path / "m")
    with pytest.raises(ValueError, match=r"path: there is no layer 'head'; there are body, fc"):
        other.replace("head", dd.nn.ReLU())
    with pytest.raises(ValueError, match="it is in this model already"):
        other.replace("fc", other.body[0])


# ---- features --------------------------------------------------------------------------------------------------------


def test_a_slice_trains_the_model_that_it_is_of(problem):
    model = mlp(batch_norm=True, dtype="float64")
    part = model[3:6]
    assert [type(layer).__name__ for layer in part] == ["Linear", "BatchNorm", "ReLU"]
    for vector in ("parameters", "gradients", "buffers"):
        assert np.shares_memory(getattr(part, vector), getattr(model, vector))
    assert part.parameters.size == 6 * 5 + 5 + 2 * 5
    x = problem[0].astype("float64")
    np.testing.assert_array_equal(model[6:].predict(part.predict(model[:3].predict(x))), model.predict(x))
    before = model.parameters.copy()
    dd.Trainer(model[3:], dd.optim.SGD(0.1)).step(model[:3].predict(x), problem[1])
    changed = np.flatnonzero(model.parameters != before)
    assert changed.min() >= model[:3].parameters.size
    model.check_joined()
    with pytest.raises(ValueError, match="got a step of 2"):
        model[::2]


def test_a_head_on_features_ends_as_in_the_frozen_model(problem):
    whole, parted = (mlp(batch_norm=True, dtype="float64") for _ in range(2))
    for model in (whole, parted):
        dd.Trainer(model, dd.optim.Adam(0.01)).fit(problem, epochs=2, progress=False)
        transfer.replace_head(model, 4, seed=1)
    whole.freeze()
    whole.unfreeze("6")
    dd.Trainer(whole, dd.optim.Adam(0.1), seed=2).fit(problem, epochs=3, batch_size=32, progress=False)
    _, head = transfer.split(parted)
    found = transfer.features(parted, problem[0], batch_size=50)
    dd.Trainer(head, dd.optim.Adam(0.1), seed=2).fit((found, problem[1]), epochs=3, batch_size=32, progress=False)
    np.testing.assert_allclose(parted.parameters, whole.parameters, rtol=1e-9, atol=1e-12)
    np.testing.assert_array_equal(parted.buffers, whole.buffers)


def test_cached_features_are_never_those_of_something_else(problem, tmp_path, monkeypatch):
    x, path = problem[0], tmp_path / "features.safetensors"
    model, computed = mlp(batch_norm=True), []
    predict = dd.nn.Sequential.predict
    monkeypatch.setattr(
        dd.nn.Sequential, "predict", lambda self, x, *rest: computed.append(len(x)) or predict(self, x, *rest)
    )

    def features(x=x, **options):
        computed.clear()
        found = transfer.features(model, x, cache=path, **options)
        np.testing.assert_array_equal(found, transfer.features(model, x, **options))
        return len(computed) > 1

    assert features()
    assert not features()
    model[6].weight *= 2  # of the head
    assert not features()
    assert features(upto="4")
    changes = (
        lambda: model[0].weight.__setitem__((0, 0), 3.0),
        lambda: model.buffers.__setitem__(0, 0.5),
        lambda: x.__setitem__((5, 2), -x[5, 2]),
        lambda: setattr(model, "layers", (*model.layers[:1], dd.nn.Tanh(), *model.layers[2:])),
    )
    for change in (lambda: None, *changes):
        change()
        assert features()
        assert not features()
    assert features(x[:-1])
    with dd.backend("numpy"):
        assert features(x[:-1])


def test_a_cache_that_is_none_is_left_alone(problem, tmp_path):
    model, path = mlp(), tmp_path / "m"
    model.save(path)
    content = path.read_bytes()
    with pytest.raises(ValueError, match="holds a model, expected a features"):
        transfer.features(model, problem[0], cache=path)
    path.write_bytes(content[:-1])
    with pytest.raises(ValueError, match="damaged"):
        transfer.features(model, problem[0], cache=path)
    assert path.read_bytes() == content[:-1]


@pytest.mark.parametrize(
    ("model", "upto", "error", "message"),
    [
        (mlp(), "0", ValueError, "upto: expected a layer with others before it, got '0'"),
        (mlp(), "5", ValueError, "upto: expected the name of one of the model's own layers, 0, 1, 2, 3, 4, got '5'"),
        (
            TwoHeaded(3),
            None,
            TypeError,
            "model: expected an nn.Sequential, to be parted between two layers, got TwoHeaded",
        ),
    ],
)
def test_what_cannot_be_parted(model, upto, error, message):
    with pytest.raises(error, match=message):
        transfer.features(model, np.zeros((2, 7)), upto)


# ---- networks for images ---------------------------------------------------------------------------------------------


@pytest.fixture
def pictures():
    """24 noisy images of 8 x 8 pixels in 3 classes."""
    rng = np.random.default_rng(3)
    y = np.arange(24) % 3
    return (rng.standard_normal((3, 8, 8, 2))[y] + rng.standard_normal((24, 8, 8, 2))).astype("float32"), y


def resnet(classes=3, seed=0):
    return dd.models.ResNet(8, classes, (8, 8, 2), seed=seed)


def test_layers_of_a_resnet_go_by_their_names(pictures):
    model = resnet()
    with pytest.raises(
        ValueError, match=r"did you mean 'layer.'\?\); there are conv1, bn1, layer1, layer2, layer3, fc"
    ):
        model.freeze("layer")
    model.freeze()
    model.unfreeze("layer3")
    model.unfreeze("fc")
    model.set_rates({"layer3": 0.0})
    before = model.state_dict()
    dd.Trainer(model, dd.optim.SGD(0.1)).step(*pictures)
    changed = {name for name, value in model.state_dict().items() if not np.array_equal(value, before[name])}
    statistics = {name for name in before if name.startswith("layer3") and "running" in name}
    assert changed == {"fc.weight", "fc.bias", *statistics}  # of frozen layers not even the statistics


def test_a_resnet_learns_other_classes_from_its_features(pictures, tmp_path):
    x, y = pictures
    source, whole = resnet(7), resnet()
    report = transfer.load_weights(whole, source, skip="fc")
    assert len(report.matched) == len(source.state_dict()) - 2
    parted = resnet(7)
    assert transfer.replace_head(parted, 3, seed=1) == "fc"
    transfer.load_weights(whole, parted, strict=True)
    whole.freeze()
    whole.unfreeze("fc")
    dd.Trainer(whole, dd.optim.Adam(0.01)).fit((x, y), epochs=3, batch_size=10, progress=False)
    found = transfer.features(parted, x, batch_size=5, cache=tmp_path / "f")
    dd.Trainer(transfer.split(parted)[1], dd.optim.Adam(0.01)).fit((found, y), epochs=3, batch_size=10, progress=False)
    np.testing.assert_allclose(parted.parameters, whole.parameters, rtol=1e-3, atol=1e-5)
    parted.save(tmp_path / "m")
    loaded = dd.models.ResNet.load(tmp_path / "m")
    np.testing.assert_array_equal(loaded.predict(x), parted.predict(x))


def test_a_new_head_behind_a_flatten_has_pytorchs_order(pictures):
    model = dd.nn.Sequential(dd.nn.Conv2d(2, 3, 3), dd.nn.Flatten(), dd.nn.Linear(108, 5), image=(8, 8, 2))
    transfer.replace_head(model, 4, seed=1)
    weight = model.state_dict()["2.weight"].reshape(4, 3, 6, 6)  # channels first, as PyTorch flattens them
    np.testing.assert_array_equal(weight.transpose(2, 3, 1, 0), model[2].weight.reshape(6, 6, 3, 4))
    trunk, head = transfer.split(model)
    np.testing.assert_array_equal(model.state_dict()["2.weight"].reshape(4, 3, 6, 6), weight)
    np.testing.assert_array_equal(head.predict(trunk.predict(pictures[0])), model.predict(pictures[0]))


def test_kept_features_know_a_residuals_activation(pictures, tmp_path):
    nn, outputs = dd.nn, []
    for activation in ("relu", None):
        block = nn.Residual(nn.Conv2d(2, 2, 3, padding=1, seed=0), activation=activation)
        model = nn.Sequential(block, nn.Flatten(), nn.Linear(128, 3, seed=0))
        outputs.append(transfer.features(model, pictures[0], cache=tmp_path / "f"))
    assert outputs[0].min() >= 0 > outputs[1].min()


# ---- gradual unfreezing ----------------------------------------------------------------------------------------------


def unfreezing_fit(problem, path=None, epochs=5, resume=False, **options):
    """Train with one group after the other; return the trainer, and which parameters changed in which epoch."""
    model = mlp(batch_norm=True, dtype="float64")
    trainer = dd.Trainer(model, dd.optim.SGD(0.05, momentum=0.9), seed=1)
    if resume:
        trainer.load_checkpoint(path)
    changed, before = [], model.state_dict()

    class Watch(dd.callbacks.Callback):
        def epoch_ends(self, trainer, row):
            after = model.state_dict()
            changed.append({name.partition(".")[0] for name in after if not np.array_equal(before[name], after[name])})
            before.update(after)

    callbacks = [Watch(), GradualUnfreezing(("6", ("3", "4"), ""), **options)]
    callbacks += [Checkpoint(path)] if path else []
    trainer.fit(problem, epochs=epochs, batch_size=17, callbacks=callbacks, progress=False)  # 120 = 7 x 17 + 1
    return trainer, changed


def test_groups_join_in_one_after_the_other(problem):
    _, changed = unfreezing_fit(problem, every=2)
    last, middle = {"6"}, {"6", "3", "4"}
    assert changed == [last, last, middle, middle, {"0", "1", *middle}]


@pytest.mark.parametrize("epochs", [1, 2, 3])
def test_unfreezing_goes_on_after_a_resumption(epochs, problem, tmp_path):
    whole, changed = unfreezing_fit(problem)
    _, first = unfreezing_fit(problem, tmp_path / "c", epochs)
    resumed, rest = unfreezing_fit(problem, tmp_path / "c", resume=True)
    np.testing.assert_array_equal(resumed.model.parameters, whole.model.parameters)
    np.testing.assert_array_equal(resumed.model.buffers, whole.model.buffers)
    assert first + rest == changed


@pytest.mark.parametrize(
    ("groups", "error", "message"),
    [
        ("fc", TypeError, "groups: expected names of layers such as"),
        ((), TypeError, "groups: expected names of layers such as"),
        (("6", "7"), ValueError, "no parameter's path starts with '7'"),
    ],
)
def test_bad_groups(groups, error, message, problem):
    with pytest.raises(error, match=message):
        dd.Trainer(mlp(batch_norm=True), dd.optim.SGD(0.1)).fit(
            problem, callbacks=[GradualUnfreezing(groups)], progress=False
        )
