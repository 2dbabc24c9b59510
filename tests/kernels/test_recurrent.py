"""Recurrent kernels: the definitions against central differences, the fast kernels against the definitions."""

import itertools

import numpy as np
import pytest

from dd2424fast import kernels as k
from dd2424fast.kernels import _team

GATES = {"rnn": 1, "gru": 3, "lstm": 4}
CELLS = list(GATES)
FORWARD = {"rnn": k.rnn_forward, "lstm": k.lstm_forward, "gru": k.gru_forward}
BACKWARD = {"rnn": k.rnn_backward, "lstm": k.lstm_backward, "gru": k.gru_backward}


@pytest.fixture(autouse=True)
def _threads():
    before = _team.get_num_threads()
    yield
    _team.set_num_threads(before)


def counts_of(T, B, ragged, rng):
    if not ragged:
        return np.full(T, B, np.int64)
    lengths = np.sort(rng.integers(1, T + 1, B))[::-1]
    lengths[0] = T
    return (lengths > np.arange(T)[:, None]).sum(axis=1)


def problem(cell, dtype="float64", T=4, B=3, H=5, ragged=False, ids=False, state=True, bias=True, V=6, seed=0):
    """Inputs of the forward pass, and gradients for the backward pass; nothing zero, nothing symmetric."""
    rng = np.random.default_rng(seed)
    counts = counts_of(T, B, ragged, rng)
    rows, width = int(counts.sum()), GATES[cell] * H

    def draw(*shape):
        return rng.standard_normal(shape).astype(dtype)

    inputs = {
        "a": draw(V if ids else rows, width),
        "b": draw(width) if bias else None,
        "U": (draw(H, width) / np.sqrt(H)).astype(dtype),
        "bU": draw(width) if bias else None,
        "h0": draw(B, H) if state else None,
    }
    if cell == "lstm":
        inputs["c0"] = draw(B, H) if state else None
    fixed = {"counts": counts, "ids": rng.integers(0, V, rows) if ids else None}
    upstream = {"h": draw(rows, H), "h_last": draw(B, H) if state else None}
    if cell == "lstm":
        upstream["c_last"] = draw(B, H) if state else None
    return inputs, fixed, upstream


def forward(cell, backend, inputs, fixed, **results):
    names = {
        "rnn": ("h", "previous", "h_last"),
        "lstm": ("h", "previous", "gates", "c", "h_last", "c_last"),
        "gru": ("h", "previous", "gates", "candidate", "h_last"),
    }[cell]
    kernel = getattr(FORWARD[cell], backend)
    return dict(zip(names, kernel(**inputs, **fixed, **results), strict=True))


def backward(cell, backend, inputs, fixed, upstream, out, **results):
    kernel = getattr(BACKWARD[cell], backend)
    dh, U, counts = upstream["h"], inputs["U"], fixed["counts"]
    if cell == "rnn":
        got = kernel(dh, upstream["h_last"], U, out["h"], counts, **results)
        return dict(zip(("da", "dh0"), got, strict=True))
    if cell == "lstm":
        last = upstream["h_last"], upstream["c_last"]
        got = kernel(dh, *last, U, out["gates"], out["c"], inputs["c0"], counts, **results)
        return dict(zip(("da", "dh0", "dc0"), got, strict=True))
    got = kernel(dh, upstream["h_last"], U, out["previous"], out["gates"], out["candidate"], counts, **results)
    return dict(zip(("da", "du", "dh0"), got, strict=True))


def gradients(cell, backend, inputs, fixed, upstream):
    """Of sum(dh h) + sum(dh_last h_last) (+ cell), with respect to every input, as the docstrings say."""
    out = forward(cell, backend, inputs, fixed)
    g = backward(cell, backend, inputs, fixed, upstream, out)
    du = g.get("du", g["da"])
    da = g["da"]
    if fixed["ids"] is not None:
        da = k.scatter_rows.numpy(da, fixed["ids"], np.empty_like(inputs["a"]))
    found = {"a": da, "b": g["da"].sum(axis=0), "U": out["previous"].T @ du, "bU": du.sum(axis=0), "h0": g["dh0"]}
    return {**found, "c0": g["dc0"]} if cell == "lstm" else found


