"""A training as a file: all that it needs to go on bit for bit."""

import numpy as np

from . import kernels
from .errors import TrainingDiverged
from .files import read, write
from .history import History


def _signature(trainer):
    """What must be the same in the trainer that continues: (name, shape) of everything saved,
    and the kind of optimizer."""
    entries = [[path, list(a.shape)] for path, a, _ in trainer.model._entries()]
    return {"model": entries, "dtype": trainer.model.dtype.name, "optimizer": type(trainer.optimizer).__name__}


def save_checkpoint(trainer, path):
    """Write what training needs to go on; never what it cannot go on with."""
    if not kernels.all_finite(trainer.model.parameters):
        raise TrainingDiverged(
            f"update {trainer.update - 1}: it left a parameter that is not finite; {path} was not written. "
            "Lower the learning rate",
            trainer.update - 1,
        )
    write(path, "checkpoint", *state_of(trainer))


def state_of(trainer):
    """(tensors, header) of all that training needs to go on bit for bit. The tensors are the trainer's own, no copies;
    the header is what JSON can hold."""
    model, optimizer = trainer.model, trainer.optimizer
    tensors = {"parameters": model.parameters, "buffers": model.buffers}
    tensors.update({f"optimizer.{name}": vector for name, vector in optimizer.state.items()})
    carried = model._training_work().carried
    tensors.update({f"carried.{i}": state for i, state in enumerate(carried or ())})
    callbacks = {}
    # Of a fit that ended and can go on, the callbacks may have seen more than they are to go on from.
    for key, state in (trainer._callback_states or trainer.callback_states()).items():
        arrays = {name: value for name, value in state.items() if isinstance(value, np.ndarray)}
        tensors.update({f"callback.{key}.{name}": value for name, value in arrays.items()})
        callbacks[key] = {name: value for name, value in state.items() if name not in arrays}
    return tensors, {
        "signature": _signature(trainer),
        "optimizer_updates": optimizer.updates,
        "trainer": {name: getattr(trainer, name) for name in _COUNTERS},
        "history": trainer.history.columns,
        "callbacks": callbacks,
    }


_COUNTERS = ("seed", "update", "epoch", "_progress", "_first_epoch")


def load_checkpoint(trainer, path):
    """Take up what `save_checkpoint` wrote; nothing is changed unless all of it fits."""
    tensors, header = read(path, "checkpoint")
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
    take_up(trainer, tensors, header)


def take_up(trainer, tensors, header):
    """Let a trainer go on from what `state_of` told of one with the same model and kind of optimizer."""
    state = {name.removeprefix("optimizer."): a for name, a in tensors.items() if name.startswith("optimizer.")}
    trainer.optimizer.load_state(trainer.model, state, header["optimizer_updates"])
    trainer.model.parameters[...] = tensors["parameters"]
    trainer.model.buffers[...] = tensors["buffers"]
    carried = [tensors[name] for name in sorted(tensors) if name.startswith("carried.")]
    trainer.model._training_work().carried = tuple(carried) or None
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
