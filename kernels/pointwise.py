"""Convolution with windows of one pixel: the product of filters and pixels, a panel of pixels at a time.

    sums[o, p] += Σk  weight[o, k] * panel[k, p]      for DEPTH channels k, a block of pixels p, all filters o

A larger window meets a vector of pixels many times while it is near; this one once for each block of filters,
and from whole images they come from afar: 256 channels of 56 x 56 through 128 filters ran at 36 GFLOP/s that
way, and run at 105 where DEPTH channels of a block of pixels stay in the first cache while all filters pass.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from .compiled import flat, jit, unsigned
from .conv_blocks import CHANNELS, VECTORS, forward_block, forward_pair, forward_single
from .kernel import Array
from .rows import put_row, put_sum
from .vectors import VECTOR_BYTES

DEPTH = 128  # 48 pixels of so many channels are 24 KB of the first cache's 32 or 48

# A panel and its sums in the second cache. Shorter panels read and write their rows in pieces that no
# prefetcher foresees: 64 channels of 56 x 56 to 256 took 1.6 times as long with an eighth.
_PANEL_BYTES = 1 << 19


@lru_cache(maxsize=1024)
def panel(seen: int, filters: int, pixels: int, itemsize: int) -> tuple[int, Array, Array]:
    """Pixels of a panel, and where a filter's weights and the panel's channels lie."""
    lanes = VECTOR_BYTES // itemsize
    step = VECTORS * lanes
    blocks = max(1, _PANEL_BYTES // ((seen + filters) * itemsize * step))
    blocks -= blocks % 2 == 0  # an odd number of lines, so that channels do not meet in few sets of the cache
    row = min(blocks * step, -(-pixels // lanes) * lanes)
    places = np.arange(seen)
    return row, places, places * row


def scratch_sizes(seen: int, filters: int, pixels: int, itemsize: int) -> tuple[int, int]:
    """Elements of a panel of `seen` channels and of the sums of `filters`."""
    row, _, _ = panel(seen, filters, pixels, itemsize)
    return seen * row, (filters + CHANNELS) * row


def convolve(
    x: Array,
    weight: Array,
    bias: Array | None,
    y: Array,
    part: tuple[slice, slice],
    scratch: tuple[Array, ...],
    stride: tuple[int, int],
    groups: int,
    *,
    added: Array | None = None,
    relu: bool = False,
) -> None:
    """Channels and rows `part` of y (N, O, OH, OW) from x (N, C, H, W) and weight (O, C / groups, 1, 1).

    `added` has the shape of y.
    """
    channels, rows = part
    start, stop, _ = channels.indices(y.shape[1])
    width = y.shape[3]
    first, last = rows.start * width, rows.stop * width
    row, weight_offsets, panel_offsets = panel(
        weight.shape[1], y.shape[1] // groups, last - first, x.itemsize
    )
    _multiply(
        flat(x),
        flat(weight),
        flat(weight)[:0] if bias is None else bias,
        flat(weight)[:0] if added is None else flat(added),
        flat(y),
        y.dtype.type(0 if relu else -np.inf),
        scratch[0],
        scratch[1],
        weight_offsets,
        panel_offsets,
        (*x.shape, *stride),
        (groups, start, stop, first, last, row, *y.shape[1:]),
    )


@jit
def _multiply(
    x: Array,
    weight: Array,
    bias: Array,
    added: Array,
    y: Array,
    floor: float,
    panel: Array,
    sums: Array,
    weight_offsets: Array,
    panel_offsets: Array,
    image: tuple[int, ...],
    out: tuple[int, ...],
) -> None:
    images, channels, height, width, stride_h, stride_w = image
    groups, start, stop, first, last, row, outputs, rows, columns = out
    lanes = VECTOR_BYTES // x.itemsize
    filters, seen = outputs // groups, channels // groups
    for n in range(images):
        for g in range(start // filters, (stop - 1) // filters + 1):
            top, end = max(0, start - g * filters), min(filters, stop - g * filters)
            q = first
            while q < last:
                count = min(row, last - q)
                pixels = (count + lanes - 1) // lanes * lanes
                at = (n * channels + g * seen) * height * width
                _pack(x, at, panel, seen, q, count, pixels, (height, width, stride_h, stride_w, columns, row))
                own = (top, end, g * filters * seen)
                _product(weight, panel, sums, weight_offsets, panel_offsets, own, pixels, row)
                for o in range(top, end):
                    channel = g * filters + o
                    shift = bias[channel] if bias.size > 0 else x.dtype.type(0)
                    to = (n * outputs + channel) * rows * columns + q
                    if added.size > 0:
                        put_sum(sums, (o - top) * row, added, y, to, count, shift, floor)
                    else:
                        put_row(sums, (o - top) * row, y, to, count, shift, floor)
                q += count


@jit
def _product(
    weight: Array,
    panel: Array,
    sums: Array,
    weight_offsets: Array,
    panel_offsets: Array,
    filters: tuple[int, int, int],
    pixels: int,
    row: int,
) -> None:
    """The sums of filters from `top` to `end`, whose group's weights begin at `start`."""
    top, end, start = filters
    lanes, seen = VECTOR_BYTES // panel.itemsize, weight_offsets.size
    step = (2 if pixels == 4 * lanes else VECTORS) * lanes  # 2 and 2 are faster than 3 and 1
    spans, bands = (pixels + step - 1) // step, (end - top + CHANNELS - 1) // CHANNELS
    few = (
        pixels <= (VECTORS + 2) * lanes
    )  # so each filter is read once: 2048 by 512 are more than a cache holds
    depth = seen if few else DEPTH
    for outer in range(bands if few else spans):
        for k in range(0, seen, depth):
            terms = min(depth, seen - k)
            for inner in range(spans if few else bands):
                p = (inner if few else outer) * step
                o = top + (outer if few else inner) * CHANNELS
                at, rest, to = start + o * seen, min(CHANNELS, end - o) - 1, (o - top) * row + p
                if pixels - p >= VECTORS * lanes and step > 2 * lanes:
                    forward_block(
                        weight,
                        at,
                        seen,
                        rest,
                        weight_offsets,
                        panel,
                        p,
                        panel_offsets,
                        k,
                        terms,
                        sums,
                        to,
                        row,
                        k > 0,
                    )
                elif pixels - p >= 2 * lanes:
                    forward_pair(
                        weight,
                        at,
                        seen,
                        rest,
                        weight_offsets,
                        panel,
                        p,
                        panel_offsets,
                        k,
                        terms,
                        sums,
                        to,
                        row,
                        k > 0,
                    )
                else:
                    forward_single(
                        weight,
                        at,
                        seen,
                        rest,
                        weight_offsets,
                        panel,
                        p,
                        panel_offsets,
                        k,
                        terms,
                        sums,
                        to,
                        row,
                        k > 0,
                    )


@jit
def _pack(
    x: Array, at: int, panel: Array, seen: int, q: int, count: int, pixels: int, image: tuple[int, ...]
) -> None:
    """`count` output pixels from q on as rows of the panel, one a channel, zeros up to `pixels`."""
    height, width, stride_h, stride_w, columns, row = image
    for c in range(seen):
        to, plane = c * row, at + c * height * width
        if stride_h == 1 and stride_w == 1:  # the rows follow each other
            put_row(x, plane + q, panel, to, count, x.dtype.type(0), x.dtype.type(-np.inf))
        else:
            w, r, column = 0, q // columns, q % columns
            while w < count:
                some = min(columns - column, count - w)
                source = plane + r * stride_h * width + column * stride_w
                for i in range(some):
                    panel[unsigned(to + w + i)] = x[unsigned(source + i * stride_w)]
                w, r, column = w + some, r + 1, 0
        for w in range(count, pixels):
            panel[unsigned(to + w)] = 0
