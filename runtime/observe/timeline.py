"""The picture of what all ranks do in a few steps: kernels by phase, the wire below them, gaps left empty.

rank 0  ▐forward▌▐weight gradient▌▐input gradient▌▐update▌     kernels, named where there is room
        ───────────────────━━━━━━━━━━━━━━━━━━━━━━━━             wire: pale where kernels hide it
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import median_low
from typing import Any, Final

import numpy as np
from matplotlib.figure import Figure

from .chrome import rows
from .picture import (
    BLUE,
    CYAN,
    FAINT,
    GREEN,
    HATCH,
    INK,
    PURPLE,
    QUIET,
    RED,
    YELLOW,
    key,
    picture,
    place,
    title,
)
from .shares import Intervals, activity, complement, intersection, intervals, summarise, union
from .trace import COMPUTE, WIRE, RankTrace, Span

PHASES: Final = {
    "load": ("load", CYAN),
    "forward": ("forward", BLUE),
    "input_gradient": ("input gradient", YELLOW),
    "weight_gradient": ("weight gradient", RED),
    "update": ("update", GREEN),
}
PART_OF: Final = {"sum": "weight_gradient"}  # of later micro-batches: too short for a colour of its own
OTHER: Final = "#BBBBBB"  # a phase that is none of these
WIRE_HIDDEN: Final = "#E2BDD1"
WIRE_EXPOSED: Final = PURPLE
IDLE_HATCH: Final = "//////"

STEPS_SHOWN: Final = 2
RANKS_SHOWN: Final = 16
RANK_IN: Final = 0.52  # height of a rank
ABOVE_IN, BELOW_IN, LEFT_IN, RIGHT_IN = 1.20, 0.46, 0.86, 1.30


def steady_steps(trace: RankTrace, count: int = STEPS_SHOWN) -> list[tuple[int, int]]:
    """`count` successive steps that are typical of the run, and the one after them: (step, when it starts).

    Typical is the stretch whose length is nearest to the median one, the latest of equals. It thereby avoids
    the first steps, evaluations and hiccups. A single step comes alone; no step, an empty list.
    """
    starts: dict[int, int] = {}
    for span in trace.spans:
        # A step's updates run while the next one has begun.
        if span.track == COMPUTE and "step" in span.args and span.args.get("phase") != "update":
            starts.setdefault(span.args["step"], span.start_ns)
    ordered = sorted(starts.items())
    count = min(count, len(ordered) - 1)
    if count < 1:
        return ordered
    lengths = [end[1] - start[1] for start, end in zip(ordered, ordered[count:], strict=False)]
    typical = median_low(lengths)
    best = min(range(len(lengths)), key=lambda i: (abs(lengths[i] - typical), -i))
    return ordered[best : best + count + 1]


def draw_timeline(path: Path, name: str, traces: Sequence[RankTrace]) -> bool:
    """Draw typical steps of all ranks to `path`; False, and no picture, if the traces hold no step."""
    steps = steady_steps(traces[0]) if traces else []
    if not steps:
        return False
    last = max(span.end_ns for span in traces[0].spans)
    start_ns, end_ns = steps[0][1], steps[-1][1] if len(steps) > 1 else last
    shown = traces[:RANKS_SHOWN]
    with picture(path, ABOVE_IN + BELOW_IN + RANK_IN * len(shown)) as figure:
        ranks = f"{len(traces)} ranks" if len(traces) > 1 else "one rank"
        numbers = [f"{step + 1:,}" for step, _ in (steps[:-1] or steps)]
        which = f"steps {' and '.join(numbers)}" if len(numbers) > 1 else f"step {numbers[0]}"
        of = f", ranks 0 to {RANKS_SHOWN - 1}" if len(traces) > len(shown) else ""
        title(
            figure,
            f"{name} on {ranks}",
            f"What each rank computes and sends in {which}{of}; at the right, shares of the whole run",
        )
        timeline = _Timeline(figure, shown, start_ns, end_ns)
        for row, trace in enumerate(shown):
            timeline.rank(row, trace)
            timeline.margins(row, trace)
        timeline.frame(steps)
        timeline.key()
    return True


class _Timeline:
    """Axes over `[start_ns, end_ns)` with one unit of height for each rank, the first on top."""

    def __init__(self, figure: Figure, traces: Sequence[RankTrace], start_ns: int, end_ns: int) -> None:
        self._figure = figure
        self._start_ns, self._end_ns = start_ns, end_ns
        self._window = np.array([[start_ns, end_ns]], np.int64)
        self._traces = traces
        self._phases: set[str | None] = set()
        self._waited = False
        self._axes = place(figure, LEFT_IN, RIGHT_IN, ABOVE_IN, BELOW_IN)
        # Milliseconds suit most models; a large one takes seconds for a step.
        self._unit, self._unit_ns = ("s", 1e9) if end_ns - start_ns > 2e9 else ("ms", 1e6)
        self._axes.set_xlim(0, self._x(end_ns))
        self._axes.set_ylim(len(traces), 0)
        inches = figure.get_figwidth() - LEFT_IN - RIGHT_IN
        self._ns_per_inch = (end_ns - start_ns) / inches

    def rank(self, row: int, trace: RankTrace) -> None:
        """The lane's kernels, and below them the wire."""
        spans = [s for s in trace.spans if s.end_ns > self._start_ns and s.start_ns < self._end_ns]
        busy, _, idle = activity(spans, self._window)
        # A gap of less than a pixel would still leave a hairline.
        invisible_ns = self._ns_per_inch / 150
        idle = idle[idle[:, 1] - idle[:, 0] > invisible_ns]
        pauses = complement(busy, self._window)
        busy = complement(pauses[pauses[:, 1] - pauses[:, 0] > invisible_ns], self._window)
        self._waited = self._waited or len(idle) > 0

        self._bars(row + 0.06, 0.50, self._window, FAINT)
        self._bars(row + 0.06, 0.50, idle, "white", hatch=IDLE_HATCH, edgecolor=HATCH, linewidth=0)
        kernels = [span for span in spans if span.track == COMPUTE]
        for phase in {_phase(span) for span in kernels}:
            colour = PHASES[phase][1] if phase else OTHER
            self._bars(row + 0.06, 0.50, self._seen(s for s in kernels if _phase(s) == phase), colour)
            self._phases.add(phase)
        self._names(row, kernels)

        lanes = rows(span for span in spans if span.track == WIRE)
        for number, lane in enumerate(lanes):
            height = 0.26 / len(lanes)
            times = self._seen(lane)
            self._bars(row + 0.62 + number * height, height * 0.85, times, WIRE_EXPOSED)
            self._bars(row + 0.62 + number * height, height * 0.85, intersection(times, busy), WIRE_HIDDEN)

    def margins(self, row: int, trace: RankTrace) -> None:
        """The rank's name at the left, its shares of the whole run at the right."""
        hosts = len({trace.host for trace in self._traces}) > 1
        self._beside(-0.10, row + 0.31, f"rank {trace.rank}", fontweight="bold", ha="right")
        self._beside(-0.10, row + 0.74, trace.host if hosts else "wire", color=QUIET, fontsize=7, ha="right")
        shares = summarise(trace.spans)
        lines = (
            (shares.compute, "compute", INK),
            (shares.exposed_communication, "wire, exposed", WIRE_EXPOSED),
            (shares.idle, "idle", QUIET),
        )
        width = self._figure.get_figwidth() - LEFT_IN - RIGHT_IN
        for line, (share, what, colour) in enumerate(lines):
            y = row + 0.17 + 0.28 * line
            self._beside(width + 0.38, y, f"{share:.0%}", color=colour, fontsize=7.5, ha="right")
            self._beside(width + 0.44, y, what, color=colour, fontsize=7.5, ha="left")

    def frame(self, steps: Sequence[tuple[int, int]]) -> None:
        """Where the steps of the first rank begin, and the time."""
        self._axes.spines["left"].set_visible(False)
        self._axes.set_yticks([])
        self._axes.set_xlabel(self._unit, loc="right", labelpad=-1)
        for step, at_ns in steps[:-1] or steps:
            x = self._x(at_ns)
            self._axes.axvline(x, color=QUIET, linewidth=0.6, linestyle=(0, (2, 2)), zorder=0)
            self._axes.text(x, -0.05, f"step {step + 1:,}", va="bottom", fontsize=7.5, color=QUIET)

    def key(self) -> None:
        """The colours that occur."""
        entries = [(words, colour, "") for phase, (words, colour) in PHASES.items() if phase in self._phases]
        if None in self._phases:
            entries.append(("other", OTHER, ""))
        if any(span.track == WIRE for trace in self._traces for span in trace.spans):
            entries += [("wire, hidden", WIRE_HIDDEN, ""), ("wire, exposed", WIRE_EXPOSED, "")]
        if self._waited:
            entries.append(("idle", "white", IDLE_HATCH))
        key(self._figure, entries, 0.76)

    def _x(self, ns: float) -> float:
        return (ns - self._start_ns) / self._unit_ns

    def _seen(self, spans: Iterable[Span]) -> Intervals:
        return intersection(union(intervals(spans)), self._window)

    def _bars(self, top: float, height: float, times: Intervals, colour: str, **style: Any) -> None:
        pieces = [(self._x(start), (end - start) / self._unit_ns) for start, end in times.tolist()]
        self._axes.broken_barh(pieces, (top, height), facecolors=colour, **{"linewidth": 0, **style})

    def _names(self, row: int, kernels: Iterable[Span]) -> None:
        """The nodes' names in their kernels' bars, where there is room, and hairlines between the bars."""
        ends = []
        for span in kernels:
            left, right = max(span.start_ns, self._start_ns), min(span.end_ns, self._end_ns)
            width_in = (right - left) / self._ns_per_inch
            if width_in > 0.03:
                ends.append(self._x(right))
            name = span.name.rpartition(".")[0]
            if name and width_in > 0.056 * len(name) + 0.04:
                x = self._x((left + right) / 2)
                colour = "white" if _phase(span) in ("forward", "update") else INK
                self._axes.text(x, row + 0.315, name, color=colour, fontsize=6.5, ha="center", va="center")
        self._axes.vlines(ends, row + 0.06, row + 0.56, colors="white", linewidth=0.5)

    def _beside(self, x_in: float, y: float, text: str, **style: Any) -> None:
        """Text beside the axes: `x_in` inches from their left edge, at the height of the ranks."""
        x = x_in / (self._figure.get_figwidth() - LEFT_IN - RIGHT_IN)
        self._axes.text(x, y, text, transform=self._axes.get_yaxis_transform(), va="center", **style)


def _phase(span: Span) -> str | None:
    phase = span.args.get("phase", "")
    phase = PART_OF.get(phase, phase)
    return phase if phase in PHASES else None
