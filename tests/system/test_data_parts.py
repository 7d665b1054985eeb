"""Data in parts on ranks: trained as the whole is, and a run goes on with the parts that it had."""

from __future__ import annotations

import os
from pathlib import Path

import h5py
import numpy as np
import pytest

from tests.launch import mpiexec

JOB = """
name = "parts"
[data]
source = "hdf5"
path = "runs/*.h5"
inputs = "fields/u"
targets = "fields/v"
normalise = "standard"
[model]
layers = [{ kernel = "dense", features = 2 }]
loss = "mean_squared_error"
[train]
batch = 20
micro_batch = 5
steps = 4
deterministic = true
optimizer = { name = "sgd", rate = 0.05 }
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "runs").mkdir()
    inputs = np.random.default_rng(0).normal(size=(120, 6)).astype("f4")
    pieces = {"whole.h5": slice(None)}
    pieces |= {
        f"runs/{number}.h5": slice(40 * place, 40 * place + 40) for place, number in enumerate((1, 2, 10))
    }
    for name, rows in pieces.items():
        with h5py.File(tmp_path / name, "w") as file:
            file["fields/u"] = inputs[rows]
            file.create_dataset("fields/v", data=inputs[rows, :2] * 3, chunks=(7, 2), compression="gzip")
    (tmp_path / "job.toml").write_text(JOB)
    return tmp_path


def test_parts_on_two_ranks(folder: Path) -> None:
    ends = []
    for name, path in (("parts", "runs"), ("whole", "whole.h5")):
        keys = ["--set", f"data.path={folder / path}", "--set", f"run.folder={folder / name}"]
        result = mpiexec(2, ["-m", "weft.runtime.cli", "train", folder / "job.toml", *keys])
        assert result.returncode == 0, result.stderr
        (end,) = [line for line in result.stdout.splitlines() if "all steps done" in line]
        ends.append(end)
    assert ends[0] == ends[1]

    (run,) = (folder / "parts").iterdir()
    os.rename(folder / "runs/2.h5", folder / "elsewhere.h5")
    resumed = mpiexec(2, ["-m", "weft.runtime.cli", "train", "--resume", run, "--set", "train.steps=6"])
    assert resumed.returncode == 2
    assert "the number of samples was 120, is 80" in resumed.stderr
    os.rename(folder / "elsewhere.h5", folder / "runs/2.h5")
    resumed = mpiexec(2, ["-m", "weft.runtime.cli", "train", "--resume", run, "--set", "train.steps=6"])
    assert resumed.returncode == 0, resumed.stderr
