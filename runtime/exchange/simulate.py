"""A whole step in virtual time, as the runtime would run a plan: what it takes, and where lane and wire idle.

    lane:   backward in the plan's order ─────────────────── │ next forward, waiting for its portions ── │
    wire:       the plan's portions, in its order ──────────────────────────────────── │ nothing to send

All steps are alike, so one is enough: forward needs every portion, hence the wire is empty when backward
starts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from .plan import Plan, Timings
from .virtual import Choose, VirtualWire


@dataclass(frozen=True, slots=True)
class Forward:
    """One item of the next step's forward pass, and the portions whose update it waits for."""

    seconds: float
    needs: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Simulated:
    """A step from the start of one backward to the start of the next; by portion, when what happened."""

    period_s: float
    lane_idle_s: float
    wire_idle_s: float
    ready_s: tuple[float, ...]
    posted_s: tuple[float, ...]
    arrived_s: tuple[float, ...]
    used_s: tuple[float, ...]  # start of its update
    forward_s: tuple[float, ...]  # end of each item


def simulate(
    timings: Timings,
    forward: Sequence[Forward],
    plan: Plan,
    overhead_s: Sequence[float],
    *,
    latency_s: float = 0.0,
    rounds: int = 1,
) -> Simulated:
    """Follow a plan through one step. `overhead_s`, by portion, is what the lane spends on its update.

    Updates are made when forward needs them, or while it waits for others. `latency_s` passes between the end
    of each of a portion's `rounds` on the wire and its notice.
    """
    plan.check(timings)
    wire = VirtualWire(timings.wire_s, plan.credit, _followed(plan.order), latency_s=latency_s, rounds=rounds)
    now_s = idle_s = 0.0
    ready_s: dict[int, float] = {}
    for index in plan.backward:
        now_s += timings.backward[index].seconds
        completes = timings.backward[index].completes
        wire.give(completes, now_s)
        ready_s.update(dict.fromkeys(completes, now_s))
    wire.finish()

    used_s: dict[int, float] = {}
    forward_s: list[float] = []
    arriving = list(wire.arrived_s)[::-1]  # the next to arrive last

    def update(portion: int) -> None:
        nonlocal now_s, idle_s
        arriving.remove(portion)
        idle_s += max(0.0, wire.arrived_s[portion] - now_s)
        used_s[portion] = now_s = max(now_s, wire.arrived_s[portion])
        now_s += overhead_s[portion]

    for item in forward:
        while needed := [portion for portion in item.needs if portion not in used_s]:
            first = min(needed, key=wire.arrived_s.__getitem__)
            update(first if wire.arrived_s[first] <= now_s else arriving[-1])
        now_s += item.seconds
        forward_s.append(now_s)
    while arriving:
        update(arriving[-1])
    return Simulated(
        period_s=now_s,
        lane_idle_s=idle_s,
        wire_idle_s=now_s - sum(timings.wire_s),
        ready_s=_by_portion(ready_s),
        posted_s=_by_portion(wire.posted_s),
        arrived_s=_by_portion(wire.arrived_s),
        used_s=_by_portion(used_s),
        forward_s=tuple(forward_s),
    )


def _followed(order: Sequence[int]) -> Choose:
    """Posts in the given order, whatever else is ready."""
    left = list(order)[::-1]

    def choose(ready: list[int]) -> int | None:
        return left.pop() if left and left[-1] in ready else None

    return choose


def _by_portion(times: dict[int, float]) -> tuple[float, ...]:
    return tuple(times[portion] for portion in sorted(times))
