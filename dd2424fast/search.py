"""Searches for good settings on top of `fit_many`: successive halving, and a range that narrows."""

import functools
import math
from dataclasses import dataclass, field

import numpy as np
from sklearn.metrics import check_scoring

from .configuration import integer_in, positive_integer, real_in
from .fleet import (
    QUIET,
    Data,
    FleetResult,
    bounds_of,
    check_error_score,
    fit_many,
    members_of,
    prepared,
    run,
    seeds_of,
    settings_of,
    with_seed,
)
from .threads import side_by_side


@dataclass
class SearchResult:
    """The rounds of a search.

    Attributes
    ----------
    rounds : list of FleetResult
    notes : list of str
        What each round was: the epochs trained, or the ranges drawn from.
    best_round : FleetResult
        The one that holds the best setting: of successive halving the last.
    """

    rounds: list = field(repr=False)
    notes: list
    best_round: FleetResult = field(repr=False)

    @property
    def best_setting(self):
        return self.best_round.best_setting

    @property
    def best_score(self):
        return float(self.best_round.means[self.best_round.best])

    @property
    def best_estimators(self):
        return self.best_round.best_estimators

    def table(self, most=10):
        """The rounds as text, of each the best settings."""
        return "\n".join(f"{note}\n{result.table(most)}" for note, result in zip(self.notes, self.rounds, strict=True))

    def __str__(self):
        return self.table()


