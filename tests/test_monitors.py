"""What watches a training: samples, the loss curve, the flow of gradients; and the pictures."""

import copy
import io
import math

import numpy as np
import pytest

import dd2424fast as dd
from dd2424fast.callbacks import Callback, Checkpoint, GradientFlow, LossCurve, SampleText
from dd2424fast.data import TextCorpus
from dd2424fast.nn.module import Workspace
from dd2424fast.nn.recurrent import full_rows

TEXT = "First came one word, then another word; first and last: the word.\n" * 30


def trainer_of(corpus, cell="lstm", **arguments):
    model = dd.models.LanguageModel(corpus.vocab_size, cell, 12, seed=1, **arguments)
    return dd.Trainer(model, dd.optim.Adam(0.01), clip_value=5.0, seed=2)


class StopAt(Callback):
    def __init__(self, update):
        self.update = update

    def update_ends(self, trainer, loss):
        if trainer.update == self.update:
            trainer.stop_reason = "interrupted"


# ---- samples ---------------------------------------------------------------------------------------------------------


def test_samples_do_not_disturb_training():
    """Bit for bit the parameters, the losses and the carried state, with dropout and in the middle of an epoch."""
    corpus = TextCorpus(TEXT, time=10)
    curves, ends = [], []
    for callbacks in ([], [SampleText(corpus.tokenizer, "First ", 30, every=7, epochs=1, file=lambda *_: None)]):
        trainer, losses = trainer_of(corpus, dropout=0.3), LossCurve()
        trainer.fit(corpus, epochs=2, batch_size=3, progress=False, callbacks=[*callbacks, losses])
        curves.append(losses.losses)
        ends.append([trainer.model.parameters, *trainer.model._training_work().carried])
    np.testing.assert_array_equal(*curves)
    for a, b in zip(*ends, strict=True):
        np.testing.assert_array_equal(a, b)
    batches = 2 * corpus.count("train", 3)
    updates = [update for update, _ in callbacks[0].samples]
    assert updates == sorted({*range(7, batches + 1, 7), batches // 2, batches})
    assert {len(text) for _, text in callbacks[0].samples} == {30}


def test_samples_are_a_function_of_seed_and_update():
    corpus = TextCorpus(TEXT, time=10)

    def samples(seed=2, **arguments):
        trainer = trainer_of(corpus)
        trainer.seed = seed
        told = []
        sampler = SampleText(corpus.tokenizer, "First ", 20, every=9, file=lambda *a: told.append(a), **arguments)
        trainer.fit(corpus, epochs=1, batch_size=4, shuffle=False, progress=False, callbacks=[sampler])
        assert told == sampler.samples
        return sampler.samples

    first = samples()
    assert first == samples()
    assert len({text for _, text in first}) == len(first)
    assert first != samples(seed=3)
    assert samples(temperature=0) == samples(seed=3, temperature=0)
    assert all("w" not in text for _, text in samples(banned=["w"]))
    stopped = [text for _, text in samples(stop=" ")]
    assert not any(" " in text for text in stopped)
    assert any(text for text in stopped)


def test_samples_are_printed(capsys):
    corpus = TextCorpus(TEXT, time=10)
    file = io.StringIO()
    samplers = [SampleText(corpus.tokenizer, "Fir", 5), SampleText(corpus.tokenizer, "Fir", 5, file=file)]
    trainer_of(corpus).fit(corpus, epochs=2, batch_size=4, progress=False, callbacks=samplers)
    expected = "".join(f"update {update}: Fir{text}\n" for update, text in samplers[0].samples)
    assert len(samplers[0].samples) == 2
    assert capsys.readouterr() == ("", expected)
    assert file.getvalue() == expected


def test_callbacks_go_on_after_an_interruption(tmp_path):
    corpus = TextCorpus(TEXT, time=10)
    x, y, _ = next(corpus.batches("train", 2))

    def run(stop=None, load=None):
        watching = [
            SampleText(corpus.tokenizer, "First ", 10, every=5, file=lambda *_: None),
            LossCurve(0.9, points=16),
            GradientFlow(x, y, every=8),
        ]
        trainer = trainer_of(corpus)
        if load:
            trainer.load_checkpoint(load)
        callbacks = [*watching, *([StopAt(stop), Checkpoint(tmp_path / "c")] if stop else [])]
        trainer.fit(corpus, epochs=1, batch_size=2, progress=False, callbacks=callbacks)
        return watching

    whole = run()
    run(stop=43)
    resumed = run(load=tmp_path / "c")
    assert resumed[0].samples == whole[0].samples
    for name in ("updates", "losses", "smoothed"):
        np.testing.assert_array_equal(getattr(resumed[1], name), getattr(whole[1], name))
    assert resumed[2].updates == whole[2].updates
    np.testing.assert_array_equal(resumed[2].norms["rnn.l0"], whole[2].norms["rnn.l0"])


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"tokenizer": "char"}, TypeError, "tokenizer: expected a data.Tokenizer, got str"),
        ({"prompt": 3}, TypeError, "prompt: expected a str, got int"),
        ({"prompt": ""}, ValueError, "prompt: expected at least one token, got none"),
        ({"prompt": "#"}, ValueError, "prompt: character '#' at position 0"),
        ({"every": 0}, ValueError, "every"),
        ({"epochs": 0}, ValueError, "epochs"),
        ({"length": 0}, ValueError, "length"),
        ({"temperature": -1.0}, ValueError, r"temperature: expected a number in \[0, inf\), got -1.0"),
        ({"top_p": 0.0}, ValueError, "top_p"),
        ({"banned": ["##"]}, ValueError, "banned: '##' is not in the vocabulary"),
        ({"file": 3}, TypeError, "file: expected a text stream or a function"),
        ({"temprature": 3}, TypeError, "did you mean 'temperature'"),
    ],
)
def test_bad_samplers(arguments, error, message):
    tokenizer = dd.data.Char(TEXT)
    with pytest.raises(error, match=message):
        SampleText(**{"tokenizer": tokenizer, "prompt": "First", **arguments})


