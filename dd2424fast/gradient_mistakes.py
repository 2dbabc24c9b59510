"""What is wrong with a gradient, in words: from the code's numbers and those of differences.

Each suspicion is a formula that the code's numbers would obey; it is named only where they do, to rounding.
"""

import itertools
import re
from dataclasses import dataclass, field

import numpy as np

from .differences import RIGHT, WRONG, Differences, LayerSubject, LossSubject, shifted
from .nn import BatchNorm, Sequential
from .nn.module import Workspace


@dataclass
class Facts:
    """What a factor may come from.

    Attributes
    ----------
    batch_size, classes, time_steps : int or None
    l2 : float or None
        lambda of loss = data loss + lambda * sum(W^2); None: not known.
    dropout : tuple of float
    """

    batch_size: int | None = None
    classes: int | None = None
    time_steps: int | None = None
    l2: float | None = None
    dropout: tuple = ()


@dataclass
class Layer:
    """Arrays that belong together.

    Attributes
    ----------
    names : list of str
    norm : bool
        Whether they are a batch normalisation's.
    """

    names: list = field(default_factory=list)
    norm: bool = False


@dataclass
class Finding:
    """A sentence about arrays: "{who}" stands for "the gradients of W1 and b1", and "{is}" and "{has}" follow it."""

    sentence: str
    arrays: list

    def __str__(self):
        many = len(self.arrays) > 1
        words = {"who": _of(self.arrays), "is": "are" if many else "is", "has": "have" if many else "has"}
        text = self.sentence.format(**words)
        return text[:1].upper() + text[1:]


def _of(names):
    return f"the gradient{'s' if len(names) > 1 else ''} of {_listed(names)}"


def _are(names):
    return f"{_of(names)} {'are' if len(names) > 1 else 'is'}"


def _listed(names):
    names = list(names)
    if len(names) > 6:
        names = [*names[:5], f"{len(names) - 5} others"]
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def explain(differences, measured, layers, facts, model_subject):
    """Say what is wrong.

    Parameters
    ----------
    differences : Differences
    measured : dict from name to Measured, by entries
    layers : list of Layer, from the input to the output; empty where there is no such order
    facts : Facts
    model_subject : ModelSubject, or None for a user's function

    Returns
    -------
    list of str
    """
    if not np.isfinite(differences.at_start):
        return [f"The loss itself is {differences.at_start}: there is no gradient to check."]
    cases = {name: _Case(m, differences, layers, facts, measured) for name, m in measured.items()}
    wrong = {name: case for name, case in cases.items() if case.m.wrong}
    if not wrong:
        return [
            "The entries that were looked at are right, a direction is not: raise `entries` until the wrong ones are "
            "among them."
        ]
    if facts.classes is None and layers:
        biases = [name for name in layers[-1].names if _is_bias(name, measured[name].value)]
        facts.classes = measured[biases[-1]].value.size if biases else None
    said = [] if model_subject is None else _by_layer(differences, model_subject, facts)
    if said:
        return said
    findings = _grouped(wrong)
    explained = {name for finding in findings for name in finding.arrays}
    sentences = [_with_its_place(finding, cases, layers) for finding in findings]
    unexplained = [name for name in wrong if name not in explained]
    if unexplained:
        sentences += _structural(cases, unexplained, layers, facts)
    return sentences


def _grouped(wrong):
    """One finding for all arrays of which the same can be said, the output's first."""
    found, notes = {}, {}
    for name in reversed(wrong):
        sentence = wrong[name].finding()
        if sentence is not None:
            sentence, _, note = sentence.partition(_NOTE)
            found.setdefault(sentence, []).insert(0, name)
            if note:
                notes.setdefault(sentence, {}).setdefault(note, []).insert(0, name)
    return [
        Finding(
            sentence + "".join(f" Of {_listed(of)}: {note}." for note, of in notes.get(sentence, {}).items()), names
        )
        for sentence, names in found.items()
    ]


_NOTE = "\0"  # what follows it in a sentence holds for some of the arrays only


