import math

import numpy as np
import pytest

from dd2424fast.kernels import _team, binary_cross_entropy, mean_squared_error, softmax, softmax_cross_entropy

DTYPES = ["float32", "float64"]
BACKENDS = ["fast", "numpy"]
SHAPES = [
    (1, 1),
    (1, 4),
    (3, 2),
    (5, 7),
    (7, 8),
    (9, 10),
    (2, 15),
    (17, 16),
    (33, 17),
    (4, 33),
    (70, 80),
    (13, 131),
    (3001, 10),
]
VARIANTS = [
    {},
    {"label_smoothing": 0.1},
    {"label_smoothing": 0.2, "smoothing": "others"},
    {"class_weight": True},
    {"label_smoothing": 0.1, "class_weight": True, "sample_weight": True},
    {"label_smoothing": 0.3, "smoothing": "others", "class_weight": True, "ignore_index": 0},
    {"sample_weight": True, "ignore_index": 1},
    {"label_smoothing": 1.0},
]


def case(shape, dtype, variant, seed=0):
    """Logits, labels and keywords; every third label is the one to ignore where there is one."""
    rng = np.random.default_rng(seed)
    N, K = shape
    logits = (rng.normal(size=shape) * 3).astype(dtype)
    labels = rng.integers(0, K, N)
    keywords = dict(variant)
    if "class_weight" in keywords:
        keywords["class_weight"] = rng.uniform(0.2, 2, K).astype(dtype)
    if "sample_weight" in keywords:
        keywords["sample_weight"] = rng.uniform(0.2, 2, N).astype(dtype)
    if "ignore_index" in keywords:
        labels[1::3] = keywords["ignore_index"]
        labels[0] = K - 1
    if K <= 2 and ("ignore_index" in keywords or keywords.get("smoothing") == "others"):
        keywords = {}
    return logits, labels, keywords


def distributions(N, K, dtype, seed=0):
    """Rows of probabilities, every third one certain of a class."""
    t = np.random.default_rng(seed).dirichlet(np.full(K, 0.5), N)
    t[::3] = np.eye(K)[np.arange(len(t[::3])) % K]
    return t.astype(dtype)


def widened(keywords):
    return {k: v.astype("float64") if isinstance(v, np.ndarray) else v for k, v in keywords.items()}


def central_differences(loss_of, x, step=1e-5):
    gradient = np.empty_like(x)
    for i in np.ndindex(x.shape):
        kept = x[i]
        x[i] = kept + step
        up = loss_of()
        x[i] = kept - step
        gradient[i] = (up - loss_of()) / (2 * step)
        x[i] = kept
    return gradient


@pytest.fixture
def each_thread_count():
    before = _team.get_num_threads()

    def run(function):
        results = []
        for threads in (1, 2):
            _team.set_num_threads(threads)
            results.append(function())
        return results

    yield run
    _team.set_num_threads(before)


@pytest.mark.parametrize("variant", VARIANTS)
def test_cross_entropy_gradient_of_the_definition(variant):
    logits, labels, keywords = case((7, 5), "float64", variant)
    _, got = softmax_cross_entropy.numpy(logits, labels, **keywords)
    expected = central_differences(lambda: softmax_cross_entropy.numpy(logits, labels, **keywords)[0], logits)
    np.testing.assert_allclose(got, expected, rtol=1e-6, atol=1e-9)


SOFT = [variant for variant in VARIANTS if "ignore_index" not in variant]


