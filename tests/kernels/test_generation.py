"""Generating tokens: the choice against its definition, the loop against the layers."""

import numpy as np
import pytest

import dd2424fast as dd
from dd2424fast import kernels as k
from dd2424fast.kernels import _team

GATES = {"rnn": 1, "gru": 3, "lstm": 4}


@pytest.fixture(autouse=True)
def _threads():
    before = _team.get_num_threads()
    yield
    _team.set_num_threads(before)


def problem(cell="gru", dtype="float64", N=3, L=2, H=11, V=13, T=20, seed=0, bias=True):
    rng = np.random.default_rng(seed)
    width = GATES[cell] * H

    def draw(*shape):
        return rng.standard_normal(shape).astype(dtype)

    layers = [
        (
            draw(H if i else V, width),
            draw(H, width) / np.sqrt(H),
            draw(width) if bias else None,
            draw(width) if bias else None,
        )
        for i in range(L)
    ]
    states = tuple(draw(L, N, H) for _ in range(2 if cell == "lstm" else 1))
    return {
        "cell": cell,
        "layers": [tuple(None if a is None else a.astype(dtype) for a in layer) for layer in layers],
        "W_out": draw(H, V),
        "b_out": draw(V) if bias else None,
        "states": states,
        "tokens": rng.integers(0, V, N),
        "draws": rng.random((N, T)),
    }


def run(backend, call, **more):
    call = {**call, **more, "states": tuple(s.copy() for s in call["states"])}
    if call.get("seen") is not None:
        call["seen"] = call["seen"].copy()
    out = getattr(k.generate_tokens, backend)(**call)
    return out, call["states"], call.get("seen")


SETTINGS = [
    {},
    {"temperature": 0},
    {"temperature": 0.3},
    {"top_k": 1},
    {"top_k": 4, "temperature": 2.0},
    {"top_p": 0.6},
    {"top_p": 0.01},
    {"top_k": 5, "top_p": 0.7},
    {"repetition_penalty": 1.7},
    {"repetition_penalty": 0.5, "top_p": 0.9},
    {"banned": np.arange(13) % 3 == 0},
]


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
@pytest.mark.parametrize("cell", list(GATES))
def test_fast_equals_definition(cell, settings):
    call = problem(cell)
    settings = {**settings, "seen": np.random.default_rng(1).random((3, 13)) < 0.3}
    ref, ref_states, ref_seen = run("numpy", call, **settings)
    assert ref.dtype == np.int64
    for threads in (1, 2, 3):
        _team.set_num_threads(threads)
        got, states, seen = run("fast", call, **settings)
        np.testing.assert_array_equal(got, ref)
        np.testing.assert_array_equal(seen, ref_seen)
        for a, b in zip(states, ref_states, strict=True):
            np.testing.assert_allclose(a, b, rtol=0, atol=1e-11)
    if "banned" in settings:
        assert not settings["banned"][got].any()


@pytest.mark.parametrize("backend", ["numpy", "fast"])
def test_a_sequence_ends_with_the_stop_token(backend):
    call = problem()
    free = run(backend, call)[0]
    stop = int(free[1, 6])
    got = run(backend, call, stop=stop)[0]
    for row, before in zip(got, free, strict=True):
        end = np.flatnonzero(before == stop)[0] if stop in before else len(before)
        np.testing.assert_array_equal(row[:end], before[:end])
        assert (row[end:] == stop).all()


@pytest.mark.parametrize(("H", "V", "L"), [(1, 1, 1), (37, 80, 1), (100, 257, 3)])
@pytest.mark.parametrize("cell", list(GATES))
def test_float32(cell, H, V, L):
    """The most probable tokens, which rounding moves only where two are nearly alike."""
    call = problem(cell, "float32", 2, L, H, V, 30, bias=H > 1)
    got, states, _ = run("fast", call, temperature=0)
    ref, ref_states, _ = run("numpy", call, temperature=0)
    np.testing.assert_array_equal(got, ref)
    for a, b in zip(states, ref_states, strict=True):
        assert a.dtype == np.float32
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-4)


@pytest.mark.parametrize("backend", ["numpy", "fast"])
def test_frequencies_are_the_probabilities(backend):
    """A model without memory: only the output's bias counts."""
    V, T = 5, 4000
    logits = np.log([0.4, 0.3, 0.2, 0.06, 0.04])
    call = problem("rnn", N=1, L=1, H=3, V=V, T=T)
    call |= {"W_out": np.zeros((3, V)), "b_out": logits}

    def frequencies(**settings):
        return np.bincount(run(backend, call, **settings)[0][0], minlength=V) / T

    np.testing.assert_allclose(frequencies(), np.exp(logits), atol=0.03)
    np.testing.assert_allclose(frequencies(top_k=2), [4 / 7, 3 / 7, 0, 0, 0], atol=0.03)
    # 0.4 + 0.3 does not reach 0.75: the token that crosses it is in
    np.testing.assert_allclose(frequencies(top_p=0.75), np.array([4, 3, 2, 0, 0]) / 9, atol=0.03)
    np.testing.assert_allclose(frequencies(top_p=0.69), np.array([4, 3, 0, 0, 0]) / 7, atol=0.03)
    sharp = np.exp(2 * logits) / np.exp(2 * logits).sum()
    np.testing.assert_allclose(frequencies(temperature=0.5), sharp, atol=0.03)
    assert frequencies(temperature=0)[0] == 1


