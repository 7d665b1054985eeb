from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from weft.runtime.observe.shares import (
    Intervals,
    ModelShares,
    complement,
    intersection,
    length,
    models,
    summarise,
    summarise_models,
    training_window,
    union,
)
from weft.runtime.observe.trace import Span

Rows = list[tuple[int, int]]


def array(rows: Rows) -> Intervals:
    return np.array(rows, np.int64).reshape(-1, 2)


def compute(start: int, end: int, step: int = 2) -> Span:
    return Span("compute", "dense.forward", start, end, {"phase": "forward", "step": step})


def wire(start: int, end: int) -> Span:
    return Span("wire", "portion 0 dense", start, end, {"bytes": 4, "step": 2, "portion": 0})


def mark(name: str, at: int) -> Span:
    return Span("compute", name, at, at, {})


SHARES = {
    "no spans at all": ([], 0, (0, 0, 0, 0)),
    "a kernel all the time": ([compute(0, 100)], 100, (1, 0, 0, 0)),
    "spans without a step are not training": (
        [Span("compute", "dense.forward", 0, 100, {"phase": "forward"})],
        0,
        (0, 0, 0, 0),
    ),
    "a gap between two kernels is idle": ([compute(0, 40), compute(60, 100)], 100, (0.8, 0, 0, 0.2)),
    "the wire in a gap is exposed": (
        [compute(0, 40), wire(40, 60), compute(60, 100)],
        100,
        (0.8, 0.2, 0, 0),
    ),
    "the wire under a kernel is hidden": ([compute(0, 100), wire(10, 40)], 100, (1, 0, 0.3, 0)),
    "a portion that reaches out of a kernel is partly exposed": (
        [compute(0, 50), wire(30, 70), compute(80, 100)],
        100,
        (0.7, 0.2, 0.2, 0.1),
    ),
    "portions in flight together count once": (
        [compute(0, 50), wire(50, 70), wire(55, 80), wire(60, 65), compute(90, 100)],
        100,
        (0.6, 0.3, 0, 0.1),
    ),
    "nested kernels count once": ([compute(0, 100), compute(20, 30), compute(40, 110)], 110, (1, 0, 0, 0)),
    "spans of no length change nothing": ([compute(0, 50), compute(50, 50), wire(20, 20)], 50, (1, 0, 0, 0)),
    "the wire outside of training does not count": (
        [wire(0, 10), compute(10, 60), wire(60, 90)],
        50,
        (1, 0, 0, 0),
    ),
    "an evaluation belongs to no share": (
        [
            compute(0, 40),
            Span("compute", "validation", 45, 80, {"phase": "forward"}),
            compute(90, 130),
        ],
        80,
        (1, 0, 0, 0),
    ),
    "spans of the loop do not interrupt": (
        [compute(0, 40), Span("loop", "plan", 40, 60, {}), compute(60, 100)],
        100,
        (0.8, 0, 0, 0.2),
    ),
    "a kernel that reaches into an evaluation counts to its end": (
        [compute(0, 60), Span("compute", "validation", 40, 80, {"phase": "forward"}), compute(80, 100)],
        80,
        (1, 0, 0, 0),
    ),
    "a rank that has computed its part waits until its step has come to rest": (
        [compute(0, 10), mark("rest", 90), mark("end", 91), compute(100, 110), mark("rest", 200)],
        190,
        (20 / 190, 0, 0, 170 / 190),
    ),
    "what comes between a rest and the next step does not count": (
        [compute(0, 40), mark("rest", 40), compute(90, 130), mark("rest", 130)],
        80,
        (1, 0, 0, 0),
    ),
    "a step that is timed on trial is not interrupted": (
        [compute(0, 40), mark("ended", 50), compute(60, 100)],
        100,
        (0.8, 0, 0, 0.2),
    ),
    "a request that is answered amid a step does not interrupt it": (
        [compute(0, 40), Span("compute", "infer a/1@3", 50, 60, {"phase": "inference"}), compute(80, 100)],
        100,
        (0.7, 0, 0, 0.3),
    ),
    "the first of three steps is left out": (
        [compute(0, 500, step=1), compute(600, 650, step=2), compute(660, 700, step=3)],
        100,
        (0.9, 0, 0, 0.1),
    ),
    "the first of two steps counts": (
        [compute(0, 500, step=1), compute(600, 1000, step=2)],
        1000,
        (0.9, 0, 0, 0.1),
    ),
}


