"""What is read from ONNX files is trained: gradients against finite differences and the builder's."""

from __future__ import annotations

import numpy as np
import pytest
from ml_dtypes import bfloat16
from onnx import TensorProto
from onnx.numpy_helper import from_array

from tests.pure.graph.onnx_files import Host, compute, expected, file, node
from tests.pure.graph.test_onnx_models import transformer
from weft.kernels.kernel import ArraySpec
from weft.runtime.graph import Builder, Graph, Layout, Memory, Program, with_loss
from weft.runtime.graph.onnx import Model, read, write

BATCH = 4


def network():
    """A small convolutional network: padding, stride, groups, norm, response norm, branches, pools."""
    random = np.random.default_rng(6)

    def weight(*shape):
        return (random.standard_normal(shape) * 0.4).astype(np.float32)

    weights = {
        "w1": weight(4, 2, 3, 3), "b1": weight(4), "w2": weight(4, 2, 3, 3), "w3": weight(2, 4, 1, 1),
        "scale": 1 + weight(4), "shift": weight(4), "mean": weight(4), "variance": 1 + weight(4) ** 2,
        "m": 1 + weight(6, 1, 1), "w4": weight(3, 6), "b4": weight(3),
    }  # fmt: skip
    nodes = [
        node("Conv", "x w1 b1", "c1", pads=[1, 1, 0, 0], strides=[1, 1]),
        node("BatchNormalization", "c1 scale shift mean variance", "n1"),
        node("Relu", "n1", "r1"),
        node("LRN", "r1", "l1", size=3, alpha=0.3),
        node("Conv", "l1 w2", "c2", pads=[2, 2, 2, 2], dilations=[2, 2], group=2),
        node("Conv", "l1 w3", "c3", auto_pad="SAME_UPPER"),
        node("MaxPool", "c2", "p2", kernel_shape=[2, 2], strides=[2, 2], ceil_mode=1),
        node("AveragePool", "c3", "p3", kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1]),
        node("Concat", "p2 p3", "both", axis=1),
        node("Mul", "both m", "scaled"),
        node("Sigmoid", "scaled", "gate"),
        node("Mul", "gate scaled", "gated"),
        node("GlobalAveragePool", "gated", "g"),
        node("Flatten", "g", "f"),
        node("Gemm", "f w4 b4", "logits", transB=1, alpha=0.5),
    ]
    return file(nodes, {"x": ("n", 2, 7, 7)}, ["logits"], weights)


def style_network():
    """What networks of styles have: mirrors, norms of instances, masks, sums and largest elements."""
    random = np.random.default_rng(8)

    def weight(*shape):
        return (random.standard_normal(shape) * 0.4).astype(np.float32)

    weights = {
        "mirror": np.array([0, 0, 1, 2, 0, 0, 2, 1]), "below": np.array([0, 0, 0, 0, 0, 0, 1, 1]),
        "w1": weight(4, 2, 3, 3), "b1": weight(4), "scale": 1 + weight(4), "shift": weight(4),
        "round": np.array([0, 0, 1, 0, 0, 0, 1, 2]), "tenth": np.float32(0.1),
        "mask": random.random((7, 7)) < 0.7, "token": weight(4, 1, 1),
        "pixels": np.array([2, 3]), "w2": weight(4, 4, 3, 3), "w3": weight(3, 4),
        "b3": weight(3), "same": np.array([1, 1, 7, 7]), "flat": np.array([0, 4]),
    }  # fmt: skip
    nodes = [
        node("Pad", "x mirror", "p1", mode="reflect"),
        node("Conv", "p1 w1 b1", "c1", strides=[1, 1]),
        node("InstanceNormalization", "c1 scale shift", "n1"),
        node("Elu", "n1", "e1", alpha=0.8),
        node("Pad", "e1 below", "p2"),
        node("Conv", "p2 w2", "c2", strides=[2, 2]),
        node("GlobalMaxPool", "c2", "top"),
        node("ReduceSum", "e1 pixels", "sum"),
        node("Mul", "sum tenth", "level"),
        node("Expand", "level same", "wide"),
        node("Slice", "e1 from to axes", "cut"),
        node("Where", "mask cut token", "seen"),
        node("Sub", "wide seen", "less"),
        node("Abs", "less", "far"),
        node("Pad", "far round tenth", "p3"),
        node("ReduceMax", "p3", "most", axes=[2, 3]),
        node("Add", "most top", "both"),
        node("Reshape", "both flat", "f"),
        node("Gemm", "f w3 b3", "logits", transB=1),
    ]
    weights |= {"from": np.array([0, 1]), "to": np.array([7, 8]), "axes": np.array([2, 3])}
    return file(nodes, {"x": ("n", 2, 7, 7)}, ["logits"], weights)


