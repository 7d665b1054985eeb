"""The HTTP front as it runs on rank 0, in Weft's own event loop: it listens, drains and ends.

server = HttpServer(service, HttpSettings(port=8000))
await server.start()
...
await server.stop(drain_s=30)      # what was accepted is answered, what comes now is refused with 503
"""

from __future__ import annotations

import asyncio
import resource
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Final

from ...errors import MachineError
from ..request import Service
from .connection import Connection
from .front import Front
from .messages import HttpRequest, HttpResponse
from .settings import HttpSettings
from .sites import Sites, advice

CHECK_S: Final = 0.5  # how often connections are looked at for what takes too long
FLUSH_S: Final = 1.0  # for the last answers to leave
OTHER_FILES: Final = 192  # what MPI, models and connections that are being refused may open

QUEUE: Final = 1024  # connections that wait to be accepted
AT_ONCE: Final = 8
"""Connections that are accepted in a round of the loop: five rounds later those that are too many are gone,
and those whose callers have left. asyncio accepts as many as may wait. Then a burst that came while the loop
was busy took all the files that a process may open, which ended the job, and callers who had left took the
places of those who waited."""


async def listen(made: Callable[[], asyncio.BaseProtocol], host: str, port: int) -> asyncio.Server:
    """A server on this address; MachineError where it can't be had."""
    try:
        server = await asyncio.get_running_loop().create_server(made, host, port, backlog=AT_ONCE)
    except OSError as error:
        raise MachineError(f"can't listen on {host} port {port}: {error.strerror or error}") from error
    for each in server.sockets:
        with each.dup() as same:
            same.listen(QUEUE)
    return server


async def require_address(host: str, port: int) -> None:
    """MachineError where nobody could listen on it now. (Who comes first may still take it meanwhile.)"""
    server = await listen(asyncio.Protocol, host, port)
    server.close()
    await server.wait_closed()


class HttpServer:
    """A service, to be asked over HTTP."""

    def __init__(self, service: Service, settings: HttpSettings) -> None:
        files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        most = max(8, files - OTHER_FILES) if files > 0 else settings.max_connections
        self.settings = replace(settings, max_connections=min(settings.max_connections, most))
        self.connections: set[Connection] = set()
        self.held_bytes = 0
        self._front = Front(service, self.settings, self.unexpected)
        self._listening: asyncio.Server | None = None
        self._checks: asyncio.TimerHandle | None = None

    @property
    def draining(self) -> bool:
        """Whether the server is about to end."""
        return self._front.draining

    @property
    def port(self) -> int:
        """The port that it listens on, once it has started."""
        assert self._listening is not None
        port: int = self._listening.sockets[0].getsockname()[1]
        return port

    @property
    def addresses(self) -> list[str]:
        """Those that it listens on: what the host that was named leads to, once it has started."""
        assert self._listening is not None
        return [each.getsockname()[0] for each in self._listening.sockets]

    @property
    def url(self) -> str:
        """Where it is reached."""
        host = self.settings.host
        return f"http://{f'[{host}]' if ':' in host else host}:{self.port}"

    @property
    def advice(self) -> str:
        """What whoever started it is to know of who reaches it; nothing where that is plain."""
        return advice(self.settings, self.addresses, self.url)

    async def start(self) -> None:
        """Listen; MachineError where the address can't be had."""
        self._listening = await listen(lambda: Connection(self), self.settings.host, self.settings.port)
        self._front.sites = Sites(self.settings, self.addresses)
        self._check()

    async def stop(self, drain_s: float = 30.0) -> None:
        """Refuse what comes, answer within `drain_s` what has been accepted, and close."""
        self._front.draining = True
        # A caller who goes on asking gets refusals, each a task: only what there is now is waited for.
        if accepted := {each.task for each in self.connections if each.task is not None}:
            await asyncio.wait(accepted, timeout=drain_s)
        if self._listening is not None:
            self._listening.close()
        for connection in list(self.connections):
            if connection.task is None:
                connection.close()
            else:
                connection.abort()
        end_s = time.monotonic() + FLUSH_S
        while self.connections and time.monotonic() < end_s:
            await asyncio.sleep(0.005)
        for connection in list(self.connections):
            connection.abort()
        if self._checks is not None:
            self._checks.cancel()
        await asyncio.sleep(0)  # for the aborted ones' last calls

    def makes_room(self) -> bool:
        """Whether a place gets free for a connection that is one too many: that of the longest idle one.

        A few hundred that clients kept, or whoever opened them to do nothing, had shut out the health checks.
        """
        longest = min(self.connections, key=lambda each: each.idle_since_s)
        if longest.idle_since_s + self.settings.idle_least_s > time.monotonic():
            return False
        longest.close()
        return True

    def admit(self, request: HttpRequest) -> None:
        """Raise Problem where the body that follows this head is not wanted."""
        self._front.admit(request)

    async def answer(self, request: HttpRequest) -> HttpResponse:
        """Answer one request."""
        return await self._front.answer(request)

    def _check(self) -> None:
        now = time.monotonic()
        for connection in list(self.connections):
            connection.check(now)
        self._checks = asyncio.get_running_loop().call_later(CHECK_S, self._check)

    def unexpected(self, error: Exception) -> None:
        """Show it on the terminal. (Naming a protocol tells message/launch.py that the job may go on.)"""
        context = {"message": "a request over HTTP failed", "exception": error, "protocol": self}
        asyncio.get_running_loop().call_exception_handler(context)
