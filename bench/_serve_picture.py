"""Goodput over load, of all policies, for smooth and for bursty arrivals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from bench._score import Score
from weft.runtime.observe.picture import BLUE, GREEN, INK, ORANGE, PURPLE, QUIET, picture, title

COLOURS = {"weft": PURPLE, "clockwork": BLUE, "nexus": GREEN, "triton": ORANGE, "first_come": QUIET}
NAMES = {
    "weft": "Weft",
    "clockwork": "Clockwork-like",
    "nexus": "Nexus-like",
    "triton": "Triton-like",
    "first_come": "first come",
}
HEIGHT_IN = 3.6


def draw(
    path: Path, scores: Mapping[tuple[bool, float, str], Sequence[Score]], capacity_per_s: float, rig: str
) -> None:
    """Draw it to `path`."""
    loads = sorted({load for _, load, _ in scores})
    with picture(path, HEIGHT_IN) as drawing:
        title(drawing, "Goodput over load", f"Answered on time over capacity; {rig}; 50 ms, 200 ms, 2 s")
        for place, bursty in enumerate((False, True)):
            axes = drawing.add_axes((0.07 + place * 0.47, 0.15, 0.39, 0.63))
            for policy, colour in COLOURS.items():
                shares = [
                    sum(each.goodput_per_s for each in own) / len(own) / capacity_per_s
                    for load in loads
                    for own in (scores[bursty, load, policy],)
                ]
                width = 2.0 if policy == "weft" else 1.2
                axes.plot(loads, shares, color=colour, linewidth=width, marker="o", markersize=2.5)
                axes.plot([], [], color=colour, linewidth=width, label=NAMES[policy])
            axes.set_ylim(0.0, 1.1)
            axes.set_xlabel("load over capacity")
            axes.grid(axis="y", color="#EEEEEE", linewidth=0.6)
            axes.text(
                0.0,
                1.04,
                "bursty arrivals" if bursty else "Poisson arrivals",
                transform=axes.transAxes,
                color=INK,
            )
            if not bursty:
                axes.legend(frameon=False, fontsize=8, loc="lower left")
