"""A model as a file: its description, from which it is built again, and its state_dict."""

import inspect

import numpy as np

from ..files import read, write
from .module import Module
from .sequential import Sequential


def _description(value, path):
    """A constructor argument as JSON: numbers, text, lists of them, and modules as {"class", "arguments"}."""
    if isinstance(value, Module):
        kind, config = type(value).__name__, value.config
        if isinstance(value, Sequential):
            kind, config = value._described()
        elif value.edited:
            raise TypeError(f"{path}: a layer of this {kind} was replaced; save its state_dict() instead")
        return {"class": kind, "arguments": {name: _description(v, f"{path}.{name}") for name, v in config.items()}}
    if isinstance(value, tuple | list):
        return [_description(item, f"{path}[{i}]") for i, item in enumerate(value)]
    if isinstance(value, np.generic | np.ndarray):
        return value.tolist()
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, np.dtype | type):
        return np.dtype(value).name
    raise TypeError(f"{path}: {value!r} cannot be written to a file; save state_dict() instead")


def _construct(description, classes):
    """The inverse of `_description`."""
    if isinstance(description, list):
        return tuple(_construct(item, classes) for item in description)
    if not isinstance(description, dict):
        return description
    name = description["class"]
    if name not in classes:
        raise ValueError(f"modules: the file needs the class {name!r}; give it as modules=({name},)")
    arguments = {key: _construct(value, classes) for key, value in description["arguments"].items()}
    parameters = inspect.signature(classes[name].__init__).parameters.values()
    several = next((p.name for p in parameters if p.kind is p.VAR_POSITIONAL), None)
    return classes[name](*arguments.pop(several, ()), **arguments)


def _classes(extra):
    from .. import models, nn

    known = [getattr(nn, name) for name in nn.__all__]
    known += [c for c in vars(models).values() if isinstance(c, type) and issubclass(c, nn.Module)]
    return {c.__name__: c for c in [*known, *extra]}


def _header(model):
    """A model's description, and what it keeps beside its state_dict."""
    return {
        "model": _description(model, type(model).__name__),
        "dtype": model.dtype.name,
        "attachments": model._attachments(),
    }


def _rebuilt(path, header, tensors, kind, classes):
    name = header["model"]["class"]
    model = _construct(header["model"], classes)
    if not isinstance(model, kind):
        raise ValueError(f"{path}: holds a {name}, expected a {kind.__name__}")
    if model.dtype.name != header["dtype"]:
        raise ValueError(f"{path}: holds {header['dtype']} numbers, but its description builds a {model.dtype} model")
    model.load_state_dict(tensors)
    model._attach(header.get("attachments", {}))  # files from before there were any lack them
    return model.eval()


def save_model(model, path):
    """Write a model's description, its state_dict, and what it keeps beside them."""
    write(path, "model", model.state_dict(), _header(model))


def load_model(path, kind, modules):
    """Read what `save_model` wrote; `kind` is the class it must be of."""
    tensors, header = read(path, "model")
    return _rebuilt(path, header, tensors, kind, _classes([kind, *modules]))


def save_models(models, path):
    """Write several models to one file."""
    tensors = {f"{i}.{name}": a for i, model in enumerate(models) for name, a in model.state_dict().items()}
    write(path, "ensemble", tensors, {"models": [_header(model) for model in models]})


def load_models(path, modules):
    """Read what `save_models` wrote."""
    tensors, header = read(path, "ensemble")
    states = [{} for _ in header["models"]]
    for key, a in tensors.items():
        i, _, name = key.partition(".")
        states[int(i)][name] = a
    classes = _classes(modules)
    return [_rebuilt(path, h, state, Module, classes) for h, state in zip(header["models"], states, strict=True)]
