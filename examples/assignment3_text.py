"""The text assignment of DD2424: a vanilla RNN that learns to write, then LSTM and GRU, by characters and by byte
pairs.

    python examples/assignment3_text.py --data shakespeare.txt --output plots --best

The data are any text in UTF-8; by default the language reference that comes with this Python. Its last tenth is held
out. The vanilla RNN is the course's: 100 units, one-hot characters, windows of 25, one stream through the text whose
state is carried on and reset at the end, every element of the gradient clipped to [-5, 5]. The gated cells read 32
streams at a time. Byte pairs need the package tokenizers.
"""

import argparse
import itertools
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

import dd2424fast as dd
from dd2424fast.monitors import FlowReport

TEMPERATURES = (0.2, 0.4, 0.6, 0.8, 1.0, 1.2, 1.4)
NUCLEI = (0.5, 0.7, 0.9, 0.95, 1.0)
UNITS = {"char": "characters", "bpe": "byte pairs", "word": "words"}
IGNORED = -100  # a target that does not count


@dataclass
class Plan:
    """One row of the table: a network, its text, and how it is trained."""

    name: str
    unit: str
    text: str
    corpus: dd.data.TextCorpus
    network: dict  # arguments of dd.models.LanguageModel
    optimizer: dd.optim.Optimizer
    streams: int
    updates: int
    every: int  # updates between two evaluations
    clip: dict  # arguments of dd.Trainer
    cosine: bool = False  # whether the learning rate falls to zero along a cosine
    decay: float = 0.999  # of the smoothed loss

    def read(self, updates):
        """Characters that so many updates read."""
        tokens = updates * self.streams * self.corpus.time
        return tokens * len(self.text) / (len(self.corpus.train) + len(self.corpus.validation))


@dataclass
class Result:
    """What a Plan came to; the model has its best weights."""

    plan: Plan
    model: dd.models.LanguageModel
    curve: dd.callbacks.LossCurve
    validation: list  # of (update, what Trainer.evaluate found)
    seconds: float  # of the updates alone

    @property
    def best(self):
        return min((found for _, found in self.validation), key=lambda found: found["loss"])

    def say(self, length, seed=0, **options):
        """A text from the best model."""
        tokenizer = self.plan.corpus.tokenizer
        return dd.generate(self.model, tokenizer, prompt_of(tokenizer), length, seed=seed, **options)


def prompt_of(tokenizer):
    """The beginning of a line, where the text has lines."""
    try:
        tokenizer.encode("\n")
    except ValueError:
        return tokenizer.tokens[0]
    return "\n"


# ---- training --------------------------------------------------------------------------------------------------------


def train(plan, seed, sample=0):
    """Train as planned; print a text of `sample` tokens before the first update and at every evaluation."""
    corpus = plan.corpus
    model = dd.models.LanguageModel(corpus.vocab_size, **plan.network, seed=seed)
    schedule = dd.schedules.Cosine(plan.optimizer.lr, plan.updates) if plan.cosine else None
    trainer = dd.Trainer(model, plan.optimizer, **plan.clip, schedule=schedule, seed=seed)
    result = Result(plan, model, dd.callbacks.LossCurve(plan.decay), [], 0.0)
    windows, weights = endless(corpus, plan.streams), None
    if sample:
        print(f"\n---- {plan.name}, before training ----\n{result.say(sample, seed)}")
    while trainer.update < plan.updates:
        started = time.perf_counter()
        for x, y, begins in itertools.islice(windows, min(plan.every, plan.updates - trainer.update)):
            if begins:
                model.reset_state()
            loss = trainer.step(x, y)
            result.curve.update_ends(trainer, loss)
        result.seconds += time.perf_counter() - started
        found = trainer.evaluate(corpus)
        result.validation.append((trainer.update, found))
        if found is result.best:
            weights = model.parameters.copy()
        progress(result, trainer.update)
        if sample:
            print(f"\n---- {plan.name}, update {trainer.update:,} ----\n{result.say(sample, seed + trainer.update)}")
    model.parameters[...] = weights
    return result


def endless(corpus, streams):
    """Windows (x, y, begins) of the training part, epoch by epoch."""
    for epoch in itertools.count():
        yield from corpus.batches("train", streams, epoch)


