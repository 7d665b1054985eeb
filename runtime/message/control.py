"""Small messages between the ranks' runtimes: failures, stops, questions about stalls.

They travel on a communicator of their own, so they pass whatever the program is doing, and one standing
receive takes them in. A message is msgpack: [kind, body...]; where a rank is may hold a file's name that
is no text (a rank that was only slow failed when it was asked). Handlers run as callbacks of the event loop,
hence a rank whose loop is blocked does not answer; that silence is itself an answer (see stall.py).

Sends are synchronous (MPI_Issend): a send that is done has been received. So when every rank has awaited
its sends and then a barrier, no message is under way, and the standing receive can be cancelled.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

import msgpack
import numpy as np
from mpi4py import MPI

from .operation import Operation
from .selector import NOBODY, MpiSelector
from .wire import ESCAPE

MESSAGE_BYTES = 1 << 16  # the largest message; a traceback is cut to fit (failure.py)
Handler = Callable[..., None]


class Control:
    """One rank's end of the control communicator; `mpi` is duplicated for it and freed by `close`."""

    what = "control messages"
    standing = True
    needs = NOBODY

    def __init__(self, mpi: MPI.Intracomm, selector: MpiSelector) -> None:
        self.rank = mpi.Get_rank()
        self.size = mpi.Get_size()
        self.started = time.monotonic()
        self._mpi = mpi
        self._selector = selector
        self._handlers: dict[str, Handler] = {}
        self._buffer = np.empty(MESSAGE_BYTES, np.uint8)
        self._sends: set[Operation] = set()
        self._receive = mpi.Recv_init([self._buffer, MPI.BYTE], MPI.ANY_SOURCE, 0)
        self._receive.Start()
        selector.add(self._receive, self)

    def on(self, kind: str, handler: Handler) -> None:
        """Call `handler(source, *body)` for every message of this kind; say so before the loop runs."""
        self._handlers[kind] = handler

    def send(self, rank: int, kind: str, *body: Any) -> None:
        """Send to one rank; returns at once."""
        message = np.frombuffer(msgpack.packb([kind, *body], unicode_errors=ESCAPE), np.uint8)
        self._watch(self._mpi.Issend([message, MPI.BYTE], rank, 0), message)
        if self._selector.bells is not None:
            self._selector.bells.ring(rank)

    def tell(self, kind: str, *body: Any) -> None:
        """Send to every other rank."""
        for rank in range(self.size):
            if rank != self.rank:
                self.send(rank, kind, *body)

    def sent(self) -> asyncio.Future[Any]:
        """Done when everything sent so far has been received."""
        return asyncio.gather(*self._sends)

    def barrier(self) -> Operation:
        """Done when every rank has called it."""
        return self._watch(self._mpi.Ibarrier(), None)

    def close(self) -> None:
        """Cancel the standing receive and free the communicator; only when nothing is under way."""
        self._selector.discard(self)
        self._receive.Cancel()
        self._receive.Wait()
        self._receive.Free()
        self._mpi.Free()

    def _watch(self, request: MPI.Request, keep: Any) -> Operation:
        # It needs nobody: a rank that waits here waits in silence.
        operation = Operation(self._selector, self.what, [request], keep)
        self._sends.add(operation)
        operation.add_done_callback(self._sends.discard)
        return operation

    # -- called by the selector -------------------------------------------------------------

    def complete(self, status: MPI.Status) -> None:
        """A message has arrived: listen for the next one, and hand this one to its handler."""
        message = self._buffer[: status.Get_elements(MPI.BYTE)]
        kind, *body = msgpack.unpackb(message, unicode_errors=ESCAPE)
        source = status.Get_source()
        self._receive.Start()
        self._selector.loop.call_soon(self._handlers[kind], source, *body)

    def fail(self, error: MPI.Exception) -> None:
        """The standing receive ended with an error."""
        raise error
