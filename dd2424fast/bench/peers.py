"""The same computations as kernels, in PyTorch and JAX, and NumPy's own product.

Each function takes a kernel's arguments and returns a function that computes once and returns the results, the first
ones at least.
"""

import functools

import numpy as np

LIBRARIES = ("blas", "torch", "jax")

BLAS, TORCH, JAX = {}, {}, {}
_BY_NAME = {"blas": BLAS, "torch": TORCH, "jax": JAX}


def of(library):
    """From kernel to its function in this library."""
    return _BY_NAME[library]


def _for(table, kernel):
    def enter(function):
        table[kernel] = function
        return function

    return enter


# ---- BLAS ------------------------------------------------------------------------------------------------------------


@_for(BLAS, "matmul")
def _(a, b, out):
    return lambda: np.matmul(a, b, out=out)


@_for(BLAS, "matmul_packed")
def _(a, packed, out):
    b = packed.unpack()
    return lambda: np.matmul(a, b, out=out)


# ---- PyTorch ---------------------------------------------------------------------------------------------------------


def _tensors(*arrays):
    import torch

    torch.set_grad_enabled(False)
    return [torch.tensor(a) for a in arrays]


@_for(TORCH, "matmul")
def _(a, b, out):
    a, b = _tensors(a, b)
    return lambda: a @ b


@_for(TORCH, "linear_forward")
def _(x, W, b, activation, out):
    from torch.nn import functional as F

    x, W, b = _tensors(x, np.ascontiguousarray(W.T), b)
    return lambda: F.relu(F.linear(x, W, b), inplace=True)


@_for(TORCH, "linear_backward")
def _(dy, x, W, dx, dW, db):
    dy, x, W = _tensors(dy, x, np.ascontiguousarray(W.T))
    return lambda: (dy @ W, (dy.T @ x).T, dy.sum(0))


@_for(TORCH, "activation_forward")
def _(z, activation, out):
    import torch

    (z,) = _tensors(z)
    F = torch.nn.functional
    f = {
        "relu": torch.relu,
        "leaky_relu": F.leaky_relu,
        "tanh": torch.tanh,
        "sigmoid": torch.sigmoid,
        "gelu": F.gelu,
    }.get(activation, torch.clone)
    return lambda: f(z)


@_for(TORCH, "softmax_cross_entropy")
def _(logits, labels, *rest):
    import torch

    logits, labels = _tensors(logits, labels)
    logits.requires_grad_()

    def run():
        with torch.enable_grad():
            logits.grad = None
            loss = torch.nn.functional.cross_entropy(logits, labels)
            loss.backward()
        return loss.item(), logits.grad

    return run


@_for(TORCH, "batch_norm_forward")
def _(x, gamma, beta, running_mean, running_var, momentum, eps, *rest):
    from torch.nn import functional as F

    x, gamma, beta, mean, var = _tensors(x, gamma, beta, running_mean, running_var)
    return lambda: F.relu(F.batch_norm(x, mean, var, gamma, beta, True, momentum, eps), inplace=True)


def _channels_last(x, W):
    """Images and filters as PyTorch has them, in the memory layout that its convolutions are fastest in."""
    import torch

    x, W = _tensors(x, W)
    return x.permute(0, 3, 1, 2), W.permute(3, 2, 0, 1).contiguous(memory_format=torch.channels_last)


@_for(TORCH, "conv2d_forward")
def _(x, W, b, stride, padding, dilation, groups, *rest):
    from torch.nn import functional as F

    (x, W), (b,) = _channels_last(x, W), _tensors(b)
    return lambda: F.relu(F.conv2d(x, W, b, stride, padding, dilation, groups), inplace=True).permute(0, 2, 3, 1)


@_for(TORCH, "conv2d_backward")
def _(dy, x, W, stride, padding, dilation, groups, dx, dW, db, need_dx, use_bias, accumulate, need_dW):
    import torch

    x, W = _channels_last(x, W)
    dy = _tensors(dy)[0].permute(0, 3, 1, 2)
    geometry = [[s, s] if isinstance(s, int) else list(s) for s in (stride, padding, dilation)]
    mask = [need_dx, need_dW, need_dW and use_bias]

    def run():
        dx, dW, db = torch.ops.aten.convolution_backward(
            dy, x, W, [W.shape[0]] if mask[2] else None, *geometry, False, [0, 0], groups, mask
        )
        return (dx.permute(0, 2, 3, 1),) if need_dx else (dW.permute(2, 3, 1, 0), db)

    return run


@_for(TORCH, "max_pool2d_forward")
def _(x, size, stride, padding, *rest):
    from torch.nn import functional as F

    x = _tensors(x)[0].permute(0, 3, 1, 2)
    return lambda: F.max_pool2d(x, size, stride, padding).permute(0, 2, 3, 1)


@_for(TORCH, "layer_norm_forward")
def _(x, gamma, beta, eps, *rest):
    from torch.nn import functional as F

    x, gamma, beta = _tensors(x, gamma, beta)
    return lambda: F.layer_norm(x, gamma.shape, gamma, beta, eps)


@_for(TORCH, "dropout")
def _(x, p, key, out):
    from torch.nn import functional as F

    (x,) = _tensors(x)

    def run():
        F.dropout(x, p)
        return ()  # another mask: nothing to compare

    return run


def _torch_optimizer(name, *, states, t=None, **settings):
    """One step of torch.optim.<name> on a flat parameter, its state set to the kernel's."""

    def start(parameters, gradients, *rest):
        import torch

        w, g, *vectors = _tensors(parameters, gradients, *(a for a in rest[: len(states)]))
        w.grad = g
        optimizer = getattr(torch.optim, name)([w], lr=1e-6, fused=True, **settings)
        if states:
            optimizer.state[w] = dict(zip(states, vectors, strict=True))
        if t is not None:
            optimizer.state[w]["step"] = torch.tensor(float(t - 1))

        def run():
            optimizer.step()
            return w

        return run

    return start


