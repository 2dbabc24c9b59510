"""An MLPClassifier or MLPRegressor as a safetensors file: what it predicts with and what its training goes on with."""

import numpy as np
from sklearn.preprocessing import LabelBinarizer
from sklearn.utils.validation import check_is_fitted

from .. import kernels
from ..files import read, write
from .mlp_network import Network
from .mlp_training import Epoch
from .shared import from_plain, to_plain

NUMBERS = (
    "n_features_in_",
    "n_outputs_",
    "n_layers_",
    "out_activation_",
    "n_iter_",
    "t_",
    "loss_",
    "best_loss_",
    "loss_curve_",
    "validation_scores_",
    "best_validation_score_",
    "_no_improvement_count",
    "_dropout_seed",
    "_first_rate",
    "_hidden",
    "_stopped",
    "_y_outputs",
)
SOLVERS = {"sgd": kernels.SGDSolver, "adam": kernels.AdamSolver}


class MLPFiles:
    """save and load."""

    def save(self, path):
        """Write the fitted estimator to a safetensors file, whole or not at all; nothing is pickled.

        Raises
        ------
        TypeError
            A parameter cannot be written: a function, a RandomState.
        """
        check_is_fitted(self, "coefs_")
        network = self._current()
        header = {
            "parameters": {name: to_plain(name, value) for name, value in self.get_params(deep=False).items()},
            "plan": [network.plan.sizes, network.plan.activation, network.plan.output, network.plan.batch_norm],
            "numbers": {name: to_plain(name, getattr(self, name)) for name in NUMBERS if hasattr(self, name)},
        }
        tensors = {"parameters": network.parameters, "buffers": network.buffers}
        for name in ("feature_names_in_", "classes_"):
            if hasattr(self, name):
                header[name] = getattr(self, name).tolist(), getattr(self, name).dtype.str
        if hasattr(self, "classes_"):
            header["several"] = self._several
        self._write_training(tensors, header)
        write(path, type(self).__name__, tensors, header)

    def _write_training(self, tensors, header):
        if self._optimizer is not None:
            state = vars(self._optimizer)
            tensors.update({f"optimizer.{name}": value for name, value in state.items() if np.ndim(value)})
            header["optimizer"] = {name: to_plain(name, value) for name, value in state.items() if not np.ndim(value)}
            kinds = {kind: name for name, kind in SOLVERS.items()}
            header["optimizer"]["kind"] = kinds[type(self._optimizer)]
        if self._random_state is not None:
            _, tensors["random.key"], *rest = self._random_state.get_state()
            header["random"] = rest
        if self._epoch is not None:
            tensors["epoch.order"] = self._epoch.order
            header["epoch"] = [self._epoch.position, self._epoch.loss, self._epoch.penalty]
        if self._split is not None:
            header["split"], tensors["split.train"], tensors["split.held"] = self._split
        for name in ("best", "last"):
            if getattr(self, f"_{name}") is not None:
                tensors[f"{name}.parameters"], tensors[f"{name}.buffers"] = getattr(self, f"_{name}")

    @classmethod
    def load(cls, path):
        """Read an estimator that `save` wrote; with `warm_start` its training goes on bit for bit."""
        tensors, header = read(path, cls.__name__)
        self = cls(**{name: from_plain(value) for name, value in header["parameters"].items()})
        for name, value in header["numbers"].items():
            setattr(self, name, tuple(value) if name in ("_hidden", "_stopped") and value is not None else value)
        for name in ("feature_names_in_", "classes_"):
            if name in header:
                values, dtype = header[name]
                setattr(self, name, np.array(values, dtype=dtype))
        if "several" in header:
            some = np.eye(len(self.classes_), dtype=int) if header["several"] else self.classes_
            self._label_binarizer = LabelBinarizer().fit(some)
        self._read_training(tensors, header)
        sizes, activation, output, batch_norm = header["plan"]
        plan = kernels.MLPPlan(sizes, activation, output, batch_norm, self.dropout)
        self._show(Network(plan, tensors["parameters"], tensors["buffers"]))
        return self

    def _read_training(self, tensors, header):
        if "optimizer" in header:
            state = dict(header["optimizer"])
            vectors = {k.removeprefix("optimizer."): v for k, v in tensors.items() if k.startswith("optimizer.")}
            self._optimizer = SOLVERS[state.pop("kind")](**vectors, **state)
        if "random" in header:
            self._random_state = np.random.RandomState()
            self._random_state.set_state(("MT19937", tensors["random.key"], *header["random"]))
        if "epoch" in header:
            self._epoch = Epoch(tensors["epoch.order"], *header["epoch"])
        if "split" in header:
            self._split = tuple(header["split"]), tensors["split.train"], tensors["split.held"]
        for name in ("best", "last"):
            if f"{name}.parameters" in tensors:
                setattr(self, f"_{name}", (tensors[f"{name}.parameters"], tensors[f"{name}.buffers"]))
