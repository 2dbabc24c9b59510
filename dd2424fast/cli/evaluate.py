"""`dd2424fast evaluate`: a saved model on test images."""

from pathlib import Path

import click

from .common import DATA_HELP, command, json_option, print_json, threads_option


@command(
    [
        "dd2424fast train mlp --data digits --output digits.safetensors",
        "dd2424fast evaluate digits.safetensors --data digits",
        "dd2424fast evaluate cifar.safetensors --data ~/cifar-10-batches-py --json",
    ]
)
@click.argument("model_path", metavar="MODEL", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--data", "data_name", default="digits", show_default=True, help=DATA_HELP)
@threads_option
@json_option
def evaluate(model_path, data_name, as_json):
    """Test a model that `train --output` wrote: loss, accuracy, and which class is taken for which."""
    import numpy as np

    import dd2424fast as dd

    from . import datasets

    model = dd.models.MLP.load(model_path)
    standardizer = datasets.load_standardizer(datasets.standardizer_path(model_path))
    data = datasets.load(data_name)
    if data.x_test.shape[1:] != standardizer.mean.shape:
        given, expected = data.x_test.shape[1], standardizer.mean.size
        raise ValueError(f"--data: {data.name} has {given} numbers an image, {model_path} takes {expected}")
    logits = model.predict(standardizer.transform(data.x_test))
    loss, _ = dd.losses.CrossEntropy()(logits, data.y_test)
    confusion = np.zeros((len(data.classes), len(data.classes)), np.int64)
    np.add.at(confusion, (data.y_test, logits.argmax(axis=1)), 1)
    accuracy = confusion.trace() / confusion.sum()
    if as_json:
        per_class = {name: _share(row, i) for i, (name, row) in enumerate(zip(data.classes, confusion, strict=True))}
        print_json(
            {
                "data": data.name,
                "images": len(data.y_test),
                "loss": loss,
                "accuracy": accuracy,
                "accuracy_per_class": per_class,
                "classes": data.classes,
                "confusion": confusion.tolist(),
            }
        )
        return
    click.echo(f"{data.name}, {len(data.y_test):,} test images: loss {loss:.4f}, accuracy {accuracy:.2%}\n")
    click.echo(_table(confusion, data.classes))


def _share(row, i):
    return float(row[i] / row.sum()) if row.sum() else None


def _table(confusion, classes):
    """Rows: true class; columns: predicted class, as counts; last: the class's accuracy."""
    width = max(5, len(str(confusion.max())) + 1)
    name_width = max(len("true \\ predicted"), *map(len, classes))
    head = "".join(f"{name[: width - 1]:>{width}}" for name in classes)
    lines = [f"{'true / predicted':<{name_width}}{head}  accuracy"]
    for i, (name, row) in enumerate(zip(classes, confusion, strict=True)):
        counts = "".join(f"{count or '.':>{width}}" for count in row)
        share = _share(row, i)
        lines.append(f"{name:<{name_width}}{counts}  {'-' if share is None else f'{share:.1%}':>8}")
    return "\n".join(lines)
