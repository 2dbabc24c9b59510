"""Pictures of a training, of a classifier and of what a language model says: matplotlib figures; it is imported when
one is drawn."""

import copy
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from .configuration import array_of, integer_in, positive_integer, real_in
from .generation import continued
from .history import History
from .losses import CrossEntropy
from .metrics import distinct, interval, perplexity
from .nn import Dropout, Sequential
from .nn.layers import _Elementwise
from .nn.module import Module


def _figure(columns=1):
    """A figure and its axes, side by side."""
    figure = _empty(4.5 * columns + (columns == 1) * 1.5, 3.5)
    axes = figure.subplots(1, columns, squeeze=False)[0]
    return figure, (axes if columns > 1 else axes[0])


def _empty(width, height):
    """A figure of this size in inches."""
    from matplotlib.figure import Figure  # no pyplot: no window, no global state

    return Figure(figsize=(width, height), layout="constrained")


def _written(figure, path):
    if path is not None:
        figure.savefig(path)
    return figure


# Okabe and Ito (2008): colours that readers who see colours otherwise tell apart; their greys differ in print.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")


def _colour(i):
    return _COLOURS[int(i) % len(_COLOURS)]


def loss_curve(curves, path=None):
    """Draw the loss of single updates, and smoothed, against updates.

    Parameters
    ----------
    curves : callbacks.LossCurve, or mapping from label to such
    path : path-like, optional
        Where to write the picture; its ending says in which format.

    Returns
    -------
    matplotlib.figure.Figure
    """
    curves = dict(curves) if isinstance(curves, Mapping) else {"loss": curves}
    for label, curve in curves.items():
        if not all(hasattr(curve, name) for name in ("updates", "losses", "smoothed")):
            raise TypeError(f"curves[{label!r}]: expected a callbacks.LossCurve, got {type(curve).__name__}")
    figure, axes = _figure()
    for i, (label, curve) in enumerate(curves.items()):
        axes.plot(curve.updates, curve.losses, color=f"C{i}", alpha=0.25, linewidth=0.8)
        axes.plot(curve.updates, curve.smoothed, color=f"C{i}", label=f"{label}, smoothed")
    axes.set(xlabel="update", ylabel="loss")
    axes.legend()
    return _written(figure, path)


def gradient_flow(report, path=None):
    """Draw the norms of a `FlowReport` against the step; see `dd.gradient_flow`. Returns the Figure."""
    figure, axes = _figure()
    for name, norms in report.norms.items():
        axes.plot(np.arange(1, len(norms) + 1), norms, marker=".", label=name)
    axes.set(xlabel="step t", ylabel="norm of dL/dh$_t$", yscale="log")
    axes.legend()
    return _written(figure, path)


def gradient_flow_history(callback, path=None):
    """Draw a `callbacks.GradientFlow`: for every layer the norms against the step, the later the darker. Returns the
    Figure."""
    figure, axes = _figure(max(1, len(callback.norms)))
    for place, (name, rows) in zip(np.atleast_1d(axes), callback.norms.items(), strict=False):
        for i, (update, norms) in enumerate(zip(callback.updates, rows, strict=True)):
            shade = 0.2 + 0.8 * (i + 1) / len(rows)
            place.plot(np.arange(1, len(norms) + 1), norms, color="C0", alpha=shade, label=f"update {update}")
        place.set(xlabel="step t", ylabel="norm of dL/dh$_t$", yscale="log", title=name)
        if len(rows) <= 8:
            place.legend()
    return _written(figure, path)


