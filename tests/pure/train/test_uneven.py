"""What a run says where its steps have no work for some of the ranks, or its warm-up never ends."""

from __future__ import annotations

import pytest

from weft.runtime.train.advice import uneven, unwarmed
from weft.runtime.train.job import load_job


@pytest.mark.parametrize(
    ("batch", "size", "ranks", "says"),
    [
        pytest.param(64, 16, 4, "", id="one for each"),
        pytest.param(64, 32, 1, "", id="one rank has them all"),
        pytest.param(144, 16, 5, "", id="nine for five leave a tenth idle"),
        pytest.param(
            64,
            32,
            4,
            "digits: a step of 64 samples has 2 micro-batches of 32 for "
            "4 ranks, 50% of whose time is idle; micro_batch = 16 in [train] divides it better",
            id="too few",
        ),
        pytest.param(
            32,
            32,
            2,
            "digits: a step of 32 samples has 1 micro-batch of 32 for "
            "2 ranks, 50% of whose time is idle; micro_batch = 16 in [train] divides it better",
            id="one in all",
        ),
        pytest.param(
            64,
            16,
            3,
            "digits: a step of 64 samples has 4 micro-batches of 16 for "
            "3 ranks, 33% of whose time is idle; micro_batch = 11 in [train] divides it better",
            id="one too many",
        ),
        pytest.param(
            5000,
            1000,
            8,
            "digits: a step of 1,258 samples has 2 micro-batches of 1,000 for "
            "8 ranks, 75% of whose time is idle; micro_batch = 158 in [train] divides it better",
            id="a batch of more samples than there are",
        ),
        pytest.param(
            3,
            1,
            4,
            "digits: a step of 3 samples has 3 micro-batches of 1 for "
            "4 ranks, 25% of whose time is idle; take a larger batch, or fewer ranks",
            id="fewer samples than ranks",
        ),
    ],
)
def test_ranks_without_micro_batches_are_told_of(batch: int, size: int, ranks: int, says: str) -> None:
    job = load_job("digits", [f"train.batch={batch}", f"train.micro_batch={size}"])
    assert uneven(job, 1258, ranks) == says


@pytest.mark.parametrize(
    ("schedule", "says"),
    [
        pytest.param('{ name = "constant", warmup = 19 }', "", id="over before the last step"),
        pytest.param(
            '{ name = "constant", warmup = 39 }',
            "digits: [train] schedule.warmup = 39 takes all 20 steps of the run: the rate ends at 0.01, and "
            "never comes to 0.02",
            id="twice as long",
        ),
        pytest.param(
            '{ name = "step", every = 5, warmup = 1_000_000 }',
            "digits: [train] schedule.warmup = 1,000,000 takes all 20 steps of the run: the rate ends at "
            "4e-07, and never comes to 0.02",
            id="and with drops that never come",
        ),
    ],
)
def test_a_warm_up_that_outlasts_the_run_is_told_of(schedule: str, says: str) -> None:
    overrides = ["train.epochs=1", "train.optimizer.rate=0.02", f"train.schedule={schedule}"]
    assert unwarmed(load_job("digits", overrides), 1258) == says
