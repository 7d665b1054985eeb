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

from numba import types
from numba.core import cgutils

from .vectors import VECTOR_BYTES, Vectors, integer, intrinsic

# Sums fill the vector registers but for those that hold what was loaded: 24 of the 32 of AVX-512 and ARM, 12
# of the 16 of AVX2.
CHANNELS, VECTORS = (6, 2) if VECTOR_BYTES == 32 else (8, 3)  # of forward_block
ROWS, OFFSETS = (2, 6) if VECTOR_BYTES == 32 else (4, 6)  # of weight_block


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
            build = Vectors(context, builder, signature)
            first = build.address(0, weight, weight_at)
            rows = []
            for i in range(CHANNELS):
                row = builder.select(builder.icmp_signed("<", integer(i), last), integer(i), last)
                rows.append(builder.gep(first, [builder.mul(weight_step, row)]))
            pixels = build.address(5, image, image_at)
            sums = build.sums(CHANNELS * vectors)
            places = []
            for i in range(CHANNELS):
                to = build.address(10, out, builder.add(out_at, builder.mul(out_step, integer(i))))
                places += [builder.gep(to, [integer(v * build.lanes)]) for v in range(vectors)]
            with builder.if_then(more):
                for total, to in zip(sums, places, strict=True):
                    builder.store(build.load(to), total)
            with cgutils.for_range(builder, terms) as loop:
                at = builder.add(term, loop.index)
                if vectors < VECTORS:
                    ahead = builder.mul(builder.add(weight_step, loop.index), integer(CHANNELS))
                    build.prefetch(builder.gep(first, [ahead]))
                column = builder.load(build.address(4, weight_offsets, at))
                seen = builder.gep(pixels, [builder.load(build.address(7, image_offsets, at))])
                loaded = [build.load(builder.gep(seen, [integer(v * build.lanes)])) for v in range(vectors)]
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
        build = Vectors(context, builder, signature)
        first = build.address(7, image_offsets, offset_at)
        offsets = [builder.load(builder.gep(first, [integer(k)])) for k in range(OFFSETS)]
        sums = build.sums(ROWS * OFFSETS)
        with cgutils.for_range(builder, images) as loop:
            at = builder.add(gradient_at, builder.mul(loop.index, gradient_image))
            top = build.address(0, gradient, at)
            rows = [builder.gep(top, [builder.mul(gradient_step, integer(i))]) for i in range(ROWS)]
            at = builder.add(image_at, builder.mul(loop.index, image_step))
            seen = build.address(4, image, at)
            shifted = [builder.gep(seen, [offset]) for offset in offsets]
            steps = cgutils.for_range_slice(builder, integer(0), pixels, integer(build.lanes))
            with steps as (q, _):
                slopes = [build.load(builder.gep(row, [q])) for row in rows]
                for k, pointer in enumerate(shifted):
                    value = build.load(builder.gep(pointer, [q]))
                    for i, slope in enumerate(slopes):
                        build.add_product(sums[i * OFFSETS + k], slope, value)
        for i, total in enumerate(sums):
            builder.store(build.across(total), build.address(11, out, integer(i)))
        return context.get_dummy_value()

    return signature, generate
