"""Awaitable point-to-point and collective operations over one MPI communicator.

Every call posts its operation *at once* and returns a future; awaiting only waits. So operations
overlap by being called one after the other and awaited later:

    halo = comm.recv(left, source=rank - 1)
    total = comm.allreduce(gradient)          # both are under way now
    await halo
    await total

Arrays are NumPy arrays, contiguous (C or Fortran order), and are sent from and received into
directly: no copy, no pickle. An array belongs to MPI until the future is done.

**Cancelling.** A cancelled receive is cancelled in MPI; the `CancelledError` arrives when MPI has let
go of the array. If a message had already matched it, that message is kept and handed to the next
matching `recv` on this communicator: none is lost. (With several matching receives outstanding, it goes
behind those already posted.) A send or a collective cannot be recalled, since the peers count on it:
cancelling ends the waiting only, and the array stays MPI's until the operation is through.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from typing import Any, NamedTuple

import numpy as np
from mpi4py import MPI
from numpy.typing import NDArray

from ..errors import Mistake
from .selector import MpiSelector

ANY = -1
#: Reductions by name.
OPERATIONS = {"sum": MPI.SUM, "max": MPI.MAX, "min": MPI.MIN, "prod": MPI.PROD}


class Status(NamedTuple):
    """Who sent a received message, with which tag, and how many elements of the array it filled."""

    source: int
    tag: int
    count: int


class Operation(asyncio.Future[Any]):
    """An MPI operation under way: a future that also says `what` it is, and since when (`started`)."""

    standing = False

    def __init__(self, selector: MpiSelector, what: str, keep: Any) -> None:
        super().__init__(loop=selector.loop)
        self._selector = selector
        self.what = what
        self.started = time.monotonic()
        self._keep = keep  # MPI works on these buffers until the end

    def complete(self, status: MPI.Status) -> None:
        """Called by the selector when the request ended well."""
        self._keep = None
        if not self.done():
            self.set_result(None)

    def fail(self, error: MPI.Exception) -> None:
        """Called by the selector when the request ended with an error."""
        self._keep = None
        if not self.done():
            error.add_note(f"in {self.what}")
            self.set_exception(error)

    def __await__(self) -> Any:
        if not self.done():
            self._selector.linger(self)
        return super().__await__()

    __iter__ = __await__


class Receive(Operation):
    """A receive under way; its result is a `Status`."""

    def __init__(self, comm: Communicator, what: str, array: NDArray[Any], source: int, tag: int) -> None:
        super().__init__(comm.selector, what, array)
        self._comm = comm
        self._array = array
        self._cancelling = False
        self.request = comm.mpi.Irecv(raw(array), _any_source(source), _any_tag(tag))

    def complete(self, status: MPI.Status) -> None:
        """Called by the selector; a cancelled receive that got a message hands the message on."""
        self._keep = None
        source, tag, nbytes = status.source, status.tag, 0
        if self._cancelling:
            if not status.Is_cancelled():
                nbytes = status.Get_elements(MPI.BYTE)
                self._comm.put_back(source, tag, self._array, nbytes)
            super().cancel()
            return
        nbytes = status.Get_elements(MPI.BYTE)
        self.set_result(Status(source, tag, nbytes // self._array.itemsize))

    def cancel(self, msg: Any = None) -> bool:
        """Cancel the receive in MPI; done (as cancelled) as soon as MPI has let go of the array."""
        if self.done():
            return False
        if not self._cancelling:
            self._cancelling = True
            self.request.Cancel()
            self._selector.test()  # most often it is over at once
        return True


class Communicator:
    """One MPI communicator, whose operations are awaited. It owns `mpi` and frees it.

    Make one with `await comm.duplicate(name)`: messages of different communicators never mix.
    """

    def __init__(self, mpi: MPI.Intracomm, selector: MpiSelector, name: str) -> None:
        self.mpi = mpi
        self.selector = selector
        self.name = name
        self.rank = mpi.Get_rank()
        self.size = mpi.Get_size()
        self._handed_back: deque[tuple[int, int, NDArray[np.uint8]]] = deque()

    # -- point to point -----------------------------------------------------------------------

    def send(self, array: NDArray[Any], dest: int, tag: int = 0, *, what: str | None = None) -> Operation:
        """Send `array` to rank `dest`."""
        request = self.mpi.Isend(raw(array), dest, tag)
        return self._watch(request, what or f"send to rank {dest} (tag {tag}) on {self.name!r}", array)

    def recv(
        self, array: NDArray[Any], source: int = ANY, tag: int = ANY, *, what: str | None = None
    ) -> asyncio.Future[Status]:
        """Receive into `array` from rank `source`; the result is the `Status`."""
        if self._handed_back and (status := self._take_back(array, source, tag)) is not None:
            done: asyncio.Future[Status] = self.selector.loop.create_future()
            done.set_result(status)
            return done
        if what is None:
            who = "any rank" if source == ANY else f"rank {source}"
            what = f"receive from {who} (tag {'any' if tag == ANY else tag}) on {self.name!r}"
        receive = Receive(self, what, array, source, tag)
        self.selector.add(receive.request, receive)
        return receive

    def put_back(self, source: int, tag: int, array: NDArray[Any], nbytes: int) -> None:
        """Keep a message that came for a cancelled receive; the next matching `recv` gets it."""
        message = np.empty(nbytes, np.uint8)
        message[:] = as_bytes(array)[:nbytes]
        self._handed_back.append((source, tag, message))

    def _take_back(self, array: NDArray[Any], source: int, tag: int) -> Status | None:
        for index, (its_source, its_tag, message) in enumerate(self._handed_back):
            if source in (ANY, its_source) and tag in (ANY, its_tag):
                if message.size > array.nbytes:
                    raise Mistake(
                        f"a message of {message.size} bytes from rank {its_source} (tag {its_tag}) on "
                        f"{self.name!r} does not fit the array of {array.nbytes} bytes it is received into"
                    )
                as_bytes(array)[: message.size] = message
                del self._handed_back[index]
                return Status(its_source, its_tag, message.size // array.itemsize)
        return None

    # -- collectives: every rank must call the same ones in the same order -----------------------

    def barrier(self, *, what: str | None = None) -> Operation:
        """Done when every rank has called it."""
        return self._watch(self.mpi.Ibarrier(), what or f"barrier on {self.name!r}", None)

    def broadcast(self, array: NDArray[Any], root: int = 0, *, what: str | None = None) -> Operation:
        """Copy `array` of rank `root` into everyone's `array`."""
        request = self.mpi.Ibcast(raw(array), root)
        return self._watch(request, what or f"broadcast from rank {root} on {self.name!r}", array)

    def allreduce(self, array: NDArray[Any], op: str = "sum", *, what: str | None = None) -> Operation:
        """Combine everyone's `array` element by element, in place on every rank."""
        request = self.mpi.Iallreduce(MPI.IN_PLACE, typed(array), reduction(op))
        return self._watch(request, what or f"allreduce ({op}) on {self.name!r}", array)

    def reduce_scatter(
        self, array: NDArray[Any], share: NDArray[Any], op: str = "sum", *, what: str | None = None
    ) -> Operation:
        """Combine everyone's `array` (size × share.size elements); rank i gets the i-th `share`."""
        request = self.mpi.Ireduce_scatter_block(typed(array), typed(share), reduction(op))
        return self._watch(request, what or f"reduce-scatter ({op}) on {self.name!r}", (array, share))

    def allgather(self, share: NDArray[Any], array: NDArray[Any], *, what: str | None = None) -> Operation:
        """Put everyone's `share`, by rank, into everyone's `array` (size × share.size elements)."""
        request = self.mpi.Iallgather(raw(share), raw(array))
        return self._watch(request, what or f"allgather on {self.name!r}", (share, array))

    def gather(
        self, share: NDArray[Any], array: NDArray[Any] | None, root: int = 0, *, what: str | None = None
    ) -> Operation:
        """Put everyone's `share`, by rank, into `array` of rank `root` (None on the others)."""
        into = raw(array) if array is not None else None
        request = self.mpi.Igather(raw(share), into, root)
        return self._watch(request, what or f"gather to rank {root} on {self.name!r}", (share, array))

    # -- communicators --------------------------------------------------------------------------

    async def duplicate(self, name: str) -> Communicator:
        """A communicator of the same ranks whose messages never mix with this one's (collective)."""
        mpi, request = self.mpi.Idup()
        await self._watch(request, f"duplicate of {self.name!r} as {name!r}", None)
        return Communicator(mpi, self.selector, name)

    def free(self) -> None:
        """Give the communicator back to MPI; nothing may be outstanding on it."""
        if self.mpi != MPI.COMM_NULL:
            self.mpi.Free()

    def _watch(self, request: MPI.Request, what: str, keep: Any) -> Operation:
        operation = Operation(self.selector, what, keep)
        self.selector.add(request, operation)
        return operation

    def __repr__(self) -> str:
        return f"<Communicator {self.name!r} rank {self.rank} of {self.size}>"


def raw(array: NDArray[Any]) -> Any:
    """`array` as MPI moves it: its bytes, whatever its type and order."""
    return [array, MPI.BYTE]


def typed(array: NDArray[Any]) -> Any:
    """`array` as MPI reduces it: with its element type."""
    return array


def as_bytes(array: NDArray[Any]) -> NDArray[np.uint8]:
    """A flat view of a contiguous array's bytes."""
    flat: NDArray[np.uint8] = array.reshape(-1, order="A").view(np.uint8)
    return flat


def reduction(op: str) -> MPI.Op:
    """The MPI operation of that name."""
    try:
        return OPERATIONS[op]
    except KeyError:
        raise Mistake(f"unknown reduction {op!r}; there are {', '.join(OPERATIONS)}") from None


def _any_source(source: int) -> int:
    return MPI.ANY_SOURCE if source == ANY else source


def _any_tag(tag: int) -> int:
    return MPI.ANY_TAG if tag == ANY else tag
