"""Runs tests/mpi under the launcher: 1 to 4 ranks with MPICH, and what talks to MPI under Open MPI too.

pytest tests/test_under_mpiexec.py -k "mpich-3"                  # one of them
mpiexec -n 3 python -m pytest tests/mpi/message -k channel       # or by hand
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.launch import ROOT, mpiexec

MPI = ROOT / "tests" / "mpi"

# Training on top of a message layer that passes under both vendors meets no vendor any more, so only what
# calls MPI runs twice.
FOLDERS = {
    "mpich": ["."],
    "openmpi": ["message", "exchange"],
}
RANKS = {"mpich": (1, 2, 3, 4), "openmpi": (1, 2, 3, 4)}

JOB_LIMIT_S = 420.0


@pytest.mark.parametrize(
    ("vendor", "ranks"),
    [(vendor, ranks) for vendor, counts in RANKS.items() for ranks in counts],
    ids=lambda value: str(value),
)
def test_every_rank_passes(vendor: str, ranks: int, tmp_path: Path) -> None:
    folders = [MPI / name for name in FOLDERS[vendor] if (MPI / name).exists()]
    arguments = ["-m", "pytest", "-q", "--color=no", "-p", "no:cacheprovider", *folders]
    reports = tmp_path / "reports"
    reports.mkdir()
    result = mpiexec(
        ranks,
        arguments,
        vendor=vendor,
        timeout=JOB_LIMIT_S,
        env={"WEFT_RANK_REPORTS": str(reports)},
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
