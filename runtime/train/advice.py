"""What a run says before its first step of what will go worse than it could, in a line each; or nothing."""

from __future__ import annotations

from .data import Data
from .schema import Job

UNEVEN = 0.2
"""Of a step; of less that ranks are idle nothing is said."""


def uneven(job: Job, samples: int, ranks: int) -> str:
    """What to say where a step has too few micro-batches for so many ranks, or a number that does not divide.

    Weight gradients that idle ranks take from the others (docs/stealing.md) make up for a part of it.
    """
    batch = min(job.train.batch, samples)
    size = min(job.train.micro_batch, batch)
    idle = _idle(batch, size, ranks)
    if idle < UNEVEN:
        return ""
    better = -(-batch // (ranks * -(-batch // (size * ranks))))  # as many rounds of smaller ones
    count = -(-batch // size)
    has = f"{count:,} micro-batch{'es' * (count > 1)} of {size:,} for {ranks} ranks"
    text = f"{job.name}: a step of {batch:,} samples has {has}, {idle:.0%} of whose time is idle"
    if _idle(batch, better, ranks) < idle:
        return f"{text}; micro_batch = {better} in [train] divides it better"
    return f"{text}; take a larger batch, or fewer ranks"


def unwarmed(job: Job, samples: int) -> str:
    """What to say of a warm-up that is not over when the run is: a run made shorter learns at a low rate.

    A cosine, which would have nothing left to descend in, is refused (optimizers.py).
    """
    steps, train = job.train.total_steps(samples), job.train
    if steps > (warmup := train.schedule.warmup):
        return ""
    last = train.schedule.build(train.optimizer.rate, steps).rate(steps)
    return (
        f"{job.name}: [train] schedule.warmup = {warmup:,} takes all {steps:,} steps of the run: the rate "
        f"ends at {last:.6g}, and never comes to {train.optimizer.rate:.6g}"
    )


def coarse(job: Job, data: Data) -> str:
    """What to say of data of which float32 samples, as an exported file takes them, tell too little."""
    if data.affine.takes == "float32":
        return ""
    return (
        f"{job.name}: an exported file will take samples in {data.affine.coarse()}: to export it, take a "
        "number near its mean from that feature in the data"
    )


def _idle(batch: int, size: int, ranks: int) -> float:
    """The share of a step in which ranks have no micro-batch."""
    count = -(-batch // size)
    return 1 - count / (ranks * -(-count // ranks))
