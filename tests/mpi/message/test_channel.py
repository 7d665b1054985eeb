"""Channels: order, cancelled receivers, back-pressure, closing."""

from __future__ import annotations

import asyncio
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from weft.runtime.errors import Mistake, RequestError, WeftError
from weft.runtime.message import channel as channels
from weft.runtime.message.channel import Message
from weft.runtime.message.switchboard import ABREAST
from weft.runtime.message.wire import EAGER_BYTES, PREFIX

from .talk import Talk, talk

LARGE = np.arange(50_000.0)


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(None, id="nothing"),
        pytest.param({"a": [1, 2.5, "x", b"y", True]}, id="a structure"),
        pytest.param("x" * (EAGER_BYTES - PREFIX.size - 3), id="a body that just fits"),
        pytest.param("x" * (EAGER_BYTES - PREFIX.size - 2), id="a body that just does not fit"),
        pytest.param(b"x" * 300_000, id="a large body"),
    ],
)
@pytest.mark.parametrize(
    "arrays",
    [
        pytest.param([], id="no array"),
        pytest.param([np.arange(3), np.empty((2, 0)), np.array(5.0)], id="small arrays"),
        pytest.param([LARGE, np.array([1, 2]), np.asfortranarray(LARGE.reshape(100, -1))], id="large arrays"),
        pytest.param([LARGE[::2], LARGE.reshape(100, -1)[:, 3]], id="strided arrays"),
    ],
)
def test_a_message_arrives_whole(body: Any, arrays: list[NDArray[Any]]) -> None:
    async def main(ranks: Talk) -> None:
        channel = ranks.channel()
        sending = asyncio.create_task(channel.send(ranks.right, body, *arrays))
        message = await channel.receive()
        assert message.source == ranks.left
        assert message.body == body
        assert not message.wants_reply
        for sent, got in zip(arrays, message.arrays, strict=True):
            assert sent.dtype == got.dtype
            np.testing.assert_array_equal(sent, got)
            got[...] = 0  # it is the receiver's own
        await sending

    talk(main)


def test_messages_of_one_source_keep_their_order_whatever_their_size() -> None:
    async def main(ranks: Talk) -> None:
        channel = ranks.channel()
        sizes = [0, 10, 100_000, 5, 3000, 200_000, 300_000, 1, 0]
        sends = [
            asyncio.create_task(channel.send(dest, i, np.full(size, i)))
            for i, size in enumerate(sizes)
            for dest in range(ranks.size)
        ]
        seen: dict[int, list[int]] = {}
        for _ in range(len(sizes) * ranks.size):
            message = await channel.receive()
            assert message.arrays[0].size == sizes[message.body]
            assert (message.arrays[0] == message.body).all()
            seen.setdefault(message.source, []).append(message.body)
        assert seen == {source: list(range(len(sizes))) for source in range(ranks.size)}
        await asyncio.gather(*sends)

    talk(main)


def test_a_receiver_may_choose_the_source() -> None:
    async def main(ranks: Talk) -> None:
        channel = ranks.channel()
        for dest in range(ranks.size):
            await channel.send(dest, ranks.rank)
            await channel.send(dest, ranks.rank + 100)
        for source in reversed(range(ranks.size)):
            assert (await channel.receive(source)).body == source
        for source in range(ranks.size):
            assert (await channel.receive(source=source)).body == source + 100

    talk(main)


def test_channels_are_apart_and_need_no_opening_before_a_message_comes() -> None:
    async def main(ranks: Talk) -> None:
        first = ranks.channel("first")
        await first.send(ranks.right, "on the first")
        early = ranks.channel(f"early on {ranks.rank % 2}")
        await early.send(ranks.right, "early")
        await early.send(ranks.right, "and large", LARGE) if ranks.size == 1 else None
        await ranks.comm.barrier()
        if ranks.size == 1:
            assert (await early.receive()).body == "early"
            assert (await early.receive()).arrays[0].size == LARGE.size
        elif ranks.size % 2 == 0:
            late = ranks.channel(f"early on {ranks.left % 2}")
            assert (await late.receive()).body == "early"
        assert (await first.receive()).body == "on the first"

    talk(main)


# -- cancelled receivers, back-pressure ------------------------------------------------------------


