"""MLPClassifier and MLPRegressor: scikit-learn's estimators of these names, trained by kernels."""

import numpy as np
from sklearn.base import ClassifierMixin, RegressorMixin
from sklearn.preprocessing import LabelBinarizer
from sklearn.utils import column_or_1d
from sklearn.utils.metaestimators import available_if
from sklearn.utils.multiclass import check_classification_targets, type_of_target, unique_labels

from .mlp_base import DEFAULT_FRACTION, MLP
from .mlp_callbacks import with_callbacks
from .shared import class_numbers, classes_in_parts, weights_of_classes


class MLPClassifier(ClassifierMixin, MLP):
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
            A whole weight n is the same as the row n times in its batch, but for dropout and batch_norm, which count
            rows; a row of weight 0 is left out.
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
        known = getattr(self, "classes_", None)
        classes = classes_in_parts(classes, known)
        if known is None:
            several = type_of_target(y).startswith("multilabel")
            binarizer = LabelBinarizer().fit(y if several else classes)
            self._label_binarizer, self.classes_ = binarizer, classes
        try:
            return self._fit(X, y, sample_weight, incremental=True)
        finally:
            if known is None and not hasattr(self, "coefs_"):  # the arguments were wrong: the next call is the first
                del self._label_binarizer, self.classes_

    # ---- labels ----------------------------------------------------------------------------------------------------

    def _label(self, y, fresh, incremental):
        """Learn the classes, or see whether they are those of before."""
        if not hasattr(self, "classes_") or (fresh and not incremental):
            self._label_binarizer = _binarizer(y)
            self.classes_ = self._label_binarizer.classes_
            return
        classes = np.unique(y) if _are_plain(y) else unique_labels(y)
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
        labels = class_numbers(name, y if y.ndim == 1 else column_or_1d(y), self.classes_)
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

    def score(self, X, y, sample_weight=None):
        """Accuracy on X and y: float. Of plain labels without weights it is counted here; scikit-learn's checks of them
        take longer than a small network's epoch."""
        plain = sample_weight is None and _are_plain(y)
        if plain and hasattr(self, "classes_") and self.classes_.dtype.kind in "iub" and not self._several:
            predicted = self.predict(X)
            if predicted.shape == y.shape:
                return float(np.count_nonzero(predicted == y) / len(y))
        return super().score(X, y, sample_weight)

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.classifier_tags.multi_label = True
        return tags


def _are_plain(y):
    """Whether labels need none of scikit-learn's checks, which take as long as an epoch of a small network."""
    return type(y) is np.ndarray and y.ndim == 1 and y.dtype.kind in "iub" and y.dtype.isnative


def _binarizer(y):
    """A LabelBinarizer that knows the classes."""
    binarizer = LabelBinarizer()
    classes = np.unique(y) if _are_plain(y) else None
    if classes is None or 2 * len(classes) > len(y):  # which scikit-learn warns about
        check_classification_targets(y)
        return binarizer.fit(y)
    binarizer.classes_, binarizer.sparse_input_ = classes, False
    binarizer.y_type_ = "multiclass" if len(classes) > 2 else "binary"
    return binarizer


class MLPRegressor(RegressorMixin, MLP):
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
            sizes = isinstance(self.loss, tuple | list | int)  # as they are given to a classifier
            hint = f"; layer sizes come by name: hidden_layer_sizes={self.loss!r}" if sizes else ""
            raise ValueError(f"loss: expected 'squared_error' or 'poisson', got {self.loss!r}{hint}")
        return super()._check_parameters(incremental)

    def _label(self, y, fresh, incremental):
        if not isinstance(y, np.ndarray):
            raise TypeError(f"y: expected an array, got {type(y).__name__}")
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
