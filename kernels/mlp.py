"""Training a multi-layer perceptron: many updates in one call, without Python between them.

A network of fully connected layers lies in one flat vector of parameters, as nn.Sequential lays it: of each layer the
weights (inputs, outputs) and the bias and, with batch normalisation, of a hidden layer gamma and beta. Its running
statistics lie in a second, mean before variance. Axes: N rows, D inputs, K outputs. The maths, the memory and the
measured speed are in docs/kernels/mlp.md.
"""

import itertools
from dataclasses import dataclass, field

import numpy as np

from . import _mlp_float32, _mlp_float64
from ._checks import array, disjoint, result
from ._dispatch import Kernel
from ._random_checks import check_stream_key
from .activations import activation_backward, activation_forward
from .clipping import all_finite
from .custom_activation import CustomActivation, custom_activation_backward, custom_activation_forward
from .losses import softmax, softmax_cross_entropy
from .normalization import batch_norm_backward, batch_norm_forward, batch_norm_inference
from .random import dropout, stream_key

__all__ = ["AdamSolver", "MLPPlan", "SGDSolver", "mlp_gradient", "mlp_loss", "mlp_outputs", "mlp_updates"]

_FAST = {"f": _mlp_float32, "d": _mlp_float64}

_MOST_COLUMNS = 2**31 - 1  # of a sparse matrix: compiled code numbers them by int32

OUTPUTS = ("softmax", "sigmoid", "identity", "exp")
ACTIVATIONS = ("identity", "relu", "leaky_relu", "tanh", "sigmoid")
NORM_MOMENTUM, NORM_EPS = 0.1, 1e-5


@dataclass
class Layer:
    """One layer's parameters and running statistics, as views; None for what it has not."""

    W: np.ndarray
    b: np.ndarray
    gamma: np.ndarray | None = None
    beta: np.ndarray | None = None
    mean: np.ndarray | None = None
    var: np.ndarray | None = None


class MLPPlan:
    """What a multi-layer perceptron computes, and where its parameters lie.

    A hidden layer is f(x W + b), with batch normalisation f(norm(x W + b)), and then dropout.

    Parameters
    ----------
    sizes : sequence of int
        Inputs, units of each hidden layer, outputs.
    activation : {"identity", "relu", "leaky_relu", "tanh", "sigmoid"} or CustomActivation
        f, of the hidden layers.
    output : {"softmax", "sigmoid", "identity", "exp"}
        What becomes of the last layer's results z, and with it the loss of a row: cross-entropy; the sum over the
        outputs of binary cross-entropies; half the squared error, summed; half the Poisson deviance, summed.
    batch_norm : bool
    dropout : float
        Probability in [0, 1), in every hidden layer.

    Attributes
    ----------
    parameters, buffers : int
        Sizes of the two flat vectors.
    """

    def __init__(self, sizes, activation="relu", output="softmax", batch_norm=False, dropout=0.0):
        sizes = tuple(sizes)
        for i, size in enumerate(sizes):
            if isinstance(size, bool) or not hasattr(size, "__index__") or size < 1:
                raise ValueError(f"sizes[{i}]: expected an integer of at least 1, got {size!r}")
        if len(sizes) < 2:
            raise ValueError(f"sizes: expected those of the input and of the output at least, got {sizes}")
        if not isinstance(activation, CustomActivation) and activation not in ACTIVATIONS:
            known = ", ".join(ACTIVATIONS)
            raise ValueError(f"activation: expected one of {known} or a custom activation, got {activation!r}")
        if output not in OUTPUTS:
            raise ValueError(f"output: expected one of {', '.join(OUTPUTS)}, got {output!r}")
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout: expected a probability in [0, 1), got {dropout!r}")
        self.sizes = sizes = tuple(size.__index__() for size in sizes)  # a NumPy integer's products may overflow
        self.activation, self.output = activation, output
        self.batch_norm, self.dropout = bool(batch_norm), float(dropout)
        self.parameters = sum((D + 1) * H for D, H in itertools.pairwise(sizes))
        self.buffers = 0
        if batch_norm:
            self.parameters += 2 * sum(sizes[1:-1])
            self.buffers = 2 * sum(sizes[1:-1])

    def layers(self, parameters, buffers=None):
        """The layers' parts of a flat vector of parameters (or gradients) and of one of running statistics, as views:
        list of Layer."""
        layers, start, kept = [], 0, 0
        for i, (D, H) in enumerate(itertools.pairwise(self.sizes)):
            W = parameters[start : start + D * H].reshape(D, H)
            start += D * H
            vectors = [parameters[start : start + H]]
            start += H
            if self.batch_norm and i < len(self.sizes) - 2:
                vectors += [parameters[start : start + H], parameters[start + H : start + 2 * H]]
                start += 2 * H
                if buffers is not None:
                    vectors += [buffers[kept : kept + H], buffers[kept + H : kept + 2 * H]]
                    kept += 2 * H
            layers.append(Layer(W, *vectors))
        return layers

    def __repr__(self):
        return f"MLPPlan({self.sizes}, {self.activation!r}, {self.output!r}, {self.batch_norm}, {self.dropout})"


