"""The bench of overload, for a moment: its figures are there, and a wrong answer ends it."""

from __future__ import annotations

import json
from pathlib import Path

from tests.launch import ROOT, mpiexec

SHORT = ["--minutes", "0.1", "--windows", "5"]

DAMAGED = """
import sys

from bench import soak
from bench.__main__ import main

prepare = soak.Callers.prepare


async def damage(callers):
    await prepare(callers)
    if callers._rank == 1:
        callers._answers[0] = callers._answers[1]


soak.Callers.prepare = damage
sys.exit(main(sys.argv[1:]))
"""


def test_s5_6_overload_is_counted_by_windows(tmp_path: Path):
    out = tmp_path / "out.json"
    result = mpiexec(2, ["-m", "bench", "soak", *SHORT, "--json", out], cwd=ROOT)
    assert result.returncode == 0, result.stderr
    figures = json.loads(out.read_text())["figures"]
    assert set(figures) == {"goodput_per_s", "refused_share", "late_share", "drift", "growth_mb"}
    assert figures["goodput_per_s"]["min"] > 0
    assert 0 < figures["refused_share"]["max"] < 1
    assert result.stderr.count("a second on time") == 5


def test_another_answer_than_the_models_ends_it():
    result = mpiexec(2, ["-c", DAMAGED, "soak", *SHORT, "--callers", "32"], cwd=ROOT)
    assert result.returncode != 0
    assert "rank 1 got another's answer for sample 0" in result.stderr
