"""Pictures of trainings and classifiers: what is drawn, number by number."""

import numpy as np
import pytest
from scipy import stats
from sklearn import metrics

import dd2424fast as dd
from dd2424fast import History, plots

pytestmark = pytest.mark.usefixtures("one_thread")

PNG = b"\x89PNG"


def history(losses, accuracies=None, start=1, validation=True):
    columns = {"epoch": list(range(start, start + len(losses))), "loss": losses}
    if validation:
        columns["val_loss"] = [loss + 1 for loss in losses]
    if accuracies is not None:
        columns |= {"accuracy": accuracies, "val_accuracy": [a / 2 for a in accuracies]}
    return History(columns)


def lines_of(axes):
    return {line.get_label(): np.stack(line.get_data()) for line in axes.lines}


# ---- learning curves -------------------------------------------------------------------------------------------------


def test_the_curves_of_one_run(tmp_path):
    one = history([3.0, 2.0, 1.5], [0.2, 0.4, 0.5])
    for figure in (plots.learning_curves(one, tmp_path / "c.png"), one.plot(tmp_path / "h.png")):
        left, right = figure.axes
        assert (left.get_ylabel(), right.get_ylabel()) == ("loss (nats)", "accuracy (%)")
        assert left.get_xlabel() == right.get_xlabel() == "epoch"
        np.testing.assert_array_equal(lines_of(left)["training"], [[1, 2, 3], [3, 2, 1.5]])
        np.testing.assert_array_equal(lines_of(left)["validation"], [[1, 2, 3], [4, 3, 2.5]])
        np.testing.assert_allclose(lines_of(right)["training"][1], [20, 40, 50])
        np.testing.assert_allclose(lines_of(right)["validation"][1], [10, 20, 25])
        assert [line.get_linestyle() for line in left.lines] == ["--", "-"]
        assert left.lines[0].get_color() != left.lines[1].get_color()
    for name in ("c.png", "h.png"):
        assert (tmp_path / name).read_bytes()[:4] == PNG


def test_a_regression_has_a_loss_alone():
    (axes,) = plots.learning_curves(history([3.0, 2.0], validation=False)).axes
    assert axes.get_ylabel() == "loss"  # in squared units, or another
    assert list(lines_of(axes)) == ["training"]


def test_several_runs_and_seeds():
    seeds = [history([3.0, 2.0, 1.0]), history([5.0, 2.5, 2.0]), history([4.0, 1.5, 0.0, 9.0])]
    figure = plots.learning_curves({"SGD": history([1.0, 2.0]), "Adam": seeds})
    (axes,) = figure.axes
    lines = lines_of(axes)
    assert list(lines) == ["SGD, training", "SGD, validation", "Adam, training", "Adam, validation"]
    np.testing.assert_allclose(lines["Adam, training"], [[1, 2, 3], [4, 2, 1]])  # the fourth epoch is not of all
    np.testing.assert_allclose(lines["Adam, validation"][1], [5, 3, 2])
    colours = [line.get_color() for line in axes.lines]
    assert colours[0] == colours[1] != colours[2] == colours[3]
    bands = axes.collections  # none for a single run
    assert len(bands) == 2
    corners = bands[0].get_paths()[0].vertices
    for epoch, mean, values in ((1, 4, [3, 5, 4]), (2, 2, [2, 2.5, 1.5]), (3, 1, [1, 2, 0])):
        at = corners[corners[:, 0] == epoch, 1]
        assert (at.min(), at.max()) == pytest.approx((mean - np.std(values, ddof=1), mean + np.std(values, ddof=1)))


def test_a_cut_epoch_is_drawn_where_it_ends():
    cut = History({"epoch": [1, 1.5], "loss": [2.0, 1.0], "val_loss": [None, 1.0]})
    (axes,) = plots.learning_curves(cut).axes
    np.testing.assert_array_equal(lines_of(axes)["training"], [[1, 1.5], [2, 1]])
    np.testing.assert_array_equal(lines_of(axes)["validation"][1], [np.nan, 1])


def test_colours_are_of_the_palette_and_dark_enough_on_white():
    from matplotlib.colors import to_rgb

    luminances = []
    for i in range(7):
        r, g, b = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in to_rgb(plots._colour(i)))
        luminances.append(0.2126 * r + 0.7152 * g + 0.0722 * b)
    assert max(luminances) < 0.5
    assert abs(luminances[0] - luminances[1]) > 0.05  # the two that stand side by side


