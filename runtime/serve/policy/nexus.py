"""Nexus-like: rounds of planned batches, and early drop.

After Shen et al., "Nexus: A GPU Cluster Engine for Accelerating DNN-Based Video Analysis", SOSP 2019, and its
sources (backend/model_exec.cpp, GetBatchTask). Jobs for one model with one deadline are a session, in the
order of their deadlines. A resource goes round the sessions of its plan (nexus_plan.py). The batch is as
planned, or what waits; jobs that would not survive a batch of that size are dropped, until one is filled or
few are left.

Kinder than the original: rates are measured and the plan is made anew every second, not every ten; a resource
whose sessions have nothing waits for no round; and a session that is on several resources has one queue, from
which each takes, and not a fixed share for each.
"""

from __future__ import annotations

from collections import Counter
from math import inf

from ..profile import Profiles
from .job import Batch, Job, Settings
from .nexus_plan import Round, Session, plan
from .queued import Queued
from .resource import Resource

EPOCH_S, FIRST_EPOCH_S = 1.0, 0.1
"""Between plans; the first one after a rest is made as soon as there are rates to plan with, and each of the
next ones after three times as long."""

Key = tuple[str, str]


class Nexus(Queued):
    """Squishy bin packing and early drop; a session is a model and a class."""

    name = "nexus"

    def __init__(self, settings: Settings, profiles: Profiles) -> None:
        super().__init__(settings, profiles)
        self._arrived: Counter[Key] = Counter()  # samples, in this epoch
        self._rates: dict[Key, float] = {}
        self._deadlines: dict[Key, float] = {}
        self._rounds: dict[str, list[tuple[Key, int]]] = {}
        self._turn: Counter[str] = Counter()
        self._since_s, self._epoch_s = -inf, -inf  # when this epoch began and ends

    def key(self, job: Job) -> Key:
        """By session."""
        return self.model(job), job.service_class

    def requeue(self, job: Job, now_s: float) -> None:
        """As it arrives."""
        key = self.key(job)
        if now_s > self._epoch_s + EPOCH_S:
            # A rest, and the time before the first request, count for no rate: reckoned from the clock's zero
            # the first plan was for almost no load, and met 63% of what it meets all of.
            self._since_s, self._rounds = now_s, {}
            self._epoch_s = now_s + FIRST_EPOCH_S
            self._arrived.clear()
            self._rates.clear()
        self._arrived[key] += job.samples
        self._deadlines.setdefault(key, job.deadline_s - job.arrival_s)
        super().requeue(job, now_s)

    def changed(self, now_s: float) -> None:
        """Plan anew, soon."""
        self._rounds = {}
        self._epoch_s = min(self._epoch_s, now_s + FIRST_EPOCH_S)

    def choose(self, resource: Resource, start_s: float, now_s: float) -> Batch | float:
        """The next session of the round that has something."""
        if now_s >= self._epoch_s:
            self._plan(now_s)
        planned_for = self._rounds.get(resource.name, [])
        # A session that is new since the plan is in nobody's round: its first second of jobs expired in wait.
        # So did that of one that had rested beside others until its rate, halved by each plan, was 0.
        own = planned_for + [
            (key, self.models[key[0]].max_batch)
            for key in self._deadlines
            if key[0] in resource.models and key[0] in self.models
            if not planned_for or not self._rates.get(key)
        ]
        turn = self._turn[resource.name]
        for step in range(len(own)):
            key, planned = own[(turn + step) % len(own)]
            count = self._survivors(resource, key, planned, start_s)
            if count:
                self._turn[resource.name] = (turn + step + 1) % len(own)
                return self.batch(resource, key[0], self.queues[key].take(0, count), start_s)
        return self._epoch_s if any(self.queues.values()) else inf

    def _survivors(self, resource: Resource, key: Key, planned: int, start_s: float) -> int:
        """Drop from the head what would not survive; how many jobs are left for a batch."""
        queue = self.queues.get(key)
        if not queue:
            return 0
        profile = self.profile(resource.name, key[0])
        wanted, drop = min(planned, queue.samples), 0
        finish_s = start_s
        for due_s, _, job in queue.entries:
            finish_s = start_s + profile.safe_s(max(wanted, job.samples))
            if due_s >= finish_s:
                break
            drop += 1
            if queue.count(drop, wanted) == len(queue) - drop:  # no more to fill it with
                wanted = sum(job.samples for _, _, job in queue.entries[drop:])
        self.give_up(queue, drop, finish_s)
        return queue.count(0, wanted) or min(1, len(queue))  # one job that is larger than what was planned

    def _plan(self, now_s: float) -> None:
        for key in self._deadlines:
            rate = self._arrived[key] / (now_s - self._since_s)
            self._rates[key] = (self._rates.get(key, rate) + rate) / 2
        self._arrived.clear()
        self._epoch_s = now_s + min(EPOCH_S, 3 * (now_s - self._since_s))
        self._since_s = now_s
        sessions = [
            Session(key[0], self.models[key[0]].max_batch, self._deadlines[key], rate, key[1])
            for key, rate in self._rates.items()
            if rate > 0.0 and key[0] in self.models
        ]
        profiles = {
            resource.name: {
                model: self.profile(resource.name, model) for model in resource.models if model in self.models
            }
            for resource in self.resources.values()
            if resource.up
        }
        rounds: dict[str, Round] = plan(sessions, profiles) if sessions else {}
        self._rounds = {
            resource: [((session.model, session.service_class), size) for session, size in own]
            for resource, own in rounds.items()
        }
        self._turn.clear()
