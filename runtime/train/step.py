"""One training step as tasks for the lane.

    load ─ forward … ─ tally ─ backward …  (each micro-batch in turn: a chain, since a lane has one thread)
              ^                   │ weight gradient done: portion computed ──> updates.py ──> exchange
              │                   │
           update of that         └ last kernel that reads a weight done: it may be overwritten
         portion, step before

A node's forward waits for the update of *its* portions alone, and that of a layer cut by rows goes by the
same rows, in the order in which they arrive: the next step begins while gradients of higher layers, and of
the same layer, still travel. Nothing is ever computed with a stale weight.

The backward of the last micro-batch completes the portions, so it runs in the plan's order: weight gradients
that the wire has no room for yet make way for the input gradients that lead to lower layers.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from ...kernels.lane import Task
from ..exchange import Block, Plan, Portion, Round
from ..graph.backward import Phase
from ..graph.program import Program, Step
from ..work import Compute
from .data import Samples
from .order import micro_batch_seed
from .replica import Replica
from .tally import Tally, measure
from .updates import CLASSES, Class, Updates

Indices = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Share:
    """What a rank does in a step: its micro-batches, by their number among all of the step's."""

    step: int  # from 0
    samples: int  # of the step, over all ranks
    micro_batches: Sequence[tuple[int, Indices]]
    rate: float


