"""Many small models trained side by side, one a thread, and what their scores can tell apart."""

import csv
import itertools
import math
import numbers
import threading
import time
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np
from sklearn.base import BaseEstimator, clone, is_classifier, is_regressor
from sklearn.exceptions import ConvergenceWarning
from sklearn.metrics import check_scoring
from sklearn.model_selection import ParameterGrid, check_cv, train_test_split
from sklearn.utils import _safe_indexing, indexable
from sklearn.utils.validation import _num_samples

from .configuration import hinting_at_columns, integer_in, positive_integer, real_in
from .metrics import interval
from .threads import side_by_side

CONFIDENCE = 0.95
FEWEST_SEEDS = 3
CLEAR = 3.0


@dataclass
class Member:
    """One training: a setting, a seed and a part of the data.

    Attributes
    ----------
    setting, seed, fold : int
        Their places in the fleet.
    estimator : the fitted estimator, or None where it was not kept
    score : float
    seconds : float
        From the beginning of its fit to the end of its score.
    epochs : int or None
        Of estimators that tell.
    converged : bool or None
        Whether training ended by itself before `max_iter` epochs; None of estimators that do not tell, after a failure,
        and where a `time_budget` may have ended it.
    error : str or None
        What made its fit or its score fail.
    """

    setting: int
    seed: int
    fold: int
    estimator: object = field(default=None, repr=False)
    score: float = math.nan
    seconds: float = 0.0
    epochs: int | None = None
    converged: bool | None = None
    error: str | None = None


