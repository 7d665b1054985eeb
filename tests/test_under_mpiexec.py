"""Runs tests/mpi under the launcher: 1 to 4 ranks with MPICH, and what talks to MPI under Open MPI too.

pytest tests/test_under_mpiexec.py -k "mpich-3"                  # on 3 ranks
pytest tests/test_under_mpiexec.py -k "2+1+1"                    # on emulated nodes of 2, 1 and 1 ranks
mpiexec -n 3 python -m pytest tests/mpi/message -k channel       # or by hand

Ranks that share two cores wait for each other more than they compute: `make test` has two of these jobs at
once. Training, half of their time, is a job of its own, and what takes longest begins first, so that both end
together.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from tests.launch import ROOT, mpiexec

MPI = ROOT / "tests" / "mpi"

# Training on top of a message layer that passes under both vendors meets no vendor any more, so only what
# calls MPI runs twice.
JOBS: dict[tuple[str, str], list[str | Path]] = {
    ("mpich", "train"): [MPI / "train"],
    ("mpich", "rest"): [MPI, f"--ignore={MPI / 'train'}"],
    ("openmpi", "rest"): [MPI / name for name in ("message", "exchange", "work")],
}

# MPICH can take the ranks of one host for those of several nodes: how many ranks each has, and how to ask for
# it. A node of three beside one of one is in system/test_exchange_nodes.py.
NODES = {
    "2+1+1": {"MPIR_CVAR_NUM_CLIQUES": "3"},  # dealt in turn: ranks 0 and 3, rank 1, rank 2
    "2+2": {"MPIR_CVAR_NUM_CLIQUES": "2", "MPIR_CVAR_CLIQUES_BY_BLOCK": "1"},
}
# Blocks of neurons never leave a node: work's other tests do. Between nodes as large as each other only
# gradients, and what several models make of them, go other ways than between uneven ones.
ON_NODES = {
    ("2+1+1", "train"): ["train"],
    ("2+2", "gradients"): [
        "exchange",
        *(f"train/test_{name}.py" for name in ("same_answer", "formats", "dealing", "models")),
    ],
    ("2+1+1", "rest"): [
        "exchange",
        "serve",
        *(
            f"work/test_{name}.py"
            for name in ("graphs", "pool", "pool_given_up", "pool_mistakes", "shelf", "timeline")
        ),
    ],
}
NOT_FLAT = ("-k", "not flat")  # where gradients are summed as if every rank were alone on its node

JOB_LIMIT_S = 540.0  # pytest's own is 600 (pyproject.toml)


@pytest.mark.parametrize(("nodes", "part"), ON_NODES)
def test_every_rank_of_several_nodes_passes(nodes: str, part: str, tmp_path: Path) -> None:
    ranks = sum(map(int, nodes.split("+")))
    env = {**NODES[nodes], "WEFT_NODES": nodes}  # test_nodes.py makes sure that it is so
    passes("mpich", ranks, [*NOT_FLAT, *(MPI / name for name in ON_NODES[nodes, part])], env, tmp_path)


@pytest.mark.parametrize(
    ("vendor", "ranks", "part"), [(vendor, ranks, part) for ranks in (4, 3, 2, 1) for vendor, part in JOBS]
)
def test_every_rank_passes(vendor: str, ranks: int, part: str, tmp_path: Path) -> None:
    passes(vendor, ranks, JOBS[vendor, part], {}, tmp_path)


def passes(
    vendor: str, ranks: int, which: Sequence[str | Path], env: Mapping[str, str], tmp_path: Path
) -> None:
    """Run what pytest finds with these arguments on so many ranks; fails with what they reported."""
    arguments = ["-m", "pytest", "-q", "--color=no", "-p", "no:cacheprovider", *which]
    reports = tmp_path / "reports"
    reports.mkdir()
    result = mpiexec(
        ranks,
        arguments,
        vendor=vendor,
        timeout=JOB_LIMIT_S,
        env={"WEFT_RANK_REPORTS": str(reports), **env},
        cwd=ROOT,
        tell=lambda: told(reports),
    )
    counts = [
        json.loads(path.read_text()) if (path := reports / f"rank-{rank}.json").exists() else {}
        for rank in range(ranks)
    ]
    everything = f"{told(reports)}\n--- stdout\n{result.stdout}\n--- stderr\n{result.stderr}"
    if result.returncode != 0 or any(count.get("failed") for count in counts):
        pytest.fail(f"{vendor}, {ranks} ranks: status {result.returncode}\n{everything}", pytrace=False)
    passed = {count.get("passed", 0) for count in counts}
    assert len(passed) == 1, f"ranks passed different numbers of tests: {counts}\n{everything}"
    assert passed.pop() > 0, f"no test ran\n{everything}"


def told(reports: Path) -> str:
    """What the ranks wrote: failures, and stacks without the frames of pytest itself."""
    return "\n".join(
        f"===== {path.stem}\n{readable(path.read_text(errors='replace'))}"
        for path in sorted(reports.glob("rank-*.txt"))
        if path.stat().st_size
    )


def readable(text: str) -> str:
    """Drop pytest's and the watching thread's frames from the stacks, and threads that had no others."""
    noise = ("/_pytest/", "/pluggy/", "<frozen runpy>", "/pytest/__main__.py", "/threading.py")
    lines = [
        line
        for line in text.splitlines()
        if not (line.startswith("  File ") and any(part in line for part in noise))
    ]
    kept = [
        line
        for line, following in zip(lines, [*lines[1:], ""], strict=True)
        if not (line.endswith("(most recent call first):") and not following.startswith("  File "))
    ]
    return "\n".join(kept)
