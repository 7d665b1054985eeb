"""A run as an ONNX file: what the file computes of raw samples is what the run's checkpoint does."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx.reference import ReferenceEvaluator

from tests.launch import mpiexec
from tests.pure.graph.test_onnx_writer import computed
from tests.system.test_cli import called, weft
from weft.runtime.graph import Layout
from weft.runtime.serve import source
from weft.runtime.serve.repository import Platform
from weft.runtime.train.checkpoint import checkpoints
from weft.runtime.train.inference import trained

TABLE = """
name = "table"
seed = 4
data = { source = "csv", path = "table.csv", target = "kind", header = true }
train = { batch = 8, steps = 5, optimizer = { name = "sgd", rate = 0.5 } }
[model]
layers = [{ kernel = "dense", features = 6 }, { kernel = "batch_norm" }, { kernel = "relu" }, \
{ kernel = "dropout", rate = 0.1 }, { kernel = "dense", features = 2 }]
"""

TEXT = """
name = "text"
data = { source = "text", path = "text", context = 16 }
model = { gpt = { layers = 1, width = 16, heads = 2 } }
train = { batch = 4, steps = 3, optimizer = { name = "adamw", rate = 0.01 } }
"""


def run_of(folder: Path, job: str) -> Path:
    """The folder of a run of this job."""
    (folder / "job.toml").write_text(job)
    done = weft("train", "job.toml", cwd=folder)
    assert done.returncode == 0, done.stderr
    (found,) = (folder / "runs").iterdir()
    return found


ROWS = np.random.default_rng(1).standard_normal((60, 3)) * [1, 50, 0.01] + [0, 200, 3]


@pytest.fixture(scope="module")
def table(tmp_path_factory) -> Path:
    """A folder with a table, a run that was trained on it, and its file."""
    folder = tmp_path_factory.mktemp("table")
    lines = [f"{a},{b},{c},{'left' if a < 0 else 'right'}" for a, b, c in ROWS]
    (folder / "table.csv").write_text("\n".join(["a,b,c,kind", *lines]))
    run = run_of(folder, TABLE)
    done = called("export", run.name, "../table/1/model.onnx", cwd=run.parent)
    assert done.stdout == (
        "../table/1/model.onnx: 62 parameters, x float32 [batch, 3] to dense_2 float32 [batch, 2], "
        "as of step 5\n"
    )
    return folder


@pytest.mark.limit(120)
def test_the_file_of_a_table_takes_its_rows_as_they_are(table):
    (run,) = (table / "runs").glob("table-*")
    proto = onnx.load(table / "table" / "1" / "model.onnx")
    told = {each.key: each.value for each in proto.metadata_props}
    assert (told["step"], json.loads(told["labels"])) == ("5", ["left", "right"])
    found, samples = trained(run), ROWS.astype(np.float32)
    wanted = computed(found.graph, dict(found.weights), (samples - found.affine.mean) * found.affine.scale)
    (got,) = ReferenceEvaluator(proto).run(None, {"x": samples})
    assert np.ptp(samples[:, 1]) > 100  # of the file's own scale
    np.testing.assert_allclose(got, wanted, rtol=1e-3, atol=1e-5)


@pytest.mark.limit(180)
def test_a_file_is_trained_on_with_another_head_resumed_and_exported(table):
    model = """
    [model]
    onnx = "table/1/model.onnx"
    output = "relu_1"
    head = [{ kernel = "dense", features = 2, name = "kinds" }]
    """
    (table / "again.toml").write_text(TABLE.split("[model]")[0].replace("table", "again", 1) + model)
    for arguments in (["again.toml"], ["--resume", "runs/again", "--set", "train.steps=7"]):
        (run, *_) = [*(table / "runs").glob("again-*"), None]
        named = [str(run) if each == "runs/again" else each for each in arguments]
        done = mpiexec(2, ["-m", "weft.runtime.cli", "train", *named], cwd=table)
        assert done.returncode == 0, done.stderr
    done = called("export", run)
    assert "x float32 [batch, 3] to kinds float32 [batch, 2], as of step 7" in done.stdout
    found = {parameter.name for parameter in Layout.of(trained(run).graph).parameters}
    assert {"dense_1.weight", "batch_norm_1.running_mean", "kinds.weight"} <= found
    (table / "table" / "1" / "model.onnx").rename(table / "moved.onnx")
    done = called("export", run)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "model.onnx: there is no such file" in done.stderr
    done = weft("train", "--resume", run, "--set", "train.steps=8", "--set", f"model.onnx={table}/moved.onnx")
    assert done.returncode == 0, done.stderr


@pytest.mark.limit(120)
def test_the_file_of_a_transformer_takes_bytes_and_a_checkpoint_may_be_named(tmp_path):
    (tmp_path / "text").write_text("What is written down is read again. " * 40)
    run = run_of(tmp_path, TEXT)
    (newest,) = checkpoints(run / "checkpoints")
    done = called("export", newest)
    assert done.returncode == 0, done.stderr
    assert "x int32 [batch, 16] to logits float32 [batch, 16, 256], as of step 3" in done.stdout
    found = trained(run)
    tokens = np.random.default_rng(1).integers(0, 256, (3, 16)).astype(np.int32)
    (got,) = ReferenceEvaluator(onnx.load(run / "model.onnx")).run(None, {"x": tokens})
    np.testing.assert_allclose(got, computed(found.graph, dict(found.weights), tokens), rtol=1e-4, atol=1e-5)


TIMES = """
name = "times"
data = { source = "npy", inputs = "x.npy", targets = "y.npy", normalise = "standard" }
train = { batch = 8, steps = 2, optimizer = { name = "sgd", rate = 0.5 } }
model = { layers = [{ kernel = "dense", features = 2 }] }
"""


@pytest.mark.limit(120)
def test_where_float32_tells_too_little_of_a_feature_samples_are_float64_and_an_exported_file_says_so(
    tmp_path,
):
    random = np.random.default_rng(1)
    times = 1.7e9 + random.uniform(0, 100, (60, 2))
    np.save(tmp_path / "x.npy", times)
    np.save(tmp_path / "y.npy", times.argmax(1))
    run = run_of(tmp_path, TIMES)
    done = weft("train", "--resume", run, "--set", "train.steps=6", cwd=tmp_path)
    assert "take samples in float32, which near 1.7e+09 have steps of 128" in done.stdout, done.stderr
    done = called("export", run)
    assert done.returncode == 0, done.stderr
    assert "float32, which near 1.7e+09 have steps of 128, and a feature there deviates by " in done.stdout
    assert "what the file answers to samples that differ there is wrong" in done.stdout
    done = weft("predict", run, "x.npy", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    found = trained(run)
    seen = ((times - found.affine.mean) * found.affine.scale.astype(np.float32)).astype(np.float32)
    assert np.ptp(seen) > 3  # float32 of them are all equal
    wanted = computed(found.graph, dict(found.weights), seen)
    np.testing.assert_allclose(np.load(tmp_path / "x-predictions.npy"), wanted, rtol=1e-5, atol=1e-6)
    _, told = source.read(run, Platform.CHECKPOINT, {})
    assert told["inputs"] == [["x", "FP64", [-1, 2]]]


def test_what_cannot_be_exported_is_told_in_a_line(tmp_path):
    done = called("export", tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith(f"weft: {tmp_path} is not a run")
    done = called("export", "nothing", cwd=tmp_path)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
