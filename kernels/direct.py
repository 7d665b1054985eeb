"""Direct convolution: the loops over images, channels and blocks; conv_layout.py says what lies where.

64 images of 32 x 28 x 28 through 64 filters of 3 x 3, one thread: 9.2 ms forward, 9.3 to the input and 10.7
to the weights (200 GFLOP/s). Unrolled columns (im2col) and OpenBLAS took 13 to 15 ms with AVX-512; with AVX2
they took 19 to 21 and this takes 17.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from .compiled import flat, jit, unsigned
from .conv_blocks import (
    CHANNELS,
    OFFSETS,
    ROWS,
    VECTORS,
    forward_block,
    forward_pair,
    forward_single,
    weight_block,
)
from .conv_layout import Layout, Sum
from .kernel import Array
from .rows import put_row, put_sum
from .vectors import VECTOR_BYTES


def convolve(
    x: Array,
    weight: Array,
    bias: Array | None,
    y: Array,
    part: tuple[slice, slice, slice],
    scratch: tuple[Array, ...],
    terms: Sum,
    groups: int,
    *,
    added: Array | None = None,
    relu: bool = False,
) -> None:
    """A part of y (N, O, OH, OW) from x (N, C, H, W) and weight (O, C / groups, KH, KW).

    `part` is rows of x, and channels and rows of y; `terms` are the sums over an image of those rows of x.
    `added` has the shape of y.
    """
    weights = flat(weight)
    seen, channels, rows = part
    start, stop, _ = channels.indices(y.shape[1])
    width = y.shape[3]
    _convolve(
        flat(x),
        weights,
        weights[:0] if bias is None else bias,
        weights[:0] if added is None else flat(added),
        flat(y),
        y.dtype.type(0 if relu else -np.inf),
        scratch[0][: terms.padded_size],
        scratch[1][: terms.wide_size],
        terms.phases,
        terms.image_offsets,
        terms.weight_offsets,
        _image(x, seen, terms),
        (
            *(groups, y.shape[1], start, stop),
            *(rows.start * width, y.shape[2] * width, *terms.output_strides, terms.weight_step),
        ),
    )


def input_gradient(dx: Array, weight: Array, dy: Array, scratch: tuple[Array, ...], plan: Layout) -> None:
    """dx from dy."""
    whole = slice(0, dy.shape[2]), slice(0, dx.shape[1]), slice(0, dx.shape[2])
    convolve(dy, weight, None, dx, whole, scratch, plan.backward, plan.groups)


def _image(x: Array, rows: slice, terms: Sum) -> tuple[int, ...]:
    """What `_pad` knows: the rows of x that it copies, and where it puts them."""
    images, channels, height, width = x.shape
    return (
        *(images, channels, rows.start, rows.stop - rows.start, height, width),
        *(terms.top, terms.left, *terms.strides, terms.plane, terms.row, *terms.seen_phases),
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
        _image(x, slice(0, x.shape[2]), terms),
        (plan.groups, *dy.shape[1:], start, stop, plan.together),
    )


@jit
def _convolve(
    x: Array,
    weight: Array,
    bias: Array,
    added: Array,
    y: Array,
    floor: float,
    padded: Array,
    wide: Array,
    phases: Array,
    image_offsets: Array,
    weight_offsets: Array,
    image: tuple[int, ...],
    out: tuple[int, ...],
) -> None:
    """Channels `start` to `stop` of y from x, all arrays but `phases` flat; what is empty adds nothing."""
    images, channels, _first, rows_seen, _height, width, _top, _left = image[:8]
    stride_h, stride_w, plane, row, _phases_h, _phases_w = image[8:]
    groups, outputs, start, stop, y_first, y_plane, y_row, y_column, weight_step = out
    lanes = VECTOR_BYTES // x.itemsize
    filters = outputs // groups
    zero = x.dtype.type(0)
    if stride_h * stride_w * plane > rows_seen * width:  # else images fill it
        padded[:] = zero
    for n in range(images):
        first, last = start // filters, (stop - 1) // filters + 1
        _pad(x, n, first * channels // groups, last * channels // groups, padded, 0, image)
        for g in range(first, last):
            seen = g * (channels // groups) * stride_h * stride_w * plane
            end = min(filters, stop - g * filters)
            for o in range(max(0, start - g * filters), end, CHANNELS):
                last = min(CHANNELS, end - o) - 1
                at = g * (weight.size // groups) + o * weight_step
                for p in range(len(phases)):
                    term, terms, pixel = phases[p, 0], phases[p, 1], phases[p, 2]
                    rows, columns, place = phases[p, 3], phases[p, 4], phases[p, 5]
                    pixels = ((rows - 1) * row + columns + lanes - 1) // lanes * lanes
                    blocks(
                        (weight, at, weight_step, last, weight_offsets),
                        (padded, seen + pixel, image_offsets, term, terms),
                        (wide, 0, pixels),
                        pixels,
                        False,
                    )
                    for i in range(last + 1):
                        channel = g * filters + o + i
                        shift = bias[channel] if bias.size > 0 else zero
                        to = (n * outputs + channel) * y_plane + y_first + place
                        own = i * pixels, row, rows, columns
                        put_rows(wide, own, shift, floor, added, y, to, y_row, y_column)


@jit
def blocks(
    filters: tuple[Any, ...], image: tuple[Any, ...], out: tuple[Any, ...], pixels: int, more: bool
) -> None:
    """forward_block for `pixels` pixels (whole vectors), as large as may be; the tuples are its arguments."""
    source, image_at, image_offsets, term, terms = image
    into, out_at, out_step = out
    lanes = VECTOR_BYTES // source.itemsize
    sums = (image_offsets, term, terms, into)
    q = 0
    while pixels - q >= VECTORS * lanes and pixels - q != 4 * lanes:  # 2 and 2 are faster than 3 and 1
        forward_block(*filters, source, image_at + q, *sums, out_at + q, out_step, more)
        q += VECTORS * lanes
    while pixels - q >= 2 * lanes:
        forward_pair(*filters, source, image_at + q, *sums, out_at + q, out_step, more)
        q += 2 * lanes
    if pixels - q == lanes:
        forward_single(*filters, source, image_at + q, *sums, out_at + q, out_step, more)


@jit
def put_rows(
    wide: Array,
    own: tuple[int, int, int, int],
    shift: float,
    floor: float,
    added: Array,
    y: Array,
    to: int,
    y_row: int,
    y_column: int,
) -> None:
    """y[to:] = max(wide[at:] + shift + added[to:], floor), `rows` rows of `columns`, the first of a wide row.

    `own` is at, the length of a wide row, rows and columns. Nothing is added where columns of y lie apart.
    """
    at, row, rows, columns = own
    for r in range(rows):
        source, target = at + r * row, to + r * y_row
        if added.size > 0:
            put_sum(wide, source, added, y, target, columns, shift, floor)
        elif y_column == 1:
            put_row(wide, source, y, target, columns, shift, floor)
        else:
            for c in range(columns):
                y[unsigned(target + c * y_column)] = wide[unsigned(source + c)] + shift


@jit
def _convolve_weights(
    x: Array,
    dy: Array,
    dw: Array,
    padded: Array,
    wide: Array,
    block: Array,
    image_offsets: Array,
    image: tuple[int, ...],
    out: tuple[int, ...],
) -> None:
    """dw (stop - start, depth) from x and dy, all arrays flat."""
    images, channels = image[:2]
    stride_h, stride_w, plane, row, _phases_h, _phases_w = image[8:]
    groups, outputs, rows, columns, start, stop, together = out
    lanes = VECTOR_BYTES // x.itemsize
    filters, depth = outputs // groups, dw.size // (stop - start)
    pixels = ((rows - 1) * row + columns + lanes - 1) // lanes * lanes
    channel = stride_h * stride_w * plane
    x_step, dy_step = channels * channel, (stop - start + ROWS - 1) // ROWS * ROWS * pixels
    zero, floor = x.dtype.type(0), x.dtype.type(-np.inf)
    dw[:] = zero
    padded[:] = zero
    wide[:] = zero  # beyond the output's columns it stays zero: what lies under those does not count
    for first in range(0, images, together):
        count = min(together, images - first)
        for n in range(count):
            _pad(x, first + n, 0, channels, padded, n * x_step, image)
            for o in range(start, stop):
                for r in range(rows):
                    at = (((first + n) * outputs + o) * rows + r) * columns
                    to = n * dy_step + (o - start) * pixels + r * row
                    put_row(dy, at, wide, to, columns, zero, floor)
        o = start
        while o < stop:
            g = o // filters
            some = min(ROWS, min(stop, (g + 1) * filters) - o)  # rows of one block are of one group
            for k in range(0, depth, OFFSETS):
                weight_block(
                    wide,
                    (o - start) * pixels,
                    pixels,
                    dy_step,
                    padded,
                    g * (channels // groups) * channel,
                    x_step,
                    image_offsets,
                    k,
                    count,
                    pixels,
                    block,
                )
                for i in range(some):
                    for j in range(min(OFFSETS, depth - k)):
                        dw[unsigned((o - start + i) * depth + k + j)] += block[unsigned(i * OFFSETS + j)]
            o += some


@jit
def _pad(x: Array, n: int, first: int, last: int, padded: Array, start: int, image: tuple[int, ...]) -> None:
    """Channels `first` to `last` of image n into padded[start:], in phases; the padding is zero already."""
    _images, channels, h_first, rows, height, width, top, left = image[:8]
    stride_h, stride_w, plane, row, phases_h, phases_w = image[8:]
    for c in range(first, last):
        for h in range(rows):
            at = ((n * channels + c) * height + h_first + h) * width
            u = h + top
            if u % stride_h >= phases_h:
                continue
            to = start + ((c * stride_h + u % stride_h) * stride_w) * plane + u // stride_h * row
            if stride_w == 1:
                put_row(x, at, padded, to + left, width, x.dtype.type(0), x.dtype.type(-np.inf))
            else:
                for b in range(phases_w):
                    skip = (b - left) % stride_w  # columns before the phase's first
                    place = to + b * plane + (skip + left) // stride_w
                    count = (width - skip + stride_w - 1) // stride_w
                    if stride_w == 2:  # apart, for loads of pairs
                        for w in range(count):
                            padded[unsigned(place + w)] = x[unsigned(at + skip + 2 * w)]
                    else:
                        for w in range(count):
                            padded[unsigned(place + w)] = x[unsigned(at + skip + w * stride_w)]
