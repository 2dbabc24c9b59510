"""Transfer learning: weights from elsewhere, a new head, and the features of the layers before it, computed once.

What is trained, and how fast, is said to the model: `freeze`, `unfreeze` and `set_rates` of nn.Module;
`callbacks.GradualUnfreezing` does it during a fit.
"""

import hashlib
import os
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from .config import get_backend, get_matrix_unit
from .configuration import array_of, positive_integer, suggestion
from .files import read, read_tensors, write
from .nn import Linear, Module, Sequential

_ZIP = b"PK"  # PyTorch's files are zip archives that hold a pickle; older ones are pickles
_PICKLE = b"\x80"
_WRAPPERS = ("state_dict", "model_state_dict", "model")  # under which training scripts keep a state_dict

# ---- weights ---------------------------------------------------------------------------------------------------------


@dataclass
class WeightsReport:
    """What `load_weights` found.

    Attributes
    ----------
    rows : list of (name, what, shape in the source or None, shape in the model or None)
        In the model's order, then what the model lacks; `what` is one of "matched", "misshapen", "missing" (in the
        source), "unexpected" (in the model), "skipped".
    """

    rows: list

    def _names(self, what):
        return [name for name, found, _, _ in self.rows if found == what]

    @property
    def matched(self):
        """The model's names that were loaded."""
        return self._names("matched")

    @property
    def missing(self):
        """The model's names that the source lacks; they keep their values."""
        return self._names("missing")

    @property
    def unexpected(self):
        """The source's names that the model lacks."""
        return self._names("unexpected")

    @property
    def misshapen(self):
        """The names of both whose shapes differ; the model's keep their values."""
        return self._names("misshapen")

    @property
    def skipped(self):
        """The model's names that were to be left alone."""
        return self._names("skipped")

    def table(self):
        """One line an entry, as text, and one with the counts."""
        head = ("name", "", "in the source", "in the model")
        lines = [
            head,
            *((name, what, *("-" if s is None else str(s) for s in shapes)) for name, what, *shapes in self.rows),
        ]
        widths = [max(len(line[i]) for line in lines) for i in range(4)]
        lines = [
            "  ".join(f"{text:<{width}}" for text, width in zip(line, widths, strict=True)).rstrip() for line in lines
        ]
        counts = Counter(what for _, what, _, _ in self.rows)
        return "\n".join([*lines, ", ".join(f"{count} {what}" for what, count in counts.items())])

    def __str__(self):
        return self.table()


def load_weights(model, source, *, prefix="", rename=None, skip=(), strict=False):
    """Load into a model what a file or another model has under the same name and in the same shape.

    Parameters
    ----------
    model : nn.Module
        Its parameters and running statistics are overwritten where they match.
    source : path-like, mapping from name to array, or nn.Module
        A safetensors file (of `model.save` or of any other origin), a file of `torch.save` (needs torch; nothing but
        tensors is unpickled), a state_dict of arrays or PyTorch tensors. Names and shapes are PyTorch's.
    prefix : str
        What the source's names begin with and the model's do not, such as "module."; names that begin otherwise count
        as unexpected.
    rename : mapping from str to str, or callable, optional
        From a name of the source (behind `prefix`) to the model's, None for one that is not wanted. In a mapping, a
        layer's name stands for all below it: {"classifier": "fc"}.
    skip : str or sequence of str
        Layers or names of the model that keep their values, such as a head for other classes.
    strict : bool
        Whether an entry that is missing, unexpected or misshapen is an error.

    Returns
    -------
    WeightsReport
        What matched and what did not; `print` shows a table.

    Raises
    ------
    FileNotFoundError, ValueError
        There is no such file, it is of another kind or damaged, nothing in it fits the model, or (`strict`) not all
        does. Nothing was changed.
    ImportError
        A file of PyTorch's, and torch is not installed.
    """
    if not isinstance(model, Module):
        raise TypeError(f"model: expected an nn.Module, got {type(model).__name__}")
    skip = (skip,) if isinstance(skip, str) else tuple(skip)
    own = {name: value.shape for name, value in model.state_dict().items()}
    for name in skip:
        if not any(_below(entry, name) for entry in own):
            raise ValueError(
                f"skip: the model has no {name!r}{suggestion(name, [*own, *(path for path, _ in model.modules())])}"
            )
    given = _named(_state_of(source), prefix, rename)
    rows = [(name, *_compared(name, given, shape, skip)) for name, shape in own.items()]
    rows += [(name, "unexpected", np.shape(value), None) for name, value in given.items() if name not in own]
    report = WeightsReport(rows)
    if not report.matched and len(report.skipped) < len(own):
        theirs, ours = (", ".join([*names][:3]) or "nothing" for names in (given, own))
        raise ValueError(
            f"source: nothing in it fits the model by name and shape: it has {theirs} ..., the model {ours} ...; "
            "prefix= and rename= translate"
        )
    if strict and (report.missing or report.unexpected or report.misshapen):
        raise ValueError(f"source: does not fit the model\n{report}")
    model.load_state_dict({name: given[name] for name in report.matched}, strict=False)
    return report


