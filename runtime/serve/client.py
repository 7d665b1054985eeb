"""Asking from Python, on any rank, without HTTP.

    client = await Client.open(world)
    result = await client.infer("digits", images, deadline_ms=50, qos="interactive")
    print(result.outputs, result.resource)

The request travels on a channel to rank 0, whose dispatcher treats it like one that came over HTTP.
Cancelling `infer` withdraws it. Names of classes travel once: a request says which lists of them its rank
has. (To write a list of 1,000 took rank 0's loop 180 us, the rest of an answer 1 us, and it made the answer
too large for a single message.)
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from dataclasses import replace
from numbers import Real
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np

from ..errors import WeftError
from ..message import Channel, Message, World
from .request import (
    Array,
    InferRequest,
    InferResult,
    Qos,
    Reason,
    Refused,
    Service,
    UnknownModel,
    WrongInput,
)

CHANNEL = "serve requests"

ONLY = ""
"""The name of an input that is the model's only one."""

ERRORS = {"UnknownModel": UnknownModel, "WrongInput": WrongInput}

PORTS: WeakKeyDictionary[World, ClientPort] = WeakKeyDictionary()
"""Of a world whose rank 0 is this one: no message is needed to ask there."""


class Client:
    """A rank's way to the dispatcher; any number of requests at a time."""

    def __init__(self, channel: Channel, port: ClientPort | None = None) -> None:
        self._channel = channel
        self._port = port
        self._labels: dict[int, tuple[str, ...]] = {}  # by rank 0's numbers

    @classmethod
    async def open(cls, world: World) -> Client:
        """For this rank; requests wait until the server on rank 0 is up."""
        return cls(await world.channel(CHANNEL), PORTS.get(world))

    async def infer(
        self,
        model: str,
        inputs: Array | Mapping[str, Array],
        *,
        version: str | int = "",
        outputs: str | Iterable[str] = (),
        qos: str | None = None,
        deadline_ms: float | None = None,
        priority: int | None = None,
        accuracy: float | None = None,
        cost: float | None = None,
        best_effort: bool = False,
        client: str = "",
    ) -> InferResult:
        """Ask `model` for its outputs; axis 0 of every input is the samples.

        `inputs` by name, or the array of a model with one; `outputs` that are wanted, none named: all. `qos`
        names a class of the server's settings; what is not given is as that class and the model's settings
        say. Raises Refused, UnknownModel, WrongInput, or RequestError where the computation failed.
        """
        given = inputs if isinstance(inputs, Mapping) else {ONLY: inputs}
        named = {name: np.asarray(array) for name, array in given.items()}
        # A name is a sequence of names, too, of its letters; and what can be read but once was empty later.
        wanted = [outputs] if isinstance(outputs, str) else list(outputs)
        if not isinstance(deadline_ms, Real | None):  # the rest of what is asked rank 0 looks at (catalog.py)
            raise WrongInput(f"deadline_ms of a request is a number above 0 or None, not {deadline_ms!r:.40}")
        deadline_s = None if deadline_ms is None else float(deadline_ms) / 1000
        wish = (qos, deadline_s, priority, accuracy, cost, best_effort, client)
        if self._port is not None:
            request = InferRequest(model, named, wanted, str(version), Qos(*wish))
            return await self._port.infer(request)
        body = [model, str(version), list(named), wanted, wish, list(self._labels)]
        reply = await self._channel.request(0, body, *named.values())
        match reply.body:
            case {"error": kind, "reason": reason, "message": text}:
                raise _error(kind, reason, text)
            case [names, int(number), labels, str(model), str(version), *told]:
                if labels is not None:
                    self._labels[number] = tuple(labels)
                found = dict(zip(names, reply.arrays, strict=True))
                return replace(InferResult(model, version, found, *told), labels=self._labels[number])
        raise WeftError(f"rank 0 answered {reply.body!r:.80}: is it of another version of Weft?")


def _error(kind: str, reason: str, text: str) -> WeftError:
    if kind == Refused.__name__:
        return Refused(Reason(reason), text)
    return ERRORS.get(kind, WeftError)(text)


class ClientPort:
    """Rank 0's end, one for all servers of a world: hands what clients ask to the one that is there.

    While one starts, requests wait for it. One that has ended refuses them itself.
    """

    def __init__(self) -> None:
        self._service: asyncio.Future[Service]
        self._labels: dict[tuple[str, ...], int] = {}  # numbered in the order in which they are told first
        self.starts()

    @classmethod
    async def of(cls, world: World) -> ClientPort:
        """The world's, whose server `starts`. Rank 0 alone."""
        port = PORTS.get(world)
        if port is None:
            port = PORTS[world] = cls()
            (await world.channel(CHANNEL)).serve(port._answer)
        port.starts()
        return port

    def starts(self) -> None:
        """Requests wait from now on."""
        self._service = asyncio.get_running_loop().create_future()

    def has_started(self, service: Service) -> None:
        """Those that wait are answered."""
        self._service.set_result(service)

    def has_not_started(self) -> None:
        """Unless it has: those that wait are refused."""
        if not self._service.done():
            self._service.set_exception(Refused(Reason.NO_WORKER, "the server could not start"))
            self._service.exception()  # nobody may ever ask

    async def infer(self, request: InferRequest) -> InferResult:
        """As Service.infer, once there is one."""
        return await (await asyncio.shield(self._service)).infer(request)

    async def _answer(self, message: Message) -> Any:
        model, version, names, outputs, wish, known = message.body
        inputs = dict(zip(names, message.arrays, strict=True))
        try:
            result = await self.infer(InferRequest(model, inputs, outputs, version, Qos(*wish)))
        except (Refused, UnknownModel, WrongInput) as error:
            reason = error.reason if isinstance(error, Refused) else ""
            return {"error": type(error).__name__, "reason": reason, "message": str(error)}
        told = [
            result.model, result.version, result.resource, result.queue_s, result.compute_s, result.batch,
        ]  # fmt: skip
        number = self._labels.setdefault(result.labels, len(self._labels))
        labels = None if number in known else list(result.labels)
        await message.reply([list(result.outputs), number, labels, *told], *result.outputs.values())
        return None
