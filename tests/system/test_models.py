"""`weft train` with several jobs, under a launcher: outcomes, folders, exit status, signals."""

from __future__ import annotations

import json
import re
import shlex
import signal
import subprocess
import tomllib
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from tests.launch import environment, launcher, mpiexec, python
from tests.system.small import WEFT
from tests.system.test_cli import called
from tests.system.test_training import FAILING

JOB = """
seed = 5
data = { source = "digits" }
model.layers = [
  { kernel = "flatten" },
  { kernel = "dense", features = FEATURES },
  { kernel = "relu" },
  { kernel = "dense", features = 10 },
]
train = { batch = 60, micro_batch = 20, epochs = 2, optimizer = { name = "OPTIMIZER", rate = 0.01 } }
"""


@pytest.fixture
def jobs(tmp_path: Path) -> list[Path]:
    """Two job files."""
    made = [tmp_path / "large.toml", tmp_path / "small.toml"]
    for path, features, optimizer in zip(made, ("200", "20"), ("sgd", "adamw"), strict=True):
        path.write_text(JOB.replace("FEATURES", features).replace("OPTIMIZER", optimizer))
    return made


def train(
    ranks: int, *arguments: object, folder: Path, **options: object
) -> subprocess.CompletedProcess[str]:
    return mpiexec(ranks, [*WEFT, "train", *map(str, arguments)], cwd=folder, **options)


def stored(output: str, folder: Path) -> dict[str, Path]:
    """The run folder of every model that the output tells of, by name."""
    found = re.findall(r"^(\S+): stored in (.+?)(?:;|$)", output, re.MULTILINE)
    return {name: folder / path for name, path in found}


def newest(folder: Path) -> Path:
    return sorted((folder / "checkpoints").glob("*.safetensors"))[-1]


