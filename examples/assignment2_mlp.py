"""Assignment 2 of DD2424 on CIFAR-10: networks of two layers and more, and the cyclical learning rate.

    python examples/assignment2_mlp.py --data PATH

PATH is a folder with the files of CIFAR-10 for Python, or their archive cifar-10-python.tar.gz; without --data the
environment variable DD2424FAST_DATA says where they are. The rate goes from 1e-5 to 1e-1 and back, in cycles of twice
n_s updates of 100 images each. The course's J = loss + lambda * sum(W^2), called cost here, is weight_decay = 2 *
lambda. All settings are those of the course but for the parts `optimizers`, `dropout` and `large`.
"""

import math
from dataclasses import dataclass

import course
import numpy as np

import dd2424fast as dd

PARTS = ("cycles", "search", "depth", "init", "optimizers", "dropout", "large")
LOW, HIGH = 1e-5, 1e-1
DEEP = (50, 30, 20, 20, 10, 10, 10, 10)  # hidden layers of the network of nine
MEASURED = 10_000  # training images that a curve is measured on


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
    x, y = data.train
    parts = {"train": (x[:MEASURED], y[:MEASURED]), "val": data.validation}
    curve = course.Curve(parts, plan.lam, plan.every) if with_curve else None
    epochs, limit = -(-plan.updates // data.updates), course.Limit(plan.updates)
    return course.fit(trainer, plan, data, curve, epochs=epochs, batch_size=course.BATCH_SIZE, callbacks=[limit])


# ---- lambda ----------------------------------------------------------------------------------------------------------


def coarse_to_fine(data, count, cycles, seed):
    """Two searches for lambda, whose logarithm is drawn from a range: first from 1e-5 to 1e-1, then around the best
    three; each trains side by side. Returns the results of both."""
    step = 2 * data.updates
    rng = np.random.default_rng(seed)

    def plans(low, high, cycles):
        for exponent in rng.uniform(low, high, count):
            yield cyclic(f"lambda {10**exponent:.3g}", step, cycles, lam=10**exponent)

    coarse = course.search(train, plans(-5, -1, cycles), data, seed, dd.side_by_side)
    around = [math.log10(result.plan.lam) for result in coarse[:3]]
    finer = plans(min(around) - 0.1, max(around) + 0.1, cycles + 1)
    return coarse, course.search(train, finer, data, seed, dd.side_by_side)


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
        results = course.trained(train, cycles_plans(quick), images.one_batch(), seed)
    elif part == "search":
        results = run_search(images, folder, seed, quick)
    elif part in ("depth", "init"):
        data = images.all_batches(held_out=5000)
        step = 5 if quick else 5 * data.updates
        results = course.trained(train, (depth_plans if part == "depth" else init_plans)(step), data, seed)
    else:
        data = images.all_batches(held_out=1000)
        step = 5 if quick else 2 * data.updates
        if part == "large":
            updates, hidden = (10, (16, 8)) if quick else (30 * data.updates, (1024, 512))
            plans = [large_plan(updates, hidden, max(1, data.updates))]
        else:
            plans = (optimizer_plans if part == "optimizers" else dropout_plans)(step)
        results = course.trained(train, plans, data, seed)
        if part == "large":
            (x, y), names = data.test, dd.data.CIFAR_CLASSES
            predicted = results[0].model.predict(x).argmax(axis=1)
            dd.plots.confusion_matrix(y, predicted, folder / "confusion.png", names=names)
    course.plot_curves(results, "update", folder / f"{part}.png")
    return results


def run_search(images, folder, seed, quick):
    """Search for lambda, and train three cycles with the best."""
    count, cycles = (3, 1) if quick else (20, 2)
    coarse, fine = coarse_to_fine(images.all_batches(held_out=5000), count, cycles, seed)
    for name, found in (("coarse", coarse), ("fine", fine)):
        print(f"the best of the {name} search, by validation accuracy")
        for r in found[:3]:
            print(f"{r.plan.name:<28}{r.accuracy('val'):>8.2%}")
        print()
    write_search(coarse, fine, folder / "search.csv")
    plot_search(coarse, fine, folder / "lambdas.png")
    data, lam = images.all_batches(held_out=1000), fine[0].plan.lam
    step = 2 * data.updates
    return course.trained(train, [cyclic(f"50, n_s {step}, 3 cycles, lambda {lam:.3g}", step, 3, lam=lam)], data, seed)


# ---- what came of it -------------------------------------------------------------------------------------------------


def table(results):
    """One line a network."""
    head = f"{'':<44}{'parameters':>11}{'updates':>9}{'training':>10}{'validation':>12}{'test':>8}{'time':>10}"
    lines = [head + f"{'an update':>12}"]
    lines += [
        f"{r.plan.name:<44}{r.model.parameters.size:>11,}{r.plan.updates:>9,}{r.accuracy('train'):>10.2%}"
        f"{r.accuracy('val'):>12.2%}{r.accuracy('test'):>8.2%}"
        f"{r.seconds:>8.1f} s{1e3 * r.seconds / r.plan.updates:>9.3f} ms"
        for r in results
    ]
    return "\n".join(lines)


def plot_search(coarse, fine, path):
    """Validation accuracy against lambda."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    for name, found in (("coarse", coarse), ("fine, one more cycle", fine)):
        axes.plot([r.plan.lam for r in found], [r.accuracy("val") for r in found], "o", label=name)
    axes.set(xlabel="lambda", ylabel="validation accuracy", xscale="log")
    axes.legend()
    figure.savefig(path, dpi=120)


def write_search(coarse, fine, path):
    both = [("coarse", r) for r in coarse] + [("fine", r) for r in fine]
    rows = [{"search": name, "lambda": r.plan.lam, "updates": r.plan.updates} | r.summary() for name, r in both]
    course.write_rows(rows, path)


def main():
    parser = course.parser(__file__, __doc__, "a few updates")
    parser.add_argument(
        "--parts",
        nargs="+",
        choices=PARTS,
        default=PARTS,
        help="cycles: the course's figures on one batch; search: for lambda, and three cycles with the best; depth:"
        " three layers and nine, with batch norm and without; init: the same for three deviations of the first weights;"
        " optimizers; dropout; large: 1024 and 512 hidden units (all)",
    )
    course.run_parts(run, table, parser.parse_args())


if __name__ == "__main__":
    main()
