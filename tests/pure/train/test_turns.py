"""Turns on one rank: the order is kept whatever the timing of the models' coroutines."""

from __future__ import annotations

import asyncio
import random

import pytest

from weft.kernels.lane import Lane, Task
from weft.runtime.train.interleave import Claim, ModelOrder, steps
from weft.runtime.train.turns import Turns

CLAIMS = [Claim(3), Claim(1, 2), Claim(2), Claim(1, priority=1)]
LENGTHS = [7, 30, 0, 12]


async def take_all(seed: int) -> list[tuple[int, int]]:
    """What a rank does whose models need times of their own between their steps, and to leave."""
    delay, turns, taken = random.Random(seed), Turns(ModelOrder(CLAIMS)), []

    async def pause() -> None:
        for _ in range(delay.randrange(20)):
            await asyncio.sleep(0)

    async def train(model: int) -> None:
        for step in range(LENGTHS[model]):
            await pause()
            await turns.take(model)
            taken.append((model, step))
        await pause()
        turns.leave(model)

    async with asyncio.TaskGroup() as group:
        for model in delay.sample(range(len(CLAIMS)), len(CLAIMS)):
            group.create_task(train(model))
    return taken


@pytest.mark.parametrize("seed", range(20))
def test_s2_1_the_order_does_not_depend_on_timing(seed):
    assert asyncio.run(take_all(seed)) == list(steps(CLAIMS, LENGTHS))


def test_steps_begin_in_order_even_where_a_later_one_could_begin_first():
    """a's second step waits for the end of its first, which is not to come before c has been submitted."""

    async def main() -> list[str]:
        turns, names = Turns(ModelOrder([Claim(1), Claim(1)])), []
        done = asyncio.Event()
        loop = asyncio.get_running_loop()

        def task(name, needs=(), priority=0, last=False):
            notify = (lambda _: loop.call_soon_threadsafe(done.set)) if last else None
            return Task(name, lambda: names.append(name), needs, priority=priority, notify=notify)

        held = Task("held", None)
        with Lane() as lane:
            firsts = [
                task("a0", priority=await turns.take(0)),
                task("b0", [held], priority=await turns.take(1)),
                task("a1", priority=await turns.take(0), last=True),
            ]
            for first in firsts:
                turns.begin(first)
            lane.submit([firsts[2], firsts[1], firsts[0]])
            lane.submit([held])
            lane.finish(held)
            await done.wait()
        return names

    assert asyncio.run(main()) == ["a0", "b0", "a1"]


def test_a_model_that_waits_may_be_cancelled():
    async def main() -> None:
        turns = Turns(ModelOrder([Claim(1), Claim(1)]))
        waiting = asyncio.create_task(turns.take(1))
        await asyncio.sleep(0)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        await turns.take(0)

    asyncio.run(main())
