"""The two inner loops of convolution, written as LLVM vectors so that their sums stay in registers.

    forward_block    8 channels x 3 vectors of pixels    Σk  weight[channel, k] * image[pixel + offset[k]]
    weight_block     4 channels x 6 offsets, in vectors  Σq  gradient[channel, q] * image[q + offset[k]]

LLVM keeps a loop's scalar in a register, but not a block of sums that a Python loop indexes: that goes
through memory at every step. Written out, the forward block reaches 263 GFLOP/s on one Zen 5 core, its peak.
Both blocks compute all their rows; the caller drops those that it has no use for. Nothing need be aligned.
"""

# numba's and llvmlite's builders are untyped.
# mypy: disable-error-code="no-untyped-call"

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from llvmlite import binding, ir  # type: ignore[import-untyped]
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic as _intrinsic

_features = binding.get_host_cpu_features()
VECTOR_BYTES = 64 if _features.get("avx512f") else 32 if _features.get("avx2") else 16

# Sums fill the vector registers but for those that hold what was loaded: 24 of the 32 of AVX-512 and ARM, 12
# of the 16 of AVX2.
CHANNELS, VECTORS = (6, 2) if VECTOR_BYTES == 32 else (8, 3)  # of forward_block
ROWS, OFFSETS = (2, 6) if VECTOR_BYTES == 32 else (4, 6)  # of weight_block

_integer = ir.IntType(64)


def intrinsic(function: Any) -> Any:
    """numba's decorator, whose result mypy would take for a function of Python values."""
    return _intrinsic(function)


def _forward_block(vectors: int) -> Any:
    """A block of CHANNELS by `vectors`."""

    @intrinsic
    def forward_block(
        _typing: Any,
        weight: Any,
        weight_at: Any,
        weight_step: Any,
        last: Any,
        weight_offsets: Any,
        image: Any,
        image_at: Any,
        image_offsets: Any,
        term: Any,
        terms: Any,
        out: Any,
        out_at: Any,
        out_step: Any,
        more: Any,
    ) -> Any:
        """out[out_at:] (CHANNELS rows of `vectors` vectors, `out_step` apart) from flat arrays; with `more`
        added to what is there.

        Rows of the weight are `weight_step` apart from weight[weight_at] on; rows beyond `last` repeat it, so
        that nothing out of bounds is read. From `term` on, `terms` offsets lead from a row's start to its
        weights and from image_at to the pixels that these multiply.
        """
        n = types.int64
        signature = types.void(
            weight, n, n, n, weight_offsets, image, n, image_offsets, n, n, out, n, n, types.boolean
        )

        def generate(context: Any, builder: Any, signature: Any, arguments: Sequence[Any]) -> Any:
            weight, weight_at, weight_step, last, weight_offsets, image, image_at, image_offsets = arguments[
                :8
            ]
            term, terms, out, out_at, out_step, more = arguments[8:]
            build = _Vectors(context, builder, signature)
            first = build.address(0, weight, weight_at)
            rows = []
            for i in range(CHANNELS):
                row = builder.select(builder.icmp_signed("<", _integer(i), last), _integer(i), last)
                rows.append(builder.gep(first, [builder.mul(weight_step, row)]))
            pixels = build.address(5, image, image_at)
            sums = build.sums(CHANNELS * vectors)
            places = []
            for i in range(CHANNELS):
                to = build.address(10, out, builder.add(out_at, builder.mul(out_step, _integer(i))))
                places += [builder.gep(to, [_integer(v * build.lanes)]) for v in range(vectors)]
            with builder.if_then(more):
                for total, to in zip(sums, places, strict=True):
                    builder.store(build.load(to), total)
            with cgutils.for_range(builder, terms) as loop:
                at = builder.add(term, loop.index)
                if vectors < VECTORS:
                    ahead = builder.mul(builder.add(weight_step, loop.index), _integer(CHANNELS))
                    build.prefetch(builder.gep(first, [ahead]))
                column = builder.load(build.address(4, weight_offsets, at))
                seen = builder.gep(pixels, [builder.load(build.address(7, image_offsets, at))])
                loaded = [build.load(builder.gep(seen, [_integer(v * build.lanes)])) for v in range(vectors)]
                for i, row in enumerate(rows):
                    factor = build.spread(builder.load(builder.gep(row, [column])))
                    for v, value in enumerate(loaded):
                        build.add_product(sums[i * vectors + v], factor, value)
            for total, to in zip(sums, places, strict=True):
                build.store(builder.load(total), to)
            return context.get_dummy_value()

        return signature, generate

    return forward_block