@dataclass
class SGDSolver:
    """Momentum: v = mu v - lr g, then W += v, or with Nesterov's correction W += mu v - lr g (scikit-learn's form, in
    which a new rate leaves the step that is under way as long as it is).

    Attributes
    ----------
    velocity : ndarray of shape (parameters,)
    learning_rate, momentum : float
    nesterov : bool
    t : int
        Updates made.
    """

    velocity: np.ndarray = field(repr=False)
    learning_rate: float = 1e-3
    momentum: float = 0.9
    nesterov: bool = True
    t: int = 0


@dataclass
class AdamSolver:
    """Adam with epsilon beside the moment as it is (Kingma and Ba 2015, arXiv:1412.6980, end of section 2):

        W -= lr sqrt(1 - beta_2^t) / (1 - beta_1^t) m / (sqrt(v) + epsilon)

    Attributes
    ----------
    first_moment, second_moment : ndarray of shape (parameters,)
    learning_rate, beta_1, beta_2, epsilon : float
    t : int
        Updates made.
    """

    first_moment: np.ndarray = field(repr=False)
    second_moment: np.ndarray = field(repr=False)
    learning_rate: float = 1e-3
    beta_1: float = 0.9
    beta_2: float = 0.999
    epsilon: float = 1e-8
    t: int = 0


# ---- forward -------------------------------------------------------------------------------------------------------


def mlp_outputs(plan, parameters, buffers, x, out=None):
    """Apply a network, in evaluation: no dropout, batch normalisation by the running statistics.

    Parameters
    ----------
    plan : MLPPlan
    parameters : ndarray of shape (plan.parameters,), float32 or float64
    buffers : ndarray of shape (plan.buffers,)
    x : ndarray of shape (N, D) of parameters' dtype, or a SciPy CSR matrix
    out : ndarray of shape (N, K), optional

    Returns
    -------
    ndarray of shape (N, K)
        softmax, sigmoid, z itself or exp of z, as the plan says. A row's bits do not depend on the others.

    Raises
    ------
    TypeError, ValueError
        An argument has the wrong type, dtype or shape; the message names it, what came and what was expected.
    """
    z, _ = _forward(plan, plan.layers(parameters, buffers), x, None)
    if plan.output == "softmax":
        return softmax.numpy(z, out)
    if plan.output == "exp":
        return np.exp(z, out=out)
    return activation_forward.numpy(z, plan.output, out)


def _check_plan(plan, parameters, buffers, learns):
    if not isinstance(plan, MLPPlan):
        raise TypeError(f"plan: expected an MLPPlan, got {type(plan).__name__}")
    parameters = array("parameters", parameters, (plan.parameters,), None, learns)
    return parameters, array("buffers", buffers, (plan.buffers,), parameters.dtype, learns)


def _check_x(x, D, dtype):
    """A matrix, or a CSR matrix whose indices compiled code may follow."""
    if isinstance(x, np.ndarray) or not hasattr(x, "indptr"):
        return array("x", x, (None, D), dtype)
    if x.format != "csr":
        raise TypeError(f"x: expected an ndarray or a CSR matrix, got a sparse matrix in {x.format} format")
    if x.dtype != dtype:
        raise TypeError(f"x: expected dtype {dtype}, got {x.dtype}")
    if x.ndim != 2 or x.shape[1] != D:
        raise ValueError(f"x: expected shape (any, {D}), got {x.shape}")
    if D > _MOST_COLUMNS:
        raise ValueError(f"x: expected at most {_MOST_COLUMNS} columns of a sparse matrix, got {D}")
    starts, columns = x.indptr, x.indices
    in_order = len(starts) == x.shape[0] + 1 and starts[0] == 0 and (starts[1:] >= starts[:-1]).all()
    if not in_order or starts[-1] > min(len(columns), len(x.data)):
        raise ValueError("x: expected a sparse matrix whose indptr rises from 0 to the number of entries")
    if len(columns) and not 0 <= columns.min() <= columns.max() < D:
        raise ValueError(f"x: expected a sparse matrix with column indices from 0 to {D - 1}")
    return x


