"""A network as `weft train` holds it on a rank, and the parts of its step alone, for benches."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bench._steps import Floats, Sizes, Turn, rate
from bench._sums import Sums
from bench.harness import check
from weft.kernels.device import Device
from weft.runtime.exchange import cut, rows_of
from weft.runtime.exchange.tune import Settings
from weft.runtime.message import World
from weft.runtime.message.mpi import MPI  # not mpi4py's before: Weft has settings for it
from weft.runtime.train.data import Affine, Data
from weft.runtime.train.data.samples import Rows
from weft.runtime.train.model import build
from weft.runtime.train.prepare import make_replica, share_memory
from weft.runtime.train.replica import Replica
from weft.runtime.train.schema import Job

ENDLESS = 1_000_000
"""Steps of a loop: more than any bench takes."""


@dataclass(frozen=True, slots=True)
class Fixed:
    """What the exchange is told; None is left to its tuning. `clip_norm` is the job's: None does not clip."""

    portion_bytes: int | None = None
    credit: int | None = None
    rule: str | None = None
    clip_norm: float | None = None

    @property
    def everything(self) -> bool:
        """Whether there is nothing to tune."""
        return None not in (self.portion_bytes, self.credit, self.rule)

    @classmethod
    def by(cls, settings: Settings, clip_norm: float | None = None) -> Fixed:
        """Everything."""
        return cls(settings.portion_bytes, settings.credit, settings.rule, clip_norm)


class Standing(Rows):
    """The rows `own`, a rank's micro-batch, in every step, whatever the order of its epoch.

    So every turn gives the same weights, to the bit.
    """

    def __init__(self, inputs: Floats, targets: Floats, own: slice) -> None:
        rows = np.arange(len(inputs))
        super().__init__(inputs, targets, rows, None, Affine())
        self._own = rows[own]

    def gather(self, indices: NDArray[np.int64], inputs: Floats, targets: Floats) -> None:
        """See `Samples`."""
        check(len(indices) == len(self._own), f"{len(indices)} samples were asked for, not {len(self._own)}")
        super().gather(self._own, inputs, targets)


class Model:
    """The network as a trainer holds it on this rank, with what the ranks of a node share."""

    def __init__(
        self, world: World, sizes: Sizes, fixed: Fixed, *, name: str = "overlap", momentum: float = 0.0
    ) -> None:
        self.world, self.sizes, self.fixed = world, sizes, fixed
        self.name, self.momentum = name, momentum
        self.rate = rate(momentum)
        inputs, targets = sizes.samples()
        start = world.rank * sizes.batch
        self.samples = Standing(inputs, targets, slice(start, start + sizes.batch))
        none = Rows(inputs, targets, np.arange(0), None, Affine())
        self.data = Data(self.samples, none, none)
        weights = sizes.weights()
        self.first = {f"weight/dense_{i}.weight": w for i, w in enumerate(weights, 1)}
        if momentum:
            self.first |= {f"optimizer0/dense_{i}.weight": 0 * w for i, w in enumerate(weights, 1)}
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
                "name": self.name,
                "data": {"source": "npz", "path": "held in memory", "validation": 0.0, "test": 0.0},
                "model": {"layers": layers[:-1], "loss": "mean_squared_error"},
                "train": {
                    "batch": self.sizes.batch * self.sizes.ranks,
                    "micro_batch": self.sizes.batch,
                    "steps": ENDLESS,
                    "optimizer": {"name": "sgd", "rate": self.rate, "momentum": self.momentum},
                    "clip_norm": fixed.clip_norm,
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
        replica.update(0, replica.layout.size, rate=model.rate, step=step + 1, scale=1.0)
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
    if peers is None:
        return Turn(0.0)
    sums = Sums(peers.rank, peers.size, slices)
    seconds = 0.0
    for step in range(steps):
        sums.fill()
        await peers.barrier()
        start = time.perf_counter()
        under_way: list[Awaitable[None]] = []
        for array in slices:
            if len(under_way) == settings.credit:
                await under_way.pop(0)
            under_way.append(peers.allreduce(array))
        for sent in under_way:
            await sent
        if step >= warm:
            seconds += time.perf_counter() - start
    sums.check("portions alone")
    return Turn(seconds / (steps - warm))


def wire_blocking(model: Model, settings: Settings, steps: int, warm: int) -> Turn:
    """As many bytes in one blocking all-reduce."""
    peers = model.wire if model.memory is None else model.memory.peers
    if peers is None:
        return Turn(0.0)
    whole = np.zeros(sum(array.size for array in model.slices(settings)), np.float32)
    sums = Sums(peers.rank, peers.size, [whole])
    seconds = 0.0
    for step in range(steps):
        sums.fill()
        peers.mpi.Barrier()
        start = time.perf_counter()
        peers.mpi.Allreduce(MPI.IN_PLACE, whole)
        if step >= warm:
            seconds += time.perf_counter() - start
    sums.check("a blocking all-reduce")
    return Turn(seconds / (steps - warm))


def digest(replica: Replica) -> str:
    """Of the weights."""
    return hashlib.blake2b(replica.parameters.tobytes(), digest_size=16).hexdigest()
