"""batch_norm: every channel less its mean over the micro-batch, over its deviation; then weight and bias.
instance_norm: the same of every sample by itself.

    x̂ = (x - mean) · r,   r = 1 / √(variance + ε)       y = x̂ · weight + bias      (N, C, …): a mean a channel
    dx = r · weight · (dy - mean dy - x̂ · mean(dy x̂))

Training uses the micro-batch's own statistics, inference the running ones. These are parameters of role
"statistic": the weight gradient writes the micro-batch's mean and unbiased variance (the one PyTorch keeps)
times `mode.share` into their slots, so that the sum over micro-batches and ranks is the batch's average.

Loops see (N, C, S), S the pixels of a channel, and pass over memory once in its order. S = 1, a dense layer's
output, has loops of its own, along the channels: along one pixel they would not vectorise.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from .compiled import compiled, flat
from .device import array_module
from .kernel import Array, ArraySpec, Buffers, Cost, Kernel, Mode, ParameterSpec, Region, Split, need_floats
from .region import keep_whole, on_copies


def _moments_arrays(x: Array, mean: Array, variance: Array) -> None:
    mean[...] = x.mean(axis=(0, 2))
    variance[...] = x.var(axis=(0, 2))


@compiled(oracle=_moments_arrays)
def _moments(x: Array, mean: Array, variance: Array) -> None:
    """Mean and (biased) variance of every channel, merged sample by sample (Chan, Golub and LeVeque 1979)."""
    number = x.dtype.type
    samples, channels, pixels = x.shape
    mean[:] = 0
    variance[:] = 0
    for n in range(samples):
        first = n == 0  # of which the way from 0 is no deviation: its square of 1e20 is infinite
        fresh = number(1) / number(n + 1)
        apart = number(n) * number(pixels) * fresh
        if pixels == 1:
            for c in range(channels):
                step = x[n, c, 0] - mean[c]
                mean[c] += step * fresh
                variance[c] += number(0) if first else step * step * apart
            continue
        for c in range(channels):
            total = number(0)
            for s in range(pixels):
                total += x[n, c, s]
            middle = total / number(pixels)
            total = number(0)
            for s in range(pixels):
                total += (x[n, c, s] - middle) * (x[n, c, s] - middle)
            step = middle - mean[c]
            mean[c] += step * fresh
            variance[c] += total if first else total + step * step * apart
    for c in range(channels):
        variance[c] /= number(samples * pixels)


def _normalise_arrays(x: Array, mean: Array, r: Array, weight: Array, bias: Array, y: Array) -> None:
    y[...] = (x - mean[:, None]) * (r * weight)[:, None] + bias[:, None]


@compiled(oracle=_normalise_arrays)
def _normalise(x: Array, mean: Array, r: Array, weight: Array, bias: Array, y: Array) -> None:
    samples, channels, pixels = x.shape
    for n in range(samples):
        if pixels == 1:
            for c in range(channels):
                y[n, c, 0] = (x[n, c, 0] - mean[c]) * r[c] * weight[c] + bias[c]
            continue
        for c in range(channels):
            middle, factor, shift = mean[c], r[c] * weight[c], bias[c]
            for s in range(pixels):
                y[n, c, s] = (x[n, c, s] - middle) * factor + shift


def _weight_gradient_arrays(x: Array, mean: Array, r: Array, dy: Array, dweight: Array, dbias: Array) -> None:
    dweight[...] = (dy * (x - mean[:, None]) * r[:, None]).sum(axis=(0, 2))
    dbias[...] = dy.sum(axis=(0, 2))


@compiled(oracle=_weight_gradient_arrays)
def _weight_gradient(x: Array, mean: Array, r: Array, dy: Array, dweight: Array, dbias: Array) -> None:
    number = x.dtype.type
    samples, channels, pixels = x.shape
    dweight[:] = 0
    dbias[:] = 0
    for n in range(samples):
        if pixels == 1:
            for c in range(channels):
                dweight[c] += dy[n, c, 0] * (x[n, c, 0] - mean[c])
                dbias[c] += dy[n, c, 0]
            continue
        for c in range(channels):
            middle, along, level = mean[c], number(0), number(0)
            for s in range(pixels):
                along += dy[n, c, s] * (x[n, c, s] - middle)
                level += dy[n, c, s]
            dweight[c] += along
            dbias[c] += level
    for c in range(channels):
        dweight[c] *= r[c]


def _input_gradient_arrays(
    x: Array, mean: Array, r: Array, weight: Array, along: Array, level: Array, dy: Array, dx: Array
) -> None:
    normal = (x - mean[:, None]) * r[:, None]
    dx[...] = (dy - level[:, None] - normal * along[:, None]) * (r * weight)[:, None]


@compiled(oracle=_input_gradient_arrays)
def _input_gradient(
    x: Array, mean: Array, r: Array, weight: Array, along: Array, level: Array, dy: Array, dx: Array
) -> None:
    """`level` and `along` are the means over the channel of dy and of dy · x̂."""
    samples, channels, pixels = x.shape
    for n in range(samples):
        if pixels == 1:
            for c in range(channels):
                slope = along[c] * r[c]
                dx[n, c, 0] = (dy[n, c, 0] - level[c] - (x[n, c, 0] - mean[c]) * slope) * r[c] * weight[c]
            continue
        for c in range(channels):
            middle, constant, slope, factor = mean[c], level[c], along[c] * r[c], r[c] * weight[c]
            for s in range(pixels):
                dx[n, c, s] = (dy[n, c, s] - constant - (x[n, c, s] - middle) * slope) * factor


def _channels(a: Array) -> Array:
    """(N, C, …) as (N, C, S): a view."""
    return flat(a).reshape(*a.shape[:2], -1)


@dataclass(frozen=True, slots=True)
class BatchNorm(Kernel):
    """Normalises the channels of (N, C, …). Ioffe and Szegedy, arXiv 1502.03167.

    `momentum` is how far the running statistics move towards a batch's. A channel with a single value in the
    micro-batch has variance 0, also as unbiased.
    """

    name: ClassVar[str] = "batch_norm"

    epsilon: float = 1e-5
    momentum: float = 0.1

    def __post_init__(self) -> None:
        if not self.epsilon > 0.0:
            raise ValueError(f"batch_norm: epsilon is {self.epsilon}; it is above 0")
        if not 0.0 <= self.momentum <= 1.0:
            raise ValueError(f"batch_norm: momentum is {self.momentum}; it lies between 0 and 1")

    def output(self, *inputs: ArraySpec) -> ArraySpec:
        (x,) = inputs
        need_floats(self.name, x)
        if len(x.shape) < 2:
            raise ValueError(f"batch_norm: input has shape {x.shape}; it needs batch and channel axes")
        return x

    def parameters(self, *inputs: ArraySpec) -> tuple[ParameterSpec, ...]:
        channels, momentum = inputs[0].shape[1:2], self.momentum
        return (
            ParameterSpec("weight", channels, "ones", decay=False),
            ParameterSpec("bias", channels, "zeros", decay=False),
            ParameterSpec(
                "running_mean", channels, "zeros", role="statistic", decay=False, momentum=momentum
            ),
            ParameterSpec(
                "running_variance", channels, "ones", role="statistic", decay=False, momentum=momentum
            ),
        )

    def saved(self, *inputs: ArraySpec) -> tuple[ArraySpec, ...]:
        (x,) = inputs
        return (ArraySpec(x.shape[1:2], x.dtype),) * 3  # mean, variance, r

    def scratch(self, *inputs: ArraySpec) -> tuple[ArraySpec, ...]:
        (x,) = inputs
        return (ArraySpec(x.shape[1:2], x.dtype),) * 2

    def split(self, *inputs: ArraySpec) -> tuple[Split, ...]:
        return (Split(1, inputs[0].shape[1], weight_axis=0),)

    def needs(self, region: Region, *inputs: ArraySpec) -> tuple[Region, ...]:
        return (region,)

    def forward_region(self, b: Buffers, mode: Mode, region: Region) -> None:
        on_copies(self, b, mode, region)

    def cost(self, *inputs: ArraySpec) -> Cost:
        (x,) = inputs
        return Cost(7.0 * x.size, 9.0 * x.size, 4.0 * x.size, 3.0 * x.nbytes)

    def forward(self, b: Buffers, mode: Mode) -> None:
        x = _channels(b.inputs[0])
        weight, bias, running_mean, running_variance = b.parameters
        mean, variance, r = b.saved
        if mode.training:
            _moments(x, mean, variance)
        else:
            mean[...] = running_mean
            variance[...] = running_variance
        r[...] = (variance + self.epsilon) ** -0.5
        _normalise(x, mean, r, weight, bias, _channels(b.output))

    def input_gradient(self, b: Buffers, mode: Mode) -> None:
        if b.input_gradients[0] is None:
            return
        x, dy, dx = _channels(b.inputs[0]), _channels(b.output_gradient), _channels(b.input_gradients[0])
        mean, _, r = b.saved
        along, level = b.scratch
        if mode.training:
            _weight_gradient(x, mean, r, dy, along, level)
            along *= x.shape[1] / x.size
            level *= x.shape[1] / x.size
        else:  # the statistics do not depend on x
            along.fill(0)
            level.fill(0)
        _input_gradient(x, mean, r, b.parameters[0], along, level, dy, dx)

    def weight_gradient(self, b: Buffers, mode: Mode) -> None:
        x, dy = _channels(b.inputs[0]), _channels(b.output_gradient)
        mean, variance, r = b.saved
        dweight, dbias, mean_slot, variance_slot = b.weight_gradients
        _weight_gradient(x, mean, r, dy, dweight, dbias)
        count = x.shape[0] * x.shape[2]
        mean_slot[...] = mean * mode.share
        variance_slot[...] = variance * (mode.share * count / max(1, count - 1))


def _instances(a: Array) -> Array:
    """(N, C, …) as (1, N · C, S): a sample's channels are channels of their own; a view."""
    return flat(a).reshape(1, a.shape[0] * a.shape[1], -1)


