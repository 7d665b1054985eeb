"""The benches of messages and of the event loop, for a moment: figures, also where ranks take no part."""

from __future__ import annotations

import json

import pytest

from tests.launch import ROOT, VENDORS, mpiexec

PINGPONG = ["pingpong", "--repetitions", "1", "--trips", "50", "--megabytes", "1", "--idle", "0.1"]
LOOP = ["loop", "--repetitions", "1", "--seconds", "0.3"]

# Replies of Weft's with one byte changed.
CHANGED = f"""
import bench.__main__, bench.pingpong

serve = bench.pingpong.Channel.serve

def changed(channel, function):
    serve(channel, lambda message: b"x" + function(message)[1:])

bench.pingpong.Channel.serve = changed
raise SystemExit(bench.__main__.main({PINGPONG!r}))
"""

# Large products that are no longer computed behind the first ones.
LAZY = f"""
import bench.__main__, bench.loop
from itertools import count

calls, multiply = count(), bench.loop.Work._multiply_large

def lazy(work):
    if next(calls) < 3:
        multiply(work)

bench.loop.Work._multiply_large = lazy
raise SystemExit(bench.__main__.main({LOOP!r}))
"""


def figures(path) -> dict[str, float]:
    return {name: figure["value"] for name, figure in json.loads(path.read_text())["figures"].items()}


@pytest.mark.parametrize("vendor", VENDORS)
@pytest.mark.parametrize("ranks", [2, 3])
def test_round_trips_are_measured_between_two_ranks_and_others_wait(ranks, vendor, tmp_path):
    path = tmp_path / "out.json"
    result = mpiexec(ranks, ["-m", "bench", *PINGPONG, "--json", path], vendor=vendor, cwd=ROOT)
    assert result.returncode == 0, result
    found = figures(path)
    assert {"rtt_us", "raw_rtt_us", "handler_rtt_us", "rested_rtt_us", "bandwidth_over_raw"} <= set(found)
    assert all(value >= 0 for value in found.values())


def test_a_reply_that_is_another_gives_no_figures():
    result = mpiexec(2, ["-c", CHANGED], cwd=ROOT)
    assert result.returncode != 0
    assert "trip 0 came back as" in result.stderr
    assert "rtt_us" not in result.stdout


@pytest.mark.parametrize("vendor", VENDORS)
def test_a_file_that_cannot_be_written_ends_all_ranks_at_once(vendor, tmp_path):
    """Rank 0 alone knows, and before MPI is up: the other waits for it in MPI_Init."""
    path = tmp_path / "missing" / "out.json"
    result = mpiexec(2, ["-m", "bench", *PINGPONG, "--json", path], vendor=vendor, cwd=ROOT, timeout=60)
    assert result.returncode != 0
    assert f"pingpong: --json {path} cannot be written" in result.stderr


@pytest.mark.parametrize("ranks", [1, 3])
def test_the_loops_lag_is_measured_while_the_lane_computes(ranks, tmp_path):
    path = tmp_path / "out.json"
    result = mpiexec(ranks, ["-m", "bench", *LOOP, "--json", path], cwd=ROOT)
    assert result.returncode == 0, result
    found = figures(path)
    assert found["lag_p50_ms"] <= found["lag_p99_ms"] <= found["lag_max_ms"]
    assert found["lane_over_alone"] > 0


def test_kernels_that_compute_no_longer_give_no_figures():
    result = mpiexec(1, ["-c", LAZY], cwd=ROOT)
    assert result.returncode != 0
    assert "a large product is wrong" in result.stderr
    assert "lag_p99_ms" not in result.stdout
