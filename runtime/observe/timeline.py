"""The picture of what all ranks do in a few steps: a strip (strip.py) for each rank, the first on top."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Text

from .palette import Palette
from .picture import INK, PURPLE, QUIET, WIDTH_IN, Swatch, fit, key, picture, place, title
from .shares import Shares, models
from .steps import starts, typical
from .strip import IDLE_HATCH, LANE_IN, READY_MARK, SLOPE_IN, USED_MARK, Strip
from .trace import RankTrace

STEPS_SHOWN: Final = 2
RANKS_SHOWN: Final = 16
TITLE_IN, KEY_IN, STEP_NAMES_IN = 0.68, 0.19, 0.22  # heights above the axes
GAP_IN: Final = 0.17  # between ranks
MARGIN_LINE_IN: Final = 0.135
BELOW_IN, LEFT_IN, RIGHT_IN = 0.46, 0.86, 1.30
AXES_IN: Final = WIDTH_IN - LEFT_IN - RIGHT_IN  # their width


def draw_timeline(path: Path, name: str, traces: Sequence[RankTrace]) -> bool:
    """Draw typical steps of all ranks to `path`; False, and no picture, if the traces hold no step."""
    trained = models(span for trace in traces for span in trace.spans)
    # Where models take turns, a turn of each is as much as can be read.
    main, begun = starts(traces[0]) if traces else ("", [])
    steps = typical(begun, 1 if len(trained) > 1 else STEPS_SHOWN)
    if not steps:
        return False
    last = max(span.end_ns for span in traces[0].spans)
    start_ns, end_ns = steps[0][1], steps[-1][1] if len(steps) > 1 else last
    palette = Palette(trained)
    strips = [Strip(trace, start_ns, end_ns, palette) for trace in traces[:RANKS_SHOWN]]
    lines = key_lines(palette, strips)
    above = TITLE_IN + KEY_IN * len(lines) + STEP_NAMES_IN
    heights = [max(strip.height_in, margin_in(strip)) + GAP_IN for strip in strips]
    with picture(path, above + sum(heights) + BELOW_IN) as figure:
        ranks = f"{len(traces)} ranks" if len(traces) > 1 else "one rank"
        numbers = [f"{step + 1:,}" for step, _ in (steps[:-1] or steps)]
        which = f"steps {' and '.join(numbers)}" if len(numbers) > 1 else f"step {numbers[0]}"
        which += f" of {main}" if len(trained) > 1 else ""
        does = "computes and sends" if any(strip.sends for strip in strips) else "computes"
        of = f", ranks 0 to {RANKS_SHOWN - 1}" if len(traces) > len(strips) else ""
        title(
            figure,
            f"{' and '.join(trained) if 1 < len(trained) < 4 else name} on {ranks}",
            f"What each rank {does} in {which}{of}; at the right, shares of the whole run",
        )
        draw_key(figure, lines)
        axes, unit_ns = time_axes(figure, above, end_ns - start_ns, sum(heights))
        ns_per_inch = (end_ns - start_ns) / AXES_IN
        hosts = len({trace.host for trace in traces}) > 1
        top = 0.0
        for strip, height in zip(strips, heights, strict=True):
            strip.draw(axes, top, unit_ns, ns_per_inch, start_ns)
            _margins(axes, strip, top, hosts=hosts)
            top += height
        for step, at_ns in steps[:-1] or steps:
            x = (at_ns - start_ns) / unit_ns
            axes.axvline(x, color=QUIET, linewidth=0.6, linestyle=(0, (2, 2)), zorder=0)
            axes.text(x, -0.03, f"step {step + 1:,}", va="bottom", fontsize=7.5, color=QUIET)
    return True


def key_lines(palette: Palette, strips: Sequence[Strip]) -> list[tuple[str, list[Swatch]]]:
    """The key to the strips."""
    wire = any(strip.sends for strip in strips)
    lines = palette.key(set().union(*(strip.seen for strip in strips)), wire=wire)
    rest = []
    marks = set().union(*(strip.marks for strip in strips))
    ready, used = palette.marks()
    for marker, words, colour in ((READY_MARK, "ready to send", ready), (USED_MARK, "used", used)):
        if marker in marks:
            rest.append(Swatch(words, colour, marker=marker))
    if any(strip.waited for strip in strips):
        rest.append(Swatch("idle", "white", IDLE_HATCH))
    rest.append(Swatch("2a  first portion of layer 2" if wire else "2  layer 2", ""))
    if lines[-1][0]:  # a model's line is full
        lines.append(("", []))
    lines[-1][1].extend(rest)
    return lines


def draw_key(figure: Figure, lines: Sequence[tuple[str, list[Swatch]]]) -> None:
    """The key, below the title."""
    for i, (lead, swatches) in enumerate(lines):
        key(figure, lead, swatches, LEFT_IN, TITLE_IN + 0.08 + KEY_IN * i)


def time_axes(figure: Figure, above: float, length_ns: int, height_in: float) -> tuple[Axes, float]:
    """Axes of `length_ns` from zero, the vertical unit an inch; and the nanoseconds of the horizontal one."""
    axes = place(figure, LEFT_IN, RIGHT_IN, above, BELOW_IN)
    # Milliseconds suit most models; a large one takes seconds for a step.
    unit, unit_ns = ("s", 1e9) if length_ns > 2e9 else ("ms", 1e6)
    axes.set_xlim(0, length_ns / unit_ns)
    axes.set_ylim(height_in, 0)
    axes.spines["left"].set_visible(False)
    axes.set_yticks([])
    axes.set_xlabel(unit, loc="right", labelpad=-1)
    return axes, unit_ns


def beside(axes: Axes, x_in: float, y_in: float, text: str, **style: Any) -> Text:
    """Text `x_in` inches from the left edge of the axes, at any side of it."""
    x = x_in / AXES_IN
    return axes.text(x, y_in, text, transform=axes.get_yaxis_transform(), va="center", **style)


def margin_in(strip: Strip) -> float:
    """Height of what stands at the right of a strip."""
    return MARGIN_LINE_IN * len(share_lines(strip, strip.shares))


def share_lines(strip: Strip, shares: Shares) -> list[tuple[float, str, str]]:
    """Shares of the rank's: value, words, colour."""
    lines = [(shares.compute, "compute", INK)]
    if strip.sends:
        lines.append((shares.exposed_communication, "wire, exposed", PURPLE))
    lines.append((shares.idle, "idle", QUIET))
    if strip.sends:
        lines.append((shares.hidden_of_wire, "of wire hidden", QUIET))
    return lines


def _margins(axes: Axes, strip: Strip, top: float, *, hosts: bool) -> None:
    """The rank's name at the left, its shares of the whole run at the right."""
    beside(axes, -0.10, top + LANE_IN / 2, f"rank {strip.trace.rank}", fontweight="bold", ha="right")
    if hosts:
        quiet = {"color": QUIET, "fontsize": 7, "ha": "right"}
        fit(beside(axes, -0.10, top + LANE_IN + SLOPE_IN / 2, strip.trace.host, **quiet), LEFT_IN - 0.15)
    if strip.sends:
        y = top + LANE_IN + SLOPE_IN + strip.wire_in / 2
        beside(axes, -0.10, y, "wire", color=QUIET, fontsize=7, ha="right")
    for line, (share, what, colour) in enumerate(share_lines(strip, strip.shares)):
        y = top + MARGIN_LINE_IN * (line + 0.5)
        beside(axes, AXES_IN + 0.38, y, f"{share:.0%}", color=colour, fontsize=7.5, ha="right")
        beside(axes, AXES_IN + 0.44, y, what, color=colour, fontsize=7.5, ha="left")
