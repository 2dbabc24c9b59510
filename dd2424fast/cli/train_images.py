"""`dd2424fast train mlp` and `dd2424fast train linear`: an MLP or a softmax classifier on images."""

from types import SimpleNamespace

import click

from .common import DATA_HELP, Numbers, command, print_json, say
from .training import (
    FRACTION,
    POSITIVE,
    check_usage,
    files_of,
    make_optimizer,
    make_schedule,
    optimizer_options,
    options_that_matter,
    patience_option,
    run,
    run_options,
    together,
)

image_options = together(
    click.option("--data", "data_name", default="digits", show_default=True, help=DATA_HELP),
    click.option(
        "--batches", type=Numbers(highest=5), help="CIFAR-10's training batches to use.  [default: 1,2,3,4,5]"
    ),
    click.option(
        "--epochs", type=click.IntRange(1), default=20, show_default=True,
        help="In all, those before --resume included.",
    ),
    click.option("--batch-size", type=click.IntRange(1), default=100, show_default=True, help="Images of an update."),
    optimizer_options("sgd"),
    click.option(
        "--label-smoothing", type=click.FloatRange(0, 1), default=0.0,
        help="Spread this much of each label over all classes.",
    ),
    click.option("--clip-norm", type=POSITIVE, help="Scale larger gradients to this norm."),
    click.option("--validation", type=FRACTION, help="Hold out this fraction of the training images."),
    patience_option,
    run_options,
)  # fmt: skip


@command(
    [
        "dd2424fast train mlp --data digits --hidden 50 --batch-norm --output digits.safetensors",
        "dd2424fast train mlp --optimizer adam --validation 0.1 --patience 5 --plot curves.png --csv curves.csv",
        "dd2424fast train mlp --schedule cyclic --low-lr 1e-5 --lr 0.1 --step-size 900 --momentum 0 --epochs 16",
        "dd2424fast train mlp --epochs 500 --checkpoint run.safetensors             (Ctrl-C saves)",
        "dd2424fast train mlp --epochs 500 --checkpoint run.safetensors --resume    (goes on, bit for bit)",
    ]
)
@click.option("--hidden", type=Numbers(), default="50", show_default=True, help="Sizes of the hidden layers.")
@click.option("--batch-norm", is_flag=True, help="Batch normalisation in the hidden layers.")
@click.option("--dropout", type=FRACTION, help="Probability of dropout in the hidden layers.")
@image_options
def mlp(**options):
    """Train a multi-layer perceptron on images, and test it.

    Pixels are normalised to mean 0 and standard deviation 1, as measured on the training images. Test loss and accuracy
    go to standard output. After Ctrl-C or SIGTERM the checkpoint and the model are saved as they are.
    """
    _train(SimpleNamespace(kind="mlp", **options))


@command(
    [
        "dd2424fast train linear --data digits --epochs 40 --output digits.safetensors",
        "dd2424fast train linear --data ~/cifar-10-batches-py --batches 1 --lr 0.001 --momentum 0 --epochs 40",
    ]
)
@image_options
def linear(**options):
    """Train a softmax classifier on images, and test it.

    Pixels are normalised to mean 0 and standard deviation 1, as measured on the training images. Test loss and accuracy
    go to standard output. After Ctrl-C or SIGTERM the checkpoint and the model are saved as they are.
    """
    _train(SimpleNamespace(kind="linear", hidden=(), batch_norm=False, dropout=None, **options))


def _train(o):
    import dd2424fast as dd

    from . import datasets

    check_usage(o)
    data = datasets.load(o.data_name, o.batches)
    x, y, held_out = data.x, data.y, None
    if o.validation:
        (x, y), held_out = dd.data.train_validation_split(x, y, validation=o.validation, seed=o.seed)
    standardizer = dd.data.Standardizer().fit(x)
    x = standardizer.transform(x)
    validation = held_out and (standardizer.transform(held_out[0]), held_out[1])

    model = dd.models.MLP(x.shape[1], o.hidden, len(data.classes), o.batch_norm, o.dropout or 0.0, seed=o.seed)
    optimizer = make_optimizer(o)
    trainer = dd.Trainer(
        model,
        optimizer,
        dd.losses.CrossEntropy(o.label_smoothing),
        clip_norm=o.clip_norm,
        schedule=make_schedule(o, optimizer.lr, updates=o.epochs * -(-len(x) // o.batch_size)),
        seed=o.seed,
    )

    def write():
        if o.output:  # the model last: where it is, its normalisation is too
            datasets.save_standardizer(standardizer, datasets.standardizer_path(o.output))
            model.save(o.output)
        if o.plot and len(trainer.history):
            trainer.history.plot(o.plot)

    run(
        o, trainer, (x, y), validation, epochs=o.epochs, what=f"{data}; {_network(model)}",
        matters=options_that_matter(o, **{"training images": len(x)}), write=write,
    )  # fmt: skip
    if trainer.stop_reason:
        say(trainer.stop_reason)
    test = trainer.evaluate((standardizer.transform(data.x_test), data.y_test))
    _print_result(o, data, trainer, test)


def _network(model):
    sizes = [layer.out_features for layer in model if hasattr(layer, "out_features")]
    return f"network {'-'.join(map(str, [model[0].in_features, *sizes]))}, {model.parameters.size:,} parameters"


def _print_result(o, data, trainer, test):
    history = trainer.history
    last = {name: values[-1] for name, values in history.columns.items()}
    seconds = sum(history["seconds"])
    if o.as_json:
        print_json(
            {
                "model": o.kind,
                "parameters": trainer.model.parameters.size,
                "data": data.name,
                "epochs": trainer.epoch,
                "updates": trainer.update,
                "seconds": seconds,
                "last_epoch": last,
                "test": test,
                "stopped": trainer.stop_reason,
                "files": files_of(o),
            }
        )
        return
    click.echo(
        f"{data.name}, {_network(trainer.model)}: {trainer.epoch} epochs, {trainer.update} updates, {seconds:.2f} s"
    )
    click.echo(f"training    loss {last['loss']:.4f}  accuracy {last['accuracy']:.2%}")
    if "val_loss" in last:
        click.echo(f"validation  loss {last['val_loss']:.4f}  accuracy {last['val_accuracy']:.2%}")
    click.echo(f"test        loss {test['loss']:.4f}  accuracy {test['accuracy']:.2%}")
    for name, path in files_of(o).items():
        click.echo(f"{name:<11} {path}")
