"""Texts as the commands read and score them."""

import math


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


def load_model(path):
    """A language model with the tokenizer that it needs."""
    import dd2424fast as dd

    model = dd.models.LanguageModel.load(path)
    if model.tokenizer is None:
        raise ValueError(f"{path}: holds no tokenizer; assign model.tokenizer before model.save")
    return model


def scores(loss, tokens, characters):
    """A loss in nats a token, with what follows from it for a text of so many tokens and characters."""
    return {
        "loss": loss,
        "perplexity": math.exp(loss) if loss < 700 else math.inf,
        "bits_per_character": loss / math.log(2) * tokens / characters,
    }


def evaluate(model, corpus, part):
    """Score a language model on a part of a corpus."""
    import dd2424fast as dd

    trainer = dd.Trainer(model, dd.optim.SGD(1.0))  # its evaluation; nothing is trained
    found = trainer.evaluate([(x, y) for x, y, _ in corpus.evaluation(part)])
    ids = getattr(corpus, part)
    return scores(found["loss"], len(ids), len(corpus.tokenizer.decode(ids))) | {"accuracy": found["accuracy"]}


def line(found):
    """The scores as text."""
    return (
        f"loss {found['loss']:.4f}  perplexity {found['perplexity']:.3f}  "
        f"bits per character {found['bits_per_character']:.4f}"
    )
