"""Optimizers: one update of a flat parameter vector, in place.

All parameters of a model lie in one vector, their gradients in a second, each piece of state in one more; `Segments`
says which rows of them move, and how fast. Formulas, defaults and order of operations are PyTorch's, so that a trace
from the same numbers equals PyTorch's. The maths and the measured speed are in docs/kernels/optimizers.md.
"""

import math

import numpy as np

from ._dispatch import Kernel
from ._optimizers_checks import (
    check_adadelta_update,
    check_adagrad_update,
    check_adam_update,
    check_adamw_update,
    check_nadam_update,
    check_rmsprop_update,
    check_sgd_update,
)
from ._segments import Segments

__all__ = [
    "Segments",
    "adadelta_update",
    "adagrad_update",
    "adam_update",
    "adamw_update",
    "nadam_update",
    "rmsprop_update",
    "sgd_update",
]


def _traffic(parameters, *arguments):
    """Bytes moved: parameters and state are read and written, gradients only read."""
    segments = next((a for a in arguments if isinstance(a, Segments)), None)
    vectors = [a for a in (parameters, *arguments) if isinstance(a, np.ndarray) and a.shape == parameters.shape]
    moved = parameters.size if segments is None else segments.trainable
    return (2 * len(vectors) - 1) * moved * parameters.itemsize


def _rows(parameters, segments):
    """(slice, rate factor, decay factor) of each row; without a table, of the whole vector."""
    return [(slice(None), 1.0, 1.0)] if segments is None else segments


def _decayed(gradients, parameters, weight_decay):
    return gradients + weight_decay * parameters if weight_decay else gradients


def _lerp(start, end, weight):
    """Move `start` in place by weight (end - start), counted from the nearer end as PyTorch does it."""
    if weight < 0.5:
        start += weight * (end - start)
    else:
        start[...] = end - (1 - weight) * (end - start)


def sgd_update(
    parameters, gradients, velocity=None, segments=None, lr=1e-3, momentum=0.0, nesterov=False, weight_decay=0.0
):
    """Update parameters by stochastic gradient descent, with momentum where it is wanted.

        g = gradient + weight_decay w
        v = momentum v + g
        w = w - lr v                      with Nesterov: w = w - lr (g + momentum v)

    Parameters
    ----------
    parameters : ndarray of shape (P,), float32 or float64, C-contiguous
        Updated in place.
    gradients : ndarray of shape (P,), of the parameters' dtype
        Read only.
    velocity : ndarray of shape (P,), of the parameters' dtype, C-contiguous, optional
        Updated in place; zero before the first update. None where momentum is 0.
    segments : Segments, optional
        What moves: lr and weight_decay are multiplied by the factors of each row; parameters outside every row stay as
        they are, and so does their state. All parameters alike where it is left out.
    lr, momentum, weight_decay : float
        Finite and at least 0.
    nesterov : bool
        Needs momentum.

    Raises
    ------
    TypeError, ValueError
        An argument has the wrong type, dtype, shape or range, or what is updated overlaps something else; the message
        names it.

    Notes
    -----
    Moves 3 P items to and from memory, 5 P with momentum. The bits depend neither on the number of threads nor on how
    the rows are cut.

    References
    ----------
    Polyak 1964; Sutskever et al. 2013, equations 3 and 4, in the form of torch.optim.SGD: the learning rate stands
    outside the velocity.
    """
    for row, rate, decay in _rows(parameters, segments):
        w = parameters[row]
        step = _decayed(gradients[row], w, weight_decay * decay)
        if momentum:
            v = velocity[row]
            v *= momentum
            v += step
            step = step + momentum * v if nesterov else v
        w -= lr * rate * step


sgd_update = Kernel(sgd_update, "optimizers", check_sgd_update, traffic=_traffic)


