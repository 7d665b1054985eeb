"""A new run starts with weights that were trained before; what does not fit is drawn, told of, or refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from safetensors.numpy import save_file

from weft.kernels.device import Device
from weft.kernels.kernel import ArraySpec
from weft.runtime.errors import WeftError
from weft.runtime.graph import Builder, Graph, Layout, initialise
from weft.runtime.graph.onnx import save, write
from weft.runtime.observe import RunFolder
from weft.runtime.train import checkpoint
from weft.runtime.train.data import load_data
from weft.runtime.train.data.samples import Affine
from weft.runtime.train.examine import examine, lineage
from weft.runtime.train.inference import Shapes
from weft.runtime.train.job import load_job
from weft.runtime.train.model import build, build_with_weights
from weft.runtime.train.replica import Replica
from weft.runtime.train.schema import Layer, Model
from weft.runtime.train.start import start

SAMPLE = ArraySpec((3, 4, 4))
DATA = Shapes(SAMPLE, ArraySpec((), "int32"), 5, Affine(np.zeros(()), np.ones(())))


def network(outputs: int = 5, *, softmax: bool = False) -> Graph:
    b = Builder()
    h = b("conv2d", b.input("x", SAMPLE.shape), channels=4, kernel_size=3, padding=1, name="stem")
    h = b("relu", b("batch_norm", h, name="norm"), name="rectified")
    h = b("dense", b("flatten", h, name="flat"), features=outputs, name="classes")
    return b.build(b("softmax", h, name="shares") if softmax else h)


LAYERS = [
    Layer.model_validate(layer)
    for layer in (
        {"kernel": "conv2d", "channels": 4, "kernel_size": 3, "padding": 1, "name": "stem"},
        {"kernel": "batch_norm", "name": "norm"},
        {"kernel": "relu"},
        {"kernel": "flatten"},
        {"kernel": "dense", "features": 5, "name": "classes"},
    )
]


def weights_of(graph: Graph, seed: int = 7) -> dict[str, np.ndarray]:
    random = np.random.default_rng(seed)
    return {p.name: random.random(p.spec.shape, np.float32) for p in Layout.of(graph).parameters}


def file_of(folder: Path, graph: Graph, weights: dict[str, np.ndarray]) -> str:
    path = folder / "model.onnx"
    save(write(graph, weights), path)
    return str(path)


def begun(model: Model) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray], str]:
    """The weights that a run of this model starts with, those that would be drawn, and what is told."""
    graph, own, of_own = build_with_weights(model, DATA)
    first = start(model, graph, own, of_own)
    optimizer = load_job("digits").train.optimizer.build()
    replica = Replica(graph, optimizer, Device(), 2, seed=3)
    replica.begin(first.weights)
    layout, drawn = replica.layout, initialise(replica.layout, 3)

    def named(flat: np.ndarray) -> dict[str, np.ndarray]:
        return {p.name: flat[p.start : p.stop].reshape(p.spec.shape) for p in layout.parameters}

    return named(replica.parameters), named(drawn), first.note


def test_an_onnx_file_gives_the_graph_and_its_weights(tmp_path):
    weights = weights_of(network())
    got, _, note = begun(Model(onnx=file_of(tmp_path, network(), weights)))
    assert (got.keys(), note) == (weights.keys(), "")
    for name, array in weights.items():
        np.testing.assert_array_equal(got[name], array)


def test_a_file_is_read_up_to_a_value_and_a_head_stands_behind_it(tmp_path):
    weights = weights_of(network(1000))
    head = [Layer(kernel="relu"), Layer.model_validate({"kernel": "dense", "features": 5, "name": "mine"})]
    model = Model(onnx=file_of(tmp_path, network(1000), weights), output="flat", head=head)
    got, drawn, _ = begun(model)
    assert [name for name in got if name not in weights] == ["mine.weight", "mine.bias"]
    np.testing.assert_array_equal(got["stem.weight"], weights["stem.weight"])
    np.testing.assert_array_equal(got["mine.weight"], drawn["mine.weight"])
    graph, *_ = build_with_weights(model, DATA)
    assert [node.name for node in graph.nodes][-3:] == ["head_1", "mine", "loss"]


def test_tokens_of_a_file_may_be_other_integers_than_the_datas(tmp_path):
    b = Builder()
    h = b("embedding", b.input("x", (4,), "int64"), entries=9, width=2)
    path = file_of(tmp_path, graph := b.build(b("dense", b("flatten", h), features=5)), weights_of(graph))
    data = Shapes(ArraySpec((4,), "int32"), DATA.target_spec, 5, DATA.affine)
    assert build_with_weights(Model(onnx=path), data)[0].inputs["x"] == ArraySpec((4,), "int32")


def opened(axes: tuple[str, ...]) -> onnx.ModelProto:
    """A network that is called twice, for samples whose axes are open."""
    nodes = [
        onnx.helper.make_node("MatMul", ["x", "w"], ["h"], name="once"),
        onnx.helper.make_node("MatMul", ["h", "w"], ["y"], name="again"),
    ]
    return onnx.helper.make_model(
        onnx.helper.make_graph(
            nodes,
            "opened",
            [onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, axes)],
            [onnx.helper.make_empty_tensor_value_info("y")],
            [onnx.numpy_helper.from_array(np.arange(25, dtype=np.float32).reshape(5, 5), "w")],
        ),
        opset_imports=[onnx.helper.make_opsetid("", 18)],
    )


def test_axes_that_a_file_leaves_open_are_as_long_as_the_datas(tmp_path):
    data = Shapes(ArraySpec((3, 5)), ArraySpec((3, 5)), 5, DATA.affine)
    model = Model(onnx=str(tmp_path / "open.onnx"), loss="mean_squared_error")
    onnx.save(opened(("n", "time", "width")), model.onnx)
    assert build_with_weights(model, data)[0].inputs["x"] == ArraySpec((3, 5))
    onnx.save(opened(("n", "n", "width")), model.onnx)  # whatever is called as the batch is no size
    with pytest.raises(WeftError, match="open"):
        build_with_weights(model, data)


def test_weights_of_a_file_that_several_nodes_read_are_told(tmp_path):
    data = Shapes(ArraySpec((3, 5)), ArraySpec((3, 5)), 5, DATA.affine)
    onnx.save(opened(("n", "time", "width")), path := str(tmp_path / "open.onnx"))
    model = Model(onnx=path, loss="mean_squared_error")
    graph, own, of_own = build_with_weights(model, data)
    told = "weight 'w' has 2 readers (once, again): they train it together"
    assert told in start(model, graph, own, of_own).note
    assert [*own] == ["once.weight"]

    proto = opened(("n", "time", "width"))
    proto.graph.node[1].CopyFrom(onnx.helper.make_node("Gemm", ["h", "w"], ["y"], transB=1, name="again"))
    del proto.graph.input[0].type.tensor_type.shape.dim[1]
    onnx.save(proto, path)
    data = Shapes(ArraySpec((5,)), ArraySpec((5,)), 5, DATA.affine)
    graph, own, of_own = build_with_weights(model, data)
    assert "(once, again): each trains a copy of its own" in of_own
    assert [*own] == ["once.weight", "again.weight"]


def test_weights_of_a_file_with_open_axes_are_found(tmp_path):
    onnx.save(opened(("n", "time", "width")), path := str(tmp_path / "open.onnx"))
    data = Shapes(ArraySpec((3, 5)), ArraySpec((3, 5)), 5, DATA.affine)
    layers = [{"kernel": "dense", "features": 5, "bias": False, "name": "once"}]
    model = Model(layers=layers, weights=path, loss="mean_squared_error")
    graph, own, _ = build_with_weights(model, data)
    found = start(model, graph, own).weights["once.weight"]
    np.testing.assert_array_equal(found, np.arange(25, dtype=np.float32).reshape(5, 5).T)


def test_weights_are_found_by_name_in_pytorchs_words_too(tmp_path):
    weights = weights_of(network())
    theirs = {name.replace("running_variance", "running_var"): array for name, array in weights.items()}
    save_file({**theirs, "norm.num_batches_tracked": np.array(3)}, tmp_path / "theirs.safetensors")
    got, _, note = begun(Model(layers=LAYERS, weights=str(tmp_path / "theirs.safetensors")))
    assert note == f"starts with 8 of its 8 arrays from {tmp_path / 'theirs.safetensors'}"
    for name, array in weights.items():
        np.testing.assert_array_equal(got[name], array)


def test_what_does_not_fit_is_drawn_and_told(tmp_path):
    weights = weights_of(network(9))
    del weights["norm.bias"]
    save_file(weights, tmp_path / "w.safetensors")
    got, drawn, note = begun(Model(layers=LAYERS, weights=str(tmp_path / "w.safetensors")))
    assert note == (
        f"starts with 5 of its 8 arrays from {tmp_path / 'w.safetensors'}; drawn anew: norm.bias, "
        "classes.weight ((9, 64) there, (5, 64) here), classes.bias ((9,) there, (5,) here)"
    )
    np.testing.assert_array_equal(got["classes.weight"], drawn["classes.weight"])
    np.testing.assert_array_equal(got["stem.bias"], weights["stem.bias"])


def test_weights_go_before_those_of_an_onnx_file(tmp_path):
    weights, others = weights_of(network()), weights_of(network(), 8)
    model = Model(onnx=file_of(tmp_path, network(), weights), weights=str(tmp_path / "w.safetensors"))
    save_file({"stem.weight": others["stem.weight"]}, tmp_path / "w.safetensors")
    got, _, note = begun(model)
    assert note == f"starts with 1 of its 8 arrays from {tmp_path / 'w.safetensors'}"
    np.testing.assert_array_equal(got["stem.weight"], others["stem.weight"])
    np.testing.assert_array_equal(got["stem.bias"], weights["stem.bias"])


REFUSED = {
    "a name that fits, in another shape": (
        lambda folder: save_file({"stem.bias": np.zeros(3, np.float32)}, folder / "w.safetensors"),
        {"weights": "w.safetensors"},
        r"it holds stem.bias, and the model has stem.weight, stem.bias \(\(3,\) there, \(4,\) here\), norm",
    ),
    "nothing that fits": (
        lambda folder: save_file({"a.weight": np.zeros(3, np.float32)}, folder / "w.safetensors"),
        {"weights": "w.safetensors"},
        "it holds a.weight, and the model has stem.weight, stem.bias, norm.weight, norm.bias, and 4 more",
    ),
    "no such file": (lambda folder: None, {"weights": "w.npz"}, "w.npz: there is no such file"),
    "no safetensors": (
        lambda folder: (folder / "w.safetensors").write_text("{}"),
        {"weights": "w.safetensors"},
        "cannot be read as safetensors",
    ),
    "a folder that is no run": (lambda folder: None, {"weights": "."}, "is not a run"),
    "no such model": (lambda folder: None, {"onnx": "model.onnx"}, "model.onnx: there is no such file"),
    "no onnx file": (
        lambda folder: (folder / "model.onnx").write_text("no"),
        {"onnx": "model.onnx"},
        r"\[model\] onnx = '.*model.onnx': .* is no ONNX model, or a damaged one",
    ),
    "no such value": (
        lambda folder: file_of(folder, network(), weights_of(network())),
        {"onnx": "model.onnx", "output": "fc7"},
        "the file has no value 'fc7' that could be an output",
    ),
    "another sample": (
        lambda folder: file_of(folder, g := other(), weights_of(g)),
        {"onnx": "model.onnx"},
        r"takes float32 \(8,\), and a sample of the data is float32 \(3, 4, 4\)",
    ),
    "a sample of tokens": (
        lambda folder: file_of(folder, g := of_tokens(), weights_of(g)),
        {"onnx": "model.onnx"},
        r"takes int64 \(3, 4, 4\), and samples of the data are float32: .* Export the model with a float32",
    ),
    "a softmax behind it": (
        lambda folder: file_of(folder, network(softmax=True), weights_of(network())),
        {"onnx": "model.onnx"},
        r"node 'shares' is a softmax, .*: name the value before it as \[model\] output",
    ),
    "two outputs": (
        lambda folder: file_of(folder, g := forked(), weights_of(g)),
        {"onnx": "model.onnx"},
        r'has 2 outputs that depend on an input; name the value to train as \[model\] output = "NAME"',
    ),
}  # fmt: skip


def other() -> Graph:
    b = Builder()
    return b.build(b("dense", b.input("x", (8,)), features=5))


def of_tokens() -> Graph:
    b = Builder()
    tokens = b.input("x", SAMPLE.shape, "int64")
    return b.build(b("dense", b("flatten", b("embedding", tokens, entries=5, width=2)), features=5))


def forked() -> Graph:
    b = Builder()
    h = b("dense", b("flatten", b.input("x", SAMPLE.shape)), features=5)
    return b.build(h, b("relu", h))


@pytest.mark.parametrize(("make", "keys", "words"), REFUSED.values(), ids=REFUSED)
def test_refused(make, keys, words, tmp_path):
    make(tmp_path)
    keys = {key: str(tmp_path / value) if key != "output" else value for key, value in keys.items()}
    model = Model(**keys) if "onnx" in keys else Model(layers=LAYERS, **keys)
    with pytest.raises(WeftError, match=words):
        begun(model)


def test_a_jobs_files_lie_beside_it_and_a_run_may_go_on_where_they_have_moved(tmp_path):
    text = (
        'data = { source = "digits" }\nmodel = { onnx = "a.onnx", weights = "b.safetensors" }\n'
        'train = { batch = 8, steps = 1, optimizer = { name = "sgd", rate = 0.1 } }\n'
    )
    (tmp_path / "job.toml").write_text(text)
    job = load_job(str(tmp_path / "job.toml"))
    assert job.model.onnx == str(tmp_path / "a.onnx")
    assert job.model.weights == str(tmp_path / "b.safetensors")
    moved = load_job(str(tmp_path / "job.toml"), ["model.onnx=/elsewhere/a.onnx"])
    assert moved.lineage() == job.lineage()
    (tmp_path / "again.toml").write_text(job.dump())
    assert load_job(str(tmp_path / "again.toml")).model == job.model


def test_weights_that_a_run_is_given_when_it_goes_on_are_told_not_to_count(tmp_path):
    before = load_job("digits", [f"model.weights={tmp_path / 'before.safetensors'}"])
    save_file({"dense_1.bias": np.zeros(10, np.float32)}, tmp_path / "before.safetensors")
    data = load_data(before.data, before.seed, before.model.loss.name)
    found = lineage(before, data, build(before.model, data))
    run = RunFolder(tmp_path / "run")
    checkpoint.save(run.checkpoints, checkpoint.Snapshot(3, {}, {"lineage": found}))
    run.job.write_text(before.dump())
    assert examine(before, run.path).start.note == ""
    given = load_job(str(run.job), ["model.weights=/other.safetensors"])
    for _ in range(2):
        assert examine(given, run.path).start.note == (
            "digits: goes on with its own weights; those of [model] weights = '/other.safetensors' are for a "
            "new run"
        )
        run.job.unlink(missing_ok=True)  # of a folder without it, that is still all there is to say


def test_a_folder_that_a_run_is_given_when_it_goes_on_is_told_not_to_count(tmp_path):
    """It stayed where it was, and nothing was said."""
    before = load_job("digits", ["run.folder=/first"])
    data = load_data(before.data, before.seed, before.model.loss.name)
    run = RunFolder(tmp_path / "run")
    found = lineage(before, data, build(before.model, data))
    checkpoint.save(run.checkpoints, checkpoint.Snapshot(3, {}, {"lineage": found}))
    run.job.write_text(before.dump())
    for given, note in (
        (load_job(str(run.job)), ""),
        (load_job("digits"), ""),  # the default; nobody gave it
        (
            load_job(str(run.job), ["run.folder=/other"]),
            "digits: goes on where it is stored; [run] folder = '/other' is for a new run",
        ),
    ):
        assert examine(given, run.path).start.note == note
