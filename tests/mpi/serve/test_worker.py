"""Workers: a node's ranks share a model's weights, compute batches in pieces, and survive what fails."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import numpy as np
import pytest

from tests.mpi.serve.models import bfloat16, dense, expected, put, samples, shared
from weft.kernels.device import Device
from weft.runtime.errors import WeftError
from weft.runtime.message import World, run
from weft.runtime.serve.link import Link, links
from weft.runtime.serve.model import Model
from weft.runtime.serve.repository import Platform
from weft.runtime.serve.source import Source
from weft.runtime.serve.worker import ELSEWHERE, Batch, Done, ToLoad, Worker
from weft.runtime.work import Compute

pytestmark = pytest.mark.mpi


@asynccontextmanager
async def workers(world: World) -> AsyncIterator[list[Link]]:
    """A worker on every rank; rank 0 gets the links to all, and the others leave when it does."""
    device = Device()
    async with Compute(device) as compute:
        node = await world.node.duplicate("serve")
        worker = Worker(world, node, compute, device)
        found = await links(world, worker)
        yield found
        if world.rank == 0:
            await asyncio.gather(*(link.close() for link in found))
        await world.barrier()


async def load(found: list[Link], path: Path, key: str = "m") -> list[dict[str, object]]:
    return await asyncio.gather(*(link.load(ToLoad(key, str(path), Platform.ONNX, {}, 8)) for link in found))


async def ask(link: Link, batch: Batch) -> Done:
    done: asyncio.Future[Done] = asyncio.get_running_loop().create_future()
    link.run(batch, done.set_result)
    return await asyncio.wait_for(done, 30)


def test_s5_3_every_rank_computes_batches_that_come_in_pieces(tmp_path: Path):
    async def main(world: World) -> None:
        root = await shared(world, tmp_path / "models", lambda path: put(path, "m", 1, dense(1)))
        async with workers(world) as found:
            if world.rank:
                return
            told, *others = await load(found, root / "m" / "1")
            assert told["inputs"] == [["pixels", "FP32", [-1, 4]]]
            assert told["outputs"] == [["scores", "FP32", [-1, 3]]]
            assert all(other == told for other in others)
            parts = [samples(count, count) for count in (1, 3, 2)]
            for link in found:
                done = await ask(link, Batch(7, "m", 6, [parts]))
                assert done.number == 7
                assert not done.error
                assert done.compute_s > 0
                np.testing.assert_allclose(
                    done.outputs[0], expected(np.concatenate(parts), 1), rtol=1e-5, atol=1e-6
                )
            # What an answer holds is its own: the next batch does not change it.
            first = await ask(found[-1], Batch(1, "m", 1, [[parts[0]]]))
            kept = first.outputs[0].copy()
            await ask(found[-1], Batch(2, "m", 3, [[parts[1]]]))
            assert (first.outputs[0] == kept).all()

    run(main)


@pytest.mark.mpi(min_size=2)
@pytest.mark.parametrize("part", ["read", "fill"])
def test_a_rank_that_alone_cannot_read_a_model_leaves_nobody_waiting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part: str
):
    """The others of its node waited for ever, and with them whoever wanted to load anything."""

    async def main(world: World) -> None:
        root = await shared(world, tmp_path / "models", lambda path: put(path, "m", 1, dense(1)))

        def lacks(*_: object) -> None:
            raise MemoryError("no room for 3 GB")

        if world.node_rank == 0 and part == "fill":  # who writes the node's weights
            monkeypatch.setattr(Source, "fill", lacks)
        if world.node_rank == 0 and part == "read":
            monkeypatch.setattr("weft.runtime.serve.worker.read", lacks)
        async with workers(world) as found:
            if world.rank:
                return
            calls = [link.load(ToLoad("m", str(root / "m" / "1"), Platform.ONNX, {}, 8)) for link in found]
            results = await asyncio.gather(*calls, return_exceptions=True)
            for link, result in zip(found, results, strict=True):
                assert isinstance(result, WeftError)
                first = any(link.rank == ranks[0] for ranks in world.nodes)
                assert ("MemoryError: no room for 3 GB" if first else ELSEWHERE) in str(result)
            await asyncio.gather(*(link.unload("m") for link in found))

    run(main)


@pytest.mark.mpi(min_size=2)
def test_a_rank_that_alone_cannot_make_a_model_leaves_nobody_waiting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    async def main(world: World) -> None:
        root = await shared(world, tmp_path / "models", lambda path: put(path, "m", 1, dense(1)))
        making = Model.__init__

        def made(self: Model, *given: object) -> None:
            if world.rank == world.size - 1:
                raise MemoryError("an arena of 3 GB")
            making(self, *given)

        monkeypatch.setattr(Model, "__init__", made)
        (of_the_last,) = (ranks for ranks in world.nodes if world.size - 1 in ranks)
        async with workers(world) as found:
            if world.rank:
                return
            calls = [link.load(ToLoad("m", str(root / "m" / "1"), Platform.ONNX, {}, 8)) for link in found]
            async with asyncio.timeout(30):
                *others, last = await asyncio.gather(*calls, return_exceptions=True)
                assert isinstance(last, WeftError)
                assert "MemoryError: an arena of 3 GB" in str(last)
                for link, other in zip(found, others, strict=False):  # of the last one's node, and of others
                    assert str(other) == ELSEWHERE if link.rank in of_the_last else isinstance(other, dict)
                await asyncio.gather(*(link.unload("m") for link in found))

    run(main)


def test_batches_go_before_the_next_kernel_of_a_model_that_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def fill(path: Path) -> None:
        put(path, "m", 1, dense(1))
        put(path, "m", 2, dense(2))

    async def main(world: World) -> None:
        root = await shared(world, tmp_path / "models", fill)
        async with workers(world) as found:
            if world.rank:
                return
            await load(found, root / "m" / "1")
            loop, order, submitted = asyncio.get_running_loop(), [], threading.Event()
            warm_ups, answered = Model.warm_ups, loop.create_future()

            def submit() -> None:
                found[0].run(Batch(1, "m", 2, [[samples(2)]]), answered.set_result)
                submitted.set()

            def first_of_all() -> None:  # on the lane: a request comes while a kernel is computed
                if not order:
                    loop.call_soon_threadsafe(submit)
                    assert submitted.wait(30)

            def noted(self: Model, count: int) -> list[Callable[[], object]]:
                calls = [first_of_all]
                for call in warm_ups(self, count):
                    calls += [call, lambda: order.append("kernel")]
                return calls

            def computed(self: Model, pieces: list[list[np.ndarray]], count: int) -> list[np.ndarray]:
                order.append("batch")
                return [expected(samples(2), 1)]

            monkeypatch.setattr(Model, "warm_ups", noted)
            monkeypatch.setattr(Model, "run", computed)
            await load(found, root / "m" / "2", "new")
            assert not (await asyncio.wait_for(answered, 30)).error
            assert order.count("kernel") >= 4  # two kernels, for one sample and for many
            assert order[0] == "batch"

    run(main)


def test_a_batch_known_to_be_short_is_computed_in_the_loop(tmp_path: Path):
    async def main(world: World) -> None:
        root = await shared(world, tmp_path / "models", lambda path: put(path, "m", 1, dense(1)))
        async with workers(world) as found:
            if world.rank:
                return
            await load(found, root / "m" / "1")
            worker, threads = found[0].run.__self__, []
            loaded = worker._loaded["m"]
            compute = loaded.model.run

            def watched(*given: object) -> list[np.ndarray]:
                threads.append(threading.current_thread())
                return compute(*given)

            loaded.model.run = watched
            given = samples(2, 1)
            for before_s in ({}, {2: 1e-6}, {2: 1.0}, {1: 1e-6}):
                while worker._compute.busy:  # until the lane is done with what it has told of
                    await asyncio.sleep(0.001)
                loaded.took_s = before_s
                done = await ask(found[0], Batch(1, "m", 2, [[given]]))
                np.testing.assert_allclose(done.outputs[0], expected(given, 1), rtol=1e-5, atol=1e-6)
                assert loaded.took_s[2] == done.compute_s
            here = threading.current_thread()
            assert [thread is here for thread in threads] == [False, True, False, False]

    run(main)


def test_a_model_is_unloaded_behind_its_last_batch(tmp_path: Path):
    async def main(world: World) -> None:
        root = await shared(world, tmp_path / "models", lambda path: put(path, "m", 1, dense(1)))
        async with workers(world) as found:
            if world.rank:
                return
            await load(found, root / "m" / "1")
            worker = found[0].run.__self__
            loaded = worker._loaded["m"]
            begun, compute, answers = threading.Event(), loaded.model.run, []

            def slow(*given: object) -> list[np.ndarray]:
                begun.set()
                time.sleep(0.2)
                return compute(*given)

            loaded.model.run = slow
            for number in (1, 2):
                found[0].run(Batch(number, "m", 1, [[samples(1)]]), answers.append)
            await asyncio.to_thread(begun.wait)
            await asyncio.gather(*(link.unload("m") for link in found))
            assert [done.number for done in answers] == [1, 2]
            for done in answers:
                np.testing.assert_allclose(done.outputs[0], expected(samples(1), 1), rtol=1e-5, atol=1e-6)

    run(main)


def test_large_samples_travel_as_they_lie_in_memory(tmp_path: Path):
    width = 30_000  # 120 kB a sample: beyond what is joined, and beyond one MPI message

    async def main(world: World) -> None:
        root = await shared(world, tmp_path / "models", lambda path: put(path, "m", 1, dense(1, width)))
        async with workers(world) as found:
            if world.rank:
                return
            await load(found, root / "m" / "1")
            parts = [samples(2, seed, width) for seed in (1, 2)]
            wanted = expected(np.concatenate(parts), 1)
            for done in await asyncio.gather(*(ask(link, Batch(1, "m", 4, [parts])) for link in found)):
                np.testing.assert_allclose(done.outputs[0], wanted, rtol=1e-3, atol=1e-2)

    run(main)


def test_a_node_holds_a_models_weights_once(tmp_path: Path):
    async def main(world: World) -> None:
        root = await shared(world, tmp_path / "models", lambda path: put(path, "m", 1, dense(1)))
        device = Device()
        async with Compute(device) as compute:
            node = await world.node.duplicate("serve")
            worker = Worker(world, node, compute, device)
            await worker.load(ToLoad("m", str(root / "m" / "1"), Platform.ONNX, {}, 4))
            loaded = worker._loaded["m"]
            held = np.array([0 if loaded.window is None else loaded.window.nbytes(world.node_rank)], np.int64)
            await world.allreduce(held)
            windows = sum(len(ranks) > 1 for ranks in world.nodes)  # a rank that is alone needs none
            assert held[0] == 4 * 16 * windows  # 12 weights, padded
            await worker.close()

    run(main)


def test_s5_3_a_batch_that_raises_fails_alone(tmp_path: Path):
    async def main(world: World) -> None:
        root = await shared(world, tmp_path / "models", lambda path: put(path, "m", 1, dense(1)))
        async with workers(world) as found:
            if world.rank:
                return
            await load(found, root / "m" / "1")
            for link in found:
                wrong = await ask(link, Batch(1, "m", 2, [[np.ones((2, 5), np.float32)]]))
                assert "ValueError" in wrong.error
                assert "has not loaded 'other'" in (await ask(link, Batch(2, "other", 1, [[]]))).error
                right = await ask(link, Batch(3, "m", 1, [[samples(1)]]))
                np.testing.assert_allclose(right.outputs[0], expected(samples(1), 1), rtol=1e-5, atol=1e-6)

    run(main)


def test_a_model_that_cannot_be_loaded_says_why_and_leaves_the_others(tmp_path: Path):
    async def main(world: World) -> None:
        def fill(path: Path) -> None:
            put(path, "m", 1, dense(1))
            put(path, "m", 2, b"no ONNX at all")
            put(path, "m", 4, bfloat16())

        root = await shared(world, tmp_path / "models", fill)
        async with workers(world) as found:
            if world.rank:
                return
            await load(found, root / "m" / "1")
            for path, words in (
                (root / "m" / "2", "m/2"),
                (root / "m" / "3", "does not exist here"),
                (root / "m" / "4", "bfloat16"),
            ):
                results = await asyncio.gather(
                    *(link.load(ToLoad("n", str(path), Platform.ONNX, {}, 8)) for link in found),
                    return_exceptions=True,
                )
                for problem in results:
                    assert isinstance(problem, WeftError)
                    assert words in str(problem)
                await asyncio.gather(*(link.unload("n") for link in found))
            done = await ask(found[0], Batch(3, "m", 1, [[samples(1)]]))
            assert not done.error

    run(main)
