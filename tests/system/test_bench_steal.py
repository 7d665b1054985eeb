"""The pool's benches, tiny: thefts inside a node and between hosts, METG; a wrong output is found out."""

from __future__ import annotations

import json
from pathlib import Path

from bench.hosts import Hosts
from bench.network import missing
from tests.launch import ROOT, environment, mpiexec, python, requires

SMALL = ["--kernels", "12", "--kernel-ms", "5"]


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