def test_a_sweep_tells_the_best_and_its_models_become_one(jobs, tmp_path):
    small = jobs[1]
    done = train(2, small, "--vary", "train.optimizer.rate=0.01,1e-9", "--vary", "seed=1,2", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    names = [f"small-rate-{rate}-seed-{seed}" for rate in ("0.01", "1e-09") for seed in (1, 2)]
    folders = stored(done.stdout, tmp_path)
    assert list(folders) == names
    table = done.stdout[done.stdout.rindex("seed ") :].splitlines()
    assert table[0].split()[:5] == ["seed", "rate", "steps", "validation", "loss"]
    assert {line.split()[0] for line in table[1:3]} == set(names[:2])  # the other two learn nothing
    assert {line.split()[0] for line in table[3:5]} == set(names[2:])
    assert folders[table[1].split()[0]].samefile(tmp_path / table[5].partition(": ")[2])
    # One of them is the model that the job trains with this seed and rate.
    alone = train(2, small, "--set", "seed=2", "--set", "name=alone", folder=tmp_path)
    assert alone.returncode == 0, alone.stderr
    (lone,) = (tmp_path / "runs").glob("alone-*")
    for name, array in load_file(newest(lone)).items():
        if name.startswith("weight/"):
            np.testing.assert_allclose(array, load_file(newest(folders[names[1]]))[name], atol=1e-4)
    # Both that learned, as one model: its predictions are the mean of theirs.
    report = called("report", *map(str, folders.values()), cwd=tmp_path)
    assert report.stdout.splitlines()[1:5] == table[1:5]
    members = [str(folders[name]) for name in names[:2]]
    assert called("export", *members, "both.onnx", cwd=tmp_path).returncode == 0
    samples = np.random.default_rng(1).random((50, 1, 8, 8), np.float32) * 16
    np.save(tmp_path / "x.npy", samples)
    for model, output in (("both.onnx", "dense_2"), (members[0], ""), (members[1], "")):
        asked = [
            "predict",
            model,
            "x.npy",
            f"{Path(model).name}.npy",
            *(["--output", output] if output else []),
        ]
        assert mpiexec(1, [*WEFT, *asked], cwd=tmp_path).returncode == 0
    both, *logits = (np.load(tmp_path / f"{Path(name).name}.npy") for name in ("both.onnx", *members))
    shares = [np.exp(each) / np.exp(each).sum(1, keepdims=True) for each in logits]
    np.testing.assert_allclose(np.exp(both), np.mean(shares, axis=0), atol=1e-4)


def test_two_models_train_and_leave_a_folder_each(jobs, tmp_path):
    fixed = ["--set", "small:train.epochs=3", "--set", "small:train.deterministic=true"]
    result = train(2, *jobs, *fixed, "--folder", "here", folder=tmp_path)
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    assert re.fullmatch(r"2 models share every rank's compute time: large 50%, small 50%", lines[0])
    assert lines[1].startswith("steps in the order large, ")
    assert re.search(r"^large: step 42/42  test  loss ", result.stdout, re.MULTILINE)
    assert re.search(r"^small: all steps done after step 63; test loss ", result.stdout, re.MULTILINE)
    folders = stored(result.stdout, tmp_path)
    assert sorted(folders) == ["large", "small"]
    for name, folder in folders.items():
        assert folder.parent == tmp_path / "here"
        assert f'name = "{name}"' in (folder / "job.toml").read_text()
        rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        assert rows[-1]["reason"] == "all steps done"
        events = json.loads((folder / "trace.json").read_text())["traceEvents"]
        assert {event["args"]["model"] for event in events if "model" in event["args"]} == {"large", "small"}
    alone = train(2, jobs[1], *fixed, folder=tmp_path)
    (folder,) = (tmp_path / "runs").iterdir()
    assert alone.returncode == 0, alone.stderr
    expected = load_file(newest(folder))
    for name, tensor in load_file(newest(folders["small"])).items():
        np.testing.assert_array_equal(tensor, expected[name], err_msg=name)


def test_the_same_job_may_train_twice_with_a_change(jobs, tmp_path):
    rate = "small-2:train.optimizer.rate=0.1"
    result = train(2, jobs[1], jobs[1], "--set", rate, "--set", "train.epochs=1", folder=tmp_path)
    assert result.returncode == 0, result.stderr
    folders = stored(result.stdout, tmp_path)
    jobs = {name: tomllib.loads((path / "job.toml").read_text()) for name, path in folders.items()}
    rates = {name: job["train"]["optimizer"]["rate"] for name, job in jobs.items()}
    assert rates == {"small": 0.01, "small-2": 0.1}


@pytest.mark.parametrize("vendor", ["mpich", "openmpi"])
def test_an_exception_in_a_kernel_ends_its_model_alone(vendor, jobs, tmp_path):
    (tmp_path / "failing.py").write_text(FAILING)
    changes = ["--set", "large:model.python=failing:model", "--set", "checkpoint.every=2"]
    result = train(3, *jobs, *changes, folder=tmp_path, vendor=vendor)
    assert result.returncode == 1, result.stderr
    assert result.stderr.count("ArithmeticError: the kernel's own words") == 1, result.stderr
    assert "weft: rank 1 of 3 on " in result.stderr
    assert "failed in the model large:" in result.stderr
    assert "failing.py" in result.stderr
    assert "BAD TERMINATION" not in result.stdout + result.stderr
    failed = re.search(
        r"^large: failed after step (\d+): ArithmeticError: the kernel's own words \(rank 1 on host \S+\)$"
        r"\nlarge: stored in (\S+); its last checkpoint is step-(\d+).safetensors$",
        result.stdout,
        re.MULTILINE,
    )
    assert failed is not None, result.stdout
    assert int(failed[3]) < int(failed[1])
    assert newest(tmp_path / failed[2]).name == f"step-{failed[3]}.safetensors"
    assert re.search(r"^small: all steps done after step 42; test loss ", result.stdout, re.MULTILINE)
    # Its last checkpoint is good: the run can go on, once what was wrong has been mended.
    (tmp_path / "failing.py").write_text(FAILING.replace("raise ArithmeticError", "pass  #"))
    resumed = train(3, "--resume", tmp_path / failed[2], folder=tmp_path, vendor=vendor)
    assert resumed.returncode == 0, resumed.stderr
    assert f"from step {int(failed[3])}" in resumed.stdout


def test_a_model_that_diverges_ends_alone(jobs, tmp_path):
    optimizer = 'large:train.optimizer={ name = "sgd", rate = 1e30 }'
    result = train(2, *jobs, "--set", optimizer, folder=tmp_path)
    assert result.returncode == 1
    assert result.stderr.count("weft: the loss of large became nan in step") == 1, result.stderr
    assert "large: failed after step " in result.stdout
    assert re.search(r"^small: all steps done after step 42; ", result.stdout, re.MULTILINE)


def test_what_is_wrong_with_several_jobs_is_said_together_and_leaves_no_folder(jobs, tmp_path):
    jobs[0].write_text(jobs[0].read_text().replace("features = 10", "features = 9"))
    missing = "small:data={ source = 'npz', path = 'missing.npz' }"
    result = train(2, *jobs, "--set", missing, folder=tmp_path)
    assert result.returncode == 2
    assert result.stderr.count("weft: large: ") == 1, result.stderr
    assert len(re.findall(r"^small: .*missing.npz", result.stderr, re.MULTILINE)) == 1, result.stderr
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(("vendor", "number"), [("mpich", signal.SIGTERM), ("openmpi", signal.SIGUSR1)])
def test_a_signal_ends_all_models_with_checkpoints_and_all_are_resumed(vendor, number, jobs, tmp_path):
    command = [
        *launcher(2, vendor),
        *[str(python(vendor)), *WEFT, "train", *map(str, jobs)],
        *["--set", "train.epochs=100000", "--folder", "it's mine"],
    ]
    with subprocess.Popen(
        command, env=environment(vendor), cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        text=True, start_new_session=True,
    ) as process:  # fmt: skip
        try:
            assert process.stdout is not None
            output, evaluated = "", set()
            for line in process.stdout:
                output += line
                if "validation" in line:
                    evaluated.add(line.partition(":")[0])
                if len(evaluated) == 2:
                    break
            process.send_signal(number)
            rest, _ = process.communicate(timeout=60)
        finally:
            process.kill()
    output += rest
    assert process.returncode not in (0, 1), output
    stopped = dict(re.findall(r"^(\S+): stopped by a signal after step (\d+)", output, re.MULTILINE))
    assert sorted(stopped) == ["large", "small"], output
    folders = stored(output, tmp_path)
    for name, step in stopped.items():
        assert newest(folders[name]).name == f"step-{int(step):08d}.safetensors"
    (told,) = re.findall(r"^go on with: mpirun -n 2 weft train (.*)$", output, re.MULTILINE)
    assert output.count("go on with") == 1, output
    runs = shlex.split(told)
    assert [folder.name for folder in map(Path, runs[1::2])] == [folders[name].name for name in stopped]
    lengths = [
        word for name, step in stopped.items() for word in ("--set", f"{name}:train.steps={int(step) + 3}")
    ]
    resumed = train(2, *runs, *lengths, folder=tmp_path, vendor=vendor)
    assert resumed.returncode == 0, resumed.stderr
    for name, step in stopped.items():
        assert re.search(rf"^{name}: .* from step {step} on 2 ranks", resumed.stdout, re.MULTILINE)
        assert newest(folders[name]).name == f"step-{int(step) + 3:08d}.safetensors"
