"""max_pool2d, average_pool2d and global_average_pool2d: windows over images, without weights.

The compiled loops take a row of windows at a time: first what is under it in every column, then neighbouring
columns. A shufflenet's four average pools took 4.4 ms window by window, now they take 0.2. Gradients, and max
pools that keep the winners' places for theirs, take one output pixel after the other, its window clipped to
the image.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache
from typing import ClassVar

import numpy as np

from .compiled import fast_path, flat, jit, unsigned
from .device import array_module
from .geometry import Extents, Window
from .kernel import Array, ArraySpec, Buffers, Cost, Kernel, Mode, Region, Split
from .region import images_part, on_views
from .rows import put_largest


@dataclass(frozen=True, slots=True)
class Pool2d(Kernel):
    """(N, C, H, W) -> (N, C, OH, OW); extents are one number or (height, width), padding also four sides.

    The stride is the window's size where none is given. Padding is smaller than the window, so that every
    window sees some of the image.
    """

    kernel_size: Extents
    stride: Extents | None = None
    padding: Extents = 0
    window: Window = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        stride = self.kernel_size if self.stride is None else self.stride
        window = Window.of(self.name, self.kernel_size, stride, self.padding)
        for name in ("kernel_size", "stride", "padding"):
            object.__setattr__(self, name, getattr(window, name.removesuffix("_size")))
        object.__setattr__(self, "window", window)
        if any(pad >= extent for pad, extent in zip(window.padding, 2 * window.kernel, strict=True)):
            raise ValueError(
                f"{self.name}: padding is {window.padding}; make it smaller than the window {window.kernel}"
            )

    def output(self, *inputs: ArraySpec) -> ArraySpec:
        (x,) = inputs
        height, width = self.window.output(self.name, x.shape)
        return ArraySpec((*x.shape[:2], height, width), x.dtype)

    def scratch(self, *inputs: ArraySpec) -> tuple[ArraySpec, ...]:
        (x,) = inputs  # a row of the padded image, and its even and its odd columns
        width = x.shape[3] + self.window.padding[1] + self.window.padding[3]
        return (ArraySpec((-(-(width + 16) // 128) * 256,), x.dtype),)  # the last vector reaches further

    def split(self, *inputs: ArraySpec) -> tuple[Split, ...]:
        _, channels, height, _ = self.output(*inputs).shape
        return Split(1, channels), Split(2, height)

    def needs(self, region: Region, *inputs: ArraySpec) -> tuple[Region, ...]:
        _, _, height, width = inputs[0].shape
        channels, rows, _ = region
        return ((channels, self.window.under(rows, height)[0], slice(0, width)),)

    def cost(self, *inputs: ArraySpec) -> Cost:
        (x,) = inputs
        y = self.output(x)
        work = float(y.size * self.window.size)
        return Cost(work, work, 0.0, float(x.nbytes + y.nbytes))


@dataclass(frozen=True, slots=True)
class MaxPool2d(Pool2d):
    """The largest element under each window; where several are, the first takes the gradient."""

    name: ClassVar[str] = "max_pool2d"

    def saved(self, *inputs: ArraySpec) -> tuple[ArraySpec, ...]:
        # The winner's position within its window: a byte an output where the window has at most 256 elements.
        return (ArraySpec(self.output(*inputs).shape, "uint8" if self.window.size <= 256 else "int32"),)

    def forward(self, b: Buffers, mode: Mode) -> None:
        if mode.training:
            _max(b.inputs[0], b.output, b.saved[0], self.window)
        else:
            self.forward_region(b, mode, ArraySpec(b.output.shape).region)

    def forward_region(self, b: Buffers, mode: Mode, region: Region) -> None:
        part = images_part(self, region, b.output)
        _max_alone(b.inputs[0], b.output, part, b.scratch[0], self.window)

    def input_gradient(self, b: Buffers, mode: Mode) -> None:
        if b.input_gradients[0] is not None:
            _max_gradient(b.input_gradients[0], b.output_gradient, b.saved[0], self.window)


@dataclass(frozen=True, slots=True)
class AveragePool2d(Pool2d):
    """The mean under each window: of the image's elements or, with `count_include_pad`, padding too."""

    name: ClassVar[str] = "average_pool2d"

    count_include_pad: bool = False

    def forward(self, b: Buffers, mode: Mode) -> None:
        self.forward_region(b, mode, ArraySpec(b.output.shape).region)

    def forward_region(self, b: Buffers, mode: Mode, region: Region) -> None:
        part = images_part(self, region, b.output)
        _average(b.inputs[0], b.output, part, b.scratch[0], self.window, self.count_include_pad)

    def input_gradient(self, b: Buffers, mode: Mode) -> None:
        if b.input_gradients[0] is not None:
            _average_gradient(b.input_gradients[0], b.output_gradient, self.window, self.count_include_pad)


