"""Recurrent layers, embeddings and the language model."""

import copy
import itertools

import numpy as np
import pytest

import dd2424fast as dd

CELLS = ["RNN", "LSTM", "GRU"]
LENGTHS = np.array([3, 6, 1, 4])


def pair(state):
    return state if isinstance(state, tuple) else (state,)


def single(states):
    return states if len(states) > 1 else states[0]


@pytest.mark.parametrize(
    ("layers", "bidirectional", "ragged", "given"), list(itertools.product((1, 2), *[(False, True)] * 3))
)
@pytest.mark.parametrize("cell", CELLS)
def test_layer_equals_pytorch(cell, layers, bidirectional, ragged, given):
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(1)
    ours = getattr(dd.nn, cell)(5, 9, num_layers=layers, bidirectional=bidirectional, dtype="float64", seed=1)
    theirs = getattr(torch.nn, cell)(5, 9, layers, batch_first=True, bidirectional=bidirectional).double()
    theirs.load_state_dict({name: torch.tensor(a) for name, a in ours.state_dict().items()})
    x = rng.standard_normal((4, 6, 5))
    shape = (layers * (1 + bidirectional), 4, 9)
    states = [rng.standard_normal(shape) for _ in range(1 + (cell == "LSTM"))] if given else None
    lengths = LENGTHS if ragged else None

    y, last = ours.forward(x, single(tuple(states)) if given else None, lengths)
    tx = torch.tensor(x, requires_grad=True)
    begin = [torch.tensor(a, requires_grad=True) for a in states] if given else None
    packed = tx
    if ragged:
        packed = torch.nn.utils.rnn.pack_padded_sequence(tx, torch.tensor(LENGTHS), True, enforce_sorted=False)
    ty, tlast = theirs(packed, single(tuple(begin)) if given else None)
    if ragged:
        ty, _ = torch.nn.utils.rnn.pad_packed_sequence(ty, batch_first=True)
    np.testing.assert_allclose(y, ty.detach(), rtol=1e-11, atol=1e-12)
    for a, b in zip(pair(last), pair(tlast), strict=True):
        np.testing.assert_allclose(a, b.detach(), rtol=1e-11, atol=1e-12)

    dy, dlast = rng.standard_normal(y.shape), [rng.standard_normal(a.shape) for a in pair(last)]
    total = (ty * torch.tensor(dy)).sum()
    for a, b in zip(pair(tlast), dlast, strict=True):
        total = total + (a * torch.tensor(b)).sum()
    total.backward()
    dx, dfirst = ours.backward(dy, single(tuple(dlast)), return_dstate=True)
    np.testing.assert_allclose(dx, tx.grad, rtol=1e-10, atol=1e-11)
    for a, b in zip(pair(dfirst), begin or (), strict=False):
        np.testing.assert_allclose(a, b.grad, rtol=1e-10, atol=1e-11)
    gradients = ours.gradient_dict()
    for name, parameter in theirs.named_parameters():
        np.testing.assert_allclose(gradients[name], parameter.grad, rtol=1e-10, atol=1e-11, err_msg=name)


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("cell", CELLS)
def test_backends_agree_on_dropout(cell, bidirectional):
    """All else that they must agree on is in test_recurrent_matrix.py."""
    layer = getattr(dd.nn, cell)(5, 13, 2, dropout=0.3, bidirectional=bidirectional, dtype="float64", seed=2)
    x = np.random.default_rng(0).standard_normal((4, 6, 5))
    results = []
    for backend in ("numpy", "fast"):
        with dd.backend(backend):
            y, last = layer.forward(x, lengths=LENGTHS)
            dx = layer.backward(np.cos(y))
            results.append([y, *pair(last), dx, layer.gradients.copy()])
    for a, b in zip(*results, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-12)


def test_dropout_between_layers():
    """What the second layer reads, through weights that make it next to linear: h / (1 - p), or nothing."""
    below, both = dd.nn.RNN(5, 13, dtype="float64", seed=2), dd.nn.RNN(5, 13, 2, dropout=0.3, dtype="float64", seed=2)
    scale, weights = 1e-4, both.state_dict()
    for name in ("weight_hh_l1", "bias_ih_l1", "bias_hh_l1"):
        weights[name] = np.zeros_like(weights[name])
    both.load_state_dict({**weights, **below.state_dict(), "weight_ih_l1": scale * np.eye(13)})
    x = np.random.default_rng(0).standard_normal((4, 6, 5))
    h, y = below.forward(x)[0], both.forward(x)[0] / scale
    kept = y != 0
    assert 0.6 < kept.mean() < 0.8
    np.testing.assert_allclose(y[kept], h[kept] / 0.7, rtol=1e-6)
    both.eval()
    np.testing.assert_allclose(both.forward(x)[0] / scale, h, rtol=1e-6)


