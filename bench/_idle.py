"""Where a step's time goes on one rank, from its spans: the lane's gaps and the wire's, by cause.

lane  ███forward███tally███backward██████████░░░░░░░░▒▒update██…
                                             arrival  wake          waits for the wire; then for the loop
wire                          ────────────────────────               to see it and the lane to start
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence

import numpy as np

from weft.runtime.observe.shares import complement, intersection, intervals, length, union
from weft.runtime.observe.trace import COMPUTE, WIRE, Span

SHORT_NS = 20_000  # from one kernel to the next
LANE = ("lane_between", "lane_arrival", "lane_wake", "lane_other")
WIRES = ("wire_unready", "wire_late")


def causes(spans: Sequence[Span], window: tuple[int, int]) -> dict[str, float]:
    """Seconds within `window` (nanoseconds) by what lane and wire did in them.

    lane_busy, lane_between (kernels), lane_arrival (waits for a portion that travels), lane_wake (that has
    arrived), lane_other; wire_busy, wire_unready (nothing to send is ready), wire_late (it is, and not sent).
    """
    whole = np.array([window], np.int64)
    lane = sorted((s for s in spans if s.track == COMPUTE), key=lambda s: s.start_ns)
    wire = sorted((s for s in spans if s.track == WIRE), key=lambda s: s.start_ns)
    busy, moving = (intersection(union(intervals(track)), whole) for track in (lane, wire))
    found = {"lane_busy": length(busy), **dict.fromkeys(LANE, 0), "wire_busy": length(moving)}
    found |= dict.fromkeys(WIRES, 0)

    arrived = {(s.args.get("model"), s.args["step"], s.args["portion"]): s.end_ns for s in wire}
    starts = [span.start_ns for span in lane]
    for first, last in complement(busy, whole).tolist():
        place = bisect_left(starts, last)
        args = lane[place].args if place < len(lane) else {}
        there = arrived.get((args.get("model"), args.get("step"), args.get("portion")))
        if last - first < SHORT_NS:
            found["lane_between"] += last - first
        elif there is None:
            found["lane_other"] += last - first
        else:
            there = min(max(there, first), last)
            found["lane_arrival"] += there - first
            found["lane_wake"] += last - there

    posted = [span.start_ns for span in wire]
    for first, last in complement(moving, whole).tolist():
        place = bisect_left(posted, last)
        waited_ns = wire[place].args["waited_us"] * 1e3 if place < len(wire) else 0
        ready = min(max(round(last - waited_ns), first), last)
        found["wire_unready"] += ready - first
        found["wire_late"] += last - ready
    return {name: ns / 1e9 for name, ns in found.items()}
