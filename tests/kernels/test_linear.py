"""Products and the linear layer: the twin by central differences, the fast kernels against the twin."""

import numpy as np
import pytest

import dd2424fast as dd
from dd2424fast import kernels

EPS = {"float32": 2.0**-23, "float64": 2.0**-52}
# (rows, inner, columns): around the tile's heights (4 to 12 rows), the vectors (2 to 16 lanes), the panels (2 and 3
# vectors), the K-blocks (168 and 256), and the narrow right edge (1 to 4 columns).
SHAPES = [
    *[(1, 1, 1), (1, 3, 50), (2, 5, 16), (5, 1, 17), (7, 13, 3), (8, 64, 32), (9, 17, 33), (12, 31, 4)],
    *[(13, 168, 48), (13, 169, 49), (25, 256, 66), (26, 257, 97), (50, 300, 50), (100, 77, 10), (131, 40, 130)],
    *[
        (3, 1030, 20),
        (3, 2100, 2),
        (5, 3301, 3),
        (7, 3089, 50),
        (33, 3072, 10),
        (1100, 6, 19),
        (1000, 3, 139),
        (0, 4, 5),
        (4, 0, 5),
        (4, 5, 0),
    ],
]


@pytest.fixture
def threads():
    before = dd.get_num_threads()
    yield dd.set_num_threads
    dd.set_num_threads(before)


def matrices(shapes, dtype, seed=0):
    rng = np.random.default_rng(seed)
    return [rng.standard_normal(shape).astype(dtype) for shape in shapes]


def assert_within_budget(got, a, b, dtype, extra=0.0):
    """got = a b (+ extra) in exact arithmetic, within a rounding budget that scales with sum |a||b|,
    not with the cancelled sum."""
    exact = a.astype(np.longdouble) @ b.astype(np.longdouble) + extra
    budget = (
        2 * EPS[dtype] * (np.sqrt(a.shape[1]) + 2) * (np.abs(a).astype(float) @ np.abs(b).astype(float) + np.abs(extra))
    )
    assert got.dtype == dtype
    assert got.shape == exact.shape
    worst = np.abs(got - exact) - budget
    assert (worst <= 0).all(), f"off by {worst.max():.2e} beyond the budget"


def on_both_threads(run, threads):
    """The result on one thread, which must be that on two, bit for bit."""
    threads(1)
    one = run()
    threads(2)
    two = run()
    for a, b in zip(np.atleast_1d(one) if isinstance(one, np.ndarray) else one, two, strict=True):
        np.testing.assert_array_equal(a, b)
    return one


def test_budget_helper_fails_on_a_wrong_product():
    a, b = matrices([(5, 7), (7, 3)], "float64")
    wrong = a @ b
    wrong[2, 1] += 1e-12
    with pytest.raises(AssertionError, match="beyond the budget"):
        assert_within_budget(wrong, a, b, "float64")


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
class TestProducts:
    def test_matmul(self, shape, dtype, threads):
        M, K, N = shape
        a, b = matrices([(M, K), (K, N)], dtype)
        out = np.full((M, N), np.nan, dtype)
        got = on_both_threads(lambda: kernels.matmul.fast(a, b, out).copy(), threads)
        assert_within_budget(got, a, b, dtype)

    def test_packed(self, shape, dtype, threads):
        M, K, N = shape
        a, b = matrices([(M, K), (K, N)], dtype)
        packed = kernels.pack.fast(b)
        np.testing.assert_array_equal(packed.unpack(), b)
        np.testing.assert_array_equal(packed.panels, kernels.pack.numpy(b).panels)
        got = on_both_threads(lambda: kernels.matmul_packed.fast(a, packed), threads)
        assert_within_budget(got, a, b, dtype)

    def test_forward(self, shape, dtype, threads):
        M, K, N = shape
        x, W, b = matrices([(M, K), (K, N), (N,)], dtype)
        z = on_both_threads(lambda: kernels.linear_forward.fast(x, W, b), threads)
        assert_within_budget(z, x, W, dtype, b)
        for activation in ("relu", "leaky_relu", "tanh", "sigmoid"):
            got = on_both_threads(
                lambda activation=activation: kernels.linear_forward.fast(x, W, b, activation), threads
            )
            expected = kernels.activation_forward.numpy(z.astype("float64"), activation)
            np.testing.assert_allclose(got, expected, rtol=8 * EPS[dtype], atol=8 * EPS[dtype])

    def test_backward(self, shape, dtype, threads):
        N, D, H = shape
        dy, x, W = matrices([(N, H), (N, D), (D, H)], dtype)
        dx, dW, db = on_both_threads(lambda: kernels.linear_backward.fast(dy, x, W), threads)
        assert_within_budget(dx, dy, W.T, dtype)
        assert_within_budget(dW, x.T, dy, dtype)
        assert_within_budget(db[None], np.ones((1, N), dtype), dy, dtype)
        more = on_both_threads(
            lambda: kernels.linear_backward.fast(dy, x, W, None, dW.copy(), db.copy(), False, True, True)[1:], threads
        )
        assert_within_budget(more[0], x.T, dy, dtype, dW)
        assert_within_budget(more[1][None], np.ones((1, N), dtype), dy, dtype, db)


