"""A server that cannot accept, for want of files, says so and goes on; the job does."""

from __future__ import annotations

import asyncio
import os
import resource
import socket
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from weft.runtime.message import World, run

RETRY_S = 0.01


@contextmanager
def no_more_files() -> Iterator[None]:
    """This process may open none."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowest = os.dup(0)
    os.close(lowest)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


@pytest.mark.mpi
@pytest.mark.parametrize("closes", [False, True], ids=["it goes on", "it closes before it tries again"])
def test_a_server_that_can_open_no_more_files_says_so_once_and_ends_no_job(
    closes: bool, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """asyncio tells the loop of it as of an error that nobody caught, which ends a job."""
    monkeypatch.setattr("asyncio.constants.ACCEPT_RETRY_DELAY", RETRY_S)

    async def main(world: World) -> None:
        loop, visited, told = asyncio.get_running_loop(), asyncio.Event(), ""

        async def visit(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.close()
            await writer.wait_closed()
            visited.set()

        server = await asyncio.start_server(visit, "127.0.0.1", 0)
        with socket.socket() as visitor:
            visitor.setblocking(False)
            with no_more_files():
                await loop.sock_connect(visitor, server.sockets[0].getsockname())
                while not told:
                    await asyncio.sleep(0)
                    told = capfd.readouterr().err
                if closes:
                    server.close()
                tried = asyncio.Event()
                loop.call_later(2 * RETRY_S, tried.set)  # behind asyncio's own
                await tried.wait()
            if not closes:
                await visited.wait()
        server.close()
        assert told.startswith(
            f"weft: rank {world.rank} of {world.size} on {socket.gethostname()} accepts no "
        )
        assert "Too many open files; this process may have" in told
        assert len(told.splitlines()) == 1
        assert not capfd.readouterr().err
        await world.barrier()

    run(main)
