"""Optimizers: the twins against PyTorch and numbers by hand, the fast kernels against the twins."""

import copy
import pickle

import numpy as np
import pytest
from dd2424fast.kernels._team import get_num_threads, set_num_threads

from dd2424fast import kernels
from dd2424fast.kernels import Segments

UPDATES = 10
DTYPES = ["float32", "float64"]
ODD = {"lr": 0.1, "eps": 1e-3, "weight_decay": 0.3}  # nothing small enough to hide

# case: (kernel, PyTorch's class, keywords); without keywords both take their defaults
CASES = {
    "sgd": ("sgd", "SGD", {}),
    "sgd-decay": ("sgd", "SGD", {"lr": 0.1, "weight_decay": 0.3}),
    "momentum": ("sgd", "SGD", {"lr": 0.1, "weight_decay": 0.3, "momentum": 0.9}),
    "nesterov": ("sgd", "SGD", {"lr": 0.1, "weight_decay": 0.3, "momentum": 0.9, "nesterov": True}),
    "adam": ("adam", "Adam", {}),
    "adam-decay": ("adam", "Adam", {**ODD, "beta1": 0.8, "beta2": 0.95}),
    "adam-beta1-small": ("adam", "Adam", {"lr": 0.1, "beta1": 0.3, "beta2": 0.95}),
    "adam-beta1-zero": ("adam", "Adam", {"lr": 0.1, "beta1": 0.0, "beta2": 0.95}),
    "adamw": ("adamw", "AdamW", {}),
    "adamw-decay": ("adamw", "AdamW", {**ODD, "beta1": 0.8, "beta2": 0.95}),
    "nadam": ("nadam", "NAdam", {}),
    "nadam-decay": ("nadam", "NAdam", {**ODD, "beta1": 0.8, "beta2": 0.95, "momentum_decay": 0.05}),
    "rmsprop": ("rmsprop", "RMSprop", {}),
    "rmsprop-decay": ("rmsprop", "RMSprop", {**ODD, "alpha": 0.9}),
    "adagrad": ("adagrad", "Adagrad", {}),
    "adagrad-decay": ("adagrad", "Adagrad", {**ODD, "lr_decay": 0.2}),
    "adadelta": ("adadelta", "Adadelta", {}),
    "adadelta-decay": ("adadelta", "Adadelta", {"lr": 0.5, "rho": 0.8, "eps": 1e-3, "weight_decay": 0.3}),
}
VECTORS = {"sgd": 0, "adam": 2, "adamw": 2, "nadam": 2, "rmsprop": 1, "adagrad": 1, "adadelta": 2}
COUNTED = ("adam", "adamw", "nadam", "adagrad")  # those that are told the number of the update


@pytest.fixture
def threads():
    before = get_num_threads()
    yield set_num_threads
    set_num_threads(before)


def numbers(size, dtype, seed=1):
    """Parameters and the gradients of UPDATES updates."""
    rng = np.random.default_rng(seed)
    return rng.standard_normal(size).astype(dtype), rng.standard_normal((UPDATES, size)).astype(dtype)


def make_state(case, size, dtype, random=False):
    """State before the first update, or random state as after many."""
    name, _, keywords = CASES[case]
    rng = np.random.default_rng(7)
    vectors = 1 if keywords.get("momentum") else VECTORS[name]
    state = [(0.1 + rng.random(size) if random else np.zeros(size)).astype(dtype) for _ in range(vectors)]
    return [*state, np.full(1, 0.4 if random else 1.0)] if name == "nadam" else state


def update(case, backend, w, g, state, t, segments=None):
    name, _, keywords = CASES[case]
    kernel = getattr(getattr(kernels, f"{name}_update"), backend)
    assert kernel(w, g, *state, *([t] if name in COUNTED else []), segments=segments, **keywords) is None


def trace(case, backend, size, dtype, segments=None, random=False):
    """Parameters after each update, and the state after the last."""
    w, gradients = numbers(size, dtype)
    state, path = make_state(case, size, dtype, random), []
    for t, g in enumerate(gradients, 1):
        update(case, backend, w, g, state, t, segments)
        path.append(w.copy())
    return np.array(path), state


def check_close(got, ref, dtype):
    """float32 within a few eps of the largest number about: a parameter may pass through zero."""
    assert got.dtype == dtype
    if dtype == "float64":
        np.testing.assert_allclose(got, ref, rtol=1e-12, atol=1e-13)
    else:
        scale = max(1, np.abs(ref).max(initial=0))
        np.testing.assert_allclose(got, ref, rtol=0, atol=8 * np.finfo(dtype).eps * scale)


