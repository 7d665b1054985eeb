"""What a rank did, as text: only what happened is told."""

from __future__ import annotations

from collections import Counter

import pytest

from weft.runtime.work.pool.tally import LaneTally, Tally


@pytest.mark.parametrize(
    ("lane", "text"),
    [
        (LaneTally(), ""),
        (LaneTally(ran=4), "class 0: 4 ran; nothing taken"),
        (LaneTally(attempts=3, misses=3), "class 0: 0 ran; 3 attempts, 3 missed, nothing taken"),
        (
            LaneTally(ran=9, attempts=2, steals=2, stolen=5, nbytes=300),
            "class 0: 9 ran; 2 attempts, 5 tasks of 300 bytes taken",
        ),
        (
            LaneTally(9, 3, 2, 5, 4, 1, 300, Counter({"wrong device": 2, "not worth it": 1})),
            "class 0: 9 ran; 3 attempts, 1 missed, 5 tasks of 300 bytes taken, 4 of them by message; "
            "left alone: 1 not worth it, 2 wrong device",
        ),
    ],
    ids=[
        "a lane in which nothing happened is left out",
        "one rank has nobody to rob",
        "all attempts missed",
        "inside the node",
        "everything happened",
    ],
)
def test_a_line_tells_what_happened_in_a_lane(lane, text):
    assert str(Tally(["class 0"], [lane])) == text


def test_a_function_has_a_line_of_its_own():
    tally = Tally(["class 0"], [LaneTally(ran=2)], {"strip": [2, 0.25]})
    assert str(tally) == "class 0: 2 ran; nothing taken\nstrip: 2 tasks in 0.250 s"
