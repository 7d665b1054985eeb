"""Operators on images: convolution, pools, and the norms across channels. Those on volumes: volumes.py.

A line, (N, channels, width), is an image of height 1 to them, by views before and behind.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ....kernels.arithmetic import ArithmeticWeight
from ....kernels.batch_norm import BatchNorm, InstanceNorm
from ....kernels.conv import Conv2d
from ....kernels.conv_transpose import ConvTranspose2d
from ....kernels.kernel import Kernel
from ....kernels.pool import AveragePool2d, GlobalAveragePool2d, MaxPool2d
from ....kernels.rearrange import Transpose
from ....kernels.response_norm import ResponseNorm
from .node import At, Dynamic, Operand, Static, show

Reading = Callable[[At], Operand]


def _image(at: At) -> Dynamic:
    """The input, which must be images or lines in a batch, as images."""
    x = at.value(0)
    if not at.writing.batched or len(x.shape) not in (3, 4):
        at.refuse(
            f"its input has shape {show(x.shape)}; Weft's kernel takes images (N, channels, height, width), "
            "without the height, or with a depth before it"
        )
    return at.as_image(x) if len(x.shape) == 3 else x


def _of_lines(at: At) -> bool:
    return len(at.value(0).shape) == 3


def _shown(at: At, y: Dynamic) -> Dynamic:
    """What was computed of an image, as the file has it."""
    return at.as_line(y) if _of_lines(at) else y


def _pair(at: At, attribute: str, default: list[int]) -> list[int]:
    """An attribute along height and width."""
    given = list(at.attributes.get(attribute, default[_of_lines(at) :]))
    return [1, *given] if _of_lines(at) else given


def sides(
    at: At, image: Sequence[int], kernel: Sequence[int], strides: Sequence[int], dilations: Sequence[int]
) -> list[int]:
    """Padding before each axis and then behind each, from `pads` or `auto_pad`; of an image, or a volume."""
    axes = ("front", "top", "left")[3 - len(image) :], ("back", "bottom", "right")[3 - len(image) :]
    mode = at.attributes.get("auto_pad", "NOTSET")
    if mode in ("NOTSET", ""):
        words = [*axes[0], *axes[1]] if not _of_lines(at) else ["left", "right"]
        pads = [int(each) for each in at.attributes.get("pads", [0] * len(words))]
        if len(pads) != len(words):
            kind = {2: "lines", 4: "images", 6: "volumes"}[len(words)]
            at.refuse(f"pads are {pads}; {kind} have {len(words)}: {', '.join(words)}")
        return [0, pads[0], 0, pads[1]] if _of_lines(at) else pads
    if mode == "VALID":
        return [0] * 2 * len(image)
    if mode not in ("SAME_UPPER", "SAME_LOWER"):
        at.refuse(f"auto_pad is {mode!r}; ONNX has NOTSET, VALID, SAME_UPPER and SAME_LOWER")
    before, after = [], []
    for extent, size, stride, dilation in zip(image, kernel, strides, dilations, strict=True):
        total = max(0, (-(-extent // stride) - 1) * stride + (size - 1) * dilation + 1 - extent)
        less, more = total // 2, total - total // 2
        before.append(less if mode == "SAME_UPPER" else more)
        after.append(more if mode == "SAME_UPPER" else less)
    return [*before, *after]


def _filters(at: At) -> NDArray[np.float32]:
    """Stored filters, of lines as those of images."""
    weight, shape = at.weight(1, "filters"), at.value(0).shape
    if weight.ndim != len(shape):
        at.refuse(f"its filters have shape {weight.shape}, and its input {show(shape)}")
    if _of_lines(at):
        weight = weight[:, :, None]
    size = list(weight.shape[2:])
    if (given := _pair(at, "kernel_shape", size)) != size:
        at.refuse(f"kernel_shape is {given}, but its filters are {size}")
    return weight


def conv(at: At) -> Operand:
    """Conv with stored filters."""
    x, weight = _image(at), _filters(at)
    strides, dilations = _pair(at, "strides", [1, 1]), _pair(at, "dilations", [1, 1])
    size = list(weight.shape[2:])
    weights = (weight, at.weight(2, "bias")) if at.given(2) else (weight,)
    kernel = at.kernel(
        Conv2d, channels=weight.shape[0], kernel_size=size, stride=strides, dilation=dilations,
        padding=sides(at, x.shape[2:], size, strides, dilations),
        groups=int(at.attributes.get("group", 1)), bias=at.given(2),
    )  # fmt: skip
    return _shown(at, at.add(kernel, x, weights=weights))


def conv_transpose(at: At) -> Operand:
    """ConvTranspose with stored filters."""
    x, weight = _image(at), _filters(at)
    strides, dilations = _pair(at, "strides", [1, 1]), _pair(at, "dilations", [1, 1])
    more = [0] * _of_lines(at) + list(at.attributes.get("output_padding", [0] * (len(at.value(0).shape) - 2)))
    size, groups = list(weight.shape[2:]), int(at.attributes.get("group", 1))
    padding, missing = of_transpose(at, x.shape[2:], size, strides, dilations, more)
    weights = (weight, at.weight(2, "bias")) if at.given(2) else (weight,)
    kernel = at.kernel(
        ConvTranspose2d, channels=weight.shape[1] * groups, kernel_size=size, stride=strides, padding=padding,
        output_padding=missing, dilation=dilations, groups=groups, bias=at.given(2),
    )  # fmt: skip
    return _shown(at, at.add(kernel, x, weights=weights))


def of_transpose(
    at: At,
    image: Sequence[int],
    size: Sequence[int],
    strides: Sequence[int],
    dilations: Sequence[int],
    more: Sequence[int],
) -> tuple[list[int], Sequence[int]]:
    """Padding, as `sides`, and output_padding of a ConvTranspose."""
    mode, wanted = at.attributes.get("auto_pad", "NOTSET"), list(at.attributes.get("output_shape", ()))
    if mode not in ("SAME_UPPER", "SAME_LOWER") and not wanted:
        return sides(at, image, size, strides, dilations), more
    if not wanted:
        wanted = [extent * stride for extent, stride in zip(image, strides, strict=True)]
    elif _of_lines(at):
        wanted = [1, wanted[-1]]
    return _cut(image, wanted, size, strides, dilations, more, mode == "SAME_UPPER")


def _cut(
    image: Sequence[int],
    wanted: Sequence[int],
    size: Sequence[int],
    strides: Sequence[int],
    dilations: Sequence[int],
    more: Sequence[int],
    upper: bool,
) -> tuple[list[int], list[int]]:
    """Padding and output_padding with which a ConvTranspose gives images of the wanted extents."""
    before, after, missing = [], [], []
    for extent, target, k, stride, dilation, add in zip(
        image, wanted, size, strides, dilations, more, strict=True
    ):
        total = stride * (extent - 1) + add + (k - 1) * dilation + 1 - target
        less = max(total, 0) // 2
        rest = max(total, 0) - less
        before.append(less if upper else rest)
        after.append(rest if upper else less)
        missing.append(add + max(-total, 0))
    return [*before, *after], missing


def _pool(at: At, kind: type[MaxPool2d | AveragePool2d], **attributes: Any) -> Operand:
    x = _image(at)
    size, strides, padding = of_pool(at, x.shape[2:], 2, **attributes)
    kernel = at.kernel(kind, kernel_size=size, stride=strides, padding=padding, **attributes)
    return _shown(at, at.add(kernel, x))


def of_pool(
    at: At, image: Sequence[int], axes: int, *, count_include_pad: bool = False
) -> tuple[list[int], list[int], list[int]]:
    """Extents, strides and padding, as `sides`, of a pool's windows along so many axes."""
    ones = [1] * _of_lines(at)
    size = [*ones, *at.attributes["kernel_shape"]]
    strides = [*ones, *at.attributes.get("strides", [1] * (axes - len(ones)))]
    if any(each != 1 for each in at.attributes.get("dilations", [1])):
        at.refuse(f"dilations are {at.attributes['dilations']}; Weft's pools have none")
    padding = sides(at, image, size, strides, [1] * axes)
    if at.attributes.get("ceil_mode", 0):
        before, after = padding[:axes], padding[axes:]
        more = [_last_window(*each) for each in zip(image, size, strides, before, after, strict=True)]
        if any(more) and count_include_pad:
            at.refuse("ceil_mode with count_include_pad counts some of the padding and some not")
        padding = [*before, *(one + other for one, other in zip(after, more, strict=True))]
    return size, strides, padding