def decoder():
    """What enlarges images and ends in probabilities, and lines: slopes, transposed convolutions, blocks."""
    random = np.random.default_rng(9)

    def weight(*shape):
        return (random.standard_normal(shape) * 0.4).astype(np.float32)

    weights = {
        "w1": weight(4, 2, 3, 3), "b1": weight(4), "slope": 0.2 + weight(4, 1, 1), "w2": weight(4, 4, 3, 3),
        "b2": weight(4), "flat": np.array([0, 4, -1]), "w3": weight(4, 4, 3), "scale": 1 + weight(4),
        "shift": weight(4), "mean": weight(4), "variance": 1 + weight(4) ** 2, "width": np.array([2]),
        "w4": weight(4, 2, 4), "w5": weight(3, 2), "b5": weight(3),
    }  # fmt: skip
    nodes = [
        node("Conv", "x w1 b1", "c1", strides=[2, 2], pads=[1, 1, 1, 1]),
        node("PRelu", "c1 slope", "p1"),
        node("ConvTranspose", "p1 w2 b2", "c2", strides=[2, 2], pads=[1, 1, 1, 1], output_padding=[1, 1]),
        node("Mish", "c2", "m2"),
        node("DepthToSpace", "m2", "large", blocksize=2, mode="CRD"),
        node("Tanh", "large", "bent"),
        node("SpaceToDepth", "bent", "small", blocksize=2),
        node("Reshape", "small flat", "lines"),
        node("Conv", "lines w3", "c3", pads=[1, 1]),
        node("BatchNormalization", "c3 scale shift mean variance", "n3"),
        node("Softplus", "n3", "s3"),
        node("AveragePool", "s3", "half", kernel_shape=[2], strides=[2]),
        node("ConvTranspose", "half w4", "c4", strides=[3], pads=[0, 2]),
        node("Exp", "c4", "e4"),
        node("ReduceL2", "e4 width", "length", keepdims=0),
        node("Log", "length", "f"),
        node("Gemm", "f w5 b5", "g", transB=1),
        node("LogSoftmax", "g", "logits"),
    ]
    return file(nodes, {"x": ("n", 2, 7, 7)}, ["logits"], weights)


def of_volumes():
    """Images as the layers of a volume: convolutions both ways, and pools."""
    random = np.random.default_rng(12)

    def weight(*shape):
        return (random.standard_normal(shape) * 0.4).astype(np.float32)

    weights = {
        "one": np.array([1]), "w1": weight(4, 1, 2, 3, 3), "b1": weight(4), "w2": weight(4, 2, 1, 2, 2),
        "b2": weight(2), "w3": weight(3, 2), "b3": weight(3),
    }  # fmt: skip
    nodes = [
        node("Unsqueeze", "x one", "v"),
        node("Conv", "v w1 b1", "c1", pads=[1, 0, 1, 0, 0, 0]),
        node("MaxPool", "c1", "p1", kernel_shape=[2, 2, 2], strides=[1, 2, 2], pads=[1, 0, 0, 0, 0, 1]),
        node("ConvTranspose", "p1 w2 b2", "c2", strides=[1, 2, 2], pads=[0, 1, 0, 0, 0, 1]),
        node("Tanh", "c2", "bent"),
        node("AveragePool", "bent", "p2", kernel_shape=[2, 2, 3], pads=[0, 1, 0, 1, 0, 1]),
        node("GlobalAveragePool", "p2", "g"),
        node("Flatten", "g", "f"),
        node("Gemm", "f w3 b3", "logits", transB=1),
    ]
    return file(nodes, {"x": ("n", 2, 7, 7)}, ["logits"], weights)


