"""How much time of its cores a container may use: the kernel's quota, of which an affinity mask says nothing.

    docker run --cpus=2, Kubernetes' limits, systemd's CPUQuota     cgroup v2: cpu.max "200000 100000"
                                                                    cgroup v1: cpu.cfs_quota_us, ..._period_us

On 64 cores of which it had two's time, each of two ranks gave BLAS 32 threads, which the kernel then stopped
for most of every tenth of a second, and both watched for messages without sleeping.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import inf
from pathlib import Path

CGROUP = Path("/proc/self/cgroup")
MOUNT = Path("/sys/fs/cgroup")


def quota_cores(cgroup: Path = CGROUP, mount: Path = MOUNT) -> float:
    """The cores that this process may keep busy by the least quota over it; infinite where there is none."""
    try:
        lines = cgroup.read_text().splitlines()
    except (OSError, UnicodeDecodeError):
        return inf
    least = inf
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            for folder in _upwards(mount, path):
                quota, _, period = _text(folder / "cpu.max").partition(" ")
                least = min(least, _cores(quota, period))
        elif "cpu" in controllers.split(","):
            # CentOS 7 says "cpuacct,cpu" of what is mounted as "cpu,cpuacct"; "cpu" is a link to either.
            for place in (controllers, "cpu"):
                for folder in _upwards(mount / place, path):
                    quota, period = _text(folder / "cpu.cfs_quota_us"), _text(folder / "cpu.cfs_period_us")
                    least = min(least, _cores(quota, period))
    return least


def _upwards(mount: Path, path: str) -> Iterator[Path]:
    """The folder of a cgroup and of those above it: in a container some of them may not be there."""
    folder = mount / path.strip("/")
    yield folder
    while folder != mount and mount in folder.parents:
        folder = folder.parent
        yield folder


def _text(file: Path) -> str:
    try:
        return file.read_text().strip()
    except (OSError, UnicodeDecodeError):
        return ""


def _cores(quota: str, period: str) -> float:
    # "max", -1 or nothing: no quota
    return int(quota) / int(period) if quota.isdigit() and period.isdigit() and int(period) else inf
