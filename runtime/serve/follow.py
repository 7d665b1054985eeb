"""Serving a model while it is trained: its newest checkpoint, or the best, as soon as it is written.

A checkpoint is whole from the moment that it has its name (train/checkpoint.py), so looking at the folder is
all that the training and the serving of a model have to do with each other. To clients the version is the
step; to the policy it is always the same model, whose profile stays.
"""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path

from ..errors import CheckpointError
from ..observe import RunFolder
from ..train.checkpoint import chosen
from ..train.schema import Job
from .loading import Loading
from .repository import Entry, Platform, Version
from .settings import ModelSettings

LOOK_S = 0.5


def first_checkpoint(job: Job) -> str:
    """When a run has its first checkpoint, in words; how many steps its epochs have is not known here."""
    every, ways = job.checkpoint.every, []
    if job.train.best is not None:
        ways.append("with the first evaluation")
    if every:
        ways.append(f"after step {every:,}")
    if not ways:
        return "when training ends, for [checkpoint] every is 0"
    return f"{', '.join(ways)} or when training ends, whichever is first"


async def follow(loading: Loading, job: Job, run: RunFolder, largest: int) -> None:
    """Serve the chosen checkpoint of a job's run, for ever."""
    name = job.name
    loading.await_model(name, f"no checkpoint yet: the first comes {first_checkpoint(job)}")
    settings = ModelSettings(max_batch=largest)
    served: Path | None = None
    while True:
        found = served
        with contextlib.suppress(CheckpointError, FileNotFoundError):  # none yet
            found = await asyncio.to_thread(chosen, run.checkpoints)
        if found is not None and found != served:
            step = int(found.stem.rpartition("-")[2])
            version = Version(name, 1, found, Platform.CHECKPOINT, shown=str(step))
            # One that was removed for newer ones before all ranks had read it is left out.
            if problems := await loading.put(Entry(name, settings, (version,))):
                loading.await_model(name, "\n".join(problems))
            served = found
        await asyncio.sleep(LOOK_S)