@pytest.mark.parametrize("cell", CELLS)
def test_output_behind_the_end_is_zero_and_costs_no_gradient(cell):
    layer = getattr(dd.nn, cell)(3, 4, dtype="float64", seed=0)
    x = np.random.default_rng(0).standard_normal((4, 6, 3))
    y, last = layer.forward(x, lengths=LENGTHS)
    behind = np.arange(6) >= LENGTHS[:, None]
    assert not y[behind].any()
    assert y[~behind].all()
    np.testing.assert_array_equal(pair(last)[0][0], y[np.arange(4), LENGTHS - 1])
    dx = layer.backward(np.ones_like(y))
    assert not dx[behind].any()


def test_state_goes_in_and_out():
    """Two halves, the state handed over, equal the whole."""
    layer = dd.nn.LSTM(3, 4, 2, dtype="float64", seed=0)
    x = np.random.default_rng(0).standard_normal((2, 6, 3))
    whole, last = layer.forward(x)
    first, state = layer.forward(x[:, :2])
    second, end = layer.forward(x[:, 2:], state)
    np.testing.assert_allclose(np.concatenate([first, second], axis=1), whole, rtol=1e-12)
    for a, b in zip(end, last, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-12)


def test_backward_twice_is_an_error():
    layer = dd.nn.GRU(3, 4, seed=0)
    y, _ = layer.forward(np.ones((2, 3, 3)))
    layer.backward(y)
    with pytest.raises(RuntimeError, match="call forward again"):
        layer.backward(y)


def test_backward_accumulates():
    layer = dd.nn.RNN(3, 4, dtype="float64", seed=0)
    x = np.random.default_rng(0).standard_normal((2, 3, 3))
    y, _ = layer.forward(x)
    layer.backward(np.ones_like(y))
    once = layer.gradients.copy()
    layer.forward(x)
    layer.backward(np.ones_like(y), accumulate=True)
    np.testing.assert_allclose(layer.gradients, 2 * once, rtol=1e-12)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"x": np.zeros((2, 3))}, r"x: expected shape \(batch, time, 5\), got \(2, 3\)"),
        ({"x": np.zeros((2, 3, 4))}, r"x: expected shape \(batch, time, 5\)"),
        ({"x": np.zeros((2, 0, 5))}, r"x: expected at least one sequence of at least one step"),
        ({"x": np.zeros((0, 3, 5))}, r"x: expected at least one sequence"),
        ({"lengths": [1]}, r"lengths: expected shape \(2,\)"),
        ({"lengths": [0, 3]}, r"lengths: expected numbers from 1 to 3.*got 0"),
        ({"lengths": [2, 4]}, r"lengths: expected numbers from 1 to 3.*got 4"),
        ({"state": (np.zeros((1, 2, 9)), np.zeros((1, 3, 9)))}, r"state \(c\): expected shape \(1, 2, 9\)"),
    ],
)
def test_bad_values(arguments, message):
    layer = dd.nn.LSTM(5, 9, seed=0)
    with pytest.raises(ValueError, match=message):
        layer.forward(**{"x": np.zeros((2, 3, 5)), **arguments})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"state": np.zeros((1, 2, 9))}, r"state: expected a pair \(h, c\)"),
        ({"lengths": [1.5, 2.0]}, r"lengths: expected integers"),
        ({"x": np.full((2, 3, 5), "a")}, r"x: expected numbers"),
    ],
)
def test_bad_types(arguments, message):
    layer = dd.nn.LSTM(5, 9, seed=0)
    with pytest.raises(TypeError, match=message):
        layer.forward(**{"x": np.zeros((2, 3, 5)), **arguments})


def test_embedding():
    layer = dd.nn.Embedding(7, 3, dtype="float64", seed=0)
    ids = np.array([[1, 6, 1], [0, 2, 1]])
    np.testing.assert_array_equal(layer.forward(ids), layer.weight[ids])
    dy = np.random.default_rng(0).standard_normal((2, 3, 3))
    assert layer.backward(dy) is None
    expected = np.zeros((7, 3))
    np.add.at(expected, ids, dy)
    np.testing.assert_allclose(layer.dweight, expected, rtol=1e-12)
    with pytest.raises(ValueError, match="expected numbers from 0 to 6, got 7"):
        layer.forward(np.array([7]))
    with pytest.raises(TypeError, match="x: expected token ids"):
        layer.forward(np.array([0.5]))