@dataclass(frozen=True, slots=True)
class InstanceNorm(Kernel):
    """Normalises each channel of each sample of (N, C, …). Ulyanov, Vedaldi, Lempitsky, arXiv 1607.08022.

    There are no running statistics. Without `affine` no weight and bias either.
    """

    name: ClassVar[str] = "instance_norm"

    epsilon: float = 1e-5
    affine: bool = True

    def __post_init__(self) -> None:
        if not self.epsilon > 0.0:
            raise ValueError(f"instance_norm: epsilon is {self.epsilon}; it is above 0")

    def output(self, *inputs: ArraySpec) -> ArraySpec:
        (x,) = inputs
        need_floats(self.name, x)
        if len(x.shape) < 3:
            raise ValueError(
                f"instance_norm: input has shape {x.shape}; it needs axes behind batch and channels"
            )
        return x

    def parameters(self, *inputs: ArraySpec) -> tuple[ParameterSpec, ...]:
        channels = inputs[0].shape[1:2]
        both = (
            ParameterSpec("weight", channels, "ones", decay=False),
            ParameterSpec("bias", channels, "zeros", decay=False),
        )
        return both if self.affine else ()

    def saved(self, *inputs: ArraySpec) -> tuple[ArraySpec, ...]:
        return (self._each(inputs[0]),) * 2  # mean, r

    def scratch(self, *inputs: ArraySpec) -> tuple[ArraySpec, ...]:
        return (self._each(inputs[0]),) * 2

    def _each(self, x: ArraySpec) -> ArraySpec:
        return ArraySpec((x.shape[0] * x.shape[1],), x.dtype)

    def split(self, *inputs: ArraySpec) -> tuple[Split, ...]:
        return (Split(1, inputs[0].shape[1], weight_axis=0 if self.affine else None),)

    def needs(self, region: Region, *inputs: ArraySpec) -> tuple[Region, ...]:
        return (region,)

    def forward_region(self, b: Buffers, mode: Mode, region: Region) -> None:
        keep_whole(self, region, b.output, *range(2, b.output.ndim))
        on_copies(self, b, mode, region)

    def cost(self, *inputs: ArraySpec) -> Cost:
        (x,) = inputs
        return Cost(7.0 * x.size, 9.0 * x.size, 4.0 * x.size if self.affine else 0.0, 3.0 * x.nbytes)

    def _weights(self, b: Buffers) -> tuple[Array, Array]:
        """Weight and bias of every sample's channels."""
        x, xp = b.inputs[0], array_module(b.inputs[0])
        if self.affine:
            weight, bias = b.parameters
            return xp.tile(weight, x.shape[0]), xp.tile(bias, x.shape[0])
        count = x.shape[0] * x.shape[1]
        return xp.ones(count, x.dtype), xp.zeros(count, x.dtype)

    def forward(self, b: Buffers, mode: Mode) -> None:
        x, (mean, r), (weight, bias) = _instances(b.inputs[0]), b.saved, self._weights(b)
        _moments(x, mean, r)
        r[...] = (r + self.epsilon) ** -0.5
        _normalise(x, mean, r, weight, bias, _instances(b.output))

    def _sums(self, b: Buffers) -> tuple[Array, Array]:
        """The sums of dy · x̂ and of dy over every sample's channels, in scratch."""
        (mean, r), (along, level) = b.saved, b.scratch
        _weight_gradient(_instances(b.inputs[0]), mean, r, _instances(b.output_gradient), along, level)
        return along, level

    def input_gradient(self, b: Buffers, mode: Mode) -> None:
        dx = b.input_gradients[0]
        if dx is None:
            return
        x, (mean, r), (along, level) = _instances(b.inputs[0]), b.saved, self._sums(b)
        along /= x.shape[2]
        level /= x.shape[2]
        dy, weight = _instances(b.output_gradient), self._weights(b)[0]
        _input_gradient(x, mean, r, weight, along, level, dy, _instances(dx))

    def weight_gradient(self, b: Buffers, mode: Mode) -> None:
        if self.affine:
            for gradient, each in zip(b.weight_gradients, self._sums(b), strict=True):
                gradient[...] = each.reshape(b.output.shape[:2]).sum(axis=0)
