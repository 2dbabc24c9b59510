"""Zoneout, recurrent dropout and layer normalisation: the definitions against central differences, the fast kernels
against the definitions."""

import itertools

import numpy as np
import pytest

from dd2424fast import kernels as k
from dd2424fast.kernels import _team

GATES = {"rnn": 1, "gru": 3, "lstm": 4, "lstm_norm": 4}
PASSES = {
    "rnn": (k.rnn_forward, k.rnn_backward),
    "gru": (k.gru_forward, k.gru_backward),
    "lstm": (k.lstm_forward, k.lstm_backward),
    "lstm_norm": (k.lstm_norm_forward, k.lstm_norm_backward),
}
FORWARD = {
    "rnn": ("h", "previous", "h_last"),
    "gru": ("h", "previous", "gates", "candidate", "h_last"),
    "lstm": ("h", "previous", "gates", "c", "h_last", "c_last"),
    "lstm_norm": ("h", "previous", "gates", "c", "sums", "statistics", "h_last", "c_last"),
}
BACKWARD = {
    "rnn": ("da", "dh0"),
    "gru": ("da", "du", "dh0"),
    "lstm": ("da", "dh0", "dc0"),
    "lstm_norm": ("da", "du", "dgain", "dgain_c", "dshift_c", "dh0", "dc0"),
}
# What each cell can have: rates of zoneout, of zoneout of the cell, and of recurrent dropout.
RATES = {
    "rnn": [(0.4, 0.0, 0.0)],
    "gru": [(0.4, 0.0, 0.0), (0.0, 0.0, 0.3), (0.4, 0.0, 0.3)],
    "lstm": [(0.4, 0.0, 0.0), (0.0, 0.4, 0.0), (0.0, 0.0, 0.3), (0.4, 0.2, 0.3)],
    "lstm_norm": [None, (0.4, 0.2, 0.3)],
}
VARIANTS = [(cell, rates) for cell, choices in RATES.items() for rates in choices]


@pytest.fixture(autouse=True)
def _threads():
    before = _team.get_num_threads()
    yield
    _team.set_num_threads(before)


class Problem:
    """Inputs of both passes of a cell; nothing zero, nothing symmetric."""

    def __init__(
        self, cell, rates, dtype="float64", T=4, B=3, H=5, ragged=False, ids=False, state=True, bias=True, V=6, seed=0
    ):
        rng = np.random.default_rng(seed)
        lengths = np.sort(rng.integers(1, T + 1, B))[::-1] if ragged else np.full(B, T)
        lengths[0] = T
        counts = (lengths > np.arange(T)[:, None]).sum(axis=1)
        rows, width = int(counts.sum()), GATES[cell] * H

        def draw(*shape):
            return rng.standard_normal(shape).astype(dtype)

        self.cell = cell
        self.inputs = {
            "a": draw(V if ids else rows, width),
            "b": draw(width) if bias else None,
            "U": (draw(H, width) / np.sqrt(H)).astype(dtype),
            "bU": draw(width) if bias else None,
            "h0": draw(B, H) if state else None,
        }
        self.upstream = {"h": draw(rows, H), "h_last": draw(B, H) if state else None}
        if "lstm" in cell:
            self.inputs["c0"] = draw(B, H) if state else None
            self.upstream["c_last"] = draw(B, H) if state else None
        if cell == "lstm_norm":
            self.inputs |= {"gain": 1 + draw(width) / 2, "gain_c": 1 + draw(H) / 2, "shift_c": draw(H)}
        self.fixed = {"counts": counts, "ids": rng.integers(0, V, rows) if ids else None}
        self.noise = None
        if rates is not None:
            self.noise = k.CellNoise(*rates, k.random_flags(k.stream_key(seed, 1, 2), rates, (rows, H)))

    def widened(self):
        """The same in float64."""
        wide = object.__new__(Problem)
        wide.__dict__ = dict(self.__dict__)
        for name in ("inputs", "upstream"):
            part = getattr(self, name)
            setattr(wide, name, {key: None if a is None else a.astype("float64") for key, a in part.items()})
        return wide

    def forward(self, backend, noise="own", **changed):
        kernel = getattr(PASSES[self.cell][0], backend)
        noise = self.noise if isinstance(noise, str) else noise
        got = kernel(**{**self.inputs, **self.fixed, "noise": noise, **changed})
        return dict(zip(FORWARD[self.cell], got, strict=True))

    def backward(self, backend, out, **changed):
        kept = {
            "rnn": ("h",),
            "gru": ("previous", "gates", "candidate"),
            "lstm": ("gates", "c"),
            "lstm_norm": ("gates", "c", "sums", "statistics"),
        }[self.cell]
        call = {"dh": self.upstream["h"], "counts": self.fixed["counts"], "noise": self.noise, "U": self.inputs["U"]}
        call |= {f"d{name}": a for name, a in self.upstream.items() if name != "h"}
        call |= {name: out[name] for name in kept}
        call |= {name: self.inputs[name] for name in ("c0", "gain", "gain_c", "shift_c") if name in self.inputs}
        got = getattr(PASSES[self.cell][1], backend)(**{**call, **changed})
        return dict(zip(BACKWARD[self.cell], got, strict=True))

    def gradients(self, backend):
        """Of sum(dh h) + sum(dh_last h_last) (+ cell), with respect to every input, as the docstrings say."""
        out = self.forward(backend)
        g = self.backward(backend, out)
        da, du = g["da"], g.get("du", g["da"])
        found = {"b": da.sum(axis=0), "U": out["previous"].T @ du}
        found["bU"] = (da if self.cell == "lstm_norm" else du).sum(axis=0)
        if self.fixed["ids"] is not None:
            da = k.scatter_rows.numpy(da, self.fixed["ids"], np.empty_like(self.inputs["a"]))
        return {"a": da, **found, **{name[1:]: a for name, a in g.items() if name not in ("da", "du")}}