@pytest.fixture
def vectors():
    """Without the matrix unit, which would take the large products in float32."""
    before = dd.get_matrix_unit()
    dd.set_matrix_unit(False)
    yield
    dd.set_matrix_unit(before)


# x lies across more than 512 KiB, its rows 4 KiB apart and more: it is packed, 128 or 256 columns at a time. Less than
# a block of 256 rows and more, an edge or none, and more columns of dy than of x, which two threads share by panels.
@pytest.mark.usefixtures("vectors")
@pytest.mark.parametrize(
    ("dtype", "rows", "D", "H"),
    [
        *[("float64", 131, 515, 50), ("float64", 260, 645, 24), ("float64", 300, 513, 514)],
        *[("float32", 131, 1031, 50), ("float32", 260, 1285, 48), ("float32", 300, 1025, 1026)],
    ],
)
def test_the_gradient_of_a_large_x(dtype, rows, D, H, threads):
    x, dy, W = matrices([(rows, D), (rows, H), (D, H)], dtype)
    dW = on_both_threads(lambda: kernels.linear_backward.fast(dy, x, W, need_dx=False)[1], threads)
    double = dtype == "float32"  # exact enough, and ten times as fast
    exact = (x.astype("f8").T @ dy.astype("f8")) if double else x.astype(np.longdouble).T @ dy.astype(np.longdouble)
    budget = 2 * EPS[dtype] * (np.sqrt(rows) + 2) * (np.abs(x).astype("f8").T @ np.abs(dy).astype("f8"))
    assert (np.abs(dW - exact) <= budget).all()
    before = dW[1:, :3].copy()
    more = kernels.linear_backward.fast(dy, x, W, dW=dW, need_dx=False, accumulate=True, db=np.zeros(H, dtype))[1]
    assert (np.abs(more - 2 * exact) <= 3 * budget).all()
    assert more is dW
    assert not np.array_equal(before, dW[1:, :3])


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("shape", [(300, 50), (1813, 6), (3072, 50), (3072, 10)], ids=str)
def test_a_row_alone_has_the_same_bits(shape, dtype):
    """By default, in a batch of any size: also where a batch's long sums would be cut into chunks."""
    D, H = shape
    x, W, b = matrices([(530, D), (D, H), (H,)], dtype)
    whole = kernels.linear_forward.fast(x, W, b)
    for rows in (slice(7, 8), slice(100, 117), slice(200, 300)):
        np.testing.assert_array_equal(kernels.linear_forward.fast(x[rows], W, b), whole[rows])


