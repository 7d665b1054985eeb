"""The picture of two runs: a typical step of each on one scale of time, to see what a change changed."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import Final

from matplotlib.axes import Axes

from .compare import Run
from .palette import Palette
from .picture import INK, QUIET, picture, title
from .shares import models
from .steps import starts
from .strip import LANE_IN, SLOPE_IN, Strip
from .timeline import (
    AXES_IN,
    BELOW_IN,
    KEY_IN,
    MARGIN_LINE_IN,
    TITLE_IN,
    beside,
    draw_key,
    key_lines,
    share_lines,
    time_axes,
)
from .words import figure as digits

NAME_IN: Final = 0.22  # above each strip
GAP_IN: Final = 0.20


def draw_comparison(path: Path, name: str, runs: Sequence[Run]) -> bool:
    """Draw a typical step of each run to `path`; False, and no picture, if one of them has none.

    Backward to backward: the step's gradients travel, and the next forward waits for them.
    """
    shown = [(run, *step) for run in runs if (step := run.typical_step())]
    if len(shown) < len(runs):
        return False
    trained = [models(trace.spans) for _, trace, *_ in shown]
    # Runs of one model each are coloured by phase, whatever the models are called.
    several = any(len(names) > 1 for names in trained)
    palette = Palette(list(dict.fromkeys(chain(*trained))) if several else [])
    strips = [Strip(trace, start_ns, end_ns, palette) for _, trace, _, start_ns, end_ns in shown]
    longest_ns = max(end_ns - start_ns for *_, start_ns, end_ns in shown)
    lines = key_lines(palette, strips)
    above = TITLE_IN + KEY_IN * len(lines) + 0.02
    heights = [
        NAME_IN + max(s.height_in, MARGIN_LINE_IN * (1 + len(share_lines(s, s.shown_shares)))) + GAP_IN
        for s in strips
    ]
    with picture(path, above + sum(heights) + BELOW_IN) as drawing:
        subtitle = "A typical step of each, from backward to backward; at the right, its time and shares"
        title(drawing, name, subtitle)
        draw_key(drawing, lines)
        axes, unit_ns = time_axes(drawing, above, longest_ns, sum(heights))
        top = 0.0
        for strip, height, names, (run, trace, number, start_ns, end_ns) in zip(
            strips, heights, trained, shown, strict=True
        ):
            head = beside(axes, 0.0, top + NAME_IN / 2, run.label, fontweight="bold", fontsize=8)
            after = head.get_window_extent().width / drawing.dpi + 0.08
            # Of models that train together the busiest one's: a run of 220 steps showed its "step 357".
            busiest = starts(trace, backward=True)[0]  # as the step was chosen
            which = f"step {number + 1:,}" + (f" of {busiest}" if len(names) > 1 else "")
            which += f", rank {trace.rank}" if len(run.traces) > 1 else ""
            beside(axes, after, top + NAME_IN / 2, which, color=QUIET, fontsize=7.5)
            strip.draw(axes, top + NAME_IN, unit_ns, longest_ns / AXES_IN, start_ns)
            end = (end_ns - start_ns) / unit_ns
            below = top + NAME_IN + strip.height_in
            axes.vlines(end, top + NAME_IN, below, colors=INK, linewidth=0.8, clip_on=False)
            _margins(axes, strip, top + NAME_IN, f"{digits(end)} {axes.get_xlabel()}")
            top += height
    return True


def _margins(axes: Axes, strip: Strip, top: float, took: str) -> None:
    beside(axes, -0.10, top + LANE_IN / 2, "kernels", color=QUIET, fontsize=7, ha="right")
    if strip.sends:
        y = top + LANE_IN + SLOPE_IN + strip.wire_in / 2
        beside(axes, -0.10, y, "wire", color=QUIET, fontsize=7, ha="right")
    beside(axes, AXES_IN + 0.15, top + MARGIN_LINE_IN / 2, took, fontsize=7.5, fontweight="bold")
    for line, (share, what, colour) in enumerate(share_lines(strip, strip.shown_shares), 1):
        y = top + MARGIN_LINE_IN * (line + 0.5)
        beside(axes, AXES_IN + 0.38, y, f"{share:.0%}", color=colour, fontsize=7.5, ha="right")
        beside(axes, AXES_IN + 0.44, y, what, color=colour, fontsize=7.5, ha="left")
