"""Transfer learning on CIFAR-10: a ConvNet that has seen seven classes learns the other three from 50 images each.

    python examples/assignment4_transfer.py --data PATH

PATH is a folder with the files of CIFAR-10 for Python, or their archive cifar-10-python.tar.gz; without --data the
environment variable DD2424FAST_DATA says where they are. Three ways are compared, each on several draws of the few
images: the same network from scratch; a new head on the frozen features, which are computed once; and all of the
network fine-tuned, the old layers at a tenth of the head's learning rate. All 1,000 test images of each of the three
classes are for testing.
"""

import sys
import time
from dataclasses import dataclass
from pathlib import Path

import course
import numpy as np

import dd2424fast as dd
from dd2424fast.metrics import half_interval

FEW = ("dog", "horse", "truck")  # the classes to be learned from few images
WAYS = ("from scratch", "frozen features", "fine-tuned")


@dataclass
class Settings:
    channels: tuple = (32, 64, 128)
    hidden: int = 128
    epochs: int = 12  # on the seven classes
    images: int = 50  # of each of the three classes
    few_epochs: int = 60
    every: int = 5  # epochs between two tests
    batch_size: int = 25
    lr: float = 0.02  # the highest, of the three classes
    draws: int = 5
    most: int = 50_000  # images that are read


QUICK = Settings(channels=(4, 8), hidden=8, epochs=1, images=4, few_epochs=2, every=1, batch_size=6, draws=2, most=1000)


@dataclass
class Run:
    """One way on one draw: the test accuracy every few epochs, as fractions, and the time of an epoch's updates."""

    way: str
    accuracy: list
    seconds: float


def network(settings, classes, seed):
    """A ConvNet of two 3 x 3 convolutions a block."""
    return dd.models.ConvNet(settings.channels, settings.hidden, classes, batch_norm=True, convs_per_block=2, seed=seed)


def of_classes(data, names):
    """The images of some classes, their labels counted anew."""
    x, y = data
    wanted = np.array([dd.data.CIFAR_CLASSES.index(name) for name in names])
    rows = np.flatnonzero(np.isin(y, wanted))
    return x[rows], np.searchsorted(wanted, y[rows])


def drawn(data, images, seed):
    """So many images of each class."""
    x, y = data
    rng = np.random.default_rng(seed)
    rows = np.concatenate([rng.choice(np.flatnonzero(y == label), images, replace=False) for label in np.unique(y)])
    return x[rows], y[rows]


def augmentation(scale):
    """Mirror and shift images of uint8, and standardise them."""
    return dd.data.Augment(flip=True, shift=4, mean=scale.mean, std=scale.std)


# ---- the seven classes -----------------------------------------------------------------------------------------------