def test_a_cancelled_receiver_loses_no_message() -> None:
    async def main(ranks: Talk) -> None:
        channel = ranks.channel()
        random = np.random.default_rng(ranks.rank)
        got: list[int] = []

        async def receive() -> None:
            while True:
                message = await channel.receive(ranks.left)
                got.append(message.body)

        async def send() -> None:
            for i in range(400):
                await channel.send(ranks.right, i, LARGE[: i * 50 % 9000])
                await asyncio.sleep(0)

        sending = asyncio.create_task(send())
        while len(got) < 400:
            receiving = asyncio.create_task(receive())
            for _ in range(random.integers(1, 10)):
                await asyncio.sleep(0)
            receiving.cancel()
            await asyncio.wait([receiving])
        await sending
        assert got == list(range(400))

    talk(main)


def test_large_messages_wait_at_their_sender_until_there_is_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(channels, "BACKLOG_BYTES", 3 * LARGE.nbytes)

    async def main(ranks: Talk) -> None:
        channel, other = ranks.channel(), ranks.channel("other")
        sends = [asyncio.create_task(channel.send(ranks.right, i, LARGE)) for i in range(8)]
        await other.send(ranks.right, "overtakes", LARGE)
        assert (await other.receive()).body == "overtakes"
        while channel.backlog_bytes == 0:  # the left neighbour may be late
            await asyncio.sleep(0)
        for _ in range(100):
            await asyncio.sleep(0)
            assert 0 < channel.backlog_bytes <= channels.BACKLOG_BYTES
        for i in range(8):
            message = await channel.receive(ranks.left)
            assert message.body == i
            np.testing.assert_array_equal(message.arrays[0], LARGE)
        await asyncio.gather(*sends)

    talk(main)


def test_a_full_backlog_does_not_keep_another_source_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(channels, "BACKLOG_BYTES", LARGE.nbytes)

    async def main(ranks: Talk) -> None:
        channel = ranks.channel()
        sends = [
            asyncio.create_task(channel.send(dest, i, LARGE)) for dest in range(ranks.size) for i in range(3)
        ]
        for source in reversed(range(ranks.size)):
            for i in range(3):
                assert (await channel.receive(source)).body == i
        await asyncio.gather(*sends)

    talk(main)


# -- closing and mistakes --------------------------------------------------------------------------


def test_a_closed_channel_refuses_requests_and_drops_messages() -> None:
    async def main(ranks: Talk) -> None:
        channel, closed = ranks.channel(), ranks.channel("closed")
        waiting = asyncio.create_task(closed.receive(ranks.left))
        await asyncio.sleep(0)
        closed.close()
        with pytest.raises(WeftError, match="'closed' was closed"):
            await waiting
        with pytest.raises(WeftError, match="'closed' is closed"):
            await closed.send(ranks.right)
        await ranks.comm.barrier()
        for body in (None, "x" * 100_000):
            operation = ranks.board.post(1, closed._id, 77, ranks.right, body, [LARGE])
            assert operation is not None
            await operation
        await channel.send(ranks.right, "still open")
        assert (await channel.receive()).body == "still open"
        await ranks.comm.barrier()

    talk(main)


def test_more_arrays_than_a_message_counts_are_refused() -> None:
    async def main(ranks: Talk) -> None:
        with pytest.raises(Mistake, match="65,536 arrays in a message: it may have 65,535"):
            await ranks.channel().send(ranks.right, None, *[np.zeros(1)] * 65_536)

    talk(main)


@pytest.mark.parametrize("given_up", [False, True], ids=["awaited", "with its sender cancelled"])
def test_of_many_arrays_some_are_under_way_at_a_time(given_up: bool) -> None:
    """Each test of MPI's looks at all that are: a message's time grew with the square of their number."""
    arrays = [np.full(100, number) for number in range(3 * ABREAST)]

    async def main(ranks: Talk) -> None:
        channel = ranks.channel()
        selector = ranks.loop.mpi
        before = len(selector._requests)
        sending = asyncio.create_task(channel.send(ranks.right, "many", *arrays, np.empty(0)))
        await asyncio.sleep(0)
        receiving = asyncio.create_task(channel.receive())
        if given_up:
            sending.cancel()
        while not receiving.done():
            assert len(selector._requests) <= before + 2 * (ABREAST + 1)
            await asyncio.sleep(0)
        received = receiving.result().arrays
        assert [int(array[-1]) for array in received[:-1]] == list(range(3 * ABREAST))
        assert received[-1].size == 0
        assert (await asyncio.gather(sending, return_exceptions=True) == [None]) is not given_up

    talk(main)