def _with_its_place(finding, cases, layers):
    """The sentence; where it holds for all of the layers up to one, and for none behind it, it says where that is."""
    text = str(finding)
    places = [i for i, layer in enumerate(layers) if set(layer.names) & set(finding.arrays)]
    if len(finding.arrays) < 2 or not places or max(places) == len(layers) - 1:
        return text
    below = [name for layer in layers[: max(places) + 1] for name in layer.names]
    if all(name in finding.arrays or cases[name].silent for name in below):
        text += (
            f" It begins there: what is behind ({_listed(layers[max(places) + 1].names)}) is right, so look at how the "
            "gradient is passed down from there."
        )
    return text


# ---- one array -------------------------------------------------------------------------------------------------------


class _Case:
    """One array's numbers, where they may be trusted."""

    def __init__(self, m, differences, layers, facts, measured):
        self.m, self.facts, self.measured, self.layers = m, facts, measured, layers
        self.differences, self.noise = differences, differences.noise
        self.tolerance = max(differences.tolerance, 1e-6)
        keep = m.clean & np.isfinite(m.numeric)
        self.places = np.asarray(m.ways)[keep]
        self.N, self.noises = m.numeric[keep], m.noise[keep]
        self.A = m.computed[keep]
        self.W = m.value.reshape(-1)[self.places]
        self.wrong_here = m.verdict[keep] == WRONG
        self.full = len(self.places) == m.value.size
        self.bias = _is_bias(m.name, m.value)
        self.silent = not m.wrong and bool((np.abs(m.numeric) <= self.noise).all())

    def fits(self, prediction, gain=1.0, computed=None):
        """Whether the code's numbers are `prediction`, made of differences that `gain` multiplies, to rounding."""
        A = self.A if computed is None else computed
        if not len(A):
            return False
        slack = self.tolerance * (np.abs(A) + np.abs(prediction)) + (1 + abs(gain)) * self.noises
        return bool((np.abs(A - prediction) <= slack).all())

    def finding(self):
        """A sentence, or None."""
        if self.m.analytic.shape != self.m.value.shape:
            return self._shape()
        if not np.isfinite(self.m.analytic).all():
            return self._not_finite()
        if not self.m.analytic.any():
            return "{who} {is} zero everywhere: computed nowhere, overwritten, or added to a copy."
        suspicions = (
            self._factor, self._decay, self._factor_and_decay, self._transposed, self._exchanged, self._permuted,
            self._per_unit,
        )  # fmt: skip
        for suspicion in suspicions:
            sentence = suspicion()
            if sentence is not None:
                return sentence
        return None

    def _shape(self):
        expected, got = self.m.value.shape, self.m.analytic.shape
        text = f"{{who}} {{has}} shape {got}, expected {expected}: "
        A = self.m.analytic
        if got == expected[::-1] and A.size == self.m.value.size:
            right = self.fits(self.N, computed=A.T.reshape(-1)[self.places])
            return text + (
                "it is transposed, and right otherwise." if right else "transposed, and wrong otherwise too."
            )
        if A.size == self.m.value.size:
            right = self.fits(self.N, computed=A.reshape(-1)[self.places])
            keep = "keep the axis (keepdims=True, or reshape)"
            return text + (f"its numbers are right; {keep}." if right else f"{keep}, and its numbers are wrong too.")
        if self.bias and self.facts.batch_size in got and A.size == self.facts.batch_size:
            return text + "one number a sample: it is summed over the wrong axis."
        if self.bias and self.facts.batch_size and A.size == self.m.value.size * self.facts.batch_size:
            return text + "it is not summed over the batch."
        return text + "a product or a sum in the wrong order or over the wrong axis."

    def _not_finite(self):
        first = tuple(int(i) for i in np.argwhere(~np.isfinite(self.m.analytic))[0])
        value = self.m.analytic[first]
        return f"{{who}} {{has}} {value} at {list(first)}: a division by zero, or a logarithm or power that overflows."

    def _constant(self, N, A):
        """c where A = c N, else None."""
        square = float(N @ N)
        if not square or np.count_nonzero(np.abs(N) > 10 * self.noise) < min(2, self.m.value.size):
            return None
        c = float(A @ N) / square
        return c if abs(c) > 1e-6 and self.fits(c * N, c, A) else None

    def _factor(self):
        c = self._constant(self.N, self.A)
        if c is None or (len(self.A) == 1 and not causes(c, self.facts)):
            return None
        return f"{{who}} {factor(c, self.facts)}."

    def _decay(self):
        """A = N + beta W."""
        square = float(self.W @ self.W)
        if not square or len(self.A) < 2:
            return None
        beta = float((self.A - self.N) @ self.W) / square
        if not self.fits(self.N + beta * self.W) or abs(beta) * np.abs(self.W).max() < 10 * self.noise:
            return None
        return f"{{who}} {self._of_decay(beta)}."

    def _of_decay(self, beta):
        """In words: a term beta W too much."""
        l2 = self.facts.l2
        if self.bias:
            return "{has} an L2 term that the loss has not: it penalises the weights, not the biases"
        if not l2:
            if beta > 0:
                return f"{{has}} {beta:.6g} * W too much: an L2 term that the loss has not, or has once only"
            return (
                f"{{is}} without an L2 term, or with too small a one: the loss grows with {-beta / 2:.6g} * sum(W^2) "
                f"beyond it, so add {-beta:.6g} * W"
            )
        ratio = 1 + beta / (2 * l2)  # the code's term over the right one
        n = self.facts.batch_size
        if abs(ratio) < 1e-4:
            return f"{{is}} without the L2 term: add 2 * lambda * W = {2 * l2:g} * W"
        if abs(ratio - 0.5) < 1e-4:
            return "{is} right but for the L2 term: the derivative of lambda * W^2 is 2 * lambda * W, not lambda * W"
        if abs(ratio - 2) < 1e-4:
            return "{has} the L2 term twice"
        if abs(ratio + 1) < 1e-4:
            return "{has} the L2 term with the wrong sign"
        if n and abs(ratio * n - 1) < 1e-3:
            return f"{{has}} the L2 term divided by the batch size ({n}): only the data's part is a mean over the batch"
        if n and abs(ratio / n - 1) < 1e-3:
            return f"{{has}} the L2 term {n} times, once a sample: add it once, after the sum over the batch"
        return f"{{is}} right but for the L2 term, which is {ratio:.6g} times the right one"

    def _factor_and_decay(self):
        """A = c D + s 2 lambda W, where N = D + 2 lambda W."""
        if self.bias or len(self.A) < 4 or not self.W.any() or self.facts.l2 == 0:
            return None
        (c, beta), *_ = np.linalg.lstsq(np.stack([self.N, self.W], axis=1), self.A, rcond=None)
        known = abs(c + 1) < 1e-5 or (abs(c - 1) > 1e-5 and causes(c, self.facts, True))
        if not known or not self.fits(c * self.N + beta * self.W, c):
            return None
        l2 = self.facts.l2
        if l2 is None:
            l2 = beta / (2 * (1 - c))  # of the code whose L2 term is right
            if l2 <= 0:
                return None
        share = (beta + 2 * l2 * c) / (2 * l2)
        if abs(share - 1) < 1e-4:
            note = f"the part from the data; the L2 term (lambda = {l2:.6g}) is right"
        else:
            wrong = self._of_decay((share - 1) * 2 * l2).format(**{"is": "it is", "has": "it has"})
            note = f"the part from the data; and {wrong}"
        return f"{{who}} {factor(c, self.facts)}.{_NOTE}{note}"

    def _transposed(self):
        A, shape = self.m.analytic, self.m.value.shape
        if A.ndim != 2 or min(shape) < 2 or len(self.places) < 4:
            return None
        parts = [(self.N, A, "")]
        if self.facts.l2:
            decay = 2 * self.facts.l2
            term = decay * self.m.value
            parts.append((self.N - decay * self.W, A - term, "but for the L2 term, "))
        for N, gradient, part in parts:
            if shape[0] == shape[1]:
                turned, how = gradient.T, "transposed"
            else:
                turned, how = gradient.reshape(shape[::-1]).T, "laid out for the transposed shape, then reshaped"
            if self.fits(N, computed=np.ascontiguousarray(turned).reshape(-1)[self.places]):
                return f"{{who}} {{is}} {part}{how}: swap the factors of the product, or use .T, not reshape."
        return None

    def _exchanged(self):
        for other in self.measured.values():
            if other is self.m or other.value.shape != self.m.value.shape or other.analytic.shape != other.value.shape:
                continue
            theirs = other.analytic.reshape(-1)[self.places]
            if np.abs(self.N).max(initial=0) > 10 * self.noise and self.fits(self.N, computed=theirs):
                mine = self.m.analytic.reshape(-1)[np.asarray(other.ways)]
                back = np.abs(mine - other.numeric) <= self.tolerance * np.abs(mine) + 2 * self.noise
                if back.all():
                    first, second = sorted((self.m.name, other.name))
                    return f"The gradients of {first} and {second} are exchanged."
                return f"The gradient that {other.name} is given is that of {self.m.name}."
        return None

    def _permuted(self):
        if not self.full or self.m.value.size < 3 or self.m.value.ndim > 2:
            return None
        N, A = self.N.reshape(self.m.value.shape), self.m.analytic
        if self.bias:
            N, A = N.reshape(-1, 1), A.reshape(-1, 1)
        for what, n, a in (("rows", N, A), ("columns", N.T, A.T)):
            order = self._order(n, a)
            if order is not None:
                what = "entries" if self.bias else what
                how = "in reverse order" if list(order) == list(range(len(order)))[::-1] else "in another order"
                return f"{{who}} {{has}} the right {what}, but {how}: {what} {_listed(map(str, order))}, first to last."
        return None

    def _order(self, n, a):
        """The rows of n that those of a are, where they are a permutation."""
        if len(n) < 2:
            return None
        slack = self.tolerance * (np.abs(a)[:, None] + np.abs(n)[None]) + 2 * self.noise
        same = (np.abs(a[:, None] - n[None]) <= slack).all(axis=2)
        if not (same.sum(axis=1) == 1).all() or not (same.sum(axis=0) == 1).all():
            return None
        return [int(i) for i in same.argmax(axis=1)]

    def _per_unit(self):
        """Every unit's gradients have a factor of their own: that of a batch normalisation behind it."""
        gain = _gain_behind(self.m.name, self.layers, self.measured)
        if self.bias or not self.full or self.m.value.ndim != 2 or gain is None:
            return None
        gain, said = gain.reshape(-1), None
        for axis in (0, 1):
            N, A, W = (
                np.moveaxis(a.reshape(self.m.value.shape), axis, 0) for a in (self.N, self.m.analytic, self.m.value)
            )
            if len(N) != len(gain) or N.shape[1] < 3 or np.ptp(gain) < 1e-6:
                continue
            if self._scaled(N, A, W, 1 / gain):
                return "{who} {is} not multiplied by the batch normalisation's gamma."
            if self._scaled(N, A, W, gain):
                return "{who} {is} multiplied by the batch normalisation's gamma twice."
            decay = 2 * (self.facts.l2 or 0.0) * W
            c = ((N - decay) * (A - decay)).sum(axis=1) / np.maximum(np.square(N - decay).sum(axis=1), 1e-300)
            if np.abs(c).max() > 1e-6 and self._scaled(N, A, W, c):
                said = (
                    f"{{who}} {{has}} a factor of its own for each unit ({', '.join(f'{v:.4g}' for v in c[:3])}, ...), "
                    "as if 1 / sqrt(variance + eps) of the batch normalisation were missing, or there twice."
                )
        return said

    def _scaled(self, N, A, W, c):
        """Whether A = c D + 2 lambda W in every row, where N = D + 2 lambda W."""
        rest, along = A - c[:, None] * N, (1 - c)[:, None] * W
        decay = 2 * self.facts.l2 if self.facts.l2 is not None else float((rest * along).sum() / np.square(along).sum())
        slack = self.tolerance * (np.abs(A) + np.abs(c[:, None] * N) + np.abs(decay * along))
        return bool((np.abs(rest - decay * along) <= slack + (1 + np.abs(c[:, None])) * self.noise).all())


