"""The overlap bench on emulated hosts and on plain ranks: its figures, and that a wrong result gives none."""

from __future__ import annotations

import json
import sys
from importlib.util import find_spec

import pytest

from bench.__main__ import main
from bench.network import missing
from tests.launch import ROOT, environment, installed_vendor, mpiexec, requires, run

SMALL = [
    "--batch",
    "8",
    "--layers",
    "4",
    "--width",
    "32",
    "--repetitions",
    "1",
    "--steps",
    "2",
    "--patience",
    "0",
]

# The real bench with an optimizer that forgets some of the first layer's weights.
BROKEN = """
import sys
from unittest.mock import patch
from bench.__main__ import main
from weft.runtime.train.replica import Replica

update = Replica.update

def broken(self, start, stop, **how):
    update(self, start, stop, **how)
    self.parameters[: 100] = 0

with patch.object(Replica, "update", broken):
    raise SystemExit(main(sys.argv[1:]))
"""

# The real bench with an optimizer that leaves out the first update that is timed, on all ranks.
LAZY = BROKEN.replace(
    "    update(self, start, stop, **how)\n    self.parameters[: 100] = 0\n",
    """
    if how["step"] != 3:
        update(self, start, stop, **how)
""",
)

# The real bench whose portions leave out their last element where they travel alone.
CARELESS = """
import sys
from unittest.mock import patch
from bench import _weft
from bench.__main__ import main

class Short:
    def __init__(self, comm):
        self.rank, self.size, self.barrier = comm.rank, comm.size, comm.barrier
        self.allreduce = lambda array: comm.allreduce(array[:-1])

wire = _weft.wire

async def careless(model, *how):
    model.wire = Short(model.wire)
    return await wire(model, *how)

with patch.object(_weft, "wire", careless):
    raise SystemExit(main(sys.argv[1:]))
"""


# The real bench that looks, at its end, on which cores lanes have computed and processes may run.
PLACED = """
import os, sys
from pathlib import Path
from unittest.mock import patch
from bench import overlap
from bench._training import Training
from bench.__main__ import main
from bench.harness import check

on_span, figures = Training._on_span, overlap.Bench._figures
lanes = set()

def seen(self, *span):
    lanes.add(frozenset(os.sched_getaffinity(0)))  # of the lane's thread, whose call this is
    on_span(self, *span)

def told(self):
    own = os.sched_getaffinity(0)
    check(lanes == {frozenset(own)}, f"lanes computed on {lanes}, the loop on {own}")
    for pid in self._judge.pids[1:]:
        for thread in Path("/proc", str(pid), "task").iterdir():
            theirs = os.sched_getaffinity(int(thread.name))
            check(theirs == own, f"PyTorch's process has {theirs}, its rank {own}")
    return figures(self)

with patch.object(Training, "_on_span", seen), patch.object(overlap.Bench, "_figures", told):
    raise SystemExit(main(sys.argv[1:]))
"""


def figures(path) -> dict[str, float]:
    return {name: figure["value"] for name, figure in json.loads(path.read_text())["figures"].items()}


