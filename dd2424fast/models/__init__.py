"""Whole networks."""

from .feedforward import MLP
from .images import ConvNet, PatchifyNet, ResNet
from .text import LanguageModel

__all__ = ["MLP", "ConvNet", "LanguageModel", "PatchifyNet", "ResNet"]