@pytest.mark.parametrize(
    ("runs", "error", "message"),
    [
        ({}, ValueError, "runs: expected at least one, got none"),
        ([1.0, 2.0], TypeError, "runs: expected a History or a sequence of them"),
        ({"a": 3}, TypeError, r"runs\['a'\]: expected a History"),
        ([], ValueError, "runs: expected histories of at least one epoch"),
        ({"a": History()}, ValueError, r"runs\['a'\]: expected histories of at least one epoch"),
        (History({"loss": [1.0]}), ValueError, "the columns 'epoch' and 'loss'"),
        (
            [history([1.0]), history([1.0], start=2)],
            ValueError,
            "runs: expected histories that have an epoch in common",
        ),
    ],
)
def test_wrong_runs(runs, error, message):
    with pytest.raises(error, match=message):
        plots.learning_curves(runs)


# ---- templates -------------------------------------------------------------------------------------------------------


def pictures_of(figure):
    return [np.asarray(axes.images[0].get_array()) for axes in figure.axes]


def test_templates_are_the_columns(tmp_path):
    model = dd.models.MLP(60, (), 4, seed=1)
    names = ["cat", "dog", "ship", "frog"]
    figure = plots.templates(model, (4, 5, 3), names, tmp_path / "t.png")
    assert [axes.get_title() for axes in figure.axes] == names
    assert (tmp_path / "t.png").read_bytes()[:4] == PNG
    W = model[0].weight.astype("float64")
    for picture, column in zip(pictures_of(figure), W.T, strict=True):
        assert picture.shape == (4, 5, 3)
        np.testing.assert_allclose(picture.ravel(), (column - column.min()) / np.ptp(column), rtol=1e-12)
    for weights in (W, W.T, W.tolist()):  # ours, and PyTorch's and the course's
        for a, b in zip(pictures_of(plots.templates(weights, (4, 5, 3))), pictures_of(figure), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-12)


def test_templates_of_one_channel_and_many_units():
    W = np.random.default_rng(0).standard_normal((12, 23))
    figure = plots.templates(W, (3, 4, 1))
    assert len(figure.axes) == 23  # of 3 rows of 10
    np.testing.assert_allclose(
        pictures_of(figure)[22], ((W[:, 22] - W[:, 22].min()) / np.ptp(W[:, 22])).reshape(3, 4), rtol=1e-12
    )
    assert not pictures_of(plots.templates(np.ones((12, 2)), (3, 4, 1)))[0].any()


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((np.ones((61, 4)), (4, 5, 3)), ValueError, r"model, shape: expected weights of shape .* got \(61, 4\)"),
        ((np.ones(60), (4, 5, 3)), ValueError, r"got \(60,\)"),
        ((dd.nn.Sequential(dd.nn.Conv2d(3, 4, 3)), (3, 3, 3)),
         ValueError, "model, shape"),
        ((np.ones((60, 4)), (4, 15)), ValueError, r"shape: expected \(height, width, channels\), got \(4, 15\)"),
        ((np.ones((60, 4)), (6, 5, 2)), ValueError, "shape: expected one channel or three, got 2"),
        ((np.ones((60, 4)), (4, 5, 3), ["a"]), ValueError, "names: expected 4, got 1"),
        ((np.ones((60, 4)), (4, 5, 3), "abcd"), TypeError, "names: expected a sequence of str"),
        (([["a"]], (4, 5, 3)), TypeError, "model: expected numbers"),
    ],
)  # fmt: skip
def test_wrong_templates(arguments, error, message):
    with pytest.raises(error, match=message):
        plots.templates(*arguments)


# ---- the true class's probability ------------------------------------------------------------------------------------


def heights_of(axes):
    return [np.array([bar.get_height() for bar in container]) for container in axes.containers]


def test_true_class_probability(tmp_path):
    rng = np.random.default_rng(0)
    p = rng.dirichlet(np.ones(4), 200)
    y = rng.integers(0, 4, 200)
    figure = plots.true_class_probability(p, y, tmp_path / "p.png", bins=8)
    (axes,) = figure.axes
    right = p.argmax(axis=1) == y
    true = p[np.arange(200), y]
    for heights, rows in zip(heights_of(axes), (right, ~right), strict=True):
        expected = [((true[rows] >= i / 8) & (true[rows] < (i + 1) / 8)).sum() for i in range(8)]
        np.testing.assert_array_equal(heights, expected)
        assert heights.sum() == rows.sum()
    for container in axes.containers:  # each bar within its bin
        for i, bar in enumerate(container):
            assert i / 8 < bar.get_x() < bar.get_x() + bar.get_width() < (i + 1) / 8
    assert [text.get_text() for text in axes.get_legend().get_texts()] == [
        f"right: {right.sum()}",
        f"wrong: {(~right).sum()}",
    ]
    assert axes.get_ylabel() == "images"
    assert (tmp_path / "p.png").read_bytes()[:4] == PNG


