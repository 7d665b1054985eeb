"""The tree search of the pool: its counts are those of a plain walk, and a wrong one gives no figures."""

from __future__ import annotations

import argparse
import json
import re

import pytest

from bench.uts import chosen
from tests.launch import ROOT, VENDORS, mpiexec
from weft.runtime.errors import Mistake

TREES = {
    # T1 and T3 with a smaller depth and fewer children of the root; counted by the plain loop in the bench.
    "geometric": ["--geometric", "19,4,6"],
    "binomial": ["--binomial", "42,200,0.12,8"],
}

# Forgets what it has found, and what is left, of the first search.
LOSES_ONCE = """
import sys
import bench.uts as uts
from bench.__main__ import main

visit, forget = uts.Search.visit, uts.Search.forget
searches = -1  # a search forgets when it is made, too

def count(self):
    global searches
    searches += 1
    forget(self)

def lose(self, *args):
    if searches != 1:
        visit(self, *args)
    else:
        self.nodes += 1

uts.Search.forget, uts.Search.visit = count, lose
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.parametrize("vendor", VENDORS)
@pytest.mark.parametrize("tree", TREES.values(), ids=TREES)
def test_r3_three_ranks_count_the_tree_that_a_plain_loop_counts(tree, vendor, tmp_path):
    path = tmp_path / "uts.json"
    command = ["-m", "bench", "uts", *tree, "--grain", "50", "--repetitions", "2", "--json", path]
    result = mpiexec(3, command, vendor=vendor, cwd=ROOT)
    assert result.returncode == 0, result
    found = {name: figure["value"] for name, figure in json.loads(path.read_text())["figures"].items()}
    assert found["nodes"] > found["leaves"] > 1000
    assert found["tasks"] >= found["nodes"] / 50
    assert 0 < found["busiest_share"] <= 1


def test_r3_ranks_of_two_nodes_count_the_same(tmp_path):
    path = tmp_path / "uts.json"
    command = [
        "-m",
        "bench",
        "uts",
        *TREES["binomial"],
        "--grain",
        "50",
        "--repetitions",
        "1",
        "--json",
        path,
    ]
    result = mpiexec(3, command, vendor="mpich", cwd=ROOT, env={"MPIR_CVAR_NUM_CLIQUES": "2"})
    assert result.returncode == 0, result
    found = {name: figure["value"] for name, figure in json.loads(path.read_text())["figures"].items()}
    assert found["nodes"] > found["leaves"] > 1000


# The real bench as on two nodes of one core each; tells which ranks walk the tree alone.
ONE_CORE = """
import os, sys
import bench.uts as uts
from bench.__main__ import main
from bench.harness import launched_rank

os.cpu_count = lambda: 1
os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
walk = uts.walk

def told(tree, stack, most):
    if most == uts.ENDLESS:
        print(f"rank {launched_rank()} walks alone", file=sys.stderr)
    return walk(tree, stack, most)

uts.walk = told
sys.exit(main(sys.argv[1:]))
"""


def test_the_ceiling_is_that_of_all_nodes_cores():
    options = ["uts", *TREES["geometric"], "--grain", "50", "--repetitions", "1"]
    env = {"MPIR_CVAR_NUM_CLIQUES": "2", "MPIR_CVAR_CLIQUES_BY_BLOCK": "1"}
    result = mpiexec(4, ["-c", ONE_CORE, *options], vendor="mpich", cwd=ROOT, env=env)
    assert result.returncode == 0, result
    assert sorted(re.findall(r"rank \d walks alone", result.stderr)) == [
        "rank 0 walks alone",
        "rank 2 walks alone",
    ]


def test_a_wrong_count_gives_no_figures(tmp_path):
    path = tmp_path / "uts.json"
    code = (
        "import sys, bench.uts as uts; from bench.__main__ import main;"
        "uts.TREES['T1'] = uts.Tree(19, 4, depth=5, counts=(4_130_071, 3_305_118, 10));"
        "sys.exit(main(sys.argv[1:]))"
    )
    result = mpiexec(2, ["-c", code, "uts", "--repetitions", "1", "--json", path], cwd=ROOT)
    assert result.returncode != 0
    assert "not (4130071, 3305118, 10)" in result.stderr
    assert not path.exists()


def test_a_wrong_count_of_the_first_repetition_gives_no_figures(tmp_path):
    path = tmp_path / "uts.json"
    result = mpiexec(
        2, ["-c", LOSES_ONCE, "uts", *TREES["geometric"], "--repetitions", "2", "--json", path], cwd=ROOT
    )
    assert result.returncode != 0
    assert "nodes, leaves and depth are (" in result.stderr
    assert not path.exists()


@pytest.mark.parametrize(
    ("kind", "constants", "told"),
    [
        ("binomial", "42,10,0.5,8", "Q times M is 4; above 0 and below 1 such a tree has an end"),
        ("binomial", "42,10,0.1,0", "Q times M is 0"),
        ("binomial", "42,5000,0.1,8", "a node has from 1 to 4,096 children"),
        ("geometric", "19,0,10", "a node has from 1 to 4,096 children"),
        ("geometric", "19,4", "'19,4' is not SEED,B0,DEPTH"),
    ],
)
def test_a_tree_without_an_end_or_a_node_is_refused(kind, constants, told):
    with pytest.raises(Mistake, match=told):
        chosen(argparse.Namespace(**{"tree": "T1", "geometric": "", "binomial": "", kind: constants}))
