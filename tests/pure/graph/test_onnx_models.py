"""Whole models from ONNX files, against the onnx package's evaluator.

The light models that ship with the package have weights that are all equal, with which a wrong convolution
looks like a right one: they get random ones.
"""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import helper

from bench import _light
from tests.pure.graph.onnx_files import compute, expected, file, node
from weft.runtime.graph import Layout, describe
from weft.runtime.graph.onnx import read


def light(name: str, pixels: int = 224) -> onnx.ModelProto:
    """A light model with random weights, and what its last Softmax reads beside what that makes of it."""
    proto = _light.load(name, pixels)
    last = proto.graph.node[-1]
    if last.op_type == "Softmax":  # which hides errors in all but the largest logits
        proto.graph.output.append(helper.make_empty_tensor_value_info(last.input[0]))
    return proto


# The evaluator takes seconds for 224 x 224 pixels. What pools globally takes any size; shufflenet does not,
# but has what the others lack: groups, transposes, sums.
MODELS = {"squeezenet": 64, "densenet121": 64, "shufflenet": 224}


@pytest.mark.parametrize(("name", "pixels"), MODELS.items(), ids=MODELS)
def test_a_light_model_computes_what_the_evaluator_does(name, pixels):
    proto = light(name, pixels)
    model, folded = read(proto), read(proto, inference=True)
    (entry,) = model.inputs
    images = np.random.default_rng(1).standard_normal((1, 3, pixels, pixels), np.float32)
    wanted = expected(proto, {entry: images})
    assert np.std(wanted[-1]) > 0.1 * np.max(np.abs(wanted[-1]))  # else any weights would do
    for each in (model, folded):
        for got, target in zip(compute(each, {entry: images}).values(), wanted, strict=True):
            np.testing.assert_allclose(got, target, rtol=1e-3, atol=1e-5 * np.max(np.abs(target)))
    if name == "shufflenet":  # densenet121's norms come before its convolutions
        assert not any(each.kernel.name == "batch_norm" for each in folded.graph.nodes)


