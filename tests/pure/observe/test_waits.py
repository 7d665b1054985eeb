"""What ranks waited for: a rank's time, each moment by what was the case at it."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from weft.runtime.observe.trace import RankTrace, Span
from weft.runtime.observe.waits import Waits, waits, waits_line


def compute(start: int, end: int, micro_batch: int = 0, step: int = 0, model: str = "") -> Span:
    about = {"phase": "forward", "step": step, "micro_batch": micro_batch, "model": model}
    return Span("compute", "dense.forward", start, end, about)


def wire(start: int, end: int, portion: int = 0) -> Span:
    return Span("wire", f"portion {portion} dense", start, end, {"bytes": 4, "step": 0, "portion": portion})


def ranks(*spans: list[Span], dropped: int = 0) -> list[RankTrace]:
    ordered = (tuple(sorted(own, key=lambda span: span.start_ns)) for own in spans)
    return [RankTrace(rank, "n0", own, dropped if rank == 0 else 0) for rank, own in enumerate(ordered)]


WAITS = {
    "nobody waits": (ranks([compute(0, 100)], [compute(0, 100)]), (1, 0, 0, 0)),
    "one waits while the other computes": (
        ranks([compute(0, 50), compute(90, 100)], [compute(0, 100)]),
        (0.8, 0.2, 0, 0),
    ),
    "both wait, and nothing is on its way": (
        ranks([compute(0, 50), compute(90, 100)], [compute(0, 50), compute(90, 100)]),
        (0.6, 0, 0, 0.4),
    ),
    "both wait for what is on its way": (
        ranks(
            [compute(0, 50), wire(50, 80), compute(90, 100)],
            [compute(0, 50), wire(50, 80), compute(90, 100)],
        ),
        (0.6, 0, 0.3, 0.1),
    ),
    "what one has posted travels when the other has, too": (
        ranks(
            [compute(0, 50), wire(50, 80), compute(90, 100)],
            [compute(0, 50), wire(70, 80), compute(90, 100)],
        ),
        (0.6, 0, 0.1, 0.3),
    ),
    "each portion travels by itself": (
        ranks(
            [compute(0, 50), wire(50, 60, 1), compute(90, 100)],
            [compute(0, 50), wire(80, 90, 2), compute(90, 100)],
        ),
        (0.6, 0, 0.2, 0.2),
    ),
    "under a kernel nobody waits for the wire": (
        ranks([compute(0, 50), wire(40, 80), compute(90, 100)], [compute(0, 100), wire(40, 80)]),
        (0.8, 0.2, 0, 0),
    ),
    "what others do out of step is computing": (
        ranks([compute(0, 50), compute(90, 100)], [Span("compute", "compile", 0, 60, {}), compute(60, 100)]),
        (0.8, 0.2, 0, 0),
    ),
    "before a rank's first span that was kept nothing is known": (
        ranks([compute(80, 90), compute(95, 100)], [compute(0, 10), compute(80, 90)], dropped=7),
        (0.875, 0, 0, 0.125),
    ),
}


@pytest.mark.parametrize(("traces", "parts"), WAITS.values(), ids=WAITS.keys())
def test_waits(traces: list[RankTrace], parts: tuple[float, ...]) -> None:
    assert waits(traces) == Waits(*(pytest.approx(part) for part in parts))


def test_where_nobody_trained_there_is_nothing_to_say() -> None:
    for traces in ([], ranks([]), ranks([Span("compute", "validation", 0, 9, {})])):
        assert waits(traces) is None
        assert waits_line(traces) == ""


LINES = {
    "a rank that is busy": (
        ranks([compute(0, 95), compute(97, 100)]),
        "  bound by compute: 98.0% of the ranks' training time",
    ),
    "a single rank that is not": (ranks([compute(0, 40), compute(97, 100)]), ""),
    "few micro-batches, where ranks wait for others": (
        ranks([compute(0, 50), compute(90, 100)], [compute(0, 30, 1), compute(30, 100, 2)]),
        "  ranks waited 20.0% of their training time: 20.0% while another computed\n"
        "  a step had 3 micro-batches for 2 ranks",
    ),
    "one": (
        ranks([compute(0, 50), compute(90, 100)], [compute(0, 100)]),
        "  ranks waited 20.0% of their training time: 20.0% while another computed\n"
        "  a step had 1 micro-batch for 2 ranks",
    ),
    "enough of them": (
        ranks([compute(0, 50), compute(90, 100)], [compute(5 * i, 5 * i + 5, i) for i in range(20)]),
        "  ranks waited 20.0% of their training time: 20.0% while another computed",
    ),
    "steps of several models": (
        ranks([compute(0, 50, model="a"), compute(90, 100, model="b")], [compute(0, 100, model="a")]),
        "  ranks waited 20.0% of their training time: 20.0% while another computed",
    ),
    "all three": (
        ranks([compute(0, 40), wire(60, 70), compute(80, 100)], [compute(0, 50), compute(90, 100)]),
        "  ranks waited 40.0% of their training time: 10.0% while another computed, "
        "10.0% while none computed and gradients travelled, 20.0% otherwise",
    ),
}


@pytest.mark.parametrize(("traces", "line"), LINES.values(), ids=LINES.keys())
def test_the_line(traces: list[RankTrace], line: str) -> None:
    assert waits_line(traces) == line


pieces = st.lists(st.tuples(st.integers(0, 30), st.integers(0, 30), st.booleans()), min_size=1, max_size=6)


@given(st.lists(pieces, min_size=1, max_size=3))
def test_every_moment_is_counted_once(drawn: list[list[tuple[int, int, bool]]]) -> None:
    traces = ranks(
        *([(wire if sends else compute)(*sorted((start, end))) for start, end, sends in own] for own in drawn)
    )
    parts = waits(traces)
    if parts is None:
        return
    # The oracle: every unit of time on its own.
    sent = [span for trace in traces for span in trace.spans if span.track == "wire"]
    posted = max((span.start_ns for span in sent), default=0)
    travels = {t for span in sent for t in range(max(posted, span.start_ns), span.end_ns)}
    own = [
        {t for s in trace.spans if s.track == "compute" for t in range(s.start_ns, s.end_ns)}
        for trace in traces
    ]
    anybody = set[int]().union(*own)
    found = []
    for busy, trace in zip(own, traces, strict=True):
        spans = [span for span in trace.spans if span.track == "compute"]
        if not spans or not (
            whole := max(s.end_ns for s in spans) - (start := min(s.start_ns for s in spans))
        ):
            continue
        moments = set(range(start, start + whole))
        split = (moments & busy, (moments - busy) & anybody, (moments - anybody) & travels)
        found.append([len(part) / whole for part in (*split, moments - anybody - travels)])
    expected = np.mean(found, axis=0).tolist()
    assert parts == Waits(*(pytest.approx(part) for part in expected))