# ---- the definitions -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("T", "B", "ragged", "ids"), [(1, 2, False, False), (4, 3, True, False), (4, 3, False, True)])
@pytest.mark.parametrize(("cell", "rates"), VARIANTS)
def test_gradients_of_the_definition(cell, rates, T, B, ragged, ids):
    problem = Problem(cell, rates, T=T, B=B, ragged=ragged, ids=ids)

    def loss(**changed):
        out = problem.forward("numpy", **changed)
        return sum(np.sum(d * out[name]) for name, d in problem.upstream.items())

    found = problem.gradients("numpy")
    assert found.keys() == problem.inputs.keys()
    for name, value in problem.inputs.items():
        for index in np.ndindex(value.shape):
            at = [np.array(value) for _ in range(4)]
            for moved, step in zip(at, (-2, -1, 1, 2), strict=True):
                moved[index] += step * 1e-4
            f = [loss(**{name: moved}) for moved in at]
            slope = (f[0] - 8 * f[1] + 8 * f[2] - f[3]) / 12e-4
            assert abs(found[name][index] - slope) < 1e-8 * max(1, abs(slope)), (name, index)


@pytest.mark.parametrize("backend", ["numpy", "fast"])
@pytest.mark.parametrize("cell", CELLS := ["rnn", "lstm", "gru", "lstm_norm"])
def test_zoneout_keeps_the_old_values(cell, backend):
    """By hand: a unit whose flag is set has the state of the step before, bit for bit; others that of a step alone."""
    problem = Problem(cell, (0.5, 0.5 if "lstm" in cell else 0.0, 0.0), T=3, B=2, H=17)
    out = problem.forward(backend)
    keeps_h, keeps_c = problem.noise.flags & 1 == 1, problem.noise.flags & 2 == 2
    assert 0.2 < keeps_h.mean() < 0.8
    np.testing.assert_array_equal(out["h"][keeps_h], out["previous"][keeps_h])
    before_c = np.concatenate([problem.inputs["c0"], out["c"][:-2]]) if "lstm" in cell else None
    if before_c is not None:
        assert (keeps_c != keeps_h).any()
        np.testing.assert_array_equal(out["c"][keeps_c], before_c[keeps_c])
    for row in range(6):  # one step from the states that the pass had there
        alone = {"a": problem.inputs["a"][row : row + 1], "h0": out["previous"][row : row + 1]}
        if before_c is not None:
            alone["c0"] = before_c[row : row + 1]
        step = problem.forward(backend, None, **alone, counts=np.ones(1, np.int64))
        np.testing.assert_allclose(out["h"][row][~keeps_h[row]], step["h"][0][~keeps_h[row]], rtol=1e-12)
        if before_c is not None:
            np.testing.assert_allclose(out["c"][row][~keeps_c[row]], step["c"][0][~keeps_c[row]], rtol=1e-12)


