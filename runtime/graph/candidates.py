"""Which tasks are worth combining: few neighbours, and a small demand.

A task whose cost is near what scheduling it costs is worth combining. What is large is not, nor is a hub:
all its neighbours would wait for its group.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Self

from ..errors import Mistake
from .tasks import Capacity, TaskGraph, TaskSpec, amount

Counted = Literal["inputs", "outputs", "both"]


@dataclass(frozen=True, slots=True)
class Thresholds:
    """What is worth combining; `measured` derives it from what this machine spends on scheduling a task.

    A task with fewer than `neighbours` tasks on the `counted` side is a candidate; the default lets through a
    point of a stencil (3 needs, 3 readers). A task is small below `small_s`. Tasks that could run at once are
    combined up to about that, but leave a group for each of `workers` lanes, unless all together cost less
    than `overhead_s`, that of scheduling one. `lanes` and `memory_bytes` are the most that a task may demand
    to be combined, and the memory also the most that the combined may.
    """

    neighbours: int = 8
    counted: Counted = "both"
    small_s: float = 200e-6
    overhead_s: float = 10e-6
    workers: int = 1
    lanes: int = 1
    memory_bytes: float = math.inf

    def __post_init__(self) -> None:
        if self.counted not in ("inputs", "outputs", "both"):
            raise Mistake(f"counted is {self.counted!r}; give inputs, outputs or both")
        for key in ("neighbours", "small_s", "overhead_s", "memory_bytes"):
            if not amount(getattr(self, key)):
                raise Mistake(f"{key} is {getattr(self, key)!r}; give a number, 0 or more")
        for key in ("workers", "lanes"):
            if not amount(getattr(self, key), 1):
                raise Mistake(f"{key} is {getattr(self, key)!r}; give a number, 1 or more")

    @classmethod
    def measured(cls, overhead_s: float, *, share: float = 0.05, **others: Any) -> Self:
        """Such that of tasks that could run at once scheduling takes about `share` of their cost."""
        if not amount(overhead_s):
            raise Mistake(f"overhead_s is {overhead_s!r}; give a number, 0 or more")
        if not (amount(share) and 0 < share <= 1):
            raise Mistake(f"share is {share!r}; give the part of the cost that scheduling may take, up to 1")
        return cls(small_s=overhead_s / share, overhead_s=overhead_s, **others)


def first_candidates(tasks: TaskGraph, thresholds: Thresholds) -> frozenset[str]:
    """Tasks with fewer neighbours than the threshold."""

    def neighbours(task: TaskSpec) -> int:
        inputs = len(task.needs) if thresholds.counted != "outputs" else 0
        outputs = len(tasks.readers[task.name]) if thresholds.counted != "inputs" else 0
        return inputs + outputs

    return frozenset(task.name for task in tasks.tasks if neighbours(task) < thresholds.neighbours)


def second_candidates(
    tasks: TaskGraph, first: Iterable[str], capacities: Sequence[Capacity], thresholds: Thresholds
) -> frozenset[str]:
    """Those of the first candidates that are small: in seconds, in lanes and in memory, on some device."""

    def small(task: TaskSpec) -> bool:
        return (
            task.seconds is not None
            and task.seconds < thresholds.small_s
            and task.lanes <= thresholds.lanes
            and task.memory_bytes <= thresholds.memory_bytes
            and any(capacity.fits(task) for capacity in capacities)
        )

    return frozenset(name for name in first if small(tasks.by_name[name]))
