"""The handwritten digits that come with scikit-learn: 1797 images of 8 x 8 pixels, there without any download."""

import numpy as np

from dd2424fast.data.preparation import _split


def load_digits(*, test_size=0.2, seed=0):
    """Load scikit-learn's handwritten digits, split so that every class keeps its share.

    Parameters
    ----------
    test_size : float or int
        Fraction of the 1797 images (rounded up), or number of images, in the test set.
    seed : int
        The same seed gives the same split.

    Returns
    -------
    (x, y), (x_test, y_test) : tuples of ndarray
        Images, uint8 of shape (n, 8, 8, 1) with values 0 to 16; labels, int64 of shape (n,). The caller owns them.

    Raises
    ------
    ValueError
        `test_size` leaves a part with fewer images than classes, or `seed` is out of range.
    TypeError
        `test_size` or `seed` is not a number.

    References
    ----------
    E. Alpaydin and C. Kaynak, "Optical recognition of handwritten digits", UCI, 1998, https://doi.org/10.24432/C50P49

    Examples
    --------
    >>> (x, y), (x_test, y_test) = load_digits()
    >>> x.shape, x_test.shape
    ((1437, 8, 8, 1), (360, 8, 8, 1))
    """
    from sklearn.datasets import load_digits as load

    digits = load()
    x, y = digits.images[..., np.newaxis].astype(np.uint8), digits.target.astype(np.int64)
    return _split(x, y, test_size, name="test_size", seed=seed, stratify=True)
