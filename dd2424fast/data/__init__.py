"""Data sets, and what prepares them for training."""

from dd2424fast.data.cifar10 import CIFAR_CLASSES, load_cifar10
from dd2424fast.data.digits import load_digits
from dd2424fast.data.preparation import Standardizer, train_validation_split

__all__ = ["CIFAR_CLASSES", "Standardizer", "load_cifar10", "load_digits", "train_validation_split"]