class StepMaker:
    """Makes the tasks of one step after the other; remembers what the next has to wait for."""

    def __init__(
        self,
        replica: Replica,
        portions: Sequence[Portion],
        blocks: Sequence[Block],
        updates: Updates,
        compute: Compute,
        samples: Samples,
        *,
        seed: int,
        model: str,
    ) -> None:
        self._replica = replica
        self._portions = portions
        self._blocks = blocks
        self._maker = updates
        self._compute = compute
        self._samples = samples
        self._seed = seed
        self._model = model
        self._portions_of = {
            node: [portion for portion in portions if node in portion.nodes] for node in replica.layout.nodes
        }
        self._by_rows = {p.nodes[0] for p in portions if p.rows is not None}
        self.updated: list[Task] = []  # of the step before, by portion: what the next forward waits for
        self._tail: list[Task] = []  # the chain's last tasks
        self._reading: dict[str, Task] = {}  # by node: the chain's last task that reads its weights
        self._order: dict[Task, int] = {}  # place in the chain
        self._then: dict[Task, list[Callable[[], None]]] = {}
        self._priority = 0

    def make(self, share: Share, tally: Tally, round_: Round, plan: Plan, turn: int = 0) -> list[Task]:
        """The step's tasks. Those of a smaller `turn` go before, whatever else they are."""
        self._reading, self._order, self._then = {}, {}, defaultdict(list)
        self._priority = turn * CLASSES + Class.CHAIN
        round_.spent_s = np.zeros(len(self._blocks))
        completing: dict[int, Task] = {}
        last = len(share.micro_batches) - 1
        for number, (index, indices) in enumerate(share.micro_batches):
            program = self._forward(share, tally, index, indices, first=number == 0)
            if number == last:
                self._then[self._tail[-1]].append(round_.counted.set)
            steps = program.backward if number == 0 else program.backward_more
            if number == last:
                completing = self._last_backward(share, index, steps, round_, plan)
            else:
                for step in steps:
                    self._append(share, step.name, step.phase.value, step.run, index)
        if not share.micro_batches:
            completing = self._nothing(share, round_)
        readers = {portion.index: self._readers(portion) for portion in self._portions}
        for portion in self._portions:
            computed = completing[portion.index]
            self._then[computed].append(partial(self._maker.computed, round_, portion))
            done = max([computed, *readers[portion.index]], key=self._order.__getitem__)
            self._then[done].append(partial(self._maker.released, round_, portion))
        for task, callbacks in self._then.items():
            task.notify = self._compute.tell(partial(_call_all, callbacks))
        updates, self.updated = self._maker.make(share, round_, readers, turn)
        return [*self._order, *updates]

    def _append(
        self,
        share: Share,
        name: str,
        phase: str,
        run: Callable[[], None],
        micro_batch: int = -1,
        needs: Sequence[Task] = (),
    ) -> Task:
        """A task at the end of the chain."""
        task = self._task(share, name, phase, run, micro_batch, (*self._tail, *needs))
        self._tail = [task]
        return task

    def _task(
        self,
        share: Share,
        name: str,
        phase: str,
        run: Callable[[], None],
        micro_batch: int,
        needs: Sequence[Task],
    ) -> Task:
        info = {"phase": phase, "step": share.step, "micro_batch": micro_batch, "model": self._model}
        task = Task(name, run, needs, priority=self._priority, info=info)
        self._order[task] = len(self._order)
        return task

    def _forward(self, share: Share, tally: Tally, index: int, indices: Indices, *, first: bool) -> Program:
        program = self._replica.training(len(indices))
        seed = micro_batch_seed(self._seed, share.step, index)
        self._append(share, "load", "load", partial(self._load, program, indices, seed, share), index)
        for step in program.forward:
            portions = self._portions_of.get(step.node, []) if first else []
            # Also where there is nothing to wait for: blocks may round otherwise than the whole, and a run
            # that resumes is to compute what the other did.
            if step.node in self._by_rows and portions:
                self._forward_by_rows(share, step, index, portions)
                continue
            self._append(share, step.name, step.phase.value, step.run, index, self._updates_of(portions))
        self._append(share, "tally", "load", partial(_tally, program, tally, index), index)
        return program

    def _forward_by_rows(self, share: Share, step: Step, index: int, portions: Sequence[Portion]) -> None:
        """A layer's blocks of output neurons, each as soon as its own weights, and the biases, are new.

        The biases came with the layer's first portion. The order is left to the lane: what is ready runs.
        """
        self._tail = [
            self._task(
                share,
                f"{step.name} rows {portion.rows[0]}-{portion.rows[1] - 1}",
                step.phase.value,
                partial(step.run, rows=slice(*portion.rows)),
                index,
                (*self._tail, *self._updates_of([portions[0], portion])),
            )
            for portion in portions
            if portion.rows is not None
        ]

    def _updates_of(self, portions: Sequence[Portion]) -> list[Task]:
        """The step before's updates of portions; none before the first step."""
        return [self.updated[portion.index] for portion in portions] if self.updated else []

    def _last_backward(
        self, share: Share, index: int, steps: Sequence[Step], round_: Round, plan: Plan
    ) -> dict[int, Task]:
        """Backward in the plan's order; returns the task that completes each portion."""
        completing = {}
        for number in plan.backward:
            block = self._blocks[number]
            step = steps[block.call]
            rows = "" if block.rows is None else f" rows {block.rows[0]}-{block.rows[1] - 1}"
            run = step.run if block.rows is None else partial(step.run, rows=slice(*block.rows))
            portions = [self._portions[portion] for portion in block.completes]
            timed = partial(self._time, run, round_, number, portions)
            task = self._append(share, step.name + rows, step.phase.value, timed, index)
            if not (step.phase is Phase.WEIGHT_GRADIENT and block.movable):  # (these read no weights)
                self._reading[step.node] = task
            for portion in portions:
                completing[portion.index] = self._encode(share, index, portion, task)
        return completing

    def _encode(self, share: Share, index: int, portion: Portion, computed: Task) -> Task:
        """What has a portion ready for the wire, if there is anything to do; else what has computed it."""
        if (encode := self._maker.encode) is None:
            return computed
        return self._append(share, f"{portion.name}.encode", "encode", partial(encode, portion), index)

    def _time(self, run: Callable[[], None], round_: Round, number: int, portions: Sequence[Portion]) -> None:
        start = time.perf_counter()
        run()
        round_.spent_s[number] = time.perf_counter() - start
        for portion in portions:
            self._replica.fetch(portion.start, portion.stop)

    def _nothing(self, share: Share, round_: Round) -> dict[int, Task]:
        """A step with fewer micro-batches than ranks: zeros are this rank's part of the sum."""

        def clear() -> None:
            self._replica.gradients[...] = 0
            for portion in self._portions:
                self._replica.fetch(portion.start, portion.stop)
                if self._maker.encode is not None:
                    self._maker.encode(portion)

        task = self._append(share, "nothing to compute", "load", clear, needs=self.updated)
        self._then[task].append(round_.counted.set)
        return dict.fromkeys(range(len(self._portions)), task)

    def _readers(self, portion: Portion) -> list[Task]:
        return [self._reading[node] for node in portion.nodes if node in self._reading]

    def _load(self, program: Program, indices: Indices, seed: int, share: Share) -> None:
        program.mode.seed = seed
        program.mode.share = len(indices) / share.samples
        program.loss_gradient[...] = 1 / share.samples
        self._replica.load(program, self._samples, indices)


def _call_all(callbacks: Sequence[Callable[[], None]]) -> None:
    for callback in callbacks:
        callback()


def _tally(program: Program, tally: Tally, index: int) -> None:
    tally.enter(index, *measure(program))