def progress(result, update):
    smoothed, (_, found) = result.curve.smoothed[-1], result.validation[-1]
    print(
        f"{result.plan.name}: update {update:,} of {result.plan.updates:,}, smoothed loss {smoothed:.3f}, "
        f"validation {found['loss']:.3f}, {result.seconds:.1f} s",
        file=sys.stderr,
    )


def plans(text, units, epochs, chunk, quick, best):
    """Yield the rows of the table."""
    updates, every, few, many = (200, 100, 16, 16) if quick else (100_000, 10_000, 100, 256)
    corpus, network = dd.data.TextCorpus(text, time=25), {"cell": "rnn", "hidden": few}
    for name, optimizer in (("Adam", dd.optim.Adam(1e-3)), ("AdaGrad", dd.optim.Adagrad(0.1))):
        name = f"RNN {few}, {name}"
        yield Plan(name, "char", text, corpus, network, optimizer, 1, updates, every, {"clip_value": 5.0})

    for unit in units:
        try:
            corpus = corpus_of(text, unit, chunk)
        except ModuleNotFoundError as error:
            print(f"assignment3_text: {UNITS[unit]} are left out. {error}", file=sys.stderr)
            continue
        for layers, cell in itertools.product((1, 2), ("lstm", "gru")):
            network = {"cell": cell, "hidden": many, "embedding": 64, "layers": layers, "dropout": 0.2}
            yield batched(unit, text, corpus, network, epochs)
    if best:
        network = {"cell": "lstm", "hidden": 24 if quick else 400, "embedding": 64, "dropout": 0.3}
        yield batched("char", text, corpus_of(text, "char", chunk), network, 3 * epochs)


def corpus_of(text, unit, chunk):
    """The text in windows of about the same length for every unit."""
    if unit == "word":  # most of a text's words occur once
        unit = dd.data.Word(text[: round(0.9 * len(text))], most=2000)
    return dd.data.TextCorpus(text, unit, time=64 if unit == "char" else 32, chunk=chunk)


def batched(unit, text, corpus, network, epochs):
    streams = 32
    name = f"{network['cell'].upper()} {' + '.join([str(network['hidden'])] * network.get('layers', 1))}, {UNITS[unit]}"
    windows, optimizer = corpus.count("train", streams), dd.optim.Adam(2e-3)
    return Plan(
        name, unit, text, corpus, network, optimizer, streams, epochs * windows, windows, {"clip_norm": 1.0},
        cosine=True, decay=0.98,
    )  # fmt: skip


# ---- what came of it -------------------------------------------------------------------------------------------------


def table(results, length, seed):
    """One line a run. Loss and perplexity are a token's, and so compare within a unit, bits between units; distinct-2
    is the share of different pairs of words in a sample of `length` tokens."""
    lines = [
        f"{'':<28}{'parameters':>11}{'updates':>9}{'seconds':>9}{'chars/s':>11}{'best val loss':>15}"
        f"{'perplexity':>12}{'bits/char':>11}{'distinct-2':>12}"
    ]
    for r in results:
        bits = r.best.get("bits_per_character", float("nan"))  # an unknown word does not tell its characters
        lines.append(
            f"{r.plan.name:<28}{r.model.parameters.size:>11,}{r.plan.updates:>9,}{r.seconds:>9.1f}"
            f"{r.plan.read(r.plan.updates) / r.seconds:>11,.0f}{r.best['loss']:>15.3f}{r.best['perplexity']:>12.2f}"
            f"{bits:>11.3f}{dd.metrics.distinct(r.say(length, seed), 2):>12.3f}"
        )
    return "\n".join(lines)


def plot_losses(results, path):
    """Loss against the characters that were read, a panel for each unit."""
    from matplotlib.figure import Figure

    units = list(dict.fromkeys(r.plan.unit for r in results))
    figure = Figure(figsize=(6.5 * len(units), 4.5), layout="constrained")
    for axes, unit in zip(figure.subplots(1, len(units), squeeze=False)[0], units, strict=True):
        for i, r in enumerate(r for r in results if r.plan.unit == unit):
            updates, losses = zip(*((update, found["loss"]) for update, found in r.validation), strict=True)
            axes.plot(r.plan.read(r.curve.updates), r.curve.smoothed, color=f"C{i}", linewidth=1, linestyle="--")
            axes.plot(r.plan.read(np.array(updates)), losses, color=f"C{i}", marker=".", label=r.plan.name)
        axes.set(xlabel="characters read", ylabel="nats a token (training smoothed and dashed)", xscale="log")
        axes.legend()
    figure.savefig(path, dpi=120)


