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

from .cells import gru_place, gru_place_gradient, lstm_place, lstm_place_gradient, parts, sigmoid
from .device import array_module
from .kernel import Array, ArraySpec
from .recurrence import Gradients, Recurrent, Way

Activation = Literal["tanh", "relu"]


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

    def _forward(self, way: Way) -> None:
        xp = array_module(way.x)
        way.project(way.bias + way.recurrent_bias)
        h, c = (each.copy() for each in way.begin)
        for place in way.places:
            lstm_place(way.gates, place, xp.matmul(h, way.recurrent_weight.T), c, h)
            way.inner[:, place], way.h[:, place] = c, h
        if self.cells:
            way.behind[:, 0] = c

    def _backward(self, way: Way) -> Gradients:
        xp = array_module(way.x)
        cells_before = way.shifted(way.inner, way.begin[1])
        dh = way.nothing()
        dc = way.dbehind[:, 0].copy() if self.cells else way.nothing()
        for place in reversed(way.places):
            dh += way.dh[:, place]
            lstm_place_gradient(way.gates, way.inner, cells_before, place, dh, dc, way.dsums)
            dh = xp.matmul(way.dsums[:, place], way.recurrent_weight)
        return Gradients(way.dsums, way.dsums, (dh, dc))


@dataclass(frozen=True, slots=True)
class GRU(Recurrent):
    """Gated recurrent units; gates z, r and n, and as what else is kept n's part of h'.

    With `reset_after` the gate r scales h' Rᵀ + d, as in PyTorch and cuDNN; else h', as first published.
    """

    name: ClassVar[str] = "gru"
    gates: ClassVar[int] = 3

    reset_after: bool = True

    def gradient_scratch(self, *inputs: ArraySpec) -> tuple[ArraySpec, ...]:
        dsums, before = Recurrent.gradient_scratch(self, *inputs)
        return (dsums, before, dsums) if self.reset_after else (dsums, before)

    def _cut(self, a: Array) -> tuple[Array, Array]:
        """Rows of the two gates, and of the candidates."""
        return a[: 2 * self.features], a[2 * self.features :]

    def _forward(self, way: Way) -> None:
        xp = array_module(way.x)
        way.project(way.bias if self.reset_after else way.bias + way.recurrent_bias)
        of_gates, of_candidates = self._cut(way.recurrent_weight)
        two = 2 * self.features
        h = way.begin[0].copy()
        for place in way.places:
            if self.reset_after:
                recurrent = xp.matmul(h, way.recurrent_weight.T) + way.recurrent_bias
                gru_place(way.gates, way.inner, place, recurrent, h)
            else:
                sums, inner = way.gates[:, place], way.inner[:, place]
                z, r, n = parts(sums, 3)
                sums[:, :two] += xp.matmul(h, of_gates.T)
                sigmoid(sums[:, :two])
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
            dh += way.dh[:, place]
            if self.reset_after:
                gru_place_gradient(way.gates, way.inner, before, place, dh, way.dsums, way.drecurrent)
                dh += xp.matmul(way.drecurrent[:, place], way.recurrent_weight)
            else:
                z, r, n = parts(way.gates[:, place], 3)
                dz, dr, dn = parts(way.dsums[:, place], 3)
                dz[...] = dh * (before[:, place] - n) * z * (1 - z)
                dn[...] = dh * (1 - z) * (1 - n * n)
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
