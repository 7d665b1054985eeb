"""What was made one after the other, to be closed the last first."""

from __future__ import annotations

from collections.abc import Awaitable, Callable


class Made:
    """How to close each thing; `close` calls these.

    Not contextlib.AsyncExitStack, which goes on when it is cancelled: of windows that the others had left to
    the end of the world it began to close one after the other, and the job failed for what did not end.
    """

    def __init__(self) -> None:
        self._ends: list[Callable[[], Awaitable[None] | None]] = []

    def push(self, end: Callable[[], Awaitable[None] | None]) -> None:
        """Call `end` before all that were pushed before it, and await what it returns."""
        self._ends.append(end)

    async def close(self) -> None:
        """Close all; where it is cancelled, the rest is left to the end of the world."""
        while self._ends:
            if (ending := self._ends.pop()()) is not None:
                await ending
