"""The bench of policies on real models, for a moment: its figures are there, and answers were compared."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from bench.harness import WrongResultError
from bench.live import NAME, check_answers, label, nothing
from tests.launch import ROOT, mpiexec


def test_s5_6_policies_are_compared_on_the_same_arrivals(tmp_path: Path):
    out = tmp_path / "out.json"
    arguments = ["--seconds", "0.5", "--repetitions", "1", "--loads", "0.8", "--policies", "first_come,weft"]
    result = mpiexec(2, ["-m", "bench", "live", *arguments, "--json", out], cwd=ROOT)
    assert result.returncode == 0, result.stderr
    figures = json.loads(out.read_text())["figures"]
    assert figures["capacity_per_s"]["value"] > 0
    assert {"goodput_first_come_08", "goodput_weft_08", "over_first_come_08", "on_time_08"} <= set(figures)
    assert 0 <= figures["on_time_08"]["value"] <= 1
    assert figures["added_p50_us"]["value"] > 0


@pytest.mark.parametrize(
    ("load", "named"), [(0.5, "05"), (0.8, "08"), (0.84, "084"), (1.0, "10"), (1.25, "125"), (1.5, "15")]
)
def test_a_load_has_a_name_of_its_own(load, named):
    assert label(load) == named


def test_another_model_is_asked_for_with_its_own_shape(tmp_path: Path):
    (tmp_path / "nothing.onnx").write_bytes(nothing())
    arguments = ["--seconds", "0.2", "--repetitions", "1", "--loads", "0.5", "--policies", "weft"]
    result = mpiexec(2, ["-m", "bench", "live", *arguments, "--model", tmp_path / "nothing.onnx"], cwd=ROOT)
    assert result.returncode == 0, result.stderr
    assert "added_p50_us" in result.stdout


def test_a_model_with_two_inputs_is_refused_before_anything_is_measured(tmp_path: Path):
    given = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 4]) for name in "abc"]
    graph = helper.make_graph([helper.make_node("Add", ["a", "b"], ["c"])], "sum", given[:2], given[2:])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)]), tmp_path / "sum.onnx")
    result = mpiexec(2, ["-m", "bench", "live", "--model", tmp_path / "sum.onnx"], cwd=ROOT)
    assert result.returncode == 2
    assert "give one with a single input of float32" in result.stderr
    assert "Traceback" not in result.stderr


def test_answers_are_checked_of_large_sums_and_a_file_that_lists_its_weights_as_inputs(tmp_path: Path):
    random = np.random.default_rng(0)
    weight = random.standard_normal((512, 512), np.float32) * 3
    given = [("w", weight.shape), ("x", ["batch", 512])]
    infos = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in given]
    output = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 512])
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "large",
        infos,
        [output],
        [numpy_helper.from_array(weight, "w")],
    )
    path = tmp_path / NAME / "1" / "model.onnx"
    path.parent.mkdir(parents=True)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)]), path)
    samples = list(random.standard_normal((4, 1, 512), np.float32))
    answers = [(x[:, ::-1] @ weight[::-1]).astype(np.float32) for x in samples]  # summed from the other end
    small = np.abs(answers[0]) < 0.5
    assert small.any()
    answers[0][small] += 0.005  # among sums near 70
    asyncio.run(check_answers(tmp_path, samples, answers))
    with pytest.raises(WrongResultError, match="the model's answer for sample 3 is not the onnx evaluator's"):
        asyncio.run(check_answers(tmp_path, samples, [*answers[:3], answers[2]]))
