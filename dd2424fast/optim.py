"""Optimizers: hyper-parameters and state vectors; the arithmetic is one kernel call on the flat vector."""

import math

import numpy as np

from . import kernels
from .configuration import Configured, real_in
from .nn.module import Parameter, aligned


class Optimizer(Configured):
    """Base of the optimizers.

    Weight decay w adds w * W to the gradient of weights (AdamW: subtracts lr * w * W from them). Biases and norm
    parameters are exempt unless `decay_all` is true. The course's J = loss + lambda * sum(W^2) is weight_decay = 2 *
    lambda.

    Attributes
    ----------
    lr : float
        Learning rate where the trainer has no schedule.
    updates : int
        Updates made.
    state : dict
        From name to a vector beside the parameters.
    """

    state_names = ()

    def __init__(self, lr, weight_decay=0.0, decay_all=False):
        self.lr = real_in("lr", lr, 0, math.inf, include_high=False)
        self.weight_decay = real_in("weight_decay", weight_decay, 0, math.inf, include_high=False)
        self.decay_all = bool(decay_all)
        self.updates = 0
        self.state = {}
        self._segments = None
        self._parameters = None  # for which, and at which state of their training, the table was made
        self._changes = -1

    def update(self, model, lr=None):
        """Apply one update to a model's parameters from its gradients.

        Parameters
        ----------
        model : nn.Module
        lr : float, optional
            Instead of `self.lr`.
        """
        parameters, gradients = model.parameters, model.gradients
        if self._parameters is not parameters or self._changes != Parameter.changes:
            self._prepare(model)
        self.updates += 1
        try:
            self._update(parameters, gradients, self.lr if lr is None else lr)
        except BaseException:
            self.updates -= 1
            raise

    def _update(self, parameters, gradients, lr):
        raise NotImplementedError

    def _initial(self, name, parameters):
        """The initial value of a state vector."""
        vector = aligned(parameters.size, parameters.dtype)
        vector[...] = 0
        return vector

    def _prepare(self, model):
        """Make the state vectors, and the table of which parameters move and decay."""
        model.check_joined()
        parameters = model.parameters
        for name in self.state_names:
            if name not in self.state:
                self.state[name] = self._initial(name, parameters)
            elif name in self._vectors() and self.state[name].shape != parameters.shape:
                size = self.state[name].size
                raise ValueError(
                    f"model: has {parameters.size} parameters, the optimizer's state is for {size}: "
                    "make a new optimizer"
                )
        bounds, factors, start = [], [], 0
        for _, parameter in model.named_parameters():
            stop = start + parameter.value.size
            if parameter.trainable:
                bounds.append((start, stop))
                factors.append((parameter.rate, 1.0 if self.decay_all or parameter.decays else 0.0))
            start = stop
        self._segments = kernels.Segments(parameters.size, bounds, factors)
        self._parameters, self._changes = parameters, Parameter.changes

    def _vectors(self):
        """Names of the state vectors that are as long as the parameters."""
        return self.state_names

    def load_state(self, model, state, updates):
        """Take up state vectors that were saved."""
        fresh = {name: self._initial(name, model.parameters) for name in self.state_names}
        if state.keys() != fresh.keys() and (state or updates):
            raise ValueError(f"state: expected {sorted(fresh)}, got {sorted(state)}")
        for name, vector in state.items():
            if vector.shape != fresh[name].shape:
                raise ValueError(f"state: {name} has shape {vector.shape}, expected {fresh[name].shape}")
            fresh[name][...] = vector
        self.state = fresh
        self._parameters = None  # the table is made anew at the next update
        self.updates = updates


class SGD(Optimizer):
    """Stochastic gradient descent: v = momentum v + g, W -= lr v;
    with Nesterov's correction W -= lr (g + momentum v)."""

    def __init__(self, lr, momentum=0.0, nesterov=False, weight_decay=0.0, *, decay_all=False):
        super().__init__(lr, weight_decay, decay_all)
        self.momentum = real_in("momentum", momentum, 0, 1, include_high=False)
        self.nesterov = bool(nesterov)
        if self.nesterov and not self.momentum:
            raise ValueError("nesterov: expected a momentum above 0 with it, got 0")
        self.state_names = ("velocity",) if self.momentum else ()

    def _update(self, parameters, gradients, lr):
        kernels.sgd_update(
            parameters,
            gradients,
            self.state.get("velocity"),
            self._segments,
            lr,
            self.momentum,
            self.nesterov,
            self.weight_decay,
        )


