"""The same answer at any number of ranks: the training loop against the oracle's plain loop."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from tests.mpi.training import Bench, allreduce, each_way, require_equal_bits
from weft.runtime.train import oracle
from weft.runtime.train.job import load_job
from weft.runtime.train.schema import Job

STEPS = 6
"""Three by a plan that is guessed, and three by one that was made from what those took."""

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
    return load_job(name, [*PACKAGED[name], "train.steps=12"])  # (a second look at the plan comes after 10)


def made(layers: Sequence[dict[str, object]] = (), **changes: object) -> Job:
    """A small network with all that could depend on who computes what: dropout, batch norm, clipping."""
    train = {
        "batch": 50,
        "micro_batch": 8,
        "steps": STEPS,
        "optimizer": {"name": "sgd", "rate": 0.05, "momentum": 0.9},
    }
    of_exchange = {"inside", "portion_bytes", "credit", "rule", "wire", "keep"} & changes.keys()
    exchange = {"portion_bytes": 1024, "credit": 2, **{name: changes.pop(name) for name in of_exchange}}
    job = {
        "name": "made",
        "seed": 3,
        "data": {"source": "digits"},
        "model": {"layers": list(layers or SMALL)},
        "train": {**train, **changes},
        "exchange": exchange,
    }
    return Job.model_validate(job)


SMALL = [
    {"kernel": "conv2d", "channels": 6, "kernel_size": 3},
    {"kernel": "batch_norm"},
    {"kernel": "relu"},
    {"kernel": "flatten"},
    {"kernel": "dropout", "rate": 0.3},
    {"kernel": "dense", "features": 10},
]

# Of layers that are cut by rows: the convolution from 1 KiB on, the dense ones in blocks of 48 at least.
ROWS = [
    {"kernel": "conv2d", "channels": 40, "kernel_size": 3, "name": "conv"},
    {"kernel": "batch_norm"},
    {"kernel": "relu"},
    {"kernel": "max_pool2d", "kernel_size": 2},
    {"kernel": "flatten"},
    {"kernel": "dropout", "rate": 0.3},
    {"kernel": "dense", "features": 144, "name": "wide"},
    {"kernel": "relu"},
    {"kernel": "dense", "features": 100, "name": "odd"},
    {"kernel": "relu"},
    {"kernel": "dense", "features": 10},
]

MADE = {
    "a batch that does not divide evenly": {"batch": 50, "micro_batch": 8},
    "fewer micro-batches than ranks": {"batch": 9, "micro_batch": 6},
    "one micro-batch for all ranks": {"batch": 8, "micro_batch": 8},
    "micro-batches of one sample": {"batch": 5, "micro_batch": 1},
    "clipping": {"clip_norm": 0.5},
    "adamw with a cosine": {
        "optimizer": {"name": "adamw", "rate": 0.01},
        "schedule": {"name": "cosine", "warmup": 3},
    },
}

EXCHANGES = {
    "lower layer first, 1 KiB, credit 1": {"portion_bytes": 1024, "credit": 1, "rule": "lower_layer_first"},
    "lower layer first, 8 KiB, credit 4": {"portion_bytes": 8192, "credit": 4, "rule": "lower_layer_first"},
    "latest first, 16 KiB, credit 2": {"portion_bytes": 16384, "credit": 2, "rule": "latest_first"},
    "lower layer first, whole layers": {"portion_bytes": 60_000, "credit": 1, "rule": "lower_layer_first"},
    "first come, 100 KiB, credit 3": {"portion_bytes": 102_400, "credit": 3, "rule": "first_come"},
    "all in one portion": {"portion_bytes": 1 << 20, "credit": 1},
    "clipping": {"portion_bytes": 8192, "credit": 3, "clip_norm": 0.5},
    "adamw and clipping": {
        "portion_bytes": 8192, "credit": 2, "clip_norm": 0.5, "optimizer": {"name": "adamw", "rate": 0.01},
    },
    "fewer micro-batches than ranks": {"portion_bytes": 8192, "batch": 18, "micro_batch": 17},
}  # fmt: skip


def check(bench: Bench) -> None:
    trained = bench.train()
    assert trained.steps == bench.job.train.steps
    require_equal_bits(trained.parameters)
    losses, weights = bench.oracle(trained)
    np.testing.assert_array_equal(trained.losses, losses)
    np.testing.assert_array_equal(trained.parameters, weights)
    if bench.size <= 2:  # of two numbers there is one sum, in portions or at once
        losses, weights = bench.oracle(trained, allreduce)
        np.testing.assert_array_equal(trained.losses, losses)
        np.testing.assert_array_equal(trained.parameters, weights)
    alone = bench.replica()
    serial = oracle.train(bench.job, bench.data, alone, trained.steps, lambda array: None)
    np.testing.assert_allclose(trained.losses, serial, rtol=2e-5)
    # Adam turns the rounding noise of a gradient that is really zero (a bias before a norm) into full steps:
    # these weights differ, and it shows nowhere in the losses.
    if bench.job.train.optimizer.name == "sgd":
        np.testing.assert_allclose(trained.parameters, alone.parameters, rtol=1e-3, atol=2e-5)


@pytest.mark.mpi
@pytest.mark.parametrize("name", PACKAGED)
def test_a_packaged_job_gives_the_same_answer_on_any_number_of_ranks(name):
    check(Bench(packaged(name)))


@pytest.mark.mpi
@each_way("changes", MADE)
def test_s3_6_the_same_answer_with(changes, inside):
    check(Bench(made(inside=inside, **changes)))


@pytest.mark.mpi
@each_way("changes", EXCHANGES)
def test_s3_6_the_same_answer_by_blocks_of_rows_with(changes, inside):
    # Of 16 samples and more, blocks of outputs differ from the whole in the last bit.
    sizes = {"batch": 70, "micro_batch": 16}
    check(Bench(made(ROWS, inside=inside, **{**sizes, **changes})))


@pytest.mark.mpi
def test_losses_fall():
    losses = Bench(made(steps=12)).train().losses
    assert np.mean(losses[-3:]) < 0.8 * np.mean(losses[:3])


@pytest.mark.mpi
def test_a_wish_to_stop_on_one_rank_stops_all_behind_the_same_step():
    bench = Bench(made(steps=12))

    def stop_on_the_last_rank(step, team):
        if team.rank == team.size - 1 and step == 4:
            team.stopping = True

    trained = bench.train(stop_on_the_last_rank)
    assert 4 < trained.steps <= 8
    steps = np.array([trained.steps])
    allreduce(steps)
    assert steps[0] == bench.size * trained.steps
