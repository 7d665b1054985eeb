"""First come, first served: one queue, whoever is free takes the oldest, and what fits of the same model."""

from __future__ import annotations

from math import inf

from ..profile import Profiles
from ..request import Refused
from .job import Batch, Job, Settings
from .policy import Policy
from .resource import Resource


class FirstCome(Policy):
    """No deadlines, no classes, no waiting: what most servers do, and the oracle of what a policy must do."""

    name = "first_come"

    def __init__(self, settings: Settings, profiles: Profiles) -> None:
        super().__init__(settings, profiles)
        self._waiting: dict[int, Job] = {}  # by number: in the order of arrival

    def changed(self, now_s: float) -> None:
        """What a job waits for may have been unloaded, or loaded anew with smaller batches."""
        for job in [job for job in self._waiting.values() if not self.variants(job)]:
            del self._waiting[job.number]
            self.strand(job)

    def admit(self, job: Job, now_s: float) -> Refused | None:
        """Whatever comes."""
        self._waiting[job.number] = job
        return None

    def requeue(self, job: Job, now_s: float) -> None:
        """At the end: it has come a second time."""
        self._waiting[job.number] = job

    def withdraw(self, job: Job) -> bool:
        """By its number."""
        return self._waiting.pop(job.number, None) is not None

    def choose(self, resource: Resource, start_s: float, now_s: float) -> Batch | float:
        """The oldest job that the resource has a model for, and the next ones for the same model."""
        model = None
        jobs: list[Job] = []
        left = 0
        for job in self._waiting.values():
            if model is None:
                model = next((m for m in self.variants(job) if m.name in resource.models), None)
                left = model.max_batch if model is not None else 0
            if model is not None and model in self.variants(job) and job.samples <= left:
                jobs.append(job)
                left -= job.samples
            if model is not None and left == 0:
                break
        if model is None:
            return inf
        for job in jobs:
            del self._waiting[job.number]
        return self.batch(resource, model.name, jobs, start_s)
