"""Tensors between JSON, bytes and arrays: both ways for every datatype, and what is no tensor."""

from __future__ import annotations

import json
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from tritonclient import utils as triton

from weft.runtime.serve.http import tensors
from weft.runtime.serve.http.datatypes import DTYPES, bfloat16_bits, datatype_of, from_bfloat16_bits
from weft.runtime.serve.http.messages import encode
from weft.runtime.serve.request import WrongInput

VALUES: dict[str, list[Any]] = {
    "BOOL": [True, False, True, True, False, False],
    **{f"UINT{bits}": [0, 1, 2, 3, 4, 2**bits - 1] for bits in (8, 16, 32, 64)},
    **{f"INT{bits}": [0, 1, -1, 3, -(2 ** (bits - 1)), 2 ** (bits - 1) - 1] for bits in (8, 16, 32, 64)},
    "FP16": [0, 1.5, -2.25, 65504.0, 2.0**-24, -0.5],
    "FP32": [0, 1.5, -2.25, 3.0e38, 2.0**-140, -0.5],
    "FP64": [0, 1.5, -2.25, 1.7e308, 5e-324, -0.5],
    "BF16": [0, 1.5, -2.25, 3.0e38, 2.0**-120, -0.5],
    "BYTES": ["", "é", "a\nb", "\0", "日本", "x" * 300],
}


def test_every_datatype_of_the_protocol_is_tried():
    assert VALUES.keys() == DTYPES.keys()


@pytest.mark.parametrize("datatype", VALUES)
def test_s5_json_both_ways_flat_and_nested(datatype: str):
    flat = VALUES[datatype]
    array = tensors.read_json("x", datatype, [2, 3], flat)
    assert array.shape == (2, 3)
    nested = tensors.read_json("x", datatype, [2, 3], [flat[:3], flat[3:]])
    assert nested.tolist() == array.tolist()
    written = json.loads(encode(tensors.write_json("x", datatype, array)))
    if datatype in ("FP16", "FP32", "BF16"):
        dtype = ml_dtypes.bfloat16 if datatype == "BF16" else DTYPES[datatype]
        np.testing.assert_array_equal(np.array(written).astype(dtype), np.array(flat).astype(dtype))
    else:
        assert written == flat


@pytest.mark.parametrize("datatype", VALUES)
def test_s5_bytes_both_ways(datatype: str):
    array = tensors.read_json("x", datatype, [2, 3], VALUES[datatype])
    raw = tensors.write_binary(datatype, array)
    again = tensors.read_binary("x", datatype, [2, 3], memoryview(raw))
    assert again.dtype == DTYPES[datatype]
    assert again.tolist() == array.tolist()


@pytest.mark.parametrize("datatype", [name for name in VALUES if name != "BF16"])
def test_the_bytes_are_those_of_tritonclient(datatype: str):
    array = tensors.read_json("x", datatype, [6], VALUES[datatype])
    theirs = triton.serialize_byte_tensor(array).item() if datatype == "BYTES" else array.tobytes()
    assert tensors.write_binary(datatype, array) == theirs
    assert datatype_of(array) == datatype == triton.np_to_triton_dtype(array.dtype)


@given(arrays.arrays(np.float32, st.integers(0, 20), elements=st.floats(width=32)))
def test_bfloat16_rounds_as_ml_dtypes_does(values: np.ndarray):
    with np.errstate(over="ignore", invalid="ignore"):
        theirs = values.astype(ml_dtypes.bfloat16)
    np.testing.assert_array_equal(from_bfloat16_bits(bfloat16_bits(values)), theirs.astype(np.float32))


def test_bytes_at_an_odd_address_give_an_aligned_array():
    raw = memoryview(b"{" + np.arange(4, dtype="<f8").tobytes())[1:]
    array = tensors.read_binary("x", "FP64", [4], raw)
    assert array.flags.aligned
    assert array.tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("datatype", "shape", "data", "words"),
    [
        pytest.param("FP32", [3], [1, 2], "takes 3 numbers, data has 2", id="too few numbers"),
        pytest.param("FP32", [2, 2], [[1, 2], [3]], "2 long everywhere on axis 1", id="ragged rows"),
        pytest.param("FP32", [2, 2], [[1, 2], 3], "axis 1", id="a number among rows"),
        pytest.param("FP32", [2, 2], [[1, 2, 3, 4]], "axis 0", id="nested in another shape"),
        pytest.param("FP32", [2], [1, [2]], r"holds \[2\]", id="a row among numbers"),
        pytest.param("FP32", [1], ["1"], 'holds "1"', id="text as a number"),
        pytest.param("FP32", [1], [None], "holds null$", id="nothing as a number"),
        pytest.param("FP32", [1], [True], "holds true", id="a boolean as a number"),
        pytest.param("FP32", [1], {"0": 1}, "is a list, not an object", id="an object as data"),
        pytest.param("FP32", [], 1.0, "is a list", id="a bare number"),
        pytest.param("FP32", [1], [1e300], "beyond FP32", id="a number too large for its type"),
        pytest.param("FP64", [1], [float("inf")], "beyond FP64", id="a number too large for any"),
        pytest.param("FP64", [1], [10**400], "does not fit", id="a whole number too large for any"),
        pytest.param("BF16", [1], [3.4e38], "beyond BF16", id="a number that rounds to infinity"),
        pytest.param("INT8", [1], [128], "does not fit", id="a whole number too large"),
        pytest.param("UINT8", [1], [-1], "does not fit", id="a negative number without a sign"),
        pytest.param("INT32", [1], [1.0], "holds 1.0", id="a float as a whole number"),
        pytest.param("BOOL", [1], [1], "holds 1$", id="1 as a boolean"),
        pytest.param("BYTES", [1], ["\ud800"], "does not fit", id="text without UTF-8"),
        pytest.param("FP32", [0, 2**62, 2**62], [], "does not fit", id="nothing, in a shape beyond counting"),
    ],
)
def test_json_that_is_no_tensor(datatype: str, shape: list[int], data: Any, words: str):
    with pytest.raises(WrongInput, match=words):
        tensors.read_json("x", datatype, shape, data)


@pytest.mark.parametrize(
    ("datatype", "shape", "raw", "words"),
    [
        pytest.param("FP32", [2], b"\0" * 7, "takes 8 bytes, binary_data_size is 7", id="too short"),
        pytest.param("BF16", [2], b"\0" * 8, "takes 4 bytes", id="float32 as BF16"),
        pytest.param("BOOL", [2], b"\1\2", "0 or 1, here is 2", id="a boolean of 2"),
        pytest.param("BYTES", [1], b"\5\0\0\0abc", "element 0 .* beyond", id="an element longer than all"),
        pytest.param("BYTES", [2], b"\0\0\0\0\1\0", "element 1 .* beyond", id="half a length"),
        pytest.param("BYTES", [2], b"\0\0\0\0", "takes 2 elements, here are 1", id="too few elements"),
        pytest.param("INT8", [0, 2**62, 2**62], b"", "shape", id="nothing, in a shape beyond counting"),
    ],
)
def test_bytes_that_are_no_tensor(datatype: str, shape: list[int], raw: bytes, words: str):
    with pytest.raises(WrongInput, match=words):
        tensors.read_binary("x", datatype, shape, memoryview(raw))


def test_what_json_cannot_hold_is_to_be_asked_for_as_bytes():
    with pytest.raises(WrongInput, match="NaN or an infinity"):
        tensors.write_json("y", "FP32", np.array([np.nan], np.float32))
    with pytest.raises(WrongInput, match="not UTF-8"):
        tensors.write_json("y", "BYTES", np.array([b"\xff"], object))
