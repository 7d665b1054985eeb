"""An ONNX file as a whole: what is none, or damaged, is refused; functions, outputs, a missing batch."""

from __future__ import annotations

import sys

import numpy as np
import onnx
import pytest

from tests.launch import run
from tests.pure.graph.onnx_files import compute, node, one
from weft.runtime.errors import GraphError
from weft.runtime.graph.onnx import read

ONES = np.ones


def damaged(change):
    proto = one("Add", "x w", weights={"w": ONES(4, "f4")})
    change(proto)
    return proto


DAMAGED = {
    "bytes that are too few": (
        lambda proto: proto.graph.initializer[0].dims.append(7),
        "the stored tensor 'w' cannot be read",
    ),
    "a stored type that is none": (
        lambda proto: setattr(proto.graph.initializer[0], "data_type", 99),
        "the stored tensor 'w' cannot be",
    ),
    "an input's type that is none": (
        lambda proto: setattr(proto.graph.input[0].type.tensor_type, "elem_type", 0),
        "values of type 0",
    ),
    "an input that is a sequence": (
        lambda proto: proto.graph.input[0].type.sequence_type.elem_type.tensor_type.SetInParent(),
        "the input 'x' is a sequence; Weft's graphs take tensors alone",
    ),
    "an input without a shape": (
        lambda proto: proto.graph.input[0].type.tensor_type.ClearField("shape"),
        "does not say what shape the input 'x' has",
    ),
    "a weight of few elements": (
        lambda proto: setattr(proto.graph.sparse_initializer.add().values, "name", "s"),
        "the weight 's' is stored as a sparse tensor",
    ),
    "no set of operators": (
        lambda proto: proto.ClearField("opset_import"),
        "does not say of which set its operators are",
    ),
    "a weight that is stored twice": (
        lambda proto: proto.graph.initializer.append(proto.graph.initializer[0]),
        "the file gives 'w' several values",
    ),
    "a cost that is no number": (
        lambda proto: proto.graph.node[0].metadata_props.add(key="weft.cost", value="dear"),
        "its tag 'weft.cost' is 'dear'; give a number",
    ),
}


@pytest.mark.parametrize(("change", "message"), DAMAGED.values(), ids=DAMAGED)
def test_what_is_damaged_in_a_file_is_named(change, message):
    with pytest.raises(GraphError, match=message):
        read(damaged(change))


def test_a_file_that_is_none(tmp_path):
    with pytest.raises(GraphError, match=r"none\.onnx does not exist"):
        read(tmp_path / "none.onnx")
    damaged = tmp_path / "damaged.onnx"
    damaged.write_bytes(one("Relu").SerializeToString()[:-9])
    with pytest.raises(GraphError, match=r"damaged\.onnx is no ONNX model"):
        read(damaged)
    damaged.write_bytes(b"")
    with pytest.raises(GraphError, match="there is no node in it"):
        read(damaged)
    with pytest.raises(GraphError, match="cannot be read"):
        read(tmp_path)


def test_a_file_is_read_as_its_model(tmp_path):
    onnx.save(one("Relu"), tmp_path / "relu.onnx")
    x = np.array([[-1.0, 2.0, -3.0, 4.0]], "f4")
    (y,) = compute(read(tmp_path / "relu.onnx"), {"x": x}).values()
    np.testing.assert_array_equal(y, [[0, 2, 0, 4]])


def test_functions_of_the_file_are_written_out():
    twice = onnx.helper.make_function(
        "own", "Twice", ["a"], ["b"], [node("Add", "a a", "b")], [onnx.helper.make_opsetid("", 18)]
    )
    proto = one("Relu")
    proto.graph.node[0].op_type, proto.graph.node[0].domain = "Twice", "own"
    proto.functions.append(twice)
    proto.opset_import.append(onnx.helper.make_opsetid("own", 1))
    (y,) = compute(read(proto), {"x": ONES((2, 4), "f4")}).values()
    np.testing.assert_array_equal(y, 2)


def test_without_a_batch_the_whole_input_is_one_sample():
    proto = one("Transpose", shape=(3, 4))
    model = read(proto, batched=False)
    x = np.random.default_rng(0).standard_normal((2, 3, 4), np.float32)
    (y,) = compute(model, {"x": x}).values()
    np.testing.assert_array_equal(y, x.transpose(0, 2, 1))


def test_an_output_that_is_an_input_is_a_copy():
    x = ONES((2, 4), "f4")
    (y,) = compute(read(one("Identity")), {"x": x}).values()
    np.testing.assert_array_equal(y, x)


def test_without_the_onnx_package_the_message_says_how_to_get_it():
    code = (
        "import sys; sys.modules['onnx'] = None\n"
        "from weft.runtime.errors import MachineError\n"
        "try: import weft.runtime.graph.onnx\n"
        "except MachineError as error: print(error)"
    )
    assert "pip install 'weft[onnx]'" in run([sys.executable, "-c", code]).stdout
