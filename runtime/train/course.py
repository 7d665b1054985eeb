"""The course of a run, known before it starts: its learning rates, and where it pauses."""

from __future__ import annotations

from dataclasses import dataclass

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


@dataclass(frozen=True, slots=True)
class Pauses:
    """After how many steps a run of `total` pauses: a rule and no set, for it may have a billion of them."""

    total: int
    evaluate_every: int
    save_every: int  # 0: only at the end
    rungs: frozenset[int] = frozenset()  # where it is compared with others (halving.py)

    @classmethod
    def of(cls, job: Job, samples: int, rungs: frozenset[int] = frozenset()) -> Pauses:
        """As the job has it, with so many training samples."""
        unit = 1 if job.train.steps else steps_per_epoch(samples, job.train.batch)
        total, every = job.train.total_steps(samples), job.train.evaluate_every * unit
        return cls(total, every, job.checkpoint.every, rungs)

    def evaluates(self, done: int) -> bool:
        """Whether it evaluates after `done` steps."""
        return done == self.total or done % self.evaluate_every == 0 or done in self.rungs

    def saves(self, done: int) -> bool:
        """Whether it writes a checkpoint there, beside the one at its end."""
        return self.save_every > 0 and done < self.total and done % self.save_every == 0

    def __contains__(self, done: object) -> bool:
        return isinstance(done, int) and (self.evaluates(done) or self.saves(done))