@pytest.mark.parametrize("dtype", ["float32", "float16", bfloat16])
def test_a_mask_that_is_stored_as_weights_are_is_not_trained(dtype):
    mask = np.array([0, 0, -np.inf], np.float32)
    weights = {"w": np.ones((3, 2), np.float32), "b": np.zeros(3, np.float32), "stored": mask.astype(dtype)}
    nodes = [node("Gemm", "x w b", "h", transB=1), node("Cast", "stored", "mask", to=TensorProto.FLOAT)]
    nodes += [node("Add", "h mask", "y")]
    model = read(file(nodes, {"x": ("n", 2)}, ["y"], weights))
    roles = {p.name: p.spec.role for p in Layout.of(model.graph).parameters}
    (masks,) = [name for name, role in roles.items() if role != "weight"]
    np.testing.assert_array_equal(model.weights[masks], mask)
    assert len(roles) == 3


NORMS = {  # names of the scale and the bias, the scale, the producer, and whether they are trained
    "what an exporter stored for a norm without weights": (("val_8", "val_11"), 1, "pytorch", False),
    "a norm's weights before their first step": (("n.weight", "n.bias"), 1, "pytorch", True),
    "weights that were trained": (("val_8", "val_11"), 2, "pytorch", True),
    "weights of another exporter": (("val_8", "val_11"), 1, "mine", True),
}


@pytest.mark.parametrize(("names", "scale", "producer", "trained"), NORMS.values(), ids=NORMS)
def test_ones_and_zeros_of_a_norm(names, scale, producer, trained):
    weights = {names[0]: np.full(3, scale, np.float32), names[1]: np.zeros(3, np.float32)}
    proto = file(
        [node("InstanceNormalization", f"x {' '.join(names)}", "y")], {"x": ("n", 3, 4)}, ["y"], weights
    )
    proto.producer_name = producer
    assert bool(Layout.of(read(proto).graph).parameters) == trained


@pytest.mark.parametrize("constant", [True, False], ids=["stored", "from Constant nodes"])
@pytest.mark.parametrize("scale", [1.0, 2.0])
@pytest.mark.parametrize(("shape", "axis"), [((3, 4), -1), ((3, 4), 1), ((4,), -1)], ids=str)
def test_a_layer_norm_without_weights_is_not_trained(shape, axis, scale, constant):
    """PyTorch's newer exporter stores ones, or a Constant of the file does: they were trained."""
    over = shape[axis:] if axis < 0 else shape[axis - 1 :]
    weights = {"val_1": np.full(over, scale, np.float32), "val_2": np.zeros(over, np.float32)}
    nodes = [node("LayerNormalization", "x val_1 val_2", "y", axis=axis)]
    if constant:
        made = [node("Constant", "", name, value=from_array(array)) for name, array in weights.items()]
        nodes, weights = [*made, *nodes], {}
    elif scale == 2:
        return  # a weight, whatever it is called
    proto = file(nodes, {"x": ("n", *shape)}, ["y"], weights)
    proto.producer_name = "pytorch"
    model = read(proto)
    assert [p.name for p in Layout.of(model.graph).parameters if p.spec.role == "weight"] == []
    samples = {"x": np.random.default_rng(3).standard_normal((2, *shape), np.float32)}
    (got,) = compute(model, samples).values()
    np.testing.assert_allclose(got, expected(proto, samples)[0], rtol=1e-5, atol=1e-6)


