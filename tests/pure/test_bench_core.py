"""Which core each rank of a bench gets, of those that its launcher has left it."""

from __future__ import annotations

import pytest

from bench._core import dealt

ALL = {0, 1, 2, 3}


@pytest.mark.parametrize(
    ("allowed", "expected"),
    [
        ([ALL, ALL, ALL], [0, 1, 2]),
        ([{0, 1}] * 4, [0, 1, 0, 1]),
        ([{0}, {1}], [0, 1]),
        ([{0, 1}, {2, 3}, {0, 1}, {2, 3}], [0, 2, 1, 3]),
        ([{0, 1}, {0}], [1, 0]),
        ([{5}, {5}], [5, 5]),
    ],
    ids=[
        "of ranks that nobody bound each has the core of its number",
        "more ranks than cores share them evenly",
        "a rank that is bound stays there",
        "ranks that are bound to sockets in turn share no core",
        "who has a choice leaves the only core to who has none",
        "ranks with one core between them share it",
    ],
)
def test_every_rank_has_a_core_of_its_own_where_there_are_enough(allowed, expected):
    assert dealt(allowed) == expected
