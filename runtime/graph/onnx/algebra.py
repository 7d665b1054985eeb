"""Operators that work element by element, norms and softmax."""

from __future__ import annotations

from collections.abc import Callable
from math import inf, prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ....kernels.activation import GELU, Dropout, ReLU, Softplus, Tanh
from ....kernels.arithmetic import Arithmetic, ArithmeticNumber, ArithmeticWeight, Operator
from ....kernels.batch_norm import InstanceNorm
from ....kernels.function import Sqrt
from ....kernels.kernel import Kernel
from ....kernels.layer_norm import LayerNorm
from ....kernels.piecewise import ELU, Clip, LeakyReLU
from ....kernels.probability import Softmax
from ....kernels.reduce import ReduceMean
from ....kernels.shape import Add, Reshape
from .node import At, Dynamic, Operand, Static, show

Reading = Callable[[At], Operand]


def layer_normalization(at: At) -> Operand:
    """LayerNormalization over the last axes, as one."""
    last = _along_last(at, -1)
    x = at.loose(0) if last else at.value(0)
    rank = len(x.shape)
    own = rank - 1 if last else at.axis(int(at.attributes.get("axis", -1)), rank)
    own -= 0 if last or at.writing.batched else 1
    over = x.shape[own:]
    scale = np.broadcast_to(at.weight(1, "scale"), over)
    shift = np.broadcast_to(at.weight(2, "bias") if at.given(2) else np.float32(0), over)
    epsilon = float(at.attributes.get("epsilon", 1e-5))
    if not any(isinstance(each, Static) and each.trained for each in at.inputs):
        return _fixed_norm(at, x, scale, shift, epsilon)
    kernel, weights = at.kernel(LayerNorm, epsilon), (scale.reshape(-1), shift.reshape(-1))
    if last:
        return at.along(x, at.add(kernel, x, weights=weights))
    y = at.add(kernel, at.reshape(x, (*x.shape[:own], prod(over)), part="rows"), weights=weights)
    return at.reshape(y, x.shape)


