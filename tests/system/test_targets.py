"""A surrogate whose targets were normalised: what predicts, serves and is exported answers in their units."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx.reference import ReferenceEvaluator

from tests.launch import mpiexec
from tests.system.test_cli import called, weft
from weft.runtime.serve import source
from weft.runtime.serve.repository import Platform

JOB = """
name = "surrogate"
data = { source = "npz", path = "data.npz", normalise_targets = "standard" }
model = { loss = "mean_squared_error", layers = [{ kernel = "dense", features = 2 }] }
train = { batch = 50, epochs = 30, optimizer = { name = "adam", rate = 0.05 } }
"""

WEIGHTS = np.array([[100.0, 0.0], [20.0, 1e-3], [0.0, -2e-3]])


@pytest.mark.limit(180)
def test_predictions_are_in_the_units_of_the_targets(tmp_path: Path) -> None:
    inputs = np.random.default_rng(1).uniform(-1, 1, (500, 3)).astype(np.float32)
    targets = inputs @ WEIGHTS + [300, 5e-3]
    np.savez(tmp_path / "data.npz", x=inputs, y=targets)
    np.save(tmp_path / "new.npy", inputs[:20])
    (tmp_path / "job.toml").write_text(JOB)
    done = mpiexec(2, ["-m", "weft.runtime.cli", "train", "job.toml"], cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    (run,) = (tmp_path / "runs").iterdir()
    resumed = weft("train", "--resume", run, "--set", "train.epochs=40", cwd=tmp_path)
    assert resumed.returncode == 0, resumed.stderr
    done = weft("predict", run, "new.npy", cwd=tmp_path)
    assert "dense_1_in_units float32 (20, 2)" in done.stdout, done.stderr
    predicted = np.load(tmp_path / "new-predictions.npy")
    error = np.abs(predicted - targets[:20]) / targets.std(0)
    assert error.max() < 0.05  # what is linear, a layer can learn; raw, none of it was within 2
    exported = called("export", run)
    assert exported.returncode == 0, exported.stderr
    (got,) = ReferenceEvaluator(onnx.load(run / "model.onnx")).run(None, {"x": inputs[:20]})
    np.testing.assert_allclose(got, predicted, rtol=1e-5, atol=1e-6)
    _, told = source.read(run, Platform.CHECKPOINT, {})
    assert told["outputs"] == [["dense_1_in_units", "FP32", [-1, 2]]]
