"""What the kernel's files say of a container's part of the cores."""

from __future__ import annotations

from math import inf
from pathlib import Path

import pytest

from weft.runtime.message.quota import quota_cores


@pytest.mark.parametrize(
    ("cgroup", "files", "cores"),
    [
        pytest.param(
            "0::/\n", {"cpu.max": "200000 100000\n"}, 2.0, id="a container sees its own as the root"
        ),
        pytest.param("0::/a/b\n", {"a/b/cpu.max": "50000 100000"}, 0.5, id="half a core"),
        pytest.param(
            "0::/a/b\n",
            {"a/b/cpu.max": "max 100000", "a/cpu.max": "300000 100000"},
            3.0,
            id="that of a group above counts",
        ),
        pytest.param(
            "0::/a/b\n",
            {"a/b/cpu.max": "400000 100000", "a/cpu.max": "150000 100000"},
            1.5,
            id="the least counts",
        ),
        pytest.param("0::/a\n", {"a/cpu.max": "max 100000"}, inf, id="no quota"),
        pytest.param(
            "5:memory:/c\n3:cpu,cpuacct:/c\n0::/\n",
            {"cpu,cpuacct/c/cpu.cfs_quota_us": "100000\n", "cpu,cpuacct/c/cpu.cfs_period_us": "50000\n"},
            2.0,
            id="the older kind of groups",
        ),
        pytest.param(
            "3:cpu,cpuacct:/docker/0123\n",
            {"cpu,cpuacct/cpu.cfs_quota_us": "250000", "cpu,cpuacct/cpu.cfs_period_us": "100000"},
            2.5,
            id="in a container its own folder has another name",
        ),
        pytest.param(
            "4:cpuacct,cpu:/docker/0123\n",
            {"cpu/cpu.cfs_quota_us": "200000", "cpu/cpu.cfs_period_us": "100000"},
            2.0,
            id="mounted with its controllers in another order, as CentOS 7 does",
        ),
        pytest.param(
            "1:cpu:/\n",
            {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"},
            inf,
            id="no quota, as the older kind says it",
        ),
        pytest.param("2:cpuacct:/\n1:cpuset:/\n", {}, inf, id="groups for something else"),
        pytest.param(None, {}, inf, id="no groups, or no Linux"),
    ],
)
def test_the_quota_is_read_where_the_kernel_says_it(
    cgroup: str | None, files: dict[str, str], cores: float, tmp_path: Path
) -> None:
    if cgroup is not None:
        (tmp_path / "cgroup").write_text(cgroup)
    for name, text in files.items():
        (tmp_path / "fs" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "fs" / name).write_text(text)
    assert quota_cores(tmp_path / "cgroup", tmp_path / "fs") == cores
