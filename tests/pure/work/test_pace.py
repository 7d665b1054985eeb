"""Who takes what is left of a step: the rules as tables, and whole steps in virtual time."""

from __future__ import annotations

from heapq import heapify, heappop, heappush

import pytest
from hypothesis import given
from hypothesis import strategies as st

from weft.runtime.work.pace import Pace, leaves, victim

UNKNOWN = Pace()


@pytest.mark.parametrize(
    ("left", "own", "others", "expected"),
    [
        pytest.param(
            2, Pace(2, 1), [Pace(1, 0.5)], True, id="a slow rank leaves what a fast one does by then"
        ),
        pytest.param(3, Pace(2, 1), [Pace(1, 0.5)], False, id="and takes part where that is more"),
        pytest.param(
            1, Pace(1, 0.5), [Pace(2, 1)], False, id="a fast one never leaves anything to a slow one"
        ),
        pytest.param(1, UNKNOWN, [Pace(1, 0)], False, id="who does not know its pace takes what there is"),
        pytest.param(1, Pace(2, 1), [UNKNOWN, UNKNOWN], False, id="nothing is expected of who has told none"),
        pytest.param(2, Pace(4, 1), [Pace(2, 1), Pace(2, 1)], True, id="several others do one each"),
        pytest.param(
            1, Pace(2, 1), [Pace(1, -1)], True, id="one that is a second late may be late by another"
        ),
        pytest.param(1, Pace(2, 1), [Pace(1, -5)], False, id="one that is very late is not waited for"),
    ],
)
def test_a_rank_leaves_the_rest_to_those_who_do_it_before_it_could_do_one(left, own, others, expected):
    assert leaves(0.0, left, own, others) is expected


@pytest.mark.parametrize(
    ("left", "paces", "expected"),
    [
        pytest.param([0, 3, 2], [Pace(1, 1)] * 3, 1, id="that of the rank with most left"),
        pytest.param([0, 3, 2], [Pace(1, 1), Pace(1, 1), Pace(2, 1)], 2, id="or of a slower one"),
        pytest.param(
            [0, 2, 2], [Pace(1, 1), Pace(1, 4), Pace(1, 1)], 1, id="or of one that is busy for longer"
        ),
        pytest.param([0, 0, 1], [UNKNOWN] * 3, 2, id="whoever has any, where nothing is known"),
    ],
)
def test_micro_batches_are_taken_of_the_rank_that_would_be_done_last(left, paces, expected):
    assert victim(0.0, left, paces) == expected


def step(seconds: list[float], micro_batches: int, forward: float = 1 / 3) -> tuple[float, list[int]]:
    """A step in virtual time, as claims.py runs it: when it ends, and how many each rank has computed."""
    ranks = len(seconds)
    left = [max(0, len(range(rank, micro_batches, ranks)) - 1) for rank in range(ranks)]
    paces = [Pace(own, own) for own in seconds]
    computed, leavers, end = [0] * ranks, 0, 0.0
    known = [(forward * own, rank) for rank, own in enumerate(seconds)][:micro_batches]
    heapify(known)
    while known:
        now, rank = heappop(known)
        computed[rank] += 1
        own = Pace(seconds[rank], now + (1 - forward) * seconds[rank])
        others = paces[:rank] + paces[rank + 1 :]
        if sum(left) and not (leavers < ranks - 1 and leaves(now, sum(left), own, others)):
            left[rank if left[rank] else victim(now, left, paces)] -= 1
            paces[rank] = Pace(own.seconds, own.free_s + own.seconds)
            heappush(known, (own.free_s + forward * own.seconds, rank))
        else:
            leavers += bool(sum(left))
            paces[rank] = UNKNOWN
            end = max(end, own.free_s)
    return end, computed


speeds = st.lists(st.floats(0.1, 10), min_size=1, max_size=8)


@given(speeds, st.integers(1, 60))
def test_every_micro_batch_is_computed_once_whatever_the_ranks_expect_of_each_other(seconds, micro_batches):
    assert sum(step(seconds, micro_batches)[1]) == micro_batches


@given(st.integers(1, 16), st.integers(1, 100))
def test_equal_ranks_compute_equal_shares(ranks, micro_batches):
    _, computed = step([1.0] * ranks, micro_batches)
    assert computed == [len(range(rank, micro_batches, ranks)) for rank in range(ranks)]


@pytest.mark.parametrize(
    ("seconds", "micro_batches", "least"),
    [
        pytest.param([1, 2], 32, 0.95, id="one of two at half speed"),
        pytest.param([1, 2], 64, 0.98, id="with twice as many micro-batches"),
        pytest.param([1, 3], 32, 0.95, id="one of two at a third"),
        pytest.param([1, 1, 1, 2], 32, 0.90, id="one of four at half speed"),
        pytest.param([1, 1, 1, 2], 64, 0.95, id="of four with twice as many"),
        pytest.param([1] * 63 + [2], 64 * 16, 0.94, id="one of 64"),
        pytest.param([1, 1.5, 2, 3, 4, 5, 6, 7], 128, 0.93, id="all different"),
    ],
)
def test_s4_a_slow_rank_holds_nobody_up(seconds, micro_batches, least):
    """Joint speed over the sum of the ranks' speeds; dealt evenly it is that of the slowest."""
    end, _ = step([float(own) for own in seconds], micro_batches)
    assert micro_batches / end / sum(1 / own for own in seconds) >= least


def test_a_rank_that_stands_still_has_no_more_than_it_had_begun():
    end, computed = step([1.0, 1.0, 1000.0], 30)
    assert computed == [15, 14, 1]
    assert end == 1000.0  # of its own first
