"""Triton-like: a dynamic batcher with priority levels, a queue delay and queue timeouts.

After the documentation of NVIDIA's Triton Inference Server ("Batchers", user guide): each model has a queue
for each priority level, in order of arrival. A batch takes the highest level first, as much as there is up to
the largest batch, at once or after `delay_s`. A request whose timeout has passed in the queue is rejected;
here it is the request's deadline less `reserve_s`, for Triton's timeout ends when computation begins.
Preferred sizes are not set: the guide advises against it unless one size is much faster than others.

Triton runs models beside each other; a resource here computes one batch at a time, and takes the model with
the oldest request of the highest level.
"""

from __future__ import annotations

from math import inf

from ..profile import Profiles
from .job import Batch, Job, Settings
from .queued import Queued
from .resource import Resource

Key = tuple[str, int]


class Triton(Queued):
    """Priority, then order of arrival."""

    name = "triton"

    def __init__(
        self, settings: Settings, profiles: Profiles, delay_s: float = 0.0, reserve_s: float = 0.0
    ) -> None:
        super().__init__(settings, profiles)
        self.delay_s, self.reserve_s = delay_s, reserve_s

    def key(self, job: Job) -> Key:
        """By model and priority level."""
        return self.model(job), self.priority(job)

    def rank(self, job: Job) -> float:
        """By arrival."""
        return job.arrival_s

    def latest_s(self, job: Job) -> float:
        """When its timeout ends."""
        return super().latest_s(job) - self.reserve_s

    def choose(self, resource: Resource, start_s: float, now_s: float) -> Batch | float:
        """The model whose turn it is; its levels one after another."""
        ask_s = inf
        heads: list[tuple[int, float, str]] = []
        by_model: dict[str, list[Key]] = {}
        for key in sorted(self.queues):
            if self.queues[key].entries:
                by_model.setdefault(key[0], []).append(key)
        for model, levels in by_model.items():
            if model not in resource.models:
                continue
            oldest_s = min(self.queues[key].entries[0][0] for key in levels)
            waiting = sum(self.queues[key].samples for key in levels)
            if waiting < self.models[model].max_batch and now_s < oldest_s + self.delay_s:
                ask_s = min(ask_s, oldest_s + self.delay_s)
            else:
                heads.append((levels[0][1], self.queues[levels[0]].entries[0][0], model))
        if not heads:
            return ask_s
        model = min(heads)[2]
        jobs: list[Job] = []
        room = self.models[model].max_batch
        for key in by_model[model]:
            more = self.queues[key].take(0, self.queues[key].count(0, room))
            room -= sum(job.samples for job in more)
            jobs += more
        return self.batch(resource, model, jobs, start_s)
