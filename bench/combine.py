"""A job of many small tasks on one lane, as they are and combined.

python -m bench combine

time_over_uncombined       from the first submission to the last end, combined over as they are
tasks_before, tasks_after  of the mixture; `chains_tasks_before` and so on of each shape
messages_before, _after    dependencies between tasks: messages, where the two run on different ranks
loop_over_uncombined       a plain loop over the functions, over the tasks as they are: the least there can be
overhead_us                what the lane spends on a task, measured first: the thresholds follow from it
task_us                    what one of the tasks takes, median
planning_us                what combining takes, once a job, for each task
paid_after                 runs of the job until they have saved what combining took

Shapes: chains of 50; fans (a task that 20 read, joined by one); a hub (the same with all tasks but two); the
mixture of a third of each. Every output of every repetition is compared with plain Python's.
"""

from __future__ import annotations

import argparse
import asyncio
import math
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import median

import numpy as np
from numpy.typing import NDArray

from bench.harness import Figure, check, interleaved, ratio
from weft.kernels.device import Device
from weft.kernels.lane import Task
from weft.runtime.graph.candidates import Thresholds
from weft.runtime.graph.combine import Combined, combine
from weft.runtime.graph.tasks import Capacity, TaskGraph, TaskSpec
from weft.runtime.work import Compute

CHAIN, FAN = 50, 20
WORD = 2**64
PASSES = 5  # over all tasks, when their costs are measured
WAYS = ("uncombined", "combined", "loop")

Words = NDArray[np.uint64]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--repetitions", type=int, default=9, metavar="N")
    add("--tasks", type=int, default=2000, metavar="N", help="of a job, about (2000)")
    add("--words", type=int, default=64, metavar="N", help="of a task's output, 8 bytes each (64)")
    add("--neighbours", type=int, default=8, metavar="N", help="from which a task is a hub (8)")
    add("--workers", type=int, default=1, metavar="N", help="lanes to leave work for; one runs it all (1)")


def main(args: argparse.Namespace) -> dict[str, Figure]:
    return asyncio.run(figures(args))


