"""Nexus's plan: which sessions each resource serves in its round, and in batches of what size.

After Shen et al., "Nexus: A GPU Cluster Engine for Accelerating DNN-Based Video Analysis", SOSP 2019, section
6.1 (squishy bin packing), and its sources (scheduler/backend_delegate.cpp). A resource goes round its
sessions, one batch each. Where a round takes D, a session with the rate r needs batches of r·D, and its jobs
wait at most a round and their batch: D + latency(r·D) must be within its deadline, and all batches within D.
The longest D that all deadlines allow is the most efficient one.

Nexus adds GPUs until all rates are met. Here resources are given: all rates are multiplied by the largest
factor that fits, so that an overload is shared by all, and a spare capacity too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import ceil

from ..profile import Profile

SMALLEST = 0.05
"""A part of a session less than this is not worth a place in a round."""


@dataclass(frozen=True, slots=True)
class Session:
    """Jobs for one model with one deadline, and how many come a second; of a class: two may be alike else."""

    model: str
    max_batch: int
    deadline_s: float
    per_s: float
    service_class: str


Share = tuple[Session, float]
"""A session, and the rate of it that one resource serves."""

Round = list[tuple[Session, int]]
"""Sessions in turn, with their batch sizes."""


def plan(sessions: Sequence[Session], profiles: Mapping[str, Mapping[str, Profile]]) -> dict[str, Round]:
    """The round of each resource; `profiles` by resource and model.

    Tried in both orders, short deadlines on fast resources first, and long ones on slow resources first; that
    which serves more is taken.
    """
    best_factor, best = 0.0, {resource: list[Share]() for resource in profiles}
    for short_first in (True, False):
        low, high = best_factor, 4.0
        for _ in range(12):
            factor = (low + high) / 2
            packed = _pack(sessions, profiles, factor, short_first)
            if packed is None:
                high = factor
            else:
                low = best_factor = factor
                best = packed
    return {resource: _round(shares, profiles[resource]) for resource, shares in best.items()}


def _pack(
    sessions: Sequence[Session],
    profiles: Mapping[str, Mapping[str, Profile]],
    factor: float,
    short_first: bool,
) -> dict[str, list[Share]] | None:
    speed = {
        resource: max((own.per_s(own.max_batch) for own in models.values()), default=0.0)
        for resource, models in profiles.items()
    }
    packed: dict[str, list[Share]] = {
        name: [] for name in sorted(profiles, key=lambda name: speed[name], reverse=short_first)
    }
    for session in sorted(sessions, key=lambda each: each.deadline_s, reverse=not short_first):
        left = 1.0
        for resource, shares in packed.items():
            if session.model not in profiles[resource]:
                continue
            part = _part(session, left, factor, shares, profiles[resource])
            if part > 0.0:
                shares.append((session, part * factor * session.per_s))
                left -= part
            if left < 0.01:
                break
        else:
            return None
    return packed


def _part(
    session: Session, left: float, factor: float, shares: list[Share], profiles: Mapping[str, Profile]
) -> float:
    """The largest part of the session, at most `left`, that fits beside `shares`."""
    low, high = 0.0, left
    part = left
    for _ in range(6):
        shared = [*shares, (session, part * factor * session.per_s)]
        cycle_s = _cycle_s(shared, profiles)
        if cycle_s >= sum(profiles[s.model].expected_s(_batch(s, rate, cycle_s)) for s, rate in shared) > 0:
            low = part
            if part == left:
                break
        else:
            high = part
        part = (low + high) / 2
    return low if low > SMALLEST else 0.0


def _cycle_s(shares: Sequence[Share], profiles: Mapping[str, Profile]) -> float:
    """The longest round that all deadlines allow."""
    low, high = 0.0, min(max(session.deadline_s for session, _ in shares), 4.0)
    for _ in range(14):
        cycle_s = (low + high) / 2
        meets = all(
            rate * cycle_s <= session.max_batch
            and cycle_s + profiles[session.model].safe_s(_batch(session, rate, cycle_s)) <= session.deadline_s
            for session, rate in shares
        )
        low, high = (cycle_s, high) if meets else (low, cycle_s)
    return low


def _batch(session: Session, rate: float, cycle_s: float) -> int:
    return max(1, min(session.max_batch, ceil(rate * cycle_s)))


def _round(shares: Sequence[Share], profiles: Mapping[str, Profile]) -> Round:
    if not shares:
        return []
    cycle_s = _cycle_s(shares, profiles)
    return [(session, _batch(session, rate, cycle_s)) for session, rate in shares]
