"""Holding out validation rows, and standardizing features."""

import tracemalloc

import numpy as np
import pytest

from dd2424fast.data import Standardizer, preparation, train_validation_split

# Splitting


def rows(n, classes=3):
    """Rows that carry their own label in the first column, and their number in the second."""
    y = np.arange(n) % classes
    return np.stack([y, np.arange(n)], axis=1), y


@pytest.mark.parametrize(
    ("validation", "held_out"), [(0.1, 10), (0.101, 11), (7, 7), (np.int64(7), 7), (np.float32(0.5), 50)]
)
@pytest.mark.parametrize("stratify", [True, False])
def test_split_partitions_the_rows(validation, held_out, stratify):
    x, y = rows(100)
    (x_train, y_train), (x_val, y_val) = train_validation_split(x, y, validation=validation, stratify=stratify)
    assert (len(x_train), len(y_train), len(x_val), len(y_val)) == (100 - held_out, 100 - held_out, held_out, held_out)
    assert sorted([*x_train[:, 1], *x_val[:, 1]]) == list(range(100))
    np.testing.assert_array_equal(x_train[:, 0], y_train)
    np.testing.assert_array_equal(x_val[:, 0], y_val)


def test_split_stratifies_unless_told_not_to():
    y = np.repeat([0, 1], [90, 10])
    for seed in range(5):
        _, (_, y_val) = train_validation_split(y, y, validation=0.2, seed=seed)
        assert np.bincount(y_val).tolist() == [18, 2]
    plain = [train_validation_split(y, y, validation=0.2, seed=s, stratify=False)[1][1].sum() for s in range(5)]
    assert len(set(plain)) > 1


def test_split_is_repeatable_and_leaves_global_random_state_alone():
    x, y = rows(50)
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    (first, _), _ = train_validation_split(x, y, seed=3)
    np.testing.assert_array_equal(first, train_validation_split(x, y, seed=3)[0][0])
    assert not np.array_equal(first, train_validation_split(x, y, seed=4)[0][0])
    np.testing.assert_array_equal(before, np.random.get_state()[1])  # noqa: NPY002


def test_split_returns_copies_of_the_same_dtype():
    x, y = np.zeros((20, 2, 2, 1), np.uint8), np.linspace(0, 1, 20, dtype=np.float32)
    (x_train, y_train), (x_val, _) = train_validation_split(x, y, stratify=False)
    assert (x_train.dtype, x_train.shape, y_train.dtype) == (np.uint8, (18, 2, 2, 1), np.float32)
    assert not np.shares_memory(x, x_train)
    assert not np.shares_memory(x, x_val)


@pytest.mark.parametrize(
    ("y", "arguments", "message"),
    [
        (rows(29)[1], {}, r"y: expected one entry per row of x, got shapes \(30, 2\) of x and \(29,\) of y"),
        (
            rows(30)[1],
            {"validation": 0},
            "validation: expected a fraction between 0 and 1, or 1 to 29 of the 30 rows, got 0",
        ),
        (rows(30)[1], {"validation": 30}, "validation: expected .* got 30"),
        (rows(30)[1], {"validation": 1.0}, "validation: expected .* got 1.0"),
        (
            rows(30)[1],
            {"validation": 2},
            "validation: expected at least 3 rows on either side, one per class, got 2 and 28",
        ),
        (rows(30)[1], {"validation": 28}, "validation: expected at least 3 rows .* got 28 and 2"),
        (np.arange(30.0), {}, "y: expected at least 2 rows of each class to stratify, got 1 of 0.0; stratify=False"),
        (np.zeros((30, 2)), {}, r"y: expected shape \(n,\) to stratify, got \(30, 2\)"),
        (rows(30)[1], {"seed": -1}, "seed: expected an integer from 0"),
    ],
)
def test_split_refuses(y, arguments, message):
    with pytest.raises(ValueError, match=message):
        train_validation_split(rows(30)[0], y, **arguments)


@pytest.mark.parametrize("arguments", [{"validation": "0.1"}, {"validation": True}, {"seed": None}, {"seed": 0.5}])
def test_split_refuses_types(arguments):
    with pytest.raises(TypeError, match=f"{next(iter(arguments))}: expected"):
        train_validation_split(*rows(30), **arguments)


# Standardizing

IMAGES = np.random.default_rng(0).integers(0, 256, (50, 6, 5, 3), np.uint8)


@pytest.mark.parametrize("axis", [0, (0, 1, 2), (2, 0), (0, 3), (0, 1, 2, 3)])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_standardizer_equals_its_definition(monkeypatch, axis, dtype):
    monkeypatch.setattr(preparation, "_CHUNK", 7 * 90)  # eight blocks, the last one shorter
    x, kept = IMAGES, IMAGES.copy()
    standardizer = Standardizer(axis, dtype)
    z = standardizer.fit_transform(x)
    mean, std = x.mean(axis, keepdims=True), x.std(axis, keepdims=True)
    assert (z.dtype, z.shape, z.flags.c_contiguous) == (dtype, x.shape, True)
    assert standardizer.mean.dtype == standardizer.std.dtype == np.float64
    np.testing.assert_allclose(standardizer.mean, mean.squeeze(axis), rtol=1e-14)
    np.testing.assert_allclose(standardizer.std, std.squeeze(axis), rtol=1e-13)
    tolerance = 1e-12 if dtype == "float64" else 1e-6
    np.testing.assert_allclose(z, (x - mean) / std, rtol=0, atol=tolerance)
    back = standardizer.inverse_transform(z)
    assert back.dtype == dtype
    np.testing.assert_allclose(back, x, rtol=0, atol=255 * tolerance)
    np.testing.assert_array_equal(x, kept)


