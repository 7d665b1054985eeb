"""Wire formats: portions in fewer bytes than float32, with error feedback; all ranks end with the same bits.

    float16, bfloat16   encode ─ all-to-all ─ add up own slice, encode ─ all-gather ─ decode
    top_k               encode ─ all-gather of the largest, and where they stand ─── decode

MPI can add up neither. So ranks add up decoded numbers themselves, in float32, in the order of the ranks: in
the 16-bit formats each a slice of the portion for all, who then decode the same code; in top_k all of it.

**Error feedback.** What a code leaves out stays in the sender's *residual* and is added to what it sends
next, so that over steps nothing is lost. There is one residual for each element of the flat gradient:
another cut into portions finds it where it was. The sum of a slice is rounded too, with the residual of the
rank that adds it up. That puts right, within the step, that rank's own first rounding, and a second residual
is not needed. Residuals are zero at the start of a run; one that is resumed has what it had.

**Statistics** (of batch norms) are no gradients, and no later step could put right what one left out of a
variance: they travel beside the code as they are, in float32.
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Sequence
from itertools import pairwise
from math import ceil
from typing import Any, Generic, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from ...kernels.precision import add_up_bfloat16, add_up_float16, encode_bfloat16, encode_float16
from ...kernels.sparsity import add_up_largest, encode_largest
from ..graph import Layout
from ..message.window import rounded_up
from .exchange import PATIENCE_S, Carrier, Exact, Reducer
from .portions import Portion

WireFormat = Literal["float32", "float16", "bfloat16", "top_k"]

KEEP = 0.01
"""Fraction of a portion that top_k sends where nothing is said."""

Flat = NDArray[np.float32]
Bytes = NDArray[np.uint8]

CODES = {
    "float16": (encode_float16, add_up_float16),
    "bfloat16": (encode_bfloat16, add_up_bfloat16),
}


def make_carrier(
    wire: WireFormat,
    comm: Reducer,
    gradient: Flat,
    residual: Flat | None,
    layout: Layout,
    *,
    keep: float | None = None,
) -> Carrier:
    """What carries portions of `gradient` in a format; in top_k the fraction `keep` of each.

    `residual` is as long as the gradient, and zeros where nothing was left out yet; only float32 needs none.
    """
    if wire == "float32":
        return Exact(comm, gradient)
    if residual is None:
        raise ValueError(f"{wire} leaves something out: give a residual, zeros as long as the gradient")
    if wire == "top_k":
        fraction = KEEP if keep is None else keep
        return Sparse(comm, lambda span: _SparsePart(gradient, residual, span, layout, fraction, comm.size))
    return Half(comm, lambda span: _HalfPart(gradient, residual, span, layout, wire, comm.rank, comm.size))


def warm_up(wire: WireFormat) -> None:
    """Compile a format's kernels."""
    values, residual, kept = np.zeros((3, 1), np.float32)
    if wire == "top_k":
        indices = np.zeros(1, np.uint32)
        encode_largest(values, residual, indices, kept)
        add_up_largest(values, [(indices, kept)])
    elif wire in CODES:
        encode, add_up = CODES[wire]
        code = np.zeros(1, np.uint16)
        encode(values, residual, code)
        add_up(values, [code, code])


class _Part(ABC):
    """This rank's part of a portion: its gradient, its residual, and the statistics among it."""

    def __init__(self, gradient: Flat, residual: Flat, span: slice, layout: Layout) -> None:
        self.values = gradient[span]
        self.residual = residual[span]
        self._statistics = [
            gradient[run.start : run.stop]
            for run in layout.runs(span.start, span.stop)
            if run.role == "statistic"
        ]
        #: Of the statistics, in whole lines, so that what is behind them is aligned.
        self.exact_bytes = rounded_up(4 * sum(statistic.size for statistic in self._statistics))

    @property
    @abstractmethod
    def nbytes(self) -> int:
        """As it travels."""

    @abstractmethod
    def encode(self) -> None:
        """Make what is sent."""

    @abstractmethod
    def decode(self) -> None:
        """Put the sum of what came where the gradient was."""

    def take_out(self, into: Bytes) -> None:
        """Copy the statistics to `into`; the zeros in their place leave no residual."""
        at, copy = 0, into.view(np.float32)
        for statistic in self._statistics:
            copy[at : at + statistic.size] = statistic
            statistic[...] = 0.0
            at += statistic.size

    def put_back(self, ranks: Sequence[Bytes]) -> None:
        """Put the sum of what the ranks have taken out, in their order, where it belongs."""
        at = 0
        for statistic in self._statistics:
            statistic[...] = 0.0
            for taken in ranks:
                statistic += taken.view(np.float32)[at : at + statistic.size]
            at += statistic.size


