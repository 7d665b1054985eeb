"""METG of charm4py, on every process that its launcher has started; _metg_peers.py starts it.

trivial, stencil   its pool: `charm.pool.map` of a function over the tasks, one at a time; of the stencil over
                   those of a step, for its pool knows no needs between tasks. Process 0 hands them out and
                   runs none, so there is one process more than there are ranks of Weft.
chares             the stencil without a pool: a chare a process runs all steps of its point, as a coroutine,
                   and sends each output to its neighbours through channels. Nothing is placed or balanced.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from charm4py import Channel, Chare, Future, Group, Reducer, charm, coro

from bench._metg_peers import Outputs, point, sweeps
from bench.metg import neighbours, plain

KERNELS_S = tuple(4e-6 * 2**n for n in range(15))  # 4 us to 66 ms


class Place(Chare):  # type: ignore[misc]
    """A point of the stencil, in all steps."""

    def __init__(self, width: int) -> None:
        self.width = width
        self.channels = {
            each: Channel(self, remote=self.thisProxy[each])
            for each in neighbours(self.thisIndex, width)
            if each != self.thisIndex
        }

    @coro  # type: ignore[untyped-decorator]
    def run(self, turns: int, steps: int, done: Any) -> None:
        place = self.thisIndex
        outputs: list[Any] = []
        for step in range(steps):
            needs = []
            if step:
                own = {place: outputs[-1]}
                needs = [
                    own[each] if each == place else self.channels[each].recv()
                    for each in neighbours(place, self.width)
                ]
            outputs.append(point(turns, step, place, self.width, *needs))
            if step < steps - 1:
                for channel in self.channels.values():
                    channel.send(outputs[-1])
        self.reduce(done, outputs, Reducer.gather)

    def plain(self, turns: int, steps: int, done: Any) -> None:
        self.reduce(done, plain(turns, steps), Reducer.gather)


def one(task: list[Any]) -> tuple[int, int]:
    """A task of the pool."""
    return point(*task)


def one_plain(task: list[int]) -> float:
    return plain(*task)


def main(arguments: list[str]) -> None:
    graph, path = arguments[1], Path(arguments[5])
    width, steps, repetitions = map(int, arguments[2:5])
    places: Any = Group(Place, args=[width]) if graph == "chares" else None

    def trivial(turns: int) -> Outputs:
        tasks = [[turns, step, place, width] for step in range(steps) for place in range(width)]
        found: Outputs = charm.pool.map(one, tasks)
        return found

    def stencil(turns: int) -> Outputs:
        rows: list[Outputs] = []
        for step in range(steps):
            needs = [
                [rows[-1][each] for each in neighbours(place, width)] if rows else []
                for place in range(width)
            ]
            rows.append(
                charm.pool.map(one, [[turns, step, place, width, *needs[place]] for place in range(width)])
            )
        return [output for row in rows for output in row]

    def pool_alone(turns: int) -> list[float]:
        found: list[float] = charm.pool.map(one_plain, [[turns, steps]] * width)
        return found

    def chares(turns: int) -> Outputs:
        done = Future()
        places.run(turns, steps, done)
        columns = done.get()
        return [column[step] for step in range(steps) for column in columns]

    def chares_alone(turns: int) -> list[float]:
        done = Future()
        places.plain(turns, steps, done)
        found: list[float] = done.get()
        return found

    run = {"trivial": trivial, "stencil": stencil, "chares": chares}[graph]
    alone = chares_alone if places else pool_alone
    path.write_text(json.dumps(sweeps(run, alone, KERNELS_S, width, steps, repetitions)))
    sys.exit()


if __name__ == "__main__":
    charm.start(main)
