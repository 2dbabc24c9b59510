"""Pictures of a training and of what a language model says: matplotlib figures, imported when one is drawn."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from .configuration import positive_integer, real_in
from .generation import continued
from .losses import CrossEntropy
from .metrics import distinct, perplexity


def _figure(columns=1):
    """A figure and its axes, side by side."""
    from matplotlib.figure import Figure  # no pyplot: no window, no global state

    figure = Figure(figsize=(4.5 * columns + (columns == 1) * 1.5, 3.5), layout="constrained")
    axes = figure.subplots(1, columns, squeeze=False)[0]
    return figure, (axes if columns > 1 else axes[0])


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


def range_test(report, path=None):
    """Draw the losses of a `RangeTest` against the learning rate, and its suggestion; see `Trainer.find_lr`. Returns
    the Figure."""
    figure, axes = _figure()
    axes.plot(report.rates, report.losses, color="C0", alpha=0.25, linewidth=0.8)
    axes.plot(report.rates, report.smoothed, color="C0", label="loss, smoothed")
    if report.suggestion is not None:
        axes.axvline(report.suggestion, color="C1", linestyle="--", label=f"suggestion {report.suggestion:.3g}")
    axes.set(xlabel="learning rate", ylabel="loss", xscale="log")
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
