"""How rank 0 reaches the workers: its own by a call, the others over two channels.

"serve batches"   messages both ways, in plain callbacks: a batch costs no asyncio Task
"serve models"    requests to load and unload, and to say that one is there, each a task over there
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import numpy as np

from ..errors import WeftError
from ..message import Channel, Message, World
from .model import Array
from .worker import Batch, Done, ToLoad, Worker

BATCHES, MODELS = "serve batches", "serve models"

JOIN_BYTES = 64 * 1024
"""Pieces of an input that are smaller in all are sent as one: a frame of its own costs both ends more."""

Answer = Callable[[Done], object]


class Link(Protocol):
    """A worker, as the dispatcher sees it."""

    resource: str
    rank: int
    host: str

    def run(self, batch: Batch, answer: Answer) -> None:
        """Have a batch computed; `answer` is called in the loop."""

    async def load(self, what: ToLoad) -> dict[str, Any]:
        """Load a model; what it is. WeftError."""

    async def unload(self, key: str) -> None:
        """Forget a model."""

    async def hello(self) -> None:
        """Return when the worker's loop has answered."""

    async def left(self) -> None:
        """Return when the worker's rank asks nothing more."""

    async def close(self) -> None:
        """Forget all models."""


class Here:
    """Rank 0's own worker."""

    def __init__(self, worker: Worker) -> None:
        self.rank = 0
        self.host = worker.host
        self.resource = worker.resource
        self.run = worker.submit
        self.load = worker.load
        self.unload = worker.unload
        self.close = worker.close

    async def hello(self) -> None:
        """It is this loop."""

    async def left(self) -> None:
        """Rank 0 says so itself."""


class There:
    """Another rank's; made by `links`."""

    def __init__(self, rank: int, host: str, resource: str, batches: Channel, models: Channel) -> None:
        self.rank, self.host, self.resource = rank, host, resource
        self._batches, self._models = batches, models
        self._answers: dict[int, Answer] = {}

    def run(self, batch: Batch, answer: Answer) -> None:
        """Send a batch."""
        self._answers[batch.number] = answer
        pieces = [joined(parts) for parts in batch.pieces]
        body = [batch.number, batch.key, batch.count, [len(parts) for parts in pieces]]
        self._batches.post(self.rank, body, *(part for parts in pieces for part in parts))

    def done(self, message: Message) -> None:
        """Take an answer in."""
        number, compute_s, error = message.body
        self._answers.pop(number)(Done(number, message.arrays, compute_s, error))

    async def load(self, what: ToLoad) -> dict[str, Any]:
        """Over there."""
        told: dict[str, Any] = await self._ask("load", *what)
        return told

    async def unload(self, key: str) -> None:
        """Over there."""
        await self._ask("unload", key)

    async def hello(self) -> None:
        """Over there."""
        await self._ask("hello")

    async def left(self) -> None:
        """Over there."""
        await self._ask("left")

    async def close(self) -> None:
        """Over there."""
        await self._ask("close")

    async def _ask(self, what: str, *arguments: Any) -> Any:
        answer, problem = (await self._models.request(self.rank, [what, *arguments])).body
        if problem:
            raise WeftError(problem)
        return answer


def joined(parts: Sequence[Array]) -> Sequence[Array]:
    """The pieces of an input as they are sent."""
    if len(parts) > 1 and sum(part.nbytes for part in parts) <= JOIN_BYTES:
        return [np.concatenate(parts)]
    return parts


async def links(world: World, worker: Worker) -> list[Link]:
    """On rank 0 a link to every rank's worker, on the others none; collective."""
    batches, models = await world.channel(BATCHES), await world.channel(MODELS)
    names = np.zeros((world.size, 64), np.uint8)
    own = np.zeros(64, np.uint8)
    text = worker.resource.encode()[:64]
    own[: len(text)] = np.frombuffer(text, np.uint8)
    if world.rank:  # before rank 0 can ask: the handlers of a server that was here before have its worker
        post = Post(worker, batches)
        batches.serve(post.batch)
        models.serve(post.model)
    await world.allgather(own, names, what="names of the workers")
    if world.rank:
        return []
    resources = [row.tobytes().rstrip(b"\0").decode() for row in names]
    there = {
        rank: There(rank, world.hosts[rank], resources[rank], batches, models)
        for rank in range(1, world.size)
    }
    batches.serve(lambda message: there[message.source].done(message))
    return [Here(worker), *there.values()]


class Post:
    """A worker's end of the channels."""

    def __init__(self, worker: Worker, batches: Channel) -> None:
        self._worker = worker
        self._batches = batches

    def batch(self, message: Message) -> None:
        """Compute a batch and send the answer."""
        number, key, count, lengths = message.body
        self._worker.submit(Batch(number, key, count, list(cut(message.arrays, lengths))), self._answer)

    def _answer(self, done: Done) -> None:
        self._batches.post(0, [done.number, done.compute_s, done.error], *done.outputs)

    async def model(self, message: Message) -> list[Any]:
        """Load, unload, close, wait, or only answer: [what was asked for, problem]."""
        what, *arguments = message.body
        worker = self._worker
        try:
            match what:
                case "load":
                    return [await worker.load(ToLoad(*arguments)), ""]
                case "unload":
                    await worker.unload(*arguments)
                case "left":
                    await worker.left.wait()
                case "close":
                    await worker.close()
            return [None, ""]
        except WeftError as error:
            return [None, str(error)]


def cut(arrays: Sequence[Array], lengths: Sequence[int]) -> Iterator[Sequence[Array]]:
    """Arrays in runs of these lengths."""
    at = 0
    for length in lengths:
        yield arrays[at : at + length]
        at += length
