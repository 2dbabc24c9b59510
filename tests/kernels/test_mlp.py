"""Whole updates of a multi-layer perceptron: the definition against differences and scikit-learn's rules, the fast
kernels against the definition."""

import copy
import itertools

import numpy as np
import pytest
from scipy import sparse

from dd2424fast import kernels as k
from dd2424fast.kernels import _team

SOFTSIGN = k.custom_activation(lambda z: z / (1 + abs(z)), lambda z: 1 / (1 + abs(z)) ** 2)


@pytest.fixture(autouse=True)
def _threads():
    before = _team.get_num_threads()
    yield
    _team.set_num_threads(before)


class Problem:
    """A network, data, and the solvers' states, all drawn from a seed."""

    def __init__(self, plan, dtype="float64", N=23, seed=0, weighted=False, kind="dense"):
        rng = np.random.default_rng(seed)
        D, K = plan.sizes[0], plan.sizes[-1]
        self.plan = plan
        self.parameters = (rng.standard_normal(plan.parameters) * 0.4).astype(dtype)
        self.buffers = rng.uniform(0.5, 1.5, plan.buffers).astype(dtype)
        self.x = rng.standard_normal((N, D)).astype(dtype)
        if kind == "sparse":
            self.x[rng.random((N, D)) < 0.6] = 0
            self.x[N // 2] = 0
            self.x = sparse.csr_matrix(self.x)
        self.y = rng.integers(0, K, N) if plan.output == "softmax" else rng.integers(0, 2, (N, K)).astype(dtype)
        if plan.output == "identity":
            self.y = rng.standard_normal((N, K)).astype(dtype)
        self.weight = None
        if weighted:
            self.weight = (rng.uniform(0.5, 2, N) * (rng.random(N) < 0.8)).astype(dtype)
        self.state = [rng.uniform(0, 0.1, plan.parameters).astype(dtype) for _ in range(2)]

    def solver(self, kind, **options):
        first, second = (state.copy() for state in self.state)
        if kind == "adam":
            return k.AdamSolver(
                first, second, learning_rate=0.01, beta_1=0.8, beta_2=0.95, epsilon=1e-3, t=3, **options
            )
        return k.SGDSolver(first, learning_rate=0.02, momentum=0.7, t=3, **options)

    def gradient(self, backend, **options):
        buffers = self.buffers.copy()
        loss, penalty, gradients = getattr(k.mlp_gradient, backend)(
            self.plan, self.parameters, buffers, self.x, self.y, self.weight, **options
        )
        return loss, penalty, gradients, buffers

    def train(self, backend, solver, calls=2, **options):
        """Losses, parameters, running statistics and the solver after some calls."""
        parameters, buffers, solver = self.parameters.copy(), self.buffers.copy(), copy.deepcopy(solver)
        losses = [
            getattr(k.mlp_updates, backend)(
                self.plan, parameters, buffers, solver, self.x, self.y, self.weight, **options
            )
            for _ in range(calls)
        ]
        return np.array(losses), parameters, buffers, solver


def close(got, ref, dtype, scale=1.0):
    """Within an error budget of the largest number."""
    got, ref = np.asarray(got), np.asarray(ref, dtype=np.float64)
    limit = (1e-10 if dtype == "float64" else 2e-5) * scale * max(1.0, np.abs(ref).max(initial=0))
    np.testing.assert_allclose(got, ref, rtol=0, atol=limit)


PLANS = [
    *(((7, 11, 5), activation, "softmax", False, 0.0) for activation in ("identity", "relu", "leaky_relu", "tanh")),
    ((7, 11, 5), "sigmoid", "sigmoid", False, 0.0),
    ((7, 11, 5, 3), "tanh", "identity", False, 0.0),
    ((7, 11, 5, 1), "relu", "sigmoid", False, 0.0),
    ((7, 11, 5, 2), "tanh", "exp", False, 0.0),
    ((7, 4), "relu", "softmax", False, 0.0),
    ((7, 1), "relu", "identity", True, 0.3),
    ((7, 11, 5, 3), "tanh", "softmax", True, 0.0),
    ((7, 11, 5, 3), "relu", "softmax", True, 0.3),
    ((7, 11, 5, 3), "sigmoid", "identity", False, 0.3),
    ((7, 33, 17, 3), SOFTSIGN, "softmax", False, 0.0),
    ((7, 33, 17, 3), SOFTSIGN, "exp", True, 0.25),
    ((130, 67, 48, 12), "leaky_relu", "softmax", True, 0.1),
]
plans = pytest.mark.parametrize("plan", [k.MLPPlan(*plan) for plan in PLANS], ids=repr)


# ---- the definition ------------------------------------------------------------------------------------------------


@plans
@pytest.mark.parametrize("weighted", [False, True])
def test_gradient_of_the_definition_is_the_slope(plan, weighted):
    problem = Problem(plan, weighted=weighted, N=9)
    options = {"alpha": 0.7, "seed": 5, "update": 2}
    *_, gradient, _ = problem.gradient("numpy", **options)
    rng, at = np.random.default_rng(1), problem.parameters
    for _ in range(6):
        direction = rng.standard_normal(at.size)
        slope = []
        for step in (1e-6, -1e-6):
            problem.parameters = at + step * direction
            slope.append(sum(problem.gradient("numpy", **options)[:2]))
        numeric = (slope[0] - slope[1]) / 2e-6
        assert gradient @ direction == pytest.approx(numeric, rel=2e-6, abs=1e-7)


def test_the_losses_are_what_they_are_called():
    """One layer, by hand."""
    x, z = np.array([[1.0]]), np.array([0.3, -1.2])
    at = {"buffers": np.empty(0), "x": x}
    parameters = np.concatenate([z - 0.5, [0.5, 0.5]])  # W, then b
    plan = k.MLPPlan((1, 2), output="softmax")
    p = np.exp(z) / np.exp(z).sum()
    assert k.mlp_loss(plan, parameters, **at, y=np.array([1])) == pytest.approx(-np.log(p[1]))
    np.testing.assert_allclose(k.mlp_outputs(plan, parameters, **at), p[None], rtol=1e-12)
    y = np.array([[1.0, 0.0]])
    p = 1 / (1 + np.exp(-z))
    plan = k.MLPPlan((1, 2), output="sigmoid")
    assert k.mlp_loss(plan, parameters, **at, y=y) == pytest.approx(-np.log(p[0]) - np.log(1 - p[1]))
    np.testing.assert_allclose(k.mlp_outputs(plan, parameters, **at), p[None], rtol=1e-12)
    plan = k.MLPPlan((1, 2), output="identity")
    assert k.mlp_loss(plan, parameters, **at, y=y) == pytest.approx(((z - y) ** 2).sum() / 2)
    np.testing.assert_allclose(k.mlp_outputs(plan, parameters, **at), z[None], rtol=1e-12)
    plan = k.MLPPlan((1, 2), output="exp")
    y, mu = np.array([[3.0, 0.0]]), np.exp(z)
    deviance = 3 * np.log(3 / mu[0]) - 3 + mu[0] + mu[1]
    assert k.mlp_loss(plan, parameters, **at, y=y) == pytest.approx(deviance)
    np.testing.assert_allclose(k.mlp_outputs(plan, parameters, **at), mu[None], rtol=1e-12)


@pytest.mark.parametrize("backend", ["numpy", "fast"])
@pytest.mark.parametrize("output", ["softmax", "sigmoid", "identity", "exp"])
def test_a_weight_is_a_number_of_rows(backend, output):
    plan = k.MLPPlan((7, 11, 3), "tanh", output)
    problem = Problem(plan, N=12)
    counts = np.array([0, 1, 2, 3] * 3)
    problem.weight = counts.astype(float)
    weighted = problem.gradient(backend, alpha=0.5)
    problem.x, problem.y, problem.weight = (
        np.repeat(problem.x, counts, axis=0),
        np.repeat(problem.y, counts, axis=0),
        None,
    )
    repeated = problem.gradient(backend, alpha=0.5)
    for got, ref in zip(weighted, repeated, strict=True):
        close(got, ref, "float64")


@pytest.mark.parametrize("solver", ["sgd", "adam"])
def test_an_update_is_scikit_learns(solver):
    """Three updates against those of scikit-learn's optimizers, whose form of momentum and of epsilon they have."""
    optimizers = pytest.importorskip("sklearn.neural_network._stochastic_optimizers")
    problem = Problem(k.MLPPlan((7, 11, 3), "tanh"))
    w = problem.parameters.copy()
    if solver == "sgd":
        theirs, ours = optimizers.SGDOptimizer([w], 0.1, momentum=0.9), k.SGDSolver(np.zeros_like(w), 0.1)
    else:
        theirs, ours = optimizers.AdamOptimizer([w], 0.1), k.AdamSolver(np.zeros_like(w), np.zeros_like(w), 0.1)
    got = problem.parameters.copy()
    for _ in range(3):
        problem.parameters = w
        theirs.update_params([w], [problem.gradient("numpy", alpha=0.2)[2]])
        k.mlp_updates(problem.plan, got, problem.buffers, ours, problem.x, problem.y, alpha=0.2)
    close(got, w, "float64")


# ---- the fast kernels ----------------------------------------------------------------------------------------------


@plans
@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize(("weighted", "kind"), [(False, "dense"), (True, "sparse")])
def test_fast_equals_definition(plan, dtype, weighted, kind):
    problem, exact = (Problem(plan, each, 37, 3, weighted, kind) for each in (dtype, "float64"))
    options = {"alpha": 0.3, "seed": 11, "update": 4}
    for threads in (1, 2):
        _team.set_num_threads(threads)
        got, ref = problem.gradient("fast", **options), exact.gradient("numpy", **options)
        for a, b in zip(got, ref, strict=True):
            close(a, b, dtype)
        assert got[2].dtype == dtype
        both = problem.parameters, problem.buffers, problem.x
        outputs = k.mlp_outputs.fast(plan, *both)
        close(outputs, k.mlp_outputs.numpy(plan, exact.parameters, exact.buffers, exact.x), dtype)
        loss = k.mlp_loss.fast(plan, *both, problem.y, problem.weight)
        of_exact = exact.parameters, exact.buffers, exact.x, exact.y, exact.weight
        close(loss, k.mlp_loss.numpy(plan, *of_exact), dtype)


@plans
@pytest.mark.parametrize("kind", ["sgd", "plain", "adam"])
@pytest.mark.parametrize("order", [False, True])
def test_updates_equal_definition(plan, kind, order):
    problem = Problem(plan, N=31, seed=4, weighted=kind == "adam", kind="sparse" if kind == "plain" else "dense")
    if problem.weight is not None:
        problem.weight += 0.1  # no batch without weight, so that updates can be counted
    solver = problem.solver("adam") if kind == "adam" else problem.solver("sgd", nesterov=kind == "sgd")
    options = {"batch_size": 6, "alpha": 0.2, "seed": 8}
    if order:
        options["order"] = np.random.default_rng(2).integers(0, 31, 25)  # 25 = 4 * 6 + 1: a row is left over
    ref = problem.train("numpy", solver, **options)
    got = problem.train("fast", solver, **options)
    for a, b in zip(got[:3], ref[:3], strict=True):
        close(a, b, "float64", 100)
    rows, joined = (25 if order else 31), plan.batch_norm  # either leaves a row over
    assert got[3].t == ref[3].t == 3 + 2 * (rows // 6 + (not joined))
    for name in ("velocity", "first_moment", "second_moment"):
        if hasattr(solver, name):
            close(getattr(got[3], name), getattr(ref[3], name), "float64", 100)


@plans
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_bits_depend_neither_on_threads_nor_on_cuts(plan, dtype):
    """Calls that are cut at whole batches, by 1, 2 or 3 threads."""
    problem = Problem(plan, dtype, N=61, weighted=True)
    order = np.random.default_rng(2).permutation(61)[:60]
    runs = []
    for threads, cuts in ((1, [0, 60]), (2, [0, 20, 60]), (3, [0, 40, 50, 60])):
        _team.set_num_threads(threads)
        parameters, buffers, solver = problem.parameters.copy(), problem.buffers.copy(), problem.solver("adam")
        data, losses = (problem.x, problem.y, problem.weight), (0.0, 0.0)
        for start, stop in itertools.pairwise(cuts):
            losses = k.mlp_updates(
                plan, parameters, buffers, solver, *data, order[start:stop], 10, 0.1, 3, so_far=losses, of=60
            )
        runs.append((parameters, buffers, losses))
    parameters, buffers, solver = problem.parameters.copy(), problem.buffers.copy(), problem.solver("adam")
    runs.append((parameters, buffers, k.mlp_updates(plan, parameters, buffers, solver, *data, order, 10, 0.1, 3)))
    for other in runs[1:]:
        for a, b in zip(runs[0], other, strict=True):
            np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(("dtype", "batch_norm"), [("float32", True), ("float64", False)])
def test_bits_of_a_large_network_do_not_depend_on_threads(dtype, batch_norm):
    """Large enough that every part is shared out."""
    plan = k.MLPPlan((700, 300, 200, 10), "tanh", batch_norm=batch_norm, dropout=0.2)
    for kind in ("dense", "sparse"):
        problem = Problem(plan, dtype, N=500, kind=kind)
        runs = []
        for threads in (1, 2, 3):
            _team.set_num_threads(threads)
            runs.append(
                (
                    *problem.train("fast", problem.solver("adam"), calls=1, batch_size=250, alpha=0.1)[:3],
                    k.mlp_outputs(plan, problem.parameters, problem.buffers, problem.x),
                )
            )
        for other in runs[1:]:
            for a, b in zip(runs[0], other, strict=True):
                np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_a_row_alone_has_the_bits_it_has_among_many(dtype):
    for plan in (k.MLPPlan((70, 90, 80, 10)), k.MLPPlan((70, 33, 10), "tanh", "sigmoid", batch_norm=True)):
        problem = Problem(plan, dtype, N=1300)
        many = k.mlp_outputs(plan, problem.parameters, problem.buffers, problem.x)
        for i in (0, 511, 512, 1299):
            one = k.mlp_outputs(plan, problem.parameters, problem.buffers, problem.x[i : i + 1])
            np.testing.assert_array_equal(one[0], many[i])


@pytest.mark.parametrize("output", ["softmax", "sigmoid", "identity", "exp"])
@pytest.mark.parametrize("kind", ["dense", "sparse"])
@pytest.mark.parametrize("weighted", [False, True])
def test_the_loss_of_many_rows_is_formed_block_by_block(output, kind, weighted):
    problem = Problem(k.MLPPlan((7, 11, 3), "tanh", output), N=1300, weighted=weighted, kind=kind)
    if weighted:
        problem.weight[512:1024] = 0  # a block that counts nothing
    given = problem.plan, problem.parameters, problem.buffers, problem.x, problem.y, problem.weight
    assert k.mlp_loss.fast(*given) == pytest.approx(k.mlp_loss.numpy(*given), rel=1e-12)


@pytest.mark.parametrize("backend", ["numpy", "fast"])
def test_a_loss_that_is_not_finite_has_no_gradient(backend):
    problem = Problem(k.MLPPlan((7, 11, 3), "tanh"))
    problem.x[3, 2] = np.nan
    loss, _, gradients, _ = problem.gradient(backend, alpha=0.5)
    assert np.isnan(loss)
    assert np.isnan(gradients).all()


def test_sparse_rows_in_use_equal_dense_ones():
    plan = k.MLPPlan((70, 33, 10))
    problem = Problem(plan, N=1100, kind="sparse")
    got = k.mlp_outputs(plan, problem.parameters, problem.buffers, problem.x)
    close(got, k.mlp_outputs(plan, problem.parameters, problem.buffers, problem.x.toarray()), "float64")
    wide = sparse.csr_matrix(problem.x)
    wide.indices, wide.indptr = wide.indices.astype(np.int64), wide.indptr.astype(np.int64)
    np.testing.assert_array_equal(k.mlp_outputs(plan, problem.parameters, problem.buffers, wide), got)


@pytest.mark.parametrize("backend", ["numpy", "fast"])
@pytest.mark.parametrize("batch_norm", [False, True])
def test_training_ends_before_the_update_that_is_not_finite(backend, batch_norm):
    plan = k.MLPPlan((7, 11, 3), "relu", batch_norm=batch_norm)
    problem = Problem(plan, N=30)
    good = problem.train(backend, problem.solver("sgd"), calls=1, order=np.arange(20), batch_size=10)
    problem.x[25, 3] = np.inf
    losses, parameters, buffers, solver = problem.train(backend, problem.solver("sgd"), calls=1, batch_size=10)
    assert not np.isfinite(losses[0, 0])
    assert solver.t == good[3].t == 5
    np.testing.assert_array_equal(parameters, good[1])
    np.testing.assert_array_equal(buffers, good[2])


@pytest.mark.parametrize("backend", ["numpy", "fast"])
def test_a_gradient_that_is_not_finite_ends_training_though_the_loss_is(backend):
    """The loss sees 1e300 times 0; the gradient 1e300 times 1e300."""
    plan = k.MLPPlan((1, 1, 1), "identity", "identity")
    problem = Problem(plan, N=2)
    problem.x[:], problem.y[:] = 1e200, 1e150
    problem.parameters[:] = [0, 0, 1e10, 0]
    losses, parameters, _, solver = problem.train(backend, problem.solver("sgd"), calls=1, batch_size=2)
    assert np.isnan(losses[0, 0])
    assert solver.t == 3
    np.testing.assert_array_equal(parameters, problem.parameters)


@pytest.mark.parametrize("backend", ["numpy", "fast"])
@pytest.mark.parametrize(
    ("dtype", "weight", "alpha"),
    [("float64", 1e10, 1e300), ("float32", 1e10, 1e30), ("float32", 1.0, 1e300), ("float64", 1e155, 1e10)],
)
def test_a_penalty_that_is_not_finite_ends_training(backend, dtype, weight, alpha):
    """It, or its gradient: of float32 the second and third penalties are finite numbers of double precision."""
    problem = Problem(k.MLPPlan((2, 2), output="identity"), dtype, N=2)
    problem.x[:], problem.y[:] = 0, 0
    problem.parameters[:] = weight * np.array([1, 1, 1, 1, 0, 0])
    losses, parameters, _, solver = problem.train(backend, problem.solver("adam"), calls=1, alpha=alpha)
    assert np.isnan(losses[0, 0])
    assert solver.t == 3
    np.testing.assert_array_equal(parameters, problem.parameters)
    np.testing.assert_array_equal(solver.first_moment, problem.state[0])


@pytest.mark.parametrize("backend", ["numpy", "fast"])
def test_a_penalty_may_be_larger_than_float32(backend):
    """Weights whose squares float32 does not hold; and without a strength they do not matter at all."""
    problem = Problem(k.MLPPlan((2, 2), output="identity"), "float32", N=2)
    problem.x[:], problem.y[:] = 0, 0
    problem.parameters[:] = [3e20, 0, 0, 4e20, 0, 0]
    losses, parameters, *_ = problem.train(backend, problem.solver("sgd"), calls=1, alpha=0.1)
    np.testing.assert_allclose(losses[0], [0, 0.05 * 25e40 / 2], rtol=1e-6)
    assert parameters[0] < 3e20
    assert problem.gradient(backend, alpha=0.1)[1] == pytest.approx(0.05 * 25e40 / 2)
    problem.parameters = problem.parameters.astype("float64") * 1e140
    problem.buffers, problem.x, problem.y = (a.astype("float64") for a in (problem.buffers, problem.x, problem.y))
    assert problem.gradient(backend)[1] == 0


@pytest.mark.parametrize("backend", ["numpy", "fast"])
def test_running_statistics_that_are_not_finite_end_training(backend):
    """The loss is finite, and so are the gradients: of the rows nothing is left but beta."""
    problem = Problem(k.MLPPlan((2, 3, 2), "identity", batch_norm=True), "float32", N=4)
    problem.x *= 1e25
    with np.errstate(over="ignore"):
        loss, _, gradients, buffers = problem.gradient(backend)
    assert np.isfinite(loss)
    assert np.isfinite(gradients).all()
    assert not np.isfinite(buffers).all()
    losses, parameters, buffers, solver = problem.train(backend, problem.solver("sgd"), calls=1)
    assert np.isnan(losses[0, 0])
    assert solver.t == 3
    np.testing.assert_array_equal(parameters, problem.parameters)
    np.testing.assert_array_equal(buffers, problem.buffers)


def test_what_a_custom_activation_was_given_outlives_the_call():
    """A traceback holds it, for one."""
    activation, seen = k.custom_activation(np.tanh, lambda z: 1 - np.tanh(z) ** 2), []
    forward = activation.forward
    activation.forward = lambda z, out: seen.append((z, z.copy())) or forward(z, out)
    problem = Problem(k.MLPPlan((7, 300, 3), activation), N=40)
    problem.gradient("fast")
    overwritten = [np.full(40 * 1000, np.nan) for _ in range(20)]
    (given, then), *_ = seen
    assert given.base is not None
    np.testing.assert_array_equal(given, then)
    del overwritten


@pytest.mark.parametrize("backend", ["numpy", "fast"])
def test_a_batch_without_weight_is_passed_over(backend):
    problem = Problem(k.MLPPlan((7, 11, 3), "relu"), N=20)
    problem.weight = np.repeat([1.0, 0.0], 10)
    losses, parameters, _, solver = problem.train(backend, problem.solver("sgd"), calls=1, batch_size=10)
    problem.x, problem.y, problem.weight = problem.x[:10], problem.y[:10], None
    alone = problem.train(backend, problem.solver("sgd"), calls=1, batch_size=10)
    assert solver.t == 4
    np.testing.assert_array_equal(parameters, alone[1])
    assert losses[0, 0] == pytest.approx(alone[0][0, 0] / 2)


# ---- what does not fit ---------------------------------------------------------------------------------------------


def call(**changed):
    problem = Problem(k.MLPPlan((7, 11, 3), "relu"))
    arguments = {
        "plan": problem.plan,
        "parameters": problem.parameters,
        "buffers": problem.buffers,
        "solver": problem.solver("adam"),
        "x": problem.x,
        "y": problem.y,
        **changed,
    }
    return k.mlp_updates(**arguments)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"plan": 3}, "plan: expected an MLPPlan, got int"),
        ({"parameters": np.zeros(5)}, r"parameters: expected shape \(124,\), got \(5,\)"),
        ({"solver": "adam"}, "solver: expected an SGDSolver or AdamSolver, got str"),
        ({"solver": k.SGDSolver(np.zeros(3))}, r"solver.velocity: expected shape \(124,\), got \(3,\)"),
        ({"x": np.zeros((23, 6))}, r"x: expected shape \(any, 7\), got \(23, 6\)"),
        ({"x": np.zeros((0, 7)), "y": np.zeros(0, np.int64)}, "x: expected at least one row"),
        ({"x": sparse.csc_matrix(np.zeros((23, 7)))}, "x: expected an ndarray or a CSR matrix"),
        ({"x": sparse.csr_matrix(np.zeros((23, 7), "float32"))}, "x: expected dtype float64, got float32"),
        ({"y": np.full(23, 3)}, "y: expected classes from 0 to 2, got 3 to 3"),
        ({"y": np.zeros(23)}, "y: expected an ndarray of int64, got float64"),
        ({"y": np.zeros(22, np.int64)}, r"y: expected shape \(23,\), got \(22,\)"),
        ({"sample_weight": -np.ones(23)}, "sample_weight: expected finite numbers of at least 0"),
        ({"order": np.array([23])}, "order: expected numbers of rows, from 0 to 22"),
        ({"order": np.array([-1])}, "order: expected numbers of rows"),
        ({"order": np.array([1.0])}, "order: expected a vector of int64"),
        ({"batch_size": 0}, "batch_size: expected an integer of at least 1, got 0"),
        ({"alpha": -1}, "alpha: expected a finite number of at least 0, got -1"),
        ({"seed": -1}, "seed: expected an integer from 0"),
        ({"so_far": 1.0}, r"so_far: expected \(loss, penalty\), two floats, got 1.0"),
        ({"so_far": (1.0, None)}, r"so_far: expected \(loss, penalty\), two floats, got \(1.0, None\)"),
        ({"of": 22}, "of: expected an integer of at least 23, got 22"),
    ],
)
def test_what_is_wrong_is_named(changed, message):
    with pytest.raises((ValueError, TypeError), match=message):
        call(**changed)


