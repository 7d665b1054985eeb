"""A step's micro-batches on a rank's lane, one after the other: a chain, since a lane has one thread.

    load ─ forward … ─ tally ─ backward …     the next micro-batch …     the last one's backward, in the
                                                                         plan's order, completes portions

Here the rank computes its own micro-batches, which are known beforehand; growing.py has the chain of a rank
that takes them as it goes.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from ...kernels.lane import Task
from ..exchange import Block, Plan, Portion, Round
from ..graph.backward import Phase
from ..graph.program import Program, Step
from ..work import Compute
from ..work.claims import Dealt
from .data import Samples
from .helping import Helper
from .order import Indices, micro_batch_seed
from .replica import Replica
from .tally import Tally, measure
from .updates import Updates


@dataclass(frozen=True, slots=True)
class Share:
    """What a rank does in a step: of all its `parts`, micro-batches, those in `mine` by their numbers.

    With `dealt` it computes the first of them, and then what it claims.
    """

    step: int  # from 0
    samples: int  # of the step, over all ranks
    parts: Sequence[Indices]
    mine: Sequence[int]
    rate: float
    dealt: Dealt | None = None


@dataclass(frozen=True, slots=True)
class Setting:
    """What the chains of all steps have in common, until portions are cut anew."""

    replica: Replica
    portions: Sequence[Portion]
    blocks: Sequence[Block]
    updates: Updates
    compute: Compute
    samples: Samples
    seed: int
    model: str
    portions_of: Mapping[str, Sequence[Portion]]  # by node
    by_rows: frozenset[str]  # nodes that are cut by rows
    helper: Helper | None = None  # where ranks run each other's kernels


class Chain:
    """One step's. `end` is what the next step's chain comes behind, `readers` are by portion the tasks that
    must have run before its weights may be overwritten.

    `behind` and `updated` are of the step before: the end of its chain, and by portion, if it was the first
    step none, the tasks behind which the weights are new.
    """

    def __init__(
        self, setting: Setting, share: Share, tally: Tally, round_: Round, plan: Plan, priority: int,
        behind: Sequence[Task], updated: Sequence[Task],
    ) -> None:  # fmt: skip
        self._setting, self._share, self._tally, self._round, self._plan = setting, share, tally, round_, plan
        self._priority = priority
        self._updated = updated
        self._tail = list(behind)  # the last tasks so far
        self._first = True  # the next micro-batch is
        self._whose: dict[str, int] = {}  # of the current micro-batch, for the trace
        self._order: dict[Task, int] = {}  # place in what is to be submitted next
        self._then: dict[Task, list[Callable[[], None]]] = defaultdict(list)  # to be called on the loop
        self._here: dict[Task, Callable[[], None]] = {}  # on the lane
        self.end: list[Task] = []
        self.readers: dict[int, list[Task]] = {}

    def whole(self) -> list[Task]:
        """All tasks: the rank computes its own micro-batches."""
        mine = self._share.mine
        for index in mine[:-1]:
            self._forward(index)
            self._backward(index)
        if mine:
            self._then[self._forward(mine[-1])].append(self._round.counted.set)
            self._last_backward(mine[-1])
        else:
            self._nothing()
        self.end = self._tail
        return self._made()

    def _made(self) -> list[Task]:
        """What has been appended since the last time."""
        tell = self._setting.compute.tell
        for task in self._order:
            here, then = self._here.pop(task, None), self._then.pop(task, None)
            if here or then:
                told = tell(partial(_call_all, then)) if then else None
                task.notify = partial(_notify, here, told)
        tasks, self._order = list(self._order), {}
        return tasks

    def _append(
        self,
        name: str,
        phase: str,
        run: Callable[[], None],
        micro_batch: int = -1,
        needs: Sequence[Task] = (),
    ) -> Task:
        """A task at the end of the chain."""
        task = self._task(name, phase, run, micro_batch, (*self._tail, *needs))
        self._tail = [task]
        return task

    def _task(
        self, name: str, phase: str, run: Callable[[], None], micro_batch: int, needs: Sequence[Task]
    ) -> Task:
        info = {
            "phase": phase,
            "step": self._share.step,
            "micro_batch": micro_batch,
            "model": self._setting.model,
            **self._whose,
        }
        task = Task(name, run, needs, priority=self._priority, info=info)
        self._order[task] = len(self._order)
        return task

    def _forward(self, index: int) -> Task:
        """Micro-batch `index` up to its loss; returns the task behind which it is known."""
        setting, indices = self._setting, self._share.parts[index]
        program = setting.replica.training(len(indices))
        self._append("load", "load", partial(self._load, program, index), index)
        for step in program.forward:
            portions = setting.portions_of.get(step.node, []) if self._first else []
            # Also where there is nothing to wait for: blocks may round otherwise than the whole, and a run
            # that resumes is to compute what the other did.
            if step.node in setting.by_rows and portions:
                self._forward_by_rows(step, index, portions)
                continue
            self._append(step.name, step.phase.value, step.run, index, self._updates_of(portions))
        return self._append("tally", "load", partial(_enter, program, self._tally, index), index)

    def _forward_by_rows(self, step: Step, index: int, portions: Sequence[Portion]) -> None:
        """A layer's blocks of output neurons, each as soon as its own weights, and the biases, are new.

        The biases came with the layer's first portion. The order is left to the lane: what is ready runs.
        """
        self._tail = [
            self._task(
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
        return [self._updated[portion.index] for portion in portions] if self._updated else []

    def _backward(self, index: int) -> None:
        """Of a micro-batch behind which others follow here."""
        for step in self._gradients(index):
            self._append(step.name, step.phase.value, step.run, index)

    def _gradients(self, index: int) -> Sequence[Step]:
        """The first micro-batch's gradients overwrite, those of the others are added."""
        program = self._setting.replica.training(len(self._share.parts[index]))
        steps = program.backward if self._first else program.backward_more
        self._first = False
        return steps

    def _last_backward(self, index: int) -> dict[int, Task]:
        """Backward in the plan's order: it completes portions, and reads weights for the last time.

        Returns the tasks by their blocks.
        """
        setting, steps = self._setting, self._gradients(index)
        tasks: dict[int, Task] = {}
        completing: dict[int, Task] = {}
        reading: dict[str, Task] = {}  # by node
        for number in self._plan.backward:
            block = setting.blocks[number]
            step = steps[block.call]
            rows = "" if block.rows is None else f" rows {block.rows[0]}-{block.rows[1] - 1}"
            run = step.run if block.rows is None else partial(step.run, rows=slice(*block.rows))
            portions = [setting.portions[portion] for portion in block.completes]
            # (On a GPU the lane's CPU time is that of launching.)
            same_work = step.phase is Phase.INPUT_GRADIENT and not setting.replica.device.asynchronous
            timed = partial(self._time, run, number, portions, same_work, len(self._share.parts[index]))
            task = tasks[number] = self._append(step.name + rows, step.phase.value, timed, index)
            if not (step.phase is Phase.WEIGHT_GRADIENT and block.movable):  # (these read no weights)
                reading[step.node] = task
            for portion in portions:
                completing[portion.index] = self._encode(portion, task, index)
        self._complete(completing, reading)
        return tasks

    def _complete(self, completing: Mapping[int, Task], reading: Mapping[str, Task]) -> None:
        """Have it told of every portion when it is computed, and when its weights are not read any more."""
        for portion in self._setting.portions:
            readers = [reading[node] for node in portion.nodes if node in reading]
            computed = completing[portion.index]
            self._then[computed].append(partial(self._computed, portion))
            done = max([computed, *readers], key=self._order.__getitem__)
            self._then[done].append(partial(self._released, portion))
            self.readers[portion.index] = readers

    def _computed(self, portion: Portion) -> None:
        self._setting.updates.computed(self._round, portion)

    def _released(self, portion: Portion) -> None:
        self._setting.updates.released(self._round, portion)

    def _encode(self, portion: Portion, computed: Task, index: int) -> Task:
        """What has a portion ready for the wire, if there is anything to do; else what has computed it."""
        if (encode := self._setting.updates.encode) is None:
            return computed
        return self._append(f"{portion.name}.encode", "encode", partial(encode, portion), index)

    def _time(
        self,
        run: Callable[[], None],
        number: int,
        portions: Sequence[Portion],
        same_work: bool,
        samples: int,
    ) -> None:
        start, start_cpu = time.perf_counter(), time.thread_time()
        run()
        self._round.spent_s[number] = time.perf_counter() - start
        if same_work:
            self._round.chain_cpu_s += (time.thread_time() - start_cpu) / samples
        for portion in portions:
            self._setting.replica.fetch(portion.start, portion.stop)

    def _nothing(self) -> Task:
        """A step with fewer micro-batches than ranks: zeros are this rank's part of the sum."""
        replica, portions, encode = (
            self._setting.replica,
            self._setting.portions,
            self._setting.updates.encode,
        )

        def clear() -> None:
            replica.gradients[...] = 0
            for portion in portions:
                replica.fetch(portion.start, portion.stop)
                if encode is not None:
                    encode(portion)

        task = self._append("nothing to compute", "load", clear, needs=self._updated)
        self._then[task].append(self._round.counted.set)
        self._complete(dict.fromkeys(range(len(portions)), task), {})
        return task

    def _load(self, program: Program, index: int) -> None:
        share, indices = self._share, self._share.parts[index]
        if share.dealt is not None:
            share.dealt.loading()
        program.mode.seed = micro_batch_seed(self._setting.seed, share.step, index)
        program.mode.share = len(indices) / share.samples
        program.loss_gradient[...] = 1 / share.samples
        self._setting.replica.load(program, self._setting.samples, indices)


def _call_all(callbacks: Sequence[Callable[[], None]]) -> None:
    for callback in callbacks:
        callback()


def _notify(here: Callable[[], None] | None, told: Callable[[Task], None] | None, task: Task) -> None:
    if here is not None:
        here()
    if told is not None:
        told(task)


def _enter(program: Program, tally: Tally, index: int) -> None:
    tally.enter(index, *measure(program))
