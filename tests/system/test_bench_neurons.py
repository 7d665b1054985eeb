"""The bench of neurons: every model's outputs are checked, and a wrong one gives no figures."""

from __future__ import annotations

import json
import os

from tests.launch import ROOT, mpiexec

SMALL = ["neurons", "--model", "squeezenet", "--pixels", "64", "--repetitions", "1", "--tuned", "1"]


def test_s1_8_one_image_on_one_rank_with_barriers_and_without(tmp_path):
    path = tmp_path / "neurons.json"
    result = mpiexec(2, ["-m", "bench", *SMALL, "--json", path], cwd=ROOT)
    assert result.returncode == 0, result
    found = {name: figure["value"] for name, figure in json.loads(path.read_text())["figures"].items()}
    assert {
        "speedup",
        "barrier_speedup",
        "speedup_over_serial",
        "one_ms",
        "barrier_ms",
        "opportunistic_ms",
    } <= found.keys()
    assert found["blocks"] >= found["layers"] > 20
    assert 0 <= found["ahead"] < 1


# The real bench on ranks that a launcher has bound to a core each. In onnxruntime's place the serial program
# answers, and tells where onnxruntime's threads may run.
BOUND = """
import os, sys
from unittest.mock import patch
import bench.neurons, onnx
from bench.__main__ import main
from bench.harness import launched_rank
from weft.runtime.graph import Layout
from weft.runtime.graph.onnx import read

cores = sorted(os.sched_getaffinity(0))
os.sched_setaffinity(0, {cores[launched_rank() % len(cores)]})

def told(file, threads, cores):
    proto, seen = onnx.load_from_string(file), set()
    model = read(proto, inference=True)
    serial = bench.neurons.Serial(model.graph, model.parameters(Layout.of(model.graph)))

    def call(inputs):
        if os.sched_getaffinity(0) != seen:
            seen.update(os.sched_getaffinity(0))
            print(f"{threads} of {sorted(cores)} on {sorted(seen)}", file=sys.stderr)
        arrays = serial({own: inputs[name] for name, own in model.inputs.items()})
        found = dict(zip(model.graph.outputs, arrays, strict=True))
        return [found[model.outputs[each.name]] for each in proto.graph.output]

    return call

with (
    patch.object(bench.neurons, "installed", lambda *_: ["onnxruntime"]),
    patch.object(bench.neurons, "session", told),
):
    raise SystemExit(main(sys.argv[1:]))
"""


def test_onnxruntimes_threads_have_the_cores_of_all_ranks():
    result = mpiexec(2, ["-c", BOUND, *SMALL, "--patience", "0"], cwd=ROOT)
    assert result.returncode == 0, result
    cores = sorted(os.sched_getaffinity(0))[:2]
    assert f"1 of {cores} on {cores[:1]}" in result.stderr
    assert f"2 of {cores} on {cores}" in result.stderr


# The real bench with ranks that run every block once, and leave what they have then.
IDLE = """
import sys
from dataclasses import replace
from unittest.mock import patch
from bench.__main__ import main
from weft.runtime.work.neurons.crew import Crew

begin = Crew.__init__

def once(calls):
    left = list(calls)
    return lambda: left and left.pop(0)()

def idle(self, world, job, *rest):
    calls = [[once(own)] * len(own) for own in job.calls]
    begin(self, world, replace(job, calls=calls), *rest)

with patch.object(Crew, "__init__", idle):
    raise SystemExit(main(sys.argv[1:]))
"""


def test_blocks_that_nobody_runs_give_no_figures(tmp_path):
    path = tmp_path / "neurons.json"
    result = mpiexec(2, ["-c", IDLE, *SMALL, "--tuned", "0", "--json", path], cwd=ROOT)
    assert result.returncode != 0
    assert "one: an output differs by" in result.stderr
    assert not path.exists()


def test_a_wrong_output_gives_no_figures(tmp_path):
    path = tmp_path / "neurons.json"
    code = (
        "import sys; from bench.neurons import Serial; from bench.__main__ import main;"
        "call = Serial.__call__;"
        "Serial.__call__ = lambda self, image: [2 * array for array in call(self, image)];"
        "sys.exit(main(sys.argv[1:]))"
    )
    result = mpiexec(2, ["-c", code, *SMALL, "--json", path], cwd=ROOT)
    assert result.returncode != 0
    assert "an output differs by" in result.stderr
    assert not path.exists()