def test_a_file_for_one_image_serves_any_batch():
    proto = light("squeezenet", 33)
    model = read(proto)
    images = np.random.default_rng(1).standard_normal((3, 3, 33, 33), np.float32)
    together, _ = compute(model, {"data_0": images}).values()
    for image, got in zip(images, together, strict=True):
        alone, _ = compute(model, {"data_0": image[None]}).values()
        np.testing.assert_allclose(got, alone[0], rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("name", _light.names())
def test_every_light_model_is_read(name):
    model = read(_light.FOLDER / f"light_{name}.onnx")
    assert {parameter.name for parameter in Layout.of(model.graph).parameters} == set(model.weights)
    assert sum(each.cost.forward_flops for each in describe(model.graph, 1).values()) > 1e8


def transformer(*, batch: int | str = "batch", places: int | str = 6, width: int = 8, heads: int = 2):
    """A block as exporters write it: shapes computed, norm and GELU spelled out, q|k|v split, a mask."""
    random = np.random.default_rng(4)

    def weight(*shape):
        return (random.standard_normal(shape) * 0.4).astype(np.float32)

    weights = {
        "table": weight(11, width), "places": weight(16, width),
        "norm.weight": 1 + weight(width), "norm.bias": weight(width),
        "qkv.weight": weight(width, 3 * width), "qkv.bias": weight(3 * width),
        "out.weight": weight(width, width), "out.bias": weight(width),
        "up.weight": weight(width, 4 * width), "up.bias": weight(4 * width),
        "down.weight": weight(4 * width, width), "down.bias": weight(width),
        "head.weight": weight(width, 11),
    }  # fmt: skip
    size = width // heads

    def constant(name, value):
        return node("Constant", "", name, value=onnx.numpy_helper.from_array(np.asarray(value), name))

    nodes = [
        constant("zero", np.int64(0)), constant("one", np.int64(1)),
        constant("first", np.array([0])), constant("second", np.array([1])),
        constant("heads_and_size", np.array([heads, size])), constant("minus_one", np.array([-1])),
        constant("epsilon", np.float32(1e-5)), constant("two", np.float32(2)),
        constant("root_two", np.float32(np.sqrt(2))), constant("half", np.float32(0.5)),
        constant("one_f", np.float32(1)), constant("root", np.float32(np.sqrt(size))),
        constant("far", np.float32(-1e9)),
        # shapes, as they are asked for at run time
        node("Shape", "tokens", "shape"),
        node("Gather", "shape zero", "n", axis=0), node("Gather", "shape one", "t", axis=0),
        node("Unsqueeze", "n first", "n1"), node("Unsqueeze", "t first", "t1"),
        node("Slice", "places first t1 first", "own_places"),
        node("Gather", "table tokens", "looked_up"), node("Add", "looked_up own_places", "h"),
        # layer norm in its parts
        node("ReduceMean", "h minus_one", "mean"), node("Sub", "h mean", "centred"),
        node("Pow", "centred two", "squares"), node("ReduceMean", "squares minus_one", "variance"),
        node("Add", "variance epsilon", "safe"), node("Sqrt", "safe", "deviation"),
        node("Div", "centred deviation", "normal"), node("Mul", "normal norm.weight", "scaled"),
        node("Add", "scaled norm.bias", "normed"),
        # attention
        node("MatMul", "normed qkv.weight", "packed_raw"), node("Add", "qkv.bias packed_raw", "packed"),
        node("Split", "packed", "q k v", axis=2, num_outputs=3),
        node("Concat", "n1 t1 heads_and_size", "apart", axis=0),
        node("Reshape", "q apart", "q4"), node("Reshape", "k apart", "k4"), node("Reshape", "v apart", "v4"),
        node("Transpose", "q4", "qh", perm=[0, 2, 1, 3]), node("Transpose", "k4", "kh", perm=[0, 2, 3, 1]),
        node("Transpose", "v4", "vh", perm=[0, 2, 1, 3]),
        node("MatMul", "qh kh", "products"), node("Div", "products root", "scores"),
        node("Concat", "t1 t1", "square", axis=0),
        node("ConstantOfShape", "square", "full", value=helper.make_tensor("v", 1, [1], [1.0])),
        node("Trilu", "full", "lower", upper=0), node("Sub", "one_f lower", "above"),
        node("Mul", "above far", "mask"), node("Add", "scores mask", "masked"),
        node("Softmax", "masked", "weights", axis=-1), node("MatMul", "weights vh", "mixed"),
        node("Transpose", "mixed", "back", perm=[0, 2, 1, 3]),
        node("Concat", "n1 t1 minus_one", "together", axis=0), node("Reshape", "back together", "joined"),
        node("MatMul", "joined out.weight", "out_raw"), node("Add", "out_raw out.bias", "attended"),
        node("Add", "h attended", "h2"),
        # GELU by erf between two Gemms, which see two axes
        node("Constant", "", "rows", value=onnx.numpy_helper.from_array(np.array([-1, width]), "rows")),
        node("Reshape", "h2 rows", "flat"), node("Gemm", "flat up.weight up.bias", "up"),
        node("Div", "up root_two", "inner"), node("Erf", "inner", "bent"),
        node("Add", "bent one_f", "lifted"), node("Mul", "up lifted", "double"),
        node("Mul", "double half", "active"),
        node("Gemm", "active down.weight down.bias", "down"),
        node("Shape", "h2", "h_shape"), node("Reshape", "down h_shape", "down3"),
        node("Add", "h2 down3", "h3"), node("MatMul", "h3 head.weight", "logits"),
    ]  # fmt: skip
    return file(nodes, {"tokens": (batch, places)}, ["logits"], weights, integers=["tokens"])


@pytest.mark.parametrize("batch", ["batch", 1, 4], ids=["an open batch", "a batch of one", "a fixed batch"])
def test_an_exported_transformer_computes_what_the_evaluator_does(batch):
    proto = transformer(batch=batch)
    model = read(proto)
    count = 3 if batch == "batch" else batch
    tokens = np.random.default_rng(2).integers(0, 11, (count, 6))
    (wanted,) = expected(proto, {"tokens": tokens})
    (got,) = compute(model, {"tokens": tokens}).values()
    np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-5)


def test_an_open_axis_is_fixed_by_its_name():
    proto = transformer(places="places")
    model = read(proto, sizes={"places": 5})
    tokens = np.random.default_rng(2).integers(0, 11, (2, 5))
    (wanted,) = expected(proto, {"tokens": tokens})
    (got,) = compute(model, {"tokens": tokens}).values()
    np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-5)


def test_neighbours_are_merged():
    model = read(transformer())
    dense = [each for each in model.graph.nodes if each.kernel.name == "dense"]
    assert [each.kernel.bias for each in dense] == [True, True, True, True, False]
    # scale and shift of the norm, whose parts stay apart, and the mask; not a node for every bias
    weighted = [each for each in model.graph.nodes if each.kernel.name == "arithmetic_weight"]
    assert [each.kernel.trained for each in weighted] == [True, True, True, False]


def test_outputs_may_be_any_values_and_what_they_need_is_all_that_is_read():
    model = read(transformer(), outputs=["normed"])
    assert list(model.outputs) == ["normed"]
    assert not any(each.kernel.name == "matmul" for each in model.graph.nodes)


def test_s1_2_the_file_may_give_tags():
    proto = transformer()
    (gemm,) = (each for each in proto.graph.node if each.output[0] == "up")
    for key, value in {"weft.cost": "5e6", "weft.priority": "2", "other": "x"}.items():
        gemm.metadata_props.add(key=key, value=value)
    model = read(proto)
    found = describe(model.graph, 1)[model.graph.by_name["up_node"].name]
    assert (found.cost.forward_flops, found.cost_source, found.priority) == (5e6, "given", 2)
    assert "other" not in found.tags