def successive_halving(
    estimator, parameter_settings, X, y, seeds=None, *, max_iter, factor=3, first_iter=None, validation=0.1,
    sample_weight=None, scoring=None, threads=None, error_score="raise", progress=False,
):  # fmt: skip
    """Train all settings for a few epochs, then only the best third for three times as many, and so on.

    Survivors go on where they stopped (`warm_start`), so that the weights left at the end are, to the bit, what `fit`
    alone with `max_iter` epochs makes of them ("lbfgs", and other estimators that begin anew, excepted). One whose
    training has ended by itself, or failed, is not trained again.

    Parameters
    ----------
    estimator : with the parameters warm_start and max_iter, such as MLPClassifier
        Those together must mean epochs beyond what is trained already. A pipeline has none.
    parameter_settings, X, y, seeds, validation, sample_weight, scoring, threads, error_score, progress : see fit_many
        With a cross-validation, each fold's model goes on.
    max_iter : int
        Epochs of those that survive to the end.
    factor : int
        1 of so many survives a round, and trains so many times as long.
    first_iter : int, optional
        Epochs of the first round; by default such that one setting is left at the end.

    Returns
    -------
    SearchResult
        `best_estimators` are fitted with max_iter epochs, `epochs` of the members are those trained in all.

    References
    ----------
    Jamieson and Talwalkar 2016, arXiv:1502.07943, algorithm 1.
    """
    settings, seeds = settings_of(parameter_settings), seeds_of(seeds)
    factor = integer_in("factor", factor, 2, 2**31)
    max_iter = positive_integer("max_iter", max_iter)
    check_error_score(error_score)
    rungs = _rungs(len(settings), factor, max_iter, first_iter)
    for i, setting in enumerate(settings):
        own = {"max_iter", "warm_start"} & setting.keys()
        if own:
            raise ValueError(f"parameter_settings[{i}]: expected no {own.pop()}, which the search itself sets")
    _check_goes_on(prepared(estimator, settings[0]))
    data, scorer = Data(estimator, X, y, sample_weight, validation), check_scoring(estimator, scoring=scoring)
    bounds, warm = bounds_of(estimator, scoring), estimator.get_params()["warm_start"]
    prototypes = [prepared(estimator, setting).set_params(warm_start=True) for setting in settings]
    trained = _Trained(prototypes, seeds, data, scorer, error_score)
    alive, rounds, notes, before = list(range(len(settings))), [], [], 0
    for epochs in rungs:
        members = members_of(len(alive), len(seeds), data.folds)
        with QUIET:
            side_by_side(functools.partial(trained.go_on, alive, epochs - before), members, threads, progress)
        result = FleetResult([settings[i] for i in alive], seeds, data.scored_on, members, bounds)
        rounds.append(result)
        counted = f"{len(alive)} setting{'s' * (len(alive) > 1)}"
        notes.append(f"{counted} after {epochs} epoch{'s' * (epochs > 1)}")
        last, before = epochs == rungs[-1], epochs
        survivors = sorted(result.ranking[: 1 if last else max(1, len(alive) // factor)])
        for member in members:  # what goes on is not this round's any more
            if not last or member.setting != result.best:
                member.estimator = None
        alive = [alive[i] for i in survivors]
        trained.drop_all_but(alive)
    for member in rounds[-1].of(rounds[-1].best):
        member.estimator.set_params(max_iter=max_iter, warm_start=warm)
    return SearchResult(rounds, notes, rounds[-1])


def _check_goes_on(estimator):
    lacks = [name for name in ("warm_start", "max_iter") if name not in estimator.get_params()]
    if lacks:
        name = type(estimator).__name__
        hint = ": transform X before, and search for its last step, or use fit_many" if name == "Pipeline" else ""
        raise TypeError(
            f"estimator: expected one with the parameters warm_start and max_iter, {name} lacks {' and '.join(lacks)}"
            f"{hint}"
        )


class _Trained:
    """The estimators that are still trained, by setting, seed and fold, and what they last came to."""

    def __init__(self, prototypes, seeds, data, scorer, error_score):
        self.prototypes, self.seeds, self.data, self.scorer = prototypes, seeds, data, scorer
        self.error_score = error_score
        self.estimators, self.before = {}, {}

    def go_on(self, alive, more, member):
        """Train a member for so many more epochs, unless its training has ended by itself or failed before."""
        key = alive[member.setting], member.seed, member.fold
        if key not in self.estimators:
            self.estimators[key] = with_seed(self.prototypes[key[0]], self.seeds[member.seed])
        estimator, before = self.estimators[key], self.before.get(key)
        if before is not None and (before.converged or before.error):
            for name in ("score", "epochs", "converged", "error"):
                setattr(member, name, getattr(before, name))
            member.estimator = estimator
        else:
            run(member, estimator.set_params(max_iter=more), self.data, self.scorer, self.error_score)
            if before is not None and member.epochs is not None:
                member.epochs += before.epochs
        self.before[key] = member

    def drop_all_but(self, alive):
        self.estimators = {key: one for key, one in self.estimators.items() if key[0] in alive}


def _rungs(settings, factor, max_iter, first_iter):
    """Epochs at which the rounds end."""
    if first_iter is None:
        first_iter = max(1, max_iter // factor ** max(0, math.ceil(math.log(settings, factor) - 1e-9)))
    first_iter = integer_in("first_iter", first_iter, 1, max_iter)
    rungs = [first_iter]
    while rungs[-1] * factor < max_iter:
        rungs.append(rungs[-1] * factor)
    return rungs if rungs[-1] == max_iter else [*rungs, max_iter]


def coarse_to_fine(
    estimator, ranges, X, y, seeds=None, *, settings=8, rounds=3, best=None, random_state=0, validation=0.1, **options
):
    """Search ranges of positive numbers on a logarithmic scale, then again around the best: the course's lambda search.

    In each round every range is cut into `settings` equal parts (on the logarithmic scale), and one value is drawn from
    each; several ranges are combined at random (Latin hypercube). The next round's range reaches from the smallest to
    the largest of the best few, and half a part beyond. What failed is none of them; where all did, the range stays.

    Parameters
    ----------
    estimator, X, y, seeds, validation : see fit_many
    ranges : dict from parameter to (low, high)
        0 < low < high; of parameters that take floats, since nothing is rounded.
    settings : int
        Of each round.
    rounds : int
    best : int, optional
        So many settings decide where the next round looks. Default: 3, of two settings 2.
    random_state : int
        Of the draws.
    **options : see fit_many

    Returns
    -------
    SearchResult

    References
    ----------
    Bergstra and Bengio 2012, JMLR 13: random search. McKay, Beckman and Conover 1979: the hypercube.
    """
    settings, rounds = integer_in("settings", settings, 2, 10**6), positive_integer("rounds", rounds)
    best = min(3, settings) if best is None else integer_in("best", best, 1, settings)
    seeds = seeds if seeds is None else seeds_of(seeds)
    ranges = {name: _range(name, bounds) for name, bounds in _mapping(ranges).items()}
    rng, results, notes = np.random.default_rng(integer_in("random_state", random_state, 0)), [], []
    for _ in range(rounds):
        drawn = {name: _drawn(rng, low, high, settings) for name, (low, high) in ranges.items()}
        tried = [{name: float(values[i]) for name, values in drawn.items()} for i in range(settings)]
        result = fit_many(estimator, tried, X, y, seeds, validation=validation, **options)
        notes.append(", ".join(f"{name} in [{low:.3g}, {high:.3g}]" for name, (low, high) in ranges.items()))
        results.append(result)
        chosen = [tried[i] for i in result.ranking[:best] if not math.isnan(result.mean(i))]
        if chosen:
            ranges = {name: _narrowed([one[name] for one in chosen], *ranges[name], settings) for name in ranges}
    return SearchResult(results, notes, max(results, key=_best_mean))


def _best_mean(result):
    mean = result.mean(result.best)
    return -math.inf if math.isnan(mean) else mean


def _mapping(ranges):
    if not isinstance(ranges, dict) or not ranges:
        raise TypeError(f"ranges: expected a dict from a parameter to (low, high), got {ranges!r}")
    return ranges


def _range(name, bounds):
    if not isinstance(bounds, tuple | list) or len(bounds) != 2:
        raise ValueError(f"ranges: expected (low, high) for {name}, got {bounds!r}")
    low, high = (real_in(f"ranges[{name!r}]", bound, 0, math.inf, False, False) for bound in bounds)
    if low >= high:
        raise ValueError(f"ranges: expected low < high for {name}, got {low} and {high}")
    return low, high


def _drawn(rng, low, high, n):
    """A value from each of n equal parts of the range's logarithm, in random order."""
    parts = (rng.permutation(n) + rng.random(n)) / n
    return np.exp(math.log(low) + parts * math.log(high / low))


def _narrowed(values, low, high, parts):
    """From the smallest to the largest value and half a part beyond, inside the range."""
    half = (high / low) ** (0.5 / parts)
    return max(low, min(values) / half), min(high, max(values) * half)
