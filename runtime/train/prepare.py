"""Everything before the first step: data, model, agreement between the ranks, weights, the run's folder.

What is wrong with a job, its data or a checkpoint is found here, on every rank, before anything is computed
and before a folder is made.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from ...kernels.device import Device, DeviceUnavailable, choose_device
from ..errors import CheckpointError, DataError, MachineError, Mistake
from ..exchange import NodeMemory, cut, rows_of, travels
from ..exchange.stealing import Lent
from ..exchange.tune import SMALLEST_BYTES
from ..graph import Graph, Layout
from ..graph.outline import outline
from ..graph.program import shared_bytes
from ..message import World
from ..observe import RunFolder
from ..work.alike import agree_on_model
from ..work.cores import share_cores
from ..work.offers import worth_offering
from . import checkpoint
from .advice import coarse, uneven, unwarmed, without_effect
from .best import Best
from .course import schedule
from .data import Data, MissingData, compare, load_data
from .data.section import files
from .ending import kept, reached
from .evaluate import Score
from .job import load_job
from .model import build_with_weights
from .replica import Flats, Replica
from .schema import Job, Run
from .start import Start, start


@dataclass(frozen=True, slots=True)
class Examined:
    """A job with all that it names: it can be trained, as far as one rank can tell."""

    job: Job
    data: Data
    graph: Graph
    start: Start  # of a new run
    folder: RunFolder | None  # of the run that goes on
    resumed: tuple[Path, checkpoint.Snapshot] | None


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
    best: Best | None = None  # what is known of the best evaluation
    score: Score | None = None  # of the validation set behind the first steps, if it was evaluated there
    note: str = ""  # for the reader, of what goes on otherwise than it would have

    @property
    def steps_left(self) -> int:
        """None where its target or its patience has ended it before its last step."""
        ended = reached(self.job, self.score) or (self.best is not None and self.best.over)
        return 0 if ended else self.job.train.total_steps(len(self.data.train)) - self.first_step


def examine(job: Job, resume: Path | None) -> Examined:
    """Read all that `job` names, and the newest checkpoint of the run `resume`; Mistake if any is wrong."""
    try:
        data = load_data(job.data, job.seed, job.model.loss)
    except MissingData as error:
        if resume is None:
            raise
        given = (key for key in files(job.data.source) if getattr(job.data, key, None))
        places = " ".join(f"--set data.{key}=FILE" for key in given)
        raise DataError(f"{error}. If the data has moved, say where it is: {places}") from None
    graph, own = build_with_weights(job.model, data)
    schedule(job, len(data.train))
    if resume is None:
        return Examined(job, data, graph, start(job.model, graph, own), None, None)
    folder = RunFolder.open(resume)
    path = checkpoint.latest(folder.checkpoints)
    snapshot = checkpoint.load(path)
    checkpoint.require_lineage(path, snapshot.progress.get("lineage", {}), lineage(job, data, graph))
    if snapshot.step > (steps := job.train.total_steps(len(data.train))):
        raise CheckpointError(
            f"{path}: {snapshot.step:,} steps are done, and the job has {steps:,} in all: give it more with "
            "--set train.steps=N or train.epochs=N"
        )
    notes = [_unread(job, folder)]
    best = checkpoint.best_of(folder.checkpoints, snapshot.progress)
    if job.train.best is not None and best is not None and not best.is_file():
        # Kept in mind it ended the run behind its last step, untested, and every later one that went on.
        progress = {key: value for key, value in snapshot.progress.items() if key != "best"}
        snapshot = replace(snapshot, progress=progress)
        notes.append(f"{job.name}: {best}, its best checkpoint, is missing: the best is from here on")
    return Examined(job, data, graph, Start(note="\n".join(filter(None, notes))), folder, (path, snapshot))


async def _examine_all(world: World, jobs: Sequence[Job], resume: Sequence[Path | None]) -> list[Examined]:
    """All jobs, examined; Mistake with all that is wrong with them. Collective over the node.

    The first rank of each node compares the data with its checksums, and the others wait for its word before
    they read: what they find in a damaged file would say nothing of the damage (a class of 2^30), and may
    have taken all memory before anybody told of it.
    """
    world.position("reading data")
    mistakes: dict[str, Mistake] = {}  # by what is told of them

    def wrong(job: Job, mistake: Mistake) -> None:
        name = f"{job.name}: " if len(jobs) > 1 else ""
        mistakes[name + str(mistake).removeprefix(name)] = mistake

    for job in jobs if world.node_rank == 0 else ():
        try:
            compare(job.data)
        except Mistake as mistake:
            wrong(job, mistake)
    if damage := await _word_of_the_first(world, "\n".join(mistakes)):
        raise DataError(damage)
    found: list[Examined] = []
    for job, run in zip(jobs, resume, strict=True):
        try:
            found.append(examine(job, run))
        except Mistake as mistake:
            wrong(job, mistake)
    if mistakes:
        raise next(iter(mistakes.values())) if len(jobs) == 1 else Mistake("\n".join(mistakes))
    return found


async def _word_of_the_first(world: World, text: str) -> str:
    """What the first rank of this rank's node says."""
    told = np.zeros(1 << 14, np.uint8)
    encoded = text.encode(errors="backslashreplace")[: len(told)]
    told[: len(encoded)] = np.frombuffer(encoded, np.uint8)
    await world.node.broadcast(told, 0, what="what this node's first rank has found in the data")
    return told.tobytes().rstrip(b"\0").decode(errors="replace")


