"""A convolutional network as a scikit-learn estimator."""

import math
import time

import numpy as np
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.model_selection import train_test_split
from sklearn.utils import check_random_state
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, column_or_1d

from .. import kernels
from ..configuration import array_of, columns_hint, real_in
from ..nn.sequential import image_shape
from .images_files import ImageFiles
from .images_training import NETWORK, Images, ImageTraining, network, standardize
from .shared import class_numbers, classes_in_parts, row_weights, validation_given, weights_of_classes


class ConvNetClassifier(ClassifierMixin, ImageFiles, ImageTraining, BaseEstimator):
    """A convolutional network as a scikit-learn classifier of images.

    The parameters of the network are ConvNet's, those of the training are named as in scikit-learn's MLPClassifier.
    Each channel is standardised inside, by its mean and deviation over the training images; where training goes on,
    over those of its first call.

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
        Images of a class of weight 0 are left out.
    augment : callable, optional
        `augment(x, key)` returns the batch to train on; see Trainer.fit. It sees the images as they were given.
    verbose : bool
        A bar on a terminal, a line an epoch elsewhere.
    warm_start : bool
        Let `fit` go on where the last one ended, with its optimizer's state, counters, order of images and what early
        stopping has seen: max_iter=5 twice is max_iter=10 bit for bit.
    time_budget : float, optional
        Seconds after which `fit` ends, before an update that would not fit with the scores that follow; one update is
        made in any case. With `warm_start` the next `fit` takes up the epoch where it stood.

    Attributes
    ----------
    classes_ : ndarray
    image_ : (int, int, int)
    n_features_in_ : int
        Numbers of an image.
    model_ : nn.Sequential
        The standardisation, a batch normalisation that is never trained, and the ConvNet: logits of raw images.
    history_ : History
        Of all epochs since training began. One that a time budget has cut is there with its part, until it is
        completed; so it is in the lists below.
    n_iter_ : int
        Epochs that the last `fit` completed.
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
        warm_start=False,
        time_budget=None,
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
        self.warm_start = warm_start
        self.time_budget = time_budget

    # ---- training --------------------------------------------------------------------------------------------------

    def fit(self, X, y, sample_weight=None, X_val=None, y_val=None):
        """Train a network from the beginning, or with `warm_start` from where the last fit ended.

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

        Raises
        ------
        ValueError, TypeError
            An argument or parameter is wrong; the message names it. What was fitted before stays.
        TrainingDiverged
            The loss or a gradient is not finite. The weights are those before that update. With early stopping the
            best epoch's are kept instead, with a ConvergenceWarning.
        """
        return self._fit(X, y, sample_weight, X_val, y_val)

    def partial_fit(self, X, y, sample_weight=None, classes=None):
        """Train for one epoch on some images.

        Parameters
        ----------
        X, y, sample_weight : see fit
            The images of the first call are those that the channels are standardised by.
        classes : array
            All there will be; needed at the first call.

        Returns
        -------
        self

        Raises
        ------
        As `fit` does; a ValueError with `early_stopping`.
        """
        return self._fit(X, y, sample_weight, classes=classes, incremental=True)

    def _fit(self, X, y, sample_weight=None, X_val=None, y_val=None, classes=None, incremental=False):
        began = time.perf_counter()
        if incremental and self.early_stopping:
            raise ValueError("early_stopping: partial_fit does not support early_stopping=True")
        fresh = self._training is None or not (self.warm_start or incremental)
        X = self._images("X", X, None if fresh else self.image_)
        y = self._labels("y", y, len(X))
        check_classification_targets(y)
        classes = self._classes(y, classes, fresh, incremental)
        images = Images(X, class_numbers("y", y, classes))
        if sample_weight is not None:
            weight = row_weights(sample_weight, len(X), "image")
            images = Images(X, images.labels, weight).part(weight > 0)
        images = self._counting(images, classes)
        validation = self._validation(X_val, y_val, classes, X.shape[1:])
        seed = self._seed() if fresh else self._training[1]["trainer"]["seed"]
        if validation is None and self.early_stopping:
            images, validation = self._set_aside(images, seed)
        class_weight = self._class_weight(images.labels, classes, incremental)
        model, size = self._network(images.X, len(classes), seed, fresh), self._batch_images(len(images))
        trainer = self._trainer(model, size, class_weight, seed)
        self._train(trainer, classes, images, validation, size, fresh, incremental, began)
        return self

    def _classes(self, y, given, fresh, incremental):
        """The sorted classes: those of y, or with partial_fit those that it is told."""
        known, name = None if fresh else self.classes_, "classes" if incremental else "y"
        classes = classes_in_parts(given, known) if incremental else np.unique(y)
        if not incremental and known is not None and not np.array_equal(classes, known):
            raise ValueError(
                f"y: expected the classes of the network that goes on, {known.tolist()}, got {classes.tolist()}"
            )
        if len(classes) < 2:
            raise ValueError(f"{name}: expected at least two classes, got {len(classes)}")
        return classes if known is None else known

    def _seed(self):
        if self.random_state is None:
            return int(np.random.SeedSequence().generate_state(1)[0])
        return int(check_random_state(self.random_state).randint(2**31))

    def _set_aside(self, images, seed):
        """The images to train on, and (x, labels) to stop early by: a pure function of the seed and the labels."""
        share = real_in("validation_fraction", self.validation_fraction, 0, 1, False, False)
        rows = np.arange(len(images))
        train, held = train_test_split(rows, test_size=share, stratify=images.labels, random_state=seed)
        return images.part(train), (images.X[held], images.labels[held])

    def _counting(self, images, classes):
        """Those of classes of weight: of others alone a batch could consist, whose mean loss does not exist."""
        if not isinstance(self.class_weight, dict):
            return images
        counts = weights_of_classes(self.class_weight, classes, images.labels)[images.labels] > 0
        if not counts.any():
            raise ValueError("class_weight: expected a weight above 0 for a class of y, got zeros")
        return images if counts.all() else images.part(counts)

    def _class_weight(self, labels, classes, incremental):
        if incremental and isinstance(self.class_weight, str):
            raise ValueError(
                "class_weight: expected a dict or None for partial_fit, which sees a part of the images, got "
                f"{self.class_weight!r}"
            )
        return weights_of_classes(self.class_weight, classes, labels)

    def _network(self, X, classes, seed, fresh):
        """The network to train: a new one, or the one that is there."""
        if fresh:
            model = network(X.shape[1:], classes, seed, **{name: getattr(self, name) for name in NETWORK})
            standardize(model[0], X)
            return model
        config = self.model_[1].config
        for name in NETWORK:
            ours = getattr(self, name)
            ours = tuple(ours) if np.iterable(ours) else ours
            if ours != config[name]:
                raise ValueError(f"{name}: expected {config[name]}, that of the network that goes on, got {ours}")
        return self.model_

    def _tell(self, model, classes, history, epochs):
        self.model_, self.classes_, self.history_, self.n_iter_ = model.eval(), classes, history, epochs
        self.image_, self.n_features_in_ = model.image, int(np.prod(model.image))
        self.loss_curve_ = list(history["loss"]) if len(history) else []
        self.loss_ = self.loss_curve_[-1] if self.loss_curve_ else math.nan
        scores = history["val_accuracy"] if "val_accuracy" in history else ()
        self.validation_scores_ = [score for score in scores if score is not None] or None
        self.best_validation_score_ = max(self.validation_scores_) if self.validation_scores_ else None

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
        if shape[1:] == (image[2], *image[:2]):
            return ": channels come last here"
        return columns_hint(shape, features=math.prod(image))

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

    def predict_log_proba(self, X):
        """The logarithms of `predict_proba`, finite where those are 0."""
        from scipy.special import log_softmax

        return log_softmax(self.decision_function(X), axis=1)

    def predict(self, X):
        """The most probable class of each image: ndarray of shape (n,)."""
        best = self.decision_function(X).argmax(axis=1)
        return self.classes_[best]
