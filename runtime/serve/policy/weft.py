"""Weft's policy: what is accepted is answered on time, by batches as large as that allows.

    arrive    refused if nobody could meet it, or not with what goes before it (admission.py)
    choose    1. the group: one that must begin before another batch could end, highest class first; else the
                 one with the earliest latest start. Resources that suit a deadline are kept for it.
              2. the size: as many as still meet all deadlines (size.py)
              3. room that is left is filled from other groups with the same model, higher classes first
              4. where nothing is urgent, the batch small, and more is expected: a short wait

A lower class that has had less than its share of the time lately goes before higher ones when it is urgent. A
client within its guarantee has the highest priority. Jobs that may be late, or have no deadline, are due
after their class's patience, again and again. A resource that was slowed so much that it meets no deadline
any more gets a single job now and then, to be found again.
"""

from __future__ import annotations

from collections.abc import Iterable
from math import inf

from ..profile import Profiles
from ..request import Reason, Refused
from .admission import finish_s
from .explore import HOPE, Explorer
from .group import Group, Way, limit_batches
from .guarantee import Buckets
from .job import Batch, Job, Settings
from .policy import SOON_S, Policy, missed
from .rate import Rate
from .resource import Resource
from .size import size

LOOK_EVERY = 8
"""Results after which it is worked out anew what a resource is good for: some 50 us for a dozen groups."""


MOST_GROUPS = 64
"""Beyond these the empty ones are forgotten: every decision looks at all groups."""