@pytest.fixture
def torch():
    torch = pytest.importorskip("torch")
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)  # NAdam keeps its product of momenta in the default dtype
    yield torch
    torch.set_default_dtype(before)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("backend", ["numpy", "fast"])
@pytest.mark.parametrize("case", CASES)
def test_trace_equals_pytorch(torch, case, backend, dtype):
    _, cls, keywords = CASES[case]
    keywords = dict(keywords)
    if "beta1" in keywords:
        keywords["betas"] = keywords.pop("beta1"), keywords.pop("beta2")
    w, gradients = numbers(131, dtype)
    parameter = torch.nn.Parameter(torch.from_numpy(w.copy()))
    optimizer = getattr(torch.optim, cls)([parameter], **keywords)
    ref = []
    for g in gradients:
        parameter.grad = torch.from_numpy(g.copy())
        optimizer.step()
        ref.append(parameter.detach().numpy().copy())
    check_close(trace(case, backend, 131, dtype)[0], np.array(ref), dtype)


def test_adagrad_starts_from_what_the_sum_holds(torch):
    w, gradients = numbers(5, "float64")
    parameter = torch.nn.Parameter(torch.from_numpy(w.copy()))
    optimizer = torch.optim.Adagrad([parameter], initial_accumulator_value=0.25)
    parameter.grad = torch.from_numpy(gradients[0])
    optimizer.step()
    kernels.adagrad_update(w, gradients[0], np.full(5, 0.25), 1)
    np.testing.assert_allclose(w, parameter.detach().numpy(), rtol=1e-14)


@pytest.mark.parametrize("backend", ["numpy", "fast"])
def test_known_values(backend):
    def moved(kernel, *arguments, **keywords):
        w = np.array([2.0])
        getattr(kernel, backend)(w, np.array([3.0]), *arguments, **keywords)
        return w[0]

    def one(x=0.0):
        return np.array([x])

    assert moved(kernels.sgd_update, lr=0.5, weight_decay=1.0) == 2 - 0.5 * (3 + 2)
    assert moved(kernels.sgd_update, one(4.0), lr=0.5, momentum=0.25) == 2 - 0.5 * (1 + 3)
    assert moved(kernels.sgd_update, one(4.0), lr=0.5, momentum=0.25, nesterov=True) == 2 - 0.5 * (3 + 0.25 * (1 + 3))
    # The first step of Adam is lr times the sign of the gradient, whatever the betas.
    assert moved(kernels.adam_update, one(), one(), 1, lr=0.5, eps=0.0) == pytest.approx(1.5, rel=1e-14)
    assert moved(kernels.adamw_update, one(), one(), 1, lr=0.5, eps=0.0, weight_decay=0.5) == pytest.approx(1.0)
    assert moved(kernels.rmsprop_update, one(), lr=0.5, alpha=0.75, eps=0.5) == 2 - 0.5 * 3 / (1.5 + 0.5)
    assert moved(kernels.adagrad_update, one(16.0), 3, lr=0.5, lr_decay=0.5, eps=1.0) == 2 - 0.25 * 3 / (5 + 1)
    assert moved(kernels.adadelta_update, one(), one(24.0), lr=0.5, rho=0.0, eps=1.0) == pytest.approx(
        2 - 0.5 * (5 / np.sqrt(10)) * 3
    )


# Sizes around the vector (4 to 16 lanes) and around the span that a thread takes (8192).
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", CASES)
def test_fast_equals_float64_twin(case, dtype):
    for size in (0, 1, 3, 7, 8, 9, 15, 16, 17, 31, 101, 8191, 8193, 16403):
        w, gradients = numbers(size, dtype)
        got = [w, *make_state(case, size, dtype, True)]
        ref = [a.astype("float64") for a in got]
        update(case, "fast", got[0], gradients[0], got[1:], 3)
        update(case, "numpy", ref[0], gradients[0].astype("float64"), ref[1:], 3)
        for a, b in zip(got, ref, strict=True):
            check_close(a, b, a.dtype)


def table(size):
    """Frozen ends and a frozen middle; other factors in every row; a row longer than a span."""
    return Segments(size, [(3, 50), (50, 97), (101, 102), (110, size - 5)], [(1, 1), (0.5, 0), (2, 3), (1.5, 0.25)])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", CASES)
