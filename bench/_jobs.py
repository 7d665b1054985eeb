"""Jobs of many small tasks for the combine bench: their shapes, their outputs by plain Python, two graphs."""

from __future__ import annotations

import math
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import median

import numpy as np
from numpy.typing import NDArray

from bench.harness import Figure, check, ratio
from weft.runtime.graph.candidates import Thresholds
from weft.runtime.graph.combine import Combined, combine
from weft.runtime.graph.tasks import Capacity, TaskGraph, TaskSpec

CHAIN, FAN = 50, 20
WORD = 2**64
PASSES = 5  # over all tasks, when their costs are measured
WAYS = ("uncombined", "combined", "loop")

Words = NDArray[np.uint64]


def chains(tasks: int) -> dict[str, list[str]]:
    """What each task reads."""
    return {
        f"chain{c}.{i}": [f"chain{c}.{i - 1}"] if i else []
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


def hub(tasks: int) -> dict[str, list[str]]:
    return fans(tasks, leaves=max(1, tasks - 2), prefix="hub.")


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

    It computes its sum `passes` times. (Sums of unsigned words wrap around alike in NumPy and, modulo 2^64,
    in Python.)
    """

    def __init__(self, needs: Mapping[str, Sequence[str]], words: int, passes: int = 1) -> None:
        self.passes = passes
        self.place = place = {name: index for index, name in enumerate(needs)}
        self.own = own = np.arange(len(needs) * words, dtype=np.uint64).reshape(len(needs), words)
        own *= np.uint64(0x9E3779B97F4A7C15)  # so that no two sums are alike
        self.outputs: Words = np.zeros_like(own)
        self.run: dict[str, Callable[[], None]] = {
            name: partial(
                add_up, own[place[name]], [self.outputs[place[need]] for need in reads], out, passes
            )
            for (name, reads), out in zip(needs.items(), self.outputs, strict=True)
        }
        self.expected: Words = np.empty_like(own)
        for index, reads in enumerate(needs.values()):
            columns = (own[index].tolist(), *(self.expected[place[need]].tolist() for need in reads))
            self.expected[index] = [sum(column) % WORD for column in zip(*columns, strict=True)]
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

    def loop(self) -> float:
        """Run all tasks one after the other, and say what that took."""
        start = time.perf_counter()
        for run in self.run.values():
            run()
        return time.perf_counter() - start

    def check(self, way: str) -> None:
        """All outputs are Python's."""
        wrong = int((self.outputs != self.expected).any(axis=1).sum())
        check(wrong == 0, f"{way}: the outputs of {wrong} of {len(self.outputs)} tasks are wrong")


def add_up(own: Words, reads: list[Words], out: Words, passes: int) -> None:
    for _ in range(passes):
        if not reads:
            out[:] = own
            continue
        np.add(own, reads[0], out=out)
        for each in reads[1:]:
            np.add(out, each, out=out)


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
        return cls(job, as_it_is(job.tasks), combined, planning_s)

    def graph(self, way: str) -> Combined:
        return self.combined if way == "combined" else self.uncombined


def as_it_is(tasks: TaskGraph) -> Combined:
    return Combined(tasks, {name: (name,) for name in tasks.by_name}, tasks)


def idle_chains() -> TaskGraph:
    """Tasks that do nothing, to measure what scheduling one takes."""
    return TaskGraph(
        tuple(TaskSpec(name, needs=dict.fromkeys(reads, 0)) for name, reads in chains(1000).items())
    )


def times(prefix: str, samples: Mapping[str, Sequence[float]]) -> dict[str, Figure]:
    """Figures of a shape's times by way."""
    return {
        f"{prefix}time_over_uncombined": ratio(samples["combined"], samples["uncombined"]),
        f"{prefix}loop_over_uncombined": ratio(samples["loop"], samples["uncombined"]),
        f"{prefix}uncombined_ms": Figure.of(samples["uncombined"], "ms", 1e3),
    }


def costs(
    ways: Ways, samples: Mapping[str, Sequence[float]], overheads: Sequence[float]
) -> dict[str, Figure]:
    """Figures of what scheduling a task takes, the task itself, and combining it."""
    tasks = [task.seconds for task in ways.job.tasks.tasks if task.seconds is not None]
    pairs = zip(samples["uncombined"], samples["combined"], strict=True)
    saved_s = median(uncombined - combined for uncombined, combined in pairs)
    return {
        "paid_after": Figure.of([ways.planning_s / saved_s if saved_s > 0 else math.inf], "runs"),
        "overhead_us": Figure.of(overheads, "us", 1e6),
        "task_us": Figure.of(tasks, "us", 1e6),
        "planning_us": Figure.of([ways.planning_s / len(tasks)], "us", 1e6),
    }
