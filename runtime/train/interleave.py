"""In what order several models take steps: determined from costs and wishes alone, so equal on all ranks.

Every model has a clock that a step moves on by the step's cost over the model's weight; the next step is that
of the model whose clock is furthest behind (stride scheduling, Waldspurger and Weihl 1995):

    clock      0        1        2        3        4
    large      |──────── 0 ──────|──────── 1 ──────|        steps of cost 2
    small      |── 0 ───|── 1 ───|── 2 ───|── 3 ───|        of cost 1, with the same weight

    order      large 0, small 0, small 1, large 1, small 2, small 3, …
    lane       small 0, small 1 and large 0, …              who *ends* first on that clock has the lane

Steps start in this order. On the lane the step that ends first goes before the others, and these fill its
gaps: of equal models one has the lane while the other's gradients travel, and a small one goes ahead of each
step of a large one, which computes while the small one waits for the wire.

A model of higher priority has the lane whenever it can use it. The order still gives those below it
`LEAST` of the time among them, so nobody starves.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby, islice
from math import ceil

from ..graph import Graph
from ..graph.backward import differentiate
from ..graph.metadata import describe

LEAST = 0.1
"""Part of the compute time that is kept for models of lower priority."""

KERNEL, STEP = 1e6, 3e7
"""Operations that a kernel and a step cost beside their arithmetic: 10 us and 0.3 ms of Python at 100 GFLOP/s
of one core. A step of the packaged digits took 3.2 times as long as one of digits-mlp on one rank; it counts
as 3.8 of them, and by arithmetic alone it would count as 39."""

UNIT = 1 << 20  # a clock's ticks for the cheapest step: whole numbers do not drift, however long the run
LEVEL = 1 << 80  # between the lane priorities of two levels; no clock gets that far


@dataclass(frozen=True, slots=True)
class Claim:
    """What a model costs a step, in any unit, and what it is to get: a share among those of its priority."""

    cost: float
    share: float = 1.0
    priority: int = 0


class ModelOrder:
    """Whose turn it is. Every rank has its own, and all give the same turns to the same models.

    A model leaves when it has its turn and takes no more steps: at that place in the order on every rank,
    whenever a rank got to know of it. `models` are those that take steps, by their numbers among `claims`.
    """

    def __init__(self, claims: Sequence[Claim], models: Iterable[int] | None = None) -> None:
        self._claims = claims
        self._levels = sorted({claim.priority for claim in claims}, reverse=True)
        self._clocks = dict.fromkeys(range(len(claims)) if models is None else models, 0)
        self._unit = 1.0
        self._strides = self._stride()
        self._unit = min(self._strides.values(), default=1.0)
        self._strides = self._stride()

    def among(self, models: Iterable[int]) -> ModelOrder:
        """A new order of some of the models, from the start."""
        return ModelOrder(self._claims, models)

    @property
    def models(self) -> list[int]:
        """Those that have not left."""
        return list(self._clocks)

    @property
    def head(self) -> int | None:
        """The model whose turn it is; None when all have left."""
        return min(self._clocks, key=self._rank, default=None)

    def take(self) -> int:
        """The head starts a step; returns the step's priority on the lane, smallest first."""
        model = self._head()
        self._clocks[model] += max(1, round(UNIT * self._strides[model]))
        level = self._levels.index(self._claims[model].priority)
        return level * LEVEL + self._clocks[model] * len(self._claims) + model

    def leave(self) -> None:
        """The head takes no more steps; what it had is divided among the others."""
        now = self._clocks.pop(self._head())
        before, self._strides = self._strides, self._stride()
        for model, clock in self._clocks.items():  # a step that was dear need not be paid any longer
            self._clocks[model] = now + round((clock - now) * self._strides[model] / before[model])

    def _head(self) -> int:
        if (model := self.head) is None:
            raise ValueError("every model has left the order")
        return model

    def _rank(self, model: int) -> tuple[int, int, int]:
        return self._clocks[model], -self._claims[model].priority, model

    def _stride(self) -> dict[int, float]:
        """By how much a step moves each clock, in units of the shortest stride at the start."""
        parts = weights([self._claims[model] for model in self._clocks])
        return {
            model: self._claims[model].cost / part / self._unit
            for model, part in zip(self._clocks, parts, strict=True)
        }


def weights(claims: Sequence[Claim]) -> list[float]:
    """The part of the compute time that each gets while all train; together 1."""
    levels = sorted({claim.priority for claim in claims}, reverse=True)
    left, of_level, shares = 1.0, {}, {}
    for level in levels:
        of_level[level] = left if level == levels[-1] else left * (1 - LEAST)
        shares[level] = sum(claim.share for claim in claims if claim.priority == level)
        left -= of_level[level]
    return [of_level[claim.priority] * claim.share / shares[claim.priority] for claim in claims]


def steps(claims: Sequence[Claim], lengths: Sequence[int]) -> Iterator[tuple[int, int]]:
    """The whole order, as (model, step) from 0, of models that take so many steps."""
    order, done = ModelOrder(claims), [0] * len(claims)
    while (model := order.head) is not None:
        if done[model] == lengths[model]:
            order.leave()
            continue
        order.take()
        yield model, done[model]
        done[model] += 1


def preview(claims: Sequence[Claim], lengths: Sequence[int], names: Sequence[str], groups: int = 6) -> str:
    """The beginning of the order for a reader: "a, 3 b, a, 3 b, …"."""
    found: list[str] = []
    for model, turns in groupby(model for model, _ in islice(steps(claims, lengths), 1_000)):
        if len(found) == groups:
            return ", ".join([*found, "…"])
        count = len(list(turns))
        found.append(names[model] if count == 1 else f"{count} {names[model]}")
    return ", ".join(found)


def step_cost(graph: Graph, batch: int, micro_batch: int, ranks: int) -> float:
    """What a step costs the rank that computes most of it, in floating-point operations."""
    costs = [node.cost for node in describe(graph, micro_batch).values()]
    flops = sum(c.forward_flops + c.input_gradient_flops + c.weight_gradient_flops for c in costs)
    calls = differentiate(graph)
    kernels = len(calls.forward) + len(calls.backward)
    return (flops + KERNEL * kernels) * ceil(ceil(batch / micro_batch) / ranks) + STEP
