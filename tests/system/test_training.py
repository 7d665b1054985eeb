"""Whole runs of `weft train` under a launcher: resumed, stopped, failing, and told apart."""

from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from tests.launch import environment, launcher, mpiexec, python, run
from tests.system.small import JOB, WEFT, final_tensors, run_folder, train
from weft.runtime.observe import Metrics


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], tuple[Path, Path]]:
    """On so many ranks, once: the folders of a run and of one that was shorter."""

    @cache
    def on(ranks: int) -> tuple[Path, Path]:
        folder = tmp_path_factory.mktemp("runs")
        (folder / "small.toml").write_text(JOB)
        whole = train(ranks, "small.toml", folder=folder)
        assert whole.returncode == 0, whole.stderr
        # A constant rate, so that a shorter run is a beginning of the longer.
        first = train(ranks, "small.toml", "--set", "train.steps=17", folder=folder)
        assert first.returncode == 0, first.stderr
        return folder / run_folder(whole.stdout), folder / run_folder(first.stdout)

    return on


@pytest.mark.parametrize(("before", "after"), [(2, 2), (2, 3), (3, 1)])
def test_a_resumed_run_ends_where_an_unbroken_one_does(before, after, runs, tmp_path):
    """Optimizer, dropout, data order and batch norm's statistics go on; to the bit on as many ranks."""
    whole, first = runs(before)
    broken = shutil.copytree(first, tmp_path / first.name)
    second = train(after, "--resume", broken, "--set", "train.epochs=2", folder=tmp_path)
    assert second.returncode == 0, second.stderr
    assert "from step 17" in second.stdout
    expected, found = final_tensors(whole), final_tensors(broken)
    assert expected.keys() == found.keys()
    for name, tensor in expected.items():
        if before == after:
            np.testing.assert_array_equal(found[name], tensor, err_msg=name)
        elif name == "weight/dense_1.weight":
            np.testing.assert_allclose(found[name], tensor, rtol=1e-2, atol=1e-3, err_msg=name)


def test_a_resume_with_another_job_names_what_differs(job, tmp_path):
    first = train(1, job, "--set", "train.steps=2", folder=tmp_path)
    other = train(2, "--resume", run_folder(first.stdout), "--set", "train.batch=50", folder=tmp_path)
    assert other.returncode == 2
    assert other.stderr.count("train.batch was 60, is 50") == 1, other.stderr


CHANGING = """
from weft.runtime.graph import Builder

def {name}(sample):
    b = Builder()
    hidden = b("{kernel}", b("dense", b("flatten", b.input("x", sample.shape)), features=8), name="between")
    return b.build(b("dense", hidden, features=10))
"""


def test_a_function_that_returns_another_model_is_not_resumed(job, tmp_path):
    """Although its weights have the same names and shapes; a function that has only moved goes on."""
    (tmp_path / "mine.py").write_text(CHANGING.format(name="build", kernel="relu"))
    python = ("--set", "model.python=mine:build")
    run = run_folder(train(1, job, *python, "--set", "train.steps=2", folder=tmp_path).stdout)
    (tmp_path / "mine.py").write_text(CHANGING.format(name="build", kernel="tanh"))
    changed = train(2, "--resume", run, "--set", "train.steps=4", folder=tmp_path)
    assert changed.returncode == 2
    assert 'node.between was "relu() of dense_1", is "tanh() of dense_1"' in changed.stderr
    (tmp_path / "yours.py").write_text(CHANGING.format(name="same", kernel="relu"))
    moved = ("--set", "model.python=yours:same", "--set", "train.steps=4")
    found = train(2, "--resume", run, *moved, folder=tmp_path)
    assert found.returncode == 0, found.stderr


