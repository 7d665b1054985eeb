"""What a theft takes: from the look that finds work until the thief has it.

mpirun -n 2 python -m bench steal
python -m bench.hosts --hosts 2 --rate 1gbit -- python -m bench steal      # between hosts

local_p50_us         a theft inside a node, while the victim runs kernels of `--kernel-ms` (matrix products)
local_asleep_p50_us  the same while the victim sleeps
remote_p50_us        a theft between nodes: from the question until the thief's thread has the tasks
round_trip_us        an awaited request of 8 bytes and its reply between the same ranks, meanwhile
remote_over_goal     remote_p50_us over one and a half round trips and 50 us
thefts               how many were measured; misses: questions and claims that brought nothing

Rank 0 puts tasks out before every kernel, the others take them. Every task has run once, or there are no
figures.
"""

from __future__ import annotations

import argparse
import asyncio
import time
from functools import partial
from statistics import median
from typing import Any

import numpy as np

from bench.harness import Figure, amount, check, positive
from weft.runtime.errors import Mistake
from weft.runtime.message import Message, World, run
from weft.runtime.work.pool import Pool

OUT = 8  # tasks put out for each kernel
SIDE = 256  # of the matrices
PING_S = 3e-3


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--kernels", type=positive, default=60, metavar="N", help="that the victim runs (60)")
    add("--kernel-ms", type=amount, default=10.0, metavar="MS", help="length of one (10)")


def main(args: argparse.Namespace) -> dict[str, Figure]:
    return run(partial(measure, args)) or {}


class Thefts:
    """Takes the place of a trace: keeps how long thefts took, near and far."""

    def __init__(self) -> None:
        self.seconds: dict[str, list[float]] = {"near": [], "far": []}

    def span(self, track: str, name: str, start_ns: int, end_ns: int, **_: Any) -> None:
        if track == "steal":
            self.seconds[name].append((end_ns - start_ns) * 1e-9)


async def measure(args: argparse.Namespace, world: World) -> dict[str, Figure]:
    """One rank's part of the bench."""
    if world.size < 2:
        raise Mistake("a theft takes two: mpirun -n 2 python -m bench steal")
    thefts, ran = Thefts(), [0, 0]
    a = np.ones((SIDE, SIDE), np.float32)
    out = np.empty_like(a)

    def kernel(pool: Pool, body: list[Any]) -> None:
        left, computes = body
        for number in range(OUT):
            pool.spawn("tiny", OUT * left + number, seconds=1.0)  # always worth it
        if left:
            pool.spawn("kernel", [left - 1, computes], here=True)
        end = time.perf_counter() + args.kernel_ms * 1e-3
        if not computes:
            time.sleep(args.kernel_ms * 1e-3)
        while time.perf_counter() < end:
            np.matmul(a, a, out=out)

    def tiny(pool: Pool, number: int) -> None:
        ran[0] += 1
        ran[1] += number

    trips: list[float] = []
    channel = await world.channel("ping")
    if world.rank == 0:
        channel.serve(answer)
    far = world.rank not in world.nodes[0]

    async def ping() -> None:
        while not over:
            start = time.perf_counter()
            reply = await channel.request(0, bytes(8))
            trips.append(time.perf_counter() - start)
            check(reply.body == bytes(8), "a reply is not what was asked for")
            await asyncio.sleep(PING_S)

    found: dict[str, list[float]] = {}
    misses = 0
    async with await Pool.open(world, {"kernel": kernel, "tiny": tiny}, trace=thefts) as pool:
        for name, computes in (("asleep", False), ("computing", True)):
            ran[:] = 0, 0
            thefts.seconds = {"near": [], "far": []}
            if world.rank == 0:
                pool.spawn("kernel", [args.kernels - 1, computes], here=True)
            over = False
            pinging = asyncio.create_task(ping()) if far and computes else None
            tally = await pool.run()
            over = True
            if pinging is not None:
                await pinging
            count = OUT * args.kernels
            total = np.array(ran, np.int64)
            await world.allreduce(total)
            check(total.tolist() == [count, count * (count - 1) // 2], f"{total} is not every task once")
            for way, seconds in thefts.seconds.items():
                found[f"{way} {name}"] = await gathered(world, seconds)
            missed = np.array([sum(lane.misses for lane in tally.lanes)])
            await world.allreduce(missed)
            misses += int(missed[0])
        round_trips = await gathered(world, trips)
    figures: dict[str, Figure] = {}
    if found["near computing"]:
        figures["local_p50_us"] = Figure.of(found["near computing"], "us", 1e6)
        if found["near asleep"]:
            figures["local_asleep_p50_us"] = Figure.of(found["near asleep"], "us", 1e6)
    if found["far computing"] and round_trips:
        goal_s = 1.5 * median(round_trips) + 50e-6
        figures["remote_p50_us"] = Figure.of(found["far computing"], "us", 1e6)
        figures["round_trip_us"] = Figure.of(round_trips, "us", 1e6)
        figures["remote_over_goal"] = Figure.of([median(found["far computing"]) / goal_s], "x")
    figures["thefts"] = Figure.of([sum(map(len, found.values()))], "")
    figures["misses"] = Figure.of([misses], "")
    check(figures["thefts"].value > 0, "nothing was stolen")
    return figures


def answer(message: Message) -> Any:
    return message.body


async def gathered(world: World, seconds: list[float]) -> list[float]:
    """Everybody's samples."""
    counts = np.empty(world.size, np.int64)
    await world.allgather(np.array([len(seconds)], np.int64), counts)
    most = max(1, int(counts.max()))
    mine, everyone = np.zeros(most), np.empty((world.size, most))
    mine[: len(seconds)] = seconds
    await world.allgather(mine, everyone)
    return [s for row, count in zip(everyone.tolist(), counts.tolist(), strict=True) for s in row[:count]]
