"""What is written to ONNX computes what the graph does: by the onnx package's evaluator, and read by Weft."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import onnx
import pytest

from tests.pure.graph.onnx_files import Host, compute, expected
from weft.kernels.kernel import ArraySpec
from weft.kernels.registry import KERNELS, LOSSES
from weft.runtime.errors import GraphError, MachineError
from weft.runtime.graph import Builder, Graph, Layout, Memory, Program, with_loss
from weft.runtime.graph.onnx import read, save, write
from weft.runtime.graph.onnx.writings import WRITINGS

BATCH = 3


@dataclass
class Case:
    """A graph of one input of this shape, of one layer or of what `build` makes."""

    shape: tuple[int, ...]
    layers: list[tuple[str, dict]] = field(default_factory=list)
    build: object = None
    dtype: str = "float32"
    largest: int = 0  # of tokens
    read: bool = True

    def graph(self) -> Graph:
        b = Builder()
        x = b.input("x", self.shape, self.dtype)
        if self.build:
            return b.build(self.build(b, x))
        for kernel, attributes in self.layers:
            x = b(kernel, x, **attributes)
        return b.build(x)

    def samples(self, random: np.random.Generator) -> np.ndarray:
        shape = (BATCH, *self.shape)
        if self.largest:
            return random.integers(0, self.largest, shape).astype(self.dtype)
        return random.standard_normal(shape).astype(self.dtype)


def one(sample: tuple[int, ...], kernel: str, **attributes) -> Case:
    return Case(sample, [(kernel, attributes)])


IMAGE = (4, 7, 6)
VOLUME = (2, 4, 5, 6)


def number(b, truth):
    return b("cast", truth, dtype="float32")


def truths(b, x):
    """(x > tanh x or not x >= 0.5) and x != 0."""
    one = b("compare", x, b("tanh", x), operator="greater")
    other = b(
        "compare_number",
        b("compare_number", x, operator="greater_equal", value=0.5),
        operator="equal",
        value=0,
    )
    either = b("arithmetic", one, other, operator="add")
    return number(
        b, b("arithmetic", either, b("compare_number", x, operator="not_equal", value=0), operator="mul")
    )


def handed_over(b, x):
    """A decoder that begins with what an encoder ends with."""
    both = {"features": 3, "direction": "bidirectional"}
    coded = b("lstm", x, cells=True, **both)
    ends = [b("flatten", b("slice", coded, axis=1, start=place, stop=place + 1)) for place in (3, 4)]
    return b("concat", coded, b("lstm", x, *ends, **both))


def of_each(b, x):
    """Each of two sequences begins with a state of its own."""
    begin = b("reduce_max", b("slice", x, axis=3, start=0, stop=3), axes=[2], keepdims=False)
    return b("rnn", x, begin, features=3, bias=False)


def of_each_stored(b, x):
    """So does each of the next two, of which a file knows them."""
    return b("gru", x, b("constant", x, shape=(2, 3)), features=3)


def squares(b, x):
    return b("arithmetic_number", x, operator="pow", value=2.0)


CASES = {
    "dense of rows": one((5,), "dense", features=3),
    "dense of rows without a bias": one((5,), "dense", features=3, bias=False),
    "dense of places": one((4, 5), "dense", features=3),
    "dense of places without a bias": one((4, 5), "dense", features=3, bias=False),
    "a convolution with all its attributes": one(
        IMAGE,
        "conv2d",
        channels=6,
        kernel_size=(3, 2),
        stride=(2, 1),
        padding=(1, 0, 2, 1),
        dilation=(1, 2),
        groups=2,
    ),
    "a convolution without a bias": one(IMAGE, "conv2d", channels=3, kernel_size=3, bias=False),
    "a convolution with its relu": one(IMAGE, "conv2d", channels=3, kernel_size=1, relu=True),
    "a convolution onto another value": Case(
        IMAGE, build=lambda b, x: b("conv2d_add", x, x, channels=4, kernel_size=3, padding=1)
    ),
    "a convolution onto another value with its relu": Case(
        IMAGE, build=lambda b, x: b("conv2d_add", x, x, channels=4, kernel_size=3, padding=1, relu=True)
    ),
    "a convolution the other way round": one(
        IMAGE,
        "conv_transpose2d",
        channels=4,
        kernel_size=(3, 2),
        stride=(2, 3),
        padding=(1, 0, 2, 1),
        output_padding=(1, 2),
        dilation=(1, 2),
    ),
    "a convolution the other way round without a bias": one(
        IMAGE, "conv_transpose2d", channels=3, kernel_size=2, stride=2, bias=False
    ),
    "a convolution of volumes": one(
        VOLUME,
        "conv3d",
        channels=4,
        kernel_size=(2, 3, 1),
        stride=(2, 1, 3),
        padding=(1, 0, 2, 1, 2, 0),
        dilation=(1, 2, 1),
        groups=2,
    ),
    "a convolution of volumes without a bias": one(VOLUME, "conv3d", channels=3, kernel_size=1, bias=False),
    "a convolution of volumes the other way round": one(
        VOLUME,
        "conv_transpose3d",
        channels=3,
        kernel_size=(2, 3, 1),
        stride=(2, 3, 1),
        output_padding=(1, 0, 0),
    ),
    "the largest of windows": one(IMAGE, "max_pool2d", kernel_size=(3, 2), stride=2, padding=1),
    "means of windows, padding left out": one(
        IMAGE, "average_pool2d", kernel_size=3, stride=2, padding=(0, 1, 1, 0)
    ),
    "means of windows, padding counted": one(
        IMAGE, "average_pool2d", kernel_size=3, stride=2, padding=1, count_include_pad=True
    ),
    "a channel's mean": one(IMAGE, "global_average_pool2d"),
    "relu": one((5,), "relu"),
    "gelu": one((5,), "gelu"),
    "gelu by tanh": one((5,), "gelu", approximate="tanh"),
    "clip": one((5,), "clip", minimum=-0.5, maximum=0.25),
    "clip, from below": one((5,), "clip", minimum=0.1),
    "elu": one((5,), "elu", alpha=0.7),
    "leaky relu": one((5,), "leaky_relu", slope=0.2),
    "tanh": one((5,), "tanh"),
    "sigmoid": one((5,), "sigmoid"),
    "softplus": one((5,), "softplus"),
    "exponentials": one((5,), "exp"),
    "logarithms": Case((5,), build=lambda b, x: b("log", squares(b, x))),
    "erf": one((5,), "erf"),
    "square roots": Case((5,), build=lambda b, x: b("sqrt", squares(b, x))),
    "a cast to integers": Case(
        (5,), build=lambda b, x: b("cast", b("cast", x, dtype="int32"), dtype="float32")
    ),
    "softmax": one((4, 5), "softmax"),
    "softmax of columns": one((4, 5), "softmax", axis=1),
    "logarithms of a softmax": one((4, 5), "log_softmax", axis=1),
    "dropout, which inference leaves out": one((5,), "dropout", rate=0.5),
    "a sum of one": Case((5,), build=lambda b, x: b("add", x)),
    "a sum of two": Case((5,), build=lambda b, x: b("add", x, b("relu", x))),
    "a sum of three": Case((5,), build=lambda b, x: b("add", x, b("relu", x), b("tanh", x))),
    "a difference of values of as many axes": Case(
        (4, 5), build=lambda b, x: b("arithmetic", x, b("tanh", x), operator="sub")
    ),
    "a product of values of fewer axes, whose batch stays in front": Case(
        (4, BATCH, 5),
        build=lambda b, x: b("arithmetic", b("reduce_mean", x, axes=(1,), keepdims=False), x, operator="mul"),
    ),
    "the larger of two values": Case(
        (5,), build=lambda b, x: b("arithmetic", x, b("tanh", x), operator="max")
    ),
    "sines": one((5,), "sin"),
    "cosines": one((5,), "cos"),
    "angles": one((5,), "arctan"),
    "nearest numbers": one((5,), "rounded"),
    "numbers below": one((5,), "rounded", to="below"),
    "numbers above": one((5,), "rounded", to="above"),
    "truths of two values and of a number": Case((4, 5), build=truths),
    "no number is equal to itself": Case(
        (5,), build=lambda b, x: number(b, b("compare", x, x, operator="not_equal"))
    ),
    "a choice of two": Case(
        (4, 5),
        build=lambda b, x: b(
            "where",
            b("compare_number", b("reduce_max", x, axes=(2,)), operator="greater", value=0.5),
            x,
            b("constant", x, shape=(), trained=False),
        ),
    ),
    "a choice of fewer axes, whose batch stays in front": Case(
        (4, BATCH, 5),
        build=lambda b, x: b(
            "where",
            b("compare", b("reduce_mean", x, axes=(1,), keepdims=False), x, operator="less_equal"),
            x,
            b("reduce_mean", x, axes=(1,), keepdims=False),
        ),
    ),
    "a weight added to values": one((4, 5), "arithmetic_weight", operator="add", shape=(5,)),
    "values that divide a weight of more axes": Case(
        (5,),
        build=lambda b, x: b(
            "arithmetic_weight",
            b("arithmetic_number", squares(b, x), operator="add", value=1.0),
            operator="div",
            shape=(4, 1),
            reverse=True,
        ),
    ),
    "a number less values": one((5,), "arithmetic_number", operator="sub", value=2.5, reverse=True),
    "a constant": Case((5,), [("constant", {"shape": (2, 3)})], read=False),
    "a product of matrices": Case(
        (4, 5), build=lambda b, x: b("matmul", x, b("transpose", x, axes=(2, 1)))
    ),
    "a product of matrices of fewer axes": Case(
        (BATCH, 4, 5),
        build=lambda b, x: b(
            "matmul", x, b("transpose", b("reduce_mean", x, axes=(1,), keepdims=False), axes=(2, 1))
        ),
    ),
    "means that keep their axis": one((4, 5), "reduce_mean", axes=(2,)),
    "means over two axes": one((2, 4, 5), "reduce_mean", axes=(1, 3), keepdims=False),
    "sums that drop their axis": one((4, 5), "reduce_sum", axes=(1,), keepdims=False),
    "the largest over two axes": one((2, 4, 5), "reduce_max", axes=(1, 3)),
    "lengths that drop their axes": one((2, 4, 5), "reduce_l2", axes=(1, 3), keepdims=False),
    "places of the largest": one((4, 5), "arg_max", axis=1),
    "places of the last of the smallest": one((4, 5), "arg_max", keepdims=False, smallest=True, last=True),
    "the first three": one((4, 5), "top_k", axis=1, k=3),
    "the last two": one((4, 5), "top_k", k=2, smallest=True),
    "places of the first three": one((4, 5), "top_k_indices", k=3),
    "sums along an axis": one((4, 5), "cumulative_sum", axis=1),
    "sums of what comes later": one((4, 5), "cumulative_sum", exclusive=True, reverse=True),
    "a concatenation": Case((4, 5), build=lambda b, x: b("concat", x, b("relu", x), x, axis=2)),
    "a reshape": one((4, 6), "reshape", shape=(3, -1)),
    "a flatten": one((4, 6), "flatten"),
    "a transpose": one((2, 4, 5), "transpose", axes=(3, 1, 2)),
    "a slice": one((4, 9), "slice", axis=2, start=1, stop=8, step=3),
    "a selection": one((4, 5), "take", axis=1, indices=(3, 0, 3)),
    "a pad": one(IMAGE, "pad", before=(0, 1, 2), after=(1, 0, 0), value=-0.5),
    "rows between rows": one(IMAGE, "resample", axis=2, extent=11),
    "columns by a scale, with four neighbours": one(
        IMAGE, "resample", axis=-1, extent=9, mode="cubic", coordinates="asymmetric", scale=1.6
    ),
    "an instance norm": one(IMAGE, "instance_norm", epsilon=1e-3),
    "an instance norm without weights": one(IMAGE, "instance_norm", affine=False),
    "a batch norm": one(IMAGE, "batch_norm", epsilon=1e-3),
    "a batch norm of rows": one((5,), "batch_norm"),
    "a layer norm": one((4, 5), "layer_norm", epsilon=1e-3),
    "a response norm": one(IMAGE, "response_norm", size=3, alpha=0.2, beta=0.6, bias=1.5),
    "causal attention": one((5, 3 * 8), "attention", heads=2),
    "attention to all": one((5, 3 * 8), "attention", heads=4, causal=False),
    "long short-term memory": one((4, 5), "lstm", features=3),
    "long short-term memory in both directions": one((4, 5), "lstm", features=3, direction="bidirectional"),
    "gated units backwards, without biases": one((4, 5), "gru", features=3, direction="reverse", bias=False),
    "gated units as first published": one((4, 5), "gru", features=3, reset_after=False),
    "several sequences a sample": Case((2, 4, 5), [("lstm", {"features": 3})]),
    "a recurrent layer backwards": one((4, 5), "rnn", features=3, direction="reverse"),
    "one of rectified sums, both ways": one(
        (4, 5), "rnn", features=3, direction="bidirectional", activation="relu"
    ),
    "states and cells that are handed over": Case((4, 5), build=handed_over),
    "states of several sequences": Case((2, 4, 5), build=of_each),
    "stored states of several sequences": Case((2, 4, 5), build=of_each_stored),
    "cells of several sequences": one((2, 4, 5), "lstm", features=3, direction="bidirectional", cells=True),
    "an embedding of bytes": Case(
        (5,), [("embedding", {"entries": 11, "width": 4})], dtype="uint8", largest=11
    ),
    "an embedding with its places": Case(
        (5,),
        [("embedding", {"entries": 11, "width": 4}), ("position_embedding", {})],
        dtype="int64",
        largest=11,
    ),
}  # fmt: skip


def weights_of(graph: Graph, random: np.random.Generator) -> dict[str, np.ndarray]:
    """Random ones; variances above 0."""
    found = {}
    for parameter in Layout.of(graph).parameters:
        array = random.standard_normal(parameter.spec.shape).astype(np.float32)
        found[parameter.name] = array**2 + 0.5 if parameter.spec.name == "running_variance" else array
    return found


def computed(graph: Graph, weights: dict[str, np.ndarray], samples: np.ndarray) -> np.ndarray:
    """The graph's output by Weft."""
    layout = Layout.of(graph)
    flat = np.zeros(layout.size, np.float32)
    for parameter in layout.parameters:
        flat[parameter.start : parameter.stop] = weights[parameter.name].reshape(-1)
    memory = Memory(graph, layout, Host(), len(samples), training=False)
    program = Program(graph, layout, memory, len(samples), flat)
    program.inputs["x"][...] = samples
    for step in program.forward:
        step.run()
    return program.outputs[0]


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_a_written_kernel_computes_what_the_graph_does(case):
    random = np.random.default_rng(5)
    graph, samples = case.graph(), case.samples(random)
    weights = weights_of(graph, random)
    proto = write(graph, weights)
    onnx.checker.check_model(proto, full_check=True)
    wanted = computed(graph, weights, samples)
    (got,) = expected(proto, {"x": samples})
    assert got.dtype == wanted.dtype
    np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-5)
    if case.read:
        (again,) = compute(read(proto), {"x": samples}).values()
        np.testing.assert_allclose(again, wanted, rtol=1e-4, atol=1e-5)