def test_twin_gradient_by_central_differences():
    x, W, b, u = matrices([(3, 5), (5, 4), (4,), (3, 4)], "float64")
    dx, dW, db = kernels.linear_backward.numpy(u, x, W)
    eps = 1e-6
    for array, gradient in ((x, dx), (W, dW), (b, db)):
        for i in np.ndindex(array.shape):
            kept, sides = array[i], []
            for step in (eps, -eps):
                array[i] = kept + step
                sides.append((kernels.linear_forward.numpy(x, W, b) * u).sum())
            array[i] = kept
            assert gradient[i] == pytest.approx((sides[0] - sides[1]) / (2 * eps), rel=1e-7, abs=1e-9)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_known_values(dtype):
    x = np.array([[1, 2], [3, 4]], dtype)
    W = np.array([[1, 0, -1], [2, 1, 0]], dtype)
    b = np.array([0.5, -3, 0], dtype)
    np.testing.assert_array_equal(kernels.linear_forward(x, W, b, "relu"), [[5.5, 0, 0], [11.5, 1, 0]])
    dy = np.array([[1, 0, 2], [0, 1, 0]], dtype)
    dx, dW, db = kernels.linear_backward(dy, x, W)
    np.testing.assert_array_equal(dx, [[-1, 2], [0, 1]])
    np.testing.assert_array_equal(dW, [[1, 3, 2], [2, 4, 4]])
    np.testing.assert_array_equal(db, [1, 1, 2])


def test_rows_do_not_depend_on_their_neighbours():
    """A row's bits are the same in a batch of any size: what is predicted for one image is what is predicted among
    many."""
    x, W, b = matrices([(57, 300), (300, 50), (50,)], "float32")
    whole = kernels.linear_forward.fast(x, W, b)
    for i in (0, 7, 56):
        np.testing.assert_array_equal(kernels.linear_forward.fast(x[i : i + 1], W, b)[0], whole[i])


@pytest.mark.parametrize("backend", ["fast", "numpy"])
def test_nan_and_infinity_stay_visible(backend):
    x, W = matrices([(9, 6), (6, 50)], "float32")
    x[4, 2] = np.nan
    with dd.backend(backend):
        y = kernels.linear_forward(x, W, None, "relu")
    assert np.isnan(y[4]).all()
    assert np.isfinite(np.delete(y, 4, axis=0)).all()


def test_other_layouts_simply_work():
    x, W, b = matrices([(10, 6), (6, 50), (50,)], "float32")
    expected = kernels.linear_forward.fast(x, W, b)
    x.flags.writeable = False
    strided = np.zeros((10, 12), "float32")[:, ::2]
    strided[...] = x
    for other in (x, np.asfortranarray(x), strided):
        np.testing.assert_array_equal(kernels.linear_forward.fast(other, np.asfortranarray(W), b), expected)


@pytest.mark.parametrize("backend", ["fast", "numpy"])
@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"x": np.zeros((4, 5), "float32")}, ValueError, r"x: expected shape \(any, 6\), got \(4, 5\)"),
        ({"x": np.zeros((4, 6), "float64")}, TypeError, "x: expected dtype float32, got float64"),
        ({"x": np.zeros((4, 6), "int32")}, TypeError, "x: expected dtype float32, got int32"),
        ({"x": [[1.0] * 6]}, TypeError, "x: expected an ndarray of float32, got list"),
        ({"W": np.zeros(6, "float32")}, ValueError, "W: expected shape"),
        ({"W": np.zeros((6, 3), "float16")}, TypeError, "W: expected dtype float32 or float64, got float16"),
        ({"W": np.zeros((6, 3), ">f4")}, TypeError, "W: expected dtype float32 or float64"),
        ({"b": np.zeros(2, "float32")}, ValueError, r"b: expected shape \(3,\), got \(2,\)"),
        ({"activation": "gelu"}, ValueError, "activation: expected one of identity, relu, .*, got 'gelu'"),
        ({"activation": "rleu"}, ValueError, "activation: expected one of"),
        ({"out": np.zeros((4, 2), "float32")}, ValueError, r"out: expected shape \(4, 3\), got \(4, 2\)"),
        ({"out": np.zeros((3, 4), "float32").T}, ValueError, "out: expected a C-contiguous array"),
    ],
    ids=lambda value: str(value)[:30] if isinstance(value, str) else "",
)  # fmt: skip
def test_bad_input_is_named(backend, change, error, message):
    good = {"x": np.zeros((4, 6), "float32"), "W": np.zeros((6, 3), "float32"), "b": np.zeros(3, "float32")}
    with dd.backend(backend), pytest.raises(error, match=message):
        kernels.linear_forward(**{**good, **change})


