"""Everything before the first step: jobs examined, agreement between the ranks, weights, the run's folder.

What is wrong with a job, its data or a checkpoint is found here (examine.py), on every rank, before anything
is computed and before a folder is made.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path

import numpy as np

from ...kernels.device import Device, DeviceUnavailable, choose_device
from ..errors import MachineError, Mistake
from ..exchange import NodeMemory, cut, rows_of, travels
from ..exchange.stealing import Lent
from ..exchange.tune import SMALLEST_BYTES
from ..graph import Graph, Layout
from ..graph.program import shared_bytes
from ..message import World
from ..observe import RunFolder
from ..work.alike import agree_on_model
from ..work.cores import share_cores
from ..work.offers import worth_offering
from . import checkpoint, residuals
from .advice import coarse, far_off, uneven, unwarmed, without_effect
from .best import Best
from .data import Data
from .ending import kept, reached
from .evaluate import Score
from .examine import Examined, examine_all
from .halving import Verdict, require_comparable
from .interrupt import Interruptible
from .replica import Flats, Replica
from .residuals import Flat
from .schema import Job


@dataclass(frozen=True, slots=True)
class Prepared:
    """A job ready to be trained on this rank; `first_step` steps of it are done."""

    asked: Job  # as its folder keeps it
    job: Job  # with the settings that it keeps from before
    data: Data
    replica: Replica
    memory: NodeMemory | None
    folder: RunFolder
    first_step: int
    residual: Flat | None = None  # what the wire's format left out before, where ranks have none in `memory`
    best: Best | None = None  # what is known of the best evaluation
    score: Score | None = None  # of the validation set behind the first steps, if it was evaluated there
    verdict: Verdict | None = None  # of the last rung of its halving
    note: str = ""  # for the reader, of what goes on otherwise than it would have

    @property
    def steps_left(self) -> int:
        """None where its target, its patience or better models have ended it before its last step."""
        over = self.best is not None and self.best.over
        outdone = self.verdict is not None and self.verdict.outdone
        if over or outdone or reached(self.job, self.score):
            return 0
        return self.job.train.total_steps(len(self.data.train)) - self.first_step


def as_before(found: Examined, nodes: Sequence[Sequence[int]]) -> Examined:
    """Let a run that goes on keep the settings of its exchange, if its ranks stand as they stood.

    BLAS rounds blocks of other sizes otherwise: measured anew, settings might not be the same.
    """
    if found.resumed is None:
        return found
    kept = found.resumed[1].progress.get("exchange", {})
    if kept.get("ranks_of_nodes") != [len(ranks) for ranks in nodes]:
        return found
    exchange = found.job.exchange
    open_ = {"portion_bytes", "credit", "rule"} - exchange.fixed()
    exchange = exchange.model_copy(update={name: kept[name] for name in open_})
    return replace(found, job=found.job.model_copy(update={"exchange": exchange}))


def _note(
    job: Job, found: Examined, nodes: Sequence[Sequence[int]], *, travels: bool, others: Sequence[int]
) -> str:
    """All that there is to say of a job, as it was given, before the first step, a line each."""
    data, samples = found.data, len(found.data.train)
    of_job = (
        unwarmed(job, samples),
        uneven(job, samples, sum(map(len, nodes))),
        without_effect(job, samples, nodes, travels=travels, others=others),
        coarse(job, data),
        far_off(job, data) if found.resumed is None else "",
    )
    # (A run that starts with somebody's weights does not know what its job is called.)
    of_start = (f"{job.name}: {line}" for line in found.start.note.splitlines())
    return "\n".join(filter(None, (stretched(found), *of_start, *of_job)))


def stretched(found: Examined) -> str:
    """What to say of a rate that jumps because the run that goes on is longer than it was to be."""
    if found.resumed is None or "steps" not in (progress := found.resumed[1].progress):
        return ""
    job, samples, done = found.job, len(found.data.train), found.resumed[1].step
    steps, planned = job.train.total_steps(samples), int(progress["steps"])
    before, after = (job.train.schedule.build(job.train.optimizer.rate, n) for n in (planned, steps))
    was, now = before.rate(max(1, done)), after.rate(done + 1)
    if done >= steps or math.isclose(before.rate(done + 1), now):
        return ""
    return (
        f"{job.name}: the schedule is now of {steps:,} steps, not {planned:,}: "
        f"the rate goes on from {was:.3g} with {now:.3g}"
    )


async def _replicate(
    world: World, found: Examined, device: Device
) -> tuple[Replica, NodeMemory | None, Flat | None]:
    """The model on every rank, with new weights or those of its checkpoint; and what its wire format owes."""
    job, data = found.job, found.data
    await world.agree(f"data of {job.name}", data.digest())
    await agree_on_model(world, job.name, found.graph)
    if found.resumed is not None:
        path, snapshot = found.resumed
        # What tells whether a run has ended: a rank that took it otherwise would step without the others.
        names, progress = ("best", "validation", "halving"), snapshot.progress
        known = [f"{name} {told}" for name in names if (told := progress.get(name))]
        await world.agree(f"checkpoint of {job.name}", ", ".join((f"{path.name} {snapshot.step}", *known)))
    await world.agree(f"weights that {job.name} starts with", found.start.digest())
    world.position(f"{job.name}: making its weights")
    with _fitting(job, found.graph):
        memory = await share_memory(world, job, found.graph, device)
        replica = make_replica(job, found.graph, device, memory, world.size)
        residual = None
        if found.resumed is not None:
            left_out = residuals.specs(snapshot.left_out, replica.layout)
            checkpoint.require_tensors(path, snapshot, {**replica.specs(), **left_out})
            replica.restore(snapshot.tensors)
            if left_out:
                residual = _give_back(world, job, path, snapshot, replica.layout, memory)
        elif found.start.weights:
            replica.begin(found.start.weights)
    if memory is not None:
        await memory.fence()  # the node's weights are there for all its ranks
    return replica, memory, residual


def _give_back(
    world: World,
    job: Job,
    path: Path,
    snapshot: checkpoint.Snapshot,
    layout: Layout,
    memory: NodeMemory | None,
) -> Flat | None:
    """Let those who hold what the wire's format leaves out have what it left out before."""
    holding = residuals.holders(world.nodes, shared=memory is not None)
    leaves_out = job.exchange.wire != "float32" and travels(world.size, memory)
    if not leaves_out or world.rank not in holding:
        return None
    place, read = holding.index(world.rank), partial(checkpoint.read, path)
    own = residuals.owed(snapshot.left_out, read, layout, place, len(holding))
    if memory is None or memory.residual is None:
        return own
    memory.residual[...] = own
    return None


