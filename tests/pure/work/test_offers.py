"""Kernels that ranks put out for each other: each is run once, whoever looks when."""

from __future__ import annotations

from collections.abc import Callable

from tests.pure.work.memory import Memory
from weft.runtime.message.window import LINE_BYTES
from weft.runtime.work.offers import Offer, Offers

RANKS, PLACES = 3, 2


def offers(takers: int = RANKS) -> list[Offers]:
    memory = Memory(RANKS, (2 + PLACES) * LINE_BYTES)
    return [Offers(memory, rank, RANKS, PLACES, takers) for rank in range(RANKS)]


class HeldUp:
    """A word whose reader is held up before it has read it, until others have done something."""

    def __init__(self, word, meanwhile: Callable[[], None]) -> None:
        self._word, self._meanwhile = word, meanwhile
        self.swap = word.swap

    def peek(self) -> int:
        self._meanwhile()
        return self._word.peek()


def test_a_kernel_is_claimed_once_or_taken_back():
    owner, first, second = offers()
    assert not owner.wanted(1)
    first.rest(1)
    assert owner.wanted(1)
    assert [owner.put_out(1, kernel, 7, True) for kernel in (10, 11, 12)] == [0, 1, None]
    assert first.claim(1) == Offer(0, 0, 10, 7, True)
    assert not owner.take_back(1, 0)
    assert owner.take_back(1, 1)
    assert second.claim(1) is None
    assert owner.ended(1, [0]) == []
    first.end(1, Offer(0, 0, 10, 7, True), 5)
    assert owner.ended(1, [0]) == [(0, 5)]


def test_who_updates_no_weights_claims_nothing():
    owner, other, idle = offers(takers=2)
    idle.rest(1)
    assert not owner.wanted(1)
    owner.put_out(1, 10, 0, True)
    assert idle.claim(1) is None
    assert other.claim(1) is not None


def test_who_looks_once_more_when_all_others_are_done_claims_nothing_of_the_next_step():
    owner, late, other = offers()
    late.rest(1)
    place = owner.put_out(1, 10, 0, True)
    assert place is not None
    assert owner.take_back(1, place)
    owner.rest(1)
    other.rest(1)
    claimed = []

    def next_step() -> None:
        if not claimed:
            other.rest(2)
            owner.put_out(2, 11, 3, False)
            claimed.append(other.claim(2))

    late._claims[0][place] = HeldUp(late._claims[0][place], next_step)
    assert late.claim(1) is None
    next_step()
    assert claimed == [Offer(0, 0, 11, 3, False)]
