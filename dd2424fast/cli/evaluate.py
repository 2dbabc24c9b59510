"""`dd2424fast evaluate`: a saved model on test images, or on a text."""

from pathlib import Path

import click

from . import texts
from .common import DATA_HELP, MODEL_ARGUMENT, command, json_option, print_json, threads_option


@command(
    [
        "dd2424fast train mlp --data digits --output digits.safetensors",
        "dd2424fast evaluate digits.safetensors --data digits",
        "dd2424fast evaluate cifar.safetensors --data ~/cifar-10-batches-py --json",
        "dd2424fast train lm --text shakespeare.txt --output shakespeare.safetensors",
        "dd2424fast evaluate shakespeare.safetensors --text sonnets.txt",
    ]
)
@MODEL_ARGUMENT
@click.option("--data", "data_name", help=f"Of a network for images: {DATA_HELP}  [default: digits]")
@click.option(
    "--text", type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Of a language model: a file in UTF-8, all of which is read.",
)  # fmt: skip
@click.option("--flip-test", is_flag=True, help="Test each image with its mirror image, by their mean.")
@threads_option
@json_option
def evaluate(model_path, data_name, text, flip_test, as_json):
    """Test a model that `train --output` wrote.

    A network for images: loss, accuracy, and which class is taken for which. A language model: loss in nats a token,
    perplexity, and bits per character.
    """
    import dd2424fast as dd

    model = dd.nn.Module.load(model_path)
    if isinstance(model, dd.models.LanguageModel):
        if data_name:
            raise click.UsageError(f"--data has no effect: {model_path} holds a language model")
        if flip_test:
            raise click.UsageError(f"--flip-test has no effect: {model_path} holds a language model")
        if not text:
            raise click.UsageError(f"--text is missing: {model_path} holds a language model")
        _evaluate_text(model_path, text, as_json)
    else:
        if text:
            raise click.UsageError(f"--text has no effect: {model_path} holds a network for images")
        _evaluate_images(model, model_path, data_name or "digits", flip_test, as_json)


def _evaluate_text(model_path, path, as_json):
    import dd2424fast as dd

    model = texts.load_model(model_path)
    with texts.naming(source="--text"):
        corpus = dd.data.TextCorpus(texts.read("--text", path), model.tokenizer, time=1, validation=0)
    trainer = dd.Trainer(model, dd.optim.SGD(1.0))  # its evaluation; nothing is trained
    found = trainer.evaluate(corpus, part="train")  # the whole of it
    if as_json:
        print_json({"text": path.name, "tokens": len(corpus.train), **found})
    else:
        click.echo(f"{path.name}, {len(corpus.train):,} tokens: {texts.line(found)}")


def _evaluate_images(model, model_path, data_name, flip_test, as_json):
    import numpy as np

    import dd2424fast as dd

    from . import datasets

    entropy = dd.losses.CrossEntropy()
    standardizer = datasets.load_standardizer(datasets.standardizer_path(model_path))
    data = datasets.load(data_name)
    if standardizer.axis == (0,):  # a network of rows: its normalisation is of every pixel
        data = data.as_rows()
        if data.x_test.shape[1:] != standardizer.mean.shape:
            given, expected = data.x_test.shape[1], standardizer.mean.size
            raise ValueError(f"--data: {data.name} has {given} numbers an image, {model_path} takes {expected}")
        if flip_test:
            raise ValueError(f"--flip-test: {model_path} reads images as rows, which have no mirror image")
    try:
        x = standardizer.transform(data.x_test)
        logits = entropy.logits(dd.predict_proba(model, x, flip=True)) if flip_test else model.predict(x)
    except ValueError as error:
        raise ValueError(f"--data: {data.name} does not fit {model_path}: {error}") from None
    loss, _ = entropy(logits, data.y_test)
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
