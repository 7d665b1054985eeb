"""What ranks waited for, as far as all their traces together tell: one line of the report.

    rank 0   ▐██████▌                  ▐███     a rank waits
    rank 1   ▐█████████████▌           ▐███     behind      while another computes
    wire             ▐▒▒▒▒▒▒▒▬▬▬▬▬▬▬▬▌          travelling  while none does, and a portion is on its way
                      ·behind│travel·│rest      rest        otherwise

▒ is no travelling yet: not all who carry the portion have posted it. These are facts about moments, not
causes: a rank may wait for a portion while another computes what nobody waits for. So the line says what was
the case while ranks waited, and no more.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import astuple, dataclass
from typing import Final

import numpy as np

from .labels import model_of, portion_of
from .shares import Intervals, complement, intersection, intervals, length, training_window, union
from .trace import COMPUTE, WIRE, RankTrace, Span

BOUND: Final = 0.9
"""From this share on, compute bounds a run: without any wait it would take a tenth less at most."""

FEW: Final = 10
"""Micro-batches a rank (docs/stealing.md): with fewer there is little to even out."""


@dataclass(frozen=True, slots=True)
class Waits:
    """Parts of the ranks' training time, in the mean over ranks; they add up to 1."""

    compute: float
    behind: float
    travelling: float
    rest: float


def waits(traces: Sequence[RankTrace]) -> Waits | None:
    """What the ranks did and waited for; None where none of them trained."""
    # Of ranks that dropped spans there is nothing to know before their first.
    since_ns = max((trace.spans[0].start_ns for trace in traces if trace.dropped and trace.spans), default=0)
    until_ns = max((span.end_ns for trace in traces for span in trace.spans), default=0)
    known = np.array([[since_ns, max(since_ns, until_ns)]], np.int64)
    busy = [union(intervals(span for span in trace.spans if span.track == COMPUTE)) for trace in traces]
    anybody, wire = union(np.concatenate([*busy, _none()])), union(intervals(_travelling(traces)))
    found = []
    for trace, own in zip(traces, busy, strict=True):
        window = intersection(training_window(trace.spans), known)
        if not (whole := length(window)):
            continue
        waited = complement(intersection(own, window), window)
        alone = complement(intersection(anybody, window), window)  # none computes
        travelling = length(intersection(wire, alone))
        parts = (
            whole - length(waited),
            length(waited) - length(alone),
            travelling,
            length(alone) - travelling,
        )
        found.append([part / whole for part in parts])
    return Waits(*np.mean(found, axis=0).tolist()) if found else None


def waits_line(traces: Sequence[RankTrace]) -> str:
    """The line; empty where the shares of the ranks say as much."""
    if (parts := waits(traces)) is None:
        return ""
    if parts.compute >= BOUND:
        return f"  bound by compute: {parts.compute:.1%} of the ranks' training time"
    if len(traces) < 2:
        return ""  # what a single rank waits for is between its kernels
    whats = ("while another computed", "while none computed and gradients travelled", "otherwise")
    told = [(part, what) for part, what in zip(astuple(parts)[1:], whats, strict=True) if part >= 0.0005]
    line = f"  ranks waited {1 - parts.compute:.1%} of their training time: "
    line += ", ".join(f"{part:.1%} {what}" for part, what in told)
    count = _micro_batches(traces)
    if parts.behind > max(parts.travelling, parts.rest) and 0 < count < FEW * len(traces):
        line += f"\n  a step had {count:,} micro-batch{'es' if count > 1 else ''} for {len(traces)} ranks"
    return line


def _travelling(traces: Sequence[RankTrace]) -> list[Span]:
    """The transfers, each from when all who carry its portion have posted it: till then it waits."""
    sent = [span for trace in traces for span in trace.spans if span.track == WIRE]
    posted: dict[tuple[object, ...], int] = {}
    for span in sent:
        key = (model_of(span), span.args.get("step"), portion_of(span))
        posted[key] = max(posted.get(key, 0), span.start_ns)
    starts = (posted[model_of(span), span.args.get("step"), portion_of(span)] for span in sent)
    return [span._replace(start_ns=min(at, span.end_ns)) for span, at in zip(sent, starts, strict=True)]


def _micro_batches(traces: Sequence[RankTrace]) -> int:
    """Of a step, at most; 0 where models take turns, whose steps have their own."""
    seen: dict[int, set[int]] = {}
    models = set()
    for span in (span for trace in traces for span in trace.spans if "step" in span.args):
        models.add(model_of(span))
        seen.setdefault(span.args["step"], set()).add(span.args.get("micro_batch", -1))
    return max((len(numbers - {-1}) for numbers in seen.values()), default=0) if len(models) == 1 else 0


def _none() -> Intervals:
    return np.empty((0, 2), np.int64)
