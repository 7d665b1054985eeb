"""How Weft's pictures look: one palette, one type, PNGs that are sharp in a README 800 pixels wide.

The colours are Paul Tol's "bright" scheme (https://sronpersonalpages.nl/~pault/): people with any colour
vision tell them apart. Things are labelled where they are, in their own colour, where there is room.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, NamedTuple

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.text import Text

BLUE: Final = "#4477AA"
CYAN: Final = "#66CCEE"
GREEN: Final = "#228833"
YELLOW: Final = "#CCBB44"
RED: Final = "#EE6677"
PURPLE: Final = "#AA3377"
# Of Tol's "vibrant" scheme and between: where the six are spoken for.
ORANGE: Final = "#EE7733"
TEAL: Final = "#009988"
VIOLET: Final = "#6650A4"

INK: Final = "#222222"
QUIET: Final = "#767676"  # the lightest grey that still reads well on white (contrast 4.5)
FAINT: Final = "#F3F3F3"
HATCH: Final = "#CFCFCF"

WIDTH_IN: Final = 8.0
DOTS_PER_INCH: Final = 200  # 1600 pixels wide: twice the README's 800, for dense screens

STYLE: Final[Any] = {
    "font.family": "DejaVu Sans",  # comes with Matplotlib, so a picture is the same everywhere
    "font.size": 9.0,
    "text.parse_math": False,  # a folder of the name $x was none of ours to name, and ended the report
    "text.color": INK,
    "axes.edgecolor": QUIET,
    "axes.labelcolor": QUIET,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": QUIET,
    "ytick.color": QUIET,
    "xtick.labelsize": 8.0,
    "ytick.labelsize": 8.0,
    "xtick.major.size": 3.0,
    "ytick.major.size": 0.0,
    "xtick.major.width": 0.6,
    "savefig.facecolor": "white",
}


@contextmanager
def picture(path: Path, height_in: float) -> Iterator[Figure]:
    """A figure that is saved as PNG to `path` on the way out; needs no display and no pyplot."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH_IN, height_in), dpi=DOTS_PER_INCH)
        FigureCanvasAgg(figure)
        yield figure
        figure.savefig(path, format="png")


def title(figure: Figure, text: str, subtitle: str) -> None:
    """A title and a quieter line below it, at the figure's left edge: 0.6 inches in all."""
    height = figure.get_figheight()
    heading = figure.text(0.02, 1 - 0.14 / height, text, fontsize=11.5, fontweight="bold", va="top")
    below = figure.text(0.02, 1 - 0.37 / height, subtitle, color=QUIET, va="top")
    for line in (heading, below):
        fit(line, 0.96 * figure.get_figwidth())


def fit(text: Text, width_in: float) -> None:
    """Write the text smaller, and cut it where that would be too small: people's names are of any length."""
    words = text.get_text()
    if (width := _width_in(text)) > width_in:
        text.set_fontsize(float(text.get_fontsize()) * max(width_in / width, SMALLEST))
    while len(words) > 1 and _width_in(text) > width_in:
        words = words[:-1]
        text.set_text(f"{words}…")


def _width_in(text: Text) -> float:
    figure = text.get_figure()
    assert figure is not None
    return text.get_window_extent().width / figure.dpi


def place(figure: Figure, left: float, right: float, top: float, bottom: float) -> Axes:
    """Axes whose edges lie that many inches from the figure's."""
    width, height = figure.get_figwidth(), figure.get_figheight()
    return figure.add_axes(
        (left / width, bottom / height, 1 - (left + right) / width, 1 - (top + bottom) / height)
    )


LEAD_MOST: Final = 12  # characters
SMALLEST: Final = 0.65  # of the size that a text has where there is room


class Swatch(NamedTuple):
    """An entry of a key: a coloured patch, or a mark, and what it stands for; only words without a colour."""

    words: str
    colour: str
    hatch: str = ""
    marker: str = ""  # of Matplotlib's, instead of a patch


def key(figure: Figure, lead: str, swatches: Sequence[Swatch], left: float, below_top: float) -> None:
    """A line of swatches that begins `left` inches from the left, `below_top` below the figure's top.

    `lead` stands before it and ends where the swatches begin.
    """
    width, height = figure.get_figwidth(), figure.get_figheight()
    y = 1 - below_top / height
    if lead:
        # Names of models that train together often differ at their ends alone.
        lead = lead if len(lead) <= LEAD_MOST else f"{lead[: LEAD_MOST // 3]}…{lead[-LEAD_MOST * 2 // 3 :]}"
        style: dict[str, Any] = {"fontsize": 8, "fontweight": "bold", "ha": "right", "va": "center"}
        fit(figure.text((left - 0.10) / width, y, lead, **style), left - 0.15)
    for words, colour, hatch, marker in swatches:
        if not colour:
            figure.text(left / width, y, words, fontsize=8, color=QUIET, va="center")
            break
        if marker:
            figure.add_artist(
                Line2D(
                    [(left + 0.055) / width],
                    [y],
                    marker=marker,
                    markersize=4.5,
                    color=colour,
                    markeredgewidth=0,
                    transform=figure.transFigure,
                )
            )
        else:
            figure.add_artist(
                Rectangle(
                    (left / width, y - 0.05 / height),
                    0.11 / width,
                    0.11 / height,
                    transform=figure.transFigure,
                    facecolor=colour,
                    hatch=hatch,
                    edgecolor=HATCH if hatch else colour,
                    linewidth=0.4 if hatch else 0,
                )
            )
        text = figure.text((left + 0.16) / width, y, words, fontsize=8, va="center")
        left += 0.16 + text.get_window_extent().width / figure.dpi + 0.17
