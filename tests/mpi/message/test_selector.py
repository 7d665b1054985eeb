"""MPI beside everything else an event loop does: neither keeps the other waiting."""

from __future__ import annotations

import asyncio
import socket
import sys
import threading

import numpy as np
import pytest

from weft.runtime.message import selector
from weft.runtime.message.nap import NapPolicy
from weft.runtime.message.selector import MpiLoop

from .talk import Talk, talk

# Naps that outlast every test: whoever must be woken and is not hangs.
HOURS = 1e4
ASLEEP = NapPolicy(
    spin_s=0.0, shortest_s=HOURS, awaited_s=HOURS, computing_s=HOURS, idle_s=HOURS, rung_s=HOURS
)


@pytest.mark.parametrize("fd_setsize", [1024, 0], ids=["select", "poll"])
def test_threads_sockets_and_timers_wake_a_napping_loop(
    fd_setsize: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(selector, "FD_SETSIZE", fd_setsize)

    async def main() -> None:
        from mpi4py import MPI

        from weft.runtime.message.communicator import Communicator

        loop = asyncio.get_running_loop()
        assert isinstance(loop, MpiLoop)
        comm = Communicator(MPI.COMM_SELF.Dup(), loop.mpi, "self")
        never = comm.recv(np.empty(1), 0)

        future = loop.create_future()
        thread = threading.Thread(target=lambda: loop.call_soon_threadsafe(future.set_result, 1))
        thread.start()
        assert await future == 1
        thread.join()

        await asyncio.sleep(0.001)

        assert await asyncio.to_thread(lambda: 2) == 2

        ours, theirs = socket.socketpair()
        with ours, theirs:
            ours.setblocking(False)
            theirs.sendall(b"hello")
            assert await loop.sock_recv(ours, 10) == b"hello"

        never.cancel()
        comm.free()

    loop = MpiLoop(ASLEEP)
    loop.run_until_complete(main())
    loop.close()


def test_a_subprocess_runs_beside_messages() -> None:
    async def main(ranks: Talk) -> None:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", "print(6 * 7)", stdout=asyncio.subprocess.PIPE
        )
        got = np.empty(1, np.int64)
        receive = ranks.comm.recv(got, ranks.left)
        out, _ = await process.communicate()
        await ranks.comm.send(np.array([int(out)]), ranks.right)
        await receive
        assert got[0] == 42

    talk(main)


def test_busy_messages_do_not_starve_timers_and_sockets() -> None:
    async def main(ranks: Talk) -> None:
        channel = ranks.channel()
        loop = asyncio.get_running_loop()
        ours, theirs = socket.socketpair()
        heard = []
        with ours, theirs:
            loop.add_reader(ours, lambda: heard.append(ours.recv(10)))
            loop.call_later(0.005, theirs.send, b"x")
            got, sent = np.empty(1), np.ones(1)
            while not heard:  # each of these is over before its awaiter would have to suspend
                receive = ranks.comm.recv(got, ranks.rank)
                await ranks.comm.send(sent, ranks.rank)
                await receive
            loop.call_later(0.005, theirs.send, b"y")
            while len(heard) < 2:
                await channel.send(ranks.rank)
            loop.remove_reader(ours)

    talk(main)


def test_busy_callbacks_do_not_starve_messages() -> None:
    async def main(ranks: Talk) -> None:
        got = np.empty(100_000)
        receive = ranks.comm.recv(got, ranks.left)
        send = ranks.comm.send(np.ones(100_000), ranks.right)
        while not (receive.done() and send.done()):
            await asyncio.sleep(0)
        assert (got == 1).all()

    talk(main)


def test_nothing_is_polled_when_nothing_is_outstanding() -> None:
    loop = MpiLoop(ASLEEP)
    loop.run_until_complete(asyncio.sleep(0.001))
    assert loop.mpi.pending() == []
    loop.close()


def test_messages_move_while_a_kernel_computes() -> None:
    async def main(ranks: Talk) -> None:
        ranks.loop.mpi.computing = lambda: True
        array = np.ones(200_000, np.float32)
        for _ in range(3):
            await ranks.comm.allreduce(array)
        assert (array == ranks.size**3).all()

    talk(main)


def test_what_is_waited_for_is_listed_oldest_first() -> None:
    async def main(ranks: Talk) -> None:
        channel = ranks.channel()
        got = np.empty(1)
        first = ranks.comm.recv(got, ranks.left, what="the halo of layer 3")
        second = asyncio.create_task(channel.receive(ranks.left))
        await asyncio.sleep(0)
        waits = ranks.loop.mpi.pending()
        assert [wait.what for wait in waits] == [
            "the halo of layer 3",
            f"a message from rank {ranks.left} on channel 'test'",
        ]
        assert waits[0].since <= waits[1].since
        await ranks.comm.barrier()
        await channel.send(ranks.right)
        await ranks.comm.send(np.ones(1), ranks.right)
        await asyncio.gather(first, second)
        assert ranks.loop.mpi.pending() == []

    talk(main)