def _is_bias(name, value):
    """Whether an array is a bias (or a gain), not a matrix of weights."""
    return value.ndim < 2 or (max(value.shape) == value.size and _stem(name)[:1] in ("b", "g"))


def _stem(name):
    """The name's last word, in lower case: "bias" of "2.bias", "w" of "W[0]", "gamma" of "gamma1"."""
    words = re.findall(r"[a-z_]+", name.lower().rpartition(".")[2])
    return words[0].strip("_") if words else ""


# ---- factors ---------------------------------------------------------------------------------------------------------


def factor(c, facts):
    """In words: a gradient that is c times the right one."""
    size = abs(c)
    if abs(size - 1) < 1e-5:
        return "{has} the wrong sign"
    text = f"{{is}} {size:.6g} times too large" if size > 1 else f"{{is}} {1 / size:.6g} times too small"
    if c < 0:
        text = "{has} the wrong sign and " + text
    known = causes(c, facts)
    if not known:
        known = ["a constant factor, the same in every entry" + _question(size, facts)]
    return f"{text}: {', or '.join(known)}"


def causes(c, facts, guess=False):
    """What may have made a gradient |c| times the right one, most likely first; with `guess`, a whole factor too."""
    n, classes, steps = facts.batch_size, facts.classes, facts.time_steps
    known = [
        (n, f"summed over the batch of {n} where the loss is the mean", f"divided by the batch size ({n}) twice"),
        (
            n and steps and n * steps,
            f"summed over the {n} sequences and {steps} steps where the loss is the mean",
            f"divided by batch size and steps ({n} * {steps}) twice",
        ),
        (steps, f"summed over the {steps} steps where the loss is the mean", f"divided by {steps} steps twice"),
        (
            2,
            "the factor 2 of a square's derivative is there where the loss has none, or a half",
            "the factor 2 of a square's derivative is missing",
        ),
        (
            classes,
            f"summed over the {classes} outputs where the loss is the mean",
            f"divided by the number of outputs ({classes}), which the loss is not",
        ),
    ]
    found = []
    for p in facts.dropout:
        for power in (1, 2, 3):
            layers = "" if power == 1 else f" of {power} layers"
            known.append(
                (
                    (1 - p) ** -power,
                    f"dropout's 1 / (1 - p){layers} is there twice in the backward pass (p = {p:g})",
                    f"dropout's 1 / (1 - p){layers} is missing in the backward pass (p = {p:g})",
                )
            )
    for value, large, small in known:
        if value and value != 1:
            if abs(abs(c) / value - 1) < 1e-5:
                found.append(large)
            elif abs(abs(c) * value - 1) < 1e-5:
                found.append(small)
    if guess and not found and _question(abs(c), facts):
        return [_question(abs(c), facts)]
    return list(dict.fromkeys(found))


