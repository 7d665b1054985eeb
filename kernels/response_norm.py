"""response_norm: every pixel over a power of the mean square of the channels around it (AlexNet's LRN).

    level[c] = bias + alpha / size · Σ x[k]²          over k from c - (size - 1) // 2 to c + size // 2
    y = x · level^-beta
    dx[c] = dy[c] · level[c]^-beta - 2 alpha beta / size · x[c] · Σ dy[k] y[k] / level[k]    over k that see c

Loops see (N, C, S), S the pixels of a channel, and run along the pixels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from .compiled import compiled, flat
from .device import array_module
from .kernel import Array, ArraySpec, Buffers, Cost, Kernel, Mode, Region, Split, need_floats
from .region import keep_whole, on_copies


def _summed_arrays(x: Array, total: Array, before: int, after: int) -> None:
    channels = x.shape[1]
    total[...] = 0
    for shift in range(max(-before, 1 - channels), min(after, channels - 1) + 1):
        first, last = max(0, -shift), min(channels, channels - shift)
        total[:, first:last] += x[:, first + shift : last + shift]


@compiled(oracle=_summed_arrays)
def _summed(x: Array, total: Array, before: int, after: int) -> None:
    """total[c] = Σ x[k] over k from c - before to c + after."""
    samples, channels, pixels = x.shape
    for n in range(samples):
        for c in range(channels):
            for s in range(pixels):
                total[n, c, s] = 0
            for k in range(max(0, c - before), min(channels, c + after + 1)):
                for s in range(pixels):
                    total[n, c, s] += x[n, k, s]


def _scale_arrays(x: Array, level: Array, y: Array, factor: float, bias: float, beta: float) -> None:
    level *= factor
    level += bias
    y[...] = x * level**-beta


@compiled(oracle=_scale_arrays)
def _scale(x: Array, level: Array, y: Array, factor: float, bias: float, beta: float) -> None:
    """Turns sums of squares into levels, and writes y."""
    number = level.dtype.type
    for i in range(x.size):
        level[i] = level[i] * number(factor) + number(bias)
    if beta == 0.75:  # everybody's: square roots vectorise, powers do not
        for i in range(x.size):
            root = np.sqrt(level[i])
            y[i] = x[i] / (root * np.sqrt(root))
    else:
        for i in range(x.size):
            y[i] = x[i] * level[i] ** number(-beta)


@dataclass(frozen=True, slots=True)
class ResponseNorm(Kernel):
    """Local response normalisation of (N, C, …) across channels. Krizhevsky, Sutskever and Hinton 2012, 3.3.

    `alpha` is divided by `size`, as in ONNX and PyTorch; an even window reaches one channel further up.
    """

    name: ClassVar[str] = "response_norm"

    size: int
    alpha: float = 1e-4
    beta: float = 0.75
    bias: float = 1.0

    def __post_init__(self) -> None:
        if self.size < 1:
            raise ValueError(f"response_norm: size is {self.size}; give at least 1 channel")
        if not self.bias > 0:
            raise ValueError(
                f"response_norm: bias is {self.bias}; it is above 0, or a black image divides by 0"
            )

    def output(self, *inputs: ArraySpec) -> ArraySpec:
        (x,) = inputs
        need_floats(self.name, x)
        if len(x.shape) < 2:
            raise ValueError(f"response_norm: input has shape {x.shape}; it needs batch and channel axes")
        return x

    def saved(self, *inputs: ArraySpec) -> tuple[ArraySpec, ...]:
        return inputs  # the levels

    def scratch(self, *inputs: ArraySpec) -> tuple[ArraySpec, ...]:
        return (inputs[0], inputs[0])

    def split(self, *inputs: ArraySpec) -> tuple[Split, ...]:
        return tuple(Split(axis, extent) for axis, extent in enumerate(inputs[0].shape) if axis > 1)

    def needs(self, region: Region, *inputs: ArraySpec) -> tuple[Region, ...]:
        return (region,)

    def forward_region(self, b: Buffers, mode: Mode, region: Region) -> None:
        keep_whole(self, region, b.output, 1)
        on_copies(self, b, mode, region)

    def cost(self, *inputs: ArraySpec) -> Cost:
        (x,) = inputs
        return Cost((self.size + 8.0) * x.size, (self.size + 10.0) * x.size, 0.0, 3.0 * x.nbytes)

    def forward(self, b: Buffers, mode: Mode) -> None:
        x, level, squares = _channels(b.inputs[0]), _channels(b.saved[0]), _channels(b.scratch[0])
        array_module(x).multiply(x, x, out=squares)
        _summed(squares, level, (self.size - 1) // 2, self.size // 2)
        factor = self.alpha / self.size
        _scale(flat(x), flat(level), flat(b.output), factor, self.bias, self.beta)

    def input_gradient(self, b: Buffers, mode: Mode) -> None:
        if b.input_gradients[0] is None:
            return
        x, y, level = _channels(b.inputs[0]), _channels(b.output), _channels(b.saved[0])
        dy, dx = _channels(b.output_gradient), _channels(b.input_gradients[0])
        share, summed = (_channels(each) for each in b.scratch)
        xp = array_module(x)
        xp.multiply(dy, y, out=share)
        xp.divide(share, level, out=share)
        _summed(share, summed, self.size // 2, (self.size - 1) // 2)  # who sees c lies the other way round
        xp.multiply(summed, x, out=summed)
        xp.multiply(summed, 2 * self.alpha * self.beta / self.size, out=summed)
        xp.power(level, -self.beta, out=share)
        xp.multiply(dy, share, out=dx)
        xp.subtract(dx, summed, out=dx)


def _channels(a: Array) -> Array:
    """(N, C, …) as (N, C, S): a view."""
    return flat(a).reshape(*a.shape[:2], -1)
