"""Assignment 1 of DD2424 on CIFAR-10: the softmax classifier, and what the course offers beyond it.

    python examples/assignment1_softmax.py --data PATH

PATH is a folder with the files of CIFAR-10 for Python, or their archive cifar-10-python.tar.gz; without --data the
environment variable DD2424FAST_DATA says where they are. As in the course the first batch is for training, the second
one for validation, and W and b are drawn from N(0, 0.01^2); `better`, `sigmoid` and `grid` learn from all five batches.
The course's J = loss + lambda * sum(W^2), called cost here, is weight_decay = 2 * lambda.
"""

import argparse
import csv
import itertools
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

import dd2424fast as dd

PARTS = ("course", "sigmoid", "better", "grid")
IMAGE = (32, 32, 3)
MIRRORED = dd.data.Augment(flip=True, image=IMAGE)  # half of the images of every batch, drawn anew


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
    """One row of the table: how a classifier is trained."""

    name: str
    lam: float = 0.0
    eta: float = 0.001
    batch_size: int = 100
    epochs: int = 40
    step: int | None = None  # epochs until the rate falls to a tenth, again and again
    sigmoid: bool = False  # K yes-or-no questions instead of a choice among K
    augment: object = None


@dataclass
class Result:
    plan: Plan
    model: dd.models.MLP
    curve: list  # of {"epoch", "train_loss", "train_cost", "train_accuracy", "val_loss", ...}
    measures: dict  # the same of "train", "val" and "test" after the last epoch
    seconds: float  # of the updates


class Sigmoids(dd.losses.BinaryCrossEntropy):
    """The mean of K binary cross-entropies; the likeliest class is the answer."""

    classifies = True


class Curve(dd.callbacks.Callback):
    """Measures the classifier before the first update and after every epoch."""

    order = -1

    def __init__(self, data, lam):
        self.parts, self.lam = {"train": data.train, "val": data.validation}, lam
        self.rows, self.seconds = [], 0.0

    def fit_begins(self, trainer):
        started = time.perf_counter()
        self.rows.append({"epoch": trainer.epoch, **measured(trainer, self.parts, self.lam)})
        self.seconds += time.perf_counter() - started

    def epoch_ends(self, trainer, row):
        self.fit_begins(trainer)


def measured(trainer, parts, lam):
    """Loss, cost and accuracy on each part of the data."""
    W = dd.data.course_parameters(trainer.model)["W"][0]
    decay = lam * float(np.square(W, dtype=np.float64).sum())
    found = {}
    for name, part in parts.items():
        of_part = trainer.evaluate(part)
        found |= {f"{name}_loss": of_part["loss"], f"{name}_cost": of_part["loss"] + decay}
        found[f"{name}_accuracy"] = of_part["accuracy"]
    return found


def classifier(seed):
    """W of shape (10, 3072) and b of shape (10, 1) as the course draws them."""
    rng = np.random.default_rng(seed)
    model = dd.models.MLP(3072, (), 10)
    dd.data.load_course_parameters(model, rng.normal(0, 0.01, (10, 3072)), rng.normal(0, 0.01, (10, 1)))
    return model


