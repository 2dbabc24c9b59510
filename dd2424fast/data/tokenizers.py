"""From text to token ids and back: characters, words, or byte pairs."""

import functools
import re
from collections import Counter

import numpy as np

from ..configuration import integer_in


class Tokenizer:
    """Base of the tokenizers.

    Attributes
    ----------
    tokens : tuple of str
        The token of each id; special tokens come first.
    special : tuple of str
        Tokens that stand for themselves wherever they occur in a text, such as speakers' names or "<eos>".
    unknown : str or None
        The token of what is not in the vocabulary; None: that is an error, which says where.
    """

    def __init__(self, tokens, special=(), unknown=None):
        special = _strings("special", special)
        if unknown is not None and unknown not in special:
            special = (*special, *_strings("unknown", (unknown,)))
        self.special, self.unknown = special, unknown
        self.tokens = tuple(dict.fromkeys([*special, *tokens]))
        self._ids = {token: i for i, token in enumerate(self.tokens)}
        parts = sorted(map(re.escape, special), key=len, reverse=True)
        self._special_pattern = re.compile(f"({'|'.join(parts)})") if parts else None

    @property
    def vocab_size(self):
        return len(self.tokens)

    def __len__(self):
        return len(self.tokens)

    def id_of(self, token, name="token"):
        """The id of one token; `name` is what an error calls it."""
        if token not in self._ids:
            raise ValueError(f"{name}: {token!r} is not in the vocabulary of {self.vocab_size} tokens")
        return self._ids[token]

    def encode(self, text, name="text"):
        """Token ids of a text.

        Parameters
        ----------
        text : str
        name : str
            What an error calls the text.

        Returns
        -------
        ndarray of shape (tokens,), int64

        Raises
        ------
        ValueError
            Something in the text is not in the vocabulary, and there is no unknown token; the message says what and
            where.
        """
        if not isinstance(text, str):
            raise TypeError(f"{name}: expected a str, got {type(text).__name__}")
        ids, position = [], 0
        for part in self._special_pattern.split(text) if self._special_pattern else (text,):
            if part in self.special:
                ids.append(self._ids[part])
            else:
                ids.extend(self._encode_part(part, position, name))
            position += len(part)
        return np.array(ids, np.int64)

    def _encode_part(self, part, position, name):
        raise NotImplementedError

    def _lookup(self, token, position, name):
        found = self._ids.get(token)
        if found is None:
            if self.unknown is None:
                raise ValueError(f"{name}: {self._unit} {token!r} at position {position} is not in the vocabulary")
            found = self._ids[self.unknown]
        return found

    def decode(self, ids):
        """The text of token ids.

        Raises ValueError where an id is not in the vocabulary.
        """
        ids = np.asarray(ids).reshape(-1)
        if ids.size and (ids.dtype.kind not in "iu" or ids.min() < 0 or ids.max() >= self.vocab_size):
            raise ValueError(f"ids: expected integers from 0 to {self.vocab_size - 1}")
        return self._joined([self.tokens[i] for i in ids.tolist()])

    def _joined(self, tokens):
        return "".join(tokens)

    def characters(self, ids):
        """How many characters of text token ids stand for; None where one is the unknown token, which does not tell."""
        ids = np.asarray(ids)
        if self.unknown is not None and (ids == self._ids[self.unknown]).any():
            return None
        return int(self._sizes[ids].sum())

    @functools.cached_property
    def _sizes(self):
        """Characters of each token."""
        return np.array([self._size(token) for token in self.tokens])

    def _size(self, token):
        return len(token)

    def __repr__(self):
        return f"<{type(self).__name__} tokenizer: {self.vocab_size} tokens>"

    # ---- as data -----------------------------------------------------------------------------------------------------

    def to_dict(self):
        """What `from_dict` needs, as JSON can hold it."""
        return {
            "kind": type(self).__name__,
            "tokens": list(self.tokens),
            "special": list(self.special),
            "unknown": self.unknown,
        }

    @staticmethod
    def from_dict(description):
        """The inverse of `to_dict`."""
        kinds = {kind.__name__: kind for kind in (Char, Word, BPE)}
        kind = kinds.get(description.get("kind"))
        if kind is None:
            raise ValueError(f"tokenizer: expected one of {', '.join(kinds)}, got {description.get('kind')!r}")
        return kind._restored(description)

    @classmethod
    def _restored(cls, description):
        return cls(description["tokens"], description["special"], description["unknown"])


