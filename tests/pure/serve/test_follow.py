"""What is said of a model in training that has no checkpoint yet."""

from __future__ import annotations

import pytest

from weft.runtime.serve.follow import first_checkpoint
from weft.runtime.train.job import load_job

FIRST = {
    "only at the end, where none is asked for": ([], "when training ends, for [checkpoint] every is 0"),
    # It said "after step 5000" of a run that has ten, which never comes to that.
    "after so many steps, if the run has as many": (
        ["train.steps=10", "checkpoint.every=5000"],
        "after step 5,000 or when training ends, whichever is first",
    ),
    "with an evaluation, where the best is kept": (
        ["train.best.metric=loss"],
        "with the first evaluation or when training ends, whichever is first",
    ),
    # It named the evaluation alone, though the other came first.
    "with an evaluation or after so many steps": (
        ["train.best.metric=loss", "checkpoint.every=3"],
        "with the first evaluation, after step 3 or when training ends, whichever is first",
    ),
}


@pytest.mark.parametrize(("settings", "said"), FIRST.values(), ids=FIRST)
def test_the_first_checkpoint_comes(settings, said):
    assert first_checkpoint(load_job("digits", settings)) == said
