"""conv_transpose2d: a convolution the other way round, from its output to images that it may have seen.

    forward           y  = input gradient of that convolution, of x;  + bias
    input gradient    dx = that convolution of dy
    weight gradient   dw = weight gradient of that convolution of dy, of x

So it has no loops of its own: conv.py's three are called, with images and outputs exchanged.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache
from math import sqrt
from typing import ClassVar

from .conv import Conv2d
from .device import array_module
from .geometry import Extents, Window, pair
from .kernel import Array, ArraySpec, Buffers, Cost, Kernel, Mode, ParameterSpec, need_floats


@dataclass(frozen=True, slots=True)
class ConvTranspose2d(Kernel):
    """(N, C, H, W) -> (N, channels, OH, OW), each pixel times a window of weights, summed where they overlap.

    OH = (H - 1) · stride - padding (above and below) + rows of the window + output_padding, OW alike.
    weight (C, channels / groups, KH, KW), bias (channels). Extents are as of conv2d. `output_padding`, below
    and right and smaller than the stride, says which of the sizes is meant that conv2d makes the same of.
    """

    name: ClassVar[str] = "conv_transpose2d"

    channels: int
    kernel_size: Extents
    stride: Extents = 1
    padding: Extents = 0
    output_padding: Extents = 0
    dilation: Extents = 1
    groups: int = 1
    bias: bool = True
    window: Window = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        window = Window.of(self.name, self.kernel_size, self.stride, self.padding, self.dilation)
        window.keep(self)
        more = pair(self.name, "output_padding", self.output_padding, least=0)
        object.__setattr__(self, "output_padding", more)
        if any(each >= stride for each, stride in zip(more, window.stride, strict=True)):
            raise ValueError(
                f"{self.name}: output_padding is {more}; make it smaller than the stride {window.stride}"
            )
        if self.channels < 1 or self.groups < 1 or self.channels % self.groups:
            raise ValueError(
                f"{self.name}: channels is {self.channels}, groups is {self.groups}; groups must divide "
                "channels"
            )

    def output(self, *inputs: ArraySpec) -> ArraySpec:
        (x,) = inputs
        need_floats(self.name, x)
        if len(x.shape) != 4:
            raise ValueError(
                f"{self.name}: input has shape {x.shape}; it needs axes (N, channels, height, width)"
            )
        if x.shape[1] % self.groups:
            raise ValueError(
                f"{self.name}: {self.groups} groups do not divide the {x.shape[1]} channels of {x.shape}"
            )
        window, more = self.window, pair(self.name, "output_padding", self.output_padding, least=0)
        height, width = (
            (x.shape[2 + axis] - 1) * window.stride[axis]
            - window.padding[axis]
            - window.padding[2 + axis]
            + (window.kernel[axis] - 1) * window.dilation[axis]
            + 1
            + more[axis]
            for axis in (0, 1)
        )
        if height < 1 or width < 1:
            raise ValueError(f"{self.name}: padding {window.padding} leaves nothing of {x.shape}")
        return ArraySpec((x.shape[0], self.channels, height, width), x.dtype)

    def parameters(self, *inputs: ArraySpec) -> tuple[ParameterSpec, ...]:
        shape = (inputs[0].shape[1], self.channels // self.groups, *self.window.kernel)
        stride_h, stride_w = self.window.stride
        wide = (
            shape[0] // self.groups * self.window.size / (stride_h * stride_w)
        )  # what a pixel sees, on average
        weight = ParameterSpec("weight", shape, "normal", sqrt(2 / wide))
        bias = ParameterSpec("bias", (self.channels,), "zeros", decay=False)
        return (weight, bias) if self.bias else (weight,)

    def scratch(self, *inputs: ArraySpec) -> tuple[ArraySpec, ...]:
        return _forth(self, inputs[0].shape[1]).scratch(self.output(*inputs))

    def cost(self, *inputs: ArraySpec) -> Cost:
        (x,), y = inputs, self.output(*inputs)
        product = 2.0 * x.size * (self.channels // self.groups) * self.window.size
        adds = float(y.size) if self.bias else 0.0
        weight = sum(each.size for each in self.parameters(x)) * 4.0
        return Cost(product + adds, product, product + adds, x.nbytes + y.nbytes + weight)

    def _turned(self, b: Buffers, images: Array) -> tuple[Conv2d, Buffers]:
        """The convolution of `images`, and its buffers: what is x here is its output."""
        x = b.inputs[0]
        turned = Buffers((images,), x, b.parameters[:1], scratch=b.scratch, output_gradient=x)
        return _forth(self, x.shape[1]), turned

    def forward(self, b: Buffers, mode: Mode) -> None:
        conv, turned = self._turned(b, b.output)
        turned.input_gradients = (b.output,)
        conv.input_gradient(turned, mode)
        if self.bias:
            array_module(b.output).add(b.output, b.parameters[1][:, None, None], out=b.output)

    def input_gradient(self, b: Buffers, mode: Mode) -> None:
        if b.input_gradients[0] is not None:
            conv, turned = self._turned(b, b.output_gradient)
            turned.output = b.input_gradients[0]
            conv.forward(turned, mode)

    def weight_gradient(self, b: Buffers, mode: Mode) -> None:
        conv, turned = self._turned(b, b.output_gradient)
        turned.weight_gradients = b.weight_gradients[:1]
        conv.weight_gradient(turned, mode)
        if self.bias:
            dy = b.output_gradient
            array_module(dy).sum(dy, axis=(0, 2, 3), out=b.weight_gradients[1])


@lru_cache(maxsize=1024)
def _forth(kernel: ConvTranspose2d, channels: int) -> Conv2d:
    """The convolution of which it is the way back."""
    window = kernel.window
    return Conv2d(
        channels, window.kernel, window.stride, window.padding, window.dilation, kernel.groups, bias=False
    )