class Char(Tokenizer):
    """Every character is a token.

    Parameters
    ----------
    tokens : str or sequence of str
        A text, whose characters are the vocabulary in order of their code points, or the characters themselves.
    special, unknown : see Tokenizer
    """

    _unit = "character"

    def __init__(self, tokens, special=(), unknown=None):
        super().__init__(sorted(set(tokens)) if isinstance(tokens, str) else tokens, special, unknown)

    def _encode_part(self, part, position, name):
        try:
            return [self._ids[c] for c in part]
        except KeyError:
            return [self._lookup(c, position + i, name) for i, c in enumerate(part)]


class Word(Tokenizer):
    """Words, single punctuation marks, and stretches of white space; decoding gives the text back.

    Parameters
    ----------
    tokens : str or sequence of str
        A text, or the vocabulary.
    special : see Tokenizer
    unknown : str, optional
        Default "<unk>": a text of words has unknown ones.
    most : int, optional
        At most so many tokens, the most frequent ones of the text.
    """

    _unit = "word"
    _pattern = re.compile(r"\w+|[^\w\s]|\s+")

    def __init__(self, tokens, special=(), unknown="<unk>", most=None):
        if isinstance(tokens, str):
            special = _strings("special", special)
            counts = Counter(self._pattern.findall(tokens))
            tokens = sorted(counts, key=lambda word: (-counts[word], word))
            if most is not None:
                tokens = tokens[: max(0, integer_in("most", most, 1) - len(special) - (unknown is not None))]
        super().__init__(tokens, special, unknown)

    def _encode_part(self, part, position, name):
        return [self._lookup(found[0], position + found.start(), name) for found in self._pattern.finditer(part)]


class BPE(Tokenizer):
    """Byte-pair encoding, learned and applied by Hugging Face's `tokenizers` (Sennrich, Haddow and Birch 2016,
    arXiv:1508.07909, on bytes): nothing is unknown.

    Parameters
    ----------
    tokens : str
        The text to learn from.
    special : see Tokenizer
    most : int
        Tokens in all.
    """

    _unit = "byte"

    def __init__(self, tokens, special=(), most=1000):
        special = _strings("special", special)
        most = integer_in("most", most, 256 + len(special))
        library = _library()
        model = library.Tokenizer(library.models.BPE())
        model.pre_tokenizer = library.pre_tokenizers.ByteLevel(add_prefix_space=False)
        model.decoder = library.decoders.ByteLevel()
        trainer = library.trainers.BpeTrainer(
            vocab_size=most,
            special_tokens=list(special),
            initial_alphabet=library.pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        model.train_from_iterator([tokens], trainer)
        self._take(model, special)

    def _take(self, model, special):
        self._model = model
        vocabulary = model.get_vocab()
        super().__init__(sorted(vocabulary, key=vocabulary.get), special)

    def _encode_part(self, part, position, name):
        try:
            return self._model.encode(part, add_special_tokens=False).ids
        except TypeError:  # half of a surrogate pair: no UTF-8
            raise ValueError(f"{name}: expected a text that UTF-8 can hold") from None

    def _size(self, token):
        """A token is bytes, each shown as a character; those that go on with a character of the text count nothing."""
        return len(token) if token in self.special else sum(c not in _CONTINUATIONS for c in token)

    def _joined(self, tokens):
        """Stretches between special tokens are bytes; the special tokens stand for themselves."""
        text, stretch = [], []
        for token in [*tokens, None]:
            if token is not None and token not in self.special:
                stretch.append(token)
                continue
            text.append(self._model.decoder.decode(stretch) if stretch else "")
            text.append(token or "")
            stretch = []
        return "".join(text)

    def to_dict(self):
        return {"kind": "BPE", "special": list(self.special), "model": self._model.to_str()}

    @classmethod
    def _restored(cls, description):
        self = cls.__new__(cls)
        self._take(_library().Tokenizer.from_str(description["model"]), tuple(description["special"]))
        return self


# How byte-level BPE shows the bytes 0x80 to 0xBF, which in UTF-8 only go on with a character (Radford et al. 2019):
# printable ones as themselves; the others follow the 33 + 1 ASCII bytes that are not printable from U+0100 on.
_CONTINUATIONS = frozenset(chr(b) for b in range(0xA1, 0xC0) if b != 0xAD) | frozenset(map(chr, range(0x122, 0x144)))


def _library():
    try:
        import tokenizers
    except ModuleNotFoundError:
        raise ModuleNotFoundError(
            "BPE needs the package tokenizers: pip install tokenizers", name="tokenizers"
        ) from None
    return tokenizers


def _strings(name, values):
    strings = values if isinstance(values, str) else tuple(values)
    if isinstance(strings, str) or not all(isinstance(value, str) and value for value in strings):
        raise TypeError(f"{name}: expected strings of at least one character, got {values!r}")
    return strings
