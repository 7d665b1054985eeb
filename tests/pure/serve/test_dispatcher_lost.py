"""The dispatcher and workers that hang, callers that leave, and a server that ends before it has answered."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.pure.serve.test_dispatcher import Fake, dispatcher, request
from weft.runtime.serve.catalog import Served
from weft.runtime.serve.dispatcher import STUCK_S, Dispatcher
from weft.runtime.serve.repository import Platform, Version
from weft.runtime.serve.request import Reason, Refused
from weft.runtime.serve.settings import ModelSettings
from weft.runtime.serve.worker import Batch, Done


def hanging(rank: int) -> Fake:
    """A worker whose batches end when the test says so."""
    worker = Fake(rank)
    worker.answers = False
    return worker


def state(made: Dispatcher, number: int) -> str:
    return made.status()["workers"][number]["state"]


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not holds():
            await asyncio.sleep(0.01)


def test_s5_4_a_worker_that_hangs_gets_no_work_until_it_has_come_to_itself():
    async def main() -> None:
        hung, well = hanging(0), Fake(1)
        made = dispatcher(hung, well)
        made.watch.start(lambda work, name: asyncio.get_running_loop().create_task(work))
        answer = await made.infer(request(1.0, best_effort=True))
        assert (answer.resource, answer.outputs["y"].item()) == (well.resource, 2.0)
        assert len(hung.kept) == 1, "it was sent first where nobody answers"
        for _ in range(10):  # for two seconds: the watch asks five times a second
            assert state(made, 0) == "stuck"
            assert (await made.infer(request(1.0, best_effort=True))).resource == well.resource
            await asyncio.sleep(0.2)
        assert len(hung.kept) == 1
        hung.come_to_itself()
        await until(lambda: state(made, 0) == "ready" and not made.watch.given_up(hung))
        well.there = False
        await until(lambda: state(made, 1) == "silent")
        asked = asyncio.create_task(made.infer(request(3.0, best_effort=True)))
        assert (await asked).outputs["y"].item() == 6.0
        # What was computed twice is counted once.
        statistics = made.tally.model("double/1")
        assert statistics.success.count == statistics.compute.count == statistics.execution_count == 12
        await made.watch.stop()

    asyncio.run(main())


def test_a_worker_does_not_hang_while_its_own_process_is_stopped():
    async def main() -> None:
        worker = hanging(0)
        made = dispatcher(worker)
        made.watch.start(lambda work, name: asyncio.get_running_loop().create_task(work))
        asked = [asyncio.create_task(made.infer(request(1.0, best_effort=True)))]
        await until(lambda: bool(worker.kept))
        time.sleep(2 * STUCK_S)  # a laptop that is closed, a machine that gives the process no core
        assert made.watch.ready
        asked.append(asyncio.create_task(made.infer(request(2.0, best_effort=True))))
        await asyncio.sleep(0.01)
        assert state(made, 0) == "ready"
        worker.come_to_itself()
        assert [answer.outputs["y"].item() for answer in await asyncio.gather(*asked)] == [2.0, 4.0]
        await made.watch.stop()

    asyncio.run(main())


def test_what_is_given_up_leaves_the_queue():
    async def main() -> None:
        worker = hanging(0)
        made = dispatcher(worker)
        asked = [asyncio.create_task(made.infer(request(1.0, best_effort=True))) for _ in range(80)]
        await until(lambda: bool(worker.kept))
        made.give_up("the server ends")
        for result in await asyncio.gather(*asked, return_exceptions=True):
            assert isinstance(result, Refused)
            assert result.reason is Reason.DRAINING
        assert made.policy.queued == dict.fromkeys(made.policy.queued, 0)
        sent = sum(len(batch.pieces[0]) for batch, _ in worker.kept)
        worker.come_to_itself()
        await asyncio.sleep(0.05)
        assert sent < 80
        assert not worker.kept, "what nobody waits for was computed"
        assert made.tally.model("double/1").refused == {Reason.DRAINING: 80}

    asyncio.run(main())


def test_a_caller_that_left_did_not_fail_too():
    async def main() -> None:
        worker = hanging(0)
        worker.raises = "ArithmeticError: the kernel's own words"
        made = dispatcher(worker)
        left, stays = (asyncio.create_task(made.infer(request(1.0, best_effort=True))) for _ in range(2))
        await until(lambda: bool(worker.kept))
        left.cancel()
        worker.come_to_itself()
        with pytest.raises(Exception, match="the kernel's own words"):
            await stays
        await asyncio.sleep(0.05)
        statistics = made.tally.model("double/1")
        assert (statistics.fail.count, statistics.refused) == (1, {Reason.CANCELLED: 1})

    asyncio.run(main())


def test_a_caller_that_leaves_just_when_it_is_answered_is_counted_once():
    async def main() -> None:
        worker = hanging(0)
        made = dispatcher(worker)
        asked = asyncio.create_task(made.infer(request(1.0, best_effort=True)))
        await until(lambda: bool(worker.kept))
        ((batch, answer),) = worker.kept
        answer(Done(batch.number, (np.concatenate(batch.pieces[0]),), 0.001))
        asked.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asked
        statistics = made.tally.model("double/1")
        assert (statistics.success.count, statistics.refused) == (1, {})

    asyncio.run(main())


def test_what_is_the_same_for_all_samples_is_every_callers_own():
    constant = np.ones((2, 3), np.float32)

    class Constant(Fake):
        def run(self, batch: Batch, answer: Callable[[Done], object]) -> None:
            rows = np.concatenate(batch.pieces[0])
            asyncio.get_running_loop().call_soon(answer, Done(batch.number, (rows, constant), 0.001))

    async def main() -> None:
        made = dispatcher(Constant(0))
        told = {"inputs": [["x", "FP32", [-1, 1]]], "labels": []}
        told["outputs"] = [["y", "FP32", [-1, 1]], ["constant", "FP32", [2, 3]]]
        version = Version("double", 1, Path(), Platform.ONNX)
        made._catalog.add(Served.of(version, ModelSettings(), "double/1@2", told, 32))
        made.reconfigure()
        first = await made.infer(request(1.0, best_effort=True))
        first.outputs["constant"][...] = 7
        second = await made.infer(request(1.0, best_effort=True))
        assert (second.outputs["constant"] == 1).all()

    asyncio.run(main())


@pytest.mark.parametrize(("largest", "fits"), [(16, False), (32, True), (64, True)])
def test_a_model_that_is_loaded_anew_with_larger_batches_takes_over_at_once(largest, fits):
    told = {"inputs": [["x", "FP32", [-1, 1]]], "outputs": [["y", "FP32", [-1, 1]]], "labels": []}
    version = Version("double", 1, Path(), Platform.ONNX)
    old, new = (Served.of(version, ModelSettings(), "key", told, most) for most in (32, largest))
    assert new.fits(old) is fits


def test_a_model_that_is_being_exchanged_is_not_called_unknown():
    async def main() -> None:
        made = dispatcher(Fake(0))
        old = made._catalog.named("double/1")
        old.leaving = old.anew = True
        with pytest.raises(Refused, match="loaded anew: ask again"):
            await made.infer(request(1.0))

    asyncio.run(main())