def test_standardizer_by_hand():
    standardizer = Standardizer(dtype="float64").fit([[1, 10], [3, 10], [5, 10]])
    np.testing.assert_allclose(standardizer.mean, [3, 10], rtol=1e-15)
    np.testing.assert_allclose(standardizer.std, [np.sqrt(8 / 3), 1], rtol=1e-15)
    np.testing.assert_allclose(standardizer.transform([[3 + np.sqrt(6), 12]]), [[1.5, 2]], rtol=1e-15)


def test_test_data_is_transformed_with_the_training_statistics():
    standardizer = Standardizer(dtype="float64").fit(IMAGES[:40])
    z = standardizer.transform(IMAGES[40:])
    np.testing.assert_allclose(z, (IMAGES[40:] - IMAGES[:40].mean(0)) / IMAGES[:40].std(0), rtol=0, atol=1e-12)


def test_strided_and_one_dimensional_input():
    standardizer = Standardizer(dtype="float64")
    x = IMAGES[::-2, :, ::2]
    np.testing.assert_array_equal(standardizer.fit_transform(x), standardizer.fit_transform(x.copy()))
    np.testing.assert_array_equal(standardizer.fit_transform(np.asfortranarray(x)), standardizer.fit_transform(x))
    assert standardizer.fit_transform([1.0, 3.0]).tolist() == [-1.0, 1.0]
    assert standardizer.transform(np.zeros(0)).shape == (0,)


@pytest.mark.parametrize("constant", [0.1, -1e300, 1e-300, 1 / 3])
def test_constant_features_become_zero(constant):
    """Plain mean and variance leave 0.1 a std of 1e-17, and a standardized value of 1."""
    x = np.full((1001, 2), constant)
    x[:, 1] = np.arange(1001)
    standardizer = Standardizer(dtype="float64")
    z = standardizer.fit_transform(x)
    assert standardizer.std[0] == 1
    assert standardizer.mean[0] == constant
    assert not z[:, 0].any()
    assert z[:, 1].std() == pytest.approx(1)


def test_large_offsets_do_not_cancel():
    x = 1e8 + np.random.default_rng(1).normal(size=(1000, 2))
    z = Standardizer(dtype="float64").fit_transform(x)
    np.testing.assert_allclose(z.std(axis=0), 1, rtol=1e-7)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("axis", [0, (0, 1, 2)])
def test_fit_names_the_first_value_that_is_not_finite(monkeypatch, bad, axis):
    monkeypatch.setattr(preparation, "_CHUNK", 7 * 90)
    x = IMAGES.astype(np.float32)
    x[20, 3, 4, 1] = x[33, 0, 0, 0] = bad
    with pytest.raises(ValueError, match=rf"x: expected finite numbers, got {bad} in row 20, feature \(3, 4, 1\)"):
        Standardizer(axis).fit(x)
    with pytest.raises(ValueError, match=rf"got {bad} in row 0, feature 1$"):
        Standardizer().fit([[1.0, bad]])


def test_fit_refuses_values_too_large_to_square():
    with pytest.raises(ValueError, match="squares"):
        Standardizer().fit([[1e200], [-1e200]])


def test_failed_fit_keeps_the_earlier_one():
    standardizer = Standardizer().fit([[1.0], [3.0]])
    with pytest.raises(ValueError, match="finite"):
        standardizer.fit([[np.nan]])
    assert standardizer.mean.tolist() == [2.0]


@pytest.mark.parametrize(
    ("axis", "shape", "message"),
    [
        (0, (50, 90), r"x: expected shape \(n, 6, 5, 3\), got \(50, 90\)"),
        (0, (50, 5, 6, 3), r"x: expected shape \(n, 6, 5, 3\), got \(50, 5, 6, 3\)"),
        ((0, 1, 2), (50, 6, 5, 1), r"x: expected shape \(n, any, any, 3\), got \(50, 6, 5, 1\)"),
        ((0, 3), (6, 5), r"x: expected shape \(n, 6, 5, any\), got \(6, 5\)"),
    ],
)
def test_wrong_shape(axis, shape, message):
    standardizer = Standardizer(axis).fit(IMAGES)
    for method in (standardizer.transform, standardizer.inverse_transform):
        with pytest.raises(ValueError, match=message):
            method(np.zeros(shape))


