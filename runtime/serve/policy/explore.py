"""When to try a resource again that has become too slow for every deadline: rarely, then rapidly if it pays.

Nothing is sent to such a resource, so nothing would be learned of its recovery, nor that a first result was a
hiccup. After a second it gets one job; as long as that is as slow as was expected the time doubles, up to
16 s. If it is faster the next one follows at once, until the profile has learned.
"""

from __future__ import annotations

from math import inf

from .group import Way
from .job import Batch

FIRST_S, LAST_S = 1.0, 16.0
"""A job that is late for this is the price: one a second at most, and soon four a minute."""


SURE = 100
"""Results of this server that settle what a resource can do that never was faster: with fewer, a p99 is only
the greatest."""


class Explorer:
    """For each resource and model, when it is tried next."""

    def __init__(self) -> None:
        self._wait_s: dict[tuple[str, str], float] = {}
        self._out: set[tuple[str, str]] = set()

    def due_s(self, way: Way) -> float:
        """When it may be tried; inf while a trial is out, before any result, and if it was never faster."""
        key, profile = (way.resource.name, way.model.name), way.profile
        settled = profile.slowdown == 1.0 and profile.here >= SURE
        if key in self._out or settled or profile.measured_s is None:
            return inf
        return profile.measured_s + self._wait_s.get(key, FIRST_S)

    def sent(self, way: Way, now_s: float) -> None:
        """It is being tried."""
        self._out.add((way.resource.name, way.model.name))

    def out(self, batch: Batch) -> bool:
        """Whether `batch` tells of what is being tried."""
        return (batch.resource, batch.model) in self._out

    def forget(self) -> None:
        """Resources have come or gone: what was out may be lost."""
        self._out.clear()

    def probed(self, batch: Batch, faster: bool) -> None:
        """The trial took less than expected, or did not."""
        key = (batch.resource, batch.model)
        self._out.discard(key)
        self._wait_s[key] = (
            0.0 if faster else min(LAST_S, 2.0 * max(self._wait_s.get(key, FIRST_S), FIRST_S / 2))
        )
