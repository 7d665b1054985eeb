"""Operators on volumes, (N, channels, depth, height, width): convolutions, and pools as two of images.

    (N, C, D, H, W) ─view─> (N, C · D, H, W) ── pool in the plane ──> (N, C · D, OH, OW)
                    ─view─> (N, C, D, OH · OW) ── pool along the depth ──> (N, C, OD, OH · OW) ─view─>

The largest of a box is the largest of its layers' largest, and a mean that of their means: also where some of
the box is padding, for what is none of it is a box, too.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ....kernels.conv3d import Conv3d, ConvTranspose3d
from ....kernels.pool import AveragePool2d, GlobalAveragePool2d, MaxPool2d
from . import images
from .images import Reading
from .node import At, Dynamic, Operand

AXES = ("depth", "height", "width")


def or_images(of_volumes: Reading, of_images: Reading) -> Reading:
    """The reading of an operator that takes either, by how many axes its input has."""
    return lambda at: (of_volumes if _is_volume(at) else of_images)(at)


def _is_volume(at: At) -> bool:
    x = at.operand(0)
    return isinstance(x, Dynamic) and len(x.shape) == 5 and at.writing.batched


def _three(at: At, attribute: str, default: int = 1) -> list[int]:
    given = [int(each) for each in at.attributes.get(attribute, [default] * 3)]
    if len(given) != 3:
        at.refuse(f"{attribute} is {given}; volumes have {len(AXES)} numbers: {', '.join(AXES)}")
    return given


def _weights(at: At) -> tuple[Any, ...]:
    weight = at.weight(1, "filters")
    if weight.ndim != 5:
        at.refuse(f"its filters have shape {weight.shape}, and its input is a volume")
    if (given := list(at.attributes.get("kernel_shape", weight.shape[2:]))) != list(weight.shape[2:]):
        at.refuse(f"kernel_shape is {given}, but its filters are {list(weight.shape[2:])}")
    return (weight, at.weight(2, "bias")) if at.given(2) else (weight,)


def conv(at: At) -> Operand:
    """Conv with stored filters."""
    x, weights = at.value(0), _weights(at)
    strides, dilations = _three(at, "strides"), _three(at, "dilations")
    size = list(weights[0].shape[2:])
    kernel = at.kernel(
        Conv3d, channels=weights[0].shape[0], kernel_size=size, stride=strides, dilation=dilations,
        padding=images.sides(at, x.shape[2:], size, strides, dilations),
        groups=int(at.attributes.get("group", 1)), bias=at.given(2),
    )  # fmt: skip
    return at.add(kernel, x, weights=weights)


def conv_transpose(at: At) -> Operand:
    """ConvTranspose with stored filters."""
    x, weights = at.value(0), _weights(at)
    strides, dilations, more = _three(at, "strides"), _three(at, "dilations"), _three(at, "output_padding", 0)
    size, groups = list(weights[0].shape[2:]), int(at.attributes.get("group", 1))
    padding, missing = images.of_transpose(at, x.shape[2:], size, strides, dilations, more)
    kernel = at.kernel(
        ConvTranspose3d, channels=weights[0].shape[1] * groups, kernel_size=size, stride=strides,
        padding=padding, output_padding=missing, dilation=dilations, groups=groups, bias=at.given(2),
    )  # fmt: skip
    return at.add(kernel, x, weights=weights)


def max_pool(at: At) -> Operand:
    """MaxPool."""
    return _pool(at, MaxPool2d)


def average_pool(at: At) -> Operand:
    """AveragePool."""
    return _pool(at, AveragePool2d, count_include_pad=bool(at.attributes.get("count_include_pad", 0)))


def _pool(at: At, kind: type[MaxPool2d | AveragePool2d], **attributes: Any) -> Operand:
    x = at.value(0)
    size, strides, padding = images.of_pool(at, x.shape[2:], 3, **attributes)
    samples, channels, depth, height, width = x.shape

    def stage(y: Dynamic, axes: Sequence[int], part: str) -> Dynamic:
        own, steps = [size[axis] for axis in axes], [strides[axis] for axis in axes]
        around = [padding[side] for side in (*axes, *(axis + 3 for axis in axes))]
        if len(axes) == 1:
            own, steps, around = [*own, 1], [*steps, 1], [around[0], 0, around[1], 0]
        if set(own) == set(steps) == {1} and not any(around):
            return y
        kernel = at.kernel(kind, kernel_size=own, stride=steps, padding=around, **attributes)
        return at.add(kernel, y, part=part)

    y = stage(at.reshape(x, (samples, channels * depth, height, width), "layers"), (1, 2), "plane")
    *_, height, width = y.shape
    y = stage(at.reshape(y, (samples, channels, depth, height * width), "columns"), (0,), "depth")
    return at.reshape(y, (samples, channels, y.shape[2], height, width), part="")


def global_average_pool(at: At) -> Operand:
    """GlobalAveragePool."""
    x = at.value(0)
    y = at.add(GlobalAveragePool2d(), at.reshape(x, (*x.shape[:2], x.shape[2], x.shape[3] * x.shape[4])))
    return at.reshape(y, (*x.shape[:2], 1, 1, 1), part="volume")


def global_max_pool(at: At) -> Operand:
    """GlobalMaxPool: a window as large as the volume."""
    x = at.value(0)
    image = at.reshape(x, (*x.shape[:3], x.shape[3] * x.shape[4]))
    return at.reshape(
        at.add(at.kernel(MaxPool2d, image.shape[2:]), image), (*x.shape[:2], 1, 1, 1), part="volume"
    )
