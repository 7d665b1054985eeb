"""Labels, of which several may hold: trained on ranks, told as probabilities each, resumed and exported."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx.reference import ReferenceEvaluator

from tests.launch import mpiexec
from tests.system.test_cli import called, weft

JOB = """
name = "labels"
data = { source = "npz", path = "data.npz" }
model = { loss = "binary_cross_entropy", layers = [{ kernel = "dense", features = 4 }] }
[train]
batch = 50
micro_batch = 10
epochs = 5
best = { metric = "accuracy" }
optimizer = { name = "adam", rate = 0.05 }
"""


@pytest.mark.limit(180)
def test_labels_are_learnt_each_and_told_as_probabilities(tmp_path: Path) -> None:
    random = np.random.default_rng(1)
    inputs = random.standard_normal((500, 6)).astype(np.float32)
    holds = inputs @ random.standard_normal((6, 4)) > [0, 1, -1, 2]
    np.savez(tmp_path / "data.npz", x=inputs, y=holds)
    np.save(tmp_path / "all.npy", inputs)
    (tmp_path / "job.toml").write_text(JOB)
    done = mpiexec(3, ["-m", "weft.runtime.cli", "train", "job.toml"], cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "best validation accuracy" in done.stdout
    (run,) = (tmp_path / "runs").iterdir()
    resumed = weft("train", "--resume", run, "--set", "train.epochs=15", cwd=tmp_path)
    assert resumed.returncode == 0, resumed.stderr
    for answers in ("logits.npy", "answers.csv"):
        done = weft("predict", run, "all.npy", answers, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
    logits = np.load(tmp_path / "logits.npy")
    assert ((logits > 0) == holds).mean() > 0.9
    with (tmp_path / "answers.csv").open() as file:
        head, *lines = csv.reader(file)
    assert head == ["sample", *(f"probability_{label}" for label in range(4))]
    told = np.array(lines, float)[:, 1:]
    np.testing.assert_allclose(told, 1 / (1 + np.exp(-logits)), atol=1e-5)
    exported = called("export", run)
    assert exported.returncode == 0, exported.stderr
    (got,) = ReferenceEvaluator(onnx.load(run / "model.onnx")).run(None, {"x": inputs})
    np.testing.assert_allclose(got, logits, rtol=1e-4, atol=1e-4)
