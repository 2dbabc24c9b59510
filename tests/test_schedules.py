"""Schedules against their formulas and PyTorch's."""

import numpy as np
import pytest

from dd2424fast import schedules


def trace(schedule, updates):
    return np.array([schedule(update) for update in range(updates)])


def test_known_values():
    assert schedules.Step(1.0, 3, 0.1)(2) == 1.0
    assert schedules.Step(1.0, 3, 0.1)(6) == pytest.approx(0.01)
    assert schedules.Exponential(2.0, 0.5)(3) == 0.25
    cosine = schedules.Cosine(1.0, 10, low=0.2)
    assert [cosine(0), cosine(5), cosine(10), cosine(25)] == pytest.approx([1.0, 0.6, 0.2, 0.2])
    warm = schedules.Warmup(0.4, 4)
    np.testing.assert_allclose(trace(warm, 6), [0.1, 0.2, 0.3, 0.4, 0.4, 0.4])
    after = schedules.Warmup(schedules.Step(1.0, 2, 0.5), 2)
    np.testing.assert_allclose(trace(after, 7), [0.5, 1.0, 1.0, 1.0, 0.5, 0.5, 0.25])


def test_the_courses_triangle():
    """Assignment 1, exercise 3: eta_min 1e-5, eta_max 1e-1, n_s 500;
    the rate at the corners of two cycles and between."""
    cyclic = schedules.Cyclic(1e-5, 1e-1, 500)
    assert [cyclic(t) for t in (0, 500, 1000, 1500, 2000)] == pytest.approx([1e-5, 1e-1, 1e-5, 1e-1, 1e-5])
    assert cyclic(250) == pytest.approx((1e-5 + 1e-1) / 2)
    assert cyclic.cycle(1250) == (1, 250, 1000)


def test_growth_doubles_the_steps_and_decay_lowers_the_peaks():
    cyclic = schedules.Cyclic(0.0, 1.0, 10, growth=2, decay=0.5)
    minima, peaks = (0, 20, 60, 140), (10, 40, 100)
    assert [cyclic(t) for t in minima] == pytest.approx([0.0] * 4)
    assert [cyclic(t) for t in peaks] == pytest.approx([1.0, 0.5, 0.25])
    restarts = schedules.CosineWarmRestarts(1.0, 10, growth=2)
    assert [restarts(t) for t in (0, 10, 30, 5, 20)] == pytest.approx([1.0, 1.0, 1.0, 0.5, 0.5])


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (schedules.Step(0.1, 7, 0.3), lambda o, s: s.StepLR(o, 7, 0.3)),
        (schedules.Exponential(0.1, 0.9), lambda o, s: s.ExponentialLR(o, 0.9)),
        (schedules.Cosine(0.1, 40, 0.01), lambda o, s: s.CosineAnnealingLR(o, 40, 0.01)),
        (schedules.CosineWarmRestarts(0.1, 6, 2, 0.01), lambda o, s: s.CosineAnnealingWarmRestarts(o, 6, 2, 0.01)),
        (schedules.Cyclic(0.01, 0.1, 5), lambda o, s: s.CyclicLR(o, 0.01, 0.1, 5, cycle_momentum=False)),
        (schedules.OneCycle(0.1, 40), lambda o, s: s.OneCycleLR(o, 0.1, 40, cycle_momentum=False)),
    ],
    ids=lambda value: type(value).__name__,
)
def test_pytorchs_traces(ours, theirs):
    torch = pytest.importorskip("torch")
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)
    scheduler = theirs(optimizer, torch.optim.lr_scheduler)
    expected = []
    for _ in range(40):
        expected.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    np.testing.assert_allclose(trace(ours, 40), expected, rtol=1e-9)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: schedules.Step(-1, 3), r"lr: expected a number in \[0, inf\), got -1"),
        (lambda: schedules.Cosine(0.1, 0), "updates: expected an integer of at least 1"),
        (lambda: schedules.Cyclic(0.1, 0.01, 5), "high: expected at least low=0.1, got 0.01"),
        (lambda: schedules.Cyclic(0.1, 0.2, 5, mode="square"), "mode: expected 'triangular', got 'square'"),
        (lambda: schedules.OneCycle(0.1, 10, warm_part=0), r"warm_part: expected a number in \(0, 1\)"),
    ],
)
def test_bad_arguments(make, message):
    with pytest.raises(ValueError, match=message):
        make()