def test_a_tokenizer_of_another_model_is_refused_before_training():
    corpus = TextCorpus(TEXT, time=10)
    trainer = trainer_of(corpus)
    with pytest.raises(ValueError, match="tokenizer: expected the"):
        trainer.fit(corpus, progress=False, callbacks=[SampleText(dd.data.Char("abc"), "a")])
    assert trainer.update == 0


# ---- the loss curve --------------------------------------------------------------------------------------------------


class Updates:
    """A trainer as far as LossCurve looks at it."""

    update = 0


def test_loss_curve_in_bounded_memory():
    losses = np.random.default_rng(0).standard_normal(1000) + 4
    smoothed, expected = dd.metrics.SmoothedLoss(0.9), []
    trainer, curve = Updates(), LossCurve(0.9, points=30)
    for loss in losses:
        trainer.update += 1
        curve.update_ends(trainer, loss)
        expected.append(smoothed.update(loss))
        assert len(curve.updates) <= 30
    assert len(curve.updates) > 14
    np.testing.assert_array_equal(np.diff(curve.updates), 64)  # 1000 / 64 are 16 points
    np.testing.assert_array_equal(curve.losses, losses[curve.updates - 1])
    np.testing.assert_array_equal(curve.smoothed, np.array(expected)[curve.updates - 1])
    assert curve.smoothed[0] == losses[0]


def test_bad_curves():
    with pytest.raises(ValueError, match="points: expected an integer of at least 2, got 1"):
        LossCurve(points=1)
    with pytest.raises(ValueError, match="decay"):
        LossCurve(decay=1.0)
    full = LossCurve(points=8)
    for _ in range(8):
        full.update_ends(Updates(), 1.0)
    with pytest.raises(ValueError, match="points: the checkpoint's curve has 8, got 4"):
        LossCurve(points=4).load_state(full.state())
    with pytest.raises(TypeError, match=r"curves\['loss'\]: expected a callbacks.LossCurve, got list"):
        dd.plots.loss_curve([1.0, 2.0])


# ---- gradient flow ---------------------------------------------------------------------------------------------------

LENGTHS = np.array([4, 6, 1, 5])


def cell_step(torch, theirs, cell, x, state, layer, suffix):
    """One step of a cell in PyTorch, from the weights of its sequence layer: so that every h_t is a tensor."""
    W, U, b, bU = (
        getattr(theirs, f"{name}_l{layer}{suffix}") for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
    )
    kind = {"RNN": torch.nn.RNNCell, "LSTM": torch.nn.LSTMCell, "GRU": torch.nn.GRUCell}[cell]
    module = kind(x.shape[1], U.shape[1]).double()
    weights = dict(zip(("weight_ih", "weight_hh", "bias_ih", "bias_hh"), (W, U, b, bU), strict=True))
    return torch.func.functional_call(module, weights, (x, state))