def _check_outputs(plan, parameters, buffers, x, out=None):
    parameters, buffers = _check_plan(plan, parameters, buffers, False)
    x = _check_x(x, plan.sizes[0], parameters.dtype)
    given, out = out, result("out", out, (x.shape[0], plan.sizes[-1]), parameters.dtype)
    if given is not None:
        _check_apart([("out", out)], parameters=parameters, buffers=buffers, x=x)
    return plan, parameters, buffers, x, out


def _check_apart(written, **read):
    """What is written overlaps nothing else; of a sparse matrix its numbers count."""
    read = [(name, a.data if hasattr(a, "indptr") else a) for name, a in read.items()]
    for i, (name, out) in enumerate(written):
        for other_name, other in (*written[:i], *read):
            disjoint(name, out, other_name, other)


def _plain(x):
    """The arrays of a sparse matrix as compiled code takes them."""
    if isinstance(x, np.ndarray):
        return x
    return (
        np.ascontiguousarray(x.indptr, np.int64),
        np.ascontiguousarray(x.indices, np.int32),
        np.ascontiguousarray(x.data),
    )


mlp_outputs = Kernel(
    mlp_outputs,
    lambda plan, parameters, buffers, x, out: _FAST[parameters.dtype.char].mlp_outputs(
        plan, parameters, buffers, _plain(x), out
    ),
    _check_outputs,
    flops=lambda plan, parameters, buffers, x, out: 2 * _entries(x) * plan.sizes[1] + len(out) * _later_flops(plan),
)


def _entries(x):
    return x.size if isinstance(x, np.ndarray) else x.nnz


def _later_flops(plan):
    """Of a row in all layers but the first."""
    return sum(2 * D * H for D, H in itertools.pairwise(plan.sizes[1:]))


def _forward(plan, layers, x, keys):
    """z of the last layer, and of each layer (input, before normalisation, statistics, output before dropout) for the
    way back. `keys` of the dropout masks; None in evaluation."""
    saved = []
    for i, layer in enumerate(layers[:-1]):
        z, statistics = np.asarray(x @ layer.W) + layer.b, None
        before = z
        if layer.gamma is not None:
            norm = layer.gamma, layer.beta, layer.mean, layer.var
            if keys is None:
                z = batch_norm_inference.numpy(before, *norm, NORM_EPS)
            else:
                z, *statistics = batch_norm_forward.numpy(before, *norm, NORM_MOMENTUM, NORM_EPS)
        if isinstance(plan.activation, CustomActivation):
            y, before_activation = custom_activation_forward.numpy(z, plan.activation), z
        else:
            y, before_activation = activation_forward.numpy(z, plan.activation), None
        saved.append((x, before, statistics, (before_activation, y)))
        x = dropout.numpy(y, plan.dropout, keys[i]) if plan.dropout and keys is not None else y
    saved.append((x, None, None, None))
    return np.asarray(x @ layers[-1].W) + layers[-1].b, saved


def _backward(plan, layers, saved, dz, gradients, keys):
    """Fill the layers of `gradients` from dL/dz of the last layer."""
    for i in range(len(layers) - 1, -1, -1):
        x, before, statistics, outputs = saved[i]
        if i < len(layers) - 1:
            if plan.dropout:
                dz = dropout.numpy(dz, plan.dropout, keys[i])
            z, y = outputs
            if z is not None:
                dz = custom_activation_backward.numpy(dz, z, plan.activation)
            else:
                dz = activation_backward.numpy(dz, y, plan.activation)
            if statistics is not None:
                into = gradients[i].gamma, gradients[i].beta
                dz, *_ = batch_norm_backward.numpy(dz, before, layers[i].gamma, *statistics, None, *into)
        gradients[i].W[...] = x.T @ dz
        gradients[i].b[...] = dz.sum(axis=0)
        dz = dz @ layers[i].W.T
    return gradients


