"""Activations from two scalar functions of the user's, compiled into one loop over the array each."""

import functools
import math
import numbers
import re
import types

import numpy as np

from ._checks import array, disjoint, result
from ._dispatch import Kernel
from .jit import kernel_jit

__all__ = ["custom_activation", "custom_activation_backward", "custom_activation_forward"]

# Away from the numbers where activations usually have their kinks; the ends reach where most are saturated.
_PROBES = (-6.31, -2.73, -1.37, -0.61, -0.17, 0.13, 0.43, 0.87, 1.71, 3.19, 7.03)
_STEP = 1e-5
_TOLERANCE = 1e-4

# What these hold is fixed by the versions of Python and Numba, which the name of the cache takes in.
_FIXED_MODULES = ("math", "cmath", "numpy")


def custom_activation(f, derivative, check_derivative=True):
    """Make an activation from a scalar function and its derivative.

        forward   y = f(z)
        backward  dz = dy f'(z)

    Parameters
    ----------
    f, derivative : functions of one number
        May use arithmetic, conditionals, `math`, NumPy's scalar functions and other such functions: what Numba
        compiles. Lambdas and closures are welcome; what a closure or a global holds is frozen at the first call.
    check_derivative : bool
        Compare `derivative` with central differences of f at a few points. False is for a derivative that differs on
        purpose, such as a straight-through estimator.

    Returns
    -------
    CustomActivation
        With `forward(z, out=None)` and `backward(dy, z, out=None)`; it pickles if its functions do.

    Raises
    ------
    TypeError
        An argument is not callable or does not return a number. What Numba cannot compile is told at the first call.
    ValueError
        `derivative` is off; the message names the point.

    Example
    -------
    >>> import numpy as np
    >>> softplus = custom_activation(lambda z: np.log1p(np.exp(z)), lambda z: 1 / (1 + np.exp(-z)))
    >>> softplus.forward(np.array([-1.0, 0.0, 1.0])).round(4)
    array([0.3133, 0.6931, 1.3133])
    """
    return CustomActivation(f, derivative, check_derivative)


class CustomActivation:
    """What `custom_activation` returns. It never changes: a copy of it is itself.

    Attributes
    ----------
    f, derivative : functions of one number
    """

    def __init__(self, f, derivative, check_derivative=True):
        for name, function in (("f", f), ("derivative", derivative)):
            if not callable(function):
                raise TypeError(f"{name}: expected a function of one number, got {type(function).__name__}")
            for z in _PROBES:
                _value(name, function, z)
        if check_derivative:
            _check_derivative(f, derivative)
        self.f = f
        self.derivative = derivative
        self._forward = _with_function(_forward_loop, f)
        self._backward = _with_function(_backward_loop, derivative)

    def forward(self, z, out=None):
        """Return f(z), an array of z's shape and dtype; see `custom_activation_forward`."""
        return custom_activation_forward(z, self, out)

    def backward(self, dy, z, out=None):
        """Return dy f'(z), an array of z's shape and dtype; see `custom_activation_backward`."""
        return custom_activation_backward(dy, z, self, out)

    def __repr__(self):
        return f"custom_activation({_shown(self.f)}, {_shown(self.derivative)})"

    def __reduce__(self):
        return custom_activation, (self.f, self.derivative, False)

    def __copy__(self):
        return self

    def __deepcopy__(self, memo):
        return self


def custom_activation_forward(z, activation, out=None):
    """Apply a user's activation element by element: y = f(z).

    Parameters
    ----------
    z : ndarray of any shape, float32 or float64
    activation : CustomActivation
        Made by `custom_activation`.
    out : ndarray of z's shape and dtype, optional
        May be z itself.

    Returns
    -------
    ndarray of z's shape and dtype

    Notes
    -----
    f receives a number of z's dtype and its result is rounded to that dtype. NaN stays NaN, whatever f makes of it.
    Compiled, f computes as C does: where Python's `math` raises an OverflowError or ValueError, the result is inf or
    NaN. The definition calls f as Python, so there it raises; NumPy's functions raise in neither.
    """
    out[...] = _each(activation.f, z)
    return out


def custom_activation_backward(dy, z, activation, out=None):
    """Backward pass of a user's activation: dz = dy f'(z).

    Parameters
    ----------
    dy : ndarray of z's shape and dtype
    z : ndarray of any shape, float32 or float64
        The input of the forward pass.
    activation : CustomActivation
    out : ndarray of z's shape and dtype, optional
        May be dy or z itself.

    Returns
    -------
    ndarray of z's shape and dtype

    Notes
    -----
    As for `custom_activation_forward`; NaN in dy or in z gives NaN.
    """
    return np.multiply(dy, _each(activation.derivative, z), out=out)


def _each(function, z):
    number = z.dtype.type  # vectorize alone hands over Python's floats, which raise at a division by zero
    with np.errstate(all="ignore"):
        return np.vectorize(lambda v: v if v != v else function(number(v)), otypes=[z.dtype])(z)


def _forward_loop(z, out):
    for i in range(z.size):
        v = z[i]
        out[i] = function(v) if v == v else v  # noqa: F821  put among the globals by _with_function


def _backward_loop(dy, z, out):
    for i in range(z.size):
        v = z[i]
        out[i] = dy[i] * (function(v) if v == v else v)  # noqa: F821


def _with_function(loop, function):
    """The loop as a kernel that finds the user's function under the name `function`: Numba then compiles it in."""
    called = kernel_jit(function) if isinstance(function, types.FunctionType) else function
    scope = {"__name__": __name__, "function": called}
    return kernel_jit(types.FunctionType(loop.__code__, scope, loop.__name__), functools.partial(_identity, function))


