"""Look into a pass through a model: what goes through every layer, forward and back."""

import contextlib

from .nn.recurrent import _Recurrent


class Watcher:
    """Base: override what you need. `path` is the layer's name in the model."""

    def forward_begins(self, path, module):
        """Before a layer's forward pass."""

    def forward_ends(self, path, module, y, activation):
        """Behind it: its result, and the activation that it ended with beyond its own ("identity": none)."""

    def backward_begins(self, path, module, dy):
        """Before its backward pass, which may write to dy, the gradient with respect to its result."""

    def backward_ends(self, path, module, dx):
        """Behind it: the gradient with respect to its input, or None; its parameters' gradients are there."""


@contextlib.contextmanager
def traced(model, watcher):
    """Let a watcher see the passes in training mode that are made in the block.

    The layers' own methods are stood in for while it lasts, so that no other pass pays for it. Not for two threads: the
    caller holds the model's lock.
    """
    wrapped = []
    for path, module in model.modules():
        names = ("run", "run_back") if isinstance(module, _Recurrent) else ("_forward", "_backward")
        for name, wrap in zip(names, (_forward, _backward), strict=True):
            setattr(module, name, wrap(getattr(module, name), path, module, watcher))
            wrapped.append((module, name))
    try:
        yield
    finally:
        for module, name in wrapped:
            delattr(module, name)


def _forward(method, path, module, watcher):
    recurrent = isinstance(module, _Recurrent)

    def forward(x, *rest):
        work = rest[-1] if recurrent else rest[0]
        if not work.training:
            return method(x, *rest)
        watcher.forward_begins(path, module)
        y = method(x, *rest)
        told = rest[1] if not recurrent and len(rest) > 1 else "identity"
        watcher.forward_ends(path, module, y, told)
        return y

    return forward


def _backward(method, path, module, watcher):
    def backward(dy, *rest):
        watcher.backward_begins(path, module, dy)
        dx = method(dy, *rest)
        watcher.backward_ends(path, module, dx[0] if isinstance(dx, tuple) else dx)
        return dx

    return backward
