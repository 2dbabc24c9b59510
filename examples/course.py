"""What the scripts of the assignments share: CIFAR-10 as the course has it, trainings with curves of loss, cost and
accuracy, and the command line."""

import argparse
import csv
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

import dd2424fast as dd
from dd2424fast.data.cifar10 import URL

BATCH_SIZE = 100
QUICK = "--quick: a few updates on a few images show that everything works; the accuracies mean nothing"


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
    def load(cls, path, most=None):
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
class Result:
    """What a plan came to: the plan says its name, its lambda `lam`, and how images are changed, `augment`."""

    plan: object
    model: dd.nn.Module
    curve: list  # of {"epoch" or "update" and "lr", "train_loss", "train_cost", "train_accuracy", "val_loss", ...}
    measures: dict  # the same of "train", "val" and "test" after the last update
    seconds: float  # of the updates

    def accuracy(self, part):
        return self.measures[f"{part}_accuracy"]

    def summary(self):
        """Accuracies and seconds, for a file."""
        accuracies = {f"{part}_accuracy": self.accuracy(part) for part in ("train", "val", "test")}
        return {**accuracies, "seconds": self.seconds}


class Limit(dd.callbacks.Callback):
    """End training after so many updates, within an epoch."""

    def __init__(self, updates):
        self.last_update = updates

    def update_ends(self, trainer, loss):
        if trainer.update == self.last_update:
            trainer.stop_reason = "all updates were made"


class Curve(dd.callbacks.Callback):
    """Measures the network on these parts of the data before the first update, and then after every epoch or after
    every so many updates."""

    def __init__(self, parts, lam, every=None):
        self.parts, self.lam, self.every = parts, lam, every
        self.rows, self.seconds = [], 0.0

    def fit_begins(self, trainer):
        self._measure(trainer)

    def update_ends(self, trainer, loss):
        if self.every and trainer.update % self.every == 0:
            self._measure(trainer)

    def epoch_ends(self, trainer, row):
        if not self.every:
            self._measure(trainer)

    def _measure(self, trainer):
        started = time.perf_counter()
        when = {"epoch": trainer.epoch}
        if self.every:
            rate = trainer.optimizer.lr if trainer.schedule is None else trainer.schedule(max(0, trainer.update - 1))
            when = {"update": trainer.update, "lr": rate}
        self.rows.append(when | measured(trainer, self.parts, self.lam))
        self.seconds += time.perf_counter() - started


def measured(trainer, parts, lam):
    """Loss, cost and accuracy on each part of the data."""
    weights = dd.data.course_parameters(trainer.model)["W"]
    decay = lam * sum(float(np.square(W, dtype=np.float64).sum()) for W in weights)
    found = {}
    for name, part in parts.items():
        of_part = trainer.evaluate(part)
        found |= {f"{name}_loss": of_part["loss"], f"{name}_cost": of_part["loss"] + decay}
        found[f"{name}_accuracy"] = of_part["accuracy"]
    return found


def fit(trainer, plan, data, curve=None, callbacks=(), **options):
    """Train as planned; `options` are those of Trainer.fit."""
    callbacks = [*callbacks, curve] if curve else callbacks
    started = time.perf_counter()
    trainer.fit(data.train, augment=plan.augment, callbacks=callbacks, progress=False, **options)
    seconds = time.perf_counter() - started - (curve.seconds if curve else 0.0)
    parts = {"train": data.train, "val": data.validation, "test": data.test}
    rows = curve.rows if curve else []
    return Result(plan, trainer.model, rows, measured(trainer, parts, plan.lam), seconds)


def trained(train, plans, data, seed):
    """The plans' results."""
    results = []
    for plan in plans:
        results.append(train(plan, data, seed))
        print(f"{plan.name}: test {results[-1].accuracy('test'):.2%}, {results[-1].seconds:.1f} s", file=sys.stderr)
    return results


def search(train, plans, data, seed, each=map):
    """The plans' results, those of the highest validation accuracy first. `each` applies a function to all plans: map,
    or dd.side_by_side."""

    def tried(plan):
        result = train(plan, data, seed, with_curve=False)
        print(f"{plan.name}: validation {result.accuracy('val'):.2%}\n", end="", file=sys.stderr)  # in one piece
        return result

    return sorted(each(tried, plans), key=lambda result: -result.accuracy("val"))


# ---- what came of it -------------------------------------------------------------------------------------------------


def plot_curves(results, x, path, most=None):
    """Loss, cost and accuracy against epochs or updates; loss and cost up to so many times the highest first one."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(15, 4.5), layout="constrained")
    for axes, quantity in zip(figure.subplots(1, 3), ("loss", "cost", "accuracy"), strict=True):
        for i, r in enumerate(results):
            for part, style in (("train", "--"), ("val", "-")):
                points = [(row[x], row[f"{part}_{quantity}"]) for row in r.curve]
                label = r.plan.name if part == "val" else None
                axes.plot(*zip(*points, strict=True), style, color=f"C{i}", label=label)
        axes.set(xlabel=x, ylabel=f"{quantity} (training dashed, validation solid)")
        if most and quantity != "accuracy":
            first = (r.curve[0][f"{part}_{quantity}"] for r in results for part in ("train", "val"))
            axes.set_ylim(top=most * max(first))
    axes.legend()
    figure.savefig(path, dpi=120)


def write_rows(rows, path):
    """A CSV file of dicts."""
    with open(path, "w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)


# ---- command line ----------------------------------------------------------------------------------------------------


def parser(script, description, quick):
    """Of the arguments that all scripts on CIFAR-10 have; `quick` says what is done then."""
    name = Path(script).stem
    made = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.set_defaults(script=name)
    made.add_argument("--data", help="folder or archive of CIFAR-10 (default: $DD2424FAST_DATA)")
    made.add_argument("--quick", action="store_true", help=f"{quick}: does everything work?")
    made.add_argument("--seed", type=int, default=0)
    made.add_argument("--output", type=Path, default=Path(name), metavar="FOLDER", help="(%(default)s)")
    return made


def loaded(load, arguments):
    """What load(path, most) gives, a thousand images at most where it is to be quick; ends where there are none."""
    try:
        return load(arguments.data, 1000 if arguments.quick else None)
    except FileNotFoundError as error:
        sys.exit(
            f"{arguments.script}: {error}\nTo fetch them (170 MB): curl -O {URL}\n"
            "Give --data PATH, or set DD2424FAST_DATA."
        )


def run_parts(run, table, arguments):
    """run(part, images, arguments) trains what belongs to a part, and draws it."""
    images = loaded(Images.load, arguments)
    arguments.output.mkdir(parents=True, exist_ok=True)
    results = [result for part in arguments.parts for result in run(part, images, arguments)]
    print(table(results))
    rows = [{"name": result.plan.name, **row} for result in results for row in result.curve]
    write_rows(rows, arguments.output / "curves.csv")
    if arguments.quick:
        print(QUICK)
    print(f"plots and curves: {arguments.output}")
