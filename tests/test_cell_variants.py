"""Layers and language models with zoneout, recurrent dropout, layer normalisation and tied embeddings."""

import copy
import itertools
import pickle

import numpy as np
import pytest

import dd2424fast as dd

LENGTHS = np.array([3, 6, 1, 4])
ZONEOUT = {"zoneout": 0.3}
NOISE = {"zoneout": 0.3, "recurrent_dropout": 0.25}
CELL_NOISE = {**NOISE, "zoneout_cell": 0.2}
VARIANTS = {
    "rnn": ("RNN", ZONEOUT),
    "gru": ("GRU", NOISE),
    "lstm": ("LSTM", CELL_NOISE),
    "norm": ("LSTM", {"layer_norm": True}),
    "norm and noise": ("LSTM", {"layer_norm": True, **CELL_NOISE}),
}


def layer_of(variant, *arguments, **keywords):
    kind, own = VARIANTS[variant]
    return getattr(dd.nn, kind)(*arguments, **own, **keywords)


def model_of(variant, *arguments, spread=0.3, **keywords):
    """A language model whose gains and shifts are not those that it begins with."""
    kind, own = VARIANTS[variant]
    model = dd.models.LanguageModel(arguments[0], kind.lower(), *arguments[1:], **own, **keywords)
    model.parameters[...] += np.random.default_rng(4).uniform(-spread, spread, model.parameters.size)
    return model


def states_of(last):
    return last if isinstance(last, tuple) else (last,)


def window(V, batch, time, seed=0):
    ids = np.random.default_rng(seed).integers(0, V, (batch, time + 1))
    return ids[:, :-1].copy(), ids[:, 1:].copy()


# ---- layers ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(("layers", "bidirectional"), [(1, False), (2, True)])
def test_normalised_lstm_equals_pytorch(layers, bidirectional, bias):
    """The paper's equations in PyTorch's operations, and every gradient by name."""
    torch = pytest.importorskip("torch")
    H, norm = 7, torch.nn.functional.layer_norm
    ours = dd.nn.LSTM(5, H, layers, bidirectional=bidirectional, bias=bias, layer_norm=True, dtype="float64", seed=1)
    rng = np.random.default_rng(0)
    ours.parameters[...] += rng.uniform(-0.5, 0.5, ours.parameters.size)
    p = {name: torch.tensor(a, requires_grad=True) for name, a in ours.state_dict().items()}
    x, lengths = rng.standard_normal((4, 6, 5)), LENGTHS
    first = [rng.standard_normal((layers * (1 + bidirectional), 4, H)) for _ in range(2)]
    tx, tfirst = torch.tensor(x, requires_grad=True), [torch.tensor(a, requires_grad=True) for a in first]

    def strand(x, suffix, h, c):
        get = lambda name: p.get(f"{name}_{suffix}")  # noqa: E731
        outputs = []
        for t in range(len(x)):
            z = norm(x[t] @ get("weight_ih").T, (4 * H,), get("gain_ih"), get("bias_ih"))
            z = z + norm(get("weight_hh") @ h, (4 * H,), get("gain_hh"), get("bias_hh"))
            i, f, g, o = z.split(H)
            c = f.sigmoid() * c + i.sigmoid() * g.tanh()
            h = o.sigmoid() * norm(c, (H,), get("gain_c"), get("bias_c")).tanh()
            outputs.append(h)
        return torch.stack(outputs), h, c

    ends, outputs = {}, []
    for j, n in enumerate(lengths):
        y = tx[j, :n]
        for layer in range(layers):
            parts = []
            for d in range(1 + bidirectional):
                place = layer * (1 + bidirectional) + d
                begin = [a[place, j] for a in tfirst]
                part, *end = strand(y.flip(0) if d else y, f"l{layer}{'_reverse' * d}", *begin)
                ends[place, j] = end
                parts.append(part.flip(0) if d else part)
            y = torch.cat(parts, dim=1)
        outputs.append(y)

    y, last = ours.forward(x, tuple(first), lengths)
    dy, dlast = rng.standard_normal(y.shape), [rng.standard_normal(a.shape) for a in last]
    total = 0
    for j, n in enumerate(lengths):
        np.testing.assert_allclose(y[j, :n], outputs[j].detach(), rtol=1e-10, atol=1e-12)
        total = total + (outputs[j] * torch.tensor(dy[j, :n])).sum()
    for (place, j), end in ends.items():
        for a, b, d in zip(last, end, dlast, strict=True):
            np.testing.assert_allclose(a[place, j], b.detach(), rtol=1e-10, atol=1e-12)
            total = total + (b * torch.tensor(d[place, j])).sum()
    total.backward()
    dx, dfirst = ours.backward(dy, tuple(dlast), return_dstate=True)
    np.testing.assert_allclose(dx, tx.grad, rtol=1e-9, atol=1e-10)
    for a, b in zip(dfirst, tfirst, strict=True):
        np.testing.assert_allclose(a, b.grad, rtol=1e-9, atol=1e-10)
    gradients = ours.gradient_dict()
    assert gradients.keys() == p.keys()
    for name, a in gradients.items():
        np.testing.assert_allclose(a, p[name].grad, rtol=1e-9, atol=1e-10, err_msg=name)


