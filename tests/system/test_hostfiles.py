"""The hostfiles are what the launchers take; which runs a turn of the requeued batch job trains."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from subprocess import CompletedProcess

import pytest

from tests.launch import ROOT, environment, python, run
from weft.runtime.observe import Metrics

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


# In place of Slurm's: srun says what it was to start, and ends as a training that a signal has stopped.
SRUN = """#!/bin/sh
while [ "${1#-}" != "$1" ]; do shift; done
printf '<%s>' "$@"
if [ -n "$WRITES" ]; then touch "$WRITES"; fi
exit $STATUS
"""
SCONTROL = """#!/bin/sh
if [ "$1" = show ]; then echo "   RunTime=00:00:01 TimeLimit=$LIMIT TimeMin=N/A"; else echo " then $*"; fi
"""

FAILED = -1  # in place of a number of checkpoints: there is none, and the metrics tell of a failure


def turn(
    folder: Path,
    *arguments: str,
    status: int = 128 + signal.SIGTERM,
    limit: str = "01:00:00",
    restarts: int = 0,
    writes: str = "",
    **variables: str,
) -> CompletedProcess[str]:
    """Run the script with `folder` as the working folder; training writes a file, and ends so."""
    for name, text in (("srun", SRUN), ("scontrol", SCONTROL)):
        program = folder / "bin" / name
        program.parent.mkdir(exist_ok=True)
        program.write_text(text)
        program.chmod(0o755)
    shell = {**os.environ, "PATH": f"{folder / 'bin'}:{os.environ['PATH']}"}
    shell |= {"SLURM_JOB_ID": "7", "STATUS": str(status), "LIMIT": limit, "WRITES": writes}
    shell |= {"SLURM_RESTART_COUNT": str(restarts)} if restarts else {}
    shell |= variables
    return run(["bash", ROOT / "hostfiles" / "slurm-requeue.sh", *arguments], env=shell, cwd=folder)


@pytest.mark.parametrize(
    ("status", "requeued"),
    [(0, False), (1, False), (128 + signal.SIGKILL, False), (128 + signal.SIGUSR1, True)],
    ids=["it is done", "it failed", "it was killed", "the warning was SIGUSR1, which leaves more time"],
)
def test_when_the_batch_job_goes_back_to_the_queue(tmp_path: Path, status, requeued):
    result = turn(tmp_path, "a.toml", status=status)
    assert result.returncode == status
    assert result.stdout.endswith("then requeue 7\n") == requeued


def test_of_an_array_one_task_goes_back_to_the_queue(tmp_path: Path):
    """Slurm takes the number of the whole array for one of its tasks, too: that took all others with it."""
    result = turn(tmp_path, "a.toml", SLURM_ARRAY_JOB_ID="7", SLURM_ARRAY_TASK_ID="3")
    assert result.stdout.endswith("<runs/7> then requeue 7_3\n"), result


@pytest.mark.parametrize(
    ("held", "arguments", "trained"),
    [
        ({}, ["my job.toml"], "<my job.toml><--folder><runs/7>"),
        ({"a-1": 2}, ["a.toml"], "<--resume><runs/7/a-1>"),
        (
            {"a-1": 1, "b-1": 1},
            ["a.toml", "b.toml"],
            "<--resume><runs/7/a-1><--resume><runs/7/b-1>",
        ),
        ({"a-1": 1, "b-1": 0}, ["a.toml", "b.toml"], "<a.toml><b.toml><--folder><runs/7>"),
        ({"a-1": 1, "b-1": FAILED}, ["a.toml", "b.toml"], "<--resume><runs/7/a-1>"),
        ({}, ["--resume", "runs/old"], "<--resume><runs/old>"),
        ({}, ["--resume=runs/old"], "<--resume=runs/old>"),
    ],
    ids=[
        "the first begins a run",
        "the next resumes it",
        "of several runs all are resumed",
        "all begin anew where one has no checkpoint",
        "but not where it failed before its first one: what the others have trained is not thrown away",
        "a run that was begun elsewhere is resumed where it is",
        "and so it is however the option was written",
    ],
)
def test_what_a_turn_of_the_requeued_batch_job_trains(tmp_path: Path, held, arguments, trained):
    for name, count in held.items():
        folder = tmp_path / "runs" / "7" / name / "checkpoints"
        folder.mkdir(parents=True)
        for step in range(count):
            (folder / f"step-{step:08d}.safetensors").touch()
        with Metrics(folder.parent / "metrics.jsonl") as metrics:
            metrics.write(kind="start", step=0, ranks=2)
            if count == FAILED:
                metrics.write(kind="end", step=3, reason="failed: its loss became nan in step 2")
    result = turn(tmp_path, *arguments)
    assert result.stdout == f"<weft><train>{trained} then requeue 7\n", result
    assert result.returncode == 143
    kept = sorted(path.parent.parent.name for path in tmp_path.glob("runs/*/*/checkpoints/step-*"))
    assert kept == sorted(name for name, count in held.items() for _ in range(count))


@pytest.mark.parametrize("limit", ["00:01:00", "00:00:30", "00:01:59"])
def test_turns_that_are_over_as_soon_as_they_begin_are_refused(tmp_path: Path, limit):
    result = turn(tmp_path, "a.toml", limit=limit)
    assert (result.returncode, result.stdout) == (1, "")
    assert "sbatch --time=MINUTES" in result.stderr


@pytest.mark.parametrize("limit", ["00:02:00", "01:00:00", "1-00:01:00", "UNLIMITED"])
def test_turns_with_a_limit_of(tmp_path: Path, limit):
    assert turn(tmp_path, "a.toml", limit=limit).stdout.endswith("then requeue 7\n")


@pytest.mark.parametrize(
    ("run", "arguments", "on"),
    [
        ("runs/7/a-1", ["a.toml"], "--resume runs/7/a-1"),
        ("runs/old", ["--resume", "runs/old"], "--resume runs/old"),
        ("runs/old", ["--resume=runs/old"], "--resume=runs/old"),
    ],
    ids=["its own run", "a run that was begun elsewhere", "however the option was written"],
)
def test_a_turn_that_gets_no_further_is_the_last(tmp_path: Path, run, arguments, on):
    """It went back to the queue for ever, and nobody was told."""
    folder = tmp_path / run / "checkpoints"
    folder.mkdir(parents=True)
    (folder / "step-00000003.safetensors").touch()
    first = turn(tmp_path, *arguments)
    assert first.stdout.endswith("then requeue 7\n"), "of the first turn nobody knows that it was usual"
    further = turn(tmp_path, *arguments, restarts=1, writes=f"{run}/checkpoints/step-00000009.safetensors")
    assert further.stdout.endswith("then requeue 7\n")
    again = turn(tmp_path, *arguments, restarts=2)
    assert again.returncode == 1
    assert "requeue" not in again.stdout
    assert "before a step was done" in again.stderr
    assert again.stderr.endswith(f"slurm-requeue.sh {on}\n")