@pytest.mark.parametrize(("T", "B", "ragged", "ids"), [(1, 2, False, False), (4, 3, True, False), (4, 3, False, True)])
@pytest.mark.parametrize("cell", CELLS)
def test_gradients_of_the_definition(cell, T, B, ragged, ids):
    inputs, fixed, upstream = problem(cell, T=T, B=B, ragged=ragged, ids=ids)

    def loss(changed):
        out = forward(cell, "numpy", changed, fixed)
        return sum(np.sum(d * out[name]) for name, d in upstream.items())

    found = gradients(cell, "numpy", inputs, fixed, upstream)
    for name, value in inputs.items():
        for index in np.ndindex(value.shape):
            at = [np.array(value) for _ in range(4)]
            for moved, step in zip(at, (-2, -1, 1, 2), strict=True):
                moved[index] += step * 1e-4
            f = [loss({**inputs, name: moved}) for moved in at]
            slope = (f[0] - 8 * f[1] + 8 * f[2] - f[3]) / 12e-4
            assert abs(found[name][index] - slope) < 1e-8 * max(1, abs(slope)), (name, index)


# Odd sizes, around vectors and tiles; one sequence alone takes a path of its own.
SHAPES = [(1, 1, 1), (5, 1, 37), (3, 2, 16), (5, 7, 33), (2, 19, 50), (4, 13, 100), (3, 3, 7)]


def check_equal(got, ref, dtype):
    assert got.keys() == ref.keys()
    for name in ref:
        assert got[name].dtype == dtype
        assert got[name].shape == ref[name].shape
        limit = 1e-11 if dtype == "float64" else 2e-5
        error = np.max(np.abs(got[name] - ref[name]), initial=0) / max(1, np.max(np.abs(ref[name]), initial=0))
        assert error < limit, (name, error)


@pytest.mark.parametrize(("ragged", "ids", "state"), list(itertools.product((False, True), repeat=3)))
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("cell", CELLS)
def test_fast_equals_definition(cell, dtype, shape, ragged, ids, state):
    """float32 is compared with the definition in float64; the bits do not depend on the threads."""
    T, B, H = shape
    inputs, fixed, upstream = problem(cell, dtype, T, B, H, ragged, ids, state, bias=state or B > 1)
    wide = {name: None if a is None else a.astype("float64") for name, a in inputs.items()}
    wide_upstream = {name: None if a is None else a.astype("float64") for name, a in upstream.items()}
    ref = forward(cell, "numpy", wide, fixed)
    ref_back = backward(cell, "numpy", wide, fixed, wide_upstream, ref)
    bits = []
    for threads in (1, 2, 3):
        _team.set_num_threads(threads)
        got = forward(cell, "fast", inputs, fixed)
        check_equal(got, ref, dtype)
        back = backward(cell, "fast", inputs, fixed, upstream, got)
        check_equal(back, ref_back, dtype)
        bits.append({**got, **back})
    for other in bits[1:]:
        for name, a in bits[0].items():
            np.testing.assert_array_equal(a, other[name], err_msg=name)


@pytest.mark.parametrize("cell", CELLS)
def test_large_enough_for_two_threads(cell):
    """So many operations that the work is in fact shared out, unevenly."""
    inputs, fixed, upstream = problem(cell, "float64", 30, 21, 64, ragged=True)
    results = []
    for threads in (1, 2, 4):
        _team.set_num_threads(threads)
        out = forward(cell, "fast", inputs, fixed)
        results.append({**out, **backward(cell, "fast", inputs, fixed, upstream, out)})
    ref = forward(cell, "numpy", inputs, fixed)
    check_equal(results[0], {**ref, **backward(cell, "numpy", inputs, fixed, upstream, ref)}, "float64")
    for other in results[1:]:
        for name, a in results[0].items():
            np.testing.assert_array_equal(a, other[name], err_msg=name)


# So many units that U leaves the second cache.
LARGE = {
    "float32": {"rnn": 681, "gru": 401, "lstm": 345},
    "float64": {"rnn": 489, "gru": 281, "lstm": 249},
}


@pytest.mark.parametrize(("B", "state"), [(9, False), (9, True), (1, True)])
@pytest.mark.parametrize("dtype", list(LARGE))
@pytest.mark.parametrize("cell", CELLS)
def test_threads_share_the_units_of_large_layers(cell, dtype, B, state):
    """But those of a sequence alone stay together."""
    inputs, fixed, upstream = problem(cell, dtype, 8, B, LARGE[dtype][cell], ragged=True, state=state)
    results = []
    for threads in (1, 2, 3):
        _team.set_num_threads(threads)
        out = forward(cell, "fast", inputs, fixed)
        results.append({**out, **backward(cell, "fast", inputs, fixed, upstream, out)})
    ref = forward(cell, "numpy", inputs, fixed)
    check_equal(results[0], {**ref, **backward(cell, "numpy", inputs, fixed, upstream, ref)}, dtype)
    for other in results[1:]:
        for name, a in results[0].items():
            np.testing.assert_array_equal(a, other[name], err_msg=name)