def _unread(job: Job, folder: RunFolder) -> str:
    """What to say of keys that a run is given when it goes on, and that are for a new one."""
    weights, parent, notes = job.model.weights, job.run.folder, []
    if weights is None and parent == Run().folder:
        return ""
    before = load_job(str(folder.job)) if folder.job.is_file() else None
    if weights is not None and (before is None or weights != before.model.weights):
        notes.append(f"with its own weights; those of [model] weights = {weights!r} are")
    if parent != Run().folder and (before is None or parent != before.run.folder):
        notes.append(f"where it is stored; [run] folder = {parent!r} is")
    return "\n".join(f"{job.name}: goes on {note} for a new run" for note in notes)


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


def _note(job: Job, found: Examined, nodes: Sequence[Sequence[int]], *, travels: bool, alone: bool) -> str:
    """All that there is to say of a job, as it was given, before the first step, a line each."""
    data, samples = found.data, len(found.data.train)
    of_job = (
        unwarmed(job, samples),
        uneven(job, samples, sum(map(len, nodes))),
        without_effect(job, samples, nodes, travels=travels, alone=alone),
        coarse(job, data),
    )
    return "\n".join(filter(None, (stretched(found), found.start.note, *of_job)))


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


async def _replicate(world: World, found: Examined, device: Device) -> tuple[Replica, NodeMemory | None]:
    """The model on every rank, with new weights or those of its checkpoint."""
    job, data = found.job, found.data
    await world.agree(f"data of {job.name}", data.digest())
    await agree_on_model(world, job.name, found.graph)
    if found.resumed is not None:
        path, snapshot = found.resumed
        # What tells whether a run has ended: a rank that took it otherwise would step without the others.
        known = [f"{name} {told}" for name in ("best", "validation") if (told := snapshot.progress.get(name))]
        await world.agree(f"checkpoint of {job.name}", ", ".join((f"{path.name} {snapshot.step}", *known)))
    await world.agree(f"weights that {job.name} starts with", found.start.digest())
    with _fitting(job, found.graph):
        memory = await share_memory(world, job, found.graph, device)
        replica = make_replica(job, found.graph, device, memory, world.size)
    if found.resumed is not None:
        checkpoint.require_tensors(path, snapshot, replica.specs())
        replica.restore(snapshot.tensors)
    elif found.start.weights:
        replica.begin(found.start.weights)
    if memory is not None:
        await memory.fence()  # the node's weights are there for all its ranks
    return replica, memory


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

    What is wrong with any of them is told of all together, before a folder is made.
    """
    await world.agree("version of weft", version("weft"))
    await world.agree("job" if len(jobs) == 1 else "jobs", " ".join(job.digest() for job in jobs))
    share_cores(world)
    found = [as_before(one, world.nodes) for one in await _examine_all(world, jobs, resume)]
    device = _device(world, jobs)
    device.activate()  # what this thread puts there (a checkpoint) comes before what the lane launches
    replicas = [await _replicate(world, one, device) for one in found]
    return [
        Prepared(
            asked,
            one.job,
            one.data,
            replica,
            memory,
            one.folder or await _new_folder(world, one.job),
            one.resumed[1].step if one.resumed else 0,
            Best.of(one.job.train.best, progress),
            kept(progress),
            _note(asked, one, world.nodes, travels=travels(world.size, memory), alone=len(jobs) == 1),
        )
        for asked, one, (replica, memory) in zip(jobs, found, replicas, strict=True)
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


def lineage(job: Job, data: Data, graph: Graph) -> dict[str, Any]:
    """What a run that resumes must have in common with the one it resumes: keys of the job, data and model.

    The graph of a function or a file is compared node by node: it may have changed, or be that of another.
    """
    found = {**job.lineage(), checkpoint.DIGEST: data.digest()}
    elsewhere = job.model.python is not None or job.model.onnx is not None
    return {**found, "node": outline(graph)} if elsewhere else found


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
