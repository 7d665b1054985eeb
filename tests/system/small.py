"""A small job, and `weft train` of it under a launcher."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file

from tests.launch import mpiexec

WEFT = ["-m", "weft.runtime.cli"]

JOB = """
name = "small"
seed = 5
data = { source = "digits" }
model.layers = [
  { kernel = "conv2d", channels = 6, kernel_size = 3 },
  { kernel = "batch_norm" },
  { kernel = "relu" },
  { kernel = "flatten" },
  { kernel = "dropout", rate = 0.2 },
  { kernel = "dense", features = 10 },
]

[train]
batch = 60
micro_batch = 16
epochs = 2
optimizer = { name = "adamw", rate = 0.01 }
deterministic = true
"""


def train(
    ranks: int, *arguments: object, folder: Path, **options: object
) -> subprocess.CompletedProcess[str]:
    return mpiexec(ranks, [*WEFT, "train", *map(str, arguments)], cwd=folder, **options)


def run_folder(output: str) -> Path:
    found = re.search(r"stored in (\S+?)(;|$)", output, re.MULTILINE)
    assert found is not None, output
    return Path(found[1])


def final_tensors(folder: Path) -> dict[str, np.ndarray]:
    return load_file(sorted((folder / "checkpoints").glob("*.safetensors"))[-1])