def test_a_run_whose_data_has_moved_goes_on_where_that_is_named(job, tmp_path):
    before, after = tmp_path / "before.npz", tmp_path / "after.npz"
    draw = np.random.default_rng(1)
    np.savez(before, x=draw.random((200, 1, 8, 8), np.float32), y=draw.integers(0, 10, 200))
    job.write_text(JOB.replace('"digits"', '"npz", path = "before.npz"'))
    run = run_folder(train(1, job, "--set", "train.steps=2", folder=tmp_path).stdout)
    before.rename(after)
    lost = train(2, "--resume", run, "--set", "train.steps=4", folder=tmp_path)
    assert lost.returncode == 2
    assert "before.npz: there is no such file" in lost.stderr
    assert "If the data has moved, say where it is: --set data.path=FILE" in lost.stderr
    found = train(
        2, "--resume", run, "--set", "train.steps=4", "--set", f"data.path={after}", folder=tmp_path
    )
    assert found.returncode == 0, found.stderr
    again = train(1, "--resume", run, folder=tmp_path)  # the run remembers where
    assert again.returncode == 0, again.stderr
    assert "all steps were done before" in again.stdout


def test_a_run_that_another_process_trains_is_left_alone(job, tmp_path):
    run = tmp_path / run_folder(train(1, job, "--set", "train.steps=2", folder=tmp_path).stdout)
    before = (run / "job.toml").read_text()
    with Metrics(run / "metrics.jsonl"):
        second = train(2, "--resume", run, "--set", "train.steps=4", folder=tmp_path)
    assert second.returncode == 2
    assert f"{run}: another process trains this run; let it end, or end it" in second.stderr
    assert "Traceback" not in second.stderr
    assert (run / "job.toml").read_text() == before


def test_what_a_longer_run_does_to_its_rate_is_said(job, tmp_path):
    cosine = 'train.schedule={name="cosine"}'
    first = train(1, job, "--set", "train.steps=10", "--set", cosine, folder=tmp_path)
    longer = train(1, "--resume", run_folder(first.stdout), "--set", "train.steps=20", folder=tmp_path)
    assert "small: the schedule is now of 20 steps, not 10: the rate goes on from 0.000245 with 0.005" in (
        longer.stdout
    )
    assert "the schedule is now" not in first.stdout


@pytest.mark.parametrize("models", [1, 2])
def test_what_a_run_can_do_without_is_missed_and_said_where_the_disk_is_full(models, job, tmp_path):
    names = [job, tmp_path / "other.toml"][:models]
    names[-1].write_text(JOB.replace('name = "small"', 'name = "other"'))
    first = train(2, *names, "--set", "train.steps=2", folder=tmp_path)
    runs = sorted(tmp_path.glob("runs/*"))
    full = runs[0] / "trace.json.partial"
    full.symlink_to("/dev/full")
    resumes = [word for run in runs for word in ("--resume", run)]
    second = train(2, *resumes, "--set", "train.steps=4", folder=tmp_path)
    assert (first.returncode, second.returncode) == (0, 0), second.stderr
    assert (
        f"weft: {runs[0] / 'trace.json'}: cannot be written: No space left on device; the run goes on without"
        in second.stderr
    )
    assert not full.is_symlink()
    for folder in runs:
        assert f"stored in {folder}" in second.stdout
        assert (folder / "checkpoints" / "step-00000004.safetensors").is_file()