@pytest.mark.parametrize("backend", ["numpy", "fast"])
@pytest.mark.parametrize("cell", CELLS)
def test_a_ragged_batch_is_each_sequence_alone(cell, backend):
    inputs, fixed, upstream = problem(cell, T=6, B=5, H=9, ragged=True)
    together = forward(cell, backend, inputs, fixed)
    back = backward(cell, backend, inputs, fixed, upstream, together)
    counts = fixed["counts"]
    starts = np.concatenate([[0], np.cumsum(counts)[:-1]])
    assert counts[-1] < counts[0]
    for j in range(counts[0]):
        rows = np.array([s + j for s, n in zip(starts, counts, strict=True) if n > j])
        own = {**inputs, "a": inputs["a"][rows], "h0": inputs["h0"][j : j + 1]}
        above = {"h": upstream["h"][rows], "h_last": upstream["h_last"][j : j + 1]}
        if cell == "lstm":
            own["c0"], above["c_last"] = inputs["c0"][j : j + 1], upstream["c_last"][j : j + 1]
        alone_fixed = {"counts": np.ones(len(rows), np.int64), "ids": None}
        alone = forward(cell, backend, own, alone_fixed)
        for name, a in {**alone, **backward(cell, backend, own, alone_fixed, above, alone)}.items():
            part = {**together, **back}[name]
            part = part[j : j + 1] if name in ("h_last", "c_last", "dh0", "dc0") else part[rows]
            np.testing.assert_allclose(a, part, rtol=1e-11, atol=1e-12, err_msg=name)


@pytest.mark.parametrize("backend", ["numpy", "fast"])
@pytest.mark.parametrize("cell", CELLS)
def test_results_may_take_the_place_of_inputs(cell, backend):
    """The gates may overwrite the input's part, and their gradient the gates; that is what the layers do."""
    inputs, fixed, upstream = problem(cell, T=5, B=3, H=21)
    apart = forward(cell, backend, inputs, fixed)
    apart_back = backward(cell, backend, inputs, fixed, upstream, apart)
    a = inputs["a"].copy()
    kept = "h" if cell == "rnn" else "gates"
    out = forward(cell, backend, {**inputs, "a": a}, fixed, **{kept: a})
    assert out[kept] is a
    for name in apart:
        np.testing.assert_array_equal(out[name], apart[name], err_msg=name)
    dlast = upstream["h_last"].copy()
    back = backward(cell, backend, inputs, fixed, {**upstream, "h_last": dlast}, out, da=a, dh0=dlast)
    assert back["dh0"] is dlast
    for name in apart_back:
        np.testing.assert_array_equal(back[name], apart_back[name], err_msg=name)


@pytest.mark.parametrize("cell", CELLS)
def test_inputs_are_left_alone(cell):
    inputs, fixed, upstream = problem(cell, "float32", ids=True)
    arrays = [a for d in (inputs, fixed, upstream) for a in d.values() if a is not None]
    before = [a.copy() for a in arrays]
    for a in arrays:
        a.flags.writeable = False  # read-only arrays simply work
    gradients(cell, "fast", inputs, fixed, upstream)
    for a, b in zip(arrays, before, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("cell", CELLS)
def test_a_nan_stays_visible(cell):
    inputs, fixed, _ = problem(cell, "float32", T=3, B=3, H=17)
    inputs["a"][1, 2] = np.nan  # sequence 1, step 0
    h = forward(cell, "fast", inputs, fixed)["h"].reshape(3, 3, 17)
    assert np.isnan(h[2, 1]).all()
    assert np.isfinite(h[:, [0, 2]]).all()


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"U": np.zeros((5, 7))}, ValueError, r"U: expected shape"),
        ({"a": np.zeros((12, 3))}, ValueError, r"a: expected shape"),
        ({"a": [[1.0]]}, TypeError, r"a: expected an ndarray"),
        ({"b": np.zeros(3)}, ValueError, r"b: expected shape"),
        ({"bU": np.zeros(2, "float32")}, TypeError, r"bU: expected dtype float64"),
        ({"h0": np.zeros((2, 5))}, ValueError, r"h0: expected shape \(3, 5\)"),
        ({"counts": np.array([3, 3, 3])}, ValueError, r"counts: expected a sum of 12.*got 9"),
        ({"counts": np.array([2, 3, 4, 3])}, ValueError, r"counts: .*never grow, got 3 at 1"),
        ({"counts": np.array([6, 6, 0])}, ValueError, r"counts: .*got 0 at 2"),
        ({"counts": np.array([], np.int64)}, ValueError, r"counts: expected at least 1 step"),
        ({"counts": np.array([3.0] * 4)}, TypeError, r"counts: expected dtype int64"),
        ({"ids": np.full(12, 12)}, ValueError, r"ids: expected numbers from 0 to 11, got 12 at 0"),
        ({"ids": np.array([0, -1] * 6)}, ValueError, r"ids: .*got -1 at 1"),
        ({"ids": np.zeros(11, np.int64)}, ValueError, r"counts: expected a sum of 11"),
        ({"h": np.zeros((3, 5))}, ValueError, r"h: expected shape"),
        ({"work": np.zeros(3)}, ValueError, r"work: expected at least \d+ elements, got 3"),
    ],
)
def test_bad_arguments(cell, change, error, message):
    inputs, fixed, _ = problem(cell)
    with pytest.raises(error, match=message):
        FORWARD[cell](**{**inputs, **fixed, **change})


