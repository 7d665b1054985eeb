"""Where a rank's time went: compute, exposed communication and idle, as shares of its training time.

    compute   ██████████░░░░██████░░░░░░
    wire      ░░░░░░██████████░░░░░░██░░
              ·····│hid·│exp·│·····│i│x│i     exposed: the wire is busy while no kernel runs
                                              hidden:  the wire is busy while a kernel runs (part of compute)
                                              idle:    neither

compute + exposed + idle = 1; exposed + hidden is the wire's occupancy. Pure functions of intervals: int64
arrays of shape (n, 2), rows [start, end) in nanoseconds. "Disjoint" means sorted, without overlap and without
empty rows; `union` makes any array so.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import astuple, dataclass
from itertools import groupby
from math import nan
from typing import Final

import numpy as np
from numpy.typing import NDArray

from .trace import COMPUTE, WIRE, Span

Intervals = NDArray[np.int64]

EXCHANGE: Final = frozenset({"reduce", "encode", "decode"})
"""Phases of what the exchange costs on the lane: it computes, but a single rank would do without."""

REST: Final = "rest"
"""The kernel that runs once nothing of any step is left to do (loop.py)."""


@dataclass(frozen=True, slots=True)
class Shares:
    """Parts of a rank's training time, each between 0 and 1; `seconds` is the whole."""

    seconds: float
    compute: float
    exposed_communication: float
    hidden_communication: float
    idle: float
    exchange: float = 0.0  # of compute

    @property
    def wire(self) -> float:
        """Occupancy: at least one portion was in flight."""
        return self.exposed_communication + self.hidden_communication

    @property
    def hidden_of_wire(self) -> float:
        """Share of the wire's time in which a kernel ran; NaN where nothing was sent."""
        return self.hidden_communication / self.wire if self.wire else nan


@dataclass(frozen=True, slots=True)
class ModelShares:
    """Parts of a rank's training time that one of several models took."""

    compute: float
    exposed: float  # its portions were in flight and no kernel ran
    hidden_by_own: float  # its portions were in flight while its own kernels ran
    hidden_by_others: float  # while kernels of other models ran


def intervals(spans: Iterable[Span]) -> Intervals:
    """The spans' times as an array, in their order, overlaps included."""
    return np.array([(span.start_ns, span.end_ns) for span in spans], np.int64).reshape(-1, 2)


def union(a: Intervals) -> Intervals:
    """The times covered by at least one row, disjoint."""
    a = a[a[:, 1] > a[:, 0]]
    if not len(a):
        return a
    a = a[np.argsort(a[:, 0], kind="stable")]
    reach = np.maximum.accumulate(a[:, 1])  # a nested row must not pull the end back
    first = np.concatenate(([True], a[1:, 0] > reach[:-1]))
    last = np.concatenate((first[1:], [True]))
    return np.column_stack((a[first, 0], reach[last]))


def complement(a: Intervals, within: Intervals) -> Intervals:
    """The times of `within` that `a` does not cover. Both disjoint."""
    if not len(within):
        return within
    before, after = within[0, 0], within[-1, 1]
    holes = np.column_stack((np.append(before, a[:, 1]), np.append(a[:, 0], after)))
    return intersection(holes[holes[:, 1] > holes[:, 0]], within)


def intersection(a: Intervals, b: Intervals) -> Intervals:
    """The times covered by both. Both disjoint."""
    # Row i of `a` meets the rows first[i]:last[i] of `b`; most rows meet one, so no pair is built in vain.
    first = np.searchsorted(b[:, 1], a[:, 0], side="right")
    last = np.searchsorted(b[:, 0], a[:, 1], side="left")
    count = np.maximum(last - first, 0)
    i = np.repeat(np.arange(len(a)), count)
    j = np.arange(len(i)) - np.repeat(np.cumsum(count) - count, count) + first[i]
    return np.column_stack((np.maximum(a[i, 0], b[j, 0]), np.minimum(a[i, 1], b[j, 1])))


def length(a: Intervals) -> int:
    """Nanoseconds covered. Disjoint."""
    return int((a[:, 1] - a[:, 0]).sum())


