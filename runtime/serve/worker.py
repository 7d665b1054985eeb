"""A rank's worker: loads models when rank 0 says so, and computes batches on the rank's lane.

    rank 0                                   every rank, rank 0 too
    load, unload ── one at a time ────────►  read, share the weights in the node, compile
    Batch ────────────────────────────────►  lane: pieces in, kernels, outputs out
    Done  ◄───────────────────────────────   outputs, or what was raised; how long it took

Loading is collective over a node: its ranks share one copy of the weights, in a window that the node's first
rank fills. So the ranks must load and unload in one order, which is rank 0's.

Every rank reads the files itself, from a path that all must see; equal digests show that they read the same.
Sending the bytes instead would spare the shared file system that every cluster has, and cost rank 0's loop
the time to send them.

A batch that is known to take less than the way to the lane and back is computed in the loop, unless the lane
has something to do.

A single sample of a model that is to be computed `together` is a batch of the node's first rank, whose lane
the other ranks help while their own have nothing to do (together.py).

What a batch raises is its own failure: the lane goes on. Inference goes before everything else that the lane
has ready, such as the kernels of training (their priorities begin at 0).
"""

from __future__ import annotations

import asyncio
import os
import time
import traceback
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np

from ...kernels.device import Device
from ...kernels.lane import Task
from ..errors import MachineError, Mistake, WeftError
from ..graph import Layout
from ..message import Communicator, Window, World
from ..work import Compute
from .model import Array, Model
from .repository import Platform
from .source import Source, read
from .together import Together

PRIORITY = -1
LOADED = "whether all ranks of the node could load a model"
READY = "a rank of the node to get the kernels of {} ready, which are compiled the first time on a machine"
ELSEWHERE = "another rank of the node could not load it"
SHORT_S = 1e-4
"""From the loop to the lane and back takes as long, and the loop may well be held up for it."""

T = TypeVar("T")

LOADING = 1 << 60  # behind everything: compiling a new model must not hold up those that are served


@dataclass(frozen=True, slots=True)
class Batch:
    """Samples of one model that are computed together, in pieces (model.py); `key` names the model here."""

    number: int
    key: str
    count: int
    pieces: Sequence[Sequence[Array]]


@dataclass(frozen=True, slots=True)
class Done:
    """A batch's outputs in the order of the model's, or why there are none."""

    number: int
    outputs: Sequence[Array]
    compute_s: float
    error: str = ""


class ToLoad(NamedTuple):
    """A model that a worker is to load, as it is asked for by message."""

    key: str
    """Names it on the workers."""
    path: str
    platform: str
    sizes: dict[str, int]
    """Of the open axes of its inputs, by name."""
    largest: int
    """Samples of a batch, at most."""
    together: bool = False
    """Whether a node's ranks compute a single sample together."""


class Elsewhere(Mistake):
    """Another rank of the node has told what is wrong."""


@dataclass(slots=True)
class Loaded:
    """A model on this rank, and the node's window with its weights."""

    model: Model | None
    window: Window | None
    together: Together | None = None
    took_s: dict[int, float] = field(default_factory=dict)  # the last batch of each size
    batches: int = 0  # submitted and not answered
    idle: asyncio.Event = field(default_factory=asyncio.Event)  # cleared while there are any

    def __post_init__(self) -> None:
        self.idle.set()


