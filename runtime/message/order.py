"""Ranks that do not call the same collectives in the same order are found out, and the job ends by name.

    weft: rank 1 (n1) called "m: step 3, portion 3 (dense_0)" as collective 17 on 'world/m',
    where rank 0 (n1) called "m: step 3, portion 2 (dense_1)": all ranks must call the same ...

MPI matches collectives by nothing but their order. Of two ranks that swapped two all-reduces, MPICH 5.0.2
adds the one to the other without a word, even where their sizes differ (one pair of sizes in four hung), and
Open MPI 5.0.11 crashes where they do: only what hangs would be told by stall.py. An array of integers added
to one of floats, or one in Fortran order to one that is not, gave another sum on every rank. So every rank
keeps a checksum of the operations, names, sizes and types that it has called on a communicator (0.5 us a
call), and once a second, and when its main is over, sends the new ones to the communicator's first rank,
which compares them with its own.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from ..errors import Mistake
from .communicator import CALLS, Communicator
from .control import Control
from .failure import Failures
from .selector import ONE_SIZE, ONE_TYPE
from .world import World

CHECK_S = 1.0


def first_difference(mine: Sequence[int], my_last: int, theirs: Sequence[int], their_last: int) -> int | None:
    """The first number from which on two ranks differ, as far as can be seen; None where they agree.

    Each gives its latest checksums, the last being that of collective `last`. A checksum covers all that came
    before, so ranks that differ once differ from there on. None, too, where the numbers do not overlap.
    """
    first = max(my_last - len(mine), their_last - len(theirs)) + 1
    last = min(my_last, their_last)

    def equal(number: int) -> bool:
        return mine[number - my_last - 1] == theirs[number - their_last - 1]

    if first > last or equal(last):
        return None
    return next(number for number in range(first, last + 1) if not equal(number))


class Orders:
    """One rank's part: tells the first rank of each communicator, and compares as the first rank."""

    def __init__(self, control: Control, world: World, failures: Failures) -> None:
        self._control = control
        self._world = world
        self._failures = failures
        self._checked: dict[str, int] = {}  # by communicator: up to which number
        #: By rank and communicator, what it told of collectives that this rank had not called yet, and the
        #: number of the last.
        self._ahead: dict[tuple[int, str], tuple[int, list[int]]] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._asked: dict[int, asyncio.Event] = {}  # by rank: whether it has compared all of this one's
        control.on("called", self._compare)
        control.on("differs", self._differs)
        control.on("called all", self._heard_all)
        control.on("compared", self._compared)
        self._check_later()

    def stop(self) -> None:
        """Check no more (main is over on this rank); others are still answered."""
        if self._timer is not None:
            self._timer.cancel()

    async def finish(self) -> None:
        """Check for the last time, behind `stop`; what differs has failed the rank when this returns."""
        self._tell()
        firsts = {comm.ranks[0] for comm in self._world.selector.communicators if comm.rank}
        self._asked = {rank: asyncio.Event() for rank in firsts}
        for rank in firsts:
            self._control.send(rank, "called all")
        for compared in self._asked.values():
            await compared.wait()

    def _check_later(self) -> None:
        self._timer = self._world.loop.call_later(CHECK_S, self._check)

    def _check(self) -> None:
        self._tell()
        self._check_later()

    def _tell(self) -> None:
        for comm in self._world.selector.communicators:
            new = comm.called - self._checked.get(comm.group, 0)
            if comm.rank and new:
                self._checked[comm.group] = comm.called
                self._control.send(comm.ranks[0], "called", comm.group, comm.called, comm.checksums(new))

    def _compare(self, source: int, group: str, called: int, checksums: list[int]) -> None:
        if (comm := self._find(group)) is None:
            return
        told, ahead = self._ahead.pop((source, group), (0, []))
        if called - len(checksums) == told:  # (after a gap it has called more than it knows)
            checksums = [*ahead, *checksums]
        mine = comm.checksums(comm.called - called + len(checksums))
        number = first_difference(mine, comm.called, checksums, called)
        if number is None:
            if called > comm.called:
                self._ahead[source, group] = called, checksums[comm.called - called :][-CALLS:]
        elif (call := comm.call(number)) is not None:
            self._control.send(source, "differs", group, number, call.what, call.nbytes, call.elements)

    def _heard_all(self, source: int) -> None:
        """What differs has been told before this."""
        self._control.send(source, "compared")

    def _compared(self, source: int) -> None:
        self._asked[source].set()

    def _differs(self, source: int, group: str, number: int, what: str, nbytes: int, elements: str) -> None:
        comm = self._find(group)
        if comm is None or (call := comm.call(number)) is None or self._failures.any:
            return
        world, theirs = self._world, f"rank {source} ({self._world.hosts[source]})"
        rule = "all ranks must call the same collectives in the same order"
        if call.what != what:
            seen = f'called "{call.what}" as collective {number} on {group!r}, where {theirs} called "{what}"'
        elif call.nbytes != nbytes:
            seen = f'called "{what}" with {call.nbytes:,} bytes, and {theirs} with {nbytes:,}'
            rule = ONE_SIZE
        elif call.elements != elements:
            seen = f'called "{call.what}" with {call.elements}, and {theirs} with {elements}'
            rule = ONE_TYPE
        else:  # the first one that is still known is the same again
            seen = f"called other collectives than {theirs} on {group!r}, before number {number}"
        error = Mistake(
            f"rank {world.rank} ({world.host}) {seen}: {rule}. What they exchanged since then is mixed up"
        )
        self._failures.local(error, "the check of the collectives' order")

    def _find(self, group: str) -> Communicator | None:
        for comm in self._world.selector.communicators:
            if comm.group == group:
                assert isinstance(comm, Communicator)
                return comm
        return None
