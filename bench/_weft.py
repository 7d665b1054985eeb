"""Weft's candidates of bench overlap: the loop of `weft train`, and the parts of a step alone.

All that knows how a trainer is put together stands here. A loop lives as long as the bench and comes to rest
between turns, so that its settings are tuned once and its plan is made from measured timings, as in any run;
every turn begins with the same weights.
"""

from __future__ import annotations

import asyncio
import hashlib
import threading
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bench._steps import RATE, Sizes, Turn
from weft.kernels.device import Device
from weft.kernels.lane import Task
from weft.runtime.exchange import cut, rows_of
from weft.runtime.exchange.tune import STEPS, Settings
from weft.runtime.message import Communicator, World
from weft.runtime.message.mpi import MPI  # not mpi4py's before: Weft has settings for it
from weft.runtime.observe.trace import COMPUTE, WIRE, Span
from weft.runtime.train.data import Affine, Data
from weft.runtime.train.data.samples import Rows
from weft.runtime.train.loop import TrainingLoop
from weft.runtime.train.model import build
from weft.runtime.train.prepare import make_replica, share_memory
from weft.runtime.train.replica import Replica
from weft.runtime.train.schema import Job
from weft.runtime.work import Compute

ENDLESS = 1_000_000
"""Steps of a loop: more than any bench takes."""

FIRST_TURN = STEPS + 4
"""Steps until a loop rests for the first time: it has then tuned its settings, and planned with them."""

PLANNED = 4
"""The same of a loop with nothing to tune: it replaces its first plan, a guess, behind the third."""


@dataclass(frozen=True, slots=True)
class Clocks:
    """What had passed at a moment, in seconds: time, and CPU of the loop's and of the lane's thread."""

    time: float = 0.0
    loop: float = 0.0
    lane: float = 0.0

    def since(self, before: Clocks) -> Clocks:
        """The difference."""
        return Clocks(self.time - before.time, self.loop - before.loop, self.lane - before.lane)


@dataclass(slots=True)
class Trained(Turn):
    """A loop's turn: also what was spent and seen in the timed steps."""

    spent: Clocks = field(default_factory=Clocks)
    window: tuple[int, int] = (0, 0)  # of `spent`, in nanoseconds
    spans: list[Span] = field(default_factory=list)  # of these steps and the warm ones


@dataclass(frozen=True, slots=True)
class Fixed:
    """What the exchange is told; None is left to its tuning."""

    portion_bytes: int | None = None
    credit: int | None = None
    rule: str | None = None

    @property
    def everything(self) -> bool:
        """Whether there is nothing to tune."""
        return None not in (self.portion_bytes, self.credit, self.rule)

    @classmethod
    def by(cls, settings: Settings) -> Fixed:
        """Everything."""
        return cls(settings.portion_bytes, settings.credit, settings.rule)


class Model:
    """The network as a trainer holds it on this rank, with what the ranks of a node share."""

    def __init__(self, world: World, sizes: Sizes, fixed: Fixed) -> None:
        self.world, self.sizes, self.fixed = world, sizes, fixed
        inputs, targets = sizes.samples()
        rows = np.arange(len(inputs))
        self.samples = Rows(inputs, targets, rows, None, Affine())
        none = Rows(inputs, targets, rows[:0], None, Affine())
        self.data = Data(self.samples, none, none)
        self.first = {f"weight/dense_{i}.weight": w for i, w in enumerate(sizes.weights(), 1)}
        self.graph = build(self.job(fixed).model, self.data)

    async def open(self) -> None:
        """Make the replica that loops train, and one of this rank's own."""
        job, device = self.job(self.fixed), Device()
        self.memory = await share_memory(self.world, job, self.graph, device)
        self.replica = make_replica(job, self.graph, device, self.memory, self.world.size)
        self.own = Replica(self.graph, job.train.optimizer.build(), device, self.sizes.batch, job.seed)
        self.own.warm_up(self.sizes.batch)
        self.replica.warm_up(self.sizes.batch)
        self.wire = await self.world.duplicate("wire alone")

    async def reset(self) -> None:
        """Give the replica its first weights again; while all loops rest."""
        self.replica.restore(self.first)
        if self.memory is not None:
            await self.memory.fence()

    def job(self, fixed: Fixed) -> Job:
        """A job file's content."""
        layers: list[dict[str, Any]] = []
        for width in self.sizes.widths[1:]:
            layers += [{"kernel": "dense", "features": width, "bias": False}, {"kernel": "relu"}]
        given = {"portion_bytes": fixed.portion_bytes, "credit": fixed.credit, "rule": fixed.rule}
        return Job.model_validate(
            {
                "name": "overlap",
                "data": {"source": "npz", "path": "held in memory", "validation": 0.0, "test": 0.0},
                "model": {"layers": layers[:-1], "loss": "mean_squared_error"},
                "train": {
                    "batch": self.sizes.batch * self.sizes.ranks,
                    "micro_batch": self.sizes.batch,
                    "steps": ENDLESS,
                    "optimizer": {"name": "sgd", "rate": RATE},
                },
                "exchange": {name: value for name, value in given.items() if value is not None},
            }
        )

    def slices(self, settings: Settings) -> list[NDArray[np.float32]]:
        """What this rank sends of each portion, once it is the node's sum."""
        portions = cut(self.replica.layout, settings.portion_bytes, rows_of(self.graph))
        if self.memory is None:
            return [self.own.gradients[p.start : p.stop] for p in portions]
        return [self.own.gradients[part] for part in self.memory.slices(portions)]


