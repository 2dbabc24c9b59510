"""Linear classifier and multi-layer perceptrons, in each library."""

import functools
import itertools
import math
from dataclasses import dataclass

import numpy as np

from .workloads import Task, register

BATCH = 100
BATCHES = 8  # together larger than the second-level cache: a training set does not lie there either
LEARNING_RATE = 0.05
WEIGHT_DECAY = 0.02  # of weights only, added to the gradient as w W: the course's lambda is half of it
BN_MOMENTUM = 0.1
BN_EPS = 1e-5


@dataclass(frozen=True)
class Problem(Task):
    """One update by SGD of a multi-layer perceptron with ReLU; weights and batches are a pure function of the sizes.

    Attributes
    ----------
    widths : tuple of int
        Inputs, hidden units, classes.
    batch_norm : bool
        Before every ReLU.
    """

    widths: tuple
    batch_norm: bool = False
    batch = BATCH

    @functools.cached_property
    def _drawn(self):
        rng = np.random.default_rng(0)
        weights = [
            (self._uniform(rng, d, (d, h)), self._uniform(rng, d, (h,))) for d, h in itertools.pairwise(self.widths)
        ]
        x = rng.standard_normal((BATCHES, BATCH, self.widths[0]), dtype=np.float32)
        y = rng.integers(0, self.widths[-1], (BATCHES, BATCH))
        return weights, list(zip(x, y, strict=True))

    @staticmethod
    def _uniform(rng, fan_in, shape):
        return rng.uniform(-(fan_in**-0.5), fan_in**-0.5, shape).astype(np.float32)

    @property
    def weights(self):
        """W (in, out) and b (out,) of each layer, float32."""
        return self._drawn[0]

    @property
    def batches(self):
        """x (batch, inputs) float32 and y (batch,) int64 of each batch."""
        return self._drawn[1]

    def state_dict(self):
        """The initial state, as torch.nn.Sequential(Linear, [BatchNorm,] ReLU, ..., Linear) names and lays it out."""
        stride = 3 if self.batch_norm else 2
        state = {}
        for i, (W, b) in enumerate(self.weights):
            state[f"{stride * i}.weight"], state[f"{stride * i}.bias"] = np.ascontiguousarray(W.T), b
        for i, norm in enumerate(self.norms):
            names = ("weight", "bias", "running_mean", "running_var")
            state |= {f"{stride * i + 1}.{name}": a for name, a in zip(names, norm, strict=True)}
        return state

    @property
    def norms(self):
        """gamma, beta, running mean and variance of each hidden layer; none without batch norm."""
        hidden = self.widths[1:-1] if self.batch_norm else ()
        return [[np.full(h, value, np.float32) for value in (1, 0, 0, 1)] for h in hidden]

    def gflop(self):
        """2 N D H forward, as much for dW, and as much for dx behind the first layer."""
        products = [d * h for d, h in itertools.pairwise(self.widths)]
        return 2 * BATCH * (3 * sum(products) - products[0]) / 1e9

    def gbytes(self):
        """x is read twice; parameters are read forward and backward and updated, gradients written and read."""
        parameters = sum(d * h + h for d, h in itertools.pairwise(self.widths))
        return 4 * (2 * BATCH * self.widths[0] + 5 * parameters) / 1e9

    def ours(self):
        import dd2424fast as dd

        inputs, *hidden, classes = self.widths
        model = dd.models.MLP(inputs, hidden, classes, batch_norm=self.batch_norm, dtype="float32", seed=0)
        model.load_state_dict(self.state_dict())
        trainer = dd.Trainer(model, dd.optim.SGD(LEARNING_RATE, weight_decay=WEIGHT_DECAY))
        batches = itertools.cycle(self.batches)
        return lambda: trainer.step(*next(batches))


# ---- NumPy as the course's students write it -------------------------------------------------------------------------


