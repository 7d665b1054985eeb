"""weft serve and weft run: from the command line to the last answer."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from ..errors import MachineError, Mistake
from ..message import World
from ..message.failure import say
from ..observe import RunFolder
from ..observe.screen import silence
from ..train import fleet
from ..train.schema import Job
from ..train.serving import ServeSection
from ..train.trainer import Result
from ..work import Compute
from .follow import follow
from .repository import Repository
from .request import Service
from .server import DEFAULT_POLICY, DRAIN_S, Server


@dataclass(frozen=True, slots=True)
class Options:
    """The command line's."""

    repository: Path
    host: str
    port: int
    token: str
    allowed_hosts: Sequence[str]
    policy: str | None
    device: str
    profiles: Path | None
    measure: bool


async def serve(world: World, options: Options) -> None:
    """Serve until a signal comes; every rank calls it alike."""
    stop = asyncio.Event()
    world.on_stop(stop.set)
    if world.rank == 0:
        await require_front(options.host, options.port, "--host and --port")
    async with await Server.open(
        world,
        options.repository,
        policy=options.policy or DEFAULT_POLICY,
        device=options.device,
        profiles=options.profiles,
        measure=options.measure,
    ) as server:
        if server.service is None:
            return
        world.stop_status = 0
        if stop.is_set():  # some models may be missing, and nobody has been told an address
            return
        if options.measure:
            tell(server.profiles)
        index = await server.service.index()
        if not index:
            tell(f"weft: no model in {options.repository}: give it NAME/VERSION/model.onnx")
        names = options.allowed_hosts
        async with answering(server, options.host, options.port, options.token, names):
            if index and not any(info.ready for info in index):
                tell(
                    "weft: nothing is served yet: once a model can be read, load it with "
                    "POST v2/repository/models/NAME/load"
                )
            await stop.wait()


async def run(world: World, job: Job, resume: Sequence[Path], token: str) -> list[Result]:
    """Train a job and answer meanwhile; every rank calls it alike."""
    section = job.serve or ServeSection()
    stop = asyncio.Event()
    world.on_stop(stop.set)
    if world.rank == 0:
        ways = "--set serve.host=ADDRESS and --set serve.port=N"
        await require_front(section.host, section.port, ways)

    if section.repository and job.name in Repository(Path(section.repository)).names():
        raise Mistake(
            f"the repository {section.repository} has a model {job.name!r}, and this job's model would be "
            "served under the same name: give one of them another (name = ... in the job, or --set name=...)"
        )

    @asynccontextmanager
    async def beside(compute: Compute, folders: Sequence[RunFolder]) -> AsyncIterator[None]:
        async with await Server.open(
            world,
            Path(section.repository) if section.repository else None,
            settings=section,
            policy=section.policy or DEFAULT_POLICY,
            device=job.device,
            compute=compute,
        ) as server:
            if server.service is None:
                yield
                return
            following = world.background(
                follow(server.loading, job, folders[0], section.max_batch),
                "the model's checkpoints",
            )
            await asyncio.sleep(0)  # it tells what is awaited before the models are listed
            names = section.allowed_hosts
            async with answering(server, section.host, section.port, token, names):
                yield
                if section.after == "serve":
                    if not stop.is_set():
                        tell("weft: training has ended; serving until Ctrl-C or SIGTERM")
                        world.stop_status = 0  # nothing is cut short
                    await stop.wait()
            following.cancel()

    return await fleet.train(world, [job], resume=resume, beside=beside, command="weft run")


async def require_front(host: str, port: int, ways: str) -> None:
    """MachineError, before models are loaded and measured, where HTTP could not be spoken on that address.

    `ways` are how another is chosen.
    """
    try:
        from .http import require_address
    except ModuleNotFoundError as error:
        raise MachineError(
            f"serving over HTTP needs {error.name}, which is missing: pip install 'weft[serve]'"
        ) from error
    try:
        await require_address(host, port)
    except MachineError as error:
        raise MachineError(f"{error}; choose another with {ways}") from error


@asynccontextmanager
async def answering(
    server: Server, host: str, port: int, token: str, allowed_hosts: Sequence[str]
) -> AsyncIterator[None]:
    """On rank 0: answer over HTTP; at the end what has been accepted, and no more."""
    from .http import HttpServer, HttpSettings

    assert server.service is not None
    settings = HttpSettings(host=host, port=port, token=token, allowed_hosts=tuple(allowed_hosts))
    front = HttpServer(server.service, settings)
    told = await table(server.service)
    await front.start()
    tell(told)
    tell(f"weft: listening on {front.url}; Ctrl-C or SIGTERM answers what is accepted and ends")
    if front.advice:
        tell(f"weft: {front.advice}")
    try:
        yield
    finally:
        server.drain()
        await front.stop(DRAIN_S)


def tell(text: str) -> None:
    """Print for whoever started the server, which does not end because nobody reads that."""
    try:
        print(text, flush=True)
    except OSError as error:  # `| head` has read enough, or the disk of a log is full
        say(f"weft: what is served cannot be printed: {error.strerror}; it is served all the same")
        silence()


async def table(service: Service) -> str:
    """What is served, and on what."""
    lines = []
    for info in await service.index():
        title = f"{info.name} {info.version}".rstrip()
        if not info.ready:
            lines.append(f"weft: {title} is not served: {info.reason}")
            continue
        inputs = ", ".join(f"{each.name} {each.datatype} {list(each.shape)}" for each in info.inputs)
        lines.append(f"weft: {title} ({info.platform}): {inputs}; up to {info.max_batch} samples")
        if info.reason:
            lines.append(f"weft: warning: {title}: {info.reason}")
    resources = ", ".join(worker["resource"] for worker in service.status()["workers"])
    return "\n".join([*lines, f"weft: on {resources}"])