@dataclass(frozen=True, slots=True)
class GlobalAveragePool2d(Kernel):
    """The mean of each channel's image: (N, C, H, W) -> (N, C)."""

    name: ClassVar[str] = "global_average_pool2d"

    def output(self, *inputs: ArraySpec) -> ArraySpec:
        (x,) = inputs
        if len(x.shape) != 4:
            raise ValueError(
                f"{self.name}: input has shape {x.shape}; it needs axes (N, channels, height, width)"
            )
        return ArraySpec(x.shape[:2], x.dtype)

    def split(self, *inputs: ArraySpec) -> tuple[Split, ...]:
        return (Split(1, inputs[0].shape[1]),)

    def cost(self, *inputs: ArraySpec) -> Cost:
        (x,) = inputs
        return Cost(float(x.size), float(x.size), 0.0, float(x.nbytes + self.output(x).nbytes))

    def needs(self, region: Region, *inputs: ArraySpec) -> tuple[Region, ...]:
        return ((*region, *inputs[0].region[1:]),)

    def forward_region(self, b: Buffers, mode: Mode, region: Region) -> None:
        on_views(self, b, mode, region)

    def forward(self, b: Buffers, mode: Mode) -> None:
        x, y = b.inputs[0], b.output
        xp = array_module(x)
        xp.sum(x.reshape(*y.shape, -1), axis=2, out=y)
        xp.divide(y, x.shape[2] * x.shape[3], out=y)

    def input_gradient(self, b: Buffers, mode: Mode) -> None:
        dx, dy = b.input_gradients[0], b.output_gradient
        if dx is not None:
            pixels = dx.shape[2] * dx.shape[3]
            array_module(dx).divide(dy[:, :, None], pixels, out=dx.reshape(*dy.shape, -1))


def _max_arrays(x: Array, y: Array, winners: Array, window: Window) -> None:
    seen = window.gather(x, outside=-float("inf")).reshape(*x.shape[:2], window.size, *y.shape[2:])
    winners[...] = seen.argmax(axis=2)
    y[...] = seen.max(axis=2)


@fast_path(oracle=_max_arrays)
def _max(x: Array, y: Array, winners: Array, window: Window) -> None:
    arguments = (flat(x), flat(y), flat(winners), _sizes(x, y))
    if window.kernel == window.stride == (2, 2) and not any(window.padding):
        _max_2x2_loop(*arguments)
    else:
        _max_loop(*arguments, _moves(window))


@jit
def _max_loop(x: Array, y: Array, winners: Array, sizes: tuple[int, ...], moves: tuple[int, ...]) -> None:
    planes, height, width, rows, columns = sizes
    kh, kw, stride_h, stride_w, top, left = moves
    for p in range(planes):
        for r in range(rows):
            h = r * stride_h - top
            for q in range(columns):
                w = q * stride_w - left
                first_i, first_j = max(0, -h), max(0, -w)
                best = x[unsigned((p * height + h + first_i) * width + w + first_j)]
                winner = first_i * kw + first_j
                for i in range(first_i, min(kh, height - h)):
                    at = (p * height + h + i) * width + w
                    for j in range(first_j, min(kw, width - w)):
                        value = x[unsigned(at + j)]
                        if value > best or value != value:  # NaN wins, so that it shows
                            best = value
                            winner = i * kw + j
                to = (p * rows + r) * columns + q
                y[unsigned(to)] = best
                winners[unsigned(to)] = winner


@jit
def _max_2x2_loop(x: Array, y: Array, winners: Array, sizes: tuple[int, ...]) -> None:
    """The commonest window by itself: 0.4 ms for 64 x 64 x 28 x 28 where the loop above takes 7.2."""
    planes, height, width, rows, columns = sizes
    for p in range(planes):
        for r in range(rows):
            at = (p * height + 2 * r) * width
            to = (p * rows + r) * columns
            for q in range(columns):
                best = x[unsigned(at + 2 * q)]
                winner = 0
                for i in range(2):
                    for j in range(2):
                        value = x[unsigned(at + i * width + 2 * q + j)]
                        better = (value > best) | (value != value)
                        best = value if better else best
                        winner = 2 * i + j if better else winner
                y[unsigned(to + q)] = best
                winners[unsigned(to + q)] = winner


