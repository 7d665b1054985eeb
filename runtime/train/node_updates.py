"""Updates inside a node: owners sum and update their slices of what all its ranks share.

    computed here ─ READY ─[all ranks]─ reduce own slice ─ wire ─[arrived]─┐
    released here ─ READ ──[all ranks]─────────────────────────────────────┴─ update own slice
                                                       next forward ─[all owners]─ UPDATED ┘

Without other nodes, and no norm to clip, there is one event less: sum and update are one pass, when the
weights are released. Events are counters in shared memory (NodeMemory); no message travels inside the node.

To tell costs more than to update: a wake-up takes 0.1 to 0.2 ms of a core, SGD on a quarter of 1 MB 0.05 ms.
So what happens in a row is told together, and of an event only who is the last to tell it wakes the others.
"""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from functools import partial

from ...kernels.lane import Task, gate
from ..exchange import Carrier, Event, NodeMemory, Portion, Round
from ..exchange.exchange import PATIENCE_S
from ..work import Compute
from .replica import Replica
from .updates import Step, clip_scale, coding, task

WORDS = {
    Event.READY: "gradient of",
    Event.READ: "release of the weights of",
    Event.SQUARED: "squared norm of",
    Event.UPDATED: "new weights of",
}

LONGEST_S = 4e-3
"""How long the ends of updates in a row are kept back, to be told together. Whoever waits for one has nothing
else to do; but owners update at the same time, and a wake-up every 4 ms costs a twentieth of the core."""

News = tuple[Event, Portion, Round]


