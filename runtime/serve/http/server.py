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
from .connection import Connection, left
from .front import Front
from .messages import HttpRequest, HttpResponse
from .settings import HttpSettings

CHECK_S: Final = 0.5  # how often connections are looked at for what takes too long
FLUSH_S: Final = 1.0  # for the last answers to leave
LOOKS: Final = 8  # at most, at others for every connection that comes, to find those whose callers have left
OTHER_FILES: Final = 192  # what MPI, models and connections that are being refused may open


async def listen(made: Callable[[], asyncio.BaseProtocol], host: str, port: int) -> asyncio.Server:
    """A server on this address; MachineError where it can't be had."""
    try:
        return await asyncio.get_running_loop().create_server(made, host, port, backlog=1024)
    except OSError as error:
        raise MachineError(f"can't listen on {host} port {port}: {error.strerror or error}") from error


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
        self._entered = 0  # connections, since one was last looked for whose caller has left
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
    def url(self) -> str:
        """Where it is reached."""
        host = self.settings.host
        return f"http://{f'[{host}]' if ':' in host else host}:{self.port}"

    async def start(self) -> None:
        """Listen; MachineError where the address can't be had."""
        self._listening = await listen(lambda: Connection(self), self.settings.host, self.settings.port)
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

    def enter(self, connection: Connection) -> None:
        """Count a connection in; one more than may be open does not count those whose callers have left.

        A loop that was busy for a moment accepts all who came meanwhile, also those who did not wait.
        """
        self.connections.add(connection)
        self._entered += 1
        full = len(self.connections) > self.settings.max_connections
        if full and self._entered * LOOKS >= len(self.connections):
            self._entered = 0
            for each in left(self.connections):
                self.connections.discard(each)
                each.abort()

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
