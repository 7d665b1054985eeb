"""The compute task: the lane as asyncio sees it.

The lane runs on its own thread and asks nobody between kernels. Here is the little that crosses: tasks go in,
a finished task can be awaited or told to the loop, and what a kernel raises is raised where the rank waits.
"""

from __future__ import annotations

import asyncio
import copy
from collections.abc import Callable, Iterable
from typing import Self

from ...kernels.lane import Group, Lane, Recorder, Spans, Task


class Compute:
    """A rank's lane. Create it on the running loop; use as an async context manager.

    `failure` completes with the exception of the first task of no group that failed; waiting on it beside the
    work is what makes a kernel's exception end the rank.
    """

    def __init__(self, device: Recorder, *, spans: Spans | None = None) -> None:
        self._loop = asyncio.get_running_loop()
        #: The group of all tasks, if this is a part of the lane.
        self.group: Group | None = None
        self.failure: asyncio.Future[None] = self._loop.create_future()
        self._lane = Lane(device, spans=spans, failed=self._tell_failure)
        self.submit: Callable[[Iterable[Task]], None] = self._lane.submit
        self.finish: Callable[..., None] = self._lane.finish
        self.run_if_idle: Callable[[Task], bool] = self._lane.run_if_idle

    def part(self, group: Group) -> Self:
        """The same lane for the tasks of a group: what they raise fails the group, and not the lane."""
        part = copy.copy(self)
        part.group = group

        def submit(tasks: Iterable[Task]) -> None:
            own = list(tasks)
            for task in own:
                task.group = group
            self.submit(own)

        def run_if_idle(task: Task) -> bool:
            task.group = group
            return self.run_if_idle(task)

        part.submit, part.run_if_idle = submit, run_if_idle
        return part

    @property
    def failed(self) -> bool:
        """Whether this part's group has failed: its tasks do nothing any more."""
        return self.group is not None and self.group.error is not None

    @property
    def busy(self) -> bool:
        """Whether the lane runs a task or has one ready: the selector then naps longer."""
        return self._lane.busy

    @property
    def next(self) -> Task | None:
        """What the lane would run next."""
        return self._lane.next

    def tell(self, callback: Callable[[], None]) -> Callable[[Task], None]:
        """A `Task.notify` that calls `callback` on the loop."""

        def notify(_: Task) -> None:
            self._loop.call_soon_threadsafe(callback)

        return notify

    async def run(self, tasks: list[Task]) -> None:
        """Submit tasks and wait until the last of them has finished."""
        done = asyncio.Event()
        last = Task("end", lambda: None, tasks, notify=self.tell(done.set))
        self.submit([*tasks, last])
        await self.wait(done)

    async def wait(self, event: asyncio.Event) -> None:
        """Wait for an event that the lane sets; raises what a task raised instead of waiting for ever."""
        waiting = asyncio.ensure_future(event.wait())
        try:
            await asyncio.wait((waiting, self.failure), return_when=asyncio.FIRST_COMPLETED)
        finally:
            waiting.cancel()
        if self.failure.done():
            self.failure.result()

    async def __aenter__(self) -> Compute:
        return self

    async def __aexit__(self, *_: object) -> None:
        # Off the loop's thread: the running kernel may take a while, and other ranks want answers meanwhile.
        await asyncio.to_thread(self._lane.close)
        if not self.failure.done():
            self.failure.cancel()
        elif not self.failure.cancelled():
            self.failure.exception()  # seen: no "never retrieved" at exit

    def _tell_failure(self, error: BaseException) -> None:
        if isinstance(error, StopIteration):  # which no future takes: the rank waited for ever
            error = RuntimeError(f"a task raised {error!r}").with_traceback(error.__traceback__)

        def tell() -> None:
            if not self.failure.done():
                self.failure.set_exception(error)

        self._loop.call_soon_threadsafe(tell)