# Open MPI leaves half a second after the other two, and drops what is printed in it (message/signals.py).
@pytest.mark.parametrize(
    ("vendor", "number"),
    [
        ("mpich", signal.SIGTERM),
        ("mpich", signal.SIGINT),
        ("mpich", signal.SIGUSR1),
        ("openmpi", signal.SIGUSR1),
    ],
)
def test_a_signal_ends_the_run_with_a_checkpoint(vendor, number, job, tmp_path):
    command = [
        *launcher(2, vendor),
        str(python(vendor)),
        *WEFT,
        "train",
        str(job),
        "--set",
        "train.epochs=100000",
    ]
    with subprocess.Popen(
        command, env=environment(vendor), cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        text=True, start_new_session=True,
    ) as process:  # fmt: skip
        try:
            assert process.stdout is not None
            output = ""
            for line in process.stdout:
                output += line
                if "validation" in line:
                    break
            process.send_signal(number)
            rest, _ = process.communicate(timeout=60)
        finally:
            process.kill()
    output += rest
    assert "stopped by a signal" in output, output
    assert process.returncode not in (0, 1), output
    folder = tmp_path / run_folder(output)
    stopped = int(re.search(r"stopped by a signal after step (\d+)", output)[1])
    checkpoint = folder / "checkpoints" / f"step-{stopped:08d}.safetensors"
    # Written first: the trace takes longer than Open MPI leaves after SIGTERM.
    assert checkpoint.stat().st_mtime_ns <= (folder / "trace.json").stat().st_mtime_ns
    resumed = train(
        2, "--resume", folder, "--set", f"train.steps={stopped + 3}", folder=tmp_path, vendor=vendor
    )
    assert resumed.returncode == 0, resumed.stderr
    assert f"from step {stopped}" in resumed.stdout


FAILING = """
import os
from dataclasses import dataclass
from typing import ClassVar

from weft.kernels.kernel import Cost, Kernel
from weft.runtime.graph import Builder, Graph, Node


@dataclass(frozen=True, slots=True)
class Failing(Kernel):
    name: ClassVar[str] = "failing"
    calls: ClassVar[list] = []

    def output(self, *inputs):
        return inputs[0]

    def cost(self, *inputs):
        return Cost(0, 0, 0, 0)

    def forward(self, b, mode):
        self.calls.append(1)
        rank = os.environ.get("PMI_RANK") or os.environ.get("OMPI_COMM_WORLD_RANK")
        if rank == "1" and len(self.calls) == 20:
            raise ArithmeticError("the kernel's own words")
        b.output[...] = b.inputs[0]

    def input_gradient(self, b, mode):
        b.input_gradients[0][...] = b.output_gradient


def model(sample):
    b = Builder()
    dense = b("dense", b("flatten", b.input("x", sample.shape)), features=10)
    graph = b.build(dense)
    return Graph(graph.inputs, (*graph.nodes, Node("bad", Failing(), (dense,))), ("bad",))
"""


@pytest.mark.parametrize("vendor", ["mpich", "openmpi"])
def test_an_exception_in_a_kernel_ends_all_ranks_with_its_traceback(vendor, job, tmp_path):
    (tmp_path / "failing.py").write_text(FAILING)
    changes = ["--set", "model.python=failing:model", "--set", "train.epochs=1000"]
    result = train(3, job, *changes, folder=tmp_path, vendor=vendor)
    assert result.returncode not in (0, None)
    assert result.stderr.count("ArithmeticError: the kernel's own words") == 1, result.stderr
    assert "rank 1 of 3" in result.stderr
    assert "failing.py" in result.stderr
    (metrics,) = tmp_path.glob("runs/*/metrics.jsonl")
    steps = [json.loads(line)["step"] for line in metrics.read_text().splitlines()]
    assert max(steps) <= 20, "it went on after the twentieth call"