@pytest.mark.parametrize("backend", ["numpy", "fast"])
@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_recurrent_dropout_by_hand(cell, backend):
    problem = Problem(cell, (0.0, 0.0, 0.25), T=1, B=2, H=9)
    out = problem.forward(backend)
    factor = np.where(problem.noise.flags & 4, 0, 1 / 0.75)
    assert 0 < (factor == 0).mean() < 1
    parts = np.split(out["gates"], GATES[cell], axis=1)
    if cell == "lstm":
        i, f, g, o = parts
        np.testing.assert_allclose(out["c"], f * problem.inputs["c0"] + i * factor * g, rtol=1e-13)
        np.testing.assert_allclose(out["h"], o * np.tanh(out["c"]), rtol=1e-13)
    else:
        _, z, n = parts
        np.testing.assert_allclose(out["h"], (1 - z) * factor * n + z * problem.inputs["h0"], rtol=1e-13, atol=1e-15)


def test_layer_norm_lstm_by_hand():
    """Equations 20 to 22 of the paper's supplement, written out for two steps."""
    problem = Problem("lstm_norm", None, T=2, B=1, H=3)
    p = problem.inputs

    def normal(v):
        return (v - v.mean()) / np.sqrt(v.var() + 1e-5)

    h, c = p["h0"][0], p["c0"][0]
    for t in range(2):
        z = p["a"][t] + p["b"] + p["bU"] + normal(h @ p["U"]) * p["gain"]
        i, f, o = (1 / (1 + np.exp(-z[k * 3 : k * 3 + 3])) for k in (0, 1, 3))
        c = f * c + i * np.tanh(z[6:9])
        h = o * np.tanh(normal(c) * p["gain_c"] + p["shift_c"])
    for backend in ("numpy", "fast"):
        out = problem.forward(backend)
        np.testing.assert_allclose(out["h_last"][0], h, rtol=1e-12)
        np.testing.assert_allclose(out["c_last"][0], c, rtol=1e-12)


# ---- the fast kernels ------------------------------------------------------------------------------------------------

# Odd sizes, around vectors and tiles; one sequence alone takes a path of its own.
SHAPES = [(1, 1, 1), (5, 1, 37), (3, 2, 16), (5, 13, 33), (3, 5, 7), (4, 7, 17)]


def check_equal(got, ref, dtype):
    assert got.keys() == ref.keys()
    for name in ref:
        assert got[name].dtype == dtype
        assert got[name].shape == ref[name].shape
        limit = 1e-10 if dtype == "float64" else 1e-4
        error = np.max(np.abs(got[name] - ref[name]), initial=0) / max(1, np.max(np.abs(ref[name]), initial=0))
        assert error < limit, (name, error)


@pytest.mark.parametrize(("ragged", "ids", "state"), list(itertools.product((False, True), repeat=3)))
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("cell", CELLS)
def test_fast_equals_definition(cell, dtype, shape, ragged, ids, state):
    """float32 is compared with the definition in float64; the bits do not depend on the threads."""
    T, B, H = shape
    for rates in RATES[cell]:
        problem = Problem(cell, rates, dtype, T, B, H, ragged, ids, state, bias=state or B > 1)
        wide = problem.widened()
        ref = wide.forward("numpy")
        ref_back = wide.backward("numpy", ref)
        bits = []
        for threads in (1, 2, 3):
            _team.set_num_threads(threads)
            got = problem.forward("fast")
            check_equal(got, ref, dtype)
            back = problem.backward("fast", got)
            check_equal(back, ref_back, dtype)
            bits.append({**got, **back})
        for other in bits[1:]:
            for name, a in bits[0].items():
                np.testing.assert_array_equal(a, other[name], err_msg=name)


