"""A picture of layers that overlap: where blocks of two later layers begin before the first of them ends.

rank 0   ▐ fire2 ▌▐ fire2 ▌▐ squeeze3 ▌▐ expand3 ▌         a colour each for a layer and the two behind it,
rank 1   ▐ fire2      ▌▐ squeeze3 ▌▐     fire2     ▌       everything else grey
                                                   ╎ the first layer ends
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final, NamedTuple

from matplotlib.axes import Axes
from matplotlib.patches import Rectangle

from .palette import ink_on
from .picture import BLUE, FAINT, ORANGE, QUIET, TEAL, Swatch, key, picture, place, title
from .trace import RankTrace, Span

COLOURS: Final = (BLUE, ORANGE, TEAL)
OTHERS: Final = "#D5D5D5"
LANE_IN, GAP_IN = 0.42, 0.14
ABOVE_IN, BELOW_IN, LEFT_IN, RIGHT_IN = 1.0, 0.42, 0.72, 0.2
AXES_IN: Final = 8.0 - LEFT_IN - RIGHT_IN
LETTER_IN: Final = 0.062  # of 6.5 points, about


class Overlap(NamedTuple):
    """A layer that ends after blocks of the two behind it have begun; times in ns."""

    layers: tuple[int, int, int]
    starts_ns: tuple[int, int, int]
    end_ns: int

    @property
    def ahead_ns(self) -> int:
        """For how long all three are under way at once."""
        return self.end_ns - max(self.starts_ns)


def overlaps(spans: Sequence[Span]) -> list[Overlap]:
    """Of one request's spans, whose `layer` counts layers in the graph's order: all such layers."""
    starts: dict[int, int] = {}
    ends: dict[int, int] = {}
    for span in spans:
        layer = span.args["layer"]
        starts[layer] = min(starts.get(layer, span.start_ns), span.start_ns)
        ends[layer] = max(ends.get(layer, 0), span.end_ns)
    numbers = sorted(starts)
    found = [
        Overlap((one, two, three), (starts[one], starts[two], starts[three]), ends[one])
        for one, two, three in zip(numbers, numbers[1:], numbers[2:], strict=False)
    ]
    return [overlap for overlap in found if overlap.ahead_ns > 0]


def draw_ahead(path: Path, traces: Sequence[RankTrace], names: Mapping[int, str], model: str) -> bool:
    """Draw the longest overlap of the last request to `path`; False where no layers overlap.

    Spans have `layer` and `request` in their args; `names` are of the layers.
    """
    last = max((span.args["request"] for trace in traces for span in trace.spans), default=0)
    by_rank = {trace.rank: [span for span in trace.spans if span.args["request"] == last] for trace in traces}
    found = overlaps([span for spans in by_rank.values() for span in spans])
    if not found:
        return False
    chosen = max(found, key=lambda overlap: overlap.ahead_ns)
    margin_ns = (chosen.end_ns - chosen.starts_ns[0]) // 4
    start_ns, end_ns = chosen.starts_ns[0] - margin_ns // 4, chosen.end_ns + margin_ns
    colours = dict(zip(chosen.layers, COLOURS, strict=True))
    height = ABOVE_IN + BELOW_IN + len(by_rank) * (LANE_IN + GAP_IN)
    with picture(path, height) as figure:
        title(
            figure,
            f"Blocks of two later layers run before {names[chosen.layers[0]]} has ended",
            f"{model}, one image on {len(by_rank)} ranks; a block is what one rank computes in one go",
        )
        words = [Swatch(names[layer], colour) for layer, colour in colours.items()]
        key(figure, "", [*words, Swatch("other layers", OTHERS)], LEFT_IN, 0.78)
        axes = place(figure, LEFT_IN, RIGHT_IN, ABOVE_IN, BELOW_IN)
        axes.set_xlim(0, (end_ns - start_ns) / 1e3)
        axes.set_ylim(len(by_rank) * (LANE_IN + GAP_IN), 0)
        axes.spines["left"].set_visible(False)
        axes.set_yticks([])
        axes.set_xlabel("µs", loc="right", labelpad=-1)
        for lane, (rank, spans) in enumerate(sorted(by_rank.items())):
            top = lane * (LANE_IN + GAP_IN)
            axes.text(
                -0.012, top + LANE_IN / 2, f"rank {rank}", fontweight="bold", ha="right", va="center",
                transform=axes.get_yaxis_transform(),
            )  # fmt: skip
            axes.add_patch(Rectangle((0, top), (end_ns - start_ns) / 1e3, LANE_IN, facecolor=FAINT))
            for span in spans:
                if span.end_ns > start_ns and span.start_ns < end_ns:
                    _block(axes, span, top, start_ns, end_ns, colours.get(span.args["layer"], OTHERS))
        x = (chosen.end_ns - start_ns) / 1e3
        axes.axvline(x, color=BLUE, linewidth=0.8, linestyle=(0, (3, 2)))
        axes.text(
            x, -0.03, f"{names[chosen.layers[0]]} ends", color=BLUE, fontsize=7.5, ha="center", va="bottom"
        )
    return True


def _block(axes: Axes, span: Span, top: float, start_ns: int, end_ns: int, colour: str) -> None:
    left, right = max(span.start_ns, start_ns), min(span.end_ns, end_ns)
    x, width = (left - start_ns) / 1e3, (right - left) / 1e3
    axes.add_patch(Rectangle((x, top), width, LANE_IN, facecolor=colour, edgecolor="white", linewidth=0.5))
    lines = span.name.split(" ", 1)[1].split(", ") if " " in span.name else [span.name]
    room = (right - left) / (end_ns - start_ns) * AXES_IN
    if room > LETTER_IN * max(map(len, lines)):
        ink = QUIET if colour == OTHERS else ink_on(colour)
        axes.text(
            x + width / 2, top + LANE_IN / 2, "\n".join(lines), fontsize=6.5, color=ink,
            ha="center", va="center", linespacing=0.95,
        )  # fmt: skip