# Last blocks of one or two vectors: 7 x 7 pixels, padded 61, are 4 vectors, and were 6 without these. They
# have loads to spare and ask for the next CHANNELS rows of the weights: few pixels, and the 4 MB of 2048
# filters by 512 come from the third cache or memory, at 1.3 times the speed when they are asked for.
forward_block, forward_pair, forward_single = map(_forward_block, (VECTORS, 2, 1))


@intrinsic
def weight_block(
    _typing: Any,
    gradient: Any,
    gradient_at: Any,
    gradient_step: Any,
    gradient_image: Any,
    image: Any,
    image_at: Any,
    image_step: Any,
    image_offsets: Any,
    offset_at: Any,
    images: Any,
    pixels: Any,
    out: Any,
) -> Any:
    """out (ROWS * OFFSETS) from flat arrays, summed over `images` images of `pixels` pixels (whole vectors).

    Rows of the gradient are `gradient_step` apart from gradient[gradient_at] on, its images `gradient_image`,
    those of the image `image_step` from image[image_at] on; OFFSETS offsets start at offset_at.
    """
    n = types.int64
    signature = types.void(gradient, n, n, n, image, n, n, image_offsets, n, n, n, out)

    def generate(context: Any, builder: Any, signature: Any, arguments: Sequence[Any]) -> Any:
        gradient, gradient_at, gradient_step, gradient_image, image, image_at, image_step = arguments[:7]
        image_offsets, offset_at, images, pixels, out = arguments[7:]
        build = _Vectors(context, builder, signature)
        first = build.address(7, image_offsets, offset_at)
        offsets = [builder.load(builder.gep(first, [_integer(k)])) for k in range(OFFSETS)]
        sums = build.sums(ROWS * OFFSETS)
        with cgutils.for_range(builder, images) as loop:
            at = builder.add(gradient_at, builder.mul(loop.index, gradient_image))
            top = build.address(0, gradient, at)
            rows = [builder.gep(top, [builder.mul(gradient_step, _integer(i))]) for i in range(ROWS)]
            at = builder.add(image_at, builder.mul(loop.index, image_step))
            seen = build.address(4, image, at)
            shifted = [builder.gep(seen, [offset]) for offset in offsets]
            steps = cgutils.for_range_slice(builder, _integer(0), pixels, _integer(build.lanes))
            with steps as (q, _):
                slopes = [build.load(builder.gep(row, [q])) for row in rows]
                for k, pointer in enumerate(shifted):
                    value = build.load(builder.gep(pointer, [q]))
                    for i, slope in enumerate(slopes):
                        build.add_product(sums[i * OFFSETS + k], slope, value)
        for i, total in enumerate(sums):
            builder.store(build.across(total), build.address(11, out, _integer(i)))
        return context.get_dummy_value()

    return signature, generate


@intrinsic
def put_row(
    _typing: Any, source: Any, at: Any, target: Any, to: Any, count: Any, shift: Any, floor: Any
) -> Any:
    """target[to:] = max(source[at:] + shift, floor), `count` elements of flat arrays; NaN stays NaN.

    Rows are short: of 48 elements LLVM's own loop, which takes 64 at a time, makes 48 single steps.
    """
    n = types.int64
    signature = types.void(source, n, target, n, n, source.dtype, source.dtype)

    def generate(context: Any, builder: Any, signature: Any, arguments: Sequence[Any]) -> Any:
        source, at, target, to, count, shift, floor = arguments
        build = _Vectors(context, builder, signature)
        source, target = build.address(0, source, at), build.address(2, target, to)
        shift, floor = build.spread(shift), build.spread(floor)

        def raised(value: Any) -> Any:
            value = builder.fadd(value, shift)
            return builder.select(builder.fcmp_ordered("<", value, floor), floor, value)

        rest = builder.and_(count, _integer(build.lanes - 1))
        whole = builder.sub(count, rest)
        with cgutils.for_range_slice(builder, _integer(0), whole, _integer(build.lanes)) as (q, _):
            build.store(raised(build.load(builder.gep(source, [q]))), builder.gep(target, [q]))
        with builder.if_then(builder.icmp_signed(">", rest, _integer(0))):
            some = build.first(rest)
            value = build.load_some(builder.gep(source, [whole]), some)
            build.store_some(raised(value), builder.gep(target, [whole]), some)
        return context.get_dummy_value()

    return signature, generate


