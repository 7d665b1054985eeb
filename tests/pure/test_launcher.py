"""How a command is typed that starts as many ranks again."""

from __future__ import annotations

import pytest

from weft.runtime.launcher import as_launched

STEP = {"SLURM_STEP_NUM_TASKS": "4", "SLURM_MPI_TYPE": "pmi2", "PMI_SIZE": "4"}

WAYS = {
    "one rank needs no launcher": ({}, 1, "weft train"),
    "one rank of srun, neither": ({**STEP, "SLURM_STEP_NUM_TASKS": "1"}, 1, "weft train"),
    "MPICH's mpirun": ({"MPI_LOCALNRANKS": "4"}, 4, "mpirun -n 4 weft train"),
    "Open MPI's": ({"OMPI_COMM_WORLD_SIZE": "4"}, 4, "mpirun -n 4 weft train"),
    "srun": (STEP, 4, "srun --mpi=pmi2 -n 4 weft train"),
    "srun that tells no kind": ({"SLURM_STEP_NUM_TASKS": "4"}, 4, "srun -n 4 weft train"),
    "MPICH's mpirun in a batch job": ({**STEP, "MPI_LOCALNRANKS": "1"}, 4, "mpirun -n 4 weft train"),
    "Open MPI's in a batch job": (
        {"SLURM_STEP_NUM_TASKS": "2", "OMPI_COMM_WORLD_SIZE": "4"},
        4,
        "mpirun -n 4 weft train",
    ),
}


@pytest.mark.parametrize(("told", "ranks", "typed"), WAYS.values(), ids=WAYS)
def test_a_command_is_typed_as_it_was_launched(told, ranks, typed, monkeypatch):
    for name in ("SLURM_STEP_NUM_TASKS", "SLURM_MPI_TYPE", "OMPI_COMM_WORLD_SIZE", "MPI_LOCALNRANKS"):
        monkeypatch.delenv(name, raising=False)
    for name, value in told.items():
        monkeypatch.setenv(name, value)
    assert as_launched("weft train", ranks) == typed
