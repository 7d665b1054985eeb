"""Weft as a batch job: the script of hostfiles/ through sbatch, on two nodes of a real Slurm."""

from __future__ import annotations

import json
import os
import re
import signal
import urllib.error
import urllib.request
from collections.abc import Iterator

import pytest

from tests.launch import RANK_SETTINGS, ROOT, python, run
from tests.system.slurm import Cluster, Job, require_slurm

WORLD = """
import os
from mpi4py import MPI

world = MPI.COMM_WORLD
node = world.Split_type(MPI.COMM_TYPE_SHARED)
here = os.environ["SLURMD_NODENAME"]
os.write(1, f"rank {world.rank} of {world.size} on {here}, {node.size} there\\n".encode())
"""


JOB = """
data = { source = "digits" }
model.layers = [{ kernel = "flatten" }, { kernel = "dense", features = 10 }]
train = { batch = 32, steps = 10, optimizer = { name = "sgd", rate = 0.01 } }
"""


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    require_slurm()
    with Cluster(tmp_path_factory.mktemp("slurm")) as started:
        yield started


# With UCX, MPICH hands its long addresses to Slurm in nine lines of up to about 1 KB, and Slurm 22.05 once
# read one of them in two pieces: 1 of 67 starts hung, "value not properly terminated in client request".
# An address of libfabric's TCP is one line of 65 bytes. (With MPIR_CVAR_PMI_VERSION=2 no start succeeded.)
NETWORK = {"MPIR_CVAR_CH4_NETMOD": "ofi", "FI_PROVIDER": "tcp"}


def user(vendor: str = "mpich") -> dict[str, str]:
    """What a user's shell holds after `source .venv/bin/activate`."""
    folder = python(vendor).parent
    return {
        **RANK_SETTINGS[vendor],
        "PATH": f"{folder}:{os.environ['PATH']}",
        "VIRTUAL_ENV": str(folder.parent),
    }


def explain(job: Job, cluster: Cluster) -> str:
    return f"{job.shown}\n===== output\n{job.output}\n{cluster.logs()}"


@pytest.mark.parametrize(
    ("vendor", "launcher"),
    [("mpich", "srun --mpi=pmi2"), ("mpich", "mpirun"), ("openmpi", "mpirun")],
    ids=lambda value: value,
)
def test_ranks_on_two_nodes_are_one_world_and_share_no_window(cluster, tmp_path, vendor, launcher):
    (tmp_path / "world.py").write_text(WORLD)
    script = tmp_path / "job.sh"
    script.write_text(f"#!/bin/bash\n{launcher} python world.py\n")
    options = ["--nodes=2", "--ntasks-per-node=2"]
    job = cluster.submit(script, *options, timeout=60, cwd=tmp_path, env=user(vendor))
    assert job.state == "COMPLETED", explain(job, cluster)
    assert sorted(job.output.splitlines()) == [
        "rank 0 of 4 on n1, 2 there",
        "rank 1 of 4 on n1, 2 there",
        "rank 2 of 4 on n2, 2 there",
        "rank 3 of 4 on n2, 2 there",
    ]


@pytest.mark.parametrize("per_node", [1, 2])
def test_r5_the_batch_script_trains_digits_on_two_nodes(cluster, tmp_path, per_node):
    options = [f"--ntasks-per-node={per_node}"] if per_node > 1 else []
    script = ROOT / "hostfiles" / "slurm-digits.sh"
    job = cluster.submit(script, *options, timeout=240, cwd=tmp_path, env=user())
    assert job.state == "COMPLETED", explain(job, cluster)
    assert job.nodes == "n[1-2]"
    ranks = 2 * per_node
    assert re.search(rf"\b{ranks} ranks on 2 nodes\b", job.output), job.output
    accuracy = re.search(r"test accuracy\D*(0\.\d+|1\.0+)", job.output)
    assert accuracy, job.output
    assert float(accuracy[1]) >= 0.97
    assert len(list((tmp_path / "runs").iterdir())) == 1, "every rank made its own run"


def test_a_job_that_runs_out_of_time_goes_back_to_the_queue_and_goes_on(cluster, tmp_path):
    """Slurm's warning is sent by hand here: its own comes a minute before the end."""
    (tmp_path / "job.toml").write_text(JOB)
    script = ROOT / "hostfiles" / "slurm-requeue.sh"
    arguments = ["job.toml", "--set", "train.steps=3000"]

    def warn_once(number: str) -> None:
        rows = [path.read_text() for path in tmp_path.glob("runs/*/*/metrics.jsonl")]
        if rows and rows[0].count('"kind": "step"') > 20 and not warned:
            warned.append(number)
            cluster.command("scancel", "--signal=TERM", number)

    warned: list[str] = []
    job = cluster.submit(
        script, arguments=arguments, timeout=240, cwd=tmp_path, env=user(), meanwhile=warn_once
    )
    assert job.state == "COMPLETED", explain(job, cluster)
    assert warned
    assert job.output.count("stopped by a signal after step") == 1, job.output
    assert re.search(r"3,000 steps of 32, from step \d+ on 2 ranks on 2 nodes", job.output), job.output
    assert "all steps done after step 3000" in job.output
    assert len(list((tmp_path / "runs").glob("*/*"))) == 1


