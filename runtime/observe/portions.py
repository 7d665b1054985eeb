"""Each portion's way through each step: when it was ready, posted, done and used.

    lane   weight gradient▕ ready               used▏update        ready: the wire could have had it
    wire                   ╲      posted▐▬▬▬▬▬▌done╱               used: its update began
                           waiting    travelling   lying

What is known of a portion is in two spans: its transfer's (track wire: posted to done, with `waited_us`, the
time since ready) and its update's. Traces that lack one of these facts leave holes, not errors.
"""

from __future__ import annotations

import csv
import heapq
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Final

import numpy as np
from numpy.typing import NDArray

from .labels import Label, forward_order, labels, model_of, number_in, portion_of, what_of
from .shares import intervals, length, union
from .trace import COMPUTE, WIRE, RankTrace, Span

BACKWARD: Final = ("input_gradient", "weight_gradient")


@dataclass(frozen=True, slots=True)
class Journey:
    """One portion in one step on one rank; None is what the trace does not tell."""

    rank: int
    model: str
    step: int  # from 0
    portion: int
    name: str
    nbytes: int
    start_ns: int | None  # of the step: its first backward kernel on this rank
    ready_ns: int | None
    posted_ns: int
    done_ns: int
    used_ns: int | None
    exposed_ns: int  # no kernel ran, and of the portions in flight this was the next to be done

    def after_start(self, at_ns: int | None) -> float | None:
        """Milliseconds from the step's first backward kernel to `at_ns`."""
        return _ms(self.start_ns, at_ns)

    @property
    def waiting_ms(self) -> float | None:
        """From ready to posted: for its turn, or for credit."""
        return _ms(self.ready_ns, self.posted_ns)

    @property
    def travelling_ms(self) -> float | None:
        """From posted to done."""
        return _ms(self.posted_ns, self.done_ns)

    @property
    def lying_ms(self) -> float | None:
        """From done to used: summed, and nobody has needed it yet."""
        return _ms(self.done_ns, self.used_ns)


def journeys(trace: RankTrace) -> list[Journey]:
    """All portions that the rank sent, in order of their posting."""
    starts: dict[tuple[str, int], int] = {}
    used: dict[tuple[str, int, int], int] = {}
    for span in trace.spans:
        step, phase = span.args.get("step"), span.args.get("phase")
        if span.track != COMPUTE or step is None:
            continue
        key = (model_of(span), step)
        if phase in BACKWARD:
            starts[key] = min(starts.get(key, span.start_ns), span.start_ns)
        elif phase == "update" and (portion := portion_of(span)) is not None:
            # Clipping has a span of its own, the norm, before the update.
            used[*key, portion] = max(used.get((*key, portion), span.start_ns), span.start_ns)
    wire = sorted(
        (span for span in trace.spans if span.track == WIRE and "step" in span.args),
        key=lambda span: span.start_ns,
    )
    found = []
    for span, exposed_ns in zip(wire, exposed(wire, trace.spans), strict=True):
        portion = portion_of(span)
        if portion is None:
            continue
        step, waited_us = span.args["step"], span.args.get("waited_us")
        found.append(
            Journey(
                rank=trace.rank,
                model=model_of(span),
                step=step,
                portion=portion,
                name=span.name,
                nbytes=span.args.get("bytes", 0),
                start_ns=starts.get((model_of(span), step)),
                ready_ns=None if waited_us is None else span.start_ns - round(waited_us * 1000),
                posted_ns=span.start_ns,
                done_ns=span.end_ns,
                used_ns=used.get((model_of(span), step, portion)),
                exposed_ns=exposed_ns,
            )
        )
    return found


def exposed(wire: Sequence[Span], spans: Iterable[Span]) -> list[int]:
    """Nanoseconds for which no kernel ran while each of `wire` (in order of start) was the next to be done.

    The parts add up to the whole exposed communication: of several portions in flight, the one that is done
    first is the one the lane can go on with first.
    """
    # Pieces of time, with the span that is next to be done in each: a sweep over starts and ends.
    pieces: list[tuple[int, int, int]] = []
    flying: list[tuple[int, int]] = []
    now = 0
    for i, span in enumerate([*wire, None]):
        until = span.start_ns if span is not None else None
        while flying and (until is None or now < until):
            end, first = flying[0]
            stop = end if until is None else min(end, until)
            if stop > now:
                pieces.append((now, stop, first))
            now = max(now, stop)
            if end <= now:
                heapq.heappop(flying)
        if span is not None:
            now = span.start_ns
            heapq.heappush(flying, (span.end_ns, i))
    total = np.zeros(len(wire), np.int64)
    if pieces:
        start, stop, first = np.array(pieces, np.int64).T
        busy = union(intervals(span for span in spans if span.track == COMPUTE))
        np.add.at(total, first, (stop - start) - (covered(busy, stop) - covered(busy, start)))
    return [int(ns) for ns in total]


