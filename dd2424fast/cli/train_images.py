"""`dd2424fast train mlp`, `linear`, `convnet`, `patchify` and `resnet`: a network on images."""

from types import SimpleNamespace

import click

from . import training
from .common import DATA_HELP, Numbers, PlotFile, command, say

AUGMENTATION = ("flip", "shift", "cutout", "contrast", "brightness", "noise", "mixup")
# --find-lr and --estimate train nothing: what belongs to a training would be ignored.
OF_TASK = {
    "training": (
        "ema", "patience", "validation", "flip_test", "checkpoint", "checkpoint_every", "resume", "output", "csv",
        "plot", "time_budget", "confusion",
    ),
    "--find-lr": ("find_lr", "plot"),
    "--estimate": ("estimate", "validation", "checkpoint", "resume"),
}  # fmt: skip

image_options = training.together(
    click.option("--data", "data_name", default="digits", show_default=True, help=DATA_HELP),
    click.option(
        "--batches", type=Numbers(highest=5), help="CIFAR-10's training batches to use.  [default: 1,2,3,4,5]"
    ),
    click.option(
        "--epochs", type=click.IntRange(1), default=20, show_default=True,
        help="In all, those before --resume included.",
    ),
    click.option("--batch-size", type=click.IntRange(1), default=100, show_default=True, help="Images of an update."),
    training.optimizer_options("sgd"),
    click.option(
        "--label-smoothing", type=click.FloatRange(0, 1), default=0.0,
        help="Spread this much of each label over all classes.",
    ),
    click.option("--clip-norm", type=training.POSITIVE, help="Scale larger gradients to this norm."),
    click.option("--flip", is_flag=True, help="Train on mirror images, half of the time."),
    click.option("--shift", type=click.IntRange(1), metavar="PIXELS", help="Move images by up to so much."),
    click.option("--cutout", type=click.IntRange(1), metavar="PIXELS", help="Hide a square of this side."),
    click.option("--contrast", type=training.SHARE, help="Change it by up to this part."),
    click.option(
        "--brightness", type=training.POSITIVE, help="Change it by up to so many standard deviations of the pixels."
    ),
    click.option("--noise", type=training.POSITIVE, help="Its deviation, in standard deviations of the pixels."),
    click.option("--mixup", type=training.POSITIVE, metavar="ALPHA", help="Mix pairs of images by Beta(ALPHA, ALPHA)."),
    click.option("--ema", type=training.SHARE, metavar="DECAY", help="Keep the moving average of the weights."),
    click.option("--validation", type=training.FRACTION, help="Hold out this fraction of the training images."),
    training.patience_option,
    click.option(
        "--find-lr", is_flag=True,
        help="Instead of training, try ever larger learning rates and suggest one; --plot draws what came of it.",
    ),
    click.option("--confusion", type=PlotFile(), help="Draw here which classes of the test are taken for which."),
    training.run_options,
)  # fmt: skip
batch_norm_option = click.option("--batch-norm", is_flag=True, help="Batch normalisation in the hidden layers.")
dropout_option = click.option("--dropout", type=training.FRACTION, help="Probability of dropout in the hidden layers.")
NORMALISED = {
    True: "Pixels are normalised to mean 0 and standard deviation 1, as measured on the training images.",
    False: "Each channel is normalised to mean 0 and standard deviation 1, as measured on the training images.",
}
RESULT = """Test loss and accuracy go to standard output. After Ctrl-C or SIGTERM the checkpoint and the model are saved
as they are."""


flip_test_option = click.option(
    "--flip-test", is_flag=True, help="Test each image with its mirror image, by their mean."
)


def hidden_option(default):
    return click.option(
        "--hidden", type=Numbers(), default=default, show_default=True, help="Sizes of the hidden layers."
    )


def network(examples, *options, rows=False):
    """Make a command that trains what the decorated function builds from (models, o, image, classes): dd2424fast's
    models, the options, an image's (height, width, channels), or with `rows` the length of its row, and a number."""

    def make(build):
        def train(**given):
            _train(SimpleNamespace(kind=build.__name__, **given), build, rows)

        train.__name__, train.__doc__ = build.__name__, f"{build.__doc__}\n\n{NORMALISED[rows]} {RESULT}"
        mirror = () if rows else (flip_test_option,)
        return command(examples)(training.together(*options, *mirror, image_options)(train))

    return make


