"""Activations element by element; compiled for float32 and float64. Arguments come checked (kernels/activations.py)."""
from dd2424fast.kernels._checks import ACTIVATIONS

include "vec.pxi"
include "activation.pxi"
include "activation_pass.pxi"


def activation_forward(cnp.ndarray z, activation, cnp.ndarray out):
    activation_pass(ACTIVATIONS[activation], FORWARD, data(z), NULL, data(out), cnp.PyArray_SIZE(z))
    return out


def activation_backward(cnp.ndarray dy, cnp.ndarray saved, activation, cnp.ndarray out):
    activation_pass(ACTIVATIONS[activation], BACKWARD, data(dy), data(saved), data(out), cnp.PyArray_SIZE(dy))
    return out


def residual_add_forward(cnp.ndarray x, cnp.ndarray skip, activation, cnp.ndarray out):
    activation_pass(ACTIVATIONS[activation], SUM, data(x), data(skip), data(out), cnp.PyArray_SIZE(x))
    return out
