"""Training that fails on one rank ends on all of them, says why, and leaves no memory behind."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from tests import launch

HOST = socket.gethostname()
RANKS = 3
LAST = RANKS - 1
WAYS = pytest.mark.parametrize("inside", ["shared", "flat"])
VENDORS = pytest.mark.parametrize("vendor", launch.VENDORS)


def run(case: str, inside: str, vendor: str, folder: Path, **more: object):
    """The finished job; whatever happened, none of the memory that its ranks shared still has a name."""
    program = ["-m", "tests.system.exchange_faulty", case, inside, folder]
    result = launch.mpiexec(
        int(more.pop("ranks", RANKS)), program, vendor=vendor, cwd=launch.ROOT, timeout=60, **more
    )
    segments = [name for path in folder.glob("segments-*") for name in path.read_text().split()]
    assert [name for name in segments if Path(name).exists()] == [], result.stderr
    return result


@VENDORS
@WAYS
def test_training_leaves_neither_memory_nor_communicators(vendor: str, inside: str, tmp_path: Path) -> None:
    result = run("all_is_well", inside, vendor, tmp_path)
    assert result.returncode == 0, result.stderr
    assert result.stdout.count(f"shares memory: {inside == 'shared'}") == RANKS
    left = [path.read_text() for path in tmp_path.glob("left-*")]
    assert left == ["[]"] * RANKS


@VENDORS
@WAYS
def test_a_kernel_that_raises_ends_all_ranks(vendor: str, inside: str, tmp_path: Path) -> None:
    result = run("a_kernel_raises", inside, vendor, tmp_path)
    assert result.returncode == 1, result.stderr
    assert f"weft: rank {LAST} of {RANKS} on {HOST} failed in main:" in result.stderr
    assert result.stderr.count("ZeroDivisionError: the test's own") == 1
    assert result.stderr.count("Traceback (most recent call last)") == 1


@VENDORS
def test_a_kernel_that_raises_in_another_ranks_place_ends_all_ranks(vendor: str, tmp_path: Path) -> None:
    result = run("a_stolen_kernel_raises", "shared", vendor, tmp_path)
    assert result.returncode == 1, result.stderr
    assert "ZeroDivisionError: the test's own" in result.stderr
    assert "of 3 on" in result.stderr


@VENDORS
@WAYS
def test_a_killed_rank_ends_all_ranks(vendor: str, inside: str, tmp_path: Path) -> None:
    result = run("a_rank_is_killed", inside, vendor, tmp_path)
    assert result.returncode == {"mpich": 9, "openmpi": 137}[vendor], result.stderr


def mixed_up(rank: int, number: int, group: str, other: int) -> str:
    """What is said of rank `rank`, whose first step has layer "one"'s blocks in the other order."""
    mine, theirs = "tiny: step 1, portion 2 (one rows 0-47)", "tiny: step 1, portion 1 (one rows 48-95)"
    return (
        f"weft: rank {rank} ({HOST}) called \"{mine}\" as collective {number} on 'world/{group}',"
        f' where rank {other} ({HOST}) called "{theirs}"'
    )


@VENDORS
def test_an_order_that_differs_is_named(vendor: str, tmp_path: Path) -> None:
    mixed = run("the_order_differs", "flat", vendor, tmp_path)
    assert mixed.returncode == 2, mixed.stderr
    assert mixed_up(LAST, 3, "training", 0) in mixed.stderr


def test_an_order_that_differs_between_nodes_is_named(tmp_path: Path) -> None:
    nodes = {"MPIR_CVAR_NUM_CLIQUES": "2"}
    mixed = run("the_order_differs", "shared", "mpich", tmp_path, ranks=4, env=nodes)
    assert mixed.returncode == 2, mixed.stderr
    assert mixed_up(3, 2, "peers", 2) in mixed.stderr