def adam_update(
    parameters,
    gradients,
    first_moment,
    second_moment,
    t,
    segments=None,
    lr=1e-3,
    beta1=0.9,
    beta2=0.999,
    eps=1e-8,
    weight_decay=0.0,
):
    """Update parameters by Adam.

        g = gradient + weight_decay w
        m = m + (1 - beta1) (g - m)
        v = beta2 v + (1 - beta2) g^2
        w = w - lr / (1 - beta1^t) m / (sqrt(v) / sqrt(1 - beta2^t) + eps)

    Parameters
    ----------
    parameters, gradients, segments, lr, weight_decay
        As in `sgd_update`.
    first_moment, second_moment : ndarrays of shape (P,), of the parameters' dtype, C-contiguous
        m and v; updated in place, zero before the first update.
    t : int
        The number of this update, 1 for the first.
    beta1, beta2 : float
        0 <= beta < 1.
    eps : float
        At least 0.

    Raises
    ------
    TypeError, ValueError
        As in `sgd_update`.

    Notes
    -----
    Moves 7 P items to and from memory. The bias corrections are computed in float64.

    References
    ----------
    Kingma and Ba 2015, algorithm 1; weight decay as in torch.optim.Adam.
    """
    correction1, correction2 = 1 - beta1**t, math.sqrt(1 - beta2**t)
    for row, rate, decay in _rows(parameters, segments):
        w, m, v = parameters[row], first_moment[row], second_moment[row]
        g = _decayed(gradients[row], w, weight_decay * decay)
        _lerp(m, g, 1 - beta1)
        v *= beta2
        v += (1 - beta2) * g * g
        w -= (lr * rate / correction1) * m / (np.sqrt(v) / correction2 + eps)


adam_update = Kernel(adam_update, "optimizers", check_adam_update, traffic=_traffic)


def adamw_update(
    parameters,
    gradients,
    first_moment,
    second_moment,
    t,
    segments=None,
    lr=1e-3,
    beta1=0.9,
    beta2=0.999,
    eps=1e-8,
    weight_decay=0.01,
):
    """Update parameters by Adam with decoupled weight decay.

        w = w (1 - lr weight_decay)       then Adam's step without decay

    Parameters
    ----------
    parameters, gradients, first_moment, second_moment, t, segments, lr, beta1, beta2, eps, weight_decay
        As in `adam_update`; what it updates in place is updated here too.

    Raises
    ------
    TypeError, ValueError
        As in `sgd_update`.

    Notes
    -----
    Moves 7 P items to and from memory.

    References
    ----------
    Loshchilov and Hutter 2019, algorithm 2, in the form of torch.optim.AdamW: the decay is multiplied by lr.
    """
    for row, rate, decay in _rows(parameters, segments):
        w, state = parameters[row], (first_moment[row], second_moment[row])
        w *= 1 - lr * rate * (weight_decay * decay)
        adam_update.numpy(w, gradients[row], *state, t, None, lr * rate, beta1, beta2, eps)


adamw_update = Kernel(adamw_update, "optimizers", check_adamw_update, traffic=_traffic)


def nadam_update(
    parameters,
    gradients,
    first_moment,
    second_moment,
    mu_product,
    t,
    segments=None,
    lr=2e-3,
    beta1=0.9,
    beta2=0.999,
    eps=1e-8,
    momentum_decay=4e-3,
    weight_decay=0.0,
):
    """Update parameters by Adam with Nesterov momentum.

        mu_t = beta1 (1 - 0.96^(t momentum_decay) / 2),    M_t = mu_1 mu_2 ... mu_t
        g, m, v as in Adam
        w = w - lr ((1 - mu_t) / (1 - M_t) g + mu_(t+1) / (1 - M_(t+1)) m) / (sqrt(v / (1 - beta2^t)) + eps)

    Parameters
    ----------
    parameters, gradients, first_moment, second_moment, t, segments, lr, beta1, beta2, eps, weight_decay
        As in `adam_update`.
    mu_product : ndarray of shape (1,), float64
        M_(t-1); becomes M_t in place. 1 before the first update.
    momentum_decay : float
        At least 0.

    Raises
    ------
    TypeError, ValueError
        As in `sgd_update`.

    Notes
    -----
    Moves 7 P items to and from memory. torch.optim.NAdam keeps M in PyTorch's default dtype; here it is float64 always.

    References
    ----------
    Dozat 2016, algorithm 2, in the form of torch.optim.NAdam.
    """
    mu = beta1 * (1 - 0.5 * 0.96 ** (t * momentum_decay))
    mu_next = beta1 * (1 - 0.5 * 0.96 ** ((t + 1) * momentum_decay))
    mu_product *= mu
    of_gradient = (1 - mu) / (1 - mu_product.item())
    of_moment = mu_next / (1 - mu_product.item() * mu_next)
    for row, rate, decay in _rows(parameters, segments):
        w, m, v = parameters[row], first_moment[row], second_moment[row]
        g = _decayed(gradients[row], w, weight_decay * decay)
        _lerp(m, g, 1 - beta1)
        v *= beta2
        v += (1 - beta2) * g * g
        w -= lr * rate * (of_gradient * g + of_moment * m) / (np.sqrt(v / (1 - beta2**t)) + eps)


