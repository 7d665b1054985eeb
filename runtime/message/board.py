"""Counters in memory that a node's ranks share, awaited like an MPI request: hand-offs without messages.

    board = await world.board(64)                     # every rank of the node: a row of 64 counters
    board.when(3, step, reduce, what="gradients of portion 3")   # all ranks' counter 3 has come to `step`
    board.each(range(8, 16), step, update)            # the same for many: update([2, 5]) when 10 and 13 have
    ...
    board.publish(3, step)                            # this rank's part of it is written
    board.publish([10, 13], step)

    version words   one for each rank            ┐ in one segment, where a rank's row is lines of its own
    counters        a row for each rank behind   ┘ of 64 bytes
    numbers         a row of float64 for each rank: small results, written before a counter, read after it

Every word has one writer, its rank, and counters only grow. `publish` makes all that the rank wrote before
visible, then the counters, then bumps the rank's version word and rings whoever naps. The selector compares
the version words in its every test (55 ns for 4 ranks, 270 ns for 64, however many waits there are) and
looks at the counters only when one has changed: a comparison for each wait (4 us for 64 counters of 4 ranks).

A hand-off costs little by itself; what it costs is the wake-up of those it is for, 0.1 to 0.2 ms of a core
whose caches hold gradients. Hence several counters at a time, and `among`.

Only the loop's thread calls any of this.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import Mistake
from .communicator import Communicator
from .selector import Needs, Waiting
from .window import LINE_BYTES, WORD_BYTES, Window, rounded_up


@dataclass(eq=False, slots=True)
class Wait:
    """A callback that waits for some counters, from `first` on, to come to `value` on all of `ranks`.

    `rows` are these counters of these ranks. Of those that are not `missing` any more the callback was told.
    """

    first: int
    value: int
    callback: Callable[[list[int]], object]
    ranks: range
    rows: NDArray[np.int64]
    missing: NDArray[np.bool_]
    what: Callable[[int], str]
    patience_s: float | None
    started: float

    def look(self) -> list[int]:
        """Which have come there since the last look, counted from `first`."""
        there = (self.rows >= self.value).all(0)
        there &= self.missing
        places: list[int] = there.nonzero()[0].tolist()
        if places:
            self.missing ^= there
        return places

    def overdue(self, rank: int, told: NDArray[np.float64]) -> list[tuple[float, int, list[int]]]:
        """What `rank` waits for, the oldest first: since when, which counter from `first`, ranks behind.

        A wait begins when its own part is done: `told` is when `rank` last published each of its counters.
        """
        found = []
        for place in self.missing.nonzero()[0].tolist():
            behind = [r for r, row in zip(self.ranks, self.rows, strict=True) if row[place] < self.value]
            if behind and rank not in behind:
                mine = float(told[self.first + place]) if rank in self.ranks else 0.0
                found.append((max(self.started, mine), place, behind))
        return sorted(found)


class Reached(asyncio.Future[None]):
    """A wait as a future."""

    def __init__(self, board: Board) -> None:
        super().__init__(loop=board.selector.loop)
        self._board = board
        self.wait: Wait

    def arrive(self) -> None:
        """The counters are there."""
        if not self.done():
            self.set_result(None)

    def cancel(self, msg: Any = None) -> bool:
        """As in asyncio; the board forgets the wait."""
        self._board.forget(self.wait)
        return super().cancel(msg)

    def __await__(self) -> Any:
        if not self.done():
            self._board.selector.linger(self)
        return super().__await__()


class Board:
    """The counters of a node's ranks; made by `Board.allocate` or `world.board`, closed by `close`."""

    def __init__(self, node: Communicator, window: Window, counters: int, numbers: int, name: str) -> None:
        self.selector = node.selector
        self.rank, self.size, self.name = node.rank, node.size, name
        self._window = window
        self._ranks = node.ranks  # of the world
        self._others = tuple(rank for rank in node.ranks if rank != node.ranks[node.rank])
        table = window.array(0, np.int64, (node.size, row_bytes(counters) // WORD_BYTES))
        # A memoryview: an element read or written in 30 ns, half of what NumPy takes, each in one move.
        self._versions = table[:, 0].data
        self._seen: list[int] = self._versions.tolist()
        self._table = table[:, LINE_BYTES // WORD_BYTES :][:, :counters]
        starts = [table.nbytes, *[0] * (node.size - 1)]
        self._numbers = [window.array(rank, np.float64, numbers, start) for rank, start in enumerate(starts)]
        #: When this rank last published each of its counters.
        self._told = np.zeros(counters)
        self._waits: dict[Wait, None] = {}
        self._computed = 0.0  # when the lane was last seen computing
        self.selector.reporters.append(self._report)
        window.at_close.append(self._end)

    @classmethod
    async def allocate(
        cls,
        node: Communicator,
        counters: int,
        numbers: int = 0,
        *,
        name: str = "board",
        keep: Callable[[Window], None] | None = None,
    ) -> Board:
        """A board of that many counters and numbers a rank, all 0; collective over the node communicator.

        `keep` gets its window, as in `Window.allocate`.
        """
        if counters < 1:
            raise Mistake(f"a board of {counters} counters was asked for; it needs 1 or more")
        table_bytes = node.size * row_bytes(counters) if node.rank == 0 else 0
        nbytes = table_bytes + numbers * WORD_BYTES
        window = await Window.allocate(node, nbytes, what=f"the board {name!r}", keep=keep)
        return cls(node, window, counters, numbers, name)

    def numbers(self, rank: int) -> NDArray[np.float64]:
        """The numbers of the node's rank `rank`: written by that rank before a publish, read after it."""
        self._check_open()
        self._check_rank(rank)
        return self._numbers[rank]

    def value(self, index: int, rank: int) -> int:
        """Counter `index` of the node's rank `rank`, as far as this rank can see by now."""
        self._check_open()
        self._check_rank(rank)
        self._check_counters([index])
        return int(self._table[rank, index])

    def publish(self, index: int | Sequence[int], value: int, *, among: range | None = None) -> None:
        """Set this rank's counter `index`, or several, for all to see what was written before. It must grow.

        With `among` nobody is woken unless one of the counters has now come to `value` on all of
        these ranks: for what is awaited of all of them, the last to come wakes who waits.
        """
        self._check_open()
        some = [int(index)] if isinstance(index, (int, np.integer)) else index
        self._check_counters(some)
        mine = self._table[self.rank]
        if (mine[some] >= value).any():
            at = next(i for i in some if mine[i] >= value)
            raise Mistake(
                f"counter {at} of {self.name!r} stands at {mine[at]} and was to be set to {value}: "
                "counters only grow"
            )
        window = self._window
        window.sync()
        mine[some] = value
        window.sync()
        self._versions[self.rank] += 1
        self._told[some] = time.monotonic()
        bells = self.selector.bells
        if bells is None:
            return
        window.sync()  # all that is out before anybody's "I nap", or part, is looked at: no ring is missed
        if among is None or (self._table[among.start : among.stop, some] >= value).all(0).any():
            for rank in self._others:
                bells.ring(rank)

    def when(
        self,
        index: int,
        value: int,
        callback: Callable[[], object],
        *,
        ranks: range | None = None,
        what: str = "",
        patience_s: float | None = None,
    ) -> Wait:
        """Call `callback()` once counter `index` of these `ranks` of the node (None: all) is `value` or more.

        Always by `loop.call_soon`, also where they are there already: never from within this call. `what`
        names it in a stall report, which comes after `patience_s` (None: as for all other waits).
        """
        one = range(index, index + 1)
        return self.each(
            one, value, lambda _: callback(), ranks=ranks, what=lambda _: what, patience_s=patience_s
        )

    def each(
        self,
        indices: range,
        value: int,
        callback: Callable[[list[int]], object],
        *,
        ranks: range | None = None,
        what: Callable[[int], str] = lambda place: "",
        patience_s: float | None = None,
    ) -> Wait:
        """`when` for many counters: `callback` is told which of them, as places in `indices`, are there.

        It is called as often as some come there, until each was told once. `what` is told a place, too.
        """
        self._check_open()
        if ranks is None:
            ranks = range(self.size)
        if not (_part(indices, self._told.size) and _part(ranks, self.size)):
            # A wait for one counter too many never ended; with one rank too many it ended without that.
            raise Mistake(
                f"a wait for counters {indices} of ranks {ranks} of {self.name!r}: they must be parts of "
                f"{range(self._told.size)} and {range(self.size)}, in steps of 1"
            )
        rows = self._table[ranks.start : ranks.stop, indices.start : indices.stop]
        missing = np.ones(len(indices), np.bool_)
        now = time.monotonic()
        wait = Wait(indices.start, value, callback, ranks, rows, missing, what, patience_s, now)
        if not self._waits:
            self.selector.watch(self)
        self._waits[wait] = None
        self.selector.last_activity = now
        if (rows >= value).all(0).any():  # the last look may have been between a counter and its version
            self._tell()
        return wait

    def reached(
        self,
        index: int,
        value: int,
        *,
        ranks: range | None = None,
        what: str = "",
        patience_s: float | None = None,
    ) -> Reached:
        """`when` as a future to await."""
        future = Reached(self)
        future.wait = self.when(index, value, future.arrive, ranks=ranks, what=what, patience_s=patience_s)
        return future

    def forget(self, wait: Wait) -> None:
        """Do not call back, unless the callback is scheduled already."""
        if wait in self._waits:
            del self._waits[wait]
            if not self._waits:
                self.selector.unwatch(self)

    @property
    def closed(self) -> bool:
        """Whether it has been given back."""
        return self._window.closed

    async def close(self) -> None:
        """Give the memory back, when every rank of the node has called it; waits that are left never end.

        Cancelling ends the waiting only.
        """
        await self._window.close()

    def _end(self) -> None:
        self._table, self._told, self._numbers = self._table[:, :0], self._told[:0], []
        self._waits.clear()
        self.selector.unwatch(self)
        self.selector.reporters.remove(self._report)

    def _check_open(self) -> None:
        """Mistake on a board that is closed: what was published wrote into memory given back."""
        if not self._told.size:
            raise Mistake(f"{self.name!r} is closed, and its memory given back: make another")

    def _check_counters(self, some: Sequence[int]) -> None:
        """Mistake if there is no such counter: to publish -1 was to publish the last."""
        for index in (min(some), max(some)) if len(some) else ():
            if not 0 <= index < self._told.size:
                raise Mistake(
                    f"there is no counter {index} in {self.name!r}: it has 0 to {self._told.size - 1}"
                )

    def _check_rank(self, rank: int) -> None:
        if not 0 <= rank < self.size:
            raise Mistake(f"there is no rank {rank!r} in {self.name!r}: it has 0 to {self.size - 1}")

    # -- called by the selector -----------------------------------------------------------------------

    def look(self) -> bool:
        """Whether a counter has come to what is waited for; the callbacks are scheduled then."""
        seen = self._versions.tolist()
        if seen == self._seen:
            return False
        self._seen = seen
        self._window.sync()  # what was written before the version is seen by the reads that follow
        return self._tell()

    def _tell(self) -> bool:
        """Schedule the callbacks of all waits for which counters have come; whether there are any.

        Who waited before is told before. Ranks go on counting meanwhile, so the latest wait looks first: what
        it has seen those before it see, too, for counters only grow.
        """
        found = [(wait, places) for wait in reversed(self._waits) if (places := wait.look())]
        if found:
            self._window.sync()  # what was written before the counters is seen by what the callbacks start
        for wait, places in reversed(found):
            self.selector.loop.call_soon(wait.callback, places)
            if not wait.missing.any():
                self.forget(wait)
        return bool(found)

    def _report(self) -> Iterable[Waiting]:
        """For stall reports: the oldest wait for each rank that is behind, of each patience.

        Later ones would only repeat it. Waits are made long before they matter: a rank that is behind itself,
        or whose lane computes, waits for no other yet.
        """
        if self.selector.busy:
            self._computed = time.monotonic()
        reported: set[tuple[float | None, int]] = set()
        for wait in self._waits:
            for since, place, behind in wait.overdue(self.rank, self._told):
                if new := {(wait.patience_s, rank) for rank in behind} - reported:
                    reported |= new
                    peers = tuple(self._ranks[rank] for rank in behind)
                    needs = Needs(peers, self.name, patience_s=wait.patience_s, witnesses=self._others)
                    what = wait.what(place) or f"counter {wait.first + place} of {self.name!r}"
                    yield Waiting(what, max(since, self._computed), needs)


def row_bytes(counters: int) -> int:
    """Bytes of a rank's row of the table: a line for its version, then its counters."""
    return LINE_BYTES + rounded_up(counters * WORD_BYTES)


def _part(some: range, of: int) -> bool:
    """Whether `some` is a piece of range(of), in steps of 1 and not empty."""
    return some.step == 1 and 0 <= some.start < some.stop <= of
