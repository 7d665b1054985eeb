"""Round trip, bandwidth and idle cost of Weft's messages, beside plain mpi4py in the same run.

mpirun -n 2 python -m bench pingpong

rtt_us              awaited request of 8 bytes on a channel, received and replied to by the other rank
raw_rtt_us          the same with mpi4py's blocking Send and Recv
handler_rtt_us      the same request, answered by a plain function given to channel.serve
rested_rtt_us       the same after both ranks had nothing to do for 50 ms (they nap then)
bandwidth_over_raw  64 MB, awaited send and recv into given arrays, over blocking Send and Recv (raw_gb_per_s)
idle_core_share     share of a core that a waiting rank uses; the busier rank's
"""

from __future__ import annotations

import argparse
import asyncio
import time

import numpy as np

from bench.harness import Figure, amount, check, interleaved, positive, ratio
from weft.runtime.errors import Mistake
from weft.runtime.message import Channel, World, run
from weft.runtime.message.mpi import MPI  # not mpi4py's before: Weft has settings for it

REST_S = 0.05


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--repetitions", type=positive, default=7, metavar="N", help="rounds")
    parser.add_argument("--trips", type=positive, default=2000, metavar="N", help="round trips a repetition")
    parser.add_argument("--megabytes", type=positive, default=64, metavar="N", help="size of a large message")
    parser.add_argument("--idle", type=amount, default=2.0, metavar="SECONDS", help="how long to wait idly")


def main(args: argparse.Namespace) -> dict[str, Figure]:
    return run(lambda world: figures(world, args)) or {}


async def figures(world: World, args: argparse.Namespace) -> dict[str, Figure]:
    if world.size < 2:
        raise Mistake("pingpong needs two ranks: mpirun -n 2 python -m bench pingpong")
    if world.rank > 1:  # they only make the machine fuller
        await world.barrier()
        return {}
    pair = Pair(world, args)
    await pair.open()
    candidates = {
        "raw_rtt": pair.raw_trips,
        "rtt": pair.trips,
        "handler_rtt": pair.handler_trips,
        "rested_rtt": pair.rested_trips,
        "raw_large": pair.raw_large,
        "large": pair.large,
        "idle": pair.idle,
    }
    samples: dict[str, list[float]] = {name: [] for name in candidates}
    for name, counts in interleaved(list(candidates), args.repetitions):
        await pair.meet()
        value = await candidates[name]()
        if counts:
            samples[name].append(value)
    await world.barrier()
    return {
        "rtt_us": Figure.of(samples["rtt"], "us", 1e6),
        "raw_rtt_us": Figure.of(samples["raw_rtt"], "us", 1e6),
        "handler_rtt_us": Figure.of(samples["handler_rtt"], "us", 1e6),
        "rested_rtt_us": Figure.of(samples["rested_rtt"], "us", 1e6),
        "bandwidth_over_raw": ratio(samples["raw_large"], samples["large"]),
        "raw_gb_per_s": Figure.of([args.megabytes * 1e6 / s for s in samples["raw_large"]], "GB/s", 1e-9),
        "idle_core_share": Figure.of(samples["idle"], "of a core"),
    }


