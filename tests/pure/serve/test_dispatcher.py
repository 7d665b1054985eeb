"""The dispatcher with workers that are plain callbacks: who gets what, who fails, and who is left out."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest

from weft.runtime.errors import RequestError
from weft.runtime.serve.catalog import Catalog, Served
from weft.runtime.serve.dispatcher import Dispatcher
from weft.runtime.serve.http.messages import encode
from weft.runtime.serve.policy import POLICIES
from weft.runtime.serve.profile import Profiles
from weft.runtime.serve.repository import Platform, Version
from weft.runtime.serve.request import InferRequest, Qos, Reason, Refused, WrongInput
from weft.runtime.serve.settings import ModelSettings, ServerSettings
from weft.runtime.serve.worker import Batch, Done

TOLD = {"inputs": [["x", "FP32", [-1, 1]]], "outputs": [["y", "FP32", [-1, 1]]], "labels": []}


class Fake:
    """A worker that doubles, `latency_s` later; with `answers` False not before `come_to_itself`."""

    host = "here"

    def __init__(self, rank: int, latency_s: float = 0.0) -> None:
        self.rank, self.resource, self.latency_s = rank, f"rank {rank} cpu", latency_s
        self.answers = True
        self.there = True
        self.raises = ""
        self.fails_at: float | None = None  # a value
        self.batches: list[int] = []  # their sizes
        self.kept: list[tuple[Batch, Callable[[Done], object]]] = []
        self._free_s = 0.0

    def run(self, batch: Batch, answer: Callable[[Done], object]) -> None:
        self.batches.append(batch.count)
        if not self.answers:
            self.kept.append((batch, answer))
            return
        rows = np.concatenate(batch.pieces[0])
        assert len(rows) == batch.count
        loop = asyncio.get_running_loop()
        self._free_s = max(loop.time(), self._free_s) + self.latency_s  # one after the other
        raised = self.raises or ("Traceback: unlucky" if self.fails_at in rows else "")
        done = Done(batch.number, () if raised else (rows * 2,), self.latency_s, raised)
        loop.call_at(self._free_s, answer, done)

    def come_to_itself(self) -> None:
        """Answer what was asked meanwhile."""
        self.answers, kept = True, self.kept
        self.kept = []
        for batch, answer in kept:
            self.batches.pop()
            self.run(batch, answer)

    async def hello(self) -> None:
        while not self.there:
            await asyncio.sleep(3600)

    async def load(self, *arguments: Any) -> Mapping[str, Any]:
        raise NotImplementedError

    async def unload(self, key: str) -> None:
        raise NotImplementedError

    async def close(self) -> None:
        raise NotImplementedError


def dispatcher(*workers: Fake, policy: str = "first_come", **settings: Any) -> Dispatcher:
    catalog = Catalog(ServerSettings(**settings))
    version = Version("double", 1, Path(), Platform.ONNX)
    catalog.add(Served.of(version, ModelSettings(), "double/1@1", TOLD, 32))
    made = Dispatcher(workers, catalog, POLICIES[policy](catalog.policy_settings(), Profiles()))
    made.reconfigure()
    for worker in workers:
        for size in (1, 32):
            for _ in range(5):
                profile = made.policy.profiles.of(worker.resource, "double/1", 32)
                profile.measured(size, max(worker.latency_s, 1e-4), 0.0)
    return made


def request(value: float, count: int = 1, **qos: Any) -> InferRequest:
    return InferRequest("double", {"x": np.full((count, 1), value, np.float32)}, qos=Qos(**qos))


def test_s5_3_each_of_1000_concurrent_requests_gets_its_own_answer():
    async def main() -> None:
        workers = [Fake(rank, 1e-3) for rank in range(3)]
        made = dispatcher(*workers)
        asked = [request(value, 1 + value % 3, best_effort=True) for value in range(1000)]
        results = await asyncio.gather(*(made.infer(each) for each in asked))
        for value, result in enumerate(results):
            assert result.outputs["y"].tolist() == [[2.0 * value]] * (1 + value % 3)
        assert sum(sum(worker.batches) for worker in workers) == sum(1 + v % 3 for v in range(1000))
        assert all(worker.batches for worker in workers)
        (found,) = made.tally.models.values()
        assert found.success.count == 1000
        assert found.execution_count == sum(len(worker.batches) for worker in workers)

    asyncio.run(main())


def test_s5_3_a_batch_that_fails_fails_its_requests_alone():
    async def main() -> None:
        worker = Fake(1)
        made = dispatcher(worker)
        worker.raises = "Traceback: boom"
        with pytest.raises(RequestError, match=r"rank 1 on host here failed .*\nTraceback: boom"):
            await made.infer(request(1.0))
        worker.raises = ""
        assert (await made.infer(request(1.0))).outputs["y"].tolist() == [[2.0]]
        assert made.tally.model("double/1").fail.count == 1

    asyncio.run(main())


@pytest.mark.parametrize("policy", POLICIES)
def test_s5_3_a_request_that_fails_in_company_fails_alone(policy: str, monkeypatch: pytest.MonkeyPatch):
    # A plan made of so few arrivals has batches of one request, and on busy cores one was made in time.
    monkeypatch.setattr("weft.runtime.serve.policy.nexus.FIRST_EPOCH_S", 3600.0)

    async def main() -> None:
        worker = Fake(0, 1e-3)
        made = dispatcher(worker, policy=policy)
        worker.fails_at = 13.0
        values = (1.0, 2.0, 13.0, 3.0, 4.0)
        asked = (made.infer(request(value, 2, best_effort=True)) for value in values)
        answers = await asyncio.gather(*asked, return_exceptions=True)
        assert max(worker.batches) > 2, "none was computed in company"
        for value, answer in zip(values, answers, strict=True):
            if value == 13.0:
                assert isinstance(answer, RequestError)
            else:
                assert not isinstance(answer, BaseException), answer
                assert answer.outputs["y"].tolist() == [[2 * value]] * 2
        assert made.tally.model("double/1").fail.count == 1
        assert (await made.infer(request(5.0))).outputs["y"].item() == 10.0
        await made.rest()

    asyncio.run(main())


def test_requests_that_are_tried_again_alone_go_to_others_when_their_worker_is_lost():
    async def main() -> None:
        lost, well = Fake(0, 1e-3), Fake(1, 1e-3)
        made = dispatcher(lost, well)
        made.down(well)  # the two requests that come while the first is computed find one worker, and company
        lost.fails_at = 13.0
        asked = [asyncio.create_task(made.infer(request(v, 2, best_effort=True))) for v in (1.0, 13.0, 2.0)]
        async with asyncio.timeout(10):
            while max(lost.batches, default=0) < 4:
                await asyncio.sleep(0)
            lost.answers = lost.there = False
            while len(lost.kept) < 2:  # until it has been asked for each of them alone
                await asyncio.sleep(0)
        made.up(well)
        made.watch.start(background)
        answers = await asyncio.gather(*asked)
        assert [each.outputs["y"][0].item() for each in answers] == [2.0, 26.0, 4.0]
        assert sum(well.batches) == 4
        await made.watch.stop()

    asyncio.run(main())


def test_a_deadline_counts_from_when_the_request_was_here():
    async def main() -> None:
        worker = Fake(0, 1e-3)
        made = dispatcher(worker, policy="clockwork")
        here_s = time.monotonic() - 0.1
        late = replace(request(1.0, deadline_s=0.05), arrival_s=here_s)
        with pytest.raises(Refused, match="late for its deadline of 50 ms"):
            await made.infer(late)
        await made.infer(replace(request(1.0, deadline_s=30.0), arrival_s=here_s))
        (told,) = made.tally.describe()
        assert told["p50_ms"] >= 100.0

    asyncio.run(main())


def test_the_status_is_json_whatever_was_refused():
    async def main() -> None:
        made = dispatcher(Fake(0))
        made.draining = True
        with pytest.raises(Refused):
            await made.infer(request(1.0))
        told = orjson.loads(encode(made.status()))
        assert told["classes"][0]["refused"] == {"draining": 1}

    asyncio.run(main())


@pytest.mark.parametrize(
    ("qos", "words"),
    [
        ({"priority": -5}, "priority of a request is a whole number from 1 on or None, not -5"),
        ({"priority": "high"}, "priority .* not 'high'"),
        ({"deadline_s": float("nan")}, "deadline_ms of a request is a number above 0 or None, not nan"),
        ({"deadline_s": -1.0}, "deadline_ms .* not -1000"),
        ({"accuracy": "best"}, "accuracy of a request is a number or None, not 'best'"),
        ({"service_class": ["batch"]}, r"the class of a request is a name, as text, not \['batch'\]"),
        ({"client": ["me"]}, r"the client of a request is a name, as text, not \['me'\]"),
        ({"cost": float("inf")}, "cost .* not inf"),
    ],
    ids=["negative priority", "in words", "NaN", "past", "accuracy", "classes", "clients", "endless cost"],
)
def test_a_wish_that_is_none_is_told(qos: dict[str, Any], words: str):
    async def main() -> None:
        with pytest.raises(WrongInput, match=words):
            await dispatcher(Fake(0)).infer(request(1.0, **qos))

    asyncio.run(main())


def test_a_caller_who_leaves_withdraws_what_has_not_been_sent():
    async def main() -> None:
        worker = Fake(0)
        worker.answers = False
        made = dispatcher(worker)
        first = [asyncio.create_task(made.infer(request(1.0, 32))) for _ in range(2)]  # all that is committed
        waiting = [asyncio.create_task(made.infer(request(2.0))) for _ in range(5)]
        for _ in range(3):
            await asyncio.sleep(0)
        for task in waiting[:4]:
            task.cancel()
        worker.come_to_itself()
        await asyncio.gather(*first, *waiting[4:])
        assert worker.batches == [32, 32, 1]
        assert all(task.cancelled() for task in waiting[:4])
        assert made.tally.describe()[0]["refused"] == {Reason.CANCELLED: 4}

    asyncio.run(main())


def test_draining_answers_what_was_accepted_and_refuses_the_rest():
    async def main() -> None:
        worker = Fake(0)
        worker.answers = False
        made = dispatcher(worker)
        accepted = asyncio.create_task(made.infer(request(3.0)))
        await asyncio.sleep(0)
        drained = asyncio.create_task(made.drain())
        await asyncio.sleep(0)
        with pytest.raises(Refused) as refused:
            await made.infer(request(1.0))
        assert refused.value.reason is Reason.DRAINING
        assert not drained.done()
        worker.come_to_itself()
        await drained
        assert (await accepted).outputs["y"].tolist() == [[6.0]]

    asyncio.run(main())


def background(coroutine: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
    return asyncio.create_task(coroutine, name=name)


def test_what_a_silent_worker_was_given_is_answered_by_another_and_it_is_found_again():
    async def main() -> None:
        lost, well = Fake(0), Fake(1)
        made = dispatcher(lost, well)
        lost.answers = lost.there = False
        made.watch.start(background)
        answers = await asyncio.gather(*(made.infer(request(v, best_effort=True)) for v in range(4)))
        assert [answer.outputs["y"].item() for answer in answers] == [0.0, 2.0, 4.0, 6.0]
        assert {answer.resource for answer in answers} == {"rank 1 cpu"}
        assert lost.batches
        assert [each["state"] for each in made.status()["workers"]] == ["silent", "ready"]
        lost.there = True
        lost.come_to_itself()
        while (await made.infer(request(1.0))).resource != "rank 0 cpu":
            await asyncio.sleep(0.01)
        await made.watch.stop()

    asyncio.run(main())


def test_who_left_is_not_asked_for_when_the_worker_is_lost():
    async def main() -> None:
        lost, well = Fake(0), Fake(1)
        made = dispatcher(lost, well)
        lost.answers = lost.there = False
        left = asyncio.create_task(made.infer(request(1.0)))
        await asyncio.sleep(0)
        left.cancel()
        made.watch.start(background)
        while made.status()["workers"][0]["state"] == "ready":
            await asyncio.sleep(0.01)
        while not made.watch.given_up(lost):  # a look later
            await asyncio.sleep(0.01)
        assert (await made.infer(request(2.0))).resource == "rank 1 cpu"
        assert well.batches == [1]
        await made.watch.stop()

    asyncio.run(main())


def test_without_a_worker_that_is_well_the_server_is_not_ready_and_refuses():
    async def main() -> None:
        worker = Fake(0)
        made = dispatcher(worker)
        made.watch.start(background)
        assert made.watch.ready
        worker.there = False
        while made.watch.ready:
            await asyncio.sleep(0.01)
        with pytest.raises(Refused) as refused:
            await made.infer(request(1.0))
        assert refused.value.reason is Reason.NO_WORKER
        worker.there = True
        while not made.watch.ready:
            await asyncio.sleep(0.01)
        assert (await made.infer(request(1.0))).outputs["y"].item() == 2.0
        await made.watch.stop()

    asyncio.run(main())


def test_a_batch_that_hangs_makes_its_worker_unfit():
    async def main() -> None:
        worker = Fake(0)
        made = dispatcher(worker)
        worker.answers = False
        asked = asyncio.create_task(made.infer(request(1.0)))
        while made.watch.ready:
            await asyncio.sleep(0.01)
        assert made.status()["workers"][0]["state"] == "stuck"
        asked.cancel()
        await asyncio.gather(asked, return_exceptions=True)

    asyncio.run(main())


def test_profiles_of_ranks_that_are_not_here_are_not_told_of():
    async def main() -> None:
        made = dispatcher(Fake(0, 1e-3))
        made.policy.profiles.of("rank 7 cpu", "double/1", 32).measured(1, 1e-3, 0.0)
        assert {each["resource"] for each in made.status()["profiles"]} == {Fake(0, 1e-3).resource}

    asyncio.run(main())


def test_clients_can_tell_the_names_of_classes_apart():
    told = {**TOLD, "labels": ["birch", "fir, tall", "größer"]}
    served = Served.of(Version("trees", 1, Path(), Platform.CHECKPOINT), ModelSettings(), "k", told, 32)
    assert json.loads(served.info(["1"]).config["parameters"]["labels"]["string_value"]) == told["labels"]
    assert Served.of(served.version, ModelSettings(), "k", TOLD, 32).info(["1"]).config["parameters"] == {}
