"""Whose bytes count in a turn of the bench of portions."""

from __future__ import annotations

import asyncio
from argparse import Namespace
from types import SimpleNamespace

import pytest

from bench import portions
from bench.harness import WrongResultError

MB = 1 << 20


def measured(monkeypatch: pytest.MonkeyPatch, sent: int) -> dict[str, object]:
    """Figures of a rank whose host sends so many bytes in each turn before that rank leaves the barrier."""
    link = [0]

    async def barrier() -> None:
        link[0] += sent

    async def allreduce(array: object, op: str) -> None:
        pass

    class Turns:
        def __init__(self, world: object, nbytes: int) -> None:
            pass

        def block(self) -> float:
            return 1.0

        async def portions(self, credit: int) -> float:
            return 1.0

        async def lowest(self, rule: str) -> float:
            return 1.0

    world = SimpleNamespace(size=2, nodes=((0,), (1,)), barrier=barrier, allreduce=allreduce)
    monkeypatch.setattr(portions, "link_bytes", lambda: link[0])
    monkeypatch.setattr(portions, "Bench", Turns)
    monkeypatch.setattr(portions, "limit_threads", lambda count: None)
    return asyncio.run(portions.figures(world, Namespace(megabytes=1, repetitions=1)))


def test_a_rank_that_comes_late_to_a_turn_counts_what_others_of_its_host_have_sent_by_then(monkeypatch):
    assert "goodput_over_blocking" in measured(monkeypatch, MB + 1)


def test_a_turn_without_the_bytes_over_the_link_gives_no_figures(monkeypatch):
    with pytest.raises(WrongResultError, match="only 1000 bytes went over the link"):
        measured(monkeypatch, 1000)
