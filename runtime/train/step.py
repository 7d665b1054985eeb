"""One training step as tasks for the lane.

    load ─ forward … ─ tally ─ backward …  (each micro-batch in turn: a chain, since a lane has one thread)
              ^                   │ weight gradient done: portion ready ──> exchange
              │                   v
          update of that     [gate: portion arrived] ─ update        (off the chain: fills the gaps)
          node, step before

A node's forward waits for the update of *its* portions alone, so the next step begins while gradients of
higher layers still travel; nothing is ever computed with a stale weight. A weight is overwritten only after
the chain has read it for the last time.

Clipping by the global norm needs every portion before the first update: the overlap with backward stays, that
with the next forward is lost.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from math import sqrt

import numpy as np
from numpy.typing import NDArray

from ...kernels.lane import Task, gate
from ..exchange import Portion, Round
from ..graph.backward import Phase
from ..graph.program import Program
from ..work import Compute
from .data import Samples
from .order import micro_batch_seed
from .replica import Replica
from .tally import Tally, measure

CHAIN, UPDATE = 0, 1  # priorities: what feeds the wire goes before what the wire has brought
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
        compute: Compute,
        samples: Samples,
        *,
        seed: int,
        clip_norm: float | None,
    ) -> None:
        self._replica = replica
        self._portions = portions
        self._compute = compute
        self._samples = samples
        self._seed = seed
        self._clip_norm = clip_norm
        nodes = list(replica.layout.nodes)
        self._portions_of = {node: [p.index for p in portions if node in p.nodes] for node in nodes}
        self._completes = {node: [p for p in portions if p.nodes[-1] == node] for node in nodes}
        self._urgency = [UPDATE + nodes.index(p.nodes[-1]) for p in portions]  # lower layers are wanted first
        self._updates: list[Task] = []  # of the step before, by portion
        self._tail: list[Task] = []  # the chain's last task
        self._readers: dict[str, Task] = {}  # by node: the chain's last task that reads its weights
        self._tasks: list[Task] = []

    def make(self, share: Share, tally: Tally, round_: Round) -> tuple[list[Task], list[Task]]:
        """The step's tasks, and of these the gates by portion, to be opened when a portion has arrived."""
        self._tasks = []
        self._readers = {}
        last = len(share.micro_batches) - 1
        for number, (index, indices) in enumerate(share.micro_batches):
            self._micro_batch(share, tally, round_, index, indices, first=number == 0, last=number == last)
        if not share.micro_batches:
            self._nothing(share, round_)
        return self._tasks, self._update(share)

    def _append(
        self,
        share: Share,
        name: str,
        phase: str,
        run: Callable[[], None],
        needs: Sequence[Task] = (),
        *,
        micro_batch: int = -1,
        then: Callable[[], None] | None = None,
    ) -> Task:
        """A task at the end of the chain; `then` is called on the loop when it is done."""
        task = Task(
            name,
            run,
            (*self._tail, *needs),
            priority=CHAIN,
            notify=None if then is None else self._compute.tell(then),
            info={"phase": phase, "step": share.step, "micro_batch": micro_batch},
        )
        self._tail = [task]
        self._tasks.append(task)
        return task

    def _micro_batch(
        self,
        share: Share,
        tally: Tally,
        round_: Round,
        index: int,
        indices: Indices,
        *,
        first: bool,
        last: bool,
    ) -> None:
        program = self._replica.training(len(indices))
        seed = micro_batch_seed(self._seed, share.step, index)
        append = partial(self._append, share, micro_batch=index)

        append("load", "load", partial(self._load, program, indices, seed, share))
        for call in program.forward:
            updated = self._updates_of(call.node) if first else []
            append(call.name, call.phase.value, call.run, updated)
        append(
            "tally", "load", partial(_tally, program, tally, index), then=round_.counted.set if last else None
        )
        for call in program.backward if first else program.backward_more:
            ready = self._completes[call.node] if last and call.phase is Phase.WEIGHT_GRADIENT else []
            task = append(
                call.name,
                call.phase.value,
                partial(self._compute_and_fetch, call.run, ready) if ready else call.run,
                then=partial(_announce, round_, ready) if ready else None,
            )
            self._readers[call.node] = task

    def _updates_of(self, node: str) -> list[Task]:
        """The step before's updates of a node's weights: what its forward waits for."""
        return (
            [self._updates[portion] for portion in self._portions_of.get(node, ())] if self._updates else []
        )

    def _nothing(self, share: Share, round_: Round) -> None:
        """A step with fewer micro-batches than ranks: zeros are this rank's part of the sum."""

        def clear() -> None:
            self._replica.gradients[...] = 0
            for portion in self._portions:
                self._replica.fetch(portion.start, portion.stop)

        def announce() -> None:
            round_.counted.set()
            _announce(round_, self._portions)

        self._append(share, "nothing to compute", "load", clear, self._updates, then=announce)

    def _load(self, program: Program, indices: Indices, seed: int, share: Share) -> None:
        program.mode.seed = seed
        program.mode.share = len(indices) / share.samples
        program.loss_gradient[...] = 1 / share.samples
        self._replica.load(program, self._samples, indices)

    def _compute_and_fetch(self, run: Callable[[], None], ready: Sequence[Portion]) -> None:
        run()
        for portion in ready:
            self._replica.fetch(portion.start, portion.stop)

    def _update(self, share: Share) -> list[Task]:
        gates = [gate(f"{portion.name} has arrived") for portion in self._portions]
        squares = [0.0] * len(self._portions)
        norms = []
        if self._clip_norm is not None:
            norms = [
                Task(f"{p.name}.norm", partial(self._square, squares, p), [gates[p.index]], priority=UPDATE,
                     info={"phase": "update", "step": share.step, "micro_batch": -1})
                for p in self._portions
            ]  # fmt: skip
        self._updates = [
            Task(
                f"{portion.name}.update",
                partial(self._apply, portion, share, squares),
                [gates[portion.index], *norms, *self._last_readers(portion)],
                priority=self._urgency[portion.index],
                info={"phase": "update", "step": share.step, "micro_batch": -1},
            )
            for portion in self._portions
        ]
        self._tasks += [*gates, *norms, *self._updates]
        return gates

    def _last_readers(self, portion: Portion) -> list[Task]:
        return [self._readers[node] for node in portion.nodes if node in self._readers]

    def _square(self, squares: list[float], portion: Portion) -> None:
        squares[portion.index] = self._replica.squared_norm(portion.start, portion.stop)

    def _apply(self, portion: Portion, share: Share, squares: list[float]) -> None:
        scale = 1.0 if self._clip_norm is None else clip_scale(squares, self._clip_norm)
        self._replica.update(portion.start, portion.stop, rate=share.rate, step=share.step + 1, scale=scale)

    @property
    def updates(self) -> list[Task]:
        """The last tasks of the step made last."""
        return self._updates


def clip_scale(squares: Sequence[float], limit: float) -> float:
    """What the gradient is multiplied with so that its norm is at most `limit` (Pascanu et al. 2013)."""
    norm = sqrt(sum(squares))
    return min(1.0, limit / norm) if norm > 0.0 else 1.0


def _announce(round_: Round, portions: Sequence[Portion]) -> None:
    for portion in portions:
        round_.ready[portion.index].set()


def _tally(program: Program, tally: Tally, index: int) -> None:
    tally.enter(index, *measure(program))
