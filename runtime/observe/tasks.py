"""A pool's run in words and a picture: what each rank ran, for whom, and where it took tasks from others.

rank 0   ▐█████████████████████████████████▌       a colour for each function, the six that took longest
rank 1     ^▐██████████████▌ ^▐███████████▌        a mark where tasks were taken from another rank
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final

from ..errors import Mistake
from .chrome import read_chrome
from .folder import Files, run_of
from .picture import (
    BLUE,
    CYAN,
    FAINT,
    GREEN,
    INK,
    PURPLE,
    QUIET,
    RED,
    YELLOW,
    Swatch,
    key,
    picture,
    place,
    title,
)
from .trace import COMPUTE, RankTrace, Span
from .words import figure

STEAL: Final = "steal"  # the track of thefts
COLOURS: Final = (BLUE, RED, GREEN, YELLOW, CYAN, PURPLE)
OTHERS: Final = "#BBBBBB"
LANE_IN, MARK_IN, GAP_IN = 0.30, 0.09, 0.10
ABOVE_IN, BELOW_IN, LEFT_IN, RIGHT_IN = 0.98, 0.42, 0.72, 0.74
RANKS_SHOWN: Final = 32
SHORTEST: Final = 1 / 4000
"""Of the picture's length: spans of one function that are no further apart are drawn as one."""


def report_tasks(path: Path) -> str:
    """Draw what a pool's trace file tells beside it, as PNG; returns tables of ranks and functions."""
    try:
        traces = [trace for trace in read_chrome(path) if trace.spans]
    except Mistake:
        if (run := run_of(path)) is None:
            raise
        raise Mistake(f"{path} is of a training run; give its folder: weft report {run}") from None
    if not traces:
        return f"{path}: no task ran"
    # Of a training run "others' 0, thefts 0" was false: who took what is told otherwise there.
    if any("step" in span.args for trace in traces for span in trace.spans):
        raise Mistake(f"{path} is the trace of a training run; give its folder: weft report {path.parent}")
    ran = {trace.rank: [span for span in trace.spans if span.track == COMPUTE] for trace in traces}
    seconds = _seconds(span for spans in ran.values() for span in spans)
    start_ns = min(trace.spans[0].start_ns for trace in traces)
    end_ns = max(start_ns + 1, *(span.end_ns for trace in traces for span in trace.spans))
    count = sum(map(len, ran.values()))
    ranks = f"{len(traces)} ranks" if len(traces) > 1 else "one rank"
    what = f"{count:,} tasks on {ranks} in {figure((end_ns - start_ns) / 1e9)} s"
    lines = [f"{path.name}: {what}", "", "  rank  busy  tasks  others'  thefts  host"]
    for trace in traces:
        own = ran[trace.rank]
        busy = sum(span.end_ns - span.start_ns for span in own) / (end_ns - start_ns)
        others = sum(span.args.get("home", trace.rank) != trace.rank for span in own)
        thefts = sum(span.track == STEAL for span in trace.spans)
        lines.append(
            f"  {trace.rank:>4}  {busy:>4.0%}  {len(own):>5,}  {others:>7,}  {thefts:>6,}  {trace.host}"
        )
    width = max(map(len, seconds), default=0)
    lines += ["", *(f"  {name:<{width}}  {figure(spent)} s" for name, spent in seconds.items())]
    if dropped := sum(trace.dropped for trace in traces):
        lines.append(f"  the oldest {dropped:,} spans were dropped: the picture begins later than the run")
    files, drawn = Files(), path.with_suffix(".png")
    window = start_ns, end_ns
    written = files.write(drawn, lambda path: _draw(path, what, traces, list(seconds), window))
    return "\n".join([*lines, "", *([f"picture: {drawn}"] if written else files.lost)])


def _seconds(spans: Iterable[Span]) -> dict[str, float]:
    """What each function's tasks took in all, the longest first."""
    found: dict[str, float] = defaultdict(float)
    for span in spans:
        found[span.name] += (span.end_ns - span.start_ns) / 1e9
    return dict(sorted(found.items(), key=lambda item: -item[1]))


def _draw(
    path: Path, name: str, traces: Sequence[RankTrace], functions: Sequence[str], window: tuple[int, int]
) -> None:
    start_ns, end_ns = window
    colours = dict(zip(functions, COLOURS, strict=False))
    shown, each_in = traces[:RANKS_SHOWN], LANE_IN + MARK_IN + GAP_IN
    with picture(path, ABOVE_IN + BELOW_IN + len(shown) * each_in) as figure:
        of = f"; ranks 0 to {RANKS_SHOWN - 1} are shown" if len(traces) > RANKS_SHOWN else ""
        title(figure, name, f"What each rank ran, and when it took tasks from others{of}")
        swatches = [Swatch(function, colour) for function, colour in colours.items()]
        if len(functions) > len(colours):
            swatches.append(Swatch("others", OTHERS))
        swatches.append(Swatch("tasks taken", INK, marker="^"))
        key(figure, "", swatches, LEFT_IN, 0.76)
        axes = place(figure, LEFT_IN, RIGHT_IN, ABOVE_IN, BELOW_IN)
        unit, unit_ns = ("s", 1e9) if end_ns - start_ns > 2e9 else ("ms", 1e6)
        axes.set_xlim(0, (end_ns - start_ns) / unit_ns)
        axes.set_ylim(len(shown) * each_in, 0)
        axes.spines["left"].set_visible(False)
        axes.set_yticks([])
        axes.set_xlabel(unit, loc="right", labelpad=-1)
        margin = axes.get_yaxis_transform()
        for lane, trace in enumerate(shown):
            top = lane * each_in
            middle = top + LANE_IN / 2
            axes.text(
                -0.012, middle, f"rank {trace.rank}", fontweight="bold", ha="right", va="center",
                transform=margin,
            )  # fmt: skip
            axes.broken_barh([(0, (end_ns - start_ns) / unit_ns)], (top, LANE_IN), facecolor=FAINT)
            ran = [span for span in trace.spans if span.track == COMPUTE]
            for function, bars in _bars(ran, start_ns, int((end_ns - start_ns) * SHORTEST)).items():
                scaled = [(left / unit_ns, (right - left) / unit_ns) for left, right in bars]
                axes.broken_barh(scaled, (top, LANE_IN), facecolor=colours.get(function, OTHERS))
            thefts = [(s.end_ns - start_ns) / unit_ns for s in trace.spans if s.track == STEAL]
            marks = [top + LANE_IN + MARK_IN / 2] * len(thefts)
            axes.plot(thefts, marks, "^", markersize=3.5, color=INK, markeredgewidth=0)
            busy = sum(span.end_ns - span.start_ns for span in ran) / (end_ns - start_ns)
            axes.text(
                1.012, middle, f"{busy:.0%} busy", color=QUIET, fontsize=8, va="center", transform=margin
            )


def _bars(spans: Iterable[Span], start_ns: int, apart_ns: int) -> dict[str, list[tuple[int, int]]]:
    """For each function when it ran, from `start_ns` on."""
    found: dict[str, list[tuple[int, int]]] = defaultdict(list)
    for span in sorted(spans, key=lambda span: span.start_ns):
        left, right = span.start_ns - start_ns, span.end_ns - start_ns
        bars = found[span.name]
        if bars and left - bars[-1][1] <= apart_ns:
            bars[-1] = bars[-1][0], max(right, bars[-1][1])
        else:
            bars.append((left, right))
    return found
