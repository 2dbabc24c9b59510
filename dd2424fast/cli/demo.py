"""`dd2424fast demo`: the NumPy definition and the fast kernels, side by side."""

import itertools
import time
from pathlib import Path

import click

from .common import command, json_option, print_json, seed_option, threads_option

BACKENDS = ("numpy", "fast")
HIDDEN = (50,)
EPOCHS = 40
BATCH_SIZE = 100
CIFAR_ROUNDS = 40
CIFAR_SECONDS = 15  # on a machine that is busy or slow, fewer rounds
TEXT_UNITS = 128
TEXT_STREAMS, TEXT_WINDOW = 16, 64
TEXT_UPDATES = 1200
TEXT_ROUNDS, TEXT_ROUND = 4, 5  # that both take in turn, and updates of each
PROMPT = '\nThe "for" statement '
SHOWN_EPOCHS = (1, 2, 5, 10, 20, 40)
# float64 sums in another order differ in the last digits; more than this is another result.
SAME = 1e-9

NEXT = (
    "dd2424fast train mlp --data digits --batch-norm --epochs 30 --output digits.safetensors",
    "dd2424fast evaluate digits.safetensors --data digits",
    "dd2424fast train lm --cell lstm --output python.safetensors && dd2424fast generate python.safetensors",
    "dd2424fast profile --model mlp_bn",
)


