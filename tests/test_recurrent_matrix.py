"""Recurrent layers in every combination of cell, dtype, layers, directions and kind of batch.

Compiled kernels against the definition, the definition against differences, a batch against its sequences alone, and
windows against the whole.
"""

import dataclasses
import itertools

import numpy as np
import pytest

import dd2424fast as dd

CELLS = ("RNN", "LSTM", "GRU")

# Batch, time, input, hidden: odd everywhere. The second is enough work, full or ragged, that two threads share it out.
SMALL, SHARED = (3, 5, 3, 7), (9, 37, 5, 97)


def named(**axes):
    """A parameter for each combination of the axes' values, its id made of those that are not plain."""
    combinations = [dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())]

    def said(name, value):
        return name if value is True else "" if value is False else f"{value}{name if name == 'layers' else ''}"

    ids = ["-".join(filter(None, itertools.starmap(said, c.items()))) for c in combinations]
    return pytest.mark.parametrize(list(axes), [tuple(c.values()) for c in combinations], ids=ids)


layouts = named(cell=CELLS, layers=(1, 2), bidirectional=(False, True), ragged=(False, True))


@pytest.fixture(autouse=True)
def _threads():
    before = dd.get_num_threads()
    yield
    dd.set_num_threads(before)


@dataclasses.dataclass(frozen=True)
class Problem:
    """A layer, a batch with initial states, and gradients from above."""

    layer: dd.nn.Module
    x: np.ndarray
    dy: np.ndarray
    state: list
    dstate: list
    lengths: np.ndarray | None

    @property
    def states(self):
        return self.layer.states

    def in_double(self):
        """The same in float64."""
        layer = type(self.layer)(**{**self.layer.config, "dtype": "float64"})
        layer.load_state_dict(self.layer.state_dict())
        state, dstate = ([a.astype("float64") for a in s] for s in (self.state, self.dstate))
        return Problem(layer, self.x.astype("float64"), self.dy.astype("float64"), state, dstate, self.lengths)

    def sequence(self, j):
        """Sequence j alone, as long as it is."""
        n = self.lengths[j]
        state, dstate = ([a[:, j : j + 1] for a in s] for s in (self.state, self.dstate))
        return Problem(self.layer, self.x[j : j + 1, :n], self.dy[j : j + 1, :n], state, dstate, None)

    def forward(self):
        """The output, and a list of the last states."""
        y, last = self.layer.forward(self.x, together(self.state), self.lengths)
        return y, list(apart(last))

    def loss(self):
        """sum(dy y) + sum(dstate last), whose gradients `run` finds."""
        y, last = self.forward()
        return np.sum(self.dy * y) + sum(np.sum(d * a) for d, a in zip(self.dstate, last, strict=True))

    def run(self):
        """All that the two passes return, by name, and apart from it the gradients of the parameters."""
        y, last = self.forward()
        dx, first = self.layer.backward(self.dy, together(self.dstate), return_dstate=True)
        found = {"y": y, "dx": dx}
        for name, a, b in zip(self.states, last, apart(first), strict=True):
            found |= {f"{name} last": a, f"d{name}0": b}
        return found, self.layer.gradient_dict()


