"""ArgMax, ArgMin, TopK and CumSum: what goes by the order along an axis."""

from __future__ import annotations

from collections.abc import Callable

from ....kernels.ranking import ArgMax, CumulativeSum, TopK, TopKIndices
from .node import At, Operand


def arg_max(*, smallest: bool) -> Callable[[At], Operand]:
    """ArgMax and ArgMin."""
    return lambda at: _arg_max(at, smallest)


def _arg_max(at: At, smallest: bool) -> Operand:
    x = at.moved(0)
    axis = at.axis(int(at.attributes.get("axis", 0)), len(x.shape))
    keep, last = (bool(at.attributes.get(*each)) for each in (("keepdims", 1), ("select_last_index", 0)))
    return at.add(at.kernel(ArgMax, axis, keep, smallest, last), x)


def top_k(at: At) -> tuple[Operand, ...]:
    """TopK: the values, and the places where they were."""
    x = at.moved(0)
    k = at.integers(1, "k") if at.given(1) else [int(at.attributes["k"])]  # of old
    if k is None or len(k) != 1:
        at.refuse(f"its k is {k}; it needs one number, of how many are wanted")
    axis = at.axis(int(at.attributes.get("axis", -1)), len(x.shape))
    given = axis, k[0], not at.attributes.get("largest", 1)
    return at.add(at.kernel(TopK, *given), x), at.add(at.kernel(TopKIndices, *given), x, part="places")


def cumulative_sum(at: At) -> Operand:
    """CumSum."""
    x, axis = at.along_axis(0), int(at.static(1, "axis").reshape(()))
    exclusive, reverse = (bool(at.attributes.get(name, 0)) for name in ("exclusive", "reverse"))
    y = at.add(at.kernel(CumulativeSum, at.place(x, axis), exclusive, reverse), x)
    return at.along(x, y)
