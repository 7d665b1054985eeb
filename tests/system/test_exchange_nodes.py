"""The exchange between hosts of unequal rank counts: three ranks on one, one on the other, a link between.

Some of the cases that tests/test_under_mpiexec.py has on emulated nodes of two, one and one; over a link that
is real each takes longer.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.network import missing
from tests import launch

TESTS = ["tests/mpi/exchange/test_nodes.py", "tests/mpi/train/test_same_answer.py"]
WHICH = "latest or nodes or clipping or owner"
RIG = "bench.hosts --hosts 2 --rate 1gbit --ranks-per-host 3,1 --expect-bytes 1e6 --"


@pytest.mark.parametrize("vendor", launch.VENDORS)
def test_hosts_of_three_ranks_and_one_give_the_same_answer(vendor: str, tmp_path: Path) -> None:
    lacking = missing()
    launch.requires(lacking is None, str(lacking))
    tests = ["-m", "pytest", "-q", "-k", WHICH, "-p", "no:cacheprovider", *(launch.ROOT / t for t in TESTS)]
    job = launch.run(
        [launch.python(vendor), "-m", *RIG.split(), "python", *tests],
        env=launch.environment(vendor, {"WEFT_NODES": "3+1", "WEFT_RANK_REPORTS": str(tmp_path)}),
        cwd=launch.ROOT,
        timeout=240,
    )
    told = "\n".join(path.read_text() for path in sorted(tmp_path.glob("rank-*.txt")))
    assert job.returncode == 0, f"{told}\n{job.stdout}\n{job.stderr}"
