"""Every kernel with arguments to time it on: sizes of a training update, and sizes beyond the cache.

A test holds the table to its word: a registered kernel without a case is an error.
"""

import functools
import importlib
import inspect
import itertools
from dataclasses import dataclass, field

import numpy as np

from . import peers

BEYOND_CACHE = 1 << 23  # numbers: 32 MiB of float32
MLP = 154_160  # parameters of the mlp workload
TOLERANCE = {
    "float32": 2e-4,
    "float64": 1e-9,
}  # of the largest element: the same question was answered; how well, the tests say


@dataclass(frozen=True)
class Case:
    """A kernel on arguments of one size.

    Attributes
    ----------
    kernel : str
    variant : str
        What the size does not say: an activation's name.
    dtype : str
    size : tuple of int
    make : function
        From (rng, dtype, *size) to the kernel's positional arguments.
    reported : bool
        Whether `dd2424fast bench kernels` shows it; pytest times all cases.
    threads : int or None
        A fixed number, or as many as the run is given.
    """

    kernel: str
    variant: str
    dtype: str
    size: tuple
    make: callable = field(repr=False)
    reported: bool = False
    threads: int | None = None

    @property
    def name(self):
        return "-".join(filter(None, (self.kernel, self.variant, self.dtype, "x".join(map(str, self.size)))))

    @property
    def libraries(self):
        """Those that can run it: "fast", "numpy" (the twin), "blas" (NumPy's product), in float32 "torch" and "jax"."""
        others = peers.LIBRARIES if self.dtype == "float32" else ("blas",)
        return ("fast", "numpy", *(library for library in others if self.kernel in peers.of(library)))

    def arguments(self):
        """Fresh arguments, always the same."""
        return self.make(np.random.default_rng(0), np.dtype(self.dtype), *self.size)

    def start(self, library, threads, arguments=None):
        """A function that runs it once on that library, after its first result has been compared with the twin's.

        Raises ArithmeticError where they disagree.
        """
        import dd2424fast as dd

        dd.set_num_threads(threads)
        kernel = getattr(dd.kernels, self.kernel)
        arguments = self.arguments() if arguments is None else arguments
        if library in ("fast", "numpy"):
            run = functools.partial(getattr(kernel, library), *arguments)
        else:
            run = peers.of(library)[self.kernel](*arguments)
        if library != "numpy":
            got = run()
            reference = self.arguments()
            expected = _outputs(kernel.numpy(*reference), reference)
            self._compare(_outputs(got, arguments) if library == "fast" else got, expected)
        return run

    def _compare(self, got, expected):
        got = got if isinstance(got, tuple | list) else (got,)
        for i, (a, b) in enumerate(zip(got, expected, strict=False)):  # a peer may leave out later results
            a, b = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
            if a.shape != b.shape:
                raise ArithmeticError(f"{self.name}: result {i} has shape {a.shape}, the twin's {b.shape}")
            error, scale = np.max(np.abs(a - b), initial=0.0), np.max(np.abs(b), initial=1e-30)
            if not error <= TOLERANCE[self.dtype] * scale:
                raise ArithmeticError(
                    f"{self.name}: result {i} differs from the twin's by {error:.2g}, where the largest is {scale:.2g}"
                )

    def work(self, arguments=None):
        """GFLOP and gigabytes of one run, by the kernel's own count."""
        import dd2424fast as dd
        from dd2424fast.kernels._dispatch import set_recorder

        seen, arguments = [], self.arguments() if arguments is None else arguments
        previous = set_recorder(lambda kernel, checked, seconds: seen.append((kernel, checked)))
        try:
            getattr(dd.kernels, self.kernel)(*arguments)
        finally:
            set_recorder(previous)
        kernel, checked = seen[0]
        return tuple(count(*checked) / 1e9 if count else 0.0 for count in (kernel.flops, kernel.traffic))


