"""`dd2424fast profile`: where the time of an update goes."""

import click

from .common import command, json_option, print_json, seed_option, threads_option

MODELS = {
    "linear": {"hidden": ()},
    "mlp": {"hidden": (50,)},
    "mlp_bn": {"hidden": (50, 50), "batch_norm": True},
}


@command(["dd2424fast profile", "dd2424fast profile --model mlp_bn --updates 1000 --threads 1"])
@click.option(
    "--model",
    "name",
    type=click.Choice(list(MODELS)),
    default="mlp",
    show_default=True,
    help="Network on CIFAR-10's shape.",
)
@click.option(
    "--updates", type=click.IntRange(1), default=300, show_default=True, help="Updates to measure, after a warm-up."
)
@click.option("--batch-size", type=click.IntRange(1), default=100, show_default=True, help="Rows of a batch.")
@seed_option
@threads_option
@json_option
def profile(name, updates, batch_size, seed, as_json):
    """Time every kernel of a training update, on random data.

    `linear` is the softmax classifier 3072-10, `mlp` is 3072-50-10, `mlp_bn` is 3072-50-50-10 with batch normalisation;
    all are trained by SGD with momentum. `of peak` compares with what this machine can do, as measured at the end.
    """
    import numpy as np

    import dd2424fast as dd

    trainer = dd.Trainer(dd.models.MLP(3072, **MODELS[name], seed=seed), dd.optim.SGD(0.01, momentum=0.9), seed=seed)
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((batch_size, 3072), dtype=np.float32)
    y = rng.integers(10, size=batch_size)
    for _ in range(20):
        trainer.step(x, y)
    with dd.profile() as report:
        for _ in range(updates):
            trainer.step(x, y)
    if as_json:
        rows = {
            "kernels": report.rows(),
            "seconds": report.seconds,
            "updates": updates,
            "threads": dd.get_num_threads(),
        }
        print_json({"model": name, **rows})
        return
    click.echo(
        f"{name}: {1e6 * report.seconds / updates:.0f} us an update, {updates} updates, {dd.get_num_threads()} threads"
    )
    click.echo(report.table())
