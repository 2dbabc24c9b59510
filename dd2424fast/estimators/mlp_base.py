"""What MLPClassifier and MLPRegressor have in common: their arguments, their network, a fit, a prediction."""

import functools
import math

import numpy as np
from sklearn.base import BaseEstimator
from sklearn.model_selection import train_test_split
from sklearn.utils import check_array, check_random_state, column_or_1d
from sklearn.utils.validation import check_is_fitted, validate_data

from .. import kernels
from ..configuration import columns_hint, hinting_at_columns, integer_in, positive_integer, real_in
from ..kernels.custom_activation import CustomActivation
from .mlp_callbacks import CallbackSupportMixin, Listener
from .mlp_files import MLPFiles
from .mlp_network import Network, network_of, sizes_of
from .mlp_training import Clock, Data, Descent, QuasiNewton
from .shared import row_weights, validation_given

ACTIVATIONS = {"identity": "identity", "logistic": "sigmoid", "tanh": "tanh", "relu": "relu"}
OUTPUTS = {"softmax": "softmax", "logistic": "sigmoid", "identity": "identity", "exp": "exp"}  # theirs, the kernels'
INF = math.inf
DTYPES = (np.float64, np.float32)
REALS = {  # low, high, and whether these are allowed
    "alpha": (0, INF, True, False),
    "learning_rate_init": (0, INF, False, False),
    "power_t": (0, INF, True, False),
    "tol": (0, INF, True, False),
    "momentum": (0, 1, True, True),
    "validation_fraction": (0, 1, True, False),
    "beta_1": (0, 1, True, False),
    "beta_2": (0, 1, True, False),
    "epsilon": (0, INF, False, False),
    "dropout": (0, 1, True, False),
}
FLAGS = ("shuffle", "warm_start", "nesterovs_momentum", "early_stopping", "batch_norm")
CHOICES = {"solver": ("lbfgs", "sgd", "adam"), "learning_rate": ("constant", "invscaling", "adaptive")}
DEFAULT_FRACTION = 0.1


# Every fit, of a clone too, would compile the same two functions again.
_custom_activation = functools.lru_cache(maxsize=32)(kernels.custom_activation)