def _outputs(result, arguments):
    """The numbers in a kernel's result; an update in place has its first argument for a result."""
    if result is None:
        return [arguments[0]]
    parts = result if isinstance(result, tuple) else (result,)
    return [getattr(part, "panels", part) for part in parts if part is not None]


# ---- arguments -------------------------------------------------------------------------------------------------------


def _normal(rng, dtype, *shape):
    return rng.standard_normal(shape, dtype=dtype)


def _pack(rng, dtype, K, N):
    b = _normal(rng, dtype, K, N)
    return b, _kernels().pack(b)


def _matmul(rng, dtype, M, K, N):
    return _normal(rng, dtype, M, K), _normal(rng, dtype, K, N), np.empty((M, N), dtype)


def _matmul_packed(rng, dtype, M, K, N):
    return _normal(rng, dtype, M, K), _kernels().pack(_normal(rng, dtype, K, N)), np.empty((M, N), dtype)


def _linear_forward(rng, dtype, N, D, H):
    return _normal(rng, dtype, N, D), _normal(rng, dtype, D, H), _normal(rng, dtype, H), "relu", np.empty((N, H), dtype)


def _linear_backward(rng, dtype, N, D, H):
    dy, x, W = _normal(rng, dtype, N, H), _normal(rng, dtype, N, D), _normal(rng, dtype, D, H)
    return dy, x, W, np.empty((N, D), dtype), np.empty((D, H), dtype), np.empty(H, dtype)


def _activation_forward(activation):
    def make(rng, dtype, size):
        return _normal(rng, dtype, size), activation, np.zeros(size, dtype)

    return make


def _activation_backward(activation):
    def make(rng, dtype, size):
        saved = _kernels().activation_forward(_normal(rng, dtype, size), activation)
        return _normal(rng, dtype, size), saved, activation, np.zeros(size, dtype)

    return make


def _residual_add_forward(rng, dtype, size):
    return _normal(rng, dtype, size), _normal(rng, dtype, size), "relu", np.zeros(size, dtype)


