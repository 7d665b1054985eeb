"""What is told of a model that ranks could not load: a line a reason, however many ranks have it."""

from __future__ import annotations

import asyncio
import gc
import os
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import AsyncMock, Mock

import pytest

from weft.runtime.errors import Mistake, WeftError
from weft.runtime.serve.catalog import Catalog, Served
from weft.runtime.serve.http import documents
from weft.runtime.serve.http.messages import HttpResponse, encode
from weft.runtime.serve.http.problem import problem_of
from weft.runtime.serve.loading import Loading, merged
from weft.runtime.serve.profiling import ALONE_S, BESIDE_S
from weft.runtime.serve.program import table
from weft.runtime.serve.repository import Entry, Platform, Repository, Version
from weft.runtime.serve.request import UnknownModel
from weft.runtime.serve.settings import ServerSettings
from weft.runtime.serve.worker import ELSEWHERE, ToLoad


@dataclass
class Rank:
    rank: int
    host: str


LINKS: Any = [Rank(0, "n0"), Rank(1, "n0"), Rank(2, "n1")]
BAD, GONE, OTHER = WeftError("a/1 is damaged"), WeftError("a/1 does not exist here"), WeftError(ELSEWHERE)


@pytest.mark.parametrize(
    ("results", "told"),
    [
        ([{}, {}, {}], ""),
        ([BAD, BAD, BAD], "a/1 is damaged"),
        ([{}, {}, GONE], "rank 2 on n1: a/1 does not exist here"),
        ([GONE, OTHER, {}], "rank 0 on n0: a/1 does not exist here"),
        ([BAD, BAD, GONE], "ranks 0-1 on n0: a/1 is damaged\nrank 2 on n1: a/1 does not exist here"),
    ],
    ids=[
        "nothing is wrong",
        "everybody has the same",
        "one rank",
        "who only waited for another is not named",
        "different ones",
    ],
)
def test_a_reason_is_told_once(results: list[Any], told: str):
    assert merged(LINKS, results) == told


def test_what_is_no_error_of_ours_is_raised():
    with pytest.raises(ZeroDivisionError):
        merged(LINKS, [BAD, ZeroDivisionError(), {}])


class Puzzled:
    """A worker with a model that we make a mistake over."""

    rank, host, resource = 0, "n0", "rank 0 cpu"

    def __init__(self) -> None:
        self.unloaded: list[str] = []

    async def load(self, *arguments: Any) -> dict[str, Any]:
        await asyncio.sleep(0.01)
        raise KeyError("bfloat16")

    async def unload(self, key: str) -> None:
        self.unloaded.append(key)


def loading(worker: Any, repository: Any = None) -> Loading:
    nothing: Any = Mock(loaded={}, awaited={}, problems={}, all=list, settings=ServerSettings())
    return Loading([worker], repository, nothing, nothing, nothing)


ENTRY = Entry("m", versions=(Version("m", 1, Path("models/m/1"), Platform.ONNX),))


def test_a_mistake_of_ours_over_one_model_is_its_reason_and_ends_nothing(capsys: pytest.CaptureFixture[str]):
    worker = Puzzled()
    problems = asyncio.run(loading(worker).put(ENTRY))
    assert problems == ["models/m/1: KeyError: 'bfloat16'"]
    assert worker.unloaded == ["m/1@1"]
    assert "Traceback" in capsys.readouterr().err


def test_a_new_model_is_looked_at_shortly_where_others_are_served_already():
    class Reads(Puzzled):
        async def load(self, *arguments: Any) -> dict[str, Any]:
            return {"inputs": [["x", "FP32", [-1, 1]]], "outputs": [["y", "FP32", [-1, 1]]], "labels": []}

    looks: list[tuple[str, float]] = []

    class Looks:
        async def first_look(self, served: Served, within_s: float) -> None:
            looks.append((served.version.model, within_s))

    async def main() -> None:
        links, looking, nothing = [Reads()], Looks(), Mock()
        made: Any = Loading(links, None, Catalog(ServerSettings()), nothing, looking)  # type: ignore[arg-type]
        for name in "ab":
            assert not await made.put(Entry(name, versions=(Version(name, 1, Path(), Platform.ONNX),)))
        await made.load_all()
        assert not await made.put(Entry("c", versions=(Version("c", 1, Path(), Platform.ONNX),)))
        assert looks == [("a", ALONE_S), ("b", ALONE_S), ("c", BESIDE_S)]

    asyncio.run(main())


