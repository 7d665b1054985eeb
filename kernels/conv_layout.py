"""Where everything lies in a direct convolution: padded images, the terms of its sums, its outputs.

Give every output row the padded image's width. Then output pixel q sees, under element k of the window, the
padded image at q + offset[k], whatever its row. So convolution is a matrix product whose right-hand rows are
one image, shifted:

    forward          wide y [o, q] = Σk  weight[o, k] * padded x [q + offset[k]]
    input gradient   wide dx[c, q] = Σk  weight[k, c] * padded dy[q + offset[k]]
    weight gradient  dw[o, k]      = Σq  wide dy[o, q] * padded x[q + offset[k]]

With strides (s, t), output row r sees rows r * s + i: for one i always of one remainder by s. So the padded
image lies in s x t *phases*, planes of every s-th row and t-th column, and an offset leads into one of them.
The input gradient has phases the other way round: each phase of dx is a sum of its own, over those elements
of the window that reach it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise

import numpy as np

from .conv_blocks import CHANNELS, OFFSETS, ROWS
from .geometry import Window
from .vectors import VECTOR_BYTES

# weight_block adds its sums across their lanes once for so many pixels. With 224 pixels an image (14 x 14)
# one image at a time gave 156 GFLOP/s, four 163, eight 136: their 180 KB each then leave the cache.
_PIXELS_WANTED = 768

# The padded rows that all filters pass over one after the other stay in the second cache: 256 channels of
# 56 x 56 through 256 filters took 0.7 to 0.5 of the time that the whole image (3.4 MB) at once took.
_STRIP_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Phase:
    """One phase of a sum's output: its terms, the image's pixel under its first, its extent, its place."""

    image_offsets: np.ndarray
    weight_offsets: np.ndarray
    first: int
    rows: int
    columns: int
    place: int


@dataclass(frozen=True, slots=True)
class Sum:
    """A sum for every output channel over a padded image of `channels` channels."""

    channels: int
    top: int
    left: int
    strides: tuple[int, int]  # of the image's phases
    seen_phases: tuple[int, int]  # how many of them the window reaches, rows and columns: the first
    plane: int  # elements of one phase of a channel
    row: int  # elements of one of its rows
    weight_step: int  # from one output channel's weights to the next's
    output_strides: tuple[int, int]  # between the rows and the columns of a phase of the output
    phases: np.ndarray  # (phases, 6) of the output: first term, terms, then as in Phase
    image_offsets: np.ndarray  # of all phases' terms
    weight_offsets: np.ndarray
    padded_size: int
    wide_size: int


@dataclass(frozen=True, slots=True)
class Layout:
    """The two sums, and the sizes of the scratch arrays: padded images, wide rows, a block of weights."""

    groups: int
    forward: Sum
    backward: Sum
    together: int  # images under one weight_block
    scratch_sizes: tuple[int, int, int]


@lru_cache(maxsize=1024)
def layout(window: Window, shape: tuple[int, ...], outputs: int, groups: int, itemsize: int) -> Layout:
    """The layout for inputs (N, C, H, W) and `outputs` output channels in `groups` groups."""
    lanes = VECTOR_BYTES // itemsize
    images = shape[0]
    rows, columns = window.output("conv2d", shape)
    forward = forward_sum(window, shape, groups, itemsize)
    backward = _backward(window, shape, outputs, groups, lanes)

    pixels = _up((rows - 1) * forward.row + columns, lanes)
    together = max(1, min(images, _PIXELS_WANTED // pixels))
    image = forward.channels * forward.strides[0] * forward.strides[1] * forward.plane
    padded = max((together - 1) * image + forward.padded_size, backward.padded_size)
    wide = max(together * _up(outputs, ROWS) * pixels, forward.wide_size, backward.wide_size)
    return Layout(groups, forward, backward, together, (padded, wide, ROWS * OFFSETS))


@dataclass(frozen=True, slots=True)
class Strip:
    """Some rows of the output, the rows of the image under them, and the sums over an image of those."""

    rows: slice
    seen: slice
    terms: Sum


@lru_cache(maxsize=4096)
def strips(
    window: Window, shape: tuple[int, ...], rows: tuple[int, int], groups: int, itemsize: int
) -> tuple[Strip, ...]:
    """Output rows from `rows[0]` to `rows[1]` in strips whose padded image stays in the core's cache."""
    _, channels, height, width = shape
    _, left, _, right = window.padding
    row = channels * (width + left + right) * window.stride[0] * itemsize
    count = max(1, -(-(rows[1] - rows[0]) * row // _STRIP_BYTES))
    edges = [rows[0] + (rows[1] - rows[0]) * k // count for k in range(count + 1)]
    found = []
    for own in (slice(*edge) for edge in pairwise(edges) if edge[0] < edge[1]):
        seen, cut = window.under(own, height)
        terms = forward_sum(cut, (*shape[:2], seen.stop - seen.start, width), groups, itemsize)
        found.append(Strip(own, seen, terms))
    return tuple(found)


@lru_cache(maxsize=4096)
def forward_sum(window: Window, shape: tuple[int, ...], groups: int, itemsize: int) -> Sum:
    """The forward sum alone, all that a part of an image needs."""
    lanes = VECTOR_BYTES // itemsize
    _, channels, height, width = shape
    rows, columns = window.output("conv2d", shape)
    (stride_h, stride_w), (top, left, bottom, right) = window.stride, window.padding
    (i_shift, i_phase), (j_shift, j_phase) = _reach(window, 0), _reach(window, 1)
    row = _up(width + left + right, stride_w) // stride_w
    plane = _up(height + top + bottom, stride_h) // stride_h * row
    under = np.add.outer(i_phase * stride_w * plane + i_shift * row, j_phase * plane + j_shift)
    seen = channels // groups
    offsets = np.add.outer(np.arange(seen) * stride_h * stride_w * plane, under).reshape(-1)
    phase = Phase(offsets, np.arange(offsets.size), 0, rows, columns, 0)
    return _sum(
        channels, seen, (top, left), window.stride, (int(i_phase.max()) + 1, int(j_phase.max()) + 1),
        plane, row, offsets.size, (columns, 1), [phase], lanes,
    )  # fmt: skip


def _backward(window: Window, shape: tuple[int, ...], outputs: int, groups: int, lanes: int) -> Sum:
    _, channels, height, width = shape
    rows, columns = window.output("conv2d", shape)
    (i_shift, i_phase), (j_shift, j_phase) = _reach(window, 0), _reach(window, 1)
    h_runs = _runs(window.padding[0], height, window.stride[0])
    w_runs = _runs(window.padding[1], width, window.stride[1])
    # Row r of dy lies at r + top, so that no row that is looked at lies before the first.
    h_start = min(i_shift.max(), min(first for first, _ in h_runs))
    w_start = min(j_shift.max(), min(first for first, _ in w_runs))
    top, left = int(i_shift.max() - h_start), int(j_shift.max() - w_start)
    row = left + max(columns, max(first + count for first, count in w_runs))
    plane = (top + max(rows, max(first + count for first, count in h_runs))) * row

    seen = outputs // groups
    depth = channels // groups * window.size
    phases = []
    for a, (h_first, h_count) in enumerate(h_runs):
        for b, (w_first, w_count) in enumerate(w_runs):
            i, j = np.flatnonzero(i_phase == a), np.flatnonzero(j_phase == b)
            under = np.add.outer((i_shift.max() - i_shift[i]) * row, j_shift.max() - j_shift[j])
            weights = np.add.outer(i * window.kernel[1], j)
            if h_count > 0 and w_count > 0:
                phases.append(
                    Phase(
                        np.add.outer(np.arange(seen) * plane, under).reshape(-1),
                        np.add.outer(np.arange(seen) * depth, weights).reshape(-1),
                        first=int((h_first - h_start) * row + w_first - w_start),
                        rows=h_count,
                        columns=w_count,
                        place=(h_first * window.stride[0] + a - window.padding[0]) * width
                        + w_first * window.stride[1] + b - window.padding[1],
                    )
                )  # fmt: skip
    strides = (window.stride[0] * width, window.stride[1])
    return _sum(outputs, seen, (top, left), (1, 1), (1, 1), plane, row, window.size, strides, phases, lanes)


def _reach(window: Window, axis: int) -> tuple[np.ndarray, np.ndarray]:
    """Of each of the window's rows (or columns): by how many rows it looks ahead, and in which phase."""
    ahead = np.arange(window.kernel[axis]) * window.dilation[axis]
    return np.divmod(ahead, window.stride[axis])


def _runs(pad: int, extent: int, stride: int) -> list[tuple[int, int]]:
    """Of each phase of the padded image: the first row that belongs to the image, and how many do."""
    firsts = [-((phase - pad) // stride) for phase in range(stride)]
    return [(first, (pad + extent - 1 - a) // stride + 1 - first) for a, first in enumerate(firsts)]


def _sum(
    channels: int,
    seen: int,
    padding: tuple[int, int],
    strides: tuple[int, int],
    seen_phases: tuple[int, int],
    plane: int,
    row: int,
    weight_step: int,
    output_strides: tuple[int, int],
    phases: Sequence[Phase],
    lanes: int,
) -> Sum:
    """A Sum over padded images of `channels` channels, of which an output sees `seen`."""
    channel = strides[0] * strides[1] * plane
    pixels = [_up((phase.rows - 1) * row + phase.columns, lanes) for phase in phases]
    ends = [
        phase.first + int(phase.image_offsets.max(initial=0)) + count
        for phase, count in zip(phases, pixels, strict=True)
    ]
    terms = np.cumsum([0] + [phase.image_offsets.size for phase in phases])
    return Sum(
        channels=channels,
        top=padding[0],
        left=padding[1],
        strides=strides,
        seen_phases=seen_phases,
        plane=plane,
        row=row,
        weight_step=weight_step,
        output_strides=output_strides,
        phases=np.array(
            [
                (at, p.image_offsets.size, p.first, p.rows, p.columns, p.place)
                for at, p in zip(terms[:-1], phases, strict=True)
            ]
        ),
        # weight_block takes OFFSETS at a time.
        image_offsets=np.concatenate([*(p.image_offsets for p in phases), np.zeros(OFFSETS, np.int64)]),
        weight_offsets=np.concatenate([p.weight_offsets for p in phases]),
        padded_size=max(channels * channel, (channels - seen) * channel + max(ends)),
        wide_size=CHANNELS * max(pixels),
    )


def _up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple
