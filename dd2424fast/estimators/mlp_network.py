"""The network of an MLPClassifier or MLPRegressor: flat vectors, and the views that the estimator shows."""

import itertools

import numpy as np

from .. import kernels


class Network:
    """A plan with its parameters and running statistics.

    Attributes
    ----------
    plan : kernels.MLPPlan
    parameters, buffers : ndarray of shape (plan.parameters,), (plan.buffers,)
    layers : list
        Views of them: W, b, gamma, beta, mean, var of each layer; None for what it has not.
    coefs, intercepts : list of ndarray
        W and b of each layer.
    """

    def __init__(self, plan, parameters, buffers):
        self.plan, self.parameters, self.buffers = plan, parameters, buffers
        self.layers = plan.layers(parameters, buffers)
        self.coefs = [layer.W for layer in self.layers]
        self.intercepts = [layer.b for layer in self.layers]

    def __reduce__(self):
        return Network, (self.plan, self.parameters, self.buffers)  # a copy's views show the copy

    @classmethod
    def drawn(cls, plan, random_state, dtype):
        """A network before training, by Glorot and Bengio (2010), biases too; the numbers are drawn in scikit-learn's
        order."""
        network = cls(plan, np.zeros(plan.parameters, dtype), np.zeros(plan.buffers, dtype))
        for layer in network.layers:
            bound = np.sqrt((2.0 if plan.activation == "sigmoid" else 6.0) / sum(layer.W.shape))
            layer.W[...] = random_state.uniform(-bound, bound, layer.W.shape)
            layer.b[...] = random_state.uniform(-bound, bound, layer.b.shape)
            if layer.gamma is not None:
                layer.gamma[...] = layer.var[...] = 1
        return network

    def copy(self):
        return Network(self.plan, self.parameters.copy(), self.buffers.copy())

    def with_plan(self, plan):
        """The same parameters under another plan of the same sizes."""
        return Network(plan, self.parameters, self.buffers)

    def writable(self):
        """Itself, or a copy where its memory may not be written: joblib shares large arrays so."""
        return self if self.parameters.flags.writeable and self.buffers.flags.writeable else self.copy()

    def shows(self, coefs, intercepts):
        """Whether these lists hold its views, each in its place."""
        mine = self.coefs
        if len(coefs) != len(mine) or len(intercepts) != len(mine):
            return False
        for given, view in zip(coefs, mine, strict=True):  # all() of a generator takes twice the time
            if given is not view:
                return False
        for given, view in zip(intercepts, self.intercepts, strict=True):
            if given is not view:
                return False
        return True

    def taking(self, coefs, intercepts):
        """A new network that computes with other weights and biases, which are copied.

        Raises ValueError where their shapes do not fit together, nor the inputs and outputs of this network.
        """
        sizes = sizes_of(coefs, intercepts)
        mine, plan = self.plan.sizes, self.plan
        if (sizes[0], sizes[-1]) != (mine[0], mine[-1]) or (plan.batch_norm and sizes != mine):
            raise ValueError(f"coefs_: expected those of a network with layers of {mine} units, got {sizes}")
        if sizes != mine:
            plan = kernels.MLPPlan(sizes, plan.activation, plan.output, plan.batch_norm, plan.dropout)
            return network_of(plan, coefs, intercepts, self.parameters.dtype)
        network = self.copy()
        network._take(coefs, intercepts)
        return network

    def _take(self, coefs, intercepts):
        for layer, W, b in zip(self.layers, coefs, intercepts, strict=True):
            layer.W[...], layer.b[...] = W, b


def network_of(plan, coefs, intercepts, dtype):
    """A network without batch normalisation with these weights and biases."""
    network = Network(plan, np.empty(plan.parameters, dtype), np.zeros(plan.buffers, dtype))
    network._take(coefs, intercepts)
    return network


def sizes_of(coefs, intercepts):
    """Units of each layer, the inputs first."""
    if len(coefs) != len(intercepts) or not len(coefs):
        raise ValueError(
            f"coefs_, intercepts_: expected one of each for every layer, got {len(coefs)} and {len(intercepts)}"
        )
    shapes = [np.shape(W) for W in coefs]
    for i, (shape, b) in enumerate(zip(shapes, intercepts, strict=True)):
        if len(shape) != 2 or (i and shape[0] != shapes[i - 1][1]):
            inputs = shapes[i - 1][1] if i else "inputs"
            raise ValueError(f"coefs_[{i}]: expected shape ({inputs}, units), got {shape}")
        if np.shape(b) != shape[1:]:
            raise ValueError(f"intercepts_[{i}]: expected shape {shape[1:]}, got {np.shape(b)}")
    return tuple(shape[0] for shape in shapes) + shapes[-1][1:]


def work_of(plan, density=1.0):
    """Floating-point operations that training takes for one row, and for one update besides."""
    first, *later = (D * H for D, H in itertools.pairwise(plan.sizes))
    return 4 * first * density + 6 * sum(later), 20 * plan.parameters
