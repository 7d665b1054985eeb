"""One rank over a stretch of time: its kernels, below them what it sends, and how the two hang together.

    lane   ▐ forward ▌▐ weight gradient ▌▐ input gradient ▌   ▐update▌     kernels, named where there is room
                                        ▾                     ▴            ready, and used, of a portion
                                         ╲                   ╱             the longer it waits, the flatter
    wire                                  ▐▬▬▬▬▬▬ 2a ▬▬▬▬▬▬▬▌              pale where kernels hide it

A portion is called by its layer, counted in forward order, and a letter in the order of readiness; kernels go
by their layer's number where there is no room for its name.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from functools import cached_property
from typing import Any, Final

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.patches import Rectangle

from .chrome import rows
from .labels import forward_order, labels, layers, model_of, portion_of
from .palette import EVALUATION, Palette, ink_on, phase_of
from .picture import FAINT, HATCH, QUIET
from .portions import journeys
from .shares import Intervals, Shares, activity, complement, intersection, intervals, summarise, union
from .trace import COMPUTE, WIRE, RankTrace, Span

IDLE_HATCH: Final = "//////"
READY_MARK, USED_MARK = "v", "^"

LANE_IN: Final = 0.28  # heights
SLOPE_IN: Final = 0.13  # between lane and wire
WIRE_ROW_IN: Final = 0.125
WIRE_MOST_IN: Final = 0.75  # of all rows: where they are many they become narrow
NAMED_ROW_IN: Final = 0.10  # narrower ones have no room for a name
LONGEST_LYING_IN: Final = 0.30  # slopes up to the lane would cover all others


class Strip:
    """A rank's trace from `start_ns` to `end_ns`; draws itself on axes whose vertical unit is the inch."""

    def __init__(self, trace: RankTrace, start_ns: int, end_ns: int, palette: Palette) -> None:
        self.trace = trace
        self.start_ns, self.end_ns = start_ns, end_ns
        self._window = np.array([[start_ns, end_ns]], np.int64)
        self._palette = palette
        self._spans = [s for s in trace.spans if s.end_ns > start_ns and s.start_ns < end_ns]
        self._kernels = [span for span in self._spans if span.track == COMPUTE]
        self._wire = rows(span for span in self._spans if span.track == WIRE)
        self.sends = any(span.track == WIRE for span in trace.spans)
        visible_ns = (end_ns - start_ns) / 1000
        long = [span for span in self._kernels if span.end_ns - span.start_ns > visible_ns]
        self.seen = {(model_of(span), phase_of(span)) for span in long}
        _, _, idle = activity(self._spans, self._window)
        self._idle = idle
        # Of all steps that the stretch touches the whole, since a portion is used in the next.
        steps = {_step(span) for span in self._spans}
        self._near = [span for span in trace.spans if "step" in span.args and _step(span) in steps]
        self._journeys = [
            j
            for j in journeys(RankTrace(trace.rank, trace.host, tuple(self._near)))
            if j.posted_ns < end_ns and max(j.done_ns, j.used_ns or 0) > start_ns
        ]
        self._names: dict[tuple[str, int, str], str] = {}  # by model, step, and name in the trace
        self._layers: dict[tuple[str, str], int] = {}  # by model and node
        self._number_layers()

    @cached_property
    def shares(self) -> Shares:
        """The rank's of the whole run."""
        return summarise(self.trace.spans)

    @cached_property
    def shown_shares(self) -> Shares:
        """The rank's of the stretch that is shown."""
        return summarise(self._spans, self._window)

    @property
    def waited(self) -> bool:
        """Whether the rank was idle at all."""
        return len(self._idle) > 0

    @property
    def marks(self) -> set[str]:
        """The marks that it has."""
        found = {READY_MARK} if any(j.ready_ns is not None for j in self._journeys) else set()
        return found | ({USED_MARK} if any(j.used_ns is not None for j in self._journeys) else set())

    @property
    def wire_in(self) -> float:
        """Height of all rows of the wire."""
        return min(WIRE_MOST_IN, WIRE_ROW_IN * max(1, len(self._wire))) if self.sends else 0.0

    @property
    def height_in(self) -> float:
        """Height of the whole."""
        return LANE_IN + (SLOPE_IN + self.wire_in if self.sends else 0.0)

    def draw(self, axes: Axes, top: float, unit_ns: float, ns_per_inch: float, origin_ns: int) -> None:
        """Draw, `origin_ns` at the axes' zero."""
        self._axes, self._top = axes, top
        self._unit_ns, self._ns_per_inch, self._origin_ns = unit_ns, ns_per_inch, origin_ns
        busy, _, _ = activity(self._spans, self._window)
        # A gap of less than a pixel would still leave a hairline.
        invisible_ns = ns_per_inch / 150
        pauses = complement(busy, self._window)
        busy = complement(pauses[pauses[:, 1] - pauses[:, 0] > invisible_ns], self._window)
        idle = self._idle[self._idle[:, 1] - self._idle[:, 0] > invisible_ns]
        self._bars(top, LANE_IN, self._window, FAINT)
        self._bars(top, LANE_IN, idle, "white", hatch=IDLE_HATCH, edgecolor=HATCH, linewidth=0)
        self._lane()
        if self.sends:
            self._slopes()
            self._transfers(busy)

    def _number_layers(self) -> None:
        cuts: dict[tuple[str, int], set[str]] = defaultdict(set)
        for span in self._near:
            if portion_of(span) is not None:
                cuts[_step(span)].add(_whole_name(span))
        orders = {model: forward_order(self._near, model) for model, _ in cuts}
        for (model, step), names in cuts.items():
            for name, label in labels(names, orders[model]).items():
                self._names[model, step, name] = label.short
            for node, place in layers(names, orders[model]).items():
                self._layers[model, node] = place

    def _lane(self) -> None:
        by_colour: dict[str, list[Span]] = defaultdict(list)
        for span in self._kernels:
            by_colour[self._colour(span)].append(span)
        for colour, spans in by_colour.items():
            self._bars(self._top, LANE_IN, self._seen(spans), colour)
        ends = []
        for span in self._kernels:
            left, right = max(span.start_ns, self.start_ns), min(span.end_ns, self.end_ns)
            width_in = (right - left) / self._ns_per_inch
            if width_in > 0.03:
                ends.append(self._x(right))
            name = next((n for n in self._kernel_names(span) if width_in > 0.056 * len(n) + 0.03), "")
            if name:
                x, y = self._x((left + right) / 2), self._top + LANE_IN / 2 + 0.005
                self._text(x, y, name, ink_on(self._colour(span)), 6.5)
        self._axes.vlines(ends, self._top, self._top + LANE_IN, colors="white", linewidth=0.5)

    def _slopes(self) -> None:
        """From ready on the lane down to posted on the wire, from done up to used."""
        above, below = self._top + LANE_IN, self._top + LANE_IN + SLOPE_IN
        lines = []
        marks: dict[tuple[str, str], list[float]] = defaultdict(list)
        for j in self._journeys:
            ready_colour, used_colour = self._palette.marks(j.model)
            if j.ready_ns is not None:
                lines.append([(self._x(j.ready_ns), above), (self._x(j.posted_ns), below)])
                marks[READY_MARK, ready_colour].append(j.ready_ns)
            if j.used_ns is not None:
                if j.used_ns - j.done_ns < LONGEST_LYING_IN * self._ns_per_inch:
                    lines.append([(self._x(j.done_ns), below), (self._x(j.used_ns), above)])
                marks[USED_MARK, used_colour].append(j.used_ns)
        frame = Rectangle(
            (self._x(self.start_ns), above),
            (self.end_ns - self.start_ns) / self._unit_ns,
            SLOPE_IN,
            transform=self._axes.transData,
        )
        slopes = LineCollection(lines, colors=QUIET, linewidths=0.5, alpha=0.75)
        self._axes.add_collection(slopes, autolim=False)
        slopes.set_clip_path(frame)
        for (marker, colour), times in marks.items():
            inside = [self._x(at) for at in times if self.start_ns <= at <= self.end_ns]
            style: dict[str, Any] = {"markersize": 2.8, "markeredgewidth": 0, "clip_on": False}
            self._axes.plot(inside, [above + 0.022] * len(inside), marker, color=colour, **style)

    def _transfers(self, busy: Intervals) -> None:
        wire_top = self._top + LANE_IN + SLOPE_IN
        pitch = self.wire_in / max(1, len(self._wire))
        for line, spans in enumerate(self._wire):
            y, height = wire_top + line * pitch, pitch * 0.88
            by_model: dict[str, list[Span]] = defaultdict(list)
            for span in spans:
                by_model[model_of(span)].append(span)
            for model, own in by_model.items():
                hidden, exposed = self._palette.wire(model)
                times = self._seen(own)
                self._bars(y, height, times, exposed)
                self._bars(y, height, intersection(times, busy), hidden)
            ends = [self._x(span.end_ns) for span in spans if span.end_ns < self.end_ns]
            self._axes.vlines(ends, y, y + height, colors="white", linewidth=0.6)
            if pitch >= NAMED_ROW_IN:
                for span in spans:
                    self._transfer_name(span, y + height / 2, busy)

    def _transfer_name(self, span: Span, y: float, busy: Intervals) -> None:
        """In the middle of what is seen of the bar, on the one colour that has room for it."""
        name = self._names.get((*_step(span), span.name), "")
        seen = self._seen([span])
        hidden, exposed = self._palette.wire(model_of(span))
        covered = intersection(seen, busy)
        best: tuple[int, int, int, str] | None = None
        for times, colour in ((covered, hidden), (complement(covered, seen), exposed)):
            for left, right in times.tolist():
                if best is None or right - left > best[0]:
                    best = (right - left, left, right, colour)
        if name and best and best[0] / self._ns_per_inch > 0.048 * len(name) + 0.015:
            self._text(self._x((best[1] + best[2]) / 2), y + 0.004, name, ink_on(best[3]), 6.0)

    def _kernel_names(self, span: Span) -> list[str]:
        """What a kernel may be called, the longest first."""
        if portion_of(span) is not None:
            return [self._names.get((*_step(span), _whole_name(span)), "")]
        if phase_of(span) == EVALUATION:
            return [EVALUATION]
        node = span.name.partition(".")[0]
        place = self._layers.get((model_of(span), node))
        return [node] if place is None else [node, str(place)]

    def _colour(self, span: Span) -> str:
        return self._palette.kernel(model_of(span), phase_of(span))

    def _x(self, ns: float) -> float:
        return (ns - self._origin_ns) / self._unit_ns

    def _seen(self, spans: Iterable[Span]) -> Intervals:
        return intersection(union(intervals(spans)), self._window)

    def _bars(self, top: float, height: float, times: Intervals, colour: str, **style: Any) -> None:
        pieces = [(self._x(start), (end - start) / self._unit_ns) for start, end in times.tolist()]
        self._axes.broken_barh(pieces, (top, height), facecolors=colour, **{"linewidth": 0, **style})

    def _text(self, x: float, y: float, text: str, colour: str, size: float) -> None:
        self._axes.text(x, y, text, color=colour, fontsize=size, ha="center", va="center")


def _step(span: Span) -> tuple[str, int]:
    return model_of(span), span.args.get("step", -1)


def _whole_name(span: Span) -> str:
    """Of the portion that a span is about."""
    return span.name if span.track == WIRE else span.name.rpartition(".")[0]
