"""A run whose nodes had weights of their own goes on so, although its model's nodes share them by now."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from tests.system.test_cli import weft

MODEL = """
from weft.runtime.graph import Builder

def build(sample):
    b = Builder()
    h = b("flatten", b.input("x", sample.shape, sample.dtype))
    h = b("relu", b("dense", h, features=64, name="first"))
    h = b("relu", b("dense", h, features=64, name="second"SHARES))
    return b.build(b("dense", h, features=10, name="last"))
"""
SHARES = ', shares={"weight": "first.weight", "bias": "first.bias"}'

JOB = """
name = "NAME"
data = { source = "digits" }
model = { python = "shared_weights_model:build" }
train = { batch = 64, steps = STEPS, deterministic = true, optimizer = { name = "adam", rate = 0.003 } }
"""


def train(folder: Path, name: str, steps: int, *resume: str) -> Path:
    (folder / f"{name}.toml").write_text(JOB.replace("NAME", name).replace("STEPS", str(steps)))
    done = weft("train", f"{name}.toml", *resume, cwd=folder)
    assert done.returncode == 0, done.stderr
    (run,) = (folder / "runs").glob(f"{name}-*")
    return run


@pytest.mark.limit(180)
def test_a_run_of_before_its_nodes_shared_goes_on_with_the_weights_that_it_has(tmp_path: Path) -> None:
    model = tmp_path / "shared_weights_model.py"
    model.write_text(MODEL.replace("SHARES", ""))
    whole, broken = train(tmp_path, "whole", 12), train(tmp_path, "broken", 6)
    np.save(tmp_path / "x.npy", np.random.default_rng(1).random((5, 1, 8, 8), np.float32) * 16)
    assert weft("predict", broken, "x.npy", "before.npy", cwd=tmp_path).returncode == 0

    model.write_text(MODEL.replace("SHARES", SHARES))
    assert weft("predict", broken, "x.npy", "behind.npy", cwd=tmp_path).returncode == 0
    assert np.array_equal(np.load(tmp_path / "before.npy"), np.load(tmp_path / "behind.npy"))
    train(tmp_path, "broken", 12, "--resume", f"runs/{broken.name}")
    ends = [
        load_file(sorted((run / "checkpoints").glob("step-*12.safetensors"))[-1]) for run in (whole, broken)
    ]
    assert ends[0].keys() == ends[1].keys()
    assert all(np.array_equal(array, ends[1][name]) for name, array in ends[0].items())

    shared = load_file(sorted((train(tmp_path, "new", 3) / "checkpoints").glob("*.safetensors"))[-1])
    assert "weight/second.weight" not in shared
