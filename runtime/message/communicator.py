"""Awaitable point-to-point and collective operations over one MPI communicator.

Every call posts its operation *at once* and returns a future; awaiting only waits. So operations
overlap by being called one after the other and awaited later:

    halo = comm.recv(left, source=rank - 1)
    total = comm.allreduce(gradient)          # both are under way now
    await halo
    await total

Arrays are NumPy arrays, contiguous (C or Fortran order), and are sent from and received into
directly: no copy, no pickle. An array belongs to MPI until the future is done.

**Cancelling.** A cancelled receive gives its array back and loses no message (receive.py). A send or a
collective cannot be recalled, since the peers count on it: cancelling ends the waiting only, and the array
stays MPI's until the operation is through.
"""

from __future__ import annotations

import asyncio
import itertools
import operator
import zlib
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, SupportsIndex, TypedDict, TypeVar, Unpack

from mpi4py import MPI
from numpy.typing import NDArray

from ..errors import Mistake
from .buffers import contiguous, countable, elements, raw, reduction_named, writable
from .meeting import Meeting
from .operation import Operation
from .receive import ANY, Receives, Status
from .selector import LONGEST_TEXT, NOBODY, Call, MpiSelector, Needs
from .wire import ESCAPE

T = TypeVar("T")

#: How many collectives back ranks can tell that they called different ones (stall.py, order.py).
CALLS = 1024


class Telling(TypedDict, total=False):
    """What a stall report is to say of a collective, and when.

    `what` it is for; a report comes after `patience_s` seconds (None: as for all other waits). All ranks'
    collectives of one number must be the same, in operation and `what`: where they are not, the report says
    so, and order.py ends the job.
    """

    what: str | None
    patience_s: float | None


