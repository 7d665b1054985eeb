"""The lane as asyncio sees it, whole and as the part of one model."""

from __future__ import annotations

import asyncio

import pytest

from weft.kernels.device import Device
from weft.kernels.lane import Group, Task
from weft.runtime.work import Compute


def fail() -> None:
    raise ZeroDivisionError("in a kernel")


def test_a_failing_task_is_raised_where_the_rank_waits():
    async def main() -> None:
        async with Compute(Device()) as compute:
            await compute.run([Task("bad", fail)])

    with pytest.raises(ZeroDivisionError):
        asyncio.run(main())


def test_a_task_that_raises_stop_iteration_is_no_wait_for_ever():
    def ends() -> None:
        next(iter(()))

    async def main() -> None:
        async with Compute(Device()) as compute, asyncio.timeout(10):
            await compute.run([Task("bad", ends)])

    with pytest.raises(RuntimeError, match=r"a task raised StopIteration\(\)") as told:
        asyncio.run(main())
    assert "ends" in [entry.name for entry in told.traceback]


def test_a_failing_part_ends_its_waits_and_leaves_the_other_alone():
    async def main() -> list[str]:
        names = []
        ill, well = Group("ill"), Group("well")
        async with Compute(Device()) as compute:
            one, other = compute.part(ill), compute.part(well)
            await one.run([Task("bad", fail)])
            await one.run([Task("never", lambda: names.append("never"))])
            await other.run([Task("runs", lambda: names.append("runs"))])
            await compute.run([Task("of no part", lambda: names.append("of no part"))])
            assert isinstance(ill.error, ZeroDivisionError)
            assert well.error is None
            assert not compute.failure.done()
        return names

    assert asyncio.run(main()) == ["runs", "of no part"]
