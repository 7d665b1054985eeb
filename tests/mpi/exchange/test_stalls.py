"""Training that stalls names, within five seconds, the rank that is late, and the model, layer and portion.

Here ranks lose their patience sooner; tests/pure/exchange/test_exchange.py adds up how long a report takes.
"""

from __future__ import annotations

import asyncio
import re
import threading
from collections.abc import Callable

import numpy as np
import pytest
from mpi4py import MPI

from tests.mpi.exchange.test_overlap import two_layers
from tests.mpi.telling import Said, listen
from tests.mpi.training import Bench, disturb
from weft.runtime.exchange import Portion, exchange
from weft.runtime.graph.backward import Phase
from weft.runtime.message import World, run
from weft.runtime.train import loop, node_updates

PATIENCE_S = 0.3
STEP = 1  # from 0; the second of three
LATE = MPI.COMM_WORLD.Get_size() - 1 if MPI.Is_initialized() else 0


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> Said:
    for module in (exchange, loop, node_updates):
        monkeypatch.setattr(module, "PATIENCE_S", PATIENCE_S)
    return listen(monkeypatch)


class Late:
    """What holds up the late rank in one step, on any of its threads, until another has told of it."""

    def __init__(self) -> None:
        self.begun, self.over = threading.Event(), threading.Event()


def train(bench: Bench, said: Said, arrange: Callable[..., None], late: Late) -> list[str]:
    """Train on all ranks; returns all that was told of the late one.

    The others look while that is held up, for a rank may be slow by itself before and behind that. One of
    another node may be the first to tell, of one that waits for the late one itself.
    """

    async def main(world: World) -> None:
        apart, told = await world.duplicate("watch"), np.zeros(1)

        async def watch() -> None:
            while world.rank == LATE and not late.begun.is_set():
                await asyncio.sleep(0.01)
            await apart.barrier()
            said.looks = world.rank != LATE
            while not told[0]:
                await asyncio.sleep(0.01)
                told[0] = len(said.naming(LATE))
                await apart.allreduce(told, "max")
            said.looks = False
            await apart.barrier()
            late.over.set()

        watching = asyncio.create_task(watch())
        trained = await bench.train_in(world, arrange=arrange)
        assert trained.steps == bench.job.train.steps
        await watching

    run(main)
    return [text for texts in MPI.COMM_WORLD.allgather(said.naming(LATE)) for text in texts]


@pytest.mark.mpi(min_size=2)
@pytest.mark.parametrize("inside", ["shared", "flat"])
def test_a_rank_whose_lane_is_late_is_named_with_the_portion_that_it_owes(said, inside):
    bench, late = Bench(two_layers(inside=inside, rule="first_come")), Late()
    steps = 0

    def arrange(training, replica, world):
        def before(step, rows):
            nonlocal steps
            if (step.node, step.phase) == ("one", Phase.WEIGHT_GRADIENT) and (rows is None or rows.start):
                steps += 1
                if steps == STEP + 1:
                    late.begun.set()
                    assert late.over.wait(30), "nobody told of the late rank"

        if world.rank == LATE:
            disturb(replica, before)

    told = train(bench, said, arrange, late)
    portion = r"portion 3 \(one rows 48-95\)"
    if inside == "shared":  # what a rank owes first: a gradient, the release of weights, new ones, or a sum
        portion = r"(\w[\w ]+ of )?portion \d \((one|two)[^)]*\)"
    assert told
    for text in told:
        assert re.search(rf'in "two-layers: step {STEP + 1}, {portion}" for', text)
        assert f'is at "two-layers: step {STEP + 2}"' in text


@pytest.mark.mpi(min_size=2)
def test_a_portion_that_one_rank_does_not_send_is_named(said):
    bench, late = Bench(two_layers(inside="flat", rule="first_come")), Late()

    def arrange(training, replica, world):
        carrier = training._carrier
        start = carrier.start

        async def start_late(portion: Portion, what: str) -> None:
            late.begun.set()
            while not late.over.is_set():
                await asyncio.sleep(0.01)
            await start(portion, what)

        def maybe_late(portion: Portion, what: str):
            withheld = f"step {STEP + 1}, portion 3 " in what
            return asyncio.ensure_future(start_late(portion, what)) if withheld else start(portion, what)

        if world.rank == LATE:
            carrier.start = maybe_late

    told = train(bench, said, arrange, late)
    assert {text for text in told if "has not called it" in text}
    for text in told:
        assert f'in "two-layers: step {STEP + 1}, portion 3 (one rows 48-95)" for' in text
