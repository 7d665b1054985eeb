"""What a launcher tells a rank in the environment, before MPI starts: which one it is."""

from __future__ import annotations

import os

RANKS = ("OMPI_COMM_WORLD_RANK", "PMI_RANK", "PMIX_RANK", "SLURM_PROCID")

HEAD_START_S = 0.5
"""How long the other ranks wait before they exit with a failure: a launcher kills all ranks as soon as one
fails, and rank 0 may not have written its message by then."""


def launcher_rank() -> int | None:
    """The rank that a launcher announces; None without one."""
    return next((int(os.environ[name]) for name in RANKS if name in os.environ), None)
