"""What launchers tell a rank in the environment: which one it is, before MPI starts, and who launched it."""

from __future__ import annotations

import os

RANKS = ("OMPI_COMM_WORLD_RANK", "PMI_RANK", "PMIX_RANK", "SLURM_PROCID")

HEAD_START_S = 0.5
"""How long the other ranks wait before they exit with a failure: a launcher kills all ranks as soon as one
fails, and rank 0 may not have written its message by then."""


MPIRUN = ("OMPI_COMM_WORLD_SIZE", "MPI_LOCALNRANKS")
"""What the mpirun of Open MPI and of MPICH tell every rank, and srun none."""


def as_launched(command: str, ranks: int) -> str:
    """`command` as one types it to start as many ranks again, by what has started these.

    In a batch job mpirun, too, starts its processes by srun, one a node, whose variables ranks then have.
    """
    if ranks == 1:
        return command
    if os.environ.get("SLURM_STEP_NUM_TASKS") != str(ranks) or any(name in os.environ for name in MPIRUN):
        return f"mpirun -n {ranks} {command}"
    kind = os.environ.get("SLURM_MPI_TYPE", "")
    return f"srun {kind and f'--mpi={kind} '}-n {ranks} {command}"


def launcher_rank() -> int | None:
    """The rank that a launcher announces; None without one."""
    return next((int(os.environ[name]) for name in RANKS if name in os.environ), None)