def course(problem, threads):
    """Float64, column layout (d x n), one-hot labels, a new array for every result: the equations of the assignment."""
    X = np.concatenate([x for x, _ in problem.batches]).T.astype(np.float64)
    Y = np.eye(problem.widths[-1])[:, np.concatenate([y for _, y in problem.batches])]
    Ws = [W.T.astype(np.float64) for W, _ in problem.weights]
    bs = [b[:, None].astype(np.float64) for _, b in problem.weights]
    gammas = [np.ones((h, 1)) for h in problem.widths[1:-1]]
    betas = [np.zeros((h, 1)) for h in problem.widths[1:-1]]
    mus = [np.zeros((h, 1)) for h in problem.widths[1:-1]]
    variances = [np.ones((h, 1)) for h in problem.widths[1:-1]]
    lam, last = WEIGHT_DECAY / 2, len(Ws) - 1
    batch = itertools.cycle(range(BATCHES))

    def forward(H):
        cache = []
        for i in range(last):
            S = Ws[i] @ H + bs[i]
            mu, v, S_hat, S_tilde = None, None, None, S
            if problem.batch_norm:
                mu, v = np.mean(S, axis=1, keepdims=True), np.var(S, axis=1, keepdims=True)
                S_hat = (S - mu) / np.sqrt(v + BN_EPS)
                S_tilde = gammas[i] * S_hat + betas[i]
                mus[i] = (1 - BN_MOMENTUM) * mus[i] + BN_MOMENTUM * mu
                variances[i] = (1 - BN_MOMENTUM) * variances[i] + BN_MOMENTUM * v * BATCH / (BATCH - 1)
            cache.append((H, S, mu, v, S_hat))
            H = np.maximum(0, S_tilde)
        S = Ws[last] @ H + bs[last]
        E = np.exp(S - np.max(S, axis=0))
        return H, cache, E / np.sum(E, axis=0)

    def batch_norm_backward(G, S, mu, v):
        n = G.shape[1]
        G1, G2, D = G * (v + BN_EPS) ** -0.5, G * (v + BN_EPS) ** -1.5, S - mu
        c = np.sum(G2 * D, axis=1, keepdims=True)
        return G1 - np.sum(G1, axis=1, keepdims=True) / n - D * c / n

    def backward(H, cache, G):
        n, gradients = G.shape[1], {}
        for i in range(last, -1, -1):
            if i < last:
                H_in, S, mu, v, S_hat = cache[i]
                G = G * (H > 0)
                if problem.batch_norm:
                    gradients["gamma", i] = np.sum(G * S_hat, axis=1, keepdims=True) / n
                    gradients["beta", i] = np.sum(G, axis=1, keepdims=True) / n
                    G = batch_norm_backward(G * gammas[i], S, mu, v)
                H = H_in
            gradients["W", i] = G @ H.T / n + 2 * lam * Ws[i]
            gradients["b", i] = np.sum(G, axis=1, keepdims=True) / n
            if i:
                G = Ws[i].T @ G
        return gradients

    parameters = {"W": Ws, "b": bs, "gamma": gammas, "beta": betas}

    def step():
        start = next(batch) * BATCH
        X_batch, Y_batch = X[:, start : start + BATCH], Y[:, start : start + BATCH]
        H, cache, P = forward(X_batch)
        loss = -np.sum(Y_batch * np.log(P)) / BATCH
        for (name, i), gradient in backward(H, cache, P - Y_batch).items():
            parameters[name][i] -= LEARNING_RATE * gradient
        return float(loss)

    return step


# ---- NumPy as fast as it honestly gets -------------------------------------------------------------------------------