def test_channels_do_not_fix_the_image_size():
    standardizer = Standardizer((0, 1, 2), "float64").fit(IMAGES)
    np.testing.assert_array_equal(standardizer.transform(IMAGES[:, :2, :2]), standardizer.transform(IMAGES)[:, :2, :2])


@pytest.mark.parametrize("x", [np.zeros((0, 3)), np.zeros((3, 0)), np.float64(1.0), np.zeros((0, 3), np.uint8)])
def test_fit_needs_data(x):
    with pytest.raises(ValueError, match="x: expected data, with 1 axes or more, got shape"):
        Standardizer().fit(x)


@pytest.mark.parametrize("x", [[["a"]], [[None]], [[1j]]])
def test_only_real_numbers(x):
    with pytest.raises(TypeError, match="x: expected integers or floats, got dtype"):
        Standardizer().fit(x)


@pytest.mark.parametrize("axis", [1, (1, 2), (), (0, 0), (0, -1), None, 0.0, "0"])
def test_wrong_axis(axis):
    with pytest.raises(ValueError, match="axis: expected different axes"):
        Standardizer(axis)


@pytest.mark.parametrize("dtype", ["float16", int, None, "bogus"])
def test_wrong_dtype(dtype):
    with pytest.raises(ValueError, match="dtype: expected 'float32' or 'float64'"):
        Standardizer(dtype=dtype)


def test_before_fit():
    standardizer = Standardizer()
    assert standardizer.mean is None
    for call in (
        lambda: standardizer.transform([[1]]),
        lambda: standardizer.inverse_transform([[1]]),
        standardizer.state_dict,
    ):
        with pytest.raises(RuntimeError, match="call fit"):
            call()


@pytest.mark.parametrize("axis", [0, (0, 1, 2)])
def test_a_file_holds_it_all(axis, tmp_path):
    fitted, path = Standardizer(axis).fit(IMAGES), tmp_path / "scale.safetensors"
    fitted.save(path)
    for dtype in ("float32", "float64"):
        z = Standardizer.load(path, dtype).transform(IMAGES)
        assert z.dtype == dtype
        np.testing.assert_array_equal(z, Standardizer(axis, dtype).fit(IMAGES).transform(IMAGES))
    with pytest.raises(ValueError, match=r"^dtype: expected 'float32' or 'float64', got 'int8'"):
        Standardizer.load(path, "int8")
    (before,) = tmp_path.iterdir()
    with pytest.raises(RuntimeError, match="call fit"):
        Standardizer().save(path)
    assert list(tmp_path.iterdir()) == [before]


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"weight": np.ones(3)}, "x.safetensors: holds no standardizer"),
        ({"axis": np.array([0]), "mean": np.ones(2), "std": np.zeros(2)}, "no standardizer .*std above 0"),
        ({"axis": np.array([1]), "mean": np.ones(2), "std": np.ones(2)}, "no standardizer .*counted from the front"),
    ],
)
def test_a_file_that_holds_none(tensors, message, tmp_path):
    from safetensors.numpy import save_file

    save_file(tensors, tmp_path / "x.safetensors")
    with pytest.raises(ValueError, match=message):
        Standardizer.load(tmp_path / "x.safetensors")
    with pytest.raises(FileNotFoundError, match="there is no file"):
        Standardizer.load(tmp_path / "absent")


@pytest.mark.parametrize("axis", [0, (0, 1, 2)])
def test_state_goes_through_a_checkpoint(axis):
    fitted = Standardizer(axis).fit(IMAGES)
    state = fitted.state_dict()
    assert {key: value.dtype for key, value in state.items()} == {"mean": float, "std": float, "axis": int}
    restored = Standardizer(axis)
    restored.load_state_dict(state)
    np.testing.assert_array_equal(restored.transform(IMAGES), fitted.transform(IMAGES))
    state["mean"][...] = state["std"][...] = 7
    np.testing.assert_array_equal(restored.transform(IMAGES), fitted.transform(IMAGES))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"axis": np.array([0, 1])}, r"state: expected axis \(0,\), got \(0, 1\)"),
        ({"std": np.ones(3)}, "of one shape"),
        ({"std": np.zeros(2)}, "std above 0"),
        ({"std": np.array([1, np.inf])}, "finite"),
        ({"mean": np.array([0, np.nan])}, "finite"),
        ({"more": 1}, "state: expected the keys 'mean', 'std' and 'axis', got"),
    ],
)
def test_wrong_state(change, message):
    standardizer = Standardizer().fit([[1.0, 2.0]])
    with pytest.raises(ValueError, match=message):
        standardizer.load_state_dict(standardizer.state_dict() | change)
    assert standardizer.mean.tolist() == [1.0, 2.0]


def test_memory_stays_below_a_few_blocks():
    x = np.zeros((3000, 32, 32, 3), np.uint8)  # 74 MB as float64
    standardizer = Standardizer()
    tracemalloc.start()
    standardizer.fit(x)
    fit_peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.reset_peak()
    z = standardizer.transform(x)
    transform_peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert fit_peak < 4 * 2**20
    assert transform_peak < z.nbytes + 4 * 2**20