class Adam(Optimizer):
    """Kingma and Ba 2015, arXiv:1412.6980, algorithm 1; weight decay is added to the gradient."""

    state_names = ("first_moment", "second_moment")
    _kernel = "adam_update"

    def __init__(self, lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0, *, decay_all=False):
        super().__init__(lr, weight_decay, decay_all)
        self.beta1, self.beta2 = _two_betas(betas)
        self.eps = real_in("eps", eps, 0, math.inf)

    def _update(self, parameters, gradients, lr):
        getattr(kernels, self._kernel)(
            parameters,
            gradients,
            self.state["first_moment"],
            self.state["second_moment"],
            self.updates,
            self._segments,
            lr,
            self.beta1,
            self.beta2,
            self.eps,
            self.weight_decay,
        )


def _two_betas(betas):
    if not isinstance(betas, tuple | list) or len(betas) != 2:
        raise ValueError(f"betas: expected two numbers in [0, 1), got {betas!r}")
    return tuple(real_in(f"betas[{i}]", beta, 0, 1, include_high=False) for i, beta in enumerate(betas))


class AdamW(Adam):
    """Adam with decoupled weight decay (Loshchilov and Hutter 2019, arXiv:1711.05101, algorithm 2)."""

    _kernel = "adamw_update"

    def __init__(self, lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=1e-2, *, decay_all=False):
        super().__init__(lr, betas, eps, weight_decay, decay_all=decay_all)


class NAdam(Adam):
    """Adam with Nesterov's momentum (Dozat 2016), its momentum warmed up as in PyTorch."""

    state_names = ("first_moment", "second_moment", "mu_product")

    def __init__(
        self, lr=2e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0, momentum_decay=4e-3, *, decay_all=False
    ):
        super().__init__(lr, betas, eps, weight_decay, decay_all=decay_all)
        self.momentum_decay = real_in("momentum_decay", momentum_decay, 0, math.inf)

    def _initial(self, name, parameters):
        return np.ones(1) if name == "mu_product" else super()._initial(name, parameters)

    def _vectors(self):
        return ("first_moment", "second_moment")

    def _update(self, parameters, gradients, lr):
        kernels.nadam_update(
            parameters,
            gradients,
            self.state["first_moment"],
            self.state["second_moment"],
            self.state["mu_product"],
            self.updates,
            self._segments,
            lr,
            self.beta1,
            self.beta2,
            self.eps,
            self.momentum_decay,
            self.weight_decay,
        )


class RMSprop(Optimizer):
    """Divide by a running root mean square of the gradient (Tieleman and Hinton 2012, lecture 6.5)."""

    state_names = ("square_average",)

    def __init__(self, lr=1e-2, alpha=0.99, eps=1e-8, weight_decay=0.0, *, decay_all=False):
        super().__init__(lr, weight_decay, decay_all)
        self.alpha = real_in("alpha", alpha, 0, 1, include_high=False)
        self.eps = real_in("eps", eps, 0, math.inf)

    def _update(self, parameters, gradients, lr):
        kernels.rmsprop_update(
            parameters,
            gradients,
            self.state["square_average"],
            self._segments,
            lr,
            self.alpha,
            self.eps,
            self.weight_decay,
        )


class Adagrad(Optimizer):
    """Divide by the root of the sum of squared gradients so far (Duchi, Hazan and Singer 2011)."""

    state_names = ("square_sum",)

    def __init__(self, lr=1e-2, lr_decay=0.0, weight_decay=0.0, initial_accumulator=0.0, eps=1e-10, *, decay_all=False):
        super().__init__(lr, weight_decay, decay_all)
        self.lr_decay = real_in("lr_decay", lr_decay, 0, math.inf)
        self.initial_accumulator = real_in("initial_accumulator", initial_accumulator, 0, math.inf, include_high=False)
        self.eps = real_in("eps", eps, 0, math.inf)

    def _initial(self, name, parameters):
        return super()._initial(name, parameters) + parameters.dtype.type(self.initial_accumulator)

    def _update(self, parameters, gradients, lr):
        kernels.adagrad_update(
            parameters,
            gradients,
            self.state["square_sum"],
            self.updates,
            self._segments,
            lr,
            self.lr_decay,
            self.eps,
            self.weight_decay,
        )


class Adadelta(Optimizer):
    """Zeiler 2012, arXiv:1212.5701, algorithm 1."""

    state_names = ("square_average", "delta_average")

    def __init__(self, lr=1.0, rho=0.9, eps=1e-6, weight_decay=0.0, *, decay_all=False):
        super().__init__(lr, weight_decay, decay_all)
        self.rho = real_in("rho", rho, 0, 1, include_high=False)
        self.eps = real_in("eps", eps, 0, math.inf)

    def _update(self, parameters, gradients, lr):
        kernels.adadelta_update(
            parameters,
            gradients,
            self.state["square_average"],
            self.state["delta_average"],
            self._segments,
            lr,
            self.rho,
            self.eps,
            self.weight_decay,
        )
