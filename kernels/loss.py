"""softmax_cross_entropy, and what every loss is: one per sample, averaged over the sample's inner axes.

    predictions (N, …), targets  ->  losses (N,)          the batch's loss is Σ weightₙ · lossₙ

`output_gradient` (N,) holds these weights, 1 / global batch each; so the gradients of micro-batches just add.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from math import prod
from typing import ClassVar, Literal

import numpy as np

from . import elementary
from .compiled import ORDERED, compiled, fast_path, flat, jit
from .device import array_module
from .kernel import Array, ArraySpec, Buffers, Cost, Kernel, Mode, Split, need_floats
from .largest import largest

Predicts = Literal["classes", "labels", "values"]
"""What a model's output tells: logits of classes, of which one holds, or of labels, of which any number may;
or values."""


@dataclass(frozen=True, slots=True)
class Loss(Kernel):
    """A kernel of predictions and targets that gives each sample's loss, (N,)."""

    arity: ClassVar[int | None] = 2
    differentiable: ClassVar[tuple[int, ...] | None] = (0,)

    predicts: ClassVar[Predicts]

    def split(self, *inputs: ArraySpec) -> tuple[Split, ...]:
        return (Split(0, inputs[0].shape[0]),)

    def count_right(self, predictions: Array, targets: Array) -> int:
        """How many answers are right; of values, which are only more or less far off, none."""
        return 0


@dataclass(frozen=True, slots=True)
class ElementLoss(Loss):
    """Predictions and targets of one shape (N, …): a loss of each element, and of a sample their mean."""

    flops: ClassVar[tuple[float, float]]
    """Operations an element, forward and gradient."""

    def output(self, *inputs: ArraySpec) -> ArraySpec:
        predictions, targets = inputs
        need_floats(self.name, predictions)
        if predictions.shape != targets.shape:
            raise ValueError(
                f"{self.name}: predictions {predictions.shape} and targets {targets.shape} differ; give both "
                "one shape"
            )
        return ArraySpec(predictions.shape[:1], predictions.dtype)

    def cost(self, *inputs: ArraySpec) -> Cost:
        predictions, targets = inputs
        forward, gradient = (each * predictions.size for each in self.flops)
        return Cost(forward, gradient, 0.0, float(predictions.nbytes + targets.nbytes))

    def forward(self, b: Buffers, mode: Mode) -> None:
        predictions, targets = (flat(each).reshape(b.output.size, -1) for each in b.inputs)
        self._losses(predictions, targets, b.output)

    def input_gradient(self, b: Buffers, mode: Mode) -> None:
        dx = b.input_gradients[0]
        if dx is not None:
            shape = (b.output_gradient.size, -1)
            predictions, targets = (flat(each).reshape(shape) for each in b.inputs)
            self._gradient(predictions, targets, b.output_gradient, flat(dx).reshape(shape))

    @abstractmethod
    def _losses(self, x: Array, targets: Array, losses: Array) -> None:
        """Write the mean loss of each row of `x` and `targets` (N, elements)."""

    @abstractmethod
    def _gradient(self, x: Array, targets: Array, weights: Array, dx: Array) -> None:
        """Write the gradients of all elements, where the loss of each row counts by its weight."""


def _cross_entropy_arrays(x: Array, targets: Array, losses: Array, tops: Array, log_sums: Array) -> int:
    xp = array_module(x)
    top = x.max(axis=1, keepdims=True)
    log_exps = xp.log(xp.exp(x - top).sum(axis=1))
    tops[...], log_sums[...] = top[:, 0], log_exps
    known = (targets >= 0) & (targets < x.shape[1])
    at = xp.take_along_axis(x, xp.where(known, targets, 0).astype("int64")[:, None], axis=1)
    each = xp.where(known, log_exps + (top - at)[:, 0], xp.nan)
    losses[...] = each.reshape(losses.size, -1).mean(axis=1)
    return -1


@compiled(oracle=_cross_entropy_arrays)
def _cross_entropy(x: Array, targets: Array, losses: Array, tops: Array, log_sums: Array) -> int:
    """Returns the first row whose target is no class, or -1."""
    number = x.dtype.type
    inner = targets.size // losses.size
    for n in range(losses.size):
        total = 0.0
        for row in range(n * inner, (n + 1) * inner):
            if targets[row] < 0 or targets[row] >= x.shape[1]:
                return row
            top = largest(x, row, x.shape[1])
            exps = number(0)
            for c in range(x.shape[1]):
                exps += elementary.exp(x[row, c] - top)
            tops[row] = top
            log_sums[row] = np.log(exps)
            # The difference first: of log 3 next to a logit of 500 float32 keeps five digits, next to 1e8
            # none. It is rounded before it is widened, so that LLVM does not add in another order.
            total += np.float64(log_sums[row]) + np.float64(top - x[row, targets[row]])
        losses[n] = total / inner
    return -1


