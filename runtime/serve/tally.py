"""What is counted of requests: by model as Triton does, and by class whether they were on time."""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import inf
from typing import Any

from .policy import Job
from .request import Durations, ModelStatistics, Reason

LATENCIES = 1024
"""Of a class, the last ones, from which its percentiles are taken."""


@dataclass(slots=True)
class ClassTally:
    """A class of requests. Without a deadline an answer is on time."""

    on_time: int = 0
    late: int = 0
    failed: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    latencies: deque[float] = field(default_factory=lambda: deque(maxlen=LATENCIES))

    def describe(self, name: str) -> dict[str, Any]:
        """For the status page."""
        ordered = sorted(self.latencies)
        return {
            "class": name,
            "on_time": self.on_time,
            "late": self.late,
            "failed": self.failed,
            "refused": dict(self.refused),
            "p50_ms": _percentile_ms(ordered, 0.5),
            "p99_ms": _percentile_ms(ordered, 0.99),
        }


class Tally:
    """Everything that is counted since the server started."""

    def __init__(self) -> None:
        self.models: dict[str, ModelStatistics] = {}
        self.classes: dict[str, ClassTally] = {}

    def model(self, name: str) -> ModelStatistics:
        """Of a version, by the policy's name."""
        if (found := self.models.get(name)) is None:
            found = self.models[name] = ModelStatistics()
        return found

    def refused(self, name: str, service_class: str, reason: Reason) -> None:
        """A request for this version, of this class, is not answered."""
        refused, word = self.model(name).refused, reason.value  # a key of JSON: no other str than str itself
        refused[word] = refused.get(word, 0) + 1
        self._of(service_class).refused[word] += 1

    def answered(self, name: str, job: Job, started_s: float, now_s: float) -> None:
        """`job` waited until `started_s` and is answered now."""
        tally = self._of(job.service_class)
        if job.deadline_s == inf or now_s <= job.deadline_s:
            tally.on_time += 1
        else:
            tally.late += 1
        tally.latencies.append(now_s - job.arrival_s)
        own = self.model(name)
        own.inference_count += job.samples
        own.last_inference_ms = time.time_ns() // 1_000_000
        _add(own.success, now_s - job.arrival_s)
        _add(own.queue, max(0.0, started_s - job.arrival_s))

    def computed(self, name: str, samples: int, compute_s: float, requests: int) -> None:
        """A batch of so many samples, which are those of so many requests."""
        own = self.model(name)
        own.execution_count += 1
        _add(own.compute, compute_s * requests, requests)
        if (of_size := own.batches.get(samples)) is None:
            of_size = own.batches[samples] = Durations()
        _add(of_size, compute_s)

    def failed(self, name: str, job: Job, now_s: float) -> None:
        """Computing it failed."""
        self._of(job.service_class).failed += 1
        _add(self.model(name).fail, now_s - job.arrival_s)

    def describe(self) -> list[Mapping[str, Any]]:
        """The classes, for the status page."""
        return [tally.describe(name) for name, tally in self.classes.items()]

    def _of(self, service_class: str) -> ClassTally:
        if (found := self.classes.get(service_class)) is None:
            found = self.classes[service_class] = ClassTally()
        return found


def _add(durations: Durations, seconds: float, count: int = 1) -> None:
    durations.count += count
    durations.ns += int(seconds * 1e9)


def _percentile_ms(ordered: Sequence[float], share: float) -> float | None:
    return 1e3 * ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else None
