"""A server on all ranks, asked through the client from any of them."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from mpi4py import MPI

from tests.mpi.serve.models import close_to, dense, put, samples, shared
from weft.runtime.errors import Mistake, WeftError
from weft.runtime.message import Message, World, run
from weft.runtime.serve.client import Client
from weft.runtime.serve.model import Model
from weft.runtime.serve.request import Reason, Refused, UnknownModel, WrongInput
from weft.runtime.serve.server import Server

pytestmark = pytest.mark.mpi


def test_r4_any_rank_asks_rank_0_for_any_model_and_gets_its_own_answer(tmp_path: Path):
    def fill(path: Path) -> None:
        put(path, "a", 1, dense(1))
        put(path, "a", 2, dense(2))
        put(path, "b", 1, dense(3, 6))

    async def main(world: World) -> None:
        root = await shared(world, tmp_path / "models", fill)
        async with await Server.open(world, root, device="cpu") as server:
            client = await Client.open(world)

            async def one(number: int) -> str:
                given = samples(1 + number % 3, number)
                result = await client.infer("a", given, version=1 + number % 2, best_effort=True)
                assert (result.model, result.version) == ("a", str(1 + number % 2))
                assert result.batch >= len(given)
                close_to(1 + number % 2, given, result.outputs["scores"])
                return result.resource

            used = Counter(await asyncio.gather(*(one(1000 * world.rank + n) for n in range(150))))
            newest = await client.infer("a", samples(2), best_effort=True)
            assert newest.version == "2"
            for named in ("scores", ["scores"], (name for name in ["scores"])):
                some = await client.infer("a", samples(2), outputs=named, best_effort=True)
                assert list(some.outputs) == ["scores"]
            other = await client.infer("b", {"pixels": samples(2, width=6)}, best_effort=True)
            close_to(3, samples(2, width=6), other.outputs["scores"])
            await world.barrier()
            assert (server.service is not None) == (world.rank == 0)
            if server.service is not None:
                assert server.service.ready
                assert set(used) <= {f"rank {r} cpu" for r in range(world.size)}
                found = server.service.statistics("a")
                assert sorted(found) == [("a", "1"), ("a", "2")]
                count = sum(each.success.count for each in found.values())
                assert count == 154 * world.size

    run(main)


def test_any_rank_is_told_the_names_of_the_classes_that_weft_export_wrote(tmp_path: Path):
    def fill(path: Path) -> None:
        named = dense(1)
        named.producer_name = "weft"
        onnx.helper.set_model_props(named, {"labels": json.dumps(["birch", "fir, tall", "größer"])})
        put(path, "named", 1, named)
        put(path, "plain", 1, dense(1))

    async def main(world: World) -> None:
        root = await shared(world, tmp_path / "models", fill)
        async with await Server.open(world, root, device="cpu"):
            client = await Client.open(world)
            named = await client.infer("named", samples(2), best_effort=True)
            plain = await client.infer("plain", samples(2), best_effort=True)
            assert (named.labels, plain.labels) == (("birch", "fir, tall", "größer"), ())
            close_to(1, samples(2), named.outputs["scores"])
            # Once: 1,000 names with every answer took rank 0's loop longer than all else of a request.
            told: list[Any] = []
            request = client._channel.request

            async def listen(*asked: Any) -> Message:
                told.append(await request(*asked))
                return told[-1]

            client._channel.request = listen  # type: ignore[method-assign]
            again = await client.infer("named", samples(2), best_effort=True)
            plain = await client.infer("plain", samples(2), best_effort=True)
            assert (again.labels, plain.labels) == (named.labels, ())
            assert not any("birch" in str(reply.body) for reply in told)
            assert len(told) == (0 if world.rank == 0 else 2)
            await world.barrier()

    run(main)


def test_what_is_wrong_with_a_request_is_told_to_who_asked(tmp_path: Path):
    async def main(world: World) -> None:
        root = await shared(world, tmp_path / "models", lambda path: put(path, "a", 1, dense(1)))
        async with await Server.open(world, root, device="cpu"):
            client = await Client.open(world)
            wrong = {
                "no model 'c' is loaded; there are 'a'": client.infer("c", samples(1)),
                "no version '7'": client.infer("a", samples(1), version=7),
                r"'pixels' of a/1 is FP32 \[-1, 4\]; the request has FP32 \[1, 5\]": client.infer(
                    "a", samples(1, width=5)
                ),
                "is FP32 .*the request has FP64": client.infer("a", samples(1).astype(np.float64)),
                "takes 'pixels'; the request has 'x'": client.infer("a", {"x": samples(1)}),
                "the request has '', 'pixels'": client.infer("a", {"": samples(1), "pixels": samples(1)}),
                "FP32 .*the request has INT64": client.infer("a", {"pixels": [[1, 2, 3, 4]]}),
                "has no output 'y'; it has 'scores'": client.infer("a", samples(1), outputs=["y"]),
                "has 1 to 32 samples, and this one 33: split it": client.infer("a", samples(33)),
                "has 1 to 32 samples, and this one 0$": client.infer("a", samples(1)[:0]),
                "priority .* not -5": client.infer("a", samples(1), priority=-5),
                "deadline_ms .* not '50'$": client.infer("a", samples(1), deadline_ms="50"),  # type: ignore[arg-type]
                "no class 'royal'; there are 'interactive', ": client.infer("a", samples(1), qos="royal"),
            }
            for words, asked in wrong.items():
                with pytest.raises((UnknownModel, WrongInput), match=words):
                    await asked
            with pytest.raises(Refused, match="deadline") as refused:
                await client.infer("a", samples(1), deadline_ms=1e-6)
            assert refused.value.reason in (Reason.IMPOSSIBLE, Reason.OVERLOAD, Reason.EXPIRED)
            await world.barrier()

    run(main)


def test_models_come_and_go_while_others_are_served(tmp_path: Path):
    async def main(world: World) -> None:
        def fill(path: Path) -> None:
            put(path, "a", 1, dense(1))
            put(path, "broken", 1, b"no ONNX at all")
            (path / "empty").mkdir()
            put(path, "odd", 1, dense(1))
            (path / "odd" / "weft.toml").write_text('default_class = "zzz"')

        root = await shared(world, tmp_path / "models", fill)
        stop = asyncio.Event()
        async with await Server.open(world, root, device="cpu") as server:
            client = await Client.open(world)
            asked = 0

            async def scores(model: str, given: np.ndarray, version: str | int = "") -> np.ndarray:
                result = await client.infer(model, given, version=version, best_effort=True)
                return result.outputs["scores"]

            async def keep_asking() -> None:
                nonlocal asked
                while not stop.is_set():
                    close_to(1, samples(1, asked), await scores("a", samples(1, asked)))
                    asked += 1

            asking = asyncio.create_task(keep_asking())
            if (service := server.service) is not None:
                index = {(info.name, info.version): info for info in await service.index()}
                assert index["a", "1"].ready
                assert index["broken", "1"].reason.count("is no ONNX model") == 1  # once for all ranks
                assert "'zzz'" in index["odd", ""].reason
                assert "interactive, standard, batch" in index["odd", ""].reason
                assert "has no version" in index["empty", ""].reason
                put(root, "b", 1, dense(2))
                await service.load("b")
                close_to(2, samples(1), await scores("b", samples(1)))
                put(root, "b", 1, dense(3))  # read anew, in the place of the old one
                put(root, "b", 2, dense(4))
                await service.load("b")
                close_to(3, samples(1), await scores("b", samples(1), "1"))
                close_to(4, samples(1), await scores("b", samples(1)))
                put(root, "b", 1, dense(5, 6))  # with another shape
                await service.load("b")
                close_to(5, samples(1, width=6), await scores("b", samples(1, width=6), 1))
                await service.load("b", {"max_batch_size": 40})
                close_to(5, samples(40, width=6), await scores("b", samples(40, width=6), 1))
                await service.unload("b")
                with pytest.raises(UnknownModel):
                    await client.infer("b", samples(1))
                await service.load("b")  # as before, and with the same questions
                close_to(4, samples(1), await scores("b", samples(1)))
                close_to(5, samples(1, width=6), await scores("b", samples(1, width=6), 1))
                loading = asyncio.create_task(service.load("b"))
                await asyncio.sleep(0)
                loading.cancel()  # all ranks load it to the end all the same
                with pytest.raises(UnknownModel, match="has no model 'c'; it holds a, b, broken, empty, odd"):
                    await service.load("c")
                before = asked
                while asked == before:  # the other model is served all the while
                    await asyncio.sleep(0.001)
            await world.barrier()
            stop.set()
            await asking
            assert asked > 1
            await world.barrier()

    run(main)


@pytest.mark.mpi(min_size=2)
def test_s5_4_a_worker_that_became_slow_is_left_out_and_found_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    compute = Model.run
    slow_s = 0.0

    def run_slowly(self: Model, pieces: list[list[np.ndarray]], count: int) -> list[np.ndarray]:
        time.sleep(slow_s)
        return compute(self, pieces, count)

    monkeypatch.setattr(Model, "run", run_slowly)

    async def main(world: World) -> None:
        nonlocal slow_s
        root = await shared(world, tmp_path / "models", lambda path: put(path, "a", 1, dense(1)))
        async with await Server.open(world, root, device="cpu") as server:
            if world.rank:
                return
            client = await Client.open(world)

            async def who(count: int) -> set[str]:
                """Who answers requests that a worker with a delay of 0.2 s could not."""
                found = []
                while len(found) < count:
                    with contextlib.suppress(Refused):  # by a guess that is not yet mended
                        found.append((await client.infer("a", samples(1), deadline_ms=150)).resource)
                return set(found)

            profile = server._dispatcher.policy.profiles.of("rank 0 cpu", "a/1")
            slow_s = 0.2
            # For a deadline of 2 s it is still fast enough, and so it is seen: as a change of all sizes, or
            # of this one alone, if the machine was busy when the model was looked at.
            while profile.expected_s(32) < 0.18:
                asked = (client.infer("a", samples(32), qos="batch", best_effort=True) for _ in range(8))
                await asyncio.gather(*asked)
            while "rank 0 cpu" in await who(20):
                pass
            slow_s = 0.0
            while "rank 0 cpu" not in await who(20):
                await asyncio.sleep(0.01)

    run(main)


def test_requests_wait_for_a_server_that_follows_another(tmp_path: Path):
    async def main(world: World) -> None:
        root = await shared(world, tmp_path / "models", lambda path: put(path, "a", 1, dense(1)))
        for _ in range(2):
            async with await Server.open(world, root, device="cpu"):
                client = await Client.open(world)  # while rank 0 may still load
                answer = await client.infer("a", samples(1), best_effort=True)
                close_to(1, samples(1), answer.outputs["scores"])
                await world.barrier()
        with pytest.raises(Refused) as refused:
            await client.infer("a", samples(1))
        assert refused.value.reason is Reason.DRAINING
        await world.barrier()

    run(main)


@pytest.mark.mpi(min_size=2)
def test_rank_0_leaves_first_and_the_others_are_answered_until_they_leave(tmp_path: Path):
    async def main(world: World) -> None:
        root = await shared(world, tmp_path / "models", lambda path: put(path, "a", 1, dense(1)))
        async with await Server.open(world, root, device="cpu"):
            client = await Client.open(world)
            for number in range(20 * world.rank):  # rank 0 asks nothing, and each other rank has its share
                given = samples(1, number)
                answer = await client.infer("a", given, best_effort=True)
                close_to(1, given, answer.outputs["scores"])

    run(main)


@pytest.mark.parametrize("who", ["the first", "the last", "all"])
def test_a_rank_whose_own_error_it_caught_outside_goes_on_answering_the_others(tmp_path: Path, who: str):
    async def main(world: World) -> None:
        root = await shared(world, tmp_path / "models", lambda path: put(path, "a", 1, dense(1)))
        leaves = {"the first": [0], "the last": [world.size - 1], "all": range(world.size)}[who]
        with contextlib.suppress(KeyError):
            async with await Server.open(world, root, device="cpu"):
                client = await Client.open(world)
                if world.rank in leaves:
                    raise KeyError(who)
                for number in range(20):
                    given = samples(1, number)
                    answers = [client.infer("a", given, best_effort=True) for _ in range(2 * world.size)]
                    for answer in await asyncio.gather(*answers):
                        close_to(1, given, answer.outputs["scores"])
        async with await Server.open(world, root, device="cpu"):  # when all have left the first one
            close_to(1, samples(1), (await client.infer("a", samples(1), best_effort=True)).outputs["scores"])

    run(main)


def test_a_server_that_cannot_start_keeps_nobody_from_leaving_where_rank_0_catches_why(tmp_path: Path):
    async def main(world: World) -> None:
        for _ in range(2):
            caught = ""
            try:
                async with await Server.open(world, tmp_path / "none", device="cpu"):
                    pass
            except Mistake as error:
                caught = str(error)
            assert ("does not exist" in caught) == (world.rank == 0)
        root = await shared(world, tmp_path / "models", lambda path: put(path, "a", 1, dense(1)))
        async with await Server.open(world, root, device="cpu"):
            client = await Client.open(world)
            close_to(1, samples(1), (await client.infer("a", samples(1), best_effort=True)).outputs["scores"])

    run(main)


def test_opening_a_server_may_be_given_up_while_it_measures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("weft.runtime.serve.profiling.REPETITIONS", 10**9)

    async def main(world: World) -> None:
        root = await shared(world, tmp_path / "models", lambda path: put(path, "a", 1, dense(1)))
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(0.5 if world.rank == 0 else None):
                async with await Server.open(world, root, device="cpu", measure=True):
                    assert world.rank
        async with await Server.open(world, root, device="cpu"):
            client = await Client.open(world)
            close_to(1, samples(1), (await client.infer("a", samples(1), best_effort=True)).outputs["scores"])

    run(main)


def test_a_rank_that_is_late_does_what_the_new_server_asks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    allgather = World.allgather

    async def come_late(self: World, *arguments: Any, what: str = "") -> None:
        await allgather(self, *arguments, what=what)
        if self.rank and what == "names of the workers":
            await asyncio.sleep(0.2)  # and rank 0 asks meanwhile

    monkeypatch.setattr(World, "allgather", come_late)

    async def main(world: World) -> None:
        root = await shared(world, tmp_path / "models", lambda path: put(path, "a", 1, dense(1)))
        for _ in range(2):
            async with await Server.open(world, root, device="cpu"):
                client = await Client.open(world)
                answer = await client.infer("a", samples(1), best_effort=True)
                close_to(1, samples(1), answer.outputs["scores"])
                await world.barrier()

    run(main)


def test_profiles_outlive_the_server(tmp_path: Path):
    async def main(world: World) -> None:
        root = await shared(world, tmp_path / "models", lambda path: put(path, "a", 1, dense(1)))
        for _ in range(2):
            async with await Server.open(world, root, device="cpu", measure=True):
                await world.barrier()
        if world.rank == 0:
            stored = json.loads((root / "profiles.json").read_text())
            assert {each["resource"] for each in stored} == {f"rank {r} cpu" for r in range(world.size)}
            assert all(each["results"] >= 2 * 6 * 20 for each in stored)  # of both times

    run(main)


def test_profiles_are_stored_while_the_server_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("weft.runtime.serve.profile_file.EVERY_S", 0.05)

    async def main(world: World) -> None:
        root = await shared(world, tmp_path / "models", lambda path: put(path, "a", 1, dense(1)))
        async with await Server.open(world, root, device="cpu"):
            client = await Client.open(world)
            if world.rank == 0:
                while True:  # until a request's result is stored
                    await client.infer("a", samples(1), best_effort=True)
                    with contextlib.suppress(FileNotFoundError):
                        stored = json.loads((root / "profiles.json").read_text())
                        if sum(each["results"] for each in stored) > 5 * world.size:
                            break
            await world.barrier()

    run(main)


def test_profiles_that_cannot_be_stored_are_told_of(tmp_path: Path, capfd: pytest.CaptureFixture[str]):
    async def main(world: World) -> None:
        root = await shared(world, tmp_path / "models", lambda path: put(path, "a", 1, dense(1)))
        async with await Server.open(world, root, device="cpu", profiles=tmp_path / "none" / "p.json"):
            await world.barrier()

    run(main)
    told = capfd.readouterr().err
    expected = "p.json cannot be written (No such file or directory): profiles are measured anew next time"
    assert told.count(expected) == (MPI.COMM_WORLD.Get_rank() == 0)


def test_a_server_that_cannot_end_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("weft.runtime.serve.server.CLOSE_S", 0.2)

    async def main(world: World) -> None:
        root = await shared(world, tmp_path / "models", lambda path: put(path, "a", 1, dense(1)))
        async with await Server.open(world, root, device="cpu") as server:
            if world.rank == 0:
                async with server.loading._lock:  # as a load does that does not come to its end
                    with pytest.raises(WeftError, match=r"not end within 0 s.*\(rank 0 cpu ready"):
                        await server.close()
                monkeypatch.undo()

    run(main)
