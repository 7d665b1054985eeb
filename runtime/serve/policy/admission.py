"""Whether a job that arrives can be met: the work that goes before it, at the speed that is left for its
class.

    now ├─ until somebody is free ─┼─ what is due before it, at that speed ─┼─ its own batch ─┤ deadline

An estimate, as of a fluid: jobs are accepted one by one, and served in batches that are formed later. Where
it hopes too much a job is dropped later; where it fears too much a resource idles. Higher classes will bring
until the deadline, it is thought, what they brought lately (rate.py).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from .group import Group
from .job import Job
from .resource import Resource

LEAST = 1e-9
"""Of the speed, for a class that higher ones need leave nothing."""


def finish_s(
    job: Job,
    due_s: float,
    group: Group,
    groups: Iterable[Group],
    resources: Mapping[str, Resource],
    now_s: float,
) -> float:
    """When `job` is expected to be answered if it joins `group`, one of `groups`; these by priority."""
    for own in group.ways.values():
        for way in own:
            if not way.resource.batches:  # has nothing to do, however slow it is
                end_s = now_s + way.full_s(group.samples + job.samples, job.samples)
                if end_s <= due_s:
                    return end_s
    before_s = taken = 0.0
    for other in groups:
        if other.priority > group.priority:
            break
        if not other.pool_per_s:
            continue
        if other.entries:
            before_s += other.due_by(due_s) * other.samples / len(other.entries) / other.pool_per_s
        if other.priority < group.priority:
            shared = sum(speed for name, speed in group.pool.items() if name in other.pool)
            taken += other.forecast.per_s(now_s, due_s - now_s) * shared / group.pool_per_s
    speed = max(1.0 - taken, group.each.share, LEAST)
    samples = group.due_by(due_s) + job.samples
    # Who ends first, not who is free first: that may be the slowest.
    own_s = min(
        resources[name].free_s(now_s) + group.ways[name][0].full_s(samples, job.samples)
        for name in group.pool
    )
    return own_s + before_s / speed