def _compared(name, given, shape, skip):
    """(what, shape in the source, shape in the model) of one of the model's entries."""
    found = np.shape(given[name]) if name in given else None
    if any(_below(name, layer) for layer in skip):
        return "skipped", found, shape
    return ("missing" if found is None else "matched" if found == shape else "misshapen"), found, shape


def _below(name, layer):
    return name == layer or name.startswith(f"{layer}.")


def _state_of(source):
    """A state_dict from whatever holds one."""
    if isinstance(source, Module):
        return source.state_dict()
    if isinstance(source, Mapping):
        state = next((source[key] for key in _WRAPPERS if isinstance(source.get(key), Mapping)), source)
    elif isinstance(source, str | os.PathLike):
        state = _state_of_file(source)
    else:
        raise TypeError(f"source: expected a path, a state_dict or an nn.Module, got {type(source).__name__}")
    for name, value in state.items():
        if not isinstance(name, str) or not hasattr(value, "shape"):
            raise TypeError(f"source: expected names and arrays, got {name!r}: {type(value).__name__}")
    return {name: _array(value) for name, value in state.items() if not name.endswith("num_batches_tracked")}


def _state_of_file(path):
    path = os.fspath(path)
    if not os.path.isfile(path):
        raise FileNotFoundError(f"source: there is no file {path}")
    with open(path, "rb") as file:
        start = file.read(2)
    if start[:2] != _ZIP and start[:1] != _PICKLE:
        return read_tensors(path)
    try:
        import torch
    except ImportError:
        raise ImportError(
            f"source: {path} is a file of torch.save, which needs torch to be read; with it installed, "
            "safetensors.torch.save_file(state_dict, path) writes one that does not"
        ) from None
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch has no one error for files that it cannot read or that hold more than tensors
        raise ValueError(f"source: {path} holds no state_dict of torch.save alone ({error})") from None
    if not isinstance(state, Mapping):
        raise ValueError(f"source: {path} holds a {type(state).__name__}, expected a state_dict")
    return _state_of(state)


def _array(value):
    """A tensor of PyTorch's as an array; of the half types, which NumPy lacks or is slow with, as float32."""
    if not hasattr(value, "detach"):
        return np.asarray(value)
    value = value.detach().cpu()
    return (value.float() if value.is_floating_point() and value.element_size() < 4 else value).numpy()


def _named(state, prefix, rename):
    """The state by the names that the model would have for it."""
    if rename is not None and not isinstance(rename, Mapping | Callable):
        raise TypeError(f"rename: expected a mapping or a function of a name, got {type(rename).__name__}")
    if prefix and not any(name.startswith(prefix) for name in state):
        raise ValueError(f"prefix: no name in the source begins with {prefix!r}; it has {', '.join([*state][:3])} ...")
    named = {}
    for name, value in state.items():
        new = _renamed(name.removeprefix(prefix), rename) if name.startswith(prefix) else name
        if new in named:
            raise ValueError(f"rename: two entries of the source would be {new}, one of them {name}")
        if new is not None:
            named[new] = value
    return named


def _renamed(name, rename):
    if not isinstance(rename, Mapping):
        return name if rename is None else rename(name)
    layer = max((old for old in rename if _below(name, old)), key=len, default=None)
    if layer is None:
        return name
    return None if rename[layer] is None else rename[layer] + name[len(layer) :]


# ---- head ------------------------------------------------------------------------------------------------------------


def head_of(model):
    """The path of a model's head: its last Linear layer."""
    if not isinstance(model, Module):
        raise TypeError(f"model: expected an nn.Module, got {type(model).__name__}")
    found = [path for path, module in model.modules() if isinstance(module, Linear)]
    if not found or not found[-1]:
        raise ValueError(f"model: expected one with a Linear layer to be its head, got {model!r}")
    return found[-1]


