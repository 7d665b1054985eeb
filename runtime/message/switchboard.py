"""One standing receive for all channels of a rank: envelopes come in, and go to the channel they name.

    sender                                       receiver
    post() ── envelope, tag 0: all of a small ──►  standing receive ──► channel's `deliver`, or the
              message, or what a large one is      (starts itself again)  waiting request's future
           ── frames, tag t: header if large, ──►  receives posted in the order of the frames,
              arrays as they lie in memory         straight into new arrays

The order of messages of one source on one channel is the channel's business: a small message behind
a large one is here first. Frames have a tag per message, so large ones may be received in any order.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Protocol

import numpy as np
from mpi4py import MPI
from numpy.typing import NDArray

from ..errors import Mistake, WeftError
from .buffers import raw
from .communicator import Communicator
from .doorbell import doorbells
from .operation import Operation
from .selector import NOBODY, Needs, Waiting
from .wire import EAGER_BYTES, MOST_ARRAYS, PREFIX, Bytes, as_bytes, decode, encode

MESSAGE, REQUEST, REPLY, ERROR, CANCEL = range(5)
ENVELOPE_TAG = 0
#: So many frames are under way at a time, for every test looks at all of them: at once, 4,000 small arrays
#: took 3.5 s, and not 0.4, and four times as many sixteen times as long. Messages share them, each has one
#: at least (others may have to be received before it): with so many each, 20 messages of 300 took 5.1 s.
ABREAST = 64
#: The largest tag of all MPIs, if one names none itself.
LEAST_TAG_UB = 32767


class Port(Protocol):
    """A channel, as the switchboard sees it."""

    def deliver(self, incoming: Incoming) -> None:
        """Take a message; if it is not all here, pull or drop it now or later."""

    def close(self) -> None:
        """Take no more messages."""


class Incoming:
    """A message that is here, or of which the frames are still to come."""

    __slots__ = ("arrays", "body", "count", "header", "here", "kind", "nbytes", "number", "source", "tag")

    def __init__(self, kind: int, source: int, number: int, tag: int, count: int, nbytes: int) -> None:
        self.kind = kind
        self.source = source
        self.number = number  # of the request, else 0
        self.tag = tag  # of its frames, 0 if it has none
        self.count = count  # of its arrays
        self.here = tag == 0
        self.body: Any = None
        self.arrays: list[NDArray[Any]] = []
        self.header: Bytes | None = None  # where a header goes that did not fit the envelope
        self.nbytes = nbytes  # what the arrays take in memory

    def read(self, header: bytearray | memoryview) -> None:
        """Decode the header; makes the arrays, not yet filled."""
        self.body, self.arrays = decode(header, self.count)


def share(messages: int) -> int:
    """How many frames of a message may be under way where so many messages are."""
    return max(1, ABREAST // max(1, messages))


class Sending(Operation):
    """A message on its way out: `requests` are under way, and when one ends the next of `more` are posted."""

    def __init__(
        self,
        board: Switchboard,
        what: str,
        requests: list[MPI.Request],
        more: Iterator[MPI.Request],
        keep: Any,
    ) -> None:
        self._board, self._more = board, more
        board.sending.add(self)
        super().__init__(board.selector, what, requests, keep)

    def complete(self, status: MPI.Status) -> None:
        """Called by the selector for each request, also where nobody waits any more."""
        room = share(len(self._board.sending)) - (self._left - 1)
        for request in itertools.islice(self._more, max(0, room)):
            self._left += 1
            self._selector.add(request, self)
        super().complete(status)
        if self._left == 0:
            self._board.sending.discard(self)

    def fail(self, error: MPI.Exception) -> None:
        """Called by the selector when a request ended with an error."""
        self._board.sending.discard(self)
        super().fail(error)


class Pull:
    """Frames of one message on their way into memory; `done` is called when all are here."""

    __slots__ = ("_board", "_done", "_left", "_more", "needs", "started", "what")
    standing = False

    def __init__(
        self, board: Switchboard, incoming: Incoming, frames: Sequence[Bytes], done: Callable[[], None]
    ) -> None:
        irecv, source, tag = board.comm.mpi.Irecv, incoming.source, incoming.tag
        self._board = board
        self._more = (irecv(raw(frame), source, tag) for frame in frames if frame.size)
        self._done = done
        self.what = f"the rest of a message from rank {source} ({incoming.nbytes} bytes)"
        self.needs = board.comm.peer(source)
        self.started = time.monotonic()
        self._left = 0
        self._post()
        if self._left == 0:
            done()

    def complete(self, status: MPI.Status) -> None:
        """Called by the selector for each frame."""
        self._left -= 1
        self._post()
        if self._left == 0:
            self._done()

    def _post(self) -> None:
        room = share(self._board.pulling) - self._left
        for request in itertools.islice(self._more, max(0, room)):
            self._left += 1
            self._board.selector.add(request, self)

    def fail(self, error: MPI.Exception) -> None:
        """Called by the selector; no coroutine could be told, so the loop's exception handler is."""
        raise error


