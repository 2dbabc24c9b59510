"""Whatever comes: a right answer, or an error that names the argument and has changed nothing."""

import copy
import dataclasses
import inspect
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import (
    BAD_BATCHES,
    CONSTRUCTORS,
    KERNELS,
    LAYOUTS,
    NOT_NUMBERS,
    RAGGED,
    X,
    Y,
    calls,
    laid_out,
    never_valid,
    profile,
    schedules,
    sometimes_valid,
)

import dd2424fast as dd
from dd2424fast.bench import cases

quick = settings(profile, max_examples=40)
BAD = (TypeError, ValueError)

RESULTS = set(
    "out dx dW db dlogits dpredictions dgamma dbeta parameters velocity first_moment second_moment mu_product "
    "square_average square_sum delta_average average".split()
)


def results_of(name):
    """The arguments that a kernel writes; every other array must stay as it is."""
    statistics = {"batch_norm_forward": {"running_mean", "running_var", "mean", "rstd"}}
    return RESULTS | {
        **statistics,
        "layer_norm_forward": {"mean", "rstd"},
        "max_pool2d_forward": {"place"},
        "clip_by_norm": {"gradients"},
        "clip_by_value": {"gradients"},
        "rnn_forward": {"h", "previous", "h_last"},
        "lstm_forward": {"h", "previous", "gates", "c", "h_last", "c_last"},
        "gru_forward": {"h", "previous", "gates", "candidate", "h_last"},
        "rnn_backward": {"da", "dh0"},
        "lstm_backward": {"da", "dh0", "dc0"},
        "lstm_norm_forward": {"h", "previous", "gates", "c", "sums", "statistics", "h_last", "c_last"},
        "lstm_norm_backward": {"da", "du", "dgain", "dgain_c", "dshift_c", "dh0", "dc0"},
        "gru_backward": {"da", "du", "dh0"},
        "scatter_rows": {"dtable"},
        "generate_tokens": {"states", "seen"},
        "mlp_gradient": {"buffers", "gradients"},
        "mlp_updates": {"buffers", "solver"},
    }.get(name, set())


def copied(call, name):
    """The call with results of its own: inputs keep their layout."""
    return {key: copy.deepcopy(value) if key in results_of(name) else value for key, value in call.items()}


def widened(value):
    """In float64, what is in float32."""
    if isinstance(value, dd.kernels.PackedMatrix):
        return dd.kernels.pack(value.unpack().astype("float64"))
    if isinstance(value, tuple | list):
        return type(value)(widened(part) for part in value)
    if isinstance(value, np.ndarray) and value.dtype == "float32":
        return value.astype("float64")
    if dataclasses.is_dataclass(value):
        return dataclasses.replace(value, **{name: widened(part) for name, part in vars(value).items()})
    return np.dtype("float64") if isinstance(value, np.dtype) else copy.deepcopy(value)


def numbers(value):
    if dataclasses.is_dataclass(value):  # a solver with its state
        return np.concatenate([np.ravel(part) for part in vars(value).values()])
    return value.unpack() if isinstance(value, dd.kernels.PackedMatrix) else np.asarray(0 if value is None else value)


def arrays(call):
    return {key: numbers(value).copy() for key, value in call.items() if hasattr(value, "dtype")}


def assert_same(before, call, but=()):
    for key, value in before.items():
        if key not in but:
            np.testing.assert_array_equal(numbers(call[key]), value, err_msg=key)


def names(error, *words):
    """Whether the message names one of the arguments."""
    return re.search(rf"\b({'|'.join(words)})\b", str(error)) is not None


# ---- kernels ---------------------------------------------------------------------------------------------------------


def registered():
    return {name: value for name, value in vars(dd.kernels).items() if isinstance(value, dd.kernels.Kernel)}


