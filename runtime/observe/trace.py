"""What a rank did and when: spans on named tracks, recorded by any thread, gathered on rank 0 at the end.

    track      name                     args                                        recorded by
    compute    "<node>.<phase>"         phase, step, micro_batch                    the lane's thread
    wire       "portion <i> <nodes>"    bytes, step, portion (several in flight)    the loop's thread
    loop       what the loop is busy with, where that is long                       the loop's thread

`phase` is "forward", "input_gradient", "weight_gradient", "update" or "load"; `step` counts from 0. Compute
spans with a `step` are training. Those of an evaluation, forward without a step, interrupt it, and so does
"rest", when all of a step is done; others (a request that is answered meanwhile) lie amid the steps. What a
rank computed for another has that one in `of`, and a kernel that was put out for others to take has the phase
"put out".

Times are `time.monotonic_ns()`: CLOCK_MONOTONIC is one clock for all processes of a host, so ranks of a node
need no alignment, and a rank of another node adds its offset when it hands its spans over.
"""

from __future__ import annotations

import gc
import itertools
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import msgpack

COMPUTE: Final = "compute"
WIRE: Final = "wire"
LOOP: Final = "loop"

# About 100 spans a training step: the newest 650 steps. 300 bytes a span, so 20 MB of each rank's memory.
SPANS_KEPT: Final = 65_536


class Span(NamedTuple):
    """One piece of work: `[start_ns, end_ns)` on a track of one rank."""

    track: str
    name: str
    start_ns: int
    end_ns: int
    args: dict[str, Any]

    @property
    def evaluates(self) -> bool:
        """Whether it is a kernel of an evaluation: forward, but of no step."""
        return self.args.get("phase") == "forward" and "step" not in self.args


@dataclass(frozen=True, slots=True)
class RankTrace:
    """The spans of one rank, on rank 0's clock, in order of their starts."""

    rank: int
    host: str
    spans: tuple[Span, ...]
    dropped: int = 0  # spans that were recorded and had to make room for newer ones


class Trace:
    """Records the spans of one rank; keeps the newest `limit` of them (0 records nothing)."""

    def __init__(self, rank: int, host: str, limit: int = SPANS_KEPT) -> None:
        self.rank = rank
        self.host = host
        # A bounded deque drops the oldest by itself, and its append is one step under the GIL: any thread may
        # record without a lock. The serial number tells how many were dropped without a counter that two
        # threads would have to share. 0.3 us a span, 0.05 of it the number. An entry holds the names and the
        # values of args, one behind the other: numbers and strings, in which no garbage is looked for. With a
        # dictionary in each, collections stopped a training rank every five seconds, for 100 ms and more.
        self._spans: deque[tuple[Any, ...]] = deque(maxlen=limit)
        self._append = self._spans.append
        self._number = itertools.count().__next__

    def span(self, track: str, name: str, start_ns: int, end_ns: int, **args: Any) -> None:
        """Record `[start_ns, end_ns)` of `time.monotonic_ns()`; from any thread, without waiting."""
        self._append((self._number(), track, name, start_ns, end_ns, *args, *args.values()))

    def encode(self, clock_offset_ns: int = 0) -> bytes:
        """Spans as bytes for rank 0; `clock_offset_ns` is added to reach rank 0's clock."""
        kept = self._spans.copy()  # one step under the GIL: a thread may still be recording
        dropped = max((entry[0] for entry in kept), default=-1) + 1 - len(kept)
        with all_kept():
            spans = [
                (track, name, start_ns + clock_offset_ns, end_ns + clock_offset_ns, _args(flat))
                for _, track, name, start_ns, end_ns, *flat in kept
            ]
            return bytes(msgpack.packb((self.rank, self.host, dropped, spans), default=_as_plain))


def decode(encoded: bytes) -> RankTrace:
    """What `Trace.encode` made, with the spans in order of their starts."""
    with all_kept():
        rank, host, dropped, spans = msgpack.unpackb(encoded)
        return RankTrace(rank, host, tuple(sorted(map(Span._make, spans), key=lambda s: s.start_ns)), dropped)


@contextmanager
def all_kept() -> Iterator[None]:
    """Around what makes many objects and keeps them all: looking for garbage took half of the time."""
    collecting = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collecting:
            gc.enable()


def _args(flat: list[Any]) -> dict[str, Any]:
    names = len(flat) // 2
    return dict(zip(flat[:names], flat[names:], strict=True))


def _as_plain(value: Any) -> Any:
    """NumPy scalars in args, as the Python numbers they stand for."""
    if hasattr(value, "item"):
        return value.item()
    raise TypeError(f"a span's args hold numbers and strings, not {type(value).__name__} ({value!r})")
