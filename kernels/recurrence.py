"""What recurrent kernels share: products over all places, directions, states to begin with.

    x (N, places, in) ── x Wᵀ + b, one product for all places ──> gates ── place after place ──> h
    h', the state before each place: that to begin with, then h one place earlier

The products with R wait for each other, one a place. Backwards a loop from the last place to the first finds
the gradients of the sums in the curves; those of x, W and R follow from them by one product each. Both
gradients begin with the loop, for each may be computed by itself. (recurrent.py has the formulas.)
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
class Way:
    """One direction of a call: arrays (sequences, places, …), its own parameters, and workspace."""

    places: range  # in the order of computing
    x: Array
    h: Array
    dh: Array  # what the output's gradient says of h; none in a forward call
    behind: Array  # what the output holds behind the last place, and
    dbehind: Array  # its gradient: (sequences, 1, features); empty where it ends with the last place
    begin: tuple[Array, ...]  # the states before the first place, (sequences, features)
    gates: Array
    inner: Array  # what else a kernel keeps of a place, `features` wide; none where it keeps nothing
    weight: Array
    recurrent_weight: Array
    bias: Array | float
    recurrent_bias: Array | float
    dsums: Array  # workspace of a backward call: gradients of the sums of which the gates are made,
    before: Array  # what was there one place earlier, `features` wide, and
    drecurrent: Array  # gradients of the sums' recurrent parts, where those are others

    def project(self, bias: Array | float) -> None:
        """`gates` becomes x Wᵀ + bias, at all places."""
        x, sums = _rows(self.x), _rows(self.gates)
        product(x, self.weight.T, sums, of=x.size * sums.shape[1])
        sums += bias

    def nothing(self) -> Array:
        """The gradient of a state that nobody reads behind the last place: zeros."""
        return array_module(self.h).zeros((self.h.shape[0], self.h.shape[2]), self.h.dtype)

    def shifted(self, a: Array, first: Array) -> Array:
        """`before` with what `a` has one place earlier, and `first` at the first."""
        step = self.places.step
        self.before[:, self.places[0]] = first
        self.before[:, ::step][:, 1:] = a[:, ::step][:, :-1]
        return self.before


@dataclass(frozen=True, slots=True)
class Gradients:
    """Those of the sums in the curves, of their recurrent parts, and of the states to begin with."""

    dsums: Array  # (sequences, places, gates · features)
    drecurrent: Array
    begin: tuple[Array, ...]


def _rows(a: Array) -> Array:
    """A view of `a` with every axis but the last as one."""
    return flat(a).reshape(-1, a.shape[-1])


def _sequences(a: Array) -> Array:
    """A view (sequences, places, width) of (N, …, places, width)."""
    return flat(a).reshape(-1, *a.shape[-2:])


@dataclass(frozen=True, slots=True)
class Recurrent(Kernel):
    """(N, …, places, in) -> (N, …, places, features), or of both directions twice as many, side by side.

    Further inputs are the states before the first place, each (N, …, features), or of both directions side by
    side; without them they are 0. Parameters have an axis of directions in front.
    """

    arity: ClassVar[int | None] = None

    gates: ClassVar[int]
    states: ClassVar[int] = 1
    keeps: ClassVar[bool] = True
    """Whether there is something besides the gates to keep of each place, as wide as the state."""

    features: int
    direction: Direction = "forward"
    bias: bool = True

    def __post_init__(self) -> None:
        if self.features < 1:
            raise ValueError(f"{self.name}: features is {self.features}; give at least 1")
        if self.direction not in REVERSED:
            raise ValueError(f"{self.name}: direction is {self.direction!r}; give {', '.join(REVERSED)}")

    @abstractmethod
    def _forward(self, way: Way) -> None:
        """Write `h`, `behind`, `gates` and `inner`."""

    @abstractmethod
    def _backward(self, way: Way) -> Gradients:
        """All from which the gradients follow."""

    def _multiplied(self, way: Way) -> Iterable[tuple[slice, Array]]:
        """Rows of the recurrent weights, and the values at all places with which they are multiplied."""
        return ((slice(None), way.shifted(way.h, way.begin[0])),)

    @property
    def directions(self) -> int:
        """How many ways the places are gone through."""
        return len(REVERSED[self.direction])

    @property
    def places_behind(self) -> int:
        """How many places the output has behind the last."""
        return 0

    def output(self, *inputs: ArraySpec) -> ArraySpec:
        x, *begin = inputs
        need_floats(self.name, *inputs)
        if len(x.shape) < 3:
            raise ValueError(
                f"{self.name}: input has shape {x.shape}; it needs axes of batch, places and features"
            )
        *lead, places, _ = x.shape
        width = self.directions * self.features
        if len(begin) not in (0, self.states):
            raise ValueError(
                f"{self.name}: {len(inputs)} inputs; give 1, or {1 + self.states} with states to begin with"
            )
        for each in begin:
            if each.shape != (*lead, width):
                raise ValueError(
                    f"{self.name}: a state to begin with has shape {each.shape}; for sequences {x.shape} it "
                    f"is {(*lead, width)}"
                )
        return ArraySpec((*lead, places + self.places_behind, width), x.dtype)

    def parameters(self, *inputs: ArraySpec) -> tuple[ParameterSpec, ...]:
        rows = self.directions, self.gates * self.features
        bound = 1 / sqrt(self.features)  # as PyTorch draws them
        weights = (
            ParameterSpec("weight", (*rows, inputs[0].shape[-1]), "uniform", bound),
            ParameterSpec("recurrent_weight", (*rows, self.features), "uniform", bound),
        )
        names = ("bias", "recurrent_bias") if self.bias else ()
        return (*weights, *(ParameterSpec(name, rows, "zeros", decay=False) for name in names))

    def saved(self, *inputs: ArraySpec) -> tuple[ArraySpec, ...]:
        kept = (self._gates(inputs[0]), *[self._one(inputs[0])] * self.keeps)
        return kept * self.directions

    def gradient_scratch(self, *inputs: ArraySpec) -> tuple[ArraySpec, ...]:
        return self._gates(inputs[0]), self._one(inputs[0])

    def _gates(self, x: ArraySpec) -> ArraySpec:
        return ArraySpec((*x.shape[:-1], self.gates * self.features), x.dtype)

    def _one(self, x: ArraySpec) -> ArraySpec:
        return ArraySpec((*x.shape[:-1], self.features), x.dtype)

    def split(self, *inputs: ArraySpec) -> tuple[Split, ...]:
        if self.directions == 1:
            return ()
        return (Split(len(inputs[0].shape) - 1, self.directions * self.features, granule=self.features),)

    def cost(self, *inputs: ArraySpec) -> Cost:
        x = inputs[0]
        y = self.output(*inputs)
        across = 2.0 * y.size * self.gates * x.shape[-1]
        along = 2.0 * y.size * self.gates * self.features
        curves = 30.0 * y.size * self.gates
        kept, weights = sum(each.nbytes for each in self.saved(x)), sum(p.size for p in self.parameters(x))
        moved = float(sum(each.nbytes for each in inputs) + y.nbytes + 2 * kept + 4 * weights)
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
        dx, *dbegin = b.input_gradients
        if dx is None and all(each is None for each in dbegin):
            return
        for number, way in enumerate(self._ways(b)):
            found = self._backward(way)
            for whole, own in zip(dbegin, found.begin, strict=bool(dbegin)):
                if whole is not None:
                    self._own(_rows(whole), number)[...] = own
            if dx is None:
                continue
            rows, dsums = _rows(dx), _rows(found.dsums)
            if number:
                rows += array_module(dx).matmul(dsums, way.weight)
            else:
                product(dsums, way.weight, rows, of=dx.size * dsums.shape[1])

    def weight_gradient(self, b: Buffers, mode: Mode) -> None:
        for number, way in enumerate(self._ways(b)):
            dweight, drecurrent, *dbiases = (each[number] for each in b.weight_gradients)
            found = self._backward(way)
            dsums, along = _rows(found.dsums), _rows(found.drecurrent)
            product(dsums.T, _rows(way.x), dweight, of=dweight.size * len(dsums))
            for rows, values in self._multiplied(way):
                product(along[:, rows].T, _rows(values), drecurrent[rows], of=drecurrent.size * len(along))
            for sums, dbias in zip((dsums, along), dbiases, strict=bool(dbiases)):
                array_module(dbias).sum(sums, axis=0, out=dbias)

    def _own(self, a: Array, number: int) -> Array:
        """Of features side by side those of one direction."""
        return a[..., number * self.features : (number + 1) * self.features]

    def _ways(self, b: Buffers) -> Iterator[Way]:
        return (self._way(b, number) for number in range(self.directions))

    def _way(self, b: Buffers, number: int) -> Way:
        x = _sequences(b.inputs[0])
        sequences, places, _ = x.shape
        order = range(places)
        y = self._own(_sequences(b.output), number)
        dy = None if b.output_gradient is None else self._own(_sequences(b.output_gradient), number)
        begin = [self._own(_rows(each), number) for each in b.inputs[1:]]
        if not begin:
            begin = [array_module(x).zeros((sequences, self.features), x.dtype)] * self.states
        gates, *inner = map(_sequences, self._kept(b, number))
        dsums, before, *drecurrent = map(_sequences, b.scratch) if dy is not None else (None, None)
        weight, recurrent_weight, *biases = (each[number] for each in b.parameters)
        return Way(
            places=order[::-1] if REVERSED[self.direction][number] else order,
            x=x,
            h=y[:, :places],
            dh=None if dy is None else dy[:, :places],
            behind=y[:, places:],
            dbehind=None if dy is None else dy[:, places:],
            begin=tuple(begin),
            gates=gates,
            inner=inner[0] if inner else None,
            weight=weight,
            recurrent_weight=recurrent_weight,
            bias=biases[0] if biases else 0.0,
            recurrent_bias=biases[1] if biases else 0.0,
            dsums=dsums,
            before=before,
            drecurrent=drecurrent[0] if drecurrent else dsums,
        )

    def _kept(self, b: Buffers, number: int) -> tuple[Array, ...]:
        """Of `saved` what is one direction's."""
        each = len(b.saved) // self.directions
        return b.saved[number * each : (number + 1) * each]
