"""The combine bench on several ranks, tiny: what is counted adds up, and a wrong output gives no figures."""

from __future__ import annotations

import json

import pytest

from tests.launch import ROOT, mpiexec

TINY = ["combine", "--tasks", "300", "--words", "8", "--repetitions", "1"]


def test_s4_4_on_ranks_of_two_nodes_fewer_tasks_run_and_all_that_moved_is_counted(tmp_path):
    path = tmp_path / "combine.json"
    two = {"MPIR_CVAR_NUM_CLIQUES": "2"}  # of two ranks and of one
    result = mpiexec(3, ["-m", "bench", *TINY, "--json", path], vendor="mpich", cwd=ROOT, env=two)
    assert result.returncode == 0, result.stderr
    found = {name: figure["value"] for name, figure in json.loads(path.read_text())["figures"].items()}
    for shape in ("", "chains_", "fans_", "hub_"):
        assert 0 < found[f"{shape}tasks_after"] < found[f"{shape}tasks_before"]
        assert found[f"{shape}time_over_uncombined"] > 0
    for when in ("before", "after"):
        assert found[f"messages_{when}"] == found[f"stolen_{when}"] + found[f"home_{when}"]
        assert found[f"home_{when}"] <= found[f"stolen_{when}"]  # a task may be taken on from a thief
        assert found[f"steals_{when}"] <= found[f"stolen_{when}"]
        assert (found[f"stolen_kb_{when}"] > 0) == (found[f"stolen_{when}"] > 0)
        assert found[f"far_{when}"] <= found[f"stolen_{when}"]


@pytest.mark.parametrize(
    ("broken", "says"),
    [
        ("self.job.outputs[index]", "did not run once"),
        ("wrong(self, pool, index, needs) + np.uint64(index == 49)", "result of chain0.49 that came home"),
    ],
    ids=["a task does not run", "a result is not what the task has computed"],
)
def test_s4_4_a_wrong_execution_on_the_pool_is_found_out(broken, says, tmp_path):
    path = tmp_path / "combine.json"
    code = (
        "import sys, numpy as np, bench._combine_ranks as ranks; from bench.__main__ import main;"
        "wrong = ranks.Part.add_up;"
        f"ranks.Part.add_up = lambda self, pool, index, needs=(): {broken};"
        "sys.exit(main(sys.argv[1:]))"
    )
    result = mpiexec(2, ["-c", code, *TINY, "--json", path], cwd=ROOT)
    assert result.returncode != 0
    assert says in result.stderr
    assert not path.exists()
