"""relu, gelu, tanh, sigmoid, softplus and dropout: element by element, one compiled pass over memory each.

Gradients come from the output where it tells enough (relu, tanh, sigmoid), else from the input (gelu,
softplus), and dropout's from a counter alone: its mask is computed again instead of kept.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from . import elementary
from .compiled import compiled, flat
from .device import array_module, erf
from .kernel import Array, ArraySpec, Buffers, Cost, Kernel, Mode, Region, Split, need_floats
from .region import on_copies, part


@dataclass(frozen=True, slots=True)
class Elementwise(Kernel):
    """A kernel whose output has its input's shape and whose every element depends on one element."""

    flops: ClassVar[tuple[float, float]]
    """Operations an element, forward and gradient."""

    def output(self, *inputs: ArraySpec) -> ArraySpec:
        need_floats(self.name, *inputs)
        return inputs[0]

    def split(self, *inputs: ArraySpec) -> tuple[Split, ...]:
        return tuple(Split(axis, extent) for axis, extent in enumerate(inputs[0].shape) if axis > 0)

    def needs(self, region: Region, *inputs: ArraySpec) -> tuple[Region, ...]:
        return (region,)

    def forward_region(self, b: Buffers, mode: Mode, region: Region) -> None:
        on_copies(self, b, mode, region)

    def cost(self, *inputs: ArraySpec) -> Cost:
        (x,) = inputs
        return Cost(self.flops[0] * x.size, self.flops[1] * x.size, 0.0, 2.0 * x.nbytes)


def _relu_arrays(x: Array, y: Array) -> None:
    array_module(x).maximum(x, 0, out=y)


@compiled(oracle=_relu_arrays)
def _relu(x: Array, y: Array) -> None:
    zero = x.dtype.type(0)
    for i in range(x.size):
        y[i] = zero if x[i] < zero else x[i]  # this way round NaN stays NaN


def _relu_gradient_arrays(y: Array, dy: Array, dx: Array) -> None:
    array_module(y).multiply(dy, y > 0, out=dx)


@compiled(oracle=_relu_gradient_arrays)
def _relu_gradient(y: Array, dy: Array, dx: Array) -> None:
    zero = y.dtype.type(0)
    for i in range(y.size):
        dx[i] = dy[i] if y[i] > zero else zero


@dataclass(frozen=True, slots=True)
class ReLU(Elementwise):
    """max(x, 0); its gradient at 0 is 0."""

    name: ClassVar[str] = "relu"
    flops: ClassVar[tuple[float, float]] = (1.0, 1.0)

    def forward(self, b: Buffers, mode: Mode) -> None:
        _relu(flat(b.inputs[0]), flat(b.output))

    def forward_region(self, b: Buffers, mode: Mode, region: Region) -> None:
        _relu_arrays(part(b.inputs[0], region), part(b.output, region))

    def input_gradient(self, b: Buffers, mode: Mode) -> None:
        if b.input_gradients[0] is not None:
            _relu_gradient(flat(b.output), flat(b.output_gradient), flat(b.input_gradients[0]))


def _tanh_arrays(x: Array, y: Array) -> None:
    array_module(x).tanh(x, out=y)


@compiled(oracle=_tanh_arrays)
def _tanh(x: Array, y: Array) -> None:
    for i in range(x.size):
        y[i] = elementary.tanh(x[i])


def _tanh_gradient_arrays(y: Array, dy: Array, dx: Array) -> None:
    array_module(y).multiply(dy, 1 - y * y, out=dx)


@compiled(oracle=_tanh_gradient_arrays)
def _tanh_gradient(y: Array, dy: Array, dx: Array) -> None:
    one = y.dtype.type(1)
    for i in range(y.size):
        dx[i] = dy[i] * (one - y[i] * y[i])


