"""The pool's benches, tiny: thefts inside a node and between hosts, METG; a wrong output is found out."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from bench.__main__ import main
from bench.hosts import Hosts
from bench.network import missing
from tests.launch import ROOT, environment, mpiexec, python, requires

SMALL = ["--kernels", "60", "--kernel-ms", "5"]  # long enough for thieves to get a core of a busy machine


def figures(path: Path) -> dict[str, float]:
    return {name: figure["value"] for name, figure in json.loads(path.read_text())["figures"].items()}


def test_r3_thefts_inside_a_node_are_measured(tmp_path):
    path = tmp_path / "steal.json"
    result = mpiexec(3, ["-m", "bench", "steal", *SMALL, "--json", path], cwd=ROOT)
    assert result.returncode == 0, result.stderr
    found = figures(path)
    assert found["local_p50_us"] > 0
    assert found["local_asleep_p50_us"] > 0
    assert found["thefts"] >= 10
    assert "remote_p50_us" not in found


def test_r3_tasks_and_the_tree_cross_between_hosts(tmp_path):
    lacking = missing()
    requires(lacking is None, str(lacking))
    tree = ["uts", "--binomial", "42,200,0.12,8", "--grain", "50", "--repetitions", "1"]
    with Hosts(2, rate="1gbit") as hosts:
        for name, bench in (("steal", ["steal", *SMALL]), ("uts", tree)):
            command = [python("mpich"), "-m", "bench", *bench, "--json", tmp_path / name]
            done = hosts.run(command, env=environment("mpich"), capture=True, timeout=100)
            assert done.returncode == 0, done.stderr
    stolen, counted = figures(tmp_path / "steal"), figures(tmp_path / "uts")
    assert stolen["remote_p50_us"] > 0
    assert stolen["round_trip_us"] > 0
    assert "local_p50_us" not in stolen
    assert counted["nodes"] > counted["leaves"] > 1000


def test_metg_is_measured_and_a_wrong_output_gives_no_figures(tmp_path):
    path = tmp_path / "metg.json"
    tiny = ["metg", "--steps", "30", "--repetitions", "1", "--json", path]
    result = mpiexec(2, ["-m", "bench", *tiny], cwd=ROOT)
    assert result.returncode == 0, result.stderr
    found = figures(path)
    assert found["trivial_us"] > 0
    assert found["stencil_us"] > 0
    path.unlink()
    code = (
        "import sys, bench.metg as metg; from bench.__main__ import main;"
        "right = metg.point;"
        "wrong = lambda pool, body, needs=(): [right(pool, body, needs)[0], 7 if body[1] == 3 else body[2]];"
        "metg.point = wrong; sys.exit(main(sys.argv[1:]))"
    )
    result = mpiexec(2, ["-c", code, *tiny], cwd=ROOT)
    assert result.returncode != 0
    assert "got" in result.stderr or "gave" in result.stderr
    assert not path.exists()


# A Dask that computes nothing, and tells how many have been started, and where.
NO_DASK = """
import os
from contextlib import AbstractContextManager

class LocalCluster(AbstractContextManager):
    def __init__(self, **how):
        with open(os.environ["STARTED"], "a") as log:
            print(how["n_workers"], *sorted(os.sched_getaffinity(0)), file=log)
    __exit__ = lambda *_: None

class Client(AbstractContextManager):
    def __init__(self, cluster):
        pass
    __exit__ = lambda *_: None
    def submit(self, function, *args, pure):
        return args[1:3] if function.__name__ == "point" else function(*args)
    def gather(self, found):
        return found
"""


# The bench on ranks that a launcher has bound.
BOUND = """
import os, sys
from bench.__main__ import main
from bench.harness import launched_rank
cores = sorted(os.sched_getaffinity(0))
os.sched_setaffinity(0, {cores[%s]})
raise SystemExit(main(sys.argv[1:]))
"""
CORES = sorted(os.sched_getaffinity(0))


@pytest.mark.parametrize(
    ("core", "shared"),
    [("launched_rank() % len(cores)", CORES[:2]), ("0", CORES[:1])],
    ids=["bound to a core each", "all on one core"],
)
def test_a_peer_runs_once_on_the_ranks_cores_and_is_compared_at_as_many_steps(core, shared, tmp_path):
    (tmp_path / "distributed.py").write_text(NO_DASK)
    path, log = tmp_path / "metg.json", tmp_path / "started"
    options = ["--steps", "30", "--peer-steps", "20", "--repetitions", "1", "--peers", "dask"]
    folders = [str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])]
    env = {"PYTHONPATH": os.pathsep.join(folders), "STARTED": str(log)}
    result = mpiexec(2, ["-c", BOUND % core, "metg", *options, "--json", path], cwd=ROOT, env=env)
    assert result.returncode == 0, result.stderr
    assert log.read_text().split() == ["2", *map(str, shared)]
    found = figures(path)
    for graph in ("trivial", "stencil"):
        over = found[f"dask_{graph}_us"] / found[f"short_{graph}_us"]
        assert found[f"dask_{graph}_over_weft"] == pytest.approx(over)


def test_an_unknown_peer_is_refused_before_anything_is_measured(capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["metg", "--peers", "dask,foo"])
    assert "'foo' is none of dask, ray, charm4py" in capsys.readouterr().err
