"""Estimators: a fit with the same settings here and in scikit-learn, many fits, and the prediction of one row.

One run is one fit (of all 64 settings, or one prediction), from the raw arrays to the fitted estimator; its result is
the last epoch's loss, the mean of all settings' scores, or the class. From the same random_state both libraries draw
the same weights and the same batches, so the losses must agree.
"""

import itertools
import warnings
from dataclasses import dataclass

import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import train_test_split

from .workloads import Task, register

CLASSES = 10


def _quiet():
    """All fits end before they converge, as they are told to."""
    warnings.simplefilter("ignore", ConvergenceWarning)


@dataclass(frozen=True)
class Fit(Task):
    """A network of one hidden layer, scikit-learn's defaults apart from what stands here.

    Attributes
    ----------
    rows, features : int
        Of data drawn from ten clouds, as large as CIFAR-10's images (a part of them) or the digits.
    hidden, epochs, batch : int
    dtype : str
    """

    rows: int
    features: int
    hidden: int
    epochs: int
    dtype: str = "float64"
    batch: int = 200

    def data(self):
        rng = np.random.default_rng(0)
        y = np.arange(self.rows) % CLASSES
        centres, noise = rng.standard_normal((CLASSES, self.features)), 0.4 * self.features**0.5
        return (centres[y] / noise + rng.standard_normal((self.rows, self.features))).astype(self.dtype), y

    def arguments(self):
        # Neither a small improvement nor none ends a fit: all libraries make as many epochs.
        return {
            "hidden_layer_sizes": (self.hidden,), "batch_size": self.batch, "max_iter": self.epochs, "tol": 0.0,
            "n_iter_no_change": 10**6, "random_state": 0,
        }  # fmt: skip

    def parameters(self):
        return (self.features + 1) * self.hidden + (self.hidden + 1) * CLASSES

    def gflop(self):
        weights = 4 * self.features * self.hidden + 6 * self.hidden * CLASSES
        return 1e-9 * self.epochs * self.rows * weights

    def gbytes(self):
        updates = self.epochs * -(-self.rows // self.batch)
        return 1e-9 * np.dtype(self.dtype).itemsize * updates * (7 * self.parameters() + self.batch * self.features)

    def ours(self):
        import dd2424fast as dd

        return self.fitting(dd.MLPClassifier)

    def fitting(self, kind):
        _quiet()
        x, y = self.data()
        return lambda: float(kind(**self.arguments()).fit(x, y).loss_)


def sklearn_fit(task, threads):
    from sklearn.neural_network import MLPClassifier

    return task.fitting(MLPClassifier)


@dataclass(frozen=True)
class Fits(Fit):
    """64 settings of the digits' network, scored on a fifth of the data.

    Attributes
    ----------
    how : {"side by side", "one after the other"}
    threads : int, optional
        Instead of those of the run.
    """

    how: str = "side by side"
    threads: int | None = None

    def grid(self):
        return {
            "alpha": [float(10.0**-i) for i in range(4)],
            "learning_rate_init": [3e-4, 1e-3, 3e-3, 1e-2],
            "batch_size": [100, 200],
            "momentum": [0.9, 0.95],
        }

    def split(self):
        return [tuple(train_test_split(np.arange(self.rows), test_size=0.2, random_state=0))]

    def gflop(self):
        return 64 * 0.8 * super().gflop()

    def gbytes(self):
        return 64 * 0.8 * super().gbytes()

    def ours(self):
        import dd2424fast as dd

        _quiet()
        if self.threads is not None:
            dd.set_num_threads(self.threads)
        x, y = self.data()
        estimator = dd.MLPClassifier(**{**self.arguments(), "solver": "sgd"})
        if self.how == "side by side":
            return lambda: float(dd.fit_many(estimator, self.grid(), x, y, validation=self.split()).means.mean())
        (train, held), *_ = self.split()
        (x_train, y_train), (x_held, y_held) = (x[train], y[train]), (x[held], y[held])
        settings = [dict(zip(self.grid(), values, strict=True)) for values in itertools.product(*self.grid().values())]

        def one_after_the_other():
            arguments = estimator.get_params()
            fitted = [type(estimator)(**{**arguments, **setting}).fit(x_train, y_train) for setting in settings]
            return float(np.mean([one.score(x_held, y_held) for one in fitted]))

        return one_after_the_other


def sklearn_search(task, threads):
    from joblib import parallel_config
    from sklearn.model_selection import GridSearchCV
    from sklearn.neural_network import MLPClassifier

    x, y = task.data()
    estimator = MLPClassifier(**{**task.arguments(), "solver": "sgd"})
    search = GridSearchCV(estimator, task.grid(), cv=task.split(), n_jobs=threads, refit=False)

    def run():
        # Its processes would each take the threads that this one may use, and hinder each other.
        with warnings.catch_warnings(), parallel_config("loky", inner_max_num_threads=1):
            _quiet()
            return float(search.fit(x, y).cv_results_["mean_test_score"].mean())

    return run


@dataclass(frozen=True)
class Predict(Fit):
    """The class of one row."""

    def gflop(self):
        return 2e-9 * self.parameters()

    def gbytes(self):
        return 1e-9 * np.dtype(self.dtype).itemsize * self.parameters()

    def fitting(self, kind):
        _quiet()
        x, y = self.data()
        estimator, row = kind(**self.arguments()).fit(x, y), x[:1].copy()
        return lambda: float(estimator.predict(row)[0])


_DIGITS = {"rows": 1797, "features": 64, "hidden": 100}
_FITS = {"sklearn": sklearn_fit}

register("fit_digits", "64-100-10 on 1,797 rows, Adam, 20 epochs, float64", Fit(**_DIGITS, epochs=20), _FITS, "fits")
for _dtype in ("float64", "float32"):
    register(
        f"fit_images_{_dtype}", f"3072-50-10 on 10,000 rows, Adam, 3 epochs, {_dtype}",
        Fit(10_000, 3072, 50, 3, _dtype), _FITS, "fits",
    )  # fmt: skip
_64 = {**_DIGITS, "epochs": 10}
register(
    "fits_64", "64 settings of 64-100-10, SGD, 10 epochs, side by side", Fits(**_64), {"sklearn": sklearn_search},
    "fits", twin=False,
)  # fmt: skip
for _threads in (None, 1):
    register(
        f"fits_64_in_turn{'' if _threads is None else '_1'}",
        f"the same one after the other{'' if _threads is None else ', one thread'}",
        Fits(**_64, how="one after the other", threads=_threads), {}, "fits", twin=False,
    )  # fmt: skip
register("predict_row", "the class of one row, 64-100-10", Predict(**_DIGITS, epochs=2), _FITS, "fits")
