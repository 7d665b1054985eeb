"""Half an hour of overload with deadlines: does the server slow down, does its memory grow?

mpirun -n 2 python -m bench soak --minutes 30

Every rank asks rank 0's dispatcher for the network of `bench live`, which all ranks compute: many callers who
ask again as soon as they are answered or, 5 ms later, refused. Deadlines are 50 ms, 200 ms and 2 s, in
the shares of `bench serve`; together they ask for far more than the ranks can compute. Answers are compared
with the model's first ones, and these with the onnx package's evaluator's. Time is divided into windows.

goodput_per_s    answers within their deadline, window by window
refused_share    of what was asked
late_share       of what was answered
drift            of goodput from the beginning to the end, along the line through the windows (1 is none)
evened_drift     the same of goodput over the mean speed of the cores in its window, which others may slow
slowed           by window, over the fastest that these cores were in any: told by a fixed product's CPU time
growth_mb        of the memory of the rank where it grew most, from the first fifth to the end
"""

from __future__ import annotations

import argparse
import asyncio
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from random import Random

import numpy as np

from bench._arrivals import CLASSES, MIX
from bench._core import Speed
from bench.harness import Figure, amount, check, positive, require
from bench.live import NAME, check_answers, close, shared
from weft.runtime.errors import Mistake
from weft.runtime.message import World, run
from weft.runtime.serve.client import Client
from weft.runtime.serve.request import Refused
from weft.runtime.serve.server import Server

REST_S = 0.005  # after a refusal
SAMPLES = 16  # different ones, whose answers are known
ON_TIME, LATE, REFUSED, RESIDENT, PRODUCT_S = range(5)  # what is kept of each window
FEEL_S = 2.0  # between two looks at the core's speed, of 10 ms


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--minutes", type=amount, default=30.0, metavar="N", help="of overload (30)")
    add("--windows", type=positive, default=30, metavar="N", help="that they are divided into (30)")
    add("--callers", type=positive, default=256, metavar="N", help="of all ranks together (256)")
    add("--model", type=Path, metavar="FILE", help="an ONNX file with one input of 3 x 32 x 32 pixels")


def main(args: argparse.Namespace) -> dict[str, Figure]:
    if args.windows < 5:
        raise Mistake(f"{args.windows} windows show no drift: give 5 or more")
    require("soak", {"onnx": "weft[onnx]"})
    return run(lambda world: measure(world, args)) or {}


async def measure(world: World, args: argparse.Namespace) -> dict[str, Figure]:
    """One rank's part."""
    with tempfile.TemporaryDirectory() as folder:
        root = await shared(world, folder, args.model)
        async with await Server.open(world, root, device="cpu"):
            callers = Callers(world, await Client.open(world), args)
            await callers.prepare(root)
            await world.barrier()
            own = await callers.run()
            await world.barrier()
        found = np.zeros((world.size, *own.shape))
        await world.allgather(own, found)
        return figures(found, 60 * args.minutes / args.windows) if world.rank == 0 else {}


class Callers:
    """This rank's callers, and what they count."""

    def __init__(self, world: World, client: Client, args: argparse.Namespace) -> None:
        self._rank, self._client = world.rank, client
        self._count = max(1, args.callers // world.size)
        self._window_s = 60 * args.minutes / args.windows
        self._counts = np.zeros((args.windows, 5))
        pixels = np.random.default_rng(2).standard_normal((SAMPLES, 1, 3, 32, 32), np.float32)
        self._samples, self._answers = list(pixels), [np.empty(0)] * SAMPLES

    async def prepare(self, root: Path) -> None:
        """Ask for all answers, one by one; rank 0 checks some."""
        for number, sample in enumerate(self._samples):
            result = await self._client.infer(NAME, sample, best_effort=True)
            (self._answers[number],) = result.outputs.values()
        if self._rank == 0:
            await check_answers(root, self._samples, self._answers)

    async def run(self) -> np.ndarray:
        """Ask until the end; what is known of each window."""
        self._begin_s = time.monotonic()
        async with asyncio.TaskGroup() as group:
            group.create_task(self._look())
            group.create_task(self._feel())
            for number in range(self._count):
                group.create_task(self._keep_asking(Random(1000 * self._rank + number)))
        return self._counts

    async def _look(self) -> None:
        page = os.sysconf("SC_PAGE_SIZE")
        for number in range(len(self._counts)):
            await asyncio.sleep(self._begin_s + (number + 1) * self._window_s - time.monotonic())
            resident = int(Path("/proc/self/statm").read_text().split()[1])
            self._counts[number, RESIDENT] = resident * page
            if self._rank == 0:
                per_s = self._counts[number, ON_TIME] / self._window_s
                told = f"{number + 1} of {len(self._counts)}: {per_s:.0f} a second on time on rank 0"
                print(f"soak: {told}, {resident * page / 2**20:.0f} MiB", file=sys.stderr)

    async def _feel(self) -> None:
        """How fast the core is in each window, in CPU time: the server's own share does not count."""
        speed = Speed()
        for number in range(len(self._counts)):
            end_s = self._begin_s + (number + 1) * self._window_s
            felt: list[float] = []
            while not felt or time.monotonic() < end_s:
                felt.append(await asyncio.to_thread(speed.product_s))
                await asyncio.sleep(min(FEEL_S, max(0.0, end_s - time.monotonic())))
            self._counts[number, PRODUCT_S] = statistics.mean(felt)

    async def _keep_asking(self, random: Random) -> None:
        while (window := int((time.monotonic() - self._begin_s) / self._window_s)) < len(self._counts):
            (each,) = random.choices(CLASSES, MIX)
            number = random.randrange(SAMPLES)
            asked_s = time.monotonic()
            try:
                result = await self._client.infer(
                    NAME, self._samples[number], qos=each.name, deadline_ms=1e3 * each.deadline_s
                )
            except Refused:
                self._counts[window, REFUSED] += 1
                await asyncio.sleep(REST_S)
                continue
            on_time = time.monotonic() <= asked_s + each.deadline_s
            self._counts[window, ON_TIME if on_time else LATE] += 1
            (output,) = result.outputs.values()
            check(
                close(output, self._answers[number]),
                f"rank {self._rank} got another's answer for sample {number}",
            )


def figures(found: np.ndarray, window_s: float) -> dict[str, Figure]:
    """From what all ranks counted: (ranks, windows, 5)."""
    on_time, late, refused = (found[:, :, kind].sum(axis=0) for kind in (ON_TIME, LATE, REFUSED))
    check(bool((on_time > 0).all()), f"a window without an answer on time: {on_time}")
    product_s = found[:, :, PRODUCT_S]
    speed = (product_s.min(axis=1, keepdims=True) / product_s).mean(axis=0)
    resident = found[:, :, RESIDENT]
    growth = (resident[:, -1] - resident[:, len(on_time) // 5]).max()
    return {
        "goodput_per_s": Figure.of(list(on_time / window_s), "/s"),
        "refused_share": Figure.of(list(refused / (on_time + late + refused)), ""),
        "late_share": Figure.of(list(late / (on_time + late)), ""),
        "drift": Figure.of([drift(on_time)], "x"),
        "evened_drift": Figure.of([drift(on_time / speed)], "x"),
        "slowed": Figure.of(list(1 / speed), "x"),
        "growth_mb": Figure.of([growth / 2**20], "MB"),
    }


def drift(series: np.ndarray) -> float:
    """The end of the line through a series over its beginning."""
    slope, start = np.polyfit(np.arange(len(series)), series, 1)
    return float(1 + slope * (len(series) - 1) / start)
