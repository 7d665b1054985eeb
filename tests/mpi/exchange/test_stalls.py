"""Training that stalls names, within five seconds, the rank that is late, and the model, layer and portion.

Here ranks lose their patience sooner; tests/pure/exchange/test_exchange.py adds up how long a report takes.
"""

from __future__ import annotations

import asyncio
import re
import threading
from collections.abc import Callable

import pytest
from mpi4py import MPI

from tests.mpi.exchange.test_overlap import two_layers
from tests.mpi.training import Bench, disturb
from weft.runtime.exchange import Portion, exchange
from weft.runtime.graph.backward import Phase
from weft.runtime.message import World, run, stall
from weft.runtime.train import loop, node_updates

PATIENCE_S = 0.3
STEP = 1  # from 0; the second of three
LATE = MPI.COMM_WORLD.Get_size() - 1 if MPI.Is_initialized() else 0


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    texts: list[str] = []
    monkeypatch.setattr(stall, "say", texts.append)
    for module in (exchange, loop, node_updates):
        monkeypatch.setattr(module, "PATIENCE_S", PATIENCE_S)
    return texts


def names_late(text: str) -> bool:
    """Names the late rank, in the step in which it is made late; on busy cores it may be so before."""
    return f"\n  rank {LATE} (" in text and f"step {STEP + 1}, " in text.partition("\n")[0]


def train(bench: Bench, said: list[str], arrange: Callable[..., None], let_go: threading.Event) -> list[str]:
    """Train on all ranks; the late one is let go when another has told of it. Returns all that was told.

    A rank of another node may be the first to tell, of one that waits for the late one itself.
    """

    async def main(world: World) -> None:
        channel = await world.channel("told")

        async def watch() -> None:
            if world.rank == LATE:
                await channel.receive()
                let_go.set()
            while not any(names_late(text) for text in said):
                await asyncio.sleep(0.01)
            await channel.send(LATE)

        watching = asyncio.create_task(watch())
        trained = await bench.train_in(world, arrange=arrange)
        assert trained.steps == bench.job.train.steps
        watching.cancel()

    run(main)
    return [text for texts in MPI.COMM_WORLD.allgather(list(said)) for text in texts]


@pytest.mark.mpi(min_size=2)
@pytest.mark.parametrize("inside", ["shared", "flat"])
def test_a_rank_whose_lane_is_late_is_named_with_the_portion_that_it_owes(said, inside):
    bench, let_go = Bench(two_layers(inside=inside, rule="first_come")), threading.Event()
    steps = 0

    def arrange(training, replica, world):
        def before(step, rows):
            nonlocal steps
            if (step.node, step.phase) == ("one", Phase.WEIGHT_GRADIENT) and (rows is None or rows.start):
                steps += 1
                if steps == STEP + 1:
                    assert let_go.wait(30), "nobody told of the late rank"

        if world.rank == LATE:
            disturb(replica, before)

    told = train(bench, said, arrange, let_go)
    portion = r"portion 3 \(one rows 48-95\)"
    if inside == "shared":  # what a rank owes first: a gradient, the release of weights, new ones, or a sum
        portion = r"(\w[\w ]+ of )?portion \d \((one|two)[^)]*\)"
    late = [text for text in told if names_late(text)]
    assert late
    for text in late:
        assert re.search(rf'in "two-layers: step {STEP + 1}, {portion}" for', text)
        assert f'is at "two-layers: step {STEP + 2}"' in text


@pytest.mark.mpi(min_size=2)
def test_a_portion_that_one_rank_does_not_send_is_named(said):
    bench, let_go = Bench(two_layers(inside="flat", rule="first_come")), threading.Event()

    def arrange(training, replica, world):
        carrier = training._carrier
        start = carrier.start

        async def late(portion: Portion, what: str) -> None:
            while not let_go.is_set():
                await asyncio.sleep(0.01)
            await start(portion, what)

        def maybe_late(portion: Portion, what: str):
            withheld = f"step {STEP + 1}, portion 3 " in what
            return asyncio.ensure_future(late(portion, what)) if withheld else start(portion, what)

        if world.rank == LATE:
            carrier.start = maybe_late

    told = train(bench, said, arrange, let_go)
    late = [text for text in told if names_late(text)]
    assert {text for text in late if "has not called it" in text}
    for text in late:
        assert f'in "two-layers: step {STEP + 1}, portion 3 (one rows 48-95)" for' in text