def test_segments(case, dtype):
    size = 20011
    segments = table(size)
    got, state = trace(case, "fast", size, dtype, segments, random=True)
    ref, ref_state = trace(case, "numpy", size, dtype, segments, random=True)
    check_close(got, ref, dtype)
    for a, b in zip(state, ref_state, strict=True):
        check_close(a, b, a.dtype)

    frozen = np.ones(size, bool)
    for row, _, _ in segments:
        frozen[row] = False
    assert frozen.sum() == size - segments.trainable > 0
    for a, b in zip([got[-1], *state], [numbers(size, dtype)[0], *make_state(case, size, dtype, True)], strict=True):
        if a.size == size:
            np.testing.assert_array_equal(a[frozen], b[frozen])
            assert (a[~frozen] != b[~frozen]).mean() > 0.9


@pytest.mark.parametrize("backend", ["numpy", "fast"])
@pytest.mark.parametrize("case", CASES)
def test_factors_multiply_rate_and_decay(case, backend):
    """A row with factors equals a vector of its own under multiplied settings."""
    name, cls, keywords = CASES[case]
    default = {"adam": 1e-3, "adamw": 1e-3, "nadam": 2e-3, "adadelta": 1.0, "sgd": 1e-3}.get(name, 1e-2)
    decay = keywords.get("weight_decay", 0.01 if name == "adamw" else 0.0)
    scaled = {**keywords, "lr": 0.5 * keywords.get("lr", default), "weight_decay": 3 * decay}
    got, _ = trace(case, backend, 40, "float64", Segments(40, [(0, 40)], [(0.5, 3)]))
    CASES["scaled"] = name, cls, scaled
    try:
        ref, _ = trace("scaled", backend, 40, "float64")
    finally:
        del CASES["scaled"]
    np.testing.assert_allclose(got, ref, rtol=1e-13, atol=1e-14)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", CASES)
def test_same_bits_for_any_threads_and_any_cut(case, dtype, threads):
    size, bounds = 120_001, [(0, 5), (5, 8999), (8999, 120_001)]

    def after(update_all):
        w, gradients = numbers(size, dtype)
        state = make_state(case, size, dtype, True)
        update_all(w, gradients[0], state)
        return [w, *state]

    def whole(w, g, state):
        update(case, "fast", w, g, state, 3)

    def row_by_row(w, g, state):
        for start, stop in bounds:
            rows = [s[start:stop] if s.size == size else s.copy() for s in state]
            update(case, "fast", w[start:stop], g[start:stop], rows, 3)

    threads(1)
    ref = after(whole)
    threads(2)
    for got in after(whole), after(row_by_row):
        for a, b in zip(got, ref, strict=True):
            if a.size == size:
                np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("backend", ["numpy", "fast"])
@pytest.mark.parametrize("case", CASES)
def test_nan_and_infinity_stay_visible_and_apart(case, backend):
    for bad in (np.nan, np.inf):
        w, gradients = numbers(19, "float32")
        g = gradients[0]
        g[[4, 18]] = bad
        state = make_state(case, 19, "float32", True)
        with np.errstate(all="ignore"):
            update(case, backend, w, g, state, 1)
        seen = ~np.isfinite(np.array([w, *[s for s in state if s.size == 19]])).all(axis=0)
        np.testing.assert_array_equal(np.flatnonzero(seen), [4, 18])


def test_float32_division_at_its_edges():
    """The approximated quotient gives what a division gives at 0, infinity and far numbers."""
    v = np.array([0, 0, np.inf, 1e-40, 1e38, 1e-30, 0.3] * 5, "float32")
    g = np.array([0, 1, 1, 1, 1, 1e-20, -7] * 5, "float32")
    fast, twin = np.zeros(35, "float32"), np.zeros(35, "float32")
    with np.errstate(all="ignore"):
        kernels.adagrad_update.fast(fast, g, v.copy(), 1, eps=0.0)
        kernels.adagrad_update.numpy(twin, g, v.copy(), 1, eps=0.0)
    np.testing.assert_allclose(fast, twin, rtol=4e-7)


@pytest.mark.parametrize("backend", ["numpy", "fast"])
def test_gradients_may_be_strided_and_read_only(backend):
    wide = np.arange(20.0)
    wide.flags.writeable = False
    w = np.zeros(10)
    getattr(kernels.sgd_update, backend)(w, wide[::2], lr=1.0)
    np.testing.assert_array_equal(w, -wide[::2])


