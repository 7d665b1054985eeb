"""The communication task on ranks of one event loop: order, credit, rest, and a wait that is given up."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Awaitable, Callable, Sequence
from random import Random
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from weft.runtime.exchange import Block, Exact, Exchange, Portion, Profile, Round, Rule
from weft.runtime.exchange.exchange import PATIENCE_S
from weft.runtime.exchange.plan import RULES
from weft.runtime.message import stall

RANKS = 3
PORTIONS = 6
SIZE = 4  # elements of a portion


class Wire:
    """Matches the collectives of all ranks by their order, as MPI does; each ends some turns later."""

    def __init__(self, random: Random) -> None:
        self._random = random
        self._calls: dict[int, list[tuple[str, NDArray[Any]]]] = defaultdict(list)
        self._ended: dict[int, asyncio.Event] = defaultdict(asyncio.Event)
        self._under_way = 0
        self.most = 0  # portions under way on one rank
        self.order: list[str] = []  # what was called, by rank 0

    async def call(self, number: int, what: str, array: NDArray[Any], combine: Callable[..., Any]) -> None:
        calls = self._calls[number]
        calls.append((what, array))
        if len(calls) == RANKS:
            assert len({name for name, _ in calls}) == 1, f"the ranks called {calls}"
            total = combine([part for _, part in calls])
            for _, part in calls:
                part[...] = total
            for _ in range(self._random.randrange(5)):
                await asyncio.sleep(0)
            self._ended[number].set()
        await self._ended[number].wait()


class Comm:
    """One rank's end of the wire."""

    size = RANKS

    def __init__(self, wire: Wire, rank: int) -> None:
        self.rank = rank
        self._wire = wire
        self._called = 0
        self._portions = 0

    def allreduce(
        self, array: NDArray[Any], op: str = "sum", *, what: str = "", patience_s: float | None = None
    ) -> Awaitable[None]:
        return self._call(what, array, {"sum": np.sum, "max": np.max}[op])

    def broadcast(
        self, array: NDArray[Any], root: int = 0, *, what: str = "", patience_s: float | None = None
    ) -> Awaitable[None]:
        # Only the root's may hold anything; it says nothing where the plan stays.
        return self._call(what, array, lambda parts, axis: np.max(parts, axis=0))

    def _call(self, what: str, array: NDArray[Any], combine: Callable[..., Any]) -> Awaitable[None]:
        number, self._called = self._called, self._called + 1
        portion = "portion" in what
        if self.rank == 0:
            self._wire.order.append(what)
        self._portions += portion
        self._wire.most = max(self._wire.most, self._portions)

        async def ended() -> None:
            await self._wire.call(number, what, array, lambda parts: combine(parts, axis=0))
            self._portions -= portion

        return asyncio.ensure_future(ended())


PORTION = tuple(
    Portion(i, SIZE * i, SIZE * (i + 1), (f"dense_{i}",), PORTIONS - 1 - i) for i in range(PORTIONS)
)
BLOCKS = tuple(Block(i, (i,)) for i in range(PORTIONS))
PROFILE = Profile((1e-3,) * PORTIONS)


class Rank:
    """An exchange with its gradient; a lane that readies portions in a random order."""

    def __init__(self, wire: Wire, rank: int, rule: Rule, credit: int, *, replan: bool = True) -> None:
        self.comm = Comm(wire, rank)
        self.random = Random(f"{rank}")
        self.gradient = np.zeros(SIZE * PORTIONS, np.float32)
        carrier = Exact(self.comm, self.gradient)  # type: ignore[arg-type]
        carrier.cut([slice(p.start, p.stop) for p in PORTION])
        self.exchange = Exchange(
            self.comm,  # type: ignore[arg-type]
            carrier,
            PORTION,
            BLOCKS,
            PROFILE,
            rule=rule,
            credit=credit,
            model="m",
            replan=replan,
        )

    async def step(self, step: int) -> Round:
        """Begin a round, ready its portions one by one, and wait until all have arrived."""
        round_, arrived = Round(step, PORTIONS, np.ones(2)), asyncio.Event()
        left = set(range(PORTIONS))

        def arrive(index: int) -> None:
            left.remove(index)
            if not left:
                arrived.set()

        round_.arrived = arrive
        round_.spent_s = np.full(PORTIONS, 1e-3 * (1 + self.random.random()))
        self.gradient[:] = self.comm.rank + step
        self.exchange.begin(round_)
        round_.counted.set()
        for index in self.random.sample(range(PORTIONS), PORTIONS):
            for _ in range(self.random.randrange(4)):
                await asyncio.sleep(0)
            round_.mark_ready(index)
        await round_.totals
        await arrived.wait()
        return round_


