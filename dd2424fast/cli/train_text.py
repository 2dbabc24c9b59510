"""`dd2424fast train lm`: a recurrent language model on a text."""

import hashlib
import json
from pathlib import Path
from types import SimpleNamespace

import click

from . import texts, training
from .common import command, say

OF_TOKENIZER = {"char": (), "word": ("vocabulary",), "bpe": ("vocabulary",)}
# The course trains its vanilla RNN on one stream; gated cells are larger, and read many.
GATED = {"hidden": 256, "time": 100, "batch_size": 32, "clip_norm": 1.0}
DEFAULTS = {"rnn": {"hidden": 100, "time": 25, "batch_size": 1, "clip_value": 5.0}, "lstm": GATED, "gru": GATED}
EPOCHS = 10
# --estimate trains nothing: what belongs to a training would be ignored.
OF_TASK = {
    "training": ("patience", "checkpoint", "checkpoint_every", "resume", "output", "csv", "plot", "time_budget",
                 "sample_every"),
    "--estimate": ("checkpoint", "resume"),
}  # fmt: skip
OF_ARGUMENTS = {"chunk": "--chunk", "test": "--test", "batch_size": "--batch-size", "most": "--vocabulary"}


@command(
    [
        "dd2424fast train lm --text shakespeare.txt --output shakespeare.safetensors",
        "dd2424fast train lm --text shakespeare.txt --updates 100000 --optimizer adagrad --lr 0.1",
        "dd2424fast train lm --text shakespeare.txt --cell lstm --layers 2 --dropout 0.2 --lr 0.002 --patience 3",
        "dd2424fast train lm --text shakespeare.txt --cell gru --tokenizer bpe --vocabulary 2000 --embedding 128",
        "dd2424fast train lm --text shakespeare.txt --cell lstm --chunk 1000 --batch-size 64 --csv curves.csv",
        "dd2424fast train lm --epochs 50 --checkpoint run.safetensors --checkpoint-every 1000",
        "dd2424fast train lm --epochs 50 --checkpoint run.safetensors --resume    (goes on, bit for bit)",
        "dd2424fast train lm --text shakespeare.txt --cell lstm --epochs 20 --estimate",
        "dd2424fast train lm --text shakespeare.txt --cell lstm --epochs 20 --time-budget 600",
        "dd2424fast generate shakespeare.safetensors --prompt ROMEO: --length 500",
    ]
)
@click.option(
    "--text",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="A file in UTF-8.  [default: the language reference that comes with this Python]",
)
@click.option("--cell", type=click.Choice(list(DEFAULTS)), default="rnn", show_default=True, help="Recurrent layer.")
@click.option("--hidden", type=click.IntRange(1), help="Units of each layer.  [default: 100 for rnn, else 256]")
@click.option("--layers", type=click.IntRange(1), default=1, show_default=True, help="Recurrent layers.")
@click.option("--embedding", type=click.IntRange(1), help="Length of a token's vector.  [default: one-hot]")
@click.option("--dropout", type=training.FRACTION, help="Between the layers, and before the output.")
@click.option(
    "--tokenizer",
    type=click.Choice(list(OF_TOKENIZER)),
    default="char",
    show_default=True,
    help="What the text is read as; bpe needs the package tokenizers.",
)
@click.option(
    "--vocabulary", type=click.IntRange(1), help="At most so many tokens.  [default: 1000 for bpe, all words for word]"
)
@click.option(
    "--time",
    type=click.IntRange(1),
    help="Tokens that back-propagation goes through.  [default: 25 for rnn, else 100]",
)
@click.option(
    "--batch-size", type=click.IntRange(1), help="Parallel streams of the text.  [default: 1 for rnn, else 32]"
)
@click.option(
    "--chunk",
    type=click.IntRange(1),
    metavar="TOKENS",
    help="Cut the text into chunks and shuffle them every epoch.  [default: read it from beginning to end]",
)
@click.option("--epochs", type=click.IntRange(1), help=f"In all, those before --resume included.  [default: {EPOCHS}]")
@click.option("--updates", type=click.IntRange(1), help="Instead of --epochs; may end within one.")
@training.optimizer_options("adam")
@click.option("--clip-value", type=training.POSITIVE, help="Cut gradient elements at it.  [default for rnn: 5]")
@click.option(
    "--clip-norm", type=training.POSITIVE, help="Scale larger gradients to this norm.  [default for lstm and gru: 1]"
)
@click.option(
    "--validation",
    type=training.SHARE,
    default=0.1,
    show_default=True,
    help="Hold out this share of the text, before the test.",
)
@click.option(
    "--test", type=training.SHARE, default=0.0, show_default=True, help="Hold out this share, at the end of the text."
)
@training.patience_option
@click.option(
    "--sample-every",
    type=click.IntRange(1),
    metavar="UPDATES",
    help="Show what the model writes, every so many updates.",
)
@training.run_options
def lm(**options):
    """Train a recurrent language model on a text.

    The state is carried from window to window. Losses are in nats a token and go to standard output with perplexity and
    bits per character. The model file holds the tokenizer, for `generate` and `evaluate`. The default text differs
    between versions of Python. After Ctrl-C or SIGTERM the checkpoint and the model are saved as they are.
    """
    import dd2424fast as dd

    from .callbacks import Speed, StopAfter

    o = SimpleNamespace(kind="lm", **options)
    _check_usage(o)
    _fill_in(o)
    text = texts.read("--text", o.text) if o.text else dd.data.python_topics()
    with texts.naming(source="--text", **OF_ARGUMENTS):
        corpus = dd.data.TextCorpus(text, _tokenizer(o, text), o.time, o.validation, o.test, o.chunk)
        next(corpus.batches("train", o.batch_size))  # or an error: too few tokens for so many streams
    windows = corpus.count("train", o.batch_size)
    updates = o.updates or o.epochs * windows

    model = dd.models.LanguageModel(
        corpus.vocab_size, o.cell, o.hidden, o.embedding, o.layers, o.dropout or 0.0, seed=o.seed
    )
    model.tokenizer = corpus.tokenizer
    trainer = training.make_trainer(o, model, updates)
    epochs, what = -(-updates // windows), f"{_name(o)}: {_sizes(o, corpus)}; {_network(o, model)}"
    matters = training.options_that_matter(o, **_digests(text, corpus.tokenizer))
    if o.estimate:
        training.forecast(o, trainer, corpus, None, epochs=epochs, what=what, matters=matters, updates=updates)
        return
    speed, limit = Speed(), StopAfter(updates) if updates % windows else None
    curve = dd.callbacks.LossCurve(0.99) if o.plot else None
    callbacks = [callback for callback in (speed, limit, curve) if callback]
    if o.sample_every:
        start = corpus.tokenizer.decode(corpus.train[:1])
        callbacks.append(dd.callbacks.SampleText(corpus.tokenizer, start, every=o.sample_every))

    def write():
        history = _history(trainer, limit, windows)
        if o.output:
            model.save(o.output)
        if o.csv and len(history):
            history.to_csv(o.csv)
        if o.plot and trainer.update:
            _plot(curve, trainer.history, windows, o.plot)

    training.run(o, trainer, corpus, None, epochs=epochs, callbacks=callbacks, write=write, what=what, matters=matters)
    stopped = None if limit and limit.progress else trainer.stop_reason
    if stopped:
        say(stopped)
    last = {name: values[-1] for name, values in _history(trainer, limit, windows).columns.items()}
    found = {"training": texts.scores(last["loss"], corpus.train, corpus.tokenizer)}
    for part in ("validation", "test"):
        if len(getattr(corpus, part)) > 1:
            found[part] = trainer.evaluate(corpus, part=part)
    _print_result(o, corpus, trainer, speed, last, found, stopped)


def _check_usage(o):
    training.check_usage(o, (o.tokenizer, OF_TOKENIZER), ("--estimate" if o.estimate else "training", OF_TASK))
    if o.epochs and o.updates:
        raise click.UsageError("--updates has no effect with --epochs")


def _fill_in(o):
    """The defaults that depend on the cell; clipping is by value or by norm, as was asked for."""
    for name, value in DEFAULTS[o.cell].items():
        asked = (o.clip_value or o.clip_norm) if name.startswith("clip") else getattr(o, name)
        if not asked:
            setattr(o, name, value)
    o.epochs = o.epochs or (None if o.updates else EPOCHS)


def _tokenizer(o, text):
    """A name, or the tokenizer of a vocabulary that was asked for, of the training part like TextCorpus's own."""
    from dd2424fast.data import BPE, Word

    if o.vocabulary is None:
        return o.tokenizer
    learns = text[: round(len(text) * (1 - o.validation - o.test))]
    return {"word": Word, "bpe": BPE}[o.tokenizer](learns, most=o.vocabulary)


def _digests(text, tokenizer):
    """What a resumed training compares: it must not go on with another text, nor with other tokens."""
    return {
        "text": f"of {len(text):,} characters, sha256 {_sha256(text)}",
        "vocabulary": f"of {tokenizer.vocab_size:,} tokens, sha256 {_sha256(json.dumps(tokenizer.to_dict()))}",
    }


def _sha256(text):
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def _history(trainer, limit, windows):
    """The trainer's history, and a row for the epoch that --updates cut short."""
    from dd2424fast import History

    history = History(trainer.history.columns)
    if limit and limit.progress:
        done, total, correct, weight, rows = limit.progress
        history.add({"epoch": trainer.epoch + done / windows, "loss": total / weight, "accuracy": correct / rows})
    return history


def _plot(curve, history, windows, path):
    """Draw the loss of single updates, and of the validation where there was one."""
    figure = curve.plot()
    axes = figure.axes[0]
    if "val_loss" in history:
        updates = [epoch * windows for epoch in history["epoch"]]
        axes.plot(updates, history["val_loss"], color="black", marker="o", label="validation")
        axes.legend()
    figure.savefig(path)


def _name(o):
    return o.text.name if o.text else "Python's topics"


def _unit(o):
    return "characters" if o.tokenizer == "char" else "tokens"


def _sizes(o, corpus):
    sizes = {part: len(getattr(corpus, part)) for part in ("train", "validation", "test")}
    return (
        ", ".join(f"{part} {size:,}" for part, size in sizes.items() if size) + f" {_unit(o)} of {corpus.vocab_size:,}"
    )


def _network(o, model):
    inner = [o.embedding] if o.embedding else []
    sizes = [model.vocab_size, *inner, *[o.hidden] * o.layers, model.vocab_size]
    return f"{o.cell} {'-'.join(map(str, sizes))}, {model.parameters.size:,} parameters"


def _print_result(o, corpus, trainer, speed, last, found, stopped):
    from ..forecast import duration

    rate = speed.tokens / speed.seconds if speed.tokens else None  # none where all was done before --resume
    head = (
        f"{_name(o)}, {_network(o, trainer.model)}: {last['epoch']:.4g} epochs, {trainer.update:,} updates, "
        f"{duration(speed.seconds)}" + (f", {rate:,.0f} {_unit(o)} a second" if rate else "")
    )
    training.print_result(
        o,
        [head, *(f"{part:<11} {texts.line(numbers)}" for part, numbers in found.items())],
        {
            "model": "lm",
            "cell": o.cell,
            "parameters": trainer.model.parameters.size,
            "text": _name(o),
            "tokens": {part: len(getattr(corpus, part)) for part in ("train", "validation", "test")},
            "vocabulary": corpus.vocab_size,
            "epochs": last["epoch"],
            "updates": trainer.update,
            "seconds": speed.seconds,
            "tokens_per_second": rate,
            **found,
            "stopped": stopped,
        },
    )