def _loss(plan, z, y, weight):
    """Mean over the rows, by their weights, of their losses; dL/dz; the sum of the weights."""
    total = len(z) if weight is None else float(weight.sum(dtype=np.float64))
    if plan.output == "softmax":
        loss, dz = softmax_cross_entropy.numpy(z, y, sample_weight=weight)
        return loss, dz, total
    if plan.output == "sigmoid":
        losses = np.maximum(z, 0) - z * y + np.log1p(np.exp(-np.abs(z)))
        dz = activation_forward.numpy(z, "sigmoid") - y
    elif plan.output == "identity":
        dz = z - y
        losses = dz * dz / 2
    else:
        dz = np.exp(z) - y
        losses = dz - y * z + y * np.log(np.where(y > 0, y, 1))
    scale = np.full((len(z), 1), 1 / total) if weight is None else weight[:, None] / total
    return float((losses * scale).sum(dtype=np.float64)), (dz * scale).astype(z.dtype), total


def mlp_loss(plan, parameters, buffers, x, y, sample_weight=None):
    """Mean loss of a network over data, in evaluation, without the penalty.

    Parameters
    ----------
    plan, parameters, buffers, x : see mlp_outputs
    y, sample_weight : see mlp_gradient

    Returns
    -------
    float
    """
    z, _ = _forward(plan, plan.layers(parameters, buffers), x, None)
    return _loss(plan, z, y, sample_weight)[0]


def _check_data(plan, dtype, x, y, sample_weight, weight_needed):
    """x, y and the weights of its rows."""
    x = _check_x(x, plan.sizes[0], dtype)
    N, K = x.shape[0], plan.sizes[-1]
    if N == 0:
        raise ValueError("x: expected at least one row, got none")
    if plan.output == "softmax":
        if not isinstance(y, np.ndarray) or y.dtype != np.int64:
            raise TypeError(f"y: expected an ndarray of int64, got {getattr(y, 'dtype', type(y).__name__)}")
        if y.shape != (N,):
            raise ValueError(f"y: expected shape ({N},), got {y.shape}")
        if not 0 <= y.min() <= y.max() < K:
            raise ValueError(f"y: expected classes from 0 to {K - 1}, got {y.min()} to {y.max()}")
        y = np.ascontiguousarray(y)
    else:
        y = array("y", y, (N, K), dtype)
    if sample_weight is not None:
        sample_weight = array("sample_weight", sample_weight, (N,), dtype)
        if not (np.isfinite(sample_weight) & (sample_weight >= 0)).all():
            raise ValueError("sample_weight: expected finite numbers of at least 0")
        if weight_needed and not sample_weight.any():
            raise ValueError("sample_weight: expected one above 0, got none")
    return x, y, sample_weight


def _check_loss(plan, parameters, buffers, x, y, sample_weight=None):
    parameters, buffers = _check_plan(plan, parameters, buffers, False)
    return plan, parameters, buffers, *_check_data(plan, parameters.dtype, x, y, sample_weight, True)


mlp_loss = Kernel(
    mlp_loss,
    lambda plan, parameters, buffers, x, *rest: _FAST[parameters.dtype.char].mlp_loss(
        plan, parameters, buffers, _plain(x), *rest
    ),
    _check_loss,
    flops=lambda plan, parameters, buffers, x, y, *_: 2 * _entries(x) * plan.sizes[1] + len(y) * _later_flops(plan),
)


def mlp_gradient(plan, parameters, buffers, x, y, sample_weight=None, alpha=0.0, seed=0, update=0, gradients=None):
    """Loss of a network on one batch, in training, and its gradient.

        loss = sum_i w_i l_i / sum_i w_i,    penalty = alpha / 2 sum of W^2 / sum_i w_i

    with l_i the loss of a row as the plan's output has it, w_i the sample weights (1 where not given) and W the weights
    of all layers (no biases, no gamma).

    Parameters
    ----------
    plan, parameters, x : see mlp_outputs
    buffers : ndarray of shape (plan.buffers,)
        The running statistics, which the batch moves.
    y : ndarray of shape (N,), int64: classes, for "softmax"; of shape (N, K) and parameters' dtype otherwise
    sample_weight : ndarray of shape (N,) of parameters' dtype, optional
        Finite, not negative, and one of them positive. A whole weight n is the same as the row n times, but for
        dropout, whose masks differ, and batch normalisation, whose statistics count every row once.
    alpha : float
    seed, update : int
        Of dropout: its masks are a pure function of them and of the layer.
    gradients : ndarray of shape (plan.parameters,), optional
        Holds the gradient of loss + penalty.

    Returns
    -------
    loss, penalty : float
    gradients : ndarray of shape (plan.parameters,)
        NaN where the loss is not finite.
    """
    layers, into = plan.layers(parameters, buffers), plan.layers(gradients)
    keys = [stream_key(seed, i, update) for i in range(len(layers) - 1)]
    z, saved = _forward(plan, layers, x, keys)
    loss, dz, total = _loss(plan, z, y, sample_weight)
    _backward(plan, layers, saved, dz, into, keys)
    if not np.isfinite(loss):
        gradients.fill(np.nan)
    squares = 0.0
    for layer, gradient in zip(layers, into, strict=True) if alpha else ():
        gradient.W[...] += alpha / total * layer.W
        squares += float(np.square(layer.W, dtype=np.float64).sum())
    return loss, alpha / 2 * squares / total, gradients