@pytest.mark.parametrize("spoil", ["indices", "indptr", "short", "unsigned"])
def test_a_spoilt_sparse_matrix_never_reaches_compiled_code(spoil):
    x = sparse.csr_matrix(np.eye(23, 7))
    if spoil == "indices":
        x.indices[2] = 7
    elif spoil == "indptr":
        x.indptr[3] = 40
    elif spoil == "unsigned":
        x.indptr = x.indptr.astype(np.uint32)
        x.indptr[3] = 40
    else:
        x.indptr = x.indptr[:-2]
    with pytest.raises(ValueError, match="x: expected"):
        call(x=x)


def test_columns_of_a_sparse_matrix_are_numbered_by_int32():
    from dd2424fast.kernels.mlp import _check_x

    with pytest.raises(ValueError, match="x: expected at most 2147483647 columns of a sparse matrix, got 2147483648"):
        _check_x(sparse.csr_matrix((1, 2**31)), 2**31, np.dtype("float64"))


def test_sizes_are_numbers_of_any_width():
    assert k.MLPPlan(np.array([100, 100, 3], np.int8)).parameters == 101 * 100 + 101 * 3


def test_a_gradients_memory_is_not_shared():
    problem = Problem(k.MLPPlan((7, 11, 3), "relu", batch_norm=True), weighted=True)
    whole = np.zeros(500)
    problem.buffers, gradients = whole[:22], whole[20 : 20 + problem.plan.parameters]
    with pytest.raises(ValueError, match="overlaps gradients"):
        _gradient(problem, gradients)
    problem.buffers = problem.parameters[:22]
    with pytest.raises(ValueError, match=r"buffers: expected memory of its own .* overlaps parameters"):
        _gradient(problem)
    problem.buffers, problem.weight = np.zeros(22), gradients[:23]
    problem.weight[:] = 1
    with pytest.raises(ValueError, match=r"gradients: expected memory of its own .* overlaps sample_weight"):
        _gradient(problem, gradients)
    problem.weight, problem.x = None, sparse.csr_matrix(np.ones((23, 7)))
    with pytest.raises(ValueError, match=r"gradients: expected memory of its own .* overlaps x"):
        _gradient(problem, problem.x.data[: problem.plan.parameters])