@pytest.mark.parametrize(
    ("options", "ddp"),
    [
        (["--hosts", "2", "--rate", "1gbit", "--buckets", "1,25"], True),
        (["--hosts", "3", "--rate", "unlimited", "--skew", "0.6", "--no-ddp"], False),
        (["--ranks-per-host", "2,1", "--rate", "500mbit", "--no-ddp", "--portion", "2048", "--credit", "2",
          "--rule", "lower_layer_first"], False),
    ],
    ids=["beside DDP", "three hosts, one layer holds most", "two ranks on one host, settings given"],
)  # fmt: skip
def test_s3_7_the_bench_gives_its_figures_on_hosts(options, ddp, tmp_path):
    lacking = missing()
    requires(lacking is None, str(lacking))
    requires(not ddp or find_spec("torch") is not None, "PyTorch")
    path = tmp_path / "overlap.json"
    command = [sys.executable, "-m", "bench", "overlap", *SMALL, *options, "--json", path]
    result = run(command, cwd=ROOT, env=environment(installed_vendor()))
    assert result.returncode == 0, result
    found = figures(path)
    assert found["compute_ms"] > 0
    assert found["wire_ms"] > 0
    limit = max(found["compute_ms"], min(found["wire_ms"], found["wire_blocking_ms"]))
    for name in ("step", "first_come", "clipped", "blocking"):
        assert found[f"{name}_over_limit"] == pytest.approx(found[f"{name}_ms"] / limit)
    assert ("ddp_best_over_weft" in found) == ddp
    if ddp:
        best = min(found["ddp_1mb_ms"], found["ddp_25mb_ms"])
        assert found["ddp_best_over_weft"] == pytest.approx(best / found["step_ms"])
        assert found["ddp_best_over_limit"] == pytest.approx(best / limit)
        assert found["ddp_default_over_limit"] == pytest.approx(found["ddp_25mb_ms"] / limit)
    assert "n1 sent" in result.stderr


def test_on_ranks_that_a_launcher_has_started_no_hosts_are_made(tmp_path):
    path = tmp_path / "overlap.json"
    result = mpiexec(2, ["-m", "bench", "overlap", *SMALL, "--no-ddp", "--json", path], cwd=ROOT)
    assert result.returncode == 0, result
    assert figures(path)["step_ms"] > 0
    assert "n1 sent" not in result.stderr


@pytest.mark.parametrize("ddp", [False, True], ids=["alone", "beside DDP"])
def test_without_hosts_a_rank_and_its_peer_have_one_core_too(ddp):
    requires(not ddp or find_spec("torch") is not None, "PyTorch")
    options = ["--buckets", "1"] if ddp else ["--no-ddp"]
    result = mpiexec(2, ["-c", PLACED, "overlap", *SMALL, *options], cwd=ROOT)
    assert result.returncode == 0, result
    assert "step_over_limit" in result.stdout


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--rate", "fast"], "overlap: rate 'fast': write it as"),
        (["--hosts", "1"], "overlap: 1 host(s): a link has two ends"),
        (["--ranks-per-host", "1,1,1"], "one number, or one for each of the 2 hosts"),
        (["--skew", "2"], "overlap: skew 2.0 of 4 layers: give"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_wrong_option_is_explained(options, told, capsys):
    lacking = missing()
    requires(lacking is None, str(lacking))
    with pytest.raises(SystemExit, match="2"):
        raise SystemExit(main(["overlap", *SMALL, *options]))
    said = capsys.readouterr().err
    assert told in said
    assert "Traceback" not in said


@pytest.mark.parametrize("program", [BROKEN, LAZY], ids=["in every step", "behind the first steps"])
def test_wrong_weights_give_no_figures(program, tmp_path):
    path = tmp_path / "overlap.json"
    options = ["overlap", *SMALL, "--no-rig", "--no-ddp", "--json", path]
    result = mpiexec(2, ["-c", program, *options], cwd=ROOT)
    assert result.returncode != 0
    assert "losses" in result.stderr, result
    assert not path.exists()


def test_wrong_sums_of_the_wire_alone_give_no_figures(tmp_path):
    lacking = missing()
    requires(lacking is None, str(lacking))
    path = tmp_path / "overlap.json"
    hosts = ["-m", "bench.hosts", "--hosts", "2", "--rate", "1gbit", "--"]
    options = ["overlap", *SMALL, "--no-rig", "--no-ddp", "--json", path]
    command = [sys.executable, *hosts, sys.executable, "-c", CARELESS, *options]
    result = run(command, cwd=ROOT, env=environment(installed_vendor()))
    assert result.returncode != 0
    assert "portions alone: a sum is wrong" in result.stderr, result
    assert not path.exists()


def test_without_hosts_to_be_had_the_way_out_is_told(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SystemExit, match="1"):
        main(["overlap", *SMALL])
    said = capsys.readouterr().err
    assert "not found in PATH: apt-get install" in said
    assert "--no-rig" in said