def training_window(spans: Iterable[Span]) -> Intervals:
    """When the rank was training: the stretches of steps between those of evaluations and rests. Disjoint.

    A stretch reaches to where its last step came to rest: a rank that has little to compute has waited for
    others until then. (One without micro-batches and updates, in a run that evaluated after every step, was
    said to compute for 100% of its time.) What else the lane does amid steps, as answering a request, does
    not end a stretch: without the pauses around 1,200 requests a rank that computed 60% was said to compute
    77%. What comes between two stretches (an evaluation, a checkpoint) is in no share. The first step is left
    out where there are more than two: it fills caches, and a short run would show little else.
    """
    compute = sorted(
        (s for s in spans if s.track == COMPUTE and ("step" in s.args or s.evaluates or s.name == REST)),
        key=lambda span: span.start_ns,
    )
    steps = sorted({span.args["step"] for span in compute if "step" in span.args})
    first = steps[1 if len(steps) > 2 else 0] if steps else 0
    stretches: list[tuple[int, int]] = []
    trained = False  # just before
    for training, stretch in groupby(compute, key=lambda span: span.args.get("step", first - 1) >= first):
        rows = list(stretch)
        if training:
            stretches.append((rows[0].start_ns, max(span.end_ns for span in rows)))
        elif trained and rows[0].name == REST:
            start_ns, end_ns = stretches[-1]
            stretches[-1] = start_ns, max(end_ns, rows[0].start_ns)
        trained = training
    return union(np.array(stretches, np.int64).reshape(-1, 2))


def summarise(spans: Iterable[Span], window: Intervals | None = None) -> Shares:
    """The shares of one rank's spans over `window` (by default its training window)."""
    spans = list(spans)
    if window is None:
        window = training_window(spans)
    compute, wire, idle = activity(spans, window)
    whole = length(window)
    if not whole:
        return Shares(0.0, 0.0, 0.0, 0.0, 0.0)
    hidden = length(intersection(compute, wire))
    exchange = union(intervals(s for s in spans if s.track == COMPUTE and s.args.get("phase") in EXCHANGE))
    return Shares(
        seconds=whole / 1e9,
        compute=length(compute) / whole,
        exposed_communication=(length(wire) - hidden) / whole,
        hidden_communication=hidden / whole,
        idle=length(idle) / whole,
        exchange=length(intersection(exchange, window)) / whole,
    )


def models(spans: Iterable[Span]) -> list[str]:
    """The models that were trained, in order of their first kernel; one without a name is ""."""
    training = (span for span in spans if span.track == COMPUTE and "step" in span.args)
    return list(dict.fromkeys(span.args.get("model", "") for span in training))


def summarise_models(spans: Iterable[Span]) -> dict[str, ModelShares]:
    """What each model took of the rank's training window."""
    spans = list(spans)
    window = training_window(spans)
    whole = length(window)
    if not whole:
        return {}
    all_compute, _, _ = activity(spans, window)
    found = {}
    for model in models(spans):
        compute, wire, _ = activity([s for s in spans if s.args.get("model", "") == model], window)
        own, any_ = length(intersection(compute, wire)), length(intersection(all_compute, wire))
        found[model] = ModelShares(
            compute=length(compute) / whole,
            exposed=(length(wire) - any_) / whole,
            hidden_by_own=own / whole,
            hidden_by_others=(any_ - own) / whole,
        )
    return found


def mean(shares: Sequence[Shares]) -> Shares:
    """The mean over ranks of each share."""
    columns = zip(*map(astuple, shares), strict=True)
    return Shares(*(sum(column) / len(shares) for column in columns))


def activity(spans: Iterable[Span], window: Intervals) -> tuple[Intervals, Intervals, Intervals]:
    """When within `window` a kernel ran, the wire was busy, and neither: (compute, wire, idle). Disjoint."""
    spans = list(spans)
    compute, wire = (
        intersection(union(intervals(span for span in spans if span.track == track)), window)
        for track in (COMPUTE, WIRE)
    )
    return compute, wire, complement(union(np.concatenate((compute, wire))), window)