def layer_statistics(report, path=None):
    """Draw a `LayersReport`, layer by layer; see `dd.layer_statistics`. Returns the Figure."""
    figure, (activations, gradients, shares, updates) = _figure(4)
    names, layers = list(report.layers), list(report.layers.values())
    at = np.arange(len(names))
    activations.errorbar(at, [layer.mean for layer in layers], [layer.std for layer in layers], fmt="o", capsize=4)
    activations.set(title="results: mean and std")
    for label, number in (("dL/dW", "weight_gradient"), ("dL/db", "bias_gradient"), ("dL/da", "activation_gradient")):
        gradients.plot(at, [getattr(layer, number) for layer in layers], marker="o", linestyle="", label=label)
    gradients.set(title="gradients: norm", yscale="log")
    shares.bar(at - 0.2, [layer.dead for layer in layers], 0.4, label="dead ReLUs")
    shares.bar(at + 0.2, [layer.saturated for layer in layers], 0.4, label="saturated")
    shares.set(title="share", ylim=(0, 1))
    updates.plot(at, [layer.update_ratio for layer in layers], marker="o", linestyle="")
    updates.axhline(1e-3, color="0.6", linewidth=0.8)
    updates.set(title="update / weights", yscale="log")
    for axes in (activations, gradients, shares, updates):
        axes.set_xticks(at, names, rotation=90)
        axes.set_xlim(-0.5, len(names) - 0.5)
    gradients.legend()
    shares.legend()
    return _written(figure, path)


def layer_statistics_history(callback, path=None):
    """Draw a `callbacks.LayerStatistics`: for every layer, how its numbers change with the updates. Returns the
    Figure."""
    figure, places = _figure(4)
    shown = {
        "std": "results: std",
        "activation_gradient_rms": "dL/da: root mean square",
        "update_ratio": "update / weights",
        "dead": "share of dead ReLUs",
    }
    for axes, (number, title) in zip(places, shown.items(), strict=True):
        for i, (name, numbers) in enumerate(callback.numbers.items()):
            if not np.isnan(numbers[number]).all():
                axes.plot(callback.updates, numbers[number], marker=".", color=f"C{i}", label=name)
        axes.set(title=title, xlabel="update", yscale="linear" if number == "dead" else "log")
        if axes.lines:
            axes.legend()
    return _written(figure, path)


def class_activation(model, image, label=None, path=None):
    """Draw which parts of an image speak for a class.

        map[h, w] = max(0, sum_c a_c A[h, w, c]),    a_c = mean over h, w of d logit_label / d A[h, w, c]

    with A what the last layers give that still have the image's shape: those behind it must be the classifier alone.
    Where they are a global average and a Linear layer, this is the class activation map of Zhou et al., over the
    number of places.

    Parameters
    ----------
    model : nn.Sequential
        Its weights, gradients and mode are left alone; dropout is off, batch normalisation as in use.
    image : array of shape (height, width, channels), as the model takes it
    label : int, optional
        Default: the class that the model finds.
    path : path-like, optional
        Where to write the picture; its ending says in which format.

    Returns
    -------
    matplotlib.figure.Figure
        The image, and the image beneath the map.

    References
    ----------
    Zhou, Khosla, Lapedriza, Oliva and Torralba (2016), arXiv:1512.04150, equation 2; Selvaraju et al. (2017),
    arXiv:1610.02391, equations 1 and 2 (Grad-CAM).
    """
    if not isinstance(model, Sequential):
        raise TypeError(f"model: expected an nn.Sequential, got {type(model).__name__}")
    image = array_of("image", image)
    if image.ndim != 3:
        raise ValueError(f"image: expected shape (height, width, channels), got {image.shape}")
    heat, label = _activation_map(model, image, label)
    figure, (left, right) = _figure(2)
    _show(left, image)
    left.set_title("image")
    _show(right, image)
    extent = (-0.5, image.shape[1] - 0.5, image.shape[0] - 0.5, -0.5)  # the map's pixels are larger than the image's
    right.imshow(heat, cmap="inferno", alpha=0.6, interpolation="bilinear", extent=extent)
    right.set_title(f"what speaks for class {label}")
    return _written(figure, path)


