"""conv3d and conv_transpose3d: convolutions of volumes, one layer of the output after the other.

    x (N, C, D, H, W) ── the KD layers under a layer's windows ──> (N, C · KD, H, W) ── conv2d ──> y[:, :, z]

What a layer of the output follows from is an image of C · KD channels, and a filter (C, KD, KH, KW) lies in
memory as one of these: so the loops are those of conv2d. A layer at a time needs the memory of KD layers of
the input, where all together would need KD times the whole of it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from math import sqrt
from typing import ClassVar

from .conv import Conv2d
from .device import array_module
from .geometry import Extents, Window
from .kernel import Array, ArraySpec, Buffers, Cost, Kernel, Mode, ParameterSpec, Region, Split, need_floats
from .region import keep_whole

OF_PLANE = 3  # arrays of workspace that conv2d has


@dataclass(frozen=True, slots=True)
class Box:
    """A window of volumes: along the depth by itself, and in the plane as one of images."""

    size: int
    stride: int
    front: int
    back: int
    dilation: int
    plane: Window

    @property
    def kernel(self) -> tuple[int, int, int]:
        """Its extents."""
        return self.size, *self.plane.kernel

    @property
    def elements(self) -> int:
        """How many elements it sees."""
        return self.size * self.plane.size

    def layers(self, depth: int) -> int:
        """How many layers the output of a volume so deep has; below 1 where the window is deeper."""
        return (depth + self.front + self.back - (self.size - 1) * self.dilation - 1) // self.stride + 1

    def under(self, z: int, depth: int) -> Iterator[tuple[int, int]]:
        """Of the window on layer z each layer of its own that sees one of the volume's, and that one."""
        for k in range(self.size):
            layer = z * self.stride - self.front + k * self.dilation
            if 0 <= layer < depth:
                yield k, layer