def torch_norms(torch, theirs, cell, x, target, layers, suffixes, lengths):
    """Norms of dL/dh_t by unrolling: {name: (batch, time)}."""
    B, T, H = len(x), x.shape[1], theirs.hidden_size
    kept, outputs = {}, []
    for b in range(B):
        n = lengths[b]
        below = [torch.tensor(x[b, t : t + 1]) for t in range(n)]
        for layer in range(layers):
            sides = []
            for suffix in suffixes:
                zero = torch.zeros(1, H, dtype=torch.float64)
                state, states = (zero, zero) if cell == "LSTM" else zero, [None] * n
                for t in reversed(range(n)) if suffix else range(n):
                    state = cell_step(torch, theirs, cell, below[t], state, layer, suffix)
                    states[t] = state[0] if cell == "LSTM" else state
                    states[t].retain_grad()
                kept[b, f"l{layer}{suffix}"] = states
                sides.append(states)
            below = [torch.cat(parts, dim=1) for parts in zip(*sides, strict=True)]
        outputs.append(torch.cat(below))
    difference = torch.cat(outputs) - torch.cat([torch.tensor(target[b, : lengths[b]]) for b in range(B)])
    (difference**2).mean().backward()
    norms = {}
    for (b, name), states in kept.items():
        row = norms.setdefault(name, np.zeros((B, T)))[b]
        row[: lengths[b]] = [h.grad.norm().item() for h in states]
    return norms


@pytest.mark.parametrize("ragged", [False, True])
@pytest.mark.parametrize(("layers", "bidirectional"), [(1, False), (2, False), (2, True)])
@pytest.mark.parametrize("cell", ["RNN", "LSTM", "GRU"])
def test_gradient_flow_equals_unrolled_pytorch(cell, layers, bidirectional, ragged):
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(3)
    layer = getattr(dd.nn, cell)(3, 5, layers, bidirectional=bidirectional, dtype="float64", seed=1)
    theirs = getattr(torch.nn, cell)(3, 5, layers, batch_first=True, bidirectional=bidirectional).double()
    theirs.load_state_dict({name: torch.tensor(a) for name, a in layer.state_dict().items()})
    x, target = rng.standard_normal((4, 6, 3)), rng.standard_normal((4, 6, layer.output_size))
    lengths = LENGTHS if ragged else np.full(4, 6)
    report = dd.gradient_flow(layer, x, target, lengths=LENGTHS if ragged else None)
    suffixes = ("", "_reverse")[: 1 + bidirectional]
    expected = torch_norms(torch, theirs, cell, x, target, layers, suffixes, lengths)
    assert report.sequences.keys() == expected.keys()
    for name, norms in expected.items():
        np.testing.assert_allclose(report.sequences[name], norms, rtol=1e-9, atol=1e-15, err_msg=name)
        np.testing.assert_allclose(report.norms[name], np.linalg.norm(norms, axis=0), rtol=1e-9)


def test_gradient_flow_of_a_normalised_lstm():
    """dL/dh_t: from above, and the gradient of the initial state of all that follows."""
    rng = np.random.default_rng(3)
    layer = dd.nn.LSTM(3, 5, layer_norm=True, dtype="float64", seed=1)
    x, target = rng.standard_normal((2, 6, 3)), rng.standard_normal((2, 6, 5))
    norms = dd.gradient_flow(layer, x, target).sequences["l0"]
    dy = 2 * (layer.forward(x)[0] - target) / target.size
    for t in range(6):
        total = dy[:, t].copy()
        if t < 5:
            _, state = layer.forward(x[:, : t + 1])
            layer.forward(x[:, t + 1 :], state)
            total += layer.backward(dy[:, t + 1 :], return_dstate=True)[1][0][0]
        np.testing.assert_allclose(norms[:, t], np.linalg.norm(total, axis=1), rtol=1e-10)


