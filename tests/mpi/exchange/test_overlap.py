"""Backward kernels of lower layers run while gradients of higher layers are on the wire."""

from __future__ import annotations

import re

import numpy as np
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
            "exchange": {"portion_bytes": WIDTH * WIDTH * 4, "inside": "flat"},
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
        if track == "compute" and info.get("step") == 0 and name == "dense_2.input_gradient"
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
    wire = sorted((span for span in trained.spans if span[0] == "wire"), key=lambda span: span[2])
    for step in range(STEPS):
        order = tuple(info["portion"] for *_, info in wire if info["step"] == step)
        assert order == trained.plan
    everyones = np.zeros((MPI.COMM_WORLD.Get_size(), len(trained.plan)), np.int64)
    MPI.COMM_WORLD.Allgather(np.array(trained.plan, np.int64), everyones)
    assert (everyones == everyones[0]).all()


@pytest.mark.mpi
def test_s3_5_the_next_forward_of_a_layer_runs_while_higher_layers_travel():
    """The last layer's portion arrives after the first layer's next forward: that may not wait for it."""
    bench = Bench(deep_job())

    def hold(what):
        step = step_of(what)
        return ("dense_1.forward", step + 1) if "dense_7" in what and step + 1 < STEPS else None

    assert bench.train(hold=hold).steps == STEPS


def two_layers(**exchange: object) -> Job:
    """A network of which layer 2 travels in three portions and layer 1 in two, one at a time."""
    layers = [
        {"kernel": "flatten"},
        {"kernel": "dense", "features": 96, "name": "one"},
        {"kernel": "relu"},
        {"kernel": "dense", "features": 144, "name": "two"},
    ]
    return Job.model_validate(
        {
            "name": "two-layers",
            "data": {"source": "digits"},
            "model": {"layers": layers},
            "train": {
                "batch": 16 * MPI.COMM_WORLD.Get_size(),
                "micro_batch": 16,
                "steps": 3,  # no more: behind the third a plan is made from what this machine measures
                "optimizer": {"name": "sgd", "rate": 0.01, "momentum": 0.9},
            },
            "exchange": {
                "inside": "flat",
                "portion_bytes": 16_200,  # layer 2 has 55,872 bytes, layer 1 24,960
                "credit": 1,
                **exchange,
            },
        }
    )


def posted(trained) -> list[list[str]]:
    """What was posted in each step, in order, as "layer rows"."""
    wire = sorted((s for s in trained.spans if s[0] == "wire"), key=lambda span: span[2])
    steps = sorted({info["step"] for *_, info in wire})
    return [
        [name[name.index("(") + 1 : -1] for _, name, _, _, i in wire if i["step"] == step] for step in steps
    ]


PORTIONS = {
    "2a": "two rows 96-143", "2b": "two rows 48-95", "2c": "two rows 0-47",
    "1a": "one rows 48-95", "1b": "one rows 0-47",
}  # fmt: skip


@pytest.mark.mpi(min_size=2)
@pytest.mark.parametrize(
    ("rule", "order"),
    [
        pytest.param("lower_layer_first", ["2a", "1a", "1b", "2b", "2c"], id="lower layer first"),
        pytest.param("first_come", ["2a", "2b", "2c", "1a", "1b"], id="first come"),
    ],
)
def test_s3_2_portions_of_lower_layers_overtake_on_live_ranks(rule, order):
    """The first portion stays on the wire until layer 1's gradient is whole, as on a slow link."""

    def hold(what):
        return ("one.weight_gradient rows 0-47", step_of(what)) if "portion 0" in what else None

    trained = Bench(two_layers(rule=rule)).train(hold=hold)
    assert posted(trained) == [[PORTIONS[name] for name in order]] * 3


@pytest.mark.mpi(min_size=2)
def test_s3_5_an_updated_block_computes_forward_while_the_layers_other_portions_travel():
    def hold(what):
        if "two rows 0-47" not in what or step_of(what) == 2:
            return None
        return "two.forward rows 96-143", step_of(what) + 1

    assert Bench(two_layers(credit=5)).train(hold=hold).steps == 3


def step_of(what: str) -> int:
    """The step, counted from 0, of a transfer as the exchange describes it."""
    found = re.search(r"step (\d+)", what)
    assert found is not None
    return int(found[1]) - 1
