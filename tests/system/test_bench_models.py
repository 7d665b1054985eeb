"""The bench of two models on emulated hosts and on plain ranks: figures, and none from wrong weights."""

from __future__ import annotations

import json
import sys

import pytest

from bench.__main__ import main
from bench.network import missing
from tests.launch import ROOT, environment, installed_vendor, mpiexec, requires, run

SMALL = ["--batch", "8,6", "--layers", "4,3", "--width", "32,48", "--repetitions", "1", "--steps", "3"]
SMALL += ["--patience", "0"]

# The real bench with a lane that leaves out an update where another model's step is under way.
BROKEN = """
import sys
from unittest.mock import patch
from bench.__main__ import main
from bench._several import Together
from weft.runtime.train.replica import Replica

take, update = Together._take, Replica.update
forgets = False

async def together(self, steps):
    global forgets
    forgets = None not in steps
    turn = await take(self, steps)
    forgets = False
    return turn

def broken(self, start, stop, **how):
    if not (forgets and start == 0 and how["step"] == 7):  # behind the losses that are checked
        update(self, start, stop, **how)

with patch.object(Together, "_take", together), patch.object(Replica, "update", broken):
    raise SystemExit(main(sys.argv[1:]))
"""

# The real bench with an optimizer that leaves out the fifth update of every turn, on all ranks.
LAZY = """
import sys
from unittest.mock import patch
from bench.__main__ import main
from bench._training import FIRST_TURN, PLANNED
from weft.runtime.train.replica import Replica

update = Replica.update

def lazy(self, start, stop, **how):
    if how["step"] not in (PLANNED + 5, FIRST_TURN + 5):
        update(self, start, stop, **how)

with patch.object(Replica, "update", lazy):
    raise SystemExit(main(sys.argv[1:]))
"""


@pytest.mark.parametrize(
    "options",
    [
        ["--hosts", "2", "--rate", "1gbit"],
        ["--ranks-per-host", "2,1", "--rate", "500mbit", "--portion", "2048", "--credit", "2",
         "--rule", "lower_layer_first"],
    ],
    ids=["two hosts", "two ranks on one host, settings given"],
)  # fmt: skip
def test_s2_5_the_bench_gives_its_figures_on_hosts(options, tmp_path):
    lacking = missing()
    requires(lacking is None, str(lacking))
    path = tmp_path / "models.json"
    command = [sys.executable, "-m", "bench", "models", *SMALL, *options, "--json", path]
    result = run(command, cwd=ROOT, env=environment(installed_vendor()))
    assert result.returncode == 0, result
    found = {name: figure["value"] for name, figure in json.loads(path.read_text())["figures"].items()}
    limit = max(found["compute_s"], min(found["wire_s"], found["wire_blocking_s"]))
    assert limit > 0
    for name in ("makespan", "sequential"):
        assert found[f"{name}_over_limit"] == pytest.approx(found[f"{name}_s"] / limit)
    assert found["sequential_over_makespan"] == pytest.approx(found["sequential_s"] / found["makespan_s"])
    lane = [found[f"lane_{what}_s"] for what in ("busy", "between", "arrival", "wake", "other")]
    wire = [found[f"wire_{what}_s"] for what in ("busy", "unready", "late")]
    assert sum(lane) == pytest.approx(sum(wire))  # both are rank 0's makespan
    assert 0 < sum(lane) <= found["makespan_s"] * 1.001  # and that is the slowest rank's
    assert "n1 sent" in result.stderr


def test_weights_other_than_those_of_models_trained_alone_give_no_figures(tmp_path):
    path = tmp_path / "models.json"
    result = mpiexec(
        2, ["-c", BROKEN, "models", *SMALL, "--steps", "4", "--no-rig", "--json", path], cwd=ROOT
    )
    assert result.returncode != 0
    assert "weights are not those of the models trained alone" in result.stderr, result
    assert not path.exists()


def test_an_update_left_out_behind_the_first_steps_gives_no_figures(tmp_path):
    path = tmp_path / "models.json"
    result = mpiexec(2, ["-c", LAZY, "models", *SMALL, "--steps", "8", "--no-rig", "--json", path], cwd=ROOT)
    assert result.returncode != 0
    assert "alone large: losses" in result.stderr, result
    assert not path.exists()


def test_without_hosts_to_be_had_the_way_out_is_told(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SystemExit, match="1"):
        main(["models", *SMALL])
    said = capsys.readouterr().err
    assert "models: " in said
    assert "--no-rig" in said
