"""The course of a run, known before it starts: its learning rates, and where it pauses."""

from __future__ import annotations

from ...kernels.schedule import Schedule
from ..errors import JobError
from .order import steps_per_epoch
from .schema import Job


def schedule(job: Job, samples: int) -> Schedule:
    """The learning rate of a run; JobError where the schedule does not fit the run's length."""
    steps = job.train.total_steps(samples)
    try:
        return job.train.schedule.build(job.train.optimizer.rate, steps)
    except ValueError as error:
        raise JobError(
            f"{job.name}: [train] schedule does not fit a run of {steps} steps: {error}"
        ) from error


def pauses(job: Job, samples: int, first_step: int) -> tuple[set[int], set[int]]:
    """After how many steps a run evaluates, and after how many it writes a checkpoint."""
    total = job.train.total_steps(samples)
    unit = 1 if job.train.steps else steps_per_epoch(samples, job.train.batch)
    every = job.train.evaluate_every * unit
    evaluations = set(range(every, total + 1, every)) | {total}
    checkpoints = (
        set(range(job.checkpoint.every, total, job.checkpoint.every)) if job.checkpoint.every else set()
    )
    return {n for n in evaluations if n > first_step}, {n for n in checkpoints if n > first_step}
