"""The oracle: the same training as a plain loop with one blocking all-reduce, to be checked by eye.

No lane, no portions, no overlap. The tests hold the real trainer against it; it is never used by a run.
"""

from __future__ import annotations

from collections.abc import Callable
from math import prod

import numpy as np
from numpy.typing import NDArray

from .data import Data
from .order import batch_indices, micro_batch_seed, micro_batches, owned
from .replica import Replica
from .schema import Job
from .tally import Tally, measure
from .updates import clip_scale

Allreduce = Callable[[NDArray[np.generic]], None]
"""Adds up an array over all ranks, in place, and returns when that is done."""


def train(
    job: Job, data: Data, replica: Replica, steps: int, allreduce: Allreduce, rank: int = 0, ranks: int = 1
) -> list[float]:
    """Train `replica` for `steps` steps; returns the losses."""
    schedule = job.train.schedule.build(job.train.optimizer.rate, job.train.total_steps(len(data.train)))
    losses = []
    for step in range(steps):
        indices = batch_indices(job.seed, step, len(data.train), job.train.batch)
        parts = micro_batches(indices, job.train.micro_batch)
        tally = Tally.of(len(parts), len(indices), len(indices) * prod(data.target_spec.shape))
        total = np.zeros_like(replica.travelling)
        for index in owned(len(parts), rank, ranks):
            program = replica.training(len(parts[index]))
            program.mode.seed = micro_batch_seed(job.seed, step, index)
            program.mode.share = len(parts[index]) / len(indices)
            program.loss_gradient[...] = 1 / len(indices)
            replica.load(program, data.train, parts[index])
            for call in (*program.forward, *program.backward):
                call.run()
            tally.enter(index, *measure(program))
            total += replica.device.to_host(replica.gradients)
        allreduce(total)
        allreduce(tally.array)
        replica.travelling[...] = total
        scale = 1.0
        if job.train.clip_norm is not None:
            scale = clip_scale([replica.squared_norm(0, replica.layout.size)], job.train.clip_norm)
        replica.update(0, replica.layout.size, rate=schedule.rate(step + 1), step=step + 1, scale=scale)
        losses.append(tally.loss)
    return losses
