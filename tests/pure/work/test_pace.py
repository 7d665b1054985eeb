"""Who takes what is left of a step: the rules as tables, and whole steps in virtual time."""

from __future__ import annotations

from collections.abc import Sequence
from heapq import heappop, heappush
from itertools import accumulate, chain

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.pure.work.memory import Memory
from weft.runtime.message.window import LINE_BYTES
from weft.runtime.work import claims
from weft.runtime.work.claims import Claims
from weft.runtime.work.pace import Pace, leaves, victim

UNKNOWN = Pace()
Shares = Sequence[Sequence[int]]  # by rank


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


class Node:
    """Ranks that run the steps of claims.py in virtual time; a third of a micro-batch is its forward pass."""

    def __init__(self, ranks: int) -> None:
        memory = Memory(ranks, 5 * LINE_BYTES)
        self.now_s = 3600.0  # the machine has been up
        self.claims = [Claims(memory, rank, range(ranks), lambda: self.now_s) for rank in range(ranks)]

    def step(self, seconds: Sequence[float], shares: Shares) -> tuple[float, list[list[int]]]:
        """With so many seconds a micro-batch, by rank: how long the step takes, and what each computes."""
        start_s = end_s = self.now_s
        dealt = [own.deal(shares) for own in self.claims]
        computed: list[list[int]] = [[] for _ in shares]
        events: list[tuple[float, int, bool]] = []  # and whether a forward pass ends, or one begins

        for rank, own in enumerate(dealt):
            if own.first is None:
                own.clear()
            else:
                computed[rank].append(own.first)
                events.append((start_s, rank, False))
        while events:
            self.now_s, rank, forward = heappop(events)
            if not forward:
                dealt[rank].loading()
                heappush(events, (self.now_s + seconds[rank] / 3, rank, True))
                continue
            claimed, free_s = dealt[rank].next(), self.now_s + 2 / 3 * seconds[rank]
            end_s = max(end_s, free_s)
            if claimed is not None:
                computed[rank].append(claimed[0])
                heappush(events, (free_s, rank, False))
        self.now_s = end_s
        return end_s - start_s, computed


def in_turn(ranks: int, micro_batches: int) -> Shares:
    return [range(rank, micro_batches, ranks) for rank in range(ranks)]


def believing(seconds: Sequence[float]) -> Node:
    """Ranks that know, or believe, what a micro-batch takes them."""
    node = Node(len(seconds))
    for each, own in zip(node.claims, seconds, strict=True):
        each.took(own, own / 3)
    return node


def step(seconds: Sequence[float], micro_batches: int) -> tuple[float, list[list[int]]]:
    """A step of ranks that know what a micro-batch takes them."""
    return believing(seconds).step(seconds, in_turn(len(seconds), micro_batches))


@pytest.mark.parametrize("rule", [leaves, lambda *given: True], ids=["by the rule", "everything"])
@given(st.integers(1, 6), st.data())
def test_every_micro_batch_is_computed_once_whatever_the_ranks_expect_of_each_other(rule, size, data):
    """Paces change from step to step, and some are dealt nothing."""
    node = Node(size)
    for _ in range(4):
        seconds = data.draw(st.lists(st.floats(0.1, 10), min_size=size, max_size=size))
        counts = data.draw(st.lists(st.integers(0, 12), min_size=size, max_size=size))
        ends = [*accumulate(counts)]
        shares = [range(end - count, end) for count, end in zip(counts, ends, strict=True)]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(claims, "leaves", rule)
            _, computed = node.step(seconds, shares)
        assert sorted(chain.from_iterable(computed)) == list(range(ends[-1]))


@given(st.integers(1, 16), st.integers(1, 100))
def test_equal_ranks_compute_what_they_are_dealt(ranks, micro_batches):
    shares = in_turn(ranks, micro_batches)
    assert step([3.0] * ranks, micro_batches)[1] == list(map(list, shares))  # (their thirds are exact)


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
def test_r3_a_slow_rank_holds_nobody_up(seconds, micro_batches, least):
    """Joint speed over the sum of the ranks' speeds; dealt evenly it is that of the slowest."""
    end, _ = step([float(own) for own in seconds], micro_batches)
    assert micro_batches / end / sum(1 / own for own in seconds) >= least


def test_a_rank_that_stands_still_has_no_more_than_it_had_begun():
    duration_s, computed = step([1.0, 1.0, 1000.0], 30)
    assert [len(own) for own in computed] == [15, 14, 1]
    assert duration_s == pytest.approx(1000.0)  # of its own first


def test_nobody_counts_on_a_rank_that_takes_no_more():
    """All have become slow. The slowest has left the rest to the others by what they had told before, and the
    next does not leave it to that one."""
    duration_s, computed = believing([3.0, 3.0, 6.0]).step([6.0, 6.0, 12.0], in_turn(3, 7))
    assert [len(own) for own in computed] == [3, 3, 1]
    assert duration_s == 18.0


def test_nobody_counts_on_a_rank_that_is_dealt_nothing():
    node = Node(3)
    node.step([6.0, 6.0, 0.75], in_turn(3, 30))
    shares = [[0, 1], [2, 3], []]
    _, computed = node.step([6.0, 6.0, 0.75], shares)
    assert computed == shares


def test_a_rank_that_measures_nothing_comes_to_believe_it_is_as_fast_as_the_fastest():
    (own,) = Node(1).claims
    own.took(8.0, 2.0)
    for _ in range(100):
        own.forget([UNKNOWN, Pace(5.0), Pace(4.0)])
    assert (own.seconds, own.backward_s) == pytest.approx((4.0, 3.0))


def test_a_rank_that_leaves_the_rest_keeps_what_it_has_measured():
    node = Node(3)
    for _ in range(2):
        node.step([3.0, 3.0, 6.0], in_turn(3, 32))
    assert node.claims[2].counts.left == 2
    assert [own.seconds for own in node.claims] == pytest.approx([3.0, 3.0, 6.0])


def test_ranks_tell_how_slow_they_are_when_they_begin():
    """Rank 0 takes the rest of the slowest rank's before the losses of the others' first are known."""
    seconds = [0.75, 30.0, 60.0]
    _, computed = believing(seconds).step(seconds, [[0], [1, 2, 3], [4, 5, 6]])
    assert computed[0][1] == 6
