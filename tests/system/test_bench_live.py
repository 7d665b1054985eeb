"""The bench of policies on real models, for a moment: its figures are there, and answers were compared."""

from __future__ import annotations

import json
from pathlib import Path

from tests.launch import ROOT, mpiexec


def test_s5_6_policies_are_compared_on_the_same_arrivals(tmp_path: Path):
    out = tmp_path / "out.json"
    arguments = ["--seconds", "0.5", "--repetitions", "1", "--loads", "0.8", "--policies", "first_come,weft"]
    result = mpiexec(2, ["-m", "bench", "live", *arguments, "--json", out], cwd=ROOT)
    assert result.returncode == 0, result.stderr
    figures = json.loads(out.read_text())["figures"]
    assert figures["capacity_per_s"]["value"] > 0
    assert {"goodput_first_come_08", "goodput_weft_08", "over_first_come_08", "on_time_08"} <= set(figures)
    assert 0 <= figures["on_time_08"]["value"] <= 1
    assert figures["added_p50_us"]["value"] > 0