def _identity(function):
    """A text that is the same only for functions that compute the same, or None where that cannot be told."""
    try:
        return _spelt_out(function)
    except LookupError:
        return None


def _spelt_out(value, scope=None, within=()):
    """All that decides what a function computes, through all that it calls; `within`: the functions that this is of.

    Raises LookupError where it meets something that may differ from process to process, or a function that calls
    itself.
    """
    if isinstance(value, types.FunctionType):
        if value in within:
            raise LookupError(f"{value.__name__} calls itself")
        within = (*within, value)
        cells = tuple(cell.cell_contents for cell in value.__closure__ or ())
        # The module, too: compiled code looks it up by name when it is loaded.
        code = _spelt_out(value.__code__, value.__globals__, within)
        return f"function({value.__module__}, {code}, {_spelt_out((value.__defaults__, cells), None, within)})"
    if isinstance(value, types.CodeType):
        names = [(name, _spelt_out(scope[name], None, within)) for name in value.co_names if name in scope]
        code = value.co_code.hex(), value.co_exceptiontable.hex(), value.co_names, value.co_freevars
        return f"code({code}, {names}, {_spelt_out(value.co_consts, scope, within)})"
    if isinstance(value, tuple):
        return f"({', '.join(_spelt_out(item, scope, within) for item in value)})"
    if value is None or type(value) in (bool, int, float, complex, str):
        return repr(value)
    if isinstance(value, types.ModuleType) and value.__name__ in _FIXED_MODULES:
        return value.__name__
    if isinstance(value, np.ufunc):
        return f"numpy.{value.__name__}"
    if isinstance(value, (types.BuiltinFunctionType, type)) and value.__module__ in ("builtins", *_FIXED_MODULES):
        return f"{value.__module__}.{value.__name__}"
    raise LookupError(type(value).__name__)


def _run(loop, function, *arrays):
    try:
        loop(*(a.reshape(-1) for a in arrays))
    except Exception as error:
        from numba.core.errors import NumbaError

        if not isinstance(error, NumbaError):
            raise
        raise TypeError(f"{_shown(function)}: cannot be compiled by Numba: {_reason(error)}") from error


def _reason(error):
    """The first line of Numba's message that says what is wrong rather than where it was noticed."""
    lines = re.sub("\x1b\\[[0-9;]*m", "", str(error)).splitlines()
    telling = (line.strip() for line in lines if line.strip() and not line.startswith("Failed in "))
    return next(telling, type(error).__name__)


def _shown(function):
    """The function's name, and where it stands."""
    code = getattr(function, "__code__", None)
    name = getattr(function, "__qualname__", None) or repr(function)
    return f"{name} (line {code.co_firstlineno} of {code.co_filename})" if code else name


def _value(name, function, z):
    """function(z) as a float; NaN where it has no value there."""
    try:
        with np.errstate(all="ignore"):
            value = function(np.float64(z))
    except (ArithmeticError, ValueError):
        return math.nan
    except TypeError as error:
        message = f"{name}: expected a function of one number, but {_shown(function)} fails at {z}: {error}"
        raise TypeError(message) from error
    if not isinstance(value, (numbers.Real, np.bool_)):
        raise TypeError(f"{name}: expected {_shown(function)} to return a number, got {type(value).__name__} at {z}")
    return float(value)


def _check_derivative(f, derivative):
    for z in _PROBES:
        below, here, above = (_value("f", f, z + step) for step in (-_STEP, 0, _STEP))
        left, right, central = (here - below) / _STEP, (above - here) / _STEP, (above - below) / (2 * _STEP)
        got = _value("derivative", derivative, z)
        allowed = _TOLERANCE * max(1, abs(central))
        # Where f has no value there is nothing to compare; where left and right differ there is a kink.
        if math.isfinite(central) and abs(right - left) <= allowed and not abs(got - central) <= allowed:
            expected = f"{central:.6g} at z = {z}, the central difference of {_shown(f)}"
            raise ValueError(f"derivative: expected {expected}, got {got:.6g}")


def _check_forward(z, activation, out=None):
    z = array("z", z, np.shape(z))
    _check_activation(activation)
    return z, activation, _result_over(out, z=z)


def _check_backward(dy, z, activation, out=None):
    z = array("z", z, np.shape(z))
    dy = array("dy", dy, z.shape, z.dtype)
    _check_activation(activation)
    return dy, z, activation, _result_over(out, z=z, dy=dy)


def _check_activation(activation):
    if not isinstance(activation, CustomActivation):
        raise TypeError(f"activation: expected one made by custom_activation(), got {type(activation).__name__}")


def _result_over(out, z, **others):
    """`out`, which may be one of the inputs as a whole."""
    out = result("out", out, z.shape, z.dtype)
    for name, x in (("z", z), *others.items()):
        if out is not x:
            disjoint("out", out, name, x)
    return out


def _forward_fast(z, activation, out):
    _run(activation._forward, activation.f, z, out)
    return out


def _backward_fast(dy, z, activation, out):
    _run(activation._backward, activation.derivative, dy, z, out)
    return out


custom_activation_forward = Kernel(
    custom_activation_forward, _forward_fast, _check_forward, traffic=lambda z, activation, out: z.nbytes + out.nbytes
)
custom_activation_backward = Kernel(
    custom_activation_backward, _backward_fast, _check_backward, traffic=lambda dy, z, activation, out: 3 * z.nbytes
)
