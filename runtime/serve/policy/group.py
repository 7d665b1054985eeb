"""Jobs that are served alike, by the same models, and how each resource would answer them."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from math import ceil, inf

from ..profile import Profile
from .job import Model, ServiceClass
from .queue import Queue
from .rate import Forecast, Rate
from .resource import Resource

KNEE = 0.8
"""A batch is large enough when it brings so much of the throughput that the largest does."""

LITTLE, FEW = 0.03, 8
"""A batch whose fixed cost is this part of it need not be larger: it would gain nothing, and what comes next
waits for its end. But what rank 0 does for a batch is not in its profile, so some samples it has. (Two equal
devices with 0.3 ms and 1.5 ms a sample, at 1.5 times their capacity: the top class was on time at 98 instead
of 83%.)"""


class Way:
    """One model on one resource, for the jobs of a group."""

    __slots__ = ("longest_s", "model", "most", "others_s", "per_s", "profile", "resource", "suits")

    def __init__(self, resource: Resource, model: Model, profile: Profile) -> None:
        self.resource, self.model, self.profile = resource, model, profile
        self.most = model.max_batch  # samples of a batch: more would bring nothing
        self.suits = False  # jobs that find the resource busy can still be answered, in a batch large enough
        self.per_s = 0.0  # samples a second, in batches that the deadline allows
        self.longest_s = inf  # that a batch may take, for the sake of jobs with shorter deadlines
        self.others_s = 0.0  # that a batch of lower classes may take here

    def look(self, deadline_s: float) -> None:
        """Work out anew what it is good for, from what is known of its latency now."""
        profile, most = self.profile, self.model.max_batch
        self.most = min(most, max(FEW, ceil(profile.fixed_s / max(LITTLE * profile.sample_s, 1e-9))))
        knee = 1 + bisect_left(range(1, most), KNEE * profile.per_s(most), key=profile.per_s)
        # Nexus's rule: a job waits at most for a batch that has just begun, and is in the next one.
        allowed = profile.largest(deadline_s / 2)
        self.suits = allowed >= knee
        self.per_s = profile.per_s(max(allowed, 1))

    def full_s(self, samples: int, one: int = 1) -> float:
        """What a batch takes of so many samples, or of as many as it may have; with a job of `one` in it."""
        most = self.most if self.most > one else one
        return self.profile.safe_s(samples if samples < most else most)


class Group(Queue):
    """A queue of jobs of one class, one priority, and the same models, of which the first is liked best."""

    __slots__ = (
        "asked",
        "best_s",
        "deadline_s",
        "each",
        "forecast",
        "models",
        "pool",
        "pool_per_s",
        "priority",
        "rate",
        "ways",
    )

    def __init__(self, each: ServiceClass, priority: int, models: Sequence[Model], deadline_s: float) -> None:
        super().__init__()
        self.each, self.priority, self.models = each, priority, models
        self.deadline_s = deadline_s  # that its jobs come with
        self.ways: dict[str, list[Way]] = {}  # by resource
        self.best_s = inf  # the least that an answer to one sample takes
        self.pool: dict[str, float] = {}  # speed of the resources that suit, or of all that are able
        self.pool_per_s = 0.0
        self.rate = Rate()  # of what is accepted, in seconds of the pool
        self.forecast = Forecast()  # likewise, for longer
        self.asked = Rate()  # likewise, with what is refused

    def look(self) -> None:
        """Work out the pool anew."""
        ways = [way for own in self.ways.values() for way in own]
        self.best_s = self.least_s(1)
        self.pool = {}
        for way in [way for way in ways if way.suits] or ways:
            name = way.resource.name
            self.pool[name] = max(way.per_s, self.pool.get(name, 0.0))
        self.pool_per_s = sum(self.pool.values())

    def least_s(self, samples: int) -> float:
        """The least that an answer to a job of so many samples takes; inf if nobody can."""
        ways = (way for own in self.ways.values() for way in own)
        return min((way.profile.safe_s(samples) for way in ways), default=inf)

    def latest_s(self) -> float:
        """When somebody must begin at the latest, so that the first job is answered when it is due."""
        due_s, _, job = self.entries[0]
        return due_s - (self.best_s if job.samples == 1 else self.least_s(job.samples))

    def way(self, resource: str, start_s: float) -> Way:
        """The model that is liked best of those that answer all that wait; else the fastest."""
        ways = self.ways[resource]
        if len(ways) > 1:
            allowed_s = self.entries[0][0] - start_s
            for way in ways:
                if self.samples <= way.model.max_batch and way.full_s(self.samples) <= allowed_s:
                    return way
            return max(ways, key=lambda way: way.per_s)
        return ways[0]


def limit_batches(groups: Sequence[Group], resource: str, now_s: float) -> None:
    """Say how long batches on `resource` may take, for the sake of groups with shorter deadlines.

    A batch is not interrupted. A group's jobs that arrive when one has begun wait for it, then for a turn of
    each other group with a deadline as short, and are answered in their own: with n such groups a turn may
    take a part in n + 1 of the deadline. The busier they are, the less can be put between their turns without
    a backlog that stays: so at most twice what they leave of the resource's time. (Half as much kept 95.6
    instead of 95.4% of the top class on time at 94% of its resource's speed, and cost 0.7% of the goodput.)
    """
    suited = [g for g in groups if any(way.suits for way in g.ways.get(resource, ()))]
    rates = {id(group): group.asked.per_s(now_s) for group in suited}
    suited = [group for group in suited if rates[id(group)] > 0.01]
    allowed = []
    for group in suited:
        turns = [g for g in suited if g.deadline_s <= group.deadline_s]
        left = max(0.02, 1.0 - sum(rates[id(g)] for g in turns))
        allowed.append((group, group.deadline_s * min(1.0 / (1 + len(turns)), 2.0 * left)))
    for group in groups:
        for way in group.ways.get(resource, ()):
            way.longest_s = min(
                (s for g, s in allowed if g.deadline_s < group.deadline_s and g.priority <= group.priority),
                default=inf,
            )
    others_s, level_s, level = 0.0, 0.0, None
    for group in reversed(groups):  # from the lowest class up
        if group.priority != level:
            others_s, level = max(others_s, level_s), group.priority
        for way in group.ways.get(resource, ()):
            way.others_s = others_s
            level_s = max(level_s, min(way.longest_s, way.full_s(way.most)))