def replace_head(model, classes, *, init="default", seed=None):
    """Put a new Linear layer, of so many outputs, in the place of a model's head: its last one.

    The flat vectors are laid anew: make the optimizer after this.

    Parameters
    ----------
    model : nn.Module
    classes : int
    init, seed : see nn.Linear

    Returns
    -------
    str
        The head's path, for `unfreeze` and `set_rates`.
    """
    path = head_of(model)
    old = dict(model.modules())[path]
    if type(old) is not Linear:
        raise TypeError(f"model: expected one whose last Linear is its own, got a {type(old).__name__} at {path}")
    new = Linear(old.in_features, classes, old._bias is not None, init, dtype=model.dtype, seed=seed)
    described = not model.edited
    model.replace(path, new)
    for name in ("classes", "out_features"):
        if described and model.config.get(name) == old.out_features:  # its constructor can still describe it
            model.config[name] = new.out_features
            model.edited = False
    return path


# ---- features --------------------------------------------------------------------------------------------------------


def split(model, upto=None):
    """Part a model in what computes features and the head that is trained on them.

    Parameters
    ----------
    model : nn.Sequential
    upto : str, optional
        The name of the head's first layer; default: the last Linear.

    Returns
    -------
    (trunk, head) : two nn.Sequential
        They share their layers with the model: training one of them trains the model.
    """
    if not isinstance(model, Sequential):
        raise TypeError(
            f"model: expected an nn.Sequential, to be parted between two layers, got {type(model).__name__}"
        )
    names = list(model.children())
    upto = head_of(model) if upto is None else upto
    if upto not in names:
        raise ValueError(f"upto: expected the name of one of the model's own layers, {', '.join(names)}, got {upto!r}")
    i = names.index(upto)
    if not i:
        raise ValueError(f"upto: expected a layer with others before it, got {upto!r}, the model's first")
    return model[:i], model[i:]


def features(model, x, upto=None, batch_size=256, cache=None):
    """What a model makes of x in front of its head, in evaluation mode: the head's input.

    Where those layers are frozen, a head that is trained on this alone ends as it would in the whole model, for a small
    part of the time (without augmentation, and with dropout off in front of it)::

        trunk, head = dd.transfer.split(model)
        trainer = dd.Trainer(head, dd.optim.Adam())
        trainer.fit((dd.transfer.features(model, x), y), epochs=20)

    Parameters
    ----------
    model : nn.Sequential
    x : array
        As the model takes it.
    upto : see `split`
    batch_size : int
    cache : path-like, optional
        A safetensors file that keeps the features, with a hash of the layers, their weights, the data and the backend:
        they are read from it where the hash is the same, and otherwise computed and written there. The code of layers
        of your own is not part of the hash.

    Returns
    -------
    ndarray of the model's dtype
        The caller owns it.

    Raises
    ------
    ValueError
        The file is none of features, or damaged; it is left as it is.
    """
    batch_size, (trunk, _) = positive_integer("batch_size", batch_size), split(model, upto)
    x = array_of("x", x)
    key = None if cache is None else _key(trunk, x)
    if cache is not None and os.path.exists(cache):
        tensors, header = read(cache, "features")
        if header["key"] == key:
            return tensors["features"]
    parts = [trunk.predict(x[i : i + batch_size]) for i in range(0, max(len(x), 1), batch_size)]
    found = parts[0] if len(parts) == 1 else np.concatenate(parts)
    if cache is not None:
        write(cache, "features", {"features": found}, {"key": key})
    return found


def _key(trunk, x):
    """A hash of all that features depend on."""
    digest = hashlib.sha256(f"{trunk.dtype} {get_backend()} {get_matrix_unit()}".encode())
    for path, module in trunk.modules():
        settings = {name: value for name, value in module.config.items() if not _holds_modules(value)}
        digest.update(f"{path} {type(module).__qualname__} {settings} ".encode())
    for name, a in [*trunk.state_dict().items(), ("x", x)]:
        digest.update(f"{name} {a.dtype} {a.shape} ".encode())
        digest.update(np.ascontiguousarray(a).data)
    return digest.hexdigest()


def _holds_modules(value):
    return any(isinstance(item, Module) for item in (value if isinstance(value, tuple | list) else (value,)))
