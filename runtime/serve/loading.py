"""Loading and unloading models while others are served; what the repository holds, and what is wrong there.

A model that is loaded anew is read under another key first and takes the old one's place then, so that no
request meets neither. A version that cannot be loaded is told of in the index, and unhurt are all others.
One load or unload at a time: a node's ranks do it together, all in one order (worker.py).
"""

from __future__ import annotations

import asyncio
import itertools
import reprlib
import traceback
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeVar

from ..errors import Mistake, WeftError
from ..message.failure import ranks_text, say
from .catalog import Catalog, Served
from .dispatcher import Dispatcher
from .link import Link
from .profile import MOST_BATCH
from .profiling import ALONE_S, BESIDE_S, Profiler
from .repository import Entry, Repository, Version
from .request import ModelInfo, UnknownModel, printable
from .settings import ModelSettings
from .worker import ELSEWHERE, ToLoad

DRAINED_S = 0.01  # between looks at whether an old model is still needed
OVERRIDES = ("max_batch_size",)
TOLD = ("name", "platform", "backend", "input", "output", "dynamic_batching", "parameters")

T = TypeVar("T")


class Loading:
    """Keeps the workers' models as the repository and clients want them."""

    def __init__(
        self,
        links: Sequence[Link],
        repository: Repository | None,
        catalog: Catalog,
        dispatcher: Dispatcher,
        profiler: Profiler,
    ) -> None:
        self._links = links
        self._repository = repository
        self._catalog = catalog
        self._dispatcher = dispatcher
        self._profiler = profiler
        self._followed: set[str] = set()  # models that come from elsewhere than the repository
        self._told = ""  # of what is wrong with the repository
        self._serving = False  # the models that are loaded may be asked
        self._generations = itertools.count(1)
        self._lock = asyncio.Lock()

    async def load_all(self, stopping: Callable[[], bool] = lambda: False) -> None:
        """Everything in the repository, unless it is `stopping`; what cannot be loaded the index tells.

        A stop ends it behind the model that it is at: a scheduler that asked for it does not wait for long.
        """
        if self._repository is not None:
            for entry in (await asyncio.to_thread(self._repository.scan)).values():
                if stopping():
                    break
                await self.put(entry)
        self._serving = True

    async def put(self, entry: Entry) -> list[str]:
        """Serve these versions of a model and no others; returns what went wrong."""
        return await self._whole(self._load(entry))

    async def load(self, name: str, config: Mapping[str, Any] | None = None) -> None:
        """Read a model's versions, anew where they are loaded; returns when all workers have them.

        Mistake with the reasons if none of them, or not all that were loaded, can be loaded now.
        """
        self._require_own(name)
        entry = await asyncio.to_thread(self._entry, name)
        if config:
            entry = replace(entry, settings=_overridden(entry, config))
        if problems := await self.put(entry):
            raise Mistake("\n".join(problems))

    async def unload(self, name: str) -> None:
        """Forget a model when what it has accepted is answered."""
        self._require_own(name)
        if name not in self._catalog.loaded:
            raise UnknownModel(f"model {name!r} is not loaded")
        await self._whole(self._remove(name))

    async def settle(self) -> None:
        """Wait until nothing is loaded or unloaded, and let nothing be any more."""
        await self._lock.acquire()

    def await_model(self, name: str, reason: str) -> None:
        """Somebody puts this model here, and nobody else may: tells who asks why it is not there yet."""
        self._followed.add(name)
        self._catalog.awaited[name] = reason

    def _require_own(self, name: str) -> None:
        if name in self._followed:
            raise Mistake(f"{name!r} is trained in this job: its checkpoints are served as they are written")

    async def index(self) -> list[ModelInfo]:
        """Every model and version in the repository or loaded, with the reason where one is not ready."""
        found: dict[tuple[str, str], ModelInfo] = {}
        for name, entry in (await asyncio.to_thread(self._entries)).items():
            entry = self._checked(entry)
            if not entry.versions:
                found[name, ""] = _unready(name, "", "", entry.reason)
            for version in entry.versions:
                number = str(version.number)
                reason = version.reason or self._catalog.problems.get((name, number), "is not loaded")
                if version not in entry.wanted:
                    reason = f"is not among versions = {entry.settings.versions} in its weft.toml"
                found[name, number] = _unready(name, number, str(version.platform or ""), reason)
        for name, reason in self._catalog.awaited.items():
            if name not in self._catalog.loaded:
                found[name, ""] = _unready(name, "", "", reason)
        for served in self._catalog.all():
            found[served.version.model, served.version.title] = self.info(served)
        return [found[key] for key in sorted(found)]

    def info(self, served: Served) -> ModelInfo:
        """What is told of a loaded version."""
        versions = self._catalog.versions(served.version.model).values()
        return served.info([each.version.title for each in versions], self._catalog.misfits(served))

    # -- one at a time ------------------------------------------------------------------------------------

    async def _whole(self, work: Coroutine[Any, Any, T]) -> T:
        """Do it to its end, whether or not the caller waits for that: all ranks of a node do it together."""

        async def alone() -> T:
            async with self._lock:
                return await work

        task = asyncio.ensure_future(alone())
        task.add_done_callback(_heard)  # what it raises is not lost on a caller who has left
        return await asyncio.shield(task)

    def _entry(self, name: str) -> Entry:
        if self._repository is None:
            raise UnknownModel(f"there is no repository to load {name!r} from")
        try:
            return self._repository.entry(name)
        except Mistake as error:
            raise UnknownModel(str(error)) from None
        except OSError as error:
            raise Mistake(_unreadable(self._repository, error)) from error

    def _entries(self) -> Mapping[str, Entry]:
        """What the repository holds; with none, or one that has gone, nothing: what is loaded is served."""
        if self._repository is None:
            return {}
        try:
            return self._repository.scan()
        except OSError as error:
            told, self._told = self._told, _unreadable(self._repository, error)
            if self._told != told:  # the status page asks every second
                say(f"weft: {printable(self._told)}")
            return {}

    def _checked(self, entry: Entry) -> Entry:
        """With a reason against it where its settings want what the server has not: a class, vast batches."""
        if entry.settings.max_batch > MOST_BATCH:
            return Entry(entry.name, reason=f"max_batch = {entry.settings.max_batch}: at most {MOST_BATCH}")
        name, classes = entry.settings.default_class, self._catalog.settings.classes
        if name is None or name in classes:
            return entry
        reason = f"default_class = {name!r} in its weft.toml: the server has {', '.join(classes)}"
        return Entry(entry.name, reason=reason)

    async def _load(self, entry: Entry) -> list[str]:
        entry = self._checked(entry)
        name = entry.name
        problems = [entry.reason] if entry.reason else []
        old = list(self._catalog.loaded.get(name, {}).values())
        kept: set[int] = set()
        self._forget_problems(name)
        if entry.reason:
            self._catalog.problems[name, ""] = entry.reason
        for version in entry.wanted:
            kept.add(version.number)
            if problem := version.reason or await self._load_version(version, entry):
                self._catalog.problems[name, version.title] = problem
                problems.append(problem)
        if not entry.reason:
            await self._forget(served for served in old if served.version.number not in kept)
        return problems

    async def _load_version(self, version: Version, entry: Entry) -> str:
        """Load a version on all workers; returns why it could not be."""
        key = f"{version.model}/{version.number}@{next(self._generations)}"
        try:
            served = await self._read(version, entry.settings, key)
        except Exception as error:
            await self._unload(key)
            if isinstance(error, WeftError):
                return str(error)
            traceback.print_exception(error)  # a mistake of ours, which must not end what is served
            return f"{version.path}: {type(error).__name__}: {error}"
        old = self._catalog.loaded.get(version.model, {}).get(version.number)
        if old is not None and not served.fits(old):
            old.anew = True  # what it has accepted, the new one could not compute
            await self._leave(old)
        self._catalog.add(served)
        self._dispatcher.reconfigure()
        if old is not None:
            await self._drained(old)
            await self._unload(old.key)
        return ""

    async def _read(self, version: Version, settings: ModelSettings, key: str) -> Served:
        """Have all workers read a version; WeftError says why one cannot, or what a first look has found."""
        path, platform = str(version.path), str(version.platform)
        what = ToLoad(key, path, platform, dict(settings.sizes), settings.max_batch, settings.together)
        results = await asyncio.gather(*(link.load(what) for link in self._links), return_exceptions=True)
        if problem := merged(self._links, results):
            raise WeftError(problem)
        told = results[0]
        assert not isinstance(told, BaseException)
        if any(other != told for other in results):
            raise WeftError(
                f"{version.path}: the ranks have read different models there: is it one file system?"
            )
        served = Served.of(version, settings, key, told, settings.max_batch)
        beside = self._serving and self._catalog.loaded
        await self._profiler.first_look(served, BESIDE_S if beside else ALONE_S)
        return served

    def _forget_problems(self, name: str) -> None:
        for key in [key for key in self._catalog.problems if key[0] == name]:
            del self._catalog.problems[key]

    async def _remove(self, name: str) -> None:
        self._forget_problems(name)
        await self._forget(list(self._catalog.loaded.get(name, {}).values()))

    async def _forget(self, some: Iterable[Served]) -> None:
        for served in some:
            await self._leave(served)
            self._catalog.remove(served)
            self._dispatcher.reconfigure()
            await self._unload(served.key)

    async def _leave(self, served: Served) -> None:
        """Take no new requests for it, and return when all accepted ones are answered."""
        served.leaving = True
        self._dispatcher.reconfigure()
        await self._drained(served)

    async def _drained(self, served: Served) -> None:
        while served.open:
            await asyncio.sleep(DRAINED_S)

    async def _unload(self, key: str) -> None:
        await asyncio.gather(*(link.unload(key) for link in self._links))


