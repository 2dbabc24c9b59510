"""How an MLPClassifier or MLPRegressor trains: by epochs of updates (sgd, adam), or by L-BFGS-B; and what is done
between: scores of a validation set, stopping, callbacks, the clock.

Each is a mixin that works on the attributes of the estimator: all that an interrupted training needs to go on.
"""

import math
import time
import warnings
from dataclasses import dataclass

import numpy as np
from sklearn.exceptions import ConvergenceWarning

from .. import kernels
from ..errors import TrainingDiverged
from ..kernels.mlp import NORM_MOMENTUM
from ..threads import END
from .mlp_network import work_of
from .shared import signature_of

STRETCH = 0.2  # seconds of updates between two looks at the clock
FIRST_WORK = 2e8  # floating-point operations before the first look: milliseconds
SMALLEST_RATE = 1e-6  # "adaptive" ends here


@dataclass
class Data:
    """Rows as kernels take them; `weight` None where all count the same."""

    X: object
    y: np.ndarray
    weight: np.ndarray | None = None

    def __len__(self):
        return self.X.shape[0]


@dataclass
class Epoch:
    """Where an epoch stands: the order of its rows, how many are done (None before it starts), their losses."""

    order: np.ndarray
    position: int | None = None
    loss: float = 0.0
    penalty: float = 0.0


