"""What several test files need."""

import numpy as np
import pytest

import dd2424fast as dd


@pytest.fixture
def problem():
    """A small classification problem: 120 rows of 7 features in 4 classes that a network can tell apart."""
    rng = np.random.default_rng(5)
    y = rng.integers(0, 4, 120)
    x = rng.standard_normal((4, 7))[y] * 2 + rng.standard_normal((120, 7))
    return x.astype("float32"), y


@pytest.fixture
def make_trainer():
    """A function that makes a trainer of a small network with every kind of layer; equal arguments, equal trainers."""

    def make(optimizer=None, dtype="float32", model_seed=3, **arguments):
        model = dd.models.MLP(7, (11, 5), 4, batch_norm=True, dropout=0.2, dtype=dtype, seed=model_seed)
        return dd.Trainer(model, optimizer or dd.optim.Adam(0.01, weight_decay=1e-3), seed=9, **arguments)

    return make
