"""The picture of how a run learned: loss over steps, accuracy and learning rate below it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import (
    FuncFormatter,
    LogLocator,
    MaxNLocator,
    NullFormatter,
    PercentFormatter,
    StrMethodFormatter,
)

from .history import History, Row, Series
from .picture import BLUE, DOTS_PER_INCH, GREEN, PURPLE, QUIET, RED, picture, place, title
from .words import duration, figure, speed

Label = tuple[float, str, str]
"""Value, text and colour."""

TRAINING: Final = BLUE
SPLITS: Final = {"validation": RED, "test": PURPLE}
LEFT_IN, RIGHT_IN, ABOVE_IN, BELOW_IN = 0.62, 1.30, 0.78, 0.50
LOSS_IN, ACCURACY_IN, RATE_IN, GAP_IN = 2.35, 1.05, 0.42, 0.30

LOG_RANGE: Final = 8  # from this ratio of the largest to the smallest loss on, the axis is logarithmic
SMOOTHING: Final = 1 / 80  # of all steps: the standard deviation of the window
DRAWN: Final = 40_000  # points of a line that is some 1,200 pixels long
FINE: Final = 100.0  # values in a standard deviation; where there are more, some become one beforehand


def smooth(values: Series, width: float) -> Series:
    """Mean under a Gaussian window `width` points wide, centred: what a trailing mean shows it shows late.

    Values that are not finite have no weight; at the ends the window is cut. Of a wide window, as many values
    become one beforehand as it cannot tell apart: it is as wide as there are steps, so the work went with
    their square, and the report of a run of 200,000 took 10 s, or minutes where BLAS had threads.
    """
    together = max(1, round(width / FINE))
    starts = np.arange(0, len(values), together)
    known = np.isfinite(values)
    sums = np.add.reduceat(np.where(known, values, 0.0), starts)
    counts = np.add.reduceat(known.astype(float), starts)
    reach = max(1, round(4 * width / together))
    window = np.exp(-0.5 * (np.arange(-reach, reach + 1) / max(width / together, 1e-9)) ** 2)
    total = np.convolve(sums, window, "full")[reach : reach + len(starts)]
    weight = np.convolve(counts, window, "full")[reach : reach + len(starts)]
    smoothed = np.full(len(starts), np.nan)
    np.divide(total, weight, out=smoothed, where=weight > 0)
    if together == 1:
        return smoothed
    between: Series = np.interp(np.arange(len(values)), starts + (together - 1) / 2, smoothed)
    return between


def thin(steps: Series, values: Series) -> tuple[Series, Series]:
    """Of a line of more points than `DRAWN` the least and the greatest of every few: what is seen of it.

    Matplotlib keeps some copies of all that it draws: 250 MB for a run of a million steps.
    """
    together = 2 * len(steps) // DRAWN
    if together < 2:
        return steps, values
    whole = len(steps) // together * together
    groups = values[:whole].reshape(-1, together)
    least = np.where(np.isfinite(groups), groups, np.inf).argmin(axis=1)  # the first where none is finite
    greatest = np.where(np.isfinite(groups), groups, -np.inf).argmax(axis=1)
    kept = np.sort(np.stack([least, greatest], axis=1), axis=1) + together * np.arange(len(groups))[:, None]
    chosen = np.concatenate([kept.reshape(-1), np.arange(whole, len(steps))])
    return steps[chosen], values[chosen]


def draw_loss(path: Path, name: str, history: History) -> bool:
    """Draw the history to `path`; False, and no picture, if it holds no step."""
    if not history.steps:
        return False
    rate = history.steps.rate
    accurate = np.isfinite(_column(history.evaluations, "accuracy")).any()
    panels = [LOSS_IN, *([ACCURACY_IN] if accurate else []), *([RATE_IN] if np.isfinite(rate).any() else [])]
    height = ABOVE_IN + sum(panels) + GAP_IN * (len(panels) - 1) + BELOW_IN
    with picture(path, height) as drawing:
        title(drawing, name, _subtitle(history))
        tops = [ABOVE_IN + sum(panels[:i]) + GAP_IN * i for i in range(len(panels))]
        axes = [
            place(drawing, LEFT_IN, RIGHT_IN, top, height - top - panel)
            for top, panel in zip(tops, panels, strict=True)
        ]
        for panel in axes:
            panel.set_xlim(0, history.steps.last)
            quiet_grid(panel)
            if panel is not axes[-1]:
                panel.tick_params(bottom=False, labelbottom=False)
        _loss(axes[0], history)
        if accurate:
            _accuracy(axes[1], history)
        if np.isfinite(rate).any():
            _rate(axes[-1], history)
        scale_steps(axes[-1], history.steps.last)
    return True


def scale_losses(axes: Axes, known: Series) -> bool:
    """Choose the axis of these losses, all finite; whether it is logarithmic."""
    logarithmic = bool(len(known) and known.min() > 0 and known.max() > LOG_RANGE * known.min())
    if logarithmic:
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1,) if known.max() > 100 * known.min() else (1, 2, 5)))
        axes.yaxis.set_minor_formatter(NullFormatter())
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.tick_params(which="minor", length=0)
    else:
        axes.yaxis.set_major_locator(MaxNLocator(5))
    return logarithmic


def scale_steps(axes: Axes, last: int) -> None:
    """The axis of steps, from 0 to the last."""
    axes.set_xlim(0, last)
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    axes.set_xlabel("step", loc="right", labelpad=0)


def quiet_grid(axes: Axes) -> None:
    """Lines across, and no axis at the left."""
    axes.grid(axis="y", color="#ECECEC", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines["left"].set_visible(False)


def _loss(axes: Axes, history: History) -> None:
    steps, loss = history.steps.step, history.steps.loss
    known = loss[np.isfinite(loss)]
    if scale_losses(axes, known):
        smoothed = np.exp(smooth(np.log(loss), SMOOTHING * len(loss)))
    else:
        smoothed = smooth(loss, SMOOTHING * len(loss))
    axes.plot(*thin(steps, loss), color=TRAINING, alpha=0.25, linewidth=0.6)
    # Of one point a line shows nothing.
    mark: dict[str, Any] = {"marker": "o", "markersize": 4.0, "clip_on": False} if len(known) == 1 else {}
    axes.plot(*thin(steps, smoothed), color=TRAINING, linewidth=1.8, solid_capstyle="round", **mark)
    ended = smoothed[-1]
    labels = [(ended, f"training {figure(ended)}", TRAINING)] if math.isfinite(ended) else []
    labels += _points(axes, history, "loss", figure)
    heading(axes, "loss")
    label(axes, labels)


def _accuracy(axes: Axes, history: History) -> None:
    labels = _points(axes, history, "accuracy", lambda value: f"{value:.1%}")
    axes.yaxis.set_major_locator(MaxNLocator(4))
    # With as many digits as tell the ticks apart: whole percents named four of them 99%.
    axes.yaxis.set_major_formatter(PercentFormatter(1))
    heading(axes, "accuracy")
    label(axes, labels)


def _rate(axes: Axes, history: History) -> None:
    steps, rate = thin(history.steps.step, history.steps.rate)
    axes.plot(steps, rate, color=GREEN, linewidth=1.2)
    axes.fill_between(steps, rate, color=GREEN, alpha=0.12, linewidth=0)
    axes.set_ylim(0, max(float(np.nanmax(rate)), 1e-12) * 1.1)
    axes.set_yticks([])
    heading(axes, "learning rate")
    label(axes, [(float(np.nanmax(rate)), f"at most {figure(float(np.nanmax(rate)))}", GREEN)])


def _points(axes: Axes, history: History, key: str, words: Callable[[float], str]) -> list[Label]:
    """The evaluations of each split as points, joined by a line; returns their last values as labels."""
    labels = []
    for split, colour in SPLITS.items():
        evaluated = [row for row in history.evaluated(split) if math.isfinite(row.get(key, math.nan))]
        if evaluated:
            steps, values = _column(evaluated, "step"), _column(evaluated, key)
            axes.plot(steps, values, color=colour, linewidth=0.8, alpha=0.6, clip_on=False)
            axes.plot(
                *(steps, values, "o"),
                color=colour,
                markersize=4.0,
                markeredgecolor="white",
                markeredgewidth=0.6,
                clip_on=False,
                zorder=3,
            )
            labels.append((float(values[-1]), f"{split} {words(values[-1])}", colour))
    return labels


def heading(axes: Axes, text: str) -> None:
    """What the panel shows, above its upper left corner."""
    axes.annotate(
        text, (0, 1), (-LEFT_IN * 72 + 12, 5), "axes fraction", "offset points", color=QUIET, fontsize=8
    )


def label(axes: Axes, labels: Sequence[Label]) -> None:
    """Values at the right edge in their line's colour, moved apart where they would overlap."""
    axes.set_ylim(axes.get_ylim())  # a value's place is known only when the limits are
    ordered = sorted(labels, key=lambda label: label[0])
    pixels = axes.transData.transform([(0.0, value) for value, _, _ in ordered] or np.empty((0, 2)))
    wanted: list[float] = axes.transAxes.inverted().transform(pixels)[:, 1].tolist()
    line = 0.16 * DOTS_PER_INCH / axes.get_window_extent().height
    for place_at, (_, text, colour) in zip(spread(wanted, line), ordered, strict=True):
        axes.annotate(
            *(text, (1, place_at), (9, 0), "axes fraction", "offset points"),
            color=colour,
            va="center",
            fontsize=8.5,
        )


