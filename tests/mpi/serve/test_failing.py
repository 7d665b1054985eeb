"""Batches that raise on live ranks: for the sake of a request, or of the rank."""

from __future__ import annotations

import asyncio
from pathlib import Path

import numpy as np
import pytest

from tests.mpi.serve.models import close_to, dense, put, samples, shared
from weft.runtime.message import RequestError, World, run
from weft.runtime.serve.client import Client
from weft.runtime.serve.model import Model
from weft.runtime.serve.server import Server

pytestmark = pytest.mark.mpi

UNLUCKY = 13.0
"""What fails wherever it is computed."""

BROKEN = 0
"""The rank to which nothing has to travel: none is asked more often."""


class Failing:
    """This rank: whether it is broken, so that whatever it computes fails."""

    broken = False


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> Failing:
    compute, rank = Model.run, Failing()

    def run_or_raise(self: Model, pieces: list[list[np.ndarray]], count: int) -> list[np.ndarray]:
        if rank.broken or any((piece == UNLUCKY).any() for piece in pieces[0]):
            raise MemoryError("none left")
        return compute(self, pieces, count)

    monkeypatch.setattr(Model, "run", run_or_raise)
    return rank


def test_s5_3_a_kernel_that_raises_fails_its_own_requests(tmp_path: Path, failing: Failing):
    async def main(world: World) -> None:
        root = await shared(world, tmp_path / "models", lambda path: put(path, "a", 1, dense(1)))
        async with await Server.open(world, root, device="cpu"):
            client = await Client.open(world)
            with pytest.raises(RequestError, match="none left"):
                await client.infer("a", np.full((1, 4), UNLUCKY, np.float32), best_effort=True)
            close_to(1, samples(1), (await client.infer("a", samples(1), best_effort=True)).outputs["scores"])
            await world.barrier()

    run(main)


@pytest.mark.mpi(min_size=2)
def test_s5_1_a_rank_on_which_everything_fails_costs_no_answer(tmp_path: Path, failing: Failing):
    async def main(world: World) -> None:
        root = await shared(world, tmp_path / "models", lambda path: put(path, "a", 1, dense(1)))
        async with await Server.open(world, root, device="cpu") as server:
            client = await Client.open(world)
            await world.barrier()
            failing.broken = world.rank == BROKEN

            async def one(number: int) -> None:
                given = samples(1, number)
                close_to(1, given, (await client.infer("a", given, best_effort=True)).outputs["scores"])

            profile = None
            if server.service is not None:
                profile = server._dispatcher.policy.profiles.of(f"rank {BROKEN} cpu", "a/1")
            while profile is not None and profile.availability == 1.0:  # until it has failed
                await asyncio.gather(*(one(number) for number in range(4 * world.size)))
            await world.barrier()

    run(main)


@pytest.mark.mpi(min_size=2)
def test_s5_1_a_broken_rank_is_told_from_requests_that_break_every_rank(tmp_path: Path, failing: Failing):
    async def main(world: World) -> None:
        root = await shared(world, tmp_path / "models", lambda path: put(path, "a", 1, dense(1)))
        async with await Server.open(world, root, device="cpu") as server:
            await world.barrier()
            failing.broken = world.rank == BROKEN
            if world.rank:
                return
            client = await Client.open(world)
            policy = server._dispatcher.policy
            well = [f"rank {rank} cpu" for rank in range(world.size) if rank != BROKEN]
            profiles = [policy.profiles.of(name, "a/1") for name in well]
            unlucky = np.full((1, 4), UNLUCKY, np.float32)

            async def ask(given: np.ndarray) -> None:
                close_to(1, given, (await client.infer("a", given, best_effort=True)).outputs["scores"])

            async def ask_in_vain(given: np.ndarray) -> None:
                with pytest.raises(RequestError, match="none left"):
                    await client.infer("a", given, best_effort=True)

            while "a/1" in policy.resources[f"rank {BROKEN} cpu"].models:
                await asyncio.gather(*(ask_in_vain(unlucky) for _ in range(4 * world.size)))
                await asyncio.gather(*(ask(samples(1, number)) for number in range(4 * world.size)))
            assert min(each.availability for each in profiles) > 0.9
            await asyncio.gather(*(ask_in_vain(unlucky) for _ in range(40)))
            assert all("a/1" in policy.resources[name].models for name in well)
            assert min(each.availability for each in profiles) > 0.9
            await asyncio.gather(*(ask(samples(1, number)) for number in range(40)))

    run(main)
