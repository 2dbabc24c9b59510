"""Layers: parameters and the order of kernels, no arithmetic of their own."""

from .layers import (
    GELU,
    Activation,
    BatchNorm,
    Dropout,
    Flatten,
    LayerNorm,
    LeakyReLU,
    Linear,
    ReLU,
    Sigmoid,
    Tanh,
)
from .module import Module, Parameter
from .sequential import Sequential

__all__ = [
    "GELU",
    "Activation",
    "BatchNorm",
    "Dropout",
    "Flatten",
    "LayerNorm",
    "LeakyReLU",
    "Linear",
    "Module",
    "Parameter",
    "ReLU",
    "Sequential",
    "Sigmoid",
    "Tanh",
]