@pytest.mark.parametrize("cell", ["RNN", "LSTM", "GRU"])
def test_gradient_flow_under_zoneout(cell):
    """The same, with the kernels and the flags of that update: half of the units keep their old value."""
    rng = np.random.default_rng(3)
    noise = {"zoneout": 0.5, **({} if cell == "RNN" else {"recurrent_dropout": 0.3})}
    layer = getattr(dd.nn, cell)(3, 5, dtype="float64", seed=1, **noise)
    x, target = rng.standard_normal((2, 6, 3)), rng.standard_normal((2, 6, 5))
    norms = dd.gradient_flow(layer, x, target, seed=7, update=4).sequences["l0"]

    work = Workspace(training=True)
    work.seed, work.update = 7, 4
    noise, counts = layer._noise(0, full_rows(2, 6), work), np.full(6, 2)
    assert 10 < (noise.flags & 1).sum() < 50
    W, U, b, bU = layer.weight_ih_l0, layer.weight_hh_l0, layer.bias_ih_l0, layer.bias_hh_l0
    a = np.ascontiguousarray(x.transpose(1, 0, 2)).reshape(12, 3) @ W
    forward = getattr(dd.kernels, f"{cell.lower()}_forward")
    h, previous, *kept = forward(a, b, U, bU, *(None,) * len(layer.states), counts, noise=noise)
    dh = 2 * (h - target.transpose(1, 0, 2).reshape(12, 5)) / target.size
    for t in range(6):
        rest = slice(2 * t + 2, None)
        total = dh[2 * t : 2 * t + 2].copy()
        if t < 5:
            tail = counts[t + 1 :], *(None,) * {"RNN": 3, "LSTM": 4, "GRU": 4}[cell]
            noise_there = noise._replace(flags=noise.flags[rest])
            if cell == "RNN":
                total += dd.kernels.rnn_backward(dh[rest].copy(), None, U, h[rest], *tail, noise_there)[1]
            elif cell == "LSTM":
                gates, c = kept[:2]
                first = c[2 * t : 2 * t + 2]
                total += dd.kernels.lstm_backward(
                    dh[rest].copy(), None, None, U, gates[rest], c[rest], first, *tail, noise_there
                )[1]
            else:
                gates, q = kept[:2]
                total += dd.kernels.gru_backward(
                    dh[rest].copy(), None, U, previous[rest], gates[rest], q[rest], *tail, noise_there
                )[2]
        np.testing.assert_allclose(norms[:, t], np.linalg.norm(total, axis=1), rtol=1e-10)


@pytest.mark.parametrize("cell", ["rnn", "lstm", "gru"])
def test_gradient_flow_equals_differences(cell):
    """dL/dh_t of a language model by moving h_t: the loss of all that follows, begun from a state that was moved."""
    model = dd.models.LanguageModel(7, cell, 5, 4, dtype="float64", seed=3)
    ids = np.random.default_rng(0).integers(0, 7, (1, 7))
    x, y = ids[:, :-1], ids[:, 1:]
    norms = dd.gradient_flow(model, x, y).norms["rnn.l0"]
    vectors, weights, bias = model.embedding.weight[x], model.output.weight, model.output.bias

    def loss_from(t, state):
        """Of step t on, where step t's state is given."""
        h = state[0] if cell == "lstm" else state
        states = [h[0]]
        if t < 5:
            states.append(model.rnn.forward(vectors[:, t + 1 :], state)[0][0])
        logits = np.concatenate(states) @ weights + bias
        picked = logits[np.arange(len(logits)), y[0, t:]]
        return (np.log(np.exp(logits).sum(axis=1)) - picked).sum() / 6

    model.eval()
    for t in range(6):
        _, state = model.rnn.forward(vectors[:, : t + 1])
        gradient = np.zeros(5)
        for i in range(5):
            moved = []
            for eps in (1e-6, -1e-6):
                other = copy.deepcopy(state)
                (other[0] if cell == "lstm" else other)[0, 0, i] += eps
                moved.append(loss_from(t, other))
            gradient[i] = (moved[0] - moved[1]) / 2e-6
        assert norms[t] == pytest.approx(np.linalg.norm(gradient), rel=1e-6)


def test_one_step_s_loss_vanishes_or_explodes():
    """A vanilla RNN with small or large recurrent weights; only the last step has a loss."""
    x = np.random.default_rng(0).integers(0, 7, (3, 12))
    y = np.full_like(x, -100)
    y[:, -1] = x[:, 0]
    for scale, compare in ((0.3, np.less), (3.0, np.greater)):
        model = dd.models.LanguageModel(7, "rnn", 6, dtype="float64", seed=0)
        model.rnn.weight_ih_l0 = model.rnn.weight_ih_l0 * 0.01
        model.rnn.weight_hh_l0 = scale * np.linalg.qr(model.rnn.weight_hh_l0)[0]
        model.rnn.bias_ih_l0 = model.rnn.bias_hh_l0 = np.zeros(6)
        report = dd.gradient_flow(model, x, y)
        norms = report.norms["rnn.l0"]
        assert compare(norms[-4], norms[-1])
        if scale < 1:
            np.testing.assert_allclose(norms[:-1] / norms[1:], scale, rtol=1e-2)
            assert report.table().splitlines()[1].split()[-1] == "0.300"


