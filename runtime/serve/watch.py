"""Which workers can serve: every one is asked several times a second, and its batch must not hang.

A worker that is not well has its jobs given to others, if anybody is well. If nobody is, the server is not
ready, and what the last ones have is left with them: nobody else could take it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine, Sequence
from math import inf
from typing import Any

from .link import Link

Background = Callable[[Coroutine[Any, Any, None], str], asyncio.Task[None]]
"""As `World.background`."""

ASK_S = 0.2
SILENT_S = 0.6
"""Together less than the second within which the server must have noticed. A rank's loop has stood still for
0.2 s on a machine with more ranks than cores, while kernels were compiled."""

LATE_S = 0.1  # if this rank looks so much later than it wanted, it is its own loop that stood still


class Watch:
    """Asks, and tells `up` and `down` of what has changed; `overdue` says whether a worker's batch hangs."""

    def __init__(
        self,
        links: Sequence[Link],
        overdue: Callable[[Link], bool],
        up: Callable[[Link], object],
        down: Callable[[Link], object],
    ) -> None:
        self._links = list(links)
        self._overdue, self._up, self._down = overdue, up, down
        self._silent: set[str] = set()
        self._given_up: set[str] = set()
        self._still_s = 0.0  # that this rank's loop has stood still, in sum
        self._due_s = inf  # when it shows next that it does not
        self._tasks: list[asyncio.Task[None]] = []

    def start(self, background: Background) -> None:
        """Begin to ask, in tasks whose errors end the job."""
        self._tasks = [background(self._ask(link), f"watch {link.resource}") for link in self._links]
        self._tasks.append(background(self._measure(), "watch this rank"))

    async def stop(self) -> None:
        """Ask no more."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._due_s = inf

    @property
    def ready(self) -> bool:
        """Whether any worker is well."""
        return any(self.well(link) for link in self._links)

    def well(self, link: Link) -> bool:
        """Whether it answers, and its batch does not hang."""
        return link.resource not in self._silent and not self._overdue(link)

    def given_up(self, link: Link) -> bool:
        """Whether `down` was told of it, and `up` not yet."""
        return link.resource in self._given_up

    def state(self, link: Link) -> str:
        """In a word."""
        if link.resource in self._silent:
            return "silent"
        return "stuck" if self._overdue(link) else "ready"

    def awake_s(self) -> float:
        """The time, without what this rank's loop has stood still: no answer could be taken in then.

        A process that was stopped for a second refused who had asked meanwhile: its own lane, stopped with
        it, seemed to hang.
        """
        now_s = time.monotonic()
        return now_s - self._still_s - max(0.0, now_s - self._due_s)

    async def _measure(self) -> None:
        while True:
            self._due_s = time.monotonic() + ASK_S
            await asyncio.sleep(ASK_S)
            self._still_s += max(0.0, time.monotonic() - self._due_s)

    async def _ask(self, link: Link) -> None:
        loop = asyncio.get_running_loop()
        while True:
            due_s = loop.time() + SILENT_S
            try:
                async with asyncio.timeout_at(due_s):
                    await link.hello()
                self._silent.discard(link.resource)
            except TimeoutError:
                if loop.time() - due_s < LATE_S:
                    self._silent.add(link.resource)
            self._compare()
            await asyncio.sleep(ASK_S)

    def _compare(self) -> None:
        """Tell what has changed."""
        well = {link.resource for link in self._links if self.well(link)}
        for link in self._links:
            if link.resource in well and link.resource in self._given_up:
                self._given_up.discard(link.resource)
                self._up(link)
            elif well and link.resource not in well | self._given_up:
                self._given_up.add(link.resource)
                self._down(link)