class Pair:
    """Ranks 0 and 1: each measures, rank 0's times count."""

    channel: Channel
    handled: Channel

    def __init__(self, world: World, args: argparse.Namespace) -> None:
        self.world = world
        self.first = world.rank == 0
        self.other = 1 - world.rank
        self.trips_count: int = args.trips
        self.idle_s = args.idle
        self.large_out = np.random.default_rng(0).integers(0, 256, args.megabytes * 10**6, np.uint8)
        self.large_in = np.zeros_like(self.large_out)
        # Blocking calls on a communicator of their own, as a program without Weft would make them. Further
        # ranks wait at the end: nothing here may need them.
        self.raw = MPI.COMM_WORLD.Create_group(MPI.COMM_WORLD.group.Incl([0, 1]))

    async def open(self) -> None:
        self.channel = await self.world.channel("pingpong")
        self.handled = await self.world.channel("pingpong, handled")
        self.handled.serve(lambda message: message.body[::-1])

    async def meet(self) -> None:
        if self.first:
            await self.channel.request(self.other)
        else:
            await (await self.channel.receive()).reply()

    async def raw_trips(self) -> float:
        comm, count = self.raw, self.trips_count
        out, into = np.zeros(8, np.uint8), np.zeros(8, np.uint8)
        start = time.perf_counter()
        if self.first:
            for i in range(count):
                out[0] = i % 256
                comm.Send([out, MPI.BYTE], 1)
                comm.Recv([into, MPI.BYTE], 1)
                if into[7] != i % 256:
                    check(False, f"raw trip {i} came back as {into}")
        else:
            for _ in range(count):
                comm.Recv([into, MPI.BYTE], 0)
                out[:] = into[::-1]
                comm.Send([out, MPI.BYTE], 0)
        return (time.perf_counter() - start) / count

    async def trips(self) -> float:
        start = time.perf_counter()
        if self.first:
            await self._ask(self.channel, self.trips_count)
        else:
            for _ in range(self.trips_count):
                message = await self.channel.receive()
                await message.reply(message.body[::-1])
        return (time.perf_counter() - start) / self.trips_count

    async def handler_trips(self) -> float:
        start = time.perf_counter()
        if self.first:
            await self._ask(self.handled, self.trips_count)
        else:
            await self.channel.receive()
        took = time.perf_counter() - start
        if self.first:
            await self.channel.send(1, "over")
        return took / self.trips_count

    async def rested_trips(self) -> float:
        took = []
        for _ in range(5):
            if self.first:
                await asyncio.sleep(REST_S)
                start = time.perf_counter()
                await self._ask(self.channel, 1)
                took.append(time.perf_counter() - start)
            else:
                message = await self.channel.receive()
                await message.reply(message.body[::-1])
        return float(np.median(took)) if took else 0.0

    async def _ask(self, channel: Channel, count: int) -> None:
        for i in range(count):
            body = i.to_bytes(8, "little")
            reply = await channel.request(1, body)
            if reply.body != body[::-1]:
                check(False, f"trip {i} came back as {reply.body!r}")

    async def raw_large(self) -> float:
        self._clear()
        start = time.perf_counter()
        if self.first:
            self.raw.Send(self.large_out, 1)
            self.raw.Recv(self.large_in, 1)
        else:
            self.raw.Recv(self.large_in, 0)
            self.raw.Send(self.large_in, 0)
        took = time.perf_counter() - start
        self._check_large()
        return took / 2

    async def large(self) -> float:
        self._clear()
        comm = self.world
        start = time.perf_counter()
        if self.first:
            await comm.send(self.large_out, 1)
            await comm.recv(self.large_in, 1)
        else:
            await comm.recv(self.large_in, 0)
            await comm.send(self.large_in, 0)
        took = time.perf_counter() - start
        self._check_large()
        return took / 2

    def _clear(self) -> None:
        self.large_in[:] = 0

    def _check_large(self) -> None:
        check(np.array_equal(self.large_in, self.large_out), "a large message came back changed")

    async def idle(self) -> float:
        """Rank 1 waits for a message, rank 0 for a timer and a message that does not come."""
        begin, cpu = time.perf_counter(), time.process_time()
        if self.first:
            waiting = asyncio.create_task(self.channel.receive())
            await asyncio.sleep(self.idle_s)
            waiting.cancel()
        else:
            await self.channel.receive()
        share = np.array([(time.process_time() - cpu) / (time.perf_counter() - begin)])
        if self.first:
            await self.channel.send(1, "over")
            message = await self.channel.receive()
            return max(float(share[0]), float(message.arrays[0][0]))
        await self.channel.send(0, None, share)
        return 0.0
