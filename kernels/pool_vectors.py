"""Pools by vectors of neighbouring windows: what they see, how it comes into their lanes, what is made of it.

    columns    a b c d e f g     first the largest (or the sum) of every column under a row of windows,
               └─┬─┘ └─┬─┘       then of every window's columns, shuffled into its lane
    windows    abc cde efg

All of it stays in registers: columns that were stored and are loaded again, shifted, wait for the store. 3 x
3 windows over 128 images of 55 x 55 took 137 us so, and take 60. Only the commonest windows are written out.
What lies beside an image is masked out; for what lies above and below there is a row of it.
"""

# numba's and llvmlite's builders are untyped.
# mypy: disable-error-code="no-untyped-call"

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import chain
from typing import Any

from llvmlite import ir  # type: ignore[import-untyped]
from numba import types
from numba.core import cgutils

from .geometry import Window
from .kernel import Array
from .vectors import VECTOR_BYTES, Vectors, integer, intrinsic

ROWS = 8
"""Rows of windows that a vector goes down before its neighbour does.

Down whole images of 112 x 112 lines of memory come in an order that nothing foresees: 64 of them took 189 us,
by 8 rows 170. With masks made anew for each row 256 images of 28 x 28 took 116, by 8 rows 67.
"""

_COMMON = ((3, 2), (3, 1), (2, 2))  # sizes and strides, alike in both directions
_TAKEN = {((size, size), (stride, stride)) for size, stride in _COMMON}


def by_vectors(window: Window) -> bool:
    """Whether there is a function for this window below, and the machine loads by masks (not SSE, NEON)."""
    return VECTOR_BYTES > 16 and (window.kernel, window.stride) in _TAKEN


Part = tuple[slice, slice]
"""Channels and rows of the output."""


def sizes_of(x: Array, y: Array) -> tuple[int, ...]:
    """Planes, input rows and columns, output rows and columns."""
    return (x.shape[0] * x.shape[1], *x.shape[2:], *y.shape[2:])


def bounds_of(x: Array, part: Part) -> tuple[int, ...]:
    """Channels in all, then first and stop of those of the part and of its rows."""
    channels, rows = part
    return x.shape[1], channels.start, channels.stop, rows.start, rows.stop


def moves_of(window: Window) -> tuple[int, ...]:
    """Window height and width, strides, and the padding above and on the left."""
    return (*window.kernel, *window.stride, *window.padding[:2])