@pytest.mark.parametrize(
    ("cell", "rates"),
    [
        ("lstm", (0.3, 0.2, 0.2)),
        ("gru", (0.3, 0, 0.2)),
        ("rnn", (0.3, 0, 0)),
        ("lstm_norm", (0.3, 0.2, 0.2)),
        ("lstm_norm", None),
    ],
)
@pytest.mark.parametrize(
    ("dtype", "shape"),
    [("float64", (30, 21, 64)), ("float64", (4, 9, 500)), ("float32", (12, 70, 45)), ("float32", (4, 37, 561))],
    ids=["sequences", "units", "sequences on the matrix unit", "units on the matrix unit"],
)
def test_large_enough_for_two_threads(cell, rates, dtype, shape):
    """So many operations that the work is in fact shared out, unevenly; a large layer's by units, if it can be."""
    problem = Problem(cell, rates, dtype, *shape, ragged=True)
    results = []
    for threads in (1, 2, 4):
        _team.set_num_threads(threads)
        out = problem.forward("fast")
        results.append({**out, **problem.backward("fast", out)})
    wide = problem.widened()
    ref = wide.forward("numpy")
    check_equal(results[0], {**ref, **wide.backward("numpy", ref)}, dtype)
    for other in results[1:]:
        for name, a in results[0].items():
            np.testing.assert_array_equal(a, other[name], err_msg=name)


