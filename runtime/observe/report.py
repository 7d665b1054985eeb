"""A finished or broken-off run in words and pictures, from what its folder holds."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final

from ..errors import Mistake
from .chrome import read_chrome
from .compare import UNKNOWN, Run, side_by_side, training_loss
from .folder import Files, RunFolder
from .history import History, Row, read_metrics
from .labels import model_of
from .portions import Summary, journeys, summaries, write_portions
from .shares import ModelShares, Shares, mean, models, summarise, summarise_models
from .standings import ranked
from .standings import table as standings_table
from .trace import WIRE, RankTrace
from .waits import waits_line
from .words import duration, figure, speed
from .work import work_table

PORTIONS_SHOWN: Final = 16

UNENDED: Final = "it runs still, or broke off"


def report(path: Path) -> str:
    """Draw `loss.png` and `timeline.png` into the run's folder; returns what there is to say about it.

    Works with what is there, and says what is not: a run that crashed has no trace, one with `[run] trace =
    false` neither; of a folder of somebody else's there are words, but no pictures.
    """
    # Matplotlib takes half a second to import, which ranks that train need not wait for.
    from .curves import draw_loss
    from .timeline import draw_timeline

    folder = RunFolder.open(path)
    history = read_metrics(folder.metrics)
    traces, missing = _traces(folder)
    parts = [summary(folder.name, history), table(traces), model_table(traces)]
    if traces and not history.steps:
        parts[0] = (
            f"{folder.name}: metrics.jsonl, which would tell what its steps reached, is missing or empty"
        )
    parts += [waits_line(traces), _traced(folder.name, traces, history)]
    parts.append(work_table(history.work))
    parts.append(exchange_lines(history.exchange))
    files = Files()
    if ways := [journey for trace in traces for journey in journeys(trace)]:
        parts.append(portion_table(summaries(traces, ways)))
        if files.write(folder.portions, lambda path: write_portions(path, ways)):
            parts.append(f"every step and portion: {folder.portions}")
    parts.append(missing)
    pictures = [
        path
        for path, draw in (
            (folder.loss_picture, lambda path: draw_loss(path, folder.name, history)),
            (folder.timeline_picture, lambda path: draw_timeline(path, folder.name, traces)),
        )
        if files.write(path, draw)
    ]
    if pictures:
        parts.append("pictures: " + "  ".join(map(str, pictures)))
    parts += files.lost
    return "\n\n".join(part for part in parts if part)


def rank(paths: Sequence[Path]) -> str:
    """Draw `losses.png` into the first of these folders of runs; returns a table, the best run first."""
    from .standings_picture import draw_standings

    ordered, files, path = ranked(paths), Files(), RunFolder.open(paths[0]).losses_picture
    drawn = files.write(path, lambda path: draw_standings(path, ordered))
    return "\n\n".join([standings_table(ordered), *([f"picture: {path}"] if drawn else []), *files.lost])


def _traces(folder: RunFolder) -> tuple[list[RankTrace], str]:
    """The run's traces, or why there are none."""
    try:
        traces = read_chrome(folder.trace)
    except Mistake as mistake:
        return [], str(mistake)
    return (
        traces,
        "" if traces else f"no trace.json in {folder.path}: the run has not ended, or was told not to trace",
    )


def _traced(name: str, traces: Sequence[RankTrace], history: History) -> str:
    """Where a run was resumed: of which steps the trace tells, and with it all tables of what ranks did."""
    spans = [span for trace in traces for span in trace.spans if "step" in span.args]
    several = len(models(spans)) > 1  # each has steps of its own
    steps = [span.args["step"] + 1 for span in spans if not several or model_of(span) == name]
    if not steps or not history.start:
        return ""
    of = f"  the trace is of steps {min(steps):,} to {max(steps):,}"
    if max(steps) > history.start:  # (older ones of them may have had to make room)
        return f"{of}: since the run was resumed" if min(steps) == history.start + 1 else of
    if history.steps and max(steps) < history.steps.last:
        return f"{of}: what came later has not ended"
    return of if min(steps) > 1 else ""  # since the start before the last, which had nothing left to do