def together(ranks: Sequence[Rank], body: Callable[[Rank], Awaitable[None]]) -> None:
    """Run `body` on every rank, its communication task beside it."""

    async def one(rank: Rank) -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(rank.exchange.run())
            await body(rank)
            rank.exchange.end()

    async def main() -> None:
        async with asyncio.timeout(30), asyncio.TaskGroup() as group:
            for rank in ranks:
                group.create_task(one(rank))

    asyncio.run(main())


@pytest.mark.parametrize("credit", [1, 2, 4])
@pytest.mark.parametrize("rule", RULES)
def test_ranks_whose_portions_are_ready_in_any_order_send_them_in_one(rule: Rule, credit: int) -> None:
    wire = Wire(Random(credit))
    ranks = [Rank(wire, rank, rule, credit, replan=False) for rank in range(RANKS)]

    async def body(rank: Rank) -> None:
        for step in range(12):
            round_ = await rank.step(step)
            assert (rank.gradient == sum(other + step for other in range(RANKS))).all()
            assert (round_.statistics == RANKS).all()

    together(ranks, body)
    assert wire.most == credit
    names = [PORTION[index].name for index in ranks[0].exchange.plan.order]
    assert wire.order == [
        what
        for step in range(1, 13)
        for what in (f"m: losses of step {step}", *(f"m: step {step}, {name}" for name in names))
    ]


def test_rest_comes_behind_a_new_plan() -> None:
    """Which is a collective like those that follow at rest: all ranks must call it before them."""
    wire = Wire(Random(1))
    ranks = [Rank(wire, rank, "lower_layer_first", 2) for rank in range(RANKS)]

    async def body(rank: Rank) -> None:
        for step in range(10):
            await rank.step(step)
            await rank.exchange.settled()
            score = np.array([1.0])
            await rank.comm.allreduce(score, what=f"score of step {step + 1}")
            assert score[0] == RANKS

    together(ranks, body)
    plans = [number for number, what in enumerate(wire.order) if what == "m: timings for a plan"]
    assert [wire.order[number + 2] for number in plans] == ["score of step 3", "score of step 10"]
    assert len({rank.exchange.plan for rank in ranks}) == 1


def test_losses_that_nobody_waits_for_any_more_do_no_harm() -> None:
    """A peer's failure cancels who waits; the losses may arrive in the same turn of the loop."""
    wire = Wire(Random(1))
    ranks = [Rank(wire, rank, "first_come", 1, replan=False) for rank in range(RANKS)]

    async def body(rank: Rank) -> None:
        round_ = Round(0, PORTIONS, np.ones(2))
        rank.exchange.begin(round_)
        round_.totals.cancel()
        round_.counted.set()
        for index in range(PORTIONS):
            round_.mark_ready(index)
        await rank.exchange.settled()

    together(ranks, body)


def test_five_seconds_suffice_to_tell_of_a_stall() -> None:
    """A wait is looked at when its patience is over, others are asked, and their answers are waited for."""
    look_s = min(stall.LOOK_S, PATIENCE_S / 10)
    assert PATIENCE_S + look_s + min(stall.ANSWER_S, stall.ANSWER_SHARE * PATIENCE_S) < 5.0