def test_a_rank_that_is_killed_ends_the_job_and_it_does_not_begin_anew(cluster, tmp_path):
    """As by the kernel, for want of memory. The other ranks waited for it until the job's time was up."""
    (tmp_path / "job.toml").write_text(JOB)
    killed: list[int] = []

    def kill_one(number: str) -> None:
        rows = [path.read_text() for path in tmp_path.glob("runs/*/*/metrics.jsonl")]
        if not killed and rows and rows[0].count('"kind": "step"') > 20:
            killed.extend(cluster.tasks(number, rank=1))
            for pid in killed:
                os.kill(pid, signal.SIGKILL)

    job = cluster.submit(
        ROOT / "hostfiles" / "slurm-requeue.sh",
        arguments=["job.toml", "--set", "train.steps=1000000"],
        timeout=120,
        cwd=tmp_path,
        env=user(),
        meanwhile=kill_one,
    )
    assert killed
    assert job.state == "FAILED", explain(job, cluster)
    assert "Restarts=0" in job.shown


# In place of weft: the cores that a rank may use.
CORES = """#!/usr/bin/env python
import os
os.write(1, f"a rank of {len(os.sched_getaffinity(0))} cores\\n".encode())
"""


@pytest.mark.parametrize("script", ["slurm-digits.sh", "slurm-requeue.sh"])
def test_a_rank_gets_the_cores_that_sbatch_was_asked_for_where_ranks_are_bound(cluster, tmp_path, script):
    """srun takes them from its own command line alone, since Slurm 22.05."""
    cores = min(2, os.cpu_count() or 1)
    program = tmp_path / "bin" / "weft"
    program.parent.mkdir()
    program.write_text(CORES)
    program.chmod(0o755)
    shell = {**user(), "SLURM_CPU_BIND": "cores"}
    shell["PATH"] = f"{program.parent}:{shell['PATH']}"
    job = cluster.submit(
        ROOT / "hostfiles" / script, f"--cpus-per-task={cores}", timeout=60, cwd=tmp_path, env=shell
    )
    assert job.state == "COMPLETED", explain(job, cluster)
    assert job.output.splitlines() == [f"a rank of {cores} cores"] * 2


def test_a_job_with_a_wrong_key_is_a_failed_job_whose_output_names_the_key(cluster, tmp_path):
    script = ROOT / "hostfiles" / "slurm-digits.sh"
    wrong = ["--set", "train.epoch=3"]
    job = cluster.submit(script, arguments=wrong, timeout=60, cwd=tmp_path, env=user())
    assert job.state == "FAILED", explain(job, cluster)
    assert "train.epoch" in job.output


def test_the_serving_batch_script_answers_who_has_the_token_until_it_is_stopped(cluster, tmp_path):
    (tmp_path / "job.toml").write_text(JOB)
    weft = python("mpich").parent / "weft"
    trained = run([weft, "train", "job.toml", "--folder", tmp_path / "runs"], cwd=tmp_path)
    assert trained.returncode == 0, trained
    (folder,) = (tmp_path / "runs").iterdir()
    seen: dict[str, object] = {}

    def ask(path: str, token: str = "") -> int:
        request = urllib.request.Request(path, headers={"Authorization": f"Bearer {token}"} if token else {})
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:
                seen["index"] = json.loads(answer.read())
                return int(answer.status)
        except urllib.error.HTTPError as error:
            return error.code

    def stop_when_asked(number: str) -> None:
        output = tmp_path / f"weft-serve-{number}.out"
        told = output.read_text() if output.exists() else ""
        tunnel = re.search(r"ssh -L 8000:\S+:(\d+) ", told)
        if "listening on" in told and tunnel and "stopped" not in seen:
            (held,) = tmp_path.glob("*.token")
            seen["mode"] = held.stat().st_mode & 0o777
            models = f"http://127.0.0.1:{tunnel[1]}/v2/models/job"
            seen["answers"] = ask(models), ask(models, held.read_text().strip())
            seen["stopped"] = cluster.command("scancel", "--signal=TERM", number)

    job = cluster.submit(
        ROOT / "hostfiles" / "slurm-serve.sh",
        arguments=[str(folder)],
        timeout=120,
        cwd=tmp_path,
        env=user(),
        meanwhile=stop_when_asked,
    )
    assert job.state == "COMPLETED", explain(job, cluster)
    assert job.nodes == "n[1-2]"
    assert seen["answers"] == (401, 200), job.output
    assert seen["mode"] == 0o600
    assert not list(tmp_path.glob("*.token"))