def _question(size, facts):
    """A whole factor may be a number that only the user knows."""
    whole = size if size > 1 else 1 / size
    if facts.batch_size is None and whole > 1.5 and abs(whole - round(whole)) < 1e-5 * whole:
        where = "divide by it" if size > 1 else "it is divided by twice"
        return f"; is {round(whole)} the size of the batch? Then {where}"
    return ""


# ---- several arrays --------------------------------------------------------------------------------------------------


def _structural(cases, unexplained, layers, facts):
    """Where a mistake lies whose formula is none of the known ones."""
    place = max((i for i, layer in enumerate(layers) if set(layer.names) & set(unexplained)), default=None)
    if place is None:
        return [_plainly(cases, unexplained)]
    layer = layers[place]
    lower = [name for below in layers[:place] for name in below.names if name in unexplained]
    here = [name for name in layer.names if name in unexplained]
    others = [name for name in layer.names if name not in unexplained]
    follow = f" What is before it ({_listed(lower)}) is wrong too, and may follow from that." if lower else ""
    last = place == len(layers) - 1
    said = _top(cases, layers, facts) if last else None
    if said:
        return [said + follow]
    if others and all(not cases[name].m.wrong and not cases[name].silent for name in others):
        return [_one_of_a_layer(cases, here, others) + follow]
    if last:
        return [
            f"{_capital(_of(here))}, the last layer, {'are' if len(here) > 1 else 'is'} wrong already"
            + _few(cases, here)
            + ": look at the gradient of the loss with respect to the scores, then at that layer's product."
            + follow
        ]
    return [(_through_a_norm(cases, layers, place) or _between(cases, layers, place, here)) + follow]


