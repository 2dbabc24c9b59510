"""A ConvNetClassifier as a safetensors file: what it predicts with and what its training goes on with."""

import numpy as np
from sklearn.utils.validation import check_is_fitted

from ..files import read, write
from ..history import History
from .images_training import NETWORK, network
from .shared import from_plain, to_plain


class ImageFiles:
    """save and load."""

    def save(self, path):
        """Write the fitted classifier to a safetensors file, whole or not at all; nothing is pickled.

        Raises
        ------
        TypeError
            A parameter cannot be written: a function, a RandomState.
        """
        check_is_fitted(self, "model_")
        kept, training = self._training
        config = self.model_[1].config
        header = {
            "parameters": {name: to_plain(name, value) for name, value in self.get_params(deep=False).items()},
            "network": {name: to_plain(name, config[name]) for name in NETWORK},
            "classes": self.classes_.tolist(),
            "classes_dtype": self.classes_.dtype.str,
            "image": self.image_,
            "n_iter": self.n_iter_,
            "training": training,
            "stopped": self._stopped,
        }
        tensors = {**self.model_.state_dict(), **{f"training.{name}": a for name, a in kept.items()}}
        if self._last is not None:
            header["last"], tensors["last"] = self._last
        write(path, type(self).__name__, tensors, header)

    @classmethod
    def load(cls, path):
        """Read a classifier that `save` wrote; its training goes on bit for bit."""
        tensors, header = read(path, cls.__name__)
        self = cls(**{name: from_plain(value) for name, value in header["parameters"].items()})
        classes = np.array(header["classes"], dtype=header["classes_dtype"])
        shape = {name: from_plain(value) for name, value in header["network"].items()}
        model = network(tuple(header["image"]), len(classes), 0, **shape)
        if "last" in header:
            self._last = header["last"], tensors.pop("last")
        kept = {name: tensors.pop(name) for name in list(tensors) if name.startswith("training.")}
        self._training = {name.removeprefix("training."): a for name, a in kept.items()}, header["training"]
        self._stopped = header["stopped"] and tuple(header["stopped"])
        model.load_state_dict(tensors)
        self._tell(model, classes, History(header["training"]["history"]), header["n_iter"])
        return self
