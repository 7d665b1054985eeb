"""The mean under each window, and its gradient.

The commonest windows are summed a vector of them at a time, in registers, and one that sees a whole image as
the image lies in memory. Others take a row of windows at a time: first the sum of every column under them,
then of neighbouring columns. A shufflenet's four average pools took 4.4 ms window by window, then 0.2.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from .compiled import fast_path, flat, jit, unsigned
from .device import array_module
from .geometry import Window
from .kernel import Array
from .pool_vectors import (
    ROWS,
    Part,
    bounds_of,
    by_vectors,
    mean_2_by_2,
    mean_3_by_1,
    mean_3_by_2,
    moves_of,
    sizes_of,
    total,
)
from .vectors import VECTOR_BYTES


def _plane_mean_arrays(x: Array, y: Array, channels: slice) -> None:
    xp, own = array_module(x), y[:, channels]
    xp.sum(x[:, channels].reshape(*own.shape, -1), axis=2, out=own)
    xp.divide(own, x.shape[2] * x.shape[3], out=own)


@fast_path(oracle=_plane_mean_arrays)
def plane_mean(x: Array, y: Array, channels: slice) -> None:
    """y[:, channels] = the mean of each channel's image; y has an element for each of them."""
    _plane_mean_loop(flat(x), flat(y), x.shape[1], channels.start, channels.stop)


@jit
def _plane_mean_loop(x: Array, y: Array, channels: int, first: int, last: int) -> None:
    pixels = x.size // y.size
    for n in range(y.size // channels):
        for p in range(n * channels + first, n * channels + last):
            y[unsigned(p)] = total(x, p * pixels, pixels) / x.dtype.type(pixels)


def _counts(x: Array, window: Window, count_include_pad: bool) -> Array:
    """How many elements each window averages, broadcast against the output."""
    if count_include_pad:
        return window.size
    return window.gather(array_module(x).ones((1, 1, *x.shape[2:]), x.dtype)).sum(axis=(2, 3))


def _mean_arrays(x: Array, y: Array, part: Part, row: Array, window: Window, count_include_pad: bool) -> None:
    channels, rows = part
    seen, own = window.under(rows, x.shape[2])
    under = x[:, channels, seen]
    y[:, channels, rows] = own.gather(under).sum(axis=(2, 3)) / _counts(under, own, count_include_pad)


@fast_path(oracle=_mean_arrays)
def mean(x: Array, y: Array, part: Part, row: Array, window: Window, count_include_pad: bool) -> None:
    """A part of y = the mean under each window; `row` is scratch, as long as AveragePool2d says."""
    channels, rows = part
    if window.kernel == x.shape[2:] and not any(window.padding):
        if rows.start < rows.stop:
            plane_mean(x, y, channels)
        return
    numbers = sizes_of(x, y), bounds_of(x, part), moves_of(window)
    if by_vectors(window):
        counts = _window_counts(window, x.shape[2:], y.shape[2:], x.dtype, count_include_pad)
        _mean_by_vectors(flat(x), flat(y), row, *counts, *numbers)
    else:
        _mean_loop(flat(x), flat(y), row, *numbers, count_include_pad)


@lru_cache
def _window_counts(
    window: Window, image: tuple[int, ...], output: tuple[int, ...], dtype: np.dtype, count_include_pad: bool
) -> tuple[Array, Array]:
    """How many rows each row of windows averages, and how many columns each column of them."""

    def along(axis: int) -> Array:
        first = np.arange(output[axis]) * window.stride[axis] - window.padding[axis]
        stop = first + window.kernel[axis]
        if not count_include_pad:
            first, stop = np.maximum(first, 0), np.minimum(stop, image[axis])
        return (stop - first).astype(dtype)

    return along(0), along(1)


@jit
def _mean_by_vectors(
    x: Array,
    y: Array,
    row: Array,
    down: Array,
    across: Array,
    sizes: tuple[int, ...],
    bounds: tuple[int, ...],
    moves: tuple[int, ...],
) -> None:
    """`row` holds what lies above and below an image, `down` and `across` are `_window_counts`."""
    planes, _height, width, _rows, columns = sizes
    channels, first_c, last_c, first_r, last_r = bounds
    size, stride = moves[1], moves[3]
    row[:width] = 0
    own = last_c - first_c
    for k in range(planes // channels * own):
        p = k // own * channels + first_c + k % own
        for first in range(first_r, last_r, ROWS):
            last = min(first + ROWS, last_r)
            for q in range(0, columns, VECTOR_BYTES // x.itemsize):
                if stride == 1:
                    mean_3_by_1(x, y, row, p, q, first, last, sizes, moves, down, across)
                elif size == 2:
                    mean_2_by_2(x, y, row, p, q, first, last, sizes, moves, down, across)
                else:
                    mean_3_by_2(x, y, row, p, q, first, last, sizes, moves, down, across)


@jit
def _mean_loop(
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


def _gradient_arrays(dx: Array, dy: Array, window: Window, count_include_pad: bool) -> None:
    share = dy / _counts(dx, window, count_include_pad)
    seen = array_module(dx).broadcast_to(
        share[:, :, None, None], (*dy.shape[:2], *window.kernel, *dy.shape[2:])
    )
    window.scatter(seen, dx)


@fast_path(oracle=_gradient_arrays)
def gradient(dx: Array, dy: Array, window: Window, count_include_pad: bool) -> None:
    """dx = for each element its share of dy, over the windows that see it."""
    _gradient_loop(flat(dx), flat(dy), sizes_of(dx, dy), moves_of(window), count_include_pad)


@jit
def _gradient_loop(
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
