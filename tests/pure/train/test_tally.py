"""What all ranks sum of a step: losses, answers, and whether every micro-batch was entered once."""

from __future__ import annotations

import pytest

from weft.runtime.train.tally import Tally


def summed(*tallies: Tally) -> Tally:
    for other in tallies[1:]:
        tallies[0].array[:] += other.array
    return tallies[0]


def test_losses_and_answers_of_all_ranks():
    first, second = (Tally.of(3, 12, 24) for _ in range(2))
    first.enter(0, 4.0, 8)
    second.enter(1, 2.0, 4)
    first.enter(2, 6.0, 6)
    total = summed(first, second)
    assert (total.loss, total.accuracy) == (1.0, 0.75)
    assert not total.failed


@pytest.mark.parametrize(
    ("own", "other"), [([0], [2]), ([0, 1, 2], [1]), ([], [])], ids=["lost", "twice", "none"]
)
def test_a_micro_batch_that_was_lost_or_came_twice_is_told(own, other):
    tallies = [Tally.of(3, 12, 12) for _ in range(2)]
    for tally, parts in zip(tallies, (own, other), strict=True):
        for part in parts:
            tally.enter(part, 1.0, 4)
    total = summed(*tallies)
    assert total.failed
    assert total.entered == len(own) + len(other)


def test_a_failure_is_told_whatever_was_entered():
    tallies = [Tally.of(1, 4, 4) for _ in range(2)]
    tallies[1].enter(0, 1.0, 4)
    tallies[0].fail()
    assert summed(*tallies).failed


def test_paces_lie_between_losses_and_the_rest():
    first, second = (Tally.of(1, 4, 4, ranks=2) for _ in range(2))
    first.paces_s[0], second.paces_s[1] = 0.5, 0.25
    first.enter(0, 8.0, 1)
    second.ask_to_stop()
    total = summed(first, second)
    assert total.paces_s.tolist() == [0.5, 0.25]
    assert (total.loss, total.stop, total.failed) == (2.0, True, False)