@contextmanager
def _fitting(job: Job, graph: Graph) -> Iterator[None]:
    """MachineError where the model and its micro-batches take more memory than there is."""
    size = Layout.of(graph).size
    least, there = 2 * 4 * size, os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    try:
        if least > there:  # found at once, before lists of a billion portions are made
            raise MemoryError(f"weights and gradients take {least >> 30:,} GiB of {there >> 30:,}")
        yield
    except MemoryError as error:
        raise MachineError(
            f"{job.name}: {size:,} parameters and micro-batches of {job.train.micro_batch:,} do not fit into"
            f" memory: {error}; make the layers of [model] smaller, or lower [train] micro_batch"
        ) from error


async def prepare(world: World, jobs: Sequence[Job], resume: Sequence[Path | None]) -> list[Prepared]:
    """Ready all jobs on every rank, to train on one device; `resume` are the runs that they go on with.

    What is wrong with any of them is told of all together, before a folder is made. A stop that comes before
    that raises CancelledError, on all ranks.
    """
    stop = Interruptible(world)
    require_comparable(jobs)
    await world.agree("version of weft", version("weft"))
    await world.agree("job" if len(jobs) == 1 else "jobs", " ".join(job.digest() for job in jobs))
    share_cores(world)
    found = [as_before(one, world.nodes) for one in await examine_all(world, jobs, resume, stop)]
    device = _device(world, jobs)
    device.activate()  # what this thread puts there (a checkpoint) comes before what the lane launches
    replicas = [await _replicate(world, one, device) for one in found]
    # A rank that lacks memory fails alone: rank 0 would have made a folder, and told of a run that has begun.
    await stop.obey("weights and memory of every model on all ranks")
    priorities = [job.run.priority for job in jobs]
    beside = [priorities[:number] + priorities[number + 1 :] for number in range(len(jobs))]
    return [
        Prepared(
            asked,
            one.job,
            one.data,
            replica,
            memory,
            one.folder or await _new_folder(world, one.job),
            one.resumed[1].step if one.resumed else 0,
            residual,
            Best.of(one.job.train.best, progress),
            kept(progress),
            Verdict.of(one.job, progress),
            _note(asked, one, world.nodes, travels=travels(world.size, memory), others=others),
        )
        for asked, one, (replica, memory, residual), others in zip(jobs, found, replicas, beside, strict=True)
        for progress in [one.resumed[1].progress if one.resumed else {}]
    ]


