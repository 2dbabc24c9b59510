"""What Hypothesis draws: calls of every kernel, arrays in every layout, and values that fit nowhere."""

import itertools
import math

import numpy as np
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st

import dd2424fast as dd

# No random failures: the same examples in every run, and none kept on disk.
settings.register_profile(
    "properties",
    derandomize=True,
    database=None,
    deadline=None,
    report_multiple_bugs=False,
    phases=[Phase.explicit, Phase.generate],  # shrinking a failure takes minutes
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
profile = settings.get_profile("properties")

# Around the widths of vectors and tiles, and primes.
SIZES = (1, 2, 3, 5, 7, 8, 13, 16, 17, 31, 33, 48, 67)
ACTIVATIONS = ("identity", "relu", "leaky_relu", "tanh", "sigmoid")
SOFTPLUS = dd.kernels.custom_activation(lambda z: np.log1p(np.exp(z)), lambda z: 1 / (1 + np.exp(-z)))


def laid_out(a, layout):
    """The same numbers in another memory layout."""
    a = np.asarray(a)
    if layout == "fortran":
        return np.array(a, order="F")
    if layout == "strided" and a.ndim:
        wide = np.full((*a.shape[:-1], 2 * a.shape[-1]), 99, a.dtype)
        wide[..., ::2] = a
        return wide[..., ::2]
    if layout == "reversed" and a.ndim:
        return np.ascontiguousarray(a[::-1])[::-1]
    if layout == "unaligned":
        memory = np.empty(a.nbytes + 1, np.uint8)
        shifted = memory[1:].view(a.dtype).reshape(a.shape)
        shifted[...] = a
        return shifted
    a = a.copy()
    a.flags.writeable = layout != "read-only"
    return a


LAYOUTS = ("C", "fortran", "strided", "reversed", "unaligned", "read-only")


class Maker:
    """Draws the arguments of one call: one dtype, numbers from one seed."""

    def __init__(self, draw):
        self.draw = draw
        self.dtype = np.dtype(draw(st.sampled_from(["float32", "float64"])))
        self.rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))

    def size(self, least=0):
        return self.draw(st.sampled_from([n for n in (0, *SIZES) if n >= least]))

    def shape(self):
        return tuple(self.draw(st.lists(st.sampled_from((0, 1, 3, 8, 17)), max_size=3)))

    def layout(self, a):
        return laid_out(a, self.draw(st.sampled_from(LAYOUTS)))

    def real(self, *shape):
        return self.layout(self.rng.standard_normal(shape).astype(self.dtype))

    def uniform(self, low, high, *shape):
        return self.layout(self.rng.uniform(low, high, shape).astype(self.dtype))

    def own(self, *shape):
        """What is updated in place; not negative."""
        return self.rng.uniform(0, 2, shape).astype(self.dtype)

    def labels(self, N, K):
        dtype = self.draw(st.sampled_from([np.int64, np.int32, np.uint8]))
        return self.layout(self.rng.integers(0, K, N).astype(dtype))

    def distributions(self, N, K):
        rows = self.rng.uniform(0, 1, (N, K))
        return self.layout((rows / rows.sum(axis=1, keepdims=True)).astype(self.dtype))

    def out(self, *shape, dtype=None):
        return np.full(shape, 77, dtype or self.dtype) if self.draw(st.booleans()) else None

    def number(self, *choices):
        return self.draw(st.sampled_from(choices))

    def maybe(self, make, *arguments):
        return make(*arguments) if self.draw(st.booleans()) else None

    def segments(self, P):
        if self.draw(st.booleans()):
            return None
        cuts = sorted(self.rng.integers(0, P + 1, 4).tolist())
        return dd.kernels.Segments(P, [cuts[:2], cuts[2:]], self.rng.uniform(0, 2, (2, 2)))


def _matmul(m):
    M, K, N = m.size(), m.size(), m.size()
    return dict(a=m.real(M, K), b=m.real(K, N), out=m.out(M, N))


def _pack(m):
    K, N = m.size(), m.size()
    b = m.real(K, N)
    return dict(b=b, out=m.maybe(dd.kernels.pack, np.zeros_like(b)))


def _matmul_packed(m):
    M, K, N = m.size(), m.size(), m.size()
    return dict(a=m.real(M, K), packed=dd.kernels.pack(m.real(K, N)), out=m.out(M, N))


def _linear_forward(m):
    N, D, H = m.size(), m.size(), m.size()
    activation = m.number(*ACTIVATIONS)
    return dict(x=m.real(N, D), W=m.real(D, H), b=m.maybe(m.real, H), activation=activation, out=m.out(N, H))


