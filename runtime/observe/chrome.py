"""Traces as a file for Perfetto (ui.perfetto.dev) and chrome://tracing, and back.

The format is the JSON object form of the Trace Event Format
(https://docs.google.com/document/d/1CvAClvFfyA5R-PhYUmn5OOQtYMH4h6I0nSsKchNAySU): complete events ("ph": "X",
times in microseconds), metadata events for names and order. Three things it demands that are easy to miss:

- Events of one thread may only nest. Of two that overlap otherwise Perfetto drops one
  (google/perfetto issue 4280), so portions in flight together get rows of their own: "wire", "wire 2", ...
- Process number 0 is the kernel's idle process there (issue 394): rank r is process r + 1.
- Doubles hold 15 digits, and a monotonic clock counts from boot: times start at the first span's.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, Final, TextIO

from ..errors import Mistake
from .folder import write_whole
from .shares import activity, training_window
from .trace import COMPUTE, LOOP, WIRE, RankTrace, Span, all_kept

IDLE: Final = "idle"
TRACKS: Final = (COMPUTE, WIRE, IDLE, LOOP)  # from top to bottom

# Gaps that are shorter lie between any two kernels; drawn, they would double the file. The shares count them.
SHORTEST_IDLE_NS: Final = 10_000

TOGETHER: Final = 512  # events that become JSON at once: one by one each call set its encoder up anew


def write_chrome(path: Path, traces: Sequence[RankTrace]) -> None:
    """Write the traces of all ranks, which must share a clock, with the idle spans that follow from them.

    Raises MachineError where the file cannot be written.
    """
    traces = sorted(traces, key=lambda trace: trace.rank)
    origin_ns = min((span.start_ns for trace in traces for span in trace.spans), default=0)
    ranks = [{"rank": trace.rank, "host": trace.host, "dropped": trace.dropped} for trace in traces]

    def write(file: TextIO) -> None:
        file.write(
            '{"displayTimeUnit": "ms",\n "otherData": {"weft": 1, "ranks": ' + json.dumps(ranks) + "},\n"
        )
        file.write(' "traceEvents": [\n')
        separator = ""
        events = (event for trace in traces for event in _events(trace, origin_ns))
        while together := list(islice(events, TOGETHER)):
            file.write(separator + json.dumps(together, separators=(",", ":"))[1:-1])
            separator = ",\n"
        file.write("\n]}\n")

    with all_kept():
        write_whole(path, write)


def read_chrome(path: Path) -> list[RankTrace]:
    """The traces that `write_chrome` wrote, idle spans left out; times count from the first span.

    Empty where there is no file; a Mistake where it is another.
    """
    try:
        with all_kept():
            return _traces(json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        return []
    except OSError as error:
        raise Mistake(f"{path}: cannot be read: {error.strerror or error}") from error
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
        raise Mistake(f"{path} is not a trace that Weft wrote ({type(error).__name__}: {error})") from error


def _traces(content: dict[str, Any]) -> list[RankTrace]:
    """What the file's JSON holds."""
    ranks = content["otherData"]["ranks"]
    spans: dict[int, list[Span]] = defaultdict(list)
    for event in content["traceEvents"]:
        if event["ph"] == "X" and event["cat"] != IDLE:
            start_ns = round(event["ts"] * 1000)
            end_ns = start_ns + round(event["dur"] * 1000)
            spans[event["pid"] - 1].append(
                Span(event["cat"], event["name"], start_ns, end_ns, event.get("args", {}))
            )
    return [
        RankTrace(
            entry["rank"],
            entry["host"],
            tuple(sorted(spans[entry["rank"]], key=lambda span: span.start_ns)),
            entry["dropped"],
        )
        for entry in ranks
    ]


def idle_spans(trace: RankTrace) -> list[Span]:
    """When, while training, neither a kernel ran nor the wire was busy."""
    _, _, idle = activity(trace.spans, training_window(trace.spans))
    return [
        Span(IDLE, IDLE, int(start_ns), int(end_ns), {})
        for start_ns, end_ns in idle
        if end_ns - start_ns >= SHORTEST_IDLE_NS
    ]


def rows(spans: Iterable[Span]) -> list[list[Span]]:
    """Spans of one track dealt to as few rows as needed so that none overlap within a row."""
    dealt: list[list[Span]] = []
    for span in sorted(spans, key=lambda span: (span.start_ns, span.end_ns)):
        row = next((row for row in dealt if row[-1].end_ns <= span.start_ns), None)
        if row is None:
            dealt.append([span])
        else:
            row.append(span)
    return dealt


def _events(trace: RankTrace, origin_ns: int) -> Iterator[dict[str, Any]]:
    """The rank's metadata events and complete events."""
    process = trace.rank + 1
    yield _metadata(process, 0, "process_name", name=f"rank {trace.rank} · {trace.host}")
    yield _metadata(process, 0, "process_sort_index", sort_index=trace.rank)
    tracks: dict[str, list[Span]] = {track: [] for track in TRACKS}
    for span in (*trace.spans, *idle_spans(trace)):
        tracks.setdefault(span.track, []).append(span)
    thread = 0
    for track, spans in tracks.items():
        for number, row in enumerate(rows(spans), 1):
            thread += 1
            yield _metadata(
                process, thread, "thread_name", name=track if number == 1 else f"{track} {number}"
            )
            yield _metadata(process, thread, "thread_sort_index", sort_index=thread)
            for span in row:
                yield {
                    "ph": "X",
                    "name": span.name,
                    "cat": track,
                    "pid": process,
                    "tid": thread,
                    "ts": (span.start_ns - origin_ns) / 1000,
                    "dur": (span.end_ns - span.start_ns) / 1000,
                    "args": span.args,
                }


def _metadata(process: int, thread: int, name: str, /, **args: Any) -> dict[str, Any]:
    return {"ph": "M", "name": name, "pid": process, "tid": thread, "args": args}