def test_every_kernel_is_whole():
    root = Path(__file__).parent.parent
    pages = "".join(path.read_text() for path in (root / "docs" / "kernels").glob("*.md"))
    tests = "".join(path.read_text() for path in (root / "tests" / "kernels").glob("test_*.py"))
    timed = {case.kernel for case in cases.cases().values()}
    lacks = {}
    for name, kernel in registered().items():
        has = {
            "twin and fast implementation": callable(kernel.numpy) and callable(kernel.fast),
            "Parameters": "\n    Parameters\n    ------" in kernel.__doc__,
            "Returns": "\n    Returns\n    ------" in kernel.__doc__ or "in place" in kernel.__doc__,
            "benchmark case": name in timed,
            "page": re.search(rf"\b{name}\b", pages),
            "test": re.search(rf"\b{name}\b", tests),
            "property": name in KERNELS,
        }
        lacks[name] = [what for what, there in has.items() if not there]
    assert {name: what for name, what in lacks.items() if what} == {}


def outcome(run, call, name):
    """All that a call gives: what it returns, then what it has written."""
    got = run(**call)
    got = list(got) if isinstance(got, tuple) else [got]
    return got + [call[key] for key in sorted(results_of(name) & call.keys())]


@pytest.mark.parametrize("name", KERNELS)
@quick
@given(data=st.data())
def test_a_kernel_equals_its_twin(name, data):
    call = data.draw(calls(name))
    kernel, before, fast = getattr(dd.kernels, name), arrays(call), copied(call, name)
    got = outcome(kernel, fast, name)
    assert_same(before, fast, but=results_of(name))
    if fast.get("out") is not None:
        assert any(a is fast["out"] for a in got[:1])
    alike = outcome(kernel.numpy, copied(call, name), name)
    assert [getattr(a, "dtype", type(a)) for a in got] == [getattr(a, "dtype", type(a)) for a in alike]
    assert [np.shape(numbers(a)) for a in got] == [np.shape(numbers(a)) for a in alike]
    # In float64 the twin is the better judge; of images it would draw other noise.
    wide = {key: value if name == "augment_images" else widened(value) for key, value in call.items()}
    exact = outcome(kernel.numpy, copied(wide, name), name)
    single = any("float32" in (str(getattr(a, "dtype", a)),) for a in call.values())
    for a, b in zip(got, exact, strict=True):
        if b is not None:
            limit = (1e-4 if single else 1e-9) * max(1, np.max(np.abs(numbers(b)), initial=0))
            np.testing.assert_allclose(numbers(a), numbers(b), rtol=0, atol=limit)


@pytest.mark.parametrize("name", KERNELS)
@quick
@given(data=st.data())
def test_a_kernel_names_what_is_wrong(name, data):
    call = data.draw(calls(name))
    kernel = getattr(dd.kernels, name)
    spoilt = data.draw(st.sampled_from([key for key, value in call.items() if never_valid(value)]))
    bad, certain = call[spoilt], data.draw(st.booleans())
    bad = data.draw(st.sampled_from(never_valid(bad) if certain else sometimes_valid(bad)), label=spoilt)
    call[spoilt] = bad
    before = arrays(call)
    try:
        kernel(**call)
    except BAD as error:
        assert names(error, *([spoilt] if certain else inspect.signature(kernel).parameters)), repr(error)
        assert_same(before, call)
    else:
        assert not certain, f"{spoilt}={bad!r} was accepted"
        assert_same(before, call, but=results_of(name))


@pytest.mark.parametrize("name", KERNELS)
@settings(profile, max_examples=1)
@given(data=st.data())
def test_a_kernel_refuses_unknown_keywords_and_missing_arguments(name, data):
    call = data.draw(calls(name))
    with pytest.raises(TypeError, match="bogus"):
        getattr(dd.kernels, name)(**call, bogus=1)
    with pytest.raises(TypeError):
        getattr(dd.kernels, name)()


