"""Convolution with stride 1 straight from the padded image, without unrolling it.

Give every output row the padded image's width. Then output pixel q sees, under element k of the window, the
padded image at q + offset[k], whatever its row: convolution is a matrix product whose right-hand rows are one
image, shifted.

    forward          wide y [o, q] = Σk  weight[o, k] * padded x[q + offset[k]]
    input gradient   the same sum over the padded output gradient, with the filters turned around
    weight gradient  dw[o, k]      = Σq  wide dy[o, q] * padded x[q + offset[k]]

64 images of 32 x 28 x 28 through 64 filters of 3 x 3, one thread: 9.2, 9.3 and 10.7 ms (200 GFLOP/s), where
unrolled columns and OpenBLAS take 13 to 15 ms with AVX-512 and 19 to 21 with AVX2 kernels (16 to 18 here).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from .blocks import CHANNELS, OFFSETS, ROWS, VECTOR_BYTES, VECTORS, forward_block, weight_block
from .compiled import flat, jit, unsigned
from .geometry import Window
from .kernel import Array

# The sums of weight_block are added across their lanes once for so many pixels. With 224 pixels an image
# (14 x 14) one image at a time gave 156 GFLOP/s, four 163, eight 136: their 180 KB each then leave the cache.
_PIXELS_WANTED = 768


@dataclass(frozen=True, slots=True)
class _Sum:
    """One sum over a shifted, padded image: how the image is padded and where the terms lie."""

    top: int
    left: int
    plane: int  # elements of a padded channel
    row: int  # elements of one of its rows
    depth: int  # terms of the sum
    image_offsets: np.ndarray  # (depth, and repeats up to a multiple of OFFSETS)
    weight_offsets: np.ndarray  # (depth)
    weight_step: int  # from one output channel's weights to the next's
    padded_size: int
    wide_size: int


@dataclass(frozen=True, slots=True)
class Layout:
    """Where things lie for inputs of one shape, and the sizes of the three scratch arrays."""

    forward: _Sum
    backward: _Sum
    together: int  # images under one weight_block
    scratch_sizes: tuple[int, int, int]  # padded images, wide rows, one block of weights


@lru_cache(maxsize=1024)
def layout(window: Window, shape: tuple[int, ...], outputs: int, itemsize: int) -> Layout | None:
    """The layout for inputs (N, C, H, W); None where the window strides or is smaller than its padding."""
    images, channels, height, width = shape
    rows, _ = window.output("conv2d", shape)
    (kh, kw), (dilation_h, dilation_w), (top, left, bottom, right) = (
        window.kernel,
        window.dilation,
        window.padding,
    )
    beyond_h, beyond_w = (kh - 1) * dilation_h, (kw - 1) * dilation_w  # of the window's first element
    if window.stride != (1, 1) or max(top, bottom) > beyond_h or max(left, right) > beyond_w:
        return None
    lanes = VECTOR_BYTES // itemsize

    def plan(
        planes: int, top: int, left: int, rows: int, row: int, weight_offsets: np.ndarray, weight_step: int
    ) -> _Sum:
        plane = (rows + beyond_h) * row
        under = np.add.outer(np.arange(kh) * dilation_h * row, np.arange(kw) * dilation_w)
        offsets = np.add.outer(np.arange(planes) * plane, under).reshape(-1)
        step = VECTORS * lanes
        return _Sum(
            top=top,
            left=left,
            plane=plane,
            row=row,
            depth=offsets.size,
            image_offsets=np.pad(offsets, (0, -offsets.size % OFFSETS), mode="edge"),
            weight_offsets=weight_offsets,
            weight_step=weight_step,
            padded_size=planes * plane + beyond_w + step,
            wide_size=CHANNELS * _up(rows * row, step),
        )

    depth = channels * window.size
    there = plan(channels, top, left, rows, width + left + right, np.arange(depth), depth)
    turned = np.add.outer(np.arange(outputs) * depth, np.arange(window.size)[::-1]).reshape(-1)
    back = plan(outputs, beyond_h - top, beyond_w - left, height, width + beyond_w, turned, window.size)

    pixels = _up(rows * there.row, lanes)
    together = max(1, min(images, _PIXELS_WANTED // pixels))
    padded = max(together * channels * there.plane + beyond_w + lanes, there.padded_size, back.padded_size)
    wide = max(together * _up(outputs, ROWS) * pixels, there.wide_size, back.wide_size)
    return Layout(there, back, together, (padded, wide, ROWS * OFFSETS))


def _up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple


def forward(
    x: Array, weight: Array, bias: Array | None, y: Array, scratch: tuple[Array, ...], plan: Layout
) -> None:
    """y (N, O, OH, OW) from x (N, C, H, W) and weight (O, C, KH, KW)."""
    _run(x, weight, bias, y, scratch, plan.forward)


def input_gradient(dx: Array, weight: Array, dy: Array, scratch: tuple[Array, ...], plan: Layout) -> None:
    """dx from dy: a convolution whose window reaches as far beyond dy as dx does."""
    _run(dy, weight, None, dx, scratch, plan.backward)


def _run(
    x: Array, weight: Array, bias: Array | None, y: Array, scratch: tuple[Array, ...], terms: _Sum
) -> None:
    weight = flat(weight)
    _convolve(
        flat(x),
        weight,
        weight[:0] if bias is None else bias,
        flat(y),
        scratch[0][: terms.padded_size],
        scratch[1][: terms.wide_size],
        terms.weight_offsets,
        terms.image_offsets,
        (
            *x.shape,
            terms.top,
            terms.left,
            terms.plane,
            terms.row,
            *y.shape[1:],
            terms.depth,
            terms.weight_step,
        ),
    )


def weight_gradient(
    x: Array, dy: Array, dw: Array, rows: slice, scratch: tuple[Array, ...], plan: Layout
) -> None:
    """dw[rows] from x and dy."""
    terms = plan.forward
    start, stop, _ = rows.indices(dy.shape[1])
    padded, wide, block = scratch
    _convolve_weights(
        flat(x),
        flat(dy),
        flat(dw[rows]),
        padded,
        wide,
        block,
        terms.image_offsets,
        (*x.shape, terms.top, terms.left, terms.plane, terms.row, *dy.shape[1:], terms.depth),
        (start, stop, plan.together),
    )


@jit
def _convolve(
    x: Array,
    weight: Array,
    bias: Array,
    y: Array,
    padded: Array,
    wide: Array,
    weight_offsets: Array,
    image_offsets: Array,
    sizes: tuple[int, ...],
) -> None:
    """y from x, all arrays flat; an empty bias adds nothing."""
    images, channels, height, width, top, left, plane, row = sizes[:8]
    outputs, rows, columns, depth, weight_step = sizes[8:]
    step = VECTORS * (VECTOR_BYTES // x.itemsize)
    wide_step = (rows * row + step - 1) // step * step
    zero = x.dtype.type(0)
    padded[:] = zero
    for n in range(images):
        for c in range(channels):
            source, target = (n * channels + c) * height * width, c * plane + top * row + left
            _copy_rows(x, source, width, padded, target, row, height, width, zero)
        for o in range(0, outputs, CHANNELS):
            last = min(CHANNELS, outputs - o) - 1
            for q in range(0, wide_step, step):
                forward_block(
                    weight,
                    o * weight_step,
                    weight_step,
                    last,
                    weight_offsets,
                    padded,
                    q,
                    image_offsets,
                    depth,
                    wide,
                    q,
                    wide_step,
                )
            for i in range(last + 1):
                shift = bias[o + i] if bias.size > 0 else zero
                target = (n * outputs + o + i) * rows * columns
                _copy_rows(wide, i * wide_step, row, y, target, columns, rows, columns, shift)


@jit
def _convolve_weights(
    x: Array,
    dy: Array,
    dw: Array,
    padded: Array,
    wide: Array,
    block: Array,
    image_offsets: Array,
    sizes: tuple[int, ...],
    share: tuple[int, int, int],
) -> None:
    """dw (stop - start, depth) from x and dy, all arrays flat."""
    images, channels, height, width, top, left, plane, row = sizes[:8]
    outputs, rows, columns, depth = sizes[8:]
    start, stop, together = share
    lanes = VECTOR_BYTES // x.itemsize
    pixels = (rows * row + lanes - 1) // lanes * lanes
    x_step, dy_step = channels * plane, (stop - start + ROWS - 1) // ROWS * ROWS * pixels
    zero = x.dtype.type(0)
    dw[:] = zero
    padded[:] = zero
    wide[:] = zero  # beyond the output's columns it stays zero: what lies under those does not count
    for first in range(0, images, together):
        count = min(together, images - first)
        for n in range(count):
            for c in range(channels):
                source = ((first + n) * channels + c) * height * width
                target = n * x_step + c * plane + top * row + left
                _copy_rows(x, source, width, padded, target, row, height, width, zero)
            for o in range(stop - start):
                source = ((first + n) * outputs + start + o) * rows * columns
                target = n * dy_step + o * pixels
                _copy_rows(dy, source, columns, wide, target, row, rows, columns, zero)
        for o in range(0, stop - start, ROWS):
            for k in range(0, depth, OFFSETS):
                weight_block(
                    wide, o * pixels, pixels, dy_step, padded, x_step, image_offsets, k, count, pixels, block
                )
                for i in range(min(ROWS, stop - start - o)):
                    for j in range(min(OFFSETS, depth - k)):
                        dw[unsigned((o + i) * depth + k + j)] += block[unsigned(i * OFFSETS + j)]


@jit
def _copy_rows(
    source: Array,
    at: int,
    row: int,
    into: Array,
    to: int,
    into_row: int,
    rows: int,
    columns: int,
    shift: float,
) -> None:
    """into[to:] = source[at:] + shift, `rows` rows of `columns` that lie `row` and `into_row` apart."""
    for r in range(rows):
        for q in range(columns):
            into[unsigned(to + r * into_row + q)] = source[unsigned(at + r * row + q)] + shift