def _linear_backward(m):
    N, D, H = m.size(), m.size(), m.size()
    need_dx, use_bias, accumulate = m.number(True, False), m.number(True, False), m.number(True, False)
    need_dW = m.number(True, False)
    return dict(
        dy=m.real(N, H),
        x=m.real(N, D),
        W=m.real(D, H),
        dx=m.out(N, D) if need_dx else None,
        dW=None if not need_dW else m.own(D, H) if accumulate else m.out(D, H),
        db=None if not (use_bias and need_dW) else m.own(H) if accumulate else m.out(H),
        need_dx=need_dx,
        use_bias=use_bias,
        accumulate=accumulate,
        need_dW=need_dW,
    )


def _activation_forward(m):
    shape = m.shape()
    return dict(z=m.real(*shape), activation=m.number(*ACTIVATIONS, "gelu"), out=m.out(*shape))


def _activation_backward(m):
    shape = m.shape()
    saved = m.uniform(-1, 1, *shape)
    return dict(dy=m.real(*shape), saved=saved, activation=m.number(*ACTIVATIONS, "gelu"), out=m.out(*shape))


def _residual_add_forward(m):
    shape = m.shape()
    return dict(x=m.real(*shape), skip=m.real(*shape), activation=m.number(*ACTIVATIONS), out=m.out(*shape))


def _custom_forward(m):
    shape = m.shape()
    return dict(z=m.real(*shape), activation=SOFTPLUS, out=m.out(*shape))


def _custom_backward(m):
    shape = m.shape()
    return dict(dy=m.real(*shape), z=m.real(*shape), activation=SOFTPLUS, out=m.out(*shape))


def _softmax_cross_entropy(m):
    N, K = m.size(1), m.size(2)
    return dict(
        logits=m.real(N, K),
        labels=m.number(m.labels(N, K), m.distributions(N, K)),
        label_smoothing=m.number(0.0, 0.1, 1.0),
        smoothing=m.number("uniform", "others"),
        class_weight=m.maybe(m.uniform, 0.1, 2, K),
        sample_weight=m.maybe(m.uniform, 0.1, 2, N),
        ignore_index=-100,
        dlogits=m.out(N, K),
    )


def _softmax(m):
    N, K = m.size(), m.size(1)
    return dict(logits=m.real(N, K), out=m.out(N, K))


def _binary_cross_entropy(m):
    N, K = m.size(1), m.size(1)
    targets = m.number(m.labels(N, K), m.uniform(0, 1, N, K))
    weight = m.maybe(m.uniform, 0.1, 2, N)
    return dict(logits=m.real(N, K), targets=targets, sample_weight=weight, dlogits=m.out(N, K))


def _mean_squared_error(m):
    shape = m.number((m.size(1),), (m.size(1), m.size(1)))
    weight = m.maybe(m.uniform, 0.1, 2, shape[0])
    return dict(predictions=m.real(*shape), targets=m.real(*shape), sample_weight=weight, dpredictions=m.out(*shape))


def _batch_norm_forward(m):
    N, C = m.size(2), m.size()
    return dict(
        x=m.real(N, C),
        gamma=m.real(C),
        beta=m.real(C),
        running_mean=m.own(C),
        running_var=m.own(C),
        momentum=m.number(0.0, 0.1, 1.0),
        eps=1e-5,
        activation=m.number(*ACTIVATIONS),
        out=m.out(N, C),
        mean=m.out(C),
        rstd=m.out(C),
    )


def _batch_norm_inference(m):
    N, C = m.size(), m.size()
    statistics = dict(running_mean=m.real(C), running_var=m.uniform(0, 2, C))
    activation = m.number(*ACTIVATIONS)
    return dict(
        x=m.real(N, C), gamma=m.real(C), beta=m.real(C), **statistics, eps=1e-3, activation=activation, out=m.out(N, C)
    )


def _norm_backward(m, N, C, statistics):
    accumulate = m.number(True, False)
    return dict(
        dy=m.real(N, C),
        x=m.real(N, C),
        gamma=m.real(C),
        mean=m.real(statistics),
        rstd=m.uniform(0.5, 2, statistics),
        dx=m.out(N, C),
        dgamma=m.own(C) if accumulate else m.out(C),
        dbeta=m.own(C) if accumulate else m.out(C),
        accumulate=accumulate,
    )


def _batch_norm_backward(m):
    N, C = m.size(2), m.size()
    activation = m.number(*ACTIVATIONS)
    beta = m.maybe(m.real, C) if activation == "identity" else m.real(C)
    return {**_norm_backward(m, N, C, C), "frozen": m.number(True, False), "beta": beta, "activation": activation}


