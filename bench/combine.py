"""A job of many small tasks, as they are and combined: on one lane, or on the pool of several ranks.

python -m bench combine
mpirun -n 2 python -m bench combine
mpirun -n 2 python -m bench combine --passes 30     # tasks of some 20 us, which are worth stealing

time_over_uncombined       from the first submission to the last end, combined over as they are
tasks_before, tasks_after  of the mixture; `chains_tasks_before` and so on of each shape
messages_before, _after    on one rank dependencies between tasks: messages, where the two run on different
                           ranks; on several what went from one rank to another, stolen and home together
stolen_before, _after      tasks that a rank has taken from another, in so many `steals_...`; `stolen_kb_...`
                           with what they need; `far_...` of them by message, not through shared memory
home_before, _after        results that went home to rank 0, which submits, from others
loop_over_uncombined       a plain loop over the functions, over the tasks as they are: the least on one rank
overhead_us                what the lane, or the pool, spends on a task, measured first: the thresholds
                           follow from it
task_us                    what one of the tasks takes, median
planning_us                what combining takes, once a job, for each task
paid_after                 runs of the job until they have saved what combining took

Shapes: chains of 50; fans (a task that 20 read, joined by one); a hub (the same with all tasks but two); the
mixture of a third of each. Every output of every repetition is compared with plain Python's.
"""

from __future__ import annotations

import argparse
import asyncio
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from statistics import median

from bench import _combine_ranks
from bench._jobs import PASSES, SHAPES, WAYS, Job, Ways, as_it_is, costs, idle_chains, times
from bench.harness import Figure, interleaved, positive
from weft.kernels.device import Device
from weft.kernels.lane import Task
from weft.runtime.graph.candidates import Thresholds
from weft.runtime.graph.combine import Combined
from weft.runtime.message import mpi, run
from weft.runtime.work import Compute


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--repetitions", type=positive, default=9, metavar="N", help="rounds")
    add("--tasks", type=positive, default=2000, metavar="N", help="of a job, about (2000)")
    add("--words", type=positive, default=64, metavar="N", help="of a task's output, 8 bytes each (64)")
    add("--passes", type=positive, default=1, metavar="N", help="how often a task computes its sum (1)")
    add("--neighbours", type=positive, default=8, metavar="N", help="from which a task is a hub (8)")
    add("--workers", type=positive, metavar="N", help="lanes to leave work for (as many as ranks)")


def main(args: argparse.Namespace) -> dict[str, Figure]:
    _, ranks = mpi.launched_as() or (0, 1)
    if ranks > 1:
        return run(partial(_combine_ranks.figures, args)) or {}
    return asyncio.run(figures(args))


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
    for each in runs:
        each()


async def seconds(ways: Ways, way: str, compute: Compute) -> float:
    """Run the job in one way, check what it gave, and say what it took."""
    ways.job.forget()
    if way == "loop":
        taken_s = ways.job.loop()
    else:
        start = time.perf_counter()
        await execute(compute, ways.graph(way), ways.job.run)
        taken_s = time.perf_counter() - start
    ways.job.check(way)
    return taken_s


async def execute(compute: Compute, combined: Combined, run: Mapping[str, Callable[[], None]]) -> None:
    done = asyncio.Event()
    tasks = list(lane_tasks(combined, run))
    readers = combined.tasks.readers
    last = [task for task in tasks if not readers[task.name]]
    compute.submit([*tasks, Task("end", lambda: None, last, notify=compute.tell(done.set))])
    await compute.wait(done)


async def overhead(compute: Compute) -> list[float]:
    """Seconds that the lane spends on a task, and asyncio on handing it over: chains that do nothing."""
    tasks = idle_chains()
    samples = []
    for _ in range(PASSES + 1):
        start = time.perf_counter()
        await execute(compute, as_it_is(tasks), dict.fromkeys(tasks.by_name, in_no_time))
        samples.append((time.perf_counter() - start) / len(tasks.tasks))
    return samples[1:]


def in_no_time() -> None:
    pass


async def figures(args: argparse.Namespace) -> dict[str, Figure]:
    samples: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    async with Compute(Device()) as compute:
        overheads = await overhead(compute)
        thresholds = Thresholds.measured(
            median(overheads), neighbours=args.neighbours, workers=args.workers or 1
        )
        jobs = {
            name: Ways.of(Job(make(args.tasks), args.words, args.passes), thresholds)
            for name, make in SHAPES.items()
        }
        names = [f"{shape} {way}" for shape in jobs for way in WAYS]
        for name, counts in interleaved(names, args.repetitions):
            shape, way = name.split()
            taken_s = await seconds(jobs[shape], way, compute)
            if counts:
                samples[shape][way].append(taken_s)
    found: dict[str, Figure] = {}
    for shape, ways in jobs.items():
        prefix = "" if shape == "mixture" else f"{shape}_"
        before, after = ways.job.tasks, ways.combined.tasks
        found |= times(prefix, samples[shape]) | {
            f"{prefix}tasks_before": Figure.of([len(before.tasks)], "tasks"),
            f"{prefix}tasks_after": Figure.of([len(after.tasks)], "tasks"),
            f"{prefix}messages_before": Figure.of([before.messages], "edges"),
            f"{prefix}messages_after": Figure.of([after.messages], "edges"),
        }
    return found | costs(jobs["mixture"], samples["mixture"], overheads)
