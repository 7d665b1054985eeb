"""embedding and position_embedding: vectors looked up by token, and vectors added by place."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import ClassVar

import numpy as np

from .compiled import compiled, flat
from .device import array_module
from .kernel import (
    Array,
    ArraySpec,
    Buffers,
    ByRows,
    Cost,
    Kernel,
    Mode,
    ParameterSpec,
    Region,
    Split,
    need_floats,
)
from .region import on_copies, on_views

# As in GPT-2: small beside the layers' outputs that a residual network adds to them.
INITIAL_DEVIATION = 0.02


def _look_up_arrays(table: Array, tokens: Array, y: Array, lowest: int) -> int:
    known = (tokens >= lowest) & (tokens < table.shape[0])
    xp = array_module(table)
    y[...] = xp.where(known[:, None], table[xp.where(known, tokens, 0)], xp.nan)
    return -1


@compiled(oracle=_look_up_arrays)
def _look_up(table: Array, tokens: Array, y: Array, lowest: int) -> int:
    """Returns the place of the first token that is no entry, or -1."""
    for row in range(tokens.size):
        token = tokens[row]
        if token < lowest or token >= table.shape[0]:
            return row
        for c in range(table.shape[1]):
            y[row, c] = table[token, c]
    return -1


def _gather_gradient_arrays(gradient: Array, tokens: Array, dy: Array) -> None:
    gradient.fill(0)
    array_module(gradient).add.at(gradient, tokens, dy)


@compiled(oracle=_gather_gradient_arrays)
def _gather_gradient(gradient: Array, tokens: Array, dy: Array) -> None:
    gradient[:, :] = 0
    for row in range(tokens.size):
        token = tokens[row]
        for c in range(gradient.shape[1]):
            gradient[token, c] += dy[row, c]


@dataclass(frozen=True, slots=True)
class Embedding(Kernel):
    """Integer tokens (N, …) -> the rows of a learned table (entries, width) they name, (N, …, width).

    A token outside 0 … entries - 1 raises ValueError; on a GPU, where a look would stall the stream, its
    vector is NaN. With `from_end` tokens from -entries to -1 count from the last row. `dtype` is the table's,
    since tokens have none to follow.
    """

    name: ClassVar[str] = "embedding"
    differentiable: ClassVar[tuple[int, ...] | None] = ()

    entries: int
    width: int
    dtype: str = "float32"
    from_end: bool = False

    def __post_init__(self) -> None:
        if self.entries < 1 or self.width < 1:
            raise ValueError(
                f"embedding: entries {self.entries}, width {self.width}; give at least 1 of each"
            )

    def output(self, *inputs: ArraySpec) -> ArraySpec:
        (tokens,) = inputs
        if np.dtype(tokens.dtype).kind not in "iu":
            raise ValueError(
                f"embedding: tokens are {tokens.dtype}; they are row numbers of the table, integers"
            )
        return ArraySpec((*tokens.shape, self.width), self.dtype)

    def parameters(self, *inputs: ArraySpec) -> tuple[ParameterSpec, ...]:
        return (ParameterSpec("weight", (self.entries, self.width), "normal", INITIAL_DEVIATION),)

    def split(self, *inputs: ArraySpec) -> tuple[Split, ...]:
        return (Split(len(inputs[0].shape), self.width, weight_axis=1),)

    def needs(self, region: Region, *inputs: ArraySpec) -> tuple[Region, ...]:
        return (region[:-1],)

    def forward_region(self, b: Buffers, mode: Mode, region: Region) -> None:
        on_copies(self, b, mode, region)

    def cost(self, *inputs: ArraySpec) -> Cost:
        y = self.output(*inputs)
        return Cost(0.0, 0.0, float(y.size), inputs[0].nbytes + 2.0 * y.nbytes)

    def forward(self, b: Buffers, mode: Mode) -> None:
        (tokens,), (table,) = b.inputs, b.parameters
        lowest = -self.entries if self.from_end else 0
        wrong = _look_up(table, flat(tokens), flat(b.output).reshape(-1, table.shape[1]), lowest)
        if wrong >= 0:
            where = tuple(int(i) for i in np.unravel_index(wrong, tokens.shape))
            raise ValueError(
                f"embedding: token {tokens[where]} at {where} has no row; the {self.entries} entries are "
                f"{lowest} … {self.entries - 1}"
            )

    def weight_gradient(self, b: Buffers, mode: Mode) -> None:
        dy = flat(b.output_gradient).reshape(-1, self.width)
        _gather_gradient(b.weight_gradients[0], flat(b.inputs[0]), dy)


@dataclass(frozen=True, slots=True)
class PositionEmbedding(ByRows):
    """Adds a learned table (T, C) to every sample (N, T, C); the input's gradient is the output's."""

    name: ClassVar[str] = "position_embedding"
    input_axis: ClassVar[int | None] = None
    passes_gradient: ClassVar[bool] = True

    def output(self, *inputs: ArraySpec) -> ArraySpec:
        (x,) = inputs
        need_floats(self.name, x, halves=True)
        if len(x.shape) != 3:
            raise ValueError(
                f"position_embedding: input has shape {x.shape}; it needs (batch, places, width)"
            )
        return x

    def parameters(self, *inputs: ArraySpec) -> tuple[ParameterSpec, ...]:
        return (ParameterSpec("weight", inputs[0].shape[1:], "normal", INITIAL_DEVIATION),)

    def split(self, *inputs: ArraySpec) -> tuple[Split, ...]:
        _, places, width = inputs[0].shape
        return Split(1, places, weight_axis=0), Split(2, width, weight_axis=1)

    def cost(self, *inputs: ArraySpec) -> Cost:
        (x,) = inputs
        return Cost(float(x.size), 0.0, float(x.size), 2.0 * x.nbytes + prod(x.shape[1:]) * 4.0)

    def forward(self, b: Buffers, mode: Mode, rows: slice = slice(None)) -> None:
        array_module(b.output).add(b.inputs[0][:, rows], b.parameters[0][rows], out=b.output[:, rows])

    def needs(self, region: Region, *inputs: ArraySpec) -> tuple[Region, ...]:
        return (region,)

    def forward_region(self, b: Buffers, mode: Mode, region: Region) -> None:
        on_views(self, b, mode, region)

    def weight_gradient(self, b: Buffers, mode: Mode, rows: slice = slice(None)) -> None:
        b.output_gradient[:, rows].sum(axis=0, out=b.weight_gradients[0][rows])
