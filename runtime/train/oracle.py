"""The oracle: the same training as a plain loop with one blocking all-reduce, to be checked by eye.

No lane, no portions, no overlap. The tests hold the real trainer against it; it is never used by a run.

Where the trainer cuts a layer by rows, `rows` has the oracle compute the same blocks: where a block ends,
OpenBLAS adds up in another order than in the whole product (of 512 outputs in blocks of 48 a tenth differed
in the last bit). Blocks of a weight gradient in multiples of 48 rows were those of the whole to the bit.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import prod

import numpy as np
from numpy.typing import NDArray

from ..graph.backward import Phase
from ..graph.program import Step
from .data import Data
from .order import batch_indices, micro_batch_seed, micro_batches, owned
from .replica import Replica
from .schema import Job
from .tally import Tally, measure
from .updates import clip_scale

Allreduce = Callable[[NDArray[np.generic]], None]
"""Adds up an array over all ranks, in place, and returns when that is done."""

Rows = Mapping[str, Sequence[tuple[int, int]]]
"""By node: the blocks of output neurons, first and one past the last, in which it is computed."""

Division = Sequence[Sequence[int]]
"""By step: the micro-batches that this rank computes, in its order; every order rounds in its own way."""


def train(
    job: Job,
    data: Data,
    replica: Replica,
    steps: int,
    allreduce: Allreduce,
    rank: int = 0,
    ranks: int = 1,
    *,
    rows: Rows | None = None,
    division: Division | None = None,
) -> list[float]:
    """Train `replica` for `steps` steps; returns the losses. By default micro-batches are dealt in turn.

    By `rows` go, as in the trainer, forward of a rank's first micro-batch and weight gradients of its last.
    """
    schedule = job.train.schedule.build(job.train.optimizer.rate, job.train.total_steps(len(data.train)))
    losses = []
    for step in range(steps):
        indices = batch_indices(job.seed, step, len(data.train), job.train.batch)
        parts = micro_batches(indices, job.train.micro_batch)
        tally = Tally.of(len(parts), len(indices), len(indices) * prod(data.target_spec.shape))
        total = np.zeros_like(replica.travelling)
        mine = owned(len(parts), rank, ranks) if division is None else division[step]
        for index in mine:
            program = replica.training(len(parts[index]))
            program.mode.seed = micro_batch_seed(job.seed, step, index)
            program.mode.share = len(parts[index]) / len(indices)
            program.loss_gradient[...] = 1 / len(indices)
            replica.load(program, data.train, parts[index])
            for call in program.forward:
                _run(call, rows if rows and index == mine[0] else {})
            for call in program.backward:
                _run(call, rows if rows and index == mine[-1] and call.phase is Phase.WEIGHT_GRADIENT else {})
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


def _run(call: Step, rows: Rows) -> None:
    for first, last in rows.get(call.node, ()):
        call.run(rows=slice(first, last))
    if call.node not in rows:
        call.run()