def _capital(text):
    return text[:1].upper() + text[1:]


def _plainly(cases, names):
    return f"{_capital(_are(names))} wrong, by no formula that is known here{_few(cases, names)}."


def _few(cases, names):
    """Where in an array the wrong entries are, if they are few; else nothing."""
    parts = []
    for name in names:
        case = cases[name]
        shape, wrong = case.m.value.shape, case.places[case.wrong_here]
        if not len(wrong) or len(wrong) > len(case.places) / 2:
            continue
        index = np.stack(np.unravel_index(wrong, shape), axis=1)
        lines = [axis for axis in range(len(shape)) if len(shape) == 2 and shape[axis] > 1]
        single = [axis for axis in lines if len(wrong) > 1 and (index[:, axis] == index[0, axis]).all()]
        if single:
            kind = ("row", "column")[single[0]]
            parts.append(f"of {name} only {kind} {index[0, single[0]]}")
        else:
            shown = ", ".join(str([int(i) for i in row]) for row in index[:3])
            parts.append(f"of {name} only {shown}" + (f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""))
    return f" ({'; '.join(parts)})" if parts else ""


def _one_of_a_layer(cases, here, others):
    weights = [name for name in here if not cases[name].bias]
    few = _few(cases, here)
    if weights and not few and all(cases[name].bias for name in others):
        return (
            f"{_capital(_are(here))} wrong, {_of(others)} right: what arrives at "
            "this layer is right, its product with the layer's input is not. Is it the layer's own input, behind the "
            "activation, and the right order of the factors?"
        )
    return f"Only {_are(here)} wrong in this layer{few}; {_of(others)} {'are' if len(others) > 1 else 'is'} right."