# ---- constructors, schedules -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "arguments"), [pytest.param(*pair, id=pair[0].__name__) for pair in CONSTRUCTORS])
def test_a_constructor_names_what_is_wrong(kind, arguments):
    kind(**arguments)
    for name, value in arguments.items():
        for bad in NOT_NUMBERS:
            try:
                kind(**{**arguments, name: bad})
            except BAD as error:
                assert names(error, name) or callable(bad), f"{name}={bad!r}: {error!r}"
            else:
                assert bad is None or not isinstance(value, int | float) or name in ("after", "seed"), f"{name}={bad!r}"
    with pytest.raises(TypeError, match="bogus"):
        kind(**arguments, bogus=1)


@quick
@given(schedule=schedules(), update=st.integers(0, 200) | st.sampled_from([10**4, 10**6, 10**9]))
def test_a_schedule_stays_finite_and_not_negative(schedule, update):
    rate = schedule(update)
    assert np.isfinite(rate)
    assert rate >= 0


# ---- training --------------------------------------------------------------------------------------------------------


@pytest.fixture
def trainer_on_six_rows(make_trainer):
    """A trainer that has made one update, and a copy of it."""
    pair = make_trainer(clip_norm=1.0), make_trainer(clip_norm=1.0)
    for trainer in pair:
        trainer.step(X, Y)
    return pair


def state(trainer):
    return np.concatenate([trainer.model.parameters, trainer.model.buffers, *trainer.optimizer.state.values()])


@pytest.mark.parametrize("blamed", BAD_BATCHES)
def test_a_step_refused_leaves_no_trace(trainer_on_six_rows, blamed):
    trainer, untouched = trainer_on_six_rows
    for bad in BAD_BATCHES[blamed]:
        with pytest.raises((*BAD, dd.TrainingDiverged)) as caught:
            trainer.step(**{"x": X, "y": Y, blamed: bad})
        assert names(caught.value, blamed, "labels"), (bad, caught.value)
        np.testing.assert_array_equal(state(trainer), state(untouched), err_msg=f"{bad!r}")
        assert (trainer.update, trainer.optimizer.updates) == (1, 1)
    assert trainer.step(X, Y) == untouched.step(X, Y)
    np.testing.assert_array_equal(state(trainer), state(untouched))


def test_a_target_that_is_no_number_is_blamed():
    trainer = dd.Trainer(dd.nn.Linear(7, 2), dd.optim.SGD(0.1), dd.losses.MeanSquaredError())
    with pytest.raises(dd.TrainingDiverged, match=r"y holds nan at \(3, 1\)"):
        trainer.step(X, np.where(np.arange(12).reshape(6, 2) == 7, np.nan, 1.0))


@pytest.mark.parametrize("blamed", ["x", "y"])
def test_fit_and_evaluate_name_what_is_wrong(trainer_on_six_rows, blamed):
    trainer, untouched = trainer_on_six_rows
    for bad in BAD_BATCHES[blamed]:
        data = (bad, Y) if blamed == "x" else (X, bad)
        for run in (trainer.evaluate, lambda data: trainer.fit(data, progress=False)):
            try:
                run(data)
            except (*BAD, dd.TrainingDiverged) as error:
                assert names(error, "x", "y", "labels"), (bad, error)
            else:
                assert run == trainer.evaluate, bad
        np.testing.assert_array_equal(state(trainer), state(untouched), err_msg=f"{bad!r}")
    trainer.fit((X, Y), progress=False)  # a refused fit leaves nothing to go on with
    assert (trainer.epoch, trainer.update) == (1, 2)


@pytest.mark.parametrize("data", [None, 3, "text", object(), (X,), [3], ["text"], [(X, Y, Y)], {}, [], iter([(X, Y)])])
def test_what_is_no_data_is_refused(trainer_on_six_rows, data):
    trainer, untouched = trainer_on_six_rows
    with pytest.raises(BAD, match=r"data|x:|y:"):
        trainer.evaluate(data)
    with pytest.raises(BAD, match=r"train|data|x:|y:"):
        trainer.fit(data, progress=False)
    np.testing.assert_array_equal(state(trainer), state(untouched))


