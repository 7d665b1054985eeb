"""Requests on channels: who answers, what comes back, what becomes of those that nobody waits for."""

from __future__ import annotations

import asyncio
from typing import Any

import numpy as np
import pytest

from weft.runtime.errors import RequestError
from weft.runtime.message import channel as channels
from weft.runtime.message.channel import Message

from .talk import Talk, talk

LARGE = np.arange(50_000.0)


async def add(message: Message) -> int:
    await asyncio.sleep(0)
    return message.body[0] + message.body[1]


def add_at_once(message: Message) -> int:
    return message.body[0] + message.body[1]


def add_later(message: Message) -> Any:
    return add(message)


@pytest.mark.parametrize(
    "handler",
    [add, add_at_once, add_later],
    ids=["coroutine", "function", "function that returns a coroutine"],
)
def test_requests_are_answered_by_a_handler(handler: Any) -> None:
    async def main(ranks: Talk) -> None:
        channel = ranks.channel()
        channel.serve(handler)
        replies = await asyncio.gather(
            *(channel.request(dest, [dest, i]) for dest in range(ranks.size) for i in range(20))
        )
        assert [reply.body for reply in replies] == [d + i for d in range(ranks.size) for i in range(20)]
        assert [reply.source for reply in replies] == [d for d in range(ranks.size) for _ in range(20)]
        await ranks.comm.barrier()

    talk(main)


def test_requests_are_answered_by_who_receives_in_any_order() -> None:
    async def main(ranks: Talk) -> None:
        channel = ranks.channel()
        asking = [asyncio.create_task(channel.request(ranks.right, i, LARGE * i)) for i in range(10)]
        asked = [await channel.receive() for _ in range(10)]
        for message in reversed(asked):
            assert message.wants_reply
            await message.reply("twice", message.arrays[0] * 2)
            assert not message.wants_reply
        for i, reply in enumerate(await asyncio.gather(*asking)):
            np.testing.assert_array_equal(reply.arrays[0], LARGE * i * 2)

    talk(main)


def test_a_handler_may_reply_early_with_arrays() -> None:
    async def main(ranks: Talk) -> None:
        went_on = asyncio.Event()

        async def handler(message: Message) -> str:
            await message.reply("early", message.arrays[0][::-1])
            went_on.set()
            return "ignored"

        channel = ranks.channel()
        channel.serve(handler)
        reply = await channel.request(ranks.right, None, LARGE)
        assert reply.body == "early"
        np.testing.assert_array_equal(reply.arrays[0], LARGE[::-1])
        await went_on.wait()
        await ranks.comm.barrier()

    talk(main)


def test_a_handler_that_has_replied_and_goes_on_may_be_cancelled() -> None:
    """As all are at the end, where that ended the job with the words of its CancelledError."""

    async def main(ranks: Talk) -> None:
        channel = ranks.channel()
        handling: list[asyncio.Task[None] | None] = []

        async def go_on(message: Message) -> None:
            handling.append(asyncio.current_task())
            await message.reply("begun")
            await asyncio.sleep(60)

        channel.serve(go_on)
        assert (await channel.request(ranks.right)).body == "begun"
        await ranks.comm.barrier()
        (task,) = handling
        assert task is not None
        task.cancel()
        await asyncio.wait([task])  # what a handler fails with without a request goes to the loop

    talk(main)


@pytest.mark.parametrize("plain", [False, True], ids=["coroutine", "function"])
def test_what_a_handler_raises_travels_back_with_its_traceback(plain: bool) -> None:
    async def main(ranks: Talk) -> None:
        def fail(message: Message) -> None:
            raise ValueError(f"no {message.body} here")

        async def fail_later(message: Message) -> None:
            await asyncio.sleep(0)
            fail(message)

        channel = ranks.channel()
        channel.serve(fail if plain else fail_later)
        with pytest.raises(RequestError, match=f"rank {ranks.right} on host .*'test'") as caught:
            await channel.request(ranks.right, "luck")
        assert caught.value.rank == ranks.right
        assert "ValueError: no luck here" in caught.value.traceback
        assert ", in fail" in caught.value.traceback
        await ranks.comm.barrier()

    talk(main)


