"""What is read of a version's files beside the graph: the names of classes that weft export has written."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest

from tests.pure.graph.onnx_files import file, node
from weft.runtime.serve.repository import Platform
from weft.runtime.serve.source import read

THREE = json.dumps(["birch", "fir, tall", "größer"])

CASES = {
    "as many as the output has numbers": ("weft", THREE, ["y"], 3, ("birch", "fir, tall", "größer")),
    "fewer, of a model with more outputs": ("weft", THREE, ["y"], 5, ("birch", "fir, tall", "größer")),
    "more than that: the file was changed": ("weft", THREE, ["y"], 2, ()),
    "one of two outputs": ("weft", THREE, ["y", "x_w"], 3, ()),
    "an ensemble's": ("weft", THREE, ["y", "y_deviation"], 3, ("birch", "fir, tall", "größer")),
    "what another program calls labels": ("pytorch", THREE, ["y"], 3, ()),
    "no JSON": ("weft", "birch, fir", ["y"], 3, ()),
    "no list": ("weft", '{"birch": 0}', ["y"], 3, ()),
    "a list of numbers": ("weft", "[0, 1, 2]", ["y"], 3, ()),
    "none": ("weft", None, ["y"], 3, ()),
}  # fmt: skip


@pytest.mark.parametrize(("producer", "told", "outputs", "width", "labels"), CASES.values(), ids=CASES)
def test_the_names_of_classes_in_an_onnx_file(producer, told, outputs, width, labels, tmp_path: Path):
    proto = file(
        [node("MatMul", "x w", "x_w"), node("Relu", "x_w", "y"), node("Tanh", "x_w", "y_deviation")],
        {"x": ("batch", 4)},
        outputs,
        {"w": np.ones((4, width), np.float32)},
    )
    proto.producer_name = producer
    onnx.helper.set_model_props(proto, {"step": "5"} | ({} if told is None else {"labels": told}))
    onnx.save(proto, tmp_path / "model.onnx")
    source, description = read(tmp_path, Platform.ONNX, {})
    assert source.labels == labels
    assert description["labels"] == list(labels)
