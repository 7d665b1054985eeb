"""When to try a resource again that has become too slow for every deadline: rarely, then rapidly if it pays.

Nothing is sent to such a resource, so nothing would be learned of its recovery, nor that a first result was a
hiccup. Soon it gets one job; as long as that fails, or is as slow as was expected, the time doubles, up to
16 s. If it is faster the next one follows at once, until the profile has learned. A trial whose job is
withdrawn or expires has told nothing: it is made again, as late. So it is where another resource takes the
job, which tells of that one.

How soon: after a sixteenth of a second, or after four times what the job takes, but after a second at the
latest. With always a second, something else that took the resource for 60 ms was over when next to nothing
had been lost, and who asks for answers within 5 ms was refused for a second: where that happened every second
79% of such requests were on time, and so 92%.
"""

from __future__ import annotations

from math import inf

from .group import Way
from .job import Batch, Job

SOON_S, FIRST_S, LAST_S = 1 / 16, 1.0, 16.0
"""A job that is late for this is the price: five in the first two seconds, and soon four a minute."""

TIMES = 4.0
"""A trial takes its resource's time, too: a fifth of it at first."""
HOPE = 100.0
"""So much faster than it is thought a resource may turn out to be. To who allows a microsecond nobody answers
in time, and the answer that is late takes the resource from those who could be met."""

SURE = 100
"""Results of this server that settle what a resource can do that never was faster: with fewer, a p99 is only
the greatest."""


class Explorer:
    """For each resource and model, when it is tried next."""

    def __init__(self) -> None:
        self._times: dict[tuple[str, str], float] = {}  # of the first wait
        self._tried_s: dict[tuple[str, str], float] = {}
        self._out: dict[int, tuple[str, str]] = {}  # by the number of the job that it is tried with

    def due_s(self, way: Way, samples: int) -> float:
        """When it may be tried with a job of so many samples.

        inf while a trial is out, before any result, and if no batch as large was ever faster.
        """
        key, profile = (way.resource.name, way.model.name), way.profile
        last_s = profile.last_s(samples)
        settled = profile.slowdown == 1.0 and profile.here(samples) >= SURE
        if settled or last_s is None or key in self._out.values():
            return inf
        since_s = max(last_s, self._tried_s.get(key, -inf))
        first_s = min(FIRST_S, max(SOON_S, TIMES * profile.expected_s(samples)))
        return since_s + min(LAST_S, self._times.get(key, 1.0) * first_s)

    def sent(self, way: Way, job: Job, now_s: float) -> None:
        """It is being tried with `job`."""
        key = self._out[job.number] = (way.resource.name, way.model.name)
        self._tried_s[key] = now_s

    def out(self, batch: Batch) -> bool:
        """Whether `batch` tells of what is being tried, or has a job that another was to be tried with.

        Who takes such a job was thought as slow, and has been tried. When that counted for nothing, two whose
        profiles were of a machine 300 times slower refused nearly all for four seconds: what the first was to
        be tried with, the second took, time and again.
        """
        tried = self._out
        return bool(tried) and (
            (batch.resource, batch.model) in tried.values() or any(job.number in tried for job in batch.jobs)
        )

    def left(self, job: Job) -> None:
        """`job` is not here any more: if something was being tried with it, that is over."""
        self._out.pop(job.number, None)

    def forget(self) -> None:
        """Resources have come or gone: what was out may be lost."""
        self._out.clear()

    def probed(self, batch: Batch, faster: bool) -> None:
        """The trial took less than expected; or it did not, or failed."""
        key = (batch.resource, batch.model)
        self._out = {number: out for number, out in self._out.items() if out != key}
        slower = min(LAST_S / SOON_S, 2.0 * max(self._times.get(key, 1.0), 0.5))
        self._times[key] = 0.0 if faster else slower
