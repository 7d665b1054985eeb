"""The jobs of the combine bench on the pool of several ranks: rank 0 submits, whoever is idle runs.

A task's own array lies on every rank; what it reads, and its output, travel. Each rank keeps the outputs of
the tasks that it ran: after a run every output is checked, also those inside a combined task, which nobody
sent home.
"""

from __future__ import annotations

import argparse
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from statistics import median

import numpy as np

from bench._jobs import PASSES, SHAPES, WAYS, Job, Ways, Words, add_up, as_it_is, costs, idle_chains, times
from bench.harness import Figure, check, interleaved
from weft.runtime.graph.candidates import Thresholds
from weft.runtime.graph.combine import Combined
from weft.runtime.message import World
from weft.runtime.work.pool import Pool
from weft.runtime.work.pool.graphs import Call, run_graph
from weft.runtime.work.pool.parcel import Result
from weft.runtime.work.pool.tally import Tally

UNITS = {
    "tasks": "tasks",
    "messages": "",
    "steals": "",
    "stolen": "tasks",
    "stolen_kb": "kB",
    "home": "results",
    "far": "tasks",
}
"""What is counted over all ranks in a run."""

OF_EACH = ("tasks", "messages")
"""What is told of each shape, not of the mixture alone."""


class Part:
    """One rank's part in a job: the function of its tasks, and which of them ran here."""

    def __init__(self, shape: str, job: Job) -> None:
        self.job = job
        self.calls = {name: Call(shape, index) for name, index in job.place.items()}
        self._ran = np.zeros(len(job.outputs), np.int64)

    def add_up(self, pool: Pool, index: int, needs: Sequence[Result] = ()) -> Words:
        """The task: the same as that of the lane, but what it reads has come with it."""
        self._ran[index] += 1
        out: Words = self.job.outputs[index]
        add_up(self.job.own[index], [need.arrays[0] for need in needs], out, self.job.passes)
        return out

    def forget(self) -> None:
        """Begin anew."""
        self.job.forget()
        self._ran[:] = 0

    async def check(self, way: str, world: World) -> None:
        """Every task ran once, on one of the ranks, and its output there is Python's."""
        self.job.outputs[self._ran == 0] = 0
        await world.allreduce(self._ran)
        await world.allreduce(self.job.outputs)
        wrong = int((self._ran != 1).sum())
        check(wrong == 0, f"{way}: {wrong} of {len(self._ran)} tasks did not run once")
        self.job.check(way)

    def check_results(self, way: str, results: Mapping[str, Result]) -> None:
        """What has come home is Python's, too."""
        for name, result in results.items():
            right = np.array_equal(result.arrays[0], self.job.expected[self.job.place[name]])
            check(right, f"{way}: the result of {name} that came home is wrong")


def nothing(pool: Pool, body: None, needs: Sequence[Result] = ()) -> None:
    pass


async def figures(args: argparse.Namespace, world: World) -> dict[str, Figure]:
    """One rank's part of the bench; rank 0 plans, submits, and has the figures."""
    parts = {
        shape: Part(shape, Job(make(args.tasks), args.words, args.passes)) for shape, make in SHAPES.items()
    }
    functions = {shape: part.add_up for shape, part in parts.items()}
    jobs: dict[str, Ways] = {}
    walls: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    happened: dict[str, dict[str, list[dict[str, float]]]] = defaultdict(lambda: defaultdict(list))
    async with await Pool.open(world, {"nothing": nothing, **functions}) as pool:
        overheads = await overhead(world, pool)
        if world.rank == 0:
            thresholds = Thresholds.measured(
                median(overheads), neighbours=args.neighbours, workers=args.workers or world.size
            )
            jobs = {shape: Ways.of(part.job, thresholds) for shape, part in parts.items()}
        names = [f"{shape} {way}" for shape in SHAPES for way in WAYS]
        for name, kept in interleaved(names, args.repetitions):
            shape, way = name.split()
            wall_s, counts = await once(world, pool, parts[shape], way, jobs.get(shape))
            if kept:
                walls[shape][way].append(wall_s)
                happened[shape][way].append(counts)
    if world.rank:
        return {}
    found: dict[str, Figure] = {}
    for shape in SHAPES:
        prefix = "" if shape == "mixture" else f"{shape}_"
        found |= times(prefix, walls[shape])
        for count in OF_EACH if prefix else UNITS:
            for when, way in (("before", "uncombined"), ("after", "combined")):
                each = [counts[count] for counts in happened[shape][way]]
                found[f"{prefix}{count}_{when}"] = Figure.of(each, UNITS[count])
    return found | costs(jobs["mixture"], walls["mixture"], overheads)


async def overhead(world: World, pool: Pool) -> list[float]:
    """Seconds that the pool spends on a task, everything counted: chains that do nothing."""
    tasks = idle_chains()
    calls = dict.fromkeys(tasks.by_name, Call("nothing"))
    graph = as_it_is(tasks) if world.rank == 0 else None
    samples = [(await run_once(world, pool, graph, calls))[0] for _ in range(PASSES + 1)]
    return [wall_s / len(tasks.tasks) for wall_s in samples[1:]]


async def once(
    world: World, pool: Pool, part: Part, way: str, ways: Ways | None
) -> tuple[float, dict[str, float]]:
    """Run a job in one way and check it; what it took on rank 0, and what happened on all ranks."""
    part.forget()
    await world.barrier()
    if way == "loop":
        if ways is None:
            return 0.0, {}
        wall_s = part.job.loop()
        part.job.check(way)
        return wall_s, {}
    graph = ways.graph(way) if ways else None
    wall_s, results, tally = await run_once(world, pool, graph, part.calls)
    await part.check(way, world)
    counts = await over_all(world, tally)
    if graph is not None:
        part.check_results(way, results)
        tasks = len(graph.tasks.tasks)
        check(counts["tasks"] == tasks, f"{way}: {counts['tasks']:.0f} tasks ran, not {tasks}")
    return wall_s, counts


async def run_once(
    world: World, pool: Pool, graph: Combined | None, calls: Mapping[str, Call]
) -> tuple[float, dict[str, Result], Tally]:
    """Run a graph that one rank submits; its seconds from the first submission to the last result."""
    wall_s, results = 0.0, {}

    async def ask(graph: Combined) -> None:
        nonlocal wall_s, results
        start = time.perf_counter()
        results = await run_graph(pool, graph, calls)
        wall_s = time.perf_counter() - start

    tally = await pool.run(ask(graph) if graph else None)
    return wall_s, results, tally


async def over_all(world: World, tally: Tally) -> dict[str, float]:
    """What happened on all ranks, from their tallies."""
    home = tally.ran if world.rank else 0  # what ran elsewhere: rank 0 has submitted it all
    counts = {
        "tasks": tally.ran,
        "messages": tally.stolen + home,
        "steals": tally.steals,
        "stolen": tally.stolen,
        "stolen_kb": sum(lane.nbytes for lane in tally.lanes) / 1e3,
        "home": home,
        "far": tally.far,
    }
    total = np.array([counts[count] for count in UNITS], np.float64)
    await world.allreduce(total)
    return dict(zip(UNITS, total.tolist(), strict=True))