def test_ranks_with_different_jobs_are_told_apart_at_the_start(job, tmp_path):
    other = tmp_path / "other.toml"
    other.write_text(JOB.replace("seed = 5", "seed = 6"))
    program = [str(python()), *WEFT, "train"]
    result = subprocess.run(
        [*launcher(1), *program, str(job), ":", "-n", "2", *program, str(other)],
        env=environment("mpich"), cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert result.returncode != 0
    assert result.stderr.count("do not hold the same job") == 1, result.stderr
    assert not (tmp_path / "runs").exists()


SETS = """
from weft.runtime.graph import Builder

def build(sample):
    import os
    rank = int(os.environ["PMI_RANK"])
    b = Builder()
    h = b("flatten", b.input("x", sample.shape, sample.dtype))
    for name in ("one", "two") if rank == 0 else ("two", "one"):
        h = b("dense", h, features=8, name=name)
    return b.build(b("dense", h, features=10, name="last"))
"""


@pytest.mark.parametrize("inside", ["shared", "flat"])
def test_ranks_that_would_train_different_models_are_refused(inside, tmp_path):
    (tmp_path / "sets.py").write_text(SETS)
    arguments = ["--set", "model.python=sets:build", "--set", f"exchange.inside={inside}"]
    result = train(2, "digits-mlp", *arguments, folder=tmp_path)
    assert result.returncode == 2
    assert result.stderr.count("do not hold the same node 2 of the model of digits-mlp") == 1, result.stderr
    assert "one = dense(features=8" in result.stderr
    assert not (tmp_path / "runs").exists()


def test_the_folder_of_runs_may_be_in_the_home_folder(job, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "home").mkdir()
    result = train(1, job, "--set", "run.folder=~/runs", "--set", "train.steps=1", folder=tmp_path)
    assert result.returncode == 0, result.stderr
    assert list((tmp_path / "home" / "runs").iterdir())
    assert not (tmp_path / "~").exists()


@pytest.mark.parametrize(
    ("announced", "words"),
    [
        (
            {"SLURM_STEP_NUM_TASKS": "2", "SLURM_PROCID": "1"},
            "started 2 ranks, .* Give it --mpi=pmi2 for MPICH",
        ),
        (
            {"OMPI_COMM_WORLD_SIZE": "3", "OMPI_COMM_WORLD_RANK": "0"},
            "started 3 ranks, .* belongs to another MPI",
        ),
    ],
    ids=["srun", "mpirun of another MPI"],
)
def test_ranks_that_believe_to_be_alone_are_told(announced, words, job, tmp_path):
    program = [str(python()), *WEFT, "train", str(job)]
    result = run(program, env={**environment("mpich"), **announced}, cwd=tmp_path)
    assert result.returncode == 3, result.stdout
    assert re.search(words, result.stderr), result.stderr
    assert "Traceback" not in result.stderr
    assert not (tmp_path / "runs").exists()


SGD = "{ name = 'sgd', rate = 1.0 }"


@pytest.mark.parametrize(
    ("ranks", "change"),
    [
        (1, "model.layers.5.features=10000000000000"),
        (2, "model.layers.5.features=10000000000000"),
        (1, f"train={{ batch = {10**12}, micro_batch = {10**12}, steps = 1, optimizer = {SGD} }}"),
    ],
)
def test_what_does_not_fit_into_memory_is_said_with_its_keys(ranks, change, job, tmp_path):
    result = train(ranks, job, "--set", change, folder=tmp_path)
    assert result.returncode == 3, result.stderr
    assert result.stderr.count("do not fit into memory: ") == 1, result.stderr
    assert "make the layers of [model] smaller, or lower [train] micro_batch" in result.stderr
    assert "Traceback" not in result.stderr
    assert not (tmp_path / "runs").exists()


ONE_LACKS_MEMORY = """
import sys
import time
from pathlib import Path

from weft.runtime.cli import main
from weft.runtime.train import prepare

make = prepare.make_replica

def make_replica(*given):
    from mpi4py import MPI

    until = time.monotonic() + 2
    if MPI.COMM_WORLD.Get_rank() == 1:
        while time.monotonic() < until and not Path("runs").exists():
            time.sleep(0.01)
        raise MemoryError("none is left")
    return make(*given)

prepare.make_replica = make_replica
sys.exit(main())
"""


def test_a_rank_that_alone_lacks_memory_ends_the_run_before_it_has_a_folder(job, tmp_path):
    """Rank 0 had made one, and told of a run that had begun."""
    (tmp_path / "lacks.py").write_text(ONE_LACKS_MEMORY)
    result = mpiexec(2, ["lacks.py", "train", job, "--set", "exchange.inside=flat"], cwd=tmp_path)
    assert result.returncode == 3, result.stderr
    assert re.search(r"do not fit into memory: none is left; .* \(rank 1 of 2 on \S+\)$", result.stderr, re.M)
    assert result.stderr.count("weft: ") == 1, result.stderr
    assert not result.stdout
    assert not (tmp_path / "runs").exists()


def test_a_missing_data_file_leaves_no_folder(tmp_path):
    path = tmp_path / "a.toml"
    path.write_text(JOB.replace('{ source = "digits" }', '{ source = "npz", path = "missing.npz" }'))
    result = train(2, path, folder=tmp_path)
    assert result.returncode == 2
    assert result.stderr.count("missing.npz") == 1, result.stderr
    assert not (tmp_path / "runs").exists()


def test_a_gpt_writes_a_sample_and_the_run_can_be_reported(tmp_path):
    small = [
        "model.gpt.layers=1", "model.gpt.width=32", "model.gpt.heads=2", "data.context=32", "train.steps=30",
        "train.schedule.warmup=3", "sample.length=40",
    ]  # fmt: skip
    changes = [word for change in small for word in ("--set", change)]
    result = train(2, "stdlib-gpt", *changes, folder=tmp_path)
    assert result.returncode == 0, result.stderr
    folder = tmp_path / run_folder(result.stdout)
    assert len((folder / "sample.txt").read_bytes()) >= 40
    steps = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    losses = [row["loss"] for row in steps if row["kind"] == "step"]
    assert len(losses) == 30
    assert losses[-1] < losses[0]
    report = mpiexec(1, [*WEFT, "report", str(folder)], cwd=tmp_path)
    assert report.returncode == 0, report.stderr
    assert (folder / "timeline.png").stat().st_size > 10_000


UNWRITABLE = """
from weft.runtime.errors import MachineError
from weft.runtime.graph import Builder
from weft.runtime.train import checkpoint


def save(folder, snapshot, keep):
    raise MachineError("the disk is full")


checkpoint.save = save


def model(sample):
    b = Builder()
    return b.build(b("dense", b("flatten", b.input("x", sample.shape)), features=10))
"""


def test_a_checkpoint_that_cannot_be_written_ends_the_run_before_the_next(job, tmp_path):
    (tmp_path / "unwritable.py").write_text(UNWRITABLE)
    changes = ["model.python=unwritable:model", "train.epochs=1000", "checkpoint.every=500"]
    result = train(2, job, *(word for change in changes for word in ("--set", change)), folder=tmp_path)
    assert result.returncode not in (0, None)
    assert "the disk is full" in result.stderr
    (metrics,) = tmp_path.glob("runs/*/metrics.jsonl")
    steps = [json.loads(line)["step"] for line in metrics.read_text().splitlines()]
    assert 500 <= max(steps) < 1000


@pytest.mark.parametrize("ranks", [2, 3])
def test_a_report_tells_what_each_rank_of_two_nodes_computed(ranks, job, tmp_path):
    """Emulated: MPICH takes the ranks of this host for those of two."""
    several = {"MPIR_CVAR_NUM_CLIQUES": "2"}
    changes = "deterministic=false", "micro_batch=5", "steps=12"
    sets = [part for change in changes for part in ("--set", f"train.{change}")]
    trained = train(ranks, job, *sets, folder=tmp_path, env=several)
    assert trained.returncode == 0, trained.stderr
    assert f"{ranks} ranks on 2 nodes" in trained.stdout
    report = mpiexec(1, [*WEFT, "report", run_folder(trained.stdout)], cwd=tmp_path)
    lines = [line.split() for line in report.stdout.partition("kernels of others")[2].splitlines()[1:]]
    computed = {int(line[0]): int(line[1]) for line in lines[:ranks]}
    assert sorted(computed) == list(range(ranks)), report.stdout
    assert sum(computed.values()) == 12 * 60 // 5
