"""`dd2424fast gradcheck`: backpropagation against central differences."""

import click

from .common import Numbers, command, json_option, print_json, seed_option, threads_option


@command(
    [
        "dd2424fast gradcheck",
        "dd2424fast gradcheck --hidden 8,7,6 --batch-norm --dropout 0.3",
        "dd2424fast gradcheck --features 300 --hidden 200 --directions 5",
        "dd2424fast gradcheck --backend numpy --json",
    ]
)
@click.option(
    "--hidden", type=Numbers(empty=True), default="5,4", show_default=True, help="Sizes of the hidden layers, or none."
)
@click.option("--features", type=click.IntRange(1), default=6, show_default=True, help="Size of the input.")
@click.option("--classes", type=click.IntRange(2), default=3, show_default=True, help="Size of the output.")
@click.option("--rows", type=click.IntRange(1), default=7, show_default=True, help="Size of the batch.")
@click.option("--batch-norm", is_flag=True, help="Batch normalisation in the hidden layers.")
@click.option("--dropout", type=click.FloatRange(0, 1, max_open=True), default=0.0, help="Probability of dropout.")
@click.option("--label-smoothing", type=click.FloatRange(0, 1), default=0.0, help="Of the cross-entropy.")
@click.option(
    "--backend", type=click.Choice(["fast", "numpy"]), default="fast", show_default=True, help="Kernels to check."
)
@click.option(
    "--tolerance",
    type=click.FloatRange(0, min_open=True),
    default=1e-5,
    show_default=True,
    help="Largest relative error.",
)
@click.option(
    "--directions",
    type=click.IntRange(0),
    default=0,
    help="Instead of entries, so many random directions of each parameter: for large networks.",
)
@seed_option
@threads_option
@json_option
@click.pass_context
def gradcheck(
    ctx,
    hidden,
    features,
    classes,
    rows,
    batch_norm,
    dropout,
    label_smoothing,
    backend,
    tolerance,
    directions,
    seed,
    as_json,
):
    """Check the gradients of a small float64 network on random data.

    Every entry's derivative by backpropagation is compared with the central difference of the loss. Exits with 1 where
    one differs, and says what is known of the mistake. Gradients of your own: dd.gradcheck_function in Python.
    """
    import numpy as np

    import dd2424fast as dd

    model = dd.models.MLP(features, hidden, classes, batch_norm, dropout, dtype="float64", seed=seed)
    rng = np.random.default_rng(seed)
    x, y = rng.standard_normal((rows, features)), rng.integers(classes, size=rows)
    with dd.backend(backend):
        report = dd.gradcheck(
            model,
            x,
            y,
            loss=dd.losses.CrossEntropy(label_smoothing),
            tolerance=tolerance,
            directions=directions,
            seed=seed,
            check_input=True,
        )
    if as_json:
        print_json(vars(report))
    else:
        click.echo(report)
    ctx.exit(0 if report else 1)