def merged(links: Sequence[Link], results: Sequence[Any]) -> str:
    """What the ranks could not load and why, one line a reason; raises what is no WeftError."""
    who: dict[str, list[int]] = {}
    for link, result in zip(links, results, strict=True):
        if isinstance(result, WeftError):
            who.setdefault(str(result), []).append(link.rank)
        elif isinstance(result, BaseException):
            raise result
    if len(who) > 1:
        who.pop(ELSEWHERE, None)
    hosts = {link.rank: link.host for link in links}
    lines = []
    for text, ranks in who.items():
        where = ", ".join(dict.fromkeys(hosts[rank] for rank in ranks))
        lines.append(text if len(ranks) == len(links) else f"{ranks_text(ranks)} on {where}: {text}")
    return "\n".join(lines)


def _unreadable(repository: Repository, error: OSError) -> str:
    return f"the model repository {repository.root} cannot be read: {error.strerror}"


def _heard(task: asyncio.Task[Any]) -> None:
    if not task.cancelled():
        task.exception()


def _unready(name: str, version: str, platform: str, reason: str) -> ModelInfo:
    return ModelInfo(name, (), version, platform, (), (), 0, ready=False, reason=printable(reason))


def _overridden(entry: Entry, config: Mapping[str, Any]) -> Any:
    """The model's settings with those of a load request, in Triton's words.

    What a client may have from our own configuration and sends back is no override.
    """
    if others := [key for key in config if key not in OVERRIDES + TOLD]:
        raise Mistake(
            f"the configuration in a load request sets {', '.join(map(repr, others))}: only "
            f"{', '.join(OVERRIDES)} can be set so; the model's weft.toml sets the rest"
        )
    largest = config.get("max_batch_size", entry.settings.max_batch)
    if type(largest) is not int or not 1 <= largest <= MOST_BATCH:  # (for Python, true is a number)
        shown = reprlib.repr(largest)  # JSON may be 1,000 lists deep, for which repr raises
        raise Mistake(f"max_batch_size is {shown:.40}; it must be a whole number from 1 to {MOST_BATCH}")
    return entry.settings.model_copy(update={"max_batch": largest})
