"""Convolution with any stride and groups as matrix products over unrolled windows, a few images at a time.

    columns (C KH KW, n OH OW)   each column the input under one output pixel's window (im2col)
    forward          weight (O, C KH KW) x columns               -> (O, n OH OW)
    input gradient   weightᵀ x output gradient (O, n OH OW)      -> columns, added into the image (col2im)
    weight gradient  Σ over images  columns x output gradientᵀ   -> (C KH KW, O), transposed at the end

Columns are unrolled again for the weight gradient instead of kept: 38 us for an image of 32 x 28 x 28 where
its product takes 150 us, and one block of them stays in the cache. Groups are a leading axis of products.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from .compiled import flat, jit, unsigned
from .geometry import Window
from .kernel import Array

# A product wants many columns: (64, 576) x (576, n) runs at 94 GFLOP/s for n = 16, 112 for 64, 119 for 256,
# and a block's Python costs about 10 us. So small images go several at a time, large ones singly, straight to
# their place in the output.
_COLUMNS_WANTED = 512
_COLUMNS_BYTES = 4 << 20


@dataclass(frozen=True, slots=True)
class Layout:
    """How the products are cut for inputs of one shape, and the sizes of the three scratch arrays."""

    images: int  # in one product
    pixels: int  # of one output image
    depth: int  # length of a column: the elements of one group under a window
    outputs: int  # output channels of one group
    groups: int
    geometry: tuple[int, ...]  # all that im2col needs, but the number of images
    scratch_sizes: tuple[int, int, int]  # columns, output with its images side by side, two weight gradients


@lru_cache(maxsize=1024)
def layout(window: Window, shape: tuple[int, ...], channels: int, groups: int) -> Layout:
    """The layout for inputs (N, C, H, W) and `channels` output channels."""
    batch, seen = shape[:2]
    rows = window.output("conv2d", shape)
    pixels = rows[0] * rows[1]
    unrolled = seen * window.size * pixels
    images = max(1, min(batch, _COLUMNS_WANTED // pixels, _COLUMNS_BYTES // (4 * unrolled)))
    depth = seen // groups * window.size
    return Layout(
        images=images,
        pixels=pixels,
        depth=depth,
        outputs=channels // groups,
        groups=groups,
        geometry=(*shape[1:], *rows, *window.kernel, *window.stride, *window.padding[:2], *window.dilation),
        scratch_sizes=(images * unrolled, channels * images * pixels, 2 * channels * depth),
    )


def forward(
    x: Array, weight: Array, bias: Array | None, y: Array, scratch: tuple[Array, ...], plan: Layout
) -> None:
    """y (N, O, OH, OW) from x (N, C, H, W) and weight (O, C / groups, KH, KW)."""
    filters = weight.reshape(plan.groups, plan.outputs, plan.depth)
    y = y.reshape(len(x), len(weight), plan.pixels)
    for first in range(0, len(x), plan.images):
        columns = _unroll(x[first : first + plan.images], scratch[0], plan)
        target = y[first : first + plan.images]
        if plan.images == 1:
            np.matmul(filters, columns, out=target.reshape(plan.groups, plan.outputs, plan.pixels))
            if bias is not None:
                np.add(target, bias[:, None], out=target)
        else:
            product = scratch[1][: target.size].reshape(plan.groups, plan.outputs, -1)
            np.matmul(filters, columns, out=product)
            images = product.reshape(len(weight), -1, plan.pixels).transpose(1, 0, 2)
            np.add(images, 0 if bias is None else bias[:, None], out=target)


def input_gradient(dx: Array, weight: Array, dy: Array, scratch: tuple[Array, ...], plan: Layout) -> None:
    """dx from dy."""
    filters = weight.reshape(plan.groups, plan.outputs, plan.depth).transpose(0, 2, 1)
    for first in range(0, len(dx), plan.images):
        images = dx[first : first + plan.images]
        gradient = _pack(dy[first : first + plan.images], scratch[1], plan)
        columns = scratch[0][: plan.groups * plan.depth * len(images) * plan.pixels]
        np.matmul(filters, gradient, out=columns.reshape(plan.groups, plan.depth, -1))
        _col2im(columns, flat(images), (len(images), *plan.geometry))


def weight_gradient(
    x: Array, dy: Array, dw: Array, rows: slice, scratch: tuple[Array, ...], plan: Layout
) -> None:
    """dw[rows] from x and dy; rows are whole groups, or any channels of the only group."""
    groups = whole_groups(rows, plan.groups, dy.shape[1])
    dw = dw[rows].reshape(groups.stop - groups.start, -1, plan.depth)
    total, partial = scratch[2][: 2 * dw.size].reshape(2, len(dw), plan.depth, -1)
    for first in range(0, len(x), plan.images):
        block = slice(first, first + plan.images)
        columns = _unroll(x[block], scratch[0], plan)[groups]
        gradient = _pack(dy[block, rows], scratch[1], plan).reshape(len(dw), -1, columns.shape[2])
        # Columns first: (288, 784) x (784, 64) runs at 199 GFLOP/s with AVX-512, its transpose at 128.
        np.matmul(columns, gradient.transpose(0, 2, 1), out=partial if first else total)
        if first:
            np.add(total, partial, out=total)
    np.copyto(dw, total.transpose(0, 2, 1))


def whole_groups(rows: slice, groups: int, channels: int) -> slice:
    """The groups that the output channels `rows` make up; ValueError where they cut through one."""
    if groups == 1:
        return slice(0, 1)
    outputs = channels // groups
    start, stop, _ = rows.indices(channels)
    if start % outputs or stop % outputs:
        raise ValueError(f"conv2d: rows {start} to {stop} cut through a group of {outputs} output channels")
    return slice(start // outputs, stop // outputs)


def _unroll(images: Array, scratch: Array, plan: Layout) -> Array:
    """Columns of a block of images: (groups, depth, n * pixels)."""
    columns = scratch[: plan.groups * plan.depth * len(images) * plan.pixels]
    _im2col(flat(images), columns, (len(images), *plan.geometry))
    return columns.reshape(plan.groups, plan.depth, -1)


def _pack(images: Array, scratch: Array, plan: Layout) -> Array:
    """Output gradients (n, channels, OH, OW) with images side by side: (groups, outputs, n * pixels)."""
    n, channels = images.shape[:2]
    if n == 1:
        return images.reshape(-1, min(channels, plan.outputs), plan.pixels)
    packed = scratch[: images.size].reshape(channels, n, plan.pixels)
    np.copyto(packed, images.reshape(n, channels, plan.pixels).transpose(1, 0, 2))
    return packed.reshape(-1, min(channels, plan.outputs), n * plan.pixels)


@jit
def _im2col(x: Array, columns: Array, geometry: tuple[int, ...]) -> None:
    """columns (C, KH, KW, n, OH, OW) from x (n, C, H, W), both flat."""
    images, channels, height, width, rows, row_pixels = geometry[:6]
    kh, kw, stride_h, stride_w, top, left, dilation_h, dilation_w = geometry[6:]
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
    images, channels, height, width, rows, row_pixels = geometry[:6]
    kh, kw, stride_h, stride_w, top, left, dilation_h, dilation_w = geometry[6:]
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
