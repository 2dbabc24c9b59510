"""Objects that know the arguments they were made with."""

import contextlib
import difflib
import inspect
import math
import numbers
import operator

import numpy as np


def suggestion(name, known):
    """Return " (did you mean 'x'?)" for the nearest known name, or an empty string."""
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f" (did you mean {near[0]!r}?)" if near else ""


class Configured:
    """Base of models, layers, optimizers, schedules and losses: remembers its constructor's arguments.

    From them come the printed form, the description in a saved file, and an error for an unknown keyword that suggests
    the right one.

    Attributes
    ----------
    config : dict
        Every constructor argument by name, defaults filled in.
    """

    def __new__(cls, *args, **kwargs):
        signature = _signature(cls)
        try:
            bound = signature.bind(None, *args, **kwargs)
        except TypeError as error:
            unknown = [name for name in kwargs if name not in signature.parameters]
            if not unknown:
                raise TypeError(f"{cls.__name__}: {error}") from None
            known = [name for name in signature.parameters if name != "self"]
            hint = f"{suggestion(unknown[0], known)}; it takes {', '.join(known) or 'none'}"
            raise TypeError(f"{cls.__name__}: unknown keyword {unknown[0]!r}{hint}") from None
        bound.apply_defaults()
        self = super().__new__(cls)
        self.config = dict(list(bound.arguments.items())[1:])
        return self

    def __getnewargs_ex__(self):
        # Copying and pickling make the object anew through __new__, which wants its arguments.
        positional, named = [], {}
        for name, parameter in _signature(type(self)).parameters.items():
            if parameter.kind is parameter.VAR_POSITIONAL:
                positional.extend(self.config[name])
            elif name in self.config:
                named[name] = self.config[name]
        return tuple(positional), named

    def __repr__(self):
        parts = []
        defaults = _signature(type(self)).parameters
        for name, value in self.config.items():
            if defaults[name].kind is inspect.Parameter.VAR_POSITIONAL:
                parts.extend(map(repr, value))
            elif not _same(value, defaults[name].default):
                parts.append(f"{name}={value!r}")
        return f"{type(self).__name__}({', '.join(parts)})"


def _signature(cls):
    """What a constructor takes; that of object says that it takes anything, and takes nothing."""
    if cls.__init__ is not object.__init__:
        return inspect.signature(cls.__init__)
    return inspect.Signature([inspect.Parameter("self", inspect.Parameter.POSITIONAL_ONLY)])


def _same(value, default):
    """Whether an argument is its default; an array never is."""
    return (
        value is default
        or (np.ndim(value) == 0 == np.ndim(default) and bool(value == default))
        or (isinstance(value, tuple) and isinstance(default, tuple) and value == default)
    )


def integer_in(name, value, low, high=2**63 - 1):
    """Return `value` as an int within the interval, or raise an error that names the argument."""
    expected = f"an integer of at least {low}" if high == 2**63 - 1 else f"an integer from {low} to {high}"
    try:
        if isinstance(value, bool):
            raise TypeError
        number = operator.index(value)
    except TypeError:
        raise TypeError(f"{name}: expected {expected}, got {value!r}") from None
    if not low <= number <= high:
        raise ValueError(f"{name}: expected {expected}, got {value}")
    return number


def positive_integer(name, value):
    """Return `value` as an int of at least 1, or raise an error that names the argument."""
    return integer_in(name, value, 1)


def real_in(name, value, low, high, include_low=True, include_high=True):
    """Return `value` as a float within the interval, or raise an error that names the argument."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"{name}: expected a number, got {value!r}")
    try:
        number = float(value)
    except OverflowError:  # an int that no float holds
        number = math.nan
    above = number >= low if include_low else number > low
    below = number <= high if include_high else number < high
    if not (above and below):
        interval = f"{'[' if include_low else '('}{low:g}, {high:g}{']' if include_high else ')'}"
        raise ValueError(f"{name}: expected a number in {interval}, got {value!r}")
    return number


def columns_hint(x, y=None, features=None):
    """What to say behind an error where the shapes of x, and of y or the features of a sample, look as if samples were
    columns, as the course has them; elsewhere nothing."""
    if features is None:
        turned = len(x) == 2 and len(y) in (1, 2) and y[0] != x[0] and y[-1] > 1 and y[-1] in x
    else:
        turned = len(x) == 2 and x[0] == features != x[1]
    return "; if each column is a sample: dd.data.from_columns(X, Y) makes rows of them" if turned else ""


@contextlib.contextmanager
def hinting_at_columns(x, y=None, features=None):
    """Add that hint to scikit-learn's errors about arrays; where the features are known they alone tell."""
    try:
        yield
    except ValueError as error:
        shapes = [getattr(a, "shape", None) for a in (x, y)]
        told = shapes[0] is not None and (features is not None or shapes[1] is not None)
        hint = columns_hint(*shapes, features) if told else ""
        if not hint:
            raise
        raise ValueError(f"{str(error).rstrip('.')}{hint}") from None


def array_of(name, value):
    """Return `value` as an ndarray, or raise an error that names the argument."""
    try:
        return np.asarray(value)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name}: expected an array of numbers, got {type(value).__name__} ({error})") from None