def test_softmax_beside_sigmoids():
    y = np.array([0, 1, 1])
    softmax, sigmoid = np.array([[1.0, 0.0], [0.4, 0.6], [0.7, 0.3]]), np.array([[0.4, 0.3], [0.2, 0.1], [0.0, 1.0]])
    left, right = plots.true_class_probability({"softmax": softmax, "sigmoid": sigmoid}, y, bins=2).axes
    assert (left.get_title(), right.get_title()) == ("softmax", "sigmoid")
    np.testing.assert_array_equal(heights_of(left), [[0, 2], [1, 0]])
    np.testing.assert_array_equal(heights_of(right), [[1, 1], [1, 0]])
    assert left.get_ylim() == right.get_ylim()
    assert left.get_ylim()[1] >= 2


@pytest.mark.parametrize(
    ("p", "y", "error", "message"),
    [
        ([0.5, 0.5], [0, 1], ValueError, r"p: expected shape \(images, classes\), got \(2,\)"),
        ([[1.5, 0.5]], [0], ValueError, r"p: expected probabilities from 0 to 1, got 1.5 at \(0, 0\)"),
        ({"a": [[np.nan, 0.5]]}, [0], ValueError, r"p\['a'\]: expected probabilities from 0 to 1, got nan"),
        ([[0.5, 0.5]], [2], ValueError, "y: expected labels from 0 to 1, got 2 at 0"),
        ([[0.5, 0.5]], [0, 1], ValueError, r"y: expected shape \(1,\), got \(2,\)"),
        ([[0.5, 0.5]], [0.0], TypeError, "y: expected integer labels"),
        ({}, [0], ValueError, "p: expected at least one"),
    ],
)
def test_wrong_probabilities(p, y, error, message):
    with pytest.raises(error, match=message):
        plots.true_class_probability(p, y)


# ---- the confusion matrix --------------------------------------------------------------------------------------------


def test_confusion_matrix(tmp_path):
    rng = np.random.default_rng(0)
    y, predicted = rng.integers(0, 4, 300), rng.integers(0, 4, 300)
    names = ["cat", "dog", "ship", "frog"]
    figure = plots.confusion_matrix(y, predicted, tmp_path / "c.png", names=names)
    left, right = (axes for axes in figure.axes if axes.get_title())
    counts = metrics.confusion_matrix(y, predicted)
    assert not np.array_equal(counts, counts.T)
    np.testing.assert_array_equal(np.asarray(left.images[0].get_array()), counts)
    percent = 100 * metrics.confusion_matrix(y, predicted, normalize="true")
    np.testing.assert_allclose(np.asarray(right.images[0].get_array()), percent, rtol=1e-12)
    assert [text.get_text() for text in left.texts] == [str(n) for n in counts.ravel()]
    assert [text.get_text() for text in right.texts] == [f"{n:.1f}" for n in percent.ravel()]
    for axes in (left, right):
        assert (axes.get_xlabel(), axes.get_ylabel()) == ("found class", "true class")
        assert [label.get_text() for label in axes.get_xticklabels()] == names
        assert [label.get_text() for label in axes.get_yticklabels()] == names
    dark = [text for text in left.texts if text.get_color() == "w"]  # white on what is dark
    assert len(dark) == (counts > counts.max() / 2).sum()
    assert (tmp_path / "c.png").read_bytes()[:4] == PNG


def test_confusion_of_outputs_and_of_a_class_without_images():
    outputs = np.array([[0.1, 3.0, 0.2], [2.0, 1.0, 0.0], [0.0, 5.0, 1.0]])
    left, right, *_ = plots.confusion_matrix([1, 1, 0], outputs).axes
    np.testing.assert_array_equal(np.asarray(left.images[0].get_array()), [[0, 1, 0], [1, 1, 0], [0, 0, 0]])
    shown = right.images[0].get_array()
    assert np.ma.getmaskarray(shown)[2].all()
    np.testing.assert_array_equal(shown[:2], [[0, 100, 0], [50, 50, 0]])
    assert len(right.texts) == 6


