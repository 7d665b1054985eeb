"""The order in which several models take their steps."""

from __future__ import annotations

from collections import Counter
from itertools import islice

import pytest
from hypothesis import given
from hypothesis import strategies as st

from weft.runtime.graph import Builder
from weft.runtime.graph.backward import differentiate
from weft.runtime.train.interleave import (
    KERNEL,
    LEAST,
    STEP,
    Claim,
    ModelOrder,
    preview,
    step_cost,
    steps,
    weights,
)

EVER = 10**9

# Claims, how many steps each model has, and the beginning of the order, a letter a step.
ORDERS = {
    "one model alone": ([Claim(7)], [3], "aaa"),
    "equal models take turns": ([Claim(1), Claim(1)], [EVER, EVER], "abababab"),
    "three equal models take turns": ([Claim(1)] * 3, [EVER] * 3, "abcabcabc"),
    "a step of twice the cost counts twice": ([Claim(2), Claim(1)], [EVER, EVER], "abbabbabb"),
    "a share of two gives two steps": ([Claim(1, 2), Claim(1, 1)], [EVER, EVER], "abaabaabaab"),
    "cost and share cancel": ([Claim(6, 2), Claim(9, 3)], [EVER, EVER], "abababab"),
    "a model that ends leaves the others in turn": ([Claim(1)] * 3, [EVER, 2, EVER], "abcabcacacac"),
    "the last one goes on alone": ([Claim(1), Claim(1)], [2, 5], "ababbbb"),
    "a model that has nothing to do is passed over": ([Claim(1), Claim(1)], [0, 3], "bbb"),
    "at the same time the higher priority begins": (
        [Claim(1), Claim(1, priority=1)], [EVER, EVER], "babbbbbbbbba",
    ),
    "when the higher ends, those below share all": (
        [Claim(1), Claim(1, priority=1), Claim(1)], [4, 3, 4], "bacbbacacac",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("claims", "lengths", "expected"), ORDERS.values(), ids=ORDERS)
def test_s2_1_the_order_of(claims, lengths, expected):
    order = "".join("abc"[model] for model, _ in islice(steps(claims, lengths), len(expected)))
    assert order == expected


def time_spent(claims, lengths, steps_in_all):
    spent = Counter()
    for model, _ in islice(steps(claims, lengths), steps_in_all):
        spent[model] += claims[model].cost
    return spent


SHARES = {
    "two to one, of steps that cost one to three": ([Claim(1, 2), Claim(3, 1)], [2 / 3, 1 / 3]),
    "shares that are no whole numbers": ([Claim(5, 0.3), Claim(2, 0.7)], [0.3, 0.7]),
    "five models": (
        [Claim(1, 5), Claim(2, 4), Claim(3, 3), Claim(4, 2), Claim(5, 1)],
        [5 / 15, 4 / 15, 3 / 15, 2 / 15, 1 / 15],
    ),
    "one of higher priority leaves the others a tenth": (
        [Claim(2), Claim(3, priority=1), Claim(2)], [LEAST / 2, 1 - LEAST, LEAST / 2],
    ),
    "shares count within a priority": (
        [Claim(1, 3, 2), Claim(1, 1, 2), Claim(1, 100, 1)], [0.75 * (1 - LEAST), 0.25 * (1 - LEAST), LEAST],
    ),
}  # fmt: skip


@pytest.mark.parametrize(("claims", "parts"), SHARES.values(), ids=SHARES)
def test_s2_4_compute_time_is_divided_by_share(claims, parts):
    assert weights(claims) == pytest.approx(parts)
    spent = time_spent(claims, [EVER] * len(claims), 30_000)
    whole = sum(spent.values())
    assert [spent[model] / whole for model in range(len(claims))] == pytest.approx(parts, abs=2e-3)


claims = st.lists(
    st.builds(Claim, st.floats(1, 1e3), st.floats(0.1, 10), st.integers(0, 2)), min_size=1, max_size=5
)


@given(claims, st.data())
def test_s2_4_nobody_starves(made, data):
    """Between two steps of a model no other gets more than its part of that time, and one step."""
    model = data.draw(st.integers(0, len(made) - 1))
    parts = weights(made)
    fair = made[model].cost / parts[model]
    spent = dict.fromkeys(range(len(made)), 0.0)
    for turn, _ in islice(steps(made, [EVER] * len(made)), 2_000):
        if turn == model:
            spent = dict.fromkeys(spent, 0.0)
            continue
        spent[turn] += made[turn].cost
        assert spent[turn] <= (fair * parts[turn] + made[turn].cost) * 1.001


@given(claims, st.data())
def test_every_model_takes_all_its_steps_one_after_the_other(made, data):
    lengths = data.draw(st.lists(st.integers(0, 20), min_size=len(made), max_size=len(made)))
    whole = list(steps(made, lengths))
    for model, length in enumerate(lengths):
        assert [step for other, step in whole if other == model] == list(range(length))


def lane_order(claims, turns):
    """(model, step) of the first turns, sorted as the lane would if all were ready."""
    order, done, priorities = ModelOrder(claims), Counter(), {}
    for _ in range(turns):
        model = order.head
        priorities[order.take()] = (model, done[model])
        done[model] += 1
    assert len(priorities) == turns  # no two steps may have the same
    return "".join(f"{'abc'[model]}{step} " for _, (model, step) in sorted(priorities.items())).split()


def test_of_equal_models_the_first_in_the_order_has_the_lane():
    assert lane_order([Claim(1), Claim(1)], 6) == ["a0", "b0", "a1", "b1", "a2", "b2"]


def test_a_small_model_goes_ahead_on_the_lane_while_a_large_one_is_in_its_step():
    assert lane_order([Claim(3), Claim(1)], 8) == ["b0", "b1", "a0", "b2", "b3", "b4", "a1", "b5"]


def test_a_model_of_higher_priority_goes_before_all_steps_of_others():
    assert lane_order([Claim(1), Claim(1, priority=1)], 4) == ["b0", "b1", "b2", "a0"]


def dense(features):
    b = Builder()
    return b.build(b("dense", b.input("x", (64,)), features=features))


def test_the_cost_of_a_step_is_its_arithmetic_and_something_for_every_kernel():
    graph = dense(8)
    (node,) = graph.nodes
    cost = node.kernel.cost(*graph.input_specs(node, graph.specs(16)))
    flops = cost.forward_flops + cost.input_gradient_flops + cost.weight_gradient_flops
    calls = differentiate(graph)
    kernels = len(calls.forward) + len(calls.backward)
    assert step_cost(graph, 16, 16, 1) == flops + kernels * KERNEL + STEP


@pytest.mark.parametrize(
    ("batch", "micro_batch", "ranks", "counted"),
    [(64, 16, 1, 4), (64, 16, 2, 2), (64, 16, 3, 2), (65, 16, 1, 5), (16, 16, 4, 1)],
)
def test_the_cost_of_a_step_is_that_of_the_rank_with_most_micro_batches(batch, micro_batch, ranks, counted):
    one = step_cost(dense(8), micro_batch, micro_batch, 1) - STEP
    assert step_cost(dense(8), batch, micro_batch, ranks) == counted * one + STEP


def test_a_reader_sees_the_beginning_of_the_order():
    names = ["a", "b"]
    assert preview([Claim(3), Claim(1)], [9, 9], names, 5) == "a, 3 b, a, 3 b, a, …"
    assert preview([Claim(1), Claim(1)], [2, 1], names) == "a, b, a"
    assert preview([Claim(1), Claim(1, priority=1)], [EVER, EVER], names, 2) == "b, a, …"


def test_when_all_have_left_there_is_no_turn():
    order = ModelOrder([Claim(1)])
    order.leave()
    assert order.head is None
    with pytest.raises(ValueError, match="every model has left"):
        order.take()


def makespan_over_limit(models, lengths, layers=8):
    """Virtual time until all have ended, over the most that lane or wire must do.

    `models` are seconds of lane and of wire a step: forward a third of the lane's, then backward, a portion a
    layer, which the next step's forward of the layer waits for. The wire takes portions as they come.
    """
    claims = [Claim(lane) for lane, _ in models]
    order = {step: place for place, step in enumerate(steps(claims, lengths))}
    turns, priorities = ModelOrder(claims), {}
    for model, step in order:
        while turns.head != model:
            turns.leave()
        priorities[model, step] = turns.take()
    place = [(0, 0)] * len(models)  # step, and kernel within it
    arrived = [[0.0] * layers for _ in models]  # when, by layer, what the next forward waits for
    now, wire, begun = 0.0, 0.0, 0
    while waiting := [
        (max(now, arrived[model][kernel] if kernel < layers else 0.0), priorities[model, step], model)
        for model, (step, kernel) in enumerate(place)
        if step < lengths[model] and (kernel > 0 or order[model, step] <= begun)
    ]:
        now, _, model = min(waiting)
        (step, kernel), (lane_s, wire_s) = place[model], models[model]
        begun = max(begun, order[model, step] + 1)
        now += lane_s / 3 / layers * (1 if kernel < layers else 2)
        if kernel >= layers:
            wire = max(wire, now) + wire_s / layers
            arrived[model][2 * layers - 1 - kernel] = wire
        place[model] = (step, kernel + 1) if kernel + 1 < 2 * layers else (step + 1, 0)
    sums = (sum(m[part] * n for m, n in zip(models, lengths, strict=True)) for part in (0, 1))
    return max(now, wire) / max(sums)


MAKESPANS = {
    "one model alone waits for its own wire": ([(1, 1)], [60], 1.35, 1.45),
    "of two equal ones each hides the other's wire": ([(1, 1), (1, 1)], [60, 60], 1.0, 1.01),
    "five": ([(1, 1)] * 5, [20] * 5, 1.0, 1.01),
    "a small one goes ahead while a large one computes": ([(3, 2), (1, 1)], [30, 90], 1.0, 1.01),
    "one of much wire and one of little": ([(1, 2), (2, 1)], [60, 30], 1.0, 1.02),
    "one ten times the other": ([(10, 5), (1, 0.5)], [20, 200], 1.0, 1.01),
    "wire is all, and one ten times the other": ([(10, 10), (1, 1)], [20, 200], 1.0, 1.25),
}


@pytest.mark.parametrize(("models", "lengths", "least", "most"), MAKESPANS.values(), ids=MAKESPANS)
def test_s2_2_in_virtual_time(models, lengths, least, most):
    assert least <= makespan_over_limit(models, lengths) <= most
