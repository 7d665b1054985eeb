"""Faster ranks are dealt more micro-batches; the answer stays that of the oracle, which computes the same."""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np
import pytest
from mpi4py import MPI

from tests.mpi.training import Bench, Trained, disturb, each_way, require_equal_bits
from weft.runtime.message import World
from weft.runtime.train.dealer import Dealer
from weft.runtime.train.loop import TrainingLoop
from weft.runtime.train.replica import Replica
from weft.runtime.train.schema import Job

STEPS = 12  # more than an epoch's, whose last has fewer micro-batches
PARTS, SAMPLES = 8, 9  # micro-batches of a step for each rank, and samples of one
RANK, SIZE = MPI.COMM_WORLD.Get_rank(), MPI.COMM_WORLD.Get_size()


def job(inside: str) -> Job:
    layers = [
        {"kernel": "flatten"},
        {"kernel": "dense", "features": 96},
        {"kernel": "relu"},
        {"kernel": "dropout", "rate": 0.2},
        {"kernel": "dense", "features": 10},
    ]
    train = {"batch": SAMPLES * PARTS * SIZE, "micro_batch": SAMPLES, "steps": STEPS}
    return Job.model_validate(
        {
            "name": "uneven",
            "data": {"source": "digits"},
            "model": {"layers": layers},
            "train": {**train, "optimizer": {"name": "sgd", "rate": 0.02, "momentum": 0.9}},
            "exchange": {"inside": inside, "portion_bytes": 6144, "credit": 2},
        }
    )


class Timed(Dealer):
    """Finds that a micro-batch takes the last rank twice as long as the others, whatever it took."""

    def __init__(self) -> None:
        super().__init__(SIZE)
        self.dealt: list[list[int]] = []  # how many of each step, by rank

    def measured(self, ends_s: Sequence[float]) -> None:
        super().measured([0.0, 2.0 if RANK == SIZE - 1 else 1.0])

    def deal(self, count: int) -> list[list[int]]:
        shares = super().deal(count)
        self.dealt.append([len(share) for share in shares])
        return shares


@pytest.mark.mpi(min_size=2)
@pytest.mark.parametrize("inside", ["flat", "shared"])
def test_r3_a_rank_that_is_slow_is_dealt_less_and_nothing_is_lost(inside):
    bench, dealer = Bench(job(inside)), Timed()

    def arrange(training: TrainingLoop, replica: Replica, world: World) -> None:
        training._dealer = dealer

    trained = bench.train(arrange=arrange)
    assert len(dealer.dealt) == STEPS
    for counts in dealer.dealt[4:]:  # since when paces are known
        assert counts[-1] <= min(counts[:-1]) / 2 + 1
    assert_right(bench, trained)


class Without(Dealer):
    """Deals nothing to some ranks."""

    def __init__(self, idle: set[int]) -> None:
        super().__init__(SIZE)
        self.busy = [rank for rank in range(SIZE) if rank not in idle]

    def deal(self, count: int) -> list[list[int]]:
        shares: list[list[int]] = [[] for _ in range(SIZE)]
        for index in range(count):
            shares[self.busy[index % len(self.busy)]].append(index)
        return shares


IDLE = {"first": {0}, "last": {SIZE - 1}, "all but one": set(range(1, SIZE))}


@pytest.mark.mpi(min_size=2)
@each_way("idle", IDLE)
def test_ranks_that_are_dealt_nothing_leave_nothing_undone(inside, idle):
    bench = Bench(job(inside))

    def arrange(training: TrainingLoop, replica: Replica, world: World) -> None:
        training._dealer = Without(idle)
        if RANK == SIZE // 2:  # so that ranks leave work to each other
            disturb(replica, lambda step, rows: time.sleep(5e-4))

    trained = bench.train(arrange=arrange)
    assert_right(bench, trained)


@pytest.mark.mpi(min_size=2)
@pytest.mark.parametrize("inside", ["flat", "shared"])
def test_a_micro_batch_that_nobody_computes_ends_training(inside):
    lost_in, told = 2, []  # (a step that is not an epoch's last)

    class Losing(Dealer):
        steps = 0

        def deal(self, count: int) -> list[list[int]]:
            shares = super().deal(count)
            if self.steps == lost_in:
                max(shares, key=len).pop()  # a slow rank may have been dealt none
            self.steps += 1
            return shares

    def arrange(training: TrainingLoop, replica: Replica, world: World) -> None:
        training._dealer = Losing(SIZE)
        told.append(training)

    trained = Bench(job(inside)).train(arrange=arrange)
    parts = PARTS * SIZE
    assert told[0].failed
    assert (
        f"of the {parts} micro-batches of step {lost_in + 1} of uneven {parts - 1} were" in told[0].wrong
    ), told[0].wrong
    assert len(trained.losses) == lost_in, "the losses of the wrong step, or of one behind it, were told"


def assert_right(bench: Bench, trained: Trained) -> None:
    """Every micro-batch was computed once, and the answer is the oracle's."""
    assert trained.steps == STEPS
    require_equal_bits(trained.parameters)
    for step in range(STEPS):  # (the last of an epoch has fewer)
        everyones = MPI.COMM_WORLD.allgather(trained.division[step])
        computed = sorted(index for own in everyones for index in own)
        assert computed == list(range(len(computed)))
    losses, weights = bench.oracle(trained)
    np.testing.assert_array_equal(trained.losses, losses)
    np.testing.assert_array_equal(trained.parameters, weights)