class NodeUpdates:
    """Every owner sums and updates its slices. See `Updates`.

    `carrier` takes the sums of this rank's slices to other nodes; None without any, and where it owns none.
    """

    encode: Callable[[Portion], None] | None = None  # only a sum over the node is, by its owner

    def __init__(
        self,
        replica: Replica,
        memory: NodeMemory,
        portions: Sequence[Portion],
        compute: Compute,
        carrier: Carrier | None,
        *,
        clip_norm: float | None,
        model: str,
    ) -> None:
        self._replica = replica
        self._memory = memory
        self._portions = portions
        self._slices = memory.slices(portions)
        self._compute = compute
        self._carrier = carrier
        self._clip_norm = clip_norm
        self._model = model
        self._early = memory.travels or clip_norm is not None
        self._loop = asyncio.get_running_loop()
        self._news: list[News] = []  # to be told
        self._ends: list[News] = []  # the lane's, kept back
        self._ends_since = 0.0

    def make(
        self, share: Step, round_: Round, readers: Mapping[int, Sequence[Task]], turn: int
    ) -> tuple[list[Task], list[Task]]:
        """See `Updates`."""
        self._memory.rounds += 1
        round_.serial = self._memory.rounds
        tasks: list[Task] = []
        updated = self._gates(Event.UPDATED, share, round_, tasks)
        if self._memory.rank < self._memory.owners:
            sums = self._sums(share, round_, turn, tasks) if self._early else None
            norms = self._norms(share, round_, sums, turn, tasks) if sums and self._clip_norm else []
            released = self._gates(Event.READ, share, round_, tasks)
            for p in self._portions:
                needs = [*norms, released[p.index]]
                if sums and not norms:
                    needs.append(sums[p.index])
                update = task(
                    share, f"{p.name}.update", partial(self._apply, p, share), needs, p, turn, self._model
                )
                update.notify = partial(self._ended, (Event.UPDATED, p, round_))
                tasks.append(update)
        return tasks, updated

    def computed(self, round_: Round, portion: Portion) -> None:
        """See `Updates`."""
        if self._early:
            self._tell((Event.READY, portion, round_))

    def released(self, round_: Round, portion: Portion) -> None:
        """See `Updates`."""
        self._tell((Event.READ, portion, round_))

    def _sums(self, share: Step, round_: Round, turn: int, tasks: list[Task]) -> list[Task]:
        """By portion: what ends when the sum of this rank's slice is whole."""
        sums = []
        computed = self._gates(Event.READY, share, round_, tasks)
        for p in self._portions:
            run, needs = partial(self._gather, self._slices[p.index]), [computed[p.index]]
            reduce = task(share, f"{p.name}.reduce", run, needs, p, turn, self._model, "reduce")
            tasks.append(reduce)
            sums.append(reduce)
        if self._carrier is None:
            return sums
        carrier = self._carrier
        ready = sums
        whole = arrived = [gate(f"{portion.name} has arrived") for portion in self._portions]
        round_.arrived = lambda index: self._compute.finish(arrived[index])
        tasks += arrived
        if carrier.encodes:
            ready = coding("encode", carrier.encode, sums, share, self._portions, turn, self._model)
            whole = coding("decode", carrier.decode, arrived, share, self._portions, turn, self._model)
            tasks += [*ready, *whole]
        for p, last in zip(self._portions, ready, strict=True):
            last.notify = self._compute.tell(partial(round_.mark_ready, p.index))
        return whole

    def _norms(
        self, share: Step, round_: Round, sums: Sequence[Task], turn: int, tasks: list[Task]
    ) -> list[Task]:
        """Gates that open when the squared norms of all slices of all portions are known on this node."""
        for p in self._portions:
            norm = task(
                share, f"{p.name}.norm", partial(self._square, p), [sums[p.index]], p, turn, self._model
            )
            norm.notify = partial(self._ended, (Event.SQUARED, p, round_))
            tasks.append(norm)
        return self._gates(Event.SQUARED, share, round_, tasks)

    def _gates(self, event: Event, share: Step, round_: Round, tasks: list[Task]) -> list[Task]:
        """By portion: a gate that opens when all ranks of the node (all owners) have told of `event`."""
        gates = [gate(f"{WORDS[event]} {portion.name}") for portion in self._portions]
        first = self._memory.counter(event, 0)
        owners = event in (Event.SQUARED, Event.UPDATED)
        self._memory.board.each(
            range(first, first + len(gates)),
            round_.serial,
            lambda places: self._compute.finish(*[gates[place] for place in places]),
            ranks=range(self._memory.owners) if owners else None,
            what=lambda place: f"{self._model}: step {share.step + 1}, {gates[place].name}",
            patience_s=PATIENCE_S,
        )
        tasks += gates
        return gates

    def _tell(self, news: News) -> None:
        """Tell it with what else the loop's callbacks that run now have to tell."""
        if not self._news:
            self._loop.call_soon(self._publish_news)
        self._news.append(news)

    def _publish_news(self) -> None:
        news, self._news = self._news, []
        self._publish(news)

    def _publish(self, news: Sequence[News]) -> None:
        by_round: dict[int, list[int]] = defaultdict(list)
        for event, portion, round_ in news:
            by_round[round_.serial].append(self._memory.counter(event, portion.index))
        for serial, counters in by_round.items():
            # Every event is awaited of all owners at least.
            self._memory.board.publish(counters, serial, among=range(self._memory.owners))

    # On the lane

    def _ended(self, news: News, _: Task) -> None:
        """Have it told, together with the end of what runs next if that is of this kind, too."""
        now = time.monotonic()
        if not self._ends:
            self._ends_since = now
        self._ends.append(news)
        following = self._compute.next
        more = following is not None and getattr(following.notify, "func", None) == self._ended
        if not more or now - self._ends_since > LONGEST_S:
            ends, self._ends = self._ends, []
            self._loop.call_soon_threadsafe(self._publish, ends)

    def _gather(self, own: slice) -> None:
        self._replica.gather(own.start, own.stop)

    def _square(self, portion: Portion) -> None:
        own = self._slices[portion.index]
        self._memory.squares[self._memory.rank][portion.index] = self._replica.squared_norm(
            own.start, own.stop
        )

    def _apply(self, portion: Portion, share: Step) -> None:
        own, scale = self._slices[portion.index], 1.0
        if self._clip_norm is not None:
            # In one order on every rank, so that all clip alike to the last bit.
            squares = (row[p.index] for p in self._portions for row in self._memory.squares)
            scale = clip_scale(squares, self._clip_norm)
        self._replica.update(
            own.start, own.stop, rate=share.rate, step=share.step + 1, scale=scale, gather=not self._early
        )
