from __future__ import annotations

import contextlib
import gc
import itertools
import json
import threading
from pathlib import Path

import numpy as np
import pytest

from weft.runtime.errors import Mistake
from weft.runtime.observe.chrome import idle_spans, read_chrome, rows, write_chrome
from weft.runtime.observe.trace import RankTrace, Span, Trace, all_kept, decode


def recorded(rank: int = 0) -> Trace:
    trace = Trace(rank, f"n{rank}")
    for step in (1, 2, 3):
        base = step * 1_000_000
        trace.span("compute", "a.forward", base, base + 300_000, phase="forward", step=step, micro_batch=0)
        trace.span("wire", "portion 0 a", base + 200_000, base + 450_000, bytes=64, step=step, portion=0)
        trace.span("wire", "portion 1 b", base + 300_000, base + 500_000, bytes=64, step=step, portion=1)
    return trace


def test_spans_survive_the_way_to_rank_0_in_order_of_their_starts() -> None:
    trace = Trace(3, "n1")
    trace.span("wire", "portion 0 a", 50, 70, bytes=np.int64(64))
    trace.span("compute", "a.forward", 10, 20, phase="forward", step=1)
    decoded = decode(trace.encode(clock_offset_ns=-5))
    assert decoded == RankTrace(
        3,
        "n1",
        (
            Span("compute", "a.forward", 5, 15, {"phase": "forward", "step": 1}),
            Span("wire", "portion 0 a", 45, 65, {"bytes": 64}),
        ),
    )


def test_the_newest_spans_are_kept_and_the_others_counted() -> None:
    trace = Trace(0, "n0", limit=4)
    for i in range(10):
        trace.span("compute", "a", i, i + 1)
    decoded = decode(trace.encode())
    assert [span.start_ns for span in decoded.spans] == [6, 7, 8, 9]
    assert decoded.dropped == 6


def test_a_trace_of_no_spans_records_nothing() -> None:
    trace = Trace(0, "n0", limit=0)
    trace.span("compute", "a", 1, 2)
    assert decode(trace.encode()).spans == ()


