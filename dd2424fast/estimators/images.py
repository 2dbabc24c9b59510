"""A convolutional network as a scikit-learn estimator."""

import numpy as np
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.model_selection import train_test_split
from sklearn.utils import check_random_state
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, column_or_1d

from .. import kernels
from ..batches import Batch
from ..callbacks import EarlyStopping
from ..configuration import array_of, positive_integer, real_in
from ..files import read, write
from ..history import History, plain
from ..losses import CrossEntropy
from ..models import ConvNet
from ..nn import BatchNorm, Sequential
from ..nn.module import SHUFFLE, generator
from ..nn.sequential import image_shape
from ..optim import SGD, Adam
from ..training import Trainer
from .shared import class_numbers, from_plain, row_weights, to_plain, validation_given, weights_of_classes


class ConvNetClassifier(ClassifierMixin, BaseEstimator):
    """A convolutional network as a scikit-learn classifier of images.

    The parameters of the network are ConvNet's, those of the training are named as in scikit-learn's MLPClassifier.
    Each channel is standardised inside, by its mean and deviation over the training images.

    Parameters
    ----------
    channels, hidden, batch_norm, convs_per_block, dropout : see models.ConvNet
    image : (int, int, int), optional
        Height, width and channels, where X comes as rows of numbers (channels innermost), as scikit-learn's own
        transformers give it.
    solver : {"adam", "sgd"}
    alpha : float
        Strength of the L2 term, 0.5 alpha sum W^2 / batch_size, as MLPClassifier has it.
    batch_size : int or "auto"
        "auto" is min(200, images).
    learning_rate_init : float
    max_iter : int
        Epochs.
    shuffle : bool
    random_state : int, numpy.random.RandomState or None
        Of the weights, of the order of the images, of dropout and of the split for early stopping.
    tol : float
        What counts as an improvement, of the loss or, with early stopping, of the validation accuracy.
    n_iter_no_change : int
        Epochs without one, after which training ends.
    early_stopping : bool
        Look at the accuracy on images that are set aside (or given to `fit`) instead of at the loss, and end with the
        weights of the best epoch.
    validation_fraction : float
        Of the images, set aside for early stopping, of every class its share.
    momentum, nesterovs_momentum : float, bool
        Of "sgd".
    beta_1, beta_2, epsilon : float
        Of "adam".
    label_smoothing : float
    class_weight : dict from class to float, "balanced" or None
    augment : callable, optional
        `augment(x, key)` returns the batch to train on; see Trainer.fit. It sees the images as they were given.
    verbose : bool
        A bar on a terminal, a line an epoch elsewhere.

    Attributes
    ----------
    classes_ : ndarray
    image_ : (int, int, int)
    n_features_in_ : int
        Numbers of an image.
    model_ : nn.Sequential
        The standardisation, a batch normalisation that is never trained, and the ConvNet: logits of raw images.
    history_ : History
    n_iter_ : int
        Epochs made.
    loss_, loss_curve_ : float, list of float
        The mean loss of the last epoch, and of each.
    validation_scores_, best_validation_score_ : list of float, float
        Accuracies on the images set aside or given; None without such.
    """

    def __init__(
        self,
        channels=(32, 64),
        hidden=128,
        *,
        image=None,
        batch_norm=False,
        convs_per_block=1,
        dropout=0.0,
        solver="adam",
        alpha=1e-4,
        batch_size="auto",
        learning_rate_init=1e-3,
        max_iter=20,
        shuffle=True,
        random_state=None,
        tol=1e-4,
        n_iter_no_change=10,
        early_stopping=False,
        validation_fraction=0.1,
        momentum=0.9,
        nesterovs_momentum=True,
        beta_1=0.9,
        beta_2=0.999,
        epsilon=1e-8,
        label_smoothing=0.0,
        class_weight=None,
        augment=None,
        verbose=False,
    ):
        self.channels = channels
        self.hidden = hidden
        self.image = image
        self.batch_norm = batch_norm
        self.convs_per_block = convs_per_block
        self.dropout = dropout
        self.solver = solver
        self.alpha = alpha
        self.batch_size = batch_size
        self.learning_rate_init = learning_rate_init
        self.max_iter = max_iter
        self.shuffle = shuffle
        self.random_state = random_state
        self.tol = tol
        self.n_iter_no_change = n_iter_no_change
        self.early_stopping = early_stopping
        self.validation_fraction = validation_fraction
        self.momentum = momentum
        self.nesterovs_momentum = nesterovs_momentum
        self.beta_1 = beta_1
        self.beta_2 = beta_2
        self.epsilon = epsilon
        self.label_smoothing = label_smoothing
        self.class_weight = class_weight
        self.augment = augment
        self.verbose = verbose

    # ---- training --------------------------------------------------------------------------------------------------

    def fit(self, X, y, sample_weight=None, X_val=None, y_val=None):
        """Train a network from the beginning.

        Parameters
        ----------
        X : array of shape (n, height, width, channels), or (n, height * width * channels) with `image`
            Of uint8 or any numbers.
        y : array of shape (n,)
            Class labels of any kind.
        sample_weight : array of shape (n,), optional
            Weights of the images in the loss; those of weight 0 are left out.
        X_val, y_val : like X and y, optional
            Images to watch, and to stop early by, instead of some that are set aside.

        Returns
        -------
        self
        """
        X = self._images("X", X)
        y = self._labels("y", y, len(X))
        check_classification_targets(y)
        classes, labels = np.unique(y, return_inverse=True)
        if len(classes) < 2:
            raise ValueError(f"y: expected at least two classes, got {len(classes)}")
        if sample_weight is not None:
            X, labels, sample_weight = _weighted(X, labels, sample_weight)
        validation = self._validation(X_val, y_val, classes, X.shape[1:])
        seed = self._seed()
        if validation is None and self.early_stopping:
            share = real_in("validation_fraction", self.validation_fraction, 0, 1, False, False)
            train, held = train_test_split(np.arange(len(X)), test_size=share, stratify=labels, random_state=seed)
            validation = X[held], labels[held]
            X, labels = X[train], labels[train]
            sample_weight = None if sample_weight is None else sample_weight[train]
        class_weight = weights_of_classes(self.class_weight, classes, labels)
        model = self._network(X.shape[1:], len(classes), seed)
        _standardize(model[0], X)
        history = self._train(model, X, labels, sample_weight, validation, class_weight, seed)
        self._tell(model, classes, history)
        return self

    def _seed(self):
        if self.random_state is None:
            return int(np.random.SeedSequence().generate_state(1)[0])
        return int(check_random_state(self.random_state).randint(2**31))

    def _network(self, image, classes, seed):
        standardize = BatchNorm(image[2], eps=0.0)
        standardize.freeze()
        net = ConvNet(
            self.channels,
            self.hidden,
            classes,
            self.batch_norm,
            self.convs_per_block,
            image,
            self.dropout,
            seed=seed,
        )
        return Sequential(standardize, net, image=image, names=("standardize", "net"))

    def _train(self, model, X, labels, sample_weight, validation, class_weight, seed):
        """Train the model; returns the history."""
        n = len(X)
        size = min(200, n) if isinstance(self.batch_size, str) and self.batch_size == "auto" else self.batch_size
        size = min(positive_integer("batch_size", size), n)
        decay = real_in("alpha", self.alpha, 0, np.inf, include_high=False) / size
        lr = real_in("learning_rate_init", self.learning_rate_init, 0, np.inf, include_low=False, include_high=False)
        optimizers = {
            "adam": lambda: Adam(lr, (self.beta_1, self.beta_2), self.epsilon, decay),
            "sgd": lambda: SGD(lr, self.momentum, bool(self.nesterovs_momentum and self.momentum), decay),
        }
        if self.solver not in optimizers:
            raise ValueError(f"solver: expected 'adam' or 'sgd', got {self.solver!r}")
        loss = CrossEntropy(self.label_smoothing, class_weight=class_weight)
        trainer = Trainer(model, optimizers[self.solver](), loss, seed=seed)
        stopping = EarlyStopping(
            "val_accuracy" if self.early_stopping else "loss",
            self.n_iter_no_change,
            self.tol,
            restore_best_weights=bool(self.early_stopping),
        )
        return trainer.fit(
            (X, labels) if sample_weight is None else _Weighted(X, labels, sample_weight, size, self.shuffle, seed),
            validation,
            epochs=positive_integer("max_iter", self.max_iter),
            batch_size=size,
            callbacks=[stopping],
            progress=bool(self.verbose),
            shuffle=bool(self.shuffle),
            augment=self.augment,
        )

    def _tell(self, model, classes, history):
        self.model_, self.classes_, self.history_ = model.eval(), classes, history
        self.image_, self.n_features_in_ = model.image, int(np.prod(model.image))
        self.loss_curve_ = list(history["loss"])
        self.loss_, self.n_iter_ = self.loss_curve_[-1], len(self.loss_curve_)
        self.validation_scores_ = list(history["val_accuracy"]) if "val_accuracy" in history else None
        self.best_validation_score_ = None if self.validation_scores_ is None else max(self.validation_scores_)

    def _validation(self, X, y, classes, image):
        if not validation_given(X, y):
            return None
        X = self._images("X_val", X, image)
        y = self._labels("y_val", y, len(X))
        return X, class_numbers("y_val", y, classes)

    # ---- what comes in ---------------------------------------------------------------------------------------------

    def _images(self, name, X, image=None):
        """X as (n, height, width, channels); `image` is the shape that it must have, where that is known."""
        X = array_of(name, X)
        if X.dtype.kind not in "fiub":
            raise TypeError(f"{name}: expected numbers, got {type(X).__name__} of dtype {X.dtype}")
        image = image if image is not None or self.image is None else image_shape(self.image)
        if X.ndim == 2 and image is not None and X.shape[1] == np.prod(image):
            X = X.reshape(-1, *image)
        height, width, channels = image or ("height", "width", "channels")
        if X.ndim != 4 or (image is not None and X.shape[1:] != tuple(image)):
            expected = f"expected images of shape (n, {height}, {width}, {channels})"
            if image is not None:
                expected += f" or rows of {np.prod(image)} numbers"
            raise ValueError(f"{name}: {expected}, got {X.shape}{self._hint(X.shape, image)}")
        if image is None and X.shape[1] in (1, 3) and X.shape[3] > 4:
            raise ValueError(
                f"{name}: expected images of shape (n, height, width, channels), got {X.shape}: channels come last "
                "here (if they do, say so by image=)"
            )
        if not len(X):
            raise ValueError(f"{name}: expected at least one image, got shape {X.shape}")
        if X.dtype.kind == "f" and not np.isfinite(X).all():
            first = tuple(int(i) for i in np.argwhere(~np.isfinite(X))[0])
            raise ValueError(f"{name}: expected finite numbers, got {X[first]} at {first}")
        return X

    @staticmethod
    def _hint(shape, image):
        if image is None:
            return {
                2: "; say by image= what the rows are",
                3: "; images of one channel are X[..., None]",
            }.get(len(shape), "")
        return ": channels come last here" if shape[1:] == (image[2], *image[:2]) else ""

    @staticmethod
    def _labels(name, y, n):
        y = column_or_1d(array_of(name, y), warn=True)
        if len(y) != n:
            raise ValueError(f"{name}: expected {n} labels, one for each image, got {len(y)}")
        if y.dtype.kind == "f" and not np.isfinite(y).all():
            raise ValueError(f"{name}: expected labels, got {y[~np.isfinite(y)][0]}")
        return y

    # ---- use -------------------------------------------------------------------------------------------------------

    def decision_function(self, X):
        """The logits of every class: ndarray of shape (n, classes)."""
        check_is_fitted(self, "model_")
        return self.model_.predict(self._images("X", X, self.image_))

    def predict_proba(self, X):
        """The probability of every class, in the order of `classes_`: ndarray of shape (n, classes)."""
        return kernels.softmax(self.decision_function(X))

    def predict(self, X):
        """The most probable class of each image: ndarray of shape (n,)."""
        best = self.decision_function(X).argmax(axis=1)
        return self.classes_[best]

    # ---- files -----------------------------------------------------------------------------------------------------

    def save(self, path):
        """Write the fitted classifier to a safetensors file, whole or not at all.

        Raises
        ------
        TypeError
            A parameter cannot be written: a function, a RandomState.
        """
        check_is_fitted(self, "model_")
        header = {
            "parameters": {name: to_plain(name, value) for name, value in self.get_params(deep=False).items()},
            "classes": self.classes_.tolist(),
            "classes_dtype": self.classes_.dtype.str,
            "image": self.image_,
            "history": plain(self.history_.columns),
        }
        write(path, type(self).__name__, self.model_.state_dict(), header)

    @classmethod
    def load(cls, path):
        """Read a classifier that `save` wrote."""
        tensors, header = read(path, cls.__name__)
        self = cls(**{name: from_plain(value) for name, value in header["parameters"].items()})
        classes = np.array(header["classes"], dtype=header["classes_dtype"])
        model = self._network(tuple(header["image"]), len(classes), 0)
        model.load_state_dict(tensors)
        self._tell(model, classes, History(header["history"]))
        return self


