"""scikit-learn's digits, as images of small integers in a stratified, repeatable split."""

import numpy as np
import pytest
import sklearn.datasets

from dd2424fast.data import load_digits


@pytest.fixture(scope="module")
def digits():
    return load_digits()


def test_shapes_and_dtypes(digits):
    (x, y), (x_test, y_test) = digits
    assert (x.shape, x_test.shape) == ((1437, 8, 8, 1), (360, 8, 8, 1))
    assert (y.shape, y_test.shape) == ((1437,), (360,))
    assert (x.dtype, x_test.dtype) == (np.uint8, np.uint8)
    assert (y.dtype, y_test.dtype) == (np.int64, np.int64)
    assert x.flags.c_contiguous
    assert (x.min(), x.max()) == (0, 16)


def test_every_image_once_with_its_own_label(digits):
    got = sorted((*image.ravel().tolist(), label) for x, y in digits for image, label in zip(x, y, strict=True))
    source = sklearn.datasets.load_digits()
    assert got == sorted(
        (*row, label) for row, label in zip(source.data.astype(int).tolist(), source.target, strict=True)
    )


def test_classes_keep_their_share(digits):
    (_, y), (_, y_test) = digits
    total = np.bincount(y) + np.bincount(y_test)
    assert np.abs(np.bincount(y_test) - 0.2 * total).max() <= 1


def test_seed_decides(digits):
    assert all(np.array_equal(a, b) for a, b in zip(load_digits()[1], digits[1], strict=True))
    assert not np.array_equal(load_digits(seed=1)[1][0], digits[1][0])


def test_test_size_as_a_count():
    assert len(load_digits(test_size=100)[1][0]) == 100


@pytest.mark.parametrize("size", [0, 1.0, -0.1, 1797, float("nan"), 9])
def test_wrong_test_size(size):
    with pytest.raises(ValueError, match="test_size: expected"):
        load_digits(test_size=size)