class Training:
    """A training loop that makes its steps in turns. Use as an async context manager."""

    def __init__(self, model: Model, comm: Communicator, fixed: Fixed) -> None:
        self._model = model
        self._done = 0
        self._pauses = {PLANNED if fixed.everything else FIRST_TURN}  # the loop looks at it behind each step
        self._go: asyncio.Future[bool] | None = None  # True: it is to end
        self._rests = asyncio.Event()
        self._turn = Trained(0.0)
        self._marks: list[Clocks] = []
        self._lane = 0
        self._compute = Compute(model.replica.device, spans=self._on_span)
        self._loop = TrainingLoop(
            model.world,
            comm,
            model.job(fixed),
            model.data,
            model.replica,
            self._compute,
            on_step=self._on_step,
            wire=self._on_wire,
            memory=model.memory,
        )
        self._running: asyncio.Task[int] | None = None

    @classmethod
    async def open(cls, model: Model, fixed: Fixed) -> Training:
        """With a communicator of its own, as a model has that trains beside others."""
        return cls(model, await model.world.duplicate("training"), fixed)

    @property
    def settings(self) -> Settings:
        """What tuning has found."""
        return self._loop.settings

    async def first_turn(self) -> Trained:
        """The steps in which the loop finds its settings; `seconds` are those of the last two."""
        turn = await self._take(self._start)
        turn.seconds = self._marks[-1].since(self._marks[-3]).time / 2
        return turn

    async def turn(self, steps: int, warm: int) -> Trained:
        """So many more steps, from the first weights; those after `warm` of them are timed."""
        self._pauses.add(self._done + steps)
        turn = await self._take(self._wake)
        turn.spent = self._marks[-1].since(self._marks[warm - 1])
        turn.window = (int(self._marks[warm - 1].time * 1e9), int(self._marks[-1].time * 1e9))
        # From one step's losses to another's, equally far behind their steps' starts: what comes before and
        # behind the steady state does not count.
        turn.seconds = turn.spent.time / (steps - warm)
        turn.digest = digest(self._model.replica)
        return turn

    async def _take(self, begin: Callable[[], None]) -> Trained:
        await self._model.reset()
        self._turn, self._marks = Trained(0.0), []
        self._rests.clear()
        self._model.world.selector.computing = lambda: self._compute.busy
        begin()
        rests = asyncio.ensure_future(self._rests.wait())
        assert self._running is not None
        await asyncio.wait((rests, self._running), return_when=asyncio.FIRST_COMPLETED)
        self._model.world.selector.computing = lambda: False
        if self._running.done():
            self._running.result()
        return self._turn

    def _start(self) -> None:
        self._running = asyncio.create_task(self._loop.run(0, self._boundary, self._pauses))

    def _wake(self) -> None:
        assert self._go is not None
        self._go.set_result(False)

    async def _boundary(self, done: int) -> bool:
        self._done = done
        self._go = asyncio.get_running_loop().create_future()
        self._rests.set()
        return await self._go

    def _on_step(self, share: object, tally: Any) -> None:
        self._turn.losses.append(tally.loss)
        lane = time.clock_gettime(time.pthread_getcpuclockid(self._lane)) if self._lane else 0.0
        self._marks.append(Clocks(time.monotonic_ns() / 1e9, time.thread_time(), lane))

    def _on_span(self, task: Task, start_ns: int, end_ns: int) -> None:
        self._lane = threading.get_ident()
        self._turn.spans.append(Span(COMPUTE, task.name, start_ns, end_ns, task.info or {}))

    def _on_wire(self, name: str, start_ns: int, end_ns: int, facts: dict[str, object]) -> None:
        self._turn.spans.append(Span(WIRE, name, start_ns, end_ns, facts))

    async def __aenter__(self) -> Training:
        return self

    async def __aexit__(self, error: object, *_: object) -> None:
        if self._running is not None and not self._running.done():
            if error is None and self._go is not None:
                self._go.set_result(True)
            else:
                self._running.cancel()
            await asyncio.wait((self._running,))
        await self._compute.__aexit__()