def _extents(name: str, attribute: str, value: Extents, least: int = 1, *, sides: int = 3) -> list[int]:
    """Numbers along depth, height and width, of padding (`sides` 6) also behind, below and right."""
    found = [value] * 3 if isinstance(value, int) else list(value)
    if len(found) not in (3, sides) or not all(isinstance(each, int) and each >= least for each in found):
        counts = "1 or 3" if sides == 3 else "1, 3 or 6"
        raise ValueError(f"{name}: {attribute} is {value}; give {counts} integers of at least {least}")
    return found * (sides // len(found))


@dataclass(frozen=True, slots=True)
class OfVolumes(Kernel):
    """What both have: their attributes, each one number or (depth, height, width), and what these say.

    Padding is also (front, top, left, back, bottom, right).
    """

    channels: int
    kernel_size: Extents
    stride: Extents = 1
    padding: Extents = 0
    dilation: Extents = 1
    groups: int = 1
    bias: bool = True
    box: Box = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        name = self.name
        size = _extents(name, "kernel_size", self.kernel_size)
        stride, dilation = _extents(name, "stride", self.stride), _extents(name, "dilation", self.dilation)
        front, top, left, back, bottom, right = _extents(name, "padding", self.padding, 0, sides=6)
        plane = Window.of(name, size[1:], stride[1:], (top, left, bottom, right), dilation[1:])
        box = Box(size[0], stride[0], front, back, dilation[0], plane)
        padding = (front, top, left, back, bottom, right)
        for key, value in (("kernel_size", size), ("stride", stride), ("padding", padding)):
            object.__setattr__(self, key, tuple(value))
        object.__setattr__(self, "dilation", tuple(dilation))
        object.__setattr__(self, "box", box)
        if self.channels < 1 or self.groups < 1 or self.channels % self.groups:
            raise ValueError(
                f"{name}: channels is {self.channels}, groups is {self.groups}; groups must divide channels"
            )

    def _require_volume(self, x: ArraySpec) -> None:
        need_floats(self.name, x)
        if len(x.shape) != 5:
            raise ValueError(
                f"{self.name}: input has shape {x.shape}; it needs axes (N, channels, depth, height, width)"
            )
        if x.shape[1] % self.groups:
            raise ValueError(
                f"{self.name}: {self.groups} groups do not divide the {x.shape[1]} channels of {x.shape}"
            )

    def _with_bias(self, weight: ParameterSpec) -> tuple[ParameterSpec, ...]:
        bias = ParameterSpec("bias", (self.channels,), "zeros", decay=False)
        return (weight, bias) if self.bias else (weight,)

    def _cost(self, x: ArraySpec, y: ArraySpec, product: float) -> Cost:
        adds = float(y.size) if self.bias else 0.0
        weight = sum(each.size for each in self.parameters(x)) * 4.0
        return Cost(product + adds, product, product + adds, x.nbytes + y.nbytes + weight)


@dataclass(frozen=True, slots=True)
class Conv3d(OfVolumes):
    """Cross-correlation of (N, C, D, H, W) with `channels` filters -> (N, channels, OD, OH, OW).

    weight (channels, C / groups, KD, KH, KW), bias (channels).
    """

    name: ClassVar[str] = "conv3d"

    def output(self, *inputs: ArraySpec) -> ArraySpec:
        (x,) = inputs
        self._require_volume(x)
        layers = self.box.layers(x.shape[2])
        if layers < 1:
            raise ValueError(
                f"conv3d: kernel_size {self.kernel_size} with dilation {self.dilation} is deeper than the "
                f"input {x.shape} with padding {self.padding}"
            )
        plane = self.box.plane.output(self.name, (*x.shape[:2], *x.shape[3:]))
        return ArraySpec((x.shape[0], self.channels, layers, *plane), x.dtype)

    def parameters(self, *inputs: ArraySpec) -> tuple[ParameterSpec, ...]:
        shape = (self.channels, inputs[0].shape[1] // self.groups, *self.box.kernel)
        wide = shape[1] * self.box.elements
        return self._with_bias(ParameterSpec("weight", shape, "normal", sqrt(2 / wide)))  # as conv2d's

    def scratch(self, *inputs: ArraySpec) -> tuple[ArraySpec, ...]:
        """The layers under a window, a layer of the output, and conv2d's."""
        x, y = inputs[0], self.output(*inputs)
        images = ArraySpec((x.shape[0], x.shape[1] * self.box.size, *x.shape[3:]), x.dtype)
        layer = ArraySpec((*y.shape[:2], *y.shape[3:]), x.dtype)
        return (images, layer, *_in_plane(self).scratch(images))

    def gradient_scratch(self, *inputs: ArraySpec) -> tuple[ArraySpec, ...]:
        """The weight's gradient from a layer of the output."""
        return (ArraySpec(self.parameters(*inputs)[0].shape, inputs[0].dtype),)

    def split(self, *inputs: ArraySpec) -> tuple[Split, ...]:
        return (Split(2, self.output(*inputs).shape[2]),)

    def needs(self, region: Region, *inputs: ArraySpec) -> tuple[Region, ...]:
        x = inputs[0]
        _, rows, _, _ = region
        seen = [layer for z in range(rows.start, rows.stop) for _, layer in self.box.under(z, x.shape[2])]
        depth = slice(min(seen), max(seen) + 1) if seen else slice(0, 0)
        return ((slice(0, x.shape[1]), depth, slice(0, x.shape[3]), slice(0, x.shape[4])),)

    def cost(self, *inputs: ArraySpec) -> Cost:
        x, y = inputs[0], self.output(*inputs)
        return self._cost(x, y, 2.0 * y.size * (x.shape[1] // self.groups) * self.box.elements)

    def forward(self, b: Buffers, mode: Mode) -> None:
        self.forward_region(b, mode, ArraySpec(b.output.shape).region)

    def forward_region(self, b: Buffers, mode: Mode, region: Region) -> None:
        keep_whole(self, region, b.output, 1, 3, 4)
        (x,), (images, layer, *rest) = b.inputs, b.scratch
        parameters = self._filters(b.parameters[0]), *b.parameters[1:]
        plane = Buffers((images,), layer, parameters, scratch=tuple(rest[:OF_PLANE]))
        for z in range(region[1].start, region[1].stop):
            self._look(x, z, images)
            _in_plane(self, self.bias).forward(plane, mode)
            b.output[:, :, z] = layer

    def input_gradient(self, b: Buffers, mode: Mode) -> None:
        dx, dy, (images, layer, *rest) = b.input_gradients[0], b.output_gradient, b.scratch
        if dx is None:
            return
        plane = Buffers(
            (images,), layer, (self._filters(b.parameters[0]),), scratch=tuple(rest[:OF_PLANE]),
            output_gradient=layer, input_gradients=(images,),
        )  # fmt: skip
        dx[...] = 0
        for z in range(dy.shape[2]):
            layer[...] = dy[:, :, z]
            _in_plane(self).input_gradient(plane, mode)
            for k, own in self.box.under(z, dx.shape[2]):
                dx[:, :, own] += self._by_layer(images)[:, :, k]

    def weight_gradient(self, b: Buffers, mode: Mode) -> None:
        (x,), dy, (images, layer, *rest, part) = b.inputs, b.output_gradient, b.scratch
        dw = b.weight_gradients[0]
        plane = Buffers(
            (images,), layer, scratch=tuple(rest[:OF_PLANE]), output_gradient=layer,
            weight_gradients=(self._filters(part),),
        )  # fmt: skip
        dw[...] = 0
        for z in range(dy.shape[2]):
            self._look(x, z, images)
            layer[...] = dy[:, :, z]
            _in_plane(self).weight_gradient(plane, mode)
            dw += part
        if self.bias:
            array_module(dy).sum(dy, axis=(0, 2, 3, 4), out=b.weight_gradients[1])

    def _filters(self, weight: Array) -> Array:
        """A view of the weight as filters of images."""
        return weight.reshape(len(weight), -1, *self.box.plane.kernel)

    def _by_layer(self, images: Array) -> Array:
        """A view (N, C, KD, H, W) of images."""
        return images.reshape(len(images), -1, self.box.size, *images.shape[2:])

    def _look(self, x: Array, z: int, images: Array) -> None:
        """Write what the windows on layer z see; beside the volume they see zeros."""
        seen = dict(self.box.under(z, x.shape[2]))
        for k in range(self.box.size):
            self._by_layer(images)[:, :, k] = x[:, :, seen[k]] if k in seen else 0


@lru_cache(maxsize=1024)
def _in_plane(kernel: Conv3d, bias: bool = False) -> Conv2d:
    """The convolution of images that makes a layer of the output."""
    plane = kernel.box.plane
    return Conv2d(
        kernel.channels, plane.kernel, plane.stride, plane.padding, plane.dilation, kernel.groups, bias
    )


@dataclass(frozen=True, slots=True)
class ConvTranspose3d(OfVolumes):
    """(N, C, D, H, W) -> (N, channels, OD, OH, OW), conv3d the other way round, as conv_transpose2d is.

    weight (C, channels / groups, KD, KH, KW), bias (channels). `output_padding`, behind, below and right and
    smaller than the stride, says which of the sizes is meant that conv3d makes the same of.
    """

    name: ClassVar[str] = "conv_transpose3d"

    output_padding: Extents = 0

    def __post_init__(self) -> None:
        OfVolumes.__post_init__(self)
        more = tuple(_extents(self.name, "output_padding", self.output_padding, 0))
        object.__setattr__(self, "output_padding", more)
        strides = (self.box.stride, *self.box.plane.stride)
        if any(each >= stride for each, stride in zip(more, strides, strict=True)):
            raise ValueError(
                f"{self.name}: output_padding is {more}; make it smaller than the stride {strides}"
            )

    def output(self, *inputs: ArraySpec) -> ArraySpec:
        (x,) = inputs
        self._require_volume(x)
        stride, padding, dilation, more = (
            _extents(self.name, "extents", each, 0, sides=sides)
            for each, sides in (
                (self.stride, 3),
                (self.padding, 6),
                (self.dilation, 3),
                (self.output_padding, 3),
            )
        )
        extents = tuple(
            (x.shape[2 + axis] - 1) * stride[axis]
            - padding[axis]
            - padding[3 + axis]
            + (self.box.kernel[axis] - 1) * dilation[axis]
            + 1
            + more[axis]
            for axis in range(3)
        )
        if min(extents) < 1:
            raise ValueError(f"{self.name}: padding {self.padding} leaves nothing of {x.shape}")
        return ArraySpec((x.shape[0], self.channels, *extents), x.dtype)

    def parameters(self, *inputs: ArraySpec) -> tuple[ParameterSpec, ...]:
        shape = (inputs[0].shape[1], self.channels // self.groups, *self.box.kernel)
        strides = self.box.stride * self.box.plane.stride[0] * self.box.plane.stride[1]
        wide = shape[0] // self.groups * self.box.elements / strides  # what an element sees, on average
        return self._with_bias(ParameterSpec("weight", shape, "normal", sqrt(2 / wide)))

    def scratch(self, *inputs: ArraySpec) -> tuple[ArraySpec, ...]:
        return _forth(self, inputs[0].shape[1]).scratch(self.output(*inputs))

    def gradient_scratch(self, *inputs: ArraySpec) -> tuple[ArraySpec, ...]:
        return _forth(self, inputs[0].shape[1]).gradient_scratch(self.output(*inputs))

    def cost(self, *inputs: ArraySpec) -> Cost:
        (x,) = inputs
        product = 2.0 * x.size * (self.channels // self.groups) * self.box.elements
        return self._cost(x, self.output(x), product)

    def _turned(self, b: Buffers, volumes: Array) -> tuple[Conv3d, Buffers]:
        """The convolution of `volumes`, and its buffers: what is x here is its output."""
        x = b.inputs[0]
        turned = Buffers((volumes,), x, b.parameters[:1], scratch=b.scratch, output_gradient=x)
        return _forth(self, x.shape[1]), turned

    def forward(self, b: Buffers, mode: Mode) -> None:
        conv, turned = self._turned(b, b.output)
        turned.input_gradients = (b.output,)
        conv.input_gradient(turned, mode)
        if self.bias:
            b.output[...] += b.parameters[1][:, None, None, None]

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
            array_module(dy).sum(dy, axis=(0, 2, 3, 4), out=b.weight_gradients[1])


@lru_cache(maxsize=1024)
def _forth(kernel: ConvTranspose3d, channels: int) -> Conv3d:
    """The convolution of which it is the way back."""
    return Conv3d(
        channels,
        kernel.kernel_size,
        kernel.stride,
        kernel.padding,
        kernel.dilation,
        kernel.groups,
        bias=False,
    )
