"""MPI requests as futures: posted at once, ended by the selector."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import Any

from mpi4py import MPI

from .selector import NOBODY, MpiSelector, Needs


class Operation(asyncio.Future[Any]):
    """MPI requests under way: a future that also says `what` they are, and since when (`started`)."""

    standing = False

    def __init__(
        self,
        selector: MpiSelector,
        what: str,
        requests: Sequence[MPI.Request],
        keep: Any,
        needs: Needs = NOBODY,
    ) -> None:
        super().__init__(loop=selector.loop)
        self._selector = selector
        self._left = len(requests)
        self._keep = keep  # MPI works on these buffers until the end, whoever still holds the future
        self.what = what
        self.started = time.monotonic()
        self.needs = needs
        for request in requests:
            selector.add(request, self)

    def complete(self, status: MPI.Status) -> None:
        """Called by the selector when a request ended well."""
        self._left -= 1
        if self._left == 0:
            self._keep = None
            if not self.done():
                self.set_result(None)

    def fail(self, error: MPI.Exception) -> None:
        """Called by the selector when a request ended with an error."""
        self._keep = None
        if not self.done():
            error.add_note(f"while waiting for: {self.what}")
            self.set_exception(error)

    def __await__(self) -> Any:
        if not self.done():
            self._selector.linger(self)
        return super().__await__()
