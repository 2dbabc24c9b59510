"""Assignments 1 and 2 of DD2424 on CIFAR-10: the softmax classifier and a network of two layers.

    python examples/assignment1.py --data PATH

PATH is a folder with the files of CIFAR-10 for Python, or their archive cifar-10-python.tar.gz; without --data the
environment variable DD2424FAST_DATA says where they are. The course's J = loss + lambda * sum(W^2) is
weight_decay = 2 * lambda here.
"""

import argparse
import sys
import time
from dataclasses import dataclass

import dd2424fast as dd

BATCH_SIZE = 100
COLOURS = ("tab:blue", "tab:orange", "tab:green", "tab:red")


@dataclass
class Data:
    """Normalised rows: each pixel with mean 0 and standard deviation 1, as measured on the training images alone."""

    train: tuple
    validation: tuple
    test: tuple

    @classmethod
    def normalised(cls, train, validation, test):
        standardizer = dd.data.Standardizer().fit(_rows(train[0]))
        return cls(*((standardizer.transform(_rows(x)), y) for x, y in (train, validation, test)))


def _rows(images):
    return images.reshape(len(images), -1)


def load(path):
    """The first batch with the second one for validation, as in the assignments, and all with a tenth held out."""
    first, test = dd.data.load_cifar10(path, batches=(1,))
    second, _ = dd.data.load_cifar10(path, batches=(2,))
    everything, _ = dd.data.load_cifar10(path)
    train, validation = dd.data.train_validation_split(*everything, validation=0.1, seed=0)
    return Data.normalised(first, second, test), Data.normalised(train, validation, test)


def mirrored(x, key):
    """Half of the images, drawn anew for every batch, seen in a mirror."""
    return _rows(dd.kernels.augment_images(x.reshape(-1, 32, 32, 3), key, flip=0.5))


def train(data, hidden, weight_decay, schedule, epochs, seed, augment=None):
    """Train by plain gradient descent; returns (history, test accuracy, seconds)."""
    model = dd.models.MLP(3072, hidden, init="he" if hidden else "default", seed=seed)
    optimizer = dd.optim.SGD(lr=0.001, weight_decay=weight_decay)
    trainer = dd.Trainer(model, optimizer, schedule=schedule, seed=seed)
    started = time.perf_counter()
    history = trainer.fit(data.train, data.validation, epochs=epochs, batch_size=BATCH_SIZE, augment=augment)
    return history, trainer.evaluate(data.test)["accuracy"], time.perf_counter() - started


def experiments(first, everything, epochs):
    """(title, data, arguments of `train`) of each row of the table."""
    updates = -(-len(everything.train[0]) // BATCH_SIZE)  # of an epoch
    cycles = dd.schedules.Cyclic(1e-5, 1e-1, step_size=900)
    yield "softmax, lambda 0", first, {"hidden": (), "weight_decay": 0.0, "schedule": None, "epochs": epochs}
    yield "softmax, lambda 0.1", first, {"hidden": (), "weight_decay": 0.2, "schedule": None, "epochs": epochs}
    yield (
        "softmax, lambda 0.1, all images, mirrored",
        everything,
        {"hidden": (), "weight_decay": 0.2, "schedule": None, "epochs": epochs, "augment": mirrored},
    )
    yield (
        "3072-50-10, lambda 0.01, two cycles",
        everything,
        {"hidden": (50,), "weight_decay": 0.02, "schedule": cycles, "epochs": min(epochs, -(-4 * 900 // updates))},
    )


def plot(results, path):
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4), layout="constrained")
    loss, accuracy = figure.subplots(1, 2)
    for colour, (title, history, _, _) in zip(COLOURS, results, strict=True):
        for axes, quantity in ((loss, "loss"), (accuracy, "accuracy")):
            axes.plot(history["epoch"], history[quantity], color=colour, linestyle="--", linewidth=1)
            axes.plot(history["epoch"], history[f"val_{quantity}"], color=colour, label=title)
            axes.set(xlabel="epoch", ylabel=f"{quantity} (training dashed, validation solid)")
    loss.legend()
    figure.savefig(path, dpi=120)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", help="folder or archive of CIFAR-10 (default: $DD2424FAST_DATA)")
    parser.add_argument(
        "--epochs", type=int, default=40, help="epochs of the softmax classifiers, at most so many of the network"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", default="assignment1.png", help="the plot (default: %(default)s)")
    arguments = parser.parse_args()
    try:
        first, everything = load(arguments.data)
    except FileNotFoundError as error:
        sys.exit(f"assignment1: {error}\nGive --data PATH, or set DD2424FAST_DATA.")

    results = []
    for title, data, settings in experiments(first, everything, arguments.epochs):
        print(f"{title}: {len(data.train[0]):,} images, {settings['epochs']} epochs", file=sys.stderr)
        results.append((title, *train(data, seed=arguments.seed, **settings)))

    print(f"{'':<44}{'training':>10}{'validation':>12}{'test':>8}{'time':>9}")
    for title, history, test, seconds in results:
        last = f"{history['accuracy'][-1]:>10.1%}{history['val_accuracy'][-1]:>12.1%}"
        print(f"{title:<44}{last}{test:>8.1%}{seconds:>7.1f} s")
    plot(results, arguments.output)
    print(f"plot: {arguments.output}")


if __name__ == "__main__":
    main()