@network(
    [
        "dd2424fast train mlp --data digits --hidden 50 --batch-norm --output digits.safetensors",
        "dd2424fast train mlp --optimizer adam --validation 0.1 --patience 5 --plot curves.png --csv curves.csv",
        "dd2424fast train mlp --schedule cyclic --low-lr 1e-5 --lr 0.1 --step-size 900 --momentum 0 --epochs 16",
        "dd2424fast train mlp --epochs 500 --checkpoint run.safetensors             (Ctrl-C saves)",
        "dd2424fast train mlp --epochs 500 --checkpoint run.safetensors --resume    (goes on, bit for bit)",
    ],
    hidden_option("50"),
    batch_norm_option,
    dropout_option,
    rows=True,
)
def mlp(models, o, image, classes):
    """Train a multi-layer perceptron on images, and test it."""
    return models.MLP(image, o.hidden, classes, o.batch_norm, o.dropout or 0.0, seed=o.seed)


@network(
    [
        "dd2424fast train linear --data digits --epochs 40 --output digits.safetensors",
        "dd2424fast train linear --data ~/cifar-10-batches-py --batches 1 --lr 0.001 --momentum 0 --epochs 40",
    ],
    rows=True,
)
def linear(models, o, image, classes):
    """Train a softmax classifier on images, and test it."""
    return models.MLP(image, (), classes, seed=o.seed)


@network(
    [
        "dd2424fast train convnet --data digits --channels 16,32 --output digits.safetensors",
        "dd2424fast train convnet --data ~/cifar-10-batches-py --channels 64,128,256 --convs-per-block 2 \\",
        "    --batch-norm --flip --shift 4 --weight-decay 5e-4 --lr 0.1 --schedule cosine --ema 0.999 --flip-test",
        "dd2424fast train convnet --data ~/cifar-10-batches-py --find-lr --plot rates.png",
        "dd2424fast train convnet --data ~/cifar-10-batches-py --epochs 60 --estimate",
        "dd2424fast train convnet --data ~/cifar-10-batches-py --time-budget 600 --confusion classes.png",
    ],
    click.option(
        "--channels", type=Numbers(), default="32,64", show_default=True,
        help="Filters of each block of 3 x 3 convolutions; a pooling by 2 ends it.",
    ),
    click.option("--convs-per-block", type=click.IntRange(1), default=1, show_default=True, help="Convolutions."),
    click.option("--hidden", type=click.IntRange(1), default=128, show_default=True, help="Units before the output."),
    batch_norm_option,
    dropout_option,
)  # fmt: skip
def convnet(models, o, image, classes):
    """Train a network of 3 x 3 convolutions on images, and test it."""
    return models.ConvNet(
        o.channels, o.hidden, classes, o.batch_norm, o.convs_per_block, image, dropout=o.dropout or 0.0, seed=o.seed
    )


@network(
    [
        "dd2424fast train patchify --data digits --patch 2 --filters 32 --hidden 64",
        "dd2424fast train patchify --data ~/cifar-10-batches-py --patch 4 --filters 64 --hidden 512 --momentum 0 \\",
        "    --schedule cyclic --low-lr 1e-5 --lr 0.1 --step-size 800 --growth 2 --epochs 99 --weight-decay 0.005 \\",
        "    --label-smoothing 0.1 --flip --shift 3 --checkpoint run.safetensors --output patchify.safetensors",
    ],
    click.option("--patch", type=click.IntRange(1), default=4, show_default=True, help="Side of a patch, in pixels."),
    click.option("--filters", type=click.IntRange(1), default=64, show_default=True, help="Filters on each patch."),
    click.option("--hidden", type=click.IntRange(1), default=512, show_default=True, help="Units before the output."),
)  # fmt: skip
def patchify(models, o, image, classes):
    """Train a network that cuts images into patches, the course's, and test it."""
    return models.PatchifyNet(o.patch, o.filters, o.hidden, classes, image, seed=o.seed)


@network(
    [
        "dd2424fast train resnet --data digits --depth 8 --epochs 10",
        "dd2424fast train resnet --data ~/cifar-10-batches-py --depth 20 --epochs 60 --batch-size 128 --lr 0.1 \\",
        "    --schedule cosine --weight-decay 5e-4 --flip --shift 4 --csv curves.csv --output resnet.safetensors",
    ],
    click.option("--depth", type=click.IntRange(8), default=20, show_default=True, help="Layers: 6 n + 2."),
)  # fmt: skip
def resnet(models, o, image, classes):
    """Train a residual network on images, and test it."""
    return models.ResNet(o.depth, classes, image, seed=o.seed)


