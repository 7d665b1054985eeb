"""weft predict: a file of samples through a run's model and through its ONNX file, on one rank and on two."""

from __future__ import annotations

import csv
import os

import h5py
import numpy as np
import onnx
import pytest

from tests.launch import mpiexec
from tests.pure.graph.test_onnx_writer import computed
from tests.system.test_cli import called, weft, weft_onto_a_full_disk
from weft.runtime.train.inference import trained

JOB = """
name = "small"
data = { source = "npz", path = "data.npz" }
train = { batch = 8, steps = 4, optimizer = { name = "sgd", rate = 0.5 } }
[model]
layers = [{ kernel = "dense", features = 6 }, { kernel = "tanh" }, { kernel = "dense", features = 3 }]
"""


@pytest.mark.limit(180)
def test_every_sample_gets_its_prediction(tmp_path):
    random = np.random.default_rng(1)
    pixels = random.integers(0, 256, (50, 5)).astype(np.uint8)  # which training scales to 0 … 1
    np.savez(tmp_path / "data.npz", x=pixels, y=random.integers(0, 3, 50))
    (tmp_path / "job.toml").write_text(JOB)
    assert weft("train", "job.toml", cwd=tmp_path).returncode == 0
    (run,) = (tmp_path / "runs").iterdir()
    samples = random.integers(0, 256, (1003, 5)).astype(np.uint8)
    np.save(tmp_path / "new.npy", samples)
    os.mkfifo(tmp_path / "pipe")

    done = mpiexec(2, ["-m", "weft.runtime.cli", "predict", run, "new.npy"], cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("new-predictions.npy: dense_2 float32 (1003, 3), ")
    assert done.stdout.endswith("samples/s on 2 ranks\n")
    found = trained(run)
    wanted = computed(found.graph, dict(found.weights), samples.astype(np.float32) / 255)
    np.testing.assert_allclose(np.load(tmp_path / "new-predictions.npy"), wanted, rtol=1e-4, atol=1e-5)

    assert called("export", run).returncode == 0
    done = weft("predict", run / "model.onnx", "new.npy", "again.npy", "--batch", "7", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    np.testing.assert_allclose(np.load(tmp_path / "again.npy"), wanted, rtol=1e-4, atol=1e-5)

    full = weft_onto_a_full_disk("predict", run, "new.npy", "full.npy", cwd=tmp_path)
    said = "weft: how far it is cannot be printed: No space left on device; it goes on all the same\n"
    assert (full.returncode, full.stderr) == (0, said)
    assert (tmp_path / "full.npy").exists()

    for name, wrong in (("runs", "runs is a folder; name the file"), ("pipe", "pipe is a device or a pipe")):
        done = weft("predict", run, "new.npy", name, cwd=tmp_path)
        assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
        assert wrong in done.stderr


@pytest.mark.limit(120)
def test_samples_tell_how_long_the_axes_are_that_a_file_leaves_open(tmp_path):
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("Tanh", ["x"], ["y"])],
        "opened",
        [onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ("n", "places", "width"))],
        [onnx.helper.make_empty_tensor_value_info("y")],
    )
    opsets = [onnx.helper.make_opsetid("", 18)]
    onnx.save(onnx.helper.make_model(graph, opset_imports=opsets, ir_version=9), tmp_path / "open.onnx")
    samples = np.random.default_rng(1).normal(size=(9, 3, 5)).astype(np.float32)
    np.save(tmp_path / "new.npy", samples)
    done = weft("predict", "open.onnx", "new.npy", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    np.testing.assert_allclose(np.load(tmp_path / "new-predictions.npy"), np.tanh(samples), rtol=1e-5)

    np.save(tmp_path / "flat.npy", samples[:, 0])  # which tells nothing of the file's second axis
    done = weft("predict", "open.onnx", "flat.npy", cwd=tmp_path)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "axis 1 ('places') of the input 'x' is open" in done.stderr


PARTS = JOB.replace(
    '"npz", path = "data.npz"', '"hdf5", path = "parts", inputs = "u", targets = "y", shape = [1, 2, 3]'
).replace(
    "layers = [{", 'layers = [{ kernel = "conv2d", channels = 2, kernel_size = 2 }, { kernel = "flatten" }, {'
)


@pytest.mark.limit(180)
def test_parts_as_those_that_the_run_was_trained_on(tmp_path):
    """In the shape that they have in the files, which is another than the model's."""
    random = np.random.default_rng(1)
    parts = [random.normal(size=(count, 6)).astype(np.float32) for count in (30, 5)]
    (tmp_path / "parts").mkdir()
    for part, name in zip(parts, ("u-2.h5", "u-10.h5"), strict=True):
        with h5py.File(tmp_path / "parts" / name, "w") as file:
            file["u"], file["y"] = part, np.arange(len(part)) % 3
    (tmp_path / "job.toml").write_text(PARTS)
    done = weft("train", "job.toml", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    (run,) = (tmp_path / "runs").iterdir()
    done = weft("predict", run, "parts:u", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    found = trained(run)
    samples = np.concatenate(parts).reshape(35, 1, 2, 3)
    wanted = computed(found.graph, dict(found.weights), samples)
    np.testing.assert_allclose(np.load(tmp_path / "parts-predictions.npy"), wanted, rtol=1e-4, atol=1e-5)


TREES = JOB.replace('"npz", path = "data.npz"', '"csv", path = "bäume.csv", target = "art", header = true')


@pytest.mark.limit(180)
def test_a_table_of_classes_by_their_names(tmp_path):
    random = np.random.default_rng(1)
    columns, names = random.normal(size=(60, 5)), ["tanne, groß", "birke", "eiche"]
    with (tmp_path / "bäume.csv").open("w", encoding="utf-8", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["a", "b", "c", "d", "e", "art"])
        rows.writerows([*column, names[i % 3]] for i, column in enumerate(columns))
    (tmp_path / "job.toml").write_text(TREES, encoding="utf-8")
    assert weft("train", "job.toml", cwd=tmp_path).returncode == 0
    (run,) = (tmp_path / "runs").iterdir()
    np.save(tmp_path / "new.npy", columns)

    done = weft("predict", run, "new.npy", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    logits = np.load(tmp_path / "new-predictions.npy").astype(np.float64)
    shares = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    done = mpiexec(2, ["-m", "weft.runtime.cli", "predict", run, "new.npy", "out/new.csv"], cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("out/new.csv: class and probability of 60 samples, ")
    with (tmp_path / "out" / "new.csv").open(encoding="utf-8", newline="") as file:
        header, *found = csv.reader(file)
    assert header == ["sample", "class", "probability"]
    ordered = sorted(names)
    assert [row[:2] for row in found] == [[str(i), ordered[c]] for i, c in enumerate(shares.argmax(axis=1))]
    np.testing.assert_allclose([float(row[2]) for row in found], shares.max(axis=1), rtol=1e-4)
    assert [each.name for each in (tmp_path / "out").iterdir()] == ["new.csv"]

    assert called("export", run).returncode == 0  # the file has the names, too, and its samples are float32
    done = weft("predict", run / "model.onnx", "new.npy", "again.csv", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("again.csv: class and probability of 60 samples, ")
    with (tmp_path / "again.csv").open(encoding="utf-8", newline="") as file:
        header, *again = csv.reader(file)
    assert header == ["sample", "class", "probability"]
    assert [row[:2] for row in again] == [row[:2] for row in found]
    np.testing.assert_allclose([float(row[2]) for row in again], shares.max(axis=1), rtol=1e-4)

    # So has that of an ensemble, here of two that are one: its first output tells classes apart, and where
    # none is chosen its second one follows.
    assert called("export", run, run, tmp_path / "both.onnx").returncode == 0
    first, second = "dense_2", "dense_2_deviation"
    done = weft("predict", "both.onnx", "new.npy", "both.csv", "--output", first, cwd=tmp_path)
    assert done.stdout.startswith("both.csv: class and probability of 60 samples, "), done.stderr
    with (tmp_path / "both.csv").open(encoding="utf-8", newline="") as file:
        assert [row[:2] for row in csv.reader(file)][1:] == [row[:2] for row in found]
    done = weft("predict", "both.onnx", "new.npy", "all.csv", cwd=tmp_path)
    assert done.stdout.startswith("all.csv: class and probability of 60 samples, "), done.stderr
    with (tmp_path / "all.csv").open(encoding="utf-8", newline="") as file:
        header, *rows = csv.reader(file)
    assert header == ["sample", "class", "probability", *(f"{second}_{i}" for i in range(3))]
    assert [row[:2] for row in rows] == [row[:2] for row in found]
    assert {cell for row in rows for cell in row[3:]} == {"0.0"}
    done = weft("predict", "both.onnx", "new.npy", "apart.csv", "--output", second, cwd=tmp_path)
    assert done.stdout.startswith(f"apart.csv: {second} float32 (60, "), done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["x.npy", "x.npy"], "x.npy is no run's folder, and no checkpoint"),
        (["m.onnx", "x.npy"], "weft: m.onnx: no such file: give a run's folder, or an .onnx file"),
        (["runs/x", "x.npy"], "weft: there is no run runs/x: no such folder"),
        (["m.onnx", "x.npy", "./x.npy"], "x.npy holds the samples: name another file"),
        (["m.onnx", "x.npy", "--batch", "70000"], "--batch 70000: at most 65536 samples"),
    ],
    ids=["no run", "no model", "no such run", "the samples' own file", "too many at once"],
)
def test_what_cannot_be_predicted_is_told_in_a_line(arguments, message, tmp_path):
    np.save(tmp_path / "x.npy", np.zeros((2, 2)))
    done = weft("predict", *arguments, cwd=tmp_path)
    assert done.returncode == 2
    assert message in done.stderr
    assert done.stderr.count("\n") == 1
    assert [each.name for each in tmp_path.iterdir()] == ["x.npy"]
