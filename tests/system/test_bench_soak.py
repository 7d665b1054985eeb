"""The bench of overload, for a moment: its figures are there, and a wrong answer ends it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from bench import soak
from tests.launch import ROOT, mpiexec

SHORT = ["--minutes", "0.1", "--windows", "5"]

ANOTHERS = """
prepare = soak.Callers.prepare


async def damage(callers, root):
    await prepare(callers, root)
    if callers._rank == 1:
        callers._answers[0] = callers._answers[1]


soak.Callers.prepare = damage
"""
WRONG = """
from weft.runtime.graph.onnx import merge

replace = merge.replace
merge.replace = lambda kernel, relu=False, **given: replace(kernel, **given)  # a ReLU is lost
"""
DAMAGED = """
import sys

from bench import soak
from bench.__main__ import main

{mistake}
sys.exit(main(sys.argv[1:]))
"""


MISTAKES = {
    "one of another sample": (ANOTHERS, "rank 1 got another's answer for sample 0"),
    "a model that always answers wrongly": (
        WRONG,
        "the model's answer for sample 0 is not the onnx evaluator's",
    ),
}


def test_s5_6_overload_is_counted_by_windows(tmp_path: Path):
    out = tmp_path / "out.json"
    result = mpiexec(2, ["-m", "bench", "soak", *SHORT, "--json", out], cwd=ROOT)
    assert result.returncode == 0, result.stderr
    figures = json.loads(out.read_text())["figures"]
    assert set(figures) == {
        "goodput_per_s",
        "refused_share",
        "late_share",
        "drift",
        "evened_drift",
        "slowed",
        "growth_mb",
    }
    assert figures["goodput_per_s"]["min"] > 0
    assert figures["slowed"]["min"] >= 1
    assert 0 < figures["refused_share"]["max"] < 1
    assert result.stderr.count("a second on time") == 5


def counted(on_time: np.ndarray, product_s: np.ndarray) -> np.ndarray:
    """What two ranks counted that were alike."""
    each = np.ones((len(on_time), 5))
    each[:, soak.ON_TIME], each[:, soak.PRODUCT_S] = on_time, product_s
    return np.stack([each, each])


def test_s5_6_drift_is_told_apart_from_cores_that_others_slowed():
    slowdown = np.linspace(1, 1.5, 6)
    figures = soak.figures(counted(300 / slowdown, 1e-3 * slowdown), 1.0)
    assert figures["drift"].value == pytest.approx(0.67, abs=0.02)
    assert figures["evened_drift"].value == pytest.approx(1)
    assert figures["slowed"].max == pytest.approx(1.5)
    figures = soak.figures(counted(np.linspace(300, 150, 6), np.full(6, 1e-3)), 1.0)
    assert figures["evened_drift"].value == pytest.approx(0.5)


@pytest.mark.parametrize(("mistake", "told"), MISTAKES.values(), ids=MISTAKES)
def test_a_wrong_answer_ends_it(mistake, told):
    result = mpiexec(2, ["-c", DAMAGED.format(mistake=mistake), "soak", *SHORT, "--callers", "32"], cwd=ROOT)
    assert result.returncode != 0
    assert told in result.stderr
