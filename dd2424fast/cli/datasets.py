"""Data sets by the names that `--data` takes, and the statistics that stand beside a model."""

import warnings
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

import dd2424fast as dd

from ..data.cifar10 import URL
from .common import say


@dataclass
class DataSet:
    """Images of uint8 pixels, (n, height, width, channels) or as rows (n, numbers), with integer labels."""

    name: str
    x: np.ndarray
    y: np.ndarray
    x_test: np.ndarray
    y_test: np.ndarray
    classes: tuple

    def as_rows(self):
        """The same, every image a row."""
        return replace(self, x=_rows(self.x), x_test=_rows(self.x_test))

    def __str__(self):
        size = " x ".join(f"{length:,}" for length in self.x.shape[1:])
        return f"{self.name}: {len(self.x):,} training and {len(self.x_test):,} test images of {size} numbers"


def _rows(images):
    return images.reshape(len(images), -1)


def load(name, batches=None):
    """Load "digits", or CIFAR-10 from a folder or an archive."""
    # A folder may be called digits; ./digits names it.
    if name == "digits":
        if batches is not None:
            raise ValueError("--batches: only CIFAR-10 comes in batches")
        # Split by a seed of its own, so that `evaluate` never tests on what any `train` has seen.
        (x, y), (x_test, y_test) = dd.data.load_digits(seed=0)
        classes = tuple("0123456789")
    else:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            (x, y), (x_test, y_test) = _cifar10(name, **({} if batches is None else {"batches": batches}))
        for warning in caught:
            say(warning.message)
        name, classes = "CIFAR-10", dd.data.CIFAR_CLASSES
    return DataSet(name, x, y, x_test, y_test, classes)


def _cifar10(path, **options):
    try:
        return dd.data.load_cifar10(path, **options)
    except FileNotFoundError as error:
        nothing = str(error).startswith("no CIFAR-10 files")
        how = f"; to fetch them (170 MB): curl -O {URL}, then --data {URL.rpartition('/')[2]}" if nothing else ""
        raise FileNotFoundError(f"--data: {error}{how}") from None


def standardizer_path(model_path):
    """MODEL.standardizer.safetensors for MODEL.safetensors."""
    return Path(model_path).with_name(Path(model_path).name.removesuffix(".safetensors") + ".standardizer.safetensors")


def load_standardizer(path):
    if not path.is_file():
        raise FileNotFoundError(
            f"{path}: there is no such file; `dd2424fast train --output` writes it beside the model"
        )
    return dd.data.Standardizer.load(path)