def learn_many(train, test, settings, scale, seed):
    """A network trained on the seven classes, and its test accuracy."""
    model = network(settings, 7, seed)
    updates = settings.epochs * -(-len(train[0]) // 100)
    schedule = dd.schedules.OneCycle(0.1, updates)
    trainer = dd.Trainer(model, dd.optim.SGD(0.1, momentum=0.9, weight_decay=5e-4), schedule=schedule, seed=seed)
    trainer.fit(train, epochs=settings.epochs, augment=augmentation(scale))
    return model, trainer.evaluate((scale.transform(test[0]), test[1]))["accuracy"]


# ---- the three classes -----------------------------------------------------------------------------------------------


def few_network(way, source, settings, seed):
    """A network of three classes; but for training from scratch, with all but the head from `source`."""
    model = network(settings, 3, seed)
    head = dd.transfer.head_of(model)
    if way != "from scratch":
        dd.transfer.load_weights(model, source, skip=head)
    if way == "frozen features":
        model.freeze()
        model.unfreeze(head)
    if way == "fine-tuned":
        model.set_rates({"": 0.1, head: 1.0})
    return model


def learn_few(way, source, train, test, settings, scale, seed, cache):
    """Learn three classes from few images in one of the three ways; `source` is the network of the seven."""
    model = few_network(way, source, settings, seed)
    if way != "frozen features":
        return fit(way, model, train, test, settings, augmentation(scale), seed)
    x = dd.transfer.features(model, scale.transform(train[0]), cache=cache / f"features-{seed}.safetensors")
    x_test = dd.transfer.features(model, test[0], cache=cache / "features-test.safetensors")
    _, head = dd.transfer.split(model)
    return fit(way, head, (x, train[1]), (x_test, test[1]), settings, None, seed)


def fit(way, model, train, test, settings, augment, seed):
    updates = settings.few_epochs * -(-len(train[0]) // settings.batch_size)
    schedule = dd.schedules.OneCycle(settings.lr, updates)
    trainer = dd.Trainer(model, dd.optim.SGD(0.1, momentum=0.9, weight_decay=5e-4), schedule=schedule, seed=seed)
    accuracy, seconds = [], 0.0
    for _ in range(settings.few_epochs // settings.every):
        started = time.perf_counter()
        trainer.fit(train, epochs=settings.every, batch_size=settings.batch_size, augment=augment, progress=False)
        seconds += time.perf_counter() - started
        accuracy.append(trainer.evaluate(test)["accuracy"])
    return Run(way, accuracy, seconds / settings.few_epochs)


def whole_epoch(source, train, settings, scale, seed):
    """Seconds of an epoch in which the head is trained behind the frozen layers, without features kept."""
    model = few_network("frozen features", source, settings, seed)
    trainer = dd.Trainer(model, dd.optim.SGD(settings.lr, momentum=0.9, weight_decay=5e-4), seed=seed)
    x = scale.transform(train[0])
    history = trainer.fit((x, train[1]), epochs=5, batch_size=settings.batch_size, progress=False)
    return float(np.median(history["seconds"]))


# ---- what came of it -------------------------------------------------------------------------------------------------


def interval(values):
    """(mean, half of its 95 % confidence interval by Student's t distribution)."""
    return float(np.mean(values)), half_interval(values)


def table(runs):
    """One line a way: the mean test accuracy at the end over the draws, its 95 % interval, and the difference to
    training from scratch, draw by draw."""
    last = {way: [run.accuracy[-1] for run in runs if run.way == way] for way in WAYS}
    lines = [f"{'':<18}{'test accuracy':>18}{'against scratch':>20}{'an epoch':>12}"]
    for way, found in last.items():
        mean, half = interval(found)
        more, around = interval(np.subtract(found, last["from scratch"]))
        against = "" if way == "from scratch" else f"{100 * more:+.1f} +- {100 * around:.1f}"
        seconds = np.median([run.seconds for run in runs if run.way == way])
        lines.append(f"{way:<18}{f'{mean:.1%} +- {half:.1%}':>18}{against:>20}{1e3 * seconds:>9.1f} ms")
    return "\n".join(lines)


def plot(runs, every, path):
    """The test accuracy against epochs: the mean over the draws, and the range of them."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    for way in WAYS:
        curves = np.array([run.accuracy for run in runs if run.way == way])
        epochs = every * np.arange(1, curves.shape[1] + 1)
        (line,) = axes.plot(epochs, curves.mean(axis=0), label=way)
        axes.fill_between(epochs, curves.min(axis=0), curves.max(axis=0), color=line.get_color(), alpha=0.2)
    axes.set(xlabel="epoch", ylabel="test accuracy of three classes")
    axes.legend()
    figure.savefig(path, dpi=120)


def main():
    parser = course.parser(__file__, __doc__, "a small network, a few updates")
    parser.add_argument(
        "--source", type=Path, metavar="FILE", help="a network of the seven classes, as OUTPUT/source.safetensors"
    )
    parser.add_argument("--epochs", type=int, default=Settings.epochs, help="on the seven classes (%(default)s)")
    parser.add_argument("--draws", type=int, default=Settings.draws, help="of the few images (%(default)s)")
    arguments = parser.parse_args()
    for name in ("epochs", "draws"):
        if getattr(arguments, name) < 1:
            parser.error(f"--{name}: expected at least 1, got {getattr(arguments, name)}")
    settings = QUICK if arguments.quick else Settings(epochs=arguments.epochs, draws=arguments.draws)
    train, test = course.loaded(
        lambda path, _: [(x[: settings.most], y[: settings.most]) for x, y in dd.data.load_cifar10(path)], arguments
    )
    arguments.output.mkdir(parents=True, exist_ok=True)

    many = [name for name in dd.data.CIFAR_CLASSES if name not in FEW]
    x, y = of_classes(train, many)
    scale = dd.data.Standardizer(axis=(0, 1, 2)).fit(x)
    if arguments.source:
        source = dd.models.ConvNet.load(arguments.source)
    else:
        source, accuracy = learn_many((x, y), of_classes(test, many), settings, scale, arguments.seed)
        source.save(arguments.output / "source.safetensors")
        print(f"seven classes, {len(x):,} images, {settings.epochs} epochs: test accuracy {accuracy:.1%}")
    few, (x_test, y_test) = of_classes(train, FEW), of_classes(test, FEW)
    x_test = scale.transform(x_test)

    runs = []
    for draw in range(settings.draws):
        seed = arguments.seed + draw
        chosen = drawn(few, settings.images, seed)
        for way in WAYS:
            runs.append(learn_few(way, source, chosen, (x_test, y_test), settings, scale, seed, arguments.output))
            print(f"draw {draw + 1} of {settings.draws}, {way}: {runs[-1].accuracy[-1]:.1%}", file=sys.stderr)
    whole = whole_epoch(source, chosen, settings, scale, seed)
    print(f"\n{', '.join(FEW)} from {settings.images} images each, {settings.draws} draws\n\n{table(runs)}")
    print(f"An epoch of the head behind the frozen layers, without kept features: {1e3 * whole:.1f} ms")
    plot(runs, settings.every, arguments.output / "curves.png")
    if arguments.quick:
        print(course.QUICK)
    print(f"\nplot and network: {arguments.output}")


if __name__ == "__main__":
    main()
