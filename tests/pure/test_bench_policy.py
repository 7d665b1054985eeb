"""The simulator that drives the stealing policy: what it adds up, and that the policy holds at many ranks."""

from __future__ import annotations

import argparse
from random import Random

import pytest

from bench import policy
from bench.policy import FAR_S, NEAR_S, SHAPES, Simulation

NODE, TASKS = 16, 50


def simulate(shape: str, ranks: int, task_bytes: float = 1000.0):
    work, speeds = SHAPES[shape](ranks, TASKS, Random(1))
    return Simulation(work, speeds, NODE, task_bytes, seed=1).run()


def test_figures_are_of_the_largest_number_of_ranks_wherever_it_was_written():
    parser = argparse.ArgumentParser()
    policy.add_arguments(parser)
    rising, falling = (
        policy.main(parser.parse_args(["--ranks", ranks, "--tasks", "5"])) for ranks in ("4,8", "8,4")
    )
    assert rising == falling
    assert rising["static_one"].value == pytest.approx(1 / 8)


def test_a_rank_alone_takes_as_long_as_its_tasks():
    ran = Simulation([[0.25, 0.5, 0.25]], [0.5], NODE, 0.0, seed=1).run()
    assert ran.efficiency == pytest.approx(1.0)
    assert ran.steals == 0


@pytest.mark.parametrize(("node", "way_s"), [(2, NEAR_S), (1, FAR_S)], ids=["near", "far"])
def test_a_theft_takes_half_and_costs_its_way(node, way_s):
    ran = Simulation([[1.0] * 5, []], [1.0, 1.0], node, 0.0, seed=1).run()
    assert ran.steals == 1
    assert ran.efficiency == pytest.approx(5 / 2 / (3 + (way_s if node == 1 else 0)), abs=1e-3)


@pytest.mark.parametrize(("shape", "least"), [("one", 0.85), ("uneven", 0.93), ("slow", 0.93)])
def test_r3_the_policy_keeps_hundreds_of_ranks_busy(shape, least):
    """0.88, 0.96 and 0.94 of what there is, of a run of 0.1 s; without stealing 0.004, 0.12 and 0.44."""
    assert simulate(shape, 256).efficiency > least


def test_r3_stealing_that_does_not_pay_stops():
    """Tasks of 2 ms that carry 100 MB stay in their node and with their ranks."""
    assert simulate("uneven", 64, task_bytes=1e8).steals == 0
