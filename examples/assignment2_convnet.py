"""The ConvNet assignment of DD2424 on CIFAR-10: networks that cut images into patches, and 3 x 3 convolutions.

    python examples/assignment2_convnet.py --data PATH

PATH is a folder with the files of CIFAR-10 for Python, or their archive cifar-10-python.tar.gz; without --data the
environment variable DD2424FAST_DATA says where they are. The last 1,000 training images are for validation. All rows
but the last ones are trained by plain gradient descent whose rate goes up and down between 1e-5 and 1e-1, in cycles of
2 x 800 updates, or each twice as long as the one before. The course's J = loss + lambda * sum(W^2) is weight_decay =
2 * lambda here.
"""

import sys
import time
from dataclasses import dataclass, field

import course

import dd2424fast as dd

BATCH_SIZE = 100
SHAPES = ((2, 3), (4, 10), (8, 40), (16, 160))  # side of a patch, filters; about as many numbers behind them


@dataclass
class Data:
    """Images of uint8, and what standardises their channels, as measured on the training images alone."""

    train: tuple
    validation: tuple
    test: tuple
    standardizer: dd.data.Standardizer

    @classmethod
    def load(cls, path, most=None):
        """At most so many images for training, and for testing."""
        (x, y), test = ((x[:most], y[:most]) for x, y in dd.data.load_cifar10(path))
        held_out = min(1000, len(x) // 10)
        scale = dd.data.Standardizer(axis=(0, 1, 2)).fit(x[:-held_out])
        parts = ((scale.transform(images), labels) for images, labels in ((x[-held_out:], y[-held_out:]), test))
        return cls((x[:-held_out], y[:-held_out]), *parts, scale)


@dataclass
class Plan:
    """One row of the table: a network and how it is trained."""

    name: str
    network: object  # a function of the seed
    schedule: object
    updates: int
    weight_decay: float = 0.0
    momentum: float = 0.0
    smoothing: float = 0.0
    changes: dict = field(default_factory=dict)  # arguments of dd.data.Augment


@dataclass
class Result:
    plan: Plan
    model: dd.nn.Module
    history: dd.History
    validation: float  # accuracies, as fractions
    test: float
    mirrored: float  # of the mean of each image's and its mirror image's probabilities
    ensemble: float | None  # of the networks at the cycles' ends
    seconds: float


def plans(kinds, quick):
    """Yield the rows of the table."""
    step, cycles, doublings = (5, 1, 2) if quick else (800, 3, 5)
    if "shapes" in kinds:
        for patch, filters in SHAPES:
            yield Plan(
                f"patches of {patch}, {filters} filters, 50 units",
                lambda seed, patch=patch, filters=filters: dd.models.PatchifyNet(patch, filters, 50, seed=seed),
                dd.schedules.Cyclic(1e-5, 1e-1, step),
                cycles * 2 * step,
                weight_decay=2 * 0.003,
            )
    if "large" in kinds:
        yield Plan(
            "patches of 4, 64 filters, 512 units",
            lambda seed: dd.models.PatchifyNet(4, 64, 512, seed=seed),
            dd.schedules.Cyclic(1e-5, 1e-1, step, growth=2),
            2 * step * (2**doublings - 1),
            weight_decay=2 * 0.0003,
            smoothing=0.1,
            changes={"flip": True, "shift": 3},
        )
    if "convnets" in kinds:
        updates, width = (10, 4) if quick else (12_000, 64)
        shapes = (((width // 2, width), 1), ((width, 2 * width, 4 * width), 2))
        for channels, convolutions in shapes:
            yield Plan(
                f"3 x 3: {' '.join(map(str, channels))}, {convolutions} a block",
                lambda seed, channels=channels, convolutions=convolutions: dd.models.ConvNet(
                    channels, 2 * width, batch_norm=True, convs_per_block=convolutions, seed=seed
                ),
                dd.schedules.OneCycle(0.1, updates),
                updates,
                weight_decay=5e-4,
                momentum=0.9,
                smoothing=0.1,
                changes={"flip": True, "shift": 4},
            )


def train(plan, data, seed):
    """Train as planned, and test."""
    model = plan.network(seed)
    optimizer = dd.optim.SGD(plan.schedule(0), plan.momentum, weight_decay=plan.weight_decay)
    loss = dd.losses.CrossEntropy(label_smoothing=plan.smoothing)
    trainer = dd.Trainer(model, optimizer, loss, schedule=plan.schedule, seed=seed)
    scale = data.standardizer
    augment = dd.data.Augment(mean=scale.mean, std=scale.std, **plan.changes)
    snapshots = dd.callbacks.Snapshots() if plan.schedule.has_cycles else None
    callbacks = [course.Limit(plan.updates), *([snapshots] if snapshots else [])]
    started = time.perf_counter()
    history = trainer.fit(
        data.train,
        data.validation,
        epochs=-(-plan.updates * BATCH_SIZE // len(data.train[0])),
        batch_size=BATCH_SIZE,
        augment=augment,
        callbacks=callbacks,
    )
    seconds = time.perf_counter() - started
    accuracies = (trainer.evaluate(part)["accuracy"] for part in (data.validation, data.test))
    mirrored = trainer.evaluate(data.test, flip=True)["accuracy"]
    ensemble = snapshots and snapshots.ensemble().evaluate(data.test, flip=True)["accuracy"]
    return Result(plan, model, history, *accuracies, mirrored, ensemble, seconds)


def table(results):
    """One line a network. The last two accuracies are of each image with its mirror image: of the network, and of all
    that it was at the ends of its cycles."""
    lines = [
        f"{'':<38}{'parameters':>11}{'updates':>9}{'validation':>12}{'test':>8}{'mirrored':>10}{'ensemble':>10}"
        f"{'time':>10}{'an update':>11}"
    ]
    for r in results:
        ensemble = "-" if r.ensemble is None else f"{r.ensemble:.2%}"
        lines.append(
            f"{r.plan.name:<38}{r.model.parameters.size:>11,}{r.plan.updates:>9,}{r.validation:>12.2%}{r.test:>8.2%}"
            f"{r.mirrored:>10.2%}{ensemble:>10}{r.seconds:>8.1f} s{1e3 * r.seconds / r.plan.updates:>8.2f} ms"
        )
    return "\n".join(lines)


def plot(results, updates, path):
    """Loss and accuracy against updates; `updates` are an epoch's."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 4.5), layout="constrained")
    for axes, quantity in zip(figure.subplots(1, 2), ("loss", "accuracy"), strict=True):
        for i, r in enumerate(r for r in results if len(r.history)):
            made = [updates * epoch for epoch in r.history["epoch"]]
            axes.plot(made, r.history[quantity], color=f"C{i}", linestyle="--", linewidth=1)
            axes.plot(made, r.history[f"val_{quantity}"], color=f"C{i}", label=r.plan.name)
        axes.set(xlabel="update", ylabel=f"{quantity} (training dashed, validation solid)")
    if axes.lines:
        axes.legend()
    figure.savefig(path, dpi=120)


def main():
    parser = course.parser(__file__, __doc__, "a few updates")
    parser.add_argument(
        "--rows",
        nargs="+",
        choices=("shapes", "large", "convnets"),
        default=["shapes", "large", "convnets"],
        help="of the table: four shapes for 3 cycles, the large one for 5 doubling ones, 3 x 3 convolutions (all)",
    )
    arguments = parser.parse_args()
    data = course.loaded(Data.load, arguments)
    arguments.output.mkdir(parents=True, exist_ok=True)

    results = []
    for plan in plans(arguments.rows, arguments.quick):
        print(f"{plan.name}: {plan.updates:,} updates", file=sys.stderr)
        results.append(train(plan, data, arguments.seed))
        results[-1].model.save(arguments.output / f"{len(results)}.safetensors")
        print(f"{plan.name}: test {results[-1].test:.2%}, {results[-1].seconds:.1f} s", file=sys.stderr)

    print(table(results))
    plot(results, -(-len(data.train[0]) // BATCH_SIZE), arguments.output / "curves.png")
    if arguments.quick:
        print(course.QUICK)
    print(f"plot and networks: {arguments.output}")


if __name__ == "__main__":
    main()
