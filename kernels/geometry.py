"""How a window moves over an image: sizes, strides, padding and dilation, shared by conv and pool.

    output row r, window row k  <->  image row  r * stride - top + k * dilation     (columns alike)

Rows above, below and beside the image are padding. Every pair is (height, width).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from .device import array_module
from .kernel import Array

Extents = int | Sequence[int]
"""One number for both directions, (height, width), or for padding (top, left, bottom, right) as in ONNX."""


@dataclass(frozen=True, slots=True)
class Window:
    """A window's extents, checked and written out in full."""

    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int, int, int]
    dilation: tuple[int, int]

    @classmethod
    def of(
        cls, name: str, kernel: Extents, stride: Extents, padding: Extents, dilation: Extents = 1
    ) -> Window:
        """The window that the attributes of kernel `name` describe; ValueError names a wrong one."""
        top, left, *ends = _extents(name, "padding", padding, least=0, lengths=(2, 4))
        bottom, right = ends or (top, left)
        return cls(
            pair(name, "kernel_size", kernel),
            pair(name, "stride", stride),
            (top, left, bottom, right),
            pair(name, "dilation", dilation),
        )

    def keep(self, kernel: object) -> None:
        """Become the `window` of a kernel, a frozen one, and write out in full the extents that it has."""
        for name in ("kernel_size", "stride", "padding", "dilation"):
            if hasattr(kernel, name):
                object.__setattr__(kernel, name, getattr(self, name.removesuffix("_size")))
        object.__setattr__(kernel, "window", self)

    @property
    def size(self) -> int:
        """Number of elements under the window."""
        return self.kernel[0] * self.kernel[1]

    @property
    def pointwise(self) -> bool:
        """Whether it sees one pixel, and never padding."""
        return self.kernel == (1, 1) and not any(self.padding)

    def output(self, name: str, shape: tuple[int, ...]) -> tuple[int, int]:
        """Rows and columns of the output for an input (N, C, H, W); ValueError where the window is larger."""
        if len(shape) != 4:
            raise ValueError(f"{name}: input has shape {shape}; it needs axes (N, channels, height, width)")
        top, left, bottom, right = self.padding
        padded = (shape[2] + top + bottom, shape[3] + left + right)
        room = [p - (k - 1) * d - 1 for p, k, d in zip(padded, self.kernel, self.dilation, strict=True)]
        if min(room) < 0:
            raise ValueError(
                f"{name}: kernel_size {self.kernel} with dilation {self.dilation} does not fit the input "
                f"{shape}, which padding {self.padding} extends to {padded}"
            )
        return room[0] // self.stride[0] + 1, room[1] // self.stride[1] + 1

    def under(self, rows: slice, height: int) -> tuple[slice, Window]:
        """The image's rows of `height` that output rows `rows` see, and the window that sees no others.

        Output row `rows.start` is row 0 of that window over these rows.
        """
        first = rows.start * self.stride[0] - self.padding[0]
        stop = (
            (rows.stop - 1) * self.stride[0] - self.padding[0] + (self.kernel[0] - 1) * self.dilation[0] + 1
        )
        seen = slice(min(max(first, 0), height), max(min(stop, height), 0))
        above = min(max(-first, 0), stop - first)
        below = stop - first - above - (seen.stop - seen.start)
        padding = (above, self.padding[1], below, self.padding[3])
        return seen, replace(self, padding=padding)

    def gather(self, x: Array, outside: float = 0.0) -> Array:
        """What every window of x (N, C, H, W) sees: (N, C, KH, KW, OH, OW), a view of a padded copy."""
        xp = array_module(x)
        (top, left, bottom, right), rows = self.padding, self.output("window", x.shape)
        padded = xp.pad(x, ((0, 0), (0, 0), (top, bottom), (left, right)), constant_values=outside)
        n, c, h, w = padded.strides
        (stride_h, stride_w), (dilation_h, dilation_w) = self.stride, self.dilation
        return xp.lib.stride_tricks.as_strided(
            padded,
            (*x.shape[:2], *self.kernel, *rows),
            (n, c, h * dilation_h, w * dilation_w, h * stride_h, w * stride_w),
        )

    def scatter(self, seen: Array, x: Array) -> None:
        """The transpose of `gather`: x becomes the sum over the windows that see each element."""
        (top, left, bottom, right), (stride_h, stride_w) = self.padding, self.stride
        (n, c, height, width), (rows, columns) = x.shape, seen.shape[4:]
        padded = array_module(x).zeros((n, c, height + top + bottom, width + left + right), x.dtype)
        for i in range(self.kernel[0]):
            for j in range(self.kernel[1]):
                h, w = i * self.dilation[0], j * self.dilation[1]
                over = slice(h, h + rows * stride_h, stride_h), slice(w, w + columns * stride_w, stride_w)
                padded[:, :, *over] += seen[:, :, i, j]
        x[...] = padded[:, :, top : top + height, left : left + width]


def _extents(
    name: str, attribute: str, value: Extents, least: int, lengths: tuple[int, ...]
) -> tuple[int, ...]:
    extents = (value, value) if isinstance(value, int) else tuple(value)
    if len(extents) not in lengths or not all(isinstance(each, int) and each >= least for each in extents):
        counts = " or ".join(map(str, (1, *lengths)))
        raise ValueError(f"{name}: {attribute} is {value}; give {counts} integers of at least {least}")
    return extents


def pair(name: str, attribute: str, value: Extents, least: int = 1) -> tuple[int, int]:
    """An attribute of kernel `name` as (height, width); ValueError names a wrong one."""
    height, width = _extents(name, attribute, value, least, lengths=(2,))
    return height, width