class _Windows(Vectors):
    """A vector of windows, `size` x `size` at `stride`, in every row of them from `first` to `last`.

    The function being compiled has as its first arguments x, y, outside, plane, start, first, last, sizes and
    moves: the vector is that from column `start` of the plane's output on. `fill` lies beside the image, and
    above and below `outside`, a row of the same.
    """

    def __init__(
        self,
        context: Any,
        builder: Any,
        signature: Any,
        arguments: Sequence[Any],
        size: int,
        stride: int,
        fill: float,
    ) -> None:
        super().__init__(context, builder, signature)
        x, y, outside, plane, start, self._first_row, self._last_row, sizes, moves = arguments[:9]
        _planes, self._height, self._width, rows, self._columns = cgutils.unpack_tuple(builder, sizes)
        _kh, _kw, self._stride_h, _stride_w, self._top, left = cgutils.unpack_tuple(builder, moves)
        self._size, self._stride, self._fill = size, stride, fill
        column = builder.sub(builder.mul(start, integer(stride)), left)
        at = builder.mul(plane, builder.mul(self._height, self._width))
        to = builder.mul(plane, builder.mul(rows, self._columns))
        self._seen = self.address(0, x, builder.add(at, column))
        self._outside = self.address(2, outside, column)
        self._target = self.address(1, y, builder.add(to, start))
        self._column = column
        self._reach = (self.lanes - 1) * stride + size
        self.kept = self._within(start, self._columns)

    def put_rows(self, value: Callable[[Any, list[list[Any]]], Any]) -> None:
        """Store into each row what `value` makes of its number and of what its windows see.

        That is rows of the image, in vectors. They are loaded whole where the windows lie inside the image.
        """
        build, column, lanes = self._builder, self._column, self.lanes
        end = build.add(column, integer(self._reach))
        inside = build.icmp_signed("<=", end, self._width)
        inside = build.and_(inside, build.icmp_signed(">=", column, integer(0)))
        steps = range(0, self._reach, lanes)
        with build.if_else(inside) as (then, otherwise):
            with then:
                ends = [min(self._reach - step, lanes) for step in steps]
                self._put_rows(value, [self._first(end) for end in ends], self.store)
            with otherwise:
                masks = [self._within(build.add(column, integer(step)), self._width) for step in steps]
                self._put_rows(value, masks, lambda found, at: self.store_some(found, at, self.kept))

    def _put_rows(
        self, value: Callable[[Any, list[list[Any]]], Any], masks: list[Any], put: Callable[[Any, Any], None]
    ) -> None:
        build = self._builder

        def load_row(h: Any) -> list[Any]:
            at = build.gep(self._seen, [build.mul(h, self._width)])
            at = build.select(build.icmp_unsigned("<", h, self._height), at, self._outside)
            places = [build.gep(at, [integer(v * self.lanes)]) for v in range(len(masks))]
            loads = zip(places, masks, strict=True)
            return [self.load_some(place, mask, self._fill) for place, mask in loads]

        # Rows that the windows below see, too, stay in registers.
        shared = self._size - self._stride
        above = build.sub(build.mul(self._first_row, self._stride_h), self._top)
        rows = [load_row(build.add(above, integer(i))) for i in range(shared)]
        carried = [[cgutils.alloca_once_value(build, each) for each in row] for row in rows]
        with cgutils.for_range_slice(build, self._first_row, self._last_row, integer(1)) as (row, _):
            above = build.sub(build.mul(row, self._stride_h), self._top)
            seen = [[build.load(place) for place in places] for places in carried]
            seen += [load_row(build.add(above, integer(i))) for i in range(shared, self._size)]
            for places, values in zip(carried, seen[self._stride :], strict=True):
                for place, each in zip(places, values, strict=True):
                    build.store(each, place)
            put(value(row, seen), build.gep(self._target, [build.mul(row, self._columns)]))

    def reduce(self, seen: list[list[Any]], combine: Callable[[Any, Any], Any]) -> Any:
        """What the windows see, combined into one lane each."""
        columns, *more = seen
        for row in more:
            columns = [combine(one, other) for one, other in zip(columns, row, strict=True)]
        joined = self._joined(columns)
        found = self._every(joined, 0)
        for j in range(1, self._size):
            found = combine(found, self._every(joined, j))
        return found

    def larger(self, one: Any, other: Any) -> Any:
        """The larger by lanes, `one` of equals: a single instruction, which may lose a NaN."""
        return self._builder.select(self._builder.fcmp_ordered(">", other, one), other, one)

    def larger_or_nan(self, one: Any, other: Any) -> Any:
        """The larger by lanes, or NaN: four instructions."""
        build = self._builder
        better = build.or_(build.fcmp_ordered(">", other, one), build.fcmp_unordered("uno", other, other))
        return build.select(better, other, one)

    def any_nan(self, vectors: Sequence[Any]) -> Any:
        """Whether any element is NaN, looked up in two vectors at a time."""
        build = self._builder
        vectors = [*vectors, vectors[-1]]  # the last alone, where the number is odd
        found = ir.Constant(ir.VectorType(ir.IntType(1), self.lanes), [0] * self.lanes)
        for one, other in zip(vectors[::2], vectors[1::2], strict=False):
            found = build.or_(found, build.fcmp_unordered("uno", one, other))
        bits = build.bitcast(found, ir.IntType(self.lanes))
        return build.icmp_unsigned("!=", bits, bits.type(0))

    def _first(self, count: int) -> Any:
        """The mask of the first `count` lanes, for LLVM to see through."""
        return ir.Constant(ir.VectorType(ir.IntType(1), self.lanes), [i < count for i in range(self.lanes)])

    def _within(self, start: Any, end: Any) -> Any:
        """The mask of the lanes between 0 and `end` where the first is at `start`."""
        build, word = self._builder, ir.IntType(32)
        kind = ir.VectorType(word, self.lanes)
        zeros, undefined = ir.Constant(kind, [0] * self.lanes), ir.Constant(kind, ir.Undefined)

        def spread(number: Any) -> Any:
            one = build.insert_element(undefined, build.trunc(number, word), word(0))
            return build.shuffle_vector(one, undefined, zeros)

        places = build.add(spread(start), ir.Constant(kind, list(range(self.lanes))))
        return build.icmp_unsigned("<", places, spread(end))

    def _joined(self, vectors: list[Any]) -> Any:
        """Vectors as one long one: LLVM shuffles no more than two."""
        while len(vectors) > 1:
            undefined = ir.Constant(vectors[0].type, ir.Undefined)
            lanes = range(2 * vectors[0].type.count)
            pairs = zip(vectors[::2], [*vectors[1::2], undefined], strict=False)
            vectors = [self._shuffled(one, other, lanes) for one, other in pairs]
        return vectors[0]

    def _every(self, joined: Any, first: int) -> Any:
        """The elements first, first + stride, … of it."""
        last = first + self.lanes * self._stride
        undefined = ir.Constant(joined.type, ir.Undefined)
        return self._shuffled(joined, undefined, range(first, last, self._stride))

    def _shuffled(self, one: Any, other: Any, lanes: range) -> Any:
        order = ir.Constant(ir.VectorType(ir.IntType(32), len(lanes)), list(lanes))
        return self._builder.shuffle_vector(one, other, order)