@pytest.mark.parametrize("lengths", [None, LENGTHS], ids=["full", "ragged"])
@pytest.mark.parametrize(("layers", "bidirectional"), [(1, False), (2, False), (2, True)])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_backends_agree(variant, dtype, layers, bidirectional, lengths):
    layer = layer_of(variant, 5, 13, layers, dropout=0.3, bidirectional=bidirectional, dtype=dtype, seed=2)
    rng = np.random.default_rng(0)
    x = rng.standard_normal((4, 6, 5)).astype(dtype)
    state = [rng.standard_normal((layers * (1 + bidirectional), 4, 13)).astype(dtype) for _ in layer.states]
    results = []
    for backend in ("numpy", "fast"):
        with dd.backend(backend):
            y, last = layer.forward(x, tuple(state) if len(state) > 1 else state[0], lengths)
            dx, dfirst = layer.backward(np.cos(y), return_dstate=True)
            results.append([y, *states_of(last), dx, *states_of(dfirst), layer.gradients.copy(), layer.predict(x)])
    for a, b in zip(*results, strict=True):
        assert a.dtype == dtype
        limit = 1e-12 if dtype == "float64" else 3e-5
        np.testing.assert_allclose(a, b, rtol=0, atol=limit * max(1, np.abs(b).max()))


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("variant", VARIANTS)
def test_gradients_of_a_layer(variant, batch):
    """Through two layers and both directions, by differences; that of x too."""
    rng = np.random.default_rng(1)
    model = dd.nn.Sequential(layer_of(variant, 3, 4, 2, bidirectional=True), dtype="float64", seed=1)
    model.parameters[...] += rng.uniform(-0.3, 0.3, model.parameters.size)
    x, y = rng.standard_normal((batch, 5, 3)), rng.standard_normal((batch, 5, 8))
    report = dd.gradcheck(model, x, y, loss=_SquaredError(), check_input=True)
    assert report, report


class _SquaredError(dd.losses.Loss):
    def run(self, outputs, targets, sample_weight, gradient):
        np.subtract(outputs, targets, out=gradient)
        return float((gradient**2).sum() / 2), gradient


@pytest.mark.parametrize("variant", ["rnn", "gru", "lstm", "norm and noise"])
def test_noise_is_for_training_alone(variant):
    layer = layer_of(variant, 3, 8, 2, seed=0)
    x = np.random.default_rng(0).standard_normal((2, 6, 3)).astype("float32")
    trained, used = layer.forward(x)[0], layer.eval().forward(x)[0]
    np.testing.assert_array_equal(used, layer.predict(x))
    assert np.abs(trained - used).max() > 0.01
    np.testing.assert_array_equal(layer.train().forward(x)[0], trained)  # the same update, the same flags


def test_what_is_kept_is_drawn_anew_for_every_update_strand_and_step():
    """Flags read off the states: where h stays what it was."""
    model = dd.models.LanguageModel(9, "rnn", 40, layers=2, zoneout=0.4, seed=0)
    trainer, x_y = dd.Trainer(model, dd.optim.SGD(1e-6), seed=5), window(9, 3, 6)
    seen = []
    for _ in range(2):
        trainer.step(*x_y)
        for layer in range(2):
            flags = model._work._views[model.rnn, ("flags", layer)]
            assert abs(flags.mean() - 0.4) < 0.1
            seen += [row.tobytes() for row in flags]
    assert len(set(seen)) == 2 * 2 * 18
    again = dd.Trainer(dd.models.LanguageModel(9, "rnn", 40, layers=2, zoneout=0.4, seed=0), dd.optim.SGD(1e-6), seed=5)
    again.step(*x_y)
    assert again.model._work._views[again.model.rnn, ("flags", 1)][0].tobytes() == seen[18]


