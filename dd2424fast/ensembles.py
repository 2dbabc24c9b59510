"""Classifiers that answer together: several models, and an image beside its mirror image, by the mean of their
probabilities."""

import numpy as np

from .batches import Batches
from .configuration import positive_integer
from .losses import CrossEntropy, Loss
from .nn.module import Module


def predict_proba(model, x, batch_size=1024, flip=False, loss=None):
    """Return the probabilities that a classifier gives the classes: the softmax of its outputs, or sigmoids.

    Parameters
    ----------
    model : nn.Module
    x : array of shape (batch, ...), as the model takes it
    batch_size : int
    flip : bool
        Take the mean of an image's probabilities and its mirror image's; x is then of shape (batch, height, width,
        channels).
    loss : losses.Loss, optional
        That the model was trained on, and that says what its outputs mean: BinaryCrossEntropy has a sigmoid for each
        class. Default: CrossEntropy.

    Returns
    -------
    ndarray of shape (batch, classes)
    """
    if not isinstance(model, Module):
        raise TypeError(f"model: expected an nn.Module, got {type(model).__name__}")
    x, loss = model._input(x), _classifying(loss)
    p = loss.probabilities(_rows(model.predict(x, batch_size)))
    return with_mirrored(p, model, x, batch_size, loss) if flip else p


def with_mirrored(p, model, x, batch_size, loss):
    """The mean of images' probabilities p and their mirror images'."""
    if np.ndim(x) != 4:
        raise ValueError(f"flip: expected images (batch, height, width, channels) to mirror, got x of {np.shape(x)}")
    mirrored = loss.probabilities(_rows(model.predict(np.ascontiguousarray(x[:, :, ::-1]), batch_size)))
    return (p + mirrored) / 2


def _classifying(loss):
    """A loss whose outputs are a classifier's, by default CrossEntropy."""
    if loss is None:
        return CrossEntropy()
    if not isinstance(loss, Loss):
        raise TypeError(f"loss: expected a losses.Loss, got {type(loss).__name__}")
    if not loss.classifies:
        raise ValueError(f"loss: expected one that classifies, got {loss!r}")
    return loss


def _rows(outputs):
    if outputs.ndim != 2:
        raise ValueError(f"model: expected one that gives outputs (batch, classes), got {outputs.shape}")
    return outputs


class Ensemble:
    """Several classifiers that answer together, by the mean of their probabilities.

    Parameters
    ----------
    models : sequence of nn.Module
        For the same inputs and classes; they are not copied.

    Attributes
    ----------
    models : tuple
    """

    def __init__(self, models):
        if isinstance(models, Module) or not np.iterable(models):
            raise TypeError(f"models: expected a sequence of nn.Module, got {type(models).__name__}")
        self.models = tuple(models)
        if not self.models:
            raise ValueError("models: expected at least one, got none")
        for i, model in enumerate(self.models):
            if not isinstance(model, Module):
                raise TypeError(f"models[{i}]: expected an nn.Module, got {type(model).__name__}")

    def __len__(self):
        return len(self.models)

    def __iter__(self):
        return iter(self.models)

    def __getitem__(self, i):
        return self.models[i]

    def __repr__(self):
        return f"Ensemble({list(self.models)!r})"

    def predict(self, x, batch_size=1024, flip=False, loss=None):
        """Return the probabilities of the classes, the models' mean, of shape (batch, classes). The arguments are
        those of `dd.predict_proba`."""
        batch_size = positive_integer("batch_size", batch_size)
        total = predict_proba(self.models[0], x, batch_size, flip, loss)
        for i, model in enumerate(self.models[1:], 1):
            p = predict_proba(model, x, batch_size, flip, loss)
            if p.shape != total.shape:
                raise ValueError(f"models[{i}]: expected {total.shape[1]} classes, as models[0] has, got {p.shape[1]}")
            total = total + p
        return total / total.dtype.type(len(self.models))

    def evaluate(self, data, batch_size=1000, flip=False, loss=None):
        """Return {"loss": of the mean probabilities in nats, "accuracy": where the targets name classes} over data.

        Parameters
        ----------
        data : (x, y), or an iterable of such batches or of Batch
        batch_size : int
            Of arrays.
        flip, loss
            See `dd.predict_proba`.
        """
        batch_size, loss = positive_integer("batch_size", batch_size), _classifying(loss)
        total = weight = right = rows = 0.0
        for batch in Batches(data, batch_size, None).of_epoch(0, 0):
            outputs = loss.logits(self.predict(batch.x, batch_size, flip, loss))
            share = loss.weight_of(batch.y, batch.sample_weight)
            if not share:
                continue
            total, weight = total + share * loss(outputs, batch.y, batch.sample_weight)[0], weight + share
            correct, counted = loss.correct(outputs, batch.y)
            right, rows = right + correct, rows + counted
        if not weight:
            raise ValueError("data: expected at least one row, and one label in y that counts, got none")
        found = {"loss": total / weight}
        return {**found, "accuracy": right / rows} if rows else found

    def save(self, path):
        """Write all models to one safetensors file, whole or not at all."""
        from .nn.storage import save_models

        save_models(self.models, path)

    @classmethod
    def load(cls, path, *, modules=()):
        """Read an ensemble that `save` wrote; `modules` are layers of your own that its models contain."""
        from .nn.storage import load_models

        return cls(load_models(path, modules))
