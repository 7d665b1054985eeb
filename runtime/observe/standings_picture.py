"""The picture of several runs: their losses over steps, the best in colours, all others grey."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

import numpy as np

from .curves import (
    ABOVE_IN,
    BELOW_IN,
    LEFT_IN,
    SMOOTHING,
    heading,
    label,
    quiet_grid,
    scale_losses,
    scale_steps,
    smooth,
    thin,
)
from .history import Series
from .picture import BLUE, GREEN, ORANGE, PURPLE, TEAL, picture, place, title
from .standings import Standing
from .words import figure

COLOURS: Final = (BLUE, ORANGE, TEAL, PURPLE, GREEN)
OTHERS: Final = "#BBBBBB"
PANEL_IN, RIGHT_IN = 2.9, 2.2


def draw_standings(path: Path, ordered: Sequence[Standing]) -> bool:
    """Draw the runs, the best first, to `path`; False, and no picture, where none has two losses to join.

    Shown are the losses of validation, and where no run has evaluated those of training, smoothed.
    """
    validated = any(run.history.evaluated("validation") for run in ordered)
    lines = [(run, *(_validation(run) if validated else _training(run))) for run in ordered]
    lines = [line for line in lines if len(line[1]) > 1]
    if not lines:
        return False
    what = "Validation" if validated else "Training"
    with picture(path, ABOVE_IN + PANEL_IN + BELOW_IN) as drawing:
        title(drawing, f"{len(ordered)} runs", f"{what} loss over steps; {ordered[0].label} is best")
        axes = place(drawing, LEFT_IN, RIGHT_IN, ABOVE_IN, BELOW_IN)
        quiet_grid(axes)
        scale_losses(axes, np.concatenate([losses for _, _, losses in lines]))
        scale_steps(axes, max(int(steps[-1]) for _, steps, _ in lines))
        heading(axes, "loss")
        names = short([run.label for run, _, _ in lines])
        labels = []
        for rank, ((_, steps, losses), name) in reversed(list(enumerate(zip(lines, names, strict=True)))):
            best = rank < len(COLOURS)  # (drawn last, over the others)
            colour = COLOURS[rank] if best else OTHERS
            axes.plot(steps, losses, color=colour, linewidth=1.8 if rank == 0 else 1.2 if best else 0.8)
            if best:
                labels.append((float(losses[-1]), f"{figure(losses[-1])}  {name}", colour))
        label(axes, labels)
    return True


def short(names: Sequence[str]) -> list[str]:
    """Names without the words that all begin with, but for the key of a value: rate-0.1."""
    words = [name.split("-") for name in names]
    same = 0
    while all(len(each) > same + 1 and each[same] == words[0][same] for each in words):
        same += 1
    if same and any(each[same][:1].isdigit() for each in words):
        same -= 1
    return ["-".join(each[same:]) for each in words]


def _validation(run: Standing) -> tuple[Series, Series]:
    rows = [row for row in run.history.evaluated("validation") if "step" in row]
    steps, losses = (np.array([row.get(key, np.nan) for row in rows], np.float64) for key in ("step", "loss"))
    return steps[np.isfinite(losses)], losses[np.isfinite(losses)]


def _training(run: Standing) -> tuple[Series, Series]:
    if not run.history.steps:
        return np.zeros(0), np.zeros(0)
    steps, losses = run.history.steps.step, smooth(run.history.steps.loss, SMOOTHING * len(run.history.steps))
    return thin(steps[np.isfinite(losses)], losses[np.isfinite(losses)])