@pytest.mark.parametrize("backend", ["numpy", "fast"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_tiny_temperatures_take_the_most_probable(backend, dtype):
    call = problem(dtype=dtype)
    banned = np.arange(13) % 2 == 0
    greedy = run(backend, call, temperature=0, banned=banned)[0]
    for temperature in (1e-39, 1e-46, 1e-300):
        np.testing.assert_array_equal(run(backend, call, temperature=temperature, banned=banned)[0], greedy)


@pytest.mark.parametrize("backend", ["numpy", "fast"])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("temperature", [0, 1.0])
def test_logits_that_are_not_finite(backend, bad, temperature):
    call = problem()
    call["b_out"][4] = bad
    with pytest.raises(FloatingPointError, match="not finite"):
        run(backend, call, temperature=temperature)


def test_results_must_not_overlap():
    memory = np.zeros(3 * 13, np.uint8)
    call = problem()
    seen, tokens = memory.view(bool).reshape(3, 13), memory[:24].view(np.int64)
    for change in (
        {"seen": seen, "tokens": tokens},
        {"out": call["states"][0].view(np.int64)[0], "draws": np.zeros((3, 11))},
        {"out": call["tokens"].reshape(3, 1), "draws": np.zeros((3, 1))},
    ):
        with pytest.raises(ValueError, match="overlaps"):
            k.generate_tokens(**{**call, **change})


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"cell": "elman"}, ValueError, "cell: expected one of"),
        ({"layers": []}, TypeError, "layers: expected a sequence"),
        ({"layers": [(1, 2)]}, TypeError, r"layers\[0\]: expected \(W, U, b, bU\)"),
        ({"tokens": np.array([0, 1, 13])}, ValueError, "tokens: expected numbers from 0 to 12"),
        ({"draws": np.ones((3, 4))}, ValueError, r"draws: expected numbers in \[0, 1\)"),
        ({"temperature": -1}, ValueError, "temperature: expected a finite number of at least 0, got -1"),
        ({"temperature": "hot"}, TypeError, "temperature"),
        ({"top_p": 0.0}, ValueError, r"top_p: expected a number in \(0, 1\], got 0.0"),
        ({"top_p": 1.5}, ValueError, "top_p"),
        ({"top_k": -1}, ValueError, "top_k"),
        ({"top_k": 1.5}, TypeError, "top_k"),
        ({"repetition_penalty": 0}, ValueError, "repetition_penalty"),
        ({"repetition_penalty": 2.0}, ValueError, "seen: expected an array"),
        ({"banned": np.ones(13, bool)}, ValueError, "banned: expected at least one token that may be chosen"),
        ({"stop": 13}, ValueError, "stop: expected an integer from -1 to 12"),
        ({"states": ()}, TypeError, "states: expected a tuple of 1"),
    ],
)
def test_bad_arguments(change, error, message):
    with pytest.raises(error, match=message):
        k.generate_tokens(**{**problem(), **change})


# ---- text ------------------------------------------------------------------------------------------------------------

TEXT = "the quick brown fox jumps over the lazy dog. " * 30


@pytest.fixture(scope="module")
def trained():
    corpus = dd.data.TextCorpus(TEXT, time=20, validation=0)
    model = dd.models.LanguageModel(corpus.vocab_size, "lstm", 40, 8, layers=2, seed=1)
    dd.Trainer(model, dd.optim.Adam(0.01), clip_value=5.0).fit(corpus, epochs=30, batch_size=4, progress=False)
    return model, corpus.tokenizer


def test_a_trained_model_goes_on(trained):
    text = dd.generate(*trained, "the quick brown", 40, temperature=0)
    assert text.startswith(" fox jumps over the lazy dog. the")
    assert len(text) == 40


@pytest.mark.parametrize("backend", ["numpy", "fast"])
def test_prompts_of_any_length_side_by_side(trained, backend):
    prompts = ["t", "the lazy", "fox", "q"]
    with dd.backend(backend):
        together = dd.generate(*trained, prompts, 25, temperature=0)
        assert together == [dd.generate(*trained, prompt, 25, temperature=0) for prompt in prompts]


def test_seeds(trained):
    def text(seed):
        return dd.generate(*trained, "the", 60, temperature=3.0, seed=seed)

    assert text(1) == text(1)
    assert text(1) != text(2)
    assert text(None) != text(None)


def test_the_state_of_training_is_left_alone(trained):
    model, tokenizer = trained
    carried = [s.copy() for s in model._training_work().carried]
    dd.generate(model, tokenizer, "the lazy", 10)
    for a, b in zip(carried, model._training_work().carried, strict=True):
        np.testing.assert_array_equal(a, b)


def test_stop_and_ban(trained):
    assert dd.generate(*trained, "the quick brown", 40, temperature=0, stop=".") == " fox jumps over the lazy dog"
    assert "o" not in dd.generate(*trained, "the quick", 60, banned=["o"], seed=0)


def test_bad_prompts(trained):
    model, tokenizer = trained
    with pytest.raises(ValueError, match="prompt: character 'X' at position 2"):
        dd.generate(model, tokenizer, "thX", 5)
    with pytest.raises(ValueError, match=r"prompts\[0\]: expected at least one token"):
        dd.generate(model, tokenizer, "", 5)
    with pytest.raises(ValueError, match="length"):
        dd.generate(model, tokenizer, "the", 0)
    with pytest.raises(TypeError, match="length"):
        model.generate_ids([[1]], 2.5)
    with pytest.raises(ValueError, match="tokenizer: expected the"):
        dd.generate(model, dd.data.Char("ab"), "a", 5)
    with pytest.raises(ValueError, match="temperature"):
        dd.generate(model, tokenizer, "the", 5, temperature=-0.1)
