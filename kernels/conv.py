"""conv2d: convolution as matrix products over unrolled windows, a few images at a time.

    columns (C KH KW, n OH OW)   each column the input under one output pixel's window (im2col)
    forward          weight (O, C KH KW) x columns               -> (O, n OH OW)
    input gradient   weightᵀ x output gradient (O, n OH OW)      -> columns, added into the image (col2im)
    weight gradient  Σ over images  columns x output gradientᵀ   -> (C KH KW, O), transposed at the end

Columns are unrolled again for the weight gradient instead of kept: 38 us for an image of 32 x 28 x 28 where
its product takes 150 us, and one block of them stays in the cache. Groups are a leading axis of products.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache
from math import sqrt
from typing import ClassVar

import numpy as np

from .compiled import fast_path, flat, jit, unsigned
from .device import array_module
from .geometry import Extents, Window
from .kernel import Array, ArraySpec, Buffers, Cost, Kernel, Mode, ParameterSpec, Split

# A product wants many columns: (64, 576) x (576, n) runs at 94 GFLOP/s for n = 16, 112 for 64, 119 for 256, and a
# block's Python costs about 10 us. So small images go several at a time, large ones singly, straight to their
# place in the output.
_COLUMNS_WANTED = 512
_COLUMNS_BYTES = 4 << 20


@dataclass(frozen=True, slots=True)
class Conv2d(Kernel):
    """Cross-correlation of (N, C, H, W) with `channels` filters -> (N, channels, OH, OW).

    weight (channels, C / groups, KH, KW), bias (channels). Extents are one number or (height, width); padding
    also (top, left, bottom, right).
    """

    name: ClassVar[str] = "conv2d"

    channels: int
    kernel_size: Extents
    stride: Extents = 1
    padding: Extents = 0
    dilation: Extents = 1
    groups: int = 1
    bias: bool = True
    window: Window = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        window = Window.of(self.name, self.kernel_size, self.stride, self.padding, self.dilation)
        for name in ("kernel_size", "stride", "padding", "dilation"):
            object.__setattr__(self, name, getattr(window, name.removesuffix("_size")))
        object.__setattr__(self, "window", window)
        if self.channels < 1 or self.groups < 1 or self.channels % self.groups:
            raise ValueError(
                f"conv2d: channels is {self.channels}, groups is {self.groups}; groups must divide channels"
            )

    def output(self, *inputs: ArraySpec) -> ArraySpec:
        (x,) = inputs
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
        plan = _plan(self, inputs[0].shape)
        sizes = (plan.columns_size, plan.packed_size, 2 * plan.weight_size)
        return tuple(ArraySpec((size,), inputs[0].dtype) for size in sizes)

    def split(self, *inputs: ArraySpec) -> tuple[Split, ...]:
        rows = self.output(*inputs).shape[2]
        # A block of output channels takes whole groups, or any channels of the only group.
        granule = self.channels // self.groups if self.groups > 1 else 1
        return Split(1, self.channels, granule, weight_axis=0), Split(2, rows)

    def cost(self, *inputs: ArraySpec) -> Cost:
        (x,) = inputs
        y = self.output(x)
        product = 2.0 * y.size * (x.shape[1] // self.groups) * self.window.size
        adds = float(y.size) if self.bias else 0.0
        weight = sum(each.size for each in self.parameters(x)) * 4.0
        return Cost(product + adds, product, product + adds, x.nbytes + y.nbytes + weight)

    def forward(self, b: Buffers, mode: Mode) -> None:
        weight, *bias = b.parameters
        _forward(b.inputs[0], weight, bias[0] if bias else None, b.output, b.scratch, self)

    def input_gradient(self, b: Buffers, mode: Mode) -> None:
        if b.input_gradients[0] is not None:
            _input_gradient(b.input_gradients[0], b.parameters[0], b.output_gradient, b.scratch, self)

    def weight_gradient(self, b: Buffers, mode: Mode, rows: slice = slice(None)) -> None:
        _weight_gradient(b.inputs[0], b.output_gradient, b.weight_gradients[0], rows, b.scratch, self)
        if self.bias:
            dy = b.output_gradient[:, rows]
            array_module(dy).sum(dy, axis=(0, 2, 3), out=b.weight_gradients[1][rows])


@dataclass(frozen=True, slots=True)
class _Plan:
    """How one layer's products are cut, for an input of one shape."""

    images: int  # in one product
    pixels: int  # of one output image
    depth: int  # elements under a window in one group: the length of a column
    outputs: int  # output channels of one group
    groups: int
    image: tuple[int, int, int]  # C, H, W
    rows: tuple[int, int]  # OH, OW
    direct: bool  # a 1x1 window that moves by 1: the image itself is its columns

    @property
    def columns_size(self) -> int:
        return 1 if self.direct else self.groups * self.depth * self.images * self.pixels

    @property
    def packed_size(self) -> int:
        return self.groups * self.outputs * self.images * self.pixels if self.images > 1 else 1

    @property
    def weight_size(self) -> int:
        return self.groups * self.outputs * self.depth