@pytest.mark.parametrize(
    ("kind", "arguments", "error", "message"),
    [
        ("RNN", {"recurrent_dropout": 0.1}, ValueError, "recurrent_dropout: expected 0 .*use zoneout.*got 0.1"),
        ("RNN", {"zoneout_cell": 0.1}, ValueError, "zoneout_cell: expected 0 .*RNN"),
        ("GRU", {"zoneout_cell": 0.1}, ValueError, "zoneout_cell: expected 0 .*GRU"),
        ("GRU", {"layer_norm": True}, ValueError, "layer_norm: expected False .*GRU"),
        ("LSTM", {"zoneout": 1.0}, ValueError, r"zoneout: expected a number in \[0, 1\), got 1.0"),
        ("LSTM", {"zoneout_cell": -0.1}, ValueError, "zoneout_cell: expected a number"),
        ("LSTM", {"recurrent_dropout": "half"}, TypeError, "recurrent_dropout: expected a number"),
    ],
)
def test_bad_layers(kind, arguments, error, message):
    with pytest.raises(error, match=message):
        getattr(dd.nn, kind)(3, 4, **arguments)
    with pytest.raises(error, match=message):
        dd.models.LanguageModel(7, kind.lower(), **arguments)


def test_names_of_the_parameters():
    """Those of a plain layer are PyTorch's; a norm's stand behind them."""
    plain = ["weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0"]
    assert list(dd.nn.LSTM(3, 4, zoneout=0.1, recurrent_dropout=0.1).state_dict()) == plain
    state = dd.nn.LSTM(3, 4, layer_norm=True).state_dict()
    assert list(state) == [*plain, "gain_ih_l0", "gain_hh_l0", "gain_c_l0", "bias_c_l0"]
    assert [len(state[name]) for name in list(state)[4:]] == [16, 16, 4, 4]
    assert not any(name.startswith("bias") for name in dd.nn.LSTM(3, 4, layer_norm=True, bias=False).state_dict())


# ---- language models -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("embedding", "batch"), [(None, 2), (4, 2), (4, 1)])
@pytest.mark.parametrize("variant", VARIANTS)
def test_language_model_gradients(variant, embedding, batch):
    """One-hot input; an embedding folded into the input weights (8 tokens), and one that is not (fewer than words)."""
    model = model_of(variant, 7, 5, embedding, layers=2, dropout=0.2, dtype="float64", seed=3)
    report = dd.gradcheck(model, *window(7, batch, 4))
    assert report, report


@pytest.mark.parametrize("variant", VARIANTS)
def test_lengths_equal_each_sequence_alone(variant):
    model = model_of(variant, 7, 5, 4, dtype="float64", seed=3).eval()
    x, _ = window(7, 4, 6)
    logits = model.forward(x, LENGTHS)
    for j, n in enumerate(LENGTHS):
        np.testing.assert_allclose(logits[j, :n], model.forward(x[j : j + 1, :n])[0], rtol=1e-10)
        assert not logits[j, n:].any()


TIED = {"tied": ("LSTM", {"tied": True})}


@pytest.mark.parametrize("backend", ["numpy", "fast"])
@pytest.mark.parametrize(("variant", "embedding"), [*itertools.product(VARIANTS, (None, 9)), ("tied", 9)])
def test_generation_follows_the_predictions(variant, embedding, backend):
    """Greedily chosen tokens are the most probable ones of `predict` on all that stands before them."""
    if variant == "tied":
        model = dd.models.LanguageModel(11, "lstm", 9, 9, layers=2, tied=True, dtype="float64", seed=1)
        model.parameters[...] *= 3
    else:
        model = model_of(variant, 11, 9, embedding, layers=2, spread=2, dtype="float64", seed=1)
    with dd.backend(backend):
        text = [3, 1, 4]
        for token in model.generate_ids([text], 40, temperature=0)[0]:
            assert token == model.predict(np.array([text]))[0, -1].argmax()
            text.append(int(token))
    assert len(set(text)) > 2