def _cross_entropy_gradient_arrays(
    x: Array, targets: Array, tops: Array, log_sums: Array, weights: Array, dx: Array
) -> None:
    xp = array_module(x)
    inner = targets.size // weights.size
    one_hot = targets[:, None] == xp.arange(x.shape[1])
    softmax = xp.exp(x - tops[:, None] - log_sums[:, None])
    dx[...] = (softmax - one_hot) * xp.repeat(weights / inner, inner)[:, None]


# In the order written: the sum of what a row subtracts would have lost the logarithm next to logits of 1e8.
@fast_path(oracle=_cross_entropy_gradient_arrays)
@jit(fastmath=ORDERED)
def _cross_entropy_gradient(
    x: Array, targets: Array, tops: Array, log_sums: Array, weights: Array, dx: Array
) -> None:
    inner = targets.size // weights.size
    for row in range(targets.size):
        weight = weights[row // inner] / x.dtype.type(inner)
        top, log_sum = tops[row], log_sums[row]
        for c in range(x.shape[1]):
            dx[row, c] = elementary.exp(x[row, c] - top - log_sum) * weight
        dx[row, targets[row]] -= weight


def _count_correct_arrays(x: Array, targets: Array) -> int:
    return int((x.argmax(axis=1) == targets).sum())


@compiled(oracle=_count_correct_arrays)
def _count_correct(x: Array, targets: Array) -> int:
    correct = 0
    for row in range(x.shape[0]):
        best = 0
        for c in range(1, x.shape[1]):
            if x[row, c] > x[row, best]:
                best = c
        correct += best == targets[row]
    return correct


def count_correct(logits: Array, targets: Array) -> int:
    """How many targets (N, …) are the first largest of their row of logits (N, …, classes)."""
    return int(_count_correct(flat(logits).reshape(-1, logits.shape[-1]), flat(targets)))


@dataclass(frozen=True, slots=True)
class SoftmaxCrossEntropy(Loss):
    """Logits (N, …, classes) and integer targets (N, …) -> -log softmax at the target, averaged to (N,).

    A target outside 0 … classes - 1 raises ValueError; on a GPU, where a look would stall the stream, it
    makes the sample's loss NaN.
    """

    name: ClassVar[str] = "softmax_cross_entropy"
    predicts: ClassVar[Predicts] = "classes"

    def output(self, *inputs: ArraySpec) -> ArraySpec:
        logits, targets = inputs
        need_floats(self.name, logits)
        if len(logits.shape) < 2 or logits.shape[:-1] != targets.shape:
            raise ValueError(
                f"softmax_cross_entropy: logits {logits.shape} and targets {targets.shape} do not fit; "
                f"targets have the shape of the logits without the last axis, the classes"
            )
        if np.dtype(targets.dtype).kind not in "iu":
            raise ValueError(
                f"softmax_cross_entropy: targets are {targets.dtype}; they are class numbers, integers"
            )
        return ArraySpec(logits.shape[:1], logits.dtype)

    def saved(self, *inputs: ArraySpec) -> tuple[ArraySpec, ...]:
        # Of every row the largest m, and log Σ exp(x - m). The softmax itself would be as large as the
        # logits, and is one exp away.
        logits, targets = inputs
        return (ArraySpec((prod(targets.shape),), logits.dtype),) * 2

    def cost(self, *inputs: ArraySpec) -> Cost:
        logits, targets = inputs
        return Cost(22.0 * logits.size, 22.0 * logits.size, 0.0, float(logits.nbytes + targets.nbytes))

    def forward(self, b: Buffers, mode: Mode) -> None:
        logits, targets = b.inputs
        classes = logits.shape[-1]
        wrong = _cross_entropy(flat(logits).reshape(-1, classes), flat(targets), b.output, *b.saved)
        if wrong >= 0:
            where = tuple(int(i) for i in np.unravel_index(wrong, targets.shape))
            raise ValueError(
                f"softmax_cross_entropy: target {targets[where]} at {where} is no class; the {classes} "
                f"classes are 0 … {classes - 1}"
            )

    def input_gradient(self, b: Buffers, mode: Mode) -> None:
        logits, targets = b.inputs
        dx = b.input_gradients[0]
        if dx is not None:
            shape, (tops, log_sums) = (-1, logits.shape[-1]), b.saved
            _cross_entropy_gradient(
                flat(logits).reshape(shape),
                flat(targets),
                tops,
                log_sums,
                b.output_gradient,
                flat(dx).reshape(shape),
            )

    def count_right(self, predictions: Array, targets: Array) -> int:
        """How many targets are the first largest of their row of logits."""
        return count_correct(predictions, targets)
