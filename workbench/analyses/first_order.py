"""One small step, and what it does to every other answer: A K G (Ren and Sutherland 2024), exactly and to first order.

Pure functions of numpy arrays; logits z = W x of a linear softmax model, W (V, D), x (D,).
"""

from __future__ import annotations

import numpy as np


def log_softmax(z: np.ndarray) -> np.ndarray:
    z = z - z.max(-1, keepdims=True)
    return z - np.log(np.exp(z).sum(-1, keepdims=True))


def gradient(z: np.ndarray, target: int) -> np.ndarray:
    """G (V,): the gradient of -log softmax(z)[target] by the logits, p - onehot(target)."""
    p = np.exp(log_softmax(z))
    p[target] -= 1
    return p


def pull(z: np.ndarray) -> np.ndarray:
    """A (V, V) = I - 1 p^T: how log-probs change with the logits."""
    return np.eye(len(z)) - np.exp(log_softmax(z))[None, :]


def kernel(x: np.ndarray, seen: np.ndarray, vocab: int) -> np.ndarray:
    """K (V, V): how a step on `seen` moves the logits at `x`; for a linear model <x, seen> times the identity."""
    return float(x @ seen) * np.eye(vocab)


def predicted(w: np.ndarray, x: np.ndarray, seen: np.ndarray, target: int, lr: float) -> np.ndarray:
    """(V,): the change of the log-probs at `x` after one step of SGD on -log p(target | seen), -lr A K G."""
    return -lr * pull(w @ x) @ kernel(x, seen, len(w)) @ gradient(w @ seen, target)


def actual(w: np.ndarray, x: np.ndarray, seen: np.ndarray, target: int, lr: float) -> np.ndarray:
    """(V,): the same, by taking the step."""
    moved = w - lr * np.outer(gradient(w @ seen, target), seen)
    return log_softmax(moved @ x) - log_softmax(w @ x)


def pushed_down(z: np.ndarray, target: int, lr: float) -> np.ndarray:
    """(V,): the change of the log-probs of softmax(z) when one step lowers log p(target), as the rejected side of DPO
    does. Of an unlikely target almost all that the step takes goes to the likeliest token, and every other one falls:
    the squeezing effect."""
    return log_softmax(z + lr * gradient(z, target)) - log_softmax(z)