@pytest.mark.parametrize("cell", CELLS)
def test_overlapping_results(cell):
    inputs, fixed, _ = problem(cell)
    memory = np.zeros((16, 5))
    with pytest.raises(ValueError, match="overlaps"):
        FORWARD[cell](**inputs, **fixed, h=memory[:12], previous=memory[4:])


@pytest.mark.parametrize("backend", ["numpy", "fast"])
@pytest.mark.parametrize("state", [False, True])
@pytest.mark.parametrize("cell", CELLS)
def test_states_of_a_full_batch_may_lie_in_one_array(cell, state, backend):
    """Those before a step are those after the one before it."""
    inputs, fixed, _ = problem(cell, T=5, B=3, H=21, state=state)
    apart = forward(cell, backend, inputs, fixed)
    memory = np.full((18, 21), np.nan)
    out = forward(cell, backend, inputs, fixed, h=memory[3:], previous=memory[:15])
    for name in apart:
        np.testing.assert_array_equal(out[name], apart[name], err_msg=name)


@pytest.mark.parametrize("cell", CELLS)
def test_what_of_previous_must_lie_apart(cell):
    inputs, fixed, _ = problem(cell, T=5, B=3, H=21)
    memory = np.zeros((23, 21))
    for rows in (slice(2, 17), slice(4, 19), slice(0, 15)):
        with pytest.raises(ValueError, match=r"previous: .*overlaps h"):
            FORWARD[cell](**inputs, **fixed, h=memory[rows], previous=memory[:15])
    with pytest.raises(ValueError, match=r"h_last: .*overlaps previous"):
        FORWARD[cell](**inputs, **fixed, h=memory[3:18], previous=memory[:15], h_last=memory[:3])
    with pytest.raises(ValueError, match=r"h_last: .*overlaps h"):
        FORWARD[cell](**inputs, **fixed, h=memory[3:18], previous=memory[:15], h_last=memory[12:15])
    inputs, fixed, _ = problem(cell, T=5, B=3, H=21, ragged=True)
    rows = fixed["counts"].sum()
    with pytest.raises(ValueError, match=r"previous: .*overlaps h"):
        FORWARD[cell](**inputs, **fixed, h=memory[3 : 3 + rows], previous=memory[:rows])


@pytest.mark.parametrize(("R", "V", "D"), [(1, 1, 1), (13, 5, 7), (40, 11, 33), (700, 80, 100)])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_rows_of_a_table(R, V, D, dtype):
    rng = np.random.default_rng(3)
    table, dy = rng.standard_normal((V, D)).astype(dtype), rng.standard_normal((R, D)).astype(dtype)
    ids = rng.integers(0, V, R)
    start = rng.standard_normal((V, D)).astype(dtype)
    exact = np.zeros((V, D))
    for r, v in enumerate(ids):
        exact[v] += dy[r]
    for threads in (1, 2):
        _team.set_num_threads(threads)
        for backend in ("numpy", "fast"):
            np.testing.assert_array_equal(getattr(k.take_rows, backend)(table, ids), table[ids])
            scatter = getattr(k.scatter_rows, backend)
            limit = R * np.finfo(dtype).eps * np.abs(dy).max()
            np.testing.assert_allclose(scatter(dy, ids, np.full((V, D), np.nan, dtype)), exact, atol=limit)
            np.testing.assert_allclose(scatter(dy, ids, start.copy(), True), exact + start, atol=2 * limit)
    with pytest.raises(ValueError, match=rf"ids: expected numbers from 0 to {V - 1}, got {V}"):
        k.take_rows(table, np.array([0, V]))
    with pytest.raises(ValueError, match="ids"):
        k.scatter_rows(dy, np.full(R, V), start)