def test_a_stop_ends_loading_behind_the_model_that_is_read(tmp_path: Path):
    read: list[str] = []

    class Reads(Puzzled):
        async def load(self, what: ToLoad) -> dict[str, Any]:
            read.append(Path(what.path).parent.name)
            raise WeftError("has no weights")

    for name in "abc":
        (tmp_path / name / "1").mkdir(parents=True)
        (tmp_path / name / "1" / "model.onnx").touch()
    made = loading(Reads(), Repository(tmp_path))
    asyncio.run(made.load_all(lambda: read == ["a", "b"]))
    assert read == ["a", "b"]


class Chooses(Puzzled):
    """A worker that cannot read what lies in a folder named 2."""

    async def load(self, what: ToLoad) -> dict[str, Any]:
        if Path(what.path).name == "2":
            raise WeftError(f"{what.path}: is damaged")
        return {"inputs": [["x", "FP32", [-1, 1]]], "outputs": [["y", "FP32", [-1, 1]]], "labels": []}


def test_who_asks_for_what_could_not_be_loaded_is_told_why_until_it_can():
    def versions(*numbers: int) -> Entry:
        return Entry("m", versions=tuple(Version("m", n, Path(f"m/{n}"), Platform.ONNX) for n in numbers))

    async def main() -> None:
        catalog, looking = Catalog(ServerSettings()), Mock(first_look=AsyncMock())
        made: Any = Loading([Chooses()], None, catalog, Mock(), looking)  # type: ignore[list-item]
        await made.put(versions(2))
        damaged = r"\. It could not be loaded: m/2: is damaged$"
        with pytest.raises(UnknownModel, match=r"no model 'm' is loaded; there are none" + damaged):
            catalog.find("m")
        with pytest.raises(UnknownModel, match=r"no model 'other' is loaded; there are none$"):
            catalog.find("other")
        await made.put(Entry("m", reason="its weft.toml is wrong"))
        with pytest.raises(UnknownModel, match=r"there are none\. It could not be loaded: its weft.toml is"):
            catalog.find("m", "2")
        await made.put(versions(1, 2))
        assert catalog.find("m").version.number == 1
        with pytest.raises(UnknownModel, match=r"no version '2' loaded; there are '1'" + damaged):
            catalog.find("m", "2")
        with pytest.raises(UnknownModel, match=r"no version '3' loaded; there are '1'$"):
            catalog.find("m", "3")
        await made.unload("m")
        with pytest.raises(UnknownModel, match=r"no model 'm' is loaded; there are none$"):
            catalog.find("m")

    asyncio.run(main())


def test_of_a_checkpoint_that_could_not_be_loaded_is_told_under_its_step():
    def step(number: int, folder: str) -> Entry:
        version = Version("m", 1, Path(f"m/{folder}"), Platform.CHECKPOINT, shown=str(number))
        return Entry("m", versions=(version,))

    async def main() -> None:
        catalog, looking = Catalog(ServerSettings()), Mock(first_look=AsyncMock())
        made: Any = Loading([Chooses()], None, catalog, Mock(), looking)  # type: ignore[list-item]
        await made.put(step(20, "1"))
        await made.put(step(40, "2"))
        assert catalog.find("m", "20").version.title == "20"
        with pytest.raises(UnknownModel, match=r"no version '40' loaded; there are '20'\. It could not be"):
            catalog.find("m", "40")
        with pytest.raises(UnknownModel, match=r"no version '1' loaded; there are '20'$"):
            catalog.find("m", "1")

    asyncio.run(main())


def test_what_a_load_raises_is_not_lost_on_a_caller_who_has_left(monkeypatch: pytest.MonkeyPatch):
    async def main() -> None:
        told: list[dict[str, Any]] = []
        asyncio.get_running_loop().set_exception_handler(lambda loop, context: told.append(context))
        ended = asyncio.Event()

        async def load(entry: Entry) -> list[str]:
            await asyncio.sleep(0.01)
            ended.set()
            raise ZeroDivisionError

        made = loading(Puzzled())
        monkeypatch.setattr(made, "_load", load)
        caller = asyncio.create_task(made.put(ENTRY))
        await asyncio.sleep(0)
        caller.cancel()
        await asyncio.gather(caller, return_exceptions=True)
        await ended.wait()
        await asyncio.sleep(0)
        gc.collect()
        assert not told

    asyncio.run(main())


