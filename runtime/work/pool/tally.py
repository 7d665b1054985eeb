"""What a rank did in a run of a pool: counted for each lane of its queue, and told as it happens."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol


@dataclass(slots=True)
class LaneTally:
    """Of one lane: tasks that ran here, and what was taken from others.

    `attempts` are claims and questions that looked worth it, `misses` those of them that brought nothing.
    `refused` counts looks at work that was out and was left there, by reason: this rank's when it was idle,
    and those for a rank of another node that asked.
    """

    ran: int = 0
    attempts: int = 0
    steals: int = 0
    stolen: int = 0  # tasks
    far: int = 0  # of these, from other nodes or by message
    misses: int = 0
    nbytes: int = 0  # of stolen tasks
    refused: Counter[str] = field(default_factory=Counter)


@dataclass(slots=True)
class Tally:
    """What a rank did: for each lane, and for each function the tasks it ran and the seconds they took."""

    names: Sequence[str] = ()
    lanes: list[LaneTally] = field(default_factory=list)
    functions: dict[str, list[float]] = field(default_factory=dict)

    @classmethod
    def of(cls, names: Sequence[str]) -> Tally:
        """Of lanes with these names."""
        return cls(names, [LaneTally() for _ in names])

    @property
    def ran(self) -> int:
        """Tasks that this rank ran."""
        return sum(lane.ran for lane in self.lanes)

    @property
    def steals(self) -> int:
        """How often it took tasks from another rank."""
        return sum(lane.steals for lane in self.lanes)

    @property
    def stolen(self) -> int:
        """Tasks that it took."""
        return sum(lane.stolen for lane in self.lanes)

    @property
    def far(self) -> int:
        """Tasks that it took by message."""
        return sum(lane.far for lane in self.lanes)

    def __str__(self) -> str:
        """A line for each lane in which something happened, and one for each function."""
        lines = []
        for name, lane in zip(self.names, self.lanes, strict=True):
            if lane.ran or lane.attempts or lane.refused:
                refused = ", ".join(f"{count} {why}" for why, count in sorted(lane.refused.items()))
                thefts = [
                    (lane.attempts, f"{lane.attempts} attempts"),
                    (lane.misses, f"{lane.misses} missed"),
                    (lane.stolen, f"{lane.stolen} tasks of {lane.nbytes} bytes taken"),
                    (not lane.stolen, "nothing taken"),
                    (lane.far, f"{lane.far} of them by message"),
                ]
                lines.append(
                    f"{name}: {lane.ran} ran; {', '.join(words for count, words in thefts if count)}"
                    + (f"; left alone: {refused}" if refused else "")
                )
        lines += [
            f"{name}: {count:.0f} tasks in {seconds:.3f} s"
            for name, (count, seconds) in self.functions.items()
        ]
        return "\n".join(lines)


class Recorder(Protocol):
    """What is told of every task that ran and every theft: `observe.Trace` is one."""

    def span(self, track: str, name: str, start_ns: int, end_ns: int, **args: Any) -> None:
        """Record `[start_ns, end_ns)` of `time.monotonic_ns()`; from any thread."""
