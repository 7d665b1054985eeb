"""Whom a thief chooses, and when it leaves work where it is."""

from __future__ import annotations

from dataclasses import replace
from math import inf
from random import Random

import pytest

from weft.runtime.work.pool.victims import LONGEST_PAUSE_S, Declared, Way, choose, fullest, gain_s, pause_s

FREE = Way(0.0, 0.0)
WAY = Way(1e-3, 1e-6)
FOUR = Declared(0, tasks=4, seconds=4.0, nbytes=0.0)


@pytest.mark.parametrize(
    ("victim", "way", "gain"),
    [
        pytest.param(FOUR, FREE, 2.0, id="half the work"),
        pytest.param(FOUR, Way(0.5, 0.0), 1.5, id="less the way"),
        pytest.param(replace(FOUR, nbytes=1e6), WAY, 2.0 - 1e-3 - 0.5, id="less half the bytes"),
        pytest.param(replace(FOUR, nbytes=1e7), WAY, 4.0 - (1e-3 + 5.0 + 2.0), id="too much to carry"),
        pytest.param(replace(FOUR, busy_s=2.0), FREE, 2.0, id="the victim would not get to it for a while"),
        pytest.param(Declared(0, 1, 3.0, 0.0), FREE, 0.0, id="one task: it is all the same who runs it"),
        pytest.param(Declared(0, 1, 3.0, 0.0, busy_s=1.0), FREE, 1.0, id="unless its owner is busy"),
        pytest.param(Declared(0, 3, 3.0, 0.0), FREE, 1.0, id="two of three"),
        pytest.param(Declared(0, 0, 0.0, 0.0, busy_s=9.0), FREE, 0.0, id="nothing is out"),
        pytest.param(Declared(0, 4, 0.0, 1e9, closed=True), WAY, inf, id="its owner could never run it"),
        pytest.param(Declared(0, 0, 0.0, 0.0, closed=True), WAY, 0.0, id="closed, and nothing is out"),
    ],
)
def test_r3_what_a_theft_gains(victim, way, gain):
    assert gain_s(victim, way) == pytest.approx(gain)


def test_r3_nobody_is_robbed_where_that_does_not_pay():
    heavy = [replace(FOUR, rank=rank, nbytes=1e8) for rank in range(3)]
    assert choose(heavy, WAY, Random(1)) is None
    assert fullest(heavy, WAY) is None
    assert choose([], FREE, Random(1)) is None
    assert fullest([], FREE) is None


def test_r3_what_its_owner_cannot_run_is_taken_whatever_it_costs():
    left = [replace(FOUR, nbytes=1e8), Declared(1, 1, 0.0, 1e8, closed=True)]
    assert choose(left, WAY, Random(1)) == left[1]
    assert fullest(left, WAY) == left[1]


def test_s1_6_only_cost_tags_change_who_is_robbed():
    ranks = [Declared(rank, 10, seconds, 0.0) for rank, seconds in enumerate((1.0, 5.0, 2.0))]
    assert fullest(ranks, FREE).rank == 1
    assert fullest([replace(ranks[0], seconds=9.0), *ranks[1:]], FREE).rank == 0


def test_r3_thieves_spread_over_victims_and_prefer_the_fuller():
    ranks = [Declared(rank, 10, 1.0 + rank, 0.0) for rank in range(4)]
    random = Random(1)
    chosen = [choose(ranks, FREE, random).rank for _ in range(1600)]
    counts = [chosen.count(rank) for rank in range(4)]
    # The better of two drawn from four: 1, 3, 5 and 7 sixteenths.
    assert counts == [pytest.approx(1600 * share / 16, rel=0.15) for share in (1, 3, 5, 7)]


def test_questions_that_bring_nothing_become_rare():
    pauses = [pause_s(misses, 100e-6) for misses in range(100)]
    assert pauses[:4] == pytest.approx([0.0, 200e-6, 400e-6, 800e-6])
    assert pauses[20:] == [LONGEST_PAUSE_S] * 80
