"""A policy: a state machine that says which jobs are refused, and what each resource computes when.

    arrive ──> refused, with a reason          next ──> Batch ── the resource computes it ──> ended
       └─────> queued ───────────────────────>  └──> dropped: can't be met any more

Every job that `arrive` accepts leaves exactly once: in a batch that `ended` or `failed`, among `dropped`, or
by `cancel`. A resource that goes down gives the jobs of its batches back: they are queued anew, and what it
may still answer is to be ignored. There is no I/O and no clock: who calls says what time it is, so the
simulator runs what runs live. After every event, and when the timer is due, the caller does

    while isinstance(decision := policy.next(now()), Batch):
        send(decision)
    timer(decision)                             a time; inf: nothing to decide before the next event
    for job, refused in policy.dropped():
        answer(job, refused)

A subclass keeps the queue: it implements `admit`, `choose`, `requeue` and `withdraw`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable
from itertools import count
from math import inf
from typing import ClassVar

from ..profile import Profile, Profiles
from ..request import Reason, Refused
from .failing import LEAST, Failing
from .job import Batch, Job, Model, ServiceClass, Settings
from .resource import MOST_COMMITTED, Resource

LEVELS = 32
"""Of priority: lower ones are as the lowest of these. Each has queues of its own, that every decision looks
at, and a request may name any number."""

SOON_S = 1e-4
"""After a job has expired it is looked at again: later than any rounding, sooner than anybody minds."""


class Policy(ABC):
    """What all policies share: resources, bounded queues, profiles that learn, and that no job is lost."""

    name: ClassVar[str]

    def __init__(self, settings: Settings, profiles: Profiles) -> None:
        self.profiles = profiles
        self._configure(settings)
        self.resources: dict[str, Resource] = {}
        self.queued: Counter[str] = Counter()  # jobs, by class
        self._dropped: list[tuple[Job, Refused]] = []
        self._numbers = count()
        self._failing = Failing()

    def _configure(self, settings: Settings) -> None:
        self.settings = settings
        self.classes: dict[str, ServiceClass] = {c.name: c for c in settings.classes}
        self.models: dict[str, Model] = {m.name: m for own in settings.families.values() for m in own}
        self._families = {
            family: sorted(own, key=lambda model: (-model.accuracy, model.cost))
            for family, own in settings.families.items()
        }
        self._present: set[str] = set()  # models that some resource has that is up

    # ---- events -------------------------------------------------------------------------------------------

    def configure(self, settings: Settings, now_s: float) -> None:
        """Models have been loaded or unloaded; no job of an unloaded one may be here any more."""
        self._configure(settings)
        self._look(now_s)

    def up(self, name: str, kind: str, models: Iterable[str], now_s: float) -> None:
        """A resource has come, has come back, or has other models now."""
        if name in self.resources:
            resource = self.resources[name]
            resource.loaded, resource.up = frozenset(models), True
        else:
            self.resources[name] = Resource(name, kind, models)
        self._look(now_s)

    def down(self, name: str, now_s: float) -> None:
        """A resource is lost: its jobs are queued anew, or dropped where nobody else has their model."""
        resource = self.resources[name]
        resource.up = False
        lost, resource.batches = resource.batches, []
        self._look(now_s)
        for batch in lost:
            self.profile(name, batch.model).failed()
            for job in batch.jobs:
                if self.able(self.variants(job)):
                    self.queued[job.service_class] += 1
                    self.requeue(job, now_s)
                else:
                    self.drop(job, Reason.NO_WORKER, f"{name} was lost and no other rank has {job.family}")

    def arrive(self, job: Job, now_s: float) -> Refused | None:
        """Queue `job`, or say why it will not be answered; None: it is queued."""
        variants = self.variants(job)
        if not variants:
            return Refused(Reason.IMPOSSIBLE, self._no_variant(job))
        if not self.able(variants):
            return Refused(Reason.NO_WORKER, f"no rank that is up has {job.family}")
        if self.queued[job.service_class] >= self.settings.max_queue:
            return Refused(
                Reason.QUEUE_FULL,
                f"{self.queued[job.service_class]} requests of class {job.service_class} wait already",
            )
        refused = self.admit(job, now_s)
        if refused is None:
            self.queued[job.service_class] += 1
        return refused

    def _no_variant(self, job: Job) -> str:
        own = self.settings.families.get(job.family, ())
        there = ", ".join(
            f"{model.name} (accuracy {model.accuracy:g}, cost {model.cost:g}, batches of {model.max_batch})"
            for model in own
        )
        if not there:
            return f"no variant of {job.family} is loaded"
        wished = [] if job.accuracy is None else [f"an accuracy of {job.accuracy:g} or more"]
        if job.cost is not None:
            wished.append(f"a cost of {job.cost:g} or less")
        if any(model.max_batch < job.samples for model in own):
            wished.append(f"batches of {job.samples} or more")
        return f"no variant of {job.family} has {' and '.join(wished)}: there are {there}"

    def cancel(self, job: Job) -> bool:
        """Forget `job`, which waits; False if it is on its way already, or was never here."""
        job.left = True
        if not self.withdraw(job):
            return False
        self.queued[job.service_class] -= 1
        return True

    def next(self, now_s: float) -> Batch | float:
        """The next batch to send, now; or the time at which to ask again unless something happens before."""
        if not any(self.queued.values()):
            return inf
        if self._failing.due_s <= now_s:
            self._failing.try_again(now_s)
            self._look(now_s)
        ask_s = self.expire(now_s)  # also where nobody is free to look at what waits
        for resource in self.resources.values():
            if not resource.up:
                continue
            free_s = resource.free_s(now_s)
            if resource.batches and free_s <= now_s:
                continue  # overdue: it may have become slow, and the answer will tell
            if free_s - self.settings.horizon_s > now_s:
                ask_s = min(ask_s, free_s - self.settings.horizon_s)
            elif len(resource.batches) < MOST_COMMITTED:
                chosen = self.choose(resource, free_s, now_s)
                if isinstance(chosen, Batch):
                    resource.commit(chosen)
                    queued = self.queued
                    for job in chosen.jobs:
                        queued[job.service_class] -= 1
                    return chosen
                ask_s = min(ask_s, chosen)
        return ask_s

    def ended(self, batch: Batch, started_s: float, ended_s: float) -> None:
        """The resource began `batch` at `started_s`, and its answer was here at `ended_s`."""
        self.profile(batch.resource, batch.model).measured(batch.samples, ended_s - started_s, ended_s)
        self._failing.well((batch.resource, batch.model))
        self._leave(batch, ended_s)

    def failed(self, batch: Batch, now_s: float) -> None:
        """Computing `batch` failed; its jobs are tried `alone`, or failed by the caller.

        A failure is held against who computed, at once: until its jobs have been tried elsewhere, a resource
        that fails everything would be given many more. Where one of them fails there, too, it was the job,
        and what was held against the first resource is taken back: once, for however many such jobs were in
        its batch, it failed but once. Of the second one nothing is learned.

        Jobs whose callers have left are tried nowhere else, so of a batch that has no others nothing is
        learned, either: who sends what fails everywhere, and leaves, would keep out one resource after the
        other. Unless it took longer than it should, for then they may have left for its sake.
        """
        resource = self.resources[batch.resource]
        taken_s = resource.taken_s(batch, now_s)
        self._leave(batch, now_s)
        profile, first = self.profile(batch.resource, batch.model), batch.retries
        profile.failed()
        if first is not None and first.resource != batch.resource:
            profile.forgive()
            self._forgive(first, now_s)
            return
        if all(job.left for job in batch.jobs) and taken_s <= profile.safe_s(batch.samples):
            profile.forgive()
            return
        batch.held = True
        if profile.availability < LEAST and any(batch.model in each.models for each in self._others(batch)):
            self._failing.leave_out(batch, now_s)
            self._look(now_s)

    def _forgive(self, batch: Batch, now_s: float) -> None:
        """It failed for one of its jobs, and not for its resource."""
        if batch.held:
            batch.held = False
            self.profile(batch.resource, batch.model).forgive()
            if self._failing.take_back(batch):
                self._look(now_s)

    def alone(self, batch: Batch, job: Job, now_s: float) -> Batch | None:
        """`batch` failed, perhaps for another job's sake or its resource's: one for `job` alone, elsewhere if
        anybody else has the model. None: it has been tried so, or could not be otherwise than it was.
        """
        others = self._others(batch)
        if batch.retries is not None or (not others and len(batch.jobs) == 1):
            return None

        def doubt(each: Resource) -> tuple[bool, int, float]:
            # Who is left out is asked rather than nobody: only there it is seen that it was the job. Of
            # several that fail everything each is free, and without `failures` they would be asked in turn.
            left_out = batch.model not in each.models
            return left_out, self.profile(each.name, batch.model).failures, each.free_s(now_s)

        resource = min(others, key=doubt, default=self.resources[batch.resource])
        made = self.batch(resource, batch.model, [job], resource.free_s(now_s))
        made.retries = batch
        resource.commit(made)
        return made

    def _others(self, batch: Batch) -> list[Resource]:
        """Who else has its model."""
        return [
            each
            for each in self.resources.values()
            if each.up and each.name != batch.resource and batch.model in each.loaded
        ]

    def dropped(self) -> list[tuple[Job, Refused]]:
        """The jobs that were dropped since the last call, and why."""
        dropped, self._dropped = self._dropped, []
        return dropped

    def _leave(self, batch: Batch, now_s: float) -> None:
        resource = self.resources[batch.resource]
        if batch in resource.batches:  # else the resource was down in between, and its jobs are queued anew
            resource.ended(batch, now_s)

    # ---- for subclasses -----------------------------------------------------------------------------------

    @abstractmethod
    def admit(self, job: Job, now_s: float) -> Refused | None:
        """Queue a job that some resource can compute, or refuse it."""

    @abstractmethod
    def choose(self, resource: Resource, start_s: float, now_s: float) -> Batch | float:
        """What `resource` computes from `start_s` on: a batch, taken from the queue; or when to ask again."""

    @abstractmethod
    def requeue(self, job: Job, now_s: float) -> None:
        """Queue a job that was accepted before, and whose resource is lost."""

    @abstractmethod
    def withdraw(self, job: Job) -> bool:
        """Take `job` out of the queue; False if it is not there."""

    def expire(self, now_s: float) -> float:
        """Drop what can't be met any more; the time at which more will have to be dropped, later than now."""
        return inf

    def changed(self, now_s: float) -> None:
        """Resources have come or gone, or have other models."""

    def variants(self, job: Job) -> list[Model]:
        """The models that may answer `job`, the most accurate first, then the cheapest.

        Those within its floor and its ceiling, and with batches that have room for it; none where its family
        is not loaded. Not kept by what is asked: whoever asks differently each time would make it grow.
        """
        samples, accuracy, cost = job.samples, job.accuracy, job.cost
        return [
            model
            for model in self._families.get(job.family, ())
            if model.max_batch >= samples
            and (accuracy is None or model.accuracy >= accuracy)
            and (cost is None or model.cost <= cost)
        ]

    def priority(self, job: Job) -> int:
        """That which `job` names, or its class's."""
        return min(job.priority or self.classes[job.service_class].priority, LEVELS)

    def able(self, models: Iterable[Model]) -> bool:
        """Whether a resource that is up has one of `models`."""
        return any(model.name in self._present for model in models)

    def _look(self, now_s: float) -> None:
        up = [each for each in self.resources.values() if each.up]
        for each in up:
            each.models = frozenset(model for model in each.loaded if (each.name, model) not in self._failing)
        self._present = {name for each in up for name in each.models}
        for each in up:  # rather by who fails than by nobody
            each.models |= each.loaded - self._present
        self._present = {name for each in up for name in each.models}
        self.changed(now_s)

    def profile(self, resource: str, model: str) -> Profile:
        """How long `resource` takes for `model`."""
        return self.profiles.of(resource, model, self.models[model].max_batch)

    def batch(
        self, resource: Resource, model: str, jobs: list[Job], start_s: float, samples: int | None = None
    ) -> Batch:
        """A batch of these jobs, which are no longer queued; `samples` if their number is known."""
        if samples is None:
            samples = sum(job.samples for job in jobs)
        expected_s = self.profile(resource.name, model).expected_s(samples)
        return Batch(next(self._numbers), resource.name, model, jobs, samples, start_s, expected_s)

    def strand(self, job: Job) -> None:
        """Drop a job that waits, and that no model which is loaded now may answer."""
        self.queued[job.service_class] -= 1
        self.drop(job, Reason.NO_WORKER, f"no variant of {job.family} that it allows is loaded any more")

    def drop(self, job: Job, reason: Reason, message: str) -> None:
        """Give up a job that was accepted and is no longer queued."""
        self._dropped.append((job, Refused(reason, message)))


def missed(job: Job, by_s: float) -> str:
    """The message for a job that would be late by so much."""
    allowed_s = job.deadline_s - job.arrival_s
    if by_s == inf:
        return f"no rank that is up has {job.family}"
    return f"it would be {by_s * 1e3:.1f} ms late for its deadline of {allowed_s * 1e3:g} ms"
