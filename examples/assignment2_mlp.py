"""Assignment 2 of DD2424 on CIFAR-10: networks of two layers and more, and the cyclical learning rate.

    python examples/assignment2_mlp.py --data PATH

PATH is a folder with the files of CIFAR-10 for Python, or their archive cifar-10-python.tar.gz; without --data the
environment variable DD2424FAST_DATA says where they are. The rate goes from 1e-5 to 1e-1 and back, in cycles of twice
n_s updates of 100 images each. The course's J = loss + lambda * sum(W^2), called cost here, is weight_decay = 2 *
lambda. All settings are those of the course but for the parts `optimizers`, `dropout` and `large`.
"""

import argparse
import csv
import math
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

import dd2424fast as dd

PARTS = ("cycles", "search", "depth", "init", "optimizers", "dropout", "large")
BATCH_SIZE = 100
LOW, HIGH = 1e-5, 1e-1
DEEP = (50, 30, 20, 20, 10, 10, 10, 10)  # hidden layers of the network of nine
MEASURED = 10_000  # training images that a curve is measured on


# ---- data ------------------------------------------------------------------------------------------------------------


@dataclass
class Data:
    """Rows of pixels, each pixel with mean 0 and standard deviation 1 as measured on the training images alone."""

    train: tuple
    validation: tuple
    test: tuple

    @classmethod
    def standardized(cls, *parts):
        scale = dd.data.Standardizer().fit(_rows(parts[0][0]))
        return cls(*((scale.transform(_rows(x)), y) for x, y in parts))

    @property
    def updates(self):
        """Of an epoch: batches that are full, as the course counts them."""
        return max(1, len(self.train[0]) // BATCH_SIZE)


def _rows(images):
    return images.reshape(len(images), -1)


@dataclass
class Images:
    """Of uint8, as they are loaded: the first training batch, the second one, all five, and the test images."""

    first: tuple
    second: tuple
    all: tuple
    test: tuple

    @classmethod
    def load(cls, path, most):
        """At most so many of each."""
        first, test = dd.data.load_cifar10(path, batches=(1,))
        second, _ = dd.data.load_cifar10(path, batches=(2,))
        everything, _ = dd.data.load_cifar10(path)
        return cls(*((x[:most], y[:most]) for x, y in (first, second, everything, test)))

    def one_batch(self):
        return Data.standardized(self.first, self.second, self.test)

    def all_batches(self, held_out):
        """The last images of the five batches held out for validation: so many, and at most a tenth."""
        x, y = self.all
        n = len(x) - min(held_out, len(x) // 10)
        return Data.standardized((x[:n], y[:n]), (x[n:], y[n:]), self.test)


# ---- training --------------------------------------------------------------------------------------------------------


@dataclass
class Plan:
    """One row of the table: a network and how it is trained."""

    name: str
    updates: int
    schedule: object  # of the learning rate, or None: the optimizer's own
    lam: float = 0.0
    hidden: tuple = (50,)
    batch_norm: bool = False
    sigma: float | None = None  # of the first weights; He's without
    optimizer: type = dd.optim.SGD
    settings: dict | None = None  # of the optimizer
    dropout: float = 0.0
    smoothing: float = 0.0
    augment: object = None
    every: int = 500  # updates from one measurement to the next


@dataclass
class Result:
    plan: Plan
    model: dd.models.MLP
    curve: list  # of {"update", "lr", "train_loss", "train_cost", "train_accuracy", "val_loss", ...}
    train: float  # accuracies after the last update, as fractions
    validation: float
    test: float
    seconds: float  # of the updates


class Limit(dd.callbacks.Callback):
    """End training after so many updates, within an epoch."""

    def __init__(self, updates):
        self.last_update = updates

    def update_ends(self, trainer, loss):
        if trainer.update == self.last_update:
            trainer.stop_reason = "all updates were made"


class Curve(dd.callbacks.Callback):
    """Measures loss, cost and accuracy before the first update and after every so many."""

    def __init__(self, data, lam, every):
        x, y = data.train
        self.parts = {"train": (x[:MEASURED], y[:MEASURED]), "val": data.validation}
        self.lam, self.every = lam, every
        self.rows, self.seconds = [], 0.0

    def fit_begins(self, trainer):
        self._measure(trainer, 0)

    def update_ends(self, trainer, loss):
        if trainer.update % self.every == 0:
            self._measure(trainer, trainer.update - 1)

    def _measure(self, trainer, update):
        started = time.perf_counter()
        weights = dd.data.course_parameters(trainer.model)["W"]
        decay = self.lam * sum(float(np.square(W, dtype=np.float64).sum()) for W in weights)
        rate = trainer.optimizer.lr if trainer.schedule is None else trainer.schedule(update)
        row = {"update": trainer.update, "lr": rate}
        for name, part in self.parts.items():
            found = trainer.evaluate(part)
            row |= {f"{name}_loss": found["loss"], f"{name}_cost": found["loss"] + decay}
            row[f"{name}_accuracy"] = found["accuracy"]
        self.rows.append(row)
        self.seconds += time.perf_counter() - started


def network(plan, seed):
    model = dd.models.MLP(3072, plan.hidden, 10, plan.batch_norm, plan.dropout, init="he", seed=seed)
    if plan.sigma is not None:
        rng, net = np.random.default_rng(seed), dd.data.course_parameters(model)
        W = [rng.normal(0, plan.sigma, weights.shape) for weights in net["W"]]
        dd.data.load_course_parameters(model, W, net["b"])
    return model


def train(plan, data, seed, with_curve=True):
    """Train as planned."""
    settings = plan.settings or {"lr": HIGH}
    optimizer = plan.optimizer(weight_decay=2 * plan.lam, **settings)
    loss = dd.losses.CrossEntropy(label_smoothing=plan.smoothing)
    trainer = dd.Trainer(network(plan, seed), optimizer, loss, schedule=plan.schedule, seed=seed)
    curve = Curve(data, plan.lam, plan.every)
    started = time.perf_counter()
    trainer.fit(
        data.train,
        epochs=-(-plan.updates // data.updates),
        batch_size=BATCH_SIZE,
        augment=plan.augment,
        callbacks=[Limit(plan.updates), *([curve] if with_curve else [])],
        progress=False,
    )
    seconds = time.perf_counter() - started - curve.seconds
    accuracies = (trainer.evaluate(part)["accuracy"] for part in (data.train, data.validation, data.test))
    return Result(plan, trainer.model, curve.rows, *accuracies, seconds)


def trained(plans, data, seed):
    results = []
    for plan in plans:
        results.append(train(plan, data, seed))
        print(f"{plan.name}: test {results[-1].test:.2%}, {results[-1].seconds:.1f} s", file=sys.stderr)
    return results


# ---- lambda ----------------------------------------------------------------------------------------------------------


def search(plans, data, seed):
    """The plans' results, those of the highest validation accuracy first."""
    results = []
    for plan in plans:
        results.append(train(plan, data, seed, with_curve=False))
        print(f"{plan.name}: validation {results[-1].validation:.2%}", file=sys.stderr)
    return sorted(results, key=lambda result: -result.validation)


def coarse_to_fine(data, count, cycles, seed):
    """Two searches for lambda, whose logarithm is drawn from a range: first from 1e-5 to 1e-1, then around the best
    three. Returns the results of both."""
    step = 2 * data.updates
    rng = np.random.default_rng(seed)

    def plans(low, high, cycles):
        for exponent in rng.uniform(low, high, count):
            yield cyclic(f"lambda {10**exponent:.3g}", step, cycles, lam=10**exponent)

    coarse = search(plans(-5, -1, cycles), data, seed)
    around = [math.log10(result.plan.lam) for result in coarse[:3]]
    fine = search(plans(min(around) - 0.1, max(around) + 0.1, cycles + 1), data, seed)
    return coarse, fine


# ---- what is trained -------------------------------------------------------------------------------------------------


def cyclic(name, step, cycles, **settings):
    """So many cycles of 2 n_s updates each."""
    every = settings.pop("every", max(1, step // 5))
    return Plan(name, 2 * step * cycles, dd.schedules.Cyclic(LOW, HIGH, step), every=every, **settings)


def cycles_plans(quick):
    """The course's figures, of one training batch."""
    small, large = (5, 8) if quick else (500, 800)
    yield cyclic(f"50, n_s {small}, 1 cycle, lambda 0.01", small, 1, lam=0.01, every=small // 5)
    yield cyclic(f"50, n_s {large}, 3 cycles, lambda 0.01", large, 3, lam=0.01, every=large // 4)


def depth_plans(step):
    """Three layers and nine, without batch normalisation and with it."""
    for hidden in ((50, 50), DEEP):
        for norm in (False, True):
            name = " ".join(map(str, hidden)) + (", batch norm" if norm else "")
            yield cyclic(name, step, 2, lam=0.005, hidden=hidden, batch_norm=norm)


def init_plans(step):
    """Three layers from weights of N(0, sigma^2)."""
    for sigma in (1e-1, 1e-3, 1e-4):
        for norm in (False, True):
            name = f"50 50, sigma {sigma:g}" + (", batch norm" if norm else "")
            yield cyclic(name, step, 2, lam=0.005, hidden=(50, 50), batch_norm=norm, sigma=sigma)


def optimizer_plans(step):
    """The network of two layers by other optimizers, for as many updates as three cycles have."""
    lam, updates, every = 0.003, 6 * step, step
    yield cyclic("50, SGD, cyclical rate", step, 3, lam=lam)
    yield Plan("50, SGD, 0.01", updates, None, lam, settings={"lr": 0.01}, every=every)
    yield Plan("50, SGD, momentum 0.9, 0.001", updates, None, lam, settings={"lr": 0.001, "momentum": 0.9}, every=every)
    yield Plan("50, Adam, 0.001", updates, None, lam, optimizer=dd.optim.Adam, settings={"lr": 0.001}, every=every)
    rate = dd.schedules.Cyclic(LOW, 2e-3, step)
    adam = {"optimizer": dd.optim.Adam, "settings": {"lr": 2e-3}}
    yield Plan("50, Adam, cyclical rate to 0.002", updates, rate, lam, **adam, every=every)


def dropout_plans(step):
    """Ten times as many hidden units."""
    mirrored = dd.data.Augment(flip=True, image=(32, 32, 3))
    for dropout, augment in ((0.0, None), (0.2, None), (0.5, None), (0.2, mirrored)):
        name = f"500, dropout {dropout:g}{', mirrored' if augment else ''}"
        yield cyclic(name, step, 3, lam=0.001, hidden=(500,), dropout=dropout, augment=augment)


def large_plan(updates, hidden, every):
    """All that helps a network without convolutions."""
    return Plan(
        f"{' '.join(map(str, hidden))}, batch norm, dropout 0.2",
        updates,
        dd.schedules.OneCycle(0.1, updates),
        lam=5e-5,
        hidden=hidden,
        batch_norm=True,
        settings={"lr": 0.1, "momentum": 0.9},
        dropout=0.2,
        smoothing=0.1,
        augment=dd.data.Augment(flip=True, shift=3, image=(32, 32, 3)),
        every=every,
    )


def run(part, images, arguments):
    """Train what belongs to a part, and draw it; returns the results that the table shows."""
    seed, folder, quick = arguments.seed, arguments.output, arguments.quick
    if part == "cycles":
        results = trained(cycles_plans(quick), images.one_batch(), seed)
    elif part == "search":
        results = run_search(images, folder, seed, quick)
    elif part in ("depth", "init"):
        data = images.all_batches(held_out=5000)
        step = 5 if quick else 5 * data.updates
        results = trained((depth_plans if part == "depth" else init_plans)(step), data, seed)
    else:
        data = images.all_batches(held_out=1000)
        step = 5 if quick else 2 * data.updates
        if part == "large":
            updates, hidden = (10, (16, 8)) if quick else (30 * data.updates, (1024, 512))
            plans = [large_plan(updates, hidden, max(1, data.updates))]
        else:
            plans = (optimizer_plans if part == "optimizers" else dropout_plans)(step)
        results = trained(plans, data, seed)
        if part == "large":
            (x, y), names = data.test, dd.data.CIFAR_CLASSES
            predicted = results[0].model.predict(x).argmax(axis=1)
            dd.plots.confusion_matrix(y, predicted, folder / "confusion.png", names=names)
    plot_curves(results, folder / f"{part}.png")
    return results


def run_search(images, folder, seed, quick):
    """Search for lambda, and train three cycles with the best."""
    count, cycles = (3, 1) if quick else (20, 2)
    coarse, fine = coarse_to_fine(images.all_batches(held_out=5000), count, cycles, seed)
    for name, found in (("coarse", coarse), ("fine", fine)):
        print(f"the best of the {name} search, by validation accuracy")
        for r in found[:3]:
            print(f"{r.plan.name:<28}{r.validation:>8.2%}")
        print()
    write_search(coarse, fine, folder / "search.csv")
    plot_search(coarse, fine, folder / "lambdas.png")
    data, lam = images.all_batches(held_out=1000), fine[0].plan.lam
    step = 2 * data.updates
    return trained([cyclic(f"50, n_s {step}, 3 cycles, lambda {lam:.3g}", step, 3, lam=lam)], data, seed)


# ---- what came of it -------------------------------------------------------------------------------------------------


def table(results):
    """One line a network."""
    head = f"{'':<44}{'parameters':>11}{'updates':>9}{'training':>10}{'validation':>12}{'test':>8}{'time':>10}"
    lines = [head + f"{'an update':>12}"]
    lines += [
        f"{r.plan.name:<44}{r.model.parameters.size:>11,}{r.plan.updates:>9,}{r.train:>10.2%}{r.validation:>12.2%}"
        f"{r.test:>8.2%}{r.seconds:>8.1f} s{1e3 * r.seconds / r.plan.updates:>9.3f} ms"
        for r in results
    ]
    return "\n".join(lines)


def plot_curves(results, path):
    """Loss, cost and accuracy against updates."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(15, 4.5), layout="constrained")
    for axes, quantity in zip(figure.subplots(1, 3), ("loss", "cost", "accuracy"), strict=True):
        for i, r in enumerate(results):
            updates = [row["update"] for row in r.curve]
            for part, style in (("train", "--"), ("val", "-")):
                values = [row[f"{part}_{quantity}"] for row in r.curve]
                axes.plot(updates, values, style, color=f"C{i}", label=r.plan.name if part == "val" else None)
        axes.set(xlabel="update", ylabel=f"{quantity} (training dashed, validation solid)")
    axes.legend()
    figure.savefig(path, dpi=120)


def plot_search(coarse, fine, path):
    """Validation accuracy against lambda."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    for name, found in (("coarse", coarse), ("fine, one more cycle", fine)):
        axes.plot([r.plan.lam for r in found], [r.validation for r in found], "o", label=name)
    axes.set(xlabel="lambda", ylabel="validation accuracy", xscale="log")
    axes.legend()
    figure.savefig(path, dpi=120)


def write_curves(results, path):
    """All that was measured, a line a measurement and network."""
    with open(path, "w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, ["name", *results[0].curve[0]])
        writer.writeheader()
        writer.writerows({"name": r.plan.name, **row} for r in results for row in r.curve)


def write_search(coarse, fine, path):
    with open(path, "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["search", "lambda", "updates", "train_accuracy", "val_accuracy", "test_accuracy", "seconds"])
        for name, found in (("coarse", coarse), ("fine", fine)):
            writer.writerows(
                [name, r.plan.lam, r.plan.updates, r.train, r.validation, r.test, r.seconds] for r in found
            )


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", help="folder or archive of CIFAR-10 (default: $DD2424FAST_DATA)")
    parser.add_argument(
        "--parts",
        nargs="+",
        choices=PARTS,
        default=PARTS,
        help="cycles: the course's figures on one batch; search: for lambda, and three cycles with the best; depth:"
        " three layers and nine, with batch norm and without; init: the same for three deviations of the first weights;"
        " optimizers; dropout; large: 1024 and 512 hidden units (all)",
    )
    parser.add_argument("--quick", action="store_true", help="a few updates: does everything work?")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=Path("assignment2_mlp"), metavar="FOLDER", help="(%(default)s)")
    arguments = parser.parse_args()
    try:
        images = Images.load(arguments.data, 1000 if arguments.quick else None)
    except FileNotFoundError as error:
        sys.exit(f"assignment2_mlp: {error}\nGive --data PATH, or set DD2424FAST_DATA.")
    arguments.output.mkdir(parents=True, exist_ok=True)

    results = []
    for part in arguments.parts:
        results += run(part, images, arguments)
    print(table(results))
    write_curves(results, arguments.output / "curves.csv")
    print(f"plots and curves: {arguments.output}")


if __name__ == "__main__":
    main()