class _Vectors:
    """Writes operations on vectors into the function being compiled; elements as the first argument's."""

    def __init__(self, context: Any, builder: Any, signature: Any) -> None:
        element = signature.args[0].dtype
        self._context = context
        self._builder = builder
        self._kinds = signature.args
        self._nbytes = element.bitwidth // 8
        self.lanes = VECTOR_BYTES // self._nbytes
        self._element = context.get_data_type(element)
        self._vector = ir.VectorType(self._element, self.lanes)

    def address(self, argument: int, array: Any, at: Any) -> Any:
        """Of element `at` of the flat array that is the function's argument number `argument`."""
        data = self._context.make_array(self._kinds[argument])(self._context, self._builder, array).data
        return self._builder.gep(data, [at])

    def sums(self, count: int) -> list[Any]:
        """Places for `count` vectors, all zero; LLVM makes them registers."""
        zero = ir.Constant(self._vector, [0.0] * self.lanes)
        return [cgutils.alloca_once_value(self._builder, zero) for _ in range(count)]

    def load(self, pointer: Any) -> Any:
        return self._builder.load(self._cast(pointer), align=self._nbytes)

    def store(self, value: Any, pointer: Any) -> None:
        self._builder.store(value, self._cast(pointer), align=self._nbytes)

    def prefetch(self, pointer: Any) -> None:
        """Ask for the line into the second cache; a pointer to nowhere does no harm."""
        word = ir.IntType(32)
        arguments = [pointer, word(0), word(2), word(1)]
        kind = ir.FunctionType(ir.VoidType(), [each.type for each in arguments])
        function = cgutils.get_or_insert_function(self._builder.module, kind, "llvm.prefetch.p0")
        self._builder.call(function, arguments)

    def first(self, count: Any) -> Any:
        """The mask of the first `count` lanes."""
        numbers = ir.VectorType(_integer, self.lanes)
        lanes = ir.Constant(numbers, list(range(self.lanes)))
        undefined = ir.Constant(numbers, ir.Undefined)
        one = self._builder.insert_element(undefined, count, ir.IntType(32)(0))
        zeros = ir.Constant(ir.VectorType(ir.IntType(32), self.lanes), [0] * self.lanes)
        return self._builder.icmp_signed("<", lanes, self._builder.shuffle_vector(one, undefined, zeros))

    def load_some(self, pointer: Any, mask: Any) -> Any:
        """The lanes of the mask, zeros in the others, where nothing is read."""
        pointer, zero = self._cast(pointer), ir.Constant(self._vector, [0.0] * self.lanes)
        arguments = [pointer, ir.IntType(32)(self._nbytes), mask, zero]
        return self._builder.call(self._masked("load", self._vector, arguments), arguments)

    def store_some(self, value: Any, pointer: Any, mask: Any) -> None:
        arguments = [value, self._cast(pointer), ir.IntType(32)(self._nbytes), mask]
        self._builder.call(self._masked("store", ir.VoidType(), arguments), arguments)

    def _masked(self, action: str, result: Any, arguments: Sequence[Any]) -> Any:
        name = f"llvm.masked.{action}.v{self.lanes}f{self._nbytes * 8}.p0"
        kind = ir.FunctionType(result, [each.type for each in arguments])
        return cgutils.get_or_insert_function(self._builder.module, kind, name)

    def spread(self, scalar: Any) -> Any:
        """The scalar in every lane."""
        undefined = ir.Constant(self._vector, ir.Undefined)
        one = self._builder.insert_element(undefined, scalar, ir.IntType(32)(0))
        zeros = ir.Constant(ir.VectorType(ir.IntType(32), self.lanes), [0] * self.lanes)
        return self._builder.shuffle_vector(one, undefined, zeros)

    def add_product(self, total: Any, a: Any, b: Any) -> None:
        """total += a * b, fused where the machine can."""
        product = self._builder.fmul(a, b, flags=("contract",))
        value = self._builder.fadd(self._builder.load(total), product, flags=("contract",))
        self._builder.store(value, total)

    def across(self, total: Any) -> Any:
        """The sum of a vector's lanes."""
        name = f"llvm.vector.reduce.fadd.v{self.lanes}f{self._nbytes * 8}"
        kind = ir.FunctionType(self._element, [self._element, self._vector])
        function = cgutils.get_or_insert_function(self._builder.module, kind, name)
        start = ir.Constant(self._element, 0.0)
        return self._builder.call(function, [start, self._builder.load(total)], fastmath=("reassoc",))

    def _cast(self, pointer: Any) -> Any:
        return self._builder.bitcast(pointer, self._vector.as_pointer())
