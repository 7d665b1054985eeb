"""A finished or broken-off run in words and pictures, from what its folder holds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import astuple
from pathlib import Path
from statistics import median

from .chrome import read_chrome
from .folder import RunFolder
from .metrics import History, Row, read_metrics
from .shares import Shares, summarise
from .trace import RankTrace
from .words import duration, figure, speed


def report(path: Path) -> str:
    """Draw `loss.png` and `timeline.png` into the run's folder; returns what there is to say about it.

    Works with what is there: a run that crashed has no trace, one with `[run] trace = false` neither.
    """
    # Matplotlib takes half a second to import, which ranks that train need not wait for.
    from .curves import draw_loss
    from .timeline import draw_timeline

    folder = RunFolder.open(path)
    history = read_metrics(folder.metrics)
    traces = read_chrome(folder.trace) if folder.trace.is_file() else []
    drawn = []
    if draw_loss(folder.loss_picture, folder.name, history):
        drawn.append(folder.loss_picture)
    if draw_timeline(folder.timeline_picture, folder.name, traces):
        drawn.append(folder.timeline_picture)
    parts = [summary(folder.name, history), table(traces)]
    if not traces:
        parts.append("no trace.json: the run has not ended, or was told not to trace")
    if drawn:
        parts.append("pictures: " + "  ".join(map(str, drawn)))
    return "\n\n".join(part for part in parts if part)


def summary(name: str, history: History) -> str:
    """What the run did and how well it learned."""
    if not history.steps:
        return f"{name}: no step was done"
    last = history.steps[-1]
    head = f"{name}: {_steps(last['step'])}"
    if math.isfinite(seconds := last.get("time_s", math.nan)):
        head += f" in {duration(seconds)}"
    speeds = [row["samples_per_s"] for row in history.steps if "samples_per_s" in row]
    if speeds:
        head += f", {speed(median(speeds))}"
    head += f"; {history.end['reason']}" if history.end and "reason" in history.end else "; it did not end"
    # One step's loss is a matter of luck.
    tail = history.steps[-max(1, len(history.steps) // 20) :]
    loss = sum(row.get("loss", math.nan) for row in tail) / len(tail)
    lines = [head, f"  training    loss {figure(loss)} (mean of {_steps(len(tail))})"]
    for split in ("validation", "test"):
        if evaluated := history.evaluated(split):
            lines.append(f"  {split:<11} {_score(evaluated[-1])}")
    if history.skipped:
        lines.append(f"  damaged lines of metrics.jsonl that were skipped: {history.skipped}")
    return "\n".join(lines)


def table(traces: Sequence[RankTrace]) -> str:
    """A line for each rank: where its training time went."""
    rows = [(trace, summarise(trace.spans)) for trace in traces]
    rows = [(trace, shares) for trace, shares in rows if shares.seconds]
    if not rows:
        return ""
    width = max(4, *(len(trace.host) for trace, _ in rows))
    lines = [f"  rank  {'host':<{width}}  compute  exposed wire  hidden wire    idle  steps"]
    for trace, shares in rows:
        steps = {span.args["step"] for span in trace.spans if "step" in span.args}
        lines.append(f"  {trace.rank:>4}  {trace.host:<{width}}  {_shares(shares)}  {len(steps):>5,}")
    if len(rows) > 1:
        lines.append(f"  {'mean':>4}  {'':<{width}}  {_shares(mean([shares for _, shares in rows]))}")
    dropped = sum(trace.dropped for trace in traces)
    if dropped:
        lines.append(f"  of the last steps only: {dropped:,} older spans had to make room")
    return "\n".join(lines)


def mean(shares: Sequence[Shares]) -> Shares:
    """The mean over ranks of each share."""
    columns = zip(*map(astuple, shares), strict=True)
    return Shares(*(sum(column) / len(shares) for column in columns))


def _shares(shares: Shares) -> str:
    return (
        f"{shares.compute:>7.1%}  {shares.exposed_communication:>12.1%}  "
        f"{shares.hidden_communication:>11.1%}  {shares.idle:>6.1%}"
    )


def _score(row: Row) -> str:
    accuracy = row.get("accuracy", math.nan)
    text = f"loss {figure(row.get('loss', math.nan))}"
    return text + (f"  accuracy {accuracy:.4f}" if math.isfinite(accuracy) else "")


def _steps(count: int) -> str:
    return f"{count:,} step{'' if count == 1 else 's'}"
