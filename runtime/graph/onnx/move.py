"""Operators that move elements or rename their axes, and those that only matter while a file is read."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ....kernels.embedding import Embedding
from ....kernels.function import Cast
from ....kernels.rearrange import Pad, Slice, Take, Transpose
from ....kernels.resample import SHARPNESS, WAYS, Resample
from ....kernels.resample import places as counted_places
from ....kernels.shape import Concat
from .node import OTHER_BATCH, UNKNOWN_BATCH, At, Dynamic, Operand, Static, show
from .package import dtype


def identity(at: At) -> Operand:
    """Identity: another name for the same."""
    return at.operand(0)


def shape(at: At) -> Operand:
    """Shape, known when the file is read."""
    x = at.anyhow(0)
    start, end = int(at.attributes.get("start", 0)), at.attributes.get("end")
    found = np.array(x.shape[start : None if end is None else int(end)], np.int64)
    times, rest = np.divmod(found, UNKNOWN_BATCH)
    of_batch = (at.writing.batch == UNKNOWN_BATCH) & (rest == 0)
    return Static(found, other=np.where(of_batch, times * OTHER_BATCH, found) if of_batch.any() else None)


def cast(at: At) -> Operand:
    """Cast."""
    x = at.moved(0)
    wanted = dtype(int(at.attributes["to"]))
    return x if wanted == x.spec.dtype else at.add(_cast(at, wanted), x)


def _cast(at: At, wanted: str) -> Cast:
    allowed = ("float32", "float64", "float16", "int8", "int16", "int32", "int64",
               "uint8", "uint16", "uint32", "uint64", "bool")  # fmt: skip
    if wanted not in allowed:
        at.refuse(f"it converts to {wanted}, which NumPy lacks; Weft has {', '.join(allowed)}")
    return Cast(wanted)  # type: ignore[arg-type]


def reshape(at: At) -> Operand:
    """Reshape; 0 keeps an extent (unless `allowzero`), one -1 is what is left."""
    x = at.anyhow(0)
    wanted = at.integers(1, "shape", of_batch=True)
    if wanted is None:
        at.refuse("it has no shape")
    if not at.attributes.get("allowzero", 0):
        if any(extent == 0 and place >= len(x.shape) for place, extent in enumerate(wanted)):
            at.refuse(f"shape {wanted} keeps an extent that {show(x.shape)} does not have")
        wanted = [x.shape[place] if extent == 0 else extent for place, extent in enumerate(wanted)]
    if -1 in wanted:
        known = -prod(wanted)
        if known <= 0 or prod(x.shape) % known:
            at.refuse(f"{show(x.shape)} does not fit into {wanted}")
        wanted[wanted.index(-1)] = prod(x.shape) // known
    return at.reshape(x, wanted, part="")


def flatten(at: At) -> Operand:
    """Flatten into two axes."""
    x = at.anyhow(0)
    axis = int(at.attributes.get("axis", 1))
    axis = axis + len(x.shape) if axis < 0 else axis
    return at.reshape(x, (prod(x.shape[:axis]), prod(x.shape[axis:])), part="")


def squeeze(at: At) -> Operand:
    """Squeeze: axes of extent 1 go, all of them where none is given."""
    x = at.anyhow(0)
    rank = len(x.shape)
    axes = at.integers(1, "axes")
    if axes is None:
        axes = [axis for axis, extent in enumerate(x.shape) if extent == 1]
    elif not axes:
        at.refuse("its axes are empty, which is read as none and as all of extent 1; name them in the file")
    gone = set(at.counted(axes, rank))
    if any(x.shape[axis] != 1 for axis in gone):
        at.refuse(f"axes {axes} of {show(x.shape)} are not all of extent 1")
    if not x.layout:
        for axis in gone:
            at.axis(axis, rank)
    return at.reshape(x, [extent for axis, extent in enumerate(x.shape) if axis not in gone], part="")


def unsqueeze(at: At) -> Operand:
    """Unsqueeze: new axes of extent 1, numbered as the result has them."""
    x = at.anyhow(0)
    axes = at.integers(1, "axes")
    if axes is None:
        at.refuse("it has no axes")
    rank = len(x.shape) + len(axes)
    new = set(at.counted(axes, rank))
    extents = iter(x.shape)
    return at.reshape(x, [1 if axis in new else next(extents) for axis in range(rank)], part="")


def transpose(at: At) -> Operand:
    """Transpose; all axes the other way round where no order is given."""
    x = at.anyhow(0)
    rank = len(x.shape)
    order = [int(axis) for axis in at.attributes.get("perm", range(rank - 1, -1, -1))]
    if sorted(order) != list(range(rank)):
        at.refuse(f"perm {order} does not name each of the {rank} axes of {show(x.shape)} once")
    return turned(at, x, order)


def turned(at: At, x: Dynamic, order: Sequence[int]) -> Dynamic:
    """The value with its axes in another order, which may move the batch."""
    if at.writing.batched and (order[0] != 0 or x.folded):
        return at.transposed(x, order)
    return ordered(at, x, order)


def ordered(at: At, x: Dynamic, order: Sequence[int], part: str = "") -> Dynamic:
    """The value with its axes in another order, which leaves the batch where it is."""
    axes = tuple(order[1:]) if at.writing.batched else tuple(axis + 1 for axis in order)
    if list(axes) == sorted(axes):
        return x
    return at.add(at.kernel(Transpose, axes), x, part=part)


def depth_to_space(at: At) -> Operand:
    """DepthToSpace: blocks of channels become blocks of pixels (PyTorch's PixelShuffle where mode is CRD)."""
    x, size = at.moved(0), int(at.attributes["blocksize"])
    if len(x.shape) != 4 or size < 1 or x.shape[1] % size**2:
        at.refuse(f"blocks of {size} by {size} of {show(x.shape)}; give images, channels a multiple of those")
    n, channels, height, width = x.shape
    less = channels // size**2
    if _blocks_first(at):
        apart, order = (n, size, size, less, height, width), (0, 3, 4, 1, 5, 2)
    else:
        apart, order = (n, less, size, size, height, width), (0, 1, 4, 2, 5, 3)
    blocks = ordered(at, at.reshape(x, apart, part="apart"), order, part="order")
    return at.reshape(blocks, (n, less, height * size, width * size), part="")


def _blocks_first(at: At) -> bool:
    """Whether a pixel's place in its block counts before its channel (DCR)."""
    if (mode := at.attributes.get("mode", "DCR")) not in ("DCR", "CRD"):
        at.refuse(f"mode is {mode!r}; ONNX has DCR and CRD")
    return str(mode) == "DCR"


def space_to_depth(at: At) -> Operand:
    """SpaceToDepth: blocks of pixels become blocks of channels."""
    x, size = at.moved(0), int(at.attributes["blocksize"])
    if len(x.shape) != 4 or size < 1 or x.shape[2] % size or x.shape[3] % size:
        at.refuse(f"blocks of {size} by {size} of {show(x.shape)}; give images whose sides are multiples")
    n, channels, height, width = x.shape
    apart = (n, channels, height // size, size, width // size, size)
    order = (0, 3, 5, 1, 2, 4) if _blocks_first(at) else (0, 1, 3, 5, 2, 4)
    blocks = ordered(at, at.reshape(x, apart, part="apart"), order, part="order")
    return at.reshape(blocks, (n, channels * size**2, height // size, width // size), part="")


def _nothing(shape: Sequence[int]) -> Static:
    """Weft has no empty arrays in its graphs; what is empty is known when the file is read."""
    other = (OTHER_BATCH, *shape[1:]) if tuple(shape[:1]) == (UNKNOWN_BATCH,) else None
    return Static(np.zeros(shape, np.float32), other=None if other is None else np.zeros(other, np.float32))


def concat(at: At) -> Operand:
    """Concat; stored parts become values of their own."""
    operands = [at.operand(index) for index in range(len(at.inputs))]
    operands = [each for each in operands if isinstance(each, Dynamic) or each.array.size]
    values = [at.settled(each, "kept") for each in operands if isinstance(each, Dynamic)]
    if len(operands) == 1:
        return values[0]
    rank, given = len(values[0].shape), int(at.attributes["axis"])
    if len(values) == len(operands) and values[0].layout and len({each.layout for each in values}) == 1:
        (counted,) = at.counted([given], rank)
        y = at.add(at.kernel(Concat, at.place(values[0], counted)), *values)
        return at.at_place(values[0], y, counted)
    axis = at.axis(given, rank)
    parts = [at.plain(each) if isinstance(each, Dynamic) else at.constant(each, rank) for each in operands]
    return at.add(Concat(axis), *parts)


def split(at: At) -> tuple[Operand, ...]:
    """Split: a slice for every part, equal ones where no lengths are given."""
    x = at.along_axis(0)
    given = int(at.attributes.get("axis", 0))
    axis = at.place(x, given)
    (given,) = at.counted([given], len(x.shape))
    extent = x.shape[given]
    lengths = at.integers(1, "split")
    if lengths is None:
        each = -(-extent // int(at.attributes.get("num_outputs", len(at.outputs))))
        lengths = [min(each, extent - start) for start in range(0, extent, each)]
    if sum(lengths) != extent:
        at.refuse(f"its parts {lengths} are not the {extent} of axis {given}")
    parts: list[Operand] = []
    start = 0
    for number, length in enumerate(lengths):
        if not length:
            parts.append(_nothing((*x.shape[:given], 0, *x.shape[given:][1:])))
            continue
        kernel = at.kernel(Slice, axis, start, start + length)
        parts.append(at.at_place(x, at.add(kernel, x, part=str(number)), given))
        start += length
    return tuple(parts)


def cut(at: At) -> Operand:
    """Slice, one axis after the other; backwards it is a choice of indices."""
    x = at.along_axis(0)
    rank = len(x.shape)
    starts, ends = at.integers(1, "starts"), at.integers(2, "ends", of_batch=True)
    if starts is None or ends is None:
        at.refuse("it has no starts or no ends")
    axes = at.counted(at.integers(3, "axes") or range(len(starts)), rank)
    steps = at.integers(4, "steps") or [1] * len(starts)
    if not len(starts) == len(ends) == len(axes) == len(steps):
        at.refuse(f"it has {len(starts)} starts, {len(ends)} ends, {len(axes)} axes and {len(steps)} steps")
    if 0 in steps:
        at.refuse("a step of 0")
    if at.given(2):
        _require_ends(at, axes, starts, ends)
    chosen = [
        # Backwards, a start before the first element is the first; Python begins nowhere.
        (axis, range(x.shape[axis])[max(start, -x.shape[axis]) if step < 0 else start : end : step])
        for axis, start, end, step in zip(axes, starts, ends, steps, strict=True)
    ]
    chosen = [(axis, places) for axis, places in chosen if places != range(x.shape[axis])]
    owns = [at.place(x, axis) for axis, _ in chosen]
    if not all(places for _, places in chosen):
        extents = {axis: len(places) for axis, places in chosen}
        return _nothing([extents.get(axis, extent) for axis, extent in enumerate(x.shape)])
    for count, (own, (axis, places)) in enumerate(zip(owns, chosen, strict=True), 1):
        kernel = (
            at.kernel(Slice, own, places.start, places[-1] + 1, places.step)
            if places.step > 0
            else at.kernel(Take, own, tuple(places))
        )
        x = at.at_place(x, at.add(kernel, x, part="" if count == len(chosen) else str(axis)), axis)
    return x


def _require_ends(at: At, axes: Sequence[int], starts: Sequence[int], ends: Sequence[int]) -> None:
    """Refuse a Slice that ends where an open batch does, unless it is one of the whole batch."""
    given = at.operand(2)
    if not isinstance(given, Static) or given.other is None:
        return
    others = given.other.reshape(-1).tolist()
    for axis, start, end, other in zip(axes, starts, ends, others, strict=True):
        whole = (start, end, other) == (0, UNKNOWN_BATCH, OTHER_BATCH)
        if end != other and (axis or not whole):
            at.check_fixed(given)


def pad(at: At) -> Operand:
    """Pad: what is cut off by a negative one goes first; at a mirror or an edge elements are taken again."""
    x = at.moved(0)
    rank = len(x.shape)
    mode = at.attributes.get("mode", "constant")
    pads = at.integers(1, "pads") or [int(each) for each in at.attributes.get("paddings", ())]
    axes = at.counted(at.integers(3, "axes") or range(rank), rank)
    if len(pads) != 2 * len(axes):
        at.refuse(f"it has {len(pads)} pads for {len(axes)} axes; each axis has one before and one after")
    sides = {axis: (pads[place], pads[place + len(axes)]) for place, axis in enumerate(axes)}
    sides = {axis: pair for axis, pair in sides.items() if any(pair)}
    owns = {axis: at.axis(axis, rank) for axis in sides}
    if mode != "constant":
        if mode not in ("reflect", "edge", "wrap"):
            at.refuse(f"its mode is {mode!r}; Weft pads with a constant, or by reflect, edge or wrap")
        for axis, pair in sides.items():
            if min(pair) < 0:
                at.refuse(f"its pads of axis {axis} are {pair}; by {mode} Weft only adds elements")
            taken = np.pad(np.arange(x.shape[axis]), pair, mode=mode)
            x = at.add(at.kernel(Take, owns[axis], tuple(taken.tolist())), x)
        return x
    for axis, (before, after) in sides.items():
        if min(before, after) < 0:
            kept = slice(max(-before, 0), x.shape[axis] + min(after, 0))
            x = at.add(at.kernel(Slice, owns[axis], kept.start, kept.stop), x, part=f"cut{axis}")
    value = at.static(2, "value").reshape(()) if at.given(2) else at.attributes.get("value", 0.0)
    own = [(0, 0)] * (len(x.spec.shape) - 1)
    for axis, (before, after) in sides.items():
        own[owns[axis] - 1] = max(before, 0), max(after, 0)
    if not any(map(any, own)):
        return x
    befores, afters = zip(*own, strict=True)
    return at.add(at.kernel(Pad, befores, afters, float(value)), x)


def _wanted(at: At, index: int, rank: int) -> list[int]:
    """Extents of a result, of which the first alone may be that of an open batch."""
    given, wanted = at.operand(index), at.integers(index, "extents", of_batch=True) or []
    if isinstance(given, Static) and given.other is not None:
        if len(wanted) == rank and np.array_equal(given.array[1:], given.other[1:]):
            return wanted
        at.check_fixed(given)
    return wanted


NEAREST: dict[str, Callable[[NDArray[Any]], NDArray[Any]]] = {
    "round_prefer_floor": lambda x: np.ceil(x - 0.5),
    "round_prefer_ceil": lambda x: np.floor(x + 0.5),
    "floor": np.floor,
    "ceil": np.ceil,
}

ENLARGED = (("half_pixel", "round"), ("pytorch_half_pixel", "round"), ("asymmetric", "floor"))
"""Ways to count and to round places by which an element comes as many times as a whole factor says."""


def resize(at: At) -> Operand:
    """Resize, one axis after the other: to the nearest elements, which are taken, or between neighbours."""
    x = at.moved(0)
    rank = len(x.shape)
    axes = at.counted(at.attributes.get("axes", range(rank)), rank)
    if at.given(3):
        wanted = _wanted(at, 3, rank)
        factors = [extent / x.shape[axis] for extent, axis in zip(wanted, axes, strict=True)]
        cut = [False] * len(wanted)
    else:
        given = at.attributes.get("scales")  # of Upsample in operator set 7
        if given is None:
            given = at.static(1 if at.version < 11 else 2, "scales").reshape(-1)
        factors = [float(each) for each in given]
        # In float32, as PyTorch and onnxruntime count: 0.7 is a little less there, and of 10 it made 6.
        products = [x.shape[axis] * np.float32(each) for axis, each in zip(axes, factors, strict=True)]
        wanted = [int(product) for product in products]
        cut = [bool(product != extent) for product, extent in zip(products, wanted, strict=True)]
    mode = at.attributes.get("mode", "nearest")
    way = at.attributes.get("coordinate_transformation_mode", "half_pixel")
    rounding = at.attributes.get("nearest_mode", "round_prefer_floor")
    if at.version < 11:
        way, rounding = "asymmetric", "floor"
    if (policy := at.attributes.get("keep_aspect_ratio_policy", "stretch")) != "stretch":
        at.refuse(
            f"its keep_aspect_ratio_policy is {policy!r}, which changes its sizes; store those that result"
        )
    if mode not in ("nearest", "linear", "cubic") or way not in WAYS or rounding not in NEAREST:
        ways = ", ".join(WAYS)
        at.refuse(f"it is {mode}, {way}, {rounding}; Weft has nearest, linear and cubic, by {ways}")
    if at.attributes.get("antialias", 0) and any(factor < 1 for factor in factors):
        at.refuse("its antialias is on; Weft makes images smaller without")
    sharpness = float(at.attributes.get("cubic_coeff_a", SHARPNESS))
    if mode == "cubic" and (sharpness != SHARPNESS or at.attributes.get("exclude_outside", 0)):
        at.refuse(f"its cubic_coeff_a is {sharpness}, or exclude_outside on; Weft has {SHARPNESS}, and none")
    if any(cut) and way == "align_corners":  # whether the last corner is the cut one, runtimes disagree
        at.refuse(f"its scales are {factors}, of {show(x.shape)} no whole number; store sizes instead")
    if min(wanted, default=1) < 1:
        at.refuse(f"it makes {wanted} of {show(x.shape)}, which is nothing")
    for axis, factor, extent, rounded in zip(axes, factors, wanted, cut, strict=True):
        if factor == 1:
            continue
        own = at.axis(axis, rank)
        if mode == "nearest":
            exact = factor.is_integer() and (way, rounding.removesuffix("_prefer_floor")) in ENLARGED
            found = np.arange(extent) // int(factor or 1) if exact else None
            if found is None:  # in float32, as onnxruntime has it: a floor shows the difference
                if way == "half_pixel_symmetric":
                    at.refuse(f"which elements are nearest by {way}, runtimes disagree; export another way")
                found = NEAREST[rounding](counted_places(x.shape[axis], extent, way, factor, np.float32))
            chosen = np.clip(found, 0, x.shape[axis] - 1).astype(int)
            x = at.add(at.kernel(Take, own, tuple(chosen.tolist())), x)
        else:
            x = at.add(at.kernel(Resample, own, extent, mode, way, factor if rounded else 0.0), x)
    return x


def expand(at: At) -> Operand:
    """Expand: the only element of an axis, taken as often as it is to be there."""
    x = at.moved(0)
    wanted = _wanted(at, 1, len(x.shape))
    shape = np.broadcast_shapes(x.shape, tuple(wanted))
    if at.writing.batched and len(shape) > len(x.shape):
        at.refuse(f"{show(x.shape)} becomes {show(shape)}, with axes before the batch")
    x = at.reshape(x, (1,) * (len(shape) - len(x.shape)) + x.shape, part="axes")
    for axis, extent in enumerate(shape):
        if x.shape[axis] != extent:
            own = at.axis(axis, len(shape))
            x = at.add(at.kernel(Take, own, (0,) * extent), x)
    return x


def tile(at: At) -> Operand:
    """Tile: every axis but the batch as often as it is to be there."""
    x = at.moved(0)
    repeats = at.integers(1, "repeats") or []
    if at.version < 6 or len(repeats) != len(x.shape) or min(repeats) < 1:
        at.refuse(
            f"repeats are {repeats} of {show(x.shape)}; give 1 or more for each axis, as of operator set 6"
        )
    for axis, count in enumerate(repeats):
        if count > 1:
            taken = np.tile(np.arange(x.shape[axis]), count)
            x = at.add(at.kernel(Take, at.axis(axis, len(repeats)), tuple(taken.tolist())), x)
    return x


def gather(at: At) -> Operand:
    """Gather: stored rows by computed tokens (an embedding), or computed elements by stored indices."""
    data, indices = at.operand(0), at.operand(1)
    axis = int(at.attributes.get("axis", 0))
    if isinstance(indices, Dynamic):
        if isinstance(data, Dynamic) or axis % data.array.ndim != 0:
            at.refuse(
                "its indices are computed; Weft looks up computed tokens along axis 0 of a stored table"
            )
        if data.array.dtype.kind != "f":
            at.refuse(f"its table is {data.array.dtype}; Weft's are float32")
        table = at.weight(0, "table")
        kernel = at.kernel(Embedding, len(table), prod(table.shape[1:]), from_end=True)
        y = at.add(kernel, at.plain(indices), weights=(table.reshape(len(table), -1),))
        return at.reshape(y, (*indices.shape, *table.shape[1:]))
    assert isinstance(data, Dynamic)
    x, rank = at.along_axis(0), len(data.shape)
    own, (axis,) = at.place(x, axis), at.counted([axis], rank)
    at.check_fixed(indices)
    extent = x.shape[axis]
    found = [int(each) for each in indices.array.reshape(-1)]
    if wrong := [each for each in found if not -extent <= each < extent]:
        at.refuse(f"index {wrong[0]} lies outside of axis {axis} of {show(x.shape)}")
    places = [each % extent for each in found]
    whole = (*x.shape[:axis], *indices.array.shape, *x.shape[axis + 1 :])
    if not places:
        return _nothing(whole)
    straight = places == list(range(places[0], places[0] + len(places)))
    kernel = (
        at.kernel(Slice, own, places[0], places[-1] + 1) if straight else at.kernel(Take, own, tuple(places))
    )
    renamed = indices.array.ndim != 1
    taken = at.at_place(x, at.add(kernel, x, part="take" if renamed else ""), axis)
    return at.reshape(taken, whole, part="")
