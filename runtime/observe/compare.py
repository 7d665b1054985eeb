"""Two runs side by side: what they reached, and where their time went."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Final

import numpy as np

from .history import History
from .portions import covered
from .shares import Shares, mean, models, summarise, training_window
from .steps import most_typical, starts
from .trace import WIRE, RankTrace
from .words import figure, speed

UNKNOWN: Final = "–"


@dataclass(frozen=True)
class Run:
    """What a run's folder holds of interest here."""

    label: str
    history: History
    traces: list[RankTrace]

    @cached_property
    def shares(self) -> Shares | None:
        """The mean over ranks; None without a trace of training."""
        known = [shares for trace in self.traces if (shares := summarise(trace.spans)).seconds]
        return mean(known) if known else None

    def typical_step(self) -> tuple[RankTrace, int, int, int] | None:
        """A rank, the step, and when backward of it and of the next begin. The first rank that sends, if any.

        From backward to backward, because a step's gradients travel into the next one's forward.
        """
        sending = [t for t in self.traces if any(span.track == WIRE for span in t.spans)]
        for trace in sending or self.traces:
            if steps := most_typical(trace):
                return trace, steps[0][0], steps[0][1], steps[1][1]
        return None


def side_by_side(a: Run, b: Run) -> str:
    """The table: a line for what is known of at least one of the two."""
    lines = []
    for words, of, write, change in ROWS:
        left, right = of(a), of(b)
        if math.isnan(left) and math.isnan(right):
            continue
        both = not math.isnan(left + right)
        cells = [UNKNOWN if math.isnan(value) else write(value) for value in (left, right)]
        lines.append((words, *cells, change(left, right) if both else ""))
    heads = ("", a.label, b.label, "")
    widths = [max(len(line[i]) for line in [heads, *lines]) for i in range(4)]
    table = [
        f"  {line[0]:<{widths[0]}}  {line[1]:>{widths[1]}}  {line[2]:>{widths[2]}}  {line[3]}".rstrip()
        for line in [heads, *lines]
    ]
    if any(_models(run) > 1 for run in (a, b)):
        table.append("  step, compute, wire and idle are of all models that trained together")
    return "\n".join(table)


def training_loss(history: History) -> tuple[float, int]:
    """The mean over the last twentieth of all steps (one is a matter of luck), and how many that are."""
    tail = history.steps.loss[-max(1, len(history.steps) // 20) :]
    return (float(tail.mean()) if len(tail) else math.nan), len(tail)


def step_ms(run: Run) -> float:
    """The median time from one step's backward to the next one's, on the rank that is shown.

    As in the shares, evaluations do not count: of a run that evaluated after every step, as one does whose
    epochs are a step, they were said to be ten times as long as the speed above told.
    """
    if not (shown := run.typical_step()):
        return math.nan
    trace = shown[0]
    at = np.array([at_ns for _, at_ns in starts(trace, backward=True)[1]], np.int64)
    window = training_window(trace.spans)
    counted = np.diff(covered(window, at))[at[:-1] >= window[:, 0].min(initial=at[-1])]
    return float(np.median(counted if len(counted) else np.diff(at))) / 1e6


def _share(of: Callable[[Shares], float]) -> Callable[[Run], float]:
    return lambda run: of(run.shares) if run.shares else math.nan


def _wire(of: Callable[[Shares], float]) -> Callable[[Run], float]:
    """A share of a run that sent something: where nothing was sent there is no wire, not an idle one."""
    return lambda run: of(run.shares) if run.shares and run.shares.wire else math.nan


def _exchange(run: Run) -> float:
    return run.shares.exchange if run.shares and run.shares.exchange else math.nan


def _evaluated(split: str, key: str) -> Callable[[Run], float]:
    def last(run: Run) -> float:
        rows = run.history.evaluated(split)
        return float(rows[-1].get(key, math.nan)) if rows else math.nan

    return last


def _ratio(a: float, b: float) -> str:
    return f"×{b / a:.2f}" if a else ""


def _points(a: float, b: float) -> str:
    return f"{100 * (b - a):+.1f} points"


def _difference(a: float, b: float) -> str:
    return f"{'+' if b >= a else '-'}{figure(abs(b - a))}"


def _percent(value: float) -> str:
    return f"{value:.1%}"


ROWS: Final[
    Sequence[tuple[str, Callable[[Run], float], Callable[[float], str], Callable[[float, float], str]]]
] = (
    ("ranks", lambda run: len(run.traces) or math.nan, "{:.0f}".format, lambda a, b: ""),
    ("models", lambda run: _models(run), "{:.0f}".format, lambda a, b: ""),
    ("steps", lambda run: len(run.history.steps), "{:,.0f}".format, lambda a, b: ""),
    ("speed", lambda run: run.history.steps.speed, speed, _ratio),
    ("step, median", step_ms, lambda ms: f"{figure(ms)} ms", _ratio),
    ("compute", _share(lambda s: s.compute), _percent, _points),
    ("  of it for the exchange", _exchange, _percent, _points),
    ("wire busy", _wire(lambda s: s.wire), _percent, _points),
    ("  exposed", _wire(lambda s: s.exposed_communication), _percent, _points),
    ("  hidden, of the wire's time", _wire(lambda s: s.hidden_of_wire), _percent, _points),
    ("idle", _share(lambda s: s.idle), _percent, _points),
    ("training loss", lambda run: training_loss(run.history)[0], figure, _difference),
    ("validation loss", _evaluated("validation", "loss"), figure, _difference),
    ("validation accuracy", _evaluated("validation", "accuracy"), "{:.4f}".format, _difference),
    ("test loss", _evaluated("test", "loss"), figure, _difference),
    ("test accuracy", _evaluated("test", "accuracy"), "{:.4f}".format, _difference),
)


def _models(run: Run) -> float:
    count = len(models(span for trace in run.traces for span in trace.spans))
    return count if count > 1 else math.nan
