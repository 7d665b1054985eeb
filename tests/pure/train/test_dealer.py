"""Micro-batches dealt to ranks by their paces."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from weft.runtime.train.dealer import Dealer
from weft.runtime.train.order import owned


def dealt(count: int, *paces_s: float) -> list[list[int]]:
    dealer = Dealer(len(paces_s))
    dealer.learn(np.array(paces_s))
    return dealer.deal(count)


@pytest.mark.parametrize(
    "paces_s",
    [
        pytest.param((0.0, 0.0, 0.0), id="nothing is known yet"),
        pytest.param((1.0, 2.0, 0.0), id="one pace is not known"),
        pytest.param((1.0, 1.05, 1.09), id="paces vary by chance"),
    ],
)
@pytest.mark.parametrize("count", [0, 2, 3, 60])
def test_r3_they_are_dealt_in_turn_while(paces_s, count):
    assert dealt(count, *paces_s) == [list(owned(count, rank, 3)) for rank in range(3)]


@pytest.mark.parametrize(
    ("paces_s", "counts"),
    [((1.0, 2.0), [8, 4]), ((1.0, 1.0, 2.0, 2.0), [4, 4, 2, 2]), ((1.0, 100.0), [12, 0])],
)
def test_r3_a_faster_rank_gets_more(paces_s, counts):
    shares = dealt(12, *paces_s)
    assert [len(share) for share in shares] == counts
    assert Counter(index for share in shares for index in share) == Counter(range(12))
    assert all(share == sorted(share) for share in shares)


def test_a_pace_is_the_time_between_forward_passes_and_follows_it():
    dealer = Dealer(1)
    dealer.measured([10.0, 10.1, 10.2, 10.9])
    assert dealer.own_s == pytest.approx(0.1)
    for _ in range(20):
        dealer.measured([0.0, 0.2])
    assert dealer.own_s == pytest.approx(0.2, rel=0.01)


def test_a_rank_that_got_nothing_to_measure_is_tried_again():
    """Rank 1 was a hundred times slower for a while, and is as fast as rank 0 now."""
    slow = Dealer(2)
    slow.measured([0.0, 100.0])
    steps = 0
    while slow.own_s > 1.05:
        slow.learn(np.array([1.0, slow.own_s]))
        share = slow.deal(8)[1]
        slow.measured([float(end) for end, _ in enumerate(share)])
        steps += 1
        assert steps < 400
    slow.learn(np.array([1.0, slow.own_s]))
    assert [len(share) for share in slow.deal(8)] == [4, 4]
