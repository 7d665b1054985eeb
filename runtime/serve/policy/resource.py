"""A resource as the policy sees it: up or down, what it can compute, and what has been committed to it."""

from __future__ import annotations

from collections.abc import Iterable

from .job import Batch

MOST_COMMITTED = 2
"""The batch that is computed and the next one: more would be decided before it is known what else arrives."""


class Resource:
    """A rank's lane: "rank 2 cpu"."""

    __slots__ = ("batches", "kind", "loaded", "models", "name", "started_s", "up")

    def __init__(self, name: str, kind: str, models: Iterable[str]) -> None:
        self.name, self.kind = name, kind
        self.loaded = self.models = frozenset(models)  # what it has; of these, what it is given
        self.up = True
        self.batches: list[Batch] = []  # committed, in the order of their execution
        self.started_s = 0.0  # of the first of them

    def free_s(self, now_s: float) -> float:
        """When what is committed is expected to have ended; `now_s` at the earliest."""
        if not self.batches:
            return now_s
        end_s = self.started_s + self.batches[0].expected_s
        if end_s < now_s:
            end_s = now_s
        for batch in self.batches[1:]:
            end_s += batch.expected_s
        return end_s

    def commit(self, batch: Batch) -> None:
        """`batch` comes after those committed before."""
        if not self.batches:
            self.started_s = batch.start_s
        self.batches.append(batch)

    def taken_s(self, batch: Batch, now_s: float) -> float:
        """How long `batch` is computed by now: the one before it may have ended sooner than expected."""
        first = bool(self.batches) and self.batches[0] is batch  # else it has been given to others meanwhile
        return now_s - (self.started_s if first else batch.start_s)

    def ended(self, batch: Batch, ended_s: float) -> None:
        """`batch` is done with, or lost; the next one begins."""
        self.batches.remove(batch)
        self.started_s = ended_s