def test_in_a_sequential():
    """A text classifier's front: embedding, two recurrent layers; checked by differences."""
    model = dd.nn.Sequential(
        dd.nn.Embedding(6, 3), dd.nn.GRU(3, 4, bidirectional=True), dd.nn.LSTM(8, 5), dtype="float64", seed=1
    )
    ids = np.random.default_rng(0).integers(0, 6, (2, 4))
    report = dd.gradcheck(model, ids, np.ones((2, 4, 5)), loss=_SquaredError())
    assert report, report
    twin = copy.deepcopy(model)
    np.testing.assert_array_equal(twin.predict(ids), model.predict(ids))


class _SquaredError(dd.losses.Loss):
    def run(self, outputs, targets, sample_weight, gradient):
        np.subtract(outputs, targets, out=gradient)
        return float((gradient**2).sum() / 2), gradient


# ---- the language model ----------------------------------------------------------------------------------------------


def windows(rng, V, batch, time, n):
    for _ in range(n):
        ids = rng.integers(0, V, (batch, time + 1))
        yield ids[:, :-1].copy(), ids[:, 1:].copy()


@pytest.mark.parametrize("dropout", [0.0, 0.4])
@pytest.mark.parametrize(("embedding", "batch"), [(None, 2), (4, 2), (4, 1)])
@pytest.mark.parametrize("cell", ["rnn", "lstm", "gru"])
def test_language_model_gradients(cell, embedding, batch, dropout):
    """One-hot input; an embedding folded into the input weights (8 tokens), and one that is not (fewer than words)."""
    model = dd.models.LanguageModel(7, cell, 5, embedding, layers=2, dropout=dropout, dtype="float64", seed=3)
    x, y = next(windows(np.random.default_rng(0), 7, batch, 4, 1))
    report = dd.gradcheck(model, x, y)
    assert report, report


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(("embedding", "batch", "layers"), [(None, 1, 1), (6, 1, 2), (6, 3, 2)])
@pytest.mark.parametrize("cell", ["rnn", "lstm", "gru"])
def test_ten_updates_equal_pytorch(cell, embedding, batch, layers, dtype):
    """The state carried from window to window, gradients by name, and the loss trace under Adam."""
    torch = pytest.importorskip("torch")
    nn, V = torch.nn, 11

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            if embedding:
                self.embedding = nn.Embedding(V, embedding)
            self.rnn = getattr(nn, cell.upper())(embedding or V, 9, layers, batch_first=True)
            self.output = nn.Linear(9, V)

        def forward(self, x, state):
            x = self.embedding(x) if embedding else nn.functional.one_hot(x, V).to(self.output.weight.dtype)
            y, state = self.rnn(x, state)
            return self.output(y), state

    ours = dd.models.LanguageModel(V, cell, 9, embedding, layers, dtype=dtype, seed=3)
    theirs = Model().to(getattr(torch, dtype))
    theirs.load_state_dict({name: torch.tensor(a) for name, a in ours.state_dict().items()})
    trainer, optimizer, state = dd.Trainer(ours, dd.optim.Adam(0.01)), torch.optim.Adam(theirs.parameters(), 0.01), None
    for i, (x, y) in enumerate(windows(np.random.default_rng(0), V, batch, 5, 10)):
        loss = trainer.step(x, y)
        logits, state = theirs(torch.tensor(x), state)
        state = tuple(s.detach() for s in state) if cell == "lstm" else state.detach()
        expected = nn.functional.cross_entropy(logits.flatten(0, 1), torch.tensor(y).flatten())
        optimizer.zero_grad()
        expected.backward()
        if i == 0:
            gradients = ours.gradient_dict()
            for name, parameter in theirs.named_parameters():
                limit = 1e-6 if dtype == "float32" else 1e-13
                np.testing.assert_allclose(gradients[name], parameter.grad, rtol=0, atol=limit, err_msg=name)
        optimizer.step()
        assert loss == pytest.approx(expected.item(), abs=1e-5 if dtype == "float32" else 1e-11)


