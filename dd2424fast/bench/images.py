"""Convolutional networks, in each library: training updates, and images per second in use."""

import functools
import itertools
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from .feedforward import BATCH, BATCHES, BN_EPS, BN_MOMENTUM, LEARNING_RATE, WEIGHT_DECAY, BatchNorm
from .workloads import Task, register

CLASSES = 10


class Convolution(NamedTuple):
    """One of a network, on square images: channels, filters, pixels of a side before and behind it, and whether a 2 x 2
    pool follows."""

    channels: int
    filters: int
    side: int
    side_out: int
    pooled: bool


@dataclass(frozen=True)
class Net(Task):
    """One update by SGD of a network of convolutions (bias or batch norm, ReLU), a hidden layer and an output layer.

    Weights and batches are a pure function of the sizes.

    Attributes
    ----------
    blocks : tuple of tuple of int
        Filters of the convolutions in each block. A block of 3 x 3 convolutions ends with a 2 x 2 pool.
    hidden : int
    batch_norm : bool
        Behind every convolution, which then has no bias.
    smoothing : float
        Of the labels, uniform.
    patch : int
        Not 0: there is one convolution, of patches of so many pixels a side, edge to edge, and no pool.
    side : int
        Pixels of an image.
    batch : int
    rate : float
        Of learning. Small in a large network with batch norm: in float32 some ReLU turns the other way than in float64,
        which moves its gradients, and large steps would make a difference of losses of it.
    """

    blocks: tuple
    hidden: int
    batch_norm: bool = False
    smoothing: float = 0.0
    patch: int = 0
    side: int = 32
    batch: int = BATCH
    rate: float = LEARNING_RATE

    @property
    def size(self):
        return self.patch or 3

    @property
    def stride(self):
        return self.patch or 1

    @property
    def padding(self):
        return 0 if self.patch else 1

    @functools.cached_property
    def convolutions(self):
        """A Convolution for each."""
        found, channels, side = [], 3, self.side
        for filters in self.blocks:
            for i, F in enumerate(filters):
                last = i == len(filters) - 1 and not self.patch
                found.append(Convolution(channels, F, side, side // self.stride, last))
                channels, side = F, side // self.stride
            side //= 1 if self.patch else 2
        return found

    @property
    def final(self):
        """Side and channels of what the hidden layer reads."""
        last = self.convolutions[-1]
        return last.side_out // (2 if last.pooled else 1), last.filters

    @functools.cached_property
    def _drawn(self):
        rng = np.random.default_rng(0)

        def uniform(fan_in, *shape):
            return rng.uniform(-(fan_in**-0.5), fan_in**-0.5, shape).astype(np.float32)

        def convolution(channels, F):
            fan_in = self.size**2 * channels
            return uniform(fan_in, self.size, self.size, channels, F), uniform(fan_in, F)

        side, channels = self.final
        pixels = side * side * channels
        convolutions = [convolution(c.channels, c.filters) for c in self.convolutions]
        norms = [
            [
                a.astype(np.float32)
                for a in (rng.uniform(0.5, 1.5, F), *rng.normal(0, 0.1, (2, F)), rng.uniform(1, 2, F))
            ]
            for F in (c.filters for c in self.convolutions if self.batch_norm)
        ]
        head = [(uniform(d, d, h), uniform(d, h)) for d, h in ((pixels, self.hidden), (self.hidden, CLASSES))]
        x = rng.standard_normal((BATCHES, self.batch, self.side, self.side, 3), dtype=np.float32)
        y = rng.integers(0, CLASSES, (BATCHES, self.batch))
        return convolutions, norms, head, list(zip(x, y, strict=True))

    @property
    def filters(self):
        """W (height, width, channels, filters) and b (filters,) of each convolution, float32."""
        return self._drawn[0]

    @property
    def norms(self):
        """gamma, beta, running mean and variance (filters,) behind each convolution; none without batch norm."""
        return self._drawn[1]

    @property
    def head(self):
        """W (in, out) and b (out,) of the hidden layer, which reads (row, column, channel), and of the output layer."""
        return self._drawn[2]

    @property
    def batches(self):
        """x (batch, side, side, 3) float32 and y (batch,) int64 of each batch."""
        return self._drawn[3]

    def folded(self):
        """W and b of each convolution with the batch norm behind it folded in, as it acts in use."""
        if not self.norms:
            return self.filters
        scales = [gamma / np.sqrt(variance + np.float32(BN_EPS)) for gamma, _, _, variance in self.norms]
        return [
            (W * scale, beta - mean * scale)
            for (W, _), scale, (_, beta, mean, _) in zip(self.filters, scales, self.norms, strict=True)
        ]

    def state_dict(self):
        """The initial state, as torch.nn.Sequential(Conv2d, [BatchNorm2d,] ReLU, [MaxPool2d,] ..., Flatten, Linear,
        ReLU, Linear) names and lays it out: the hidden layer reads (channel, row, column)."""
        state, place = {}, 0
        for i, ((W, b), convolution) in enumerate(zip(self.filters, self.convolutions, strict=True)):
            state[f"{place}.weight"] = np.ascontiguousarray(W.transpose(3, 2, 0, 1))
            if self.batch_norm:
                place += 1
                names = ("weight", "bias", "running_mean", "running_var")
                state |= {f"{place}.{name}": a for name, a in zip(names, self.norms[i], strict=True)}
            else:
                state[f"{place}.bias"] = b
            place += 3 if convolution.pooled else 2
        (W, b), (V, d) = self.head
        side, channels = self.final
        W = W.reshape(side, side, channels, -1).transpose(3, 2, 0, 1).reshape(self.hidden, -1)
        state |= {f"{place + 1}.weight": W, f"{place + 1}.bias": b}
        return state | {f"{place + 3}.weight": np.ascontiguousarray(V.T), f"{place + 3}.bias": d}

    def forward_gflop(self):
        """2 for each image, pixel and weight; convolutions directly, as they are defined."""
        products = [c.side_out**2 * self.size**2 * c.channels * c.filters for c in self.convolutions]
        return 2e-9 * self.batch * (sum(products) + sum(W.size for W, _ in self.head))

    def gflop(self):
        """As much for dW as forward, and for dx behind the first convolution."""
        first = self.convolutions[0]
        dx = 2e-9 * self.batch * first.side_out**2 * self.size**2 * first.channels * first.filters
        return 3 * self.forward_gflop() - dx

    def parameters(self):
        """How many numbers are trained."""
        return sum(a.size for name, a in self.state_dict().items() if "running" not in name)

    def activations(self):
        """What the convolutions give, in numbers."""
        return self.batch * sum(c.side_out**2 * c.filters for c in self.convolutions)

    def gbytes(self):
        """x is read twice; what a convolution gives is written, read, and read again backward, its gradient written and
        read; parameters as in feedforward.py."""
        images = self.batch * self.side**2 * 3
        return 4 * (2 * images + 5 * self.activations() + 5 * self.parameters()) / 1e9

    def model(self):
        """The model in this library."""
        import dd2424fast as dd

        image = (self.side, self.side, 3)
        if self.patch:
            ((filters,),) = self.blocks
            model = dd.models.PatchifyNet(self.patch, filters, self.hidden, CLASSES, image=image, seed=0)
        else:
            model = dd.models.ConvNet(
                tuple(filters[0] for filters in self.blocks), self.hidden, CLASSES, batch_norm=self.batch_norm,
                convs_per_block=len(self.blocks[0]), image=image, seed=0,
            )  # fmt: skip
        model.load_state_dict(self.state_dict())
        return model

    def ours(self):
        import dd2424fast as dd

        optimizer = dd.optim.SGD(self.rate, weight_decay=WEIGHT_DECAY)
        trainer = dd.Trainer(self.model(), optimizer, dd.losses.CrossEntropy(self.smoothing))
        batches = itertools.cycle(self.batches)
        return lambda: trainer.step(*next(batches))


@dataclass(frozen=True)
class InUse(Task):
    """A batch of images through a network in evaluation; a run's result is the mean square of its logits.

    Attributes
    ----------
    net : Net
    """

    net: Net

    @property
    def batch(self):
        return self.net.batch

    @property
    def tokens(self):
        return self.net.batch

    def gflop(self):
        return self.net.forward_gflop()

    def gbytes(self):
        """x and the parameters are read, what a convolution gives is written and read."""
        images = self.net.batch * self.net.side**2 * 3
        return 4 * (images + 2 * self.net.activations() + self.net.parameters()) / 1e9

    def ours(self):
        model = self.net.model().eval()
        return self.stepping(lambda x: model.predict(x))

    def stepping(self, logits):
        """`step` from a function that gives an array of logits."""
        batches = itertools.cycle([x for x, _ in self.net.batches])

        def step():
            z = np.asarray(logits(next(batches)), np.float64)
            return float(np.mean(z * z))

        return step


# ---- NumPy as the course's students write it -------------------------------------------------------------------------


def course_in_use(task, threads):
    """Float64, batch norm folded into the filters, every convolution a product behind a copy of its windows."""
    net = task.net
    filters = [(W.astype(np.float64), b.astype(np.float64)) for W, b in net.folded()]
    (W1, b1), (W2, b2) = [(W.astype(np.float64), b.astype(np.float64)) for W, b in net.head]
    k, s, p = net.size, net.stride, net.padding

    def logits(x):
        H = x.astype(np.float64)
        for convolution, (W, b) in zip(net.convolutions, filters, strict=True):
            windows = sliding_window_view(np.pad(H, ((0, 0), (p, p), (p, p), (0, 0))), (k, k), axis=(1, 2))[:, ::s, ::s]
            H = np.maximum(0, np.einsum("npqcij,ijcf->npqf", windows, W, optimize=True) + b)
            if convolution.pooled:
                n, side = len(H), convolution.side_out
                H = np.max(H.reshape(n, side // 2, 2, side // 2, 2, -1), axis=(2, 4))
        return np.maximum(0, H.reshape(len(H), -1) @ W1 + b1) @ W2 + b2

    return task.stepping(logits)


def course(net, threads):
    """Float64, images last, patches as matrices and einsum, one-hot labels, a new array for every result: the equations
    of the assignment. Patches edge to edge are cut once for all batches, as there; others for every update."""
    Fs = [W.reshape(-1, W.shape[3]).astype(np.float64) for W, _ in net.filters]
    bs = [b[:, None].astype(np.float64) for _, b in net.filters]
    gammas, betas, mus, variances = ([norm[i][:, None].astype(np.float64) for norm in net.norms] for i in range(4))
    Ws = [W.T.astype(np.float64) for W, _ in net.head]
    cs = [b[:, None].astype(np.float64) for _, b in net.head]
    lam, n = WEIGHT_DECAY / 2, net.batch
    k, s, p = net.size, net.stride, net.padding

    def patches(H):
        """From (side, side, channels, n) to (patches, numbers in each, n)."""
        padded = np.pad(H, ((p, p), (p, p), (0, 0), (0, 0)))
        windows = sliding_window_view(padded, (k, k), axis=(0, 1))[::s, ::s].transpose(0, 1, 4, 5, 2, 3)
        return windows.reshape(windows.shape[0] ** 2, -1, n)

    def sum_of_patches(M, side):
        """The transpose of `patches`, of stride 1."""
        M, padded = M.reshape(side, side, k, k, -1, n), 0
        padded = np.zeros((side + 2 * p, side + 2 * p, M.shape[4], n))
        for i, j in itertools.product(range(k), range(k)):
            padded[i : i + side, j : j + side] += M[:, :, i, j]
        return padded[p : p + side, p : p + side]

    Xs = [x.transpose(1, 2, 3, 0).astype(np.float64) for x, _ in net.batches]
    if net.patch:
        Xs = [patches(X) for X in Xs]
    Ys = [np.eye(CLASSES)[:, y] * (1 - net.smoothing) + net.smoothing / CLASSES for _, y in net.batches]
    data = itertools.cycle(zip(Xs, Ys, strict=True))

    def forward(X):
        H, cache = X, []
        for i, convolution in enumerate(net.convolutions):
            M, side = H if net.patch else patches(H), convolution.side_out
            S = np.einsum("ijn,jl->iln", M, Fs[i], optimize=True)
            S_hat = scale = None
            if net.batch_norm:
                mu, v = np.mean(S, axis=(0, 2))[:, None], np.var(S, axis=(0, 2))[:, None]
                scale = 1 / np.sqrt(v + BN_EPS)
                S_hat = (S - mu) * scale
                rows = n * side * side
                mus[i] = (1 - BN_MOMENTUM) * mus[i] + BN_MOMENTUM * mu
                variances[i] = (1 - BN_MOMENTUM) * variances[i] + BN_MOMENTUM * v * rows / (rows - 1)
                A = np.maximum(0, gammas[i] * S_hat + betas[i])
            else:
                A = np.maximum(0, S + bs[i])
            A = A.reshape(side, side, -1, n)
            H = np.max(A.reshape(side // 2, 2, side // 2, 2, -1, n), axis=(1, 3)) if convolution.pooled else A
            cache.append((M, S_hat, scale, A, H))
        flat = H.reshape(-1, n)
        hidden = np.maximum(0, Ws[0] @ flat + cs[0])
        S = Ws[1] @ hidden + cs[1]
        E = np.exp(S - np.max(S, axis=0))
        return cache, flat, hidden, E / np.sum(E, axis=0)

    def backward(cache, flat, hidden, G):
        gradients = {("W", 1): G @ hidden.T / n + 2 * lam * Ws[1], ("c", 1): np.sum(G, axis=1, keepdims=True) / n}
        G = Ws[1].T @ G * (hidden > 0)
        gradients |= {("W", 0): G @ flat.T / n + 2 * lam * Ws[0], ("c", 0): np.sum(G, axis=1, keepdims=True) / n}
        G = Ws[0].T @ G
        for i in range(len(cache) - 1, -1, -1):
            M, S_hat, scale, A, H = cache[i]
            G = G.reshape(H.shape)
            if net.convolutions[i].pooled:
                G = np.repeat(np.repeat(G, 2, axis=0), 2, axis=1)
                G = G * (np.repeat(np.repeat(H, 2, axis=0), 2, axis=1) == A)
            G = (G * (A > 0)).reshape(-1, A.shape[2], n)
            if net.batch_norm:
                dgamma, dbeta = np.sum(G * S_hat, axis=(0, 2))[:, None], np.sum(G, axis=(0, 2))[:, None]
                rows = G.shape[0] * n
                G = gammas[i] * scale * (G - dbeta / rows - S_hat * dgamma / rows)
                gradients |= {("gamma", i): dgamma / n, ("beta", i): dbeta / n}
            else:
                gradients["b", i] = np.sum(G, axis=(0, 2))[:, None] / n
            gradients["F", i] = np.einsum("ijn,iln->jl", M, G, optimize=True) / n + 2 * lam * Fs[i]
            if i:
                G = sum_of_patches(np.einsum("iln,jl->ijn", G, Fs[i], optimize=True), net.convolutions[i].side)
        return gradients

    parameters = {"F": Fs, "b": bs, "gamma": gammas, "beta": betas, "W": Ws, "c": cs}

    def step():
        X, Y = next(data)
        cache, flat, hidden, P = forward(X)
        loss = -np.sum(Y * np.log(P)) / n
        for (name, i), gradient in backward(cache, flat, hidden, P - Y).items():
            parameters[name][i] -= net.rate * gradient
        return float(loss)

    return step


# ---- NumPy as fast as it honestly gets -------------------------------------------------------------------------------


def numpy32(net, threads):
    """Float32, images first, every convolution one product behind a copy of its windows, results written into arrays
    made once, ReLU behind the pool, labels as integers."""
    layers = [_Layer(net, i) for i in range(len(net.convolutions))]
    Ws, bs = ([a.copy() for a in arrays] for arrays in zip(*net.head, strict=True))
    dWs = [np.empty_like(W) for W in Ws]
    outputs = [np.empty((net.batch, W.shape[1]), np.float32) for W in Ws]
    upstream = [np.empty((net.batch, W.shape[0]), np.float32) for W in Ws]
    rows, eps = np.arange(net.batch), np.float32(net.smoothing)
    batches = itertools.cycle(net.batches)

    def step():
        x, y = next(batches)
        for layer in layers:
            x = layer.forward(x)
        flat = x.reshape(net.batch, -1)
        hidden, z = outputs
        np.matmul(flat, Ws[0], out=hidden)
        hidden += bs[0]
        np.maximum(hidden, 0, out=hidden)
        np.matmul(hidden, Ws[1], out=z)
        z += bs[1]
        z -= z.max(axis=1, keepdims=True)
        target = (1 - eps) * z[rows, y] + eps * z.mean(axis=1)
        np.exp(z, out=z)
        total = z.sum(axis=1, keepdims=True)
        loss = float((np.log(total[:, 0]) - target).mean())
        z /= total
        z -= eps / CLASSES
        z[rows, y] -= 1 - eps
        z *= np.float32(1 / net.batch)
        np.matmul(hidden.T, z, out=dWs[1])
        g = np.matmul(z, Ws[1].T, out=upstream[1])
        g *= hidden > 0
        np.matmul(flat.T, g, out=dWs[0])
        dbs = g.sum(axis=0), z.sum(axis=0)
        g = np.matmul(g, Ws[0].T, out=upstream[0])
        for W, dW, b, db in zip(Ws, dWs, bs, dbs, strict=True):
            _descend(W, dW, net.rate)
            b -= np.float32(net.rate) * db
        for layer in reversed(layers):
            g = layer.backward(g)
        return loss

    return step


def _descend(W, dW, rate):
    dW *= np.float32(rate)
    W *= np.float32(1 - rate * WEIGHT_DECAY)
    W -= dW


class _Layer:
    """Convolution, batch norm, pool and ReLU, with their update behind the backward pass."""

    def __init__(self, net, i):
        c = net.convolutions[i]
        self.first, self.padding, self.inside, self.rate = i == 0, net.padding, c.side, net.rate
        W, b = net.filters[i]
        self.W, self.b, self.dW = W.reshape(-1, c.filters).copy(), b.copy(), np.empty((W.size // len(b), len(b)), "f4")
        side, k = c.side + 2 * net.padding, net.size
        self.padded = np.zeros((net.batch, side, side, c.channels), np.float32)
        windows = sliding_window_view(self.padded, (k, k), axis=(1, 2))[:, :: net.stride, :: net.stride]
        self.windows = windows.transpose(0, 1, 2, 4, 5, 3)
        self.columns = np.empty(self.windows.shape, np.float32)
        self.rows = self.columns.reshape(-1, len(self.W))
        self.out = np.empty((net.batch, c.side_out, c.side_out, c.filters), np.float32)
        self.flat = self.out.reshape(-1, c.filters)
        self.gradient = self.padded if self.first else np.empty_like(self.padded)
        self.norm = BatchNorm(*net.norms[i], len(self.flat), net.rate) if net.norms else None
        self.pool = _Pool(self.out) if c.pooled else None

    def forward(self, x):
        p, side = self.padding, self.inside
        self.padded[:, p : p + side, p : p + side] = x
        np.copyto(self.columns, self.windows)
        np.matmul(self.rows, self.W, out=self.flat)
        if self.norm:
            self.norm.forward(self.flat)
        else:
            self.flat += self.b
        self.y = self.pool.forward(self.out) if self.pool else self.out
        return np.maximum(self.y, 0, out=self.y)

    def backward(self, g):
        g = g.reshape(self.y.shape)
        g *= self.y > 0
        g = (self.pool.backward(g) if self.pool else g).reshape(self.flat.shape)
        if self.norm:
            self.norm.backward(g)
        else:
            self.b -= np.float32(self.rate) * g.sum(axis=0)
        np.matmul(self.rows.T, g, out=self.dW)
        dx = None
        if not self.first:
            np.matmul(g, self.W.T, out=self.rows)  # the windows have been used
            dx = self._sum_of_windows()
        _descend(self.W, self.dW, self.rate)
        return dx

    def _sum_of_windows(self):
        """What has been written into the windows, added up where it came from; of stride 1."""
        _, rows, columns, height, width, _ = self.columns.shape
        self.gradient.fill(0)
        for i, j in itertools.product(range(height), range(width)):
            self.gradient[:, i : i + rows, j : j + columns] += self.columns[:, :, :, i, j]
        p, side = self.padding, self.inside
        return np.ascontiguousarray(self.gradient[:, p : p + side, p : p + side])


class _Pool:
    """2 x 2, first of columns, then of rows; of equals the first gets the gradient."""

    def __init__(self, x):
        n, rows, columns, channels = x.shape
        self.wide = np.empty((n, rows, columns // 2, channels), np.float32)
        self.out = np.empty((n, rows // 2, columns // 2, channels), np.float32)
        self.left, self.upper = np.empty(self.wide.shape, bool), np.empty(self.out.shape, bool)
        self.dwide, self.dx = np.empty_like(self.wide), np.empty_like(x)

    def forward(self, x):
        a, b = x[:, :, ::2], x[:, :, 1::2]
        np.greater_equal(a, b, out=self.left)
        np.maximum(a, b, out=self.wide)
        a, b = self.wide[:, ::2], self.wide[:, 1::2]
        np.greater_equal(a, b, out=self.upper)
        return np.maximum(a, b, out=self.out)

    def backward(self, g):
        np.multiply(g, self.upper, out=self.dwide[:, ::2])
        np.subtract(g, self.dwide[:, ::2], out=self.dwide[:, 1::2])
        np.multiply(self.dwide, self.left, out=self.dx[:, :, ::2])
        np.subtract(self.dwide, self.dx[:, :, ::2], out=self.dx[:, :, 1::2])
        return self.dx


# ---- PyTorch ---------------------------------------------------------------------------------------------------------


def _torch_model(net):
    """The network as torch.nn has it, at its initial state."""
    import torch
    from torch import nn

    layers = []
    for c in net.convolutions:
        layers.append(nn.Conv2d(c.channels, c.filters, net.size, net.stride, net.padding, bias=not net.batch_norm))
        if net.batch_norm:
            layers.append(nn.BatchNorm2d(c.filters, eps=BN_EPS, momentum=BN_MOMENTUM))
        layers.append(nn.ReLU())
        if c.pooled:
            layers.append(nn.MaxPool2d(2))
    side, channels = net.final
    head = nn.Linear(side * side * channels, net.hidden), nn.ReLU(), nn.Linear(net.hidden, CLASSES)
    model = nn.Sequential(*layers, nn.Flatten(), *head)
    state = {name: torch.tensor(a) for name, a in net.state_dict().items()}
    model.load_state_dict(state, strict=not net.batch_norm)  # which has a count besides
    return model


def _planes(x):
    """An NHWC array as PyTorch's shape (n, channels, rows, columns), contiguous."""
    import torch

    return torch.tensor(np.ascontiguousarray(x.transpose(0, 3, 1, 2)))


def torch(net, threads, lean=False):
    """As users write it. `lean`: channels last, the fastest layout."""
    import torch
    from torch import nn

    torch.set_num_threads(threads)
    model = _torch_model(net)
    layout = torch.channels_last if lean else torch.contiguous_format
    model = model.to(memory_format=layout)
    decayed = [p for p in model.parameters() if p.ndim > 1]
    exempt = [p for p in model.parameters() if p.ndim == 1]
    optimizer = torch.optim.SGD(
        [{"params": decayed, "weight_decay": WEIGHT_DECAY}, {"params": exempt}], lr=net.rate, fused=True
    )
    loss_of = functools.partial(nn.functional.cross_entropy, label_smoothing=net.smoothing)
    batches = itertools.cycle([(_planes(x).to(memory_format=layout), torch.tensor(y)) for x, y in net.batches])

    def step():
        x, y = next(batches)
        optimizer.zero_grad(set_to_none=True)
        loss = loss_of(model(x), y)
        loss.backward()
        optimizer.step()
        return loss.item()

    return step


torch_lean = functools.partial(torch, lean=True)


# ---- JAX -------------------------------------------------------------------------------------------------------------


def _jax_convolution(net):
    import jax

    padding = [(net.padding, net.padding)] * 2

    def convolve(x, W):
        return jax.lax.conv_general_dilated(
            x, W, (net.stride, net.stride), padding, dimension_numbers=("NHWC", "HWIO", "NHWC")
        )

    return convolve


def _jax_pool(h):
    """2 x 2, by comparisons of two. `max` over both axes is faster, but its gradient goes to the pixels that equal the
    maximum: where XLA computes h a second time and rounds it differently, as behind batch norm, none does."""
    import jax.numpy as jnp

    n, rows, columns, channels = h.shape
    h = h.reshape(n, rows, columns // 2, 2, channels)
    h = jnp.where(h[:, :, :, 0] >= h[:, :, :, 1], h[:, :, :, 0], h[:, :, :, 1])
    h = h.reshape(n, rows // 2, 2, columns // 2, channels)
    return jnp.where(h[:, :, 0] >= h[:, :, 1], h[:, :, 0], h[:, :, 1])


def jax(net, threads):
    """One compiled function for the whole update; parameters are donated, so that they are updated in place."""
    import jax
    import jax.numpy as jnp

    convolve = _jax_convolution(net)
    parameters = {
        "F": [jnp.array(W) for W, _ in net.filters],
        "b": [] if net.batch_norm else [jnp.array(b) for _, b in net.filters],
        "gamma": [jnp.array(gamma) for gamma, *_ in net.norms],
        "beta": [jnp.array(beta) for _, beta, *_ in net.norms],
        "W": [jnp.array(W) for W, _ in net.head],
        "c": [jnp.array(b) for _, b in net.head],
    }
    running = {
        "mean": [jnp.array(norm[2]) for norm in net.norms],
        "variance": [jnp.array(norm[3]) for norm in net.norms],
    }

    def loss_of(p, running, x, y):
        h, statistics = x, {"mean": [], "variance": []}
        for i, c in enumerate(net.convolutions):
            h = convolve(h, p["F"][i])
            if net.batch_norm:
                mean, variance = h.mean(axis=(0, 1, 2)), h.var(axis=(0, 1, 2))
                h = (h - mean) * jax.lax.rsqrt(variance + BN_EPS) * p["gamma"][i] + p["beta"][i]
                statistics["mean"].append((1 - BN_MOMENTUM) * running["mean"][i] + BN_MOMENTUM * mean)
                unbiased = variance * (h.size // c.filters / (h.size // c.filters - 1))
                statistics["variance"].append((1 - BN_MOMENTUM) * running["variance"][i] + BN_MOMENTUM * unbiased)
            else:
                h = h + p["b"][i]
            h = jax.nn.relu(h)
            if c.pooled:
                h = _jax_pool(h)
        h = jax.nn.relu(h.reshape(len(h), -1) @ p["W"][0] + p["c"][0])
        z = h @ p["W"][1] + p["c"][1]
        picked = jnp.take_along_axis(z, y[:, None], axis=1)[:, 0]
        target = (1 - net.smoothing) * picked + net.smoothing * z.mean(axis=1)
        return (jax.nn.logsumexp(z, axis=1) - target).mean(), statistics

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def update(p, running, x, y):
        (loss, running), g = jax.value_and_grad(loss_of, has_aux=True)(p, running, x, y)
        for name in ("F", "W"):
            g[name] = [dW + WEIGHT_DECAY * W for dW, W in zip(g[name], p[name], strict=True)]
        return jax.tree.map(lambda w, dw: w - net.rate * dw, p, g), running, loss

    batches = itertools.cycle([(jnp.array(x), jnp.array(y, dtype=jnp.int32)) for x, y in net.batches])

    def step():
        nonlocal parameters, running
        x, y = next(batches)
        parameters, running, loss = jax.block_until_ready(update(parameters, running, x, y))
        return float(loss)

    return step


# ---- in use ----------------------------------------------------------------------------------------------------------


def torch_in_use(task, threads, layout="contiguous_format"):
    import torch

    torch.set_num_threads(threads)
    memory_format = getattr(torch, layout)
    model = _torch_model(task.net).eval().to(memory_format=memory_format)

    def logits(x):
        with torch.inference_mode():
            return model(torch.from_numpy(x).permute(0, 3, 1, 2).contiguous(memory_format=memory_format)).numpy()

    return task.stepping(logits)


def torch_lean_in_use(task, threads):
    """Channels last, in which the images lie already."""
    return torch_in_use(task, threads, "channels_last")


def jax_in_use(task, threads):
    """Compiled, with batch norm folded into the filters."""
    import jax
    import jax.numpy as jnp

    net = task.net
    filters = [(jnp.array(W), jnp.array(b)) for W, b in net.folded()]
    (W1, b1), (W2, b2) = [(jnp.array(W), jnp.array(b)) for W, b in net.head]

    @jax.jit
    def forward(x):
        for convolution, (W, b) in zip(net.convolutions, filters, strict=True):
            x = jax.lax.conv_general_dilated(
                x, W, (net.stride,) * 2, [(net.padding,) * 2] * 2, dimension_numbers=("NHWC", "HWIO", "NHWC")
            )
            x = jax.nn.relu(x + b)
            if convolution.pooled:
                x = jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")
        return jax.nn.relu(x.reshape(len(x), -1) @ W1 + b1) @ W2 + b2

    return task.stepping(lambda x: jax.block_until_ready(forward(x)))


# ---- the workloads ---------------------------------------------------------------------------------------------------

PEERS = {"numpy32": numpy32, "torch": torch, "torch_lean": torch_lean, "jax": jax, "course": course}

PATCHIFY = Net(((64,),), 512, smoothing=0.1, patch=4)
CNN = Net(((32,), (64,)), 128)
VGG_BN = Net(((32, 32), (64, 64), (128, 128)), 128, batch_norm=True, rate=0.002)

register("patchify", "4x4 patches, 64 filters, 4096-512-10, label smoothing, SGD + L2", PATCHIFY, PEERS)
register("cnn", "3x3x32, pool, 3x3x64, pool, 4096-128-10, SGD + L2", CNN, PEERS)
register("vgg_bn", "3x3 twice 32, 64, 128, batch norm, pools, 2048-128-10, SGD + L2", VGG_BN, PEERS)

IN_USE = {"torch": torch_in_use, "torch_lean": torch_lean_in_use, "jax": jax_in_use, "course": course_in_use}

for _name, _net in (("cnn", CNN), ("vgg_bn", VGG_BN)):
    for _batch in (1, 100):
        _task = InUse(replace(_net, batch=_batch))
        register(f"{_name}_use_b{_batch}", f"{_name} in evaluation, batch {_batch}", _task, IN_USE, "inference")
