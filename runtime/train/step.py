"""One training step as tasks for the lane.

    load ─ forward … ─ tally ─ backward …  (each micro-batch in turn: chain.py)
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

from collections.abc import Sequence

import numpy as np

from ...kernels.lane import Task
from ..exchange import Block, Plan, Portion, Round
from ..work import Compute
from .chain import Chain, Setting, Share
from .data import Samples
from .growing import Growing
from .helping import Helper
from .replica import Replica
from .tally import Tally
from .updates import CLASSES, Class, Updates


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
        helper: Helper | None = None,
    ) -> None:
        self._blocks = blocks
        self._updates = updates
        portions_of = {node: [p for p in portions if node in p.nodes] for node in replica.layout.nodes}
        by_rows = frozenset(p.nodes[0] for p in portions if p.rows is not None)
        self._setting = Setting(
            replica, portions, blocks, updates, compute, samples, seed, model, portions_of, by_rows, helper
        )
        self._end: list[Task] = []  # of the chain of the step before
        self.updated: list[Task] = []  # of the step before, by portion: what the next forward waits for

    def make(self, share: Share, tally: Tally, round_: Round, plan: Plan, turn: int = 0) -> list[Task]:
        """The step's tasks, or the first of them. Those of a smaller `turn` go before, whatever they are."""
        round_.spent_s = np.zeros(len(self._blocks))
        priority = turn * CLASSES + Class.CHAIN
        given = (self._setting, share, tally, round_, plan, priority, self._end, self.updated)
        chain: Chain
        if share.dealt is None:
            chain = Chain(*given)
            tasks = chain.whole()
        else:
            chain = growing = Growing(*given, dealt=share.dealt)
            tasks = growing.begin()
        updates, self.updated = self._updates.make(share, round_, chain.readers, turn)
        self._end = chain.end
        return [*tasks, *updates]
