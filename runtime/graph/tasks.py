"""What is to be scheduled, as plain data: tasks, what each demands, and the bytes that travel between them.

    TaskGraph((TaskSpec("a", seconds=2e-6, output_bytes=800),
               TaskSpec("b", seconds=3e-6, needs={"a": 800}, result=True)))

No function and no array is in here: who executes finds both by the task's name. A model's graph becomes one
task a kernel (`of_model`); a user's own tasks are written down as above.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from heapq import heapify, heappop, heappush
from math import inf
from types import MappingProxyType
from typing import Any

import numpy as np

from ...kernels.kernel import ArraySpec, Cost
from ..errors import GraphError, Mistake
from .graph import Graph
from .metadata import describe

NOTHING: Mapping[str, int] = MappingProxyType({})
SHOWN = 8  # names of a cycle that a message spells out


def amount(value: Any, least: float = 0) -> bool:
    """Whether it is a number, and that much or more: text is none, as a table may hold it, nor is NaN."""
    return isinstance(value, int | float | np.integer | np.floating) and bool(value >= least)


def whole(value: Any, least: int = 0) -> bool:
    """Whether it is a whole number, and that much or more."""
    return isinstance(value, int | np.integer) and bool(value >= least)


@dataclass(frozen=True, slots=True)
class TaskSpec:
    """One task: its estimated cost, its demand, and the tasks whose output it reads, with the bytes of each.

    A task holds its inputs, its scratch and its output while it runs, on one device of kind `device` (None:
    any). `result` says that somebody outside the graph waits for its output, whoever reads it inside.
    """

    name: str
    seconds: float | None = None  # estimated; None where nobody knows
    needs: Mapping[str, int] = field(default_factory=lambda: NOTHING, hash=False)
    output_bytes: int = 0
    argument_bytes: int = 0  # given to it beside the outputs of other tasks
    scratch_bytes: int = 0
    lanes: int = 1
    device: str | None = None
    priority: int = 0  # smallest first, as in a lane
    result: bool = False

    @property
    def input_bytes(self) -> int:
        """What must be where it runs before it starts."""
        return self.argument_bytes + sum(self.needs.values())

    @property
    def memory_bytes(self) -> int:
        """What it holds while it runs."""
        return self.input_bytes + self.scratch_bytes + self.output_bytes


@dataclass(frozen=True, slots=True)
class Capacity:
    """What a device has, or has left: lanes that may run at once, and bytes of memory for tasks."""

    lanes: int
    memory_bytes: int
    device: str = "cpu"

    def fits(self, task: TaskSpec) -> bool:
        """Whether `task` may run here and now."""
        return (
            task.device in (None, self.device)
            and task.lanes <= self.lanes
            and task.memory_bytes <= self.memory_bytes
        )


def devices(given: Sequence[Capacity]) -> tuple[Capacity, ...]:
    """What there is, checked; Mistake for what is no list of capacities, one alone among it."""
    if isinstance(given, Capacity):
        raise Mistake(f"{given} stands alone; give a list of what there is, [{given}]")
    if wrong := [each for each in given if not isinstance(each, Capacity)]:
        raise Mistake(
            f"{wrong[0]!r} is no Capacity; give a list of these, [Capacity(lanes=4, memory_bytes=8 << 30)]"
        )
    for each in given:
        if not (amount(each.lanes) and amount(each.memory_bytes)):
            raise Mistake(f"{each}: lanes and memory_bytes are numbers, 0 or more")
    return tuple(given)


@dataclass(frozen=True)
class TaskGraph:
    """Tasks and their dependency relationship; kept in topological order, in whatever order they are given.

    Raises GraphError for a doubled name, an unknown need, more bytes read than are written, and for a cycle,
    which it names.
    """

    tasks: tuple[TaskSpec, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "tasks", tuple(self.tasks))
        named: dict[str, TaskSpec] = {}
        for task in self.tasks:
            if task.name in named:
                raise GraphError(f"two tasks are called {task.name!r}; give one of them another name")
            named[task.name] = task
        for task in self.tasks:
            _check(task, named)
        object.__setattr__(self, "tasks", _in_topological_order(self.tasks, self.readers))

    @cached_property
    def by_name(self) -> Mapping[str, TaskSpec]:
        """Tasks by name."""
        return {task.name: task for task in self.tasks}

    @cached_property
    def readers(self) -> Mapping[str, tuple[str, ...]]:
        """For every task the tasks that need it."""
        found: dict[str, list[str]] = {task.name: [] for task in self.tasks}
        for task in self.tasks:
            for need in task.needs:
                found[need].append(task.name)
        return {name: tuple(readers) for name, readers in found.items()}

    @property
    def messages(self) -> int:
        """Dependencies: each is a message where its two tasks run on different ranks."""
        return sum(len(task.needs) for task in self.tasks)


def _check(task: TaskSpec, named: Mapping[str, TaskSpec]) -> None:
    seconds = 0 if task.seconds is None else task.seconds
    amounts = (seconds, task.output_bytes, task.argument_bytes, task.scratch_bytes)
    if not (all(map(amount, amounts)) and amount(task.lanes, 1) and amount(task.priority, -inf)):
        raise GraphError(
            f"task {task.name!r}: {task}: seconds and bytes are numbers, 0 or more, lanes 1 or more, and the"
            " priority is a number"
        )
    if not isinstance(task.needs, Mapping):
        raise GraphError(
            f"task {task.name!r} needs {task.needs!r}; give the bytes that it reads of each, as in"
            " needs={'load': 800}"
        )
    for need, nbytes in task.needs.items():
        if need not in named:
            raise GraphError(
                f"task {task.name!r} needs {need!r}, which is no task of the graph;"
                f" there are {', '.join(sorted(named)[:SHOWN])}{', ...' if len(named) > SHOWN else ''}"
            )
        if not amount(nbytes):
            raise GraphError(
                f"task {task.name!r} reads {nbytes!r} bytes of {need!r}; give a number, 0 or more"
            )
        if nbytes > named[need].output_bytes:
            raise GraphError(
                f"task {task.name!r} reads {nbytes} bytes of {need!r}, whose output has"
                f" {named[need].output_bytes}; give {need!r} the output_bytes that it writes"
            )


def _in_topological_order(
    tasks: tuple[TaskSpec, ...], readers: Mapping[str, tuple[str, ...]]
) -> tuple[TaskSpec, ...]:
    """The given order, except where a task stands before one that it needs."""
    position = {task.name: index for index, task in enumerate(tasks)}
    waits = [len(task.needs) for task in tasks]
    ready = [index for index, count in enumerate(waits) if count == 0]
    heapify(ready)
    ordered = []
    while ready:
        task = tasks[heappop(ready)]
        ordered.append(task)
        for reader in readers[task.name]:
            waits[position[reader]] -= 1
            if waits[position[reader]] == 0:
                heappush(ready, position[reader])
    if len(ordered) < len(tasks):
        left = {task.name: task for index, task in enumerate(tasks) if waits[index]}
        cycle = _cycle(left)
        if len(cycle) > SHOWN:
            cycle[SHOWN - 2 : -2] = [f"... {len(cycle) - SHOWN} more ..."]
        raise GraphError(
            f"tasks wait for each other in a circle, {' -> '.join(cycle)}: remove one of these dependencies"
        )
    return tuple(ordered)


def _cycle(left: Mapping[str, TaskSpec]) -> list[str]:
    """A circle among tasks each of which needs another of them, from a task along readers back to itself."""
    walked: dict[str, int] = {}
    name = next(iter(left))
    while name not in walked:
        walked[name] = len(walked)
        name = next(need for need in left[name].needs if need in left)
    circle = list(walked)[walked[name] :]
    return [name, *reversed(circle)]


@dataclass(frozen=True, slots=True)
class Rates:
    """How fast this machine computes, measured: what turns a kernel's operations and bytes into seconds.

    `call_s` passes in a call however little it computes; 5 us is the shortest kernel here.
    """

    flops_per_s: float
    bytes_per_s: float
    call_s: float = 5e-6

    def seconds(self, cost: Cost) -> float:
        """Of one forward call: arithmetic or memory is what it waits for."""
        return self.call_s + max(cost.forward_flops / self.flops_per_s, cost.bytes / self.bytes_per_s)


def of_model(graph: Graph, batch: int, rates: Rates) -> TaskGraph:
    """The forward pass of a model for `batch` samples, one task a kernel.

    Weights are no part of a demand: they lie in memory whether or not the task runs.
    """
    specs = graph.specs(batch)
    tasks = []
    for name, found in describe(graph, batch).items():
        node = graph.by_name[name]
        inputs = graph.input_specs(node, specs)
        workspace = (*node.kernel.saved(*inputs), *node.kernel.scratch(*inputs))
        tasks.append(
            TaskSpec(
                name,
                seconds=0.0 if node.kernel.view else rates.seconds(found.cost),
                needs={value: specs[value].nbytes for value in node.inputs if value in graph.by_name},
                output_bytes=specs[name].nbytes,
                argument_bytes=_nbytes(specs[value] for value in set(node.inputs) & set(graph.inputs)),
                scratch_bytes=_nbytes(workspace),
                device=found.device,
                priority=found.priority,
                result=name in graph.outputs,
            )
        )
    return TaskGraph(tuple(tasks))


def _nbytes(specs: Iterable[ArraySpec]) -> int:
    return sum(spec.nbytes for spec in specs)
