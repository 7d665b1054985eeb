"""The networks that benches of training train, the same to the bit for every candidate.

    x ── dense ── ReLU ── dense ── ReLU ── … ── dense ── mean squared error        no biases, float32, SGD

A step is the whole data set once: each rank's part is `batch` samples. So every repetition computes the same
losses, and they can be checked against NumPy's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from math import sqrt

import numpy as np
from numpy.typing import NDArray

from bench.harness import check
from weft.runtime.errors import Mistake

Floats = NDArray[np.float32]

RATE = 0.05  # the loss falls by some percent a step
SEED = 0
CHECKED_STEPS = 3  # by NumPy, serially: of 1024 samples a rank on 2 ranks a second each
GRANULE = 16  # widths are a multiple of this: BLAS likes it, and so does a fair comparison


@dataclass(frozen=True, slots=True)
class Sizes:
    """Features between the layers, the first being the input's; samples a rank; ranks."""

    widths: tuple[int, ...]
    batch: int
    ranks: int

    @property
    def parameters(self) -> int:
        """Of all layers together."""
        return sum(a * b for a, b in pairwise(self.widths))

    @property
    def nbytes(self) -> int:
        """Of the gradient."""
        return 4 * self.parameters

    def weights(self) -> list[Floats]:
        """Initial weights of each layer, (out, in): He et al. 2015."""
        random = np.random.default_rng(SEED)
        return [
            random.standard_normal((wide, before), np.float32) * np.float32(sqrt(2 / before))
            for before, wide in pairwise(self.widths)
        ]

    def samples(self) -> tuple[Floats, Floats]:
        """Inputs and targets of all ranks."""
        random = np.random.default_rng(SEED + 1)
        n = self.batch * self.ranks
        return (
            random.standard_normal((n, self.widths[0]), np.float32),
            random.standard_normal((n, self.widths[-1]), np.float32),
        )


@dataclass(slots=True)
class Turn:
    """What a candidate's turn gave: seconds a step; where it trained, each step's loss and the weights."""

    seconds: float
    losses: list[float] = field(default_factory=list)
    digest: str = ""


def widths(layers: int, width: int, skew: float | None = None) -> tuple[int, ...]:
    """All `width`; or the same number of weights, the share `skew` of them in one layer in the middle.

    That layer is X by X, the layers beside it lead to X and back: X² / ((layers - 3) w² + 2wX + X²) = skew.
    """
    if layers < 1 or width < 1:
        raise Mistake(f"{layers} layers of {width}: give at least one of at least 1")
    if skew is None:
        return (width,) * (layers + 1)
    if layers < 3 or not 1 / layers < skew < 1:
        raise Mistake(f"skew {skew} of {layers} layers: give 3 layers, and a share from 1/{layers} to 1")
    ratio = (skew + sqrt(skew**2 + (1 - skew) * skew * (layers - 3))) / (1 - skew)
    narrow = width * sqrt(layers / (layers - 3 + 2 * ratio + ratio**2))

    def rounded(x: float) -> int:
        return max(GRANULE, round(x / GRANULE) * GRANULE)

    found = [rounded(narrow)] * (layers + 1)
    middle = layers // 2
    found[middle] = found[middle + 1] = rounded(narrow * ratio)
    return tuple(found)


def rate(momentum: float) -> float:
    """So that steps are about as long with momentum as without."""
    return RATE * (1 - momentum)


def reference(sizes: Sizes, steps: int, momentum: float = 0.0) -> list[float]:
    """The losses of the first steps, as plain NumPy has them."""
    weights, (inputs, targets) = sizes.weights(), sizes.samples()
    gathered = [np.zeros_like(w) for w in weights]
    losses = []
    for _ in range(steps):
        values = [inputs]
        for layer, w in enumerate(weights):
            y = values[-1] @ w.T
            values.append(np.maximum(y, 0, out=y) if layer < len(weights) - 1 else y)
        difference = values[-1] - targets
        losses.append(float(np.mean(np.square(difference), dtype=np.float64)))
        gradient = difference * np.float32(2 / difference.size)
        for layer in reversed(range(len(weights))):
            wanted = gradient.T @ values[layer]
            if layer:
                gradient = (gradient @ weights[layer]) * (values[layer] > 0)
            gathered[layer] *= np.float32(momentum)
            gathered[layer] += wanted
            weights[layer] -= np.float32(rate(momentum)) * gathered[layer]
    return losses


def check_losses(name: str, losses: Sequence[float], expected: Sequence[float]) -> None:
    """WrongResultError unless the losses are those expected, as far as float32 sums in any order can tell."""
    count = min(len(losses), len(expected))
    wrong = not np.allclose(losses[:count], expected[:count], rtol=1e-4)
    check(
        count > 0 and not wrong, f"{name}: losses {list(losses[:count])} should be {list(expected[:count])}"
    )