@dataclass(frozen=True, slots=True)
class Tanh(Elementwise):
    """The hyperbolic tangent."""

    name: ClassVar[str] = "tanh"
    flops: ClassVar[tuple[float, float]] = (24.0, 3.0)

    def forward(self, b: Buffers, mode: Mode) -> None:
        _tanh(flat(b.inputs[0]), flat(b.output))

    def input_gradient(self, b: Buffers, mode: Mode) -> None:
        if b.input_gradients[0] is not None:
            _tanh_gradient(flat(b.output), flat(b.output_gradient), flat(b.input_gradients[0]))


def _sigmoid_arrays(x: Array, y: Array) -> None:
    y[...] = 0.5 * array_module(x).tanh(0.5 * x) + 0.5  # the same function, and exp cannot overflow


@compiled(oracle=_sigmoid_arrays)
def _sigmoid(x: Array, y: Array) -> None:
    one = x.dtype.type(1)
    for i in range(x.size):
        y[i] = one / (one + elementary.exp(-x[i]))


def _sigmoid_gradient_arrays(y: Array, dy: Array, dx: Array) -> None:
    array_module(y).multiply(dy, y * (1 - y), out=dx)


@compiled(oracle=_sigmoid_gradient_arrays)
def _sigmoid_gradient(y: Array, dy: Array, dx: Array) -> None:
    one = y.dtype.type(1)
    for i in range(y.size):
        dx[i] = dy[i] * (y[i] * (one - y[i]))


@dataclass(frozen=True, slots=True)
class Sigmoid(Elementwise):
    """1 / (1 + exp(-x))."""

    name: ClassVar[str] = "sigmoid"
    flops: ClassVar[tuple[float, float]] = (20.0, 3.0)

    def forward(self, b: Buffers, mode: Mode) -> None:
        _sigmoid(flat(b.inputs[0]), flat(b.output))

    def input_gradient(self, b: Buffers, mode: Mode) -> None:
        if b.input_gradients[0] is not None:
            _sigmoid_gradient(flat(b.output), flat(b.output_gradient), flat(b.input_gradients[0]))


def _softplus_arrays(x: Array, y: Array) -> None:
    array_module(x).logaddexp(x, x.dtype.type(0), out=y)


@compiled(oracle=_softplus_arrays)
def _softplus(x: Array, y: Array) -> None:
    zero = x.dtype.type(0)
    for i in range(x.size):
        y[i] = (zero if x[i] < zero else x[i]) + math.log1p(elementary.exp(-abs(x[i])))


def _softplus_gradient_arrays(x: Array, dy: Array, dx: Array) -> None:
    xp = array_module(x)
    xp.divide(dy, 1 + xp.exp(xp.minimum(-x, 80)), out=dx)  # beyond 88, float32 is infinite


@compiled(oracle=_softplus_gradient_arrays)
def _softplus_gradient(x: Array, dy: Array, dx: Array) -> None:
    one = x.dtype.type(1)
    for i in range(x.size):
        dx[i] = dy[i] / (one + elementary.exp(-x[i]))


@dataclass(frozen=True, slots=True)
class Softplus(Elementwise):
    """log(1 + exp(x)), a smooth ReLU. Dugas and others, NIPS 2000."""

    name: ClassVar[str] = "softplus"
    flops: ClassVar[tuple[float, float]] = (40.0, 20.0)

    def forward(self, b: Buffers, mode: Mode) -> None:
        _softplus(flat(b.inputs[0]), flat(b.output))

    def input_gradient(self, b: Buffers, mode: Mode) -> None:
        if b.input_gradients[0] is not None:
            _softplus_gradient(flat(b.inputs[0]), flat(b.output_gradient), flat(b.input_gradients[0]))


_ROOT_HALF = math.sqrt(0.5)
_NORMAL_DENSITY = 1 / math.sqrt(2 * math.pi)  # the normal density at 0
_TANH_SCALE = math.sqrt(2 / math.pi)
_TANH_CUBIC = 0.044715
_TANH_FLAT = 13.0  # from here on the slope is 1, or 0: of 1e20 its two factors were infinite and 0