async def share_memory(world: World, job: Job, graph: Graph, device: Device) -> NodeMemory | None:
    """What the ranks of a node share of a model; None where each has its own.

    A GPU has weights of its own, and where every node has one rank there is nobody to share with.
    """
    alone = all(len(ranks) == 1 for ranks in world.nodes)
    wanted = np.array([job.exchange.inside == "shared" and not device.asynchronous and not alone], np.uint8)
    await world.allreduce(wanted, "min", what="whether all ranks share their nodes' memory")
    if not wanted[0]:
        return None
    layout = Layout.of(graph)
    rows = rows_of(graph) if len(world.nodes) > 1 else {}  # as the loop cuts
    capacity = len(cut(layout, smallest_portion(job), rows))
    slots = job.train.optimizer.build().slots
    residual = job.exchange.wire != "float32" and len(world.nodes) > 1
    batch, lent = job.train.micro_batch, None
    if not job.train.deterministic:
        nodes = worth_offering(graph, batch)
        lent = Lent(nodes, shared_bytes(graph, batch, nodes | _postponed(job, graph, len(world.nodes) > 1)))
    return await NodeMemory.allocate(world, layout.size, slots, capacity, residual=residual, lent=lent)


def make_replica(job: Job, graph: Graph, device: Device, memory: NodeMemory | None, ranks: int) -> Replica:
    """The model on this rank, in what the ranks of its node share."""
    flats, movable = None, _postponed(job, graph, travels(ranks, memory))
    if memory is not None:
        arrays, rank = None, memory.rank
        if memory.stealing is not None:
            arrays, movable = memory.stealing.arrays, movable | memory.stealing.nodes
        flats = Flats(
            memory.parameters, memory.gradients, memory.states, memory.parts, memory.writes, rank, arrays
        )
    optimizer = job.train.optimizer.build()
    return Replica(graph, optimizer, device, job.train.micro_batch, job.seed, flats=flats, movable=movable)


def _postponed(job: Job, graph: Graph, travelling: bool) -> frozenset[str]:
    """Nodes whose weight gradients may run late: those that travel by rows, or alone and are about as large
    as a portion. What is smaller would not keep the lane busy for long."""
    if not travelling:
        return frozenset()
    smallest, rows = smallest_portion(job), rows_of(graph)
    alone = [p for p in cut(Layout.of(graph), smallest, rows) if len(p.nodes) == 1 and p.nodes[0] in rows]
    return frozenset(p.nodes[0] for p in alone if p.rows is not None or 2 * p.nbytes >= smallest)


def smallest_portion(job: Job) -> int:
    """The least number of bytes that a portion of this job may have, tuning included."""
    return job.exchange.portion_bytes or SMALLEST_BYTES


def _device(world: World, jobs: Sequence[Job]) -> Device:
    """The one on which all jobs compute: a rank has one lane."""
    try:
        devices = [choose_device(kind, world.node_rank) for kind in dict.fromkeys(job.device for job in jobs)]
    except DeviceUnavailable as error:
        raise MachineError(str(error)) from error
    if len({device.asynchronous for device in devices}) > 1:
        wishes = ", ".join(f"{job.name} device = {job.device}" for job in jobs)
        raise Mistake(f"jobs that train together share a device: {wishes}; choose one with --device")
    return devices[0]


async def _new_folder(world: World, job: Job) -> RunFolder:
    """The run's folder, made by rank 0 and told to all."""
    path = np.zeros(4096, np.uint8)  # PATH_MAX
    if world.rank == 0:
        folder = RunFolder.create(Path(os.path.expandvars(job.run.folder)), job.name)
        encoded = str(folder.path).encode()
        path[: len(encoded)] = np.frombuffer(encoded, np.uint8)
    await world.broadcast(path, 0, what="the run's folder, which rank 0 makes")
    return RunFolder(Path(path.tobytes().rstrip(b"\0").decode()))
