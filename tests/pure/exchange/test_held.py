"""Blocks held back for the end of backward: only where the simulated step gains."""

from __future__ import annotations

import pytest

from tests.pure.exchange.networks import GIGABIT_BYTE_S, MEGABYTE, Network, balanced, skewed
from weft.runtime.exchange import held
from weft.runtime.exchange.held import NOTICE_S, ROUNDS, best_plan
from weft.runtime.exchange.plan import RULES, make_plan
from weft.runtime.exchange.simulate import simulate

NETWORKS = {
    "compute and wire take as long": balanced(),
    "compute takes longer": balanced(18e-3),
    "the wire takes twice as long": balanced(gigabits=0.5),
    "a fast wire": balanced(gigabits=20),
    "most weights in the first layer": skewed(0),
    "most weights in the last layer": skewed(7),
}


def period(network, portion_bytes, plan):
    timings, forward = network.cut(portion_bytes)
    nothing = [0.0] * len(timings.wire_s)
    return simulate(timings, forward, plan, nothing, latency_s=NOTICE_S, rounds=ROUNDS).period_s


def periods(network, portion_bytes):
    timings, _ = network.cut(portion_bytes)
    plans = (make_plan(timings, "lower_layer_first", 2), best_plan(timings, "lower_layer_first", 2))
    return [period(network, portion_bytes, plan) for plan in plans]


@pytest.mark.parametrize("portion_bytes", [MEGABYTE // 2, MEGABYTE, 2 * MEGABYTE])
@pytest.mark.parametrize("network", NETWORKS.values(), ids=NETWORKS)
def test_holding_back_never_costs_a_step(network, portion_bytes):
    plain, held = periods(network, portion_bytes)
    assert held <= plain


def test_where_the_wire_is_faster_held_blocks_fill_the_wait_for_the_lowest_layer():
    network = balanced(18e-3)
    plain, held = periods(network, 2 * MEGABYTE)
    assert held < 0.97 * plain
    timings, _ = network.cut(2 * MEGABYTE)
    last = best_plan(timings, "lower_layer_first", 2).backward[-1]
    assert timings.layer[timings.backward[last].completes[0]] == 7


def test_a_second_held_block_is_tried_where_the_first_gains_nothing():
    plain, held = periods(balanced(), MEGABYTE)
    timings, _ = balanced().cut(MEGABYTE)
    movable = [index for index, work in enumerate(timings.backward) if work.movable]
    first = max(movable, key=lambda index: (timings.layer[timings.backward[index].completes[0]], index))
    assert period(balanced(), MEGABYTE, make_plan(timings, "lower_layer_first", 2, held=[first])) >= plain
    assert held < 0.98 * plain


def test_a_plan_of_hundreds_of_portions_is_found_in_few_trials(monkeypatch):
    made = []
    monkeypatch.setattr(held, "make_plan", lambda *given, **kept: made.append(1) or make_plan(*given, **kept))
    timings, _ = Network((16 * MEGABYTE,) * 18, (2.86e-3,) * 18, GIGABIT_BYTE_S / 85).cut(MEGABYTE // 2)
    plain = make_plan(timings, "lower_layer_first", 2)
    assert best_plan(timings, "lower_layer_first", 2).backward != plain.backward
    assert len(made) < len(timings.wire_s) / 8


@pytest.mark.parametrize("rule", [rule for rule in RULES if rule != "lower_layer_first"])
def test_the_other_rules_hold_nothing_back(rule):
    timings, _ = balanced(18e-3).cut(2 * MEGABYTE)
    assert best_plan(timings, rule, 2) == make_plan(timings, rule, 2)
