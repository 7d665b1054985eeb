"""Receives that can be cancelled without the loss of a message.

A cancelled receive is cancelled in MPI; the `CancelledError` arrives when MPI has let go of the array. If a
message had come already, it is handed on to the next receive that matches, be that outstanding or still to be
posted: none is lost (but it may change places with a message that another receive was getting just then).
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any

from mpi4py import MPI
from numpy.typing import NDArray

from ..errors import Mistake
from .buffers import raw, writable
from .operation import Operation
from .selector import MpiSelector, Needs
from .wire import as_bytes

ANY = -1
OPEN_MPI = MPI.Get_library_version().startswith("Open MPI")


@dataclass(frozen=True, slots=True)
class Status:
    """Who sent a received message, with which tag, and how many elements of the array it filled."""

    source: int
    tag: int
    count: int


class Receive(Operation):
    """A receive under way; its result is a `Status`."""

    def __init__(
        self, receives: Receives, what: str, array: NDArray[Any], source: int, tag: int, needs: Needs
    ) -> None:
        self._receives = receives
        writable(array)
        self._array = array
        self._cancelled_with: tuple[Any] | None = None
        self._offered: HandedOn | None = None
        self.source = source
        self.tag = tag
        self.request: MPI.Request = receives.mpi.Irecv(
            raw(array), MPI.ANY_SOURCE if source == ANY else source, MPI.ANY_TAG if tag == ANY else tag
        )
        super().__init__(receives.selector, what, [self.request], array, needs)

    def complete(self, status: MPI.Status) -> None:
        """Called by the selector when the message is here, or MPI has taken the receive back."""
        self._keep = None
        self._receives.posted.remove(self)
        offered, asked = self._offered, self._cancelled_with is not None or self._offered is not None
        came = None
        if not (asked and status.Is_cancelled()):
            came = HandedOn(status.source, status.tag, self._array, status.Get_elements(MPI.BYTE))
        if self._cancelled_with is not None:
            super().cancel(*self._cancelled_with)
            for message in (came, offered):
                if message is not None:
                    self._receives.hand_on(message.kept())
        elif came is not None:
            self.set_result(Status(came.source, came.tag, came.nbytes // self._array.itemsize))
            if offered is not None:
                self._receives.hand_on(offered)
        elif offered is not None:
            self.fill(offered)

    def fail(self, error: MPI.Exception) -> None:
        """Called by the selector, most often because the message was longer than the array."""
        self._receives.posted.remove(self)
        if error.Get_error_class() != MPI.ERR_TRUNCATE:
            super().fail(error)
            return
        self._keep = None
        if not self.done():
            # Open MPI 5.0.11 had by then written all of it, from 4 KiB on, and the process crashed later on.
            behind = " Open MPI has written past its end, too: end the program" if OPEN_MPI else ""
            self.set_exception(
                Mistake(
                    f"a message was longer than the array for it, of {self._array.nbytes} bytes: "
                    f"{self.what}. Receive into as many as are sent, or send by a channel, whose messages "
                    f"tell their size.{behind}"
                )
            )

    def __await__(self) -> Any:
        if not self.done():
            self._selector.linger(self)
        try:
            return (yield from super().__await__())
        except asyncio.CancelledError:
            # The message came, and then, before the task went on, the task was cancelled.
            if not self.cancelled() and self.exception() is None:
                status = self.result()
                nbytes = status.count * self._array.itemsize
                self._receives.hand_on(HandedOn(status.source, status.tag, self._array, nbytes).kept())
            raise

    def cancel(self, msg: Any = None) -> bool:
        """Cancel the receive in MPI; it is done (as cancelled) once MPI has let go of the array."""
        if self.done():
            return False
        if self._cancelled_with is None:
            self._cancelled_with = (msg,)
            self._withdraw()
        return True

    @property
    def idle(self) -> bool:
        """Whether it still waits for any message, rather than for its end."""
        return self._cancelled_with is None and self._offered is None and not self.done()

    def offer(self, message: HandedOn) -> None:
        """Take a message that came for a cancelled receive, unless one of its own has come."""
        self._offered = message
        self._withdraw()

    def fill(self, message: HandedOn) -> None:
        """End with a message that came for a cancelled receive."""
        try:
            self.set_result(message.into(self._array, self.what))
        except Mistake as error:
            self.set_exception(error)

    def _withdraw(self) -> None:
        self.request.Cancel()
        self._selector.test()  # it nearly always ends at once


@dataclass(frozen=True, slots=True)
class HandedOn:
    """A message that came for a receive which had been cancelled: the first `nbytes` of `array`."""

    source: int
    tag: int
    array: NDArray[Any]
    nbytes: int

    def kept(self) -> HandedOn:
        """The same in memory of its own."""
        return HandedOn(self.source, self.tag, as_bytes(self.array)[: self.nbytes].copy(), self.nbytes)

    def matches(self, source: int, tag: int) -> bool:
        """Whether a receive from `source` with `tag` may get it."""
        return source in (ANY, self.source) and tag in (ANY, self.tag)

    def into(self, array: NDArray[Any], what: str) -> Status:
        """Copy it into `array` of the receive that `what` describes; Mistake if it is too long."""
        if self.nbytes > array.nbytes:
            raise Mistake(
                f"rank {self.source} sent {self.nbytes} bytes (tag {self.tag}), "
                f"the array for them has {array.nbytes}: {what}"
            )
        as_bytes(array)[: self.nbytes] = as_bytes(self.array)[: self.nbytes]
        return Status(self.source, self.tag, self.nbytes // array.itemsize)


class Receives:
    """Those of one communicator, and what came for such as were cancelled."""

    def __init__(self, mpi: MPI.Intracomm, selector: MpiSelector) -> None:
        self.mpi, self.selector = mpi, selector
        self.posted: list[Receive] = []
        self._handed_on: list[HandedOn] = []

    def post(
        self, array: NDArray[Any], source: int, tag: int, what: str, needs: Needs
    ) -> asyncio.Future[Status]:
        """The next message that matches, into `array`: one that is here already, or a new receive's."""
        for message in self._handed_on:
            if message.matches(source, tag):
                self._handed_on.remove(message)
                done: asyncio.Future[Status] = self.selector.loop.create_future()
                done.set_result(message.into(array, what))
                return done
        receive = Receive(self, what, array, source, tag, needs)
        self.posted.append(receive)
        return receive

    def hand_on(self, message: HandedOn) -> None:
        """Give the message of a cancelled receive to the next one that matches, now or later."""
        for receive in self.posted:
            if receive.idle and message.matches(receive.source, receive.tag):
                receive.offer(message)
                return
        self._handed_on.append(message)
