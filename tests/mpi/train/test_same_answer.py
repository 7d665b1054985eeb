"""The same answer at any number of ranks: the training loop against the oracle's plain loop."""

from __future__ import annotations

import numpy as np
import pytest

from tests.mpi.training import Bench, allreduce
from weft.runtime.train import oracle
from weft.runtime.train.job import load_job
from weft.runtime.train.schema import Job

STEPS = 12

# Each a packaged job, shortened; a GPT of full width takes minutes on four ranks of two cores.
PACKAGED = {
    "digits": [],
    "digits-mlp": ["train.schedule.warmup=2"],
    "stdlib-gpt": [
        *("train.batch=6", "train.micro_batch=2"),
        *("model.gpt.layers=1", "model.gpt.width=32", "model.gpt.heads=2", "data.context=24"),
        "train.schedule.warmup=2",
        "data.files=json/*.py",
    ],
}


def packaged(name: str) -> Job:
    return load_job(name, [*PACKAGED[name], f"train.steps={STEPS}"])


def made(**changes: object) -> Job:
    """A small network with all that could depend on who computes what: dropout, batch norm, clipping."""
    train = {
        "batch": 50,
        "micro_batch": 8,
        "steps": STEPS,
        "optimizer": {"name": "sgd", "rate": 0.05, "momentum": 0.9},
    }
    layers = [
        {"kernel": "conv2d", "channels": 6, "kernel_size": 3},
        {"kernel": "batch_norm"},
        {"kernel": "relu"},
        {"kernel": "flatten"},
        {"kernel": "dropout", "rate": 0.3},
        {"kernel": "dense", "features": 10},
    ]
    job = {
        "name": "made",
        "seed": 3,
        "data": {"source": "digits"},
        "model": {"layers": layers},
        "train": train,
    }
    exchange = {"portion_bytes": 1024, "credit": 2, "inside": changes.pop("inside", "shared")}
    return Job.model_validate({**job, "exchange": exchange, "train": {**train, **changes}})


MADE = {
    "a batch that does not divide evenly": {"batch": 50, "micro_batch": 8},
    "fewer micro-batches than ranks": {"batch": 9, "micro_batch": 6},
    "one micro-batch for all ranks": {"batch": 8, "micro_batch": 8},
    "micro-batches of one sample": {"batch": 5, "micro_batch": 1},
    "clipping": {"clip_norm": 0.5},
    "a flat exchange": {"inside": "flat"},
    "a flat exchange and clipping": {"inside": "flat", "clip_norm": 0.5},
    "adamw with a cosine": {
        "optimizer": {"name": "adamw", "rate": 0.01},
        "schedule": {"name": "cosine", "warmup": 3},
    },
}


def check(bench) -> None:
    trained = bench.train()
    same_division = bench.replica()
    blocking = oracle.train(bench.job, bench.data, same_division, STEPS, allreduce, bench.rank, bench.size)
    alone = bench.replica()
    serial = oracle.train(bench.job, bench.data, alone, STEPS, lambda array: None)
    assert trained.steps == STEPS
    # Portions are added element by element like the whole: the same ranks give the same sums, unless MPI
    # adds three or more numbers in an order that depends on the message's length.
    if bench.size <= 2:
        np.testing.assert_array_equal(trained.losses, blocking)
        np.testing.assert_array_equal(trained.parameters, same_division.parameters)
    np.testing.assert_allclose(trained.losses, serial, rtol=2e-5)
    # Adam turns the rounding noise of a gradient that is really zero (a bias before a norm) into full steps:
    # these weights differ, and it shows nowhere in the losses.
    if bench.job.train.optimizer.name == "sgd":
        np.testing.assert_allclose(trained.parameters, alone.parameters, rtol=1e-3, atol=2e-5)
    # Every rank holds the same weights, to the bit.
    sums = np.array([trained.parameters.view(np.uint32).astype(np.int64).sum()])
    total = sums.copy()
    allreduce(total)
    assert total[0] == bench.size * sums[0]


@pytest.mark.mpi
@pytest.mark.parametrize("name", PACKAGED)
def test_a_packaged_job_gives_the_same_answer_on_any_number_of_ranks(name):
    check(Bench(packaged(name)))


@pytest.mark.mpi
@pytest.mark.parametrize("changes", MADE.values(), ids=MADE)
def test_s3_6_the_same_answer_with(changes):
    check(Bench(made(**changes)))


@pytest.mark.mpi
def test_losses_fall():
    losses = Bench(made()).train().losses
    assert np.mean(losses[-3:]) < 0.8 * np.mean(losses[:3])


@pytest.mark.mpi
def test_a_wish_to_stop_on_one_rank_stops_all_behind_the_same_step():
    bench = Bench(made())

    def stop_on_the_last_rank(step, team):
        if team.rank == team.size - 1 and step == 4:
            team.stopping = True

    trained = bench.train(stop_on_the_last_rank)
    assert 4 < trained.steps <= 8
    steps = np.array([trained.steps])
    allreduce(steps)
    assert steps[0] == bench.size * trained.steps
