"""How late the event loop is while the lane's thread computes without a pause.

mpirun -n 2 python -m bench loop

lag_p99_ms, lag_p50_ms, lag_max_ms
                   how much later than asked a timer of 1 ms fires while kernels run back to back (products,
                   small and large, and fused optimizer updates), and 1 KB is all-reduced every 8 ms
lag_bulk_p99_ms    the same while 1 MB is all-reduced every 8 ms: adding it up takes the loop's thread too
wake_p99_ms        from a thread's call_soon_threadsafe to the callback, as in lag_p99_ms
lane_over_alone    kernels done per second (with 1 KB), over those without any activity of the loop
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import statistics
import time
from collections import defaultdict
from collections.abc import Iterator

import numpy as np

from bench.harness import Figure, amount, check, interleaved, positive, ratio
from weft.kernels.blas import limit_threads
from weft.kernels.lane import Lane, Task
from weft.kernels.optimizer import Adam
from weft.runtime.message import World, run

SMALL, LARGE = 250, 250_000  # floats
EVERY_S = 0.008  # 1 MB so often is 1 Gbit/s
LEAST = 5  # measurements, however slow the machine is


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--repetitions", type=positive, default=5, metavar="N", help="rounds")
    parser.add_argument("--seconds", type=amount, default=2.0, metavar="N", help="length of a repetition")


def main(args: argparse.Namespace) -> dict[str, Figure]:
    return run(lambda world: figures(world, args)) or {}


async def figures(world: World, args: argparse.Namespace) -> dict[str, Figure]:
    limit_threads(1)
    samples: dict[str, list[float]] = defaultdict(list)
    work = Work()
    for name, counts in interleaved(["small", "bulk", "alone"], args.repetitions):
        await world.barrier()
        if name == "alone":
            measured = {"rate": await alone(world, work, args.seconds)}
        else:
            measured = await busy(world, work, args.seconds, SMALL if name == "small" else LARGE)
        if counts:
            for key, value in measured.items():
                samples[f"{name} {key}"].append(value)
    for key in samples:
        if "rate" not in key:
            samples[key] = await _largest(world, samples[key])
    return {
        "lag_p99_ms": Figure.of(samples["small p99"], "ms", 1e3),
        "lag_p50_ms": Figure.of(samples["small p50"], "ms", 1e3),
        "lag_max_ms": Figure.of(samples["small max"], "ms", 1e3),
        "lag_bulk_p99_ms": Figure.of(samples["bulk p99"], "ms", 1e3),
        "wake_p99_ms": Figure.of(samples["small wake"], "ms", 1e3),
        "lane_over_alone": ratio(samples["small rate"], samples["alone rate"]),
    }


async def _largest(world: World, values: list[float]) -> list[float]:
    array = np.array(values)
    await world.allreduce(array, "max")
    return list(array)


class Work:
    """Kernels of 5 us to 2 ms, whose results are known."""

    def __init__(self) -> None:
        random = np.random.default_rng(0)
        self.small, self.large = (random.random((n, n), np.float32) for n in (64, 512))
        self.small_out, self.large_out = np.empty_like(self.small), np.empty_like(self.large)
        self.parameters = np.zeros(1_000_000, np.float32)
        self.gradients = np.ones_like(self.parameters)
        self.states = (np.zeros_like(self.parameters), np.zeros_like(self.parameters))
        self.updates = 0
        self._update()  # compiles it

    def kernels(self) -> Iterator[Task]:
        """Without end."""
        for i in itertools.count():
            if i % 20 == 0:
                yield Task("large product", self._multiply_large)
            elif i % 20 == 10:
                yield Task("update", self._update)
            else:
                yield Task("small product", self._multiply_small)

    def _multiply_small(self) -> None:
        np.matmul(self.small, self.small, out=self.small_out)

    def _multiply_large(self) -> None:
        np.matmul(self.large, self.large, out=self.large_out)

    def _update(self) -> None:
        self.updates += 1
        Adam().update(self.parameters, self.gradients, self.states, rate=1e-3, step=self.updates)

    def check(self) -> None:
        """The last results are right; all gradients are 1, so Adam takes a step of `rate` each time."""
        check(np.allclose(self.small_out, self.small @ self.small), "a small product is wrong")
        check(np.allclose(self.large_out, self.large @ self.large), "a large product is wrong")
        wanted = -1e-3 * self.updates
        check(np.allclose(self.parameters, wanted, rtol=1e-2), f"{self.parameters[0]} is not {wanted}")
        for out in (self.small_out, self.large_out):
            out.fill(np.nan)  # or kernels that stop computing would leave what is right the next time, too


class Worker:
    """A lane that is never without work; counts the kernels that ran."""

    def __init__(self, work: Work) -> None:
        self.lane = Lane(spans=self._count)
        self._tasks = work.kernels()
        self.done = 0
        self._submit()

    def _submit(self) -> None:
        # The last of a batch orders the next one before the batch is over: the lane never runs dry.
        batch = list(itertools.islice(self._tasks, 40))
        batch[20].notify = lambda _: self._submit()
        self.lane.submit(batch)

    def _count(self, task: Task, start_ns: int, end_ns: int) -> None:
        self.done += 1


async def busy(world: World, work: Work, seconds: float, floats: int) -> dict[str, float]:
    worker = Worker(work)
    world.selector.computing = lambda: worker.lane.busy
    over = time.perf_counter() + seconds
    traffic = asyncio.create_task(_traffic(world, over, floats))
    waking = asyncio.create_task(_wakes(world, over))
    lags: list[float] = []
    start, before = time.perf_counter(), worker.done
    while (now := time.perf_counter()) < over or len(lags) < LEAST:
        await asyncio.sleep(1e-3)
        lags.append(time.perf_counter() - now - 1e-3)
    rate = (worker.done - before) / (time.perf_counter() - start)
    await traffic
    wakes = await waking
    world.selector.computing = lambda: False
    await asyncio.to_thread(worker.lane.close)
    work.check()
    check(rate > 0, "the lane ran no kernel meanwhile")
    p99 = statistics.quantiles(lags, n=100, method="inclusive")[98]  # "exclusive" goes beyond the greatest
    return {
        "p50": statistics.median(lags),
        "p99": p99,
        "max": max(lags),
        "wake": statistics.quantiles(wakes, n=100, method="inclusive")[98],
        "rate": rate,
    }


async def _traffic(world: World, over: float, floats: int) -> None:
    portion = np.ones(floats, np.float32)
    going = np.ones(1)
    while going[0]:
        portion[:] = 1
        going[0] = time.perf_counter() < over
        await asyncio.gather(world.allreduce(portion), world.allreduce(going, "min"), asyncio.sleep(EVERY_S))
        check(bool(portion[0] == portion[-1] == world.size), f"the all-reduce gave {portion[0]}")


async def _wakes(world: World, over: float) -> list[float]:
    """Every 20 ms a thread wakes the loop."""
    wakes: list[float] = []

    def answer(rung: float) -> None:
        wakes.append(time.perf_counter() - rung)

    def ring() -> None:
        rung = 0
        while time.perf_counter() < over or rung < LEAST:
            time.sleep(0.02)
            world.loop.call_soon_threadsafe(answer, time.perf_counter())
            rung += 1

    await asyncio.to_thread(ring)
    await asyncio.sleep(0)
    return wakes


async def alone(world: World, work: Work, seconds: float) -> float:
    worker = Worker(work)
    world.selector.computing = lambda: worker.lane.busy
    start, before = time.perf_counter(), worker.done
    await asyncio.sleep(seconds)
    rate = (worker.done - before) / (time.perf_counter() - start)
    world.selector.computing = lambda: False
    await asyncio.to_thread(worker.lane.close)
    work.check()
    return rate