def spread(places: Sequence[float], apart: float) -> list[float]:
    """Ascending places moved as little as needed to lie `apart` from each other."""
    # Places that crowd form a group around its mean; groups that then overlap become one.
    groups: list[list[float]] = []
    for place_at in places:
        groups.append([place_at])
        while len(groups) > 1 and _start(groups[-1], apart) < _end(groups[-2], apart):
            last = groups.pop()
            groups[-1] += last
    return [_start(group, apart) + apart * i for group in groups for i in range(len(group))]


def _start(group: Sequence[float], apart: float) -> float:
    return sum(group) / len(group) - apart * (len(group) - 1) / 2


def _end(group: Sequence[float], apart: float) -> float:
    return _start(group, apart) + apart * len(group)


def _column(rows: Sequence[Row], key: str) -> Series:
    values = (row.get(key) for row in rows)
    return np.array([v if isinstance(v, int | float) else math.nan for v in values], np.float64)


def _subtitle(history: History) -> str:
    last = history.steps.last
    parts = [f"{last:,} step{'' if last == 1 else 's'}"]
    if math.isfinite(history.seconds):  # over all starts: the last row's time counts from the last of them
        parts[0] += f" in {duration(history.seconds)}"
    if math.isfinite(per_s := history.steps.speed):
        parts.append(speed(per_s))
    return ", ".join(parts)
