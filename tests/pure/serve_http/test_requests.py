"""The body of an inference request: what it asks for, and bodies that lie."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from weft.runtime.serve.http.answers import PIECE, classified, write_answer
from weft.runtime.serve.http.problem import Problem, problem_of
from weft.runtime.serve.http.requests import Call, Form, read_call
from weft.runtime.serve.request import InferRequest, InferResult, Qos, WrongInput

X: dict[str, Any] = {"name": "x", "datatype": "UINT8", "shape": [1, 2], "data": [1, 2]}
LIMIT = 10_000


def body(binary: bytes = b"", **content: Any) -> tuple[bytes, int]:
    header = json.dumps({"inputs": [X]} | content).encode()
    return header + binary, len(header)


def read(binary: bytes = b"", **content: Any) -> Call:
    return read_call(*body(binary, **content), "m", "3", LIMIT)


def test_s5_2_a_request_and_what_it_asks_for():
    call = read(
        id="7",
        parameters={
            "priority": 2, "timeout": 50_000, "class": "interactive", "deadline_ms": 80.5, "accuracy": 0.9,
            "cost": 3,
            "best_effort": True, "client": "me", "of_my_own": "is kept out", "binary_data_output": True,
        },
        outputs=[{"name": "y"}, {"name": "z", "parameters": {"binary_data": False, "classification": 2}}],
    )  # fmt: skip
    assert call.request.qos == Qos("interactive", 0.05, 2, 0.9, 3.0, True, "me")
    assert (call.request.model, call.request.version, call.request.id) == ("m", "3", "7")
    assert call.request.outputs == ("y", "z")
    assert call.form("y") == Form(True)
    assert call.form("z") == Form(False, 2)
    assert call.request.inputs["x"].tolist() == [[1, 2]]


def test_s5_2_the_shorter_of_timeout_and_deadline_counts_and_zero_is_none():
    assert read(parameters={"timeout": 90_000, "deadline_ms": 80}).request.qos.deadline_s == 0.08
    assert read(parameters={"timeout": 0, "priority": 0}).request.qos == Qos()


def test_what_is_null_is_not_there():
    numbers = ["priority", "timeout", "deadline_ms", "accuracy", "cost"]
    none = dict.fromkeys([*numbers, "class", "best_effort", "client", "binary_data_output"])
    region = {"shared_memory_region": None, "binary_data_size": None}
    call = read(id=None, parameters=none, outputs=None, inputs=[X | {"parameters": region}])
    assert (call.request.qos, call.request.id, call.request.outputs, call.form("y")) == (
        Qos(), "", (), Form(False),
    )  # fmt: skip
    own = {"binary_data": None, "classification": None, "shared_memory_region": None}
    binary = {"datatype": "UINT8", "shape": [1], "data": None, "parameters": {"binary_data_size": 1}}
    call = read(
        b"\7",
        inputs=[binary | {"name": "x"}],
        parameters={"binary_data_output": True},
        outputs=[{"name": "y", "parameters": own}, {"name": "z", "parameters": None}],
    )
    assert (call.form("y"), call.form("z")) == (Form(True), Form(True))
    assert call.request.inputs["x"].tolist() == [7]
    assert read(parameters=None).request.qos == Qos()


def test_binary_inputs_are_read_in_their_order():
    tensor = {"datatype": "INT16", "shape": [1]}
    one = tensor | {"name": "a", "parameters": {"binary_data_size": 2}}
    two = tensor | {"name": "b", "parameters": {"binary_data_size": 2}}
    call = read(b"\1\0\2\0", inputs=[one, X, two])
    assert {name: array.tolist() for name, array in call.request.inputs.items()} == {
        "a": [1],
        "x": [[1, 2]],
        "b": [2],
    }


BINARY = {"name": "x", "datatype": "UINT8", "shape": [2], "parameters": {"binary_data_size": 2}}


@pytest.mark.parametrize(
    ("raw", "length", "status", "words"),
    [
        pytest.param(b"{", None, 400, "not JSON", id="half an object"),
        pytest.param(b"\xff{}", None, 400, "not JSON", id="not UTF-8"),
        pytest.param(
            b'{"inputs": [{"parameters": {"binary_data_size": 1}}]}\xff', None, 400,
            "Inference-Header-Content-Length is the length of the JSON alone", id="no length for the JSON",
        ),
        pytest.param(
            b'{"inputs": []}', 8, 400, "in its first 8 bytes of 14, as Inference-Header-Content-Length",
            id="a length of something else",
        ),
        pytest.param(b"[1]", None, 400, r"the body is \[1\], not a JSON object", id="a list"),
        pytest.param(b"{}", 3, 400, "whole body only 2", id="a header longer than the body"),
        pytest.param(b"[" * 9_000, None, 400, "not JSON: depth", id="nested deeply"),
        pytest.param(b'{"inputs": NaN}', None, 400, "JSON has no NaN", id="NaN"),
        pytest.param(b"1" * 9_000, None, 400, "not JSON", id="a number of 9,000 digits"),
        pytest.param(b" " * (LIMIT + 1), None, 413, "send tensors as binary", id="more JSON than allowed"),
        pytest.param(*body(inputs=[]), 400, r"at least one tensor, not \[\]", id="no inputs"),
        pytest.param(*body(inputs=[1]), 400, "a JSON object, not 1", id="an input that is a number"),
        pytest.param(*body(inputs=[X, X]), 400, "there twice", id="an input twice"),
        pytest.param(*body(inputs=[X | {"name": ""}]), 400, "no name", id="a nameless input"),
        pytest.param(*body(inputs=[X | {"name": "\ud800"}]), 400, "not JSON: no low surrogate", id="no text"),
        pytest.param(*body(inputs=[X | {"name": "\x07"}]), 400, "can't be printed", id="a bell"),
        pytest.param(*body(inputs=[X | {"datatype": "FP8"}]), 400, 'one of .* not "FP8"', id="no datatype"),
        pytest.param(*body(inputs=[X | {"datatype": []}]), 400, "one of BOOL", id="a list for a datatype"),
        pytest.param(*body(inputs=[X | {"shape": [-1]}]), 400, r"not \[-1\]", id="a negative extent"),
        pytest.param(*body(inputs=[X | {"shape": [True, 2]}]), 400, "from 0 to", id="a boolean extent"),
        pytest.param(*body(inputs=[X | {"shape": [1] * 33}]), 400, "33 axes", id="too many axes"),
        pytest.param(*body(inputs=[{**X, "data": None}]), 400, "neither data", id="null for data"),
        pytest.param(*body(inputs=[X | {"name": None}]), 400, "no name", id="null for a name"),
        pytest.param(*body(inputs=[X | {"shape": [2**64] * 2}]), 400, "from 0 to", id="vast extents"),
        pytest.param(*body(inputs=[X | {"shape": [2**63 - 1] * 32}]), 400, "takes", id="a vast shape"),
        pytest.param(*body(inputs=[BINARY]), 400, "0 bytes are left", id="bytes that are not there"),
        pytest.param(*body(b"\0\0\0", inputs=[BINARY]), 400, "1 bytes .* no input", id="bytes left over"),
        pytest.param(*body(b"\0\0", inputs=[BINARY | {"data": [1]}]), 400, "has both", id="data twice"),
        pytest.param(
            *body(inputs=[X | {"parameters": {"shared_memory_region": "r"}}]), 400, "shared", id="a region"
        ),
        pytest.param(*body(outputs=[{"name": "y"}] * 2), 400, "asked for twice", id="an output twice"),
        pytest.param(*body(outputs={}), 400, "a list, not an object", id="outputs that are no list"),
        pytest.param(*body(parameters=[]), 400, "JSON object", id="parameters that are a list"),
        pytest.param(*body(parameters={"timeout": 1.5}), 400, "whole number", id="half a microsecond"),
        pytest.param(*body(parameters={"timeout": -1}), 400, "whole number", id="a timeout in the past"),
        pytest.param(*body(parameters={"deadline_ms": 0}), 400, "than 0, not 0$", id="a deadline of now"),
        pytest.param(
            *body(parameters={"deadline_ms": 10**301}), 400, r"to 1e300, not 1e\+301", id="a vast deadline"
        ),
        pytest.param(*body(parameters={"deadline_ms": "5"}), 400, 'number .* "5"', id="text for a number"),
        pytest.param(*body(inputs=[{**X, "shape": None}]), 400, "not nothing", id="no shape"),
        pytest.param(*body(parameters={"best_effort": 1}), 400, "true or false, not 1", id="1 for true"),
        pytest.param(*body(parameters={"class": "x" * 2000}), 400, "not text of 2000", id="a long class"),
    ],
)  # fmt: skip
def test_a_body_that_lies(raw: bytes, length: int | None, status: int, words: str):
    with pytest.raises((Problem, WrongInput), match=words) as caught:
        read_call(raw, length, "m", "", LIMIT)
    assert problem_of(caught.value).status == status


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=8,
)


def or_anything(usual: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return usual | json_values


tensor_entries = st.fixed_dictionaries(
    {
        "name": or_anything(st.sampled_from(["x", "y"])),
        "datatype": or_anything(
            st.sampled_from(["BOOL", "INT8", "UINT64", "FP16", "FP32", "BF16", "BYTES", "FP64"])
        ),
        "shape": or_anything(st.lists(st.sampled_from([0, 1, 2, 3, 2**40]), max_size=3)),
    },
    optional={
        "data": or_anything(
            st.lists(st.integers(-1, 300) | st.floats() | st.booleans() | st.text(max_size=3))
        ),
        "parameters": or_anything(
            st.fixed_dictionaries({}, optional={"binary_data_size": or_anything(st.integers(0, 20))})
        ),
    },
)
requests = st.fixed_dictionaries(
    {"inputs": or_anything(st.lists(or_anything(tensor_entries), max_size=3))},
    optional={
        "id": json_values,
        "outputs": or_anything(st.lists(or_anything(tensor_entries), max_size=2)),
        "parameters": or_anything(
            st.dictionaries(
                st.sampled_from(["priority", "timeout", "deadline_ms", "class", "cost"]), json_values
            )
        ),
    },
)


@settings(max_examples=200)
@given(requests, st.binary(max_size=24), st.integers(-3, 3), st.booleans(), st.binary(max_size=8))
def test_any_body_gives_a_request_or_a_status(
    content: Any, binary: bytes, off: int, without: bool, noise: bytes
):
    raw = json.dumps(content).encode()
    length = None if without else max(0, len(raw) + off)
    for bytes_ in (raw + binary, raw[: len(raw) // 2] + noise + raw[len(raw) // 2 :], noise):
        try:
            call = read_call(bytes_, length, "m", "", LIMIT)
        except Exception as error:
            status = problem_of(error).status
        else:
            status = 200 if call.request.inputs else 0
        assert status in (200, 400, 413)


def test_an_answer_has_its_bytes_behind_the_json():
    result = InferResult(
        "m", "3", {"a": np.float32([[1.5]]), "b": np.float32([[2.5]])}, "rank 0 cpu", 1e-3, 2e-3, 4
    )
    call = read(id="7", outputs=[{"name": "b", "parameters": {"binary_data": True}}, {"name": "a"}])
    (header,), (raw,) = write_answer(call, result, {"a": "FP32", "b": "BF16"})
    assert raw == b"\x20\x40"
    assert json.loads(header) == {
        "model_name": "m",
        "model_version": "3",
        "id": "7",
        "parameters": {"resource": "rank 0 cpu", "batch": 4, "queue_us": 1000, "compute_us": 2000},
        "outputs": [
            {"name": "b", "datatype": "BF16", "shape": [1, 1], "parameters": {"binary_data_size": 2}},
            {"name": "a", "datatype": "FP32", "shape": [1, 1], "data": [1.5]},
        ],
    }


def test_classes_have_the_names_of_the_model_that_answered():
    call = read(outputs=[{"name": "a", "parameters": {"classification": 1}}])
    result = InferResult("m", "1", {"a": np.float32([[1.5, 2.5]])}, "", 0, 0, 1, labels=("fir", "birch"))
    parts, _ = write_answer(call, result, {"a": "FP32"})
    assert json.loads(b"".join(parts))["outputs"][0]["data"] == ["2.500000:1:birch"]


def test_without_binary_outputs_an_answer_is_json_alone():
    call = Call(InferRequest("m", {}))
    parts, binary = write_answer(call, InferResult("m", "1", {"a": np.int8([1])}, "", 0, 0, 1), {})
    assert binary == []
    assert json.loads(b"".join(parts))["outputs"][0]["data"] == [1]


@pytest.mark.parametrize("order", [["long", "short", "raw", "text"], ["text", "raw", "short", "long"]])
@pytest.mark.parametrize("count", [PIECE, PIECE + 1, 3 * PIECE])
def test_many_numbers_are_written_in_pieces(order, count):
    outputs = {
        "long": np.arange(count, dtype=np.float32).reshape(1, -1) / 3,
        "short": np.int8([[1, 2]]),
        "raw": np.arange(count, dtype=np.float32).reshape(1, -1),
        "text": np.array([[f"größer {n}".encode() for n in range(count)]], object),
    }
    wanted = [{"name": n, "parameters": {"binary_data": True}} if n == "raw" else {"name": n} for n in order]
    pieces, (raw,) = write_answer(read(outputs=wanted), InferResult("m", "1", outputs, "", 0, 0, 1), {})
    parts = list(pieces)
    told = json.loads(b"".join(parts))["outputs"]
    assert [each["name"] for each in told] == order
    found = {each["name"]: each for each in told}
    np.testing.assert_array_equal(np.float32(found["long"]["data"]), outputs["long"][0])
    assert found["short"]["data"] == [1, 2]
    assert found["raw"]["parameters"] == {"binary_data_size": len(raw)}
    assert "".join(found["text"]["data"]).encode() == b"".join(outputs["text"][0])
    assert len(parts) == 1 if count == PIECE else max(part.count(b",") for part in parts) <= PIECE + 9


def test_classification_names_the_greatest_first():
    words = classified(np.float32([[1.1, 3.3, 0.5, 2.4]]), 2)
    assert words.tolist() == [[b"3.300000:1", b"2.400000:3"]]
    assert classified(np.uint8([[1, 5, 10, 4]]), 9).tolist() == [[b"10:2", b"5:1", b"4:3", b"1:0"]]
    named = classified(np.float32([[1.1, 3.3, 0.5]]), 3, ["fir: tall", "größer"])
    assert [each.decode() for each in named[0]] == ["3.300000:1:größer", "1.100000:0:fir: tall", "0.500000:2"]
    with pytest.raises(WrongInput, match="of numbers"):
        classified(np.array([[b"a"]], object), 1)
