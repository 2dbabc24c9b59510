"""MLPClassifier and MLPRegressor: scikit-learn's estimators of these names, trained by kernels."""

import functools
import math

import numpy as np
from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin
from sklearn.model_selection import train_test_split
from sklearn.preprocessing import LabelBinarizer
from sklearn.utils import check_array, check_random_state, column_or_1d
from sklearn.utils.metaestimators import available_if
from sklearn.utils.multiclass import check_classification_targets, type_of_target, unique_labels
from sklearn.utils.validation import check_is_fitted, validate_data

from .. import kernels
from ..configuration import integer_in, positive_integer, real_in
from ..kernels.custom_activation import CustomActivation
from .mlp_callbacks import CallbackSupportMixin, Listener, with_callbacks
from .mlp_files import MLPFiles
from .mlp_network import Network, network_of, sizes_of
from .mlp_training import Clock, Data, Descent, QuasiNewton
from .shared import class_numbers, row_weights, validation_given, weights_of_classes

ACTIVATIONS = {"identity": "identity", "logistic": "sigmoid", "tanh": "tanh", "relu": "relu"}
OUTPUTS = {"softmax": "softmax", "logistic": "sigmoid", "identity": "identity", "exp": "exp"}  # theirs, the kernels'
INF = math.inf
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


class _MLP(MLPFiles, Descent, QuasiNewton, CallbackSupportMixin, BaseEstimator):
    """What the two estimators have in common; `_targets`, `_label`, `_score_outputs` and the like are theirs."""

    # What a training leaves for the next one; see mlp_training.
    _network = _optimizer = _random_state = _epoch = _split = _best = _last = _stopped = None
    _first_rate = _hidden = _dropout_seed = None
    _no_improvement_count = 0

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
        hidden = tuple(hidden) if hasattr(hidden, "__iter__") else (hidden,)
        return tuple(integer_in("hidden_layer_sizes", size, 1) for size in hidden)

    @staticmethod
    def _check_flag(name, value):
        if not isinstance(value, bool | np.bool_ | int) or value not in (0, 1):
            raise TypeError(f"{name}: expected True or False, got {value!r}")

    def _data_in(self, X, y, sample_weight, fresh, incremental):
        """X, y, the weights of the rows in the loss, and those among them that the user gave; rows without weight are
        left out."""
        X, y = validate_data(
            self,
            X,
            y,
            accept_sparse="csr",
            order="C",
            multi_output=True,
            dtype=(np.float64, np.float32),
            reset=fresh,
            y_numeric=not self._classifies,
        )
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
            raise ValueError(f"X_val: expected shape (n, {X.shape[1]}), got {tuple(shape)}")
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
        return check_random_state(self.random_state)

    def _set_aside(self, X, y, given, validation, fresh, incremental):
        """The rows to train on, and the validation set: the one that was given or, for early stopping, some rows."""
        n = X.shape[0]
        stops = self.early_stopping and self.solver != "lbfgs"
        train, watched = None, validation
        if validation is None and stops:
            if self._split is None or self._split[0] != n:
                self._split = n, *self._split_rows(n, y)
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
            and X.flags.c_contiguous
            and kernels.all_finite(X)
            and "feature_names_in_" not in self.__dict__
        ):
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


