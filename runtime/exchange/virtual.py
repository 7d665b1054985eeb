"""A wire in virtual time: which portion it takes up when, and when each has arrived.

    ready ─ choose ─> posted, at most `credit` ─> served piece by piece ─> `latency_s` later: arrived
                            ^                                                                    │
                            └────────────────────────── slot free ───────────────────────────────┘

A large all-reduce travels in two rounds (reduce-scatter, then all-gather), and the second joins the queue
behind all that was posted meanwhile: of four portions of 1 MB posted at once at 1 Gbit/s (MPICH, 2 hosts) the
first arrived after 21.5 ms, the others after 25.8, 29.8 and 35.6: credit is paid for with the time that the
first portion takes. One alone took 10.8 ms, two together 17.8: between its rounds one portion leaves the wire
idle, two do not.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from heapq import heappop, heappush
from math import inf

Choose = Callable[[list[int]], int | None]
"""Picks the portion to post next of those that are ready, in order of readiness; None waits for another."""


class VirtualWire:
    """Serves portions, by index, that take `seconds` on an idle wire. Times are seconds since the start."""

    def __init__(
        self,
        seconds: Sequence[float],
        credit: int,
        choose: Choose,
        *,
        latency_s: float = 0.0,
        rounds: int = 1,
    ) -> None:
        self._seconds = seconds
        self._credit = credit
        self._choose = choose
        self._latency_s = latency_s
        self._rounds = rounds
        self._now_s = 0.0  # of the last event after which a portion could be posted
        self._ready: list[int] = []
        self._pieces: list[tuple[float, int, int, int]] = []  # since when it waits, serial, round, portion
        self._unnoticed: list[tuple[float, int]] = []  # when its end is noticed, portion
        self._free_s = 0.0  # end of the piece taken up last
        self._taken_s = 0.0  # of all pieces taken up
        self._given_s = 0.0  # of all portions that became ready
        self.posted_s: dict[int, float] = {}  # in the order of posting
        self.arrived_s: dict[int, float] = {}

    def backlog_s(self, now_s: float) -> float:
        """How long what is in flight or ready keeps the wire busy."""
        return self._given_s - self._taken_s + max(0.0, self._free_s - now_s)

    def give(self, portions: Sequence[int], now_s: float) -> None:
        """`portions` become ready; times never run backwards."""
        self._run(now_s)
        self._now_s = now_s
        self._ready += portions
        self._given_s += sum(self._seconds[portion] for portion in portions)

    def finish(self) -> None:
        """Serve all that is ready."""
        self._run(inf)

    def _run(self, until_s: float) -> None:
        """All that happens before `until_s`: what becomes ready at that very moment still takes part."""
        while True:
            if self._post(until_s):
                continue
            served_s = max(self._free_s, self._pieces[0][0]) if self._pieces else inf
            noticed_s = self._unnoticed[0][0] if self._unnoticed else inf
            if min(served_s, noticed_s) >= until_s:
                break
            if noticed_s <= served_s:
                self._now_s, portion = heappop(self._unnoticed)
                self.arrived_s[portion] = self._now_s
            else:
                self._serve(served_s)

    def _post(self, until_s: float) -> bool:
        in_flight = len(self.posted_s) - len(self.arrived_s)
        if in_flight >= self._credit or self._now_s >= until_s:
            return False
        portion = self._choose(self._ready) if self._ready else None
        if portion is None:
            return False
        self._ready.remove(portion)
        heappush(self._pieces, (self._now_s, len(self.posted_s), 1, portion))
        self.posted_s[portion] = self._now_s
        return True

    def _serve(self, start_s: float) -> None:
        _, serial, number, portion = heappop(self._pieces)
        piece_s = self._seconds[portion] / self._rounds
        self._free_s = start_s + piece_s
        self._taken_s += piece_s
        noticed_s = self._free_s + self._latency_s
        if number < self._rounds:
            heappush(self._pieces, (noticed_s, serial, number + 1, portion))
        else:
            heappush(self._unnoticed, (noticed_s, portion))