class Worker:
    """One rank's; `node` is a communicator of the node's ranks that nobody else uses."""

    def __init__(self, world: World, node: Communicator, compute: Compute, device: Device) -> None:
        self.resource = f"rank {world.rank} {device.name.partition(' ')[0]}"
        self.host = world.host
        self._where = f"rank {world.rank} on host {world.host}"
        self._world = world
        self._node = node
        self._compute = compute
        self._device = device
        self._loop = asyncio.get_running_loop()
        self._loaded: dict[str, Loaded] = {}
        #: Set when this rank asks nothing more.
        self.left = asyncio.Event()
        #: Set when rank 0 has closed this worker.
        self.closed = asyncio.Event()

    # -- models -----------------------------------------------------------------------------------------

    async def load(self, what: ToLoad) -> dict[str, Any]:
        """Load a model; what it is (source.py). Collective over the node, as is a failure.

        A WeftError says what is wrong. `unload` then takes back what was done.
        """
        key, path, platform, sizes, largest, together = what
        source: Source | None = None
        problem: Exception | None = None
        told: dict[str, Any] = {}
        try:
            source, told = await asyncio.to_thread(read, Path(path), Platform(platform), sizes)
        except WeftError as error:
            problem = Mistake(str(error))
        except Exception as error:  # a MemoryError, say, on this rank alone: the others hear of it, too
            problem = WeftError(f"{path}: {type(error).__name__}: {error}")
            problem.__cause__ = error
        if not os.path.exists(path):
            problem = Mistake(
                f"{path} does not exist here: all ranks read the repository from one shared file system"
            )
        await self._agree(problem)
        assert source is not None
        loaded = self._loaded[key] = Loaded(None, None)
        try:
            parameters = await self._share(source, loaded)
            made = self._made(source, parameters, largest)
            loaded.model = await self._first_of_the_node_first(made, key.partition("@")[0])
            if together and loaded.window is not None:
                loaded.together = await self._together(loaded.model, parameters, key)
        except (Elsewhere, MachineError):
            raise
        except Exception as error:
            raise WeftError(f"{path}: {type(error).__name__}: {error}") from error
        return told

    async def unload(self, key: str) -> None:
        """Forget a model once its batches are computed; collective over the node. One not here is none."""
        loaded = self._loaded.pop(key, None)
        if loaded is not None:
            await loaded.idle.wait()
        if loaded is not None and loaded.together is not None:
            together, loaded.together = loaded.together, None
            await together.close()
        if loaded is not None and loaded.window is not None:
            window, loaded.model, loaded.window = loaded.window, None, None
            await window.close()

    async def close(self) -> None:
        """Forget all models; collective over the node."""
        for key in list(self._loaded):
            await self.unload(key)
        self.closed.set()

    async def _agree(self, problem: Exception | None, what: str = LOADED) -> None:
        """Raise on all ranks of the node where one has a problem: that, or Elsewhere."""
        flag = np.array([problem is None], np.uint8)
        await self._node.allreduce(flag, "min", what=what)
        if not flag[0]:
            raise problem or Elsewhere(ELSEWHERE)

    async def _share(self, source: Source, loaded: Loaded) -> Any:
        """The flat vector of weights: the node's one copy, or this rank's own on a GPU or alone."""
        size = Layout.of(source.graph).size
        first, window = self._node.rank == 0, None
        if not self._device.asynchronous and self._node.size > 1:
            window = loaded.window = await self._world.window(4 * size if first else 0, node=self._node)
        flat: Any = None
        problem: Exception | None = None
        try:
            flat = np.zeros(size, np.float32) if window is None else window.array(0, np.float32, size)
            if window is None or first:
                await asyncio.to_thread(source.fill, flat)
            if window is None:
                flat = self._device.to_device(flat)
        except Exception as error:  # on this rank alone, as where one GPU has no memory left
            problem = error
        await self._agree(problem)
        if window is not None:
            await window.fence()
        return flat

    async def _made(self, source: Source, parameters: Any, largest: int) -> Model:
        """The model, compiled."""
        model = Model(source, self._device, parameters, largest)
        # A program for every size; kernels are compiled for one sample and for many alike.
        await self._run_all([partial(model.program, count) for count in range(1, largest + 1)])
        # Kernel by kernel: in one task, the largest batch of a deep network held up others for seconds.
        await self._run_all([run for count in sorted({1, largest}) for run in model.warm_ups(count)])
        return model

    async def _together(self, model: Model, parameters: Array, key: str) -> Together | None:
        return await Together.open(
            self._world,
            model,
            parameters,
            key.partition("@")[0],
            free=lambda: not self._compute.busy,
            on_lane=self._run_all,
            agree=self._agree,
        )

    async def _run_all(self, calls: Sequence[Callable[[], object]]) -> None:
        """Run them on the lane, behind what is urgent, until one fails; raises what that one raised."""
        errors: list[Exception] = []

        def attempt(call: Callable[[], object]) -> None:
            try:
                if not errors:
                    call()
            except Exception as error:
                errors.append(error)

        await self._compute.run([Task("load", partial(attempt, call), priority=LOADING) for call in calls])
        if errors:
            raise errors[0]

    async def _first_of_the_node_first(self, coroutine: Coroutine[Any, Any, T], name: str) -> T:
        """Await it, on the node's first rank before the others, which find its code in numba's cache.

        All that may fail on one rank alone, for want of memory say, belongs into it: who does not come to
        agree has the others wait there for ever.
        """
        problem: Exception | None = None
        try:
            for turn in (True, False):
                if turn == (self._node.rank == 0):
                    try:
                        result = await coroutine
                    except Exception as error:
                        problem = error
                await self._agree(problem, READY.format(name))
            return result
        finally:
            coroutine.close()  # which nobody has awaited, where the first rank failed

    # -- batches ----------------------------------------------------------------------------------------

    def submit(self, batch: Batch, answer: Callable[[Done], object]) -> None:
        """Compute a batch; `answer` is called in the loop, unless the loop has ended."""
        loaded = self._loaded.get(batch.key)
        tell = self._loop.call_soon_threadsafe
        if loaded is not None:
            loaded.batches += 1
            loaded.idle.clear()

        together = None
        if loaded is not None and batch.count == 1 and self._node.rank == 0:
            together = loaded.together

        def run() -> None:
            started_s = time.monotonic()
            outputs: Sequence[Array] = ()
            error = ""
            try:
                if loaded is None or loaded.model is None:
                    raise Mistake(f"{self._where} has not loaded {batch.key!r}")
                if together is None:
                    outputs = loaded.model.run(batch.pieces, batch.count)
                else:
                    outputs = together.run(batch.pieces)
            except Exception as problem:
                error = "".join(traceback.format_exception(problem))
            took_s = time.monotonic() - started_s
            tell(ended, Done(batch.number, outputs, took_s, error))

        def ended(done: Done) -> None:
            if loaded is not None:
                loaded.took_s[batch.count] = done.compute_s
                loaded.batches -= 1
                if not loaded.batches:
                    loaded.idle.set()
            answer(done)

        info: dict[str, object] = {"phase": "inference", "model": batch.key, "samples": batch.count}
        task = Task(f"infer {batch.key}", run, priority=PRIORITY, info=info)
        short = loaded is not None and together is None and loaded.took_s.get(batch.count, SHORT_S) < SHORT_S
        if short and not self._device.asynchronous:
            tell = self._loop.call_soon
            if self._compute.run_if_idle(task):
                return
            tell = self._loop.call_soon_threadsafe
        self._compute.submit([task])