def compare(path: Path, other: Path) -> str:
    """Draw `compare.png` into the folder of the run at `path`; returns a table of both."""
    from .compare_picture import draw_comparison

    folders = RunFolder.open(path), RunFolder.open(other)
    # As short as tells them apart.
    names = [folder.name for folder in folders]
    title = " and ".join(dict.fromkeys(names))
    if names[0] == names[1]:
        names = [folder.path.resolve().name for folder in folders]
    if names[0] == names[1]:
        names = [str(folder.path) for folder in folders]
    traces, missing = zip(*map(_traces, folders), strict=True)
    runs = [
        Run(name, read_metrics(folder.metrics), of_run)
        for folder, name, of_run in zip(folders, names, traces, strict=True)
    ]
    parts = [side_by_side(*runs)]
    for run in runs:
        if run.history.exchange is not None:
            parts.append(f"  {run.label}: {travelled(run.history.exchange)}")
    # Beside speeds and losses of all steps stand times and shares of those that the trace has.
    for folder, run in zip(folders, runs, strict=True):
        if traced := _traced(folder.name, run.traces, run.history):
            parts.append(f"  {run.label}: {traced.strip()}")
    parts += missing
    files = Files()
    if files.write(folders[0].compare_picture, lambda path: draw_comparison(path, title, runs)):
        parts.append(f"picture: {folders[0].compare_picture}")
    return "\n\n".join(part for part in [*parts, *files.lost] if part)


def summary(name: str, history: History) -> str:
    """What the run did and how well it learned."""
    if not history.steps:
        return f"{name}: no step was done" + ("" if history.end else f"; {UNENDED}")
    last = history.steps.last
    head = f"{name}: {_steps(last)}"
    if math.isfinite(history.seconds):
        head += f" in {duration(history.seconds)}"
    if math.isfinite(per_s := history.steps.speed):
        head += f", {speed(per_s)}"
    head += f"; {(history.end or {}).get('reason', UNENDED)}"
    loss, of = training_loss(history)
    lines = [head, f"  training    loss {figure(loss)} (mean of {_steps(of)})"]
    for split in ("validation", "test"):
        if evaluated := history.evaluated(split):
            step = evaluated[-1].get("step", last)
            lines.append(f"  {split:<11} {_score(evaluated[-1])}")
            lines[-1] += f" (after step {step:,})" if step != last else ""
    if history.skipped:
        lines.append(f"  damaged lines of metrics.jsonl that were skipped: {history.skipped}")
    return "\n".join(lines)


def table(traces: Sequence[RankTrace]) -> str:
    """A line for each rank: where its training time went."""
    rows = [(trace, summarise(trace.spans)) for trace in traces]
    rows = [(trace, shares) for trace, shares in rows if shares.seconds]
    if not rows:
        return ""
    sends = any(shares.wire for _, shares in rows)
    exchanges = any(shares.exchange for _, shares in rows)
    width = max(4, *(len(trace.host) for trace, _ in rows))
    head = "compute" + ("  exchange" if exchanges else "")
    head += "  wire busy  exposed  hidden" if sends else ""
    trained = len(models(rows[0][0].spans))
    counted = "steps" if trained < 2 else f"steps of {trained} models"
    lines = [f"  rank  {'host':<{width}}  {head}    idle  {counted}"]
    for trace, shares in rows:
        steps = {(s.args.get("model", ""), s.args["step"]) for s in trace.spans if "step" in s.args}
        columns = _shares(shares, exchanges=exchanges, sends=sends)
        lines.append(f"  {trace.rank:>4}  {trace.host:<{width}}  {columns}  {len(steps):>{len(counted)},}")
    if len(rows) > 1:
        columns = _shares(mean([shares for _, shares in rows]), exchanges=exchanges, sends=sends)
        lines.append(f"  {'mean':>4}  {'':<{width}}  {columns}")
    notes = []
    if any(span.args.get("phase") == "inference" for trace, _ in rows for span in trace.spans):
        notes.append("compute: also what answered requests amid the steps")
    if exchanges:
        notes.append("exchange: sums and encodings, a part of compute")
    if sends:
        notes += ["exposed: the wire is busy and no kernel runs", "hidden: share of the wire's time"]
    lines += ["  " + "; ".join(notes)] if notes else []
    if not sends:
        lines.append("  " + no_wire([trace for trace, _ in rows]))
    dropped = sum(trace.dropped for trace in traces)
    if dropped:
        lines.append(f"  of the last steps only: {dropped:,} older spans had to make room")
    return "\n".join(lines)


def no_wire(traces: Sequence[RankTrace]) -> str:
    """Why nothing was sent."""
    if len(traces) == 1:
        return "no wire: one rank"
    if len({trace.host for trace in traces}) == 1:
        return "no wire: one node, gradients meet in shared memory"
    return "no wire: the trace holds no transfers"


