"""Calls of MPI that block: no rank makes one before all are there, and all make them in one order.

    every rank     awaits a collective of that communicator; when it is over, all have come
    its first one  says so to rank 0
    rank 0         puts meetings in the order in which it hears of them, and tells their ranks
    every rank     makes the call when it has made those that come before it

To make a window or a communicator, and to free a window, MPI has nothing that does not block. Of two such
calls at once, on communicators of their own, each of two ranks went into another first and waited for the
other there for ever, with its loop: they told of no stall and heard no signal. So it was of twelve windows
that one rank closed in another order than the next (MPICH 5.0.2), and of a window and a pool that were opened
at once (Open MPI 5.0.11). With one order for all ranks nobody waits in a circle: of the meetings that are not
over, all ranks of the first are free for it.
"""

from __future__ import annotations

import asyncio
import functools
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Coroutine, Iterable, Iterator, Sequence
from contextlib import contextmanager
from math import inf
from typing import Any, ParamSpec, Protocol, TypeVar

from ..errors import Mistake
from .failure import ranks_text, say
from .operation import Operation
from .selector import Needs, Waiting

T = TypeVar("T")
P = ParamSpec("P")
Key = tuple[str, int]
"""What all ranks of a meeting know it by: a communicator's group, and the number of a collective on it."""


class Wire(Protocol):
    """Small messages to a rank, in order: control.py's."""

    rank: int

    def send(self, rank: int, kind: str, *body: Any) -> None:
        """Send to one rank."""

    def on(self, kind: str, handler: Callable[..., None]) -> None:
        """Call `handler(source, *body)` for every message of this kind."""


class Visit(Protocol):
    """One rank's part of a meeting. Of the same one all ranks have the same `key` and the same `checksum`."""

    key: Key
    ranks: Sequence[int]  # of the world
    checksum: int  # of all that the rank has called there, the meeting's own collective included
    what: str

    def make(self) -> None:
        """Make the call; what it raises is kept for who waits."""

    def refuse(self, first: int, what: str) -> None:
        """The meeting's first rank, `first`, has called something else there, `what`: a mistake."""


class Meetings:
    """One rank's part in the order. A call in which it is for longer than `stall_s` is told."""

    def __init__(self, control: Wire, stall_s: float = inf) -> None:
        self._rank, self._send, self._stall_s = control.rank, control.send, stall_s
        control.on("met", self.met)
        control.on("turn", self.turn)
        self._called: set[Key] = set()  # all of this rank that are not over
        #: Those to which all have come, as seen here, and since when.
        self._here: dict[Key, tuple[Visit, float]] = {}
        self._order: deque[tuple[Key, int, int, str]] = deque()  # as rank 0 told it, less those that are over

    def call(self, visit: Visit) -> None:
        """This rank has called the collective before the meeting; by the time of the turn all have."""
        self._called.add(visit.key)

    def come(self, visit: Visit) -> None:
        """All ranks have come: the call, in its turn. The first of them tells rank 0."""
        if len(visit.ranks) == 1:
            self._called.discard(visit.key)
            visit.make()
            return
        self._here[visit.key] = visit, time.monotonic()
        if self._rank == visit.ranks[0]:
            # With what it takes the meeting for: one rank's was another's of that number, on a communicator
            # that they had made in two orders, and both waited for each other in MPI.
            told = *visit.key, bits(visit.ranks), visit.checksum, visit.what
            if self._rank:
                self._send(0, "met", *told)
            else:
                self.met(0, *told)
        self._proceed()

    def met(self, source: int, group: str, number: int, ranks: bytes, checksum: int, what: str) -> None:
        """On rank 0: the next in the order."""
        told = group, number, source, checksum, what
        members = ranks_in(ranks)
        for rank in members:
            if rank:
                self._send(rank, "turn", *told)
        if 0 in members:  # behind the others, who could not be told from within a call
            self.turn(0, *told)

    def turn(self, source: int, group: str, number: int, first: int, checksum: int, what: str) -> None:
        """Rank 0 has told the next in the order. All have come, but this rank may still have to see it.

        Mistake where this rank has called something else there, that is no meeting: the others block in MPI,
        where they neither hear nor tell of it, and this rank waited for the turn of its next one.
        """
        if (group, number) not in self._called:
            raise Mistake(
                f'rank {first} called "{what}" as collective {number} on {group!r}, and rank {self._rank} '
                "something else there: all ranks must call the same collectives in the same order"
            )
        self._order.append(((group, number), first, checksum, what))
        self._proceed()

    def waiting(self) -> list[Waiting]:
        """Meetings whose turn has not come, and for whom they wait."""
        found = []
        for visit, since in self._here.values():
            others = tuple(rank for rank in visit.ranks if rank != self._rank)  # one tells for all
            needs = Needs((0 if self._rank else visit.ranks[0],), visit.key[0], witnesses=others)
            found.append(Waiting(f"the turn of: {visit.what}", since, needs))
        return found

    def _proceed(self) -> None:
        while self._order and self._order[0][0] in self._here:
            key, first, checksum, what = self._order.popleft()
            visit, _ = self._here.pop(key)
            self._called.discard(key)
            if visit.checksum == checksum:
                with self._told_if_late(visit):
                    visit.make()
            else:
                visit.refuse(first, what)

    @contextmanager
    def _told_if_late(self, visit: Visit) -> Iterator[None]:
        """By a thread, for the loop is in MPI; of two ranks, for one of them may be who is late.

        That one has come, so it blocks its loop since then. The others hear and tell of nothing else, and a
        rank that waited for these found only that their loops stood still.
        """
        timer = threading.Timer(self._stall_s, lambda: say(late(visit, self._rank, self._stall_s)))
        timer.daemon = True
        # A thread can wait no longer than that, and raised on stderr where a stall was to be told never.
        tells = self._stall_s <= threading.TIMEOUT_MAX and self._rank in visit.ranks[:2]
        if tells:
            timer.start()
        try:
            yield
        finally:
            if tells:
                timer.cancel()


