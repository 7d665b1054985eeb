"""Where two ranks' collectives part, from the checksums that each still knows."""

from __future__ import annotations

import pytest

from weft.runtime.message.order import first_difference

# Checksums of collectives 1 to 8; those of a rank that differs from number 4 on.
SAME = [11, 12, 13, 14, 15, 16, 17, 18]
OTHER = [11, 12, 13, 94, 95, 96, 97, 98]


@pytest.mark.parametrize(
    ("mine", "my_last", "theirs", "their_last", "number"),
    [
        pytest.param(SAME, 8, SAME, 8, None, id="equal"),
        pytest.param(SAME, 8, SAME[:5], 5, None, id="they are behind"),
        pytest.param(SAME[:5], 5, SAME, 8, None, id="I am behind"),
        pytest.param(SAME, 8, OTHER, 8, 4, id="different from the fourth on"),
        pytest.param(SAME, 8, OTHER[:3], 3, None, id="not different yet"),
        pytest.param(SAME, 8, OTHER[3:4], 4, 4, id="they tell what is new only"),
        pytest.param(SAME[5:], 8, OTHER, 8, 6, id="I know the last three only"),
        pytest.param(SAME[5:], 8, OTHER[:5], 5, None, id="I have forgotten what they tell"),
        pytest.param(SAME[:2], 2, OTHER[3:], 8, None, id="I am not where they begin"),
        pytest.param([], 0, OTHER, 8, None, id="I have called nothing"),
    ],
)
def test_the_first_difference(
    mine: list[int], my_last: int, theirs: list[int], their_last: int, number: int | None
) -> None:
    assert first_difference(mine, my_last, theirs, their_last) == number
