"""What ends a run before its last step: a target that is reached, or evaluations that get no better.

A checkpoint keeps the evaluation that was made at its step, so that a run that has ended so stays ended when
it is resumed: of two models in turns on a Slurm cluster, the one that had met its target trained on in every
turn of the other.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .evaluate import Score
from .schema import Job


def reached(job: Job, score: Score | None) -> bool:
    """Whether the job's target is met."""
    target = job.train.target
    if target is None or score is None:
        return False
    if target.metric == "loss":
        return score.loss <= target.value
    return score.accuracy is not None and score.accuracy >= target.value


def told(score: Score | None) -> Mapping[str, Any]:
    """For a checkpoint: the validation set's score at its step; empty where it was not evaluated there."""
    return {} if score is None else {"validation": {"loss": score.loss, "accuracy": score.accuracy}}


def kept(progress: Mapping[str, Any]) -> Score | None:
    """What a checkpoint's `progress` has of `told`."""
    return Score(**progress["validation"]) if "validation" in progress else None
