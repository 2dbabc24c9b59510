"""What the commands under `train` share: options, what is made of them, and the run from --resume to exit."""

import click

from .common import OutputFile, PlotFile, json_option, print_json, say, seed_option, threads_option

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
OF_OPTIMIZER = {"sgd": ("momentum", "nesterov")}
OF_SCHEDULE = {
    "constant": (),
    "step": ("step_size", "factor"),
    "cosine": ("low_lr",),
    "cyclic": ("step_size", "low_lr", "growth"),
}
# What may be another when a training goes on: where it reads and writes, what it shows, how long it lasts.
FREE = {
    "data_name", "text", "checkpoint", "checkpoint_every", "resume", "output", "csv", "plot", "quiet", "as_json",
    "sample_every", "time_budget", "estimate", "confusion",
}  # fmt: skip
POSITIVE = click.FloatRange(0, min_open=True)
FRACTION = click.FloatRange(0, 1, min_open=True, max_open=True)
SHARE = click.FloatRange(0, 1, max_open=True)


def together(*options):
    """Several options as one decorator, listed in this order."""

    def decorate(function):
        for option in reversed(options):
            function = option(function)
        return function

    return decorate


def optimizer_options(default):
    """How gradients become updates; `default` is the optimizer's."""
    return together(
        click.option(
            "--optimizer", type=click.Choice(list(OPTIMIZERS)), default=default, show_default=True,
            help="How gradients become updates.",
        ),
        click.option(
            "--lr", type=POSITIVE, help="Learning rate.  [default: 0.01 for sgd, else PyTorch's for that optimizer]"
        ),
        click.option("--momentum", type=click.FloatRange(0, 1, max_open=True), help="Of sgd.  [default: 0.9]"),
        click.option("--nesterov", is_flag=True, help="Nesterov's momentum, with sgd."),
        click.option(
            "--weight-decay", type=click.FloatRange(0),
            help="Added times W to the gradient; the course's lambda is half of it.",
        ),
        click.option(
            "--schedule", type=click.Choice(list(OF_SCHEDULE)), default="constant", show_default=True,
            help="Of the learning rate.",
        ),
        click.option("--step-size", type=click.IntRange(1), help="Updates between two steps, or of half a cycle."),
        click.option("--factor", type=POSITIVE, help="Of each step.  [default: 0.1]"),
        click.option("--low-lr", type=click.FloatRange(0), help="Lowest rate of cosine and cyclic.  [default: 0]"),
        click.option(
            "--growth", type=click.IntRange(1),
            help="Each cycle is so many times as long as the one before it.  [default: 1]",
        ),
    )  # fmt: skip


patience_option = click.option(
    "--patience", type=click.IntRange(1),
    help="Stop after so many epochs without a lower validation loss; keep the best weights.",
)  # fmt: skip
run_options = together(
    click.option("--checkpoint", type=OutputFile(), help="Save the training here, every epoch and when interrupted."),
    click.option(
        "--checkpoint-every", type=click.IntRange(1), metavar="UPDATES", help="Save it every so many updates too."
    ),
    click.option("--resume", is_flag=True, help="Go on from --checkpoint; give the same options."),
    click.option("--output", type=OutputFile(), 
        help="Save the model here, with its tokenizer; the normalisation of images beside it, in "
        "NAME.standardizer.safetensors.",
    ),
    click.option("--csv", type=OutputFile(), help="Write the epochs' numbers here."),
    click.option("--plot", type=PlotFile(), help="Draw the training's curves here."),
    click.option(
        "--time-budget", type=POSITIVE, metavar="SECONDS",
        help="Stop before the update that would not fit, with the evaluation that follows; --resume goes on.",
    ),
    click.option(
        "--estimate", is_flag=True,
        help="Instead of training, measure a few updates and say how long it would take, the memory and the best "
        "--threads.",
    ),
    click.option("--quiet", is_flag=True, help="No progress."),
    seed_option,
    threads_option,
    json_option,
)  # fmt: skip


def check_usage(o, *more):
    """Refuse options that would be ignored, and those that lack another.

    more : pairs of a choice that was made and a table from each choice to the options that belong to it
    """
    given = {name for name, value in vars(o).items() if value is not None and value is not False}
    for choice, table in ((o.optimizer, OF_OPTIMIZER), (o.schedule, OF_SCHEDULE), *more):
        allowed = table.get(choice, ())
        for name in sorted({name for names in table.values() for name in names} & given - {*allowed}):
            raise click.UsageError(f"{_option(name)} has no effect with {choice}")
    if "step_size" in OF_SCHEDULE[o.schedule] and not o.step_size:
        raise click.UsageError(f"--schedule {o.schedule} needs --step-size")
    for name, needed in (("patience", "validation"), ("resume", "checkpoint"), ("checkpoint_every", "checkpoint")):
        if name in given and not getattr(o, needed):
            raise click.UsageError(f"{_option(name)} needs {_option(needed)}")
    if o.checkpoint and o.checkpoint.exists() and not o.resume:
        raise click.UsageError(f"{o.checkpoint} exists: add --resume to go on from it, or remove it")


def _option(name):
    return f"--{name.replace('_', '-')}"


def make_trainer(o, model, updates, loss=None):
    """The trainer that was asked for, of so many updates in all."""
    import dd2424fast as dd

    optimizer = _optimizer(o)
    clip = {name: getattr(o, name, None) for name in ("clip_value", "clip_norm")}
    return dd.Trainer(model, optimizer, loss, **clip, schedule=_schedule(o, optimizer.lr, updates), seed=o.seed)


