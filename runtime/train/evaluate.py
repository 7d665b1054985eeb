"""Loss and accuracy on a split, its micro-batches dealt over the ranks."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from math import prod
from typing import NamedTuple

import numpy as np

from ...kernels.lane import Task
from ..exchange import Reducer
from ..graph.builder import loss_of
from ..work import Compute
from .data import Samples
from .order import micro_batches, owned
from .replica import Replica
from .tally import Tally, measure


class Score(NamedTuple):
    """Mean loss, and share of correct answers (None of values)."""

    loss: float
    accuracy: float | None
    damage: str = ""  # the sample that makes the loss no number


async def evaluate(
    replica: Replica,
    samples: Samples,
    compute: Compute,
    comm: Reducer,
    *,
    micro_batch: int,
    rank: int,
    ranks: int,
    model: str,
    what: str,
    tell: Callable[[str], None],
) -> Score | None:
    """Score all `samples`; every rank calls it at the same step and gets the same score.

    Where a sample makes the loss no number, `tell` is told which.
    None if some rank could not do its part, where the model's tasks may fail alone.
    """
    parts = micro_batches(np.arange(len(samples)), micro_batch)
    mine = owned(len(parts), rank, ranks)
    answers = len(samples) * prod(samples.target_spec.shape)
    tally = Tally.of(len(parts), len(samples), answers)

    def score(index: int) -> None:
        program = replica.inference(len(parts[index]))
        replica.load(program, samples, parts[index])
        for call in program.forward:
            call.run()
        tally.enter(index, *measure(program))

    info: dict[str, object] = {"phase": "forward", "micro_batch": -1, "model": model}
    tasks = [Task(what, partial(score, index), info=info) for index in mine]
    await compute.run(tasks)
    if compute.failed:
        tally.fail()
    await comm.allreduce(tally.array, what=what)
    if tally.failed:
        return None
    if damage := tally.damage(samples, parts):
        tell(f"{what}: the loss is {tally.loss}: {damage}; clean it")
    judged = loss_of(replica.graph).predicts != "values"
    return Score(tally.loss, tally.accuracy if judged else None, damage)
