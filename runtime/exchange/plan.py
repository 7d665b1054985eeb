"""The order in which portions leave and gradients are computed: a plan that every rank follows to the letter.

    lane:  dW3a dX3 dW3b dX2 dW2a dX1 dW1a dW1b │ dW2b dW3c …        the chain, and blocks that may run later
    wire:       3a      3b       2a   1a   1b      2b   3c …         lower layers overtake

MPI matches collectives by the order in which they are started, so ranks that chose for themselves would
deadlock or, worse, add conv2 to dense1. A plan is computed by a pure function from what all ranks know alike.

What the next step wants first, the lowest layer, backward gives last. So the lane goes down the chain of
input gradients as fast as the wire lets it: a block of weight gradient that may wait is computed when the
wire would otherwise run dry, and no sooner. What was put off keeps the lane busy while the lowest layers
travel. For eight layers of 1024 with 294 ms of compute and 288 ms of wire, simulated step time over the
longer of the two is 1.03 (portions of 1 MB, credit 2); with backward in its serial order 1.13, and in
first-come order 1.31. Of six thousand random changes of such a plan, each kept if it was no worse, the best
gained 1.4%; putting off less or more (twice or half the backlog below which a block runs) cost up to 14% and
never gained more than 1%.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from itertools import groupby
from math import isfinite
from typing import Literal, get_args

from .portions import Portion
from .virtual import Choose, VirtualWire

Rule = Literal["lower_layer_first", "latest_first", "first_come"]
"""Which of the portions that are ready leaves first; the last is for comparison."""

RULES: tuple[Rule, ...] = get_args(Rule)

DRIFT = 1.25
"""By how much the ratio of wire to compute may be off before a new plan is made. Simulated at 0.5 and 1
Gbit/s for balanced and skewed networks, a plan for timings that were off by 1.25 cost at most 4% against one
made anew, mostly nothing; off by 1.5 up to 15%, off by 2 up to 28%."""


@dataclass(frozen=True, slots=True)
class Work:
    """One item of the last micro-batch's backward.

    `completes` are the portions whose gradient is whole once this has run. A `movable` item, a block of a
    weight gradient whose inputs stay alive, may run later than its place, and then in any order; nothing but
    its own portions waits for it. The others, the chain, run in their order.
    """

    seconds: float
    completes: tuple[int, ...] = ()
    movable: bool = False


@dataclass(frozen=True, slots=True)
class Timings:
    """What a plan is made from: backward in serial order; by portion, seconds on an idle wire, and layer."""

    backward: tuple[Work, ...]
    wire_s: tuple[float, ...]
    layer: tuple[int, ...]  # of the portion's lowest node, in forward order

    def __post_init__(self) -> None:
        if len(self.layer) != len(self.wire_s):
            raise ValueError(f"{len(self.wire_s)} portions have {len(self.layer)} layers")
        for seconds in (*self.wire_s, *(work.seconds for work in self.backward)):
            if not (isfinite(seconds) and seconds >= 0.0):
                raise ValueError(f"{seconds} seconds: times must be finite and not negative")
        completed = sorted(portion for work in self.backward for portion in work.completes)
        if completed != list(range(len(self.wire_s))):
            raise ValueError(
                f"backward completes the portions {completed}, not each of {len(self.wire_s)} once"
            )
        for index, work in enumerate(self.backward):
            if work.movable and not work.completes:
                raise ValueError(
                    f"item {index} of backward is movable but completes no portion: where it may go would"
                    " depend on the item that completes what it is a part of; let it keep its place"
                )


@dataclass(frozen=True, slots=True)
class Plan:
    """One step's exchange: portions in the order of their start, at most `credit` of them under way, and the
    items of the last micro-batch's backward in the order of their execution."""

    order: tuple[int, ...]
    backward: tuple[int, ...]
    credit: int

    def __post_init__(self) -> None:
        if sorted(self.order) != list(range(len(self.order))):
            raise ValueError(f"a plan starts every portion once; got the order {self.order}")
        if sorted(self.backward) != list(range(len(self.backward))):
            raise ValueError(f"a plan runs every item of backward once; got the order {self.backward}")
        if self.credit < 1:
            raise ValueError(f"credit is {self.credit}; at least one portion must be allowed to travel")

    def check(self, timings: Timings) -> None:
        """ValueError unless the plan's lane order is one that these items allow."""
        if (len(self.order), len(self.backward)) != (len(timings.wire_s), len(timings.backward)):
            raise ValueError(
                f"the plan has {len(self.order)} portions and {len(self.backward)} items of backward, the"
                f" timings {len(timings.wire_s)} and {len(timings.backward)}"
            )
        chain = [index for index, work in enumerate(timings.backward) if not work.movable]
        done = 0  # items of the chain
        for index in self.backward:
            if not timings.backward[index].movable:
                if index != chain[done]:
                    raise ValueError(
                        f"item {index} of backward runs before item {chain[done]}, which it needs"
                    )
                done += 1
            elif done < len(chain) and chain[done] < index:
                raise ValueError(f"item {index} of backward runs before item {chain[done]}, which it needs")


