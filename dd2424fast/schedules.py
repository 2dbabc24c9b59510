"""Learning-rate schedules: pure functions from the number of the update (from 0) to the learning rate.

All lengths are in updates. A schedule holds no state, so a resumed training needs no more than its counter.
"""

import math
import sys

from .configuration import Configured, positive_integer, real_in


class Schedule(Configured):
    """Base: `schedule(update)` is the learning rate of that update.

    Attributes
    ----------
    has_cycles : bool
        Whether the rate falls to a minimum again and again.
    """

    has_cycles = False

    def __call__(self, update):
        raise NotImplementedError

    def ends_cycle(self, update):
        """Whether this update is a cycle's last one: the rate is about to rise again."""
        return False


class _Cycles(Schedule):
    """Base of the schedules that begin again after `_length` updates, each run `growth` times as long."""

    has_cycles = True

    def cycle(self, update):
        """(number of the cycle, updates since its start, its length)."""
        return _cycle(update, self._length, self.growth)

    def ends_cycle(self, update):
        _, since, length = self.cycle(update)
        return since == length - 1


def _rate(name, value):
    return real_in(name, value, 0, math.inf, include_high=False)


def _grown(lr, factor, times):
    """lr * factor^times, at most the largest float."""
    try:
        return min(lr * factor**times, sys.float_info.max) if lr else 0.0
    except OverflowError:
        return sys.float_info.max


class Step(Schedule):
    """lr * factor^floor(update / every)."""

    def __init__(self, lr, every, factor=0.1):
        self.lr = _rate("lr", lr)
        self.every = positive_integer("every", every)
        self.factor = _rate("factor", factor)

    def __call__(self, update):
        return _grown(self.lr, self.factor, update // self.every)


class Exponential(Schedule):
    """lr * factor^update."""

    def __init__(self, lr, factor):
        self.lr = _rate("lr", lr)
        self.factor = _rate("factor", factor)

    def __call__(self, update):
        return _grown(self.lr, self.factor, update)


class Cosine(Schedule):
    """From lr down to low over `updates`, along half a cosine, and low from there on (Loshchilov and Hutter 2017,
    eq. 5)."""

    def __init__(self, lr, updates, low=0.0):
        self.lr = _rate("lr", lr)
        self.updates = positive_integer("updates", updates)
        self.low = _rate("low", low)

    def __call__(self, update):
        part = min(update, self.updates) / self.updates
        return self.low + (self.lr - self.low) * (1 + math.cos(math.pi * part)) / 2


class CosineWarmRestarts(_Cycles):
    """Cosine from lr to low, starting again after `updates`, each run `growth` times as long (Loshchilov and Hutter
    2017, arXiv:1608.03983)."""

    def __init__(self, lr, updates, growth=1, low=0.0):
        self.lr = _rate("lr", lr)
        self.updates = self._length = positive_integer("updates", updates)
        self.growth = positive_integer("growth", growth)
        self.low = _rate("low", low)

    def __call__(self, update):
        _, since, length = self.cycle(update)
        return self.low + (self.lr - self.low) * (1 + math.cos(math.pi * since / length)) / 2


class Cyclic(_Cycles):
    """The triangular cyclical rate (Smith 2017, arXiv:1506.01186): from low up to high in step_size updates, and down
    again.

    Parameters
    ----------
    low, high : float
    step_size : int
        Updates of half a cycle.
    mode : {"triangular"}
    growth : int
        Each cycle's step_size is `growth` times the one before (2: the course's doubling).
    decay : float
        Each cycle's height high - low is `decay` times the one before.
    """

    def __init__(self, low, high, step_size, mode="triangular", growth=1, decay=1.0):
        self.low = _rate("low", low)
        self.high = _rate("high", high)
        if self.high < self.low:
            raise ValueError(f"high: expected at least low={low}, got {high}")
        self.step_size = positive_integer("step_size", step_size)
        self._length = 2 * self.step_size
        if not isinstance(mode, str) or mode != "triangular":
            raise ValueError(f"mode: expected 'triangular', got {mode!r}")
        self.growth = positive_integer("growth", growth)
        self.decay = real_in("decay", decay, 0, 1, include_low=False)

    def __call__(self, update):
        number, since, length = self.cycle(update)
        half = length / 2
        height = (self.high - self.low) * self.decay**number
        return self.low + height * (1 - abs(since - half) / half)


def _cycle(update, length, growth):
    """Where `update` lies among cycles of `length`, `length * growth`, ...: (number, updates since its start,
    its length)."""
    if growth == 1:
        return update // length, update % length, length
    number = 0
    while update >= length:
        update -= length
        length *= growth
        number += 1
    return number, update, length


class OneCycle(Schedule):
    """Up from lr / start_divisor to lr, then down to lr / (start_divisor * final_divisor), along cosines (Smith and
    Topin 2018).

    Parameters
    ----------
    lr : float
        The highest rate.
    updates : int
        The whole length; later updates keep the final rate.
    warm_part : float
        Part of the length spent rising.
    """

    def __init__(self, lr, updates, warm_part=0.3, start_divisor=25.0, final_divisor=1e4):
        self.lr = _rate("lr", lr)
        self.updates = positive_integer("updates", updates)
        self.warm_part = real_in("warm_part", warm_part, 0, 1, include_low=False, include_high=False)
        self.start_divisor = real_in("start_divisor", start_divisor, 1, math.inf)
        self.final_divisor = real_in("final_divisor", final_divisor, 1, math.inf)

    def __call__(self, update):
        first = self.lr / self.start_divisor
        top = self.warm_part * self.updates - 1
        last = self.updates - 1
        if update <= top and top > 0:
            return _between(first, self.lr, update / top)
        part = (update - top) / (last - top) if last > top else 1.0
        return _between(self.lr, first / self.final_divisor, min(part, 1.0))


def _between(start, stop, part):
    return stop + (start - stop) * (1 + math.cos(math.pi * part)) / 2


class Warmup(Schedule):
    """Rise linearly to another schedule's first rate over `updates`, then follow that schedule.

    Parameters
    ----------
    after : Schedule, or float for a constant rate
    updates : int
    """

    def __init__(self, after, updates):
        if not callable(after):
            after = _rate("after", after)
        self.after = after
        self.updates = positive_integer("updates", updates)

    def __call__(self, update):
        if update < self.updates:
            return self._following(0) * (update + 1) / self.updates
        return self._following(update - self.updates)

    @property
    def has_cycles(self):
        return getattr(self.after, "has_cycles", False)

    def ends_cycle(self, update):
        return self.has_cycles and update >= self.updates and self.after.ends_cycle(update - self.updates)

    def _following(self, update):
        return self.after(update) if callable(self.after) else self.after
