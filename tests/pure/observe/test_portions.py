from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.pure.observe.synthetic import ONE, TWO, exchange_trace
from weft.runtime.observe import RankTrace, Span
from weft.runtime.observe.portions import Summary, exposed, journeys, summaries, write_portions
from weft.runtime.observe.shares import complement, intervals, length, union

MS = 1_000_000


def compute(name: str, phase: str, start: float, end: float, step: int = 0, **args: object) -> Span:
    return Span("compute", name, int(start * MS), int(end * MS), {"phase": phase, "step": step, **args})


def wire(number: int, what: str, start: float, end: float, step: int = 0, **args: object) -> Span:
    facts = {"bytes": 4096, "step": step, "portion": number, **args}
    return Span("wire", f"portion {number} ({what})", int(start * MS), int(end * MS), facts)


def summarised(*traces: RankTrace) -> list[Summary]:
    return summaries(traces, [way for rank in traces for way in journeys(rank)])


def trace(*spans: Span) -> RankTrace:
    return RankTrace(0, "n0", tuple(sorted(spans, key=lambda span: span.start_ns)))


def test_a_portion_is_ready_posted_done_and_used() -> None:
    (way,) = journeys(
        trace(
            compute("b.forward", "forward", 1, 2),
            compute("b.weight_gradient", "weight_gradient", 10, 14),
            compute("a.input_gradient", "input_gradient", 14, 20),
            wire(0, "b", 16, 21, waited_us=1500),
            compute("portion 0 (b).norm", "update", 22, 23, portion=0),
            compute("portion 0 (b).update", "update", 25, 26, portion=0),
        )
    )
    times = [way.after_start(at) for at in (way.ready_ns, way.posted_ns, way.done_ns, way.used_ns)]
    assert times == [4.5, 6, 11, 15]  # from the start of backward; the norm is not yet a use
    assert (way.waiting_ms, way.travelling_ms, way.lying_ms) == (1.5, 5, 4)
    assert way.exposed_ns == 1 * MS


def test_what_an_older_trace_does_not_tell_stays_open() -> None:
    bare = Span("wire", "portion 3 conv1", 0, 5 * MS, {"step": 0})
    (way,) = journeys(trace(bare, Span("compute", "portion 3 conv1.update", 6 * MS, 7 * MS, {"step": 0})))
    assert (way.portion, way.model, way.nbytes) == (3, "", 0)
    assert (way.ready_ns, way.used_ns, way.start_ns) == (None, None, None)
    assert (way.waiting_ms, way.travelling_ms) == (None, 5)
    old = {"phase": "update", "step": 0}  # before updates told their portion apart from their name
    (way,) = journeys(trace(bare, Span("compute", "portion 3 conv1.update", 6 * MS, 7 * MS, old)))
    assert way.lying_ms == 1


def test_equal_portions_of_two_models_are_not_mixed_up() -> None:
    ways = journeys(
        trace(
            compute("x.weight_gradient", "weight_gradient", 0, 1, model="a"),
            wire(0, "x", 1, 2, model="a"),
            compute("x.weight_gradient", "weight_gradient", 5, 6, model="b"),
            wire(0, "x", 6, 7, model="b"),
            compute("portion 0 (x).update", "update", 8, 9, model="b", portion=0),
            compute("portion 0 (x).update", "update", 9, 10, model="a", portion=0),
        )
    )
    assert [(way.model, way.after_start(way.posted_ns), way.lying_ms) for way in ways] == [
        ("a", 1, 7),
        ("b", 1, 1),
    ]


EXPOSED = {
    "alone on an idle lane": ([wire(0, "a", 0, 5)], [], [5]),
    "hidden": ([wire(0, "a", 1, 4)], [(0, 5)], [0]),
    "the rest of it": ([wire(0, "a", 0, 5)], [(2, 3)], [4]),
    "of two in flight the next to be done": ([wire(0, "a", 0, 5), wire(1, "b", 1, 8)], [], [5, 3]),
    "one that overtakes": ([wire(0, "a", 0, 8), wire(1, "b", 2, 4)], [], [6, 2]),
    "one after the other": ([wire(0, "a", 0, 2), wire(1, "b", 5, 6)], [(5, 9)], [2, 0]),
}


