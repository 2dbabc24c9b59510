"""The base of layers and models, and the flat vectors their parameters live in."""

import operator
import threading
from collections.abc import Mapping

import numpy as np

from ..configuration import Configured, array_of, integer_in, positive_integer, real_in, suggestion

# Pseudo-random streams under one seed: what is drawn for one purpose never repeats what is drawn for another.
INITIAL_WEIGHTS, DROPOUT, SHUFFLE, AUGMENTATION, GENERATION, CELL_NOISE = range(6)


def generator(seed, *key):
    """A NumPy Generator that is a pure function of (seed, key); seed None means fresh entropy."""
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(seed, spawn_key=key)))


class Layout:
    """How PyTorch has an array that is stored otherwise here.

    Parameters
    ----------
    shape : tuple of int
        Here.
    axes : sequence of int, optional
        Which axes, in their order there; default: as here.
    channels : int, optional
        The first axis is a flattened image of so many channels. They are innermost here (height, width, channel) and
        outermost there (channel, height, width).

    Attributes
    ----------
    shape : tuple of int
        There.
    """

    def __init__(self, shape, axes=None, channels=None):
        axes = range(len(shape)) if axes is None else axes
        self.shape = tuple(shape[axis] for axis in axes)
        self._cut, self._order = tuple(shape), list(axes)
        if channels is not None:
            self._cut = (shape[0] // channels, channels, *shape[1:])
            self._order = [i for axis in axes for i in ((axis + 1,) if axis else (1, 0))]

    def shown(self, a):
        """A copy of `a` as PyTorch has it."""
        return np.array(a.reshape(self._cut).transpose(self._order), order="C").reshape(self.shape)

    def put(self, given, a):
        """Copy into `a` what PyTorch has."""
        cut = given.reshape([self._cut[i] for i in self._order])
        a.reshape(self._cut)[...] = cut.transpose(np.argsort(self._order))


def _shown_by(layout, a):
    return np.array(a, order="C") if layout is None else layout.shown(a)


class Parameter:
    """A named array that is trained: a view into its model's flat vector, and a view into the flat gradients.

    Attributes
    ----------
    value, gradient : ndarray
        Re-homed by `Module.join`; always read them through the Parameter.
    trainable : bool
        The gradient of a parameter that is not trained is zero.
    decays : bool
        Whether weight decay applies (weights: yes; biases and norm parameters: no).
    rate : float
        Factor on the learning rate.
    layout : Layout or None
        How state_dict shows it, where not as it is stored.
    """

    __slots__ = ("_decays", "_rate", "_trainable", "gradient", "init", "layout", "name", "value")

    changes = 0  # of any parameter's training; an optimizer whose table is older makes it anew

    def __init__(self, name, value, init, decays, layout):
        self.name = name
        self.value = value
        self.gradient = np.zeros_like(value)
        self.init = init
        self.layout = layout
        self.trainable = True
        self.decays = decays
        self.rate = 1.0


def _noted(field):
    """An attribute of Parameter whose assignment counts as a change of its training."""

    def assign(self, value):
        setattr(self, field, value)
        Parameter.changes += 1
        if not self._trainable:
            self.gradient[...] = 0

    return property(operator.attrgetter(field), assign)


for _name in ("decays", "rate", "trainable"):
    setattr(Parameter, _name, _noted(f"_{_name}"))


def aligned(size, dtype):
    """An uninitialised vector that begins at a cache line: vectors of 64 bytes then never straddle two."""
    dtype = np.dtype(dtype)
    memory = np.empty(size + 64 // dtype.itemsize, dtype)
    start = -memory.ctypes.data % 64 // dtype.itemsize
    return memory[start : start + size]


class Workspace:
    """What one pass through a model writes: every layer's output, and what its backward pass needs.

    Buffers grow to the largest batch seen; a smaller batch uses a prefix. Training has one workspace; inference has
    one per thread.

    Attributes
    ----------
    training : bool
    seed, update : int
        With them dropout's mask is a pure function of the update.
    saved : dict
        From layer to what it keeps between forward and backward.
    lengths : array or None
        Steps of each sequence of the batch, where a model takes sequences.
    carries : bool
        Whether this pass begins with the recurrent state that the last one ended with.
    carried : tuple of ndarray, or None
        That state.
    flow : dict or None
        Where it is one, the backward pass of a recurrent layer notes dL/dh of every row in it, by strand.
    """

    def __init__(self, training):
        self.training = training
        self.lengths = None
        self.carries = False
        self.carried = None
        self.flow = None
        self.output_shape = None
        self.seed = 0
        self.update = 0
        self.saved = {}
        self._views = {}
        self._memory = {}

    def array(self, owner, name, shape, dtype):
        """An uninitialised array of this shape, the same memory at every call with this owner and name."""
        view = self._views.get((owner, name))
        if view is not None and view.shape == shape and view.dtype is dtype:
            return view
        return self._grow((owner, name), shape, dtype)

    def _grow(self, key, shape, dtype):
        size = 1
        for length in shape:
            size *= length
        memory = self._memory.get(key)
        if memory is None or memory.size < size or memory.dtype != dtype:
            memory = self._memory[key] = aligned(size, dtype)
        view = self._views[key] = memory[:size].reshape(shape)
        return view


def _float_type(dtype):
    try:
        known = dtype is not None and np.dtype(dtype) in (np.dtype("float32"), np.dtype("float64"))
    except TypeError:
        known = False
    if not known:
        raise ValueError(f"dtype: expected 'float32' or 'float64', got {dtype!r}")
    return np.dtype(dtype)


def shown(shape):
    """A shape as text; None is any size: (batch, any, 3)."""
    sizes = ", ".join("any" if size is None else str(size) for size in shape)
    return f"({sizes},)" if len(shape) == 1 else f"({sizes})"


class FlatImage(tuple):
    """The shape (features,) of flattened images, which knows how many channels take turns in it."""

    def __new__(cls, features, channels):
        shape = super().__new__(cls, (features,))
        shape.channels = channels
        return shape


class _Pass(threading.local):
    """The workspace of the pass through a whole model that is under way in this thread, if any. Layers that a user's
    `forward` calls take their mode, and dropout its key, from it."""

    work = None


_pass = _Pass()


class _ParameterView:
    """Class attribute through which `layer.weight` reads the view, and `layer.weight = a` copies into it."""

    def __init__(self, name, field):
        self.name = name
        self.field = field

    def __get__(self, module, owner=None):
        if module is None:
            return self
        try:
            return getattr(module._own[self.name], self.field)
        except KeyError:
            raise AttributeError(f"{type(module).__name__} has no parameter {self.name!r}") from None

    def __set__(self, module, value):
        target = self.__get__(module)
        if np.shape(value) != target.shape:
            raise ValueError(f"{self.name}: expected shape {target.shape}, got {np.shape(value)}")
        target[...] = value


_VIEW = _ParameterView("", "value")


class Module(Configured):
    """Base class of every layer and model.

    A layer of your own adds its parameters in `__init__` and defines `forward` and `backward`::

        class Scale(dd.nn.Module):
            def __init__(self, features, *, dtype="float32", seed=None):
                super().__init__(dtype=dtype, seed=seed)
                self.add("factor", (features,), np.ones)

            def forward(self, x):
                self.x = x
                return x * self.factor

            def backward(self, dy):
                self.dfactor[...] = (dy * self.x).sum(axis=0)
                return dy * self.factor

    `backward` overwrites the gradients. `self.training` says which mode is meant; `dd.gradcheck` checks the layer.

    Parameters
    ----------
    dtype : {"float32", "float64"}
    seed : int, optional
        Of the initial weights; None draws fresh entropy.
    """

    def __init__(self, *, dtype="float32", seed=None):
        self.dtype = _float_type(dtype)
        self.seed = None if seed is None else integer_in("seed", seed, 0)
        self._training = True
        self._own = {}
        self._own_buffers = {}
        self._tied = {}  # parameters of other modules that this one uses under a name of its own
        self._forget()

    @property
    def training(self):
        """Whether `forward` acts as in training; `train()` and `eval()` set it, a pass of the trainer or of `predict`
        decides by itself."""
        return self._training if _pass.work is None else _pass.work.training

    @training.setter
    def training(self, value):
        self._training = bool(value)

    _buffer_layout = None  # how state_dict shows the running statistics, where not as they are stored
    _place = 0  # in the model: dropout layers of one model draw from different streams

    def _forget(self):
        """Drop what can be rebuilt: the flat vectors and the workspaces."""
        self._flat = None
        self._work = None
        self._inference = threading.local()
        self._busy = threading.Lock()
        self._planned_at = -1

    # ---- parameters ------------------------------------------------------------------------------------------------

    def add(self, name, shape, init, *, decays=None, axes=None):
        """Add a parameter, readable as `self.<name>`, its gradient as `self.d<name>`.

        Parameters
        ----------
        name : str
        shape : tuple of int
        init : callable
            `init(shape)` or `init(shape, rng)` returns the initial values (drawn in float64, so that a seed gives the
            same weights in both dtypes).
        decays : bool, optional
            Whether weight decay applies; by default to parameters of two or more dimensions.
        axes : sequence of int, optional
            state_dict shows the axes in this order: (1, 0) is the transpose.
        """
        if name in self._own or name in self._own_buffers:
            raise ValueError(f"name: {type(self).__name__} already has a parameter {name!r}")
        for attribute in (name, f"d{name}"):
            if attribute in vars(self) or not isinstance(getattr(type(self), attribute, _VIEW), _ParameterView):
                raise ValueError(f"name: {type(self).__name__} already has an attribute {attribute!r}")
        if f"d{name}" in self._own or any(name == f"d{other}" for other in self._own):
            raise ValueError(f"name: {name!r} and a parameter's gradient would have one name")
        value = self._draw(init, shape, generator(self.seed, INITIAL_WEIGHTS, len(self._own)))
        decays = len(shape) >= 2 if decays is None else decays
        layout = None if axes is None else Layout(value.shape, axes)
        self._own[name] = Parameter(name, value, init, decays, layout)
        self._flat = None  # laid without it
        self._show(name, name, "value")
        self._show(f"d{name}", name, "gradient")

    def _draw(self, init, shape, rng):
        try:
            value = init(shape, rng)
        except TypeError:
            value = init(shape)  # np.zeros and np.ones would take rng for a dtype, and refuse
        return np.ascontiguousarray(value, dtype=self.dtype)

    def _show(self, attribute, name, field):
        if not isinstance(getattr(type(self), attribute, None), _ParameterView):
            setattr(type(self), attribute, _ParameterView(name, field))

    def add_buffer(self, name, value):
        """Add an array that is saved with the model but not trained, such as a running mean."""
        self._own_buffers[name] = np.ascontiguousarray(value, dtype=self.dtype)

    def children(self):
        """The modules inside this one: dict from name to Module, in the order of their parameters."""
        return {name: value for name, value in vars(self).items() if isinstance(value, Module)}

    def modules(self, prefix=""):
        """Yield (path, module) for this module and all below it, depth first."""
        yield prefix, self
        for name, child in self.children().items():
            yield from child.modules(f"{prefix}.{name}" if prefix else name)

    def named_parameters(self):
        """Yield (path, Parameter) in the order of the flat vector."""
        for path, module in self.modules():
            for name, parameter in module._own.items():
                yield (f"{path}.{name}" if path else name), parameter

    def join(self):
        """Move all parameters, gradients and buffers of this module into flat vectors, as views of them.

        Called by itself when the flat vectors are first needed, and by containers after a layer was replaced. The
        vectors of the modules inside become slices of this module's.
        """
        parameters = [parameter for _, parameter in self.named_parameters()]
        if len({id(parameter) for parameter in parameters}) < len(parameters):
            raise ValueError("layers: the same layer appears twice; make a second one")
        buffers = [(module, name) for _, module in self.modules() for name in module._own_buffers]
        size = sum(parameter.value.size for parameter in parameters)
        flat = aligned(size, self.dtype), aligned(size, self.dtype)
        kept = aligned(sum(module._own_buffers[name].size for module, name in buffers), self.dtype)
        start = 0
        for parameter in parameters:
            stop = start + parameter.value.size
            for vector, field in zip(flat, ("value", "gradient"), strict=True):
                view = vector[start:stop].reshape(parameter.value.shape)
                view[...] = getattr(parameter, field)
                setattr(parameter, field, view)
            start = stop
        start = 0
        for module, name in buffers:
            old = module._own_buffers[name]
            view = kept[start : start + old.size].reshape(old.shape)
            view[...] = old
            module._own_buffers[name] = view
            start += old.size
        self._assign(*flat, kept, 0, 0)
        for i, (_, module) in enumerate(self.modules()):
            module._place = max(i - 1, 0)
        Parameter.changes += 1

    # Without an activation at its end, the backward pass neither reads the layer's result nor writes to dy.
    spares_buffers = False
    edited = False  # whether its constructor's arguments no longer describe it

    def replace(self, path, layer):
        """Put another layer in the place of the one at `path`, such as "fc" or "layer1.0". The flat vectors are laid
        anew, so an optimizer that trained the old ones must be made anew too."""
        if not isinstance(layer, Module):
            raise TypeError(f"layer: expected a Module, got {type(layer).__name__}")
        if any(layer is module for _, module in self.modules()):
            raise ValueError("layer: it is in this model already; make a second one")
        modules = dict(self.modules())
        if not path or path not in modules:
            layers = ", ".join(self.children()) or "no layers"
            raise ValueError(f"path: there is no layer {path!r}{suggestion(str(path), modules)}; there are {layers}")
        for _, module in layer.modules():
            module._convert(self.dtype)
        owner, _, name = path.rpartition(".")
        modules[owner]._put(name, layer)
        while owner:
            modules[owner].edited = True
            owner = owner.rpartition(".")[0]
        self.edited = True
        self._forget()
        self.join()

    def _put(self, name, layer):
        """Make `layer` the child of this name."""
        setattr(self, name, layer)

    def _convert(self, dtype):
        """Give this module, not yet joined, another dtype."""
        self.dtype = np.dtype(dtype)
        self._forget()
        for parameter in self._own.values():
            parameter.value = parameter.value.astype(dtype)
            parameter.gradient = parameter.gradient.astype(dtype)
        self._own_buffers = {name: buffer.astype(dtype) for name, buffer in self._own_buffers.items()}

    def check_joined(self):
        """Raise ValueError where a parameter is no view of the flat vector, so that training would not reach it."""
        start, item = self.parameters.ctypes.data, self.dtype.itemsize
        for path, parameter in self.named_parameters():
            if parameter.value.ctypes.data != start and parameter.value.size:
                raise ValueError(
                    f"model: {path} is not in the model's flat vector, since its layer was replaced by assignment or "
                    "belongs to another model too; call join() on the outermost model"
                )
            start += item * parameter.value.size
        if start != self.parameters.ctypes.data + item * self.parameters.size:
            raise ValueError("model: a layer was taken away; call join() on the outermost model")

    def _assign(self, values, gradients, buffers, first, first_buffer):
        """Hand this module and those inside their slices, from `first` on; returns where they end."""
        stop = first + sum(parameter.value.size for parameter in self._own.values())
        stop_buffer = first_buffer + sum(buffer.size for buffer in self._own_buffers.values())
        for child in self.children().values():
            stop, stop_buffer = child._assign(values, gradients, buffers, stop, stop_buffer)
        self._flat = values[first:stop], gradients[first:stop], buffers[first_buffer:stop_buffer]
        self._joined()
        return stop, stop_buffer

    def _joined(self):
        """Hook for what depends on the structure of the module."""

    @property
    def parameters(self):
        """All parameters as one contiguous vector, a view: writing to it changes the model."""
        if self._flat is None:
            self.join()
        return self._flat[0]

    @property
    def gradients(self):
        """All gradients as one contiguous vector, in the order of `parameters`."""
        if self._flat is None:
            self.join()
        return self._flat[1]

    @property
    def buffers(self):
        """All running statistics as one contiguous vector."""
        if self._flat is None:
            self.join()
        return self._flat[2]

    def _initialise(self, seed):
        """Draw all parameters anew, the i-th from stream i of this seed."""
        for i, (_, parameter) in enumerate(self.named_parameters()):
            parameter.value[...] = self._draw(
                parameter.init, parameter.value.shape, generator(seed, INITIAL_WEIGHTS, i)
            )

    def freeze(self, prefix=""):
        """Keep the parameters whose path starts with `prefix` from being trained.
        Returns how many parameters (numbers) that are."""
        return self._set_trainable(prefix, False)

    def unfreeze(self, prefix=""):
        """Train the parameters whose path starts with `prefix` again."""
        return self._set_trainable(prefix, True)

    def _set_trainable(self, prefix, trainable):
        chosen = self._parameters_at("prefix", prefix)
        for parameter in chosen:
            parameter.trainable = trainable
        return sum(parameter.value.size for parameter in chosen)

    def set_rates(self, rates):
        """Give the parameters of some layers learning rates of their own, as factors on the optimizer's or schedule's.

        Parameters
        ----------
        rates : mapping from prefix to float
            Prefixes of paths, as for `freeze`; "" is all. Where two of them hold for a parameter, the later one counts:
            `{"": 0.1, "fc": 1.0}`. A factor of 0 still computes the gradient; `freeze` saves that too.
        """
        if not isinstance(rates, Mapping):
            raise TypeError(f"rates: expected a mapping from prefix to factor, got {type(rates).__name__}")
        rates = {
            prefix: real_in(f"rates[{prefix!r}]", rate, 0, np.inf, include_high=False) for prefix, rate in rates.items()
        }
        chosen = {prefix: self._parameters_at("rates", prefix) for prefix in rates}  # all, before any is changed
        for prefix, rate in rates.items():
            for parameter in chosen[prefix]:
                parameter.rate = rate

    def _parameters_at(self, name, prefix):
        """The parameters whose path starts with `prefix`; `name` is what the caller calls it, for the error."""
        if not isinstance(prefix, str):
            raise TypeError(f"{name}: expected the name of a layer such as '0' or 'layer1', got {prefix!r}")
        paths = dict(self.named_parameters())
        chosen = [
            parameter
            for path, parameter in paths.items()
            if not prefix or path == prefix or path.startswith(f"{prefix}.")
        ]
        if not chosen:
            known = [*paths, *(path for path, _ in self.modules() if path)]
            layers = ", ".join(dict.fromkeys(path.partition(".")[0] for path in paths))
            raise ValueError(
                f"{name}: no parameter's path starts with {prefix!r}{suggestion(prefix, known)}; "
                f"there are {layers or 'no parameters'}"
            )
        return chosen

    def _plan(self):
        """What the backward pass needs to know of which parameters are trained."""
        if self._planned_at != Parameter.changes:
            self._planned, self._planned_at = self._make_plan(), Parameter.changes
        return self._planned

    def _make_plan(self):
        """Whether any parameter is trained, and those that are not."""
        frozen = [parameter for _, parameter in self.named_parameters() if not parameter.trainable]
        return len(frozen) < sum(1 for _ in self.named_parameters()), frozen

    def _zero_frozen(self):
        """Take away what a backward pass wrote into gradients of frozen parameters: no norm is to count it."""
        for parameter in self._plan()[1]:
            parameter.gradient[...] = 0

    # ---- running ---------------------------------------------------------------------------------------------------

    def __call__(self, *args, **kwargs):
        """The same as `forward`."""
        return self.forward(*args, **kwargs)

    def forward(self, x):
        """Apply the module to a batch; `train()` and `eval()` say in which mode.

        Returns an array that the caller owns. `backward` refers to the latest `forward` in training mode.
        """
        self._defined("_forward", "forward")
        work = self._training_work() if self.training else self._inference_work()
        if _pass.work is not None:
            work.seed, work.update = _pass.work.seed, _pass.work.update
        y = self._from_rows(self._forward(self._input(x), work), work)
        work.output_shape = y.shape
        return np.array(y)

    def backward(self, dy, accumulate=False):
        """Backpropagate dy, the gradient of the loss with respect to the latest forward's result.

        Overwrites `gradients`, or adds to them where `accumulate` is true. Returns dx, or None where the input has no
        gradient.
        """
        self._defined("_backward", "backward")
        if self._work is None or self._work.output_shape is None:
            raise RuntimeError("backward: call forward in training mode first")
        a = array_of("dy", dy)
        if a.dtype.kind not in "fiub":
            raise TypeError(f"dy: expected numbers, got {type(dy).__name__} of dtype {a.dtype}")
        if a.shape != self._work.output_shape:
            raise ValueError(f"dy: expected shape {self._work.output_shape}, got {a.shape}")
        before = self.gradients.copy() if accumulate else None
        dy = self._to_rows("dy", np.array(a, dtype=self.dtype, order="C"), self._work)
        dx = self._backward(dy, self._work, True)
        if accumulate:
            self._flat[1].__iadd__(before)
        return None if dx is None else np.array(dx)

    def _defined(self, inner, outer):
        if getattr(type(self), inner) is getattr(Module, inner):
            raise NotImplementedError(f"{type(self).__name__}: define {outer}")

    def _forward(self, x, work):
        """The pass itself: x is checked; the result may be a buffer of `work`.
        Calls `forward` of a layer that defines only that."""
        before, _pass.work = _pass.work, work
        try:
            return self.forward(x)
        finally:
            _pass.work = before

    def _backward(self, dy, work, need_dx):
        """The backward pass itself: may overwrite dy; the result may be a buffer of `work`."""
        dx = self.backward(dy)
        self._zero_frozen()
        return dx

    takes_lengths = False  # whether sequences of unequal length may be given, as (batch, time) and lengths

    def _from_rows(self, y, work):
        """The result of `_forward` as the user sees it. Sequence models run on rows in another order."""
        return y

    def _to_rows(self, name, a, work):
        """Targets, weights or gradients of outputs, given as the user sees them, in the order of `_forward`'s rows."""
        return a

    def _input(self, x):
        """Return x as this module reads it: an ndarray of its dtype and shape.
        The edge at which other types are converted, once."""
        if type(x) is not np.ndarray or x.dtype is not self.dtype:
            x = self._converted(x)
        self._check_shape(x.shape)
        return x

    def _converted(self, x):
        if isinstance(x, np.ma.MaskedArray) and np.ma.is_masked(x):
            raise TypeError("x: expected an array without masked entries; fill them first")
        a = array_of("x", x)
        if a.dtype.kind not in "fiub":
            raise TypeError(f"x: expected numbers, got {type(x).__name__} of dtype {a.dtype}")
        return a.astype(self.dtype, order="C", copy=False)

    def _check_shape(self, shape):
        """Raise ValueError where this module cannot take an x of this shape."""
        if not shape:
            raise ValueError("x: expected shape (batch, ...), got ()")

    def output_shape(self, shape):
        """The shape of the output without its batch axis, from the input's.

        Layers of your own may define it: it lets `summary` show shapes, and a Flatten behind them know the channels.

        Parameters
        ----------
        shape : tuple of int, or None
            An int that is not known is None, and so may be all of it.

        Returns
        -------
        tuple of int, or None
            Likewise. By default nothing is known.

        Raises
        ------
        ValueError
            The module cannot take inputs of this shape.
        """
        return None

    def _walk(self, shape, path=""):
        """Yield (path, module, input shape, output shape) of all modules inside and, last, of this one; raise a
        ValueError that names the layer where one cannot take its input."""
        try:
            after = self.output_shape(shape)
        except ValueError as error:
            raise ValueError(f"layer {path}, {self!r}: {error}" if path else str(error)) from None
        yield path, self, shape, after

    def _note_input(self, shape):
        """Told the shape of the input, once the model is put together; state_dict may depend on it."""

    def _training_work(self):
        if self._work is None:
            self._work = Workspace(training=True)
        return self._work

    def _inference_work(self):
        work = getattr(self._inference, "work", None)
        if work is None:
            work = self._inference.work = Workspace(training=False)
        return work

    def predict(self, x, batch_size=1024):
        """The module's output in evaluation mode, batch by batch, whatever the mode;
        leaves the training state alone."""
        batch_size, x = positive_integer("batch_size", batch_size), self._input(x)
        work = self._inference_work()
        starts = range(0, max(len(x), 1), batch_size)
        parts = [np.array(self._from_rows(self._forward(x[i : i + batch_size], work), work)) for i in starts]
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def train(self):
        """Let `forward` act as in training (dropout on, batch statistics). Returns the module."""
        return self._set_mode(True)

    def eval(self):
        """Let `forward` act as in use (dropout off, running statistics). Returns the module."""
        return self._set_mode(False)

    def _set_mode(self, training):
        for _, module in self.modules():
            module.training = training
        return self

    # ---- exchange --------------------------------------------------------------------------------------------------

    def _entries(self):
        """Yield (path, array, Layout or None) of all that is saved, in PyTorch's order: a module's parameters,
        then its buffers."""
        for path, module in self.modules():
            dot = f"{path}." if path else ""
            for name, parameter in (*module._tied.items(), *module._own.items()):
                yield dot + name, parameter.value, parameter.layout
            for name, buffer in module._own_buffers.items():
                yield dot + name, buffer, module._buffer_layout

    def state_dict(self):
        """Copies of all parameters and running statistics, in PyTorch's names, order and shapes; of a tied one under
        each of its names."""
        return {path: _shown_by(layout, a) for path, a, layout in self._entries()}

    def gradient_dict(self):
        """Copies of all gradients, in PyTorch's names, order and shapes."""
        return {path: _shown_by(p.layout, p.gradient) for path, p in self.named_parameters()}

    def load_state_dict(self, state, strict=True):
        """Copy values into the parameters and running statistics.

        Parameters
        ----------
        state : mapping from name to array
            As `state_dict` gives it, or a PyTorch module's. Nothing is changed unless all of it fits. Of a tied
            parameter one name is enough; several must agree.
        strict : bool
            False admits missing and extra names; shapes must fit all the same.

        Raises
        ------
        ValueError
            Names are missing, unexpected, or arrays have another shape; all of them are listed.
        """
        if not isinstance(state, Mapping) or not all(isinstance(name, str) for name in state):
            raise TypeError(f"state: expected a mapping from name to array, got {type(state).__name__}")
        entries = {path: (a, layout) for path, a, layout in self._entries()}
        given = {
            name: _as_array(name, value) for name, value in state.items() if not name.endswith("num_batches_tracked")
        }
        names_of = {}  # each array: a tied one has several
        for name, (a, _) in entries.items():
            names_of.setdefault(id(a), []).append(name)
        problems = []
        if strict:
            problems += [f"missing {names[0]}" for names in names_of.values() if not given.keys() & names]
            problems += [f"unexpected {name}" for name in given if name not in entries]
        for name in entries.keys() & given.keys():
            a, layout = entries[name]
            expected = a.shape if layout is None else layout.shape
            if given[name].dtype.kind not in "fiub":
                problems.append(f"{name} has dtype {given[name].dtype}, expected numbers")
            if given[name].shape != expected:
                problems.append(f"{name} has shape {given[name].shape}, expected {expected}")
        for names in names_of.values():
            first, *others = [name for name in names if name in given] or names
            problems += [
                f"{name} is tied to {first}, but differs"
                for name in others
                if name in given and not np.array_equal(given[name], given[first])
            ]
        if problems:
            raise ValueError(f"state: does not fit {type(self).__name__}: {'; '.join(sorted(problems))}")
        for name in entries.keys() & given.keys():
            a, layout = entries[name]
            if layout is None:
                a[...] = given[name]
            else:
                layout.put(given[name], a)

    def _attachments(self):
        """What a file keeps beside configuration and state_dict, as JSON can hold it."""
        return {}

    def _attach(self, attachments):
        """Take up what `_attachments` gave."""

    def save(self, path):
        """Write the model to a safetensors file, whole or not at all: its configuration and its state_dict."""
        from .storage import save_model

        save_model(self, path)

    @classmethod
    def load(cls, path, *, modules=()):
        """Read a model that `save` wrote.

        Parameters
        ----------
        path : path-like
        modules : sequence of Module classes
            Layers of your own that the model contains.
        """
        from .storage import load_model

        return load_model(path, cls, modules)

    def summary(self):
        """A table of the layers with their outputs' shapes, where known, and their parameter counts, as text."""
        rows = [("layer", "kind", "output", "parameters")]
        shapes = self._output_shapes()
        for path, module in self.modules():
            if not module.children():
                count = sum(p.value.size for p in module._own.values())
                frozen = module._own and not any(p.trainable for p in module._own.values())
                shape = shapes.get(path)
                output = "" if shape is None else shown(("batch", *shape))
                rows.append((path or "-", repr(module), output, f"{count:,}{' (frozen)' if frozen else ''}"))
        widths = [max(len(row[i]) for row in rows) for i in range(4)]
        lines = [f"{a:<{widths[0]}}  {b:<{widths[1]}}  {c:<{widths[2]}}  {d:>{widths[3]}}" for a, b, c, d in rows]
        lines.insert(1, "-" * len(lines[0]))
        trained = sum(p.value.size for _, p in self.named_parameters() if p.trainable)
        return "\n".join([*lines, f"{self.parameters.size:,} parameters, {trained:,} trained, {self.dtype}"])

    def _output_shapes(self):
        """From path to what is known of the output's shape."""
        return {"": self.output_shape(None)}

    def __getstate__(self):
        # Views would come back detached from their vector: leave the vectors out, they are rebuilt from the parts.
        dropped = {"_flat", "_work", "_inference", "_busy"}
        return {name: value for name, value in self.__dict__.items() if name not in dropped}

    def __setstate__(self, state):
        self.__dict__.update(state)
        self._forget()
        for name in self._own:  # in a fresh process the class does not show them yet
            self._show(name, name, "value")
            self._show(f"d{name}", name, "gradient")


def _as_array(name, value):
    """A PyTorch tensor or anything array-like as an ndarray."""
    return array_of(f"state[{name!r}]", value.detach().cpu() if hasattr(value, "detach") else value)
