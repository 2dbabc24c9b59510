"""Many models side by side: each as alone, and what their scores tell apart."""

import contextvars
import functools
import itertools
import math
import re
import threading
import time
import warnings

import numpy as np
import pytest
from scipy import sparse, stats
from side_threads import interrupted, side_threads
from sklearn.base import BaseEstimator, ClassifierMixin, clone
from sklearn.ensemble import RandomForestClassifier
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LinearRegression
from sklearn.model_selection import ParameterSampler, StratifiedKFold, train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import dd2424fast as dd
from dd2424fast.fleet import FleetResult, Member, _Keeper, bounds_of
from dd2424fast.kernels import _team
from dd2424fast.threads import END


@pytest.fixture
def data():
    """150 rows of 6 features in 3 classes."""
    rng = np.random.default_rng(3)
    y = rng.integers(0, 3, 150)
    return rng.standard_normal((3, 6))[y] + 0.7 * rng.standard_normal((150, 6)), y


def network(**options):
    return dd.MLPClassifier((9,), **{"max_iter": 6, "batch_size": 40, **options})


def weights(estimator):
    return np.concatenate([a.ravel() for a in (*estimator.coefs_, *estimator.intercepts_)])


class Recorder(ClassifierMixin, BaseEstimator):
    """Scores what its parameters say, and notes the threads and the memory that it was given."""

    seen = []  # noqa: RUF012, emptied by each test that looks

    def __init__(self, value=0.0, fail=False, random_state=None, inner=None):
        self.value, self.fail, self.random_state, self.inner = value, fail, random_state, inner

    def fit(self, X, y, sample_weight=None):
        limit = _team.limit_threads(0)
        _team.limit_threads(limit)
        self.seen.append((threading.get_ident(), limit, X, y, sample_weight, dd.get_backend()))
        if self.fail:
            raise RuntimeError("no luck")
        if self.inner is not None:
            self.inner(X, y)
        self.classes_ = np.unique(y)
        return self

    def score(self, X, y):
        return self.value + 0.01 * ((self.random_state or 0) % 3)


# ---- members -------------------------------------------------------------------------------------------------------


def test_each_member_is_what_fit_alone_makes(data):
    X, y = data
    settings = {"alpha": [1e-4, 0.1], "solver": ["adam", "sgd"], "dropout": [0.0, 0.2]}
    for threads in (1, 3):
        fleet = dd.fit_many(network(), settings, X, y, seeds=(4, 9), keep="all", threads=threads)
        assert len(fleet.members) == 16
        for member in fleet.members:
            alone = network(**fleet.settings[member.setting], random_state=fleet.seeds[member.seed])
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ConvergenceWarning)
                alone.fit(X, y)
            np.testing.assert_array_equal(weights(member.estimator), weights(alone))
            assert member.score == alone.score(X, y)
            assert (member.epochs, member.converged) == (6, False)


def test_validation_is_the_same_part_for_all(data):
    X, y = data
    fleet = dd.fit_many(network(), [{}, {"alpha": 0.1}], X, y, seeds=2, validation=0.2, keep="all")
    parts = train_test_split(X, y, test_size=0.2, stratify=y, random_state=0)
    for member in fleet.members:
        assert member.score == member.estimator.score(parts[1], parts[3])
    assert fleet.scored_on == "validation data"
    given = dd.fit_many(network(), [{}], parts[0], parts[2], seeds=2, validation=(parts[1], parts[3]), keep="all")
    assert given.members[1].score == fleet.members[1].score