def _activation_map(model, image, label):
    """The map (height, width) of the last features, and the class."""
    model = copy.deepcopy(model)
    model.freeze()  # a frozen batch normalisation uses its running statistics, in training too
    for _, module in model.modules():
        if isinstance(module, Dropout):
            module.p = 0.0
    model.train()
    x = model._input(image[np.newaxis])
    classifier, features = None, x
    for i, layer in enumerate(model.layers):
        x = model[i : i + 1].forward(x)
        if x.ndim != 4:
            break
        goes_on = isinstance(layer, _Elementwise) and classifier == i
        if layer.parameters.size or goes_on:
            classifier, features = i + 1, x
    if classifier is None:
        raise ValueError("model: expected layers that give (batch, height, width, channels), such as convolutions")
    rest = model[classifier:]
    logits = rest.forward(features)
    if logits.ndim != 2:
        raise ValueError(f"model: expected one that gives outputs (batch, classes), got {logits.shape}")
    label = int(logits.argmax()) if label is None else integer_in("label", label, 0, logits.shape[1] - 1)
    gradient = rest.backward(np.eye(logits.shape[1], dtype=logits.dtype)[[label]])
    return np.maximum((gradient.mean(axis=(1, 2)) * features).sum(axis=3)[0], 0), label


def filters(model, path=None, *, image=None):
    """Draw what the first layer's filters look like, each stretched to the full range of brightness.

    Parameters
    ----------
    model : nn.Module
        Begins with a convolution of images of one or three channels, or with a Linear layer on their rows.
    path : path-like, optional
        Where to write the picture; its ending says in which format.
    image : (int, int, int), optional
        (height, width, channels), for a Linear layer.

    Returns
    -------
    matplotlib.figure.Figure
    """
    weights = next((p.value for _, p in model.named_parameters() if p.value.ndim > 1), np.empty(0))
    if image is not None and weights.ndim == 2 and math.prod(image) == len(weights):
        weights = weights.reshape(*image, -1)
    if weights.ndim != 4 or weights.shape[2] not in (1, 3):
        raise ValueError(
            "model, image: expected a first layer with filters (height, width, 1 or 3, filters), got weights of shape "
            f"{weights.shape} and image={image}"
        )
    columns = math.ceil(math.sqrt(weights.shape[3]))
    rows = math.ceil(weights.shape[3] / columns)
    figure = _empty(0.7 * columns, 0.7 * rows)
    places = figure.subplots(rows, columns, squeeze=False).ravel()
    for place in places:
        place.axis("off")
    for place, weight in zip(places, np.moveaxis(weights, 3, 0), strict=False):
        _show(place, weight)
    return _written(figure, path)


def _show(axes, image):
    """Show an image of one or three channels (else the channels' mean), its numbers stretched to the full range."""
    image = image.astype(np.float64) if image.shape[2] in (1, 3) else image.mean(axis=2, keepdims=True)
    image = (image - image.min()) / (np.ptp(image) or 1.0)
    axes.imshow(image[..., 0] if image.shape[2] == 1 else image, cmap="gray", vmin=0, vmax=1)
    axes.axis("off")


def learning_curves(runs, path=None):
    """Draw loss and accuracy against epochs: on the training data dashed, on the validation data solid.

    Parameters
    ----------
    runs : History, sequence of History, or mapping from label to either
        Of several histories under one label, such as one a seed, the mean is drawn over the epochs that all have, and a
        band of one standard deviation (of a sample) to both sides.
    path : path-like, optional
        Where to write the picture; its ending says in which format.

    Returns
    -------
    matplotlib.figure.Figure
        The loss (of a classifier in nats), and where there is one the accuracy in percent.
    """
    runs = {label: _histories(label, several) for label, several in _labelled("runs", runs).items()}
    everything = [history for several in runs.values() for history in several]
    quantities = ["loss", "accuracy"] if any("accuracy" in history for history in everything) else ["loss"]
    figure, places = _figure(len(quantities))
    for axes, quantity in zip(np.atleast_1d(places), quantities, strict=True):
        for i, (label, several) in enumerate(runs.items()):
            for column, what, line in ((quantity, "training", "--"), (f"val_{quantity}", "validation", "-")):
                if all(column in history for history in several):
                    name = what if label is None else f"{label}, {what}"
                    colour = _colour(i if len(runs) > 1 else line == "-")
                    _curve(axes, several, column, quantity, color=colour, linestyle=line, label=name)
        unit = _unit(quantity, nats=len(quantities) > 1)
        axes.set(xlabel="epoch", ylabel=quantity + unit)
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.legend()
    return _written(figure, path)