def numpy32(problem, threads):
    """Float32, row layout, labels as integers, results written into arrays made once."""
    Ws = [W.copy() for W, _ in problem.weights]
    bs = [b.copy() for _, b in problem.weights]
    dWs = [np.empty_like(W) for W in Ws]
    norms = [BatchNorm(*norm, BATCH, LEARNING_RATE) for norm in problem.norms]
    outputs = [np.empty((BATCH, h), np.float32) for h in problem.widths[1:]]
    upstream = [np.empty((BATCH, h), np.float32) for h in problem.widths[1:-1]]
    rows, last = np.arange(BATCH), len(Ws) - 1
    shrink, rate = np.float32(1 - LEARNING_RATE * WEIGHT_DECAY), np.float32(LEARNING_RATE)
    batches = itertools.cycle(problem.batches)

    def step():
        x, y = next(batches)
        h = x
        for i, out in enumerate(outputs):
            np.matmul(h, Ws[i], out=out)
            out += bs[i]
            if i < last:
                if norms:
                    norms[i].forward(out)
                np.maximum(out, 0, out=out)
            h = out
        h -= h.max(axis=1, keepdims=True)
        target = h[rows, y]
        np.exp(h, out=h)
        total = h.sum(axis=1, keepdims=True)
        loss = float((np.log(total[:, 0]) - target).mean())
        h /= total
        h[rows, y] -= 1
        h *= np.float32(1 / BATCH)
        g = h
        for i in range(last, -1, -1):
            below = outputs[i - 1] if i else x
            np.matmul(below.T, g, out=dWs[i])
            db = g.sum(axis=0)
            if i:
                g = np.matmul(g, Ws[i].T, out=upstream[i - 1])
                g *= below > 0
                if norms:
                    norms[i - 1].backward(g)
            dWs[i] *= rate
            Ws[i] *= shrink
            Ws[i] -= dWs[i]
            bs[i] -= rate * db
        return loss

    return step


class BatchNorm:
    """Batch norm on (rows, features), in place, with its own update of gamma and beta behind the backward pass."""

    def __init__(self, gamma, beta, mean, variance, rows, rate):
        self.gamma, self.beta, self.mean, self.variance = (a.copy() for a in (gamma, beta, mean, variance))
        self.rows, self.rate, self.x_hat = rows, np.float32(rate), np.empty((rows, len(gamma)), np.float32)
        self.parts = math.gcd(rows, 256), -1, len(gamma)  # 100,000 rows added one after the other lose digits

    def _sum(self, x):
        return x.reshape(self.parts).sum(axis=1).sum(axis=0)

    def _dot(self, x, y):
        return np.einsum("pij,pij->pj", x.reshape(self.parts), y.reshape(self.parts)).sum(axis=0)

    def forward(self, x):
        mean = self._sum(x) / np.float32(self.rows)
        centred = np.subtract(x, mean, out=self.x_hat)
        variance = self._dot(centred, centred) / np.float32(self.rows)
        self.scale = 1 / np.sqrt(variance + np.float32(BN_EPS))
        centred *= self.scale
        np.multiply(centred, self.gamma, out=x)
        x += self.beta
        self.mean += np.float32(BN_MOMENTUM) * (mean - self.mean)
        self.variance += np.float32(BN_MOMENTUM) * (variance * np.float32(self.rows / (self.rows - 1)) - self.variance)

    def backward(self, g):
        dgamma, dbeta = self._dot(g, self.x_hat), self._sum(g)
        self.x_hat *= dgamma / np.float32(self.rows)
        g -= dbeta / np.float32(self.rows)
        g -= self.x_hat
        g *= self.gamma * self.scale
        self.gamma -= self.rate * dgamma
        self.beta -= self.rate * dbeta


# ---- PyTorch ---------------------------------------------------------------------------------------------------------


