"""A server on all ranks: workers everywhere, and on rank 0 the service that uses them.

    async with await Server.open(world, Path("models")) as server:    # every rank
        client = await Client.open(world)                             # on any
        result = await client.infer("digits", images, deadline_ms=50)

Leaving drains: what has been accepted is answered, then all ranks go on. Who leaves waits for all others and
goes on answering meanwhile, rank 0 too: it asks without a message and so has its answers first, and the other
ranks' requests were refused then. Who leaves by an error does not wait, for all may have to hear of it; where
it is caught, the rank's part goes on in the background until all have left. One server at a time in a world:
the next one opens when the last has ended.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Self
from weakref import WeakKeyDictionary

from ...kernels.device import DeviceUnavailable, choose_device
from ..errors import MachineError, Mistake, WeftError
from ..message import World
from ..work import Compute
from ..work.cores import share_cores
from .catalog import Catalog
from .client import ClientPort
from .dispatcher import Dispatcher
from .link import Link, links
from .loading import Loading
from .policy import POLICIES
from .profile import Profiles
from .profile_file import ProfileFile
from .profiling import Profiler, table
from .repository import Repository
from .service import ModelService
from .settings import ServerSettings
from .worker import Worker

PROFILES = "profiles.json"
DRAIN_S = 30.0
CLOSE_S = 60.0  # for loads to end, and batches that nobody waits for
DEFAULT_POLICY = "weft"

CLOSING: WeakKeyDictionary[World, asyncio.Task[None]] = WeakKeyDictionary()
"""This rank's part of a world's last server, where it was left by an error."""


class Server:
    """This rank's part. `service` is rank 0's, None elsewhere."""

    def __init__(self, world: World, worker: Worker) -> None:
        self._world = world
        self._worker = worker
        self._links: Sequence[Link] = ()  # rank 0's, to all workers
        self._ends: list[Callable[[], Awaitable[None]]] = []  # of what rank 0 has begun, the last one first
        self._stack = AsyncExitStack()
        self.service: ModelService | None = None

    @classmethod
    async def open(
        cls,
        world: World,
        repository: Path | None,
        *,
        settings: ServerSettings | None = None,
        policy: str = DEFAULT_POLICY,
        device: str = "auto",
        profiles: Path | None = None,
        measure: bool = False,
        compute: Compute | None = None,
    ) -> Self:
        """Load all models of a repository on every rank; collective.

        `profiles` is where profiles are stored (profiles.json in the repository); with `measure` they are
        measured first. `settings` go before the repository's. `compute` is this rank's lane where it has one.
        A stop by signal ends it before all models are loaded and measured.
        Mistake where the repository or its settings are wrong; of a model that is, the index tells.
        """
        try:
            chosen = choose_device(device, world.node_rank)
        except DeviceUnavailable as error:
            raise MachineError(str(error)) from error
        share_cores(world)
        if world in CLOSING:
            await asyncio.wait([CLOSING[world]])
        async with AsyncExitStack() as stack:
            if world.rank == 0:  # first of all: on another rank a client may ask as soon as its part is done
                port = await ClientPort.of(world)
                stack.callback(port.has_not_started)
            if compute is None:
                compute = await stack.enter_async_context(Compute(chosen))
                lane = compute
                world.selector.computing = lambda: lane.busy  # naps are longer while a kernel runs
                stack.callback(setattr, world.selector, "computing", lambda: False)
            node = await world.node.duplicate("serve")
            server = cls(world, Worker(world, node, compute, chosen))
            server._links = await links(world, server._worker)
            server._stack = stack.pop_all()
        if world.rank == 0:
            try:
                server.service = await server._start(repository, settings, policy, profiles, measure)
            except BaseException:  # the other ranks have their part already, and wait for its end
                port.has_not_started()
                server._close_in_the_background()
                raise
            port.has_started(server.service)
        return server

    async def _start(
        self,
        repository: Path | None,
        settings: ServerSettings | None,
        policy: str,
        profiles: Path | None,
        measure: bool,
    ) -> ModelService:
        """Rank 0's part of `open`."""
        self._ends.append(self._close_workers)
        found = None if repository is None else Repository(repository)
        catalog = Catalog(settings or (found.settings() if found else ServerSettings()))
        if policy not in POLICIES:
            raise Mistake(f"there is no policy {policy!r}; there are {', '.join(POLICIES)}")
        path = profiles or (found.root / PROFILES if found else None)
        file = None if path is None else ProfileFile(path)
        known = Profiles()
        if file is not None:
            known = file.read()
            self._ends.append(file.close)
        links = self._links
        self._dispatcher = Dispatcher(links, catalog, POLICIES[policy](catalog.policy_settings(), known))
        self._dispatcher.reconfigure()
        profiler = Profiler(links, known)
        self.loading = Loading(links, found, catalog, self._dispatcher, profiler)
        self._ends += [self._dispatcher.watch.stop, self.loading.settle]
        await self.loading.load_all(lambda: self._world.stopping)
        if measure:
            for served in catalog.all():
                if not self._world.stopping:
                    await profiler.measure(served)
        self._dispatcher.watch.start(self._world.background)
        if file is not None:
            file.keep(known, self._world.background)
        return ModelService(catalog, self._dispatcher, self.loading)

    @property
    def profiles(self) -> str:
        """Rank 0's profiles, for people."""
        return table(self._dispatcher.policy.profiles)

    async def use(self, policy: str) -> None:
        """Let another policy decide, once nothing is under way. Rank 0 alone."""
        dispatcher = self._dispatcher
        await dispatcher.rest()
        dispatcher.policy = POLICIES[policy](dispatcher.policy.settings, dispatcher.policy.profiles)
        dispatcher.reconfigure()

    def drain(self) -> None:
        """Refuse what comes from now on."""
        self._dispatcher.draining = True

    async def close(self) -> None:
        """Answer what has been accepted, at most for `DRAIN_S`, and forget the models; collective.

        Until every rank is here, it goes on answering whatever comes; unless `drain` was called.
        """
        self._worker.left.set()
        try:
            if self.service is not None:
                await self._drain()
            await self._end()
            await self._worker.closed.wait()
        finally:
            await self._stack.aclose()

    async def _drain(self) -> None:
        """Answer until every rank has left, or at once what is accepted."""
        if not self._dispatcher.draining:
            await asyncio.gather(*(link.left() for link in self._links))
        try:
            async with asyncio.timeout(DRAIN_S):
                await self._dispatcher.drain()
        except TimeoutError:
            self._dispatcher.give_up(f"the server ends, and waited {DRAIN_S:.0f} s for the answer")

    async def _end(self) -> None:
        """End what rank 0 has begun; WeftError where that takes longer than `CLOSE_S`."""
        try:
            async with asyncio.timeout(CLOSE_S):
                for end in reversed(self._ends):
                    await end()
        except TimeoutError:
            states = [f"{link.resource} {self._dispatcher.watch.state(link)}" for link in self._links]
            raise WeftError(
                f"the server could not end within {CLOSE_S:.0f} s: a model is still loaded or computed"
                f" ({', '.join(states)})"
            ) from None

    async def _close_workers(self) -> None:
        await asyncio.gather(*(link.close() for link in self._links))

    def _close_in_the_background(self) -> None:
        """Do this rank's part while it goes on with something else."""
        CLOSING[self._world] = self._world.closing(
            self.close(), "the end of a server that was left by an error"
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, kind: object, error: object, trace: object) -> None:
        if error is None:
            await self.close()
        else:
            self._close_in_the_background()