def test_gradient_flow_leaves_the_model_as_it_was():
    corpus = TextCorpus(TEXT, time=10)
    windows = [(x, y) for x, y, _ in corpus.batches("train", 2)][:6]
    plain, watched = trainer_of(corpus, dropout=0.3), trainer_of(corpus, dropout=0.3)
    for x, y in windows:
        expected = plain.step(x, y)
        assert watched.step(x, y) == expected
        gradients = watched.model.gradients.copy()
        report = dd.gradient_flow(watched.model, *windows[0], seed=2, update=4)
        np.testing.assert_array_equal(watched.model.gradients, gradients)
    np.testing.assert_array_equal(watched.model.parameters, plain.model.parameters)
    same = dd.gradient_flow(watched.model, *windows[0], seed=2, update=4)
    np.testing.assert_array_equal(same.norms["rnn.l0"], report.norms["rnn.l0"])
    other = dd.gradient_flow(watched.model, *windows[0], seed=2, update=5)
    assert (other.norms["rnn.l0"] != report.norms["rnn.l0"]).all()  # another dropout mask
    before = watched.model.gradients.copy()
    with pytest.raises(ValueError, match="x: expected token ids"):
        dd.gradient_flow(watched.model, windows[0][0] + 99, windows[0][1])
    np.testing.assert_array_equal(watched.model.gradients, before)
    assert watched.model._training_work().flow is None


class LastStep(dd.nn.Module):
    """A module of a user's own: classes from the last state."""

    def __init__(self, *, dtype="float64", seed=None):
        super().__init__(dtype=dtype, seed=seed)
        self.cell, self.output = dd.nn.GRU(3, 4, dtype=dtype), dd.nn.Linear(4, 2, dtype=dtype)
        self._initialise(seed)
        self.join()

    def forward(self, x):
        y, _ = self.cell.forward(x)
        self.shape = y.shape
        return self.output.forward(y[:, -1])

    def backward(self, dy):
        dh = np.zeros(self.shape)
        dh[:, -1] = self.output.backward(dy)
        return self.cell.backward(dh)


def test_gradient_flow_through_a_module_of_ones_own():
    model = LastStep(seed=0)
    x, y = np.random.default_rng(0).standard_normal((5, 6, 3)), np.array([0, 1, 1, 0, 1])
    norms = dd.gradient_flow(model, x, y).norms["cell.l0"]
    logits = model.predict(x)
    p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    last = ((p - np.eye(2)[y]) / 5) @ model.output.weight.T
    assert norms.shape == (6,)
    assert norms[-1] == pytest.approx(np.linalg.norm(last))
    assert norms[0] < norms[-1]


def test_gradient_flow_callback():
    corpus = TextCorpus(TEXT, time=10)
    x, y, _ = next(corpus.batches("train", 2))
    watch, ends = GradientFlow(x, y, every=20), []
    for callbacks in ([], [watch]):
        trainer = trainer_of(corpus)
        trainer.fit(corpus, batch_size=2, progress=False, callbacks=callbacks)
        ends.append(trainer.model.parameters)
    np.testing.assert_array_equal(*ends)
    assert watch.updates == list(range(20, trainer.update + 1, 20))
    assert [len(norms) for norms in watch.norms["rnn.l0"]] == [10] * len(watch.updates)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"model": "rnn"}, TypeError, "model: expected an nn.Module, got str"),
        ({"model": dd.models.MLP(3)}, ValueError, "model: expected one with a recurrent layer, got MLP"),
        ({"loss": "mse"}, TypeError, "loss: expected a losses.Loss, got str"),
        ({"y": np.zeros((2, 3), int)}, ValueError, r"y: expected shape \(2, 4\), like x, got \(2, 3\)"),
        ({"lengths": [5, 1]}, ValueError, "lengths: expected numbers from 1 to 4"),
        ({"seed": -1}, ValueError, "seed"),
        (
            {"model": dd.nn.RNN(3, 4), "x": np.ones((2, 4, 3)), "y": np.ones((2, 3, 4))},
            ValueError,
            r"y: expected shape \(2, 4, 4\) or \(2, 4\), like the output, got \(2, 3, 4\)",
        ),
        ({"model": LastStep(seed=0), "lengths": [1, 1]}, ValueError, "lengths: this model takes no sequences"),
    ],
)
def test_bad_flows(arguments, error, message):
    good = {"model": dd.models.LanguageModel(7), "x": np.zeros((2, 4), int), "y": np.zeros((2, 4), int)}
    with pytest.raises(error, match=message):
        dd.gradient_flow(**{**good, **arguments})