def _gradient(problem, gradients=None):
    given = problem.parameters, problem.buffers, problem.x, problem.y, problem.weight
    return k.mlp_gradient(problem.plan, *given, gradients=gradients)


def test_memory_is_not_shared():
    problem = Problem(k.MLPPlan((7, 11, 3), "relu"))
    solver = problem.solver("sgd")
    solver.velocity = problem.parameters
    with pytest.raises(ValueError, match=r"solver.velocity: expected memory of its own"):
        k.mlp_updates(problem.plan, problem.parameters, problem.buffers, solver, problem.x, problem.y)


def test_batch_norm_needs_two_rows():
    plan = k.MLPPlan((7, 5, 3), batch_norm=True)
    problem = Problem(plan, N=1)
    with pytest.raises(ValueError, match="x: expected at least two rows"):
        problem.gradient("fast")
    with pytest.raises(ValueError, match="x: expected at least two rows"):
        problem.train("fast", problem.solver("sgd"))
    with pytest.raises(ValueError, match="batch_size: expected an integer of at least 2, got 1"):
        Problem(plan).train("fast", problem.solver("sgd"), batch_size=1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (((7,),), "sizes: expected"),
        (((7, 0, 3),), r"sizes\[1\]: expected an integer of at least 1, got 0"),
        (((7, 3), "swish"), "activation: expected one of"),
        (((7, 3), "relu", "linear"), "output: expected one of"),
        (((7, 3), "relu", "softmax", False, 1.0), "dropout: expected a probability"),
    ],
)
def test_a_plan_names_what_is_wrong(arguments, message):
    with pytest.raises(ValueError, match=message):
        k.MLPPlan(*arguments)