def _layer_norm_forward(m):
    N, C = m.size(), m.size(3)
    x, gamma, beta = m.real(N, C), m.real(C), m.real(C)
    return dict(x=x, gamma=gamma, beta=beta, eps=1e-5, out=m.out(N, C), mean=m.out(N), rstd=m.out(N))


def _layer_norm_backward(m):
    N, C = m.size(), m.size(1)
    return _norm_backward(m, N, C, N)


def _key(m):
    return m.number(0, 1, 2**32 + 5, 2**64 - 1)


def _dropout(m):
    shape = m.shape()
    return dict(x=m.real(*shape), p=m.number(0.0, 0.1, 0.5, 0.999), key=_key(m), out=m.out(*shape))


def _random_bits(m):
    shape = m.shape()
    return dict(key=_key(m), shape=shape, out=m.out(*shape, dtype=np.uint32))


def _random_flags(m):
    shape = m.shape()
    rates = tuple(m.rng.uniform(0, 1, m.number(0, 1, 3, 8)).tolist())
    return dict(key=_key(m), probabilities=rates, shape=shape, out=m.out(*shape, dtype=np.uint8))


def _random_numbers(m):
    shape = m.shape()
    return dict(key=_key(m), shape=shape, dtype=m.dtype, out=m.out(*shape))


def _optimizer(*states, first=(), **numbers):
    """The arguments of an update: parameters, gradients, state vectors, the update's number where there is one."""

    def make(m):
        P = m.size()
        return dict(
            parameters=m.own(P),
            gradients=m.real(P),
            **{name: m.own(P) for name in states},
            **{name: {"t": m.number(1, 7), "mu_product": np.ones(1)}[name] for name in first},
            segments=m.segments(P),
            **{name: m.number(*choices) for name, choices in numbers.items()},
            weight_decay=m.number(0.0, 0.1),
            lr=m.number(0.0, 0.1),
        )

    return make


def _sgd(m):
    P, momentum = m.size(), m.number(0.0, 0.9)
    return dict(
        parameters=m.own(P),
        gradients=m.real(P),
        velocity=m.own(P) if momentum else None,
        segments=m.segments(P),
        lr=0.1,
        momentum=momentum,
        nesterov=bool(momentum) and m.number(True, False),
        weight_decay=m.number(0.0, 0.1),
    )


def _moving_average(m):
    P = m.size()
    return dict(average=m.own(P), values=m.real(P), decay=m.number(0.0, 0.3, 0.999, 1.0))


def _clip_by_norm(m):
    P = m.size()
    return dict(gradients=m.own(P), max_norm=m.number(0.1, 1e3, math.inf), segments=m.segments(P))


def _global_norm(m):
    P = m.size()
    return dict(gradients=m.real(P), segments=m.segments(P))


def _augment_images(m):
    N, H, W, C = m.size(), m.number(1, 4, 7), m.number(1, 4, 7), m.number(1, 3)
    images = m.rng.integers(0, 256, (N, H, W, C)).astype(m.number("uint8", "float32", "float64"))
    mean, std = m.number((None, None), (120.0, 60.0), (np.linspace(90, 110, C), np.linspace(50, 60, C)))
    floats = images.dtype if images.dtype != "uint8" else m.number("float32", "float64")
    return dict(
        images=laid_out(images, m.number("C", "fortran", "strided")),
        key=_key(m),
        flip=m.number(0.0, 0.5, 1.0),
        shift=m.number(0, 1),
        cutout=m.number(0, 1),
        contrast=m.number(0.0, 0.5),
        brightness=m.number(0.0, 9.0),
        noise=m.number(0.0, 3.0) if images.dtype != "uint8" else 0.0,  # rounding apart might end a unit apart
        fill=7,
        mean=mean,
        std=std,
        mix=m.number(1.0, 0.3),
        out=m.out(N, H, W, C, dtype=images.dtype if mean is None else floats),
    )


