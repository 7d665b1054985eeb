"""Tasks that fit no place of a shelf: they wait at their rank, and are given to whoever asks by message."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Container, Iterable

from .counts import Counts
from .parcel import Head
from .victims import Declared, Way, gain_s


class Large:
    """This rank's large tasks, by lane; how many there are stands in shared memory. For any thread.

    Those in lanes that are `closed` it cannot run itself.
    """

    def __init__(self, counts: Counts, rank: int, lanes: int, closed: Container[int]) -> None:
        self._declared, self._closed = counts.large[rank], closed
        self._tasks: list[deque[bytes]] = [deque() for _ in range(lanes)]
        self._lock = threading.Lock()

    def has(self, lane: int) -> bool:
        """Whether there are any, as last seen."""
        return bool(self._tasks[lane])

    def add(self, lane: int, task: bytes) -> None:
        """Keep a task."""
        with self._lock:
            self._tasks[lane].append(task)
            self._declare(lane)

    def pop(self, lane: int) -> bytes | None:
        """The newest, for this rank to run."""
        with self._lock:
            task = self._tasks[lane].pop() if self._tasks[lane] else None
            self._declare(lane)
            return task

    def take(self, lanes: Iterable[int], way: Way) -> list[bytes]:
        """The oldest half, rounded up, of the first of these lanes where that is worth it: for who asked."""
        with self._lock:
            for lane in lanes:
                own = self._tasks[lane]
                if own and gain_s(self._of(lane), way) > 0:
                    taken = [own.popleft() for _ in range((len(own) + 1) // 2)]
                    self._declare(lane)
                    return taken
        return []

    def _of(self, lane: int) -> Declared:
        own = self._tasks[lane]
        seconds, nbytes = sum(Head.of(task).seconds for task in own), sum(map(len, own))
        return Declared(0, len(own), seconds, nbytes, seconds / len(own), lane in self._closed)

    def _declare(self, lane: int) -> None:
        self._declared[lane] = len(self._tasks[lane])
