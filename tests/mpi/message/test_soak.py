"""Random traffic on every path at once, all of it checked, and messages above 2 GiB."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mpi4py import MPI
from numpy.typing import NDArray

from weft.runtime.errors import RequestError
from weft.runtime.message import channel as channels
from weft.runtime.message.channel import Channel, Message

from .talk import Talk, talk

MESSAGES = 60  # from each rank to each rank
CHANNELS = 3
SIZES = (0, 1, 100, 2_000, 2_100, 20_000, 100_000)


def contents(*key: int) -> tuple[Any, list[NDArray[Any]]]:
    """A message made of its key: whoever receives it can say what it must hold."""
    random = np.random.default_rng(key)
    body = {"key": list(key), "text": "x" * int(random.choice([0, 5, 300, 20_000], p=[0.4, 0.4, 0.15, 0.05]))}
    arrays = []
    for _ in range(random.integers(0, 4)):
        dtype = random.choice(["f4", "i8", "u1", ">f8", "?"])
        size = random.choice(SIZES, p=[0.1, 0.2, 0.3, 0.1, 0.1, 0.15, 0.05])
        array = (random.random(size) * 100).astype(dtype)
        if size % 2 == 0 and random.random() < 0.5:
            array = array.reshape(2, -1, order="F" if random.random() < 0.5 else "C")
        arrays.append(array)
    return body, arrays


def check(message: Message, *key: int) -> None:
    body, arrays = contents(*key)
    assert message.body == body
    assert len(message.arrays) == len(arrays)
    for got, sent in zip(message.arrays, arrays, strict=True):
        assert got.dtype == sent.dtype
        assert got.flags.f_contiguous == sent.flags.f_contiguous
        np.testing.assert_array_equal(got, sent)


async def send_all(ranks: Talk, channel: Channel, number: int, dest: int) -> None:
    under_way = []
    for i in range(MESSAGES):
        body, arrays = contents(number, ranks.rank, dest, i)
        under_way.append(asyncio.create_task(channel.send(dest, body, *arrays)))
        if i % 7 == 0:
            await asyncio.gather(*under_way)
    await asyncio.gather(*under_way)


async def receive_all(ranks: Talk, channel: Channel, number: int, random: np.random.Generator) -> None:
    """Receive from any rank and from given ones, now and then cancelled."""
    next_from = [0] * ranks.size
    while sum(next_from) < MESSAGES * ranks.size:
        open_sources = [source for source in range(ranks.size) if next_from[source] < MESSAGES]
        source = -1 if random.random() < 0.5 else int(random.choice(open_sources))
        receiving = asyncio.create_task(channel.receive(source))
        if random.random() < 0.3:
            for _ in range(random.integers(0, 4)):
                await asyncio.sleep(0)
            if receiving.cancel() and (await asyncio.wait([receiving])) and receiving.cancelled():
                continue
        message = await receiving
        assert source in (-1, message.source)
        check(message, number, message.source, ranks.rank, next_from[message.source])
        next_from[message.source] += 1


async def ask_all(ranks: Talk, channel: Channel, random: np.random.Generator) -> None:
    async def ask(i: int) -> None:
        dest = int(random.integers(ranks.size))
        body, arrays = contents(99, ranks.rank, i)
        asking = asyncio.create_task(channel.request(dest, body, *arrays))
        if i % 5 == 0:
            for _ in range(random.integers(0, 6)):
                await asyncio.sleep(0)
            asking.cancel()
            await asyncio.wait([asking])
            if asking.cancelled():
                return
        elif i % 5 == 1:
            with pytest.raises(RequestError, match="asked to fail"):
                await asking
            return
        check(await asking, 99, ranks.rank, i)

    for at in range(0, 100, 20):
        await asyncio.gather(*(ask(i) for i in range(at, at + 20)))


async def answer(message: Message) -> None:
    i = message.body["key"][2]
    check(message, 99, message.source, i)
    if i % 3 == 0:
        await asyncio.sleep(0)
    if i % 5 == 1:
        raise ValueError("asked to fail")
    await message.reply(message.body, *message.arrays)


@pytest.mark.parametrize("backlog_bytes", [channels.BACKLOG_BYTES, 300_000], ids=["roomy", "tight"])
def test_random_traffic(backlog_bytes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(channels, "BACKLOG_BYTES", backlog_bytes)

    async def main(ranks: Talk) -> None:
        random = np.random.default_rng([ranks.rank, 5])
        asked = ranks.channel("asked")
        asked.serve(answer)
        opened = [ranks.channel(f"channel {number}") for number in range(CHANNELS)]
        ticks = 0

        async def tick() -> None:
            nonlocal ticks
            while True:
                await asyncio.sleep(0.001)
                ticks += 1

        async def reduce_all() -> None:
            for i in range(40):
                array = np.full(3000, ranks.rank + i, np.float32)
                await ranks.comm.allreduce(array)
                assert (array == sum(rank + i for rank in range(ranks.size))).all()

        ticking = asyncio.create_task(tick())
        async with asyncio.TaskGroup() as group:
            for number, channel in enumerate(opened):
                group.create_task(receive_all(ranks, channel, number, random))
                for dest in range(ranks.size):
                    group.create_task(send_all(ranks, channel, number, dest))
            group.create_task(ask_all(ranks, asked, random))
            group.create_task(reduce_all())
        ticking.cancel()
        assert ticks > 0
        await ranks.comm.barrier()
        assert all(channel.backlog_bytes == 0 for channel in opened)

    talk(main)


def free_memory_bytes() -> int:
    """What all ranks may take together; here, for all of them are on this host in the tests."""
    text = Path("/proc/meminfo").read_text()
    return int(text.partition("MemAvailable:")[2].split()[0]) * 1024


@pytest.mark.limit(180)
@pytest.mark.mpi(min_size=2)
def test_more_than_two_gib_in_one_message() -> None:
    nbytes = 2**31 + 12_345
    enough = np.array([free_memory_bytes() > 3 * nbytes and MPI.COMM_WORLD.size == 2])
    MPI.COMM_WORLD.Bcast(enough)
    if not enough[0]:
        pytest.skip("needs exactly 2 ranks and 6 GiB of free memory")

    async def main(ranks: Talk) -> None:
        channel = ranks.channel()
        if ranks.rank == 0:
            array = np.zeros(nbytes, np.uint8)  # of which only the pages written to take memory
            array[:: 2**20] = np.arange(2049)
            array[-1] = 9
            await channel.send(1, "large", array)
        else:
            array = (await channel.receive()).arrays[0]
            assert array.nbytes == nbytes
            assert (array[:: 2**20] == np.arange(2049).astype(np.uint8)).all()
            assert not array[1 :: 2**20].any()
            assert array[-1] == 9

    talk(main)