@lru_cache(maxsize=1024)
def _plan(kernel: Conv2d, shape: tuple[int, ...]) -> _Plan:
    batch, channels = shape[:2]
    window = kernel.window
    rows = window.output(kernel.name, shape)
    pixels = rows[0] * rows[1]
    depth = channels // kernel.groups * window.size
    column_bytes = 4 * channels * window.size * pixels
    images = max(1, min(batch, _COLUMNS_WANTED // pixels, _COLUMNS_BYTES // column_bytes))
    still = window.size == 1 and window.stride == (1, 1) and not any(window.padding)
    return _Plan(
        images=images,
        pixels=pixels,
        depth=depth,
        outputs=kernel.channels // kernel.groups,
        groups=kernel.groups,
        image=(channels, shape[2], shape[3]),
        rows=rows,
        direct=still and images == 1,
    )


def _columns_arrays(x: Array, kernel: Conv2d, plan: _Plan) -> Array:
    """The input under every window, as a new array (N, groups, depth, pixels)."""
    return kernel.window.gather(x).reshape(len(x), plan.groups, plan.depth, plan.pixels)


def _forward_arrays(
    x: Array, weight: Array, bias: Array | None, y: Array, scratch: tuple[Array, ...], kernel: Conv2d
) -> None:
    plan = _plan(kernel, x.shape)
    filters = weight.reshape(plan.groups, plan.outputs, plan.depth)
    y[...] = array_module(x).matmul(filters, _columns_arrays(x, kernel, plan)).reshape(y.shape)
    if bias is not None:
        y += bias[:, None, None]


@fast_path(oracle=_forward_arrays)
def _forward(
    x: Array, weight: Array, bias: Array | None, y: Array, scratch: tuple[Array, ...], kernel: Conv2d
) -> None:
    plan = _plan(kernel, x.shape)
    filters = weight.reshape(plan.groups, plan.outputs, plan.depth)
    y = y.reshape(len(x), kernel.channels, plan.pixels)
    for first in range(0, len(x), plan.images):
        block = slice(first, first + plan.images)
        columns = _unroll(x[block], scratch[0], kernel, plan)
        if plan.images == 1:
            image = y[first]
            np.matmul(filters, columns, out=image.reshape(plan.groups, plan.outputs, plan.pixels))
            if bias is not None:
                np.add(image, bias[:, None], out=image)
        else:
            product = scratch[1][: y[block].size].reshape(plan.groups, plan.outputs, -1)
            np.matmul(filters, columns, out=product)
            images = product.reshape(kernel.channels, -1, plan.pixels).transpose(1, 0, 2)
            np.add(images, 0 if bias is None else bias[:, None], out=y[block])


def _input_gradient_arrays(
    dx: Array, weight: Array, dy: Array, scratch: tuple[Array, ...], kernel: Conv2d
) -> None:
    plan = _plan(kernel, dx.shape)
    filters = weight.reshape(plan.groups, plan.outputs, plan.depth).transpose(0, 2, 1)
    gradient = dy.reshape(len(dx), plan.groups, plan.outputs, plan.pixels)
    columns = array_module(dx).matmul(filters, gradient)
    kernel.window.scatter(columns.reshape(*dx.shape[:2], *kernel.window.kernel, *plan.rows), dx)


@fast_path(oracle=_input_gradient_arrays)
def _input_gradient(dx: Array, weight: Array, dy: Array, scratch: tuple[Array, ...], kernel: Conv2d) -> None:
    plan = _plan(kernel, dx.shape)
    filters = weight.reshape(plan.groups, plan.outputs, plan.depth).transpose(0, 2, 1)
    for first in range(0, len(dx), plan.images):
        images = dx[first : first + plan.images]
        gradient = _pack(dy[first : first + plan.images], scratch[1], plan, plan.groups)
        if plan.direct:
            np.matmul(filters, gradient, out=images.reshape(plan.groups, plan.depth, plan.pixels))
        else:
            columns = scratch[0][: len(images) * (plan.columns_size // plan.images)]
            np.matmul(filters, gradient, out=columns.reshape(plan.groups, plan.depth, -1))
            _col2im(columns, flat(images), _geometry(len(images), kernel, plan))


def _weight_gradient_arrays(
    x: Array, dy: Array, dw: Array, rows: slice, scratch: tuple[Array, ...], kernel: Conv2d
) -> None:
    plan = _plan(kernel, x.shape)
    groups = _groups(rows, kernel)
    columns = _columns_arrays(x, kernel, plan)[:, groups].transpose(1, 2, 0, 3)
    columns = columns.reshape(len(columns), plan.depth, -1)
    gradient = dy[:, rows].reshape(len(x), len(columns), -1, plan.pixels).transpose(1, 2, 0, 3)
    gradient = gradient.reshape(len(columns), -1, columns.shape[2])
    dw[rows] = array_module(x).matmul(gradient, columns.transpose(0, 2, 1)).reshape(dw[rows].shape)


@fast_path(oracle=_weight_gradient_arrays)
def _weight_gradient(
    x: Array, dy: Array, dw: Array, rows: slice, scratch: tuple[Array, ...], kernel: Conv2d
) -> None:
    plan = _plan(kernel, x.shape)
    groups = _groups(rows, kernel)
    dw = dw[rows].reshape(groups.stop - groups.start, -1, plan.depth)
    size = dw.size
    total, partial = (
        part.reshape(dw.shape[0], plan.depth, -1) for part in (scratch[2][:size], scratch[2][size : 2 * size])
    )
    for first in range(0, len(x), plan.images):
        block = slice(first, first + plan.images)
        columns = _unroll(x[block], scratch[0], kernel, plan)[groups]
        gradient = _pack(dy[block, rows], scratch[1], plan, len(dw))
        # Columns first: (288, 784) x (784, 64) runs at 199 GFLOP/s, (64, 784) x (784, 288) at 128.
        np.matmul(columns, gradient.transpose(0, 2, 1), out=partial if first else total)
        if first:
            np.add(total, partial, out=total)
    np.copyto(dw, total.transpose(0, 2, 1))


def _groups(rows: slice, kernel: Conv2d) -> slice:
    """The groups that the output channels `rows` belong to."""
    if kernel.groups == 1:
        return slice(0, 1)
    outputs = kernel.channels // kernel.groups
    start, stop, _ = rows.indices(kernel.channels)
    if start % outputs or stop % outputs:
        raise ValueError(f"conv2d: rows {start} to {stop} cut through a group of {outputs} output channels")
    return slice(start // outputs, stop // outputs)


def _unroll(images: Array, scratch: Array, kernel: Conv2d, plan: _Plan) -> Array:
    """Columns of a block of images: (groups, depth, n * pixels)."""
    if plan.direct:
        return images.reshape(plan.groups, plan.depth, plan.pixels)
    columns = scratch[: len(images) * (plan.columns_size // plan.images)]
    _im2col(flat(images), columns, _geometry(len(images), kernel, plan))
    return columns.reshape(plan.groups, plan.depth, -1)


def _pack(images: Array, scratch: Array, plan: _Plan, groups: int) -> Array:
    """Output gradients (n, channels, OH, OW) with images side by side: (groups, outputs, n * pixels)."""
    if plan.images == 1:
        return images.reshape(groups, -1, plan.pixels)
    n, channels = images.shape[:2]
    packed = scratch[: images.size].reshape(channels, n, plan.pixels)
    np.copyto(packed, images.reshape(n, channels, plan.pixels).transpose(1, 0, 2))
    return packed.reshape(groups, -1, n * plan.pixels)


def _geometry(images: int, kernel: Conv2d, plan: _Plan) -> tuple[int, ...]:
    top, left, _bottom, _right = kernel.window.padding
    window = kernel.window
    return (images, *plan.image, *plan.rows, *window.kernel, *window.stride, top, left, *window.dilation)


@jit
def _im2col(x: Array, columns: Array, geometry: tuple[int, ...]) -> None:
    """columns (C, KH, KW, n, OH, OW) from x (n, C, H, W), both flat."""
    (images, channels, height, width, rows, row_pixels) = geometry[:6]
    (kh, kw, stride_h, stride_w, top, left, dilation_h, dilation_w) = geometry[6:]
    zero = x.dtype.type(0)
    for c in range(channels):
        for i in range(kh):
            for j in range(kw):
                # Output columns first..last look inside the image, at shift + column * stride.
                shift = j * dilation_w - left
                first = min(row_pixels, max(0, -(shift // stride_w)))
                last = max(first, min(row_pixels, (width - 1 - shift) // stride_w + 1))
                for n in range(images):
                    for r in range(rows):
                        h = r * stride_h - top + i * dilation_h
                        to = ((((c * kh + i) * kw + j) * images + n) * rows + r) * row_pixels
                        if h < 0 or h >= height:
                            for q in range(row_pixels):
                                columns[unsigned(to + q)] = zero
                            continue
                        at = ((n * channels + c) * height + h) * width + shift
                        for q in range(first):
                            columns[unsigned(to + q)] = zero
                        if stride_w == 1:  # apart, for contiguous loads
                            for q in range(first, last):
                                columns[unsigned(to + q)] = x[unsigned(at + q)]
                        else:
                            for q in range(first, last):
                                columns[unsigned(to + q)] = x[unsigned(at + q * stride_w)]
                        for q in range(last, row_pixels):
                            columns[unsigned(to + q)] = zero


@jit
def _col2im(columns: Array, x: Array, geometry: tuple[int, ...]) -> None:
    """x (n, C, H, W): the sum over windows of columns (C, KH, KW, n, OH, OW), both flat."""
    (images, channels, height, width, rows, row_pixels) = geometry[:6]
    (kh, kw, stride_h, stride_w, top, left, dilation_h, dilation_w) = geometry[6:]
    x[:] = 0
    for c in range(channels):
        for i in range(kh):
            for j in range(kw):
                shift = j * dilation_w - left
                first = min(row_pixels, max(0, -(shift // stride_w)))
                last = max(first, min(row_pixels, (width - 1 - shift) // stride_w + 1))
                for n in range(images):
                    for r in range(rows):
                        h = r * stride_h - top + i * dilation_h
                        if h < 0 or h >= height:
                            continue
                        at = ((((c * kh + i) * kw + j) * images + n) * rows + r) * row_pixels
                        to = ((n * channels + c) * height + h) * width + shift
                        if stride_w == 1:
                            for q in range(first, last):
                                x[unsigned(to + q)] += columns[unsigned(at + q)]
                        else:
                            for q in range(first, last):
                                x[unsigned(to + q * stride_w)] += columns[unsigned(at + q)]