class Weft(Policy):
    """Latest start, classes with shares, admission, batches by profile."""

    name = "weft"

    def __init__(self, settings: Settings, profiles: Profiles) -> None:
        super().__init__(settings, profiles)
        self._by_key: dict[tuple[str, int, str, tuple[str, ...]], Group] = {}
        self._groups: list[Group] = []  # by priority
        self._served = {name: Rate() for name in self.classes}  # seconds, by class
        self._buckets = Buckets(settings.guarantees)
        self._explorer = Explorer()
        self._results = 0

    # ---- events -------------------------------------------------------------------------------------------

    def configure(self, settings: Settings, now_s: float) -> None:
        """Jobs wait where they would if they came now: a variant may have been unloaded, or loaded anew."""
        waiting = [(group.priority, due_s, job) for group in self._groups for due_s, _, job in group.entries]
        self._by_key, self._groups = {}, []
        super().configure(settings, now_s)
        for priority, due_s, job in waiting:
            if self.variants(job):
                self._put(self._group(job, priority), job, due_s)
            else:
                self.strand(job)

    def changed(self, now_s: float) -> None:
        """All groups are connected to the resources anew."""
        self._served = {name: self._served.get(name, Rate()) for name in self.classes}
        self._explorer.forget()
        for group in self._groups:
            self._connect(group)
        for name in self.resources:
            limit_batches(self._groups, name, now_s)

    def ended(self, batch: Batch, started_s: float, ended_s: float) -> None:
        """Profiles have learned; now and then it is looked at what follows."""
        tried = batch.probe or self._explorer.out(batch)
        if tried:
            expected_s = self.profile(batch.resource, batch.model).expected_s(batch.samples)
            self._explorer.probed(batch, ended_s - started_s < expected_s)
        super().ended(batch, started_s, ended_s)
        self._left(batch.jobs)
        self._results += 1
        if tried or self._results % LOOK_EVERY == 0:
            for group in self._groups:
                for way in group.ways.get(batch.resource, ()):
                    way.look(group.deadline_s)
                group.look()
            limit_batches(self._groups, batch.resource, ended_s)

    def failed(self, batch: Batch, now_s: float) -> None:
        """It may have been a trial."""
        if batch.probe or self._explorer.out(batch):
            self._explorer.probed(batch, faster=False)
        super().failed(batch, now_s)
        self._left(batch.jobs)

    def _left(self, jobs: Iterable[Job]) -> None:
        for job in jobs:
            self._explorer.left(job)

    def admit(self, job: Job, now_s: float) -> Refused | None:
        """Unless it can't be met, or not with what goes before it."""
        guaranteed = self._buckets.within(job, now_s)
        group = self._group(job, 0 if guaranteed else self.priority(job))
        due_s = self._due_s(job, now_s)
        group.asked.add(job.samples / max(group.pool_per_s, 1e-9), now_s)
        if job.deadline_s < inf and not job.best_effort:
            end_s = finish_s(job, due_s, group, self._groups, self.resources, now_s)
            if end_s > due_s:
                group.look()  # by what is known now: has nobody the time, or is nobody fast enough?
                least_s = group.least_s(job.samples)
                if now_s + least_s <= due_s:
                    return Refused(Reason.OVERLOAD, missed(job, end_s - due_s))
                if not self._trial(group, job, now_s):
                    return Refused(Reason.IMPOSSIBLE, missed(job, now_s + least_s - due_s))
                due_s = now_s + least_s + group.each.patience_s
        self._put(group, job, due_s)
        for rate in (group.rate, group.forecast):
            rate.add(job.samples / group.pool_per_s, now_s)
        if guaranteed:
            self._buckets.use(job)
        return None

    def requeue(self, job: Job, now_s: float) -> None:
        """As high as it was."""
        self._put(self._group(job, job.place[0].priority), job, self._due_s(job, now_s))

    def withdraw(self, job: Job) -> bool:
        """From its group."""
        if job.place is None:
            return False
        group, due_s = job.place
        if not group.remove(due_s, job):
            return False
        self._explorer.left(job)
        return True

    def expire(self, now_s: float) -> float:
        """Drop what even the fastest resource would answer too late."""
        ask_s = inf
        for group in self._groups:
            if group.entries:
                latest_s = group.latest_s()
                if latest_s < now_s:
                    self._expire(group, now_s)
                    latest_s = group.latest_s() if group.entries and group.ways else inf
                if latest_s < ask_s:
                    ask_s = latest_s
        return ask_s + SOON_S

    def _trial(self, group: Group, job: Job, now_s: float) -> bool:
        """Whether `job`, that nobody can meet, it is thought, is taken to see whether that is still so."""
        for own in group.ways.values():
            for way in own:
                hopeless = way.profile.expected_s(job.samples) > HOPE * (job.deadline_s - now_s)
                if not hopeless and self._explorer.due_s(way, job.samples) <= now_s:
                    self._explorer.sent(way, job, now_s)
                    return True
        return False

    # ---- the decision -------------------------------------------------------------------------------------

    def choose(self, resource: Resource, start_s: float, now_s: float) -> Batch | float:
        """A batch for `resource`, as told at the top of the file."""
        chosen = self._most_urgent(resource.name, start_s, now_s)
        if chosen is None:
            return inf
        group, way, urgent = chosen
        profile = way.profile
        limit = max(group.entries[0][2].samples, min(way.most, profile.largest(way.longest_s)))
        first, count = size(group, profile, start_s, limit)
        if count == 0:
            return self._explore(resource, group, way, start_s, now_s)
        due_s = group.entries[first][0]
        if not urgent and start_s == now_s and group.samples < limit:
            wait_s = self._wait_s(group, way, due_s, now_s)
            if wait_s > now_s:
                return wait_s
        samples = group.samples_of(first, count)
        jobs = group.take(first, count)
        limit = min(limit, profile.largest(due_s - start_s))
        if samples < limit:
            samples = self._fill(jobs, samples, limit, group, way, start_s)
        batch = self.batch(resource, way.model.name, jobs, start_s, samples)
        self._served[group.each.name].add(batch.expected_s, now_s)
        return batch

    def _most_urgent(self, name: str, start_s: float, now_s: float) -> tuple[Group, Way, bool] | None:
        """The group whose turn it is on the resource `name`."""
        waiting: list[tuple[Group, Way, float]] = []
        levels_s: dict[int, float] = {}  # what the batches of a priority's groups take
        for group in self._groups:
            if group.entries and name in group.ways:
                way = group.way(name, start_s)
                own_s = way.full_s(group.samples)
                waiting.append((group, way, own_s))
                levels_s[group.priority] = levels_s.get(group.priority, 0.0) + own_s
        chosen = None
        best = (True, True, 0, inf)
        for group, way, own_s in waiting:
            first_s = group.entries[0][0]
            # Another batch now, then those of its own class: it might be the last of them.
            other_s = way.others_s or way.full_s(way.most)
            urgent = first_s < start_s + other_s + levels_s[group.priority]
            rank = 0 if not urgent or self._owed(group, now_s) else group.priority
            key = (name not in group.pool, not urgent, rank, first_s - own_s)
            if chosen is None or key < best:
                best, chosen = key, (group, way, urgent)
        return chosen

    def _owed(self, group: Group, now_s: float) -> bool:
        """Whether a class below the highest has had less than its share of the time lately."""
        if group.priority == self._groups[0].priority:
            return False
        served_s = self._served[group.each.name].per_s(now_s)
        return served_s < group.each.share * sum(rate.per_s(now_s) for rate in self._served.values())

    def _wait_s(self, group: Group, way: Way, due_s: float, now_s: float) -> float:
        """Until when to wait for a larger batch.

        To wait costs time, and saves what a batch of its own would cost the jobs that come: so never longer
        than that, reckoned from the arrival of the first job, and only if one more is expected.
        """
        job = group.entries[0][2]
        until_s = min(job.arrival_s + way.profile.fixed_s, due_s - way.full_s(group.samples + 1))
        expected = group.rate.per_s(now_s) * group.pool_per_s * (until_s - now_s)
        return until_s if expected >= 1.0 else now_s

    def _fill(self, jobs: list[Job], samples: int, limit: int, group: Group, way: Way, start_s: float) -> int:
        """Add jobs of other groups for the same model, that meet their deadlines and delay nobody.

        Returns how many samples there are then, `samples` being those of `jobs`. Nobody who waits is delayed:
        where all others as high can wait for a full batch, room in it is cheap, its fixed cost being paid
        already. What may still arrive (`longest_s`) counts only where they can't. To think of it always cost
        1 to 3% of the goodput in overload.
        """
        name, largest = way.resource.name, way.profile.largest
        spare_s: float | None = None
        for other in self._groups:
            if samples == limit:
                break
            if other is group or not other.entries or way.model not in other.models:
                continue
            if spare_s is None:
                latest_s = [
                    each.entries[0][0] - each.ways[name][0].full_s(each.samples)
                    for each in self._groups
                    if each.entries and name in each.pool and each.priority <= group.priority
                    if each is not group
                ]
                spare_s = min(latest_s, default=inf) - start_s
            may_take_s = max(other.ways[name][0].longest_s, spare_s)
            most = limit if may_take_s == inf else min(limit, largest(may_take_s))
            if most > samples:
                first = other.due_from(start_s + way.profile.safe_s(most))
                more = other.count(first, most - samples)
                samples += other.samples_of(first, more)
                jobs += other.take(first, more)
        return samples

    def _explore(
        self, resource: Resource, group: Group, way: Way, start_s: float, now_s: float
    ) -> Batch | float:
        """A single job to a resource that meets nobody's deadline any more, if it is time for one."""
        when_s = self._explorer.due_s(way, group.entries[-1][2].samples)
        if when_s > now_s:
            return when_s
        jobs = group.take(len(group) - 1, 1)
        self._explorer.sent(way, jobs[0], now_s)
        batch = self.batch(resource, way.model.name, jobs, start_s)
        batch.probe = True
        return batch

    # ---- groups -------------------------------------------------------------------------------------------

    def _group(self, job: Job, priority: int) -> Group:
        """The group for `job`, made where there is none yet.

        By the models that are left, and not by what was asked: so there are no more groups than these differ,
        and every job of a group fits into the batches of all its models.
        """
        each = self.classes[job.service_class]
        models = self.variants(job)
        key = (each.name, priority, job.family, tuple([model.name for model in models]))
        group = self._by_key.get(key)
        if group is None:
            if len(self._by_key) >= MOST_GROUPS:
                self._forget_empty()
            deadline_s = min(job.deadline_s - job.arrival_s, each.patience_s)
            group = self._by_key[key] = Group(each, priority, models, deadline_s)
            self._sort()
            self._connect(group)
        return group

    def _forget_empty(self) -> None:
        """Groups are made anew when somebody asks; whoever asks differently each time makes many."""
        self._by_key = {key: group for key, group in self._by_key.items() if group.entries}
        self._sort()

    def _sort(self) -> None:
        self._groups = sorted(self._by_key.values(), key=lambda group: group.priority)

    def _connect(self, group: Group) -> None:
        group.ways = {}
        for resource in self.resources.values():
            for model in group.models:
                if resource.up and model.name in resource.models:
                    way = Way(resource, model, self.profile(resource.name, model.name))
                    way.look(group.deadline_s)
                    group.ways.setdefault(resource.name, []).append(way)
        group.look()

    def _due_s(self, job: Job, now_s: float) -> float:
        if job.deadline_s < inf and not (job.best_effort and job.deadline_s < now_s):
            return job.deadline_s
        return now_s + self.classes[job.service_class].patience_s

    def _put(self, group: Group, job: Job, due_s: float) -> None:
        group.add(due_s, job)
        job.place = (group, due_s)

    def _expire(self, group: Group, now_s: float) -> None:
        """Drop the first jobs, which would be late; those that may be so are due again later."""
        group.look()  # by what is known now: a result may have told that there is time yet
        again: list[tuple[Job, float]] = []
        while group.entries and group.latest_s() < now_s:
            (job,) = group.take(0, 1)
            by_s = now_s + group.least_s(job.samples)
            if job.best_effort or job.deadline_s == inf:
                again.append((job, by_s + group.each.patience_s))
            else:
                self.queued[job.service_class] -= 1
                self._explorer.left(job)
                self.drop(job, Reason.EXPIRED, missed(job, by_s - job.deadline_s))
        for job, due_s in again:
            self._put(group, job, due_s)