def _optimizer(o):
    from dd2424fast import optim

    settings = {"lr": o.lr, "weight_decay": o.weight_decay}
    if o.optimizer == "sgd":
        settings |= {"lr": o.lr or 0.01, "momentum": 0.9 if o.momentum is None else o.momentum, "nesterov": o.nesterov}
    given = {name: value for name, value in settings.items() if value is not None}
    return getattr(optim, OPTIMIZERS[o.optimizer])(**given)


def _schedule(o, lr, updates):
    """None where the rate is constant."""
    from dd2424fast import schedules

    if o.schedule == "step":
        return schedules.Step(lr, o.step_size, o.factor or 0.1)
    if o.schedule == "cosine":
        return schedules.Cosine(lr, updates, o.low_lr or 0.0)
    if o.schedule == "cyclic":
        return schedules.Cyclic(o.low_lr or 0.0, lr, o.step_size, growth=o.growth or 1)
    return None


def options_that_matter(o, **more):
    """What must be the same when a training goes on, as a JSON file gives it back; `more` says it of the data."""
    from .callbacks import LENGTH

    free = FREE if o.schedule == "cosine" else FREE | LENGTH
    kept = {name: list(value) if isinstance(value, tuple) else value for name, value in vars(o).items()}
    return {name: value for name, value in kept.items() if name not in free} | more


def run(o, trainer, train, validation, *, epochs, what, matters, callbacks=(), augment=None, write):
    """Train as asked, from the checkpoint where --resume was given, and write the files.

    Parameters
    ----------
    o : options, as the command got them
    trainer : Trainer
    train, validation : see Trainer.fit
    epochs : int
    what : str
        Data and network, to be said at the beginning.
    matters : dict
        From `options_that_matter`.
    callbacks : sequence of Callback
    augment : see Trainer.fit
    write : callable
        Writes --output and --plot, also when interrupted.

    Raises
    ------
    TrainingDiverged
        With the update's number and the last good checkpoint.
    click.exceptions.Exit
        Interrupted, after all was saved: code 130 after Ctrl-C, 143 after SIGTERM.
    """
    import dd2424fast as dd

    from .callbacks import SameOptions, StopOnSignal

    same, stop = SameOptions(matters), StopOnSignal()
    _begin(o, trainer, same, what)
    try:
        with stop.listening():
            trainer.fit(
                train, validation, epochs=epochs, batch_size=o.batch_size, progress=not o.quiet, augment=augment,
                time_budget=o.time_budget, callbacks=[same, stop, *callbacks, *_callbacks(o)],
            )  # fmt: skip
    except dd.TrainingDiverged as error:
        if error.report is not None and not o.quiet:
            say(str(error.report))
        raise dd.TrainingDiverged(f"{error}; {_last_good(o.checkpoint)}", error.update, error.report) from None
    write()
    if trainer.stop_reason == "interrupted":
        files = files_of(o)
        kept = [files[name] for name in ("checkpoint", "output", "standardizer") if name in files]
        say(f"interrupted in epoch {trainer.epoch + 1}, after update {trainer.update}; saved: {', '.join(kept) or '-'}")
        raise click.exceptions.Exit(128 + stop.received)


def _begin(o, trainer, same, what):
    """Take up the checkpoint where --resume was given, and say what is trained."""
    if o.resume:
        same.check(o.checkpoint)
        trainer.load_checkpoint(o.checkpoint)
    if not o.quiet:
        say(what + (f"; going on from update {trainer.update}" if o.resume else ""))


def forecast(o, trainer, train, validation, *, epochs, what, matters, augment=None, updates=None):
    """Print what `run` would take, for --estimate; `updates` says how many in all, where it would end within an
    epoch."""
    import dataclasses

    import dd2424fast as dd

    from .callbacks import SameOptions

    _begin(o, trainer, SameOptions(matters), what)
    found = trainer.estimate(
        train, validation, epochs=epochs, batch_size=o.batch_size, threads=dd.get_num_threads(), augment=augment
    )
    if updates is not None:
        found = dataclasses.replace(found, updates=min(found.updates, max(updates - trainer.update, 0)))
    print_result(o, [str(found)], found.to_dict())


def _callbacks(o):
    from dd2424fast.callbacks import Checkpoint, CSVLogger, EarlyStopping

    if o.patience:
        yield EarlyStopping(patience=o.patience, restore_best_weights=True)
    if o.csv:
        yield CSVLogger(o.csv)
    if o.checkpoint:
        yield Checkpoint(o.checkpoint, updates=o.checkpoint_every)


def _last_good(path):
    from ..files import read

    if path is None:
        return "there is no checkpoint (--checkpoint)"
    if not path.exists():
        return f"it came before the first checkpoint at {path}"
    _, header = read(path, "checkpoint")
    return f"the last good checkpoint is {path}, of {header['trainer']['update']} updates"


def print_result(o, lines, result):
    """What came of it, and the files that were written: lines of text, or with --json the dict `result`."""
    files = {} if o.estimate else files_of(o)
    if o.as_json:
        print_json(result | {"files": files})
        return
    width = max(map(len, (*files, "validation ")))
    for line in (*lines, *(f"{name:<{width}} {path}" for name, path in files.items())):
        click.echo(line)


def files_of(o):
    """The files that a training writes, by the options that ask for them; beside a network for images its
    normalisation."""
    from .datasets import standardizer_path

    paths = {name: getattr(o, name, None) for name in ("output", "checkpoint", "csv", "plot", "confusion")}
    if o.output and o.kind != "lm":
        paths = {"output": o.output, "standardizer": standardizer_path(o.output), **paths}
    return {name: str(path) for name, path in paths.items() if path}