def test_every_kernel_but_losses_is_written_and_tried():
    kinds = {type(node.kernel) for case in CASES.values() for node in case.graph().nodes}
    assert kinds == set(WRITINGS) == set(KERNELS.values()) - set(LOSSES.values())


def test_groups_of_a_transposed_convolution_are_written():
    """The evaluator computes groups of one output channel alone."""
    random = np.random.default_rng(5)
    graph = one(IMAGE, "conv_transpose2d", channels=6, kernel_size=2, stride=2, groups=2).graph()
    weights, samples = weights_of(graph, random), random.standard_normal((BATCH, *IMAGE), np.float32)
    proto = write(graph, weights)
    onnx.checker.check_model(proto, full_check=True)
    (again,) = compute(read(proto), {"x": samples}).values()
    np.testing.assert_array_equal(again, computed(graph, weights, samples))


def test_samples_are_taken_raw_and_scaled_in_the_file():
    random = np.random.default_rng(5)
    case = one((2, 3), "flatten")
    mean, scale = random.standard_normal((2, 3)), np.float64(1 / 16)
    samples = case.samples(random)
    (got,) = expected(write(case.graph(), {}, mean=mean, scale=scale), {"x": samples})
    np.testing.assert_allclose(got, ((samples - mean) * scale).reshape(BATCH, -1), rtol=1e-5)


