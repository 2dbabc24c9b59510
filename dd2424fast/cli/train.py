"""`dd2424fast train`: an MLP or a softmax classifier on images."""

from types import SimpleNamespace

import click

from .common import (
    DATA_HELP,
    Numbers,
    OutputFile,
    PlotFile,
    command,
    json_option,
    print_json,
    say,
    seed_option,
    threads_option,
)

OPTIMIZERS = {
    "sgd": "SGD",
    "adam": "Adam",
    "adamw": "AdamW",
    "nadam": "NAdam",
    "rmsprop": "RMSprop",
    "adagrad": "Adagrad",
    "adadelta": "Adadelta",
}
# The options that belong to one choice; given with another they would be ignored, and are refused instead.
OF_MODEL = {"mlp": ("hidden", "batch_norm", "dropout"), "linear": ()}
OF_OPTIMIZER = {"sgd": ("momentum", "nesterov")}
OF_SCHEDULE = {
    "constant": (),
    "step": ("step_size", "factor"),
    "cosine": ("low_lr",),
    "cyclic": ("step_size", "low_lr"),
}

POSITIVE = click.FloatRange(0, min_open=True)
FRACTION = click.FloatRange(0, 1, min_open=True, max_open=True)


@command(
    [
        "dd2424fast train mlp --data digits --hidden 50 --batch-norm --output digits.safetensors",
        "dd2424fast train linear --data ~/cifar-10-batches-py --batches 1 --lr 0.001 --momentum 0 --epochs 40",
        "dd2424fast train mlp --optimizer adam --validation 0.1 --patience 5 --plot curves.png --csv curves.csv",
        "dd2424fast train mlp --schedule cyclic --low-lr 1e-5 --lr 0.1 --step-size 900 --momentum 0 --epochs 16",
        "dd2424fast train mlp --epochs 500 --checkpoint run.safetensors             (Ctrl-C saves)",
        "dd2424fast train mlp --epochs 500 --checkpoint run.safetensors --resume    (goes on, bit for bit)",
    ]
)
@click.argument("kind", metavar="mlp|linear", type=click.Choice(list(OF_MODEL)))
@click.option("--data", "data_name", default="digits", show_default=True, help=DATA_HELP)
@click.option("--batches", type=Numbers(highest=5), help="CIFAR-10's training batches to use.  [default: 1,2,3,4,5]")
@click.option("--hidden", type=Numbers(), help="Sizes of the hidden layers.  [default: 50]")
@click.option("--batch-norm", is_flag=True, help="Batch normalisation in the hidden layers.")
@click.option("--dropout", type=FRACTION, help="Probability of dropout in the hidden layers.")
@click.option(
    "--epochs", type=click.IntRange(1), default=20, show_default=True, help="In all, those before --resume included."
)
@click.option("--batch-size", type=click.IntRange(1), default=100, show_default=True, help="Images of an update.")
@click.option(
    "--optimizer",
    type=click.Choice(list(OPTIMIZERS)),
    default="sgd",
    show_default=True,
    help="How gradients become updates.",
)
@click.option("--lr", type=POSITIVE, help="Learning rate.  [default: 0.01 for sgd, else PyTorch's for that optimizer]")
@click.option("--momentum", type=click.FloatRange(0, 1, max_open=True), help="Of sgd.  [default: 0.9]")
@click.option("--nesterov", is_flag=True, help="Nesterov's momentum, with sgd.")
@click.option(
    "--weight-decay", type=click.FloatRange(0), help="Added times W to the gradient; the course's lambda is half of it."
)
@click.option(
    "--schedule",
    type=click.Choice(list(OF_SCHEDULE)),
    default="constant",
    show_default=True,
    help="Of the learning rate.",
)
@click.option("--step-size", type=click.IntRange(1), help="Updates between two steps, or of half a cycle.")
@click.option("--factor", type=POSITIVE, help="Of each step.  [default: 0.1]")
@click.option("--low-lr", type=click.FloatRange(0), help="Lowest rate of cosine and cyclic.  [default: 0]")
@click.option(
    "--label-smoothing",
    type=click.FloatRange(0, 1),
    default=0.0,
    help="Spread this much of each label over all classes.",
)
@click.option("--clip-norm", type=POSITIVE, help="Scale larger gradients to this norm.")
@click.option("--validation", type=FRACTION, help="Hold out this fraction of the training images.")
@click.option(
    "--patience",
    type=click.IntRange(1),
    help="Stop after so many epochs without a lower validation loss; keep the best weights.",
)
@click.option("--checkpoint", type=OutputFile(), help="Save the training here, every epoch and when interrupted.")
@click.option(
    "--checkpoint-every", type=click.IntRange(1), metavar="UPDATES", help="Save it every so many updates too."
)
@click.option("--resume", is_flag=True, help="Go on from --checkpoint; give the same options.")
@click.option("--output", type=OutputFile(), help="Save the model here, its normalisation beside it.")
@click.option("--csv", type=OutputFile(), help="Write the epochs' numbers here.")
@click.option("--plot", type=PlotFile(), help="Draw the epochs' loss and accuracy here.")
@click.option("--quiet", is_flag=True, help="No progress.")
@seed_option
@threads_option
@json_option
def train(**options):
    """Train an MLP or a softmax classifier, and test it.

    Pixels are normalised to mean 0 and standard deviation 1, as measured on the training images. Test loss and accuracy
    go to standard output. After Ctrl-C or SIGTERM the checkpoint and the model are saved as they are.
    """
    import dd2424fast as dd

    from . import datasets
    from .callbacks import SameOptions, StopOnSignal

    o = SimpleNamespace(**options)
    _check_usage(o)
    data = datasets.load(o.data_name, o.batches)
    x, y, held_out = data.x, data.y, None
    if o.validation:
        (x, y), held_out = dd.data.train_validation_split(x, y, validation=o.validation, seed=o.seed)
    standardizer = dd.data.Standardizer().fit(x)
    x = standardizer.transform(x)
    validation = held_out and (standardizer.transform(held_out[0]), held_out[1])

    trainer = _trainer(o, x.shape[1], len(data.classes), updates=o.epochs * -(-len(x) // o.batch_size))
    if o.resume:
        trainer.load_checkpoint(o.checkpoint)
    if not o.quiet:
        say(f"{data}; {_network(trainer.model)}" + (f"; going on from update {trainer.update}" if o.resume else ""))
    stop = StopOnSignal()
    with stop.listening():
        trainer.fit(
            (x, y), validation, epochs=o.epochs, batch_size=o.batch_size, progress=not o.quiet,
            callbacks=[SameOptions(_options_that_matter(options, len(x))), stop, *_callbacks(o)],
        )  # fmt: skip
    _write_files(o, trainer, standardizer)
    if trainer.stop_reason == "interrupted":
        kept = [str(path) for path in (o.checkpoint, o.output) if path]
        say(f"interrupted in epoch {trainer.epoch + 1}, after update {trainer.update}; saved: {', '.join(kept) or '-'}")
        raise click.exceptions.Exit(143 if stop.received else 130)
    if trainer.stop_reason:
        say(trainer.stop_reason)
    test = trainer.evaluate((standardizer.transform(data.x_test), data.y_test))
    _print_result(o, data, trainer, test)


def _check_usage(o):
    given = {name for name, value in vars(o).items() if value is not None and value is not False}
    for choice, table in ((o.kind, OF_MODEL), (o.optimizer, OF_OPTIMIZER), (o.schedule, OF_SCHEDULE)):
        allowed = table.get(choice, ())
        for name in sorted({name for names in table.values() for name in names} & given - {*allowed}):
            raise click.UsageError(f"--{name.replace('_', '-')} has no effect with {choice}")
    if "step_size" in OF_SCHEDULE[o.schedule] and not o.step_size:
        raise click.UsageError(f"--schedule {o.schedule} needs --step-size")
    for name, needed in (("patience", "validation"), ("resume", "checkpoint"), ("checkpoint_every", "checkpoint")):
        if name in given and needed not in given:
            raise click.UsageError(f"--{name.replace('_', '-')} needs --{needed}")
    if o.checkpoint and o.checkpoint.exists() and not o.resume:
        raise click.UsageError(f"{o.checkpoint} exists: add --resume to go on from it, or remove it")


def _trainer(o, features, classes, updates):
    import dd2424fast as dd

    if o.kind == "linear":
        model = dd.models.MLP(features, (), classes, seed=o.seed)
    else:
        model = dd.models.MLP(features, o.hidden or (50,), classes, o.batch_norm, o.dropout or 0.0, seed=o.seed)
    optimizer = _optimizer(o)
    return dd.Trainer(
        model,
        optimizer,
        dd.losses.CrossEntropy(o.label_smoothing),
        clip_norm=o.clip_norm,
        schedule=_schedule(o, optimizer.lr, updates),
        seed=o.seed,
    )


def _optimizer(o):
    import dd2424fast as dd

    settings = {"lr": o.lr, "weight_decay": o.weight_decay}
    if o.optimizer == "sgd":
        settings |= {"lr": o.lr or 0.01, "momentum": 0.9 if o.momentum is None else o.momentum, "nesterov": o.nesterov}
    given = {name: value for name, value in settings.items() if value is not None}
    return getattr(dd.optim, OPTIMIZERS[o.optimizer])(**given)


def _schedule(o, lr, updates):
    from dd2424fast import schedules

    if o.schedule == "step":
        return schedules.Step(lr, o.step_size, o.factor or 0.1)
    if o.schedule == "cosine":
        return schedules.Cosine(lr, updates, o.low_lr or 0.0)
    if o.schedule == "cyclic":
        return schedules.Cyclic(o.low_lr or 0.0, lr, o.step_size)
    return None


def _callbacks(o):
    from dd2424fast.callbacks import Checkpoint, CSVLogger, EarlyStopping

    if o.patience:
        yield EarlyStopping(patience=o.patience, restore_best_weights=True)
    if o.csv:
        yield CSVLogger(o.csv)
    if o.checkpoint:
        yield Checkpoint(o.checkpoint, updates=o.checkpoint_every)


def _options_that_matter(options, rows):
    """What must be the same when a training goes on, as a JSON file gives it back."""
    free = {
        "data_name", "checkpoint", "checkpoint_every", "resume", "output", "csv", "plot", "quiet", "as_json",
        *(() if options["schedule"] == "cosine" else ("epochs",)),
    }  # fmt: skip
    kept = {
        name: list(value) if isinstance(value, tuple) else value for name, value in options.items() if name not in free
    }
    return kept | {"training images": rows}


def _write_files(o, trainer, standardizer):
    from . import datasets

    if o.output:
        # The model last: where it is, its normalisation is too.
        datasets.save_standardizer(standardizer, datasets.standardizer_path(o.output))
        trainer.model.save(o.output)
    if o.plot and len(trainer.history):
        trainer.history.plot(o.plot)


def _network(model):
    sizes = [layer.out_features for layer in model if hasattr(layer, "out_features")]
    return f"network {'-'.join(map(str, [model[0].in_features, *sizes]))}, {model.parameters.size:,} parameters"


def _print_result(o, data, trainer, test):
    history = trainer.history
    last = {name: values[-1] for name, values in history.columns.items()}
    seconds = sum(history["seconds"])
    files = {name: str(getattr(o, name)) for name in ("output", "checkpoint", "csv", "plot") if getattr(o, name)}
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
                "files": files,
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
    for name, path in files.items():
        click.echo(f"{name:<11} {path}")
