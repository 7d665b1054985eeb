"""Which steps of a trace to show: where they start, and which are typical."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median_low

import numpy as np

from .portions import BACKWARD, covered
from .shares import EXCHANGE, activity
from .trace import COMPUTE, RankTrace


def starts(trace: RankTrace, *, backward: bool = False) -> tuple[str, list[tuple[int, int]]]:
    """Each step and when its first kernel starts, or its first of backward, of the model with most kernels.

    The steps of other models have numbers of their own. Those during which not all models train show less: if
    two others remain, they are left out.
    """
    counted: dict[str, int] = {}
    last: dict[str, int] = {}
    found: dict[str, dict[int, int]] = {}
    for span in trace.spans:
        phase = span.args.get("phase")
        if span.track != COMPUTE or "step" not in span.args:
            continue
        # A step's updates run while the next one has begun, and what the exchange does may, too.
        if phase in BACKWARD if backward else phase not in EXCHANGE and phase != "update":
            model = span.args.get("model", "")
            counted[model] = counted.get(model, 0) + 1
            last[model] = span.start_ns
            found.setdefault(model, {}).setdefault(span.args["step"], span.start_ns)
    main = max(counted, key=lambda model: counted[model], default="")
    steps = sorted(found.get(main, {}).items())
    from_ns = max((min(begun.values()) for begun in found.values()), default=0)
    until_ns = min(last.values(), default=0)
    together = [(step, at_ns) for step, at_ns in steps if from_ns <= at_ns <= until_ns]
    return main, together if len(together) > 1 else steps


def typical(steps: Sequence[tuple[int, int]], count: int) -> list[tuple[int, int]]:
    """`count` successive steps that are typical of the run, and the one after them: (step, when it starts).

    Typical is the stretch whose length is nearest to the median one, the latest of equals. It thereby avoids
    the first steps, evaluations and hiccups. A single step comes alone; no step, an empty list.
    """
    # Of three the first, which compiles, need not be shown: beside it the others are hairlines.
    count = min(count, len(steps) - 1, max(1, len(steps) - 2))
    if count < 1:
        return list(steps)
    lengths = [end[1] - start[1] for start, end in zip(steps, steps[count:], strict=False)]
    middle = median_low(lengths)
    best = min(range(len(lengths)), key=lambda i: (abs(lengths[i] - middle), -i))
    return list(steps[best : best + count + 1])


def most_typical(trace: RankTrace) -> list[tuple[int, int]]:
    """A step from its backward to that of the one after it, as `typical` says them; empty without two steps.

    Its length, and how much of it was compute, exposed and idle, are nearest to what is the median of each.
    (By the length alone a step was shown of which 93% were compute, of a run in which a third was exposed.)
    It has no evaluation in it, if there is one that has none.
    """
    steps = starts(trace, backward=True)[1]
    if len(steps) < 2:
        return []
    at = np.array([at_ns for _, at_ns in steps], np.int64)
    compute, _, idle = activity(trace.spans, at[[0, -1]].reshape(1, 2))
    length, busy, waited = (np.diff(ns) for ns in (at, covered(compute, at), covered(idle, at)))
    parts = np.stack((length, busy, waited, length - busy - waited))
    off = np.abs(parts - np.median(parts, axis=1, keepdims=True)).sum(axis=0)
    scored = np.sort([s.start_ns for s in trace.spans if s.track == COMPUTE and s.evaluates])
    interrupted = np.diff(np.searchsorted(scored, at)) > 0
    if not interrupted.all():
        off[interrupted] = np.inf
    best = len(off) - 1 - int(np.argmin(off[::-1]))  # the latest of equals
    return steps[best : best + 2]