nadam_update = Kernel(nadam_update, "optimizers", check_nadam_update, traffic=_traffic)


def rmsprop_update(
    parameters, gradients, square_average, segments=None, lr=1e-2, alpha=0.99, eps=1e-8, weight_decay=0.0
):
    """Update parameters by RMSprop.

        g = gradient + weight_decay w
        v = alpha v + (1 - alpha) g^2
        w = w - lr g / (sqrt(v) + eps)

    Parameters
    ----------
    parameters, gradients, segments, lr, weight_decay
        As in `sgd_update`.
    square_average : ndarray of shape (P,), of the parameters' dtype, C-contiguous
        v; updated in place, zero before the first update.
    alpha : float
        0 <= alpha < 1.
    eps : float
        At least 0.

    Raises
    ------
    TypeError, ValueError
        As in `sgd_update`.

    Notes
    -----
    Moves 5 P items to and from memory. As torch.optim.RMSprop with momentum 0, not centered.

    References
    ----------
    Tieleman and Hinton 2012, lecture 6.5.
    """
    for row, rate, decay in _rows(parameters, segments):
        w, v = parameters[row], square_average[row]
        g = _decayed(gradients[row], w, weight_decay * decay)
        v *= alpha
        v += (1 - alpha) * g * g
        w -= lr * rate * g / (np.sqrt(v) + eps)


rmsprop_update = Kernel(rmsprop_update, "optimizers", check_rmsprop_update, traffic=_traffic)


def adagrad_update(
    parameters, gradients, square_sum, t, segments=None, lr=1e-2, lr_decay=0.0, eps=1e-10, weight_decay=0.0
):
    """Update parameters by Adagrad.

        g = gradient + weight_decay w
        s = s + g^2
        w = w - lr / (1 + (t - 1) lr_decay) g / (sqrt(s) + eps)

    Parameters
    ----------
    parameters, gradients, segments, lr, weight_decay
        As in `sgd_update`.
    square_sum : ndarray of shape (P,), of the parameters' dtype, C-contiguous
        s; updated in place. Before the first update it holds the initial accumulator value, 0 by PyTorch's default.
    t : int
        The number of this update, 1 for the first.
    lr_decay, eps : float
        At least 0.

    Raises
    ------
    TypeError, ValueError
        As in `sgd_update`.

    Notes
    -----
    Moves 5 P items to and from memory.

    References
    ----------
    Duchi, Hazan and Singer 2011, the diagonal form, as in torch.optim.Adagrad.
    """
    lr = lr / (1 + (t - 1) * lr_decay)
    for row, rate, decay in _rows(parameters, segments):
        w, s = parameters[row], square_sum[row]
        g = _decayed(gradients[row], w, weight_decay * decay)
        s += g * g
        w -= lr * rate * g / (np.sqrt(s) + eps)


adagrad_update = Kernel(adagrad_update, "optimizers", check_adagrad_update, traffic=_traffic)


def adadelta_update(
    parameters, gradients, square_average, delta_average, segments=None, lr=1.0, rho=0.9, eps=1e-6, weight_decay=0.0
):
    """Update parameters by Adadelta.

        g = gradient + weight_decay w
        v = rho v + (1 - rho) g^2
        d = sqrt(u + eps) / sqrt(v + eps) g
        u = rho u + (1 - rho) d^2
        w = w - lr d

    Parameters
    ----------
    parameters, gradients, segments, lr, weight_decay
        As in `sgd_update`.
    square_average, delta_average : ndarrays of shape (P,), of the parameters' dtype, C-contiguous
        v and u; updated in place, zero before the first update.
    rho : float
        0 <= rho < 1.
    eps : float
        At least 0.

    Raises
    ------
    TypeError, ValueError
        As in `sgd_update`.

    Notes
    -----
    Moves 7 P items to and from memory.

    References
    ----------
    Zeiler 2012, algorithm 1, as in torch.optim.Adadelta.
    """
    for row, rate, decay in _rows(parameters, segments):
        w, v, u = parameters[row], square_average[row], delta_average[row]
        g = _decayed(gradients[row], w, weight_decay * decay)
        v *= rho
        v += (1 - rho) * g * g
        d = np.sqrt(u + eps) / np.sqrt(v + eps) * g
        u *= rho
        u += (1 - rho) * d * d
        w -= lr * rate * d


adadelta_update = Kernel(adadelta_update, "optimizers", check_adadelta_update, traffic=_traffic)