def torch(problem, threads):
    import torch
    from torch import nn

    torch.set_num_threads(threads)
    *hidden, output = itertools.pairwise(problem.widths)
    layers = []
    for d, h in hidden:
        norm = [nn.BatchNorm1d(h, eps=BN_EPS, momentum=BN_MOMENTUM)] if problem.batch_norm else []
        layers += [nn.Linear(d, h), *norm, nn.ReLU()]
    model = nn.Sequential(*layers, nn.Linear(*output))
    model.load_state_dict(
        {name: torch.tensor(a) for name, a in problem.state_dict().items()}, strict=not problem.batch_norm
    )
    decayed = [p for p in model.parameters() if p.ndim > 1]
    exempt = [p for p in model.parameters() if p.ndim == 1]
    optimizer = torch.optim.SGD(
        [{"params": decayed, "weight_decay": WEIGHT_DECAY}, {"params": exempt}], lr=LEARNING_RATE, fused=True
    )
    batches = itertools.cycle([(torch.tensor(x), torch.tensor(y)) for x, y in problem.batches])

    def step():
        x, y = next(batches)
        optimizer.zero_grad(set_to_none=True)
        loss = nn.functional.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        return loss.item()

    return step


# ---- JAX -------------------------------------------------------------------------------------------------------------


def jax(problem, threads):
    """One compiled function for the whole update; parameters are donated, so that they are updated in place."""
    import jax
    import jax.numpy as jnp

    last = len(problem.weights) - 1
    names = [f"{i}" for i in range(last)] if problem.batch_norm else []
    parameters = {
        "W": [jnp.array(W) for W, _ in problem.weights],
        "b": [jnp.array(b) for _, b in problem.weights],
        "gamma": [jnp.ones(h, jnp.float32) for h in problem.widths[1:-1] if names],
        "beta": [jnp.zeros(h, jnp.float32) for h in problem.widths[1:-1] if names],
    }
    running = {
        "mean": [jnp.zeros(h, jnp.float32) for h in problem.widths[1:-1] if names],
        "variance": [jnp.ones(h, jnp.float32) for h in problem.widths[1:-1] if names],
    }

    def loss_of(p, running, x, y):
        h, statistics = x, {"mean": [], "variance": []}
        for i in range(last + 1):
            h = h @ p["W"][i] + p["b"][i]
            if i == last:
                break
            if problem.batch_norm:
                mean, variance = h.mean(axis=0), h.var(axis=0)
                h = (h - mean) * jax.lax.rsqrt(variance + BN_EPS) * p["gamma"][i] + p["beta"][i]
                statistics["mean"].append((1 - BN_MOMENTUM) * running["mean"][i] + BN_MOMENTUM * mean)
                unbiased = variance * (BATCH / (BATCH - 1))
                statistics["variance"].append((1 - BN_MOMENTUM) * running["variance"][i] + BN_MOMENTUM * unbiased)
            h = jax.nn.relu(h)
        picked = jnp.take_along_axis(h, y[:, None], axis=1)[:, 0]
        return (jax.nn.logsumexp(h, axis=1) - picked).mean(), statistics

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def update(p, running, x, y):
        (loss, running), g = jax.value_and_grad(loss_of, has_aux=True)(p, running, x, y)
        g["W"] = [dW + WEIGHT_DECAY * W for dW, W in zip(g["W"], p["W"], strict=True)]
        return jax.tree.map(lambda w, dw: w - LEARNING_RATE * dw, p, g), running, loss

    batches = itertools.cycle([(jnp.array(x), jnp.array(y, dtype=jnp.int32)) for x, y in problem.batches])

    def step():
        nonlocal parameters, running
        x, y = next(batches)
        parameters, running, loss = jax.block_until_ready(update(parameters, running, x, y))
        return float(loss)

    return step


# ---- the workloads ---------------------------------------------------------------------------------------------------

PEERS = {"numpy32": numpy32, "torch": torch, "jax": jax, "course": course}

register("linear", "3072-10, softmax cross-entropy, SGD + L2", Problem((3072, 10)), PEERS)
register("mlp", "3072-50-10, ReLU, SGD + L2", Problem((3072, 50, 10)), PEERS)
register("mlp_bn", "3072-50-50-10, batch norm, ReLU, SGD + L2", Problem((3072, 50, 50, 10), batch_norm=True), PEERS)