def _largest(size: int, stride: int) -> Any:
    @intrinsic
    def largest(
        _typing: Any,
        x: Any,
        y: Any,
        outside: Any,
        plane: Any,
        start: Any,
        first: Any,
        last: Any,
        sizes: Any,
        moves: Any,
    ) -> Any:
        """The largest under each of a vector's windows. NaN wins, so that it shows: where there is one, all
        are compared again, in a way that keeps it.
        """
        n = types.int64
        signature = types.void(x, y, outside, n, n, n, n, sizes, moves)

        def generate(context: Any, builder: Any, signature: Any, arguments: Sequence[Any]) -> Any:
            build = _Windows(context, builder, signature, arguments, size, stride, float("-inf"))

            def value(_row: Any, seen: list[list[Any]]) -> Any:
                found = cgutils.alloca_once_value(builder, build.reduce(seen, build.larger))
                with builder.if_then(build.any_nan(list(chain(*seen))), likely=False):
                    builder.store(build.reduce(seen, build.larger_or_nan), found)
                return builder.load(found)

            build.put_rows(value)
            return context.get_dummy_value()

        return signature, generate

    return largest


def _mean(size: int, stride: int) -> Any:
    @intrinsic
    def mean(
        _typing: Any,
        x: Any,
        y: Any,
        outside: Any,
        plane: Any,
        start: Any,
        first: Any,
        last: Any,
        sizes: Any,
        moves: Any,
        down: Any,
        across: Any,
    ) -> Any:
        """The mean under each of a vector's windows: of as many rows as `down` has for its row, and as many
        columns as `across` has for its column.
        """
        n = types.int64
        signature = types.void(x, y, outside, n, n, n, n, sizes, moves, down, across)

        def generate(context: Any, builder: Any, signature: Any, arguments: Sequence[Any]) -> Any:
            build = _Windows(context, builder, signature, arguments, size, stride, 0.0)
            start, down, across = arguments[4], *arguments[9:]
            columns = build.load_some(build.address(10, across, start), build.kept, 1.0)

            def value(row: Any, seen: list[list[Any]]) -> Any:
                rows = build.spread(builder.load(build.address(9, down, row)))
                return builder.fdiv(build.reduce(seen, builder.fadd), builder.fmul(rows, columns))

            build.put_rows(value)
            return context.get_dummy_value()

        return signature, generate

    return mean


largest_3_by_2, largest_3_by_1, largest_2_by_2 = (_largest(*each) for each in _COMMON)
mean_3_by_2, mean_3_by_1, mean_2_by_2 = (_mean(*each) for each in _COMMON)


@intrinsic
def total(_typing: Any, x: Any, at: Any, count: Any) -> Any:
    """The sum of x[at:], `count` elements of a flat array."""
    signature = x.dtype(x, types.int64, types.int64)

    def generate(context: Any, builder: Any, signature: Any, arguments: Sequence[Any]) -> Any:
        x, at, count = arguments
        build = Vectors(context, builder, signature)
        source, lanes = build.address(0, x, at), build.lanes
        sums = build.sums(4)

        def add(place: Any, value: Any) -> None:
            builder.store(builder.fadd(builder.load(place), value), place)

        blocks = builder.and_(count, integer(-4 * lanes))
        whole = builder.and_(count, integer(-lanes))
        with cgutils.for_range_slice(builder, integer(0), blocks, integer(4 * lanes)) as (q, _):
            for v, place in enumerate(sums):
                add(place, build.load(builder.gep(source, [builder.add(q, integer(v * lanes))])))
        with cgutils.for_range_slice(builder, blocks, whole, integer(lanes)) as (q, _):
            add(sums[0], build.load(builder.gep(source, [q])))
        rest = builder.sub(count, whole)
        with builder.if_then(builder.icmp_signed(">", rest, integer(0))):
            add(sums[1], build.load_some(builder.gep(source, [whole]), build.first(rest), 0.0))
        add(sums[0], builder.load(sums[1]))
        add(sums[2], builder.load(sums[3]))
        add(sums[0], builder.load(sums[2]))
        return build.across(sums[0])

    return signature, generate
