"""Texts as the commands read and score them."""

import contextlib


def read(option, path):
    """The text of a file in UTF-8, unchanged; errors name the option."""
    try:
        with path.open(encoding="utf-8", newline="") as file:
            text = file.read()
    except UnicodeDecodeError as error:
        raise ValueError(f"{option}: {path} is no text in UTF-8 ({error})") from None
    if not text:
        raise ValueError(f"{option}: {path} is empty")
    return text


@contextlib.contextmanager
def naming(**options):
    """Let errors that begin with an argument's name begin with the option that it came from."""
    try:
        yield
    except ValueError as error:
        argument, colon, rest = str(error).partition(": ")
        raise ValueError(f"{options.get(argument, argument)}{colon}{rest}") from None


def load_model(path):
    """A language model with the tokenizer that it needs."""
    import dd2424fast as dd

    model = dd.models.LanguageModel.load(path)
    if model.tokenizer is None:
        raise ValueError(f"{path}: holds no tokenizer; assign model.tokenizer before model.save")
    return model


def scores(loss, ids, tokenizer):
    """A mean loss in nats a token over the token ids of a text, and what follows from it, as `Trainer.evaluate`."""
    from dd2424fast import metrics

    characters = tokenizer.characters(ids)
    bits = {"bits_per_character": metrics.bits_per_character(loss, len(ids), characters)} if characters else {}
    return {"loss": loss, "perplexity": metrics.perplexity(loss), **bits}


def line(found):
    """Scores as text; without bits where an unknown word does not tell its characters."""
    bits = found.get("bits_per_character")
    return f"loss {found['loss']:.4f}  perplexity {found['perplexity']:.4g}" + (
        f"  bits per character {bits:.4f}" if bits is not None else ""
    )