def covered(busy: NDArray[np.int64], at: NDArray[np.int64]) -> NDArray[np.int64]:
    """How much of the disjoint `busy` lies before each time."""
    if not length(busy):
        return np.zeros(len(at), np.int64)
    before = np.concatenate(([0], np.cumsum(busy[:, 1] - busy[:, 0])))
    row = np.searchsorted(busy[:, 0], at, side="right")  # rows that have begun
    into = np.minimum(at, busy[row - 1, 1]) - busy[row - 1, 0]
    return np.where(row > 0, before[row - 1] + into, 0)


@dataclass(frozen=True, slots=True)
class Summary:
    """A portion over all steps and ranks: medians, in milliseconds; times count from `Journey.start_ns`."""

    model: str
    label: Label
    nbytes: int
    ready: float | None
    posted: float | None
    done: float | None
    used: float | None
    waiting: float | None
    travelling: float | None
    lying: float | None
    exposed: float


def summaries(traces: Sequence[RankTrace], ways: Sequence[Journey]) -> list[Summary]:
    """Every portion of every model, in order of layers; `ways` are all journeys of `traces`.

    The first step, which fills caches, is left out. Where the portions were cut anew during the run, those of
    the last cut alone count.
    """
    by_model: dict[str, list[Journey]] = defaultdict(list)
    for journey in settled(ways):
        by_model[journey.model].append(journey)
    found = []
    for model, own in by_model.items():
        order = next(filter(None, (forward_order(trace.spans, model) for trace in traces)), [])
        names = labels({journey.name for journey in own}, order)
        for name, label in sorted(names.items(), key=lambda item: (item[1].place, number_in(item[0]))):
            found.append(_summary(model, label, [journey for journey in own if journey.name == name]))
    return found


def settled(own: Sequence[Journey]) -> list[Journey]:
    """The journeys of the steps that cut the gradient as their model's last one did, without the first."""
    cuts: dict[tuple[str, int], set[str]] = defaultdict(set)
    for journey in own:
        cuts[journey.model, journey.step].add(journey.name)
    kept: set[tuple[str, int]] = set()
    for model in {model for model, _ in cuts}:
        steps = sorted(step for of, step in cuts if of == model)
        alike = [step for step in steps if cuts[model, step] == cuts[model, steps[-1]]]
        kept.update((model, step) for step in (alike[1:] if len(alike) > 2 else alike))
    return [journey for journey in own if (journey.model, journey.step) in kept]


COLUMNS: Final = (
    "model", "step", "portion", "name", "rank", "bytes", "ready_ms", "posted_ms", "done_ms", "used_ms",
    "waiting_ms", "travelling_ms", "lying_ms", "exposed_ms",
)  # fmt: skip


def write_portions(path: Path, ways: Iterable[Journey]) -> None:
    """Write every portion of every step of every rank to a CSV file. Steps count from 1."""
    rows = sorted(ways, key=lambda journey: (journey.step, journey.model, journey.portion, journey.rank))
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        for j in rows:
            times = [j.after_start(at) for at in (j.ready_ns, j.posted_ns, j.done_ns, j.used_ns)]
            times += [j.waiting_ms, j.travelling_ms, j.lying_ms, j.exposed_ns / 1e6]
            writer.writerow(
                [j.model, j.step + 1, j.portion, what_of(j.name), j.rank, j.nbytes]
                + ["" if ms is None else f"{ms:.3f}" for ms in times]
            )


def _summary(model: str, label: Label, own: Sequence[Journey]) -> Summary:
    return Summary(
        model=model,
        label=label,
        nbytes=max(j.nbytes for j in own),
        ready=_median(j.after_start(j.ready_ns) for j in own),
        posted=_median(j.after_start(j.posted_ns) for j in own),
        done=_median(j.after_start(j.done_ns) for j in own),
        used=_median(j.after_start(j.used_ns) for j in own),
        waiting=_median(j.waiting_ms for j in own),
        travelling=_median(j.travelling_ms for j in own),
        lying=_median(j.lying_ms for j in own),
        exposed=median(j.exposed_ns / 1e6 for j in own),
    )


def _median(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return median(known) if known else None


def _ms(from_ns: int | None, to_ns: int | None) -> float | None:
    return None if from_ns is None or to_ns is None else (to_ns - from_ns) / 1e6