class Clock:
    """Divides the updates into stretches, so that Ctrl-C and a time budget act between them; the last one's pace tells
    what fits into the next."""

    def __init__(self, budget):
        self.end = math.inf if budget is None else time.monotonic() + budget
        self.pace = self.started = None
        self.end_of_all = END.get()

    def start(self, first=1):
        """The number of updates to make now, `first` in the first stretch; below 1 where none fits any more."""
        self.started = time.monotonic()
        if self.pace is None:
            return first
        if self.end_of_all is not None and self.end_of_all.is_set():
            return 0
        return int(min(max(1, STRETCH // self.pace), (self.end - self.started) / self.pace))

    def done(self, updates):
        self.pace = max((time.monotonic() - self.started) / updates, 1e-12)


class Watch:
    """Scores of a validation set, the best parameters so far, and when to stop: for either way of training."""

    def _score_now(self, watched):
        """Score the validation set, and keep the parameters where they are the best yet."""
        network = self._network
        outputs = kernels.mlp_outputs(network.plan, network.parameters, network.buffers, watched.X)
        score = self._score_outputs(outputs, watched.y, watched.weight) if kernels.all_finite(outputs) else math.nan
        self.validation_scores_.append(score)
        if self.verbose:
            print(f"Validation score: {score:f}")
        return score

    def _count_improvement(self, watched):
        """Count the epochs without one, of the score where it decides and else of the loss."""
        score = None if watched is None else self._score_now(watched)
        if self.early_stopping and watched is not None:
            stalled = score < self.best_validation_score_ + self.tol
        else:
            stalled = self.loss_ > self.best_loss_ - self.tol
            self.best_loss_ = min(self.best_loss_, self.loss_)
        self._no_improvement_count = self._no_improvement_count + 1 if stalled else 0
        if score is not None and score > self.best_validation_score_:
            self.best_validation_score_ = score
            if self._restores():
                self._best = self._network.parameters.copy(), self._network.buffers.copy()

    def _restores(self):
        return self.early_stopping if self.restore_best_weights is None else self.restore_best_weights

    def _end_with_the_best(self):
        """Put the best parameters in the network; what it was trained to is kept where training may go on."""
        network = self._network
        if self._best is not None:
            self._last = (network.parameters.copy(), network.buffers.copy()) if self.warm_start else None
            network.parameters[...], network.buffers[...] = self._best

    def _go_on_from_the_last(self):
        """Undo that, unless the weights were changed since."""
        network, last = self._network, self._last
        if last is not None and np.array_equal(network.parameters, self._best[0]):
            network.parameters[...], network.buffers[...] = last
        self._last = None

    def _say_interrupted(self):
        warnings.warn(
            f"training was interrupted in epoch {self.n_iter_ + 1}; what was learned is kept", UserWarning, stacklevel=6
        )


class Descent(Watch):
    """Epochs of updates by "sgd" and "adam"."""

    def _new_optimizer(self):
        zeros = np.zeros_like(self._network.parameters)
        if self.solver == "sgd":
            return kernels.SGDSolver(zeros, float(self.learning_rate_init))
        return kernels.AdamSolver(zeros, zeros.copy(), float(self.learning_rate_init))

    def _ready_optimizer(self, fresh):
        """Let the optimizer start or go on, with the parameters that the estimator has now."""
        kind = kernels.SGDSolver if self.solver == "sgd" else kernels.AdamSolver
        size = self._network.parameters.shape
        optimizer = self._optimizer
        vector = next((v for v in vars(optimizer).values() if isinstance(v, np.ndarray)), None) if optimizer else None
        fits = isinstance(optimizer, kind) and vector.shape == size and vector.dtype == self._network.parameters.dtype
        if fresh or not fits:
            self._optimizer = self._new_optimizer()
        elif not vector.flags.writeable:  # joblib shares large arrays so
            self._optimizer = kind(**{k: np.copy(v) if np.ndim(v) else v for k, v in vars(optimizer).items()})
        if self._first_rate != self.learning_rate_init:
            self._optimizer.learning_rate = float(self.learning_rate_init)
        self._first_rate = self.learning_rate_init
        if self.solver == "sgd":
            self._optimizer.momentum, self._optimizer.nesterov = float(self.momentum), bool(self.nesterovs_momentum)
        else:
            for name in ("beta_1", "beta_2", "epsilon"):
                setattr(self._optimizer, name, float(getattr(self, name)))

    def _batch_rows(self, n):
        """Rows of an update."""
        if self.batch_size == "auto":
            return min(200, n)
        if self.batch_size > n:
            warnings.warn(
                f"batch_size: {self.batch_size} is more than the {n} rows, all of which make one batch",
                UserWarning,
                stacklevel=6,
            )
        return min(int(self.batch_size), n)

    def _descend(self, data, watched, epochs, listener, clock, incremental=False):
        """Train until the loss or the score no longer improves, the epochs are made, or time is up."""
        size = self._batch_rows(len(data))
        if self._epoch is None or len(self._epoch.order) != len(data):
            self._epoch = Epoch(np.arange(len(data)))
        self.n_iter_ = 0
        try:
            has_ended = None
            if self.warm_start and not incremental:
                held = (watched.X, watched.y) if watched else ()
                has_ended = signature_of(self, (data.X, data.y, data.weight, *held))
            stopped = has_ended is not None and self._stopped == has_ended
            while not stopped and self.n_iter_ < epochs:
                listener.begin_epoch()
                if not self._make_epoch(data, size, clock):
                    self._tell_of_a_part(len(data))
                    break
                stopped = self._end_epoch(len(data), watched)
                self._stopped = has_ended if stopped else None
                stopped = listener.end_epoch() or stopped
            if not stopped and not incremental and self.n_iter_ == epochs:
                warnings.warn(
                    f"Stochastic Optimizer: Maximum iterations ({epochs}) reached while training still made progress",
                    ConvergenceWarning,
                    stacklevel=5,
                )
        except KeyboardInterrupt:
            self._say_interrupted()
            self._epoch.position = None
        except TrainingDiverged as error:
            self._end_diverged(error)
        if not incremental:
            self._end_with_the_best()

    def _make_epoch(self, data, size, clock):
        """Make the updates that are left of an epoch; returns whether time was enough."""
        epoch, n, network = self._epoch, len(data), self._network
        if epoch.position is None:
            if self.shuffle:
                epoch.order = epoch.order[self._random_state.permutation(n)]
            epoch.position, epoch.loss, epoch.penalty = 0, 0.0, 0.0
        as_it_stands = size == n or not self.shuffle  # the order within a batch makes no difference
        first = self._first_stretch(data, size)
        while epoch.position < n:
            updates = clock.start(first)
            if updates < 1:
                return False
            stop = epoch.position + updates * size
            if stop + network.plan.batch_norm >= n:  # one row alone has no variance
                stop = n
            rows = stop - epoch.position
            order = None if as_it_stands and rows == n else epoch.order[epoch.position : stop]
            loss, penalty = self._update(network, data, order, size)
            clock.done(rows / size)
            if not math.isfinite(loss + penalty):
                self.loss_ = loss
                raise TrainingDiverged(
                    f"update {self._optimizer.t}: the loss is {loss}; it was not applied. Solver produced non-finite "
                    "parameter weights. The input data may contain large values and need to be preprocessed.",
                    self._optimizer.t,
                )
            epoch.loss, epoch.penalty, epoch.position = loss, penalty, stop
        return True

    def _first_stretch(self, data, size):
        """Updates that surely take no longer than a stretch."""
        density = 1.0 if isinstance(data.X, np.ndarray) else data.X.nnz / math.prod(data.X.shape)
        row, update = work_of(self._network.plan, density)
        return max(1, int(FIRST_WORK / (size * row + update)))

    def _update(self, network, data, order, size):
        try:
            return kernels.mlp_updates(
                network.plan,
                network.parameters,
                network.buffers,
                self._optimizer,
                data.X,
                data.y,
                data.weight,
                order,
                size,
                self.alpha,
                self._dropout_seed or 0,
                (self._epoch.loss, self._epoch.penalty),
                len(data),
            )
        except Exception as error:
            self._blame_activation(error)
            raise

    def _end_epoch(self, n, watched):
        """What an epoch came to; returns whether it was the last."""
        epoch = self._epoch
        self.loss_ = epoch.loss / self._loss_outputs() + epoch.penalty
        epoch.position = None
        self.n_iter_ += 1
        self.t_ += n
        self.loss_curve_.append(self.loss_)
        if self.verbose:
            print(f"Iteration {self.n_iter_}, loss = {self.loss_:.8f}")
        self._count_improvement(watched)
        if self.solver == "sgd" and self.learning_rate == "invscaling":
            self._optimizer.learning_rate = float(self.learning_rate_init) / (self.t_ + 1) ** self.power_t
        return self._no_improvement_count > self.n_iter_no_change and self._stall(watched)

    def _tell_of_a_part(self, n):
        """Where time was up within the first epoch, its part tells the loss."""
        epoch = self._epoch
        if not self.loss_curve_:
            self.loss_ = (epoch.loss / self._loss_outputs() + epoch.penalty) * n / epoch.position

    def _stall(self, watched):
        """What follows too many epochs without improvement; returns whether it is the end."""
        optimizer, what = self._optimizer, "Training loss"
        if self.early_stopping and watched is not None:
            what = "Validation score"
        goes_on = self.solver == "sgd" and self.learning_rate == "adaptive" and optimizer.learning_rate > SMALLEST_RATE
        if goes_on:
            optimizer.learning_rate /= 5.0
            self._no_improvement_count = 0
        if self.verbose:
            then = f"Setting learning rate to {optimizer.learning_rate:f}" if goes_on else "Stopping."
            if not goes_on and self.solver == "sgd" and self.learning_rate == "adaptive":
                then = "Learning rate too small. Stopping."
            epochs = f"for {self.n_iter_no_change} consecutive epochs"
            print(f"{what} did not improve more than tol={self.tol:f} {epochs}. {then}")
        return not goes_on

    def _end_diverged(self, error):
        """With early stopping, a training that diverges ends with the best epoch before; else it is an error."""
        self._epoch.position = None
        if not self.early_stopping or not self.validation_scores_:
            raise error
        self.n_iter_ += 1
        self.loss_curve_.append(self.loss_)
        self.validation_scores_.append(math.nan)
        which = "those before it" if self._best is None else "the best epoch's"
        warnings.warn(f"{error} The weights are {which}.", ConvergenceWarning, stacklevel=6)


class QuasiNewton(Watch):
    """L-BFGS-B over all rows at once, by SciPy, in float64: its line search compares losses that differ little."""

    def _minimize(self, data, watched, listener, clock):
        from scipy.optimize import minimize

        network = self._network
        X, y, weight = (_in_double(part) for part in (data.X, data.y, data.weight))
        self.n_iter_, stopped = 0, False

        def after(intermediate_result):
            nonlocal stopped
            clock.done(1)
            network.parameters[...] = intermediate_result.x
            self.n_iter_ += 1
            self.loss_ = float(intermediate_result.fun)
            if self.verbose:
                print(f"Iteration {self.n_iter_}, loss = {self.loss_:.8f}")
            if network.plan.batch_norm and (watched is not None or listener.hears):
                self._take_statistics(X, y, weight)
            if watched is not None:
                self._count_improvement(watched)
                stopped = self.early_stopping and self._no_improvement_count > self.n_iter_no_change
            stopped = listener.end_epoch() or stopped or clock.start() < 1
            if stopped:
                raise StopIteration
            if self.n_iter_ < self.max_iter:
                listener.begin_epoch()

        listener.begin_epoch()
        clock.start()
        options = {"maxfun": self.max_fun, "maxiter": self.max_iter, "gtol": self.tol}
        start = network.parameters.astype(np.float64)
        try:
            found = minimize(
                self._loss_grad_lbfgs, start, (X, y, weight), "L-BFGS-B", jac=True, options=options, callback=after
            )
        except KeyboardInterrupt:
            self._say_interrupted()
        else:
            self._end_minimized(found, stopped)
        self.loss_ = self._take_statistics(X, y, weight)
        self._end_with_the_best()

    def _loss_grad_lbfgs(self, parameters, X, y, sample_weight, *_):
        """Loss with the penalty, and its gradient, both of sums over the outputs: what L-BFGS-B minimises."""
        network = self._network
        if y.dtype.kind == "i" and y.ndim == 2:
            y = self._targets_of_indicators(y)
        try:
            loss, penalty, gradients = kernels.mlp_gradient(
                network.plan, parameters, network.buffers.astype(np.float64), X, y, sample_weight, self.alpha
            )
        except Exception as error:
            self._blame_activation(error)
            raise
        return loss + penalty, gradients

    def _end_minimized(self, found, stopped):
        self.n_iter_ = min(int(found.nit), self.max_iter)
        if not (math.isfinite(found.fun) and kernels.all_finite(found.x)):
            raise TrainingDiverged(
                f"iteration {self.n_iter_}: the loss is {found.fun}. Solver produced non-finite parameter weights. "
                "The input data may contain large values and need to be preprocessed.",
                self.n_iter_,
            )
        self._network.parameters[...] = found.x
        if found.status != 0 and not stopped:
            message = found.message if isinstance(found.message, str) else found.message.decode("latin1")
            warnings.warn(
                f"lbfgs ended after {self.n_iter_} iterations without convergence: {message}; raise "
                f"max_iter={self.max_iter} or max_fun={self.max_fun}, or scale the data",
                ConvergenceWarning,
                stacklevel=6,
            )

    def _take_statistics(self, X, y, weight):
        """The loss where the network is now, as `loss_` has it; its running statistics become those of all rows."""
        network = self._network
        buffers = np.zeros(network.plan.buffers)
        parameters = network.parameters.astype(np.float64)
        loss, penalty, _ = kernels.mlp_gradient(network.plan, parameters, buffers, X, y, weight, self.alpha)
        network.buffers[...] = buffers / NORM_MOMENTUM  # from zero, one batch moves them this share of the way
        return loss / self._loss_outputs() + penalty


def _in_double(array):
    return array.astype(np.float64) if array is not None and array.dtype == np.float32 else array
