"""What claims take of a lot."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from weft.runtime.work.pool import lot

PLACES = st.integers(0, lot.LONGEST)


def claimed(word: int, claims: int) -> list[range]:
    """What so many claims take, one after the other."""
    return [lot.taken(word + claim * lot.CLAIM) for claim in range(claims)]


def test_a_claim_takes_half_of_what_is_left():
    assert claimed(lot.word(3, 8), 5) == [
        range(3, 7),
        range(7, 9),
        range(9, 10),
        range(10, 11),
        range(11, 11),
    ]
    assert claimed(lot.word(0, 7), 3) == [range(4), range(4, 6), range(6, 7)]
    assert claimed(lot.word(5, 1), 1) == [range(5, 6)]


@given(PLACES, PLACES, st.integers(0, 40))
def test_what_is_taken_and_what_is_left_are_the_whole_lot_once(first, count, claims):
    word = lot.word(first, count)
    rest = lot.left(word + claims * lot.CLAIM)
    found = [place for part in (*claimed(word, claims), rest) for place in (part.start, part.stop)]
    assert found[0] == first
    assert found[-1] == first + count
    assert all(a == b for a, b in zip(found[1:-1:2], found[2:-1:2], strict=True))
    if claims >= count.bit_length():
        assert not rest


@given(PLACES, PLACES)
def test_claims_beyond_their_field_take_nothing_and_change_nothing(first, count):
    as_mpi_holds_it = (lot.word(first, count) + ((1 << 24) - 1) * lot.CLAIM) - (1 << 64)
    assert not lot.taken(as_mpi_holds_it)
    assert not lot.left(as_mpi_holds_it)
    again = (as_mpi_holds_it + lot.CLAIM) & ((1 << 64) - 1)
    assert lot.left(again) == range(first, first + count)


@pytest.mark.parametrize(("first", "count"), [(-1, 3), (0, lot.LONGEST + 1), (lot.LONGEST + 1, 0)])
def test_what_does_not_fit_is_refused(first, count):
    with pytest.raises(ValueError, match=r"both must be 0 to 1048575"):
        lot.word(first, count)
