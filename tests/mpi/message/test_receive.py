"""Receives: from any rank, cancelled, too short; no message is lost."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest
from mpi4py import MPI

from weft.runtime.errors import Mistake
from weft.runtime.message.receive import ANY, Status

from .talk import Talk, talk


def test_a_receive_from_any_rank_tells_who_sent_what() -> None:
    async def main(ranks: Talk) -> None:
        array = np.full(ranks.rank + 1, ranks.rank)
        sends = [ranks.comm.send(array, dest, tag=10 + ranks.rank) for dest in range(ranks.size)]
        seen = set()
        for _ in range(ranks.size):
            got = np.full(ranks.size + 5, -1)
            status = await ranks.comm.recv(got)
            assert status == Status(status.source, 10 + status.source, status.source + 1)
            assert (got[: status.count] == status.source).all()
            assert (got[status.count :] == -1).all()
            seen.add(status.source)
        assert seen == set(range(ranks.size))
        await asyncio.gather(*sends)

    talk(main)


def test_a_receive_that_times_out_leaves_the_next_message_alone() -> None:
    async def main(ranks: Talk) -> None:
        unused = np.full(3, -1.0)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.001):
                await ranks.comm.recv(unused, ranks.left)
        await ranks.comm.barrier()
        got = np.empty(3)
        sent = ranks.comm.send(np.arange(3.0), ranks.right)
        await ranks.comm.recv(got, ranks.left)
        await sent
        assert (got == np.arange(3)).all()
        assert (unused == -1).all()

    talk(main)


@pytest.mark.parametrize("numbers", [3, 100_000], ids=["small", "large"])
def test_a_message_that_came_for_a_cancelled_receive_goes_to_the_next(numbers: int) -> None:
    async def main(ranks: Talk) -> None:
        lost, got = np.empty(numbers), np.empty(numbers)
        first = ranks.comm.recv(lost, ranks.left)
        sent = ranks.comm.send(np.arange(numbers, dtype=np.float64), ranks.right)
        MPI.COMM_WORLD.Barrier()  # inside MPI, behind the loop's back: the message may have come
        first.cancel()
        with pytest.raises(asyncio.CancelledError):
            await first
        lost[:] = -1
        status = await ranks.comm.recv(got, ranks.left)
        assert status == Status(ranks.left, 0, numbers)
        assert (got == np.arange(numbers)).all()
        await sent

    talk(main)


def test_a_message_that_came_for_a_cancelled_receive_goes_to_one_that_waits() -> None:
    async def main(ranks: Talk) -> None:
        first, second, third = np.zeros(2), np.zeros(2), np.zeros(2)
        cancelled = ranks.comm.recv(first, ranks.left)
        waiting = ranks.comm.recv(second, ANY, tag=0)
        other = ranks.comm.recv(third, ranks.left, tag=5)
        ranks.comm.send(np.array([1.0, 2.0]), ranks.right)
        MPI.COMM_WORLD.Barrier()
        cancelled.cancel()
        status = await waiting
        assert status == Status(ranks.left, 0, 2)
        assert (second == [1.0, 2.0]).all()
        await ranks.comm.send(np.array([3.0]), ranks.right, tag=5)
        assert (await other).count == 1
        assert cancelled.cancelled()

    talk(main)


def test_cancelled_receivers_of_a_stream_lose_nothing_and_keep_the_order() -> None:
    async def main(ranks: Talk) -> None:
        count = 300
        got: list[int] = []
        random = np.random.default_rng(ranks.rank)

        async def receive() -> None:
            array = np.empty(1, np.int64)
            while len(got) < count:
                await ranks.comm.recv(array, ranks.left)
                got.append(int(array[0]))

        async def send() -> None:
            for i in range(count):
                await ranks.comm.send(np.array([i]), ranks.right)
                if random.random() < 0.3:
                    await asyncio.sleep(0)

        sending = asyncio.create_task(send())
        while len(got) < count:
            receiving = asyncio.create_task(receive())
            for _ in range(random.integers(1, 6)):
                await asyncio.sleep(0)
            receiving.cancel()
            await asyncio.wait([receiving])
        await sending
        assert got == list(range(count))

    talk(main)


@pytest.mark.mpi(min_size=2)
def test_a_message_longer_than_its_array_fails_its_own_receive_only() -> None:
    async def main(ranks: Talk) -> None:
        channel = ranks.channel()
        if ranks.rank == 0:
            short, enough = np.zeros(2), np.zeros(4)
            first = ranks.comm.recv(short, 1, what="the short one")
            second = ranks.comm.recv(enough, 1)
            # All that rank 1 sends is there when it is looked at: it ends in one test.
            MPI.COMM_WORLD.Barrier()
            # (MPICH's own text names both sizes the wrong way round, Open MPI's none.)
            with pytest.raises(Mistake, match="longer than the array for it, of 16 bytes: the short one"):
                await first
            await second
            assert (enough == 2).all()
            for i in range(3):
                assert (await channel.receive(1)).body == i
        elif ranks.rank == 1:
            sends = [ranks.comm.send(np.ones(4), 0), ranks.comm.send(np.full(4, 2.0), 0)]
            await channel.send(0, 0)
            MPI.COMM_WORLD.Barrier()
            await channel.send(0, 1)
            await channel.send(0, 2)
            await asyncio.gather(*sends)
        else:
            MPI.COMM_WORLD.Barrier()

    talk(main)
