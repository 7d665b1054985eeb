"""Clockwork-like: latency is predictable, so plan with it, and give up at once what would be late.

After Gujarati et al., "Serving DNNs like Clockwork: Performance Predictability from the Bottom Up", OSDI
2020, and its sources (controller/infer5). For each model and each of a few batch sizes there is a strategy;
its latest start is the deadline of the job at the head less the 99th percentile of that batch's latency. Who
is free takes the model whose strategy must start first, and of its jobs the largest size that can be filled
exactly. What waits is dropped when nobody could meet it alone any more. A job is refused on arrival if even
alone, on whoever is free first, it would be late.

Clockwork's models have one deadline each, and queues in order of arrival. Here deadlines are mixed, and the
queues are in their order: behind a long deadline at the head all short ones would be late.
"""

from __future__ import annotations

from math import inf

from ..profile import Profile
from ..request import Reason, Refused
from .job import Batch, Job
from .policy import missed
from .queue import Queue
from .queued import Queued
from .resource import Resource


class Clockwork(Queued):
    """Earliest latest start, over models and batch sizes."""

    name = "clockwork"

    def key(self, job: Job) -> str:
        """By model."""
        return self.model(job)

    def admit(self, job: Job, now_s: float) -> Refused | None:
        """Unless a batch of this job alone would be late."""
        if not job.best_effort:
            alone = [
                (resource.free_s(now_s), profile.safe_s(job.samples))
                for resource, profile in self.able_to(self.model(job))
            ]
            if job.deadline_s < now_s + min(seconds for _, seconds in alone):
                late_s = now_s + min(seconds for _, seconds in alone) - job.deadline_s
                return Refused(Reason.IMPOSSIBLE, missed(job, late_s))
            finish_s = min(free_s + seconds for free_s, seconds in alone)
            if job.deadline_s < finish_s:
                return Refused(Reason.OVERLOAD, missed(job, finish_s - job.deadline_s))
        return super().admit(job, now_s)

    def latest_s(self, job: Job) -> float:
        """When a batch of it alone must begin."""
        own = self.able_to(job.place)
        return super().latest_s(job) - min((profile.safe_s(job.samples) for _, profile in own), default=0.0)

    def choose(self, resource: Resource, start_s: float, now_s: float) -> Batch | float:
        """The strategy that must start first."""
        first: tuple[float, str] | None = None
        for model, queue in self.queues.items():
            if model not in resource.models or not queue.entries:
                continue
            profile = self.profile(resource.name, model)
            size, place = self._size(queue, profile, self.models[model].max_batch, start_s)
            if size:
                latest_s = queue.entries[place][0] - profile.safe_s(size)
                first = (latest_s, model) if first is None else min(first, (latest_s, model))
        if first is None:
            return inf
        model = first[1]
        queue = self.queues[model]
        size, place = self._size(
            queue, self.profile(resource.name, model), self.models[model].max_batch, start_s
        )
        return self.batch(resource, model, queue.take(place, queue.count(place, size)), start_s)

    def _size(self, queue: Queue, profile: Profile, largest: int, start_s: float) -> tuple[int, int]:
        """The largest size that jobs which it would meet fill, and the place of the first; 0: none would."""
        size = 1 << (largest.bit_length() - 1)
        while size:
            place = queue.due_from(start_s + profile.safe_s(size))
            full = queue.samples * (len(queue) - place) >= size * len(queue)
            if place < len(queue) and full and queue.count(place, size):
                return size, place
            size //= 2
        samples = queue.entries[0][2].samples if queue.entries else 0
        if samples and queue.entries[0][0] >= start_s + profile.safe_s(samples):
            return samples, 0  # one job that is larger than the sizes it could fill
        return 0, 0