def _top(cases, layers, facts):
    """The gradient of softmax and cross-entropy, seen in the last bias: its entries sum to 0 over the classes."""
    biases = [name for name in layers[-1].names if cases[name].bias and cases[name].m.wrong]
    if len(biases) != 1 or not cases[biases[0]].full or cases[biases[0]].m.value.size < 2:
        return None
    case = cases[biases[0]]
    size, noise = len(case.N), 4 * case.noise * len(case.N)
    if case.m.analytic.shape != case.m.value.shape or abs(case.N.sum()) > noise + 1e-6 * np.abs(case.N).sum():
        return None
    name, total, off = case.m.name, float(case.A.sum()), case.A - case.N
    n = facts.batch_size
    counts = n * off if n else None
    whole = n and bool((np.abs(counts - np.round(counts)) < 1e-5 * n).all())
    if abs(total - 1) < 1e-6 and (off >= -1e-6).all() and (whole or not n):
        return (
            f"The entries of {_of([name])} sum to 1, not to 0, and are too large by the classes' shares: the one-hot "
            "Y is not subtracted from P. The gradient of cross-entropy behind softmax is P - Y."
        )
    if abs(total + 1) < 1e-6 and (case.A <= 1e-9).all():
        if not n or (np.abs(n * case.A - np.round(n * case.A)) < 1e-5 * n).all():
            return (
                f"The entries of {_of([name])} are minus the classes' shares: it is made of -Y alone, P is missing. "
                "The gradient of cross-entropy behind softmax is P - Y."
            )
    if whole and abs(counts.sum()) < 1e-4:
        return (
            f"{_capital(_of([name]))} is off by whole multiples of 1 / {n}: it is the gradient for other labels than "
            "the loss has (is Y shifted or shuffled, or made from predictions?)."
        )
    if abs(total) > 1e-4 * np.abs(case.A).sum() + 1e-9:
        return (
            f"The entries of {_of([name])} sum to {total:.4g} over the {size} outputs, those of the true gradient to "
            "0, as P - Y of softmax and cross-entropy does: the gradient with respect to the scores is not P - Y (a "
            "part of softmax's derivative is missing, or a second one is multiplied on)."
        )
    return None


def _through_a_norm(cases, layers, place):
    """Batch normalisation whose backward pass takes the batch's mean and variance for constants."""
    norm = layers[place + 1]
    if not norm.norm or any(cases[name].m.wrong for name in norm.names):
        return None
    here = layers[place].names
    biases = [
        cases[name] for name in here if cases[name].bias and cases[name].m.analytic.shape == cases[name].m.value.shape
    ]
    weights = [name for name in here if not cases[name].bias]
    for case in biases:
        if (np.abs(case.N) <= 2 * case.noise).all() and case.m.wrong:
            return (
                f"{_capital(_are(norm.names))} right, {_are(weights or here)} "
                f"not, and {_of([case.m.name])} is not zero, as it is behind which a mean is taken away: the batch "
                "normalisation's backward pass takes the batch's mean (and variance) for constants."
            )
    for name in weights:
        case = cases[name]
        if case.full and case.m.value.ndim == 2 and _stretches(case):
            return (
                f"{_capital(_of(norm.names))} are right, {_of([name])} is not: it is not orthogonal to each unit's "
                "weights, whose length batch normalisation takes away. The backward pass takes the batch's variance "
                "for a constant."
            )
    return None