def _check_strength(name, value):
    number = isinstance(value, int | float | np.number) and not isinstance(value, bool | np.complexfloating)
    if not number or not 0 <= value <= np.finfo(np.float64).max:
        raise ValueError(f"{name}: expected a finite number of at least 0, got {value!r}")
    return float(value)


def _check_size(name, size, least):
    whole = hasattr(size, "__index__") and not isinstance(size, bool | np.ndarray)
    if not whole or not least <= size.__index__() < 2**62:
        raise ValueError(f"{name}: expected an integer of at least {least}, got {size!r}")
    return size.__index__()


def _check_gradient(plan, parameters, buffers, x, y, sample_weight=None, alpha=0.0, seed=0, update=0, gradients=None):
    parameters, buffers = _check_plan(plan, parameters, buffers, False)
    buffers = array("buffers", buffers, buffers.shape, buffers.dtype, True)
    x, y, sample_weight = _check_data(plan, parameters.dtype, x, y, sample_weight, True)
    if plan.batch_norm and len(y) == 1:
        raise ValueError("x: expected at least two rows, since batch normalisation needs a variance; got one")
    gradients = result("gradients", gradients, parameters.shape, parameters.dtype)
    written = [("gradients", gradients), ("buffers", buffers)]
    _check_apart(written, parameters=parameters, x=x, y=y, sample_weight=sample_weight)
    seed, update = check_stream_key(seed, 0, update)[::2]
    return plan, parameters, buffers, x, y, sample_weight, _check_strength("alpha", alpha), seed, update, gradients


def _update_flops(plan, x, rows):
    return rows / x.shape[0] * 4 * _entries(x) * plan.sizes[1] + 3 * rows * _later_flops(plan)


mlp_gradient = Kernel(
    mlp_gradient,
    lambda plan, parameters, buffers, x, *rest: _FAST[parameters.dtype.char].mlp_gradient(
        plan, parameters, buffers, _plain(x), *rest
    ),
    _check_gradient,
    flops=lambda plan, parameters, buffers, x, y, *_: _update_flops(plan, x, len(y)),
)


# ---- updates -------------------------------------------------------------------------------------------------------


def mlp_updates(
    plan,
    parameters,
    buffers,
    solver,
    x,
    y,
    sample_weight=None,
    order=None,
    batch_size=200,
    alpha=0.0,
    seed=0,
    so_far=(0.0, 0.0),
    of=None,
):
    """Train a network: one update for each batch of rows.

    Parameters
    ----------
    plan, x, y, alpha : see mlp_gradient
    parameters, buffers : ndarray
        Changed in place.
    solver : SGDSolver or AdamSolver
        Its state moves on; its `t` with `seed` decides the dropout masks.
    sample_weight : ndarray of shape (N,) of parameters' dtype, optional
        Finite and not negative. A batch without weight is passed over.
    order : ndarray of int64, optional
        The rows in the order in which they come, any number of them; default: all, as they stand.
    batch_size : int
        Rows of an update. The last batch may be smaller; a single row left over goes into the batch before where there
        is batch normalisation, since one row has no variance.
    seed : int
    so_far : (float, float)
        What the call before returned, where several calls make the updates of one pass over the rows.
    of : int, optional
        Rows of all these calls; default: of this one. How they are divided, by whole batches, changes no bit.

    Returns
    -------
    loss, penalty : float
        Means over the rows (with `of`, what is so far of them), each batch's before its update. Where one is not
        finite, or a gradient or a running statistic is not, training ends there: that update is not made, and the loss
        returned is NaN or infinite.
    """
    rows = np.arange(x.shape[0]) if order is None else order
    starts = list(range(0, len(rows), batch_size))
    if plan.batch_norm and len(starts) > 1 and len(rows) - starts[-1] == 1:
        starts.pop()
    gradients = np.empty_like(parameters)
    loss, penalty = so_far
    for start, stop in itertools.pairwise([*starts, len(rows)]):
        batch = rows[start:stop]
        weight = None if sample_weight is None else sample_weight[batch]
        if weight is not None and not weight.any():
            continue
        kept = buffers.copy()
        with np.errstate(over="ignore", invalid="ignore"):
            of_batch = mlp_gradient.numpy(
                plan, parameters, buffers, x[batch], y[batch], weight, alpha, seed, solver.t, gradients
            )
        loss += of_batch[0] * len(batch) / of
        penalty += of_batch[1] * len(batch) / of
        if not (np.isfinite(loss + penalty) and all_finite.numpy(gradients) and np.isfinite(buffers).all()):
            buffers[...] = kept
            return (np.nan if np.isfinite(loss) else loss), penalty
        _step(solver, parameters, gradients)
    return loss, penalty


