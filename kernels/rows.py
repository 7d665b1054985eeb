"""Short rows, copied or compared by vectors: the last one as wide as is left.

LLVM's own loop over 48 elements takes 64 at a time, and so makes 48 single steps.
"""

# numba's and llvmlite's builders are untyped.
# mypy: disable-error-code="no-untyped-call"

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from numba import types
from numba.core import cgutils

from .vectors import Vectors, integer, intrinsic


@intrinsic
def put_row(
    _typing: Any, source: Any, at: Any, target: Any, to: Any, count: Any, shift: Any, floor: Any
) -> Any:
    """target[to:] = max(source[at:] + shift, floor), `count` elements of flat arrays; NaN stays NaN."""
    n = types.int64
    signature = types.void(source, n, target, n, n, source.dtype, source.dtype)

    def generate(context: Any, builder: Any, signature: Any, arguments: Sequence[Any]) -> Any:
        source, at, target, to, count, shift, floor = arguments
        build = Vectors(context, builder, signature)
        shift, floor = build.spread(shift), build.spread(floor)

        def raised(value: Any, _old: Any) -> Any:
            value = builder.fadd(value, shift)
            return builder.select(builder.fcmp_ordered("<", value, floor), floor, value)

        _for_each(build, builder, build.address(0, source, at), build.address(2, target, to), count, raised)
        return context.get_dummy_value()

    return signature, generate


@intrinsic
def put_larger(_typing: Any, source: Any, at: Any, target: Any, to: Any, count: Any) -> Any:
    """target[to:] = the larger one of that and source[at:], `count` elements; NaN wins, so that it shows."""
    n = types.int64
    signature = types.void(source, n, target, n, n)

    def generate(context: Any, builder: Any, signature: Any, arguments: Sequence[Any]) -> Any:
        source, at, target, to, count = arguments
        build = Vectors(context, builder, signature)

        def larger(value: Any, best: Any) -> Any:
            better = builder.fcmp_ordered(">", value, best)
            better = builder.or_(better, builder.fcmp_unordered("uno", value, value))
            return builder.select(better, value, best)

        _for_each(build, builder, build.address(0, source, at), build.address(2, target, to), count, larger)
        return context.get_dummy_value()

    return signature, generate


def _for_each(
    build: Vectors, builder: Any, source: Any, target: Any, count: Any, step: Callable[[Any, Any], Any]
) -> None:
    """target = step(source, target); LLVM drops the loads of a target that `step` does not look at."""
    rest = builder.and_(count, integer(build.lanes - 1))
    whole = builder.sub(count, rest)
    with cgutils.for_range_slice(builder, integer(0), whole, integer(build.lanes)) as (q, _):
        to = builder.gep(target, [q])
        build.store(step(build.load(builder.gep(source, [q])), build.load(to)), to)
    with builder.if_then(builder.icmp_signed(">", rest, integer(0))):
        some, to = build.first(rest), builder.gep(target, [whole])
        value = build.load_some(builder.gep(source, [whole]), some)
        build.store_some(step(value, build.load_some(to, some)), to, some)
