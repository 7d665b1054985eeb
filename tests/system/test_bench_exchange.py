"""The benches of the exchange: the figures they give, and that a wrong weight or sum gives none."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest

from bench.__main__ import main
from bench._rounds import MB, Network
from bench._sums import gradient, total
from bench.exchange import RATE, adam_step
from bench.network import missing
from tests.launch import ROOT, mpiexec, requires, run
from weft.kernels.optimizer import Adam
from weft.runtime.errors import Mistake

EXCHANGE = ["exchange", "--megabytes", "4", "--portions", "1", "--repetitions", "1", "--rounds", "1"]
PORTIONS = ["portions", "--megabytes", "4", "--repetitions", "1"]

# Leaves out the last elements of every update, on the last rank.
FORGETFUL = f"""
import bench.__main__
from weft.runtime.train.replica import Replica

update = Replica.update

def forget(self, start, stop, **how):
    update(self, start, stop - 16, **how)

if bench.__main__.launched_rank() == 1:
    Replica.update = forget
raise SystemExit(bench.__main__.main({EXCHANGE!r}))
"""

# Loses the weights of the first of each repetition's rounds.
ONCE = f"""
import bench.__main__, bench.exchange

turn, rounds = bench.exchange.Bench.round, 0

async def lose(self, candidate):
    global rounds
    rounds += 1
    seconds = await turn(self, candidate)
    if rounds % 2:
        self._flats[candidate.way].parameters[:] = 0
    return seconds

bench.exchange.Bench.round = lose
raise SystemExit(bench.__main__.main({[*EXCHANGE[:-1], "2"]!r}))
"""

# Sums everything but the last element.
CARELESS = f"""
import bench.__main__
from weft.runtime.exchange import Exact

cut = Exact.cut

def cut_short(self, parts):
    cut(self, [slice(part.start, part.stop - 1) for part in parts])

Exact.cut = cut_short
raise SystemExit(bench.__main__.main({PORTIONS!r}))
"""


def test_the_network_has_the_size_asked_for_in_layers_that_are_cut_by_rows():
    network = Network.of(8 * MB, first=MB)
    portions = network.portions(MB)
    assert sum(portion.nbytes for portion in portions) == network.layout.size * 4 == 9 * MB
    assert [portion.layer for portion in portions].count(0) == 1
    assert portions[-1].layer == 0
    with pytest.raises(Mistake, match="3 MB of gradients: give a multiple of 4"):
        Network.of(3 * MB)


def test_what_is_expected_of_adam_is_what_its_kernel_computes():
    size, ranks = 4096, 3
    sums = total(ranks, size)
    np.testing.assert_array_equal(sums, sum(gradient(rank, size) for rank in range(ranks)))
    before = np.linspace(-1, 1, size, dtype=np.float32)
    weights, m, v = before.copy(), np.zeros_like(before), np.zeros_like(before)
    Adam().update(weights, sums, (m, v), rate=RATE, step=1)
    wanted = adam_step(before, sums)
    np.testing.assert_allclose(weights, wanted["weight"], rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(m, wanted["mean"], rtol=1e-6)
    np.testing.assert_allclose(v, wanted["mean square"], rtol=1e-6)


def test_both_ways_inside_a_node_are_compared_by_time_and_memory(tmp_path):
    path = tmp_path / "out.json"
    result = mpiexec(2, ["-m", "bench", *EXCHANGE, "--json", path], cwd=ROOT)
    assert result.returncode == 0, result
    figures = {name: figure["value"] for name, figure in json.loads(path.read_text())["figures"].items()}
    for optimizer, states in (("sgd", 0), ("adam", 2)):
        flat = [
            figures[f"{name}_{optimizer}"] for name in ("best_flat_over_best_shared", "blocking_over_shared")
        ]
        assert figures[f"flat_over_shared_{optimizer}"] == min(flat)
        # There is one size.
        assert figures[f"default_flat_over_shared_{optimizer}"] == flat[0] > 0
        assert figures[f"flat_{optimizer}_mib"] == 2 * 4 * (2 + states)
        assert figures[f"shared_{optimizer}_mib"] == 2 * 4 + 4 * (1 + states)


def test_without_others_on_the_node_there_is_nothing_to_compare():
    result = mpiexec(1, ["-m", "bench", *EXCHANGE], cwd=ROOT)
    assert result.returncode != 0
    assert "mpirun -n 4 python -m bench exchange" in result.stderr


def test_portions_are_compared_on_the_ranks_of_a_launcher(tmp_path):
    path = tmp_path / "out.json"
    result = mpiexec(2, ["-m", "bench", *PORTIONS, "--json", path], cwd=ROOT)
    assert result.returncode == 0, result
    figures = json.loads(path.read_text())["figures"]
    assert {"goodput_over_blocking", "goodput_credit_4_over_blocking", "overtake_over_fifo"} <= set(figures)


def test_portions_are_compared_on_hosts_of_their_own(tmp_path):
    lacking = missing()
    requires(lacking is None, str(lacking))
    path = tmp_path / "out.json"
    result = run([sys.executable, "-m", "bench", *PORTIONS, "--json", path], cwd=ROOT)
    assert result.returncode == 0, result
    document = json.loads(path.read_text())
    assert document["machine"]["ranks"] == 2
    assert document["command"].startswith(
        "python -m bench.hosts --hosts 2 --rate 1gbit --ranks-per-host 1 -- "
    )
    assert "portions: n1 sent " in result.stderr


def test_without_hosts_to_be_had_the_way_out_is_told(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SystemExit, match="1"):
        main(PORTIONS)
    said = capsys.readouterr().err
    assert "not found in PATH: apt-get install" in said
    assert "mpirun -n 2 python -m bench portions" in said
    assert "Traceback" not in said


def test_a_part_of_a_layer_is_refused_in_a_sentence():
    result = mpiexec(2, ["-m", "bench", "portions", "--megabytes", "3"], cwd=ROOT)
    assert result.returncode == 2
    assert "3 MB of gradients: give a multiple of 4" in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize(
    ("program", "wrong"),
    [
        pytest.param(FORGETFUL, "a weight is wrong", id="a weight that was not updated"),
        pytest.param(ONCE, "a weight is wrong", id="weights that the first of two rounds lost"),
        pytest.param(CARELESS, "a sum is wrong", id="an element that was not summed"),
    ],
)
def test_a_wrong_result_gives_no_figure(program, wrong):
    result = mpiexec(2, ["-c", program], cwd=ROOT)
    assert result.returncode != 0
    assert wrong in result.stderr
    assert "_over_" not in result.stdout