def plot_gradient_flow(results, path):
    """How the gradient of one loss, of the last of 50 steps, reaches the steps before it; returns the report."""
    flow = {}
    for r in results:
        ids = r.plan.corpus.validation
        steps = min(50, len(ids) - 1)
        sequences = min(32, (len(ids) - 1) // steps)
        x, y = (ids[i : i + sequences * steps].reshape(sequences, steps).copy() for i in (0, 1))
        y[:, :-1] = IGNORED
        flow[r.plan.name] = dd.gradient_flow(r.model, x, y).sequences["rnn.l0"]
    report = FlowReport(flow)
    report.plot(path)
    return report


def samples(result, length, seed, path):
    """Print what the model says at several temperatures, and from several nuclei; plot the first."""
    tokenizer = result.plan.corpus.tokenizer
    sweep = dd.plots.temperature_sweep(
        result.model, tokenizer, prompt_of(tokenizer), TEMPERATURES, length, samples=3, seed=seed
    )
    sweep.plot(path)
    print(f"\n==== {result.plan.name}: temperatures ====\n{sweep}")
    for row in sweep.rows:
        print(f"\n---- temperature {row['temperature']} ----\n{row['texts'][0]}")
    print(f"\n==== {result.plan.name}: nuclei ====")
    for top_p in NUCLEI:
        text = result.say(length, seed, top_p=top_p)
        print(f"\n---- top_p {top_p}, distinct-2 {dd.metrics.distinct(text, 2):.3f} ----\n{text}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, metavar="FILE", help="a text (default: Python's language reference)")
    parser.add_argument("--output", type=Path, default=Path("assignment3_text"), metavar="FOLDER", help="(%(default)s)")
    parser.add_argument(
        "--units", nargs="+", choices=UNITS, default=["char", "bpe"], help="that the gated cells read (char bpe)"
    )
    parser.add_argument(
        "--chunk",
        type=int,
        metavar="TOKENS",
        help="cut their text into chunks, shuffled every epoch (it is read through)",
    )
    parser.add_argument("--epochs", type=int, default=4, help="of the gated cells (%(default)s)")
    parser.add_argument("--best", action="store_true", help="train an LSTM of 400 units too, three times as long")
    parser.add_argument("--quick", action="store_true", help="small networks, a few updates: does everything work?")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    if arguments.epochs < 1:
        parser.error(f"--epochs: expected at least 1, got {arguments.epochs}")
    try:
        text = arguments.data.read_text(encoding="utf-8") if arguments.data else dd.data.python_topics()
    except (OSError, UnicodeDecodeError) as error:
        sys.exit(f"assignment3_text: --data: {error}")
    arguments.output.mkdir(parents=True, exist_ok=True)
    seed, epochs = arguments.seed, arguments.epochs
    if arguments.quick:
        text, epochs = text[:20_000], 1
    short, long = (40, 100) if arguments.quick else (200, 1000)

    results = []
    for plan in plans(text, arguments.units, epochs, arguments.chunk, arguments.quick, arguments.best):
        vanilla = plan.network["cell"] == "rnn"
        results.append(train(plan, seed, sample=short if vanilla else 0))
        if vanilla:
            print(f"\n---- {plan.name}, its best model ----\n{results[-1].say(long, seed)}")

    plot_losses(results, arguments.output / "losses.png")
    first = {r.plan.network["cell"]: r for r in reversed(results)}  # of each cell
    report = plot_gradient_flow(reversed(first.values()), arguments.output / "gradient_flow.png")
    speaker = results[-1] if arguments.best else first.get("lstm", results[0])
    samples(speaker, short, seed, arguments.output / "temperatures.png")
    print(f"\n==== flow of gradients ====\n{report}")
    print(f"\n==== all ====\n{table(results, long, seed)}")
    if arguments.quick:
        print(
            "\n--quick: a few updates on a short text show that everything works; the losses and the texts mean nothing"
        )
    print(f"\nplots: {arguments.output}")


if __name__ == "__main__":
    main()