@pytest.mark.parametrize("variant", ["gru", "norm and noise", "tied"])
def test_checkpoint_continues_bit_for_bit(variant, tmp_path):
    def trainer():
        kind, own = {**VARIANTS, **TIED}[variant]
        model = dd.models.LanguageModel(7, kind.lower(), 5, 5, dropout=0.2, seed=3, **own)
        return dd.Trainer(model, dd.optim.Adam(0.01), clip_norm=1.0)

    batches = [window(7, 2, 4, seed) for seed in range(6)]
    whole, first, second = trainer(), trainer(), trainer()
    expected = [whole.step(x, y) for x, y in batches]
    for x, y in batches[:3]:
        first.step(x, y)
    first.save_checkpoint(tmp_path / "c.safetensors")
    second.load_checkpoint(tmp_path / "c.safetensors")
    assert [second.step(x, y) for x, y in batches[3:]] == expected[3:]
    np.testing.assert_array_equal(second.model.parameters, whole.model.parameters)


@pytest.mark.parametrize("variant", [*VARIANTS, "tied"])
def test_saved_pickled_and_copied(variant, tmp_path):
    kind, own = {**VARIANTS, **TIED}[variant]
    model = dd.models.LanguageModel(7, kind.lower(), 5, 5, layers=2, seed=3, **own)
    x, y = window(7, 2, 4)
    model.save(tmp_path / "m.safetensors")
    twins = dd.models.LanguageModel.load(tmp_path / "m.safetensors").train(), copy.deepcopy(model)
    twins += (pickle.loads(pickle.dumps(model)),)
    loss = [dd.Trainer(model, dd.optim.SGD(0.1)).step(x, y) for _ in range(2)]
    for twin in twins:
        assert twin.config == model.config
        assert [dd.Trainer(twin, dd.optim.SGD(0.1)).step(x, y) for _ in range(2)] == loss
        np.testing.assert_array_equal(twin.parameters, model.parameters)
        np.testing.assert_array_equal(twin.predict(x), model.predict(x))


@pytest.mark.parametrize("variant", [*VARIANTS, "tied"])
def test_an_update_allocates_next_to_nothing(variant):
    import tracemalloc

    kind, own = {**VARIANTS, **TIED}[variant]
    model = dd.models.LanguageModel(30, kind.lower(), 40, 40, seed=3, **own)
    trainer, (x, y) = dd.Trainer(model, dd.optim.Adam(0.01)), window(30, 4, 20)
    for _ in range(4):
        trainer.step(x, y)
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    trainer.step(x, y)
    peak = tracemalloc.get_traced_memory()[1] - before
    tracemalloc.stop()
    assert peak < 16_000  # ids and labels, time first, are 640 bytes each


# ---- tied embeddings -------------------------------------------------------------------------------------------------


def tied(V=11, cell="lstm", hidden=6, **keywords):
    return dd.models.LanguageModel(V, cell, hidden, hidden, tied=True, **keywords)


