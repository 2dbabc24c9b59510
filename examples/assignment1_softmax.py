"""Assignment 1 of DD2424 on CIFAR-10: the softmax classifier, and what the course offers beyond it.

    python examples/assignment1_softmax.py --data PATH

PATH is a folder with the files of CIFAR-10 for Python, or their archive cifar-10-python.tar.gz; without --data the
environment variable DD2424FAST_DATA says where they are. As in the course the first batch is for training, the second
one for validation, and W and b are drawn from N(0, 0.01^2); `better`, `sigmoid` and `grid` learn from all five batches.
The course's J = loss + lambda * sum(W^2), called cost here, is weight_decay = 2 * lambda.
"""

import itertools
from dataclasses import dataclass, replace

import course
import numpy as np

import dd2424fast as dd

PARTS = ("course", "sigmoid", "better", "grid")
IMAGE = (32, 32, 3)
MIRRORED = dd.data.Augment(flip=True, image=IMAGE)  # half of the images of every batch, drawn anew


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
    loss: type = dd.losses.CrossEntropy
    augment: object = None


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
    trainer = dd.Trainer(classifier(seed), optimizer, plan.loss(), schedule=schedule, seed=seed)
    curve = course.Curve({"train": data.train, "val": data.validation}, plan.lam) if with_curve else None
    return course.fit(trainer, plan, data, curve, epochs=plan.epochs, batch_size=plan.batch_size)


# ---- what is trained -------------------------------------------------------------------------------------------------


def course_plans(epochs):
    """The four runs of the assignment."""
    for lam, eta in ((0.0, 0.1), (0.0, 0.001), (0.1, 0.001), (1.0, 0.001)):
        yield Plan(f"lambda {lam:g}, eta {eta:g}", lam, eta, epochs=epochs)


def sigmoid_plans(epochs):
    """A choice among K classes by softmax, and K yes-or-no questions by sigmoids. The latter's gradient has the factor
    1/K: a rate K times as high and a lambda of 1/K make up for it."""
    yield Plan("softmax, lambda 0.01, eta 0.001", 0.01, 0.001, epochs=epochs)
    yield Plan("sigmoids, lambda 0.001, eta 0.01", 0.001, 0.01, epochs=epochs, loss=dd.losses.BinaryCrossEntropy)


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


def best_of_grid(images, epochs, seed, quick):
    """The settings of the grid, by their accuracy on 5,000 held out images; and the best of them for more epochs, its
    rate falling in steps."""
    found = course.search(train, grid_plans(1 if quick else 10, quick), images.all_batches(held_out=5000), seed)
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


def write_grid(found, path):
    rows = [{"batch_size": r.plan.batch_size, "eta": r.plan.eta, "lambda": r.plan.lam} | r.summary() for r in found]
    course.write_rows(rows, path)


def run(part, images, arguments):
    """Train what belongs to a part, and draw it."""
    seed, folder = arguments.seed, arguments.output
    if part == "course":
        results = course.trained(train, course_plans(arguments.epochs), images.one_batch(), seed)
        for i, r in enumerate(results, 1):
            dd.plots.templates(r.model, IMAGE, dd.data.CIFAR_CLASSES, folder / f"templates-{i}.png")
    elif part == "grid":
        found, best = best_of_grid(images, arguments.epochs, seed, arguments.quick)
        write_grid(found, folder / "grid.csv")
        scores = [(r.plan.name, r.accuracy("val")) for r in found[:12]]
        dd.plots.search(scores, folder / "grid-best.png")
        print("the best of the grid, by validation accuracy")
        for r in found[:5]:
            print(f"{r.plan.name:<50}{r.accuracy('val'):>8.2%}")
        print()
        results = course.trained(train, [best], images.all_batches(held_out=1000), seed)
    else:
        data = images.all_batches(held_out=1000)
        plans = sigmoid_plans if part == "sigmoid" else better_plans
        results = course.trained(train, plans(arguments.epochs), data, seed)
        if part == "sigmoid":
            p = {r.plan.name: dd.predict_proba(r.model, data.test[0], loss=r.plan.loss()) for r in results}
            dd.plots.true_class_probability(p, data.test[1], folder / "probabilities.png", bins=40)
    course.plot_curves(results, "epoch", folder / f"{part}.png", most=1.5)  # a rate too high leads far above
    return results


def main():
    parser = course.parser(__file__, __doc__, "two epochs of few images")
    parser.add_argument(
        "--parts",
        nargs="+",
        choices=PARTS,
        default=PARTS,
        help="course: its four runs on one batch; sigmoid: binary cross-entropies against softmax; better: more images,"
        " mirror images, a rate that falls; grid: a search over batch size, eta and lambda (all)",
    )
    parser.add_argument("--epochs", type=int, default=40, help="(%(default)s)")
    arguments = parser.parse_args()
    if arguments.epochs < 1:
        parser.error(f"--epochs: expected at least 1, got {arguments.epochs}")
    if arguments.quick:
        arguments.epochs = 2
    course.run_parts(run, table, arguments)


if __name__ == "__main__":
    main()