@pytest.mark.parametrize(("sent", "kernels", "parts"), EXPOSED.values(), ids=EXPOSED.keys())
def test_exposed(sent: list[Span], kernels: list[tuple[int, int]], parts: list[int]) -> None:
    spans = [compute("k.forward", "forward", start, end) for start, end in kernels]
    assert exposed(sent, spans) == [part * MS for part in parts]


times = st.tuples(st.integers(0, 30), st.integers(0, 12)).map(lambda pair: (pair[0], pair[0] + pair[1]))


@given(st.lists(times, max_size=6), st.lists(times, max_size=6))
def test_exposed_is_what_a_look_at_every_unit_of_time_gives(
    sent: list[tuple[int, int]], kernels: list[tuple[int, int]]
) -> None:
    sent = sorted(sent)
    expected = [0] * len(sent)
    for t in range(50):
        flying = [(end, i) for i, (start, end) in enumerate(sent) if start <= t < end]
        if flying and not any(start <= t < end for start, end in kernels):
            expected[min(flying)[1]] += 1
    spans = [Span("compute", "k", start, end, {"step": 0}) for start, end in kernels]
    portions = [Span("wire", f"portion {i}", start, end, {"step": 0}) for i, (start, end) in enumerate(sent)]
    assert exposed(portions, spans) == expected


def test_the_exposed_parts_add_up_to_the_whole() -> None:
    for models in (ONE, TWO):
        rank = exchange_trace(0, "n0", models, credit=3)
        sent = union(intervals(span for span in rank.spans if span.track == "wire"))
        kernels = union(intervals(span for span in rank.spans if span.track == "compute"))
        whole_ns = length(complement(kernels, sent))
        assert whole_ns > 0
        assert sum(way.exposed_ns for way in journeys(rank)) == whole_ns


def test_summaries_leave_out_the_first_step_and_what_was_cut_otherwise() -> None:
    def step(number: int, lasts: float, *whats: str) -> list[Span]:
        start = 100.0 * number
        return [
            compute("a.weight_gradient", "weight_gradient", start, start + 1, step=number),
            *(
                wire(i, what, start + 1, start + 1 + lasts, step=number, waited_us=0)
                for i, what in enumerate(whats)
            ),
        ]

    spans = [*step(0, 50, "a"), *step(1, 40, "a"), *step(2, 9, "a rows 8-15", "a rows 0-7")]
    assert [s.label.what for s in summarised(trace(*spans))] == ["a rows 8-15", "a rows 0-7"]
    assert [s.travelling for s in summarised(trace(*spans))] == [9, 9]
    later = [*spans, *step(3, 3, "a rows 8-15", "a rows 0-7"), *step(4, 2, "a rows 8-15", "a rows 0-7")]
    assert [s.travelling for s in summarised(trace(*later))] == [
        2.5,
        2.5,
    ]  # step 2 was the first of its kind


def test_summaries_of_several_models_keep_them_apart() -> None:
    found = summarised(*(exchange_trace(rank, "n0", TWO, steps=4) for rank in range(2)))
    assert [(s.model, s.label.short) for s in found] == [
        *(("mlp", label) for label in ("1a", "1b", "2a", "2b", "3a", "3b")),
        *(("cnn", label) for label in ("1", "2", "3a", "3b", "4")),
    ]
    for summary in found:
        assert summary.ready is not None
        assert summary.used is not None
        assert summary.ready <= summary.used


def test_all_journeys_are_in_the_file(tmp_path: Path) -> None:
    traces = [exchange_trace(rank, "n0", ONE, steps=3) for rank in range(2)]
    sent = [way for rank in traces for way in journeys(rank)]
    assert len(sent) == 2 * 3 * 9
    write_portions(tmp_path / "portions.csv", sent)
    with (tmp_path / "portions.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(sent)
    first = rows[0]
    assert (first["model"], first["step"], first["portion"], first["rank"]) == ("wide", "1", "0", "0")
    assert first["name"] == "dense_5"
    way = next(way for way in sent if (way.rank, way.step, way.portion) == (0, 0, 0))
    assert float(first["travelling_ms"]) == pytest.approx(way.travelling_ms, abs=1e-3)
    last = [row for row in rows if row["step"] == "3"]
    assert {row["used_ms"] for row in last} == {""}  # the run ended before


def test_a_trace_without_a_wire_has_no_journeys() -> None:
    quiet = exchange_trace(0, "n0", ONE, sends=False)
    assert journeys(quiet) == []
    assert summarised(quiet) == []
    assert journeys(replace(quiet, spans=())) == []
