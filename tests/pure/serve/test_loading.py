"""What is told of a model that ranks could not load: a line a reason, however many ranks have it."""

from __future__ import annotations

import asyncio
import threading
from dataclasses import dataclass
from typing import Any
from unittest.mock import Mock

import pytest

from weft.runtime.errors import WeftError
from weft.runtime.serve.loading import Loading, merged
from weft.runtime.serve.repository import Entry
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


def test_others_are_answered_while_a_slow_file_system_is_read():
    answered = threading.Event()

    class Slow:
        def scan(self) -> dict[str, Entry]:
            assert answered.wait(10)
            return {"m": Entry("m", reason="is damaged")}

    async def main() -> None:
        nothing: Any = Mock(loaded={}, awaited={}, all=list)
        repository: Any = Slow()
        index = asyncio.create_task(Loading([], repository, nothing, nothing, nothing).index())
        await asyncio.sleep(0.01)
        answered.set()
        assert [(info.name, info.reason) for info in await index] == [("m", "is damaged")]

    asyncio.run(main())
