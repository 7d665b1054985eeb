"""A run in a short wire format goes on with what it has left out."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import numpy as np
import pytest

from tests.formats import WIRES
from tests.mpi.train.fleets import RANK, assert_equal, changed, dense, final, fleet
from weft.runtime.message import World, run
from weft.runtime.train import checkpoint, residuals
from weft.runtime.train.fleet import train
from weft.runtime.train.residuals import PREFIX

# Where gradients travel: on one node only without its memory.
INSIDE = ["shared", "flat"] if "+" in os.environ.get("WEFT_NODES", "") else ["flat"]


@pytest.mark.mpi(min_size=2)
@pytest.mark.parametrize("inside", INSIDE)
@pytest.mark.parametrize("wire", WIRES)
def test_a_resumed_run_owes_what_an_unbroken_one_owes(wire, inside, folder):
    """What its ranks had left out was forgotten: with top_k most of what they had computed."""
    job = changed(dense(folder, wire, clip_norm=1.0), "exchange", wire=wire, inside=inside)
    whole = fleet([job])
    first = fleet([changed(job, "train", steps=4)])
    if RANK == 0:
        assert any(name.startswith(PREFIX) and tensor.any() for name, tensor in final(first, 0).items())
    rest = fleet([job], resume=[first.ready[0].folder.path])
    assert_equal(rest, 0, whole)


@pytest.mark.mpi(min_size=2)
def test_it_is_gathered_when_the_last_checkpoint_is_written(folder, monkeypatch):
    """It was while that one was under way: rank 0 had both in memory."""
    save, gather = checkpoint.save, residuals.gather
    writing, gathered, beside = threading.Event(), threading.Event(), []

    def late(path: Path, snapshot: checkpoint.Snapshot, keep: int) -> Path:
        writing.set()
        gathered.wait(0.5)
        writing.clear()
        return save(path, snapshot, keep)

    async def told(*given, **named):
        beside.append(writing.is_set())
        gathered.set()
        found = await gather(*given, **named)
        gathered.clear()
        return found

    monkeypatch.setattr(checkpoint, "save", late)
    monkeypatch.setattr(residuals, "gather", told)
    job = changed(dense(folder, steps=3), "exchange", wire="top_k", inside="flat")
    fleet([changed(job, "checkpoint", every=1)])
    assert beside == [False] * 3


@pytest.mark.mpi(min_size=2)
def test_what_a_program_has_sent_before_is_not_taken_for_it(folder):
    """It was, where one model trains, and the program received what its ranks had left out."""
    job = changed(dense(folder, steps=1, evaluate_every=1), "exchange", wire="top_k", inside="flat")

    async def main(world: World) -> None:
        sent = world.send(np.full(3, world.rank), 0)
        await train(world, [job])
        for rank in range(world.size if world.rank == 0 else 0):
            await world.recv(came := np.zeros(3, int), rank)
            assert came.tolist() == [rank] * 3
        await sent

    run(main)
