"""Thousands of steps with random delays on random ranks: none blocks, and the weights are the oracle's.

Kernels, the reading of samples and the loop itself are held up, for microseconds to milliseconds, on every
rank by a random sequence of its own: so ranks overtake each other in every way there is. Together the eight
runs of the test suite (2, 3 and 4 ranks, two vendors; nodes) make 10,400 steps; with more in one run:

    WEFT_SOAK_STEPS=10000 pytest tests/test_under_mpiexec.py -k "mpich-4"     # 5 ms a step on two cores
"""

from __future__ import annotations

import os
import time
from random import Random

import numpy as np
import pytest

from tests.mpi.training import Bench, disturb, require_equal_bits
from weft.runtime.train.schema import Job

STEPS = int(os.environ.get("WEFT_SOAK_STEPS", "1300"))

EXCHANGES = {
    "shared, lower layer first": {"inside": "shared", "rule": "lower_layer_first", "credit": 2},
    "shared, latest first": {"inside": "shared", "rule": "latest_first", "credit": 1},
    "shared, clipping": {"inside": "shared", "rule": "first_come", "credit": 4, "clip_norm": 0.5},
    "flat, lower layer first": {"inside": "flat", "rule": "lower_layer_first", "credit": 1},
    "flat, latest first, clipping": {"inside": "flat", "rule": "latest_first", "credit": 4, "clip_norm": 0.5},
}


def tiny(steps: int, clip_norm: float | None = None, **exchange: object) -> Job:
    """Next to no arithmetic; four ranks have three micro-batches a step, at the end of an epoch one."""
    layers = [
        {"kernel": "flatten"},
        {"kernel": "dense", "features": 96, "bias": False, "name": "one"},
        {"kernel": "relu"},
        {"kernel": "dense", "features": 10, "name": "two"},
    ]
    return Job.model_validate(
        {
            "name": "tiny",
            "data": {"source": "digits"},
            "model": {"layers": layers},
            "train": {
                "batch": 12,
                "micro_batch": 4,
                "steps": steps,
                "optimizer": {"name": "sgd", "rate": 0.01, "momentum": 0.9},
                **({"clip_norm": clip_norm} if clip_norm else {}),
            },
            "exchange": {"portion_bytes": 6144, **exchange},
        }
    )


class Delays:
    """Now and then something takes between 10 us and 3 ms longer."""

    def __init__(self, seed: object, often: float) -> None:
        self._random = Random(repr(seed))
        self._often = often

    def maybe(self) -> None:
        if self._random.random() < self._often:
            time.sleep(10 ** self._random.uniform(-5, -2.5))


@pytest.mark.mpi(min_size=2)
@pytest.mark.limit(90 + STEPS / 20)
@pytest.mark.parametrize("exchange", EXCHANGES.values(), ids=EXCHANGES)
def test_s3_6_random_delays_neither_block_nor_change_anything(exchange):
    bench = Bench(tiny(STEPS // len(EXCHANGES), **exchange))
    seed = (sorted(exchange.items()), bench.size, bench.rank)
    on_the_lane, on_the_loop = Delays((seed, "lane"), 0.01), Delays((seed, "loop"), 0.05)

    def arrange(training, replica, world):
        disturb(replica, lambda step, rows: on_the_lane.maybe())
        load = replica.load

        def slow_load(*given):
            on_the_lane.maybe()
            load(*given)

        replica.load = slow_load

    trained = bench.train(lambda step, team: on_the_loop.maybe(), arrange=arrange)
    assert trained.steps == bench.job.train.steps
    require_equal_bits(trained.parameters)
    losses, weights = bench.oracle(trained)
    np.testing.assert_array_equal(trained.losses, losses)
    np.testing.assert_array_equal(trained.parameters, weights)
