"""The plugin of the ranks: what a test run under mpiexec does when ranks fail, hang or disagree."""

from __future__ import annotations

from pathlib import Path
from subprocess import CompletedProcess

import pytest

from tests.launch import ROOT, VENDORS, mpiexec
from tests.test_under_mpiexec import readable, told

CONFTEST = """
import pytest
from tests import ranks

ranks.GRACE_S = 1.0

@pytest.hookimpl(trylast=True)
def pytest_configure(config):
    config.addinivalue_line("markers", "limit(seconds): time limit")
    ranks.configure(config)
"""

TESTS = """
import os
import pytest
from mpi4py import MPI

comm = MPI.COMM_WORLD
mode = os.environ["MODE"]

def test_first():
    print("heard on", comm.rank)
    if mode == "fails alone":
        assert comm.rank != comm.size - 1, "the last rank"

@pytest.mark.limit(4 if mode == "hangs" else 60)
def test_second():
    if mode == "fails while others wait" and comm.rank == 1:
        raise ValueError("lonely")
    if mode == "hangs" and comm.rank == 0:
        return
    if mode != "passes":
        comm.Barrier()

if mode == "disagrees" and comm.rank == 1:
    def test_third():
        pass
"""


def inner(mode: str, vendor: str, tmp_path: Path) -> tuple[CompletedProcess[str], str]:
    (tmp_path / "conftest.py").write_text(CONFTEST)
    (tmp_path / "test_inner.py").write_text(TESTS)
    result = mpiexec(
        2,
        ["-m", "pytest", "-q", "--color=no", "-p", "no:cacheprovider", f"--rootdir={tmp_path}", tmp_path],
        vendor=vendor,
        timeout=60,
        env={"WEFT_RANK_REPORTS": str(tmp_path), "MODE": mode},
        cwd=ROOT,
    )
    return result, told(tmp_path)


@pytest.mark.parametrize("vendor", VENDORS)
@pytest.mark.parametrize(
    ("mode", "status", "words"),
    [
        ("passes", 0, []),
        ("fails alone", 1, ["[rank 1 of 2] FAILED", "the last rank", "heard on 1"]),
        (
            "fails while others wait",
            None,
            ["ValueError: lonely", "rank 1 and the other ranks do not", "test_second"],
        ),
        ("hangs", None, ["test_second did not end within 4 s", "in test_second"]),
        ("disagrees", None, ["ranks collected different tests", "test_third"]),
    ],
    ids=["passes", "fails alone", "fails while others wait", "hangs", "disagrees"],
)
def test_a_run_on_two_ranks_that(
    mode: str, status: int | None, words: list[str], vendor: str, tmp_path: Path
) -> None:
    result, reports = inner(mode, vendor, tmp_path)
    assert result.returncode == status or (status is None and result.returncode != 0), result
    for word in words:
        assert word in reports


def test_stacks_are_shown_without_the_frames_of_pytest():
    text = "\n".join(
        [
            "Thread 0x1 (most recent call first):",
            '  File "/lib/python3.11/threading.py", line 331 in wait',
            "",
            "Current thread 0x2 (most recent call first):",
            '  File "/src/tests/mpi/test_a.py", line 3 in test_a',
            '  File "/x/site-packages/_pytest/python.py", line 187 in pytest_pyfunc_call',
        ]
    )
    assert readable(text).split("\n") == [
        "",
        "Current thread 0x2 (most recent call first):",
        '  File "/src/tests/mpi/test_a.py", line 3 in test_a',
    ]
