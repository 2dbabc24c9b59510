"""Pictures of a training and of what a language model says: matplotlib figures, imported when one is drawn."""

import copy
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from .configuration import array_of, integer_in, positive_integer, real_in
from .generation import continued
from .losses import CrossEntropy
from .metrics import distinct, perplexity
from .nn import Dropout, Sequential
from .nn.layers import _Elementwise


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