def _labelled(name, values):
    """A mapping from label to values; the label is None where only one was given, without any."""
    values = dict(values) if isinstance(values, Mapping) else {None: values}
    if not values:
        raise ValueError(f"{name}: expected at least one, got none")
    return values


def _histories(label, several):
    several = [several] if isinstance(several, History) else several
    name = "runs" if label is None else f"runs[{label!r}]"
    if not isinstance(several, list | tuple) or not all(isinstance(history, History) for history in several):
        raise TypeError(f"{name}: expected a History or a sequence of them, got {several!r}")
    if not several or not all(len(history) for history in several):
        raise ValueError(f"{name}: expected histories of at least one epoch each")
    if not all("loss" in history and "epoch" in history for history in several):
        raise ValueError(f"{name}: expected histories with the columns 'epoch' and 'loss'")
    return several


def _curve(axes, several, column, quantity, **style):
    """Draw the mean of a column over histories, and its spread."""
    rows = [dict(zip(history["epoch"], history[column], strict=True)) for history in several]
    epochs = sorted(set.intersection(*map(set, rows)))
    if not epochs:
        raise ValueError(f"runs: expected histories that have an epoch in common, got none for {style['label']!r}")
    values = np.array([[row[epoch] for epoch in epochs] for row in rows], dtype=np.float64) * _factor(quantity)
    mean = values.mean(axis=0)
    axes.plot(epochs, mean, **style)
    if len(values) > 1:
        spread = values.std(axis=0, ddof=1)
        axes.fill_between(epochs, mean - spread, mean + spread, color=style["color"], alpha=0.2, linewidth=0)


def _factor(quantity):
    """Accuracies, which are fractions, are drawn in percent."""
    return 100.0 if quantity.endswith("accuracy") else 1.0


def _unit(quantity, nats=True):
    if quantity.endswith("accuracy"):
        return " (%)"
    return " (nats)" if quantity.endswith("loss") and nats else ""


