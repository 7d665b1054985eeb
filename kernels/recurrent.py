"""rnn, lstm and gru: place after place of a sequence, each from its own features and the state before it, h'.

    h       = tanh(x Wᵀ + b + h' Rᵀ + d), or max(0, …)
    i, o, f = σ(x Wᵀ + b + h' Rᵀ + d)    g = tanh(…)                           c = f c' + i g    h = o tanh c
    z, r    = σ(x Wᵀ + b + h' Rᵀ + d)    n = tanh(x Wᵀ + b + r (h' Rᵀ + d))    h = z h' + (1 - z) n

Formulas and the order of gates are those of ONNX's operators RNN, LSTM and GRU. Elman, Finding Structure in
Time, 1990; Hochreiter and Schmidhuber, Long Short-Term Memory, 1997; Cho et al., arXiv 1406.1078.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar, Literal

from .device import array_module
from .kernel import Array, ArraySpec
from .recurrence import Gradients, Recurrent, Way

Activation = Literal["tanh", "relu"]


def _sigmoid(a: Array) -> None:
    """In place, and by tanh, which does not overflow."""
    a *= 0.5
    array_module(a).tanh(a, out=a)
    a *= 0.5
    a += 0.5


@dataclass(frozen=True, slots=True)
class RNN(Recurrent):
    """The network of Elman: the state is the curve itself, so that nothing else is kept of a place."""

    name: ClassVar[str] = "rnn"
    gates: ClassVar[int] = 1
    keeps: ClassVar[bool] = False

    activation: Activation = "tanh"

    def __post_init__(self) -> None:
        Recurrent.__post_init__(self)
        if self.activation not in ("tanh", "relu"):
            raise ValueError(f"rnn: activation is {self.activation!r}; give tanh or relu")

    def _forward(self, way: Way) -> None:
        xp = array_module(way.x)
        way.project(way.bias + way.recurrent_bias)
        (h,) = way.begin
        for place in way.places:
            sums = way.gates[:, place]
            sums += xp.matmul(h, way.recurrent_weight.T)
            h = xp.tanh(sums) if self.activation == "tanh" else xp.maximum(sums, 0)
            way.h[:, place] = h

    def _backward(self, way: Way) -> Gradients:
        xp = array_module(way.x)
        dh = way.nothing()
        for place in reversed(way.places):
            h = way.h[:, place]
            slope = 1 - h * h if self.activation == "tanh" else h > 0
            way.dsums[:, place] = (dh + way.dh[:, place]) * slope
            dh = xp.matmul(way.dsums[:, place], way.recurrent_weight)
        return Gradients(way.dsums, way.dsums, (dh,))


@dataclass(frozen=True, slots=True)
class LSTM(Recurrent):
    """Long short-term memory; gates i, o, f and g, and cells as what else is kept.

    It begins with h and c. With `cells` the output has one more place, behind the last: the cells that each
    direction ends with, for whoever goes on from there.
    """

    name: ClassVar[str] = "lstm"
    gates: ClassVar[int] = 4
    states: ClassVar[int] = 2

    cells: bool = False

    @property
    def places_behind(self) -> int:
        """One, with the cells."""
        return int(self.cells)

    def _parts(self, a: Array) -> tuple[Array, ...]:
        """Input, output and forget gate and candidates, of one place."""
        return tuple(a[:, k * self.features : (k + 1) * self.features] for k in range(4))

    def _forward(self, way: Way) -> None:
        xp = array_module(way.x)
        way.project(way.bias + way.recurrent_bias)
        h, c = way.begin
        for place in way.places:
            sums = way.gates[:, place]
            sums += xp.matmul(h, way.recurrent_weight.T)
            i, o, f, g = self._parts(sums)
            _sigmoid(sums[:, : 3 * self.features])
            xp.tanh(g, out=g)
            c = f * c + i * g
            h = o * xp.tanh(c)
            way.inner[:, place], way.h[:, place] = c, h
        if self.cells:
            way.behind[:, 0] = c

    def _backward(self, way: Way) -> Gradients:
        xp = array_module(way.x)
        cells_before = way.shifted(way.inner, way.begin[1])
        dh = way.nothing()
        dc = way.dbehind[:, 0] if self.cells else dh
        for place in reversed(way.places):
            i, o, f, g = self._parts(way.gates[:, place])
            di, do, df, dg = self._parts(way.dsums[:, place])
            bent = xp.tanh(way.inner[:, place])
            dh = dh + way.dh[:, place]
            dc = dc + dh * o * (1 - bent * bent)
            do[...] = dh * bent * o * (1 - o)
            di[...] = dc * g * i * (1 - i)
            df[...] = dc * cells_before[:, place] * f * (1 - f)
            dg[...] = dc * i * (1 - g * g)
            dh = xp.matmul(way.dsums[:, place], way.recurrent_weight)
            dc = dc * f
        return Gradients(way.dsums, way.dsums, (dh, dc))


@dataclass(frozen=True, slots=True)
class GRU(Recurrent):
    """Gated recurrent units; gates z, r and n, and as what else is kept n's part of h'.

    With `reset_after` the gate r scales h' Rᵀ + d, as in PyTorch and cuDNN; else h', as first published.
    """

    name: ClassVar[str] = "gru"
    gates: ClassVar[int] = 3

    reset_after: bool = True

    def scratch(self, *inputs: ArraySpec) -> tuple[ArraySpec, ...]:
        dsums, before = Recurrent.scratch(self, *inputs)
        return (dsums, before, dsums) if self.reset_after else (dsums, before)

    def _parts(self, a: Array) -> tuple[Array, ...]:
        """Update gate, reset gate and candidates, of one place."""
        return tuple(a[:, k * self.features : (k + 1) * self.features] for k in range(3))

    def _cut(self, a: Array) -> tuple[Array, Array]:
        """Rows of the two gates, and of the candidates."""
        return a[: 2 * self.features], a[2 * self.features :]

    def _forward(self, way: Way) -> None:
        xp = array_module(way.x)
        way.project(way.bias if self.reset_after else way.bias + way.recurrent_bias)
        of_gates, of_candidates = self._cut(way.recurrent_weight)
        two = 2 * self.features
        (h,) = way.begin
        for place in way.places:
            sums, inner = way.gates[:, place], way.inner[:, place]
            z, r, n = self._parts(sums)
            if self.reset_after:
                recurrent = xp.matmul(h, way.recurrent_weight.T) + way.recurrent_bias
                sums[:, :two] += recurrent[:, :two]
                _sigmoid(sums[:, :two])
                inner[...] = recurrent[:, two:]
                n += r * inner
            else:
                sums[:, :two] += xp.matmul(h, of_gates.T)
                _sigmoid(sums[:, :two])
                inner[...] = r * h
                n += xp.matmul(inner, of_candidates.T)
            xp.tanh(n, out=n)
            h = n + z * (h - n)
            way.h[:, place] = h

    def _backward(self, way: Way) -> Gradients:
        xp = array_module(way.x)
        before = way.shifted(way.h, way.begin[0])
        of_gates, of_candidates = self._cut(way.recurrent_weight)
        dh = way.nothing()
        for place in reversed(way.places):
            z, r, n = self._parts(way.gates[:, place])
            dz, dr, dn = self._parts(way.dsums[:, place])
            inner = way.inner[:, place]
            dh = dh + way.dh[:, place]
            dz[...] = dh * (before[:, place] - n) * z * (1 - z)
            dn[...] = dh * (1 - z) * (1 - n * n)
            if self.reset_after:
                dr[...] = dn * inner * r * (1 - r)
                recurrent = way.drecurrent[:, place]
                recurrent[...] = way.dsums[:, place]
                recurrent[:, 2 * self.features :] *= r
                dh = dh * z + xp.matmul(recurrent, way.recurrent_weight)
            else:
                dinner = xp.matmul(dn, of_candidates)
                dr[...] = dinner * before[:, place] * r * (1 - r)
                dgates = way.dsums[:, place, : 2 * self.features]
                dh = dh * z + dinner * r + xp.matmul(dgates, of_gates)
        return Gradients(way.dsums, way.drecurrent, (dh,))

    def _multiplied(self, way: Way) -> Iterable[tuple[slice, Array]]:
        if self.reset_after:
            return Recurrent._multiplied(self, way)
        two = 2 * self.features
        before = way.shifted(way.h, way.begin[0])
        return (slice(two), before), (slice(two, None), way.inner)