def test_folds(data):
    X, y = data
    cv = StratifiedKFold(3, shuffle=True, random_state=1)
    fleet = dd.fit_many(network(), [{}, {"alpha": 1.0}], X, y, seeds=2, validation=cv, keep="all")
    assert fleet.scored_on == "cross-validation"
    assert len(fleet.members) == 12
    train, held = list(cv.split(X, y))[2]
    member = fleet.of(1)[5]
    assert (member.setting, member.seed, member.fold) == (1, 1, 2)
    alone = network(alpha=1.0, random_state=1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        alone.fit(X[train], y[train])
    assert member.score == alone.score(X[held], y[held])
    assert fleet.scores.shape == (2, 2)
    assert fleet.scores[1, 1] == pytest.approx(np.mean([m.score for m in fleet.of(1)[3:]]))
    assert len(dd.fit_many(network(), [{}], X, y, validation=5).members) == 5


def test_weights_belong_to_the_training_rows():
    Recorder.seen.clear()
    X, y, weight = np.arange(20.0)[:, None], np.arange(20) % 2, np.arange(20.0)
    dd.fit_many(Recorder(), [{}], X, y, validation=0.5, sample_weight=weight)
    _, _, X_seen, y_seen, weight_seen, _ = Recorder.seen[0]
    np.testing.assert_array_equal(X_seen[:, 0], weight_seen)
    assert len(X_seen) == 10
    np.testing.assert_array_equal(y_seen, X_seen[:, 0] % 2)


def test_data_are_not_copied():
    Recorder.seen.clear()
    X, y = np.arange(20.0)[:, None], np.arange(20) % 2
    dd.fit_many(Recorder(), {"value": range(5)}, X, y)
    assert all(np.shares_memory(seen[2], X) for seen in Recorder.seen)
    Recorder.seen.clear()
    dd.fit_many(Recorder(), {"value": range(5)}, X, y, validation=0.2)
    assert all(np.shares_memory(seen[2], Recorder.seen[0][2]) for seen in Recorder.seen)


def test_seeds_and_shares_of_numpy_and_sparse_labels(data):
    X, y = data
    for seeds in (np.arange(2), range(2), iter([0, 1]), np.int64(2)):
        fleet = dd.fit_many(network(), [{}], X, y, seeds, validation=np.float32(0.25))
        assert fleet.seeds == [0, 1]
    both = sparse.csr_matrix(np.eye(3, dtype=int)[y])
    assert np.isfinite(dd.fit_many(network(), [{}], sparse.csr_matrix(X), both, validation=0.2).means[0])


def test_threads_share_the_cores():
    Recorder.seen.clear()
    X, y = np.zeros((4, 1)), np.arange(4) % 2
    with dd.backend("numpy"):
        dd.fit_many(Recorder(), {"value": range(40)}, X, y, threads=2)
    assert {seen[1] for seen in Recorder.seen} == {1}
    assert {seen[5] for seen in Recorder.seen} == {"numpy"}
    assert threading.get_ident() not in {seen[0] for seen in Recorder.seen}
    Recorder.seen.clear()
    dd.fit_many(Recorder(), [{}], X, y, threads=4)
    assert Recorder.seen[0][1] == 4  # one model alone has all of them
    assert _team.limit_threads(0) == 0


def test_pipelines_and_samplers(data):
    X, y = data
    sampler = ParameterSampler({"mlpclassifier__alpha": stats.loguniform(1e-5, 1)}, 3, random_state=0)
    pipe = make_pipeline(StandardScaler(), network())
    fleet = dd.fit_many(pipe, sampler, X, y, seeds=2, keep="all")
    assert [member.estimator[-1].random_state for member in fleet.members] == [0, 1] * 3
    assert fleet.members[2].estimator[-1].alpha == fleet.settings[1]["mlpclassifier__alpha"]
    assert pipe[-1].random_state is None
    assert not hasattr(pipe[-1], "coefs_")


@pytest.mark.parametrize(("keep", "kept"), [("best", [2]), ("all", [0, 1, 2, 3]), ("none", [])])
def test_what_is_kept(keep, kept):
    X, y = np.zeros((4, 1)), np.arange(4) % 2
    fleet = dd.fit_many(Recorder(), {"value": [0.1, 0.3, 0.5, 0.2]}, X, y, seeds=3, keep=keep)
    assert sorted({member.setting for member in fleet.members if member.estimator is not None}) == kept
    if kept:
        assert [one.random_state for one in fleet.best_estimators] == [0, 1, 2]


def test_of_equals_the_first_is_kept():
    X, y = np.zeros((4, 1)), np.arange(4) % 2
    for _ in range(3):
        fleet = dd.fit_many(Recorder(), {"value": [0.5] * 8}, X, y, threads=3)
        assert [member.setting for member in fleet.members if member.estimator is not None] == [fleet.best] == [0]


def test_a_failure_ends_it_or_is_noted():
    X, y = np.zeros((4, 1)), np.arange(4) % 2
    settings = [{"value": 0.1}, {"fail": True}, {"value": 0.3}]
    with pytest.raises(RuntimeError, match="no luck"):
        dd.fit_many(Recorder(), settings, X, y)
    fleet = dd.fit_many(Recorder(), settings, X, y, seeds=2, error_score=math.nan)
    assert fleet.best == 2
    assert fleet.ranking.tolist() == [2, 0, 1]
    assert fleet.verdicts()[1] == "failed"
    assert [member.error for member in fleet.members] == [None] * 2 + ["RuntimeError: no luck"] * 2 + [None] * 2


def test_which_training_converged(data):
    X, y = data
    fleet = dd.fit_many(network(), {"tol": [0.0, 0.5], "n_iter_no_change": [2]}, X, y)
    assert [member.converged for member in fleet.members] == [False, True]
    endless = network(max_iter=10**6, tol=0, n_iter_no_change=10**6, time_budget=0.02)
    assert dd.fit_many(endless, [{}], X, y).members[0].converged is None  # the clock ended it
    failed = network(learning_rate_init=1e300, batch_size=10)
    member = dd.fit_many(failed, [{}], X, y, error_score=math.nan).members[0]
    assert member.converged is None
    assert member.error.startswith("TrainingDiverged: update")
    from sklearn.linear_model import LogisticRegression

    member = dd.fit_many(LogisticRegression(), [{}], X, y).members[0]  # whose n_iter_ is an array
    assert isinstance(member.epochs, int)
    assert member.converged is True


# ---- threads that end ----------------------------------------------------------------------------------------------


def forever(**options):
    """Trains for half a minute, unless told to end."""
    return network(max_iter=10**7, tol=0, n_iter_no_change=10**7, time_budget=30.0, **options)


def test_an_error_ends_the_trainings_beside_it(data):
    started = time.monotonic()
    with pytest.raises(ValueError, match="dropout: expected"):
        dd.fit_many(forever(), {"dropout": [0.0, -1.0, 0.1]}, *data, threads=2)
    assert time.monotonic() - started < 20
    assert not side_threads()


def test_an_interrupt_ends_all_trainings(data):
    started = time.monotonic()
    with interrupted(), pytest.raises(KeyboardInterrupt):
        dd.fit_many(forever(), {"alpha": [0.1, 0.2, 0.3, 0.4]}, *data, threads=2)
    assert time.monotonic() - started < 20
    assert not side_threads()


@pytest.mark.parametrize("solver", ["adam", "sgd", "lbfgs"])
def test_a_training_ends_when_it_is_told_to(data, solver):
    ended, context = threading.Event(), contextvars.copy_context()
    ended.set()
    context.run(END.set, ended)
    one = network(solver=solver, max_iter=1000, tol=0, n_iter_no_change=1000)
    context.run(one.fit, *data)
    assert one.n_iter_ <= 1


def test_a_fleet_within_a_fleet_has_its_threads_and_ends_with_it(data):
    """The inner one would train for long; the outer one's second member fails."""
    before = dd.get_num_threads()
    Recorder.seen.clear()
    dd.set_num_threads(4)
    try:
        dd.fit_many(Recorder(inner=functools.partial(dd.fit_many, Recorder(), [{}])), [{}, {}], *data)
    finally:
        dd.set_num_threads(before)
    assert [seen[1] for seen in Recorder.seen] == [2] * 4  # of the outer and the inner ones
    inner, started = functools.partial(dd.fit_many, forever(), [{}]), time.monotonic()
    with pytest.raises(RuntimeError, match="no luck"):
        dd.fit_many(Recorder(), [{"inner": inner}, {"fail": True}], *data, threads=2)
    assert time.monotonic() - started < 20
    assert not side_threads()


def test_fleets_side_by_side_leave_the_warnings_as_they_were(data):
    """The second begins before and ends after the first."""
    X, y = data
    second_began, first_ended = threading.Event(), threading.Event()

    def wait_for_the_second(X, y):
        assert second_began.wait(20)

    def wait_for_the_first(X, y):
        second_began.set()
        assert first_ended.wait(20)

    before = warnings.filters[:]
    second = threading.Thread(target=lambda: dd.fit_many(Recorder(inner=wait_for_the_first), [{}], X, y))

    def first(X, y):
        second.start()
        wait_for_the_second(X, y)

    dd.fit_many(Recorder(inner=first), [{}], X, y)
    first_ended.set()
    second.join()
    assert warnings.filters == before


# ---- what scores tell ----------------------------------------------------------------------------------------------


def result(scores):
    scores = np.asarray(scores, dtype=float)
    members = [Member(i, j, 0, score=scores[i, j]) for i in range(len(scores)) for j in range(scores.shape[1])]
    settings = [{"alpha": 10.0**-i} for i in range(len(scores))]
    return FleetResult(settings, list(range(scores.shape[1])), "validation data", members)


def test_mean_and_interval_are_students():
    scores = np.random.default_rng(0).normal(0.5, 0.1, (3, 5))
    found = result(scores)
    for i in range(3):
        expected = stats.t.interval(0.95, 4, scores[i].mean(), stats.sem(scores[i]))
        np.testing.assert_allclose(found.intervals[i], expected)
    np.testing.assert_allclose(found.means, scores.mean(axis=1))
    assert np.isnan(result([[0.5], [0.6]]).intervals).all()


def test_no_interval_reaches_where_no_score_can_be(data):
    """Of an accuracy 0 and 1, of R^2 1; not where scores show that they are something else."""
    X, y = data
    accuracies = [[0.9, 0.99, 0.999], [0.01, 0.1, 0.0]]
    found = result(accuracies)
    low, high = found.intervals.T
    assert low[1] < 0 < 1 < high[0]
    found.bounds = (0.0, 1.0)
    np.testing.assert_array_equal(found.intervals, [[low[0], 1.0], [0.0, high[1]]])
    ends = [lines.get_segments()[0][:, 1] for lines in found.plot().axes[0].collections]
    np.testing.assert_allclose(ends, [[low[0], 1.0], [0.0, high[1]]])
    assert [(row["low"], row["high"]) for row in found.rows()] == [(low[0], 1.0), (0.0, high[1])]
    found.members[0].score = -1.0  # an error_score
    assert found.intervals[0, 0] < -1
    for estimator, scoring, bounds in (
        (Recorder(), None, (0.0, 1.0)),
        (make_pipeline(StandardScaler(), Recorder()), None, (0.0, 1.0)),
        (Recorder(), "accuracy", (0.0, 1.0)),
        (Recorder(), "neg_log_loss", (-math.inf, math.inf)),
        (Recorder(), lambda estimator, X, y: 3.0, (-math.inf, math.inf)),
        (LinearRegression(), None, (-math.inf, 1.0)),
        (LinearRegression(), "r2", (-math.inf, 1.0)),
        (LinearRegression(), "neg_mean_squared_error", (-math.inf, math.inf)),
    ):
        assert bounds_of(estimator, scoring) == bounds
    assert dd.fit_many(LinearRegression(), [{}], X, y).bounds == (-math.inf, 1.0)
    search = dd.successive_halving(network(), [{}], X, y, max_iter=2)
    assert search.best_round.bounds == (0.0, 1.0)


def test_verdicts_are_those_of_a_paired_test():
    """Seeds that all settings share move scores up and down together: pairs see through that."""
    rng = np.random.default_rng(2)
    common = rng.normal(0, 0.2, 6)
    scores = 0.5 + common + np.array([[0.0], [-0.001], [-0.03]]) + rng.normal(0, 0.005, (3, 6))
    found = result(scores)
    p = [stats.ttest_rel(scores[found.best], scores[i]).pvalue for i in range(3) if i != found.best]
    assert max(p) > 0.05 > 2 * min(p)
    assert found.verdicts() == ["best", "not distinguishable from the best", "worse than the best"]
    assert stats.ttest_ind(scores[0], scores[2]).pvalue > 0.3  # unpaired, it could not be seen


def test_many_comparisons_are_corrected():
    """Twenty settings of pure chance: the smallest of the probabilities alone would be called a difference."""
    scores = np.random.default_rng(8).normal(0.5, 0.1, (20, 4))
    found = result(scores)
    p = [stats.ttest_rel(scores[found.best], scores[i]).pvalue for i in range(20) if i != found.best]
    assert min(p) < 0.05
    assert "worse than the best" not in found.verdicts()


def test_what_failed_is_not_compared():
    """Nor does it stand in the way of the others' comparison, wherever it is."""
    good, poor, failed = [0.9, 0.91, 0.92], [0.3, 0.31, 0.325], [math.nan] * 3
    words = {0: "best", 1: "worse than the best", 2: "failed"}
    for order in itertools.permutations(range(3)):
        found = result([[good, poor, failed][i] for i in order])
        assert found.verdicts() == [words[i] for i in order]
    assert result([failed, failed]).verdicts() == ["failed", "failed"]


def test_holms_rule_grows_milder_from_one_comparison_to_the_next():
    def below(p):  # the best by so much that the test's probability is p
        return 0.9 - (1 + np.array([-1, 0, 1]) * math.sqrt(3) / stats.t.ppf(1 - p / 2, 2)) / 10

    best, worse, unclear = [0.9] * 3, "worse than the best", "not distinguishable from the best"
    assert result([best, below(0.04)]).verdicts() == ["best", worse]
    assert result([best, below(0.06)]).verdicts() == ["best", unclear]
    assert result([best, below(0.04), below(0.02)]).verdicts() == ["best", worse, worse]
    few = "too few seeds to tell"  # 3.6 standard deviations would be needed, where 2.5 are for one comparison
    assert result([best, below(0.04), below(0.03)]).verdicts() == ["best", few, few]


def test_too_few_seeds_for_so_many_settings():
    """Student's t of Holm's first step, over the root of the seeds: how many deviations of the pairs' differences a
    mean difference must have. Where more than three are needed, nobody has found out that two settings are alike."""
    for seeds, settings in itertools.product(range(2, 9), (2, 3, 6, 9, 20, 36, 64)):
        needed = stats.t.ppf(1 - 0.025 / (settings - 1), seeds - 1) / math.sqrt(seeds)
        found = result([np.roll(np.linspace(0.5, 0.6, seeds), i) for i in range(settings)])
        words = {"best", "too few seeds to tell" if needed > 3 else "not distinguishable from the best"}
        assert set(found.verdicts()) == words, (seeds, settings)


def test_what_is_told_leaves_fewer_comparisons():
    """Three seeds cannot tell of three settings, but two of them are told, and then they can of the last."""
    rng = np.random.default_rng(1)
    close = 0.9 + 0.01 * rng.normal(size=(2, 3))
    assert "too few seeds to tell" in result([*close, *close + 0.001 * rng.normal(size=(2, 3))]).verdicts()
    clear = [close[0] - 0.3, close[0] - 0.4 + 1e-4 * rng.normal(size=3)]
    words = result([*close, *clear]).verdicts()
    assert sorted(words) == ["best", "not distinguishable from the best", *["worse than the best"] * 2]


def test_two_seeds_never_tell():
    """Accuracies on 100 rows: by chance both differ by as many rows, t is infinite, and the test would tell."""
    assert result([[0.95, 0.96], [0.92, 0.93]]).verdicts() == ["best", "too few seeds to tell"]
    assert result([[0.95, 0.96, 0.94], [0.92, 0.93, 0.91]]).verdicts() == ["best", "worse than the best"]


def test_equal_but_for_rounding():
    """Folds in another order: their mean is another number."""
    a, b = [0.1, 0.2, 0.3], [0.3, 0.2, 0.1]
    members = [Member(i, j, k, score=s[k]) for i, s in enumerate((a, b)) for j in range(3) for k in range(3)]
    found = FleetResult([{"alpha": 1}, {"alpha": 2}], [0, 1, 2], "cross-validation", members)
    assert found.scores[0, 0] != found.scores[1, 0]
    assert "worse than the best" not in found.verdicts()


def test_the_best_is_kept_though_rounding_decides():
    """Sums in another order than the means have would keep another setting than the best."""
    rng = np.random.default_rng(0)
    scores = rng.random(12)
    for _ in range(50):
        orders = [rng.permutation(scores) for _ in range(4)]
        members = [
            Member(i, j // 4, j % 4, estimator=i, score=s) for i, o in enumerate(orders) for j, s in enumerate(o)
        ]
        found = FleetResult([{"alpha": i} for i in range(4)], [0, 1, 2], "cross-validation", members)
        keeper = _Keeper(found, "best", 12)
        for member in members:
            keeper.done(member)
        assert found.best_estimators == [found.best] * 12


def test_equal_and_constant_scores():
    found = result([[0.5, 0.6, 0.4], [0.5, 0.6, 0.4], [0.3, 0.4, 0.2]])
    assert found.verdicts() == ["best", "not distinguishable from the best", "worse than the best"]
    assert result([[0.5], [0.4]]).verdicts() == ["best", "too few seeds to tell"]


def test_table_and_file(tmp_path):
    found = result([[0.5, 0.52], [0.7, 0.72]])
    lines = found.table().splitlines()
    assert lines[0] == "     mean score on validation data, 95 % interval"
    assert re.fullmatch(r"  1  0\.7100 \[0\.5829, 0\.8371\]  alpha=0\.1  best", lines[1])
    assert len(found.table(most=1).splitlines()) == 3
    found.to_csv(tmp_path / "fleet.csv")
    text = (tmp_path / "fleet.csv").read_text().splitlines()
    assert text[0] == "alpha,mean,low,high,seeds,converged,seconds,verdict"
    assert text[1].startswith("0.1,0.71,")


def test_picture():
    found = result([[0.5, 0.52], [math.nan, 0.9], [0.7, 0.72]])
    axes = found.plot().axes[0]
    assert [bar.get_height() for bar in axes.patches] == pytest.approx([0.71, 0.51])
    assert [text.get_text() for text in axes.get_xticklabels()] == ["alpha=0.01", "alpha=1"]
    assert [bar.get_hatch() for bar in axes.patches] == ["//", None]
    assert len(found.plot(most=1).axes[0].patches) == 1


# ---- searches ------------------------------------------------------------------------------------------------------


def test_halving_goes_on_with_the_survivors(data):
    """What is left has trained as long as fit alone, to the bit."""
    X, y = data
    settings = {"alpha": [1e-5, 1e-3, 0.1], "learning_rate_init": [1e-4, 1e-3, 1e-2]}
    search = dd.successive_halving(network(tol=0), settings, X, y, seeds=2, max_iter=9, validation=0.2)
    assert [len(one.settings) for one in search.rounds] == [9, 3, 1]
    assert search.notes == ["9 settings after 1 epoch", "3 settings after 3 epochs", "1 setting after 9 epochs"]
    best = [search.rounds[0].settings[i] for i in sorted(search.rounds[0].ranking[:3])]
    assert search.rounds[1].settings == best
    train, _, labels, _ = train_test_split(X, y, test_size=0.2, stratify=y, random_state=0)
    for seed, one in enumerate(search.best_estimators):
        alone = network(tol=0, **search.best_setting, random_state=seed).set_params(max_iter=9)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            alone.fit(train, labels)
        np.testing.assert_array_equal(weights(one), weights(alone))
        assert len(one.loss_curve_) == 9
    assert [m.estimator is None for m in search.rounds[0].members] == [True] * 18


def test_halving_stops_what_has_converged_and_counts_its_epochs(data):
    X, y = data
    y = np.random.default_rng(0).permutation(y)  # nothing to learn: scores go up and down
    base = network(early_stopping=True, n_iter_no_change=4, dropout=0.2, batch_norm=True)
    search = dd.successive_halving(base, {"alpha": np.logspace(-5, -1, 9)}, X, y, seeds=3, max_iter=30, validation=0.2)
    train, _, labels, _ = train_test_split(X, y, test_size=0.2, stratify=y, random_state=0)
    members = search.rounds[-1].members
    assert all(member.converged for member in members)
    assert len({member.epochs for member in members}) > 1
    for seed, (one, member) in enumerate(zip(search.best_estimators, members, strict=True)):
        alone = clone(base).set_params(**search.best_setting, random_state=seed, max_iter=30).fit(train, labels)
        np.testing.assert_array_equal(weights(one), weights(alone))
        assert member.epochs == alone.n_iter_
        assert one.get_params() == alone.get_params()


def test_halving_goes_on_where_time_was_up(data):
    slow = network(tol=0, n_iter_no_change=10**6, time_budget=0.01)
    X, y = data
    search = dd.successive_halving(slow, {"alpha": [0.1, 0.2, 0.3]}, X, y, max_iter=3 * 10**6, validation=0.2)
    first, last = (one.of(one.best)[0] for one in search.rounds)
    assert last.epochs > first.epochs
    assert last.converged is None


def test_halving_without_what_fails(data):
    X, y = data
    settings = [{"learning_rate_init": rate} for rate in (1e300, 1e-3, 1e-2)]
    call = {"estimator": network(batch_size=10), "parameter_settings": settings, "X": X, "y": y, "max_iter": 6}
    with pytest.raises(dd.TrainingDiverged):
        dd.successive_halving(**call)
    search = dd.successive_halving(**call, factor=2, first_iter=3, error_score=math.nan)
    assert search.rounds[0].verdicts()[0] == "failed"
    assert search.best_setting in settings[1:]
    call["parameter_settings"] = settings[:1] * 2
    search = dd.successive_halving(**call, factor=2, first_iter=3, error_score=math.nan)
    assert [one.members[0].error[:16] for one in search.rounds] == ["TrainingDiverged"] * 2
    assert math.isnan(search.best_score)


@pytest.mark.parametrize("how", ["ends by itself", "fails"])
def test_halving_fits_once_what_has_ended(how):
    class Brief(Recorder):
        def __init__(self, value=0.0, max_iter=1, warm_start=False):
            super().__init__(value)
            self.max_iter, self.warm_start = max_iter, warm_start

        def fit(self, X, y):
            super().fit(X, y)
            self.n_iter_ = self.max_iter - 1
            if how == "fails":
                raise RuntimeError("no luck")
            return self

    Recorder.seen.clear()
    X, y = np.zeros((20, 1)), np.arange(20) % 2
    options = {"max_iter": 9, "first_iter": 3, "error_score": 0.25}
    search = dd.successive_halving(Brief(), {"value": [0.25] * 3}, X, y, **options)
    assert [len(one.members) for one in search.rounds] == [3, 1]
    assert len(Recorder.seen) == 3
    assert search.best_score == 0.25


def test_coarse_to_fine_leaves_out_what_fails():
    class Cliff(Recorder):
        def score(self, X, y):
            if self.value > limit:
                raise RuntimeError("too far")
            return self.value

    X, y, limit = np.zeros((20, 1)), np.arange(20) % 2, 0.01
    options = {"settings": 5, "best": 5, "rounds": 2, "error_score": math.nan, "seeds": iter([3, 4])}
    search = dd.coarse_to_fine(Cliff(), {"value": (1e-4, 1.0)}, X, y, **options)
    assert max(setting["value"] for setting in search.rounds[1].settings) < 0.1
    assert search.best_round.seeds == [3, 4]
    limit = 0
    search = dd.coarse_to_fine(Cliff(), {"value": (1e-4, 1.0)}, X, y, **{**options, "seeds": None})
    assert math.isnan(search.best_score)
    assert search.notes == ["value in [0.0001, 1]"] * 2

    class Late(Recorder):
        def score(self, X, y):
            if len(self.seen) <= 5:  # the first round
                raise RuntimeError("not yet")
            return self.value

    Recorder.seen.clear()
    search = dd.coarse_to_fine(Late(), {"value": (1e-4, 1.0)}, X, y, **{**options, "seeds": None})
    assert search.best_round is search.rounds[1]


def test_rungs():
    from dd2424fast.search import _rungs

    assert _rungs(27, 3, 81, None) == [3, 9, 27, 81]
    assert _rungs(27, 3, 100, None) == [3, 9, 27, 81, 100]
    assert _rungs(1, 3, 10, None) == [10]
    assert _rungs(100, 2, 4, None) == [1, 2, 4]
    assert _rungs(4, 2, 8, 3) == [3, 6, 8]


def test_coarse_to_fine_narrows_around_the_best():
    class Bowl(Recorder):
        def score(self, X, y):
            return -abs(math.log10(self.value) + 2.5)

    X, y = np.zeros((20, 1)), np.arange(20) % 2
    search = dd.coarse_to_fine(Bowl(), {"value": (1e-6, 1.0)}, X, y, settings=6, rounds=3, best=2)
    tried = [np.log10(sorted(s["value"] for s in one.settings)) for one in search.rounds]
    np.testing.assert_array_equal(np.floor(tried[0] + 6), np.arange(6))  # one in each of six equal parts
    spans = [values.max() - values.min() for values in tried]
    assert spans[0] > 2 * spans[1] > 4 * spans[2]
    assert math.log10(search.best_setting["value"]) == pytest.approx(-2.5, abs=0.1)
    assert search.best_score == max(one.means.max() for one in search.rounds)
    again = dd.coarse_to_fine(Bowl(), {"value": (1e-6, 1.0)}, X, y, settings=6, rounds=3, best=2)
    assert [one.settings for one in again.rounds] == [one.settings for one in search.rounds]


def test_coarse_to_fine_of_two_settings():
    """The default of `best` follows; what is given is checked."""
    X, y = np.zeros((20, 1)), np.arange(20) % 2
    search = dd.coarse_to_fine(Recorder(), {"value": (0.1, 0.9)}, X, y, settings=2, rounds=2)
    assert [len(one.settings) for one in search.rounds] == [2, 2]
    with pytest.raises(ValueError, match="best: expected an integer from 1 to 2, got 3"):
        dd.coarse_to_fine(Recorder(), {"value": (0.1, 0.9)}, X, y, settings=2, best=3)


# ---- what does not fit ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"parameter_settings": 3}, "parameter_settings: expected dicts, or a dict of sequences, got int"),
        ({"parameter_settings": []}, "parameter_settings: expected at least one"),
        ({"parameter_settings": [3]}, r"parameter_settings\[0\]: expected a dict, got int"),
        ({"parameter_settings": {"alpha": 3}}, "parameter_settings: expected a sequence of values for alpha, got 3"),
        ({"parameter_settings": [{"alfa": 3}]}, "parameter_settings: .*alfa"),
        ({"seeds": 0}, "seeds: expected"),
        ({"seeds": [1, 1]}, "seeds: expected different seeds"),
        ({"seeds": ["a"]}, r"seeds\[0\]: expected"),
        ({"estimator": 3}, "estimator: expected a scikit-learn estimator, got int"),
        ({"estimator": LinearRegression(), "seeds": 2}, "seeds: expected None, since LinearRegression has no random_s"),
        ({"keep": "some"}, "keep: expected 'best', 'all' or 'none', got 'some'"),
        ({"threads": 0}, "threads: expected"),
        ({"validation": 1.0}, "validation: expected"),
        ({"validation": 1}, "validation: expected an integer of at least 2, got 1"),
        ({"validation": True}, "validation: expected an integer of at least 2, got True"),
        ({"validation": "half"}, "validation: Expected `cv` as an integer"),
        ({"error_score": "nan"}, "error_score: expected 'raise' or a number, got 'nan'"),
        ({"error_score": True}, "error_score: expected 'raise' or a number, got True"),
        ({"seeds": np.array([0.5, 1])}, r"seeds\[0\]: expected"),
    ],
)
def test_what_is_wrong_is_named(data, changed, message):
    X, y = data
    call = {"estimator": Recorder(), "parameter_settings": [{}], "X": X, "y": y, **changed}
    with pytest.raises((ValueError, TypeError), match=message):
        dd.fit_many(**call)