def vectors(*sizes):
    return [np.ones(size) for size in sizes]


@pytest.mark.parametrize(
    ("error", "message", "call"),
    [
        (TypeError, "parameters: expected an ndarray", lambda: kernels.sgd_update([1.0], np.ones(1))),
        (TypeError, "parameters: expected an ndarray", lambda: kernels.sgd_update(None, np.ones(1))),
        (TypeError, "parameters: expected dtype", lambda: kernels.sgd_update(np.ones(3, int), np.ones(3))),
        (ValueError, r"parameters: expected shape \(any,\)", lambda: kernels.sgd_update(np.ones((3, 1)), np.ones(3))),
        (ValueError, "parameters: expected a C-contiguous", lambda: kernels.sgd_update(np.ones(6)[::2], np.ones(3))),
        (TypeError, "gradients: expected dtype", lambda: kernels.sgd_update(np.ones(3), np.ones(3, "float32"))),
        (ValueError, r"gradients: expected shape \(3,\), got \(4,\)", lambda: kernels.sgd_update(*vectors(3, 4))),
        (TypeError, "velocity: expected an ndarray", lambda: kernels.sgd_update(*vectors(3, 3), momentum=0.9)),
        (ValueError, "velocity: expected None", lambda: kernels.sgd_update(*vectors(3, 3, 3))),
        (ValueError, "nesterov: expected a momentum", lambda: kernels.sgd_update(*vectors(3, 3), nesterov=True)),
        (ValueError, r"velocity: expected shape", lambda: kernels.sgd_update(*vectors(3, 3, 2), momentum=0.9)),
        (ValueError, "lr: expected a finite number", lambda: kernels.sgd_update(*vectors(3, 3), lr=-1)),
        (ValueError, "lr: expected a finite number", lambda: kernels.sgd_update(*vectors(3, 3), lr=np.nan)),
        (ValueError, "lr: expected a finite number", lambda: kernels.sgd_update(*vectors(3, 3), lr=np.inf)),
        (TypeError, "lr: expected a number, got str", lambda: kernels.sgd_update(*vectors(3, 3), lr="0.1")),
        (TypeError, "momentum: expected a number, got bool", lambda: kernels.sgd_update(*vectors(3, 3), momentum=True)),
        (ValueError, "weight_decay: expected", lambda: kernels.sgd_update(*vectors(3, 3), weight_decay=-1.0)),
        (TypeError, "segments: expected Segments", lambda: kernels.sgd_update(*vectors(3, 3), segments=[(0, 3)])),
        (
            ValueError,
            "for 3 parameters, got one for 4",
            lambda: kernels.sgd_update(*vectors(3, 3), segments=Segments(4)),
        ),
        (
            ValueError,
            "beta1: expected a number from 0",
            lambda: kernels.adam_update(*vectors(3, 3, 3, 3), 1, beta1=1.0),
        ),
        (
            ValueError,
            "beta2: expected a number from 0",
            lambda: kernels.adamw_update(*vectors(3, 3, 3, 3), 1, beta2=-0.1),
        ),
        (ValueError, "eps: expected", lambda: kernels.adam_update(*vectors(3, 3, 3, 3), 1, eps=-1e-8)),
        (ValueError, "t: expected", lambda: kernels.adam_update(*vectors(3, 3, 3, 3), 0)),
        (TypeError, "t: expected an integer", lambda: kernels.adagrad_update(*vectors(3, 3, 3), 1.0)),
        (TypeError, "second_moment: expected", lambda: kernels.adam_update(*vectors(3, 3, 3), None, 1)),
        (ValueError, "mu_product: expected shape", lambda: kernels.nadam_update(*vectors(3, 3, 3, 3, 3), 1)),
        (
            ValueError,
            "momentum_decay: expected",
            lambda: kernels.nadam_update(*vectors(3, 3, 3, 3, 1), 1, momentum_decay=-1),
        ),
        (ValueError, "alpha: expected", lambda: kernels.rmsprop_update(*vectors(3, 3, 3), alpha=1)),
        (ValueError, "lr_decay: expected", lambda: kernels.adagrad_update(*vectors(3, 3, 3), 1, lr_decay=-1)),
        (ValueError, "rho: expected", lambda: kernels.adadelta_update(*vectors(3, 3, 3, 3), rho=1.5)),
    ],
)
def test_bad_arguments(error, message, call):
    with pytest.raises(error, match=message):
        call()