def _train(o, build, rows):
    import dd2424fast as dd

    from . import datasets

    task = "--find-lr" if o.find_lr else "--estimate" if o.estimate else "training"
    training.check_usage(o, (task, OF_TASK))
    data = datasets.load(o.data_name, o.batches)
    image = data.x.shape[1:]
    if rows:
        data = data.as_rows()
    x, y, held_out = data.x, data.y, None
    if o.validation:
        (x, y), held_out = dd.data.train_validation_split(x, y, validation=o.validation, seed=o.seed)
    standardizer = dd.data.Standardizer(axis=tuple(range(x.ndim - 1))).fit(x)  # a pixel's, or a channel's
    x = standardizer.transform(x)
    validation = held_out and (standardizer.transform(held_out[0]), held_out[1])

    model = build(dd.models, o, x.shape[1] if rows else image, len(data.classes))
    loss = dd.losses.CrossEntropy(o.label_smoothing)
    trainer = training.make_trainer(o, model, o.epochs * -(-len(x) // o.batch_size), loss)
    changes = {name: getattr(o, name) for name in AUGMENTATION if getattr(o, name)}
    augment = dd.data.Augment(**changes, image=image if rows else None) if changes else None
    what = f"{data}; {_described(o, model)}"
    if o.find_lr:
        _find_lr(o, trainer, (x, y), augment, what)
        return
    matters = training.options_that_matter(o, **{"training images": len(x)})
    if o.estimate:
        training.forecast(o, trainer, (x, y), validation, epochs=o.epochs, what=what, matters=matters, augment=augment)
        return

    def write():
        if o.output:  # the model last: where it is, its normalisation is too
            standardizer.save(datasets.standardizer_path(o.output))
            model.save(o.output)
        if o.plot and len(trainer.history):
            trainer.history.plot(o.plot)

    training.run(
        o, trainer, (x, y), validation, epochs=o.epochs, what=what, write=write, augment=augment,
        callbacks=[dd.callbacks.WeightAverage(o.ema)] if o.ema else [],
        matters=matters,
    )  # fmt: skip
    if trainer.stop_reason:
        say(trainer.stop_reason)
    x_test, flip = standardizer.transform(data.x_test), getattr(o, "flip_test", False)
    test = trainer.evaluate((x_test, data.y_test), flip=flip)
    if o.confusion:
        p = dd.predict_proba(model, x_test, flip=flip)
        dd.plots.confusion_matrix(data.y_test, p, o.confusion, names=data.classes)
    _print_result(o, data, trainer, test)


def _find_lr(o, trainer, train, augment, what):
    if not o.quiet:
        say(what)
    report = trainer.find_lr(train, batch_size=o.batch_size, augment=augment)
    if o.plot:
        report.plot(o.plot)
    training.print_result(
        o,
        [str(report)],
        {"suggestion": report.suggestion, "rates": report.rates.tolist(), "losses": report.losses.tolist()},
    )


def _described(o, model):
    if o.kind in ("mlp", "linear"):
        sizes = [layer.out_features for layer in model if hasattr(layer, "out_features")]
        name = f"network {'-'.join(map(str, [model[0].in_features, *sizes]))}"
    else:
        name = repr(model)
    return f"{name}, {model.parameters.size:,} parameters"


def _print_result(o, data, trainer, test):
    from ..forecast import duration

    history = trainer.history
    last = {name: values[-1] for name, values in history.columns.items()}
    seconds = sum(history["seconds"])
    lines = [
        f"{data.name}, {_described(o, trainer.model)}: "
        f"{last['epoch']:g} epochs, {trainer.update} updates, {duration(seconds)}",
        f"training    loss {last['loss']:.4f}  accuracy {last['accuracy']:.2%}",
    ]
    if "val_loss" in last:
        lines.append(f"validation  loss {last['val_loss']:.4f}  accuracy {last['val_accuracy']:.2%}")
    lines.append(f"test        loss {test['loss']:.4f}  accuracy {test['accuracy']:.2%}")
    training.print_result(
        o,
        lines,
        {
            "model": o.kind,
            "parameters": trainer.model.parameters.size,
            "data": data.name,
            "epochs": last["epoch"],
            "updates": trainer.update,
            "seconds": seconds,
            "last_epoch": last,
            "test": test,
            "stopped": trainer.stop_reason,
        },
    )
