"""Stalls as ranks report them; the texts themselves are in tests/pure/message/test_stall_reports.py."""

from __future__ import annotations

import asyncio
import re

import numpy as np
import pytest

from tests.mpi.telling import Said, listen
from weft.runtime.message import World, order, run, stall

STALL_S = 0.5


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> Said:
    return listen(monkeypatch)


@pytest.mark.mpi(min_size=2)
def test_a_late_rank_is_named_with_its_position_by_one_of_those_that_wait(said: Said) -> None:
    async def main(world: World) -> None:
        channel = await world.channel("told")
        late = world.size - 1
        if world.rank == late:
            world.position("step 41: evaluating")
            await channel.receive()  # somebody has told
        waiting = world.allreduce(np.zeros(3), what="all-reduce of portion 3 (conv2)")
        if world.rank == late:
            await waiting
            return
        said.looks = True
        while not said and not waiting.done():
            await asyncio.sleep(0.01)
        if not waiting.done():
            await channel.send(late)
        await waiting

    run(main, stall_s=STALL_S)
    from mpi4py import MPI

    comm = MPI.COMM_WORLD
    # Whose clock ran out first told, the others left it to that rank; also of one that was slow by itself.
    told = [text for texts in comm.allgather(said.naming(comm.size - 1)) for text in texts]
    assert told
    for text in told:
        assert 'in "all-reduce of portion 3 (conv2)" for' in text
        assert 'has not called it; it is at "step 41: evaluating"' in text


@pytest.mark.mpi(min_size=2)
def test_many_waits_for_one_rank_are_told_in_a_few_reports(said: Said) -> None:
    """A thousand receives were two thousand lines, and neither rank did anything else for half a minute."""
    many = 200

    async def main(world: World) -> None:
        channel, numbers = await world.channel("told"), np.zeros(many)
        if world.rank == 1:
            await channel.receive()
            await asyncio.gather(*[world.send(numbers[n : n + 1], 0, n) for n in range(many)])
        elif world.rank == 0:
            arriving = [world.recv(numbers[n : n + 1], 1, n) for n in range(many)]
            said.looks = True
            while not any(re.search(r'" and in \d+ more for\n  rank 1 \(', text) for text in said):
                await asyncio.sleep(0.01)
            await channel.send(1)
            await asyncio.gather(*arriving)

    run(main, stall_s=STALL_S)
    assert len(said) < 10


@pytest.mark.mpi(min_size=2)
def test_a_rank_that_came_and_is_late_again_at_once_is_told_again(said: Said) -> None:
    names = ("portion 1", "portion 2")

    async def main(world: World) -> None:
        channel = await world.channel("told")
        late, said.looks = world.size - 1, True
        for name in names:
            if world.rank == late:
                async with asyncio.timeout(20):
                    while (await channel.receive()).body != name:
                        pass
            waiting = world.allreduce(np.zeros(3), what=name, patience_s=STALL_S)
            while world.rank != late and not waiting.done():
                await asyncio.sleep(0.01)
                if any(f'in "{name}" for' in text for text in said):
                    await channel.send(late, name)
                    break
            await waiting

    run(main)  # the world's own patience is longer than the test
    from mpi4py import MPI

    texts = [text for texts in MPI.COMM_WORLD.allgather(list(said)) for text in texts]
    assert [name for name in names if not any(f'in "{name}" for' in text for text in texts)] == []


