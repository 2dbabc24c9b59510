"""A recurrent language model in NumPy, as a careful student writes it."""

import numpy as np

LEARNING_RATE = 1e-3
BETA1, BETA2, EPS = 0.9, 0.999, 1e-8  # of Adam


def sigmoid(z):
    return 1 / (1 + np.exp(-z))


def packed(x, y, lengths=None):
    """Token ids and labels (rows,), time first and the longest sequence first, and how many sequences run at each step.

    x, y : ids of shape (batch, time)
    """
    batch, time = x.shape
    if lengths is None:
        return x.T.ravel(), y.T.ravel(), [batch] * time
    order = np.argsort(-lengths, kind="stable")
    runs = np.arange(lengths.max())[:, None] < lengths[order]
    time = len(runs)
    return x[order, :time].T[runs], y[order, :time].T[runs], runs.sum(axis=1).tolist()


class Script:
    """Back-propagation through time with one product a step for all gates, weights (in, out), time first."""

    def __init__(self, task, dtype):
        self.task, self.dtype = task, dtype
        self.p = {
            name: np.array(a.T if a.ndim == 2 and not name.startswith("embedding") else a, dtype, order="C")
            for name, a in task.state_dict().items()
        }
        self.m = {name: np.zeros_like(a) for name, a in self.p.items()}
        self.v = {name: np.zeros_like(a) for name, a in self.p.items()}
        shape = (task.layers, task.batch, task.hidden)
        self.h, self.c = np.zeros(shape, dtype), np.zeros(shape, dtype)
        self.updates = 0

    def layer_forward(self, i, a, counts):
        """a: (rows, gates) input part. Returns the states before and after each step, (rows, H), and what the backward
        pass needs."""
        task, H = self.task, self.task.hidden
        U, bU = self.p[f"rnn.weight_hh_l{i}"], self.p[f"rnn.bias_hh_l{i}"]
        h, c = self.h[i].copy(), self.c[i].copy()
        hs, kept, start = [h], [], 0
        for n in counts:
            x, h, c = a[start : start + n], h[:n], c[:n]
            start += n
            if task.cell == "rnn":
                h = np.tanh(x + h @ U + bU)
                kept.append(h)
            elif task.cell == "lstm":
                z = x + h @ U + bU
                s = sigmoid(z)
                gate_i, f, g, o = s[:, :H], s[:, H : 2 * H], np.tanh(z[:, 2 * H : 3 * H]), s[:, 3 * H :]
                before, c = c, f * c + gate_i * g
                squashed = np.tanh(c)
                h = o * squashed
                kept.append((gate_i, f, g, o, before, squashed))
            else:
                y = h @ U + bU
                s = sigmoid(x[:, : 2 * H] + y[:, : 2 * H])
                r, z = s[:, :H], s[:, H:]
                q, before = y[:, 2 * H :], h
                candidate = np.tanh(x[:, 2 * H :] + r * q)
                h = candidate + z * (h - candidate)
                kept.append((r, z, candidate, q, before))
            hs.append(h)
        if task.carries:
            self.h[i], self.c[i] = h, c
        states = np.concatenate(hs)
        after = states[counts[0] :]
        if counts[-1] == counts[0]:
            return states[: len(after)], after, kept
        return np.concatenate([h[:n] for h, n in zip(hs, counts, strict=False)]), after, kept

    def layer_backward(self, i, dh_out, kept, counts):
        """Gradients of the input part and of the recurrent part of the pre-activations, (rows, gates) each."""
        task, U = self.task, self.p[f"rnn.weight_hh_l{i}"]
        carried, dcell = (np.zeros((counts[0], task.hidden), self.dtype) for _ in range(2))
        das, dus, stop = [], [], len(dh_out)
        for n, now in zip(reversed(counts), reversed(kept), strict=True):
            dh, dc = carried[:n], dcell[:n]
            d = dh_out[stop - n : stop] + dh
            stop -= n
            if task.cell == "rnn":
                da = du = d * (1 - now**2)
                np.matmul(du, U.T, out=dh)
            elif task.cell == "lstm":
                gate_i, f, g, o, before, squashed = now
                dc += d * o * (1 - squashed**2)
                parts = dc * g * gate_i * (1 - gate_i), dc * before * f * (1 - f), dc * gate_i * (1 - g**2)
                da = du = np.concatenate([*parts, d * squashed * o * (1 - o)], axis=1)
                dc *= f
                np.matmul(du, U.T, out=dh)
            else:
                r, z, candidate, q, before = now
                dn = d * (1 - z) * (1 - candidate**2)
                dr, dz = dn * q * r * (1 - r), d * (before - candidate) * z * (1 - z)
                da, du = np.concatenate([dr, dz, dn], axis=1), np.concatenate([dr, dz, dn * r], axis=1)
                np.matmul(du, U.T, out=dh)
                dh += d * z
            das.append(da)
            dus.append(du)
        da = np.concatenate(das[::-1])
        return da, da if task.cell != "gru" else np.concatenate(dus[::-1])

    def update(self, x, y, lengths=None):
        task, p, g = self.task, self.p, {}
        ids, labels, counts = packed(x, y, lengths)
        inputs, befores, keeps, h = [], [], [], None
        for i in range(task.layers):
            W, b = p[f"rnn.weight_ih_l{i}"], p[f"rnn.bias_ih_l{i}"]
            if i == 0 and not task.embedding:
                inputs.append(None)
                a = W[ids] + b
            else:
                inputs.append(h if i else p["embedding.weight"][ids])
                a = inputs[-1] @ W + b
            before, h, kept = self.layer_forward(i, a, counts)
            befores.append(before)
            keeps.append(kept)
        logits = h @ p["output.weight"] + p["output.bias"]
        logits -= logits.max(axis=1, keepdims=True)
        e = np.exp(logits)
        total, rows = e.sum(axis=1, keepdims=True), np.arange(len(e))
        loss = float((np.log(total[:, 0]) - logits[rows, labels]).mean())
        d = e / total
        d[rows, labels] -= 1
        d /= len(d)
        g["output.weight"], g["output.bias"] = h.T @ d, d.sum(axis=0)
        dh = d @ p["output.weight"].T
        for i in range(task.layers - 1, -1, -1):
            da, du = self.layer_backward(i, dh, keeps[i], counts)
            g[f"rnn.weight_hh_l{i}"] = befores[i].T @ du
            g[f"rnn.bias_hh_l{i}"], g[f"rnn.bias_ih_l{i}"] = du.sum(axis=0), da.sum(axis=0)
            if inputs[i] is None:
                dW = g["rnn.weight_ih_l0"] = np.zeros_like(p["rnn.weight_ih_l0"])
                np.add.at(dW, ids, da)
                break
            g[f"rnn.weight_ih_l{i}"] = inputs[i].T @ da
            dh = da @ p[f"rnn.weight_ih_l{i}"].T
        if task.embedding:
            dE = g["embedding.weight"] = np.zeros_like(p["embedding.weight"])
            np.add.at(dE, ids, dh)
        self.adam(g)
        return loss

    def adam(self, gradients):
        self.updates += 1
        kind = self.dtype
        rate = kind(LEARNING_RATE * np.sqrt(1 - BETA2**self.updates) / (1 - BETA1**self.updates))
        eps = kind(EPS * np.sqrt(1 - BETA2**self.updates))
        for name, g in gradients.items():
            if self.task.clip:
                np.clip(g, -self.task.clip, self.task.clip, out=g)
            m, v = self.m[name], self.v[name]
            m += kind(1 - BETA1) * (g - m)
            v += kind(1 - BETA2) * (g * g - v)
            self.p[name] -= rate * m / (np.sqrt(v) + eps)


def in_dtype(dtype):
    """The builder of the script in this dtype."""

    def build(task, threads):
        script, batches = Script(task, dtype), task.batches()
        return lambda: script.update(*next(batches))

    return build
