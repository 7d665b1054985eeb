"""A policy whose jobs wait in sorted queues, one for each key: what the peers have in common."""

from __future__ import annotations

from abc import abstractmethod
from math import inf
from typing import Any

from ..profile import Profile, Profiles
from ..request import Reason, Refused
from .job import Job, Settings
from .policy import SOON_S, Policy, missed
from .queue import Queue
from .resource import Resource


class Queued(Policy):
    """Queues by key, each in the order of `rank`. Of a family's variants a job takes the first it may."""

    def __init__(self, settings: Settings, profiles: Profiles) -> None:
        super().__init__(settings, profiles)
        self.queues: dict[Any, Queue] = {}

    @abstractmethod
    def key(self, job: Job) -> Any:
        """The queue for `job`."""

    def rank(self, job: Job) -> float:
        """Its place in the queue: by deadline; last, if it would rather be late than refused."""
        return inf if job.best_effort else job.deadline_s

    def admit(self, job: Job, now_s: float) -> Refused | None:
        """Whatever comes."""
        self.requeue(job, now_s)
        return None

    def requeue(self, job: Job, now_s: float) -> None:
        """In its place."""
        key = self.key(job)
        if key not in self.queues:
            self.queues[key] = Queue()
        self.queues[key].add(self.rank(job), job)
        job.place = key

    def configure(self, settings: Settings, now_s: float) -> None:
        """Jobs wait where they would if they came now: their variant may have been unloaded."""
        waiting = [job for queue in self.queues.values() for _, _, job in queue.entries]
        self.queues = {}
        super().configure(settings, now_s)
        for job in waiting:
            if self.variants(job):
                self.requeue(job, now_s)
            else:
                self.strand(job)

    def withdraw(self, job: Job) -> bool:
        """By its rank."""
        queue = self.queues.get(job.place)
        return queue is not None and queue.remove(self.rank(job), job)

    def model(self, job: Job) -> str:
        """The variant that answers `job`: the first that a resource has."""
        variants = self.variants(job)
        able = (model for model in variants if self.able([model]))
        return next(able, variants[0]).name

    def latest_s(self, job: Job) -> float:
        """When `job` is given up if it still waits; inf: never."""
        return inf if job.best_effort else job.deadline_s

    def expire(self, now_s: float) -> float:
        """Give up what has waited too long, from the head of each queue on."""
        ask_s = inf
        for queue in self.queues.values():
            while queue.entries:
                job = queue.entries[0][2]
                latest_s = self.latest_s(job)
                if now_s <= latest_s:
                    ask_s = min(ask_s, latest_s + SOON_S)
                    break
                self.give_up(queue, 1, now_s + job.deadline_s - latest_s)
        return ask_s

    def give_up(self, queue: Queue, count: int, finish_s: float) -> None:
        """Drop the first jobs of `queue`, which would have been answered at `finish_s`."""
        for job in queue.take(0, count):
            self.queued[job.service_class] -= 1
            self.drop(job, Reason.EXPIRED, missed(job, finish_s - job.deadline_s))

    def able_to(self, model: str) -> list[tuple[Resource, Profile]]:
        """The resources that are up and have `model`."""
        return [
            (resource, self.profile(resource.name, model))
            for resource in self.resources.values()
            if resource.up and model in resource.models
        ]