def test_results_may_not_overlap_inputs():
    a, b = matrices([(6, 6), (6, 6)], "float32")
    with pytest.raises(
        ValueError, match="out: expected memory of its own for the result, got an array that overlaps a"
    ):
        kernels.matmul(a, b, a)
    with pytest.raises(ValueError, match="overlaps x"):
        kernels.linear_forward(a, b, out=a)
    with pytest.raises(ValueError, match=r"dx: .* overlaps dy"):
        kernels.linear_backward(a, b, b, dx=a)
    read_only = np.zeros((6, 6), "float32")
    read_only.flags.writeable = False
    with pytest.raises(ValueError, match="out: expected a writable array"):
        kernels.matmul(a, b, read_only)


def test_backward_flags():
    dy, x, W = matrices([(4, 3), (4, 6), (6, 3)], "float32")
    dx, dW, db = kernels.linear_backward(dy, x, W, need_dx=False, use_bias=False)
    assert dx is None
    assert db is None
    np.testing.assert_allclose(dW, x.T @ dy, rtol=1e-5)
    with pytest.raises(ValueError, match="accumulate: expected dW and db"):
        kernels.linear_backward(dy, x, W, accumulate=True)
    with pytest.raises(ValueError, match="dx: expected None"):
        kernels.linear_backward(dy, x, W, dx=np.empty_like(x), need_dx=False)
    for backward in (kernels.linear_backward.fast, kernels.linear_backward.numpy):
        dx, dW, db = backward(dy, x, W, need_dW=False, accumulate=True)
        assert dW is None
        assert db is None
        np.testing.assert_allclose(dx, dy @ W.T, rtol=1e-5, atol=1e-6)
        assert backward(dy, x, W, need_dx=False, need_dW=False) == (None, None, None)
    with pytest.raises(ValueError, match="dW: expected None where need_dW is False"):
        kernels.linear_backward(dy, x, W, dW=np.empty_like(W), need_dW=False)
    with pytest.raises(ValueError, match="db: expected None where need_dW is False"):
        kernels.linear_backward(dy, x, W, db=np.empty(3, "float32"), need_dW=False)


def test_pack_checks():
    b = np.ones((4, 5), "float32")
    with pytest.raises(ValueError, match="out: expected a PackedMatrix of shape"):
        kernels.pack(b, kernels.pack(np.ones((5, 4), "float32")))
    with pytest.raises(TypeError, match="packed: expected a PackedMatrix"):
        kernels.matmul_packed(b, b)
    again = kernels.pack(b)
    assert kernels.pack(2 * b, again) is again
    np.testing.assert_array_equal(again.unpack(), 2 * b)


def test_a_packed_matrix_made_by_hand_is_checked():
    a = np.ones((2, 3), "float32")
    for panels in (np.ones(1, "float32"), np.ones(400, "float32")[::2], np.ones(200, ">f4")):
        with pytest.raises((TypeError, ValueError), match=r"packed.panels: expected|a: expected"):
            kernels.matmul_packed(a, kernels.PackedMatrix(panels, (3, 50)))


def test_an_activation_that_is_no_str_is_named():
    for wrong in (["relu"], np.array(["relu", "tanh"])):
        with pytest.raises((TypeError, ValueError), match="activation: expected"):
            kernels.linear_forward(np.ones((2, 3)), np.ones((3, 2)), None, wrong)
