"""A student's network in NumPy, as the course's second assignment has it, and what goes wrong in it.

X is features x samples, W (out, in), b (out, 1); J = mean cross-entropy + lambda * the sum of all W^2.
"""

from dataclasses import dataclass

import numpy as np

SIZES = (6, 5, 5, 4)  # of the input, two hidden layers and the classes: W2 is square
LAYERS = (1, 2, 3)


def sigmoid(z):
    return 1 / (1 + np.exp(-np.clip(z, -700, 700)))


ACTIVATIONS = {"relu": lambda z: np.maximum(z, 0), "tanh": np.tanh, "sigmoid": sigmoid}


@dataclass
class Kept:
    """Of one hidden layer's forward pass: its input, product, what goes into the activation, and what comes out."""

    H: np.ndarray
    S: np.ndarray
    Z: np.ndarray
    out: np.ndarray
    x_hat: np.ndarray = None
    rstd: np.ndarray = None


class Network:
    """Loss and gradients of a network of three layers; a `mistake` is built into its backward pass.

    Parameters
    ----------
    mistake : str
        "" for none.
    batch_norm : bool
    activation : {"relu", "tanh", "sigmoid"}
    dropout : float
        Behind the first hidden layer, with one mask for ever.
    l2 : float
        lambda.
    """

    def __init__(self, mistake="", *, batch_norm=False, activation="relu", dropout=0.0, l2=0.05, samples=7, seed=0):
        self.mistake, self.batch_norm, self.activation = mistake, batch_norm, activation
        self.dropout, self.l2, self.n = dropout, l2, samples
        rng = np.random.default_rng(seed)
        self.X = rng.standard_normal((SIZES[0], samples))
        self.labels = rng.permutation(np.arange(samples) % SIZES[-1])
        self.Y = np.eye(SIZES[-1])[:, self.labels]
        self.mask = rng.random((SIZES[1], samples)) >= dropout
        self.parameters = {}
        for i in LAYERS:
            self.parameters[f"W{i}"] = rng.standard_normal((SIZES[i], SIZES[i - 1])) / np.sqrt(SIZES[i - 1])
            self.parameters[f"b{i}"] = 0.1 * rng.standard_normal((SIZES[i], 1))
            if batch_norm and i < 3:
                self.parameters[f"gamma{i}"] = rng.uniform(0.5, 1.5, (SIZES[i], 1))
                self.parameters[f"beta{i}"] = 0.1 * rng.standard_normal((SIZES[i], 1))

    def __call__(self, p):
        H, kept = self.X, {}
        for i in (1, 2):
            kept[i] = self._hidden(p, i, H)
            H = kept[i].out
        scores = p["W3"] @ H + p["b3"]
        P = np.exp(scores - scores.max(axis=0))
        P /= P.sum(axis=0)
        loss = -np.log(P[self.labels, np.arange(self.n)]).mean()
        loss += self.l2 * sum((p[f"W{i}"] ** 2).sum() for i in LAYERS)
        g = self._backward(p, P, H, kept)
        self._decay(p, g)
        self._spoil(g)
        return loss, g

    def _hidden(self, p, i, H):
        S = p[f"W{i}"] @ H + p[f"b{i}"]
        k = Kept(H, S, S, None)
        if self.batch_norm:
            k.rstd = 1 / np.sqrt(S.var(axis=1, keepdims=True) + 1e-8)
            k.x_hat = (S - S.mean(axis=1, keepdims=True)) * k.rstd
            k.Z = p[f"gamma{i}"] * k.x_hat + p[f"beta{i}"]
        k.out = ACTIVATIONS[self.activation](k.Z)
        if self.dropout and i == 1:
            k.out = k.out * self.mask / (1 - self.dropout)
        return k

    def _backward(self, p, P, H, kept):
        wrong, n, Y = self.mistake, self.n, self.Y
        G = {
            "Y is not subtracted": P,
            "P is missing": -Y,
            "sign": Y - P,
            "softmax's derivative again": (P - Y) * P * (1 - P),
            "other labels": P - np.roll(Y, 1, axis=0),
            "factor 2": 2 * (P - Y),
            "divided by the classes": (P - Y) / SIZES[-1],
            "summed over the batch": n * (P - Y),
            "divided twice": (P - Y) / n,
        }.get(wrong, P - Y) / n
        g = {"W3": G @ H.T, "b3": G.sum(axis=1, keepdims=True)}
        for i in (2, 1):
            W = p[f"W{i + 1}"]
            G = (W if wrong == "W2 not transposed" and i == 1 else W.T) @ G
            if self.dropout and i == 1:
                G = G * self.mask / (1 if wrong == "dropout's scale" else 1 - self.dropout)
            G = G * self._derivative(i, kept)
            if wrong == "twice on the way down" and i == 1:
                G = 2 * G
            if self.batch_norm:
                G = self._through_norm(p, i, G, kept[i], g)
            g[f"W{i}"] = G @ (kept[1].Z if wrong == "not the activations" and i == 2 else kept[i].H).T
            g[f"b{i}"] = G.sum(axis=1, keepdims=True)
        return g

    def _derivative(self, i, kept):
        wrong, Z = self.mistake, kept[i].Z
        if wrong == f"no derivative in layer {i}":
            return 1.0
        if self.activation == "relu":
            return (kept[2].Z if wrong == "mask of layer 2" and i == 1 else Z) > 0
        h = ACTIVATIONS[self.activation](Z)
        if self.activation == "tanh":
            return 1 - h if wrong == "1 - h" else 1 - h**2
        return h if wrong == "s" else h * (1 - h)

    def _through_norm(self, p, i, G, k, g):
        wrong = self.mistake
        g[f"gamma{i}"] = (G * k.x_hat).sum(axis=1, keepdims=True)
        g[f"beta{i}"] = G.sum(axis=1, keepdims=True)
        here = i == 1
        G = G if wrong == "no gamma" and here else G * p[f"gamma{i}"]
        mean, through = G.mean(axis=1, keepdims=True), (G * k.x_hat).mean(axis=1, keepdims=True) * k.x_hat
        if here and wrong in ("statistics are constants", "the variance is a constant"):
            through = 0.0
        if here and wrong == "statistics are constants":
            mean = 0.0
        return (G - mean - through) * (1 if wrong == "no variance" and here else k.rstd)

    def _decay(self, p, g):
        wrong = self.mistake
        factor = {"lambda W": 1, "L2 twice": 4, "L2 over n": 2 / self.n, "no L2": 0}.get(wrong, 2) * self.l2
        for i in LAYERS:
            if not (wrong == "no L2 in W2" and i == 2):
                g[f"W{i}"] = g[f"W{i}"] + factor * p[f"W{i}"]
            if wrong == "L2 on biases":
                g[f"b{i}"] = g[f"b{i}"] + factor * p[f"b{i}"]

    def _spoil(self, g):
        """Mistakes that are made at the end."""
        wrong = self.mistake
        if wrong == "W2 transposed":
            g["W2"] = g["W2"].T.copy()
        elif wrong == "W1 reshaped":
            g["W1"] = g["W1"].T.reshape(g["W1"].shape)
        elif wrong == "W1 of the transposed shape":
            g["W1"] = g["W1"].T
        elif wrong == "b2 zero":
            g["b2"] = np.zeros_like(g["b2"])
        elif wrong == "biases summed":
            g.update({f"b{i}": self.n * g[f"b{i}"] for i in LAYERS})
        elif wrong == "b1 flat":
            g["b1"] = g["b1"].ravel()
        elif wrong == "rows reversed":
            g["W1"] = g["W1"][::-1].copy()
        elif wrong == "columns rolled":
            g["W1"] = np.roll(g["W1"], 1, axis=1)
        elif wrong == "biases exchanged":
            g["b1"], g["b2"] = g["b2"], g["b1"]
        elif wrong == "gamma and beta exchanged":
            g["gamma1"], g["beta1"] = g["beta1"], g["gamma1"]
        elif wrong == "one row":
            g["W2"][3] *= 1 + np.arange(1, 6) / 10
        elif wrong == "nan":
            g["W3"][1, 2] = np.nan
