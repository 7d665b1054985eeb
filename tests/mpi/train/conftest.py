"""What the tests of training on several ranks share."""

from pathlib import Path

import pytest
from mpi4py import MPI


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Rank 0's: the job, and so the folder in it, must be the same on all ranks."""
    return Path(MPI.COMM_WORLD.bcast(str(tmp_path)))
