"""Training a model whose nodes share parameters: the same answer as the oracle's, on any number of ranks."""

from __future__ import annotations

import numpy as np
import pytest

from tests.mpi.train.test_same_answer import made
from tests.mpi.training import Bench, each_way, require_equal_bits
from weft.runtime.graph import Builder, with_loss

CASES = {
    "large portions": {"portion_bytes": 1 << 20},
    "a portion of several nodes": {"portion_bytes": 4096},
    "small portions": {"portion_bytes": 1024, "credit": 1},
    "clipped": {"clip_norm": 0.1},
    "an even division": {"deterministic": True},
}


def shared(bench: Bench) -> Bench:
    """The bench with a network whose second layer comes again, with a bias of its own, behind another."""
    b = Builder()
    x = b.input("x", bench.graph.inputs["x"].shape)
    h = b("tanh", b("dense", b("flatten", x), features=96))
    h = b("tanh", b("dense", h, features=96, name="once"))
    h = b("tanh", b("dense", h, features=96, name="between"))
    h = b("tanh", b("dense", h, features=96, name="again", shares={"weight": "once.weight"}))
    target = bench.graph.inputs["target"]
    bench.graph = with_loss(b.build(b("dense", h, features=10)), "softmax_cross_entropy", target)
    return bench


@pytest.mark.mpi
@each_way("changes", CASES)
def test_the_same_answer_with_shared_parameters_and(changes, inside):
    bench = shared(Bench(made(inside=inside, **changes)))
    trained = bench.train()
    require_equal_bits(trained.parameters)
    # Gradients of two nodes and several micro-batches add up one by one, in the oracle by micro-batches:
    # where nodes share nothing both are the same bits.
    losses, weights = bench.oracle(trained)
    np.testing.assert_allclose(trained.losses, losses, rtol=2e-6)
    np.testing.assert_allclose(trained.parameters, weights, rtol=1e-4, atol=1e-6)


@pytest.mark.mpi
def test_losses_fall():
    losses = shared(Bench(made(steps=12))).train().losses
    assert np.mean(losses[-3:]) < np.mean(losses[:3])