class Switchboard:
    """This rank's side of all channels over one communicator, which it owns.

    Making one is collective (its ranks hang up doorbells).
    """

    standing = True
    what = "messages of any channel"
    needs = NOBODY

    def __init__(self, comm: Communicator) -> None:
        self.comm = comm
        self.selector = comm.selector
        self.loop = comm.selector.loop
        self.started = time.monotonic()
        self.closing = False
        #: Requests that wait for their reply.
        self.replies: dict[int, asyncio.Future[Incoming]] = {}
        #: Everything a coroutine waits for here, for stall reports.
        self.waits: dict[asyncio.Future[Any], Waiting] = {}
        self._ports: dict[int, Port] = {}
        self._unclaimed: dict[int, list[Incoming]] = {}
        #: How many messages are on their way into memory.
        self.pulling = 0
        #: Messages that MPI has not taken all of, also those whose senders were cancelled.
        self.sending: set[Sending] = set()
        self._numbers = itertools.count(1)
        # Frames' tags run from 1 to here and begin again: with MPICH's 2^29 no message lies about that long.
        self._last_tag = comm.mpi.Get_attr(MPI.TAG_UB) or LEAST_TAG_UB
        self._tag = 0
        self._bells = self.selector.bells = doorbells(comm.mpi)
        self._buffer = bytearray(EAGER_BYTES)
        self._receive = comm.mpi.Recv_init([self._buffer, MPI.BYTE], MPI.ANY_SOURCE, ENVELOPE_TAG)
        self._receive.Start()
        self.selector.add(self._receive, self)
        self.selector.reporters.append(self._report)

    def _report(self) -> Iterable[Waiting]:
        return self.waits.values()

    # -- out ------------------------------------------------------------------------------------

    def next_number(self) -> int:
        """A number for a request, never used before on this rank."""
        return next(self._numbers)

    def post(
        self, kind: int, channel: int, number: int, dest: int, body: Any, arrays: Sequence[NDArray[Any]]
    ) -> Operation | None:
        """Send a message; None if MPI took all of it at once, else the operation to wait for."""
        self.selector.check_thread()
        header, frames = encode(body, arrays)
        nbytes = 0
        for frame in frames:
            nbytes += frame.size
        size = PREFIX.size + len(header) + nbytes
        isend = self.comm.mpi.Isend
        if size <= EAGER_BYTES:
            envelope = PREFIX.pack(kind, len(frames), len(header), 0, channel, number, nbytes) + header
            if frames:
                envelope += b"".join([frame.data for frame in frames])
            request = isend([envelope, MPI.BYTE], dest, ENVELOPE_TAG)
            if self._bells is not None:
                self._bells.ring(dest)
            if request.Test():  # most often it is over: 0.1 us instead of a future's 3 us
                return None
            return self._sent([request], iter(()), dest, size, envelope)
        tag = self._tag = self._tag % self._last_tag + 1
        if len(frames) > MOST_ARRAYS:
            raise Mistake(f"{len(frames):,} arrays in a message: it may have {MOST_ARRAYS:,}; join them")
        envelope = PREFIX.pack(kind, len(frames), len(header), tag, channel, number, nbytes)
        if PREFIX.size + len(header) <= EAGER_BYTES:
            envelope += header
        else:
            frames.insert(0, np.frombuffer(header, np.uint8))
        requests = [isend([envelope, MPI.BYTE], dest, ENVELOPE_TAG)]
        more = (isend(raw(frame), dest, tag) for frame in frames if frame.size)
        requests += itertools.islice(more, share(len(self.sending) + 1))
        if self._bells is not None:
            self._bells.ring(dest)
        return self._sent(requests, more, dest, size, (envelope, frames))

    def _sent(
        self, requests: list[MPI.Request], more: Iterator[MPI.Request], dest: int, size: int, keep: Any
    ) -> Operation:
        what = f"rank {dest} to take a message of {size} bytes"
        return Sending(self, what, requests, more, keep)

    # -- in -------------------------------------------------------------------------------------

    def complete(self, status: MPI.Status) -> None:
        """An envelope is here (called by the selector)."""
        buffer = self._buffer
        kind, count, header_bytes, tag, channel, number, nbytes = PREFIX.unpack_from(buffer)
        incoming = Incoming(kind, status.source, number, tag, count, nbytes)
        at = PREFIX.size + header_bytes
        if at > EAGER_BYTES:
            incoming.header = np.empty(header_bytes, np.uint8)
        else:
            incoming.read(buffer[PREFIX.size : at])
            if not tag:
                for array in incoming.arrays:
                    as_bytes(array)[:] = memoryview(buffer)[at : at + array.nbytes]
                    at += array.nbytes
        self._receive.Start()
        if kind in (REPLY, ERROR):
            if incoming.here:
                self._replied(incoming)
            else:
                self.pull(incoming, self._replied)
        elif (port := self._ports.get(channel)) is not None:
            port.deliver(incoming)
        elif self.closing:
            self.drop(incoming)
        else:
            self._unclaimed.setdefault(channel, []).append(incoming)

    def fail(self, error: MPI.Exception) -> None:
        """The standing receive failed (called by the selector)."""
        raise error

    def pull(self, incoming: Incoming, done: Callable[[Incoming], None]) -> None:
        """Receive the frames of a message; `done` is called when all of it is here."""
        self.pulling += 1

        def headed() -> None:
            header = incoming.header
            assert header is not None
            incoming.header = None
            incoming.read(header.data)
            Pull(self, incoming, [as_bytes(array) for array in incoming.arrays], pulled)

        def pulled() -> None:
            self.pulling -= 1
            incoming.here = True
            done(incoming)

        if incoming.header is not None:
            Pull(self, incoming, [incoming.header], headed)
        else:
            Pull(self, incoming, [as_bytes(array) for array in incoming.arrays], pulled)

    def drop(self, incoming: Incoming) -> None:
        """Nobody wants this message; its frames are received all the same, for the sender waits."""
        if not incoming.here:
            self.pull(incoming, lambda _: None)

    def _replied(self, incoming: Incoming) -> None:
        future = self.replies.pop(incoming.number, None)
        if future is not None and not future.done():  # else the request was cancelled: a late reply
            future.set_result(incoming)

    # -- channels -------------------------------------------------------------------------------

    def attach(self, channel: int, port: Port) -> None:
        """Messages of that channel go to `port`, beginning with those that came before."""
        if channel in self._ports:
            raise Mistake("a channel of that name exists on this rank: share it (world.channel does)")
        self._ports[channel] = port
        for incoming in self._unclaimed.pop(channel, ()):
            port.deliver(incoming)

    async def wait(
        self, future: asyncio.Future[Any], timeout: float | None, what: str, needs: Needs = NOBODY
    ) -> None:
        """Wait for a future that a message will complete; its TimeoutError names `what` was waited for."""

        def expire() -> None:
            if not future.done():
                future.set_exception(TimeoutError(f"waited {timeout:g} s in vain for {what}"))

        handle = None if timeout is None else self.loop.call_later(timeout, expire)
        self.waits[future] = Waiting(what, time.monotonic(), needs)
        self.selector.expecting += 1
        try:
            await future
        finally:
            self.selector.expecting -= 1
            del self.waits[future]
            if handle is not None:
                handle.cancel()

    async def close(self) -> None:
        """End all channels of this rank. Collective: every rank calls it, and nothing is sent after it.

        Who still waits on a channel gets a WeftError; messages nobody received are dropped.
        """
        if self.closing:
            return
        self.closing = True
        for port in self._ports.values():
            port.close()
        for future in self.waits:
            if not future.done():
                future.set_exception(
                    WeftError(f"channels were closed during a wait for {self.waits[future].what}")
                )
        for messages in self._unclaimed.values():
            for incoming in messages:
                self.drop(incoming)
        self._unclaimed.clear()
        while self.sending:
            await asyncio.sleep(0)
        await self.comm.barrier(what="every rank to close its channels")
        while self.pulling:
            await asyncio.sleep(0)
        self.selector.discard(self)
        self._receive.Cancel()
        self._receive.Wait()
        self._receive.Free()
        self.selector.reporters.remove(self._report)
        if self._bells is not None:
            self.selector.bells = None
            self._bells.close()
        self.comm.free()
