"""A single sample on all the ranks of a node: who helps, who ends no block, and what cannot be computed."""

from __future__ import annotations

import asyncio
import threading
import time
from functools import partial
from pathlib import Path

import numpy as np
import onnx
import pytest

from tests.mpi.serve.models import put, shared
from tests.pure.graph.onnx_files import file, node
from weft.runtime.message import World, run
from weft.runtime.serve import together
from weft.runtime.serve.client import Client
from weft.runtime.serve.request import UnknownModel
from weft.runtime.serve.server import Server
from weft.runtime.work.neurons import Neurons

pytestmark = pytest.mark.mpi(min_size=2)

PIXELS, CHANNELS = 96, 12
LONG_S = 60.0  # longer than any block is waited for


def filters(seed: int, inputs: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((CHANNELS, inputs, 3, 3), np.float32) / 8


def convolutions() -> onnx.ModelProto:
    """Three layers of rows that a node's ranks can divide."""
    nodes = []
    for layer, (given, found) in enumerate([("image", "a"), ("a", "b"), ("b", "answer")]):
        nodes.append(node("Conv", f"{given} w{layer}", f"c{layer}", pads=[1, 1, 1, 1]))
        nodes.append(node("Relu", f"c{layer}", found))
    weights = {f"w{layer}": filters(layer, CHANNELS if layer else 3) for layer in range(3)}
    return file(nodes, {"image": ("batch", 3, PIXELS, PIXELS)}, ["answer"], weights)


def images(seed: int, count: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((count, 3, PIXELS, PIXELS), np.float32)


def fill(root: Path) -> None:
    """The same model, once computed together and once not."""
    for name, settings in (("helped", "together = true\n"), ("alone", "")):
        put(root, name, 1, convolutions())
        (root / name / "weft.toml").write_text(f"max_batch = 4\n{settings}")


class Told:
    """Who computed blocks on this rank, and what the first of the ranks that hold waits for behind one."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.blocks = 0
        self.go_on: threading.Event | None = None  # what this rank waits for, should it be the first to hold
        self.held: Path | None = None  # what says that one holds; until then nobody else ends a block either
        self.raises = False
        monkeypatch.setattr(together.Neurons, "open", partial(Neurons.open, spans=self._block))

    def _block(self, block: str, request: int, start_ns: int, end_ns: int) -> None:
        self.blocks += 1
        if self.raises:
            raise ArithmeticError("too large")
        if self.held is None:
            return
        if self.go_on is not None and _made(self.held):
            assert self.go_on.wait(LONG_S)
        end_s = time.monotonic() + LONG_S
        while not self.held.exists():
            assert time.monotonic() < end_s
            time.sleep(0.002)


def _made(path: Path) -> bool:
    """Whether this rank is the one that makes the file."""
    try:
        path.touch(exist_ok=False)
    except FileExistsError:
        return False
    return True


async def answers(client: Client, image: np.ndarray) -> tuple[np.ndarray, str]:
    """The answer of the model that is computed together, compared with the other's; who computed it."""
    helped = await client.infer("helped", image, best_effort=True)
    alone = await client.infer("alone", image, best_effort=True)
    np.testing.assert_allclose(helped.outputs["answer"], alone.outputs["answer"], rtol=1e-4, atol=1e-5)
    return helped.outputs["answer"], helped.resource


def test_s1_7_s5_a_single_sample_is_computed_by_the_ranks_of_a_node_together(tmp_path: Path, monkeypatch):
    told = Told(monkeypatch)

    async def main(world: World) -> None:
        root = await shared(world, tmp_path / "models", fill)
        async with await Server.open(world, root, device="cpu"):
            client = await Client.open(world)
            await world.barrier()
            told.blocks = 0
            for seed in range(3):
                answer, _ = await answers(client, images(seed))
                assert np.abs(answer).max() > 0.1
            batch, _ = await answers(client, images(7, count=3))  # not a single one
            one, _ = await answers(client, images(7, count=3)[1:2])
            np.testing.assert_allclose(one, batch[1:2], rtol=1e-4, atol=1e-5)
            await world.barrier()
            # While all ranks asked, others may have computed all of it; now rank 0 is the first that is free.
            while world.rank == 0 and world.node_size > 1 and not told.blocks:
                await answers(client, images(0))
            await world.barrier()

    run(main)


def test_s1_7_s5_an_idle_rank_helps_and_one_that_does_not_end_a_block_costs_no_answer(
    tmp_path: Path, monkeypatch, capfd
):
    told = Told(monkeypatch)
    monkeypatch.setattr(together, "PATIENCE_S", 0.1)
    monkeypatch.setattr(together, "PATIENCE_TIMES", 0.0)

    async def main(world: World) -> None:
        root = await shared(world, tmp_path / "models", fill)
        with_rank_0 = 0 in world.node.ranks and world.node_size > 1
        go_on = threading.Event()
        async with await Server.open(world, root, device="cpu") as server:
            client = await Client.open(world)
            await world.barrier()
            if with_rank_0:
                told.held = root / "held"
                told.go_on = go_on if world.node_rank else None  # the first rank waits for others
            await world.barrier()
            end_s = time.monotonic() + LONG_S
            while (
                told.held is not None and world.rank == 0 and not told.held.exists()
            ):  # else computed elsewhere
                await answers(client, images(1))
                assert time.monotonic() < end_s
            await world.barrier()
            if world.rank == 0:
                for seed in range(3):
                    await answers(client, images(seed))
            await world.barrier()
            go_on.set()
            await world.barrier()
            if world.rank == 0:
                await answers(client, images(5))
                while server.service.status()["workers"][0]["state"] != "ready":  # it may be late itself
                    await asyncio.sleep(0.01)

    run(main)
    assert capfd.readouterr().err.count("until then one rank computes single samples alone") <= 1


def test_a_model_that_cannot_be_computed_together_is_told_of_and_the_others_are_served(
    tmp_path: Path, monkeypatch
):
    told = Told(monkeypatch)

    async def main(world: World) -> None:
        told.raises = 0 in world.node.ranks  # whoever takes the blocks: others may have all before rank 0
        root = await shared(world, tmp_path / "models", fill)
        async with await Server.open(world, root, device="cpu") as server:
            client = await Client.open(world)
            await client.infer("alone", images(1), best_effort=True)
            with pytest.raises(UnknownModel, match="too large"):
                await client.infer("helped", images(1), best_effort=True)
            await world.barrier()
            told.raises = False
            await world.barrier()
            if server.service is not None:
                await server.service.load("helped")
                await answers(client, images(1))
            await world.barrier()

    run(main)


class Said(threading.Event):
    """Set once a file is there, which another rank makes."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._path = path

    def is_set(self) -> bool:
        return self._path.exists()

    def wait(self, timeout: float | None = None) -> bool:
        end_s = time.monotonic() + (timeout or 0)
        while not self.is_set() and time.monotonic() < end_s:
            time.sleep(0.002)
        return self.is_set()


def test_a_model_of_which_a_block_is_held_while_it_is_loaded_is_served_without_help(
    tmp_path: Path, monkeypatch
):
    told, lines = Told(monkeypatch), []
    monkeypatch.setattr(together, "LOAD_PATIENCE_S", 0.1)

    async def main(world: World) -> None:
        root = await shared(world, tmp_path / "models", fill)
        with_rank_0 = 0 in world.node.ranks and world.node_size > 1

        def say(line: str) -> None:
            lines.append(line)
            if with_rank_0:
                (root / "go on").touch()

        monkeypatch.setattr(together, "say", say)
        if with_rank_0:
            told.held = root / "held"
            told.go_on = Said(root / "go on") if world.node_rank else None
        async with await Server.open(world, root, device="cpu"):
            client = await Client.open(world)
            await answers(client, images(1))
            await world.barrier()
        if with_rank_0 and world.rank == 0:
            assert len(lines) == 1
            assert "did not end the block" in lines[0]
            assert "it is loaded without together" in lines[0]

    run(main)