TOLD = {  # what the file says of the stored array, its name, its value, whether it is trained
    "a parameter that is a number": ("PARAMETER", "scale", 0.35, True),
    "a parameter of whole numbers": ("PARAMETER", "grid", [0.0, 1.0, 2.0], True),
    "a buffer": ("BUFFER", "table", [0.1, 0.2, 0.3], False),
    "a buffer that is a number": ("BUFFER", "scale", 0.35, False),
    "a number that the exporter has made": (None, "threshold_cast", 0.35, False),
    "a matrix that the exporter has turned": (None, "val_3", [0.1, 0.2, 0.3], True),
}


@pytest.mark.parametrize(("kind", "name", "value", "trained"), TOLD.values(), ids=TOLD)
def test_what_pytorch_says_of_a_stored_array_is_believed(kind, name, value, trained):
    weights = {"w": np.ones((3, 2), np.float32), name: np.float32(value)}
    nodes = [node("Gemm", "x w", "h", transB=1), node("Mul", f"h {name}", "y")]
    proto = file(nodes, {"x": ("n", 2)}, ["y"], weights)
    proto.producer_name = "pytorch"
    for each, told in (("w", "PARAMETER"), (name, kind)):
        if told is not None:
            value_info = proto.graph.value_info.add(name=each)
            value_info.metadata_props.add(key="pkg.torch.export.graph_signature.InputSpec.kind", value=told)
    learned = [p for p in Layout.of(read(proto).graph).parameters if p.spec.role == "weight"]
    assert len(learned) == 1 + trained


ANGLES = np.arange(1, 13, dtype=np.float32).reshape(3, 4) / 3
FOUR = np.arange(12, dtype=np.float32).reshape(3, 4)
TABLES = {  # what is stored, the operator that it meets, what makes the operand of it, the producer, trained
    "a weight": ({"w": ANGLES}, "Mul", [], "pytorch", True),
    "a scale that PyTorch made an array": ({"val_7": np.float32([0.35])}, "Mul", [], "pytorch", False),
    "a scale that is a number": ({"scale": np.float32(0.35)}, "Mul", [], "pytorch", True),
    "what follows from a number": (
        {"f": np.float32(0.35)}, "Mul", [node("Exp", "f", "w")], "pytorch", True
    ),
    "a number of PyTorch's older exporter": (
        {"onnx::Mul_3": np.float32(0.35)}, "Mul", [], "pytorch", False
    ),
    "a number that onnxslim has stored": (
        {"/norm/Constant_output_0": np.float32(0.35)}, "Mul", [], "pytorch", False
    ),
    "a number that onnxsim has stored": ({"_v_32": np.float32(0.35)}, "Mul", [], "pytorch", False),
    "an array that onnxslim has stored": ({"/Constant_4_output_0": ANGLES}, "Mul", [], "pytorch", False),
    "a matrix that a simplifier has turned": ({"/Transpose_output_0": ANGLES}, "Mul", [], "pytorch", True),
    "a number that is written down in a model": ({"clone": np.float32(0.35)}, "Mul", [], "pytorch", False),
    "a number of another exporter": ({"scale": np.float32(0.35)}, "Mul", [], "mine", False),
    "a scale of one element": ({"scale": np.float32([0.35])}, "Mul", [], "pytorch", True),
    "zeros that a model makes": ({"zeros_like_1": np.zeros((3, 4), "f4")}, "Add", [], "pytorch", False),
    "zeros that are a weight": ({"zeros.weight": np.zeros(4, "f4")}, "Add", [], "pytorch", True),
    "a sine and a cosine": ({"w": np.sin(ANGLES), "v": np.cos(ANGLES)}, "Mul", [], "", False),
    "sines beside cosines": (
        {"w": np.concatenate([np.sin(ANGLES[:, :2]), np.cos(ANGLES[:, :2])], 1)}, "Add", [], "", False
    ),
    "sines and cosines in turns": (
        {"w": np.stack([np.sin(ANGLES[:, :2]), np.cos(ANGLES[:, :2])], 2).reshape(3, 4)}, "Add", [], "", False
    ),
    "ones and zeros before the first step": (
        {"w": np.ones((3, 4), np.float32), "v": np.zeros((3, 4), np.float32)}, "Mul", [], "pytorch", True
    ),
    "cosines that the file computes of stored frequencies": (
        {"f": ANGLES}, "Mul", [node("Cos", "f", "w")], "", False
    ),
    "the least float above a diagonal": (
        {"w": np.triu(np.full((3, 4), np.finfo("f4").min, "f4"), 1)}, "Add", [], "", False
    ),
    "the least float64 everywhere": (
        {"f": np.full((3, 4), np.finfo("f8").min), "val_0": np.float64(0)}, "Add",
        [node("Mul", "f val_0", "g"), node("Cast", "g", "w", to=TensorProto.FLOAT)], "pytorch", False,
    ),
    "the least float above a diagonal, by PyTorch": (
        {"w": np.triu(np.full((3, 4), np.finfo("f4").min, "f4"), 1)}, "Add", [], "pytorch", False
    ),
    "-100 between windows": ({"w": np.where(FOUR % 3 == 0, np.float32(-100), 0)}, "Add", [], "", False),
    "a mask that follows from stored ones": (
        {"f": np.tril(np.ones((3, 4), "f4")), "one": np.float32(1), "least": np.float32(-1e4)}, "Add",
        [node("Sub", "one f", "d"), node("Mul", "d least", "w")], "", False,
    ),
    "a mask of truths": ({"f": FOUR > 4}, "Mul", [node("Cast", "f", "w", to=TensorProto.FLOAT)], "", False),
    "places of pixels": ({"w": FOUR - 0.5}, "Add", [], "pytorch", False),
    "whole numbers of another exporter": ({"w": FOUR}, "Add", [], "mine", True),
}  # fmt: skip