def test_a_repository_that_has_gone_is_told_of_and_what_is_loaded_is_served(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    async def main() -> None:
        (tmp_path / "models").mkdir()
        made = loading(Puzzled(), Repository(tmp_path / "models"))
        (tmp_path / "models").rename(tmp_path / "elsewhere")
        for _ in range(2):
            assert await made.index() == []
        with pytest.raises(Mistake, match="models cannot be read: No such file"):
            await made.load("m")

    asyncio.run(main())
    assert capsys.readouterr().err.count("models cannot be read: No such file") == 1


def test_a_model_that_is_trained_here_is_nobody_elses():
    made = loading(Puzzled())
    made.await_model("m", "no checkpoint yet")
    for change in (made.load, made.unload):
        with pytest.raises(Mistake, match="'m' is trained in this job"):
            asyncio.run(change("m"))


@pytest.mark.parametrize("key", ["version_policy", "instance_group"])
def test_what_a_load_request_cannot_set_is_refused(key: str, tmp_path: Path):
    (tmp_path / "m" / "1").mkdir(parents=True)
    (tmp_path / "m" / "1" / "model.onnx").touch()
    made = loading(Puzzled(), Repository(tmp_path))
    with pytest.raises(Mistake, match=rf"sets '{key}': only max_batch_size"):
        asyncio.run(made.load("m", {"name": "m", key: {}}))


def nested(depth: int) -> list[Any]:
    """As deep as JSON may be, and deeper than Python prints."""
    made: list[Any] = []
    for _ in range(depth):
        made = [made]
    return made


@pytest.mark.parametrize("largest", [0, -1, 2.5, True, "32", None, 10**9, nested(1000)])
def test_a_batch_that_is_no_number_or_vast_is_refused(largest: Any, tmp_path: Path):
    (tmp_path / "m" / "1").mkdir(parents=True)
    (tmp_path / "m" / "1" / "model.onnx").touch()
    made = loading(Puzzled(), Repository(tmp_path))
    with pytest.raises(Mistake, match=r"max_batch_size is .*; it must be a whole number from 1 to 65536"):
        asyncio.run(made.load("m", {"max_batch_size": largest}))
    (tmp_path / "m" / "weft.toml").write_text("max_batch = 1000000000")
    with pytest.raises(Mistake, match=r"max_batch = 1000000000: at most 65536"):
        asyncio.run(made.load("m"))


def test_a_file_whose_name_is_no_text_is_told_of_as_json(tmp_path: Path):
    folder = tmp_path / "m" / "1"
    folder.mkdir(parents=True)
    (folder / os.fsdecode(b"w\xffights")).touch()
    made = loading(Puzzled(), Repository(tmp_path))
    index = asyncio.run(made.index())
    words = rb"holds w\\udcffights; it needs model.onnx"
    assert words in encode(documents.index(index, ready=False))
    with pytest.raises(Mistake) as refused:
        asyncio.run(made.load("m"))
    assert words in HttpResponse.of(problem_of(refused.value)).body[0]


def test_others_are_answered_while_a_slow_file_system_is_read():
    answered = threading.Event()

    class Slow:
        def scan(self) -> dict[str, Entry]:
            assert answered.wait(10)
            return {"m": Entry("m", reason="is damaged")}

    async def main() -> None:
        nothing: Any = Mock(loaded={}, awaited={}, problems={}, all=list)
        repository: Any = Slow()
        index = asyncio.create_task(Loading([], repository, nothing, nothing, nothing).index())
        await asyncio.sleep(0.01)
        answered.set()
        assert [(info.name, info.reason) for info in await index] == [("m", "is damaged")]

    asyncio.run(main())


def test_s5_2_a_variant_with_other_inputs_is_told_to_whoever_starts_the_server(tmp_path: Path):
    class Wide(Puzzled):
        async def load(self, what: ToLoad) -> dict[str, Any]:
            width = 6 if "wide" in what.path else 4
            return {"inputs": [["x", "FP32", [-1, width]]], "outputs": [["y", "FP32", [-1]]], "labels": []}

    for name in ("big", "small", "wide"):
        (tmp_path / name / "1").mkdir(parents=True)
        (tmp_path / name / "1" / "model.onnx").touch()
        (tmp_path / name / "2").symlink_to("1")
        (tmp_path / name / "weft.toml").write_text("versions = [1]")
    with open(tmp_path / "big" / "weft.toml", "a") as settings:
        settings.write('\nvariants = [{ model = "small" }, { model = "wide" }]')

    async def main() -> None:
        catalog, looking = Catalog(ServerSettings()), Mock(first_look=AsyncMock())
        made: Any = Loading([Wide()], Repository(tmp_path), catalog, Mock(), looking)  # type: ignore[list-item]
        await made.load_all()
        service = Mock(index=made.index, status=lambda: {"workers": [{"resource": "rank 0 cpu"}]})
        told = await table(service)
        assert (
            "weft: warning: big 1: its variant wide/1 never answers for it: that has inputs FP32 [-1, 6] "
            "and outputs FP32 [-1], this inputs FP32 [-1, 4] and outputs FP32 [-1]\n"
        ) in told
        assert told.count("warning") == 1
        assert "weft: big 2 is not served: is not among versions = [1] in its weft.toml\n" in told
        assert [model.name for model in catalog.policy_settings().families["big/1 or variants"]] == [
            "big/1", "small/1",
        ]  # fmt: skip

    asyncio.run(main())
