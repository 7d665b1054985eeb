"""A stop that comes before there is a run: all ranks obey it at once, and nothing is stored.

    rank 0    reads ─── stop ╳ ─ obey ─ CancelledError
    rank 1    reads ── stop ╳ ── obey ─ CancelledError

To read may take minutes, and a signal was obeyed behind the first step. Ranks hear of it at different times,
so that with main cancelled at once some had begun a collective that others never did: they obey at the same
place, as the loop does (loop.py).
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np

from ..message import World
from ..message.failure import say

T = TypeVar("T")


class Interruptible:
    """What comes before the first step, on this rank. While it is there no stop cancels main."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._asked = asyncio.Event()
        world.on_stop(self._asked.set)

    async def in_thread(self, function: Callable[[], T]) -> T | None:
        """What `function()` returns, or raises, in a thread; None as soon as a stop is asked for.

        The thread is then left to itself. One of `asyncio.to_thread` is waited for before the process ends,
        however long it reads.
        """
        loop = asyncio.get_running_loop()
        result: asyncio.Future[T] = loop.create_future()

        def settle(value: T | None, error: BaseException | None) -> None:
            if result.done():  # nobody waits any more
                return
            if error is None:
                result.set_result(value)  # type: ignore[arg-type]
            else:
                result.set_exception(error)

        def work() -> None:
            value, error = None, None
            try:
                value = function()
            except BaseException as raised:
                error = raised
            with contextlib.suppress(RuntimeError):  # the loop has ended
                loop.call_soon_threadsafe(settle, value, error)

        threading.Thread(target=work, name="reading", daemon=True).start()
        asked = loop.create_task(self._asked.wait())
        either: list[asyncio.Future[Any]] = [result, asked]
        try:
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
            return result.result() if result.done() else None
        finally:
            asked.cancel()
            result.cancel()

    async def obey(self, what: str) -> None:
        """Raise CancelledError on all ranks if one of them was asked to stop; collective."""
        asked = np.array([self._asked.is_set()], np.uint8)
        await self._world.allreduce(asked, "max", what=what)
        if not asked[0]:
            return
        await self._asked.wait()  # it comes to every rank: `run` takes a cancelled main for a mistake before
        if self._world.rank == 0:
            say("weft: stopped before the first step: nothing is stored")
        raise asyncio.CancelledError
