"""What is told of a model that ranks could not load: a line a reason, however many ranks have it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest

from weft.runtime.errors import WeftError
from weft.runtime.serve.loading import merged
from weft.runtime.serve.worker import ELSEWHERE


@dataclass
class Rank:
    rank: int
    host: str


LINKS: Any = [Rank(0, "n0"), Rank(1, "n0"), Rank(2, "n1")]
BAD, GONE, OTHER = WeftError("a/1 is damaged"), WeftError("a/1 does not exist here"), WeftError(ELSEWHERE)


@pytest.mark.parametrize(
    ("results", "told"),
    [
        ([{}, {}, {}], ""),
        ([BAD, BAD, BAD], "a/1 is damaged"),
        ([{}, {}, GONE], "rank 2 on n1: a/1 does not exist here"),
        ([GONE, OTHER, {}], "rank 0 on n0: a/1 does not exist here"),
        ([BAD, BAD, GONE], "ranks 0-1 on n0: a/1 is damaged\nrank 2 on n1: a/1 does not exist here"),
    ],
    ids=[
        "nothing is wrong",
        "everybody has the same",
        "one rank",
        "who only waited for another is not named",
        "different ones",
    ],
)
def test_a_reason_is_told_once(results: list[Any], told: str):
    assert merged(LINKS, results) == told


def test_what_is_no_error_of_ours_is_raised():
    with pytest.raises(ZeroDivisionError):
        merged(LINKS, [BAD, ZeroDivisionError(), {}])
