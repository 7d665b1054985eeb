"""All that jobs name, read: data, models, first weights, checkpoints; and what is wrong with any of it.

    first rank of a node    archives compared with their checksums ─┐ its word
    every rank                                                      └─ data, model, checkpoint of each job

To read may take minutes, and is done in a thread: with the loop blocked a rank that read was told of by the
others as one that does not answer, and heard nothing of one that had failed, nor of a stop.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import CheckpointError, DataError, GraphError, MachineError, Mistake
from ..graph import Graph
from ..graph.outline import outline
from ..message import World
from ..observe import RunFolder
from . import checkpoint
from .course import schedule
from .data import Data, Loader, MissingData, Sound, compare
from .data.section import files
from .inference import WEIGHT
from .interrupt import Interruptible
from .job import load_job
from .model import build_with_weights, function_of
from .schema import Job, Run
from .start import Start, start

COMPARING_S = 60.0
"""Nobody need hear sooner of a rank that compares an archive: a slow disk gives a gigabyte in ten seconds."""

COUNT = "the number of samples"

TOLD_BYTES = 1 << 12  # of what is wrong with a job's archive


@dataclass(frozen=True, slots=True)
class Examined:
    """A job with all that it names: it can be trained, as far as one rank can tell."""

    job: Job
    data: Data
    graph: Graph
    start: Start  # of a new run
    folder: RunFolder | None  # of the run that goes on
    resumed: tuple[Path, checkpoint.Snapshot] | None


async def examine_all(
    world: World, jobs: Sequence[Job], resume: Sequence[Path | None], stop: Interruptible
) -> list[Examined]:
    """All jobs, examined; Mistake with all that is wrong with them. Collective.

    The first rank of each node compares the data with its checksums, and the others wait for its word before
    they read: what they find in a damaged file would say nothing of the damage (a class of 2^30), and may
    have taken all memory before anybody told of it.
    """
    unfound = [_unfound(job) for job in jobs]
    world.position("comparing data with its checksums")
    own = await stop.in_thread(lambda: _damages(jobs)) if world.node_rank == 0 else None
    damages = await _word_of_the_first(world, own or [""] * len(jobs))
    await stop.obey("data, compared with its checksums on every node")
    wrong = [DataError(damage) if damage else one for damage, one in zip(damages, unfound, strict=True)]
    world.position("reading data")
    found = await stop.in_thread(lambda: _examined(jobs, resume, wrong))
    await stop.obey("all that the jobs name, read by all ranks")
    return found or []


def _unfound(job: Job) -> GraphError | None:
    """What is wrong with the function that a job names, if any is.

    Imported by the loop's thread. The other, at a program that named itself, ran that once more beside the
    first, and waited for ever for a module whose import was not over.
    """
    try:
        if job.model.python is not None:
            function_of(job.model.python)
    except GraphError as error:
        return error
    return None


def _damages(jobs: Sequence[Job]) -> list[str]:
    """By job what is wrong with its archive, or nothing; what several jobs have in common is read once."""
    sound: Sound = set()
    damages = []
    for job in jobs:
        try:
            compare(job.data, sound)
            damages.append("")
        except Mistake as mistake:
            damages.append(str(mistake))
    return damages


async def _word_of_the_first(world: World, texts: Sequence[str]) -> list[str]:
    """What the first rank of this rank's node says of each job."""
    told = np.zeros((len(texts), TOLD_BYTES), np.uint8)
    for row, text in zip(told, texts, strict=True):
        encoded = text.encode(errors="backslashreplace")[:TOLD_BYTES]
        row[: len(encoded)] = np.frombuffer(encoded, np.uint8)
    what = "what this node's first rank has found in the data"
    await world.node.broadcast(told, 0, what=what, patience_s=COMPARING_S)
    return [row.tobytes().rstrip(b"\0").decode(errors="replace") for row in told]


def _examined(
    jobs: Sequence[Job], resume: Sequence[Path | None], wrong: Sequence[Mistake | None]
) -> list[Examined]:
    """All jobs, but those that are known to be wrong, examined; Mistake with all that is wrong with any."""
    found: list[Examined] = []
    mistakes: dict[str, Mistake] = {}  # by what is told of them
    loader = Loader()
    for job, run, known in zip(jobs, resume, wrong, strict=True):
        try:
            if known is not None:
                raise known
            found.append(examine(job, run, loader))
        except Mistake as mistake:
            name = f"{job.name}: " if len(jobs) > 1 else ""
            mistakes[name + str(mistake).removeprefix(name)] = mistake
    if mistakes:
        raise next(iter(mistakes.values())) if len(jobs) == 1 else Mistake("\n".join(mistakes))
    return found


def examine(job: Job, resume: Path | None, loader: Loader | None = None) -> Examined:
    """Read all that `job` names, and the newest checkpoint of the run `resume`.

    `loader` is that of all jobs that train together.

    Mistake if any is wrong, MachineError where the machine cannot read it.
    """
    data = _read(job, loader or Loader(), resumed=resume is not None)
    graph, own, note = build_with_weights(job.model, data)
    schedule(job, len(data.train))
    if resume is None:
        return Examined(job, data, graph, start(job.model, graph, own, note), None, None)
    folder = RunFolder.open(resume)
    path = checkpoint.latest(folder.checkpoints)
    snapshot = checkpoint.load(path)
    graph = graph.parted({name.removeprefix(WEIGHT) for name in snapshot.tensors})
    was, now = snapshot.progress.get("lineage", {}), lineage(job, data, graph)
    if count := snapshot.progress.get("samples", {}).get("count"):  # what says more than a digest does
        was, now = {**was, COUNT: count}, {**now, COUNT: data.count}
    checkpoint.require_lineage(path, was, now)
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


def _read(job: Job, loader: Loader, *, resumed: bool) -> Data:
    """The job's data. What takes more memory than there is, or what a disk fails to give, is told as that."""
    try:
        return loader.load(job.data, job.seed, job.model.loss.name)
    except MissingData as error:
        if not resumed:
            raise
        given = (key for key in files(job.data.source) if getattr(job.data, key, None))
        places = " ".join(f"--set data.{key}=FILE" for key in given)
        raise DataError(f"{error}. If the data has moved, say where it is: {places}") from None
    except MemoryError as error:
        raise MachineError(
            f"{job.name}: its data does not fit into memory: {str(error) or 'none is left'}; what np.save "
            "and np.savez have written is mapped and not read, and fewer ranks on a node read less"
        ) from error
    except OSError as error:
        raise MachineError(f"{job.name}: its data cannot be read: {error}") from error


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


def lineage(job: Job, data: Data, graph: Graph) -> dict[str, Any]:
    """What a run that resumes must have in common with the one it resumes: keys of the job, data and model.

    The graph of a function or a file is compared node by node: it may have changed, or be that of another.
    """
    found = {**job.lineage(), checkpoint.DIGEST: data.digest()}
    elsewhere = job.model.python is not None or job.model.onnx is not None
    return {**found, "node": outline(graph)} if elsewhere else found