def _gelu_arrays(x: Array, y: Array) -> None:
    y[...] = 0.5 * x * (1 + erf(x * _ROOT_HALF))


@compiled(oracle=_gelu_arrays)
def _gelu(x: Array, y: Array) -> None:
    one, half, root_half = x.dtype.type(1), x.dtype.type(0.5), x.dtype.type(_ROOT_HALF)
    for i in range(x.size):
        y[i] = half * x[i] * (one + elementary.erf(x[i] * root_half))


def _gelu_gradient_arrays(x: Array, dy: Array, dx: Array) -> None:
    density = _NORMAL_DENSITY * array_module(x).exp(-0.5 * x * x)
    dx[...] = dy * (0.5 * (1 + erf(x * _ROOT_HALF)) + x * density)


@compiled(oracle=_gelu_gradient_arrays)
def _gelu_gradient(x: Array, dy: Array, dx: Array) -> None:
    one, half, root_half = x.dtype.type(1), x.dtype.type(0.5), x.dtype.type(_ROOT_HALF)
    density = x.dtype.type(_NORMAL_DENSITY)
    for i in range(x.size):
        below = half * (one + elementary.erf(x[i] * root_half))
        dx[i] = dy[i] * (below + x[i] * density * elementary.exp(-half * x[i] * x[i]))


def _gelu_tanh_arrays(x: Array, y: Array) -> None:
    y[...] = 0.5 * x * (1 + array_module(x).tanh(_TANH_SCALE * (x + _TANH_CUBIC * x * x * x)))


@compiled(oracle=_gelu_tanh_arrays)
def _gelu_tanh(x: Array, y: Array) -> None:
    one, cubic = x.dtype.type(1), x.dtype.type(_TANH_CUBIC)
    minus_double = x.dtype.type(-2 * _TANH_SCALE)
    for i in range(x.size):
        v = x[i]
        # (1 + tanh u) / 2 = 1 / (1 + exp(-2u)), which keeps its precision where tanh u is near -1
        y[i] = v / (one + elementary.exp(minus_double * v * (one + cubic * v * v)))


def _gelu_tanh_gradient_arrays(x: Array, dy: Array, dx: Array) -> None:
    t = array_module(x).tanh(_TANH_SCALE * (x + _TANH_CUBIC * x * x * x))
    near = array_module(x).clip(x, -_TANH_FLAT, _TANH_FLAT)
    slope = _TANH_SCALE * (1 + 3 * _TANH_CUBIC * near * near)
    dx[...] = dy * 0.5 * (1 + t + near * (1 - t * t) * slope)


@compiled(oracle=_gelu_tanh_gradient_arrays)
def _gelu_tanh_gradient(x: Array, dy: Array, dx: Array) -> None:
    one, cubic = x.dtype.type(1), x.dtype.type(_TANH_CUBIC)
    double, three_cubic = x.dtype.type(2 * _TANH_SCALE), x.dtype.type(3 * _TANH_CUBIC)
    flat_from = x.dtype.type(_TANH_FLAT)
    for i in range(x.size):
        v = min(max(x[i], -flat_from), flat_from)
        s = one / (one + elementary.exp(-double * v * (one + cubic * v * v)))
        dx[i] = dy[i] * (s + v * s * (one - s) * double * (one + three_cubic * v * v))


