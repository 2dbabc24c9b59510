"""A text as training data for a language model."""

import itertools
import re
from collections import Counter
from pathlib import Path

import numpy as np

from ..configuration import positive_integer, real_in
from ..nn.module import SHUFFLE, generator
from .tokenizers import BPE, Char, Tokenizer, Word

PARTS = ("train", "validation", "test")
_WINDOW = 100  # tokens of an evaluation's batch, of each stream


def python_topics():
    """The help texts on the Python language (on operators, statements, types ...) that come with Python itself.

    A text to try things on without a file: close to half a million characters of English and code, by topic in
    alphabetical order. It is the text of the Python that runs, and so differs a little from version to version: for
    numbers that others should reproduce, take a file.

    Returns
    -------
    str

    Raises
    ------
    ModuleNotFoundError
        This Python was installed without its module pydoc_data.
    """
    from pydoc_data.topics import topics

    return "\n".join(topics[name].strip("\n") + "\n" for name in sorted(topics))


class TextCorpus:
    """A text, cut into a training, a validation and a test part, and served in windows of `time` tokens.

    `batches` reads the text in parallel streams: row b of a batch goes on where row b of the batch before ended, so
    that a model can carry its state. Targets are the inputs one token later.

    Parameters
    ----------
    source : path or str
        A file in UTF-8 (a Path, or a str that names an existing file), or the text itself.
    tokenizer : {"char", "word", "bpe"} or Tokenizer
        A name makes one from the first part of the text, as long as the training part; "char" takes all characters.
    time : int
        Tokens in a window.
    validation, test : float
        Shares of its tokens; the parts follow each other: train, validation, test.
    special : sequence of str
        Control tokens, which stand for themselves wherever they occur, such as `speakers(source)`; for a tokenizer
        that is made here.
    learn_special : bool
        False: no prediction of a special token counts (its target is -100, CrossEntropy's `ignore_index`), as where a
        speaker's name is always given.
    chunk : int, optional
        Cut the training part into chunks of so many tokens and shuffle them anew every epoch; the state begins at
        zero with each. By default the part is read from its beginning to its end.

    Attributes
    ----------
    tokenizer : Tokenizer
    train, validation, test : ndarray of int64
        Token ids of the parts.
    learn_special : bool

    Raises
    ------
    ValueError
        The text is empty, or its training part is shorter than a window and one token.
    """

    def __init__(
        self, source, tokenizer="char", time=25, validation=0.1, test=0.0, chunk=None, *, special=(), learn_special=True
    ):
        self.time = positive_integer("time", time)
        self.chunk = None if chunk is None else positive_integer("chunk", chunk)
        if self.chunk is not None and self.chunk < self.time:
            raise ValueError(f"chunk: expected at least time = {time} tokens, got {chunk}")
        validation = real_in("validation", validation, 0, 1, include_high=False)
        test = real_in("test", test, 0, 1, include_high=False)
        if validation + test >= 1:
            raise ValueError(f"test: expected validation + test below 1, got {validation} + {test}")
        text = _text_of(source)
        learns = round(len(text) * (1 - validation - test))
        self.tokenizer = _tokenizer(tokenizer, text, text[:learns], special)
        self.learn_special = learn_special
        ids = self.tokenizer.encode(text, "source")
        cuts = [0, round(len(ids) * (1 - validation - test)), round(len(ids) * (1 - test)), len(ids)]
        self.train, self.validation, self.test = (ids[a:b] for a, b in itertools.pairwise(cuts))
        if len(self.train) < max(self.time, self.chunk or 0) + 1:
            least, why = (self.time, "time") if (self.chunk or 0) <= len(self.train) - 1 else (self.chunk, "chunk")
            raise ValueError(
                f"source: expected at least {why} + 1 = {least + 1} tokens to train on, got {len(self.train)}"
            )

    @property
    def vocab_size(self):
        return self.tokenizer.vocab_size

    def _ids(self, part):
        if part not in PARTS:
            raise ValueError(f"part: expected one of {', '.join(PARTS)}, got {part!r}")
        return getattr(self, part)

    def _plan(self, part, streams):
        """(how many groups of streams, tokens that each stream serves)."""
        ids = self._ids(part)
        chunks = len(ids) - 1 if self.chunk is None or part != "train" else self.chunk
        if chunks == len(ids) - 1:
            return 1, (len(ids) - 1) // streams
        return (len(ids) - 1) // (chunks * streams), chunks

    def count(self, part="train", batch_size=1):
        """Batches in an epoch."""
        groups, length = self._plan(part, batch_size)
        return groups * -(-length // self.time)

    def batches(self, part="train", batch_size=1, epoch=0, seed=0, skip=0):
        """Yield (x, y, begins): ids of shape (batch_size, up to time), and whether the state must begin at zero.

        Parameters
        ----------
        part : {"train", "validation", "test"}
        batch_size : int
            Parallel streams.
        epoch, seed : int
            The order of the chunks is a pure function of them; with seed None they come as they stand.
        skip : int
            Leave out so many batches.
        """
        ids, time = self._ids(part), self.time
        groups, length = self._plan(part, positive_integer("batch_size", batch_size))
        if groups < 1 or length < 1:
            raise ValueError(
                f"batch_size: expected so few streams that {len(ids)} tokens ({part}) fill each, got {batch_size}"
            )
        starts = np.arange(groups * batch_size) * length
        if self.chunk is not None and part == "train" and seed is not None:
            starts = generator(seed, SHUFFLE, epoch).permutation((len(ids) - 1) // length)[: len(starts)] * length
        windows = -(-length // time)
        for i in range(skip, groups * windows):
            group, window = divmod(i, windows)
            begin = starts[group * batch_size : (group + 1) * batch_size, None] + window * time
            places = begin + np.arange(min(time, length - window * time))
            yield ids[places], self._targets(ids[places + 1]), window == 0

    def evaluation(self, part="validation"):
        """Yield (x, y, begins) over a whole part, for an evaluation: long windows of at most 32 streams, none of which
        is shorter than 1000 tokens, since each begins without a past."""
        streams, length = self.evaluation_plan(part)
        ids = self._ids(part)
        starts = np.arange(streams)[:, None] * length
        for first in range(0, length, _WINDOW):
            places = starts + np.arange(first, min(first + _WINDOW, length))
            yield ids[places], self._targets(ids[places + 1]), first == 0

    def evaluation_plan(self, part="validation"):
        """(streams, tokens that each serves) of an evaluation."""
        ids = self._ids(part)
        if len(ids) < 2:
            raise ValueError(f"part: expected at least 2 tokens, the {part} part has {len(ids)}")
        streams = min(max(len(ids) // 1000, 1), 32)
        return streams, (len(ids) - 1) // streams

    def _targets(self, ids):
        """What is to be predicted; special tokens have the first ids."""
        return ids if self.learn_special else np.where(ids < len(self.tokenizer.special), -100, ids)

    def __repr__(self):
        sizes = ", ".join(f"{part} {len(self._ids(part)):,}" for part in PARTS)
        return f"<TextCorpus: {sizes} tokens of {self.vocab_size}>"


def _text_of(source):
    if isinstance(source, str) and _is_file(source):
        source = Path(source)
    if isinstance(source, Path):
        try:
            with source.open(encoding="utf-8", newline="") as file:  # no character of it is changed
                source = file.read()
        except UnicodeDecodeError as error:
            raise ValueError(f"source: expected a text in UTF-8, but {error}") from None
    if not isinstance(source, str):
        raise TypeError(f"source: expected a path or a text, got {type(source).__name__}")
    if not source:
        raise ValueError("source: expected a text, got an empty one")
    if re.fullmatch(r"[^\n]{1,250}\.[A-Za-z0-9]{1,5}", source):
        raise FileNotFoundError(f"source: there is no file {source!r}; a text does not look like a file's name")
    return source


def _is_file(text):
    try:
        return Path(text).is_file()
    except (OSError, ValueError):  # too long for a path, or with characters that none has: a text
        return False


def speakers(source, most=None, least=2, pattern=r"^[^\W\d_][^\n:]{0,39}:"):
    """Find who speaks in a dialogue such as "ROMEO:\\nIs the day so young?", as control tokens for a corpus.

    A model trained with them continues a prompt that begins with a speaker's token in that speaker's manner;
    `dd.generate(..., banned=tokenizer.special)` keeps it from leaving the role.

    Parameters
    ----------
    source : path or str
        As for `TextCorpus`.
    most : int, optional
        At most so many, the most frequent ones.
    least : int
        Only those that occur at least so often: a line of prose may hold a colon too.
    pattern : str
        A regular expression, of which each match is a token; "^" is the beginning of a line. Default: a letter at the
        beginning of a line, and what follows it up to a colon, at most 41 characters in all.

    Returns
    -------
    tuple of str
        Names with their colon, as they stand in the text, the most frequent first.

    Examples
    --------
    >>> speakers("ANN:\\nYes.\\nBOB:\\nNo.\\nANN:\\nYes!\\n", least=1)
    ('ANN:', 'BOB:')
    """
    most = None if most is None else positive_integer("most", most)
    least = positive_integer("least", least)
    try:
        pattern = re.compile(pattern, re.MULTILINE)
    except (re.error, TypeError) as error:
        raise ValueError(f"pattern: expected a regular expression, got {pattern!r} ({error})") from None
    counts = Counter(match[0] for match in pattern.finditer(_text_of(source)) if match[0])
    ordered = sorted(counts, key=lambda name: (-counts[name], name))
    return tuple(name for name in ordered if counts[name] >= least)[:most]


def _tokenizer(tokenizer, text, train, special):
    if isinstance(tokenizer, Tokenizer):
        if special:
            raise ValueError("special: a tokenizer that exists has its own special tokens; give them to it")
        return tokenizer
    makers = {
        "char": lambda: Char(text, special),
        "word": lambda: Word(train, special),
        "bpe": lambda: BPE(train, special),
    }
    if not isinstance(tokenizer, str) or tokenizer not in makers:
        raise ValueError(f"tokenizer: expected one of {', '.join(makers)} or a Tokenizer, got {tokenizer!r}")
    return makers[tokenizer]()