class _HalfPart(_Part):
    """A part in 16-bit codes: slices of one length, one a rank, the last of them shorter.

    `sent` goes to the ranks slice by slice and `parts` comes from them; `own`, the code of this rank's slice
    of the sum with its statistics behind it, goes to all, and `sums` comes from them.
    """

    def __init__(
        self, gradient: Flat, residual: Flat, span: slice, layout: Layout, wire: str, rank: int, size: int
    ) -> None:
        super().__init__(gradient, residual, span, layout)
        self._encode, self._add_up = CODES[wire]
        count = self.values.size
        each_bytes = rounded_up(2 * -(-count // size))
        own_bytes = each_bytes + self.exact_bytes
        self.own = np.zeros(own_bytes, np.uint8)
        self.parts = np.zeros(size * each_bytes, np.uint8)
        self.sums = np.zeros(size * own_bytes, np.uint8)
        self.sent = self.sums[: size * each_bytes]  # sent before the sums come
        self._code = self.sent.view(np.uint16)[:count]
        edges = [min(number * each_bytes // 2, count) for number in range(size + 1)]
        slices = [slice(start, stop) for start, stop in pairwise(edges)]
        mine = slices[rank]
        self._mine = self.values[mine], self.residual[mine]
        own_code = self.own.view(np.uint16)
        self._own_code, self._own_exact = own_code[: mine.stop - mine.start], self.own[each_bytes:]
        parts = self.parts.reshape(size, each_bytes).view(np.uint16)
        self._parts = list(parts[:, : mine.stop - mine.start])
        sums = self.sums.reshape(size, own_bytes)
        codes = sums.view(np.uint16)
        self._sums = [
            (self.values[part], code[: part.stop - part.start])
            for part, code in zip(slices, codes, strict=True)
        ]
        self._exact = list(sums[:, each_bytes:])

    @property
    def nbytes(self) -> int:
        return self._code.nbytes + self.exact_bytes

    def encode(self) -> None:
        self.take_out(self._own_exact)
        self._encode(self.values, self.residual, self._code)

    def add_up(self) -> None:
        values, residual = self._mine
        self._add_up(values, self._parts)
        self._encode(values, residual, self._own_code)

    def decode(self) -> None:
        for values, code in self._sums:
            self._add_up(values, [code])
        self.put_back(self._exact)


class _SparsePart(_Part):
    """A part and its largest elements: `own` goes to all, `others` comes from all."""

    def __init__(
        self, gradient: Flat, residual: Flat, span: slice, layout: Layout, keep: float, size: int
    ) -> None:
        super().__init__(gradient, residual, span, layout)
        count = ceil(keep * self.values.size)
        self.own = np.zeros(self.exact_bytes + 8 * count, np.uint8)
        self.others = np.zeros((size, self.own.size), np.uint8)
        self._own_exact, self._own = self._read(self.own)
        read = [self._read(message) for message in self.others]
        self._exact, self._parts = [exact for exact, _ in read], [part for _, part in read]

    @property
    def nbytes(self) -> int:
        return self.own.nbytes

    def encode(self) -> None:
        self.take_out(self._own_exact)
        if self.values.size:
            encode_largest(self.values, self.residual, *self._own)

    def decode(self) -> None:
        add_up_largest(self.values, self._parts)
        self.put_back(self._exact)

    def _read(self, message: Bytes) -> tuple[Bytes, tuple[NDArray[np.uint32], Flat]]:
        """A message's statistics; indices and values of its elements."""
        indices, values = np.split(message[self.exact_bytes :], 2)
        return message[: self.exact_bytes], (indices.view(np.uint32), values.view(np.float32))


P = TypeVar("P", bound=_Part)


class _Coded(Carrier, Generic[P]):
    """A carrier whose parts know how they are encoded and decoded."""

    encodes = True

    def __init__(self, comm: Reducer, part_of: Callable[[slice], P]) -> None:
        self._comm = comm
        self._part_of = part_of
        self._parts: list[P] = []

    def cut(self, parts: Sequence[slice]) -> None:
        """See `Carrier`."""
        self._parts = [self._part_of(part) for part in parts]

    def nbytes(self, portion: Portion) -> int:
        """See `Carrier`."""
        return self._parts[portion.index].nbytes

    def encode(self, portion: Portion) -> None:
        """See `Carrier`."""
        self._parts[portion.index].encode()

    def decode(self, portion: Portion) -> None:
        """See `Carrier`."""
        self._parts[portion.index].decode()


class Half(_Coded[_HalfPart]):
    """Portions as float16 or bfloat16: half the bytes of an all-reduce at any number of ranks.

    A portion takes two collectives, on two communicators, and each of these sees the portions in the plan's
    order on every rank: the second of a portion is posted behind the second of the portion before, however
    early its own slice is summed. So nothing deadlocks: the first of those under way never waits for another.

    A slice is summed on the loop's thread, as MPI's own all-reduce does it.
    """

    def __init__(self, comm: Reducer, part_of: Callable[[slice], _HalfPart]) -> None:
        super().__init__(comm, part_of)
        self._second: Reducer | None = None
        self._posted: asyncio.Future[None] | None = None  # the second collective of the portion before

    async def open(self) -> None:
        """See `Carrier`."""
        if self._second is None:
            self._second = await self._comm.duplicate("sums of portions")

    def start(self, portion: Portion, what: str) -> Awaitable[None]:
        """See `Carrier`."""
        part, before = self._parts[portion.index], self._posted
        came = self._comm.alltoall(part.sent, part.parts, what=what, patience_s=PATIENCE_S)
        posted = self._posted = asyncio.get_running_loop().create_future()
        return asyncio.ensure_future(self._finish(part, came, before, posted, what))

    async def _finish(
        self,
        part: _HalfPart,
        came: Awaitable[Any],
        before: asyncio.Future[None] | None,
        posted: asyncio.Future[None],
        what: str,
    ) -> None:
        assert self._second is not None, "open comes before start"
        await came
        part.add_up()
        if before is not None:
            await before
        gathered = self._second.allgather(part.own, part.sums, what=f"{what}, sums", patience_s=PATIENCE_S)
        posted.set_result(None)
        await gathered


class Sparse(_Coded[_SparsePart]):
    """Portions as their largest elements, a fraction `keep` of them from each rank.

    Every rank hears of all ranks' elements, so the bytes grow with their number: beyond 1 / keep ranks
    float32 takes fewer.
    """

    def start(self, portion: Portion, what: str) -> Awaitable[None]:
        """See `Carrier`."""
        part = self._parts[portion.index]
        return self._comm.allgather(part.own, part.others, what=what, patience_s=PATIENCE_S)
