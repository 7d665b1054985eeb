"""The README's program: plain asyncio beside messages between ranks. It runs as it stands there."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests import launch

PROGRAM = """\
import asyncio

from weft.runtime.message import Message, World, run


async def main(world: World) -> None:
    channel = await world.channel("squares")

    async def square(message: Message) -> int:  # on every rank: answers requests, many at a time
        await asyncio.sleep(0.01)  # a timer, a file, an HTTP request: whatever asyncio can await
        return message.body**2

    channel.serve(square)
    if world.rank == 0:

        async def visit(reader, writer):  # on rank 0: a TCP server; each number goes to another rank
            number = int(await reader.readline())
            reply = await channel.request(number % world.size, number, timeout=5)
            writer.write(f"{number} squared is {reply.body}, says rank {reply.source}\\n".encode())
            writer.close()

        async with await asyncio.start_server(visit, "127.0.0.1", 0) as server:
            await asyncio.gather(*(ask(server.sockets[0].getsockname(), n) for n in range(6)))


async def ask(address, number):
    reader, writer = await asyncio.open_connection(*address)
    writer.write(f"{number}\\n".encode())
    print((await reader.read()).decode(), end="")
    writer.close()


run(main)
"""


@pytest.mark.parametrize("vendor", launch.VENDORS)
@pytest.mark.parametrize("ranks", [1, 3])
def test_the_program_answers_visitors_with_all_ranks(vendor: str, ranks: int, tmp_path: Path) -> None:
    path = tmp_path / "squares.py"
    path.write_text(PROGRAM)
    result = launch.mpiexec(ranks, [path], vendor=vendor, timeout=60)
    assert result.returncode == 0, result.stderr
    assert sorted(result.stdout.splitlines()) == [
        f"{n} squared is {n**2}, says rank {n % ranks}" for n in range(6)
    ]