def _conv2d_forward(size, stride=1, padding=0, groups=1):
    """With bias and relu, on N images of H x W pixels and C channels; F filters."""

    def make(rng, dtype, N, H, W, C, F):
        x, filters = _normal(rng, dtype, N, H, W, C), _normal(rng, dtype, size, size, C // groups, F)
        return x, filters, _normal(rng, dtype, F), stride, padding, 1, groups, "relu", None, None, True

    return make


def _conv2d_backward(needed, size, stride=1, padding=0, groups=1):
    """The gradient that is needed, "dx" or "dW" (and db)."""

    def make(rng, dtype, N, H, W, C, F):
        x, filters = _normal(rng, dtype, N, H, W, C), _normal(rng, dtype, size, size, C // groups, F)
        dy = _normal(rng, dtype, N, *((n + 2 * padding - size) // stride + 1 for n in (H, W)), F)
        need_dx, need_dW = needed == "dx", needed == "dW"
        dx = np.zeros_like(x) if need_dx else None
        dW, db = (np.zeros_like(filters), np.zeros(F, dtype)) if need_dW else (None, None)
        return dy, x, filters, stride, padding, 1, groups, dx, dW, db, need_dx, need_dW, False, need_dW

    return make


def _max_pool2d_forward(*windows):
    def make(rng, dtype, N, H, W, C):
        return _normal(rng, dtype, N, H, W, C), *windows, *_pooled(rng, dtype, windows, N, H, W, C)

    return make


def _max_pool2d_backward(*windows):
    def make(rng, dtype, N, H, W, C):
        y, place = _pooled(rng, dtype, windows, N, H, W, C)
        return y, place, (H, W), *windows, np.zeros((N, H, W, C), dtype)

    return make


def _avg_pool2d_forward(*windows):
    def make(rng, dtype, N, H, W, C):
        return _normal(rng, dtype, N, H, W, C), *windows, _pooled(rng, dtype, windows, N, H, W, C)[0]

    return make


def _avg_pool2d_backward(*windows):
    def make(rng, dtype, N, H, W, C):
        return _pooled(rng, dtype, windows, N, H, W, C)[0], (H, W), *windows, np.zeros((N, H, W, C), dtype)

    return make


def _pooled(rng, dtype, windows, N, H, W, C):
    """The largest numbers of random images, and their places."""
    return _kernels().max_pool2d_forward(_normal(rng, dtype, N, H, W, C), *windows)


def _global_avg_pool2d_forward(rng, dtype, N, H, W, C):
    return _normal(rng, dtype, N, H, W, C), np.zeros((N, C), dtype)


def _global_avg_pool2d_backward(rng, dtype, N, H, W, C):
    return _normal(rng, dtype, N, C), (H, W), np.zeros((N, H, W, C), dtype)


def _swish(z):
    return z / (1 + np.exp(-z))


def _swish_derivative(z):
    s = 1 / (1 + np.exp(-z))
    return s + z * s * (1 - s)


def _custom_forward(rng, dtype, size):
    return _normal(rng, dtype, size), _custom_activation(), np.zeros(size, dtype)


def _custom_backward(rng, dtype, size):
    return _normal(rng, dtype, size), _normal(rng, dtype, size), _custom_activation(), np.zeros(size, dtype)


@functools.cache
def _custom_activation():
    return _kernels().custom_activation(_swish, _swish_derivative)


def _softmax_cross_entropy(rng, dtype, N, K):
    logits, labels = _normal(rng, dtype, N, K), rng.integers(0, K, N)
    return logits, labels, 0.0, "uniform", None, None, -100, np.empty((N, K), dtype)


def _softmax(rng, dtype, N, K):
    return _normal(rng, dtype, N, K), np.empty((N, K), dtype)


def _binary_cross_entropy(rng, dtype, N, K):
    return _normal(rng, dtype, N, K), rng.random((N, K), dtype=dtype), None, np.empty((N, K), dtype)


def _mean_squared_error(rng, dtype, N, K):
    return _normal(rng, dtype, N, K), _normal(rng, dtype, N, K), None, np.empty((N, K), dtype)


def _batch_norm(rng, dtype, N, C):
    return _normal(rng, dtype, N, C), np.ones(C, dtype), np.zeros(C, dtype), np.zeros(C, dtype), np.ones(C, dtype)


def _batch_norm_forward(rng, dtype, N, C):
    return (
        *_batch_norm(rng, dtype, N, C),
        0.1,
        1e-5,
        "relu",
        np.zeros((N, C), dtype),
        np.empty(C, dtype),
        np.empty(C, dtype),
    )


def _batch_norm_inference(rng, dtype, N, C):
    return *_batch_norm(rng, dtype, N, C), 1e-5, "relu", np.zeros((N, C), dtype)


def _batch_norm_backward(rng, dtype, N, C):
    dy, x = _normal(rng, dtype, N, C), _normal(rng, dtype, N, C)
    mean, rstd = x.mean(axis=0), 1 / x.std(axis=0)
    return dy, x, np.ones(C, dtype), mean, rstd, np.zeros((N, C), dtype), np.empty(C, dtype), np.empty(C, dtype)


def _layer_norm_forward(rng, dtype, N, C):
    x = _normal(rng, dtype, N, C)
    return (
        x,
        np.ones(C, dtype),
        np.zeros(C, dtype),
        1e-5,
        np.zeros((N, C), dtype),
        np.empty(N, dtype),
        np.empty(N, dtype),
    )


def _layer_norm_backward(rng, dtype, N, C):
    dy, x = _normal(rng, dtype, N, C), _normal(rng, dtype, N, C)
    mean, rstd = x.mean(axis=1), 1 / x.std(axis=1)
    return dy, x, np.ones(C, dtype), mean, rstd, np.zeros((N, C), dtype), np.empty(C, dtype), np.empty(C, dtype)


def _dropout(rng, dtype, size):
    return _normal(rng, dtype, size), 0.5, _kernels().stream_key(0, 0, 0), np.zeros(size, dtype)


def _random_bits(rng, dtype, size):
    return _kernels().stream_key(0, 0, 0), (size,), np.zeros(size, np.uint32)


def _random_flags(rng, dtype, size):
    return _kernels().stream_key(0, 0, 0), (0.1, 0.05, 0.2), (size,), np.zeros(size, np.uint8)


def _random(rng, dtype, size):
    return _kernels().stream_key(0, 0, 0), (size,), dtype, np.zeros(size, dtype)


def _optimizer(states, *hyper, first=()):
    """Parameters, gradients, so many states; `first`, what stands before the table of segments; no table; `hyper`."""

    def make(rng, dtype, size):
        vectors = [np.abs(_normal(rng, dtype, size)) for _ in range(states)]
        return _normal(rng, dtype, size), _normal(rng, dtype, size), *vectors, *(f() for f in first), None, *hyper

    return make


def _gradients(*arguments):
    return lambda rng, dtype, size: (_normal(rng, dtype, size), *arguments)


def _moving_average(rng, dtype, size):
    return _normal(rng, dtype, size), _normal(rng, dtype, size), 0.999


def _recurrent(cell, way, rates=None):
    """Of one layer on token ids, as it stands in a language model; `rates` of zoneout (h, c) and recurrent dropout."""
    gates = {"rnn": 1, "gru": 3, "lstm": 4}[cell]

    def make(rng, dtype, T, B, H):
        table, U = _normal(rng, dtype, 80, gates * H), _normal(rng, dtype, H, gates * H) * dtype.type(H**-0.5)
        b, h0, counts, ids = (
            _normal(rng, dtype, gates * H),
            _normal(rng, dtype, B, H),
            np.full(T, B),
            rng.integers(0, 80, T * B),
        )
        states, forward = (h0, h0) if cell == "lstm" else (h0,), getattr(_kernels(), f"{cell}_forward")
        inputs, noise = (table, b, U, b, *states, counts, ids), _cell_noise(rates, T * B, H)
        results = [None] * (len(inspect.signature(forward).parameters) - len(inputs) - 1)
        if way == "forward":
            return *inputs, *results, noise
        out = forward.fast(*inputs, *results, noise)
        dh = _normal(rng, dtype, T * B, H)
        kept = {"rnn": out[:1], "lstm": (*out[2:4], h0), "gru": out[1:4]}[cell]
        results = [None] * {"rnn": 3, "lstm": 4, "gru": 4}[cell]
        return dh, *states, U, *kept, counts, *results, noise

    return make


def _cell_noise(rates, rows, H):
    k = _kernels()
    return None if rates is None else k.CellNoise(*rates, k.random_flags(k.stream_key(0, 0, 0), rates, (rows, H)))


def _lstm_norm(way):
    """As `_recurrent`, with layer normalisation."""

    def make(rng, dtype, T, B, H):
        table, b, U, _, h0, c0, counts, ids, *_ = _recurrent("lstm", "forward")(rng, dtype, T, B, H)
        norm = 1 + _normal(rng, dtype, 4 * H) / 4, 1 + _normal(rng, dtype, H) / 4, _normal(rng, dtype, H)
        inputs = table, b, U, b, *norm, h0, c0, counts, ids
        if way == "forward":
            return inputs
        out = _kernels().lstm_norm_forward.fast(*inputs)
        return _normal(rng, dtype, T * B, H), h0, c0, U, *norm, out[2], out[3], c0, out[4], out[5], counts

    return make


def _generate_tokens(rng, dtype, N, T, H):
    """An LSTM on 80 characters."""
    layer = _normal(rng, dtype, 80, 4 * H), _normal(rng, dtype, H, 4 * H) * dtype.type(H**-0.5), None, None
    states = np.zeros((1, N, H), dtype), np.zeros((1, N, H), dtype)
    return "lstm", [layer], _normal(rng, dtype, H, 80), None, states, np.zeros(N, np.int64), rng.random((N, T)), 0


def _mlp(kernel):
    """A network of two layers on data of ten batches of 100 rows, with Adam."""

    def make(rng, dtype, D, H):
        plan, rows = _kernels().MLPPlan((D, H, 10)), 1000 if kernel == "mlp_updates" else 100
        parameters, buffers = _normal(rng, dtype, plan.parameters) * dtype.type(D**-0.5), np.empty(0, dtype)
        x, y = _normal(rng, dtype, rows, D), rng.integers(0, 10, rows)
        if kernel == "mlp_outputs":
            return plan, parameters, buffers, x, np.empty((rows, 10), dtype)
        if kernel == "mlp_loss":
            return plan, parameters, buffers, x, y
        if kernel == "mlp_gradient":
            return plan, parameters, buffers, x, y, None, 1e-4, 0, 0, np.empty_like(parameters)
        # A rate at which a thousand calls leave the parameters where they are, as far as results are compared.
        solver = _kernels().AdamSolver(np.zeros_like(parameters), np.ones_like(parameters), 1e-12)
        return plan, parameters, buffers, solver, x, y, None, rng.permutation(rows), 100, 1e-4, 0

    return make


def _take_rows(rng, dtype, R, V, D):
    return _normal(rng, dtype, V, D), rng.integers(0, V, R), np.empty((R, D), dtype)


def _scatter_rows(rng, dtype, R, V, D):
    return _normal(rng, dtype, R, D), rng.integers(0, V, R), np.zeros((V, D), dtype)


def _images(rng, dtype, N, H, W, C):
    """Images flipped, shifted, cut and standardised."""
    images, mean = rng.integers(0, 256, (N, H, W, C), dtype=np.uint8), np.full(C, 120.0)
    key, out = _kernels().stream_key(0, 0, 0), np.zeros(images.shape, dtype)
    return images, key, 0.5, 4, 8, 0.0, 0.0, 0.0, 0, mean, mean / 2, 1.0, out


def _kernels():
    return importlib.import_module("dd2424fast.kernels")


# ---- the table -------------------------------------------------------------------------------------------------------

_LR = 1e-6  # small: thousands of updates in place stay finite

# Size, stride, padding, groups; images, their height and width, channels, filters; whether the images are a network's
# input, which needs no gradient.
_CONVOLUTIONS = {
    "3x3": (
        (3, 1, 1),
        [
            *[(100, 32, 32, 32, 32), (100, 16, 16, 32, 64), (100, 16, 16, 64, 64), (100, 32, 32, 64, 64)],
            *[(100, 8, 8, 128, 128), (100, 16, 16, 128, 128), (16, 7, 7, 512, 512)],
        ],
        False,
    ),
    "5x5": ((5, 1, 2), [(100, 16, 16, 32, 32)], False),
    "3x3-first": ((3, 1, 1), [(100, 32, 32, 3, 32)], True),
    "1x1": ((1,), [(100, 16, 16, 64, 64)], False),
    "7x7-stride2": ((7, 2, 3), [(16, 96, 96, 3, 64)], True),
    "3x3-depthwise": ((3, 1, 1, 64), [(100, 16, 16, 64, 64)], False),
    "4x4-stride4": ((4, 4), [(100, 32, 32, 3, 64)], True),
}
_IMAGES_BEYOND_CACHE = (128, 32, 32, 64)
_TEN_IMAGES = [(10, 8, 8, 32, 32)]
_POOLS = [
    ("2x2", (2, 2, 0), [(100, 32, 32, 32), _IMAGES_BEYOND_CACHE]),
    ("3x3-stride2", (3, 2, 1), [(100, 32, 32, 32)]),
]

# kernel, variant, arguments, sizes for pytest alone, sizes for the report too
_TABLE = [
    ("pack", "", _pack, [(256, 1024)], []),
    ("matmul", "", _matmul, [(100, 3072, 50), (512, 512, 512)], []),
    ("linear_forward", "", _linear_forward, [(100, 3072, 10), (100, 3072, 50), (6400, 256, 80)], []),
    ("linear_backward", "", _linear_backward, [(100, 3072, 10), (100, 3072, 50), (6400, 256, 80)], []),
    *(
        (f"activation_{way}", activation, make(activation), [(100 * 50,)], [(BEYOND_CACHE,)])
        for activation in ("identity", "relu", "leaky_relu", "tanh", "sigmoid", "gelu")
        for way, make in (("forward", _activation_forward), ("backward", _activation_backward))
        if (way, activation) != ("backward", "identity")
    ),
    ("residual_add_forward", "relu", _residual_add_forward, [(100 * 50,)], [(BEYOND_CACHE,)]),
    *(
        ("conv2d_forward", variant, _conv2d_forward(*windows), _TEN_IMAGES if variant == "3x3" else [], sizes)
        for variant, (windows, sizes, _) in _CONVOLUTIONS.items()
    ),
    *(
        (
            "conv2d_backward",
            f"{needed}-{variant}",
            _conv2d_backward(needed, *windows),
            _TEN_IMAGES if variant == "3x3" else [],
            sizes,
        )
        for variant, (windows, sizes, is_input) in _CONVOLUTIONS.items()
        for needed in (("dW",) if is_input else ("dx", "dW"))
    ),
    *(
        (f"{kind}_pool2d_{way}", variant, make(*windows), [(10, 32, 32, 32)], sizes)
        for variant, windows, sizes in _POOLS
        for kind, way, make in (
            ("max", "forward", _max_pool2d_forward),
            ("max", "backward", _max_pool2d_backward),
            ("avg", "forward", _avg_pool2d_forward),
            ("avg", "backward", _avg_pool2d_backward),
        )
    ),
    ("global_avg_pool2d_forward", "", _global_avg_pool2d_forward, [(10, 8, 8, 128)], [_IMAGES_BEYOND_CACHE]),
    ("global_avg_pool2d_backward", "", _global_avg_pool2d_backward, [(10, 8, 8, 128)], [_IMAGES_BEYOND_CACHE]),
    ("custom_activation_forward", "swish", _custom_forward, [(100 * 50,)], []),
    ("custom_activation_backward", "swish", _custom_backward, [(100 * 50,)], []),
    ("softmax_cross_entropy", "", _softmax_cross_entropy, [(100, 10)], [(6400, 80)]),
    ("softmax", "", _softmax, [(100, 10)], [(6400, 80)]),
    ("binary_cross_entropy", "", _binary_cross_entropy, [(100, 10)], [(6400, 80)]),
    ("mean_squared_error", "", _mean_squared_error, [(100, 10)], [(6400, 80)]),
    ("batch_norm_forward", "", _batch_norm_forward, [(100, 50)], [(1 << 16, 128)]),
    ("batch_norm_backward", "", _batch_norm_backward, [(100, 50)], [(1 << 16, 128)]),
    ("batch_norm_inference", "", _batch_norm_inference, [(100, 50)], [(1 << 16, 128)]),
    ("layer_norm_forward", "", _layer_norm_forward, [(100, 50)], [(1 << 16, 128)]),
    ("layer_norm_backward", "", _layer_norm_backward, [(100, 50)], [(1 << 16, 128)]),
    ("dropout", "", _dropout, [(100 * 50,)], [(BEYOND_CACHE,)]),
    ("random_bits", "", _random_bits, [(100 * 50,)], []),
    ("random_flags", "", _random_flags, [(100 * 50,)], []),
    ("random_uniform", "", _random, [(100 * 50,)], []),
    ("random_normal", "", _random, [(100 * 50,)], []),
    ("stream_key", "", lambda rng, dtype: (0, 1, 2), [()], []),
    ("sgd_update", "", _optimizer(0, _LR, 0.0, False, 0.01, first=(lambda: None,)), [(MLP,)], [(BEYOND_CACHE,)]),
    ("sgd_update", "momentum", _optimizer(1, _LR, 0.9, False, 0.01), [(MLP,)], [(BEYOND_CACHE,)]),
    ("adam_update", "", _optimizer(2, _LR, first=(lambda: 10,)), [(MLP,)], [(BEYOND_CACHE,)]),
    ("adamw_update", "", _optimizer(2, _LR, first=(lambda: 10,)), [(MLP,)], [(BEYOND_CACHE,)]),
    ("nadam_update", "", _optimizer(2, _LR, first=(lambda: np.ones(1), lambda: 10)), [(MLP,)], [(BEYOND_CACHE,)]),
    ("rmsprop_update", "", _optimizer(1, _LR), [(MLP,)], [(BEYOND_CACHE,)]),
    ("adagrad_update", "", _optimizer(1, _LR, first=(lambda: 10,)), [(MLP,)], [(BEYOND_CACHE,)]),
    ("adadelta_update", "", _optimizer(2, _LR), [(MLP,)], [(BEYOND_CACHE,)]),
    ("global_norm", "", _gradients(), [(MLP,)], [(BEYOND_CACHE,)]),
    ("clip_by_norm", "", _gradients(1.0), [(MLP,)], [(BEYOND_CACHE,)]),
    ("clip_by_value", "", _gradients(0.5), [(MLP,)], [(BEYOND_CACHE,)]),
    ("all_finite", "", _gradients(), [(MLP,)], [(BEYOND_CACHE,)]),
    ("moving_average", "", _moving_average, [(MLP,)], [(BEYOND_CACHE,)]),
    ("augment_images", "", _images, [(100, 32, 32, 3)], []),
    *(
        (f"{cell}_{way}", "", _recurrent(cell, way), [(25, 1, 100), (5, 32, 256)], [(50, 64, 256)])
        for cell in ("rnn", "lstm", "gru")
        for way in ("forward", "backward")
    ),
    *(
        (f"{cell}_{way}", "noise", _recurrent(cell, way, rates), [(5, 32, 256)], [(50, 64, 256)])
        for cell, rates in (("rnn", (0.1, 0.0, 0.0)), ("lstm", (0.1, 0.05, 0.2)), ("gru", (0.1, 0.0, 0.2)))
        for way in ("forward", "backward")
    ),
    *(
        (f"lstm_norm_{way}", "", _lstm_norm(way), [(25, 1, 100), (5, 32, 256)], [(50, 64, 256)])
        for way in ("forward", "backward")
    ),
    ("generate_tokens", "", _generate_tokens, [(1, 20, 100)], [(1, 50, 256)]),
    *(
        (kernel, "", _mlp(kernel), [(64, 100)], [(3072, 50)])
        for kernel in ("mlp_outputs", "mlp_loss", "mlp_gradient", "mlp_updates")
    ),
    ("take_rows", "", _take_rows, [(3200, 80, 128)], []),
    ("scatter_rows", "", _scatter_rows, [(3200, 80, 1024)], []),
]

# Products with a packed matrix, on one thread: the claim that a small batch runs at the machine's peak.
PACKED_SIZES = [(8, 256, 1024), (16, 256, 1024), (32, 256, 1024), (64, 256, 1024)]
PEAK_PRODUCT = (512, 512, 512)


def peak_name(dtype):
    """The case whose best rate counts as the machine's arithmetic peak."""
    return Case("matmul_packed", "", dtype, PEAK_PRODUCT, _matmul_packed).name


COPY = Case("activation_forward", "identity", "float32", (BEYOND_CACHE,), _activation_forward("identity")).name


@functools.cache
def cases():
    """All cases by name."""
    made = []
    for size, dtype in itertools.product([*PACKED_SIZES, PEAK_PRODUCT], ("float32", "float64")):
        made.append(Case("matmul_packed", "", dtype, size, _matmul_packed, reported=size != PEAK_PRODUCT, threads=1))
    for kernel, variant, make, small, reported in _TABLE:
        made += [Case(kernel, variant, "float32", size, make) for size in small]
        made += [Case(kernel, variant, "float32", size, make, reported=True) for size in reported]
        made += [Case(kernel, variant, "float64", size, make) for size in small[:1]]
    return {case.name: case for case in made}