def test_read_only_and_overlapping_vectors_are_refused():
    memory = np.ones(10)
    frozen = np.ones(3)
    frozen.flags.writeable = False
    with pytest.raises(ValueError, match="parameters: expected a writable"):
        kernels.sgd_update(frozen, np.ones(3))
    with pytest.raises(ValueError, match="overlaps gradients"):
        kernels.sgd_update(memory[:6], memory[4:])
    with pytest.raises(ValueError, match=r"first_moment: .* overlaps parameters"):
        kernels.adam_update(memory[:4], np.ones(4), memory[3:7], np.ones(4), 1)
    with pytest.raises(ValueError, match=r"velocity: .* overlaps gradients"):
        kernels.sgd_update(np.ones(4), memory[:4], memory[3:7], momentum=0.9)
    with pytest.raises(ValueError, match=r"second_moment: .* overlaps first_moment"):
        kernels.adamw_update(np.ones(4), np.ones(4), memory[:4], memory[3:7], 1)
    with pytest.raises(ValueError, match=r"delta_average: .* overlaps square_average"):
        kernels.adadelta_update(np.ones(4), np.ones(4), memory[:4], memory[3:7])
    with pytest.raises(ValueError, match=r"mu_product: .* overlaps second_moment"):
        kernels.nadam_update(np.ones(4), np.ones(4), np.ones(4), memory[:4], memory[3:4], 1)


def test_segments_are_sorted_merged_and_never_change():
    segments = Segments(20, [(12, 15), (0, 4), (4, 9), (9, 9), (9, 10), (10, 12)], [(1, 0), *[(1, 1)] * 4, (2, 1)])
    np.testing.assert_array_equal(segments.bounds, [[0, 10], [10, 12], [12, 15]])
    np.testing.assert_array_equal(segments.factors, [[1, 1], [2, 1], [1, 0]])
    assert (segments.size, segments.trainable, len(segments)) == (20, 15, 3)
    assert segments.bounds.dtype == np.int64
    assert list(segments)[1] == (slice(10, 12), 2.0, 1.0)
    with pytest.raises(ValueError, match="read-only"):
        segments.bounds[0, 0] = 5
    with pytest.raises(TypeError, match="second time"):
        segments.__init__(3)
    for twin in (pickle.loads(pickle.dumps(segments)), copy.deepcopy(segments)):
        assert twin == segments
    assert segments != Segments(20)
    assert "15 of 20" in repr(segments)


def test_empty_tables():
    assert list(Segments(7)) == [(slice(0, 7), 1.0, 1.0)]
    for table in Segments(0), Segments(7, []), Segments(7, np.empty((0, 2), int), np.empty((0, 2))):
        assert list(table) == []
    w = np.ones(7)
    kernels.sgd_update(w, np.ones(7), segments=Segments(7, []))
    np.testing.assert_array_equal(w, 1)


@pytest.mark.parametrize(
    ("error", "message", "arguments"),
    [
        (TypeError, "size: expected an integer", (3.0,)),
        (TypeError, "size: expected an integer", (True,)),
        (ValueError, "size: expected at least 0", (-1,)),
        (TypeError, "bounds: expected integers", (9, [(0.0, 3.0)])),
        (ValueError, r"bounds: expected shape \(rows, 2\)", (9, [(0, 3, 4)])),
        (ValueError, r"got \(0, 10\)", (9, [(0, 10)])),
        (ValueError, r"got \(-1, 3\)", (9, [(-1, 3)])),
        (ValueError, r"got \(4, 3\)", (9, [(4, 3)])),
        (ValueError, r"disjoint rows, got \(0, 5\) and \(4, 6\)", (9, [(4, 6), (0, 5)])),
        (ValueError, r"factors: expected shape \(1, 2\)", (9, [(0, 3)], [(1, 1), (1, 1)])),
        (ValueError, "factors: expected finite", (9, [(0, 3)], [(np.inf, 1)])),
        (ValueError, "factors: expected finite", (9, [(0, 3)], [(1, -1)])),
        (ValueError, "factors: expected finite", (9, [(0, 3)], [(np.nan, 1)])),
    ],
)
def test_bad_tables(error, message, arguments):
    with pytest.raises(error, match=message):
        Segments(*arguments)
