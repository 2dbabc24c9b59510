"""Trainings side by side: the same bits, in the items' order, and an end for all of them."""

import threading
import time

import numpy as np
import pytest
from side_threads import interrupted, side_threads

import dd2424fast as dd
from dd2424fast.kernels import _team


def limit():
    """The most threads that a kernel called here takes."""
    found = _team.limit_threads(0)
    _team.limit_threads(found)
    return found


def test_trainings_are_what_each_is_alone(problem, make_trainer):
    x, y = problem

    def train(decay):
        trainer = make_trainer(dd.optim.SGD(0.1, weight_decay=decay), schedule=dd.schedules.Cyclic(1e-3, 0.1, 8))
        trainer.fit((x, y), epochs=4, batch_size=32, progress=False)
        return trainer.model.parameters.copy(), trainer.evaluate((x, y))

    decays = [0.0, 0.01, 0.1, 0.5, 1.0]
    alone = [train(decay) for decay in decays]
    for threads in (1, 2, 8):
        together = dd.side_by_side(train, iter(decays), threads)
        for (weights, found), (expected, of_it) in zip(together, alone, strict=True):
            np.testing.assert_array_equal(weights, expected)
            assert found == of_it
    assert dd.side_by_side(train, []) == []


def test_threads_share_the_cores():
    """Those of the kernels, and within a call those that it has."""
    met = threading.Barrier(2, timeout=20)

    def threads_of(item):
        met.wait()  # both are under way at once
        return limit(), dd.get_backend(), dd.side_by_side(lambda _: limit(), range(3))

    before = dd.get_num_threads()
    try:
        dd.set_num_threads(4)
        with dd.backend("numpy"):
            found = dd.side_by_side(threads_of, range(2))
        assert found == [(2, "numpy", [1, 1, 1])] * 2
        assert dd.side_by_side(lambda _: limit(), [0], threads=3) == [3]
    finally:
        dd.set_num_threads(before)
    assert limit() == 0


@pytest.fixture
def forever(problem, make_trainer):
    """A function that trains without end, and the list of why each training ended."""
    ended = []

    def train(item):
        if item == "fail":
            while len(side_threads()) < 2:
                time.sleep(0.01)
            raise RuntimeError("no luck")
        trainer = make_trainer()
        trainer.fit(problem, epochs=10**6, progress=False, time_budget=30)
        ended.append(trainer.stop_reason)

    return train, ended


def test_an_error_ends_the_trainings_beside_it(forever):
    train, ended = forever
    started = time.monotonic()
    with pytest.raises(RuntimeError, match="no luck"):
        dd.side_by_side(train, ["first", "fail", "third"], threads=2)
    assert time.monotonic() - started < 20
    assert set(ended) == {"interrupted"}
    assert not side_threads()


def test_an_interrupt_ends_all(forever):
    train, ended = forever
    started = time.monotonic()
    with interrupted(), pytest.raises(KeyboardInterrupt):
        dd.side_by_side(train, range(4), threads=2)
    assert time.monotonic() - started < 20
    assert set(ended) == {"interrupted"}
    assert not side_threads()


def test_a_bar_counts(capsys):
    assert dd.side_by_side(str, range(3), progress=True) == ["0", "1", "2"]
    assert "3/3" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changed", "error", "message"),
    [
        ({"function": 3}, TypeError, "function: expected a function of an item, got int"),
        ({"items": 3}, TypeError, "items: expected an iterable, got int"),
        ({"threads": 0}, ValueError, "threads: expected"),
    ],
)
def test_what_is_wrong_is_named(changed, error, message):
    with pytest.raises(error, match=message):
        dd.side_by_side(**{"function": str, "items": [1], **changed})