def test_what_a_handler_raises_for_a_mere_message_reaches_the_loop() -> None:
    async def main(ranks: Talk) -> None:
        failed: asyncio.Future[Any] = ranks.loop.create_future()
        handle = ranks.loop._exception_handler  # type: ignore[attr-defined]
        ranks.loop.set_exception_handler(lambda _, context: failed.set_result(context))

        async def fail(message: Message) -> None:
            raise ValueError(message.body)

        channel = ranks.channel()
        channel.serve(fail)
        await channel.send(ranks.right, "sent")
        context = await failed
        assert repr(context["exception"]) == "ValueError('sent')"
        assert context["message"] == f"handler of channel 'test' failed with a message from rank {ranks.left}"
        ranks.loop.set_exception_handler(handle)
        await ranks.comm.barrier()

    talk(main)


def test_a_reply_that_cannot_be_sent_travels_back_as_an_error() -> None:
    async def main(ranks: Talk) -> None:
        async def unsendable(message: Message) -> object:
            return object()

        for name, handler in {"coroutine": unsendable, "function": lambda _: object()}.items():
            channel = ranks.channel(name)
            channel.serve(handler)
            with pytest.raises(RequestError, match="Mistake: a message's body can't be sent"):
                await channel.request(ranks.right)
        await ranks.comm.barrier()

    talk(main)


def test_a_request_nobody_answers_times_out_and_names_the_rank() -> None:
    async def main(ranks: Talk) -> None:
        channel = ranks.channel()
        with pytest.raises(TimeoutError, match=f"rank {ranks.right} to reply to request 1 on channel 'test'"):
            await channel.request(ranks.right, timeout=0.001)
        with pytest.raises(TimeoutError, match=f"rank {ranks.left} on channel 'other'"):
            await ranks.channel("other").receive(ranks.left, timeout=0.001)
        await ranks.comm.barrier()
        # The request was withdrawn before anybody received it:
        await channel.send(ranks.right, "next")
        assert (await channel.receive(ranks.left)).body == "next"

    talk(main)


def test_cancelling_a_request_cancels_its_handler() -> None:
    async def main(ranks: Talk) -> None:
        started, ended = asyncio.Event(), asyncio.Event()

        async def forever(message: Message) -> None:
            started.set()
            try:
                await asyncio.Event().wait()
            finally:
                ended.set()

        channel = ranks.channel()
        channel.serve(forever)
        asking = asyncio.create_task(channel.request(ranks.right))
        await started.wait()
        await ranks.comm.barrier()
        asking.cancel()
        await ended.wait()
        with pytest.raises(asyncio.CancelledError):
            await asking
        await ranks.comm.barrier()

    talk(main)


def test_a_cancelled_request_that_is_not_all_here_is_not_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(channels, "BACKLOG_BYTES", 0)

    async def main(ranks: Talk) -> None:
        channel = ranks.channel()
        asyncio.create_task(channel.send(ranks.right, "first", LARGE))  # noqa: RUF006
        requests = [asyncio.create_task(channel.request(ranks.right, "?", *a)) for a in ((LARGE,), ())]
        await asyncio.sleep(0)
        for request in requests:
            request.cancel()
        await asyncio.wait(requests)
        sending = asyncio.create_task(channel.send(ranks.right, "behind"))
        await ranks.comm.barrier()
        # (Held back by the first, which takes the room; it comes behind the cancelling.)
        while "behind" not in [incoming.body for incoming in channel._unfinished.get(ranks.left, ())]:
            await asyncio.sleep(0)
        assert [(await channel.receive()).body for _ in range(2)] == ["first", "behind"]
        await sending
        assert channel.backlog_bytes == 0
        await ranks.comm.barrier()

    talk(main)


def test_a_late_reply_is_dropped() -> None:
    async def main(ranks: Talk) -> None:
        channel = ranks.channel()
        asking = asyncio.create_task(channel.request(ranks.right, "first"))
        message = await channel.receive()
        await ranks.comm.barrier()
        asking.cancel()
        await asyncio.wait([asking])
        await message.reply("late", LARGE)
        again = asyncio.create_task(channel.request(ranks.right, "second"))
        message = await channel.receive()
        assert message.body == "second"
        await message.reply("in time")
        assert (await again).body == "in time"

    talk(main)


def test_a_request_to_oneself_needs_no_second_rank() -> None:
    async def main(ranks: Talk) -> None:
        channel = ranks.channel()
        channel.serve(lambda message: message.body * 2)
        assert (await channel.request(ranks.rank, 21)).body == 42

    talk(main)
