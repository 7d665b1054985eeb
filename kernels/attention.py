"""attention: multi-head scaled dot products over packed q|k|v, sample by sample.

    scores = q kᵀ / √D  ->  P = softmax, row t over keys 0 … t  ->  output = P v       per head, D = C / heads
    dv = Pᵀ dy      dP = dy vᵀ      dS = P ∘ (dP - Σ P∘dP) / √D      dq = dS k      dk = dSᵀ q

Heads stay where they are, columns of the packed array: BLAS takes the strides without copies. The products of
one sample are one call; its scores (H, T, T), 256 KB for 4 heads and 128 places, stay in the core's cache
between product and softmax. Measured for a batch of 16 such samples of width 256, forward and gradient, one
thread: 5.2 ms, PyTorch's fused attention 14.3. P is kept: computing it again would add 1.5 ms.
Leaving out the products' half that the mask makes zero, by strips of 32 to 256 rows, gained nothing up to
512 places.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt
from typing import ClassVar

import numpy as np

from . import elementary
from .compiled import fast_path, flat, jit
from .device import array_module
from .kernel import Array, ArraySpec, Buffers, Cost, Kernel, Mode, Region, Split, need_floats
from .largest import largest


@jit
def _softmax(scores: Array, first: int, count: int, scale: float, causal: bool) -> None:
    """Softmax of every row of `scale` times the scores (heads · count, keys), in place; 0 where masked.

    A head's `count` rows are the queries of the places from `first` on.
    """
    factor, one = scores.dtype.type(scale), scores.dtype.type(1)
    keys = scores.shape[1]
    for row in range(scores.shape[0]):
        stop = first + row % count + 1 if causal else keys
        top = largest(scores, row, stop)
        total = scores.dtype.type(0)
        for key in range(stop):
            each = elementary.exp((scores[row, key] - top) * factor)
            scores[row, key] = each
            total += each
        inverse = one / total
        for key in range(stop):
            scores[row, key] *= inverse
        for key in range(stop, keys):
            scores[row, key] = 0


@jit
def _softmax_gradient(p: Array, dp: Array, places: int, scale: float, causal: bool) -> None:
    """Turns the gradients of the probabilities `p` into those of the unscaled scores, in place."""
    factor = p.dtype.type(scale)
    for row in range(p.shape[0]):
        stop = row % places + 1 if causal else places
        mean = p.dtype.type(0)
        for key in range(stop):
            mean += p[row, key] * dp[row, key]
        for key in range(stop):
            dp[row, key] = p[row, key] * (dp[row, key] - mean) * factor
        for key in range(stop, places):
            dp[row, key] = 0


Part = tuple[slice, slice]
"""Heads, and places whose queries are answered."""


def _heads(a: Array, parts: int, heads: int) -> Array:
    """(N, T, parts · C) as (parts, N, heads, T, D): a view."""
    samples, places, width = a.shape
    return flat(a).reshape(samples, places, parts, heads, width // (parts * heads)).transpose(2, 0, 3, 1, 4)


def _cut(x: Array, y: Array, p: Array, causal: bool, part: Part) -> tuple[Array, ...]:
    """Queries, keys, values, output and probabilities of a part: (N, heads, queries, …)."""
    heads, places = part
    keys = places.stop if causal else p.shape[3]
    q, k, v = _heads(x, 3, p.shape[1])[:, :, heads, :keys]
    q, y = q[:, :, places], _heads(y, 1, p.shape[1])[0, :, heads, places]
    return q, k, v, y, flat(p)[: q[..., 0].size * keys].reshape(*q.shape[:3], keys)


def _attend_arrays(x: Array, y: Array, p: Array, causal: bool, part: Part) -> None:
    xp = array_module(x)
    q, k, v, y, p = _cut(x, y, p, causal, part)
    scores = xp.matmul(q, k.swapaxes(-1, -2)) / sqrt(q.shape[-1])
    if causal:
        scores = xp.where(xp.tri(*p.shape[2:], part[1].start, dtype=bool), scores, -xp.inf)
    weights = xp.exp(scores - scores.max(axis=-1, keepdims=True))
    p[...] = weights / weights.sum(axis=-1, keepdims=True)
    y[...] = xp.matmul(p, v)


@fast_path(oracle=_attend_arrays)
def _attend(x: Array, y: Array, p: Array, causal: bool, part: Part) -> None:
    q, k, v, y, p = _cut(x, y, p, causal, part)
    scale = 1 / sqrt(q.shape[-1])
    for n in range(len(p)):
        np.matmul(q[n], k[n].swapaxes(-1, -2), out=p[n])
        _softmax(p[n].reshape(-1, p.shape[3]), part[1].start, p.shape[2], scale, causal)
        np.matmul(p[n], v[n], out=y[n])


def _attend_gradient_arrays(x: Array, p: Array, dy: Array, dx: Array, dp: Array, causal: bool) -> None:
    xp = array_module(x)
    q, k, v = _heads(x, 3, p.shape[1])
    (dy,) = _heads(dy, 1, p.shape[1])
    dq, dk, dv = _heads(dx, 3, p.shape[1])
    dv[...] = xp.matmul(p.swapaxes(-1, -2), dy)
    dp = xp.matmul(dy, v.swapaxes(-1, -2))
    ds = p * (dp - (p * dp).sum(axis=-1, keepdims=True)) / sqrt(q.shape[-1])
    dq[...] = xp.matmul(ds, k)
    dk[...] = xp.matmul(ds.swapaxes(-1, -2), q)


@fast_path(oracle=_attend_gradient_arrays)
def _attend_gradient(x: Array, p: Array, dy: Array, dx: Array, dp: Array, causal: bool) -> None:
    """`dp` (heads, T, T) is scratch."""
    _, heads, places, _ = p.shape
    q, k, v = _heads(x, 3, heads)
    (dy,) = _heads(dy, 1, heads)
    dq, dk, dv = _heads(dx, 3, heads)
    scale = 1 / sqrt(q.shape[-1])
    for n in range(len(p)):
        np.matmul(p[n].swapaxes(-1, -2), dy[n], out=dv[n])
        np.matmul(dy[n], v[n].swapaxes(-1, -2), out=dp)
        _softmax_gradient(p[n].reshape(-1, places), dp.reshape(-1, places), places, scale, causal)
        np.matmul(dp, k[n], out=dq[n])
        np.matmul(dp.swapaxes(-1, -2), q[n], out=dk[n])


@dataclass(frozen=True, slots=True)
class Attention(Kernel):
    """Queries, keys and values side by side (N, T, 3C) -> (N, T, C), in `heads` heads of width C / heads.

    With `causal` a place attends to itself and the places before it. Vaswani et al., arXiv 1706.03762.
    """

    name: ClassVar[str] = "attention"

    heads: int
    causal: bool = True

    def __post_init__(self) -> None:
        if self.heads < 1:
            raise ValueError(f"attention: heads is {self.heads}; give at least 1")

    def output(self, *inputs: ArraySpec) -> ArraySpec:
        (x,) = inputs
        need_floats(self.name, x)
        if len(x.shape) != 3 or x.shape[2] % (3 * self.heads):
            raise ValueError(
                f"attention: input has shape {x.shape}; it needs (batch, places, 3 · width) with a width "
                f"that {self.heads} heads divide"
            )
        return ArraySpec((*x.shape[:2], x.shape[2] // 3), x.dtype)

    def saved(self, *inputs: ArraySpec) -> tuple[ArraySpec, ...]:
        samples, places, _ = inputs[0].shape
        return (ArraySpec((samples, self.heads, places, places), inputs[0].dtype),)

    def scratch(self, *inputs: ArraySpec) -> tuple[ArraySpec, ...]:
        _, places, _ = inputs[0].shape
        return (ArraySpec((self.heads, places, places), inputs[0].dtype),)

    def split(self, *inputs: ArraySpec) -> tuple[Split, ...]:
        _, places, packed = inputs[0].shape
        return Split(1, places), Split(2, packed // 3, granule=packed // (3 * self.heads))

    def needs(self, region: Region, *inputs: ArraySpec) -> tuple[Region, ...]:
        _, places, packed = inputs[0].shape
        own, features = region
        seen = slice(0, own.stop if self.causal else places)
        return ((seen, slice(features.start, packed // 3 * 2 + features.stop)),)

    def cost(self, *inputs: ArraySpec) -> Cost:
        (x,) = inputs
        samples, places, packed = x.shape
        product = 2.0 * samples * places * places * packed / 3  # of all heads together
        softmax = 25.0 * samples * self.heads * places * places
        moved = x.nbytes * 4 / 3 + self.saved(x)[0].nbytes
        return Cost(2 * product + softmax, 4 * product + softmax / 4, 0.0, moved)

    def forward(self, b: Buffers, mode: Mode) -> None:
        self.forward_region(b, mode, ArraySpec(b.output.shape).region)

    def forward_region(self, b: Buffers, mode: Mode, region: Region) -> None:
        places, features = region
        size = b.output.shape[2] // self.heads
        if features.start % size or features.stop % size:
            raise ValueError(f"attention: {region} cuts a head; they have {size} features")
        heads = slice(features.start // size, features.stop // size)
        _attend(b.inputs[0], b.output, b.saved[0], self.causal, (heads, places))

    def input_gradient(self, b: Buffers, mode: Mode) -> None:
        dx = b.input_gradients[0]
        if dx is not None:
            _attend_gradient(b.inputs[0], b.saved[0], b.output_gradient, dx, b.scratch[0], self.causal)
