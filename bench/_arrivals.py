"""Open-loop arrivals: when requests are sent is drawn beforehand, whatever becomes of the ones before."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from random import Random

from weft.runtime.serve.policy import Job, ServiceClass

CLASSES = (
    ServiceClass("interactive", priority=1, deadline_s=0.050),
    ServiceClass("standard", priority=2, deadline_s=0.200),
    ServiceClass("batch", priority=3, deadline_s=2.0),
)
MIX = (0.6, 0.3, 0.1)

BURST, BURST_S, CALM_S = 2.0, 0.1, 0.3
"""Bursts: for 0.1 s on average twice the mean rate, then for 0.3 s on average two thirds of it."""


@dataclass(frozen=True, slots=True)
class Load:
    """So many requests a second for so many seconds, of families by their shares."""

    per_s: float
    seconds: float
    families: Sequence[tuple[str, float]]
    bursty: bool = False
    seed: int = 1


def times(load: Load, random: Random) -> Iterator[float]:
    """When requests are sent: a Poisson process, whose rate switches between two values if it is bursty."""
    calm = (1 - BURST * BURST_S / (BURST_S + CALM_S)) * (BURST_S + CALM_S) / CALM_S
    now_s, switch_s, factor = 0.0, 0.0, 1.0
    while True:
        if load.bursty and now_s >= switch_s:
            factor = calm if factor == BURST else BURST
            switch_s = now_s + random.expovariate(1 / (BURST_S if factor == BURST else CALM_S))
        step_s = random.expovariate(load.per_s * factor)
        if load.bursty and now_s + step_s > switch_s:
            now_s = switch_s
            continue
        now_s += step_s
        if now_s > load.seconds:
            return
        yield now_s


def jobs(load: Load) -> list[Job]:
    """The requests of MEASURE's mix: three classes, deadlines of 50 ms, 200 ms and 2 s."""
    random = Random(load.seed)
    names, shares = zip(*load.families, strict=True)
    drawn = []
    for number, now_s in enumerate(times(load, random)):
        each = random.choices(CLASSES, MIX)[0]
        family = random.choices(names, shares)[0]
        drawn.append(Job(number, family, now_s, now_s + each.deadline_s, each.name))
    return drawn
