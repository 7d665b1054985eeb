"""max_pool2d, average_pool2d and global_average_pool2d: windows over images, without weights.

pool_max.py and pool_average.py have their arithmetic.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from . import pool_average, pool_max
from .device import array_module
from .geometry import Extents, Window
from .kernel import ArraySpec, Buffers, Cost, Kernel, Mode, Region, Split, need_floats
from .region import images_part


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
        window.keep(self)
        if any(pad >= extent for pad, extent in zip(window.padding, 2 * window.kernel, strict=True)):
            raise ValueError(
                f"{self.name}: padding is {window.padding}; make it smaller than the window {window.kernel}"
            )

    def output(self, *inputs: ArraySpec) -> ArraySpec:
        (x,) = inputs
        need_floats(self.name, x)
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
            pool_max.largest_and_winners(b.inputs[0], b.output, b.saved[0], self.window)
        else:
            self.forward_region(b, mode, ArraySpec(b.output.shape).region)

    def forward_region(self, b: Buffers, mode: Mode, region: Region) -> None:
        part = images_part(self, region, b.output)
        pool_max.largest(b.inputs[0], b.output, part, b.scratch[0], self.window)

    def input_gradient(self, b: Buffers, mode: Mode) -> None:
        if b.input_gradients[0] is not None:
            pool_max.gradient(b.input_gradients[0], b.output_gradient, b.saved[0], self.window)


@dataclass(frozen=True, slots=True)
class AveragePool2d(Pool2d):
    """The mean under each window: of the image's elements or, with `count_include_pad`, padding too."""

    name: ClassVar[str] = "average_pool2d"

    count_include_pad: bool = False

    def forward(self, b: Buffers, mode: Mode) -> None:
        self.forward_region(b, mode, ArraySpec(b.output.shape).region)

    def forward_region(self, b: Buffers, mode: Mode, region: Region) -> None:
        part = images_part(self, region, b.output)
        pool_average.mean(b.inputs[0], b.output, part, b.scratch[0], self.window, self.count_include_pad)

    def input_gradient(self, b: Buffers, mode: Mode) -> None:
        if b.input_gradients[0] is not None:
            pool_average.gradient(
                b.input_gradients[0], b.output_gradient, self.window, self.count_include_pad
            )


@dataclass(frozen=True, slots=True)
class GlobalAveragePool2d(Kernel):
    """The mean of each channel's image: (N, C, H, W) -> (N, C)."""

    name: ClassVar[str] = "global_average_pool2d"

    def output(self, *inputs: ArraySpec) -> ArraySpec:
        (x,) = inputs
        need_floats(self.name, x)
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

    def forward(self, b: Buffers, mode: Mode) -> None:
        self.forward_region(b, mode, ArraySpec(b.output.shape).region)

    def forward_region(self, b: Buffers, mode: Mode, region: Region) -> None:
        pool_average.plane_mean(b.inputs[0], b.output, *region)

    def input_gradient(self, b: Buffers, mode: Mode) -> None:
        dx, dy = b.input_gradients[0], b.output_gradient
        if dx is not None:
            pixels = dx.shape[2] * dx.shape[3]
            array_module(dx).divide(dy[:, :, None], pixels, out=dx.reshape(*dy.shape, -1))
