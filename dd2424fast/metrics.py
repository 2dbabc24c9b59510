"""What a language model is measured by, and how sure a mean over seeds is."""

import math

import numpy as np

from .configuration import Configured, array_of, positive_integer, real_in


def perplexity(loss):
    """exp(loss): among so many equally probable tokens the model would be as uncertain.

    Parameters
    ----------
    loss : float
        Mean cross-entropy in nats per token.

    Returns
    -------
    float
        Infinite where no float holds it.
    """
    loss = _number("loss", loss)
    try:
        return math.exp(loss)
    except OverflowError:
        return math.inf


def bits_per_character(loss, tokens, characters):
    """loss / ln 2 times tokens a character: comparable between tokenizers, as a perplexity is not.

    Parameters
    ----------
    loss : float
        Mean cross-entropy in nats per token.
    tokens, characters : int
        How many tokens the mean was taken over, and how many characters of text they stand for.

    Returns
    -------
    float
    """
    loss = _number("loss", loss)
    return loss / math.log(2) * positive_integer("tokens", tokens) / positive_integer("characters", characters)


def _number(name, value):
    """A number as a float; NaN and infinity are no errors here, but what a training may give."""
    return math.nan if value != value else real_in(name, value, -math.inf, math.inf)


class SmoothedLoss(Configured):
    """Exponentially smoothed loss, started at the first loss (from zero it would begin far too low).

        s_1 = loss_1,  s_t = decay s_{t-1} + (1 - decay) loss_t

    Parameters
    ----------
    decay : float in [0, 1)
        Default: the course's 0.999.

    Attributes
    ----------
    value : float or None
        The smoothed loss; None before the first.
    """

    def __init__(self, decay=0.999):
        self.decay = real_in("decay", decay, 0, 1, include_high=False)
        self.value = None

    def update(self, loss):
        """Take one more loss; returns the smoothed one."""
        self.value = loss if self.value is None else self.decay * self.value + (1 - self.decay) * loss
        return self.value

    def state(self):
        """What to keep in a checkpoint."""
        return {"value": self.value}

    def load_state(self, state):
        """Take up what `state` returned."""
        self.value = state["value"]


def distinct(texts, n):
    """Share of different ones among all n-grams, distinct-n: 1 where nothing repeats itself.

    Parameters
    ----------
    texts : str, sequence of str, integer array, or sequence of integer arrays
        One text or several; n-grams do not reach from one into the next. A str is split into words at white space, an
        array holds token ids.
    n : int

    Returns
    -------
    float
        NaN where no text has n words.

    Notes
    -----
    Li et al. 2016, A diversity-promoting objective function for neural conversation models, arXiv:1510.03055. They
    divide by the number of words, of which a text has n - 1 more than n-grams.
    """
    n = positive_integer("n", n)
    found = []
    for words in _sequences(texts):
        found.extend(zip(*(words[i:] for i in range(n)), strict=False))
    return len(set(found)) / len(found) if found else math.nan


def _sequences(texts):
    """Texts as lists of words or token ids."""
    if isinstance(texts, str):
        return [texts.split()]
    if isinstance(texts, list | tuple) and texts and all(isinstance(text, str) for text in texts):
        return [text.split() for text in texts]
    several = isinstance(texts, list | tuple) and any(np.ndim(ids) for ids in texts)
    arrays = [array_of("texts", ids) for ids in (texts if several else [texts])]
    for ids in arrays:
        if (ids.size and ids.dtype.kind not in "iu") or ids.ndim != 1:
            raise TypeError(f"texts: expected texts or vectors of token ids, got {texts!r}")
    return [ids.tolist() for ids in arrays]


def bleu(hypotheses, references, **options):
    """Corpus BLEU (Papineni et al. 2002) by the package sacrebleu (Post 2018, arXiv:1804.08771).

    Parameters
    ----------
    hypotheses : sequence of str
    references : sequence of str, or of sequences of str
        For each hypothesis its reference, or its references (of all as many).
    **options
        Of `sacrebleu.corpus_bleu`, such as `tokenize="13a"` or `lowercase=False`.

    Returns
    -------
    float
        From 0 to 100.

    Raises
    ------
    ModuleNotFoundError
        sacrebleu is not installed.
    """
    hypotheses = _texts("hypotheses", hypotheses)
    if isinstance(references, str):
        raise TypeError(f"references: expected a sequence of str, got {references!r}")
    references = [[r] if isinstance(r, str) else _texts("references", r) for r in references]
    if not hypotheses:
        raise ValueError("hypotheses: expected at least one, got none")
    if len(references) != len(hypotheses):
        raise ValueError(f"references: expected one for each of {len(hypotheses)} hypotheses, got {len(references)}")
    counts = {len(several) for several in references}
    if len(counts) > 1 or 0 in counts:
        raise ValueError(f"references: expected equally many for every hypothesis, got {sorted(counts)}")
    try:
        import sacrebleu
    except ModuleNotFoundError:
        raise ModuleNotFoundError("BLEU needs the package sacrebleu: pip install sacrebleu", name="sacrebleu") from None
    streams = [list(stream) for stream in zip(*references, strict=True)]
    return float(sacrebleu.corpus_bleu(hypotheses, streams, **options).score)


def _texts(name, values):
    texts = [values] if isinstance(values, str) else list(values)
    if isinstance(values, str) or not all(isinstance(text, str) for text in texts):
        raise TypeError(f"{name}: expected a sequence of str, got {values!r}")
    return texts


def interval(scores, confidence=0.95, low=-math.inf, high=math.inf):
    """The confidence interval of a mean, by Student's t distribution, cut off where no mean can lie.

    Parameters
    ----------
    scores : array of shape (n,)
        Independent of each other, one a seed.
    confidence : float in (0, 1)
    low, high : float
        Between which all scores lie that there can be; of an accuracy 0 and 1.

    Returns
    -------
    (float, float)
        NaN of fewer than two scores.
    """
    mean, half = float(np.mean(scores)), half_interval(scores, confidence)
    return tuple(float(end) for end in np.clip([mean - half, mean + half], low, high))


def half_interval(scores, confidence=0.95):
    """Half of the confidence interval of a mean, by Student's t distribution (Student 1908).

    Parameters
    ----------
    scores : array of shape (n,)
        Independent of each other, one a seed.
    confidence : float in (0, 1)

    Returns
    -------
    float
        NaN of fewer than two scores.
    """
    from scipy.special import stdtrit  # scipy.stats takes a second to import

    scores = np.asarray(scores, dtype=np.float64)
    if len(scores) < 2:
        return math.nan
    return float(stdtrit(len(scores) - 1, (1 + confidence) / 2) * scores.std(ddof=1) / math.sqrt(len(scores)))
