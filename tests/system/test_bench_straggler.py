"""The bench of a rank that is held up: figures on two ranks, and none where work is doubled and lost."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest

from bench.straggler import Trained, ceiling
from tests.launch import ROOT, VENDORS, mpiexec

SMALL = ["--micro-batches", "8", "--samples", "4", "--width", "48", "--layers", "2", "--steps", "2"]
SMALL += ["--repetitions", "1", "--patience", "0"]

# The real bench with something broken in it.
BROKEN = """
import sys
from unittest.mock import patch
from bench.__main__ import main
from weft.kernels.optimizer import SGD
from weft.runtime.work.claims import Dealt

claim, rule = Dealt._claim, SGD.rule

def again(self, counts):
    found = claim(self, counts)
    return None if found is None else (self.first, found[1])

def slower(self, rate, *given):
    return rule(self, rate / 2, *given)

with patch.object({what}):
    raise SystemExit(main(sys.argv[1:]))
"""
MISTAKES = {
    "work that is doubled and lost": 'Dealt, "_claim", again',
    "an optimizer that takes half its steps, on every rank and alone": 'SGD, "rule", slower',
}


# The real bench on ranks that may use one core between them.
CROWDED = """
import os, sys
from bench.__main__ import main
os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
raise SystemExit(main(sys.argv[1:]))
"""


def test_ranks_that_share_a_core_do_not_wait_until_it_is_theirs():
    options = ["straggler", *SMALL, "--patience", "3600"]
    result = mpiexec(2, ["-c", CROWDED, *options], cwd=ROOT)
    assert result.returncode == 0, result


@pytest.mark.parametrize("vendor", VENDORS)
def test_the_bench_gives_its_figures(vendor, tmp_path):
    path = tmp_path / "straggler.json"
    command = ["-m", "bench", "straggler", *SMALL, "--json", path]
    result = mpiexec(2, command, vendor=vendor, cwd=ROOT)
    assert result.returncode == 0, result.stderr
    found = {name: figure["value"] for name, figure in json.loads(path.read_text())["figures"].items()}
    held = [found[f"{condition}_efficiency"] for condition in ("limited", "competing")]
    assert found["efficiency"] == min(held)
    assert found["equal_loss"] < 1
    assert all(found[name] > 0 for name in ("static_efficiency", "equal_efficiency", "alone_per_s"))


@pytest.mark.parametrize("what", MISTAKES.values(), ids=MISTAKES)
def test_no_figures_come_of(what, tmp_path):
    path = tmp_path / "straggler.json"
    result = mpiexec(2, ["-c", BROKEN.format(what=what), "straggler", *SMALL, "--json", path], cwd=ROOT)
    assert result.returncode != 0
    assert re.search("WrongResultError: (stealing|static) equal: losses .* should be", result.stderr)
    assert not path.exists()


@pytest.mark.parametrize(
    ("got", "expected"),
    [((1.0, 0.5), 150.0), ((1.0, 0.6), 160.0), ((0.9, 0.4), 150.0)],
    ids=["as much of a core as alone", "more raises what a rank can do", "less lowers nothing"],
)
def test_what_ranks_can_do_follows_what_they_get_of_their_cores(got, expected):
    alone = Trained(0.0, speeds=np.array([100, 50], np.float32), shares=np.array([1, 0.5], np.float32))
    assert ceiling(Trained(0.0, shares=np.array(got, np.float32)), alone) == pytest.approx(expected)