@pytest.mark.parametrize("variant", SOFT)
def test_cross_entropy_of_distributions_gradient_of_the_definition(variant):
    logits, _, keywords = case((7, 5), "float64", variant)
    t = distributions(7, 5, "float64")
    _, got = softmax_cross_entropy.numpy(logits, t, **keywords)
    expected = central_differences(lambda: softmax_cross_entropy.numpy(logits, t, **keywords)[0], logits)
    np.testing.assert_allclose(got, expected, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("variant", SOFT)
def test_cross_entropy_of_distributions_fast_equals_definition(variant, dtype, each_thread_count):
    for N, K in SHAPES:
        logits, labels, keywords = case((N, K), dtype, variant)
        t = distributions(N, K, dtype)
        (loss, gradient), again = each_thread_count(lambda: softmax_cross_entropy.fast(logits, t, **keywords))  # noqa: B023
        assert loss == again[0]
        np.testing.assert_array_equal(gradient, again[1])
        exact, exact_gradient = softmax_cross_entropy.numpy(*widened({0: logits, 1: t}).values(), **widened(keywords))
        rtol = 1e-10 if dtype == "float64" else 8 * 2.0**-23
        assert loss == pytest.approx(exact, rel=rtol, abs=rtol)
        np.testing.assert_allclose(gradient, exact_gradient, rtol=2 * rtol, atol=2 * rtol / N)
        # Certain of a class it is the label, but for the mean with class weights.
        if "class_weight" not in keywords:
            one_hot = np.eye(K, dtype=dtype)[labels]
            value, gradient = softmax_cross_entropy.fast(logits, one_hot, **keywords)
            expected, expected_gradient = softmax_cross_entropy.fast(logits, labels, **keywords)
            assert value == pytest.approx(expected, rel=rtol, abs=rtol)
            np.testing.assert_allclose(gradient, expected_gradient, rtol=2 * rtol, atol=2 * rtol / N)


@pytest.mark.parametrize("backend", BACKENDS)
def test_cross_entropy_of_distributions_is_linear_in_them(backend):
    logits, labels, _ = case((9, 6), "float64", {})
    run, t = getattr(softmax_cross_entropy, backend), np.eye(6)[labels]
    for keywords in ({}, {"label_smoothing": 0.2}, {"label_smoothing": 0.2, "smoothing": "others"}):
        mixed, gradient = run(logits, 0.3 * t + 0.7 * t[::-1], **keywords)
        (a, da), (b, db) = run(logits, labels, **keywords), run(logits, labels[::-1].copy(), **keywords)
        assert mixed == pytest.approx(0.3 * a + 0.7 * b, rel=1e-13)
        np.testing.assert_allclose(gradient, 0.3 * da + 0.7 * db, rtol=1e-11, atol=1e-16)
    # a class ruled out by -infinity costs nothing where it has no share
    for K in (2, 9):
        x, t = np.zeros((1, K + 1)), np.full((1, K + 1), 1 / K)
        x[0, 1], t[0, 1] = -np.inf, 0
        assert run(x, t)[0] == pytest.approx(math.log(K), rel=1e-13)


def test_other_gradients_of_the_definitions():
    rng = np.random.default_rng(1)
    x, t, w = rng.normal(size=(5, 3)) * 2, rng.uniform(size=(5, 3)), rng.uniform(0.1, 3, 5)
    for loss, target in [
        (binary_cross_entropy, t),
        (binary_cross_entropy, rng.integers(0, 3, 5)),
        (mean_squared_error, t),
    ]:
        _, got = loss.numpy(x, target, w)
        expected = central_differences(lambda: loss.numpy(x, target, w)[0], x)  # noqa: B023
        np.testing.assert_allclose(got, expected, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("variant", VARIANTS)
def test_cross_entropy_fast_equals_definition(variant, dtype, each_thread_count):
    for shape in SHAPES:
        logits, labels, keywords = case(shape, dtype, variant)
        kept = logits.copy()
        (loss, gradient), again = each_thread_count(lambda: softmax_cross_entropy.fast(logits, labels, **keywords))  # noqa: B023
        assert loss == again[0]
        np.testing.assert_array_equal(gradient, again[1])
        np.testing.assert_array_equal(logits, kept)
        exact, exact_gradient = softmax_cross_entropy.numpy(logits.astype("float64"), labels, **widened(keywords))
        assert type(loss) is float
        assert gradient.dtype == dtype
        rtol = 1e-10 if dtype == "float64" else 8 * 2.0**-23
        assert loss == pytest.approx(exact, rel=rtol, abs=rtol)
        # p - t cancels where the prediction is right: the error is relative to p and t
        np.testing.assert_allclose(gradient, exact_gradient, rtol=2 * rtol, atol=2 * rtol / len(labels))


@pytest.mark.parametrize("dtype", DTYPES)
def test_others_fast_equal_definitions(dtype, each_thread_count):
    rtol = 1e-10 if dtype == "float64" else 16 * 2.0**-23
    rng = np.random.default_rng(3)
    for N, K in SHAPES:
        x, t = (rng.normal(size=(N, K)) * 3).astype(dtype), rng.uniform(size=(N, K)).astype(dtype)
        w, labels = rng.uniform(0.1, 2, N).astype(dtype), rng.integers(0, K, N)
        calls = [(binary_cross_entropy, x, t), (binary_cross_entropy, x, labels), (mean_squared_error, x, t)]
        calls.append((mean_squared_error, x[:, 0], t[:, 0]))
        for loss, a, b in calls:
            for weight in (None, w):
                (value, gradient), again = each_thread_count(lambda: loss.fast(a, b, weight))  # noqa: B023
                assert value == again[0]
                np.testing.assert_array_equal(gradient, again[1])
                wide = [v.astype("float64") if v is not None and v.dtype == dtype else v for v in (a, b, weight)]
                exact, exact_gradient = loss.numpy(*wide)
                assert value == pytest.approx(exact, rel=rtol)
                np.testing.assert_allclose(gradient, exact_gradient, rtol=rtol, atol=rtol / N / K)
        p, again = each_thread_count(lambda: softmax.fast(x))  # noqa: B023
        np.testing.assert_array_equal(p, again)
        np.testing.assert_allclose(p, softmax.numpy(x.astype("float64")), rtol=4 * rtol)
        np.testing.assert_allclose(p.sum(axis=1), 1, rtol=rtol)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("smoothing", [0.0, 0.15])
def test_pytorch_agrees(smoothing, weighted, dtype):
    torch = pytest.importorskip("torch")
    logits, labels, _ = case((37, 11), dtype, {})
    labels[::4] = -100
    weight = np.random.default_rng(5).uniform(0.1, 2, 11).astype(dtype) if weighted else None
    theirs = torch.from_numpy(logits).requires_grad_()
    loss = torch.nn.functional.cross_entropy(
        theirs,
        torch.from_numpy(labels),
        None if weight is None else torch.from_numpy(weight),
        label_smoothing=smoothing,
    )
    loss.backward()
    tolerance = {"rtol": 1e-5, "atol": 1e-7} if dtype == "float32" else {"rtol": 1e-11, "atol": 1e-15}
    for backend in BACKENDS:
        ours, gradient = getattr(softmax_cross_entropy, backend)(logits, labels, smoothing, class_weight=weight)
        np.testing.assert_allclose(ours, loss.item(), **tolerance)
        np.testing.assert_allclose(gradient, theirs.grad, **tolerance)
    theirs.grad, t = None, distributions(*logits.shape, dtype)
    loss = torch.nn.functional.cross_entropy(
        theirs,
        torch.from_numpy(t),
        None if weight is None else torch.from_numpy(weight),
        label_smoothing=smoothing,
    )
    loss.backward()
    for backend in BACKENDS:
        ours, gradient = getattr(softmax_cross_entropy, backend)(logits, t, smoothing, class_weight=weight)
        np.testing.assert_allclose(ours, loss.item(), **tolerance)
        np.testing.assert_allclose(gradient, theirs.grad, **tolerance)
    targets = np.random.default_rng(6).uniform(size=logits.shape).astype(dtype)
    for ours, function in [
        (binary_cross_entropy, torch.nn.functional.binary_cross_entropy_with_logits),
        (mean_squared_error, torch.nn.functional.mse_loss),
    ]:
        theirs.grad = None
        loss = function(theirs, torch.from_numpy(targets))
        loss.backward()
        value, gradient = ours(logits, targets)
        np.testing.assert_allclose(value, loss.item(), **tolerance)
        np.testing.assert_allclose(gradient, theirs.grad, **tolerance)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("backend", BACKENDS)
def test_known_values(backend, dtype):
    cross_entropy = getattr(softmax_cross_entropy, backend)
    loss, gradient = cross_entropy(np.log(np.array([[1, 2, 5]], dtype)), np.array([1]))
    assert loss == pytest.approx(math.log(4), rel=1e-6)
    np.testing.assert_allclose(gradient, [[0.125, -0.75, 0.625]], rtol=1e-6)
    # uniform prediction: log K whatever the targets are
    for keywords in ({}, {"label_smoothing": 0.3}, {"label_smoothing": 0.3, "smoothing": "others"}):
        loss, gradient = cross_entropy(np.full((3, 5), 7, dtype), np.array([0, 4, 2]), **keywords)
        assert loss == pytest.approx(math.log(5), rel=1e-6)
        np.testing.assert_allclose(gradient.sum(axis=1), 0, atol=1e-7)
    _, gradient = cross_entropy(np.zeros((1, 5), dtype), np.array([3]), 0.2, "others")
    np.testing.assert_allclose(gradient, [[0.15, 0.15, 0.15, -0.6, 0.15]], rtol=1e-6)
    # a right and a wrong prediction, each beyond where exp overflows
    loss, gradient = cross_entropy(np.array([[0, 2000.0], [0, -2000]], dtype), np.array([1, 1]))
    assert loss == 1000
    np.testing.assert_array_equal(gradient, [[0, 0], [0.5, -0.5]])
    loss, gradient = getattr(binary_cross_entropy, backend)(
        np.array([[0, 2000.0], [-2000, 0]], dtype), np.array([[1, 1], [1, 0]], dtype)
    )
    assert loss == pytest.approx((2 * math.log(2) + 2000) / 4, rel=1e-6)
    np.testing.assert_array_equal(gradient, [[-0.125, 0], [-0.25, 0.125]])
    loss, gradient = getattr(mean_squared_error, backend)(np.array([1, 2, 5], dtype), np.array([1, 4, 2], dtype))
    assert loss == pytest.approx(13 / 3, rel=1e-6)
    np.testing.assert_allclose(gradient, [0, -4 / 3, 2], rtol=1e-6)
    np.testing.assert_allclose(
        getattr(softmax, backend)(np.log(np.array([[1, 3], [1, 1]], dtype))), [[0.25, 0.75], [0.5, 0.5]], rtol=1e-6
    )


@pytest.mark.parametrize("backend", BACKENDS)
def test_whole_weights_are_repeated_rows(backend):
    rng = np.random.default_rng(7)
    logits, labels, v = rng.normal(size=(6, 4)), rng.integers(0, 4, 6), rng.uniform(0.5, 2, 4)
    times = np.array([1, 0, 3, 2, 0, 1])
    ignored = labels.copy()
    ignored[4] = -100
    cross_entropy = getattr(softmax_cross_entropy, backend)
    loss, gradient = cross_entropy(logits, ignored, 0.1, class_weight=v, sample_weight=times.astype(float))
    again, repeated = cross_entropy(np.repeat(logits, times, 0), np.repeat(labels, times), 0.1, class_weight=v)
    assert loss == pytest.approx(again, rel=1e-13)
    np.testing.assert_array_equal(gradient[times == 0], 0)
    np.testing.assert_allclose(gradient[[0, 2, 3, 5]] / [[1], [3], [2], [1]], repeated[[0, 1, 4, 6]], rtol=1e-12)
    for other in (binary_cross_entropy, mean_squared_error):
        t = rng.uniform(size=(6, 4))
        run = getattr(other, backend)
        assert run(logits, t, times.astype(float))[0] == pytest.approx(
            run(np.repeat(logits, times, 0), np.repeat(t, times, 0))[0], rel=1e-13
        )
    one_hot = np.eye(4)[labels]
    value, gradient = getattr(binary_cross_entropy, backend)(logits, labels)
    expected, expected_gradient = getattr(binary_cross_entropy, backend)(logits, one_hot)
    assert value == pytest.approx(expected, rel=1e-13)
    np.testing.assert_allclose(gradient, expected_gradient, rtol=1e-12)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("backend", BACKENDS)
def test_not_a_number_stays_visible(backend, dtype):
    for K in (3, 16, 40):
        for j in {0, 1, K // 2, K - 1}:
            for bad in (np.nan, np.inf, -np.inf):
                x = np.random.default_rng(8).normal(size=(40, K)).astype(dtype)
                x[37, j] = bad
                # NaN and infinity spoil the row wherever the label is; -infinity is harmless elsewhere
                label = j if bad == -np.inf else (j + 1) % K
                with np.errstate(all="ignore"):
                    loss, gradient = getattr(softmax_cross_entropy, backend)(x, np.full(40, label))
                    assert not math.isfinite(loss)
                    assert np.isfinite(gradient[:37]).all()
                    shares = np.full_like(x, 1 / K)
                    assert not math.isfinite(getattr(softmax_cross_entropy, backend)(x, shares)[0])
                    assert not math.isfinite(getattr(binary_cross_entropy, backend)(x, np.full_like(x, 0.5))[0])
                    assert not math.isfinite(getattr(mean_squared_error, backend)(x, np.zeros_like(x))[0])
                    p = getattr(softmax, backend)(x)
                assert np.isnan(p[37]).all() or (bad == -np.inf and p[37, j] == 0)
    # a class ruled out by -infinity costs nothing, and a row to ignore is not looked at
    x = np.array([[0, -np.inf, 0], [np.nan, 0, 0]], dtype)
    with np.errstate(all="ignore"):
        loss, gradient = getattr(softmax_cross_entropy, backend)(x, np.array([0, -100]))
    assert loss == pytest.approx(math.log(2), rel=1e-6)
    np.testing.assert_array_equal(gradient, [[-0.5, 0, 0.5], [0, 0, 0]])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("backend", BACKENDS)
def test_in_place_and_layouts(backend, dtype):
    for K in (5, 16, 37):
        logits, labels, keywords = case((33, K), dtype, {"label_smoothing": 0.1, "class_weight": True})
        targets = np.random.default_rng(9).uniform(size=(33, K)).astype(dtype)
        for kernel, arguments in [
            (softmax_cross_entropy, (labels, 0.1, "uniform", keywords["class_weight"])),
            (softmax_cross_entropy, (labels,)),
            (softmax_cross_entropy, (distributions(33, K, dtype), 0.1, "others", keywords["class_weight"])),
            (binary_cross_entropy, (targets,)),
            (binary_cross_entropy, (labels,)),
            (mean_squared_error, (targets,)),
        ]:
            run = getattr(kernel, backend)
            out = "dpredictions" if kernel is mean_squared_error else "dlogits"
            loss, expected = run(logits, *arguments)
            frozen = logits.copy()
            frozen.setflags(write=False)
            for given in (frozen, np.asfortranarray(logits), np.repeat(logits, 2, axis=1)[:, ::2]):
                value, gradient = run(given, *arguments)
                assert value == loss
                np.testing.assert_array_equal(gradient, expected)
            own = logits.copy()
            value, gradient = run(own, *arguments, **{out: own})
            assert gradient is own
            assert value == loss
            np.testing.assert_array_equal(own, expected)
        own = logits.copy()
        assert getattr(softmax, backend)(own, out=own) is own
        np.testing.assert_array_equal(own, getattr(softmax, backend)(logits))
    for integer in ("int8", "uint8", "int32", "uint64", ">i8"):
        assert softmax_cross_entropy(logits, labels.astype(integer))[0] == softmax_cross_entropy(logits, labels)[0]
    assert softmax(np.empty((0, 3), dtype)).shape == (0, 3)


def test_bad_input():
    z, y = np.zeros((4, 3)), np.array([0, 1, 2, 0])
    bad = [
        ({"labels": np.array([0, 3, 1, 1])}, ValueError, r"labels: expected classes 0 to 2 \(K = 3\), got 3 in row 1"),
        ({"labels": np.array([0, 1, -1, 1])}, ValueError, "labels: expected classes 0 to 2.*got -1 in row 2"),
        ({"labels": np.array([0, 1, 2**64 - 100, 1], "uint64")}, ValueError, "labels: .*in row 2"),
        ({"labels": y[:3]}, ValueError, r"labels: expected shape \(4,\), got \(3,\)"),
        ({"labels": y.astype(float)}, TypeError, "labels: expected dtype int64 or another integer, got float64"),
        ({"labels": np.ones((4, 3)) / 4}, ValueError, "labels: expected integers, or rows .* sum to 1, .* in row 0"),
        ({"labels": np.array([[0.5, 0.5, 0]] * 3 + [[2, -1, 0]])}, ValueError, "labels: .* from -1.0 to 2.0 in row 3"),
        ({"labels": np.full((4, 3), np.nan)}, ValueError, "labels: .* sum to 1"),
        ({"labels": np.ones((4, 1))}, ValueError, r"labels: expected shape \(4, 3\), got \(4, 1\)"),
        ({"labels": np.eye(4, 3, dtype="float32")}, TypeError, "labels: expected dtype float64"),
        *[
            ({"labels": np.eye(4, 3, dtype=kind)}, ValueError, rf"labels: .* \(4,\), got \(4, 3\) of {kind}: one-hot")
            for kind in ("int64", "uint8", "bool")
        ],
        (
            {"labels": np.full((4, 3), 1 / 3), "sample_weight": np.zeros(4)},
            ValueError,
            "sample_weight: expected a positive",
        ),
        ({"labels": y > 0}, TypeError, "labels: expected dtype int64 or another integer, got bool"),
        ({"labels": [0, 1, 2, 0]}, TypeError, "labels: expected an ndarray of integers, got list"),
        ({"labels": np.full(4, -100)}, ValueError, "labels: expected a row that counts"),
        ({"label_smoothing": 1.5}, ValueError, r"label_smoothing: expected a number in \[0, 1\], got 1.5"),
        ({"label_smoothing": math.nan}, ValueError, "label_smoothing"),
        ({"label_smoothing": "0.1"}, TypeError, "label_smoothing: expected a number, got str"),
        ({"label_smoothing": None}, TypeError, "label_smoothing: expected a number, got NoneType"),
        ({"smoothing": "other"}, ValueError, "smoothing: expected 'uniform' or 'others', got 'other'"),
        ({"class_weight": np.ones(4)}, ValueError, r"class_weight: expected shape \(3,\), got \(4,\)"),
        (
            {"class_weight": np.array([1, -1.0, 1])},
            ValueError,
            "class_weight: expected finite weights, none negative, got -1.0 at 1",
        ),
        ({"class_weight": np.ones(3, "float32")}, TypeError, "class_weight: expected dtype float64"),
        ({"sample_weight": np.array([1, 1, 1, np.nan])}, ValueError, "sample_weight: .*got nan at 3"),
        ({"sample_weight": np.zeros(4)}, ValueError, "expected a row of positive weight"),
        ({"class_weight": np.array([0, 0, 0.0])}, ValueError, "expected a row of positive weight"),
        ({"ignore_index": 1.5}, TypeError, "ignore_index: expected an integer, got float"),
        ({"ignore_index": None}, TypeError, "ignore_index: expected an integer, got NoneType"),
        ({"ignore_index": 2**70}, ValueError, "ignore_index: expected an integer of 64 bits"),
        ({"logits": np.zeros((0, 3)), "labels": y[:0]}, ValueError, "logits: expected at least one row"),
        ({"logits": np.zeros((4, 0))}, ValueError, "logits: expected at least one row"),
        ({"logits": np.zeros(4)}, ValueError, r"logits: expected shape \(any, any\)"),
        ({"logits": z.tolist()}, TypeError, "logits: expected an ndarray"),
        ({"logits": z.astype(int)}, TypeError, "logits: expected dtype float32 or float64"),
        ({"dlogits": np.zeros((4, 2))}, ValueError, r"dlogits: expected shape \(4, 3\)"),
    ]
    for keywords, error, message in bad:
        with pytest.raises(error, match=message):
            softmax_cross_entropy(**{"logits": z, "labels": y, **keywords})
    with pytest.raises(ValueError, match="others"):
        softmax_cross_entropy(np.zeros((4, 1)), np.zeros(4, int), 0.1, "others")
    whole = np.zeros((5, 3))
    with pytest.raises(
        ValueError, match="dlogits: expected memory of its own for the result, got an array that overlaps logits"
    ):
        softmax_cross_entropy(whole[:4], y, dlogits=whole[1:])
    for t, error in [
        (z + 2, ValueError),
        (z * np.nan, ValueError),
        (z[:, :2], ValueError),
        (y + 1, ValueError),
        (y - 1, ValueError),
        (1, TypeError),
    ]:
        with pytest.raises(error, match="targets"):
            binary_cross_entropy(z, t)
    for kernel in (binary_cross_entropy, mean_squared_error):
        with pytest.raises(ValueError, match="sample_weight"):
            kernel(z, z, np.zeros(4))
        with pytest.raises(ValueError, match="expected at least one"):
            kernel(z[:0], z[:0])
    with pytest.raises(ValueError, match=r"targets: expected shape \(4, 3\), got \(4,\)"):
        mean_squared_error(z, z[:, 0])
    with pytest.raises(ValueError, match="logits: expected at least one class"):
        softmax(z[:, :0])
