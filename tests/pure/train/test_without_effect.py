"""What a run says of keys that were given and change nothing where it runs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from weft.runtime.train.advice import without_effect
from weft.runtime.train.job import load_job

ALONE, NODE, ONE_EACH, NODES = [[0]], [[0, 1]], [[0], [1]], [[0, 1], [2]]
TRAVELLING = [
    "exchange.portion_bytes=4096",
    "exchange.credit=3",
    "exchange.rule=first_come",
    "exchange.wire=float16",
]
GIVEN = 'credit = 3, rule = "first_come", wire = "float16"'
SEVERAL_NODES = 'for ranks on several nodes, or inside = "flat"'
OWN_TEST = ['data={source="npz", path="a.npz", test_inputs="c", test_targets="d", test=0.3}']


def said(nodes: list[list[int]], *overrides: str, travels: bool = False, others: Sequence[int] = ()) -> str:
    """Behind the words that all have."""
    told = without_effect(load_job("digits", overrides), 1258, nodes, travels=travels, others=others)
    return told.removeprefix("digits: without effect here: ")


def test_of_a_job_of_which_every_key_counts_nothing_is_said() -> None:
    assert (
        said(NODES, *TRAVELLING, "exchange.inside=flat", "run.share=2.0", travels=True, others=[0, 1]) == ""
    )


@pytest.mark.parametrize("nodes", [ALONE, NODE, ONE_EACH, NODES])
def test_of_defaults_nothing_is_said_wherever_they_stand(nodes: list[list[int]], tmp_path: Path) -> None:
    stored = tmp_path / "job.toml"
    stored.write_text(load_job("digits", ["data.validation=0"]).dump())
    assert without_effect(load_job(str(stored)), 1258, nodes, travels=False, others=[]) == ""


@pytest.mark.parametrize(
    ("nodes", "overrides", "says"),
    [
        pytest.param(NODE, TRAVELLING, f"[exchange] {GIVEN} ({SEVERAL_NODES})", id="one node"),
        pytest.param(ALONE, TRAVELLING, f"[exchange] {GIVEN} (for several ranks)", id="one rank"),
        pytest.param(
            ONE_EACH, ["exchange.inside=flat"],
            '[exchange] inside = "flat" (for several ranks on a node)',
            id="a rank on each node",
        ),
        pytest.param(
            NODE, ["run.share=2.0", "run.priority=1"],
            "[run] share = 2.0, priority = 1 (for models that train together)",
            id="a model alone",
        ),
        pytest.param(NODE, OWN_TEST, "[data] test = 0.3 (there is a test set of its own)", id="two tests"),
        pytest.param(
            NODE, ["data.validation=0", "train.evaluate_every=3"],
            "[train] evaluate_every = 3 (nothing is held out to be scored)",
            id="no validation set",
        ),
        pytest.param(
            NODE, ["data.validation=0", "train.steps=200", "train.evaluate_every=20"],
            "",
            id="as often as by default, in steps",
        ),
        pytest.param(
            NODE, ["train.steps=20", "checkpoint.every=20", 'train.schedule={name="step", every=30}'],
            "[checkpoint] every = 20 (the run has 20 steps); "
            "[train] schedule.every = 30 (the run has 20 steps)",
            id="what comes behind the end",
        ),
    ],
)  # fmt: skip
def test_what_changes_nothing_is_named_with_what_it_is_for(
    nodes: list[list[int]], overrides: list[str], says: str
) -> None:
    assert said(nodes, *overrides) == says


@pytest.mark.parametrize(
    ("others", "overrides", "says"),
    [
        pytest.param(
            [0, 0, 2], ["run.share=2.0", "run.priority=1"],
            "[run] share = 2.0 (for several models of one priority)",
            id="the only model of its priority",
        ),
        pytest.param([1, 0], ["run.share=2.0", "run.priority=1"], "", id="one of two of its priority"),
        pytest.param([0, 0], ["run.share=2.0"], "", id="one of three alike"),
        pytest.param(
            [1, 1], ["run.share=2.0", "run.priority=1"],
            "[run] priority = 1 (all models have it)",
            id="all of one priority",
        ),
    ],
)  # fmt: skip
def test_a_share_is_of_the_time_of_one_priority(others: list[int], overrides: list[str], says: str) -> None:
    assert said(NODE, *overrides, others=others) == says


def test_patterns_are_for_a_folder(tmp_path: Path) -> None:
    (tmp_path / "one.txt").write_text("one file")
    patterns = ["data.files=*.md", 'data.exclude=["a"]']
    for path, says in (
        ("one.txt", '[data] files = "*.md", exclude = ["a"] (for a folder)'),
        (".", ""),
    ):
        job = load_job("stdlib-gpt", [f"data.path={tmp_path / path}", *patterns])
        told = without_effect(job, 100, NODE, travels=False, others=[])
        assert told.removeprefix(f"{job.name}: without effect here: ") == says
