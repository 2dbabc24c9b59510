"""Updates that are made to learn something about a training, and undone: the model, the optimizer and the trainer are
then as they were, bit for bit."""

import contextlib
import itertools
import threading


@contextlib.contextmanager
def as_it_was(trainer):
    """Undo all that updates inside the block do to a trainer, its model and its optimizer."""
    model, optimizer = trainer.model, trainer.optimizer
    vectors = [(a, a.copy()) for a in (model.parameters, model.gradients, model.buffers, *optimizer.state.values())]
    trainer_state, names, updates = dict(trainer.__dict__), set(optimizer.state), optimizer.updates
    trainer._recent = trainer._recent.copy()
    try:
        with new_workspaces(model):
            yield
    finally:
        for a, before in vectors:
            a[...] = before
        if not names:
            optimizer.state, optimizer._parameters = {}, None  # they are made at the first update
        optimizer.updates = updates
        trainer.__dict__.update(trainer_state)


@contextlib.contextmanager
def new_workspaces(model):
    """Let a model work in new memory inside the block. What it kept is there again behind it: a recurrent state, and
    what a backward pass needs of the last forward pass."""
    kept = [(module, module._work, module._inference) for _, module in model.modules()]
    for module, _, _ in kept:
        module._work, module._inference = None, threading.local()
    try:
        yield
    finally:
        for module, work, inference in kept:
            module._work, module._inference = work, inference


def endless(batches, trainer, augment):
    """The batches of the trainer's epoch and of those after it, without those that have nothing to learn from."""
    for epoch in itertools.count(trainer.epoch):
        some = False
        for batch in batches.of_epoch(epoch, 0):
            if batch.begins:
                trainer.model._training_work().carried = None
            if augment is not None:
                trainer._augment(batch, augment)
            if not trainer._all_ignored(batch):
                some = True
                yield batch
        if not some:
            raise ValueError("train: expected at least one row, and one label in y that counts, got none")