def test_layers_are_views():
    plan = k.MLPPlan((7, 11, 5, 3), batch_norm=True)
    parameters, buffers = np.arange(float(plan.parameters)), np.arange(float(plan.buffers))
    layers = plan.layers(parameters, buffers)
    assert [layer.W.shape for layer in layers] == [(7, 11), (11, 5), (5, 3)]
    found = np.concatenate(
        [part.ravel() for layer in layers for part in (layer.W, layer.b, layer.gamma, layer.beta) if part is not None]
    )
    np.testing.assert_array_equal(found, parameters)
    kept = [part for layer in layers[:-1] for part in (layer.mean, layer.var)]
    np.testing.assert_array_equal(np.concatenate(kept), buffers)
    assert all(np.shares_memory(layer.W, parameters) for layer in layers)
    assert layers[-1].gamma is None


def test_it_is_a_sequential_networks_vector():
    """The same numbers in the same places as in models.MLP, and the same outputs."""
    import dd2424fast as dd

    model = dd.models.MLP(7, (11, 5), 3, batch_norm=True, dtype="float64", seed=1)
    plan, rng = k.MLPPlan((7, 11, 5, 3), batch_norm=True), np.random.default_rng(0)
    model.buffers[...] = rng.uniform(0.5, 2, plan.buffers)
    x = rng.standard_normal((9, 7))
    close(k.mlp_outputs(plan, model.parameters, model.buffers, x), k.softmax(model.predict(x)), "float64")
