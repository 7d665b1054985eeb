"""What an idle rank does at the end of a step: it runs kernels that others of its node have put out.

    chain ended ─ look ─ nap ─ look: a kernel! ─ lane: run it ─ look ─ … ─ all others' chains have ended

A rank looks by itself instead of being rung: a bell costs whoever rings it, and that is the one who has too
much to do.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ...kernels.lane import Task
from ..exchange import Block
from ..exchange.stealing import Stealing
from ..graph.backward import Phase
from ..work import Compute
from ..work.offers import Offer, Offers
from .order import Indices, micro_batch_seed
from .replica import Replica

NAP_S = 0.3e-3
"""Between two looks. One costs 20 us, so a rank that has nothing else to do uses 7% of its core."""


@dataclass(slots=True)
class Watch:
    """One step's end on this rank: until all others have come there, and none of its kernels is out."""

    number: int  # of the step, as `Claims` counts
    priority: int
    part: Callable[[int], tuple[Indices, int]]  # of a micro-batch: its samples, and how many the step has
    info: dict[str, object]  # for the trace
    taken: dict[int, Callable[[int], None]]  # by place: told how long it took, once who claimed it has run it
    ended: Callable[[], None]  # to be called when nothing is `taken` any more, if anything was
    timer: asyncio.TimerHandle | None = None
    running: bool = False  # a kernel of another rank


class Helper:
    """This rank's, for one model and one cut of its gradient; used on the loop."""

    def __init__(
        self,
        replica: Replica,
        blocks: Sequence[Block],
        stealing: Stealing,
        offers: Offers,
        compute: Compute,
        *,
        seed: int,
    ) -> None:
        self.offers = offers
        calls = replica.calls
        #: By number, the blocks of backward that may be put out.
        self.blocks = {
            number
            for number, block in enumerate(blocks)
            if calls[block.call].phase is Phase.WEIGHT_GRADIENT
            and calls[block.call].node.name in stealing.nodes
        }
        self._all_blocks = blocks
        self._replica, self._compute, self._seed = replica, compute, seed
        self._ranks, self._counts = stealing.claims.ranks, stealing.claims.counts
        self._loop = asyncio.get_running_loop()

    def look(self, watch: Watch) -> None:
        """Until the step is over: see what others have done for this rank, and claim what they put out."""
        if watch.timer is not None:
            watch.timer.cancel()
        if self.offers.closed:
            return
        for place, took_ns in self.offers.ended(watch.number, list(watch.taken)):
            watch.taken.pop(place)(took_ns)
            if not watch.taken:
                watch.ended()
        if not watch.running and (offer := self.offers.claim(watch.number)) is not None:
            watch.running = True
            self._compute.submit([self._task(offer, watch)])
        if watch.running or watch.taken or not self.offers.over(watch.number):
            watch.timer = self._loop.call_later(NAP_S, self.look, watch)

    def _task(self, offer: Offer, watch: Watch) -> Task:
        """A kernel of another rank, for this one's lane."""
        block, (indices, samples) = self._all_blocks[offer.kernel], watch.part(offer.micro_batch)
        program = self._replica.other(offer.rank, len(indices))
        step = (program.backward if offer.first else program.backward_more)[block.call]
        rows = {} if block.rows is None else {"rows": slice(*block.rows)}
        began_ns = 0

        def run() -> None:
            nonlocal began_ns
            began_ns = time.monotonic_ns()
            program.mode.seed = micro_batch_seed(self._seed, int(str(watch.info["step"])), offer.micro_batch)
            program.mode.share = len(indices) / samples
            step.run(**rows)
            self._counts.kernels[self._ranks[offer.rank]] += 1

        def ended(task: Task) -> None:
            self.offers.end(watch.number, offer, time.monotonic_ns() - began_ns if began_ns else 0)
            self._compute.tell(again)(task)

        def again() -> None:
            watch.running = False
            self.look(watch)

        info = {**watch.info, "micro_batch": offer.micro_batch, "of": self._ranks[offer.rank]}
        return Task(step.name, run, priority=watch.priority, notify=ended, info=info)