@pytest.mark.parametrize(("weights", "op", "before", "producer", "trained"), TABLES.values(), ids=TABLES)
def test_tables_that_no_training_made_are_not_trained(weights, op, before, producer, trained):
    """A decoder's rotations and masks, and a detector's grid, moved with every step."""
    first, *others = weights if not before else "w"
    nodes = [*before, node(op, f"x {first}", "h"), node("Add", f"h {(others or [first])[0]}", "y")]
    proto = file(nodes, {"x": ("n", 3, 4)}, ["y"], weights)
    proto.producer_name = producer
    parameters = Layout.of(read(proto).graph).parameters
    assert parameters or not trained  # a number is none
    assert {p.spec.role == "weight" for p in parameters} <= {trained}


class Trained:
    """A graph with a loss, given weights, and samples."""

    def __init__(self, graph: Graph, weights: dict[str, np.ndarray], samples: dict[str, np.ndarray]) -> None:
        self.layout = Layout.of(graph)
        self.flat = Model(graph, weights, {}, {}, {}).parameters(self.layout)
        self.gradients = np.zeros_like(self.flat)
        memory = Memory(graph, self.layout, Host(), BATCH, training=True)
        self.program = Program(graph, self.layout, memory, BATCH, self.flat, self.gradients)
        self.program.loss_gradient[...] = 1 / BATCH
        for name, array in samples.items():
            self.program.inputs[name][...] = array

    def loss(self) -> float:
        for step in self.program.forward:
            step.run()
        return float(self.program.outputs[0].astype(np.float64).mean())

    def gradient(self) -> dict[str, np.ndarray]:
        self.loss()
        for step in self.program.backward:
            step.run()
        return {
            p.name: self.gradients[p.start : p.stop].reshape(p.spec.shape).copy()
            for p in self.layout.parameters
            if p.spec.role == "weight"
        }