def chains(tasks: int, prefix: str = "") -> dict[str, list[str]]:
    """What each task reads."""
    return {
        f"{prefix}chain{c}.{i}": [f"{prefix}chain{c}.{i - 1}"] if i else []
        for c in range(max(1, tasks // CHAIN))
        for i in range(CHAIN)
    }


def fans(tasks: int, leaves: int = FAN, prefix: str = "") -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for f in range(max(1, tasks // (leaves + 2))):
        names = [f"{prefix}fan{f}.{i}" for i in range(leaves)]
        found |= {f"{prefix}fan{f}": []} | {name: [f"{prefix}fan{f}"] for name in names}
        found[f"{prefix}fan{f}.join"] = names
    return found


def hub(tasks: int, prefix: str = "hub.") -> dict[str, list[str]]:
    return fans(tasks, leaves=max(1, tasks - 2), prefix=prefix)


def mixture(tasks: int) -> dict[str, list[str]]:
    return chains(tasks // 3) | fans(tasks // 3) | hub(tasks // 3)


SHAPES: dict[str, Callable[[int], dict[str, list[str]]]] = {
    "mixture": mixture,
    "chains": chains,
    "fans": fans,
    "hub": hub,
}


class Job:
    """Tasks with functions and outputs: each adds up what it reads, and an array of its own.

    (Sums of unsigned words wrap around alike in NumPy and, modulo 2^64, in Python.)
    """

    def __init__(self, needs: Mapping[str, Sequence[str]], words: int) -> None:
        place = {name: index for index, name in enumerate(needs)}
        own = np.arange(len(needs) * words, dtype=np.uint64).reshape(len(needs), words)
        own *= np.uint64(0x9E3779B97F4A7C15)  # so that no two sums are alike
        self.outputs: Words = np.zeros_like(own)
        self.run: dict[str, Callable[[], None]] = {
            name: partial(add_up, own[place[name]], [self.outputs[place[need]] for need in reads], out)
            for (name, reads), out in zip(needs.items(), self.outputs, strict=True)
        }
        self._expected: Words = np.empty_like(own)
        for index, reads in enumerate(needs.values()):
            columns = (own[index].tolist(), *(self._expected[place[need]].tolist() for need in reads))
            self._expected[index] = [sum(column) % WORD for column in zip(*columns, strict=True)]
        seconds = self._measured()
        self.tasks = TaskGraph(
            tuple(
                TaskSpec(name, seconds[name], dict.fromkeys(reads, words * 8), words * 8)
                for name, reads in needs.items()
            )
        )

    def _measured(self) -> dict[str, float]:
        """Seconds that each task takes."""
        samples: dict[str, list[float]] = defaultdict(list)
        for _ in range(PASSES):
            for name, run in self.run.items():
                start = time.perf_counter()
                run()
                samples[name].append(time.perf_counter() - start)
        return {name: median(each) for name, each in samples.items()}

    def forget(self) -> None:
        """No output is right any more: a task that runs too early, or not at all, is found out."""
        self.outputs[:] = np.random.default_rng().integers(WORD, size=self.outputs.shape, dtype=np.uint64)

    def check(self, way: str) -> None:
        """All outputs are Python's."""
        wrong = int((self.outputs != self._expected).any(axis=1).sum())
        check(wrong == 0, f"{way}: the outputs of {wrong} of {len(self.outputs)} tasks are wrong")


def add_up(own: Words, reads: list[Words], out: Words) -> None:
    if not reads:
        out[:] = own
        return
    np.add(own, reads[0], out=out)
    for each in reads[1:]:
        np.add(out, each, out=out)


def lane_tasks(combined: Combined, run: Mapping[str, Callable[[], None]]) -> Iterator[Task]:
    """A lane's tasks for those of the second graph; each runs its members."""
    made: dict[str, Task] = {}
    for spec in combined.tasks.tasks:
        own = [run[member] for member in combined.members[spec.name]]
        made[spec.name] = Task(
            spec.name, own[0] if len(own) == 1 else partial(in_turn, own), [made[need] for need in spec.needs]
        )
        yield made[spec.name]


def in_turn(runs: list[Callable[[], None]]) -> None:
    for run in runs:
        run()


@dataclass(frozen=True, slots=True)
class Ways:
    """A job as it is and combined."""

    job: Job
    uncombined: Combined
    combined: Combined
    planning_s: float

    @classmethod
    def of(cls, job: Job, thresholds: Thresholds) -> Ways:
        capacities = [Capacity(lanes=1, memory_bytes=1 << 30)]
        start = time.perf_counter()
        combined = combine(job.tasks, capacities, thresholds)
        planning_s = time.perf_counter() - start
        alone = {name: (name,) for name in job.tasks.by_name}
        return cls(job, Combined(job.tasks, alone, job.tasks), combined, planning_s)

    async def seconds(self, way: str, compute: Compute) -> float:
        """Run the job in one way, check what it gave, and say what it took."""
        self.job.forget()
        start = time.perf_counter()
        if way == "loop":
            for run in self.job.run.values():
                run()
        else:
            await execute(compute, self.combined if way == "combined" else self.uncombined, self.job.run)
        seconds = time.perf_counter() - start
        self.job.check(way)
        return seconds


async def execute(compute: Compute, combined: Combined, run: Mapping[str, Callable[[], None]]) -> None:
    done = asyncio.Event()
    tasks = list(lane_tasks(combined, run))
    readers = combined.tasks.readers
    last = [task for task in tasks if not readers[task.name]]
    compute.submit([*tasks, Task("end", lambda: None, last, notify=compute.tell(done.set))])
    await compute.wait(done)


async def overhead(compute: Compute) -> list[float]:
    """Seconds that the lane spends on a task, and asyncio on handing it over: chains that do nothing."""
    tasks = TaskGraph(
        tuple(TaskSpec(name, needs=dict.fromkeys(reads, 0)) for name, reads in chains(1000).items())
    )
    alone = Combined(tasks, {name: (name,) for name in tasks.by_name}, tasks)
    samples = []
    for _ in range(PASSES + 1):
        start = time.perf_counter()
        await execute(compute, alone, dict.fromkeys(tasks.by_name, in_no_time))
        samples.append((time.perf_counter() - start) / len(tasks.tasks))
    return samples[1:]


def in_no_time() -> None:
    pass


async def figures(args: argparse.Namespace) -> dict[str, Figure]:
    samples: dict[str, list[float]] = defaultdict(list)
    async with Compute(Device()) as compute:
        overheads = await overhead(compute)
        thresholds = Thresholds.measured(median(overheads), neighbours=args.neighbours, workers=args.workers)
        jobs = {name: Ways.of(Job(make(args.tasks), args.words), thresholds) for name, make in SHAPES.items()}
        names = [f"{shape} {way}" for shape in jobs for way in WAYS]
        for name, counts in interleaved(names, args.repetitions):
            shape, way = name.split()
            seconds = await jobs[shape].seconds(way, compute)
            if counts:
                samples[name].append(seconds)
    found: dict[str, Figure] = {}
    for shape, ways in jobs.items():
        prefix = "" if shape == "mixture" else f"{shape}_"
        before, after = ways.job.tasks, ways.combined.tasks
        times = {way: samples[f"{shape} {way}"] for way in WAYS}
        found |= {
            f"{prefix}time_over_uncombined": ratio(times["combined"], times["uncombined"]),
            f"{prefix}loop_over_uncombined": ratio(times["loop"], times["uncombined"]),
            f"{prefix}tasks_before": Figure.of([len(before.tasks)], "tasks"),
            f"{prefix}tasks_after": Figure.of([len(after.tasks)], "tasks"),
            f"{prefix}messages_before": Figure.of([before.messages], "edges"),
            f"{prefix}messages_after": Figure.of([after.messages], "edges"),
            f"{prefix}uncombined_ms": Figure.of(times["uncombined"], "ms", 1e3),
        }
    mixed = jobs["mixture"]
    costs = [task.seconds for task in mixed.job.tasks.tasks if task.seconds is not None]
    pairs = zip(samples["mixture uncombined"], samples["mixture combined"], strict=True)
    saved_s = median(uncombined - combined for uncombined, combined in pairs)
    return found | {
        "paid_after": Figure.of([mixed.planning_s / saved_s if saved_s > 0 else math.inf], "runs"),
        "overhead_us": Figure.of(overheads, "us", 1e6),
        "task_us": Figure.of(costs, "us", 1e6),
        "planning_us": Figure.of([mixed.planning_s / len(costs)], "us", 1e6),
    }
