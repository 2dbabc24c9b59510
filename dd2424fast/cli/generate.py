"""`dd2424fast generate`: text from a language model."""

from pathlib import Path

import click

from . import texts
from .common import MODEL_ARGUMENT, command, json_option, print_json, seed_option, threads_option


@command(
    [
        "dd2424fast train lm --text shakespeare.txt --output shakespeare.safetensors",
        "dd2424fast generate shakespeare.safetensors --length 500",
        "dd2424fast generate shakespeare.safetensors --prompt ROMEO: --temperature 0.8 --top-p 0.9 --samples 3",
        "dd2424fast generate shakespeare.safetensors --prompt-file scene.txt --stop $'\\n' --ban x --ban z --json",
    ]
)
@MODEL_ARGUMENT
@click.option("--prompt", help="What to continue.  [default: the beginning of a line]")
@click.option(
    "--prompt-file",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="What to continue: a file in UTF-8, as it is.",
)
@click.option("--length", type=click.IntRange(1), default=200, show_default=True, help="Tokens to generate.")
@click.option(
    "--temperature",
    type=click.FloatRange(0),
    default=1.0,
    show_default=True,
    help="Below 1 the probable becomes more probable; 0 takes the most probable token each time.",
)
@click.option("--top-k", type=click.IntRange(0), default=0, help="Choose among so many most probable tokens.")
@click.option(
    "--top-p",
    type=click.FloatRange(0, 1, min_open=True),
    default=1.0,
    help="Choose among the fewest most probable tokens that together reach this probability.",
)
@click.option(
    "--repetition-penalty",
    type=click.FloatRange(0, min_open=True),
    default=1.0,
    help="Above 1, tokens that occurred become less probable.",
)
@click.option("--stop", metavar="TOKEN", help="End a text before this token.")
@click.option("--ban", "banned", metavar="TOKEN", multiple=True, help="Never choose this token; may be repeated.")
@click.option("--samples", type=click.IntRange(1), default=1, show_default=True, help="Texts to generate.")
@seed_option
@threads_option
@json_option
def generate(
    model_path, prompt, prompt_file, length, temperature, top_k, top_p, repetition_penalty, stop, banned, samples, seed,
    as_json,
):  # fmt: skip
    """Let a language model that `train lm --output` wrote continue a text.

    The prompt and what follows it go to standard output. Equal seeds give equal texts. A token is a character, a word
    or a piece of one, as the model was trained.
    """
    import dd2424fast as dd

    if prompt is not None and prompt_file is not None:
        raise click.UsageError("--prompt has no effect with --prompt-file")
    model = texts.load_model(model_path)
    given = texts.read("--prompt-file", prompt_file) if prompt_file else prompt
    if given == "":
        raise ValueError("--prompt: expected at least one token, got an empty text")
    if given is None and not _one_token(model.tokenizer, "\n"):
        raise ValueError("--prompt: the model knows no line break to begin with; give a text to continue")
    found = dd.generate(
        model, model.tokenizer, ["\n" if given is None else given] * samples, length, temperature, top_p, top_k,
        repetition_penalty, seed, stop=None if stop is None else _token(model.tokenizer, "--stop", stop),
        banned=[_token(model.tokenizer, "--ban", token) for token in banned],
    )  # fmt: skip
    if as_json:
        print_json({"prompt": given, "samples": found})
        return
    for i, text in enumerate(found):
        if samples > 1:
            click.echo(f"--- {i + 1} of {samples} ---")
        click.echo((given or "") + text)


def _token(tokenizer, option, text):
    """The vocabulary's name of a token that is given by its text."""
    token = _one_token(tokenizer, text)
    if token is None:
        raise ValueError(f"{option}: {text!r} is not one token of the model's vocabulary")
    return token


def _one_token(tokenizer, text):
    try:
        ids = tokenizer.encode(text)
    except ValueError:  # not in the vocabulary
        return None
    return tokenizer.tokens[ids[0]] if len(ids) == 1 and tokenizer.decode(ids) == text else None