@pytest.mark.parametrize(
    ("y", "predicted", "more", "error", "message"),
    [
        ([0, 1], [0], {}, ValueError, r"predicted: expected shape \(2,\), got \(1,\)"),
        ([0, -1], [0, 1], {}, ValueError, "y: expected labels from 0 to 999, got -1 at 1"),
        ([0, 2], [[0.5, 0.1], [0.5, 0.1]], {}, ValueError, "y: expected labels from 0 to 1, got 2 at 1"),
        ([0, 1], [0.5, 1.0], {}, TypeError, "predicted: expected integer labels"),
        ([0, 2], [0, 1], {"names": ["a", "b"]}, ValueError, "names: expected 3, got 2"),
        ([0, 2], [0, 1], {"names": 3}, TypeError, "names: expected a sequence of str"),
        ([], [], {}, TypeError, "expected integer labels"),
    ],
)
def test_wrong_classes(y, predicted, more, error, message):
    with pytest.raises(error, match=message):
        plots.confusion_matrix(y, predicted, **more)


# ---- the results of a search -----------------------------------------------------------------------------------------


def bars_of(axes):
    return [bar for bar in axes.patches]


def test_search_results(tmp_path):
    results = [("lr 0.1", [0.50, 0.52, 0.57]), ("lr 0.01", np.array([0.60, 0.61, 0.59])), ("lr 1", 0.3)]
    (axes,) = plots.search(results, tmp_path / "s.png").axes
    bars = bars_of(axes)
    np.testing.assert_allclose([bar.get_height() for bar in bars], [53, 60, 30], rtol=1e-12)
    assert [label.get_text() for label in axes.get_xticklabels()] == ["lr 0.1", "lr 0.01", "lr 1"]
    assert axes.get_ylabel() == "validation accuracy (%)"
    colours = [bar.get_facecolor() for bar in bars]
    assert colours[0] == colours[2] != colours[1]
    assert [bool(bar.get_hatch()) for bar in bars] == [False, True, False]
    intervals = [lines.get_segments()[0][:, 1] for lines in axes.collections]
    assert len(intervals) == 2  # one seed tells no interval
    for found, (_, scores) in zip(intervals, results, strict=False):
        expected = stats.t.interval(0.95, 2, 100 * np.mean(scores), 100 * stats.sem(scores))
        np.testing.assert_allclose(found, expected, rtol=1e-9)
    assert [text.get_text() for text in axes.texts] == ["53", "60", "30"]
    assert (tmp_path / "s.png").read_bytes()[:4] == PNG


def test_no_interval_beyond_an_accuracy():
    results = [("a", [0.9, 0.99, 0.999]), ("b", [0.01, 0.1, 0.0])]
    for more, cut in (({}, True), ({"bounds": (0, 1), "quantity": "score"}, True), ({"quantity": "score"}, False)):
        (axes,) = plots.search(results, **more).axes
        (_, top), (bottom, _) = (lines.get_segments()[0][:, 1] for lines in axes.collections)
        assert (top == (1 if "quantity" in more else 100)) == cut
        assert (bottom == 0) == cut
    for bounds, error in ((3, TypeError), ((1, 0), ValueError), (("a", 1), TypeError)):
        with pytest.raises(error, match="bounds"):
            plots.search(results, bounds=bounds)


def test_of_losses_the_lowest_is_best():
    (axes,) = plots.search([("a", [1.5, 1.7]), ("b", [0.9, 1.0])], quantity="val_loss", confidence=0.5).axes
    assert [bool(bar.get_hatch()) for bar in bars_of(axes)] == [False, True]
    assert axes.get_ylabel() == "validation loss (nats)"
    lines = axes.collections[-1]
    np.testing.assert_allclose(
        lines.get_segments()[0][:, 1], stats.t.interval(0.5, 1, 0.95, stats.sem([0.9, 1.0])), rtol=1e-9
    )


@pytest.mark.parametrize(
    ("results", "more", "error", "message"),
    [
        ([], {}, ValueError, "results: expected at least one, got none"),
        ("ab", {}, TypeError, r"results: expected a sequence of \(label, scores\), got str"),
        ([("a", [1.0]), 3], {}, TypeError, r"results\[1\]: expected \(label, scores\), got 3"),
        ([("a", [1.0, np.nan])], {}, ValueError, r"results\[0\]: expected finite scores"),
        ([("a", [])], {}, ValueError, r"results\[0\]: expected finite scores"),
        ([("a", ["x"])], {}, TypeError, r"results\[0\]: expected numbers"),
        ([("a", [1.0])], {"confidence": 1.0}, ValueError, "confidence: expected a number"),
        ([("a", [1.0])], {"quantity": 3}, TypeError, "quantity: expected a str"),
    ],
)
def test_wrong_results(results, more, error, message):
    with pytest.raises(error, match=message):
        plots.search(results, **more)
