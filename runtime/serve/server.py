"""A server on all ranks: workers everywhere, and on rank 0 the service that uses them.

    async with await Server.open(world, Path("models")) as server:    # every rank
        client = await Client.open(world)                             # on any
        result = await client.infer("digits", images, deadline_ms=50)

Leaving drains: what has been accepted is answered, then all ranks go on. Who leaves waits for all others and
goes on answering meanwhile, rank 0 too: it asks without a message and so has its answers first, and the other
ranks' requests were refused then. One server at a time in a world.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Self

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


class Server:
    """This rank's part. `service` is rank 0's, None elsewhere."""

    def __init__(self, worker: Worker) -> None:
        self._worker = worker
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
        Mistake where the repository or its settings are wrong; of a model that is, the index tells.
        """
        try:
            chosen = choose_device(device, world.node_rank)
        except DeviceUnavailable as error:
            raise MachineError(str(error)) from error
        share_cores(world)
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
            server = cls(Worker(world, node, compute, chosen))
            reached = await links(world, server._worker)
            if world.rank == 0:
                found = None if repository is None else Repository(repository)
                catalog = Catalog(settings or (found.settings() if found else ServerSettings()))
                await server._start(world, reached, found, catalog, policy, profiles, measure)
                assert server.service is not None
                port.has_started(server.service)
            server._stack = stack.pop_all()
        return server

    async def _start(
        self,
        world: World,
        reached: Sequence[Link],
        repository: Repository | None,
        catalog: Catalog,
        policy: str,
        profiles: Path | None,
        measure: bool,
    ) -> None:
        """Rank 0's part of `open`."""
        if policy not in POLICIES:
            raise Mistake(f"there is no policy {policy!r}; there are {', '.join(POLICIES)}")
        path = profiles or (repository.root / PROFILES if repository else None)
        self._file = None if path is None else ProfileFile(path)
        known = Profiles() if self._file is None else self._file.read()
        self._links = reached
        self._dispatcher = Dispatcher(reached, catalog, POLICIES[policy](catalog.policy_settings(), known))
        self._dispatcher.reconfigure()
        profiler = Profiler(reached, known)
        self.loading = loading = Loading(reached, repository, catalog, self._dispatcher, profiler)
        await loading.load_all()
        if measure:
            for served in catalog.all():
                await profiler.measure(served)
        self._dispatcher.watch.start(world.background)
        if self._file is not None:
            self._file.keep(known, world.background)
        self.service = ModelService(catalog, self._dispatcher, loading)

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
        if self.service is not None:
            if not self._dispatcher.draining:
                await asyncio.gather(*(link.left() for link in self._links))
            try:
                async with asyncio.timeout(DRAIN_S):
                    await self._dispatcher.drain()
            except TimeoutError:
                self._dispatcher.give_up(f"the server ends, and waited {DRAIN_S:.0f} s for the answer")
            try:
                async with asyncio.timeout(CLOSE_S):
                    await self._close_workers()
            except TimeoutError:
                states = [f"{link.resource} {self._dispatcher.watch.state(link)}" for link in self._links]
                raise WeftError(
                    f"the server could not end within {CLOSE_S:.0f} s: a model is still loaded or computed"
                    f" ({', '.join(states)})"
                ) from None
        await self._worker.closed.wait()
        await self._stack.aclose()

    async def _close_workers(self) -> None:
        await self.loading.settle()
        await self._dispatcher.watch.stop()
        if self._file is not None:
            await self._file.close()
        await asyncio.gather(*(link.close() for link in self._links))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, kind: object, error: object, trace: object) -> None:
        if error is None:
            await self.close()
        else:  # the others may never come here: what is shared goes with the processes
            self._worker.left.set()  # rank 0, if it closes, waited for who was here for ever
            await self._stack.aclose()