TORCH["adam_update"] = _torch_optimizer("Adam", states=("exp_avg", "exp_avg_sq"), t=10)
TORCH["adamw_update"] = _torch_optimizer("AdamW", states=("exp_avg", "exp_avg_sq"), t=10)


@_for(TORCH, "sgd_update")
def _(parameters, gradients, velocity, *rest):
    momentum = 0.0 if velocity is None else 0.9
    states = () if velocity is None else ("momentum_buffer",)
    start = _torch_optimizer("SGD", states=states, momentum=momentum, weight_decay=0.01)
    return start(parameters, gradients, velocity)


# ---- JAX -------------------------------------------------------------------------------------------------------------


def _jitted(function, *arrays):
    """The compiled function on arrays handed over once; it waits for the result."""
    import jax

    compiled, arrays = jax.jit(function), [jax.numpy.array(a) for a in arrays]
    return lambda: jax.block_until_ready(compiled(*arrays))


@_for(JAX, "matmul")
def _(a, b, out):
    return _jitted(lambda a, b: a @ b, a, b)


@_for(JAX, "linear_forward")
def _(x, W, b, activation, out):
    import jax

    return _jitted(lambda x, W, b: jax.nn.relu(x @ W + b), x, W, b)


@_for(JAX, "linear_backward")
def _(dy, x, W, dx, dW, db):
    return _jitted(lambda dy, x, W: (dy @ W.T, x.T @ dy, dy.sum(axis=0)), dy, x, W)


@_for(JAX, "activation_forward")
def _(z, activation, out):
    import jax

    functions = {
        "relu": jax.nn.relu, "leaky_relu": jax.nn.leaky_relu, "tanh": jax.numpy.tanh, "sigmoid": jax.nn.sigmoid,
        "gelu": functools.partial(jax.nn.gelu, approximate=False),
    }  # fmt: skip
    return _jitted(functions.get(activation, jax.numpy.copy), z)


@_for(JAX, "softmax_cross_entropy")
def _(logits, labels, *rest):
    import jax

    def loss(z, y):
        return (jax.nn.logsumexp(z, axis=1) - jax.numpy.take_along_axis(z, y[:, None], axis=1)[:, 0]).mean()

    return _jitted(jax.value_and_grad(loss), logits, labels.astype(np.int32))


@_for(JAX, "batch_norm_forward")
def _(x, gamma, beta, running_mean, running_var, momentum, eps, *rest):
    import jax

    def forward(x, gamma, beta, running_mean, running_var):
        mean, var = x.mean(axis=0), x.var(axis=0)
        y = jax.nn.relu((x - mean) * jax.lax.rsqrt(var + eps) * gamma + beta)
        unbiased = var * (x.shape[0] / (x.shape[0] - 1))
        new_mean, new_var = (
            running_mean + momentum * (mean - running_mean),
            running_var + momentum * (unbiased - running_var),
        )
        return y, mean, jax.lax.rsqrt(var + eps), new_mean, new_var

    return _jitted(forward, x, gamma, beta, running_mean, running_var)


def _jax_convolution(stride, padding, dilation, groups):
    import jax

    def both(value):
        return (value, value) if isinstance(value, int) else tuple(value)

    return lambda x, W: jax.lax.conv_general_dilated(
        x,
        W,
        both(stride),
        [(p, p) for p in both(padding)],
        rhs_dilation=both(dilation),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=groups,
    )


@_for(JAX, "conv2d_forward")
def _(x, W, b, stride, padding, dilation, groups, *rest):
    import jax

    convolve = _jax_convolution(stride, padding, dilation, groups)
    return _jitted(lambda x, W, b: jax.nn.relu(convolve(x, W) + b), x, W, b)


@_for(JAX, "conv2d_backward")
def _(dy, x, W, stride, padding, dilation, groups, dx, dW, db, need_dx, *rest):
    import jax

    convolve = _jax_convolution(stride, padding, dilation, groups)
    if need_dx:
        return _jitted(lambda dy, x, W: jax.vjp(lambda x: convolve(x, W), x)[1](dy), dy, x, W)
    return _jitted(lambda dy, x, W: (*jax.vjp(lambda W: convolve(x, W), W)[1](dy), dy.sum(axis=(0, 1, 2))), dy, x, W)


@_for(JAX, "layer_norm_forward")
def _(x, gamma, beta, eps, *rest):
    import jax

    def forward(x, gamma, beta):
        mean, var = x.mean(axis=1, keepdims=True), x.var(axis=1, keepdims=True)
        return (x - mean) * jax.lax.rsqrt(var + eps) * gamma + beta

    return _jitted(forward, x, gamma, beta)


@_for(JAX, "adam_update")
def _(parameters, gradients, m, v, t, segments, lr):
    import jax
    import jax.numpy as jnp

    @functools.partial(jax.jit, donate_argnums=(0, 2, 3))
    def update(w, g, m, v, t):
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
        return w - lr / (1 - 0.9**t) * m / (jnp.sqrt(v) / jnp.sqrt(1 - 0.999**t) + 1e-8), m, v

    g = jnp.array(gradients)
    w, m, v = jnp.array(parameters), jnp.array(m), jnp.array(v)

    def run():
        nonlocal w, m, v
        w, m, v = jax.block_until_ready(update(w, g, m, v, float(t)))
        return (w,)

    return run