def test_messages_share_what_may_be_under_way() -> None:
    """Each with as many as one alone had, 20 of 300 arrays took 5.1 s, and one of 4,000 0.4."""
    arrays = [np.full(100, number) for number in range(2 * ABREAST)]
    count = 8

    async def main(ranks: Talk) -> None:
        channel = ranks.channel()
        selector = ranks.loop.mpi
        before = len(selector._requests)
        sending = [asyncio.create_task(channel.send(ranks.right, number, *arrays)) for number in range(count)]
        receiving = asyncio.gather(*[channel.receive() for _ in range(count)])
        while not receiving.done():
            # Of a half, a third ...: those that began when fewer were there end first.
            assert len(selector._requests) <= before + 2 * (3 * ABREAST + count)
            await asyncio.sleep(0)
        for number, message in enumerate(receiving.result()):
            assert message.body == number
            assert [int(array[-1]) for array in message.arrays] == list(range(2 * ABREAST))
        await asyncio.gather(*sending)

    talk(main)


def test_closing_refuses_a_request_whose_handler_has_not_begun() -> None:
    async def main(ranks: Talk) -> None:
        channel = ranks.channel()

        async def never(message: Message) -> None:
            raise AssertionError("the channel was closed")

        asking = asyncio.create_task(channel.request(ranks.right))
        while not channel._queue:
            await asyncio.sleep(0)
        await ranks.comm.barrier()  # everyone has asked
        channel.serve(never)
        channel.close()
        with pytest.raises(RequestError, match="the channel is closed there"):
            await asking
        await ranks.comm.barrier()

    talk(main)


@pytest.mark.parametrize("closes", [False, True], ids=["a handler answers it", "closing refuses it"])
def test_a_request_that_a_cancelled_receiver_gives_back_is_not_lost(
    closes: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main(ranks: Talk) -> None:
        channel = ranks.channel()
        receiving = asyncio.create_task(channel.receive())
        while not channel._receivers:
            await asyncio.sleep(0)
        hand_over = channel._hand_over

        def hand_over_and_go(message: Message) -> bool:
            given = hand_over(message)
            receiving.cancel()  # it has the message, and does not know yet
            if closes:
                channel.close()
            else:
                channel.serve(lambda message: message.body + 1)
            return given

        monkeypatch.setattr(channel, "_hand_over", hand_over_and_go)
        asking = asyncio.create_task(channel.request(ranks.rank, 1))
        await asyncio.wait([receiving])
        assert receiving.cancelled()
        if closes:
            with pytest.raises(RequestError, match="the channel is closed there"):
                await asking
        else:
            assert (await asking).body == 2

    talk(main)


def test_the_end_finds_waiting_receivers_and_messages_nobody_received() -> None:
    tasks = []

    async def main(ranks: Talk) -> None:
        channel = ranks.channel()
        asyncio.create_task(channel.send(ranks.right, "unreceived", LARGE))  # noqa: RUF006
        asyncio.create_task(ranks.channel("never opened").send(ranks.right, "x" * 50_000))  # noqa: RUF006
        await channel.send(ranks.right, "unreceived")
        tasks.append(asyncio.create_task(ranks.channel("waits").receive()))
        tasks.append(asyncio.create_task(ranks.channel("asks").request(ranks.right)))
        await asyncio.sleep(0)

    talk(main)
    for task in tasks:
        assert isinstance(task.exception(), WeftError)


def test_mistakes_are_named() -> None:
    async def main(ranks: Talk) -> None:
        channel = ranks.channel()
        with pytest.raises(Mistake, match=f"no rank {ranks.size}: the world's ranks are 0 to"):
            await channel.send(ranks.size)
        with pytest.raises(Mistake, match="arrays go behind the body"):
            await channel.request(ranks.rank, np.zeros(3))
        await channel.send(ranks.rank, "a message")
        message = await channel.receive()
        with pytest.raises(Mistake, match="no request or has its reply already"):
            await message.reply()
        with pytest.raises(Mistake, match="of that name exists"):
            ranks.channel()
        with pytest.raises(Mistake, match="no rank -2"):
            await channel.receive(-2)
        channel.serve(print)
        with pytest.raises(Mistake, match="has a handler"):
            await channel.receive()

    talk(main)