@dataclass
class FleetResult:
    """What `fit_many` found.

    Attributes
    ----------
    settings : list of dict
    seeds : list of int, or [None]
    scored_on : {"training data", "validation data", "cross-validation"}
    members : list of Member
        By setting, seed and fold.
    bounds : (float, float)
        Between which scores lie as this estimator and scoring have them, as far as that is known.
    """

    settings: list
    seeds: list
    scored_on: str
    members: list = field(repr=False)
    bounds: tuple = (-math.inf, math.inf)

    @property
    def scores(self):
        """ndarray of shape (settings, seeds): each the mean over the folds."""
        shape = len(self.settings), len(self.seeds), -1
        return np.array([member.score for member in self.members]).reshape(shape).mean(axis=2)

    @property
    def means(self):
        """ndarray of shape (settings,): the mean over the seeds."""
        return np.array([self.mean(i) for i in range(len(self.settings))])

    def mean(self, setting):
        """The mean of one setting's scores, over the folds and then over the seeds."""
        scores = np.array([member.score for member in self.of(setting)])
        return float(scores.reshape(len(self.seeds), -1).mean(axis=1).mean())

    @property
    def intervals(self):
        """ndarray of shape (settings, 2): the mean's 95 % interval by Student's t over the seeds, cut off at the
        bounds; NaN of one seed."""
        return np.array([interval(row, CONFIDENCE, *self._bounds()) for row in self.scores])

    def _bounds(self):
        """None where a score, an error_score or one of a class's own, lies beyond them."""
        low, high = self.bounds
        return (-math.inf, math.inf) if ((self.scores < low) | (self.scores > high)).any() else self.bounds

    @property
    def ranking(self):
        """The settings' places, the best mean first; of equals the earlier, and what failed last."""
        return np.argsort(-np.nan_to_num(self.means, nan=-np.inf), kind="stable")

    @property
    def best(self):
        """The place of the setting with the best mean."""
        return int(self.ranking[0])

    @property
    def best_setting(self):
        return self.settings[self.best]

    @property
    def best_estimators(self):
        """The best setting's fitted estimators, one for each seed and fold, where they were kept."""
        return [member.estimator for member in self.of(self.best)]

    def of(self, setting):
        """The members of one setting."""
        size = len(self.members) // len(self.settings)
        return self.members[setting * size : (setting + 1) * size]

    @property
    def distinguishable(self):
        """list of bool or None: whether a setting's scores differ from the best one's by more than chance.

        The seeds give pairs: the same initial weights, order and data as far as the settings allow. Student's t test on
        the pairs' differences, two-sided at 5 %; the probabilities by Holm's rule (1979), since all settings are
        compared with the best. None for the best itself, of settings that failed, which are not counted among all, and
        where there are too few seeds to tell: fewer than three, or so few for so many settings that a mean difference
        of three standard deviations of the pairs' differences would not be told.
        """
        from scipy.special import stdtr  # scipy.stats takes a second to import

        scores, best = self.scores, self.best
        n = scores.shape[1]
        # Scores come in steps, accuracies of one row: of two seeds the differences are the same by chance, and t is
        # infinite, in 6 to 12 % of comparisons where one row to four are their deviation. Of three 0.5 to 3 %.
        if n < FEWEST_SEEDS:
            return [None] * len(scores)
        others = [i for i in range(len(scores)) if i != best and not np.isnan(scores[i]).any()]
        with np.errstate(divide="ignore", invalid="ignore"):
            # Means over the folds that are equal may differ in their last bit, all pairs alike.
            same = np.isclose(scores, scores[best], rtol=1e-12, atol=0)
            differences = np.where(same, 0, scores[best] - scores)
            mean, deviation = differences.mean(axis=1), differences.std(axis=1, ddof=1)
            statistic = np.where(mean == 0, 0.0, np.abs(mean) / (deviation / math.sqrt(n)))
        statistic[np.isinf(mean)] = math.inf
        p = {i: 2 * stdtr(n - 1, -statistic[i]) for i in others}
        found, left = [None] * len(scores), sorted(others, key=p.get)
        while left and p[left[0]] * len(left) < 1 - CONFIDENCE:
            found[left.pop(0)] = True
        # Who cannot tell three deviations apart has not found that two settings are alike.
        if left and 2 * stdtr(n - 1, -CLEAR * math.sqrt(n)) * len(left) < 1 - CONFIDENCE:
            for i in left:
                found[i] = False
        return found

    def verdicts(self):
        """list of str: "best", "not distinguishable from the best", "worse than the best", "too few seeds to tell", or
        "failed"."""
        words = {True: "worse than the best", False: "not distinguishable from the best", None: "too few seeds to tell"}
        found = [words[told] for told in self.distinguishable]
        found[self.best] = "best"
        return ["failed" if math.isnan(mean) else word for mean, word in zip(self.means, found, strict=True)]

    def rows(self):
        """One dict a setting, the best first: the setting's own entries, "mean", "low", "high" (95 %), "seeds",
        "converged" (of those that tell), "seconds" (of one training, mean) and "verdict"."""
        means, intervals, verdicts = self.means, self.intervals, self.verdicts()
        rows = []
        for i in self.ranking:
            members = self.of(i)
            told = [member.converged for member in members if member.converged is not None]
            rows.append(
                {
                    **self.settings[i],
                    "mean": float(means[i]),
                    "low": float(intervals[i, 0]),
                    "high": float(intervals[i, 1]),
                    "seeds": len(self.seeds),
                    "converged": f"{sum(told)}/{len(told)}" if told else "",
                    "seconds": sum(member.seconds for member in members) / len(members),
                    "verdict": verdicts[i],
                }
            )
        return rows

    def table(self, most=20):
        """The best settings as text, at most so many."""
        lines = []
        for rank, (i, row) in enumerate(zip(self.ranking[:most], self.rows()[:most], strict=True), 1):
            interval = "" if math.isnan(row["low"]) else f" [{row['low']:.4f}, {row['high']:.4f}]"
            lines.append(f"{rank:>3}  {row['mean']:.4f}{interval}  {shown(self.settings[i])}  {row['verdict']}")
        left = len(self.settings) - len(lines)
        head = f"     mean score on {self.scored_on}" + (", 95 % interval" if len(self.seeds) > 1 else "")
        return "\n".join([head, *lines, *([f"     and {left} more"] if left else [])])

    def __str__(self):
        return self.table()

    def plot(self, path=None, most=20):
        """Draw the best settings' means and intervals as bars; returns the Figure. path : path-like, optional, where to
        write the picture."""
        from .plots import search

        scores, ranking = self.scores, [i for i in self.ranking if np.isfinite(self.means[i])]
        results = [(shown(self.settings[i]), scores[i]) for i in ranking[:most]]
        return search(results, path, quantity="score", bounds=self._bounds())

    def to_csv(self, path):
        """Write `rows` to a file."""
        rows = self.rows()
        names = list(dict.fromkeys(name for row in rows for name in row))
        with open(path, "w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, names)
            writer.writeheader()
            writer.writerows(rows)


def shown(setting):
    """A setting as text: name=value, ..."""
    parts = (f"{k}={v:.4g}" if isinstance(v, float) else f"{k}={v}" for k, v in setting.items())
    return ", ".join(parts) or "as given"


def fit_many(
    estimator,
    parameter_settings,
    X,
    y,
    seeds=None,
    *,
    validation=None,
    sample_weight=None,
    scoring=None,
    keep="best",
    threads=None,
    error_score="raise",
    progress=False,
):
    """Train an estimator with many settings, each from several seeds, side by side.

    Every thread trains one model at a time, on its own, by kernels that hold no lock: no process is started, the data
    are not copied but for the rows of a fold. A member is, to the bit, what `fit` alone makes of its setting and seed.
    Ctrl-C, or an error, ends the trainings of this library's estimators within moments, those of others after the fits
    that are under way.

    Parameters
    ----------
    estimator : a scikit-learn estimator, such as MLPClassifier
        It is cloned, never changed.
    parameter_settings : iterable of dict, or dict of sequences
        What `set_params` takes. A dict of sequences is a grid, all combinations; scikit-learn's ParameterSampler draws
        at random.
    X, y : as `fit` takes them
    seeds : int or sequence of int, optional
        Values of every `random_state` among the estimator's parameters, the same for all settings; a number n means 0
        to n - 1. By default the random_state is left as it is, and each setting trained once.
    validation : float, (X, y), int or splitter, optional
        What the scores are taken on: a share of the data that is set aside, of every class its part, the same for all
        members; given data; or the folds of a cross-validation. By default the training data.
    sample_weight : array of shape (n,), optional
        Of the training data.
    scoring : str or callable, optional
        As in scikit-learn; by default the estimator's `score`.
    keep : {"best", "all", "none"}
        Which fitted estimators the result holds. With "best" and "none" memory does not grow with their number.
    threads : int, optional
        Default: dd.get_num_threads(), and within a training of another fleet those that it has.
    error_score : "raise" or float
        What a fit that fails does: end it all, or score so; its member tells the error.
    progress : bool
        A bar, to standard error.

    Returns
    -------
    FleetResult

    Raises
    ------
    TypeError, ValueError
        An argument is wrong; the message names it.
    """
    settings = settings_of(parameter_settings)
    seeds = seeds_of(seeds)
    if keep not in ("best", "all", "none"):
        raise ValueError(f"keep: expected 'best', 'all' or 'none', got {keep!r}")
    check_error_score(error_score)
    prototypes = [prepared(estimator, setting) for setting in settings]
    data = Data(estimator, X, y, sample_weight, validation)
    scorer = check_scoring(estimator, scoring=scoring)
    members = members_of(len(settings), len(seeds), data.folds)
    result = FleetResult(settings, seeds, data.scored_on, members, bounds_of(estimator, scoring))
    keeper = _Keeper(result, keep, len(seeds) * data.folds)

    def train(member):
        one = with_seed(prototypes[member.setting], seeds[member.seed])
        run(member, one, data, scorer, error_score)
        keeper.done(member)

    with QUIET:
        side_by_side(train, members, threads, progress)
    return result


# ---- one training --------------------------------------------------------------------------------------------------


class Data:
    """Training data, and what scores are taken on."""

    def __init__(self, estimator, X, y, sample_weight, validation):
        with hinting_at_columns(X, y):
            self.train = tuple(indexable(X, y, sample_weight))
        self.held, self.parts, self.scored_on = self.train[:2], [], "training data"
        if isinstance(validation, tuple | list) and len(validation) == 2:
            self.held, self.scored_on = tuple(indexable(*validation)), "validation data"
        elif isinstance(validation, numbers.Real) and not isinstance(validation, numbers.Integral):
            share = real_in("validation", float(validation), 0, 1, False, False)
            (self.train, self.held), self.scored_on = self._parted(self._rows(estimator, share)), "validation data"
        elif validation is not None:
            self.parts, self.scored_on = self._folds(estimator, validation), "cross-validation"
            if len(self.parts) == 1:  # once for all members
                (self.train, self.held), self.parts = self._parted(self.parts[0]), []

    def _rows(self, estimator, share):
        X, y, _ = self.train
        classes = np.asarray(y) if is_classifier(estimator) and np.ndim(y) == 1 else None
        return train_test_split(np.arange(_num_samples(X)), test_size=share, stratify=classes, random_state=0)

    def _folds(self, estimator, validation):
        if isinstance(validation, numbers.Integral):
            validation = integer_in("validation", validation, 2)
        X, y, _ = self.train
        try:
            return list(check_cv(validation, y, classifier=is_classifier(estimator)).split(X, y))
        except ValueError as error:
            raise ValueError(f"validation: {error}") from None

    def _parted(self, rows):
        train, held = rows
        weight = None if self.train[2] is None else _safe_indexing(self.train[2], train)
        X, y = self.train[:2]
        return (
            (_safe_indexing(X, train), _safe_indexing(y, train), weight),
            (_safe_indexing(X, held), _safe_indexing(y, held)),
        )

    @property
    def folds(self):
        return len(self.parts) or 1

    def of(self, fold):
        """(X, y, sample_weight) to train on, and (X, y) to score on."""
        return self._parted(self.parts[fold]) if self.parts else (self.train, self.held)


def members_of(settings, seeds, folds):
    """One for each combination of so many, by setting, seed and fold."""
    return [Member(*places) for places in itertools.product(range(settings), range(seeds), range(folds))]


def settings_of(given):
    """A list of dicts."""
    if isinstance(given, Mapping):
        given = ParameterGrid({name: _listed(name, values) for name, values in given.items()})
    elif isinstance(given, str) or not isinstance(given, Iterable):
        raise TypeError(f"parameter_settings: expected dicts, or a dict of sequences, got {type(given).__name__}")
    settings = list(given)
    for i, setting in enumerate(settings):
        if not isinstance(setting, Mapping):
            raise TypeError(f"parameter_settings[{i}]: expected a dict, got {type(setting).__name__}")
    if not settings:
        raise ValueError("parameter_settings: expected at least one, got none")
    return [dict(setting) for setting in settings]


def _listed(name, values):
    if isinstance(values, str) or not isinstance(values, Iterable):
        raise TypeError(f"parameter_settings: expected a sequence of values for {name}, got {values!r}")
    return list(values)


def seeds_of(seeds):
    """A list of seeds, or [None]: as the estimator has it."""
    if seeds is None:
        return [None]
    if isinstance(seeds, numbers.Integral):
        return list(range(positive_integer("seeds", seeds)))
    if isinstance(seeds, str) or not isinstance(seeds, Iterable):
        raise TypeError(f"seeds: expected a number of them or a sequence of integers, got {seeds!r}")
    seeds = [integer_in(f"seeds[{i}]", seed, 0, 2**32 - 1) for i, seed in enumerate(seeds)]
    if not seeds or len(set(seeds)) < len(seeds):
        raise ValueError(f"seeds: expected different seeds, at least one, got {seeds}")
    return seeds


def prepared(estimator, setting):
    """A clone with a setting's parameters."""
    if not isinstance(estimator, BaseEstimator):
        raise TypeError(f"estimator: expected a scikit-learn estimator, got {type(estimator).__name__}")
    try:
        return clone(estimator).set_params(**setting)
    except ValueError as error:
        raise ValueError(f"parameter_settings: {error}") from None


def with_seed(prototype, seed):
    """A clone whose random_state, and that of whatever is inside, is the seed."""
    one = clone(prototype)
    if seed is not None:
        names = [name for name in one.get_params() if name == "random_state" or name.endswith("__random_state")]
        if not names:
            raise ValueError(f"seeds: expected None, since {type(one).__name__} has no random_state, got {seed}")
        one.set_params(**dict.fromkeys(names, seed))
    return one


def check_error_score(error_score):
    number = isinstance(error_score, numbers.Real) and not isinstance(error_score, bool)
    if not number and (not isinstance(error_score, str) or error_score != "raise"):
        raise ValueError(f"error_score: expected 'raise' or a number, got {error_score!r}")


def bounds_of(estimator, scoring):
    """Between which scores lie: accuracies and R^2, the defaults, tell; of another scoring nothing is known."""
    if isinstance(scoring, str):
        accuracy, r2 = scoring == "accuracy", scoring == "r2"
    else:
        accuracy, r2 = (scoring is None and kind(estimator) for kind in (is_classifier, is_regressor))
    return (0.0 if accuracy else -math.inf, 1.0 if accuracy or r2 else math.inf)


def run(member, estimator, data, scorer, error_score="raise"):
    """Fit and score a member."""
    (X, y, weight), held = data.of(member.fold)
    started = time.perf_counter()
    try:
        estimator.fit(X, y, **({} if weight is None else {"sample_weight": weight}))
        member.score = float(scorer(estimator, *held))
    except Exception as error:
        if isinstance(error_score, str):
            raise
        member.score, member.error = float(error_score), f"{type(error).__name__}: {error}"
    member.seconds += time.perf_counter() - started
    member.estimator = estimator
    _tell_epochs(member, estimator)


def _tell_epochs(member, estimator):
    epochs, most = (getattr(estimator, name, None) for name in ("n_iter_", "max_iter"))
    member.epochs = None if epochs is None else int(np.max(epochs))  # scikit-learn has arrays, one for each class
    if member.epochs is None or most is None or member.error:
        member.converged = None
    elif member.epochs < most:
        member.converged = True if getattr(estimator, "time_budget", None) is None else None
    else:
        member.converged = False


class _Keeper:
    """Lets go of the estimators that nobody asked for as soon as that is known."""

    def __init__(self, result, keep, size):
        self.result, self.keep = result, keep
        self.left, self.best = [size] * len(result.settings), None
        self.lock = threading.Lock()

    def done(self, member):
        if self.keep == "none":
            member.estimator = None
        elif self.keep == "best":
            with self.lock:
                self.left[member.setting] -= 1
                if not self.left[member.setting]:
                    self._compare(member.setting)

    def _compare(self, i):
        mean, loser = self.result.mean(i), i
        rank = (False, 0.0, -i) if math.isnan(mean) else (True, mean, -i)
        if self.best is None or rank > self.best:
            loser, self.best = (None if self.best is None else -self.best[2]), rank
        if loser is not None:
            for member in self.result.of(loser):
                member.estimator = None


# ---- warnings ------------------------------------------------------------------------------------------------------


class _Quiet:
    """Ignores ConvergenceWarning, which the members tell, while any fleet trains. The filters are the process's: two
    fleets in two threads must not put back each other's."""

    def __init__(self):
        self.lock, self.fleets = threading.Lock(), 0

    def __enter__(self):
        with self.lock:
            self.fleets += 1
            if self.fleets == 1:
                self.before = warnings.catch_warnings()
                self.before.__enter__()
                warnings.simplefilter("ignore", ConvergenceWarning)

    def __exit__(self, *error):
        with self.lock:
            self.fleets -= 1
            if not self.fleets:
                self.before.__exit__(*error)


QUIET = _Quiet()