@pytest.mark.parametrize(("batch", "dropout"), [(1, 0.0), (2, 0.3)])
@pytest.mark.parametrize("cell", ["rnn", "lstm", "gru"])
def test_tied_gradients(cell, batch, dropout):
    """Folded (8 words of 7 tokens) and not (4 words)."""
    model = tied(7, cell, 5, layers=2, dropout=dropout, dtype="float64", seed=3)
    report = dd.gradcheck(model, *window(7, batch, 4))
    assert report, report
    assert next(iter(report.errors)) == "embedding.weight"


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_ten_tied_updates_equal_pytorch(dtype, batch):
    torch = pytest.importorskip("torch")
    nn, V, H = torch.nn, 11, 6

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding = nn.Embedding(V, H)
            self.rnn = nn.LSTM(H, H, batch_first=True)
            self.output = nn.Linear(H, V)
            self.output.weight = self.embedding.weight

        def forward(self, x, state):
            y, state = self.rnn(self.embedding(x), state)
            return self.output(y), state

    ours, theirs, state = tied(V, dtype=dtype, seed=3), Model().to(getattr(torch, dtype)), None
    assert list(ours.state_dict()) == list(theirs.state_dict())
    theirs.load_state_dict({name: torch.tensor(a) for name, a in ours.state_dict().items()})
    assert ours.parameters.size == sum(p.numel() for p in theirs.parameters())
    trainer, optimizer = dd.Trainer(ours, dd.optim.Adam(0.01)), torch.optim.Adam(theirs.parameters(), 0.01)
    for i in range(10):
        x, y = window(V, batch, 5, i)
        loss = trainer.step(x, y)
        logits, state = theirs(torch.tensor(x), state)
        state = tuple(s.detach() for s in state)
        expected = nn.functional.cross_entropy(logits.flatten(0, 1), torch.tensor(y).flatten())
        optimizer.zero_grad()
        expected.backward()
        if i == 0:
            gradients, limit = ours.gradient_dict(), 1e-6 if dtype == "float32" else 1e-13
            for name, parameter in theirs.named_parameters():
                np.testing.assert_allclose(gradients[name], parameter.grad, rtol=0, atol=limit, err_msg=name)
        optimizer.step()
        assert loss == pytest.approx(expected.item(), abs=1e-5 if dtype == "float32" else 1e-11)
    ours.load_state_dict(theirs.state_dict())


def test_a_tied_weight_is_one_parameter_under_two_names():
    model, plain = tied(seed=0), dd.models.LanguageModel(11, "lstm", 6, 6, seed=0)
    assert model.parameters.size == plain.parameters.size - 11 * 6
    state = model.state_dict()
    assert state.keys() == plain.state_dict().keys()
    np.testing.assert_array_equal(state["embedding.weight"], state["output.weight"])
    assert [name for name, _ in model.named_parameters()].count("embedding.weight") == 1
    assert "output.weight" not in dict(model.named_parameters())
    model.output.weight = np.arange(66.0).reshape(6, 11)
    np.testing.assert_array_equal(model.embedding.weight, np.arange(66).reshape(6, 11).T)
    model.join()
    model.parameters[0] = 7
    assert model.output.weight[0, 0] == 7
    assert np.abs(tied(seed=0).parameters).max() <= 6**-0.5  # the vectors too


def test_loading_into_a_tied_model():
    model, source = tied(seed=0), tied(seed=1)
    state = source.state_dict()
    for left_out in ((), ("output.weight",), ("embedding.weight",)):
        model.parameters[...] = 0
        model.load_state_dict({name: a for name, a in state.items() if name not in left_out})
        np.testing.assert_array_equal(model.parameters, source.parameters)
    with pytest.raises(ValueError, match=r"missing embedding\.weight"):
        model.load_state_dict(
            {name: a for name, a in state.items() if not name.endswith("g.weight") and "put.w" not in name}
        )
    with pytest.raises(ValueError, match=r"output\.weight is tied to embedding\.weight, but differs"):
        model.load_state_dict({**state, "output.weight": state["output.weight"] + 1})
    np.testing.assert_array_equal(model.parameters, source.parameters)


def test_a_tied_copy_trains_by_itself():
    model = tied(dtype="float64", seed=0)
    twin, before = copy.deepcopy(model), model.parameters.copy()
    dd.Trainer(twin, dd.optim.SGD(0.5)).step(*window(11, 2, 8))
    np.testing.assert_array_equal(model.parameters, before)
    assert twin.output._tied["weight"] is twin.embedding._own["weight"]
    assert (twin.embedding.weight != model.embedding.weight).all()


@pytest.mark.parametrize("embedding", [None, 5])
def test_a_tied_model_needs_an_embedding_as_long_as_its_state(embedding):
    with pytest.raises(ValueError, match=rf"tied: expected an embedding of length 6, .*got {embedding}"):
        dd.models.LanguageModel(11, "lstm", 6, embedding, tied=True)


@pytest.mark.parametrize(("tied", "layer_norm"), list(itertools.product((False, True), repeat=2)))
def test_one_seed_one_model_in_both_dtypes(tied, layer_norm):
    a, b = (
        dd.models.LanguageModel(7, "lstm", 5, 5, tied=tied, layer_norm=layer_norm, dtype=dtype, seed=3)
        for dtype in ("float32", "float64")
    )
    np.testing.assert_array_equal(a.parameters, b.parameters.astype("float32"))
