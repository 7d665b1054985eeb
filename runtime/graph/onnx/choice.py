"""Operators that compare and choose: truths of values, Where, and the larger or smaller of several."""

from __future__ import annotations

from math import inf

import numpy as np

from ....kernels.arithmetic import Arithmetic
from ....kernels.choice import MIRRORED, Compare, CompareNumber, Comparison, Where
from ....kernels.function import Cast
from ....kernels.kernel import Kernel
from ....kernels.piecewise import Clip
from .algebra import Reading, aligned, behind, both, together
from .node import At, Dynamic, Operand, Static


def compare(operator: Comparison) -> Reading:
    """Equal, Greater, Less, GreaterOrEqual, LessOrEqual."""
    return lambda at: _compare(at, operator, at.operand(0), aligned(at))


def _compare(at: At, operator: Comparison, first: Operand, second: Operand) -> Operand:
    if isinstance(first, Static):
        first, second, operator = second, first, MIRRORED[operator]
    assert isinstance(first, Dynamic)
    if isinstance(second, Static):
        first = at.settled(first)
        array = at.per_sample(behind(at, first, second), len(first.shape))
        if array.dtype.name != first.spec.dtype:
            at.refuse(f"it compares {first.spec.dtype} with {array.dtype}")
        if array.size == 1 and array.ndim < len(first.spec.shape):
            value = array.reshape(()).item()
            if isinstance(value, int) and int(float(value)) != value:
                at.refuse(f"it compares with {value}, which no float64 is")
            return at.along(first, at.add(at.kernel(CompareNumber, operator, float(value)), first))
        # No gradient comes to a threshold that is stored as weights are, and no training began.
        second = Static(second.array, other=second.other)
    values, like = together(at, first, second)
    return at.along(like, at.add(at.kernel(Compare, operator), *values))


def negation(at: At) -> Operand:
    """Not."""
    x = _truth(at, 0)
    return at.along(x, at.add(CompareNumber("equal", 0.0), x))


def _truth(at: At, index: int) -> Dynamic:
    x = at.operand(index)
    if not isinstance(x, Dynamic) or x.spec.dtype != "bool":
        at.refuse(f"its operand {index} is no truth (bool)")
    return x


def logical(kernel: Kernel) -> Reading:
    """And, Or and Xor: products, sums and differences of truths."""
    return lambda at: _logical(at, kernel)


def _logical(at: At, kernel: Kernel) -> Operand:
    values, like = together(at, at.operand(0), aligned(at))
    if wrong := [each.name for each in values if each.spec.dtype != "bool"]:
        at.refuse(f"its operand {wrong[0]!r} is no truth (bool)")
    return at.along(like, at.add(kernel, *values))


def is_nan(at: At) -> Operand:
    """IsNaN: what does not equal itself."""
    x = at.loose(0)
    return at.along(x, at.add(Compare("not_equal"), x, x))


def is_inf(at: At) -> Operand:
    """IsInf, of both signs or of one."""
    x = at.loose(0)
    found = [
        at.add(CompareNumber("equal", value), x, part=part)
        for name, value, part in (("detect_negative", -inf, "below"), ("detect_positive", inf, "above"))
        if at.attributes.get(name, 1)
    ]
    if not found:
        at.refuse("it detects neither negative nor positive infinities")
    return at.along(x, at.add(Arithmetic("add"), *found) if len(found) > 1 else found[0])


def sign(at: At) -> Operand:
    """Sign: the truth that it is above 0, less the truth that it is below; of NaN NaN."""
    x = at.loose(0)
    above = at.add(Cast("float32"), at.add(CompareNumber("greater", 0.0), x, part="above"), part="positive")
    below = at.add(Cast("float32"), at.add(CompareNumber("less", 0.0), x, part="below"), part="negative")
    signs = at.add(Arithmetic("sub"), above, below, part="signs")
    number = at.add(Compare("equal"), x, x, part="number")
    return at.along(x, at.add(Where(), number, signs, x))


def thresholded_relu(at: At) -> Operand:
    """ThresholdedRelu: what is above `alpha`, and 0."""
    x, alpha = at.loose(0), float(at.attributes.get("alpha", 1.0))
    passes = at.add(at.kernel(CompareNumber, "greater", alpha), x, part="passes")
    zero = at.constant(Static(np.zeros((), np.float32)), len(x.spec.shape))
    return at.along(x, at.add(Where(), passes, x, zero))


def bounded(*, above: bool) -> Reading:
    """Max (Min, where the bound is `above`): of a value and stored numbers, as exporters write clamp, or of
    any operands."""
    return lambda at: _bounded(at, above)


def _bounded(at: At, above: bool) -> Operand:
    operands = [at.operand(place) for place in range(len(at.inputs))]
    values = [each for each in operands if isinstance(each, Dynamic)]
    bounds: list[float] = []
    others: list[Operand] = list(values[1:])
    for each in operands:
        if isinstance(each, Static):
            array = each.array
            number = array.size == 1 and array.ndim <= len(values[0].shape) and array.dtype.kind == "f"
            if number and not np.isnan(array).any() and values[0].spec.dtype == "float32":
                at.check_fixed(each)
                bounds.append(float(array.reshape(())))
            else:
                others.append(each)
    result: Dynamic = values[0]
    if bounds:
        kernel = at.kernel(Clip, maximum=min(bounds)) if above else at.kernel(Clip, max(bounds))
        part = "bounded" if others else ""
        x = at.loose(operands.index(result))  # its axes may lie otherwise than those of `result`
        result = at.along(x, at.add(kernel, x, part=part))
    for count, other in enumerate(others, 1):
        result = both(at, "min" if above else "max", result, other, "" if count == len(others) else "of")
    return result


def where(at: At) -> Operand:
    """Where. (A stored condition was a mask once, by which each side was multiplied, or minus infinity added
    to what it hid: of what was infinite there, or no number, it became no number, nor was a gradient then.)
    """
    values, like = together(at, at.operand(0), at.operand(1), at.operand(2))
    return at.along(like, at.add(Where(), *values))
