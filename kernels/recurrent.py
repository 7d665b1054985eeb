"""lstm and gru: place after place of a sequence, each from its own features and the state before it, h'.

    i, o, f = σ(x Wᵀ + b + h' Rᵀ + d)    g = tanh(…)                           c = f c' + i g    h = o tanh c
    z, r    = σ(x Wᵀ + b + h' Rᵀ + d)    n = tanh(x Wᵀ + b + r (h' Rᵀ + d))    h = z h' + (1 - z) n

x Wᵀ + b is one product for all places, as are the gradients of x, W and R; the products with R alone wait for
each other, one a place. Backwards a loop from the last place to the first finds the gradients of the sums in
the curves, of which the others follow. Both gradients begin with it, for each may be computed by itself.

Formulas and the order of gates are those of ONNX's operators LSTM and GRU. Hochreiter and Schmidhuber, Long
Short-Term Memory, 1997; Cho et al., arXiv 1406.1078.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from math import sqrt
from typing import ClassVar, Literal

from .blas import product
from .compiled import flat
from .device import array_module
from .kernel import Array, ArraySpec, Buffers, Cost, Kernel, Mode, ParameterSpec, Region, Split, need_floats
from .region import keep_whole

Direction = Literal["forward", "reverse", "bidirectional"]

REVERSED: dict[str, tuple[bool, ...]] = {
    "forward": (False,),
    "reverse": (True,),
    "bidirectional": (False, True),
}
"""Of each direction whether its last place comes first."""


@dataclass(frozen=True, slots=True)
class _Way:
    """One direction of a call: arrays (sequences, places, …), its own parameters, and workspace."""

    places: range  # in the order of computing
    x: Array
    h: Array
    dh: Array  # what the output's gradient says of h; none in a forward call
    gates: Array
    inner: Array  # what else a kernel keeps of a place, `features` wide
    weight: Array
    recurrent_weight: Array
    bias: Array | float
    recurrent_bias: Array | float
    dsums: Array  # workspace: gradients of the sums of which the gates are made,
    drecurrent: Array  # of their recurrent parts, where those are others, and
    before: Array  # what was there one place earlier, `features` wide

    def project(self, bias: Array | float) -> None:
        """`gates` becomes x Wᵀ + bias, at all places."""
        x, sums = _rows(self.x), _rows(self.gates)
        product(x, self.weight.T, sums, of=x.size * sums.shape[1])
        sums += bias

    def state(self) -> Array:
        """That before the first place, and the gradient of the one behind the last: zeros."""
        return array_module(self.h).zeros((self.h.shape[0], self.h.shape[2]), self.h.dtype)

    def shifted(self, a: Array) -> Array:
        """`before` with what `a` has one place earlier; 0 at the first."""
        step = self.places.step
        self.before[:, self.places[0]] = 0
        self.before[:, ::step][:, 1:] = a[:, ::step][:, :-1]
        return self.before


def _rows(a: Array) -> Array:
    """A view of `a` with every axis but the last as one."""
    return flat(a).reshape(-1, a.shape[-1])


def _sequences(a: Array) -> Array:
    """A view (sequences, places, width) of (N, …, places, width)."""
    return flat(a).reshape(-1, *a.shape[-2:])


def _sigmoid(a: Array) -> None:
    """In place, and by tanh, which does not overflow."""
    a *= 0.5
    array_module(a).tanh(a, out=a)
    a *= 0.5
    a += 0.5


@dataclass(frozen=True, slots=True)
class Recurrent(Kernel):
    """(N, …, places, in) -> (N, …, places, features), or of both directions twice as many, side by side.

    The states before the first place are 0. Parameters have an axis of directions in front.
    """

    gates: ClassVar[int]

    features: int
    direction: Direction = "forward"
    bias: bool = True

    def __post_init__(self) -> None:
        if self.features < 1:
            raise ValueError(f"{self.name}: features is {self.features}; give at least 1")
        if self.direction not in REVERSED:
            raise ValueError(f"{self.name}: direction is {self.direction!r}; give {', '.join(REVERSED)}")

    @abstractmethod
    def _forward(self, way: _Way) -> None:
        """Write `h`, `gates` and `inner`."""

    @abstractmethod
    def _backward(self, way: _Way) -> tuple[Array, Array]:
        """The gradients of the gates' sums, and of the recurrent parts of these: (…, gates · features)."""

    def _multiplied(self, way: _Way) -> Iterable[tuple[slice, Array]]:
        """Rows of the recurrent weights, and the values at all places with which they are multiplied."""
        return ((slice(None), way.shifted(way.h)),)

    def output(self, *inputs: ArraySpec) -> ArraySpec:
        (x,) = inputs
        need_floats(self.name, x)
        if len(x.shape) < 3:
            raise ValueError(
                f"{self.name}: input has shape {x.shape}; it needs axes of batch, places and features"
            )
        return ArraySpec((*x.shape[:-1], len(REVERSED[self.direction]) * self.features), x.dtype)

    def parameters(self, *inputs: ArraySpec) -> tuple[ParameterSpec, ...]:
        rows = len(REVERSED[self.direction]), self.gates * self.features
        bound = 1 / sqrt(self.features)  # as PyTorch draws them
        weights = (
            ParameterSpec("weight", (*rows, inputs[0].shape[-1]), "uniform", bound),
            ParameterSpec("recurrent_weight", (*rows, self.features), "uniform", bound),
        )
        names = ("bias", "recurrent_bias") if self.bias else ()
        return (*weights, *(ParameterSpec(name, rows, "zeros", decay=False) for name in names))

    def saved(self, *inputs: ArraySpec) -> tuple[ArraySpec, ...]:
        *lead, _ = inputs[0].shape
        widths = self.gates * self.features, self.features
        one = tuple(ArraySpec((*lead, width), inputs[0].dtype) for width in widths)
        return one * len(REVERSED[self.direction])

    def scratch(self, *inputs: ArraySpec) -> tuple[ArraySpec, ...]:
        gates, inner, *_ = self.saved(*inputs)
        return gates, gates, inner

    def split(self, *inputs: ArraySpec) -> tuple[Split, ...]:
        directions = len(REVERSED[self.direction])
        if directions == 1:
            return ()
        return (Split(len(inputs[0].shape) - 1, directions * self.features, granule=self.features),)

    def cost(self, *inputs: ArraySpec) -> Cost:
        (x,) = inputs
        y = self.output(x)
        across = 2.0 * y.size * self.gates * x.shape[-1]
        along = 2.0 * y.size * self.gates * self.features
        curves = 30.0 * y.size * self.gates
        kept, weights = sum(each.nbytes for each in self.saved(x)), sum(p.size for p in self.parameters(x))
        moved = float(x.nbytes + y.nbytes + 2 * kept + 4 * weights)
        return Cost(across + along + curves, across + along + curves, across + 2 * along + curves, moved)

    def forward(self, b: Buffers, mode: Mode) -> None:
        self.forward_region(b, mode, ArraySpec(b.output.shape).region)

    def forward_region(self, b: Buffers, mode: Mode, region: Region) -> None:
        keep_whole(self, region, b.output, *range(1, b.output.ndim - 1))
        own = region[-1]
        if own.start % self.features or own.stop % self.features:
            raise ValueError(f"{self.name}: {own} cuts a direction, of {self.features} features")
        for number in range(own.start // self.features, own.stop // self.features):
            self._forward(self._way(b, number))

    def input_gradient(self, b: Buffers, mode: Mode) -> None:
        dx = b.input_gradients[0]
        if dx is None:
            return
        dx, xp = _rows(dx), array_module(dx)
        for number, way in enumerate(self._ways(b)):
            dsums = _rows(self._backward(way)[0])
            if number:
                dx += xp.matmul(dsums, way.weight)
            else:
                product(dsums, way.weight, dx, of=dx.size * dsums.shape[1])

    def weight_gradient(self, b: Buffers, mode: Mode) -> None:
        for number, way in enumerate(self._ways(b)):
            dweight, drecurrent, *dbiases = (each[number] for each in b.weight_gradients)
            dsums, along = map(_rows, self._backward(way))
            product(dsums.T, _rows(way.x), dweight, of=dweight.size * len(dsums))
            for rows, values in self._multiplied(way):
                product(along[:, rows].T, _rows(values), drecurrent[rows], of=drecurrent.size * len(along))
            for sums, dbias in zip((dsums, along), dbiases, strict=bool(dbiases)):
                array_module(dbias).sum(sums, axis=0, out=dbias)

    def _ways(self, b: Buffers) -> Iterator[_Way]:
        return (self._way(b, number) for number in range(len(REVERSED[self.direction])))

    def _way(self, b: Buffers, number: int) -> _Way:
        own = slice(number * self.features, (number + 1) * self.features)
        x, h = _sequences(b.inputs[0]), _sequences(b.output)[..., own]
        order = range(x.shape[1])
        gates, inner = map(_sequences, b.saved[2 * number : 2 * number + 2])
        dsums, drecurrent, before = map(_sequences, b.scratch)
        weight, recurrent_weight, *biases = (each[number] for each in b.parameters)
        return _Way(
            places=order[::-1] if REVERSED[self.direction][number] else order,
            x=x,
            h=h,
            dh=None if b.output_gradient is None else _sequences(b.output_gradient)[..., own],
            gates=gates,
            inner=inner,
            weight=weight,
            recurrent_weight=recurrent_weight,
            bias=biases[0] if biases else 0.0,
            recurrent_bias=biases[1] if biases else 0.0,
            dsums=dsums,
            drecurrent=drecurrent,
            before=before,
        )


@dataclass(frozen=True, slots=True)
class LSTM(Recurrent):
    """Long short-term memory; gates i, o, f and g, and cells as what else is kept."""

    name: ClassVar[str] = "lstm"
    gates: ClassVar[int] = 4

    def _parts(self, a: Array) -> tuple[Array, ...]:
        """Input, output and forget gate and candidates, of one place."""
        return tuple(a[:, k * self.features : (k + 1) * self.features] for k in range(4))

    def _forward(self, way: _Way) -> None:
        xp = array_module(way.x)
        way.project(way.bias + way.recurrent_bias)
        h = c = way.state()
        for place in way.places:
            sums = way.gates[:, place]
            sums += xp.matmul(h, way.recurrent_weight.T)
            i, o, f, g = self._parts(sums)
            _sigmoid(sums[:, : 3 * self.features])
            xp.tanh(g, out=g)
            c = f * c + i * g
            h = o * xp.tanh(c)
            way.inner[:, place], way.h[:, place] = c, h

    def _backward(self, way: _Way) -> tuple[Array, Array]:
        xp = array_module(way.x)
        cells_before = way.shifted(way.inner)
        dh = dc = way.state()
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
        return way.dsums, way.dsums


@dataclass(frozen=True, slots=True)
class GRU(Recurrent):
    """Gated recurrent units; gates z, r and n, and as what else is kept n's part of h'.

    With `reset_after` the gate r scales h' Rᵀ + d, as in PyTorch and cuDNN; else h', as first published.
    """

    name: ClassVar[str] = "gru"
    gates: ClassVar[int] = 3

    reset_after: bool = True

    def _parts(self, a: Array) -> tuple[Array, ...]:
        """Update gate, reset gate and candidates, of one place."""
        return tuple(a[:, k * self.features : (k + 1) * self.features] for k in range(3))

    def _cut(self, a: Array) -> tuple[Array, Array]:
        """Rows of the two gates, and of the candidates."""
        return a[: 2 * self.features], a[2 * self.features :]

    def _forward(self, way: _Way) -> None:
        xp = array_module(way.x)
        way.project(way.bias if self.reset_after else way.bias + way.recurrent_bias)
        of_gates, of_candidates = self._cut(way.recurrent_weight)
        two = 2 * self.features
        h = way.state()
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

    def _backward(self, way: _Way) -> tuple[Array, Array]:
        xp = array_module(way.x)
        before = way.shifted(way.h)
        of_gates, of_candidates = self._cut(way.recurrent_weight)
        dh = way.state()
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
        return way.dsums, way.drecurrent if self.reset_after else way.dsums

    def _multiplied(self, way: _Way) -> Iterable[tuple[slice, Array]]:
        if self.reset_after:
            return Recurrent._multiplied(self, way)
        two = 2 * self.features
        return (slice(two), way.shifted(way.h)), (slice(two, None), way.inner)
