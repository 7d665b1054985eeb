"""A new run starts with the weights of another, on every rank and with one copy of them in a node."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from tests.mpi.train.fleets import RANK, changed, dense, final, fleet
from weft.runtime.graph import initialise
from weft.runtime.train.schema import Layer

STILL = {"name": "sgd", "rate": 1e-30, "momentum": 0.9}  # weights stay as they are


def after(folder: Path, weights: Path | str, **changes: object):
    job = dense(folder, "after", steps=1, optimizer=STILL)
    return changed(job, "model", weights=str(weights), **changes)


def test_weights_of_an_earlier_run(folder):
    before = fleet([dense(folder)])
    run = before.ready[0].folder.path
    then = fleet([after(folder, run)])
    layers = [Layer(**layer.model_dump()) for layer in before.ready[0].job.model.layers]
    layers[-1] = Layer.model_validate({"kernel": "dense", "features": 12})
    other = fleet([after(folder, run, layers=layers)])
    told = "after: starts with {} of its 4 arrays from " + str(run)
    assert then.ready[0].note.startswith(told.format(4))
    assert other.ready[0].note.startswith(told.format(2))
    assert "drawn anew: dense_2.weight ((10, 48) there, (12, 48) here), dense_2.bias" in other.ready[0].note
    if RANK == 0:
        wanted, got, body = final(before, 0), final(then, 0), final(other, 0)
        for name in (name for name in wanted if name.startswith("weight/")):
            np.testing.assert_array_equal(got[name], wanted[name], err_msg=name)
        momenta = [each["optimizer0/dense_2.bias"] for each in (got, wanted)]
        assert np.all(momenta[0] != momenta[1])  # the optimizer starts anew
        np.testing.assert_array_equal(body["weight/dense_1.weight"], wanted["weight/dense_1.weight"])
        layout = other.ready[0].replica.layout
        place = layout.span("dense_2")
        drawn = initialise(layout, 3)[place][: 12 * 48].reshape(12, 48)
        np.testing.assert_array_equal(body["weight/dense_2.weight"], drawn)


@pytest.mark.mpi
@pytest.mark.parametrize("inside", ["shared", "flat"])
def test_a_masks_constants_may_be_infinite(inside, folder):
    """As those of ONNX files are. They were NaN behind the first step, and the run was said to diverge."""
    mask = np.where(np.arange(12) < 10, 0, -np.inf).astype(np.float32)
    if RANK == 0:
        save_file({"mask.weight": mask}, folder / "mask.safetensors")
    masked = [
        {"kernel": "flatten"},
        {"kernel": "dense", "features": 12},
        {"kernel": "arithmetic_weight", "operator": "add", "shape": [12], "trained": False, "name": "mask"},
    ]
    layers = [Layer.model_validate(layer) for layer in masked]
    job = changed(dense(folder), "model", weights=str(folder / "mask.safetensors"), layers=layers)
    ran = fleet([changed(job, "exchange", inside=inside)])
    assert ran.results[0].steps == 8
    if RANK == 0:
        np.testing.assert_array_equal(final(ran, 0)["weight/mask.weight"], mask)
