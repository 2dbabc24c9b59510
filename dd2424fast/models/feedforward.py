"""Networks of fully connected layers."""

import numpy as np

from ..configuration import positive_integer, real_in
from ..nn import BatchNorm, Dropout, Linear, ReLU, Sequential


class MLP(Sequential):
    """A multi-layer perceptron with ReLU; without hidden layers, the softmax classifier.

    Each hidden layer is Linear, BatchNorm (where asked for), ReLU, Dropout (where asked for).

    Parameters
    ----------
    in_features : int
    hidden : sequence of int
        Sizes of the hidden layers; empty for a linear classifier.
    out_features : int
    batch_norm : bool
    dropout : float
        Probability in [0, 1).
    init : {"default", "he", "glorot"}
        See nn.Linear.
    dtype : {"float32", "float64"}
    seed : int, optional
    """

    def __init__(
        self,
        in_features,
        hidden=(50,),
        out_features=10,
        batch_norm=False,
        dropout=0.0,
        init="default",
        *,
        dtype="float32",
        seed=None,
    ):
        positive_integer("in_features", in_features)
        positive_integer("out_features", out_features)
        dropout = real_in("dropout", dropout, 0, 1, include_high=False)
        if not np.iterable(hidden) or isinstance(hidden, str):
            like = f"({hidden},)" if hasattr(hidden, "__index__") else "(50,)"
            raise TypeError(f"hidden: expected a sequence of layer sizes such as {like}, got {hidden!r}")
        hidden = tuple(positive_integer(f"hidden[{i}]", width) for i, width in enumerate(hidden))
        self.config["hidden"] = hidden
        layers, size = [], in_features
        for width in hidden:
            layers.append(Linear(size, width, init=init))
            if batch_norm:
                layers.append(BatchNorm(width))
            layers.append(ReLU())
            if dropout:
                layers.append(Dropout(dropout))
            size = width
        super().__init__(*layers, Linear(size, out_features, init=init), dtype=dtype, seed=seed)
