"""Task graphs on a pool: every task's function by name, run across ranks, as they are or combined.

    graph = TaskGraph((TaskSpec("a", output_bytes=800), TaskSpec("b", needs={"a": 800}), ...))
    calls = {"a": Call("load", 3), "b": Call("scale"), ...}
    results = await run_graph(pool, graph, calls)                   # on one rank, in the main of `pool.run`
    results = await run_graph(pool, combine(graph, ...), calls)     # the same results with fewer tasks
    results = await run_graph(pool, graph, calls, within=[Capacity(lanes=8, memory_bytes=64 << 30)])

A task's function is called with the results of its needs in the order in which its `TaskSpec` names them, and
without `needs` where that names none. A combined task is one submission; each reader gets those parts of its
result that it needs.

Without `within` all tasks are submitted at once, and every rank runs one at a time: as many as there are
ranks hold their memory together. `within` tells what there is for all of them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ...errors import GraphError, Mistake
from ...graph.combine import Combined
from ...graph.schedule import Schedule
from ...graph.tasks import Capacity, TaskGraph, TaskSpec
from .group import GROUP
from .home import Need, Submission
from .parcel import Array, Result, pack, result_of, unpack
from .pool import Pool


@dataclass(frozen=True, slots=True)
class Call:
    """What a task of a graph calls: a function of the pool by name, with a body and arrays of its own."""

    function: str
    body: Any = None
    arrays: tuple[Array, ...] = ()


async def run_graph(
    pool: Pool,
    graph: TaskGraph | Combined,
    calls: Mapping[str, Call],
    *,
    within: Sequence[Capacity] | None = None,
) -> dict[str, Result]:
    """Run all tasks; the results of those that nobody reads, and of those marked `result`, by name.

    `within`: what all ranks together have for this graph, lanes and bytes, by kind of device. What the pool
    has been given and has not ended never demands more: the rest is deferred, and what fits is pulled forward
    past it (graph/ready.py). Which rank runs what is the pool's choice all the same.

    From the rank that is to have the results. GraphError if a task has no call or can never fit; TaskError if
    one failed.
    """
    if not isinstance(graph, TaskGraph | Combined):
        raise Mistake(
            f"the graph is a {type(graph).__name__}; give a TaskGraph(tasks), or one that is combined"
        )
    combined = graph if isinstance(graph, Combined) else _as_it_is(graph)
    original = combined.original
    if missing := [name for name in original.by_name if name not in calls]:
        raise GraphError(f"no call is given for task {missing[0]!r} (of {len(missing)} without one)")
    for name in original.by_name:
        _check(name, calls[name])
    found: dict[str, Need] = {}

    def submit(target: TaskSpec) -> Submission:
        if len(combined.members[target.name]) == 1:
            needs = [found[need] for need in original.by_name[target.name].needs]
            submission = _submit(pool, target, calls[target.name], needs)
            found[target.name] = submission, 0
        else:
            needs = [found[need] for need in combined.reads(target.name)]
            submission = _submit(pool, target, _group(combined, target.name, calls), needs)
            leaves = combined.leaves(target.name)
            found.update({leaf: (submission, part) for part, leaf in enumerate(leaves)})
        return submission

    if within is None:
        for target in combined.tasks.tasks:
            submit(target)
    else:
        await _submit_within(Schedule(combined.tasks, within), submit)
    wanted = [task.name for task in original.tasks if task.result or not original.readers[task.name]]
    for name in wanted:
        await found[name][0]
    return {name: found[name][0].result(found[name][1]) for name in wanted}


def _check(name: str, call: Any) -> None:
    if not isinstance(call, Call):
        raise Mistake(f"task {name!r} calls {call!r:.80}; give a Call, as in Call('function', body)")
    if not isinstance(call.arrays, tuple | list):  # of a bare array each row would have been one
        raise Mistake(
            f"task {name!r} is given arrays of type {type(call.arrays).__name__}; give a tuple, also of one:"
            " Call('function', body, (array,))"
        )


async def _submit_within(schedule: Schedule, submit: Callable[[TaskSpec], Submission]) -> None:
    """Submit each task when `schedule` starts it, until the last has ended; TaskError for one that fails."""
    running: dict[asyncio.Task[None], tuple[TaskSpec, int]] = {}
    over: asyncio.Queue[asyncio.Task[None]] = asyncio.Queue()
    try:
        while True:
            for task, device in schedule.start():
                end = asyncio.create_task(_end(submit(task)))
                running[end] = task, device
                end.add_done_callback(over.put_nowait)
            if not running:
                return
            end = await over.get()
            task, device = running.pop(end)
            end.result()
            schedule.ended(task, device)
    finally:
        for end in running:
            end.cancel()


async def _end(submission: Submission) -> None:
    await submission.ended()
    if submission.error is not None:
        submission.result()  # which raises it, to one who was told then


def _submit(pool: Pool, task: TaskSpec, call: Call, needs: Sequence[Need]) -> Submission:
    return pool.submit(
        call.function,
        call.body,
        *call.arrays,
        needs=needs or None,
        seconds=task.seconds,
        priority=task.priority,
        device=task.device,
        memory_bytes=task.memory_bytes,
    )


def _group(combined: Combined, target: str, calls: Mapping[str, Call]) -> Call:
    """What a combined task calls: all its members (see group.py)."""
    members = combined.members[target]
    place = {member: index for index, member in enumerate(members)}
    place |= {need: -1 - index for index, need in enumerate(combined.reads(target))}
    listed = [
        [
            calls[member].function,
            calls[member].body,
            len(calls[member].arrays),
            [place[need] for need in combined.original.by_name[member].needs],
        ]
        for member in members
    ]
    arrays = tuple(array for member in members for array in calls[member].arrays)
    return Call(GROUP, [listed, [place[leaf] for leaf in combined.leaves(target)]], arrays)


def run_serially(
    graph: TaskGraph, calls: Mapping[str, Call], functions: Mapping[str, Callable[..., object]]
) -> dict[str, Result]:
    """The oracle: every task in the graph's order, here and now, with `None` for a pool."""
    done: dict[str, Result] = {}
    for task in graph.tasks:
        call = calls[task.name]
        arrays = [array.copy() for array in call.arrays]
        needs = {"needs": [_copied(done[need]) for need in task.needs]} if task.needs else {}
        done[task.name] = _copied(result_of(functions[call.function](None, call.body, *arrays, **needs)))
    return {
        name: done[name] for name, task in graph.by_name.items() if task.result or not graph.readers[name]
    }


def _copied(result: Result) -> Result:
    return unpack(pack(*result))[0]


def _as_it_is(graph: TaskGraph) -> Combined:
    alone: dict[str, tuple[str, ...]] = {task.name: (task.name,) for task in graph.tasks}
    return Combined(graph, alone, graph)
