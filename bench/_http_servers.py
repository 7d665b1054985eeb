"""The servers of `bench http`, whose models return their input: `python -m bench._http_servers NAME PORT R`.

R is the repository of the one that is Weft's whole server; the others have their models here.

They run in processes of their own, on the one core that they are given.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from weft.runtime.message import World, run
from weft.runtime.serve.http import HttpServer, HttpSettings
from weft.runtime.serve.request import InferRequest, InferResult, ModelInfo, ModelStatistics, TensorInfo
from weft.runtime.serve.server import Server

TENSORS = (TensorInfo("x", "FP32", (-1, 16)),)
INFO = ModelInfo("noop", ("1",), "1", "none", TENSORS, TENSORS, 8, True)


class NoOp:
    """A service whose model returns its inputs as its outputs."""

    ready = True

    async def index(self) -> Sequence[ModelInfo]:
        return [INFO]

    def model(self, name: str, version: str = "") -> ModelInfo:
        return INFO

    def datatypes(self, name: str, version: str = "") -> Mapping[str, str]:
        return {"x": "FP32"}

    def statistics(self, name: str = "", version: str = "") -> Mapping[tuple[str, str], ModelStatistics]:
        return {}

    async def infer(self, request: InferRequest) -> InferResult:
        return InferResult("noop", "1", request.inputs, "", 0.0, 0.0, 1)

    async def load(self, name: str, config: Mapping[str, Any] | None = None) -> None: ...

    async def unload(self, name: str) -> None: ...

    def status(self) -> Mapping[str, Any]:
        return {}


def weft(port: int, models: Path) -> None:
    """The whole server, on one rank."""

    async def serve(world: World) -> None:
        async with await Server.open(world, models) as server:
            assert server.service is not None
            await HttpServer(server.service, HttpSettings(port=port)).start()
            await asyncio.Event().wait()

    run(serve)


def front(port: int, models: Path) -> None:
    """The HTTP front alone, in the loop in which rank 0 runs it."""

    async def serve(world: World) -> None:
        await HttpServer(NoOp(), HttpSettings(port=port)).start()
        await asyncio.Event().wait()

    run(serve)


class Echo(asyncio.Protocol):
    """Sends every body back, and looks at nothing else: the least that a server in Python does."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        body = data.partition(b"\r\n\r\n")[2]
        self._transport.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body)


def bare(port: int, models: Path) -> None:
    """A protocol on asyncio."""

    async def serve() -> None:
        server = await asyncio.get_running_loop().create_server(Echo, "127.0.0.1", port)
        await server.serve_forever()

    asyncio.run(serve())


def litserve(port: int, models: Path) -> None:
    from bench._litserve import serve

    serve(port)


def mlserver(port: int, models: Path) -> None:
    from bench._mlserver import serve

    serve(port)


SERVERS = {"weft": weft, "front": front, "bare": bare, "litserve": litserve, "mlserver": mlserver}

if __name__ == "__main__":
    SERVERS[sys.argv[1]](int(sys.argv[2]), Path(sys.argv[3]))