@pytest.mark.parametrize("name", ["epochs", "batch_size", "callbacks", "augment", "validation"])
def test_fit_names_its_wrong_argument(trainer_on_six_rows, name):
    trainer, untouched = trainer_on_six_rows
    for bad in ("text", 3.5, -1, object()):
        with pytest.raises(BAD) as caught:
            trainer.fit((X, Y), progress=False, **{name: bad})
        assert names(caught.value, name, rf"{name}\[0\]", "data"), (bad, caught.value)
        np.testing.assert_array_equal(state(trainer), state(untouched))


@pytest.mark.parametrize("rate", [np.nan, np.inf, -1.0, "text", None, 1j])
def test_a_schedule_that_gives_no_rate(make_trainer, rate):
    trainer = make_trainer(schedule=lambda update: rate)
    before = state(trainer)
    with pytest.raises(BAD, match="schedule"):
        trainer.step(X, Y)
    np.testing.assert_array_equal(state(trainer), before)
    assert (trainer.update, trainer.optimizer.updates) == (0, 0)


# ---- layers ----------------------------------------------------------------------------------------------------------

LAYERS = {
    "Linear": lambda: dd.nn.Linear(7, 5, seed=0),
    "BatchNorm": lambda: dd.nn.BatchNorm(7),
    "LayerNorm": lambda: dd.nn.LayerNorm(7),
    "Dropout": lambda: dd.nn.Dropout(0.5),
    "no Dropout": lambda: dd.nn.Dropout(0.0),
    "Flatten": dd.nn.Flatten,
    "GELU": dd.nn.GELU,
    "Activation": lambda: dd.nn.Activation(lambda z: z * z, lambda z: 2 * z),
    "MLP": lambda: dd.models.MLP(7, (6, 5), 4, batch_norm=True, dropout=0.3, seed=0),
    "nothing": dd.nn.Sequential,
}


@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_takes_every_layout_and_names_what_is_wrong(name):
    layer, plain = LAYERS[name](), X.copy()
    y = layer.forward(X)
    dy = np.linspace(-1, 1, y.size, dtype="float32").reshape(y.shape)
    dx, gradients = layer.backward(dy), layer.gradients.copy()
    for layout in LAYOUTS:
        x, seed = laid_out(X, layout), laid_out(dy, layout)
        np.testing.assert_array_equal(layer.forward(x), y)
        np.testing.assert_array_equal(layer.backward(seed), dx)
        np.testing.assert_array_equal(layer.gradients, gradients)
        np.testing.assert_array_equal(x, plain)
        np.testing.assert_array_equal(seed, dy)
    for bad in ("text", None, 1.5, RAGGED, X + 1j, object(), {}):
        for run in (layer.forward, layer.predict):
            with pytest.raises(BAD, match=r"\bx\b"):
                run(bad)
    for bad in ("text", None, 1.5, RAGGED, dy[:-1], dy[None], dy.reshape(-1), dy.T, dy + 1j, object()):
        with pytest.raises(BAD, match=r"\bdy\b"):
            layer.backward(bad)
    for bad in (0, -1, "text", 1.5, None):
        with pytest.raises(BAD, match="batch_size"):
            layer.predict(X, batch_size=bad)
    assert layer.eval().predict(X[:0]).shape == (0, *y.shape[1:])
    with pytest.raises(RuntimeError, match="call forward in training mode first"):
        LAYERS[name]().backward(dy)


# ---- invariants ------------------------------------------------------------------------------------------------------


@quick
@given(seed=st.integers(0, 10**6), rows=st.integers(1, 40), shift=st.floats(-1e4, 1e4), layout=st.sampled_from(LAYOUTS))
def test_softmax_knows_no_shift(seed, rows, shift, layout):
    z = np.random.default_rng(seed).standard_normal((rows, 1 + seed % 20)) * 5
    p = dd.kernels.softmax(laid_out(z, layout))
    np.testing.assert_allclose(dd.kernels.softmax(z + shift), p, rtol=1e-9)
    np.testing.assert_allclose(p.sum(axis=1), 1, rtol=1e-12)