class MLPClassifier(ClassifierMixin, _MLP):
    """A multi-layer perceptron that tells classes: scikit-learn's MLPClassifier, trained by kernels.

    The parameters down to `max_fun`, their defaults and what training computes are scikit-learn's (1.9); with the same
    `random_state` the weights are, too, but for rounding. What differs is listed in docs/estimators.md.

    Parameters
    ----------
    hidden_layer_sizes : sequence of int, or int
        Units of each hidden layer; () for none.
    activation : {"identity", "logistic", "tanh", "relu"}, (f, derivative) or nn.Activation
        Of the hidden layers. Two functions of one number each are compiled, see kernels.custom_activation.
    solver : {"lbfgs", "sgd", "adam"}
    alpha : float
        Strength of the L2 term, alpha / 2 sum W^2 / rows of the batch, of weights and not of biases.
    batch_size : int or "auto"
        Rows of an update; "auto" is min(200, rows). "lbfgs" takes all rows.
    learning_rate : {"constant", "invscaling", "adaptive"}
        Of "sgd": the rate stays; is learning_rate_init / (1 + t_)^power_t after every epoch; is divided by 5 each time
        that training stalls.
    learning_rate_init : float
    power_t : float
    max_iter : int
        Epochs, or iterations of "lbfgs".
    shuffle : bool
        Take the rows in a new order every epoch.
    random_state : int, numpy.random.RandomState or None
        Of the first weights, the order of the rows, dropout and the split for early stopping. None draws a new seed;
        NumPy's global state is left alone.
    tol : float
        What counts as an improvement of the loss or of the score; for "lbfgs" the largest gradient at the minimum.
    verbose : bool
        Print a line an epoch.
    warm_start : bool
        Let `fit` go on where the last one ended, with its optimizer's state, random state, counters and order of rows:
        max_iter=5 twice is max_iter=10 bit for bit.
    momentum, nesterovs_momentum : float, bool
        Of "sgd".
    early_stopping : bool
        Look at the score of rows that are set aside (or of X_val, y_val) instead of at the loss.
    validation_fraction : float
        Of the rows, set aside for early stopping.
    beta_1, beta_2, epsilon : float
        Of "adam".
    n_iter_no_change : int
        Epochs without an improvement that are borne.
    max_fun : int
        Evaluations that "lbfgs" may make.
    dropout : float
        Probability in [0, 1) that a unit of a hidden layer is left out.
    batch_norm : bool
        Normalise what enters the activation of the hidden layers over the batch (Ioffe and Szegedy 2015).
    class_weight : dict from class to float, "balanced" or None
        Weights that multiply those of the rows; a class that the dict lacks weighs 1.
    restore_best_weights : bool or None
        End `fit` with the weights of the best epoch, told by the validation set. None: with early stopping only.
    time_budget : float, optional
        Seconds after which `fit` ends. Some updates are made in any case; with `warm_start` the next `fit` takes up the
        epoch where it stood.

    Attributes
    ----------
    classes_ : ndarray
    coefs_, intercepts_ : list of ndarray
        W (inputs, units) and b of each layer. What is assigned here, an element or the list, is used from then on.
    loss_ : float
    best_loss_ : float or None
        None with early stopping.
    loss_curve_ : list of float
        The mean loss of each epoch of "sgd" and "adam", with the L2 term.
    validation_scores_, best_validation_score_ : list of float, float
        Accuracies on the validation set after each epoch; None without one.
    n_iter_ : int
        Epochs of the last `fit`.
    t_ : int
        Rows seen in all.
    n_layers_, n_outputs_, n_features_in_ : int
    feature_names_in_ : ndarray
    out_activation_ : {"softmax", "logistic"}

    Examples
    --------
    >>> from sklearn.datasets import load_digits
    >>> X, y = load_digits(return_X_y=True)
    >>> classifier = MLPClassifier((64,), dropout=0.2, early_stopping=True, random_state=0).fit(X / 16, y)
    >>> classifier.score(X / 16, y) > 0.95
    True
    """

    _classifies = True

    def __init__(
        self,
        hidden_layer_sizes=(100,),
        activation="relu",
        *,
        solver="adam",
        alpha=0.0001,
        batch_size="auto",
        learning_rate="constant",
        learning_rate_init=0.001,
        power_t=0.5,
        max_iter=200,
        shuffle=True,
        random_state=None,
        tol=1e-4,
        verbose=False,
        warm_start=False,
        momentum=0.9,
        nesterovs_momentum=True,
        early_stopping=False,
        validation_fraction=DEFAULT_FRACTION,
        beta_1=0.9,
        beta_2=0.999,
        epsilon=1e-8,
        n_iter_no_change=10,
        max_fun=15000,
        dropout=0.0,
        batch_norm=False,
        class_weight=None,
        restore_best_weights=None,
        time_budget=None,
    ):
        self.hidden_layer_sizes = hidden_layer_sizes
        self.activation = activation
        self.solver = solver
        self.alpha = alpha
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.learning_rate_init = learning_rate_init
        self.power_t = power_t
        self.max_iter = max_iter
        self.shuffle = shuffle
        self.random_state = random_state
        self.tol = tol
        self.verbose = verbose
        self.warm_start = warm_start
        self.momentum = momentum
        self.nesterovs_momentum = nesterovs_momentum
        self.early_stopping = early_stopping
        self.validation_fraction = validation_fraction
        self.beta_1 = beta_1
        self.beta_2 = beta_2
        self.epsilon = epsilon
        self.n_iter_no_change = n_iter_no_change
        self.max_fun = max_fun
        self.dropout = dropout
        self.batch_norm = batch_norm
        self.class_weight = class_weight
        self.restore_best_weights = restore_best_weights
        self.time_budget = time_budget

    @with_callbacks
    def fit(self, X, y, sample_weight=None, X_val=None, y_val=None):
        """Train on rows of features and their classes.

        Parameters
        ----------
        X : array or sparse matrix of shape (n, features)
            float32 is trained in float32, all else in float64.
        y : array of shape (n,), or (n, labels) of zeros and ones for several labels a row
        sample_weight : array of shape (n,), optional
            A whole weight n is the same as the row n times in its batch; a row of weight 0 is left out.
        X_val, y_val : like X and y, optional
            A validation set: `validation_scores_` tells its scores, and early stopping looks at it, nothing being set
            aside then.

        Returns
        -------
        self

        Raises
        ------
        ValueError, TypeError
            An argument or parameter is wrong; the message names it. What was fitted before stays.
        TrainingDiverged
            The loss is not finite (also a ValueError). The weights are those before that update. With early stopping
            the best epoch's are kept instead, with a ConvergenceWarning.
        """
        return self._fit(X, y, sample_weight, X_val, y_val)

    @available_if(lambda self: self._trains_in_parts())
    @with_callbacks
    def partial_fit(self, X, y, sample_weight=None, classes=None):
        """Train for one epoch on some rows.

        Parameters
        ----------
        X, y, sample_weight : see fit
        classes : array
            All there will be; needed at the first call.

        Returns
        -------
        self
        """
        if not hasattr(self, "classes_"):
            if classes is None:
                raise ValueError("classes: expected all that there will be, at the first call of partial_fit, got None")
            several = type_of_target(y).startswith("multilabel")
            classes = unique_labels(classes)
            binarizer = LabelBinarizer().fit(y if several else classes)
            self._label_binarizer, self.classes_ = binarizer, classes
        elif classes is not None and not np.array_equal(self.classes_, unique_labels(classes)):
            raise ValueError(
                f"classes: expected those of the first call, {self.classes_.tolist()}, got {list(np.ravel(classes))}"
            )
        return self._fit(X, y, sample_weight, incremental=True)

    # ---- labels ----------------------------------------------------------------------------------------------------

    def _label(self, y, fresh, incremental):
        """Learn the classes, or see whether they are those of before."""
        if not hasattr(self, "classes_") or (fresh and not incremental):
            check_classification_targets(y)
            self._label_binarizer = LabelBinarizer().fit(y)
            self.classes_ = self._label_binarizer.classes_
            return
        classes = unique_labels(y)
        if not incremental and set(classes) != set(self.classes_):
            raise ValueError(
                "warm_start can only be used where `y` has the same classes as in the previous call to fit. Previously "
                f"got {self.classes_}, `y` has {classes}"
            )
        unknown = np.setdiff1d(classes, self.classes_)
        if len(unknown):
            raise ValueError(f"y: expected classes of {self.classes_.tolist()}, got {unknown[:1].tolist()[0]!r}")

    @property
    def _several(self):
        """Whether a row has several labels."""
        return self._label_binarizer.y_type_.startswith("multilabel")

    def _output_count(self):
        return 1 if self._output_name() == "logistic" and not self._several else len(self.classes_)

    def _output_name(self):
        return "softmax" if self._label_binarizer.y_type_ == "multiclass" else "logistic"

    def _loss_outputs(self):
        return 1

    def _targets(self, y, dtype, name="y"):
        """The classes as kernels take them: numbers, or zeros and ones."""
        if self._several:
            if y.ndim != 2 or y.shape[1] != len(self.classes_):
                raise ValueError(f"{name}: expected shape (n, {len(self.classes_)}), got {y.shape}")
            return np.ascontiguousarray(self._label_binarizer.transform(y), dtype)
        labels = class_numbers(name, column_or_1d(y), self.classes_)
        if self._output_name() == "softmax":
            return labels.astype(np.int64)
        return (labels[:, np.newaxis] == 1).astype(dtype)

    def _targets_of_indicators(self, Y):
        return Y.argmax(axis=1) if self._output_name() == "softmax" else Y.astype(np.float64)

    def _stratified_by(self, y):
        """scikit-learn keeps the shares of two classes, and splits more of them by chance alone."""
        return self._targets(y, bool) if self.n_outputs_ == 1 else None

    def _class_weights(self, y, sample_weight, incremental):
        """The weight of each row by its class, or None."""
        if self.class_weight is None:
            return None
        if self._several:
            raise ValueError(f"class_weight: expected None where rows have several labels, got {self.class_weight!r}")
        if incremental and isinstance(self.class_weight, str):
            raise ValueError(
                f"class_weight: expected a dict or None for partial_fit, which sees a part of the rows, got "
                f"{self.class_weight!r}"
            )
        labels = class_numbers("y", y, self.classes_)
        return weights_of_classes(self.class_weight, self.classes_, labels, sample_weight)[labels]

    def _score_outputs(self, outputs, y, weight):
        """Accuracy; of several labels, all must be right."""
        if outputs.shape[1] == 1 or self._several:
            right = ((outputs > 0.5) == (y > 0.5)).all(axis=1)
        else:
            right = outputs.argmax(axis=1) == y
        return float(np.average(right, weights=weight))

    # ---- use -------------------------------------------------------------------------------------------------------

    def predict(self, X):
        """The most probable class of each row, or its labels: ndarray of shape (n,) or (n, labels)."""
        outputs = self._outputs(X)
        kind = self._label_binarizer.y_type_
        if kind == "multiclass":
            return self.classes_[outputs.argmax(axis=1)]
        if kind == "binary" and len(self.classes_) == 2:
            return self.classes_[(outputs[:, 0] > 0.5).view(np.int8)]
        return self._label_binarizer.inverse_transform(outputs if self._several else outputs[:, 0])

    def predict_proba(self, X):
        """The probability of every class, in the order of `classes_`: ndarray of shape (n, classes)."""
        outputs = self._outputs(X)
        if outputs.shape[1] > 1:
            return outputs
        both = np.empty((len(outputs), 2), outputs.dtype)
        both[:, 1:] = outputs
        np.subtract(1, outputs, out=both[:, :1])
        return both

    def predict_log_proba(self, X):
        """The logarithms of `predict_proba`."""
        probabilities = self.predict_proba(X)
        with np.errstate(divide="ignore"):
            return np.log(probabilities, out=probabilities)

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.classifier_tags.multi_label = True
        return tags