class Communicator:
    """One MPI communicator, whose operations are awaited. It owns `mpi` and frees it.

    Make one with `await comm.duplicate(name)`: messages of different communicators never mix.
    `what` says in a stall report what the operation is for.
    """

    def __init__(self, mpi: MPI.Intracomm, selector: MpiSelector, name: str, group: str = "") -> None:
        self.mpi = mpi
        #: For calls that block in MPI (meeting.py): nothing else is ever under way there. Open MPI 5.0.11
        #: makes a window by collectives of its own on the communicator that it is given, and hung where one
        #: rank had begun a barrier on that before, and another behind it.
        self.quiet = mpi.Dup()
        self.selector = selector
        self.name = name
        #: Its name and its forebears': the same on all its ranks, and another for every other on a rank.
        self.group = group or name
        #: By the names that the groups of duplicates end with: how often each was asked for.
        self._children: dict[str, int] = {}
        self.rank = mpi.Get_rank()
        self.size = mpi.Get_size()
        #: Every member's rank in the world.
        self.ranks = _world_ranks(mpi)
        self._peers = [Needs((rank,)) for rank in self.ranks]
        self._others = tuple(rank for rank in self.ranks if rank != self.ranks[self.rank])
        #: The number of collectives called so far.
        self.called = 0
        self._calls: deque[Call] = deque(maxlen=CALLS)
        self._checksum = 0
        self._receives = Receives(mpi, selector)
        selector.communicators.append(self)

    # -- point to point -----------------------------------------------------------------------

    def send(self, array: NDArray[Any], dest: int, tag: int = 0, *, what: str | None = None) -> Operation:
        """Send `array` to rank `dest`."""
        self._check_rank(dest)
        request = self._posting.Isend(raw(array), dest, tag)
        what = what or f"send to rank {dest} (tag {tag}) on {self.name!r}"
        return Operation(self.selector, what, [request], array, self.peer(dest))

    def recv(
        self, array: NDArray[Any], source: int = ANY, tag: int = ANY, *, what: str | None = None
    ) -> asyncio.Future[Status]:
        """Receive into `array` from rank `source`; the result is the `Status`."""
        self.selector.check_thread()
        if source != ANY:
            self._check_rank(source)
        if what is None:
            who = "any rank" if source == ANY else f"rank {source}"
            what = f"receive from {who} (tag {'any' if tag == ANY else tag}) on {self.name!r}"
        return self._receives.post(array, source, tag, what, self.peer(source))

    # -- collectives: every rank must call the same ones in the same order -----------------------

    def barrier(self, **telling: Unpack[Telling]) -> Operation:
        """Done when every rank has called it."""
        return self._collective("barrier", [self._posting.Ibarrier()], None, **telling)

    def broadcast(self, array: NDArray[Any], root: int = 0, **telling: Unpack[Telling]) -> Operation:
        """Copy `array` of rank `root` into everyone's `array`."""
        self._check_rank(root)
        if self.rank != root:
            writable(array)
        request = self._posting.Ibcast(raw(array), root)
        return self._collective(f"broadcast from rank {root}", [request], array, array, **telling)

    def allreduce(self, array: NDArray[Any], op: str = "sum", **telling: Unpack[Telling]) -> Operation:
        """Combine everyone's `array` element by element, in place on every rank."""
        reduction = reduction_named(op, array)
        writable(array)
        requests = [self._posting.Iallreduce(MPI.IN_PLACE, piece, reduction) for piece in countable(array)]
        return self._collective(f"allreduce ({op})", requests, array, array, **telling)

    def reduce_scatter(
        self, array: NDArray[Any], share: NDArray[Any], op: str = "sum", **telling: Unpack[Telling]
    ) -> Operation:
        """Combine everyone's `array` (size × share.size elements); rank i gets the i-th `share`."""
        reduction = reduction_named(op, array)
        self._check_shares("reduce-scatter", array, share)
        writable(share)
        request = self._posting.Ireduce_scatter_block(array, share, reduction)
        return self._collective(f"reduce-scatter ({op})", [request], (array, share), share, **telling)

    def allgather(self, share: NDArray[Any], array: NDArray[Any], **telling: Unpack[Telling]) -> Operation:
        """Put everyone's `share`, by rank, into everyone's `array` (size × share.size elements)."""
        self._check_shares("allgather", array, share)
        writable(array)
        request = self._posting.Iallgather(raw(share), raw(array, self.size))
        return self._collective("allgather", [request], (share, array), share, **telling)

    def gather(
        self, share: NDArray[Any], array: NDArray[Any] | None, root: int = 0, **telling: Unpack[Telling]
    ) -> Operation:
        """Put everyone's `share`, by rank, into `array` of rank `root` (None on the others)."""
        self._check_rank(root)
        if self.rank != root:
            array = None
        elif array is None:
            raise Mistake(f"gather on {self.name!r}: rank {root} gathers, so its array must not be None")
        else:
            self._check_shares("gather", array, share)
            writable(array)
        into = None if array is None else raw(array, self.size)
        request = self._posting.Igather(raw(share), into, root)
        return self._collective(f"gather to rank {root}", [request], (share, array), share, **telling)

    def alltoall(self, array: NDArray[Any], into: NDArray[Any], **telling: Unpack[Telling]) -> Operation:
        """Send the i-th of `size` equal blocks of `array` to rank i; `into` gets rank i's as the i-th."""
        contiguous(array)
        writable(into)
        if array.nbytes != into.nbytes or array.nbytes % self.size:
            raise Mistake(
                f"all-to-all on {self.name!r}: arrays of {array.nbytes} and {into.nbytes} bytes; they must "
                f"be equal, and a multiple of {self.size}, the number of ranks"
            )
        if array.dtype != into.dtype:  # float32 that came into float64 were noise without an error
            raise Mistake(
                f"all-to-all on {self.name!r}: arrays of {array.dtype} and {into.dtype}; they must be of one "
                "type"
            )
        self._check_orders("all-to-all", array, into)
        request = self._posting.Ialltoall(raw(array, self.size), raw(into, self.size))
        return self._collective("all-to-all", [request], (array, into), array, **telling)

    # -- communicators --------------------------------------------------------------------------

    def meet(self, arrival: Operation, call: Callable[[], T]) -> Meeting[T]:
        """Have every rank make `call()`, which blocks in MPI until all do, when all have come (meeting.py).

        `arrival` is a collective that was called here for it just now, and one that no rank ends before all
        have called it. Mistake on ranks that called another there.
        """
        meeting = Meeting(arrival, self.group, self.ranks, call)
        if self.selector.meetings is not None:
            self.selector.meetings.call(meeting)

        def come(arrival: asyncio.Future[Any]) -> None:
            if (error := arrival.exception()) is not None:
                meeting.fail(error)
            elif (meetings := self.selector.meetings) is None:
                meeting.make()
            else:
                meetings.come(meeting)

        arrival.add_done_callback(come)
        return meeting

    async def duplicate(self, name: str) -> Communicator:
        """A communicator of the same ranks whose messages never mix with this one's (collective).

        MPI's that does not block is not used: while one is under way, other communicators cannot be made, and
        the rank for which it waits may be at just that.
        """
        group = self._child(name)
        arrival = self.barrier(what=f"duplicate as {name!r}")
        made = self.meet(arrival, lambda: Communicator(self.quiet.Dup(), self.selector, name, group))
        return await asyncio.shield(made)

    async def split(self, color: int | None, key: int = 0, *, name: str) -> Communicator | None:
        """A communicator of the ranks with the same `color` (0 or more; None: none), ordered by `key`.

        Collective. MPI has no split that does not block: the ranks meet first, whose stall is reported as any
        other, and then block for the time of a few messages. For the start, not for a step. Cancelling ends
        the waiting only, and the others get theirs.
        """
        # Open MPI refuses such a one on its rank alone, and the others waited for it in MPI.
        if color is not None and not (isinstance(color, SupportsIndex) and operator.index(color) >= 0):
            raise Mistake(
                f"split into {name!r}: a color of {color!r}; give 0 or more, or None for no part in it"
            )
        group = self._child(name)
        arrival = self.barrier(what=f"split into {name!r}")

        def made() -> Communicator | None:
            mpi = self.quiet.Split(MPI.UNDEFINED if color is None else color, key)
            if mpi == MPI.COMM_NULL:
                return None
            assert isinstance(mpi, MPI.Intracomm)
            return Communicator(mpi, self.selector, name, group)

        return await asyncio.shield(self.meet(arrival, made))

    @property
    def _posting(self) -> MPI.Intracomm:
        """MPI's own, for what begins an operation; Mistake on another thread than the loop's."""
        self.selector.check_thread()
        return self.mpi

    def _check_rank(self, rank: int) -> None:
        """Mistake if there is no such rank.

        MPI takes some for signs of its own: what rank 0 sent to its left, rank -1, was lost without a word
        under MPICH (there it is MPI_PROC_NULL, under Open MPI -2 is), and MPICH received from -2 what anybody
        sent.
        """
        if not 0 <= rank < self.size:
            raise Mistake(f"there is no rank {rank!r} in {self.name!r}: its ranks are 0 to {self.size - 1}")

    def _check_shares(self, operation: str, array: NDArray[Any], share: NDArray[Any]) -> None:
        """Mistake unless `array` holds a share of every rank, and nothing else.

        They travel as bytes: float64 gathered into float32 was noise without an error, a row too many shifted
        all but the first, and of an array too small MPICH said so on stderr and went on.
        """
        contiguous(share)
        contiguous(array)
        if array.nbytes != self.size * share.nbytes or array.dtype != share.dtype:
            raise Mistake(
                f"{operation} on {self.name!r}: an array of {array.dtype} with shape {array.shape} and a "
                f"share of {share.dtype} with shape {share.shape}; the array must have the share's type and "
                f"{self.size} times its elements, one share of each rank"
            )
        # In Fortran order the shares lie along the last axis.
        by_rank = array.flags.c_contiguous or array.shape[-1] == self.size
        self._check_orders(operation, array, share, by_rank)

    def _check_orders(
        self, operation: str, array: NDArray[Any], other: NDArray[Any], by_rank: bool = True
    ) -> None:
        """Mistake if one is in Fortran order and the other is not: what came was transposed without an error.

        Likewise unless the blocks that lie `by_rank` in memory do so in `array`.
        """
        both = (array, other)
        alike = all(each.flags.c_contiguous for each in both) or all(each.flags.f_contiguous for each in both)
        if not alike or not by_rank:
            seen = " and ".join(
                f"{each.shape} in {'C' if each.flags.c_contiguous else 'Fortran'} order" for each in both
            )
            raise Mistake(
                f"{operation} on {self.name!r}: arrays of shape {seen}, whose blocks for each rank do not "
                "lie alike; give both in C order (numpy.ascontiguousarray)"
            )

    def _child(self, name: str) -> str:
        """The group of the next child of that name. Two that had one were in one meeting, and it never began:

        "a/b" of the world and "b" of its "a" were, and a third that was called what a second one's group is.
        """
        name = own = name.replace("/", "//")
        while own in self._children:
            self._children[name] += 1
            own = f"{name} ({self._children[name]})"
        self._children[own] = 1
        return f"{self.group}/{own}"

    def free(self) -> None:
        """Give the communicator back to MPI; nothing may be outstanding on it."""
        if self.mpi != MPI.COMM_NULL:
            self.selector.communicators.remove(self)
            self.mpi.Free()
            self.quiet.Free()

    def peer(self, rank: int) -> Needs:
        """What a message to or from `rank` needs: that rank; nobody in particular if it may be any."""
        return NOBODY if rank == ANY else self._peers[rank]

    def call(self, number: int) -> Call | None:
        """The `number`-th collective called here; None if it is none of the last ones."""
        back = self.called - number
        return self._calls[-1 - back] if 0 <= back < len(self._calls) else None

    def checksums(self, count: int) -> list[int]:
        """Of the last `count` collectives called here, or as many of them as are known."""
        start = max(0, len(self._calls) - count)
        return [call.checksum for call in itertools.islice(self._calls, start, None)]

    def _collective(
        self,
        operation: str,
        requests: Sequence[MPI.Request],
        keep: Any,
        given: NDArray[Any] | None = None,
        **telling: Unpack[Telling],
    ) -> Operation:
        self.called += 1
        what = (telling.get("what") or f"{operation} on {self.name!r}")[:LONGEST_TEXT]
        nbytes, of = (0, "") if given is None else (given.nbytes, elements(given))
        text = f"{operation} {what} {nbytes} {of}"
        self._checksum = zlib.crc32(text.encode(errors=ESCAPE), self._checksum)
        call = Call(operation, what, self._checksum, nbytes, of)
        self._calls.append(call)
        needs = Needs(self._others, self.group, self.called, call, telling.get("patience_s"))
        return Operation(self.selector, what, requests, keep, needs)

    def __repr__(self) -> str:
        return f"<Communicator {self.name!r}, rank {self.rank} of {self.size}>"


def _world_ranks(mpi: MPI.Intracomm) -> tuple[int, ...]:
    """The rank in MPI_COMM_WORLD of every member."""
    members = mpi.Get_group()
    world = MPI.COMM_WORLD.Get_group()
    ranks = members.Translate_ranks(list(range(members.Get_size())), world)
    members.Free()
    world.Free()
    return tuple(int(rank) for rank in ranks)