def _step(solver, parameters, g):
    solver.t += 1
    if isinstance(solver, SGDSolver):
        v = solver.velocity
        v *= solver.momentum
        v -= solver.learning_rate * g
        parameters += solver.momentum * v - solver.learning_rate * g if solver.nesterov else v
        return
    m, v = solver.first_moment, solver.second_moment
    m *= solver.beta_1
    m += (1 - solver.beta_1) * g
    v *= solver.beta_2
    v += (1 - solver.beta_2) * (g * g)
    rate = solver.learning_rate * np.sqrt(1 - solver.beta_2**solver.t) / (1 - solver.beta_1**solver.t)
    parameters -= rate * m / (np.sqrt(v) + solver.epsilon)


def _check_solver(solver, parameters):
    if not isinstance(solver, SGDSolver | AdamSolver):
        raise TypeError(f"solver: expected an SGDSolver or AdamSolver, got {type(solver).__name__}")
    vectors = ("velocity",) if isinstance(solver, SGDSolver) else ("first_moment", "second_moment")
    for name in vectors:
        array(f"solver.{name}", getattr(solver, name), parameters.shape, parameters.dtype, True)
    return [(f"solver.{name}", getattr(solver, name)) for name in vectors]


def _check_updates(
    plan,
    parameters,
    buffers,
    solver,
    x,
    y,
    sample_weight=None,
    order=None,
    batch_size=200,
    alpha=0.0,
    seed=0,
    so_far=(0.0, 0.0),
    of=None,
):
    parameters, buffers = _check_plan(plan, parameters, buffers, True)
    x, y, sample_weight = _check_data(plan, parameters.dtype, x, y, sample_weight, False)
    written = [("parameters", parameters), ("buffers", buffers), *_check_solver(solver, parameters)]
    _check_apart(written, x=x, y=y, sample_weight=sample_weight)
    if order is not None:
        if not isinstance(order, np.ndarray) or order.dtype != np.int64 or order.ndim != 1:
            raise TypeError(f"order: expected a vector of int64, got {order!r}")
        if not len(order) or not 0 <= order.min() <= order.max() < len(y):
            raise ValueError(f"order: expected numbers of rows, from 0 to {len(y) - 1}, and at least one")
        order = np.ascontiguousarray(order)
    rows = len(y if order is None else order)
    if plan.batch_norm and rows == 1:
        raise ValueError("x: expected at least two rows, since batch normalisation needs a variance; got one")
    seed, _, _ = check_stream_key(seed, 0, 0)
    batch_size = min(_check_size("batch_size", batch_size, 1 + plan.batch_norm), rows)
    alpha = _check_strength("alpha", alpha)
    so_far = _check_so_far(so_far)
    of = rows if of is None else _check_size("of", of, rows)
    return plan, parameters, buffers, solver, x, y, sample_weight, order, batch_size, alpha, seed, so_far, of


def _check_so_far(so_far):
    pair = isinstance(so_far, tuple | list) and len(so_far) == 2
    if not pair or not all(isinstance(value, float | np.floating) for value in so_far):
        raise TypeError(f"so_far: expected (loss, penalty), two floats, got {so_far!r}")
    return float(so_far[0]), float(so_far[1])


mlp_updates = Kernel(
    mlp_updates,
    lambda plan, parameters, buffers, solver, x, *rest: _FAST[parameters.dtype.char].mlp_updates(
        plan, parameters, buffers, solver, _plain(x), *rest
    ),
    _check_updates,
    flops=lambda plan, parameters, buffers, solver, x, y, weight, order, *_: _update_flops(
        plan, x, len(y if order is None else order)
    ),
)
