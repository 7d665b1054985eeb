"""How many blocks of the highest layers are kept for the end of backward.

    lane:  … dX2 dW1 dW1 │ dW8 dW8 │ forward 1 …      what is held keeps the lane busy
    wire:            1a  1b                            while the lowest layer, wanted first, travels

Where the wire is the slower of the two, blocks are put off anyway (plan.py). Where it is the faster, every
block is computed at once and leaves at once, and the lane would stand idle for as long as the last portion
takes: 18 of 490 ms in eight layers of 1024 at batch 1024 and 1 Gbit/s with portions of 2 MB. What the highest
layers hold back is not wanted before the end of the next forward pass.
"""

from __future__ import annotations

from collections.abc import Iterator

from .plan import Plan, Rule, Timings, make_plan
from .simulate import Forward, simulate

NOTICE_S = (
    0.5e-3  # until the loop notices that a collective has come a round further, while the lane computes
)
TRIED = 4  # counts in a row without gain before the search ends
ROUNDS = 2  # of a large all-reduce (virtual.py)


def best_plan(timings: Timings, rule: Rule, credit: int) -> Plan:
    """The plan that holds back as many blocks as shorten the simulated step; `make_plan`'s for other rules.

    Forward times are taken to be those of the weight gradients: a dense layer's three products are alike.
    """
    best = make_plan(timings, rule, credit)
    if rule != "lower_layer_first":
        return best
    forward = [
        Forward(work.seconds, work.completes)
        for work in sorted(
            (work for work in timings.backward if work.completes),
            key=lambda work: timings.layer[work.completes[0]],
        )
    ]
    movable = [index for index, work in enumerate(timings.backward) if work.movable]
    movable.sort(key=lambda index: (-timings.layer[timings.backward[index].completes[0]], -index))

    def seconds(plan: Plan) -> float:
        nothing = [0.0] * len(timings.wire_s)
        return simulate(timings, forward, plan, nothing, latency_s=NOTICE_S, rounds=ROUNDS).period_s

    least_s, without_gain = seconds(best), 0
    for count in _counts(len(movable)):
        plan = make_plan(timings, rule, credit, held=movable[:count])
        if (plan_s := seconds(plan)) < least_s:
            best, least_s, without_gain = plan, plan_s, 0
        elif (without_gain := without_gain + 1) == TRIED:
            break
    return best


def _counts(most: int) -> Iterator[int]:
    """1, 2, 3 …, and from 8 on an eighth more each time, for a plan of hundreds of portions takes 10 ms.

    On a wire of 10 GB/s each of 672 blocks that was held back gained a little: to try every count took 2.4 s
    of the loop, these 0.4 s. In 150 random networks the plan found was at most 0.8% worse.
    """
    count = 1
    while count <= most:
        yield count
        count += 1 + count // 8