@pytest.mark.parametrize("cell", ["rnn", "lstm", "gru"])
def test_lengths_equal_each_sequence_alone(cell):
    """The mean over all tokens of a ragged batch; what stands behind a sequence's end may be anything."""
    model = dd.models.LanguageModel(7, cell, 5, 4, dtype="float64", seed=3)
    x, y = next(windows(np.random.default_rng(0), 7, 4, 6, 1))
    x[np.arange(6) >= LENGTHS[:, None]] = 99
    logits = model.forward(x, LENGTHS)
    for j, n in enumerate(LENGTHS):
        np.testing.assert_allclose(logits[j, :n], model.forward(x[j : j + 1, :n])[0], rtol=1e-10)
        assert not logits[j, n:].any()
    loss = dd.Trainer(model, dd.optim.SGD(0.1)).step(x, y, lengths=LENGTHS)
    shifted = logits - np.log(np.exp(logits).sum(axis=2, keepdims=True))
    picked = np.concatenate([shifted[j, np.arange(n), y[j, :n]] for j, n in enumerate(LENGTHS)])
    assert loss == pytest.approx(-picked.mean(), rel=1e-10)


def test_state_carries_and_resets():
    def losses(reset):
        model = dd.models.LanguageModel(7, "gru", 5, seed=3)
        trainer, taken = dd.Trainer(model, dd.optim.SGD(1e-9)), []
        x, y = next(windows(np.random.default_rng(0), 7, 2, 4, 1))
        for _ in range(3):
            if reset:
                model.reset_state()
            taken.append(trainer.step(x, y))
            trainer.evaluate([(x, y)])  # leaves the state alone
            model.predict(x)
        return taken

    assert losses(True)[0] == losses(False)[0]
    assert abs(losses(True)[1] - losses(True)[0]) < 1e-6
    carried = losses(False)
    assert abs(carried[1] - carried[0]) > 1e-4
    model = dd.models.LanguageModel(7, "lstm", 5, seed=3)
    trainer = dd.Trainer(model, dd.optim.SGD(0.1))
    rng = np.random.default_rng(0)
    for batch in (2, 2, 3, 3, 1):  # another size begins at zero
        trainer.step(*next(windows(rng, 7, batch, 4, 1)))


def test_other_passes_leave_the_carried_state_alone():
    """A forward pass in training mode, a gradient check, and an evaluation that fails."""
    rng = np.random.default_rng(0)
    batches = list(windows(rng, 7, 2, 4, 5))
    x, y = batches[0]

    def trainer():
        return dd.Trainer(dd.models.LanguageModel(7, "lstm", 5, dtype="float64", seed=3), dd.optim.SGD(0.1))

    undisturbed, disturbed = trainer(), trainer()
    for batch in batches:
        disturbed.model.forward(x)
        dd.gradcheck(disturbed.model, x, y, entries=2)
        with pytest.raises(ValueError, match="token ids"):
            disturbed.evaluate([(x, y), (x + 99, y)])
        assert disturbed.step(*batch) == undisturbed.step(*batch)
    first, second = disturbed.model.predict(x), disturbed.model.predict(x)
    np.testing.assert_array_equal(first, second)


def test_an_epoch_begins_at_zero_though_its_first_batch_is_ignored():
    x, y = next(windows(np.random.default_rng(0), 7, 2, 4, 1))
    losses = []
    for batches in ([(x, np.full_like(y, -100)), (x, y)], [(x, y)]):
        trainer = dd.Trainer(dd.models.LanguageModel(7, "gru", 5, seed=3), dd.optim.SGD(0.1))
        trainer.step(x, y)
        losses.append(trainer.fit(batches, epochs=1, progress=False)["loss"])
    assert losses[0] == losses[1]


def test_a_language_model_is_no_layer():
    with pytest.raises(TypeError, match=r"layers\[0\]: a LanguageModel is a whole model"):
        dd.nn.Sequential(dd.models.LanguageModel(7), dd.nn.ReLU())


def test_masked_ids_are_refused():
    x = np.ma.array([[1, 2]], mask=[[True, False]])
    with pytest.raises(TypeError, match="without masked entries"):
        dd.models.LanguageModel(7).predict(x)


def test_evaluation_reads_windows_as_one_text():
    model = dd.models.LanguageModel(7, "lstm", 5, dtype="float64", seed=3)
    ids = np.random.default_rng(0).integers(0, 7, (2, 13))
    x, y = ids[:, :-1], ids[:, 1:]
    trainer = dd.Trainer(model, dd.optim.SGD(0.1))
    parts = [(x[:, i : i + 4], y[:, i : i + 4]) for i in range(0, 12, 4)]
    whole = trainer.evaluate([(x, y)])
    assert trainer.evaluate(parts)["loss"] == pytest.approx(whole["loss"], rel=1e-12)
    assert trainer.evaluate(parts)["accuracy"] == whole["accuracy"]