@command(["dd2424fast demo", "dd2424fast demo --seed 7 --threads 1 --output /tmp/demo", "dd2424fast demo --json"])
@click.option(
    "--output",
    type=click.Path(file_okay=False, path_type=Path),
    default="dd2424fast-demo",
    show_default=True,
    help="Folder of the plot.",
)
@seed_option
@threads_option
@json_option
@click.pass_context
def demo(ctx, output, seed, as_json):
    """Train the same network by NumPy and by the fast kernels, and compare.

    Both start from the same weights and see the same batches of handwritten digits, in turn. Shown are the two loss
    curves, the test accuracy and the time of an update; a second row times the same network on images of CIFAR-10's
    size. Then an LSTM learns to write like Python's language reference.
    """
    import dd2424fast as dd

    from .datasets import load

    output.mkdir(parents=True, exist_ok=True)
    data = load("digits").as_rows()
    standardizer = dd.data.Standardizer().fit(data.x)
    x, x_test = standardizer.transform(data.x), standardizer.transform(data.x_test)
    with _bar() as bar:
        digits = train_in_turn(_trainers(x.shape[1], "float32", seed), _shuffled(x, data.y, EPOCHS, seed), bar)
        double = train_in_turn(
            _trainers(x.shape[1], "float64", seed), _shuffled(x.astype("float64"), data.y, EPOCHS // 4, seed), bar
        )
        cifar = _time_cifar(seed, bar)
        text, said = _learn_text(seed, bar)
    result = {
        "seed": seed,
        "threads": dd.get_num_threads(),
        "network": _sizes(x.shape[1]),
        "training_images": len(x),
        "test_images": len(x_test),
        "updates": len(digits.losses["fast"]),
        "loss": {name: [float(v) for v in digits.epoch_means(name)] for name in BACKENDS},
        "test_accuracy": {name: _accuracy(digits.trainers[name], x_test, data.y_test) for name in BACKENDS},
        "largest_difference": {"float32": digits.largest_difference(), "float64": double.largest_difference()},
        "seconds": {"digits": digits.seconds(), "cifar": cifar.seconds(), "text": text.seconds()},
        "text": said,
        "plot": str(output / "demo.png"),
    }
    _plot(digits, result)
    print_json(result) if as_json else click.echo(_text(result))
    ctx.exit(0 if result["largest_difference"]["float64"] <= SAME else 1)


class _Run:
    """Losses and times of two trainers that took the same batches in turn."""

    def __init__(self, trainers):
        self.trainers = trainers
        self.losses = {name: [] for name in trainers}
        self.rounds = {name: [] for name in trainers}  # seconds of an update, one entry a round of batches

    def epoch_means(self, name):
        import numpy as np

        return np.reshape(self.losses[name], (len(self.rounds[name]), -1)).mean(axis=1)

    def largest_difference(self):
        return max(abs(a - b) for a, b in zip(*self.losses.values(), strict=True))

    def seconds(self):
        """The time of an update in each one's fastest round: what other programs took is not counted against either."""
        return {name: min(rounds) for name, rounds in self.rounds.items()}


def train_in_turn(trainers, rounds, bar, seconds=float("inf")):
    """Train each trainer under the backend it is named after, a round of the same batches each, in turn.

    No round begins after `seconds`.
    """
    import dd2424fast as dd

    run, end = _Run(trainers), time.perf_counter() + seconds
    for i, batches in enumerate(rounds):
        for name in BACKENDS if i % 2 else BACKENDS[::-1]:
            with dd.backend(name):
                started = time.perf_counter()
                losses = [trainers[name].step(*batch) for batch in batches]
                run.rounds[name].append((time.perf_counter() - started) / len(batches))
            run.losses[name] += losses
        bar.update()
        if time.perf_counter() > end:
            break
    return run


def _shuffled(x, y, epochs, seed):
    """Yield the batches of each epoch."""
    import numpy as np

    rng = np.random.default_rng(seed)
    for _ in range(epochs):
        order = rng.permutation(len(x))
        yield [(x[rows], y[rows]) for rows in np.array_split(order, len(x) // BATCH_SIZE)]


def _trainers(features, dtype, seed):
    """Two trainers of equal networks, by the backend that is to run them."""
    import dd2424fast as dd

    return {
        name: dd.Trainer(
            dd.models.MLP(features, HIDDEN, 10, batch_norm=True, dtype=dtype, seed=seed),
            dd.optim.SGD(0.05, momentum=0.9),
            seed=seed,
        )
        for name in BACKENDS
    }


def _time_cifar(seed, bar):
    """The same network on random images of CIFAR-10's size: speed does not depend on what they show."""
    import numpy as np

    rng = np.random.default_rng(seed)
    x, y = rng.standard_normal((5 * BATCH_SIZE, 3072), dtype=np.float32), rng.integers(10, size=5 * BATCH_SIZE)
    rounds = _shuffled(x, y, CIFAR_ROUNDS, seed)
    return train_in_turn(_trainers(3072, "float32", seed), rounds, bar, CIFAR_SECONDS)


def _learn_text(seed, bar):
    """An LSTM on Python's language reference: both for some updates in turn, then the fast kernels alone; returns the
    _Run in turn, and what came of it all."""
    import dd2424fast as dd

    corpus = dd.data.TextCorpus(dd.data.python_topics(), time=TEXT_WINDOW)
    run = train_in_turn(_text_trainers(corpus.vocab_size, seed), _in_rounds(_endless(corpus)), bar)
    trainer, windows = run.trainers["fast"], _endless(corpus)
    started, losses = time.perf_counter(), list(run.losses["fast"])
    for x, y, begins in itertools.islice(windows, len(losses), TEXT_UPDATES):
        if begins:
            trainer.model.reset_state()
        losses.append(trainer.step(x, y))
        if not len(losses) % 100:
            bar.update()
    seconds = time.perf_counter() - started
    return run, {
        "characters": len(corpus.train) + len(corpus.validation),
        "network": f"{corpus.vocab_size}-{TEXT_UNITS}-{corpus.vocab_size}",
        "updates": trainer.update,
        "seconds": seconds,
        "loss": losses,
        "largest_difference": run.largest_difference(),
        "validation": trainer.evaluate(corpus),
        "sample": PROMPT + dd.generate(trainer.model, corpus.tokenizer, PROMPT, 300, 0.7, top_p=0.9, seed=seed),
    }


def _text_trainers(vocab_size, seed):
    import dd2424fast as dd

    return {
        name: dd.Trainer(
            dd.models.LanguageModel(vocab_size, "lstm", TEXT_UNITS, seed=seed),
            dd.optim.Adam(),
            clip_norm=1.0,
            schedule=dd.schedules.Cosine(0.008, TEXT_UPDATES),
        )
        for name in BACKENDS
    }


def _endless(corpus):
    for epoch in itertools.count():
        yield from corpus.batches("train", TEXT_STREAMS, epoch)


def _in_rounds(windows):
    for _ in range(TEXT_ROUNDS):
        yield [(x, y) for x, y, _ in itertools.islice(windows, TEXT_ROUND)]


def _accuracy(trainer, x, y):
    return float(trainer.evaluate((x, y))["accuracy"])


def _bar():
    from tqdm import tqdm

    rounds = EPOCHS + EPOCHS // 4 + CIFAR_ROUNDS + TEXT_ROUNDS + TEXT_UPDATES // 100
    return tqdm(total=rounds, desc="NumPy and fast kernels in turn", unit="round", disable=None, leave=False)


def _sizes(features):
    return "-".join(map(str, (features, *HIDDEN, 10)))


def _text(result):
    import dd2424fast as dd

    rows = [
        f"dd2424fast {dd.__version__}: one network trained twice, by its NumPy definition and by the fast kernels",
        "",
        f"Handwritten digits, {result['training_images']} for training, {result['test_images']} for testing;",
        f"network {result['network']} with batch normalisation, float32, seed {result['seed']};",
        f"the same weights and the same batches for both, {result['updates']} updates.",
        "",
        f"{'training loss':<24}{'NumPy':>12}{'fast':>12}",
    ]
    losses = result["loss"]
    rows += [f"  epoch {i:<16}{losses['numpy'][i - 1]:>12.6f}{losses['fast'][i - 1]:>12.6f}" for i in SHOWN_EPOCHS]
    rows.append(
        f"{'test accuracy':<24}{result['test_accuracy']['numpy']:>12.2%}{result['test_accuracy']['fast']:>12.2%}"
    )
    difference = result["largest_difference"]
    rows += [
        f"largest difference    {difference['float32']:>14.1e} in float32, {difference['float64']:.1e} in float64",
        "",
        f"{'time of an update':<24}{'NumPy':>12}{'fast':>12}{'speed-up':>10}",
    ]
    text, validation = result["text"], result["text"]["validation"]
    networks = {
        "digits": f"digits {_sizes(64)}",
        "cifar": f"CIFAR-10 {_sizes(3072)}",
        "text": f"text LSTM {text['network']}",
    }
    for key, network in networks.items():
        slow, fast = (result["seconds"][key][name] for name in BACKENDS)
        rows.append(f"  {network:<22}{1e6 * slow:>9.0f} us{1e6 * fast:>9.0f} us{slow / fast:>9.1f}x")
    rows += [
        f"  batches of {BATCH_SIZE} images, of {TEXT_STREAMS} x {TEXT_WINDOW} characters; {result['threads']} threads; "
        "the fastest of rounds taken in turn",
        "",
        f"Python's language reference, {text['characters']:,} characters;",
        f"LSTM {text['network']}, float32, {text['updates']:,} updates in {text['seconds']:.1f} s: loss "
        f"{text['loss'][0]:.2f} nats a character before,",
        f"{validation['loss']:.2f} on text it has not seen (perplexity {validation['perplexity']:.1f}). It writes:",
        *(f"  | {line}" for line in text["sample"].strip().splitlines()),
        "",
        f"plot: {result['plot']}",
        "next:",
        *(f"  {line}" for line in NEXT),
    ]
    if difference["float64"] > SAME:
        rows.append(f"FAILED: the two differ by more than {SAME:g} in float64")
    return "\n".join(rows)


def _plot(digits, result):
    from matplotlib.figure import Figure  # no pyplot: no window, no global state

    figure = Figure(figsize=(13, 3.8), layout="constrained")
    curves, *bars = figure.subplots(1, 4, width_ratios=(3, 1, 1, 1))
    curves.plot(digits.losses["numpy"], color="tab:blue", linewidth=4, alpha=0.4, label="NumPy definition")
    curves.plot(digits.losses["fast"], color="black", linewidth=1, linestyle="--", label="fast kernels")
    curves.set(
        xlabel="update",
        ylabel="training loss (nats)",
        yscale="log",
        title="The same weights and batches: the same losses",
    )
    curves.legend()
    networks = {"digits": _sizes(64), "cifar": _sizes(3072), "text": f"LSTM {TEXT_UNITS}"}
    for axes, (key, network) in zip(bars, networks.items(), strict=True):
        slow, fast = (1e6 * result["seconds"][key][name] for name in BACKENDS)
        axes.bar(["NumPy", "fast"], [slow, fast], color=["tab:blue", "black"], alpha=0.6)
        axes.set(ylabel="microseconds an update", title=f"{network}: {slow / fast:.1f}x")
    figure.savefig(result["plot"], dpi=120)