def make_plan(timings: Timings, rule: Rule, credit: int, held: Collection[int] = ()) -> Plan:
    """Follow lane and wire through one backward pass, each choosing among what it could do.

    The movable items in `held` come last of all.

    Blocks are put off for the lower layers' sake alone. The other rules go by when a gradient was stored:
    first come, none may be late; latest first, those put off would be the last stored, and overtake the
    layers that they made way for (1.33 instead of 1.16 in the network above).
    """
    if rule not in RULES:
        raise ValueError(f"unknown rule {rule!r}; there are {', '.join(RULES)}")
    items, layer = timings.backward, timings.layer
    wire = VirtualWire(timings.wire_s, credit, _chooser(rule, layer))
    lane: list[int] = []
    waiting: list[int] = []  # blocks that may run now
    place, now_s = 0, 0.0  # `place` of the next item that keeps its place
    while len(lane) < len(items):
        while rule == "lower_layer_first" and place < len(items) and items[place].movable:
            if place not in held:
                waiting.append(place)
            place += 1
        if place == len(items) and not waiting:
            waiting += [index for index in sorted(held) if index not in lane]
        block = min(waiting, key=lambda index: layer[items[index].completes[0]], default=None)
        if block is not None and (
            place == len(items) or wire.backlog_s(now_s) < _fed_after_s(items[place], items[block])
        ):
            waiting.remove(block)
            index = block
        else:
            index = place
            place += 1
        lane.append(index)
        now_s += items[index].seconds
        wire.give(items[index].completes, now_s)
    wire.finish()
    return Plan(tuple(wire.posted_s), tuple(lane), credit)


def _chooser(rule: Rule, layer: Sequence[int]) -> Choose:
    choose: dict[Rule, Choose] = {
        "lower_layer_first": lambda ready: min(ready, key=layer.__getitem__),  # within a layer the first
        "latest_first": lambda ready: ready[-1],
        "first_come": lambda ready: ready[0],
    }
    return choose[rule]


def _fed_after_s(link: Work, block: Work) -> float:
    """Until when the wire gets nothing new if the chain's next item goes before the block."""
    return link.seconds if link.completes else link.seconds + block.seconds


def drifted(planned: Timings, measured: Timings) -> bool:
    """Whether a plan for `measured` may be better than the one that was made for `planned`, of the same cut.

    Only the ratio of wire to compute counts: when all takes twice as long, the plan stays the same.
    """
    ratios = sorted(
        (_wire_s(one) * _lane_s(other) for one, other in ((planned, measured), (measured, planned)))
    )
    return ratios[1] > DRIFT * ratios[0]


def _lane_s(timings: Timings) -> float:
    return sum(work.seconds for work in timings.backward)


def _wire_s(timings: Timings) -> float:
    return sum(timings.wire_s)


def describe(plan: Plan, portions: Sequence[Portion]) -> str:
    """For logs: the wire's order by layer, with the number of portions in a row, and how much was put off."""
    names = [", ".join(portions[index].nodes) for index in plan.order]
    runs = [(name, len(list(run))) for name, run in groupby(names)]
    wire = " | ".join(f"{name} x{count}" if count > 1 else name for name, count in runs)
    last = put_off = 0
    for index in plan.backward:
        put_off += index < last
        last = max(last, index)
    return f"wire, at most {plan.credit} under way: {wire}; {put_off} of {len(plan.backward)} items put off"
