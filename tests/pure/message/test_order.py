"""Where two ranks' collectives part, from the checksums that each still knows."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import pytest

from weft.runtime.message.communicator import Communicator
from weft.runtime.message.order import Orders, first_difference

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


class First:
    """The first rank of a communicator, which has called the collectives of `SAME` up to some number."""

    def __init__(self) -> None:
        self.control = Mock()
        comm: Any = Mock(spec=Communicator, group="g")
        self.comm = comm
        comm.checksums = lambda count: Communicator.checksums(comm, count)
        comm.call = lambda number: Communicator.call(comm, number)
        world: Any = SimpleNamespace(loop=Mock(), selector=SimpleNamespace(communicators=[comm]))
        self.orders = Orders(self.control, world, Mock())

    def told(self, called: int, checksums: list[int], *, own: int) -> int | None:
        """The number that it names when rank 1 tells these checksums and it has itself called `own`."""
        self.comm.called = own
        self.comm._calls = [Mock(what="w", nbytes=8, checksum=checksum) for checksum in SAME[:own]]
        self.control.send.reset_mock()
        self.orders._compare(1, "g", called, checksums)
        if not self.control.send.called:
            return None
        rank, name, group, number, *_ = self.control.send.call_args.args
        assert (rank, name, group) == (1, "differs", "g")
        return int(number)


@pytest.mark.parametrize("own", [0, 1, 2, 3])
def test_what_was_told_too_early_is_compared_later(own: int):
    first = First()
    assert first.told(5, OTHER[:5], own=own) is None
    assert first.told(6, OTHER[5:6], own=own) is None
    assert first.told(8, OTHER[6:], own=8) == 4


def test_what_was_told_too_early_and_is_right_is_forgotten():
    first = First()
    assert first.told(5, SAME[:5], own=3) is None
    assert first.told(7, SAME[5:7], own=7) is None
    assert first.told(8, SAME[7:], own=8) is None
    assert not first.orders._ahead


def test_after_a_gap_only_what_is_known_is_compared():
    first = First()
    assert first.told(3, OTHER[:3], own=1) is None
    assert first.told(8, OTHER[5:], own=8) == 6