def serial(model: Model, steps: int, warm: int, add_up: Callable[[NDArray[Any]], None]) -> Turn:
    """Forward, backward, `add_up` of the whole gradient and of the loss, update: one after the other."""
    replica, sizes, turn = model.own, model.sizes, Turn(0.0)
    replica.restore(model.first)
    program = replica.training(sizes.batch)
    samples, first = sizes.batch * sizes.ranks, model.world.rank * sizes.batch
    program.loss_gradient[...] = 1 / samples
    start = 0.0
    for step in range(steps):
        if step == warm:
            start = time.perf_counter()
        replica.load(program, model.samples, np.arange(first, first + sizes.batch))
        for call in (*program.forward, *program.backward):
            call.run()
        loss = np.array([program.outputs[0].astype(np.float64).sum() / samples])
        add_up(replica.gradients)
        add_up(loss)
        replica.update(0, replica.layout.size, rate=RATE, step=step + 1, scale=1.0)
        turn.losses.append(float(loss[0]))
    turn.seconds = (time.perf_counter() - start) / (steps - warm)
    turn.digest = digest(replica)
    return turn


def blocking(model: Model, steps: int, warm: int) -> Turn:
    """A serial step whose sums are blocking all-reduces."""
    return serial(model, steps, warm, lambda array: model.world.mpi.Allreduce(MPI.IN_PLACE, array))


def compute(model: Model, steps: int, warm: int) -> Turn:
    """A serial step without communication: ranks part company, and losses are of their own samples."""
    return serial(model, steps, warm, lambda array: None)


async def wire(model: Model, settings: Settings, steps: int, warm: int) -> Turn:
    """The portions of a gradient one after the other, `credit` at once, all ready, with nothing computing."""
    slices = model.slices(settings)
    peers = model.wire if model.memory is None else model.memory.peers
    start = 0.0
    for step in range(steps):
        if step == warm:
            start = time.perf_counter()
        if peers is None:
            continue
        under_way: list[Awaitable[None]] = []
        for array in slices:
            if len(under_way) == settings.credit:
                await under_way.pop(0)
            under_way.append(peers.allreduce(array))
        for sent in under_way:
            await sent
    return Turn((time.perf_counter() - start) / (steps - warm))


def wire_blocking(model: Model, settings: Settings, steps: int, warm: int) -> Turn:
    """As many bytes in one blocking all-reduce."""
    peers = model.wire if model.memory is None else model.memory.peers
    whole = np.zeros(sum(array.size for array in model.slices(settings)), np.float32)
    start = 0.0
    for step in range(steps):
        if step == warm:
            start = time.perf_counter()
        if peers is not None:
            peers.mpi.Allreduce(MPI.IN_PLACE, whole)
    return Turn((time.perf_counter() - start) / (steps - warm))


def digest(replica: Replica) -> str:
    """Of the weights."""
    return hashlib.blake2b(replica.parameters.tobytes(), digest_size=16).hexdigest()