def _recurrent(cell, gates, norm=False):
    """Arguments of the forward and of the backward pass; layouts vary, and results may be left out."""

    def sizes(m):
        T, B, H = m.number(1, 2, 5), m.number(1, 2, 3, 7), m.number(1, 3, 16, 17)
        lengths = np.sort(m.rng.integers(1, T + 1, B))[::-1] if m.draw(st.booleans()) else np.full(B, T)
        counts = (lengths > np.arange(lengths[0])[:, None]).sum(axis=1)
        return int(counts.sum()), B, H, counts

    def forward(m):
        R, B, H, counts = sizes(m)
        V = m.number(1, 5)
        ids = m.layout(m.rng.integers(0, V, R)) if m.draw(st.booleans()) else None
        call = dict(
            a=m.real(R if ids is None else V, gates * H),
            b=m.maybe(m.real, gates * H),
            U=m.real(H, gates * H),
            bU=m.maybe(m.real, gates * H),
            h0=m.maybe(m.real, B, H),
        )
        if cell == "lstm":
            call["c0"] = m.maybe(m.real, B, H)
        if norm:
            call |= gains(m, H)
        call |= dict(counts=m.layout(counts), ids=ids, h=m.out(R, H), previous=m.out(R, H), noise=noise(m, R, H, True))
        if cell != "rnn":
            call |= {"gates": m.out(R, gates * H), {"lstm": "c", "gru": "candidate"}[cell]: m.out(R, H)}
        if norm:
            call |= dict(sums=m.out(R, 4 * H), statistics=m.out(R, 4), eps=m.number(1e-5, 0.1))
        call["h_last"] = m.out(B, H)
        return {**call, "c_last": m.out(B, H)} if cell == "lstm" else call

    def backward(m):
        R, B, H, counts = sizes(m)
        call = dict(dh=m.real(R, H), dh_last=m.maybe(m.real, B, H), U=m.real(H, gates * H), counts=m.layout(counts))
        if cell == "rnn":
            call["h"] = m.uniform(-1, 1, R, H)
        else:
            call["gates"] = m.uniform(0, 1, R, gates * H)
        if cell == "lstm":
            call |= dict(dc_last=m.maybe(m.real, B, H), c=m.real(R, H), c0=m.maybe(m.real, B, H), dc0=m.out(B, H))
        if cell == "gru":
            call |= dict(previous=m.real(R, H), candidate=m.real(R, H), du=m.out(R, gates * H))
        if norm:
            call |= gains(m, H)
            call |= dict(sums=m.real(R, 4 * H), statistics=m.uniform(0.5, 1.5, R, 4), du=m.out(R, 4 * H))
            call |= dict(dgain=m.out(4 * H), dgain_c=m.out(H), dshift_c=m.out(H))
        return {**call, "da": m.out(R, gates * H), "dh0": m.out(B, H), "noise": noise(m, R, H, False)}

    def gains(m, H):
        return dict(gain=m.uniform(0.5, 1.5, 4 * H), gain_c=m.uniform(0.5, 1.5, H), shift_c=m.real(H))

    def noise(m, R, H, expected):
        """As a plain tuple, whose numbers stay what they are in float64."""
        rates = (m.number(0.0, 0.5), m.number(0.0, 0.25) * (cell == "lstm"), m.number(0.0, 0.25) * (cell != "rnn"))
        flags = m.layout(m.rng.integers(0, 8, (R, H)).astype(np.uint8))
        return m.number(None, (*rates, flags), *([(*rates, None)] if expected else []))

    name = f"{cell}_norm" if norm else cell
    return {f"{name}_forward": forward, f"{name}_backward": backward}


def _generate_tokens(m):
    cell, N, L, H, V = (
        m.number("rnn", "lstm", "gru"),
        m.number(1, 3),
        m.number(1, 2),
        m.number(1, 5, 17),
        m.number(1, 2, 19),
    )
    width = {"rnn": 1, "gru": 3, "lstm": 4}[cell] * H
    T, penalty = m.number(0, 1, 6), m.number(1.0, 1.5)
    gains = width, width, H, H
    norm = [tuple(m.uniform(0.5, 1.5, n) for n in gains)] if cell == "lstm" and m.draw(st.booleans()) else []
    layers = [
        (m.real(H if i else V, width), m.real(H, width), m.maybe(m.real, width), m.maybe(m.real, width), *norm)
        for i in range(L)
    ]
    return dict(
        cell=cell,
        layers=layers,
        W_out=m.real(H, V),
        b_out=m.maybe(m.real, V),
        states=tuple(m.own(L, N, H) for _ in range(2 if cell == "lstm" else 1)),
        tokens=m.layout(m.rng.integers(0, V, N)),
        draws=m.rng.random((N, T)),
        temperature=m.number(0, 0.7, 1.0),
        top_k=m.number(0, 1, 3),
        top_p=m.number(0.4, 1.0),
        repetition_penalty=penalty,
        seen=m.rng.random((N, V)) < 0.5 if penalty != 1 else None,
        banned=None,
        stop=m.number(-1, 0),
        out=m.out(N, T, dtype=np.int64),
        zoneout=(m.number(0.0, 0.5), m.number(0.0, 0.25) * (cell == "lstm")),
        eps=m.number(1e-5, 0.1),
    )


