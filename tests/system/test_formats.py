"""Wire formats between nodes: bytes counted on emulated hosts, and what a run says of them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from bench.hosts import Hosts
from bench.network import missing
from tests.launch import environment, mpiexec, python, requires


@pytest.fixture
def hosts() -> Iterator[Hosts]:
    lacking = missing()
    requires(lacking is None, str(lacking))
    with Hosts(2, rate="1gbit") as made:
        yield made


def test_half_the_bytes_go_over_the_link(hosts: Hosts, tmp_path: Path) -> None:
    """400 KB of gradient a step on two hosts, 30 steps; the rest, a checkpoint's among it, is little."""

    def moved(wire: str) -> float:
        job = ["train", "digits", "--set", "train.steps=30", "--set", f"exchange.wire={wire}"]
        quiet = ["--set", "run.trace=false", "--set", f"run.folder={tmp_path}"]
        command = [python("mpich"), "-m", "weft.runtime.cli", *job, *quiet]
        done = hosts.run(command, env=environment("mpich"), capture=True, timeout=100)
        assert done.returncode == 0, done.stderr
        return sum(done.sent)

    exact = moved("float32")
    assert 0.5 <= moved("float16") / exact < 0.55
    assert moved("top_k") / exact < 0.1


@pytest.mark.parametrize(
    ("inside", "told"),
    [
        pytest.param("flat", "; gradients travel as bfloat16\n", id="by messages"),
        pytest.param(
            "shared",
            'digits: without effect here: [exchange] credit = 3, wire = "bfloat16" '
            '(for ranks on several nodes, or inside = "flat")\n',
            id="by memory",
        ),
    ],
)
def test_a_run_says_in_what_its_gradients_travel(inside: str, told: str, tmp_path: Path) -> None:
    job = ["train", "digits", "--set", "train.steps=2", "--set", "exchange.wire=bfloat16"]
    job += ["--set", "exchange.credit=3"]
    where = ["--set", f"exchange.inside={inside}", "--set", f"run.folder={tmp_path}"]
    result = mpiexec(2, ["-m", "weft.runtime.cli", *job, *where])
    assert result.returncode == 0, result.stderr
    assert told in result.stdout