# ---- pictures --------------------------------------------------------------------------------------------------------


def test_temperature_sweep():
    corpus = TextCorpus(TEXT, time=10)
    trainer = trainer_of(corpus, dropout=0.2)
    trainer.fit(corpus, epochs=3, batch_size=2, progress=False)
    arguments = {"temperatures": (0, 0.5, 1.5), "length": 25, "samples": 3, "seed": 4}
    sweep = dd.plots.temperature_sweep(trainer.model, corpus.tokenizer, "First ", **arguments)
    assert sweep.rows == dd.plots.temperature_sweep(trainer.model, corpus.tokenizer, "First ", **arguments).rows
    cold, mild, hot = sweep.rows
    assert len(set(cold["texts"])) == 1
    assert cold["perplexity"] < mild["perplexity"] < hot["perplexity"]
    assert mild["texts"] == dd.generate(trainer.model, corpus.tokenizer, ["First "] * 3, 25, 0.5, seed=4)
    assert mild["distinct_2"] == dd.metrics.distinct(mild["texts"], 2)
    # The log-probability, token by token, in a run of its own.
    total = 0.0
    for text in hot["texts"]:
        ids = corpus.tokenizer.encode("First " + text)
        logits = trainer.model.predict(ids[None, :-1])[0].astype(float)
        p = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
        total += p[np.arange(len(p)), ids[1:]][5:].sum()
    assert hot["log_probability"] == pytest.approx(total / 75, rel=1e-5)
    assert hot["perplexity"] == pytest.approx(math.exp(-total / 75), rel=1e-5)
    assert [line.split()[0] for line in sweep.table().splitlines()[1:]] == ["0", "0.5", "1.5"]
    with pytest.raises(ValueError, match=r"temperatures\[1\]: expected a number in \[0, inf\), got -1"):
        dd.plots.temperature_sweep(trainer.model, corpus.tokenizer, "First ", (1.0, -1))
    with pytest.raises(ValueError, match="temperatures: expected at least one"):
        dd.plots.temperature_sweep(trainer.model, corpus.tokenizer, "First ", ())
    with pytest.raises(TypeError, match="prompt: expected a str, got list"):
        dd.plots.temperature_sweep(trainer.model, corpus.tokenizer, ["First "])
    with pytest.raises(ValueError, match="samples"):
        dd.plots.temperature_sweep(trainer.model, corpus.tokenizer, "First ", samples=0)


def test_pictures(tmp_path):
    corpus = TextCorpus(TEXT, time=10)
    x, y, _ = next(corpus.batches("train", 2))
    curve, flow = LossCurve(0.9), GradientFlow(x, y, every=30)
    trainer = trainer_of(corpus, layers=2)
    trainer.fit(corpus, batch_size=2, progress=False, callbacks=[curve, flow])
    sweep = dd.plots.temperature_sweep(trainer.model, corpus.tokenizer, "First ", (0.5, 1.0), 20, 2)
    figures = [
        curve.plot(tmp_path / "curve.png"),
        dd.plots.loss_curve({"lstm": curve, "again": curve}, tmp_path / "curves.png"),
        dd.gradient_flow(trainer.model, x, y).plot(tmp_path / "flow.png"),
        flow.plot(tmp_path / "flows.png"),
        sweep.plot(tmp_path / "sweep.svg"),
    ]
    assert [[len(axes.lines) for axes in figure.axes] for figure in figures] == [
        [2],
        [4],
        [2],
        [len(flow.updates)] * 2,
        [2, 1],
    ]
    np.testing.assert_array_equal(figures[0].axes[0].lines[1].get_ydata(), curve.smoothed)
    for path in tmp_path.iterdir():
        assert path.stat().st_size > 1000
