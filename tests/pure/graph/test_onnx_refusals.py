"""What the ONNX reader refuses, it names: the file, the operator and the node, and what to do."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from tests.pure.graph.onnx_files import file, node, one
from weft.runtime.errors import GraphError
from weft.runtime.graph.onnx import read

ONES = np.ones


def endless():
    """A function of the file that calls itself."""
    proto = one("Relu")
    proto.graph.node[0].op_type, proto.graph.node[0].domain = "Again", "own"
    sets = [onnx.helper.make_opsetid("", 18), onnx.helper.make_opsetid("own", 1)]
    call = onnx.helper.make_node("Again", ["a"], ["b"], domain="own")
    proto.functions.append(onnx.helper.make_function("own", "Again", ["a"], ["b"], [call], sets))
    proto.opset_import.append(sets[1])
    return proto


def a_slice(**integers):
    return one("Slice", " ".join(["x", *integers]), weights={k: np.array(v) for k, v in integers.items()})


def domain():
    proto = one("Relu")
    proto.graph.node[0].domain = "com.example"
    return proto


def named(name):
    """Two nodes, the first called as PyTorch's exporter calls it and its value."""
    value = f"{name}_output_0"
    proto = file([node("Relu", "x", value), node("Tanh", value, "y")], {"x": ("n", 4)}, ["y"], {})
    proto.graph.node[0].name = name
    return proto


def branches():
    inner = onnx.helper.make_graph([node("Relu", "x", "z")], "then", [], [onnx.ValueInfoProto(name="z")])
    return file(
        [node("If", "yes", "y", then_branch=inner, else_branch=inner)],
        {"x": ("n", 4)},
        ["y"],
        {"yes": np.array(True)},
    )


IMAGE = ("n", 2, 6, 6)