def _stretches(case):
    """Whether the code's gradient changes the length of the units' weights where the true one, but for an L2 term, does
    not."""
    shape = case.m.value.shape
    W, N, A = case.m.value, case.N.reshape(shape), case.m.analytic
    for axis in (0, 1):
        square = np.square(W).sum(axis=axis)
        if len(square) < 2 or not square.all():
            continue
        true, ours = (N * W).sum(axis=axis) / square, (A * W).sum(axis=axis) / square
        decay = true.mean()
        size = np.abs(N * W).sum(axis=axis) / square
        even = np.abs(true - decay) <= 1e-3 * size + 10 * case.noise
        if even.all() and np.abs(ours - decay).max() > 10 * max(np.abs(true - decay).max(), case.noise):
            return True
    return False


def _between(cases, layers, place, here):
    """The gradient is right down to a layer, and wrong from the one before on."""
    behind = [name for layer in layers[place + 1 :] for name in layer.names if not cases[name].m.wrong]
    first = layers[place + 1].names
    if not behind or any(cases[name].m.wrong for name in first):
        return _plainly(cases, here)
    text = f"{_capital(_of(first))} are right" if len(first) > 1 else f"{_capital(_of(first))} is right"
    text += f", {_are(here)} wrong{_few(cases, here)}: the mistake lies between. "
    if layers[place + 1].norm:
        return text + "Look at the batch normalisation's backward pass: through x itself, its mean and its variance."
    return text + _experiment(cases, layers[place], here)


def _experiment(cases, layer, here):
    """Move the layer's bias far down, and far up: where an activation is saturated its derivative, and with it the
    layer's gradient, is zero."""
    either = (
        "Either the activation's derivative is missing or wrong there, or the product with the weights behind (W^T G, "
        "with the W of the layer that G comes from)."
    )
    biases = [name for name in layer.names if cases[name].bias and _stem(name)[:1] == "b"]
    case = cases[biases[-1]] if biases else None
    if case is None or case.m.analytic.shape != case.m.value.shape:
        return either
    subject = case.differences.subject
    before = np.abs(case.m.analytic).max()
    quiet = 0
    for shift in (-50.0, 50.0):
        with shifted(subject.arrays, {case.m.name: shift}):
            loss, gradients = subject.loss(), subject.gradients()
            slopes = [
                case.differences.slope(case.m.name, way, case.differences.eps)[0]
                for way in range(min(case.m.value.size, 5))
            ]
            noise = 16 * np.finfo(float).eps * abs(loss) / case.differences.eps
        flat = max(map(abs, slopes)) <= noise
        ours = np.abs(gradients[case.m.name]).max()
        if flat and ours > 1e-3 * before:
            low, side = ("low", "below") if shift < 0 else ("high", "above")
            return (
                f"With {case.m.name} so {low} that every unit is far {side} zero, where the activation is flat, the "
                f"loss no longer depends on {case.m.name}, but the code gives it a gradient: the activation's "
                "derivative is missing, is that of another function, or is not taken at this layer's own input to the "
                "activation."
            )
        quiet += flat
        if not flat and _agrees(case, gradients, slopes, noise):
            return (
                f"With {case.m.name} so {'low' if shift < 0 else 'high'} that every unit is active, the gradient is "
                "right: the activation's derivative is there, but its mask is not that of this layer's own input to it "
                "(of another layer, or of the wrong array?)."
            )
    if quiet:
        return (
            "The activation's derivative is zero where the activation is flat, as it should be: look at the product "
            "with the weights behind first (W^T G, with the W of the layer that G comes from)."
        )
    return either


def _agrees(case, gradients, slopes, noise):
    ours = gradients[case.m.name].reshape(-1)[: len(slopes)]
    return bool(
        (np.abs(ours - slopes) <= case.tolerance * np.abs(slopes) + 2 * noise).all()
        and np.abs(slopes).max() > 10 * noise
    )


# ---- layers ----------------------------------------------------------------------------------------------------------


