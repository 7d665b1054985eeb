"""Backward kernels of lower layers run while gradients of higher layers are on the wire."""

from __future__ import annotations

import re

import pytest
from mpi4py import MPI

from tests.mpi.training import Bench
from weft.runtime.train.schema import Job

WIDTH = 512
STEPS = 2


def deep_job() -> Job:
    """Layers of 1 MB each; every rank has one micro-batch in every step."""
    layers = [{"kernel": "flatten"}]
    for _ in range(6):
        layers += [{"kernel": "dense", "features": WIDTH}, {"kernel": "relu"}]
    layers.append({"kernel": "dense", "features": 10})
    train = {
        "batch": 64 * MPI.COMM_WORLD.Get_size(),
        "micro_batch": 64,
        "steps": STEPS,
        "optimizer": {"name": "sgd", "rate": 0.01},
    }
    return Job.model_validate(
        {
            "name": "deep", "data": {"source": "digits"}, "model": {"layers": layers}, "train": train,
            "exchange": {"portion_bytes": WIDTH * WIDTH * 4},
        }
    )  # fmt: skip


@pytest.mark.mpi
def test_r2_backward_kernels_run_while_higher_layers_travel():
    """Neither side may wait for the other: the kernels of the third layer wait until the last layer's portion
    has left, and it does not arrive before those of the first layer have run."""
    trained = Bench(deep_job()).train(
        hold=lambda what: ("dense_1.weight_gradient", step_of(what)) if "dense_7" in what else None,
        wait_in="dense_3",
    )
    kernels = [
        (start, end)
        for track, name, start, end, info in trained.spans
        if track == "compute" and info.get("step") == 0 and name == "dense_2.weight_gradient"
    ]
    portion = [
        (start, end)
        for track, _, start, end, info in trained.spans
        if track == "wire" and info["step"] == 0 and info["portion"] == 0
    ]
    assert len(kernels) == len(portion) == 1
    assert portion[0][0] <= kernels[0][0]
    assert kernels[0][1] <= portion[0][1]


@pytest.mark.mpi
def test_portions_leave_in_the_order_of_the_plan_on_every_rank():
    trained = Bench(deep_job()).train()
    order = [
        (info["step"], info["portion"])
        for track, _, start, _, info in sorted(trained.spans, key=lambda span: span[2])
        if track == "wire"
    ]
    assert order == sorted(order)


@pytest.mark.mpi
def test_s3_5_the_next_forward_of_a_layer_runs_while_higher_layers_travel():
    """The last layer's portion arrives after the first layer's next forward: that may not wait for it."""
    bench = Bench(deep_job())

    def hold(what):
        step = step_of(what)
        return ("dense_1.forward", step + 1) if "dense_7" in what and step + 1 < STEPS else None

    assert bench.train(hold=hold).steps == STEPS


def step_of(what: str) -> int:
    """The step, counted from 0, of a transfer as the exchange describes it."""
    found = re.search(r"step (\d+)", what)
    assert found is not None
    return int(found[1])
