"""Layers: parameters and the order of kernels, no arithmetic of their own."""

from .images import AvgPool2d, Conv2d, GlobalAvgPool2d, MaxPool2d
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
from .recurrent import GRU, LSTM, RNN, Embedding
from .sequential import Residual, Sequential

__all__ = [
    "GELU",
    "GRU",
    "LSTM",
    "RNN",
    "Activation",
    "AvgPool2d",
    "BatchNorm",
    "Conv2d",
    "Dropout",
    "Embedding",
    "Flatten",
    "GlobalAvgPool2d",
    "LayerNorm",
    "LeakyReLU",
    "Linear",
    "MaxPool2d",
    "Module",
    "Parameter",
    "ReLU",
    "Residual",
    "Sequential",
    "Sigmoid",
    "Tanh",
]
