"""conv2d and conv2d_add: kernels and their array-module body, products over unrolled windows (im2col).

On a CPU direct.py computes it without unrolling.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from math import sqrt
from typing import ClassVar

import numpy as np

from . import direct, pointwise
from .compiled import fast_path
from .conv_blocks import CHANNELS
from .conv_layout import layout, strips
from .device import array_module
from .geometry import Extents, Window
from .kernel import (
    Array,
    ArraySpec,
    Buffers,
    ByRows,
    Cost,
    Mode,
    ParameterSpec,
    Region,
    Split,
    need_floats,
    with_last,
)
from .region import images_part

# direct.py takes CHANNELS of one group at a time, and pads every image anew for each call: a 3 x 3
# convolution by 8 of its 64 or 256 channels costs 20 or 43% more than all at once, by 16 10 or 20%.
ROWS_GRANULE = 2 * CHANNELS


@dataclass(frozen=True, slots=True)
class Conv2d(ByRows):
    """Cross-correlation of (N, C, H, W) with `channels` filters -> (N, channels, OH, OW).

    weight (channels, C / groups, KH, KW), bias (channels). Extents are one number or (height, width); padding
    also (top, left, bottom, right). With `relu` the output is max(that, 0) in the same visit of memory.
    """

    name: ClassVar[str] = "conv2d"
    input_axis: ClassVar[int | None] = 1

    channels: int
    kernel_size: Extents
    stride: Extents = 1
    padding: Extents = 0
    dilation: Extents = 1
    groups: int = 1
    bias: bool = True
    relu: bool = False
    window: Window = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        Window.of(self.name, self.kernel_size, self.stride, self.padding, self.dilation).keep(self)
        if self.channels < 1 or self.groups < 1 or self.channels % self.groups:
            raise ValueError(
                f"conv2d: channels is {self.channels}, groups is {self.groups}; groups must divide channels"
            )

    def output(self, *inputs: ArraySpec) -> ArraySpec:
        x = inputs[0]
        need_floats(self.name, x)
        height, width = self.window.output(self.name, x.shape)
        if x.shape[1] % self.groups:
            raise ValueError(
                f"conv2d: {self.groups} groups do not divide the {x.shape[1]} channels of {x.shape}"
            )
        return ArraySpec((x.shape[0], self.channels, height, width), x.dtype)

    def parameters(self, *inputs: ArraySpec) -> tuple[ParameterSpec, ...]:
        shape = (self.channels, inputs[0].shape[1] // self.groups, *self.window.kernel)
        wide = shape[1] * self.window.size
        weight = ParameterSpec("weight", shape, "normal", sqrt(2 / wide))  # He et al. 2015, as dense
        bias = ParameterSpec("bias", (self.channels,), "zeros", decay=False)
        return (weight, bias) if self.bias else (weight,)

    def scratch(self, *inputs: ArraySpec) -> tuple[ArraySpec, ...]:
        x = inputs[0]
        itemsize = np.dtype(x.dtype).itemsize
        images, wide, block = layout(self.window, x.shape, self.channels, self.groups, itemsize).scratch_sizes
        if self.window.pointwise:
            least = pointwise.scratch_sizes(
                x.shape[1] // self.groups, self.channels // self.groups, x.shape[2] * x.shape[3], itemsize
            )
            images, wide = max(images, least[0]), max(wide, least[1])
        return tuple(ArraySpec((size,), x.dtype) for size in (images, wide, block))

    def split(self, *inputs: ArraySpec) -> tuple[Split, ...]:
        filters = self.channels // self.groups
        granule = ROWS_GRANULE if self.groups == 1 or filters % ROWS_GRANULE == 0 else filters
        return (
            Split(1, self.channels, granule, weight_axis=0),
            Split(2, self.output(*inputs).shape[2]),
        )

    def cost(self, *inputs: ArraySpec) -> Cost:
        x, y = inputs[0], self.output(*inputs)
        product = 2.0 * y.size * (x.shape[1] // self.groups) * self.window.size
        adds = float(y.size) if self.bias else 0.0
        weight = sum(each.size for each in self.parameters(x)) * 4.0
        return Cost(product + adds, product, product + adds, x.nbytes + y.nbytes + weight)

    def forward(self, b: Buffers, mode: Mode, rows: slice = slice(None)) -> None:
        image = slice(0, b.output.shape[2])
        _forward(b.inputs[0], self._added(b), *self._weights(b), b.output, rows, image, b.scratch, self)

    def needs(self, region: Region, *inputs: ArraySpec) -> tuple[Region, ...]:
        _, channels, height, width = inputs[0].shape
        filters, seen = self.channels // self.groups, channels // self.groups
        own, rows, _ = region
        groups = slice(own.start // filters * seen, -(-own.stop // filters) * seen)
        return ((groups, self.window.under(rows, height)[0], slice(0, width)),)

    def forward_region(self, b: Buffers, mode: Mode, region: Region) -> None:
        """Rows of the image cost what they read; every block of channels pads its rows of the image anew."""
        channels, rows = images_part(self, region, b.output)
        _forward(b.inputs[0], self._added(b), *self._weights(b), b.output, channels, rows, b.scratch, self)

    def _slope(self, b: Buffers) -> Array:
        """The gradient of what `relu` is given; a new array: the two are merged for inference."""
        return b.output_gradient * (b.output > 0) if self.relu else b.output_gradient

    def _added(self, b: Buffers) -> Array | None:
        return None

    def _weights(self, b: Buffers) -> tuple[Array, Array | None]:
        return b.parameters[0], b.parameters[1] if self.bias else None

    def input_gradient(self, b: Buffers, mode: Mode) -> None:
        if b.input_gradients[0] is not None:
            _input_gradient(b.input_gradients[0], b.parameters[0], self._slope(b), b.scratch, self)

    def weight_gradient(self, b: Buffers, mode: Mode, rows: slice = slice(None)) -> None:
        dy = self._slope(b)
        _weight_gradient(b.inputs[0], dy, b.weight_gradients[0], rows, b.scratch, self)
        if self.bias and with_last(rows, self.channels):
            array_module(dy).sum(dy, axis=(0, 2, 3), out=b.weight_gradients[1])


@dataclass(frozen=True, slots=True)
class Conv2dAdd(Conv2d):
    """conv2d onto a second input, of the output's shape: a residual network's sum, in the same visit."""

    name: ClassVar[str] = "conv2d_add"
    arity: ClassVar[int | None] = 2

    def output(self, *inputs: ArraySpec) -> ArraySpec:
        x, added = inputs
        y = Conv2d.output(self, x)
        if added != y:
            raise ValueError(f"{self.name}: {added.shape} is to be added to {y.shape}; they must be equal")
        return y

    def cost(self, *inputs: ArraySpec) -> Cost:
        found, added = Conv2d.cost(self, *inputs), inputs[1]
        return replace(
            found, forward_flops=found.forward_flops + added.size, bytes=found.bytes + added.nbytes
        )

    def needs(self, region: Region, *inputs: ArraySpec) -> tuple[Region, ...]:
        return (*Conv2d.needs(self, region, *inputs), region)

    def input_gradient(self, b: Buffers, mode: Mode) -> None:
        Conv2d.input_gradient(self, b, mode)
        if b.input_gradients[1] is not None:
            b.input_gradients[1][...] = self._slope(b)

    def _added(self, b: Buffers) -> Array | None:
        return b.inputs[1]


def _grouped_columns(x: Array, window: Window, groups: int) -> Array:
    """The input under every window, a new array (N, groups, depth, pixels)."""
    seen = window.gather(x)
    return seen.reshape(len(x), groups, -1, seen.shape[-2] * seen.shape[-1])


def _forward_arrays(
    x: Array,
    added: Array | None,
    weight: Array,
    bias: Array | None,
    y: Array,
    channels: slice,
    rows: slice,
    scratch: tuple[Array, ...],
    kernel: Conv2d,
) -> None:
    seen, window = kernel.window.under(rows, x.shape[2])
    columns = _grouped_columns(x[:, :, seen], window, kernel.groups)
    filters = weight.reshape(kernel.groups, -1, columns.shape[2])
    found = array_module(x).matmul(filters, columns).reshape(*y.shape[:2], -1, y.shape[3])
    y[:, channels, rows] = found[:, channels]
    if bias is not None:
        y[:, channels, rows] += bias[channels, None, None]
    if added is not None:
        y[:, channels, rows] += added[:, channels, rows]
    if kernel.relu:
        array_module(x).maximum(y[:, channels, rows], 0, out=y[:, channels, rows])


@fast_path(oracle=_forward_arrays)
def _forward(
    x: Array,
    added: Array | None,
    weight: Array,
    bias: Array | None,
    y: Array,
    channels: slice,
    rows: slice,
    scratch: tuple[Array, ...],
    kernel: Conv2d,
) -> None:
    window, relu = kernel.window, kernel.relu
    if x.dtype != weight.dtype:
        # direct.py and pointwise.py take every array for what the first is: of float64 images and a model's
        # float32 weights they made noise without a word, and beyond an array's end a segmentation fault.
        _forward_arrays(x, added, weight, bias, y, channels, rows, scratch, kernel)
        return
    if window.pointwise:
        part = channels, rows
        pointwise.convolve(
            x, weight, bias, y, part, scratch, window.stride, kernel.groups, added=added, relu=relu
        )
        return
    for strip in strips(window, x.shape, (rows.start, rows.stop), kernel.groups, x.itemsize):
        strip_part = strip.seen, channels, strip.rows
        direct.convolve(
            x, weight, bias, y, strip_part, scratch, strip.terms, kernel.groups, added=added, relu=relu
        )


def _input_gradient_arrays(
    dx: Array, weight: Array, dy: Array, scratch: tuple[Array, ...], kernel: Conv2d
) -> None:
    filters = weight.reshape(kernel.groups, len(weight) // kernel.groups, -1).transpose(0, 2, 1)
    gradient = dy.reshape(len(dy), kernel.groups, filters.shape[2], -1)
    columns = array_module(dx).matmul(filters, gradient)
    kernel.window.scatter(columns.reshape(*dx.shape[:2], *kernel.window.kernel, *dy.shape[2:]), dx)


@fast_path(oracle=_input_gradient_arrays)
def _input_gradient(dx: Array, weight: Array, dy: Array, scratch: tuple[Array, ...], kernel: Conv2d) -> None:
    if dx.dtype != weight.dtype:
        _input_gradient_arrays(dx, weight, dy, scratch, kernel)
        return
    plan = layout(kernel.window, dx.shape, kernel.channels, kernel.groups, dx.itemsize)
    direct.input_gradient(dx, weight, dy, scratch, plan)


def _weight_gradient_arrays(
    x: Array, dy: Array, dw: Array, rows: slice, scratch: tuple[Array, ...], kernel: Conv2d
) -> None:
    columns = _grouped_columns(x, kernel.window, kernel.groups).transpose(1, 2, 0, 3)
    columns = columns.reshape(*columns.shape[:2], -1)
    gradient = dy.reshape(len(dy), kernel.groups, -1, dy.shape[2] * dy.shape[3]).transpose(1, 2, 0, 3)
    gradient = gradient.reshape(*gradient.shape[:2], -1)
    dw[rows] = array_module(x).matmul(gradient, columns.transpose(0, 2, 1)).reshape(dw.shape)[rows]


@fast_path(oracle=_weight_gradient_arrays)
def _weight_gradient(
    x: Array, dy: Array, dw: Array, rows: slice, scratch: tuple[Array, ...], kernel: Conv2d
) -> None:
    if x.dtype != dw.dtype:
        _weight_gradient_arrays(x, dy, dw, rows, scratch, kernel)
        return
    plan = layout(kernel.window, x.shape, kernel.channels, kernel.groups, x.itemsize)
    direct.weight_gradient(x, dy, dw, rows, scratch, plan)