def late(visit: Visit, rank: int, seconds: float) -> str:
    """What rank `rank` says when it has been in a call for so long."""
    others = [other for other in visit.ranks if other != rank]
    whom = ranks_text(others) if len(others) == 1 else f"one or more of {ranks_text(others)}"
    return (
        f'weft: rank {rank} ({socket.gethostname()}) has been in MPI for {seconds:.0f} s, in "{visit.what}", '
        f"and does nothing else: it waits for {whom}, whose event loop has been blocked since it came for "
        "this, or whose process is stopped. What blocks a loop is for a thread: asyncio.to_thread(function)"
    )


def bits(ranks: Iterable[int]) -> bytes:
    """A bit for every rank: 8 KB of 65,536, of which a list had no room in a control message."""
    found = bytearray(max(ranks) // 8 + 1)
    for rank in ranks:
        found[rank // 8] |= 1 << rank % 8
    return bytes(found)


def ranks_in(bits: bytes) -> list[int]:
    """The ranks of which they are, the lowest first."""
    return [8 * at + bit for at, byte in enumerate(bits) for bit in range(8) if byte >> bit & 1]


class Meeting(asyncio.Future[T]):
    """A call that blocks, as this rank's future: done when it is made, with what it returned.

    `arrival` is the collective before it. Await it shielded: the others count on this rank.
    """

    def __init__(self, arrival: Operation, group: str, ranks: Sequence[int], call: Callable[[], T]) -> None:
        super().__init__(loop=arrival.get_loop())
        assert arrival.needs.call is not None
        self.arrival, self.ranks, self._call = arrival, ranks, call
        self.key, self.what = (group, arrival.needs.number), arrival.what
        self.checksum = arrival.needs.call.checksum

    def make(self) -> None:
        """Make the call."""
        try:
            made = self._call()
        except Exception as error:
            self.fail(error)
        else:
            if not self.done():  # who awaited it was cancelled
                self.set_result(made)

    def refuse(self, first: int, what: str) -> None:
        """The ranks have come for different calls.

        It is raised here, too, and ends the job: others block in MPI, even if who waits catches it.
        """
        group, number = self.key
        seen = f'called "{what}"' if what != self.what else "had called other collectives before"
        error = Mistake(
            f'"{self.what}" was called as collective {number} on {group!r}, where rank {first} {seen}: '
            "all ranks must call the same collectives in the same order"
        )
        self.fail(error)
        raise error

    def fail(self, error: BaseException) -> None:
        """Raise it where the meeting is awaited."""
        if not self.done():
            self.set_exception(error)


def to_the_end(function: Callable[P, Coroutine[Any, Any, T]]) -> Callable[P, Coroutine[Any, Any, T]]:
    """Make a function of what ranks do together, when they have met: to cancel it ends the waiting only.

    For calls of MPI that block. A rank that was cancelled when it alone was there (`asyncio.timeout`) left
    the others in MPI for ever, with their loops: they told of no stall and heard no signal.
    """

    @functools.wraps(function)
    async def whole(*args: P.args, **kwargs: P.kwargs) -> T:
        return await asyncio.shield(asyncio.get_running_loop().create_task(function(*args, **kwargs)))

    return whole
