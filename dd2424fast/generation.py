"""Text from a language model."""

import numpy as np

from .configuration import positive_integer
from .data.tokenizers import Tokenizer
from .models import LanguageModel


def generate(
    model,
    tokenizer,
    prompt,
    length,
    temperature=1.0,
    top_p=1.0,
    top_k=0,
    repetition_penalty=1.0,
    seed=None,
    *,
    stop=None,
    banned=(),
):
    """Let a language model continue a text.

    Parameters
    ----------
    model : models.LanguageModel
    tokenizer : data.Tokenizer
        The one that the model was trained with.
    prompt : str, or sequence of str
        What to continue, at least one token each; a special token (a speaker's name, say) may begin it.
    length : int
        Tokens to generate.
    temperature : float
        Below 1 the probable becomes more probable; 0 takes the most probable token each time.
    top_p : float in (0, 1]
        Choose among the fewest most probable tokens that together reach this probability.
    top_k : int
        Choose among so many most probable tokens; 0: among all.
    repetition_penalty : float
        Above 1, tokens of the prompt and of what was generated become less probable.
    seed : int, optional
        Equal seeds give equal texts; None draws fresh entropy.
    stop : str, optional
        A token that ends the text; it is not part of what is returned.
    banned : sequence of str
        Tokens that are never chosen; `tokenizer.special`, say, so that a text that a speaker's name began stays with
        that speaker.

    Returns
    -------
    str, or list of str for several prompts
        What follows the prompt.

    Raises
    ------
    TypeError, ValueError
        An argument is wrong (the message names it), or the prompt holds a character that the tokenizer does not know.
    """
    several = not isinstance(prompt, str)
    _, new = continued(
        model,
        tokenizer,
        list(prompt) if several else [prompt],
        length,
        temperature=temperature,
        top_p=top_p,
        top_k=top_k,
        repetition_penalty=repetition_penalty,
        seed=seed,
        stop=stop,
        banned=banned,
    )
    ended = -1 if stop is None else tokenizer.id_of(stop, "stop")
    texts = [tokenizer.decode(row[: _end(row, ended)]) for row in new]
    return texts if several else texts[0]


def continued(model, tokenizer, prompts, length, *, stop=None, banned=(), **options):
    """(token ids of each prompt, ids of shape (len(prompts), length) that follow it); see `generate`."""
    check_tokenizer(tokenizer, model)
    ids = [tokenizer.encode(text, "prompt") for text in prompts]
    new = model.generate_ids(
        ids,
        positive_integer("length", length),
        **options,
        stop=None if stop is None else tokenizer.id_of(stop, "stop"),
        banned=[tokenizer.id_of(token, "banned") for token in banned],
    )
    return ids, new


def check_tokenizer(tokenizer, model):
    """Raise TypeError where one of them is something else, ValueError where they do not belong together."""
    if not isinstance(model, LanguageModel):
        raise TypeError(f"model: expected a models.LanguageModel, got {type(model).__name__}")
    if not isinstance(tokenizer, Tokenizer):
        raise TypeError(f"tokenizer: expected a data.Tokenizer, got {type(tokenizer).__name__}")
    if tokenizer.vocab_size != model.vocab_size:
        raise ValueError(
            f"tokenizer: expected the {model.vocab_size} tokens of the model's vocabulary, got {tokenizer.vocab_size}"
        )


def _end(row, stop):
    found = np.flatnonzero(row == stop)
    return found[0] if len(found) else len(row)