WRONG = {
    "an operator that Weft lacks": (
        one("Det"),
        {},
        [
            "node 'y_node': Weft has no kernel for the operator Det: write the model without it, or read it "
            "up to a value before it; it has Abs, Add, ", "Unsqueeze",
        ],
    ),
    "a loop": (
        one("Loop", "x"), {}, ["operator Loop: its graphs do not branch or loop; ", "of nn.EmbeddingBag; it"]
    ),
    "an operator of another domain": (domain(), {}, ["operator com.example.Relu"]),
    "an image that is cropped": (
        one("Resize", "x r s", shape=IMAGE, weights={"r": ONES(0, "f4"), "s": np.float32([1, 1, 0.5, 2])},
            coordinate_transformation_mode="tf_crop_and_resize"),
        {},
        ["(Resize): it is nearest, tf_crop_and_resize, round_prefer_floor; Weft has nearest, "],
    ),
    "an image that is made smaller with neighbours far away": (
        one("Resize", "x r s", shape=IMAGE, weights={"r": ONES(0, "f4"), "s": np.float32([1, 1, 0.5, 2])},
            mode="linear", antialias=1),
        {},
        ["(Resize): its antialias is on"],
    ),
    "corners of a size that is cut": (
        one("Resize", "x r s", shape=IMAGE, weights={"r": ONES(0, "f4"), "s": np.float32([1, 1, 0.4, 2])},
            mode="linear", coordinate_transformation_mode="align_corners"),
        {},
        ["(Resize): its scales are [1.0, 1.0, 0.4", "no whole number; store sizes instead"],
    ),
    "another cubic": (
        one("Resize", "x r s", shape=IMAGE, weights={"r": ONES(0, "f4"), "s": np.float32([1, 1, 2, 2])},
            mode="cubic", cubic_coeff_a=-0.5),
        {},
        ["(Resize): its cubic_coeff_a is -0.5"],
    ),
    "samples that are made more": (
        one("Resize", "x r s", shape=(2, 2, 6, 6),
            weights={"r": ONES(0, "f4"), "s": np.float32([2, 1, 1, 1])}),
        {},
        ["(Resize): it works along axis 0, the batch"],
    ),
    "a size that is none": (
        one("Resize", "x r r s", shape=IMAGE, weights={"r": ONES(0, "f4"), "s": np.array([1, 2, 12, 12])},
            keep_aspect_ratio_policy="not_larger"),
        {},
        ["(Resize): its keep_aspect_ratio_policy is 'not_larger', which changes its sizes"],
    ),
    "a function without an end": (endless(), {}, ["own functions cannot be written out", "Cycle"]),
    "a value that two nodes make": (
        file([node("Relu", "x", "y"), node("Tanh", "x", "y")], {"x": ("n", 4)}, ["y"], {}),
        {},
        ["the file gives 'y' several values"],
    ),
    "more elements than there is memory": (
        one("Expand", "x s", shape=(1, 1), weights={"s": np.array([1, 2**60])}),
        {},
        ["node 'y_node' (Expand): what it makes is too large for this machine: out of memory"],
    ),
    "a text that is none": (
        one("Pad", "x p", weights={"p": np.array([0, 1, 0, 0])}, mode=b"\xff"), {}, ["(Pad): its mode is"]
    ),
    "a group's scale of old": (
        one("GroupNormalization", "x s s", shape=IMAGE, weights={"s": ONES(2, "f4")}, num_groups=2),
        {},
        ["(GroupNormalization): Weft reads it with a batch and as of operator set 21"],
    ),
    "groups that cut channels": (
        one("GroupNormalization", "x s s", shape=("n", 4, 3, 5), weights={"s": ONES(4, "f4")}, num_groups=3,
            version=21),
        {},
        ["(GroupNormalization): num_groups is 3; give a number that divides the 4 channels"],
    ),
    "a norm of instances by ones for other channels": (
        file(
            [
                node("Constant", "", "s", value_floats=[1.0] * 3),
                node("Constant", "", "b", value_floats=[0.0] * 3),
                node("InstanceNormalization", "x s b", "y"),
            ],
            {"x": IMAGE}, ["y"], {},
        ),
        {},
        ["(InstanceNormalization): its weight has shape (3,); it takes (2,) here"],
    ),
    "a branch": (branches(), {}, ["operator If"]),
    "filters that are computed": (
        file([node("Conv", "x w", "y")], {"x": (1, 2, 6, 6), "w": (1, 2, 3, 3)}, ["y"], {}),
        {},
        ["node 'y_node' (Conv): its filters 'w' is computed; Weft needs it stored in the file"],
    ),
    "a slice along an axis that is not there": (
        a_slice(start=[0], end=[2], axis=[5]),
        {},
        ["node 'y_node' (Slice): axis 5 of a value with 2 axes"],
    ),
    "a slice along an axis twice": (
        a_slice(start=[0, 0], end=[2, 2], axis=[1, -1]),
        {},
        ["node 'y_node' (Slice): its axes [1, -1] name one twice, of a value with 2 axes"],
    ),
    "a slice with fewer ends than starts": (
        a_slice(start=[0, 0], end=[2]),
        {},
        ["node 'y_node' (Slice): it has 2 starts, 1 ends, 2 axes and 2 steps"],
    ),
    "a slice that stands still": (
        a_slice(start=[0], end=[2], axis=[1], step=[0]),
        {},
        ["node 'y_node' (Slice): a step of 0"],
    ),
    "a new axis that is not there": (
        one("Unsqueeze", "x axis", weights={"axis": np.array([9])}),
        {},
        ["node 'y_node' (Unsqueeze): axis 9 of a value with 3 axes"],
    ),
    "an axis that goes and is not there": (
        one("Squeeze", "x axis", shape=("n", 1), weights={"axis": np.array([3])}),
        {},
        ["node 'y_node' (Squeeze): axis 3 of a value with 2 axes"],
    ),
    "a convolution along four axes": (
        one("Conv", "x w", shape=("n", 2, 6, 6, 6, 6), weights={"w": ONES((3, 2, 3, 3, 3, 3), "f4")}),
        {},
        ["(N, 2, 6, 6, 6, 6)", "takes images (N, channels, height, width), without the height, or with"],
    ),
    "a convolution of lines with filters of images": (
        one("Conv", "x w", shape=("n", 2, 6), weights={"w": ONES((3, 2, 3, 3), "f4")}),
        {},
        ["(Conv): its filters have shape (3, 2, 3, 3), and its input (N, 2, 6)"],
    ),
    "pads of two axes for lines": (
        one("MaxPool", shape=("n", 2, 6), kernel_shape=[3], pads=[1, 1, 1, 1]),
        {},
        ["(MaxPool): pads are [1, 1, 1, 1]; lines have 2: left, right"],
    ),
    "filters of other channels": (
        one("Conv", "x w", shape=IMAGE, weights={"w": ONES((4, 3, 3, 3), "f4")}),
        {},
        ["(Conv): its weight has shape (4, 3, 3, 3); it takes (4, 2, 3, 3) here"],
    ),
    "pads of one axis": (
        one("Conv", "x w", shape=IMAGE, weights={"w": ONES((4, 2, 3, 3), "f4")}, pads=[1, 1]),
        {},
        ["node 'y_node' (Conv): pads are [1, 1]; images have 4"],
    ),
    "a padding that ONNX does not have": (
        one("Conv", "x w", shape=IMAGE, weights={"w": ONES((4, 2, 3, 3), "f4")}, auto_pad="SAME"),
        {},
        ["(Conv): auto_pad is 'SAME'; ONNX has NOTSET, VALID, SAME_UPPER and SAME_LOWER"],
    ),
    "filters of another size": (
        one("Conv", "x w", shape=IMAGE, weights={"w": ONES((4, 2, 3, 3), "f4")}, kernel_shape=[5, 5]),
        {},
        ["(Conv): kernel_shape is [5, 5], but its filters are [3, 3]"],
    ),
    "an axis moved twice": (
        one("Transpose", shape=("n", 3, 4), perm=[0, 1, 1]),
        {},
        ["(Transpose): perm [0, 1, 1] does not name each of the 3 axes of (N, 3, 4) once"],
    ),
    "squeezed axes that are none": (
        one("Squeeze", "x a", shape=("n", 1, 4), weights={"a": np.zeros(0, np.int64)}),
        {},
        ["(Squeeze): its axes are empty"],
    ),
    "an index that is not there": (
        one("Gather", "x i", weights={"i": np.array([1, -5])}, axis=1),
        {},
        ["(Gather): index -5 lies outside of axis 1 of (N, 4)"],
    ),
    "a table of whole numbers": (
        one("Gather", "w x", weights={"w": np.arange(9)}, integers=["x"]),
        {},
        ["(Gather): its table is int64; Weft's are float32"],
    ),
    "numbers drawn at random": (
        file([node("RandomNormal", "", "k", shape=[4]), node("Add", "x k", "y")], {"x": ("n", 4)}, ["y"], {}),
        {},
        ["node 'k_node': Weft has no kernel for the operator RandomNormal"],
    ),
    "the places of a pool's winners": (
        file([node("MaxPool", "x", "y i", kernel_shape=[2, 2])], {"x": IMAGE}, ["y", "i"], {}),
        {},
        ["node 'y_node' (MaxPool): its output 'i' is needed, and Weft makes only 'y'"],
    ),
    "a dropout's mask": (
        file([node("Dropout", "x", "d m"), node("Cast", "m", "y", to=1)], {"x": ("n", 4)}, ["y"], {}),
        {},
        ["node 'd_node' (Dropout): its output 'm' is needed, and Weft makes only 'd'"],
    ),
    "a file without an output": (
        file([node("Relu", "x", "y")], {"x": ("n", 4)}, [], {}), {}, ["the file has no output; name"]
    ),
    "operators of the future": (
        one("Relu", version=999), {}, ["operators of set 999, but onnx", "install a newer onnx package"]
    ),
    "an axis of extent 0": (one("Relu", shape=("n", 0)), {}, ["axis 1 of the input 'x' is 0; "]),
    "a scale that does not fit": (
        one("LayerNormalization", "x s", weights={"s": ONES(3, "f4")}), {}, ["(LayerNormalization)", "(3,)"]
    ),
    "channels that make no blocks": (
        one("DepthToSpace", shape=IMAGE, blocksize=2),
        {},
        ["(DepthToSpace): blocks of 2 by 2 of (N, 2, 6, 6); give images, channels a multiple of those"],
    ),
    "pixels that make no blocks": (
        one("SpaceToDepth", shape=IMAGE, blocksize=4),
        {},
        ["(SpaceToDepth): blocks of 4 by 4 of (N, 2, 6, 6)"],
    ),
    "a choice by numbers": (
        file([node("Where", "x x x", "y")], {"x": ("n", 4)}, ["y"], {}),
        {},
        ["(Where): where: its condition is", "float32; give bool"],
    ),
    "the and of numbers": (one("And", "x x"), {}, ["(And): its operand 'x' is no truth (bool)"]),
    "values compared with those of another type": (
        one("Equal", "x w", weights={"w": np.array(3)}), {}, ["(Equal): it compares float32 with int64"]
    ),
    "a whole number that float32 has not": (
        file(
            [node("Equal", "x one", "c"), node("Where", "c most x", "y")], {"x": ("n", 4)}, ["y"],
            {"one": np.array(1), "most": np.array(2**63 - 1)}, integers=["x"],
        ),
        {},
        ["(Where): Weft keeps a constant operand as float32, which has no 9223372036854775807 (int64)"],
    ),
    "a batch that is tiled": (
        one("Tile", "x r", weights={"r": np.array([2, 1])}), {}, ["(Tile): it works along axis 0, the batch"]
    ),
    "whole numbers that are divided": (
        one("Div", "x x", integers=["x"]), {}, ["(Div): an operand is int64; Weft computes in float32"]
    ),
    "a length over no axes": (
        one("ReduceL2", "x a", weights={"a": np.zeros(0, int)}, noop_with_empty_axes=1),
        {},
        ["(ReduceL2): it has no axes and noop_with_empty_axes"],
    ),
    "a dilated pool": (
        one("MaxPool", shape=IMAGE, kernel_shape=[2, 2], dilations=[2, 2]),
        {},
        ["(MaxPool): dilations are [2, 2]"],
    ),
    "a stride of nothing": (
        one("MaxPool", shape=IMAGE, kernel_shape=[2, 2], strides=[0, 1]), {}, ["node 'y_node' (MaxPool)"],
    ),
    "a missing attribute": (one("MaxPool", shape=IMAGE), {}, ["its attribute 'kernel_shape' is missing"]),
    "a file exported for training": (
        one("BatchNormalization", "x s s s s", weights={"s": ONES(4, "f4")}, training_mode=1),
        {},
        ["training_mode is 1", "export the model for inference"],
    ),
    "a pad of the batch": (
        one("Pad", "x p", weights={"p": np.array([0, 0, 1, 0])}), {}, ["(Pad)", "axis 0, the batch"]
    ),
    "a pad of few sides": (
        one("Pad", "x p", weights={"p": np.array([0, 1])}), {}, ["(Pad): it has 2 pads for 2 axes; each axis"]
    ),
    "pads that leave nothing": (
        one("Pad", "x p", weights={"p": np.array([0, -3, 0, -1])}), {}, ["holds nothing"]
    ),
    "a mirror that cuts": (
        one("Pad", "x p", weights={"p": np.array([0, 1, 0, -1])}, mode="reflect"),
        {},
        ["(Pad): its pads of axis 1 are (1, -1); by reflect Weft only adds elements"],
    ),
    "a pad that ONNX does not have": (
        one("Pad", "x p", weights={"p": np.array([0, 1, 0, 0])}, mode="mean"), {}, ["its mode is 'mean'"]
    ),
    "axes expanded before the batch": (
        one("Expand", "x s", weights={"s": np.array([2, 1, 4])}),
        {},
        ["(Expand): (N, 4) becomes (2, N, 4), with axes before the batch"],
    ),
    "a batch that is expanded": (
        one("Expand", "x s", shape=(1, 4), weights={"s": np.array([3, 4])}), {}, ["axis 0, the batch"]
    ),
    "a norm of instances where there is no batch": (
        one("InstanceNormalization", "x s s", shape=(2, 3, 4), weights={"s": ONES(3, "f4")}),
        {"batched": False},
        ["(InstanceNormalization): it needs a batch"],
    ),
    "a mean over the batch": (one("ReduceMean"), {}, ["axis 0, the batch", "batched=False"]),
    "an output with its batch elsewhere": (
        one("Transpose"), {}, ["(output): ", " has shape (4, N) with the batch in another axis"]
    ),
    "probabilities of values whose batch is elsewhere": (
        file([node("Transpose", "x", "t"), node("Softmax", "t", "y", axis=0)], {"x": ("n", 4)}, ["y"], {}),
        {},
        ["(Softmax): ", " has shape (4, N) with the batch in another axis", "bring the batch to the front"],
    ),
    "a batch folded away": (
        one("Reshape", "x s", shape=("n", 4, 6), weights={"s": np.array([4, -1])}),
        {},
        ["(N, 4, 6) becomes (4, 6 N), which mixes the batch"],
    ),
    "a folded batch where that matters": (
        file(
            [node("Reshape", "x s", "flat"), node("ReduceMean", "flat", "y")],
            {"x": ("n", 4, 6)}, ["y"], {"s": np.array([-1, 6])},
        ),
        {},
        ["node 'y_node' (ReduceMean)", "(4 N, 6) with the batch folded into its first axis"],
    ),
    "a reshape to more elements": (
        one("Reshape", "x s", weights={"s": np.array([0, 5])}), {}, ["(N, 4) does not fit into (N, 5)"]
    ),
    "the batch size in a sum": (
        file(
            [node("Shape", "x", "s"), node("Cast", "s", "f", to=1), node("ReduceMean", "f", "m", keepdims=0),
             node("Shape", "x", "b", end=1), node("Gather", "x b", "y", axis=1)],
            {"x": ("n", 4)}, ["y"], {},
        ),
        {},
        ["(Gather): it computes with the batch size, which is open"],
    ),
    "an operand that differs from sample to sample": (
        one("Add", "x w", shape=(2, 3), weights={"w": np.arange(6, dtype="f4").reshape(2, 3)}),
        {},
        ["(Add): an operand of shape (2, 3) differs from sample to sample"],
    ),
    "values of unequal rank": (
        file([node("Add", "x z", "y")], {"x": ("n", 3, 4), "z": ("n", 4)}, ["y"], {}),
        {},
        ["(N, 3, 4) and (N, 4) are of unequal rank"],
    ),
    "a product that mixes samples": (
        file([node("MatMul", "x z", "y")], {"x": (4, 4), "z": (4, 4)}, ["y"], {}),
        {},
        ["(4, 4) times (4, 4) is no product sample by sample"],
    ),
    "a table that is computed": (
        file([node("Gather", "z x", "y")], {"x": ("n", 4), "z": ("n", 4)}, ["y"], {}, integers=["x"]),
        {},
        ["its indices are computed"],
    ),
    "an open axis": (
        one("Relu", shape=("n", "places")),
        {},
        [
            "axis 1 ('places') of the input 'x' is open", "behind the batch", "--size places=128",
            "sizes = { places = 128 } in weft.toml", "sizes={'places': 128} in Python",
        ],
    ),
    "an open axis where there is no batch": (
        one("Relu", shape=("n", "places")),
        {"batched": False},
        ["axis 0 ('n') of the input 'x' is open; Weft's graphs have fixed shapes: ", "--size n=128"],
    ),
    "an open axis without a name": (
        one("Relu", shape=("n", None)), {}, ["axis 1 of the input 'x' is open", "it has no name"]
    ),
    "a size of an axis that is not there": (
        one("Relu", shape=("n", "places")),
        {"sizes": {"places": 4, "foo": 3}},
        ["no input has an axis 'foo' to give a size; axes with names: 'n', 'places'"],
    ),
    "a size where no axis has a name": (
        one("Relu", shape=(1, 4)), {"sizes": {"foo": 3}}, ["axes with names: none"]
    ),
    "an input without a batch": (one("Relu", shape=()), {}, ["the input 'x' has no axis", "batched=False"]),
    "inputs with other batches": (
        file([node("Add", "x z", "y")], {"x": (2, 4), "z": (3, 4)}, ["y"], {}),
        {},
        ["x (2, 4), z (3, 4)", "cannot all be the batch"],
    ),
    "an output that is not there": (
        one("Relu"),
        {"outputs": ["z"]},
        ["the file has no value 'z' that could be an output; its last values are 'y'"],
    ),
    "a node that was named for its output": (
        named("/fc/Gemm"),
        {"outputs": ["/fc/Gemm"]},
        ["node '/fc/Gemm' makes '/fc/Gemm_output_0'"],
    ),
    "a node by its name in the table of weft info": (
        named("/fc/Gemm"),
        {"outputs": ["fc_Gemm"]},
        ["node 'fc_Gemm' makes '/fc/Gemm_output_0'"],
    ),
    "an input that nothing makes": (
        one("Add", "x z"), {}, ["node 'y_node' (Add) reads 'z', which nothing before it makes"]
    ),
    "computed operands of old that an axis aligns": (
        one("Add", "x x", broadcast=1, axis=1, version=6), {}, ["(Add): its attribute 'axis' aligns computed"]
    ),
    "an axis of old without room": (
        one("Add", "x w", weights={"w": ONES((4, 4), "f4")}, shape=("n", 4, 4), axis=2, version=6),
        {},
        ["(Add): axis 2 leaves no room in (N, 4, 4) for (4, 4)"],
    ),
    "an operand that would make another batch": (
        one("Add", "x w", weights={"w": ONES((3, 4), "f4")}, shape=(1, 4)), {}, ["result another batch"]
    ),
    "constants that do not fit together": (
        file([node("Add", "a b", "c"), node("Add", "x c", "y")], {"x": ("n", 4)}, ["y"],
             {"a": ONES(3, "f4"), "b": ONES(4, "f4")}),
        {},
        ["node 'c_node' (Add) cannot be computed"],
    ),
}  # fmt: skip


@pytest.mark.parametrize(("proto", "options", "words"), WRONG.values(), ids=WRONG)
def test_what_cannot_be_read_is_named(proto, options, words):
    with pytest.raises(GraphError) as caught:
        read(proto, **options)
    assert [word for word in words if word not in str(caught.value)] == []