class MLP(MLPFiles, Descent, QuasiNewton, CallbackSupportMixin, BaseEstimator):
    """What the two estimators have in common; `_targets`, `_label`, `_score_outputs` and the like are theirs."""

    # What a training leaves for the next one; see mlp_training.
    _network = _optimizer = _random_state = _epoch = _split = _best = _last = _stopped = None
    _first_rate = _hidden = _dropout_seed = None
    _no_improvement_count = 0

    @classmethod
    def _get_param_names(cls):
        return list(cls._constructor_takes())  # one that a subclass may change

    @classmethod
    @functools.cache  # inspecting the constructor's signature takes scikit-learn 0.1 ms each time
    def _constructor_takes(cls):
        return super()._get_param_names()

    # ---- training --------------------------------------------------------------------------------------------------

    def _fit(self, X, y, sample_weight=None, X_val=None, y_val=None, incremental=False):
        hidden = self._check_parameters(incremental)
        clock = Clock(self.time_budget)
        fresh = not hasattr(self, "coefs_") or not (self.warm_start or incremental)
        before = self.__dict__.copy()
        try:
            X, y, weight, given = self._data_in(X, y, sample_weight, fresh, incremental)
            validation = self._validation_in(X_val, y_val, X)
            self._ready_network(hidden, fresh, incremental, X)
            train, watched = self._set_aside(X, y, given, validation, fresh, incremental)
        except Exception:  # what was fitted before stays
            self.__dict__.clear()
            self.__dict__.update(before)
            raise
        X, y, weight, given = (a if a is None or train is None else a[train] for a in (X, y, weight, given))
        dtype = self._network.parameters.dtype
        X = X.astype(dtype, copy=False)
        data = Data(X, self._targets(y, dtype), None if weight is None else weight.astype(dtype))
        epochs = 1 if incremental else self.max_iter
        listener = Listener(self, epochs, X, y, given)
        self._go_on_from_the_last()
        if self.solver == "lbfgs":
            self._minimize(data, watched, listener, clock)
        else:
            self._ready_optimizer(fresh)
            self._descend(data, watched, epochs, listener, clock, incremental)
        if not self.warm_start or incremental:
            self._epoch = self._split = self._best = self._last = self._stopped = None
        self._check_finite()
        listener.end()
        return self

    def _check_parameters(self, incremental):
        """Every constructor parameter; returns the sizes of the hidden layers."""
        for name, interval in REALS.items():
            real_in(name, getattr(self, name), *interval)
        for name in ("max_iter", "max_fun"):
            positive_integer(name, getattr(self, name))
        for name, known in CHOICES.items():
            value = getattr(self, name)
            if not isinstance(value, str) or value not in known:
                raise ValueError(f"{name}: expected one of {', '.join(map(repr, known))}, got {value!r}")
        for name in FLAGS:
            self._check_flag(name, getattr(self, name))
        if self.restore_best_weights is not None:
            self._check_flag("restore_best_weights", self.restore_best_weights)
        if not isinstance(self.batch_size, str) or self.batch_size != "auto":
            integer_in("batch_size", self.batch_size, 1 + bool(self.batch_norm))
        if not isinstance(self.n_iter_no_change, float) or self.n_iter_no_change != math.inf:
            positive_integer("n_iter_no_change", self.n_iter_no_change)
        if self.time_budget is not None:
            real_in("time_budget", self.time_budget, 0, INF, False, True)
        if self.solver == "lbfgs" and self.dropout:
            raise ValueError(f"dropout: expected 0 for solver='lbfgs', whose loss must not vary, got {self.dropout}")
        if incremental and self.early_stopping:
            raise ValueError("early_stopping: partial_fit does not support early_stopping=True")
        hidden = self.hidden_layer_sizes
        if isinstance(hidden, str) or not (np.iterable(hidden) or hasattr(hidden, "__index__")):
            raise TypeError(f"hidden_layer_sizes: expected sizes such as (100,), or an integer, got {hidden!r}")
        if not np.iterable(hidden):
            return (positive_integer("hidden_layer_sizes", hidden),)
        return tuple(positive_integer(f"hidden_layer_sizes[{i}]", size) for i, size in enumerate(hidden))

    @staticmethod
    def _check_flag(name, value):
        if not isinstance(value, bool | np.bool_ | int) or value not in (0, 1):
            raise TypeError(f"{name}: expected True or False, got {value!r}")

    def _data_in(self, X, y, sample_weight, fresh, incremental):
        """X, y, the weights of the rows in the loss, and those among them that the user gave; rows without weight are
        left out."""
        with hinting_at_columns(X, y, None if fresh else self.n_features_in_):
            X, y = self._checked(X, y, fresh)
        if y.ndim == 2 and y.shape[1] == 1:
            y = column_or_1d(y, warn=True)
        self._label(y, fresh, incremental)
        given = weight = None
        if sample_weight is not None:
            given = weight = row_weights(sample_weight, X.shape[0])
            if (given == 0).any():
                X, y, given = X[given > 0], y[given > 0], given[given > 0]
                weight = given
        by_class = self._class_weights(y, given, incremental)
        if by_class is not None:
            weight = by_class if weight is None else weight * by_class
            if not weight.any():
                raise ValueError("class_weight: expected a weight above 0 for a class of y, got zeros")
            if (weight == 0).any():
                kept = weight > 0
                X, y, weight, given = X[kept], y[kept], weight[kept], None if given is None else given[kept]
        if self.batch_norm and X.shape[0] < 2:
            raise ValueError("X: expected at least two rows, since batch_norm needs a variance, got n_samples = 1")
        return X, y, weight, given

    def _checked(self, X, y, fresh):
        """X and y as validate_data makes them. Arrays that it would leave as they are take a short way: its checks take
        as long as an epoch of a small network, and of a large X as long as one thread takes to read it."""
        plain = (
            type(X) is np.ndarray
            and type(y) is np.ndarray
            and X.dtype in DTYPES
            and X.ndim == 2
            and X.size
            and X.flags.c_contiguous
            and y.shape == X.shape[:1]
            and (y.dtype.kind in "iub" if self._classifies else y.dtype in DTYPES and kernels.all_finite(y))
            and kernels.all_finite(X)
        )
        if plain:
            return validate_data(self, X, y, reset=fresh, skip_check_array=True)
        return validate_data(
            self,
            X,
            y,
            accept_sparse="csr",
            order="C",
            multi_output=True,
            dtype=DTYPES,
            reset=fresh,
            y_numeric=not self._classifies,
        )

    def _validation_in(self, X_val, y_val, X):
        """The validation set that was given, or None."""
        if not validation_given(X_val, y_val):
            return None
        if self.validation_fraction != DEFAULT_FRACTION:
            raise ValueError(
                f"validation_fraction: expected {DEFAULT_FRACTION}, its default, beside X_val and y_val, "
                f"since nothing is set aside; got {self.validation_fraction}"
            )
        shape = np.shape(X_val) if not hasattr(X_val, "shape") else X_val.shape
        if len(shape) != 2 or shape[1] != X.shape[1]:
            hint = columns_hint(tuple(shape), features=X.shape[1])
            raise ValueError(f"X_val: expected shape (n, {X.shape[1]}), got {tuple(shape)}{hint}")
        validate_data(self, X_val, reset=False, skip_check_array=True)  # the names of its columns
        X_val = check_array(X_val, accept_sparse="csr", order="C", dtype=X.dtype, input_name="X_val")
        y_val = check_array(y_val, ensure_2d=False, dtype=None, input_name="y_val", accept_sparse="csr")
        if y_val.shape[0] != X_val.shape[0]:
            raise ValueError(f"y_val: expected {X_val.shape[0]} rows as in X_val, got {y_val.shape[0]}")
        if y_val.ndim == 2 and y_val.shape[1] == 1:
            y_val = column_or_1d(y_val)
        return Data(X_val, self._targets(y_val, X.dtype, "y_val"))

    def _ready_network(self, hidden, fresh, incremental, X):
        """The network to train: a new one, or the one that is there."""
        outputs = self._output_count()
        if fresh or not self.warm_start or incremental or self._random_state is None:
            self._random_state = self._new_random_state()
        if fresh:
            self.n_outputs_, self.n_layers_ = outputs, len(hidden) + 2
            self.out_activation_ = self._output_name()
            plan = self._plan((X.shape[1], *hidden, outputs), X.dtype)
            self._show(Network.drawn(plan, self._random_state, X.dtype))
            self._hidden, self._dropout_seed = hidden, None
            self._start_anew()
        else:
            if self._hidden not in (None, hidden):
                raise ValueError(
                    f"hidden_layer_sizes: expected {self._hidden}, those of the network that goes on, got {hidden}"
                )
            network = self._current()
            if network.plan.batch_norm != bool(self.batch_norm):
                raise ValueError(
                    f"batch_norm: expected {network.plan.batch_norm}, that of the network that goes on, "
                    f"got {self.batch_norm}"
                )
            if outputs != network.plan.sizes[-1]:
                raise ValueError(f"y: expected {network.plan.sizes[-1]} outputs, as before, got {outputs}")
            plan = self._plan(network.plan.sizes, network.parameters.dtype)
            self._show(network.with_plan(plan).writable())
            if incremental:
                self._epoch = None
        if self.dropout and self._dropout_seed is None:
            self._dropout_seed = int(self._random_state.randint(2**31))

    def _start_anew(self):
        self.n_iter_ = self.t_ = self._no_improvement_count = 0
        self._epoch = self._split = self._best = self._last = self._stopped = None
        self.loss_, self.loss_curve_ = math.nan, []
        self.best_loss_ = None if self.early_stopping else math.inf
        self.validation_scores_ = self.best_validation_score_ = None

    def _new_random_state(self):
        if self.random_state is None:  # the global one is nobody's
            return check_random_state(int(np.random.SeedSequence().generate_state(1)[0]))
        try:
            return check_random_state(self.random_state)
        except ValueError:
            raise ValueError(
                f"random_state: expected an int, a numpy.random.RandomState or None, got {self.random_state!r}"
            ) from None

    def _set_aside(self, X, y, given, validation, fresh, incremental):
        """The rows to train on, and the validation set: the one that was given or, for early stopping, some rows."""
        n = X.shape[0]
        stops = self.early_stopping and self.solver != "lbfgs"
        train, watched = None, validation
        if validation is None and stops:
            made_for = n, self.validation_fraction
            if self._split is None or self._split[0] != made_for:
                self._split = made_for, *self._split_rows(n, y)
            _, train, held = self._split
            dtype = self._network.parameters.dtype
            weight = None if given is None else given[held]
            watched = Data(X[held].astype(dtype, copy=False), self._targets(y[held], dtype), weight)
        elif validation is None and self.restore_best_weights and not incremental and not self.early_stopping:
            raise ValueError(
                "restore_best_weights: expected early_stopping=True, or X_val and y_val, to tell the best by"
            )
        if watched is not None and self.validation_scores_ is None:
            self.validation_scores_, self.best_validation_score_ = [], -math.inf
        if watched is None or not self.early_stopping:
            self.best_loss_ = math.inf if getattr(self, "best_loss_", None) is None else self.best_loss_
        return train, watched

    def _split_rows(self, n, y):
        train, held = train_test_split(
            np.arange(n),
            random_state=self._random_state,
            test_size=self.validation_fraction,
            stratify=self._stratified_by(y),
        )
        if len(held) < 2:
            raise ValueError(
                "validation_fraction: The validation set is too small: expected at least 2 rows, "
                f"got {len(held)} of {n}"
            )
        if self.batch_norm and len(train) < 2:
            raise ValueError(f"validation_fraction: expected at least 2 rows to be left to train on, got {len(train)}")
        return train, held

    def _check_finite(self):
        if not kernels.all_finite(self._network.parameters):
            raise ValueError(
                "Solver produced non-finite parameter weights. The input data may contain large values and need to be "
                "preprocessed."
            )

    # ---- the network -----------------------------------------------------------------------------------------------

    def _plan(self, sizes, dtype):
        output = OUTPUTS[self.out_activation_]
        return kernels.MLPPlan(sizes, self._activation(dtype), output, bool(self.batch_norm), float(self.dropout))

    def _activation(self, dtype):
        """The activation as kernels know it; one of the user's own is compiled here."""
        activation = self.activation
        if isinstance(activation, str) and activation in ACTIVATIONS:
            return ACTIVATIONS[activation]
        if isinstance(getattr(activation, "_kernel", None), CustomActivation):  # nn.Activation
            activation = activation._kernel
        pair = isinstance(activation, tuple | list) and len(activation) == 2 and all(map(callable, activation))
        if not pair and not isinstance(activation, CustomActivation):
            known = ", ".join(map(repr, ACTIVATIONS))
            raise ValueError(
                f"activation: expected one of {known}, a pair of functions (f, its derivative) or an nn.Activation, "
                f"got {self.activation!r}"
            )
        try:
            if pair:
                activation = _custom_activation(*activation)
            some = np.linspace(-3, 3, 7, dtype=dtype)
            activation.backward(some, activation.forward(some))
        except Exception as error:
            kind = TypeError if isinstance(error, TypeError) else ValueError
            raise kind(f"activation: {type(error).__name__}: {error}") from error
        return activation

    def _blame_activation(self, error):
        """Where a user's function raised within a kernel, say so."""
        activation = self._network.plan.activation
        if isinstance(activation, CustomActivation) and not isinstance(error, FloatingPointError):
            raise ValueError(f"activation: {activation} raised {type(error).__name__}: {error}") from error

    def _show(self, network):
        self._network = network
        self.coefs_, self.intercepts_ = list(network.coefs), list(network.intercepts)

    def _current(self):
        """The network of `coefs_` and `intercepts_`, whoever put them there."""
        network = self._network
        if network is None:
            check_is_fitted(self, "coefs_")
            dtype = np.result_type(np.float32, *self.coefs_, *self.intercepts_)
            network = network_of(
                self._plan(sizes_of(self.coefs_, self.intercepts_), dtype), self.coefs_, self.intercepts_, dtype
            )
            self._show(network)
        elif not network.shows(self.coefs_, self.intercepts_):
            network = network.taking(self.coefs_, self.intercepts_)
            self._hidden = None
            self._show(network)
        return network

    def __getstate__(self):
        state = dict(super().__getstate__())
        if self._network is not None and self._network.shows(self.coefs_, self.intercepts_):
            state["coefs_"] = state["intercepts_"] = None  # views of what the network holds
        return state

    def __setstate__(self, state):
        super().__setstate__(state)
        if self._network is not None and self.coefs_ is None:
            self._show(self._network)

    # ---- use -------------------------------------------------------------------------------------------------------

    def _outputs(self, X):
        """What the network makes of X, an array (n, outputs). An array that needs no conversion takes a short way."""
        network = self._current()
        plan, parameters = network.plan, network.parameters
        if not (
            type(X) is np.ndarray
            and X.ndim == 2
            and X.dtype == parameters.dtype
            and X.shape[1] == plan.sizes[0]
            and X.shape[0]
            and kernels.all_finite(X)
            and "feature_names_in_" not in self.__dict__
        ):
            with hinting_at_columns(X, features=plan.sizes[0]):
                X = validate_data(self, X, accept_sparse="csr", order="C", dtype=parameters.dtype, reset=False)
        return kernels.mlp_outputs(plan, parameters, network.buffers, X)

    def _trains_in_parts(self):
        if self.solver == "lbfgs":
            raise AttributeError(
                "partial_fit: expected solver='sgd' or 'adam', got 'lbfgs', which needs all rows at once"
            )
        return True

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = True
        return tags