def train(plan, data, seed, with_curve=True):
    """Train by plain gradient descent."""
    updates = -(-len(data.train[0]) // plan.batch_size)  # of an epoch
    schedule = dd.schedules.Step(plan.eta, plan.step * updates) if plan.step else None
    optimizer = dd.optim.SGD(plan.eta, weight_decay=2 * plan.lam)
    loss = Sigmoids() if plan.sigmoid else dd.losses.CrossEntropy()
    trainer = dd.Trainer(classifier(seed), optimizer, loss, schedule=schedule, seed=seed)
    curve = Curve(data, plan.lam)
    started = time.perf_counter()
    trainer.fit(
        data.train,
        epochs=plan.epochs,
        batch_size=plan.batch_size,
        augment=plan.augment,
        callbacks=[curve] if with_curve else [],
        progress=False,
    )
    seconds = time.perf_counter() - started - curve.seconds
    parts = {"train": data.train, "val": data.validation, "test": data.test}
    return Result(plan, trainer.model, curve.rows, measured(trainer, parts, plan.lam), seconds)


def search(plans, data, seed):
    """The plans' results, those of the highest validation accuracy first."""
    results = []
    for plan in plans:
        results.append(train(plan, data, seed, with_curve=False))
        print(f"{plan.name}: validation {results[-1].measures['val_accuracy']:.2%}", file=sys.stderr)
    return sorted(results, key=lambda result: -result.measures["val_accuracy"])


# ---- what is trained -------------------------------------------------------------------------------------------------


def course_plans(epochs):
    """The four runs of the assignment."""
    for lam, eta in ((0.0, 0.1), (0.0, 0.001), (0.1, 0.001), (1.0, 0.001)):
        yield Plan(f"lambda {lam:g}, eta {eta:g}", lam, eta, epochs=epochs)


def sigmoid_plans(epochs):
    """Softmax and sigmoids. The latter's gradient has the factor 1/K: a rate K times as high and a lambda of 1/K make
    up for it."""
    yield Plan("softmax, lambda 0.01, eta 0.001", 0.01, 0.001, epochs=epochs)
    yield Plan("sigmoids, lambda 0.001, eta 0.01", 0.001, 0.01, epochs=epochs, sigmoid=True)


def better_plans(epochs):
    """All images; all of them mirrored or not; and a rate that falls in steps."""
    plain = Plan("five batches, lambda 0.01, eta 0.001", 0.01, 0.001, epochs=epochs)
    yield plain
    yield replace(plain, name="the same, mirrored", augment=MIRRORED)
    step = -(-epochs // 3)
    yield replace(plain, name=f"the same, eta 0.01 / 10 every {step} epochs", eta=0.01, step=step)
    yield replace(plain, name="both", eta=0.01, step=step, augment=MIRRORED)


def grid_plans(epochs, quick):
    sizes, rates, lambdas = (20, 100, 500), (0.0003, 0.001, 0.003, 0.01), (0.0, 0.001, 0.01, 0.1)
    if quick:
        sizes, rates, lambdas = sizes[1:], rates[:2], lambdas[2:3]
    for size, eta, lam in itertools.product(sizes, rates, lambdas):
        yield Plan(f"batch {size}, eta {eta:g}, lambda {lam:g}", lam, eta, size, epochs, augment=MIRRORED)


def trained(plans, data, seed):
    results = []
    for plan in plans:
        results.append(train(plan, data, seed))
        test = results[-1].measures["test_accuracy"]
        print(f"{plan.name}: test {test:.2%}, {results[-1].seconds:.1f} s", file=sys.stderr)
    return results


def best_of_grid(images, epochs, seed, quick):
    """The settings of the grid, by their accuracy on 5,000 held out images; and the best of them for more epochs, its
    rate falling in steps."""
    found = search(grid_plans(1 if quick else 10, quick), images.all_batches(held_out=5000), seed)
    step = -(-epochs // 3)
    best = replace(found[0].plan, name=f"{found[0].plan.name} / 10 every {step}", epochs=epochs, step=step)
    return found, best


# ---- what came of it -------------------------------------------------------------------------------------------------


def table(results):
    """Loss, cost and accuracy after the last epoch, a line a classifier."""
    lines = [f"{'':<50}" + "".join(f"{part:>27}" for part in ("training", "validation", "test"))]
    lines += [f"{'':<50}" + f"{'loss':>10}{'cost':>8}{'accuracy':>9}" * 3 + f"{'time':>10}"]
    for r in results:
        numbers = "".join(
            f"{r.measures[f'{part}_loss']:>10.3f}{r.measures[f'{part}_cost']:>8.3f}{r.measures[f'{part}_accuracy']:>9.2%}"
            for part in ("train", "val", "test")
        )
        lines.append(f"{r.plan.name:<50}{numbers}{r.seconds:>8.1f} s")
    return "\n".join(lines)


def plot_curves(results, path):
    """Loss, cost and accuracy against epochs."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(15, 4.5), layout="constrained")
    for axes, quantity in zip(figure.subplots(1, 3), ("loss", "cost", "accuracy"), strict=True):
        highest = 0.0
        for i, r in enumerate(results):
            epochs = [row["epoch"] for row in r.curve]
            for part, style in (("train", "--"), ("val", "-")):
                values = [row[f"{part}_{quantity}"] for row in r.curve]
                highest = max(highest, *values[:1])
                axes.plot(epochs, values, style, color=f"C{i}", label=r.plan.name if part == "val" else None)
        axes.set(xlabel="epoch", ylabel=f"{quantity} (training dashed, validation solid)")
        if quantity != "accuracy":
            axes.set_ylim(top=1.5 * highest)  # a rate that is too high leads far above
    axes.legend()
    figure.savefig(path, dpi=120)


def probabilities(result, data):
    """What the classifier gives the classes of the test images, of shape (images, 10)."""
    if not result.plan.sigmoid:
        return dd.predict_proba(result.model, data.test[0])
    return 1 / (1 + np.exp(-result.model.predict(data.test[0]).astype(np.float64)))


def write_curves(results, path):
    """All that was measured, a line an epoch and classifier."""
    with open(path, "w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, ["name", *results[0].curve[0]])
        writer.writeheader()
        writer.writerows({"name": r.plan.name, **row} for r in results for row in r.curve)


def write_grid(found, path):
    with open(path, "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["batch_size", "eta", "lambda", "train_accuracy", "val_accuracy", "test_accuracy", "seconds"])
        for r in found:
            accuracies = [r.measures[f"{part}_accuracy"] for part in ("train", "val", "test")]
            writer.writerow([r.plan.batch_size, r.plan.eta, r.plan.lam, *accuracies, r.seconds])


def run(part, images, arguments):
    """Train what belongs to a part, and draw it."""
    seed, folder = arguments.seed, arguments.output
    if part == "course":
        results = trained(course_plans(arguments.epochs), images.one_batch(), seed)
        for i, r in enumerate(results, 1):
            dd.plots.templates(r.model, IMAGE, dd.data.CIFAR_CLASSES, folder / f"templates-{i}.png")
    elif part == "grid":
        found, best = best_of_grid(images, arguments.epochs, seed, arguments.quick)
        write_grid(found, folder / "grid.csv")
        scores = [(r.plan.name, r.measures["val_accuracy"]) for r in found[:12]]
        dd.plots.search(scores, folder / "grid-best.png")
        print("the best of the grid, by validation accuracy")
        for r in found[:5]:
            print(f"{r.plan.name:<50}{r.measures['val_accuracy']:>8.2%}")
        print()
        results = trained([best], images.all_batches(held_out=1000), seed)
    else:
        data = images.all_batches(held_out=1000)
        plans = sigmoid_plans if part == "sigmoid" else better_plans
        results = trained(plans(arguments.epochs), data, seed)
        if part == "sigmoid":
            p = {r.plan.name: probabilities(r, data) for r in results}
            dd.plots.true_class_probability(p, data.test[1], folder / "probabilities.png", bins=40)
    plot_curves(results, folder / f"{part}.png")
    return results


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", help="folder or archive of CIFAR-10 (default: $DD2424FAST_DATA)")
    parser.add_argument(
        "--parts",
        nargs="+",
        choices=PARTS,
        default=PARTS,
        help="course: its four runs on one batch; sigmoid: binary cross-entropies against softmax; better: more images,"
        " mirror images, a rate that falls; grid: a search over batch size, eta and lambda (all)",
    )
    parser.add_argument("--epochs", type=int, default=40, help="(%(default)s)")
    parser.add_argument("--quick", action="store_true", help="two epochs of few images: does everything work?")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=Path("assignment1"), metavar="FOLDER", help="(%(default)s)")
    arguments = parser.parse_args()
    if arguments.epochs < 1:
        parser.error(f"--epochs: expected at least 1, got {arguments.epochs}")
    if arguments.quick:
        arguments.epochs = 2
    try:
        images = Images.load(arguments.data, 1000 if arguments.quick else None)
    except FileNotFoundError as error:
        sys.exit(f"assignment1_softmax: {error}\nGive --data PATH, or set DD2424FAST_DATA.")
    arguments.output.mkdir(parents=True, exist_ok=True)

    results = []
    for part in arguments.parts:
        results += run(part, images, arguments)
    print(table(results))
    write_curves(results, arguments.output / "curves.csv")
    print(f"plots and curves: {arguments.output}")


if __name__ == "__main__":
    main()
