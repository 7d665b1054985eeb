"""What a task asks for: one of the pool's functions, and a lane and a queue where its tags can be met."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import inf
from typing import NamedTuple

from ...errors import Mistake
from ...graph.tasks import amount
from .group import GROUP
from .lanes import Lanes

Function = Callable[..., object]
"""Called with the pool, the body and the arrays of a task; what it returns is the task's result."""

MOST_DEMANDS = 1024
"""Of which a pool keeps the places: it kept those of every number of bytes that a task had ever named."""


class Demand(NamedTuple):
    """The function of a task, and its tags, as they are given."""

    name: str
    priority: int
    device: str | None
    memory_bytes: int
    here: bool


class Demands:
    """What tasks of rank `rank` may ask for."""

    def __init__(self, functions: Mapping[str, Function], lanes: Lanes, rank: int) -> None:
        self._numbers = {name: number for number, name in enumerate(sorted(functions))}
        self._functions = [functions[name] for name in self._numbers]
        self._lanes, self._rank = lanes, rank
        self._places: dict[Demand, tuple[int, int, int]] = {}
        #: Whether nothing may be asked for any more.
        self.closed = False

    def close(self) -> None:
        """Mistakes from now on."""
        self.closed = True
        self._places.clear()  # whoever gives a task asks there first

    def check_open(self) -> None:
        """Mistake where it is closed."""
        if self.closed:
            raise Mistake("this pool is closed, and its memory given back: open another")

    def function(self, name: str) -> Function:
        """The function of that name; Mistake if there is none."""
        return self._functions[self._number(name)]

    def place(self, demand: Demand) -> tuple[int, int, int]:
        """The number of a function, and the lane and the queue of a task of it; Mistake if there is none."""
        try:
            found = self._places.get(demand)
        except TypeError:  # a list among the tags, say, which has no hash: told below what to give instead
            return self._find(*demand)
        if found is None:
            if len(self._places) == MOST_DEMANDS:  # a program may name other bytes of memory for every task
                self._places.clear()
            found = self._places[demand] = self._find(*demand)
        return found

    def _number(self, name: str) -> int:
        number = self._numbers.get(name) if isinstance(name, str) else None
        if number is None:
            known = ", ".join(each for each in self._numbers if each != GROUP)
            raise Mistake(f"no task is called {name!r}; this pool knows {known}")
        return number

    def _find(
        self, name: str, priority: int, device: str | None, memory_bytes: int, here: bool
    ) -> tuple[int, int, int]:
        self.check_open()
        number = self._number(name)
        if not amount(memory_bytes):
            raise Mistake(
                f"task {name!r} is given with memory_bytes={memory_bytes!r}; give what it holds, 0 or more"
            )
        if not isinstance(device, str | None):
            raise Mistake(f"task {name!r} is given with device={device!r}; give the name of one, or None")
        lane = self._lanes.of(priority, device, memory_bytes)
        if not here:
            return number, lane, lane
        if why := self._lanes.offers[self._rank].refusal(device, memory_bytes):
            raise Mistake(
                f"a task {name!r} is to run on rank {self._rank}, which cannot: {why}"
                f" ({device or 'any device'}, {memory_bytes} bytes)"
            )
        return number, lane, len(self._lanes.all) + priority


def checked_seconds(name: str, given: float) -> float:
    """The tag `seconds` of task `name`. By one that is no time nobody knew the gain, nor took any."""
    if not amount(given) or given == inf:
        raise Mistake(
            f"task {name!r} is given with seconds={given!r}; give what it takes, 0 or more, or None"
        )
    return float(given)