class MLPRegressor(RegressorMixin, _MLP):
    """A multi-layer perceptron that tells numbers: scikit-learn's MLPRegressor, trained by kernels.

    The parameters down to `max_fun`, their defaults and what training computes are scikit-learn's (1.9); with the same
    `random_state` the weights are, too, but for rounding. What differs is listed in docs/estimators.md.

    Parameters
    ----------
    loss : {"squared_error", "poisson"}
        Half the squared error; half the Poisson deviance, with the exponential as the output's activation and
        targets of at least 0. What is minimised is the sum over the outputs; of the squared error, `loss_` and
        `loss_curve_` tell the mean over them, as scikit-learn's do.
    others : see MLPClassifier, which alone has `class_weight`

    Attributes
    ----------
    validation_scores_, best_validation_score_ : list of float, float
        Coefficients of determination R^2 on the validation set; None without one.
    out_activation_ : {"identity", "exp"}
    others : see MLPClassifier, which alone has `classes_`

    Examples
    --------
    >>> from sklearn.datasets import make_regression
    >>> X, y = make_regression(random_state=0)
    >>> MLPRegressor((20,), solver="lbfgs", random_state=0).fit(X, y / 100).score(X, y / 100) > 0.99
    True
    """

    _classifies = False

    def __init__(
        self,
        loss="squared_error",
        hidden_layer_sizes=(100,),
        activation="relu",
        *,
        solver="adam",
        alpha=0.0001,
        batch_size="auto",
        learning_rate="constant",
        learning_rate_init=0.001,
        power_t=0.5,
        max_iter=200,
        shuffle=True,
        random_state=None,
        tol=1e-4,
        verbose=False,
        warm_start=False,
        momentum=0.9,
        nesterovs_momentum=True,
        early_stopping=False,
        validation_fraction=DEFAULT_FRACTION,
        beta_1=0.9,
        beta_2=0.999,
        epsilon=1e-8,
        n_iter_no_change=10,
        max_fun=15000,
        dropout=0.0,
        batch_norm=False,
        restore_best_weights=None,
        time_budget=None,
    ):
        self.loss = loss
        self.hidden_layer_sizes = hidden_layer_sizes
        self.activation = activation
        self.solver = solver
        self.alpha = alpha
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.learning_rate_init = learning_rate_init
        self.power_t = power_t
        self.max_iter = max_iter
        self.shuffle = shuffle
        self.random_state = random_state
        self.tol = tol
        self.verbose = verbose
        self.warm_start = warm_start
        self.momentum = momentum
        self.nesterovs_momentum = nesterovs_momentum
        self.early_stopping = early_stopping
        self.validation_fraction = validation_fraction
        self.beta_1 = beta_1
        self.beta_2 = beta_2
        self.epsilon = epsilon
        self.n_iter_no_change = n_iter_no_change
        self.max_fun = max_fun
        self.dropout = dropout
        self.batch_norm = batch_norm
        self.restore_best_weights = restore_best_weights
        self.time_budget = time_budget

    @with_callbacks
    def fit(self, X, y, sample_weight=None, X_val=None, y_val=None):
        """Train on rows of features and their targets.

        Parameters
        ----------
        X : array or sparse matrix of shape (n, features)
            float32 is trained in float32, all else in float64.
        y : array of shape (n,) or (n, outputs)
        sample_weight, X_val, y_val : see MLPClassifier.fit

        Returns
        -------
        self

        Raises
        ------
        ValueError, TypeError, TrainingDiverged
            As MLPClassifier.fit.
        """
        return self._fit(X, y, sample_weight, X_val, y_val)

    @available_if(lambda self: self._trains_in_parts())
    @with_callbacks
    def partial_fit(self, X, y, sample_weight=None):
        """Train for one epoch on some rows; the arguments are those of `fit`. Returns self."""
        return self._fit(X, y, sample_weight, incremental=True)

    # ---- targets ---------------------------------------------------------------------------------------------------

    def _check_parameters(self, incremental):
        if not isinstance(self.loss, str) or self.loss not in ("squared_error", "poisson"):
            raise ValueError(f"loss: expected 'squared_error' or 'poisson', got {self.loss!r}")
        return super()._check_parameters(incremental)

    def _label(self, y, fresh, incremental):
        self._y_outputs = 1 if y.ndim == 1 else y.shape[1]
        if self.loss == "poisson" and (y < 0).any():
            raise ValueError(f"y: expected numbers of at least 0 for loss='poisson', got {y.min():g}")

    def _output_count(self):
        return self._y_outputs

    def _output_name(self):
        return "exp" if self.loss == "poisson" else "identity"

    def _loss_outputs(self):
        return self.n_outputs_ if self.loss == "squared_error" else 1

    def _targets(self, y, dtype, name="y"):
        y = y[:, np.newaxis] if y.ndim == 1 else y
        if y.shape[1] != self._y_outputs:
            raise ValueError(f"{name}: expected {self._y_outputs} outputs, got {y.shape[1]}")
        return np.ascontiguousarray(y, dtype)

    def _stratified_by(self, y):
        return None

    def _class_weights(self, y, sample_weight, incremental):
        return None

    def _score_outputs(self, outputs, y, weight):
        """R^2, the mean over the outputs."""
        by_row = 1.0 if weight is None else weight[:, np.newaxis]
        with np.errstate(over="ignore"):  # far off is -inf
            off = (by_row * (y - outputs) ** 2).sum(axis=0, dtype=np.float64)
        spread = (by_row * (y - np.average(y, axis=0, weights=weight)) ** 2).sum(axis=0, dtype=np.float64)
        constant = np.where(off == 0, 1.0, 0.0)  # what r2_score says of a target that does not vary
        return float(np.mean(np.where(spread == 0, constant, 1 - off / np.where(spread == 0, 1, spread))))

    # ---- use -------------------------------------------------------------------------------------------------------

    def predict(self, X):
        """The targets of each row: ndarray of shape (n,) or (n, outputs)."""
        outputs = self._outputs(X)
        return outputs[:, 0] if outputs.shape[1] == 1 else outputs

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.target_tags.multi_output = True
        tags.target_tags.positive_only = self.loss == "poisson"
        return tags