def numbers():
    """Learned numbers, as PyTorch stores them: a scale, a temperature, a power, one in place of others."""
    random = np.random.default_rng(11)
    weights = {
        "w1": random.standard_normal((3, 98)).astype(np.float32) * 0.2, "scale": np.float32(0.7),
        "temperature": np.float32(-0.3), "power": np.float32(1.7), "token": np.float32(0.4),
        "seen": np.array([True, False, True]), "level": np.float32(0.6), "one": np.array([1]),
    }  # fmt: skip
    nodes = [
        node("Flatten", "x", "f"), node("Gemm", "f w1", "g", transB=1), node("Mul", "scale g", "s"),
        node("Exp", "temperature", "t"), node("Softplus", "s", "above"), node("Pow", "above power", "p"),
        node("Where", "seen p token", "c"), node("ReduceMean", "c", "m", axes=[1], keepdims=0),
        node("Mul", "m level", "n"), node("Unsqueeze", "n one", "u"), node("Add", "c u", "a"),
        node("Div", "a t", "logits"),
    ]  # fmt: skip
    proto = file(nodes, {"x": ("n", 2, 7, 7)}, ["logits"], weights, version=13)
    proto.producer_name = "pytorch"
    return proto


NETWORKS = {
    "of learned numbers": (numbers, {"g", "s", "p", "c_node_constant_2", "n", "logits"}),
    "of a convolutional network": (network, {"c1", "n1", "c2", "c3", "scaled", "logits"}),
    "of a network of styles": (style_network, {"c1", "n1", "c2", "seen_node_constant_2", "logits"}),
    "of a decoder": (decoder, {"c1", "p1_node_slope", "c2", "c3", "n3", "c4", "g"}),
    "of a network of volumes": (of_volumes, {"c1", "c2", "logits"}),
}


@pytest.mark.parametrize(("make", "trained_nodes"), NETWORKS.values(), ids=NETWORKS)
def test_gradients_equal_finite_differences(make, trained_nodes):
    model = read(make())
    random = np.random.default_rng(3)
    samples = {"x": random.standard_normal((BATCH, 2, 7, 7)), "target": random.integers(0, 3, BATCH)}
    graph = with_loss(model.graph, "softmax_cross_entropy", ArraySpec((), "int32"))
    trained = Trained(graph, dict(model.weights), samples)
    gradients = trained.gradient()
    assert {name.rpartition(".")[0].removesuffix("_node") for name in gradients} == trained_nodes
    start = trained.flat.copy()
    for p in trained.layout.parameters:
        if p.name not in gradients:
            continue
        direction = random.standard_normal(p.spec.size)
        direction /= np.linalg.norm(direction)
        losses = []
        for sign in (1, -1):
            trained.flat[p.start : p.stop] = start[p.start : p.stop] + sign * 4e-3 * direction
            losses.append(trained.loss())
        trained.flat[...] = start
        computed = float(gradients[p.name].reshape(-1) @ direction)
        assert computed == pytest.approx((losses[0] - losses[1]) / 8e-3, rel=0.03, abs=3e-4), p.name


def built(width: int = 8) -> Graph:
    """The transformer of the file by Weft's own kernels."""
    b = Builder()
    tokens = b.input("x", (6,), "int64")
    h = b("position_embedding", b("embedding", tokens, entries=11, width=width, name="table"), name="places")
    packed = b("dense", b("layer_norm", h, name="norm"), features=3 * width, name="qkv")
    attended = b("dense", b("attention", packed, heads=2), features=width, name="out")
    h = b("add", h, attended)
    up = b("gelu", b("dense", h, features=4 * width, name="up"))
    h = b("add", h, b("dense", up, features=width, name="down"))
    return b.build(b("dense", h, features=11, bias=False, name="head"))


SAME = {  # parameters of the builder's model: those of the file, and how they are turned
    "table.weight": "looked_up_node.weight",
    "places.weight": "h_node.weight",
    "norm.weight": "scaled_node.weight",
    "norm.bias": "normed_node.weight",
    "qkv.weight": "packed_node.weight",
    "qkv.bias": "packed_node.bias",
    "out.weight": "attended_node.weight",
    "out.bias": "attended_node.bias",
    "up.weight": "up_node.weight",
    "up.bias": "up_node.bias",
    "down.weight": "down_node.weight",
    "down.bias": "down_node.bias",
    "head.weight": "logits_node.weight",
}