@pytest.mark.parametrize("cell", ["rnn", "lstm"])
def test_checkpoint_continues_bit_for_bit(cell, tmp_path):
    def trainer():
        return dd.Trainer(
            dd.models.LanguageModel(7, cell, 5, 4, dropout=0.2, seed=3), dd.optim.Adam(0.01), clip_norm=1.0
        )

    batches = list(windows(np.random.default_rng(0), 7, 2, 4, 7))
    whole = trainer()
    expected = [whole.step(x, y) for x, y in batches]
    first = trainer()
    for x, y in batches[:3]:
        first.step(x, y)
    first.save_checkpoint(tmp_path / "c.safetensors")
    second = trainer()
    second.load_checkpoint(tmp_path / "c.safetensors")
    assert [second.step(x, y) for x, y in batches[3:]] == expected[3:]
    np.testing.assert_array_equal(second.model.parameters, whole.model.parameters)


def test_a_refused_update_changes_nothing():
    model = dd.models.LanguageModel(7, "gru", 5, seed=3)
    trainer = dd.Trainer(model, dd.optim.SGD(0.1))
    batches = list(windows(np.random.default_rng(0), 7, 2, 4, 4))
    twin = copy.deepcopy(trainer)
    expected = [twin.step(x, y) for x, y in batches]
    got = []
    for x, y in batches:
        with pytest.raises(ValueError, match=r"x: expected token ids from 0 to 6, got 7 at \(1, 2\)"):
            trainer.step(np.where(np.arange(8).reshape(2, 4) == 6, 7, x), y)
        with pytest.raises(ValueError, match=r"y: expected shape \(2, 4\), like x, got \(4,\)"):
            trainer.step(x, y.ravel()[:4])
        with pytest.raises(ValueError, match=r"labels|targets|y"):
            trainer.step(x, y + 7)
        got.append(trainer.step(x, y))
    assert got == expected


def test_save_and_load(tmp_path):
    model = dd.models.LanguageModel(7, "lstm", 5, 4, layers=2, seed=3)
    x = np.random.default_rng(0).integers(0, 7, (2, 4))
    model.save(tmp_path / "m.safetensors")
    again = dd.models.LanguageModel.load(tmp_path / "m.safetensors")
    np.testing.assert_array_equal(again.predict(x), model.predict(x))
    np.testing.assert_array_equal(copy.deepcopy(model).predict(x), model.predict(x))


def test_one_seed_one_model_in_both_dtypes():
    a, b = (dd.models.LanguageModel(7, "lstm", 5, 4, dtype=dtype, seed=3) for dtype in ("float32", "float64"))
    np.testing.assert_array_equal(a.parameters, b.parameters.astype("float32"))


def test_an_update_allocates_next_to_nothing():
    import tracemalloc

    model = dd.models.LanguageModel(30, "lstm", 40, 16, seed=3)
    trainer = dd.Trainer(model, dd.optim.Adam(0.01))
    batches = list(windows(np.random.default_rng(0), 30, 4, 20, 3))
    for x, y in batches * 2:
        trainer.step(x, y)
    tracemalloc.start()
    for x, y in batches:
        tracemalloc.reset_peak()
        before = tracemalloc.get_traced_memory()[0]
        trainer.step(x, y)
        assert tracemalloc.get_traced_memory()[1] - before < 16_000  # ids and labels, time first, are 640 bytes each
    tracemalloc.stop()


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"cell": "elman"}, ValueError, "cell: expected one of rnn, lstm, gru, got 'elman'"),
        ({"vocab_size": 0}, ValueError, "vocab_size"),
        ({"hidden": 0}, ValueError, "^hidden:"),
        ({"layers": 1.5}, TypeError, "^layers"),
        ({"embedding": 2.5}, TypeError, "^embedding"),
        ({"dropout": 1.0}, ValueError, "dropout"),
        ({"embeding": 3}, TypeError, "did you mean 'embedding'"),
    ],
)
def test_bad_models(arguments, error, message):
    with pytest.raises(error, match=message):
        dd.models.LanguageModel(**{"vocab_size": 7, **arguments})