class _Weighted:
    """Batches of weighted images, in a new order every epoch."""

    def __init__(self, x, y, weight, size, shuffle, seed):
        self.arrays, self.size, self.shuffle, self.seed = (x, y, weight), size, shuffle, seed
        self.epoch = 0

    def __len__(self):
        return -(-len(self.arrays[0]) // self.size)

    def __iter__(self):
        n = len(self.arrays[0])
        order = generator(self.seed, SHUFFLE, self.epoch).permutation(n) if self.shuffle else np.arange(n)
        self.epoch += 1
        for start in range(0, n, self.size):
            x, y, weight = (a[order[start : start + self.size]] for a in self.arrays)
            yield Batch(x, y, None, weight)


def _weighted(X, labels, weight):
    weight = row_weights(weight, len(X), "image")
    counted = weight > 0
    return X[counted], labels[counted], weight[counted]


def _standardize(norm, X):
    """Let a batch normalisation in use take each channel to mean 0 and deviation 1; a constant one becomes 0."""
    variance = X.var(axis=(0, 1, 2), dtype=np.float64)
    norm._own_buffers["running_mean"][...] = X.mean(axis=(0, 1, 2), dtype=np.float64)
    norm._own_buffers["running_var"][...] = np.where(variance > 0, variance, 1.0)
