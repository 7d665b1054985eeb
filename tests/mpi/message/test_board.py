"""Counters in shared memory: seen by the whole node, awaited like a message."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable

import numpy as np
import pytest
from mpi4py import MPI

from tests.launch import requires
from weft.runtime.errors import Mistake
from weft.runtime.message import World, run
from weft.runtime.message import board as board_module
from weft.runtime.message.board import Board
from weft.runtime.message.nap import NapPolicy

from .talk import Talk, talk

# Whoever is not rung sleeps longer than a test may take.
RUNG = NapPolicy(spin_s=0.0, awaited_spin_s=0.0, rung_s=1e4, shortest_s=1e4, awaited_s=1e4, idle_s=1e4)


def test_a_callback_comes_when_every_rank_of_the_node_has_published() -> None:
    async def main(world: World) -> None:
        board = await world.board(3, numbers=2)
        called: list[int] = []
        board.when(1, 5, lambda: called.append(world.rank))
        board.numbers(world.node_rank)[:] = [world.rank, 0.5]
        board.publish(0, 7)  # another counter
        board.publish(1, 4)  # not there yet
        await board.reached(1, 4)
        assert called == []
        board.publish(1, 6)  # beyond
        await board.reached(1, 5)
        assert called == [world.rank]
        for number, rank in enumerate(world.node.ranks):
            assert board.numbers(number).tolist() == [rank, 0.5]
            assert board.value(1, number) == 6
        await world.barrier()
        await board.close()
        await board.close()

    run(main)


def test_who_waited_before_is_told_before() -> None:
    """Also where a rank has set its counter, and is held up before it can say that there is something new."""

    async def main(world: World) -> None:
        board = await world.board(1)
        called: list[str] = []
        board.when(0, 1, lambda: called.append("first"))
        await world.barrier()
        board._table[world.node_rank, 0] = 1  # what `publish` begins with
        await world.barrier()
        board.when(0, 1, lambda: called.append("second"))
        await asyncio.sleep(0)
        assert called == ["first", "second"]
        await world.barrier()
        await board.close()

    run(main)


def test_who_waited_before_is_told_before_also_if_a_rank_counts_between_two_looks(monkeypatch) -> None:
    async def main(world: World) -> None:
        board = await world.board(2)
        called: list[str] = []
        looks = board_module.Wait.look

        def look(wait: board_module.Wait) -> list[int]:
            places = looks(wait)
            board._table[:, 0] = 1  # as if all ranks had counted just now
            return places

        monkeypatch.setattr(board_module.Wait, "look", look)
        for name in ("first", "second"):
            board.when(0, 1, lambda name=name: called.append(name))
        if world.node_rank == 0:
            board.publish(1, 1)  # another counter: there is something to look at
        await board.reached(1, 1, ranks=range(1))
        while not called:
            board._seen = []  # look again
            await asyncio.sleep(0)
        assert called == ["first", "second"][: len(called)]
        await world.barrier()
        await board.close()

    run(main)


def test_a_wait_may_be_for_some_ranks_only_and_may_be_over_already() -> None:
    async def main(world: World) -> None:
        board = await world.board(1)
        first, last = 0, world.node_size - 1
        if world.node_rank == last:
            board.publish(0, 1)
        await board.reached(0, 1, ranks=range(last, last + 1))
        called: list[int] = []
        board.when(0, 1, lambda: called.append(1), ranks=range(last, last + 1))
        assert called == []  # never from within
        await asyncio.sleep(0)
        assert called == [1]
        if world.node_rank == first and first != last:
            board.publish(0, 1)
        await board.reached(0, 1, ranks=range(first, first + 1))
        await world.barrier()

    run(main)


def test_many_counters_are_told_as_they_come_each_once() -> None:
    async def main(world: World) -> None:
        board = await world.board(8)
        told: list[list[int]] = []
        board.each(range(2, 6), 1, told.append)
        board.publish([3, 7, 5], 1)
        for index in (3, 5):
            await board.reached(index, 1)
        await asyncio.sleep(0)
        assert sorted(place for places in told for place in places) == [1, 3]
        board.publish([4, 2], 2)
        for index in (2, 4):
            await board.reached(index, 2)
        await asyncio.sleep(0)
        assert sorted(place for places in told for place in places) == [0, 1, 2, 3]
        with pytest.raises(Mistake, match="counter 4 of 'board' stands at 2 and was to be set to 2"):
            board.publish([6, 4], 2)
        assert board.value(6, world.node_rank) == 0
        await world.barrier()

    run(main)


def test_counters_only_grow() -> None:
    async def main(world: World) -> None:
        board = await world.board(2, name="hand-offs")
        board.publish(1, 3)
        with pytest.raises(Mistake, match="counter 1 of 'hand-offs' stands at 3 and was to be set to 3"):
            board.publish(1, 3)
        with pytest.raises(Mistake, match="0 counters was asked for"):
            await world.board(0)
        await world.barrier()

    run(main)


@pytest.mark.parametrize(
    ("use", "none"),
    [
        pytest.param(lambda board, size: board.publish(-1, 1), "counter -1", id="-1 is not the last counter"),
        pytest.param(lambda board, size: board.publish([0, 2], 1), "counter 2", id="one counter too many"),
        pytest.param(lambda board, size: board.value(-1, 0), "counter -1", id="nor is it to be read"),
        pytest.param(lambda board, size: board.value(0, -1), "rank -1", id="-1 is not the last rank"),
        pytest.param(lambda board, size: board.numbers(-1), "rank -1", id="nor are its numbers"),
        pytest.param(lambda board, size: board.numbers(size), "rank [1-9]", id="one rank too many"),
    ],
)
def test_what_a_board_has_not_is_refused(use: Callable[[Board, int], object], none: str) -> None:
    async def main(world: World) -> None:
        board = await world.board(2, 1, name="hand-offs")
        with pytest.raises(Mistake, match=f"there is no {none} in 'hand-offs': "):
            use(board, world.node_size)
        assert [board.value(index, world.node_rank) for index in (0, 1)] == [0, 0]
        board.publish(np.int64(1), 1)  # a number that NumPy gave is one
        assert board.value(1, world.node_rank) == 1

    run(main)


@pytest.mark.parametrize(
    ("indices", "ranks"),
    [
        pytest.param(range(2, 3), None, id="a counter that there is not"),
        pytest.param(range(-1, 0), None, id="a counter before the first"),
        pytest.param(range(0, 2, 2), None, id="every other counter"),
        pytest.param(range(1), range(99), id="ranks that there are not"),
        pytest.param(range(1), range(0), id="no rank"),
    ],
)
def test_a_wait_that_could_not_end_or_would_end_early_is_refused(indices: range, ranks: range | None) -> None:
    async def main(world: World) -> None:
        board = await world.board(2)
        with pytest.raises(Mistake, match=r"must be parts of range\(0, 2\) and range\(0, "):
            board.each(indices, 1, lambda places: None, ranks=ranks)

    run(main)


def test_a_wait_that_is_cancelled_or_left_keeps_nobody() -> None:
    async def main(world: World) -> None:
        board = await world.board(2)
        task = asyncio.create_task(waiting(board))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        board.publish(0, 1)
        await world.barrier()
        board.when(1, 1, pytest.fail)  # left behind

    async def waiting(board: Board) -> None:
        await board.reached(0, 1)

    run(main)


def test_a_wait_counts_from_when_this_rank_has_done_its_part_and_computes_no_more() -> None:
    async def main(world: World) -> None:
        board = await world.board(1)
        if world.node_size > 1:
            late = world.node_size - 1
            waiting = board.reached(0, 1, what="portion 2")
            waits = [wait for wait in world.selector.pending() if wait.what == "portion 2"]
            assert waits == []  # it is this rank that is behind
            if world.node_rank != late:
                before = time.monotonic()
                board.publish(0, 1)
                (first,) = (wait for wait in world.selector.pending() if wait.what == "portion 2")
                assert first.since >= before
                assert world.node.ranks[late] in first.needs.peers
                assert world.rank not in first.needs.peers
                world.selector.computing = lambda: True
                (second,) = (wait for wait in world.selector.pending() if wait.what == "portion 2")
                world.selector.computing = lambda: False
                (third,) = (wait for wait in world.selector.pending() if wait.what == "portion 2")
                assert first.since < second.since == third.since
            await world.barrier()
            if world.node_rank == late:
                board.publish(0, 1)
            await waiting
        else:
            await world.barrier()

    run(main)


def test_many_waits_in_any_order_all_end_once_and_none_early() -> None:
    counters, steps = 40, 5

    async def main(world: World) -> None:
        board = await world.board(counters)
        mine = random.Random(world.rank)
        ended: list[tuple[int, int]] = []

        def end(index: int, value: int) -> None:
            assert min(board.value(index, rank) for rank in range(world.node_size)) >= value
            ended.append((index, value))

        waits = [(index, value) for index in range(counters) for value in range(1, steps + 1)]
        for index, value in mine.sample(waits, len(waits)):
            board.when(index, value, lambda i=index, v=value: end(i, v))
        for value in range(1, steps + 1):
            for index in mine.sample(range(counters), counters):
                board.publish(index, value)
                if mine.random() < 0.1:
                    await asyncio.sleep(mine.random() * 1e-3)
        for index in range(counters):
            await board.reached(index, steps)
        await asyncio.sleep(0)
        assert sorted(ended) == waits
        await world.barrier()

    run(main)


def requires_bells() -> None:
    """Ranks that cannot ring each other would sleep for ever where nothing but bells wakes them."""
    node = MPI.COMM_WORLD.Split_type(MPI.COMM_TYPE_SHARED)
    together = node.size == MPI.COMM_WORLD.size
    node.Free()
    vendor, version = MPI.get_vendor()
    where = f"{vendor} {'.'.join(map(str, version))}"
    requires(together, f"{where} has put these ranks on several nodes, between which no bell rings")


@pytest.mark.mpi(min_size=2)
@pytest.mark.parametrize("computing", [False, True], ids=["idle", "computing"])
def test_a_publish_wakes_who_naps(computing: bool) -> None:
    requires_bells()

    async def main(ranks: Talk) -> None:
        node = ranks.comm
        board = await Board.allocate(node, 1)
        ranks.loop.mpi.policy = RUNG  # from here on: collectives need the looks that it leaves out
        ranks.loop.mpi.computing = lambda: computing
        for turn in range(1, 200):
            if turn % node.size == node.rank:
                await asyncio.sleep(0.0005 * (turn % 3))  # the others sleep, or are just about to
                board.publish(0, turn)
            await board.reached(0, turn, ranks=range(turn % node.size, turn % node.size + 1))
        ranks.loop.mpi.policy = NapPolicy()
        await board.close()

    talk(main)


@pytest.mark.mpi(min_size=2)
def test_the_last_of_all_to_publish_wakes_who_waits_for_all() -> None:
    requires_bells()

    async def main(ranks: Talk) -> None:
        node = ranks.comm
        mine = random.Random(node.rank)
        board = await Board.allocate(node, 3)
        ranks.loop.mpi.policy = RUNG
        for turn in range(1, 200):
            await asyncio.sleep(mine.choice([0.0, 0.0003, 0.001]))
            board.publish([2, 1], turn, among=range(node.size))
            await board.reached(1, turn)
        ranks.loop.mpi.policy = NapPolicy()
        await board.close()

    talk(main)


@pytest.mark.mpi(min_size=2)
def test_who_is_not_the_last_of_all_wakes_nobody() -> None:
    requires_bells()

    async def main(ranks: Talk) -> None:
        node, bells = ranks.comm, ranks.loop.mpi.bells
        assert bells is not None
        rung: list[int] = []
        board = await Board.allocate(node, 1)
        bells.ring = rung.append  # type: ignore[method-assign]
        for rank in range(node.size):
            if rank == node.rank:
                board.publish(0, 1, among=range(node.size))
            await node.barrier()
        assert rung == (list(range(rank)) if rank == node.rank else [])
        await board.close()

    talk(main)


def test_hand_offs_pass_data_from_rank_to_rank_in_order() -> None:
    turns, floats = 300, 1000

    async def main(world: World) -> None:
        window = await world.window(4 * floats)
        board = await world.board(1)
        slots = [window.array(rank, np.float32, floats) for rank in range(world.node_size)]
        before = (world.node_rank - 1) % world.node_size
        for turn in range(1, turns + 1):  # round and round; each adds one to what it finds at its left
            if world.node_rank or turn > 1:
                await board.reached(0, turn - (world.node_rank == 0), ranks=range(before, before + 1))
            slots[world.node_rank][:] = slots[before] + 1
            assert (slots[world.node_rank] == (turn - 1) * world.node_size + world.node_rank + 1).all()
            board.publish(0, turn)
        await world.barrier()

    run(main)
