"""Tasks that wait for room, and the first of them that fits what is free, without a look at the others.

                         100            the least that one of those below demands
                   100         300
                100   200   300   700   the tasks that wait, in their order

With 250 free the way leads down to 100, with 99 no further than the root. Tasks that demand other lanes, or
another kind of device, have a tree of their own. A look costs the logarithm of how many wait.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from math import inf

from .tasks import Capacity, TaskSpec

Kind = tuple[str | None, int]
"""The device and the lanes that a task demands."""


@dataclass(frozen=True, slots=True)
class Waiter:
    """A task that waits; its number is larger than those of all that waited before."""

    task: TaskSpec
    number: int


class Waiting:
    """Those who wait, of some tasks that are known, each of which comes once at most.

    In the order of `rank`; of equal rank who came first comes first.
    """

    def __init__(self, tasks: Iterable[TaskSpec], rank: Callable[[TaskSpec], int]) -> None:
        self._rank = rank
        self._next: dict[tuple[Kind, int], int] = {}  # the place of the next of that kind and rank
        sizes: Counter[Kind] = Counter()
        for (kind, own), count in sorted(Counter((_kind(t), rank(t)) for t in tasks).items(), key=_by_rank):
            self._next[kind, own] = sizes[kind]
            sizes[kind] += count
        self._least = {kind: Least(size) for kind, size in sizes.items()}
        self._waiters: dict[tuple[Kind, int], Waiter] = {}
        self._places: dict[int, int] = {}  # by number

    def __contains__(self, waiter: Waiter) -> bool:
        return waiter.number in self._places

    def add(self, waiter: Waiter) -> None:
        """One more."""
        kind = _kind(waiter.task)
        own = kind, self._rank(waiter.task)
        place = self._places[waiter.number] = self._next[own]
        self._next[own] += 1
        self._waiters[kind, place] = waiter
        self._least[kind].put(place, waiter.task.memory_bytes)

    def remove(self, waiter: Waiter) -> None:
        """One less."""
        kind, place = _kind(waiter.task), self._places.pop(waiter.number)
        del self._waiters[kind, place]
        self._least[kind].put(place, inf)

    def first(self, free: Sequence[Capacity]) -> Waiter | None:
        """The first that fits one of these."""
        found: list[Waiter] = []
        for (device, lanes), least in self._least.items():
            room = (each for each in free if device in (None, each.device) and lanes <= each.lanes)
            place = least.first(max((each.memory_bytes for each in room), default=-1))
            if place is not None:
                found.append(self._waiters[(device, lanes), place])
        return min(found, key=lambda waiter: (self._rank(waiter.task), waiter.number), default=None)


def _kind(task: TaskSpec) -> Kind:
    return task.device, task.lanes


def _by_rank(counted: tuple[tuple[Kind, int], int]) -> int:
    (_, rank), _ = counted
    return rank


class Least:
    """Numbers at places 0 to `size` - 1, at first infinite, under a tree whose nodes hold the least."""

    def __init__(self, size: int) -> None:
        self._leaves = 1 << (size - 1).bit_length()
        self._tree: list[float] = [inf] * (2 * self._leaves)

    def put(self, place: int, number: float) -> None:
        """Another number at a place."""
        node = self._leaves + place
        self._tree[node] = number
        while node > 1:
            node //= 2
            self._tree[node] = min(self._tree[2 * node], self._tree[2 * node + 1])

    def first(self, most: float) -> int | None:
        """The first place whose number is at most that; None if there is none."""
        if not self._tree[1] <= most:
            return None
        node = 1
        while node < self._leaves:
            node = 2 * node if self._tree[2 * node] <= most else 2 * node + 1
        return node - self._leaves