Part = tuple[slice, slice]
"""Channels and rows of the output."""


def _max_alone_arrays(x: Array, y: Array, part: Part, row: Array, window: Window) -> None:
    channels, rows = part
    seen, own = window.under(rows, x.shape[2])
    y[:, channels, rows] = own.gather(x[:, channels, seen], outside=-float("inf")).max(axis=(2, 3))


@fast_path(oracle=_max_alone_arrays)
def _max_alone(x: Array, y: Array, part: Part, row: Array, window: Window) -> None:
    offsets = _offsets(window, x.shape[3], len(row))
    _max_alone_loop(flat(x), flat(y), row, *offsets, _sizes(x, y), _bounds(x, part), _moves(window))


@jit
def _max_alone_loop(
    x: Array,
    y: Array,
    row: Array,
    down: Array,
    across: Array,
    sizes: tuple[int, ...],
    bounds: tuple[int, ...],
    moves: tuple[int, ...],
) -> None:
    """`row` holds the largest of every column under a row of windows; then its even, then its odd ones.

    `across` says where in `row` what the columns of a window see begins, `down` where its rows do in x.
    """
    planes, height, width, rows, columns = sizes
    channels, first_c, last_c, first_r, last_r = bounds
    kh, kw, stride_h, stride_w, top, left = moves
    half = len(row) // 4
    row[:] = -np.inf
    own = last_c - first_c
    for k in range(planes // channels * own):
        p = k // own * channels + first_c + k % own
        for r in range(first_r, last_r):
            h = r * stride_h - top
            first, last = max(0, -h), min(kh, height - h)
            put_largest(x, (p * height + h) * width, down, first, last, row, left, width, True)
            to = (p * rows + r) * columns
            if stride_w > 2:
                for q in range(columns):
                    best = row[unsigned(q * stride_w)]
                    for j in range(1, kw):
                        value = row[unsigned(q * stride_w + j)]
                        best = value if (value > best) | (value != value) else best  # NaN wins, too
                    y[unsigned(to + q)] = best
                continue
            if stride_w == 2:
                for i in range(half):  # whole vectors
                    row[unsigned(2 * half + i)] = row[unsigned(2 * i)]
                    row[unsigned(3 * half + i)] = row[unsigned(2 * i + 1)]
            put_largest(row, 0, across, 0, kw, y, to, columns, False)


@lru_cache
def _offsets(window: Window, width: int, row: int) -> tuple[Array, Array]:
    """`down` and `across` of `_max_alone_loop`, for rows of the image and of scratch of these lengths."""
    down, places = np.arange(window.kernel[0]) * width, np.arange(window.kernel[1])
    if window.stride[1] == 2:
        places = row // 4 * (2 + places % 2) + places // 2
    return down, places


def _max_gradient_arrays(dx: Array, dy: Array, winners: Array, window: Window) -> None:
    places = array_module(dx).arange(window.size).reshape(*window.kernel, 1, 1)
    window.scatter(dy[:, :, None, None] * (winners[:, :, None, None] == places), dx)


@fast_path(oracle=_max_gradient_arrays)
def _max_gradient(dx: Array, dy: Array, winners: Array, window: Window) -> None:
    _max_gradient_loop(flat(dx), flat(dy), flat(winners), _sizes(dx, dy), _moves(window))


@jit
def _max_gradient_loop(
    dx: Array, dy: Array, winners: Array, sizes: tuple[int, ...], moves: tuple[int, ...]
) -> None:
    planes, height, width, rows, columns = sizes
    _kh, kw, stride_h, stride_w, top, left = moves
    zero = dx.dtype.type(0)
    for p in range(planes):
        for k in range(height * width):
            dx[unsigned(p * height * width + k)] = zero
        for r in range(rows):
            for q in range(columns):
                at = (p * rows + r) * columns + q
                winner = int(winners[unsigned(at)])
                h = r * stride_h - top + winner // kw
                w = q * stride_w - left + winner % kw
                dx[unsigned((p * height + h) * width + w)] += dy[unsigned(at)]


def _counts(x: Array, window: Window, count_include_pad: bool) -> Array:
    """How many elements each window averages, broadcast against the output."""
    if count_include_pad:
        return window.size
    return window.gather(array_module(x).ones((1, 1, *x.shape[2:]), x.dtype)).sum(axis=(2, 3))


def _average_arrays(
    x: Array, y: Array, part: Part, row: Array, window: Window, count_include_pad: bool
) -> None:
    channels, rows = part
    seen, own = window.under(rows, x.shape[2])
    under = x[:, channels, seen]
    y[:, channels, rows] = own.gather(under).sum(axis=(2, 3)) / _counts(under, own, count_include_pad)


@fast_path(oracle=_average_arrays)
def _average(x: Array, y: Array, part: Part, row: Array, window: Window, count_include_pad: bool) -> None:
    _average_loop(flat(x), flat(y), row, _sizes(x, y), _bounds(x, part), _moves(window), count_include_pad)


@jit
def _average_loop(
    x: Array,
    y: Array,
    row: Array,
    sizes: tuple[int, ...],
    bounds: tuple[int, ...],
    moves: tuple[int, ...],
    count_include_pad: bool,
) -> None:
    """`row` (padding and width) holds the sum of every column under a row of windows."""
    planes, height, width, rows, columns = sizes
    channels, first_c, last_c, first_r, last_r = bounds
    kh, kw, stride_h, stride_w, top, left = moves
    row[:] = 0
    own = last_c - first_c
    for k in range(planes // channels * own):
        p = k // own * channels + first_c + k % own
        for r in range(first_r, last_r):
            h = r * stride_h - top
            first, last = max(0, -h), min(kh, height - h)
            at = (p * height + h + first) * width
            for w in range(width):
                row[unsigned(left + w)] = x[unsigned(at + w)]
            for i in range(first + 1, last):
                at = (p * height + h + i) * width
                for w in range(width):
                    row[unsigned(left + w)] += x[unsigned(at + w)]
            to = (p * rows + r) * columns
            for q in range(columns):
                y[unsigned(to + q)] = row[unsigned(q * stride_w)]
            for j in range(1, kw):
                if stride_w == 1:  # apart, for contiguous loads
                    for q in range(columns):
                        y[unsigned(to + q)] += row[unsigned(q + j)]
                else:
                    for q in range(columns):
                        y[unsigned(to + q)] += row[unsigned(q * stride_w + j)]
            for q in range(columns):
                w = q * stride_w - left
                seen = kh * kw if count_include_pad else (last - first) * (min(kw, width - w) - max(0, -w))
                y[unsigned(to + q)] /= x.dtype.type(seen)


def _average_gradient_arrays(dx: Array, dy: Array, window: Window, count_include_pad: bool) -> None:
    share = dy / _counts(dx, window, count_include_pad)
    seen = array_module(dx).broadcast_to(
        share[:, :, None, None], (*dy.shape[:2], *window.kernel, *dy.shape[2:])
    )
    window.scatter(seen, dx)


@fast_path(oracle=_average_gradient_arrays)
def _average_gradient(dx: Array, dy: Array, window: Window, count_include_pad: bool) -> None:
    _average_gradient_loop(flat(dx), flat(dy), _sizes(dx, dy), _moves(window), count_include_pad)


@jit
def _average_gradient_loop(
    dx: Array, dy: Array, sizes: tuple[int, ...], moves: tuple[int, ...], count_include_pad: bool
) -> None:
    planes, height, width, rows, columns = sizes
    kh, kw, stride_h, stride_w, top, left = moves
    dx[:] = 0
    for p in range(planes):
        for r in range(rows):
            h = r * stride_h - top
            first_i, last_i = max(0, -h), min(kh, height - h)
            for q in range(columns):
                w = q * stride_w - left
                first_j, last_j = max(0, -w), min(kw, width - w)
                count = kh * kw if count_include_pad else (last_i - first_i) * (last_j - first_j)
                share = dy[unsigned((p * rows + r) * columns + q)] / dx.dtype.type(count)
                for i in range(first_i, last_i):
                    at = (p * height + h + i) * width + w
                    for j in range(first_j, last_j):
                        dx[unsigned(at + j)] += share


def _sizes(x: Array, y: Array) -> tuple[int, ...]:
    """Planes, input rows and columns, output rows and columns."""
    return (x.shape[0] * x.shape[1], *x.shape[2:], *y.shape[2:])


def _bounds(x: Array, part: Part) -> tuple[int, ...]:
    """Channels in all, then first and stop of those of the part and of its rows."""
    channels, rows = part
    return x.shape[1], channels.start, channels.stop, rows.start, rows.stop


def _moves(window: Window) -> tuple[int, ...]:
    return (*window.kernel, *window.stride, *window.padding[:2])