def model_table(traces: Sequence[RankTrace]) -> str:
    """With several models a line for each: whose kernels ran while its gradients travelled."""
    if not traces or len(models(traces[0].spans)) < 2:
        return ""
    by_model: dict[str, list[ModelShares]] = {}
    for trace in traces:
        for model, shares in summarise_models(trace.spans).items():
            by_model.setdefault(model, []).append(shares)
    width = max(5, *map(len, by_model))
    sends = any(span.track == WIRE for trace in traces for span in trace.spans)
    lines = [f"  {'model':<{width}}  compute"]
    if sends:
        lines = [
            f"  {'':<{width}}           on the wire while there ran",
            lines[0] + "  own kernels  others' kernels   none",
        ]
    for model, of_ranks in by_model.items():
        line = f"  {model:<{width}}  {_mean(s.compute for s in of_ranks):>7.1%}"
        if sends:
            line += f"  {_mean(s.hidden_by_own for s in of_ranks):>11.1%}"
            line += f"  {_mean(s.hidden_by_others for s in of_ranks):>15.1%}"
            line += f"  {_mean(s.exposed for s in of_ranks):>5.1%}"
        lines.append(line)
    return "\n".join(lines)


def exchange_lines(row: Row | None) -> str:
    """How gradients travelled at the end, as tuning and the last plan left it; empty where none did."""
    if row is None:
        return ""
    return f"  {travelled(row)}\n  plan since step {row.get('step', 0):,}: {row.get('plan', UNKNOWN)}"


def travelled(row: Row) -> str:
    """The settings of an exchange in words."""
    size, credit = (f"{int(row.get(name, 0)):,}" for name in ("portion_bytes", "credit"))
    return f"gradients travelled in portions of {size} bytes, {credit} at once, {row.get('rule', UNKNOWN)}"


def portion_table(sent: Sequence[Summary]) -> str:
    """Medians of every portion, in order of layers; of many portions those that are most exposed."""
    shown = sent
    if len(sent) > PORTIONS_SHOWN:
        worst = sorted(sent, key=lambda summary: -summary.exposed)[:PORTIONS_SHOWN]
        shown = [summary for summary in sent if summary in worst]
    several = len({summary.model for summary in sent}) > 1
    widest = max([5, *(len(summary.model) for summary in shown)]) if several else 0
    layer = max([5, *(len(summary.label.short) for summary in shown)])
    whats = [_short(summary.label.what) for summary in shown]
    width = max([7, *map(len, whats)])
    lead = f"  {'model':<{widest}}" if several else ""
    lines = [
        "  portions: medians over steps and ranks, in ms; times count from the step's first backward kernel",
        f"{lead}  {'layer':<{layer}}  {'portion':<{width}}       KB   ready  posted    done    used"
        "  waiting  travelling   lying  exposed",
    ]
    for summary, what in zip(shown, whats, strict=True):
        lead = f"  {summary.model:<{widest}}" if several else ""
        times = "  ".join(_ms(ms, 6) for ms in (summary.ready, summary.posted, summary.done, summary.used))
        lines.append(
            f"{lead}  {summary.label.short:<{layer}}  {what:<{width}}"
            f"  {summary.nbytes / 1000:>7,.0f}  {times}"
            f"  {_ms(summary.waiting, 7)}  {_ms(summary.travelling, 10)}  {_ms(summary.lying, 6)}"
            f"  {_ms(summary.exposed, 7)}"
        )
    if left := len(sent) - len(shown):
        exposed = sum(s.exposed for s in sent) - sum(s.exposed for s in shown)
        lines.append(f"  and {left} more, which are exposed less: {exposed:.2f} ms in all")
    return "\n".join(lines)


def _mean(values: Iterable[float]) -> float:
    known = list(values)
    return sum(known) / len(known)


def _short(what: str) -> str:
    """The nodes of a portion; of many the first and the last in forward order."""
    nodes = what.split(", ")
    return f"{nodes[-1]} to {nodes[0]}" if len(nodes) > 2 else ", ".join(reversed(nodes))


def _ms(value: float | None, width: int) -> str:
    return f"{'–':>{width}}" if value is None else f"{value:>{width}.2f}"


def _shares(shares: Shares, *, exchanges: bool, sends: bool) -> str:
    text = f"{shares.compute:>7.1%}"
    text += f"  {shares.exchange:>8.1%}" if exchanges else ""
    if sends:
        # A rank may carry nothing, for its node's others do: 0 of its time, as the mean has it. (A dash stood
        # there, and above a mean of half the others' numbers.)
        text += f"  {shares.wire:>9.1%}  {shares.exposed_communication:>7.1%}"
        text += f"  {shares.hidden_of_wire:>6.1%}" if shares.wire else f"  {'–':>6}"
    return text + f"  {shares.idle:>6.1%}"


def _score(row: Row) -> str:
    accuracy = row.get("accuracy", math.nan)
    text = f"loss {figure(row.get('loss', math.nan))}"
    return text + (f"  accuracy {accuracy:.4f}" if math.isfinite(accuracy) else "")


def _steps(count: int) -> str:
    return f"{count:,} step{'' if count == 1 else 's'}"
