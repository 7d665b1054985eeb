from __future__ import annotations

import errno
import os
import time
from pathlib import Path
from typing import TextIO

import pytest

from weft.runtime.errors import MachineError, Mistake
from weft.runtime.observe.folder import RunFolder, require_file, write_whole

NOW = time.strptime("2026-03-14 15:09:26", "%Y-%m-%d %H:%M:%S")


def test_a_run_is_named_by_job_and_time(tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path / "runs", "digits", NOW)
    assert folder.path == tmp_path / "runs" / "digits-20260314-150926"
    assert folder.checkpoints.is_dir()
    assert folder.name == "digits"


def test_runs_of_the_same_second_get_a_number(tmp_path: Path) -> None:
    made = [RunFolder.create(tmp_path, "digits", NOW) for _ in range(3)]
    assert [folder.path.name for folder in made] == [
        "digits-20260314-150926",
        "digits-20260314-150926-2",
        "digits-20260314-150926-3",
    ]
    assert {folder.name for folder in made} == {"digits"}


def test_a_name_with_a_slash_stays_one_folder(tmp_path: Path) -> None:
    assert RunFolder.create(tmp_path, "../my job", NOW).path == tmp_path / "my-job-20260314-150926"


def test_a_folder_that_cannot_be_made_is_the_machines_fault(tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("a file")
    with pytest.raises(MachineError, match=r"cannot make a folder for the run in .*runs .*--folder"):
        RunFolder.create(tmp_path / "runs", "digits", NOW)


def test_the_home_folder_of_nobody_is_named() -> None:
    with pytest.raises(MachineError, match="~nobody-of-that-name is no home folder that is known here"):
        RunFolder.create(Path("~nobody-of-that-name/runs"), "digits")


def test_a_run_opens_by_its_metrics_or_its_checkpoints(tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path, "digits", NOW)
    assert RunFolder.open(folder.path) == folder
    folder.checkpoints.rmdir()
    folder.metrics.write_text("")
    assert RunFolder.open(folder.path) == folder


def test_a_run_without_its_job_says_how_it_goes_on(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "digits-20260314-150926")
    run.checkpoints.mkdir(parents=True)
    with pytest.raises(Mistake, match=f"lacks its job.toml: .*: weft train JOB --resume {run.path}$"):
        RunFolder.open(run.path).require_job()
    run.keep("a job")
    assert RunFolder.open(run.path).require_job() == str(run.job)


def test_a_file_that_cannot_be_written_stays_as_it_was(tmp_path: Path) -> None:
    def write(file: TextIO) -> None:
        file.write("half of")
        raise OSError(errno.ENOSPC, "No space left on device")

    folder = RunFolder.create(tmp_path, "digits", NOW)
    folder.keep("seed = 1\n")
    with pytest.raises(MachineError, match=r"job\.toml: cannot be written: No space left on device$"):
        write_whole(folder.job, write)
    assert folder.job.read_text() == "seed = 1\n"
    assert sorted(entry.name for entry in folder.path.iterdir()) == ["checkpoints", "job.toml"]


def test_what_is_written_whole_takes_a_files_place_and_nothing_elses(tmp_path: Path) -> None:
    (tmp_path / "a.onnx").write_text("the one of before")
    os.mkfifo(tmp_path / "pipe")
    require_file(tmp_path / "a.onnx", "model.onnx")
    require_file(tmp_path / "new" / "b.onnx", "model.onnx")
    with pytest.raises(Mistake, match=rf"{tmp_path} is a folder; name the file, as {tmp_path}/model.onnx$"):
        require_file(tmp_path, "model.onnx")
    for path in (tmp_path / "pipe", Path("/dev/null")):
        with pytest.raises(Mistake, match=f"^{path} is a device or a pipe, .*; name a file$"):
            require_file(path, "model.onnx")


def make(tmp_path: Path) -> None:
    """A folder of one run beside other things."""
    (tmp_path / "runs" / "digits-20260314-150926" / "checkpoints").mkdir(parents=True)
    (tmp_path / "runs" / "digits-20260314-150926" / "job.toml").write_text("name = 'digits'\n")
    (tmp_path / "project").mkdir()
    (tmp_path / "project" / "job.toml").write_text("name = 'digits'\n")
    (tmp_path / "trained" / "checkpoints").mkdir(parents=True)  # as projects often have one
    (tmp_path / "trained" / "runs" / "digits-20260314-150926" / "checkpoints").mkdir(parents=True)
    (tmp_path / "empty").mkdir()
    (tmp_path / "pictures").mkdir()
    for name in "abcdefg":
        (tmp_path / "pictures" / name).write_text("")


RUN = "digits-20260314-150926"
NO_RUNS = {
    "a folder that is not there": ("runs/digit", rf"no such folder; the newest run is .*{RUN}$"),
    "nothing nearby either": ("nowhere/digits", r"no such folder$"),
    "the folder of all runs": ("runs", rf"is not a run but holds 1; the newest run is .*{RUN}$"),
    "a file of a run": (f"runs/{RUN}/job.toml", rf"is a file.*it belongs to the run .*{RUN}$"),
    "a folder of a run": (f"runs/{RUN}/checkpoints", rf"is not a run; it belongs to the run .*{RUN}$"),
    "the folder of all runs, in one that looks like a run": (
        "trained/runs",
        rf"is not a run but holds 1; the newest run is .*{RUN}$",
    ),
    "a folder with a job of somebody's": ("project", r"holds a job, job\.toml, and nothing that was trained"),
    "a job of somebody's": ("project/job.toml", r"is a file, not a run's folder$"),
    "an empty folder": ("empty", r"no metrics\.jsonl and no checkpoints, only nothing$"),
    "what the machine does not let one look at": ("x" * 300, r"x: cannot be read: File name too long$"),
    "a folder of other things": ("pictures", r"only a, b, c, d, e and 2 more$"),
}


@pytest.mark.parametrize(("path", "message"), NO_RUNS.values(), ids=NO_RUNS.keys())
def test_what_is_not_a_run_is_described(tmp_path: Path, path: str, message: str) -> None:
    make(tmp_path)
    with pytest.raises(Mistake, match=message):
        RunFolder.open(tmp_path / path)