def function_layers(arrays):
    """A user's arrays as layers, by the last number in their names."""
    layers, place = {}, -1
    numbered = [name for name in arrays if re.search(r"\d", name)]
    in_a_list = all(re.fullmatch(r"parameters\[\d+\]", name) for name in arrays)
    for name, a in arrays.items():
        if in_a_list:  # a matrix, and the bias that follows it
            place += a.ndim > 1 and min(a.shape) > 1
            key = (place, False)
        else:
            number = int(re.findall(r"\d+", name)[-1]) if name in numbered else -1
            key = (number, _stem(name).startswith(("gam", "bet")))
        layers.setdefault(key, Layer(norm=key[1])).names.append(name)
    return [layers[key] for key in sorted(layers)]


def model_layers(subject):
    """A model's parameters as layers, in their order; the input first."""
    layers = {"x": Layer(["x"])} if "x" in subject.arrays else {}
    modules = dict(subject.model.modules())
    for name in subject.arrays:
        if name != "x":
            owner = name.rpartition(".")[0]
            layers.setdefault(owner, Layer(norm=isinstance(modules[owner], BatchNorm))).names.append(name)
    return list(layers.values())


def facts_of_model(subject, loss):
    """What a model and its batch tell."""
    x, y = subject.batch.x, np.asarray(subject.batch.y)
    model = subject.model
    steps = y.shape[1] if model.takes_lengths and y.ndim > 1 else None
    dropout = {module.p for _, module in model.modules() if getattr(module, "p", 0)}
    classes = None
    if isinstance(model, Sequential):
        shape = model.output_shape(x.shape[1:])
        classes = shape[-1] if shape else None
    return Facts(len(x), classes, steps, 0.0, tuple(sorted(dropout)))


def _gain_behind(name, layers, measured):
    """The gain of the batch normalisation behind an array's layer, or None."""
    for layer, behind in itertools.pairwise(layers):
        if name in layer.names and behind.norm:
            gains = [other for other in behind.names if _stem(other)[:1] in ("g", "w")]
            return measured[gains[0]].value if gains else None
    return None


def _by_layer(differences, subject, facts):
    """Check every layer of a Sequential, and the loss, by itself: sentences on those that are wrong."""
    model = subject.model
    if not isinstance(model, Sequential):
        return []
    subject.restore()
    work = Workspace(training=True)
    work.seed = subject._work.seed
    rng = np.random.default_rng(0)
    x, said = np.array(subject.batch.x), []
    for path, layer in _in_turn(model):
        y = np.array(layer._forward(x, work))
        v = rng.standard_normal(y.shape) / np.sqrt(y.size)
        said += _alone(LayerSubject(layer, x, v, work.seed), f"Layer {path}, {layer!r}", differences, facts)
        x = y
    subject.restore()
    loss = LossSubject(subject._loss, x, np.asarray(subject.batch.y), subject.batch.sample_weight)
    said += _alone(loss, f"The loss, {subject._loss!r}", differences, facts)
    return said


def _in_turn(model, path=""):
    names = model.children()
    for name, layer in zip(names, model.layers, strict=False):
        inside = f"{path}.{name}" if path else name
        if type(layer) is Sequential:
            yield from _in_turn(layer, inside)
        else:
            yield inside, layer


def _alone(subject, who, differences, facts):
    check = Differences(subject, differences.eps, differences.tolerance, 0)
    measured = {name: check.entries(name, 100) for name in subject.arrays}
    cases = {name: _Case(m, check, [], facts, measured) for name, m in measured.items()}
    wrong = {name: case for name, case in cases.items() if case.m.wrong}
    if not wrong:
        return []
    findings = _grouped(wrong)
    rest = [name for name in wrong if not any(name in finding.arrays for finding in findings)]
    parts = [str(finding).rstrip(".") for finding in findings]
    if rest:
        parts.append(_plainly(cases, rest).rstrip("."))
    parts = [part[:1].lower() + part[1:] for part in parts]
    right = [name for name, case in cases.items() if not case.m.wrong and (case.m.verdict == RIGHT).any()]
    also = f" ({_of(right)} {'are' if len(right) > 1 else 'is'} right)" if right else ""
    return [f"{who}, checked by itself: {'; '.join(parts)}{also}."]
