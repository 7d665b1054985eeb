"""What policies made of the same arrivals: on time, late, refused, by class; and what could be made."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from heapq import heappop, heappush

from bench._arrivals import CLASSES
from bench.harness import check
from weft.runtime.serve.policy import Job
from weft.runtime.serve.virtual import Outcome


@dataclass(frozen=True)
class Score:
    """One policy, one list of arrivals."""

    requests: Counter[str]  # by class
    on_time: Counter[str]
    late: int
    refused: Counter[str]  # by reason
    goodput_per_s: float  # answered on time; the first eighth, while the queue fills, does not count
    feasible: int

    @property
    def on_time_share(self) -> float:
        """Of the requests that could be met."""
        return min(1.0, self.on_time.total() / self.feasible)

    @property
    def late_share(self) -> float:
        """Of all requests, those that were answered too late."""
        return self.late / self.requests.total()

    def of_class(self, name: str) -> float:
        """The share of the class's requests that was answered on time."""
        return self.on_time[name] / max(1, self.requests[name])


def score(arriving: Sequence[Job], outcomes: Sequence[Outcome], seconds: float, per_s: float) -> Score:
    """Score `outcomes`; wrong unless every request has exactly one."""
    check(
        sorted(outcome.job.number for outcome in outcomes) == [job.number for job in arriving],
        "a request was lost, or answered twice",
    )
    warm_s = seconds / 8
    good = sum(outcome.on_time and warm_s < outcome.at_s <= seconds for outcome in outcomes)
    return Score(
        Counter(job.service_class for job in arriving),
        Counter(outcome.job.service_class for outcome in outcomes if outcome.on_time),
        sum(outcome.late for outcome in outcomes),
        Counter(str(outcome.refused.reason) for outcome in outcomes if outcome.refused is not None),
        good / (seconds - warm_s),
        feasible(arriving, per_s),
    )


def feasible(arriving: Sequence[Job], per_s: float) -> int:
    """How many of these requests could be met by somebody who serves one at a time at full speed, without
    batches.

    For requests of equal length, earliest deadline first without those that are past is the most there is. No
    policy has that speed while it waits for batches to fill, so this is a bound.
    """
    waiting: list[float] = []
    free_s = 0.0
    met = 0
    place = 0
    while place < len(arriving) or waiting:
        if not waiting:
            free_s = max(free_s, arriving[place].arrival_s)
        while place < len(arriving) and arriving[place].arrival_s <= free_s:
            heappush(waiting, arriving[place].deadline_s)
            place += 1
        if waiting and heappop(waiting) >= free_s + 1 / per_s:
            free_s += 1 / per_s
            met += 1
    return met


TOP, LOWEST = CLASSES[0].name, CLASSES[-1].name