def _take_rows(m):
    V, D, R = m.size(1), m.size(), m.size()
    return dict(table=m.real(V, D), ids=m.layout(m.rng.integers(0, V, R)), out=m.out(R, D))


def _scatter_rows(m):
    V, D, R = m.size(1), m.size(), m.size()
    ids = m.layout(m.rng.integers(0, V, R))
    return dict(dy=m.real(R, D), ids=ids, dtable=m.own(V, D), accumulate=m.number(True, False))


def _pair(m, *choices):
    """A number, or two of them for rows and columns."""
    return m.number(*choices, *itertools.product(choices, repeat=2))


def _counts(pixels, size, stride, padding, dilation=1):
    """How many windows there are below and beside each other."""
    pairs = [value if isinstance(value, tuple) else (value, value) for value in (size, stride, padding, dilation)]
    return [(n + 2 * p - d * (k - 1) - 1) // s + 1 for n, k, s, p, d in zip(pixels, *pairs, strict=True)]


def _convolution(m):
    """Shapes of x, W and y, and the options."""
    size, groups = (m.number(1, 2, 3), m.number(1, 3, 4)), m.number(1, 1, 2, 3)
    pixels = [1 + 2 * (k - 1) + m.number(0, 1, 4) for k in size]
    N, C, F = m.number(0, 1, 3), m.number(0, 1, 2, 5, 16, 33), m.number(0, 1, 2, 5, 16, 33)
    windows = dict(stride=_pair(m, 1, 2, 3), padding=_pair(m, 0, 1, 2), dilation=_pair(m, 1, 2))
    shapes = (N, *pixels, groups * C), (*size, C, groups * F), (N, *_counts(pixels, size, **windows), groups * F)
    return shapes, {**windows, "groups": groups}


def _conv2d_forward(m):
    (x, W, y), options = _convolution(m)
    return dict(
        x=m.real(*x),
        W=m.real(*W),
        b=m.maybe(m.real, W[3]),
        **options,
        activation=m.number(*ACTIVATIONS),
        scale=m.maybe(m.real, W[3]),
        out=m.out(*y),
        batched=m.number(True, False),
    )


def _conv2d_backward(m):
    (x, W, y), options = _convolution(m)
    need_dx, need_dW, use_bias, accumulate = (m.number(True, False) for _ in range(4))
    use_bias = use_bias and need_dW
    return dict(
        dy=m.real(*y),
        x=m.real(*x),
        W=m.real(*W),
        **options,
        dx=m.out(*x) if need_dx else None,
        dW=None if not need_dW else m.own(*W) if accumulate else m.out(*W),
        db=None if not use_bias else m.own(W[3]) if accumulate else m.out(W[3]),
        need_dx=need_dx,
        use_bias=use_bias,
        accumulate=accumulate,
        need_dW=need_dW,
    )


def _pool(m):
    """Shapes of x and y, and the windows."""
    size = m.number(1, 2, 3), m.number(2, 3, 4)
    N, pixels, C = m.number(0, 1, 3), [k + m.number(0, 1, 5) for k in size], m.size()
    stride, padding = m.number(None, _pair(m, 1, 2, 3)), m.number(0, tuple(k // 2 for k in size))
    counts = _counts(pixels, size, size if stride is None else stride, padding)
    return (N, *pixels, C), (N, *counts, C), dict(size=size, stride=stride, padding=padding)


def _max_pool2d_forward(m):
    x, y, windows = _pool(m)
    return dict(x=m.real(*x), **windows, out=m.out(*y), place=m.out(*y, dtype=np.uint8))


def _max_pool2d_backward(m):
    x, y, windows = _pool(m)
    place = dd.kernels.max_pool2d_forward.numpy(m.real(*x), **windows)[1]
    return dict(dy=m.real(*y), place=m.layout(place), image=x[1:3], **windows, dx=m.out(*x))


def _avg_pool2d_forward(m):
    x, y, windows = _pool(m)
    return dict(x=m.real(*x), **windows, out=m.out(*y))


def _avg_pool2d_backward(m):
    x, y, windows = _pool(m)
    return dict(dy=m.real(*y), image=x[1:3], **windows, dx=m.out(*x))


def _global_avg_pool2d_forward(m):
    N, H, W, C = m.number(0, 1, 3), m.number(1, 4, 9), m.number(1, 7), m.size()
    return dict(x=m.real(N, H, W, C), out=m.out(N, C))


def _global_avg_pool2d_backward(m):
    N, H, W, C = m.number(0, 1, 3), m.number(1, 4, 9), m.number(1, 7), m.size()
    return dict(dy=m.real(N, C), image=(H, W), dx=m.out(N, H, W, C))


_TWO_BETAS = dict(beta1=(0.0, 0.9), beta2=(0.0, 0.999), eps=(1e-8, 1e-3))
_MOMENTS = "first_moment", "second_moment"


# From each kernel's name to a function that draws keyword arguments for it, every parameter among them.
def _mlp(m, learns=True):
    """A network and its data."""
    output = m.number(*dd.kernels.mlp.OUTPUTS)
    activation = m.number(*ACTIVATIONS, SOFTPLUS)
    sizes = tuple(m.number(1, 3, 8, 17, 33) for _ in range(m.number(2, 3, 4)))
    plan = dd.kernels.MLPPlan(sizes, activation, output, m.number(True, False), m.number(0.0, 0.3))
    N, K = m.number(2, 3, 8, 17), sizes[-1]
    call = dict(
        plan=plan,
        parameters=m.rng.uniform(-0.3, 0.3, plan.parameters).astype(m.dtype),
        buffers=m.rng.uniform(0.5, 2, plan.buffers).astype(m.dtype),
        x=m.real(N, sizes[0]),
    )
    if learns:
        y = m.layout(m.rng.integers(0, K, N)) if output == "softmax" else m.uniform(0, 1, N, K)
        call |= dict(y=y, sample_weight=m.maybe(m.uniform, 0.5, 2, N))
    return call


def _mlp_outputs(m):
    call = _mlp(m, False)
    return call | dict(out=m.out(len(call["x"]), call["plan"].sizes[-1]))


def _mlp_gradient(m):
    call = _mlp(m)
    more = dict(alpha=m.number(0.0, 0.5), seed=m.number(0, 2**64 - 1), update=m.number(0, 7))
    return call | more | dict(gradients=m.out(call["plan"].parameters))


def _mlp_updates(m):
    call = _mlp(m)
    state = [m.own(call["plan"].parameters) for _ in range(2)]
    for vector in state:
        vector *= 0.05  # a large velocity would carry exp out of float32
    solver = m.number(
        dd.kernels.SGDSolver(state[0], 0.01, nesterov=m.number(True, False)),
        dd.kernels.AdamSolver(*state, 0.01, epsilon=0.1, t=m.number(0, 5)),
    )
    N = len(call["x"])
    order = m.maybe(lambda: m.layout(m.rng.integers(0, N, N)))
    more = dict(order=order, batch_size=m.number(2, 3, 50), alpha=m.number(0.0, 0.5), seed=m.number(0, 5))
    more |= dict(so_far=m.number((0.0, 0.0), (1.5, 0.25)), of=m.number(None, 2 * N))
    return call | dict(solver=solver) | more


KERNELS = {
    "matmul": _matmul,
    "pack": _pack,
    "matmul_packed": _matmul_packed,
    "linear_forward": _linear_forward,
    "linear_backward": _linear_backward,
    "activation_forward": _activation_forward,
    "activation_backward": _activation_backward,
    "residual_add_forward": _residual_add_forward,
    "custom_activation_forward": _custom_forward,
    "custom_activation_backward": _custom_backward,
    "softmax_cross_entropy": _softmax_cross_entropy,
    "softmax": _softmax,
    "binary_cross_entropy": _binary_cross_entropy,
    "mean_squared_error": _mean_squared_error,
    "batch_norm_forward": _batch_norm_forward,
    "batch_norm_inference": _batch_norm_inference,
    "batch_norm_backward": _batch_norm_backward,
    "layer_norm_forward": _layer_norm_forward,
    "layer_norm_backward": _layer_norm_backward,
    "conv2d_forward": _conv2d_forward,
    "conv2d_backward": _conv2d_backward,
    "max_pool2d_forward": _max_pool2d_forward,
    "max_pool2d_backward": _max_pool2d_backward,
    "avg_pool2d_forward": _avg_pool2d_forward,
    "avg_pool2d_backward": _avg_pool2d_backward,
    "global_avg_pool2d_forward": _global_avg_pool2d_forward,
    "global_avg_pool2d_backward": _global_avg_pool2d_backward,
    "stream_key": lambda m: dict(seed=_key(m), stream=_key(m), update=_key(m)),
    "dropout": _dropout,
    "random_bits": _random_bits,
    "random_flags": _random_flags,
    "random_uniform": _random_numbers,
    "random_normal": _random_numbers,
    "sgd_update": _sgd,
    "adam_update": _optimizer(*_MOMENTS, first=["t"], **_TWO_BETAS),
    "adamw_update": _optimizer(*_MOMENTS, first=["t"], **_TWO_BETAS),
    "nadam_update": _optimizer(*_MOMENTS, first=["mu_product", "t"], **_TWO_BETAS, momentum_decay=(0.0, 4e-3)),
    "rmsprop_update": _optimizer("square_average", alpha=(0.0, 0.99), eps=(1e-8, 1e-3)),
    "adagrad_update": _optimizer("square_sum", first=["t"], lr_decay=(0.0, 0.1), eps=(1e-10, 1e-3)),
    "adadelta_update": _optimizer("square_average", "delta_average", rho=(0.0, 0.9), eps=(1e-6, 1e-3)),
    "global_norm": _global_norm,
    "clip_by_norm": _clip_by_norm,
    "clip_by_value": lambda m: dict(gradients=m.own(m.size()), limit=m.number(0.1, 1, math.inf)),
    "all_finite": lambda m: dict(x=m.number(m.real(*m.shape()), np.full((3, 5), np.nan, m.dtype))),
    "moving_average": _moving_average,
    "augment_images": _augment_images,
    **_recurrent("rnn", 1),
    **_recurrent("lstm", 4),
    **_recurrent("lstm", 4, norm=True),
    **_recurrent("gru", 3),
    "generate_tokens": _generate_tokens,
    "mlp_outputs": _mlp_outputs,
    "mlp_loss": _mlp,
    "mlp_gradient": _mlp_gradient,
    "mlp_updates": _mlp_updates,
    "take_rows": _take_rows,
    "scatter_rows": _scatter_rows,
}


@st.composite
def calls(draw, name):
    """Valid keyword arguments of a kernel."""
    return KERNELS[name](Maker(draw))


# ---- what fits nowhere -----------------------------------------------------------------------------------------------

HUGE = 10**400  # an int that is no float
NOT_NUMBERS = ("text", b"text", None, [], {}, 1j, object(), math.nan, HUGE, np.zeros(2), len, np.float32)


def never_valid(value):
    """Values that no parameter takes in whose place `value` is right; None where there are none."""
    if isinstance(value, np.ndarray):
        other = [a for a in ("complex128", "object", "S1", "M8[s]") if a != value.dtype]
        return ["text", 3.5, value.tolist(), object(), *(np.zeros(value.shape, a) for a in other)]
    if isinstance(value, bool):
        return None  # a flag takes anything
    if isinstance(value, str):
        return ["bogus", 3, ["relu"], object(), {}]
    if isinstance(value, int | float):
        return ["text", [0.5], {}, object(), 1j, HUGE]
    return ["text", 3.5, object()]


def sometimes_valid(value):
    """Values near `value` that may fit or not."""
    if isinstance(value, np.ndarray):
        near = [value[None], value.reshape(-1), value.astype("float32"), value.astype("float64"), np.isnan(value)]
        near += [np.concatenate([value, value[:1]]), value[:-1], value[..., :-1], value.T] if value.ndim else []
        near += [
            np.full(value.shape, np.nan, value.dtype.char if value.dtype.kind == "f" else "f4"),
            value.astype(">f4"),
            value.astype("f2"),
            np.zeros((0,) * value.ndim),
        ]
        return [*near, np.broadcast_to(np.float32(0), value.shape), None]
    if isinstance(value, int | float) and not isinstance(value, bool):
        return [-1, 0, 1, 2.0**70, 2**70, math.nan, math.inf, -math.inf, None, True, np.float32(0.5), np.int8(-3)]
    return [None, (), 0, -1, (2, -1), 1.5]


# ---- the library -----------------------------------------------------------------------------------------------------

SCHEDULE = dd.schedules.Cosine(0.1, 9)

# Valid arguments of what is configured.
CONSTRUCTORS = [
    (dd.nn.Linear, dict(in_features=3, out_features=2, init="he", dtype="float64", seed=1)),
    (dd.nn.Dropout, dict(p=0.5)),
    (dd.nn.BatchNorm, dict(features=3, momentum=0.1, eps=1e-5)),
    (dd.nn.LayerNorm, dict(features=3, eps=1e-5)),
    (dd.nn.Activation, dict(f=abs, derivative=np.sign)),
    (dd.models.MLP, dict(in_features=3, hidden=(4,), out_features=2, dropout=0.1, init="he", dtype="float32", seed=1)),
    (dd.optim.SGD, dict(lr=0.1, momentum=0.9, weight_decay=0.1)),
    *(
        (kind, dict(lr=0.1, betas=(0.9, 0.99), eps=1e-8, weight_decay=0.1))
        for kind in (dd.optim.Adam, dd.optim.AdamW, dd.optim.NAdam)
    ),
    (dd.optim.RMSprop, dict(lr=0.1, alpha=0.9, eps=1e-8)),
    (dd.optim.Adagrad, dict(lr=0.1, lr_decay=0.1, initial_accumulator=0.1, eps=1e-8)),
    (dd.optim.Adadelta, dict(lr=0.1, rho=0.9, eps=1e-8)),
    (dd.schedules.Step, dict(lr=0.1, every=3, factor=0.5)),
    (dd.schedules.Exponential, dict(lr=0.1, factor=0.5)),
    (dd.schedules.Cosine, dict(lr=0.1, updates=9, low=0.01)),
    (dd.schedules.CosineWarmRestarts, dict(lr=0.1, updates=9, growth=2, low=0.01)),
    (dd.schedules.Cyclic, dict(low=0.1, high=0.2, step_size=5, mode="triangular", growth=2, decay=0.5)),
    (dd.schedules.OneCycle, dict(lr=0.1, updates=9, warm_part=0.3, start_divisor=25.0, final_divisor=1e4)),
    (dd.schedules.Warmup, dict(after=SCHEDULE, updates=3)),
    (dd.losses.CrossEntropy, dict(label_smoothing=0.1, smoothing="others", class_weight=[1.0, 2.0], ignore_index=-1)),
    (dd.callbacks.EarlyStopping, dict(patience=2, min_delta=0.1)),
    (dd.callbacks.WeightAverage, dict(decay=0.9)),
    (dd.callbacks.Snapshots, dict(keep=2)),
    (dd.data.Augment, dict(flip=0.5, shift=1, cutout=1, contrast=0.5, brightness=1.0, noise=1.0, mixup=0.2)),
    (dd.data.Augment, dict(mean=[1, 2, 3], std=2.0, fill=[0.5], image=(2, 3, 1))),
    (dd.data.Standardizer, dict(axis=0, dtype="float32")),
    (dd.data.train_validation_split, dict(x=np.eye(8), y=[0, 1] * 4, validation=0.5, seed=1)),
    (
        dd.Trainer,
        dict(
            model=dd.models.MLP(3, (4,), 2, seed=0),
            optimizer=dd.optim.SGD(0.1),
            loss=dd.losses.CrossEntropy(),
            clip_value=1.0,
            clip_norm=1.0,
            schedule=SCHEDULE,
            seed=1,
        ),
    ),
]

# Batches of 7 features in 4 classes that no training takes, by the argument to blame.
X, Y = np.random.default_rng(0).standard_normal((6, 7)).astype("float32"), np.arange(6) % 4
RAGGED = [[1.0], [1.0, 2.0]]
BAD_BATCHES = {
    "x": [None, "text", 3.5, RAGGED, X.astype(object) * 1j, X + 1j, X[:, :6], X[0], X[None], X[:0], X[:1], {}, object()]
    + [np.where(np.eye(6, 7) > 0, bad, X) for bad in (np.nan, np.inf, np.float32(3e38))],
    "y": [None, "text", 2, RAGGED, Y + 0.5, Y[:5], np.tile(Y, 2), Y + 2, Y - 1, Y[:, None], Y > 0, Y * 1j, {}, object()]
    + [np.full(6, 2**63, np.uint64), np.full(6, -100)],
    "sample_weight": ["text", 2.0, RAGGED, np.full(6, np.nan, "float32"), np.full(6, -1, "float32")]
    + [np.zeros(6, "float32"), np.ones(5, "float32"), np.ones((6, 1), "float32"), {}],
}


@st.composite
def schedules(draw):
    """A schedule of any kind with any valid numbers."""
    rate = st.floats(0, 1e3) | st.sampled_from([0.0, 1e-300, 1e300])
    size, part = st.integers(1, 50), st.floats(0.01, 0.99)
    low, high = sorted([draw(rate), draw(rate)])
    made = draw(
        st.one_of(
            st.builds(dd.schedules.Step, rate, size, rate),
            st.builds(dd.schedules.Exponential, rate, rate),
            st.builds(dd.schedules.Cosine, rate, size, rate),
            st.builds(dd.schedules.CosineWarmRestarts, rate, size, st.integers(1, 4), rate),
            st.builds(dd.schedules.Cyclic, st.just(low), st.just(high), size, growth=st.integers(1, 3), decay=part),
            st.builds(dd.schedules.OneCycle, rate, size, part),
        )
    )
    return dd.schedules.Warmup(made, draw(size)) if draw(st.booleans()) else made
