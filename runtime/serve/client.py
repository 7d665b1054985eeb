"""Asking from Python, on any rank, without HTTP.

    client = await Client.open(world)
    result = await client.infer("digits", images, deadline_ms=50, qos="interactive")
    print(result.outputs, result.resource)

The request travels on a channel to rank 0, whose dispatcher treats it like one that came over HTTP.
Cancelling `infer` withdraws it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

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


class Client:
    """A rank's way to the dispatcher; any number of requests at a time."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel

    @classmethod
    async def open(cls, world: World) -> Client:
        """For this rank; requests wait until the server on rank 0 is up."""
        return cls(await world.channel(CHANNEL))

    async def infer(
        self,
        model: str,
        inputs: Array | Mapping[str, Array],
        *,
        version: str | int = "",
        outputs: Sequence[str] = (),
        qos: str | None = None,
        deadline_ms: float | None = None,
        priority: int | None = None,
        accuracy: float | None = None,
        cost: float | None = None,
        best_effort: bool = False,
        client: str = "",
    ) -> InferResult:
        """Ask `model` for its outputs; axis 0 of every input is the samples.

        `inputs` by name, or the array of a model with one. `qos` names a class of the server's settings; what
        is not given is as that class and the model's settings say. Raises Refused, UnknownModel, WrongInput,
        or RequestError where the computation failed.
        """
        named = inputs if isinstance(inputs, Mapping) else {ONLY: np.asarray(inputs)}
        deadline_s = None if deadline_ms is None else deadline_ms / 1000
        wish = Qos(qos, deadline_s, priority, accuracy, cost, best_effort, client)
        body = {
            "model": model,
            "version": str(version),
            "inputs": list(named),
            "outputs": list(outputs),
            "qos": asdict(wish),
        }
        reply = await self._channel.request(0, body, *named.values())
        told = reply.body
        if "error" in told:
            raise _raised(told)
        return InferResult(outputs=dict(zip(told.pop("names"), reply.arrays, strict=True)), **told)


def _raised(told: Mapping[str, Any]) -> WeftError:
    if told["error"] == "Refused":
        return Refused(Reason(told["reason"]), told["message"])
    return ERRORS.get(told["error"], WeftError)(told["message"])


class ClientPort:
    """Rank 0's end: hands what clients ask to the dispatcher."""

    def __init__(self, service: Service, channel: Channel) -> None:
        self._service = service
        channel.serve(self._answer)

    async def _answer(self, message: Message) -> Any:
        told = message.body
        inputs = dict(zip(told["inputs"], message.arrays, strict=True))
        request = InferRequest(told["model"], inputs, told["outputs"], told["version"], Qos(**told["qos"]))
        try:
            result = await self._service.infer(request)
        except (Refused, UnknownModel, WrongInput) as error:
            reason = error.reason if isinstance(error, Refused) else ""
            return {"error": type(error).__name__, "reason": reason, "message": str(error)}
        names = list(result.outputs)
        body = {
            "model": result.model,
            "version": result.version,
            "resource": result.resource,
            "queue_s": result.queue_s,
            "compute_s": result.compute_s,
            "batch": result.batch,
            "names": names,
        }
        await message.reply(body, *(result.outputs[name] for name in names))
        return None
