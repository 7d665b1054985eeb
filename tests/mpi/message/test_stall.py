"""Stalls as ranks report them; the texts themselves are in tests/pure/message/test_stall_reports.py."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest

from weft.runtime.message import World, run, stall

STALL_S = 0.2


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    texts: list[str] = []
    monkeypatch.setattr(stall, "say", texts.append)
    return texts


@pytest.mark.mpi(min_size=2)
def test_a_late_rank_is_named_with_its_position_by_one_of_those_that_wait(said: list[str]) -> None:
    async def main(world: World) -> None:
        channel = await world.channel("told")
        late = world.size - 1
        if world.rank == late:
            world.position("step 41: evaluating")
            await channel.receive()  # somebody has told
            await world.allreduce(np.zeros(3))
            return
        waiting = world.allreduce(np.zeros(3), what="all-reduce of portion 3 (conv2)")
        while not said and not waiting.done():
            await asyncio.sleep(0.01)
        if said:
            await channel.send(late)
        await waiting

    run(main, stall_s=STALL_S)
    from mpi4py import MPI

    comm = MPI.COMM_WORLD
    all_said = comm.allgather(list(said))
    first = [texts[0] for texts in all_said if texts]
    assert first  # whose clock ran out first told; the others left it to that rank
    assert not all_said[comm.size - 1]
    for text in first:
        assert 'in "all-reduce of portion 3 (conv2)" for' in text
        assert f"rank {comm.size - 1} (" in text
        assert 'has not called it; it is at "step 41: evaluating"' in text


@pytest.mark.mpi(min_size=2)
def test_a_receive_from_a_rank_and_a_request_to_it_are_told(said: list[str]) -> None:
    async def main(world: World) -> None:
        channel = await world.channel("asked")
        if world.rank == 0:
            receiving = world.recv(np.zeros(1), source=1)
            asking = asyncio.create_task(channel.request(1, "?"))
            while len(said) < 2:
                await asyncio.sleep(0.01)
            await channel.send(1)
            await asyncio.gather(receiving, asking)
        if world.rank == 1:
            question = await channel.receive()
            await channel.receive()
            await world.send(np.zeros(1), 0)
            await question.reply()

    run(main, stall_s=STALL_S)
    from mpi4py import MPI

    if MPI.COMM_WORLD.rank == 0:
        assert any("receive from rank 1 (tag any) on 'world'" in text for text in said)
        assert any("rank 1 to reply" in text for text in said)
    else:
        assert said == []


def test_who_listens_for_anybody_or_has_ended_waits_in_silence(said: list[str]) -> None:
    async def main(world: World) -> None:
        channel = await world.channel("idle")
        if world.rank == 0:
            listening = asyncio.create_task(channel.receive())
            any_rank = world.recv(np.zeros(1))
            await asyncio.sleep(5 * STALL_S)  # what is shown here is that nothing happens
            listening.cancel()
            any_rank.cancel()

    run(main, stall_s=STALL_S)
    assert said == []