@pytest.mark.mpi(min_size=2)
def test_what_is_called_behind_a_wait_that_was_told_is_told_with_it(
    said: Said, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of each portion that a step posted while one rank stood still there was a report."""
    monkeypatch.setattr(stall, "QUIET", 1000)
    looked: list[str] = []
    tell = stall.Stalls._tell

    def telling(stalls: stall.Stalls, number: int) -> None:
        looked.extend(q.wait.what for n, q in stalls._questions.items() if n == number)
        tell(stalls, number)

    monkeypatch.setattr(stall.Stalls, "_tell", telling)

    async def main(world: World) -> None:
        channel = await world.channel("told")
        late, said.looks = world.size - 1, True
        if world.rank == late:
            await channel.receive()
        patience_s = STALL_S if world.rank == 0 else None
        first = world.allreduce(np.zeros(3), what="portion 1", patience_s=patience_s)
        while world.rank == 0 and not said:
            await asyncio.sleep(0.01)
        second = world.allreduce(np.zeros(3), what="portion 2", patience_s=patience_s)
        if world.rank == 0:
            while "portion 2" not in looked:
                await asyncio.sleep(0.01)
            await channel.send(late)
        await asyncio.wait([first, second])

    run(main)
    told = [re.findall(r"\n  rank (\d+)", text) for text in said]
    assert all(told.count(ranks) == 1 for ranks in told)  # another on busy cores may be late, too


@pytest.mark.mpi(min_size=2)
def test_a_receive_from_a_rank_and_a_request_to_it_are_told(said: Said) -> None:
    async def main(world: World) -> None:
        channel = await world.channel("asked")
        said.looks = True
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


async def nothing(_: order.Orders) -> None:
    pass


@pytest.mark.mpi(min_size=3)
def test_ranks_that_reduce_other_portions_are_told_both_names(
    said: Said, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(order, "CHECK_S", 1e4)  # or the job would end
    monkeypatch.setattr(order.Orders, "finish", nothing)

    async def main(world: World) -> None:
        channel = await world.channel("told")
        late = world.size - 1
        if world.rank == late:
            await channel.receive()
            await world.allreduce(np.zeros(3), what="portion 2")
            return
        name = "portion 2" if world.rank == 0 else "portion 3"
        waiting = world.allreduce(np.zeros(3), what=name, patience_s=STALL_S)
        for rank in range(late):  # all but the last have called it
            await channel.send(rank, "called")
        for _ in range(late):
            await channel.receive()
        said.looks = True
        while not said and not waiting.done():
            await asyncio.sleep(0.01)
        if said:
            await channel.send(late)
        await waiting

    run(main)  # the world's own patience is longer than the test
    from mpi4py import MPI

    comm = MPI.COMM_WORLD
    texts = [texts[0] for texts in comm.allgather(list(said)) if texts]
    assert texts
    for text in texts:
        mine, other = (2, 3) if 'in "portion 2"' in text else (3, 2)
        assert f'in "portion {mine}" for' in text
        assert f"which called \"portion {other}\" there, as collective 1 on 'world'" in text
        assert f"rank {comm.size - 1} (" in text
        assert "has not called it" in text


@pytest.mark.mpi(min_size=2)
def test_a_counter_that_does_not_come_is_told_once_with_whom_it_needs(said: Said) -> None:
    what = "m: step 3, gradients of portion 2 (dense_1 rows 0-255)"

    async def main(world: World) -> None:
        board = await world.board(2)
        late = world.node_size - 1
        channel = await world.channel("told")
        if world.node_rank == late and late > 0:
            world.position("step 2: reading data")
            said.looks = True
            board.publish(1, 7)
            await channel.receive()  # somebody has told
            board.publish(1, 8)  # first: nothing is to be left that is waited for too long, and told
            board.publish(0, 3)
            await board.reached(0, 3)
        elif late > 0:
            waiting = board.reached(0, 3, what=what, patience_s=STALL_S)
            board.when(1, 8, list, ranks=range(late, late + 1), what="a later one", patience_s=STALL_S)
            assert not [wait for wait in world.selector.pending() if wait.what == what]  # its own is missing
            board.publish(0, 3)
            for rank in range(late):  # all but the last have come to it
                await board.reached(0, 3, ranks=range(rank, rank + 1))
            said.looks = True
            while not said and not waiting.done():
                await asyncio.sleep(0.01)
            if not waiting.done():
                await channel.send(world.node.ranks[late])
            await waiting
        said.looks = False
        await world.barrier()

    run(main, stall_s=STALL_S)
    from mpi4py import MPI

    comm = MPI.COMM_WORLD
    node = comm.Split_type(MPI.COMM_TYPE_SHARED)
    texts = [text for texts in node.allgather(list(said)) for text in texts]
    late = node.allgather(comm.rank)[-1]
    if node.size > 1:
        assert texts
        assert not said or comm.rank != late
        for text in texts:
            assert f'in "{what}" for\n  rank {late} (' in text
            assert 'which is at "step 2: reading data"' in text
            assert len(text.splitlines()) == 2


def test_who_listens_for_anybody_or_has_ended_waits_in_silence(said: Said) -> None:
    async def main(world: World) -> None:
        channel = await world.channel("idle")
        said.looks = True
        if world.rank == 0:
            listening = asyncio.create_task(channel.receive())
            any_rank = world.recv(np.zeros(1))
            await asyncio.sleep(5 * STALL_S)  # what is shown here is that nothing happens
            listening.cancel()
            any_rank.cancel()

    run(main, stall_s=STALL_S)
    assert said == []
