"""What a run says before its first step of what will go worse than it could, in a line each; or nothing.

Of each model that trains; what holds for all of several is said once.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from .data import Data
from .data.section import TextData
from .data.text import is_one_file
from .optimizers import StepSchedule
from .schema import Job
from .section import Section
from .toml import to_toml_value

FAR = 30.0
"""A layer's first outputs are of size 1: targets so many times larger or smaller take it long to reach."""

LOOKED_AT = 64  # samples

UNEVEN = 0.2
"""Of a step; of less that ranks are idle nothing is said."""


def once(notes: Mapping[str, str]) -> tuple[str, dict[str, str]]:
    """What is said of all models, and what is left to say of each; `notes` are by their names.

    Every line of a model's begins with its name.
    """
    said = {name: _without(name, text) for name, text in notes.items()}
    first, *others = said.values()
    common = [line for line in first if others and all(line in other for other in others)]
    left = {
        name: "\n".join(f"{name}: {line}" for line in lines if line not in common)
        for name, lines in said.items()
    }
    return "\n".join(f"all models: {line}" for line in common), left


def _without(name: str, text: str) -> list[str]:
    return [line.removeprefix(f"{name}: ") for line in text.splitlines()]


def uneven(job: Job, samples: int, ranks: int) -> str:
    """What to say where a step has too few micro-batches for so many ranks, or a number that does not divide.

    Weight gradients that idle ranks take from the others (docs/stealing.md) make up for a part of it.
    """
    batch = min(job.train.batch, samples)
    size = min(job.train.micro_batch, batch)
    idle = _idle_share(batch, size, ranks)
    if idle < UNEVEN:
        return ""
    better = -(-batch // (ranks * -(-batch // (size * ranks))))  # as many rounds of smaller ones
    count = -(-batch // size)
    has = f"{count:,} micro-batch{'es' * (count > 1)} of {size:,} for {ranks} ranks"
    text = f"{job.name}: a step of {batch:,} samples has {has}, {idle:.0%} of whose time is idle"
    if _idle_share(batch, better, ranks) < idle:
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


def without_effect(
    job: Job, samples: int, nodes: Sequence[Sequence[int]], *, travels: bool, others: Sequence[int]
) -> str:
    """What to say of keys that were given and change nothing on these nodes, all in a line; or nothing.

    `travels`: whether gradients go from rank to rank; `others`: the priorities of the models beside this one.
    Nothing is said of a key that has its default, for a stored job has every one written out.
    """
    idle = _idle(job, samples, nodes, travels=travels, others=others)
    found = [f"{keys} ({why})" for keys, why in idle if keys]
    return f"{job.name}: without effect here: {'; '.join(found)}" if found else ""


def _idle(
    job: Job, samples: int, nodes: Sequence[Sequence[int]], *, travels: bool, others: Sequence[int]
) -> Iterator[tuple[str, str]]:
    """Keys with their values, or nothing, and what they are for or what stands against them."""
    data, train, steps = job.data, job.train, job.train.total_steps(samples)
    ranks = sum(map(len, nodes))
    if not travels:
        several = 'for ranks on several nodes, or inside = "flat"' if ranks > 1 else "for several ranks"
        # (Portions are also what is added up and updated at once, wherever gradients meet.)
        yield _given("exchange", job.exchange, "credit", "rule", "wire"), several
    if ranks == len(nodes):
        yield _given("exchange", job.exchange, "inside"), "for several ranks on a node"
    if not others:
        yield _given("run", job.run, "share", "priority", "halve"), "for models that train together"
    elif job.run.priority not in others:
        yield _given("run", job.run, "share"), "for several models of one priority"
    elif len({*others}) == 1:
        yield _given("run", job.run, "priority"), "all models have it"
    if data.has_own_test:
        yield _given("data", data, "test"), "there is a test set of its own"
    if isinstance(data, TextData) and is_one_file(data):
        yield _given("data", data, "files", "exclude"), "for a folder"
    if not data.validation:
        yield _given("train", train, "evaluate_every"), "nothing is held out to be scored"
    of_steps = f"the run has {steps:,} step{'s' * (steps > 1)}"
    if job.checkpoint.every >= steps:
        yield _given("checkpoint", job.checkpoint, "every"), of_steps
    if isinstance(train.schedule, StepSchedule) and train.schedule.every >= steps:
        yield f"[train] schedule.every = {train.schedule.every}", of_steps


def _given(name: str, section: Section, *keys: str) -> str:
    """Those of a section's keys that have not their default, as a job file has them."""
    fields, values = type(section).model_fields, dict(section)
    usual = {key: fields[key].get_default(call_default_factory=True, validated_data=values) for key in keys}
    given = [f"{key} = {to_toml_value(values[key])}" for key in keys if values[key] != usual[key]]
    return f"[{name}] {', '.join(given)}" if given else ""


def coarse(job: Job, data: Data) -> str:
    """What to say of data of which float32 samples, as an exported file takes them, tell too little."""
    if data.affine.takes == "float32":
        return ""
    return (
        f"{job.name}: an exported file will take samples in {data.affine.coarse()}: to export it, take a "
        "number near its mean from that feature in the data"
    )


def far_off(job: Job, data: Data) -> str:
    """What to say of a regression whose targets, as they are, are very large or very small numbers."""
    if job.model.loss.predicts != "values" or data.outcome.changes:
        return ""
    rows = np.linspace(0, len(data.train) - 1, min(LOOKED_AT, len(data.train))).astype(np.int64)
    specs = (data.input_spec, data.target_spec)
    inputs, targets = (np.empty((len(rows), *spec.shape), spec.dtype) for spec in specs)
    with np.errstate(all="ignore"):  # of inputs that no float32 can hold a step tells, with their place
        data.train.gather(rows, inputs, targets)
    size = float(np.sqrt(np.square(targets, dtype=np.float64).mean()))
    if not size or 1 / FAR <= size <= FAR:
        return ""
    return (
        f"{job.name}: targets are numbers of about {size:.3g} (root mean square), which train slowly: "
        '[data] normalise_targets = "standard" trains on their deviations, and predicts in their units'
    )


def _idle_share(batch: int, size: int, ranks: int) -> float:
    """The share of a step in which ranks have no micro-batch."""
    count = -(-batch // size)
    return 1 - count / (ranks * -(-count // ranks))
