"""Windows that slide over images: what convolution and pooling check alike."""

import operator

_MOST = 2**31 - 1  # what compiled code takes; far beyond any image


def pair(name, value, least):
    """Return an int, or two of them for rows and columns, as a tuple of two."""
    values = tuple(value) if isinstance(value, tuple | list) else (value, value)
    try:
        numbers = tuple(operator.index(v) for v in values if not isinstance(v, bool))
    except TypeError:
        numbers = ()
    if len(numbers) != 2 or len(values) != 2:
        raise TypeError(f"{name}: expected an int or a pair of them, got {value!r}")
    if min(numbers) < least:
        raise ValueError(f"{name}: expected at least {least}, got {value!r}")
    if max(numbers) > _MOST:
        raise ValueError(f"{name}: expected at most {_MOST}, got {value!r}")
    return numbers


def window_counts(name, image, window, stride, padding, dilation=(1, 1)):
    """How many windows fit below and beside each other into a padded image; raise ValueError where none does."""
    spans = tuple(d * (k - 1) + 1 for d, k in zip(dilation, window, strict=True))
    padded = tuple(size + 2 * p for size, p in zip(image, padding, strict=True))
    if spans[0] > padded[0] or spans[1] > padded[1]:
        raise ValueError(
            f"{name}: expected windows that fit into the padded image of {padded[0]} x {padded[1]} pixels, "
            f"got windows that span {spans[0]} x {spans[1]}"
        )
    return tuple((size - span) // s + 1 for size, span, s in zip(padded, spans, stride, strict=True))