@dataclass(frozen=True, slots=True)
class GELU(Elementwise):
    """x Φ(x), Φ the normal distribution function, or its tanh form (Hendrycks and Gimpel 2016)."""

    name: ClassVar[str] = "gelu"
    flops: ClassVar[tuple[float, float]] = (28.0, 50.0)

    approximate: Literal["none", "tanh"] = "none"

    def __post_init__(self) -> None:
        if self.approximate not in ("none", "tanh"):
            raise ValueError(f'gelu: approximate is {self.approximate!r}; give "none" or "tanh"')

    def forward(self, b: Buffers, mode: Mode) -> None:
        function = _gelu if self.approximate == "none" else _gelu_tanh
        function(flat(b.inputs[0]), flat(b.output))

    def input_gradient(self, b: Buffers, mode: Mode) -> None:
        function = _gelu_gradient if self.approximate == "none" else _gelu_tanh_gradient
        if b.input_gradients[0] is not None:
            function(flat(b.inputs[0]), flat(b.output_gradient), flat(b.input_gradients[0]))


# SplitMix64 (Steele, Lea and Flood 2014): number i of stream s is mix(s + i * _GAMMA).
_GAMMA, _MIX_1, _MIX_2 = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB
_WORD = 2**64 - 1


def random_stream(seed: int, key: int) -> int:
    """The 64-bit start of the random stream of this seed (step and micro-batch) and key (node)."""

    def mix(z: int) -> int:
        z = (z ^ (z >> 30)) * _MIX_1 & _WORD
        z = (z ^ (z >> 27)) * _MIX_2 & _WORD
        return z ^ (z >> 31)

    return mix((mix((seed + _GAMMA) & _WORD) + key * _GAMMA) & _WORD)


def _drop_arrays(x: Array, y: Array, stream: np.uint64, limit: np.uint64, scale: float) -> None:
    xp = array_module(x)
    z = xp.arange(x.size, dtype=xp.uint64) * np.uint64(_GAMMA) + stream
    z = (z ^ (z >> np.uint64(30))) * np.uint64(_MIX_1)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(_MIX_2)
    keep = ((z ^ (z >> np.uint64(31))) >> np.uint64(32)) < limit
    y[...] = xp.where(keep, x * scale, x.dtype.type(0))


@compiled(oracle=_drop_arrays)
def _drop(x: Array, y: Array, stream: np.uint64, limit: np.uint64, scale: float) -> None:
    zero = x.dtype.type(0)
    for i in range(x.size):
        z = np.uint64(i) * np.uint64(_GAMMA) + stream
        z = (z ^ (z >> np.uint64(30))) * np.uint64(_MIX_1)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(_MIX_2)
        keep = ((z ^ (z >> np.uint64(31))) >> np.uint64(32)) < limit
        y[i] = x[i] * scale if keep else zero


@dataclass(frozen=True, slots=True)
class Dropout(Elementwise):
    """Zero each element with probability `rate` and divide the rest by 1 - rate; outside training, copy.

    Element i of the micro-batch's array is kept where the upper half of number i in the SplitMix64 stream of
    (mode.seed, b.key) is below (1 - rate) * 2**32: the same on every device and rank.
    """

    name: ClassVar[str] = "dropout"
    flops: ClassVar[tuple[float, float]] = (12.0, 12.0)

    rate: float

    def __post_init__(self) -> None:
        if not 0 <= self.rate < 1:
            raise ValueError(f"dropout: rate is {self.rate}; it must be at least 0 and below 1")

    def _apply(self, x: Array, y: Array, b: Buffers, mode: Mode) -> None:
        if not mode.training or self.rate == 0:
            y[...] = x
            return
        limit = np.uint64(round((1 - self.rate) * 2**32))
        stream = np.uint64(random_stream(mode.seed, b.key))
        _drop(flat(x), flat(y), stream, limit, x.dtype.type(1 / (1 - self.rate)))

    def forward(self, b: Buffers, mode: Mode) -> None:
        self._apply(b.inputs[0], b.output, b, mode)

    def forward_region(self, b: Buffers, mode: Mode, region: Region) -> None:
        self._apply(part(b.inputs[0], region), part(b.output, region), b, mode)

    def input_gradient(self, b: Buffers, mode: Mode) -> None:
        if b.input_gradients[0] is not None:
            self._apply(b.output_gradient, b.input_gradients[0], b, mode)