def problem_of(cell, layers, bidirectional, ragged, size, dtype="float64"):
    """Nothing is zero, nothing symmetric."""
    B, T, D, H = size
    rng = np.random.default_rng(1)
    layer = getattr(dd.nn, cell)(D, H, layers, bidirectional=bidirectional, dtype=dtype, seed=2)
    directions, lengths = 1 + bidirectional, None
    if ragged:  # in no order, of which one is the whole time
        lengths = rng.permutation(np.linspace(1 + T // 3, T, B).astype(int))

    def draw(*shape):
        return rng.standard_normal(shape).astype(dtype)

    def draw_states():
        return [draw(layers * directions, B, H) for _ in layer.states]

    return Problem(layer, draw(B, T, D), draw(B, T, directions * H), draw_states(), draw_states(), lengths)


def together(states):
    return tuple(states) if len(states) > 1 else states[0]


def apart(state):
    return state if isinstance(state, tuple) else (state,)


def added(gradients):
    """The sum of several dicts of arrays."""
    return {name: sum(one[name] for one in gradients) for name in gradients[0]}


def check_close(got, ref, limit):
    """Largest differences, relative to the largest entry."""
    assert got.keys() == ref.keys()
    for name, expected in ref.items():
        assert got[name].shape == expected.shape, name
        error = np.max(np.abs(got[name] - expected)) / max(1, np.max(np.abs(expected)))
        assert error < limit, (name, error)


@pytest.mark.parametrize("size", [SMALL, SHARED], ids=["small", "shared"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@layouts
def test_fast_equals_definition(cell, layers, bidirectional, ragged, dtype, size):
    """On one thread and on two, bit for bit; float32 is held against the definition in float64."""
    problem = problem_of(cell, layers, bidirectional, ragged, size, dtype)
    with dd.backend("numpy"):
        ref, ref_gradients = problem.in_double().run()
    results = []
    for threads in (1, 2):
        dd.set_num_threads(threads)
        got, gradients = problem.run()
        results.append({**got, **gradients})
        assert {a.dtype for a in results[-1].values()} == {np.dtype(dtype)}
        check_close(results[-1], {**ref, **ref_gradients}, 2e-5 if dtype == "float32" else 1e-12)
    for name, a in results[0].items():
        np.testing.assert_array_equal(a, results[1][name], err_msg=name)


@layouts
def test_gradients_of_the_definition(cell, layers, bidirectional, ragged):
    """Along a random direction in each input, state and parameter, by central differences."""
    problem = problem_of(cell, layers, bidirectional, ragged, (3, 4, 2, 3))
    rng, step = np.random.default_rng(3), 1e-3
    with dd.backend("numpy"):
        found, _ = problem.run()
        moved = {"x": (problem.x, found["dx"])}
        moved |= {name: (a, found[f"d{name}0"]) for name, a in zip(problem.states, problem.state, strict=True)}
        moved |= {name: (p.value, p.gradient.copy()) for name, p in problem.layer.named_parameters()}
        for name, (a, gradient) in moved.items():
            before, direction = a.copy(), rng.standard_normal(a.shape)
            f = []
            for at in (-2, -1, 1, 2):
                a[...] = before + at * step * direction
                f.append(problem.loss())
            a[...] = before
            slope = (f[0] - 8 * f[1] + 8 * f[2] - f[3]) / (12 * step)
            assert np.sum(gradient * direction) == pytest.approx(slope, rel=1e-7, abs=1e-8), name


@pytest.mark.parametrize("backend", ["numpy", "fast"])
@named(cell=CELLS, layers=(1, 2), bidirectional=(False, True))
def test_a_ragged_batch_is_each_sequence_alone(cell, layers, bidirectional, backend):
    """Outputs, states and their gradients of each; the gradients of the parameters add up."""
    problem = problem_of(cell, layers, bidirectional, True, (5, 6, 3, 7))
    with dd.backend(backend):
        whole, gradients = problem.run()
        alone = [problem.sequence(j).run() for j in range(len(problem.lengths))]
    for j, (n, (got, _)) in enumerate(zip(problem.lengths, alone, strict=True)):
        part = {name: a[j : j + 1, :n] if name in ("y", "dx") else a[:, j : j + 1] for name, a in whole.items()}
        check_close(got, part, 1e-12)
        assert not whole["y"][j, n:].any()
        assert not whole["dx"][j, n:].any()
    check_close(gradients, added([g for _, g in alone]), 1e-12)


@pytest.mark.parametrize("backend", ["numpy", "fast"])
@named(cell=CELLS, layers=(1, 2))
def test_windows_equal_the_whole(cell, layers, backend):
    """States are handed on from window to window, and their gradients handed back."""
    problem = problem_of(cell, layers, False, False, (3, 9, 3, 7))
    windows, state = [], problem.state
    with dd.backend(backend):
        whole, gradients = problem.run()
        for a, b in ((0, 4), (4, 5), (5, 9)):
            x, dy = problem.x[:, a:b], problem.dy[:, a:b]
            windows.append(dataclasses.replace(problem, x=x, dy=dy, state=state))
            _, state = windows[-1].forward()
        results, dstate = [], problem.dstate
        for window in reversed(windows):
            results.insert(0, dataclasses.replace(window, dstate=dstate).run())
            dstate = [results[0][0][f"d{name}0"] for name in problem.states]
    found = [one for one, _ in results]
    joined = {name: np.concatenate([one[name] for one in found], axis=1) for name in ("y", "dx")}
    joined |= {name: found[-1 if name.endswith("last") else 0][name] for name in whole if name not in joined}
    check_close(joined, whole, 1e-12)
    check_close(added([g for _, g in results]), gradients, 1e-12)


@named(cell=("rnn", "lstm", "gru"), layers=(1, 2), batch=(1, 3))
def test_updates_on_windows_read_one_text(cell, layers, batch):
    """Truncated back-propagation carries the state on: at a rate that moves nothing, the windows' losses are those of
    one long window."""
    ids = np.random.default_rng(0).integers(0, 7, (batch, 13))
    x, y = ids[:, :-1].copy(), ids[:, 1:].copy()

    def losses(cuts):
        model = dd.models.LanguageModel(7, cell, 5, 4, layers, dtype="float64", seed=3)
        trainer = dd.Trainer(model, dd.optim.SGD(1e-300))
        return [trainer.step(x[:, a:b], y[:, a:b]) for a, b in cuts]

    windows = losses([(0, 3), (3, 4), (4, 12)])
    assert np.dot(windows, [3, 1, 8]) / 12 == pytest.approx(losses([(0, 12)])[0], rel=1e-12)