@pytest.mark.parametrize(("spans", "window", "shares"), SHARES.values(), ids=SHARES.keys())
def test_shares(spans: list[Span], window: int, shares: tuple[float, float, float, float]) -> None:
    assert length(training_window(spans)) == window
    found = summarise(spans)
    assert found.seconds == window / 1e9
    assert (
        found.compute,
        found.exposed_communication,
        found.hidden_communication,
        found.idle,
    ) == pytest.approx(shares)


ALGEBRA = {
    "apart": ([(0, 2), (4, 6)], [(2, 4)], []),
    "touching ends do not meet": ([(0, 2)], [(2, 4)], []),
    "one within the other": ([(0, 10)], [(2, 4), (6, 7)], [(2, 4), (6, 7)]),
    "one across several": ([(0, 3), (5, 9)], [(2, 6)], [(2, 3), (5, 6)]),
    "nothing meets something": ([], [(2, 6)], []),
}


@pytest.mark.parametrize(("a", "b", "both"), ALGEBRA.values(), ids=ALGEBRA.keys())
def test_intersection(a: Rows, b: Rows, both: Rows) -> None:
    assert intersection(array(a), array(b)).tolist() == [list(row) for row in both]
    assert intersection(array(b), array(a)).tolist() == [list(row) for row in both]


pieces = st.lists(
    st.tuples(st.integers(0, 30), st.integers(0, 30)).map(lambda p: (min(p), max(p))), max_size=8
)


def points(rows: Intervals) -> set[int]:
    """The oracle: every unit of time on its own."""
    return {t for start, end in rows.tolist() for t in range(start, end)}


@given(pieces, pieces)
def test_interval_algebra_is_that_of_sets(a: Rows, b: Rows) -> None:
    left, right = union(array(a)), union(array(b))
    assert points(left) == points(array(a))
    assert points(intersection(left, right)) == points(left) & points(right)
    assert points(complement(left, right)) == points(right) - points(left)
    for rows in (left, intersection(left, right), complement(left, right)):
        assert length(rows) == len(points(rows))  # disjoint
        assert (rows[:, 1] > rows[:, 0]).all()
        assert (rows[1:, 0] >= rows[:-1, 1]).all()


def of(model: str, span: Span, **args: object) -> Span:
    return span._replace(args={**span.args, "model": model, **args})


def test_what_the_exchange_costs_the_lane_is_a_part_of_compute() -> None:
    phases = ((60, "reduce"), (70, "encode"), (80, "decode"))
    costs = [of("", compute(at, at + 10), phase=phase) for at, phase in phases]
    shares = summarise([compute(0, 60), *costs, compute(95, 100)])
    assert shares.compute == pytest.approx(0.95)
    assert shares.exchange == pytest.approx(0.3)


def test_the_wire_is_hidden_by_kernels_of_one_model_or_another_or_not_at_all() -> None:
    spans = [
        of("a", compute(0, 40)),
        of("a", wire(30, 90)),
        of("b", compute(40, 80)),
        of("b", wire(60, 70)),
        of("a", compute(95, 100)),
    ]
    assert models(spans) == ["a", "b"]
    found = summarise_models(spans)
    assert found["a"] == ModelShares(compute=0.45, exposed=0.1, hidden_by_own=0.1, hidden_by_others=0.4)
    assert found["b"] == ModelShares(compute=0.4, exposed=0.0, hidden_by_own=0.1, hidden_by_others=0.0)


def test_occupancy_of_the_wire_and_its_hidden_part() -> None:
    shares = summarise([compute(0, 50), wire(30, 70), compute(80, 100)])
    assert shares.wire == pytest.approx(0.4)
    assert shares.hidden_of_wire == pytest.approx(0.5)
    assert math.isnan(summarise([compute(0, 50)]).hidden_of_wire)
