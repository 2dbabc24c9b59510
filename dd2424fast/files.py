"""Models and checkpoints on disk: safetensors with a format version in the header, written whole or not at all,
never pickled."""

import json
import os
import secrets
from pathlib import Path

import numpy as np

from .history import History

FORMAT = "1"


def write_atomically(path, content):
    """Put bytes at `path` so that a crash or a full disk at any moment leaves either the old file or the new one.

    Raises OSError, with the old file untouched, where the new one cannot be written.
    """
    path = Path(path)
    if not path.parent.is_dir():
        raise FileNotFoundError(f"path: the folder {path.parent} does not exist")
    temporary = path.parent / f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.part"
    handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _sync_folder(path.parent)


def _sync_folder(folder):
    """Make the rename itself durable, where the system lets a folder be opened."""
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _write(path, kind, tensors, header):
    from safetensors.numpy import save

    metadata = {"dd2424fast": FORMAT, "kind": kind, "header": json.dumps(header)}
    write_atomically(path, save({name: np.ascontiguousarray(a) for name, a in tensors.items()}, metadata))


def _read(path, kind):
    """Return (tensors, header) of a file that `_write` wrote as this kind,
    or raise ValueError that says what it is instead."""
    from safetensors import SafetensorError, safe_open

    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"path: there is no file {path}")
    try:
        with safe_open(path, "numpy") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}
    except SafetensorError as error:
        raise ValueError(f"{path}: not a safetensors file, or damaged ({error})") from None
    found = metadata.get("dd2424fast")
    if found is None:
        raise ValueError(f"{path}: dd2424fast did not write this file (its tensors can be given to load_state_dict)")
    if found != FORMAT:
        raise ValueError(f"{path}: written in format {found} of dd2424fast; this version reads format {FORMAT}")
    if metadata.get("kind") != kind:
        raise ValueError(f"{path}: holds a {metadata.get('kind')}, expected a {kind}")
    return tensors, json.loads(metadata["header"])


# ---- models --------------------------------------------------------------------------------------------------------


def _description(value, path):
    """A constructor argument as JSON: numbers, text, lists of them, and modules as {"class", "arguments"}."""
    from .nn import Module

    if isinstance(value, Module):
        edited = {"layers": tuple(value.layers), "dtype": value.dtype} if getattr(value, "edited", False) else None
        config = edited or value.config
        kind = "Sequential" if getattr(value, "edited", False) else type(value).__name__
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
    return classes[name](*arguments.pop("layers", ()), **arguments)


def _classes(extra):
    from . import models, nn

    known = [getattr(nn, name) for name in nn.__all__]
    known += [c for c in vars(models).values() if isinstance(c, type) and issubclass(c, nn.Module)]
    return {c.__name__: c for c in [*known, *extra]}


def save_model(model, path):
    """Write a model's description and its state_dict."""
    _write(
        path,
        "model",
        model.state_dict(),
        {"model": _description(model, type(model).__name__), "dtype": model.dtype.name},
    )


def load_model(path, kind, modules):
    """Read what `save_model` wrote; `kind` is the class it must be of."""
    tensors, header = _read(path, "model")
    classes = _classes([kind, *modules])
    name = header["model"]["class"]
    model = _construct(header["model"], classes)
    if not isinstance(model, kind):
        raise ValueError(f"{path}: holds a {name}, expected a {kind.__name__}")
    if model.dtype.name != header["dtype"]:
        raise ValueError(f"{path}: holds {header['dtype']} numbers, but its description builds a {model.dtype} model")
    model.load_state_dict(tensors)
    return model.eval()


# ---- checkpoints ---------------------------------------------------------------------------------------------------


def _signature(trainer):
    """What must be the same in the trainer that continues: (name, shape) of everything saved,
    and the kind of optimizer."""
    entries = [[path, list(a.shape)] for path, a, _ in trainer.model._entries()]
    return {"model": entries, "dtype": trainer.model.dtype.name, "optimizer": type(trainer.optimizer).__name__}


def save_checkpoint(trainer, path):
    """Write what training needs to go on."""
    model, optimizer = trainer.model, trainer.optimizer
    tensors = {"parameters": model.parameters, "buffers": model.buffers}
    tensors.update({f"optimizer.{name}": vector for name, vector in optimizer.state.items()})
    callbacks = {}
    for key, state in trainer.callback_states().items():
        arrays = {name: value for name, value in state.items() if isinstance(value, np.ndarray)}
        tensors.update({f"callback.{key}.{name}": value for name, value in arrays.items()})
        callbacks[key] = {name: value for name, value in state.items() if name not in arrays}
    header = {
        "signature": _signature(trainer),
        "optimizer_updates": optimizer.updates,
        "trainer": {name: getattr(trainer, name) for name in _COUNTERS},
        "history": trainer.history.columns,
        "callbacks": callbacks,
    }
    _write(path, "checkpoint", tensors, header)


_COUNTERS = ("seed", "update", "epoch", "_progress", "_first_epoch")


def load_checkpoint(trainer, path):
    """Take up what `save_checkpoint` wrote; nothing is changed unless all of it fits."""
    tensors, header = _read(path, "checkpoint")
    expected, found = _signature(trainer), header["signature"]
    for what in ("optimizer", "dtype"):
        if found[what] != expected[what]:
            raise ValueError(f"{path}: a checkpoint of {what} {found[what]}, expected {expected[what]}")
    if found["model"] != expected["model"]:
        theirs, ours = (
            {name: tuple(shape) for name, shape in entries} for entries in (found["model"], expected["model"])
        )
        wrong = [
            f"{name} {theirs.get(name, 'absent')} (here {ours.get(name, 'absent')})"
            for name in {**theirs, **ours}
            if theirs.get(name) != ours.get(name)
        ]
        raise ValueError(
            f"{path}: a checkpoint of another model: {'; '.join(wrong) or 'its layers are in another order'}"
        )
    state = {name.removeprefix("optimizer."): a for name, a in tensors.items() if name.startswith("optimizer.")}
    trainer.optimizer.load_state(trainer.model, state, header["optimizer_updates"])
    trainer.model.parameters[...] = tensors["parameters"]
    trainer.model.buffers[...] = tensors["buffers"]
    for name in _COUNTERS:
        setattr(trainer, name, header["trainer"][name])
    trainer.history = History(header["history"])
    trainer._callback_states = {
        key: {
            **values,
            **{
                name.removeprefix(f"callback.{key}."): a
                for name, a in tensors.items()
                if name.startswith(f"callback.{key}.")
            },
        }
        for key, values in header["callbacks"].items()
    }
