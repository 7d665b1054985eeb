"""How many jobs of a queue a batch takes, and from which on: the first ones, or those behind them.

    due at   10  12  31  32  33  34  35  36  38  40        a batch of 8 begun now is there at 25
             └────┘  └──────────────────────────┘
             a batch of 2, there at 9; or 8 of the others, at twice the throughput

The jobs that must be answered first allow only a small batch. If those behind them can wait for it, and all
together do not fill the largest batch, they are answered first. If not, somebody will be late, and what is
answered on time is the most where batches are large: then the first ones are left to another resource, or
given up. So a queue that was full for a while does not stay at small batches. (While the first ones went
before wherever the others could wait, 1.5% of the goodput in overload was lost. Nexus drops early for the
same reason: Shen et al., "Nexus: A GPU Cluster Engine for Accelerating DNN-Based Video Analysis", SOSP 2019,
section 6.3.)
"""

from __future__ import annotations

from ..profile import Profile
from .queue import Queue


def size(queue: Queue, profile: Profile, start_s: float, largest: int) -> tuple[int, int]:
    """The place of the first job, and how many jobs from there on; (0, 0): none can be met.

    `largest` is the most samples that a batch may have.
    """
    entries = queue.entries
    wanted = min(queue.samples, largest)
    allowed = profile.largest(entries[0][0] - start_s)
    if allowed >= wanted:
        return 0, queue.count(0, wanted)
    count = queue.count(0, allowed)
    if count:
        if count == len(entries):
            return 0, count
        rest_s = profile.safe_s(min(queue.samples - allowed, largest))
        if queue.samples < largest and entries[count][0] >= start_s + profile.safe_s(allowed) + rest_s:
            return 0, count
    # The larger the batch, the later it is there, and the fewer can be in it: where the two meet is the most.
    enough, too_many = allowed, wanted + 1
    while too_many - enough > 1:
        samples = (enough + too_many) // 2
        first = queue.due_from(start_s + profile.safe_s(samples))
        if queue.samples * (len(entries) - first) >= samples * len(entries):
            enough = samples
        else:
            too_many = samples
    first = queue.due_from(start_s + profile.safe_s(enough))
    if first < len(entries):
        behind = queue.count(first, min(largest, profile.largest(entries[first][0] - start_s)))
        if behind and (not count or profile.per_s(queue.samples_of(first, behind)) > profile.per_s(allowed)):
            return first, behind
    return 0, count
