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
        source, target = build.address(0, source, at), build.address(2, target, to)
        _put(build, builder, [source], target, count, shift, floor)
        return context.get_dummy_value()

    return signature, generate


@intrinsic
def put_sum(
    _typing: Any,
    source: Any,
    at: Any,
    added: Any,
    target: Any,
    to: Any,
    count: Any,
    shift: Any,
    floor: Any,
) -> Any:
    """target[to:] = max(source[at:] + shift + added[to:], floor), as `put_row`."""
    n = types.int64
    signature = types.void(source, n, added, target, n, n, source.dtype, source.dtype)

    def generate(context: Any, builder: Any, signature: Any, arguments: Sequence[Any]) -> Any:
        source, at, added, target, to, count, shift, floor = arguments
        build = Vectors(context, builder, signature)
        terms = [build.address(0, source, at), build.address(2, added, to)]
        _put(build, builder, terms, build.address(3, target, to), count, shift, floor)
        return context.get_dummy_value()

    return signature, generate


def _put(
    build: Vectors, builder: Any, terms: Sequence[Any], target: Any, count: Any, shift: Any, floor: Any
) -> None:
    """`count` elements at `target` become max(the sum of `terms` and `shift`, floor)."""
    shift, floor = build.spread(shift), build.spread(floor)

    def raised(load: Callable[[Any], Any], q: Any) -> Any:
        value = shift
        for term in terms:
            value = builder.fadd(value, load(builder.gep(term, [q])))
        return builder.select(builder.fcmp_ordered("<", value, floor), floor, value)

    whole, rest = _parts(build, builder, count)
    with cgutils.for_range_slice(builder, integer(0), whole, integer(build.lanes)) as (q, _):
        build.store(raised(build.load, q), builder.gep(target, [q]))
    with builder.if_then(builder.icmp_signed(">", rest, integer(0))):
        some = build.first(rest)
        value = raised(lambda pointer: build.load_some(pointer, some, 0.0), whole)
        build.store_some(value, builder.gep(target, [whole]), some)


@intrinsic
def put_largest(
    _typing: Any,
    source: Any,
    at: Any,
    offsets: Any,
    first: Any,
    last: Any,
    target: Any,
    to: Any,
    count: Any,
    room: Any,
) -> Any:
    """target[to:] = the largest of source[at + offset:] over offsets[first:last]; NaN wins, so that it shows.

    `count` elements of flat arrays; with `room` the last vector is stored whole, -inf where nothing was read:
    a masked store that is loaded again soon holds that up.
    """
    n = types.int64
    signature = types.void(source, n, offsets, n, n, target, n, n, types.boolean)

    def generate(context: Any, builder: Any, signature: Any, arguments: Sequence[Any]) -> Any:
        source, at, offsets, first, last, target, to, count, room = arguments
        build = Vectors(context, builder, signature)
        source, target = build.address(0, source, at), build.address(5, target, to)

        def largest(load: Callable[[Any], Any], q: Any) -> Any:
            (best,) = build.sums(1, float("-inf"))
            steps = cgutils.for_range_slice(builder, first, last, integer(1))
            with steps as (i, _):
                offset = builder.load(build.address(2, offsets, i))
                value, old = load(builder.gep(source, [builder.add(offset, q)])), builder.load(best)
                better = builder.fcmp_ordered(">", value, old)
                better = builder.or_(better, builder.fcmp_unordered("uno", value, value))
                builder.store(builder.select(better, value, old), best)
            return builder.load(best)

        whole, rest = _parts(build, builder, count)
        with cgutils.for_range_slice(builder, integer(0), whole, integer(build.lanes)) as (q, _):
            build.store(largest(build.load, q), builder.gep(target, [q]))
        with builder.if_then(builder.icmp_signed(">", rest, integer(0))):
            some, end = build.first(rest), builder.gep(target, [whole])
            value = largest(lambda pointer: build.load_some(pointer, some, float("-inf")), whole)
            with builder.if_else(room) as (then, otherwise):
                with then:
                    build.store(value, end)
                with otherwise:
                    build.store_some(value, end, some)
        return context.get_dummy_value()

    return signature, generate


def _parts(build: Vectors, builder: Any, count: Any) -> tuple[Any, Any]:
    """How many of `count` elements fill vectors, and how many are left."""
    rest = builder.and_(count, integer(build.lanes - 1))
    return builder.sub(count, rest), rest
