"""`dd2424fast demo`: the NumPy definition and the fast kernels, side by side."""

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
SHOWN_EPOCHS = (1, 2, 5, 10, 20, 40)
# float64 sums in another order differ in the last digits; more than this is another result.
SAME = 1e-9

NEXT = (
    "dd2424fast train mlp --data digits --batch-norm --epochs 30 --output digits.safetensors",
    "dd2424fast evaluate digits.safetensors --data digits",
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
    size. Takes a few seconds.
    """
    import dd2424fast as dd

    from .datasets import load

    output.mkdir(parents=True, exist_ok=True)
    data = load("digits")
    standardizer = dd.data.Standardizer().fit(data.x)
    x, x_test = standardizer.transform(data.x), standardizer.transform(data.x_test)
    with _bar() as bar:
        digits = train_in_turn(_trainers(x.shape[1], "float32", seed), x, data.y, EPOCHS, seed, bar)
        double = train_in_turn(
            _trainers(x.shape[1], "float64", seed), x.astype("float64"), data.y, EPOCHS // 4, seed, bar
        )
        cifar = _time_cifar(seed, bar)
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
        "seconds": {"digits": digits.seconds(), "cifar": cifar.seconds()},
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


def train_in_turn(trainers, x, y, epochs, seed, bar, seconds=float("inf")):
    """Train each trainer under the backend it is named after, an epoch of the same batches each, in turn.

    No epoch begins after `seconds`.
    """
    import numpy as np

    import dd2424fast as dd

    run, rng, end = _Run(trainers), np.random.default_rng(seed), time.perf_counter() + seconds
    for epoch in range(epochs):
        order = rng.permutation(len(x))
        batches = [(x[rows], y[rows]) for rows in np.array_split(order, len(x) // BATCH_SIZE)]
        for name in BACKENDS if epoch % 2 else BACKENDS[::-1]:
            with dd.backend(name):
                started = time.perf_counter()
                losses = [trainers[name].step(*batch) for batch in batches]
                run.rounds[name].append((time.perf_counter() - started) / len(batches))
            run.losses[name] += losses
        bar.update()
        if time.perf_counter() > end:
            break
    return run


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
    return train_in_turn(_trainers(3072, "float32", seed), x, y, CIFAR_ROUNDS, seed, bar, CIFAR_SECONDS)


def _accuracy(trainer, x, y):
    return float(trainer.evaluate((x, y))["accuracy"])


def _bar():
    from tqdm import tqdm

    rounds = EPOCHS + EPOCHS // 4 + CIFAR_ROUNDS
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
    for title, key, features in (("digits", "digits", 64), ("CIFAR-10", "cifar", 3072)):
        slow, fast = (result["seconds"][key][name] for name in BACKENDS)
        rows.append(
            f"  {f'{title} {_sizes(features)}':<22}{1e6 * slow:>9.0f} us{1e6 * fast:>9.0f} us{slow / fast:>9.1f}x"
        )
    rows += [
        f"  batches of {BATCH_SIZE}, {result['threads']} threads; the fastest of rounds taken in turn",
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

    figure = Figure(figsize=(11, 3.8), layout="constrained")
    curves, *bars = figure.subplots(1, 3, width_ratios=(3, 1, 1))
    curves.plot(digits.losses["numpy"], color="tab:blue", linewidth=4, alpha=0.4, label="NumPy definition")
    curves.plot(digits.losses["fast"], color="black", linewidth=1, linestyle="--", label="fast kernels")
    curves.set(
        xlabel="update",
        ylabel="training loss (nats)",
        yscale="log",
        title="The same weights and batches: the same losses",
    )
    curves.legend()
    for axes, (key, features) in zip(bars, (("digits", 64), ("cifar", 3072)), strict=True):
        slow, fast = (1e6 * result["seconds"][key][name] for name in BACKENDS)
        axes.bar(["NumPy", "fast"], [slow, fast], color=["tab:blue", "black"], alpha=0.6)
        axes.set(ylabel="microseconds an update", title=f"{_sizes(features)}: {slow / fast:.1f}x")
    figure.savefig(result["plot"], dpi=120)
