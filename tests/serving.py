"""A small service in memory for the tests of the HTTP front, and the front on a thread of its own.

with serving(Fake()) as server:
    urllib.request.urlopen(server.url + "/v2")
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from weft.runtime.serve.http import HttpServer, HttpSettings
from weft.runtime.serve.request import (
    InferRequest,
    InferResult,
    ModelInfo,
    ModelStatistics,
    Reason,
    Refused,
    TensorInfo,
    UnknownModel,
    WrongInput,
)

ANY = (-1, -1)
IMAGE = (-1, 1, 8, 8)
VERSIONS = ("1", "2")


@dataclass
class Fake:
    """Models that return what they are given; some of them otherwise, as their names say."""

    ready: bool = True
    requests: list[InferRequest] = field(default_factory=list)
    cancelled: int = 0
    held: asyncio.Event = field(default_factory=asyncio.Event)  # the model "slow" waits for it
    loaded: set[str] = field(
        default_factory=lambda: {"echo", "digits", "slow", "broken", "full", "impossible"}
    )
    configs: dict[str, Any] = field(default_factory=dict)
    counted: dict[str, ModelStatistics] = field(default_factory=dict)

    async def index(self) -> Sequence[ModelInfo]:
        names = sorted({*self.loaded, "sleeping"})
        return [self._info(name, version) for name in names for version in VERSIONS]

    def datatypes(self, name: str, version: str = "") -> Mapping[str, str]:
        return {each.name: each.datatype for each in self.model(name, version).outputs}

    def model(self, name: str, version: str = "") -> ModelInfo:
        if name not in self.loaded or version not in ("", *VERSIONS):
            there = ", ".join(sorted(self.loaded))
            raise UnknownModel(f"no model {name!r} version {version!r}; there are {there}")
        return self._info(name, version or VERSIONS[-1])

    def _info(self, name: str, version: str) -> ModelInfo:
        ready = name in self.loaded
        inputs = (TensorInfo("x", "FP32", ANY),)
        outputs = (TensorInfo("y", "FP32", ANY), TensorInfo("half", "BF16", ANY))
        if name == "digits":  # as `weft train digits-mlp` leaves it
            inputs, outputs = (TensorInfo("x", "FP32", IMAGE),), (TensorInfo("dense_2", "FP32", (-1, 10)),)
        reason, config = "" if ready else "not loaded", self.configs.get(name, {})
        return ModelInfo(name, VERSIONS, version, "weft_onnx", inputs, outputs, 8, ready, reason, config)

    def statistics(self, name: str = "", version: str = "") -> Mapping[tuple[str, str], ModelStatistics]:
        if name:
            self.model(name, version)
        return {(model, "2"): of for model, of in self.counted.items() if name in ("", model)}

    async def infer(self, request: InferRequest) -> InferResult:
        self.requests.append(request)
        match request.model:
            case "slow":
                try:
                    await self.held.wait()
                except asyncio.CancelledError:
                    self.cancelled += 1
                    raise
            case "broken":
                raise ZeroDivisionError("a secret of the server")
            case "full":
                raise Refused(Reason.OVERLOAD, "32 requests are queued, which would make it 12 ms late")
            case "impossible":
                raise Refused(Reason.IMPOSSIBLE, "no resource meets 1 ms")
        array = next(iter(request.inputs.values()))
        outputs = {"y": array, "half": array} if array.dtype == np.float32 else {"y": array}
        if request.model == "digits":
            if list(request.inputs) != ["x"] or array.dtype != np.float32 or array.shape[1:] != IMAGE[1:]:
                raise WrongInput("digits takes x FP32 [-1, 1, 8, 8]")
            outputs = {"dense_2": array.reshape(-1, 64)[:, :10]}
        if unknown := [name for name in request.outputs if name not in outputs]:
            raise WrongInput(f"no output {unknown[0]!r}; there are {', '.join(outputs)}")
        self._count(request.model, len(array))
        given = {name: outputs[name] for name in request.outputs or outputs}
        version = request.version or VERSIONS[-1]
        return InferResult(request.model, version, given, "rank 0 cpu", 0.001, 0.002, len(array))

    def _count(self, model: str, samples: int) -> None:
        of = self.counted.setdefault(model, ModelStatistics())
        of.inference_count += samples
        of.execution_count += 1
        for durations, ns in ((of.success, 3_000_000), (of.queue, 1_000_000), (of.compute, 2_000_000)):
            durations.count += 1
            durations.ns += ns

    async def load(self, name: str, config: Mapping[str, Any] | None = None) -> None:
        if name == "absent":
            raise UnknownModel(f"no model {name!r} in the repository")
        self.loaded.add(name)
        self.configs[name] = dict(config or {})

    async def unload(self, name: str) -> None:
        self.model(name)
        self.loaded.discard(name)

    def status(self) -> Mapping[str, Any]:
        return STATUS


def rows(keys: str, *values: tuple[Any, ...]) -> list[dict[str, Any]]:
    return [dict(zip(keys.split(), row, strict=True)) for row in values]


STATUS: dict[str, Any] = {
    "uptime_s": 8130.0,
    "draining": False,
    "ranks": 4,
    "workers": rows(
        "resource state models busy_share queued",
        ("rank 0 cpu", "ready", ["digits", "resnet50"], 0.31, 0),
        ("rank 1 cpu", "ready", ["digits", "resnet50"], 0.87, 2),
        ("rank 2 cpu", "stuck", ["digits"], 0.64, 1),
        ("rank 3 gpu 0", "silent", [], 0.0, 0),
    ),
    "queues": rows(
        "class queued oldest_s", ("interactive", 3, 0.004), ("standard", 17, 0.061), ("bulk", 240, 1.2)
    ),
    "classes": rows(
        "class on_time late failed refused p50_ms p99_ms",
        ("interactive", 91812, 14, 2, {"overload": 310}, 8.1, 41.0),
        ("standard", 40211, 3, 0, {"overload": 1900, "expired": 12}, 31.0, 160.0),
        ("bulk", 9120, 0, 0, {}, None, None),
    ),
    "profiles": rows(
        "resource model batch p50_ms p99_ms per_s error availability",
        ("rank 0 cpu", "digits", 1, 0.21, 0.34, 4700.0, 0.012, 1.0),
        ("rank 0 cpu", "digits", 32, 1.9, 2.4, 16800.0, 0.021, 1.0),
        ("rank 1 cpu", "resnet50", 1, 61.0, 70.0, 16.4, 0.034, 1.0),
        ("rank 2 cpu", "digits", 1, 0.82, 1.7, 1220.0, 0.19, 0.85),
    ),
}


class Serving:
    """A front and its loop, which run on a thread."""

    def __init__(self, service: Fake, settings: HttpSettings) -> None:
        self.service = service
        self.loop = asyncio.new_event_loop()
        self.server = HttpServer(service, settings)
        self.errors: list[str] = []  # what the server found unexpected
        self._thread = threading.Thread(target=self.loop.run_forever, daemon=True)

    def __enter__(self) -> Serving:
        self._thread.start()
        self.loop.set_exception_handler(lambda loop, about: self.errors.append(repr(about.get("exception"))))
        self.run(self.server.start())
        return self

    def __exit__(self, *_: object) -> None:
        self.run(self.server.stop(drain_s=1.0))
        self.run(self.loop.shutdown_default_executor())
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join()
        self.loop.close()

    def run(self, coroutine: Any) -> Any:
        """Run it on the server's loop."""
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result(30)

    @property
    def url(self) -> str:
        return self.server.url

    @property
    def address(self) -> tuple[str, int]:
        return "127.0.0.1", self.server.port


@contextmanager
def serving(service: Fake | None = None, **settings: Any) -> Iterator[Serving]:
    """The front at a free port, with these settings."""
    with Serving(service or Fake(), HttpSettings(port=0, **settings)) as running:
        yield running