def test_gradients_of_a_transformer_equal_those_of_the_same_model_by_the_builder():
    model = read(transformer())
    random = np.random.default_rng(3)
    samples = {"x": random.integers(0, 11, (BATCH, 6)), "target": random.integers(0, 11, (BATCH, 6))}
    target = ArraySpec((6,), "int32")
    ours = Trained(
        with_loss(built(), "softmax_cross_entropy", target),
        {own: model.weights[name] for own, name in SAME.items()},
        samples,
    )
    read_ = Trained(with_loss(model.graph, "softmax_cross_entropy", target), dict(model.weights), samples)
    assert read_.loss() == pytest.approx(ours.loss(), rel=1e-5)
    wanted, got = ours.gradient(), read_.gradient()
    assert set(got) == set(SAME.values())
    for own, name in SAME.items():
        np.testing.assert_allclose(got[name], wanted[own], rtol=1e-3, atol=1e-5, err_msg=name)


@pytest.mark.parametrize("make", [numbers, transformer], ids=["learned numbers", "a mask"])
def test_what_is_trained_is_so_when_a_written_file_is_read_again(make):
    model = read(make())
    again = read(write(model.graph, model.weights))

    roles = [{p.name: p.spec.role for p in Layout.of(each.graph).parameters} for each in (model, again)]
    assert roles[0] == roles[1]


def test_constants_of_the_file_are_not_trained():
    model = read(transformer())
    graph = with_loss(model.graph, "softmax_cross_entropy", ArraySpec((6,), "int32"))
    statistics = [p for p in Layout.of(graph).parameters if p.spec.role == "statistic"]
    assert [(p.name, p.spec.momentum) for p in statistics] == [("masked_node.weight", 0.0)]


def comparing():
    """What compares values with stored arrays, and looks up tokens that arrays took part in."""
    random = np.random.default_rng(4)
    weights = {
        "one": np.array(1), "places": np.array([0, 1, 2, 1]), "axes": np.array([1]),
        "table": random.standard_normal((6, 4)).astype(np.float32),
        "w": random.standard_normal((4, 3)).astype(np.float32),
        "least": random.standard_normal(3).astype(np.float32),
    }  # fmt: skip
    nodes = [
        node("Cast", "x", "i", to=TensorProto.INT64), node("Equal", "i one", "c"),
        node("Where", "c places i", "m"), node("Gather", "table m", "e"),
        node("ReduceMean", "e axes", "r", keepdims=0), node("MatMul", "r w", "q"),
        node("Greater", "q least", "d"), node("Where", "d q least", "y"),
    ]  # fmt: skip
    return file(nodes, {"x": ("n", 4)}, ["y"], weights)


def test_arrays_that_values_are_compared_with_keep_nothing_from_being_trained():
    """No gradient reached them, nor tokens' places: such a model was read and served, but not trained."""
    model = read(comparing())
    random = np.random.default_rng(3)
    samples = {"x": random.integers(-2, 3, (BATCH, 4)), "target": random.integers(0, 3, BATCH)}
    graph = with_loss(model.graph, "softmax_cross_entropy", ArraySpec((), "int32"))
    trained = Trained(graph, dict(model.weights), samples)
    trained.gradients[...] = np.nan  # of every parameter there is one
    gradients = trained.gradient()
    assert sorted(gradients) == ["e_node.weight", "q_node.weight", "y_node_constant.weight"]
    kept = [p for p in trained.layout.parameters if p.spec.role == "statistic"]
    assert {p.name for p in kept} == {"m_node_constant.weight", "d_node_constant.weight"}
    assert not any(trained.gradients[p.start : p.stop].any() for p in kept)


def test_a_trained_batch_norm_is_not_folded_away():
    names = [each.kernel.name for each in read(network()).graph.nodes]
    assert "batch_norm" in names
    folded = read(network(), inference=True)
    assert "batch_norm" not in [each.kernel.name for each in folded.graph.nodes]
    x = np.random.default_rng(3).standard_normal((2, 2, 7, 7), np.float32)
    for one, other in zip(
        compute(folded, {"x": x}).values(), compute(read(network()), {"x": x}).values(), strict=True
    ):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-6)