@pytest.mark.parametrize("ragged", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("cell", CELLS)
def test_expectations(cell, dtype, ragged):
    """Without flags a state keeps its expected share of the old value, and dropout does nothing."""
    rates = {"rnn": (0.3, 0, 0), "gru": (0.3, 0, 0.9)}.get(cell, (0.3, 0.6, 0.9))
    for B, H in ((1, 7), (5, 33)):
        problem = Problem(cell, rates, dtype, B=B, H=H, ragged=ragged)
        problem.noise = k.CellNoise(*rates)
        ref = problem.widened().forward("numpy")
        check_equal(problem.forward("fast"), ref, dtype)
        one = problem.widened().forward(
            "numpy", None, a=problem.inputs["a"][:B].astype("float64"), counts=np.array([B])
        )
        h0 = problem.inputs["h0"]
        np.testing.assert_allclose(ref["h"][:B], 0.3 * h0 + 0.7 * one["h"], atol=1e-6)
        if "lstm" in cell:
            np.testing.assert_allclose(ref["c"][:B], 0.6 * problem.inputs["c0"] + 0.4 * one["c"], atol=1e-6)


@pytest.mark.parametrize("backend", ["numpy", "fast"])
@pytest.mark.parametrize("cell", CELLS)
def test_a_ragged_batch_is_each_sequence_alone(cell, backend):
    problem = Problem(cell, RATES[cell][-1], T=6, B=5, H=9, ragged=True)
    together = problem.forward(backend)
    together |= problem.backward(backend, together)
    counts = problem.fixed["counts"]
    starts = np.concatenate([[0], np.cumsum(counts)[:-1]])
    assert counts[-1] < counts[0]
    gains = dict.fromkeys(("dgain", "dgain_c", "dshift_c"), 0)
    for j in range(counts[0]):
        rows = np.array([s + j for s, n in zip(starts, counts, strict=True) if n > j])
        alone = problem.widened()
        alone.fixed = {"counts": np.ones(len(rows), np.int64), "ids": None}
        alone.noise = problem.noise._replace(flags=problem.noise.flags[rows])
        for part, of_rows in ((alone.inputs, "a"), (alone.upstream, "h")):
            part[of_rows] = part[of_rows][rows]
            for name in part.keys() & {"h0", "c0", "h_last", "c_last"}:
                part[name] = part[name][j : j + 1]
        out = alone.forward(backend)
        for name, a in {**out, **alone.backward(backend, out)}.items():
            if name in gains:
                gains[name] = gains[name] + a
                continue
            whole = together[name]
            part = whole[j : j + 1] if name in ("h_last", "c_last", "dh0", "dc0") else whole[rows]
            np.testing.assert_allclose(a, part, rtol=1e-10, atol=1e-11, err_msg=name)
    if cell == "lstm_norm":
        for name, a in gains.items():
            np.testing.assert_allclose(a, together[name], rtol=1e-10, atol=1e-11, err_msg=name)


@pytest.mark.parametrize("backend", ["numpy", "fast"])
@pytest.mark.parametrize("cell", CELLS)
def test_results_may_take_the_place_of_inputs(cell, backend):
    """The gates may overwrite the input's part, their gradient the gates, the sums' gradient the sums."""
    problem = Problem(cell, RATES[cell][-1], T=5, B=3, H=21)
    apart = problem.forward(backend)
    apart_back = problem.backward(backend, apart)
    a, dlast = problem.inputs["a"].copy(), problem.upstream["h_last"].copy()
    kept = "h" if cell == "rnn" else "gates"
    out = problem.forward(backend, a=a, **{kept: a})
    for name in apart:
        np.testing.assert_array_equal(out[name], apart[name], err_msg=name)
    places = {"du": out["sums"]} if cell == "lstm_norm" else {}
    back = problem.backward(backend, out, da=a, dh_last=dlast, dh0=dlast, **places)
    assert back["dh0"] is dlast
    for name in apart_back:
        np.testing.assert_array_equal(back[name], apart_back[name], err_msg=name)


@pytest.mark.parametrize("cell", CELLS)
def test_no_noise_is_the_plain_cell(cell):
    """Rates of zero, and flags that are all zero, change no bit."""
    problem = Problem(cell, None, "float32", B=5, H=33)
    rows, H = problem.upstream["h"].shape
    plain = problem.forward("fast", None)
    for noise in (k.CellNoise(), k.CellNoise(0.5, 0, 0, np.zeros((rows, H), np.uint8))):
        for name, a in problem.forward("fast", noise).items():
            np.testing.assert_array_equal(a, plain[name], err_msg=name)


@pytest.mark.parametrize("cell", CELLS)
def test_a_nan_stays_visible(cell):
    problem = Problem(cell, None, "float32", T=3, B=3, H=17)
    problem.noise = k.CellNoise(0.5, 0, 0, np.zeros((9, 17), np.uint8))
    problem.inputs["a"][1, 2] = np.nan  # sequence 1, step 0
    h = problem.forward("fast")["h"].reshape(3, 3, 17)
    assert np.isnan(h[2, 1]).all()
    assert np.isfinite(h[:, [0, 2]]).all()


# ---- bad input -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cell", "noise", "error", "message"),
    [
        ("lstm", 0.5, TypeError, "noise: expected a CellNoise, got float"),
        ("lstm", k.CellNoise(1.0), ValueError, r"noise.zoneout: expected a probability in \[0, 1\), got 1.0"),
        ("lstm", k.CellNoise(0, -0.1), ValueError, "noise.zoneout_cell: expected a probability"),
        ("lstm", k.CellNoise(dropout="half"), TypeError, "noise.dropout"),
        ("gru", k.CellNoise(0, 0.1), ValueError, "noise.zoneout_cell: expected 0"),
        ("rnn", k.CellNoise(0, 0, 0.1), ValueError, "noise.dropout: expected 0"),
        (
            "lstm_norm",
            k.CellNoise(flags=np.zeros((12, 4), np.uint8)),
            ValueError,
            r"noise.flags: expected shape \(12, 5\)",
        ),
        ("gru", k.CellNoise(flags=np.zeros((12, 5))), TypeError, "noise.flags: expected dtype uint8"),
    ],
)
def test_bad_noise(cell, noise, error, message):
    with pytest.raises(error, match=message):
        Problem(cell, None).forward("fast", noise)


@pytest.mark.parametrize("cell", CELLS)
def test_a_backward_pass_needs_the_flags(cell):
    problem = Problem(cell, RATES[cell][-1])
    out = problem.forward("fast")
    with pytest.raises(TypeError, match=r"noise\.flags: expected those of the forward pass, got None"):
        problem.backward("fast", out, noise=problem.noise._replace(flags=None))


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"gain": np.zeros(5)}, ValueError, r"gain: expected shape \(20,\)"),
        ({"gain_c": np.zeros(5, "float32")}, TypeError, "gain_c: expected dtype float64"),
        ({"shift_c": None}, TypeError, "shift_c"),
        ({"statistics": np.zeros((12, 2))}, ValueError, r"statistics: expected shape \(12, 4\)"),
        ({"eps": -1.0}, ValueError, "eps"),
        ({"work": np.zeros(k.recurrent.work_size(4, 5))}, ValueError, "work: expected at least"),
    ],
)
def test_bad_arguments_of_the_normalised_lstm(change, error, message):
    with pytest.raises(error, match=message):
        Problem("lstm_norm", None).forward("fast", **change)