def _fixed_norm(at: At, x: Dynamic, scale: NDArray[Any], shift: NDArray[Any], epsilon: float) -> Operand:
    """One whose scale and bias are no weights, as PyTorch's without them is exported: of rows as channels."""
    own, behind = x.spec.shape, prod(scale.shape)
    rows = (prod(own[1:]) // behind, behind)
    y = at.add(at.kernel(Reshape, rows), Dynamic(x.name, x.spec, x.spec.shape), part="rows")
    y = at.add(at.kernel(InstanceNorm, epsilon, affine=False), y, part="norm")
    y = at.along(x, at.add(at.kernel(Reshape, own[1:]), y, part="normed"))
    for operator, array, neutral, part in (("mul", scale, 1, "scaled"), ("add", shift, 0, "")):
        if not (array == neutral).all():
            weight = at.kernel(ArithmeticWeight, operator, array.shape, trained=False)
            y = at.along(x, at.add(weight, y, weights=(np.ascontiguousarray(array),), part=part))
    return y


def rms_normalization(at: At) -> Operand:
    """RMSNormalization over the last axes: over the root of the mean of squares."""
    x = at.value(0)
    rank = len(x.shape)
    (first,) = at.counted([int(at.attributes.get("axis", -1))], rank)
    over = tuple(at.axis(axis, rank) for axis in range(first, rank))
    squares = at.add(ArithmeticNumber("pow", 2.0), x, part="squares")
    mean = at.add(at.kernel(ReduceMean, over, True), squares, part="mean")
    safe = at.add(ArithmeticNumber("add", float(at.attributes.get("epsilon", 1e-5))), mean, part="safe")
    normal = at.add(Arithmetic("div"), x, at.add(Sqrt(), safe, part="root"), part="normal")
    return both(at, "mul", normal, at.operand(1))


def _along_last(at: At, default: int) -> bool:
    """Whether an operator works along the last axis alone, which folded values have as others do."""
    x = at.operand(0)
    rank = len(x.array.shape if isinstance(x, Static) else x.shape)
    return rank > 1 and int(at.attributes.get("axis", default)) in (-1, rank - 1)


def softmax(kind: type[Softmax]) -> Reading:
    """Softmax and LogSoftmax; before version 13 over all axes from `axis` on, as one."""
    return lambda at: _softmax(at, kind)


def _softmax(at: At, kind: type[Softmax]) -> Operand:
    if _along_last(at, -1 if at.version >= 13 else 1):
        x = at.loose(0)
        return at.along(x, at.add(kind(), x))
    x = at.value(0)
    if at.version >= 13:
        axis = at.axis(int(at.attributes.get("axis", -1)), len(x.shape))
        return at.add(kind(axis), x)
    axis = at.axis(int(at.attributes.get("axis", 1)), len(x.shape)) - (0 if at.writing.batched else 1)
    rows = at.reshape(x, (*x.shape[:axis], prod(x.shape[axis:])), part="rows")
    return at.reshape(at.add(kind(), rows), x.shape)


WHOLE = ("add", "sub", "mul", "max", "min")
"""What is computed of whole numbers, too: places that follow from a mask, as RoBERTa counts them."""


def both(at: At, operator: Operator, first: Operand, second: Operand, part: str = "") -> Dynamic:
    """Two operands, at least one of them dynamic, element by element."""
    first, second = (at.settled(each) if isinstance(each, Dynamic) else each for each in (first, second))
    if ahead := _ones_ahead(first, second) or _ones_ahead(second, first):
        rank = min(len(_shape(each)) for each in (first, second))
        first, second = (_of_rank(at, each, rank) for each in (first, second))
        y = both(at, operator, first, second, part)
        return at.reshape(y, (*[1] * ahead, *y.shape))
    kinds = [_kind(first), _kind(second)]
    if operator in WHOLE and kinds[0] == kinds[1] and np.dtype(kinds[0]).kind in "iu":
        return _of_whole(at, operator, first, second, part)
    for kind, each in zip(kinds, (first, second), strict=True):
        exponent = operator == "pow" and each is second and isinstance(each, Static)
        if kind != "float32" and not exponent:
            at.refuse(f"an operand is {kind}; Weft computes in float32")
    if isinstance(first, Dynamic) and isinstance(second, Dynamic):
        alike = (first.shape, first.spec, first.layout) == (second.shape, second.spec, second.layout)
        if (first.folded or second.folded) and not alike:
            first, second = at.plain(first), at.plain(second)
        if not first.folded and at.writing.batched and len(first.shape) != len(second.shape):
            at.refuse(
                f"{show(first.shape)} and {show(second.shape)} are of unequal rank, so the batch of one meets"
                " another axis of the other"
            )
        kernel: Kernel = Arithmetic(operator)
        if operator == "add" and first.spec == second.spec:
            kernel = Add()
            images = [at.image_beneath(each) for each in (first, second)]
            if images[0] is not None and images[1] is not None:
                return at.as_line(at.add(kernel, images[0], images[1], part=part))
        return at.along(first, at.add(kernel, first, second, part=part))
    if isinstance(first, Static):
        return _with_static(at, operator, second, first, part, reverse=True)
    return _with_static(at, operator, first, second, part, reverse=False)


def _shape(operand: Operand) -> tuple[int, ...]:
    """In the file."""
    return operand.shape if isinstance(operand, Dynamic) else operand.array.shape


def _ones_ahead(less: Operand, more: Operand) -> int:
    """How many axes of 1, none of them the batch, `more` has ahead of all those of a value."""
    ahead = len(_shape(more)) - len(_shape(less))
    if ahead <= 0 or isinstance(less, Static) or _shape(more)[:ahead] != (1,) * ahead:
        return 0
    of_batch = isinstance(more, Dynamic) and (
        not more.layout or any(0 in group for group in more.layout[:ahead])
    )
    return 0 if of_batch else ahead


def _of_rank(at: At, operand: Operand, rank: int) -> Operand:
    """The operand without the axes of 1 that it has ahead of so many."""
    ahead = len(_shape(operand)) - rank
    if not ahead:
        return operand
    if isinstance(operand, Dynamic):
        return at.reshape(operand, operand.shape[ahead:])
    other = None if operand.other is None else operand.other.reshape(operand.other.shape[ahead:])
    return Static(operand.array.reshape(operand.array.shape[ahead:]), operand.trained, other)


def _kind(operand: Operand) -> str:
    """The dtype of an operand."""
    return operand.spec.dtype if isinstance(operand, Dynamic) else str(operand.array.dtype.name)


def _of_whole(at: At, operator: Operator, first: Operand, second: Operand, part: str) -> Dynamic:
    """The same of whole numbers, whose constants are no parameters."""
    for x, other, reverse in ((first, second, False), (second, first, True)):
        if isinstance(x, Dynamic) and isinstance(other, Static):
            array = at.per_sample(behind(at, x, other), len(x.shape))
            if array.size == 1 and array.ndim < len(x.spec.shape) and abs(int(array.reshape(()))) < 2**53:
                number = at.kernel(ArithmeticNumber, operator, float(array.reshape(())), reverse)
                return at.along(x, at.add(number, x, part=part))
    values, like = together(at, first, second)
    return at.along(like, at.add(Arithmetic(operator), *values, part=part))


def together(at: At, *operands: Operand) -> tuple[list[Dynamic], Dynamic]:
    """Operands of any type as values that are broadcast sample by sample, and one folded as they are."""
    operands = tuple(at.settled(each) if isinstance(each, Dynamic) else each for each in operands)
    values = [each for each in operands if isinstance(each, Dynamic)]
    folded = any(each.folded for each in values)
    if folded and len({(each.shape, each.spec.shape, each.layout) for each in values}) > 1:
        operands = tuple(at.plain(each) if isinstance(each, Dynamic) else each for each in operands)
        values = [each for each in operands if isinstance(each, Dynamic)]
    like = values[0]
    for each in values:
        if at.writing.batched and len(each.shape) != len(like.shape):
            at.refuse(
                f"{show(each.shape)} and {show(like.shape)} are of unequal rank, so the batch of one meets"
                " another axis of the other"
            )
    rank = len(like.shape)
    values = [
        at.constant(behind(at, like, each), rank) if isinstance(each, Static) else each for each in operands
    ]
    return values, like


def behind(at: At, x: Dynamic, static: Static) -> Static:
    """The static operand without axes of 1 that meet the batch of x, where that is folded or elsewhere.

    One with other axes there would meet what Weft's value has in its place, and is refused.
    """
    if not x.folded:
        return static
    axes = len(x.shape) - next((axis for axis, group in enumerate(x.layout) if 0 in group), 0) - 1
    while static.array.ndim > axes and static.array.shape[0] == 1 and static.other is None:
        static = Static(static.array[0], static.trained)
    if static.array.ndim > axes:
        at.refuse_folded(x)
    return static


def _with_static(
    at: At, operator: Operator, x: Operand, static: Operand, part: str, *, reverse: bool
) -> Dynamic:
    """x ∘ static, or static ∘ x: a number where it is one, else a parameter."""
    assert isinstance(x, Dynamic)
    assert isinstance(static, Static)
    static = behind(at, x, static)
    array = at.per_sample(static, len(x.shape))
    if array.size == 1 and array.ndim < len(x.spec.shape) and not static.trained:
        number = ArithmeticNumber(operator, float(array.reshape(())), reverse)
        return at.along(x, at.add(number, x, part=part))
    weighted = ArithmeticWeight(operator, array.shape, reverse, static.trained)
    return at.along(x, at.add(weighted, x, weights=(array,), part=part))


def binary(operator: Operator) -> Reading:
    """Add, Sub, Mul, Div and Pow; the exponent of a power may be of another type."""
    return lambda at: both(at, operator, at.operand(0), aligned(at))


def aligned(at: At) -> Operand:
    """The second operand; before version 7 its first axis meets the first operand's axis `axis`."""
    first, second = at.operand(0), at.operand(1)
    if at.version >= 7 or "axis" not in at.attributes:
        return second
    if isinstance(first, Static) or isinstance(second, Dynamic):
        at.refuse("its attribute 'axis' aligns computed operands; Weft reads that of a stored second one")
    rank, axis = len(first.shape), int(at.attributes["axis"])
    at.check_fixed(second)
    behind = rank - axis % rank - second.array.ndim
    if behind < 0:
        at.refuse(f"axis {axis} leaves no room in {show(first.shape)} for {show(second.array.shape)}")
    return Static(second.array.reshape(*second.array.shape, *(1,) * behind), second.trained)


def total(at: At) -> Operand:
    """Sum of any number of operands."""
    operands = [at.operand(index) for index in range(len(at.inputs))]
    values = [each for each in operands if isinstance(each, Dynamic)]
    alike = all(each.spec == values[0].spec and not each.folded for each in values)
    if len(values) == len(operands) and alike:
        return at.add(Add(), *values) if len(values) > 1 else values[0]
    rest: list[Operand] = [*values[1:], *(each for each in operands if isinstance(each, Static))]
    result = values[0]
    for other in rest:
        result = both(at, "add", result, other)
    return result


def unary(kernel: Kernel) -> Reading:
    """Operators without attributes that look at each element by itself."""
    return lambda at: _apply(at, kernel)


def _apply(at: At, kernel: Kernel) -> Operand:
    x = at.loose(0)
    if (image := at.image_beneath(x)) is not None:  # so that images stay neighbours, which merge.py looks at
        return at.as_line(at.add(kernel, image))
    return at.along(x, at.add(kernel, x))


def gelu(at: At) -> Operand:
    """Gelu."""
    return _apply(at, at.kernel(GELU, approximate=at.attributes.get("approximate", "none")))


def clip(at: At) -> Operand:
    """Clip; its bounds were attributes until operator set 11."""
    bounds = []
    for place, (name, none) in enumerate((("min", -inf), ("max", inf)), 1):
        value = at.static(place, name).reshape(()) if at.given(place) else at.attributes.get(name, none)
        bounds.append(float(value))
    return _apply(at, at.kernel(Clip, min(bounds), bounds[1]))  # of bounds in the wrong order the upper one


def selu(at: At) -> Operand:
    """Selu."""
    x = at.loose(0)
    alpha = float(at.attributes.get("alpha", 1.67326319217681884765625))
    gamma = float(at.attributes.get("gamma", 1.05070102214813232421875))
    curve = at.add(at.kernel(ELU, alpha), x, part="elu")
    return at.along(x, at.add(ArithmeticNumber("mul", gamma), curve))


def celu(at: At) -> Operand:
    """Celu: an Elu of x / alpha, times alpha."""
    x, alpha = at.loose(0), float(at.attributes.get("alpha", 1.0))
    scaled = at.add(at.kernel(ArithmeticNumber, "div", alpha), x, part="scaled")
    curve = at.add(ELU(), scaled, part="elu")
    return at.along(x, at.add(ArithmeticNumber("mul", alpha), curve))


def softsign(at: At) -> Operand:
    """Softsign: x / (1 + |x|)."""
    x = at.loose(0)
    far = at.add(ArithmeticNumber("add", 1.0), at.add(LeakyReLU(-1.0), x, part="far"), part="length")
    return at.along(x, at.add(Arithmetic("div"), x, far))


def hard_sigmoid(at: At) -> Operand:
    """HardSigmoid."""
    alpha, beta = (float(at.attributes.get(name, there)) for name, there in (("alpha", 0.2), ("beta", 0.5)))
    x = at.loose(0)
    return at.along(x, _hard_sigmoid(at, x, alpha, beta))


def hard_swish(at: At) -> Operand:
    """HardSwish: x times its hard sigmoid."""
    x = at.loose(0)
    return at.along(x, at.add(Arithmetic("mul"), x, _hard_sigmoid(at, x, 1 / 6, 0.5, "gate")))


def _hard_sigmoid(at: At, x: Dynamic, alpha: float, beta: float, part: str = "") -> Dynamic:
    line = at.add(ArithmeticNumber("mul", alpha), x, part="alpha")
    line = at.add(ArithmeticNumber("add", beta), line, part="beta")
    return at.add(Clip(0, 1), line, part=part)


def mish(at: At) -> Operand:
    """Mish: x times the tanh of its softplus."""
    x = at.loose(0)
    gate = at.add(Tanh(), at.add(Softplus(), x, part="softplus"), part="gate")
    return at.along(x, at.add(Arithmetic("mul"), x, gate))


def leaky_relu(at: At) -> Operand:
    """LeakyRelu."""
    return _apply(at, at.kernel(LeakyReLU, float(at.attributes.get("alpha", 0.01))))


def prelu(at: At) -> Operand:
    """PRelu: what is above 0, and a slope that is trained times what is below."""
    x, slope = at.loose(0), at.operand(1)
    if at.version < 7 and isinstance(slope, Static) and slope.array.ndim == 1 and slope.array.size > 1:
        at.check_fixed(slope)  # of old, a slope for each channel
        slope = Static(slope.array.reshape(-1, *(1,) * (len(x.shape) - 2)), slope.trained)
    above = at.along(x, at.add(ReLU(), x, part="above"))
    below = at.along(x, at.add(Clip(maximum=0.0), x, part="below"))
    return both(at, "add", above, both(at, "mul", below, slope, part="slope"))


def elu(at: At) -> Operand:
    """Elu."""
    return _apply(at, at.kernel(ELU, float(at.attributes.get("alpha", 1.0))))


def dropout(at: At) -> Operand:
    """Dropout: as when it is not trained a copy, unless Weft trains the graph."""
    rate = float(at.attributes.get("ratio", 0.5))
    if at.given(1):
        rate = float(at.static(1, "ratio").reshape(()))
    if at.given(2) and bool(at.static(2, "training_mode").reshape(())):
        at.refuse("training_mode is on; export the model for inference: Weft trains that, too")
    return _apply(at, at.kernel(Dropout, rate))