def test_weights_have_a_checkpoints_names_also_when_they_are_read_again():
    b = Builder()
    h = b("conv2d", b.input("x", IMAGE), channels=3, kernel_size=3, relu=True, name="stem")
    graph = b.build(b("dense", b("flatten", h), features=2, name="head"))
    weights = weights_of(graph, np.random.default_rng(5))
    proto = write(graph, weights, properties={"run": "here"})
    assert {each.name for each in proto.graph.initializer} == set(weights)
    again = read(proto)
    assert set(again.weights) == set(weights)
    for name, array in weights.items():
        np.testing.assert_array_equal(again.weights[name], array)
    assert (again.inputs, again.outputs) == ({"x": "x"}, {"head": "head"})
    assert [(each.key, each.value) for each in proto.metadata_props] == [("run", "here")]


@pytest.mark.parametrize("kind", ["rnn", "lstm", "gru"])
def test_weights_of_recurrent_layers_keep_their_names_too(kind):
    b = Builder()
    h = b(kind, b.input("x", (4, 5)), features=3, direction="bidirectional", name="encoder")
    graph = b.build(b(kind, h, features=2, name="decoder"))
    weights = weights_of(graph, np.random.default_rng(5))
    again = read(write(graph, weights))
    assert set(again.weights) == set(weights)
    for name, array in weights.items():
        np.testing.assert_array_equal(again.weights[name], array)


def test_a_loss_is_refused_by_name():
    graph = with_loss(one((5,), "dense", features=3).graph(), "softmax_cross_entropy", ArraySpec((), "int32"))
    with pytest.raises(GraphError, match="node 'loss': softmax_cross_entropy has no operator"):
        write(graph, weights_of(graph, np.random.default_rng(5)))


def test_a_file_is_there_whole_or_not_at_all(tmp_path):
    graph = one((5,), "relu").graph()
    path = tmp_path / "here" / "model.onnx"
    save(write(graph, {}), path)
    assert [each.name for each in path.parent.iterdir()] == ["model.onnx"]
    assert read(path).graph.nodes[0].kernel.name == "relu"
    with pytest.raises(MachineError, match="here: cannot be written: Is a directory"):
        save(write(graph, {}), path.parent)
    with pytest.raises(MachineError, match=r"model.onnx/a.onnx: cannot be written: File exists"):
        save(write(graph, {}), path / "a.onnx")
    assert [each.name for each in tmp_path.rglob("*")] == ["here", "model.onnx"]