@pytest.mark.parametrize("kernel", ["softmax_cross_entropy", "binary_cross_entropy", "mean_squared_error"])
@quick
@given(seed=st.integers(0, 10**6), rows=st.integers(1, 30), smooth=st.sampled_from([0.0, 0.2]))
def test_a_weight_repeats_its_row(kernel, seed, rows, smooth):
    rng = np.random.default_rng(seed)
    K = 2 + seed % 9
    z, labels, weight = rng.standard_normal((rows, K)), rng.integers(0, K, rows), rng.integers(0, 4, rows)
    weight[seed % rows] = 2
    y = rng.standard_normal(z.shape) if kernel == "mean_squared_error" else labels
    extra = {"label_smoothing": smooth} if kernel == "softmax_cross_entropy" else {}
    run, of = getattr(dd.kernels, kernel), np.repeat(np.arange(rows), weight)
    loss, gradient = run(z, y, sample_weight=weight.astype("float64"), **extra)
    repeated, gradients = run(z[of], y[of], **extra)
    assert loss == pytest.approx(repeated, rel=1e-12)
    summed = np.zeros_like(gradient)
    np.add.at(summed, of, gradients)
    np.testing.assert_allclose(gradient, summed, rtol=1e-9, atol=1e-15)


@quick
@given(seed=st.integers(0, 10**6), rows=st.integers(1, 70), batch_size=st.integers(1, 80), wide=st.integers(1, 40))
def test_a_prediction_does_not_depend_on_its_batch(seed, rows, batch_size, wide):
    rng = np.random.default_rng(seed)
    model = dd.models.MLP(wide, (wide, 9), 4, batch_norm=True, dropout=0.5, dtype="float64", seed=seed)
    x = rng.standard_normal((rows, wide))
    whole, order = model.predict(x), rng.permutation(rows)
    np.testing.assert_allclose(model.predict(x, batch_size), whole, rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(model.predict(x[order])[np.argsort(order)], whole, rtol=1e-12, atol=1e-14)


def test_accuracy_leaves_out_what_the_loss_does(trainer_on_six_rows):
    trainer, _ = trainer_on_six_rows
    hidden = np.where(np.arange(6) < 3, -100, Y)
    assert trainer.evaluate((X, hidden)) == pytest.approx(trainer.evaluate((X[3:], Y[3:])), rel=1e-6)


# ---- state and files -------------------------------------------------------------------------------------------------


@quick
@given(seed=st.integers(0, 99), hidden=st.lists(st.integers(1, 9), max_size=3), norm=st.booleans())
def test_a_state_comes_back(tmp_path, seed, hidden, norm):
    one, other = (dd.models.MLP(7, hidden, 4, batch_norm=norm, seed=s) for s in (seed, seed + 1))
    one.forward(X)
    other.load_state_dict(one.state_dict())
    one.save(tmp_path / "model")
    for copied in (other, dd.models.MLP.load(tmp_path / "model")):
        assert list(copied.state_dict()) == list(one.state_dict())
        np.testing.assert_array_equal(copied.parameters, one.parameters)
        np.testing.assert_array_equal(copied.predict(X), one.predict(X))


def test_a_state_that_does_not_fit_changes_nothing(trainer_on_six_rows):
    trainer, untouched = trainer_on_six_rows
    good = trainer.model.state_dict()
    last = list(good)[-1]
    states = [{last: bad} for bad in (np.zeros(9), np.full(good[last].shape, "a"), RAGGED, None, good[last] * 1j)]
    for bad in [*({**good, **change} for change in states), None, 3, "text", [], {}, {3: X}, {**good, "more": X}]:
        with pytest.raises(BAD, match="state"):
            trainer.model.load_state_dict(
                {k: np.asarray(v) + 1 if k != last else v for k, v in bad.items()}
                if isinstance(bad, dict) and last in bad
                else bad
            )
        np.testing.assert_array_equal(state(trainer), state(untouched))


def test_a_checkpoint_of_another_optimizer_changes_nothing(make_trainer, tmp_path):
    one, other = (make_trainer(dd.optim.SGD(0.1, momentum)) for momentum in (0.9, 0.0))
    for trainer in (one, other):
        trainer.step(X, Y)
    one.step(X, Y)
    one.save_checkpoint(tmp_path / "c")
    before = state(other)
    with pytest.raises(ValueError, match="state: expected"):
        other.load_checkpoint(tmp_path / "c")
    np.testing.assert_array_equal(state(other), before)
    assert (other.update, other.optimizer.updates) == (1, 1)


def test_a_seed_of_numpys_can_be_saved(make_trainer, tmp_path):
    trainer = dd.Trainer(
        dd.nn.Linear(7, 4), dd.optim.SGD(0.1), schedule=lambda update: np.float32(0.1), seed=np.int64(3)
    )
    trainer.fit((X, Y), progress=False)
    trainer.save_checkpoint(tmp_path / "c")
    trainer.load_checkpoint(tmp_path / "c")
    with pytest.raises(TypeError, match="path"):
        trainer.save_checkpoint(3)
    with pytest.raises(TypeError, match="path"):
        trainer.load_checkpoint(None)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A checkpoint and a model as bytes, and where to put their damaged copies."""
    folder = tmp_path_factory.mktemp("damaged")
    trainer = dd.Trainer(dd.models.MLP(7, (3,), 4, batch_norm=True, seed=0), dd.optim.Adam(), seed=1)
    trainer.fit((X, Y), epochs=2, progress=False)
    trainer.save_checkpoint(folder / "checkpoint")
    trainer.model.save(folder / "model")
    return {kind: (folder / kind).read_bytes() for kind in ("checkpoint", "model")}, folder / "file", trainer


@settings(profile, max_examples=300)
@given(data=st.data())
def test_a_damaged_file_is_refused_or_loads_the_same(files, data):
    contents, path, saved = files
    kind = data.draw(st.sampled_from(sorted(contents)))
    content = bytearray(contents[kind])
    if data.draw(st.booleans()):
        del content[data.draw(st.integers(0, len(content) - 1)) :]
    # The description is the most delicate part; it stands in front.
    for place in data.draw(st.lists(st.integers(0, 1500) | st.integers(0, 10**5), max_size=3)):
        if content:
            content[place % len(content)] ^= 1 << data.draw(st.integers(0, 7))
    path.write_bytes(content)
    trainer = dd.Trainer(dd.models.MLP(7, (3,), 4, batch_norm=True, seed=5), dd.optim.Adam(), seed=1)
    before = state(trainer)
    try:
        if kind == "checkpoint":
            trainer.load_checkpoint(path)
        else:
            trainer.model.load_state_dict(dd.models.MLP.load(path).state_dict())
    except ValueError:
        np.testing.assert_array_equal(state(trainer), before)
        assert trainer.update == 0
    else:
        np.testing.assert_array_equal(trainer.model.parameters, saved.model.parameters)
        assert kind == "model" or trainer.history.columns == saved.history.columns


# ---- data ------------------------------------------------------------------------------------------------------------


@quick
@given(
    seed=st.integers(0, 10**6), rows=st.integers(4, 60), layout=st.sampled_from(LAYOUTS), fraction=st.floats(0.1, 0.9)
)
def test_data_is_parted_and_standardized(seed, rows, layout, fraction):
    x = laid_out(np.random.default_rng(seed).standard_normal((rows, 3)) * 50 + seed % 7, layout)
    kept, scale = x.copy(), dd.data.Standardizer(dtype="float64")
    z = scale.fit_transform(x)
    np.testing.assert_allclose(z.mean(axis=0), 0, atol=1e-12)
    np.testing.assert_allclose(scale.inverse_transform(z), x, rtol=1e-10, atol=1e-10)
    (a, i), (b, j) = dd.data.train_validation_split(x, np.arange(rows), validation=fraction, seed=seed, stratify=False)
    assert sorted([*i, *j]) == list(range(rows))
    np.testing.assert_array_equal(np.concatenate([a, b]), x[np.concatenate([i, j])])
    np.testing.assert_array_equal(x, kept)