def _last_window(extent: int, size: int, stride: int, before: int, after: int) -> int:
    """How much more padding `ceil_mode` is: a last window counts that begins inside and ends outside."""
    room = extent + before + after - size
    count = -(-room // stride)
    if count * stride >= extent + before:
        count -= 1
    return max(0, count * stride - room)


def max_pool(at: At) -> Operand:
    """MaxPool; the winners' places, its second output, have no reader."""
    return _pool(at, MaxPool2d)


def average_pool(at: At) -> Operand:
    """AveragePool."""
    return _pool(at, AveragePool2d, count_include_pad=bool(at.attributes.get("count_include_pad", 0)))


def global_average_pool(at: At) -> Operand:
    """GlobalAveragePool; the axes that Weft drops come back as a view."""
    x = _image(at)
    ones = (1,) if _of_lines(at) else (1, 1)
    return at.reshape(at.add(GlobalAveragePool2d(), x), (*x.shape[:2], *ones))


def global_max_pool(at: At) -> Operand:
    """GlobalMaxPool: a window as large as the image."""
    x = _image(at)
    return _shown(at, at.add(at.kernel(MaxPool2d, x.shape[2:]), x))


def batch_normalization(at: At) -> Operand:
    """BatchNormalization; its statistics move when it is trained."""
    if at.attributes.get("training_mode", 0):
        at.refuse("training_mode is 1; export the model for inference: Weft trains that, too")
    if not at.attributes.get("spatial", 1):
        at.refuse("spatial is 0; Weft normalises channels")
    if not at.writing.batched:
        at.refuse("it needs a batch; read the model with batched=True")
    kernel = at.kernel(
        BatchNorm,
        epsilon=float(at.attributes.get("epsilon", 1e-5)),
        momentum=1 - float(at.attributes.get("momentum", 0.9)),  # ONNX's is what stays
    )
    words = ("scale", "bias", "mean", "variance")
    weights = tuple(at.weight(index + 1, word) for index, word in enumerate(words))
    x = at.loose(0)
    if x.folded and not x.layout and len(x.shape) == 2:
        return _norm_of_rows(at, x, kernel, weights)
    x = at.plain(x)
    if (image := at.image_beneath(x)) is not None:
        return at.as_line(at.add(kernel, image, weights=weights))
    return at.add(kernel, x, weights=weights)


def _norm_of_rows(at: At, x: Dynamic, kernel: Kernel, weights: tuple[NDArray[np.float32], ...]) -> Operand:
    """One of (N · places, channels), which the batch is folded into: over samples and places alike."""
    *places, channels = range(1, len(x.spec.shape))
    y = at.add(at.kernel(Transpose, (channels, *places)), x, part="channels")
    y = at.add(kernel, y, weights=weights)
    return at.along(x, at.add(at.kernel(Transpose, (*(place + 1 for place in places), 1)), y, part="rows"))


def instance_normalization(at: At) -> Operand:
    """InstanceNormalization; exporters write one without weights with constants that do nothing."""
    if not at.writing.batched:
        at.refuse("it needs a batch; read the model with batched=True")
    weights = at.weight(1, "scale"), at.weight(2, "bias")
    learned = any(isinstance(each, Static) and each.trained for each in at.inputs)
    x = at.value(0)
    neutral = (np.ones(x.shape[1:2], np.float32), np.zeros(x.shape[1:2], np.float32))
    affine = learned or not all(map(np.array_equal, weights, neutral))
    kernel = at.kernel(InstanceNorm, float(at.attributes.get("epsilon", 1e-5)), affine)
    return at.add(kernel, x, weights=weights if affine else ())


def group_normalization(at: At) -> Operand:
    """GroupNormalization: each group of channels as one, then a weight and a bias for every channel."""
    x = at.value(0)
    if not at.writing.batched or at.version < 21:
        at.refuse("Weft reads it with a batch and as of operator set 21, where each channel has a scale")
    groups = int(at.attributes["num_groups"])
    if groups < 1 or x.shape[1] % groups:  # of 4 channels with 15 pixels, 3 groups would be 20 numbers each
        at.refuse(f"num_groups is {groups}; give a number that divides the {x.shape[1]} channels")
    kernel = at.kernel(InstanceNorm, float(at.attributes.get("epsilon", 1e-5)), affine=False)
    y = at.add(
        kernel, at.reshape(x, (x.shape[0], groups, prod(x.shape[1:]) // groups), part="groups"), part="norm"
    )
    y = at.reshape(y, x.shape, part="channels")
    for index, word, operator, part in ((1, "scale", "mul", "scaled"), (2, "bias", "add", "")):
        weight, operand = at.weight(index, word), at.operand(index)
        shape = (x.shape[1], *(1,) * (len(x.shape) - 2))
        trained = isinstance(operand, Static) and operand.trained
        kernel = at.kernel(ArithmeticWeight, operator, shape, trained=trained)
        y = at.add(kernel, y, weights=(weight.reshape(shape),), part=part)
    return y


def lrn(at: At) -> Operand:
    """LRN."""
    kernel = at.kernel(
        ResponseNorm, int(at.attributes["size"]), float(at.attributes.get("alpha", 1e-4)),
        float(at.attributes.get("beta", 0.75)), float(at.attributes.get("bias", 1.0)),
    )  # fmt: skip
    return _shown(at, at.add(kernel, _image(at)))