def test_threads_record_without_losing_a_span() -> None:
    trace = Trace(0, "n0", limit=1000)

    def record(track: str) -> None:
        for i in range(2000):
            trace.span(track, "a", i, i + 1)
            if i % 500 == 0:
                trace.encode()  # reading while others record

    threads = [threading.Thread(target=record, args=(track,)) for track in ("compute", "wire", "loop")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    decoded = decode(trace.encode())
    assert len(decoded.spans) == 1000
    assert decoded.dropped == 5000


def test_an_argument_that_is_no_number_is_named() -> None:
    trace = Trace(0, "n0")
    trace.span("compute", "a", 1, 2, what=object())
    with pytest.raises(TypeError, match="args hold numbers and strings, not object"):
        trace.encode()


def test_what_is_written_can_be_read_back(tmp_path: Path) -> None:
    traces = [decode(recorded(rank).encode(rank * 7)) for rank in (1, 0)]
    write_chrome(tmp_path / "trace.json", traces)
    back = read_chrome(tmp_path / "trace.json")
    assert [(trace.rank, trace.host, trace.dropped) for trace in back] == [(0, "n0", 0), (1, "n1", 0)]
    origin = 1_000_000
    for trace, other in zip(sorted(traces, key=lambda t: t.rank), back, strict=True):
        shifted = [
            span._replace(start_ns=span.start_ns - origin, end_ns=span.end_ns - origin)
            for span in trace.spans
        ]
        assert list(other.spans) == shifted


def test_the_file_is_what_the_trace_event_format_asks_for(tmp_path: Path) -> None:
    write_chrome(tmp_path / "trace.json", [decode(recorded(rank).encode()) for rank in (0, 1)])
    events = json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
    assert {event["ph"] for event in events} == {"M", "X"}
    assert all(event["pid"] > 0 for event in events)
    names = {
        (event["pid"], event["tid"]): event["args"]["name"]
        for event in events
        if event["name"] == "thread_name"
    }
    assert list(names.values()) == ["compute", "wire", "wire 2", "idle"] * 2
    processes = [event["args"]["name"] for event in events if event["name"] == "process_name"]
    assert processes == ["rank 0 · n0", "rank 1 · n1"]
    order = [e["args"]["sort_index"] for e in events if e["name"] == "thread_sort_index" and e["pid"] == 1]
    assert order == sorted(order)
    for thread in names:
        spans = sorted(
            (e["ts"], e["ts"] + e["dur"]) for e in events if e["ph"] == "X" and (e["pid"], e["tid"]) == thread
        )
        assert all(after[0] >= before[1] - 1e-6 for before, after in itertools.pairwise(spans))
    first = next(event for event in events if event["ph"] == "X")
    assert first["ts"] == 0
    assert first["dur"] == 300
    assert first["args"] == {"phase": "forward", "step": 1, "micro_batch": 0}
    assert not list(tmp_path.glob("*.partial"))


def test_what_is_recorded_is_nothing_that_collections_look_at() -> None:
    gc.collect()
    before = len(gc.get_objects())
    trace = recorded()
    for number in range(1_000):
        trace.span("compute", "a.forward", number, number + 1, phase="forward", step=number, model="a")
    gc.collect()
    assert len(gc.get_objects()) - before < 100
    assert decode(trace.encode()).spans[500].args == {"phase": "forward", "step": 500, "model": "a"}


@pytest.mark.parametrize("collecting", [True, False])
def test_collections_go_on_as_before_behind_what_keeps_all(collecting: bool) -> None:
    (gc.enable if collecting else gc.disable)()
    try:
        with contextlib.suppress(KeyError), all_kept():
            assert not gc.isenabled()
            raise KeyError
        assert gc.isenabled() == collecting
    finally:
        gc.enable()


def test_a_trace_of_more_events_than_are_written_at_once_is_read_again(tmp_path: Path) -> None:
    trace = Trace(0, "n0")
    for number in range(1_500):
        trace.span("compute", "a.forward", 10 * number, 10 * number + 10, step=number)
    write_chrome(tmp_path / "trace.json", [decode(trace.encode())])
    (read,) = read_chrome(tmp_path / "trace.json")
    assert [(span.start_ns, span.args["step"]) for span in read.spans] == [(10 * n, n) for n in range(1_500)]


def test_idle_is_where_neither_kernel_nor_wire_is_busy() -> None:
    idle = idle_spans(decode(recorded().encode()))
    assert [(span.start_ns, span.end_ns) for span in idle] == [
        (2_500_000, 3_000_000)
    ]  # the first step is left out


def test_ranks_without_spans_are_written_and_read(tmp_path: Path) -> None:
    write_chrome(tmp_path / "trace.json", [decode(Trace(0, "n0").encode())])
    assert read_chrome(tmp_path / "trace.json") == [RankTrace(0, "n0", ())]


@pytest.mark.parametrize("content", ["", "[1]", '{"traceEvents": []}', '{"otherData": {"ranks": [1]}'])
def test_a_file_that_is_no_trace_is_refused_by_name(tmp_path: Path, content: str) -> None:
    (tmp_path / "trace.json").write_text(content)
    with pytest.raises(Mistake, match=r"trace\.json is not a trace that Weft wrote"):
        read_chrome(tmp_path / "trace.json")


ROWS = {
    "one after the other share a row": ([(0, 2), (2, 4)], [[(0, 2), (2, 4)]]),
    "overlapping ones get two": ([(0, 3), (2, 4), (3, 5)], [[(0, 3), (3, 5)], [(2, 4)]]),
    "nested ones get two": ([(0, 9), (2, 4)], [[(0, 9)], [(2, 4)]]),
    "none need none": ([], []),
}


@pytest.mark.parametrize(("times", "dealt"), ROWS.values(), ids=ROWS.keys())
def test_rows(times: list[tuple[int, int]], dealt: list[list[tuple[int, int]]]) -> None:
    spans = [Span("wire", "p", start, end, {}) for start, end in times]
    assert [[(span.start_ns, span.end_ns) for span in row] for row in rows(spans)] == dealt
