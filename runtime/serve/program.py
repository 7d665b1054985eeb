"""weft serve: from the command line's options to the last answer."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from pathlib import Path

from ..errors import MachineError
from ..message import World
from .request import Service
from .server import DRAIN_S, Server


@dataclass(frozen=True, slots=True)
class Options:
    """The command line's."""

    repository: Path
    host: str
    port: int
    token: str
    policy: str
    device: str
    profiles: Path | None
    measure: bool


async def serve(world: World, options: Options) -> None:
    """Serve until a signal comes; every rank calls it alike."""
    stop = asyncio.Event()
    world.on_stop(stop.set)
    async with await Server.open(
        world,
        options.repository,
        policy=options.policy,
        device=options.device,
        profiles=options.profiles,
        measure=options.measure,
    ) as server:
        if server.service is None:
            return
        if options.measure:
            print(server.profiles, flush=True)
        await answer(server, options, stop)


async def answer(server: Server, options: Options, stop: asyncio.Event) -> None:
    """Rank 0: answer over HTTP until `stop` is set, and then what has been accepted."""
    try:
        from .http import HttpServer, HttpSettings
    except ModuleNotFoundError as error:
        raise MachineError(
            f"serving over HTTP needs {error.name}, which is missing: pip install 'weft[serve]'"
        ) from error
    assert server.service is not None
    front = HttpServer(
        server.service, HttpSettings(host=options.host, port=options.port, token=options.token)
    )
    await front.start()
    print(table(server.service), flush=True)
    print(f"weft: listening on {front.url}; Ctrl-C or SIGTERM answers what is accepted and ends", flush=True)
    await stop.wait()
    server.drain()
    await front.stop(DRAIN_S)


def table(service: Service) -> str:
    """What is served, and on what."""
    lines = []
    for info in service.index():
        title = f"{info.name} {info.version}".rstrip()
        if not info.ready:
            lines.append(f"weft: {title} is not served: {info.reason}")
            continue
        inputs = ", ".join(f"{each.name} {each.datatype} {list(each.shape)}" for each in info.inputs)
        lines.append(f"weft: {title} ({info.platform}): {inputs}; up to {info.max_batch} samples")
    resources = ", ".join(worker["resource"] for worker in service.status()["workers"])
    return "\n".join([*lines, f"weft: on {resources}"])