def templates(model, shape=(32, 32, 3), names=None, path=None):
    """Draw the columns of a layer's weights as images, each stretched to [0, 1]: what the layer looks for.

    Parameters
    ----------
    model : nn.Module that begins with a Linear layer on the rows of images; or its weights, of shape (features, units),
        or (units, features) as PyTorch has them
    shape : (int, int, int)
        (height, width, channels) of the images, of one channel or three.
    names : sequence of str, optional
        Of the units, to be written above them: of a softmax classifier the classes'.
    path : path-like, optional
        Where to write the picture; its ending says in which format.

    Returns
    -------
    matplotlib.figure.Figure
        One axes a unit, in their order.
    """
    if not isinstance(shape, list | tuple) or len(shape) != 3:
        raise ValueError(f"shape: expected (height, width, channels), got {shape!r}")
    shape = tuple(positive_integer(f"shape[{i}]", size) for i, size in enumerate(shape))
    if shape[2] not in (1, 3):
        raise ValueError(f"shape: expected one channel or three, got {shape[2]}")
    if isinstance(model, Module):
        weights = next((p.value for _, p in model.named_parameters() if p.value.ndim > 1), np.empty(0))
    else:
        weights = _numbers("model", model)
    if weights.ndim == 2 and len(weights) != math.prod(shape):
        weights = weights.T
    if weights.ndim != 2 or len(weights) != math.prod(shape):
        expected = f"(features, units), of {math.prod(shape)} features for images of shape {shape}"
        got = weights.shape if weights.ndim != 2 else weights.T.shape
        raise ValueError(f"model, shape: expected weights of shape {expected}, got {got}")
    names = _names(names, weights.shape[1])
    columns = min(weights.shape[1], 10)
    rows = -(-weights.shape[1] // columns)
    figure = _empty(1.1 * columns, 1.3 * rows)
    places = figure.subplots(rows, columns, squeeze=False).ravel()
    for place in places[weights.shape[1] :]:
        place.remove()
    for place, weight, name in zip(places, weights.T, names or [""] * len(weights.T), strict=False):
        _show(place, weight.reshape(shape))
        place.set_title(name, fontsize="small")
    return _written(figure, path)


def _names(names, count):
    """Names of units or classes as a list, or None."""
    if names is None:
        return None
    if isinstance(names, str) or not isinstance(names, Iterable):
        raise TypeError(f"names: expected a sequence of str, got {names!r}")
    names = [str(name) for name in names]
    if len(names) != count:
        raise ValueError(f"names: expected {count}, got {len(names)}")
    return names


def _numbers(name, values):
    a = array_of(name, values)
    if a.dtype.kind not in "fiub":
        raise TypeError(f"{name}: expected numbers, got dtype {a.dtype}")
    return a


def true_class_probability(p, y, path=None, *, bins=20):
    """Draw how probable the true class was: a histogram of the images that were classified rightly, and one of the
    others.

    Parameters
    ----------
    p : array of shape (images, classes), or mapping from label to such
        Probabilities, which need not sum to 1: of a softmax, or of a sigmoid a class, to be compared side by side.
    y : integers of shape (images,)
        The true classes.
    path : path-like, optional
        Where to write the picture; its ending says in which format.
    bins : int
        Of equal width, from 0 to 1.

    Returns
    -------
    matplotlib.figure.Figure
        One axes for each p.
    """
    panels = {label: _probabilities(label, each) for label, each in _labelled("p", p).items()}
    bins = positive_integer("bins", bins)
    figure, places = _figure(len(panels))
    places = np.atleast_1d(places)
    edges = np.linspace(0, 1, bins + 1)
    for axes, (label, each) in zip(places, panels.items(), strict=True):
        labels = _classes("y", y, each.shape[1], len(each))
        true, right = each[np.arange(len(each)), labels], each.argmax(axis=1) == labels
        for i, (what, rows, hatch) in enumerate((("right", right, None), ("wrong", ~right, "///"))):
            counts, _ = np.histogram(true[rows], edges)
            face = (_colour(0), "white")[i]
            axes.bar(
                edges[:-1] + (0.05 + 0.45 * i) / bins, counts, 0.45 / bins, align="edge", facecolor=face,
                edgecolor=_colour(i), hatch=hatch, label=f"{what}: {rows.sum():,}",
            )  # fmt: skip
        axes.set(xlabel="probability of the true class", ylabel="images", xlim=(0, 1), title=label or "")
        axes.legend()
    for axes in places[1:]:
        axes.sharey(places[0])
    places[0].autoscale(axis="y")
    return _written(figure, path)


def _probabilities(label, p):
    name = "p" if label is None else f"p[{label!r}]"
    p = _numbers(name, p)
    if p.ndim != 2 or not p.size:
        raise ValueError(f"{name}: expected shape (images, classes), got {p.shape}")
    bad = np.argwhere(~((p >= 0) & (p <= 1)))
    if len(bad):
        first = tuple(int(i) for i in bad[0])
        raise ValueError(f"{name}: expected probabilities from 0 to 1, got {p[first]} at {first}")
    return p


def _classes(name, y, classes, length=None):
    """Integer labels below `classes`, as a vector; as many as `length`."""
    y = array_of(name, y)
    if y.dtype.kind not in "iu":
        raise TypeError(f"{name}: expected integer labels, got dtype {y.dtype}")
    if y.ndim != 1 or not y.size or (length is not None and len(y) != length):
        raise ValueError(f"{name}: expected shape ({'images' if length is None else length},), got {y.shape}")
    bad = np.flatnonzero((y < 0) | (y >= classes))
    if len(bad):
        raise ValueError(f"{name}: expected labels from 0 to {classes - 1}, got {y[bad[0]]} at {int(bad[0])}")
    return y.astype(np.int64)


def confusion_matrix(y, predicted, path=None, *, names=None):
    """Draw which classes are taken for which: the images counted, and in percent of each true class.

    Parameters
    ----------
    y : integers of shape (images,)
        The true classes.
    predicted : integers of shape (images,), or floats of shape (images, classes)
        The classes that were found, or outputs or probabilities whose highest one says so.
    path : path-like, optional
        Where to write the picture; its ending says in which format.
    names : sequence of str, optional
        Of the classes; default: their numbers.

    Returns
    -------
    matplotlib.figure.Figure
        Two axes, with the counts and the percentages as images: rows are true classes, columns found ones. A class
        without images has no percentages.
    """
    predicted = _numbers("predicted", predicted)
    highest = predicted.shape[1] if predicted.ndim == 2 else None
    if predicted.ndim == 2:
        predicted = predicted.argmax(axis=1)
    limit = highest or 1000  # more classes make no picture
    y, predicted = _classes("y", y, limit), _classes("predicted", predicted, limit, np.size(y))
    count = highest or max(2, 0 if names is None else np.size(names), int(max(y.max(), predicted.max())) + 1)
    names = _names(names, count) or [str(i) for i in range(count)]
    counts = np.bincount(y * count + predicted, minlength=count**2).reshape(count, count)
    with np.errstate(invalid="ignore"):
        percent = 100 * counts / counts.sum(axis=1, keepdims=True)
    side = max(3.5, 0.5 * count + 1.2)
    figure = _empty(2 * side + 0.8, side)
    for axes, values, title, text in zip(
        figure.subplots(1, 2), (counts, percent), ("images", "% of the true class"), ("{:.0f}", "{:.1f}"), strict=True
    ):
        _matrix(figure, axes, values, text, names)
        axes.set(title=title, xlabel="found class", ylabel="true class")
    return _written(figure, path)


def _matrix(figure, axes, values, text, names):
    """Show a matrix as an image, the darker the higher, and its numbers."""
    shown = np.ma.masked_invalid(values)
    image = axes.imshow(shown, cmap="Blues", vmin=0, vmax=max(float(shown.max()), 1.0))
    figure.colorbar(image, ax=axes, shrink=0.8)
    for (i, j), value in np.ndenumerate(values):
        if np.isfinite(value):
            light = value > image.norm.vmax / 2
            axes.text(
                j, i, text.format(value), ha="center", va="center", fontsize="x-small", color="wk"[not light]
            )  # fmt: skip
    places = np.arange(len(names))
    turned = {"rotation": 45, "ha": "right", "rotation_mode": "anchor"} if max(map(len, names)) > 2 else {}
    axes.set_xticks(places, names, **turned)
    axes.set_yticks(places, names)


def search(results, path=None, *, quantity="val_accuracy", confidence=0.95, bounds=None):
    """Draw what the settings of a search came to: a bar for the mean over seeds, the mean's confidence interval, and
    the best setting in another colour.

    Parameters
    ----------
    results : sequence of (label, scores)
        The scores are numbers, one a seed, or a single one: then there is no interval.
    path : path-like, optional
        Where to write the picture; its ending says in which format.
    quantity : str
        What the scores are. Where it ends with "accuracy" they are fractions, drawn in percent. There, and where it
        ends with "score", the highest mean is the best; elsewhere the lowest one. A loss is in nats.
    confidence : float in (0, 1)
        Of the interval, by Student's t distribution.
    bounds : (float, float), optional
        Between which all scores lie that there can be: the intervals are cut off there. Default: 0 and 1 where the
        quantity ends with "accuracy".

    Returns
    -------
    matplotlib.figure.Figure
    """
    if not isinstance(quantity, str):
        raise TypeError(f"quantity: expected a str, got {quantity!r}")
    confidence = real_in("confidence", confidence, 0, 1, include_low=False, include_high=False)
    if isinstance(results, str) or not isinstance(results, Iterable):
        raise TypeError(f"results: expected a sequence of (label, scores), got {type(results).__name__}")
    pairs = [_setting(i, item, quantity) for i, item in enumerate(results)]
    if not pairs:
        raise ValueError("results: expected at least one, got none")
    means = np.array([scores.mean() for _, scores in pairs])
    low, high = _bounds(bounds, quantity)
    ends = [interval(scores, confidence, low, high) if len(scores) > 1 else None for _, scores in pairs]
    best = int(means.argmax() if quantity.endswith(("accuracy", "score")) else means.argmin())
    figure = _empty(max(4.5, 0.7 * len(pairs) + 1.5), 3.8)
    axes = figure.subplots()
    for i, (mean, found) in enumerate(zip(means, ends, strict=True)):
        error = None if found is None else [[max(mean - found[0], 0.0)], [max(found[1] - mean, 0.0)]]
        axes.bar(
            i, mean, 0.7, yerr=error, capsize=4, color=_colour(i == best), edgecolor="black", linewidth=0.6,
            hatch="//" if i == best else None, label="best" if i == best else None,
        )  # fmt: skip
        top = mean if found is None else found[1]
        axes.annotate(f"{mean:.4g}", (i, top), (0, 3), textcoords="offset points", ha="center")
    axes.set_xticks(range(len(pairs)), [label for label, _ in pairs], rotation=30, ha="right")
    axes.set(ylabel=quantity.replace("val_", "validation ").replace("_", " ") + _unit(quantity))
    axes.margins(y=0.12)
    axes.legend()
    return _written(figure, path)


def _bounds(bounds, quantity):
    """As drawn."""
    if bounds is None:
        bounds = (0.0, 1.0) if quantity.endswith("accuracy") else (-math.inf, math.inf)
    if not isinstance(bounds, tuple | list) or len(bounds) != 2:
        raise TypeError(f"bounds: expected (low, high), got {bounds!r}")
    low, high = (real_in(f"bounds[{i}]", end, -math.inf, math.inf) for i, end in enumerate(bounds))
    if low >= high:
        raise ValueError(f"bounds: expected low < high, got {low} and {high}")
    return low * _factor(quantity), high * _factor(quantity)


def _setting(i, item, quantity):
    """One of a search's results, as (label, scores as drawn)."""
    if not isinstance(item, list | tuple) or len(item) != 2:
        raise TypeError(f"results[{i}]: expected (label, scores), got {item!r}")
    scores = np.atleast_1d(_numbers(f"results[{i}]", item[1])).astype(np.float64)
    if scores.ndim != 1 or not scores.size or not np.isfinite(scores).all():
        raise ValueError(f"results[{i}]: expected finite scores, one a seed, got {item[1]!r}")
    return str(item[0]), scores * _factor(quantity)


def range_test(report, path=None):
    """Draw the losses of a `RangeTest` against the learning rate, and its suggestion; see `Trainer.find_lr`. Returns
    the Figure."""
    figure, axes = _figure()
    axes.plot(report.rates, report.losses, color="C0", alpha=0.25, linewidth=0.8)
    axes.plot(report.rates, report.smoothed, color="C0", label="loss, smoothed")
    if report.suggestion is not None:
        axes.axvline(report.suggestion, color="C1", linestyle="--", label=f"suggestion {report.suggestion:.3g}")
    lowest, first = report.smoothed.min(), report.smoothed[0]
    margin = (first - lowest) / 3 or abs(first) or 1.0  # what lies above is lost training, however far
    axes.set(xlabel="learning rate", ylabel="loss", xscale="log", ylim=(lowest - margin, first + margin))
    axes.legend()
    return _written(figure, path)


@dataclass
class TemperatureSweep:
    """What a model says at several temperatures.

    Attributes
    ----------
    rows : list of dict
        One a temperature: "temperature"; "distinct_2" and "distinct_3" of the samples' words (see `metrics.distinct`);
        "log_probability", the mean over the samples' tokens of the log-probability (nats) that the model itself, at
        temperature 1, gives them, and the "perplexity" that follows; "texts", the samples.
    """

    rows: list

    def table(self):
        """One line a temperature, as text, with the beginning of its first sample."""
        lines = [f"{'temperature':>11} {'distinct-2':>10} {'distinct-3':>10} {'perplexity':>10}  sample"]
        lines += [
            f"{r['temperature']:>11g} {r['distinct_2']:>10.3f} {r['distinct_3']:>10.3f} {r['perplexity']:>10.4g}  "
            f"{r['texts'][0][:60]!r}"
            for r in self.rows
        ]
        return "\n".join(lines)

    def plot(self, path=None):
        """Draw distinct-n and perplexity against the temperature.

        Parameters
        ----------
        path : path-like, optional
            Where to write the picture; its ending says in which format.

        Returns
        -------
        matplotlib.figure.Figure
        """
        figure, (left, right) = _figure(2)
        temperatures = [r["temperature"] for r in self.rows]
        for n in (2, 3):
            left.plot(temperatures, [r[f"distinct_{n}"] for r in self.rows], marker="o", label=f"distinct-{n}")
        left.set(xlabel="temperature", ylabel="share of different n-grams")
        left.legend()
        right.plot(temperatures, [r["perplexity"] for r in self.rows], marker="o")
        right.set(xlabel="temperature", ylabel="perplexity of the samples", yscale="log")
        return _written(figure, path)

    def __str__(self):
        return self.table()


def temperature_sweep(
    model,
    tokenizer,
    prompt,
    temperatures=(0.25, 0.5, 0.75, 1.0, 1.25),
    length=200,
    samples=5,
    seed=0,
    *,
    top_p=1.0,
    top_k=0,
    repetition_penalty=1.0,
    banned=(),
):
    """Let a language model continue a prompt at several temperatures, and measure what it says.

    Parameters
    ----------
    model, tokenizer, length : see `dd.generate`
    prompt : str
    temperatures : sequence of float
    samples : int
        Texts at each temperature.
    seed : int
        Equal seeds give equal texts.
    top_p, top_k, repetition_penalty, banned : see `dd.generate`

    Returns
    -------
    TemperatureSweep
    """
    if not isinstance(prompt, str):
        raise TypeError(f"prompt: expected a str, got {type(prompt).__name__}")
    if isinstance(temperatures, str) or not isinstance(temperatures, Iterable):
        raise TypeError(f"temperatures: expected a sequence of numbers, got {temperatures!r}")
    temperatures = [real_in(f"temperatures[{i}]", t, 0, np.inf, include_high=False) for i, t in enumerate(temperatures)]
    if not temperatures:
        raise ValueError("temperatures: expected at least one, got none")
    prompts = [prompt] * positive_integer("samples", samples)
    options = {
        "top_p": top_p,
        "top_k": top_k,
        "repetition_penalty": repetition_penalty,
        "banned": banned,
        "seed": seed,
    }
    rows = []
    for temperature in temperatures:
        begun, new = continued(model, tokenizer, prompts, length, temperature=temperature, **options)
        texts = [tokenizer.decode(ids) for ids in new]
        value = _log_probability(model, np.array(begun), new)
        rows.append(
            {
                "temperature": temperature,
                "distinct_2": distinct(texts, 2),
                "distinct_3": distinct(texts, 3),
                "log_probability": value,
                "perplexity": perplexity(-value),
                "texts": texts,
            }
        )
    return TemperatureSweep(rows)


def _log_probability(model, prompts, new):
    """Mean log-probability in nats of the tokens `new` behind their prompts, both of shape (samples, tokens)."""
    ids = np.concatenate([prompts, new], axis=1)
    logits = model.predict(ids[:, :-1])[:, prompts.shape[1] - 1 :]
    loss, _ = CrossEntropy()(np.ascontiguousarray(logits).reshape(new.size, -1), new.ravel())
    return -loss