def test_searches_name_what_is_wrong(data):
    X, y = data
    with pytest.raises(TypeError, match="estimator: expected one with the parameters warm_start and max_iter"):
        dd.successive_halving(RandomForestClassifier(), [{}], X, y, max_iter=3)
    with pytest.raises(TypeError, match=r"Pipeline lacks warm_start and max_iter: transform X before, .* or use fit_m"):
        dd.successive_halving(make_pipeline(StandardScaler(), network()), [{}], X, y, max_iter=3)
    with pytest.raises(
        ValueError, match=r"parameter_settings\[1\]: expected no max_iter, which the search itself sets"
    ):
        dd.successive_halving(network(), [{}, {"max_iter": 3}], X, y, max_iter=3)
    with pytest.raises(ValueError, match="error_score: expected"):
        dd.successive_halving(network(), [{}], X, y, max_iter=3, error_score=None)
    with pytest.raises(ValueError, match="factor: expected"):
        dd.successive_halving(network(), [{}], X, y, max_iter=3, factor=1)
    for ranges, message in (
        ({"alpha": (0, 1)}, r"ranges\['alpha'\]: expected"),
        ({"alpha": (1, 1)}, "ranges: expected low < high for alpha"),
        ({"alpha": 3}, r"ranges: expected \(low, high\) for alpha, got 3"),
    ):
        with pytest.raises(ValueError, match=message):
            dd.coarse_to_fine(network(), ranges, X, y)
    with pytest.raises(TypeError, match="ranges: expected a dict"):
        dd.coarse_to_fine(network(), {}, X, y)
