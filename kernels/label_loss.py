"""binary_cross_entropy: the loss of labels, of which a sample has any number, each by itself.

    losses = log(1 + exp(-|x|)) + (x (1 - t) where x > 0, else -x t)        dx = σ(x) - t

The form of max(x, 0) - x t + log(1 + exp(-|x|)) in which nothing is subtracted: in whatever order LLVM adds,
a logit of 1e8 that is right takes no digit from the losses beside it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from . import elementary
from .compiled import compiled, flat
from .device import array_module
from .kernel import Array
from .loss import ElementLoss, Predicts


def _cross_entropy_arrays(x: Array, targets: Array, losses: Array) -> None:
    xp = array_module(x)
    t = targets.astype(x.dtype)
    losses[...] = (xp.where(x > 0, x * (1 - t), -x * t) + xp.log1p(xp.exp(-abs(x)))).mean(axis=1)


@compiled(oracle=_cross_entropy_arrays)
def _cross_entropy(x: Array, targets: Array, losses: Array) -> None:
    number = x.dtype.type
    zero, one = number(0), number(1)
    for n in range(x.shape[0]):
        total = zero
        for i in range(x.shape[1]):
            v, t = x[n, i], number(targets[n, i])
            total += (v * (one - t) if v > zero else -v * t) + math.log1p(elementary.exp(-abs(v)))
        losses[n] = total / number(x.shape[1])


def _cross_entropy_gradient_arrays(x: Array, targets: Array, weights: Array, dx: Array) -> None:
    sigmoid = 0.5 * array_module(x).tanh(0.5 * x) + 0.5  # exp could overflow
    dx[...] = (sigmoid - targets) * (weights / x.shape[1])[:, None]


@compiled(oracle=_cross_entropy_gradient_arrays)
def _cross_entropy_gradient(x: Array, targets: Array, weights: Array, dx: Array) -> None:
    number = x.dtype.type
    one = number(1)
    for n in range(x.shape[0]):
        weight = weights[n] / number(x.shape[1])
        for i in range(x.shape[1]):
            sigmoid = one / (one + elementary.exp(-x[n, i]))
            dx[n, i] = (sigmoid - number(targets[n, i])) * weight


def _count_right_arrays(x: Array, targets: Array) -> int:
    return int(array_module(x).where(targets > 0.5, x > 0, x <= 0).sum())


@compiled(oracle=_count_right_arrays)
def _count_right(x: Array, targets: Array) -> int:
    right = 0
    for i in range(x.size):
        right += x[i] > 0 if targets[i] > 0.5 else x[i] <= 0  # NaN is never right
    return right


@dataclass(frozen=True, slots=True)
class BinaryCrossEntropy(ElementLoss):
    """Logits and targets (N, …) -> -t log σ(x) - (1 - t) log(1 - σ(x)), averaged to (N,).

    Targets are 0 or 1 (bool, integers, floats), or probabilities between; nothing else is looked for.
    """

    name: ClassVar[str] = "binary_cross_entropy"
    predicts: ClassVar[Predicts] = "labels"
    flops: ClassVar[tuple[float, float]] = (44.0, 22.0)

    def count_right(self, predictions: Array, targets: Array) -> int:
        """How many logits are on the side of 0 that their targets are on of one half."""
        return int(_count_right(flat(predictions), flat(targets)))

    def _losses(self, x: Array, targets: Array, losses: Array) -> None:
        _cross_entropy(x, targets, losses)

    def _gradient(self, x: Array, targets: Array, weights: Array, dx: Array) -> None:
        _cross_entropy_gradient(x, targets, weights, dx)
