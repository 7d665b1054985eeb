"""Throughput that a client is guaranteed: a bucket of samples that fills at the guaranteed rate."""

from __future__ import annotations

from collections.abc import Sequence

from .job import Guarantee, Job


class Buckets:
    """One for each client with a guarantee."""

    def __init__(self, guarantees: Sequence[Guarantee]) -> None:
        self._guarantees = {each.client: each for each in guarantees}
        self._samples = {each.client: each.burst for each in guarantees}
        self._at_s = dict.fromkeys(self._guarantees, 0.0)

    def within(self, job: Job, now_s: float) -> bool:
        """Whether the client of `job` is within its guarantee."""
        guarantee = self._guarantees.get(job.client)
        if guarantee is None:
            return False
        filled = self._samples[job.client] + guarantee.per_s * (now_s - self._at_s[job.client])
        filled = min(filled, max(guarantee.burst, job.samples))
        self._at_s[job.client] = now_s
        self._samples[job.client] = filled
        return filled >= job.samples

    def use(self, job: Job) -> None:
        """`job`, which was within, is accepted: so much of the guarantee is used."""
        self._samples[job.client] -= job.samples
